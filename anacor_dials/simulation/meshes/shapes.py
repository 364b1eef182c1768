"""Closed meshes: polyhedra, boxes, spheres, fibres, solids of revolution, prisms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.frames import FloatArray, unit
from anacor_dials.simulation.meshes.mesh import Mesh, mesh_facing_outward


def convex_polyhedron(normals: ArrayLike, distances_um: ArrayLike) -> Mesh:
    """The polyhedron of all points x with normal . x <= distance for each face.

    Parameters
    ----------
    normals : array (n, 3)
        Outward normals of the faces, of any length.
    distances_um : array (n,)
        Distances of the faces from the origin, um; all > 0: the origin lies inside.

    Raises
    ------
    ValueError
        If a distance is not > 0, or if the faces do not enclose a volume.
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
    return _mesh_of_hull(hull)


def rounded_polyhedron(normals: ArrayLike, distances_um: ArrayLike, radius_um: float) -> Mesh:
    """The polyhedron of :func:`convex_polyhedron` with edges and corners of a radius in um.

    It is what a ball of this radius sweeps whose centre stays at least as far within every face.
    The faces keep their places; each is smaller.

    Parameters
    ----------
    normals : array (n, 3)
    distances_um : array (n,)
    radius_um : float
        Less than every distance.

    Raises
    ------
    ValueError
        As :func:`convex_polyhedron` does, for the faces moved inwards by the radius.
    """
    from scipy.spatial import ConvexHull

    n = unit(normals)
    centres = convex_polyhedron(n, np.asarray(distances_um) - radius_um).vertices
    ball = radius_um * np.concatenate([n, unit(sphere(1.0, 2).vertices)])
    hull = ConvexHull((centres[:, None] + ball).reshape(-1, 3))
    return _mesh_of_hull(hull)


def _mesh_of_hull(hull: Any) -> Mesh:
    """The surface of a scipy.spatial.ConvexHull."""
    faces = hull.simplices.astype(np.int32)
    a, b, c = (hull.points[faces[:, i]] for i in range(3))
    inward = np.einsum("ij,ij->i", np.cross(b - a, c - a), hull.equations[:, :3]) < 0
    faces[inward] = faces[inward][:, ::-1]
    return _without_unused_vertices(hull.points, faces)


def _without_unused_vertices(vertices: FloatArray, faces: NDArray[Any]) -> Mesh:
    used, renumbered = np.unique(faces, return_inverse=True)
    return Mesh(vertices[used], renumbered.reshape(faces.shape).astype(np.int32))


def box(size_um: ArrayLike) -> Mesh:
    """A rectangular box centred on the origin, with edges of size_um (3,).

    >>> round(box((10, 20, 30)).volume_um3)
    6000
    """
    half = np.asarray(size_um, dtype=np.float64) / 2
    axes = np.vstack([np.eye(3), -np.eye(3)])
    return convex_polyhedron(axes, np.concatenate([half, half]))


def sphere(radius_um: float, subdivisions: int = 4) -> Mesh:
    """A sphere about the origin: a subdivided icosahedron with 20 * 4^subdivisions faces.

    The vertices lie slightly outside the radius, so that the enclosed volume is that of the sphere.
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
    """A fibre of elliptical cross-section along a closed plane curve.

    Parameters
    ----------
    curve_um : array (n, 3)
        Points of the curve, um; the last is joined to the first. The radius of curvature must
        everywhere be larger than half_width_um.
    across : array (3,)
        The normal of the curve's plane, of any length.
    half_width_um, half_height_um : float
        Half axes of the cross-section in the plane and along its normal, um.
    n_around : int
        The number of vertices around the cross-section.
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
    return mesh_facing_outward(vertices.reshape(-1, 3), faces)


def turned_profile(x_um: ArrayLike, radius_um: ArrayLike, n_around: int = 32) -> Mesh:
    """A solid of revolution about X, closed by flat ends.

    Parameters
    ----------
    x_um : array (n,)
        Increasing positions along X, um.
    radius_um : array (n,)
        The radius at each of them, um; all > 0.
    n_around : int
        The number of corners of the polygon that stands for the circle. It has the circle's area.
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
    return mesh_facing_outward(vertices, faces)


def prism(outline_um: ArrayLike, low_um: float, high_um: float) -> Mesh:
    """The solid over an outline in the XY plane, between the heights low_um and high_um along Z.

    Parameters
    ----------
    outline_um : array (n, 2)
        Corners of the outline, um. Straight lines from their mean to every point of the outline
        must stay inside it (a star-shaped polygon).
    low_um, high_um : float
        Where the solid begins and ends along Z, um.
    """
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
    return mesh_facing_outward(vertices, faces)
