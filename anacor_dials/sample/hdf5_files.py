"""HDF5 files opened for reading; an error of reading becomes one sentence that names the file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.large_arrays import LARGEST_IN_MEMORY, new_array, release
from anacor_dials.sample.memory import require_memory

# registered numbers of HDF5 filters (https://github.com/HDFGroup/hdf5_plugins,
# RegisteredFilterPlugins)
FILTER_NAMES = {
    307: "bzip2", 32000: "lzf", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp",
    32015: "zstd", 32017: "sz", 32018: "fcidecomp", 32024: "sz3", 32026: "blosc2",
}  # fmt: skip

SLAB_BYTES = 200_000_000  # about so much is read or written together
MOST_COMPRESSED = 2000  # gzip makes no more than a 1032nd of anything


def _is_raised_by_h5py(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("h5py")


@contextmanager
def open_hdf5(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """An HDF5 file opened for reading; ValueError if it is absent, damaged or no HDF5 file.

    The compression filters of hdf5plugin are used if it is installed. Errors of h5py inside the
    block (a truncated data set, a damaged object header, a missing filter) become a ValueError, and
    so does an OSError.
    """
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        if "truncated" in str(error):
            raise ValueError(
                f"{path} is truncated (it was not copied or written completely); copy it again."
            ) from None
        raise ValueError(f"{path} is not an HDF5 file, or cannot be read ({error}).") from None
    try:
        with file:
            yield file
    except MemoryError as error:
        raise ValueError(
            f"{path} asks for more memory than there is ({error}); its sizes may be damaged."
        ) from None
    except Exception as error:
        if not (isinstance(error, OSError) or _is_raised_by_h5py(error)):
            raise
        reason = str(error).strip("\"'") or type(error).__name__
        raise ValueError(
            f"{path} is damaged, or compressed by a filter that is not installed ({reason}); copy it again "
            "from where it was written."
        ) from error


def require_filters(dataset: h5py.Dataset) -> None:
    """Raises ValueError, with its name, if a compression filter of a data set is not installed."""
    plist = dataset.id.get_create_plist()
    for k in range(plist.get_nfilters()):
        number, _, _, given_name = plist.get_filter(k)
        if not h5py.h5z.filter_avail(number):
            name = FILTER_NAMES.get(number) or given_name.decode("ascii", "replace") or "unknown"
            raise ValueError(
                f"{dataset.file.filename}: {dataset.name} is compressed by {name} (HDF5 filter {number}), which "
                "is not installed here; pip install hdf5plugin."
            )


def dataset_at(file: h5py.File, name: str) -> h5py.Dataset | None:
    """The data set of a name; None if there is none."""
    item = file.get(name)
    return item if isinstance(item, h5py.Dataset) else None


def whole_array(
    dataset: h5py.Dataset, dtype: Any, what: str, on_disk: bool = False
) -> NDArray[Any]:
    """The whole data set, decompressed directly into an array of the wanted type.

    Parameters
    ----------
    dataset : h5py.Dataset
    dtype : numpy type
    what : str
        What it holds, for the message if the memory is not enough.
    on_disk : bool
        Whether a large one may lie on the disk, since it is read in slabs
        (:func:`anacor_dials.sample.large_arrays.new_array`).
    """
    require_filters(dataset)
    named = f"{what} of {dataset.file.filename}"
    if on_disk:
        _require_stored(dataset, dtype)
        array = new_array(dataset.shape, dtype, named)
    else:
        require_memory(dataset.size * np.dtype(dtype).itemsize, named)
        array = np.empty(dataset.shape, dtype)
    if array.size and array.ndim:
        planes = _planes_of_a_slab(dataset)
        for first in range(0, len(array), planes):
            part = np.s_[first : min(first + planes, len(array))]
            dataset.read_direct(array, part, part)
            release(array)
    elif array.size:
        dataset.read_direct(array)
    return array


def _require_stored(dataset: h5py.Dataset, dtype: Any) -> None:
    """Raises ValueError if a large data set holds far less than its size says, before the disk is
    filled with nothing.
    """
    n_bytes = dataset.size * np.dtype(dtype).itemsize
    stored = dataset.id.get_storage_size()
    if (
        n_bytes > LARGEST_IN_MEMORY
        and not dataset.is_virtual
        and MOST_COMPRESSED * stored < n_bytes
    ):
        raise ValueError(
            f"{dataset.name} should be {n_bytes / 1e9:.1f} GB and {stored / 1e6:.1f} MB are stored: it "
            "was not written completely, or its size is damaged"
        )


def _planes_of_a_slab(dataset: h5py.Dataset) -> int:
    """How many planes of a data set are read or written together: whole chunks."""
    chunk = dataset.chunks[0] if dataset.chunks else 1
    bytes_of_chunks = chunk * dataset.dtype.itemsize * math.prod(dataset.shape[1:])
    return int(chunk * max(1, SLAB_BYTES // max(bytes_of_chunks, 1)))


def write_array(dataset: h5py.Dataset, array: NDArray[Any]) -> None:
    """Writes an array (n, ...) into a data set of its shape, slab by slab.

    Parameters
    ----------
    dataset : h5py.Dataset
    array : array (n, ...)
        Parts of it that lie on the disk are not kept in memory.
    """
    planes = _planes_of_a_slab(dataset)
    for first in range(0, len(array), planes):
        dataset[first : first + planes] = array[first : first + planes]
        release(array)
