"""Tomograms of other programs lie in our frame as their projections say, in 1/um where that is known."""

from __future__ import annotations

import itertools
import re

import h5py
import numpy as np
import pytest
import tifffile

from anacor_dials.jobs.foreign_tomogram import load_foreign_tomogram, on_a_scale
from anacor_dials.sample.foreign_tomograms import (
    TomogramDescription,
    fill_blank,
    is_foreign_tomogram,
    read_foreign_tomogram,
)
from anacor_dials.sample.frames import to_tomo_axes
from anacor_dials.sample.known_reconstructions import KnownReconstruction, find_reconstruction
from anacor_dials.sample.materials import typical_composition
from anacor_dials.sample.tomogram_files import read_sample_file, write_sample_file
from anacor_dials.sample.volumes import Tomogram

SIZE = (2.0, 1.5, 1.0)
DESCRIPTION = TomogramDescription(SIZE, "z,-y,x", "1/um", centre=(9.0, 11.5, 14.25))


@pytest.fixture
def tomogram(sample_labels):
    values = np.array([0.0, 0.02, 0.012, 0.019], dtype=np.float32)[sample_labels.values]
    values += 1e-4 * np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
    return Tomogram(values, SIZE, (9.0, 11.5, 14.25))


def indexed(values, axis_map):
    """The array with its indices along other axes: each voxel is put where the map says."""
    names = axis_map.split(",")
    order = ["xyz".index(name.lstrip("-")) for name in names]
    out = np.empty([values.shape[k] for k in order], dtype=values.dtype)
    for place in np.ndindex(values.shape):
        index = [
            values.shape[k] - 1 - place[k] if name.startswith("-") else place[k]
            for k, name in zip(order, names, strict=True)
        ]
        out[tuple(index)] = values[place]
    return out


def write_hdf5(folder, array, **attributes):
    with h5py.File(folder / "recon.h5", "w") as file:
        file["deep/data"] = array
        file["deep/data"].attrs.update(attributes)
    return f"{folder / 'recon.h5'}:/deep/data"


def write_tiff(folder, array):
    tifffile.imwrite(folder / "recon.tif", array, photometric="minisblack")
    return folder / "recon.tif"


def write_big_endian_tiff(folder, array):
    tifffile.imwrite(folder / "recon.tif", array, photometric="minisblack", byteorder=">")
    assert (folder / "recon.tif").read_bytes()[:2] == b"MM"
    return folder / "recon.tif"


def write_folder(folder, array):
    (folder / "slices").mkdir()
    for k, plane in enumerate(array):
        tifffile.imwrite(folder / "slices" / f"recon_{k:05d}.tif", plane)
    return folder / "slices"


def write_npy(folder, array):
    np.save(folder / "recon.npy", array)
    return folder / "recon.npy"


def write_mrc(folder, array):
    mrcfile = pytest.importorskip("mrcfile", reason="mrcfile is not installed")
    with mrcfile.new(folder / "recon.mrc") as file:
        file.set_data(array)
    return folder / "recon.mrc"


def write_nrrd(folder, array):
    nrrd = pytest.importorskip("nrrd", reason="pynrrd is not installed")
    nrrd.write(str(folder / "recon.nrrd"), array, index_order="F")
    return folder / "recon.nrrd"


FORMATS = [
    write_hdf5, write_tiff, write_big_endian_tiff, write_folder, write_npy, write_mrc, write_nrrd,
]  # fmt: skip


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_tomogram(tmp_path, tomogram, write):
    name = write(tmp_path, indexed(tomogram.values, "z,-y,x"))
    assert is_foreign_tomogram(name, DESCRIPTION)
    found = read_foreign_tomogram(name, DESCRIPTION)
    np.testing.assert_array_equal(found.tomogram.values, tomogram.values)
    np.testing.assert_array_equal(found.tomogram.voxel_size_um, tomogram.voxel_size_um)
    np.testing.assert_array_equal(found.tomogram.centre, tomogram.centre)
    assert found.tomogram.quantitative
    assert found.warnings == ()


