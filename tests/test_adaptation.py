"""A network learns a sample from some of its planes."""

from __future__ import annotations

import logging

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

import torch

from anacor_dials.segmentation import adaptation
from anacor_dials.segmentation.adaptation import (
    DICE_WEIGHT,
    AdaptationSettings,
    KnownCrops,
    KnownSample,
    adapted_network,
    known_loss,
    known_shares,
    nearest_network,
)
from anacor_dials.segmentation.fringes import N_VIEWS, views
from anacor_dials.segmentation.network import NetworkSettings, SliceNetwork, build_network
from anacor_dials.segmentation.tiles import InferenceSettings, find_classes
from anacor_dials.segmentation.training_data import TrainingVolume
from anacor_dials.segmentation.working_grid import UNKNOWN, binned_known

SHAPE = (36, 40, 44)
LEVELS = np.array([0.0, 1.0, 0.6, 1.5])


@pytest.fixture
def truth():
    x, y, z = np.indices(SHAPE) - np.array([17, 19, 21])[:, None, None, None]
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[x**2 + y**2 + z**2 < 15**2] = 1
    labels[(abs(y - 9) < 4) & (abs(z) < 5) & (abs(x) < 9)] = 2
    labels[(abs(x) < 8) & (abs(y + 2) < 4) & (abs(z - 1) < 6)] = 3
    return labels


@pytest.fixture
def sample(truth):
    """One plane across each axis is known."""
    known = np.full(SHAPE, UNKNOWN, dtype=np.uint8)
    for place in ((17,), (slice(None), 17), (slice(None), slice(None), 22)):
        known[place] = truth[place]
    values = np.repeat(LEVELS[truth][None], N_VIEWS, axis=0).astype(np.float16)
    return KnownSample(values, known)


@pytest.fixture
def seen(sample, truth):
    """The same sample with the views that networks see."""
    return KnownSample(views(LEVELS[truth].astype(np.float32), np.float16), sample.known)


def test_crops_show_the_planes_that_are_known(sample, truth):
    source = KnownCrops(sample, 3, [])
    rng = np.random.default_rng(0)
    seen = np.zeros(4, dtype=int)
    for _ in range(60):
        slices, context, labels = source.draw(rng, 48)
        assert slices.shape == (3 * N_VIEWS, 48, 48)
        assert context is None
        there = labels != UNKNOWN
        assert there.any()
        # voxel by voxel what was there in the middle slice of every view, but for the gain and the offset
        for view in range(N_VIEWS):
            expected = LEVELS[labels[there]]
            np.testing.assert_allclose(slices[3 * view + 1][there], expected, atol=0.1)
        seen += np.bincount(labels[there], minlength=4)
    assert np.all(seen > 0)


def test_what_the_coarse_pass_says_is_turned_with_the_crop(sample):
    # the probability of class 3 grows along X and of class 2 along Y, as far as the coarse grid goes
    coarse = np.zeros((4, 12, 14, 15), dtype=np.float16)
    coarse[3] = (np.arange(12) / 12)[:, None, None]
    coarse[2] = (np.arange(14) / 14)[:, None]
    values = sample.views.copy()
    x, y = np.indices(SHAPE)[:2]
    values[0], values[1] = (x + 0.5) / 3 - 0.5, (y + 0.5) / 3 - 0.5  # in coarse voxels
    source = KnownCrops(KnownSample(values, sample.known), 1, [coarse, coarse])
    rng = np.random.default_rng(1)
    for _ in range(10):
        slices, context, _ = source.draw(rng, 32)
        inner = (slice(6, -6), slice(6, -6))
        for view, label, n in ((0, 3, 12), (1, 2, 14)):
            expected = np.clip(slices[view][inner], 0, n - 1) / n
            np.testing.assert_allclose(context[label][inner], expected, atol=0.06)


