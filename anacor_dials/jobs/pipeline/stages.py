"""The stages of one crystal or group: factors, symmetry, scaling, comparison, merging, export."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from anacor_dials.diffraction.commands import program_versions
from anacor_dials.diffraction.crystal_faces import is_face_list
from anacor_dials.diffraction.models import read_models
from anacor_dials.diffraction.scaling import FailedScaling, ScaledData, ScalingJob, run_job
from anacor_dials.diffraction.selection import choose_strategy, factors_that_do_not_help
from anacor_dials.diffraction.wavelengths import wavelength_groups
from anacor_dials.jobs.compare import Comparison, ComparisonSettings, compare
from anacor_dials.jobs.load_sample import has_labels
from anacor_dials.jobs.pipeline.inputs import Crystal, files_of
from anacor_dials.jobs.pipeline.merged_data import merge_and_export
from anacor_dials.jobs.pipeline.results import (
    COMPARISON_HTML,
    COMPARISON_JSON,
    CorrectedCrystal,
    GroupResult,
    same_observations,
)
from anacor_dials.jobs.pipeline.settings import PipelineSettings, files_named_in, options_of
from anacor_dials.jobs.pipeline.steps import FinishedStep, Step, StepError, WorkingFolder
from anacor_dials.jobs.pipeline.wavelengths import by_wavelength, wavelength_names
from anacor_dials.sample.output_files import file_name
from anacor_dials.sample.surface_files import SURFACE_SUFFIXES

logger = logging.getLogger("dials.anacor_dials.jobs.pipeline.stages")

WriteReport = Callable[[Comparison, Path], None]

LAST_OF_XIA2 = "freerflag"  # the program of CCP4 that xia2 3.9 ends with, also by pipeline=dials


def integration(images: Sequence[str], options: Sequence[str], nproc: int = 1) -> Step:
    """The step ``xia2 pipeline=dials`` on images; its folder is that of xia2.

    After integration and scaling xia2 runs a program of CCP4. Where that is absent the step is
    ``xia2.integrate pipeline=dials``, which ends with the integration; no more is used here.

    Parameters
    ----------
    images : sequence of str
        ``path`` or ``path:first:last``. Only the files that are named are looked at to find out
        whether images have changed.
    options : sequence of str
        Further arguments of xia2.
    nproc : int

    Raises
    ------
    ValueError
        If there is no xia2, or no such image.
    """
    program = "xia2" if shutil.which(LAST_OF_XIA2) else "xia2.integrate"
    if shutil.which(program) is None:
        raise ValueError(
            "Images were given and there is no xia2 on PATH to integrate them; install it, or integrate "
            "them by DIALS and give the integrated .expt and .refl files."
        )
    named, files = [], []
    for image in images:
        span = re.search(r"(?::\d+:\d+)?$", image)[0]  # type: ignore[index]  # always matches
        path = image.removesuffix(span)
        files.append(Path(path).absolute())
        if not files[-1].is_file():
            raise ValueError(f"There is no image {path}.")
        named.append(f"image={files[-1]}{span}")
    if program != "xia2":
        logger.info(
            "CCP4 is not set up (there is no %s on PATH), without which xia2 ends with an error after "
            "scaling; so its images are integrated by xia2.integrate.",
            LAST_OF_XIA2,
        )
    return Step(
        "xia2",
        (program, "pipeline=dials", *named, *options),
        tuple(files),
        ("xia2.json",),
        (f"nproc={nproc}",),
        versions={"xia2": program_versions("xia2")["xia2"]},
    )


def correct(crystal: Crystal, settings: PipelineSettings, work: WorkingFolder) -> CorrectedCrystal:
    """The factors of all sweeps of a crystal: labels, faces or meshes, mu and rays.

    Parameters
    ----------
    crystal : Crystal
    settings : PipelineSettings
    work : WorkingFolder
        It runs the steps.
    """
    name = file_name(crystal.name, "crystal")
    options = options_of(crystal.name, settings.absorption_options)
    free = (f"nproc={settings.nproc}",)
    labels, segmentation = crystal.tomography, None
    is_stack = any("labels.voxel_size_um" in option for option in options)
    of_segmentation = options_of(crystal.name, settings.segmentation_options)
    is_tomogram = any(option.startswith("tomogram.") for option in of_segmentation)
    given_as = _without_tomogram(crystal.tomography)
    is_labelled = bool(given_as) or is_stack or has_labels(crystal.tomography)
    if is_tomogram or not is_labelled:
        segmentation = work.run(
            Step(
                f"{name}/segment",
                ("dials.anacor_segment", str(crystal.tomography), *of_segmentation),
                (*files_of(crystal.tomography), *files_named_in(of_segmentation)),
                ("tomo.h5", "anacor_segment.json"),
                free,
            )
        )
        labels = segmentation.path("tomo.h5")
    absorption = work.run(
        Step(
            f"{name}/absorption",
            (
                "dials.anacor_absorption",
                *(str(sweep.experiments) for sweep in crystal.sweeps),
                *(str(sweep.reflections) for sweep in crystal.sweeps),
                f"{given_as}{labels}",
                *options,
            ),
            (
                *(sweep.experiments for sweep in crystal.sweeps),
                *(sweep.reflections for sweep in crystal.sweeps),
                *files_of(labels),
                *files_named_in(options),
            ),
            ("corrected.expt", "corrected.refl", "anacor_absorption.json"),
            free,
        )
    )
    return CorrectedCrystal(crystal, segmentation, labels, absorption)


def _without_tomogram(path: Path) -> str:
    """ "faces=" for a list of the crystal's faces, "mesh=" for its surface, "" for volumes."""
    if is_face_list(path):
        return "faces="
    return "mesh=" if path.suffix.lower() in SURFACE_SUFFIXES and path.is_file() else ""


