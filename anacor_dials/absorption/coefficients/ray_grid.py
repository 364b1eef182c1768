"""Rays through blocks of pixels of radiographs, and their path lengths through the labels.

Views are averaged over blocks of pixels, so that some hundred thousand rays at most are traced.
Lengths are in um, angles in degrees; frames as in :mod:`anacor_dials.sample.frames`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anacor_dials.absorption.coefficients.radiographs import Radiographs
from anacor_dials.absorption.ray_tracing import parallel_path_lengths
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.volumes import LabelVolume

RAYS_AT_A_TIME = 1_000_000  # bounds the memory: 4 bytes per ray and label
# Blocks as long as so many slices of voxels, or fewer, count every slice; longer blocks are traced
# in as many places.
MOST_SLICES = 3


@dataclass(frozen=True, eq=False)
class RayGrid:
    """Mean transmissions of blocks of pixels.

    Attributes
    ----------
    transmissions : array (k, gx, gy)
        NaN where unusable.
    angles_deg : array (k,)
    x_um, u_um : array (gx,), array (gy,)
        Centres of the blocks along the rotation axis and across it, from the origin, um.
    """

    transmissions: FloatArray
    angles_deg: FloatArray
    x_um: FloatArray
    u_um: FloatArray

    @property
    def step_um(self) -> FloatArray:
        """The distance between blocks (2,) along X and Y, um."""
        return np.array(
            [c[1] - c[0] for c in (self.x_um, self.u_um)],
        )

    def path_lengths(self, labels: LabelVolume) -> NDArray[np.float32]:
        """Mean path lengths in each material (k, gx, gy, n_labels), um.

        Across the axis the mean is that of two rays, at a quarter and three quarters of the block:
        a ray through its middle could run along the faces of voxels, always on the same side. Along
        the axis a ray stays in its slice of voxels. Therefore slices count with their part of the
        block; blocks of more than MOST_SLICES slices are traced in MOST_SLICES places.
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
    """Positions (m,) to trace along X, um, and the weight (gx, m) of each in every block."""
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
    """Means (k, nx // block, ny // block) of usable pixels; NaN where most are unusable."""
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
    """The rays of a window of the upright images, in blocks of pixels.

    Parameters
    ----------
    radiographs : Radiographs
    origin : (float, float)
        Index of the upright images, along X and Y, at which the labels' origin is seen.
    x, y : (int, int)
        First pixel and last + 1 along X and Y.
    block : int
        The edge of a block, pixels.
    which : array of int or slice
        The views to take; all by default.
    """
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
    """Lowest and highest X of the sample, and its largest distance from the axis, um."""
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
    """The window of the upright images that shows the sample and some background beside it.

    Parameters
    ----------
    radiographs : Radiographs
    labels : LabelVolume
    origin : (float, float)
        Index of the upright images, along X and Y, at which the labels' origin is seen.
    margin_um : float
        Half the width of the background at each side, um.

    Returns
    -------
    x, y : (int, int)
        First pixel and last + 1 along X and Y.

    Raises
    ------
    ValueError
        If the images do not show the sample.
    """
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
