"""The loss of the training: class-weighted cross-entropy plus one minus Dice.

The truth are labels, or shares of classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from anacor_dials.segmentation.network import SliceNetwork


def soft_dice(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Dice (n_classes,) of probabilities and true shares of the classes, over the whole batch.

    2 sum(p t) / (sum(p) + sum(t)) for every class (Milletari et al., 3DV 2016), with one added to
    both sums, so that it is one for a class that is neither there nor predicted.

    Parameters
    ----------
    logits, shares : tensor (n, n_classes, ...)
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
    """(cross-entropy, one minus the mean Dice) of logits and true shares.

    Parameters
    ----------
    logits, shares : tensor (n, n_classes, ...)
    weights : tensor (n_classes,)
        Of the cross-entropy, which is divided by the mean weight of the true classes, as torch does
        for labels.
    """
    logs = torch.log_softmax(logits.float(), dim=1)
    per_class = weights.reshape(1, -1, *[1] * (logits.ndim - 2)) * shares
    entropy = -(per_class * logs).sum() / per_class.sum()
    return entropy, 1.0 - soft_dice(logits, shares).mean()


@torch.no_grad()  # type: ignore[misc, unused-ignore]
def adjust_logits(network: SliceNetwork, weights: torch.Tensor) -> None:
    """Logit adjustment: subtracts the logarithms of the class weights (c,) from the logits.

    It is done after the training. Weighted cross-entropy is least if the probabilities are those of
    the classes times their weights, so that rare classes would be found too large (Menon et al.,
    ICLR 2021).

    Parameters
    ----------
    network : SliceNetwork
        It is changed.
    weights : tensor (n_classes,)
    """
    assert network.head.bias is not None
    network.head.bias -= torch.log(weights).to(network.head.bias)
