"""The report of a segmentation: its page, its figures (plotly dictionaries), its numbers.

The figures are slices that can be scrolled through, with outlines, and maps of the uncertainty.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anacor_dials.jobs.records import SegmentationRecord
from anacor_dials.report.page import Figure, Item, Section, Table, Text
from anacor_dials.report.sample import colour, plane_axes, view_3d
from anacor_dials.sample.frames import AXIS_NAMES
from anacor_dials.sample.large_arrays import release
from anacor_dials.sample.volumes import LabelVolume, Tomogram, Volume
from anacor_dials.segmentation.working_grid import intensity_scale, working_volume

if TYPE_CHECKING:
    from anacor_dials.jobs.segment import SegmentedSample
    from anacor_dials.segmentation.evaluation import Evaluation
    from anacor_dials.segmentation.inference import Segmentation

SLICES = 16  # that can be scrolled through, per axis
PICTURE = 160  # pixels on the longer edge
FORETOLD = "Overlap (Dice) of the crystal's labels with the true crystal, foretold:"
LEVELS = 99  # grey levels; whole numbers of two digits keep the file small


def percent(value: float, digits: int = 2) -> str:
    """A share in per cent, or "-" if it is no number."""
    return "-" if not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def score_table(evaluation: Evaluation, seconds: float) -> Table:
    """The scores of each class; recall is what the published table calls accuracy."""
    rows = [
        (
            c.name,
            percent(c.recall),
            f"{c.dice:.4f}",
            f"{c.dice_loss:.4f}",
            "-" if not math.isfinite(c.hd95_um) else f"{c.hd95_um:.2f}",
        )
        for c in evaluation.classes
    ]
    entropy = evaluation.cross_entropy
    caption = f"{seconds:.0f} s" + (
        f", cross-entropy {entropy:.4f}" if math.isfinite(entropy) else ""
    )
    return Table(rows, ("", "recall", "Dice", "Dice loss", "HD95 (um)"), caption)


def sections(sample: SegmentedSample) -> list[Section]:
    """The sections of the HTML report."""
    labels, mu, tomogram = sample.labels, sample.mu_per_um, sample.source.tomogram
    counts = labels.counts()
    rows = [
        (
            name,
            f"{counts[label] * labels.voxel_volume_um3:.4g}",
            "-" if not math.isfinite(mu[label]) else f"{mu[label]:.5f}",
            "-" if not math.isfinite(mu[label]) else f"{1e3 * mu[label]:.3f}",
        )
        for label, name in enumerate(labels.names)
    ]
    summary: list[Item] = [
        Table(rows, ("", "volume (um^3)", "mu (1/um)", "mu (1/mm)"), "Median within the material"),
        *(Text(w, "warning") for w in sample.warnings),
    ]
    if sample.uncertainty is not None:
        summary.insert(
            1, Text(f"Uncertainty of the absorption factors from the labels: {sample.uncertainty}.")
        )
    if sample.overlap is not None:
        summary.insert(1, Text(f"{FORETOLD} {sample.overlap}."))
    parts = [Section("Materials", summary)]
    if sample.evaluation is not None:
        table = score_table(sample.evaluation, sample.seconds)
        parts.append(Section("Against the truth", [table]))
    scale = intensity_scale(tomogram.values, tomogram.voxel_size_um)
    window = (scale.air - 0.1 * scale.sample, scale.air + 1.5 * (scale.sample - scale.air))
    slices = []
    for axis in range(3):
        traces, layout = scrolled_slices(tomogram.values, labels, axis, window)
        slices.append(Figure(traces, layout, height=560))
    parts.append(Section("Slices", slices))
    traces, layout = view_3d(labels)
    parts.append(Section("View", [Figure(traces, layout, width="full", height=560)]))
    if sample.segmentation is not None:
        parts += _network_sections(tomogram, sample.segmentation)
    return parts


def _network_sections(tomogram: Tomogram, segmentation: Segmentation) -> list[Section]:
    """Where the network was unsure, and what the clean-up changed."""
    grid = working_volume(tomogram, segmentation.working[0], segmentation.factors)
    maps = uncertainty_maps(segmentation.working, grid)
    changes = [
        (step.name, f"{volume:.0f}", f"{a} to {b}")
        for step in segmentation.steps
        for (a, b), volume in step.changed_um3.items()
    ]
    table = Table(changes, ("step", "um^3", "what"), "What the clean-up changed")
    nothing = Text("The clean-up changed nothing.")
    return [
        Section("Uncertainty", [Figure(traces, layout) for traces, layout in maps]),
        Section("Clean-up", [table if changes else nothing]),
    ]


def record(sample: SegmentedSample) -> SegmentationRecord:
    """The content of anacor_segment.json."""
    labels, segmentation, doubt = sample.labels, sample.segmentation, sample.uncertainty
    counts = labels.counts()
    clean_up = None
    if segmentation is not None:
        clean_up = [
            {
                "step": step.name,
                "changed_um3": {f"{a} to {b}": v for (a, b), v in step.changed_um3.items()},
            }
            for step in segmentation.steps
        ]
    return SegmentationRecord(
        materials={
            name: {
                "label": label,
                "voxels": int(counts[label]),
                "volume_um3": float(counts[label] * labels.voxel_volume_um3),
                "mu_per_um": float(sample.mu_per_um[label]),
            }
            for label, name in enumerate(labels.names)
        },
        seconds=None if segmentation is None else dict(segmentation.seconds),
        bin_factors=None if segmentation is None else segmentation.factors,
        clean_up=clean_up,
        factors_uncertainty=None
        if doubt is None
        else {
            "rms": doubt.rms,
            "draws": doubt.draws.tolist(),
            "spread_of_factors": doubt.spread,
            "crystal_volumes_um3": doubt.crystal_volumes_um3.tolist(),
        },
        crystal_dice_foretold=None if sample.overlap is None else sample.overlap.as_dict(),
        evaluation=None if sample.evaluation is None else sample.evaluation.as_dict(),
        warnings=list(sample.warnings),
    )


def log_lines(sample: SegmentedSample) -> list[str]:
    """For each material its volume and mu, and its scores where there are true labels."""
    labels = sample.labels
    counts = labels.counts()
    lines = [
        f"{name:<12} {counts[label] * labels.voxel_volume_um3:12.0f} um^3  "
        f"mu {sample.mu_per_um[label]:.5f} /um"
        for label, name in enumerate(labels.names)
    ]
    if sample.uncertainty is not None:
        lines.append(f"Uncertainty of the factors from the labels: {sample.uncertainty}")
    if sample.overlap is not None:
        lines.append(f"{FORETOLD} {sample.overlap}")
    if sample.evaluation is not None:
        lines += [
            f"{c.name:<12} recall {percent(c.recall)}, Dice {c.dice:.4f}, HD95 {c.hd95_um:.2f} um"
            for c in sample.evaluation.classes
        ]
    return lines


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


def _holds_sample(labels: LabelVolume, axis: int) -> NDArray[np.bool_]:
    """Which (n,) of the slices across an axis hold more than background."""
    if axis == 0:
        return np.array([bool(plane.any()) for plane in labels.values])
    across = np.zeros(labels.shape[axis], dtype=bool)
    for plane in labels.values:
        across |= plane.any(axis=2 - axis)
    return across


def scrolled_slices(
    values: NDArray[Any], labels: LabelVolume, axis: int, window: tuple[float, float]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(traces, layout) of slices across one axis, with a slider, as far as there is a sample.

    Parameters
    ----------
    values : array (nx, ny, nz)
        On the grid of the labels.
    labels : LabelVolume
    axis : int
        0, 1 or 2.
    window : (float, float)
        The values of black and white.
    """
    across = [a for a in range(3) if a != axis]
    there = np.flatnonzero(_holds_sample(labels, axis))
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
        # what lies on the disk is read as far as it is shown
        shown_part = tuple(index if a == axis else slice(None, None, step) for a in range(3))
        plane = values[shown_part].astype(np.float32)
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
        label_plane = labels.values[shown_part]
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
    release(values)
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
    """(traces, layout) of maps along X, Y and Z: how unsure the network is, in per cent.

    The mean of 1 - the largest probability, over all that is not surely air.

    probabilities: uint8 (n, nx, ny, nz); grid: their voxels.
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
