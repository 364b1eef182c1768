"""Scaling of the same data by several strategies. Each is a run of ``dials.scale``.

A strategy says which absorption correction ``dials.scale`` makes: none, spherical harmonics of one
of DIALS' three levels, the factors of the column ``analytical_correction``, or both. Everything
else (scale and decay terms, error model, outlier rejection) is the same for all strategies.

The options rely on the following, which was read in the source of DIALS 3.30 and tried:

* ``physical.absorption_correction`` switches the spherical harmonics, which are on by default for
  scans wider than 60 degrees. ``physical.absorption_level`` turns them on whatever the switch says.
* ``physical.analytical_correction`` applies the column as a fixed inverse scale. With
``model=auto``
  stills and scans narrower than 1 degree get the KB model, which has its own switch.
* An experiment that has a scaling model keeps it, and the options are ignored without a message.
  Therefore ``overwrite_existing_models=True`` is always given, and the terms of the models that
  come out are checked.
"""

from __future__ import annotations

import json
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dials.array_family import flex

from anacor_dials.diffraction.commands import last_words, run_command
from anacor_dials.diffraction.reflections import DIVIDED_COLUMN, FACTOR_COLUMN

# dials.algorithms.scaling.model.model.determine_auto_absorption_params; only the model dose_decay
# needs the numbers, as it knows no levels: (lmax, surface_weight)
SPHERICAL_HARMONICS = {"low": (4, 5e5), "medium": (6, 5e4), "high": (6, 5e3)}


@dataclass(frozen=True)
class Strategy:
    """One way to correct for absorption in scaling.

    Parameters
    ----------
    name, label, description : str
        In PHIL, for tables, and in words.
    spherical_harmonics : str, optional
        DIALS' level: "low", "medium" or "high".
    analytical : bool
        Whether the column ``analytical_correction`` is applied.
    """

    name: str
    label: str
    description: str
    spherical_harmonics: str | None = None
    analytical: bool = False

    def __post_init__(self) -> None:
        if self.spherical_harmonics not in (None, *SPHERICAL_HARMONICS):
            raise ValueError(
                f"The level of the spherical harmonics is {self.spherical_harmonics!r}; "
                f"DIALS has {', '.join(SPHERICAL_HARMONICS)}."
            )

    def options(self, model: str = "auto") -> tuple[str, ...]:
        """The options of ``dials.scale`` for this strategy.

        Parameters
        ----------
        model : str
            The scaling model: auto, physical, dose_decay, array or KB.

        Raises
        ------
        ValueError
            If the model has no spherical harmonics and the strategy needs them.
        """
        level = self.spherical_harmonics
        if model not in MODELS:
            raise ValueError(f"No scaling model is called {model}; DIALS has {', '.join(MODELS)}.")
        if level and model in ("array", "KB"):
            raise ValueError(
                f"The strategy {self.name} needs spherical harmonics and the model {model} has none; "
                "use model=auto, physical or dose_decay."
            )
        options = [] if model == "auto" else [f"model={model}"]
        if model in ("auto", "physical"):
            options.append(
                f"physical.absorption_level={level}"
                if level
                else "physical.absorption_correction=False"
            )
        elif model == "dose_decay":
            options.append(f"dose_decay.absorption_correction={bool(level)}")
            if level:
                lmax, surface_weight = SPHERICAL_HARMONICS[level]
                options += [
                    f"dose_decay.lmax={lmax}",
                    f"dose_decay.surface_weight={surface_weight:g}",
                ]
        elif model == "array":
            options.append("array.absorption_correction=False")
        if self.analytical:
            scopes = ("physical", "KB") if model == "auto" else (model,)
            options += [f"{scope}.analytical_correction=True" for scope in scopes]
        return (*options, "overwrite_existing_models=True")


MODELS = ("auto", "physical", "dose_decay", "array", "KB")

STRATEGIES: Mapping[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("none", "none", "no absorption correction"),
        Strategy("sh_low", "SH low", "spherical harmonics, lmax 4, stiff (DIALS' default)", "low"),
        Strategy("sh_medium", "SH medium", "spherical harmonics, lmax 6", "medium"),
        Strategy("sh_high", "SH high", "spherical harmonics, lmax 6, loose", "high"),
        Strategy(
            "analytical", "analytical", "the column analytical_correction alone", analytical=True
        ),
        Strategy(
            "analytical_sh",
            "analytical + SH",
            "the column and, for what it leaves, spherical harmonics of level low",
            "low",
            analytical=True,
        ),
    )
}


class ScalingError(ValueError):
    """A run of dials.scale that failed: its reason, and the log if one was written."""

    def __init__(self, reason: str, log: Path | None = None) -> None:
        super().__init__(reason)
        self.log = log


