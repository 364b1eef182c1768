"""What is decided before a reconstruction: rotation axis, voxels, library; and its diagnostics."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray, FloatImages
from anacor_dials.tomography.backprojection import choose_backend, reconstruct_slices
from anacor_dials.tomography.corrections import remove_rings
from anacor_dials.tomography.projections import Projections
from anacor_dials.tomography.ramp_filter import Sinograms
from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings
from anacor_dials.tomography.rotation_centre import RotationCentre, find_rotation_centre
from anacor_dials.tomography.sample_window import auto_crop, sample_rows, survey_of_sample
from anacor_dials.tomography.scan_angles import gaps_of, is_full_turn, largest_gap
from anacor_dials.tomography.sinograms import row_sinograms
from anacor_dials.tomography.slice_grid import SliceGrid

logger = logging.getLogger("dials.anacor_dials.tomography.reconstruction_plan")

WEDGE_DEG = 5.0  # wider gaps of the angles cause a warning; chosen by hand
# how far from the axis that was found the slice of the report is reconstructed
SWEEP_PIXELS = (-8, -4, -2, -1, 0, 1, 2, 4, 8)
SWEEP_PROJECTIONS = 450  # about so many are enough to show where the axis is
PICTURE_PIXELS = 300  # longest side of a picture in the report


@dataclass(frozen=True, eq=False)
class CentreSweep:
    """One slice, reconstructed with the rotation axis at several places.

    Attributes
    ----------
    centres : array (k,)
        Pixel numbers of the axis in the raw images.
    pictures : array (k, m, m)
        1/um.
    negativity : array (k,)
        The sum of negative values relative to the sum of all magnitudes. A wrong axis makes it
        larger.
    x : int
        Index of the slice.
    """

    centres: FloatArray
    pictures: FloatImages
    negativity: FloatArray
    x: int


@dataclass(eq=False)
class Diagnostics:
    """What the log and the report say about a reconstruction.

    Attributes
    ----------
    backend : str
    centre : float
        Pixel number of the rotation axis in the raw images.
    centre_method : str
        How it was found.
    centre_per_slice : tuple of float
        The same of single slices.
    n_projections : int
    angles_deg : (float, float)
        The least and the largest angle.
    largest_gap_deg : float
    full_turn : bool
        Whether the scan covers 360 degrees.
    clipped_percent, unusable_percent, zinger_percent : float
        Of all pixels that were used.
    phase_retrieved : bool
    seconds, seconds_per_slice : float
    sweep : CentreSweep or None
    sinogram_x : int
        Index of the slice of the following sinograms.
    sinogram_before, sinogram_after : array or None
        -ln T before and after zingers and rings were removed.
    slices : dict
        {"x", "y", "z": the middle slice across this axis, float32, 1/um, at reduced size}.
    histogram : (array, array) or None
        Edges and counts of mu of all voxels, or of evenly spread ones of a large tomogram.
    warnings : list of str
    """

    backend: str = ""
    centre: float = math.nan
    centre_method: str = ""
    centre_per_slice: tuple[float, ...] = ()
    n_projections: int = 0
    angles_deg: tuple[float, float] = (math.nan, math.nan)
    largest_gap_deg: float = math.nan
    full_turn: bool = False
    clipped_percent: float = 0.0
    unusable_percent: float = 0.0
    zinger_percent: float = 0.0
    phase_retrieved: bool = False
    seconds: float = math.nan
    seconds_per_slice: float = math.nan
    sweep: CentreSweep | None = None
    sinogram_x: int = 0
    sinogram_before: FloatImages | None = None
    sinogram_after: FloatImages | None = None
    slices: dict[str, FloatImages] = field(default_factory=dict)
    histogram: tuple[FloatArray, NDArray[np.int64]] | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class ReconstructionPlan:
    """What is decided before the first slab is reconstructed.

    Attributes
    ----------
    projections : Projections
    settings : ReconstructionSettings
    axis, beam : float
        Upright pixel numbers: of the rotation axis along Y, and of the beam's centre along X.
    x : (int, int)
        First and last + 1 pixel along X.
    grid : SliceGrid
        The voxels of a slice.
    backend : str
    diagnostics : Diagnostics
        More is filled in by the reconstruction.
    """

    projections: Projections
    settings: ReconstructionSettings
    axis: float
    beam: float
    x: tuple[int, int]
    grid: SliceGrid
    backend: str
    diagnostics: Diagnostics

    @property
    def shape(self) -> tuple[int, int, int]:
        """(nx, ny, nz) of the tomogram."""
        return (self.x[1] - self.x[0], *self.grid.shape)

    @property
    def voxel_size_um(self) -> FloatArray:
        """(3,) edge lengths along X, Y, Z."""
        along, across = self.projections.pixel_xy_um
        return np.array([along, across, across])

    @property
    def centre(self) -> FloatArray:
        """(3,) voxel index of the origin, where the beam's centre meets the rotation axis."""
        return np.array([self.beam - self.x[0], -self.grid.start[0], -self.grid.start[1]])

    @property
    def scan_centre(self) -> tuple[float, float]:
        """Pixel numbers in the raw images: of the axis, across it; of the beam, along it."""
        p = self.projections
        return p.geometry.axes.upright_centre((self.axis, self.beam), p.shape)


