"""The coarse grid of the first pass over a sample: blocks of voxels of the working grid.

This module makes the input of the coarse pass, and the shares of the classes that it learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Voxels of the working grid along the edge of a block: about 4 um. Chosen by hand.
BIN = 3
# Half widths of the windows about the sample's level, 1, for the plain view and for those without
# fringes, which have less noise. Chosen by hand: crystal and liquor differ by up to
# 40 %.
WINDOWS = (0.25, 0.2, 0.15)
# Channels of the input. The coarse pass of weights before version 5 sees only the first ones.
N_CHANNELS, N_CHANNELS_BEFORE = 9, 5
# Differences below which the logarithmic channels are linear; about the noise of a good tomogram.
# Chosen by hand, as are the shift and the scale that bring the spread to about -1 ... 2.
FAINT_LEVEL, FAINT_FRINGE, FAINT_SPREAD = 0.03, 0.02, 0.004
SPREAD_MIDDLE, SPREAD_SCALE = 3.5, 1.5


def _blocks(values: NDArray[Any]) -> NDArray[np.float32]:
    """Values (nx, ny, nz) as (cx, BIN, cy, BIN, cz, BIN).

    Incomplete blocks at the end are filled with the last voxels.
    """
    padding = [(0, -n % BIN) for n in values.shape]
    filled = np.pad(values.astype(np.float32), padding, mode="edge")
    cx, cy, cz = (n // BIN for n in filled.shape)
    return filled.reshape(cx, BIN, cy, BIN, cz, BIN)


def block_means(values: NDArray[Any]) -> NDArray[np.float32]:
    """The means (cx, cy, cz) of values (nx, ny, nz) over the blocks."""
    means: NDArray[np.float32] = _blocks(values).mean(axis=(1, 3, 5))
    return means


def coarse_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape (cx, cy, cz) of the coarse grid of a working grid (nx, ny, nz)."""
    x, y, z = (-(-n // BIN) for n in shape)
    return x, y, z


def _squeezed(difference: NDArray[Any], faint: float) -> NDArray[Any]:
    """A difference on a logarithmic scale of both signs, linear below `faint`."""
    return np.sign(difference) * np.log1p(np.abs(difference) / faint) / 2


def squeezed_level(level: NDArray[Any]) -> NDArray[Any]:
    """How far a level is from that of the sample, 1, on a logarithmic scale of both signs.

    It is the channel LEVEL_CHANNEL of :func:`context_input`.
    """
    return _squeezed(level - 1.0, FAINT_LEVEL)


LEVEL_CHANNEL = 6
AIR, EDGES = 4, 8  # of without_air; chosen by hand


def context_input(seen: NDArray[Any]) -> NDArray[np.float16]:
    """The input (N_CHANNELS, cx, cy, cz) of the coarse pass, of views (n_views, nx, ny, nz).

    Of each block:

    * the mean of the plain view;
    * the means of all views in narrow windows about the level of the sample;
    * the standard deviation, which is large at edges with fringes;
    * the same and the mean of the plain view on logarithmic scales, and the largest and the least
      difference between the plain view and that with the shorter fringes undone, likewise. The
      outline of a crystal in liquor of equal level is a hundred times fainter than the border to
      air; on a linear scale it is lost beside it.
    """
    out = np.empty((N_CHANNELS, *coarse_shape(seen.shape[1:])), dtype=np.float16)
    clipped = [np.clip(view.astype(np.float32), -1.0, 3.0) for view in seen]
    for k, (view, window) in enumerate(zip(clipped, WINDOWS, strict=True)):
        blocks = _blocks(view)
        means = blocks.mean(axis=(1, 3, 5))
        if k == 0:
            out[0] = means
            spread = np.sqrt(np.maximum((blocks**2).mean(axis=(1, 3, 5)) - means**2, 0))
            out[4] = np.minimum(2.0 * spread, 3.0)
            out[5] = (np.log(spread + FAINT_SPREAD) + SPREAD_MIDDLE) / SPREAD_SCALE
            out[LEVEL_CHANNEL] = squeezed_level(means)
        out[1 + k] = np.clip((means - 1.0) / window, -2.0, 2.0)
    fringes = _blocks(clipped[0] - clipped[1])
    out[7] = _squeezed(fringes.max(axis=(1, 3, 5)), FAINT_FRINGE)
    out[8] = _squeezed(fringes.min(axis=(1, 3, 5)), FAINT_FRINGE)
    return out


def with_other_levels(seen: NDArray[Any], gain: float, offset: float) -> NDArray[np.float32]:
    """The input of the coarse pass as of values v (1 + gain) + offset, for the training.

    Spreads and fringes, which would change by the factor alone, stay.

    Parameters
    ----------
    seen : array (N_CHANNELS, cx, cy, cz)
        Of :func:`context_input`.
    gain, offset : float
        Air is 0 and the sample 1.
    """
    out = seen.astype(np.float32)
    out[0] = out[0] * (1 + gain) + offset
    for k, window in enumerate(WINDOWS):
        out[1 + k] = np.clip(out[1 + k] * (1 + gain) + (gain + offset) / window, -2.0, 2.0)
    out[LEVEL_CHANNEL] = squeezed_level(out[0])
    return out


def without_air(shares: NDArray[Any]) -> tuple[slice, ...]:
    """The part of a sample's coarse grid within AIR blocks of what is not air.

    Its edges are rounded up to multiples of EDGES blocks where there are so many: the time that the
    coarse pass takes goes with the volume, and few different shapes are faster than many.

    Parameters
    ----------
    shares : array (n_classes, cx, cy, cz)
        Of the classes; background is the first.

    Returns
    -------
    tuple of slice
        For an array (n, cx, cy, cz).
    """
    full = shares[0] < 0.5
    out = [slice(None)]
    for axis, n in enumerate(full.shape):
        others = tuple(k for k in range(3) if k != axis)
        there = np.flatnonzero(full.any(axis=others))
        first, last = (there[0], there[-1] + 1) if there.size else (0, n)
        first, last = max(first - AIR, 0), min(last + AIR, n)
        rounded = last - first + -(last - first) % EDGES
        out.append(_with_length(slice(int(first), int(last)), int(min(rounded, n)), n))
    return tuple(out)


def with_lengths(
    box: tuple[slice, ...], lengths: Sequence[int], shape: Sequence[int]
) -> tuple[slice, ...]:
    """A box with other lengths about its middle, moved so that it lies within the grid.

    Parameters
    ----------
    box : tuple of slice
        Of :func:`without_air`.
    lengths, shape : sequence of 3 int
        The lengths are at most those of the grid.
    """
    parts = zip(box[1:], lengths, shape, strict=True)
    return (box[0], *(_with_length(part, length, n) for part, length, n in parts))


def _with_length(part: slice, length: int, n: int) -> slice:
    """A slice of 0 to n with another length about its middle, moved so that it lies within."""
    first = part.start - (length - (part.stop - part.start)) // 2
    first = min(max(first, 0), n - length)
    return slice(first, first + length)


def class_shares(labels: NDArray[np.uint8], n_classes: int) -> NDArray[np.float16]:
    """The share (n_classes, cx, cy, cz) of each class in every block of labels (nx, ny, nz)."""
    out = np.empty((n_classes, *coarse_shape(labels.shape)), dtype=np.float16)
    for label in range(n_classes):
        out[label] = block_means(labels == label)
    return out
