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

# Weights of the losses at 1/2 and 1/4 of the size. Each about half of the one before it, as nnU-Net
# has them (Isensee et al., Nat. Methods 18 (2021) 203), and smaller, chosen by hand.
AUXILIARY_HEADS = (0.3, 0.15)
# Whole samples that go through the coarse pass together. On a CPU torch's convolutions of one small
# volume take twice as long as those of each of two (measured on 40 x 40 x 40 blocks).
TOGETHER = 2
Losses = tuple[float, float]  # cross-entropy, one minus Dice


@dataclass(frozen=True, eq=False)
class Batch:
    """What a step learns from.

    Attributes
    ----------
    slices : tensor (n, n_planes, h, w) or None
        Crops. None: there are whole samples alone.
    context : tensor (n, n_classes, h, w) or None
        Probabilities of the coarse pass in them.
    labels : tensor (n, h, w) or None
    coarse_input : sequence of tensor (N_CHANNELS, cx, cy, cz)
        Whole samples, for the coarse pass.
    coarse_shares : sequence of tensor (n_classes, cx, cy, cz)
        The true shares of their classes.
    coarse_weight : float or None
        The weight of the loss of each of them; None: one over their number.
    """

    slices: torch.Tensor | None
    context: torch.Tensor | None
    labels: torch.Tensor | None
    coarse_input: Sequence[torch.Tensor] = ()
    coarse_shares: Sequence[torch.Tensor] = ()
    coarse_weight: float | None = None

    def __len__(self) -> int:
        """The number of crops; of whole samples if there are these alone."""
        return len(self.coarse_input) if self.slices is None else len(self.slices)

    def split(self, n: int) -> list[Batch]:
        """n batches with about the same number of crops; whole samples are distributed in turn.

        The mean of the gradients of the batches, weighted by their lengths, is the gradient of the
        whole.
        """
        if self.slices is None or self.labels is None:
            return [
                Batch(None, None, None, self.coarse_input[i::n], self.coarse_shares[i::n])
                for i in range(n)
            ]
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
    """Gradients and losses of a step, and what the coarse pass found.

    Attributes
    ----------
    gradients : list of tensor
        By the parameters of the network.
    losses : (float, float)
        Of the crops; of the whole samples if there are these alone.
    coarse : list of tensor (n_classes, cx, cy, cz)
        Probabilities of every whole sample of the batch.
    coarse_losses : list of (float, float)
        Of the whole samples.
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


def in_groups(samples: Sequence[torch.Tensor]) -> list[list[int]]:
    """The numbers of the samples that go through the coarse pass together.

    They have the same shape and are at most TOGETHER.
    """
    groups: dict[torch.Size, list[list[int]]] = {}
    for k, sample in enumerate(samples):
        alike = groups.setdefault(sample.shape, [])
        if not alike or len(alike[-1]) == TOGETHER:
            alike.append([])
        alike[-1].append(k)
    return [group for alike in groups.values() for group in alike]


def gradients(
    network: SliceNetwork, batch: Batch, weights: torch.Tensor, mixed: bool = False
) -> StepResult:
    """Gradients of the loss by the parameters of a network in training mode.

    The losses of the auxiliary heads and of the coarse pass are added to that of the crops.

    Parameters
    ----------
    network : SliceNetwork
    batch : Batch
    weights : tensor (n_classes,)
        Of the cross-entropy.
    mixed : bool
        Whether bfloat16 is used where its precision is sufficient.
    """
    parameters = list(network.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    device = parameters[0].device.type
    losses = None
    if batch.slices is not None and batch.labels is not None:
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
        losses = float(entropy.detach()), float(dice.detach())
    n_whole = len(batch.coarse_input)
    coarse, coarse_losses = [torch.empty(0)] * n_whole, [(0.0, 0.0)] * n_whole
    weight = batch.coarse_weight or 1 / max(n_whole, 1)
    for together in in_groups(batch.coarse_input):
        assert network.context is not None
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
            logits = network.context(torch.stack([batch.coarse_input[k] for k in together]))
        loss = 0.0
        for k, one in zip(together, logits[:, None], strict=True):
            parts = segmentation_loss(one, batch.coarse_shares[k][None], weights)
            loss = loss + weight * (parts[0] + parts[1])
            coarse[k] = torch.softmax(one.detach().float()[0], dim=0)
            coarse_losses[k] = float(parts[0].detach()), float(parts[1].detach())
        _plus(total, parameters, loss)
    if losses is None:
        losses = _mean_losses(coarse_losses)
    return StepResult(total, losses, coarse, coarse_losses)


def _mean_losses(losses: Sequence[Losses]) -> Losses:
    entropies, dices = zip(*losses, strict=True)
    return sum(entropies) / len(losses), sum(dices) / len(losses)


class ThreadedReplicas:
    """Replicas of a network that share its parameters; each thread uses one, and they share a step.

    torch's own threads wait for each other in every layer, which on a busy computer is slower than
    one thread. These threads wait for each other once in a step. The statistics of batches
    (buffers) are the mean of those of the threads.

    Parameters
    ----------
    network : SliceNetwork
    n : int
        The number of threads.
    mixed : bool
        As of :func:`gradients`.
    """

    def __init__(self, network: SliceNetwork, n: int, mixed: bool = False) -> None:
        self.mixed = mixed
        shared = {id(p): p for p in network.parameters()}
        self.networks = [network, *(copy.deepcopy(network, dict(shared)) for _ in range(n - 1))]
        self.pool = ThreadPoolExecutor(max_workers=n)

    def gradients(self, batch: Batch, weights: torch.Tensor) -> StepResult:
        """As :func:`gradients`: the mean over the threads, weighted by their parts of the batch.

        Parameters
        ----------
        batch : Batch
        weights : tensor (n_classes,)
        """
        n = len(self.networks)
        if n == 1:
            return gradients(self.networks[0], batch, weights, self.mixed)
        parts = batch.split(n)
        jobs = [
            self.pool.submit(gradients, network, part, weights, self.mixed)
            for network, part in zip(self.networks, parts, strict=True)
        ]
        done = [job.result() for job in jobs]
        shares = [len(part) / len(batch) for part in parts]
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
        """Sets all replicas to training mode."""
        for network in self.networks:
            network.train()
