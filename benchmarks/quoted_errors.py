"""What factors and mu say of their own errors, against the truth.

    tools/dials-env python benchmarks/quoted_errors.py [factors] [mu] [--seeds N] [--first N] [--choices N] [--scans N]
        [--only NAME]

factors: eleven kinds of samples, each with N seeds (4, from the first), which decide about shape, reflections and
    points, and with N choices of points (1); 0.1 %. The truth is a mean over some hundred thousand to millions of points of
    a scrambled Sobol sequence, by rays that share no code with the factors: a traversal of voxels that is written here, the
    least distance to a plane, and chords between the planes of convex bodies. Where absorption is strong each voxel of the
    crystal has points in proportion to the spread of its transmission, which a first look finds. Its own error is the
    difference of two such sequences.
mu: N virtual scans (20) of each kind. In closed form (ellipsoids of liquor, loop and crystal, Poisson noise) with labels
    whose edges are wrong by up to half a voxel, with an axis that is off by half a pixel each way, and with both; by wave
    optics (fringes, noise; 3.5 keV at 5 mm and 4.5 keV at 10 mm) with labels that are right, or whose bodies are half a
    voxel too large or too small.

The first table: rms error over the reflections, that which is quoted (95 % of choices of points stay below), and the
largest ratio of both among the seeds. The second: rms of error over quoted error.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from i23_size import projection
from numba import njit
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.stats import qmc

from anacor_dials.absorption.beam import BeamProfile
from anacor_dials.absorption.closed_surface import ClosedSurface, SurfaceSample
from anacor_dials.absorption.coefficients import Radiographs, absorption_coefficients
from anacor_dials.absorption.convex_solid import ConvexSolid
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.factors import (
    AbsorptionFactors,
    absorption_factors,
    absorption_factors_of_solid,
    absorption_factors_of_surfaces,
)
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.sample.frames import FloatArray, ImageAxes, unit
from anacor_dials.sample.scan_geometry import ScanGeometry
from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.simulation.crystal_habits import HABITS, random_faces
from anacor_dials.simulation.meshes import Mesh, sphere
from anacor_dials.simulation.samples import random_sample

NAMES = ("background", "liquor", "crystal")
CHECKED = 16  # reflections
FIRST_LOOK = 16  # points of each voxel, where absorption is strong
SLIT_AXIS = np.array([1.0, 0.0, 0.0])
TO_SOURCE = np.array([0.0, 0.0, 1.0])
TILT = np.radians(54.7)

Depths = Callable[[FloatArray, FloatArray], FloatArray]  # of points, along one direction


@dataclass(frozen=True, eq=False)
class Case:
    """A sample, by the code under test and by other code.

    Parameters
    ----------
    factors : function of (Directions, Tracing)
    depths : function of (points (m, 3), direction (3,))
        Optical depths (m,) to the outside.
    inside : function of points (m, 3)
        Which of them lie in the crystal.
    box : (array (3,), array (3,))
        It holds the crystal.
    settings : dict
        Of the tracing.
    log2_points : int
        Of one Sobol sequence.
    n : int
        Reflections.
    voxels : array (m, 3), optional
        Lowest corners of the crystal's voxels, um, if each of them is to have points of its own.
    voxel_um : float
        Their edge.
    """

    factors: Callable[[Directions, Tracing], AbsorptionFactors]
    depths: Depths
    inside: Callable[[FloatArray], np.ndarray]
    box: tuple[FloatArray, FloatArray]
    settings: dict[str, Any] = field(default_factory=dict)
    log2_points: int = 18
    n: int = 400
    voxels: FloatArray | None = None
    voxel_um: float = 1.0


# ---- voxels ------------------------------------------------------------------------------------------


@njit(cache=True)
def _depth_through_voxels(mu: Any, start: Any, direction: Any, out: Any) -> None:
    """Optical depths in voxels of edge 1, from the places where a ray meets their walls."""
    shape = mu.shape
    for k in range(len(start)):
        at = np.empty(3, np.int64)
        t_next, t_step, step = np.empty(3), np.empty(3), np.empty(3, np.int64)
        for a in range(3):
            at[a] = int(np.floor(start[k, a]))
            step[a] = 1 if direction[a] > 0 else -1
            if direction[a] == 0:
                t_next[a], t_step[a] = np.inf, np.inf
            else:
                wall = at[a] + (1 if direction[a] > 0 else 0)
                t_next[a] = (wall - start[k, a]) / direction[a]
                t_step[a] = 1 / abs(direction[a])
        t, total = 0.0, 0.0
        while 0 <= at[0] < shape[0] and 0 <= at[1] < shape[1] and 0 <= at[2] < shape[2]:
            a = 0
            if t_next[1] < t_next[a]:
                a = 1
            if t_next[2] < t_next[a]:
                a = 2
            total += mu[at[0], at[1], at[2]] * (t_next[a] - t)
            t = t_next[a]
            at[a] += step[a]
            t_next[a] += t_step[a]
        out[k] = total


def of_voxels(values: np.ndarray, mu: list[float], voxel: float = 1.0, **more: Any) -> Case:
    """Labels 0, 1 and 2 of NAMES in voxels of one edge, um."""
    labels = LabelVolume(values.astype(np.uint8), np.full(3, voxel), None, NAMES)
    by_voxel = np.array(mu, dtype=float)[values] * voxel
    middle = np.asarray(labels.centre) + 0.5  # corners lie at whole numbers here

    def depths(points: FloatArray, direction: FloatArray) -> FloatArray:
        out = np.empty(len(points))
        _depth_through_voxels(by_voxel, points / voxel + middle, direction, out)
        return out

    def inside(points: FloatArray) -> np.ndarray:
        i, j, k = np.floor(points / voxel + middle).astype(int).T
        return values[i, j, k] == 2

    crystal = np.argwhere(values == 2)
    own = (crystal - middle) * voxel if more.pop("strong", False) else None
    low = (crystal.min(axis=0) - middle) * voxel
    high = (crystal.max(axis=0) + 1 - middle) * voxel
    return Case(
        lambda directions, tracing: absorption_factors(labels, mu, directions, tracing),
        depths,
        inside,
        (low, high - 1e-9),
        voxels=own,
        voxel_um=voxel,
        **more,
    )


def places(shape: tuple[int, int, int], rng: np.random.Generator) -> FloatArray:
    """Middles of voxels about the middle of the volume, turned at random: (3, nx, ny, nz)."""
    grid = np.indices(shape) - (np.reshape(shape, (3, 1, 1, 1)) - 1) / 2
    turn = Rotation.random(rng=rng).as_matrix()
    return np.einsum("ij,jxyz->ixyz", turn, grid)


def drop(rng: np.random.Generator, shape: str) -> Case:
    sample = random_sample(rng, 60.0, shape=shape, film=False, stem_length_um=10.0)
    made = sample.label_volume(2.0)
    values = np.select([made.values == made.label("crystal"), made.values > 0], [2, 1], 0)
    return of_voxels(values, [0.0, 0.0120, 0.0145], 2.0)


def turned_box(rng: np.random.Generator, edges: tuple[float, ...], mu: float, **more: Any) -> Case:
    reach = int(np.ceil(np.linalg.norm(edges))) + 2
    at = places((reach, reach, reach), rng)
    inside = np.all([np.abs(x) <= e / 2 for x, e in zip(at, edges, strict=True)], axis=0)
    return of_voxels(2 * inside, [0.0, 0.0, mu], **more)


def strong(rng: np.random.Generator) -> Case:
    return turned_box(rng, (46.0, 40.0, 52.0), 0.42, strong=True, n=20, log2_points=20)


def hollow(rng: np.random.Generator) -> Case:
    at = places((72, 72, 72), rng)
    radius = np.sqrt((at**2 * np.reshape([1.0, 1.2, 0.9], (3, 1, 1, 1))).sum(axis=0))
    cavity = np.sqrt(((at - np.reshape([2.0, -1.0, 1.0], (3, 1, 1, 1))) ** 2).sum(axis=0)) < 17
    values = np.where(radius < 25, 2, np.where(radius < 32, 1, 0))
    values[cavity] = rng.integers(0, 2)
    return of_voxels(values, [0.0, 0.02, 0.06], log2_points=20)


def in_beam(rng: np.random.Generator, beam: BeamProfile, **settings: Any) -> Case:
    at = places((80, 80, 80), rng)
    crystal = (np.abs(at[0]) < 20) & (np.abs(at[1]) < 14) & (np.abs(at[2]) < 25)
    liquor = (at**2).sum(axis=0) < 38**2
    return of_voxels(
        np.where(crystal, 2, liquor),
        [0.0, 0.02, 0.03],
        settings={"beam": beam, **settings},
        log2_points=20,
        n=100,
    )


# ---- planes and triangles ----------------------------------------------------------------------------


def of_planes(normals: FloatArray, distances: FloatArray, mu: float, **more: Any) -> Case:
    solid = ConvexSolid(normals, distances)
    corners = solid.corners

    def depths(points: FloatArray, direction: FloatArray) -> FloatArray:
        cosine = normals @ direction
        ahead = cosine > 1e-12
        return mu * ((distances[ahead] - points @ normals[ahead].T) / cosine[ahead]).min(axis=1)

    return Case(
        lambda directions, tracing: absorption_factors_of_solid(solid, mu, directions, tracing),
        depths,
        lambda points: np.all(points @ normals.T < distances, axis=1),
        (corners.min(axis=0), corners.max(axis=0)),
        **more,
    )


def habit(rng: np.random.Generator) -> Case:
    normals, distances = random_faces(HABITS[rng.choice(list(HABITS))], rng, 80.0)
    turn = Rotation.random(rng=rng).as_matrix()
    return of_planes(normals @ turn.T, distances, 0.03, log2_points=21)


def plate_of_faces(rng: np.random.Generator) -> Case:
    normals = np.concatenate([np.eye(3), -np.eye(3)])
    distances = np.array([100.0, 100.0, 2.0, 100.0, 100.0, 2.0])
    turn = Rotation.random(rng=rng).as_matrix()
    return of_planes(normals @ turn.T, distances, 0.02, log2_points=20)


@njit(cache=True)
def _chords(normals: Any, distances: Any, points: Any, direction: Any, out: Any) -> None:
    """How far rays from points run within a convex body."""
    cosine = normals @ direction
    for k in range(len(points)):
        enters, leaves = 0.0, np.inf
        for i in range(len(normals)):
            height = distances[i]
            for a in range(3):
                height -= normals[i, a] * points[k, a]
            if cosine[i] > 1e-12:
                leaves = min(leaves, height / cosine[i])
            elif cosine[i] < -1e-12:
                enters = max(enters, height / cosine[i])
            elif height < 0:
                leaves = 0.0
        out[k] = max(0.0, leaves - enters)


def planes_of(body: Mesh) -> tuple[FloatArray, FloatArray]:
    """Outward normals (m, 3) and distances (m,) of the triangles of a convex body."""
    a, b, c = np.moveaxis(body.vertices[body.faces].astype(float), 1, 0)
    normals = unit(np.cross(b - a, c - a))
    distances = np.einsum("ij,ij->i", normals, a)
    normals *= np.sign(distances - normals @ body.vertices.mean(axis=0))[:, None]
    distances = np.einsum("ij,ij->i", normals, a)
    assert np.all(body.vertices @ normals.T < distances + 1e-5), "not convex"
    return normals, distances


def meshes(rng: np.random.Generator) -> Case:
    """A hollow crystal in liquor."""
    outer = sphere(20.0, 2).vertices * rng.uniform(0.8, 1.2, 3)
    bodies = [
        Mesh(sphere(30.0, 2).vertices, sphere(30.0, 2).faces),
        Mesh(outer, sphere(20.0, 2).faces),
        Mesh(0.7 * outer + 1.0, sphere(20.0, 2).faces),
    ]
    faces = bodies[1].faces
    crystal = ClosedSurface(
        np.concatenate([bodies[1].vertices, bodies[2].vertices]),
        np.concatenate([faces, faces[:, ::-1] + len(outer)]),
    )
    sample = SurfaceSample(
        ("background", "crystal", "liquor"),
        (crystal, ClosedSurface(bodies[0].vertices, bodies[0].faces)),
    )
    solids = [planes_of(body) for body in bodies]  # all three are convex

    def depths(points: FloatArray, direction: FloatArray) -> FloatArray:
        total, chord = np.zeros(len(points)), np.empty(len(points))
        # the crystal takes the place of liquor, and liquor fills the cavity
        for more_mu, (normals, distances) in zip((0.02, 0.04, -0.04), solids, strict=True):
            _chords(normals, distances, points, direction, chord)
            total += more_mu * chord
        return total

    def within(solid: tuple[FloatArray, FloatArray], points: FloatArray) -> np.ndarray:
        return np.all(points @ solid[0].T < solid[1], axis=1)

    return Case(
        lambda directions, tracing: absorption_factors_of_surfaces(
            sample, [0.0, 0.06, 0.02], directions, tracing
        ),
        depths,
        lambda points: within(solids[1], points) & ~within(solids[2], points),
        (outer.min(axis=0), outer.max(axis=0)),
        log2_points=19,
    )


CASES: dict[str, Callable[[np.random.Generator], Case]] = {
    "crystal of thaumatin in its drop": lambda rng: drop(rng, "thaumatin"),
    "cluster in its drop": lambda rng: drop(rng, "cluster"),
    "A of about 0.001": strong,
    "plate 50:1": lambda rng: turned_box(rng, (120.0, 120.0, 2.4), 0.02, log2_points=20),
    "needle, mu R = 5": lambda rng: turned_box(
        rng, (8.0, 8.0, 90.0), 1.25, strong=True, n=20, log2_points=21
    ),
    "hollow crystal": hollow,
    "slit of 60 x 8 um, two axes": lambda rng: in_beam(rng, BeamProfile("tophat", (60.0, 8.0))),
    "Gaussian of 20 x 12 um, two axes": lambda rng: in_beam(
        rng, BeamProfile("gaussian", (20.0, 12.0))
    ),
    "faces, habit of a protein": habit,
    "faces, plate 50:1": plate_of_faces,
    "meshes, hollow crystal in liquor": meshes,
}

# ---- the truth ---------------------------------------------------------------------------------------


def turned_in_two_sweeps(n: int, rng: np.random.Generator) -> Directions:
    """Reflections of two sweeps about axes 54.7 deg apart; the beam's axis stays in the laboratory."""
    axes = np.array([SLIT_AXIS, (np.cos(TILT), np.sin(TILT), 0.0)])
    sweep = np.arange(n) % 2
    turns = Rotation.from_rotvec(rng.uniform(0, 2 * np.pi, n)[:, None] * axes[sweep])
    exits = unit(rng.standard_normal((n, 3)))
    back = turns.inv()
    return Directions(back.apply(TO_SOURCE), back.apply(exits), sweep, axes, back.apply(SLIT_AXIS))


