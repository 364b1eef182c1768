# LIBTBX_SET_DISPATCHER_NAME dials.anacor_segment
"""
Label every voxel of an X-ray tomogram as background, mother liquor, loop or crystal.

Given are the projections of a tomography scan, which are reconstructed first as by
dials.anacor_reconstruct, or a tomogram (tomo.h5). A neural network, AnACorNet, labels the slices; what
cannot be is put right afterwards (one crystal body, none of it in air). The result, tomo.h5, holds the
tomogram, the labels and each material's absorption coefficient, and goes straight into
dials.anacor_absorption.

Look at the report: slices can be scrolled through with the outlines of the materials. Labels can be exported
(output.nrrd for 3D Slicer, output.tiff, output.npy), corrected by hand, and put back (labels.file=).

Examples::

  dials.anacor_segment scan.nxs

  dials.anacor_segment tomo.h5 segmentation.axes=xyz output.nrrd=labels.nrrd

  dials.anacor_segment tomo.h5 labels.file=corrected.tif labels.mode=merge

  dials.anacor_segment scan.nxs truth=truth.h5
"""

from __future__ import annotations

import gzip
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libtbx
import numpy as np
from dials.util import Sorry, show_mail_handle_errors
from dials.util.options import ArgumentParser
from libtbx import phil

from anacor_dials.command_line import begin_log
from anacor_dials.command_line.anacor_reconstruct import reconstruction_settings, scan_description
from anacor_dials.phil import choice, parse_phil
from anacor_dials.report.page import Figure, Section, Table, Text, write_html, write_json
from anacor_dials.report.sample import view_3d
from anacor_dials.report.segmentation import scrolled_slices, uncertainty_maps
from anacor_dials.sample.output_files import OutputFiles
from anacor_dials.sample.tomogram_files import (
    is_sample_file,
    read_label_stack,
    read_sample_file,
    write_sample_file,
)
from anacor_dials.sample.volumes import LabelVolume, Tomogram
from anacor_dials.segmentation.evaluation import Evaluation, evaluate
from anacor_dials.segmentation.inference import (
    CleaningSettings,
    InferenceSettings,
    Segmentation,
    load_network,
    mean_mu,
    segment,
)
from anacor_dials.segmentation.sam2_refinement import Sam2Settings, sam2_refiner
from anacor_dials.segmentation.training_data import labels_on_grid
from anacor_dials.segmentation.working_grid import intensity_scale, working_volume
from anacor_dials.tomography.projections import read_projections
from anacor_dials.tomography.reconstruction import plan_reconstruction, reconstruct

logger = logging.getLogger("dials.anacor_segment")

phil_scope = parse_phil("anacor_segment.phil")

LARGEST_PROBABILITIES = 4e9  # bytes


@dataclass(frozen=True, eq=False)
class Source:
    """The tomogram to be segmented, and what its file says of the scan; as in SampleFile."""

    tomogram: Tomogram
    projections: Path | None
    scan_centre: tuple[float, float] | None
    energy_keV: float | None
    paganin_delta_beta: float | None


def load_source(name: str, params: Any, energy_keV: float | None = None) -> Source:
    """The tomogram of a tomo.h5, or the reconstruction of a scan.

    params: has the PHIL scopes ``projections`` and ``reconstruction``; energy_keV: known better.
    """
    path = Path(name)
    is_hdf5 = path.is_file() and not name.lower().endswith((".tif", ".tiff"))
    if is_hdf5 and is_sample_file(path):
        sample = read_sample_file(path, labels=False)
        if sample.tomogram is None:
            raise ValueError(f"{path} holds no reconstruction, so there is nothing to segment.")
        energy = energy_keV
        if energy is None and sample.projections is not None and sample.projections.exists():
            try:
                energy = read_projections(
                    sample.projections, scan_description(params.projections)
                ).energy_keV
            except ValueError as error:
                logger.debug("the scan does not tell the energy: %s", error)
        return Source(
            sample.tomogram,
            sample.projections,
            sample.scan_centre,
            energy,
            sample.paganin_delta_beta,
        )
    settings = reconstruction_settings(params.reconstruction)
    projections = read_projections(name, scan_description(params.projections))
    logger.info("%s: %s, %r", name, projections.layout, projections)
    plan = plan_reconstruction(projections, settings, pictures=False)
    tomogram = reconstruct(plan)
    assert tomogram is not None
    return Source(
        tomogram,
        path.absolute(),
        plan.scan_centre,
        energy_keV or projections.energy_keV,
        settings.paganin_delta_beta,
    )


