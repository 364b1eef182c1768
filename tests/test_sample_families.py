"""Random samples: every family builds, is what its name says, and follows from its seed."""

from __future__ import annotations

import numpy as np
import pytest

from anacor_dials.simulation.sample_families import (
    CRYSTAL_FAMILIES,
    LIQUOR_FAMILIES,
    MOUNT_FAMILIES,
    random_crystal,
    random_mount,
    random_solids,
)
from anacor_dials.simulation.solids import (
    Solid,
    on_grid,
    union,
)

# ---- random samples -------------------------------------------------------------------------------

LEVELS = {name: (float(k),) for k, name in enumerate(
    ("background", "liquor", "loop", "crystal", "salt", "ice", "dirt", "pin"))}  # fmt: skip
LABELS = {name: int(level[0]) for name, level in LEVELS.items()}
RADIUS, N, VOXEL = 40.0, 64, 1.4


def inside_shares(distance, n=64, voxel=1.0, centre=None, radius=np.inf, at=(0.0, 0.0, 0.0)):
    """The share of each voxel that lies inside, and the labels."""
    solid = Solid("crystal", distance, np.asarray(at, dtype=float), radius)
    middle = np.full(3, (n - 1) / 2) if centre is None else centre
    (share,), found = on_grid(
        [solid], {"crystal": (1.0,)}, {"crystal": 3}, (n, n, n), voxel, middle
    )
    return share.astype(np.float64), found


def sample(seed, **families):
    """(labels by material, record) of a random sample."""
    solids, record = random_solids(np.random.default_rng(seed), RADIUS, **families)
    (_,), found = on_grid(solids, LEVELS, LABELS, (N, N, N), VOXEL, np.full(3, (N - 1) / 2))
    return found, record


def share_of(found, material):
    return np.mean(found == LABELS[material])


def touching(found, first, second):
    """How many faces of voxels of one material touch another."""
    a, b = found == LABELS[first], found == LABELS[second]
    return sum(
        np.count_nonzero(np.diff(a.astype(np.int8), axis=k) != 0)
        and np.count_nonzero(
            (a.swapaxes(0, k)[1:] & b.swapaxes(0, k)[:-1])
            | (b.swapaxes(0, k)[1:] & a.swapaxes(0, k)[:-1])
        )
        for k in range(3)
    )


@pytest.mark.parametrize("family", CRYSTAL_FAMILIES)
def test_every_family_of_crystals(family):
    """It is there, of about its size, within reach, the same for a seed and another for another."""
    volumes = []
    for seed in range(6):
        solid, _ = random_crystal(family, 14.0, np.random.default_rng(seed))
        again, _ = random_crystal(family, 14.0, np.random.default_rng(seed))
        share, _ = inside_shares(solid, 72, 1.5)
        np.testing.assert_array_equal(share, inside_shares(again, 72, 1.5)[0])
        # on_grid looks no further than 3.2 sizes
        r = np.sqrt(((np.argwhere(share > 0) - 35.5) ** 2).sum(axis=1)) * 1.5
        assert r.max() < 3.2 * 14.0
        volumes.append(share.sum() * 1.5**3)
    volumes = np.array(volumes) / 28.0**3
    assert volumes.min() > 0.03
    assert volumes.max() < 5
    assert len(set(volumes.round(6))) == 6


def test_shapes_of_the_families_differ():
    """A plate is flat, a needle long, a polyhedron neither: half axes by the second moments of the volume."""
    axes = {}
    for family in ("plate", "needle", "polyhedron"):
        found = []
        for seed in range(8):
            solid, _ = random_crystal(family, 14.0, np.random.default_rng(seed))
            share, _ = inside_shares(solid, 72, 1.5)
            where = np.argwhere(share > 0.5)
            found.append(np.sqrt(np.linalg.eigvalsh(np.cov(where.T))))
        axes[family] = np.mean(found, axis=0)
    flat = {family: a[0] / a[1] for family, a in axes.items()}
    long = {family: a[2] / a[1] for family, a in axes.items()}
    assert flat["plate"] < 0.55 < flat["polyhedron"]
    assert long["needle"] > 1.9 > long["polyhedron"]
    with pytest.raises(ValueError, match="unknown"):
        random_crystal("cube", 10.0, np.random.default_rng(0))


@pytest.mark.parametrize("family", MOUNT_FAMILIES)
def test_every_family_of_mounts(family):
    """It is there, about its origin, and the same for a seed; of the loop's material, but for a pin."""
    for seed in range(5):
        solids, material = random_mount(family, 25.0, np.random.default_rng(seed))
        assert material in ("nylon", "polyimide")
        assert {m for m, _ in solids} <= {"loop", "pin"}
        if family == "none":
            assert not solids
            continue
        share, _ = inside_shares(union(*(d for _, d in solids)), 64, 1.4)
        assert 0.001 < share.mean() < 0.4
        again, _ = random_mount(family, 25.0, np.random.default_rng(seed))
        np.testing.assert_array_equal(
            share, inside_shares(union(*(d for _, d in again)), 64, 1.4)[0]
        )
        if family in ("ring", "capillary"):  # hollow
            first, _ = inside_shares(solids[0][1], 64, 1.4, radius=np.inf)
            assert first[31:33, 31:33, 31:33].max() == 0


