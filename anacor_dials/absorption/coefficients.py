"""Absorption coefficients of labelled materials from the transmissions of a tomography scan.

For every ray of the parallel beam, at pixel (x, u) and angle k,

    -ln T = b_k + sum_m mu_m L_m + refraction

with the path lengths L_m through the labels (exact voxel traversal) and an offset b_k for each angle, as
the beam's intensity is never quite that of its flat. All mu_m are found at once by least squares:

* **Fringes.** Refraction moves intensity about, and a fibre 10 um thick, seen from 10 mm, may seem to
  absorb half as much again. Calculated and measured transmissions are smoothed alike, by one Fresnel zone
  sqrt(lambda z) or a pixel; on that scale the transport of intensity is linear in the distance (Teague 1983),
  and delta z is one more parameter of the fit, delta of the materials being in the ratio of their
  composition (electron density). Where energy and distance are known it is known to a tenth, and what that
  tenth makes of mu is in the errors. Rays of the beam alone are taken from far beside the sample.
* **Rays.** Pixels are averaged in blocks. Rays are left out where the thickness of a material bends
  strongly within the margin of two such zones: there labels are half a voxel off. The margin is
  halved for materials that would lose most of their rays. Left out too are rays with T < 0.02.
* **Weights.** The scatter of residuals is measured as a function of -ln T and weights are 1 / scatter^2
  times those of Huber (Ann. Math. Statist. 35 (1964) 73), iterated.
* **Errors.** Neighbouring rays are wrong together, so the scatter of single rays says little. Errors are
  those of the delete-a-block jackknife (Kuensch, Ann. Statist. 17 (1989) 1217) over blocks of neighbouring
  angles, and over bands of slices in which the material occurs; the larger one counts. What is wrong in
  all views and slices alike (a wrong pixel size, labels that are all too large) is not in them.
* **Materials that cannot be told apart.** Where the error of a mu is above a twentieth of the mean mu and its
  material goes together with another one, their difference is taken as 0 +- 10 % of the mean mu (a
  ridge). Both move to their common mean, and the attenuation of both together, which the data do
  determine, stays. The errors then include those ten per cent.

Lengths in um, mu in 1/um, angles in degrees; frames as in :mod:`anacor_dials.sample.frames`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.absorption.radiographs import (
    Radiographs,
    RayGrid,
    find_origin,
    ray_grid,
    windows_on,
)
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.materials import (
    Composition,
    Material,
    MaterialInput,
    materials_at,
    protein_crystal,
    typical_composition,
)
from anacor_dials.sample.volumes import LabelVolume

logger = logging.getLogger("dials.anacor_dials.absorption.coefficients")

MOST_BLOCKS = 600_000
MOST_RAYS = 80_000  # in the sample, and beside it; neighbours say the same
LEAST_SMOOTHING_PIXELS = 1.0
MARGIN_SIGMAS = 2.0
BESIDE_SIGMAS = 6.0  # from the sample to rays that show the beam alone
# a ray is left out where a thickness's slope changes by more than so much over the margin
LARGEST_BEND = 1.0
VOXEL_NOISE = 1.5  # voxels by which a bend of voxelised labels may be wrong
KEPT_SHARE = 0.25  # of a material's rays; where fewer are left, its margin is halved
LEAST_RAYS = 30
LEAST_BRIGHT = 0.02  # of the rays through the sample
REFRACTION_SPREAD = 0.1  # of delta times distance, where both are known
RAYS_ALIKE = 1000.0  # that are wrong together
LEAST_TRANSMISSION = 0.02
HUBER = 1.345
OFFSET_SPREAD = 0.02  # of -ln T, by which the beam may differ from its flat
ANGLE_BLOCKS = 12
SLICE_BANDS = 8
INDISTINCT_ERROR = 0.05  # of the mean mu: the difference of two is then known to 10 %
POOR_ERROR = 0.1  # of the mean mu
INDISTINCT_CORRELATION = -0.7
RIDGE_SPREAD = 0.1  # of the mean mu, between materials that cannot be told apart
UNEXPLAINED = 0.1  # of -ln T, rms
MOST_CYCLES = 6
PICTURE_VIEWS = 3
PICTURE_PIXELS = 150


@dataclass(frozen=True, eq=False)
class ResidualView:
    """One view for a picture: maps (nx, ny) of measured and calculated -ln T and of the rays used.

    angle_deg; x_um: (nx,), u_um: (ny,) from the origin.
    """

    angle_deg: float
    x_um: FloatArray
    u_um: FloatArray
    measured: FloatArray
    calculated: FloatArray
    used: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CoefficientFit:
    """mu of every material from a scan, with errors and what is needed to judge them.

    names: by label. mu_per_um, standard_error_per_um: (n_labels,) 1/um; 0 for the background, NaN for
    materials that no usable ray meets. expected_per_um: (n_labels,) from composition at the scan's
    energy, NaN where unknown. refraction_um: delta z of the crystal. correlation: (n_labels, n_labels) of the errors. condition_number: of the
    design with columns of equal length. not_told_apart: pairs of names whose difference the data do not
    determine. undetermined: names without usable rays. n_rays: (n_labels,) used, through each material;
    margin_um: (n_labels,) kept from its edges. used_share: of all rays through the sample. rms_residual: of
    -ln T, of the rays used; unexplained: the same relative to the rms of -ln T through the sample.
    angles_deg, offsets, angle_rms: (n_angles,) the beam's offset and the rms residual at each angle.
    centre: as of :class:`Radiographs`, given or found; shift_um: (2,) how far along X and Y the images
    seem to be from there. energy_keV: the scan's, or None. views: for pictures. warnings: sentences.
    """

    names: tuple[str, ...]
    mu_per_um: FloatArray
    standard_error_per_um: FloatArray
    expected_per_um: FloatArray
    refraction_um: float
    correlation: FloatArray
    condition_number: float
    not_told_apart: tuple[tuple[str, str], ...]
    undetermined: tuple[str, ...]
    n_rays: NDArray[np.int64]
    margin_um: FloatArray
    used_share: float
    rms_residual: float
    unexplained: float
    angles_deg: FloatArray
    offsets: FloatArray
    angle_rms: FloatArray
    centre: tuple[float, float]
    shift_um: FloatArray
    energy_keV: float | None
    views: tuple[ResidualView, ...]
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.names)
        for name in (
            "mu_per_um",
            "standard_error_per_um",
            "expected_per_um",
            "n_rays",
            "margin_um",
        ):
            if getattr(self, name).shape != (n,):
                raise ValueError(f"{name} has {getattr(self, name).size} values for {n} labels.")
        if np.any(self.standard_error_per_um < 0):
            raise ValueError("A standard error is negative.")

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which mu (n_labels,) can be used: determined, and not negative."""
        return np.isfinite(self.mu_per_um) & (self.mu_per_um >= 0)

    def __repr__(self) -> str:
        values = ", ".join(
            f"{name} {mu:.6f} +- {error:.6f}"
            for name, mu, error in zip(
                self.names[1:], self.mu_per_um[1:], self.standard_error_per_um[1:], strict=True
            )
        )
        return f"CoefficientFit({values} /um from {self.n_rays.max(initial=0)} rays)"


