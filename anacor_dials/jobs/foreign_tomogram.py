"""A tomogram of another program is read, and put on a scale where its unit is not known."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from anacor_dials.jobs.reconstruct import Reconstruction
from anacor_dials.sample.foreign_tomograms import TomogramDescription, read_foreign_tomogram
from anacor_dials.sample.materials import typical_composition
from anacor_dials.sample.volumes import Tomogram
from anacor_dials.segmentation.working_grid import intensity_scale
from anacor_dials.tomography.scan_files import ScanDescription, find_scan, scan_geometry

logger = logging.getLogger("dials.anacor_dials.jobs.foreign_tomogram")

LEVEL_PER_UM = 0.01  # of the sample where neither unit nor energy are known: of water at 3.75 keV
# Chosen by hand.
AIR_MISMATCH = 0.2  # of the sample's level: how far the sides may be from what is taken as air
SAMPLE_AT_SIDES = 0.25  # of the voxels at the sides; with more sample they are not air


def load_foreign_tomogram(
    name: str | os.PathLike[str],
    tomogram: TomogramDescription,
    scan: ScanDescription | None = None,
    energy_keV: float | None = None,
) -> Reconstruction:
    """The tomogram of another program, and the scan that it was made from.

    Parameters
    ----------
    name : path
        As of :func:`anacor_dials.sample.foreign_tomograms.read_foreign_tomogram`.
    tomogram : TomogramDescription
        What the user says of it.
    scan : ScanDescription, optional
        What the user says of the scan.
    energy_keV : float, optional
        Where it is known better than by the scan.

    Raises
    ------
    ValueError
        If it cannot be read, or its unit is not known and no air is seen.
    """
    scan = scan or ScanDescription()
    if tomogram.projections is None:
        geometry, pixel_xy_um = scan_geometry(scan), None
    else:
        geometry = find_scan(tomogram.projections, scan).geometry
        pixel_xy_um = geometry.pixel_xy_um
    energy = energy_keV or geometry.energy_keV
    camera = geometry.axes.fast_axis, geometry.axes.slow_axis
    found = read_foreign_tomogram(name, tomogram, pixel_xy_um, camera)
    for note in found.notes:
        logger.info("%s: %s", name, note)
    warnings = list(found.warnings)
    volume = found.tomogram
    if not volume.quantitative:
        volume = on_a_scale(volume, energy, os.fspath(name))
        warnings.append(
            "The tomogram's unit is not known: its values show the materials, but are no absorption "
            "coefficients, and mu is left unknown (tomogram.unit=1/um and so on, where it is known)."
        )
    for warning in warnings:
        logger.warning("%s", warning)
    return Reconstruction(
        volume,
        None if tomogram.projections is None else Path(tomogram.projections).absolute(),
        None,
        energy,
        None,
        tuple(warnings),
        distance_mm=geometry.distance_mm,
    )


def on_a_scale(tomogram: Tomogram, energy_keV: float | None, name: str) -> Tomogram:
    """The tomogram with air at 0 and the median of the sample at that of water, in 1/um.

    Air is what lies at the sides of the volume; the sample is told from it as the segmentation does
    (:func:`anacor_dials.segmentation.working_grid.intensity_scale`).

    Parameters
    ----------
    tomogram : Tomogram
        Values of any unit that grow with mu. They are changed in place.
    energy_keV : float, optional
        Of the photons; without it the sample is put at LEVEL_PER_UM.
    name : str
        Of the file, for the message.

    Raises
    ------
    ValueError
        If there is no air at the sides.
    """
    values = tomogram.values
    faces = [values[:, edge] for edge in (0, -1)] + [values[:, :, edge] for edge in (0, -1)]
    sides = np.concatenate([face.ravel() for face in faces])
    level_of_sides = np.float32(np.median(sides))
    values -= level_of_sides
    sides -= level_of_sides
    scale = intensity_scale(values, tomogram.voxel_size_um)
    contrast = scale.sample - scale.air
    at_sides = float(np.mean(np.abs(sides - scale.air) > 0.5 * contrast))
    hidden = abs(scale.air) > AIR_MISMATCH * contrast or at_sides > SAMPLE_AT_SIDES
    if hidden or not scale.air_seen:
        raise ValueError(
            f"{name}: no air is seen at the sides of the volume, so that its values cannot be scaled; "
            "give tomogram.unit= (1/um, 1/mm, 1/cm, 1/m or 1/voxel)."
        )
    water = typical_composition("liquor")
    level = LEVEL_PER_UM
    if energy_keV is not None and water is not None:
        level = water.mu_per_um(energy_keV)
    values -= np.float32(scale.air)
    values *= np.float32(level / contrast)
    logger.info("Its unit is not known: air is put at 0 and the sample at %.4g /um", level)
    return tomogram
