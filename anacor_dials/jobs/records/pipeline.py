"""The content of anacor.json, of xia2.anacor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from anacor_dials.jobs.records.comparison import SameObservationsRecord, TableRowRecord
from anacor_dials.jobs.records.contributions import ContributionsRecord
from anacor_dials.jobs.records.record import Record


def pipeline_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of anacor.json."""
    text = files("anacor_dials").joinpath("templates/anacor.schema.json")
    schema: dict[str, Any] = json.loads(text.read_text(encoding="utf-8"))
    return schema


@dataclass(frozen=True)
class CrystalRecord:
    """A crystal of a run of xia2.anacor.

    Attributes
    ----------
    name : str
    tomography, labels : str
        Paths of its scan or volume, and of the labels that were used.
    segmented_by, factors_by : str or null
        Names of steps; null if the labels were there already.
    sweeps : [{"crystal", "wavelength", "name", "experiments", "reflections"}]
    factors : {"transmission", "wavelengths", "warnings"}
        As in anacor_absorption.json.
    """

    name: str
    tomography: str | Path
    labels: str | Path
    segmented_by: str | None
    factors_by: str | None
    sweeps: Sequence[Mapping[str, Any]]
    factors: Mapping[str, Any]


@dataclass(frozen=True)
class SelectionRecord:
    """The strategy that was taken.

    Attributes
    ----------
    strategy, statistic : str
    values : {strategy: float}
        The statistic of each strategy, of the same observations.
    margin : float
        Relative: strategies within it count as equal.
    reason : str
    """

    strategy: str
    statistic: str
    values: Mapping[str, float]
    margin: float
    reason: str


@dataclass(frozen=True)
class WavelengthRecord:
    """A wavelength of sweeps that were scaled together.

    Attributes
    ----------
    name : str
        What xia2 calls it.
    wavelength_angstrom : float
    files : {what it is: path}
    d_max, d_min : float
        Angstrom.
    table : [TableRowRecord]
    same_observations : SameObservationsRecord or null
    table_1 : {strategy: {name: [overall, inner shell, outer shell]}}
    contributions : ContributionsRecord or null
        What each crystal contributes, where several are scaled together.
    """

    name: str
    wavelength_angstrom: float
    files: Mapping[str, str | Path]
    d_max: float
    d_min: float
    table: Sequence[TableRowRecord]
    same_observations: SameObservationsRecord | None
    table_1: Mapping[str, Any]
    contributions: ContributionsRecord | None = None


@dataclass(frozen=True)
class GroupRecord:
    """Sweeps that were scaled together.

    Attributes
    ----------
    name : str
    crystals : [str]
    symmetry_by, absences_by : str or null
        Names of steps.
    space_group : str
    unit_cell : [float]
        Angstrom and degrees.
    scaled_by : {strategy: name of the step}
    failed : {strategy: reason}
    warning : str or null
    selection : SelectionRecord
    experiments, reflections : str
        The scaled data.
    wavelengths : [WavelengthRecord]
    free_set : str or null
        Where the free set is from, in a sentence; null where dials.merge made it.
    """

    name: str
    crystals: Sequence[str]
    symmetry_by: str | None
    absences_by: str | None
    space_group: str
    unit_cell: Sequence[float]
    scaled_by: Mapping[str, str]
    failed: Mapping[str, str]
    warning: str | None
    selection: SelectionRecord
    experiments: str | Path
    reflections: str | Path
    wavelengths: Sequence[WavelengthRecord]
    free_set: str | None = None


@dataclass(frozen=True)
class CrystalRow:
    """A crystal at one wavelength: what tells whether it needs a look.

    Attributes
    ----------
    crystal : str
    state : "failed", "look" or "good"
        "look": there are warnings.
    wavelength_angstrom : float or null
    r_meas_without, r_meas_with_factors, r_meas_taken : float or null
        Overall Rmeas of the same observations: without a correction, with the factors alone, and by
        the strategy that was taken.
    taken : str or null
        That strategy.
    space_group : str or null
    crystal_volume_um3 : float or null
    mu_per_mm : {material: float}
    mean_transmission : float or null
        Of all reflections of the crystal.
    factors_uncertainty : float or null
        Relative, from the labels; null if the segmentation did not say.
    alignment : str or null
        What became of the angle between tomography and diffraction, in words.
    warnings : [str]
        The most important first. Of a crystal that failed: the reason.
    delta_cc_half, delta_cc_half_error : float or null
        CC1/2 of the merged data with this crystal minus that without it, and its standard error;
        where several are scaled together.
    """

    crystal: str
    state: str
    wavelength_angstrom: float | None = None
    r_meas_without: float | None = None
    r_meas_with_factors: float | None = None
    r_meas_taken: float | None = None
    taken: str | None = None
    space_group: str | None = None
    crystal_volume_um3: float | None = None
    mu_per_mm: Mapping[str, float] = field(default_factory=dict)
    mean_transmission: float | None = None
    factors_uncertainty: float | None = None
    alignment: str | None = None
    warnings: Sequence[str] = ()
    delta_cc_half: float | None = None
    delta_cc_half_error: float | None = None


@dataclass(frozen=True)
class PipelineRecord(Record):
    """anacor.json, of xia2.anacor. See :func:`pipeline_schema`.

    Attributes
    ----------
    program : {"name", "anacor_dials", "dials", "xia2"}
        Versions; xia2 where it integrated the images.
    arguments : [str]
        As typed.
    parameters : str
        Those that were changed, as PHIL.
    inputs : {path: SHA-256}
        Of what came from outside.
    crystals : [CrystalRecord]
    groups : [GroupRecord]
    overview : [CrystalRow]
        What needs a look comes first.
    failed : [{"crystal", "reason", "log"}]
        The crystals that one of their steps failed on.
    steps : [{"name", "done_in_this_run", "why", "folder", "command_line", ...}]
        As in steps.json.
    """

    VERSION = 1
    program: Mapping[str, str]
    arguments: Sequence[str]
    parameters: str
    inputs: Mapping[str, str]
    crystals: Sequence[CrystalRecord]
    groups: Sequence[GroupRecord]
    steps: Sequence[Mapping[str, Any]]
    overview: Sequence[CrystalRow] = ()
    failed: Sequence[Mapping[str, Any]] = ()
