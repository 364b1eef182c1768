"""All crystals of a run in one table: what needs a look stands first."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from anacor_dials.jobs.pipeline.results import COMPARISON_HTML
from anacor_dials.jobs.records import CrystalRow
from anacor_dials.report.contributions import contribution_of, sentences
from anacor_dials.report.links import link
from anacor_dials.report.page import Section, Table, Text
from anacor_dials.report.residual_pattern import hints_of_record
from anacor_dials.report.thumbnails import thumbnails

if TYPE_CHECKING:
    from anacor_dials.jobs.pipeline.results import (
        CorrectedCrystal,
        FailedCrystal,
        GroupResult,
        PipelineResult,
        WavelengthResult,
    )
    from anacor_dials.jobs.records import AbsorptionRecord, AlignmentRecord, MaterialRecord

# As large as Rmeas of good data: from there on the labels decide about the quality of the data.
LARGE_UNCERTAINTY = 0.03
STATES = ("failed", "look", "good")  # in the order of the table

HEADER = (
    "crystal",
    "state",
    "Rmeas without",
    "with the factors",
    "taken",
    "crystal (um^3)",
    "mu (1/mm)",
    "uncertainty of the factors",
    "alignment",
    "what to look at",
    "slices",
    "reports",
)


def rows_of(result: PipelineResult) -> list[CrystalRow]:
    """A row for each crystal and wavelength, sorted by what needs a look.

    Crystals that failed come first, then those with warnings: the more warnings and the larger the
    uncertainty of the factors, the earlier.
    """
    groups = {name: group for group in result.groups for name in group.crystals}
    rows = [_failed(one) for one in result.failed]
    for corrected in result.corrections:
        group = groups.get(corrected.crystal.name)
        for wavelength in group.wavelengths if group else ():
            rows.append(_row(corrected, group, wavelength))
        if group is None:
            rows.append(_row(corrected, None, None))
    return sorted(rows, key=_urgency)


def _urgency(row: CrystalRow) -> tuple[int, int, float, float]:
    return (
        STATES.index(row.state),
        -len(row.warnings),
        -(row.factors_uncertainty or 0.0),
        -(row.r_meas_taken or 0.0),
    )


def _failed(one: FailedCrystal) -> CrystalRow:
    return CrystalRow(crystal=one.crystal.name, state="failed", warnings=(one.reason,))


def _row(
    corrected: CorrectedCrystal, group: GroupResult | None, of: WavelengthResult | None
) -> CrystalRow:
    summary = corrected.summary
    warnings = list(summary.warnings)
    uncertainty = summary.factors_uncertainty_from_labels
    if uncertainty is not None and uncertainty > LARGE_UNCERTAINTY:
        warnings.insert(
            0, f"The labels leave an uncertainty of {100 * uncertainty:.1f} % in the factors"
        )
    r_meas: dict[str, float | None] = {}
    contribution = None
    if group is not None and of is not None:
        r_meas = _r_meas(of)
        contribution = contribution_of(of.contributions, corrected.crystal.name)
        warnings = [*_warnings_of_group(group), *hints_of_record(of.record), *warnings]
        warnings = [*sentences(of.contributions, corrected.crystal.name), *warnings]
    materials = {m.name: m for m in _materials(summary, of)}
    crystal = materials.get("crystal")
    return CrystalRow(
        crystal=corrected.crystal.name,
        state="look" if warnings else "good",
        wavelength_angstrom=None if of is None else of.wavelength,
        r_meas_without=r_meas.get("none"),
        r_meas_with_factors=r_meas.get("analytical"),
        r_meas_taken=None if group is None else r_meas.get(group.selection.strategy.name),
        taken=None if group is None else group.selection.strategy.name,
        space_group=None if group is None else group.space_group,
        crystal_volume_um3=None if crystal is None else crystal.volume_um3,
        mu_per_mm={name: m.mu_per_mm for name, m in materials.items()},
        mean_transmission=summary.transmission.get("mean"),
        factors_uncertainty=uncertainty,
        alignment=alignment_in_words(summary.alignment),
        warnings=tuple(warnings),
        delta_cc_half=None if contribution is None else contribution.delta_cc_half,
        delta_cc_half_error=None if contribution is None else contribution.delta_cc_half_error,
    )


def _warnings_of_group(group: GroupResult) -> list[str]:
    said = [group.warning] if group.warning else []
    said += [f"{name} failed: {reason}" for name, reason in group.failed.items()]
    taken = group.selection.strategy
    if not taken.analytical and not group.warning and "analytical" in group.selection.values:
        said.append(f"{taken.label} is better than the factors alone, and was taken")
    return said


def _r_meas(of: WavelengthResult) -> dict[str, float | None]:
    """{strategy: Rmeas of the same observations}."""
    record = of.record
    if record.same_observations is None:
        return {}
    values = record.same_observations.values
    return {record.strategy_of[label]: one.get("r_meas") for label, one in values.items()}


def _materials(summary: AbsorptionRecord, of: WavelengthResult | None) -> Sequence[MaterialRecord]:
    """The materials at the wavelength, or at the first one."""
    if not summary.wavelengths:
        return ()
    wanted = summary.wavelengths[0].wavelength_angstrom if of is None else of.wavelength
    nearest = min(summary.wavelengths, key=lambda w: abs(w.wavelength_angstrom - wanted))
    return nearest.materials


def alignment_in_words(alignment: AlignmentRecord | None) -> str:
    """What became of the angle between tomography and diffraction."""
    if alignment is None:
        return "as given"
    offset = alignment.to["angle_offset_deg"]
    error = alignment.best.get("angle_offset_error_deg")
    within = "" if error is None or not math.isfinite(error) else f" ± {error:.1f}"
    if alignment.moved:
        return f"moved to {offset:.1f}{within} deg"
    return f"left at {offset:.1f} deg" + (
        f" ({alignment.reason_not_moved})" if alignment.reason_not_moved else ""
    )


def section(result: PipelineResult, rows: Sequence[CrystalRow], root: Path) -> Section:
    """The table of all crystals.

    Parameters
    ----------
    result : PipelineResult
    rows : sequence of CrystalRow
        Of :func:`rows_of`.
    root : Path
        The folder of the report.
    """
    corrections = {one.crystal.name: one for one in result.corrections}
    failed = {one.crystal.name: one for one in result.failed}
    groups = {name: group for group in result.groups for name in group.crystals}
    cells = []
    for row in rows:
        one = corrections.get(row.crystal)
        pictures = Markup("") if one is None else thumbnails(one.labels)
        reports = []
        log = failed[row.crystal].log if row.crystal in failed else None
        if log is not None:
            reports.append(link(log, root, "log"))
        if one is not None and one.segmentation is not None:
            reports.append(_page(one.segmentation.path("anacor_segment.html"), root, "labels"))
        if one is not None:
            reports.append(_page(one.absorption.path("anacor_absorption.html"), root, "factors"))
        for of in groups[row.crystal].wavelengths if row.crystal in groups else ():
            if of.wavelength == row.wavelength_angstrom:
                reports.append(_page(of.comparison.path(COMPARISON_HTML), root, "statistics"))
        cells.append((*_texts(row), pictures, Markup(", ").join(filter(None, reports))))
    n = {state: sum(row.state == state for row in rows) for state in STATES}
    caption = (
        "Rmeas of the same observations. Uncertainty: what the labels leave, relative. Crystals that need a "
        "look come first; the same numbers are in the CSV file beside this page."
    )
    said = f"{len(rows)} rows: {n['failed']} failed, {n['look']} to look at, {n['good']} good."
    return Section("Crystals", [Text(said), Table(cells, HEADER, caption)])


def _page(path: Path, root: Path, text: str) -> Markup:
    return link(path, root, text) if path.is_file() else Markup("")


def _texts(row: CrystalRow) -> tuple[str, ...]:
    several = "" if row.wavelength_angstrom is None else f", {row.wavelength_angstrom:.4f} Å"
    return (
        f"{row.crystal}{several}",
        row.state,
        _number(row.r_meas_without),
        _number(row.r_meas_with_factors),
        (row.taken or "-") + ("" if row.r_meas_taken is None else f" {row.r_meas_taken:.3f}"),
        "-" if row.crystal_volume_um3 is None else f"{row.crystal_volume_um3:.3g}",
        ", ".join(f"{name} {mu:.2f}" for name, mu in row.mu_per_mm.items()) or "-",
        "-" if row.factors_uncertainty is None else f"{100 * row.factors_uncertainty:.1f} %",
        row.alignment or "-",
        "; ".join(row.warnings),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def write_csv(
    path: Path,
    rows: Sequence[CrystalRow],
    more: Mapping[tuple[str, float | None], Mapping[str, object]] | None = None,
) -> None:
    """Writes the table as CSV, with the field names of CrystalRow as its first line.

    Values that are not known are empty; mu is "NAME VALUE" for each material, in 1/mm.

    Parameters
    ----------
    path : Path
    rows : sequence of CrystalRow
    more : mapping, optional
        {(crystal, wavelength): {further column: value}}, of
        :func:`anacor_dials.report.contributions.columns_of`.
    """
    more = more or {}
    further = list(dict.fromkeys(name for one in more.values() for name in one))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        names = [f.name for f in fields(CrystalRow)]
        writer.writerow([*names, *further])
        for row in rows:
            known = more.get((row.crystal, row.wavelength_angstrom), {})
            values = [*(getattr(row, name) for name in names), *map(known.get, further)]
            writer.writerow([_csv_cell(value) for value in values])


def _csv_cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "; ".join(f"{name} {number:.6g}" for name, number in value.items())
    return "; ".join(value) if isinstance(value, tuple) else value
