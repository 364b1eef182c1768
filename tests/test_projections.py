"""Scans of every layout give the same upright transmissions; bad scans give one clear sentence."""

from __future__ import annotations

import itertools
import os

import h5py
import numpy as np
import pytest
import tifffile

from anacor_dials.sample.frames import ImageAxes
from anacor_dials.tomography.projections import Projections, mean_frame, read_projections
from anacor_dials.tomography.scan_files import ScanDescription, find_scan

QUANTISED = 2e-4  # counts are whole numbers


def upright(scan, images):
    """The scan's own images, turned by hand: rows along +X, columns along +Y."""
    if scan.horizontal:
        images = images.swapaxes(1, 2)
        signs = scan.fast_axis[0], scan.slow_axis[1]
    else:
        signs = scan.slow_axis[0], scan.fast_axis[1]
    return images[:, :: signs[0], :: signs[1]]


def small(scan):
    return scan.at(shape=(12, 20), angles_deg=tuple(np.arange(10) * 18.0))


# ---- what is read is what was there ---------------------------------------------------------------


def test_nxtomo_gives_the_transmissions_and_all_metadata(tmp_path, ellipsoid_scan):
    scan = small(ellipsoid_scan)
    projections = read_projections(scan.write_nxtomo(tmp_path / "scan.nxs"))
    assert projections.n_angles == 10
    np.testing.assert_allclose(projections.angles_deg, scan.angles_deg)
    assert projections.pixel_xy_um == pytest.approx((1.0, 1.0))
    assert projections.geometry.energy_keV == pytest.approx(3.5)
    np.testing.assert_allclose(projections.transmission(), scan.transmission(), atol=QUANTISED)
    assert "NXtomo" in projections.layout
    assert "10 of 12 x 20 pixels" in repr(projections)


AXES = [
    (fast, slow)
    for fast, slow in itertools.product([(0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 0)], repeat=2)
    if fast[0] == 0 or slow[0] == 0
    if fast[1] == 0 or slow[1] == 0
]


@pytest.mark.parametrize(("fast", "slow"), AXES)
def test_upright_whichever_way_the_camera_is_mounted(tmp_path, ellipsoid_scan, fast, slow):
    # the same sample, centred, seen by a camera turned or mirrored: upright it is the same image
    plain = small(ellipsoid_scan)
    shape = (20, 12) if fast[0] else (12, 20)
    scan = plain.at(fast_axis=fast, slow_axis=slow, shape=shape)
    description = ScanDescription(fast_axis=fast, slow_axis=slow)
    projections = read_projections(scan.write_nxtomo(tmp_path / "scan.nxs"), description)
    assert (projections.nx, projections.ny) == (12, 20)
    # the flat's profile is the camera's own and divides out
    np.testing.assert_allclose(projections.transmission(), plain.transmission(), atol=QUANTISED)
    np.testing.assert_allclose(
        projections.transmission(slice(2, 7), slice(3, 9)),
        plain.transmission()[2:7, 3:9],
        atol=QUANTISED,
    )


def test_single_rows_are_read(tmp_path, ellipsoid_scan):
    scan = small(ellipsoid_scan)
    projections = read_projections(scan.write_nxtomo(tmp_path / "scan.nxs"))
    rows = np.array([7, 2, 2])
    np.testing.assert_allclose(
        projections.transmission([4, 1], rows), scan.transmission()[[4, 1]][:, rows], atol=QUANTISED
    )


def test_image_axes_that_the_file_says(tmp_path, ellipsoid_scan):
    scan = small(ellipsoid_scan).at(fast_axis=(-1, 0, 0), slow_axis=(0, 1, 0), shape=(20, 12))
    said = {
        "instrument/detector/fast_axis": np.array([-1.0, 0, 0]),
        "instrument/detector/slow_axis": np.array([0, 1.0, 0]),
    }
    path = scan.write_nxtomo(tmp_path / "scan.nxs", **said)
    assert read_projections(path).geometry.axes == ImageAxes(True, -1, 1)
    by_hand = ScanDescription(fast_axis=(0, 1, 0), slow_axis=(1, 0, 0))
    assert read_projections(path, by_hand).geometry.axes == ImageAxes(False, 1, 1)


