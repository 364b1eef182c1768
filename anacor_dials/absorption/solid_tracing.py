"""Rays in a convex solid of one material: exact paths to its faces, and stratified points in it.

From a point x inside, the length of a ray along g is min_i (d_i - n_i . x) / (n_i . g) over the
faces with n_i . g > 0. There are no voxels and no steps. The only errors of a transmission are
those of taking points instead of the whole crystal and of interpolation between directions.

Points are stratified along a curve, as those of voxels are (crystal_points). The solid is cut into
tetrahedra. Each tetrahedron is halved through the middle of its longest edge, so is each half, and
so on. The halves have equal volumes and become compact. Therefore the binary digits of a number
between 0 and 1, one for each halving, are an address in the tetrahedron, and equal lengths of this
interval are equal volumes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from anacor_dials.absorption.convex_solid import ConvexSolid
from anacor_dials.absorption.crystal_points import SampledPoints, stratified_places
from anacor_dials.absorption.engines import Engine
from anacor_dials.absorption.ray_tracing import ratio_error
from anacor_dials.sample.frames import FloatArray

HALVINGS = 40  # a point's part is then 1e-12 of its tetrahedron
LEAST_SLOPE = 1e-12  # n . g of faces that a ray along g never meets


@dataclass(frozen=True, eq=False)
class AttenuatingSolid:
    """A convex solid and its mu: what the engine of solids traces rays through."""

    solid: ConvexSolid
    mu_per_um: float

    def heights(self, points: ArrayLike) -> FloatArray:
        """The distances (n_faces, m) of points (m, 3), um, from the planes of the faces."""
        inside = np.asarray(points, dtype=np.float64).reshape(-1, 3)
        used = self.solid.areas_um2 > 0
        above = self.solid.normals[used] @ inside.T
        return np.ascontiguousarray(np.maximum(self.solid.distances_um[used, None] - above, 0.0))

    def slopes(self, directions: ArrayLike) -> FloatArray:
        """n . g (k, n_faces) of directions (k, 3)."""
        towards = np.asarray(directions, dtype=np.float64).reshape(-1, 3)
        return towards @ self.solid.normals[self.solid.areas_um2 > 0].T


class PlanesEngine:
    """Traces rays to the faces of a solid on all CPU cores; see :class:`engines.Engine`."""

    device = "cpu"
    xp: Any = np

    def to_numpy(self, array: Any) -> NDArray[Any]:
        """See :meth:`Engine.to_numpy`."""
        return np.asarray(array)

    def march_transmission(
        self, volume: AttenuatingSolid, points: ArrayLike, directions: ArrayLike
    ) -> NDArray[np.float32]:
        """See :meth:`Engine.march_transmission`; the paths are exact."""
        heights, slopes = volume.heights(points), volume.slopes(directions)
        result = np.empty((len(slopes), heights.shape[1]), dtype=np.float32)
        _transmissions(heights, slopes, volume.mu_per_um, result)
        return result

    def exact_transmission(
        self,
        volume: AttenuatingSolid,
        points: ArrayLike,
        to_source: ArrayLike,
        exit_directions: ArrayLike,
        weights: ArrayLike | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """See :meth:`Engine.exact_transmission`."""
        heights = volume.heights(points)
        n_points = heights.shape[1]
        w = np.atleast_2d(np.ones(n_points) if weights is None else np.asarray(weights, np.float64))
        slopes_in, slopes_out = volume.slopes(to_source), volume.slopes(exit_directions)
        sums = np.zeros((len(slopes_in), 5))
        _exact_sums(heights, slopes_in, slopes_out, volume.mu_per_um, w, sums)
        total, weight, *squares = sums.T
        mean = total / np.maximum(weight, 1e-300)
        return mean, ratio_error(mean, weight, *squares)


class SolidBody:
    """A crystal with plane faces and nothing around it.

    See :class:`anacor_dials.absorption.attenuating_body.AttenuatingBody`. Points are positions, um.
    The materials are the background (0) and the crystal (1).

    Parameters
    ----------
    solid : ConvexSolid
    mu_per_um : float
        1/um.
    """

    n_labels = 2
    has_plane_faces = True
    rays_cost_little = True
    # With 8192, the error of a crystal with A = 0.001 is 1.6 times as
    # large at the same number of points.
    importance_points = 65_536

    def __init__(self, solid: ConvexSolid, mu_per_um: float) -> None:
        self.engine: Engine = PlanesEngine()
        self.volume: Any = AttenuatingSolid(solid, float(mu_per_um))
        self._points = SolidPoints(solid)

    def draw(
        self, n: int, rng: np.random.Generator, importance: FloatArray | None = None
    ) -> SampledPoints:
        """See :meth:`SolidPoints.draw`."""
        return self._points.draw(n, rng, importance)

    def position_um(self, points: FloatArray) -> FloatArray:
        """The points themselves (m, 3), um."""
        return np.asarray(points, dtype=np.float64)

    def path_lengths(
        self, points: FloatArray, directions: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Optical depths (n, m) and lengths (n, m, 2), um, of the rays from points."""
        heights, slopes = self.volume.heights(points), self.volume.slopes(directions)
        lengths = np.zeros((len(slopes), heights.shape[1], 2))
        for row, slope in zip(lengths, slopes, strict=True):
            ahead = slope > LEAST_SLOPE
            row[:, 1] = (heights[ahead] / slope[ahead, None]).min(axis=0)
        return self.volume.mu_per_um * lengths[..., 1], lengths


