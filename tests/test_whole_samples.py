"""Whole samples for the coarse pass: pairs of the same shape, out of the samples' own blocks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

from anacor_dials.segmentation.coarse_grid import N_CHANNELS  # noqa: E402
from anacor_dials.segmentation.network import NetworkSettings, build_network  # noqa: E402
from anacor_dials.segmentation.replicas import Batch, gradients, in_groups  # noqa: E402
from anacor_dials.segmentation.whole_samples import (  # noqa: E402
    KEPT,
    WholeSample,
    without_their_air,
)


def sample(grid, body, seed=0):
    """A block `body` of material 1 in the middle of a grid; every block has a value of its own."""
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=(N_CHANNELS, *grid)).astype(np.float16)
    shares = np.zeros((4, *grid), dtype=np.float16)
    shares[0] = 1
    inside = tuple(slice((n - b) // 2, (n - b) // 2 + b) for n, b in zip(grid, body, strict=True))
    shares[0][inside], shares[1][inside] = 0, 1
    return SimpleNamespace(coarse_input=seen, coarse_shares=shares)


class Pool:
    def __init__(self, *samples):
        self.samples = list(samples)

    def draw(self, rng):
        return self.samples.pop(0)


def drawn(*samples, seed=3):
    rng, pool = np.random.default_rng(seed), Pool(*samples)
    return [WholeSample.drawn(pool, rng) for _ in samples]


@pytest.mark.parametrize("seed", range(6))
def test_samples_of_about_the_same_size_get_the_same_shape(seed):
    """However they are turned; and all of what is not air is kept."""
    grids = [(40, 24, 32), (30, 44, 26), (80, 40, 44), (42, 82, 40)]
    bodies = [(20, 10, 14), (12, 22, 9), (64, 24, 28), (26, 66, 24)]
    samples = [sample(g, b, k) for k, (g, b) in enumerate(zip(grids, bodies, strict=True))]
    out = without_their_air(drawn(*samples, seed=seed))
    assert len(out) == 4
    for one, other in (out[:2], out[2:]):
        assert one.shares.shape == other.shares.shape
    for one in out:
        assert one.seen(0, 0).shape[1:] == one.shares.shape[1:]
        # with the volume: the sum over its own box
        assert one.shares[1].sum() == one.pooled.coarse_shares[1].sum()


def test_a_pair_shows_the_samples_themselves():
    """Turned back, its blocks are those of a box of the sample."""
    pair = without_their_air(
        drawn(sample((40, 24, 32), (20, 10, 14)), sample((30, 44, 26), (12, 22, 9)))
    )
    for one in pair:
        back = np.transpose(one.shares[1:2], (0, *(1 + np.argsort(one.order))))
        flips = [one.mirrored[k] for k in np.argsort(one.order)]
        back = back[(slice(None), *(slice(None, None, -1 if m else 1) for m in flips))]
        np.testing.assert_array_equal(back[0], one.pooled.coarse_shares[1][one.box[1:]])


def test_samples_of_other_sizes_stay_as_they_are():
    small, large = sample((24, 24, 24), (10, 10, 10)), sample((60, 60, 60), (50, 50, 50))
    out = without_their_air(drawn(small, large))
    shapes = sorted(one.shares.shape[1:] for one in out)
    assert shapes[0] == (24, 24, 24)
    assert min(shapes[1]) >= 58
    assert min(shapes[1]) > 24 / KEPT


def test_an_odd_sample_is_not_lost():
    out = without_their_air(drawn(*[sample((24, 24, 24), (10, 10, 10), k) for k in range(3)]))
    assert len({id(one.pooled) for one in out}) == 3


def test_groups_have_the_gradient_of_single_samples():
    """Samples of the same shape go through together; losses and gradients are those of each alone."""
    torch.manual_seed(0)
    network = build_network(NetworkSettings("unet", n_slices=1))
    shapes = [(16, 8, 8), (8, 8, 8), (16, 8, 8), (16, 8, 8)]
    seen = [torch.randn(N_CHANNELS, *s) for s in shapes]
    true = [torch.softmax(3 * torch.randn(4, *s), dim=0) for s in shapes]
    assert in_groups(seen) == [[0, 2], [3], [1]]
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    together = gradients(network, Batch(None, None, None, seen, true), weights)
    alone = [
        gradients(network, Batch(None, None, None, [s], [t]), weights)
        for s, t in zip(seen, true, strict=True)
    ]
    for k, one in enumerate(alone):
        assert together.coarse_losses[k] == pytest.approx(one.coarse_losses[0], rel=1e-4)
        torch.testing.assert_close(together.coarse[k], one.coarse[0], rtol=1e-3, atol=1e-5)
    assert together.losses == pytest.approx(
        np.mean([one.losses for one in alone], axis=0), rel=1e-4
    )
    for found, *parts in zip(together.gradients, *(one.gradients for one in alone), strict=True):
        torch.testing.assert_close(found, sum(parts) / 4, rtol=1e-3, atol=1e-5)
