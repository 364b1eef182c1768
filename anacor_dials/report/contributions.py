"""What each crystal contributes to merged data, in words, as a table and as columns of the CSV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from anacor_dials.jobs.records import ContributionRecord, ContributionsRecord, MergedQualityRecord
from anacor_dials.report.page import Item, Section, Table, Text

if TYPE_CHECKING:
    from anacor_dials.jobs.pipeline.results import GroupResult, PipelineResult, WavelengthResult

HEADER = (
    "without",
    "its observations",
    "rejected",
    "CC1/2 with it",
    "without",
    "difference",
    "CC anomalous with it",
    "without",
    "difference",
    "Rmeas",
    "Rpim",
    "completeness",
    "multiplicity",
)
CAPTION = (
    "The merged data without each crystal, overall; first row: the data of all. Nothing was scaled again for "
    "this: observations keep the scales that they got with all crystals. CC1/2 as in Assmann, Brehm & "
    "Diederichs (2016), weighted by sigma, of the reflections that are measured twice without the crystal "
    "too; a negative difference says that the crystal makes the data worse. Errors: one standard error. "
    "Rejected: the share of the crystal's observations that scaling took for outliers, which are not merged."
)


def sentences(record: ContributionsRecord | None, crystal: str | None = None) -> list[str]:
    """A sentence for each crystal that makes the merged data worse; none is left out by itself.

    Parameters
    ----------
    record : ContributionsRecord or None
    crystal : str, optional
        Of this one alone.
    """
    if record is None or record.merged is None:
        return []
    worse = [one for one in record.crystals if one.makes_worse]
    return [_sentence(one, record.merged) for one in worse if crystal in (None, one.crystal)]


def _sentence(one: ContributionRecord, merged: MergedQualityRecord) -> str:
    correlations = {
        "cc_half": ("CC1/2", one.without.cc_half, one.cc_half_with),
        "cc_anomalous": ("CC anomalous", one.without.cc_anomalous, one.cc_anomalous_with),
    }
    said = [
        *(
            f"{name} would be {_cc(without)} in place of {_cc(with_it)}"
            for what, (name, without, with_it) in correlations.items()
            if what in one.makes_worse
        ),
        f"Rmeas {_r(one.without.r_meas)} in place of {_r(merged.r_meas)}",
        f"completeness {_percent(one.without.completeness)} in place of {_percent(merged.completeness)}",
    ]
    return (
        f"{one.crystal} makes the merged data worse: without it {', '.join(said)}. It was not left out; look "
        "at its labels, mu, alignment and indexing, and run again without it if it stays so."
    )


def table(record: ContributionsRecord, title: str) -> Table:
    """The statistics of all crystals, and without each of them; those that make it worse first.

    Parameters
    ----------
    record : ContributionsRecord
        With the data of all crystals.
    title : str
        What the data are.
    """
    rows = []
    if record.merged is not None:
        whole = record.merged
        first = ("-", str(whole.observations), "-", _cc(whole.cc_half), "-", "-")
        anomalous = (_cc(whole.cc_anomalous), "-", "-")
        rows.append((*first, *anomalous, *_overall(whole)))
    rows += [
        (
            one.crystal,
            str(one.observations),
            _percent(one.rejected),
            _cc(one.cc_half_with),
            _cc(one.without.cc_half),
            _difference(one.delta_cc_half, one.delta_cc_half_error),
            _cc(one.cc_anomalous_with),
            _cc(one.without.cc_anomalous),
            _difference(one.delta_cc_anomalous, one.delta_cc_anomalous_error),
            *_overall(one.without),
        )
        for one in record.crystals
    ]
    column = {"cc_half": 5, "cc_anomalous": 8}
    marked = frozenset(
        (1 + i, column[what]) for i, one in enumerate(record.crystals) for what in one.makes_worse
    )
    return Table(rows, HEADER, f"{title}. {CAPTION}", marked)


def section(result: PipelineResult) -> Section | None:
    """Of all groups of several crystals; None where there are none."""
    items: list[Item] = []
    for group in result.groups:
        for of in group.wavelengths:
            record = of.contributions
            if record is None:
                continue
            items += [Text(said, "warning") for said in sentences(record)]
            if record.why_not is not None:
                items.append(Text(f"{title_of(group, of)}: not known, because {record.why_not}."))
            else:
                items.append(table(record, title_of(group, of)))
    return Section("What each crystal contributes", items) if items else None


def title_of(group: GroupResult, of: WavelengthResult) -> str:
    """The name of a group and, where it has several, of the wavelength."""
    return group.name + (f", {of.wavelength:.5g} Å" if len(group.wavelengths) > 1 else "")


def contribution_of(record: ContributionsRecord | None, crystal: str) -> ContributionRecord | None:
    """That of one crystal; None where it is not known."""
    found = [one for one in record.crystals if one.crystal == crystal] if record else []
    return found[0] if found else None


def columns_of(result: PipelineResult) -> dict[tuple[str, float | None], Mapping[str, object]]:
    """{(crystal, wavelength): {column: value}}, what the CSV has beside the table of crystals."""
    columns: dict[tuple[str, float | None], Mapping[str, object]] = {}
    for group in result.groups:
        for of in group.wavelengths:
            record = of.contributions
            if record is not None:
                for one in record.crystals:
                    columns[one.crystal, of.wavelength] = _columns(one, record.merged)
    return columns


def _columns(one: ContributionRecord, merged: MergedQualityRecord | None) -> dict[str, object]:
    names = [f.name for f in fields(MergedQualityRecord)]
    # CC1/2 with the crystal is of the reflections that those without it are of
    together = {name: getattr(merged, name, None) for name in names} | {
        "cc_half": one.cc_half_with,
        "cc_anomalous": one.cc_anomalous_with,
    }
    return {
        "rejected": one.rejected,
        "delta_cc_anomalous": one.delta_cc_anomalous,
        "delta_cc_anomalous_error": one.delta_cc_anomalous_error,
        **{f"{name}_with_crystal": value for name, value in together.items()},
        **{f"{name}_without_crystal": getattr(one.without, name) for name in names},
    }


def _overall(of: MergedQualityRecord) -> tuple[str, ...]:
    completeness = _percent(of.completeness)
    return (_r(of.r_meas), _r(of.r_pim), completeness, f"{of.multiplicity:.2f}")


def _r(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _cc(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _difference(value: float | None, error: float | None) -> str:
    return "-" if value is None or error is None else f"{value:+.5f} ± {error:.5f}"
