"""Crystals whose faces are lattice planes of their cell, against cctbx's reciprocal lattice."""

from __future__ import annotations

import numpy as np
import pytest

from anacor_dials.simulation.crystal_habits import HABITS, tetragonal_form
from anacor_dials.simulation.samples import demo_sample, random_sample


@pytest.mark.parametrize(
    ("hkl", "number"), [((1, 0, 1), 8), ((1, 1, 0), 4), ((0, 0, 1), 2), ((1, 2, 3), 16)]
)
def test_faces_of_tetragonal_forms(hkl: tuple[int, int, int], number: int) -> None:
    """The numbers of International Tables A, section 3.2.3, for 4/mmm."""
    members = tetragonal_form(hkl)
    assert len(members) == len(set(members)) == number
    assert hkl in members


def test_known_angles() -> None:
    """A {1 0 1} face is inclined to c by atan(a / c), and so are the normals to the plane of a, b."""
    for habit in HABITS.values():
        normal = habit.lattice.normals([1, 0, 1])
        assert np.degrees(np.arctan2(normal[2], normal[0])) == pytest.approx(
            np.degrees(np.arctan(habit.a / habit.c))
        )


@pytest.mark.parametrize("shape", HABITS)
def test_a_sample_says_where_its_lattice_lies(shape: str) -> None:
    """All planes of the mesh are perpendicular to the lattice's own vectors, by the cell's edges."""
    sample = random_sample(np.random.default_rng(11), 60.0, shape=shape, film=False)
    assert sample.lattice is not None
    a, b, c = sample.lattice.axes.T
    np.testing.assert_allclose(sample.lattice.cell, HABITS[shape].cell, atol=1e-5)
    assert np.dot(np.cross(a, b), c) > 0
    (mesh,) = sample.of("crystal")
    p, q, r = mesh.corners
    normals = np.cross(q - p, r - p)
    normals /= np.linalg.norm(normals, axis=1)[:, None]
    # h = n . a up to one factor for all three: whole numbers of the forms
    indices = normals @ np.column_stack([a, b, c])
    indices /= np.abs(indices).max(axis=1)[:, None]
    forms = {tuple(hkl) for hkl in HABITS[shape].faces()[0]}
    np.testing.assert_allclose(indices, np.round(indices), atol=1e-6)
    assert {tuple(hkl) for hkl in np.round(indices)} == forms


def planes_of(sample) -> np.ndarray:
    """Indices (n, 3) of the planes of the crystal's mesh, the largest 1, and their areas (n,)."""
    assert sample.lattice is not None
    (mesh,) = sample.of("crystal")
    p, q, r = mesh.corners
    twice = np.cross(q - p, r - p)
    indices = twice @ sample.lattice.axes
    return indices / np.abs(indices).max(axis=1)[:, None], np.linalg.norm(twice, axis=1) / 2


@pytest.mark.parametrize("seed", [3, 5, 8])
def test_broken_crystals_keep_their_faces_but_for_the_break(seed: int) -> None:
    """One plane is new; the others are those of the crystal before, whose lattice stays."""
    whole, broken = (
        random_sample(np.random.default_rng(seed), 60.0, shape="thaumatin", film=False, wear=wear)
        for wear in ("none", "broken")
    )
    scale = broken.parameters["crystal_scale"] / whole.parameters["crystal_scale"]
    np.testing.assert_allclose(broken.lattice.axes, whole.lattice.axes)
    indices, areas = planes_of(broken)
    of_lattice = np.abs(indices - np.round(indices)).max(axis=1) < 1e-6
    assert {tuple(np.abs(hkl)) for hkl in np.round(indices[of_lattice])} <= {(1, 0, 1), (0, 1, 1)}
    assert len(np.unique(np.round(indices[~of_lattice], 6), axis=0)) == 1
    assert areas[~of_lattice].sum() > 0.02 * areas.sum()
    (before,), (after,) = whole.of("crystal"), broken.of("crystal")
    assert after.volume_um3 < 0.99 * scale**3 * before.volume_um3


@pytest.mark.parametrize("shape", HABITS)
def test_rounded_crystals_reach_as_far_along_every_face(shape: str) -> None:
    whole, rounded = (
        random_sample(np.random.default_rng(7), 60.0, shape=shape, film=False, wear=wear)
        for wear in ("none", "rounded")
    )
    (sharp,), (round_one,) = whole.of("crystal"), rounded.of("crystal")
    scale = rounded.parameters["crystal_scale"] / whole.parameters["crystal_scale"]
    normals = whole.lattice.normals(HABITS[shape].faces()[0])

    def width(mesh):  # between a face and that on the other side
        along = mesh.vertices @ normals.T
        return along.max(axis=0) - along.min(axis=0)

    np.testing.assert_allclose(width(round_one), scale * width(sharp), rtol=1e-6)
    assert 0.5 * scale**3 < round_one.volume_um3 / sharp.volume_um3 < 0.99 * scale**3
    flat = np.abs(planes_of(rounded)[0] - np.round(planes_of(rounded)[0])).max(axis=1) < 1e-6
    assert 0.1 < planes_of(rounded)[1][flat].sum() / planes_of(rounded)[1].sum() < 0.95