class SolidPoints:
    """Draws stratified points from a convex solid."""

    def __init__(self, solid: ConvexSolid) -> None:
        corners = solid.tetrahedra()
        volumes = np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1])) / 6
        kept = volumes > 1e-12 * volumes.sum()
        # neighbours on the surface follow each other along the curve
        middle = corners[kept, 1:].mean(axis=1)
        order = np.lexsort((np.arctan2(middle[:, 1], middle[:, 0]), np.round(middle[:, 2], 6)))
        self._tetrahedra = np.ascontiguousarray(corners[kept][order])
        self._until = np.cumsum(volumes[kept][order])

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
        total = float(self._until[-1])
        places, weights = stratified_places(total, n, rng, importance)
        which = np.minimum(np.searchsorted(self._until, places, side="right"), len(self._until) - 1)
        before = np.where(which > 0, self._until[which - 1], 0.0)
        address = (places - before) / (self._until[which] - before)
        points = np.empty((n, 3))
        _points_at(self._tetrahedra, which, np.clip(address, 0.0, 1.0 - 1e-15), points)
        return SampledPoints(points, weights)


@njit(parallel=True, cache=True)
def _points_at(tetrahedra, which, address, points):  # type: ignore[no-untyped-def]
    """Writes the points (n, 3) at addresses (n,), 0 to 1, in tetrahedra which (n,)."""
    for i in prange(address.shape[0]):
        corner = tetrahedra[which[i]].copy()
        left = address[i]
        for _ in range(HALVINGS):
            longest = -1.0
            first = 0
            second = 1
            for a in range(3):
                for b in range(a + 1, 4):
                    dx = corner[a, 0] - corner[b, 0]
                    dy = corner[a, 1] - corner[b, 1]
                    dz = corner[a, 2] - corner[b, 2]
                    square = dx * dx + dy * dy + dz * dz
                    if square > longest:
                        longest = square
                        first = a
                        second = b
            left *= 2.0
            replaced = first
            if left >= 1.0:
                left -= 1.0
                replaced = second
            for axis in range(3):
                corner[replaced, axis] = 0.5 * (corner[first, axis] + corner[second, axis])
        for axis in range(3):
            points[i, axis] = 0.25 * (
                corner[0, axis] + corner[1, axis] + corner[2, axis] + corner[3, axis]
            )


@njit(inline="always")
def _depths(heights, slopes, mu, depths):  # type: ignore[no-untyped-def]
    """Writes the optical depths (m,) of rays in one direction, with n . g = slopes (n_faces,)."""
    depths[:] = np.inf
    for face in range(heights.shape[0]):
        if slopes[face] > LEAST_SLOPE:
            factor = mu / slopes[face]
            for i in range(depths.shape[0]):
                depths[i] = min(depths[i], factor * heights[face, i])


@njit(parallel=True, cache=True)
def _transmissions(heights, slopes, mu, result):  # type: ignore[no-untyped-def]
    for direction in prange(slopes.shape[0]):
        depths = np.empty(heights.shape[1])
        _depths(heights, slopes[direction], mu, depths)
        for i in range(depths.shape[0]):
            result[direction, i] = math.exp(-depths[i])


@njit(parallel=True, cache=True)
def _exact_sums(heights, slopes_in, slopes_out, mu, weights, sums):  # type: ignore[no-untyped-def]
    """Writes sum f, sum w, and the sums over pairs of d_f^2, d_f d_w, d_w^2 for each reflection."""
    for h in prange(slopes_in.shape[0]):
        depths_in = np.empty(heights.shape[1])
        depths_out = np.empty(heights.shape[1])
        _depths(heights, slopes_in[h], mu, depths_in)
        _depths(heights, slopes_out[h], mu, depths_out)
        before = 0.0
        weight_before = 0.0
        for i in range(depths_in.shape[0]):
            w = weights[h % weights.shape[0], i]
            value = w * math.exp(-depths_in[i] - depths_out[i])
            sums[h, 0] += value
            sums[h, 1] += w
            if i % 2 == 1:
                sums[h, 2] += (value - before) ** 2
                sums[h, 3] += (value - before) * (w - weight_before)
                sums[h, 4] += (w - weight_before) ** 2
            before = value
            weight_before = w