# ---- what a view should be ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Design:
    """The views as they should be for some mu, and how they change with it; smoothed like the measured.

    calculated: (k, gx, gy) -ln of the smoothed exp(-sum mu L); lengths: (k, gx, gy, m) its derivatives, the
    path lengths averaged with the transmission as weight; refraction: (k, gx, gy), 1/um, what refraction
    adds where delta z of the crystal is 1 um.
    """

    calculated: FloatArray
    lengths: FloatArray
    refraction: FloatArray


def _smoothed(images: FloatArray, sigma: FloatArray) -> FloatArray:
    """Images (k, gx, gy) smoothed by a Gaussian of sigma (2,) blocks."""
    return scipy.ndimage.gaussian_filter(images, (0.0, *sigma), mode="nearest", truncate=3.0)


def _measured(grid: RayGrid, sigma: FloatArray) -> FloatArray:
    """-ln (k, gx, gy) of the smoothed transmissions, NaN where few of the pixels about are usable."""
    usable = np.isfinite(grid.transmissions)
    weight = _smoothed(usable.astype(np.float64), sigma)
    total = _smoothed(np.where(usable, grid.transmissions, 0.0), sigma)
    good = (weight > 0.5) & (total > 0)
    return np.where(good, -np.log(np.where(good, total / np.maximum(weight, 0.5), 1.0)), np.nan)


