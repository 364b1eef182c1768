"""Where a person looks first: the places in which the labels are least sure, the worst first.

The doubt of a voxel is one minus the largest probability. It counts fully where the crystal is one of the
two most probable materials, since its shape matters most to the absorption factors, and by half elsewhere.
The doubt is averaged over a neighbourhood; places are the maxima of that mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.segmentation.tiles import uncertainty

NEIGHBOURHOOD = 5.0  # voxels: standard deviation of the Gaussian mean
APART = 10  # voxels between places
LEAST = 0.02  # of the mean doubt: below it nobody need look
OTHERS = 0.5  # what doubt counts for that is not about the crystal


@dataclass(frozen=True)
class DoubtfulPlace:
    """A voxel (x, y, z) about which the labels are unsure; doubt: the mean around it, 0 to 1.
    materials: the two labels that are most probable there."""

    voxel: tuple[int, int, int]
    doubt: float
    materials: tuple[int, int]


def doubt_of(probabilities: NDArray[np.uint8], crystal: int) -> NDArray[np.uint8]:
    """What speaks against the labels, uint8 (nx, ny, nz), 255 = 1, weighted as the module says.

    probabilities: uint8 (n_classes, nx, ny, nz), 255 = 1.
    """
    out = uncertainty(probabilities)
    for x in range(out.shape[0]):
        p = probabilities[:, x]
        second = np.partition(p, -2, axis=0)[-2]
        elsewhere = p[crystal] < np.maximum(second, 1)
        out[x][elsewhere] = (OTHERS * out[x][elsewhere]).astype(np.uint8)
    return out


def doubtful_places(
    probabilities: NDArray[np.uint8],
    crystal: int,
    by_hand: NDArray[np.bool_] | None = None,
    most: int = 40,
    step: int = 1,
) -> list[DoubtfulPlace]:
    """The doubtful places of probabilities (n_classes, nx, ny, nz), the worst first.

    crystal: its label. by_hand: voxels about which there is no doubt any more. most: how many.
    step: where only every second, third ... voxel is given, so that lengths in voxels are shorter.
    """
    from skimage.feature import peak_local_max

    doubt = doubt_of(probabilities, crystal).astype(np.float32) / 255
    if by_hand is not None:
        doubt[by_hand] = 0
    mean = scipy.ndimage.gaussian_filter(doubt, NEIGHBOURHOOD / step, truncate=2.5, mode="constant")
    peaks = peak_local_max(
        mean,
        min_distance=max(1, APART // step),
        threshold_abs=LEAST,
        num_peaks=most,
        exclude_border=False,
    )
    places, near_by = [], max(1, 4 // step)
    for x, y, z in peaks:
        box = tuple(slice(max(0, int(c) - near_by), int(c) + near_by + 1) for c in (x, y, z))
        local = doubt[box]
        # the most doubtful voxel near the maximum of the mean is what one wants to see
        near = np.unravel_index(int(local.argmax()), local.shape)
        i, j, k = (int(part.start + n) for part, n in zip(box, near, strict=True))
        order = np.argsort(probabilities[:, i, j, k])[::-1]
        materials = (int(order[0]), int(order[1]))
        places.append(DoubtfulPlace((i, j, k), float(mean[x, y, z]), materials))
    return places