def test_raw_and_upright_indices_are_each_others_inverse():
    axes = ImageAxes.from_vectors((-1, 0, 0), (0, 1, 0))
    images = np.arange(24.0).reshape(1, 4, 6)
    view = axes.upright(images)
    assert view.shape == (1, 6, 4)
    assert view[0, 1, 2] == images[0, 2, 6 - 1 - 1]
    assert axes.upright_index(axes.upright_index(1.25, 6, "x"), 6, "x") == 1.25
    rows, columns = axes.raw_window(slice(1, 3), 6)
    np.testing.assert_array_equal(axes.upright(images[:, rows, columns]), view[:, 1:3])


@pytest.mark.parametrize(
    "bad", [((0, 0, 1), (1, 0, 0)), ((0, 1, 0), (0, -1, 0)), ((0.7, 0.7, 0), (1, 0, 0))]
)
def test_image_axes_off_the_rotation_axis_are_refused(bad):
    with pytest.raises(ValueError, match="must be \\+-X"):
        ImageAxes.from_vectors(*bad)


def test_flats_are_interpolated_in_time(tmp_path, ellipsoid_scan):
    scan = small(ellipsoid_scan).at(drift=0.2)
    projections = read_projections(scan.write_nxtomo(tmp_path / "scan.nxs"))
    assert len(projections.flat_times) == 2
    np.testing.assert_allclose(projections.transmission(), scan.transmission(), atol=QUANTISED)
    # with the first flats alone the beam's drift would remain
    first = Projections(
        projections.frames, projections.numbers, projections.angles_deg, projections.flats[:1],
        projections.flat_times[:1], projections.dark, projections.geometry,
    )  # fmt: skip
    assert np.abs(first.transmission() - scan.transmission()).max() > 0.02


def test_esrf_layout_units_and_alignment_images(tmp_path, ellipsoid_scan):
    scan = small(ellipsoid_scan)
    images, keys, angles = scan.frames()
    path = tmp_path / "esrf.nx"
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry0000")
        entry.attrs["NX_class"] = "NXentry"
        entry["definition"] = "NXtomo"
        # two alignment images at the end, which image_key calls projections
        entry["instrument/detector/data"] = np.concatenate([images, images[12:14]])
        entry["instrument/detector/image_key"] = np.append(keys, [0, 0])
        entry["instrument/detector/image_key_control"] = np.append(keys, [-1, -1])
        entry["sample/rotation_angle"] = np.deg2rad(np.append(angles, [0.0, 90.0]))
        entry["sample/rotation_angle"].attrs["units"] = "rad"
        for name in ("x_pixel_size", "y_pixel_size"):
            entry[f"instrument/detector/{name}"] = 1e-3
            entry[f"instrument/detector/{name}"].attrs["units"] = "mm"
        entry["instrument/detector/distance"] = 0.02
        entry["instrument/beam/incident_energy"] = 3500.0
        entry["instrument/beam/incident_energy"].attrs["units"] = "eV"
    projections = read_projections(path)
    np.testing.assert_allclose(projections.angles_deg, scan.angles_deg)
    np.testing.assert_allclose(projections.transmission(), scan.transmission(), atol=QUANTISED)
    assert projections.pixel_xy_um == pytest.approx((1.0, 1.0))
    assert projections.geometry.energy_keV == pytest.approx(3.5)
    assert projections.geometry.distance_mm == pytest.approx(20.0)


def test_radians_without_units_are_noticed(tmp_path, ellipsoid_scan):
    scan = small(ellipsoid_scan)
    images, keys, _ = scan.frames()
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["exchange/data"] = images[keys == 0]
        file["exchange/data_white"] = images[:6]
        file["exchange/data_dark"] = images[keys == 2]
        file["exchange/theta"] = np.deg2rad(scan.angles_deg)
    projections = read_projections(path)
    np.testing.assert_allclose(projections.angles_deg, scan.angles_deg)
    np.testing.assert_allclose(projections.transmission(), scan.transmission(), atol=QUANTISED)