def _design(
    lengths: FloatArray,
    mu: FloatArray,
    delta: FloatArray,
    sigma: FloatArray,
    step_um: FloatArray,
) -> _Design:
    """See :class:`_Design`; lengths: (k, gx, gy, m) as traced; mu, delta: (m,); sigma: (2,) blocks.

    Refraction: I(z) = I - z div(I grad(phase)) / k (Teague, J. Opt. Soc. Am. 73 (1983) 1434) with the
    phase -k sum delta L, so -ln T changes by -z div(T grad(sum delta L)) / T.
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
    return _Design(-np.log(smooth), means, -_smoothed(divergence, sigma) / smooth)


def _smooth_places(
    lengths: NDArray[np.float32], step_um: FloatArray, labels: LabelVolume, margin_um: float
) -> tuple[NDArray[np.bool_], FloatArray]:
    """Rays (k, gx, gy) away from edges of all materials, and the margin (n_labels,) kept from each."""
    n = lengths.shape[-1]
    voxel = float(labels.voxel_size_um.max())
    margins = np.full(n, margin_um)
    away = np.ones((n, *lengths.shape[:-1]), dtype=bool)

    def unbent(label: int) -> NDArray[np.bool_]:
        thickness = lengths[..., label].astype(np.float64)
        calm = np.ones(thickness.shape, dtype=bool)
        for axis, step in zip((1, 2), step_um, strict=True):
            reach = max(1, round(margins[label] / step))
            index = np.arange(thickness.shape[axis])
            before = thickness.take((index - reach).clip(0), axis=axis)
            after = thickness.take((index + reach).clip(None, index[-1]), axis=axis)
            bend = np.abs(before + after - 2 * thickness)
            calm &= bend <= LARGEST_BEND * reach * step + VOXEL_NOISE * voxel
        near = [1, *(2 * round(margins[label] / step) + 1 for step in step_um)]
        return np.asarray(scipy.ndimage.minimum_filter(calm, near, mode="nearest"))

    for label in range(1, n):
        away[label] = unbent(label)
    least = float(min(step_um))
    for _ in range(4):
        together = np.all(away, axis=0)
        again = []
        for label in range(1, n):
            through = lengths[..., label] > voxel
            count = np.count_nonzero(through)
            few = np.count_nonzero(through & together) < KEPT_SHARE * count
            if few and margins[label] > 1.01 * least:
                again.append(label)
        for label in again:
            margins[label] = max(0.5 * margins[label], least)
            away[label] = unbent(label)
    return np.asarray(np.all(away, axis=0)), margins


def _far_from(in_sample: NDArray[np.bool_], blocks: FloatArray) -> NDArray[np.bool_]:
    """Rays (k, gx, gy) beside the sample to which no light is refracted: so many blocks (2,) away."""
    size = [1, *(2 * math.ceil(b) + 1 for b in blocks)]
    return ~np.asarray(scipy.ndimage.maximum_filter(in_sample, size, mode="nearest"))


def _thin(places: NDArray[np.bool_], in_sample: NDArray[np.bool_]) -> None:
    """Leaves out rays evenly, in place, until there are no more than MOST_RAYS in the sample, and beside it."""
    for group in (in_sample, ~in_sample):
        chosen = np.flatnonzero(places & group)
        every = math.ceil(len(chosen) / MOST_RAYS)
        if every > 1:
            keep = np.zeros(len(chosen), dtype=bool)
            keep[::every] = True
            places.ravel()[chosen[~keep]] = False


# ---- least squares ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Rays:
    """Chosen rays: y (n,) = -ln T, their design (n, p), angle (n,), x_um (n,), whether in the sample (n,).

    The first columns of the design are lengths in the materials, the last one is refraction;
    refraction_weight: 1 / variance of its parameter about 0, known beforehand.
    """

    y: FloatArray
    design: FloatArray
    angle: NDArray[np.int64]
    x_um: FloatArray
    in_sample: NDArray[np.bool_]
    n_angles: int
    refraction_weight: float


@dataclass(frozen=True, eq=False)
class _Sums:
    """Normal equations of cells of rays, (n_angles, n_bands) of them, p parameters.

    dd (..., p, p), d (..., p), w (...), dy (..., p), y (...): weighted sums of products of the design's
    columns, 1 and -ln T.
    """

    dd: FloatArray
    d: FloatArray
    w: FloatArray
    dy: FloatArray
    y: FloatArray

    @classmethod
    def of(cls, rays: _Rays, weights: FloatArray, band: NDArray[np.int64], n_bands: int) -> _Sums:
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

    def without(self, angles: Any = (), bands: Any = ()) -> _Sums:
        """The sums without some angles or bands."""
        keep = np.ones(self.w.shape)
        keep[angles, :] = 0
        keep[:, bands] = 0
        k1, k2 = keep[..., None], keep[..., None, None]
        return _Sums(self.dd * k2, self.d * k1, self.w * keep, self.dy * k1, self.y * keep)

    def equations(self) -> tuple[FloatArray, FloatArray]:
        """(N (p, p), r (p,)) of N parameters = r, the offsets of the angles eliminated."""
        d, w = self.d.sum(axis=1), self.w.sum(axis=1) + OFFSET_SPREAD**-2
        normal = self.dd.sum(axis=(0, 1)) - np.einsum("ai,aj,a->ij", d, d, 1 / w)
        right = self.dy.sum(axis=(0, 1)) - np.einsum("ai,a,a->i", d, self.y.sum(axis=1), 1 / w)
        return normal, right

    def solve(self, ridge: FloatArray) -> FloatArray:
        """The parameters (p,) with N + ridge in place of N."""
        normal, right = self.equations()
        scale = np.sqrt(np.maximum(np.diag(normal + ridge), 1e-300))
        scaled = (normal + ridge) / np.outer(scale, scale)
        found: Any = np.linalg.lstsq(scaled, right / scale, rcond=1e-14)[0]
        return np.asarray(found / scale, dtype=np.float64)

    def offsets(self, parameters: FloatArray) -> FloatArray:
        """b (n_angles,) for given parameters."""
        w = self.w.sum(axis=1) + OFFSET_SPREAD**-2
        return np.asarray((self.y.sum(axis=1) - self.d.sum(axis=1) @ parameters) / w)


def _faint_ridge(normal: FloatArray, m: int, refraction: float) -> FloatArray:
    """A ridge (p, p) that matters only where columns are zero or exactly proportional to each other.

    refraction: the weight of what is known of the last parameter beforehand.
    """
    ridge = np.zeros_like(normal)
    pairs = [(i, j) for i in range(m) for j in range(i)]
    ridge[:m, :m] = 1e-9 * float(np.trace(normal[:m, :m])) / m * _pair_ridge(m, pairs)
    ridge[m, m] = refraction + 1e-6 * normal[m, m] + 1e-300
    return ridge


def _pair_ridge(size: int, pairs: Sequence[tuple[int, int]]) -> FloatArray:
    """The matrix (size, size) of the sum over pairs of (mu_i - mu_j)^2."""
    ridge = np.zeros((size, size))
    for i, j in pairs:
        d = np.zeros(size)
        d[i], d[j] = 1.0, -1.0
        ridge += np.outer(d, d)
    return ridge


def _scatter(y: FloatArray, residual: FloatArray, in_sample: NDArray[np.bool_]) -> FloatArray:
    """Robust scatter (n,) of the residuals as a function of the calculated -ln T."""

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


def _robust(rays: _Rays, m: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(parameters (p,), offsets (n_angles,), weights (n,), 0 for rays that are too dark)."""
    cut = -math.log(LEAST_TRANSMISSION)
    weights = (rays.y < cut).astype(np.float64)
    no_bands = np.zeros(len(rays.y), dtype=np.int64)
    parameters = np.zeros(rays.design.shape[1])
    offsets = np.zeros(rays.n_angles)
    for _ in range(10):
        before = parameters
        sums = _Sums.of(rays, weights, no_bands, 1)
        parameters = sums.solve(_faint_ridge(sums.equations()[0], m, rays.refraction_weight))
        offsets = sums.offsets(parameters)
        calculated = rays.design @ parameters
        residual = rays.y - calculated - offsets[rays.angle]
        # also what is far too dark for what it should be: clipped, or not of the sample
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


