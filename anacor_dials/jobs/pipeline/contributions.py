"""The step that finds what each crystal contributes to the data that are merged of all."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from anacor_dials.diffraction.contributions import contributions, rejected_shares
from anacor_dials.diffraction.merging import load_scaled
from anacor_dials.diffraction.models import read_models
from anacor_dials.jobs.pipeline.results import COMPARISON_JSON, CONTRIBUTIONS, CorrectedCrystal
from anacor_dials.jobs.pipeline.steps import FinishedStep, Step, WorkingFolder
from anacor_dials.jobs.records import (
    ComparisonRecord,
    ContributionRecord,
    ContributionsRecord,
    MergedQualityRecord,
    read_record,
)

logger = logging.getLogger("dials.anacor_dials.jobs.pipeline.contributions")


def weigh_crystals(
    step_name: str,
    part: tuple[Path, Path],
    corrections: Sequence[CorrectedCrystal],
    comparison: FinishedStep,
    work: WorkingFolder,
) -> FinishedStep | None:
    """The step that left contributions.json; None for a single crystal.

    Nothing is left out of the data by it, and where it finds no answer it says why: the data stand.

    Parameters
    ----------
    step_name : str
    part : (Path, Path)
        The scaled experiments and reflections of one wavelength.
    corrections : sequence of CorrectedCrystal
        The crystals that were scaled together.
    comparison : FinishedStep
        It says how far the statistics go.
    work : WorkingFolder
        It runs the step.
    """
    if len(corrections) < 2:
        return None
    record = read_record(comparison.path(COMPARISON_JSON), ComparisonRecord)
    limits = (record.d_max, record.d_min)
    models = {one.crystal.name: one.absorption.path("corrected.expt") for one in corrections}
    return work.run(
        Step(
            step_name,
            (
                f"what each crystal contributes: {', '.join(models)}",
                f"from {limits[0]:.6g} to {limits[1]:.6g} A",
            ),
            (*part, *models.values()),
            (CONTRIBUTIONS,),
            perform=partial(_weigh, part, models, limits),
            by_hand=False,
        )
    )


def _weigh(
    part: tuple[Path, Path],
    models: Mapping[str, Path],
    limits: tuple[float, float],
    folder: Path,
) -> None:
    try:
        record = contributions_record(part, models, limits)
    except (ValueError, RuntimeError) as error:  # RuntimeError: of cctbx
        said = " ".join(str(error).split()).rstrip(".")
        logger.warning("What each crystal contributes could not be found: %s.", said)
        record = ContributionsRecord(None, (), said)
    content = {"version": record.VERSION} | asdict(record)
    (folder / CONTRIBUTIONS).write_text(json.dumps(content, indent=1), encoding="utf-8")


def contributions_record(
    part: tuple[Path, Path], models: Mapping[str, Path], limits: tuple[float, float]
) -> ContributionsRecord:
    """What each crystal contributes to scaled data.

    Parameters
    ----------
    part : (Path, Path)
        The scaled experiments and reflections of one wavelength.
    models : mapping
        {crystal: the experiments of its sweeps}.
    limits : (float, float)
        d_max and d_min, Angstrom.

    Raises
    ------
    ValueError
        If a sweep is of no crystal, or fewer than two crystals have observations.
    """
    crystal_of = {
        experiment.identifier: name
        for name, path in models.items()
        for experiment in read_models(path)
    }
    shares = rejected_shares(part[1], crystal_of, *limits)
    whole, found = contributions(load_scaled("all crystals", *part), crystal_of, *limits, shares)
    return ContributionsRecord(
        MergedQualityRecord(**_known(asdict(whole))),
        [
            ContributionRecord(
                **_known(asdict(one))
                | {
                    "without": MergedQualityRecord(**_known(asdict(one.without))),
                    "makes_worse": one.makes_worse,
                }
            )
            for one in found
        ],
    )


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """The same, None in place of NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
