"""The content of anacor_compare.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anacor_dials.jobs.records.record import Record, made_of


@dataclass(frozen=True)
class ResidualPatternRecord:
    """What a strategy leaves in the disagreement of symmetry equivalents.

    Attributes
    ----------
    observations : int
    absorption, detector, polarisation : float
        The share of the sum of squares that each shape explains of reflections to which it was not
        fitted: at most 1, about 0 where it explains nothing.
    rms : float
        Of the pattern of polarisation or of the detector, relative to the intensities.
    cause : "polarisation", "detector" or ""
        Which of them fits better than absorption does; "": neither.
    fitted_fraction, fitted_angle_deg : float
        The polarisation that fits best: its fraction, and by how much its normal is turned about
        the beam against that of the experiments.
    used_fraction : float
        The fraction of polarisation that the data were corrected with.
    polarisation_better, detector_better, detector_over_polarisation : float or null
        By how many standard errors polarisation explains such reflections better than absorption,
        the detector better than absorption, and the detector better than polarisation. Null in
        files of earlier versions.
    """

    observations: int
    absorption: float
    detector: float
    polarisation: float
    rms: float
    cause: str
    fitted_fraction: float
    fitted_angle_deg: float
    used_fraction: float
    polarisation_better: float | None = None
    detector_better: float | None = None
    detector_over_polarisation: float | None = None


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
    residual_pattern : ResidualPatternRecord or null
        Of strategies with the analytical factors alone.
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
    residual_pattern: ResidualPatternRecord | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> StrategyRecord:
        """The record of what was read."""
        pattern = content.get("residual_pattern")
        read = None if pattern is None else made_of(ResidualPatternRecord, pattern)
        return made_of(cls, {**content, "residual_pattern": read})


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
    signal_limit : float or null
        d_min where it was found by CC1/2; null where it was given, or the data have a signal to
        their end.
    """

    VERSION = 2
    d_max: float
    d_min: float
    n_bins: int
    columns: Sequence[str]
    table: Sequence[TableRowRecord]
    same_observations: SameObservationsRecord | None
    strategies: Sequence[StrategyRecord] = field(default_factory=list)
    signal_limit: float | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> ComparisonRecord:
        """The record of what was read."""
        same = content["same_observations"]
        return cls(
            d_max=content["d_max"],
            d_min=content["d_min"],
            n_bins=content["n_bins"],
            columns=content["columns"],
            table=[made_of(TableRowRecord, row) for row in content["table"]],
            same_observations=None if same is None else made_of(SameObservationsRecord, same),
            strategies=[StrategyRecord.of(entry) for entry in content["strategies"]],
            signal_limit=content.get("signal_limit"),
        )

    @property
    def strategy_of(self) -> dict[str, str]:
        """{label: strategy}."""
        return {one.label: one.strategy for one in self.strategies}