def reduce_group(
    corrections: Sequence[CorrectedCrystal],
    settings: PipelineSettings,
    work: WorkingFolder,
    write_report: WriteReport,
) -> GroupResult:
    """Sweeps scaled together: symmetry, strategies, the best of them, merged and exported.

    Parameters
    ----------
    corrections : sequence of CorrectedCrystal
        The crystals that are scaled together.
    settings : PipelineSettings
    work : WorkingFolder
        It runs the steps.
    write_report : callable
        As of :func:`anacor_dials.jobs.pipeline.crystals.process`.
    """
    crystals = tuple(one.crystal.name for one in corrections)
    name = "all" if settings.together else file_name(crystals[0], "crystal")
    experiments = tuple(one.absorption.path("corrected.expt") for one in corrections)
    reflections = tuple(one.absorption.path("corrected.refl") for one in corrections)
    symmetry = find_symmetry(name, experiments, reflections, settings, work)
    if symmetry is not None:
        experiments = (symmetry.path("symmetrized.expt"),)
        reflections = (symmetry.path("symmetrized.refl"),)

    outcomes = scale_by_strategies(name, experiments, reflections, settings, work)
    scaled = {o.strategy.name: step for o, step in outcomes if step is not None}
    failed = {o.strategy.name: o.reason for o, step in outcomes if isinstance(o, FailedScaling)}
    if not scaled or settings.strategy in failed:
        reasons = "; ".join(f"{which}: {why.rstrip('.')}" for which, why in failed.items())
        what = f"The strategy {settings.strategy} could not" if scaled else "No strategy could"
        raise ValueError(f"{what} be scaled. {reasons}.")

    per_wavelength = compare_wavelengths(name, outcomes, corrections, settings, work, write_report)
    selection = choose_strategy(
        [same_observations(step) for _, _, step in per_wavelength],
        settings.statistic,
        settings.margin,
        settings.strategy,
    )
    best = scaled[selection.strategy.name]
    final = (best.path("scaled.expt"), best.path("scaled.refl"))
    absences = None
    if settings.absences and settings.symmetry != "none" and not settings.space_group:
        absences = work.run(
            Step(
                f"{name}/absences",
                ("dials.symmetry", *map(str, final), "laue_group=None"),
                final,
                ("symmetrized.expt", "symmetrized.refl"),
            )
        )
        final = (absences.path("symmetrized.expt"), absences.path("symmetrized.refl"))
    models = read_models(final[0])
    wavelengths, free_set = merge_and_export(
        name, corrections, final, per_wavelength, settings, work
    )
    return GroupResult(
        name=name,
        crystals=crystals,
        symmetry=symmetry,
        scaled=scaled,
        failed=failed,
        selection=selection,
        warning=factors_that_do_not_help(selection.values, settings.statistic),
        absences=absences,
        space_group=str(models[0].crystal.get_space_group().info()),
        unit_cell=tuple(models[0].crystal.get_unit_cell().parameters()),
        experiments=work.publish(final[0], f"{name}_scaled.expt"),
        reflections=work.publish(final[1], f"{name}_scaled.refl"),
        wavelengths=wavelengths,
        free_set=free_set,
    )


