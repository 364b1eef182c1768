"""Meshes against closed forms for spheres, boxes and cylinders; bad meshes, each with its sentence."""

from __future__ import annotations

import numpy as np
import pytest

from anacor_dials.sample.frames import rotation_about, unit
from anacor_dials.simulation.meshes import (
    Mesh,
    attenuation_to_outside,
    box,
    contains,
    convex_polyhedron,
    label_array,
    line_crossings,
    overlap,
    points_inside,
    prism,
    quadrature_points,
    read_stl,
    require_no_self_intersection,
    rounded_polyhedron,
    sphere,
    thickness_maps,
    tube,
    turned_profile,
    write_stl,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def circle(radius: float, n: int = 180) -> np.ndarray:
    t = 2 * np.pi * np.arange(n) / n
    return radius * np.column_stack([np.cos(t), np.sin(t), 0 * t])


def test_volumes_are_those_of_the_shapes() -> None:
    assert box((10, 20, 30)).volume_um3 == pytest.approx(6000)
    assert sphere(7.0).volume_um3 == pytest.approx(4 / 3 * np.pi * 343)
    assert turned_profile([-5, 5], [3, 3]).volume_um3 == pytest.approx(np.pi * 90)
    assert turned_profile([0, 6], [3, 1e-9], 64).volume_um3 == pytest.approx(np.pi * 18, rel=1e-6)
    assert prism(circle(2.0)[:, :2], 0, 3).volume_um3 == pytest.approx(12 * np.pi, rel=1e-3)
    # Pappus: section times the way of its centroid
    ring = tube(circle(50.0), (0, 0, 1), 4.0, 3.0, 64)
    assert ring.volume_um3 == pytest.approx(np.pi * 12 * 2 * np.pi * 50, rel=3e-3)


def test_a_rounded_box_has_steiners_volume() -> None:
    """V + S r + pi r^2 (a + b + c) + 4/3 pi r^3 with V and S of the box whose faces lie r within.

    The mesh is inscribed in the round parts. Its flat faces lie where they did.
    """
    edges, r = np.array([20.0, 30.0, 40.0]), 6.0
    normals = np.concatenate([np.eye(3), -np.eye(3)])
    mesh = rounded_polyhedron(normals, np.tile(edges / 2, 2), r)
    a, b, c = edges - 2 * r
    inner = a * b * c + 2 * (a * b + b * c + c * a) * r
    exact = inner + np.pi * r**2 * (a + b + c) + 4 / 3 * np.pi * r**3
    assert inner < 0.9 * exact
    assert 0.985 * exact < mesh.volume_um3 < exact
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), edges)


def test_centroid_moves_with_the_mesh() -> None:
    turn = rotation_about((1, 2, 3), 40.0)
    mesh = box((2, 4, 6)).moved(turn, (5.0, -3.0, 8.0))
    np.testing.assert_allclose(mesh.centroid_um, (5, -3, 8), atol=1e-12)
    assert mesh.volume_um3 == pytest.approx(48)


@pytest.mark.parametrize("angle", [0.0, 17.0, 45.0, 90.0, 133.3])
def test_thickness_of_a_box_is_exact_at_any_angle(angle: float) -> None:
    """Against the slab method: a line is in a box between its last entry and its first exit."""
    size = np.array([8.0, 12.0, 20.0])
    mesh = box(size)
    frame = (rotation_about((1, 0.3, -0.2), angle)).T
    first, shape, step = (-14.03, -13.98), (70, 71), 0.4
    thickness = thickness_maps([mesh], [0], 1, frame, first, shape, step)[0, 0]
    u = first[0] + step * np.arange(shape[0])
    v = first[1] + step * np.arange(shape[1])
    start = u[:, None, None] * frame[:, 0] + v[None, :, None] * frame[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        low = (-size / 2 - start) / frame[:, 2]
        high = (size / 2 - start) / frame[:, 2]
    enter, leave = np.minimum(low, high).max(axis=-1), np.maximum(low, high).min(axis=-1)
    np.testing.assert_allclose(thickness, np.maximum(leave - enter, 0), atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 30.0, 77.0])
