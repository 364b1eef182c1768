# LIBTBX_SET_DISPATCHER_NAME xia2.anacor
"""
Correct the data of a finished xia2 directory for absorption by tomography, scale, merge and export
them.

The integrated files of all sweeps are found in the directory (or named one by one, or made by xia2
from images). Each crystal has one tomography scan, or a tomo.h5 with or without labels, a list of
its faces (faces=faces.txt, or faces.CRYSTAL=), or its surface (mesh=crystal.stl; see
dials.anacor_absorption).

dials.anacor_segment makes the labels where they are not given, dials.anacor_absorption the factors
of all sweeps of a crystal. dials.cosym (dials.symmetry for a single sweep) finds the Laue group,
dials.scale scales the data by several strategies, with and without the factors, of which the best
is taken; dials.symmetry looks for systematic absences; dials.merge and dials.export write MTZ,
merged and unmerged, and mmCIF. The free set of an earlier run, or of merging.free_set=, is kept.

Every step's command line is printed, to be repeated by hand, and kept in anacor.json. anacor.html
has the merging statistics side by side and links to the reports of all steps; DataFiles has the
results.

Steps that are done are not done again: the same command goes on where it was stopped, and after a
change of parameters or files only what depends on it is redone. A step that fails leaves nothing
but its log.

Sweeps of several wavelengths are scaled together and then merged one by one, each with the factors
of its own wavelength. Crystals are scaled one by one (scaling.crystals=together for all at once).
To combine crystals by xia2.multiplex give it the scaled files in DataFiles; it keeps the correction
of scaled data, and ignores it in others.

Several crystals are worked on side by side, within nproc or by the workers of a Dask cluster
(dask.scheduler=, or dask.cluster=slurm). One that fails leaves the others. anacor.html begins with
a table of all crystals, those that need a look first; anacor.csv has it too. Of crystals that are
scaled together both say what each contributes, and which make the merged data worse.

watch=FOLDER waits for xia2 directories and scans, and works on each crystal when both are there.

Examples::

  xia2.anacor /data/xia2 tomography=scan.nxs

  xia2.anacor /data/xia2 tomography.X1=X1/tomo.h5 tomography.X2=X2/tomo.h5 \\
    absorption.X2="alignment.angle_offset=30" scaling.anomalous=True

  xia2.anacor integrated.expt integrated.refl tomography=tomo.h5 selection.strategy=analytical

  xia2.anacor image=data_0001.cbf:1:1800 tomography=scan.nxs

  xia2.anacor crystals/*/xia2 tomography.A=A.nxs tomography.B=B.nxs dask.scheduler=tcp://node1:8786

  xia2.anacor watch=/dls/i23/visit watch.xia2="CRYSTAL/xia2" watch.tomography="tomo/CRYSTAL.nxs"
"""

from __future__ import annotations

import logging
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libtbx
from dials.util import Sorry, show_mail_handle_errors
from dials.util.options import ArgumentParser
from dials.util.system import CPU_COUNT

from anacor_dials.command_line import begin_log
from anacor_dials.diffraction.commands import program_versions
from anacor_dials.jobs.pipeline import crystals as side_by_side
from anacor_dials.jobs.pipeline import stages, watching
from anacor_dials.jobs.pipeline.inputs import (
    Crystal,
    SweepFiles,
    assign_tomography,
    existing_tomography,
    sweeps_of_directories,
    sweeps_of_files,
)
from anacor_dials.jobs.pipeline.results import PipelineResult
from anacor_dials.jobs.pipeline.settings import PipelineSettings, refuse_unknown_crystals
from anacor_dials.jobs.pipeline.steps import Step, Workers, WorkingFolder
from anacor_dials.jobs.pipeline.workers import DaskSettings, LocalWorkers, dask_workers
from anacor_dials.jobs.records import PipelineRecord
from anacor_dials.phil import choice, parse_phil
from anacor_dials.phil.arguments import parse_arguments
from anacor_dials.report import comparison, contributions
from anacor_dials.report.crystals import rows_of, write_csv
from anacor_dials.report.page import write_html, write_json
from anacor_dials.report.pipeline import limit_in_words, main_table, record, sections, table_text
from anacor_dials.report.residual_pattern import hints_of_record
from anacor_dials.sample.input_files import is_pickle, refuse_pickled_table
from anacor_dials.sample.output_files import OutputFiles

logger = logging.getLogger("dials.xia2_anacor")

# scopes that take one value for each crystal, by its name; and the type of the value
BY_CRYSTAL = {"tomography": "path", "segmentation": "str", "absorption": "str"}
GENERAL = {"tomography": ("scan",), "segmentation": ("options",), "absorption": ("options",)}


