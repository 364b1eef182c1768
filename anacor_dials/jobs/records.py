"""What the jobs leave for programs: one schema, a versioned dataclass, for each JSON file.

Every file has the key "version". It grows where the meaning or the name of a key changes, or a key goes;
keys may be added without it. Numbers without a value (NaN) are null.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

T = TypeVar("T", bound="Record")


@dataclass(frozen=True)
class Record:
    """The content of a JSON file; VERSION: of its schema."""

    VERSION: ClassVar[int]

    @classmethod
    def of(cls: type[T], content: Mapping[str, Any]) -> T:
        """The record of what was read; keys that are not of this schema are left out."""
        return cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})

    def content(self) -> dict[str, Any]:
        """What is written: the version, and a key for each field."""
        return {"version": self.VERSION} | {f.name: getattr(self, f.name) for f in fields(self)}


def read_record(path: str | os.PathLike[str], kind: type[T]) -> T:
    """The record in a JSON file.

    Raises
    ------
    ValueError
        If the file is no JSON, or of another version of the schema.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found = content.get("version")
        record = kind.of(content) if found == kind.VERSION else None
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}); make it again.") from None
    if record is None:
        raise ValueError(
            f"{path} is of version {found} and this program reads version {kind.VERSION}; make it again."
        )
    return record


# ---- anacor_reconstruct.json ----------------------------------------------------------------------


@dataclass(frozen=True)
class ReconstructionRecord(Record):
    """anacor_reconstruct.json.

    Attributes
    ----------
    scan, layout : str
        The path of the scan, and how its file is made.
    n_projections : int
    angles_deg : [float, float]
        The first and the last angle.
    largest_gap_deg : float
    full_turn : bool
        Whether the scan covers 360 degrees.
    energy_keV : float or null
    left_out : [{"projections": int, "why": str}]
        Projections that could not be used.
    beam_level : [float, float, float] or null
        Median, least and largest of the beam beside the sample, relative to the flats.
    drift_pixels : [float, float]
        Motion of the sample along and across the rotation axis, which was put back.
    tilt_deg : float
        Tilt of the rotation axis in the image, which was put back.
    backend, filter, rings : str
        How it was reconstructed.
    phase_retrieved : bool
    centre_of_rotation_pixel : float
        In the images as the camera took them.
    centre_method : str
    centre_per_slice : [float]
        Of each slice that was looked at.
    shape : [int, int, int]
        Voxels along X, Y, Z.
    voxel_size_um, origin_voxel : [float, float, float]
    clipped_percent, unusable_percent, zinger_percent : float
    seconds, seconds_per_slice : float
    histogram : {"edges_per_um": [float], "counts": [int]}
        mu of all voxels.
    warnings : [str]
    """

    VERSION = 1
    scan: str
    layout: str
    n_projections: int
    angles_deg: Sequence[float]
    largest_gap_deg: float
    full_turn: bool
    energy_keV: float | None
    left_out: Sequence[Mapping[str, int | str]]
    beam_level: Sequence[float] | None
    drift_pixels: Sequence[float]
    tilt_deg: float
    backend: str
    filter: str
    rings: str
    phase_retrieved: bool
    centre_of_rotation_pixel: float
    centre_method: str
    centre_per_slice: Sequence[float]
    shape: Sequence[int]
    voxel_size_um: Sequence[float]
    origin_voxel: Sequence[float]
    clipped_percent: float
    unusable_percent: float
    zinger_percent: float
    seconds: float
    seconds_per_slice: float
    histogram: Mapping[str, Sequence[float]]
    warnings: Sequence[str] = ()


# ---- anacor_compare.json --------------------------------------------------------------------------


@dataclass(frozen=True)
class StrategyRecord:
    """A strategy in a comparison.

    Attributes
    ----------
    label, strategy, description : str
        For tables, in PHIL, and in words.
    command : str
        The command line of dials.scale.
    log : str or null
    succeeded : bool
    reason : str or null
        Why it failed; the following are null then.
    seconds : float or null
    experiments, reflections, html : str or null
        What dials.scale wrote.
    table_1 : {name: [overall, inner shell, outer shell]} or null
        Table 1 of DIALS.
    by_resolution : {name: [float]} or null
        By shell, from low to high resolution.
    by_image : [{name: [float]}] or null
        By block of images, for each sweep.
    """

    label: str
    strategy: str
    description: str
    command: str
    log: str | None
    succeeded: bool
    reason: str | None = None
    seconds: float | None = None
    experiments: str | None = None
    reflections: str | None = None
    html: str | None = None
    table_1: Mapping[str, Sequence[float | None]] | None = None
    by_resolution: Mapping[str, Any] | None = None
    by_image: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class TableRowRecord:
    """A row of the printed table.

    Attributes
    ----------
    name : str
    cells : [str]
        For each column, "overall (outer shell)".
    best : [str]
        The columns with the best value.
    of_same_observations : bool
        Whether it is of the observations that at least one strategy keeps.
    """

    name: str
    cells: Sequence[str]
    best: Sequence[str]
    of_same_observations: bool = False


@dataclass(frozen=True)
class SameObservationsRecord:
    """Statistics of the observations that at least one strategy keeps.

    Attributes
    ----------
    observations : int
    values : {label: {statistic: float or null}}
        Overall values.
    """

    observations: int
    values: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class ComparisonRecord(Record):
    """anacor_compare.json.

    Attributes
    ----------
    d_max, d_min : float
        The common limits, Angstrom.
    n_bins : int
        The number of resolution shells.
    columns : [str]
        The labels of the strategies that were merged.
    table : [TableRowRecord]
    same_observations : SameObservationsRecord or null
    strategies : [StrategyRecord]
        All of them, also those that failed.
    """

    VERSION = 2
    d_max: float
    d_min: float
    n_bins: int
    columns: Sequence[str]
    table: Sequence[TableRowRecord]
    same_observations: SameObservationsRecord | None
    strategies: Sequence[StrategyRecord] = field(default_factory=list)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> ComparisonRecord:
        """The record of what was read."""
        same = content["same_observations"]
        return cls(
            d_max=content["d_max"],
            d_min=content["d_min"],
            n_bins=content["n_bins"],
            columns=content["columns"],
            table=[TableRowRecord(**row) for row in content["table"]],
            same_observations=None if same is None else SameObservationsRecord(**same),
            strategies=[StrategyRecord(**entry) for entry in content["strategies"]],
        )

    @property
    def strategy_of(self) -> dict[str, str]:
        """{label: strategy}."""
        return {one.label: one.strategy for one in self.strategies}


# ---- anacor.json ----------------------------------------------------------------------------------


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


# ---- of dials.anacor_simulate ---------------------------------------------------------------------


@dataclass(frozen=True)
class LikenessRecord(Record):
    """The JSON file of dials.anacor_simulate compare=.

    Attributes
    ----------
    angles_deg, ssim, psnr_db, mse : [float]
        Of each pair of projections.
    data_range : float
        The range of transmissions that SSIM and PSNR refer to.
    ssim_mean, ssim_least, ssim_largest : float
        Over all projections.
    psnr_db_mean, psnr_db_least, psnr_db_largest : float
        Over all projections.
    mse_mean, mse_least, mse_largest : float
        Over all projections.
    """

    VERSION = 1
    angles_deg: Sequence[float]
    ssim: Sequence[float]
    psnr_db: Sequence[float]
    mse: Sequence[float]
    data_range: float
    ssim_mean: float
    ssim_least: float
    ssim_largest: float
    psnr_db_mean: float
    psnr_db_least: float
    psnr_db_largest: float
    mse_mean: float
    mse_least: float
    mse_largest: float
