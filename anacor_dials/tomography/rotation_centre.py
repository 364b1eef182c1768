"""The place of the rotation axis on the detector: the pixel number at which u = 0."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from anacor_dials.sample.frames import FloatArray
from anacor_dials.tomography.ramp_filter import Sinograms
from anacor_dials.tomography.scan_angles import is_full_turn

logger = logging.getLogger("dials.anacor_dials.tomography.rotation_centre")

VO_PROJECTIONS = 360  # more take longer and do not improve the result
CENTRE_METHODS = ("auto", "vo", "opposite", "mass")


@dataclass(frozen=True)
class RotationCentre:
    """The place of the rotation axis.

    Attributes
    ----------
    axis : float
        Pixel number across the axis.
    method : str
        How it was found, in words.
    per_slice : tuple of float
        The same of each slice, if several were used.
    """

    axis: float
    method: str
    per_slice: tuple[float, ...] = ()

    @property
    def spread(self) -> float:
        """The median absolute deviation of the slices, in pixels."""
        return (
            float(np.median(np.abs(np.array(self.per_slice) - self.axis)))
            if self.per_slice
            else 0.0
        )


def centre_of_mass_axis(sinogram: Sinograms, angles_deg: FloatArray) -> float:
    """The pixel number of the axis, from the centres of mass of a sinogram (n_angles, n_u).

    If the whole sample is on the detector, the centre of mass of -ln T is at ``axis + y0 cos(theta)
    - z0 sin(theta)``; this is fitted by linear least squares.
    """
    edge = max(2, sinogram.shape[1] // 50)
    sides = np.concatenate([sinogram[:, :edge], sinogram[:, -edge:]], axis=1)
    p = sinogram.astype(np.float64) - np.median(sides)
    mass = p.sum(axis=1)
    good = mass > 0.1 * np.median(mass)
    if not np.median(mass) > 0 or good.sum() < 3:
        raise ValueError("The slice is empty: there is nothing to find the rotation axis by.")
    middle = (p @ np.arange(p.shape[1]))[good] / mass[good]
    theta = np.deg2rad(angles_deg[good])
    design = np.stack([np.ones_like(theta), np.cos(theta), -np.sin(theta)], axis=1)
    return float(np.linalg.lstsq(design, middle, rcond=None)[0][0])


def is_whole_sample(sinogram: Sinograms) -> bool:
    """Whether the sample of a slice is on the detector at all angles.

    Then the sum of each projection is the same and its sides are empty.
    """
    edge = max(2, sinogram.shape[1] // 50)
    mass = sinogram.sum(axis=1, dtype=np.float64)
    sides = np.concatenate([sinogram[:, :edge], sinogram[:, -edge:]], axis=1).mean()
    height = np.percentile(sinogram, 99)
    return bool(np.std(mass) < 0.03 * np.mean(mass) and sides < 0.03 * height)


def opposite_views_axis(sinogram: Sinograms, angles_deg: FloatArray, pairs: int = 120) -> float:
    """The pixel number of the axis, from opposite views of a whole turn.

    p(theta, u) = p(theta + 180, 2 axis - u): the mean square difference of opposite views, relative
    to their mean squares where they overlap, is least at the axis. The axis may be anywhere on the
    detector (half-acquisition scans included).

    Parameters
    ----------
    sinogram : array (n_angles, n_u)
        -ln T.
    angles_deg : array (n_angles,)
    pairs : int
        How many pairs of views are compared.
    """
    n_u = sinogram.shape[1]
    order = np.argsort(np.mod(angles_deg, 360.0), kind="stable")
    turn = np.mod(angles_deg, 360.0)[order]
    views = scipy.ndimage.gaussian_filter1d(sinogram[order].astype(np.float64), 1.0, axis=1)
    first = np.linspace(0, np.sum(turn < 180.0) - 1, min(pairs, int(np.sum(turn < 180.0)))).astype(
        int
    )
    a = views[first]
    # the view half a turn on, between its two neighbours
    place = np.interp(
        np.mod(turn[first] + 180.0, 360.0),
        np.append(turn, turn[0] + 360.0),
        np.arange(len(turn) + 1),
    )
    low = np.floor(place).astype(int)
    part = (place - low)[:, None]
    b = (1 - part) * views[low % len(turn)] + part * views[(low + 1) % len(turn)]
    b = b[:, ::-1]
    least = max(8, n_u // 20)
    shifts = np.arange(-(n_u - least), n_u - least + 1)  # n_u - 1 - 2 axis
    misfit = np.empty(len(shifts))
    for k, shift in enumerate(shifts):
        start, stop = max(0, -shift), min(n_u, n_u - shift)
        one, other = a[:, start:stop], b[:, start + shift : stop + shift]
        size = np.sum(one * one) + np.sum(other * other)
        misfit[k] = np.sum((one - other) ** 2) / size if size > 0 else np.inf
    # a strip without sample agrees with anything: it must hold a fair part of the whole
    whole = np.sum(a * a) + np.sum(b * b)
    for k, shift in enumerate(shifts):
        start, stop = max(0, -shift), min(n_u, n_u - shift)
        held = np.sum(a[:, start:stop] ** 2) + np.sum(b[:, start + shift : stop + shift] ** 2)
        if held < 0.1 * whole:
            misfit[k] = np.inf
    best = int(np.argmin(misfit))
    shift = float(shifts[best])
    if 0 < best < len(shifts) - 1 and np.all(np.isfinite(misfit[best - 1 : best + 2])):
        below, here, above = misfit[best - 1 : best + 2]
        if below + above > 2 * here:
            shift += 0.5 * (below - above) / (below - 2 * here + above)
    return (n_u - 1 - shift) / 2


def vo_axis(sinogram: Sinograms, angles_deg: FloatArray) -> float:
    """The pixel number of the axis, from a sinogram of half a turn, by algotom.

    Vo et al., Opt. Express 22 (2014) 19078. Of longer scans the first half turn is used, of dense
    ones every second or third projection.
    """
    from algotom.prep.calculation import find_center_vo

    n_u = sinogram.shape[1]
    half = np.flatnonzero(np.abs(angles_deg - angles_deg[0]) <= 180.0)
    half = half[:: max(1, len(half) // VO_PROJECTIONS)]
    some = np.ascontiguousarray(sinogram[half])
    start, stop = n_u // 4, n_u - 1 - n_u // 4

    def find(first: int, last: int) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the search range; the result is checked against it
            return float(find_center_vo(some, start=first, stop=last, step=0.25))

    if is_whole_sample(sinogram):  # then the centre of mass says where to look
        guess = centre_of_mass_axis(sinogram, angles_deg)
        for near in (max(10, n_u // 50), max(20, n_u // 20)):
            low, high = int(guess) - near, int(guess) + near
            if start < low and high < stop:
                found = find(low, high)
                if low + near / 3 < found < high - near / 3:
                    return found
    return find(start, stop)


def find_rotation_centre(
    sinograms: Sinograms, angles_deg: FloatArray, method: str = "auto"
) -> RotationCentre:
    """The place of the rotation axis: the median of several slices.

    Parameters
    ----------
    sinograms : array (n_slices, n_angles, n_u)
        -ln T.
    angles_deg : array (n_angles,)
    method : str
        opposite, for whole turns; vo, for half turns; mass, if the whole sample is on the detector.
        auto takes opposite for whole turns, else vo if algotom is installed, else mass (which a
        slope of the background would move).

    Raises
    ------
    ValueError
        If the method is unknown or does not suit the scan, or no slice holds a sample.
    """
    if method not in CENTRE_METHODS:
        raise ValueError(
            f"The way {method!r} to find the centre is unknown; choose {', '.join(CENTRE_METHODS)}, or "
            "give the centre."
        )
    full = is_full_turn(angles_deg)
    if method == "opposite" and not full:
        raise ValueError(
            "Opposite views need a scan of 360 degrees; choose another way to find the centre."
        )
    algotom = importlib.util.find_spec("algotom") is not None
    if method == "vo" and not algotom:
        raise ValueError("Vo's way to find the centre needs algotom: pip install algotom.")
    chosen = method
    if method == "auto":
        chosen = "opposite" if full else "vo" if algotom else "mass"
    find = {"opposite": opposite_views_axis, "vo": vo_axis, "mass": centre_of_mass_axis}[chosen]
    if chosen == "mass" and not all(is_whole_sample(s) for s in sinograms):
        logger.warning("The sample reaches beyond the detector: its centre of mass is uncertain.")
    found = []
    for sinogram in sinograms:
        try:
            found.append(find(sinogram, angles_deg))
        except ValueError as error:
            logger.debug("A slice is left out: %s", error)
    if not found:
        raise ValueError(
            "The rotation axis cannot be found: the slices are empty. Give it by hand, centre=."
        )
    axis = float(np.median(found))
    if not 0 <= axis <= sinograms.shape[-1] - 1:
        raise ValueError(
            f"The rotation axis was found at pixel {axis:.1f}, outside the detector (0 to "
            f"{sinograms.shape[-1] - 1}); give it by hand, centre=."
        )
    return RotationCentre(axis, chosen, tuple(found))
