"""The loss: against torch's own cross-entropy, Dice by hand, and the weights taken off again."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

from anacor_dials.segmentation.losses import (  # noqa: E402
    adjust_logits,
    segmentation_loss,
    shares_of,
    soft_dice,
)
from anacor_dials.segmentation.network import NetworkSettings, build_network  # noqa: E402
from anacor_dials.segmentation.replicas import Batch, gradients  # noqa: E402


def test_shares_of_labels():
    labels = torch.tensor([[[0, 2], [1, 2]]], dtype=torch.uint8)
    shares = shares_of(labels, 3)
    assert shares.dtype == torch.float32
    expected = [[[1, 0], [0, 0]], [[0, 0], [1, 0]], [[0, 1], [0, 1]]]
    assert shares.tolist() == [expected]


@pytest.mark.parametrize("shape", [(3, 7, 5), (2, 4, 3, 6)])
def test_cross_entropy_of_labels_is_that_of_torch(shape):
    """In two and three dimensions, weighted; the gradient too."""
    torch.manual_seed(1)
    n, *size = shape
    labels = torch.randint(0, 4, shape)
    logits = (3.0 * torch.randn(n, 4, *size)).requires_grad_()
    weights = torch.tensor([0.2, 1.5, 3.0, 0.7])
    shares = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float()
    found, _ = segmentation_loss(logits, shares, weights)
    expected = torch.nn.functional.cross_entropy(logits, labels, weights)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(value, logits)[0] for value in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_cross_entropy_of_shares_is_that_of_torch():
    """torch's, of probabilities as target, differs in the divisor alone where weights are not one."""
    torch.manual_seed(2)
    logits, shares = torch.randn(2, 3, 5, 4, 6), torch.rand(2, 3, 5, 4, 6).softmax(1)
    found, _ = segmentation_loss(logits, shares, torch.ones(3))
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, shares))
    weights = torch.tensor([0.5, 2.0, 1.0])
    found, _ = segmentation_loss(logits, shares, weights)
    expected = torch.nn.functional.cross_entropy(logits, shares, weights)
    mean_weight = (weights.reshape(1, 3, 1, 1, 1) * shares).sum(dim=1).mean()
    torch.testing.assert_close(found, expected / mean_weight)


def test_half_a_block_is_labelled_best_by_one_half():
    """The cross-entropy of shares is least at the shares themselves."""
    shares = torch.tensor([0.5, 0.3, 0.2]).reshape(1, 3, 1, 1)
    logits = torch.log(shares).requires_grad_()
    entropy, _ = segmentation_loss(logits, shares, torch.ones(3))
    expected = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    assert float(entropy.detach()) == pytest.approx(expected, rel=1e-6)
    (slope,) = torch.autograd.grad(entropy, logits)
    assert float(slope.abs().max()) < 1e-6


def test_dice_of_known_probabilities():
    """p = 0.8 for the right class everywhere: Dice = 2 0.8 n / (sum p + n), with one added to both."""
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    target[:, 2:] = 1
    p = torch.where(target[:, None] == torch.arange(2)[:, None, None], 0.8, 0.2)
    dice = soft_dice(torch.log(p), shares_of(target, 2))
    expected = (2 * 0.8 * 8 + 1) / (0.8 * 8 + 0.2 * 8 + 8 + 1)
    torch.testing.assert_close(dice, torch.full((2,), expected))


def test_dice_of_shares_by_hand():
    """Three dimensions, two voxels, and a probability of one half each."""
    shares = torch.tensor([1.0, 0.25, 0.0, 0.75]).reshape(1, 2, 2, 1, 1)
    dice = soft_dice(torch.zeros(1, 2, 2, 1, 1), shares)
    both, total = (0.5 * 1.25, 0.5 * 0.75), (1 + 1.25, 1 + 0.75)
    expected = [(2 * b + 1) / (t + 1) for b, t in zip(both, total, strict=True)]
    torch.testing.assert_close(dice, torch.tensor(expected))


