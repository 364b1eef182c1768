"""The gradients of a training step, shared by some threads on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from anacor_dials.segmentation.losses import segmentation_loss, shares_of
from anacor_dials.segmentation.network import SliceNetwork

AUXILIARY_HEADS = (0.3, 0.15)  # weights of the losses at 1/2 and 1/4 of the size
Losses = tuple[float, float]  # cross-entropy, one minus Dice


@dataclass(frozen=True, eq=False)
class Batch:
    """What a step learns from.

    slices (n, n_planes, h, w), context (n, n_classes, h, w) or None, labels (n, h, w): crops.
    coarse_input (N_CHANNELS, cx, cy, cz) and coarse_shares (n_classes, cx, cy, cz): of whole
    samples, for the coarse pass; coarse_weight: of the loss of each of them, None for one over
    their number.
    """

    slices: torch.Tensor
    context: torch.Tensor | None
    labels: torch.Tensor
    coarse_input: Sequence[torch.Tensor] = ()
    coarse_shares: Sequence[torch.Tensor] = ()
    coarse_weight: float | None = None

    def split(self, n: int) -> list[Batch]:
        """n batches of about as many crops, whole samples dealt out in turn.

        The mean of the batches' gradients, by how many crops each has, is that of the whole.
        """
        contexts: Sequence[torch.Tensor | None] = (
            self.context.tensor_split(n) if self.context is not None else [None] * n
        )
        return [
            Batch(
                s,
                c,
                t,
                self.coarse_input[i::n],
                self.coarse_shares[i::n],
                len(self.slices) / (len(s) * max(len(self.coarse_input), 1)),
            )
            for i, (s, c, t) in enumerate(
                zip(self.slices.tensor_split(n), contexts, self.labels.tensor_split(n), strict=True)
            )
        ]


@dataclass(frozen=True, eq=False)
class StepResult:
    """Gradients by the network's parameters, losses of crops, and what the coarse pass found.

    coarse: probabilities (n_classes, cx, cy, cz) of every whole sample of the batch;
    coarse_losses: of them.
    """

    gradients: list[torch.Tensor]
    losses: Losses
    coarse: list[torch.Tensor]
    coarse_losses: list[Losses]


def _plus(total: list[torch.Tensor], parameters: list[nn.Parameter], loss: Any) -> None:
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    for gradient, more in zip(total, found, strict=True):
        if more is not None:
            gradient += more


def gradients(
    network: SliceNetwork, batch: Batch, weights: torch.Tensor, mixed: bool = False
) -> StepResult:
    """Gradients of the loss by the parameters of a network in training mode.

    weights: (n_classes,) of the cross-entropy; mixed: in bfloat16 where that will do. The losses
    of the auxiliary heads and of the coarse pass are added to that of the crops.
    """
    parameters = list(network.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    device = batch.slices.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
        outputs = network(batch.slices, batch.context)
    shares = shares_of(batch.labels, network.settings.n_classes)
    entropy, dice = segmentation_loss(outputs[0], shares, weights)
    loss = entropy + dice
    for part, output in zip(AUXILIARY_HEADS, outputs[1:], strict=True):
        step = shares.shape[-1] // output.shape[-1]
        thinned = shares[:, :, step // 2 :: step, step // 2 :: step]
        loss = loss + part * sum(segmentation_loss(output, thinned, weights))
    _plus(total, parameters, loss)
    coarse, coarse_losses = [], []
    weight = batch.coarse_weight or 1 / max(len(batch.coarse_input), 1)
    for seen, true in zip(batch.coarse_input, batch.coarse_shares, strict=True):
        assert network.context is not None
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
            logits = network.context(seen[None])
        one, two = segmentation_loss(logits, true[None], weights)
        _plus(total, parameters, weight * (one + two))
        coarse.append(torch.softmax(logits.detach().float()[0], dim=0))
        coarse_losses.append((float(one.detach()), float(two.detach())))
    return StepResult(total, (float(entropy.detach()), float(dice.detach())), coarse, coarse_losses)


class ThreadedReplicas:
    """Some threads that share a step: the network's own and copies of it that share its parameters.

    torch's own threads wait for each other in every layer, which on a busy machine is slower than
    one of them; these meet once in a step. Statistics of batches (buffers) are the mean of the
    threads'. mixed: as of :func:`gradients`.
    """

    def __init__(self, network: SliceNetwork, n: int, mixed: bool = False) -> None:
        self.mixed = mixed
        shared = {id(p): p for p in network.parameters()}
        self.networks = [network, *(copy.deepcopy(network, dict(shared)) for _ in range(n - 1))]
        self.pool = ThreadPoolExecutor(max_workers=n)

    def gradients(self, batch: Batch, weights: torch.Tensor) -> StepResult:
        """As :func:`gradients`; the means of the threads', by how many crops each of them had."""
        n = len(self.networks)
        if n == 1:
            return gradients(self.networks[0], batch, weights, self.mixed)
        parts = batch.split(n)
        jobs = [
            self.pool.submit(gradients, network, part, weights, self.mixed)
            for network, part in zip(self.networks, parts, strict=True)
        ]
        done = [job.result() for job in jobs]
        shares = [len(part.slices) / len(batch.slices) for part in parts]
        total = [
            torch.stack([share * g for share, g in zip(shares, found, strict=True)]).sum(0)
            for found in zip(*(result.gradients for result in done), strict=True)
        ]
        with torch.no_grad():
            for buffers in zip(*(net.buffers() for net in self.networks), strict=True):
                if buffers[0].is_floating_point():
                    mean = torch.stack(buffers).mean(0)
                    for buffer in buffers:
                        buffer.copy_(mean)
        entropy, dice = (
            sum(s * result.losses[k] for s, result in zip(shares, done, strict=True))
            for k in (0, 1)
        )
        order = [(k % n, k // n) for k in range(len(batch.coarse_input))]
        return StepResult(
            total,
            (entropy, dice),
            [done[i].coarse[j] for i, j in order],
            [done[i].coarse_losses[j] for i, j in order],
        )

    def train(self) -> None:
        for network in self.networks:
            network.train()
