"""Closed triangle meshes: shapes, checks, files, and what straight lines see of them.

A mesh is a closed surface in the tomo frame, in um; its faces run counterclockwise as seen from
outside. Everything that is asked of meshes here (thickness maps, label volumes, path lengths) comes
from one construction: the places where a line crosses the faces, sorted along the line. A line is
in a part of the sample where it has entered its surface more often than it has left it; where
several parts claim the same place, the one of highest rank has it.

Crossings are found in projection along the line, with one rule for points on an edge (half-open
intervals, computed identically from both sides), so that a closed mesh is never entered without
being left.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.frames import FloatArray, unit
from anacor_dials.sample.output_files import whole_file

IntArray = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Mesh:
    """A closed surface: vertices (n, 3) in um, faces (m, 3) vertex numbers, outward by the right hand.

    Raises ValueError where an edge does not join exactly two faces that run through it in opposite
    directions, or where the surface is inside out.
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
        """The enclosed volume in um3: the sum of signed tetrahedra, one per face."""
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
        """Lowest and highest corner (2, 3) of the surrounding box, um."""
        return np.stack([self.vertices.min(axis=0), self.vertices.max(axis=0)])

    def moved(self, matrix: ArrayLike | None = None, shift_um: ArrayLike = (0.0, 0.0, 0.0)) -> Mesh:
        """The mesh with every vertex at matrix @ vertex + shift_um; matrix (3, 3), determinant > 0."""
        m = np.eye(3) if matrix is None else np.asarray(matrix, dtype=np.float64)
        if not np.linalg.det(m) > 0:
            raise ValueError("A mesh can be turned and scaled but not mirrored or flattened.")
        return Mesh(self.vertices @ m.T + np.asarray(shift_um, dtype=np.float64), self.faces)

    def __repr__(self) -> str:
        low, high = self.bounds_um
        size = " x ".join(f"{v:.1f}" for v in high - low)
        return f"Mesh({len(self.faces)} faces, {size} um, {self.volume_um3:.4g} um3)"


def _open_edges(faces: IntArray) -> int:
    """Number of directed edges that do not have exactly one opposite."""
    n = np.int64(faces.max()) + 1
    start = faces.astype(np.int64).ravel()
    end = np.roll(faces, -1, axis=1).astype(np.int64).ravel()
    forward, count = np.unique(start * n + end, return_counts=True)
    backward = np.unique(end * n + start)
    doubled = int(np.sum(count - 1))
    return doubled + len(np.setdiff1d(forward, backward))


# ---- shapes ------------------------------------------------------------------------------------


def convex_polyhedron(normals: ArrayLike, distances_um: ArrayLike) -> Mesh:
    """The polyhedron of all points x with normal . x <= distance, for every pair of the two lists.

    normals: (n, 3), of any length, outward; distances_um: (n,) > 0, so that the origin lies inside.
    Raises ValueError where the half-spaces leave it open.
    """
    from scipy.spatial import ConvexHull, HalfspaceIntersection, QhullError

    n = unit(normals)
    d = np.asarray(distances_um, dtype=np.float64)
    if not np.all(d > 0):
        raise ValueError("The faces of a polyhedron must lie at distances > 0 from its origin.")
    try:
        corners = HalfspaceIntersection(np.column_stack([n, -d]), np.zeros(3)).intersections
        if not np.all(np.isfinite(corners)):
            raise ValueError
        scale = float(np.abs(corners).max())
        _, first = np.unique(np.round(corners / scale, 9), axis=0, return_index=True)
        hull = ConvexHull(corners[first])
    except (QhullError, ValueError):
        raise ValueError(
            f"The {len(d)} faces given do not enclose a polyhedron; add faces on the open side."
        ) from None
    faces = hull.simplices.astype(np.int32)
    a, b, c = (hull.points[faces[:, i]] for i in range(3))
    inward = np.einsum("ij,ij->i", np.cross(b - a, c - a), hull.equations[:, :3]) < 0
    faces[inward] = faces[inward][:, ::-1]
    return _without_unused_vertices(hull.points, faces)


def _without_unused_vertices(vertices: FloatArray, faces: NDArray[Any]) -> Mesh:
    used, renumbered = np.unique(faces, return_inverse=True)
    return Mesh(vertices[used], renumbered.reshape(faces.shape).astype(np.int32))


def box(size_um: ArrayLike) -> Mesh:
    """A rectangular box centred on the origin; size_um: (3,) edge lengths."""
    half = np.asarray(size_um, dtype=np.float64) / 2
    axes = np.vstack([np.eye(3), -np.eye(3)])
    return convex_polyhedron(axes, np.concatenate([half, half]))


