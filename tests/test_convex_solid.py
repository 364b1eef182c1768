"""Crystals with plane faces: geometry, points, and factors against closed forms, tables and voxels."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, HalfspaceIntersection, QhullError
from scipy.stats import qmc

from anacor_dials.absorption.convex_solid import ConvexSolid
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.factors import absorption_factors, absorption_factors_of_solid
from anacor_dials.absorption.solid_tracing import SolidBody, SolidPoints
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.sample.frames import rotation_about, source_directions, unit
from anacor_dials.sample.volumes import LabelVolume

AXES = np.concatenate([np.eye(3), -np.eye(3)])
DIAGONALS = np.array([[a, b, c] for a in (1, -1) for b in (1, -1) for c in (1, -1)])
TURN = rotation_about((1.0, 2.0, -0.5), 37.0)


def box(a, b, c, turn=TURN):
    """A box of edges 2a, 2b, 2c."""
    return ConvexSolid(AXES @ turn.T, [a, b, c, a, b, c])


def scan(n, seed=0):
    rng = np.random.default_rng(seed)
    exits = unit(rng.standard_normal((n, 3)))
    return Directions.of_one_sweep(source_directions(rng.uniform(0, 360, n)), exits)


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


def even_directions(n):
    """Directions that cover the sphere evenly (a Fibonacci lattice)."""
    i = np.arange(n) + 0.5
    angle, z = np.pi * (1 + 5**0.5) * i, 1 - 2 * i / n
    return np.column_stack(
        [np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z]
    )


# ---- the oracle -----------------------------------------------------------------------------------

TINY = 1e-9


def inner_point(planes: np.ndarray) -> np.ndarray | None:
    """The centre of the largest ball within n . x + b <= 0 for rows (n, b) of planes; None if it has none."""
    norm = np.linalg.norm(planes[:, :3], axis=1)
    found = linprog(
        [0, 0, 0, -1],
        A_ub=np.column_stack([planes[:, :3], norm]),
        b_ub=-planes[:, 3],
        bounds=[(None, None)] * 3 + [(0, None)],
    )
    return found.x[:3] if found.status == 0 and found.x[3] > TINY else None


def integral_of_exp(planes: np.ndarray, gradient: np.ndarray, constant: float) -> float:
    """The integral of exp(-(gradient . x + constant)) over the solid of planes."""
    inside = inner_point(planes)
    if inside is None:
        return 0.0
    try:
        corners = HalfspaceIntersection(planes, inside).intersections
        hull = ConvexHull(corners)
    except QhullError:
        return 0.0
    triangles = corners[hull.simplices]
    tetrahedra = np.concatenate(
        [np.broadcast_to(inside, (len(triangles), 1, 3)), triangles], axis=1
    )
    volumes = np.abs(np.linalg.det(tetrahedra[:, 1:] - tetrahedra[:, :1])) / 6
    depths = tetrahedra @ gradient + constant
    matrices = np.zeros((len(depths), 4, 4))
    for i in range(4):
        matrices[:, i, i] = -depths[:, i]
    matrices[:, [0, 1, 2], [1, 2, 3]] = 1.0
    return float(np.sum(6 * volumes * expm(matrices)[:, 0, 3]))


def analytical_transmission(
    normals: np.ndarray, distances: np.ndarray, mu: float, to_source: np.ndarray, exit_: np.ndarray
) -> float:
    """A of the solid normals (k, 3) . x <= distances (k,) in closed form, for two unit vectors.

    The crystal is cut into regions in which the ray comes in through one face and leaves through
    another one (de Meulenaer & Tompa, Acta Cryst. 19 (1965) 1014). In each region the optical depth is
    linear in the position. Regions are cut into tetrahedra, over which the integral of exp(-linear) is
    6 V times the divided difference of exp at minus the depths of the corners (Genocchi and Hermite):
    the corner element of the exponential of a bidiagonal matrix (Opitz, 1964).
    """
    planes = np.column_stack([normals, -distances])
    volume = integral_of_exp(planes, np.zeros(3), 0.0)

    def through(direction: np.ndarray) -> list[tuple[np.ndarray, float, np.ndarray]]:
        """For each face that rays can leave by: gradient and constant of the length, region."""
        ahead = np.flatnonzero(normals @ direction > TINY)
        slopes = -normals[ahead] / (normals[ahead] @ direction)[:, None]
        lengths = distances[ahead] / (normals[ahead] @ direction)
        result = []
        for i in range(len(ahead)):
            others = np.delete(np.arange(len(ahead)), i)  # the way to face i is the shortest
            region = np.column_stack([slopes[i] - slopes[others], lengths[i] - lengths[others]])
            result.append((slopes[i], float(lengths[i]), region))
        return result

    total = 0.0
    for slope_in, length_in, region_in in through(to_source):
        for slope_out, length_out, region_out in through(exit_):
            solid = np.concatenate([planes, region_in, region_out])
            norm = np.linalg.norm(solid[:, :3], axis=1)
            if np.any((norm <= TINY) & (solid[:, 3] > TINY)):
                continue
            solid = solid[norm > TINY]
            total += integral_of_exp(
                solid, mu * (slope_in + slope_out), mu * (length_in + length_out)
            )
    return total / volume


# ---- geometry ------------------------------------------------------------------------------------


def test_a_box():
    solid = box(10.0, 20.0, 5.0)
    assert solid.volume_um3 == pytest.approx(8 * 10 * 20 * 5)
    np.testing.assert_allclose(solid.areas_um2, 4 * np.array([100.0, 50.0, 200.0] * 2))
    assert len(solid.corners) == 8
    np.testing.assert_allclose(solid.size_um, (40.0, 20.0, 10.0))


def test_an_octahedron_and_a_plane_that_is_cut_off():
    edge = 12.0
    height = edge / np.sqrt(6)  # from the centre to a face
    normals = np.concatenate([DIAGONALS, [[1.0, 0.0, 0.0]]])
    solid = ConvexSolid(normals, [height] * 8 + [edge])
    assert solid.volume_um3 == pytest.approx(np.sqrt(2) / 3 * edge**3)
    np.testing.assert_allclose(solid.areas_um2[:8], np.sqrt(3) / 4 * edge**2)
    assert solid.areas_um2[8] == 0.0
    assert len(solid.corners) == 6
    # on a face: its height, and the hexagon of the outline by its width and its diagonal
    hexagon = edge / np.sqrt(3)
    np.testing.assert_allclose(
        solid.size_um, (2 * hexagon, np.sqrt(3) * hexagon, 2 * height), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("normals", "distances", "message"),
    [
        (AXES[:5], [1.0] * 5, "faces are missing on one side"),
        (AXES, [1.0, 1, 1, 1, 1, 0], "distance of a face is 0.0"),
        (AXES, [1.0, 1, 1, 1, 1, np.nan], "distance of a face is nan"),
        (AXES[:3], [1.0] * 3, "needs four faces"),
        (np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]]), [1.0] * 4, "do not enclose"),
    ],
)
def test_faces_that_are_no_crystal(normals, distances, message):
    with pytest.raises(ValueError, match=message):
        ConvexSolid(normals, distances)


# ---- points --------------------------------------------------------------------------------------


@pytest.mark.parametrize("solid", [box(100.0, 100.0, 2.5), ConvexSolid(DIAGONALS, [9.0] * 8)])
def test_points_fill_the_solid_evenly(solid):
    points = SolidPoints(solid).draw(20_000, np.random.default_rng(1))
    inside = points.voxels @ solid.normals.T - solid.distances_um
    assert inside.max() < 1e-6
    assert points.weights.sum() == pytest.approx(len(points))
    # moments over the solid, from its tetrahedra: the integral of x x^T is V / 20 (sum x x^T + S S^T)
    corners = solid.tetrahedra()
    volumes = np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1])) / 6
    total = corners.sum(axis=1)
    second = np.einsum("tki,tkj->tij", corners, corners) + np.einsum("ti,tj->tij", total, total)
    second = np.einsum("t,tij->ij", volumes / 20, second) / solid.volume_um3
    found = points.voxels.T @ points.voxels / len(points)
    scale = np.sqrt(np.outer(np.diag(second), np.diag(second)))
    np.testing.assert_allclose(found / scale, second / scale, atol=2e-3)


def test_a_density_of_points_has_weights_that_undo_it():
    solid = box(10.0, 20.0, 5.0)
    importance = np.random.default_rng(2).uniform(0.1, 3.0, 500)
    points = SolidPoints(solid).draw(40_000, np.random.default_rng(3), importance)
    mean = points.weights @ points.voxels**2 / points.weights.sum()
    even = SolidPoints(solid).draw(40_000, np.random.default_rng(4)).voxels
    np.testing.assert_allclose(mean, (even**2).mean(axis=0), rtol=5e-3)


# ---- factors -------------------------------------------------------------------------------------

# name: solid, mu (1/um), tolerance
CASES = {
    "cube, mu R 1": (box(20.0, 20.0, 20.0), 0.05, 2e-3),
    "octahedron": (ConvexSolid(DIAGONALS @ TURN.T, [15.0] * 8), 0.04, 1e-3),
    "plate 200 x 200 x 5": (box(100.0, 100.0, 2.5), 0.02, 1e-3),
    "needle, mu R 5": (box(4.0, 4.0, 60.0), 1.25, 4e-3),
    "A 0.001": (box(25.0, 20.0, 22.5), 0.5, 8e-3),
}


def closed_form(name, directions):
    solid, mu, _ = CASES[name]
    return np.array(
        [
            analytical_transmission(solid.normals, solid.distances_um, mu, s, e)
            for s, e in zip(directions.to_source, directions.exit, strict=True)
        ]
    )


@pytest.mark.parametrize("name", CASES)
def test_what_is_claimed_of_factors_is_true(name):
    """Against the closed form, over six choices of points; one in twenty may exceed the claim."""
    solid, mu, tolerance = CASES[name]
    directions = scan(8, seed=5)
    expected = closed_form(name, directions)
    expected_errors, wrong = [], []
    for seed in range(6):
        tracing = Tracing(tolerance, seed=seed)
        found = absorption_factors_of_solid(solid, mu, directions, tracing)
        assert found.accuracy.reached
        expected_errors.append(found.accuracy.expected_error)
        wrong.append(rms(found.transmission / expected - 1))
        assert wrong[-1] < 1.5 * found.accuracy.rms_error
    assert rms(wrong) < 2 * rms(expected_errors)


# Alcock's standard test for programs of absorption (Acta Cryst. A30 (1974) 332), as PLATON's manual prints it
# (ABST): cell and wavelength, five faces (h k l and distance, mm), mu = 1/mm, and reflections with the cosines of
# the angles between a*, b*, c* and the directions to the source and of exit, in turn.
STANDARD_CELL = (10.0006, 11.0002, 12.0012, 95.81, 101.31, 106.8)
STANDARD_FACES = [(1, 0, 0, 1.0), (0, 1, 1, 1.5), (0, -2, 1, 0.5), (-3, 0, 1, 0.3), (1, 1, -4, 1.3)]
STANDARD_REFLECTIONS = """\
0  1  1  -0.76194  0.84042 -0.24264  0.41352  0.44558 -0.28769
0  1  1  -0.87952  0.95800 -0.01798  0.18886  0.19452 -0.03663
0  0  1  -0.83199  0.86344 -0.69424  0.71659  0.06645  0.06645
0  0 -1   0.83199 -0.86344  0.69424 -0.71659 -0.06645 -0.06645
1  2  3  -0.53890  0.89307  0.01820  0.39840  0.68323 -0.19531
1  2 -3   0.28445 -0.11900  0.92766 -0.64519  0.51498 -0.82452
1 -2  3  -0.53152  0.69757 -0.97176  0.79426 -0.20838  0.59637
1 -2  3  -0.74569  0.91174 -0.82812  0.65061 -0.01234  0.40032"""


def test_the_standard_crystal_of_alcock():
    """A triclinic crystal of five faces: what is printed fits together, and factors have the closed form."""
    a, b, c, *angles = STANDARD_CELL
    cos = np.cos(np.radians(angles))
    metric = np.array([a, b, c]) * np.array([a, b, c])[:, None]
    metric *= np.array([[1, cos[2], cos[1]], [cos[2], 1, cos[0]], [cos[1], cos[0], 1]])
    reciprocal = np.linalg.inv(np.linalg.cholesky(metric)).T  # a*, b*, c*
    numbers = np.array([line.split() for line in STANDARD_REFLECTIONS.splitlines()], float)
    rows = unit(reciprocal)
    source, exits = (np.linalg.solve(rows, numbers[:, i::2].T).T for i in (3, 4))
    np.testing.assert_allclose(np.linalg.norm([source, exits], axis=2), 1, atol=2e-5)
    # Laue's equations; they are five digits
    np.testing.assert_allclose((source + exits) / 1.5418, numbers[:, :3] @ reciprocal, atol=2e-5)

    faces = np.array(STANDARD_FACES)
    solid = ConvexSolid(faces[:, :3] @ reciprocal, 1e3 * faces[:, 3])
    assert len(solid.corners) == 6
    n = len(numbers)  # each is a sweep of its own
    directions = Directions(unit(source), unit(exits), np.arange(n), np.tile([1.0, 0, 0], (n, 1)))
    expected = [
        analytical_transmission(solid.normals, solid.distances_um, 1e-3, s, e)
        for s, e in zip(directions.to_source, directions.exit, strict=True)
    ]
    assert min(expected) < 0.17
    found = absorption_factors_of_solid(solid, 1e-3, directions, Tracing(1e-3))
    np.testing.assert_allclose(found.transmission, expected, rtol=3e-3)
    assert rms(found.transmission / expected - 1) < 1.5 * found.accuracy.rms_error


def test_a_table_of_a_crystal_with_faces():
    solid, mu, tolerance = CASES["octahedron"]
    directions = scan(400, seed=5)
    expected = closed_form("octahedron", directions[::50])
    tracing = Tracing(3 * tolerance, method="table")
    found = absorption_factors_of_solid(solid, mu, directions, tracing)
    assert found.accuracy.reached
    assert rms(found.transmission[::50] / expected - 1) < 2 * found.accuracy.rms_error


def test_a_plate_that_no_table_follows(caplog):
    """A plate seen edge-on has a kink: auto takes the reflections' own rays, and a table says so."""
    solid, mu, _ = CASES["plate 200 x 200 x 5"]
    directions = scan(800, seed=5)
    found = absorption_factors_of_solid(solid, mu, directions, Tracing(3e-3))
    assert (found.accuracy.method, found.accuracy.reached) == ("direct", True)
    expected = closed_form("plate 200 x 200 x 5", directions[::100])
    assert rms(found.transmission[::100] / expected - 1) < 1.5 * found.accuracy.rms_error
    with caplog.at_level(logging.WARNING, logger="dials.anacor_dials.absorption.factors"):
        absorption_factors_of_solid(solid, mu, directions, Tracing(3e-3, method="table"))
    assert "Use absorption.method=direct" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edges", "mu"),
    [((100.0, 100.0, 2.5), 0.02), ((4.0, 4.0, 60.0), 1.25)],
    ids=["plate", "needle"],
)
def test_plates_and_needles_hold_the_usual_tolerance(edges, mu):
    """200 x 200 x 5 um, and a needle of mu R = 5, at 0.1 %."""
    solid = box(*edges)
    found = absorption_factors_of_solid(solid, mu, scan(3000))
    assert found.accuracy.reached


