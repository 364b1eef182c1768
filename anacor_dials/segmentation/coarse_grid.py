"""The coarse grid of the first pass over a sample: blocks of voxels of the working grid.

This module makes the input of the coarse pass, and the shares of the classes that it learns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Voxels of the working grid along the edge of a block: about 4 um. Chosen by hand.
BIN = 3
# Half widths of the windows about the sample's level, 1, for the plain view and for those without
# fringes, which have less noise. Chosen by hand: crystal and liquor differ by up to
# 40 %.
WINDOWS = (0.25, 0.2, 0.15)
N_CHANNELS = 1 + len(WINDOWS) + 1


def _blocks(values: NDArray[Any]) -> NDArray[np.float32]:
    """Values (nx, ny, nz) as (cx, BIN, cy, BIN, cz, BIN).

    Incomplete blocks at the end are filled with the last voxels.
    """
    padding = [(0, -n % BIN) for n in values.shape]
    filled = np.pad(values.astype(np.float32), padding, mode="edge")
    cx, cy, cz = (n // BIN for n in filled.shape)
    return filled.reshape(cx, BIN, cy, BIN, cz, BIN)


def coarse_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape (cx, cy, cz) of the coarse grid of a working grid (nx, ny, nz)."""
    x, y, z = (-(-n // BIN) for n in shape)
    return x, y, z


def context_input(seen: NDArray[Any]) -> NDArray[np.float16]:
    """The input (N_CHANNELS, cx, cy, cz) of the coarse pass, of views (n_views, nx, ny, nz).

    The channels are the block means of the plain view; the block means of all views in narrow
    windows about the level of the sample; and the standard deviation within each block, which is
    large at edges with fringes.
    """
    out = np.empty((N_CHANNELS, *coarse_shape(seen.shape[1:])), dtype=np.float16)
    for k, (view, window) in enumerate(zip(seen, WINDOWS, strict=True)):
        blocks = _blocks(np.clip(view, -1.0, 3.0))
        means = blocks.mean(axis=(1, 3, 5))
        if k == 0:
            out[0] = means
            spread = np.sqrt(np.maximum((blocks**2).mean(axis=(1, 3, 5)) - means**2, 0))
            out[-1] = np.minimum(2.0 * spread, 3.0)
        out[1 + k] = np.clip((means - 1.0) / window, -2.0, 2.0)
    return out


def class_shares(labels: NDArray[np.uint8], n_classes: int) -> NDArray[np.float16]:
    """The share (n_classes, cx, cy, cz) of each class in every block of labels (nx, ny, nz)."""
    out = np.empty((n_classes, *coarse_shape(labels.shape)), dtype=np.float16)
    for label in range(n_classes):
        out[label] = _blocks(labels == label).mean(axis=(1, 3, 5))
    return out