def sphere(radius_um: float, subdivisions: int = 4) -> Mesh:
    """A sphere about the origin: an icosahedron subdivided (20 * 4^subdivisions faces).

    Its vertices lie a little outside the radius, so that the enclosed volume is the sphere's.
    """
    golden = (1 + 5**0.5) / 2
    corners = [(-1, golden, 0), (1, golden, 0), (-1, -golden, 0), (1, -golden, 0)]
    vertices = unit(
        corners + [(z, x, y) for x, y, z in corners] + [(y, z, x) for x, y, z in corners]
    )
    from scipy.spatial import ConvexHull

    hull = ConvexHull(vertices)
    faces = hull.simplices.astype(np.int32)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    inward = np.einsum("ij,ij->i", np.cross(b - a, c - a), a) < 0
    faces[inward] = faces[inward][:, ::-1]
    for _ in range(subdivisions):
        edges = np.sort(
            np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1
        )
        pairs, index = np.unique(edges, axis=0, return_inverse=True)
        middle = (index.reshape(3, -1) + len(vertices)).astype(np.int32)
        vertices = np.concatenate([vertices, unit(vertices[pairs].sum(axis=1))])
        i, j, k = faces.T
        ij, jk, ki = middle
        faces = np.concatenate(
            [np.stack(t, axis=1) for t in ((i, ij, ki), (j, jk, ij), (k, ki, jk), (ij, jk, ki))]
        )
    unit_volume = Mesh(vertices, faces).volume_um3
    return Mesh(vertices * radius_um * (4 / 3 * np.pi / unit_volume) ** (1 / 3), faces)


def tube(
    curve_um: ArrayLike,
    across: ArrayLike,
    half_width_um: float,
    half_height_um: float,
    n_around: int = 16,
) -> Mesh:
    """A fibre of elliptical section along a closed plane curve.

    curve_um: (n, 3) points of the curve, the last joined to the first; across: the normal (3,) of its
    plane; half axes of the section in the plane and across it. The curve must bend less sharply than
    its own half width.
    """
    points = np.asarray(curve_um, dtype=np.float64)
    normal = unit(across)
    tangent = unit(np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0))
    sideways = np.cross(normal, tangent)
    angle = 2 * np.pi * np.arange(n_around) / n_around
    vertices = (
        points[:, None]
        + half_width_um * np.cos(angle)[:, None] * sideways[:, None]
        + half_height_um * np.sin(angle)[:, None] * normal
    )
    n = len(points)
    index = np.arange(n * n_around, dtype=np.int32).reshape(n, n_around)
    a, b = index, np.roll(index, -1, axis=0)
    c, d = np.roll(b, -1, axis=1), np.roll(a, -1, axis=1)
    faces = np.concatenate(
        [np.stack([a, b, c], axis=-1).reshape(-1, 3), np.stack([a, c, d], axis=-1).reshape(-1, 3)]
    )
    return _outward(vertices.reshape(-1, 3), faces)


def turned_profile(x_um: ArrayLike, radius_um: ArrayLike, n_around: int = 32) -> Mesh:
    """A solid of revolution about X: radius (n,) > 0 at growing places x (n,), closed by flat ends.

    The polygon around the axis has the area of the circle.
    """
    x = np.asarray(x_um, dtype=np.float64)
    radius = np.asarray(radius_um, dtype=np.float64)
    angle = 2 * np.pi * np.arange(n_around) / n_around
    radius = radius * np.sqrt(2 * np.pi / (n_around * np.sin(2 * np.pi / n_around)))
    rings = np.stack(
        [
            np.broadcast_to(x[:, None], (len(x), n_around)),
            radius[:, None] * np.cos(angle),
            radius[:, None] * np.sin(angle),
        ],
        axis=-1,
    ).reshape(-1, 3)
    vertices = np.concatenate([rings, [[x[0], 0, 0], [x[-1], 0, 0]]])
    index = np.arange(len(rings), dtype=np.int32).reshape(len(x), n_around)
    a, b = index[:-1], index[1:]
    c, d = np.roll(b, -1, axis=1), np.roll(a, -1, axis=1)
    first, last = index[0], index[-1]
    start, end = np.full(n_around, len(rings)), np.full(n_around, len(rings) + 1)
    faces = np.concatenate(
        [
            np.stack([a, b, c], axis=-1).reshape(-1, 3),
            np.stack([a, c, d], axis=-1).reshape(-1, 3),
            np.stack([start, first, np.roll(first, -1)], axis=-1),
            np.stack([end, np.roll(last, -1), last], axis=-1),
        ]
    )
    return _outward(vertices, faces)