def test_gda_file_follows_only_the_links_it_needs(tmp_path, ellipsoid_scan):
    scan = small(ellipsoid_scan)
    images, keys, angles = scan.frames()
    (tmp_path / "parts").mkdir()
    with h5py.File(tmp_path / "parts/camera.h5", "w") as file:
        file["entry/detector/detector"] = images
        file["entry/theta"] = angles
    path = tmp_path / "gda.nxs"
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        for name in ("EtherCAT", "imaging"):
            entry.create_group(name).attrs["NX_class"] = "NXdata"
            entry[f"instrument/{name}/image_key"] = keys
        entry["EtherCAT/data"] = h5py.ExternalLink("parts/absent.h5", "/entry/data")
        entry["imaging/data"] = h5py.ExternalLink("parts/camera.h5", "/entry/detector/detector")
        entry["imaging/gts_theta_value"] = h5py.ExternalLink("parts/camera.h5", "/entry/theta")
        entry["imaging/gts_theta_value_set"] = h5py.ExternalLink("parts/absent.h5", "/entry/set")
    projections = read_projections(path)
    np.testing.assert_allclose(projections.transmission(), scan.transmission(), atol=QUANTISED)
    os.remove(tmp_path / "parts/camera.h5")
    with pytest.raises(ValueError, match=r"a link to parts/\w+\.h5.*missing"):
        read_projections(path)


@pytest.mark.parametrize("multipage", [False, True])
def test_tiff_stack_with_flats_before_and_after(tmp_path, ellipsoid_scan, multipage):
    scan = small(ellipsoid_scan).at(drift=0.2)
    images, keys, _ = scan.frames(flats=1, darks=0)
    flats = np.flatnonzero(keys == 1)
    if multipage:
        target = tmp_path / "scan.tif"
        tifffile.imwrite(target, images[keys == 0], photometric="minisblack")
    else:
        target = tmp_path / "scan"
        target.mkdir()
        for k, image in enumerate(images[keys == 0]):
            tifffile.imwrite(target / f"p_{k:04d}.tif", image)
    tifffile.imwrite(tmp_path / "before.tif", images[flats[:1]], photometric="minisblack")
    tifffile.imwrite(tmp_path / "after.tif", images[flats[1:]], photometric="minisblack")
    tifffile.imwrite(tmp_path / "dark.tif", np.full((12, 20), 100, np.uint16))
    np.savetxt(tmp_path / "angles.txt", scan.angles_deg)
    description = ScanDescription(
        angles=str(tmp_path / "angles.txt"),
        flats=(str(tmp_path / "before.tif"), str(tmp_path / "after.tif")),
        darks=(str(tmp_path / "dark.tif"),),
        pixel_size_um=(0.5, 0.7),
    )
    projections = read_projections(target, description)
    # time is taken to run from the first to the last projection, one frame too short at either end
    np.testing.assert_allclose(projections.transmission(), scan.transmission(), atol=0.02)
    assert projections.pixel_xy_um == (0.7, 0.5)
    steps = ScanDescription(
        first_angle_deg=5.0, angle_step_deg=18.0, flats=description.flats, pixel_size_um=(1.0,)
    )
    np.testing.assert_allclose(read_projections(target, steps).angles_deg, 5 + 18.0 * np.arange(10))


def numbered_tiffs(folder, images, numbers):
    folder.mkdir()
    for number, image in zip(numbers, images, strict=True):
        tifffile.imwrite(folder / f"p_{number:04d}.tif", image)
    return folder


@pytest.mark.parametrize("stride", [1, 5])
def test_missing_files_of_a_tiff_series_are_named_and_the_others_keep_their_angles(
    tmp_path, ellipsoid_scan, caplog, stride
):
    images = np.full((20, 4, 5), 100, np.uint16)
    keep = np.setdiff1d(np.arange(20), [7, 8])
    folder = numbered_tiffs(tmp_path / "scan", images[keep], 3 + stride * keep)
    tifffile.imwrite(tmp_path / "flat.tif", images[0])
    flats = (str(tmp_path / "flat.tif"),)
    steps = ScanDescription(first_angle_deg=1.0, angle_step_deg=9.0, flats=flats)
    np.testing.assert_allclose(find_scan(folder, steps).angles_deg, 1 + 9.0 * keep)
    assert "2 of 20 files are missing in the numbered series (file 8, 9," in caplog.text
    np.savetxt(tmp_path / "all.txt", 9.0 * np.arange(20) + 1)
    np.savetxt(tmp_path / "these.txt", 9.0 * keep + 1)
    for name in ("all.txt", "these.txt"):
        description = ScanDescription(angles=str(tmp_path / name), flats=flats)
        np.testing.assert_allclose(find_scan(folder, description).angles_deg, 1 + 9.0 * keep)
    for number in (3, 12):
        (folder / f"p_{3 + stride * number:04d}.tif").unlink()
    with pytest.raises(ValueError, match=r"4 of 20 files are missing .* \(file 4, 8, 9, 13,"):
        find_scan(folder, steps)