@pytest.mark.parametrize("permutation", list(itertools.permutations("xyz")))
def test_axes_are_where_the_map_says(tmp_path, tomogram, permutation):
    for signs in itertools.product(("", "-"), repeat=3):
        axes = ",".join(s + a for s, a in zip(signs, permutation, strict=True))
        name = write_npy(tmp_path, indexed(tomogram.values, axes))
        even = permutation in (tuple("xyz"), tuple("yzx"), tuple("zxy"))
        left = (signs.count("-") % 2 == 0) != even
        description = TomogramDescription(SIZE, axes, "1/um")
        if left:
            with pytest.raises(ValueError, match=r"axes=\S+ is left-handed: .*left_handed=True"):
                read_foreign_tomogram(name, description)
            description = TomogramDescription(SIZE, axes, "1/um", left_handed=True)
        found = read_foreign_tomogram(name, description)
        np.testing.assert_array_equal(found.tomogram.values, tomogram.values)


@pytest.mark.parametrize(
    ("unit", "per_um"), [("1/um", 1.0), ("1/mm", 1e3), ("1/cm", 1e4), ("1/m", 1e6)]
)
@pytest.mark.parametrize("dtype", [">f4", np.float64])
def test_units(tmp_path, tomogram, unit, per_um, dtype):
    array = (tomogram.values.astype(np.float64) * per_um).astype(dtype)
    given = read_foreign_tomogram(
        write_npy(tmp_path, array), TomogramDescription(SIZE, "x,y,z", unit)
    )
    of_file = read_foreign_tomogram(
        write_hdf5(tmp_path, array, units=unit), TomogramDescription(SIZE, "x,y,z")
    )
    for found in (given, of_file):
        assert found.tomogram.quantitative
        np.testing.assert_allclose(found.tomogram.values, tomogram.values, rtol=1e-5, atol=1e-8)


def test_values_per_voxel_and_whole_numbers_with_a_scale(tmp_path, tomogram):
    per_voxel = write_npy(tmp_path, tomogram.values * 0.65)
    found = read_foreign_tomogram(per_voxel, TomogramDescription([0.65], "x,y,z", "1/voxel"))
    np.testing.assert_allclose(found.tomogram.values, tomogram.values, rtol=1e-6)
    low, step = -0.01, 1e-6
    whole = np.rint((tomogram.values - low) / step).astype(np.uint16)
    name = write_tiff(tmp_path, whole)
    said = TomogramDescription(SIZE, "x,y,z", "1/mm", scale=1e3 * step, offset=1e3 * low)
    found = read_foreign_tomogram(name, said)
    np.testing.assert_allclose(found.tomogram.values, tomogram.values, atol=0.6 * step)


def test_a_unit_that_nobody_knows_is_no_mu(tmp_path, tomogram, sample_labels):
    """uint16 as pipelines export it: air and sample are found, mu is left unknown."""
    whole = np.rint(20000 + 4e5 * np.pad(tomogram.values, 6)).astype(np.uint16)
    name = write_tiff(tmp_path, whole)
    made = load_foreign_tomogram(name, TomogramDescription(SIZE, "x,y,z"), energy_keV=3.5)
    assert not made.tomogram.quantitative
    assert any("mu is left unknown" in warning for warning in made.warnings)
    inner = made.tomogram.values[6:-6, 6:-6, 6:-6]
    water = typical_composition("liquor").mu_per_um(3.5)
    for label, level in ((0, 0.0), (1, 1.0), (2, 0.6), (3, 0.95)):
        there = inner[sample_labels.values == label]
        assert np.median(there) == pytest.approx(level * water, abs=0.02 * water)
    write_sample_file(tmp_path / "tomo.h5", made.tomogram)
    assert not read_sample_file(tmp_path / "tomo.h5").tomogram.quantitative


def test_without_air_values_of_no_unit_cannot_be_scaled(tomogram):
    full = np.array(tomogram.values[5:12, 9:14, 10:18] + 5.0)
    with pytest.raises(ValueError, match=r"no air is seen|Nothing stands out|nothing but air"):
        on_a_scale(Tomogram(full, SIZE, quantitative=False), None, "recon.tif")


def test_units_in_tomo_h5_are_honoured(tmp_path, tomogram):
    write_sample_file(tmp_path / "tomo.h5", tomogram)
    with h5py.File(tmp_path / "tomo.h5", "r+") as file:
        data = file["entry/reconstruction/data"]
        data[...] = tomogram.values * 1e3
        data.attrs["units"] = "1/mm"
    read = read_sample_file(tmp_path / "tomo.h5").tomogram
    np.testing.assert_allclose(read.values, tomogram.values, rtol=1e-6)
    with h5py.File(tmp_path / "tomo.h5", "r+") as file:
        file["entry/reconstruction/data"].attrs["units"] = "furlong"
    with pytest.raises(ValueError, match=r"has the units 'furlong'; known are 1/um"):
        read_sample_file(tmp_path / "tomo.h5")


