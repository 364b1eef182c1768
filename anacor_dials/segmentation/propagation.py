"""What a person drew in some slices is continued into the neighbouring slices.

Around the voxels in which a person contradicted the labels, the labels are decided again. This is
done by a random walker (Grady, IEEE Trans. PAMI 28 (2006) 1768), which starts from the hand-made
labels and from the labels farther away, and follows the edges of the tomogram; or by the walker and
SAM-2 together, which follows the materials from slice to slice. Hand-made labels are kept. Air
stays air and sample stays sample, since they are distinguished by their level.
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
# Of SAM-2 where both take part; chosen on samples of the stream, see benchmarks/RESULTS-learning.md
SAM2_SHARE = 0.5
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


def walker_chances(
    values: NDArray[np.float32],
    labels: NDArray[np.uint8],
    by_hand: NDArray[np.bool_],
    anew: NDArray[np.bool_],
    stiffness: float = PropagationSettings.stiffness,
) -> NDArray[np.float32]:
    """Probabilities (n_labels, nx, ny, nz) that a random walker reaches each label first.

    It starts from all labels that are not decided again, and from those by hand. Without any of
    them all probabilities are zero.

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
    seeds = labels.astype(np.int32) + 1
    seeds[anew & ~by_hand] = 0
    seeds[anew & ~by_hand & (smooth < SAMPLE_LEVEL)] = 1
    # air farther away takes no part
    seeds[~scipy.ndimage.binary_dilation(anew, iterations=SEEDS_AROUND) & (seeds == 1)] = -1
    present = np.unique(seeds[seeds > 0])
    chances = np.zeros((int(labels.max()) + 1, *labels.shape), dtype=np.float32)
    if not (seeds == 0).any() or not present.size:
        return chances
    if present.size == 1:
        chances[present[0] - 1] = 1.0
        return chances
    numbered = np.searchsorted(present, np.maximum(seeds, present[0])).astype(np.int32) + 1
    numbered = np.where(seeds > 0, numbered, seeds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its solver, and of seeds that reach nothing
        chances[present - 1] = random_walker(
            np.clip(seen, 0.0, 2.0).astype(np.float64),
            numbered.copy(),
            beta=stiffness,
            mode="cg_j",
            tol=1e-3,
            copy=False,
            return_full_prob=True,
            channel_axis=-1,
        )
    return chances


def decided(
    values: NDArray[np.float32],
    labels: NDArray[np.uint8],
    free: NDArray[np.bool_],
    chances: NDArray[np.float32],
) -> NDArray[np.uint8]:
    """Labels uint8 (nx, ny, nz), where they are free the most probable ones.

    Voxels of air become air, and voxels of the sample one of its materials. Where no material has a
    chance, the label stays.

    Parameters
    ----------
    values : array (nx, ny, nz)
        Normalised: air is 0 and the sample 1.
    labels : array (nx, ny, nz) of uint8
    free : array (nx, ny, nz) of bool
    chances : array (n_labels, nx, ny, nz)
    """
    materials = chances[1:]
    if not len(materials):
        return labels.copy()
    best = (materials.argmax(axis=0) + 1).astype(np.uint8)
    best = np.where(materials.max(axis=0) > 0, best, labels)
    best[smoothed(values, LENGTHS[0]) < SAMPLE_LEVEL] = 0
    return np.where(free, best, labels).astype(np.uint8)


def random_walk(
    values: NDArray[np.float32],
    labels: NDArray[np.uint8],
    by_hand: NDArray[np.bool_],
    anew: NDArray[np.bool_],
    stiffness: float = PropagationSettings.stiffness,
) -> NDArray[np.uint8]:
    """Labels uint8 (nx, ny, nz), of which those in a mask are decided again by a random walker.

    The parameters are those of :func:`walker_chances`.

    Parameters
    ----------
    values, labels, by_hand, anew : arrays (nx, ny, nz)
    stiffness : float
    """
    chances = walker_chances(values, labels, by_hand, anew, stiffness)
    return decided(values, labels, anew & ~by_hand, chances)


def sam2_chances(
    predictor: SlicePredictor,
    values: NDArray[np.float32],
    labels: NDArray[np.uint8],
    by_hand: NDArray[np.bool_],
    anew: NDArray[np.bool_],
    axis: int = 0,
) -> NDArray[np.float32]:
    """Probabilities (n_labels, nx, ny, nz) by SAM-2, which follows the materials across an axis.

    It starts from the slice that holds most hand-made voxels, and goes as far as labels are decided
    again; beyond, all probabilities are zero.

    Parameters
    ----------
    predictor : SlicePredictor
    values, labels, by_hand, anew : arrays (nx, ny, nz)
        As of :func:`walker_chances`.
    axis : int
    """
    film = np.ascontiguousarray(np.moveaxis(values, axis, 0))
    known = np.moveaxis(labels, axis, 0)
    across = tuple(k for k in range(3) if k != axis)
    key = int(np.count_nonzero(by_hand, axis=across).argmax())
    wanted = np.flatnonzero(anew.any(axis=across))
    chances = np.zeros((int(labels.max()) + 1, *film.shape), dtype=np.float32)
    masks = known[key] == np.arange(1, len(chances))[:, None, None]
    if not wanted.size or not len(masks):
        return np.moveaxis(chances, 1, 1 + axis)
    for length, reverse in ((key - int(wanted[0]), True), (int(wanted[-1]) - key, False)):
        if length < 1:
            continue
        for x, logits in predictor.follow(film, key, masks, length, reverse):
            chances[:, x] = exclusive(logits)
    return np.moveaxis(chances, 1, 1 + axis)


def sam2_propagation(
    predictor: SlicePredictor,
    axis: int = 0,
    stiffness: float = PropagationSettings.stiffness,
    share: float = SAM2_SHARE,
) -> Propagation:
    """The random walker and SAM-2 together: their probabilities are averaged.

    Parameters
    ----------
    predictor : SlicePredictor
    axis : int
        Across which SAM-2 follows the materials.
    stiffness : float
        Of the walker.
    share : float
        Of SAM-2, 0 to 1.
    """

    def propagate(
        values: NDArray[np.float32],
        labels: NDArray[np.uint8],
        by_hand: NDArray[np.bool_],
        anew: NDArray[np.bool_],
    ) -> NDArray[np.uint8]:
        chances = sam2_chances(predictor, values, labels, by_hand, anew, axis)
        if share < 1:
            walked = walker_chances(values, labels, by_hand, anew, stiffness)
            chances = np.float32(1 - share) * walked + np.float32(share) * chances
        return decided(values, labels, anew & ~by_hand, chances)

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