def test_invalid_frames_keep_their_places_in_evenly_spaced_angles(tmp_path, ellipsoid_scan):
    scan = small(ellipsoid_scan)
    _, keys, _ = scan.frames()
    keys[[14, 15]] = 3
    changes = {"instrument/detector/image_key": keys, "data/rotation_angle": None}
    path = scan.write_nxtomo(tmp_path / "scan.nxs", **changes)
    found = find_scan(path, ScanDescription(first_angle_deg=0.0, angle_step_deg=18.0))
    np.testing.assert_allclose(found.angles_deg, np.delete(scan.angles_deg, [4, 5]))


def test_data_exchange_with_one_flat_one_dark_and_millidegrees(tmp_path, ellipsoid_scan):
    scan = small(ellipsoid_scan)
    images, keys, _ = scan.frames()
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["exchange/data"] = images[keys == 0]
        file["exchange/data_white"] = images[0]
        file["exchange/data_dark"] = images[np.flatnonzero(keys == 2)[0]]
        file["exchange/theta"] = 1000 * np.array(scan.angles_deg)
        file["exchange/theta"].attrs["units"] = "mdeg"
    projections = read_projections(path)
    np.testing.assert_allclose(projections.angles_deg, scan.angles_deg)
    np.testing.assert_allclose(projections.transmission(), scan.transmission(), atol=QUANTISED)


@pytest.mark.parametrize("name", ["Blosc", "Zstd", "LZ4", "BZip2", "Bitshuffle"])
def test_compressed_scans_are_read(tmp_path, ellipsoid_scan, name):
    hdf5plugin = pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")
    scan = small(ellipsoid_scan)
    images, _, _ = scan.frames()
    path = scan.write_nxtomo(tmp_path / "scan.nxs", **{"instrument/detector/data": None})
    with h5py.File(path, "a") as file:
        file["entry1/tomo_entry/instrument/detector"].create_dataset(
            "data", data=images, chunks=(1, *images.shape[1:]), **getattr(hdf5plugin, name)()
        )
        file["entry1/tomo_entry/data/data"] = h5py.SoftLink(
            "/entry1/tomo_entry/instrument/detector/data"
        )
    projections = read_projections(path)
    np.testing.assert_allclose(projections.transmission(), scan.transmission(), atol=QUANTISED)


def test_a_filter_that_is_not_installed_is_named(tmp_path, ellipsoid_scan, monkeypatch):
    hdf5plugin = pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("exchange/data", data=np.ones((8, 4, 4)), **hdf5plugin.Zstd())
        file["exchange/theta"] = np.arange(8.0)
        file["exchange/data_white"] = np.ones((4, 4))
    monkeypatch.setattr("h5py.h5z.filter_avail", lambda number: number != 32015)
    with pytest.raises(ValueError, match=r"compressed by zstd \(HDF5 filter 32015\).*hdf5plugin"):
        read_projections(path)


def test_flats_in_another_hdf5_file(tmp_path, ellipsoid_scan):
    scan = small(ellipsoid_scan)
    images, keys, angles = scan.frames()
    path = scan.write_nxtomo(
        tmp_path / "scan.nxs",
        **{
            "instrument/detector/data": images[keys == 0],
            "instrument/detector/image_key": np.zeros(10, int),
            "data/rotation_angle": angles[keys == 0],
        },
    )
    whole = scan.write_nxtomo(tmp_path / "whole.nxs")
    with h5py.File(tmp_path / "dark.h5", "w") as file:
        file["some/where"] = images[keys == 2]
    description = ScanDescription(
        flats=(str(whole),), darks=(f"{tmp_path / 'dark.h5'}:/some/where",)
    )
    projections = read_projections(path, description)
    np.testing.assert_allclose(projections.transmission(), scan.transmission(), atol=QUANTISED)


def test_flat_corrected_images_are_taken_as_they_are(tmp_path, ellipsoid_scan):
    scan = small(ellipsoid_scan)
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["exchange/data"] = scan.transmission().astype(np.float32)
        file["exchange/theta"] = np.array(scan.angles_deg)
    projections = read_projections(tmp_path / "t.h5", ScanDescription(flat_corrected=True))
    np.testing.assert_allclose(projections.transmission(), scan.transmission(), atol=1e-6)


