"""A labelled volume with its mu, prepared for rays: the box that absorbs, and a grid of mean mu."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.volumes import LabelVolume

# Largest optical depth of one step of the march. At the boundary of the sample a ray is wrong by up
# to half a step, without bias; but the mean of exp(-tau) is then too large by 0.1 to 0.3 (mu
# step)^2, nearly equally for all reflections. factors.py divides by this common factor.
STEP_OPTICAL_DEPTH = 0.05
# A boundary is blurred by one cell, half a step: no more than the march itself is wrong there.
CELLS_PER_STEP = 2
# However weak the absorption, the thinnest extent of the crystal has so many cells: the blurred
# boundary is then at most 3 % of it.
CELLS_ACROSS_CRYSTAL = 32

# Positions along a marched ray are whole numbers of 2^-16 cells: in an int32, 15 bits are left for
# the cell. Two cells are the border.
FIXED_POINT_BITS = 16
LARGEST_AXIS = 2 ** (31 - FIXED_POINT_BITS) - 2
MOST_MATERIALS = 128  # the other 127 codes of a uint8 grid are levels of mean mu
COUNTS_FULL_SCALE = 2**20  # mu as a whole number: 1e-6 of the largest, and sums fit an int64
MOST_CELLS = 2**31  # pages are whole, and the number of a cell is a uint32
EMPTY = 255  # the code of a cell outside the box

# Beside the sides of the box, rays end where planes with these normals touch what absorbs: those of
# the edges and corners of a cube.
HULL_NORMALS = np.array(
    [
        (1, 1, 0), (1, -1, 0), (1, 0, 1), (1, 0, -1), (0, 1, 1),
        (0, 1, -1), (1, 1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1),
    ],
    dtype=np.float64,
)  # fmt: skip

# Cells that are near each other lie in one line of the cache (64 bytes), and these in one page of
# the memory: a march of scattered rays takes two thirds of the time that it takes through rows.
LINE_EDGE = 4
PAGE_EDGE = 16

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class BlockedGrid:
    """The codes of a grid, in cubes of PAGE_EDGE cells that consist of cubes of LINE_EDGE cells.

    Attributes
    ----------
    words : array (n,) of uint32
        Four codes each, the first in the lowest byte. In a page the cell (i, j, k) has the index
        line * LINE_EDGE**3 + inner; both are made from three indices as those of arrays are.
    pages : array (3,) of int32
        How many pages lie between neighbouring ones along x, y and z.
    """

    words: NDArray[np.uint32]
    pages: NDArray[np.int32]

    @classmethod
    def of(cls, grid: NDArray[np.uint8]) -> BlockedGrid:
        """The same cells as those of a grid (nx, ny, nz)."""
        pages_x, pages_y, pages_z = (-(-n // PAGE_EDGE) for n in grid.shape)
        page = PAGE_EDGE**3
        lines = PAGE_EDGE // LINE_EDGE
        between = np.array([pages_y * pages_z, pages_z, 1], dtype=np.int32)
        x, y, z = (
            (i // PAGE_EDGE * pages * page)
            + (i % PAGE_EDGE // LINE_EDGE) * stride * LINE_EDGE**3
            + (i % LINE_EDGE) * inner
            for i, pages, stride, inner in zip(
                [np.arange(n, dtype=np.uint64) for n in grid.shape],
                between.astype(np.uint64),
                (lines * lines, lines, 1),
                (LINE_EDGE * LINE_EDGE, LINE_EDGE, 1),
                strict=True,
            )
        )
        codes = np.full(pages_x * pages_y * pages_z * page, EMPTY, dtype=np.uint8)
        _fill_blocks(grid, x, y, z, codes)
        return cls(codes.view("<u4"), between)


@njit(parallel=True, cache=True)
def _fill_blocks(grid, x, y, z, codes):  # type: ignore[no-untyped-def]
    nx, ny, nz = grid.shape
    for i in prange(nx):
        for j in range(ny):
            row = grid[i, j]
            start = x[i] + y[j]
            for k in range(nz):
                codes[start + z[k]] = row[k]


@dataclass(frozen=True, eq=False)
class AttenuatingVolume:
    """A labelled volume and its mu, prepared for rays; made by :func:`prepare_volume`.

    Attributes
    ----------
    labels : array (nx, ny, nz) of uint8
    mu_per_um : array (256,)
        mu of each label, 1/um.
    voxel_size_um : array (3,)
        The size of a voxel, um.
    lower, upper : array (3,) of int
        The voxel indices between which mu is not zero, or crystal lies; upper is excluded.
    grid : array of uint8
        Codes of cells of ``binning`` voxels from lower to upper, with a border of one empty cell.
        The code of a cell that has one label is this label. Other cells have a code that stands for
        their mean mu: one of the levels above the labels.
    grid_counts : array (256,) of int
        Mean mu of each code, in units of grid_unit_per_um.
    grid_unit_per_um : float
        1/um.
    binning : array (3,) of int
        The number of voxels in a cell along each axis.
    step_um : float
        The step of the march, um.
    hull : array (2, n_normals)
        Nothing absorbs where the product of HULL_NORMALS and coordinates in the grid is below the
        first or above the second.
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
    hull: FloatArray

    def __repr__(self) -> str:
        return (
            f"AttenuatingVolume({' x '.join(map(str, self.labels.shape))} voxels, grid "
            f"{' x '.join(map(str, self.grid.shape))}, step {self.step_um:g} um)"
        )

    def grid_coordinates(self, points: ArrayLike) -> FloatArray:
        """Points (n, 3), given as voxel indices, in cells of the grid from its outer corner."""
        inner = (np.asarray(points, dtype=np.float64) + 0.5 - self.lower) / self.binning
        return inner + 1.0

    @cached_property
    def blocked_grid(self) -> BlockedGrid:
        """The grid in the order in which the CPU reads it."""
        return BlockedGrid.of(self.grid)

    @property
    def cell_um(self) -> FloatArray:
        """The size of a cell of the grid (3,), um."""
        return self.voxel_size_um * self.binning


