"""Labels with polyhedra in place of crystals: volumes, what lies around them, and which are taken."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

from anacor_dials.absorption.convex_solid import ConvexSolid
from anacor_dials.diffraction.crystal_surface.polyhedra import (
    PlacedPolyhedron,
    finer_by,
    labels_of_polyhedra,
    polyhedron_fit,
)
from anacor_dials.jobs.labels_by_faces import labels_by_faces
from anacor_dials.sample.frames import rotation_about
from anacor_dials.sample.volumes import LabelVolume

TURN = rotation_about((1.0, 2.0, -0.5), 37.0)
AXES = np.concatenate([np.eye(3), -np.eye(3)])
ORIGIN = np.array([3.3, -2.1, 1.4])
CRYSTAL, LIQUOR = 3, 1


def box(turn: np.ndarray = TURN) -> PlacedPolyhedron:
    """24 x 20 x 16 um, at ORIGIN."""
    return PlacedPolyhedron(ConvexSolid(AXES @ turn.T, [12.0, 10, 8, 12, 10, 8]), ORIGIN)


def labels(inside, voxel: float = 1.2) -> LabelVolume:
    """A crystal where inside(x, y, z) is true, in a ball of liquor of 24 um."""
    n = round(60 / voxel)
    x, y, z = (np.indices((n, n, n)) - (n - 1) / 2) * voxel
    values = np.where(x * x + y * y + z * z < 24**2, LIQUOR, 0)
    return LabelVolume(np.where(inside(x, y, z), CRYSTAL, values).astype(np.uint8), voxel)  # type: ignore[arg-type]


def in_box(x, y, z):
    place = (np.stack([x, y, z], axis=-1) - ORIGIN) @ TURN
    return np.all(np.abs(place) < [12, 10, 8], axis=-1)


def empty(x, y, z):
    return np.zeros(x.shape, dtype=bool)


def crystal_volume(volume: LabelVolume) -> float:
    return float(volume.counts()[CRYSTAL] * volume.voxel_volume_um3)


@pytest.mark.parametrize("finer", [1, 2, 3])
def test_a_polyhedron_has_its_volume_and_its_place(finer):
    made = labels_of_polyhedra(labels(empty), [box()], finer)
    assert made.shape == (50 * finer,) * 3
    np.testing.assert_allclose(made.voxel_size_um, 1.2 / finer)
    assert crystal_volume(made) == pytest.approx(24 * 20 * 16, rel=0.02 / finer)
    places = made.position_um(np.argwhere(made.values == CRYSTAL))
    np.testing.assert_allclose(places.mean(axis=0), ORIGIN, atol=0.1 / finer)
    own = (places - ORIGIN) @ TURN
    np.testing.assert_allclose(own.var(axis=0), np.square([24, 20, 16]) / 12, rtol=0.04 / finer)
    # what is around it stays where it was
    ball = made.counts()[LIQUOR] * made.voxel_volume_um3 + crystal_volume(made)
    assert ball == pytest.approx(labels(empty).counts()[LIQUOR] * 1.2**3, rel=2e-3)
    around = made.position_um(np.argwhere(made.values > 0))
    np.testing.assert_allclose(around.mean(axis=0), 0, atol=1e-3)


def test_a_bite_is_filled_and_what_sticks_out_is_taken_away():
    def ragged(x, y, z):
        bite = (x - 12) ** 2 + (y - 4) ** 2 + (z - 6) ** 2 < 8**2
        knob = (x + 9) ** 2 + (y + 2) ** 2 + (z + 2) ** 2 < 3**2
        return (in_box(x, y, z) & ~bite) | knob

    given, whole = labels(ragged), labels(in_box)
    fit = polyhedron_fit(given, box())
    assert fit.labelled_um3 / fit.volume_um3 < 0.97
    assert fit.dice < 0.98
    assert not fit.leaves_volume
    made = labels_of_polyhedra(given, [box()])
    assert np.count_nonzero(made.values != whole.values) < 0.01 * whole.counts()[CRYSTAL]
    assert polyhedron_fit(whole, box()).dice > 0.98


def test_another_body_stays():
    def two(x, y, z):
        return in_box(x, y, z) | ((x + 15) ** 2 + (y - 12) ** 2 + (z + 8) ** 2 < 4**2)

    given = labels(two)
    other = crystal_volume(given) - crystal_volume(labels(in_box))
    made = labels_of_polyhedra(given, [box()], 2)
    assert crystal_volume(made) == pytest.approx(24 * 20 * 16 + other, rel=0.01)


def test_a_polyhedron_that_reaches_out_of_the_volume():
    far = PlacedPolyhedron(box().solid, ORIGIN + [25.0, 0, 0])
    assert polyhedron_fit(labels(in_box), far).leaves_volume


def test_how_fine_voxels_are_made():
    for voxel, finer in ((1.2, 3), (0.6, 2), (0.4, 1)):
        assert finer_by(LabelVolume(np.zeros((9, 9, 9), np.uint8), voxel)) == finer  # type: ignore[arg-type]


def test_what_is_asked_for():
    with pytest.raises(ValueError, match=r"labels\.crystal is 'mesh'; it is one of voxels, faces"):
        labels_by_faces(labels(in_box), None, "mesh")
    assert labels_by_faces(labels(in_box), None, "voxels") is None
    assert labels_by_faces(labels(in_box), None, "auto") is None
    made = labels_by_faces(labels(in_box), None, "faces")
    assert made is not None
    (warning,) = made.warnings
    assert "stays as it was labelled: the volume has no crystal that is large enough" in warning
