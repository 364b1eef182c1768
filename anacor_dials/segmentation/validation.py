"""How well a network in training does on the samples that are left out of the training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from anacor_dials.segmentation.coarse_grid import class_shares
from anacor_dials.segmentation.context import at_plane, context_probabilities
from anacor_dials.segmentation.network import SliceNetwork
from anacor_dials.segmentation.training_data import TrainingVolume


@torch.no_grad()  # type: ignore[misc, unused-ignore]
def validation_scores(
    network: SliceNetwork, volumes: Sequence[TrainingVolume], device: torch.device, every: int = 8
) -> tuple[float, NDArray[np.float64]]:
    """(cross-entropy, Dice (n_classes,)) of labels, over all samples.

    Parameters
    ----------
    network : SliceNetwork
    volumes : sequence of TrainingVolume
    device : torch.device
    every : int
        One of so many slices along X is used.
    """
    n, half = network.settings.n_classes, network.settings.n_slices // 2
    both, total, loss, seen = np.zeros(n), np.zeros(n), 0.0, 0
    network.eval()
    for volume in volumes:
        coarse = context_probabilities(network, volume.views) if network.context else None
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
                total[label] += float(f.sum() + t.sum())
    return loss / max(seen, 1), (2 * both + 1e-9) / (total + 1e-9)


@torch.no_grad()  # type: ignore[misc, unused-ignore]
def coarse_scores(
    network: SliceNetwork, volumes: Sequence[TrainingVolume]
) -> tuple[float, NDArray[np.float64]]:
    """(cross-entropy, Dice (n_classes,)) of the coarse pass alone, over all samples.

    The truth are the shares of the classes in every block, and the Dice is that of probabilities
    and shares, 2 sum(p t) / (sum(p) + sum(t)).

    Parameters
    ----------
    network : SliceNetwork
        With a coarse pass.
    volumes : sequence of TrainingVolume
    """
    n = network.settings.n_classes
    both, total, loss, seen = np.zeros(n), np.zeros(n), 0.0, 0
    network.eval()
    for volume in volumes:
        p = context_probabilities(network, volume.views).astype(np.float64).reshape(n, -1)
        t = class_shares(volume.labels, n).astype(np.float64).reshape(n, -1)
        loss -= float((t * np.log(np.maximum(p, 1e-6))).sum())
        seen += p.shape[1]
        both += (p * t).sum(axis=1)
        total += (p + t).sum(axis=1)
    return loss / max(seen, 1), (2 * both + 1e-9) / (total + 1e-9)
