"""Points of the crystal: every part of it equally often, with an error that is known."""

from __future__ import annotations

import numpy as np
import pytest

from anacor_dials.absorption.crystal_points import CrystalPoints, hilbert_cell, hilbert_code
from anacor_dials.sample.volumes import LabelVolume

BITS = 4


def rng(seed=0):
    return np.random.default_rng(seed)


def places_along_curve(points, shape):
    """Where along the curve through all voxels points are, computed voxel by voxel."""
    bits = int(np.ceil(np.log2(max(shape))))  # of the smallest cube that holds the volume
    return [hilbert_code(x, y, z, bits) for x, y, z in np.rint(points).astype(int)]


def test_the_curve_passes_each_cell_once_and_goes_from_neighbour_to_neighbour():
    cells = np.array([hilbert_cell(code, BITS) for code in range(8**BITS)])
    assert len(np.unique(cells, axis=0)) == 8**BITS
    assert (cells.min(), cells.max()) == (0, 2**BITS - 1)
    np.testing.assert_array_equal(np.abs(np.diff(cells, axis=0)).sum(axis=1), 1)


def test_places_along_the_curve_and_cells_are_inverse():
    for code in rng().integers(0, 8**12, 100):
        assert hilbert_code(*hilbert_cell(code, 12), 12) == code


def test_a_coarse_curve_is_the_fine_one_seen_from_afar():
    # the crystal's blocks are ordered by a curve of their own and so must be the voxels in them
    for code in rng().integers(0, 8**5, 100):
        x, y, z = hilbert_cell(code, 5)
        coarse = hilbert_code(x >> 2, y >> 2, z >> 2, 3)
        assert (coarse >= 0, code >> 6) == (True, coarse)


def test_points_lie_in_voxels_of_the_crystal(sample_labels):
    crystal = CrystalPoints(sample_labels)
    assert crystal.n_voxels == sample_labels.counts()[3]
    points = crystal.draw(3000, rng()).voxels
    assert points.shape == (3000, 3)
    assert np.all(sample_labels.values[tuple(np.rint(points).astype(int).T)] == 3)


def test_points_of_another_material(sample_labels):
    points = CrystalPoints(sample_labels, "loop").draw(100, rng()).voxels
    assert np.all(sample_labels.values[tuple(np.rint(points).astype(int).T)] == 2)


def test_every_part_of_every_voxel_is_met_equally_often():
    values = np.zeros((5, 9, 17), dtype=np.uint8)  # not whole blocks
    values[1:4, 2:9, 3:17] = 3
    crystal = CrystalPoints(LabelVolume(values, 1.0))
    n_voxels = 3 * 7 * 14
    points = np.concatenate([crystal.draw(2 * n_voxels, rng(seed)).voxels for seed in range(60)])
    counts = np.zeros(values.shape, dtype=int)
    np.add.at(counts, tuple(np.rint(points).astype(int).T), 1)
    # a part is a voxel here: exactly two points of each draw in each voxel
    np.testing.assert_array_equal(counts[values == 3], 120)
    within = points - np.rint(points)
    assert np.all(np.abs(within) <= 0.5)
    np.testing.assert_allclose(within.mean(axis=0), 0, atol=4 * np.sqrt(1 / 12 / len(points)))
    np.testing.assert_allclose(within.var(axis=0), 1 / 12, rtol=0.02)


def test_pairs_come_from_equal_parts_in_the_order_of_the_curve(sample_labels):
    crystal = CrystalPoints(sample_labels)
    points = crystal.draw(64, rng()).voxels
    every = np.argwhere(sample_labels.values == 3)
    order = np.sort(places_along_curve(every, sample_labels.shape))
    rank = np.searchsorted(order, places_along_curve(points, sample_labels.shape))
    part = np.arange(64) // 2
    size = len(every) / 32
    assert np.all(rank >= np.floor(part * size))
    assert np.all(rank <= np.ceil((part + 1) * size))


