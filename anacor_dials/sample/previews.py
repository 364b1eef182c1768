"""A large tomogram and its labels at reduced size, in the same ``tomo.h5``.

It can be read at once where the whole takes a minute. In a ``tomo.h5`` of more than
LARGEST_WITHOUT voxels::

    /entry/preview/values  float32 (px, py, pz)  means over blocks, in the unit of the tomogram
    /entry/preview/labels  uint8   (px, py, pz)  of the voxel in the middle of each block
    /entry/preview/block   int                   voxels along the edge of a block

Voxels that make no whole block at the end of an axis are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.hdf5_files import dataset_at
from anacor_dials.sample.large_arrays import release

LARGEST_WITHOUT = 64_000_000  # voxels; more of them take some seconds to read
VOXELS = 16_000_000  # of a preview, about


def block_of(shape: tuple[int, ...]) -> int:
    """Voxels along the edge of a block for a volume (nx, ny, nz); 1 if it needs no preview."""
    n_voxels = int(np.prod(shape))
    return 1 if n_voxels <= LARGEST_WITHOUT else max(2, round((n_voxels / VOXELS) ** (1 / 3)))


def write_preview(entry: h5py.Group, values: NDArray[Any], labels: NDArray[np.uint8]) -> None:
    """Writes the preview of a large volume; of a small one there is none.

    Parameters
    ----------
    entry : Group
        /entry of an open tomo.h5.
    values : array (nx, ny, nz)
        Of the tomogram.
    labels : array (nx, ny, nz) of uint8
    """
    block = block_of(labels.shape)
    if block == 1:
        return
    px, py, pz = (n // block for n in labels.shape)
    means = np.empty((px, py, pz), dtype=np.float32)
    for i in range(px):
        slab = values[i * block : (i + 1) * block, : py * block, : pz * block]
        means[i] = slab.reshape(block, py, block, pz, block).mean(axis=(0, 2, 4))
        release(values)
    group = entry.create_group("preview")
    group["block"] = block
    for name, array in (("values", means), ("labels", _middles(labels, block))):
        group.create_dataset(name, data=array, chunks=True, compression="lzf", shuffle=True)


def _middles(labels: NDArray[np.uint8], block: int) -> NDArray[np.uint8]:
    """The labels in the middle of whole blocks."""
    px, py, pz = (n // block for n in labels.shape)
    first = block // 2
    return labels[first::block, first::block, first::block][:px, :py, :pz]


def renew_labels(entry: h5py.Group, labels: NDArray[np.uint8], changed: Sequence[slice]) -> None:
    """Brings the labels of a preview, if there is one, up to date.

    Parameters
    ----------
    entry : Group
        /entry of an open tomo.h5.
    labels : array (nx, ny, nz) of uint8
    changed : sequence of 3 slice
        The part of them that has changed.
    """
    if "preview" not in entry:
        return
    preview, block = entry["preview/labels"], int(entry["preview/block"][()])
    blocks, middles = [], []
    for part, n in zip(changed, preview.shape, strict=True):
        # of the blocks whose middle voxel is in the part
        first, last = (min(-(-(end - block // 2) // block), n) for end in (part.start, part.stop))
        blocks.append(slice(max(first, 0), max(last, 0)))
        middles.append(block // 2 + block * np.arange(n)[blocks[-1]])
    if all(len(axis) for axis in middles):
        preview[tuple(blocks)] = labels[np.ix_(*middles)]


def stored_preview(
    file: h5py.File,
) -> tuple[NDArray[np.float32], NDArray[np.uint8], int] | None:
    """(values, labels, block) of an open ``tomo.h5``; None without any that fit its labels."""
    whole = dataset_at(file, "entry/segmentation/labels")
    values, labels, block = (
        dataset_at(file, f"entry/preview/{name}") for name in ("values", "labels", "block")
    )
    if whole is None or values is None or labels is None or block is None:
        return None
    size = int(block[()])
    expected = tuple(n // size for n in whole.shape) if size > 0 else ()
    if values.shape != expected or labels.shape != expected:
        return None
    return np.asarray(values[()], np.float32), np.asarray(labels[()], np.uint8), size
