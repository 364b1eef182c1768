"""Labels of other programs: what they wrote is read, and bad files give one clear sentence."""

from __future__ import annotations

import re

import h5py
import numpy as np
import pytest
import tifffile

from anacor_dials.sample import memory
from anacor_dials.sample.label_files import read_label_stack, write_nifti
from anacor_dials.sample.volumes import LabelVolume

AXES = "z,-y,x"


def same_grid(a, b):
    np.testing.assert_array_equal(a.voxel_size_um, b.voxel_size_um)
    np.testing.assert_array_equal(a.centre, b.centre)
    np.testing.assert_array_equal(a.values, b.values)


@pytest.fixture
def foreign(sample_labels):
    """The sample's labels as another program would index them: [Z, -Y, X]."""
    return np.ascontiguousarray(sample_labels.values.transpose(2, 1, 0)[:, ::-1])


def write_multi_page(folder, stack):
    tifffile.imwrite(folder / "labels.tif", stack, photometric="minisblack")
    return folder / "labels.tif"


def write_folder(folder, stack):
    (folder / "slices").mkdir()
    for i, plane in enumerate(stack):
        tifffile.imwrite(folder / "slices" / f"{i:04d}.tif", plane)
    (folder / "slices" / "notes.txt").write_text("not a slice")
    return folder / "slices"


def write_npy(folder, stack):
    np.save(folder / "labels.npy", stack)
    return folder / "labels.npy"


def write_hdf5(folder, stack):
    with h5py.File(folder / "labels.h5", "w") as file:
        file["deep/labels"] = stack
    return f"{folder / 'labels.h5'}:/deep/labels"


WRITERS = [write_multi_page, write_folder, write_npy, write_hdf5]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("write", WRITERS)
def test_label_stacks_of_other_programs(tmp_path, foreign, sample_labels, write, dtype):
    path = write(tmp_path, foreign.astype(dtype))
    read = read_label_stack(
        path, sample_labels.voxel_size_um, AXES, sample_labels.names, sample_labels.centre
    )
    same_grid(read, sample_labels)
    assert read.values.flags.c_contiguous


def test_a_stack_of_two_labels(tmp_path):
    np.save(tmp_path / "mask.npy", np.eye(8, dtype=bool).reshape(2, 4, 8))
    read = read_label_stack(tmp_path / "mask.npy", 0.3, names=("background", "crystal"))
    assert read.counts().tolist() == [56, 8]
    np.testing.assert_array_equal(read.voxel_size_um, [0.3, 0.3, 0.3])


def test_left_handed_axes_must_be_meant(tmp_path, foreign):
    path = write_npy(tmp_path, foreign)
    with pytest.raises(ValueError, match="labels.axes=z,y,x is left-handed.*labels.left_handed=T"):
        read_label_stack(path, 1.0, "z,y,x")
    read = read_label_stack(path, 1.0, "z,y,x", left_handed=True)
    np.testing.assert_array_equal(read.values, foreign.transpose(2, 1, 0))


@pytest.mark.parametrize("write", WRITERS)
def test_stacks_larger_than_the_memory_are_refused(tmp_path, foreign, write, monkeypatch):
    path = write(tmp_path, foreign)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 5000)
    with pytest.raises(ValueError, match="GB of memory"):
        read_label_stack(path, 1.0, AXES)


def test_labels_without_a_name_are_refused(tmp_path, foreign):
    path = write_npy(tmp_path, foreign)
    with pytest.raises(ValueError, match="labels from 0 to 3 and 2 names were given"):
        read_label_stack(path, 1.0, AXES, names=("background", "crystal"))


def test_negative_labels_are_refused(tmp_path, foreign):
    path = write_npy(tmp_path, foreign.astype(np.int16) - 1)
    with pytest.raises(ValueError, match="labels from -1 to 2"):
        read_label_stack(path, 1.0, AXES)


def test_grey_values_are_refused(tmp_path, foreign):
    path = write_npy(tmp_path, foreign.astype(np.float32))
    with pytest.raises(ValueError, match="holds float32 values; a label stack holds whole"):
        read_label_stack(path, 1.0, AXES)


@pytest.mark.parametrize("shape", [(4, 5), (0, 4, 5)])
def test_stacks_without_three_axes_or_content_are_refused(tmp_path, shape):
    path = write_npy(tmp_path, np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=re.escape(f"has the shape {shape}")):
        read_label_stack(path, 1.0)


def test_a_bad_voxel_size_names_the_file(tmp_path, foreign):
    path = write_npy(tmp_path, foreign)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: The voxel size is"):
        read_label_stack(path, 0.0, AXES)


def test_stacks_that_cannot_be_read_are_refused(tmp_path, foreign):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "text.tif").write_text("not an image")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    whole = write_multi_page(tmp_path, foreign).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    write_hdf5(tmp_path, foreign)
    for name, match in {
        "absent.tif": "There is no file",
        "empty": "has no .tif or .tiff files",
        "text.npy": "is not a NumPy array of numbers",
        "objects.npy": "is not a NumPy array of numbers",
        "text.tif": "cannot be read as TIFF",
        "cut.tif": "cannot be read as TIFF",
        "labels.h5": "name the data set too, as in",
        "labels.h5:/other": "has no data set '/other'",
        "absent.h5:/labels": "There is no file",
    }.items():
        with pytest.raises(ValueError, match=match) as error:
            read_label_stack(tmp_path / name, 1.0)
        assert "\n" not in str(error.value)


def test_slices_of_different_sizes_are_refused(tmp_path, foreign):
    folder = write_folder(tmp_path, foreign)
    tifffile.imwrite(folder / "9999.tif", np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match="do not all have the same size"):
        read_label_stack(folder, 1.0, AXES)


def test_what_is_read_is_a_label_volume(tmp_path, foreign):
    assert isinstance(read_label_stack(write_npy(tmp_path, foreign), 1.0, AXES), LabelVolume)


@pytest.mark.parametrize("name", ["labels.nii", "labels.nii.gz"])
def test_nifti_goes_there_and_comes_back(tmp_path, sample_labels, name):
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    write_nifti(tmp_path / name, sample_labels)
    # nibabel's own affine map says where a voxel lies, in um
    image = nibabel.load(tmp_path / name)
    index = np.array([3, 4, 5])
    place = (image.affine @ [*index, 1.0])[:3]
    np.testing.assert_allclose(place, sample_labels.position_um(index), rtol=1e-5)
    assert image.header.get_xyzt_units()[0] == "micron"
    back = read_label_stack(tmp_path / name, None, centre=sample_labels.centre)
    np.testing.assert_array_equal(back.values, sample_labels.values)
    np.testing.assert_allclose(back.voxel_size_um, sample_labels.voxel_size_um, rtol=1e-6)


def test_nifti_by_another_name_is_refused(tmp_path, sample_labels):
    with pytest.raises(ValueError, match=r"\.nii or \.nii\.gz"):
        write_nifti(tmp_path / "labels.img", sample_labels)
    assert not list(tmp_path.iterdir())