def test_sizes_of_voxels_that_contradict_each_other_are_named(tmp_path, tomogram):
    name = write_hdf5(tmp_path, tomogram.values, element_size_um=SIZE)
    found = read_foreign_tomogram(name, TomogramDescription(axes="x,y,z", unit="1/um"))
    np.testing.assert_allclose(found.tomogram.voxel_size_um, SIZE)
    said = TomogramDescription([0.5], "x,y,z", "1/um")
    found = read_foreign_tomogram(name, said, pixel_xy_um=(0.5, 0.5))
    np.testing.assert_allclose(found.tomogram.voxel_size_um, 0.5)
    (warning,) = found.warnings
    assert "0.5 x 0.5 x 0.5 um by tomogram.voxel_size_um and 2 x 1.5 x 1 um by" in warning


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"axes": None}, r"does not say what its axes run along; give tomogram\.axes="),
        ({"axes": "x,y"}, r"The axis map 'x,y' must name x, y and z"),
        ({"axes": "x,y,w"}, r"The axis map 'x,y,w' must name"),
        ({"voxel_size_um": None}, r"does not say how large its voxels are; give tomogram\.voxel"),
        ({"voxel_size_um": [1.0, 2.0]}, r"one or three lengths"),
        ({"unit": "1/ft"}, r"tomogram\.unit is '1/ft'; it is"),
        ({"scale": 0.0}, r"tomogram\.scale is 0"),
    ],
)
def test_what_is_missing_or_wrong_is_one_sentence(tmp_path, tomogram, changes, match):
    name = write_npy(tmp_path, tomogram.values)
    said = {"voxel_size_um": [1.0], "axes": "x,y,z", "unit": "1/um"} | changes
    with pytest.raises(ValueError, match=match) as error:
        read_foreign_tomogram(name, TomogramDescription(**said))
    assert "\n" not in str(error.value)


# ---- HTTomo and Savu --------------------------------------------------------------------------------


def write_httomo(path, array, n_angles=180):
    """As httomo's methods.save_intermediate_data writes it."""
    with h5py.File(path, "w") as file:
        file["angles"] = np.deg2rad(np.arange(n_angles))
        file[path.name] = [0, 0]
        file["data_dims/detector_x_y"] = [array.shape[2], array.shape[1]]
        file["data"] = array
    return path


def write_savu(folder, array):
    """As Savu's base_transport and hdf5_utils write it: a link, and the file that it leads to."""
    with h5py.File(folder / "tomo_p3_astra_recon_cpu.h5", "w") as file:
        file["3-AstraReconCpu-tomo/data"] = array
    with h5py.File(folder / "scan_processed.nxs", "w") as file:
        group = file.create_group("entry/final_result_tomo")
        group.attrs["NX_class"] = "NXdata"
        group.attrs["signal"] = "data"
        group.attrs["axes"] = ["voxel_x", "voxel_y", "voxel_z"]
        for k, axis in enumerate(("voxel_x", "voxel_y", "voxel_z")):
            group[axis] = np.arange(array.shape[k])
            group[axis].attrs["units"] = "voxels"
        group["data"] = h5py.ExternalLink("tomo_p3_astra_recon_cpu.h5", "3-AstraReconCpu-tomo/data")
    return folder / "scan_processed.nxs"


