"""Probabilities that mean what they say: calibration on samples left out of training.

A network's logits are divided by a temperature and shifted by a constant of each class (vector
scaling with one temperature; Guo et al., ICML 2017), such that the cross-entropy on samples that
it did not learn from is least. Both go into the weights of the last layer, so that nothing has to
be known of it afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.segmentation.context import at_plane, context_probabilities
from anacor_dials.segmentation.network import SliceNetwork
from anacor_dials.segmentation.training_data import TrainingVolume

VOXELS_KEPT = 20_000  # of each sample


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the logits of a network are changed by: z / temperature + offsets (n_classes,).

    cross_entropy: before and after, nats per voxel.
    """

    temperature: float
    offsets: FloatArray
    cross_entropy: tuple[float, float]


@torch.inference_mode()  # type: ignore[misc, unused-ignore]
def logits_of_samples(
    network: SliceNetwork, volumes: Sequence[TrainingVolume], every: int = 8, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(logits (n, n_classes), true labels (n,)) of random voxels in every eighth slice along X of
    some samples."""
    network.eval()
    rng = np.random.default_rng(seed)
    half = network.settings.n_slices // 2
    logits, labels = [], []
    for volume in volumes:
        coarse = context_probabilities(network, volume.views) if network.context else None
        seen = np.pad(volume.views, ((0, 0), (half, half), (0, 0), (0, 0)), mode="edge")
        planes = range(every // 2, volume.labels.shape[0], every)
        for x in planes:
            near = seen[:, x : x + 2 * half + 1].reshape(-1, *seen.shape[2:])
            context = None if coarse is None else at_plane(coarse, x, volume.labels.shape[1:])[None]
            out = network(torch.from_numpy(near.astype(np.float32))[None], context)[0]
            flat = out.reshape(out.shape[0], -1).numpy().T
            n = min(len(flat), VOXELS_KEPT // max(1, len(planes)))
            chosen = rng.integers(0, len(flat), n)
            logits.append(flat[chosen].astype(np.float32))
            labels.append(volume.labels[x].ravel()[chosen].astype(np.int64))
    return np.concatenate(logits), np.concatenate(labels)


def fit_calibration(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Calibration:
    """The temperature and offsets that make the cross-entropy of logits (n, n_classes) and labels
    (n,) least."""
    z, t = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    log_temperature = torch.zeros((), dtype=torch.double, requires_grad=True)
    offsets = torch.zeros(z.shape[1], dtype=torch.double, requires_grad=True)
    before = float(F.cross_entropy(z, t))
    optimiser = torch.optim.LBFGS(
        [log_temperature, offsets], max_iter=100, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(z * torch.exp(-log_temperature) + offsets, t)
        # a constant added to all classes changes nothing
        value = value + 1e-6 * offsets.sum() ** 2
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        after = float(F.cross_entropy(z * torch.exp(-log_temperature) + offsets, t))
    return Calibration(
        float(torch.exp(log_temperature.detach())), offsets.detach().numpy().copy(), (before, after)
    )


@torch.no_grad()  # type: ignore[misc, unused-ignore]
def calibrate(network: SliceNetwork, calibration: Calibration) -> None:
    """Puts a calibration into the weights of the network's last layer."""
    assert network.head.bias is not None
    network.head.weight /= calibration.temperature
    network.head.bias /= calibration.temperature
    network.head.bias += torch.from_numpy(calibration.offsets).to(network.head.bias)
