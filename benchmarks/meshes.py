"""Speed of absorption factors of samples given by meshes.

    tools/dials-env python benchmarks/meshes.py [--nproc N] [--reflections N]

Reflections spread over 360 degrees at the usual tolerance of 0.1 %: a crystal of 20 faces by its
triangles, a sphere of 5120 triangles, and the same crystal in liquor in a capillary. Every line has the
processor time beside the wall-clock time, since other work on the machine spoils the latter.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from anacor_dials.absorption.closed_surface import ClosedSurface, SurfaceSample
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.factors import absorption_factors_of_surfaces
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.sample.frames import rotation_about, source_directions, unit
from anacor_dials.simulation.meshes import Mesh, convex_polyhedron, sphere, turned_profile

N_REFLECTIONS = 300_000
GOLDEN = (1 + 5**0.5) / 2


def surface(mesh: Mesh) -> ClosedSurface:
    return ClosedSurface(mesh.vertices, mesh.faces)


def icosahedron(distance_um: float) -> Mesh:
    """The solid of 20 faces, whose normals are the corners of a dodecahedron."""
    corners = [(a, b, c) for a in (1, -1) for b in (1, -1) for c in (1, -1)]
    for a in (1 / GOLDEN, -1 / GOLDEN):
        for b in (GOLDEN, -GOLDEN):
            corners += [(0, a, b), (a, b, 0), (b, 0, a)]
    turn = rotation_about((1.0, 2.0, -0.5), 37.0)
    return convex_polyhedron(np.array(corners) @ turn.T, np.full(20, distance_um))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nproc", type=int, default=None)
    parser.add_argument("--reflections", type=int, default=N_REFLECTIONS)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    n = options.reflections
    directions = Directions.of_one_sweep(
        source_directions(rng.uniform(0, 360, n)), unit(rng.standard_normal((n, 3)))
    )
    tracing = Tracing(nproc=options.nproc)
    crystal = surface(icosahedron(50.0))
    capillary = turned_profile(np.linspace(-400, 400, 9), np.full(9, 150.0), 64)
    samples = (
        ("20 faces, 100 um, mu 10 /mm", {"crystal": crystal}, [0, 0.01]),
        ("sphere of 5120 triangles, 100 um", {"crystal": surface(sphere(50.0, 4))}, [0, 0.01]),
        (
            "20 faces in liquor of 5120 triangles in a capillary",
            {
                "crystal": crystal,
                "liquor": surface(sphere(100.0, 4)),
                "capillary": surface(capillary),
            },
            [0, 0.01, 0.003, 0.001],
        ),
    )
    for _, sample, mu in samples[1:]:  # compiles
        absorption_factors_of_surfaces(SurfaceSample.of(sample), mu, directions[:400], tracing)
    for name, sample, mu in samples:
        wall, cpu = time.perf_counter(), time.process_time()
        found = absorption_factors_of_surfaces(SurfaceSample.of(sample), mu, directions, tracing)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{name}: {n} reflections, {wall:.1f} s, {cpu:.1f} s of processor; {found.accuracy}")


if __name__ == "__main__":
    main()
