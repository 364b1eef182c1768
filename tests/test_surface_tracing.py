"""Samples of meshes: closed surfaces, points in them, rays and factors.

The rays are held against those of the simulator, of convex solids and of voxels, which share no code
with them; the factors against the integral over spheres.
"""

from __future__ import annotations

import numpy as np
import pytest

from anacor_dials.absorption.beam import BeamProfile
from anacor_dials.absorption.closed_surface import ClosedSurface, SurfaceSample, joined
from anacor_dials.absorption.convex_solid import ConvexSolid
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.factors import (
    absorption_factors,
    absorption_factors_of_solid,
    absorption_factors_of_surfaces,
)
from anacor_dials.absorption.solid_tracing import SolidBody
from anacor_dials.absorption.surface_points import SurfacePoints
from anacor_dials.absorption.surface_tracing import attenuating_surfaces, path_lengths
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.sample.frames import rotation_about, source_directions, unit
from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.simulation.meshes import (
    Mesh,
    attenuation_to_outside,
    box,
    contains,
    convex_polyhedron,
    label_array,
    prism,
    sphere,
    tube,
    turned_profile,
)

TURN = rotation_about((1.0, 2.0, -0.5), 37.0)
DIAGONALS = np.array([[a, b, c] for a in (1, -1) for b in (1, -1) for c in (1, -1)])
ANGLE = np.array([[0, 0], [30, 0], [30, 10], [12, 10], [12, 40], [0, 40]], dtype=float)


def surface(mesh: Mesh) -> ClosedSurface:
    return ClosedSurface(mesh.vertices, mesh.faces)


def sample(**meshes: Mesh) -> SurfaceSample:
    return SurfaceSample.of({name: surface(mesh) for name, mesh in meshes.items()})


def angle(turn: np.ndarray = TURN) -> Mesh:
    """A concave crystal: two boxes at a right angle."""
    return prism(ANGLE, -10.0, 15.0).moved(turn)


def scan(n: int, seed: int = 0) -> Directions:
    rng = np.random.default_rng(seed)
    exits = unit(rng.standard_normal((n, 3)))
    return Directions.of_one_sweep(source_directions(rng.uniform(0, 360, n)), exits)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


# ---- surfaces ------------------------------------------------------------------------------------


def test_a_surface_that_is_inside_out_is_turned():
    mesh = box((10, 20, 30))
    turned = ClosedSurface(mesh.vertices, mesh.faces[:, ::-1])
    assert turned.volume_um3 == pytest.approx(6000)
    np.testing.assert_allclose(turned.bounds_um, mesh.bounds_um)


def test_surfaces_that_enclose_nothing():
    mesh = box((10, 20, 30))
    with pytest.raises(ValueError, match="of 11 triangles is open: 3 edges"):
        ClosedSurface(mesh.vertices, mesh.faces[:-1])
    one_turned = mesh.faces.copy()
    one_turned[0] = one_turned[0, ::-1]
    with pytest.raises(ValueError, match="make its normals consistent"):
        ClosedSurface(mesh.vertices, one_turned)
    with pytest.raises(ValueError, match="encloses no volume"):
        ClosedSurface(mesh.vertices * [1, 1, 0], mesh.faces)
    with pytest.raises(ValueError, match="no mesh of the crystal; given are liquor"):
        sample(liquor=mesh)


def test_solids_that_touch_along_an_edge_are_closed():
    a, b = box((10, 10, 10)), box((10, 10, 10)).moved(shift_um=(10.0, 10.0, 0.0))
    vertices, index = np.unique(
        np.concatenate([a.vertices, b.vertices]), axis=0, return_inverse=True
    )
    faces = np.concatenate([a.faces, b.faces + len(a.vertices)])
    both = ClosedSurface(vertices, index.ravel()[faces])
    assert len(vertices) == 14
    assert both.volume_um3 == pytest.approx(2000)


# ---- points --------------------------------------------------------------------------------------


