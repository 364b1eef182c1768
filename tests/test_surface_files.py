"""Meshes in files: STL (binary and text), PLY and OBJ; what is none, each with its sentence."""

from __future__ import annotations

import numpy as np
import pytest

from anacor_dials.absorption.closed_surface import ClosedSurface
from anacor_dials.sample.surface_files import read_triangles

CORNERS = np.array([[0.0, 0, 0], [6, 0, 0], [0, 6, 0], [0, 0, 6]])
SIDES = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]


def stl_text() -> str:
    lines = ["solid crystal"]
    for side in SIDES:
        lines += ["facet normal 0 0 0", "outer loop"]
        lines += [f"vertex {x:g} {y:g} {z:g}" for x, y, z in CORNERS[list(side)]]
        lines += ["endloop", "endfacet"]
    return "\n".join([*lines, "endsolid crystal", ""])


def stl_binary() -> bytes:
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    triangles = np.zeros(4, dtype=record)
    triangles["corners"] = CORNERS[np.array(SIDES)]
    return b"binary".ljust(80) + np.uint32(4).tobytes() + triangles.tobytes()


PLY = """ply
format ascii 1.0
element vertex 4
property float x
property float y
property float z
element face 4
property list uchar int vertex_indices
end_header
0 0 0
6 0 0
0 6 0
0 0 6
3 0 2 1
3 0 1 3
3 0 3 2
3 1 2 3
"""
OBJ = "o crystal\nv 0 0 0\nv 6 0 0\nv 0 6 0\nv 0 0 6\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.stl", stl_text().encode()),
        ("binary.STL", stl_binary()),
        ("crystal.ply", PLY.encode()),
        ("crystal.obj", OBJ.encode()),
    ],
)
def test_a_tetrahedron(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    vertices, triangles = read_triangles(tmp_path / name, um_per_unit=2.0)
    assert (len(vertices), len(triangles)) == (4, 4)
    assert ClosedSurface(vertices, triangles).volume_um3 == pytest.approx(12**3 / 6)


def test_what_is_no_mesh(tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        read_triangles(tmp_path / "absent.stl")
    (tmp_path / "mesh.step").write_text("ISO-10303-21;")
    with pytest.raises(ValueError, match=r"mesh\.step is not a mesh by its name; \.stl, \.ply and"):
        read_triangles(tmp_path / "mesh.step")
    for suffix, kind in (("stl", "an STL"), ("ply", "a PLY"), ("obj", "an OBJ")):
        (tmp_path / f"bad.{suffix}").write_text("no triangles here")
        with pytest.raises(ValueError, match=f"is not {kind} file, or holds no triangles"):
            read_triangles(tmp_path / f"bad.{suffix}")