def test_thickness_of_a_sphere_at_any_angle(angle: float) -> None:
    radius, step = 20.0, 0.5
    mesh = sphere(radius, 5).moved(shift_um=(1.0, -2.0, 3.0))
    frame = rotation_about((1, 0, 0), angle).T
    thickness = thickness_maps([mesh], [0], 1, frame, (-30, -30), (121, 121), step)[0, 0]
    grid = -30 + step * np.arange(121)
    middle = np.array([1.0, -2.0, 3.0]) @ frame
    rho2 = (grid[:, None] - middle[0]) ** 2 + (grid[None] - middle[1]) ** 2
    chord = 2 * np.sqrt(np.maximum(radius**2 - rho2, 0))
    inside = rho2 < (0.9 * radius) ** 2
    np.testing.assert_allclose(thickness[inside], chord[inside], rtol=3e-3)
    assert thickness.sum() * step**2 == pytest.approx(mesh.volume_um3, rel=2e-3)


def test_slabs_add_up_to_the_whole() -> None:
    meshes = [sphere(20.0, 3), box((10, 10, 10))]
    args = (meshes, [0, 1], 2, np.eye(3), (-25.0, -25.0), (51, 51), 1.0)
    whole = thickness_maps(*args)
    slabs = thickness_maps(*args, slab_edges_um=(-np.inf, -7.0, 0.0, 5.0, np.inf))
    np.testing.assert_allclose(slabs.sum(axis=1), whole[:, 0], atol=1e-9)
    assert slabs[1, 1, 25, 25] == pytest.approx(5.0)  # the box from -5 to 0


def test_the_later_mesh_has_the_place_where_two_overlap() -> None:
    outer, inner = box((10, 10, 10)), box((4, 4, 4)).moved(shift_um=(0, 0, 4.0))  # sticks out by 1
    thickness = thickness_maps([outer, inner], [0, 1], 2, np.eye(3), (0.1, 0.1), (1, 1), 1.0)
    np.testing.assert_allclose(thickness[:, 0, 0, 0], (7.0, 4.0))


def test_every_line_leaves_what_it_enters(rng: np.random.Generator) -> None:
    """Also lines that run exactly through vertices and edges."""
    meshes = [box((8, 8, 8)), turned_profile([-4, 4], [2, 2], 8), sphere(3.0, 2)]
    crossings = line_crossings(meshes, np.eye(3), (-6.0, -6.0), (25, 25), 0.5)
    for line in range(25 * 25):
        entries = crossings.meshes[crossings.starts[line] : crossings.starts[line + 1]]
        assert sum(np.sign(entries)) == 0


def test_labels_fill_the_volume_of_the_mesh() -> None:
    voxel = np.array([0.7, 0.8, 0.9])
    mesh = sphere(20.0, 4).moved(shift_um=(2.0, -1.0, 4.0))
    labels = label_array([mesh], [3], (70, 65, 72), voxel, (30.0, 32.0, 33.0))
    assert set(np.unique(labels)) == {0, 3}
    n = np.count_nonzero(labels)
    assert n * voxel.prod() == pytest.approx(mesh.volume_um3, rel=2e-3)
    middle = (np.array(np.nonzero(labels)).mean(axis=1) - (30, 32, 33)) * voxel
    np.testing.assert_allclose(middle, (2, -1, 4), atol=0.02)


def test_path_lengths_out_of_a_sphere(rng: np.random.Generator) -> None:
    radius = 30.0
    points = points_inside([sphere(25.0)], 200, rng)
    directions = rng.normal(size=(50, 3))
    tau = attenuation_to_outside([sphere(radius, 5)], [0.02], points, directions)
    along = unit(directions) @ points.T
    chord = -along + np.sqrt(along**2 + radius**2 - np.sum(points**2, axis=1))
    np.testing.assert_allclose(tau, 0.02 * chord, atol=0.02 * 0.05)


def test_path_lengths_through_nested_meshes(rng: np.random.Generator) -> None:
    """A cube in a larger cube: the slab method once for each."""
    meshes, mu = [box((40, 40, 40)), box((10, 10, 10)).moved(shift_um=(3, 0, 0))], (0.01, 0.05)
    points = rng.uniform(-4, 4, (60, 3)) + (3, 0, 0)
    directions = rng.normal(size=(40, 3))
    d = unit(directions)[:, None]

    def to_outside(half: float, shift: np.ndarray) -> np.ndarray:
        start = points[None] - shift
        return np.max([(half - start) / d, (-half - start) / d], axis=0).min(axis=-1)

    inner, outer = to_outside(5.0, np.array([3.0, 0, 0])), to_outside(20.0, np.zeros(3))
    expected = 0.05 * inner + 0.01 * (outer - inner)
    np.testing.assert_allclose(
        attenuation_to_outside(meshes, mu, points, directions), expected, atol=1e-10
    )


