"""Errors of recorded angles and motion of the sample, from moments of the projections.

Within a band of rows, the centre of mass c and the variance v of -ln T are
(:mod:`anacor_dials.tomography.moments`)

    c(theta) = axis + y cos theta - z sin theta,     v(theta) = a + b cos 2 theta + e sin 2 theta.

If the angle of a projection is wrong by delta, c and v depart from these curves by ``delta
dc/dtheta`` and ``delta dv/dtheta``, which differ from band to band. If the sample has moved by d,
every c departs by d, and no v departs. So least squares over the bands give d and delta of each
projection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.tomography.moments import PIXEL_ERROR, Moments

BANDS = 12  # of rows along the axis, of about equal mass; chosen by hand
FLOOR_VARIANCE = 0.01  # error of a variance by pixels and sampling, besides noise, relative to it
# Departures of so many standard deviations are not accidental: even in 10^6 values with normal
# errors none is expected.
SIGMAS = 6.0
EDGE_PIXELS = 0.7  # errors that move the edge of the sample by less blur it by less than a pixel
FEW = 0.1  # of the projections may have wrong angles and be left out; chosen by hand
UNITS = {
    "degrees that were taken for radians": math.pi / 180,
    "radians that were taken for degrees": 180 / math.pi,
    "gon that were taken for degrees": 0.9,
    "degrees that were taken for gon": 1 / 0.9,
    "twice the angle": 0.5,
    "half the angle": 2.0,
}
JUMPS = 24  # frames that are tried as the beginning of an offset of the angles; chosen by hand
LEAST_DRIFT = 0.4  # pixels; a smaller drift blurs less than a pixel
# of a drift; the largest part that a steady drift may leave unexplained (of a cubic drift it leaves
# 0.03, of a sine of 2 theta 0.14)
STEADY = 0.1


@dataclass(frozen=True, eq=False)
class Course:
    """How the moments of a scan depart from those of a sample that turns by the recorded angles.

    Attributes
    ----------
    drift : array (n,)
        A smooth motion across the axis, pixels.
    angle_deg : array (n,)
        The error of the angle that explains each projection best without a further shift.
    shift : array (n,)
        The further shift, in pixels, that explains each projection best without an error of the
        angle.
    wrong_angle, shifted : array (n,) of bool
        Which of the two is taken as the cause; both False for good projections.
    misfit : float
        Of the recorded angles after the drift is subtracted, see :func:`misfit_of`.
    """

    drift: FloatArray
    angle_deg: FloatArray
    shift: FloatArray
    wrong_angle: NDArray[np.bool_]
    shifted: NDArray[np.bool_]
    misfit: float


def harmonics(angles_deg: FloatArray, order: int) -> tuple[FloatArray, FloatArray]:
    """(n, 3) values 1, cos and sin of `order` times the angles; their derivatives per radian."""
    theta = np.deg2rad(angles_deg) * order
    one, zero = np.ones_like(theta), np.zeros_like(theta)
    value = np.stack([one, np.cos(theta), np.sin(theta)], axis=1)
    slope = order * np.stack([zero, -np.sin(theta), np.cos(theta)], axis=1)
    return value, slope


def robust_fit(design: FloatArray, values: FloatArray, scale: float) -> FloatArray:
    """Coefficients (m,) of a linear fit that outliers do not change (Tukey's weights).

    Parameters
    ----------
    design : array (n, m)
    values : array (n,)
    scale : float
        The least standard deviation of good values.
    """
    weight = np.ones(len(values))
    for _ in range(20):
        root = np.sqrt(weight)
        x = np.linalg.lstsq(design * root[:, None], values * root, rcond=None)[0]
        residual = values - design @ x
        spread = max(1.4826 * float(np.median(np.abs(residual))), scale, 1e-9)
        weight = np.clip(1 - (residual / (5 * spread)) ** 2, 1e-4, None) ** 2
    return np.asarray(x)


def frame_noise(residual: FloatArray) -> float:
    """The standard deviation of a series that is smooth but for noise, from successive values."""
    return 1.4826 * float(np.median(np.abs(np.diff(residual, 2)))) / math.sqrt(6)


def in_bands(moments: Moments) -> tuple[FloatArray, FloatArray]:
    """(c, v), each (n, bands): centre of mass and variance within bands of about equal mass."""
    m0, m1, m2 = (m[:, moments.rows] for m in (moments.m0, moments.m1, moments.m2))
    weight = np.cumsum(m0.mean(axis=0))
    number = np.minimum((weight / weight[-1] * BANDS).astype(int), BANDS - 1)
    c, v = [], []
    for band in np.unique(number):
        rows = number == band
        a, b, d = (m[:, rows].sum(axis=1) for m in (m0, m1, m2))
        c.append(b / a)
        v.append(d / a - (b / a) ** 2)
    return np.stack(c, axis=1), np.stack(v, axis=1)


def _floors(v: FloatArray, error_px: float, bands: int) -> tuple[FloatArray, FloatArray]:
    """Errors (bands,) of the centres of mass and of the variances that are no noise.

    Where the images show edges displaced by e, the centre of mass is wrong by as much at most, and
    the variance r^2 by 2 r e. Variances below one pixel squared say nothing.
    """
    r2 = np.median(v, axis=0)
    of_v = np.maximum(FLOOR_VARIANCE * r2, 2 * error_px * np.sqrt(np.maximum(r2, 0.0)))
    return np.full(bands, error_px), np.where(r2 > 1.0, of_v, 1e3 * np.maximum(np.abs(v).max(), 1))


def _departures(
    c: FloatArray, v: FloatArray, angles_deg: FloatArray, error_px: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Departures (n, 2 bands) of c and v from their curves, their slopes, and sigmas (2 bands,)."""
    r, g, s = [], [], []
    floors = _floors(v, error_px, c.shape[1])
    for values, order, floor in ((c, 1, floors[0]), (v, 2, floors[1])):
        design, slope = harmonics(angles_deg, order)
        for column, least in zip(values.T, floor, strict=True):
            x = robust_fit(design, column, float(least))
            departure = column - design @ x
            r.append(departure)
            g.append(slope @ x)
            s.append(math.hypot(frame_noise(departure), float(least)))
    return np.stack(r, axis=1), np.stack(g, axis=1), np.array(s)


def follow(
    c: FloatArray,
    v: FloatArray,
    angles_deg: FloatArray,
    time: FloatArray,
    error_px: float = PIXEL_ERROR,
) -> Course:
    """What the moments say about angles and motion.

    A smooth drift is subtracted first. If a projection still departs from the curves, either its
    angle is wrong or the sample is displaced in it: whichever fits the bands better. If both fit
    equally well (all bands have the same centre), it is the angle if the recorded angles are
    unevenly spaced there.

    Parameters
    ----------
    c, v : array (n, bands)
        Centre of mass and variance, see :func:`in_bands`.
    angles_deg : array (n,)
    time : array (n,)
        From -1 to 1 over the scan.
    error_px : float
        Of edges in the images, see :class:`.moments.Moments`.
    """
    n, bands = c.shape
    one = np.concatenate([np.ones(bands), np.zeros(bands)])
    drift = np.zeros(n)
    for _ in range(2):
        r, g, s = _departures(c - drift[:, None], v, angles_deg, error_px)
        w = 1 / s**2
        shift = (r * one) @ w / (w @ one)
        found = drift_across(shift + drift, angles_deg, time)
        drift = np.zeros(n) if found is None else found
    r, g, s = _departures(c - drift[:, None], v, angles_deg, error_px)
    w = 1 / s**2
    shift = (r * one) @ w / (w @ one)
    strength = np.maximum((g * g) @ w, 1e-9)
    delta = (r * g) @ w / strength
    whole = (r * r) @ w
    by_shift = whole - shift**2 * (w @ one)
    by_angle = whole - delta**2 * strength
    # an error of the angle moves the edge of the sample more than any centre of mass, since the
    # edge is farther from the axis
    reach = 2.0 * math.sqrt(max(float(np.max(np.median(v, axis=0))), 1.0)) + float(np.ptp(c)) / 2
    departs = (whole - np.minimum(by_shift, by_angle) > SIGMAS**2) & (
        (np.abs(shift) > EDGE_PIXELS) | (np.abs(delta) * reach > EDGE_PIXELS)
    )
    # the bands of an image have noise in common, so an image is compared with other images
    far_off = np.abs(delta) > SIGMAS * _scatter(delta)
    far_aside = np.abs(shift) > SIGMAS * _scatter(shift)
    angle_better = departs & far_off & (by_angle < 0.5 * by_shift)
    shift_better = departs & far_aside & (by_shift < 0.5 * by_angle)
    doubtful = departs & far_off & ~angle_better & ~shift_better
    wrong = angle_better | (doubtful & _unevenly_spaced(angles_deg))
    shifted = departs & far_aside & ~wrong & (np.abs(shift) > EDGE_PIXELS)
    misfit = misfit_of(c - drift[:, None], v, angles_deg, error_px)
    return Course(drift, np.rad2deg(delta), shift, wrong, shifted, misfit)


def _scatter(values: FloatArray) -> float:
    """The standard deviation of values (n,) of which a few are far off."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _unevenly_spaced(angles_deg: FloatArray) -> NDArray[np.bool_]:
    """(n,) whether the step of the recorded angle before or after a projection is unusual."""
    steps = np.diff(angles_deg)
    usual = float(np.median(steps))
    odd = np.abs(steps - usual) > 0.3 * abs(usual)
    return np.append(odd, False) | np.append(False, odd)


def misfit_of(
    c: FloatArray, v: FloatArray, angles_deg: FloatArray, error_px: float = PIXEL_ERROR
) -> float:
    """The rms departure of c and v from their curves, in standard deviations.

    Departures are first averaged over a twentieth of the scan, since errors of many angles in a row
    are no noise.

    Parameters
    ----------
    c, v : array (n, bands)
        Centre of mass and variance, see :func:`in_bands`.
    angles_deg : array (n,)
    error_px : float
        Of edges in the images, see :class:`.moments.Moments`.
    """
    total = 0.0
    width = max(1, len(c) // 20)
    floors = _floors(v, error_px, c.shape[1])
    for values, order, floor in ((c, 1, floors[0]), (v, 2, floors[1])):
        design, _ = harmonics(angles_deg, order)
        x = np.linalg.lstsq(design, values, rcond=None)[0]
        noise = np.array([frame_noise(column) for column in values.T]) / math.sqrt(width)
        smooth = scipy.ndimage.uniform_filter1d(values - design @ x, width, axis=0, mode="nearest")
        total += float(np.mean((smooth / np.hypot(noise, floor)) ** 2))
    return math.sqrt(total / 2)


def offset_between(
    c: FloatArray, v: FloatArray, angles_deg: FloatArray, error_px: float = PIXEL_ERROR
) -> tuple[int, float, float]:
    """The offset, of all angles from some frame on, that fits best: (first frame, degrees, misfit).

    Parameters
    ----------
    c, v : array (n, bands)
        Centre of mass and variance, see :func:`in_bands`.
    angles_deg : array (n,)
    error_px : float
        Of edges in the images, see :class:`.moments.Moments`.
    """
    n = len(angles_deg)
    best = (0, 0.0, misfit_of(c, v, angles_deg, error_px))
    jumps = np.unique(np.linspace(0.05 * n, 0.95 * n, JUMPS).astype(int))
    offsets = np.concatenate([-np.geomspace(1, 90, 14), np.geomspace(1, 90, 14)])
    for _ in range(3):
        for jump in jumps:
            for offset in offsets:
                tried = angles_deg + offset * (np.arange(n) >= jump)
                misfit = misfit_of(c, v, tried, error_px)
                if misfit < best[2]:
                    best = (int(jump), float(offset), misfit)
        width = max(1, int(np.diff(jumps).max()) // 4) if len(jumps) > 1 else 1
        jumps = np.unique(np.clip(best[0] + np.arange(-4, 5) * width, 1, n - 1))
        offsets = best[1] * (1 + np.linspace(-0.2, 0.2, 9))
    return best


def standing_still(angles_deg: FloatArray, wrong: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Frames (n,) with wrong angles, and those beside them whose recorded angle stays the same."""
    step = float(np.median(np.abs(np.diff(angles_deg))))
    still = np.append(False, np.abs(np.diff(angles_deg)) < 0.1 * step)
    out = wrong.copy()
    for k in np.flatnonzero(wrong & still):
        for direction in (-1, 1):
            j = k
            while 0 <= j < len(out) and still[j]:
                out[j] = True
                j += direction
    return out


def drift_across(shift: FloatArray, angles_deg: FloatArray, time: FloatArray) -> FloatArray | None:
    """The drift (n,) across the axis, in pixels; None if it is too small to matter.

    A drift that varies as cos or sin of the angle cannot be told from another place of the sample.
    A steady drift is taken completely; of any other drift only the part that is not of this form.

    Parameters
    ----------
    shift : array (n,)
        Pixels, as in :class:`Course`.
    angles_deg : array (n,)
    time : array (n,)
        From -1 to 1 over the scan.
    """
    design, _ = harmonics(angles_deg, 1)
    noise = frame_noise(shift)
    powers = np.asarray(np.polynomial.legendre.legvander(time, 6)[:, 1:], dtype=np.float64)
    powers -= powers.mean(axis=0)
    beside = powers - design @ np.linalg.lstsq(design, powers, rcond=None)[0]
    departure = shift - design @ robust_fit(design, shift, noise)
    curves = beside @ robust_fit(beside, departure, noise)
    if np.ptp(curves) < max(LEAST_DRIFT, SIGMAS * noise * math.sqrt(6 / len(time))):
        return None
    steady = np.column_stack([design, powers[:, 0]])
    x = robust_fit(steady, shift, noise)
    left = float(np.std(curves - beside[:, 0] * x[3]))
    # a constant rate for the whole scan, if it explains what all the curves do within their
    # accuracy; else a motion there and back would be taken for a steady one, several times as large
    accuracy = 2 * noise * math.sqrt(6 / len(time))
    if left < max(STEADY * float(np.std(curves)), PIXEL_ERROR, accuracy):
        return np.asarray(x[3] * powers[:, 0])
    return np.asarray(curves - curves.mean())


def drift_along(moments: Moments, time: FloatArray) -> FloatArray | None:
    """The drift (n,) along the axis, in pixels; None if it is too small to matter.

    Each projection has a profile m0(x). ``m0(x) - M(x) = -s M'(x)``, with the mean profile M, gives
    its shift s by least squares. This is repeated with the profiles moved back.
    """
    profile, place = moments.m0, moments.x
    if len(place) < 8:
        return None
    inner = slice(2, len(place) - 2)
    shift: FloatArray = np.zeros(len(profile))
    for _ in range(4):
        moved = np.stack(
            [np.interp(place + s, place, p) for p, s in zip(profile, shift, strict=True)]
        )
        mean = moved.mean(axis=0)
        slope = np.gradient(mean, place)[inner]
        power = float(slope @ slope)
        if not power > 0:
            return None
        step = (moved - mean)[:, inner] @ slope / power
        shift = np.asarray(shift - step + step.mean(), dtype=np.float64)
    curves = np.asarray(np.polynomial.legendre.legvander(time, 5), dtype=np.float64)
    smooth = np.asarray(curves @ robust_fit(curves, shift, 1e-3))
    smooth -= smooth.mean()
    scatter = float(np.std(shift - smooth))
    error = float(np.sqrt(np.mean((moved - mean)[:, inner] ** 2) / power))
    least = max(2 * LEAST_DRIFT, 3 * scatter, SIGMAS * error * math.sqrt(6 / len(time)))
    return None if np.ptp(smooth) < least else smooth


def axis_tilt(moments: Moments, angles_deg: FloatArray) -> tuple[float, float]:
    """The tilt of the rotation axis in the image, and its standard deviation, in degrees.

    From X towards +Y. If the axis is at ``u = axis + t x``, a point of the sample is seen at (x - t
    u, u + t x). To first order ``m1(x) = m0 (axis + y cos - z sin) + t (x m0 + d m2 / dx)``, with
    m2 about the axis.
    """
    rows = moments.rows
    design, _ = harmonics(angles_deg, 1)
    inverse = np.linalg.pinv(design)[0]  # the constant of a fit of 1, cos and sin
    mass = moments.m0.mean(axis=0)
    constant = inverse @ moments.m1
    axis = float(constant[rows].sum() / mass[rows].sum())
    tilt, error = 0.0, math.inf
    for _ in range(2):
        m2 = moments.m2 - 2 * axis * moments.m1 + axis**2 * moments.m0
        bend = inverse @ np.gradient(m2, moments.x, axis=1)
        columns = np.stack([mass, moments.x * mass + bend], axis=1)[rows]
        values = constant[rows]
        x = np.linalg.lstsq(columns, values, rcond=None)[0]
        axis, tilt = float(x[0]), float(x[1])
        residual = values - columns @ x
        spread = float(np.sum(residual**2)) / max(len(residual) - 2, 1)
        error = math.sqrt(spread * np.linalg.pinv(columns.T @ columns)[1, 1])
    return math.degrees(tilt), math.degrees(error)