def test_points_fill_a_concave_crystal_evenly():
    mesh = angle()
    points = SurfacePoints(surface(mesh)).draw(20_000, np.random.default_rng(1))
    assert contains(mesh, points.voxels).all()
    assert points.weights.sum() == pytest.approx(len(points))
    own = points.voxels @ TURN  # in the frame of the two boxes of 30 x 10 x 25 and 12 x 30 x 25
    one = np.array([[0, 0, -10], [30, 10, 15.0]])
    other = np.array([[0, 10, -10], [12, 40, 15.0]])
    share = 7500 / 16500
    mean = share * one.mean(axis=0) + (1 - share) * other.mean(axis=0)
    squares = [(b[1] ** 3 - b[0] ** 3) / (3 * (b[1] - b[0])) for b in (one, other)]
    np.testing.assert_allclose(own.mean(axis=0), mean, atol=0.02)
    np.testing.assert_allclose(
        (own**2).mean(axis=0), share * squares[0] + (1 - share) * squares[1], rtol=3e-3
    )
    # stratified: independent points would give 0.02 and more here
    assert abs(np.mean(own[:, 1] < 10) - share) < 0.002


def test_several_crystals_and_a_hollow_one():
    """A shell, 15 um inside and 20 outside, and a ball beside it."""
    inner = sphere(15.0, 3)
    shell = joined([surface(sphere(20.0, 3)), surface(inner)])
    hollow = ClosedSurface(
        shell.vertices,
        np.concatenate([sphere(20.0, 3).faces, inner.faces[:, ::-1] + len(inner.vertices)]),
    )
    ball = surface(sphere(10.0, 3).moved(shift_um=(40.0, 0, 0)))
    both = joined([hollow, ball])
    assert both.volume_um3 == pytest.approx(4 / 3 * np.pi * (20**3 - 15**3 + 10**3))
    points = SurfacePoints(both).draw(20_000, np.random.default_rng(1)).voxels
    r = np.linalg.norm(points, axis=1)
    apart = np.linalg.norm(points - [40.0, 0, 0], axis=1)
    assert np.all(((r > 14.8) & (r < 20.2)) | (apart < 10.2))
    assert np.mean(apart < 11) == pytest.approx(1000 / 5625, abs=0.002)


def test_crystals_that_overlap_are_refused():
    two = joined(
        [surface(box((20, 20, 20))), surface(box((20, 20, 20)).moved(shift_um=(9.0, 5, 3)))]
    )
    with pytest.raises(ValueError, match="overlap each other"):
        SurfacePoints(two)


@pytest.mark.parametrize("size", [(200, 200, 5), (4, 4, 300)])
def test_points_of_plates_and_needles(size):
    points = SurfacePoints(surface(box(size).moved(TURN))).draw(20_000, np.random.default_rng(2))
    own = points.voxels @ TURN / size
    assert np.abs(own).max() <= 0.5 + 1e-9
    np.testing.assert_allclose((own**2).mean(axis=0), 1 / 12, rtol=0.02)


# ---- paths ---------------------------------------------------------------------------------------

LOOP = tube(
    25 * np.column_stack([np.cos(t := np.arange(60) * np.pi / 30), np.sin(t), 0 * t]),
    (0.0, 0, 1),
    4.0,
    5.0,
)


def test_paths_are_those_of_the_simulator():
    """A concave crystal in liquor, a loop in the liquor and beside it: 200 000 rays."""
    crystal, liquor = (
        angle().moved(shift_um=(-10.0, -14.0, 0.0)),
        sphere(27.0, 3).moved(shift_um=(3.0, 0, 0)),
    )
    mu = {"crystal": 0.03, "liquor": 0.012, "loop": 0.02}
    rng = np.random.default_rng(4)
    points = SurfacePoints(surface(crystal)).draw(1000, rng).voxels
    directions = unit(rng.standard_normal((200, 3)))
    directions[:3] = np.eye(3)
    whole = sample(crystal=crystal, liquor=liquor, loop=LOOP)
    assert whole.names == ("background", "crystal", "loop", "liquor")  # the smaller solid counts
    of_labels = [0.0, *(mu[name] for name in whole.names[1:])]
    depths, lengths = path_lengths(attenuating_surfaces(whole, of_labels), points, directions)
    expected = attenuation_to_outside(
        [liquor, LOOP, crystal], [mu["liquor"], mu["loop"], mu["crystal"]], points, directions
    )
    np.testing.assert_allclose(depths, expected, atol=1e-12)
    np.testing.assert_allclose(lengths @ of_labels, depths, atol=1e-12)
    assert np.all(lengths[..., 1:].max(axis=(0, 1)) > 5)
    alone, _ = path_lengths(
        attenuating_surfaces(sample(crystal=crystal), [0, 1]), points, directions
    )
    np.testing.assert_allclose(
        alone, attenuation_to_outside([crystal], [1.0], points, directions), atol=1e-11
    )