def prism(outline_um: ArrayLike, low_um: float, high_um: float) -> Mesh:
    """The solid over a star-shaped outline (n, 2) in X, Y (seen from its mean), between two heights Z."""
    outline = np.asarray(outline_um, dtype=np.float64)
    n = len(outline)
    middle = outline.mean(axis=0)
    flat = np.concatenate([outline, [middle]])
    vertices = np.concatenate(
        [np.column_stack([flat, np.full(n + 1, z)]) for z in (low_um, high_um)]
    )
    i = np.arange(n, dtype=np.int32)
    j = np.roll(i, -1)
    top = n + 1
    faces = np.concatenate(
        [
            np.stack([j, i, np.full(n, n)], axis=1),
            np.stack([i + top, j + top, np.full(n, n + top)], axis=1),
            np.stack([i, j, j + top], axis=1),
            np.stack([i, j + top, i + top], axis=1),
        ]
    )
    return _outward(vertices, faces)


def _outward(vertices: FloatArray, faces: NDArray[Any]) -> Mesh:
    """The mesh, all faces turned round where they all run the wrong way."""
    faces = faces.astype(np.int32)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    if np.einsum("ij,ij->", a - vertices.mean(axis=0), np.cross(b - a, c - a)) < 0:
        faces = np.ascontiguousarray(faces[:, ::-1])
    return Mesh(vertices, faces)


# ---- files -------------------------------------------------------------------------------------


