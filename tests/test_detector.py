"""The virtual detector: sums, blur, noise with the right mean and variance, flats; bad input."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the virtual detector needs torch")

from anacor_dials.simulation.detector import (  # noqa: E402
    DetectorModel,
    Sensor,
    binned,
    binning_kernel,
    flats_for_scan,
    read_flats,
    synthetic_flats,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_binning_is_the_mean_over_the_pixel() -> None:
    fine = torch.arange(24 * 20, dtype=torch.float64).reshape(24, 20)
    seen = binned(fine, (4, 3), (6, 7), 3, 0.0)
    expected = fine[6:18, 7:16].reshape(4, 3, 3, 3).mean(dim=(1, 3))
    np.testing.assert_allclose(seen.numpy(), expected.numpy(), rtol=1e-12)


def test_blur_has_its_width_and_keeps_the_sum() -> None:
    kernel = binning_kernel(3.0, 12, 1)
    x = np.arange(-12, 13)
    assert kernel.sum() == pytest.approx(1.0)
    assert np.sqrt(kernel @ x**2) == pytest.approx(3.0, rel=2e-3)
    point = torch.zeros((60, 60), dtype=torch.float64)
    point[30, 30] = 1.0
    assert float(binned(point, (36, 36), (12, 12), 1, 3.0).sum()) == pytest.approx(1.0)


def test_counts_have_poisson_mean_and_variance(rng, generator, perfect_detector) -> None:
    model = perfect_detector(500.0, gain=2.0, dark_level=50.0, read_noise=7.0)
    sensor = Sensor.drawn(model, (300, 300), rng)
    counts = sensor.counts(torch.full((300, 300), 0.8), generator) - sensor.dark
    assert counts.mean() == pytest.approx(2 * 400, rel=2e-3)
    # gain^2 photons + read noise^2 + rounding
    assert counts.var() == pytest.approx(4 * 400 + 49 + 1 / 12, rel=2e-2)


def test_darks_are_dark(rng, generator) -> None:
    sensor = Sensor.drawn(DetectorModel(zinger_rate=0.0), (200, 200), rng)
    assert sensor.counts(None, generator).mean() == pytest.approx(100.0, rel=2e-3)


def test_pixels_respond_differently_but_alike_in_flats_and_projections(rng) -> None:
    sensor = Sensor.drawn(DetectorModel(ring_fraction=0.1), (200, 200), rng)
    changed = sensor.changed_response != sensor.response
    assert changed.mean() == pytest.approx(0.1, abs=0.01)
    assert sensor.response.std() == pytest.approx(0.02, rel=0.05)


def test_zingers_are_few_and_bright(rng, generator, perfect_detector) -> None:
    model = perfect_detector(100.0, gain=1.0, zinger_rate=1e-3)
    sensor = Sensor.drawn(model, (400, 400), rng)
    dark = sensor.counts(None, generator)
    assert 100 < np.sum(dark > 125) < 230


def test_nothing_exceeds_the_type(rng, generator, perfect_detector) -> None:
    model = perfect_detector(1000.0, gain=3.0, bits=12)
    counts = Sensor.drawn(model, (50, 50), rng).counts(torch.full((50, 50), 9.0), generator)
    assert counts.dtype == np.uint16
    assert counts.max() == 4095


def test_synthetic_flats_move_and_have_mean_one(rng) -> None:
    flats = synthetic_flats((64, 48), 5, rng, 1.0)
    assert flats.shape == (5, 64, 48)
    np.testing.assert_allclose(flats.mean(axis=(1, 2)), 1.0)
    steps = [np.abs(flats[k] - flats[0]).mean() for k in range(5)]
    assert steps == sorted(steps)
    assert flats.min() > 0


def test_flats_of_an_nxtomo_file(tmp_path, rng) -> None:
    pattern = 1 + 0.2 * np.sin(np.arange(40) / 5.0)
    with h5py.File(tmp_path / "scan.nxs", "w") as file:
        group = file.create_group("entry1/tomo_entry/instrument/detector")
        keys = np.array([2, 1, 1, 0, 1])
        level = np.array([0, 1000, 1100, 300, 1200])
        group["data"] = (100 + level[:, None, None] * np.ones((5, 30, 1)) * pattern).astype("u2")
        group["image_key"] = keys
    flats = read_flats(tmp_path / "scan.nxs")
    assert flats.shape == (3, 30, 40)
    np.testing.assert_allclose(flats[2][10, 3:-3], (pattern / pattern.mean())[3:-3], atol=0.01)


def test_flats_of_a_folder(tmp_path) -> None:
    import tifffile

    for number in range(3):
        tifffile.imwrite(tmp_path / f"flat{number}.tif", np.full((12, 14), 500, np.uint16))
    np.testing.assert_allclose(read_flats(tmp_path), 1.0)


def test_real_flats_light_or_are_recorded_never_both(rng) -> None:
    flats = np.arange(1, 8)[:, None, None] * np.ones((1, 4, 4))
    lighting, recorded = flats_for_scan(flats, rng)
    assert len(lighting) + len(recorded) == 7
    assert not set(lighting[:, 0, 0]) & set(recorded[:, 0, 0])


# ---- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"photons": 0}, "photons is 0"),
        ({"read_noise": -1.0}, "read_noise is -1"),
        ({"bits": 32}, "32 bits"),
        ({"photons": 1e5}, "saturate a detector of 16 bits"),
        ({"beam_drift": 2.0}, "beam drift is 2.0"),
    ],
)
def test_impossible_detectors(choice, message) -> None:
    with pytest.raises(ValueError, match=message):
        DetectorModel(**choice)


def test_no_flats(tmp_path) -> None:
    with pytest.raises(ValueError, match="has no .tif, .tiff or .png images"):
        read_flats(tmp_path)
    with h5py.File(tmp_path / "scan.nxs", "w") as file:
        file["something"] = 1
    with pytest.raises(ValueError, match="has no flats"):
        read_flats(tmp_path / "scan.nxs")


def test_flats_of_several_sizes(tmp_path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.ones((4, 5), np.uint16))
    tifffile.imwrite(tmp_path / "b.tif", np.ones((4, 6), np.uint16))
    with pytest.raises(ValueError, match="not all grey and of one size"):
        read_flats(tmp_path)
