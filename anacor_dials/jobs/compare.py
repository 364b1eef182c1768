"""The same data are scaled by several strategies and compared.

A data source is one set of files that are scaled together, with one set of absorption factors.
Several sources hold the same reflections with factors from different label volumes, for example
labels made by hand and labels of AnACorNet. Strategies that do not use the factors are run only
once.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from dials.array_family import flex

from anacor_dials.diffraction.merging import (
    MergingStatistics,
    ScaledIntensities,
    block_width,
    common_resolution,
    in_one_cell,
    load_scaled,
    merging_statistics,
)
from anacor_dials.diffraction.residual_pattern import ResidualPattern, residual_pattern
from anacor_dials.diffraction.resolution_limit import limit_of_signal
from anacor_dials.diffraction.scaling import (
    FailedScaling,
    ScaledData,
    ScalingJob,
    Strategy,
    scale_all,
)
from anacor_dials.diffraction.selection import statistics_of_same_observations
from anacor_dials.sample.output_files import file_name

logger = logging.getLogger("dials.anacor_dials.jobs.compare")


@dataclass(frozen=True)
class DataSource:
    """Files that are scaled together.

    Parameters
    ----------
    label : str
        Where their absorption factors come from; empty for a single source.
    experiments, reflections : tuple of Path
        The .expt and .refl files.
    """

    label: str
    experiments: tuple[Path, ...]
    reflections: tuple[Path, ...]


@dataclass(frozen=True)
class ComparisonSettings:
    """How scaled data are merged to be compared.

    Parameters
    ----------
    d_min : float, optional
        The resolution limit, Angstrom; the finest that all data sets reach if not given.
    n_bins : int
        The number of resolution shells.
    cc_half : float, optional
        Where d_min is not given, the data end where CC1/2 of the best run falls below this.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    d_min: float | None = None
    n_bins: int = 20
    cc_half: float | None = None

    def __post_init__(self) -> None:
        if self.n_bins < 1:
            raise ValueError(f"The number of shells is {self.n_bins}; it must be at least 1.")
        if self.d_min is not None and not self.d_min > 0:
            raise ValueError(f"d_min is {self.d_min} A; it must be positive.")
        if self.cc_half is not None and not 0 < self.cc_half < 1:
            raise ValueError(f"cc_half is {self.cc_half}; it must be above 0 and below 1.")


@dataclass(frozen=True)
class SameObservations:
    """Statistics of the observations that at least one run keeps.

    Attributes
    ----------
    observations : int
        How many they are.
    values : mapping
        {label: {statistic: overall value}}, for the statistics of
        :data:`anacor_dials.diffraction.statistics.STATISTICS`.
    """

    observations: int
    values: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Comparison:
    """Scaled data sets and their statistics.

    Attributes
    ----------
    outcomes : tuple of ScaledData or FailedScaling
        Of all runs, in the order in which they were asked for.
    statistics : tuple of MergingStatistics
        Of the runs that succeeded.
    d_max, d_min : float
        The common resolution limits, Angstrom.
    n_bins : int
        The number of resolution shells.
    same : SameObservations or None
        Statistics of the same observations.
    why_not_same : str
        Why there are none.
    patterns : mapping
        {label: what the analytical factors alone leave}.
    signal_limit : float or None
        The resolution limit, Angstrom, where it is that of the signal.
    """

    outcomes: tuple[ScaledData | FailedScaling, ...]
    statistics: tuple[MergingStatistics, ...]
    d_max: float
    d_min: float
    n_bins: int
    same: SameObservations | None = None
    why_not_same: str = ""
    patterns: Mapping[str, ResidualPattern] = field(default_factory=dict)
    signal_limit: float | None = None

    @property
    def failed(self) -> dict[str, str]:
        """{label: reason} of the runs that failed."""
        return {o.label: o.reason for o in self.outcomes if isinstance(o, FailedScaling)}


