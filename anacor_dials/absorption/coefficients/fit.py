"""Absorption coefficients of labelled materials from the transmissions of a tomography scan.

For every ray of the parallel beam, at pixel (x, u) and angle k,

    -ln T = b_k + sum_m mu_m L_m + refraction

with the path lengths L_m through the labels (exact voxel traversal) and an offset b_k for each
angle, since the intensity of the beam is never exactly that of its flat image. All mu_m are found
together by least squares:

* **Fringes.** Refraction moves intensity to other pixels: a fibre 10 um thick, 10 mm from the
  detector, can seem to absorb half as much again. Calculated and measured transmissions are
  smoothed in the same way, over one Fresnel zone sqrt(lambda z) or one pixel. On that scale the
  transport of intensity is linear in the distance (Teague, J. Opt. Soc. Am. 73 (1983) 1434), and
  delta z is one more parameter of the fit; the delta of the materials are in the ratio that their
  compositions give (electron density). If energy and distance are known, delta z is known to a
  tenth, and the effect of this tenth on mu is part of the errors. Rays outside the sample are used
  only far from it.
* **Rays.** Pixels are averaged in blocks. Rays are left out where the thickness of a material bends
  strongly within the margin of two such zones: there the labels are wrong by half a voxel. The
  margin is halved for materials that would lose most of their rays. Rays with T < 0.02 are left
  out, too.
* **Weights.** The scatter of the residuals is measured as a function of -ln T. The weights are
  1 / scatter^2 times those of Huber (Ann. Math. Statist. 35 (1964) 73), iterated.
* **Errors.** The errors of neighbouring rays are correlated, so the scatter of single rays says
  little. Standard errors are those of the delete-a-block jackknife (Kuensch, Ann. Statist. 17
  (1989) 1217), over blocks of neighbouring angles and over bands of slices in which the material
  occurs; the larger one counts. Added to them is what edges of the labels that are wrong by a part
  of a voxel, and an axis that is wrong by a part of a pixel, do to mu in all views alike. They do
  not contain a wrong pixel size, or labels that are wrong by more.
* **Materials that cannot be told apart.** If the error of a mu is above a twentieth of the mean mu,
  and strongly anticorrelated with that of another material, their difference is taken as 0 +- 10 %
  of the mean mu (a ridge). Both then move to their common mean. What both absorb together, which
  the data do determine, does not change. The errors contain these ten per cent.

Lengths are in um, mu in 1/um, angles in degrees; frames as in :mod:`anacor_dials.sample.frames`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from anacor_dials.absorption.coefficients.calculated_views import (
    CalculatedViews,
    calculated_views,
    measured_views,
)
from anacor_dials.absorption.coefficients.common_errors import FittedRays, common_errors
from anacor_dials.absorption.coefficients.errors import Solution, solve_with_errors
from anacor_dials.absorption.coefficients.from_composition import (
    expected_coefficients,
    known_refraction,
    relative_delta,
)
from anacor_dials.absorption.coefficients.least_squares import HUBER, Rays, robust_fit
from anacor_dials.absorption.coefficients.radiographs import Radiographs
from anacor_dials.absorption.coefficients.ray_grid import RayGrid, ray_grid, windows_on
from anacor_dials.absorption.coefficients.ray_selection import (
    LEAST_RAYS,
    LEAST_TRANSMISSION,
    away_from_edges,
    far_from,
    materials_seen,
    require_bright,
    thin_out,
)
from anacor_dials.absorption.coefficients.registration import find_origin
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.materials import Composition, typical_composition
from anacor_dials.sample.volumes import LabelVolume

MOST_BLOCKS = 600_000  # of pixels: 2.4 MB of path lengths per label, traced in some seconds
LEAST_SMOOTHING_PIXELS = 1.0  # even without fringes: the edges of voxels and pixels differ
# In standard deviations of the smoothing. Beyond two, an edge changes the smoothed thickness by
# less than a twentieth of its step; refracted light reaches farther, as fringes do.
MARGIN_SIGMAS = 2.0
BESIDE_SIGMAS = 6.0
MOST_CYCLES = 6  # of linearisation; two or three are usual
# What causes a warning; chosen by hand.
POOR_ERROR = 0.1  # of the mean mu
UNEXPLAINED = 0.1  # rms of the residuals relative to that of -ln T
# In the report.
PICTURE_VIEWS = 3
PICTURE_PIXELS = 150


@dataclass(frozen=True, eq=False)
class ResidualView:
    """One view, for a picture of the residuals.

    Attributes
    ----------
    angle_deg : float
    x_um, u_um : array (nx,), array (ny,)
        Positions along the rotation axis and across it, from the origin, um.
    measured, calculated : array (nx, ny)
        -ln T.
    used : array (nx, ny) of bool
        Which rays were used.
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

    Attributes
    ----------
    names : tuple of n_labels str
    mu_per_um, standard_error_per_um : array (n_labels,)
        1/um; 0 for the background, NaN for materials that no usable ray meets.
    common_error_per_um : array (n_labels,)
        The part of the standard error that all views share, 1/um: the labels' edges and the axis.
    expected_per_um : array (n_labels,)
        mu from the composition at the energy of the scan, 1/um; NaN if unknown.
    refraction_um : float
        delta z of the crystal, um.
    correlation : array (n_labels, n_labels)
        Of the errors.
    condition_number : float
        Of the design with columns of equal length.
    not_told_apart : tuple of (str, str)
        Materials whose difference the data do not determine.
    undetermined : tuple of str
        Materials without usable rays.
    n_rays : array (n_labels,) of int
        The number of used rays through each material.
    margin_um : array (n_labels,)
        The margin that was kept from the edges of each material, um.
    used_share : float
        The part of all rays through the sample that was used.
    rms_residual : float
        Of -ln T of the used rays.
    unexplained : float
        The same, relative to the rms of -ln T through the sample.
    angles_deg, offsets, angle_rms : array (n_angles,)
        The angles, and the offset of the beam and the rms residual at each.
    centre : (float, float)
        As :attr:`Radiographs.centre`, given or found.
    shift_um : array (2,)
        How far, along X and Y, the images seem to be from this centre, um.
    energy_keV : float or None
        The energy of the scan.
    views : tuple of ResidualView
    warnings : tuple of str
        Sentences for the user.
    """

    names: tuple[str, ...]
    mu_per_um: FloatArray
    standard_error_per_um: FloatArray
    common_error_per_um: FloatArray
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
            "common_error_per_um",
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
        """Which mu (n_labels,) can be used: those that are determined and not negative."""
        return np.isfinite(self.mu_per_um) & (self.mu_per_um >= 0)

    def __repr__(self) -> str:
        values = ", ".join(
            f"{name} {mu:.6f} +- {error:.6f}"
            for name, mu, error in zip(
                self.names[1:], self.mu_per_um[1:], self.standard_error_per_um[1:], strict=True
            )
        )
        return f"CoefficientFit({values} /um from {self.n_rays.max(initial=0)} rays)"


def _remaining_shift(
    measured: FloatArray, calculated: FloatArray, offsets: FloatArray, step_um: FloatArray
) -> FloatArray:
    """The shift (2,) of measured images (k, gx, gy) from calculated ones along X and Y, um."""
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


@dataclass(frozen=True, eq=False)
class _Fitted:
    """The fit on the grid: maps (k, gx, gy); seen (m,): the labels whose mu were fitted."""

    grid: RayGrid
    measured: FloatArray
    calculated: FloatArray
    used: NDArray[np.bool_]
    in_label: NDArray[np.bool_]  # (k, gx, gy, n_labels)
    seen: NDArray[np.intp]
    margins: FloatArray
    solution: Solution
    shift_um: FloatArray
    rays: FittedRays

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

    If radiographs.centre is None, the position of the rotation axis, and of the origin along it, is
    found by registration.

    Parameters
    ----------
    radiographs : Radiographs
        Some tens of views, see :func:`spread_angles`.
    labels : LabelVolume
        The sample in the tomo frame.
    compositions : mapping of name to Composition, optional
        Of materials whose composition is known. Others have the typical one of their name. mu
        expected from them is only compared with the result; the ratios of delta are taken from
        them.
    margin_um : float, optional
        How far from the edges of materials rays are left out, um; by default MARGIN_SIGMAS of the
        smoothing.
    most_blocks : int
        Pixels are averaged in blocks until there are no more than this.

    Raises
    ------
    ValueError
        If images and labels do not show the same sample, or no ray is usable.
    """
    if margin_um is not None and not (math.isfinite(margin_um) and margin_um >= 0):
        raise ValueError(f"The margin is {margin_um} um; it must be a length >= 0.")
    usual = {name: typical_composition(name) for name in labels.names}
    made_of = usual | dict(compositions or {})
    delta = relative_delta(labels.names, made_of, radiographs.geometry.energy_keV)
    expected = expected_coefficients(labels.names, made_of, radiographs.geometry.energy_keV)
    origin = radiographs.upright_centre
    if origin is not None:
        fit = _fit(radiographs, labels, origin, delta, margin_um, most_blocks)
    else:
        origin = find_origin(radiographs, labels)
        fit = _fit(radiographs, labels, origin, delta, margin_um, most_blocks)
        sx, sy = fit.shift_um / radiographs.pixel_xy_um
        origin = (origin[0] + sx, origin[1] + sy)
        fit = _fit(radiographs, labels, origin, delta, margin_um, most_blocks)
    common = common_errors(fit.rays, labels, fit.shift_um, np.array(radiographs.pixel_xy_um))
    fit = replace(fit, solution=fit.solution.with_common(common))
    return _described(fit, radiographs, labels, origin, expected)


