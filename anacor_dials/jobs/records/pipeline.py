"""The content of anacor.json, of xia2.anacor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anacor_dials.jobs.records.comparison import SameObservationsRecord, TableRowRecord
from anacor_dials.jobs.records.record import Record


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
    """

    name: str
    wavelength_angstrom: float
    files: Mapping[str, str | Path]
    d_max: float
    d_min: float
    table: Sequence[TableRowRecord]
    same_observations: SameObservationsRecord | None
    table_1: Mapping[str, Any]


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


@dataclass(frozen=True)
class PipelineRecord(Record):
    """anacor.json, of xia2.anacor.

    Attributes
    ----------
    program : {"name", "anacor_dials", "dials"}
        Versions.
    arguments : [str]
    parameters : str
        Those that were changed, as PHIL.
    inputs : {path: SHA-256}
        Of what came from outside.
    crystals : [CrystalRecord]
    groups : [GroupRecord]
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