def thumbnail(image: FloatImages) -> FloatImages:
    """An image at reduced size: means over squares, the longer side at most PICTURE_PIXELS."""
    step = math.ceil(max(image.shape) / PICTURE_PIXELS)
    down, across = (min(step, n) for n in image.shape)
    rows, columns = image.shape[0] // down, image.shape[1] // across
    blocks = image[: rows * down, : columns * across].reshape(rows, down, columns, across)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float32)


def _sweep(sinogram: Sinograms, plan: ReconstructionPlan, x: int, pixel_um: float) -> CentreSweep:
    projections, n_u = plan.projections, plan.projections.ny
    offsets = np.array([d for d in SWEEP_PIXELS if 0 <= plan.axis + d <= n_u - 1], dtype=int)
    # an axis d pixels further on is a sinogram moved back by d: all are reconstructed at once
    some = slice(None, None, max(1, projections.n_angles // SWEEP_PROJECTIONS))
    pixels = (np.arange(n_u) + offsets[:, None]).clip(0, n_u - 1)
    moved = np.stack([sinogram[some, columns] for columns in pixels])
    images = reconstruct_slices(
        moved, projections.angles_deg[some], plan.axis, pixel_um, plan.grid,
        plan.settings.filter_name, plan.backend,
    )  # fmt: skip
    negativity = np.array([-i[i < 0].sum() / max(np.abs(i).sum(), 1e-30) for i in images])
    raw = np.array(
        [projections.geometry.axes.upright_index(plan.axis + float(d), n_u, "y") for d in offsets]
    )
    order = np.argsort(raw)
    pictures = np.stack([thumbnail(image) for image in images])
    return CentreSweep(raw[order], pictures[order], negativity[order], x)


def plan_reconstruction(
    projections: Projections, settings: ReconstructionSettings | None = None, pictures: bool = True
) -> ReconstructionPlan:
    """The plan of a reconstruction: rotation axis, voxels and library.

    Parameters
    ----------
    projections : Projections
    settings : ReconstructionSettings, optional
    pictures : bool
        Whether sinograms and a sweep of the axis are made for the report.

    Raises
    ------
    ValueError
        If the pixel size is unknown, the axis cannot be found or lies outside the detector, the
        crop is not within the volume, or a library that was asked for is not installed.
    """
    settings = settings or ReconstructionSettings()
    pixel_um = projections.pixel_xy_um[1]
    backend = choose_backend(settings.backend if settings.method == "fbp" else "numba")
    nx, ny = projections.shape
    upright = projections.geometry.axes.upright_index
    full = is_full_turn(projections.angles_deg)
    diagnostics = Diagnostics(
        backend=backend,
        n_projections=projections.n_angles,
        angles_deg=(float(projections.angles_deg.min()), float(projections.angles_deg.max())),
        largest_gap_deg=largest_gap(projections.angles_deg),
        full_turn=full,
        phase_retrieved=settings.paganin_delta_beta is not None,
        warnings=list(projections.findings.warnings),
    )
    _warn(projections, settings, diagnostics)
    which, survey = survey_of_sample(projections, settings)
    rows = sample_rows(survey)
    measured, sinograms = row_sinograms(projections, settings, rows)
    if settings.centre is None:
        logger.info("Looking for the rotation axis in %d slices", len(rows))
        clean = remove_rings(sinograms.copy(), settings.rings)
        found = find_rotation_centre(clean, projections.angles_deg, settings.centre_method)
    else:
        found = RotationCentre(upright(settings.centre, ny, "y"), "given by hand")
    if not 0 <= found.axis <= ny - 1:
        raise ValueError(
            f"The rotation centre {settings.centre} is outside the detector (0 to {ny - 1} pixels)."
        )
    beam = (nx - 1) / 2 if settings.beam_centre is None else upright(settings.beam_centre, nx, "x")
    # a whole turn with the axis aside sees as far as its long side reaches
    reach = max(found.axis, ny - 1 - found.axis)
    wide = full and reach > 0.55 * (ny - 1)
    grid = SliceGrid(2 * math.ceil(reach) + 1 if wide else ny)
    x = (0, nx)
    if settings.crop == "auto":
        whole = nx * grid.n**2
        x, grid = auto_crop(projections, which, survey, found.axis, grid)
        share = 100 * (x[1] - x[0]) * math.prod(grid.shape) / whole
        logger.info(
            "The sample's box alone is reconstructed, %.0f %% of the field of view (crop=auto)",
            share,
        )
    elif not isinstance(settings.crop, str):
        x0, x1, y0, y1, z0, z1 = settings.crop
        if not 0 <= x0 < x1 <= nx:
            raise ValueError(f"The crop x = {x0} to {x1} is not within the {nx} slices.")
        x, grid = (x0, x1), SliceGrid(grid.n, (y0, y1), (z0, z1))
    diagnostics.centre = upright(found.axis, ny, "y")
    diagnostics.centre_method = found.method
    diagnostics.centre_per_slice = tuple(upright(a, ny, "y") for a in found.per_slice)
    logger.info(
        "Rotation axis at pixel %.2f of %d (%s%s)",
        diagnostics.centre,
        ny,
        found.method,
        f", {len(found.per_slice)} slices, spread {found.spread:.2f}" if found.per_slice else "",
    )
    if found.spread > 1.0:
        diagnostics.warnings.append(
            f"The slices disagree about the rotation axis (spread {found.spread:.1f} pixels): look at the "
            "sweep, and give centre= by hand."
        )
        logger.warning(diagnostics.warnings[-1])
    plan = ReconstructionPlan(
        projections, settings, found.axis, beam, x, grid, backend, diagnostics
    )
    if pictures:
        middle = len(rows) // 2
        row = int(rows[middle])
        clean_row = remove_rings(sinograms[middle : middle + 1].copy(), settings.rings)[0]
        diagnostics.sinogram_x = row
        diagnostics.sinogram_before = thumbnail(measured[middle])
        diagnostics.sinogram_after = thumbnail(clean_row)
        diagnostics.sweep = _sweep(clean_row, plan, row, pixel_um)
    return plan


def _warn(
    projections: Projections, settings: ReconstructionSettings, diagnostics: Diagnostics
) -> None:
    """Adds warnings of few projections, of gaps and of phase retrieval to the diagnostics."""
    angles = projections.angles_deg
    step = float(np.median(np.abs(np.diff(np.sort(angles)))))
    wedges = gaps_of(angles, max(2.5 * step, WEDGE_DEG))
    if wedges:
        named = ", ".join(f"{begin:.1f} to {end:.1f}" for begin, end in wedges[:5])
        diagnostics.warnings.append(
            f"{sum(end - begin for begin, end in wedges):.1f} degrees of the half turn were not measured ("
            f"{named}): the projections beside them stand for them, so mu keeps its mean; surfaces that lie "
            "along the beam there are blurred and have streaks."
        )
    elif projections.n_angles * step < 0.25 * math.pi * projections.ny * step:
        diagnostics.warnings.append(
            f"{projections.n_angles} projections are few for {projections.ny} pixels: details far from the "
            "axis will have streaks."
        )
    if settings.paganin_delta_beta is not None:
        diagnostics.warnings.append(
            "Phases were retrieved (Paganin): good for segmentation, but mu is not to be taken from this "
            "tomogram."
        )
    for warning in diagnostics.warnings[len(projections.findings.warnings) :]:
        logger.warning(warning)