def read_stl(path: str | os.PathLike[str], um_per_unit: float = 1.0) -> Mesh:
    """The closed mesh of an STL file (binary or text); corners that coincide are joined.

    um_per_unit: the file's unit of length in um (STL has none of its own). Raises ValueError for
    files that are absent, no STL, open or self-intersecting.
    """
    import trimesh

    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        surface = trimesh.load(os.fspath(path), file_type="stl", process=False)
        triangles = np.asarray(surface.triangles, dtype=np.float64) * um_per_unit
        if triangles.size == 0 or not np.all(np.isfinite(triangles)):
            raise ValueError
    except Exception:  # trimesh raises whatever its parsers meet
        raise ValueError(f"{path} is not an STL file, or holds no triangles.") from None
    corners = triangles.reshape(-1, 3)
    size = float(np.ptp(corners, axis=0).max())
    _, first, index = np.unique(
        np.round(corners / (1e-6 * size)), axis=0, return_index=True, return_inverse=True
    )
    faces = index.reshape(-1, 3)
    distinct = (
        (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    )
    try:
        mesh = _outward(corners[first], faces[distinct])
        require_no_self_intersection(mesh)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return mesh


def write_stl(path: str | os.PathLike[str], mesh: Mesh) -> None:
    """Writes a binary STL file, in um, whole or not at all."""
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    triangles = np.zeros(len(mesh.faces), dtype=record)
    a, b, c = mesh.corners
    normals = np.cross(b - a, c - a)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    triangles["normal"] = normals / np.where(length > 0, length, 1)
    triangles["corners"] = np.stack([a, b, c], axis=1)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(b"anacor_dials, lengths in um".ljust(80))
        file.write(np.uint32(len(triangles)).tobytes())
        file.write(triangles.tobytes())


# ---- faces that meet ---------------------------------------------------------------------------


@njit(cache=True)
def _edge_pierces(p: Any, q: Any, a: Any, b: Any, c: Any, eps: float) -> bool:
    """Whether the segment p q passes through the inside of the triangle a b c (Moller, Trumbore 1997)."""
    d = q - p
    e1 = b - a
    e2 = c - a
    hx = d[1] * e2[2] - d[2] * e2[1]
    hy = d[2] * e2[0] - d[0] * e2[2]
    hz = d[0] * e2[1] - d[1] * e2[0]
    det = e1[0] * hx + e1[1] * hy + e1[2] * hz
    scale = np.sqrt((d @ d) * (e1 @ e1) * (e2 @ e2))
    if abs(det) <= eps * scale:
        return False
    s = p - a
    u = (s[0] * hx + s[1] * hy + s[2] * hz) / det
    if u <= eps or u >= 1 - eps:
        return False
    gx = s[1] * e1[2] - s[2] * e1[1]
    gy = s[2] * e1[0] - s[0] * e1[2]
    gz = s[0] * e1[1] - s[1] * e1[0]
    v = (d[0] * gx + d[1] * gy + d[2] * gz) / det
    if v <= eps or u + v >= 1 - eps:
        return False
    t = (e2[0] * gx + e2[1] * gy + e2[2] * gz) / det
    return eps < t < 1 - eps


@njit(cache=True)
def _first_meeting(
    vertices: Any, faces: Any, other_vertices: Any, other_faces: Any, same: bool
) -> tuple[int, int]:
    """Two faces, one of each mesh, that pass through each other; (-1, -1) where there are none."""
    n, m = len(faces), len(other_faces)
    low = np.empty((m, 3))
    high = np.empty((m, 3))
    for j in range(m):
        for k in range(3):
            a = other_vertices[other_faces[j, 0], k]
            b = other_vertices[other_faces[j, 1], k]
            c = other_vertices[other_faces[j, 2], k]
            low[j, k] = min(a, b, c)
            high[j, k] = max(a, b, c)
    order = np.argsort(low[:, 0])
    sorted_low = low[order, 0]
    longest = 0.0
    for j in range(m):
        longest = max(longest, high[j, 0] - low[j, 0])
    t1 = np.empty((3, 3))
    t2 = np.empty((3, 3))
    mine = np.zeros(3, np.bool_)
    theirs = np.zeros(3, np.bool_)
    for i in range(n):
        for k in range(3):
            t1[k] = vertices[faces[i, k]]
        lo = np.array([t1[:, 0].min(), t1[:, 1].min(), t1[:, 2].min()])
        hi = np.array([t1[:, 0].max(), t1[:, 1].max(), t1[:, 2].max()])
        start = np.searchsorted(sorted_low, lo[0] - longest)
        stop = np.searchsorted(sorted_low, hi[0])
        for s in range(start, stop):
            j = order[s]
            if same and j <= i:
                continue
            if (
                low[j, 0] > hi[0]
                or high[j, 0] < lo[0]
                or low[j, 1] > hi[1]
                or high[j, 1] < lo[1]
                or low[j, 2] > hi[2]
                or high[j, 2] < lo[2]
            ):
                continue
            n_shared = 0
            if same:  # neighbours meet in what they share; only their other edges can pierce
                for k in range(3):
                    mine[k] = theirs[k] = False
                for k in range(3):
                    for m in range(3):
                        if faces[i, k] == other_faces[j, m]:
                            mine[k] = theirs[m] = True
                            n_shared += 1
                if n_shared > 1:
                    continue
            for k in range(3):
                t2[k] = other_vertices[other_faces[j, k]]
            for k in range(3):
                end = (k + 1) % 3
                if not (mine[k] or mine[end]) and _edge_pierces(
                    t1[k], t1[end], t2[0], t2[1], t2[2], 1e-9
                ):
                    return i, j
                if not (theirs[k] or theirs[end]) and _edge_pierces(
                    t2[k], t2[end], t1[0], t1[1], t1[2], 1e-9
                ):
                    return i, j
    return -1, -1


def require_no_self_intersection(mesh: Mesh) -> None:
    """Raises ValueError where two faces of the mesh pass through each other, naming the place."""
    i, j = _first_meeting(mesh.vertices, mesh.faces, mesh.vertices, mesh.faces, True)
    if i >= 0:
        place = mesh.vertices[mesh.faces[i]].mean(axis=0)
        raise ValueError(
            f"The mesh intersects itself: faces {i} and {j} pass through each other near "
            f"({', '.join(f'{v:.1f}' for v in place)}) um; remesh or repair it."
        )


def surfaces_meet(first: Mesh, second: Mesh) -> bool:
    """True where a face of one mesh passes through a face of the other."""
    low = np.maximum(first.bounds_um[0], second.bounds_um[0])
    high = np.minimum(first.bounds_um[1], second.bounds_um[1])
    if np.any(low > high):
        return False
    found = _first_meeting(first.vertices, first.faces, second.vertices, second.faces, False)
    return found[0] >= 0


def overlap(first: Mesh, second: Mesh) -> bool:
    """True where the two solids have a place in common (surfaces that cross, or one in the other)."""
    if surfaces_meet(first, second):
        return True
    inside_second = bool(contains(second, _point_inside(first)[None])[0])
    inside_first = bool(contains(first, _point_inside(second)[None])[0])
    return inside_first or inside_second


def _point_inside(mesh: Mesh) -> FloatArray:
    """A point (3,) inside the solid: half way along the first interval of a line through its largest face."""
    a, b, c = mesh.corners
    normals = np.cross(b - a, c - a)
    largest = int(np.argmax(np.einsum("ij,ij->i", normals, normals)))
    middle = (0.34 * a + 0.35 * b + 0.31 * c)[largest]
    lines = line_crossings(
        [mesh],
        frame_along(-normals[largest]),
        middle @ frame_along(-normals[largest])[:, :2],
        1,
        1.0,
    )
    depths = lines.depths
    start = float(middle @ unit(-normals[largest]))
    k = int(np.argmin(np.abs(depths - start)))
    return middle + unit(-normals[largest]) * 0.5 * (depths[min(k + 1, len(depths) - 1)] - start)


# ---- lines through meshes ----------------------------------------------------------------------


def frame_along(direction: ArrayLike) -> FloatArray:
    """Right-handed frames (..., 3, 3): the columns are two directions across and the unit direction."""
    w = unit(direction)
    across = np.eye(3)[np.argmin(np.abs(w), axis=-1)]
    u = unit(np.cross(across, w))
    return np.stack([u, np.cross(w, u), w], axis=-1)


def joined(meshes: Sequence[Mesh]) -> tuple[FloatArray, IntArray, IntArray]:
    """Vertices (n, 3), faces (m, 3) and the number of the mesh (m,) each face belongs to."""
    if not meshes:
        return np.empty((0, 3)), np.empty((0, 3), np.int32), np.empty(0, np.int32)
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return (
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=True)]).astype(np.int32),
        np.repeat(np.arange(len(meshes), dtype=np.int32), [len(m.faces) for m in meshes]),
    )


