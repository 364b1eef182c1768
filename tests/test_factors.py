"""Absorption factors against closed forms and quadrature: spheres, cylinders, ellipsoids, slabs, shells.

International Tables for Crystallography C (2006), Tables 6.3.3.2 (cylinders) and 6.3.3.3 (spheres)
print A* = 1/A to three or four figures. What they tabulate is computed here from its definition, so that
the tables' rounding does not limit the comparison.
"""

from __future__ import annotations

import logging
import tracemalloc

import numba
import numpy as np
import pytest
from scipy import integrate
from scipy.spatial.transform import Rotation
from scipy.stats import qmc

from anacor_dials.absorption import computation
from anacor_dials.absorption.attenuating_body import VoxelBody
from anacor_dials.absorption.attenuating_volume import prepare_volume
from anacor_dials.absorption.beam import BeamProfile
from anacor_dials.absorption.computation import Computation
from anacor_dials.absorption.crystal_points import CrystalPoints
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.engines import select_engine
from anacor_dials.absorption.factors import absorption_factors
from anacor_dials.absorption.node_sums import ROWS_OF_A_TILE, sums_of_products
from anacor_dials.absorption.ray_tracing import exact_transmission, use_threads
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.sample.frames import rotation_about, source_directions, unit
from anacor_dials.sample.volumes import LabelVolume

LIMIT = 0.002  # what spheres and cylinders must be good to
TWO_THETA = np.array([0.0, 30, 60, 90, 120, 150])
NAMES = ("background", "liquor", "crystal")

# ---- oracles ----------------------------------------------------------------------------------------


def sphere_forward(mu_r):
    """A of a sphere at 2 theta = 0, in closed form: chords l are distributed as l^2 for 0 < l < 2R."""
    x = 2 * mu_r
    return 3 / (8 * mu_r**3) * (2 - np.exp(-x) * (x * x + 2 * x + 2))


def length_to_sphere(places, direction, radius):
    """From places (..., 3) within a sphere about the origin to its surface, along a direction (3,)."""
    along = places @ direction
    return -along + np.sqrt(along**2 + radius**2 - np.sum(places**2, axis=-1))


def ball_nodes(n=40):
    """Places (m, 3) in the unit ball and weights (m,) of Gauss' quadrature; the weights' sum is one."""
    t, w = np.polynomial.legendre.leggauss(n)
    u = (t + 1) / 2
    r = 1 - (1 - u) ** 2  # dense below the surface, where path lengths have an infinite slope
    w_r = w / 2 * 2 * (1 - u) * r**2
    psi = np.arange(2 * n) * np.pi / n
    r, c, psi = (a.ravel() for a in np.meshgrid(r, t, psi, indexing="ij"))
    s = np.sqrt(1 - c * c)
    places = r[:, None] * np.column_stack([s * np.cos(psi), s * np.sin(psi), c])
    weights = (w_r[:, None, None] * w[None, :, None] * np.ones(2 * n)).ravel()
    return places, weights / weights.sum()


BALL = ball_nodes()


def ellipsoid_oracle(semi_axes, mu, s, e):
    """A of an ellipsoid: the affine map to the unit ball stretches each direction by one factor."""
    places, weights = BALL
    tau = np.zeros(len(weights))
    for direction in (s, e):
        mapped = direction / np.asarray(semi_axes)
        tau += mu * length_to_sphere(places, unit(mapped), 1.0) / np.linalg.norm(mapped)
    return weights @ np.exp(-tau)


def shell_oracle(r_crystal, r_shell, mu_crystal, mu_shell, s, e):
    """A of a spherical crystal in a concentric shell of another material."""
    places, weights = BALL[0] * r_crystal, BALL[1]
    tau = np.zeros(len(weights))
    for direction in (s, e):
        inner = length_to_sphere(places, direction, r_crystal)
        outer = length_to_sphere(places, direction, r_shell)
        tau += mu_crystal * inner + mu_shell * (outer - inner)
    return weights @ np.exp(-tau)


def cylinder_oracle(mu_r, two_theta_deg):
    """A of a long cylinder, both rays across its axis: quadrature over its disc."""
    exit_direction = np.array(
        [np.cos(np.radians(two_theta_deg)), np.sin(np.radians(two_theta_deg))]
    )

    def attenuated(psi, r):
        place = r * np.array([np.cos(psi), np.sin(psi)])
        tau = 0.0
        for direction in (np.array([-1.0, 0]), exit_direction):
            along = place @ direction
            tau += -along + np.sqrt(along**2 + 1 - r * r)
        return r * np.exp(-mu_r * tau)

    return integrate.dblquad(attenuated, 0, 1, 0, 2 * np.pi, epsrel=1e-5)[0] / np.pi


def mean_exp(mu, path):
    """Mean of exp(-mu l) over paths l from path[0] to path[1]."""
    a, b = path
    return (np.exp(-mu * a) - np.exp(-mu * b)) / (mu * (b - a))


# ---- samples and directions -----------------------------------------------------------------------


def ellipsoid(semi_axes, voxel_size=1.0, shift=(0.31, -0.22, 0.13), margin=2, rotation=None):
    """An ellipsoid of crystal; voxels whose middle is inside. shift: of its middle, voxels."""
    size = np.broadcast_to(np.asarray(voxel_size, dtype=float), 3)
    semi_axes = np.asarray(semi_axes, dtype=float)
    reach = semi_axes if rotation is None else np.full(3, semi_axes.max())
    shape = 2 * np.ceil(reach / size).astype(int) + 2 * margin + 1
    middle = (shape - 1) / 2 + shift
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    place = (grid - middle) * size
    if rotation is not None:
        place = place @ rotation  # into the ellipsoid's own axes: R^T r
    inside = np.sum((place / semi_axes) ** 2, axis=-1) <= 1
    return LabelVolume(inside.astype(np.uint8) * 2, size, middle, NAMES)


