"""Solids of any shape by the triangles of their surfaces, and samples that are made of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from anacor_dials.absorption.convex_solid import smallest_box_um
from anacor_dials.absorption.triangle_tree import TriangleTree, inside
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.surface_files import read_triangles

CRYSTAL, LIQUOR = "crystal", "liquor"
# Crystals for X-rays; what lies outside is in another unit.
SMALLEST_CRYSTAL_UM, LARGEST_CRYSTAL_UM = 0.5, 10_000.0
MOST_SIDES = 60  # that the smallest box is tried on, the largest ones; limits time
# Of rays that tell inside from outside; along no edge or face of a drawn solid.
THROUGH = np.array([0.5377, 0.2611, 0.8016])


@dataclass(frozen=True, eq=False)
class ClosedSurface:
    """The solids that closed surfaces of triangles enclose.

    A solid may be concave and hollow, and there may be several of them.

    Parameters
    ----------
    vertices : array (n, 3)
        um.
    triangles : array (m, 3) of int
        The vertices of each triangle. Neighbours run along their common edge in opposite
        directions. If they run clockwise as seen from outside, they are turned.

    Raises
    ------
    ValueError
        If the surface is open, or encloses no volume.
    """

    vertices: FloatArray
    triangles: NDArray[np.int64]

    def __post_init__(self) -> None:
        vertices = np.ascontiguousarray(self.vertices, dtype=np.float64).reshape(-1, 3)
        triangles = np.ascontiguousarray(self.triangles, dtype=np.int64).reshape(-1, 3)
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "triangles", triangles)
        n_open = _unbalanced_edges(triangles)
        if len(triangles) < 4 or n_open:
            raise ValueError(
                f"the surface of {len(triangles)} triangles is open: {n_open} edges lack a neighbour that runs "
                "along them in the other direction. Close its holes and make its normals consistent (in "
                "Blender: Mesh > Clean Up > Fill Holes, Mesh > Normals > Recalculate Outside)."
            )
        extent = float(np.ptp(vertices, axis=0).max())
        if abs(self.volume_um3) <= 1e-9 * extent**3:
            raise ValueError(f"the surface of {len(triangles)} triangles encloses no volume.")
        if self.volume_um3 < 0:
            object.__setattr__(self, "triangles", np.ascontiguousarray(triangles[:, ::-1]))
            del self.__dict__["volume_um3"]

    @cached_property
    def volume_um3(self) -> float:
        """The volume, um3: the sum of the signed tetrahedra between the triangles and a point."""
        a, b, c = np.moveaxis((self.vertices - self.vertices.mean(axis=0))[self.triangles], 1, 0)
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)

    @property
    def bounds_um(self) -> FloatArray:
        """The lowest and the highest corner of the box around it (2, 3), um."""
        corners = self.vertices[self.triangles.ravel()]
        return np.stack([corners.min(axis=0), corners.max(axis=0)])

    @property
    def size_um(self) -> tuple[float, float, float]:
        """The largest, middle and smallest edge of a small box around it, um.

        The box lies on one of the largest faces of the convex hull.
        """
        hull = ConvexHull(self.vertices)
        a, b, c = np.moveaxis(hull.points[hull.simplices], 1, 0)
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        normals, which = np.unique(np.round(hull.equations[:, :3], 4), axis=0, return_inverse=True)
        largest = np.argsort(-np.bincount(which.ravel(), area))[:MOST_SIDES]
        return smallest_box_um(hull.points[hull.vertices], normals[largest])

    def contains(self, points: FloatArray) -> NDArray[np.bool_]:
        """Whether points (m, 3), um, lie inside, by the crossings of one ray from each."""
        tree = TriangleTree.of(
            self.vertices, self.triangles, np.ones(len(self.triangles), np.int64)
        )
        found = np.empty(len(points), dtype=np.bool_)
        inside(tree.arrays, np.ascontiguousarray(points, dtype=np.float64), THROUGH, 1, found)
        return found

    def __repr__(self) -> str:
        size = " x ".join(f"{v:.4g}" for v in np.ptp(self.bounds_um, axis=0))
        return (
            f"ClosedSurface({len(self.triangles)} triangles, {size} um, {self.volume_um3:.4g} um3)"
        )


def _unbalanced_edges(triangles: NDArray[np.int64]) -> int:
    """The number of edges that are not run along as often in one direction as in the other."""
    if len(triangles) == 0:
        return 0
    n = int(triangles.max()) + 1
    start, end = triangles.ravel(), np.roll(triangles, -1, axis=1).ravel()
    edge = np.minimum(start, end) * n + np.maximum(start, end)
    _, number = np.unique(edge, return_inverse=True)
    return int(np.count_nonzero(np.bincount(number, np.where(start < end, 1.0, -1.0))))


def joined(surfaces: list[ClosedSurface]) -> ClosedSurface:
    """Several surfaces as one."""
    if len(surfaces) == 1:
        return surfaces[0]
    starts = np.cumsum([0] + [len(s.vertices) for s in surfaces[:-1]])
    return ClosedSurface(
        np.concatenate([s.vertices for s in surfaces]),
        np.concatenate([s.triangles + n for s, n in zip(surfaces, starts, strict=True)]),
    )


@dataclass(frozen=True, eq=False)
class SurfaceSample:
    """The materials of a sample by their surfaces.

    Where solids overlap, the first of them in the list counts: the crystal, then the smaller
    solid. So a crystal in liquor in a capillary may be given by three surfaces, each as a whole,
    that contain each other.

    Attributes
    ----------
    names : tuple of str
        Of the labels 0, 1, 2 ...: "background", "crystal", and the others.
    surfaces : tuple of ClosedSurface
        Of the labels 1, 2 ...
    """

    names: tuple[str, ...]
    surfaces: tuple[ClosedSurface, ...]

    @classmethod
    def of(cls, surfaces: Mapping[str, ClosedSurface]) -> SurfaceSample:
        """The sample of materials by their names.

        Parameters
        ----------
        surfaces : mapping of str to ClosedSurface

        Raises
        ------
        ValueError
            If none is called "crystal".
        """
        if CRYSTAL not in surfaces:
            raise ValueError(
                f"There is no mesh of the {CRYSTAL}; given are {', '.join(surfaces) or 'none'}."
            )
        order = sorted(surfaces, key=lambda name: (name != CRYSTAL, surfaces[name].volume_um3))
        return cls(("background", *order), tuple(surfaces[name] for name in order))

    @property
    def crystal(self) -> ClosedSurface:
        """The surface of the crystal."""
        return self.surfaces[0]

    def __repr__(self) -> str:
        listed = ", ".join(
            f"{name} {surface!r}"
            for name, surface in zip(self.names[1:], self.surfaces, strict=True)
        )
        return f"SurfaceSample({listed})"


# ---- files ---------------------------------------------------------------------------------------


def read_surfaces(
    files: Mapping[str, Sequence[str | os.PathLike[str]]], um_per_unit: float = 1.0
) -> SurfaceSample:
    """The sample of mesh files.

    Parameters
    ----------
    files : mapping of str to sequence of paths
        For each material one file or several, which are taken together.
    um_per_unit : float
        The unit of length of all files, um.

    Raises
    ------
    ValueError
        If a file cannot be read, a surface is open, there is no crystal, its size is unlikely, or
        another mesh is far from it.
    """
    surfaces = {}
    for name, paths in files.items():
        parts = []
        for path in paths:
            try:
                parts.append(ClosedSurface(*read_triangles(path, um_per_unit)))
            except ValueError as error:
                said = str(error)
                raise ValueError(said if os.fspath(path) in said else f"{path}: {said}") from None
        surfaces[name] = joined(parts)
    sample = SurfaceSample.of(surfaces)
    _require_likely_sizes(sample, files)
    return sample


def _require_likely_sizes(
    sample: SurfaceSample, files: Mapping[str, Sequence[str | os.PathLike[str]]]
) -> None:
    extent = np.ptp(sample.crystal.bounds_um, axis=0)
    if extent.max() > LARGEST_CRYSTAL_UM or extent.max() < SMALLEST_CRYSTAL_UM:
        raise ValueError(
            f"{os.fspath(files[CRYSTAL][0])}: the crystal is {' x '.join(f'{v:.3g}' for v in extent)} um; "
            "give the unit of the meshes (mesh.unit=mm and so on)."
        )
    low, high = sample.crystal.bounds_um
    for name, surface in zip(sample.names[2:], sample.surfaces[1:], strict=True):
        of_it = surface.bounds_um
        gap = float(np.max(np.maximum(of_it[0] - high, low - of_it[1])))
        near = max(float(extent.max()), float(np.ptp(of_it, axis=0).max()))
        if gap > (0 if name == LIQUOR else near):
            raise ValueError(
                f"{os.fspath(files[name][0])}: the mesh of the {name} does not reach the crystal; it is {gap:.4g} um "
                "away. All meshes must be in one frame and one unit."
            )
