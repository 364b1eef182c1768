"""The report of a comparison of scaling strategies: table, figures, page, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from anacor_dials.diffraction.statistics import STATISTICS
from anacor_dials.jobs.pipeline.results import COMPARISON_HTML, COMPARISON_JSON
from anacor_dials.jobs.records import (
    ComparisonRecord,
    SameObservationsRecord,
    StrategyRecord,
    TableRowRecord,
)
from anacor_dials.report.page import Figure, Section, Table, Text, write_html, write_json
from anacor_dials.report.residual_pattern import hints_of, pattern_record

if TYPE_CHECKING:
    from anacor_dials.diffraction.merging import MergingStatistics
    from anacor_dials.diffraction.scaling import ScaledData
    from anacor_dials.jobs.compare import Comparison

# ---- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Parameters
    ----------
    name : str
        What is printed.
    key : str
        The name in DIALS' Table 1.
    form : str
        The format of the numbers.
    best : int
        Which value is the best: +1 the highest, -1 the lowest, 0 none.
    """

    name: str
    key: str
    form: str
    best: int


ROWS = (
    Row("Completeness (%)", "Completeness", ".1f", 1),
    Row("Multiplicity", "Multiplicity", ".1f", 1),
    Row("I/sigma", "I/sigma", ".1f", 1),
    Row("Rmerge", "Rmerge(I)", ".3f", -1),
    Row("Rmeas", "Rmeas(I)", ".3f", -1),
    Row("Rpim", "Rpim(I)", ".3f", -1),
    Row("CC half", "CC half", ".3f", 1),
    Row("Anomalous correlation", "Anomalous correlation", ".3f", 1),
    Row("Anomalous slope", "Anomalous slope", ".3f", 1),
    Row("Total reflections", "Total observations", "d", 1),
    Row("Unique reflections", "Total unique", "d", 1),
)


@dataclass(frozen=True)
class TableRow:
    """A printed row.

    Parameters
    ----------
    name : str
    cells : tuple of str
        One for each data set.
    best : tuple of bool
        Which of them are the best; none if all are equal.
    """

    name: str
    cells: tuple[str, ...]
    best: tuple[bool, ...]


def comparison_table(statistics: Sequence[MergingStatistics]) -> list[TableRow]:
    """The rows of the table, "overall (outer shell)"; values that print alike are equally good."""
    rows = [
        TableRow(
            "Resolution limit",
            tuple(
                f"{one.d_max:.2f} - {one.d_min:.2f} "
                f"({one.by_resolution['d_max'][-1]:.2f} - {one.by_resolution['d_min'][-1]:.2f})"
                for one in statistics
            ),
            (False,) * len(statistics),
        )
    ]
    for row in ROWS:
        values = [one.table_1.get(row.key, (None,)) for one in statistics]
        overall = [_text(value[0], row.form) for value in values]
        cells = [
            f"{text} ({_text(value[2], row.form)})" if len(value) == 3 else text
            for text, value in zip(overall, values, strict=True)
        ]
        rows.append(TableRow(row.name, tuple(cells), _best(overall, row.best)))
    return rows


def plain_row(name: str, values: Sequence[float | None], form: str, best: int) -> TableRow:
    """A row of single values.

    Parameters
    ----------
    name : str
    values : sequence of float or None
    form, best : str, int
        As of :class:`Row`.
    """
    cells = tuple(_text(value, form) for value in values)
    return TableRow(name, cells, _best(cells, best))


def _best(texts: Sequence[str], sign: int) -> tuple[bool, ...]:
    """Which of the printed values are the best; none where all tie."""
    numbers = [sign * float(t) if t != "-" else -np.inf for t in texts]
    top = max(numbers, default=0.0)
    best = tuple(sign != 0 and n == top and bool(np.isfinite(n)) for n in numbers)
    return (False,) * len(best) if all(best) else best


def _text(value: float | None, form: str) -> str:
    if value is None or not np.isfinite(value):
        return "-"
    text = format(int(value) if form == "d" else float(value), form)
    return text.replace("-0.000", "0.000") if float(text) == 0 else text