def at_two_theta(two_theta_deg, to_source=(0.0, 0.6, 0.8)):
    """Reflections that leave at 2 theta from the beam, one each, about the tomo frame's X."""
    s = unit(to_source)
    exits = [rotation_about(X, angle) @ -s for angle in np.atleast_1d(two_theta_deg)]
    return Directions.of_one_sweep(np.tile(s, (len(exits), 1)), exits)


def scan(n, seed=0, span_deg=360.0):
    """n reflections of a scan about X, leaving anywhere."""
    rng = np.random.default_rng(seed)
    exits = unit(rng.standard_normal((n, 3)))
    return Directions.of_one_sweep(source_directions(rng.uniform(0, span_deg, n)), exits)


X = np.array([1.0, 0, 0])
PLATE = ellipsoid((16, 9, 22), (1.0, 0.8, 1.25))
MU = np.array([0.0, 0.03, 0.05])


def exact_answer(labels, mu, directions, n=200_000, beam=None):
    """A (n,) by exact rays from very many points."""
    points = CrystalPoints(labels).draw(n, np.random.default_rng(99)).voxels
    weights = None
    if beam is not None:
        weights = beam.weights(labels.position_um(points), directions.to_source, X)
    volume = prepare_volume(labels, mu)
    return exact_transmission(volume, points, directions.to_source, directions.exit, weights)[0]


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


# ---- bodies with a known answer ---------------------------------------------------------------------


def test_the_oracles_agree_with_each_other():
    s, e = unit([0, 0.6, 0.8]), unit([0.3, -0.4, 0.5])
    for mu_r in (0.5, 1.0, 1.5):
        assert ellipsoid_oracle((1, 1, 1), mu_r, s, -s) == pytest.approx(
            sphere_forward(mu_r), rel=2e-5
        )
    assert shell_oracle(1, 2, 0.7, 0.7, s, e) != pytest.approx(
        ellipsoid_oracle((2, 2, 2), 0.7, s, e), rel=0.01
    )
    assert shell_oracle(1, 2, 0.7, 0.0, s, e) == pytest.approx(
        ellipsoid_oracle((1, 1, 1), 0.7, s, e)
    )
    # a very flat ellipsoid seen edge-on along its longest axis is a long chord
    assert ellipsoid_oracle((4, 1, 1), 0.1, X, -X) == pytest.approx(sphere_forward(0.4), rel=1e-5)


# The staircase of voxels itself, not the rays, sets the least radius: back-scattering from a strong
# absorber happens at the surface.
@pytest.mark.parametrize(("mu_r", "radius"), [(0.5, 30), (1.0, 45), (1.5, 60)])
def test_spheres_of_the_international_tables(device, mu_r, radius):
    directions = at_two_theta(TWO_THETA)
    found = absorption_factors(
        ellipsoid([radius] * 3),
        [0, 0, mu_r / radius],
        directions,
        Tracing(tolerance=5e-4, method="exact", device=device),
    )
    expected = [
        ellipsoid_oracle((1, 1, 1), mu_r, s, e)
        for s, e in zip(directions.to_source, directions.exit, strict=True)
    ]
    expected[0] = sphere_forward(mu_r)
    np.testing.assert_allclose(found.transmission, expected, rtol=LIMIT)


@pytest.mark.parametrize(("mu_r", "radius"), [(0.5, 30), (1.0, 45), (1.5, 60)])
def test_cylinders_of_the_international_tables(device, mu_r, radius):
    # the rays stay in their layer; each layer lies differently on the grid, so that the staircase of
    # voxels, which has no third dimension to average over, does so from layer to layer
    y, z = np.indices((2 * radius + 5,) * 2) - (radius + 2)
    shifts = np.random.default_rng(2).uniform(-0.5, 0.5, (12, 2))
    discs = [(y - dy) ** 2 + (z - dz) ** 2 <= radius**2 for dy, dz in shifts]
    cylinder = LabelVolume(2 * np.array(discs, dtype=np.uint8), 1.0, names=NAMES)
    found = absorption_factors(
        cylinder,
        [0, 0, mu_r / radius],
        at_two_theta(TWO_THETA),
        Tracing(tolerance=5e-4, method="exact", device=device),
    )
    expected = [cylinder_oracle(mu_r, angle) for angle in TWO_THETA]
    np.testing.assert_allclose(found.transmission, expected, rtol=LIMIT)


@pytest.mark.parametrize("method", ["exact", "direct", "table"])
def test_an_ellipsoid_of_voxels_that_are_no_cubes(device, method):
    semi_axes = np.array([24.0, 14.0, 34.0])
    labels = ellipsoid(semi_axes, (0.75, 0.5, 1.0))
    directions = scan(24)
    found = absorption_factors(
        labels, [0, 0, 0.04], directions, Tracing(method=method, tolerance=2e-3, device=device)
    )
    expected = [
        ellipsoid_oracle(semi_axes, 0.04, s, e)
        for s, e in zip(directions.to_source, directions.exit, strict=True)
    ]
    assert rms(found.transmission / expected - 1) < 0.004
    np.testing.assert_allclose(found.transmission, expected, rtol=0.008)


