"""Doubts in words: each where it should be, and none about good labels."""

from __future__ import annotations

import numpy as np
import pytest

from anacor_dials.sample.materials import (
    NYLON,
    Composition,
    protein_crystal,
    typical_composition,
)
from anacor_dials.sample.volumes import DEFAULT_NAMES, LabelVolume, Volume
from anacor_dials.segmentation.doubts import (
    MOST_UNSEEN,
    WIDE_BORDER,
    Evidence,
    doubtful_border,
    find_doubts,
)
from anacor_dials.segmentation.expected_overlap import OverlapForecast
from anacor_dials.segmentation.unseen_borders import BorderSeen
from anacor_dials.segmentation.working_grid import IntensityScale

SIZE = np.full(3, 1.2)
SCALE = IntensityScale(0.0, 0.013, 0.0005)
MU = np.array([0.0, np.nan, np.nan, np.nan])


def ball_probabilities(width, n=48, radius=14.0, edge=True):
    """A crystal whose border is `width` voxels soft, in a drop; (probabilities, labels)."""
    r = np.sqrt(((np.indices((n, n, n)) - (n - 1) / 2) ** 2).sum(axis=0))
    crystal = np.clip(0.5 - (r - radius) / max(width, 1e-3), 0, 1)
    drop = np.clip(0.5 - (r - 21.0), 0, 1)
    p = np.stack([1 - drop, drop * (1 - crystal), 0 * r, drop * crystal])
    return np.rint(255 * p).astype(np.uint8)


def doubts(p, scale=SCALE, mu=MU, energy=None, labels=None):
    found = p.argmax(axis=0).astype(np.uint8) if labels is None else labels
    volume = LabelVolume(found, SIZE)
    return list(find_doubts(p, Volume(found, SIZE), volume, mu, scale, energy))


@pytest.mark.parametrize("width", [2.0, 6.0, 12.0])
def test_the_width_of_the_border(width):
    """Linear from 0 to 1 over `width` voxels: less sure than 0.8 over 0.6 of it."""
    p = ball_probabilities(width)
    found = doubtful_border(p, p.argmax(axis=0).astype(np.uint8), 3)
    assert found == pytest.approx(0.6 * width, rel=0.25)


def test_what_looks_like_crystal_elsewhere_widens_no_border():
    """A shell near the drop's surface in which crystal is as probable as liquor."""
    p = ball_probabilities(2.0)
    labels = p.argmax(axis=0).astype(np.uint8)
    alone = doubtful_border(p, labels, 3)
    r = np.sqrt(((np.indices(labels.shape) - 23.5) ** 2).sum(axis=0))
    shell = (r > 17.5) & (r < 20.0)
    p[:, shell] = np.array([0, 130, 0, 125], dtype=np.uint8)[:, None]
    assert (p.argmax(axis=0) == labels).all()
    assert doubtful_border(p, labels, 3) == alone


def test_good_labels_raise_no_doubt():
    assert [d for d in doubts(ball_probabilities(1.5)) if "No loop" not in d] == []


def test_a_soft_border_does():
    assert WIDE_BORDER < 0.6 * 10
    (text,) = doubts(ball_probabilities(10.0))
    assert "border is unsure" in text


@pytest.mark.parametrize(("probability", "n"), [(0.97, 0), (0.91, 0), (0.90, 1), (0.7, 1)])
def test_labels_that_are_probably_poor(probability, n):
    """The border is at a mean probability of 0.905."""
    p = ball_probabilities(1.5)
    labels = p.argmax(axis=0).astype(np.uint8)
    overlap = OverlapForecast(probability)
    volume = LabelVolume(labels, SIZE)
    said = find_doubts(p, Volume(labels, SIZE), volume, MU, SCALE, None, Evidence(overlap))
    assert [str(overlap) in text for text in said if "may be poor" in text] == [True] * n


