"""Which network knows a sample: the right labels explain a tomogram better than wrong ones that look sure."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from anacor_dials.segmentation.experts import (
    CONTRADICTED,
    PLANES,
    SURE,
    best_explanation,
    contradicted,
    planes_to_look_at,
    smoothed_plane,
    unexplained,
)
from anacor_dials.segmentation.fringes import smoothed, views


def sample(contrast=0.1, drop=True, n=64):
    """Labels of a box of crystal in a ball of liquor (or dry), and the normalised tomogram with fringes and noise."""
    x, y, z = np.indices((n, n, n)) - (n - 1) / 2
    labels = np.zeros((n, n, n), dtype=np.uint8)
    if drop:
        labels[x**2 + y**2 + z**2 < 26**2] = 1
    labels[(abs(x) < 13) & (abs(y + 3) < 11) & (abs(z - 2) < 14)] = 3
    levels = np.array([0.0, 1.0, 0.8, 1.0 + contrast])
    values = scipy.ndimage.gaussian_filter(levels[labels], 0.7)
    values = values - 6.0 * scipy.ndimage.laplace(values)
    noise = 0.15 * np.random.default_rng(1).standard_normal(values.shape)
    return labels, views((values + noise).astype(np.float32))


def candidates(labels):
    """The right labels, and some that are wrong as a network that is lost makes them."""
    all_liquor = np.where(labels > 0, 1, 0).astype(np.uint8)
    all_crystal = np.where(labels > 0, 3, 0).astype(np.uint8)
    moved = np.where(labels > 0, 1, 0).astype(np.uint8)
    moved[np.roll(labels == 3, (6, 8), (1, 2)) & (labels > 0)] = 3
    return [labels, all_liquor, all_crystal, moved]


@pytest.mark.parametrize("contrast", [-0.08, 0.05, 0.4])
@pytest.mark.parametrize("right_one", [0, 2])
def test_the_right_labels_win(contrast, right_one):
    labels, seen = sample(contrast)
    planes = planes_to_look_at(labels.shape[0])
    several = [c[planes] for c in candidates(labels)]
    several[0], several[right_one] = several[right_one], several[0]
    assert best_explanation(seen[:, planes], several, 4) == right_one


def test_a_dry_crystal_that_is_taken_for_air_is_noticed():
    labels, seen = sample(drop=False)
    planes = planes_to_look_at(labels.shape[0])
    nothing = np.zeros_like(labels[planes])
    assert best_explanation(seen[:, planes], [nothing, labels[planes]], 4) == 1
    assert unexplained(seen[:, planes], nothing, 4) > 2


def test_labels_without_a_crystal_are_taken_only_where_there_are_no_others():
    labels, seen = sample(drop=False)
    planes = planes_to_look_at(labels.shape[0])
    loop = np.where(labels[planes] == 3, 2, 0).astype(np.uint8)  # explains as well
    blurred = np.roll(labels[planes], 2, axis=1)
    assert best_explanation(seen[:, planes], [loop, blurred], 4) == 0
    assert best_explanation(seen[:, planes], [loop, blurred], 4, needed=3) == 1
    assert best_explanation(seen[:, planes], [loop, loop], 4, needed=3) == 0


def test_what_the_coarse_pass_contradicts_is_not_chosen_if_there_is_another():
    labels, seen = sample(0.0)
    planes = planes_to_look_at(labels.shape[0])
    right = labels[planes]
    exchanged = np.array([0, 3, 2, 1], dtype=np.uint8)[right]
    near, no_crystal = np.roll(right, 1, axis=1), np.minimum(right, 1)
    both = [exchanged, near]
    # crystal and liquor explain alike in each other's place, so the right place decides
    assert best_explanation(seen[:, planes], both, 4, 3) == 0
    assert best_explanation(seen[:, planes], both, 4, 3, [CONTRADICTED + 0.01, 0.5]) == 1
    assert best_explanation(seen[:, planes], both, 4, 3, [0.9, 0.8]) == 0
    # a candidate without a crystal is not contradicted, and no way out
    nothing = [exchanged, no_crystal]
    assert best_explanation(seen[:, planes], nothing, 4, 3, [0.9, np.nan]) == 0


def test_the_part_of_a_crystal_that_is_contradicted():
    """Of four blocks: one in air, one where the coarse pass is sure of liquor, one where it is not, one of crystal."""
    coarse = np.array([[0.9, 0, 0, 0], [0, SURE + 0.1, SURE - 0.1, 0], [0] * 4, [0.1, 0.2, 0.4, 1]])
    shares = np.array([0.0, 0.5, 1.0, 1.0])
    assert contradicted(coarse, shares, 3) == pytest.approx(0.5 / 2.5)
    assert np.isnan(contradicted(coarse, 0 * shares, 3))


def test_without_noise_and_fringes_all_is_explained():
    labels, _ = sample()
    values = np.array([0.0, 1.0, 0.8, 1.1])[labels].astype(np.float32)
    middle = slice(28, 36)
    found = unexplained(views(values)[:, middle], labels[middle], 4)
    wrong = unexplained(views(values)[:, middle], candidates(labels)[3][middle], 4)
    # planes are smoothed in two dimensions, the views in three
    assert found < 0.2 * wrong


def test_a_plane_is_smoothed_as_a_volume_that_is_the_same_in_all_planes():
    plane = np.random.default_rng(2).random((30, 24)).astype(np.float32)
    volume = np.repeat(plane[None], 9, axis=0)
    np.testing.assert_allclose(smoothed_plane(plane, 2.0), smoothed(volume, 2.0)[4], atol=1e-4)


def test_planes_are_spread():
    assert len(planes_to_look_at(1000)) == PLANES
    assert planes_to_look_at(1).tolist() == [0]
    few = planes_to_look_at(7)
    assert few.min() >= 0
    assert few.max() <= 6
