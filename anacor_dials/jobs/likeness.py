"""A segmented real scan is simulated, and the two scans are compared."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.progress import Progress
from anacor_dials.sample.tomogram_files import SampleFile, read_sample_file
from anacor_dials.simulation.batch import SampleRecipe
from anacor_dials.simulation.realism import Realism, compare_projections
from anacor_dials.simulation.sample_surfaces import sample_from_labels
from anacor_dials.simulation.samples import Sample
from anacor_dials.simulation.scan import ScanOptions, ScanSettings, write_scan
from anacor_dials.tomography.projections import Projections, read_projections
from anacor_dials.tomography.reconstruction import reconstruct_scan
from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings
from anacor_dials.tomography.scan_files import ScanDescription

logger = logging.getLogger("dials.anacor_dials.jobs.likeness")


@dataclass(frozen=True)
class LikenessSettings:
    """How a real scan is simulated.

    Parameters
    ----------
    scan : ScanSettings
        Energy, distance and size of a pixel are used if the real scan does not say them; sampling
        and detector are used in any case. The rest is that of the real scan.
    recipe : SampleRecipe
        The compositions of the materials.
    description : ScanDescription
        What the files of the real scan do not say.
    n_projections : int
        About how many projections are compared, evenly spread.
    seed : int
        Of the random choices.
    device : str
        "cpu" or "cuda".
    """

    scan: ScanSettings = field(default_factory=ScanSettings)
    recipe: SampleRecipe = field(default_factory=SampleRecipe)
    description: ScanDescription = field(default_factory=ScanDescription)
    n_projections: int = 60
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Likeness:
    """A real scan and its simulation.

    Attributes
    ----------
    realism : Realism
        SSIM, PSNR and MSE of each pair of projections.
    real, simulated : Projections
        The scans; projection k of the simulation belongs to projection k * stride of the real scan.
    stride : int
        The step between the projections of the real scan that were simulated.
    slices : (array, array)
        mu in 1/um in the slice through the origin, reconstructed from the real scan and from the
        simulated one.
    """

    realism: Realism
    real: Projections
    simulated: Projections
    stride: int
    slices: tuple[NDArray[np.float32], NDArray[np.float32]]


def simulate_real_scan(
    real_scan: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    scan_file: str | os.PathLike[str],
    truth_file: str | os.PathLike[str],
    settings: LikenessSettings | None = None,
) -> Likeness:
    """Simulates a real scan from its segmentation, and compares the two.

    Parameters
    ----------
    real_scan : path
        The real scan.
    labels : path
        Its segmentation, a tomo.h5 with labels.
    scan_file, truth_file : path
        Files for the simulated scan and its labels.
    settings : LikenessSettings, optional
        How it is simulated.

    Raises
    ------
    ValueError
        If there are no labels, or the real scan is not in even steps.
    """
    settings = settings or LikenessSettings()
    segmented = read_sample_file(labels)
    real = read_projections(real_scan, settings.description)
    scan, stride = _settings_of_scan(real, settings, segmented.scan_centre)
    sample = _sample_of_labels(labels, segmented, real, scan, settings)
    logger.info("Simulating %d of %d projections", scan.n_projections, real.n_angles)
    rng = np.random.default_rng(settings.seed)
    with Progress(scan.n_projections, "Simulating", "projection") as bar:
        options = ScanOptions(settings.device, progress=bar.update)
        write_scan(scan_file, truth_file, sample, scan, rng, options)
    simulated = read_projections(scan_file, settings.description)
    pairs = (
        (
            real.transmission(slice(k * stride, k * stride + 1))[0],
            simulated.transmission(slice(k, k + 1))[0],
        )
        for k in range(simulated.n_angles)
    )
    return Likeness(
        compare_projections(pairs, simulated.angles_deg),
        real,
        simulated,
        stride,
        (
            _middle_slice(real_scan, settings.description),
            _middle_slice(scan_file, settings.description),
        ),
    )


def _settings_of_scan(
    real: Projections, settings: LikenessSettings, scan_centre: tuple[float, float] | None
) -> tuple[ScanSettings, int]:
    """The settings of a real scan, every so-many-th projection of it, and that stride."""
    angles = real.angles_deg
    stride = max(1, len(angles) // settings.n_projections)
    angles = angles[::stride]
    step = float(np.mean(np.diff(angles)))
    if np.abs(np.diff(angles) - step).max() > 0.05 * abs(step):
        raise ValueError(
            f"{real.path} is not a scan in even steps, and only those can be compared."
        )
    asked, known = settings.scan, real.geometry
    pixel_size_um = asked.pixel_size_um
    if known.pixel_size_um is None:
        logger.warning("The scan does not say how large a pixel is: %g um is taken", pixel_size_um)
    else:
        pixel_size_um = known.pixel_size_um[0]
    middle = (real.ny - 1) / 2
    axis = middle
    if scan_centre is not None:
        axis = known.axes.upright_index(scan_centre[0], real.ny, "y")
    rows, columns = real.frames.shape[1:]
    scan = replace(
        asked,
        energy_keV=known.energy_keV or asked.energy_keV,
        distance_mm=asked.distance_mm if known.distance_mm is None else known.distance_mm,
        pixel_size_um=pixel_size_um,
        image_shape=(rows, columns),
        n_projections=len(angles),
        first_angle=float(angles[0]),
        angle_range=step * len(angles),
        fast_axis=known.axes.fast_axis,
        slow_axis=known.axes.slow_axis,
        axis_shift_px=axis - middle,
    )
    return scan, stride


def _sample_of_labels(
    path: str | os.PathLike[str],
    segmented: SampleFile,
    real: Projections,
    scan: ScanSettings,
    settings: LikenessSettings,
) -> Sample:
    """The labelled sample as surfaces, where the real scan saw it."""
    if segmented.labels is None:
        raise ValueError(f"{path} has no labels; segment the scan first.")
    materials, _ = settings.recipe.materials(np.random.default_rng(settings.seed))
    sample = sample_from_labels(segmented.labels, materials)
    if segmented.scan_centre is None:
        return sample
    beam = real.geometry.axes.upright_index(segmented.scan_centre[1], real.nx, "x")
    shift = ((beam - (real.nx - 1) / 2) * scan.pixel_size_um, 0.0, 0.0)
    parts = [replace(p, mesh=p.mesh.moved(shift_um=shift)) for p in sample.parts]
    return replace(sample, parts=tuple(parts))


def _middle_slice(
    scan_file: str | os.PathLike[str], description: ScanDescription
) -> NDArray[np.float32]:
    """mu (ny, nz) in 1/um in the middle slice of a scan."""
    scan = read_projections(scan_file, description)
    x = round((scan.nx - 1) / 2)
    crop = (x, x + 1, 0, scan.ny, 0, scan.ny)
    tomogram, _ = reconstruct_scan(scan_file, description, ReconstructionSettings(crop=crop))
    return tomogram.values[0]
