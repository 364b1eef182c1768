"""Robust linear least squares for mu, with an offset for each angle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anacor_dials.absorption.coefficients.ray_selection import LEAST_RAYS, LEAST_TRANSMISSION
from anacor_dials.sample.frames import FloatArray

# Of Huber's weights, in standard deviations: 95 % efficient for normal errors (Huber, Ann. Math.
# Statist. 35 (1964) 73).
HUBER = 1.345
# Standard deviation of -ln(beam / flat) that is assumed beforehand. Chosen by hand: beams drift by
# a per cent or two between flats.
OFFSET_SPREAD = 0.02


@dataclass(frozen=True, eq=False)
class Rays:
    """n rays, and how their -ln T depends on p parameters.

    Attributes
    ----------
    y : array (n,)
        -ln T.
    design : array (n, p)
        The first columns are lengths in the materials, um; the last one is refraction, 1/um.
    angle : array (n,) of int
        The number of the view.
    x_um : array (n,)
        The position along the rotation axis, um.
    in_sample : array (n,) of bool
    n_angles : int
    refraction_weight : float
        The weight, known beforehand, of the square of the last parameter.
    """

    y: FloatArray
    design: FloatArray
    angle: NDArray[np.int64]
    x_um: FloatArray
    in_sample: NDArray[np.bool_]
    n_angles: int
    refraction_weight: float


@dataclass(frozen=True, eq=False)
class NormalSums:
    """Weighted sums for the normal equations, in n_angles x n_bands cells of rays; p parameters.

    Attributes
    ----------
    dd : array (n_angles, n_bands, p, p)
        Products of two columns of the design.
    d : array (n_angles, n_bands, p)
        The columns of the design.
    w : array (n_angles, n_bands)
        The weights.
    dy : array (n_angles, n_bands, p)
        Products of the columns of the design and -ln T.
    y : array (n_angles, n_bands)
        -ln T.
    """

    dd: FloatArray
    d: FloatArray
    w: FloatArray
    dy: FloatArray
    y: FloatArray

    @classmethod
    def of(
        cls, rays: Rays, weights: FloatArray, band: NDArray[np.int64], n_bands: int
    ) -> NormalSums:
        """The sums of rays.

        Parameters
        ----------
        rays : Rays
            n rays.
        weights : array (n,)
        band : array (n,) of int
            The band of each ray.
        n_bands : int
        """
        p = rays.design.shape[1]
        n_cells = rays.n_angles * n_bands
        chosen = weights > 0
        cell = (rays.angle * n_bands + band)[chosen]
        d, w, y = rays.design[chosen], weights[chosen], rays.y[chosen]

        def total(values: FloatArray) -> FloatArray:
            sums: FloatArray = np.bincount(cell, values, n_cells).astype(np.float64)
            return sums.reshape(rays.n_angles, n_bands)

        weighted = d * w[:, None]
        dd = np.empty((rays.n_angles, n_bands, p, p))
        for i in range(p):
            for j in range(i, p):
                dd[..., i, j] = dd[..., j, i] = total(weighted[:, i] * d[:, j])
        return cls(
            dd,
            np.stack([total(weighted[:, i]) for i in range(p)], axis=-1),
            total(w),
            np.stack([total(weighted[:, i] * y) for i in range(p)], axis=-1),
            total(w * y),
        )

    def without(self, angles: Any = (), bands: Any = ()) -> NormalSums:
        """The sums with some angles or bands left out."""
        keep = np.ones(self.w.shape)
        keep[angles, :] = 0
        keep[:, bands] = 0
        k1, k2 = keep[..., None], keep[..., None, None]
        return NormalSums(self.dd * k2, self.d * k1, self.w * keep, self.dy * k1, self.y * keep)

    def equations(self) -> tuple[FloatArray, FloatArray]:
        """N (p, p) and r (p,) of N parameters = r, after elimination of the offsets."""
        d, w = self.d.sum(axis=1), self.w.sum(axis=1) + OFFSET_SPREAD**-2
        normal = self.dd.sum(axis=(0, 1)) - np.einsum("ai,aj,a->ij", d, d, 1 / w)
        right = self.dy.sum(axis=(0, 1)) - np.einsum("ai,a,a->i", d, self.y.sum(axis=1), 1 / w)
        return normal, right

    def solve(self, ridge: FloatArray) -> FloatArray:
        """The parameters (p,) of (N + ridge) parameters = r."""
        normal, right = self.equations()
        scale = np.sqrt(np.maximum(np.diag(normal + ridge), 1e-300))
        scaled = (normal + ridge) / np.outer(scale, scale)
        found: Any = np.linalg.lstsq(scaled, right / scale, rcond=1e-14)[0]
        return np.asarray(found / scale, dtype=np.float64)

    def offsets(self, parameters: FloatArray) -> FloatArray:
        """The offsets b (n_angles,) for given parameters."""
        w = self.w.sum(axis=1) + OFFSET_SPREAD**-2
        return np.asarray((self.y.sum(axis=1) - self.d.sum(axis=1) @ parameters) / w)


def faint_ridge(normal: FloatArray, m: int, refraction: float) -> FloatArray:
    """A ridge (p, p) that matters only if columns are zero or exactly proportional to each other.

    Parameters
    ----------
    normal : array (p, p)
        The matrix of the normal equations.
    m : int
        The number of materials.
    refraction : float
        The weight of the square of the last parameter.
    """
    ridge = np.zeros_like(normal)
    pairs = [(i, j) for i in range(m) for j in range(i)]
    ridge[:m, :m] = 1e-9 * float(np.trace(normal[:m, :m])) / m * pair_ridge(m, pairs)
    ridge[m, m] = refraction + 1e-6 * normal[m, m] + 1e-300
    return ridge


def pair_ridge(size: int, pairs: Sequence[tuple[int, int]]) -> FloatArray:
    """The matrix (size, size) of the sum over pairs (i, j) of (mu_i - mu_j)^2."""
    ridge = np.zeros((size, size))
    for i, j in pairs:
        d = np.zeros(size)
        d[i], d[j] = 1.0, -1.0
        ridge += np.outer(d, d)
    return ridge


def _scatter(y: FloatArray, residual: FloatArray, in_sample: NDArray[np.bool_]) -> FloatArray:
    """The scatter (n,) of the residuals as a function of the calculated -ln T, from medians.

    y: (n,) the calculated -ln T.
    """

    def spread(values: FloatArray) -> float:
        return 1.4826 * float(np.median(np.abs(values))) if len(values) else 0.0

    inside, tau = residual[in_sample], y[in_sample]
    edges = np.quantile(tau, np.linspace(0, 1, min(16, max(1, len(tau) // 100)) + 1))
    bins = np.clip(np.searchsorted(edges, tau, "right") - 1, 0, len(edges) - 2)
    occupied = np.unique(bins)
    middles = np.array([np.median(tau[bins == b]) for b in occupied])
    values = np.array([spread(inside[bins == b]) for b in occupied])
    floor = max(1e-6, 0.3 * float(np.median(values)))
    out = np.full(len(residual), max(spread(residual[~in_sample]), floor))
    out[in_sample] = np.interp(tau, middles, np.maximum(values, floor))
    return out


def robust_fit(rays: Rays, m: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The parameters, with weights 1 / scatter^2 times those of Huber, iterated.

    Parameters
    ----------
    rays : Rays
    m : int
        The number of materials.

    Returns
    -------
    parameters : array (p,)
    offsets : array (n_angles,)
    weights : array (n,)
        0 for rays that are too dark.

    Raises
    ------
    ValueError
        If too few rays through the sample are bright enough.
    """
    cut = -math.log(LEAST_TRANSMISSION)
    weights = (rays.y < cut).astype(np.float64)
    no_bands = np.zeros(len(rays.y), dtype=np.int64)
    parameters = np.zeros(rays.design.shape[1])
    offsets = np.zeros(rays.n_angles)
    for _ in range(10):
        before = parameters
        sums = NormalSums.of(rays, weights, no_bands, 1)
        parameters = sums.solve(faint_ridge(sums.equations()[0], m, rays.refraction_weight))
        offsets = sums.offsets(parameters)
        calculated = rays.design @ parameters
        residual = rays.y - calculated - offsets[rays.angle]
        # rays much darker than calculated are left out, too: clipped, or blocked by something else
        used = (calculated < cut) & (rays.y < 1.5 * cut)
        if np.count_nonzero(used & rays.in_sample) < LEAST_RAYS:
            raise ValueError(
                f"Only {np.count_nonzero(used & rays.in_sample)} rays through the sample have a "
                f"transmission above {LEAST_TRANSMISSION}: it is too opaque at this energy; give mu."
            )
        scatter = _scatter(calculated[used], residual[used], rays.in_sample[used])
        weights = np.zeros(len(used))
        ratio = np.maximum(np.abs(residual[used]) / scatter, 1e-9)
        weights[used] = np.minimum(1.0, HUBER / ratio) / scatter**2
        if np.all(np.abs(parameters - before)[:m] < 1e-5 * np.abs(parameters[:m]).max()):
            break
    return parameters, offsets, weights
