"""Optical depths along rays through a labelled sample, on the CPU.

A ray starts at a point of the crystal and runs straight to the edge of the volume. Two ways to sum
mu along it:

* **exact**: every voxel that the ray crosses contributes mu times the length in it (Amanatides & Woo,
  Eurographics 1987), in float64 through the labels themselves. The reference.
* **march**: mu is sampled at equal steps along the ray, at the middle of each, in a grid of mean mu.
  Where a ray meets a boundary the error is at most half a step times the change of mu, of either
  sign; it averages out over the points of the crystal. Four to ten times faster.

Points are fractional voxel indices (voxel i covers i - 1/2 to i + 1/2), directions unit vectors of
the tomo frame, pointing away from the crystal; lengths in um, mu in 1/um.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.frames import FloatArray, scan_rotation, source_directions
from anacor_dials.sample.volumes import LabelVolume

# Optical depth of one step of the march. Where a ray leaves the sample it is off by up to half a step:
# without bias, but the mean of exp(-tau) then is too large by 0.1 to 0.3 (mu step)^2, nearly the same
# for all reflections; factors.py takes that out.
STEP_OPTICAL_DEPTH = 0.05
CELLS_PER_STEP = 2
# however weak the absorption, the crystal's thinnest direction is resolved by so many cells
CELLS_ACROSS_CRYSTAL = 32

FIXED_POINT_BITS = 16
LARGEST_AXIS = 2 ** (31 - FIXED_POINT_BITS) - 2
POINTS_PER_TASK = 512
MOST_MATERIALS = 128  # the other codes of a uint8 grid are levels of mean mu
COUNTS_FULL_SCALE = 2**20
EMPTY = 255

DEVICE = "cpu"
xp = np  # the array module of what march_transmission returns

Array = NDArray[Any]


def to_numpy(array: Array) -> Array:
    """The array in the host's memory, where it is already."""
    return array


@dataclass(frozen=True, eq=False)
class AttenuatingVolume:
    """A labelled volume and its mu, prepared for rays; made by :func:`prepare_volume`.

    labels: uint8 (nx, ny, nz). mu_per_um: float64 (256,) by label. lower, upper: voxel indices
    (3,) between which mu is not zero. voxel_size_um: (3,).
    grid: uint8 codes of cells of ``binning`` voxels between lower and upper, with a border of empty
    cells, one wide; grid_counts: int64 (256,), mean mu by code in units of grid_unit_per_um. Cells of
    one material have its label as code, others one of the levels above the labels.
    step_um: the march's step.
    """

    labels: NDArray[np.uint8]
    mu_per_um: FloatArray
    voxel_size_um: FloatArray
    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    grid: NDArray[np.uint8]
    grid_counts: NDArray[np.int64]
    grid_unit_per_um: float
    binning: NDArray[np.int64]
    step_um: float

    def __repr__(self) -> str:
        return (
            f"AttenuatingVolume({' x '.join(map(str, self.labels.shape))} voxels, grid "
            f"{' x '.join(map(str, self.grid.shape))}, step {self.step_um:g} um)"
        )

    def grid_coordinates(self, points: ArrayLike) -> FloatArray:
        """Points (n, 3) in cells of the grid, measured from its outer corner."""
        inner = (np.asarray(points, dtype=np.float64) + 0.5 - self.lower) / self.binning
        return inner + 1.0

    @property
    def cell_um(self) -> FloatArray:
        return self.voxel_size_um * self.binning


def use_threads(nproc: int | None) -> int:
    """Sets the number of threads of all CPU rays (None: all cores) and returns it."""
    largest = int(numba.config.NUMBA_NUM_THREADS)
    if nproc is not None and nproc < 1:
        raise ValueError(f"nproc is {nproc}; it must be at least 1.")
    n = largest if nproc is None else min(nproc, largest)
    numba.set_num_threads(n)
    return n


