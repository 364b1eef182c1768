"""Do the recorded angles fit the images, and does the sample stay where it is? By moments of the projections.

Within a band of rows the centre of mass c and the variance v of -ln T are, with :mod:`anacor_dials.tomography.moments`,

    c(theta) = axis + y cos theta - z sin theta,     v(theta) = a + b cos 2 theta + e sin 2 theta.

A projection whose angle is off by delta departs from these by ``delta dc/dtheta`` and ``delta dv/dtheta``, different
in each band; one in which the sample has moved by d departs by d in every c, and not at all in v. So d and delta of
each projection are found by least squares over the bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.tomography.moments import Moments

BANDS = 12
FLOOR_PIXELS = 0.03  # what pixels and sampling do to a centre of mass, beyond noise
FLOOR_VARIANCE = 0.01  # likewise, of a variance, relative to it
SIGMAS = 6.0  # beyond which an error is no accident
EDGE_PIXELS = 0.7  # what an error of the angle must move the sample's edge by, to be minded
FEW = 0.1  # of the projections: what may have wrong angles
UNITS = {
    "degrees that were taken for radians": math.pi / 180,
    "radians that were taken for degrees": 180 / math.pi,
    "gon that were taken for degrees": 0.9,
    "degrees that were taken for gon": 1 / 0.9,
    "twice the angle": 0.5,
    "half the angle": 2.0,
}
JUMPS = 24  # places where an offset of the angles may begin that are tried
LEAST_DRIFT = 0.4  # pixels: smaller drifts do no harm
STEADY = 0.1  # of a drift: what a steady one may leave unexplained (a cubic leaves 0.03, a sine of 2 theta 0.14)


@dataclass(frozen=True, eq=False)
class Course:
    """How a scan's moments depart from those of a sample that turns by the recorded angles and drifts.

    drift: (n,) pixels across, smooth; angle_deg, shift: (n,) the error of the angle, or the further shift in pixels,
    that explains a projection best, each without the other; wrong_angle, shifted: (n,) where it is taken for the
    one or the other. misfit: see :func:`misfit_of`, of the recorded angles, the drift taken off.
    """

    drift: FloatArray
    angle_deg: FloatArray
    shift: FloatArray
    wrong_angle: NDArray[np.bool_]
    shifted: NDArray[np.bool_]
    misfit: float


def harmonics(angles_deg: FloatArray, order: int) -> tuple[FloatArray, FloatArray]:
    """(1, cos, sin) (n, 3) of order times the angles, and its derivative by the angle in radians."""
    theta = np.deg2rad(angles_deg) * order
    one, zero = np.ones_like(theta), np.zeros_like(theta)
    value = np.stack([one, np.cos(theta), np.sin(theta)], axis=1)
    slope = order * np.stack([zero, -np.sin(theta), np.cos(theta)], axis=1)
    return value, slope


def robust_fit(design: FloatArray, values: FloatArray, scale: float) -> FloatArray:
    """Coefficients of a linear fit to values (n,) that outliers of some `scale` do not pull (Tukey's weights)."""
    weight = np.ones(len(values))
    for _ in range(20):
        root = np.sqrt(weight)
        x = np.linalg.lstsq(design * root[:, None], values * root, rcond=None)[0]
        residual = values - design @ x
        spread = max(1.4826 * float(np.median(np.abs(residual))), scale, 1e-9)
        weight = np.clip(1 - (residual / (5 * spread)) ** 2, 1e-4, None) ** 2
    return np.asarray(x)


def frame_noise(residual: FloatArray) -> float:
    """The standard deviation from one value to the next of a series that is smooth otherwise."""
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


def _departures(
    c: FloatArray, v: FloatArray, angles_deg: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(r, g, s): departures (n, 2 bands) from sines, their slopes by the angle, and sigmas (2 bands,)."""
    r, g, s = [], [], []
    floors = np.full(c.shape[1], FLOOR_PIXELS), FLOOR_VARIANCE * np.median(v, axis=0)
    for values, order, floor in ((c, 1, floors[0]), (v, 2, floors[1])):
        design, slope = harmonics(angles_deg, order)
        for column, least in zip(values.T, floor, strict=True):
            x = robust_fit(design, column, float(least))
            departure = column - design @ x
            r.append(departure)
            g.append(slope @ x)
            s.append(math.hypot(frame_noise(departure), float(least)))
    return np.stack(r, axis=1), np.stack(g, axis=1), np.array(s)


def follow(c: FloatArray, v: FloatArray, angles_deg: FloatArray, time: FloatArray) -> Course:
    """What the moments c and v (n, bands) say of angles and motion; time: (n,) from -1 to 1.

    A smooth drift is taken off first. A projection that departs from the sines still has a wrong angle, or shows
    the sample displaced, whichever fits its bands better; where both fit alike (all bands have one centre) it is the
    angle if the recorded angles are not evenly spaced there.
    """
    n, bands = c.shape
    one = np.concatenate([np.ones(bands), np.zeros(bands)])
    drift = np.zeros(n)
    for _ in range(2):
        r, g, s = _departures(c - drift[:, None], v, angles_deg)
        w = 1 / s**2
        shift = (r * one) @ w / (w @ one)
        found = drift_across(shift + drift, angles_deg, time)
        drift = np.zeros(n) if found is None else found
    r, g, s = _departures(c - drift[:, None], v, angles_deg)
    w = 1 / s**2
    shift = (r * one) @ w / (w @ one)
    strength = np.maximum((g * g) @ w, 1e-9)
    delta = (r * g) @ w / strength
    whole = (r * r) @ w
    by_shift = whole - shift**2 * (w @ one)
    by_angle = whole - delta**2 * strength
    # an angle's error moves the edge of the sample, which is farther from the axis than any centre of mass
    reach = 2.0 * math.sqrt(max(float(np.max(np.median(v, axis=0))), 1.0)) + float(np.ptp(c)) / 2
    departs = (whole - np.minimum(by_shift, by_angle) > SIGMAS**2) & (
        (np.abs(shift) > EDGE_PIXELS) | (np.abs(delta) * reach > EDGE_PIXELS)
    )
    # the noise of an image is common to its bands: what counts is how far it is from other images
    far_off = np.abs(delta) > SIGMAS * _scatter(delta)
    far_aside = np.abs(shift) > SIGMAS * _scatter(shift)
    angle_better = departs & far_off & (by_angle < 0.5 * by_shift)
    shift_better = departs & far_aside & (by_shift < 0.5 * by_angle)
    doubtful = departs & far_off & ~angle_better & ~shift_better
    wrong = angle_better | (doubtful & _unevenly_spaced(angles_deg))
    shifted = departs & far_aside & ~wrong & (np.abs(shift) > EDGE_PIXELS)
    misfit = misfit_of(c - drift[:, None], v, angles_deg)
    return Course(drift, np.rad2deg(delta), shift, wrong, shifted, misfit)


def _scatter(values: FloatArray) -> float:
    """The standard deviation of values (n,) of which a few are far off."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _unevenly_spaced(angles_deg: FloatArray) -> NDArray[np.bool_]:
    """(n,) where a recorded step, to either side, is no usual one."""
    steps = np.diff(angles_deg)
    usual = float(np.median(steps))
    odd = np.abs(steps - usual) > 0.3 * abs(usual)
    return np.append(odd, False) | np.append(False, odd)


def misfit_of(c: FloatArray, v: FloatArray, angles_deg: FloatArray) -> float:
    """The rms departure of c and v (n, bands) from sines of the angles, in standard deviations.

    Departures are averaged over a twentieth of the scan first: what is wrong with many angles is not noise.
    """
    total = 0.0
    width = max(1, len(c) // 20)
    floors = np.full(c.shape[1], FLOOR_PIXELS), FLOOR_VARIANCE * np.median(v, axis=0)
    for values, order, floor in ((c, 1, floors[0]), (v, 2, floors[1])):
        design, _ = harmonics(angles_deg, order)
        x = np.linalg.lstsq(design, values, rcond=None)[0]
        noise = np.array([frame_noise(column) for column in values.T]) / math.sqrt(width)
        smooth = scipy.ndimage.uniform_filter1d(values - design @ x, width, axis=0, mode="nearest")
        total += float(np.mean((smooth / np.hypot(noise, floor)) ** 2))
    return math.sqrt(total / 2)


def offset_between(
    c: FloatArray, v: FloatArray, angles_deg: FloatArray
) -> tuple[int, float, float]:
    """(first frame, degrees, misfit) of the offset of all angles from some frame on that fits best."""
    n = len(angles_deg)
    best = (0, 0.0, misfit_of(c, v, angles_deg))
    jumps = np.unique(np.linspace(0.05 * n, 0.95 * n, JUMPS).astype(int))
    offsets = np.concatenate([-np.geomspace(1, 90, 14), np.geomspace(1, 90, 14)])
    for _ in range(3):
        for jump in jumps:
            for offset in offsets:
                misfit = misfit_of(c, v, angles_deg + offset * (np.arange(n) >= jump))
                if misfit < best[2]:
                    best = (int(jump), float(offset), misfit)
        width = max(1, int(np.diff(jumps).max()) // 4) if len(jumps) > 1 else 1
        jumps = np.unique(np.clip(best[0] + np.arange(-4, 5) * width, 1, n - 1))
        offsets = best[1] * (1 + np.linspace(-0.2, 0.2, 9))
    return best


def standing_still(angles_deg: FloatArray, wrong: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Wrong frames (n,), and with them those around them whose recorded angle is that of the frame before."""
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
    """The drift (n,) across the axis, in pixels; None where it does no harm.

    shift: (n,) as of :class:`Course`; time: (n,) -1 to 1. A drift that goes as cos or sin of the angle is the same as
    a sample elsewhere, and nobody can tell. Of the rest a steady drift is taken in full, and any other one only in so
    far as it is no such sine.
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
    # one rate for the whole scan, where it explains what all the curves do, to their own accuracy; a motion there
    # and back would else be taken for a steady one that is several times as large
    accuracy = 2 * noise * math.sqrt(6 / len(time))
    if left < max(STEADY * float(np.std(curves)), FLOOR_PIXELS, accuracy):
        return np.asarray(x[3] * powers[:, 0])
    return np.asarray(curves - curves.mean())


def drift_along(moments: Moments, time: FloatArray) -> FloatArray | None:
    """The drift (n,) along the axis, in pixels, from each projection's profile m0(x); None where it does no harm.

    ``m0(x) - M(x) = -s M'(x)`` by least squares, M the mean profile, again with profiles moved back.
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
    """(tilt, its standard deviation) in degrees of the rotation axis in the image, from X towards +Y.

    An axis at ``u = axis + t x`` shows a point of the sample at (x - t u, u + t x), so that to first order
    ``m1(x) = m0 (axis + y cos - z sin) + t (x m0 + d m2 / dx)``, m2 about the axis.
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
