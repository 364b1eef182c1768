"""Parallel lines through meshes: crossings, thickness maps and label volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.frames import FloatArray, unit
from anacor_dials.simulation.meshes.mesh import Mesh, joined


def frame_along(direction: ArrayLike) -> FloatArray:
    """Right-handed frames (..., 3, 3) for directions (..., 3) of any length.

    The columns are two unit vectors perpendicular to the direction, and its own unit vector.
    """
    w = unit(direction)
    across = np.eye(3)[np.argmin(np.abs(w), axis=-1)]
    u = unit(np.cross(across, w))
    return np.stack([u, np.cross(w, u), w], axis=-1)


@dataclass(frozen=True, eq=False)
class LineCrossings:
    """Where the parallel lines of a grid cross the faces of meshes, sorted along each line.

    Attributes
    ----------
    shape : (int, int)
        The number of lines along the two directions of the grid, n_u and n_v.
    starts : array (n_u * n_v + 1,)
        Line (i, j) has the crossings starts[k] to starts[k + 1], with k = i n_v + j.
    depths : array (n,)
        Positions of the crossings along the lines, um, increasing within a line.
    meshes : array (n,)
        m + 1 where the line enters mesh m, -(m + 1) where it leaves it.
    """

    shape: tuple[int, int]
    starts: NDArray[np.int64]
    depths: FloatArray
    meshes: NDArray[np.int16]


@njit(cache=True, inline="always")
def _edge_at(p: Any, i: int, j: int, v: float) -> float:
    """u at which the edge i j passes the height v; exactly the same number for i j and j i."""
    if i > j:
        i, j = j, i
    return p[i, 0] + (v - p[i, 1]) * ((p[j, 0] - p[i, 0]) / (p[j, 1] - p[i, 1]))


@njit(cache=True, inline="always")
def span_at(p: Any, i: int, j: int, k: int, v: float) -> tuple[float, float]:
    """The interval [low, high) of u that the projected triangle covers at height v.

    low >= high if it covers none.
    """
    low = np.inf
    high = -np.inf
    if (p[i, 1] <= v) != (p[j, 1] <= v):
        u = _edge_at(p, i, j, v)
        low = min(low, u)
        high = max(high, u)
    if (p[j, 1] <= v) != (p[k, 1] <= v):
        u = _edge_at(p, j, k, v)
        low = min(low, u)
        high = max(high, u)
    if (p[k, 1] <= v) != (p[i, 1] <= v):
        u = _edge_at(p, k, i, v)
        low = min(low, u)
        high = max(high, u)
    return low, high


@njit(cache=True, inline="always")
def depth_at(p: Any, i: int, j: int, k: int, area: float, u: float, v: float) -> float:
    """w of the triangle's plane at (u, v), limited to the range of its three corners."""
    a = (p[j, 0] - u) * (p[k, 1] - v) - (p[j, 1] - v) * (p[k, 0] - u)
    b = (p[k, 0] - u) * (p[i, 1] - v) - (p[k, 1] - v) * (p[i, 0] - u)
    w = p[k, 2] + (a * (p[i, 2] - p[k, 2]) + b * (p[j, 2] - p[k, 2])) / area
    return min(max(w, min(p[i, 2], p[j, 2], p[k, 2])), max(p[i, 2], p[j, 2], p[k, 2]))


@njit(cache=True, inline="always")
def twice_area(p: Any, i: int, j: int, k: int) -> float:
    """Twice the signed area of the projected triangle: > 0 where the line enters the solid."""
    return (p[j, 0] - p[i, 0]) * (p[k, 1] - p[i, 1]) - (p[j, 1] - p[i, 1]) * (p[k, 0] - p[i, 0])


