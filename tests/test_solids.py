"""Solids as signed distances: volumes and slopes of shapes, how they are joined, and random samples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from anacor_dials.sample.frames import rotation_about
from anacor_dials.simulation.sample_families import BOX
from anacor_dials.simulation.solids import (
    Solid,
    crack,
    cylinder,
    ellipsoid,
    intersection,
    moved,
    on_grid,
    polyhedron,
    ring,
    sheet,
    thicker,
    union,
    wavy,
    without,
)

ORIGIN = np.zeros(3)
TURN = rotation_about((1.0, 2.0, -0.5), 37.0)
OCTAHEDRON = np.array(list(itertools.product((1, -1), repeat=3))) / np.sqrt(3)


def box(size):
    return polyhedron(BOX, np.tile(np.asarray(size) / 2, 2))


def square_sheet(half, thickness, bend=0.0):
    return sheet(lambda x, y: np.maximum(np.abs(x), np.abs(y)) - half, thickness, bend)


def inside_shares(distance, n=64, voxel=1.0, centre=None, radius=np.inf, at=ORIGIN):
    """The share of each voxel that lies inside, and the labels."""
    solid = Solid("crystal", distance, np.asarray(at, dtype=float), radius)
    middle = np.full(3, (n - 1) / 2) if centre is None else centre
    (share,), found = on_grid(
        [solid], {"crystal": (1.0,)}, {"crystal": 3}, (n, n, n), voxel, middle
    )
    return share.astype(np.float64), found


# shapes that fit 64 um, with their volumes in um^3
VOLUMES = {
    "sphere": (ellipsoid((20, 20, 20)), 4 / 3 * np.pi * 20**3),
    "ellipsoid": (ellipsoid((25, 15, 11)), 4 / 3 * np.pi * 25 * 15 * 11),
    "box": (box((32, 22, 16)), 32 * 22 * 16),
    # the regular one: 4/3 a^3 of half a diagonal a; faces are at a / sqrt(3)
    "bipyramid": (polyhedron(OCTAHEDRON, np.full(8, 26 / np.sqrt(3))), 4 / 3 * 26**3),
    "cylinder": (cylinder(9.0, -21.0, 17.0), np.pi * 81 * 38),
    # rounded box: Steiner's formula of a box of (a, b, c) grown by r
    "rounded": (
        polyhedron(BOX, np.tile([16.0, 13.0, 11.0], 2), 5.0),
        22 * 16 * 12
        + 2 * 5 * (22 * 16 + 16 * 12 + 12 * 22)
        + np.pi * 25 * (22 + 16 + 12)
        + 4 / 3 * np.pi * 125,
    ),
    # a cone frustum: the radius is 4 at +x and 4 + 0.2 * 40 at -x
    "cone": (cylinder(4.0, -20.0, 20.0, 0.2), np.pi * 40 / 3 * (4**2 + 4 * 12 + 12**2)),
    "sheet": (square_sheet(20.0, 6.0), 40 * 40 * 6),
    "rolled sheet": (square_sheet(18.0, 6.0, 0.03), 36 * 36 * 6),  # a shear changes no volume
    "thicker sphere": (thicker(ellipsoid((15, 15, 15)), 4.0), 4 / 3 * np.pi * 19**3),
    "thinner sphere": (thicker(ellipsoid((25, 25, 25)), -4.0), 4 / 3 * np.pi * 21**3),
}


# ---- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True], ids=["straight", "turned"])
@pytest.mark.parametrize("name", list(VOLUMES))
def test_volumes(name, turned):
    """The shares of voxels add up to the closed form, also of a solid that is turned and moved."""
    distance, volume = VOLUMES[name]
    if turned:
        distance = moved(distance, TURN, (1.3, -0.7, 2.1))
    share, labels = inside_shares(distance)
    assert share[[0, -1]].max() == share[:, [0, -1]].max() == share[:, :, [0, -1]].max() == 0
    assert share.sum() == pytest.approx(volume, rel=0.004)
    assert np.count_nonzero(labels == 3) == pytest.approx(volume, rel=0.02)
    np.testing.assert_array_equal(labels[share > 0.55], 3)
    np.testing.assert_array_equal(labels[share < 0.45], 0)


def test_volumes_do_not_depend_on_the_voxels():
    """The same solid in voxels of 0.7 and 1.6 um, with the origin off the middle."""
    for voxel, n in ((0.7, 80), (1.6, 40)):
        centre = np.array([n / 2 - 0.3, n / 2 + 1.1, n / 2 + 0.4])
        share, _ = inside_shares(VOLUMES["ellipsoid"][0], n, voxel, centre)
        assert share.sum() * voxel**3 == pytest.approx(VOLUMES["ellipsoid"][1], rel=0.005)


@pytest.mark.parametrize(("half_width", "half_height"), [(3.0, 3.0), (4.0, 2.0)])
def test_the_volume_of_a_ring(half_width, half_height):
    """A torus, 2 pi^2 R r^2 (r^2: the product of the half axes), narrower in y by 0.85 + 0.15 x / R.

    The factor's mean over the torus is 0.85, as its second term is odd in x.
    """
    radius = 22.0
    share, _ = inside_shares(ring(radius, radius, half_width, half_height))
    expected = 2 * np.pi**2 * radius * half_width * half_height * 0.85
    assert share.sum() == pytest.approx(expected, rel=0.02)


def test_a_ring_is_pointed_towards_minus_x():
    """As far as `along` both ways along x, narrower where x < 0, and nothing but air in its middle."""
    _, labels = inside_shares(ring(24.0, 18.0, 2.0, 2.0))
    x, y, z = np.argwhere(labels == 3).T - 31.5
    assert np.max(x) == pytest.approx(26, abs=1)
    assert np.min(x) == pytest.approx(-26, abs=1)
    assert np.max(np.abs(z)) == pytest.approx(2, abs=1)
    wide, narrow = np.abs(y)[x > 12].max(), np.abs(y)[x < -12].max()
    assert narrow < wide - 2
    assert not np.any(labels[26:38, 26:38])


SLOPES = {
    **{name: distance for name, (distance, _) in VOLUMES.items() if name not in ("cone", "rolled sheet")},
    "crack": intersection(crack((0.6, 0.8, 0.0), 3.0, 2.0), ellipsoid((25, 25, 25))),
    "union": union(moved(ellipsoid((12, 12, 12)), np.eye(3), (9, 0, 0)), box((20, 20, 20))),
    "without": without(ellipsoid((24, 24, 24)), cylinder(8.0, -40, 40)),
}  # fmt: skip


def slopes(distance, points, step=0.02):
    """|grad d| at points (n, 3) by central differences."""
    out = np.zeros(len(points))
    for k in range(3):
        shift = np.eye(3)[k] * step
        ahead, behind = (distance(*(points + s).T.astype(np.float64)) for s in (shift, -shift))
        out += ((np.asarray(ahead, float) - np.asarray(behind, float)) / (2 * step)) ** 2
    return np.sqrt(out)


@pytest.mark.parametrize("name", list(SLOPES))
def test_near_the_surface_it_is_the_distance(name):
    """|grad d| is one within 0.4 um of the surface, turned and moved, but where two faces meet."""
    distance = moved(SLOPES[name], TURN, (1.3, -0.7, 2.1))
    rng = np.random.default_rng(0)
    points = rng.uniform(-34, 34, (200_000, 3))
    near = points[np.abs(distance(*points.T)) < 0.4]
    assert len(near) > 300
    found = slopes(distance, near)
    # central differences across an edge see two faces
    assert np.mean(np.abs(found - 1) < 0.03) > 0.98
    assert np.median(found) == pytest.approx(1, abs=0.01)


def test_the_ring_is_nearly_the_distance():
    """Its taper and its ellipse make it so to a fifth or so, which the shares of voxels can bear."""
    rng = np.random.default_rng(0)
    points = rng.uniform((-30, -24, -4), (30, 24, 4), (200_000, 3))
    distance = ring(24.0, 18.0, 2.5, 2.5)
    near = points[np.abs(distance(*points.T)) < 0.3]
    found = slopes(distance, near)
    assert np.percentile(found, 1) > 0.8
    assert np.percentile(found, 99) < 1.45
    assert np.median(found) == pytest.approx(1, abs=0.2)


def test_distances_of_points_by_hand():
    """Signed: negative inside."""
    p = np.array([0.0]), np.array([3.0]), np.array([4.0])
    assert ellipsoid((7, 7, 7))(*p)[0] == pytest.approx(-2, abs=1e-5)
    assert ellipsoid((2, 2, 2))(*p)[0] == pytest.approx(3, abs=1e-5)
    assert box((2, 20, 12))(*p)[0] == pytest.approx(-1)
    assert box((2, 20, 4))(*p)[0] == pytest.approx(2)
    assert cylinder(7.0, -9, 9)(*p)[0] == pytest.approx(-2)
    assert cylinder(7.0, 3, 9)(*p)[0] == pytest.approx(3)
    assert square_sheet(10.0, 6.0)(*p)[0] == pytest.approx(1)
    assert crack((0, 0, 1), 3.0, 0.25)(*p)[0] == pytest.approx(0.75)
    # beyond a rounded edge the distance is Euclidean: from the corner (.., 1, 2) of what is rounded by 1
    rounded = polyhedron(BOX, np.tile([9.0, 2.0, 3.0], 2), 1.0)
    assert rounded(*p)[0] == pytest.approx(np.hypot(3 - 1, 4 - 2) - 1, abs=1e-5)
    ellipse = ring(10.0, 10.0, 2.0, 2.0)
    there = np.array([13.0]), np.array([0.0]), np.array([4.0])
    assert ellipse(*there)[0] == pytest.approx(np.hypot(3, 4) - 2, abs=1e-5)


def test_the_middle_of_an_ellipsoid_lies_inside():
    """Also where a voxel's middle is just there."""
    share, labels = inside_shares(ellipsoid((6, 6, 6)), 17)
    assert labels[8, 8, 8] == 3
    assert share[8, 8, 8] == 1
    share, labels = inside_shares(ring(12.0, 12.0, 2.0, 2.0), 33)
    assert labels[16, 16, 16] == 0
    assert share[16, 16, 16] == 0


