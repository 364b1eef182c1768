"""Whole samples that a step of the training draws for the coarse pass.

If the coarse pass learns alone, samples of about the same size get the same shape in pairs, since
torch's convolutions of one small volume take twice as long as those of each of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anacor_dials.segmentation.coarse_grid import with_lengths, with_other_levels, without_air
from anacor_dials.segmentation.training_data import (
    PooledVolume,
    VolumePool,
    turned,
    turned_back,
)

# The least part of a sample's box along each axis that it keeps in a pair. What is lost is mostly
# the margin of air; chosen by hand.
KEPT = 0.8
# The largest volume of a pair relative to that of its samples. Chosen by hand: what is more takes
# as long as the samples one by one.
MOST_AIR = 1.5


@dataclass(frozen=True, eq=False)
class WholeSample:
    """A sample of the pool, and how the coarse pass sees it.

    Attributes
    ----------
    pooled : PooledVolume
    order : tuple of 3 int
        Of its axes.
    mirrored : tuple of 3 bool
        For the axes in their new order.
    gain, offset : float
        Of its levels, in units of the augmentation's, -1 to 1.
    box : tuple of slice
        Its part in the coarse grid, in the order of the sample's own axes.
    """

    pooled: PooledVolume
    order: tuple[int, ...]
    mirrored: tuple[bool, ...]
    gain: float
    offset: float
    box: tuple[Any, ...] = (...,)

    @classmethod
    def drawn(cls, pool: VolumePool, rng: np.random.Generator) -> WholeSample:
        """A sample at random, turned at random."""
        order, mirrored = rng.permutation(3).tolist(), (rng.random(3) < 0.5).tolist()
        gain, offset = rng.uniform(-1, 1, 2).tolist()
        return cls(pool.draw(rng), tuple(order), tuple(mirrored), gain, offset)

    def seen(self, gain: float, offset: float) -> NDArray[np.float32]:
        """The input (N_CHANNELS, cx, cy, cz) of the coarse pass.

        Parameters
        ----------
        gain, offset : float
            The largest change of the levels, as of :class:`.crops.Augmentation`.
        """
        own = turned(self.pooled.coarse_input[self.box], self.order, self.mirrored)
        return with_other_levels(own, gain * self.gain, offset * self.offset)

    @property
    def shares(self) -> NDArray[np.float16]:
        """The true shares (n_classes, cx, cy, cz) of the classes."""
        return turned(self.pooled.coarse_shares[self.box], self.order, self.mirrored)

    def keep(self, found: NDArray[Any]) -> None:
        """Keeps what the coarse pass found, probabilities (n_classes, cx, cy, cz), in the pool."""
        back = turned_back(found, self.order, self.mirrored)
        self.pooled.context = back.astype(np.float16)


def _lengths(sample: WholeSample) -> list[int]:
    return [part.stop - part.start for part in sample.box[1:]]


def _grid(sample: WholeSample) -> tuple[int, ...]:
    return sample.pooled.coarse_shares.shape[1:]


def without_their_air(samples: Sequence[WholeSample]) -> list[WholeSample]:
    """Samples by size, without most of the air around them, in pairs of the same shape.

    Of each pair the longest axes lie along each other, and so do the shortest. Samples that differ
    too much (KEPT, MOST_AIR) keep their own shapes.
    """
    boxed = [replace(s, box=without_air(s.pooled.coarse_shares)) for s in samples]
    boxed.sort(key=lambda sample: math.prod(_lengths(sample)))
    out = []
    for k in range(0, len(boxed) - 1, 2):
        out += _alike(boxed[k], boxed[k + 1])
    return out + boxed[len(out) :]


def _alike(one: WholeSample, other: WholeSample) -> list[WholeSample]:
    """Two samples, of the same shape after they are turned, if they are alike."""
    by_length = [np.argsort(_lengths(sample), kind="stable") for sample in (one, other)]
    axes = np.empty(3, dtype=np.intp)  # of the other one, beside those of the one
    axes[by_length[0]] = by_length[1]
    pair = [(one, np.arange(3)), (other, axes)]
    own = np.array([np.take(_lengths(sample), beside) for sample, beside in pair])
    grids = np.array([np.take(_grid(sample), beside) for sample, beside in pair])
    common = np.minimum(own.max(axis=0), grids.min(axis=0))
    if (common < KEPT * own).any() or 2 * common.prod() > MOST_AIR * own.prod(axis=1).sum():
        return [one, other]
    return [
        replace(
            sample,
            box=with_lengths(sample.box, common[np.argsort(beside)].tolist(), _grid(sample)),
            order=tuple(beside[list(one.order)].tolist()),
        )
        for sample, beside in pair
    ]
