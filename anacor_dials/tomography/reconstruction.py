"""Reconstruction: from the projections of a scan to a tomogram of mu in 1/um.

Slices across the rotation axis are independent: they are reconstructed in slabs along X that fit the
memory, each from its own rows of the detector.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from tqdm import tqdm

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.memory import available_memory_bytes, require_memory
from anacor_dials.sample.volumes import Tomogram
from anacor_dials.tomography.backprojection import LANES, choose_backend, reconstruct_slices
from anacor_dials.tomography.corrections import (
    FloatImages,
    bridge_unusable,
    check_ring_method,
    minus_log,
    paganin_length_um,
    remove_rings,
    remove_zingers,
    retrieve_phase,
    zinger_threshold,
)
from anacor_dials.tomography.iterative import (
    TotalVariation,
    bytes_of_a_batch,
    noise_of,
    require_whole_sample,
)
from anacor_dials.tomography.projections import Projections, read_projections
from anacor_dials.tomography.ramp_filter import FILTERS, Sinograms
from anacor_dials.tomography.rotation_centre import RotationCentre, find_rotation_centre
from anacor_dials.tomography.scan_angles import gaps_of, is_full_turn, largest_gap
from anacor_dials.tomography.scan_files import ScanDescription
from anacor_dials.tomography.slice_grid import SliceGrid

logger = logging.getLogger("dials.anacor_dials.tomography.reconstruction")

SURVEY_VIEWS = 36
CENTRE_SLICES = 3
SLAB = 64  # rows, or a multiple of it: whole chunks of tomo.h5
BATCH_BYTES = 2.0e8  # of transmissions corrected at a time
SUPPORT_SHARE = 0.02  # of the strongest absorption: what counts as sample when cropping
HISTOGRAM_BINS = 400
METHODS = ("fbp", "iterative")
NOISE_ROWS = 5  # rows in which the noise is measured
WEDGE_DEG = 5.0  # a gap of the angles that is worth a warning
SWEEP_PIXELS = (-8, -4, -2, -1, 0, 1, 2, 4, 8)
SWEEP_PROJECTIONS = 450  # about as many show where the axis is
PICTURE_PIXELS = 300  # longest side of a picture in the report


@dataclass(frozen=True)
class ReconstructionSettings:
    """The steps from transmissions to mu.

    centre: pixel number of the rotation axis in the raw images (a column where the axis runs along the
    rows' numbers, else a row), None to find it by centre_method (auto, opposite, vo, mass).
    beam_centre: pixel number of the beam's centre along the axis, None for the middle. zinger_threshold: in
    transmission, None not to look for zingers. least_transmission: smaller ones are taken as this. rings:
    off, light or strong. paganin_delta_beta: delta / beta for phase retrieval, None for none; for
    segmentation only, mu is wrong near edges. crop: "off", "auto", or the first and last + 1 voxel along
    X, Y, Z (six numbers) of the whole. filter_name: the window on the ramp. backend: auto, numba, torch,
    algotom, tomopy, astra. memory_gb: what slabs may take, None for half of what is free, at most 4.
    method: fbp, or iterative (:mod:`anacor_dials.tomography.iterative`), with regularisation as its strength.
    """

    centre: float | None = None
    centre_method: str = "auto"
    beam_centre: float | None = None
    zinger_threshold: float | None = 0.2
    least_transmission: float = 1e-3
    rings: str = "light"
    paganin_delta_beta: float | None = None
    crop: str | tuple[int, ...] = "auto"
    filter_name: str = "shepp-logan"
    backend: str = "auto"
    memory_gb: float | None = None
    method: str = "fbp"
    regularisation: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.least_transmission < 0.5:
            raise ValueError(
                f"The least transmission is {self.least_transmission}; it lies between 0 and 0.5 "
                "(0.001, say)."
            )
        if self.zinger_threshold is not None and not self.zinger_threshold > 0:
            raise ValueError(f"The zinger threshold is {self.zinger_threshold}; it must be > 0.")
        if self.paganin_delta_beta is not None and not self.paganin_delta_beta > 0:
            raise ValueError(f"delta / beta is {self.paganin_delta_beta}; it must be > 0.")
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise ValueError(f"The memory for slabs is {self.memory_gb} GB; it must be > 0.")
        if self.method not in METHODS:
            raise ValueError(f"The method is {self.method!r}; it is {' or '.join(METHODS)}.")
        if not (math.isfinite(self.regularisation) and self.regularisation > 0):
            raise ValueError(
                f"The regularisation is {self.regularisation}; it must be > 0 (1, say)."
            )
        if self.filter_name not in FILTERS:
            raise ValueError(
                f"The filter {self.filter_name!r} is unknown; choose one of {', '.join(FILTERS)}."
            )
        if isinstance(self.crop, str) and self.crop not in ("off", "auto"):
            raise ValueError(f"crop is {self.crop!r}; it is off, auto, or six voxel numbers.")
        if not isinstance(self.crop, str) and len(self.crop) != 6:
            raise ValueError(
                f"crop has {len(self.crop)} numbers; it is the first and last + 1 voxel along X, Y and Z."
            )
        check_ring_method(self.rings)


@dataclass(frozen=True, eq=False)
class CentreSweep:
    """One slice reconstructed with the axis at several places.

    centres: (k,) pixel numbers in the raw images; pictures: (k, m, m) 1/um; negativity: (k,) the sum of
    negative values relative to that of all magnitudes (a wrong axis makes more); x: the slice's index.
    """

    centres: FloatArray
    pictures: FloatImages
    negativity: FloatArray
    x: int


@dataclass(eq=False)
class Diagnostics:
    """What is to be known about a reconstruction, for the log and the report.

    Percentages are of all pixels that were used. slices: the middle slice across "x", "y", "z", float32
    1/um, thinned out; histogram: (edges, counts) of mu; sinogram_before, sinogram_after: -ln T of
    the slice `sinogram_x` before and after zingers and rings were removed.
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


class Sink(Protocol):
    """Where slabs go: an array, or a data set in a file."""

    def __setitem__(self, key: Any, value: Any) -> None: ...


@dataclass(frozen=True, eq=False)
class ReconstructionPlan:
    """Everything that is decided before the first slab is reconstructed.

    axis, beam: upright pixel numbers of the rotation axis along Y and of the beam's centre along X.
    x: first and last + 1 pixel along X; grid: the voxels of a slice.
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
        along, across = self.projections.pixel_xy_um
        return np.array([along, across, across])

    @property
    def centre(self) -> FloatArray:
        """(3,) voxel index of the origin, where the beam's centre meets the rotation axis."""
        return np.array([self.beam - self.x[0], -self.grid.start[0], -self.grid.start[1]])

    @property
    def scan_centre(self) -> tuple[float, float]:
        """Pixel numbers in the raw images: of the axis, across it, and of the beam's centre, along it."""
        p = self.projections
        return (
            p.axes.upright_index(self.axis, p.ny, "y"),
            p.axes.upright_index(self.beam, p.nx, "x"),
        )


@dataclass
class _Counts:
    pixels: int = 0
    clipped: int = 0
    unusable: int = 0
    zingers: int = 0


def _halo(projections: Projections, settings: ReconstructionSettings) -> int:
    """Rows beyond a slab that its corrections look at."""
    halo = 0 if settings.zinger_threshold is None else 1
    if settings.paganin_delta_beta is not None:
        halo += math.ceil(6 * _paganin_length(projections, settings) / projections.pixel_xy_um[0])
    return halo


def _paganin_length(projections: Projections, settings: ReconstructionSettings) -> float:
    assert settings.paganin_delta_beta is not None
    if projections.energy_keV is None or projections.distance_mm is None:
        raise ValueError(
            "Phase retrieval needs the photon energy and the distance from sample to detector; give "
            "projections.energy= (keV) and projections.distance= (mm)."
        )
    return paganin_length_um(
        projections.energy_keV, projections.distance_mm, settings.paganin_delta_beta
    )


def _batches(projections: Projections, nx: int) -> Iterator[slice]:
    step = max(1, int(BATCH_BYTES / (4 * nx * projections.ny)))
    for first in range(0, projections.n_angles, step):
        yield slice(first, min(first + step, projections.n_angles))


def attenuation(
    projections: Projections,
    settings: ReconstructionSettings,
    which: slice | NDArray[np.intp],
    x: tuple[int, int],
    counts: _Counts | None = None,
) -> FloatImages:
    """-ln T (k, nx', ny), upright, of some projections within rows x: cleaned, not yet free of rings."""
    counts = counts if counts is not None else _Counts()
    halo = _halo(projections, settings)
    low, high = max(x[0] - halo, 0), min(x[1] + halo, projections.nx)
    images = projections.transmission(which, slice(low, high))
    counts.unusable += int(bridge_unusable(images))
    if settings.zinger_threshold is not None:
        images, zingers = remove_zingers(
            images, zinger_threshold(images, settings.zinger_threshold)
        )
        counts.zingers += int(zingers)
    if settings.paganin_delta_beta is not None:
        length = _paganin_length(projections, settings)
        images = retrieve_phase(images, length, projections.pixel_xy_um)
    images = np.ascontiguousarray(images[:, x[0] - low : images.shape[1] - (high - x[1])])
    counts.clipped += int(minus_log(images, settings.least_transmission))
    counts.pixels += images.size
    return images


def slab_sinograms(
    projections: Projections,
    settings: ReconstructionSettings,
    x: tuple[int, int],
    counts: _Counts | None = None,
) -> Sinograms:
    """Sinograms (nx', n_angles, ny) of the rows x, -ln T, cleaned, free of rings."""
    sinograms = np.empty((x[1] - x[0], projections.n_angles, projections.ny), dtype=np.float32)
    for batch in _batches(projections, x[1] - x[0] + 2 * _halo(projections, settings)):
        images = attenuation(projections, settings, batch, x, counts)
        sinograms[:, batch] = images.transpose(1, 0, 2)
    return remove_rings(sinograms, settings.rings)


def row_sinograms(
    projections: Projections, settings: ReconstructionSettings, rows: NDArray[np.intp]
) -> tuple[Sinograms, Sinograms]:
    """Sinograms (len(rows), n_angles, ny) of single rows, -ln T: as measured, and without zingers.

    In one pass over the images; rings are left in both.
    """
    shape = (len(rows), projections.n_angles, projections.ny)
    measured, clean = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
    # each with its neighbours, which tell what a zinger is
    trios = (rows[:, None] + np.array([-1, 0, 1])).clip(0, projections.nx - 1).ravel()
    for batch in _batches(projections, int(rows.max() - rows.min()) + 3):
        images = projections.transmission(batch, trios)
        bridge_unusable(images)
        for sinograms, zingers in ((measured, False), (clean, True)):
            if zingers and settings.zinger_threshold is not None:
                threshold = zinger_threshold(images, settings.zinger_threshold)
                images, _ = remove_zingers(images, threshold)
            single = np.ascontiguousarray(images[:, 1::3])
            minus_log(single, settings.least_transmission)
            sinograms[:, batch] = single.transpose(1, 0, 2)
    return measured, clean


def _survey(
    projections: Projections, settings: ReconstructionSettings
) -> tuple[NDArray[np.intp], FloatImages]:
    """(indices, -ln T (k, nx, ny)) of some projections around the turn, 0, 90, 180 ... degrees among them."""
    n = projections.n_angles
    chosen = set(np.linspace(0, n - 1, min(n, SURVEY_VIEWS)).astype(int).tolist())
    for angle in np.arange(0.0, 360.0, 90.0):
        off = np.abs(np.mod(projections.angles_deg - angle + 180.0, 360.0) - 180.0)
        chosen.add(int(np.argmin(off)))
    which = np.array(sorted(chosen))
    plain = replace(settings, paganin_delta_beta=None)
    images = [
        attenuation(projections, plain, which[k : k + 1], (0, projections.nx))[0]
        for k in range(len(which))
    ]
    return which, np.stack(images)


def _sample_rows(survey: FloatImages) -> NDArray[np.intp]:
    """Rows, spread over the sample, in which the centre is looked for; the strongest is the middle one."""
    profile = scipy.ndimage.uniform_filter1d(survey.clip(0).sum(axis=(0, 2)), 5, mode="nearest")
    if not profile.max() > 0:
        raise ValueError("Nothing absorbs in this scan: there is no sample in the beam.")
    strong = np.flatnonzero(profile >= 0.5 * profile.max())
    picks = strong[np.linspace(0, len(strong) - 1, CENTRE_SLICES + 2)[1:-1].astype(int)]
    return np.unique(np.append(picks, np.argmax(profile)))


def _support(images: FloatImages, axis: int) -> tuple[int, int]:
    """First and last + 1 pixel, along one axis of images (k, nx, ny), that sees sample."""
    smooth = scipy.ndimage.uniform_filter(images, (0, 5, 5), mode="nearest")
    noise = 1.4826 * float(np.median(np.abs(smooth - np.median(smooth))))
    threshold = max(
        SUPPORT_SHARE * float(np.percentile(smooth, 99.9)),
        min(5 * noise, 0.1 * float(smooth.max())),
    )
    # a few pixels above the threshold in a line, not one
    across = np.sum(smooth > threshold, axis=2 if axis == 1 else 1)
    seen = np.flatnonzero(np.any(across >= 3, axis=0))
    if not seen.size:
        return 0, images.shape[axis]
    margin = 8 + int(0.03 * images.shape[axis])
    return max(int(seen[0]) - margin, 0), min(int(seen[-1]) + 1 + margin, images.shape[axis])


def _auto_crop(
    projections: Projections,
    which: NDArray[np.intp],
    survey: FloatImages,
    axis: float,
    grid: SliceGrid,
) -> tuple[tuple[int, int], SliceGrid]:
    """The rows and the window of a slice that hold the sample, with a margin."""
    x = _support(survey, 1)
    angles = projections.angles_deg[which]
    middle = (grid.n - 1) / 2
    windows = []
    for towards in (0.0, 90.0):  # u = y at 0, u = -z at 90 degrees
        off = np.mod(angles - towards + 90.0, 180.0) - 90.0
        k = int(np.argmin(np.abs(off)))
        if abs(off[k]) > 5.0:
            windows.append((0, grid.n))
            continue
        first, stop = _support(survey[k : k + 1, x[0] : x[1]], 2)
        low, high = first - axis, stop - 1 - axis
        view = np.deg2rad(angles[k])
        if (np.cos(view) if towards == 0.0 else -np.sin(view)) < 0:
            low, high = -high, -low
        # seen from up to five degrees aside, the sample's depth adds to its width
        aside = abs(math.sin(math.radians(float(off[k])))) * max(abs(low), abs(high))
        windows.append(
            (
                max(0, math.floor(middle + low - aside)),
                min(grid.n, math.ceil(middle + high + aside) + 1),
            )
        )
    return x, SliceGrid(grid.n, windows[0], windows[1])


def _picture(image: FloatImages) -> FloatImages:
    """An image, averaged over squares until its longer side is a picture's."""
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
        [projections.axes.upright_index(plan.axis + float(d), n_u, "y") for d in offsets]
    )
    order = np.argsort(raw)
    pictures = np.stack([_picture(image) for image in images])
    return CentreSweep(raw[order], pictures[order], negativity[order], x)