# ---- how they are joined --------------------------------------------------------------------------


def test_a_solid_is_turned_and_then_moved():
    """A point p of a solid comes to R p + s."""
    shift = np.array([4.0, -6.0, 3.0])
    there = moved(box((20, 8, 4)), TURN, shift)
    plain = box((20, 8, 4))
    points = np.random.default_rng(1).uniform(-14, 14, (500, 3))
    np.testing.assert_allclose(there(*(points @ TURN.T + shift).T), plain(*points.T), atol=1e-4)
    _, labels = inside_shares(there)
    middle = (np.argwhere(labels == 3) - 31.5).mean(axis=0)
    np.testing.assert_allclose(middle, shift, atol=0.15)
    # the longest direction is the first column of the rotation
    spread = np.cov((np.argwhere(labels == 3) - 31.5).T)
    direction = np.linalg.eigh(spread)[1][:, -1]
    assert abs(direction @ TURN[:, 0]) > 0.999


@pytest.mark.parametrize("half_width", [0.5, 1.5])
def test_the_width_of_a_crack(half_width):
    """What is missing of a box: its cross-section times the crack's width, at the crack's place."""
    whole, _ = inside_shares(box((40, 30, 20)))
    cut, _ = inside_shares(without(box((40, 30, 20)), crack((1, 0, 0), 7.0, half_width)))
    gone = whole - cut
    assert gone.sum() == pytest.approx(30 * 20 * 2 * half_width, rel=0.02)
    place = np.average(np.arange(64) - 31.5, weights=gone.sum(axis=(1, 2)))
    assert place == pytest.approx(7.0, abs=0.05)
    oblique = without(box((40, 30, 20)), crack(TURN[0], 0.0, half_width))
    # through the middle of a box, the plane n . r = 0 crosses x at any y, z within it
    gone = whole - inside_shares(oblique)[0]
    assert gone.sum() == pytest.approx(30 * 20 * 2 * half_width / abs(TURN[0, 0]), rel=0.03)


