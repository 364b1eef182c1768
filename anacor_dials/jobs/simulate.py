"""Virtual scans and diffraction data of random or given samples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anacor_dials.sample.materials import energy_from_wavelength, wavelength_from_energy
from anacor_dials.sample.progress import Progress
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.simulation.batch import ScanJob, make_scan, run_jobs
from anacor_dials.simulation.diffraction_settings import DiffractionSettings

logger = logging.getLogger("dials.anacor_dials.jobs.simulate")

TRUTH_VOXEL_UM = 0.3  # as the pixels of ScanSettings


def make_scans(jobs: Sequence[ScanJob], nproc: int = 1, scheduler: str | None = None) -> None:
    """Writes the scans of all jobs that are not there yet.

    Parameters
    ----------
    jobs : sequence of ScanJob
        Of :func:`anacor_dials.simulation.batch.scan_jobs`.
    nproc : int
        How many are made at the same time.
    scheduler : str, optional
        The address of a Dask scheduler that they are given to.
    """
    if len(jobs) == 1 and scheduler is None:
        (job,) = jobs
        if job.is_done():
            logger.info("%s is there already", job.scan_file)
        else:
            with Progress(job.settings.n_projections, "Simulating", "projection") as bar:
                make_scan(job, bar.update)
    else:
        waiting = sum(not job.is_done() for job in jobs)
        with Progress(waiting, "Simulating", "scan") as bar:
            for name in run_jobs(jobs, nproc, scheduler):
                bar.update()
                logger.info("Written: %s", name)
    logger.info("Scans: %s ... %s, with truths beside them", jobs[0].scan_file, jobs[-1].scan_file)


@dataclass(frozen=True)
class DiffractionOutput:
    """What is written of a virtual diffraction experiment.

    Parameters
    ----------
    with_scan : bool
        Whether the scan of the sample is made too. If not, its truth is written here.
    voxel_size_um : float
        Edge length of the voxels of the truth that is written here, um.
    images : bool
        Whether rotation images are made.
    """

    with_scan: bool
    voxel_size_um: float = TRUTH_VOXEL_UM
    images: bool = False


def make_diffraction(
    job: ScanJob, settings: DiffractionSettings, output: DiffractionOutput
) -> None:
    """Writes the diffraction data of a job's sample, unless they are there already.

    The files are PREFIX_0001.expt, .refl and .pdb, and PREFIX_0001_sweep1.nxs ... with images.

    Parameters
    ----------
    job : ScanJob
        Of :func:`anacor_dials.simulation.batch.scan_jobs`.
    settings : DiffractionSettings
    output : DiffractionOutput
    """
    from anacor_dials.simulation.diffraction_data import (
        simulate_diffraction,
        structure_of,
        write_diffraction,
    )
    from anacor_dials.simulation.diffraction_images import image_files, write_diffraction_images

    stem = job.scan_file.removesuffix(".nxs")
    files = (f"{stem}.expt", f"{stem}.refl", f"{stem}.pdb")
    images = image_files(stem, max(1, len(settings.sweeps))) if output.images else []
    expected = [*files, *images, *([] if output.with_scan else [job.truth_file])]
    if all(Path(f).is_file() for f in expected):
        logger.info("%s are there already", ", ".join((*files, *images)))
        return
    scan_settings = job.settings if output.with_scan else None
    sample = job.recipe.sample(job.generators()[0], scan_settings)
    wavelength = settings.wavelength or wavelength_from_energy(job.settings.energy_keV)
    settings = replace(settings, wavelength=wavelength)
    rng = np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=(job.number, 1)))
    structure = structure_of(sample, rng)
    experiments, reflections = simulate_diffraction(sample, rng, settings, structure)
    if not output.with_scan:
        energy = energy_from_wavelength(wavelength)
        write_sample_file(
            job.truth_file,
            labels=sample.label_volume(output.voxel_size_um),
            mu_per_um=sample.mu_per_um(energy),
            energy_keV=energy,
            parameters=job.parameters,
        )
        logger.info("Written: %s", job.truth_file)
    if images:
        rng = np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=(job.number, 2)))
        n_images = sum(experiment.scan.get_num_images() for experiment in experiments)
        with Progress(n_images, "Simulating images", "image") as bar:
            write_diffraction_images(
                sample, (experiments, reflections), structure, rng, settings, images, bar.update
            )
        logger.info("Written: %s", ", ".join(images))
    write_diffraction(experiments, reflections, *files[:2], structure, files[2])
    logger.info("Written: %s, %s (%d reflections), %s", *files[:2], len(reflections), files[2])
