"""Whether surfaces pass through each other, and whether solids share a place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from anacor_dials.sample.frames import FloatArray, unit
from anacor_dials.simulation.meshes.lines import frame_along, line_crossings
from anacor_dials.simulation.meshes.mesh import Mesh
from anacor_dials.simulation.meshes.rays import contains

# of an edge: closer to its ends than this, faces touch and do not pierce. Well above the rounding
# of float64 (1e-16 times the ratio of the sample to an edge), well below any real overlap.
EPSILON = 1e-9


@njit(cache=True)
def _edge_pierces(p: Any, q: Any, a: Any, b: Any, c: Any, eps: float) -> bool:
    """Whether the segment p q passes through the interior of the triangle a b c.

    Moller and Trumbore, J. Graphics Tools 2 (1997) 21. eps: fractions of the edges that count as
    their ends.
    """
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
    """Numbers of two faces, one of each mesh, that pass through each other; (-1, -1) if none do.

    same: the two meshes are the same one.
    """
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
            if same:  # neighbours share vertices; only edges without a shared one can pierce
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
                    t1[k], t1[end], t2[0], t2[1], t2[2], EPSILON
                ):
                    return i, j
                if not (theirs[k] or theirs[end]) and _edge_pierces(
                    t2[k], t2[end], t1[0], t1[1], t1[2], EPSILON
                ):
                    return i, j
    return -1, -1


def require_no_self_intersection(mesh: Mesh) -> None:
    """Raises ValueError, with the place, if two faces of the mesh pass through each other."""
    i, j = _first_meeting(mesh.vertices, mesh.faces, mesh.vertices, mesh.faces, True)
    if i >= 0:
        place = mesh.vertices[mesh.faces[i]].mean(axis=0)
        raise ValueError(
            f"The mesh intersects itself: faces {i} and {j} pass through each other near "
            f"({', '.join(f'{v:.1f}' for v in place)}) um; remesh or repair it."
        )


def surfaces_meet(first: Mesh, second: Mesh) -> bool:
    """True if a face of one mesh passes through a face of the other."""
    low = np.maximum(first.bounds_um[0], second.bounds_um[0])
    high = np.minimum(first.bounds_um[1], second.bounds_um[1])
    if np.any(low > high):
        return False
    found = _first_meeting(first.vertices, first.faces, second.vertices, second.faces, False)
    return found[0] >= 0


def overlap(first: Mesh, second: Mesh) -> bool:
    """True if the two solids share a place: their surfaces cross, or one lies inside the other."""
    if surfaces_meet(first, second):
        return True
    inside_second = bool(contains(second, _point_inside(first)[None])[0])
    inside_first = bool(contains(first, _point_inside(second)[None])[0])
    return inside_first or inside_second


def _point_inside(mesh: Mesh) -> FloatArray:
    """A point (3,) inside the solid, um.

    A line enters the solid through its largest face; the point is the middle of the stretch inside.
    """
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
