"""Closed triangle meshes: shapes, files, overlap, and what straight lines meet in them.

A mesh is a closed surface in the tomo frame, in um. Its faces run counterclockwise as seen from
outside. Thickness maps, label volumes and path lengths all come from one construction: the places
where a line crosses the faces, sorted along the line. A line is inside a part of the sample where
it has entered the surface of this part more often than it has left it. Where several parts contain
the same place, the part of the highest rank (the last in the list) counts.

The crossings are found in projection along the line. Points on an edge follow one rule: half-open
intervals, computed identically from both sides of the edge. Therefore a line never enters a closed
mesh without leaving it.
"""

from __future__ import annotations

from anacor_dials.simulation.meshes.files import read_stl, write_stl
from anacor_dials.simulation.meshes.lines import (
    LineCrossings,
    frame_along,
    label_array,
    line_crossings,
    thickness_maps,
)
from anacor_dials.simulation.meshes.mesh import Mesh
from anacor_dials.simulation.meshes.overlap import (
    overlap,
    require_no_self_intersection,
    surfaces_meet,
)
from anacor_dials.simulation.meshes.points import points_inside, quadrature_points
from anacor_dials.simulation.meshes.rays import attenuation_to_outside, contains
from anacor_dials.simulation.meshes.shapes import (
    box,
    convex_polyhedron,
    prism,
    rounded_polyhedron,
    sphere,
    tube,
    turned_profile,
)

__all__ = [
    "LineCrossings",
    "Mesh",
    "attenuation_to_outside",
    "box",
    "contains",
    "convex_polyhedron",
    "frame_along",
    "label_array",
    "line_crossings",
    "overlap",
    "points_inside",
    "prism",
    "quadrature_points",
    "read_stl",
    "require_no_self_intersection",
    "rounded_polyhedron",
    "sphere",
    "surfaces_meet",
    "thickness_maps",
    "tube",
    "turned_profile",
    "write_stl",
]
