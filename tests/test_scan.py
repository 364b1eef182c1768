"""Virtual scans: metadata, orientation, convergence, truth, and the way back through reconstruction."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="virtual scans need torch")

from anacor_dials.sample.materials import Composition  # noqa: E402
from anacor_dials.sample.tomogram_files import read_sample_file  # noqa: E402
from anacor_dials.sample.volumes import LabelVolume  # noqa: E402
from anacor_dials.segmentation.training_data import labels_on_grid  # noqa: E402
from anacor_dials.simulation.detector import DetectorModel  # noqa: E402
from anacor_dials.simulation.meshes import box, sphere  # noqa: E402
from anacor_dials.simulation.samples import Sample, cut_box_sample, sample_from_meshes  # noqa: E402
from anacor_dials.simulation.scan import (  # noqa: E402
    ScanOptions,
    ScanSettings,
    VirtualScan,
    true_labels,
    write_scan,
)

ORIENTATIONS = [((0, 1, 0), (1, 0, 0)), ((-1, 0, 0), (0, 1, 0)), ((1, 0, 0), (0, 1, 0))]


@pytest.fixture
def small_sample() -> Sample:
    """A crystal of 12 um off the middle of a drop of 40 um."""
    return sample_from_meshes(
        {
            "liquor": sphere(20.0, 3).moved(shift_um=(2, 1, -2)),
            "crystal": box((12, 10, 14)).moved(shift_um=(5, -3, 4)),
        }
    )


def settings(**changes) -> ScanSettings:
    choices = {
        "energy_keV": 4.0,
        "image_shape": (48, 56),
        "pixel_size_um": 1.0,
        "n_projections": 6,
        "distance_mm": 1.0,
        "n_flats": 2,
        "n_darks": 2,
        **changes,
    }
    return ScanSettings(**choices)


def test_nxtomo_says_everything(tmp_path, small_sample) -> None:
    scan = settings(distance_mm=2.0, first_angle=-10.0)
    rng = np.random.default_rng(77)
    write_scan(
        tmp_path / "s.nxs",
        tmp_path / "t.h5",
        small_sample,
        scan,
        rng,
        ScanOptions(parameters="a = 1"),
    )
    with h5py.File(tmp_path / "s.nxs") as file:
        entry = file["entry1/tomo_entry"]
        assert entry["definition"][()] == b"NXtomo"
        assert entry.attrs["NX_class"] == "NXsubentry"
        keys = entry["instrument/detector/image_key"][()]
        np.testing.assert_array_equal(keys, [2, 2, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
        angles = entry["data/rotation_angle"]
        assert angles.attrs["units"] == "deg"
        np.testing.assert_allclose(angles[4:10], -10 + 30 * np.arange(6))
        images = entry["data/data"]
        assert images.shape == (14, 48, 56)
        assert images.dtype == np.uint16
        assert images[:2].mean() < 150 < 10000 < images[2:4].mean()
        detector = entry["instrument/detector"]
        assert detector["x_pixel_size"][()] == pytest.approx(1e-6)
        assert detector["x_pixel_size"].attrs["units"] == "m"
        assert detector["distance"][()] == pytest.approx(2e-3)
        assert entry["instrument/beam/incident_energy"][()] == 4.0
        record = json.loads(entry["process/simulation"][()])
    assert record["seed"] == "77"
    assert record["settings"]["n_projections"] == 6


def test_truth_is_a_sample_file(tmp_path, small_sample) -> None:
    scan = settings()
    write_scan(tmp_path / "s.nxs", tmp_path / "t.h5", small_sample, scan, np.random.default_rng(1))
    truth = read_sample_file(tmp_path / "t.h5")
    assert truth.labels is not None
    assert truth.labels.shape == (48, 56, 56)
    assert truth.projections == (tmp_path / "s.nxs").resolve()
    assert truth.energy_keV == 4.0
    np.testing.assert_allclose(truth.mu_per_um, small_sample.mu_per_um(4.0))
    assert truth.labels.names == small_sample.names


def test_the_same_seed_makes_the_same_scan(tmp_path, small_sample) -> None:
    images = []
    for name in "ab":
        files = (tmp_path / f"{name}.nxs", tmp_path / f"{name}.h5")
        write_scan(*files, small_sample, settings(), np.random.default_rng(5))
        with h5py.File(files[0]) as file:
            images.append(file["entry1/tomo_entry/data/data"][()])
    np.testing.assert_array_equal(*images)


def test_shadow_is_where_the_sample_is(small_sample, perfect_detector) -> None:
    """A point (x, y, z) appears at (x, y cos(angle) - z sin(angle))."""
    metal = Sample(
        small_sample.parts, {**small_sample.materials, "liquor": Composition.parse("H2O", 1e-6)}
    )
    scan = VirtualScan(metal, settings(detector=perfect_detector()), np.ones((1, 48, 56)))
    place = np.array([5.0, -3.0, 4.0])
    for angle in (0.0, 60.0, 200.0):
        shadow = 1 - scan.transmission(angle)
        i, j = np.indices(shadow.shape)
        weight = np.clip(shadow, 0.02, None) - 0.02
        seen = np.array([(i * weight).sum(), (j * weight).sum()]) / weight.sum() - (23.5, 27.5)
        a = np.deg2rad(angle)
        expected = (place[0], place[1] * np.cos(a) - place[2] * np.sin(a))
        np.testing.assert_allclose(seen, expected, atol=0.15)


@pytest.mark.parametrize(("fast", "slow"), ORIENTATIONS)
def test_rows_and_columns_lie_as_asked(small_sample, fast, slow) -> None:
    turned = settings(fast_axis=fast, slow_axis=slow)
    upright = np.arange(np.prod(turned.upright_shape)).reshape(turned.upright_shape)
    raw = turned.raw(upright)
    assert raw.shape == (48, 56)
    np.testing.assert_array_equal(turned.axes.upright(raw), upright)
    assert (turned.axes.fast_axis, turned.axes.slow_axis) == (fast, slow)
    # one column further is one step along fast
    step = np.array(np.argwhere(upright == raw[3, 8])[0]) - np.argwhere(upright == raw[3, 7])[0]
    np.testing.assert_array_equal(step, np.array(fast[:2]))


def test_no_sample_in_the_beam_leaves_the_flat(small_sample) -> None:
    """mu and delta -> 0 through all of the machinery."""
    ghost = {name: Composition.parse("H2O", 1e-9) for name in ("liquor", "loop", "crystal")}
    scan = VirtualScan(
        Sample(small_sample.parts, ghost),
        settings(),
        1 + 0.1 * np.random.default_rng(1).random((1, 48, 56)),
    )
    np.testing.assert_allclose(scan.transmission(30.0), 1.0, atol=1e-5)


def test_thick_even_places_absorb_as_they_should(small_sample, perfect_detector) -> None:
    """Without free propagation the image is exp(-mu T); here at the middle of a slab."""
    slab = sample_from_meshes({"crystal": box((30, 30, 16))})
    scan = VirtualScan(
        slab, settings(distance_mm=0.0, detector=perfect_detector()), np.ones((1, 48, 56))
    )
    expected = np.exp(-slab.mu_per_um(4.0)[3] * 16.0)
    assert scan.transmission(0.0)[24, 28] == pytest.approx(expected, rel=1e-5)
    assert scan.transmission(180.0)[24, 28] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("pixel_um", "distance_mm"), [(1.5, 15.0), (1.0, 1.5)])
def test_the_wave_has_points_enough_at_rims(pixel_um: float, distance_mm: float) -> None:
    """By twice as many points -ln T changes by less than 0.005 (rms), far less than by noise; with
    two points per pixel it is wrong by ten times as much.
    """
    ball = sample_from_meshes({"crystal": sphere(30.0, 5)})
    scan = settings(pixel_size_um=pixel_um, distance_mm=distance_mm, image_shape=(64, 64),
                    detector=DetectorModel(psf_um=0.6))  # fmt: skip
    flat = np.ones((1, 64, 64))

    def image(points: int | None) -> np.ndarray:
        return -np.log(VirtualScan(ball, replace(scan, oversampling=points), flat).transmission(0))

    chosen = scan.grid.oversampling
    wrong = float(np.std(image(None) - image(2 * chosen)))
    assert wrong < 0.005
    assert float(np.std(image(2) - image(2 * chosen))) > 0.02


def test_a_wave_with_too_few_points_is_told_of(small_sample, caplog) -> None:
    scan = settings(pixel_size_um=1.5, distance_mm=15.0, oversampling=2)
    VirtualScan(small_sample, scan, np.ones((1, 48, 56)))
    assert "scan.oversampling=" in caplog.text
    caplog.clear()
    VirtualScan(small_sample, replace(scan, oversampling=None), np.ones((1, 48, 56)))
    assert not caplog.text


def test_twice_the_oversampling_changes_little(small_sample) -> None:
    flat = np.ones((1, 96, 96))
    images = []
    for oversampling in (2, 4):
        scan = settings(image_shape=(96, 96), pixel_size_um=0.6, oversampling=oversampling,
                        distance_mm=5.0, detector=DetectorModel(psf_um=1.0))  # fmt: skip
        images.append(VirtualScan(small_sample, scan, flat).transmission(25.0))
    assert np.sqrt(np.mean((images[0] - images[1]) ** 2)) < 0.01


def test_slices_change_little_and_keep_the_thickness(small_sample) -> None:
    scans = [
        VirtualScan(small_sample, settings(n_slices=n, distance_mm=5.0), np.ones((1, 48, 56)))
        for n in (1, 4)
    ]
    one, four = (scan.thicknesses(40.0) for scan in scans)
    np.testing.assert_allclose(four.sum(axis=1), one[:, 0], atol=1e-9)
    a, b = (scan.transmission(40.0) for scan in scans)
    assert 0 < np.sqrt(np.mean((a - b) ** 2)) < 0.01


def test_flats_differ_between_projection_and_correction(
    tmp_path, small_sample, perfect_detector
) -> None:
    """A beam that moves leaves a pattern that the flats do not take away."""

    def spread(shift: float) -> float:
        detector = perfect_detector(15000.0, gain=1.0, flat_shift_px=shift)
        write_scan(tmp_path / "s.nxs", tmp_path / "t.h5", small_sample,
                   settings(n_flats=20, detector=detector), np.random.default_rng(2))  # fmt: skip
        with h5py.File(tmp_path / "s.nxs") as file:
            data = file["entry1/tomo_entry/data/data"][()].astype(float) - 100
        keys = np.repeat([2, 1, 0, 1, 2], [2, 20, 6, 20, 2])
        ratio = data[keys == 0][3] / data[keys == 1][:20].mean(axis=0)
        return float(ratio[:3].std())

    assert spread(3.0) > 1.5 * spread(0.0)


def test_real_flats_make_the_beam(tmp_path, small_sample, perfect_detector) -> None:
    """Turned with the images, never the same for a projection and for its correction."""
    pattern = 1 + 0.3 * np.linspace(-1, 1, 48)[:, None] * np.ones((1, 56))
    flats = np.stack([pattern + 0.001 * k for k in range(6)])
    scan = settings(fast_axis=(-1, 0, 0), slow_axis=(0, 1, 0), detector=perfect_detector())
    write_scan(
        tmp_path / "s.nxs", tmp_path / "t.h5", small_sample, scan, np.random.default_rng(1), ScanOptions(real_flats=flats)
    )  # fmt: skip
    with h5py.File(tmp_path / "s.nxs") as file:
        flat = file["entry1/tomo_entry/data/data"][2:4].mean(axis=0) - 100
    np.testing.assert_allclose(flat.mean(axis=1) / flat.mean(), pattern[:, 0], atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("fast", "slow"), ORIENTATIONS[:2])
def test_reconstruction_puts_the_sample_where_the_truth_says(tmp_path, fast, slow) -> None:
    reconstruction = pytest.importorskip("anacor_dials.tomography.reconstruction")
    scan_files = pytest.importorskip("anacor_dials.tomography.scan_files")
    from scipy.ndimage import binary_erosion

    sample = cut_box_sample()
    vertical = fast[0] == 0
    scan = settings(
        image_shape=(288, 192) if vertical else (192, 288),
        pixel_size_um=1.5,
        n_projections=240,
        distance_mm=2.0,
        n_flats=10,
        n_darks=5,
        fast_axis=fast,
        slow_axis=slow,
        axis_shift_px=3.3,
    )
    write_scan(tmp_path / "s.nxs", tmp_path / "t.h5", sample, scan, np.random.default_rng(1))
    tomogram, _ = reconstruction.reconstruct_scan(
        tmp_path / "s.nxs",
        scan_files.ScanDescription(),  # the file says how its images lie
    )
    true = read_sample_file(tmp_path / "t.h5").labels
    assert true is not None
    truth = LabelVolume(
        labels_on_grid(true, tomogram), tomogram.voxel_size_um, tomogram.centre, true.names
    )
    mu = sample.mu_per_um(4.0)
    drop = tomogram.values > 0.5 * mu[1]
    offset = np.array(np.nonzero(drop)).mean(axis=1) - np.array(np.nonzero(truth.values)).mean(
        axis=1
    )
    assert np.abs(offset).max() <= 1.0
    for name, tolerance in (("crystal", 0.03), ("liquor", 0.03)):
        label = truth.label(name)
        inside = binary_erosion(truth.values == label, iterations=2)
        assert tomogram.values[inside].mean() == pytest.approx(mu[label], rel=tolerance)


# ---- bad input -------------------------------------------------------------------------------------


def test_sample_larger_than_the_view(small_sample) -> None:
    with pytest.raises(ValueError, match="larger than the field of view: it reaches 2. um"):
        VirtualScan(small_sample, settings(image_shape=(48, 30)), np.ones((1, 48, 30)))
    with pytest.raises(ValueError, match="The liquor reaches from"):
        VirtualScan(small_sample, settings(image_shape=(30, 56)), np.ones((1, 30, 56)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy_keV": 0.0}, "photon energy is 0.0 keV"),
        ({"energy_keV": float("nan")}, "photon energy is nan keV"),
        ({"distance_mm": -1.0}, "distance from sample to detector is -1.0 mm"),
        ({"n_projections": 0}, "0 projections"),
        ({"angle_range": 0.0}, "over 0.0 degrees is none"),
        ({"pixel_size_um": 0.0}, "pixel size is 0.0 um"),
        ({"image_shape": (4, 4)}, "too small"),
        ({"oversampling": 0}, "0 points"),
        ({"n_slices": 0}, "n_slices"),
        ({"precision": "half"}, "precision is 'half'"),
        ({"fast_axis": (0, 0, 1)}, "must be"),
    ],
)
def test_impossible_settings(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**change)


def test_flats_of_another_shape_write_nothing(tmp_path, small_sample) -> None:
    with pytest.raises(ValueError, match="The flat has 20 x 20 pixels and the images 48 x 56"):
        write_scan(tmp_path / "s.nxs", tmp_path / "t.h5", small_sample, settings(),
                   np.random.default_rng(1), ScanOptions(real_flats=np.ones((4, 20, 20))))  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_scan_leaves_nothing(tmp_path, small_sample) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scan(tmp_path / "s.nxs", tmp_path / "t.h5", small_sample, settings(),
                   np.random.default_rng(1), ScanOptions(progress=stop))  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_true_labels_have_a_voxel_per_pixel(small_sample) -> None:
    labels = true_labels(small_sample, settings(fast_axis=(1, 0, 0), slow_axis=(0, 1, 0)))
    assert labels.shape == (56, 48, 48)
    np.testing.assert_array_equal(labels.voxel_size_um, 1.0)