def find_symmetry(
    name: str,
    experiments: Sequence[Path],
    reflections: Sequence[Path],
    settings: PipelineSettings,
    work: WorkingFolder,
) -> FinishedStep | None:
    """All sweeps in one setting, and their space group; None if it is left as it is.

    Several sweeps are given to dials.cosym, which also resolves indexing ambiguities between them.
    A single sweep is given to dials.symmetry, or to dials.reindex if its space group is known.

    Parameters
    ----------
    name : str
        Of the group.
    experiments, reflections : sequence of Path
        Its files.
    settings : PipelineSettings
    work : WorkingFolder
        It runs the steps.
    """
    if settings.symmetry == "none":
        return None
    n_sweeps = sum(len(read_models(path)) for path in experiments)
    program = settings.symmetry
    if program == "auto":
        program = "cosym" if n_sweeps > 1 else "symmetry"
    files = [*map(str, experiments), *map(str, reflections)]
    free: tuple[str, ...] = ()
    if program == "cosym":
        command = ["dials.cosym", *files]
        free = (f"nproc={settings.nproc}",)
    elif settings.space_group:
        command = ["dials.reindex", *files]
        command += ["output.experiments=symmetrized.expt", "output.reflections=symmetrized.refl"]
    else:
        # absences are looked for in scaled data, where they can be told from weak reflections
        command = ["dials.symmetry", *files, "systematic_absences.check=False"]
    if settings.space_group:
        command.append(f"space_group={settings.space_group}")
    return work.run(
        Step(
            f"{name}/symmetry",
            (*command, *settings.symmetry_options),
            (*experiments, *reflections),
            ("symmetrized.expt", "symmetrized.refl"),
            free,
        )
    )


def scale_by_strategies(
    name: str,
    experiments: Sequence[Path],
    reflections: Sequence[Path],
    settings: PipelineSettings,
    work: WorkingFolder,
) -> list[tuple[ScaledData | FailedScaling, FinishedStep | None]]:
    """The outcome of every strategy, each a step of its own.

    Parameters
    ----------
    name : str
        Of the group.
    experiments, reflections : sequence of Path
        Its files.
    settings : PipelineSettings
    work : WorkingFolder
        It runs the steps.
    """
    options = settings.scaling_options
    if settings.d_min is not None:
        options = (f"cut_data.d_min={settings.d_min:g}", *options)
    strategies = settings.chosen_strategies()
    at_a_time, threads = work.workers.share(len(strategies), settings.nproc)
    jobs, steps = [], []
    for strategy in strategies:
        job = ScalingJob(
            strategy.label,
            strategy,
            tuple(experiments),
            tuple(reflections),
            work.path / name / f"scale_{strategy.name}",
            settings.model,
            options,
        )
        jobs.append(job)
        steps.append(
            Step(
                f"{name}/scale_{strategy.name}",
                job.command(),
                (*experiments, *reflections),
                ("scaled.expt", "scaled.refl", "dials.scale.log"),
                perform=partial(_scale, job, threads),
            )
        )
    outcomes: list[tuple[ScaledData | FailedScaling, FinishedStep | None]] = []
    for job, done in zip(jobs, work.run_all(steps, at_a_time), strict=True):
        if isinstance(done, StepError):
            failure = FailedScaling(job.label, job.strategy, job.command(), str(done), done.log)
            outcomes.append((failure, None))
            continue
        html = done.path("dials.scale.html")
        data = ScaledData(
            job.label,
            job.strategy,
            job.command(),
            done.path("scaled.expt"),
            done.path("scaled.refl"),
            done.path("dials.scale.log"),
            html if html.is_file() else None,
            done.seconds,
        )
        outcomes.append((data, done))
    return outcomes