@pytest.mark.parametrize("fast", [(0, 1, 0), (0, -1, 0)])
@pytest.mark.parametrize("slow", [(1, 0, 0), (-1, 0, 0)])
def test_slices_of_astra_project_onto_the_cameras_images(ellipsoid_scan, fast, slow):
    """astra's square: at 0 degrees its columns are the detector's, at 90 degrees its rows, reversed."""
    scan = ellipsoid_scan.at(fast_axis=fast, slow_axis=slow, shape=(40, 64), angles_deg=(0.0, 90.0))
    x, y, z = np.meshgrid(np.arange(40) - 19.5, *[np.arange(64) - 31.5] * 2, indexing="ij")
    mu = np.zeros(x.shape)
    for e in scan.ellipsoids:
        r = [(q - c) / s for q, c, s in zip((x, y, z), e.centre, e.semi_axes, strict=True)]
        mu[sum(q**2 for q in r) <= 1] = e.mu
    axes = KnownReconstruction("HTTomo", "/data").axes(fast, slow)
    square = indexed(mu, axes)  # (row, along, column)
    np.testing.assert_array_equal(to_tomo_axes(square, axes), mu)
    images = -np.log(scan.transmission())
    for image, seen in ((images[0], square.sum(0)), (images[1], square.sum(2).T[:, ::-1])):
        assert np.corrcoef(image.ravel(), seen.ravel())[0, 1] > 0.995


@pytest.mark.parametrize("pipeline", ["HTTomo", "Savu"])
def test_files_of_diamonds_pipelines_are_recognised(tmp_path, ellipsoid_scan, pipeline):
    rng = np.random.default_rng(1)
    array = rng.standard_normal((30, 12, 30)).astype(np.float32)
    name = (
        write_httomo(tmp_path / "4-httomolibgpu-FBP3d_tomobar.h5", array)
        if pipeline == "HTTomo"
        else write_savu(tmp_path, array)
    )
    assert find_reconstruction(name).program == pipeline
    assert is_foreign_tomogram(name)
    scan = ellipsoid_scan.write_nxtomo(tmp_path / "scan.nxs")
    made = load_foreign_tomogram(name, TomogramDescription(unit="1/voxel", projections=scan))
    np.testing.assert_allclose(made.tomogram.values, array.transpose(1, 2, 0), rtol=1e-6)
    np.testing.assert_allclose(made.tomogram.voxel_size_um, 1.0)
    assert made.projections == scan
    assert made.energy_keV == pytest.approx(3.5)
    if pipeline == "Savu":  # the file behind the link, too
        other = tmp_path / "tomo_p3_astra_recon_cpu.h5"
        assert find_reconstruction(other).dataset == "/3-AstraReconCpu-tomo/data"
        other.unlink()
        with pytest.raises(ValueError, match=r"links to tomo_p3_astra_recon_cpu\.h5, which is not"):
            find_reconstruction(name)


def test_projections_of_httomo_are_no_tomogram(tmp_path):
    name = write_httomo(tmp_path / "2-normalize.h5", np.zeros((180, 4, 30), np.float32))
    with pytest.raises(ValueError, match="holds projections of HTTomo and not slices"):
        is_foreign_tomogram(name)


def test_a_horizontal_axis_is_to_be_said(tmp_path):
    name = write_httomo(tmp_path / "recon.h5", np.zeros((30, 4, 30), np.float32))
    with pytest.raises(ValueError, match=r"say by tomogram\.axes= what the indices"):
        read_foreign_tomogram(name, TomogramDescription([0.3]), camera=((1, 0, 0), (0, 1, 0)))


def test_other_hdf5_files_and_scans_are_not_recognised(tmp_path, ellipsoid_scan):
    assert not is_foreign_tomogram(ellipsoid_scan.write_nxtomo(tmp_path / "scan.nxs"))
    tifffile.imwrite(tmp_path / "scan.tif", np.zeros((3, 4, 5), np.uint16))
    assert not is_foreign_tomogram(tmp_path / "scan.tif")
    assert is_foreign_tomogram(tmp_path / "scan.tif", TomogramDescription([1.0]))


@pytest.mark.parametrize("blank", [np.nan, 0.0])
def test_what_lies_outside_of_the_circle_is_air(blank):
    """Whole numbers whose air is not 0, blank outside of a circle."""
    rng = np.random.default_rng(2)
    values = (100 + rng.standard_normal((6, 50, 50))).astype(np.float32)
    y, z = np.mgrid[:50, :50] - 24.5
    values[:, np.hypot(y, z) < 8] += 50
    outside = np.hypot(y, z) > 0.95 * 25
    values[:, outside] = blank
    share = fill_blank(values, "recon.h5")
    assert share == pytest.approx(outside.mean())
    np.testing.assert_allclose(values[:, outside], 100, atol=0.3)
    values[3, 25, 25] = np.nan
    with pytest.raises(ValueError, match=re.escape("recon.h5 holds values within")):
        fill_blank(values, "recon.h5")