def test_an_ellipsoid_turned_together_with_the_rays(device):
    # voxelised anew at the other orientation
    semi_axes, turn = np.array([25.0, 15.0, 20.0]), rotation_about((1, 2, -0.5), 37)
    directions = scan(16)
    axis = turn @ X
    turned = Directions.of_one_sweep(directions.to_source @ turn.T, directions.exit @ turn.T, axis)
    one, two = (
        absorption_factors(labels, MU, d, Tracing(tolerance=5e-4, method="exact", device=device))
        for labels, d in (
            (ellipsoid(semi_axes), directions),
            (ellipsoid(semi_axes, rotation=turn), turned),
        )
    )
    assert rms(two.transmission / one.transmission - 1) < 0.002


def test_a_sphere_with_a_shell(device):
    inner = ellipsoid([25] * 3, margin=12)
    outer = ellipsoid([35] * 3)
    assert inner.shape == outer.shape
    labels = LabelVolume(
        np.where(inner.values > 0, 2, np.where(outer.values > 0, 1, 0)).astype(np.uint8),
        1.0,
        names=NAMES,
    )
    directions = at_two_theta(TWO_THETA)
    for mu_shell, mu_crystal in ((0.03, 0.02), (0.01, 0.04)):
        found = absorption_factors(
            labels,
            [0, mu_shell, mu_crystal],
            directions,
            Tracing(tolerance=5e-4, method="exact", device=device),
        )
        expected = [
            shell_oracle(25, 35, mu_crystal, mu_shell, s, e)
            for s, e in zip(directions.to_source, directions.exit, strict=True)
        ]
        np.testing.assert_allclose(found.transmission, expected, rtol=0.003)


def test_the_error_falls_with_the_voxel_size():
    directions = at_two_theta(TWO_THETA)
    expected = np.array(
        [
            ellipsoid_oracle((1, 1, 1), 1.0, s, e)
            for s, e in zip(directions.to_source, directions.exit, strict=True)
        ]
    )
    errors = []
    for radius in (5, 10, 20, 40):
        shifts = np.random.default_rng(1).uniform(-0.5, 0.5, (4, 3))
        found = [
            exact_answer(ellipsoid([radius] * 3, shift=s), [0, 0, 1 / radius], directions, 40_000)
            for s in shifts
        ]
        errors.append(rms(np.array(found) / expected - 1))
    # at least with the voxel size itself
    assert np.all(np.array(errors[:-1]) / errors[1:] > 1.6), errors


def block(shape, crystal, liquor=None):
    """Blocks of crystal, and one of liquor, in a volume of 1 um voxels; slices along X, Y, Z."""
    values = np.zeros(shape, dtype=np.uint8)
    if liquor is not None:
        values[liquor] = 1
    values[crystal] = 2
    return LabelVolume(values, 1.0, names=NAMES)


def one(to_source, exit_direction):
    return Directions.of_one_sweep([to_source], [exit_direction])


