"""Faces found in labels, against voxelised polyhedra whose planes and lattice are made here by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("dxtbx", reason="dxtbx is not there")

from dxtbx.model import Crystal
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial import ConvexHull, HalfspaceIntersection
from scipy.spatial.transform import Rotation

from anacor_dials.diffraction.alignment.from_faces import FaceAlignment, align_by_faces, resolved
from anacor_dials.diffraction.crystal_surface import surface_points
from anacor_dials.diffraction.crystal_surface.indices import index_faces, lattice_planes
from anacor_dials.diffraction.crystal_surface.planes import surface_planes
from anacor_dials.diffraction.crystal_surface.surface_points import crystal_surfaces
from anacor_dials.diffraction.reflections import Alignment
from anacor_dials.jobs.crystal_faces import find_faces
from anacor_dials.sample.volumes import LabelVolume

THAUMATIN = (57.8, 150.2, "P 41 21 2")
LYSOZYME = (79.1, 37.9, "P 43 21 2")
BIPYRAMID = [(h, k, l) for h, k in ((1, 0), (-1, 0), (0, 1), (0, -1)) for l in (1, -1)]
PRISM = [(h, k, 0) for h in (1, -1) for k in (1, -1)]


def normals_of(hkl, a: float, c: float, rotation: Rotation) -> np.ndarray:
    """Unit normals (n, 3) of planes of a tetragonal cell: (h/a, k/a, l/c), turned."""
    vectors = np.array(hkl) / np.array([a, a, c])
    return rotation.apply(vectors / np.linalg.norm(vectors, axis=1)[:, None])


def voxelised(
    normals: np.ndarray,
    distances: np.ndarray,
    voxel=(1.0, 1.0, 1.0),
    centre_um=(0.3, -0.4, 0.2),
    roughness: float = 0.0,
    seed: int = 0,
    rounding: float = 0.0,
) -> LabelVolume:
    """Voxels whose centre is behind all planes; the surface is displaced at random, rms in um."""
    voxel = np.array(voxel)
    corners = HalfspaceIntersection(
        np.column_stack([normals, -distances]), np.zeros(3)
    ).intersections
    reach = np.abs(corners).max(axis=0) + 3.0
    n = np.ceil(reach / voxel).astype(int) + 4
    axes = [np.arange(-m, m + 1) * s - c for m, s, c in zip(n, voxel, centre_um, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    beyond = [
        u * x + v * y + w * z - (d - rounding)
        for (u, v, w), d in zip(normals, distances, strict=True)
    ]
    if rounding:  # the soft maximum rounds the edges over about this length
        top = np.maximum.reduce(beyond)
        soft = top + rounding * np.log(sum(np.exp((b - top) / rounding) for b in beyond))
        field = soft - rounding
    else:
        field = np.maximum.reduce(beyond)
    if roughness:
        noise = gaussian_filter(np.random.default_rng(seed).standard_normal(field.shape), 1.5)
        field = field + noise * roughness / noise.std()
    return LabelVolume((3 * (field < 0)).astype(np.uint8), voxel, n.astype(float))


def matched(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The true normal that is nearest to each one found, and the angle, deg."""
    cosines = np.clip(found @ true.T, -1, 1)
    return np.argmax(cosines, axis=1), np.degrees(np.arccos(cosines.max(axis=1)))


