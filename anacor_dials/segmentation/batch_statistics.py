"""Means and variances of the batch normalisations, measured again for averaged weights.

The statistics at the end of the training belong to the latest weights, not to the averaged ones,
and each thread has those of its own crops. They are measured again with the weights that are kept,
as for stochastic weight averaging (Izmailov et al., UAI 2018).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from anacor_dials.segmentation.network import SliceNetwork


@torch.no_grad()  # type: ignore[misc, unused-ignore]
def measure_statistics(
    network: SliceNetwork, batches: Iterable[tuple[torch.Tensor, torch.Tensor | None]]
) -> SliceNetwork:
    """The network, whose normalisations hold the mean statistics over some batches.

    Parameters
    ----------
    network : SliceNetwork
        It is changed, and is in evaluation mode afterwards.
    batches : iterable of (slices, context)
        What the network takes; at least one.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: the cumulative mean
    network.train()
    try:
        for slices, context in batches:
            network(slices, context)
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        network.eval()
    return network