def prepare_volume(
    labels: LabelVolume,
    mu_per_um: Sequence[float] | FloatArray,
    crystal: str = "crystal",
    step_optical_depth: float = STEP_OPTICAL_DEPTH,
) -> AttenuatingVolume:
    """The volume with the grid of mean mu that :func:`march_transmission` runs through.

    mu_per_um: 1/um by label, as many as labels.names. step_optical_depth: largest mu times the step;
    cells are as large as CELLS_PER_STEP of them in a step allow, and at least one voxel.
    Raises ValueError where mu does not fit the labels, the crystal is absent, or an axis is too long.
    """
    mu = np.asarray(mu_per_um, dtype=np.float64)
    if mu.shape != (len(labels.names),) or not np.all(np.isfinite(mu)) or mu.min() < 0:
        raise ValueError(
            f"mu is {mu.tolist()} /um for the materials {', '.join(labels.names)}; "
            "one finite value >= 0 is needed for each."
        )
    if mu.size > MOST_MATERIALS:
        raise ValueError(
            f"The volume has {mu.size} materials; at most {MOST_MATERIALS} are possible."
        )
    if max(labels.shape) > LARGEST_AXIS:
        raise ValueError(f"A volume of {labels.shape} voxels is too long; crop or bin it.")
    table = np.zeros(256)
    table[: mu.size] = mu
    crystal_lower, crystal_upper = _bounds(labels.values, np.arange(256) == labels.label(crystal))
    if np.any(crystal_upper <= crystal_lower):
        raise ValueError(f"No voxel of the volume is labelled {crystal!r}.")
    # rays start in the crystal: the box holds it even where its mu is zero
    lower, upper = _bounds(labels.values, (table > 0) | (np.arange(256) == labels.label(crystal)))
    largest_mu = float(mu.max())
    thinnest = float(np.min((crystal_upper - crystal_lower) * labels.voxel_size_um))
    step = max(CELLS_PER_STEP * thinnest / CELLS_ACROSS_CRYSTAL, float(labels.voxel_size_um.min()))
    if largest_mu > 0:  # below a voxel, too, where absorption is as strong as that
        step = min(step, step_optical_depth / largest_mu)
    cell = step / CELLS_PER_STEP
    binning = np.maximum(1, np.floor(cell / labels.voxel_size_um)).astype(np.int64)
    levels = np.arange(EMPTY - mu.size) / (EMPTY - 1 - mu.size) * largest_mu
    by_code = np.concatenate([mu, levels, [0.0]])
    unit = largest_mu / COUNTS_FULL_SCALE if largest_mu > 0 else 1.0
    grid = _code_grid(labels.values, by_code, mu.size, lower, upper, binning)
    counts = np.round(by_code / unit).astype(np.int64)
    return AttenuatingVolume(
        labels.values, table, labels.voxel_size_um, lower, upper, grid, counts, unit, binning, step
    )


