"""Where a person should look first: the places with the most uncertain labels.

The doubt of a voxel is one minus its largest probability. It counts fully where crystal is one of
the two most probable materials, since the shape of the crystal matters most for the absorption
factors, and by half elsewhere. Places are the maxima of the doubt averaged over a neighbourhood.
Where the border between crystal and liquor does not show (:mod:`.unseen_borders`), a network may be
sure of its labels and wrong; such places come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.segmentation.tiles import uncertainty

# Chosen by hand, so that a place is what a person sees at once, and the list is short.
NEIGHBOURHOOD = 5.0  # voxels: standard deviation of the Gaussian mean
APART = 10  # voxels: the least distance of two places
LEAST = 0.02  # of the mean doubt; places with less are not listed
OTHERS = 0.5  # the weight of doubt that is not about the crystal


@dataclass(frozen=True)
class DoubtfulPlace:
    """A voxel with an uncertain label.

    Attributes
    ----------
    voxel : (int, int, int)
        Its indices.
    doubt : float
        The mean around it, 0 to 1.
    materials : (int, int)
        The two most probable labels.
    unseen_border : bool
        Whether it lies on a border between the two that does not show in the tomogram. Then the
        doubt is one.
    """

    voxel: tuple[int, ...]
    doubt: float
    materials: tuple[int, int]
    unseen_border: bool = False


def unseen_border(voxel: tuple[int, ...], names: Sequence[str]) -> DoubtfulPlace:
    """A place where the border between crystal and liquor does not show.

    Parameters
    ----------
    voxel : (int, int, int)
    names : sequence of str
        Of the labels.
    """
    materials = names.index("crystal"), names.index("liquor")
    return DoubtfulPlace(voxel, 1.0, materials, unseen_border=True)


def around(voxel: tuple[int, ...]) -> tuple[slice, ...]:
    """The part of a volume about NEIGHBOURHOOD from a voxel."""
    reach = round(NEIGHBOURHOOD)
    return tuple(slice(max(0, v - reach), v + reach + 1) for v in voxel)


def doubt_of(probabilities: NDArray[np.uint8], crystal: int) -> NDArray[np.uint8]:
    """The doubt uint8 (nx, ny, nz) of every voxel, 255 = 1, weighted as the module describes.

    Parameters
    ----------
    probabilities : array (n_classes, nx, ny, nz) of uint8
        255 = 1.
    crystal : int
        The label of the crystal.
    """
    out = uncertainty(probabilities)
    weighted = (OTHERS * np.arange(256)).astype(np.uint8)
    for x in range(out.shape[0]):
        first = second = np.zeros(out.shape[1:], dtype=np.uint8)
        for p in probabilities[:, x]:
            second = np.maximum(second, np.minimum(first, p))
            first = np.maximum(first, p)
        elsewhere = probabilities[crystal, x] < np.maximum(second, 1)
        out[x] = np.where(elsewhere, weighted[out[x]], out[x])
    return out


def doubtful_places(
    probabilities: NDArray[np.uint8],
    crystal: int,
    by_hand: NDArray[np.bool_] | None = None,
    most: int = 40,
    step: int = 1,
) -> list[DoubtfulPlace]:
    """The doubtful places of a labelled volume, beginning with the most doubtful one.

    Parameters
    ----------
    probabilities : array (n_classes, nx, ny, nz) of uint8
        255 = 1.
    crystal : int
        The label of the crystal.
    by_hand : array (nx, ny, nz) of bool, optional
        Voxels that a person labelled; they are not doubtful.
    most : int
        The largest number of places.
    step : int
        If the volume holds only every second, third ... voxel: this step. Lengths in voxels are
        divided by it.
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
        # a person wants to see the most doubtful voxel near the maximum of the mean
        near = np.unravel_index(int(local.argmax()), local.shape)
        i, j, k = (int(part.start + n) for part, n in zip(box, near, strict=True))
        order = np.argsort(probabilities[:, i, j, k])[::-1]
        materials = (int(order[0]), int(order[1]))
        places.append(DoubtfulPlace((i, j, k), float(mean[x, y, z]), materials))
    return places