def phil_scope_for(args: list[str]) -> Any:
    """The parameters; each NAME of a crystal in arguments and PHIL files has tomography.NAME and so
    on.
    """
    names: dict[str, dict[str, None]] = {scope: {} for scope in BY_CRYSTAL}
    for argument in args:
        text = argument
        if argument.endswith((".phil", ".eff", ".def")) and Path(argument).is_file():
            text = Path(argument).read_text(encoding="utf-8", errors="replace")
        for scope in BY_CRYSTAL:
            found = re.findall(rf"^\s*{scope}\.([A-Za-z]\w*)\s*=", text, re.MULTILINE)
            for block in re.findall(rf"^\s*{scope}\s*\{{([^{{}}]*)\}}", text, re.MULTILINE):
                found += re.findall(r"(?:^|\n)\s*([A-Za-z]\w*)\s*=", block)
            names[scope].update(dict.fromkeys(found))
    more = "".join(
        f"{scope} {{ {name} = None\n .type = {kind}\n }}\n"
        for scope, kind in BY_CRYSTAL.items()
        for name in names[scope]
        if name not in GENERAL[scope]
    )
    return parse_phil("xia2_anacor.phil", more)


phil_scope = phil_scope_for([])


def by_crystal(scope: Any, general: str) -> dict[str, Any]:
    """What was given for single crystals in one of the scopes."""
    return {
        name: value
        for name, value in vars(scope).items()
        if not name.startswith("_") and name != general and value is not None
    }


def words(options: str | None) -> tuple[str, ...]:
    """Arguments written as in a shell, with quotes around those that hold spaces."""
    try:
        return tuple(shlex.split(options or ""))
    except ValueError:
        raise ValueError(f"A quote is not closed in the options {options}.") from None


def settings_from(params: Any, nproc: int) -> PipelineSettings:
    """The pipeline's settings. Raises ValueError for what does not go together."""
    scaling = list(words(params.scaling.options))
    if params.scaling.anomalous:
        scaling.insert(0, "anomalous=True")
    if not params.scaling.full_matrix:
        scaling.insert(0, "full_matrix=False")
    options = {}
    for scope in ("segmentation", "absorption"):
        given = {"": getattr(params, scope).options} | by_crystal(getattr(params, scope), "options")
        options[scope] = {name: words(text) for name, text in given.items()}
    return PipelineSettings(
        strategies=tuple(params.scaling.strategies),
        strategy=params.selection.strategy,
        statistic=params.selection.statistic,
        margin=params.selection.margin / 100,
        d_min=params.d_min,
        cc_half=params.cc_half,
        n_bins=params.merging.n_bins,
        model=choice(params.scaling.model),
        together=params.scaling.crystals == "together",
        symmetry=choice(params.symmetry.program),
        space_group=params.symmetry.space_group,
        absences=params.symmetry.absences,
        segmentation_options=options["segmentation"],
        absorption_options=options["absorption"],
        symmetry_options=words(params.symmetry.options),
        scaling_options=tuple(scaling),
        merging_options=words(params.merging.options),
        free_set=params.merging.free_set and Path(params.merging.free_set).absolute(),
        free_fraction=params.merging.free_fraction,
        nproc=nproc,
        crystals_at_a_time=None
        if params.crystals_at_a_time is libtbx.Auto
        else params.crystals_at_a_time,
    )


def dask_settings(d: Any) -> DaskSettings:
    """What the PHIL scope ``dask`` asks for."""
    return DaskSettings(
        scheduler=d.scheduler,
        cluster=d.cluster,
        workers=d.workers,
        cores=d.cores,
        memory=d.memory,
        walltime=d.walltime,
        queue=d.queue,
        account=d.account,
        directives=tuple(line for line in d.directives if line),
    )


def cores_of(nproc: Any, dask: DaskSettings) -> int:
    """The cores of this machine, or those that a step has on a worker of a cluster."""
    if dask.cluster:
        return dask.cores
    if nproc is not libtbx.Auto:
        return int(nproc)
    return 1 if dask.scheduler else CPU_COUNT


@contextmanager
def workers_for(dask: DaskSettings, versions: dict[str, str]) -> Iterator[Workers]:
    """Who carries out the steps."""
    if not dask.is_used:
        yield LocalWorkers()
        return
    with dask_workers(dask, versions, program_versions) as workers:
        yield workers


