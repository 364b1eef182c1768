"""A picture of a crystal in three dimensions, with the names of its faces on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from anacor_dials.absorption.convex_solid import ConvexSolid
from anacor_dials.sample.frames import FloatArray

FACE_COLOURS = ("#7fa8c9", "#c9a97f", "#8fbf8f", "#c98f9f", "#a89fc9", "#bfbf7f")
NO_FACE = "#b0b0b0"
TEXT_AWAY = 0.04  # of the size: how far a name stands off its face
# The axes end so far beyond what is drawn, in sizes of it.
BEYOND = 0.05
# Plotly's camera sees 22.5 degrees to each side of the middle. This is filled by a ball around the
# box of the axes, so many times larger for their numbers and titles.
HALF_VIEW_DEG = 22.5
ROOM = 1.15
MOST_TICKS = 7  # of the longest axis; the others have fewer, as they are shorter


def view_of_solid(
    solid: ConvexSolid, names: Sequence[str], axes: Sequence[str] = ("x", "y", "z")
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(traces, layout) of a polyhedron with names on its faces.

    Parameters
    ----------
    solid : ConvexSolid
    names : sequence of n str
        Of all its faces; those that are cut off have none in the picture.
    axes : sequence of 3 str
        What the axes of the picture are called.
    """
    x, y, z = np.round(solid.corners, 3).T
    surface = {
        "type": "mesh3d",
        "x": x,
        "y": y,
        "z": z,
        "i": solid.triangles[:, 0],
        "j": solid.triangles[:, 1],
        "k": solid.triangles[:, 2],
        "facecolor": [colour_of(f) for f in solid.face_of_triangle],
        "opacity": 0.75,
        "flatshading": True,
        "hoverinfo": "skip",
    }
    places, shown = [], []
    for face in np.flatnonzero(solid.areas_um2 > 0).tolist():
        corners = np.unique(solid.triangles[solid.face_of_triangle == face])
        middle = solid.corners[corners].mean(axis=0)
        places.append(middle + TEXT_AWAY * solid.size_um[0] * solid.normals[face])
        shown.append(names[face])
    traces = [surface, _texts(np.array(places), shown)]
    return traces, layout_of(traces, axes)


def view_of_points(
    points: FloatArray,
    face_of_point: Sequence[int],
    places: FloatArray,
    names: Sequence[str],
    axes: Sequence[str] = ("x", "y", "z"),
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(traces, layout) of points of a surface in the colours of their faces, with names.

    Parameters
    ----------
    points : array (m, 3)
        um.
    face_of_point : sequence of m int
        -1 for points of no face.
    places : array (n, 3)
        Where the names stand, um.
    names : sequence of n str
    axes : sequence of 3 str
        What the axes of the picture are called.
    """
    x, y, z = np.round(points, 2).T
    marks = {
        "type": "scatter3d",
        "x": x,
        "y": y,
        "z": z,
        "mode": "markers",
        "marker": {
            "size": 2,
            "color": [colour_of(f) if f >= 0 else NO_FACE for f in face_of_point],
        },
        "hoverinfo": "skip",
    }
    traces = [marks, _texts(places, names)]
    return traces, layout_of(traces, axes)


def _texts(places: FloatArray, names: Sequence[str]) -> dict[str, Any]:
    x, y, z = np.round(np.reshape(places, (-1, 3)), 3).T
    return {"type": "scatter3d", "x": x, "y": y, "z": z, "mode": "text", "text": list(names)}


def colour_of(face: int) -> str:
    """The colour of a face."""
    return FACE_COLOURS[int(face) % len(FACE_COLOURS)]


def layout_of(traces: Sequence[dict[str, Any]], axes: Sequence[str]) -> dict[str, Any]:
    """The layout of a picture with equal scales along three axes, which is seen as a whole.

    The diagonal of the box of the axes has one length for every shape, so that the numbers and
    titles of a long crystal's axes are in the picture as those of a cube's are.

    Parameters
    ----------
    traces : sequence of dict
        What is drawn, with coordinates x, y and z.
    axes : sequence of 3 str
        What the axes are called.
    """
    points = np.column_stack([np.concatenate([t[place] for t in traces]) for place in "xyz"])
    low, high = points.min(axis=0), points.max(axis=0)
    beyond = BEYOND * float(np.linalg.norm(high - low))
    low, high = low - beyond, high + beyond
    ratio = np.sqrt(3) * (high - low) / np.linalg.norm(high - low)
    away = 0.5 * np.sqrt(3) * ROOM / np.sin(np.radians(HALF_VIEW_DEG))
    scene: dict[str, Any] = {
        "aspectmode": "manual",
        "aspectratio": dict(zip("xyz", np.round(ratio, 4).tolist(), strict=True)),
        "camera": {"eye": dict.fromkeys("xyz", round(away / np.sqrt(3), 3))},
    }
    ticks = np.maximum(np.round(MOST_TICKS * ratio / ratio.max()), 2).astype(int)
    for place, name, most, *ends in zip("xyz", axes, ticks, low, high, strict=True):
        scene[f"{place}axis"] = {
            "title": {"text": f"{name} (um)"},
            "range": np.round(ends, 3).tolist(),
            "nticks": int(most),
        }
    return {
        "scene": scene,
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "showlegend": False,
    }