@pytest.mark.parametrize(("part", "n"), [(float("nan"), 0), (0.65, 0), (0.75, 1)])
def test_a_crystal_that_the_coarse_pass_takes_for_something_else(part, n):
    p = ball_probabilities(1.5)
    labels = p.argmax(axis=0).astype(np.uint8)
    volume = LabelVolume(labels, SIZE)
    said = find_doubts(
        p, Volume(labels, SIZE), volume, MU, SCALE, None, Evidence(contradicted=part)
    )
    assert ["75 %" in text for text in said if "may be exchanged" in text] == [True] * n


@pytest.mark.parametrize(("more", "n"), [(-0.01, 0), (0.01, 1)])
def test_a_border_that_does_not_show(more, n):
    p = ball_probabilities(1.5)
    labels = p.argmax(axis=0).astype(np.uint8)
    evidence = Evidence(border=BorderSeen(MOST_UNSEEN + more, 0.05, ((5, 60, 7),)))
    said = find_doubts(p, Volume(labels, SIZE), LabelVolume(labels, SIZE), MU, SCALE, None, evidence)  # fmt: skip
    assert [
        "13 % of the border" in text and "voxel 5, 60, 7 (" in text
        for text in said
        if "do not show" in text
    ] == [True] * n


def test_two_bodies_are_named_with_their_volumes():
    p = ball_probabilities(1.5)
    p[:, 2:6, 2:6, 2:6] = np.array([0, 0, 0, 255])[:, None, None, None]
    (text,) = [d for d in doubts(p) if "bodies" in d]
    assert text.startswith("2 separate bodies")
    assert f"{64 * 1.2**3:.3g}" in text
    assert "one_crystal=True" in text


def test_what_touches_the_edge():
    p = ball_probabilities(1.5)[:, 12:]
    (text,) = [d for d in doubts(p) if "edge of the volume" in d]
    assert "%" in text


def test_no_air_and_much_noise():
    texts = doubts(ball_probabilities(1.5), IntensityScale(0.0, 0.013, 0.001, air_seen=False))
    assert "No air" in texts[0]
    assert "0.013" in texts[0]
    texts = doubts(ball_probabilities(1.5), IntensityScale(0.001, 0.013, 0.0072))
    assert "noise of a voxel is 60 %" in texts[0]


def test_mu_that_no_such_material_has():
    expected = typical_composition("crystal").mu_per_um(3.5)
    good, bad = (np.array([0, np.nan, np.nan, f * expected]) for f in (1.3, 3.5))
    assert doubts(ball_probabilities(1.5), mu=good, energy=3.5) == []
    (text,) = doubts(ball_probabilities(1.5), mu=bad, energy=3.5)
    assert "mu of the crystal" in text
    assert DEFAULT_NAMES[3] == "crystal"


@pytest.mark.parametrize("energy", [2.6, 3.5, 5.0])
@pytest.mark.parametrize(
    ("formula", "density"),
    [
        ("0.77 H2O + 0.23 N2H8SO4", 1.13),  # 2 M ammonium sulfate
        ("0.8 H2O + 0.2 NaCl", 1.15),  # 4 M
        ("0.5 H2O + 0.5 C6H14O2", 0.97),  # MPD
    ],
)
def test_mu_of_usual_liquors_is_no_doubt(formula, density, energy):
    liquor = Composition.parse(formula, density)
    materials = liquor, Composition.parse(*NYLON), protein_crystal(0.5, liquor)
    mu = np.array([0.0, *(m.mu_per_um(energy) for m in materials)])
    assert doubts(ball_probabilities(1.5), mu=mu, energy=energy) == []


def test_a_loop_of_salt_is_a_doubt():
    mu = np.array([0.0, np.nan, 2.0 * typical_composition("loop").mu_per_um(3.5), np.nan])
    (text,) = doubts(ball_probabilities(1.5), mu=mu, energy=3.5)
    assert "mu of the loop" in text