@dataclass(frozen=True, eq=False)
class LineCrossings:
    """Where the parallel lines of a grid cross the faces of meshes, sorted along each line.

    Line (i, j) of the grid (n_u, n_v) has the entries starts[k] ... starts[k + 1], k = i n_v + j.
    depths: (n,) places along the lines, um, growing within a line. meshes: (n,) mesh numbers, as
    m + 1 where the line enters mesh m there and -(m + 1) where it leaves it.
    """

    shape: tuple[int, int]
    starts: NDArray[np.int64]
    depths: FloatArray
    meshes: NDArray[np.int16]


@njit(cache=True, inline="always")
def _edge_at(p: Any, i: int, j: int, v: float) -> float:
    """u where the edge i j passes height v; the same number whichever way the edge is given."""
    if i > j:
        i, j = j, i
    return p[i, 0] + (v - p[i, 1]) * ((p[j, 0] - p[i, 0]) / (p[j, 1] - p[i, 1]))


@njit(cache=True, inline="always")
def _span(p: Any, i: int, j: int, k: int, v: float) -> tuple[float, float]:
    """The interval [low, high) of u that the projected triangle covers at height v; empty: low >= high."""
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
def _depth(p: Any, i: int, j: int, k: int, area: float, u: float, v: float) -> float:
    """w of the triangle's plane at (u, v), kept within the triangle's own range."""
    a = (p[j, 0] - u) * (p[k, 1] - v) - (p[j, 1] - v) * (p[k, 0] - u)
    b = (p[k, 0] - u) * (p[i, 1] - v) - (p[k, 1] - v) * (p[i, 0] - u)
    w = p[k, 2] + (a * (p[i, 2] - p[k, 2]) + b * (p[j, 2] - p[k, 2])) / area
    return min(max(w, min(p[i, 2], p[j, 2], p[k, 2])), max(p[i, 2], p[j, 2], p[k, 2]))


@njit(cache=True, inline="always")
def _twice_area(p: Any, i: int, j: int, k: int) -> float:
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
    """Counts the crossings of every line of the grid (fill False) or writes them down (fill True).

    p: (n, 3) projected vertices: places along the inner and the outer direction of the grid, in units
    of the grid, and along the lines, in um; left-handed. Lines are numbered outer * n_inner + inner.
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
            area = _twice_area(p, i, j, k)
            if area == 0.0:
                continue
            first_row = max(start, int(np.ceil(v_low)))
            last_row = min(stop - 1, int(np.floor(v_high)))
            for row in range(first_row, last_row + 1):
                low, high = _span(p, i, j, k, float(row))
                if low >= high:
                    continue
                first = max(0, int(np.ceil(low)))
                last = min(n_inner, int(np.ceil(high)))  # low <= u < high
                for column in range(first, last):
                    line = row * n_inner + column
                    if fill:
                        place = next_free[line]
                        depths[place] = _depth(p, i, j, k, area, float(column), float(row))
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
    """The crossings of a grid of parallel lines with meshes.

    frame: (3, 3), columns u, v, w: the grid's two directions and the lines' direction, right-handed.
    first_um: (2,) the u and v of line (0, 0); shape: the number of lines along u and v; step_um:
    their distance along u and v.
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
    """Length of every line (axis 2) in every material (axis 0) within every slab (axis 1)."""
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
    """Thickness of every material along a grid of lines: (n_materials, n_slabs, n_u, n_v), um.

    Exact for the meshes: no voxels are made. Grid and frame as for :func:`line_crossings`. Meshes
    that come later in the list have the higher rank: where two overlap, the later one counts.
    material: (n_meshes,) a number per mesh, -1 for emptiness. slab_edges_um: (n_slabs + 1,) places
    along w between which thicknesses are summed.
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
    """Labels of the voxel centres along every line; out (n_lines, n) uint8."""
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
    """Labels (nx, ny, nz) of the voxels whose centres lie in the meshes; 0 elsewhere.

    labels: one per mesh, later meshes outrank earlier ones; centre: voxel index (3,) of the origin.
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


