"""Pictures of labelled volumes: slices and a 3-D view."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anacor_dials.report.page import Figure, Item, Section
from anacor_dials.sample.frames import AXIS_NAMES
from anacor_dials.sample.volumes import LabelVolume

# air, liquor, loop, crystal; further materials follow
COLOURS = ("#ffffff", "#9ecae9", "#e0a458", "#c0504d", "#7aa974", "#8c7ab8", "#c9c24e", "#7f7f7f")
LARGEST_PICTURE = 400  # pixels on edge
CELLS_3D = 72  # along the longest edge of the 3-D view
SAMPLES_OF_CELL = 4


def sections(labels: LabelVolume) -> list[Section]:
    """Slices through the crystal, and a view of the whole."""
    pictures: list[Item] = [
        Figure(traces, layout, caption, height=460)
        for traces, layout, caption in slice_figures(labels)
    ]
    traces, layout = view_3d(labels)
    pictures.append(
        Figure(traces, layout, "Crystal, liquor and loop in the frame of the tomogram.", height=460)
    )
    return [Section("Sample", pictures)]


def colour(label: int) -> str:
    """The colour of a label in all pictures."""
    return COLOURS[label] if label < len(COLOURS) else COLOURS[1 + label % (len(COLOURS) - 1)]


def _centre_of(labels: LabelVolume, name: str) -> NDArray[np.int64]:
    """The voxel in the middle of a material's bounding box."""
    label = labels.label(name)
    middle = []
    inside = [np.zeros(n, dtype=bool) for n in labels.shape]
    for i, plane in enumerate(labels.values):
        found = plane == label
        inside[0][i] = found.any()
        inside[1] |= found.any(axis=1)
        inside[2] |= found.any(axis=0)
    for line in inside:
        where = np.flatnonzero(line)
        middle.append(int(where[[0, -1]].mean()) if len(where) else len(line) // 2)
    return np.array(middle)


def slice_figures(
    labels: LabelVolume, name: str = "crystal"
) -> list[tuple[list[dict[str, Any]], dict[str, Any], str]]:
    """Three slices through the middle of a material: (traces, layout, caption) of each.

    Axes are in um from the origin. The rotation axis (X) and, at rotation_angle = 0, the beam
    (along -Z) are drawn in where the slice holds them.
    """
    centre = _centre_of(labels, name)
    n = len(labels.names)
    scale = []
    for label in range(n):
        scale += [[label / n, colour(label)], [(label + 1) / n, colour(label)]]
    figures = []
    for normal, (across, up) in ((2, (1, 0)), (1, (2, 0)), (0, (2, 1))):
        plane = np.take(labels.values, centre[normal], axis=normal)
        # axes left in index order; the picture's rows run along `up`
        rows, columns = (up, across) if up < across else (across, up)
        picture = plane if rows == up else plane.T
        steps = [max(1, -(-labels.shape[a] // LARGEST_PICTURE)) for a in (up, across)]
        picture = picture[:: steps[0], :: steps[1]]
        axes = {}
        for a, step in ((across, steps[1]), (up, steps[0])):
            index = np.arange(0, labels.shape[a], step)
            axes[a] = (index - labels.centre[a]) * labels.voxel_size_um[a]
        at = (centre[normal] - labels.centre[normal]) * labels.voxel_size_um[normal]
        traces: list[dict[str, Any]] = [
            {
                "type": "heatmap",
                "z": picture,
                "x": np.round(axes[across], 4),
                "y": np.round(axes[up], 4),
                "zmin": -0.5,
                "zmax": n - 0.5,
                "colorscale": scale,
                "colorbar": {
                    "tickvals": list(range(n)),
                    "ticktext": list(labels.names),
                    "len": 0.9,
                },
                "hovertemplate": "%{x:.1f}, %{y:.1f} um<extra></extra>",
            }
        ]
        shapes, notes = [], []
        edge = {a: (float(axes[a][0]), float(axes[a][-1])) for a in (across, up)}
        if up == 0:  # the rotation axis runs up the picture through the origin
            shapes.append(_line(0.0, edge[0][0], 0.0, edge[0][1], "dash"))
            notes.append(_note(0.0, edge[0][1], "rotation axis X", "top"))
        if across == 2:  # the beam comes from +Z
            shapes.append(_line(edge[2][0], 0.0, edge[2][1], 0.0, "dot"))
            notes.append(_note(edge[2][1], 0.0, "beam \u2190", "bottom"))
        layout = {
            "title": {"text": f"{AXIS_NAMES[normal].upper()} = {at:.1f} um"},
            **plane_axes(across, up),
            "shapes": shapes,
            "annotations": notes,
        }
        figures.append((traces, layout, f"Slice at right angles to {AXIS_NAMES[normal].upper()}"))
    return figures


def plane_axes(across: int, up: int) -> dict[str, Any]:
    """The layout's axes of a picture in um, X, Y or Z (0, 1, 2) across and up it, at one scale."""
    return {
        "xaxis": {
            "title": {"text": f"{AXIS_NAMES[across].upper()} (um)"},
            "constrain": "domain",
        },
        "yaxis": {
            "title": {"text": f"{AXIS_NAMES[up].upper()} (um)"},
            "scaleanchor": "x",
            "constrain": "domain",
        },
    }


def _line(x0: float, y0: float, x1: float, y1: float, dash: str) -> dict[str, Any]:
    line = {"color": "#222222", "width": 1.5, "dash": dash}
    return {"type": "line", "x0": x0, "y0": y0, "x1": x1, "y1": y1, "line": line}


def _note(x: float, y: float, text: str, anchor: str) -> dict[str, Any]:
    return {"x": x, "y": y, "text": text, "showarrow": False, "yanchor": anchor, "xanchor": "right"}


def view_3d(labels: LabelVolume) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(traces, layout) of the surfaces of all materials but the background, and the rotation axis.

    Surfaces are drawn from a coarse copy of the volume (CELLS_3D along its longest edge, each the
    mean of up to SAMPLES_OF_CELL^3 voxels or a few more); the outer ones are transparent.
    """
    from skimage.measure import marching_cubes

    size = labels.size_um
    cell = float(size.max()) / CELLS_3D
    step = np.maximum(1, np.round(cell / labels.voxel_size_um)).astype(int)
    apart = np.maximum(1, step // SAMPLES_OF_CELL)  # voxels from one that is looked at to the next
    of_cell = np.maximum(1, np.round(step / apart)).astype(int)
    step = apart * of_cell
    thinned = labels.values[tuple(slice(a // 2, None, a) for a in apart)]
    coarse_shape = [-(-n // s) for n, s in zip(thinned.shape, of_cell, strict=True)]
    traces: list[dict[str, Any]] = []
    for label in range(1, len(labels.names)):
        share = np.zeros(coarse_shape)
        for i in range(coarse_shape[0]):
            slab = thinned[i * of_cell[0] : (i + 1) * of_cell[0]] == label
            share[i] = _block_mean(slab.mean(axis=0), of_cell[1], of_cell[2])
        if share.max() <= 0.3:
            continue
        padded = np.pad(share, 1)
        vertices, faces, _, _ = marching_cubes(padded, level=0.3)
        index = (vertices - 1.0 + 0.5) * step - 0.5
        x, y, z = labels.position_um(index).T
        traces.append(
            {
                "type": "mesh3d",
                "x": np.round(x, 2),
                "y": np.round(y, 2),
                "z": np.round(z, 2),
                "i": faces[:, 0],
                "j": faces[:, 1],
                "k": faces[:, 2],
                "color": colour(label),
                "opacity": 1.0 if labels.names[label] == "crystal" else 0.25,
                "name": labels.names[label],
                "showlegend": True,
                "hoverinfo": "name",
            }
        )
    ends = [
        (-labels.centre[0] - 0.5) * labels.voxel_size_um[0],
        (labels.shape[0] - 0.5 - labels.centre[0]) * labels.voxel_size_um[0],
    ]
    traces.append(
        {
            "type": "scatter3d",
            "x": ends,
            "y": [0, 0],
            "z": [0, 0],
            "mode": "lines",
            "line": {"color": "#222222", "width": 4, "dash": "dash"},
            "name": "rotation axis",
        }
    )
    front = (labels.shape[2] - 0.5 - labels.centre[2]) * labels.voxel_size_um[2]
    traces.append(
        {
            "type": "scatter3d",
            "x": [0, 0],
            "y": [0, 0],
            "z": [front * 1.3, 0],
            "mode": "lines",
            "line": {"color": "#c77700", "width": 4},
            "name": "beam at angle 0",
        }
    )
    layout = {
        "scene": {
            "aspectmode": "data",
            "xaxis": {"title": {"text": "X (um)"}},
            "yaxis": {"title": {"text": "Y (um)"}},
            "zaxis": {"title": {"text": "Z (um)"}},
        },
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "legend": {"orientation": "h"},
    }
    return traces, layout


def _block_mean(plane: NDArray[Any], step_y: int, step_z: int) -> NDArray[Any]:
    """Means over blocks of step_y x step_z; the last ones may be smaller."""
    rows = np.add.reduceat(plane, np.arange(0, plane.shape[0], step_y), axis=0)
    sums = np.add.reduceat(rows, np.arange(0, plane.shape[1], step_z), axis=1)
    ones = np.ones(plane.shape)
    counts = np.add.reduceat(
        np.add.reduceat(ones, np.arange(0, plane.shape[0], step_y), axis=0),
        np.arange(0, plane.shape[1], step_z),
        axis=1,
    )
    return sums / counts
