"""The crystals of a run, side by side: each from its sweeps to merged data, whatever others do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from anacor_dials.jobs.compare import Comparison
from anacor_dials.jobs.pipeline.inputs import Crystal
from anacor_dials.jobs.pipeline.results import (
    CorrectedCrystal,
    FailedCrystal,
    GroupResult,
    PipelineResult,
)
from anacor_dials.jobs.pipeline.settings import PipelineSettings
from anacor_dials.jobs.pipeline.stages import correct, reduce_group
from anacor_dials.jobs.pipeline.steps import WorkingFolder
from anacor_dials.sample.output_files import file_name

logger = logging.getLogger("dials.anacor_dials.jobs.pipeline.crystals")

# a tomogram of 700^3 voxels with its labels and probabilities, and dials.scale of a million
# observations, each stay below
MEMORY_OF_A_CRYSTAL = 8e9  # bytes

WriteReport = Callable[[Comparison, Path], None]
Outcome = tuple[CorrectedCrystal, GroupResult | None] | FailedCrystal


def process(
    crystals: Sequence[Crystal],
    settings: PipelineSettings,
    work: WorkingFolder,
    write_report: WriteReport,
) -> PipelineResult:
    """All steps from the integrated sweeps on. Steps that are done already are not repeated.

    Crystals are worked on side by side, as many as the workers of the folder take. A crystal that
    fails leaves the others; those that are scaled together are then scaled without it.

    Parameters
    ----------
    crystals : sequence of Crystal
    settings : PipelineSettings
        nproc: the cores of this machine, or of each worker of a cluster.
    work : WorkingFolder
    write_report : callable
        Writes page and numbers of a comparison into a folder, as
        :func:`anacor_dials.report.comparison.write` does.

    Raises
    ------
    ValueError
        If every crystal fails; the message names the logs. A strategy of scaling that fails is left
        out, unless it is the one to take.
    """
    names = [file_name(crystal.name, "crystal") for crystal in crystals]
    if len(set(names)) != len(names) or "all" in names and settings.together:
        raise ValueError(
            f"The crystals {', '.join(names)} have no names of their own; rename them."
        )
    at_a_time, cores = share_of_crystals(len(crystals), settings, work)
    of_each = replace(settings, nproc=cores)
    if len(crystals) > 1:
        logger.info("%d crystals, %d at a time, %d cores each", len(crystals), at_a_time, cores)
    with side_by_side(at_a_time, work) as executor:
        futures = [
            executor.submit(outcome_of, crystal, of_each, work, write_report)
            for crystal in crystals
        ]
        for future in futures:
            future.add_done_callback(lambda _: _tell_progress(futures, work))
        outcomes = [future.result() for future in futures]
    result = result_of(outcomes)
    if len(result.failed) == len(crystals):
        if len(crystals) == 1:
            raise ValueError(result.failed[0].reason)
        raise ValueError(f"Every crystal failed. {failures(result.failed)}")
    if settings.together:
        group = reduce_group(result.corrections, settings, work, write_report)
        if result.failed:
            left_out = f"Scaled without what failed. {failures(result.failed)}"
            group = replace(group, warning=" ".join(filter(None, (left_out, group.warning))))
        result = replace(result, groups=(group,))
    if not result.failed:
        work.remove_old_results()
    work.put_in_order(names)
    return result


def share_of_crystals(n: int, settings: PipelineSettings, work: WorkingFolder) -> tuple[int, int]:
    """(how many of n crystals are worked on side by side, cores of each).

    Parameters
    ----------
    n : int
    settings : PipelineSettings
    work : WorkingFolder
    """
    if settings.crystals_at_a_time is not None:
        return work.workers.share(min(n, settings.crystals_at_a_time), settings.nproc)
    return work.workers.share(n, settings.nproc, MEMORY_OF_A_CRYSTAL)


def outcome_of(
    crystal: Crystal, settings: PipelineSettings, work: WorkingFolder, write_report: WriteReport
) -> Outcome:
    """What became of one crystal: its factors and, unless crystals are scaled together, its data.

    Parameters
    ----------
    crystal : Crystal
    settings : PipelineSettings
    work : WorkingFolder
    write_report : callable
        As of :func:`process`.
    """
    try:
        corrected = correct(crystal, settings, work)
        if settings.together:
            return corrected, None
        return corrected, reduce_group((corrected,), settings, work, write_report)
    except CancelledError:  # the run was stopped
        raise
    except ValueError as error:
        return FailedCrystal(crystal, str(error).rstrip("."), getattr(error, "log", None))
    except Exception as error:  # an error of the program, too, leaves the other crystals
        logger.exception("%s", crystal.name)
        return FailedCrystal(crystal, f"{type(error).__name__}: {error}".rstrip("."))


def result_of(outcomes: Sequence[Outcome]) -> PipelineResult:
    """The result that the outcomes of all crystals make, in their order."""
    done = [one for one in outcomes if not isinstance(one, FailedCrystal)]
    return PipelineResult(
        corrections=tuple(corrected for corrected, _ in done),
        groups=tuple(group for _, group in done if group is not None),
        failed=tuple(one for one in outcomes if isinstance(one, FailedCrystal)),
    )


def failures(failed: Sequence[FailedCrystal]) -> str:
    """One sentence: which crystals failed, and why."""
    return "; ".join(f"{one.crystal.name}: {one.reason}" for one in failed) + "."


@contextmanager
def side_by_side(at_a_time: int, work: WorkingFolder) -> Iterator[ThreadPoolExecutor]:
    """An executor for so many crystals. Whatever stops the block stops the workers, too.

    Parameters
    ----------
    at_a_time : int
    work : WorkingFolder
    """
    executor = ThreadPoolExecutor(at_a_time, thread_name_prefix="crystal")
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        work.workers.stop()
        raise
    executor.shutdown()


def _tell_progress(futures: Sequence[Future[Outcome]], work: WorkingFolder) -> None:
    ended = [f.result() for f in futures if f.done() and not f.cancelled() and not f.exception()]
    if len(futures) > 1:
        n = sum(isinstance(one, FailedCrystal) for one in ended)
        failed = f", {n} failed" if n else ""
        work.tell(f"\n{len(ended)} of {len(futures)} crystals have ended{failed}")
