"""Views without fringes: their filter against plane waves, and against fringes that were put in."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage

from anacor_dials.segmentation import fringes
from anacor_dials.segmentation.fringes import LENGTHS, N_VIEWS, smoothed, views


def ball(n=64, radius=20.0, softness=1.0, crystal=1.0):
    """A ball at 1 in air, with a cube at its own level in the middle, blurred as a detector does."""
    x, y, z = np.indices((n, n, n)) - (n - 1) / 2
    values = (x**2 + y**2 + z**2 < radius**2).astype(np.float32)
    values[(abs(x) < 7) & (abs(y) < 7) & (abs(z) < 7)] = crystal
    return scipy.ndimage.gaussian_filter(values, softness)


def fringed(values, length):
    """values - length^2 times their Laplacian, spectrally: fringes to first order."""
    k = [2 * np.pi * np.fft.fftfreq(n) for n in values.shape]
    k2 = k[0][:, None, None] ** 2 + k[1][:, None] ** 2 + k[2] ** 2
    return np.fft.ifftn(np.fft.fftn(values) * (1 + length**2 * k2)).real.astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("length", [0.7, 3.0])
def test_plane_waves_are_weakened_as_the_formula_says(axis, length):
    shape, period = [20, 20, 20], 16
    shape[axis] = 160
    place = np.indices(shape)[axis]
    wave = np.cos(2 * np.pi * place / period).astype(np.float32)
    found = smoothed(wave, length)
    inside = (place > 60) & (place < 100)
    expected = 1 / (1 + (length * 2 * np.pi / period) ** 2)
    np.testing.assert_allclose(found[inside], expected * wave[inside], atol=2e-3)


def test_a_level_stays_and_a_point_keeps_its_sum():
    level = np.full((9, 14, 11), 1.3, np.float32)
    np.testing.assert_allclose(smoothed(level, 2.0), 1.3, rtol=1e-5)
    point = np.zeros((41, 41, 41), np.float32)
    point[20, 20, 20] = 1.0
    assert smoothed(point, 1.5).sum() == pytest.approx(1.0, abs=0.01)


def test_slabs_make_no_difference(monkeypatch):
    values = np.random.default_rng(1).normal(size=(70, 24, 31)).astype(np.float32)
    whole = smoothed(values, 1.5)
    monkeypatch.setattr(fringes, "VOXELS_AT_ONCE", 24 * 31 * 40)
    calls = []
    plain = scipy.fft.dctn
    monkeypatch.setattr(scipy.fft, "dctn", lambda *a, **k: calls.append(1) or plain(*a, **k))
    np.testing.assert_allclose(smoothed(values, 1.5), whole, atol=2e-3)
    assert len(calls) > 1  # and a whole one was not made


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((12, 13, 14), np.float32),
        np.ones((3, 20, 20), np.float32),
        fringed(ball(), 1.7)[32:33],
    ],
)
def test_volumes_of_one_thing_and_of_one_slice(values):
    found = views(values)
    assert found.shape == (N_VIEWS, *values.shape)
    assert np.all(np.isfinite(found))
    np.testing.assert_array_equal(found[0], values)


def test_views_are_the_filters_of_their_lengths_with_the_sample_at_one():
    values = fringed(ball(), 1.7)
    found = views(values)
    for view, length in zip(found[1:], LENGTHS, strict=True):
        smooth = smoothed(values, length)
        np.testing.assert_allclose(view, smooth / np.median(smooth[smooth > 0.5]), atol=0.01)
    half = views(values, np.float16)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, found, atol=2e-3)


@pytest.mark.parametrize(("view", "length"), list(enumerate(LENGTHS, start=1)))
def test_fringes_of_a_views_own_length_are_undone(view, length):
    """What is left is the sample as it was: no dark rim, and the crystal at its own level."""
    plain = ball(96, 36.0, crystal=1.2)
    found = views(fringed(plain, length))[view]
    np.testing.assert_allclose(found, plain, atol=0.01)


@pytest.mark.parametrize("length", [1.0, 2.0, 4.5])
def test_a_faint_crystal_comes_out_of_fringes_and_noise(length):
    """8 % more than the liquor under noise of 30 %: hardly seen by a voxel in one view, well in the last."""
    noise = 0.3 * np.random.default_rng(3).standard_normal((64, 64, 64)).astype(np.float32)
    plain, *_, view = views(fringed(ball(radius=24.0, crystal=1.08), length) + noise)
    x, y, z = np.abs(np.indices(plain.shape) - 31.5)
    far = np.sqrt(x**2 + y**2 + z**2)
    crystal, liquor = np.maximum(np.maximum(x, y), z) < 5, (far > 13) & (far < 16)

    def apart(v):
        return (v[crystal].mean() - v[liquor].mean()) / v[liquor].std()

    assert apart(plain) < 0.5
    assert apart(view) > 2.0