def light(beam: BeamProfile | None, points: FloatArray, one: Directions) -> FloatArray:
    if beam is None:
        return np.ones(len(points))
    source, axis = one.to_source[0], one.axes_of_beam[0]
    along = axis - source * (source @ axis)
    along /= np.linalg.norm(along)
    u = points @ along / beam.size_um[0]
    v = points @ np.cross(source, along) / beam.size_um[1]
    if beam.shape == "tophat":
        return ((np.abs(u) < 0.5) & (np.abs(v) < 0.5)).astype(float)
    return 2.0 ** (-4 * (u * u + v * v))


def truth_by_voxels(case: Case, one: Directions, seed: int) -> float:
    """The transmission of a reflection by points in each voxel, in proportion to its spread.

    A first look with FIRST_LOOK points of each voxel says how much its transmission varies within it (Neyman's
    allocation); its points do not count. A share of the mean besides, since the spread is one of few points.
    """
    assert case.voxels is not None
    rng = np.random.default_rng(seed)

    def passed(n: NDArray[np.int64]) -> tuple[NDArray[np.int64], FloatArray]:
        """The voxels of points, n (m,) in each, and their transmissions."""
        of_voxel = np.repeat(np.arange(len(n)), n)
        # consecutive points of the sequence, those of a voxel, are evenly spread
        sequence = qmc.Sobol(3, rng=rng)
        places = sequence.random_base2(int(np.ceil(np.log2(len(of_voxel)))))[: len(of_voxel)]
        points = case.voxels[of_voxel] + case.voxel_um * places
        depth = case.depths(points, one.to_source[0]) + case.depths(points, one.exit[0])
        return of_voxel, np.exp(-depth)

    _, looked = passed(np.full(len(case.voxels), FIRST_LOOK))
    looked = looked.reshape(-1, FIRST_LOOK)
    spread = looked.std(axis=1) + 0.1 * looked.mean(axis=1)
    n = FIRST_LOOK + np.ceil(2**case.log2_points * spread / spread.sum()).astype(np.int64)
    of_voxel, found = passed(n)
    return float((np.bincount(of_voxel, found) / n).mean())