@pytest.mark.parametrize(
    ("to_source", "exit_direction", "paths"),
    [
        # through a slab 20 um thick, into it from the front and out at the back: exp(-mu t)
        ((0, 0, 1), (0, 0, -1), None),
        # reflected: in and out by the same face (IT C Table 6.3.3.1)
        ((0, 0, 1), (0, 0, 1), [(0, 40)]),
        # in by one face, out by another
        ((0, 0, 1), (1, 0, 0), [(0, 20), (0, 12)]),
        ((0, -1, 0), (-1, 0, 0), [(0, 30), (0, 12)]),
    ],
)
def test_a_block_by_its_faces(device, to_source, exit_direction, paths):
    labels = block((16, 34, 24), (slice(2, 14), slice(2, 32), slice(2, 22)))
    mu = 0.05
    expected = np.exp(-mu * 20) if paths is None else np.prod([mean_exp(mu, p) for p in paths])
    for method in ("exact", "direct"):
        found = absorption_factors(
            labels,
            [0, 0, mu],
            one(to_source, exit_direction),
            Tracing(method=method, tolerance=3e-4, device=device),
        )
        assert found.transmission[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("theta_deg", [20, 35, 60])
def test_an_extended_slab_at_a_slant(theta_deg):
    # IT C Table 6.3.3.1: a crystal in the middle of a wide slab of the same absorption, 12 um thick
    labels = block((12, 120, 120), (slice(None), slice(50, 70), slice(50, 70)), (slice(None),) * 3)
    mu, t, theta = 0.04, 12.0, np.radians(theta_deg)
    in_plane, normal = np.array([0, 0, 1.0]), X
    # reflected from planes parallel to the face: A = (1 - exp(-2 mu t / sin theta)) sin / (2 mu t)
    s = np.sin(theta) * normal - np.cos(theta) * in_plane
    e = np.sin(theta) * normal + np.cos(theta) * in_plane
    x = 2 * mu * t / np.sin(theta)
    # transmitted by planes across the face: A = exp(-mu t / cos theta)
    s2 = np.cos(theta) * normal - np.sin(theta) * in_plane
    e2 = -np.cos(theta) * normal - np.sin(theta) * in_plane
    directions = Directions(
        np.array([s, s2]), np.array([e, e2]), np.array([0, 1]), np.array([normal, normal])
    )
    found = absorption_factors(
        labels, [0, mu, mu], directions, Tracing(tolerance=3e-4, method="exact")
    )
    expected = [(1 - np.exp(-x)) / x, np.exp(-mu * t / np.cos(theta))]
    np.testing.assert_allclose(found.transmission, expected, rtol=1e-3)


def test_a_crystal_in_the_corner_of_the_volume(device):
    for shape in ((40, 40, 40), (12, 30, 20)):  # the second one is crystal to all its edges
        labels = block(shape, (slice(0, 12), slice(0, 30), slice(0, 20)))
        for direction, path in (((1, 0, 0), 12), ((0, -1, 0), 30), ((0, 0, -1), 20)):
            for method in ("exact", "direct"):
                found = absorption_factors(
                    labels,
                    [0, 0, 0.05],
                    one(direction, direction),
                    Tracing(method=method, tolerance=3e-4, device=device),
                )
                expected = mean_exp(0.05, (0, 2 * path))
                assert found.transmission[0] == pytest.approx(expected, rel=1e-3)


def test_rays_that_enter_another_part_of_the_sample_again(device):
    # crystal 10 um, a gap of 9, liquor 7, a gap of 5, crystal 10, all along X
    labels = block((49, 12, 12), slice(2, 12), slice(21, 28))
    labels.values[33:43] = 2
    mu_liquor, mu = 0.06, 0.04
    out_left = np.exp(-mu_liquor * 7 - mu * 10) * mean_exp(mu, (0, 10))
    out_right = mean_exp(mu, (0, 10))
    for method in ("exact", "direct"):
        found = absorption_factors(
            labels,
            [0, mu_liquor, mu],
            one((0, 0, 1), (1, 0, 0)),
            Tracing(method=method, tolerance=3e-4, device=device),
        )
        expected = mean_exp(mu, (0, 12)) * (out_left + out_right) / 2
        assert found.transmission[0] == pytest.approx(expected, rel=1e-3)
    # both rays along the row: from either crystal one of them crosses everything
    found = absorption_factors(labels, [0, mu_liquor, mu], one((-1, 0, 0), (1, 0, 0)))
    expected = np.exp(-20 * mu - 7 * mu_liquor)
    assert found.transmission[0] == pytest.approx(expected, rel=1e-3)
    np.testing.assert_allclose(found.mean_path_um[0], [0, 7, 20], rtol=1e-9)


# ---- the methods agree ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plate_scan():
    """200 reflections of a full turn and their A by exact rays from 100 000 points."""
    directions = scan(200)
    return directions, exact_answer(PLATE, MU, directions, 100_000)


@pytest.mark.parametrize(
    ("method", "tolerance"), [("table", 1e-3), ("direct", 2e-3), ("exact", 2e-3)]
)
def test_methods_agree_and_keep_the_tolerance(device, plate_scan, method, tolerance):
    directions, expected = plate_scan
    found = absorption_factors(
        PLATE, MU, directions, Tracing(method=method, tolerance=tolerance, device=device)
    )
    assert found.accuracy.method == method
    assert found.accuracy.reached
    assert found.accuracy.device == device
    # one draw of points has an error in common to all reflections
    assert rms(found.transmission / expected - 1) < 2 * tolerance
    assert np.all((found.transmission > 0) & (found.transmission <= 1))
    assert (found.table is not None) == (method == "table")


@pytest.mark.parametrize("beam", [None, BeamProfile("gaussian", (40.0, 30.0))])
def test_exact_rays_from_a_part_of_the_points_stand_for_all(plate_scan, monkeypatch, beam):
    directions = plate_scan[0][:24]
    body = VoxelBody(PLATE, MU, Tracing(device="cpu"))
    run = Computation(body, directions, Tracing(device="cpu", beam=beam))
    points = run.draw(16_000)
    monkeypatch.setattr(computation, "MOST_EXACT_POINTS", len(points))
    of_all = run.reference(points, directions)
    monkeypatch.setattr(computation, "MOST_EXACT_POINTS", len(points) // 4)
    of_part = run.reference(points, directions)
    alone = run._exact(points[computation._interleaved(len(points), 4)[0]], directions)[0]
    assert rms(alone / of_all - 1) > 1e-3  # what a part says without the march of the others
    assert rms(of_part / of_all - 1) < 6e-4


def test_few_reflections_are_traced_themselves_and_many_from_a_table(plate_scan):
    directions, expected = plate_scan
    few = absorption_factors(PLATE, MU, directions[:20], Tracing(tolerance=5e-3))
    assert few.accuracy.method == "direct"
    assert few.accuracy.exit_step_deg is None
    many = absorption_factors(PLATE, MU, scan(20_000), Tracing(tolerance=5e-3), progress=True)
    assert many.accuracy.method == "table"
    assert "deg; rms error" in str(many.accuracy)
    again = np.exp(many.table(directions.to_source, directions.exit, directions.sweep))
    np.testing.assert_allclose(again, expected, rtol=0.03)
    assert rms(again / expected - 1) < 1e-2


def test_a_plate_of_few_voxels_is_traced_exactly():
    """Marched rays miss 0.1 % in a turned plate 1.5 voxels thick; exact ones are within the quoted error."""
    turn = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    grid = np.indices((141, 141, 141)).reshape(3, -1) - 70.0
    inside = np.all(np.abs(turn @ grid) <= np.reshape([45.0, 45.0, 0.75], (3, 1)), axis=0)
    values = np.where(inside, 2, 0).astype(np.uint8).reshape(141, 141, 141)
    labels = LabelVolume(values, np.ones(3), None, NAMES)
    directions = scan(200)
    found = absorption_factors(labels, [0, 0, 0.03], directions, Tracing(device="cpu"))
    assert found.accuracy.method == "exact"
    assert found.accuracy.reached
    expected = exact_answer(labels, [0, 0, 0.03], directions, 60_000)
    assert rms(found.transmission / expected - 1) < 1.5 * found.accuracy.rms_error


def test_several_sweeps_about_different_axes(plate_scan):
    directions, expected = plate_scan
    axes = np.array([X, unit([0.2, 1.0, 0.1]), unit([0.5, 0.5, -0.7])])
    # the second sweep has no reflections; the third one is about another axis, its beam across it
    start = unit(np.cross(axes[2], X))
    angles = np.random.default_rng(3).uniform(0, 120, 100)
    to_source = rotation_about(axes[2], angles) @ start
    both = Directions(
        np.concatenate([directions.to_source[:100], to_source]),
        np.concatenate([directions.exit[:100], directions.exit[:100]]),
        np.repeat([0, 2], 100),
        axes,
    )
    found = absorption_factors(PLATE, MU, both, Tracing(method="table", tolerance=4e-3))
    np.testing.assert_allclose(found.transmission[:100], expected[:100], rtol=0.02)
    other = exact_answer(PLATE, MU, both[100:], 20_000)
    np.testing.assert_allclose(found.transmission[100:], other, rtol=0.02)
    assert rms(found.transmission[100:] / other - 1) < 6e-3


def test_reciprocity_of_the_whole_computation(plate_scan):
    # both rays in the plane across the axis, so that their exchange is a scan as well
    rng = np.random.default_rng(5)
    one_way = Directions.of_one_sweep(
        source_directions(rng.uniform(0, 360, 300)), source_directions(rng.uniform(0, 360, 300))
    )
    other_way = Directions.of_one_sweep(one_way.exit, one_way.to_source)
    a, b = (
        absorption_factors(PLATE, MU, d, Tracing(method="table", tolerance=3e-3)).transmission
        for d in (one_way, other_way)
    )
    assert rms(a / b - 1) < 6e-3


@pytest.mark.parametrize("method", ["table", "direct", "exact"])
def test_without_absorption_the_transmission_is_one(device, method):
    found = absorption_factors(PLATE, np.zeros(3), scan(200), Tracing(method=method, device=device))
    assert np.all(found.transmission == 1.0)
    assert found.accuracy.reached
    assert np.all(found.mean_path_um[:, 2] > 5)  # there is a path, of no consequence


def test_two_labels_of_equal_mu_are_one():
    values = PLATE.values.copy()
    half = values[: PLATE.shape[0] // 2]
    half[half == 2] = 1
    halves = LabelVolume(values, PLATE.voxel_size_um, PLATE.centre, NAMES)
    merged = LabelVolume(
        np.where(values == 2, 2, np.where(values == 1, 3, 0)).astype(np.uint8),
        PLATE.voxel_size_um,
        PLATE.centre,
        (*NAMES, "copy"),
    )
    directions = scan(50)
    a = absorption_factors(
        halves, [0, 0.05, 0.05], directions, Tracing(method="exact", tolerance=5e-3)
    )
    b = absorption_factors(
        merged, [0, 9.0, 0.05, 0.05], directions, Tracing(method="exact", tolerance=5e-3)
    )
    np.testing.assert_allclose(a.transmission, b.transmission, rtol=1e-12)


def test_the_reference_benchmark(shared_data, device):
    path = shared_data / "absorption" / "benchmark.npz"
    if not path.is_file():
        pytest.skip(f"There is no reference benchmark {path}.")
    with np.load(path) as data:
        labels = LabelVolume(
            data["labels"], data["voxel_size_um"], names=tuple(map(str, data["label_names"]))
        )
        directions = Directions.of_one_sweep(data["to_source"], data["exit"])
        index, mu = data["reference_index"], data["mu_per_um"]
        reference = data["reference_transmission"]
    found = absorption_factors(
        labels, mu, directions[index], Tracing(tolerance=2e-3, method="direct", device=device)
    )
    assert rms(found.transmission / reference - 1) < 0.002


# ---- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["exact", "table"])
def test_standard_errors_are_the_spread_of_results(plate_scan, method):
    directions, expected = plate_scan
    directions, expected = (
        (directions, expected) if method == "table" else (directions[:20], expected[:20])
    )
    n_runs = 8
    runs = [
        absorption_factors(PLATE, MU, directions, Tracing(method=method, tolerance=6e-3, seed=seed))
        for seed in range(n_runs)
    ]
    off = np.array([run.transmission for run in runs]) - expected
    reported = np.array([run.standard_error for run in runs])
    assert np.all(reported > 0)
    ratio = rms(off / reported)
    assert 1 / 1.5 < ratio < 1.5
    # and of each reflection, within the chance of eight runs
    each = np.sqrt(np.mean((off / reported) ** 2, axis=0))
    assert np.percentile(each, 95) < 2.2


def test_the_seed_decides(plate_scan):
    directions, _ = plate_scan
    a, b, c = (
        absorption_factors(PLATE, MU, directions[:10], tracing).transmission
        for tracing in (Tracing(1e-2), Tracing(1e-2, seed=0), Tracing(1e-2, seed=1))
    )
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize("beam", [None, BeamProfile("gaussian", (60.0, 50.0))])
def test_the_number_of_threads_changes_no_digit(beam):
    """Sums of a large table, which BLAS would divide among its threads."""
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("numba has one thread only")
    cube = np.zeros((24, 24, 24), dtype=np.uint8)
    cube[2:-2, 2:-2, 2:-2] = 3
    one, two = (
        absorption_factors(
            LabelVolume(cube, 4.0),
            [0, 0, 0, 0.02],
            scan(3000),
            Tracing(method="table", beam=beam, nproc=n, device="cpu"),
        )
        for n in (1, 2)
    )
    assert one.accuracy.method == "table"
    np.testing.assert_array_equal(one.transmission, two.transmission)
    np.testing.assert_array_equal(one.standard_error, two.standard_error)
    np.testing.assert_array_equal(one.mean_path_um, two.mean_path_um)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("k", [5, ROWS_OF_A_TILE, 2 * ROWS_OF_A_TILE + 3])
def test_sums_of_products(n_threads, k):
    rng = np.random.default_rng(0)
    a, b = rng.random((7, 40), dtype=np.float32), rng.random((k, 80), dtype=np.float32)[:, ::2]
    before = use_threads(None)
    use_threads(n_threads)
    try:
        found = sums_of_products(a, b)
    finally:
        use_threads(before)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, a.astype(float) @ b.astype(float).T, rtol=1e-5)


def test_a_tolerance_out_of_reach_is_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(computation, "MOST_POINTS", 3000)
    with caplog.at_level(logging.WARNING, logger="dials.anacor_dials.absorption.factors"):
        found = absorption_factors(PLATE, MU, scan(30), Tracing(tolerance=2e-4, method="exact"))
    assert not found.accuracy.reached
    assert found.accuracy.rms_error > 2e-4
    assert "The tolerance of 0.020 % was not reached: the rms error is" in caplog.text


def test_the_memory_is_bounded(plate_scan, monkeypatch):
    # nothing but the memory limits how many rays are kept at once
    monkeypatch.setattr(computation, "LARGEST_CHUNK", 10**9)
    monkeypatch.setattr(computation, "TWO_LEVELS_FROM", 10**9)
    directions, _ = plate_scan
    tracemalloc.start()
    found = absorption_factors(
        PLATE,
        MU,
        directions[:50],
        Tracing(tolerance=1.1e-3, method="table", memory_gb=0.1, device="cpu"),
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rays = found.accuracy.n_points * found.accuracy.n_directions
    assert 10 * rays > 0.12e9  # with their squares and products they would not fit at once
    assert peak < 0.1e9


# ---- paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [30, 600])  # by their own rays, and from a table
def test_mean_paths_are_derivatives(n):
    inner = ellipsoid((14, 9, 12), margin=8)
    outer = ellipsoid((19, 14, 17), margin=3)
    labels = LabelVolume(
        np.where(inner.values > 0, 2, np.where(outer.values > 0, 1, 0)).astype(np.uint8),
        1.0,
        names=NAMES,
    )
    directions = scan(n)
    found = absorption_factors(labels, MU, directions, Tracing(tolerance=1e-2)).mean_path_um
    assert found.shape == (n, 3)
    assert np.all(found[:, 0] == 0)
    checked = directions[:30]
    for label in (1, 2):
        step = np.zeros(3)
        step[label] = 1e-4
        up, down = (exact_answer(labels, MU + sign * step, checked, 20_000) for sign in (1, -1))
        derivative = -(np.log(up) - np.log(down)) / 2e-4
        np.testing.assert_allclose(found[:30, label], derivative, rtol=0.06)
        assert rms(found[:30, label] / derivative - 1) < 0.025


# ---- partial illumination ---------------------------------------------------------------------------

# a block of crystal from -21 to 19 um along X, -20 to 16 along Y, -23 to 21 along Z
LIT = block((52, 46, 50), (slice(5, 45), slice(3, 39), slice(2, 46)))
LIT_MU = 0.05
TOPHAT = BeamProfile("tophat", (16.0, 10.0), (-4.0, 3.0))
# the directions to the source and of exit, the whole incident path, and along what the rest runs: the
# lit part's paths to the face
TOPHAT_CASES = [
    # source +Z: along the axis X from -12 to 4, across it Z x X = Y from -2 to 8
    ((0, 0, 1), (1, 0, 0), (0, 44), (19 - 4, 19 + 12)),
    ((0, 0, 1), (0, 1, 0), (0, 44), (16 - 8, 16 + 2)),
    ((0, 0, 1), (0, -1, 0), (0, 44), (20 - 2, 20 + 8)),
    # source +Y (a quarter turn later): across it Y x X = -Z, so Z from -8 to 2
    ((0, 1, 0), (0, 0, -1), (0, 36), (23 - 8, 23 + 2)),
    ((0, 1, 0), (-1, 0, 0), (0, 36), (21 - 12, 21 + 4)),
]


@pytest.mark.parametrize(("to_source", "exit_direction", "path_in", "path_out"), TOPHAT_CASES)
def test_a_rectangular_beam_on_a_block(device, to_source, exit_direction, path_in, path_out):
    expected = mean_exp(LIT_MU, path_in) * mean_exp(LIT_MU, path_out)
    for method in ("exact", "direct"):
        found = absorption_factors(
            LIT,
            [0, 0, LIT_MU],
            one(to_source, exit_direction),
            Tracing(beam=TOPHAT, method=method, tolerance=1e-3, device=device),
        )
        assert found.transmission[0] == pytest.approx(expected, rel=4e-3)
        assert found.accuracy.reached


def test_a_gaussian_beam_on_a_block(device):
    beam = BeamProfile("gaussian", (20.0, 30.0), (5.0, 0.0))

    def profile(x):
        return np.exp(-4 * np.log(2) * ((x - 5) / 20) ** 2)  # full width at half maximum 20

    lit = integrate.quad(profile, -21, 19)[0]
    out = integrate.quad(lambda x: profile(x) * np.exp(-LIT_MU * (19 - x)), -21, 19)[0] / lit
    found = absorption_factors(
        LIT,
        [0, 0, LIT_MU],
        one((0, 0, 1), (1, 0, 0)),
        Tracing(beam=beam, tolerance=5e-4, device=device),
    )
    assert found.transmission[0] == pytest.approx(mean_exp(LIT_MU, (0, 44)) * out, rel=2e-3)


def test_a_thin_beam_is_not_taken_for_one_that_misses():
    """So thin that of some thousand points of the crystal none may lie in it."""
    values = np.zeros((70, 70, 70), dtype=np.uint8)
    values[5:65, 5:65, 5:65] = 3
    cube = LabelVolume(values, 1.0)
    beam = BeamProfile("tophat", (0.5, 0.5))
    sources = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [0.0, -1.0, 0.0]])
    through = Directions.of_one_sweep(sources, -sources)
    found = absorption_factors(
        cube, [0.0, 0.0, 0.0, 0.02], through, Tracing(beam=beam, tolerance=1e-2, device="cpu")
    )
    # in and out along one line of 60 um, wherever on it a point lies
    np.testing.assert_allclose(found.transmission, np.exp(-0.02 * 60), rtol=2e-3)


@pytest.mark.parametrize("shape", ["tophat", "gaussian"])
def test_weights_are_those_of_a_sum_by_hand(shape):
    beam = BeamProfile(shape, (14.0, 9.0), (2.0, -1.5))
    axis = unit([1.0, 0.2, 0])
    rng = np.random.default_rng(6)
    positions = rng.uniform(-12, 12, (300, 3))
    sources = unit(rng.standard_normal((6, 3)))
    weights = beam.weights(positions, sources, axis)
    for source, row in zip(sources, weights, strict=True):
        along = unit(axis - source * (source @ axis))
        across = np.cross(source, along)
        for r, weight in zip(positions, row, strict=True):
            u, v = (r @ along - 2.0) / 14, (r @ across + 1.5) / 9
            if shape == "tophat":
                assert weight == (abs(u) <= 0.5 and abs(v) <= 0.5)
            else:
                assert weight == pytest.approx(2 ** (-4 * (u * u + v * v)), rel=1e-5)


def through_the_slit(turns, exits_lab, beam, axis_lab):
    """A (n,) of the block LIT, by an integration in the laboratory that knows no sweeps and no voxels.

    Source along Z of the laboratory. Points fill the beam evenly; those in the turned block count.
    """
    width = 1.0 if beam.shape == "tophat" else 3.0  # a Gaussian is followed down to 0.2 %
    low, high = np.array([-21.0, -20.0, -23.0]), np.array([19.0, 16.0, 21.0])
    z = np.array([0.0, 0.0, 1.0])
    along = np.array(axis_lab) - z * np.dot(axis_lab, z)
    along /= np.linalg.norm(along)
    across = np.cross(z, along)
    u, v, w = width * (qmc.Sobol(3, seed=3).random(2**15).T - 0.5)
    light = np.ones(len(u)) if beam.shape == "tophat" else 2.0 ** (-4 * (u**2 + v**2))
    lit = (
        np.outer(u * beam.size_um[0] + beam.offset_um[0], along)
        + np.outer(v * beam.size_um[1] + beam.offset_um[1], across)
        + np.outer(w * 110.0 / width, z)
    )
    result = []
    for turn, exit_lab in zip(turns, exits_lab, strict=True):
        points = turn.inv().apply(lit)
        inside = np.all((points > low) & (points < high), axis=1)
        points = points[inside]
        depth = np.zeros(len(points))
        for direction in turn.inv().apply([z, exit_lab]):
            ahead = np.abs(direction) > 1e-9
            faces = np.where(direction > 0, high, low)[ahead]
            depth += ((faces - points[:, ahead]) / direction[ahead]).min(axis=1)
        result.append(np.average(np.exp(-LIT_MU * depth), weights=light[inside]))
    return np.array(result)


@pytest.mark.parametrize(("method", "shape"), [("direct", "tophat"), ("table", "gaussian")])
def test_a_slit_is_fixed_in_the_laboratory(method, shape):
    """Two sweeps, about the slit's axis and about one that is tilted by 54.7 deg, and a still."""
    rng = np.random.default_rng(8)
    slit_axis = (1.0, 0.0, 0.0)
    slit = BeamProfile(shape, (30.0, 9.0), (-3.0, 1.0))
    tilted = np.array([np.cos(np.radians(54.7)), np.sin(np.radians(54.7)), 0.0])
    axes = np.array([slit_axis, tilted, (0.0, 1.0, 0.0)])
    sweep = np.repeat([0, 1, 2], [15, 40, 5])
    turns = [Rotation.from_rotvec(rng.uniform(0, 6.28) * axes[i] * (i < 2)) for i in sweep]
    exits = unit(rng.standard_normal((len(sweep), 3)))
    directions = Directions(
        np.array([t.inv().apply([0.0, 0.0, 1.0]) for t in turns]),
        np.array([t.inv().apply(e) for t, e in zip(turns, exits, strict=True)]),
        sweep,
        axes,
        np.array([t.inv().apply(slit_axis) for t in turns]),
    )
    found = absorption_factors(
        LIT,
        [0, 0, LIT_MU],
        directions,
        Tracing(beam=slit, method=method, tolerance=5e-3, device="cpu"),
    )
    expected = through_the_slit(turns, exits, slit, slit_axis)
    assert rms(found.transmission / expected - 1) < 8e-3


def test_a_crystal_that_turns_about_the_beam_has_no_table():
    """The slit lights another part of the crystal at each angle, though the source stays where it is."""
    turn = np.radians(np.arange(0, 360, 7.0))
    source = np.tile([1.0, 0.0, 0.0], (len(turn), 1))
    slit = np.column_stack([0 * turn, np.cos(turn), np.sin(turn)])
    exits = np.column_stack([0.5 + 0 * turn, 0.75**0.5 + 0 * turn, 0 * turn])
    directions = Directions(source, exits, np.zeros(len(turn), np.int64), np.array([X]), slit)
    beam = BeamProfile("gaussian", (40.0, 6.0))
    assert absorption_factors(
        PLATE, MU, directions, Tracing(beam=beam, tolerance=2e-2)
    ).accuracy.method == ("direct")
    with pytest.raises(ValueError, match=r"runs along the rotation axis.*method=direct"):
        absorption_factors(PLATE, MU, directions, Tracing(beam=beam, method="table"))


@pytest.mark.parametrize("shape", ["tophat", "gaussian"])
def test_the_table_of_a_partly_lit_crystal(device, shape):
    beam = BeamProfile(shape, (20.0, 16.0), (2.0, 1.0))
    directions = scan(100)
    found = absorption_factors(
        PLATE, MU, directions, Tracing(beam=beam, method="table", tolerance=4e-3, device=device)
    )
    expected = exact_answer(PLATE, MU, directions, 30_000, beam)
    assert found.accuracy.reached
    assert rms(found.transmission / expected - 1) < 6e-3
    # it matters: the whole crystal has other factors
    assert rms(exact_answer(PLATE, MU, directions, 10_000) / expected - 1) > 0.03


def test_a_table_at_the_edge_of_a_small_beam_is_given_up(caplog):
    """Forty reflections in a beam of 8 x 5 um: it costs few rays, and says that it is in vain."""
    beam = BeamProfile("tophat", (8.0, 5.0))
    directions = scan(40)
    with caplog.at_level("WARNING"):
        table, direct = (
            absorption_factors(
                PLATE, MU, directions, Tracing(beam=beam, method=method, tolerance=2e-3)
            )
            for method in ("table", "direct")
        )
    (message,) = (r.getMessage() for r in caplog.records)
    assert "A table of directions does not follow" in message
    assert "absorption.method=direct" in message
    rays = [f.accuracy.n_points * f.accuracy.n_directions for f in (table, direct)]
    assert rays[0] < 4 * rays[1]  # from all points even the first grid takes ten times as many
    assert not table.accuracy.reached
    # what it says of its own error is true
    expected = exact_answer(PLATE, MU, directions, 200_000, beam)
    assert rms(direct.transmission / expected - 1) < 6e-3
    assert rms(table.transmission / expected - 1) < 1.5 * table.accuracy.rms_error


def test_a_beam_that_bathes_the_crystal_changes_nothing(plate_scan):
    directions, expected = plate_scan
    beam = BeamProfile("tophat", (100.0, 100.0))
    found = absorption_factors(
        PLATE, MU, directions[:40], Tracing(beam=beam, method="exact", tolerance=2e-3)
    )
    assert rms(found.transmission / expected[:40] - 1) < 3e-3


@pytest.mark.parametrize("method", ["table", "direct", "exact"])
def test_a_beam_that_misses_the_crystal_is_refused(method):
    beam = BeamProfile("tophat", (10.0, 10.0), (500.0, 0.0))
    with pytest.raises(ValueError, match="beam misses the crystal at some angles"):
        absorption_factors(PLATE, MU, scan(300), Tracing(beam=beam, method=method))


def test_beams_that_are_none_are_refused():
    with pytest.raises(ValueError, match="beam profile is 'round'; it is tophat or gaussian"):
        BeamProfile("round", (1.0, 1.0))
    with pytest.raises(ValueError, match="beam size is .* um; give two lengths > 0"):
        BeamProfile("tophat", (1.0, 0.0))
    with pytest.raises(ValueError, match="axis of the beam is .*; give a direction"):
        BeamProfile("tophat", (10, 10), axis=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="beam offset is .* um; give two lengths"):
        BeamProfile("tophat", (1.0, 1.0), (np.nan, 0.0))


# ---- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"tolerance": 0.0}, r"tolerance is 0; relative errors from 1e-5 to 0\.1"),
        ({"tolerance": np.nan}, "relative errors from 1e-5"),
        ({"method": "guess"}, "method is 'guess'; it is one of auto, table, direct, exact"),
        ({"memory_gb": 0.01}, r"memory is 0\.01 GB; at least 0\.1 GB"),
        ({"nproc": 0}, "nproc is 0; it must be at least 1"),
        ({"device": "gpu"}, "The device 'gpu' is unknown; choose auto, cpu or cuda"),
        ({"check_reflections": 0}, "0 reflections are to be traced exactly; it must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        absorption_factors(PLATE, MU, scan(10), Tracing(**arguments))


def test_mu_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="for the materials background, liquor, crystal"):
        absorption_factors(PLATE, [0, 0.1], scan(10))


def test_a_volume_without_crystal_is_refused():
    empty = LabelVolume(np.ones((4, 4, 4), np.uint8), 1.0, names=NAMES)
    with pytest.raises(ValueError, match="No voxel of the volume is labelled 'crystal'"):
        absorption_factors(empty, MU, scan(10))


def test_no_reflections_are_refused():
    with pytest.raises(ValueError, match="There are no reflections"):
        absorption_factors(PLATE, MU, scan(10)[:0])


def test_directions_that_do_not_belong_together_are_refused():
    s = np.tile(X, (3, 1))
    sweep, axes = np.zeros(3, dtype=int), np.array([X])
    with pytest.raises(ValueError, match="do not belong together"):
        Directions(s, s[:2], sweep, axes)
    with pytest.raises(ValueError, match="directions of exit are not all unit vectors"):
        Directions(s, 1.01 * s, sweep, axes)
    with pytest.raises(ValueError, match="directions to the source are not all unit vectors"):
        Directions(s * [np.nan, 1, 1], s, sweep, axes)
    with pytest.raises(ValueError, match="belongs to sweep 1 of 1 sweeps"):
        Directions(s, s, sweep + 1, axes)
    with pytest.raises(ValueError, match="axes of the beam of shape"):
        Directions(s, s, sweep, axes, s[:2])


def test_directions_can_be_chosen():
    directions = scan(10)
    some = directions[np.array([3, 1])]
    assert len(some) == 2
    np.testing.assert_array_equal(some.exit, directions.exit[[3, 1]])


def test_device_auto_is_always_there():
    assert select_engine("auto").device in ("cpu", "cuda")