def _jackknife(replicates: FloatArray) -> FloatArray:
    """Standard errors (p,) from delete-a-block replicates (g, p)."""
    g = len(replicates)
    variance = (g - 1) / g * np.sum((replicates - replicates.mean(axis=0)) ** 2, axis=0)
    return np.sqrt(np.asarray(variance))


def _angle_blocks(angles_deg: FloatArray) -> tuple[NDArray[np.int64], int]:
    """The block (n_angles,) of neighbouring angles that each angle belongs to, and how many there are."""
    n = min(ANGLE_BLOCKS, len(angles_deg))
    rank = np.argsort(np.argsort(np.mod(angles_deg, 180.0), kind="stable"))
    return (rank * n) // len(angles_deg), n


def _bands(rays: _Rays, column: int) -> tuple[NDArray[np.int64], int]:
    """The band (n,) of slices of each ray, equally many rays through a material in each; how many."""
    inside = rays.x_um[rays.design[:, column] > 0.1 * rays.design[:, column].max()]
    edges = np.unique(np.quantile(inside, np.linspace(0, 1, SLICE_BANDS + 1)[1:-1]))
    return np.searchsorted(edges, rays.x_um, "right").astype(np.int64), len(edges) + 1


@dataclass(frozen=True, eq=False)
class _Solution:
    """mu, error (m,), refraction: delta z of the crystal in um, correlation (m, m), pairs of indices into m."""

    mu: FloatArray
    error: FloatArray
    refraction: float
    correlation: FloatArray
    condition: float
    pairs: tuple[tuple[int, int], ...]
    offsets: FloatArray


def _correlation(covariance: FloatArray) -> FloatArray:
    sigma = np.sqrt(np.diag(covariance))
    return np.asarray(covariance / np.outer(sigma, sigma))