def test_a_point_is_in_or_out(rng: np.random.Generator) -> None:
    points = rng.uniform(-12, 12, (500, 3))
    size = np.array([10.0, 16.0, 20.0])
    expected = np.all(np.abs(points) < size / 2, axis=1)
    np.testing.assert_array_equal(contains(box(size), points), expected)


def test_quadrature_integrates_what_it_should(rng: np.random.Generator) -> None:
    """The mean of exp(a . x) over a box is a product of sinh(a L / 2) / (a L / 2)."""
    size, a = np.array([20.0, 30.0, 25.0]), np.array([0.05, -0.03, 0.04])
    points, weights = quadrature_points([box(size)], 512, rng)
    half = a * size / 2
    assert weights.sum() == pytest.approx(1.0)
    assert weights @ np.exp(points @ a) == pytest.approx(np.prod(np.sinh(half) / half), rel=1e-4)


def test_quadrature_counts_overlaps_once(rng: np.random.Generator) -> None:
    """Two cubes that share a quarter: the mean of x over their union, by hand."""
    cubes = [box((2, 2, 2)), box((2, 2, 2)).moved(shift_um=(1.5, 0, 0))]
    points, weights = quadrature_points(cubes, 6000, rng)
    assert weights @ points[:, 0] == pytest.approx(0.75, abs=0.01)


def test_spread_points_are_even(rng: np.random.Generator) -> None:
    points = points_inside([sphere(10.0)], 2000, rng)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=0.2)
    assert np.mean(np.sum(points**2, axis=1)) == pytest.approx(60.0, rel=0.02)


def test_stl_there_and_back(tmp_path) -> None:
    mesh = convex_polyhedron(np.vstack([np.eye(3), -np.eye(3), [[1, 1, 1]]]), [5, 6, 7, 5, 6, 7, 6])
    write_stl(tmp_path / "crystal.stl", mesh)
    back = read_stl(tmp_path / "crystal.stl")
    assert len(back.faces) == len(mesh.faces)
    assert back.volume_um3 == pytest.approx(mesh.volume_um3, rel=1e-6)
    assert read_stl(tmp_path / "crystal.stl", um_per_unit=2.0).volume_um3 == pytest.approx(
        8 * mesh.volume_um3, rel=1e-6
    )


def test_overlap_sees_crossing_and_containing() -> None:
    cube = box((10, 10, 10))
    assert overlap(cube, box((2, 2, 2)))
    assert overlap(box((2, 2, 2)), cube)
    assert overlap(cube, cube.moved(rotation_about((1, 1, 0), 20.0), (8, 0, 0)))
    assert not overlap(cube, cube.moved(shift_um=(11, 0, 0)))


# ---- bad input -------------------------------------------------------------------------------------


def test_open_mesh() -> None:
    mesh = sphere(5.0, 1)
    with pytest.raises(ValueError, match="open: 3 of its edges"):
        Mesh(mesh.vertices, mesh.faces[1:])


def test_mesh_inside_out() -> None:
    mesh = sphere(5.0, 1)
    with pytest.raises(ValueError, match="inside out"):
        Mesh(mesh.vertices, mesh.faces[:, ::-1])


def test_self_intersecting_mesh(tmp_path) -> None:
    mesh = sphere(5.0, 2)
    vertices = mesh.vertices.copy()
    vertices[np.argmax(vertices[:, 0])] = (
        -9.0,
        0.3,
        0.2,
    )  # one corner drawn through the other side
    with pytest.raises(ValueError, match="intersects itself: faces"):
        require_no_self_intersection(Mesh(vertices, mesh.faces))
    write_stl(tmp_path / "bad.stl", Mesh(vertices, mesh.faces))
    with pytest.raises(ValueError, match=r"bad\.stl: The mesh intersects itself"):
        read_stl(tmp_path / "bad.stl")
    require_no_self_intersection(mesh)


def test_open_half_spaces() -> None:
    with pytest.raises(ValueError, match="do not enclose a polyhedron"):
        convex_polyhedron(np.eye(3), [1, 1, 1])


def test_stl_that_is_none(tmp_path) -> None:
    (tmp_path / "text.stl").write_text("no triangles here")
    with pytest.raises(ValueError, match="is not an STL file"):
        read_stl(tmp_path / "text.stl")
    with pytest.raises(ValueError, match="There is no file"):
        read_stl(tmp_path / "absent.stl")


def test_mirrored_mesh() -> None:
    with pytest.raises(ValueError, match="not mirrored"):
        box((1, 2, 3)).moved(np.diag([1, 1, -1]))
