"""Arrays that may be larger than the memory: beyond a limit they lie in a file on the disk.

They are ordinary arrays for whoever reads and writes them. What is read or written in slabs is
given back by :func:`release` after each slab: then only the slab is held in memory, and the system
keeps of the rest what it has room for.
"""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.memory import require_memory

# bytes; larger arrays lie on the disk. A tomogram of 790^3 voxels is as large
LARGEST_IN_MEMORY = 2.0e9


def new_array(shape: Sequence[int], dtype: Any, what: str) -> NDArray[Any]:
    """An array with values yet to be written; on the disk if it exceeds LARGEST_IN_MEMORY.

    The file is in the folder that the environment names (TMPDIR), or in the current one where there
    is none or no room in it. It has no name, so that it is gone with the array, or with the
    program, however that ends.

    Parameters
    ----------
    shape : sequence of int
    dtype : numpy type
    what : str
        What it is for, for the message if there is no room.

    Raises
    ------
    ValueError
        If neither memory nor disk have room.
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if n_bytes <= LARGEST_IN_MEMORY:
        require_memory(n_bytes, what)
        return np.empty(tuple(shape), dtype)
    folder = _folder_with_room(n_bytes, what)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # a disk that fills up later would end the program without a word
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            else:  # macOS
                file.truncate(n_bytes)
            return np.ndarray(tuple(shape), dtype, buffer=mmap.mmap(file.fileno(), n_bytes))
    except OSError as error:
        raise ValueError(f"{_needs(n_bytes, what)}, and {folder}: {error.strerror}.") from None


def release(array: Any) -> None:
    """Gives the memory that holds parts of an array on the disk back; its values stay.

    Parameters
    ----------
    array : array, or a part of one
        Of :func:`new_array`. Nothing happens to other arrays and to data sets.
    """
    while isinstance(array, np.ndarray):
        array = array.base
    if isinstance(array, mmap.mmap):
        array.madvise(mmap.MADV_DONTNEED)


def _folder_with_room(n_bytes: int, what: str) -> Path:
    named = os.environ.get("TMPDIR")
    folders = [Path(name) for name in (named, ".") if name]
    free = {folder: shutil.disk_usage(folder).free for folder in folders if folder.is_dir()}
    for folder, room in free.items():
        if room > n_bytes:
            return folder
    places = " and ".join(
        f"{room / 1e9:.1f} GB in {folder.resolve()}" for folder, room in free.items()
    )
    raise ValueError(
        f"{_needs(n_bytes, what)}; free are {places}. Make room, or name another folder by TMPDIR."
    )


def _needs(n_bytes: int, what: str) -> str:
    return f"{what} needs {n_bytes / 1e9:.1f} GB on the disk"
