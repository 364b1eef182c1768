"""Radiographs calculated for given absorption coefficients, smoothed like the measured ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from anacor_dials.absorption.coefficients.ray_grid import RayGrid
from anacor_dials.sample.frames import FloatArray


@dataclass(frozen=True, eq=False)
class CalculatedViews:
    """Views calculated for some mu, with their derivatives.

    Attributes
    ----------
    calculated : array (k, gx, gy)
        -ln of the smoothed exp(-sum mu L).
    lengths : array (k, gx, gy, m)
        Its derivatives by mu: path lengths averaged with the transmission as weight, um.
    refraction : array (k, gx, gy)
        What refraction adds, per um of delta z of the crystal, 1/um.
    """

    calculated: FloatArray
    lengths: FloatArray
    refraction: FloatArray


def _smoothed(images: FloatArray, sigma: FloatArray) -> FloatArray:
    """Images (k, gx, gy) smoothed by a Gaussian of sigma (2,) blocks."""
    return scipy.ndimage.gaussian_filter(images, (0.0, *sigma), mode="nearest", truncate=3.0)


def measured_views(grid: RayGrid, sigma: FloatArray) -> FloatArray:
    """-ln of the smoothed transmissions (k, gx, gy), NaN where few of the pixels around are usable.

    sigma: (2,) of the Gaussian, in blocks.
    """
    usable = np.isfinite(grid.transmissions)
    weight = _smoothed(usable.astype(np.float64), sigma)
    total = _smoothed(np.where(usable, grid.transmissions, 0.0), sigma)
    good = (weight > 0.5) & (total > 0)
    return np.where(good, -np.log(np.where(good, total / np.maximum(weight, 0.5), 1.0)), np.nan)


def calculated_views(
    lengths: FloatArray,
    mu: FloatArray,
    delta: FloatArray,
    sigma: FloatArray,
    step_um: FloatArray,
) -> CalculatedViews:
    """Views as they should be, smoothed like the measured ones.

    Refraction: I(z) = I - z div(I grad(phase)) / k (Teague, J. Opt. Soc. Am. 73 (1983) 1434) with
    the phase -k sum delta L. Therefore -ln T changes by -z div(T grad(sum delta L)) / T.

    Parameters
    ----------
    lengths : array (k, gx, gy, m)
        Path lengths of the rays in m materials, um.
    mu : array (m,)
        1/um.
    delta : array (m,)
        delta of the refractive index 1 - delta + i beta, relative to that of the crystal.
    sigma : array (2,)
        Of the Gaussian, in blocks along X and Y.
    step_um : array (2,)
        The distance between rays along X and Y, um.
    """
    transmission = np.exp(-lengths @ mu)
    smooth = _smoothed(transmission, sigma)
    means = np.empty_like(lengths)
    for i in range(lengths.shape[-1]):
        means[..., i] = _smoothed(transmission * lengths[..., i], sigma) / smooth
    phase = lengths @ delta
    divergence = np.zeros_like(phase)
    for axis, step in zip((1, 2), step_um, strict=True):
        t, f = np.moveaxis(transmission, axis, -1), np.moveaxis(phase, axis, -1)
        flux = 0.5 * (t[..., 1:] + t[..., :-1]) * np.diff(f) / step**2
        divergence += np.moveaxis(np.diff(flux, prepend=0.0, append=0.0), -1, axis)
    return CalculatedViews(-np.log(smooth), means, -_smoothed(divergence, sigma) / smooth)