# ---- planes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("voxel", [(1.0, 1.0, 1.0), (0.8, 1.0, 1.1)])
def test_planes_of_a_bipyramid(voxel) -> None:
    """Normals, distances and areas of eight unequal faces; the areas by a hull of the corners."""
    true = normals_of(BIPYRAMID, *THAUMATIN[:2], Rotation.from_rotvec([0.4, 1.0, -0.7]))
    distances = np.array([24.0, 27.0, 26.0, 23.0, 25.0, 26.5, 25.5, 24.5])
    (surface,) = crystal_surfaces(voxelised(true, distances, voxel))
    planes = surface_planes(surface)
    assert len(planes) == 8
    which, angle = matched(planes.normals, true)
    assert sorted(which) == list(range(8))
    assert angle.max() < 0.4
    shift = true @ np.array([0.3, -0.4, 0.2])
    np.testing.assert_allclose(planes.distances_um, (distances + shift)[which], atol=0.15)
    corners = HalfspaceIntersection(np.column_stack([true, -distances]), np.zeros(3)).intersections
    hull = ConvexHull(corners)
    assert surface.volume_um3 == pytest.approx(hull.volume, rel=0.02)
    p, q, r = (hull.points[hull.simplices[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(q - p, r - p), axis=1) / 2
    areas = np.bincount(matched(hull.equations[:, :3], true)[0], area, minlength=8)
    # the surface of labels loses a strip of about a voxel along every edge
    np.testing.assert_allclose(planes.areas_um2, areas[which], rtol=0.15)
    assert planes.flat_share > 0.9


def test_the_hollow_of_a_broken_tip_is_no_face() -> None:
    """A quarter of a bipyramid is missing within a ball about its tip; what is left of its faces is found."""
    true = normals_of(BIPYRAMID, *THAUMATIN[:2], Rotation.identity())
    labels = voxelised(true, np.full(8, 22.0))
    places = np.argwhere(labels.values == 3)
    tip = places[np.argmax(places[:, 2])]
    far = np.linalg.norm(places - tip, axis=1)
    labels.values[tuple(places[far < np.quantile(far, 0.26)].T)] = 0
    planes = surface_planes(crystal_surfaces(labels)[0])
    which, angle = matched(planes.normals, true)
    assert angle.max() < 3.0
    assert len(set(which)) == len(which) > 4


def test_rough_labels_and_their_quoted_errors() -> None:
    """Errors of a voxel (rms): normals within 3 deg, and the errors quoted are of that size."""
    pulls = []
    for seed in range(3):
        rotation = Rotation.random(random_state=seed)
        true = normals_of(BIPYRAMID, *THAUMATIN[:2], rotation)
        labels = voxelised(true, np.linspace(26.0, 31.0, 8), roughness=1.0, seed=seed)
        planes = surface_planes(crystal_surfaces(labels)[0])
        which, angle = matched(planes.normals, true)
        assert sorted(which) == list(range(8))
        assert angle.max() < 3.0
        # the angle has two components
        pulls += list(angle / np.sqrt(2) / np.hypot(planes.normal_errors_deg, 0.2))
    assert 0.4 < np.sqrt(np.mean(np.square(pulls))) < 2.5


def blob(semi_axes, roughness: float = 0.0) -> LabelVolume:
    """An ellipsoid of these half axes in um, with a displaced surface."""
    n = int(max(semi_axes)) + 8
    line = np.arange(-n, n + 1.0)
    x, y, z = np.meshgrid(line, line, line, indexing="ij", sparse=True)
    a, b, c = semi_axes
    radius = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2) * min(semi_axes)
    noise = gaussian_filter(np.random.default_rng(1).standard_normal(radius.shape), 1.5)
    inside = radius + noise * roughness / noise.std() < min(semi_axes)
    return LabelVolume((3 * inside).astype(np.uint8), 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("axes", "roughness"), [((26, 26, 26), 0.0), ((32, 26, 20), 1.0)])
def test_round_crystals_have_no_faces(axes, roughness: float) -> None:
    (one,) = find_faces(blob(axes, roughness))
    assert not one.has_faces
    assert "rounded, broken or thawed" in one.reason


def test_faces_with_round_edges_keep_their_normals() -> None:
    true = normals_of(BIPYRAMID, *THAUMATIN[:2], Rotation.from_rotvec([0.2, -0.5, 1.4]))
    labels = voxelised(true, np.linspace(28.0, 31.0, 8), rounding=1.5)
    (one,) = find_faces(labels)
    assert one.has_faces
    which, angle = matched(one.planes.normals, true)
    assert len(set(which)) == len(which) >= 6
    assert angle.max() < 2.0


def test_the_quoted_errors_hold_where_round_edges_turn_the_normals() -> None:
    """A ball has rolled around prisms with pyramids: small faces are found up to 5 deg off, and say so."""
    angles, pulls = [], []
    for seed, radius in ((0, 7.0), (1, 5.0), (2, 6.0)):
        true = normals_of(PRISM + BIPYRAMID, *LYSOZYME[:2], Rotation.random(random_state=seed))
        distances = np.random.default_rng(seed).uniform(0.94, 1.06, 12) * ([19.0] * 4 + [21.0] * 8)
        labels = voxelised(true, distances - radius)
        padded = np.pad(labels.values, int(radius) + 2)
        round_one = distance_transform_edt(padded == 0) < radius + 0.5
        (one,) = find_faces(LabelVolume((3 * round_one).astype(np.uint8), np.ones(3), None))
        assert one.has_faces
        which, angle = matched(one.planes.normals, true)
        assert sorted(which) == list(range(12))
        angles += list(angle)
        # the angle has two components
        pulls += list(angle / np.sqrt(2) / np.hypot(one.planes.normal_errors_deg, 0.1))
    assert max(angles) > 3.0
    assert np.sqrt(np.mean(np.square(pulls))) < 1.25
    assert max(pulls) < 2.2


def test_two_crystals_are_two() -> None:
    first = voxelised(
        normals_of(BIPYRAMID, *THAUMATIN[:2], Rotation.from_rotvec([0.4, 1.0, -0.7])),
        np.full(8, 24.0),
    )
    second = voxelised(
        normals_of(PRISM + BIPYRAMID, *LYSOZYME[:2], Rotation.identity()), np.full(12, 17.0)
    )
    size = [a + b + 2 for a, b in zip(first.shape, second.shape, strict=True)]
    values = np.zeros(size, dtype=np.uint8)
    values[tuple(slice(0, n) for n in first.shape)] = first.values
    values[tuple(slice(-n, None) for n in second.shape)] = second.values
    surfaces = crystal_surfaces(LabelVolume(values, 1.0))  # type: ignore[arg-type]
    assert [len(surface_planes(s)) for s in surfaces] == [8, 12]
    assert surfaces[0].volume_um3 > surfaces[1].volume_um3


def test_large_volumes_are_averaged_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2 x 2 x 2 voxels give the same planes, to a part of a voxel."""
    true = normals_of(BIPYRAMID, *THAUMATIN[:2], Rotation.from_rotvec([0.4, 1.0, -0.7]))
    distances = np.linspace(22.0, 26.0, 8)
    labels = voxelised(true, distances, (0.6, 0.6, 0.6))
    monkeypatch.setattr(surface_points, "MOST_VOXELS", labels.values.size // 8)
    (surface,) = crystal_surfaces(labels)
    assert surface.voxel_um == pytest.approx(1.2)
    planes = surface_planes(surface)
    which, angle = matched(planes.normals, true)
    assert sorted(which) == list(range(8))
    assert angle.max() < 0.5
    shift = true @ np.array([0.3, -0.4, 0.2])
    np.testing.assert_allclose(planes.distances_um, (distances + shift)[which], atol=0.15)


# ---- Miller indices ------------------------------------------------------------------------------


def crystal_of(a: float, c: float, group: str, rotation: Rotation) -> Crystal:
    """A tetragonal crystal whose axes, along x, y, z, are turned; the datum frame."""
    return Crystal(*(tuple(v) for v in rotation.apply(np.diag([a, a, c]))), group)


@pytest.mark.parametrize(
    ("group", "forms"),
    [
        ("P 2 3", ["001", "011", "111"]),
        ("F 2 3", ["111", "001", "011"]),  # 111, 200, 220
        ("I 2 3", ["011", "001", "112"]),  # 110, 200, 211
        ("F d -3 m", ["111", "011", "113"]),  # diamond: 111, 220, 311; 400 comes later
    ],
)
def test_the_law_of_donnay_and_harker(group: str, forms: list[str]) -> None:
    """The first three forms of cubic lattices, as in textbooks of morphology."""
    planes = lattice_planes(Crystal((90, 0, 0), (0, 90, 0), (0, 0, 90), group))
    names = ["".join(map(str, sorted(abs(h)))) for h in planes.indices]
    assert list(dict.fromkeys(names))[:3] == forms
    sizes = {"001": 6, "011": 12, "111": 8, "112": 24, "113": 24}
    total = 0
    for form in forms:
        total += sizes[form]
        mine = [i for i, name in enumerate(names) if name == form]
        assert len(mine) == sizes[form]
        np.testing.assert_array_equal(planes.rank[mine], total)
        assert len(set(planes.form[mine])) == 1


def test_faces_get_their_indices() -> None:
    """Normals that are off by 0.5 deg, of a low form; one face that is no plane of the lattice."""
    a, c, group = LYSOZYME
    rotation = Rotation.from_rotvec([1.0, 0.3, -0.6])
    hkl = PRISM + BIPYRAMID
    rng = np.random.default_rng(2)
    normals = normals_of(hkl, a, c, rotation) + np.radians(0.5) * rng.normal(size=(12, 3))
    odd = rotation.apply([[0.35, 0.22, 0.91]])
    normals = np.vstack([normals, odd])
    normals /= np.linalg.norm(normals, axis=1)[:, None]
    found = index_faces(
        normals, np.full(13, 0.5), lattice_planes(crystal_of(a, c, group, rotation))
    )
    assert [tuple(h) for h in found.indices[:12]] == [tuple(map(float, h)) for h in hkl]
    assert found.is_lattice_plane.tolist() == 12 * [True] + [False]
    # a face that is no lattice plane has fractional indices along its normal
    np.testing.assert_allclose(
        normals_of(found.indices[12:], a, c, rotation), odd / np.linalg.norm(odd), atol=1e-3
    )


# ---- the alignment -------------------------------------------------------------------------------


def to_datum(offset_deg: float, sense: int) -> np.ndarray:
    """A beam along -z and an axis along x: tomo axes are (s, s, 1) of the lab at omega = offset."""
    turn = Rotation.from_rotvec([-np.radians(offset_deg), 0, 0]).as_matrix()
    return turn @ np.diag([sense, sense, 1.0])


def faces_at(offset: float, sense: int, hkl, cell, rotation: Rotation):
    """Normals in the tomo frame of a crystal whose lattice in the datum frame is turned so."""
    a, c, group = cell
    normals = normals_of(hkl, a, c, rotation) @ to_datum(offset, sense)
    return normals, lattice_planes(crystal_of(a, c, group, rotation))


@pytest.mark.parametrize("sense", [1, -1])
@pytest.mark.parametrize("offset", [7.3, 181.0])
@pytest.mark.parametrize("shape", ["thaumatin", "lysozyme"])
def test_hidden_alignments_are_found_in_labels(offset: float, sense: int, shape: str) -> None:
    """Within 0.5 deg from labels whose surface is wrong by half a voxel (rms), by faces of 20 to 35."""
    hkl, cell = (BIPYRAMID, THAUMATIN) if shape == "thaumatin" else (PRISM + BIPYRAMID, LYSOZYME)
    rotation = Rotation.from_rotvec([0.3, -0.8, 0.5])
    normals, lattice = faces_at(offset, sense, hkl, cell, rotation)
    distances = np.random.default_rng(5).uniform(29, 33, len(normals))
    labels = voxelised(normals, distances, roughness=0.5)
    planes = surface_planes(crystal_surfaces(labels)[0])
    fit = align_by_faces(
        planes.normals, planes.normal_errors_deg, lattice, to_datum, Alignment(90.0, 1)
    )
    assert fit.determined, fit.reason
    assert fit.sense == fit.after.rotation_sense == sense
    assert abs((fit.offset_deg - offset + 180) % 360 - 180) < 0.5
    assert 0.05 < fit.offset_error_deg < 0.6
    assert abs(fit.after.angle_offset_deg - 90.0) <= 180
    assert fit.tilt_deg < 1.5
    assert fit.contradicts(90.0, 1)
    assert not fit.contradicts(offset + 0.5, sense)


def test_the_error_of_the_offset_is_that_of_many_trials() -> None:
    rotation = Rotation.from_rotvec([0.3, -0.8, 0.5])
    exact, lattice = faces_at(33.0, 1, BIPYRAMID, THAUMATIN, rotation)
    rng = np.random.default_rng(8)
    pulls = []
    for _ in range(20):
        normals = exact + np.radians(1.0) * rng.normal(size=exact.shape)
        normals /= np.linalg.norm(normals, axis=1)[:, None]
        fit = align_by_faces(normals, np.full(8, 1.0), lattice, to_datum, Alignment())
        assert fit.determined
        pulls.append((fit.offset_deg - 33.0) / fit.offset_error_deg)
    assert 0.6 < np.sqrt(np.mean(np.square(pulls))) < 1.5


def test_a_symmetric_crystal_has_rivals() -> None:
    """With the fourfold axis along the rotation axis, four offsets, and both senses, are alike."""
    rotation = Rotation.from_euler("y", 90, degrees=True)  # c along x
    normals, lattice = faces_at(10.0, 1, PRISM + BIPYRAMID, LYSOZYME, rotation)
    fit = align_by_faces(normals, np.full(12, 0.5), lattice, to_datum, Alignment())
    assert not fit.determined
    assert "too symmetric about the rotation axis" in fit.reason
    assert fit.after == fit.before
    alike = {(round((x - 10) / 90) % 4, sense) for x, sense, less in fit.rivals if less < 0.1}
    assert len(alike) == 7
    # what the intensities say chooses one of them
    chosen = resolved(fit, 98.0, 1, 2.0)
    assert chosen.determined
    assert chosen.after.angle_offset_deg == pytest.approx(100.0, abs=0.1)
    assert not resolved(fit, 55.0, 1, 2.0).determined


def test_mirrored_labels_look_like_another_alignment() -> None:
    """The mirror image in X fits half a turn away: the faces cannot see it, as their page says."""
    rotation = Rotation.from_rotvec([0.3, -0.8, 0.5])
    normals, lattice = faces_at(20.0, 1, BIPYRAMID, THAUMATIN, rotation)
    mirrored = normals * np.array([-1.0, 1.0, 1.0])
    fit = align_by_faces(mirrored, np.full(8, 0.5), lattice, to_datum, Alignment())
    assert fit.offset_deg == pytest.approx(200.0, abs=0.1)
    assert fit.sense == 1


def test_faces_of_another_crystal_determine_nothing() -> None:
    """Random polyhedra: no alignment is far more likely than chance."""
    lattice = lattice_planes(crystal_of(*LYSOZYME, Rotation.identity()))
    for seed in range(10):
        normals = np.random.default_rng(seed).normal(size=(14, 3))
        normals /= np.linalg.norm(normals, axis=1)[:, None]
        fit = align_by_faces(normals, np.full(14, 1.0), lattice, to_datum, Alignment())
        assert not fit.determined
    few = align_by_faces(normals[:2], np.full(2, 1.0), lattice, to_datum, Alignment())
    assert few.reason == "the crystal has 2 faces"


def test_a_tilted_sample_is_a_warning() -> None:
    """Normals that are turned by 4 deg about an axis across the rotation axis."""
    rotation = Rotation.from_rotvec([0.3, -0.8, 0.5])
    normals, lattice = faces_at(20.0, 1, BIPYRAMID, THAUMATIN, rotation)
    tilted = Rotation.from_rotvec([0, np.radians(4.0), 0]).apply(normals)
    fit = align_by_faces(tilted, np.full(8, 1.0), lattice, to_datum, Alignment())
    assert fit.determined
    assert fit.tilt_deg == pytest.approx(4.0, abs=0.7)
    assert "turned by" in fit.warnings[0]
    assert replace(fit, tilt_deg=0.5).warnings == []
    assert isinstance(fit, FaceAlignment)