def test_a_film_closes_the_ring():
    for seed in range(4):
        (_, loop), *_ = random_mount("film", 25.0, np.random.default_rng(seed))[0]
        found = np.asarray(loop(*np.array([[5.0, 0.1, 0.0], [-3.0, 4.0, 0.0]]).T))
        assert np.all(found < 0)


@pytest.mark.parametrize("family", LIQUOR_FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_every_family_of_liquor(family, seed):
    found, record = sample(seed, liquor=family, crystal="polyhedron", mount="ring")
    assert (record["liquor"], record["shape"], record["mount"]) == (family, "polyhedron", "ring")
    assert share_of(found, "crystal") > (0.0005 if family == "huge" else 0.005)
    again, same = sample(seed, liquor=family, crystal="polyhedron", mount="ring")
    np.testing.assert_array_equal(found, again)
    assert record == same
    other, _ = sample(seed + 100, liquor=family, crystal="polyhedron", mount="ring")
    assert np.any(other != found)


SEEDS = range(12)


def of_family(liquor, **families):
    return [
        sample(seed, liquor=liquor, crystal="polyhedron", mount="none", **families)[0]
        for seed in SEEDS
    ]


def test_dry_samples_have_no_liquor():
    for mount in ("none", "ring", "capillary"):
        for seed in SEEDS:
            found, _ = sample(seed, liquor="dry", mount=mount)
            assert not np.any(found == LABELS["liquor"])


def test_a_skin_covers_the_crystal():
    """Nearly all of the crystal's surface touches liquor, of which there is but little."""
    covered, amount = [], []
    for found in of_family("skin"):
        wet, bare = touching(found, "crystal", "liquor"), touching(found, "crystal", "background")
        covered.append(wet / (wet + bare))
        amount.append(share_of(found, "liquor") / share_of(found, "crystal"))
    assert min(covered) > 0.8
    assert np.median(covered) > 0.98
    assert np.median(amount) < 2.5


def test_what_protrudes_sticks_out():
    """How much of the crystal's surface is in air: of all families the share is another one.

    Over some that protrude a film of liquor clings to the crystal.
    """
    bare = {}
    for family in ("drop", "protruding", "remnant", "huge", "dry"):
        found = of_family(family)
        wet = np.array([touching(f, "crystal", "liquor") for f in found])
        dry = np.array([touching(f, "crystal", "background") for f in found])
        bare[family] = dry / (wet + dry)
    assert np.all(bare["dry"] > 0.9)  # salt or dirt may lie on it
    assert np.median(bare["protruding"]) > 0.1
    assert np.mean(bare["protruding"] > 0.03) > 0.6
    assert np.mean(bare["protruding"] < 0.97) > 0.8
    assert np.median(bare["drop"]) < np.median(bare["protruding"]) - 0.15
    assert np.median(bare["huge"]) < 0.02
    assert np.median(bare["remnant"]) > np.median(bare["protruding"])


def test_a_huge_drop_dwarfs_its_crystal():
    ratios = {
        family: np.median(
            [share_of(f, "liquor") / share_of(f, "crystal") for f in of_family(family)]
        )
        for family in ("drop", "huge", "remnant")
    }
    assert ratios["huge"] > 3 * ratios["drop"] > 3 * ratios["remnant"]


def test_traits_are_what_is_there():
    """What the record says of salt, ice, dirt and bubbles is in the volume, and nothing else."""
    seen = set()
    for seed in range(60):
        solids, record = random_solids(np.random.default_rng(seed), RADIUS)
        materials = [s.material for s in solids]
        for name in ("salt", "ice", "dirt"):
            assert (name in materials) == (name in record["traits"])
        assert ("background" in materials) == ("bubbles" in record["traits"])
        assert ("liquor" in materials) == (record["liquor"] != "dry")
        assert materials[-1] == "crystal"
        seen |= set(record["traits"])
    assert seen >= {"salt", "ice", "dirt", "bubbles", "rounded", "cracked", "several"}


def test_the_spheres_hold_their_solids():
    """Nothing of a solid lies outside of the sphere that on_grid looks in."""
    for seed in range(40):
        solids, _ = random_solids(np.random.default_rng(seed), RADIUS)
        points = np.random.default_rng(seed).uniform(-80, 80, (40_000, 3))
        for solid in solids:
            if np.isfinite(solid.radius):
                far = np.max(np.abs(points - solid.centre), axis=1) > solid.radius
                assert not np.any(solid.distance(*points[far].T) < 0), (seed, solid.material)


def test_families_are_drawn_as_often_as_they_should():
    """All of them within 200 samples, and the most frequent ones most often."""
    records = [random_solids(np.random.default_rng(seed), RADIUS)[1] for seed in range(200)]
    for key, families in (
        ("shape", CRYSTAL_FAMILIES),
        ("liquor", LIQUOR_FAMILIES),
        ("mount", MOUNT_FAMILIES),
    ):
        drawn = [record[key] for record in records]
        assert set(drawn) == set(families)
        assert max(families, key=drawn.count) == families[0]
