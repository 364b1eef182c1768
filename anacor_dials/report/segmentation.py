"""Figures of a segmentation: slices that can be scrolled, with outlines, and maps of the uncertainty.

Everything is plotly in plain dictionaries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anacor_dials.report.sample import colour, plane_axes
from anacor_dials.sample.frames import AXIS_NAMES
from anacor_dials.sample.volumes import LabelVolume, Volume

SLICES = 16  # that can be scrolled through, per axis
PICTURE = 160  # pixels on the longer edge
LEVELS = 99  # grey levels; whole numbers of two digits keep the file small


def _outline(mask: NDArray[np.bool_], step: int) -> tuple[list[Any], list[Any]]:
    """Rows and columns, in voxels, of the outlines of a mask, separated by None."""
    from skimage.measure import find_contours

    rows: list[Any] = []
    columns: list[Any] = []
    for line in find_contours(np.pad(mask, 1).astype(np.float32), 0.5):
        line = (line - 1.0) * step
        rows += [*np.round(line[:, 0], 1).tolist(), None]
        columns += [*np.round(line[:, 1], 1).tolist(), None]
    return rows, columns


def _um(index: list[Any], volume: Volume, axis: int) -> list[Any]:
    origin, size = float(volume.centre[axis]), float(volume.voxel_size_um[axis])
    return [None if i is None else round((i - origin) * size, 2) for i in index]


def scrolled_slices(
    values: NDArray[Any], labels: LabelVolume, axis: int, window: tuple[float, float]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(traces, layout) of slices across one axis, through what is not background, with a slider.

    values: (nx, ny, nz) on the labels' grid; window: values of black and white.
    """
    across = [a for a in range(3) if a != axis]
    seen = np.array(
        [bool(np.any(np.take(labels.values, i, axis=axis))) for i in range(labels.shape[axis])]
    )
    there = np.flatnonzero(seen)
    if not there.size:
        there = np.arange(labels.shape[axis])
    chosen = np.unique(np.linspace(there[0], there[-1], min(SLICES, there.size)).astype(int))
    step = max(1, -(-max(labels.shape[a] for a in across) // PICTURE))
    low, high = window
    traces: list[dict[str, Any]] = []
    steps = []
    shown = len(chosen) // 2
    places = [
        _um(list(range(0, labels.shape[a], step)), labels, a) for a in across
    ]  # rows, columns
    n = len(labels.names)
    for k, index in enumerate(chosen):
        plane = np.take(values, index, axis=axis)[::step, ::step].astype(np.float32)
        grey = np.rint(np.clip((plane - low) / (high - low), 0, 1) * LEVELS).astype(int)
        traces.append(
            {
                "type": "heatmap",
                "z": grey,
                "x": places[1],
                "y": places[0],
                "zmin": 0,
                "zmax": LEVELS,
                "colorscale": [[0, "#000000"], [1, "#ffffff"]],
                "showscale": False,
                "hoverinfo": "x+y",
                "visible": k == shown,
            }
        )
        label_plane = np.take(labels.values, index, axis=axis)[::step, ::step]
        for label in range(1, n):
            rows, columns = _outline(label_plane == label, step)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": _um(columns, labels, across[1]),
                    "y": _um(rows, labels, across[0]),
                    "line": {"color": colour(label), "width": 1.5},
                    "name": labels.names[label],
                    "hoverinfo": "name",
                    "visible": k == shown,
                }
            )
        visible = [i // n == k for i in range(n * len(chosen))]
        at = (index - float(labels.centre[axis])) * float(labels.voxel_size_um[axis])
        steps.append({"method": "restyle", "label": f"{at:.0f}", "args": ["visible", visible]})
    layout = {
        "title": {"text": f"across {AXIS_NAMES[axis].upper()}", "x": 0.02},
        **plane_axes(across[1], across[0]),
        "sliders": [
            {
                "active": shown,
                "steps": steps,
                "currentvalue": {"prefix": f"{AXIS_NAMES[axis].upper()} (um) = "},
                "pad": {"t": 45},
            }
        ],
        "legend": {"orientation": "h", "x": 0.12, "y": 1.07},  # right of the title
    }
    return traces, layout


def uncertainty_maps(
    probabilities: NDArray[np.uint8], grid: Volume
) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """(traces, layout) for the views along X, Y and Z: the mean of 1 - the largest probability, in per cent.

    probabilities: uint8 (n, nx, ny, nz); grid: their voxels. Means are over what is not surely air.
    """
    unsure = (np.uint8(255) - probabilities.max(axis=0)).astype(np.float32) / 2.55
    there = probabilities[0] < 250
    figures = []
    for axis in range(3):
        across = [a for a in range(3) if a != axis]
        weight = there.sum(axis=axis)
        picture = np.where(there, unsure, 0).sum(axis=axis) / np.maximum(weight, 1)
        step = max(1, -(-max(picture.shape) // PICTURE))
        traces = [
            {
                "type": "heatmap",
                "z": np.round(picture[::step, ::step], 1),
                "x": _um(list(range(0, picture.shape[1], step)), grid, across[1]),
                "y": _um(list(range(0, picture.shape[0], step)), grid, across[0]),
                "colorscale": "Viridis",
                "zmin": 0,
                "zmax": 50,
                "colorbar": {"title": {"text": "%"}},
            }
        ]
        layout = {
            "title": {"text": f"seen along {AXIS_NAMES[axis].upper()}"},
            **plane_axes(across[1], across[0]),
        }
        figures.append((traces, layout))
    return figures
