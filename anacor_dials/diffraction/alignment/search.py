"""The disagreement of equivalents at trial alignments, and the search for its minimum.

All unknowns except the alignment enter linearly and are projected out once. A trial is then one
look-up of ln A and one projection.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.optimize import brentq, minimize_scalar

from anacor_dials.diffraction.alignment.equivalents import Equivalents
from anacor_dials.diffraction.alignment.fields import error_fields, sizes_of_fields
from anacor_dials.diffraction.alignment.trials import LogTransmission, mu_weights
from anacor_dials.sample.frames import FloatArray

# Distances of the knots of scales and of decays, about as in scaling programs. The decay follows
# the dose and varies more slowly.
SCALE_INTERVAL_DEG = 10.0
DECAY_INTERVAL_DEG = 45.0
HUBER = 2.5  # standard deviations: 1 % of normal residuals are above it
MU_GRID = np.linspace(
    0.0, 1.8, 181
)  # factors on mu that are tried; those up to LARGEST_MU_SCALE are believed
OFFSET_STEP_DEG = 5.0  # of the grid of trials; the minimum is then found within one step


def smooth_scales(data: Equivalents) -> FloatArray:
    """The columns (n, p) of scales and decays of all sweeps: B-splines in the scan angle."""
    blocks = []
    strongest = max(float(data.inverse_d_squared.max()), 1e-12)
    for e in np.unique(data.experiment):
        mine = data.experiment == e
        for interval, power in ((SCALE_INTERVAL_DEG, 0), (DECAY_INTERVAL_DEG, 1)):
            block = np.zeros((len(data), 0))
            columns = _splines(data.scan_angle_deg[mine], interval)
            block = np.zeros((len(data), columns.shape[1]))
            block[mine] = columns * ((data.inverse_d_squared[mine] / strongest) ** power)[:, None]
            blocks.append(block)
    return np.concatenate(blocks, axis=1)


def _splines(x: FloatArray, interval: float) -> FloatArray:
    """Cubic B-splines (n, p) over the range of x, with knots about interval apart."""
    low, high = float(x.min()), float(x.max())
    if high - low < 1e-9:
        return np.ones((len(x), 1))
    n = max(1, round((high - low) / interval))
    knots = np.concatenate([[low] * 3, np.linspace(low, high, n + 1), [high] * 3])
    return BSpline.design_matrix(np.clip(x, low, high), knots, 3).toarray()


class Disagreement:
    """Residuals after the means of equivalents and the smooth scales are fitted.

    With fields (see :mod:`.fields`), errors e are correlated; with the projection P of the fit,
    weights W and the fields' columns F of variance one,

        V = P (1 + G G^T) P,  G = P W^1/2 F,  chi^2 = e^T W^1/2 P V^-1 P W^1/2 e

    and residuals are multiplied by V^-1/2, so that they are independent and of variance one again.

    Parameters
    ----------
    unique : array (n,) of int
        The number of the unique reflection of each observation.
    smooth : array (n, p)
        The columns of the smooth scales.
    weight : array (n,)
        Weights of the least squares.
    """

    def __init__(self, unique: NDArray[np.int64], smooth: FloatArray, weight: FloatArray) -> None:
        self._unique = unique
        self._root = np.sqrt(weight)
        self._weight = weight
        self._total = np.bincount(unique, weight)
        centred = self._centred(smooth.T).T
        centred /= np.maximum(np.linalg.norm(centred, axis=0), 1e-12)
        values, vectors = np.linalg.eigh(centred.T @ centred)
        kept = values > 1e-9 * values[-1]
        self._basis = centred @ (vectors[:, kept] / np.sqrt(values[kept]))
        self.n_scales = self._basis.shape[1]
        self.degrees_of_freedom = len(unique) - len(self._total) - self.n_scales
        self._fields = np.zeros((len(unique), 0))
        self._shrink = np.zeros(0)
        self.free = float(self.degrees_of_freedom)  # what the fields leave of them

    def with_fields(self, columns: FloatArray) -> Disagreement:
        """The same with errors in fields.

        Parameters
        ----------
        columns : array (n, q)
            Of the fields, whose coefficients have the variance one.
        """
        other = copy(self)
        weighted = self.residual(columns.T).T
        values, vectors = np.linalg.eigh(weighted.T @ weighted)
        kept = values > 1e-6
        other._fields = weighted @ (vectors[:, kept] / np.sqrt(values[kept]))
        other._shrink = 1 - 1 / np.sqrt(1 + values[kept])
        other.free = self.degrees_of_freedom - float(np.sum(values[kept] / (1 + values[kept])))
        return other

    def _centred(self, values: FloatArray) -> FloatArray:
        """Weighted values (..., n) less the weighted means of equivalents."""
        rows = np.atleast_2d(values)
        means = [np.bincount(self._unique, self._weight * row) / self._total for row in rows]
        centred = np.stack([row - m[self._unique] for row, m in zip(rows, means, strict=True)])
        return np.asarray(self._root * centred).reshape(np.shape(values))

    def residual(self, values: FloatArray) -> FloatArray:
        """The weighted residuals (..., n) of values (..., n): sqrt(weight) times (value - fit)."""
        centred = self._centred(values)
        return self._without_fields(centred - centred @ self._basis @ self._basis.T)

    def _without_fields(self, residual: FloatArray) -> FloatArray:
        """Multiplied by V^-1/2."""
        return residual - (residual @ self._fields) * self._shrink @ self._fields.T

    def unweighted(self, residual: FloatArray) -> FloatArray:
        """Weighted residuals (n,) less the fields that fit them best, in the unit of the values."""
        return self._without_fields(residual) / self._root


@dataclass(frozen=True, eq=False)
class Trial:
    """One alignment, the factor on mu that fits best with it, and its chi^2.

    Attributes
    ----------
    offset_deg : float
    sense : int
    mu_scale : float
        The factor on mu.
    chi2 : float
    gram : array (4, 4)
        Products of the residuals of ln I and of ln A at MU_NODES.
    """

    offset_deg: float
    sense: int
    mu_scale: float
    chi2: float
    gram: FloatArray

    def chi2_at(self, mu_scale: FloatArray) -> FloatArray:
        """chi^2 (m,) at factors on mu (m,)."""
        c = np.column_stack([np.ones(len(mu_scale)), -mu_weights(mu_scale)])
        return np.einsum("mi,ij,mj->m", c, self.gram, c)


class Search:
    """Trials of alignments with one set of observations.

    ln A of a trial is computed once and used again when the weights change.
    """

    def __init__(self, data: Equivalents, transmissions: LogTransmission) -> None:
        self.data = data
        self.unique = data.unique
        self._transmissions = transmissions
        self._known: dict[tuple[float, int], NDArray[np.float32]] = {}
        self._smooth = smooth_scales(data)
        self._fields = error_fields(data)
        self.set_weights(0.1, np.ones(len(data)))

    def with_transmissions(self, transmissions: LogTransmission) -> Search:
        """A search with the same observations and weights, and other transmissions."""
        other = copy(self)
        other._transmissions, other._known = transmissions, {}
        return other

    def set_weights(
        self, instrument_error: float, robust: FloatArray, trial: Trial | None = None
    ) -> None:
        """Sets the weights, and the sizes of the fields if a trial is given.

        Parameters
        ----------
        instrument_error : float
            Relative.
        robust : array (n,)
            Weights are robust / ((sigma / I)^2 + instrument_error^2).
        trial : Trial, optional
            What the sizes are estimated at; without it there are no fields.
        """
        self.instrument_error = instrument_error
        weight = robust / (self.data.relative_variance + instrument_error**2)
        found = Disagreement(self.unique, self._smooth, weight)
        values = self.data.log_intensity
        self.field_error = 0.0  # rms over the observations, relative
        if trial is not None:
            left = values - self._log_transmission(trial)
            fields, kinds = self._fields
            sizes = sizes_of_fields(found.residual(fields.T).T, kinds, found.residual(left))
            found = found.with_fields(fields * sizes)
            variances = np.mean((fields * sizes) ** 2, axis=0)
            self.field_error = math.sqrt(float(variances.sum()))
        self.disagreement = found
        self._measured = found.residual(values)

    def log_transmissions(self, offset_deg: float, sense: int) -> FloatArray:
        """ln A (3, n) at MU_NODES."""
        key = (round(offset_deg % 360.0, 6), sense)
        if key not in self._known:
            self._known[key] = self._transmissions(*key).astype(np.float32)
        return self._known[key].astype(np.float64)

    def trial(self, offset_deg: float, sense: int) -> Trial:
        """The trial of an alignment, with the factor on mu that fits best."""
        of_nodes = self.disagreement.residual(self.log_transmissions(offset_deg, sense))
        residuals = np.vstack([self._measured, of_nodes])
        found = Trial(offset_deg % 360.0, sense, 1.0, math.inf, residuals @ residuals.T)
        chi2 = found.chi2_at(MU_GRID)
        best = int(np.argmin(chi2))
        k = float(MU_GRID[best])
        if 0 < best < len(MU_GRID) - 1:
            left, middle, right = chi2[best - 1 : best + 2]
            bend = left - 2 * middle + right
            if bend > 0:
                k += 0.5 * (left - right) / bend * (MU_GRID[1] - MU_GRID[0])
        return replace(found, mu_scale=k, chi2=float(found.chi2_at(np.array([k]))[0]))

    def residual(self, trial: Trial, mu_scale: float | None = None) -> FloatArray:
        """The weighted residuals (n,) of a trial, with its own factor on mu or another one."""
        k = trial.mu_scale if mu_scale is None else mu_scale
        if k == 0:
            return self._measured
        return self._measured - self.disagreement.residual(self._log_transmission(trial, k))

    def _log_transmission(self, trial: Trial, mu_scale: float | None = None) -> FloatArray:
        """ln A (n,) of a trial, with its own factor on mu or another one."""
        k = trial.mu_scale if mu_scale is None else mu_scale
        if k == 0:
            return np.zeros(len(self.data))
        return mu_weights(k)[0] @ self.log_transmissions(trial.offset_deg, trial.sense)

    def refine_offset(self, start: Trial) -> Trial:
        """The trial at the minimum of chi^2 within one step of a trial."""
        result = minimize_scalar(
            lambda x: self.trial(start.offset_deg + x, start.sense).chi2,
            bounds=(-OFFSET_STEP_DEG, OFFSET_STEP_DEG),
            method="bounded",
            options={"xatol": 0.01},
        )
        return self.trial(start.offset_deg + float(result.x), start.sense)

    def weights_from(self, residual: FloatArray) -> tuple[float, FloatArray]:
        """The instrument error and Huber's weights (n,) that explain the residuals (n,).

        With this instrument error the sum of the squares, each at most HUBER^2, equals the degrees
        of freedom.
        """
        squares = self.disagreement.unweighted(residual) ** 2
        wanted = self.disagreement.free

        def excess(error: float) -> float:
            variance = self.data.relative_variance + error**2
            return float(np.minimum(squares / variance, HUBER**2).sum()) - wanted

        low, high = 1e-3, 3.0
        if excess(low) <= 0:
            error = low
        elif excess(high) >= 0:
            error = high
        else:
            error = float(brentq(excess, low, high))
        z = np.sqrt(squares / (self.data.relative_variance + error**2))
        return error, np.minimum(1.0, HUBER / np.maximum(z, 1e-9))

    def clusters(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Two divisions of the observations into clusters (n,) that share errors."""
        return self.unique, self.data.cell

    def superiority(self, best: FloatArray, other: FloatArray) -> float:
        """By how many standard deviations squared residuals (n,) are smaller than others."""
        difference = other**2 - best**2
        sums = [np.bincount(cluster, difference) for cluster in self.clusters()]
        spread = max(float(np.sqrt(len(s)) * np.std(s, ddof=1)) for s in sums)
        return float(difference.sum()) / spread if spread > 0 else 0.0

    def factor_error(self, best: Trial, mu_error: float, offset_error_deg: float) -> float:
        """The rms relative error of the factors, after one scale, that standard errors make.

        Parameters
        ----------
        best : Trial
        mu_error, offset_error_deg : float
            Of the factor on mu and of the offset; 0 for what is not refined. Their correlation is
            left out.
        """
        columns = self._derivatives(best, with_offset=offset_error_deg > 0)
        errors = zip((mu_error, offset_error_deg), columns, strict=False)
        return math.hypot(*(error * float(np.std(c)) for error, c in errors if error > 0))

    def _derivatives(self, best: Trial, with_offset: bool) -> list[FloatArray]:
        """d ln A (n,) by the factor on mu, and by the offset in deg if it is asked for."""
        step = 0.5
        centre = mu_weights(best.mu_scale)[0]
        slope = (mu_weights(best.mu_scale + 0.01)[0] - mu_weights(best.mu_scale - 0.01)[0]) / 0.02
        columns = [slope @ self.log_transmissions(best.offset_deg, best.sense)]
        if with_offset:
            ahead = self.log_transmissions(best.offset_deg + step, best.sense)
            behind = self.log_transmissions(best.offset_deg - step, best.sense)
            columns.append(centre @ (ahead - behind) / (2 * step))
        return columns

    def linearised(self, best: Trial, with_offset: bool) -> tuple[FloatArray, FloatArray]:
        """The step to the minimum, and standard errors, from the first derivatives at a trial.

        Both are (factor on mu, offset in deg), or (factor on mu,) without the offset. The errors
        are infinite if the residuals do not depend on one of them. They are those of the curvature
        or of the clusters (sandwich formula), whichever is largest.
        """
        columns = self._derivatives(best, with_offset)
        gradient = np.stack([self.disagreement.residual(column) for column in columns], axis=1)
        information = gradient.T @ gradient
        if not np.all(np.diag(information) > 0) or np.linalg.cond(information) > 1e14:
            return np.zeros(len(columns)), np.full(len(columns), math.inf)
        residual = self.residual(best)
        inverse = np.linalg.inv(information)
        variances = [
            np.diag(inverse) * (residual @ residual) / self.disagreement.degrees_of_freedom
        ]
        for cluster in self.clusters():
            scores = np.stack(
                [np.bincount(cluster, column * residual) for column in gradient.T], axis=1
            )
            variances.append(np.diag(inverse @ (scores.T @ scores) @ inverse))
        return inverse @ (gradient.T @ residual), np.sqrt(np.max(variances, axis=0))
