"""A closed surface of triangles, checked on construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.frames import FloatArray

IntArray = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Mesh:
    """A closed surface of triangles.

    Parameters
    ----------
    vertices : array (n, 3)
        Positions in the tomo frame, um.
    faces : array (m, 3) of int32
        Numbers of the three vertices of each face, counterclockwise as seen from outside.

    Raises
    ------
    ValueError
        If the surface is open (an edge does not join exactly two faces that run along it in
        opposite directions), flat or inside out.
    """

    vertices: FloatArray
    faces: IntArray

    def __post_init__(self) -> None:
        vertices = np.ascontiguousarray(self.vertices, dtype=np.float64)
        faces = np.ascontiguousarray(self.faces, dtype=np.int32)
        if vertices.ndim != 2 or vertices.shape[1] != 3 or not np.all(np.isfinite(vertices)):
            raise ValueError("A mesh needs vertices (n, 3) of finite numbers, in um.")
        if faces.ndim != 2 or faces.shape[1] != 3 or len(faces) < 4:
            raise ValueError(f"A closed mesh needs at least four triangles; this has {len(faces)}.")
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise ValueError(f"A face names a vertex outside 0 ... {len(vertices) - 1}.")
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "faces", faces)
        n_open = _open_edges(faces)
        if n_open:
            raise ValueError(
                f"The mesh is open: {n_open} of its edges do not join exactly two faces in opposite "
                "directions; close its holes (in Blender: Mesh > Clean Up > Fill Holes)."
            )
        if self.volume_um3 <= 0:
            raise ValueError(
                f"The mesh encloses {self.volume_um3:g} um3: it is flat or inside out; turn its "
                "normals outward (in Blender: Mesh > Normals > Recalculate Outside)."
            )

    @cached_property
    def volume_um3(self) -> float:
        """The enclosed volume, um3: the sum of the signed volumes of one tetrahedron per face."""
        a, b, c = self.corners
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6.0)

    @cached_property
    def centroid_um(self) -> FloatArray:
        """The centre of mass (3,) of the enclosed volume, um."""
        a, b, c = self.corners
        weights = np.einsum("ij,ij->i", a, np.cross(b, c)) / 6.0
        return weights @ (a + b + c) / 4.0 / self.volume_um3

    @property
    def corners(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The three corners of every face, each (m, 3), um."""
        v, f = self.vertices, self.faces
        return v[f[:, 0]], v[f[:, 1]], v[f[:, 2]]

    @property
    def bounds_um(self) -> FloatArray:
        """The lowest and the highest corner of the surrounding box (2, 3), um."""
        return np.stack([self.vertices.min(axis=0), self.vertices.max(axis=0)])

    def moved(self, matrix: ArrayLike | None = None, shift_um: ArrayLike = (0.0, 0.0, 0.0)) -> Mesh:
        """The mesh with every vertex moved to matrix @ vertex + shift_um.

        Parameters
        ----------
        matrix : array (3, 3), optional
            A matrix with a determinant > 0; the unit matrix by default.
        shift_um : array (3,)
            The shift, um.

        Raises
        ------
        ValueError
            If the determinant of the matrix is not > 0.
        """
        m = np.eye(3) if matrix is None else np.asarray(matrix, dtype=np.float64)
        if not np.linalg.det(m) > 0:
            raise ValueError("A mesh can be turned and scaled but not mirrored or flattened.")
        return Mesh(self.vertices @ m.T + np.asarray(shift_um, dtype=np.float64), self.faces)

    def __repr__(self) -> str:
        low, high = self.bounds_um
        size = " x ".join(f"{v:.1f}" for v in high - low)
        return f"Mesh({len(self.faces)} faces, {size} um, {self.volume_um3:.4g} um3)"


def _open_edges(faces: IntArray) -> int:
    """The number of directed edges without exactly one edge in the other direction."""
    n = np.int64(faces.max()) + 1
    start = faces.astype(np.int64).ravel()
    end = np.roll(faces, -1, axis=1).astype(np.int64).ravel()
    forward, count = np.unique(start * n + end, return_counts=True)
    backward = np.unique(end * n + start)
    doubled = int(np.sum(count - 1))
    return doubled + len(np.setdiff1d(forward, backward))


def mesh_facing_outward(vertices: FloatArray, faces: NDArray[Any]) -> Mesh:
    """The mesh of vertices (n, 3) and faces (m, 3), reversed if all faces point inward."""
    faces = faces.astype(np.int32)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    if np.einsum("ij,ij->", a - vertices.mean(axis=0), np.cross(b - a, c - a)) < 0:
        faces = np.ascontiguousarray(faces[:, ::-1])
    return Mesh(vertices, faces)


def joined(meshes: Sequence[Mesh]) -> tuple[FloatArray, IntArray, IntArray]:
    """All meshes in one: vertices (n, 3), faces (m, 3) and the number of each face's mesh (m,)."""
    if not meshes:
        return np.empty((0, 3)), np.empty((0, 3), np.int32), np.empty(0, np.int32)
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return (
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=True)]).astype(np.int32),
        np.repeat(np.arange(len(meshes), dtype=np.int32), [len(m.faces) for m in meshes]),
    )