def _with_errors(rays: _Rays, weights: FloatArray, angles_deg: FloatArray, m: int) -> _Solution:
    """The least-squares solution with errors, and a ridge between materials that cannot be told apart."""
    block, n_blocks = _angle_blocks(angles_deg)
    bands = [_bands(rays, i) for i in range(m)]
    banded = [_Sums.of(rays, weights, band, n) for band, n in bands]
    whole = banded[0]
    normal = whole.equations()[0]

    def jackknife(ridge: FloatArray) -> FloatArray:
        """(m,) from blocks of angles or from bands of slices, whichever is more."""
        replicates = [whole.without(angles=block == b).solve(ridge) for b in range(n_blocks)]
        errors = _jackknife(np.array(replicates))[:m]
        for i, (sums, (_, n)) in enumerate(zip(banded, bands, strict=True)):
            if n > 2:
                replicates = [sums.without(bands=b).solve(ridge) for b in range(n)]
                errors[i] = max(errors[i], _jackknife(np.array(replicates))[i])
        return errors

    def covariance_of_mu(ridge: FloatArray) -> FloatArray:
        """(m, m) if rays were independent and scattered as they seem to."""
        scale = np.sqrt(np.diag(normal + ridge))
        inverse = np.linalg.inv((normal + ridge) / np.outer(scale, scale)) / np.outer(scale, scale)
        return np.asarray(inverse[:m, :m])

    faint = _faint_ridge(normal, m, rays.refraction_weight)
    covariance = covariance_of_mu(faint)
    correlation = _correlation(covariance)
    information = _correlation(np.asarray(np.linalg.inv(covariance), dtype=np.float64))
    eigenvalues = np.linalg.eigvalsh(information)
    condition = math.sqrt(eigenvalues[-1] / max(eigenvalues[0], 1e-24 * eigenvalues[-1]))
    by_ray = np.sqrt(np.diag(covariance))
    by_block = jackknife(faint)
    error = np.maximum(by_block, by_ray)
    # rays are not independent: they say so much less than their number
    inflation = float(np.clip(np.max(by_block / by_ray) ** 2, 1.0, 1e4))
    mu = whole.solve(faint)[:m]
    lengths = rays.design[weights > 0, :m].sum(axis=0)
    typical = abs(float(lengths @ mu) / float(lengths.sum()))
    ridge, pairs = faint, list[tuple[int, int]]()
    while True:
        found = [
            pair
            for i in np.argsort(-error)
            if error[i] > INDISTINCT_ERROR * typical
            for j in np.argsort(correlation[i])
            if j != i and correlation[i, j] < INDISTINCT_CORRELATION
            for pair in [(int(min(i, j)), int(max(i, j)))]
            if pair not in pairs
        ]
        if not found:
            break
        pairs.append(found[0])
        prior = np.zeros_like(faint)
        prior[:m, :m] = _pair_ridge(m, pairs) * inflation / (RIDGE_SPREAD * typical) ** 2
        ridge = faint + prior
        covariance = covariance_of_mu(ridge)
        correlation = _correlation(covariance)
        of_prior = inflation * np.diag(covariance @ prior[:m, :m] @ covariance)
        by_ray = np.sqrt(np.diag(covariance))
        error = np.sqrt(np.maximum(jackknife(ridge), by_ray) ** 2 + of_prior)
    parameters = whole.solve(ridge)
    if rays.refraction_weight > 0:
        per_refraction = np.linalg.solve((normal + ridge)[:m, :m], normal[:m, m])
        error = np.hypot(error, per_refraction * math.sqrt(RAYS_ALIKE / rays.refraction_weight))
    return _Solution(
        parameters[:m],
        error,
        float(parameters[m]),
        correlation,
        condition,
        tuple(pairs),
        whole.offsets(parameters),
    )


def _remaining_shift(
    measured: FloatArray, calculated: FloatArray, offsets: FloatArray, step_um: FloatArray
) -> FloatArray:
    """How far (2,), along X and Y in um, the measured images (k, gx, gy) are from the calculated ones."""
    slopes = np.gradient(calculated, *step_um, axis=(1, 2))
    design = np.stack([s.ravel() for s in slopes], axis=1)
    residual = (measured - calculated - offsets[:, None, None]).ravel()
    usable = np.isfinite(residual) & np.any(design != 0, axis=1)
    design, residual = design[usable], residual[usable]
    shift = np.zeros(2)
    if len(residual) < LEAST_RAYS:
        return shift
    weights = np.ones(len(residual))
    for _ in range(5):
        normal = design.T @ (weights[:, None] * design)
        shift = np.linalg.lstsq(normal, design.T @ (weights * residual), rcond=1e-9)[0]
        left = np.abs(residual - design @ shift)
        scale = max(HUBER * 1.4826 * float(np.median(left)), 1e-12)
        weights = np.minimum(1.0, scale / np.maximum(left, 1e-12))
    return -shift


# ---- from composition ---------------------------------------------------------------------------


def expected_coefficients(
    names: Sequence[str], made_of: Mapping[str, Composition | None], energy_keV: float | None
) -> FloatArray:
    """mu (n_labels,) in 1/um from composition at an energy in keV; NaN where unknown, 0 for label 0."""
    expected = np.full(len(names), np.nan)
    expected[0] = 0.0
    for label, name in enumerate(names[1:], 1):
        composition = made_of.get(name)
        if composition is not None and energy_keV is not None:
            expected[label] = composition.mu_per_um(energy_keV)
    return expected


def relative_delta(
    names: Sequence[str], made_of: Mapping[str, Composition | None], energy_keV: float | None
) -> FloatArray:
    """delta (n_labels,) of n = 1 - delta + i beta relative to the crystal's; 0 for label 0.

    It goes with the density of electrons, hardly with the energy (10 keV where that is unknown).
    Materials of unknown composition are taken as the crystal.
    """
    crystal = made_of.get("crystal") or protein_crystal(0.5)
    energy = 10.0 if energy_keV is None else energy_keV
    delta = [(made_of.get(name) or crystal).refractive_index(energy)[0] for name in names]
    delta[0] = 0.0
    return np.array(delta) / crystal.refractive_index(energy)[0]