@njit(cache=True)
def _crossings_beyond(
    p: Any,
    faces: Any,
    owner: Any,
    area: Any,
    first: int,
    stop: int,
    cell_faces: Any,
    u: float,
    v: float,
    w: float,
    depths: Any,
    crossed: Any,
) -> int:
    """Crossings of one line with depth > w, sorted from the far end; returns their number.

    cell_faces[first:stop] are the faces that may be crossed; the line is at (u, v).
    """
    n = 0
    for a in range(first, stop):
        f = cell_faces[a]
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        left, right = _span(p, i, j, k, v)
        if not (left <= u < right):
            continue
        depth = _depth(p, i, j, k, area[f], u, v)
        if depth <= w:
            continue
        b = n - 1
        while b >= 0 and depths[b] < depth:
            depths[b + 1] = depths[b]
            crossed[b + 1] = crossed[b]
            b -= 1
        depths[b + 1] = depth
        crossed[b + 1] = owner[f] + 1 if area[f] > 0 else -(owner[f] + 1)
        n += 1
        if n == len(depths):
            break
    return n


@njit(cache=True)
def _sort_into_cells(
    p: Any, faces: Any, area: Any, low: Any, high: Any, per_um: Any, n_cells: int
) -> Any:
    """The faces whose projection may touch each cell of a grid: (cell_starts, cell_faces).

    The grid has n_cells x n_cells cells from low to high (u, v, w); what lies outside it, or below
    low in w, is left out. per_um: cells per um along u and v.
    """
    ranges = np.empty((len(faces), 5), np.int32)
    n_near = 0
    starts = np.zeros(n_cells * n_cells + 1, np.int64)
    for f in range(len(faces)):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        u_high = max(p[i, 0], p[j, 0], p[k, 0])
        u_low = min(p[i, 0], p[j, 0], p[k, 0])
        if u_high < low[0] or u_low > high[0]:
            continue
        v_high = max(p[i, 1], p[j, 1], p[k, 1])
        v_low = min(p[i, 1], p[j, 1], p[k, 1])
        if v_high < low[1] or v_low > high[1] or max(p[i, 2], p[j, 2], p[k, 2]) <= low[2]:
            continue
        area[f] = _twice_area(p, i, j, k)
        if area[f] == 0.0:
            continue
        here = ranges[n_near]
        here[0] = f
        here[1] = max(0, int((u_low - low[0]) * per_um[0]))
        here[2] = min(n_cells - 1, int((u_high - low[0]) * per_um[0]))
        here[3] = max(0, int((v_low - low[1]) * per_um[1]))
        here[4] = min(n_cells - 1, int((v_high - low[1]) * per_um[1]))
        n_near += 1
        for cu in range(here[1], here[2] + 1):
            for cv in range(here[3], here[4] + 1):
                starts[cu * n_cells + cv + 1] += 1
    for cell in range(n_cells * n_cells):
        starts[cell + 1] += starts[cell]
    cell_faces = np.empty(starts[-1], np.int32)
    free = starts[:-1].copy()
    for a in range(n_near):
        here = ranges[a]
        for cu in range(here[1], here[2] + 1):
            for cv in range(here[3], here[4] + 1):
                cell = cu * n_cells + cv
                cell_faces[free[cell]] = here[0]
                free[cell] += 1
    return starts, cell_faces


@njit(cache=True)
def _project(points: Any, frame: Any, out: Any) -> None:
    """points @ frame, without a call to BLAS and its threads."""
    for a in range(len(points)):
        for k in range(3):
            out[a, k] = (
                points[a, 0] * frame[0, k] + points[a, 1] * frame[1, k] + points[a, 2] * frame[2, k]
            )


