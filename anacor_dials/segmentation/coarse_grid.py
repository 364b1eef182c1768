"""The coarse grid of the first pass over a sample: blocks of voxels of the working grid, and what
is seen in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BIN = 3  # voxels of the working grid along the edge of a block
WINDOWS = (0.25, 0.2, 0.15)  # of the plain view and those without fringes, about the sample's level
N_CHANNELS = 1 + len(WINDOWS) + 1


def _blocks(values: NDArray[Any]) -> NDArray[np.float32]:
    """Values (nx, ny, nz) as (cx, BIN, cy, BIN, cz, BIN), the last blocks filled up with the last
    voxels."""
    padding = [(0, -n % BIN) for n in values.shape]
    filled = np.pad(values.astype(np.float32), padding, mode="edge")
    cx, cy, cz = (n // BIN for n in filled.shape)
    return filled.reshape(cx, BIN, cy, BIN, cz, BIN)


def coarse_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The coarse grid's shape of a working grid's."""
    x, y, z = (-(-n // BIN) for n in shape)
    return x, y, z


def context_input(seen: NDArray[Any]) -> NDArray[np.float16]:
    """What the coarse pass sees (N_CHANNELS, cx, cy, cz) of the views (n_views, nx, ny, nz) of a
    tomogram.

    Block means of the plain view and of all views in narrow windows about the sample's level, and
    the standard deviation within each block, which is large at edges with fringes.
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