def _known_refraction(radiographs: Radiographs) -> tuple[float, float]:
    """(delta z of a usual crystal in um, weight of this knowledge); (0, 0) without energy and distance.

    delta is known to a tenth where the composition is not. The weight is in terms of rays, which are not
    independent.
    """
    crystal = typical_composition("crystal")
    if radiographs.energy_keV is None or radiographs.distance_mm is None or crystal is None:
        return 0.0, 0.0
    delta = crystal.refractive_index(radiographs.energy_keV)[0]
    known = delta * radiographs.distance_mm * 1e3
    return known, RAYS_ALIKE / max(REFRACTION_SPREAD * known, 0.01) ** 2


# ---- the fit ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Fitted:
    """The fit on the grid: maps (k, gx, gy), materials `seen` (m,) among the labels."""

    grid: RayGrid
    measured: FloatArray
    calculated: FloatArray
    used: NDArray[np.bool_]
    in_label: NDArray[np.bool_]  # (k, gx, gy, n_labels)
    seen: NDArray[np.intp]
    margins: FloatArray
    solution: _Solution
    shift_um: FloatArray

    @property
    def residual(self) -> FloatArray:
        return self.measured - self.calculated - self.solution.offsets[:, None, None]


def absorption_coefficients(
    radiographs: Radiographs,
    labels: LabelVolume,
    *,
    compositions: Mapping[str, Composition] | None = None,
    margin_um: float | None = None,
    most_blocks: int = MOST_BLOCKS,
) -> CoefficientFit:
    """mu of all labelled materials by least squares from the transmissions of a scan.

    radiographs: some tens of views (:func:`anacor_dials.absorption.radiographs.spread_angles`); labels: the
    sample in the tomo frame. compositions: of materials by name, the typical ones of their names where not
    given; mu expected from them is only compared, and relative delta is taken from them. margin_um: how far from edges rays are left out, None for the default. most_blocks:
    pixels are averaged until there are no more. Where radiographs.centre is None the place of the rotation
    axis and of the origin along it is found by registration.
    Raises ValueError where images and labels do not show the same, or no ray is usable.
    """
    if margin_um is not None and not (math.isfinite(margin_um) and margin_um >= 0):
        raise ValueError(f"The margin is {margin_um} um; it must be a length >= 0.")
    usual = {name: typical_composition(name) for name in labels.names}
    made_of = usual | dict(compositions or {})
    delta = relative_delta(labels.names, made_of, radiographs.energy_keV)
    expected = expected_coefficients(labels.names, made_of, radiographs.energy_keV)
    origin = radiographs.upright_centre
    if origin is not None:
        fit = _fit(radiographs, labels, origin, delta, margin_um, most_blocks)
    else:
        origin = find_origin(radiographs, labels)
        fit = _fit(radiographs, labels, origin, delta, margin_um, most_blocks)
        sx, sy = fit.shift_um / radiographs.pixel_xy_um
        origin = (origin[0] + sx, origin[1] + sy)
        fit = _fit(radiographs, labels, origin, delta, margin_um, most_blocks)
    return _described(fit, radiographs, labels, origin, expected)


def _require_bright(bright: NDArray[np.bool_], all_rays: NDArray[np.bool_]) -> None:
    """Raises ValueError where hardly a ray comes through the sample."""
    n = int(np.count_nonzero(all_rays))
    share = int(np.count_nonzero(bright)) / max(1, n)
    if n and share < LEAST_BRIGHT:
        raise ValueError(
            f"{100 * share:.1f} % of the rays through the sample have a transmission above "
            f"{LEAST_TRANSMISSION}: it is too opaque at this energy; give mu."
        )


def _materials_seen(
    rays: NDArray[np.bool_], lengths: NDArray[np.float32], voxel_um: float
) -> NDArray[np.intp]:
    """Labels (m,) that enough of the rays (k, gx, gy) run through, the background left out."""
    counts = [
        np.count_nonzero(rays & (lengths[..., i] > voxel_um)) for i in range(lengths.shape[-1])
    ]
    return 1 + np.flatnonzero(np.array(counts[1:]) >= LEAST_RAYS)


