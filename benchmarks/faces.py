"""Speed of absorption factors of crystals with plane faces.

    tools/dials-env python benchmarks/faces.py [--nproc N] [--reflections N]

A compact crystal of 20 faces (an icosahedron of 100 um), a plate of 200 x 200 x 5 um, and a needle of
mu R = 5, each with reflections spread over 360 degrees at the usual tolerance of 0.1 %. Every line has
the processor time beside the wall-clock time, since other work on the machine spoils the latter.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from anacor_dials.absorption.convex_solid import ConvexSolid
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.factors import absorption_factors_of_solid
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.sample.frames import rotation_about, source_directions, unit

N_REFLECTIONS = 300_000
GOLDEN = (1 + 5**0.5) / 2
BOX = np.concatenate([np.eye(3), -np.eye(3)])


def icosahedron(distance_um: float) -> ConvexSolid:
    """The solid of 20 faces, whose normals are the corners of a dodecahedron."""
    corners = [(a, b, c) for a in (1, -1) for b in (1, -1) for c in (1, -1)]
    for a in (1 / GOLDEN, -1 / GOLDEN):
        for b in (GOLDEN, -GOLDEN):
            corners += [(0, a, b), (a, b, 0), (b, 0, a)]
    turn = rotation_about((1.0, 2.0, -0.5), 37.0)
    return ConvexSolid(np.array(corners) @ turn.T, np.full(20, distance_um))


def box(a: float, b: float, c: float) -> ConvexSolid:
    """A box of edges 2a, 2b, 2c, um, in a general orientation."""
    turn = rotation_about((1.0, 2.0, -0.5), 37.0)
    return ConvexSolid(BOX @ turn.T, [a, b, c, a, b, c])


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
    few = directions[:500]
    absorption_factors_of_solid(box(9.0, 9.0, 9.0), 0.01, few, tracing)  # compiles
    for name, solid, mu in (
        ("20 faces, 100 um, mu 10 /mm", icosahedron(50.0), 0.01),
        ("plate 200 x 200 x 5 um, mu 20 /mm", box(100.0, 100.0, 2.5), 0.02),
        ("needle 8 x 8 x 120 um, mu R = 5", box(4.0, 4.0, 60.0), 1.25),
    ):
        wall, cpu = time.perf_counter(), time.process_time()
        found = absorption_factors_of_solid(solid, mu, directions, tracing)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{name}: {n} reflections, {wall:.1f} s, {cpu:.1f} s of processor; {found.accuracy}")


if __name__ == "__main__":
    main()