def test_what_nobody_looked_at_counts_for_nothing():
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((2, 4, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 4, (2, 8, 8)).astype(np.uint8)
    labels[:, 2:] = UNKNOWN
    value = float(known_loss(torch.from_numpy(logits), torch.from_numpy(labels)))
    changed = logits.copy()
    changed[:, :, 2:] = 99.0 * rng.standard_normal((2, 4, 6, 8))
    assert float(known_loss(torch.from_numpy(changed), torch.from_numpy(labels))) == value
    # by its definition
    z, t = (
        logits[:, :, :2].astype(float).transpose(0, 2, 3, 1).reshape(-1, 4),
        labels[:, :2].ravel(),
    )
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    one = np.eye(4)[t]
    dice = (2 * (p * one).sum(0) + 1) / (p.sum(0) + one.sum(0) + 1)
    expected = -np.log(p[np.arange(len(t)), t]).mean() + DICE_WEIGHT * (1 - dice.mean())
    assert value == pytest.approx(expected, rel=1e-5)


def test_blocks_of_the_coarse_pass_count_as_their_known_voxels_do():
    known = np.full((7, 6, 6), UNKNOWN, dtype=np.uint8)
    known[1, 0:3, 0:3] = 3
    known[1, 0, 0] = 1
    known[6, 3, 3] = 2  # in a block that is filled up
    shares, weights = known_shares(known, 4)
    assert weights.shape == (3, 2, 2)
    assert weights[0, 0, 0] == 1
    np.testing.assert_allclose(shares[:, 0, 0, 0], [0, 1 / 9, 0, 8 / 9])
    assert weights[2, 1, 1] == pytest.approx(1 / 9)
    assert shares[2, 2, 1, 1] == 1
    assert np.count_nonzero(weights) == 2


def test_blocks_of_fine_voxels_are_what_most_known_ones_are():
    known = np.full((4, 5, 2), UNKNOWN, dtype=np.uint8)
    known[0, 0], known[1, 0], known[1, 1, 0] = 2, 3, 3
    known[3, 4, 1] = 0
    out = binned_known(known, (2, 2, 2), 4)
    assert out.shape == (2, 3, 1)
    assert out[0, 0, 0] == 3
    assert out[1, 2, 0] == 0
    assert np.count_nonzero(out != UNKNOWN) == 2


class Pixelwise(SliceNetwork):
    """A network without a past that looks at single voxels: what it knows it has learned here."""

    def __init__(self, context: bool) -> None:
        super().__init__(NetworkSettings("unet", "tiny", 1, context=context))
        self.mix = torch.nn.Conv2d(self.settings.n_channels, self.head.in_channels, 1)

    def decoded(self, x):
        return [torch.nn.functional.gelu(self.mix(x))]


@pytest.mark.parametrize("context", [False, True])
def test_three_planes_teach_a_network_the_rest(seen, truth, context):
    """A network that knows nothing finds the other planes; without any step it does not."""
    torch.manual_seed(0)
    network = Pixelwise(context)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    settings = AdaptationSettings(
        coarse_steps=3, steps=80, minutes=60, batch=4, crop=48, learning_rate=0.03, device="cpu"
    )
    adapted = adapted_network(network, seen, (), settings)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name  # the one that was given is left as it is
    values = LEVELS[truth].astype(np.float32)

    def share_right(which):
        found = find_classes(which, values, InferenceSettings(device="cpu")).probabilities.argmax(
            axis=0
        )
        there = (seen.known == UNKNOWN) & (truth > 0)
        return np.mean(found[there] == truth[there])

    assert share_right(network) < 0.6
    assert share_right(adapted) > 0.9
    assert nearest_network([network, adapted], seen) == 1
    assert nearest_network([adapted, network], seen) == 0
    if context:
        changed = adapted.state_dict()["context.head.weight"]
        assert not torch.equal(changed, before["context.head.weight"])


def test_other_samples_take_part(seen, truth, monkeypatch):
    """In every step as many crops as of the sample itself; they know all of their voxels."""
    shares = []
    loss = adaptation.known_loss

    def recorded(logits, labels):
        shares.append(float((labels != UNKNOWN).float().mean()))
        return loss(logits, labels)

    monkeypatch.setattr(adaptation, "known_loss", recorded)
    other = TrainingVolume("other", seen.views, truth, (1.2, 1.2, 1.2))
    settings = AdaptationSettings(
        coarse_steps=2, steps=3, minutes=60, batch=2, crop=48, threads=1, device="cpu"
    )
    known = np.full(SHAPE, UNKNOWN, dtype=np.uint8)
    known[17, :, 10:30] = truth[17, :, 10:30]
    for context in (False, True):
        shares.clear()
        adapted_network(Pixelwise(context), KnownSample(seen.views, known), (other,), settings)
        own, others = shares[::2], shares[1::2]
        assert len(own) == len(others) == 3
        assert max(own) < 1
        assert min(others) == 1


def test_it_stops_in_time(sample, caplog):
    torch.manual_seed(0)
    network = build_network(NetworkSettings("unet", "tiny", 1, context=False))
    settings = AdaptationSettings(steps=1_000_000, minutes=0.01, batch=1, crop=32, device="cpu")
    with caplog.at_level(logging.INFO, "dials"):
        adapted_network(network, sample, (), settings)
    assert "learned the sample" in caplog.text


def test_bad_input_is_one_sentence(sample):
    network = build_network(NetworkSettings("unet", "tiny", 1, context=False))
    wrong = KnownSample(sample.views, np.where(sample.known == 3, 7, sample.known).astype(np.uint8))
    with pytest.raises(ValueError, match="The label 7 was drawn"):
        adapted_network(network, wrong)
    with pytest.raises(ValueError, match="nothing to learn from"):
        KnownSample(sample.views, np.full(SHAPE, UNKNOWN, dtype=np.uint8))
    with pytest.raises(ValueError, match="shape"):
        KnownSample(sample.views, sample.known[1:])
    for wrong_settings in ({"crop": 40}, {"steps": 0}, {"minutes": 0}):
        with pytest.raises(ValueError, match=r"crop|step|minutes"):
            AdaptationSettings(**wrong_settings)