def given_labels(params: Any, tomogram: Tomogram) -> LabelVolume | None:
    """The corrected stack, on the tomogram's grid; None where none was given."""
    if params.labels.file is None:
        return None
    labels = read_label_stack(
        params.labels.file,
        tomogram.voxel_size_um,
        params.labels.axes,
        [part.strip() for part in params.labels.names.split(",")],
        tomogram.centre,
    )
    if labels.shape != tomogram.shape:
        raise ValueError(
            f"{params.labels.file} has {' x '.join(map(str, labels.shape))} voxels along X, Y, Z and the "
            f"tomogram {' x '.join(map(str, tomogram.shape))}; is labels.axes right?"
        )
    return labels


def put_back(segmentation: Segmentation | None, given: LabelVolume, tomogram: Tomogram) -> Any:
    """(labels, mu (n,), voxels changed) with the corrected stack: where it is not 0, or everywhere."""
    if segmentation is None:
        return given, mean_mu(tomogram.values, given), None
    if given.names != segmentation.labels.names:
        raise ValueError(
            f"The stack has the labels {', '.join(given.names)} and the network's are "
            f"{', '.join(segmentation.labels.names)}; to merge them they must be the same."
        )
    values = np.where(given.values > 0, given.values, segmentation.labels.values)
    changed = int(np.count_nonzero(values != segmentation.labels.values))
    labels = LabelVolume(values, given.voxel_size_um, given.centre, given.names)
    return labels, mean_mu(tomogram.values, labels), changed


def mu_of_tomogram(source: Source, mu: Any) -> tuple[Any, list[str]]:
    """(mu (n,) in 1/um as it is stored, warnings): that of air is not below 0, and after phase
    retrieval, which changes the values, that of the other materials is unknown.
    """
    mu = np.array(mu, dtype=np.float64)
    mu[0] = max(float(mu[0]), 0.0) if np.isfinite(mu[0]) else 0.0
    if source.paganin_delta_beta is None:
        return mu, []
    mu[1:] = np.nan
    return mu, [
        "The tomogram was phase retrieved (paganin_delta_beta), so that its values are no absorption "
        "coefficients and mu is left unknown; dials.anacor_absorption finds it from the projections."
    ]


def write_segmented(
    path: Path,
    source: Source,
    labels: LabelVolume,
    mu: Any,
    probabilities: Any,
    parameters: str,
) -> None:
    """Writes tomogram, labels and mu to a tomo.h5."""
    write_sample_file(
        path,
        tomogram=source.tomogram,
        labels=labels,
        mu_per_um=mu,
        energy_keV=source.energy_keV,
        probabilities=probabilities,
        projections=source.projections,
        parameters=parameters,
        scan_centre=source.scan_centre,
        paganin_delta_beta=source.paganin_delta_beta,
    )


def write_nrrd(path: Path, labels: LabelVolume) -> None:
    """NRRD 4, gzip, um; the first axis (X) runs fastest, the origin is that of the tomo frame."""
    size = labels.voxel_size_um
    origin = labels.position_um((0, 0, 0))
    directions = " ".join(
        "(" + ",".join(f"{size[i]:.9g}" if i == j else "0" for j in range(3)) + ")"
        for i in range(3)
    )
    header = (
        "NRRD0004\ntype: uint8\ndimension: 3\nspace dimension: 3\n"
        f"sizes: {' '.join(str(n) for n in labels.shape)}\n"
        f"space directions: {directions}\n"
        f"space origin: ({','.join(f'{v:.9g}' for v in origin)})\n"
        'space units: "um" "um" "um"\nencoding: gzip\n\n'
    )
    with open(path, "wb") as file:
        file.write(header.encode("ascii"))
        file.write(gzip.compress(labels.values.tobytes(order="F"), 4))


def percent(value: float, digits: int = 2) -> str:
    return "-" if not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def score_table(evaluation: Evaluation, seconds: float) -> Table:
    """The published table's rows."""
    rows = [
        (
            c.name,
            percent(c.recall),
            f"{c.dice:.4f}",
            f"{c.dice_loss:.4f}",
            "-" if not math.isfinite(c.hd95_um) else f"{c.hd95_um:.2f}",
        )
        for c in evaluation.classes
    ]
    entropy = evaluation.cross_entropy
    caption = f"{seconds:.0f} s" + (
        f", cross-entropy {entropy:.4f}" if math.isfinite(entropy) else ""
    )
    return Table(rows, ("", "accuracy (recall)", "Dice", "Dice loss", "HD95 (um)"), caption)