def prepare_volume(
    labels: LabelVolume,
    mu_per_um: Sequence[float] | FloatArray,
    crystal: str = "crystal",
    step_optical_depth: float = STEP_OPTICAL_DEPTH,
) -> AttenuatingVolume:
    """The volume, with a grid of mean mu for
    :func:`anacor_dials.absorption.ray_tracing.march_transmission`.

    Parameters
    ----------
    labels : LabelVolume
    mu_per_um : array (n_labels,)
        mu of each of labels.names, 1/um.
    crystal : str
        The name of the label in which rays start.
    step_optical_depth : float
        The largest mu times the step of the march. A cell is at least one voxel and at most
        1 / CELLS_PER_STEP of a step.

    Raises
    ------
    ValueError
        If mu does not fit the labels, there is no crystal, or an axis is too long.
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
    crystal_lower, crystal_upper = label_bounds(
        labels.values, np.arange(256) == labels.label(crystal)
    )
    if np.any(crystal_upper <= crystal_lower):
        raise ValueError(f"No voxel of the volume is labelled {crystal!r}.")
    # rays start in the crystal: the box contains it even if its mu is zero
    lower, upper = label_bounds(
        labels.values, (table > 0) | (np.arange(256) == labels.label(crystal))
    )
    largest_mu = float(mu.max())
    thinnest = float(np.min((crystal_upper - crystal_lower) * labels.voxel_size_um))
    step = max(CELLS_PER_STEP * thinnest / CELLS_ACROSS_CRYSTAL, float(labels.voxel_size_um.min()))
    if largest_mu > 0:  # with strong absorption even less than a voxel
        step = min(step, step_optical_depth / largest_mu)
    cell = step / CELLS_PER_STEP
    binning = _binning(cell / labels.voxel_size_um, upper - lower)
    levels = np.arange(EMPTY - mu.size) / (EMPTY - 1 - mu.size) * largest_mu
    by_code = np.concatenate([mu, levels, [0.0]])
    unit = largest_mu / COUNTS_FULL_SCALE if largest_mu > 0 else 1.0
    grid = _code_grid(labels.values, by_code, mu.size, lower, upper, binning)
    counts = np.round(by_code / unit).astype(np.int64)
    return AttenuatingVolume(
        labels.values,
        table,
        labels.voxel_size_um,
        lower,
        upper,
        grid,
        counts,
        unit,
        binning,
        step,
        _hull(grid, counts > 0),
    )


def _binning(voxels_per_cell: FloatArray, extent: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whole voxels per cell (3,): no more than given, unless cells would be too many."""
    binning = np.maximum(1, np.floor(voxels_per_cell)).astype(np.int64)
    while math.prod((-(-extent // binning)).tolist()) > MOST_CELLS:
        binning += 1
    return binning


def _hull(grid: NDArray[np.uint8], filled: NDArray[np.bool_]) -> FloatArray:
    """The least and the largest product (2, n) of HULL_NORMALS and the corners of filled cells."""
    low, high = _plane_products(grid, filled, HULL_NORMALS)
    one_cell = np.maximum(HULL_NORMALS, 0).sum(axis=1), np.minimum(HULL_NORMALS, 0).sum(axis=1)
    return np.stack([low.min(axis=0) + one_cell[1], high.max(axis=0) + one_cell[0]])


@njit(parallel=True, cache=True)
def _plane_products(grid, filled, normals):  # type: ignore[no-untyped-def]
    """For every plane of x: bounds (nx, n_normals) of normals times the indices of filled cells."""
    nx, ny, nz = grid.shape
    n = normals.shape[0]
    low = np.full((nx, n), 1e30)
    high = np.full((nx, n), -1e30)
    for i in prange(nx):
        for j in range(ny):
            row = grid[i, j]
            first = 0
            while first < nz and not filled[row[first]]:
                first += 1
            if first == nz:
                continue
            last = nz - 1
            while not filled[row[last]]:
                last -= 1
            for k in range(n):
                aside = normals[k, 0] * i + normals[k, 1] * j
                a = aside + normals[k, 2] * first
                b = aside + normals[k, 2] * last
                low[i, k] = min(low[i, k], a, b)
                high[i, k] = max(high[i, k], a, b)
    return low, high


def label_bounds(labels: Array, wanted: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First index (3,), and last + 1, of the voxels with a label that is wanted (256,)."""
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
    """For every plane of x: the bounds along y and z (nx, 2) of the voxels with a wanted label."""
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
    """The codes of :class:`AttenuatingVolume`.grid; by_code: mu (256,) of each code."""
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
