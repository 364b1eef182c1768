"""Scaled data merged and exported, and the free set of reflections that all wavelengths share.

dials.merge draws a free set by chance, another in every run. A structure that was refined against
one set must keep it, so the pipeline makes the set itself and gives it to dials.merge: that of a
file which the user names, else that of the earlier run in this working folder, else a new one that
depends on nothing but the indices.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anacor_dials.diffraction.free_set import (
    complete_free_set,
    observed_indices,
    read_free_set,
    write_free_set,
)
from anacor_dials.jobs.pipeline.contributions import weigh_crystals
from anacor_dials.jobs.pipeline.results import (
    FREE_SET,
    CorrectedCrystal,
    WavelengthResult,
    signal_limit,
)
from anacor_dials.jobs.pipeline.settings import PipelineSettings
from anacor_dials.jobs.pipeline.steps import PRINTED, RESULTS, FinishedStep, Step, WorkingFolder
from anacor_dials.jobs.pipeline.wavelengths import by_wavelength
from anacor_dials.sample.output_files import file_name

if TYPE_CHECKING:
    from cctbx import miller

# {format: (step, file)} of unmerged data, and how the formats are written
EXPORTS = {
    "mtz": ("export", "scaled_unmerged.mtz"),
    "mmcif": ("export_mmcif", "scaled.mmcif"),
}
WRITTEN = {"mtz": "MTZ", "mmcif": "mmCIF"}

logger = logging.getLogger("dials.anacor_dials.jobs.pipeline.merged_data")


def merge_and_export(
    name: str,
    corrections: Sequence[CorrectedCrystal],
    files: tuple[Path, Path],
    wavelengths: Sequence[tuple[str, float, FinishedStep]],
    settings: PipelineSettings,
    work: WorkingFolder,
) -> tuple[tuple[WavelengthResult, ...], str | None]:
    """Each wavelength merged (MTZ) and unmerged (MTZ, mmCIF), and copied to DataFiles.

    The second value says where the free set is from; None where dials.merge made it.

    Parameters
    ----------
    name : str
        Of the group.
    corrections : sequence of CorrectedCrystal
        Its crystals.
    files : (Path, Path)
        The scaled experiments and reflections.
    wavelengths : sequence of (str, float, FinishedStep)
        Of :func:`compare_wavelengths`.
    settings : PipelineSettings
    work : WorkingFolder
        It runs the steps.
    """
    several = len(corrections) > 1
    crystal = "ALL" if several else file_name(corrections[0].crystal.name, "crystal")
    parts = by_wavelength(f"{name}/split", files, work)
    free = make_free_set(name, parts, settings, work)
    results = []
    for (label, wavelength, comparison), part in zip(wavelengths, parts, strict=True):
        suffix = f"_{label}" if len(parts) > 1 else ""
        names = (f"output.crystal_names={crystal}", f"output.dataset_names={label}")
        d_min = settings.d_min or signal_limit(comparison)
        merging = work.run(
            merge_step(f"{name}/merge{suffix}", part, names, free, d_min, settings.merging_options)
        )
        exports = {
            kind: work.run(export_step(f"{name}/{step}{suffix}", part, kind, file))
            for kind, (step, file) in EXPORTS.items()
        }
        stem = f"{name}_scaled"
        published = {
            "merged MTZ": work.publish(merging.path("merged.mtz"), f"{stem}{suffix}.mtz"),
            **{
                f"unmerged {WRITTEN[kind]}": work.publish(
                    done.path(EXPORTS[kind][1]), f"{stem}_unmerged{suffix}.{kind}"
                )
                for kind, done in exports.items()
            },
        }
        contributing = weigh_crystals(
            f"{name}/contributions{suffix}", part, corrections, comparison, work
        )
        results.append(
            WavelengthResult(label, wavelength, comparison, merging, published, contributing)
        )
    said = None if free is None or free.log is None else free.log.read_text(encoding="utf-8")
    return tuple(results), said


def merge_step(
    step_name: str,
    part: tuple[Path, Path],
    names: Sequence[str],
    free: FinishedStep | None,
    d_min: float | None,
    options: Sequence[str],
) -> Step:
    """The step ``dials.merge``.

    Parameters
    ----------
    step_name : str
    part : (Path, Path)
        The scaled experiments and reflections of one wavelength.
    names : sequence of str
        Parameters: what crystal and data set are called.
    free : FinishedStep, optional
        Of :func:`make_free_set`.
    d_min : float, optional
        Angstrom.
    options : sequence of str
        Further ones.
    """
    limit = () if d_min is None else (f"d_min={d_min:g}",)
    sets = () if free is None else (free.path(FREE_SET),)
    reference = tuple(f"r_free_flags.reference={path}" for path in sets)
    return Step(
        step_name,
        ("dials.merge", *map(str, part), *names, *limit, *reference, *options),
        (*part, *sets),
        ("merged.mtz",),
    )


def export_step(step_name: str, part: tuple[Path, Path], kind: str, file: str) -> Step:
    """The step ``dials.export`` of unmerged data.

    Parameters
    ----------
    step_name : str
    part : (Path, Path)
        The scaled experiments and reflections of one wavelength.
    kind : str
        "mtz" or "mmcif".
    file : str
        What is written.
    """
    options = (f"format={kind}", "intensity=scale", f"{kind}.hklout={file}")
    return Step(step_name, ("dials.export", *map(str, part), *options), part, (file,))


def make_free_set(
    name: str,
    parts: Sequence[tuple[Path, Path]],
    settings: PipelineSettings,
    work: WorkingFolder,
) -> FinishedStep | None:
    """The step that left the free set; its printed.log says in a sentence where it is from.

    None where options for dials.merge are about the free set: then it is left to dials.merge.

    Parameters
    ----------
    name : str
        Of the group.
    parts : sequence of (Path, Path)
        The scaled experiments and reflections of each wavelength.
    settings : PipelineSettings
    work : WorkingFolder
        It runs the step.

    Raises
    ------
    ValueError
        If the file that was named has no free set, or that of other crystals.
    """
    if any("r_free_flags" in option for option in settings.merging_options):
        return None
    given = settings.free_set
    origin = f"from {given}" if given else f"1 reflection in {1 / settings.free_fraction:.3g}"
    known, source = (read_free_set(given), str(given)) if given else _earlier_free_set(name, work)
    return work.run(
        Step(
            f"{name}/free_set",
            (f"free set {origin}", f"to {settings.d_min} A" if settings.d_min else "to the limit"),
            (*(path for part in parts for path in part), *([given] if given else [])),
            (FREE_SET,),
            perform=partial(_write_free_set, parts, settings, known, source),
            by_hand=False,
        )
    )


def _earlier_free_set(name: str, work: WorkingFolder) -> tuple[miller.array | None, str]:
    """The free set that an earlier run in the folder left, and its file."""
    files = [work.path / name / "free_set" / FREE_SET]
    files += sorted((work.path / RESULTS).glob(f"{name}_scaled*.mtz"))
    for path in files:
        if path.is_file() and "_unmerged" not in path.name:
            try:
                return read_free_set(path), str(path)
            except ValueError as error:
                logger.debug("%s", error)
    return None, ""


def _write_free_set(
    parts: Sequence[tuple[Path, Path]],
    settings: PipelineSettings,
    known: miller.array | None,
    source: str,
    folder: Path,
) -> None:
    observed = observed_indices(parts, settings.d_min)
    why = ""
    try:
        free, n_new = complete_free_set(known, observed, settings.free_fraction)
    except ValueError as error:
        if settings.free_set:
            raise ValueError(f"The free set of {source} is not of these data: {error}.") from None
        known, why = None, f" That of the earlier run was left: {error}."
        free, n_new = complete_free_set(None, observed, settings.free_fraction)
    write_free_set(free, folder / FREE_SET)
    if known is None:
        said = f"Free set: a new one, by the indices alone, of {n_new} reflections.{why}"
    else:
        kept = "that of" if settings.free_set else "kept, that of the earlier run in"
        more = (
            f"{n_new} reflections that it lacks were added" if n_new else "it has all reflections"
        )
        said = f"Free set: {kept} {source}; {more}."
    (folder / PRINTED).write_text(said, encoding="utf-8")
