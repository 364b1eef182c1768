"""Rays from points to the outside: integrals of mu, and whether a point is inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.frames import FloatArray, unit
from anacor_dials.simulation.meshes.lines import depth_at, frame_along, span_at, twice_area
from anacor_dials.simulation.meshes.mesh import Mesh, joined

# numba's cache does not notice a change in another file: whoever changes span_at, depth_at or
# twice_area in lines.py removes the __pycache__ of this folder.


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
    """Stores the crossings of one line with depth > w, the farthest first; returns their number.

    The line is at (u, v); cell_faces[first:stop] are the faces that it may cross.
    """
    n = 0
    for a in range(first, stop):
        f = cell_faces[a]
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        left, right = span_at(p, i, j, k, v)
        if not (left <= u < right):
            continue
        depth = depth_at(p, i, j, k, area[f], u, v)
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

    The grid has n_cells x n_cells cells from low to high (u, v, w). Faces outside it, or below low
    in w, are left out. per_um: cells per um along u and v.
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
        area[f] = twice_area(p, i, j, k)
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
    """points @ frame, written to out, without a call to BLAS and its threads."""
    for a in range(len(points)):
        for k in range(3):
            out[a, k] = (
                points[a, 0] * frame[0, k] + points[a, 1] * frame[1, k] + points[a, 2] * frame[2, k]
            )


@njit(cache=True)
def _attenuations_one(
    vertices: Any, faces: Any, owner: Any, coefficient: Any, frame: Any, points: Any, out: Any
) -> None:
    """Sums of coefficient x length (n_points,) along one direction, frame[:, 2]."""
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
    meshes: Sequence[Mesh], mu_per_um: ArrayLike, points_um: ArrayLike, directions: ArrayLike
) -> FloatArray:
    """Line integrals of mu from points to the outside, exact for the meshes.

    Parameters
    ----------
    meshes : sequence of n Mesh
        Where two overlap, the one that is later in the list counts.
    mu_per_um : array (n,)
        mu of each mesh, 1/um.
    points_um : array (n_points, 3)
        Where the rays start, um.
    directions : array (n_directions, 3)
        Where they go, of any length.

    Returns
    -------
    array (n_directions, n_points)
        Optical depths.
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
    """Whether points (n, 3), um, lie inside a mesh: (n,) bool."""
    direction = (0.2137, 0.5481, 0.8087)  # along no edge of a mesh made by hand
    far = 4.0 * float(np.ptp(mesh.bounds_um, axis=0).max())
    points = np.asarray(points_um, dtype=np.float64)
    # a ray that starts a little before the point is longer inside by this step, if the point is
    # inside
    near = attenuation_to_outside([mesh], [1.0], points, [direction])[0]
    step = 1e-9 * far
    before = attenuation_to_outside([mesh], [1.0], points - step * unit(direction), [direction])[0]
    return (before - near) > 0.5 * step
