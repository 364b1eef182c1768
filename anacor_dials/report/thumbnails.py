"""Small pictures of a sample: a slice of the tomogram with the outlines of its labels."""

from __future__ import annotations

import base64
import io
import os
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from anacor_dials.report.sample import colour
from anacor_dials.sample.tomogram_files import is_sample_file, read_sample_file
from anacor_dials.sample.volumes import LabelVolume

PIXELS = 120  # on the longer edge
KEPT = 256  # pictures in memory, so that a report that is written anew reads no volume twice
BRIGHTEST = 99.5  # percentile of the slice that becomes white


def thumbnails(labels_file: Path) -> Markup:
    """Two slices through the middle of the crystal, at right angles to X and to Z, as HTML.

    It is empty if the file is no ``tomo.h5`` with labels.
    """
    try:
        pictures = _pictures(os.fspath(labels_file), os.stat(labels_file).st_mtime_ns)
    except (OSError, ValueError):
        return Markup("")
    return Markup(" ").join(
        Markup('<img src="data:image/png;base64,{}" alt="slice at right angles to {}">').format(
            base64.b64encode(png).decode("ascii"), axis
        )
        for axis, png in pictures
    )


@lru_cache(maxsize=KEPT)
def _pictures(path: str, _changed: int) -> tuple[tuple[str, bytes], ...]:
    """(axis, PNG) of each slice; _changed: when the file was, so that another content is read."""
    if not is_sample_file(path):
        return ()
    labels = read_sample_file(path, tomogram=False).labels
    if labels is None:
        return ()
    made = []
    for axis, name in ((0, "X"), (2, "Z")):
        index = _middle(labels, axis)
        plane = np.take(labels.values, index, axis)
        made.append((name, png_of(outlined(plane, _grey(path, axis, index)))))
    return tuple(made)


def _middle(labels: LabelVolume, axis: int) -> int:
    """The index along an axis of the middle of the crystal, else of the volume."""
    across = tuple(i for i in range(3) if i != axis)
    found = np.flatnonzero((labels.values == labels.label("crystal")).any(axis=across))
    return int(found[[0, -1]].mean()) if found.size else labels.shape[axis] // 2


def _grey(path: str, axis: int, index: int) -> NDArray[np.float32] | None:
    """The slice of the tomogram; None where the file holds labels alone."""
    with h5py.File(path, "r") as file:
        data = file.get("entry/reconstruction/data")
        if data is None:
            return None
        place: list[int | slice] = [slice(None)] * 3
        place[axis] = index
        return np.asarray(data[tuple(place)], dtype=np.float32)


def outlined(labels: NDArray[np.uint8], grey: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """A picture (rows, columns, RGB) of a slice, PIXELS on its longer edge.

    Where a label meets another, the pixel has the colour of the higher one.

    Parameters
    ----------
    labels : array (n, m)
    grey : array (n, m), optional
        The tomogram in the slice; areas have the colours of their labels if it is not given.
    """
    step = max(1, -(-max(labels.shape) // PIXELS))
    small = labels[::step, ::step]
    colours = np.array([_rgb(colour(i)) for i in range(int(small.max(initial=0)) + 1)], np.uint8)
    if grey is None:
        return colours[small]
    values = np.nan_to_num(grey[::step, ::step])
    low, high = np.percentile(values, (1.0, BRIGHTEST))
    bright = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    picture = np.repeat((255 * bright).astype(np.uint8)[..., None], 3, axis=2)
    edge = np.zeros(small.shape, bool)
    edge[:, 1:] |= small[:, 1:] > small[:, :-1]
    edge[:, :-1] |= small[:, :-1] > small[:, 1:]
    edge[1:] |= small[1:] > small[:-1]
    edge[:-1] |= small[:-1] > small[1:]
    picture[edge] = colours[small[edge]]
    return picture


def _rgb(name: str) -> tuple[int, int, int]:
    """(red, green, blue) of "#rrggbb"."""
    return int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)


def png_of(picture: NDArray[np.uint8]) -> bytes:
    """A picture (rows, columns, RGB) as PNG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()
