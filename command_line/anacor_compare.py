# LIBTBX_SET_DISPATCHER_NAME dials.anacor_compare
"""
Scale the same data with several corrections for absorption and compare the results.

Each strategy is one run of dials.scale: without any absorption correction, with spherical harmonics
of low, medium or high level, with the analytical factors that dials.anacor_absorption wrote, or
with both. Everything else in scaling is the same. The scaled data are then merged at one common
resolution, and their statistics stand side by side, the best value of each row marked. dials.scale
rejects outliers, and most where absorption is left uncorrected, which flatters the rest: the last
rows are of the same observations for all strategies, those that at least one of them keeps.

A strategy that fails is shown as failed with its reason; the others stand. Each keeps its
scaled.expt, scaled.refl and log in a folder of its own, and its command line is printed, to be
repeated by hand.

Examples::

  dials.anacor_compare corrected.expt corrected.refl

  dials.anacor_compare corrected.expt corrected.refl strategies=none+sh_high+analytical \\
    d_min=2.3 nproc=4

  dials.anacor_compare manual.expt manual.refl network.expt network.refl \\
    labels=manual,AnACorNet strategies=analytical
"""

from __future__ import annotations

import logging
import sys

import libtbx
from dials.util import Sorry, show_mail_handle_errors
from dials.util.options import ArgumentParser
from dials.util.system import CPU_COUNT
from libtbx import phil

from anacor_dials.command_line import begin_log
from anacor_dials.diffraction.scaling import strategy_called
from anacor_dials.jobs.compare import (
    ComparisonSettings,
    data_sources,
    scale_and_compare,
    scaling_jobs,
)
from anacor_dials.phil import choice, parse_phil
from anacor_dials.phil.arguments import parse_arguments
from anacor_dials.report.comparison import (
    format_table,
    hints,
    record,
    rows_of_same_observations,
    sections,
)
from anacor_dials.report.page import write_html, write_json
from anacor_dials.sample.output_files import OutputFiles
from anacor_dials.sample.progress import Progress

logger = logging.getLogger("dials.anacor_compare")

phil_scope = parse_phil("anacor_compare.phil")


def dials_scale_options(params: phil.scope_extract) -> list[str]:
    """The options of dials.scale that are the same for all strategies."""
    options = []
    if params.d_min is not None:
        options.append(f"cut_data.d_min={params.d_min:g}")
    if params.scaling.anomalous:
        options.append("anomalous=True")
    if not params.scaling.full_matrix:
        options.append("full_matrix=False")
    return options + list(params.scaling.options or [])


@show_mail_handle_errors()
def run(args: list[str] | None = None, phil: phil.scope = phil_scope) -> None:
    """Run dials.anacor_compare as from the command line."""
    parser = ArgumentParser(
        usage="dials.anacor_compare [options] corrected.expt corrected.refl [...]",
        phil=phil,
        read_experiments=True,
        read_reflections=True,
        check_format=False,
        epilog=__doc__,
    )
    params, options, left = parse_arguments(parser, args)
    if left:
        raise Sorry(f"{left[0]} is neither a parameter nor a file of experiments or reflections.")
    if not params.input.experiments or not params.input.reflections:
        parser.print_help()
        sys.exit(1)

    begin_log(logger, parser, options, params.output.log)

    try:
        sources = data_sources(
            [data.filename for data in params.input.experiments],
            [data.filename for data in params.input.reflections],
            [label.strip() for label in (params.labels or "").split(",") if label.strip()],
        )
        jobs = scaling_jobs(
            sources,
            [strategy_called(name) for name in params.strategies],
            params.output.directory,
            choice(params.scaling.model),
            dials_scale_options(params),
        )
        nproc = CPU_COUNT if params.nproc is libtbx.Auto else params.nproc
        logger.info("Runs of dials.scale: %d, %d at a time", len(jobs), min(nproc, len(jobs)))
        with OutputFiles() as outputs:
            html = outputs.path(params.output.html) if params.output.html else None
            json = outputs.path(params.output.json) if params.output.json else None
            with Progress(2 * len(jobs), "Comparing", "step") as bar:

                def progress(done: str) -> None:
                    bar.update(note=done)

                comparison = scale_and_compare(
                    jobs,
                    ComparisonSettings(params.d_min, params.merging.n_bins),
                    nproc,
                    progress,
                )

            for outcome in comparison.outcomes:
                logger.info("\n%s:\n  %s", outcome.label, outcome.command_line)
            further = rows_of_same_observations(comparison)
            logger.info("\n%s", format_table(comparison.statistics, comparison.failed, further))
            if comparison.same and further:
                logger.info(
                    "same observations: the %d that at least one of them keeps; judge by these",
                    comparison.same.observations,
                )
            for said in hints(comparison):
                logger.warning("\n%s", said)
            if json:
                write_json(json, record(comparison))
            if html:
                write_html(html, "Comparison of absorption corrections", sections(comparison))
    except ValueError as error:
        raise Sorry(error) from None

    for outcome in comparison.outcomes:
        if outcome.label in comparison.failed:
            kept = f"; its output: {outcome.log}" if outcome.log else ""
            logger.warning("%s failed%s", outcome.label, kept)
    for path in (params.output.html, params.output.json):
        if path:
            logger.info("Written: %s", path)
    logger.info("Scaled data and logs of each strategy: %s", params.output.directory)


if __name__ == "__main__":
    run()
