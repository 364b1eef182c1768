"""What a person drew in some slices is continued into the neighbouring slices.

Around the voxels in which a person contradicted the labels, the labels are decided again. This is
done by a random walker (Grady, IEEE Trans. PAMI 28 (2006) 1768), which starts from the hand-made
labels and from the labels farther away, and follows the edges of the tomogram; or by SAM-2, if a
checkpoint was given. Hand-made labels are kept. Air stays air and sample stays sample, since they
are distinguished by their level.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.segmentation.fringes import HALO, LENGTHS, smoothed
from anacor_dials.segmentation.sam2_refinement import SlicePredictor, exclusive
from anacor_dials.segmentation.tiles import SAMPLE_LEVEL

Region = tuple[slice, slice, slice]
# (normalised values, labels, by hand, what is decided again) of a region -> labels
Propagation = Callable[
    [NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]],
    NDArray[np.uint8],
]
# Voxels: standard deviation of the Gaussian that smooths the plain view, about that of the point
# spread. Chosen by hand.
PLAIN_BLUR = 1.0
# Voxels: the layer of labels, around what is decided again, that the walker starts from
SEEDS_AROUND = 2


@dataclass(frozen=True)
class PropagationSettings:
    """How far and how hand-made labels are continued.

    Parameters
    ----------
    reach : int
        How far from a stroke labels are decided again, voxels.
    stiffness : float
        How strongly differences of the smoothed tomogram hold the walker back: beta of the
        publication, for differences in units of their standard deviation.
    """

    reach: int = 8
    stiffness: float = 2000.0

    def __post_init__(self) -> None:
        if not 1 <= self.reach <= 100:
            raise ValueError(f"Strokes go {self.reach} voxels; give 1 to 100.")
        if not self.stiffness > 0:
            raise ValueError(f"The stiffness is {self.stiffness}; it must be > 0.")


def random_walk(
    values: NDArray[np.float32],
    labels: NDArray[np.uint8],
    by_hand: NDArray[np.bool_],
    anew: NDArray[np.bool_],
    stiffness: float = PropagationSettings.stiffness,
) -> NDArray[np.uint8]:
    """Labels uint8 (nx, ny, nz), of which those in a mask are decided again by a random walker.

    The walker starts from all other labels.

    Voxels of air become air again where they are decided anew, and voxels of the sample remain
    sample.

    Parameters
    ----------
    values : array (nx, ny, nz)
        Normalised: air is 0 and the sample 1.
    labels : array (nx, ny, nz) of uint8
    by_hand : array (nx, ny, nz) of bool
        Labels that are kept.
    anew : array (nx, ny, nz) of bool
        What is decided again.
    stiffness : float
        As of :class:`PropagationSettings`.
    """
    from skimage.segmentation import random_walker

    smooth = smoothed(values, LENGTHS[0])
    # the plain view shows interfaces by their fringes; the smoothed view shows differences of
    # materials
    seen = np.stack([scipy.ndimage.gaussian_filter(values, PLAIN_BLUR), smooth], axis=-1)
    air = smooth < SAMPLE_LEVEL
    seeds = labels.astype(np.int32) + 1
    seeds[anew & ~by_hand] = 0
    seeds[anew & ~by_hand & air] = 1
    # air farther away takes no part
    seeds[~scipy.ndimage.binary_dilation(anew, iterations=SEEDS_AROUND) & (seeds == 1)] = -1
    present = np.unique(seeds[seeds > 0])
    free = seeds == 0
    if not free.any() or not present.size:
        return labels
    out = labels.copy()
    if present.size == 1:
        out[free] = present[0] - 1
        return out
    numbered = np.searchsorted(present, np.maximum(seeds, present[0])).astype(np.int32) + 1
    numbered = np.where(seeds > 0, numbered, seeds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its solver, and of seeds that reach nothing
        found = random_walker(
            np.clip(seen, 0.0, 2.0).astype(np.float64),
            numbered.copy(),
            beta=stiffness,
            mode="cg_j",
            tol=1e-3,
            copy=False,
            return_full_prob=True,
            channel_axis=-1,
        )
    sample_only = found.copy()
    if present[0] == 1:
        sample_only[0] = -1.0
    best = sample_only.argmax(axis=0)
    out[free] = (present - 1)[best[free]]
    return out


def sam2_propagation(predictor: SlicePredictor, axis: int = 0) -> Propagation:
    """The same by SAM-2, which follows the materials through the slices across an axis.

    It starts from the slice that holds most hand-made voxels.

    Parameters
    ----------
    predictor : SlicePredictor
    axis : int
    """

    def propagate(
        values: NDArray[np.float32],
        labels: NDArray[np.uint8],
        by_hand: NDArray[np.bool_],
        anew: NDArray[np.bool_],
    ) -> NDArray[np.uint8]:
        film = np.ascontiguousarray(np.moveaxis(values, axis, 0))
        known = np.moveaxis(labels, axis, 0)
        counts = np.count_nonzero(np.moveaxis(by_hand, axis, 0), axis=(1, 2))
        key = int(counts.argmax())
        n = int(labels.max()) + 1
        masks = known[key] == np.arange(1, n)[:, None, None]
        found = known.copy()
        for length, reverse in ((key, True), (len(film) - 1 - key, False)):
            if length < 1:
                continue
            for x, logits in predictor.follow(film, key, masks, length, reverse):
                found[x] = exclusive(logits).argmax(axis=0)
        back = np.moveaxis(found, 0, axis)
        free = anew & ~by_hand
        return np.where(free, back, labels).astype(np.uint8)

    return propagate


def region_of(
    contradicted: NDArray[np.bool_], reach: int
) -> tuple[Region, NDArray[np.bool_]] | None:
    """The part of the volume around some voxels, and what is decided again in it.

    None if there are no such voxels.

    Parameters
    ----------
    contradicted : array (nx, ny, nz) of bool
    reach : int
        Voxels.
    """
    boxes = scipy.ndimage.find_objects(contradicted.astype(np.uint8))
    if not boxes or boxes[0] is None:
        return None
    margin = reach + SEEDS_AROUND + int(np.ceil(HALO))
    x, y, z = (
        slice(max(0, part.start - margin), min(n, part.stop + margin))
        for part, n in zip(boxes[0], contradicted.shape, strict=True)
    )
    inside = contradicted[x, y, z]
    anew = scipy.ndimage.distance_transform_edt(~inside) <= reach
    return (x, y, z), anew


def followed(
    values: NDArray[np.float32],
    labels: NDArray[np.uint8],
    by_hand: NDArray[np.bool_],
    contradicted: NDArray[np.bool_],
    settings: PropagationSettings | None = None,
    propagation: Propagation | None = None,
) -> NDArray[np.uint8]:
    """Labels uint8 (nx, ny, nz) after hand-made labels were continued into their surroundings.

    Parameters
    ----------
    values : array (nx, ny, nz)
        Normalised: air is 0 and the sample 1.
    labels : array (nx, ny, nz) of uint8
        The labels so far, with what was drawn.
    by_hand : array (nx, ny, nz) of bool
        Which of them a person made; they are kept.
    contradicted : array (nx, ny, nz) of bool
        Where a person drew another label than there was before.
    settings : PropagationSettings, optional
    propagation : callable, optional
        Another method than the random walker.
    """
    settings = settings or PropagationSettings()
    found = region_of(contradicted, settings.reach)
    out = labels.copy()
    if found is None:
        return out
    box, anew = found
    inside = np.ascontiguousarray(values[box], dtype=np.float32)
    parts = (inside, labels[box], by_hand[box], anew)
    if propagation is None:
        out[box] = random_walk(*parts, settings.stiffness)
    else:
        out[box] = propagation(*parts)
    return out
