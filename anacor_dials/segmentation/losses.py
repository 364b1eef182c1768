"""What training minimises: class-weighted cross-entropy plus one minus Dice, on labels or on
shares of classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from anacor_dials.segmentation.network import SliceNetwork


def soft_dice(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Dice (n_classes,) of probabilities and true shares of the classes, over the whole batch.

    2 sum(p t) / (sum(p) + sum(t)) for every class (Milletari et al., 3DV 2016); one where a class
    is neither there nor predicted. logits, shares: (n, n_classes, ...).
    """
    p = torch.softmax(logits.float(), dim=1)
    over = (0, *range(2, p.ndim))
    both = (p * shares).sum(dim=over)
    total = p.sum(dim=over) + shares.sum(dim=over)
    return (2 * both + 1.0) / (total + 1.0)


def shares_of(labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Shares (n, n_classes, h, w), 0 or 1, of labels (n, h, w)."""
    return F.one_hot(labels.long(), n_classes).movedim(-1, 1).float()


def segmentation_loss(
    logits: torch.Tensor, shares: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cross-entropy, one minus the mean Dice) of logits and true shares (n, n_classes, ...).

    weights: (n_classes,) of the cross-entropy, which is divided by the mean weight of the true
    classes, as torch does it for labels.
    """
    logs = torch.log_softmax(logits.float(), dim=1)
    per_class = weights.reshape(1, -1, *[1] * (logits.ndim - 2)) * shares
    entropy = -(per_class * logs).sum() / per_class.sum()
    return entropy, 1.0 - soft_dice(logits, shares).mean()


@torch.no_grad()  # type: ignore[misc, unused-ignore]
def adjust_logits(network: SliceNetwork, weights: torch.Tensor) -> None:
    """Takes the logarithms of the classes' weights (c,) off the logits, for the time after
    training.

    Weighted cross-entropy is least where the probabilities are those of the classes times their
    weights, and rare classes are then found too large (Menon et al., ICLR 2021, on logit
    adjustment).
    """
    assert network.head.bias is not None
    network.head.bias -= torch.log(weights).to(network.head.bias)