def _bounds(labels: Array, wanted: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and one past the last index (3,) of the voxels whose label is wanted (256,)."""
    low, high = _plane_bounds(labels, wanted)
    inside = high > low
    if not inside.any():
        return np.zeros(3, np.int64), np.zeros(3, np.int64)
    x = np.flatnonzero(inside.any(axis=1))
    lower = np.array([x[0], low[:, 0][inside[:, 0]].min(), low[:, 1][inside[:, 1]].min()])
    upper = np.array([x[-1] + 1, high[:, 0].max(), high[:, 1].max()])
    return lower.astype(np.int64), upper.astype(np.int64)


@njit(parallel=True, cache=True)
def _plane_bounds(labels, wanted):  # type: ignore[no-untyped-def]
    nx, ny, nz = labels.shape
    low = np.full((nx, 2), 2**31 - 1, dtype=np.int64)
    high = np.zeros((nx, 2), dtype=np.int64)
    for i in prange(nx):
        for j in range(ny):
            row = labels[i, j]
            first = -1
            for k in range(nz):
                if wanted[row[k]]:
                    first = k
                    break
            if first < 0:
                continue
            last = first
            for k in range(nz - 1, first - 1, -1):
                if wanted[row[k]]:
                    last = k
                    break
            low[i, 0] = min(low[i, 0], j)
            high[i, 0] = max(high[i, 0], j + 1)
            low[i, 1] = min(low[i, 1], first)
            high[i, 1] = max(high[i, 1], last + 1)
    return low, high


@njit(parallel=True, cache=True)
def _code_grid(labels, by_code, n_labels, lower, upper, binning):  # type: ignore[no-untyped-def]
    bx, by, bz = binning
    cx = (upper[0] - lower[0] + bx - 1) // bx
    cy = (upper[1] - lower[1] + by - 1) // by
    cz = (upper[2] - lower[2] + bz - 1) // bz
    grid = np.full((cx + 2, cy + 2, cz + 2), EMPTY, dtype=np.uint8)
    cell_volume = bx * by * bz
    top_level = EMPTY - 1
    levels_per_mu = (top_level - n_labels) / max(by_code[top_level], 1e-300)
    for a in prange(cx):
        x0 = lower[0] + a * bx
        x1 = min(x0 + bx, upper[0])
        for b in range(cy):
            y0 = lower[1] + b * by
            y1 = min(y0 + by, upper[1])
            for c in range(cz):
                z0 = lower[2] + c * bz
                z1 = min(z0 + bz, upper[2])
                first = labels[x0, y0, z0]
                pure = (x1 - x0) * (y1 - y0) * (z1 - z0) == cell_volume
                total = 0.0
                for x in range(x0, x1):
                    for y in range(y0, y1):
                        for z in range(z0, z1):
                            label = labels[x, y, z]
                            pure = pure and label == first
                            total += by_code[label]
                if pure:
                    grid[a + 1, b + 1, c + 1] = first
                else:
                    level = int(total / cell_volume * levels_per_mu + 0.5)
                    grid[a + 1, b + 1, c + 1] = n_labels + level
    return grid


# ---- march --------------------------------------------------------------------------------------


@njit(inline="always")
def _length_to_edge(x, y, z, gx, gy, gz, lx, ly, lz, ux, uy, uz):  # type: ignore[no-untyped-def]
    """Length from a point to where a ray leaves the box; g is the direction in cells per length."""
    length = 1e30
    if gx > 0.0:
        length = min(length, (ux - x) / gx)
    elif gx < 0.0:
        length = min(length, (lx - x) / gx)
    if gy > 0.0:
        length = min(length, (uy - y) / gy)
    elif gy < 0.0:
        length = min(length, (ly - y) / gy)
    if gz > 0.0:
        length = min(length, (uz - z) / gz)
    elif gz < 0.0:
        length = min(length, (lz - z) / gz)
    return max(length, 0.0)


@njit(parallel=True, fastmath=True, cache=True)
def _march(grid, counts, points, gradients, step, tau_per_count, transmission):  # type: ignore[no-untyped-def]
    nx, ny, nz = grid.shape
    flat = grid.ravel()
    stride_x = np.uint64(ny * nz)
    stride_y = np.uint64(nz)
    n_points = points.shape[0]
    n_tasks = (n_points + POINTS_PER_TASK - 1) // POINTS_PER_TASK
    one = 1 << FIXED_POINT_BITS
    # tasks of one direction follow each other: rays of neighbouring points share the cache
    for task in prange(gradients.shape[0] * n_tasks):
        d = task // n_tasks
        start = (task - d * n_tasks) * POINTS_PER_TASK
        gx = gradients[d, 0]
        gy = gradients[d, 1]
        gz = gradients[d, 2]
        step_x = int(round(gx * step * one))
        step_y = int(round(gy * step * one))
        step_z = int(round(gz * step * one))
        for i in range(start, min(start + POINTS_PER_TASK, n_points)):
            x = points[i, 0]
            y = points[i, 1]
            z = points[i, 2]
            length = _length_to_edge(
                x, y, z, gx, gy, gz, 1.0, 1.0, 1.0, nx - 1.0, ny - 1.0, nz - 1.0
            )
            count = int(length / step + 0.5)
            fx = int(x * one) + (step_x >> 1)
            fy = int(y * one) + (step_y >> 1)
            fz = int(z * one) + (step_z >> 1)
            total = 0
            for _ in range(count):
                # unsigned, or numba looks whether the index counts from the end
                cell = (
                    np.uint64(fx >> FIXED_POINT_BITS) * stride_x
                    + np.uint64(fy >> FIXED_POINT_BITS) * stride_y
                    + np.uint64(fz >> FIXED_POINT_BITS)
                )
                total += counts[flat[cell]]
                fx += step_x
                fy += step_y
                fz += step_z
            transmission[d, i] = math.exp(-tau_per_count * total)


def march_transmission(
    volume: AttenuatingVolume, points: ArrayLike, directions: ArrayLike
) -> NDArray[np.float32]:
    """exp(-integral of mu) (n_directions, n_points), float32, along marched rays.

    points: (n, 3) voxel indices, neighbours close together for speed; directions: (m, 3) unit
    vectors of the tomo frame, away from the point.
    """
    directions = np.asarray(directions, dtype=np.float64).reshape(-1, 3)
    coordinates = volume.grid_coordinates(points)
    transmission = np.empty((len(directions), len(coordinates)), dtype=np.float32)
    _march(
        volume.grid,
        volume.grid_counts,
        coordinates,
        directions / volume.cell_um,
        volume.step_um,
        volume.grid_unit_per_um * volume.step_um,
        transmission,
    )
    return transmission


# ---- exact --------------------------------------------------------------------------------------


@njit(cache=True)
def _exact_ray(labels, lower, upper, x, y, z, gx, gy, gz, mu, lengths):  # type: ignore[no-untyped-def]
    """Optical depth from a point to the edge; adds the length in each label to lengths (n,).

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


def exact_optical_depth(
    volume: AttenuatingVolume, points: ArrayLike, directions: ArrayLike
) -> FloatArray:
    """Integral of mu (n_directions, n_points), float64, by exact voxel traversal."""
    return exact_path_lengths(volume, points, directions, n_labels=0)[0]


def exact_path_lengths(
    volume: AttenuatingVolume, points: ArrayLike, directions: ArrayLike, n_labels: int
) -> tuple[FloatArray, FloatArray]:
    """Optical depths (n_directions, n_points) and um in each label (n_directions, n_points, n_labels).

    Lengths in materials outside the box in which mu is not zero are not counted.
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
    n_lines = steps.shape[1]
    no_mu = np.zeros(256)
    n_tasks = (n_lines + POINTS_PER_TASK - 1) // POINTS_PER_TASK
    for task in prange(steps.shape[0] * n_tasks):
        d = task // n_tasks
        first = (task - d * n_tasks) * POINTS_PER_TASK
        in_label = np.zeros(lengths.shape[2])
        for i in range(first, min(first + POINTS_PER_TASK, n_lines)):
            # where the line, running both ways from the given point, is in the box
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
    """Lengths (n_angles, n_positions, n_labels) in um of a parallel beam's rays in each material.

    positions_um: (n_positions, 2), where rays meet the detector, along X (the rotation axis) and along
    Y at rotation_angle = 0, from the origin; rotation_angles_deg: (n_angles,) of the scan. At the angle
    theta a point (x, y, z) of the sample is seen at (x, y cos(theta) - z sin(theta)). By exact voxel
    traversal in float64, from one side of the volume to the other. The background's lengths (label 0)
    are 0: the beam is in it before and after.
    """
    positions = np.asarray(positions_um, dtype=np.float64).reshape(-1, 2)
    angles = np.asarray(rotation_angles_deg, dtype=np.float64).reshape(-1)
    to_sample = scan_rotation(angles).swapaxes(-1, -2)
    lengths = np.zeros((len(angles), len(positions), len(labels.names)), dtype=np.float32)
    lower, upper = _bounds(labels.values, np.arange(256) > 0)
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
    """A (n,) of reflections by exact traversal from all points, and its standard error (n,).

    A = sum_x w exp(-tau_in - tau_out) / sum_x w. points: (m, 3) voxel indices from
    :class:`anacor_dials.absorption.crystal_points.CrystalPoints`; to_source, exit_directions: (n, 3);
    weights: (n, m), (m,) or None for 1. Points 2k and 2k + 1 come from the same part of the crystal, which gives
    the standard error: see :func:`ratio_error`.
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

    The pairs (a, b) each come from one part of the crystal. By linearisation of the ratio (Cochran,
    1977, ch. 6), var A = sum (d_f - A d_w)^2 / (sum w)^2 with d = a - b; value_squares: sum d_f^2,
    value_weights: sum d_f d_w, weight_squares: sum d_w^2.
    """
    squares = value_squares - 2 * mean * value_weights + mean**2 * weight_squares
    return np.sqrt(np.maximum(squares, 0.0)) / np.maximum(weight, 1e-300)
