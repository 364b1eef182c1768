"""A folder that is watched: each crystal is worked on when xia2 directory and scan are there."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

from anacor_dials.jobs.pipeline.crystals import (
    Outcome,
    WriteReport,
    outcome_of,
    result_of,
    share_of_crystals,
    side_by_side,
)
from anacor_dials.jobs.pipeline.inputs import Crystal, files_of, sweeps_of_xia2
from anacor_dials.jobs.pipeline.results import PipelineResult
from anacor_dials.jobs.pipeline.settings import PipelineSettings
from anacor_dials.jobs.pipeline.steps import WorkingFolder
from anacor_dials.jobs.pipeline.xia2_runs import log_of_xia2, why_not_ended_well
from anacor_dials.sample.output_files import file_name

logger = logging.getLogger("dials.anacor_dials.jobs.pipeline.watching")

NAME = "CRYSTAL"
CORES_OF_A_CRYSTAL = 4  # crystals come one by one, so few are worked on at a time


@dataclass(frozen=True)
class NamingRule:
    """Where the xia2 directory and the scan of a crystal are, by its name.

    Parameters
    ----------
    folder : Path
        The folder that is watched.
    xia2, tomography : str
        Paths below it. ``CRYSTAL`` stands for the name of the crystal, ``*`` and ``?`` for any
        characters but the slash.

    Raises
    ------
    ValueError
        If a rule does not name the crystal, or the folder does not exist.
    """

    folder: Path
    xia2: str = "CRYSTAL/xia2"
    tomography: str = "CRYSTAL/*.nxs"

    def __post_init__(self) -> None:
        for what, rule in (("watch.xia2", self.xia2), ("watch.tomography", self.tomography)):
            if NAME not in rule or Path(rule).is_absolute() or ".." in Path(rule).parts:
                raise ValueError(
                    f"{what}={rule} is no rule: it is a path below {self.folder} that holds {NAME}, such "
                    f"as {NAME}/xia2."
                )
        if not self.folder.is_dir():
            raise ValueError(f"There is no folder {self.folder} to watch.")

    def found(self, rule: str) -> dict[str, list[Path]]:
        """{name of the crystal: paths that fit the rule}."""
        pattern = ""
        for part in re.split(rf"({NAME}|\*|\?)", rule):
            if part == NAME:
                pattern += "(?P=name)" if "(?P<name>" in pattern else "(?P<name>[^/]+?)"
            else:
                pattern += {"*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
        matching: dict[str, list[Path]] = {}
        for path in sorted(self.folder.glob(rule.replace(NAME, "*"))):
            match = re.fullmatch(pattern, path.relative_to(self.folder).as_posix())
            if match:
                matching.setdefault(match["name"], []).append(path)
        return matching


@dataclass(frozen=True)
class Patience:
    """How long is waited for what.

    Parameters
    ----------
    settled_s : float
        A scan is complete if it was not written to for so many seconds.
    every_s : float
        So often the folder is looked at, seconds.
    idle_s : float, optional
        The watch ends if nothing came and nothing ran for so many seconds. If not given, it ends
        when it is stopped.
    """

    settled_s: float = 60.0
    every_s: float = 30.0
    idle_s: float | None = None


def ready_crystals(rule: NamingRule, settled_s: float) -> tuple[list[Crystal], dict[str, str]]:
    """(crystals whose data are complete, {name: why a crystal is waited for}).

    A xia2 directory is complete when its log says that xia2 ended well (:mod:`.xia2_runs`) or,
    where it has no log, when its integrated files were not written to for a while. A scan is
    complete when it was not written to for a while.

    Parameters
    ----------
    rule : NamingRule
    settled_s : float
        See :class:`Patience`.
    """
    directories, scans = rule.found(rule.xia2), rule.found(rule.tomography)
    ready, waiting = [], {}
    for name in sorted({*directories, *scans}):
        try:
            crystal = _crystal(name, directories.get(name, []), scans.get(name, []), settled_s)
        except ValueError as reason:
            waiting[name] = str(reason)
        else:
            ready.append(crystal)
    return ready, waiting


def _crystal(name: str, directories: list[Path], scans: list[Path], settled_s: float) -> Crystal:
    """The crystal. Raises ValueError with what is waited for."""
    for what, paths in (("xia2 directory", directories), ("scan", scans)):
        if not paths:
            raise ValueError(f"it has no {what} yet")
        if len(paths) > 1:
            raise ValueError(
                f"{' and '.join(p.name for p in paths)} fit the rule for its {what}; the rule must leave one"
            )
    (directory,), (scan,) = directories, scans
    if (reason := why_not_ended_well(directory)) is not None:
        raise ValueError(reason)
    sweeps = sweeps_of_xia2(directory)
    if len({sweep.crystal for sweep in sweeps}) > 1:
        raise ValueError(
            f"{directory} holds several crystals and there is one scan; run xia2.anacor on it by itself"
        )
    written = [*files_of(scan)]
    if log_of_xia2(directory) is None:
        written += [file for sweep in sweeps for file in (sweep.experiments, sweep.reflections)]
    age = time.time() - max(file.stat().st_mtime for file in written)
    if age < settled_s:
        raise ValueError(f"its files were written to {max(age, 0):.0f} s ago")
    named = file_name(name, "crystal")
    return Crystal(named, tuple(replace(sweep, crystal=named) for sweep in sweeps), scan)


def watch(
    rule: NamingRule,
    patience: Patience,
    settings: PipelineSettings,
    work: WorkingFolder,
    write_report: WriteReport,
    keep: Callable[[PipelineResult], None],
) -> PipelineResult:
    """All crystals that came, each worked on as soon as its data are complete.

    Steps that are done already are not repeated, so that a watch that was stopped goes on where it
    was. A crystal that failed is tried again when its files change, or by the next watch.

    Parameters
    ----------
    rule : NamingRule
    patience : Patience
    settings : PipelineSettings
    work : WorkingFolder
    write_report : callable
        As of :func:`anacor_dials.jobs.pipeline.crystals.process`.
    keep : callable
        Called with all results so far whenever a crystal has ended.

    Raises
    ------
    ValueError
        If crystals are to be scaled together.
    """
    if settings.together:
        raise ValueError(
            "scaling.crystals=together needs all crystals at once; watch with separate, and run "
            "xia2.anacor on all of them when they are there."
        )
    if settings.crystals_at_a_time is None:
        most = max(1, settings.nproc // CORES_OF_A_CRYSTAL)
        settings = replace(settings, crystals_at_a_time=most)
    at_a_time, cores = share_of_crystals(settings.nproc, settings, work)
    of_each = replace(settings, nproc=cores)
    outcomes: dict[str, Outcome] = {}
    begun: dict[str, Mapping[str, tuple[int, int]]] = {}
    running: dict[Future[Outcome], str] = {}
    said: dict[str, str] = {}
    result, last = result_of([]), time.monotonic()
    logger.info("watching %s; crystals at a time: %d", rule.folder, at_a_time)
    with side_by_side(at_a_time, work) as executor:
        while True:
            ready, waiting = ready_crystals(rule, patience.settled_s)
            _tell_of(waiting, said, work)
            for crystal in ready:
                state = _state(crystal)
                if crystal.name in running.values() or begun.get(crystal.name) == state:
                    continue
                begun[crystal.name] = state
                work.tell(f"\n{crystal.name}: xia2 directory and scan are there")
                future = executor.submit(outcome_of, crystal, of_each, work, write_report)
                running[future] = crystal.name
            if not running:
                time.sleep(patience.every_s)
            ended, _ = wait(running, patience.every_s, FIRST_COMPLETED)
            for future in ended:
                outcomes[running.pop(future)] = future.result()
            if ended or running:
                last = time.monotonic()
            if ended:
                names = sorted(outcomes)
                work.put_in_order(names)
                result = result_of([outcomes[name] for name in names])
                keep(result)
                _tell_of_ended(result, work)
            if patience.idle_s is not None and time.monotonic() - last > patience.idle_s:
                return result


def _state(crystal: Crystal) -> dict[str, tuple[int, int]]:
    """{path: (size, time of the last change)} of the files of a crystal."""
    files = [file for sweep in crystal.sweeps for file in (sweep.experiments, sweep.reflections)]
    status = {str(file): file.stat() for file in (*files, *files_of(crystal.tomography))}
    return {path: (one.st_size, one.st_mtime_ns) for path, one in status.items()}


def _tell_of(waiting: Mapping[str, str], said: dict[str, str], work: WorkingFolder) -> None:
    """Says what is waited for, but the same thing only once (ages of files apart)."""
    for name, reason in waiting.items():
        without_age = re.sub(r"\d+ s ago", "", reason)
        if said.get(name) != without_age:
            said[name] = without_age
            work.tell(f"{name}: waiting; {reason}")


def _tell_of_ended(result: PipelineResult, work: WorkingFolder) -> None:
    n, failed = len(result.corrections), len(result.failed)
    work.tell(f"\nCrystals: {n} done, {failed} failed")
    for one in result.failed:
        work.tell(f"  {one.crystal.name}: {one.reason}")
