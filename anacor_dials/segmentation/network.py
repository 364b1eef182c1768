"""AnACorNet, and a plain U-Net of equal size for comparison.

AnACorNet labels slices of a tomogram. It is 2.5-dimensional: its input channels are the slice and
its neighbours, from the tomogram and from its views without fringes (:mod:`.fringes`), of any size;
its output is one map of logits for each class. The encoder has a stem at full and half resolution,
large-kernel attention at 1/4, hybrid large-kernel attention at 1/8, and a vision transformer at
1/16. The decoder is that of a U-Net, with hybrid large-kernel attention at 1/8 and 1/4. Auxiliary
heads at 1/2 and 1/4 are used in training only.

**Hybrid large-kernel attention (HLKA)**, as this program defines it (no publication of that exact
name is known)::

    a = depthwise 5x5 (x)                          x: (n, c, h, w), after 1x1 and GELU
    a1, a2 = halves of a's channels
    r = depthwise 7x7, dilation 3 (a1)             rigid: reaches 23 voxels
    d = modulated deformable depthwise 3x3, dilation 3 (a2)     follows the image
    g = 1x1 (r, d)
    HLKA(x) = x * 4 tanh(g / 4)                    the gate, bounded

It is derived from the large-kernel attention of VAN (Guo et al., Comput. Vis. Media 9 (2023) 733),
which is HLKA with the rigid half alone; from deformable convolution (Dai et al., ICCV 2017;
modulated: Zhu et al., CVPR 2019); and from D-LKA Net (Azad et al., WACV 2024), in which every
kernel is deformable. Here half of the channels have a fixed large kernel, which is cheap and
stable, and the kernels of the other half may bend along thin curved objects such as a loop. Offsets
begin at zero and modulations at one, so that training begins with a rigid kernel. The gate is
bounded, here and in the large-kernel attention: x times a gate that grows with x grows as the
square of x, and without a bound the maps of the deepest levels reached 1e4 in training and carried
no information.

The transformer has no table of positions. Instead a depthwise 3x3 convolution in every layer
encodes the positions of the tokens (Chu et al., ICLR 2023), so that slices may have any size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from anacor_dials.sample.volumes import DEFAULT_NAMES
from anacor_dials.segmentation.coarse_grid import (
    FAINT_FRINGE,
    FAINT_LEVEL,
    N_CHANNELS,
    N_CHANNELS_BEFORE,
)
from anacor_dials.segmentation.context import ContextNetwork
from anacor_dials.segmentation.fringes import N_VIEWS

logger = logging.getLogger("dials.anacor_dials.segmentation.network")

GATE_LIMIT = 4.0  # of the bounded gate; chosen by hand
STRIDE = 16  # slices are padded to multiples of this
# (value - 1) / window, with 1 the level of the sample: of the plain view, which is also used as it
# is, and of those without fringes. As the windows of the coarse pass; chosen by hand.
CONTRAST_WINDOWS = (0.25, 0.2, 0.15)

# Widths at 1/1, 1/2, 1/4, 1/8, 1/16; blocks at 1/4, 1/8, 1/16. Chosen by hand; the U-Nets have
# about as many parameters as the AnACorNets.
SIZES: dict[str, dict[str, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "anacornet": {
        "tiny": ((16, 32, 64, 128, 192), (2, 2, 3)),
        "base": ((24, 48, 96, 192, 288), (3, 4, 4)),
    },
    "unet": {
        "tiny": ((19, 38, 76, 152, 304), (1, 1, 1)),
        "base": ((32, 64, 128, 256, 512), (1, 1, 1)),
    },
}


@dataclass(frozen=True)
class NetworkSettings:
    """The kind of a network.

    Parameters
    ----------
    architecture : str
        "anacornet" or "unet".
    size : str
        "tiny" or "base".
    n_slices : int
        Neighbouring slices that it sees at once, odd; of each view, see :func:`channels`.
    names : tuple of str
        Of the classes, by label.
    context : bool
        Whether a coarse pass over the whole sample (:mod:`.context`) comes first; its probabilities
        are further input channels.
    bounded_gates : bool
        Whether the gates of the attention are bounded. Those of weights before version 4 are not.
    outlines : bool
        Whether the network sees faint outlines on a logarithmic scale (:func:`faint_outlines`), and
        its coarse pass all channels of :func:`.coarse_grid.context_input`. Those of weights before
        version 5 do not.
    """

    architecture: str = "anacornet"
    size: str = "tiny"
    n_slices: int = 5
    names: tuple[str, ...] = DEFAULT_NAMES
    context: bool = True
    bounded_gates: bool = True
    outlines: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if self.architecture not in SIZES:
            raise ValueError(
                f"The architecture {self.architecture!r} is unknown; known are {', '.join(SIZES)}."
            )
        if self.size not in SIZES[self.architecture]:
            raise ValueError(
                f"The network size {self.size!r} is unknown; known are "
                f"{', '.join(SIZES[self.architecture])}."
            )
        if self.n_slices < 1 or self.n_slices % 2 == 0:
            raise ValueError(
                f"n_slices is {self.n_slices}; it is an odd number (1, 3, 5 ...), the slice in its middle."
            )
        if len(self.names) < 2 or "crystal" not in self.names:
            raise ValueError(
                f"The classes are {', '.join(self.names)}; at least two, one of them crystal, are needed."
            )

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return len(self.names)

    @property
    def n_planes(self) -> int:
        """The number of input slices: n_slices of each view."""
        return N_VIEWS * self.n_slices

    @property
    def channel_parts(self) -> dict[str, slice]:
        """Where the parts of the input lie among the channels of the first convolution."""
        widths = {"slices": self.n_planes + self.n_slices}
        if self.context:
            widths["context"] = self.n_classes
        if self.outlines:
            widths["outlines"] = 2
        parts, first = {}, 0
        for name, width in widths.items():
            parts[name] = slice(first, first + width)
            first += width
        return parts

    @property
    def n_channels(self) -> int:
        """The number of channels of the first convolution."""
        return max(part.stop for part in self.channel_parts.values())


def channels(slices: torch.Tensor) -> torch.Tensor:
    """The input channels (n, s + s / N_VIEWS, h, w), of slices (n, s, h, w).

    There are s / N_VIEWS slices of each view. Slices are normalised: air is 0 and the sample 1.
    Slices of the plain tomogram are used as they are, clipped to -1 ... 3, and slices of all views
    in a narrow window about the level of the sample, so that the few per cent between crystal and
    liquor fill the range.
    """
    views = slices.chunk(N_VIEWS, dim=1)
    narrow = [
        ((view - 1.0) / window).clamp(-2.0, 2.0)
        for view, window in zip(views, CONTRAST_WINDOWS, strict=True)
    ]
    return torch.cat([views[0].clamp(-1.0, 3.0), *narrow], dim=1)


def faint_outlines(slices: torch.Tensor) -> torch.Tensor:
    """Two further channels (n, 2, h, w) of slices (n, s, h, w): faint differences, enlarged.

    Of the middle slice: the level of the plain tomogram relative to that of the sample, 1, and what
    the view with the shorter fringes undone lacks, on logarithmic scales of both signs. A crystal
    in liquor of equal level has an outline a hundred times fainter than the border to air.
    """
    plain, smooth, _ = (view[:, view.shape[1] // 2] for view in slices.chunk(N_VIEWS, dim=1))
    differences = plain.clamp(-1.0, 3.0) - 1.0, (plain - smooth).clamp(-4.0, 4.0)
    return torch.stack(
        [
            0.5 * torch.sign(d) * torch.log1p(d.abs() / faint)
            for d, faint in zip(differences, (FAINT_LEVEL, FAINT_FRINGE), strict=True)
        ],
        dim=1,
    )


def _normalised_conv(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.GELU()
    )


class DeformableDepthwise(nn.Module):  # type: ignore[misc]
    """A modulated deformable depthwise convolution 3x3 with dilation 3; always in float32.

    It is the same as torchvision's deform_conv2d with as many groups as channels, but one call of
    grid_sample reads all nine places, which is three times as fast on a CPU.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 1, 3, 3))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        # 2 x 9 offsets (rows, columns) and 9 modulations, zero and one at first
        self.shifts = nn.Conv2d(width, 27, 3, padding=1)
        nn.init.zeros_(self.shifts.weight)
        nn.init.zeros_(self.shifts.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # in bfloat16 offsets would lose their digits
        """The convolved map (n, c, h, w)."""
        with torch.autocast(x.device.type, enabled=False):
            x32 = x.float()
            shifts = self.shifts(x32)
            modulation = 2.0 * torch.sigmoid(shifts[:, 18:])
            out = deformable_depthwise(x32, self.weight.float(), shifts[:, :18], modulation)
        return out.to(x.dtype)


def deformable_depthwise(
    x: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor, modulation: torch.Tensor
) -> torch.Tensor:
    """A modulated deformable depthwise convolution 3x3, dilation 3, padded by 3: (n, c, h, w).

    Values are interpolated linearly between voxels; outside of the map they are zero.

    Parameters
    ----------
    x : tensor (n, c, h, w)
    weight : tensor (c, 1, 3, 3)
    offsets : tensor (n, 18, h, w)
        Row and column of each of the nine places, in voxels.
    modulation : tensor (n, 9, h, w)
    """
    n, c, h, w = x.shape
    steps = torch.tensor((-3.0, 0.0, 3.0), device=x.device)
    shift = offsets.reshape(n, 9, 2, h, w)
    rows = shift[:, :, 0] + steps.repeat_interleave(3)[:, None, None]
    rows = rows + torch.arange(h, device=x.device, dtype=x.dtype)[:, None]
    columns = shift[:, :, 1] + steps.repeat(3)[:, None, None]
    columns = columns + torch.arange(w, device=x.device, dtype=x.dtype)
    # grid_sample counts from -1 to 1, from the outer edge of the first voxel to that of the last
    grid = torch.stack([(2 * columns + 1) / w - 1, (2 * rows + 1) / h - 1], -1)
    places = F.grid_sample(
        x, grid.reshape(n, 9 * h, w, 2), "bilinear", "zeros", align_corners=False
    ).reshape(n, c, 9, h, w)
    return (places * modulation[:, None] * weight.reshape(1, c, 9, 1, 1)).sum(dim=2)


class LargeKernelGate(nn.Module):  # type: ignore[misc]
    """x times its large-kernel attention: rigid (LKA), or half rigid, half deformable (HLKA)."""

    def __init__(self, width: int, hybrid: bool, bounded: bool = True) -> None:
        super().__init__()
        self.bounded = bounded
        self.near = nn.Conv2d(width, width, 5, padding=2, groups=width)
        rigid = width // 2 if hybrid else width
        self.rigid = nn.Conv2d(rigid, rigid, 7, padding=9, dilation=3, groups=rigid)
        self.deformable = DeformableDepthwise(width - rigid) if hybrid else None
        self.mix = nn.Conv2d(width, width, 1)
        self.n_rigid = rigid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map (n, c, h, w) after the gate."""
        a = self.near(x)
        if self.deformable is None:
            seen = self._rigid(a)
        else:
            r, d = self._rigid(a[:, : self.n_rigid]), self.deformable(a[:, self.n_rigid :])
            seen = torch.cat([r, d], dim=1)
        gate = self.mix(seen)
        return x * (GATE_LIMIT * torch.tanh(gate / GATE_LIMIT) if self.bounded else gate)

    def _rigid(self, a: torch.Tensor) -> torch.Tensor:
        if a.device.type != "cpu":
            return self.rigid(a)
        # on CPUs the gradient of a dilated depthwise kernel by its weights is wrong in bfloat16,
        # sometimes infinite (oneDNN 3.12)
        with torch.autocast("cpu", enabled=False):
            return self.rigid(a.float()).to(a.dtype)


class AttentionBlock(nn.Module):  # type: ignore[misc]
    """x + 1x1(LKA or HLKA(GELU(1x1 x))), then a feed-forward part with a depthwise 3x3 (VAN)."""

    def __init__(self, width: int, hybrid: bool, bounded: bool = True, expansion: int = 2) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.before, self.after = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.gate = LargeKernelGate(width, hybrid, bounded)
        inner = expansion * width
        self.feed_forward = nn.Sequential(
            nn.Conv2d(width, inner, 1),
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner),
            nn.GELU(),
            nn.Conv2d(inner, width, 1),
        )
        self.scale1 = nn.Parameter(torch.full((width, 1, 1), 0.1))
        self.scale2 = nn.Parameter(torch.full((width, 1, 1), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map (n, c, h, w) after the block."""
        x = x + self.scale1 * self.after(self.gate(F.gelu(self.before(self.norm1(x)))))
        return x + self.scale2 * self.feed_forward(self.norm2(x))


class TransformerLayer(nn.Module):  # type: ignore[misc]
    """Self-attention over a map (n, c, h, w); a depthwise 3x3 encodes the positions."""

    def __init__(self, width: int, head_width: int = 32) -> None:
        super().__init__()
        self.heads = max(1, width // head_width)
        self.positions = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map (n, c, h, w) after the layer."""
        n, c, h, w = x.shape
        x = x + self.positions(x)
        tokens = x.flatten(2).transpose(1, 2)  # (n, h w, c)
        qkv = self.qkv(self.norm1(tokens)).reshape(n, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, c)
        tokens = tokens + self.out(mixed)
        tokens = tokens + self.feed_forward(self.norm2(tokens))
        return tokens.transpose(1, 2).reshape(n, c, h, w)


class UpBlock(nn.Module):  # type: ignore[misc]
    """A step of the decoder: the coarser map, enlarged, with the encoder's map of that size."""

    def __init__(self, coarse: int, skip: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(coarse, width, 1)
        self.join = _normalised_conv(width + skip, width)

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """The joined map (n, width, h, w).

        coarse: (n, c, h / 2, w / 2); skip: (n, c', h, w), of the encoder.
        """
        up = F.interpolate(self.reduce(coarse), scale_factor=2.0, mode="bilinear")
        return self.join(torch.cat([up, skip], dim=1))


class SliceNetwork(nn.Module):  # type: ignore[misc]
    """What both networks share.

    The input are normalised slices (n, n_planes, h, w), the output logits (n, classes, h, w). A
    network with context also takes the probabilities (n, classes, h, w) of its coarse pass,
    ``network.context``, in the middle slice. In training mode it returns a list of logits: at full
    size, at 1/2 and at 1/4.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        self.context = (
            ContextNetwork(
                settings.n_classes, N_CHANNELS if settings.outlines else N_CHANNELS_BEFORE
            )
            if settings.context
            else None
        )
        widths = SIZES[settings.architecture][settings.size][0]
        self.head = nn.Conv2d(widths[0], settings.n_classes, 1)
        self.further_heads = nn.ModuleList(
            nn.Conv2d(width, settings.n_classes, 1) for width in widths[1:3]
        )

    def decoded(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The decoder's maps at 1/1, 1/2 and 1/4 of channels (n, c, h, w)."""
        raise NotImplementedError

    def forward(self, slices: torch.Tensor, context: torch.Tensor | None = None) -> Any:
        """Logits (n, classes, h, w); in training mode a list of them.

        slices: (n, n_planes, h, w); context: (n, classes, h, w), if the network has a coarse pass.
        """
        if slices.ndim != 4 or slices.shape[1] != self.settings.n_planes:
            raise ValueError(
                f"The network sees {self.settings.n_slices} slices at once, each in {N_VIEWS} views; the input "
                f"has the shape {tuple(slices.shape)} instead of (n, {self.settings.n_planes}, height, width)."
            )
        if (context is not None) != self.settings.context:
            needed = "needs" if self.settings.context else "takes no"
            raise ValueError(
                f"This network {needed} probabilities of a coarse pass beside the slices."
            )
        height, width = slices.shape[2:]
        seen = channels(slices)
        if context is not None:
            seen = torch.cat([seen, context], dim=1)
        if self.settings.outlines:
            seen = torch.cat([seen, faint_outlines(slices)], dim=1)
        padding = (0, -width % STRIDE, 0, -height % STRIDE)
        if any(padding):
            seen = F.pad(seen, padding, mode="replicate")
        maps = self.decoded(seen)
        logits = self.head(maps[0])[:, :, :height, :width]
        if not self.training:
            return logits
        return [
            logits,
            *(head(part) for head, part in zip(self.further_heads, maps[1:], strict=True)),
        ]


class AnACorNet(SliceNetwork):
    """U-Net with large-kernel attention, hybrid large-kernel attention and a vision transformer."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__(settings)
        (w1, w2, w4, w8, w16), (n4, n8, n16) = SIZES["anacornet"][settings.size]
        bounded = settings.bounded_gates
        self.level1 = nn.Sequential(
            _normalised_conv(settings.n_channels, w1), _normalised_conv(w1, w1)
        )
        self.level2 = nn.Sequential(_normalised_conv(w1, w2, 2), _normalised_conv(w2, w2))
        self.level4 = nn.Sequential(
            _normalised_conv(w2, w4, 2), *(AttentionBlock(w4, False, bounded) for _ in range(n4))
        )
        self.level8 = nn.Sequential(
            _normalised_conv(w4, w8, 2), *(AttentionBlock(w8, True, bounded) for _ in range(n8))
        )
        self.level16 = nn.Sequential(
            _normalised_conv(w8, w16, 2), *(TransformerLayer(w16) for _ in range(n16))
        )
        self.join8, self.join4 = UpBlock(w16, w8, w8), UpBlock(w8, w4, w4)
        self.join2, self.join1 = UpBlock(w4, w2, w2), UpBlock(w2, w1, w1)
        self.up8, self.up4 = AttentionBlock(w8, True, bounded), AttentionBlock(w4, True, bounded)

    def decoded(self, x: torch.Tensor) -> list[torch.Tensor]:
        """See :meth:`SliceNetwork.decoded`."""
        full = self.level1(x)
        half = self.level2(full)
        quarter = self.level4(half)
        eighth = self.level8(quarter)
        up8 = self.up8(self.join8(self.level16(eighth), eighth))
        up4 = self.up4(self.join4(up8, quarter))
        up2 = self.join2(up4, half)
        return [self.join1(up2, full), up2, up4]


class UNet(SliceNetwork):
    """A plain U-Net (Ronneberger et al., MICCAI 2015) with batch normalisation: the baseline."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__(settings)
        widths = SIZES["unet"][settings.size][0]
        steps = [nn.Sequential(_normalised_conv(settings.n_channels, widths[0]), _normalised_conv(widths[0], widths[0]))]  # fmt: skip
        for fine, coarse in zip(widths[:-1], widths[1:], strict=True):
            steps.append(
                nn.Sequential(_normalised_conv(fine, coarse, 2), _normalised_conv(coarse, coarse))
            )
        self.steps = nn.ModuleList(steps)
        self.joins = nn.ModuleList(
            UpBlock(coarse, fine, fine)
            for fine, coarse in zip(widths[:-1], widths[1:], strict=True)
        )
        self.after = nn.ModuleList(_normalised_conv(width, width) for width in widths[:-1])

    def decoded(self, x: torch.Tensor) -> list[torch.Tensor]:
        """See :meth:`SliceNetwork.decoded`."""
        skips = []
        for step in self.steps:
            x = step(x)
            skips.append(x)
        maps = []
        for level in range(len(self.joins) - 1, -1, -1):
            x = self.after[level](self.joins[level](x, skips[level]))
            maps.append(x)
        return maps[:-4:-1]


def build_network(settings: NetworkSettings | None = None) -> SliceNetwork:
    """A network with random weights. The same seed of torch gives the same weights."""
    settings = settings or NetworkSettings()
    return AnACorNet(settings) if settings.architecture == "anacornet" else UNet(settings)


# parts of AnACorNet that are not taken from weights whose gates had no bound
DEEPEST = ("level8.", "level16.", "join8.", "up8.", "join4.reduce.")


def take_over(network: SliceNetwork, earlier: SliceNetwork) -> None:
    """Gives a network the weights of an earlier one of the same architecture, size and classes.

    If the earlier network had no coarse pass, the channels of its probabilities have zero weight at
    first, and so have those of faint outlines. If its gates had no bound, the
    deepest levels, which carried no information, keep the weights of the new network.

    Parameters
    ----------
    network : SliceNetwork
        It is changed.
    earlier : SliceNetwork

    Raises
    ------
    ValueError
        If the networks are of different kinds.
    """
    new = network.settings
    known = replace(
        earlier.settings,
        context=new.context,
        bounded_gates=new.bounded_gates,
        outlines=new.outlines,
    )
    if known != new:
        raise ValueError(
            f"The earlier weights are of {earlier.settings.architecture} {earlier.settings.size}, not "
            "of the network that is to be trained; name other weights, or that network."
        )
    anew = new.bounded_gates and not earlier.settings.bounded_gates
    state = network.state_dict()
    for name, tensor in earlier.state_dict().items():
        if name not in state or (anew and name.startswith(DEEPEST)):
            continue
        if state[name].shape == tensor.shape:
            state[name] = tensor
        else:  # the first convolution, of slices or of the coarse pass, has more channels now
            wider = torch.zeros_like(state[name])
            ours, theirs = (
                {"": slice(tensor.shape[1])}  # the coarse pass: its first channels are the same
                if name.startswith("context.")
                else settings.channel_parts
                for settings in (new, earlier.settings)
            )
            for part in ours.keys() & theirs.keys():
                wider[:, ours[part]] = tensor[:, theirs[part]]
            state[name] = wider
    network.load_state_dict(state)


def n_parameters(network: nn.Module) -> int:
    """The number of weights of a network."""
    return sum(p.numel() for p in network.parameters())


def memory_layout(device: torch.device) -> torch.memory_format:
    """The order in which networks and slices lie in memory: the faster one, as measured.

    It is channels last on GPUs and on CPUs with AVX-512 (1.4 to 1.9 times as fast); on other CPUs
    channels last is slower by a fifth.
    """
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.channels_last if device.type == "cuda" or wide else torch.contiguous_format


def on_device(network: SliceNetwork, device: torch.device) -> SliceNetwork:
    """The network, moved to a device.

    Its two-dimensional kernels are in the order of :func:`memory_layout`.
    """
    network = network.to(device)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=memory_layout(device))
    return network


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32: on GPUs and on CPUs with AMX.

    On other CPUs it is far slower.
    """
    # old versions of torch do not tell
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cuda" or bool(capabilities.get("amx_bf16", False))
