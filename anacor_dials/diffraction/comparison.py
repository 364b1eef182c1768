"""The same data scaled by several strategies and compared: runs, statistics, figures, one dictionary.

A data source is one set of files that are scaled together, with one set of analytical factors. Several
sources hold the same reflections with factors from several label volumes (by hand, AnACorNet,
AnACorNet + SAM-2); strategies that do not use the factors are then run once.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dials.array_family import flex

from anacor_dials.diffraction.merging import (
    MergingStatistics,
    ScaledIntensities,
    TableRow,
    block_width,
    common_resolution,
    comparison_table,
    in_one_cell,
    load_scaled,
    merging_statistics,
    plain_row,
)
from anacor_dials.diffraction.scaling import (
    FailedScaling,
    ScaledData,
    ScalingJob,
    Strategy,
    scale_all,
)
from anacor_dials.diffraction.selection import STATISTICS, statistics_of_same_observations

logger = logging.getLogger("dials.anacor_dials.comparison")


@dataclass(frozen=True)
class DataSource:
    """Files that are scaled together, and the name of their analytical factors' origin."""

    label: str
    experiments: tuple[Path, ...]
    reflections: tuple[Path, ...]


@dataclass(frozen=True)
class SameObservations:
    """How many observations at least one run keeps, and {label: {statistic: overall value}} of these.

    See :mod:`anacor_dials.diffraction.selection`, whose STATISTICS they are.
    """

    observations: int
    values: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Comparison:
    """Outcomes of all runs in the order asked for, and the statistics of those that succeeded.

    d_max, d_min: the common limits (A); n_bins: number of resolution shells. same: statistics of the same
    observations; None where they were not asked for, or cannot be had.
    """

    outcomes: tuple[ScaledData | FailedScaling, ...]
    statistics: tuple[MergingStatistics, ...]
    d_max: float
    d_min: float
    n_bins: int
    same: SameObservations | None = None

    @property
    def failed(self) -> dict[str, str]:
        """{label: reason} of the runs that failed."""
        return {o.label: o.reason for o in self.outcomes if isinstance(o, FailedScaling)}


# ---- what is to be run ----------------------------------------------------------------------------


def data_sources(
    experiments: Sequence[str | os.PathLike[str]],
    reflections: Sequence[str | os.PathLike[str]],
    labels: Sequence[str] = (),
) -> list[DataSource]:
    """The files divided into data sources, in their order.

    With n labels the experiment files and the reflection files are each divided into n runs of equal
    length. Without labels the files are one source, unless experiment identifiers occur several times:
    these are then so many sources, named after their reflection files or folders. Raises ValueError
    where the files cannot be divided or where the sources do not hold the same experiments.
    """
    experiments = [Path(path) for path in experiments]
    reflections = [Path(path) for path in reflections]
    if not experiments or not reflections:
        raise ValueError("No experiments or no reflections; name at least one .expt and one .refl.")
    labels = tuple(labels)
    if len(set(labels)) != len(labels):
        raise ValueError(f"The labels {', '.join(labels)} are not all different; change one.")
    identifiers = [_identifiers(path) for path in experiments]
    counts = Counter(name for names in identifiers for name in names if name)
    n = len(labels) or max(counts.values(), default=1)
    if len(experiments) % n or len(reflections) % n:
        what = f"{n} labels" if labels else f"experiments that occur {n} times"
        raise ValueError(
            f"{len(experiments)} experiment files and {len(reflections)} reflection files cannot be "
            f"divided among {what}; give equally many files to each data source."
        )
    expt_groups = _runs(experiments, n)
    refl_groups = _runs(reflections, n)
    members = [sorted(name for names in run for name in names) for run in _runs(identifiers, n)]
    for i, names in enumerate(members):
        if names != members[0]:
            raise ValueError(
                f"{expt_groups[0][0]} and {expt_groups[i][0]} hold different experiments; data "
                "sources are the same experiments with factors of different origin, one after another."
            )
    return [
        DataSource(label, expt_group, refl_group)
        for label, expt_group, refl_group in zip(
            labels or _labels_from_names(refl_groups), expt_groups, refl_groups, strict=True
        )
    ]


