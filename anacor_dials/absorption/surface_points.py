"""Stratified points in a solid of any shape that closed surfaces of triangles enclose.

The box around the solid, in its principal axes, is divided into cells. How much of each cell the
solid fills is computed exactly: the length of the solid along a line in a cell is the sum of the
clamped heights of the triangles above it, with the sign of their normals, and each triangle is cut
to the column of the cell, in which its height is linear (the divergence theorem). The parts of the
solid are stretches of a Hilbert curve through the cells, of equal volume of the solid (see
crystal_points). Within a full cell the curve goes on, so that many points are stratified as well.
In a cell at the surface a point is drawn until it falls into the solid.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from anacor_dials.absorption.closed_surface import THROUGH, ClosedSurface
from anacor_dials.absorption.crystal_points import (
    SampledPoints,
    hilbert_cells,
    hilbert_codes,
    stratified_places,
)
from anacor_dials.absorption.triangle_tree import TriangleTree, inside
from anacor_dials.sample.frames import FloatArray

CELLS = 65_536  # that the volume of the solid would fill
MOST_CELLS = 2e7  # of the box around it; limits memory
LEAST_SHARE = 1e-3  # of a cell: less is left out, below 1e-5 of the volume in all
OVERLAP = 1e-6  # a cell that is filled more than once by this share has overlapping solids
SPLIT_BITS = 5  # a full cell has 32 x 32 x 32 places along the curve
CANDIDATES = 20_000  # places that are tried together


class SurfacePoints:
    """Draws stratified points from a solid.

    Parameters
    ----------
    surface : ClosedSurface

    Raises
    ------
    ValueError
        If solids of the surface overlap each other, or one of them is inside out.
    """

    def __init__(self, surface: ClosedSurface) -> None:
        used = np.unique(surface.triangles)
        self._middle = surface.vertices[used].mean(axis=0)
        _, axes = np.linalg.eigh(np.cov((surface.vertices[used] - self._middle).T))
        self._axes = axes * np.sign(np.linalg.det(axes))  # right-handed: outside stays outside
        corners = (surface.vertices - self._middle) @ self._axes
        self._low = corners[used].min(axis=0)
        extent = np.maximum(np.ptp(corners[used], axis=0), 1e-9)
        edge = max(surface.volume_um3 / CELLS, float(extent.prod()) / MOST_CELLS) ** (1 / 3)
        shape = np.maximum(np.ceil(extent / edge).astype(np.int64), 1)
        self._step = extent / shape
        filled = np.zeros(shape)
        _fill(corners - self._low, surface.triangles, self._step, filled)
        share = filled / self._step.prod()
        if share.max() > 1 + OVERLAP or share.min() < -OVERLAP:
            raise ValueError(
                "solids of the crystal's mesh overlap each other, or one of them is inside out. Unite them, and "
                "recalculate normals (in Blender: the modifier Boolean > Union)."
            )
        cells = np.argwhere(share > LEAST_SHARE)
        bits = max(1, int(shape.max() - 1).bit_length())
        self._cells = cells[np.argsort(hilbert_codes(cells, bits), kind="stable")]
        share = share[tuple(self._cells.T)]
        self._is_full = share > 1 - OVERLAP
        self._share, self._until = share, np.cumsum(share)
        owner = np.ones(len(surface.triangles), dtype=np.int64)
        self._tree = TriangleTree.of(corners, surface.triangles, owner).arrays

    def draw(
        self, n: int, rng: np.random.Generator, importance: FloatArray | None = None
    ) -> SampledPoints:
        """n points, two from each of n/2 parts of the solid.

        Parameters
        ----------
        n : int
            An even number.
        rng : numpy.random.Generator
        importance : array (k,), optional
            The relative density of points in k stretches of equal volume along the curve, all > 0.
            By default it is constant.
        """
        places, weights = stratified_places(float(self._until[-1]), n, rng, importance)
        which = np.minimum(np.searchsorted(self._until, places, side="right"), len(self._until) - 1)
        low = self._low + self._cells[which] * self._step
        chance = rng.random((n, 3))
        full = self._is_full[which]
        passed = 1 - (self._until[which] - places) / self._share[which]  # of the cell
        code = np.clip(passed[full] * 8**SPLIT_BITS, 0, 8**SPLIT_BITS - 1).astype(np.int64)
        chance[full] = (hilbert_cells(code, SPLIT_BITS) + chance[full]) / 2**SPLIT_BITS
        points = low + chance * self._step
        left = np.flatnonzero(~full)
        left = left[~self._inside(points[left])]
        while len(left):
            tries = min(max(CANDIDATES // len(left), 1), 1000)
            candidates = low[left, None] + rng.random((len(left), tries, 3)) * self._step
            hit = self._inside(candidates.reshape(-1, 3)).reshape(len(left), tries)
            found = hit.any(axis=1)
            points[left[found]] = candidates[found, hit[found].argmax(axis=1)]
            left = left[~found]
        return SampledPoints(points @ self._axes.T + self._middle, weights)

    def _inside(self, points: FloatArray) -> NDArray[np.bool_]:
        found = np.empty(len(points), dtype=np.bool_)
        inside(self._tree, np.ascontiguousarray(points), THROUGH, 1, found)
        return found


@njit(cache=True)
def _cut(polygon, n, axis, at, above, result):  # type: ignore[no-untyped-def]
    """Writes the part of a polygon (n, 3) above or below a plane, and returns its corners' number.

    Sutherland & Hodgman, Comm. ACM 17 (1974) 32.
    """
    m = 0
    for k in range(n):
        here = polygon[k]
        following = polygon[(k + 1) % n]
        a = here[axis] - at if above else at - here[axis]
        b = following[axis] - at if above else at - following[axis]
        if a >= 0:
            result[m] = here
            m += 1
        if (a > 0 and b < 0) or (a < 0 and b > 0):
            for i in range(3):
                result[m, i] = here[i] + (following[i] - here[i]) * (a / (a - b))
            result[m, axis] = at
            m += 1
    return m


@njit(cache=True)
def _volume_above(polygon, n, level):  # type: ignore[no-untyped-def]
    """The signed volume between a polygon (n, 3) and the plane x = level: along x, over (y, z)."""
    total = 0.0
    for k in range(1, n - 1):
        ay, az = polygon[k, 1] - polygon[0, 1], polygon[k, 2] - polygon[0, 2]
        by, bz = polygon[k + 1, 1] - polygon[0, 1], polygon[k + 1, 2] - polygon[0, 2]
        height = (polygon[0, 0] + polygon[k, 0] + polygon[k + 1, 0]) / 3 - level
        total += 0.5 * (ay * bz - az * by) * height
    return total


@njit(cache=True)
def _area(polygon, n):  # type: ignore[no-untyped-def]
    """The signed area of a polygon (n, 3) over (y, z)."""
    total = 0.0
    for k in range(1, n - 1):
        ay, az = polygon[k, 1] - polygon[0, 1], polygon[k, 2] - polygon[0, 2]
        by, bz = polygon[k + 1, 1] - polygon[0, 1], polygon[k + 1, 2] - polygon[0, 2]
        total += 0.5 * (ay * bz - az * by)
    return total


@njit(cache=True)
def _fill(corners, triangles, step, filled):  # type: ignore[no-untyped-def]
    """Writes the volume of a solid in each cell (nx, ny, nz); cells begin at 0, with edges step."""
    nx, ny, nz = filled.shape
    one = np.empty((16, 3))
    other = np.empty((16, 3))
    column = np.empty((16, 3))
    above = np.empty((16, 3))
    for t in range(triangles.shape[0]):
        p = corners[triangles[t]]
        j0 = max(0, int(np.floor(p[:, 1].min() / step[1])))
        j1 = min(ny - 1, int(np.floor(p[:, 1].max() / step[1])))
        k0 = max(0, int(np.floor(p[:, 2].min() / step[2])))
        k1 = min(nz - 1, int(np.floor(p[:, 2].max() / step[2])))
        for j in range(j0, j1 + 1):
            n_one = _cut(p, 3, 1, j * step[1], True, other) if j > j0 else 3
            if j > j0:
                one[:n_one] = other[:n_one]
            else:
                one[:3] = p
            n_one = _cut(one, n_one, 1, (j + 1) * step[1], False, other) if j < j1 else n_one
            if j < j1:
                one[:n_one] = other[:n_one]
            for k in range(k0, k1 + 1):
                n = n_one
                column[:n] = one[:n]
                if k > k0:
                    n = _cut(column, n, 2, k * step[2], True, other)
                    column[:n] = other[:n]
                if k < k1:
                    n = _cut(column, n, 2, (k + 1) * step[2], False, other)
                    column[:n] = other[:n]
                if n < 3:
                    continue
                low = column[0, 0]
                high = column[0, 0]
                for i in range(1, n):
                    low = min(low, column[i, 0])
                    high = max(high, column[i, 0])
                i0 = min(max(0, int(np.floor(low / step[0]))), nx - 1)
                i1 = min(max(0, int(np.floor(high / step[0]))), nx - 1)
                for i in range(i0):  # it lies above all of these cells
                    filled[i, j, k] += _area(column, n) * step[0]
                beyond = _volume_above(column, n, i0 * step[0])
                for i in range(i0, i1 + 1):
                    rest = 0.0
                    if i < i1:
                        m = _cut(column, n, 0, (i + 1) * step[0], True, above)
                        rest = _volume_above(above, m, (i + 1) * step[0])
                    filled[i, j, k] += beyond - rest
                    beyond = rest