def test_paths_are_those_of_a_convex_solid():
    solid = ConvexSolid(DIAGONALS @ TURN.T, np.linspace(13, 17, 8))
    mesh = convex_polyhedron(solid.normals, solid.distances_um)
    body = SolidBody(solid, 0.05)
    points = body.draw(400, np.random.default_rng(5)).voxels
    directions = unit(np.random.default_rng(6).standard_normal((100, 3)))
    expected, _ = body.path_lengths(points, directions)
    found, _ = path_lengths(
        attenuating_surfaces(sample(crystal=mesh), [0, 0.05]), points, directions
    )
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_no_ray_passes_between_triangles():
    """Rays along edges, through vertices and within faces: a body of one octant of a grid."""
    mesh = box((20, 20, 20))
    line = np.linspace(-10, 10, 9)[1:-1]
    points = np.stack(np.meshgrid(line, line, line), axis=-1).reshape(-1, 3)
    directions = np.concatenate([np.eye(3), -np.eye(3), unit(DIAGONALS)])
    _, lengths = path_lengths(
        attenuating_surfaces(sample(crystal=mesh), [0, 1]), points, directions
    )
    with np.errstate(divide="ignore"):
        expected = np.min(
            (10 - np.sign(directions)[:, None] * points) / np.abs(directions)[:, None], axis=-1
        )
    np.testing.assert_allclose(lengths[..., 1], expected, rtol=1e-12)


def test_nested_materials_of_one_mu_are_one_body():
    mu = 0.013
    points = SurfacePoints(surface(angle())).draw(200, np.random.default_rng(7)).voxels
    directions = unit(np.random.default_rng(8).standard_normal((50, 3)))
    capillary = turned_profile(np.linspace(-200, 200, 5), np.full(5, 90.0))
    nested = sample(crystal=angle(), liquor=sphere(60.0, 3), capillary=capillary)
    found, _ = path_lengths(attenuating_surfaces(nested, [0, mu, mu, mu]), points, directions)
    expected = attenuation_to_outside([capillary], [mu], points, directions)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


# ---- factors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu_r", [0.5, 2.0])
def test_spheres_in_a_shell(mu_r):
    """A as International Tables C 6.3.3.3 tabulates it, with liquor of a third of mu around it."""
    theta = np.array([0.0, 30.0, 60.0, 90.0])
    source = np.array([0.0, 0.6, 0.8])
    exits = np.array([rotation_about((1.0, 0, 0), 2 * t) @ -source for t in theta])
    directions = Directions.of_one_sweep(np.tile(source, (4, 1)), exits)
    node, weight = np.polynomial.legendre.leggauss(60)
    u = (node + 1) / 2
    r = 1 - (1 - u) ** 2
    r, cosine, psi = np.meshgrid(r, node, np.arange(80) * np.pi / 40, indexing="ij")
    weights = (weight * (1 - u))[:, None, None] * r**2 * weight[None, :, None]
    places = r[..., None] * np.stack(
        [
            np.sqrt(1 - cosine**2) * np.cos(psi),
            np.sqrt(1 - cosine**2) * np.sin(psi),
            cosine,
        ],
        axis=-1,
    )

    def paths(radius: float, direction: np.ndarray) -> np.ndarray:
        along = places @ direction
        return np.sqrt(along**2 + radius**2 - r**2) - along

    for shell, mu_shell in ((1.0, 0.0), (1.5, mu_r / 3)):
        expected = []
        for exit_ in exits:
            depth = sum(
                (mu_r - mu_shell) * paths(1.0, d) + mu_shell * paths(shell, d)
                for d in (source, exit_)
            )
            expected.append(np.sum(weights * np.exp(-depth)) / weights.sum())
        if shell == 1.0:  # chords l of a sphere are distributed as l^2
            x = 2 * mu_r
            forward = 3 / (8 * mu_r**3) * (2 - np.exp(-x) * (x * x + 2 * x + 2))
            assert expected[0] == pytest.approx(forward, rel=1e-5)
        ball = {"crystal": sphere(10.0, 4)}
        if shell > 1:
            ball["liquor"] = sphere(15.0, 4)
        mu = [0, mu_r / 10, mu_shell / 10][: len(ball) + 1]
        found = absorption_factors_of_surfaces(sample(**ball), mu, directions, Tracing(1e-3))
        np.testing.assert_allclose(found.transmission, expected, rtol=3e-3)


