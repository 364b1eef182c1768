# LIBTBX_SET_DISPATCHER_NAME dials.anacor_reconstruct
"""
Reconstruct a tomogram of the absorption coefficient from the projections of a tomography scan.

The scan is an NXtomo file (Diamond, I23 included, ESRF), a GDA file with links to its images, a
Data Exchange file, or a stack of TIFF files (a folder, a multi-page file, or a quoted pattern).
Flats and darks are found in it, or given as files of their own. What the file does not say is given
by parameters, above all the pixel size.

The tomogram is written to tomo.h5, in 1/um and in the tomography frame: X along the rotation axis,
about which the sample turns right-handedly as the rotation angle grows, Z towards the source at
angle zero, Y = Z x X. projections.fast_axis and slow_axis say how the camera's columns and rows lie
in it.

The report shows a sinogram before and after corrections, a slice with the rotation axis at several
places, the middle slices, and the histogram of mu beside the values expected at the scan's energy.

Examples::

  dials.anacor_reconstruct scan.nxs

  dials.anacor_reconstruct scan.nxs pixel_size=0.3 fast_axis=1,0,0 slow_axis=0,1,0

  dials.anacor_reconstruct projections/ flat=before.tif flat=after.tif dark=dark.tif \\
    first_angle=0 angle_step=0.2 pixel_size=0.3 energy=3.5 centre=1021.5
"""

from __future__ import annotations

import logging
import sys

import libtbx
import numba
from dials.util import Sorry, show_mail_handle_errors
from dials.util.options import ArgumentParser
from libtbx import phil

from anacor_dials.command_line import begin_log
from anacor_dials.jobs.reconstruct import plan_reconstruction, write_reconstruction
from anacor_dials.phil import parse_phil
from anacor_dials.phil.arguments import parse_arguments
from anacor_dials.phil.settings import reconstruction_settings, scan_description
from anacor_dials.report.page import write_html, write_json
from anacor_dials.report.reconstruction import record, sections
from anacor_dials.sample.output_files import OutputFiles

logger = logging.getLogger("dials.anacor_reconstruct")

phil_scope = parse_phil("anacor_reconstruct.phil")


@show_mail_handle_errors()
def run(args: list[str] | None = None, phil: phil.scope = phil_scope) -> None:
    """Run dials.anacor_reconstruct as from the command line."""
    parser = ArgumentParser(
        usage="dials.anacor_reconstruct [options] scan.nxs",
        phil=phil,
        check_format=False,
        epilog=__doc__,
    )
    params, options, scans = parse_arguments(parser, args, may_write_into=("output.tomogram",))
    if not scans:
        parser.print_help()
        sys.exit(1)

    begin_log(logger, parser, options, params.output.log)

    if params.nproc is not libtbx.Auto:
        numba.set_num_threads(min(params.nproc, numba.config.NUMBA_NUM_THREADS))
    try:
        if len(scans) > 1:
            raise ValueError(
                f"One scan at a time: {', '.join(scans)} were given (a pattern of TIFF files is put "
                "in quotation marks)."
            )
        scan, output = scans[0], params.output
        plan = plan_reconstruction(
            scan,
            scan_description(params.projections),
            reconstruction_settings(params.reconstruction),
        )
        with OutputFiles() as outputs:
            tomogram = outputs.path(output.tomogram)
            html = outputs.path(output.html) if output.html else None
            json = outputs.path(output.json) if output.json else None
            write_reconstruction(tomogram, plan, scan, phil.format(python_object=params).as_str())
            if html:
                write_html(html, "Tomographic reconstruction", sections(plan), subtitle=scan)
            if json:
                write_json(json, record(plan))
    except ValueError as error:
        raise Sorry(error) from None

    for path in (params.output.tomogram, params.output.html, params.output.json):
        if path:
            logger.info("Written: %s", path)


if __name__ == "__main__":
    run()
