"""Strokes go on into neighbouring slices; doubtful places are found, the worst first."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from anacor_dials.segmentation.doubtful_places import doubt_of, doubtful_places
from anacor_dials.segmentation.propagation import (
    PropagationSettings,
    followed,
    random_walk,
    region_of,
    sam2_propagation,
)

SHAPE = (30, 48, 48)


@pytest.fixture
def truth():
    """A crystal (3) of 24 x 20 x 22 voxels in a ball of liquor (1) in air (0)."""
    x, y, z = np.indices(SHAPE) - np.array([14, 24, 24])[:, None, None, None]
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[(x / 14) ** 2 + (y / 21) ** 2 + (z / 21) ** 2 < 1] = 1
    labels[(abs(x) < 12) & (abs(y) < 10) & (abs(z) < 11) & (labels == 1)] = 3
    return labels


@pytest.fixture
def values(truth):
    rng = np.random.default_rng(0)
    level = np.array([0.0, 1.0, 0.8, 1.3])[truth]
    return (level + 0.05 * rng.standard_normal(SHAPE)).astype(np.float32)


def wrong_share(labels, truth, where):
    return np.mean(labels[where] != truth[where])


def test_one_corrected_slice_mends_its_neighbours(truth, values):
    """The network missed a third of the crystal; a person draws it in one slice."""
    labels = truth.copy()
    labels[:, :, 28:][labels[:, :, 28:] == 3] = 1
    drawn = labels.copy()
    drawn[14] = truth[14]
    by_hand = np.zeros(SHAPE, dtype=bool)
    by_hand[14] = True
    contradicted = drawn != labels
    out = followed(values, drawn, by_hand, contradicted, PropagationSettings(reach=6))
    near = np.zeros(SHAPE, dtype=bool)
    near[10:19, :, 26:36] = True
    near &= ~by_hand
    assert wrong_share(drawn, truth, near) > 0.2
    assert wrong_share(out, truth, near) < 0.05
    # far away nothing changes, and what is by hand stays
    np.testing.assert_array_equal(out[:8], labels[:8])
    np.testing.assert_array_equal(out[14], truth[14])
    assert not np.any((out > 0) & (truth == 0) & (labels == 0) & (values < 0.2))


def test_what_is_by_hand_stays_even_where_it_is_absurd(truth, values):
    by_hand = np.zeros(SHAPE, dtype=bool)
    by_hand[14, 22:26, 22:26] = True
    drawn = truth.copy()
    drawn[by_hand] = 2  # loop in the middle of the crystal
    out = followed(values, drawn, by_hand, by_hand, PropagationSettings(reach=3))
    assert np.all(out[by_hand] == 2)
    assert set(np.unique(out)) <= {0, 1, 2, 3}
    np.testing.assert_array_equal(out[:10], truth[:10])


def test_nothing_drawn_changes_nothing(truth, values):
    nothing = np.zeros(SHAPE, dtype=bool)
    out = followed(values, truth, nothing, nothing)
    np.testing.assert_array_equal(out, truth)
    assert region_of(nothing, 5) is None


class Oracle:
    """A stand-in for SAM-2 that knows the truth; it notes what it was asked."""

    def __init__(self, truth, axis):
        self.truth, self.asked = np.moveaxis(truth, axis, 0), []

    def follow(self, frames, key, masks, n_frames, reverse):
        self.asked.append((key, n_frames, reverse))
        for x in range(
            key, key + (-n_frames - 1 if reverse else n_frames + 1), -1 if reverse else 1
        ):
            here = self.truth[x] == np.arange(1, len(masks) + 1)[:, None, None]
            yield x, np.where(here, 9.0, -9.0).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sam2_follows_from_the_slice_by_hand_as_far_as_wanted(truth, values, axis):
    key = SHAPE[axis] // 2
    by_hand = np.zeros(SHAPE, dtype=bool)
    np.moveaxis(by_hand, axis, 0)[key] = True
    drawn = np.where(by_hand, truth, 1).astype(np.uint8)
    anew = np.zeros(SHAPE, dtype=bool)
    np.moveaxis(anew, axis, 0)[key - 6 : key + 10] = True
    oracle = Oracle(truth, axis)
    out = sam2_propagation(oracle, axis, share=1.0)(values, drawn, by_hand, anew)
    assert oracle.asked == [(key, 6, True), (key, 9, False)]
    # where air begins, the level decides
    inside = scipy.ndimage.binary_erosion(truth > 0, iterations=3)
    assert wrong_share(out, truth, anew & inside) < 0.01
    np.testing.assert_array_equal(out[~anew], drawn[~anew])
    np.testing.assert_array_equal(out[by_hand], truth[by_hand])


def test_the_walker_and_sam2_together(truth, values):
    """Half and half, SAM-2 mends what the walker cannot see; with no share it changes nothing."""
    by_hand = np.zeros(SHAPE, dtype=bool)
    by_hand[14] = True
    drawn = np.where(by_hand, truth, 1).astype(np.uint8)
    anew = np.zeros(SHAPE, dtype=bool)
    anew[8:24] = True
    blind = np.where(values > 0.5, 1.0, 0.0).astype(np.float32)  # no contrast of the crystal
    alone = random_walk(blind, drawn, by_hand, anew)
    none = sam2_propagation(Oracle(truth, 0), share=0.0)(blind, drawn, by_hand, anew)
    np.testing.assert_array_equal(none, alone)
    both = sam2_propagation(Oracle(truth, 0))(blind, drawn, by_hand, anew)
    assert wrong_share(alone, truth, anew) > 0.05
    assert wrong_share(both, truth, anew) < 0.5 * wrong_share(alone, truth, anew)


@pytest.mark.parametrize("settings", [{"reach": 0}, {"stiffness": 0.0}])
def test_settings_that_cannot_be(settings):
    with pytest.raises(ValueError, match=r"Strokes|stiffness"):
        PropagationSettings(**settings)


# ---- doubtful places ---------------------------------------------------------------------------------


@pytest.fixture
def probabilities():
    """Everything is sure, but for two balls: a large one about crystal and liquor, a small one about the loop."""
    p = np.zeros((4, 50, 50, 50), dtype=np.uint8)
    p[1] = 255
    x, y, z = np.indices(p.shape[1:])
    large = (x - 15) ** 2 + (y - 15) ** 2 + (z - 30) ** 2 < 7**2
    small = (x - 38) ** 2 + (y - 38) ** 2 + (z - 10) ** 2 < 7**2
    p[1][large], p[3][large] = 140, 115
    p[1][small], p[2][small] = 140, 115
    return p


def test_the_worst_place_comes_first(probabilities):
    first, second = doubtful_places(probabilities, crystal=3)
    assert np.linalg.norm(np.array(first.voxel) - (15, 15, 30)) < 8
    assert np.linalg.norm(np.array(second.voxel) - (38, 38, 10)) < 8
    assert (first.materials, second.materials) == ((1, 3), (1, 2))
    assert first.doubt > 1.8 * second.doubt  # doubt that is not about the crystal counts by half
    assert len(doubtful_places(probabilities, 3, most=1)) == 1


def test_what_is_by_hand_is_not_doubtful(probabilities):
    by_hand = np.zeros(probabilities.shape[1:], dtype=bool)
    by_hand[:30] = True
    (only,) = doubtful_places(probabilities, 3, by_hand)
    assert only.materials == (1, 2)
    sure = np.zeros_like(probabilities)
    sure[1] = 255
    assert doubtful_places(sure, 3) == []


def test_doubt_is_one_minus_the_largest_probability(probabilities):
    doubt = doubt_of(probabilities, 3)
    assert doubt[15, 15, 30] == 115
    assert doubt[38, 38, 10] == 57
    assert doubt[0, 0, 0] == 0