def _identifiers(path: Path) -> list[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [experiment.get("identifier", "") for experiment in content["experiment"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is no experiment list; name a .expt file of DIALS.") from None


def _runs(items: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    length = len(items) // n
    return [tuple(items[i * length : (i + 1) * length]) for i in range(n)]


def _labels_from_names(groups: Sequence[tuple[Path, ...]]) -> tuple[str, ...]:
    if len(groups) == 1:
        return ("",)
    for name in (lambda path: path.stem, lambda path: path.absolute().parent.name):
        labels = tuple(name(group[0]) for group in groups)
        if len(set(labels)) == len(labels):
            return labels
    return tuple(str(i + 1) for i in range(len(groups)))


def scaling_jobs(
    sources: Sequence[DataSource],
    strategies: Sequence[Strategy],
    folder: str | os.PathLike[str],
    model: str = "auto",
    options: Sequence[str] = (),
) -> list[ScalingJob]:
    """One job for each strategy and data source, each with a folder of its own below `folder`.

    Strategies without the analytical factors get one job, for the first source, as the others hold the
    same intensities; where they do not, one job for every source. model, options: as in
    `anacor_dials.diffraction.scaling.ScalingJob`.
    """
    if not strategies:
        raise ValueError("No strategy was asked for; name at least one.")
    several = len(sources) > 1
    alike = all(_same_intensities(sources[0], other) for other in sources[1:])
    jobs = []
    for strategy in strategies:
        each = several and (strategy.analytical or not alike)
        for source in sources if each else sources[:1]:
            name = f"{strategy.name}_{_file_name(source.label)}" if each else strategy.name
            jobs.append(
                ScalingJob(
                    label=f"{strategy.label}: {source.label}" if each else strategy.label,
                    strategy=strategy,
                    experiments=source.experiments,
                    reflections=source.reflections,
                    folder=Path(folder) / name,
                    model=model,
                    options=tuple(options),
                )
            )
    return jobs


def _same_intensities(first: DataSource, other: DataSource) -> bool:
    for a, b in zip(first.reflections, other.reflections, strict=True):
        a, b = (flex.reflection_table.from_file(os.fspath(path)) for path in (a, b))
        for column in ("intensity.prf.value", "intensity.sum.value"):
            if (column in a) != (column in b):
                return False
            if column in a and not np.array_equal(
                a[column].as_numpy_array(), b[column].as_numpy_array()
            ):
                return False
    return True


def _file_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", label).strip("_") or "source"


# ---- running it -----------------------------------------------------------------------------------


def compare(
    jobs: Sequence[ScalingJob],
    d_min: float | None = None,
    n_bins: int = 20,
    nproc: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """All jobs scaled, at most `nproc` at a time, and merged at one common resolution.

    d_min (A): None takes the finest that all data sets reach. progress: called after each of the
    2 len(jobs) steps with what was done. A job that fails is in the result with its reason; raises
    ValueError where all fail or where the data sets cannot be compared.
    """
    tell = progress or (lambda done: None)

    def finished(outcome: ScaledData | FailedScaling) -> None:
        tell(f"{outcome.label} {'scaled' if isinstance(outcome, ScaledData) else 'failed'}")

    outcomes = scale_all(jobs, nproc, finished)
    _refuse_if_all_failed(outcomes)
    scaled, limits, width = load_to_compare(outcomes, d_min)
    statistics = []
    for one in scaled:
        try:
            statistics.append(merging_statistics(one, *limits, n_bins, width))
        except ValueError as error:
            outcomes = [_not_merged(o, error) if o.label == one.label else o for o in outcomes]
        tell(f"{one.label} merged")
    _refuse_if_all_failed(outcomes)
    same = _same_observations(outcomes, limits) if len(statistics) > 1 else None
    return Comparison(tuple(outcomes), tuple(statistics), *limits, n_bins, same)


def _same_observations(
    outcomes: Sequence[ScaledData | FailedScaling], limits: tuple[float, float]
) -> SameObservations | None:
    files = {o.label: (o.experiments, o.reflections) for o in outcomes if isinstance(o, ScaledData)}
    try:
        values, n = statistics_of_same_observations(files, *limits)
    except ValueError as error:
        logger.warning("No statistics of the same observations: %s", error)
        return None
    return SameObservations(n, values)


def load_to_compare(
    outcomes: Sequence[ScaledData | FailedScaling], d_min: float | None
) -> tuple[list[ScaledIntensities], tuple[float, float], int]:
    """(data of the runs that succeeded, common d_max and d_min in A, images per block), to merge alike.

    d_min (A): None takes the finest that all reach. Raises ValueError where they cannot be compared.
    """
    scaled = in_one_cell(
        [load_scaled(o.label, o.experiments, o.reflections) for o in outcomes if _succeeded(o)]
    )
    return scaled, common_resolution(scaled, d_min), block_width(scaled)


def _succeeded(outcome: ScaledData | FailedScaling) -> bool:
    return isinstance(outcome, ScaledData)


def _not_merged(outcome: ScaledData, error: ValueError) -> FailedScaling:
    return FailedScaling(
        outcome.label,
        outcome.strategy,
        outcome.command,
        f"scaled, not merged: {error}",
        outcome.log,
    )


def _refuse_if_all_failed(outcomes: Sequence[ScaledData | FailedScaling]) -> None:
    if not any(_succeeded(outcome) for outcome in outcomes):
        reasons = "; ".join(
            f"{outcome.label}: {outcome.reason.rstrip('.')}"
            + (f" (log: {outcome.log})" if outcome.log else "")
            for outcome in outcomes
        )
        raise ValueError(f"No strategy succeeded. {reasons}.")


# ---- showing it -----------------------------------------------------------------------------------

SAME_FORMATS = {"i_over_sigma": ".1f"}


def rows_of_same_observations(comparison: Comparison) -> list[TableRow]:
    """Rows to stand below those of `merging.comparison_table`; none where they are not known."""
    if comparison.same is None:
        return []
    return [
        plain_row(
            f"{row.removesuffix('(I)')}, same observations",
            [comparison.same.values[one.label][statistic] for one in comparison.statistics],
            SAME_FORMATS.get(statistic, ".3f"),
            sign,
        )
        for statistic, (row, sign) in STATISTICS.items()
    ]


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison for `anacor_dials.report.page.write_json`. Resolutions in A, seconds of scaling."""
    by_label = {one.label: one for one in comparison.statistics}
    strategies = []
    for outcome in comparison.outcomes:
        entry: dict[str, Any] = {
            "label": outcome.label,
            "strategy": outcome.strategy.name,
            "description": outcome.strategy.description,
            "command": outcome.command_line,
            "log": str(outcome.log) if outcome.log else None,
        }
        if isinstance(outcome, FailedScaling):
            entry |= {"succeeded": False, "reason": outcome.reason}
        else:
            one = by_label[outcome.label]
            entry |= {
                "succeeded": True,
                "seconds": round(outcome.seconds, 1),
                "experiments": str(outcome.experiments),
                "reflections": str(outcome.reflections),
                "html": str(outcome.html) if outcome.html else None,
                "table_1": dict(one.table_1),
                "by_resolution": dict(one.by_resolution),
                "by_image": [vars(series) for series in one.by_image],
            }
        strategies.append(entry)
    return {
        "d_max": comparison.d_max,
        "d_min": comparison.d_min,
        "n_bins": comparison.n_bins,
        "columns": [one.label for one in comparison.statistics],
        "table": [
            {
                "name": row.name,
                "cells": list(row.cells),
                "best": [
                    one.label
                    for one, best in zip(comparison.statistics, row.best, strict=True)
                    if best
                ],
            }
            for row in (
                *comparison_table(comparison.statistics),
                *rows_of_same_observations(comparison),
            )
        ],
        "same_observations": None if comparison.same is None else asdict(comparison.same),
        "strategies": strategies,
    }


# Okabe and Ito (2008): distinct for every kind of colour vision
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#999999")

RESOLUTION_FIGURES = {
    "r_meas": ("R<sub>meas</sub>", "R<sub>meas</sub>"),
    "r_merge": ("R<sub>merge</sub>", "R<sub>merge</sub>"),
    "r_pim": ("R<sub>pim</sub>", "R<sub>pim</sub>"),
    "i_over_sigma": ("&lt;I/σ(I)&gt;", "I/σ"),
    "cc_one_half": ("CC<sub>½</sub>", "CC½"),
    "cc_anomalous": ("CC<sub>anom</sub>", "Anomalous correlation"),
    "completeness": ("Completeness", "Completeness"),
    "multiplicity": ("Multiplicity", "Multiplicity"),
}
IMAGE_FIGURES = {
    "scale": ("Inverse scale factor / its mean", "Scale"),
    "r_merge": ("R<sub>merge</sub>", "R<sub>merge</sub>"),
}


def figures(statistics: Sequence[MergingStatistics]) -> dict[str, dict[str, Any]]:
    """Plotly figures (dictionaries of data and layout), one line per data set: resolution first, then images."""
    made = {
        f"{name}_against_resolution": resolution_figure(statistics, name)
        for name in RESOLUTION_FIGURES
    }
    made |= {f"{name}_against_image": image_figure(statistics, name) for name in IMAGE_FIGURES}
    return made


def resolution_figure(statistics: Sequence[MergingStatistics], name: str) -> dict[str, Any]:
    """One of RESOLUTION_FIGURES against 1/d^2, the axis labelled in A."""
    axis, title = RESOLUTION_FIGURES[name]
    data = []
    for i, one in enumerate(statistics):
        d_star_sq = (one.by_resolution["d_max"] ** -2.0 + one.by_resolution["d_min"] ** -2.0) / 2.0
        values = one.by_resolution[name]
        if values.size:
            data.append(_line(one.label, d_star_sq, values, i, mode="lines+markers"))
    low = statistics[0].by_resolution["d_max"][0] ** -2.0
    high = statistics[0].by_resolution["d_min"][-1] ** -2.0
    ticks = np.linspace(low, high, 6)
    layout = _layout(title, "Resolution (Å)", axis)
    layout["xaxis"] |= {
        "tickvals": ticks.tolist(),
        "ticktext": [f"{value**-0.5:.2f}" for value in ticks],
    }
    if name in ("completeness", "multiplicity", "r_meas", "r_merge", "r_pim", "i_over_sigma"):
        layout["yaxis"]["rangemode"] = "tozero"
    return {"data": data, "layout": layout}


def image_figure(statistics: Sequence[MergingStatistics], name: str) -> dict[str, Any]:
    """One of IMAGE_FIGURES against image number, the sweeps side by side on alternating grounds."""
    axis, title = IMAGE_FIGURES[name]
    ends = [
        max(
            (one.by_image[i].images.max() for one in statistics if one.by_image[i].images.size),
            default=0.0,
        )
        for i in range(len(statistics[0].by_image))
    ]
    starts = np.concatenate([[0.0], np.cumsum(ends)])
    data = []
    for i, one in enumerate(statistics):
        x = np.concatenate(
            [start + series.images for start, series in zip(starts, one.by_image, strict=False)]
        )
        y = np.concatenate([getattr(series, name) for series in one.by_image])
        if name == "scale":  # its overall factor means nothing
            y = y / y.mean()
        text = [
            f"{series.identifier}: {image:.0f}"
            for series in one.by_image
            for image in series.images
        ]
        data.append(_line(one.label, x, y, i, text=text))
    layout = _layout(title, "Image number", axis)
    layout["yaxis"]["rangemode"] = "tozero"
    layout["shapes"] = [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": start,
            "x1": end,
            "y0": 0,
            "y1": 1,
            "fillcolor": ("#d3d3d3", "#ffffff")[i % 2],
            "opacity": 0.3,
            "line": {"width": 0},
            "layer": "below",
        }
        for i, (start, end) in enumerate(
            zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        )
    ]
    if len(ends) <= 30:  # beyond that the names hide each other
        layout["annotations"] = [
            {
                "xref": "x",
                "yref": "paper",
                "x": float(start + end / 2),
                "y": 1.0,
                "yanchor": "bottom",
                "text": series.identifier[:8],
                "showarrow": False,
            }
            for start, end, series in zip(starts[:-1], ends, statistics[0].by_image, strict=True)
        ]
    return {"data": data, "layout": layout}


def _line(
    label: str, x: np.ndarray, y: np.ndarray, i: int, mode: str = "lines", **more: Any
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": mode,
        "name": label,
        "x": x,
        "y": y,
        "line": {
            "color": COLOURS[i % len(COLOURS)],
            "width": 1.5,
            "dash": ("solid", "dot")[i % 2],  # equal lines stay both visible
        },
        "marker": {"size": 4},
        **more,
    }


def _layout(title: str, x_title: str, y_title: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "x": 0.02, "xanchor": "left", "font": {"size": 15}},
        "xaxis": {"title": {"text": x_title}},
        "yaxis": {"title": {"text": y_title}},
        "hovermode": "closest",
    }