def plan_reconstruction(
    projections: Projections, settings: ReconstructionSettings | None = None, pictures: bool = True
) -> ReconstructionPlan:
    """Finds the rotation centre and the voxels to reconstruct; with the report's first pictures.

    Raises ValueError where the pixel size is unknown, the centre cannot be found or lies outside the
    detector, the crop is not within the volume, or a library that was asked for is not installed.
    """
    settings = settings or ReconstructionSettings()
    pixel_um = projections.pixel_xy_um[1]
    backend = choose_backend(settings.backend if settings.method == "fbp" else "numba")
    nx, ny = projections.nx, projections.ny
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
    which, survey = _survey(projections, settings)
    rows = _sample_rows(survey)
    measured, sinograms = row_sinograms(projections, settings, rows)
    if settings.centre is None:
        logger.info("Looking for the rotation axis in %d slices", len(rows))
        clean = remove_rings(sinograms.copy(), settings.rings)
        found = find_rotation_centre(clean, projections.angles_deg, settings.centre_method)
    else:
        found = RotationCentre(
            projections.axes.upright_index(settings.centre, ny, "y"), "given by hand"
        )
    if not 0 <= found.axis <= ny - 1:
        raise ValueError(
            f"The rotation centre {settings.centre} is outside the detector (0 to {ny - 1} pixels)."
        )
    beam = (
        (nx - 1) / 2
        if settings.beam_centre is None
        else projections.axes.upright_index(settings.beam_centre, nx, "x")
    )
    # a whole turn with the axis aside sees as far as its long side reaches
    reach = max(found.axis, ny - 1 - found.axis)
    wide = full and reach > 0.55 * (ny - 1)
    grid = SliceGrid(2 * math.ceil(reach) + 1 if wide else ny)
    x = (0, nx)
    if settings.crop == "auto":
        x, grid = _auto_crop(projections, which, survey, found.axis, grid)
    elif not isinstance(settings.crop, str):
        x0, x1, y0, y1, z0, z1 = settings.crop
        if not 0 <= x0 < x1 <= nx:
            raise ValueError(f"The crop x = {x0} to {x1} is not within the {nx} slices.")
        x, grid = (x0, x1), SliceGrid(grid.n, (y0, y1), (z0, z1))
    upright = projections.axes.upright_index
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
        diagnostics.sinogram_before = _picture(measured[middle])
        diagnostics.sinogram_after = _picture(clean_row)
        diagnostics.sweep = _sweep(clean_row, plan, row, pixel_um)
    return plan