def test_factors_are_those_of_a_convex_solid():
    solid = ConvexSolid(DIAGONALS @ TURN.T, np.linspace(13, 17, 8))
    mesh = convex_polyhedron(solid.normals, solid.distances_um)
    directions, tracing = scan(20, seed=9), Tracing(2e-3)
    planes = absorption_factors_of_solid(solid, 0.05, directions, tracing)
    meshes = absorption_factors_of_surfaces(sample(crystal=mesh), [0, 0.05], directions, tracing)
    assert meshes.accuracy.reached
    both = np.hypot(planes.accuracy.rms_error, meshes.accuracy.rms_error)
    assert rms(meshes.transmission / planes.transmission - 1) < 1.5 * both
    paths = meshes.mean_path_um[:, 1] / planes.mean_path_um[:, 1] - 1
    assert rms(paths) < 0.06  # each is good to 1 to 2 %


def test_a_table_of_a_concave_crystal_is_what_its_own_rays_are():
    nested = sample(crystal=angle(), liquor=sphere(60.0, 2))
    directions = scan(300, seed=10)
    mu = [0, 0.03, 0.01]
    table = absorption_factors_of_surfaces(nested, mu, directions, Tracing(4e-3, method="table"))
    own = absorption_factors_of_surfaces(
        nested, mu, directions[:20], Tracing(2e-3, method="exact", seed=1)
    )
    assert table.accuracy.method == "table"
    assert table.accuracy.reached
    assert rms(table.transmission[:20] / own.transmission - 1) < 1.5 * np.hypot(
        table.accuracy.rms_error, own.accuracy.rms_error
    )


def test_a_small_beam():
    """A beam that is 6 um wide, in the middle of a plate that is much larger."""
    mu, thickness = 0.02, 30.0
    plate = sample(crystal=box((200, 200, thickness)))
    straight = Directions.of_one_sweep([[0.0, 0, 1]], [[0.0, 0, -1]])
    beam = BeamProfile("tophat", (6.0, 6.0))
    found = absorption_factors_of_surfaces(plate, [0, mu], straight, Tracing(2e-3, beam=beam))
    assert found.transmission[0] == pytest.approx(np.exp(-mu * thickness), rel=1e-6)
    back = Directions.of_one_sweep([[0.0, 0, 1]], [[0.0, 0, 1]])
    found = absorption_factors_of_surfaces(plate, [0, mu], back, Tracing(4e-3, beam=beam))
    assert found.accuracy.reached
    expected = (1 - np.exp(-2 * mu * thickness)) / (2 * mu * thickness)
    assert found.transmission[0] == pytest.approx(expected, rel=6e-3)


@pytest.mark.slow
def test_factors_are_those_of_fine_voxels():
    """The same sample in voxels of 0.25 um, by exact traversal: to 0.1 % over the reflections."""
    crystal, liquor = angle(), sphere(33.0, 3).moved(shift_um=TURN @ (12.0, 16.0, 2.5))
    size, low = 0.25, liquor.bounds_um[0] - 1
    shape = tuple(np.ceil((np.ptp(liquor.bounds_um, axis=0) + 2) / size).astype(int))
    values = label_array([liquor, crystal], [1, 2], shape, size, -low / size)
    labels = LabelVolume(values, size, -low / size, ("background", "liquor", "crystal"))
    directions = scan(30, seed=11)
    tracing = Tracing(5e-4, method="exact", device="cpu")
    voxels = absorption_factors(labels, [0, 0.012, 0.03], directions, tracing)
    nested = sample(crystal=crystal, liquor=liquor)
    meshes = absorption_factors_of_surfaces(nested, [0, 0.03, 0.012], directions, tracing)
    assert rms(meshes.transmission / voxels.transmission - 1) < 1e-3


def test_mu_that_does_not_fit():
    one = sample(crystal=box((5, 5, 5)))
    with pytest.raises(ValueError, match="2 numbers >= 0 are needed, for background, crystal"):
        absorption_factors_of_surfaces(one, [0.0, 0.1, 0.2], scan(3))
    with pytest.raises(ValueError, match="numbers >= 0"):
        absorption_factors_of_surfaces(one, [0.0, np.nan], scan(3))
