"""Meshes of solids: the volumes of closed forms, and later materials displace earlier ones."""

from __future__ import annotations

import numpy as np
import pytest

from anacor_dials.simulation.sample_families import random_solids
from anacor_dials.simulation.sample_surfaces import sample_of_solids
from anacor_dials.simulation.solids import Solid, ellipsoid, moved

ORIGIN = np.zeros(3)


def test_spheres_have_their_volumes():
    solids = [
        Solid("liquor", ellipsoid((20, 20, 20)), ORIGIN, np.inf),
        Solid("crystal", moved(ellipsoid((9, 7, 8)), np.eye(3), (3, 0, 0)), ORIGIN, np.inf),
    ]
    sample = sample_of_solids(solids, 30.0)
    for material, volume in (("liquor", 20**3), ("crystal", 9 * 7 * 8)):
        (mesh,) = sample.of(material)
        # chords cut off some per cent of a surface of 8 um at steps of 1.5 um
        assert mesh.volume_um3 == pytest.approx(4 / 3 * np.pi * volume, rel=0.03)
    labels = sample.label_volume(1.0)
    counts = dict(zip(labels.names, labels.counts(), strict=True))
    assert counts["crystal"] == pytest.approx(4 / 3 * np.pi * 9 * 7 * 8, rel=0.03)
    assert counts["liquor"] == pytest.approx(4 / 3 * np.pi * (20**3 - 9 * 7 * 8), rel=0.03)


def test_what_is_longer_than_the_box_ends_there():
    solids = [Solid("crystal", ellipsoid((50, 6, 6)), ORIGIN, np.inf)]
    low, high = sample_of_solids(solids, (10.0, 20.0, 20.0)).bounds_um()
    assert low[0] == pytest.approx(-10, abs=0.8)
    assert high[0] == pytest.approx(10, abs=0.8)


@pytest.mark.parametrize("seed", range(6))
def test_random_samples_become_meshes(seed):
    solids, record = random_solids(np.random.default_rng(seed), 30.0)
    sample = sample_of_solids(solids, (40.0, 30.0, 30.0), step_um=2.0)
    assert sample.of("crystal")
    assert ("liquor" in [p.material for p in sample.parts]) == (record["liquor"] != "dry")
