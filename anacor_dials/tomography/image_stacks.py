"""Stacks of images: HDF5 data sets and TIFF files; only what is asked for is read."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.hdf5_files import open_hdf5, require_filters
from anacor_dials.sample.memory import require_memory
from anacor_dials.tomography.hdf5_items import require_dataset


class Frames(Protocol):
    """All images of a file or folder, read only where asked for."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, rows, columns)"""

    def read(
        self, numbers: NDArray[np.intp], rows: slice = ..., columns: slice = ...
    ) -> NDArray[Any]:
        """Images (k, r, c), in the type of the file, of the frames with these numbers (k,).

        Parameters
        ----------
        numbers : array (k,) of int
            Numbers of frames.
        rows, columns : slice
            The part of each image that is read.
        """


FrameGroup = tuple[Frames, NDArray[np.intp], float]  # where, which, when (in frame numbers)


def _runs(numbers: NDArray[np.intp]) -> Iterator[tuple[int, int, int]]:
    """(first, last + 1, place in numbers) of every run of consecutive numbers."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    for start, stop in zip([0, *breaks], [*breaks, len(numbers)], strict=True):
        if stop > start:
            yield int(numbers[start]), int(numbers[stop - 1]) + 1, int(start)


def _length(window: slice, n: int) -> int:
    return len(range(*window.indices(n)))


@dataclass(frozen=True)
class HDF5Frames:
    """Images of a data set (n, rows, columns) in an HDF5 file; external links are followed.

    Attributes
    ----------
    path : Path
    dataset : str
        Its path in the file. A data set (rows, columns) is one image.
    shape : (int, int, int)
        Number of images, rows, columns.
    """

    path: Path
    dataset: str
    shape: tuple[int, int, int]

    def read(
        self,
        numbers: NDArray[np.intp],
        rows: slice = slice(None),
        columns: slice = slice(None),
    ) -> NDArray[Any]:
        """See :meth:`Frames.read`."""
        _, n_rows, n_columns = self.shape
        with open_hdf5(self.path) as file:
            dataset = file[self.dataset]
            require_filters(dataset)
            size = (len(numbers), _length(rows, n_rows), _length(columns, n_columns))
            if dataset.ndim == 2:
                return np.broadcast_to(dataset[rows, columns], size)
            out = np.empty(size, dtype=dataset.dtype)
            for first, stop, place in _runs(numbers):
                out[place : place + stop - first] = dataset[first:stop, rows, columns]
        return out


@dataclass(frozen=True)
class TiffFrames:
    """Images of TIFF files, one after the other; each page is an image.

    Attributes
    ----------
    files : tuple of Path
    first_page : array (number of files,) of int
        The number of the first image of each file.
    shape : (int, int, int)
        Number of images, rows, columns.
    """

    files: tuple[Path, ...]
    first_page: tuple[int, ...]
    shape: tuple[int, int, int]

    def read(
        self,
        numbers: NDArray[np.intp],
        rows: slice = slice(None),
        columns: slice = slice(None),
    ) -> NDArray[Any]:
        """See :meth:`Frames.read`."""
        import tifffile

        images = []
        for number in numbers:
            which = int(np.searchsorted(self.first_page, number, side="right")) - 1
            page = int(number) - self.first_page[which]
            try:
                image = tifffile.imread(self.files[which], key=page)
            except (tifffile.TiffFileError, ValueError, OSError) as error:
                raise ValueError(f"{self.files[which]} cannot be read ({error}).") from None
            if image.shape != self.shape[1:]:
                raise ValueError(
                    f"{self.files[which]} has {size_text(image.shape)} pixels and the scan's first "
                    f"image {size_text(self.shape[1:])}; leave other images out of the folder."
                )
            images.append(image[rows, columns])
        return np.stack(images)


def size_text(shape: Sequence[int]) -> str:
    """The size of images (n, rows, columns) in words."""
    return " x ".join(str(n) for n in shape)


def hdf5_stack(file: h5py.File, name: str, what: str) -> HDF5Frames:
    """The images of a data set, not read yet.

    Parameters
    ----------
    file : h5py.File
    name : str
        Path of the data set.
    what : str
        What the images are (projections, flats, darks), for messages.

    Raises
    ------
    ValueError
        If the data set is absent, empty, or no stack of numbers.
    """
    dataset = require_dataset(file, name, what)
    shape: tuple[int, ...] = dataset.shape
    if len(shape) == 2 and what != "projections":
        shape = (1, *shape)
    if len(shape) != 3 or not np.issubdtype(dataset.dtype, np.number):
        raise ValueError(
            f"{file.filename}: {name} has the shape {shape} and the type {dataset.dtype}; a scan "
            "is numbers of the shape (images, rows, columns)."
        )
    if 0 in shape:
        raise ValueError(
            f"{file.filename}: {name} is empty (shape {shape}); the scan was never written."
        )
    # the mean of images and of their squares is computed in double precision
    require_memory(32.0 * shape[1] * shape[2], f"An image of {size_text(shape[1:])} pixels")
    return HDF5Frames(Path(file.filename), name, (shape[0], shape[1], shape[2]))


def consecutive_groups(chosen: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], float]]:
    """(numbers, middle) of every run of chosen frames."""
    numbers = np.flatnonzero(chosen)
    for first, stop, _ in _runs(numbers):
        yield np.arange(first, stop), 0.5 * (first + stop - 1)


def tiff_files(path: str | os.PathLike[str]) -> list[Path]:
    """The TIFF files of a folder, of a pattern (``scan/p_*.tif``) or of a name, sorted by name."""
    text = os.fspath(path)
    if Path(text).is_dir():
        files = [f for f in Path(text).iterdir() if f.suffix.lower() in (".tif", ".tiff")]
    elif any(c in text for c in "*?["):
        files = [Path(f) for f in glob.glob(text)]
    else:
        files = [Path(text)] if Path(text).is_file() else []
    return sorted(files)


def tiff_numbers(files: Sequence[Path]) -> NDArray[np.intp] | None:
    """The place (n,) of each file in its numbered series, from 0; None if names end in no numbers.

    ``p_0010.tif, p_0012.tif, p_0016.tif`` are at 0, 1 and 3: one place is the most common step of
    the numbers.
    """
    found = [re.fullmatch(r"(.*?)(\d+)", file.stem) for file in files]
    if len(files) < 3 or not all(found) or len({m.group(1) for m in found if m}) != 1:
        return None
    numbers = np.array([int(m.group(2)) for m in found if m])
    steps = np.diff(numbers)
    if np.any(steps <= 0):
        return None
    return np.asarray((numbers - numbers[0]) // np.gcd.reduce(steps), dtype=np.intp)


def tiff_stack(path: str | os.PathLike[str], what: str) -> TiffFrames:
    """The images of TIFF files (:func:`tiff_files`), not read yet.

    Raises ValueError if there are no such files.
    """
    import tifffile

    files = tiff_files(path)
    if not files:
        raise ValueError(f"There are no TIFF files at {path} for the {what}.")
    starts, total = [], 0
    try:
        with tifffile.TiffFile(files[0]) as first:
            shape = first.pages[0].shape
            pages = len(first.pages)
        # usually each file holds one image; all files are opened only if the first holds more
        for file in files:
            starts.append(total)
            if pages > 1 and file != files[0]:
                with tifffile.TiffFile(file) as opened:
                    total += len(opened.pages)
            else:
                total += pages
    except (tifffile.TiffFileError, ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as TIFF ({error}).") from None
    if len(shape) != 2:
        raise ValueError(f"{files[0]} has the shape {shape}; {what} are images of one colour.")
    return TiffFrames(tuple(files), tuple(starts), (total, shape[0], shape[1]))
