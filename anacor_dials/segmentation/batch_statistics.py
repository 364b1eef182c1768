"""Means and variances of the batch normalisations, measured anew for averaged weights.

Those that training leaves behind belong to other weights than the averaged ones, and of two threads to
each thread's own crops. They are measured again with the weights that are kept (as for stochastic
weight averaging: Izmailov et al., UAI 2018).
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
    """Puts the plain mean over some batches into a network's normalisations.

    Parameters
    ----------
    network: it is changed, and left in evaluation mode.
    batches: pairs of what the network takes, slices and the coarse pass's probabilities; not empty.

    Returns
    -------
    The same network.
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
