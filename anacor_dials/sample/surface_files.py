"""Closed surfaces of triangles in files of other programs: STL, PLY and OBJ."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray

SURFACE_SUFFIXES = (".stl", ".ply", ".obj")
SAME_CORNER = 1e-6  # of the largest extent: corners that are nearer are one


def read_triangles(
    path: str | os.PathLike[str], um_per_unit: float = 1.0
) -> tuple[FloatArray, NDArray[np.int64]]:
    """The vertices (n, 3), um, and the triangles (m, 3) of a file.

    Corners that are closer than 1e-6 of the largest extent become one vertex; triangles of which
    two corners are one are left out.

    Parameters
    ----------
    path : path
        STL (binary or text), PLY or OBJ, by its suffix.
    um_per_unit : float
        The file's unit of length, um. These files do not store one.

    Raises
    ------
    ValueError
        If the file is absent, has another suffix, or holds no triangles.
    """
    import trimesh

    suffix = Path(path).suffix.lower()
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    if suffix not in SURFACE_SUFFIXES:
        raise ValueError(f"{path} is not a mesh by its name; .stl, .ply and .obj files are read.")
    kind = suffix[1:].upper()
    try:
        surface = trimesh.load(os.fspath(path), file_type=suffix[1:], force="mesh", process=False)
        corners = np.asarray(surface.triangles, dtype=np.float64).reshape(-1, 3) * um_per_unit
        if corners.size == 0 or not np.all(np.isfinite(corners)):
            raise ValueError
    except Exception:  # trimesh raises whatever its parsers meet
        raise ValueError(
            f"{path} is not {'an' if kind in ('STL', 'OBJ') else 'a'} {kind} file, or holds no triangles."
        ) from None
    size = max(float(np.ptp(corners, axis=0).max()), np.finfo(float).tiny)
    _, first, index = np.unique(
        np.round(corners / (SAME_CORNER * size)), axis=0, return_index=True, return_inverse=True
    )
    triangles = index.reshape(-1, 3).astype(np.int64)
    distinct = np.all(triangles != np.roll(triangles, 1, axis=1), axis=1)
    return corners[first], triangles[distinct]