def _scale(job: ScalingJob, threads: int, folder: Path) -> None:
    run_job(replace(job, folder=folder), threads)


def compare_wavelengths(
    name: str,
    outcomes: Sequence[tuple[ScaledData | FailedScaling, FinishedStep | None]],
    corrections: Sequence[CorrectedCrystal],
    settings: PipelineSettings,
    work: WorkingFolder,
    write_report: WriteReport,
) -> list[tuple[str, float, FinishedStep]]:
    """(name, wavelength in Angstrom, its comparison), from the shortest wavelength to the longest.

    Parameters
    ----------
    name : str
        Of the group.
    outcomes : sequence of (ScaledData or FailedScaling, FinishedStep or None)
        Of :func:`scale_by_strategies`.
    corrections : sequence of CorrectedCrystal
        The crystals of the group.
    settings : PipelineSettings
    work : WorkingFolder
        It runs the steps.
    write_report : callable
        As of :func:`anacor_dials.jobs.pipeline.crystals.process`.
    """
    first = next(o for o, _ in outcomes if isinstance(o, ScaledData))
    models = read_models(first.experiments)
    wavelengths = sorted(wavelength for wavelength, _ in wavelength_groups(models))
    labels = wavelength_names(wavelengths, corrections)
    # every strategy's data by wavelength, in the order of `wavelengths`
    parts: list[list[ScaledData | FailedScaling]] = [[] for _ in wavelengths]
    for outcome, _ in outcomes:
        if isinstance(outcome, FailedScaling):
            for part in parts:
                part.append(outcome)
            continue
        files = by_wavelength(
            f"{name}/split_{outcome.strategy.name}",
            (outcome.experiments, outcome.reflections),
            work,
        )
        if len(files) != len(wavelengths):
            raise ValueError(
                f"Scaling by {outcome.label} left {len(files)} of {len(wavelengths)} wavelengths; "
                f"leave it out, or see {outcome.log}."
            )
        for part, (expt, refl) in zip(parts, files, strict=True):
            part.append(replace(outcome, experiments=expt, reflections=refl))
    result = []
    limit = "the common limit" if settings.d_min is None else f"{settings.d_min:g} A"
    if settings.d_min is None and settings.cc_half is not None:
        limit = f"where CC1/2 falls below {settings.cc_half:g},"
    for label, wavelength, part in zip(labels, wavelengths, parts, strict=True):
        suffix = f"_{label}" if len(wavelengths) > 1 else ""
        scaled = [one for one in part if isinstance(one, ScaledData)]
        said = [
            f"{o.label} ({o.reason})" if isinstance(o, FailedScaling) else o.label for o in part
        ]
        step = Step(
            f"{name}/compare{suffix}",
            (
                f"statistics of {'; '.join(said)}",
                f"to {limit} in {settings.n_bins} shells",
            ),
            tuple(path for one in scaled for path in (one.experiments, one.reflections)),
            (COMPARISON_JSON, COMPARISON_HTML),
            perform=partial(_compare, part, settings, write_report),
            by_hand=False,
        )
        result.append((label, wavelength, work.run(step)))
    return result


def _compare(
    outcomes: Sequence[ScaledData | FailedScaling],
    settings: PipelineSettings,
    write_report: WriteReport,
    folder: Path,
) -> None:
    merged_by = ComparisonSettings(settings.d_min, settings.n_bins, settings.cc_half)
    comparison = compare(outcomes, merged_by)
    if comparison.same is None:
        raise ValueError(comparison.why_not_same)
    write_report(comparison, folder)
