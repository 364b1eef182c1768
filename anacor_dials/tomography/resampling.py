"""Images of a sample that moves, or whose rotation axis is tilted, corrected for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray, FloatImages

TAPS = 2  # pixels to either side that a cubic looks at


@dataclass(frozen=True, eq=False)
class Motion:
    """How far the sample is from its place in each projection, and how the rotation axis is tilted.

    Attributes
    ----------
    along, across : array (n,)
        Pixels along X and along Y.
    tilt_deg : float
        Of the rotation axis in the image, from X towards +Y, about the middle of the image.
    """

    along: FloatArray
    across: FloatArray
    tilt_deg: float = 0.0

    def halo(self, ny: int) -> int:
        """How many further rows must be read on either side; ny: pixels across an image."""
        lean = math.sin(math.radians(abs(self.tilt_deg))) * 0.5 * ny
        return math.ceil(float(np.max(np.abs(self.along))) + lean) + TAPS + 1

    def __getitem__(self, which: NDArray[np.intp]) -> Motion:
        return Motion(self.along[which], self.across[which], self.tilt_deg)


@numba.njit(cache=True)
def _cubic(f: float) -> tuple[float, float, float, float]:
    """Weights of four neighbours at a fraction f from the second one.

    Keys, IEEE Trans. ASSP 29 (1981) 1153, a = -1/2.
    """
    return (
        ((-0.5 * f + 1.0) * f - 0.5) * f,
        (1.5 * f - 2.5) * f * f + 1.0,
        ((-1.5 * f + 2.0) * f + 0.5) * f,
        (0.5 * f - 0.5) * f * f,
    )


@numba.njit(parallel=True, cache=True)
def moved_back(
    images: FloatImages,
    first_row: int,
    rows: NDArray[np.intp],
    nx: int,
    along: FloatArray,
    across: FloatArray,
    tilt: float,
) -> FloatImages:
    """Images (n, len(rows), ny) without motion (n,) and tilt (radians), by cubic interpolation.

    images: (n, m, ny), the rows from first_row on of images of nx rows; rows: numbers of those
    wanted. Beyond the image its border goes on; NaN where a neighbour is NaN.
    """
    n, m, ny = images.shape
    out = np.empty((n, len(rows), ny), np.float32)
    sin, cos = math.sin(tilt), math.cos(tilt)
    middle_x, middle_y = 0.5 * (nx - 1), 0.5 * (ny - 1)
    for k in numba.prange(n):
        for i in range(len(rows)):
            for j in range(ny):
                x, u = rows[i] - middle_x, j - middle_y
                px = middle_x + x * cos - u * sin + along[k] - first_row
                pu = middle_y + u * cos + x * sin + across[k]
                ix, iu = math.floor(px), math.floor(pu)
                a, b = _cubic(px - ix), _cubic(pu - iu)
                total = 0.0
                for s in range(4):
                    row = min(max(ix - 1 + s, 0), m - 1)
                    line = 0.0
                    for t in range(4):
                        line += b[t] * images[k, row, min(max(iu - 1 + t, 0), ny - 1)]
                    total += a[s] * line
                out[k, i, j] = total
    return out
