"""The level of the beam in each projection, measured beside the sample, where T is 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray, FloatImages

# Chosen by hand.
AIR_SHARE = 0.02  # of the sample's largest -ln T; air has no more at any angle
LEAST_AREA = 0.02  # of the image; less may be the thin side of a sample that fills the image
LEAST_PIXELS = 4  # for small images, such as those of a test detector
MARGIN = (
    2  # small pixels between the sample and air: fringes, and what a pixel shares with the sample
)
ROUGH = 0.95  # this quantile of an image is air unless the sample fills the image


@dataclass(frozen=True, eq=False)
class BeamLevel:
    """The beam's level in each projection, relative to the flats.

    Attributes
    ----------
    level : array (n,)
        Measured in air; not a number if no air is seen.
    rough : array (n,)
        The 95th percentile of each image, which is the level if there is any air in it.
    air : array (kx, ky) of bool
        Where the level was measured; all False if no air is seen.
    """

    level: FloatArray
    rough: FloatArray
    air: NDArray[np.bool_]

    @property
    def seen(self) -> bool:
        """Whether air is seen."""
        return bool(self.air.any())


def rough_level(images: FloatImages) -> FloatArray:
    """The 95th percentile (n,) of each image (n, kx, ky); 0 where nothing is usable."""
    flat = images.reshape(len(images), -1)
    return np.array([np.quantile(v, ROUGH) if (v := f[~np.isnan(f)]).size else 0.0 for f in flat])


def _touching_the_sides(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The parts of a mask (kx, ky) that reach its first or last column."""
    parts, _ = scipy.ndimage.label(mask)
    touching = np.setdiff1d(np.union1d(parts[:, 0], parts[:, -1]), [0])
    return np.isin(parts, touching)


def find_air(images: FloatImages, level: FloatArray) -> NDArray[np.bool_]:
    """Where (kx, ky) no image (n, kx, ky) of a scan sees the sample.

    In air, at no angle is -ln T more than 2 % of the largest -ln T of the sample, apart from noise.
    Air reaches a side of the image and covers at least 2 % of its area. All is False where this
    cannot be decided. (A sample that fills the image cannot be mistaken for air: its -ln T would
    have to rise by more than 2 % within 1 % of the width.)

    level: (n,) the beam's approximate level in each image.
    """
    none = np.zeros(images.shape[1:], dtype=bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        absorbed = -np.log(np.maximum(images / level[:, None, None], 1e-3))
    absorbed[~np.isfinite(absorbed)] = 0.0
    # averages over neighbours in the image and in time reduce the noise by six
    scipy.ndimage.uniform_filter(absorbed, (5, 3, 3), output=absorbed, mode="nearest")
    high = np.quantile(absorbed, 0.95, axis=0)
    air = high < np.quantile(high, 0.02) + 0.1 * np.ptp(high)
    for _ in range(2):
        if air.sum() < LEAST_PIXELS:
            return none
        base = np.median(absorbed[:, air], axis=1)[:, None, None]
        noise = float(np.median(np.std(absorbed[:, air] - base[:, :, 0], axis=0)))
        high = np.quantile(absorbed - base, 0.95, axis=0)
        mean = np.mean(absorbed - base, axis=0)
        peak = float(np.quantile(high, 0.99))
        if not peak > 4 * noise:
            return none
        limit = AIR_SHARE * peak
        air = (high < limit + 2.5 * noise) & (
            np.abs(mean) < limit + 2 * noise / np.sqrt(len(images))
        )
        air = _touching_the_sides(air)
    # a margin from the sample; none from the border of the image
    margin = min(MARGIN, min(air.shape) // 8)
    if margin:
        structure = np.ones((2 * margin + 1, 2 * margin + 1), dtype=bool)
        air = scipy.ndimage.binary_erosion(air, structure, border_value=1)
    if air.sum() < max(LEAST_AREA * air.size, LEAST_PIXELS):
        return none
    return np.asarray(air)


def _level_in(values: FloatImages) -> FloatArray:
    """The median (n,) of the values (n, m) in air.

    Images whose medians differ by no more than noise get one common value.
    """
    values = np.nan_to_num(values)
    level = np.median(values, axis=1).astype(np.float64)
    middle = float(np.median(level))
    noise = (
        1.4826 * np.median(np.abs(values - level[:, None])) * np.sqrt(0.5 * np.pi / values.shape[1])
    )
    alike = np.abs(level - middle) < 4 * noise
    if alike.mean() > 0.5 and np.std(level[alike]) < 1.5 * noise:
        level[alike] = np.mean(level[alike])
    return level


def measure_beam(images: FloatImages, usable: NDArray[np.bool_]) -> BeamLevel:
    """The beam's level in each of some small images (n, kx, ky).

    usable: (n,) False for images that cannot be projections; they are not used to find air.
    """
    rough = rough_level(images)
    usable = usable & (rough > 0)
    air = np.zeros(images.shape[1:], dtype=bool)
    if usable.sum() >= 3:
        air = find_air(images[usable], rough[usable])
    level = np.full(len(images), np.nan)
    if air.any():
        level = _level_in(images[:, air])
    return BeamLevel(level, rough, air)
