"""How well a network in training does on the samples that are left out of the training.

Every sample counts the same: a large one that nobody could label must not decide which weights are
the best.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from anacor_dials.segmentation.coarse_grid import class_shares
from anacor_dials.segmentation.context import at_plane, context_probabilities
from anacor_dials.segmentation.network import SliceNetwork
from anacor_dials.segmentation.tiles import context_of
from anacor_dials.segmentation.training_data import TrainingVolume

LEAST = 1e-9  # of a cross-entropy, whose logarithm is taken
Scores = tuple[float, NDArray[np.float64]]  # cross-entropy, and Dice (n_classes,)


def over_samples(scores: Sequence[Scores]) -> Scores:
    """The geometric mean of the cross-entropies of samples, and the mean Dice of each class.

    A Dice that is not a number, of a class that a sample does not have, does not count; that of a
    class that no sample has is one.
    """
    entropies, dice = zip(*scores, strict=True)
    table = np.array(dice)
    there = np.isfinite(table)
    means = np.where(there, table, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    return float(np.exp(np.mean(np.log(entropies)))), np.where(there.any(axis=0), means, 1.0)


@torch.no_grad()  # type: ignore[misc, unused-ignore]
def validation_scores(
    network: SliceNetwork, volumes: Sequence[TrainingVolume], device: torch.device, every: int = 8
) -> Scores:
    """(cross-entropy, Dice (n_classes,)) of labels, over all samples (:func:`over_samples`).

    Parameters
    ----------
    network : SliceNetwork
    volumes : sequence of TrainingVolume
    device : torch.device
    every : int
        One of so many slices along X is used.
    """
    network.eval()
    return over_samples([_scores_of_slices(network, volume, device, every) for volume in volumes])


def _scores_of_slices(
    network: SliceNetwork, volume: TrainingVolume, device: torch.device, every: int
) -> Scores:
    n, half = network.settings.n_classes, network.settings.n_slices // 2
    both, found_in_all, true_in_all, loss, seen = np.zeros(n), np.zeros(n), np.zeros(n), 0.0, 0
    coarse = context_of(network, volume.views)
    views = np.pad(volume.views, ((0, 0), (half, half), (0, 0), (0, 0)), mode="edge")
    for x in range(every // 2, volume.labels.shape[0], every):
        near = views[:, x : x + 2 * half + 1].reshape(-1, *views.shape[2:])
        slices = torch.from_numpy(near.astype(np.float32))[None].to(device)
        context = None
        if coarse is not None:
            context = at_plane(coarse, x, volume.labels.shape[1:])[None].to(device)
        logits = network(slices, context).float()
        target = torch.from_numpy(volume.labels[x].astype(np.int64))[None].to(device)
        loss += float(F.cross_entropy(logits, target, reduction="sum"))
        seen += target.numel()
        found = logits.argmax(dim=1)
        for label in range(n):
            f, t = found == label, target == label
            both[label] += float((f & t).sum())
            found_in_all[label] += float(f.sum())
            true_in_all[label] += float(t.sum())
    return loss / max(seen, 1) + LEAST, _dice(both, found_in_all, true_in_all)


def _dice(
    both: NDArray[np.float64], found: NDArray[np.float64], true: NDArray[np.float64]
) -> NDArray[np.float64]:
    """2 both / (found + true); NaN for classes that are not there."""
    return np.where(true > 0, 2 * both / np.maximum(found + true, 1e-9), np.nan)


@torch.no_grad()  # type: ignore[misc, unused-ignore]
def coarse_scores(network: SliceNetwork, volumes: Sequence[TrainingVolume]) -> Scores:
    """(cross-entropy, Dice (n_classes,)) of the coarse pass alone (:func:`over_samples`).

    The truth are the shares of the classes in every block, and the Dice is that of probabilities
    and shares, 2 sum(p t) / (sum(p) + sum(t)).

    Parameters
    ----------
    network : SliceNetwork
        With a coarse pass.
    volumes : sequence of TrainingVolume
    """
    n = network.settings.n_classes
    network.eval()
    scores = []
    for volume in volumes:
        p = context_probabilities(network, volume.views).astype(np.float64).reshape(n, -1)
        t = class_shares(volume.labels, n).astype(np.float64).reshape(n, -1)
        entropy = -float((t * np.log(np.maximum(p, 1e-6))).sum()) / p.shape[1] + LEAST
        scores.append((entropy, _dice((p * t).sum(axis=1), p.sum(axis=1), t.sum(axis=1))))
    return over_samples(scores)
