"""Mean path lengths in each material, weighted with the transmission: -d ln A / d mu."""

from __future__ import annotations

import numpy as np

from anacor_dials.absorption.computation import Computation, n_nodes
from anacor_dials.absorption.crystal_points import SampledPoints
from anacor_dials.absorption.direction_table import DirectionTable
from anacor_dials.absorption.node_sums import SMALLEST_TRANSMISSION, sums_of_products
from anacor_dials.sample.frames import FloatArray

# Enough for 1 to 2 %: the paths are reported, and no correction depends on them.
PATH_POINTS = 512
PATH_STEP_DEG = 10.0
POINTS_AT_A_TIME = 128  # bounds the memory for lengths (directions, points, labels)


def mean_paths(computation: Computation) -> FloatArray:
    """-d ln A / d mu of all reflections (n, n_labels), um, good to 1 to 2 %."""
    directions = computation.directions
    n_labels = computation.body.n_labels
    points = computation.draw(PATH_POINTS)
    if not computation.has_tables:
        return _by_own_rays(computation, points)
    arcs, exit_grid = computation.grid(PATH_STEP_DEG)
    if 2 * len(directions) < n_nodes((arcs, exit_grid)):
        return _by_own_rays(computation, points)
    incident = np.concatenate([arc.directions for arc in arcs])
    beam_axis = np.concatenate([arc.beam_axis for arc in arcs])
    exits = exit_grid.directions
    weighted = np.zeros((n_labels, len(incident), len(exits)))
    total = np.zeros((len(incident), len(exits)))
    for start in range(0, len(points), POINTS_AT_A_TIME):
        some = points[start : start + POINTS_AT_A_TIME]
        d_in, l_in = computation.body.path_lengths(some.voxels, incident)
        d_out, l_out = computation.body.path_lengths(some.voxels, exits)
        t_in, t_out = np.exp(-d_in), np.exp(-d_out)
        if computation.tracing.beam is None:
            t_in *= some.weights
        else:
            t_in *= computation.beam_weights(some, incident, beam_axis)
        total += sums_of_products(t_in, t_out)
        for label in range(1, n_labels):
            weighted[label] += sums_of_products(t_in * l_in[..., label], t_out)
            weighted[label] += sums_of_products(t_in, t_out * l_out[..., label])
    total = np.maximum(total, SMALLEST_TRANSMISSION)
    paths = np.zeros((len(directions), n_labels))
    for label in range(1, n_labels):
        table = DirectionTable(arcs, exit_grid, weighted[label] / total)
        values = table(directions.to_source, directions.exit, directions.sweep)
        paths[:, label] = np.maximum(values, 0.0)
    return paths


def _by_own_rays(computation: Computation, points: SampledPoints) -> FloatArray:
    directions = computation.directions
    paths = np.zeros((len(directions), computation.body.n_labels))
    weights = computation.reflection_weights(points, directions)
    for i, (s, e) in enumerate(zip(directions.to_source, directions.exit, strict=True)):
        depths, lengths = computation.body.path_lengths(points.voxels, np.stack([s, e]))
        f = np.exp(-depths[0] - depths[1]) * weights[i % len(weights)]
        total = max(float(f.sum()), SMALLEST_TRANSMISSION)
        paths[i] = f @ (lengths[0] + lengths[1]) / total
    paths[:, 0] = 0.0
    return paths