def test_sums_and_differences_of_sets():
    a = moved(ellipsoid((11, 11, 11)), np.eye(3), (-6, 0, 0))
    b = moved(ellipsoid((9, 9, 9)), np.eye(3), (7, 2, 0))
    volume = {
        name: inside_shares(d)[0].sum()
        for name, d in {
            "a": a, "b": b, "a or b": union(a, b), "a and b": intersection(a, b),
            "a not b": without(a, b),
        }.items()
    }  # fmt: skip
    assert volume["a or b"] + volume["a and b"] == pytest.approx(
        volume["a"] + volume["b"], rel=2e-3
    )
    assert volume["a not b"] + volume["a and b"] == pytest.approx(volume["a"], rel=2e-3)
    # the lens of two spheres at the distance d
    r, s, d = 11.0, 9.0, np.hypot(13, 2)
    lens = np.pi * (r + s - d) ** 2 * (d**2 + 2 * d * (r + s) - 3 * (r - s) ** 2) / (12 * d)
    assert volume["a and b"] == pytest.approx(lens, rel=0.02)


def test_waves_have_their_height():
    """A wavy plane: its surface's rms height, and no shift of it on average."""
    rng = np.random.default_rng(2)
    plane = polyhedron([[0, 0, 1.0]], [0.0])
    heights, middles = [], []
    for _ in range(12):
        rough = wavy(plane, 1.5, 10.0, rng)
        x, y = np.meshgrid(np.arange(0, 200, 2.5), np.arange(0, 200, 2.5))
        z = np.zeros_like(x)  # d = z + waves: the surface is near z = -waves
        d = rough(x, y, z)
        heights.append(d.std()), middles.append(d.mean())
    assert np.mean(heights) == pytest.approx(1.5, rel=0.45)
    assert abs(np.mean(middles)) < 0.3


