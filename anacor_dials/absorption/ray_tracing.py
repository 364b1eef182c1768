"""Optical depths along rays through a labelled sample, on the CPU.

A ray starts at a point of the crystal and runs straight to the edge of the volume. There are two
ways to integrate mu along it:

* **exact**: every voxel on the ray contributes mu times the length in it (Amanatides & Woo,
  Eurographics 1987), in float64, through the labels themselves. This is the reference.
* **march**: mu is sampled at the middle of equal steps along the ray, in a grid of mean mu. At each
  boundary the error is at most half a step times the change of mu, of either sign; over the points
  of the crystal it averages out. This is four to ten times faster.

Points are fractional voxel indices (voxel i extends from i - 1/2 to i + 1/2). Directions are unit
vectors of the tomo frame, away from the crystal. Lengths are in um, mu in 1/um.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from anacor_dials.absorption.attenuating_volume import (
    FIXED_POINT_BITS,
    HULL_NORMALS,
    AttenuatingVolume,
    label_bounds,
)
from anacor_dials.absorption.ray_lanes import LANES, sum_along_rays
from anacor_dials.sample.frames import FloatArray, scan_rotation, source_directions
from anacor_dials.sample.volumes import LabelVolume

# Points of one task of a thread: enough for its start to cost nothing, few enough for many tasks.
POINTS_PER_TASK = 512
# Cells per um across a plane of the hull: rays that approach it more slowly do not end at it. At
# the sides of the grid all end that approach them at all.
LEAST_APPROACH, LEAST_APPROACH_OF_SIDES = 1e-3, 1e-12
PLANES = np.concatenate([np.eye(3), HULL_NORMALS])

Array = NDArray[Any]


def use_threads(nproc: int | None) -> int:
    """Sets the number of threads that trace rays (None: one per core) and returns it.

    Raises ValueError if nproc is less than 1.
    """
    largest = int(numba.config.NUMBA_NUM_THREADS)
    if nproc is not None and nproc < 1:
        raise ValueError(f"nproc is {nproc}; it must be at least 1.")
    n = largest if nproc is None else min(nproc, largest)
    numba.set_num_threads(n)
    return n


# ---- march --------------------------------------------------------------------------------------


@njit(parallel=True, fastmath=True, cache=True)
def _march(  # type: ignore[no-untyped-def]
    grid, depths, places, products, gradients, approach, hull, step, transmission
):
    """Writes exp(-tau) of every direction and point to transmission (n_directions, n_points).

    grid: what a BlockedGrid holds. depths (256,): the optical depth of a step for each code.
    places (n_points, 3): points in cells, with FIXED_POINT_BITS bits of fraction. products
    (n_points, n) and approach (n_directions, n): the normals of PLANES times points and gradients.
    hull (2, n): the products between which rays run.
    """
    per_step = np.float32(1.0 / step)
    n_points = places.shape[0]
    n_normals = products.shape[1]
    n_tasks = (n_points + POINTS_PER_TASK - 1) // POINTS_PER_TASK
    one = 1 << FIXED_POINT_BITS
    # successive tasks have the same direction: rays of neighbouring points read the same cells
    for task in prange(gradients.shape[0] * n_tasks):
        d = task // n_tasks
        begin = (task - d * n_tasks) * POINTS_PER_TASK
        end = min(begin + POINTS_PER_TASK, n_points)
        steps = np.empty(3, np.int32)
        for axis in range(3):
            steps[axis] = int(round(gradients[d, axis] * step * one))
        # of the two planes with one normal, that which the ray leaves by, and um per cell
        ends = np.full(n_normals, np.float32(1e6))
        per_cell = np.ones(n_normals, np.float32)
        for k in range(n_normals):
            if abs(approach[d, k]) > (LEAST_APPROACH if k >= 3 else LEAST_APPROACH_OF_SIDES):
                ends[k] = hull[1 if approach[d, k] > 0.0 else 0, k]
                per_cell[k] = 1.0 / approach[d, k]
        rays = np.zeros((4, LANES), np.int32)
        totals = np.empty(LANES, np.float32)
        for first in range(begin, end, LANES):
            most = 0
            used = min(LANES, end - first)
            rays[3, used:] = 0
            for lane in range(used):
                i = first + lane
                length = np.float32(1e30)
                for k in range(n_normals):
                    length = min(length, (ends[k] - products[i, k]) * per_cell[k])
                count = int(max(length, np.float32(0.0)) * per_step + np.float32(0.5))
                rays[3, lane] = count
                most = max(most, count)
                for axis in range(3):
                    rays[axis, lane] = places[i, axis] + (steps[axis] >> 1)
            sum_along_rays(grid, depths, steps, rays, most, totals)
            for lane in range(used):
                transmission[d, first + lane] = math.exp(-totals[lane])


def march_transmission(
    volume: AttenuatingVolume, points: ArrayLike, directions: ArrayLike
) -> NDArray[np.float32]:
    """exp(-integral of mu) along marched rays.

    Parameters
    ----------
    volume : AttenuatingVolume
    points : array (n_points, 3)
        Where the rays start, voxel indices. It is faster if neighbours are close together.
    directions : array (n_directions, 3)
        Unit vectors of the tomo frame, away from the point.

    Returns
    -------
    array (n_directions, n_points) of float32
    """
    directions = np.asarray(directions, dtype=np.float64).reshape(-1, 3)
    coordinates = volume.grid_coordinates(points)
    transmission = np.empty((len(directions), len(coordinates)), dtype=np.float32)
    gradients = directions / volume.cell_um
    grid = volume.blocked_grid
    sides = np.array([np.ones(3), np.array(volume.grid.shape) - 1.0])
    _march(
        (grid.words, grid.pages),
        (volume.grid_counts * (volume.grid_unit_per_um * volume.step_um)).astype(np.float32),
        (coordinates * (1 << FIXED_POINT_BITS)).astype(np.int32),
        (coordinates @ PLANES.T).astype(np.float32),
        gradients,
        gradients @ PLANES.T,
        np.concatenate([sides, volume.hull], axis=1),
        volume.step_um,
        transmission,
    )
    return transmission


# ---- exact --------------------------------------------------------------------------------------


@njit(cache=True)
def _exact_ray(labels, lower, upper, x, y, z, gx, gy, gz, mu, lengths):  # type: ignore[no-untyped-def]
    """The optical depth from a point to the edge; adds the length in each label to lengths (n,).

    Coordinates are voxel indices + 1/2 (voxel i covers i to i + 1); g is the direction in voxels
    per um.
    """
    ix = min(max(int(math.floor(x)), lower[0]), upper[0] - 1)
    iy = min(max(int(math.floor(y)), lower[1]), upper[1] - 1)
    iz = min(max(int(math.floor(z)), lower[2]), upper[2] - 1)
    large = 1e30
    sx = 1 if gx > 0.0 else -1
    sy = 1 if gy > 0.0 else -1
    sz = 1 if gz > 0.0 else -1
    across_x = 1.0 / abs(gx) if gx != 0.0 else large
    across_y = 1.0 / abs(gy) if gy != 0.0 else large
    across_z = 1.0 / abs(gz) if gz != 0.0 else large
    next_x = ((ix + 1 - x) if gx > 0.0 else (x - ix)) * across_x if gx != 0.0 else large
    next_y = ((iy + 1 - y) if gy > 0.0 else (y - iy)) * across_y if gy != 0.0 else large
    next_z = ((iz + 1 - z) if gz > 0.0 else (z - iz)) * across_z if gz != 0.0 else large
    end_x = upper[0] if gx > 0.0 else lower[0] - 1
    end_y = upper[1] if gy > 0.0 else lower[1] - 1
    end_z = upper[2] if gz > 0.0 else lower[2] - 1
    keep = lengths.shape[0] > 0
    tau = 0.0
    here = 0.0
    while True:
        label = labels[ix, iy, iz]
        if next_x <= next_y and next_x <= next_z:
            length = next_x - here
            here = next_x
            next_x += across_x
            ix += sx
            outside = ix == end_x
        elif next_y <= next_z:
            length = next_y - here
            here = next_y
            next_y += across_y
            iy += sy
            outside = iy == end_y
        else:
            length = next_z - here
            here = next_z
            next_z += across_z
            iz += sz
            outside = iz == end_z
        tau += mu[label] * length
        if keep:
            lengths[label] += length
        if outside:
            return tau


@njit(parallel=True, cache=True)
def _exact_depths(labels, lower, upper, points, gradients, mu, depths, lengths):  # type: ignore[no-untyped-def]
    """Writes the optical depths and, where lengths has labels, the lengths of all rays."""
    n_points = points.shape[0]
    for task in prange(gradients.shape[0] * n_points):
        d = task // n_points
        i = task - d * n_points
        depths[d, i] = _exact_ray(
            labels,
            lower,
            upper,
            points[i, 0],
            points[i, 1],
            points[i, 2],
            gradients[d, 0],
            gradients[d, 1],
            gradients[d, 2],
            mu,
            lengths[d, i],
        )


def exact_path_lengths(
    volume: AttenuatingVolume, points: ArrayLike, directions: ArrayLike, n_labels: int
) -> tuple[FloatArray, FloatArray]:
    """Optical depths and path lengths in each material, by exact voxel traversal.

    Parameters
    ----------
    volume : AttenuatingVolume
    points : array (n_points, 3)
        Where the rays start, voxel indices.
    directions : array (n_directions, 3)
        Unit vectors of the tomo frame, away from the point.
    n_labels : int
        The number of labels.

    Returns
    -------
    depths : array (n_directions, n_points)
    lengths : array (n_directions, n_points, n_labels)
        um. Lengths outside the box in which mu is not zero are not counted.
    """
    directions = np.asarray(directions, dtype=np.float64).reshape(-1, 3)
    points = np.asarray(points, dtype=np.float64).reshape(-1, 3) + 0.5
    depths = np.empty((len(directions), len(points)))
    lengths = np.zeros((len(directions), len(points), n_labels))
    _exact_depths(
        volume.labels,
        volume.lower,
        volume.upper,
        points,
        directions / volume.voxel_size_um,
        volume.mu_per_um,
        depths,
        lengths,
    )
    return depths, lengths


@njit(parallel=True, cache=True)
def _line_lengths(labels, lower, upper, start, steps, gradients, lengths):  # type: ignore[no-untyped-def]
    """Writes the lengths (n_angles, n_lines, n_labels) of lines through start + steps."""
    n_lines = steps.shape[1]
    no_mu = np.zeros(256)
    n_tasks = (n_lines + POINTS_PER_TASK - 1) // POINTS_PER_TASK
    for task in prange(steps.shape[0] * n_tasks):
        d = task // n_tasks
        first = (task - d * n_tasks) * POINTS_PER_TASK
        in_label = np.zeros(lengths.shape[2])
        for i in range(first, min(first + POINTS_PER_TASK, n_lines)):
            # the stretch of the line, which runs in both senses from the given point, in the box
            enter = -1e30
            leave = 1e30
            for axis in range(3):
                g = gradients[d, axis]
                place = start[axis] + steps[d, i, axis]
                if g != 0.0:
                    a = (lower[axis] - place) / g
                    b = (upper[axis] - place) / g
                    enter = max(enter, min(a, b))
                    leave = min(leave, max(a, b))
                elif place < lower[axis] or place >= upper[axis]:
                    leave = -1e30
            in_label[:] = 0.0
            if leave > enter:
                _exact_ray(
                    labels,
                    lower,
                    upper,
                    start[0] + steps[d, i, 0] + enter * gradients[d, 0],
                    start[1] + steps[d, i, 1] + enter * gradients[d, 1],
                    start[2] + steps[d, i, 2] + enter * gradients[d, 2],
                    gradients[d, 0],
                    gradients[d, 1],
                    gradients[d, 2],
                    no_mu,
                    in_label,
                )
                in_label[0] = 0.0
            for label in range(lengths.shape[2]):
                lengths[d, i, label] = in_label[label]


def parallel_path_lengths(
    labels: LabelVolume, positions_um: ArrayLike, rotation_angles_deg: ArrayLike
) -> NDArray[np.float32]:
    """Path lengths of the rays of a parallel beam in each material, by exact voxel traversal.

    At the angle theta a point (x, y, z) of the sample is seen at (x, y cos(theta) - z sin(theta)).

    Parameters
    ----------
    labels : LabelVolume
    positions_um : array (n_positions, 2)
        Where the rays hit the detector, from the origin: along X (the rotation axis) and along Y of
        the tomo frame at rotation_angle = 0, um.
    rotation_angles_deg : array (n_angles,)
        The angles of the scan.

    Returns
    -------
    array (n_angles, n_positions, n_labels) of float32
        Lengths from one side of the volume to the other, um. Those in the background (label 0) are
        given as 0, since the ray is in it outside the volume, too.
    """
    positions = np.asarray(positions_um, dtype=np.float64).reshape(-1, 2)
    angles = np.asarray(rotation_angles_deg, dtype=np.float64).reshape(-1)
    to_sample = scan_rotation(angles).swapaxes(-1, -2)
    lengths = np.zeros((len(angles), len(positions), len(labels.names)), dtype=np.float32)
    lower, upper = label_bounds(labels.values, np.arange(256) > 0)
    if np.all(upper > lower):
        on_detector = np.column_stack([positions, np.zeros(len(positions))])
        _line_lengths(
            labels.values,
            lower,
            upper,
            labels.centre + 0.5,
            np.einsum("dij,nj->dni", to_sample, on_detector) / labels.voxel_size_um,
            -source_directions(angles) / labels.voxel_size_um,
            lengths,
        )
    return lengths


@njit(parallel=True, cache=True)
def _exact_sums(labels, lower, upper, points, weights, to_source, exits, mu, sums):  # type: ignore[no-untyped-def]
    """Writes the five sums of :func:`exact_transmission` for each reflection and task."""
    n_points = points.shape[0]
    n_tasks = (n_points + POINTS_PER_TASK - 1) // POINTS_PER_TASK
    none = np.zeros(0)
    for task in prange(to_source.shape[0] * n_tasks):
        h = task // n_tasks
        start = (task - h * n_tasks) * POINTS_PER_TASK
        total = 0.0
        weight = 0.0
        value_squares = 0.0
        value_weights = 0.0
        weight_squares = 0.0
        before = 0.0
        weight_before = 0.0
        for i in range(start, min(start + POINTS_PER_TASK, n_points)):
            w = weights[h % weights.shape[0], i]
            value = 0.0
            if w > 0.0:
                tau = 0.0
                for side in range(2):
                    g = to_source[h] if side == 0 else exits[h]
                    tau += _exact_ray(
                        labels,
                        lower,
                        upper,
                        points[i, 0],
                        points[i, 1],
                        points[i, 2],
                        g[0],
                        g[1],
                        g[2],
                        mu,
                        none,
                    )
                value = w * math.exp(-tau)
            total += value
            weight += w
            if (i - start) % 2 == 1:
                value_squares += (value - before) ** 2
                value_weights += (value - before) * (w - weight_before)
                weight_squares += (w - weight_before) ** 2
            before = value
            weight_before = w
        t = task - h * n_tasks
        sums[h, t, 0] = total
        sums[h, t, 1] = weight
        sums[h, t, 2] = value_squares
        sums[h, t, 3] = value_weights
        sums[h, t, 4] = weight_squares


def exact_transmission(
    volume: AttenuatingVolume,
    points: ArrayLike,
    to_source: ArrayLike,
    exit_directions: ArrayLike,
    weights: ArrayLike | None = None,
) -> tuple[FloatArray, FloatArray]:
    """A of reflections by exact traversal: sum_x w exp(-tau_in - tau_out) / sum_x w.

    Parameters
    ----------
    volume : AttenuatingVolume
    points : array (m, 3)
        Voxel indices, from :class:`anacor_dials.absorption.crystal_points.CrystalPoints`: points 2k
        and 2k + 1 come from the same part of the crystal.
    to_source, exit_directions : array (n, 3)
        Unit vectors of the tomo frame.
    weights : array (n, m) or (m,), optional
        Weights of the points; 1 by default.

    Returns
    -------
    transmission : array (n,)
    standard_error : array (n,)
        See :func:`ratio_error`.
    """
    points = np.asarray(points, dtype=np.float64).reshape(-1, 3) + 0.5
    to_source = np.asarray(to_source, dtype=np.float64).reshape(-1, 3) / volume.voxel_size_um
    exits = np.asarray(exit_directions, dtype=np.float64).reshape(-1, 3) / volume.voxel_size_um
    n_tasks = -(-len(points) // POINTS_PER_TASK)
    sums = np.zeros((len(to_source), n_tasks, 5))
    w = np.atleast_2d(np.ones(len(points)) if weights is None else np.asarray(weights, np.float64))
    _exact_sums(
        volume.labels,
        volume.lower,
        volume.upper,
        points,
        w,
        to_source,
        exits,
        volume.mu_per_um,
        sums,
    )
    total, weight, *squares = sums.sum(axis=1).T
    mean = total / np.maximum(weight, 1e-300)
    return mean, ratio_error(mean, weight, *squares)


def ratio_error(
    mean: Array, weight: Array, value_squares: Array, value_weights: Array, weight_squares: Array
) -> Array:
    """The standard error of a weighted mean A = sum f / sum w over pairs of points.

    The two points a, b of each pair come from one part of the crystal. By linearisation of the
    ratio (Cochran, Sampling Techniques, 1977, ch. 6), var A = sum (d_f - A d_w)^2 / (sum w)^2 with
    d = f_a - f_b or w_a - w_b.

    Parameters
    ----------
    mean : array
        A.
    weight : array
        sum w.
    value_squares, value_weights, weight_squares : array
        sum d_f^2, sum d_f d_w and sum d_w^2 over the pairs.
    """
    squares = value_squares - 2 * mean * value_weights + mean**2 * weight_squares
    return np.sqrt(np.maximum(squares, 0.0)) / np.maximum(weight, 1e-300)