def test_dice_of_an_absent_class_is_one():
    logits = torch.zeros(1, 3, 8, 8)
    logits[:, 0] = 40
    dice = soft_dice(logits, shares_of(torch.zeros(1, 8, 8, dtype=torch.long), 3))
    torch.testing.assert_close(dice, torch.ones(3))


def test_one_minus_the_mean_dice_is_the_second_loss():
    torch.manual_seed(3)
    logits, shares = torch.randn(2, 4, 6, 6), shares_of(torch.randint(0, 4, (2, 6, 6)), 4)
    _, dice_loss = segmentation_loss(logits, shares, torch.ones(4))
    assert float(dice_loss) == pytest.approx(1 - float(soft_dice(logits, shares).mean()))


def test_cross_entropy_is_weighted():
    logits = torch.zeros(1, 2, 1, 2)
    target = shares_of(torch.tensor([[[0, 1]]]), 2)
    entropy, _ = segmentation_loss(logits, target, torch.tensor([1.0, 3.0]))
    assert float(entropy) == pytest.approx(math.log(2))
    logits[0, 1, 0, 1] = 20.0  # the heavy class is right, the light one undecided
    entropy, _ = segmentation_loss(logits, target, torch.tensor([1.0, 3.0]))
    assert float(entropy) == pytest.approx(math.log(2) / 4, rel=1e-4)


def test_smaller_logits_see_thinned_labels():
    """The heads at 1/2 and 1/4 that say every second and fourth label add nothing to the loss."""
    torch.manual_seed(5)
    labels = torch.randint(0, 2, (1, 16, 16))
    right = 60.0 * shares_of(labels, 2)

    class Heads(torch.nn.Module):
        """Three given maps of logits, all of them times its one parameter."""

        def __init__(self, outputs):
            super().__init__()
            self.settings = NetworkSettings(names=("background", "crystal"), context=False)
            self.outputs = outputs
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, slices, context):
            return [self.scale * output for output in self.outputs]

    def slope(*outputs):
        batch = Batch(torch.zeros(1, 1, 16, 16), None, labels)
        (found,) = gradients(Heads(outputs), batch, torch.ones(2)).gradients
        return abs(float(found))

    half, quarter = right[:, :, 1::2, 1::2], right[:, :, 2::4, 2::4]
    assert slope(right, half, quarter) < 1e-6
    assert slope(right, half.roll(1, 3), quarter) > 0.1
    assert slope(right, half, quarter.roll(1, 3)) > 0.1


def test_class_weights_are_taken_off_the_logits():
    """A network that can only learn frequencies, by weighted cross-entropy: it comes to say the frequencies."""
    weights, frequency = torch.tensor([0.2, 1.0, 2.0, 0.8]), torch.tensor([0.7, 0.1, 0.05, 0.15])
    learned = torch.log(weights * frequency)  # where its gradient is zero
    logits = learned[None, :, None, None].repeat(1, 1, 1, 100).requires_grad_()
    target = torch.repeat_interleave(torch.arange(4), (100 * frequency).round().long())
    entropy, _ = segmentation_loss(logits, shares_of(target[None, None], 4), weights)
    (slope,) = torch.autograd.grad(entropy, logits)
    assert float(slope.sum(dim=(0, 2, 3)).abs().max()) < 1e-6
    for context in (True, False):
        network = build_network(NetworkSettings("unet", "tiny", 1, context=context)).eval()
        with torch.no_grad():
            network.head.weight.zero_()
            network.head.bias.copy_(learned)
            adjust_logits(network, weights)
            seen = torch.full((1, 4, 16, 16), 0.25) if context else None
            found = torch.softmax(network(torch.zeros(1, 3, 16, 16), seen), 1)[0, :, 3, 4]
        torch.testing.assert_close(found, frequency)