@njit(cache=True)
def _attenuations_one(
    vertices: Any, faces: Any, owner: Any, coefficient: Any, frame: Any, points: Any, out: Any
) -> None:
    """Sum of coefficient x length (n_points,) along one direction (the frame's third column)."""
    p = np.empty_like(vertices)
    _project(vertices, frame, p)
    q = np.empty_like(points)
    _project(points, frame, q)
    area = np.empty(len(faces))
    low = np.array([q[:, 0].min(), q[:, 1].min(), q[:, 2].min()])
    high = np.array([q[:, 0].max(), q[:, 1].max(), q[:, 2].max()])
    n_cells = min(64, 2 + int(2 * np.sqrt(len(q))))
    per_um = np.array(
        [
            n_cells * (1 - 1e-9) / max(high[0] - low[0], 1e-9),
            n_cells * (1 - 1e-9) / max(high[1] - low[1], 1e-9),
        ]
    )
    cell_starts, cell_faces = _sort_into_cells(p, faces, area, low, high, per_um, n_cells)
    n_meshes = len(coefficient)
    winding = np.zeros(n_meshes, np.int64)
    depths = np.empty(256)
    crossed = np.empty(256, np.int64)
    for x in range(len(q)):
        cell = int((q[x, 0] - low[0]) * per_um[0]) * n_cells + int((q[x, 1] - low[1]) * per_um[1])
        n = _crossings_beyond(
            p, faces, owner, area, cell_starts[cell], cell_starts[cell + 1], cell_faces,
            q[x, 0], q[x, 1], q[x, 2], depths, crossed,
        )  # fmt: skip
        winding[:] = 0
        total = 0.0
        current = -1
        for a in range(n + 1):
            here = depths[a] if a < n else q[x, 2]
            if current >= 0:
                total += coefficient[current] * (depths[a - 1] - here)
            if a == n:
                break
            winding[abs(crossed[a]) - 1] += 1 if crossed[a] > 0 else -1
            current = -1
            for other in range(n_meshes):
                if winding[other] > 0:
                    current = other
        out[x] = total


@njit(cache=True, parallel=True)
def _attenuations(
    vertices: Any, faces: Any, owner: Any, coefficient: Any, frames: Any, points: Any, out: Any
) -> None:
    for d in prange(len(frames)):
        _attenuations_one(vertices, faces, owner, coefficient, frames[d], points, out[d])


def attenuation_to_outside(
    meshes: Sequence[Mesh], mu_per_um: Sequence[float], points_um: ArrayLike, directions: ArrayLike
) -> FloatArray:
    """Line integrals of mu, (n_directions, n_points), from points to infinity along directions.

    Exact for the meshes (no voxels). mu_per_um: one per mesh, 1/um; later meshes outrank earlier
    ones where they overlap. points_um: (n_points, 3); directions: (n_directions, 3), of any length.
    """
    frames = frame_along(directions)
    points = np.ascontiguousarray(points_um, dtype=np.float64)
    vertices, faces, owner = joined(meshes)
    out = np.zeros((len(frames), len(points)))
    _attenuations(
        vertices, faces, owner, np.asarray(mu_per_um, dtype=np.float64), frames, points, out
    )
    return out


def contains(mesh: Mesh, points_um: ArrayLike) -> NDArray[np.bool_]:
    """Whether points (n, 3) lie inside a mesh: (n,) bool."""
    direction = (0.2137, 0.5481, 0.8087)  # along no edge of a mesh made by hand
    far = 4.0 * float(np.ptp(mesh.bounds_um, axis=0).max())
    points = np.asarray(points_um, dtype=np.float64)
    # the last stretch of the line that is inside ends at the point itself, or it does not
    near = attenuation_to_outside([mesh], [1.0], points, [direction])[0]
    step = 1e-9 * far
    before = attenuation_to_outside([mesh], [1.0], points - step * unit(direction), [direction])[0]
    return (before - near) > 0.5 * step


def points_inside(meshes: Sequence[Mesh], n_points: int, rng: np.random.Generator) -> FloatArray:
    """Points (n_points, 3) spread evenly, and without pattern, over the union of meshes, um.

    A scrambled Sobol sequence (Joe and Kuo, 2008) in the surrounding box, of which those inside are
    kept: means over them converge faster than over independent random points.
    """
    from scipy.stats import qmc

    low = np.min([m.bounds_um[0] for m in meshes], axis=0)
    high = np.max([m.bounds_um[1] for m in meshes], axis=0)
    sequence = qmc.Sobol(3, scramble=True, rng=rng)
    found: list[FloatArray] = []
    total = 0
    while total < n_points:
        candidates = low + sequence.random(1024) * (high - low)
        inside = np.any([contains(m, candidates) for m in meshes], axis=0)
        found.append(candidates[inside])
        total += int(inside.sum())
    return np.concatenate(found)[:n_points]