@pytest.mark.parametrize("mu_r", [0.5, 2.0])
def test_a_sphere_of_many_faces(mu_r):
    """300 faces at even distances; what International Tables C 6.3.3.3 tabulates is the sphere's A."""
    solid = ConvexSolid(even_directions(300), np.full(300, 10.0))
    radius = (3 * solid.volume_um3 / (4 * np.pi)) ** (1 / 3)  # of the sphere of the same volume
    theta = np.array([0.0, 30.0, 60.0, 90.0])
    source = np.array([0.0, 0.6, 0.8])
    exits = [rotation_about((1.0, 0, 0), 2 * t) @ -source for t in theta]
    directions = Directions.of_one_sweep(np.tile(source, (4, 1)), exits)
    found = absorption_factors_of_solid(solid, mu_r / radius, directions, Tracing(3e-3))
    x = 2 * mu_r  # in closed form at theta = 0: chords l are distributed as l^2
    forward = 3 / (8 * mu_r**3) * (2 - np.exp(-x) * (x * x + 2 * x + 2))
    r3, u, turn = qmc.Sobol(3, seed=1).random(2**15).T
    sine = np.sqrt(1 - (2 * u - 1) ** 2)
    around = np.column_stack(
        [sine * np.cos(2 * np.pi * turn), sine * np.sin(2 * np.pi * turn), 2 * u - 1]
    )
    points = np.cbrt(r3)[:, None] * around  # of a sphere of radius 1
    expected = []
    for exit_ in exits:
        paths = np.zeros(len(points))
        for direction in (source, exit_):
            along = points @ direction
            paths += np.sqrt(along**2 + 1 - np.sum(points**2, axis=1)) - along
        expected.append(np.exp(-mu_r * paths).mean())
    assert expected[0] == pytest.approx(forward, rel=1e-3)
    np.testing.assert_allclose(found.transmission, expected, rtol=0.01)


