"""Run inside Blender: models a drop, a loop and crystals and writes them as STL files in um.

    blender --background --factory-startup --python blender_scene.py -- recipe.json FOLDER

Uses nothing but Blender's own Python. One unit of the scene is 100 um.
"""

from __future__ import annotations

import importlib
import json
import math
import struct
import sys
from pathlib import Path
from typing import Any

UM_PER_UNIT = 100.0


def write_mesh(bpy: Any, thing: Any, path: Path) -> None:
    """Writes an object in um, with its modifiers applied and its faces divided into triangles.

    Parameters
    ----------
    bpy : module
        Blender's own, which can only be imported within Blender.
    thing : object of Blender
    path : Path
    """
    bmesh: Any = importlib.import_module("bmesh")

    evaluated = thing.evaluated_get(bpy.context.evaluated_depsgraph_get())
    mesh = bmesh.new()
    mesh.from_mesh(evaluated.to_mesh())
    bmesh.ops.transform(mesh, matrix=thing.matrix_world, verts=mesh.verts)
    bmesh.ops.remove_doubles(mesh, verts=mesh.verts, dist=1e-6)
    bmesh.ops.triangulate(mesh, faces=mesh.faces)
    bmesh.ops.recalc_face_normals(mesh, faces=mesh.faces)
    with open(path, "wb") as file:
        file.write(b"anacor_dials, lengths in um".ljust(80))
        file.write(struct.pack("<I", len(mesh.faces)))
        for face in mesh.faces:
            corners = [v * UM_PER_UNIT for loop in face.loops for v in loop.vert.co]
            file.write(struct.pack("<12fH", *face.normal, *corners, 0))
    mesh.free()


def remeshed(thing: Any, voxel: float) -> Any:
    """Makes one closed surface of all that runs into each other in an object."""
    modifier = thing.modifiers.new("one surface", "REMESH")
    modifier.mode = "VOXEL"
    modifier.voxel_size = voxel
    return thing


def make_crystal(bpy: Any, corners_um: list[list[float]]) -> Any:
    """The convex hull of the corners, its edges slightly bevelled."""
    bmesh: Any = importlib.import_module("bmesh")

    mesh = bmesh.new()
    for corner in corners_um:
        mesh.verts.new([v / UM_PER_UNIT for v in corner])
    bmesh.ops.convex_hull(mesh, input=mesh.verts)
    bmesh.ops.dissolve_limit(mesh, angle_limit=math.radians(1), verts=mesh.verts, edges=mesh.edges)
    data = bpy.data.meshes.new("crystal")
    mesh.to_mesh(data)
    mesh.free()
    thing = bpy.data.objects.new("crystal", data)
    bpy.context.collection.objects.link(thing)
    bevel = thing.modifiers.new("bevel", "BEVEL")
    bevel.width = 0.008
    bevel.segments = 1
    return thing


def make_drop(bpy: Any, recipe: dict[str, Any]) -> Any:
    """Liquor in the ring: one flat metaball and smaller ones about it, which run together."""
    a, b, c = (v / UM_PER_UNIT for v in recipe["drop"])
    balls = bpy.data.metaballs.new("drop")
    balls.resolution = balls.render_resolution = min(a, b, c) / 8
    balls.threshold = 0.05
    thing = bpy.data.objects.new("drop", balls)
    bpy.context.collection.objects.link(thing)
    # a metaball of radius r falls to the threshold t at r sqrt(1 - (t / 2)^(1/3))
    edge = math.sqrt(1 - (balls.threshold / 2) ** (1 / 3))
    body = balls.elements.new(type="ELLIPSOID")
    body.co = (0, 0, 0)
    body.size_x, body.size_y, body.size_z = 1.0, b / a, c / a
    body.radius = a / edge
    for x, y, z, height in recipe["bumps"]:
        bump = balls.elements.new(type="BALL")
        bump.co = (0.8 * a * x, 0.8 * b * y, 0.8 * c * z)
        bump.radius = (0.25 + abs(height)) * c / edge
    tail = balls.elements.new(type="BALL")
    tail.co = (-a * (1 + recipe["tail"] / 2), 0, 0)
    tail.radius = 0.25 * c / edge
    return thing


def make_loop(bpy: Any, recipe: dict[str, Any]) -> Any:
    """Ring and stem: two bevelled curves, made one closed surface."""
    along, across = (v / UM_PER_UNIT for v in recipe["ring_radii"])
    width = recipe["fibre"][0] / UM_PER_UNIT
    curve = bpy.data.curves.new("loop", "CURVE")
    curve.dimensions = "3D"
    curve.bevel_depth = width
    curve.bevel_resolution = 4
    curve.use_fill_caps = True
    ring = curve.splines.new("POLY")
    n = 96
    ring.points.add(n - 1)
    for k in range(n):
        t = 2 * math.pi * k / n
        taper = 0.85 + 0.15 * math.cos(t)
        ring.points[k].co = (along * math.cos(t), across * math.sin(t) * taper, 0, 1)
    ring.use_cyclic_u = True
    stem = curve.splines.new("POLY")
    stem.points.add(1)
    end = -along - recipe["stem_length"] / UM_PER_UNIT
    stem.points[0].co = (-along, 0, 0, 1)
    stem.points[1].co = (end, 0, 0, 1)
    thing = bpy.data.objects.new("loop", curve)
    bpy.context.collection.objects.link(thing)
    bpy.context.view_layer.objects.active = thing
    thing.select_set(True)
    bpy.ops.object.convert(target="MESH")
    return remeshed(thing, width / 4)


def main(recipe_file: str, folder: str) -> None:
    """Models the sample of a recipe file (JSON) and writes its meshes into the folder."""
    bpy: Any = importlib.import_module("bpy")

    bpy.ops.wm.read_factory_settings(use_empty=True)
    recipe = json.loads(Path(recipe_file).read_text(encoding="ascii"))
    things = {
        "liquor": make_drop(bpy, recipe),
        "loop": make_loop(bpy, recipe),
        **{
            f"crystal_{k}" if k else "crystal": make_crystal(bpy, corners)
            for k, corners in enumerate(recipe["crystals_um"])
        },
    }
    bpy.context.view_layer.update()
    for name, thing in things.items():
        write_mesh(bpy, thing, Path(folder) / f"{name}.stl")


if __name__ == "__main__":
    main(*sys.argv[sys.argv.index("--") + 1 :])