def _fit(
    radiographs: Radiographs,
    labels: LabelVolume,
    origin: tuple[float, float],
    delta: FloatArray,
    margin_um: float | None,
    most_blocks: int,
) -> _Fitted:
    pixel = max(radiographs.pixel_xy_um)
    sigma_um = max(LEAST_SMOOTHING_PIXELS * pixel, radiographs.fresnel_zone_um or 0.0)
    margin = MARGIN_SIGMAS * sigma_um if margin_um is None else margin_um
    x, y = windows_on(radiographs, labels, origin, max(margin, BESIDE_SIGMAS * sigma_um))
    n_pixels = len(radiographs.angles_deg) * (x[1] - x[0]) * (y[1] - y[0])
    block = math.ceil(math.sqrt(n_pixels / most_blocks))
    block = max(1, min(block, (x[1] - x[0]) // 4, (y[1] - y[0]) // 4))
    grid = ray_grid(radiographs, origin, x, y, block)
    lengths = grid.path_lengths(labels)
    sigma = sigma_um / grid.step_um
    measured = _measured(grid, sigma)
    places, margins = _smooth_places(lengths, grid.step_um, labels, margin)
    in_sample = np.any(lengths > 0, axis=-1)
    places &= np.isfinite(measured) & (in_sample | _far_from(in_sample, BESIDE_SIGMAS * sigma))
    bright = places & (measured < -math.log(LEAST_TRANSMISSION))
    _require_bright(bright & in_sample, places & in_sample)
    seen = _materials_seen(bright, lengths, float(labels.voxel_size_um.max()))
    if not len(seen):
        raise ValueError(
            f"No ray through the sample is far enough from edges ({margin:.3g} um); take a smaller "
            "coefficients.margin=, or give mu."
        )
    # rays through materials that are not looked for say nothing about the others
    unseen = [i for i in range(1, lengths.shape[-1]) if i not in seen]
    places &= ~np.any(lengths[..., unseen] > 0, axis=-1)
    usable = places.copy()
    _thin(places, in_sample)
    traced = lengths[..., seen].astype(np.float64)
    m = len(seen)
    total = traced.sum(axis=-1)[places]
    mu = np.full(m, max(float(total @ measured[places]) / float(total @ total), 0.0))
    angle, ix, _ = np.nonzero(places)
    rays, design, weights = None, None, np.empty(0)
    known, weight = _known_refraction(radiographs)
    for _ in range(MOST_CYCLES):
        design = _design(traced, mu, delta[seen], sigma, grid.step_um)
        # linear about mu: -ln T = calculated + sum (mu' - mu) lengths + ...
        linear = measured - design.calculated + design.lengths @ mu
        linear -= known * design.refraction
        rays = _Rays(
            linear[places],
            np.column_stack([design.lengths[places], design.refraction[places]]),
            angle.astype(np.int64),
            grid.x_um[ix],
            total > 0,
            len(grid.angles_deg),
            weight,
        )
        parameters, _, weights = _robust(rays, m)
        before, mu = mu, parameters[:m]
        if np.all(np.abs(mu - before) < 1e-3 * np.abs(mu).max()):
            break
    assert rays is not None
    assert design is not None
    solution = _with_errors(rays, weights, grid.angles_deg, m)
    calculated = (
        design.calculated
        + design.lengths @ (solution.mu - before)
        + design.refraction * (known + solution.refraction)
    )
    used = usable & (calculated < -math.log(LEAST_TRANSMISSION))
    shift = _remaining_shift(measured, calculated, solution.offsets, grid.step_um)
    solution = replace(solution, refraction=known + solution.refraction)
    return _Fitted(grid, measured, calculated, used, lengths > 0, seen, margins, solution, shift)


def _described(
    fit: _Fitted,
    radiographs: Radiographs,
    labels: LabelVolume,
    origin: tuple[float, float],
    expected: FloatArray,
) -> CoefficientFit:
    n, names, solution, seen = len(labels.names), labels.names, fit.solution, fit.seen
    mu, error = np.full(n, np.nan), np.full(n, np.nan)
    mu[0] = error[0] = 0.0
    mu[seen], error[seen] = solution.mu, solution.error
    correlation = np.eye(n)
    correlation[np.ix_(seen, seen)] = solution.correlation
    sample = np.any(fit.in_label, axis=-1)
    residual, inside = fit.residual, fit.used & sample
    rms = float(np.sqrt(np.mean(residual[inside] ** 2)))
    occurring = np.flatnonzero(labels.counts() > 0)
    undetermined = tuple(names[i] for i in occurring if i and i not in seen)
    angle_rms = np.array(
        [
            math.sqrt(float(np.mean(r[u] ** 2))) if np.any(u) else math.nan
            for r, u in zip(residual, inside, strict=True)
        ]
    )
    result = CoefficientFit(
        names=names,
        mu_per_um=mu,
        standard_error_per_um=error,
        expected_per_um=expected,
        refraction_um=solution.refraction,
        correlation=correlation,
        condition_number=solution.condition,
        not_told_apart=tuple((names[seen[i]], names[seen[j]]) for i, j in solution.pairs),
        undetermined=undetermined,
        n_rays=np.array([np.count_nonzero(fit.used & fit.in_label[..., i]) for i in range(n)]),
        margin_um=fit.margins,
        used_share=int(np.count_nonzero(inside)) / int(np.count_nonzero(sample)),
        rms_residual=rms,
        unexplained=rms / float(np.sqrt(np.mean(fit.calculated[inside] ** 2))),
        angles_deg=fit.grid.angles_deg,
        offsets=solution.offsets,
        angle_rms=angle_rms,
        centre=radiographs.raw_centre(*origin),
        shift_um=fit.shift_um,
        energy_keV=radiographs.energy_keV,
        views=_views(fit),
    )
    voxel = max(*radiographs.pixel_xy_um, float(labels.voxel_size_um.max()))
    return replace(result, warnings=tuple(_warnings(result, voxel)))


def _warnings(fit: CoefficientFit, voxel_um: float) -> list[str]:
    mu, error, names = fit.mu_per_um, fit.standard_error_per_um, fit.names
    warnings = []
    for first, second in fit.not_told_apart:
        i, j = names.index(first), names.index(second)
        warnings.append(
            f"{first} and {second} cannot be told apart in the projections: their mu are drawn "
            f"towards each other ({mu[i]:.6f} and {mu[j]:.6f} /um, a difference of 10 % being thought "
            "likely). What both absorb together is right."
        )
    for name in fit.undetermined:
        warnings.append(
            f"No ray through {name} is usable (too thin, too few, too dark, or always near an edge): the "
            "projections do not say its mu."
        )
    told = {name for pair in fit.not_told_apart for name in pair}
    typical = abs(float(np.nanmean(mu[1:])))
    for i, name in enumerate(names):
        if name not in told and error[i] > POOR_ERROR * typical:
            warnings.append(
                f"mu of {name} is poorly determined: {mu[i]:.6f} +- {error[i]:.6f} /um."
            )
        if mu[i] < 0:
            warnings.append(f"mu of {name} comes out negative ({mu[i]:.6f} /um) and is not used.")
    if fit.unexplained > UNEXPLAINED:
        warnings.append(
            f"The labels explain the projections poorly: -ln T differs by {100 * fit.unexplained:.0f} % "
            "rms. See the residual pictures; labels, pixel size or flats may be wrong."
        )
    if float(np.max(np.abs(fit.shift_um))) > 1.5 * voxel_um:
        warnings.append(
            f"The projections show the sample {fit.shift_um[0]:+.2f} um along X and "
            f"{fit.shift_um[1]:+.2f} um along Y from where the labels have it: see whether they belong "
            "together."
        )
    return warnings


def _views(fit: _Fitted) -> tuple[ResidualView, ...]:
    k, gx, gy = fit.measured.shape
    step = max(1, math.ceil(max(gx, gy) / PICTURE_PIXELS))
    thin = slice(None, None, step)
    return tuple(
        ResidualView(
            float(fit.grid.angles_deg[i]),
            fit.grid.x_um[thin],
            fit.grid.u_um[thin],
            fit.measured[i, thin, thin],
            (fit.calculated[i] + fit.solution.offsets[i])[thin, thin],
            fit.used[i, thin, thin],
        )
        for i in np.unique(np.linspace(0, k, min(k, PICTURE_VIEWS), endpoint=False).astype(int))
    )


# ---- what is made of it -------------------------------------------------------------------------


def materials_from_fit(
    fit: CoefficientFit,
    energy_keV: float,
    given: Mapping[str, MaterialInput],
    file_mu_per_um: FloatArray | None = None,
    file_energy_keV: float | None = None,
    before_file: bool = False,
) -> list[Material]:
    """The materials at the beam's energy: as given, from the projections, from the labels' file.

    What is said of a material in `given` always comes first. Then the file's mu, and where it is NaN the
    fit's; before_file: the fit's first. A mu that belongs to another energy is rescaled by
    composition, as :func:`anacor_dials.sample.materials.materials_at` does, which also raises
    ValueError for materials that have no mu at all.
    """
    n = len(fit.names)
    in_file = np.full(n, np.nan) if file_mu_per_um is None else np.array(file_mu_per_um, float)
    wanted = fit.usable & (np.isnan(in_file) | before_file)
    wanted[0] = False
    for label, name in enumerate(fit.names):
        wanted[label] &= name not in given
    # zeros are not rescaled and never refused; each list is read where it has values
    scan_energy = fit.energy_keV
    from_fit = materials_at(
        energy_keV, fit.names, {}, np.where(wanted, fit.mu_per_um, 0), scan_energy
    )
    others = materials_at(
        energy_keV, fit.names, given, np.where(wanted, 0, in_file), file_energy_keV
    )
    materials = []
    for label, (fitted, other) in enumerate(zip(from_fit, others, strict=True)):
        if not wanted[label]:
            materials.append(other)
            continue
        ratio = fitted.mu_per_um / fit.mu_per_um[label] if fit.mu_per_um[label] > 0 else 1.0
        error = ratio * fit.standard_error_per_um[label]
        # "file, 4 keV, rescaled to ..." where it was
        rescaled = fitted.origin.partition(", rescaled")
        at = "" if scan_energy is None else f" at {scan_energy:.4g} keV"
        origin = f"projections{at}, +- {error:.6f} /um{''.join(rescaled[1:])}"
        if any(fit.names[label] in pair for pair in fit.not_told_apart):
            pair = next(p for p in fit.not_told_apart if fit.names[label] in p)
            origin += f"; not told apart from {pair[1 - pair.index(fit.names[label])]}"
        materials.append(Material(label, fitted.name, fitted.mu_per_um, origin))
    return materials
