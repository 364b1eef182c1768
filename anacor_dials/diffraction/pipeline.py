"""From integrated sweeps and tomography to merged intensities: the steps behind ``xia2.anacor``.

::

    each crystal    scan -> segment -> labels; labels + all its sweeps -> absorption -> factors
    each group      symmetry -> scale by every strategy -> compare -> best -> absences -> merge, export

What is scaled together is a group: the sweeps of one crystal, as in xia2, or of all crystals. Sweeps of
several wavelengths are treated as xia2 treats them, too: symmetry and scaling take them together, so that
all are on one scale and in one setting; then they are divided by wavelength, and statistics, merging and
export are of one wavelength each. The factors are of each wavelength's own mu.

Every step is a run of one command, with a folder, a log and a record of its own
(`anacor_dials.diffraction.steps`); only the statistics are computed here.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
from dials.util.export_mtz import match_wavelengths
from dxtbx.model.experiment_list import ExperimentList, ExperimentListFactory

from anacor_dials.diffraction.comparison import Comparison, as_dict, load_to_compare
from anacor_dials.diffraction.merging import merging_statistics
from anacor_dials.diffraction.scaling import (
    FailedScaling,
    ScaledData,
    ScalingJob,
    Strategy,
    run_job,
    strategy_called,
)
from anacor_dials.diffraction.selection import (
    STATISTICS,
    Selection,
    choose_strategy,
    factors_that_do_not_help,
    statistics_of_same_observations,
)
from anacor_dials.diffraction.steps import FinishedStep, Step, StepError, WorkingFolder
from anacor_dials.report.page import write_json
from anacor_dials.sample.tomogram_files import is_sample_file

logger = logging.getLogger("dials.anacor_dials.diffraction.pipeline")

# ---- what goes in ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepFiles:
    """The integrated files of one sweep, and what xia2 calls its crystal, wavelength and itself."""

    crystal: str
    wavelength: str
    name: str
    experiments: Path
    reflections: Path


@dataclass(frozen=True)
class Crystal:
    """All sweeps of one crystal, and its tomography: a scan, a tomogram or a labelled volume."""

    name: str
    sweeps: tuple[SweepFiles, ...]
    tomography: Path


def sweeps_of_xia2(folder: str | os.PathLike[str]) -> list[SweepFiles]:
    """The integrated sweeps of a finished xia2 directory, in xia2's order.

    xia2.json names project, crystals, wavelengths and sweeps; their files are
    ``DataFiles/PROJECT_CRYSTAL_WAVELENGTH_SWEEP.expt`` and ``.refl``, or where the integration left them.
    Without a readable xia2.json the names of the files in DataFiles are taken apart. Raises ValueError
    where there is no such directory and where integrated files are missing.
    """
    folder = Path(folder).absolute()
    data = folder / "DataFiles"
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    if not (folder / "xia2.json").is_file() and not data.is_dir():
        raise ValueError(
            f"{folder} is no directory of xia2 (it has neither xia2.json nor DataFiles); name one, or "
            "integrated .expt and .refl files."
        )
    try:
        project = json.loads((folder / "xia2.json").read_text(encoding="utf-8"))
        named = [
            (project["_name"], crystal["_name"], wavelength["_name"], sweep["_name"], sweep)
            for crystal in project["_crystals"].values()
            for wavelength in crystal["_wavelengths"].values()
            for sweep in wavelength["_sweeps"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sweeps = _sweeps_by_name(data)
    else:
        sweeps = [_sweep_of_record(folder, project, *names) for names in named]
    if not sweeps:
        raise ValueError(
            f"{folder} holds no integrated .expt and .refl files: xia2 did not finish there, or by "
            "another pipeline than dials; run xia2 pipeline=dials."
        )
    return sweeps


def _sweep_of_record(
    folder: Path,
    record: Mapping[str, Any],
    project: str,
    crystal: str,
    wavelength: str,
    name: str,
    sweep: Mapping[str, Any],
) -> SweepFiles:
    stem = "_".join((project, crystal, wavelength, name)).replace(" ", "_")
    integrater = sweep.get("_integrater") or {}
    found = []
    for kind, key in (
        ("expt", "_intgr_experiments_filename"),
        ("refl", "_intgr_integrated_reflections"),
    ):
        places = [folder / "DataFiles" / f"{stem}.{kind}"]
        if integrater.get(key):
            there = Path(integrater[key])
            places.append(there)
            if there.is_relative_to(record.get("path") or folder):  # the directory may have moved
                places.append(folder / there.relative_to(record.get("path") or folder))
        found.append(next((place for place in places if place.is_file()), None))
    experiments, reflections = found
    if experiments is None or reflections is None:
        raise ValueError(
            f"{folder} lacks the integrated files of the sweep {name} of {crystal} "
            f"(DataFiles/{stem}.expt and .refl): xia2 did not finish there, or by another pipeline than "
            "dials; run xia2 pipeline=dials."
        )
    return SweepFiles(crystal, wavelength, name, experiments, reflections)


def _sweeps_by_name(data: Path) -> list[SweepFiles]:
    """PROJECT_CRYSTAL_WAVELENGTH_SWEEP; where a name has more parts they are taken for the project's."""
    sweeps = []
    for experiments in sorted(data.glob("*.expt")):
        parts = experiments.stem.rsplit("_", 3)
        reflections = experiments.with_suffix(".refl")
        if len(parts) == 4 and parts[-1] != "scaled" and reflections.is_file():
            sweeps.append(SweepFiles(*parts[1:], experiments, reflections))
    return sweeps