def report(
    source: Source,
    labels: LabelVolume,
    mu: Any,
    segmentation: Segmentation | None,
    evaluation: Evaluation | None,
    warnings: list[str],
    seconds: float,
) -> list[Section]:
    """The sections of the HTML report."""
    counts = labels.counts()
    rows = [
        (
            name,
            f"{counts[label] * labels.voxel_volume_um3:.4g}",
            "-" if not math.isfinite(mu[label]) else f"{mu[label]:.5f}",
            "-" if not math.isfinite(mu[label]) else f"{1e3 * mu[label]:.3f}",
        )
        for label, name in enumerate(labels.names)
    ]
    summary = [
        Table(rows, ("", "volume (um^3)", "mu (1/um)", "mu (1/mm)"), "Median within the material"),
        *(Text(w, "warning") for w in warnings),
    ]
    sections = [Section("Materials", summary)]
    if evaluation is not None:
        sections.append(Section("Against the truth", [score_table(evaluation, seconds)]))
    scale = intensity_scale(source.tomogram.values, source.tomogram.voxel_size_um)
    window = (scale.air - 0.1 * scale.sample, scale.air + 1.5 * (scale.sample - scale.air))
    slices = []
    for axis in range(3):
        traces, layout = scrolled_slices(source.tomogram.values, labels, axis, window)
        slices.append(Figure(traces, layout, height=560))
    sections.append(Section("Slices", slices))
    traces, layout = view_3d(labels)
    sections.append(Section("View", [Figure(traces, layout, width="full", height=560)]))
    if segmentation is not None:
        grid = working_volume(source.tomogram, segmentation.working[0], segmentation.factors)
        maps = uncertainty_maps(segmentation.working, grid)
        sections.append(Section("Uncertainty", [Figure(traces, layout) for traces, layout in maps]))
        changes = [
            (step.name, f"{volume:.0f}", f"{a} to {b}")
            for step in segmentation.steps
            for (a, b), volume in step.changed_um3.items()
        ]
        table = Table(changes, ("step", "um^3", "what"), "What the clean-up changed")
        nothing = Text("The clean-up changed nothing.")
        sections.append(Section("Clean-up", [table if changes else nothing]))
    return sections


def numbers(
    labels: LabelVolume,
    mu: Any,
    segmentation: Segmentation | None,
    evaluation: Evaluation | None,
    warnings: list[str],
) -> dict[str, Any]:
    """The report's figures, for programs."""
    counts = labels.counts()
    content: dict[str, Any] = {
        "materials": {
            name: {
                "label": label,
                "voxels": int(counts[label]),
                "volume_um3": float(counts[label] * labels.voxel_volume_um3),
                "mu_per_um": float(mu[label]),
            }
            for label, name in enumerate(labels.names)
        },
        "warnings": warnings,
    }
    if segmentation is not None:
        content["seconds"] = dict(segmentation.seconds)
        content["bin_factors"] = list(segmentation.factors)
        content["clean_up"] = [
            {
                "step": s.name,
                "changed_um3": {f"{a} to {b}": v for (a, b), v in s.changed_um3.items()},
            }
            for s in segmentation.steps
        ]
    if evaluation is not None:
        content["evaluation"] = evaluation.as_dict()
    return content


def run_network(params: Any, source: Source, keep_probabilities: bool) -> Segmentation:
    """The segmentation that the PHIL scopes ``segmentation`` and ``sam2`` ask for."""
    s = params.segmentation
    network = load_network(s.weights)
    refine: Callable[..., Any] | None = sam2_refiner(
        Sam2Settings(
            checkpoint=params.sam2.checkpoint,
            model=params.sam2.model,
            where=params.sam2.where,
            image_size=params.sam2.image_size,
            key_frames=params.sam2.key_frames,
            weight=params.sam2.weight,
        ),
        network.settings.names,
        choice(params.device),
    )
    n_bytes = float(source.tomogram.values.size) * network.settings.n_classes
    keep = keep_probabilities and n_bytes <= LARGEST_PROBABILITIES
    if keep_probabilities and not keep:
        logger.warning("The probabilities would take %.1f GB and are not stored.", n_bytes / 1e9)
    return segment(
        source.tomogram,
        network,
        InferenceSettings(
            s.tile,
            s.overlap,
            None if s.batch is libtbx.Auto else s.batch,
            s.axes,
            choice(params.device),
        ),
        CleaningSettings(
            s.one_crystal,
            s.crystal_in_air,
            s.fill_crystal,
            s.smallest_body_um3,
            s.smallest_loop_um3,
            s.crystal_bridge_um,
        ),
        source.energy_keV,
        keep,
        s.clean_up,
        refine,
        progress=sys.stderr.isatty(),
    )