@dataclass(frozen=True)
class ScalingJob:
    """Data and strategy of one run of dials.scale.

    Parameters
    ----------
    label : str
    strategy : Strategy
    experiments, reflections : tuple of Path
        They are scaled together.
    folder : Path
        For what dials.scale writes.
    model : str
        The scaling model.
    options : tuple of str
        Further options of dials.scale, the same in every job of a comparison.
    """

    label: str
    strategy: Strategy
    experiments: tuple[Path, ...]
    reflections: tuple[Path, ...]
    folder: Path
    model: str = "auto"
    options: tuple[str, ...] = ()

    def command(self) -> tuple[str, ...]:
        """The command line; run in any folder it makes scaled.expt, scaled.refl and a log there."""
        return (
            "dials.scale",
            *map(os.path.abspath, (*self.experiments, *self.reflections)),
            *self.strategy.options(self.model),
            *self.options,
        )


@dataclass(frozen=True)
class ScaledData:
    """What one run of dials.scale made.

    Attributes
    ----------
    label : str
    strategy : Strategy
    command : tuple of str
    experiments, reflections, log : Path
    html : Path or None
    seconds : float
    """

    label: str
    strategy: Strategy
    command: tuple[str, ...]
    experiments: Path
    reflections: Path
    log: Path
    html: Path | None
    seconds: float

    @property
    def command_line(self) -> str:
        """The command as it is typed."""
        return shlex.join(self.command)


@dataclass(frozen=True)
class FailedScaling:
    """A run of dials.scale that failed.

    Attributes
    ----------
    label : str
    strategy : Strategy
    command : tuple of str
    reason : str
    log : Path or None
        What it printed; None if it never started.
    """

    label: str
    strategy: Strategy
    command: tuple[str, ...]
    reason: str
    log: Path | None

    @property
    def command_line(self) -> str:
        """The command as it is typed."""
        return shlex.join(self.command)


OUTPUTS = ("scaled.expt", "scaled.refl", "dials.scale.log", "dials.scale.html")
FAILED_LOG = "dials.scale.failed.log"


def scale(
    experiments: Sequence[str | os.PathLike[str]],
    reflections: Sequence[str | os.PathLike[str]],
    strategy: Strategy | str,
    folder: str | os.PathLike[str],
    label: str | None = None,
    model: str = "auto",
    options: Sequence[str] = (),
    threads: int = 1,
) -> ScaledData:
    """The data scaled by one strategy.

    scaled.expt, scaled.refl, log and HTML are written into `folder`. If dials.scale fails, only
    ``dials.scale.failed.log`` is written.

    Parameters
    ----------
    experiments, reflections : sequence of paths
        They are scaled together.
    strategy : Strategy or str
    folder : path
    label : str, optional
        That of the strategy if not given.
    model : str
        The scaling model.
    options : sequence of str
        Further options of dials.scale.
    threads : int
        For each numerical library within the run.

    Raises
    ------
    ScalingError
        A ValueError, if dials.scale fails or the models do not have the terms that were asked for.
    ValueError
        If a table is unfit for the strategy (:func:`check_reflections`).
    """
    if isinstance(strategy, str):
        strategy = strategy_called(strategy)
    return run_job(
        ScalingJob(
            label=label or strategy.label,
            strategy=strategy,
            experiments=tuple(Path(path) for path in experiments),
            reflections=tuple(Path(path) for path in reflections),
            folder=Path(folder),
            model=model,
            options=tuple(options),
        ),
        threads,
    )


