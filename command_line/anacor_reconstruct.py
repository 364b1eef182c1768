# LIBTBX_SET_DISPATCHER_NAME dials.anacor_reconstruct
"""
Reconstruct a tomogram of the absorption coefficient from the projections of a tomography scan.

The scan is an NXtomo file (Diamond, I23 included, ESRF), a GDA file with links to its images, a Data
Exchange file, or a stack of TIFF files (a folder, a multi-page file, or a quoted pattern). Flats and darks
are found in it, or given as files of their own. What the file does not say is given by parameters, above all
the pixel size.

The tomogram is written to tomo.h5, in 1/um and in the tomography frame: X along the rotation axis, about
which the sample turns right-handedly as the rotation angle grows, Z towards the source at angle zero,
Y = Z x X. projections.fast_axis and slow_axis say how the camera's columns and rows lie in it.

The report shows a sinogram before and after corrections, a slice with the rotation axis at several places,
the middle slices, and the histogram of mu beside the values expected at the scan's energy.

Examples::

  dials.anacor_reconstruct scan.nxs

  dials.anacor_reconstruct scan.nxs pixel_size=0.3 fast_axis=1,0,0 slow_axis=0,1,0

  dials.anacor_reconstruct projections/ flat=before.tif flat=after.tif dark=dark.tif \\
    first_angle=0 angle_step=0.2 pixel_size=0.3 energy=3.5 centre=1021.5
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from dials.util import Sorry, show_mail_handle_errors
from dials.util.options import ArgumentParser
from libtbx import phil

from anacor_dials.command_line import begin_log
from anacor_dials.phil import choice, parse_phil
from anacor_dials.report.page import Figure, Section, Table, Text, write_html, write_json
from anacor_dials.report.reconstruction import as_dict, figures
from anacor_dials.sample.materials import typical_composition
from anacor_dials.sample.output_files import OutputFiles
from anacor_dials.sample.tomogram_files import is_sample_file, new_tomogram_file
from anacor_dials.tomography.projections import read_projections
from anacor_dials.tomography.reconstruction import (
    ReconstructionPlan,
    ReconstructionSettings,
    plan_reconstruction,
    reconstruct,
)
from anacor_dials.tomography.scan_files import ScanDescription

logger = logging.getLogger("dials.anacor_reconstruct")

phil_scope = parse_phil("anacor_reconstruct.phil")


def scan_description(projections: Any) -> ScanDescription:
    """What the PHIL scope ``projections`` says about a scan."""
    return ScanDescription(
        data=projections.data,
        image_key=projections.image_key,
        angles=projections.angles,
        first_angle_deg=projections.first_angle,
        angle_step_deg=projections.angle_step,
        angle_units=projections.angle_units,
        flats=tuple(flat for flat in projections.flat if flat),
        darks=tuple(dark for dark in projections.dark if dark),
        flat_corrected=projections.flat_corrected,
        pixel_size_um=tuple(projections.pixel_size) if projections.pixel_size else None,
        energy_keV=projections.energy,
        distance_mm=projections.distance,
        fast_axis=tuple(projections.fast_axis) if projections.fast_axis else None,
        slow_axis=tuple(projections.slow_axis) if projections.slow_axis else None,
        saturation=projections.saturation,
    )


def reconstruction_settings(reconstruction: Any) -> ReconstructionSettings:
    """The steps that the PHIL scope ``reconstruction`` asks for."""
    crop: str | tuple[int, ...] = choice(reconstruction.crop) or "off"
    if isinstance(crop, str) and crop not in ("off", "auto"):
        try:
            crop = tuple(int(number) for number in crop.replace(",", " ").split())
        except ValueError:
            raise ValueError(
                f"crop is {crop!r}; it is off, auto, or six whole numbers (the first and last + 1 "
                "voxel along X, Y and Z)."
            ) from None
    return ReconstructionSettings(
        centre=reconstruction.centre,
        centre_method=choice(reconstruction.centre_method),
        beam_centre=reconstruction.beam_centre,
        zinger_threshold=reconstruction.zinger_threshold if reconstruction.zingers else None,
        least_transmission=reconstruction.least_transmission,
        rings=reconstruction.rings,
        paganin_delta_beta=reconstruction.paganin_delta_beta,
        crop=crop,
        filter_name=reconstruction.filter,
        backend=choice(reconstruction.backend),
        memory_gb=reconstruction.memory,
    )


def expected_mu(energy_keV: float | None) -> dict[str, float]:
    """mu in 1/um of what samples are usually made of; nothing where the energy is unknown."""
    if energy_keV is None:
        return {}
    compositions = {name: typical_composition(name) for name in ("crystal", "liquor", "loop")}
    return {
        name: composition.mu_per_um(energy_keV)
        for name, composition in compositions.items()
        if composition is not None
    }


def report(plan: ReconstructionPlan) -> list[Section]:
    """The sections of the HTML report."""
    d, p = plan.diagnostics, plan.projections
    drawn = {
        name: Figure(figure["data"], figure["layout"])
        for name, figure in figures(plan, expected_mu(p.energy_keV)).items()
    }
    rows = [
        ("scan", p.path),
        ("layout", p.layout),
        ("projections", f"{d.n_projections}, {d.angles_deg[0]:.2f} to {d.angles_deg[1]:.2f} deg"),
        ("energy", "unknown" if p.energy_keV is None else f"{p.energy_keV:g} keV"),
        ("voxels", " x ".join(str(n) for n in plan.shape) + " along X, Y, Z"),
        ("voxel size", " x ".join(f"{v:g}" for v in plan.voxel_size_um) + " um"),
        ("origin at voxel", ", ".join(f"{v:.2f}" for v in plan.centre)),
        ("rotation axis", f"pixel {d.centre:.2f} ({d.centre_method})"),
        ("clipped transmissions", f"{d.clipped_percent:.3f} %"),
        ("unusable pixels", f"{d.unusable_percent:.3f} %"),
        ("zingers", f"{d.zinger_percent:.3f} %"),
        ("back-projection", f"{d.backend}, {d.seconds_per_slice:.3f} s per slice"),
    ]
    return [
        Section("Summary", [Table(rows), *(Text(w, "warning") for w in d.warnings)]),
        Section("Slices", [f for n, f in drawn.items() if n.startswith("slice_")]),
        Section("Absorption coefficient", [f for n, f in drawn.items() if n == "histogram"]),
        Section("Centre of rotation", [f for n, f in drawn.items() if n.startswith("centre_")]),
        Section("Sinograms", [f for n, f in drawn.items() if n.startswith("sinogram_")]),
    ]


@show_mail_handle_errors()
def run(args: list[str] | None = None, phil: phil.scope = phil_scope) -> None:
    """Run dials.anacor_reconstruct as from the command line."""
    parser = ArgumentParser(
        usage="dials.anacor_reconstruct [options] scan.nxs",
        phil=phil,
        check_format=False,
        epilog=__doc__,
    )
    params, options, scans = parser.parse_args(
        args=args, show_diff_phil=False, return_unhandled=True
    )
    if not scans:
        parser.print_help()
        sys.exit(1)

    begin_log(logger, parser, options, params.output.log)

    try:
        if len(scans) > 1:
            raise ValueError(
                f"One scan at a time: {', '.join(scans)} were given (a pattern of TIFF files is put "
                "in quotation marks)."
            )
        scan = scans[0]
        if Path(scan).is_file() and not scan.lower().endswith((".tif", ".tiff")):
            if is_sample_file(scan):
                raise ValueError(f"{scan} holds a tomogram already; give the scan's own file.")
        settings = reconstruction_settings(params.reconstruction)
        projections = read_projections(scan, scan_description(params.projections))
        logger.info("%s: %s, %r", scan, projections.layout, projections)
        plan = plan_reconstruction(projections, settings)
        with OutputFiles() as outputs:
            tomogram = outputs.path(params.output.tomogram)
            html = outputs.path(params.output.html) if params.output.html else None
            numbers = outputs.path(params.output.json) if params.output.json else None
            with new_tomogram_file(
                tomogram,
                plan.shape,
                plan.voxel_size_um,
                plan.centre,
                projections=Path(scan).absolute(),
                scan_centre=plan.scan_centre,
                parameters=phil.format(python_object=params).as_str(),
                paganin_delta_beta=settings.paganin_delta_beta,
            ) as dataset:
                reconstruct(plan, dataset)
            if html:
                write_html(html, "Tomographic reconstruction", report(plan), subtitle=scan)
            if numbers:
                write_json(numbers, as_dict(plan))
    except ValueError as error:
        raise Sorry(error) from None

    for path in (params.output.tomogram, params.output.html, params.output.json):
        if path:
            logger.info("Written: %s", path)


if __name__ == "__main__":
    run()