def sweeps_of_directories(folders: Sequence[str | os.PathLike[str]]) -> list[SweepFiles]:
    """The sweeps of several xia2 directories, each directory with crystals of its own.

    Where two of them give their crystals the same name (xia2's own is DEFAULT) the directory's name is
    put before it.
    """
    per_folder = [sweeps_of_xia2(folder) for folder in folders]
    counts = Counter(name for sweeps in per_folder for name in {sweep.crystal for sweep in sweeps})
    result = []
    for folder, sweeps in zip(folders, per_folder, strict=True):
        for sweep in sweeps:
            crystal = sweep.crystal
            if counts[crystal] > 1:
                crystal = file_name(f"{Path(folder).absolute().name}_{crystal}")
            result.append(replace(sweep, crystal=crystal))
    identity = {(sweep.crystal, sweep.wavelength, sweep.name) for sweep in result}
    if len(identity) != len(result):
        raise ValueError(
            f"The directories {', '.join(map(str, folders))} have the same name and crystals of the "
            "same name; rename one of them."
        )
    return result


def sweeps_of_files(
    experiments: Sequence[str | os.PathLike[str]],
    reflections: Sequence[str | os.PathLike[str]],
    crystals: Sequence[str] = ("DEFAULT",),
) -> list[SweepFiles]:
    """Integrated files divided evenly among the crystals, in their order.

    Raises ValueError where they cannot be divided or a file is absent.
    """
    experiments = [Path(path).absolute() for path in experiments]
    reflections = [Path(path).absolute() for path in reflections]
    for path in (*experiments, *reflections):
        if not path.is_file():
            raise ValueError(f"There is no file {path}.")
    if not experiments or len(experiments) != len(reflections):
        raise ValueError(
            f"{len(experiments)} experiment files and {len(reflections)} reflection files were given; "
            "give an .expt and a .refl for each sweep."
        )
    if len(experiments) % len(crystals):
        raise ValueError(
            f"{len(experiments)} sweeps cannot be divided among {len(crystals)} crystals "
            f"({', '.join(crystals)}); give equally many files for each crystal, one crystal after the "
            "other."
        )
    each = len(experiments) // len(crystals)
    return [
        SweepFiles(crystals[i // each], "", f"SWEEP{i + 1}", expt, refl)
        for i, (expt, refl) in enumerate(zip(experiments, reflections, strict=True))
    ]


def assign_tomography(
    sweeps: Sequence[SweepFiles],
    in_order: Sequence[str | os.PathLike[str]],
    by_name: Mapping[str, str | os.PathLike[str]],
) -> list[Crystal]:
    """The crystals with their sweeps and tomography.

    in_order: one for each crystal, in the order of their sweeps; by_name: {crystal: tomography}. Raises
    ValueError where the two are mixed, numbers or names do not fit, or one does not exist.
    """
    names = list(dict.fromkeys(sweep.crystal for sweep in sweeps))
    listed = ", ".join(names)
    if in_order and by_name:
        raise ValueError(
            "Tomography was given by crystal and without; name the crystal of each "
            f"(tomography.CRYSTAL=scan; the crystals are {listed})."
        )
    if not in_order and not by_name:
        raise ValueError("No tomography was given; name a scan or a tomo.h5 by tomography=.")
    if by_name:
        if unknown := [name for name in by_name if name not in names]:
            raise ValueError(
                f"tomography.{unknown[0]} was given, but the crystals of the data are {listed}."
            )
        if lacking := [name for name in names if name not in by_name]:
            raise ValueError(
                f"The crystal {lacking[0]} has no tomography; give tomography.{lacking[0]}=, or name "
                "only the other crystals' integrated .expt and .refl files."
            )
    elif len(in_order) != len(names):
        raise ValueError(
            f"{len(in_order)} tomograms were given for {len(names)} crystals ({listed}); give one for "
            "each crystal, by name (tomography.CRYSTAL=scan) or in this order."
        )
    given = dict(by_name) or dict(zip(names, in_order, strict=True))
    return [
        Crystal(
            name,
            tuple(sweep for sweep in sweeps if sweep.crystal == name),
            existing_tomography(given[name], name),
        )
        for name in names
    ]


def refuse_unknown_crystals(crystals: Sequence[Crystal], settings: Settings) -> None:
    """Raises ValueError where options were given for a crystal that there is not."""
    names = [crystal.name for crystal in crystals]
    for scope, given in (
        ("segmentation", settings.segmentation_options),
        ("absorption", settings.absorption_options),
    ):
        for name in given:
            if name and name not in names:
                raise ValueError(
                    f"{scope}.{name} was given, but the crystals of the data are {', '.join(names)}."
                )


def existing_tomography(given: str | os.PathLike[str], crystal: str = "") -> Path:
    """The absolute path of a file, a folder, a pattern or file.h5:/path. Raises ValueError without it."""
    text = os.fspath(given)
    path = Path(os.path.abspath(text))
    if not _files_of(path):
        of = f" of the crystal {crystal}" if crystal else ""
        raise ValueError(f"The tomography {text}{of} does not exist.")
    return path


def _files_of(tomography: Path) -> tuple[Path, ...]:
    """The files that a scan or volume consists of; external files that an HDF5 file links to are not known."""
    if tomography.is_file():
        return (tomography,)
    if tomography.is_dir():
        return tuple(sorted(path for path in tomography.iterdir() if path.is_file()))
    matching = tuple(sorted(Path(name) for name in glob.glob(str(tomography))))
    if matching:
        return matching
    file = Path(re.sub(r":/.*$", "", str(tomography)))
    return (file,) if file.is_file() else ()


def file_name(label: str) -> str:
    """The label with everything that does not belong in a file's name replaced."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", label).strip("_.") or "crystal"


# ---- how it is done -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How the pipeline is to run; see phil/xia2_anacor.phil for the words.

    strategy: the one to take whatever the statistics say. statistic, margin: see `choose_strategy`. Options: further arguments of each program; those of segmentation and
    absorption by crystal, "" for all of them.
    """

    strategies: tuple[str, ...] = ("none", "sh_high", "analytical", "analytical_sh")
    strategy: str | None = None
    statistic: str = "r_meas"
    margin: float = 0.02
    d_min: float | None = None
    n_bins: int = 20
    model: str = "auto"
    together: bool = False
    symmetry: str = "auto"
    space_group: str | None = None
    absences: bool = True
    segmentation_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    absorption_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    symmetry_options: tuple[str, ...] = ()
    scaling_options: tuple[str, ...] = ()
    merging_options: tuple[str, ...] = ()
    nproc: int = 1

    def __post_init__(self) -> None:
        for name in (*self.strategies, *([self.strategy] if self.strategy else [])):
            strategy_called(name).options(self.model)
        if not self.strategies and not self.strategy:
            raise ValueError("No strategy was asked for; name at least one.")
        if self.statistic not in STATISTICS:
            raise ValueError(
                f"The statistic {self.statistic} is not known; there are {', '.join(STATISTICS)}."
            )
        if self.symmetry not in ("auto", "cosym", "symmetry", "none"):
            raise ValueError(
                f"No program for symmetry is called {self.symmetry}; there are auto, cosym, symmetry "
                "and none."
            )
        if self.symmetry == "none" and self.space_group:
            raise ValueError(
                f"The space group {self.space_group} was given with symmetry.program=none, which "
                "leaves it as it is; leave one of them out."
            )
        options = [
            *self.symmetry_options,
            *self.scaling_options,
            *self.merging_options,
            *(o for given in self.segmentation_options.values() for o in given),
            *(o for given in self.absorption_options.values() for o in given),
        ]
        for option in options:
            if re.match(r"output\.(?!html=|probabilities=)", option):
                raise ValueError(
                    f"The option {option} cannot be given: the pipeline names the files itself."
                )

    def chosen_strategies(self) -> list[Strategy]:
        """The strategies to run: those asked for, and the one to take."""
        names = dict.fromkeys((*self.strategies, *([self.strategy] if self.strategy else [])))
        return [strategy_called(name) for name in names]


def options_of(crystal: str, given: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The options for all crystals and then those for this one."""
    return (*given.get("", ()), *given.get(crystal, ()))


# ---- what comes out -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Correction:
    """The factors of one crystal; segmentation: None where the labels were there already."""

    crystal: Crystal
    segmentation: FinishedStep | None
    labels: Path
    absorption: FinishedStep

    @property
    def summary(self) -> dict[str, Any]:
        """What dials.anacor_absorption says of the factors, as numbers."""
        path = self.absorption.path("anacor_absorption.json")
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content


@dataclass(frozen=True)
class WavelengthResult:
    """Statistics and final files of one wavelength (A). files: what it is -> path."""

    name: str
    wavelength: float
    comparison: FinishedStep
    merging: FinishedStep
    files: Mapping[str, Path]

    @property
    def table(self) -> dict[str, Any]:
        """The comparison as numbers (`anacor_dials.diffraction.comparison.as_dict`)."""
        path = self.comparison.path(COMPARISON_JSON)
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content


@dataclass(frozen=True)
class GroupResult:
    """What became of the sweeps that were scaled together. warning: what the user should look at."""

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


@dataclass(frozen=True)
class Result:
    """All that the pipeline made."""

    corrections: tuple[Correction, ...]
    groups: tuple[GroupResult, ...]


COMPARISON_JSON = "anacor_compare.json"
COMPARISON_HTML = "anacor_compare.html"
WriteReport = Callable[[Comparison, Path], None]

# ---- doing it -------------------------------------------------------------------------------------


def integration(images: Sequence[str], options: Sequence[str], nproc: int = 1) -> Step:
    """The step ``xia2 pipeline=dials`` on images (``path`` or ``path:first:last``); its folder is xia2's.

    Raises ValueError where there is no xia2 or no image. Whether images have changed is judged by the
    named ones alone.
    """
    if shutil.which("xia2") is None:
        raise ValueError(
            "Images were given and there is no xia2 on PATH to integrate them; install it, or integrate "
            "them by DIALS and give the integrated .expt and .refl files."
        )
    named, files = [], []
    for image in images:
        path, span = re.fullmatch(r"(.*?)((?::\d+:\d+)?)", image).groups()
        files.append(Path(path).absolute())
        if not files[-1].is_file():
            raise ValueError(f"There is no image {path}.")
        named.append(f"image={files[-1]}{span}")
    return Step(
        "xia2",
        ("xia2", "pipeline=dials", *named, *options),
        tuple(files),
        ("xia2.json",),
        (f"nproc={nproc}",),
    )


def process(
    crystals: Sequence[Crystal],
    settings: Settings,
    work: WorkingFolder,
    write_report: WriteReport,
) -> Result:
    """All steps from the integrated sweeps on, each run where it is not done yet.

    write_report: writes the page of one comparison. Raises ValueError, with the log to read, where a step
    fails; a strategy of scaling that fails is left out unless it is the one to take.
    """
    names = [file_name(crystal.name) for crystal in crystals]
    if len(set(names)) != len(names) or "all" in names and settings.together:
        raise ValueError(
            f"The crystals {', '.join(names)} have no names of their own; rename them."
        )
    corrections = tuple(correct(crystal, settings, work) for crystal in crystals)
    groups = [corrections] if settings.together else [(one,) for one in corrections]
    reduced = tuple(reduce_group(group, settings, work, write_report) for group in groups)
    work.remove_old_results()
    return Result(corrections, reduced)


def has_labels(tomography: Path, options: Sequence[str]) -> bool:
    """Whether it needs no segmentation: a tomo.h5 with labels, or a foreign stack of labels."""
    if tomography.suffix == ".npy" or any("labels.voxel_size_um" in option for option in options):
        return True
    if not tomography.is_file() or not h5py.is_hdf5(tomography) or not is_sample_file(tomography):
        return False
    with h5py.File(tomography, "r") as file:
        return "entry/segmentation/labels" in file


def correct(crystal: Crystal, settings: Settings, work: WorkingFolder) -> Correction:
    """The factors of all sweeps of a crystal: labels, mu and rays."""
    name = file_name(crystal.name)
    options = options_of(crystal.name, settings.absorption_options)
    free = (f"nproc={settings.nproc}",)
    labels, segmentation = crystal.tomography, None
    if not has_labels(crystal.tomography, options):
        segmentation = work.run(
            Step(
                f"{name}/segment",
                (
                    "dials.anacor_segment",
                    str(crystal.tomography),
                    *options_of(crystal.name, settings.segmentation_options),
                ),
                _files_of(crystal.tomography),
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
                str(labels),
                *options,
            ),
            (
                *(sweep.experiments for sweep in crystal.sweeps),
                *(sweep.reflections for sweep in crystal.sweeps),
                *_files_of(labels),
            ),
            ("corrected.expt", "corrected.refl", "anacor_absorption.json"),
            free,
        )
    )
    return Correction(crystal, segmentation, labels, absorption)


def reduce_group(
    corrections: Sequence[Correction],
    settings: Settings,
    work: WorkingFolder,
    write_report: WriteReport,
) -> GroupResult:
    """The sweeps scaled together: symmetry, strategies, the best of them, merged and exported."""
    crystals = tuple(one.crystal.name for one in corrections)
    name = "all" if settings.together else file_name(crystals[0])
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
        [
            json.loads(step.path(COMPARISON_JSON).read_text("utf-8"))["same_observations"]["values"]
            for _, _, step in per_wavelength
        ],
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
    models = _read_models(final[0])
    wavelengths = merge_and_export(name, crystals, final, per_wavelength, settings, work)
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
    )


def find_symmetry(
    name: str,
    experiments: Sequence[Path],
    reflections: Sequence[Path],
    settings: Settings,
    work: WorkingFolder,
) -> FinishedStep | None:
    """All sweeps in one setting and their space group; None where it is left as it is.

    Several sweeps go through dials.cosym, which also settles ambiguities of indexing between them; one
    goes through dials.symmetry, or dials.reindex where its space group was given.
    """
    if settings.symmetry == "none":
        return None
    n_sweeps = sum(len(_read_models(path)) for path in experiments)
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
    settings: Settings,
    work: WorkingFolder,
) -> list[tuple[ScaledData | FailedScaling, FinishedStep | None]]:
    """The outcome of every strategy, each a step of its own; as many at a time as there are processes."""
    options = settings.scaling_options
    if settings.d_min is not None:
        options = (f"cut_data.d_min={settings.d_min:g}", *options)
    strategies = settings.chosen_strategies()
    at_a_time = max(1, min(settings.nproc, len(strategies)))
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
                perform=partial(_scale, job, max(1, settings.nproc // at_a_time)),
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
    corrections: Sequence[Correction],
    settings: Settings,
    work: WorkingFolder,
    write_report: WriteReport,
) -> list[tuple[str, float, FinishedStep]]:
    """(name, wavelength in A, its comparison) for every wavelength, from short to long."""
    first = next(o for o, _ in outcomes if isinstance(o, ScaledData))
    models = _read_models(first.experiments)
    wavelengths = sorted(match_wavelengths(models))
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
                f"to {settings.d_min or 'the common limit'} A in {settings.n_bins} shells",
            ),
            tuple(path for one in scaled for path in (one.experiments, one.reflections)),
            (COMPARISON_JSON, COMPARISON_HTML),
            perform=partial(_compare, part, settings, write_report),
            by_hand=False,
        )
        result.append((label, wavelength, work.run(step)))
    return result


def wavelength_names(wavelengths: Sequence[float], corrections: Sequence[Correction]) -> list[str]:
    """xia2's name of each wavelength (A), where all its sweeps have one and no other has it; else WAVEn."""
    names: list[set[str]] = [set() for _ in wavelengths]
    for correction in corrections:
        for sweep in correction.crystal.sweeps:
            for model in _read_models(sweep.experiments):
                length = model.beam.get_wavelength()
                nearest = min(range(len(wavelengths)), key=lambda i: abs(wavelengths[i] - length))
                names[nearest].add(file_name(sweep.wavelength) if sweep.wavelength else "")
    plain = [next(iter(known)) if len(known) == 1 else "" for known in names]
    if all(plain) and len(set(plain)) == len(plain):
        return plain
    if len(wavelengths) == 1:
        return ["NATIVE"]
    return [f"WAVE{i + 1}" for i in range(len(wavelengths))]


def by_wavelength(
    step_name: str, files: tuple[Path, Path], work: WorkingFolder
) -> list[tuple[Path, Path]]:
    """(experiments, reflections) of each wavelength, from short to long; the files where there is one."""
    models = _read_models(files[0])
    n = len(match_wavelengths(models))
    if n == 1:
        return [files]
    digits = len(str(len(models) - 1))  # as dials.split_experiments numbers them
    names = [f"split_{i:0{digits}d}" for i in range(n)]
    done = work.run(
        Step(
            step_name,
            ("dials.split_experiments", *map(str, files), "by_wavelength=True"),
            files,
            tuple(f"{one}.{kind}" for one in names for kind in ("expt", "refl")),
        )
    )
    return [(done.path(f"{one}.expt"), done.path(f"{one}.refl")) for one in names]


def _compare(
    outcomes: Sequence[ScaledData | FailedScaling],
    settings: Settings,
    write_report: WriteReport,
    folder: Path,
) -> None:
    comparison = compare_scaled(outcomes, settings.d_min, settings.n_bins)
    values, n = statistics_of_same_observations(
        {
            one.strategy.name: (one.experiments, one.reflections)
            for one in outcomes
            if isinstance(one, ScaledData)
        },
        comparison.d_max,
        comparison.d_min,
    )
    same = {"observations": n, "values": values}
    write_json(folder / COMPARISON_JSON, as_dict(comparison) | {"same_observations": same})
    write_report(comparison, folder / COMPARISON_HTML)


def compare_scaled(
    outcomes: Sequence[ScaledData | FailedScaling], d_min: float | None, n_bins: int
) -> Comparison:
    """Data that are scaled already, merged at one common resolution (A); see `comparison.compare`."""
    scaled, limits, width = load_to_compare(outcomes, d_min)
    statistics = tuple(merging_statistics(one, *limits, n_bins, width) for one in scaled)
    return Comparison(tuple(outcomes), statistics, *limits, n_bins)


def merge_and_export(
    name: str,
    crystals: Sequence[str],
    files: tuple[Path, Path],
    wavelengths: Sequence[tuple[str, float, FinishedStep]],
    settings: Settings,
    work: WorkingFolder,
) -> tuple[WavelengthResult, ...]:
    """Each wavelength merged (MTZ) and unmerged (MTZ, mmCIF), and put into DataFiles."""
    results = []
    parts = by_wavelength(f"{name}/split", files, work)
    for (label, wavelength, comparison), part in zip(wavelengths, parts, strict=True):
        suffix = f"_{label}" if len(parts) > 1 else ""
        limit = () if settings.d_min is None else (f"d_min={settings.d_min:g}",)
        merging = work.run(
            Step(
                f"{name}/merge{suffix}",
                (
                    "dials.merge",
                    *map(str, part),
                    f"output.crystal_names={file_name(crystals[0]) if len(crystals) == 1 else 'ALL'}",
                    f"output.dataset_names={label}",
                    *limit,
                    *settings.merging_options,
                ),
                part,
                ("merged.mtz",),
            )
        )
        mtz = work.run(
            Step(
                f"{name}/export{suffix}",
                (
                    "dials.export",
                    *map(str, part),
                    "format=mtz",
                    "intensity=scale",
                    "mtz.hklout=scaled_unmerged.mtz",
                ),
                part,
                ("scaled_unmerged.mtz",),
            )
        )
        mmcif = work.run(
            Step(
                f"{name}/export_mmcif{suffix}",
                (
                    "dials.export",
                    *map(str, part),
                    "format=mmcif",
                    "intensity=scale",
                    "mmcif.hklout=scaled.mmcif",
                ),
                part,
                ("scaled.mmcif",),
            )
        )
        stem = f"{name}_scaled"
        results.append(
            WavelengthResult(
                label,
                wavelength,
                comparison,
                merging,
                {
                    "merged MTZ": work.publish(merging.path("merged.mtz"), f"{stem}{suffix}.mtz"),
                    "unmerged MTZ": work.publish(
                        mtz.path("scaled_unmerged.mtz"),
                        f"{stem}_unmerged{suffix}.mtz",
                    ),
                    "unmerged mmCIF": work.publish(
                        mmcif.path("scaled.mmcif"), f"{stem}_unmerged{suffix}.mmcif"
                    ),
                },
            )
        )
    return tuple(results)


def _read_models(path: Path) -> ExperimentList:
    return ExperimentListFactory.from_json_file(os.fspath(path), check_format=False)
