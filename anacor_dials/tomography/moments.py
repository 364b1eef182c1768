"""Moments of projections: what they tell about angles, the sample's motion and the axis' tilt.

For a sample that stays as it is, is in view at all angles and turns about an axis along the image's
X, each row x of the projections p = -ln T has (Helgason, Acta Math. 113 (1965) 153; Ludwig, Comm.
Pure Appl. Math. 19 (1966) 49)

    m0(x, theta) = integral of p du              the same at all angles
    m1(x, theta) = integral of u p du            = m0 (axis + y cos theta - z sin theta)

with (y, z) the row's centre of mass.

Fringes obey neither: they keep the sum of T, not that of -ln T, so that the mass of a plate that is seen edge-on
came out 5 % too large, and its centre up to 1.5 pixels aside (simulated scans with T up to 3 in the fringes).
Therefore T is blurred over strong fringes before its logarithm is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.tomography.beam_level import BeamLevel
from anacor_dials.tomography.survey import Survey

LEAST_ROWS = 3
ROW_MASS = 0.05  # of the heaviest row: lighter rows say little
# standard deviation, in small pixels, of the blur: departures from sines fall to a half from 0 to 2, and no further
FRINGE_BLUR = 2.0
FRINGES = 1.15  # transmission of the brightest pixels, from which on there are strong fringes


@dataclass(frozen=True, eq=False)
class Moments:
    """m0, m1, m2 (n, kx): of each row of small pixels, u in pixels from the image's middle column.

    x: (kx,) where the rows are, in pixels from the image's middle row; rows: (kx,) True for those
    that hold sample and see air on both sides.
    """

    m0: FloatArray
    m1: FloatArray
    m2: FloatArray
    x: FloatArray
    rows: NDArray[np.bool_]

    @property
    def centre(self) -> FloatArray:
        """The centre of mass (n,) across the axis, in pixels from the image's middle."""
        return np.asarray(self.m1[:, self.rows].sum(axis=1) / self.m0[:, self.rows].sum(axis=1))

    def only(self, which: NDArray[np.bool_]) -> Moments:
        """The moments of some projections (n,)."""
        return Moments(self.m0[which], self.m1[which], self.m2[which], self.x, self.rows)

    def moved_back(self, along: FloatArray, across: FloatArray) -> Moments:
        """The moments of a sample that had not moved by (n,) pixels along and across the axis."""
        m0, m1, m2 = (
            np.stack([np.interp(self.x + s, self.x, row) for row, s in zip(m, along, strict=True)])
            for m in (self.m0, self.m1, self.m2)
        )
        d = across[:, None]
        return Moments(m0, m1 - d * m0, m2 - 2 * d * m1 + d * d * m0, self.x, self.rows)


def _without_background(
    attenuation: FloatArray, air: NDArray[np.bool_], u: FloatArray
) -> FloatArray:
    """-ln T (n, kx, ky) less the straight line across that fits it best in air, image by image."""
    where_u = np.broadcast_to(u, air.shape)[air]
    design = np.stack([np.ones_like(where_u), where_u], axis=1)
    inverse = np.linalg.pinv(design)
    line = attenuation[:, air] @ inverse.T
    return attenuation - (line[:, :1, None] + line[:, 1:, None] * u)


def find_moments(survey: Survey, good: NDArray[np.bool_], beam: BeamLevel) -> Moments | None:
    """The moments of the good projections (n,); None where the sample is not in view from side to
    side.
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
    air = beam.air
    if np.quantile(images, 0.999) > FRINGES:
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
    return Moments(profile, (attenuation @ u) * by, (attenuation @ (u * u)) * by, x, rows)
