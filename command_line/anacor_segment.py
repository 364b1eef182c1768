# LIBTBX_SET_DISPATCHER_NAME dials.anacor_segment
"""
Label every voxel of an X-ray tomogram as background, mother liquor, loop or crystal.

Given are the projections of a tomography scan, which are reconstructed first as by
dials.anacor_reconstruct, or a tomogram: tomo.h5, or that of another program. A neural network,
AnACorNet, labels the slices; what cannot be is put right afterwards (one crystal body, none of it
in air). The result, tomo.h5, holds the tomogram, the labels and each material's absorption
coefficient, and goes straight into dials.anacor_absorption.

Look at the report: slices can be scrolled through with the outlines of the materials. Labels are
put right by dials.anacor_edit; what was labelled by hand is never changed by this program. They can
also be exported (output.nrrd for 3D Slicer, output.nifti for ITK-SNAP, output.tiff, output.npy),
corrected elsewhere, and put back (labels.file=). With labels.mode=learn the network learns from the
slices that were put right, and labels the rest anew.

Examples::

  dials.anacor_segment scan.nxs

  dials.anacor_segment tomo.h5 segmentation.axes=xyz output.nrrd=labels.nrrd

  dials.anacor_segment tomo.h5 labels.file=corrected.tif labels.mode=merge

  dials.anacor_segment tomo.h5 labels.mode=learn output.tomogram=tomo.h5

  dials.anacor_segment scan.nxs truth=truth.h5

  dials.anacor_segment httomo.h5 tomogram.projections=scan.nxs

  dials.anacor_segment recon.nrrd tomogram.axes=x,y,z tomogram.unit=1/mm
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from typing import Any

from dials.util import Sorry, show_mail_handle_errors
from dials.util.options import ArgumentParser
from libtbx import phil

from anacor_dials.command_line import begin_log
from anacor_dials.jobs.segment import (
    CorrectedLabels,
    SegmentationSettings,
    SegmentedSample,
    load_source,
    segment_sample,
    write_segmented,
)
from anacor_dials.phil import parse_phil
from anacor_dials.phil.arguments import parse_arguments
from anacor_dials.phil.settings import (
    names_of_labels,
    reconstruction_settings,
    scan_description,
    segmentation_settings,
    tomogram_description,
)
from anacor_dials.report.page import write_html, write_json
from anacor_dials.report.segmentation import log_lines, record, sections
from anacor_dials.sample.label_files import write_nifti, write_npy, write_nrrd, write_tiff
from anacor_dials.sample.output_files import OutputFiles

logger = logging.getLogger("dials.anacor_segment")

phil_scope = parse_phil("anacor_segment.phil")


def corrected_labels(labels: Any) -> CorrectedLabels | None:
    """The corrected labels that the PHIL scope ``labels`` names."""
    if labels.file is None and labels.mode != "learn":
        return None
    return CorrectedLabels(
        labels.file,
        labels.axes,
        names_of_labels(labels.names),
        labels.mode,
        labels.left_handed,
    )


def settings_of(params: Any) -> SegmentationSettings:
    """The settings that the parameters ask for."""
    settings = segmentation_settings(params, params.output.probabilities)
    learning = dataclasses.replace(settings.learning, minutes=params.labels.minutes)
    return dataclasses.replace(settings, learning=learning)


def save(sample: SegmentedSample, name: str, parameters: str, output: Any) -> None:
    """Writes the files that the PHIL scope ``output`` asks for; name: of what was segmented."""
    with OutputFiles() as outputs:
        write_segmented(outputs.path(output.tomogram), sample, parameters)
        if output.npy:
            write_npy(outputs.path(output.npy), sample.labels)
        if output.tiff:
            write_tiff(outputs.path(output.tiff), sample.labels)
        if output.nrrd:
            write_nrrd(outputs.path(output.nrrd), sample.labels)
        if output.nifti:
            write_nifti(outputs.path(output.nifti), sample.labels)
        if output.html:
            write_html(outputs.path(output.html), "Segmentation", sections(sample), subtitle=name)
        if output.json:
            write_json(outputs.path(output.json), record(sample))


@show_mail_handle_errors()
def run(args: list[str] | None = None, phil: phil.scope = phil_scope) -> None:
    """Run dials.anacor_segment as from the command line."""
    parser = ArgumentParser(
        usage="dials.anacor_segment [options] scan.nxs | tomo.h5 | recon.h5:/data",
        phil=phil,
        check_format=False,
        epilog=__doc__,
    )
    params, options, given = parse_arguments(parser, args, may_write_into=("output.tomogram",))
    if not given:
        parser.print_help()
        sys.exit(1)

    begin_log(logger, parser, options, params.output.log)

    try:
        if len(given) > 1:
            raise ValueError(f"One scan or tomogram at a time: {', '.join(given)} were given.")
        source = load_source(
            given[0],
            scan_description(params.projections),
            reconstruction_settings(params.reconstruction),
            params.energy,
            tomogram_description(params.tomogram),
        )
        logger.info("%r", source.tomogram)
        sample = segment_sample(
            source,
            settings_of(params),
            corrected_labels(params.labels),
            params.truth,
        )
        save(sample, given[0], phil.format(python_object=params).as_str(), params.output)
    except ValueError as error:
        raise Sorry(error) from None

    for line in log_lines(sample):
        logger.info("%s", line)
    for warning in sample.warnings:
        logger.warning("%s", warning)
    for name in (
        params.output.tomogram,
        params.output.tiff,
        params.output.npy,
        params.output.nrrd,
        params.output.nifti,
        params.output.html,
        params.output.json,
    ):
        if name:
            logger.info("Written: %s", name)


if __name__ == "__main__":
    run()