def test_an_unknown_wear() -> None:
    with pytest.raises(ValueError, match="wear 'thawed' is unknown"):
        random_sample(np.random.default_rng(1), 60.0, wear="thawed")


def test_the_demo_shows_a_bipyramid() -> None:
    indices, _ = planes_of(demo_sample())
    np.testing.assert_allclose(indices, np.round(indices), atol=1e-6)
    forms = {tuple(hkl) for hkl in HABITS["thaumatin"].faces()[0]}
    assert {tuple(hkl) for hkl in np.round(indices)} == forms


def test_other_shapes_have_no_lattice() -> None:
    sample = random_sample(np.random.default_rng(2), 60.0, shape="bipyramid", film=False)
    assert sample.lattice is None


@pytest.mark.parametrize(("offset", "sense"), [(0.0, 1), (7.3, -1), (181.0, 1)])
def test_diffraction_data_have_the_orientation_of_the_crystal(offset: float, sense: int) -> None:
    """Normals of the mesh, turned to the datum frame by hand, are along A h of the experiments."""
    pytest.importorskip("dxtbx", reason="dxtbx is not there")
    from anacor_dials.simulation.diffraction_data import simulate_diffraction
    from anacor_dials.simulation.diffraction_settings import DiffractionSettings, Sweep

    sample = random_sample(np.random.default_rng(4), 60.0, shape="lysozyme", film=False)
    settings = DiffractionSettings(
        d_min=15.0, sweeps=[Sweep(0.0, 20.0, 0.5)], angle_offset=offset, rotation_sense=sense
    )
    experiments, _ = simulate_diffraction(sample, np.random.default_rng(1), settings)
    lattice = experiments[0].crystal
    assert lattice.get_space_group().type().number() == 96
    a_matrix = np.reshape(lattice.get_A(), (3, 3))
    (mesh,) = sample.of("crystal")
    p, q, r = mesh.corners
    normals = np.cross(q - p, r - p)
    normals /= np.linalg.norm(normals, axis=1)[:, None]
    # the beam of I23 flies along -Z of the lab, and omega turns about +X: at omega = offset the
    # tomo axes are X, Y, Z of the lab for sense 1, and -X, -Y, Z for sense -1
    lab = normals * np.array([sense, sense, 1.0])
    angle = np.deg2rad(-offset)
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    datum = lab @ turn.T
    indices = datum @ np.linalg.inv(a_matrix).T
    indices /= np.abs(indices).max(axis=1)[:, None]
    np.testing.assert_allclose(indices, np.round(indices), atol=1e-5)
    forms = {tuple(hkl) for hkl in HABITS["lysozyme"].faces()[0]}
    assert {tuple(hkl) for hkl in np.round(indices)} == forms


def test_the_break_of_a_broken_crystal_is_no_lattice_plane() -> None:
    """Of the planes in its labels one is the break, by its normal; all others have indices {1 0 1}."""
    pytest.importorskip("dxtbx", reason="dxtbx is not there")
    from anacor_dials.diffraction.reflections import Alignment
    from anacor_dials.jobs.crystal_faces import find_faces, with_indices
    from anacor_dials.simulation.diffraction_data import simulate_diffraction
    from anacor_dials.simulation.diffraction_settings import DiffractionSettings, Sweep

    sample = random_sample(
        np.random.default_rng(1), 50.0, shape="thaumatin", film=False, wear="broken"
    )
    settings = DiffractionSettings(d_min=20.0, sweeps=[Sweep(0.0, 20.0, 0.5)], n_points=16)
    experiments, _ = simulate_diffraction(sample, np.random.default_rng(1), settings)
    (found,) = with_indices(find_faces(sample.label_volume(1.5)), experiments, Alignment())
    assert found.indices is not None
    is_plane = found.indices.is_lattice_plane
    assert np.count_nonzero(~is_plane) == 1
    indices = np.abs(found.indices.indices[is_plane])
    assert {tuple(hkl) for hkl in indices} == {(1, 0, 1), (0, 1, 1)}
    assert len(indices) >= 6
    # the normal of the break in the tomo frame: the columns of the lattice are along the box's axes
    assert sample.lattice is not None
    box = sample.lattice.axes / np.linalg.norm(sample.lattice.axes, axis=0)
    normal = box @ np.array(sample.parameters["broken"][:3])
    assert found.planes.normals[~is_plane][0] @ normal > np.cos(np.radians(0.5))
