"""The views of a tomography scan beside the labels made of it: which ray crosses what, and where.

Views are averaged over blocks of pixels, so that at most some hundred thousand rays are traced; the
place of the rotation axis is found by registering the labels' thickness with what was measured.
Lengths in um, angles in degrees; frames as in :mod:`anacor_dials.sample.frames`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.signal
from numpy.typing import NDArray

from anacor_dials.absorption.ray_tracing import parallel_path_lengths
from anacor_dials.sample.frames import FloatArray, ImageAxes
from anacor_dials.sample.materials import wavelength_from_energy
from anacor_dials.sample.volumes import LabelVolume

UPRIGHT = ImageAxes(False, 1, 1)

RAYS_AT_A_TIME = 1_000_000
MOST_SLICES = 3  # of voxels, traced in a block
REGISTRATION_PIXELS = 96  # along the longer side, in the first search for the rotation axis
REGISTRATION_VIEWS = 12
LEAST_AGREEMENT = 0.5


@dataclass(frozen=True, eq=False)
class Radiographs:
    """Transmissions of the sample at some angles of a tomography scan, and their geometry.

    transmissions: (n_angles, rows, columns), corrected for flat and dark, NaN where unusable.
    angles_deg: (n_angles,). pixel_size_um: (along fast, along slow), at the sample. axes: how rows and
    columns lie in the tomo frame at rotation_angle = 0; upright (rows along X, columns along Y) unless
    given. centre: row or column number of the rotation axis, across it, and of the beam's centre, along
    it; None where unknown. energy_keV, distance_mm (sample to detector): None where unknown.
    Raises ValueError where the parts do not fit together or are not transmissions.
    """

    transmissions: NDArray[Any]
    angles_deg: FloatArray
    pixel_size_um: tuple[float, float]
    axes: ImageAxes = UPRIGHT
    centre: tuple[float, float] | None = None
    energy_keV: float | None = None
    distance_mm: float | None = None

    def __post_init__(self) -> None:
        t = np.asarray(self.transmissions)
        angles = np.asarray(self.angles_deg, dtype=np.float64)
        object.__setattr__(self, "transmissions", t)
        object.__setattr__(self, "angles_deg", angles)
        if t.ndim != 3 or 0 in t.shape or angles.shape != t.shape[:1]:
            raise ValueError(
                f"Transmissions of shape {t.shape} and angles of shape {angles.shape} do not belong "
                "together; (n_angles, rows, columns) and (n_angles,) are needed."
            )
        if not np.all(np.isfinite(angles)):
            raise ValueError("An angle of the scan is not a number; leave that projection out.")
        if len(np.unique(np.round(np.mod(angles, 180.0), 3))) < 3:
            raise ValueError(
                f"The transmissions are of {len(angles)} views along fewer than three directions; "
                "absorption coefficients need views from all around."
            )
        if not all(math.isfinite(p) and p > 0 for p in self.pixel_size_um):
            raise ValueError(
                f"The pixel size is {self.pixel_size_um} um; give projections.pixel_size= in um, at "
                "the sample."
            )
        usable = np.isfinite(t)
        if usable.mean() < 0.5:
            raise ValueError(
                f"{100 * (1 - usable.mean()):.0f} % of the transmissions are not numbers; see whether "
                "flats and darks belong to the scan."
            )
        typical = float(np.median(t[usable]))
        if not 0 < typical < 1.5:
            raise ValueError(
                f"The median transmission is {typical:.4g}; transmissions lie between 0 and 1 (images "
                "divided by their flat, not counts and not -ln T)."
            )
        if self.centre is not None and not all(math.isfinite(c) for c in self.centre):
            raise ValueError(f"The centre is {self.centre}; it must be two pixel numbers.")

    @property
    def upright(self) -> NDArray[Any]:
        """A view (n_angles, nx, ny): X, then Y at rotation_angle = 0."""
        return self.axes.upright(self.transmissions)

    @property
    def pixel_xy_um(self) -> tuple[float, float]:
        """Pixel size along X and along Y, um."""
        fast, slow = self.pixel_size_um
        return (fast, slow) if self.axes.transposed else (slow, fast)

    @property
    def upright_centre(self) -> tuple[float, float] | None:
        """Index (along X, along Y) of the upright images where the origin is seen; None if unknown."""
        if self.centre is None:
            return None
        across, along = self.centre
        _, nx, ny = self.upright.shape
        return self.axes.upright_index(along, nx, "x"), self.axes.upright_index(across, ny, "y")

    def raw_centre(self, x: float, y: float) -> tuple[float, float]:
        """An index of the upright images as (across, along) of the raw ones."""
        _, nx, ny = self.upright.shape
        return self.axes.upright_index(y, ny, "y"), self.axes.upright_index(x, nx, "x")

    @property
    def fresnel_zone_um(self) -> float | None:
        """sqrt(lambda z), the width of the first fringe; None where energy or distance are unknown."""
        if self.energy_keV is None or self.distance_mm is None:
            return None
        return math.sqrt(wavelength_from_energy(self.energy_keV) * 1e-4 * self.distance_mm * 1e3)

    def __repr__(self) -> str:
        n, rows, columns = self.transmissions.shape
        fast, slow = self.pixel_size_um
        return (
            f"Radiographs({n} of {rows} x {columns} pixels of {fast:g} x {slow:g} um, "
            f"{self.angles_deg.min():g} to {self.angles_deg.max():g} deg)"
        )


def spread_angles(angles_deg: FloatArray, n: int) -> NDArray[np.intp]:
    """Indices (at most n) of angles (n_angles,) evenly spread over the scan, in the scan's order."""
    if n < 3:
        raise ValueError(f"{n} angles were asked for; at least 3 are needed.")
    order = np.argsort(angles_deg, kind="stable")
    # the end is left out: it repeats the beginning where the scan is half a turn or a whole one
    picks = np.linspace(0, len(order), min(n, len(order)), endpoint=False).astype(np.intp)
    chosen: NDArray[np.intp] = np.sort(order[picks])
    return chosen


