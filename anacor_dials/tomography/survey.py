"""All projections of a scan at reduced size, for the checks of frames, beam, angles and motion."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray, FloatImages
from anacor_dials.sample.progress import Progress

if TYPE_CHECKING:
    from anacor_dials.tomography.projections import Projections


ACROSS, ALONG = (
    256,
    128,
)  # pixels that a small image has at most, across and along the rotation axis

BATCH_BYTES = 3.2e7  # of transmissions that are read at a time


@dataclass(frozen=True, eq=False)
class Survey:
    """All projections of a scan at reduced size.

    Attributes
    ----------
    images : array (n, kx, ky)
        Transmissions, means over blocks of pixels, upright; NaN if a block has no usable pixel.
    block : (int, int)
        Pixels along X and Y of a block.
    unusable : array (n,)
        The share of unusable pixels in each projection.
    checksum : array (n,)
        Of each raw image; equal for identical images.
    """

    images: FloatImages
    block: tuple[int, int]
    unusable: FloatArray
    checksum: NDArray[np.int64]


def block_means(image: FloatImages, block: tuple[int, int]) -> FloatImages:
    """Means (kx, ky) over whole blocks of an image (nx, ny); pixels that are NaN do not count.

    A block without any number is NaN.
    """
    out = np.empty((image.shape[0] // block[0], image.shape[1] // block[1]), np.float32)
    _block_means(image, *block, out)
    return out


@numba.njit(parallel=True, cache=True)
def _block_means(image, bx, by, out):  # type: ignore[no-untyped-def]
    kx, ky = out.shape
    for i in numba.prange(kx):
        for j in range(ky):
            total = 0.0
            count = 0
            for a in range(i * bx, (i + 1) * bx):
                for b in range(j * by, (j + 1) * by):
                    value = image[a, b]
                    if not np.isnan(value):
                        total += value
                        count += 1
            out[i, j] = total / count if count else np.nan


def survey_scan(projections: Projections) -> Survey:
    """The survey of a scan; each image is read once."""
    n = projections.n_angles
    block = (math.ceil(projections.nx / ALONG), math.ceil(projections.ny / ACROSS))
    images = np.empty((n, projections.nx // block[0], projections.ny // block[1]), np.float32)
    unusable, checksum = np.empty(n), np.empty(n, dtype=np.int64)
    step = max(1, int(BATCH_BYTES / (4.0 * projections.nx * projections.ny)))
    with Progress(n, "Looking at the images", "image") as progress:
        for first in range(0, n, step):
            numbers = projections.numbers[first : first + step]
            raw = projections.frames.read(numbers)
            batch = projections.flat_corrected(raw, numbers)
            for k, transmission in enumerate(batch, first):
                checksum[k] = zlib.crc32(np.ascontiguousarray(raw[k - first]).data)
                unusable[k] = np.count_nonzero(np.isnan(transmission)) / transmission.size
                images[k] = block_means(transmission, block)
            progress.update(len(numbers))
    return Survey(images, block, unusable, checksum)