def find_sweeps(given: list[str], crystals: list[str]) -> list[SweepFiles]:
    """The sweeps of xia2 directories, or of .expt and .refl files.

    crystals: names for the crystals of .expt and .refl files.
    """
    folders = [name for name in given if Path(name).is_dir()]
    expts = [name for name in given if name.endswith(".expt")]
    refls = [name for name in given if name.endswith(".refl")]
    other = [name for name in given if name not in (*folders, *expts, *refls)]
    if other:
        known = "a parameter, a xia2 directory, nor an .expt or .refl file"
        hint = "; name tomography by tomography=" if Path(other[0]).exists() else ""
        raise ValueError(f"{other[0]} is neither {known}{hint}.")
    if folders and (expts or refls):
        raise ValueError(
            f"A xia2 directory ({folders[0]}) and single files ({(expts + refls)[0]}) were given; give "
            "one or the other."
        )
    if folders:
        return sweeps_of_directories(folders)
    return sweeps_of_files(expts, refls, crystals)


@dataclass(frozen=True)
class Input:
    """Where the integrated sweeps come from, and the tomography of each crystal.

    given: xia2 directories, or .expt and .refl files; images: to be integrated instead. in_order:
    one scan for each crystal, in their order; named: {crystal: scan}.
    """

    given: list[str]
    images: list[str]
    in_order: list[str]
    named: dict[str, Any]

    def crystals(self, settings: PipelineSettings) -> list[Crystal]:
        """The crystals of files that are integrated already."""
        names = list(self.named) or [f"CRYSTAL{i + 1}" for i in range(len(self.in_order))]
        names = ["DEFAULT"] if len(names) < 2 and not self.named else names
        return self.assigned(find_sweeps(self.given, names), settings)

    def assigned(self, sweeps: list[SweepFiles], settings: PipelineSettings) -> list[Crystal]:
        """The crystals with their tomography."""
        crystals = assign_tomography(sweeps, self.in_order, self.named)
        refuse_unknown_crystals(crystals, settings)
        return crystals

    def integration(self, options: tuple[str, ...], nproc: int) -> Step:
        """The step that integrates the images. Raises ValueError where the tomography is absent."""
        if not self.in_order and not self.named:
            raise ValueError("No tomography was given; name a scan or a tomo.h5 by tomography=.")
        for name, scan in [*(("", scan) for scan in self.in_order), *self.named.items()]:
            existing_tomography(scan, name)
        return stages.integration(self.images, options, nproc)


def save(result: PipelineResult, work: WorkingFolder, record: PipelineRecord, output: Any) -> None:
    """Writes the report, its numbers and the table of all crystals into the working folder."""
    names = [one.crystal.name for one in result.corrections]
    crystals = ", ".join([*names, *(one.crystal.name for one in result.failed)])
    with OutputFiles() as outputs:
        write_json(outputs.path(work.path / output.json), record)
        write_csv(
            outputs.path(work.path / output.csv), rows_of(result), contributions.columns_of(result)
        )
        write_html(
            outputs.path(work.path / output.html),
            "Absorption correction by tomography",
            sections(result, work),
            crystals,
        )


def log_result(result: PipelineResult) -> None:
    """The main tables, what was taken and why, and the files that were written."""
    for group in result.groups:
        for one in group.wavelengths:
            logger.info(
                "\n%s, %.5f A\n%s", group.name, one.wavelength, table_text(main_table(group, one))
            )
        for name, reason in group.failed.items():
            logger.warning("%s failed: %s", name, reason)
        logger.info(
            "\n%s: %s; taken: %s (%s)",
            group.name,
            group.space_group,
            group.selection.strategy.label,
            group.selection.reason,
        )
        for one in group.wavelengths:
            if one.record.signal_limit:
                logger.info("%s. %s", group.name, limit_in_words(one.record))
        for one in group.wavelengths:
            if one.contributions is not None and one.contributions.merged is not None:
                table = contributions.table(one.contributions, contributions.title_of(group, one))
                logger.info("\nWhat each crystal contributes\n%s", table_text(table))
            for said in contributions.sentences(one.contributions):
                logger.warning("%s", said)
        if group.free_set:
            logger.info("%s. %s", group.name, group.free_set)
        if group.warning:
            logger.warning("%s", group.warning)
        for one in group.wavelengths:
            for said in hints_of_record(one.record):
                logger.warning("%s", said)
            for path in one.files.values():
                logger.info("Written: %s", path)
        logger.info("Written: %s, %s", group.experiments, group.reflections.name)


def run_watch(
    params: Any, settings: PipelineSettings, work: WorkingFolder, arguments: list[str], changed: str
) -> PipelineResult:
    """Works on each crystal when its data are there, and keeps the report current."""
    rule = watching.NamingRule(
        Path(params.watch.folder).absolute(), params.watch.xia2, params.watch.tomography
    )
    idle = params.watch.until_idle
    patience = watching.Patience(
        params.watch.settled, params.watch.every, None if idle is None else 60 * idle
    )

    def keep(result: PipelineResult) -> None:
        save(result, work, record(result, work, settings, arguments, changed), params.output)

    return watching.watch(rule, patience, settings, work, comparison.write, keep)


