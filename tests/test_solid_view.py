"""The picture of a crystal with named faces: scales, names, and that all of it is seen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from anacor_dials.absorption.convex_solid import ConvexSolid
from anacor_dials.report.solid_view import view_of_points, view_of_solid

HALF_VIEW = np.tan(np.radians(22.5))  # of plotly's camera, up and down
ROOM_FOR_LABELS = 0.05  # of the picture's height, at least, on every side of the axes


def box(*half_edges: float) -> ConvexSolid:
    return ConvexSolid(np.concatenate([np.eye(3), -np.eye(3)]), [*half_edges, *half_edges])


def on_screen(scene: dict, points: np.ndarray) -> np.ndarray:
    """Where points (n, 3), um, are seen: (n, 2), 1 at the upper rim; a pinhole camera, z is up."""
    ends = np.array([scene[f"{place}axis"]["range"] for place in "xyz"])
    ratio = np.array([scene["aspectratio"][place] for place in "xyz"])
    eye = np.array([scene["camera"]["eye"][place] for place in "xyz"])
    places = ((points - ends[:, 0]) / np.ptp(ends, axis=1) - 0.5) * ratio
    ahead = -eye / np.linalg.norm(eye)
    right = np.cross(ahead, [0, 0, 1])
    right /= np.linalg.norm(right)
    depth = (places - eye) @ ahead
    seen = np.column_stack([places @ right, (places - eye) @ np.cross(right, ahead)])
    return seen / depth[:, None] / HALF_VIEW


@pytest.mark.parametrize("edges", [(30, 30, 30), (100, 4, 30), (5, 5, 100), (60, 60, 1.5)])
def test_axes_are_seen_as_a_whole_at_equal_scales(edges) -> None:
    traces, layout = view_of_solid(box(*edges), [f"face {k}" for k in range(6)])
    scene = layout["scene"]
    ends = np.array([scene[f"{place}axis"]["range"] for place in "xyz"])
    ratio = [scene["aspectratio"][place] for place in "xyz"]
    scale = np.array(ratio) / np.ptp(ends, axis=1)
    np.testing.assert_allclose(scale, scale[0], rtol=2e-3)
    corners = np.array(list(itertools.product(*ends)))
    assert np.abs(on_screen(scene, corners)).max() < 1 - 2 * ROOM_FOR_LABELS
    for trace in traces:
        drawn = np.column_stack([trace[place] for place in "xyz"])
        assert np.all((drawn > ends[:, 0]) & (drawn < ends[:, 1]))


def test_each_face_has_its_name_and_one_that_is_cut_off_has_none() -> None:
    normals = np.concatenate([np.eye(3), -np.eye(3), [[1.0, 1.0, 1.0]]])
    solid = ConvexSolid(normals, [10.0] * 6 + [30.0])
    _, texts = view_of_solid(solid, [f"face {k}" for k in range(7)])[0]
    assert texts["text"] == [f"face {k}" for k in range(6)]
    places = np.column_stack([texts[place] for place in "xyz"])
    np.testing.assert_allclose(
        places / np.linalg.norm(places, axis=1)[:, None], normals[:6], atol=1e-6
    )


def test_points_without_names_are_a_picture_too() -> None:
    points = np.random.default_rng(0).uniform(-20, 20, (50, 3))
    _, layout = view_of_points(points, [-1] * 50, np.empty((0, 3)), [])
    assert np.abs(on_screen(layout["scene"], points)).max() < 1
