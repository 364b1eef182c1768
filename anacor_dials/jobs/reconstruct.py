"""A tomography scan becomes a tomogram."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from anacor_dials.sample.tomogram_files import is_sample_file, new_tomogram_file
from anacor_dials.sample.volumes import Tomogram
from anacor_dials.tomography import reconstruction
from anacor_dials.tomography.projections import read_projections
from anacor_dials.tomography.reconstruction import ReconstructionPlan, ReconstructionSettings
from anacor_dials.tomography.scan_files import ScanDescription

logger = logging.getLogger("dials.anacor_dials.jobs.reconstruct")


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A tomogram and what is known of its scan.

    projections: path of the scan, or None. scan_centre: where in the scan's images (column or row
    number) the rotation axis is, across it, and the centre of the beam, along it; None where unknown.
    energy_keV: of the scan, or None. paganin_delta_beta: of the phase retrieval; None without it, and
    then the tomogram's values are mu in 1/um.
    """

    tomogram: Tomogram
    projections: Path | None = None
    scan_centre: tuple[float, float] | None = None
    energy_keV: float | None = None
    paganin_delta_beta: float | None = None


def is_sample_path(name: str | os.PathLike[str]) -> bool:
    """True for a file in the format of tomo.h5; False for scans, TIFF stacks, folders and patterns."""
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
    scan: an NXtomo, GDA or Data Exchange file, a TIFF stack (file or folder), or a pattern of names.
    description: what the files do not say of the scan.
    settings: the steps from projections to the tomogram.
    pictures: whether the plan holds what a report shows (sinograms, a sweep of the rotation axis).

    Raises
    ------
    ValueError: the scan cannot be read or reconstructed, or the file holds a tomogram already.
    """
    if is_sample_path(scan):
        raise ValueError(f"{scan} holds a tomogram already; give the scan's own file.")
    projections = read_projections(scan, description)
    logger.info("%s: %s, %r", scan, projections.layout, projections)
    return reconstruction.plan_reconstruction(projections, settings, pictures=pictures)


def reconstruct(
    scan: str | os.PathLike[str],
    description: ScanDescription | None = None,
    settings: ReconstructionSettings | None = None,
) -> Reconstruction:
    """The tomogram of a scan, in memory; the parameters are those of :func:`plan_reconstruction`."""
    plan = plan_reconstruction(scan, description, settings, pictures=False)
    tomogram = reconstruction.reconstruct(plan)
    assert tomogram is not None
    return Reconstruction(
        tomogram,
        Path(scan).absolute(),
        plan.scan_centre,
        plan.projections.energy_keV,
        plan.settings.paganin_delta_beta,
    )


def write_reconstruction(
    path: str | os.PathLike[str],
    plan: ReconstructionPlan,
    scan: str | os.PathLike[str],
    parameters: str = "",
) -> None:
    """Reconstructs into a new tomo.h5, slab by slab, so that the tomogram need not fit into memory.

    scan: the path that the file remembers; parameters: text that is stored in it.
    """
    with new_tomogram_file(
        path,
        plan.shape,
        plan.voxel_size_um,
        plan.centre,
        projections=Path(scan).absolute(),
        scan_centre=plan.scan_centre,
        parameters=parameters,
        paganin_delta_beta=plan.settings.paganin_delta_beta,
    ) as dataset:
        reconstruction.reconstruct(plan, dataset)
