"""Calibration of the probabilities on samples that were left out of training.

The logits of a network are divided by a temperature, and a constant of each class is added (vector
scaling with one temperature; Guo et al., ICML 2017). Both are chosen so that the cross-entropy of
the samples that were left out is least. They are put into the weights of the last layer, so that a
calibrated network is used as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.segmentation.context import at_plane
from anacor_dials.segmentation.network import SliceNetwork
from anacor_dials.segmentation.tiles import context_of
from anacor_dials.segmentation.training_data import TrainingVolume

VOXELS_KEPT = 20_000  # of each sample: many for the 5 parameters of four classes; limits the memory


@dataclass(frozen=True, eq=False)
class Calibration:
    """How the logits of a network are changed: z / temperature + offsets.

    Attributes
    ----------
    temperature : float
    offsets : array (n_classes,)
    cross_entropy : (float, float)
        Before and after, nats per voxel.
    """

    temperature: float
    offsets: FloatArray
    cross_entropy: tuple[float, float]


@torch.inference_mode()  # type: ignore[misc, unused-ignore]
def logits_of_samples(
    network: SliceNetwork, volumes: Sequence[TrainingVolume], every: int = 8, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (n, n_classes) and true labels (n,) of random voxels of some samples.

    Parameters
    ----------
    network : SliceNetwork
        It is in evaluation mode afterwards.
    volumes : sequence of TrainingVolume
    every : int
        One of so many slices along X is used.
    seed : int
    """
    network.eval()
    rng = np.random.default_rng(seed)
    half = network.settings.n_slices // 2
    logits, labels = [], []
    for volume in volumes:
        coarse = context_of(network, volume.views)
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
    """The calibration with the least cross-entropy.

    Parameters
    ----------
    logits : array (n, n_classes)
    labels : array (n,)
        The true ones.
    """
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
