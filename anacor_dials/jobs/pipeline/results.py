"""What the pipeline made: factors of each crystal, and the results of sweeps scaled together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anacor_dials.jobs.pipeline.inputs import Crystal
from anacor_dials.jobs.pipeline.steps import FinishedStep
from anacor_dials.jobs.records import (
    AbsorptionRecord,
    ComparisonRecord,
    ContributionsRecord,
    read_record,
)

if TYPE_CHECKING:
    from anacor_dials.diffraction.selection import Selection

COMPARISON_JSON = "anacor_compare.json"
COMPARISON_HTML = "anacor_compare.html"
FREE_SET = "free_set.mtz"
CONTRIBUTIONS = "contributions.json"


@dataclass(frozen=True)
class CorrectedCrystal:
    """The factors of one crystal.

    Attributes
    ----------
    crystal : Crystal
    segmentation : FinishedStep or None
        None if the labels were there already.
    labels : Path
        The labels that were used.
    absorption : FinishedStep
        The step that made the factors.
    """

    crystal: Crystal
    segmentation: FinishedStep | None
    labels: Path
    absorption: FinishedStep

    @property
    def summary(self) -> AbsorptionRecord:
        """What dials.anacor_absorption says of the factors, as numbers."""
        return read_record(self.absorption.path("anacor_absorption.json"), AbsorptionRecord)


@dataclass(frozen=True)
class WavelengthResult:
    """Statistics and final files of one wavelength.

    Attributes
    ----------
    name : str
    wavelength : float
        Angstrom.
    comparison, merging : FinishedStep
    files : mapping
        {what it is: path}.
    contributing : FinishedStep or None
        The step that found what each crystal contributes; None where there is only one.
    """

    name: str
    wavelength: float
    comparison: FinishedStep
    merging: FinishedStep
    files: Mapping[str, Path]
    contributing: FinishedStep | None = None

    @property
    def contributions(self) -> ContributionsRecord | None:
        """What each crystal contributes to the merged data; None where there is only one."""
        if self.contributing is None:
            return None
        return read_record(self.contributing.path(CONTRIBUTIONS), ContributionsRecord)

    @property
    def record(self) -> ComparisonRecord:
        """The statistics of all strategies, as the step of the comparison left them."""
        return read_record(self.comparison.path(COMPARISON_JSON), ComparisonRecord)


@dataclass(frozen=True)
class GroupResult:
    """What became of the sweeps that were scaled together.

    Attributes
    ----------
    name : str
    crystals : tuple of str
    symmetry, absences : FinishedStep or None
        None if they were not asked for.
    scaled : mapping
        {strategy: step}.
    failed : mapping
        {strategy: reason}.
    selection : Selection
        The strategy that was taken.
    warning : str or None
        What the user should look at.
    space_group : str
    unit_cell : tuple of 6 floats
        Angstrom and degrees.
    experiments, reflections : Path
        The scaled data.
    wavelengths : tuple of WavelengthResult
    free_set : str or None
        Where the free set is from, in a sentence; None where dials.merge made it.
    """

    name: str
    crystals: tuple[str, ...]
    symmetry: FinishedStep | None
    scaled: Mapping[str, FinishedStep]
    failed: Mapping[str, str]
    selection: Selection
    warning: str | None
    absences: FinishedStep | None
    space_group: str
    unit_cell: tuple[float, ...]
    experiments: Path
    reflections: Path
    wavelengths: tuple[WavelengthResult, ...]
    free_set: str | None = None


@dataclass(frozen=True)
class FailedCrystal:
    """A crystal that one of its steps failed on.

    Attributes
    ----------
    crystal : Crystal
    reason : str
    log : Path or None
        What the step had printed.
    """

    crystal: Crystal
    reason: str
    log: Path | None = None


@dataclass(frozen=True)
class PipelineResult:
    """All that the pipeline made.

    Attributes
    ----------
    corrections : tuple of CorrectedCrystal
    groups : tuple of GroupResult
    failed : tuple of FailedCrystal
    """

    corrections: tuple[CorrectedCrystal, ...]
    groups: tuple[GroupResult, ...]
    failed: tuple[FailedCrystal, ...] = ()


def signal_limit(comparison: FinishedStep) -> float | None:
    """The spacing (Angstrom) at which the signal ends; None where the data end before."""
    return read_record(comparison.path(COMPARISON_JSON), ComparisonRecord).signal_limit


def same_observations(comparison: FinishedStep) -> dict[str, Mapping[str, float | None]]:
    """{strategy: {statistic: overall value}} of the same observations, read from a comparison."""
    record = read_record(comparison.path(COMPARISON_JSON), ComparisonRecord)
    if record.same_observations is None:
        return {}
    strategy = record.strategy_of
    return {strategy[label]: values for label, values in record.same_observations.values.items()}