def truth(case: Case, directions: Directions, seed: int) -> FloatArray:
    """Transmissions (n,) by points of a Sobol sequence."""
    if case.voxels is not None:
        return np.array([truth_by_voxels(case, directions[k : k + 1], seed)
                         for k in range(len(directions))])  # fmt: skip
    low, high = case.box
    sequence = qmc.Sobol(3, rng=np.random.default_rng(seed))
    sums = np.zeros((2, len(directions)))
    size = min(case.log2_points, 18)
    for _ in range(2 ** (case.log2_points - size)):
        points = low + sequence.random(2**size) * (high - low)
        points = points[case.inside(points)]
        for k in range(len(directions)):
            w = light(case.settings.get("beam"), points, directions[k : k + 1])
            lit, w = points[w > 1e-9], w[w > 1e-9]
            depth = case.depths(lit, directions.to_source[k])
            depth = depth + case.depths(lit, directions.exit[k])
            sums[:, k] += w @ np.exp(-depth), w.sum()
    return sums[0] / sums[1]


def rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def factor_trials(
    make: Callable[[np.random.Generator], Case], seed: int, choices: int
) -> list[list[float]]:
    """(error, expected with 95 %, error of the truth, least and largest A) of each choice of points."""
    rng = np.random.default_rng([7, seed])
    case = make(rng)
    directions = turned_in_two_sweeps(case.n, rng)
    which = np.linspace(0, case.n - 1, CHECKED).astype(int)
    one, two = (truth(case, directions[which], s) for s in (1, 2))
    trials = []
    for choice in range(choices):
        tracing = Tracing(1e-3, seed=seed + 1000 * choice, device="cpu", nproc=1, **case.settings)
        found = case.factors(directions, tracing)
        error = rms(found.transmission[which] / (0.5 * (one + two)) - 1)
        extremes = found.transmission.min(), found.transmission.max()
        trials.append([error, found.accuracy.rms_error, 0.5 * rms(one / two - 1), *extremes])
    return trials