def test_voxels_and_planes_agree():
    """A box along the axes is the same solid in voxels: the two programs of rays judge each other."""
    values = np.zeros((44, 36, 28), np.uint8)
    values[2:42, 3:33, 4:24] = 1
    labels = LabelVolume(values, 0.5, names=("background", "crystal"))
    solid = box(10.0, 7.5, 5.0, np.eye(3))
    directions = scan(30, seed=8)
    tracing = Tracing(method="exact", tolerance=5e-4, device="cpu")
    voxels = absorption_factors(labels, [0.0, 0.06], directions, tracing)
    planes = absorption_factors_of_solid(solid, 0.06, directions, tracing)
    assert rms(planes.transmission / voxels.transmission - 1) < 1e-3
    # mean paths, incident and exit together; they are good to 1 to 2 %
    paths = planes.mean_path_um[:, 1] / voxels.mean_path_um[:, 1] - 1
    assert rms(paths) < 0.03
    assert not planes.mean_path_um[:, 0].any()


def test_reciprocity_and_no_absorption():
    solid = ConvexSolid(DIAGONALS @ TURN.T, [15.0, 14, 16, 13, 15, 14, 15, 16])
    one_way = Directions.of_one_sweep([[0, 0.6, 0.8]], [[0.8, 0, -0.6]])
    other_way = Directions.of_one_sweep(one_way.exit, one_way.to_source)
    a, b = (
        absorption_factors_of_solid(solid, 0.05, d).transmission[0] for d in (one_way, other_way)
    )
    assert a == pytest.approx(b, rel=2e-3)
    assert absorption_factors_of_solid(solid, 0.0, one_way).transmission[0] == 1.0
    with pytest.raises(ValueError, match="mu of the crystal is nan"):
        absorption_factors_of_solid(solid, np.nan, one_way)


def test_path_lengths_from_the_middle_of_a_box():
    body = SolidBody(box(10.0, 20.0, 5.0, np.eye(3)), 0.1)
    depths, lengths = body.path_lengths(np.zeros((1, 3)), np.array([[1.0, 0, 0], [0, 0.6, 0.8]]))
    np.testing.assert_allclose(lengths[:, 0], [[0, 10.0], [0, 5 / 0.8]])
    np.testing.assert_allclose(depths[:, 0], [1.0, 0.625])