# ---- what is to be run ---------------------------------------------------------------------------


def data_sources(
    experiments: Sequence[str | os.PathLike[str]],
    reflections: Sequence[str | os.PathLike[str]],
    labels: Sequence[str] = (),
) -> list[DataSource]:
    """The files divided into data sources, in their order.

    Parameters
    ----------
    experiments, reflections : sequence of paths
        The .expt and .refl files.
    labels : sequence of str
        One for each source; the files are then divided evenly. Without labels all files are one
        source, unless the same experiments occur several times. Then each occurrence is a source,
        which is named after its reflection file or its folder.

    Raises
    ------
    ValueError
        If the files cannot be divided, or the sources do not hold the same experiments.
    """
    expts = [Path(path) for path in experiments]
    refls = [Path(path) for path in reflections]
    if not expts or not refls:
        raise ValueError("No experiments or no reflections; name at least one .expt and one .refl.")
    labels = tuple(labels)
    if len(set(labels)) != len(labels):
        raise ValueError(f"The labels {', '.join(labels)} are not all different; change one.")
    identifiers = [_identifiers(path) for path in expts]
    counts = Counter(name for names in identifiers for name in names if name)
    n = len(labels) or max(counts.values(), default=1)
    if len(expts) % n or len(refls) % n:
        what = f"{n} labels" if labels else f"experiments that occur {n} times"
        raise ValueError(
            f"{len(expts)} experiment files and {len(refls)} reflection files cannot be "
            f"divided among {what}; give equally many files to each data source."
        )
    expt_groups = _runs(expts, n)
    refl_groups = _runs(refls, n)
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
    first = [group[0] for group in groups]
    for labels in (
        tuple(path.stem for path in first),
        tuple(path.absolute().parent.name for path in first),
    ):
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
    """One run of dials.scale for each strategy and data source.

    Strategies that do not use the absorption factors are run for the first source only, because the
    others hold the same intensities. If they do not, there is a run for each source.

    Parameters
    ----------
    sources : sequence of DataSource
    strategies : sequence of Strategy
    folder : path
        Each run gets a folder of its own in it.
    model : str
        The scaling model: auto, physical, dose_decay, array or KB.
    options : sequence of str
        Further options of dials.scale, the same for all runs.

    Raises
    ------
    ValueError
        If there is no strategy.
    """
    if not strategies:
        raise ValueError("No strategy was asked for; name at least one.")
    several = len(sources) > 1
    alike = all(_same_intensities(sources[0], other) for other in sources[1:])
    jobs = []
    for strategy in strategies:
        each = several and (strategy.analytical or not alike)
        for source in sources if each else sources[:1]:
            name = f"{strategy.name}_{file_name(source.label, 'source')}" if each else strategy.name
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


# ---- running it ----------------------------------------------------------------------------------


