"""Meshes in STL files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from anacor_dials.sample.output_files import whole_file
from anacor_dials.sample.surface_files import read_triangles
from anacor_dials.simulation.meshes.mesh import Mesh, mesh_facing_outward
from anacor_dials.simulation.meshes.overlap import require_no_self_intersection


def read_stl(path: str | os.PathLike[str], um_per_unit: float = 1.0) -> Mesh:
    """The closed mesh of an STL file, binary or text.

    Corners that are closer than 1e-6 of the largest extent are taken as one vertex.

    Parameters
    ----------
    path : path of the file
    um_per_unit : float
        The file's unit of length in um. STL does not store one.

    Raises
    ------
    ValueError
        If the file is absent or not an STL file, or if its surface is open or intersects itself.
    """
    if Path(path).suffix.lower() != ".stl":
        raise ValueError(f"{path} is not an STL file by its name; it ends in .stl.")
    vertices, faces = read_triangles(path, um_per_unit)
    try:
        mesh = mesh_facing_outward(vertices, faces)
        require_no_self_intersection(mesh)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return mesh


def write_stl(path: str | os.PathLike[str], mesh: Mesh) -> None:
    """Writes a binary STL file, in um. After an error no partial file remains."""
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    triangles = np.zeros(len(mesh.faces), dtype=record)
    a, b, c = mesh.corners
    normals = np.cross(b - a, c - a)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    triangles["normal"] = normals / np.where(length > 0, length, 1)
    triangles["corners"] = np.stack([a, b, c], axis=1)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(b"anacor_dials, lengths in um".ljust(80))
        file.write(np.uint32(len(triangles)).tobytes())
        file.write(triangles.tobytes())