def scale_all(
    jobs: Sequence[ScalingJob],
    nproc: int = 1,
    finished: Callable[[ScaledData | FailedScaling], None] | None = None,
) -> list[ScaledData | FailedScaling]:
    """The outcomes of all jobs, in their order. A job that fails does not stop the others.

    Parameters
    ----------
    jobs : sequence of ScalingJob
    nproc : int
        How many run at the same time.
    finished : callable, optional
        Called with each outcome when it is there.

    Raises
    ------
    ValueError
        If two jobs have the same folder.
    """
    folders = [job.folder.absolute() for job in jobs]
    if len(set(folders)) != len(folders):
        raise ValueError("Two scaling jobs write to the same folder; give them different labels.")
    if nproc < 1:
        raise ValueError(f"nproc is {nproc}; it must be 1 or more.")
    workers = max(1, min(nproc, len(jobs)))
    outcomes: dict[int, ScaledData | FailedScaling] = {}
    with ThreadPoolExecutor(workers) as executor:
        futures = {
            executor.submit(_outcome, job, max(1, nproc // workers)): i
            for i, job in enumerate(jobs)
        }
        try:
            for future in as_completed(futures):
                outcomes[futures[future]] = future.result()
                if finished is not None:
                    finished(future.result())
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    return [outcomes[i] for i in range(len(jobs))]


def strategy_called(name: str) -> Strategy:
    """The strategy of that name. Raises ValueError where there is none."""
    try:
        return STRATEGIES[name]
    except KeyError:
        raise ValueError(
            f"No scaling strategy is called {name}; there are {', '.join(STRATEGIES)}."
        ) from None


def _outcome(job: ScalingJob, threads: int) -> ScaledData | FailedScaling:
    try:
        return run_job(job, threads)
    except (ValueError, OSError, RuntimeError) as error:
        try:
            command = job.command()
        except ValueError:
            command = ()
        return FailedScaling(
            job.label, job.strategy, command, str(error), getattr(error, "log", None)
        )


def run_job(job: ScalingJob, threads: int = 1) -> ScaledData:
    """The scaled data of one job; see `scale`.

    threads: how many each numerical library may use within the run.
    """
    command = job.command()
    for path in job.reflections:
        check_reflections(path, job.strategy.analytical)
    folder = job.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # dials.scale works in a folder of its own; only what is complete is moved to its place
    with tempfile.TemporaryDirectory(prefix=".scaling-", dir=folder) as scratch:
        start = time.monotonic()
        status, printed = run_command(command, scratch, threads)
        seconds = time.monotonic() - start
        made = {name: Path(scratch, name) for name in OUTPUTS}
        reason = None
        if status != 0:
            reason = f"dials.scale ended with status {status}: {last_words(printed)}"
        elif missing := [name for name in OUTPUTS[:3] if not made[name].is_file()]:
            reason = f"dials.scale ended without an error but wrote no {missing[0]}."
        else:
            reason = _wrong_corrections(made["scaled.expt"], job.strategy)
        if reason is not None:
            log = folder / FAILED_LOG
            log.write_text(f"{shlex.join(command)}\n\n{printed}", encoding="utf-8")
            raise ScalingError(reason, log)
        for name, path in made.items():
            if path.is_file():
                os.replace(path, folder / name)
    (folder / FAILED_LOG).unlink(missing_ok=True)
    html = folder / "dials.scale.html"
    return ScaledData(
        label=job.label,
        strategy=job.strategy,
        command=command,
        experiments=folder / "scaled.expt",
        reflections=folder / "scaled.refl",
        log=folder / "dials.scale.log",
        html=html if html.is_file() else None,
        seconds=seconds,
    )


def check_reflections(reflections: str | os.PathLike[str], analytical: bool) -> None:
    """Raises ValueError if a reflection table does not fit a strategy.

    It does not if its intensities were divided by their transmissions already. For an analytical
    strategy it needs a column ``analytical_correction`` of positive numbers: a single value that is
    NaN, infinite or zero ends dials.scale with "line search failed", which does not say why.
    """
    table = flex.reflection_table.from_file(os.fspath(reflections))
    if DIVIDED_COLUMN in table:
        raise ValueError(
            f"The intensities of {reflections} were divided by their transmissions already "
            "(output.mode=intensities), so every strategy would be an analytical one; compare what "
            "dials.anacor_absorption writes with output.mode=column."
        )
    if not analytical:
        return
    if FACTOR_COLUMN not in table:
        raise ValueError(
            f"{reflections} has no column {FACTOR_COLUMN}; run dials.anacor_absorption on it first."
        )
    transmission = table[FACTOR_COLUMN].as_numpy_array()
    bad = ~(np.isfinite(transmission) & (transmission > 0))
    if bad.any():
        raise ValueError(
            f"{reflections} has {bad.sum()} of {bad.size} rows whose {FACTOR_COLUMN} is not a "
            f"positive number (the first is {transmission[bad][0]:g}); run dials.anacor_absorption on "
            "it again."
        )


def corrections(experiments: str | os.PathLike[str]) -> list[tuple[str, ...]]:
    """The terms of every scaling model in a scaled.expt, e.g. ("scale", "decay", "analytical")."""
    models = json.loads(Path(experiments).read_text(encoding="utf-8")).get("scaling_model", [])
    return [tuple(model["configuration_parameters"]["corrections"]) for model in models]


def _wrong_corrections(experiments: Path, strategy: Strategy) -> str | None:
    """A sentence where the scaling models do not hold what the strategy asks for, else None."""
    for terms in corrections(experiments):
        for term, wanted in (
            ("absorption", strategy.spherical_harmonics is not None),
            ("analytical", strategy.analytical),
        ):
            if (term in terms) != wanted:
                return (
                    f"dials.scale made a model of {', '.join(terms)}, {'without' if wanted else 'with'} "
                    f"the {term} term; see its log (scans narrower than 1 degree and stills have no "
                    "spherical harmonics)."
                )
    return None
