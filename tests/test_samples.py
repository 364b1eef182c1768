"""The built-in maker: closed, separate, recorded; labels of the same meshes; bad samples refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anacor_dials.sample.materials import Composition
from anacor_dials.simulation.meshes import box, require_no_self_intersection, sphere
from anacor_dials.simulation.sample_parameters import CRYSTAL_SHAPES, random_parameters
from anacor_dials.simulation.samples import (
    Part,
    Sample,
    build_sample,
    cut_box_sample,
    default_materials,
    random_sample,
    sample_from_meshes,
)


@pytest.mark.parametrize("shape", CRYSTAL_SHAPES)
@pytest.mark.parametrize("film", [False, True])
def test_random_samples_are_closed_and_whole(shape: str, film: bool) -> None:
    """Meshes check their own edges; here that none meets itself and that all materials are there."""
    sample = random_sample(np.random.default_rng(5), 60.0, shape=shape, film=film)
    for mesh in sample.meshes:
        require_no_self_intersection(mesh)
    volume = sample.label_volume(2.0)
    assert np.all(volume.counts() > 0)
    assert volume.names == ("background", "liquor", "loop", "crystal")
    assert volume.edge_fraction("crystal") == 0
    assert volume.edge_fraction("liquor") == 0


def test_the_same_numbers_make_the_same_sample() -> None:
    first, second = (random_parameters(np.random.default_rng(8)) for _ in range(2))
    assert first == second
    a, b = build_sample(first), build_sample(second)
    for mesh, other in zip(a.meshes, b.meshes, strict=True):
        np.testing.assert_array_equal(mesh.vertices, other.vertices)
    assert a.parameters["crystal_size"] == first.crystal_size


def test_a_bipyramid_is_one() -> None:
    """Eight equal faces about a fourfold axis; the volume is a sixth of the box's, less cut tips."""
    parameters = random_parameters(np.random.default_rng(3), 50.0, shape="bipyramid", film=False)
    whole = replace(parameters, crystal_distances=(1.1,) * 6)
    sample = build_sample(whole)
    (mesh,) = sample.of("crystal")
    a, b, c = np.array(parameters.crystal_size) * sample.parameters["crystal_scale"]
    assert a == pytest.approx(b)
    assert c != pytest.approx(a, rel=0.1)
    assert mesh.volume_um3 == pytest.approx(a * b * c / 6)
    p, q, r = mesh.corners
    area = np.linalg.norm(np.cross(q - p, r - p), axis=1) / 2
    assert len(area) == 8
    # half the product of an edge of the square and the height of the face
    np.testing.assert_allclose(area, 0.5 * (a / 2**0.5) * np.hypot(c / 2, a / 8**0.5))
    cut = replace(parameters, crystal_distances=(1.1, 1.1, 0.9, 1.1, 1.1, 1.1))
    (mesh,) = build_sample(cut).of("crystal")
    # a tenth of a half is gone from one tip: (1 - 0.1^3 / 2) of the volume stays
    factor = build_sample(cut).parameters["crystal_scale"] / sample.parameters["crystal_scale"]
    assert mesh.volume_um3 == pytest.approx(factor**3 * (1 - 0.0005) * a * b * c / 6)


def test_label_volume_is_the_mesh() -> None:
    sample = cut_box_sample()
    volume = sample.label_volume(1.0)
    crystal = volume.values == volume.label("crystal")
    (mesh,) = sample.of("crystal")
    assert crystal.sum() * volume.voxel_volume_um3 == pytest.approx(mesh.volume_um3, rel=2e-3)
    middle = volume.position_um(np.array(np.nonzero(crystal)).mean(axis=1))
    np.testing.assert_allclose(middle, mesh.centroid_um, atol=0.05)


def test_label_volume_on_a_given_grid() -> None:
    volume = cut_box_sample().label_volume((2.0, 3.0, 4.0), (100, 60, 30))
    assert volume.shape == (100, 60, 30)
    np.testing.assert_array_equal(volume.centre, (49.5, 29.5, 14.5))


def test_optical_constants_by_label() -> None:
    sample = cut_box_sample()
    mu, delta = sample.mu_per_um(3.5), sample.delta(3.5)
    assert mu[0] == delta[0] == 0
    # 8-9 % less absorption in the crystal than in the liquor, but more refraction
    assert 0.85 < mu[3] / mu[1] < 0.99
    assert delta[3] > delta[1]


def test_bubbles_are_background() -> None:
    sample = sample_from_meshes(
        {"liquor": sphere(50.0, 3), "crystal": box((10, 10, 10)),
         "bubble": [sphere(5.0, 2).moved(shift_um=(25, 0, 0))]}
    )  # fmt: skip
    volume = sample.label_volume(1.0)
    i, j, k = np.round(volume.index((25.0, 0, 0))).astype(int)
    assert volume.values[i, j, k] == 0


def test_further_materials_get_labels_of_their_own() -> None:
    sample = sample_from_meshes(
        {"crystal": box((10, 10, 10)), "wire": box((4, 4, 4)).moved(shift_um=(20, 0, 0))},
        {"wire": Composition.parse("W", 19.3)},
    )
    assert sample.names == ("background", "liquor", "loop", "crystal", "wire")


# ---- bad input -------------------------------------------------------------------------------------


def test_overlapping_materials() -> None:
    with pytest.raises(ValueError, match="The loop and the crystal overlap"):
        sample_from_meshes(
            {"crystal": box((10, 10, 10)), "loop": box((4, 4, 4)).moved(shift_um=(6, 0, 0))}
        )


def test_one_material_within_another() -> None:
    with pytest.raises(ValueError, match="overlap"):
        sample_from_meshes({"crystal": box((2, 2, 2)), "loop": box((9, 9, 9))})


def test_no_crystal() -> None:
    with pytest.raises(ValueError, match="needs a part of the material 'crystal'"):
        sample_from_meshes({"liquor": sphere(5.0)})


def test_unknown_material() -> None:
    with pytest.raises(ValueError, match="'glue', which is not among the materials"):
        sample_from_meshes({"crystal": box((2, 2, 2)), "glue": sphere(5.0)})


def test_order_of_parts() -> None:
    parts = (Part("crystal", box((2, 2, 2)), ("liquor",)), Part("liquor", sphere(5.0)))
    with pytest.raises(ValueError, match="must come later"):
        Sample(parts, default_materials())


def test_unknown_shape() -> None:
    with pytest.raises(ValueError, match="shape 'ball' is unknown"):
        random_parameters(np.random.default_rng(1), shape="ball")
