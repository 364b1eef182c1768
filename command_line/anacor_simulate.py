# LIBTBX_SET_DISPATCHER_NAME dials.anacor_simulate
"""
Make virtual tomography scans of virtual samples, and virtual diffraction data, with the truth beside them.

A sample is a crystal in a drop of liquor in a loop, drawn at random and made of closed meshes: by this
program, by Blender (sample.maker=blender), or from STL files. Each scan is written as NXtomo, as a beamline
writes it, with flats and darks before and after; the truth (labels, materials, mu) as a tomo.h5 file, which
can stand in for a segmentation anywhere. Images come from wave optics: an incident wave from real or
synthetic flats, the sample's refraction and absorption, Fresnel propagation, blur, noise, rings and zingers.

With diffraction.simulate=True there are also integrated reflections of the same sample on the geometry of
beamline I23, ready for dials.scale; the columns true.intensity and true.transmission hold the truth, and
PREFIX_0001.pdb the atoms that diffract.

With compare=real.nxs a segmented real scan is simulated with its own geometry, and the report shows how
alike the two are (SSIM, PSNR and MSE against the projection's number).

An interrupted batch goes on where it stopped when the same command is given again.

Examples::

  dials.anacor_simulate

  dials.anacor_simulate n_scans=100 nproc=8 output.prefix=train/scan image_size=512,512 pixel_size=0.6 \\
    sample.vary_materials=True

  dials.anacor_simulate diffraction.simulate=True energy=3.0 crystal_size=50,70

  dials.anacor_simulate sample.maker=stl stl.crystal=crystal.stl stl.liquor=drop.stl

  dials.anacor_simulate compare=real.nxs compare_labels=tomo.h5
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import libtbx
import numpy as np
from dials.util import Sorry, show_mail_handle_errors
from dials.util.options import ArgumentParser
from libtbx import phil
from tqdm import tqdm

from anacor_dials.command_line import begin_log
from anacor_dials.phil import choice, parse_phil
from anacor_dials.report.page import Figure, Section, Table, write_html, write_json
from anacor_dials.sample.materials import energy_from_wavelength, wavelength_from_energy
from anacor_dials.sample.output_files import OutputFiles
from anacor_dials.sample.tomogram_files import read_sample_file, write_sample_file
from anacor_dials.simulation.batch import SampleRecipe, ScanJob, make_scan, run_jobs, scan_jobs
from anacor_dials.simulation.detector import DetectorModel
from anacor_dials.simulation.realism import Realism, compare_projections
from anacor_dials.simulation.samples import sample_from_labels
from anacor_dials.simulation.scan import ScanSettings, write_scan
from anacor_dials.simulation.wavefield import usable_device
from anacor_dials.tomography.projections import Projections, read_projections
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


# ---- diffraction data --------------------------------------------------------------------------


def make_diffraction(job: ScanJob, params: Any) -> None:
    """Writes PREFIX_0001.expt, .refl and .pdb of a job's sample (and its truth, where no scan did)."""
    from anacor_dials.simulation.diffraction_data import (
        Sweep,
        simulate_diffraction,
        thaumatin_structure,
        write_diffraction,
    )

    d = params.diffraction
    stem = job.scan_file.removesuffix(".nxs")
    files = (f"{stem}.expt", f"{stem}.refl", f"{stem}.pdb")
    if all(Path(f).is_file() for f in files) and (d.scans or Path(job.truth_file).is_file()):
        logger.info("%s, %s and %s are there already", *files)
        return
    sample = job.recipe.sample(job.generators()[0], job.settings if d.scans else None)
    wavelength = d.wavelength or wavelength_from_energy(job.settings.energy_keV)
    rng = np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=(job.number, 1)))
    structure = thaumatin_structure(rng)
    experiments, reflections = simulate_diffraction(
        sample,
        rng,
        wavelength=wavelength,
        d_min=d.d_min,
        sweeps=[Sweep(*sweep) for sweep in d.sweep if sweep] or [Sweep()],
        angle_offset=d.angle_offset,
        rotation_sense=d.rotation_sense,
        n_points=d.n_points,
        mean_counts=d.mean_counts,
        background=d.background,
        instrument_error=d.instrument_error,
        decay_b=d.decay_b,
        structure=structure,
    )
    if not d.scans:
        energy = energy_from_wavelength(wavelength)
        write_sample_file(
            job.truth_file,
            labels=sample.label_volume(params.scan.pixel_size),
            mu_per_um=sample.mu_per_um(energy),
            energy_keV=energy,
            parameters=job.parameters,
        )
        logger.info("Written: %s", job.truth_file)
    write_diffraction(experiments, reflections, *files[:2], structure, files[2])
    logger.info("Written: %s, %s (%d reflections), %s", *files[:2], len(reflections), files[2])


# ---- likeness to a real scan ---------------------------------------------------------------------


