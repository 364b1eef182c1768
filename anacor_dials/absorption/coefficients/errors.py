"""Standard errors of mu, and materials that cannot be told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from anacor_dials.absorption.coefficients.from_composition import CORRELATED_RAYS
from anacor_dials.absorption.coefficients.least_squares import (
    NormalSums,
    Rays,
    faint_ridge,
    pair_ridge,
)
from anacor_dials.sample.frames import FloatArray

# Groups for the jackknife. Its own relative error is about 1 / sqrt(2 (g - 1)): a fifth for twelve.
# Each must be longer than the correlation between neighbouring rays, so more of them are not
# better.
ANGLE_BLOCKS = 12
SLICE_BANDS = 8
# Two materials cannot be told apart if the error of one is above INDISTINCT_ERROR of the mean mu
# and the correlation of their errors is below INDISTINCT_CORRELATION. Their difference is then
# taken as 0 +- RIDGE_SPREAD of the mean mu; where the data determine it to 5 %, this changes
# little. Chosen by hand: mu of crystal and liquor usually differ by less than 10 %.
INDISTINCT_ERROR = 0.05
INDISTINCT_CORRELATION = -0.7
RIDGE_SPREAD = 0.1


def _jackknife(replicates: FloatArray) -> FloatArray:
    """Standard errors (p,) from delete-a-block replicates (g, p)."""
    g = len(replicates)
    variance = (g - 1) / g * np.sum((replicates - replicates.mean(axis=0)) ** 2, axis=0)
    return np.sqrt(np.asarray(variance))


def _angle_blocks(angles_deg: FloatArray) -> tuple[NDArray[np.int64], int]:
    """The block of neighbouring angles of each angle (n_angles,); the number of blocks."""
    n = min(ANGLE_BLOCKS, len(angles_deg))
    rank = np.argsort(np.argsort(np.mod(angles_deg, 180.0), kind="stable"))
    return (rank * n) // len(angles_deg), n


def _bands(rays: Rays, column: int) -> tuple[NDArray[np.int64], int]:
    """The number of the band of slices of each ray (n,); the number of bands.

    Each band has equally many rays through the material of this column.
    """
    inside = rays.x_um[rays.design[:, column] > 0.1 * rays.design[:, column].max()]
    edges = np.unique(np.quantile(inside, np.linspace(0, 1, SLICE_BANDS + 1)[1:-1]))
    return np.searchsorted(edges, rays.x_um, "right").astype(np.int64), len(edges) + 1


@dataclass(frozen=True, eq=False)
class Solution:
    """The solution for m materials.

    Attributes
    ----------
    mu, error : array (m,)
        mu and its standard error, 1/um.
    refraction : float
        The last parameter: delta z of the crystal, um.
    correlation : array (m, m)
        Of the errors.
    condition : float
        The condition number of the design with columns of equal length.
    pairs : tuple of (int, int)
        Materials that cannot be told apart.
    offsets : array (n_angles,)
        The offset of each view.
    ridge : array (p, p)
        What was added to the normal equations.
    common : array (m,)
        The part of the errors that all views share, 1/um.
    """

    mu: FloatArray
    error: FloatArray
    refraction: float
    correlation: FloatArray
    condition: float
    pairs: tuple[tuple[int, int], ...]
    offsets: FloatArray
    ridge: FloatArray
    common: FloatArray

    def with_common(self, common: FloatArray) -> Solution:
        """The solution with errors (m,) that all views share, 1/um, added to its own."""
        return replace(self, error=np.hypot(self.error, common), common=common)


def _correlation(covariance: FloatArray) -> FloatArray:
    sigma = np.sqrt(np.diag(covariance))
    return np.asarray(covariance / np.outer(sigma, sigma))


class _Sensitivity:
    """The errors of m mu for any ridge: by the jackknife, and as if rays were independent."""

    def __init__(self, rays: Rays, weights: FloatArray, angles_deg: FloatArray, m: int) -> None:
        self.m = m
        self._block, self._n_blocks = _angle_blocks(angles_deg)
        self._bands = [_bands(rays, i) for i in range(m)]
        self._banded = [NormalSums.of(rays, weights, band, n) for band, n in self._bands]
        self.whole = self._banded[0]
        self.normal = self.whole.equations()[0]

    def jackknife(self, ridge: FloatArray) -> FloatArray:
        """Standard errors (m,) from blocks of angles or bands of slices, whichever is larger."""
        replicates = [
            self.whole.without(angles=self._block == b).solve(ridge) for b in range(self._n_blocks)
        ]
        errors = _jackknife(np.array(replicates))[: self.m]
        for i, (sums, (_, n)) in enumerate(zip(self._banded, self._bands, strict=True)):
            if n > 2:
                replicates = [sums.without(bands=b).solve(ridge) for b in range(n)]
                errors[i] = max(errors[i], _jackknife(np.array(replicates))[i])
        return errors

    def covariance(self, ridge: FloatArray) -> FloatArray:
        """The covariance (m, m) that independent rays of the measured scatter would give."""
        normal = self.normal + ridge
        scale = np.sqrt(np.diag(normal))
        inverse = np.linalg.inv(normal / np.outer(scale, scale)) / np.outer(scale, scale)
        return np.asarray(inverse[: self.m, : self.m])


def _condition_number(covariance: FloatArray) -> float:
    information = _correlation(np.asarray(np.linalg.inv(covariance), dtype=np.float64))
    eigenvalues = np.linalg.eigvalsh(information)
    return math.sqrt(eigenvalues[-1] / max(eigenvalues[0], 1e-24 * eigenvalues[-1]))


def _next_pair(
    error: FloatArray, correlation: FloatArray, typical: float, pairs: list[tuple[int, int]]
) -> tuple[int, int] | None:
    """The materials with the largest errors that cannot be told apart and are not in pairs yet."""
    for i in np.argsort(-error):
        if error[i] <= INDISTINCT_ERROR * typical:
            continue
        for j in np.argsort(correlation[i]):
            pair = (int(min(i, j)), int(max(i, j)))
            if j != i and correlation[i, j] < INDISTINCT_CORRELATION and pair not in pairs:
                return pair
    return None


def solve_with_errors(rays: Rays, weights: FloatArray, angles_deg: FloatArray, m: int) -> Solution:
    """The least-squares solution, with a ridge between materials that cannot be told apart.

    Parameters
    ----------
    rays : Rays
        n rays.
    weights : array (n,)
    angles_deg : array (n_angles,)
        The angles of the views.
    m : int
        The number of materials.
    """
    sensitivity = _Sensitivity(rays, weights, angles_deg, m)
    whole, normal = sensitivity.whole, sensitivity.normal
    faint = faint_ridge(normal, m, rays.refraction_weight)
    covariance = sensitivity.covariance(faint)
    condition = _condition_number(covariance)
    correlation = _correlation(covariance)
    by_ray = np.sqrt(np.diag(covariance))
    by_block = sensitivity.jackknife(faint)
    error = np.maximum(by_block, by_ray)
    # rays are not independent: by this factor they overstate what they determine
    inflation = float(np.clip(np.max(by_block / by_ray) ** 2, 1.0, 1e4))
    mu = whole.solve(faint)[:m]
    lengths = rays.design[weights > 0, :m].sum(axis=0)
    typical = abs(float(lengths @ mu) / float(lengths.sum()))
    ridge, pairs = faint, list[tuple[int, int]]()
    while (pair := _next_pair(error, correlation, typical, pairs)) is not None:
        pairs.append(pair)
        prior = np.zeros_like(faint)
        prior[:m, :m] = pair_ridge(m, pairs) * inflation / (RIDGE_SPREAD * typical) ** 2
        ridge = faint + prior
        covariance = sensitivity.covariance(ridge)
        correlation = _correlation(covariance)
        of_prior = inflation * np.diag(covariance @ prior[:m, :m] @ covariance)
        by_ray = np.sqrt(np.diag(covariance))
        error = np.sqrt(np.maximum(sensitivity.jackknife(ridge), by_ray) ** 2 + of_prior)
    parameters = whole.solve(ridge)
    if rays.refraction_weight > 0:
        per_refraction = np.linalg.solve((normal + ridge)[:m, :m], normal[:m, m])
        prior_error = math.sqrt(CORRELATED_RAYS / rays.refraction_weight)
        error = np.hypot(error, per_refraction * prior_error)
    return Solution(
        parameters[:m],
        error,
        float(parameters[m]),
        correlation,
        condition,
        tuple(pairs),
        whole.offsets(parameters),
        ridge,
        np.zeros(m),
    )