@pytest.mark.parametrize(("n", "kept"), [(19, 18), (37, 36), (18, 18)])
def test_the_frame_that_repeats_the_first_is_dropped(tmp_path, ellipsoid_scan, n, kept):
    scan = small(ellipsoid_scan).at(angles_deg=tuple(np.arange(n) * 10.0))
    projections = read_projections(scan.write_nxtomo(tmp_path / "scan.nxs"))
    assert projections.n_angles == kept
    assert projections.angles_deg[0] == 0


class FramesInMemory:
    """Images (n, rows, columns) of an array, as the frames of a file."""

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def read(self, numbers, rows=slice(None), columns=slice(None)):
        return self.values[numbers, rows, columns]


def test_direct_hits_in_a_flat_are_left_out():
    images = np.full((6, 3, 4), 1000, dtype=np.uint16)
    images[2, 1, 1] = 60000
    np.testing.assert_array_equal(
        mean_frame(FramesInMemory(images), np.arange(6)), np.full((3, 4), 1000)
    )


def test_saturated_and_invalid_pixels_are_not_numbers(tmp_path, ellipsoid_scan):
    scan = small(ellipsoid_scan)
    images, keys, _ = scan.frames()
    images[15, 3, 4] = 65535  # a projection
    images[keys == 1, 5, 6] = 0  # dead in the flats
    path = scan.write_nxtomo(tmp_path / "scan.nxs", **{"instrument/detector/data": images})
    transmission = read_projections(path).transmission()
    number = 15 - 10
    assert np.isnan(transmission[number, 3, 4])
    assert np.all(np.isnan(transmission[:, 5, 6]))
    assert np.isnan(transmission).sum() == 1 + 10


# ---- real files -----------------------------------------------------------------------------------


def test_tooth_reads(shared_data):
    projections = read_projections(shared_data / "tooth/tooth.h5")
    assert projections.layout == "Data Exchange"
    assert (projections.n_angles, projections.nx, projections.ny) == (181, 2, 640)
    assert projections.geometry.pixel_size_um is None
    with pytest.raises(ValueError, match="pixel_size="):
        _ = projections.pixel_xy_um


def test_k11_diad_reads_with_external_links_and_flats_before_and_after(shared_data):
    projections = read_projections(shared_data / "k11_diad/k11-18014.nxs")
    assert (projections.nx, projections.ny) == (22, 26)
    np.testing.assert_allclose(projections.flat_times, [24.5, 3125.5])
    assert projections.n_angles == 3000  # the last of 3001 repeats the first
    assert projections.angles_deg[0] == pytest.approx(90.0, abs=0.1)
    transmission = projections.transmission(slice(0, 3000, 100))
    assert 0.5 < np.nanmean(transmission) < 1.1


# ---- bad input ------------------------------------------------------------------------------------


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"There is no file .*nothing\.nxs"):
        read_projections(tmp_path / "nothing.nxs")
    (tmp_path / "text.nxs").write_text("no scan")
    with pytest.raises(ValueError, match="not an HDF5 file"):
        read_projections(tmp_path / "text.nxs")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["something"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"none of the known layouts.*projections\.data="):
        read_projections(tmp_path / "other.h5")
    with pytest.raises(ValueError, match="no TIFF files"):
        read_projections(tmp_path / "*.tif", ScanDescription(first_angle_deg=0, angle_step_deg=1))


def test_a_truncated_file_is_refused(tmp_path, ellipsoid_scan):
    path = small(ellipsoid_scan).write_nxtomo(tmp_path / "scan.nxs")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="truncated"):
        read_projections(path)


