"""Convex solids with plane faces: their corners, areas, volume and extent.

A solid is the set of points x with n_i . x <= d_i for all faces i; n_i is the outward normal of a
face and d_i > 0 its distance from the origin, which lies inside. The corners follow by duality: the
points n_i / d_i span a convex polyhedron, each face of which stands for a corner of the solid, and
each corner of which for a face (Preparata & Shamos, Computational Geometry, 1985, section 7.3).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import ConvexHull, QhullError

from anacor_dials.sample.frames import FloatArray, unit

# Corners nearer to each other than this fraction of the size are one, and a face of less than this
# fraction of the surface is none.
SAME_CORNER = 1e-9
SMALLEST_FACE = 1e-9


@dataclass(frozen=True, eq=False)
class ConvexSolid:
    """The solid that some planes enclose.

    Parameters
    ----------
    normals : array (n, 3)
        Outward normals of the faces; they are divided by their lengths.
    distances_um : array (n,)
        The distances of the faces from the origin, um, > 0.

    Attributes
    ----------
    corners : array (m, 3)
        The corners, um.
    triangles : array (t, 3) of int
        The corners of triangles that make up the surface.
    face_of_triangle : array (t,) of int
        The face that each triangle is part of.
    volume_um3 : float
    areas_um2 : array (n,)
        The areas of the faces; 0 for a plane that the others cut off.

    Raises
    ------
    ValueError
        If there are fewer than four faces, a distance is not > 0, or the faces do not enclose a
        volume.

    Examples
    --------
    >>> cube = ConvexSolid(np.concatenate([np.eye(3), -np.eye(3)]), 6 * [5.0])
    >>> round(cube.volume_um3, 6), len(cube.corners)
    (1000.0, 8)
    """

    normals: FloatArray
    distances_um: FloatArray
    corners: FloatArray = field(init=False)
    triangles: NDArray[np.int64] = field(init=False)
    face_of_triangle: NDArray[np.int64] = field(init=False)
    volume_um3: float = field(init=False)
    areas_um2: FloatArray = field(init=False)

    def __init__(self, normals: ArrayLike, distances_um: ArrayLike) -> None:
        n = np.asarray(normals, dtype=np.float64).reshape(-1, 3)
        d = np.asarray(distances_um, dtype=np.float64).reshape(-1)
        if len(n) != len(d) or len(d) < 4:
            raise ValueError(
                f"{len(n)} normals and {len(d)} distances were given; a solid needs four faces or more."
            )
        if not np.all(np.isfinite(n)) or not np.all(np.isfinite(d) & (d > 0)):
            bad = d[~(np.isfinite(d) & (d > 0))]
            raise ValueError(
                f"The distance of a face is {bad[0] if len(bad) else 'not known'}; distances (um) are "
                "measured from a point inside the crystal and are > 0."
            )
        n = unit(n)
        object.__setattr__(self, "normals", n)
        object.__setattr__(self, "distances_um", d)
        self._find_surface(n, d)

    def _find_surface(self, n: FloatArray, d: FloatArray) -> None:
        scale = float(np.median(d))
        try:
            dual = ConvexHull(n * (scale / d)[:, None])
            # the origin lies within the dual polyhedron, or the solid has no end
            if np.any(dual.equations[:, 3] > -SAME_CORNER):
                raise QhullError("open")
            corners = -scale * dual.equations[:, :3] / dual.equations[:, 3:]
            size = float(np.ptp(corners, axis=0).max())
            corners = (
                np.unique(np.round(corners / (SAME_CORNER * size)), axis=0) * SAME_CORNER * size
            )
            hull = ConvexHull(corners)
        except QhullError:
            raise ValueError(
                f"The {len(d)} faces do not enclose a volume; faces are missing on one side of the "
                "crystal (each face is named by itself, -h -k -l as well as h k l)."
            ) from None
        of_triangle = np.argmax(hull.equations[:, :3] @ n.T - _misfit(hull, n, d, size), axis=1)
        places = corners[hull.simplices]
        area = 0.5 * np.linalg.norm(
            np.cross(places[:, 1] - places[:, 0], places[:, 2] - places[:, 0]), axis=1
        )
        areas = np.bincount(of_triangle, area, minlength=len(d))
        areas[areas < SMALLEST_FACE * areas.sum()] = 0.0
        for name, value in (
            ("corners", corners),
            ("triangles", hull.simplices.astype(np.int64)),
            ("face_of_triangle", of_triangle),
            ("volume_um3", float(hull.volume)),
            ("areas_um2", areas),
        ):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        a, b, c = self.size_um
        return (
            f"ConvexSolid({np.count_nonzero(self.areas_um2)} faces, {a:.4g} x {b:.4g} x {c:.4g} um, "
            f"{self.volume_um3:.4g} um3)"
        )

    @property
    def size_um(self) -> tuple[float, float, float]:
        """The largest, middle and smallest size, um.

        They are the edges of the smallest box around the crystal that lies on one of its faces and
        along one of the edges of its outline, seen along the normal of this face.
        """
        return smallest_box_um(self.corners, self.normals[self.areas_um2 > 0])

    def tetrahedra(self) -> FloatArray:
        """Tetrahedra (t, 4, 3) that fill the solid: an inner point and each triangle, um."""
        inner = self.corners.mean(axis=0)
        tips = np.broadcast_to(inner, (len(self.triangles), 1, 3))
        return np.concatenate([tips, self.corners[self.triangles]], axis=1)


def smallest_box_um(corners: FloatArray, normals: FloatArray) -> tuple[float, float, float]:
    """The largest, middle and smallest edge of the smallest box around corners, um.

    Parameters
    ----------
    corners : array (m, 3)
        um.
    normals : array (n, 3)
        The box lies on a face with one of these normals, and along an edge of the outline that is
        seen along it.
    """
    smallest, size = np.inf, (0.0, 0.0, 0.0)
    for normal in normals:
        u = unit(np.cross(normal, np.eye(3)[np.argmin(np.abs(normal))]))
        outline = corners @ np.column_stack([u, np.cross(normal, u)])
        outline = outline[ConvexHull(outline).vertices]
        along = unit(np.roll(outline, -1, axis=0) - outline)
        across = np.column_stack([-along[:, 1], along[:, 0]])
        lengths = np.ptp(outline @ along.T, axis=0)
        widths = np.ptp(outline @ across.T, axis=0)
        height = float(np.ptp(corners @ normal))
        best = int(np.argmin(lengths * widths))
        if lengths[best] * widths[best] * height < smallest:
            smallest = float(lengths[best] * widths[best] * height)
            a, b, c = sorted((float(lengths[best]), float(widths[best]), height), reverse=True)
            size = (a, b, c)
    return size


def _misfit(hull: ConvexHull, n: FloatArray, d: FloatArray, size: float) -> FloatArray:
    """How far each triangle's middle (t,) is from each face (n,), in sizes of the solid."""
    middle = hull.points[hull.simplices].mean(axis=1)
    return np.abs(middle @ n.T - d) / size
