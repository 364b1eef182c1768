# LIBTBX_SET_DISPATCHER_NAME dials.anacor_simulate
"""
Make virtual tomography scans of virtual samples, and virtual diffraction data, with the truth
beside them.

A sample is a crystal in a drop of liquor in a loop, drawn at random and made of closed meshes: by
this program, by Blender (sample.maker=blender), or from STL files. Each scan is written as NXtomo,
as a beamline writes it, with flats and darks before and after; the truth (labels, materials, mu) as
a tomo.h5 file, which can stand in for a segmentation anywhere. Images come from wave optics: an
incident wave from real or synthetic flats, the sample's refraction and absorption, Fresnel
propagation, blur, noise, rings and zingers.

With diffraction.simulate=True there are also integrated reflections of the same sample on the
geometry of beamline I23, ready for dials.scale; the columns true.intensity and true.transmission
hold the truth, and PREFIX_0001.pdb the atoms that diffract.

With compare=real.nxs a segmented real scan is simulated with its own geometry, and the report shows
how alike the two are (SSIM, PSNR and MSE against the projection's number).

An interrupted batch goes on where it stopped when the same command is given again.

Examples::

  dials.anacor_simulate

  dials.anacor_simulate n_scans=100 nproc=8 output.prefix=train/scan \\
    image_size=512,512 pixel_size=0.6 sample.vary_materials=True

  dials.anacor_simulate diffraction.simulate=True energy=3.0 crystal_size=50,70

  dials.anacor_simulate sample.maker=stl stl.crystal=crystal.stl stl.liquor=drop.stl

  dials.anacor_simulate compare=real.nxs compare_labels=tomo.h5
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import libtbx
from dials.util import Sorry, show_mail_handle_errors
from dials.util.options import ArgumentParser
from libtbx import phil

from anacor_dials.command_line import begin_log
from anacor_dials.jobs.likeness import LikenessSettings, simulate_real_scan
from anacor_dials.jobs.simulate import DiffractionOutput, make_diffraction, make_scans
from anacor_dials.phil import choice, parse_phil
from anacor_dials.phil.arguments import parse_arguments
from anacor_dials.report.likeness import log_line, record, sections
from anacor_dials.report.page import write_html, write_json
from anacor_dials.sample.devices import chosen_device
from anacor_dials.sample.output_files import OutputFiles
from anacor_dials.sample.progress import followed
from anacor_dials.simulation.batch import SampleRecipe, scan_jobs
from anacor_dials.simulation.detector import DetectorModel
from anacor_dials.simulation.diffraction_settings import DiffractionSettings, Sweep
from anacor_dials.simulation.scan import ScanSettings
from anacor_dials.tomography.scan_files import ScanDescription

logger = logging.getLogger("dials.anacor_simulate")

phil_scope = parse_phil("anacor_simulate.phil")


def sample_recipe(params: Any) -> SampleRecipe:
    """What the PHIL scopes ``sample`` and ``materials`` ask for."""
    s = params.sample
    compositions = {}
    for name in ("crystal", "liquor", "loop"):
        material = getattr(params.materials, name)
        if material.formula is not None:
            if material.density is None:
                raise ValueError(
                    f"materials.{name}.formula={material.formula} needs materials.{name}.density= (g/cm3)."
                )
            compositions[name] = (material.formula, material.density)
    files = {
        name: tuple(f for f in getattr(s.stl, name) if f)
        for name in ("crystal", "liquor", "loop", "bubble")
    }
    return SampleRecipe(
        maker=s.maker,
        crystal_size_um=tuple(s.crystal_size),
        shape=None if s.shape == "any" else s.shape,
        wear=s.wear,
        film=None if s.film is libtbx.Auto else s.film,
        pin=s.pin,
        stem_length_um=s.stem_length,
        vary_materials=s.vary_materials,
        compositions=compositions,
        stl={name: group for name, group in files.items() if group},
        um_per_unit=s.stl.um_per_unit,
        blender=s.blender,
    )


def detector_model(d: Any) -> DetectorModel:
    """What the PHIL scope ``detector`` asks for."""
    return DetectorModel(
        photons=d.photons,
        gain=d.gain,
        read_noise=d.read_noise,
        dark_level=d.dark_level,
        psf_um=d.psf,
        source_blur_um=d.source_blur,
        response_spread=d.response_spread,
        ring_strength=d.ring_strength,
        ring_fraction=d.ring_fraction,
        zinger_rate=d.zinger_rate,
        beam_drift=d.beam_drift,
        flat_shift_px=d.flat_shift,
        bits=d.bits,
    )


def scan_settings(params: Any) -> ScanSettings:
    """What the PHIL scopes ``scan`` and ``detector`` ask for."""
    s = params.scan
    return ScanSettings(
        energy_keV=s.energy,
        distance_mm=s.distance,
        pixel_size_um=s.pixel_size,
        image_shape=tuple(s.image_size),
        n_projections=s.n_projections,
        first_angle=s.first_angle,
        angle_range=s.angle_range,
        fast_axis=tuple(s.fast_axis or (0.0, 1.0, 0.0)),
        slow_axis=tuple(s.slow_axis or (1.0, 0.0, 0.0)),
        axis_shift_px=s.axis_shift,
        oversampling=s.oversampling,
        n_slices=s.n_slices,
        propagator=s.propagator,
        precision=s.precision,
        n_flats=s.n_flats,
        n_darks=s.n_darks,
        detector=detector_model(params.detector),
    )


def diffraction_settings(params: Any) -> DiffractionSettings:
    """What the PHIL scope ``diffraction`` asks for."""
    d = params.diffraction
    return DiffractionSettings(
        wavelength=d.wavelength,
        d_min=d.d_min,
        sweeps=[Sweep(*sweep) for sweep in d.sweep if sweep],
        angle_offset=d.angle_offset,
        rotation_sense=d.rotation_sense,
        n_points=d.n_points,
        mean_counts=d.mean_counts,
        background=d.background,
        instrument_error=d.instrument_error,
        decay_b=d.decay_b,
        detector=d.detector,
        distance_mm=d.detector_distance,
    )


def likeness_settings(params: Any, device: str) -> LikenessSettings:
    """How the real scan of compare= is simulated."""
    s = params.scan
    return LikenessSettings(
        scan=scan_settings(params),
        recipe=sample_recipe(params),
        description=ScanDescription(
            fast_axis=tuple(s.fast_axis) if s.fast_axis else None,
            slow_axis=tuple(s.slow_axis) if s.slow_axis else None,
        ),
        n_projections=params.compare_projections,
        seed=params.seed,
        device=device,
    )


@show_mail_handle_errors()
def run(args: list[str] | None = None, phil: phil.scope = phil_scope) -> None:
    """Run dials.anacor_simulate as from the command line."""
    parser = ArgumentParser(
        usage="dials.anacor_simulate [options]", phil=phil, check_format=False, epilog=__doc__
    )
    params, options, unhandled = parse_arguments(parser, args)
    begin_log(logger, parser, options, params.output.log)

    try:
        if unhandled:
            raise ValueError(f"What is {' '.join(unhandled)}? Parameters are given as name=value.")
        device = chosen_device(choice(params.device))
        if params.compare is not None:
            compare(params, device)
        else:
            simulate(params, device, phil.format(python_object=params).as_str())
    except ValueError as error:
        raise Sorry(error) from None


def compare(params: Any, device: str) -> None:
    """Simulates the real scan of compare= and writes scan, truth and report, all or nothing."""
    if params.compare_labels is None:
        raise ValueError("compare= needs the scan's segmentation, compare_labels=tomo.h5.")
    prefix, output = params.output.prefix, params.output
    with OutputFiles() as outputs:
        likeness = simulate_real_scan(
            params.compare,
            params.compare_labels,
            outputs.path(f"{prefix}.nxs"),
            outputs.path(f"{prefix}_truth.h5"),
            likeness_settings(params, device),
        )
        if output.html:
            title = "Simulated and real scan"
            write_html(outputs.path(output.html), title, sections(likeness), params.compare)
        if output.json:
            write_json(outputs.path(output.json), record(likeness))
    logger.info("%s", log_line(likeness))
    for path in (f"{prefix}.nxs", f"{prefix}_truth.h5", output.html, output.json):
        if path:
            logger.info("Written: %s", path)


def simulate(params: Any, device: str, parameters: str) -> None:
    """Makes the scans and the diffraction data of all samples."""
    folder = Path(params.output.prefix).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"The folder {folder} does not exist; create it first.")
    jobs = scan_jobs(
        sample_recipe(params),
        scan_settings(params),
        params.seed,
        params.n_scans,
        params.output.prefix,
        device=device,
        flats=params.flats,
        parameters=parameters,
    )
    logger.info("%d scan(s), seed %d, device %s", len(jobs), params.seed, device)
    scans = params.diffraction.scans
    if scans:
        make_scans(jobs, params.nproc, params.dask.scheduler)
    if params.diffraction.simulate or params.diffraction.images:
        settings = diffraction_settings(params)
        output = DiffractionOutput(scans, params.scan.pixel_size, params.diffraction.images)
        for job in followed(jobs, "Simulating", "data set"):
            make_diffraction(job, settings, output)


if __name__ == "__main__":
    run()