def _warn(
    projections: Projections, settings: ReconstructionSettings, diagnostics: Diagnostics
) -> None:
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


def _slab_rows(plan: ReconstructionPlan) -> int:
    """How many slices fit the memory at once: a multiple of SLAB, or of LANES where that is too much."""
    free = available_memory_bytes()
    memory_gb = plan.settings.memory_gb
    budget = memory_gb * 1e9 if memory_gb is not None else min(4e9, 0.5 * free if free else 4e9)
    ny, nz = plan.grid.shape
    p = plan.projections
    # filtered sinograms, their transforms, and the batch of images being corrected
    width = 2 * p.ny + 3 * plan.grid.radius
    fixed = LANES * (4.0 * p.n_angles * width + 8.0 * ny * nz) + 4 * BATCH_BYTES
    if plan.settings.method == "iterative":
        fixed += bytes_of_a_batch(p.n_angles, p.ny, (plan.grid.n, plan.grid.n))
    row = 4.0 * p.n_angles * p.ny + 4.0 * ny * nz
    rows = int((budget - fixed) / row)
    if rows >= SLAB:
        return min(rows - rows % SLAB, -(-plan.shape[0] // SLAB) * SLAB)
    return max(LANES, rows - rows % LANES)


def _method(plan: ReconstructionPlan) -> Callable[[Sinograms], FloatImages]:
    """What makes slices of sinograms."""
    projections, settings = plan.projections, plan.settings
    if settings.method == "fbp":
        return lambda sinograms: reconstruct_slices(
            sinograms,
            projections.angles_deg,
            plan.axis,
            projections.pixel_xy_um[1],
            plan.grid,
            settings.filter_name,
            plan.backend,
        )
    nx = plan.shape[0]
    logger.info("Iterative reconstruction: total variation, positivity; slower than fbp")
    rows = np.unique(np.linspace(nx // 4, max(nx - 1 - nx // 4, nx // 4), NOISE_ROWS).astype(int))
    _, sinograms = row_sinograms(projections, settings, plan.x[0] + rows)
    require_whole_sample(sinograms)
    # a crop given by hand may cut the sample, whose other parts are in the images, too
    by_hand = not isinstance(settings.crop, str)
    solver = TotalVariation.of_scan(
        projections.angles_deg,
        plan.axis,
        projections.ny,
        projections.pixel_xy_um,
        SliceGrid(plan.grid.n) if by_hand else plan.grid,
        noise_of(sinograms),
        settings.regularisation,
    )
    if not by_hand:
        return solver.slices
    window = (slice(None), *(slice(*ends) for ends in plan.grid.windows))
    return lambda sinograms: solver.slices(sinograms)[window]


def _slabs(
    plan: ReconstructionPlan, rows: int, counts: _Counts
) -> Iterator[tuple[int, FloatImages]]:
    """(first slice, slices (m, ny, nz)) one after the other, at most a tenth of all or SLAB at a time.

    rows: how many sinograms are held at once.
    """
    projections, settings = plan.projections, plan.settings
    nx = plan.shape[0]
    slices_of = _method(plan)
    some = max(SLAB, -(-nx // (10 * SLAB)) * SLAB)
    for begin in range(0, nx, rows):
        end = min(begin + rows, nx)
        sinograms = slab_sinograms(
            projections, settings, (plan.x[0] + begin, plan.x[0] + end), counts
        )
        for first in range(begin, end, some):
            last = min(first + some, end)
            slab = slices_of(sinograms[first - begin : last - begin])
            if not np.all(np.isfinite(slab)):
                raise ValueError(
                    f"Slices {first} to {last - 1} are not numbers: the projections hold values that "
                    "cannot be used."
                )
            yield first, slab


def reconstruct(plan: ReconstructionPlan, out: Sink | None = None) -> Tomogram | None:
    """The tomogram, slab by slab; into `out` where it is given (then None comes back).

    out: an array or data set (nx, ny, nz), see :attr:`ReconstructionPlan.shape`. Fills in the plan's
    diagnostics: clipped pixels, slices, the histogram of mu, seconds.
    """
    projections, settings, diagnostics = plan.projections, plan.settings, plan.diagnostics
    nx, ny, nz = plan.shape
    values = None
    if out is None:
        require_memory(4.0 * nx * ny * nz, f"A tomogram of {nx} x {ny} x {nz} voxels")
        out = values = np.empty(plan.shape, dtype=np.float32)
    rows = _slab_rows(plan)
    logger.info(
        "Reconstructing %d slices of %d x %d voxels from %d projections by %s, %d slices at a time",
        nx, ny, nz, projections.n_angles, plan.backend, min(rows, nx),
    )  # fmt: skip
    counts = _Counts()
    start = time.perf_counter()
    pieces: dict[str, list[FloatImages]] = {"y": [], "z": []}
    histogram: NDArray[np.int64] | None = None
    edges: FloatArray = np.empty(0)
    tenths = 0
    with tqdm(total=nx, unit="slice", desc="Reconstructing", disable=None) as progress:
        for first, slab in _slabs(plan, rows, counts):
            last = first + len(slab)
            out[first:last] = slab
            if histogram is None:
                low, high = np.percentile(slab, (0.01, 99.99))
                room = 0.25 * max(high - low, 1e-9)
                edges = np.linspace(low - room, high + room, HISTOGRAM_BINS + 1)
                histogram = np.zeros(HISTOGRAM_BINS, dtype=np.int64)
            for plane in slab:
                histogram += np.histogram(plane.clip(edges[0], edges[-1]), edges)[0]
            if first <= nx // 2 < last:
                diagnostics.slices["x"] = _picture(slab[nx // 2 - first])
            pieces["y"].append(slab[:, ny // 2].copy())
            pieces["z"].append(slab[:, :, nz // 2].copy())
            progress.update(last - first)
            if (
                progress.disable and 10 * last // nx > tenths
            ):  # a batch job's log shows how far it is
                tenths = 10 * last // nx
                seconds = time.perf_counter() - start
                logger.info("  %d %% of the slices after %.0f s", 10 * tenths, seconds)
    for name, parts in pieces.items():
        diagnostics.slices[name] = _picture(np.concatenate(parts))
    assert histogram is not None
    diagnostics.histogram = (edges, histogram)
    diagnostics.seconds = time.perf_counter() - start
    diagnostics.seconds_per_slice = diagnostics.seconds / nx
    diagnostics.clipped_percent = 100 * counts.clipped / counts.pixels
    diagnostics.unusable_percent = 100 * counts.unusable / counts.pixels
    diagnostics.zinger_percent = 100 * counts.zingers / counts.pixels
    logger.info(
        "%.1f s, %.3f s per slice; %.3f %% of the transmissions were below %g and clipped, %.3f %% of the "
        "pixels unusable, %.3f %% zingers",
        diagnostics.seconds,
        diagnostics.seconds_per_slice,
        diagnostics.clipped_percent,
        settings.least_transmission,
        diagnostics.unusable_percent,
        diagnostics.zinger_percent,
    )
    if diagnostics.clipped_percent > 1.0:
        diagnostics.warnings.append(
            f"{diagnostics.clipped_percent:.1f} % of the transmissions were clipped: mu comes out too low; "
            "lower least_transmission, or take the scan at a higher energy."
        )
        logger.warning(diagnostics.warnings[-1])
    if values is None:
        return None
    return Tomogram(values, plan.voxel_size_um, plan.centre)


def reconstruct_scan(
    path: str | os.PathLike[str],
    description: ScanDescription | None = None,
    settings: ReconstructionSettings | None = None,
) -> tuple[Tomogram, ReconstructionPlan]:
    """The tomogram of a scan, in memory, and how it was made (with its diagnostics).

    description: what the file does not say; settings: the steps. Raises ValueError as
    :func:`read_projections` and :func:`plan_reconstruction` do.
    """
    plan = plan_reconstruction(read_projections(path, description), settings)
    tomogram = reconstruct(plan)
    assert tomogram is not None
    return tomogram, plan