def _fit(
    radiographs: Radiographs,
    labels: LabelVolume,
    origin: tuple[float, float],
    delta: FloatArray,
    margin_um: float | None,
    most_blocks: int,
) -> _Fitted:
    pixel = max(radiographs.pixel_xy_um)
    sigma_um = max(LEAST_SMOOTHING_PIXELS * pixel, radiographs.geometry.fresnel_zone_um or 0.0)
    margin = MARGIN_SIGMAS * sigma_um if margin_um is None else margin_um
    x, y = windows_on(radiographs, labels, origin, max(margin, BESIDE_SIGMAS * sigma_um))
    n_pixels = len(radiographs.angles_deg) * (x[1] - x[0]) * (y[1] - y[0])
    block = math.ceil(math.sqrt(n_pixels / most_blocks))
    block = max(1, min(block, (x[1] - x[0]) // 4, (y[1] - y[0]) // 4))
    grid = ray_grid(radiographs, origin, x, y, block)
    lengths = grid.path_lengths(labels)
    sigma = sigma_um / grid.step_um
    measured = measured_views(grid, sigma)
    places, margins = away_from_edges(lengths, grid.step_um, labels, margin)
    in_sample = np.any(lengths > 0, axis=-1)
    places &= np.isfinite(measured) & (in_sample | far_from(in_sample, BESIDE_SIGMAS * sigma))
    bright = places & (measured < -math.log(LEAST_TRANSMISSION))
    require_bright(bright & in_sample, places & in_sample)
    seen = materials_seen(bright, lengths, float(labels.voxel_size_um.max()))
    if not len(seen):
        raise ValueError(
            f"No ray through the sample is far enough from edges ({margin:.3g} um); take a smaller "
            "coefficients.margin=, or give mu."
        )
    # rays through materials whose mu is not fitted say nothing about the others
    unseen = [i for i in range(1, lengths.shape[-1]) if i not in seen]
    places &= ~np.any(lengths[..., unseen] > 0, axis=-1)
    usable = places.copy()
    thin_out(places, in_sample)
    traced = lengths[..., seen].astype(np.float64)
    m = len(seen)
    total = traced.sum(axis=-1)[places]
    mu = np.full(m, max(float(total @ measured[places]) / float(total @ total), 0.0))
    rays, design, weights = None, None, np.empty(0)
    known, weight = known_refraction(radiographs)
    for _ in range(MOST_CYCLES):
        design = calculated_views(traced, mu, delta[seen], sigma, grid.step_um)
        # linear about mu: -ln T = calculated + sum (mu' - mu) lengths + ...
        linear = measured - design.calculated + design.lengths @ mu - known * design.refraction
        rays = _rays(linear, design, places, total > 0, grid, weight)
        parameters, _, weights = robust_fit(rays, m)
        before, mu = mu, parameters[:m]
        if np.all(np.abs(mu - before) < 1e-3 * np.abs(mu).max()):
            break
    assert rays is not None
    assert design is not None
    solution = solve_with_errors(rays, weights, grid.angles_deg, m)
    calculated = (
        design.calculated
        + design.lengths @ (solution.mu - before)
        + design.refraction * (known + solution.refraction)
    )
    used = usable & (calculated < -math.log(LEAST_TRANSMISSION))
    shift = _remaining_shift(measured, calculated, solution.offsets, grid.step_um)
    solution = replace(solution, refraction=known + solution.refraction)
    fitted = FittedRays(
        grid,
        places,
        rays,
        weights,
        solution.ridge,
        solution.mu,
        solution.refraction,
        delta[seen],
        sigma,
        seen,
    )
    return _Fitted(
        grid, measured, calculated, used, lengths > 0, seen, margins, solution, shift, fitted
    )


def _rays(
    linear: FloatArray,
    design: CalculatedViews,
    places: NDArray[np.bool_],
    in_sample: NDArray[np.bool_],
    grid: RayGrid,
    refraction_weight: float,
) -> Rays:
    """The rays of the places (k, gx, gy) with what is linear in the parameters (k, gx, gy)."""
    angle, ix, _ = np.nonzero(places)
    return Rays(
        linear[places],
        np.column_stack([design.lengths[places], design.refraction[places]]),
        angle.astype(np.int64),
        grid.x_um[ix],
        in_sample,
        len(grid.angles_deg),
        refraction_weight,
    )


def _described(
    fit: _Fitted,
    radiographs: Radiographs,
    labels: LabelVolume,
    origin: tuple[float, float],
    expected: FloatArray,
) -> CoefficientFit:
    n, names, solution, seen = len(labels.names), labels.names, fit.solution, fit.seen
    mu, error, common = (np.full(n, np.nan) for _ in range(3))
    mu[0] = error[0] = common[0] = 0.0
    mu[seen], error[seen], common[seen] = solution.mu, solution.error, solution.common
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
        common_error_per_um=common,
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
        energy_keV=radiographs.geometry.energy_keV,
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