# ---- rays ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RayGrid:
    """Mean transmissions (k, gx, gy) of blocks of pixels, NaN where unusable.

    angles_deg: (k,); x_um: (gx,), u_um: (gy,) centres of the blocks, along and across the axis, from the
    origin.
    """

    transmissions: FloatArray
    angles_deg: FloatArray
    x_um: FloatArray
    u_um: FloatArray

    @property
    def step_um(self) -> FloatArray:
        return np.array(
            [c[1] - c[0] for c in (self.x_um, self.u_um)],
        )

    def path_lengths(self, labels: LabelVolume) -> NDArray[np.float32]:
        """Lengths (k, gx, gy, n_labels), means over the blocks.

        Across the axis of two rays, through the quarters of the block: one through the middle could run
        along the faces of voxels, always on the same side. Along the axis rays stay in their slice of
        voxels, so slices count with their share of the block; of thin slices three in a block are taken.
        """
        x, shares = _slices_of_blocks(self.x_um, float(self.step_um[0]), labels)
        u = (self.u_um[:, None] + np.array([-0.25, 0.25]) * self.step_um[1]).ravel()
        places = np.stack([m.ravel() for m in np.meshgrid(x, u, indexing="ij")], axis=1)
        n, gx, gy = len(labels.names), len(self.x_um), len(self.u_um)
        lengths = np.empty((len(self.angles_deg), gx, gy, n), dtype=np.float32)
        batch = max(1, RAYS_AT_A_TIME // len(places))
        weights = shares.astype(np.float32)
        for first in range(0, len(self.angles_deg), batch):
            some = slice(first, first + batch)
            rays = parallel_path_lengths(labels, places, self.angles_deg[some])
            for k, of_view in enumerate(rays.reshape(-1, len(x), gy, 2, n), first):
                both = 0.5 * (of_view[:, :, 0] + of_view[:, :, 1])
                lengths[k] = (weights @ both.reshape(len(x), -1)).reshape(gx, gy, n)
        return lengths


def _slices_of_blocks(
    x_um: FloatArray, step_um: float, labels: LabelVolume
) -> tuple[FloatArray, FloatArray]:
    """Where to trace along X (m,), and the share (gx, m) of each place in each block of step_um about x_um."""
    voxel = float(labels.voxel_size_um[0])
    if step_um > MOST_SLICES * voxel:
        inside = (np.arange(MOST_SLICES) + 0.5) / MOST_SLICES - 0.5
        places = (x_um[:, None] + inside * step_um).ravel()
        of_block = np.repeat(np.eye(len(x_um)), MOST_SLICES, axis=1)
        return places, of_block / MOST_SLICES
    places = (np.arange(labels.shape[0]) - labels.centre[0]) * voxel
    near = np.abs(places - x_um.mean()) < 0.5 * (len(x_um) * step_um + voxel)
    places = places[near]
    overlap = (0.5 * (step_um + voxel) - np.abs(x_um[:, None] - places)).clip(
        0, min(step_um, voxel)
    )
    return places, overlap / step_um


def _block_means(images: NDArray[Any], block: int) -> FloatArray:
    """Means (k, nx // block, ny // block) over blocks of usable pixels; NaN where most are not."""
    k, nx, ny = images.shape
    gx, gy = nx // block, ny // block
    out = np.empty((k, gx, gy))
    for i, image in enumerate(images):
        cut = image[: gx * block, : gy * block].reshape(gx, block, gy, block)
        usable = np.isfinite(cut)
        counts = usable.sum(axis=(1, 3))
        total = np.where(usable, cut, 0).sum(axis=(1, 3), dtype=np.float64)
        out[i] = np.where(2 * counts >= block * block, total / np.maximum(counts, 1), np.nan)
    return out


def ray_grid(
    radiographs: Radiographs,
    origin: tuple[float, float],
    x: tuple[int, int],
    y: tuple[int, int],
    block: int,
    which: NDArray[np.intp] | slice = slice(None),
) -> RayGrid:
    """The rays of pixels x[0]:x[1], y[0]:y[1] of the upright images, in blocks."""
    images = radiographs.upright[which, x[0] : x[1], y[0] : y[1]]
    mean = _block_means(images, block)
    places = [
        (first + (block - 1) / 2 + block * np.arange(n) - o) * pixel
        for first, n, o, pixel in zip(
            (x[0], y[0]), mean.shape[1:], origin, radiographs.pixel_xy_um, strict=True
        )
    ]
    return RayGrid(mean, radiographs.angles_deg[which], places[0], places[1])


def _extent_um(labels: LabelVolume) -> tuple[float, float, float]:
    """Where the sample is: lowest and highest X, and the farthest from the axis, um from the origin."""
    sample = labels.values > 0
    bounds = []
    for axis in range(3):
        seen = np.flatnonzero(sample.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(seen):
            raise ValueError("The labels hold nothing but background; segment the tomogram first.")
        ends = np.array([seen[0] - 0.5, seen[-1] + 0.5]) - labels.centre[axis]
        bounds.append(ends * labels.voxel_size_um[axis])
    reach = math.hypot(np.abs(bounds[1]).max(), np.abs(bounds[2]).max())
    return float(bounds[0][0]), float(bounds[0][1]), reach


def windows_on(
    radiographs: Radiographs, labels: LabelVolume, origin: tuple[float, float], margin_um: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last + 1 pixel, along X and Y, that see the sample and some background beside it."""
    low, high, reach = _extent_um(labels)
    first = -(labels.centre[0] + 0.5) * labels.voxel_size_um[0]
    last = first + labels.size_um[0]
    low, high = max(low - 2 * margin_um, first), min(high + 2 * margin_um, last)
    reach = 1.15 * reach + 2 * margin_um
    windows = []
    for ends, o, pixel, n in zip(
        ((low, high), (-reach, reach)),
        origin,
        radiographs.pixel_xy_um,
        radiographs.upright.shape[1:],
        strict=True,
    ):
        a, b = max(0, math.ceil(o + ends[0] / pixel)), min(n, math.floor(o + ends[1] / pixel) + 1)
        if b - a < 4:
            raise ValueError(
                f"The images of {' x '.join(str(m) for m in radiographs.transmissions.shape[1:])} "
                "pixels do not show the labelled sample; see whether pixel size, centre and image axes "
                "of the projections are those that the labels were made with."
            )
        windows.append((a, b))
    return windows[0], windows[1]


# ---- where the rotation axis is -----------------------------------------------------------------


def _register(
    radiographs: Radiographs,
    labels: LabelVolume,
    which: NDArray[np.intp],
    start: tuple[float, float],
    search: tuple[int, int],
    block: int,
) -> tuple[tuple[float, float], float]:
    """Upright index of the origin near `start`, by which thickness and -ln T agree best; and how well (0 to 1).

    The share of the sum of squares of -ln T that c * (thickness of all materials) explains, largest over
    shifts within +- search (pixels along X and Y); in blocks of pixels, a parabola between them.
    """
    _, nx, ny = radiographs.upright.shape
    grid = ray_grid(radiographs, start, (0, nx), (0, ny), block, which)
    wide = [max(1, math.ceil(s / block)) for s in search]
    seen = grid.transmissions > 0
    measured = -np.log(np.where(seen, grid.transmissions, 1.0))
    # more than the images show, so that every shift is compared with what would be seen
    x_um, u_um = (
        c[0] + np.arange(-w, len(c) + w) * step
        for c, w, step in zip((grid.x_um, grid.u_um), wide, grid.step_um, strict=True)
    )
    larger = RayGrid(grid.transmissions, grid.angles_deg, x_um, u_um)
    thickness = larger.path_lengths(labels).sum(axis=-1, dtype=np.float64)
    cross = np.zeros([2 * w + 1 for w in wide])
    norm = np.zeros_like(cross)
    for t, m, s in zip(thickness, measured, seen, strict=True):
        cross += scipy.signal.correlate(t, m, "valid", "fft")
        norm += scipy.signal.correlate(t * t, s.astype(float), "valid", "fft")
    total = float(np.sum(measured**2))
    floor = 1e-6 * float(norm.max())
    if not total > 0 or not floor > 0:
        raise ValueError("Nothing absorbs in these projections: there is no sample in the beam.")
    score = (
        np.where(norm > floor, np.clip(cross, 0, None) ** 2 / np.maximum(norm, floor), 0) / total
    )
    best = np.unravel_index(int(np.argmax(score)), score.shape)
    moved = []
    for axis, w in enumerate(wide):
        i = int(best[axis])
        line = np.moveaxis(score, axis, -1)[best[1 - axis]]
        fine = 0.0
        if 0 < i < len(line) - 1:
            curvature = line[i - 1] - 2 * line[i] + line[i + 1]
            fine = 0.5 * (line[i - 1] - line[i + 1]) / curvature if curvature < 0 else 0.0
        moved.append((i + fine - w) * block)
    # thickness from farther right fits: the origin is farther left
    return (start[0] - moved[0], start[1] - moved[1]), float(score[best])


def find_origin(radiographs: Radiographs, labels: LabelVolume) -> tuple[float, float]:
    """Index (along X, along Y) of the upright images at which the labels' origin is seen.

    By registration of the labels' thickness with -ln T, in ever smaller blocks of pixels, over a quarter of
    the image about its middle. Raises ValueError where nothing agrees.
    """
    n, nx, ny = radiographs.upright.shape
    which = np.unique(np.linspace(0, n - 1, min(n, REGISTRATION_VIEWS)).astype(np.intp))
    place = ((nx - 1) / 2, (ny - 1) / 2)
    search = (nx // 4, ny // 4)
    block = max(1, math.ceil(max(nx, ny) / REGISTRATION_PIXELS))
    while True:
        place, agreement = _register(radiographs, labels, which, place, search, block)
        finest = max(1, math.ceil(max(nx, ny) / (6 * REGISTRATION_PIXELS)))
        if block <= finest:
            break
        search = (2 * block, 2 * block)
        block = max(finest, block // 3)
    if agreement < LEAST_AGREEMENT:
        raise ValueError(
            f"The labels explain {100 * agreement:.0f} % of the projections at the best place of the "
            "rotation axis: they are not of this sample, or image axes, pixel size or angles are wrong."
        )
    return place
