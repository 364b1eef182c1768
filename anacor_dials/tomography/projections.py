"""Projections: what a scan measured, as transmissions in the axes of the tomo frame.

``T = (I - D) / (F(t) - D)`` with the image I, the mean dark D, and the flat F interpolated linearly
in time between the groups in which flats were taken. Images are *upright*: their first index runs
along X, the rotation axis, their second along Y at ``rotation_angle = 0``, whichever way the camera
was mounted. A point (x, y, z) of the sample is seen at angle theta at ``u = y cos(theta) - z
sin(theta)``.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.frames import FloatArray, FloatImages
from anacor_dials.sample.scan_geometry import ScanGeometry
from anacor_dials.tomography.count_times import relative_exposures
from anacor_dials.tomography.frame_checks import LEAST_PROJECTIONS
from anacor_dials.tomography.image_stacks import Frames
from anacor_dials.tomography.resampling import Motion, moved_back
from anacor_dials.tomography.scan_checks import ScanFindings, checked_scan
from anacor_dials.tomography.scan_files import ScanDescription, find_scan

logger = logging.getLogger("dials.anacor_dials.tomography.projections")

UNUSABLE_LIMIT = 0.05  # of the pixels of a projection


@dataclass(frozen=True, eq=False)
class Projections:
    """A scan: its images, read on demand, and all that is known about them.

    Attributes
    ----------
    frames : Frames
        The raw images.
    numbers : array (n,) of int
        Which of the frames are projections.
    angles_deg : array (n,)
        The rotation angle of each projection.
    flats : array (g, rows, columns) of float32
        The mean of each group of flats less the dark, in counts.
    flat_times : array (g,)
        When each group was taken, as a frame number; ascending.
    dark : array (rows, columns) of float32
        In counts.
    geometry : ScanGeometry
        Pixel size, energy, distance and axes of the raw images.
    saturation : float
        A pixel of this raw value or more is unusable; inf if there is no limit.
    path : Path or None
    layout : str
        What kind of file the scan came from.
    level : array (n,) or None
        Of the beam in each projection, relative to the flats; None means 1. :meth:`transmission`
        divides by it.
    motion : Motion or None
        Of the sample; None if it does not move. :meth:`transmission` corrects for it.
    findings : ScanFindings
        Of :func:`anacor_dials.tomography.scan_checks.checked_scan`.
    """

    frames: Frames
    numbers: NDArray[np.intp]
    angles_deg: FloatArray
    flats: FloatImages
    flat_times: FloatArray
    dark: FloatImages
    geometry: ScanGeometry
    saturation: float = math.inf
    path: Path | None = None
    layout: str = "array"
    level: FloatArray | None = None
    motion: Motion | None = None
    findings: ScanFindings = field(default_factory=ScanFindings)

    def __post_init__(self) -> None:
        n_frames, rows, columns = self.frames.shape
        if self.numbers.shape != self.angles_deg.shape or self.numbers.ndim != 1:
            raise ValueError(
                f"There are {self.numbers.size} projections and {self.angles_deg.size} angles."
            )
        if self.flats.shape != (len(self.flat_times), rows, columns) or not len(self.flat_times):
            raise ValueError(
                f"The flats have the shape {self.flats.shape}; images have {rows} x {columns} pixels."
            )
        if self.dark.shape != (rows, columns):
            raise ValueError(
                f"The dark has {self.dark.shape} pixels; images have {rows} x {columns}."
            )
        if len(self.numbers) < 3 or np.ptp(self.angles_deg) == 0:
            raise ValueError(
                f"The scan has {len(self.numbers)} projections over "
                f"{np.ptp(self.angles_deg) if len(self.numbers) else 0:g} degrees; a tomogram needs "
                "projections from many directions."
            )

    # ---- geometry

    @property
    def n_angles(self) -> int:
        """The number of projections."""
        return len(self.numbers)

    @property
    def shape(self) -> tuple[int, int]:
        """(nx, ny) of the upright images."""
        return self.geometry.axes.upright_shape(*self.frames.shape[1:])

    @property
    def nx(self) -> int:
        """Pixels along the rotation axis."""
        return self.shape[0]

    @property
    def ny(self) -> int:
        """Pixels across the rotation axis."""
        return self.shape[1]

    @property
    def pixel_xy_um(self) -> tuple[float, float]:
        """Pixel size along X and Y in um. Raises ValueError where it is unknown."""
        size = self.geometry.pixel_xy_um
        if size is None:
            raise ValueError(
                f"{self.path or 'The scan'} does not say how large a pixel is; give "
                "projections.pixel_size= in um, at the sample."
            )
        return size

    @cached_property
    def _upright_flats(self) -> FloatImages:
        return np.ascontiguousarray(self.geometry.axes.upright(self.flats))

    @cached_property
    def _upright_dark(self) -> FloatImages:
        return np.ascontiguousarray(self.geometry.axes.upright(self.dark))

    def transmission(
        self,
        which: ArrayLike | slice = slice(None),
        x: slice | NDArray[np.intp] = slice(None),
    ) -> FloatImages:
        """Transmissions (k, nx', ny) of some projections, upright; NaN where a pixel is unusable.

        Unusable are saturated pixels, pixels that are no numbers, and pixels where the flat is not
        brighter than the dark. Values are not clipped: beside the sample noise gives more than 1.

        which: indices into ``numbers`` and ``angles_deg``, or a slice of them. x: a range
        start:stop of pixels along the rotation axis, or their numbers.
        """
        chosen = np.arange(self.n_angles)[which if isinstance(which, slice) else np.asarray(which)]
        numbers = self.numbers[chosen]
        rows = np.arange(self.nx)[x]
        halo = 0 if self.motion is None else self.motion.halo(self.ny)
        first, stop = max(int(rows.min()) - halo, 0), min(int(rows.max()) + 1 + halo, self.nx)
        raw = self.frames.read(numbers, *self.geometry.axes.raw_window(slice(first, stop), self.nx))
        if self.motion is None:
            images = self.flat_corrected(raw, numbers, first, rows)
        else:
            images = self.flat_corrected(raw, numbers, first, np.arange(first, stop))
            move = self.motion[chosen]
            images = moved_back(
                images, first, rows, self.nx, move.along, move.across, math.radians(move.tilt_deg)
            )
        if self.level is not None:
            images /= self.level[chosen, None, None].astype(np.float32)
        return images

    def flat_corrected(
        self,
        raw: NDArray[Any],
        numbers: NDArray[np.intp],
        first_row: int = 0,
        rows: NDArray[np.intp] | None = None,
    ) -> FloatImages:
        """Transmissions (k, nx', ny), upright, of raw images, without the corrections that follow.

        The level of the beam and the motion of the sample are not corrected.

        Parameters
        ----------
        raw : array (k, rows, columns)
            Raw images, or a part of them along the rotation axis.
        numbers : array (k,) of int
            Which frames they are; the flats are interpolated in time.
        first_row : int
            The pixel along the rotation axis that the images begin with.
        rows : array of int, optional
            The pixels along the rotation axis that are wanted; all if not given.
        """
        raw = self.geometry.axes.upright(raw)
        x = slice(None) if rows is None else rows
        if rows is not None and not np.array_equal(rows, first_row + np.arange(raw.shape[1])):
            raw = raw[:, rows - first_row]
        times = self.flat_times
        place = np.clip(np.interp(numbers, times, np.arange(len(times))), 0, max(len(times) - 1, 0))
        before = np.minimum(place.astype(np.intp), max(len(times) - 2, 0))
        weight = (place - before).astype(np.float32)
        out = np.empty(raw.shape, dtype=np.float32)
        _flat_correct(
            raw,
            np.ascontiguousarray(self._upright_flats[:, x]),
            np.ascontiguousarray(self._upright_dark[x]),
            before,
            weight,
            self.saturation,
            out,
        )
        return out

    def __repr__(self) -> str:
        pixel, energy_keV = self.geometry.pixel_size_um, self.geometry.energy_keV
        size = "unknown" if pixel is None else "{:g} x {:g} um".format(*pixel)
        _, rows, columns = self.frames.shape
        energy = "" if energy_keV is None else f", {energy_keV:g} keV"
        return (
            f"Projections({self.n_angles} of {rows} x {columns} pixels, pixel size {size}, "
            f"{self.angles_deg.min():.2f} to {self.angles_deg.max():.2f} deg, "
            f"{len(self.flat_times)} group(s) of flats{energy})"
        )


@numba.njit(parallel=True, cache=True)
def _flat_correct(
    raw: NDArray[Any],
    flats: FloatImages,
    dark: FloatImages,
    before: NDArray[np.intp],
    weight: FloatImages,
    saturation: float,
    out: FloatImages,
) -> None:
    n, nx, ny = raw.shape
    last = flats.shape[0] - 1
    for k in numba.prange(n):
        first, w = flats[before[k]], weight[k]
        second = flats[min(before[k] + 1, last)]
        for i in range(nx):
            for j in range(ny):
                value = raw[k, i, j]
                flat = first[i, j] + w * (second[i, j] - first[i, j])
                if value >= saturation or not flat > 0 or not np.isfinite(value):
                    out[k, i, j] = np.nan
                else:
                    out[k, i, j] = (np.float32(value) - dark[i, j]) / flat


def mean_frame(
    frames: Frames, numbers: NDArray[np.intp], saturation: float = math.inf
) -> FloatImages:
    """The mean (rows, columns) of some frames, read one at a time; NaN where one is unusable.

    In five or more frames the brightest value of a pixel is left out if it lies above the mean of
    the others by more than 6 of their standard deviations and 5 %: it is a direct hit of the
    camera.

    Parameters
    ----------
    frames : Frames
    numbers : array of int
    saturation : float
        A pixel of this value or more is unusable.
    """
    total: FloatArray = np.zeros(frames.shape[1:], dtype=np.float64)
    squares, brightest = np.zeros_like(total), np.full_like(total, -np.inf)
    for number in numbers:
        image = frames.read(np.array([number]))[0].astype(np.float64)
        image[(image >= saturation) | ~np.isfinite(image)] = np.nan
        total += image
        squares += image * image
        brightest = np.maximum(brightest, image)
    n = len(numbers)
    mean = total / n
    if n >= 5:
        others = (total - brightest) / (n - 1)
        scatter = np.sqrt(np.maximum((squares - brightest**2) / (n - 1) - others**2, 0))
        hit = brightest - others > np.maximum(6 * scatter, 0.05 * np.abs(others))
        mean = np.where(hit, others, mean)
    return mean.astype(np.float32)


def _same_view(angles_deg: FloatArray, full_scan_tolerance: float) -> tuple[NDArray[np.bool_], str]:
    """Which (n,) projections to keep, and a sentence on the one that is left out.

    A scan of 180 or 360 degrees may end with the view that it began with, seen from behind or from
    the same side. Then the last projection is left out.
    """
    keep = np.ones(len(angles_deg), dtype=bool)
    travelled = abs(angles_deg[-1] - angles_deg[0])
    for turn in (180.0, 360.0):
        if abs(travelled - turn) < full_scan_tolerance:
            keep[-1] = False
            return keep, f"the last projection, {turn:g} degrees from the first, repeats it"
    return keep, ""


def read_projections(
    path: str | os.PathLike[str], description: ScanDescription | None = None
) -> Projections:
    """A scan: flats and darks are read and averaged, projections stay in their files.

    If the scan ends 180 or 360 degrees from where it began, the last projection is left out.

    Raises ValueError as :func:`anacor_dials.tomography.scan_files.find_scan` does, and if flats are
    zero, or if projections are mostly saturated or no numbers.
    """
    description = description or ScanDescription()
    scan = find_scan(path, description)
    first = scan.frames.read(scan.projections[:1])
    if description.saturation is not None:
        saturation = description.saturation
    elif np.issubdtype(first.dtype, np.integer) and first.dtype.itemsize <= 2:
        saturation = float(np.iinfo(first.dtype).max)
    else:
        saturation = math.inf
    rows, columns = scan.frames.shape[1:]
    exposures = None
    if scan.darks and not description.flat_corrected:
        darks = [mean_frame(frames, numbers) for frames, numbers, _ in scan.darks]
        weights = [len(numbers) for _, numbers, _ in scan.darks]
        dark = np.average(darks, axis=0, weights=weights).astype(np.float32)
    else:
        dark = np.zeros((rows, columns), dtype=np.float32)
        if not description.flat_corrected:
            logger.warning("The scan has no darks: the camera's signal without beam is taken as 0.")
    if description.flat_corrected:
        flats = np.ones((1, rows, columns), dtype=np.float32)
        times = np.zeros(1)
    else:
        groups = sorted(scan.flats, key=lambda group: group[2])
        flats = np.stack([mean_frame(f, numbers, saturation) for f, numbers, _ in groups]) - dark
        times = np.array([time for _, _, time in groups])
        _check_flats(path, flats)
        own = [numbers if stack is scan.frames else None for stack, numbers, _ in groups]
        exposures = relative_exposures(scan, own)
    level = None
    if exposures is not None:
        flats /= exposures[0][:, None, None].astype(np.float32)
        level = exposures[1]
        logger.info(
            "Count times differ (%.3g to %.3g of the flats'): they are taken off.",
            level.min(),
            level.max(),
        )
    angles = scan.angles_deg
    step = float(np.median(np.abs(np.diff(angles)))) if len(angles) > 1 else 0.0
    keep, why = _same_view(angles, 0.5 * step)
    projections = Projections(
        scan.frames,
        scan.projections,
        angles,
        flats,
        times,
        dark,
        scan.geometry,
        saturation,
        scan.path,
        scan.layout,
        level,
    )
    if why and projections.n_angles > 3:
        logger.info("One projection is left out: %s.", why)
        projections = replace(
            projections,
            numbers=projections.numbers[keep],
            angles_deg=angles[keep],
            level=None if level is None else level[keep],
        )
    if projections.n_angles >= LEAST_PROJECTIONS:
        projections = checked_scan(projections, description.checks, UNUSABLE_LIMIT)
    _check_images(projections)
    return projections


def _check_flats(path: object, flats: FloatImages) -> None:
    for number, flat in enumerate(flats):
        unusable = float(np.mean(~(flat > 0)))
        if unusable > 0.5:
            raise ValueError(
                f"{path}: in flats {number + 1} of {len(flats)}, {100 * unusable:.0f} % of the pixels "
                "are not brighter than the dark (zero, saturated, or taken with the shutter closed); "
                "name other flats by projections.flat=."
            )


def _check_images(projections: Projections) -> None:
    """Raises ValueError if the first, middle or last projection cannot be used."""
    # images as they were taken; where they are moved back, pixels beside an unusable one are
    # unknown, too
    projections = replace(projections, motion=None)
    for k in (0, projections.n_angles // 2, projections.n_angles - 1):
        transmission = projections.transmission(slice(k, k + 1))
        unusable = float(np.mean(np.isnan(transmission)))
        name = (
            f"{projections.path}: projection {k + 1} of {projections.n_angles} "
            f"({projections.angles_deg[k]:.2f} deg)"
        )
        if unusable > UNUSABLE_LIMIT:
            raw = projections.frames.read(projections.numbers[k : k + 1])
            saturated = float(np.mean(raw >= projections.saturation))
            nan = float(np.mean(~np.isfinite(raw)))
            reason = (
                f"{100 * saturated:.0f} % are saturated (at {projections.saturation:g})"
                if saturated > max(nan, 0.5 * unusable)
                else f"{100 * nan:.0f} % are not numbers"
                if nan > 0.5 * unusable
                else "the flat is not brighter than the dark"
            )
            raise ValueError(
                f"{name}: {100 * unusable:.0f} % of the pixels are unusable: {reason}. Take the scan "
                "again, leave such images out (image key 3), or name other flats or another saturation."
            )
        level = float(np.nanmax(transmission))
        if not level > 0:
            raise ValueError(
                f"{name} is not brighter than the dark: the scan was cut off, or the shutter was closed."
            )
        if float(np.nanmedian(transmission)) > 1.5:
            logger.warning(
                "%s is brighter than the flat (median transmission %.2f): are these its flats?",
                name,
                float(np.nanmedian(transmission)),
            )
