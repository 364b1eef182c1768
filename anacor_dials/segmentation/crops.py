"""Crops of slices that a network is trained on, drawn from a pool of samples and augmented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.segmentation.coarse_grid import BIN
from anacor_dials.segmentation.fringes import LENGTHS, N_VIEWS
from anacor_dials.segmentation.training_data import TrainingVolume, VolumePool

CENTRED = 0.75  # the share of crops that are centred on a voxel of a random class; chosen by hand


@dataclass(frozen=True)
class Augmentation:
    """How far crops are changed. Each change is drawn uniformly up to its limit.

    Parameters
    ----------
    zoom : float
        Factor on lengths; its logarithm is drawn uniformly, in both directions.
    gain, offset : float
        Of the values, in addition to the normalisation.
    contrast : float
        Change of the value of the crystal.
    fringes : float
        The share of crops whose fringes are partly undone, as if the scintillator were nearer.
    cupping : float
        A slow change of the values across the crop.
    noise : float
        Standard deviation of the added noise; little of it is added to the views without fringes.
    turn : bool
        Whether crops are turned by any angle.
    """

    zoom: float = 1.35
    gain: float = 0.06
    offset: float = 0.03
    contrast: float = 0.05
    fringes: float = 0.3
    cupping: float = 0.04
    noise: float = 0.06
    turn: bool = True


def _bilinear(
    rows: NDArray[np.float64], columns: NDArray[np.float64], shape: tuple[int, ...]
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """A function that interpolates planes of a shape linearly at some places.

    Beyond the edge of a plane its last values continue.
    """
    r = np.clip(rows, 0, shape[0] - 1)
    c = np.clip(columns, 0, shape[1] - 1)
    r0, c0 = (
        np.minimum(r.astype(np.intp), max(shape[0] - 2, 0)),
        np.minimum(c.astype(np.intp), max(shape[1] - 2, 0)),
    )
    fr, fc = (r - r0).astype(np.float32), (c - c0).astype(np.float32)
    down, right = (shape[1] if shape[0] > 1 else 0), (1 if shape[1] > 1 else 0)
    index = r0 * shape[1] + c0
    w00, w01, w10, w11 = (1 - fr) * (1 - fc), (1 - fr) * fc, fr * (1 - fc), fr * fc

    def at(plane: NDArray[Any]) -> NDArray[np.float32]:
        flat = np.ascontiguousarray(plane, dtype=np.float32).ravel()
        out: NDArray[np.float32] = w00 * flat[index]
        out += w01 * flat[index + right]
        out += w10 * flat[index + down]
        out += w11 * flat[index + down + right]
        return out

    return at


class CropSource:
    """Draws crops of slices, with neighbours and probabilities of the coarse pass, from a pool.

    Three of four crops are centred on a voxel of a class that is drawn at random, so that rare
    classes are seen often; the others are anywhere in the volume.

    Parameters
    ----------
    pool : VolumePool
    n_slices : int
        Neighbouring slices that the network sees together, odd.
    augmentation : Augmentation, optional
    """

    def __init__(
        self, pool: VolumePool, n_slices: int, augmentation: Augmentation | None = None
    ) -> None:
        self.pool, self.n_slices = pool, n_slices
        self.augmentation = augmentation or Augmentation()

    def draw(
        self, rng: np.random.Generator, crop: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
        """One crop, as the network takes it: slices, context and labels.

        Parameters
        ----------
        rng : Generator
        crop : int
            Edge in voxels.

        Returns
        -------
        slices : array (N_VIEWS n_slices, crop, crop)
        context : array (n_classes, crop, crop)
            Of the middle slice.
        labels : array (crop, crop)
            Of the middle slice.
        """
        a = self.augmentation
        pooled = self.pool.draw(rng)
        volume = pooled.volume
        label = int(rng.integers(len(volume.names))) if rng.random() < CENTRED else -1
        places = pooled.centres[label] if label >= 0 else np.empty(0, dtype=np.intp)
        if places.size:
            centre = np.array(
                np.unravel_index(int(places[rng.integers(places.size)]), volume.labels.shape),
                dtype=np.float64,
            )
        else:
            centre = rng.uniform(0.1, 0.9, 3) * (np.array(volume.labels.shape) - 1)
        order = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]])[int(rng.integers(3))]
        centre = centre[order]
        centre[1:] += rng.uniform(-0.25, 0.25, 2) * crop
        seen = volume.views.transpose(0, *(1 + order))
        labels = volume.labels.transpose(order)
        coarse = pooled.context.transpose(0, *(1 + order))
        zoom = float(np.exp(rng.uniform(-1, 1) * np.log(a.zoom)))
        angle = rng.uniform(0, 2 * np.pi) if a.turn else 0.5 * np.pi * int(rng.integers(4))
        mirror = 1.0 if rng.random() < 0.5 else -1.0
        upside = 1.0 if rng.random() < 0.5 else -1.0
        grid = (np.arange(crop) - (crop - 1) / 2) / zoom
        u, v = np.meshgrid(grid, grid * mirror, indexing="ij")
        cos, sin = np.cos(angle), np.sin(angle)
        y, z = centre[1] + cos * u - sin * v, centre[2] + sin * u + cos * v
        interpolated = _bilinear(y, z, labels.shape[1:])
        half = self.n_slices // 2
        slices = np.empty((N_VIEWS, self.n_slices, crop, crop), dtype=np.float32)
        # neighbours stay one voxel apart, at the nearest plane where the zoom moves them
        for k in range(self.n_slices):
            x = int(round(centre[0])) + round(upside * (k - half) / zoom)
            for view, values in enumerate(seen):
                slices[view, k] = interpolated(values[min(max(x, 0), values.shape[0] - 1)])
        x = min(max(int(round(centre[0])), 0), labels.shape[0] - 1)
        rows = np.clip(np.rint(y).astype(np.intp), 0, labels.shape[1] - 1)
        columns = np.clip(np.rint(z).astype(np.intp), 0, labels.shape[2] - 1)
        target = labels[x][rows, columns]
        place = min(max((x + 0.5) / BIN - 0.5, 0.0), coarse.shape[1] - 1.0)
        near = int(place)
        share = np.float32(place - near)
        planes = coarse[:, near].astype(np.float32)
        if share:
            planes += share * (coarse[:, near + 1].astype(np.float32) - planes)
        at = _bilinear((y + 0.5) / BIN - 0.5, (z + 0.5) / BIN - 0.5, planes.shape[1:])
        context = np.stack([at(plane) for plane in planes])
        self._change_values(slices, target, volume, rng)
        return slices.reshape(-1, crop, crop), context, target

    def _change_values(
        self,
        slices: NDArray[np.float32],
        target: NDArray[np.uint8],
        volume: TrainingVolume,
        rng: np.random.Generator,
    ) -> None:
        a = self.augmentation
        softness = (0.0, *LENGTHS)  # of what is added to each view
        plain = slices[0]
        if rng.random() < a.fringes:
            plain += rng.uniform(0, 0.8) * (slices[1] - plain)
        if rng.random() < 0.5:
            crystal = (target == volume.names.index("crystal")).astype(np.float32)
            change = rng.uniform(-1, 1) * a.contrast
            for view, length in zip(slices, softness, strict=True):
                view += change * scipy.ndimage.gaussian_filter(crystal, max(0.8, length))
        ramp = np.linspace(-1, 1, target.shape[0], dtype=np.float32)
        field_ = rng.uniform(-1, 1, 3) * a.cupping
        slow = field_[0] * ramp[:, None] + field_[1] * ramp[None, :]
        slow = slow + field_[2] * (ramp[:, None] ** 2 + ramp[None, :] ** 2)
        slices *= 1.0 + slow + rng.uniform(-1, 1) * a.gain
        slices += rng.uniform(-1, 1) * a.offset
        noise = rng.standard_normal(plain.shape).astype(np.float32)
        if rng.random() < 0.5:  # of a smoothing reconstruction
            noise = 2.0 * scipy.ndimage.gaussian_filter(noise, (0, 0.7, 0.7))
        amount = rng.uniform(0, a.noise)
        plain += amount * noise
        for view, length in zip(slices[1:], LENGTHS, strict=True):
            soft = scipy.ndimage.gaussian_filter(rng.standard_normal(noise.shape[1:]), length)
            left = amount / np.sqrt(8 * np.pi * length**3)  # of white noise, by the views' filter
            view += (left * soft / soft.std()).astype(np.float32)

    def batch(
        self, rng: np.random.Generator, size: int, crop: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
        """Crops as of :meth:`draw`, stacked.

        Parameters
        ----------
        rng : Generator
        size : int
            How many.
        crop : int
            Edge in voxels.
        """
        slices, context, labels = zip(*(self.draw(rng, crop) for _ in range(size)), strict=True)
        return np.stack(slices), np.stack(context), np.stack(labels)
