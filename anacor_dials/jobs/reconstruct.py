"""A tomography scan becomes a tomogram."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from anacor_dials.sample.hand_made import HandMadeLabels
from anacor_dials.sample.tomogram_files import SampleFile, is_sample_file, new_tomogram_file
from anacor_dials.sample.volumes import Tomogram
from anacor_dials.tomography import reconstruction, reconstruction_plan
from anacor_dials.tomography.projections import read_projections
from anacor_dials.tomography.reconstruction_plan import ReconstructionPlan
from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings
from anacor_dials.tomography.scan_files import ScanDescription

logger = logging.getLogger("dials.anacor_dials.jobs.reconstruct")


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A tomogram and what is known of its scan.

    Parameters
    ----------
    tomogram : Tomogram
        mu in 1/um, or after phase retrieval values that only show the materials.
    projections : Path, optional
        The scan.
    scan_centre : (float, float), optional
        Pixel numbers in the images as the camera took them: of the rotation axis, across it, and of
        the centre of the beam, along it.
    energy_keV : float, optional
        Of the scan.
    paganin_delta_beta : float, optional
        Of the phase retrieval; None if there was none.
    warnings : tuple of str
        Sentences on a tomogram of another program.
    hand_made : HandMadeLabels, optional
        Labels that people made on this tomogram. No program changes them.
    distance_mm : float, optional
        From the sample to the detector, in the scan.
    """

    tomogram: Tomogram
    projections: Path | None = None
    scan_centre: tuple[float, float] | None = None
    energy_keV: float | None = None
    paganin_delta_beta: float | None = None
    warnings: tuple[str, ...] = ()
    hand_made: HandMadeLabels | None = None
    distance_mm: float | None = None


def is_sample_path(name: str | os.PathLike[str]) -> bool:
    """Whether a path is a file in the format of tomo.h5, not a scan, folder or pattern."""
    path = Path(name)
    is_image = path.suffix.lower() in (".tif", ".tiff")
    return path.is_file() and not is_image and is_sample_file(path)


def plan_reconstruction(
    scan: str | os.PathLike[str],
    description: ScanDescription | None = None,
    settings: ReconstructionSettings | None = None,
    pictures: bool = True,
) -> ReconstructionPlan:
    """The rotation centre of a scan and the voxels to reconstruct.

    Parameters
    ----------
    scan : path
        An NXtomo, GDA or Data Exchange file, a TIFF stack (file or folder), or a pattern of names.
    description : ScanDescription, optional
        What the files do not say of the scan.
    settings : ReconstructionSettings, optional
        The steps from projections to the tomogram.
    pictures : bool
        Whether the plan holds what a report shows: sinograms and a sweep of the rotation axis.

    Raises
    ------
    ValueError
        If the scan cannot be read or reconstructed, or the file holds a tomogram already.
    """
    if is_sample_path(scan):
        raise ValueError(f"{scan} holds a tomogram already; give the scan's own file.")
    projections = read_projections(scan, description)
    logger.info("%s: %s, %r", scan, projections.layout, projections)
    return reconstruction_plan.plan_reconstruction(projections, settings, pictures=pictures)


def reconstruct(
    scan: str | os.PathLike[str],
    description: ScanDescription | None = None,
    settings: ReconstructionSettings | None = None,
) -> Reconstruction:
    """The tomogram of a scan, in memory.

    Parameters
    ----------
    scan : path
        An NXtomo, GDA or Data Exchange file, a TIFF stack (file or folder), or a pattern of names.
    description : ScanDescription, optional
        What the files do not say of the scan.
    settings : ReconstructionSettings, optional
        The steps from projections to the tomogram.

    Raises
    ------
    ValueError
        If the scan cannot be read or reconstructed, or the file holds a tomogram already.
    """
    plan = plan_reconstruction(scan, description, settings, pictures=False)
    tomogram = reconstruction.reconstruct(plan)
    assert tomogram is not None
    return Reconstruction(
        tomogram,
        Path(scan).absolute(),
        plan.scan_centre,
        plan.projections.geometry.energy_keV,
        plan.settings.paganin_delta_beta,
        distance_mm=plan.projections.geometry.distance_mm,
    )


def write_reconstruction(
    path: str | os.PathLike[str],
    plan: ReconstructionPlan,
    scan: str | os.PathLike[str],
    parameters: str = "",
) -> None:
    """Reconstructs a scan into a new tomo.h5.

    It is done in slabs, so that the tomogram need not fit into memory.

    Parameters
    ----------
    path : path
        The new file.
    plan : ReconstructionPlan
        Of :func:`plan_reconstruction`.
    scan : path
        The path of the scan that is stored in the file.
    parameters : str
        Text that is stored in the file.
    """
    with new_tomogram_file(
        path,
        plan.shape,
        plan.voxel_size_um,
        plan.centre,
        SampleFile(
            Path(path),
            projections=Path(scan).absolute(),
            scan_centre=plan.scan_centre,
            paganin_delta_beta=plan.settings.paganin_delta_beta,
            scan_energy_keV=plan.projections.geometry.energy_keV,
            scan_distance_mm=plan.projections.geometry.distance_mm,
        ),
        parameters,
    ) as dataset:
        reconstruction.reconstruct(plan, dataset)
