"""What doubtful labels are worth in factors: nothing where all is sure, what a slab absorbs where it may be there or not."""

from __future__ import annotations

import numpy as np
import pytest

from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.jobs.label_uncertainty import (
    MOST_UNCERTAIN,
    Drawing,
    LabelUncertainty,
    label_uncertainty,
    random_sweep,
    without_further_bodies,
)
from anacor_dials.sample.volumes import DEFAULT_NAMES, Volume

ONE_THREAD = Tracing(1.5e-3, check_reflections=8, nproc=1, device="cpu")
MU = (0.0, 0.013, 0.011, 0.0135)


def probabilities_of(labels, sure=255):
    p = np.full((4, *labels.shape), (255 - sure) // 3, dtype=np.uint8)
    np.put_along_axis(p, labels[None].astype(np.intp), sure, axis=0)
    return p


def crystal_in_drop(n=36):
    r2 = ((np.indices((n, n, n)) - (n - 1) / 2) ** 2).sum(axis=0)
    labels = np.zeros((n, n, n), dtype=np.uint8)
    labels[r2 < (0.42 * n) ** 2] = 1
    labels[r2 < (0.25 * n) ** 2] = 3
    return labels


def grid_of(labels):
    return Volume(labels, np.full(3, 1.5))


def test_sure_labels_leave_only_the_error_of_the_rays(caplog):
    labels = crystal_in_drop()
    caplog.set_level("INFO")
    found = label_uncertainty(
        probabilities_of(labels), grid_of(labels), DEFAULT_NAMES, MU, Drawing(3), tracing=ONE_THREAD
    )
    assert found.rms < 0.002
    assert found.warnings == []
    assert "direct:" not in caplog.text  # nothing of every drawn volume
    np.testing.assert_allclose(found.crystal_volumes_um3, np.count_nonzero(labels == 3) * 1.5**3)


def test_surfaces_that_may_lie_elsewhere_count_in_proportion():
    """Labels that are sure, surfaces that are known to s: the uncertainty is proportional to s. A
    ray crosses two surfaces of the drop, so that it changes by no more than about 2 mu s."""
    labels = crystal_in_drop()

    def uncertain(surfaces_um):
        found = label_uncertainty(
            probabilities_of(labels), grid_of(labels), DEFAULT_NAMES, MU, Drawing(1, surfaces_um),
            tracing=ONE_THREAD,
        )  # fmt: skip
        return found.rms

    none, some, more = (uncertain(s) for s in (0.0, 0.6, 1.2))
    assert some**2 - none**2 == pytest.approx((more**2 - none**2) / 4, rel=1e-6)
    assert 0.1 < np.sqrt(some**2 - none**2) / (2 * MU[1] * 0.6) < 1.0


def test_crystals_elsewhere_are_not_drawn():
    """As the clean-up leaves none; what grows out of the crystal, or shrinks, stays."""
    taken = crystal_in_drop()
    drawn = taken.copy()
    drawn[4:8, 16:20, 16:20] = 3  # in the drop
    drawn[6:18, 17:19, 17:19] = np.where(taken[6:18, 17:19, 17:19] == 3, 3, 1)
    drawn[24:30, 17:19, 17:19] = 3  # touches the crystal
    drawn[18, 18, 10] = 1
    expected = drawn.copy()
    expected[4:8, 16:20, 16:20] = taken[4:8, 16:20, 16:20]
    np.testing.assert_array_equal(without_further_bodies(drawn, taken, 3), expected)


def test_a_slab_that_may_be_there_is_worth_its_absorption():
    """One half of the reflections crosses the slab twice, the other does not; a coin decides whether it is there.

    After one scale the factors with and without it differ by half of the ratio between the halves, up and
    down; so the rms over the draws with another outcome than the labels taken is (q - 1) / (q + 1), q = exp(-2 mu t).
    """
    labels = np.zeros((24, 24, 60), dtype=np.uint8)
    labels[8:16, 8:16, 20:28] = 3
    slab = np.zeros(labels.shape, dtype=bool)
    slab[:, :, 40:52] = True
    p = probabilities_of(labels)
    p[0][slab], p[1][slab] = 140, 115
    up = np.tile([0.0, 0.0, 1.0], (60, 1))
    up[30:, 2] = -1.0
    directions = Directions.of_one_sweep(up, up)
    found = label_uncertainty(
        p, grid_of(labels), DEFAULT_NAMES, MU, Drawing(60), directions=directions, tracing=ONE_THREAD
    )  # fmt: skip
    q = np.exp(-2 * MU[1] * 12 * 1.5)
    largest = (1 - q) / (1 + q)
    assert found.draws.max() == pytest.approx(largest, rel=0.05)  # the whole slab, in some draws
    assert 0.2 * largest < found.rms < 0.8 * largest
    assert found.rms > MOST_UNCERTAIN
    assert "doubtful" in found.warnings[0]


def test_wider_doubt_is_worth_more():
    labels = crystal_in_drop()
    r = np.sqrt(((np.indices(labels.shape) - 17.5) ** 2).sum(axis=0))
    found = []
    for width in (0.7, 2.5):
        crystal = 1 / (1 + np.exp((r - 9.0) / width))
        drop = 1 / (1 + np.exp((r - 15.0) / 0.3))
        p = np.rint(255 * np.stack([1 - drop, drop * (1 - crystal), 0 * r, drop * crystal]))
        found.append(
            label_uncertainty(
                p.astype(np.uint8), grid_of(labels), DEFAULT_NAMES, MU, tracing=ONE_THREAD
            ).rms
        )
    assert found[1] > 1.5 * found[0]


def test_no_crystal_no_uncertainty():
    labels = np.minimum(crystal_in_drop(), 1)
    arguments = (probabilities_of(labels), grid_of(labels), DEFAULT_NAMES)
    assert label_uncertainty(*arguments, MU, Drawing(2)) is None
    assert label_uncertainty(*arguments, (0.0, np.nan, np.nan, np.nan), Drawing(2)) is None


def test_the_sentence_says_what_was_found():
    text = str(LabelUncertainty(0.0123, np.array([0.01, 0.014]), 0.07, np.array([1e5, 2e5])))
    assert "1.23 % rms in 2" in text
    assert "1e+05 to 2e+05" in text


def test_random_reflections_scatter_by_what_they_say():
    sweep = random_sweep(500, np.random.default_rng(0))
    two_theta = np.rad2deg(np.arccos(-np.einsum("ij,ij->i", sweep.to_source, sweep.exit)))
    assert 5 <= two_theta.min() < 10
    assert 75 < two_theta.max() <= 80
    np.testing.assert_allclose(sweep.to_source[:, 0], 0, atol=1e-12)  # the axis is across the beam
