"""The report of xia2.anacor: page, table for the log, and the content of anacor.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from anacor_dials.diffraction.statistics import STATISTICS
from anacor_dials.jobs.pipeline.results import COMPARISON_HTML, CONTRIBUTIONS, FREE_SET
from anacor_dials.jobs.records import (
    ComparisonRecord,
    CrystalRecord,
    GroupRecord,
    PipelineRecord,
    SelectionRecord,
    WavelengthRecord,
)
from anacor_dials.report import contributions, crystals
from anacor_dials.report.links import link, links
from anacor_dials.report.page import Item, Section, Table, Text
from anacor_dials.report.residual_pattern import hints_of_record

if TYPE_CHECKING:
    from anacor_dials.jobs.pipeline.results import (
        CorrectedCrystal,
        GroupResult,
        PipelineResult,
        WavelengthResult,
    )
    from anacor_dials.jobs.pipeline.settings import PipelineSettings
    from anacor_dials.jobs.pipeline.steps import FinishedStep, WorkingFolder


def main_table(group: GroupResult, of: WavelengthResult) -> Table:
    """The merging statistics of all strategies, the best values marked and the chosen one named."""
    record, taken = of.record, group.selection
    header = [
        label + (" (taken)" if record.strategy_of[label] == taken.strategy.name else "")
        for label in record.columns
    ]
    failed = [one.label for one in record.strategies if not one.succeeded]
    # what each strategy keeps differs; the choice is made on the same observations, the last row
    shown = [row for row in record.table if not row.of_same_observations]
    rows = [[row.name, *row.cells, *["failed"] * len(failed)] for row in shown]
    marked = frozenset(
        (i, 1 + list(record.columns).index(label))
        for i, row in enumerate(shown)
        for label in row.best
    )
    same = record.same_observations
    if same is not None:
        row_name, sign = STATISTICS[taken.statistic]
        values = [same.values.get(label, {}).get(taken.statistic) for label in record.columns]
        known = [sign * value for value in values if value is not None]
        rows.append(
            [
                f"{row_name}, same {same.observations} observations",
                *("-" if value is None else f"{value:.3f}" for value in values),
                *["failed"] * len(failed),
            ]
        )
        marked |= {
            (len(rows) - 1, 1 + j)
            for j, value in enumerate(values)
            if value is not None and len(known) > 1 and sign * value == max(known)
        }
    several = f", {of.wavelength:.5g} Å" if len(group.wavelengths) > 1 else ""
    caption = (
        f"{group.name}{several}. Overall (outer shell), of the observations that each strategy keeps; last "
        "row: of the same observations, those that any of them keeps. Marked: the best overall value of "
        "each row. Resolution in Å."
    )
    return Table(rows, ["", *header, *failed], caption, marked)


def sections(result: PipelineResult, work: WorkingFolder) -> list[Section]:
    """The sections of anacor.html."""
    root = work.path
    overview = crystals.section(result, crystals.rows_of(result), root)
    steps = [
        (step.name, f"{step.seconds:.0f} s", step.finished, links(step.folder, root))
        for step in work.finished
    ]
    commands = [
        Text(f"{step.name}:\n{step.command_line}")
        for step in work.finished
        if not {COMPARISON_HTML, CONTRIBUTIONS, FREE_SET} & set(step.outputs)
    ]
    contributed = contributions.section(result)
    return [
        overview,
        *([contributed] if contributed else []),
        *_statistics_sections(result, root),
        Section("Absorption factors", _factor_items(result, root)),
        Section("Steps", [Table(steps, ("step", "time", "finished (UTC)", "reports and logs"))]),
        Section("Command lines", commands),
    ]


def limit_in_words(record: ComparisonRecord) -> str:
    """Where statistics and merged data end, and why.

    Parameters
    ----------
    record : ComparisonRecord
    """
    return (
        f"Statistics and merged data end at {record.d_min:.2f} A, where CC1/2 of the best strategy falls "
        "below cc_half=; d_min= sets another limit, cc_half=None none. Unmerged data are complete."
    )


def _statistics_sections(result: PipelineResult, root: Path) -> list[Section]:
    """Merging statistics of every group, and the files that were made of it."""
    statistics: list[Item] = []
    files = []
    for group in result.groups:
        selection = group.selection
        cell = ", ".join(f"{parameter:.2f}" for parameter in group.unit_cell)
        statistics.append(
            Text(
                f"{group.name}: {group.space_group}, cell {cell}. Taken: {selection.strategy.label} "
                f"({selection.strategy.description}); {selection.reason}."
            )
        )
        if group.free_set:
            statistics.append(Text(f"{group.name}. {group.free_set}"))
        if group.warning:
            statistics.append(Text(group.warning, "warning"))
        for one in group.wavelengths:
            statistics.append(main_table(group, one))
            if one.record.signal_limit:
                statistics.append(Text(limit_in_words(one.record)))
            statistics += [Text(said, "warning") for said in hints_of_record(one.record)]
            report = one.comparison.path(COMPARISON_HTML)
            shown = link(report, root, "Plots against resolution and image number")
            statistics.append(Text(shown))
            files += [
                (group.name, f"{one.wavelength:.5f}", what, link(path, root))
                for what, path in one.files.items()
            ]
        files += [
            (group.name, "", "scaled, for xia2.multiplex or DIALS", link(path, root))
            for path in (group.experiments, group.reflections)
        ]
        statistics += [
            Text(f"{name} failed: {reason}", "warning") for name, reason in group.failed.items()
        ]
    return [
        Section("Merging statistics", statistics),
        Section("Results", [Table(files, ("", "wavelength (Å)", "", "file"))]),
    ]


def _factor_items(result: PipelineResult, root: Path) -> list[Item]:
    """The factors of every crystal, and the warnings."""
    factors: list[Item] = []
    rows = []
    for corrected in result.corrections:
        summary = corrected.summary
        transmission = summary.transmission
        mu = "; ".join(
            f"{w.wavelength_angstrom:.4f} Å: "
            + ", ".join(f"{m.name} {m.mu_per_mm:.2f}" for m in w.materials)
            for w in summary.wavelengths
        )
        rows.append(
            (
                corrected.crystal.name,
                str(len(corrected.crystal.sweeps)),
                str(corrected.labels)
                if corrected.segmentation is None
                else link(corrected.labels, root),
                mu,
                f"{transmission['min']:.3f} - {transmission['max']:.3f}, mean {transmission['mean']:.3f}",
            )
        )
        factors += [Text(f"{corrected.crystal.name}: {w}", "warning") for w in summary.warnings]
    factors.insert(
        0, Table(rows, ("crystal", "files", "labels", "mu (1/mm)", "transmission of reflections"))
    )
    return factors


def record(
    result: PipelineResult,
    work: WorkingFolder,
    settings: PipelineSettings,
    arguments: list[str],
    changed: str,
) -> PipelineRecord:
    """The content of anacor.json.

    Parameters
    ----------
    result : PipelineResult
    work : WorkingFolder
    settings : PipelineSettings
    arguments : list of str
        As typed.
    changed : str
        The parameters that were changed, as PHIL.
    """
    of_steps = {program: v for step in work.finished for program, v in step.versions.items()}
    return PipelineRecord(
        program={"name": "xia2.anacor", **of_steps, **work.versions},
        arguments=arguments,
        parameters=changed,
        inputs={
            path: digest
            for step in work.finished
            for path, digest in step.inputs.items()
            if not Path(path).is_relative_to(work.path)
        },
        crystals=[_crystal_record(one) for one in result.corrections],
        groups=[_group_record(group, settings.margin) for group in result.groups],
        overview=crystals.rows_of(result),
        failed=[
            {"crystal": one.crystal.name, "reason": one.reason, "log": one.log}
            for one in result.failed
        ],
        steps=[
            {
                "name": step.name,
                "done_in_this_run": step.why is not None,
                "why": step.why,
                "folder": step.folder,
                "command_line": step.command_line,
                **step.as_dict(),
            }
            for step in work.finished
        ],
    )


def _name(step: FinishedStep | None) -> str | None:
    return None if step is None else step.name


def _crystal_record(one: CorrectedCrystal) -> CrystalRecord:
    summary = one.summary
    return CrystalRecord(
        name=one.crystal.name,
        tomography=one.crystal.tomography,
        labels=one.labels,
        segmented_by=_name(one.segmentation),
        factors_by=_name(one.absorption),
        sweeps=[vars(sweep) for sweep in one.crystal.sweeps],
        factors={key: getattr(summary, key) for key in ("transmission", "wavelengths", "warnings")},
    )


def _group_record(group: GroupResult, margin: float) -> GroupRecord:
    taken = group.selection
    return GroupRecord(
        name=group.name,
        crystals=group.crystals,
        symmetry_by=_name(group.symmetry),
        absences_by=_name(group.absences),
        space_group=group.space_group,
        unit_cell=group.unit_cell,
        scaled_by={name: step.name for name, step in group.scaled.items()},
        failed=group.failed,
        warning=group.warning,
        selection=SelectionRecord(
            taken.strategy.name, taken.statistic, taken.values, margin, taken.reason
        ),
        experiments=group.experiments,
        reflections=group.reflections,
        wavelengths=[_wavelength_record(one) for one in group.wavelengths],
        free_set=group.free_set,
    )


def _wavelength_record(one: WavelengthResult) -> WavelengthRecord:
    record = one.record
    return WavelengthRecord(
        name=one.name,
        wavelength_angstrom=one.wavelength,
        files=one.files,
        d_max=record.d_max,
        d_min=record.d_min,
        table=record.table,
        same_observations=record.same_observations,
        table_1={of.strategy: of.table_1 for of in record.strategies if of.succeeded},
        contributions=one.contributions,
    )


def table_text(table: Table) -> str:
    """A table as plain text, an asterisk at what is marked."""
    texts = [list(map(str, table.header))] + [
        [str(cell) + ("*" if (i, j) in table.marked else " ") for j, cell in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    widths = [max(len(row[j]) for row in texts) for j in range(len(table.header))]
    lines = [
        "  ".join(
            cell.ljust(width) if j == 0 else cell.rjust(width)
            for j, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    ]
    return "\n".join(lines)