KEYS = "instrument/detector/image_key"
DATA = "instrument/detector/data"
ANGLES = "data/rotation_angle"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({DATA: np.zeros((0, 12, 20), np.uint16)}, "is empty"),
        ({DATA: None}, "no images"),
        ({DATA: np.zeros((26, 240), np.uint16)}, r"shape \(26, 240\)"),
        ({KEYS: np.zeros(20, int)}, "26 images and 20 image keys"),
        ({KEYS: np.full(26, 3)}, "no projections"),
        ({KEYS: np.where(np.arange(26) < 6, 3, np.where(np.arange(26) < 20, 0, 3))}, "no flats"),
        ({ANGLES: np.arange(7.0)}, "10 projections and 7 rotation angles"),
        ({ANGLES: None}, "no rotation angles"),
        ({ANGLES: np.full(26, 3.0)}, "over 0 degrees"),
        ({ANGLES: np.append(np.arange(25.0), np.nan)[::-1]}, None),
        ({"instrument/beam/incident_energy": 3500.0}, "3500 keV"),
        ({"instrument/beam/incident_energy": -2.0}, "-2 keV"),
        ({"instrument/detector/x_pixel_size": -1e-6}, "pixel size is -1"),
    ],
)  # fmt: skip
def test_bad_scans_give_one_clear_sentence(tmp_path, ellipsoid_scan, changes, message):
    path = small(ellipsoid_scan).write_nxtomo(tmp_path / "scan.nxs", **changes)
    if message is None:  # a flat's angle that is not a number harms nobody
        read_projections(path)
        return
    with pytest.raises(ValueError, match=message) as caught:
        read_projections(path)
    assert "\n" not in str(caught.value)


def test_angles_that_are_not_numbers_are_refused(tmp_path, ellipsoid_scan):
    scan = small(ellipsoid_scan)
    _, _, angles = scan.frames()
    angles[12] = np.nan
    path = scan.write_nxtomo(tmp_path / "scan.nxs", **{ANGLES: angles})
    with pytest.raises(ValueError, match="1 rotation angles are not numbers"):
        read_projections(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("nothing", None),
        ("zero flats", "not brighter than the dark"),
        ("saturated", "are saturated"),
        ("shutter", "not brighter than the dark"),
        ("nan", "not numbers"),
    ],
)
def test_images_that_cannot_be_used_are_refused(tmp_path, ellipsoid_scan, spoil, message):
    scan = small(ellipsoid_scan)
    images, keys, _ = scan.frames()
    if spoil == "zero flats":
        images[keys == 1] = 0
    elif spoil == "saturated":
        images[15, :4] = 65535
    elif spoil == "shutter":
        images[keys == 0] = 50
    elif spoil == "nan":
        images = images.astype(np.float32)
        images[10, :5] = np.nan
    path = scan.write_nxtomo(tmp_path / "scan.nxs", **{DATA: images})
    if message is None:
        read_projections(path)
        return
    with pytest.raises(ValueError, match=message):
        read_projections(path)


def test_dangling_links_and_odd_flats_are_refused(tmp_path, ellipsoid_scan):
    scan = small(ellipsoid_scan)
    path = scan.write_nxtomo(tmp_path / "scan.nxs", **{DATA: None})
    with h5py.File(path, "a") as file:
        file[f"entry1/tomo_entry/{DATA}"] = h5py.ExternalLink("gone.h5", "/data")
    with pytest.raises(ValueError, match=r"a link to gone\.h5:/data, which is missing"):
        read_projections(path)
    path = scan.write_nxtomo(tmp_path / "scan2.nxs")
    tifffile.imwrite(tmp_path / "flat.tif", np.ones((2, 5, 6), np.uint16), photometric="minisblack")
    with pytest.raises(ValueError, match="flats have 5 x 6 pixels and the projections 12 x 20"):
        read_projections(path, ScanDescription(flats=(str(tmp_path / "flat.tif"),)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_angle_deg": 0.0}, "together"),
        ({"first_angle_deg": 0.0, "angle_step_deg": 0.0}, "step is zero"),
        ({"angles": "a.txt", "first_angle_deg": 0.0, "angle_step_deg": 1.0}, "not both"),
        ({"angle_units": "furlong"}, "furlong"),
    ],
)
def test_contradictory_descriptions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ScanDescription(**changes)


def test_nothing_is_read_before_it_is_asked_for(tmp_path, ellipsoid_scan, monkeypatch):
    path = small(ellipsoid_scan).write_nxtomo(tmp_path / "scan.nxs")
    scan = find_scan(path)
    assert scan.frames.shape == (26, 12, 20)
    taken = []
    read = type(scan.frames).read

    def counting(self, numbers, *window):
        images = read(self, numbers, *window)
        taken.append(images.shape)
        return images

    monkeypatch.setattr(type(scan.frames), "read", counting)
    projections = read_projections(path)
    assert max(shape[0] for shape in taken) == 1  # flats and darks are averaged one by one
    taken.clear()
    projections.transmission(slice(0, 4), slice(2, 5))
    assert taken == [(4, 3, 20)]
