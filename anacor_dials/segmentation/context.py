"""The coarse pass: a three-dimensional U-Net that sees the whole sample at about 4 um per voxel.

A slice through the middle of a large crystal shows neither its faces nor the loop, and looks like
liquor. Therefore the whole sample is first labelled coarsely: the working grid, averaged over
blocks of BIN voxels, is the input of a small U-Net in three dimensions (Cicek et al., MICCAI 2016,
with group normalisation). Its probabilities are a further input of the network for slices. Both are
trained together; the coarse pass learns the shares of the classes in every block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from anacor_dials.segmentation.coarse_grid import BIN, N_CHANNELS, context_input

if TYPE_CHECKING:
    from anacor_dials.segmentation.network import SliceNetwork

# Channels at 1/1, 1/2, 1/4 and 1/8 of the coarse grid. Chosen by hand.
WIDTHS = (16, 32, 64, 128)
# Volumes longer than TILE coarse voxels go through the network in blocks. The halo is three voxels
# of the deepest level, at 1/8 of the coarse grid. Both were chosen by hand.
TILE, HALO = 96, 24


def _convolved(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(c_in, c_out, 3, stride, 1, bias=False), nn.GroupNorm(8, c_out), nn.GELU()
    )


class ContextNetwork(nn.Module):  # type: ignore[misc]
    """A U-Net in three dimensions.

    Its input has the shape (n, N_CHANNELS, cx, cy, cz), of which it sees the first n_channels
    channels; its logits (n, classes, cx, cy, cz).
    """

    def __init__(self, n_classes: int, n_channels: int = N_CHANNELS) -> None:
        super().__init__()
        w = WIDTHS
        self.n_channels = n_channels
        self.first = nn.Sequential(_convolved(n_channels, w[0]), _convolved(w[0], w[0]))
        self.down = nn.ModuleList(
            nn.Sequential(_convolved(a, b, 2), _convolved(b, b))
            for a, b in zip(w[:-1], w[1:], strict=True)
        )
        self.reduce = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in zip(w[:-1], w[1:], strict=True))
        self.join = nn.ModuleList(
            nn.Sequential(_convolved(2 * a, a), _convolved(a, a)) for a in w[:-1]
        )
        self.head = nn.Conv3d(w[0], n_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes, cx, cy, cz) of (n, N_CHANNELS, cx, cy, cz)."""
        maps = [self.first(x[:, : self.n_channels])]
        for down in self.down:
            maps.append(down(maps[-1]))
        out = maps.pop()
        for level in range(len(self.down) - 1, -1, -1):
            skip = maps[level]
            up = F.interpolate(self.reduce[level](out), size=skip.shape[2:], mode="nearest")
            out = self.join[level](torch.cat([up, skip], dim=1))
        return self.head(out)


@torch.inference_mode()  # type: ignore[misc, unused-ignore]
def context_probabilities(network: SliceNetwork, seen: NDArray[Any]) -> NDArray[np.float16]:
    """Probabilities (n_classes, cx, cy, cz) that the coarse pass finds.

    Large volumes go through the network in blocks of TILE coarse voxels that overlap by a margin
    (HALO).

    Parameters
    ----------
    network : SliceNetwork
        With a coarse pass.
    seen : array (n_views, nx, ny, nz)
        The views of the tomogram.
    """
    assert network.context is not None
    x = torch.from_numpy(context_input(seen))
    device = next(network.parameters()).device
    shape = x.shape[1:]
    out = np.empty((network.settings.n_classes, *shape), dtype=np.float16)
    step = TILE - 2 * HALO
    starts = [range(0, 1) if n <= TILE else range(0, n, step) for n in shape]
    for i in starts[0]:
        for j in starts[1]:
            for k in starts[2]:
                whole, inner, target = [], [], []
                for first, n in zip((i, j, k), shape, strict=True):
                    last = n if n <= TILE else min(first + step, n)
                    low, high = max(0, first - HALO), min(n, last + HALO)
                    whole.append(slice(low, high))
                    inner.append(slice(first - low, last - low))
                    target.append(slice(first, last))
                block = x[(slice(None), *whole)].float()[None].to(device)
                p = torch.softmax(network.context(block)[0].float(), dim=0).cpu().numpy()
                out[(slice(None), *target)] = p[(slice(None), *inner)]
    return out


def at_plane(coarse: NDArray[np.float16], plane: int, shape: tuple[int, int]) -> torch.Tensor:
    """Probabilities (n_classes, ny, nz), float32, in one plane of the working grid.

    They are interpolated linearly between coarse blocks.

    Parameters
    ----------
    coarse : array (n_classes, cx, cy, cz)
        Of the coarse pass; the first spatial axis is normal to the plane.
    plane : int
        The number of the plane in the working grid.
    shape : (int, int)
        (ny, nz) of the plane.
    """
    place = min(max((plane + 0.5) / BIN - 0.5, 0.0), coarse.shape[1] - 1.0)
    first = min(int(place), max(coarse.shape[1] - 2, 0))
    share = np.float32(place - first)
    near = coarse[:, first].astype(np.float32)
    if share:
        near += share * (coarse[:, first + 1].astype(np.float32) - near)
    full = (coarse.shape[2] * BIN, coarse.shape[3] * BIN)
    big = F.interpolate(torch.from_numpy(near)[None], size=full, mode="bilinear")
    return big[0, :, : shape[0], : shape[1]]