def settings_of_scan(real: Projections, params: Any, scan_centre: Any) -> tuple[ScanSettings, int]:
    """The settings of a real scan, every so-many-th projection of it, and that stride."""
    angles = real.angles_deg
    stride = max(1, len(angles) // params.compare_projections)
    angles = angles[::stride]
    step = float(np.mean(np.diff(angles)))
    if np.abs(np.diff(angles) - step).max() > 0.05 * abs(step):
        raise ValueError(
            f"{real.path} is not a scan in even steps, and only those can be compared."
        )
    pixel_size_um = params.scan.pixel_size
    if real.pixel_size_um is None:
        logger.warning("The scan does not say how large a pixel is: %g um is taken", pixel_size_um)
    else:
        pixel_size_um = real.pixel_size_um[0]
    across, _ = scan_centre or (None, None)
    middle = (real.ny - 1) / 2
    axis = middle if across is None else real.axes.upright_index(across, real.ny, "y")
    s = params.scan
    settings = ScanSettings(
        energy_keV=real.energy_keV or s.energy,
        distance_mm=s.distance if real.distance_mm is None else real.distance_mm,
        pixel_size_um=pixel_size_um,
        image_shape=real.frames.shape[1:],
        n_projections=len(angles),
        first_angle=float(angles[0]),
        angle_range=step * len(angles),
        fast_axis=real.axes.fast_axis,
        slow_axis=real.axes.slow_axis,
        axis_shift_px=axis - middle,
        oversampling=s.oversampling,
        n_slices=s.n_slices,
        n_flats=s.n_flats,
        n_darks=s.n_darks,
        detector=detector_model(params.detector),
    )
    return settings, stride


def compare_with(real_scan: str, params: Any, device: str, files: tuple[Any, Any]) -> Any:
    """Simulates a segmented real scan into files (scan, truth); (likeness, report sections)."""
    if params.compare_labels is None:
        raise ValueError("compare= needs the scan's segmentation, compare_labels=tomo.h5.")
    segmented = read_sample_file(params.compare_labels)
    if segmented.labels is None:
        raise ValueError(f"{params.compare_labels} has no labels; segment the scan first.")
    s = params.scan
    description = ScanDescription(
        fast_axis=tuple(s.fast_axis) if s.fast_axis else None,
        slow_axis=tuple(s.slow_axis) if s.slow_axis else None,
    )
    real = read_projections(real_scan, description)
    settings, stride = settings_of_scan(real, params, segmented.scan_centre)
    materials, _ = sample_recipe(params).materials(np.random.default_rng(params.seed))
    sample = sample_from_labels(segmented.labels, materials)
    if segmented.scan_centre is not None:
        beam = real.axes.upright_index(segmented.scan_centre[1], real.nx, "x")
        shift = ((beam - (real.nx - 1) / 2) * settings.pixel_size_um, 0.0, 0.0)
        parts = [replace(p, mesh=p.mesh.moved(shift_um=shift)) for p in sample.parts]
        sample = replace(sample, parts=tuple(parts))
    logger.info("Simulating %d of %d projections", settings.n_projections, real.n_angles)
    with tqdm(total=settings.n_projections, disable=None, unit="projection") as bar:
        write_scan(
            *files,
            sample,
            settings,
            np.random.default_rng(params.seed),
            device,
            progress=bar.update,
        )
    simulated = read_projections(files[0], description)
    n = simulated.n_angles
    pairs = (
        (
            real.transmission(slice(k * stride, k * stride + 1))[0],
            simulated.transmission(slice(k, k + 1))[0],
        )
        for k in range(n)
    )
    likeness = compare_projections(pairs, simulated.angles_deg)
    sections = likeness_report(likeness, real, simulated, stride)
    sections.append(slices_report(real_scan, files[0], description, segmented.labels.centre))
    return likeness, sections


def _picture(image: Any, title: str, high: float) -> Figure:
    step = max(1, max(image.shape) // 400)
    trace = {
        "type": "heatmap",
        "z": np.round(np.nan_to_num(image[::step, ::step]).astype(float), 5),
        "zmin": 0.0,
        "zmax": high,
        "colorscale": "Greys",
        "reversescale": True,
    }
    layout = {
        "title": {"text": title},
        "yaxis": {"scaleanchor": "x", "autorange": "reversed"},
        "xaxis": {"constrain": "domain"},
    }
    return Figure([trace], layout)


def likeness_report(
    likeness: Realism, real: Projections, simulated: Projections, stride: int
) -> list[Section]:
    """The figures against the projection's number, and projections side by side."""
    numbers = np.arange(len(likeness.ssim)) * stride
    curves = [
        Figure(
            [{"type": "scatter", "mode": "lines+markers", "x": numbers, "y": np.round(values, 6)}],
            {"xaxis": {"title": {"text": "projection"}}, "yaxis": {"title": {"text": name}}},
            caption,
        )
        for name, values, caption in (
            ("SSIM", likeness.ssim, "Structural similarity; 1 for equal images."),
            (
                "PSNR (dB)",
                likeness.psnr_db,
                "Peak signal-to-noise ratio of the transmission, range 1.",
            ),
            ("MSE", likeness.mse, "Mean squared difference of the transmission."),
        )
    ]
    rows = [(name, f"{value:.4g}") for name, value in likeness.summary().items()]
    pictures = []
    n = len(likeness.ssim)
    for k in (0, n // 3, 2 * n // 3):
        angle = likeness.angles_deg[k]
        for scan, which, name in ((real, k * stride, "real"), (simulated, k, "simulated")):
            image = scan.transmission(slice(which, which + 1))[0]
            pictures.append(_picture(image, f"{name}, {angle:.1f} deg", 1.2))
    return [
        Section("Likeness", [Table(rows), *curves]),
        Section("Projections side by side", pictures),
    ]


def slices_report(
    real_scan: str, simulated_scan: Any, description: ScanDescription, centre: Any
) -> Section:
    """The slice through the origin, reconstructed from both scans."""
    from anacor_dials.tomography.reconstruction import ReconstructionSettings, reconstruct_scan

    items = []
    for name, path in (("real", real_scan), ("simulated", simulated_scan)):
        scan = read_projections(path, description)
        x = round((scan.nx - 1) / 2)
        crop = (x, x + 1, 0, scan.ny, 0, scan.ny)
        tomogram, _ = reconstruct_scan(path, description, ReconstructionSettings(crop=crop))
        high = 1e3 * float(np.percentile(tomogram.values, 99.5))
        items.append(_picture(1e3 * tomogram.values[0], f"{name}: mu (1/mm), X = 0", high))
    return Section("Slices side by side", items)


# ---- the command ---------------------------------------------------------------------------------


@show_mail_handle_errors()
def run(args: list[str] | None = None, phil: phil.scope = phil_scope) -> None:
    """Run dials.anacor_simulate as from the command line."""
    parser = ArgumentParser(
        usage="dials.anacor_simulate [options]", phil=phil, check_format=False, epilog=__doc__
    )
    params, options, unhandled = parser.parse_args(
        args=args, show_diff_phil=False, return_unhandled=True
    )
    begin_log(logger, parser, options, params.output.log)

    try:
        if unhandled:
            raise ValueError(f"What is {' '.join(unhandled)}? Parameters are given as name=value.")
        device = usable_device(choice(params.device))
        if params.compare is not None:
            compare(params, device)
        else:
            simulate(params, device, phil.format(python_object=params).as_str())
    except ValueError as error:
        raise Sorry(error) from None


def compare(params: Any, device: str) -> None:
    """Simulates the real scan of compare= and writes scan, truth and report, all or nothing."""
    prefix = params.output.prefix
    with OutputFiles() as outputs:
        files = (outputs.path(f"{prefix}.nxs"), outputs.path(f"{prefix}_truth.h5"))
        likeness, sections = compare_with(params.compare, params, device, files)
        if params.output.html:
            title = "Simulated and real scan"
            write_html(outputs.path(params.output.html), title, sections, subtitle=params.compare)
        if params.output.json:
            write_json(
                outputs.path(params.output.json),
                {**likeness.summary(), "ssim": likeness.ssim, "psnr_db": likeness.psnr_db,
                 "mse": likeness.mse, "angles_deg": likeness.angles_deg},
            )  # fmt: skip
    summary = likeness.summary()
    logger.info(
        "SSIM %.3f, PSNR %.1f dB, MSE %.2e (means over %d projections)",
        summary["ssim_mean"],
        summary["psnr_db_mean"],
        summary["mse_mean"],
        len(likeness.ssim),
    )
    for path in (f"{prefix}.nxs", f"{prefix}_truth.h5", params.output.html, params.output.json):
        if path:
            logger.info("Written: %s", path)


def simulate(params: Any, device: str, parameters: str) -> None:
    """Makes the scans and the diffraction data of all samples."""
    recipe, settings = sample_recipe(params), scan_settings(params)
    folder = Path(params.output.prefix).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"The folder {folder} does not exist; create it first.")
    jobs = scan_jobs(
        recipe,
        settings,
        params.seed,
        params.n_scans,
        params.output.prefix,
        device=device,
        flats=params.flats,
        parameters=parameters,
    )
    logger.info("%d scan(s), seed %d, device %s", len(jobs), params.seed, device)
    if params.diffraction.scans:
        if len(jobs) == 1 and params.dask.scheduler is None:
            if jobs[0].is_done():
                logger.info("%s is there already", jobs[0].scan_file)
            else:
                with tqdm(total=settings.n_projections, disable=None, unit="projection") as bar:
                    make_scan(jobs[0], bar.update)
        else:
            waiting = sum(not job.is_done() for job in jobs)
            with tqdm(total=waiting, disable=None, unit="scan") as bar:
                for name in run_jobs(jobs, params.nproc, params.dask.scheduler):
                    bar.update()
                    logger.info("Written: %s", name)
        logger.info(
            "Scans: %s ... %s, with truths beside them", jobs[0].scan_file, jobs[-1].scan_file
        )
    if params.diffraction.simulate:
        for job in tqdm(jobs, disable=None, unit="data set"):
            make_diffraction(job, params)


if __name__ == "__main__":
    run()