def factors_table(seeds: range, choices: int, only: str) -> None:
    print(
        "| sample | runs | A | true % | quoted % | largest ratio | error of the truth % | CPU s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, make in CASES.items():
        if only not in name:
            continue
        start = time.process_time()
        found = np.array([t for seed in seeds for t in factor_trials(make, seed, choices)])
        seconds = (time.process_time() - start) / len(found)
        true, quoted, own, low, high = found.T
        print(
            f"| {name} | {len(found)} | {low.min():.2g} to {high.max():.2g} | {100 * rms(true):.3f} | "
            f"{100 * rms(quoted):.3f} | {(true / quoted).max():.2f} | {100 * rms(own):.3f} | {seconds:.0f} |",
            flush=True,
        )


# ---- mu from projections -----------------------------------------------------------------------------

# liquor, a loop and a crystal in it: centre and semi-axes along X, Y, Z in um, and mu in 1/um
SOLIDS = np.array(
    [
        (1.0, 2.0, -3.0, 28.0, 26.0, 22.0, 0.0202),
        (-12.0, 8.0, -6.0, 9.0, 8.0, 7.0, 0.0164),
        (4.0, -4.0, 5.0, 14.0, 12.0, 10.0, 0.0250),
    ]
)
PIXELS, FINER = 78, 3  # of 1 um; each is a mean over 3 x 3 points
ANGLES = np.arange(0.0, 180.0, 9.0)
COUNTS = 2000.0
MATERIALS = ("liquor", "loop", "crystal")


def grown_labels(solids: FloatArray, shape: tuple[int, int, int]) -> LabelVolume:
    places = np.indices(shape) - (np.reshape(shape, (3, 1, 1, 1)) - 1) / 2
    values = np.zeros(shape, dtype=np.uint8)
    for label, body in enumerate(solids, 1):
        inside = ((places - body[:3].reshape(3, 1, 1, 1)) / body[3:6].reshape(3, 1, 1, 1)) ** 2
        values[inside.sum(axis=0) <= 1] = label
    return LabelVolume(values, np.ones(3), None)


def closed_form_scan(
    rng: np.random.Generator, edges: float, axis_px: float
) -> tuple[Radiographs, LabelVolume, FloatArray]:
    """Radiographs, labels and mu. edges: half a range, voxels; axis_px: how far the axis is off, each way."""
    solids = SOLIDS.copy()
    solids[:, :3] += rng.uniform(-1, 1, (3, 3))
    solids[:, 3:6] *= rng.uniform(0.9, 1.1, (3, 3))
    bodies = solids.copy()
    bodies[1:, 6] -= bodies[0, 6]  # what lies within the liquor adds to it
    fine = [projection(np.deg2rad(a), FINER * PIXELS, 1.0 / FINER, bodies) for a in ANGLES]
    clean = np.exp(-np.array(fine)).reshape(len(ANGLES), PIXELS, FINER, PIXELS, FINER)
    images = rng.poisson(COUNTS * clean.mean(axis=(2, 4))) / COUNTS
    labelled = solids.copy()
    labelled[:, 3:6] += rng.uniform(-edges, edges, (3, 1))
    middle = (PIXELS - 1) / 2
    off = axis_px * rng.choice([-1.0, 1.0], 2)
    geometry = ScanGeometry(ImageAxes.from_vectors((0, 1, 0), (1, 0, 0)), (1.0, 1.0))
    scan = Radiographs(images, ANGLES, geometry, (middle + off[0], middle + off[1]))
    return scan, grown_labels(labelled, (PIXELS,) * 3), solids[:, 6]


def wave_scan(
    rng: np.random.Generator, grown: float
) -> tuple[Radiographs, LabelVolume, FloatArray]:
    """The same with fringes. grown: how much larger the labelled bodies are, voxels."""
    from anacor_dials.simulation.meshes import box
    from anacor_dials.simulation.samples import sample_from_meshes
    from anacor_dials.simulation.scan import ScanSettings, VirtualScan, true_labels

    energy, distance = ((3.5, 5.0), (4.5, 10.0))[rng.integers(2)]
    jitter = rng.uniform(-2, 2, (3, 3))
    size = rng.uniform(0.9, 1.1, 3)

    def made(more: float) -> Any:
        """The sample, its bodies larger by more um on every side."""
        edges = size[2] * np.array([24.0, 20.0, 28.0]) + 2 * more
        return sample_from_meshes(
            {
                "liquor": sphere(34.0 * size[0] + more, 4).moved(shift_um=jitter[0]),
                "loop": sphere(8.5 * size[1] + more, 4).moved(shift_um=jitter[1] + (-15, -13, 6)),
                "crystal": box(edges).moved(shift_um=jitter[2] / 2 + (8, 6, -4)),
            }
        )

    settings = ScanSettings(
        energy_keV=energy,
        distance_mm=distance,
        pixel_size_um=0.8,
        image_shape=(108, 112),
        n_projections=12,
    )
    scan = VirtualScan(made(0.0), settings, np.ones((1, *settings.upright_shape)))
    images = np.stack([scan.transmission(float(angle)) for angle in settings.angles])
    images = rng.poisson(2 * COUNTS * images) / (2 * COUNTS)
    geometry = ScanGeometry(settings.axes, (0.8, 0.8), energy, distance)
    raw = np.stack([settings.raw(image) for image in images])
    labels = true_labels(made(0.8 * grown), settings)
    return Radiographs(raw, settings.angles, geometry), labels, made(0.0).mu_per_um(energy)[1:]


SCANS: dict[str, Callable[[np.random.Generator], tuple[Radiographs, LabelVolume, FloatArray]]] = {
    "right labels and axis": lambda rng: closed_form_scan(rng, 0.0, 0.0),
    "edges within half a voxel": lambda rng: closed_form_scan(rng, 0.5, 0.0),
    "axis off by half a pixel": lambda rng: closed_form_scan(rng, 0.0, 0.5),
    "both": lambda rng: closed_form_scan(rng, 0.5, 0.5),
    "fringes": lambda rng: wave_scan(rng, 0.0),
    "fringes, bodies off by half a voxel": lambda rng: wave_scan(rng, rng.choice([-0.5, 0.5])),
}


def mu_table(scans: int, only: str) -> None:
    print(
        "| scans | "
        + " | ".join(f"{m}: error %, quoted %, rms pull" for m in MATERIALS)
        + " | CPU s |"
    )
    print("|---|---|---|---|---|")
    for name, make in SCANS.items():
        if only not in name:
            continue
        start = time.process_time()
        errors, quoted = [], []
        for seed in range(scans):
            scan, labels, mu = make(np.random.default_rng([11, seed]))
            fit = absorption_coefficients(scan, labels)
            errors.append(fit.mu_per_um[1:] / mu - 1)
            quoted.append(fit.standard_error_per_um[1:] / mu)
        seconds = (time.process_time() - start) / scans
        cells = [
            f"{100 * rms(e):.2f}, {100 * rms(q):.2f}, {rms(e / q):.2f}"
            for e, q in zip(np.array(errors).T, np.array(quoted).T, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} | {seconds:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", choices=["factors", "mu"])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="seed")
    parser.add_argument("--choices", type=int, default=1, help="of points, for each sample")
    parser.add_argument("--scans", type=int, default=20)
    parser.add_argument("--only", default="", help="samples or scans whose name holds this")
    options = parser.parse_args()
    if not options.what or "factors" in options.what:
        seeds = range(options.first, options.first + options.seeds)
        factors_table(seeds, options.choices, options.only)
    if not options.what or "mu" in options.what:
        mu_table(options.scans, options.only)


if __name__ == "__main__":
    main()