def scale_and_compare(
    jobs: Sequence[ScalingJob],
    settings: ComparisonSettings | None = None,
    nproc: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """All runs of dials.scale, and their comparison.

    Parameters
    ----------
    jobs : sequence of ScalingJob
        Of :func:`scaling_jobs`.
    settings : ComparisonSettings, optional
        How the scaled data are merged.
    nproc : int
        How many runs are made at the same time.
    progress : callable, optional
        Called with a text after each of the 2 len(jobs) steps.

    Raises
    ------
    ValueError
        If all runs fail, or the data cannot be compared. A single run that fails is in the result,
        with the reason.
    """
    tell = progress or (lambda done: None)

    def finished(outcome: ScaledData | FailedScaling) -> None:
        tell(f"{outcome.label} {'scaled' if isinstance(outcome, ScaledData) else 'failed'}")

    return compare(scale_all(jobs, nproc, finished), settings, progress)


def compare(
    outcomes: Sequence[ScaledData | FailedScaling],
    settings: ComparisonSettings | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Data that were scaled in several ways, merged at one common resolution.

    Parameters
    ----------
    outcomes : sequence of ScaledData or FailedScaling
        Of :func:`anacor_dials.diffraction.scaling.scale_all`. What cannot be merged counts as
        failed.
    settings : ComparisonSettings, optional
        How they are merged.
    progress : callable, optional
        Called with a text after each data set.

    Raises
    ------
    ValueError
        If all have failed, the data are not of one crystal, or they have no reflections in common.
    """
    settings = settings or ComparisonSettings()
    tell = progress or (lambda done: None)
    outcomes = list(outcomes)
    _refuse_if_all_failed(outcomes)
    scaled = in_one_cell(
        [
            load_scaled(o.label, o.experiments, o.reflections)
            for o in outcomes
            if isinstance(o, ScaledData)
        ]
    )
    end = None if settings.d_min else _end_of_signal(scaled, settings.cc_half)
    limits, width = common_resolution(scaled, settings.d_min or end), block_width(scaled)
    statistics = []
    for one in scaled:
        try:
            statistics.append(merging_statistics(one, *limits, settings.n_bins, width))
        except ValueError as error:
            outcomes = [
                _not_merged(o, error) if isinstance(o, ScaledData) and o.label == one.label else o
                for o in outcomes
            ]
        tell(f"{one.label} merged")
    _refuse_if_all_failed(outcomes)
    same, why_not = _same_observations(outcomes, limits)
    return Comparison(
        outcomes=tuple(outcomes),
        statistics=tuple(statistics),
        d_max=limits[0],
        d_min=limits[1],
        n_bins=settings.n_bins,
        same=same,
        why_not_same=why_not,
        patterns=_patterns(outcomes),
        signal_limit=end,
    )


def _end_of_signal(scaled: Sequence[ScaledIntensities], cc_half: float | None) -> float | None:
    """Where the signal of the data that reach furthest ends, Angstrom; None if nowhere."""
    if cc_half is None:
        return None
    ends = [limit_of_signal(one.intensities, cc_half) for one in scaled]
    return None if None in ends else min(end for end in ends if end is not None)


def _patterns(outcomes: Sequence[ScaledData | FailedScaling]) -> dict[str, ResidualPattern]:
    """{label: what the factors leave} of the runs with the analytical factors alone."""
    patterns = {}
    for one in outcomes:
        strategy = one.strategy
        alone = strategy.analytical and strategy.spherical_harmonics is None
        if isinstance(one, ScaledData) and alone:
            try:
                patterns[one.label] = residual_pattern(one.experiments, one.reflections)
            except ValueError as error:
                logger.info("No pattern was looked for in what %s leaves: %s", one.label, error)
    return patterns


def _same_observations(
    outcomes: Sequence[ScaledData | FailedScaling], limits: tuple[float, float]
) -> tuple[SameObservations | None, str]:
    """The statistics of the same observations; or None and the reason."""
    files = {o.label: (o.experiments, o.reflections) for o in outcomes if isinstance(o, ScaledData)}
    try:
        values, n = statistics_of_same_observations(files, *limits)
    except ValueError as error:
        logger.warning("No statistics of the same observations: %s", error)
        return None, str(error)
    return SameObservations(n, values), ""


def _not_merged(outcome: ScaledData, error: ValueError) -> FailedScaling:
    return FailedScaling(
        outcome.label,
        outcome.strategy,
        outcome.command,
        f"scaled, not merged: {error}",
        outcome.log,
    )


def _refuse_if_all_failed(outcomes: Sequence[ScaledData | FailedScaling]) -> None:
    failed = [outcome for outcome in outcomes if isinstance(outcome, FailedScaling)]
    if len(failed) == len(outcomes):
        reasons = "; ".join(
            f"{outcome.label}: {outcome.reason.rstrip('.')}"
            + (f" (log: {outcome.log})" if outcome.log else "")
            for outcome in failed
        )
        raise ValueError(f"No strategy succeeded. {reasons}.")
