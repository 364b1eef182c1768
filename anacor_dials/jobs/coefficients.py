"""The absorption coefficients of a labelled sample from the scan that its labels belong to."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from anacor_dials.absorption.coefficients import (
    CoefficientFit,
    Radiographs,
    absorption_coefficients,
    spread_angles,
)
from anacor_dials.sample.materials import MaterialInput
from anacor_dials.sample.tomogram_files import SampleFile
from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.tomography.projections import read_projections
from anacor_dials.tomography.scan_files import ScanDescription

logger = logging.getLogger("dials.anacor_dials.jobs.coefficients")


@dataclass(frozen=True)
class CoefficientSettings:
    """When and how mu is taken from projections.

    Parameters
    ----------
    from_projections : bool, optional
        True: always, before the mu of the sample's file. False: never. None: for materials whose mu
        is neither given nor in the file, if the file points to its projections.
    projections : path, optional
        The scan; the one that the file points to if not given.
    description : ScanDescription
        What the files of the scan do not say.
    centre : float, optional
        Pixel number of the rotation axis across it, in the images as the camera took them. If not
        given, it is that of the file, else it is found by registering the labels.
    n_angles : int
        Number of projections, evenly spread over the scan.
    margin_um : float, optional
        How far from the edges of materials rays are left out, um; two Fresnel zones or two pixels
        if not given.
    """

    from_projections: bool | None = None
    projections: str | os.PathLike[str] | None = None
    description: ScanDescription = field(default_factory=ScanDescription)
    centre: float | None = None
    n_angles: int = 36
    margin_um: float | None = None


@dataclass(frozen=True, eq=False)
class ScanCoefficients:
    """mu from a scan.

    Attributes
    ----------
    fit : CoefficientFit
        The fit. Its images are upright: the rotation axis runs along their columns.
    scan : path
        The scan.
    centre_px : (float, float)
        Where the rotation axis is, across it, and the origin, along it: pixel numbers in the images
        as the camera took them, as `CoefficientSettings.centre` and scan_centre are.
    """

    fit: CoefficientFit
    scan: Path
    centre_px: tuple[float, float]


def coefficients_from_projections(
    sample: SampleFile,
    labels: LabelVolume,
    settings: CoefficientSettings,
    given: Mapping[str, MaterialInput],
) -> ScanCoefficients | None:
    """mu from the scan that the labels belong to; None where it is not wanted, or not needed.

    Parameters
    ----------
    sample : SampleFile
        mu that is known, and the path of the scan.
    labels : LabelVolume
        Its labels.
    settings : CoefficientSettings
        When and how.
    given : mapping of name to MaterialInput
        What the user says of materials.

    Raises
    ------
    ValueError
        If mu is asked for and the scan is absent or cannot be used. If it is not asked for, this is
        only logged.
    """
    asked = settings.from_projections is True
    if settings.from_projections is False or (not asked and _all_known(sample, labels, given)):
        return None
    path = Path(settings.projections) if settings.projections else sample.projections
    if path is None or not path.exists():
        absent = (
            f"{sample.path} does not point to its projections"
            if path is None
            else f"the projections {path} are not there"
        ) + "; name the scan by coefficients.projections=."
        if asked or settings.projections:
            raise ValueError(absent)
        logger.info("mu is not taken from projections: %s", absent)
        return None
    try:
        found = fit_scan(path, sample, labels, settings, given)
    except ValueError as error:
        if asked:
            raise
        logger.warning("mu cannot be taken from the projections: %s", error)
        return None
    logger.info("%r", found.fit)
    return found


def _all_known(sample: SampleFile, labels: LabelVolume, given: Mapping[str, MaterialInput]) -> bool:
    """Whether every material that has voxels has a mu, given or in the file."""
    counts = labels.counts()
    return all(
        name in given
        or not counts[label]
        or (sample.mu_per_um is not None and not math.isnan(sample.mu_per_um[label]))
        for label, name in enumerate(labels.names)
        if label
    )


def fit_scan(
    path: Path,
    sample: SampleFile,
    labels: LabelVolume,
    settings: CoefficientSettings,
    given: Mapping[str, MaterialInput],
) -> ScanCoefficients:
    """mu of a sample's labels from the scan in a file.

    Parameters
    ----------
    path : Path
        The scan.
    sample : SampleFile
        Its energy and the place of the rotation axis.
    labels : LabelVolume
        Its labels.
    settings : CoefficientSettings
        How mu is taken from the scan.
    given : mapping of name to MaterialInput
        What the user says of materials.

    Raises
    ------
    ValueError
        If the scan cannot be read or used.
    """
    scan = read_projections(path, settings.description)
    logger.info("%s: %r", path, scan)
    geometry = scan.geometry.upright()
    if geometry.energy_keV is None:
        geometry = replace(geometry, energy_keV=sample.energy_keV)
    if geometry.energy_keV is None:
        logger.warning(
            "The projections do not say their energy: it is taken as that of the diffraction; give "
            "projections.energy= (keV)."
        )
    which = spread_angles(scan.angles_deg, settings.n_angles)
    # the scan_centre of the file is of the scan that the file points to
    centre = sample.scan_centre if settings.projections is None else None
    if settings.centre is not None:
        middle = (scan.nx - 1) / 2
        centre = (settings.centre, centre[1] if centre else middle)
    axes = scan.geometry.axes
    compositions = {name: said.composition(name) for name, said in given.items()}
    fit = absorption_coefficients(
        Radiographs(
            scan.transmission(which),
            scan.angles_deg[which],
            geometry,
            None if centre is None else axes.upright_centre(centre, scan.shape),
        ),
        labels,
        compositions={name: c for name, c in compositions.items() if c is not None},
        margin_um=settings.margin_um,
    )
    # the camera's pixel numbers: the same formula leads back
    return ScanCoefficients(fit, path, axes.upright_centre(fit.centre, scan.shape))