@show_mail_handle_errors()
def run(args: list[str] | None = None, phil: phil.scope = phil_scope) -> None:
    """Run dials.anacor_segment as from the command line."""
    parser = ArgumentParser(
        usage="dials.anacor_segment [options] scan.nxs | tomo.h5",
        phil=phil,
        check_format=False,
        epilog=__doc__,
    )
    params, options, given = parser.parse_args(
        args=args, show_diff_phil=False, return_unhandled=True
    )
    if not given:
        parser.print_help()
        sys.exit(1)

    begin_log(logger, parser, options, params.output.log)

    try:
        if len(given) > 1:
            raise ValueError(f"One scan or tomogram at a time: {', '.join(given)} were given.")
        source = load_source(given[0], params, params.energy)
        logger.info("%r", source.tomogram)
        corrected = given_labels(params, source.tomogram)
        segmentation = None
        if corrected is None or params.labels.mode == "merge":
            segmentation = run_network(params, source, params.output.probabilities)
        warnings = list(segmentation.warnings) if segmentation is not None else []
        if corrected is not None:
            labels, mu, changed = put_back(segmentation, corrected, source.tomogram)
            if changed is not None:
                logger.info("%d voxels were changed by %s", changed, params.labels.file)
        else:
            assert segmentation is not None
            labels, mu = segmentation.labels, segmentation.mu_per_um
        seconds = sum(segmentation.seconds.values()) if segmentation is not None else 0.0
        evaluation = None
        if params.truth is not None:
            truth = read_sample_file(params.truth, tomogram=False).labels
            if truth is None:
                raise ValueError(f"{params.truth} holds no labels to compare with.")
            if truth.names != labels.names:
                raise ValueError(
                    f"The truth has the labels {', '.join(truth.names)} and the result "
                    f"{', '.join(labels.names)}; they must be the same."
                )
            evaluation = evaluate(
                labels,
                labels_on_grid(truth, source.tomogram),
                segmentation.probabilities if segmentation and corrected is None else None,
            )
        mu, more = mu_of_tomogram(source, mu)
        warnings += more
        with OutputFiles() as outputs:
            write_segmented(
                outputs.path(params.output.tomogram),
                source,
                labels,
                mu,
                segmentation.probabilities if segmentation and corrected is None else None,
                phil.format(python_object=params).as_str(),
            )
            if params.output.npy:
                with open(outputs.path(params.output.npy), "wb") as file:
                    np.save(file, labels.values)
            if params.output.tiff:
                import tifffile

                tifffile.imwrite(
                    outputs.path(params.output.tiff), labels.values, compression="zlib"
                )
            if params.output.nrrd:
                write_nrrd(outputs.path(params.output.nrrd), labels)
            if params.output.html:
                write_html(
                    outputs.path(params.output.html),
                    "Segmentation",
                    report(source, labels, mu, segmentation, evaluation, warnings, seconds),
                    subtitle=given[0],
                )
            if params.output.json:
                write_json(
                    outputs.path(params.output.json),
                    numbers(labels, mu, segmentation, evaluation, warnings),
                )
    except ValueError as error:
        raise Sorry(error) from None

    counts = labels.counts()
    for label, name in enumerate(labels.names):
        logger.info(
            "%-12s %12.0f um^3  mu %.5f /um",
            name, counts[label] * labels.voxel_volume_um3, mu[label],
        )  # fmt: skip
    if evaluation is not None:
        for c in evaluation.classes:
            logger.info(
                "%-12s accuracy %s, Dice %.4f, HD95 %.2f um",
                c.name, percent(c.recall), c.dice, c.hd95_um,
            )  # fmt: skip
    for warning in warnings:
        logger.warning("%s", warning)
    for name in (
        params.output.tomogram,
        params.output.tiff,
        params.output.npy,
        params.output.nrrd,
        params.output.html,
        params.output.json,
    ):
        if name:
            logger.info("Written: %s", name)


if __name__ == "__main__":
    run()
