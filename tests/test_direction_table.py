"""Interpolation between directions: smooth functions come back, on every part of the sphere."""

from __future__ import annotations

import numpy as np
import pytest

from anacor_dials.absorption.direction_table import (
    DirectionTable,
    ExitGrid,
    IncidentArc,
    TableSum,
)
from anacor_dials.sample.frames import rotation_about, unit

X = np.array([1.0, 0, 0])


def circle(angles_deg, axis=X, start=(0.0, 0, 1)):
    """Directions to the source: one of them turned about an axis."""
    return rotation_about(axis, -np.asarray(angles_deg)) @ unit(start)


def anywhere(n, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((n, 3)))


def smooth(s, e):
    """A function of two directions (n, 3) with the features of log A: smooth, no symmetry."""
    a = np.exp(0.8 * s @ [0.3, -0.5, 0.7]) * (1 + 0.3 * (e @ [0.5, 0.2, -0.8]))
    return a + 0.4 * (e @ [1, 0.3, 0.2]) * (e @ [-0.5, 1, 0.1]) + 0.3 * np.sum(s * e, axis=1) ** 3


def table_of(function, arcs, grid):
    incident = np.concatenate([arc.directions for arc in arcs])
    exits = grid.directions
    s = np.repeat(incident, len(exits), axis=0)
    e = np.tile(exits, (len(incident), 1))
    return DirectionTable(tuple(arcs), grid, function(s, e).reshape(len(incident), len(exits)))


def worst(function, sources, exits, step, arc_step=None):
    """The largest error of the interpolated function at directions of one sweep."""
    arc = IncidentArc(arc_step or step, X, sources)
    table = table_of(function, [arc], ExitGrid(step, exits))
    found = table(sources, exits, np.zeros(len(sources), dtype=int))
    return np.max(np.abs(found - function(sources, exits)))


SCANS = {
    "still": np.full(400, 33.0),
    "narrow": np.linspace(10, 10.2, 400),
    "quarter": np.linspace(-20, 70, 400),
    "over the seam": np.linspace(170, 250, 400),
    "half": np.linspace(0, 180, 400),
    "nearly all": np.linspace(0, 340, 400),
    "full": np.linspace(0, 359.5, 400),
    "more than full": np.linspace(0, 800, 400),
}


@pytest.mark.parametrize("scan", SCANS)
def test_smooth_functions_come_back(scan):
    sources = circle(np.random.default_rng(1).permutation(SCANS[scan]))
    assert worst(smooth, sources, anywhere(400), 6.0) < 2e-3


def test_the_error_falls_with_the_fourth_power_of_the_step():
    sources, exits = circle(np.linspace(0, 359, 300)), anywhere(300)
    coarse, fine = (worst(smooth, sources, exits, step) for step in (12.0, 6.0))
    assert coarse / fine > 10


def test_constants_come_back_exactly():
    def seven(s, e):
        return np.full(len(s), 7.0)

    for scan in SCANS.values():
        assert worst(seven, circle(scan), anywhere(400), 10.0) < 1e-12


def test_the_poles_are_like_any_other_place():
    # exits along and around the rotation axis, where rings of nodes shrink to nothing
    rng = np.random.default_rng(2)
    near = unit(np.sign(rng.standard_normal((300, 1))) * X + 0.1 * rng.standard_normal((300, 3)))
    near[0], near[1] = X, -X
    elsewhere = anywhere(300)
    sources = circle(np.linspace(0, 180, 300))
    assert worst(smooth, sources, near, 6.0) < 2 * worst(smooth, sources, elsewhere, 6.0)


@pytest.mark.parametrize("towards", [(1, 0, 0), (0, 0.6, -0.8), (-0.8, 0.6, 0)])
def test_a_part_of_the_sphere_is_as_good_as_the_whole(towards):
    cap = unit(np.array(towards) + 0.3 * np.random.default_rng(3).standard_normal((300, 3)))
    sources = circle(np.linspace(0, 180, 300))
    with_all = np.concatenate([cap, anywhere(2000)])
    arc = IncidentArc(6.0, X, sources)
    part, whole = ExitGrid(6.0, cap), ExitGrid(6.0, with_all)
    assert len(part.directions) <= len(whole.directions)
    sweep = np.zeros(300, dtype=int)
    found = [table_of(smooth, [arc], grid)(sources, cap, sweep) for grid in (part, whole)]
    # what lies beyond the margin is felt by 0.27 to the power of its four nodes
    np.testing.assert_allclose(found[0], found[1], atol=5e-3)
    assert np.max(np.abs(found[0] - smooth(sources, cap))) < 5e-3


def test_rings_that_no_exit_needs_are_left_out():
    equator = unit(anywhere(100) * [0.01, 1, 1])
    part, whole = ExitGrid(3.0, equator), ExitGrid(3.0, anywhere(100))
    assert len(part.directions) < 0.4 * len(whole.directions)


