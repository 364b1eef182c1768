"""Moments of projections, which show errors of angles, motion of the sample and tilt of the axis.

Consider a sample that does not change, is in view at all angles and turns about an axis along X of
the image. Each row x of its projections p = -ln T has the moments (Helgason, Acta Math. 113 (1965)
153; Ludwig, Comm. Pure Appl. Math. 19 (1966) 49)

    m0(x, theta) = integral of p du              the same at all angles
    m1(x, theta) = integral of u p du            = m0 (axis + y cos theta - z sin theta)

with the centre of mass (y, z) of the row.

Interference fringes keep the sum of T, not that of -ln T, so they violate both equations. In
simulated scans with T up to 3 in the fringes, the mass of a plate seen edge-on came out 5 % too
large, and its centre was wrong by up to 1.5 pixels. Therefore T is blurred over strong fringes
before its logarithm is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.tomography.beam_level import BeamLevel
from anacor_dials.tomography.survey import Survey

# Chosen by hand: so few rows, or so little sample in a row, would be decided by noise.
LEAST_ROWS = 3  # with sample
ROW_MASS = 0.05  # of the largest m0; rows with less are not used
# standard deviation of the blur, in pixels of the survey; a blur of 2 halves the departures from
# sines, and more reduces them little further
FRINGE_BLUR = 2.0
# If less is transmitted, -ln T is the noise of the dark; with a larger share of such pixels the
# moments say nothing.
OPAQUE, OPAQUE_SHARE = 0.003, 0.001
FRINGES = 1.15  # if the brightest pixels transmit more, fringes are strong; chosen by hand
# how far, in pixels, edges are displaced by pixels and sampling; and by strong fringes. The centres
# of mass of six virtual scans with strong fringes (5 to 19 mm, 2.8 to 5.4 keV, samples of 15 to 40
# pixels) departed from sines by 0.05 to 0.5 pixels
PIXEL_ERROR, FRINGE_ERROR = 0.03, 0.25


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of each row of images at reduced size; u in pixels from the middle column.

    Attributes
    ----------
    m0, m1, m2 : array (n, kx)
    x : array (kx,)
        Where the rows are, in pixels from the middle row of the image.
    rows : array (kx,) of bool
        True for rows that hold sample and see air on both sides.
    error_px : float
        How far edges may be displaced in the images, apart from noise.
    """

    m0: FloatArray
    m1: FloatArray
    m2: FloatArray
    x: FloatArray
    rows: NDArray[np.bool_]
    error_px: float = PIXEL_ERROR

    @property
    def centre(self) -> FloatArray:
        """The centre of mass (n,) across the axis, in pixels from the middle of the image."""
        return np.asarray(self.m1[:, self.rows].sum(axis=1) / self.m0[:, self.rows].sum(axis=1))

    def only(self, which: NDArray[np.bool_]) -> Moments:
        """The moments of some projections (n,)."""
        m0, m1, m2 = (m[which] for m in (self.m0, self.m1, self.m2))
        return replace(self, m0=m0, m1=m1, m2=m2)

    def moved_back(self, along: FloatArray, across: FloatArray) -> Moments:
        """The moments without a motion of the sample by (n,) pixels along and across the axis."""
        m0, m1, m2 = (
            np.stack([np.interp(self.x + s, self.x, row) for row, s in zip(m, along, strict=True)])
            for m in (self.m0, self.m1, self.m2)
        )
        d = across[:, None]
        return replace(self, m0=m0, m1=m1 - d * m0, m2=m2 - 2 * d * m1 + d * d * m0)


def _without_background(
    attenuation: FloatArray, air: NDArray[np.bool_], u: FloatArray
) -> FloatArray:
    """-ln T (n, kx, ky) less a straight line across each image, fitted to air."""
    where_u = np.broadcast_to(u, air.shape)[air]
    design = np.stack([np.ones_like(where_u), where_u], axis=1)
    inverse = np.linalg.pinv(design)
    line = attenuation[:, air] @ inverse.T
    return attenuation - (line[:, :1, None] + line[:, 1:, None] * u)


def find_moments(survey: Survey, good: NDArray[np.bool_], beam: BeamLevel) -> Moments | None:
    """The moments of the good projections (n,).

    None if the sample is not in view from side to side, or is opaque.

    Parameters
    ----------
    survey : Survey
    good : array (n,) of bool
    beam : BeamLevel
    """
    if not beam.seen:
        return None
    both = beam.air[:, 0] & beam.air[:, -1]
    if both.sum() < LEAST_ROWS:
        return None
    bx, by = survey.block
    _, kx, ky = survey.images.shape
    u = (np.arange(ky) - (ky - 1) / 2) * by
    x = (np.arange(kx) - (kx - 1) / 2) * bx
    level = np.maximum(beam.level[good], 1e-3)[:, None, None]
    images = np.nan_to_num(survey.images[good] / level, nan=1.0)
    if np.count_nonzero(images < OPAQUE) > OPAQUE_SHARE * images.size:
        return None
    air, error_px = beam.air, PIXEL_ERROR
    if np.quantile(images, 0.999) > FRINGES:
        error_px = FRINGE_ERROR
        sigma = (0, FRINGE_BLUR, FRINGE_BLUR)
        images = scipy.ndimage.gaussian_filter(images, sigma, mode="nearest")
        # the blur carries the sample into the air beside it
        spread = round(2 * FRINGE_BLUR)
        air = scipy.ndimage.binary_erosion(air, iterations=spread, border_value=1)
        both &= air[:, 0] & air[:, -1]
        if both.sum() < LEAST_ROWS:
            return None
    attenuation = -np.log(np.clip(images, 1e-3, None)).astype(np.float64)
    attenuation = _without_background(attenuation, air & both[:, None], u)
    attenuation[:, air] = 0.0  # noise, far from the middle
    profile = attenuation.sum(axis=2) * by
    mean = profile.mean(axis=0)
    rows = both & (mean > ROW_MASS * np.max(np.where(both, mean, 0.0)))
    if rows.sum() < LEAST_ROWS:
        return None
    m1, m2 = (attenuation @ u) * by, (attenuation @ (u * u)) * by
    return Moments(profile, m1, m2, x, rows, error_px)
