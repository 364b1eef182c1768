"""Plausible labels: the fields' correlation, every voxel's probabilities, errors that hang together."""

from __future__ import annotations

import numpy as np
import pytest

from anacor_dials.segmentation.plausible_labels import (
    FACES_UM,
    SURE,
    moved_surfaces,
    plausible_labels,
    smooth_field,
)


@pytest.mark.parametrize("scale", [2.0, 6.0])
def test_fields_are_normal_and_correlated_as_they_should_be(scale):
    """Against exp(-r^2 / 4 s^2), over many fields of voxels of 1 um."""
    rng = np.random.default_rng(1)
    index = np.array([[8, 8, 8], [8, 8, 10], [8, 12, 8], [14, 8, 8]]).T
    values = np.array([smooth_field((20, 18, 16), 1.0, scale, rng)(index) for _ in range(1500)])
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=0.1)
    # interpolated linearly on a grid of half the scale, it loses some per cent of its variance at most
    np.testing.assert_allclose(values.std(axis=0), 1, atol=0.1)
    expected = np.exp(-np.array([4.0, 16.0, 36.0]) / (4 * scale**2))
    np.testing.assert_allclose(np.corrcoef(values.T)[0, 1:], expected, atol=0.1)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_every_voxel_keeps_its_probabilities(temperature):
    p = np.array([0.1, 0.3, 0.05, 0.55])
    probabilities = np.broadcast_to(
        np.rint(255 * p).astype(np.uint8)[:, None, None, None], (4, 6, 5, 7)
    ).copy()
    drawn = plausible_labels(probabilities, 5.0, 3000, np.random.default_rng(2), temperature)
    p = p ** (1 / temperature) / np.sum(p ** (1 / temperature))
    corners = np.array([labels[0, 0, 0] for labels in drawn])
    found = np.bincount(corners, minlength=4) / len(corners)
    np.testing.assert_allclose(found, p, atol=4 * np.sqrt(0.25 / len(corners)))


def test_errors_hang_together_and_what_is_sure_stays():
    probabilities = np.zeros((4, 40, 40, 40), dtype=np.uint8)
    probabilities[0], probabilities[3] = 128, 127
    probabilities[:, :10] = np.array([0, 255, 0, 0])[:, None, None, None]
    rng = np.random.default_rng(3)
    together, shares = [], []
    for labels in plausible_labels(probabilities, 1.0, 20, rng):
        assert np.all(labels[:10] == 1)
        assert set(np.unique(labels[10:])) <= {0, 3}
        part = labels[10:] == 3
        together.append(np.mean(part[1:] == part[:-1]))
        shares.append(part.mean())
    # independent voxels would agree in one half, and every share would be one half
    assert np.mean(together) > 0.85
    assert np.std(shares) > 0.15
    assert SURE < 255


def test_the_seed_decides():
    probabilities = np.full((4, 12, 12, 12), 64, dtype=np.uint8)
    first, second, other = (
        next(plausible_labels(probabilities, 1.0, 1, np.random.default_rng(seed)))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert np.any(first != other)


def test_a_surface_moves_by_a_voxel_far_places_apart():
    """A plane in the middle: its height is normal with a standard deviation of a voxel, and
    correlated by exp(-r^2 / 4 s^2)."""
    labels = np.zeros((24, 6, 16), dtype=np.uint8)
    labels[:, :, 8:] = 1
    labels[:, :, 12:] = 3
    rng = np.random.default_rng(5)
    heights = []
    for moved in moved_surfaces(labels, labels != 0, 4.0, 300, rng):
        heights.append((moved != 0).sum(axis=2))
        assert set(np.unique(moved[:, :, :12])) <= {0, 1}  # what is won or lost is liquor or air
        np.testing.assert_array_equal(moved[:, :, 12:], 3)
    heights = np.array(heights, dtype=float)
    assert heights.mean() == pytest.approx(8, abs=0.1)
    assert heights.std() == pytest.approx(np.sqrt(1 + 1 / 12), abs=0.1)  # whole voxels
    first, far = heights[:, 4, 3], heights[:, 16, 3]
    expected = np.exp(-((12 * 4.0) ** 2) / (4 * FACES_UM**2)) / (1 + 1 / 12)
    assert np.corrcoef(first, far)[0, 1] == pytest.approx(expected, abs=0.12)
