"""Points and weights for means over the solids that meshes enclose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anacor_dials.sample.frames import FloatArray
from anacor_dials.simulation.meshes.lines import frame_along, line_crossings
from anacor_dials.simulation.meshes.mesh import Mesh
from anacor_dials.simulation.meshes.rays import contains

# crystals with more faces are integrated on lines: each tetrahedron needs several points
MOST_FACES = 200
# the six edges of a tetrahedron, by its corners
EDGES = np.array([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])


def points_inside(meshes: Sequence[Mesh], n_points: int, rng: np.random.Generator) -> FloatArray:
    """Points (n_points, 3) spread evenly over the union of meshes, um.

    They are those points of a scrambled Sobol sequence (Joe and Kuo, SIAM J. Sci. Comput. 30 (2008)
    2635) that lie inside. Means over them converge faster than over independent random points.

    Parameters
    ----------
    meshes : sequence of Mesh
    n_points : int
    rng : numpy.random.Generator
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
    """Points and weights for means over the union of solids.

    In general, parallel lines cross the solids at a random offset, and the stretches inside get the
    points of Gauss-Legendre quadrature. A single crystal of up to MOST_FACES faces, with 6 to 50
    points per face, is integrated more exactly by tetrahedra: one from the centroid to each face,
    the largest halved until there are about n_points / 4, each with the four-point rule of degree 2
    (Hammer, Marlowe and Stroud, Math. Tables Aids Comput. 10 (1956) 130).

    Parameters
    ----------
    meshes : sequence of Mesh
    n_points : int
        About how many points to make.
    rng : numpy.random.Generator

    Returns
    -------
    points : array (n, 3), um
    weights : array (n,)
        Their sum is 1.
    """
    mesh = meshes[0]
    n_faces = len(mesh.faces)
    if len(meshes) > 1 or n_faces > MOST_FACES or not 6 * n_faces <= n_points <= 50 * n_faces:
        return _points_on_lines(meshes, n_points, rng)
    tetrahedra = np.stack(
        [np.broadcast_to(mesh.centroid_um, mesh.corners[0].shape), *mesh.corners], axis=1
    )
    while 4 * len(tetrahedra) < n_points:
        # those of at least half the largest volume are cut in two across their longest edge
        edges = tetrahedra[:, EDGES[:, 0]] - tetrahedra[:, EDGES[:, 1]]
        length = np.einsum("nei,nei->ne", edges, edges)
        size = np.abs(_signed_volumes(tetrahedra))
        chosen = size >= 0.5 * size.max()
        i, j = EDGES[length[chosen].argmax(axis=1)].T
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
    # at a smooth surface path lengths end like a square root: finer lines need more points on each
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


def _signed_volumes(tetrahedra: FloatArray) -> FloatArray:
    """Volumes (n,) of tetrahedra (n, 4, 3); the sign follows the order of the corners."""
    a, b, c = (tetrahedra[:, k] - tetrahedra[:, 0] for k in (1, 2, 3))
    return np.einsum("ni,ni->n", a, np.cross(b, c)) / 6.0
