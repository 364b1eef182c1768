"""Rays in solids of any shape and several materials, by the triangles of their surfaces.

There are no voxels and no steps: paths are exact for the triangles. The only errors of a
transmission are those of taking points instead of the whole crystal and of interpolation between
directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials.absorption import triangle_tree
from anacor_dials.absorption.closed_surface import SurfaceSample, joined
from anacor_dials.absorption.crystal_points import SampledPoints
from anacor_dials.absorption.engines import Engine
from anacor_dials.absorption.ray_tracing import ratio_error
from anacor_dials.absorption.surface_points import SurfacePoints
from anacor_dials.absorption.triangle_tree import MOST_CROSSINGS, TriangleTree
from anacor_dials.sample.frames import FloatArray


@dataclass(frozen=True, eq=False)
class AttenuatingSurfaces:
    """The surfaces of a sample and the mu of each label: what the engine traces rays through."""

    tree: TriangleTree
    mu_per_um: FloatArray


def attenuating_surfaces(sample: SurfaceSample, mu_per_um: ArrayLike) -> AttenuatingSurfaces:
    """The surfaces of all materials in one tree, with mu (n_labels,), 1/um."""
    all_of_them = joined(list(sample.surfaces))
    counts = [len(surface.triangles) for surface in sample.surfaces]
    owner = np.repeat(np.arange(1, len(counts) + 1), counts)
    tree = TriangleTree.of(all_of_them.vertices, all_of_them.triangles, owner)
    return AttenuatingSurfaces(tree, np.asarray(mu_per_um, dtype=np.float64))


class SurfacesEngine:
    """Traces rays through triangles on all CPU cores; see :class:`engines.Engine`."""

    device = "cpu"
    xp: Any = np

    def to_numpy(self, array: Any) -> NDArray[Any]:
        """See :meth:`Engine.to_numpy`."""
        return np.asarray(array)

    def march_transmission(
        self, volume: AttenuatingSurfaces, points: ArrayLike, directions: ArrayLike
    ) -> NDArray[np.float32]:
        """See :meth:`Engine.march_transmission`; the paths are exact."""
        start, towards = _rows(points), _rows(directions)
        result = np.empty((len(towards), len(start)), dtype=np.float32)
        triangle_tree.transmissions(volume.tree.arrays, volume.mu_per_um, start, towards, result)
        _require_numbers(result)
        return result

    def exact_transmission(
        self,
        volume: AttenuatingSurfaces,
        points: ArrayLike,
        to_source: ArrayLike,
        exit_directions: ArrayLike,
        weights: ArrayLike | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """See :meth:`Engine.exact_transmission`."""
        start = _rows(points)
        w = np.atleast_2d(
            np.ones(len(start)) if weights is None else np.asarray(weights, np.float64)
        )
        source, exits = _rows(to_source), _rows(exit_directions)
        sums = np.zeros((len(source), 5))
        triangle_tree.exact_sums(
            volume.tree.arrays, volume.mu_per_um, start, source, exits, w, sums
        )
        _require_numbers(sums)
        total, weight, *squares = sums.T
        mean = total / np.maximum(weight, 1e-300)
        return mean, ratio_error(mean, weight, *squares)


class SurfaceBody:
    """A sample of solids of any shape.

    See :class:`anacor_dials.absorption.attenuating_body.AttenuatingBody`. Points are positions, um.

    Parameters
    ----------
    sample : SurfaceSample
    mu_per_um : array (n_labels,)
        1/um.
    """

    has_plane_faces = True  # of some size
    rays_cost_little = False
    importance_points = 8192

    def __init__(self, sample: SurfaceSample, mu_per_um: ArrayLike) -> None:
        self.engine: Engine = SurfacesEngine()
        self.volume: Any = attenuating_surfaces(sample, mu_per_um)
        self.n_labels = len(sample.names)
        self._points = SurfacePoints(sample.crystal)

    def draw(
        self, n: int, rng: np.random.Generator, importance: FloatArray | None = None
    ) -> SampledPoints:
        """See :meth:`SurfacePoints.draw`."""
        return self._points.draw(n, rng, importance)

    def position_um(self, points: FloatArray) -> FloatArray:
        """The points themselves (m, 3), um."""
        return np.asarray(points, dtype=np.float64)

    def path_lengths(
        self, points: FloatArray, directions: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Optical depths (n, m) and lengths (n, m, n_labels), um, of the rays from points."""
        return path_lengths(self.volume, points, directions)


def path_lengths(
    volume: AttenuatingSurfaces, points: ArrayLike, directions: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Optical depths (n, m) and lengths (n, m, n_labels), um, of rays to the outside.

    Parameters
    ----------
    volume : AttenuatingSurfaces
    points : array (m, 3)
        Where the rays start, um.
    directions : array (n, 3)
        Unit vectors.

    Raises
    ------
    ValueError
        If a ray crosses more surfaces than can be sorted.
    """
    start, towards = _rows(points), _rows(directions)
    depths = np.empty((len(towards), len(start)))
    lengths = np.zeros((*depths.shape, len(volume.mu_per_um)))
    triangle_tree.depths_and_lengths(
        volume.tree.arrays, volume.mu_per_um, start, towards, depths, lengths
    )
    _require_numbers(depths)
    return depths, lengths


def _rows(vectors: ArrayLike) -> FloatArray:
    return np.ascontiguousarray(np.asarray(vectors, dtype=np.float64).reshape(-1, 3))


def _require_numbers(values: NDArray[Any]) -> None:
    if np.isnan(values).any():
        raise ValueError(
            f"A ray crosses the surfaces of the meshes more than {MOST_CROSSINGS} times; give simpler meshes."
        )