def test_nodes_are_directions():
    grid = ExitGrid(7.0, anywhere(50))
    np.testing.assert_allclose(np.linalg.norm(grid.directions, axis=1), 1)
    assert grid.step_deg == pytest.approx(7.0, rel=0.05)
    # every direction has a node near it
    nearest = np.max(anywhere(500, 4) @ grid.directions.T, axis=1)
    assert np.degrees(np.arccos(nearest)).max() < 7.5


def test_rings_are_brought_to_one_length_without_loss():
    grid = ExitGrid(7.0, anywhere(200))
    assert len(set(grid.sizes)) > 5
    values = np.random.default_rng(6).standard_normal((2, len(grid.directions)))  # all frequencies
    torus = grid.torus(values)
    starts = np.cumsum([0, *grid.sizes[:-1]])
    halves = np.array(grid.sizes) // 2
    # the nodes at psi = 0 and 180 deg belong to the short rings and to the long ones
    rings = torus[:, grid.first : grid.last + 1]
    np.testing.assert_allclose(rings[:, :, 0], values[:, starts], atol=1e-12)
    np.testing.assert_allclose(rings[:, :, grid.n_psi // 2], values[:, starts + halves], atol=1e-12)


@pytest.mark.parametrize("slant_deg", [0, 15, -40])
def test_arcs_lie_on_the_cone_of_the_scan(slant_deg):
    axis = unit((1.0, 0.3, -0.2))
    start = np.cross(axis, (0, 1.0, 0))
    start = np.cos(np.radians(slant_deg)) * unit(start) + np.sin(np.radians(slant_deg)) * axis
    sources = circle(np.linspace(0, 120, 50), axis, start)
    arc = IncidentArc(5.0, axis, sources)
    np.testing.assert_allclose(np.linalg.norm(arc.directions, axis=1), 1)
    np.testing.assert_allclose(arc.directions @ axis, np.sin(np.radians(slant_deg)), atol=1e-12)
    assert not arc.closed
    # a coordinate is a place between two nodes, even steps along the arc
    place = arc.coordinates(sources)
    assert place.min() > 1
    assert place.max() < arc.n - 2
    np.testing.assert_allclose(np.diff(place), np.diff(place)[0])
    np.testing.assert_allclose(arc.coordinates(arc.directions[2:-2]), np.arange(2, arc.n - 2))


def test_a_full_turn_is_closed():
    assert IncidentArc(5.0, X, circle(np.arange(0, 360, 1.0))).closed
    assert IncidentArc(5.0, X, circle(np.arange(0, 345, 1.0))).closed  # the margins meet
    assert not IncidentArc(5.0, X, circle(np.arange(0, 300, 1.0))).closed


def test_one_direction_needs_one_node():
    arc = IncidentArc(5.0, X, circle([40.0] * 7))
    assert arc.n == 1
    np.testing.assert_allclose(arc.directions, circle([40.0]), atol=1e-12)


def test_a_beam_along_the_axis_has_one_direction():
    arc = IncidentArc(5.0, X, np.tile(X, (5, 1)))
    assert arc.n == 1
    np.testing.assert_allclose(arc.directions, [X])


def test_a_sweep_without_reflections_needs_no_directions():
    arc = IncidentArc(5.0, X, np.zeros((0, 3)))
    assert arc.n == 1
    np.testing.assert_allclose(np.linalg.norm(arc.directions), 1)


def test_directions_off_the_cone_are_refused():
    sources = circle(np.arange(0, 90, 1.0))
    sources[3] = unit(sources[3] + 0.01 * X)
    with pytest.raises(
        ValueError, match=r"lie up to 0\.573 deg off a cone about its rotation axis"
    ):
        IncidentArc(5.0, X, sources)


def test_sweeps_of_different_goniometer_settings():
    axis = unit((0.6, 0.7, 0.2))
    other = circle(np.linspace(0, 360, 200), axis, np.cross(axis, (0, 1, 0.1)) + 0.2 * axis)
    sources = np.concatenate([circle(np.linspace(0, 90, 200)), other, circle([77.0] * 50)])
    sweep = np.repeat([0, 1, 2], [200, 200, 50])
    exits = anywhere(450)
    arcs = [IncidentArc(6.0, a, sources[sweep == i]) for i, a in enumerate((X, axis, X))]
    assert [arc.closed for arc in arcs] == [False, True, False]
    table = table_of(smooth, arcs, ExitGrid(6.0, exits))
    mixed = np.random.default_rng(5).permutation(450)
    found = table(sources[mixed], exits[mixed], sweep[mixed])
    np.testing.assert_allclose(found, smooth(sources[mixed], exits[mixed]), atol=2e-3)


def test_a_sum_of_tables():
    sources, exits, sweep = circle(np.linspace(0, 90, 50)), anywhere(50), np.zeros(50, dtype=int)
    tables = [
        table_of(smooth, [IncidentArc(step, X, sources)], ExitGrid(step, exits))
        for step in (6.0, 12.0)
    ]
    both = TableSum(tuple(tables))(sources, exits, sweep)
    np.testing.assert_allclose(both, sum(table(sources, exits, sweep) for table in tables))