@contextmanager
def stoppable(workers: Workers) -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, and with it the steps that run."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()  # else there are no handlers
    before = signal.signal(signal.SIGTERM, stop) if is_main else None
    try:
        yield
    except KeyboardInterrupt:
        workers.stop()
        raise
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def start_of(params: Any, given: list[str]) -> Input:
    """Where the data come from. Raises ValueError for what does not go together."""
    images = [image for image in params.image if image]
    in_order = [scan for scan in params.tomography.scan if scan]
    named = by_crystal(params.tomography, "scan")
    if images and given:
        raise ValueError(f"Images and {given[0]} were given; give one or the other.")
    others = [*given, *images, *in_order, *map(str, named.values())]
    if params.watch.folder is not None and others:
        raise ValueError(
            f"The folder {params.watch.folder} is to be watched and {others[0]} was given; give one or the "
            "other."
        )
    return Input(given, images, in_order, named)


def process(
    start: Input, settings: PipelineSettings, work: WorkingFolder, integrate: Step | None
) -> PipelineResult:
    """The result for crystals whose data are there, or whose images are integrated first."""
    if integrate is None:
        crystals = start.crystals(settings)
    else:
        sweeps = sweeps_of_directories([work.run(integrate).folder])
        crystals = start.assigned(sweeps, settings)
    for crystal in crystals:
        n, tomography = len(crystal.sweeps), crystal.tomography
        logger.info("%s: %d integrated files, tomography %s", crystal.name, n, tomography)
        for sweep in crystal.sweeps:
            if is_pickle(sweep.reflections):
                refuse_pickled_table(sweep.reflections)
    return side_by_side.process(crystals, settings, work, comparison.write)


@show_mail_handle_errors()
def run(args: list[str] | None = None, phil: Any = None) -> None:
    """Run xia2.anacor as from the command line."""
    typed = args = sys.argv[1:] if args is None else args
    # tomography= is short for tomography.scan=
    args = [re.sub(r"^tomography\s*=", "tomography.scan=", argument) for argument in args]
    # faces and meshes take the place of a scan
    args = [re.sub(r"^(faces|mesh)\s*=", "tomography.scan=", argument) for argument in args]
    args = [re.sub(r"^(faces|mesh)\.(\w+)\s*=", r"tomography.\2=", argument) for argument in args]
    args = [re.sub(r"^watch\s*=", "watch.folder=", argument) for argument in args]
    parser = ArgumentParser(
        usage="xia2.anacor [options] XIA2_DIRECTORY tomography=scan.nxs | faces=faces.txt | mesh=crystal.stl",
        phil=phil or phil_scope_for(args),
        check_format=False,
        epilog=__doc__,
    )
    params, options, given = parse_arguments(parser, args, reads_files=False)
    if not given and not any(params.image) and params.watch.folder is None:
        parser.print_help()
        sys.exit(1)

    changed = begin_log(logger, parser, options, params.output.log)

    try:
        dask = dask_settings(params.dask)
        settings = settings_from(params, cores_of(params.nproc, dask))
        start = start_of(params, given)
        # what is wrong with the input is said before anything is written
        integrate = None
        if start.images:
            integrate = start.integration(words(params.xia2.options), settings.nproc)
        elif params.watch.folder is None:
            start.crystals(settings)
        versions = program_versions()
        with workers_for(dask, versions) as workers:
            work = WorkingFolder(
                params.output.directory, versions, params.redo or (), logger.info, workers
            )
            with work.locked(), stoppable(workers):
                if params.watch.folder is not None:
                    result = run_watch(params, settings, work, typed, changed)
                else:
                    result = process(start, settings, work, integrate)
                save(result, work, record(result, work, settings, typed, changed), params.output)
    except ValueError as error:
        raise Sorry(error) from None
    except KeyboardInterrupt:
        raise Sorry("Stopped; the same command goes on from here.") from None

    unknown = sorted(work.redo - {step.name for step in work.finished})
    if unknown:
        logger.warning("redo: no step is called %s", ", ".join(unknown))
    log_result(result)
    for name in (params.output.html, params.output.json, params.output.csv):
        logger.info("Written: %s", work.path / name)
    if result.failed:
        n = len(result.failed) + len(result.corrections)
        raise Sorry(
            f"{len(result.failed)} of {n} crystals failed, the others are done. "
            f"{side_by_side.failures(result.failed)}"
        )


if __name__ == "__main__":
    run()