# ---- on a grid ------------------------------------------------------------------------------------


def test_later_solids_displace_earlier_ones():
    values = {"liquor": (2.0, 20.0), "crystal": (3.0, 10.0), "background": (0.0, 0.0)}
    labels = {"liquor": 1, "crystal": 3, "background": 0}
    drop = Solid("liquor", ellipsoid((15, 15, 15)), ORIGIN, np.inf)
    crystal = Solid("crystal", box((12, 12, 12)), ORIGIN, 20.0)
    bubble = Solid(
        "background", moved(ellipsoid((5, 5, 5)), np.eye(3), (6, 6, 6)), np.full(3, 6.0), 5.0
    )
    where = np.full(3, 19.5)
    (mu, delta), found = on_grid([drop, crystal, bubble], values, labels, (40, 40, 40), 1.0, where)
    assert mu.dtype == delta.dtype == np.float32
    assert found.dtype == np.uint8
    assert (found[20, 20, 20], mu[20, 20, 20], delta[20, 20, 20]) == (3, 3.0, 10.0)
    assert (found[20, 20, 31], mu[20, 20, 31], delta[20, 20, 31]) == (1, 2.0, 20.0)
    assert (found[25, 25, 25], mu[25, 25, 25], delta[25, 25, 25]) == (0, 0.0, 0.0)
    assert (found[0, 0, 0], mu[0, 0, 0], delta[0, 0, 0]) == (0, 0.0, 0.0)
    (_, _), other = on_grid([crystal, drop], values, labels, (40, 40, 40), 1.0, where)
    assert not np.any(other == 3)
    # of a voxel that a face halves, half is of one and half of the other
    half = Solid("crystal", polyhedron([[1.0, 0, 0]], [0.0]), ORIGIN, np.inf)
    full = Solid("liquor", box((90, 90, 90)), ORIGIN, np.inf)
    (mu, delta), _ = on_grid([full, half], values, labels, (9, 9, 9), 1.0, np.full(3, 4.0))
    np.testing.assert_allclose(mu[4], 2.5)
    np.testing.assert_allclose(delta[4], 15.0)


def test_solids_with_a_sphere_are_looked_for_there_alone():
    """The same result as without one, also where the sphere leaves the volume or lies outside of it."""
    for at in ((0, 0, 0), (14, -3, 2), (60, 0, 0)):
        distance = moved(box((8, 6, 10)), TURN, at)
        near, labels = inside_shares(distance, 32, radius=8.0, at=at)
        everywhere, same = inside_shares(distance, 32)
        np.testing.assert_array_equal(near, everywhere)
        np.testing.assert_array_equal(labels, same)