def test_the_seed_decides(sample_labels):
    crystal = CrystalPoints(sample_labels)
    one, same, other = (crystal.draw(100, rng(seed)).voxels for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_more_points_than_voxels():
    values = np.zeros((3, 3, 3), dtype=np.uint8)
    values[2, 0, 1] = 3
    points = CrystalPoints(LabelVolume(values, 1.0)).draw(1000, rng()).voxels
    assert np.all(np.rint(points) == [2, 0, 1])
    np.testing.assert_allclose(points.mean(axis=0), [2, 0, 1], atol=0.05)


def mean_and_error(points, function):
    """The mean of a function of voxel indices and its standard error, from pairs."""
    f = points.weights * function(points.voxels)
    return f.mean(), np.sqrt(np.sum((f[::2] - f[1::2]) ** 2)) / len(f)


@pytest.mark.parametrize("n", [64, 1024])
@pytest.mark.parametrize("uneven", [False, True])
def test_the_error_from_pairs_is_the_spread_of_means(sample_labels, n, uneven):
    crystal = CrystalPoints(sample_labels)
    importance = rng(5).uniform(0.1, 2.0, 40) if uneven else None
    found = np.array(
        [
            mean_and_error(
                crystal.draw(n, rng(s), importance), lambda v: np.exp(v @ [-0.1, 0.05, -0.08])
            )
            for s in range(150)
        ]
    )
    every = np.argwhere(sample_labels.values == 3)
    # over a voxel an exponential averages to that of the middle times sinh(g/2) / (g/2)
    gradient = np.array([-0.1, 0.05, -0.08])
    exact = np.mean(np.exp(every @ gradient)) * np.prod(np.sinh(gradient / 2) / (gradient / 2))
    spread = np.sqrt(np.mean((found[:, 0] - exact) ** 2))
    assert spread == pytest.approx(np.sqrt(np.mean(found[:, 1] ** 2)), rel=0.25)
    assert abs(found[:, 0].mean() - exact) < 3 * spread / np.sqrt(150)


def test_the_error_falls_faster_than_chance():
    x, y, z = np.indices((40, 40, 40)) - 19.5
    ball = LabelVolume((x**2 + y**2 + z**2 <= 19**2).astype(np.uint8) * 3, 1.0)
    crystal = CrystalPoints(ball)
    few, many = (
        np.mean(
            [
                mean_and_error(crystal.draw(n, rng(s)), lambda v: np.exp(v[:, 0] / 20))[1]
                for s in range(5)
            ]
        )
        for n in (256, 256 * 32)
    )
    # 32 times as many points: 5.7 times less for points taken anywhere, 18 for one power of 5/6
    assert few / many > 12


def test_points_lie_where_they_matter(sample_labels):
    """Three times as dense in the second half of the crystal as in the first."""
    crystal = CrystalPoints(sample_labels)
    points = crystal.draw(400, rng(), np.array([0.5, 1.5]))
    every = np.argwhere(sample_labels.values == 3)
    order = np.sort(places_along_curve(every, sample_labels.shape))
    rank = np.searchsorted(order, places_along_curve(points.voxels, sample_labels.shape))
    assert np.mean(rank < len(every) / 2) == pytest.approx(0.25, abs=0.006)
    assert points.weights.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(points.weights[:98], 2.0)
    np.testing.assert_allclose(points.weights[-298:], 2.0 / 3.0)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_odd_numbers_of_points_are_refused(sample_labels, n):
    with pytest.raises(ValueError, match="must be even and >= 2"):
        CrystalPoints(sample_labels).draw(n, rng())


def test_a_volume_without_a_crystal_is_refused():
    with pytest.raises(ValueError, match="No voxel of the volume is labelled 'crystal'"):
        CrystalPoints(LabelVolume(np.zeros((9, 9, 9), np.uint8), 1.0))