def quadrature_points(
    meshes: Sequence[Mesh], n_points: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Points (n, 3) in um and weights (n,), of sum one, for means over the union of solids.

    In general the solids are crossed by parallel lines, a random step aside, with Gauss' points on what
    lies inside. With few points (6 to 50 per face) a single crystal of up to 200 faces does better cut
    into tetrahedra: from its centroid to its faces, the largest halved until there are about
    n_points / 4, each with the four-point rule of degree 2 (Hammer, Marlowe and Stroud, 1956).
    """
    mesh = meshes[0]
    n_faces = len(mesh.faces)
    if len(meshes) > 1 or n_faces > 200 or not 6 * n_faces <= n_points <= 50 * n_faces:
        return _points_on_lines(meshes, n_points, rng)
    tetrahedra = np.stack(
        [np.broadcast_to(mesh.centroid_um, mesh.corners[0].shape), *mesh.corners], axis=1
    )
    while 4 * len(tetrahedra) < n_points:
        # the largest are cut in two across their longest edge; what is less than half of it waits
        edges = tetrahedra[:, PAIRS[:, 0]] - tetrahedra[:, PAIRS[:, 1]]
        length = np.einsum("nei,nei->ne", edges, edges)
        size = np.abs(_signed_volumes(tetrahedra))
        chosen = size >= 0.5 * size.max()
        i, j = PAIRS[length[chosen].argmax(axis=1)].T
        rows = np.arange(len(i))
        left, right = tetrahedra[chosen], tetrahedra[chosen]
        middle = 0.5 * (left[rows, i] + left[rows, j])
        left[rows, i] = middle
        right[rows, j] = middle
        tetrahedra = np.concatenate([tetrahedra[~chosen], left, right])
    near, far = (5 - 5**0.5) / 20, (5 + 3 * 5**0.5) / 20
    barycentric = np.full((4, 4), near) + (far - near) * np.eye(4)
    points = np.einsum("qc,nci->nqi", barycentric, tetrahedra).reshape(-1, 3)
    weights = np.repeat(_signed_volumes(tetrahedra) / 4, 4)
    return points, weights / weights.sum()


def _points_on_lines(
    meshes: Sequence[Mesh], n_points: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Points and weights as for :func:`quadrature_points`, on lines along the longest side."""
    # path lengths have square-root ends at a smooth surface: the rule must grow with the lines
    n_gauss = max(5, round(0.55 * n_points ** (1 / 3)))
    low = np.min([m.bounds_um[0] for m in meshes], axis=0)
    high = np.max([m.bounds_um[1] for m in meshes], axis=0)
    frame = frame_along(np.eye(3)[int(np.argmax(high - low))])
    shadow = 0.0
    for mesh in meshes:
        a, b, c = mesh.corners
        shadow += 0.25 * float(np.abs(np.cross(b - a, c - a) @ frame[:, 2]).sum())
    step = np.sqrt(shadow * n_gauss / n_points)
    places = np.concatenate([m.vertices for m in meshes]) @ frame[:, :2]
    first = places.min(axis=0) - rng.random(2) * step
    n_u, n_v = np.ceil((places.max(axis=0) - first) / step).astype(int) + 1
    lines = line_crossings(meshes, frame, first, (int(n_u), int(n_v)), float(step))
    starts, ends, which = [], [], []
    for line in range(len(lines.starts) - 1):
        depth = 0
        for k in range(lines.starts[line], lines.starts[line + 1]):
            before = depth
            depth += 1 if lines.meshes[k] > 0 else -1
            if before == 0:
                starts.append(lines.depths[k])
                which.append(line)
            elif depth == 0:
                ends.append(lines.depths[k])
    start, end, line_of = np.array(starts), np.array(ends), np.array(which)
    node, gauss = np.polynomial.legendre.leggauss(n_gauss)
    w = 0.5 * (start + end)[:, None] + 0.5 * (end - start)[:, None] * node
    u, v = (first + step * np.column_stack(np.divmod(line_of, int(n_v)))).T
    points = (
        u[:, None, None] * frame[:, 0] + v[:, None, None] * frame[:, 1] + w[..., None] * frame[:, 2]
    )
    weights = ((end - start)[:, None] * gauss).ravel()
    return points.reshape(-1, 3), weights / weights.sum()


PAIRS = np.array([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])


def _signed_volumes(tetrahedra: FloatArray) -> FloatArray:
    """Volumes (n,) of tetrahedra (n, 4, 3), negative where the corners run the other way."""
    a, b, c = (tetrahedra[:, k] - tetrahedra[:, 0] for k in (1, 2, 3))
    return np.einsum("ni,ni->n", a, np.cross(b, c)) / 6.0