def format_table(
    statistics: Sequence[MergingStatistics],
    failed: Mapping[str, str] | None = None,
    further: Sequence[TableRow] = (),
) -> str:
    """The table as plain text. The best value of each row is marked by an asterisk.

    Parameters
    ----------
    statistics : sequence of MergingStatistics
    failed : mapping, optional
        {label: reason} of data sets that could not be scaled. Each is a column of dashes, and its
        reason stands below the table.
    further : sequence of TableRow
        Rows below the others.
    """
    failed = failed or {}
    table = [*comparison_table(statistics), *further]
    columns: list[list[str]] = [["", *(row.name for row in table)]]
    for i, one in enumerate(statistics):
        columns.append(
            [one.label, *(row.cells[i] + ("*" if row.best[i] else " ") for row in table)]
        )
    columns += [[label, *["failed "] * len(table)] for label in failed]
    widths = [max(len(text) for text in column) for column in columns]
    lines = [
        "  ".join(
            text.ljust(width) if j == 0 else text.rjust(width)
            for j, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in zip(*columns, strict=True)
    ]
    lines.insert(1, "-" * max(len(line) for line in lines))
    lines += ["", "overall (outer shell); * the best overall value of the row"]
    lines += [f"{label} failed: {reason}" for label, reason in failed.items()]
    return "\n".join(lines)


SAME_FORMATS = {"i_over_sigma": ".1f"}


def rows_of_same_observations(comparison: Comparison) -> list[TableRow]:
    """Rows to stand below those of :func:`comparison_table`; none for a single data set."""
    if comparison.same is None or len(comparison.statistics) < 2:
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


def record(comparison: Comparison) -> ComparisonRecord:
    """The content of anacor_compare.json."""
    statistics = comparison.statistics
    rows = [(row, False) for row in comparison_table(statistics)]
    rows += [(row, True) for row in rows_of_same_observations(comparison)]
    same = comparison.same
    return ComparisonRecord(
        d_max=comparison.d_max,
        d_min=comparison.d_min,
        n_bins=comparison.n_bins,
        columns=[one.label for one in statistics],
        table=[
            TableRowRecord(
                row.name,
                row.cells,
                [one.label for one, best in zip(statistics, row.best, strict=True) if best],
                of_same,
            )
            for row, of_same in rows
        ],
        same_observations=None
        if same is None
        else SameObservationsRecord(same.observations, same.values),
        strategies=_strategy_records(comparison),
        signal_limit=comparison.signal_limit,
    )


def hints(comparison: Comparison) -> list[str]:
    """What to look at because of a pattern that the factors leave; a sentence for each strategy."""
    return hints_of({name: pattern_record(one) for name, one in comparison.patterns.items()})


def _strategy_records(comparison: Comparison) -> list[StrategyRecord]:
    by_label = {one.label: one for one in comparison.statistics}
    records = []
    for outcome in comparison.outcomes:
        failed = StrategyRecord(
            label=outcome.label,
            strategy=outcome.strategy.name,
            description=outcome.strategy.description,
            command=outcome.command_line,
            log=str(outcome.log) if outcome.log else None,
            succeeded=False,
            reason=comparison.failed.get(outcome.label),
        )
        if outcome.label in comparison.failed:
            records.append(failed)
            continue
        one, scaled = by_label[outcome.label], cast("ScaledData", outcome)
        records.append(
            replace(
                failed,
                succeeded=True,
                seconds=round(scaled.seconds, 1),
                experiments=str(scaled.experiments),
                reflections=str(scaled.reflections),
                html=str(scaled.html) if scaled.html else None,
                table_1=one.table_1,
                by_resolution=one.by_resolution,
                by_image=[vars(series) for series in one.by_image],
                residual_pattern=pattern_record(comparison.patterns.get(outcome.label)),
            )
        )
    return records


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
    """Plotly figures (dictionaries of data and layout), one line per data set: resolution first,
    then images.
    """
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


# ---- the page ------------------------------------------------------------------------------------


def sections(comparison: Comparison) -> list[Section]:
    """The sections of the HTML report."""
    statistics, failed = comparison.statistics, comparison.failed
    further = rows_of_same_observations(comparison)
    rows = [*comparison_table(statistics), *further]
    same = (
        f" Of the same observations: of the {comparison.same.observations} that at least one of the strategies "
        "keeps, as each of them rejects outliers of its own, most where absorption is left uncorrected."
        if comparison.same and further
        else ""
    )
    table = Table(
        [[row.name, *row.cells, *["failed"] * len(failed)] for row in rows],
        header=["", *(one.label for one in statistics), *failed],
        caption="Overall (outer shell). Marked: the best overall value of each row. Resolution in Å."
        + same,
        marked=frozenset(
            (i, j + 1) for i, row in enumerate(rows) for j, best in enumerate(row.best) if best
        ),
    )
    drawn = {
        name: Figure(
            figure["data"],
            figure["layout"],
            width="full" if name.endswith("_against_image") else "half",
        )
        for name, figure in figures(statistics).items()
    }
    runs = Table(
        [
            [
                outcome.label,
                outcome.strategy.description,
                "failed"
                if outcome.label in failed
                else f"{cast('ScaledData', outcome).seconds:.0f} s",
                outcome.log or "",
            ]
            for outcome in comparison.outcomes
        ],
        header=["strategy", "absorption correction", "time", "log"],
    )
    commands = [Text(f"{one.label}:\n{one.command_line}") for one in comparison.outcomes]
    return [
        Section(
            "Merging statistics",
            [
                table,
                *(Text(f"{label} failed: {reason}", "warning") for label, reason in failed.items()),
                *(Text(said, "warning") for said in hints(comparison)),
                Text(
                    "Absorption that is left uncorrected can raise the anomalous slope as a signal "
                    "does, above all where the error model is switched off: judge it beside the "
                    "anomalous correlation."
                ),
            ],
        ),
        Section(
            "Against resolution", [f for n, f in drawn.items() if n.endswith("_against_resolution")]
        ),
        Section(
            "Against image number", [f for n, f in drawn.items() if n.endswith("_against_image")]
        ),
        Section("Runs of dials.scale", [runs, *commands]),
    ]


def write(comparison: Comparison, folder: Path) -> None:
    """Writes the comparison as page and as numbers into a folder."""
    write_json(folder / COMPARISON_JSON, record(comparison))
    write_html(
        folder / COMPARISON_HTML,
        "Comparison of absorption corrections",
        sections(comparison),
    )