@njit(cache=True, parallel=True)
def _walk_faces(
    p: Any,
    faces: Any,
    owner: Any,
    n_inner: int,
    n_outer: int,
    fill: bool,
    next_free: Any,
    depths: Any,
    meshes: Any,
) -> None:
    """Counts the crossings of every line of the grid (fill False) or stores them (fill True).

    p: (n, 3) projected vertices: positions along the inner and the outer direction of the grid, in
    steps of the grid, and along the lines, um; left-handed. Lines are numbered
    outer * n_inner + inner.
    """
    strip = 16  # lines of one strip belong to one thread
    for number in prange((n_outer + strip - 1) // strip):
        start, stop = number * strip, min(n_outer, (number + 1) * strip)
        for f in range(len(faces)):
            i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
            v_low = min(p[i, 1], p[j, 1], p[k, 1])
            v_high = max(p[i, 1], p[j, 1], p[k, 1])
            if v_high < start or v_low > stop - 1:
                continue
            area = twice_area(p, i, j, k)
            if area == 0.0:
                continue
            first_row = max(start, int(np.ceil(v_low)))
            last_row = min(stop - 1, int(np.floor(v_high)))
            for row in range(first_row, last_row + 1):
                low, high = span_at(p, i, j, k, float(row))
                if low >= high:
                    continue
                first = max(0, int(np.ceil(low)))
                last = min(n_inner, int(np.ceil(high)))  # low <= u < high
                for column in range(first, last):
                    line = row * n_inner + column
                    if fill:
                        place = next_free[line]
                        depths[place] = depth_at(p, i, j, k, area, float(column), float(row))
                        meshes[place] = owner[f] + 1 if area > 0 else -(owner[f] + 1)
                    next_free[line] += 1


@njit(cache=True, parallel=True)
def _sort_lines(starts: Any, depths: Any, meshes: Any) -> None:
    for line in prange(len(starts) - 1):
        for a in range(starts[line] + 1, starts[line + 1]):
            depth, mesh = depths[a], meshes[a]
            b = a - 1
            while b >= starts[line] and depths[b] > depth:
                depths[b + 1] = depths[b]
                meshes[b + 1] = meshes[b]
                b -= 1
            depths[b + 1] = depth
            meshes[b + 1] = mesh


def line_crossings(
    meshes: Sequence[Mesh],
    frame: ArrayLike,
    first_um: ArrayLike,
    shape: int | tuple[int, int],
    step_um: float | tuple[float, float],
) -> LineCrossings:
    """The crossings of a grid of parallel lines with the faces of meshes.

    Parameters
    ----------
    meshes : sequence of Mesh
    frame : array (3, 3)
        Right-handed; the columns u, v, w are the two directions of the grid and that of the lines.
    first_um : array (2,)
        u and v of line (0, 0), um.
    shape : int or (int, int)
        The number of lines along u and v.
    step_um : float or (float, float)
        The distance between lines along u and v, um.
    """
    n_u, n_v = (shape, shape) if isinstance(shape, int) else shape
    vertices, faces, owner = joined(meshes)
    steps = np.broadcast_to(np.asarray(step_um, dtype=np.float64), (2,))
    p = vertices @ np.asarray(frame, dtype=np.float64)
    p[:, :2] = (p[:, :2] - np.asarray(first_um, dtype=np.float64)) / steps
    p = np.ascontiguousarray(p[:, [1, 0, 2]])
    counts = np.zeros(n_u * n_v, dtype=np.int64)
    no_depths, no_meshes = np.empty(0), np.empty(0, np.int16)
    _walk_faces(p, faces, owner, n_v, n_u, False, counts, no_depths, no_meshes)
    starts = np.concatenate([[0], np.cumsum(counts)])
    depths = np.empty(starts[-1])
    which = np.empty(starts[-1], dtype=np.int16)
    _walk_faces(p, faces, owner, n_v, n_u, True, starts[:-1].copy(), depths, which)
    _sort_lines(starts, depths, which)
    return LineCrossings((n_u, n_v), starts, depths, which)


@njit(cache=True, parallel=True)
def _thicknesses(
    starts: Any, depths: Any, crossed: Any, rank: Any, material: Any, edges: Any, out: Any
) -> None:
    """The length of every line (axis 2) in every material (axis 0) within every slab (axis 1)."""
    n_slabs = len(edges) - 1
    for line in prange(len(starts) - 1):
        winding = np.zeros(len(rank), np.int64)
        current = -1
        for a in range(starts[line], starts[line + 1]):
            if current >= 0 and material[current] >= 0:
                for slab in range(n_slabs):
                    low = max(depths[a - 1], edges[slab])
                    high = min(depths[a], edges[slab + 1])
                    if high > low:
                        out[material[current], slab, line] += high - low
            m = abs(crossed[a]) - 1
            winding[m] += 1 if crossed[a] > 0 else -1
            current = -1
            for other in range(len(rank)):
                if winding[other] > 0 and (current < 0 or rank[other] > rank[current]):
                    current = other


def thickness_maps(
    meshes: Sequence[Mesh],
    material: Sequence[int],
    n_materials: int,
    frame: ArrayLike,
    first_um: ArrayLike,
    shape: tuple[int, int],
    step_um: float | tuple[float, float],
    slab_edges_um: ArrayLike = (-np.inf, np.inf),
) -> FloatArray:
    """The thickness of every material along the lines of a grid, exact for the meshes.

    Where two meshes overlap, the one that is later in the list counts.

    Parameters
    ----------
    meshes : sequence of n Mesh
    material : sequence of n int
        The number of each mesh's material; -1 for emptiness.
    n_materials : int
        The number of materials.
    frame, first_um, shape, step_um
        The grid of lines, as for :func:`line_crossings`.
    slab_edges_um : array (n_slabs + 1,)
        Positions along w, um; the thickness between each two neighbours is summed.

    Returns
    -------
    array (n_materials, n_slabs, n_u, n_v), um
    """
    crossings = line_crossings(meshes, frame, first_um, shape, step_um)
    edges = np.asarray(slab_edges_um, dtype=np.float64)
    out = np.zeros((n_materials, len(edges) - 1, shape[0] * shape[1]))
    _thicknesses(
        crossings.starts, crossings.depths, crossings.meshes, np.arange(len(meshes)),
        np.asarray(material, dtype=np.int64), edges, out,
    )  # fmt: skip
    return out.reshape(n_materials, len(edges) - 1, *shape)


@njit(cache=True, parallel=True)
def _paint(
    starts: Any, depths: Any, crossed: Any, label: Any, first: float, step: float, out: Any
) -> None:
    """Writes the labels of the voxel centres along every line to out (n_lines, n), uint8."""
    n = out.shape[1]
    for line in prange(len(starts) - 1):
        winding = np.zeros(len(label), np.int64)
        current = -1
        for a in range(starts[line], starts[line + 1]):
            if current >= 0:
                low = max(0, int(np.ceil((depths[a - 1] - first) / step)))
                high = min(n, int(np.ceil((depths[a] - first) / step)))
                for voxel in range(low, high):
                    out[line, voxel] = label[current]
            winding[abs(crossed[a]) - 1] += 1 if crossed[a] > 0 else -1
            current = -1
            for other in range(len(label)):
                if winding[other] > 0:
                    current = other


def label_array(
    meshes: Sequence[Mesh],
    labels: Sequence[int],
    shape: tuple[int, int, int],
    voxel_size_um: ArrayLike,
    centre: ArrayLike,
) -> NDArray[np.uint8]:
    """A label volume (nx, ny, nz) of meshes: a voxel has the label of the mesh at its centre.

    Parameters
    ----------
    meshes : sequence of n Mesh
        Where two overlap, the one that is later in the list counts.
    labels : sequence of n int
        The label of each mesh, 1 to 255. Voxels outside all meshes get 0.
    shape : (int, int, int)
        The number of voxels along X, Y and Z.
    voxel_size_um : float or array (3,)
        The size of a voxel, um.
    centre : array (3,)
        The voxel index of the origin.
    """
    size = np.broadcast_to(np.asarray(voxel_size_um, dtype=np.float64), (3,))
    first = -np.asarray(centre, dtype=np.float64) * size
    nx, ny, nz = shape
    crossings = line_crossings(meshes, np.eye(3), first[:2], (nx, ny), (size[0], size[1]))
    out = np.zeros((nx * ny, nz), dtype=np.uint8)
    _paint(
        crossings.starts, crossings.depths, crossings.meshes, np.asarray(labels, dtype=np.uint8),
        first[2], size[2], out,
    )  # fmt: skip
    return out.reshape(nx, ny, nz)
