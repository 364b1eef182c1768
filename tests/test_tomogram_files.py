"""tomo.h5: what is written is read, and bad files give one clear sentence."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from anacor_dials.sample import memory
from anacor_dials.sample.hdf5_files import open_hdf5
from anacor_dials.sample.tomogram_files import (
    SampleFile,
    is_sample_file,
    new_tomogram_file,
    read_sample_file,
    write_sample_file,
)
from anacor_dials.sample.volumes import Tomogram

MU = np.array([0.0, 0.0202, np.nan, 0.0193])


@pytest.fixture
def tomogram(sample_labels):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(sample_labels.shape).astype(np.float32)
    return Tomogram(values, sample_labels.voxel_size_um, sample_labels.centre)


@pytest.fixture
def sample_file(tmp_path, sample_labels, tomogram):
    path = tmp_path / "tomo.h5"
    write_sample_file(path, tomogram, sample_labels, MU, 3.5)
    return path


def same_grid(a, b):
    np.testing.assert_array_equal(a.voxel_size_um, b.voxel_size_um)
    np.testing.assert_array_equal(a.centre, b.centre)
    np.testing.assert_array_equal(a.values, b.values)


# ---- round trips ------------------------------------------------------------------------------------


def test_everything_comes_back(tmp_path, sample_labels, tomogram):
    path = tmp_path / "tomo.h5"
    probabilities = np.random.default_rng(1).integers(
        0, 256, (4, *sample_labels.shape), dtype=np.uint8
    )
    write_sample_file(
        path,
        tomogram,
        sample_labels,
        MU,
        3.5,
        probabilities,
        projections=tmp_path / "raw" / "scan.nxs",
        parameters="a = 1",
    )
    read = read_sample_file(path, probabilities=True)
    assert is_sample_file(path)
    same_grid(read.tomogram, tomogram)
    same_grid(read.labels, sample_labels)
    assert read.labels.names == ("background", "liquor", "loop", "crystal")
    np.testing.assert_array_equal(read.mu_per_um, MU)  # NaN stays NaN: unknown
    assert read.energy_keV == 3.5
    np.testing.assert_array_equal(read.probabilities, probabilities)
    assert read.projections == (tmp_path / "raw" / "scan.nxs").resolve()


def test_the_layout_that_other_programs_rely_on(sample_file, sample_labels):
    with h5py.File(sample_file) as file:
        assert file["entry"].attrs["NX_class"] == "NXentry"
        assert file["entry/definition"][()] == b"NXtomoproc"
        assert file["entry/program"].attrs["version"]
        assert file["entry/frame/voxel_size"].attrs["units"] == "um"
        np.testing.assert_array_equal(file["entry/frame/voxel_size"], [2.0, 1.5, 1.0])
        np.testing.assert_array_equal(file["entry/frame/centre"], [9.0, 11.5, 14.25])
        assert file["entry/reconstruction/data"].dtype == np.float32
        assert file["entry/reconstruction/data"].attrs["units"] == "1/um"
        assert file["entry/segmentation/labels"].dtype == np.uint8
        assert file["entry/segmentation/labels"].shape == sample_labels.shape
        assert list(file["entry/segmentation/names"].asstr()) == list(sample_labels.names)
        assert file["entry/segmentation/mu"].attrs["units"] == "1/um"
        assert file["entry/segmentation/mu"].attrs["energy_keV"] == 3.5


def test_only_the_parts_asked_for_are_read(sample_file):
    read = read_sample_file(sample_file, tomogram=False)
    assert read.tomogram is None
    assert read.labels is not None
    read = read_sample_file(sample_file, labels=False)
    assert read.labels is None
    assert read.mu_per_um is None
    assert read.tomogram is not None


def test_a_tomogram_alone(tmp_path, tomogram):
    write_sample_file(tmp_path / "a.h5", tomogram)
    read = read_sample_file(tmp_path / "a.h5")
    same_grid(read.tomogram, tomogram)
    assert (read.labels, read.mu_per_um, read.energy_keV) == (None, None, None)


def test_a_tomogram_written_slab_by_slab(tmp_path, tomogram):
    path = tmp_path / "slabs.h5"
    with new_tomogram_file(
        path,
        tomogram.shape,
        tomogram.voxel_size_um,
        tomogram.centre,
        SampleFile(
            path,
            projections=tmp_path / "scan.nxs",
            scan_centre=(11.25, 9.0),
            scan_energy_keV=3.75,
            scan_distance_mm=12.5,
        ),
    ) as data:
        for start in range(0, 20, 7):
            data[start : start + 7] = tomogram.values[start : start + 7]
        assert not path.exists()
    read = read_sample_file(path)
    same_grid(read.tomogram, tomogram)
    assert read.projections == (tmp_path / "scan.nxs").resolve()
    assert read.scan_centre == (11.25, 9.0)
    assert (read.scan_energy_keV, read.scan_distance_mm) == (3.75, 12.5)


def test_a_failure_while_writing_leaves_the_earlier_file(sample_file, tomogram):
    def write_and_fail():
        with new_tomogram_file(sample_file, tomogram.shape, 1.0, (0, 0, 0)) as data:
            data[:3] = 1
            raise RuntimeError

    before = sample_file.read_bytes()
    with pytest.raises(RuntimeError):
        write_and_fail()
    assert sample_file.read_bytes() == before
    assert list(sample_file.parent.iterdir()) == [sample_file]


def test_files_of_other_programs_need_only_what_is_necessary(tmp_path, sample_labels):
    # lengths in metres, labels of another whole type, default names, no mu, no centre
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["entry/frame/voxel_size"] = np.array([2e-6, 1.5e-6, 1e-6])
        file["entry/frame/voxel_size"].attrs["units"] = "m"
        file["entry/segmentation/labels"] = sample_labels.values.astype(np.int32)
    read = read_sample_file(tmp_path / "other.h5")
    np.testing.assert_allclose(read.labels.voxel_size_um, [2.0, 1.5, 1.0])
    np.testing.assert_array_equal(read.labels.values, sample_labels.values)
    np.testing.assert_array_equal(read.labels.centre, [9.5, 11.5, 13.5])
    assert read.labels.names == ("background", "liquor", "loop", "crystal")
    assert read.mu_per_um is None


def test_another_hdf5_file_is_no_sample_file(tmp_path):
    with h5py.File(tmp_path / "scan.nxs", "w") as file:
        file["entry/data"] = np.zeros(3)
    assert not is_sample_file(tmp_path / "scan.nxs")


# ---- what is not written --------------------------------------------------------------------------


def test_nothing_to_write_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither a tomogram nor a label volume"):
        write_sample_file(tmp_path / "tomo.h5")


def test_volumes_on_different_grids_are_refused(tmp_path, sample_labels, tomogram):
    for other in (
        Tomogram(tomogram.values[:-1], tomogram.voxel_size_um),
        Tomogram(tomogram.values, 1.0),
    ):
        with pytest.raises(ValueError, match="not on the same grid"):
            write_sample_file(tmp_path / "tomo.h5", other, sample_labels)
    assert not list(tmp_path.iterdir())


def test_mu_for_other_labels_is_refused_and_nothing_written(tmp_path, sample_labels):
    with pytest.raises(ValueError, match="mu has 3 values for 4 labels"):
        write_sample_file(tmp_path / "tomo.h5", labels=sample_labels, mu_per_um=[0, 1, 2])
    assert not list(tmp_path.iterdir())


# ---- bad files --------------------------------------------------------------------------------------


def refused(path, match):
    """The reading raises one sentence that names the file and matches."""
    with pytest.raises(ValueError, match=match) as error:
        read_sample_file(path, probabilities=True)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def change(path, name, value, **attributes):
    with h5py.File(path, "a") as file:
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value
            file[name].attrs.update(attributes)


def test_an_absent_file_is_refused(tmp_path):
    refused(tmp_path / "tomo.h5", "There is no file")


def test_a_file_that_is_not_hdf5_is_refused(tmp_path):
    (tmp_path / "tomo.h5").write_text("not what it says")
    refused(tmp_path / "tomo.h5", "is not an HDF5 file")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "tomo.h5").touch()
    refused(tmp_path / "tomo.h5", "is not an HDF5 file|is truncated")


@pytest.mark.parametrize("kept", [0.99, 0.5, 0.1])
def test_a_truncated_file_is_refused(sample_file, kept):
    content = sample_file.read_bytes()
    sample_file.write_bytes(content[: int(kept * len(content))])
    refused(sample_file, "is truncated .* copy it again")


def test_a_damaged_file_is_refused(sample_file):
    with h5py.File(sample_file) as file:
        info = file["entry/segmentation/labels"].id.get_chunk_info(0)
    content = bytearray(sample_file.read_bytes())
    content[info.byte_offset : info.byte_offset + info.size] = bytes(info.size)
    sample_file.write_bytes(content)
    refused(sample_file, "is damaged, or compressed by a filter")


def test_a_file_without_voxel_size_is_refused(sample_file):
    change(sample_file, "entry/frame/voxel_size", None)
    refused(sample_file, "has no /entry/frame/voxel_size, .* write it there")


def test_a_voxel_size_in_unknown_units_is_refused(sample_file):
    change(sample_file, "entry/frame/voxel_size", [1.0, 1, 1], units="inch")
    refused(sample_file, "has the units 'inch'; known are um")


@pytest.mark.parametrize("size", [[1.0, 1.0], [1, 1, 0.0], [1, np.nan, 1], [-1.0] * 3])
def test_a_voxel_size_that_is_no_length_is_refused(sample_file, size):
    change(sample_file, "entry/frame/voxel_size", size, units="um")
    refused(sample_file, "voxel size is .* must be one or three lengths > 0")


def test_a_file_without_a_crystal_is_refused(sample_file):
    change(sample_file, "entry/segmentation/names", ["background", "liquor", "loop", "protein"])
    refused(sample_file, "No label is named 'crystal' .* Name the crystal's label 'crystal'")


def test_an_unnamed_label_is_refused(sample_file):
    change(sample_file, "entry/segmentation/names", ["background", "liquor", "crystal"])
    refused(sample_file, "the label 3, which has no name .* Name every label")


@pytest.mark.parametrize(("value", "dtype"), [(-1, np.int16), (300, np.int32), (2**40, np.int64)])
def test_labels_beyond_a_byte_are_refused(sample_file, value, dtype):
    labels = np.zeros((4, 5, 6), dtype)
    labels[2, 3, 4] = value
    change(sample_file, "entry/segmentation/labels", labels)
    refused(sample_file, "labels reach from .* they are 0 to 255")


def test_labels_that_are_not_whole_are_refused(sample_file):
    change(sample_file, "entry/segmentation/labels", np.zeros((4, 5, 6), np.float32))
    refused(sample_file, "labels are float32; they must be whole numbers")


def test_labels_without_three_axes_are_refused(sample_file):
    change(sample_file, "entry/segmentation/labels", np.zeros((4, 5), np.uint8))
    refused(sample_file, "three axes")


def test_mu_for_other_names_is_refused(sample_file):
    change(sample_file, "entry/segmentation/mu", [0.0, 0.1, 0.2])
    refused(sample_file, "mu has 3 values for 4 names")


def test_a_volume_larger_than_the_memory_is_refused(sample_file, monkeypatch):
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 20_000)
    refused(sample_file, r"needs 0\.0 GB of memory and 0\.0 GB are free; crop or bin the volume")


def test_a_huge_volume_is_refused_before_it_is_read(tmp_path):
    with h5py.File(tmp_path / "huge.h5", "w") as file:  # 1 EB, of which nothing is stored
        file["entry/frame/voxel_size"] = np.ones(3)
        file.create_dataset(
            "entry/segmentation/labels", (10**6,) * 3, dtype=np.uint8, chunks=(64, 64, 64)
        )
    if memory.available_memory_bytes() is None:
        pytest.skip("The system does not say how much memory is free.")
    refused(tmp_path / "huge.h5", r"needs 1000000000\.0 GB of memory")


def test_a_huge_tomogram_of_which_nothing_is_stored_is_refused(tmp_path):
    with h5py.File(tmp_path / "huge.h5", "w") as file:  # 4 GB on a disk that has them
        file["entry/frame/voxel_size"] = np.ones(3)
        file.create_dataset(
            "entry/reconstruction/data", (1000,) * 3, dtype=np.float32, chunks=(64, 64, 64)
        )
    refused(tmp_path / "huge.h5", r"should be 4\.0 GB and 0\.0 MB are stored")


def test_where_the_system_says_nothing_memory_is_not_checked(sample_file, monkeypatch):
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: None)
    assert read_sample_file(sample_file).labels is not None


def test_an_unreadable_data_set_of_any_file_is_a_value_error(sample_file):
    with pytest.raises(ValueError, match="is damaged"), open_hdf5(sample_file):
        raise OSError("a filter is absent")
