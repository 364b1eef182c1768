"""A network learns one sample from the voxels that a person labelled in it.

The two passes are adapted one after the other: first the coarse pass (:mod:`.context`), from the
blocks that hold hand-made voxels; then the network for slices, from crops of the planes that hold
them. Every step also uses other samples with true labels (of the training stream). Without them the
network would forget what samples look like, and would learn more from a few slices than they show.
The statistics of the batch normalisations remain those of the training.

The known labels are a volume in which UNKNOWN stands for voxels that nobody labelled. Those voxels
do not count.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from anacor_dials.sample.devices import chosen_device
from anacor_dials.sample.progress import Progress
from anacor_dials.segmentation.coarse_grid import BIN, context_input
from anacor_dials.segmentation.context import at_plane
from anacor_dials.segmentation.crops import Augmentation, CropSource
from anacor_dials.segmentation.losses import soft_dice
from anacor_dials.segmentation.network import SliceNetwork, has_fast_bfloat16, on_device
from anacor_dials.segmentation.tiles import context_of
from anacor_dials.segmentation.training_data import (
    TrainingVolume,
    VolumePool,
    turned,
)
from anacor_dials.segmentation.working_grid import UNKNOWN

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger("dials.anacor_dials.segmentation.adaptation")

# Three planes lie through a voxel. A plane may be drawn if it has at least this share of the
# hand-made voxels of the best of the three. Chosen by hand: a stroke of a few voxels thickness is
# no slice.
PLANE_SHARE = 0.3
PLACES_KEPT = 20_000  # hand-made voxels of each class at which crops are drawn; limits the memory
DICE_WEIGHT = 0.5  # of 1 - Dice relative to the cross-entropy; chosen by hand
# Less than the changes of the training, chosen by hand: only one sample is learned.
GENTLE = Augmentation(zoom=1.2, gain=0.04, offset=0.02, contrast=0.03, noise=0.04)
# orders of the axes; the normal of the slices comes first
ORDERS = ((0, 1, 2), (1, 0, 2), (2, 0, 1))


@dataclass(frozen=True)
class AdaptationSettings:
    """How a network is adapted to a sample.

    Parameters
    ----------
    coarse_steps, steps : int
        Steps of the coarse pass and of the network for slices.
    minutes : float
        How long it may take. If the time is too short for all steps, fewer steps are done; the
        learning rate falls accordingly.
    batch : int
        Crops of the sample in a step; the same number of crops comes from other samples.
    crop : int
        Edge of a crop in voxels, a multiple of 16.
    learning_rate, coarse_rate : float
        The largest learning rates of the network for slices and of the coarse pass.
    threads : int
        How many threads share a step.
    device : str
        auto, cpu or cuda.
    seed : int
    """

    coarse_steps: int = 60
    steps: int = 240
    minutes: float = 3.0
    batch: int = 4
    crop: int = 96
    learning_rate: float = 6e-4
    coarse_rate: float = 1e-3
    threads: int = 2
    device: str = "auto"
    seed: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.coarse_steps < 0 or self.batch < 1 or self.threads < 1:
            raise ValueError(
                f"An adaptation has at least one step, one crop and one thread; it was asked for "
                f"{self.steps} steps of {self.batch} crops on {self.threads} threads."
            )
        if self.crop < 32 or self.crop % 16:
            raise ValueError(f"crop is {self.crop} voxels; it is a multiple of 16, at least 32.")
        if not (math.isfinite(self.minutes) and self.minutes > 0):
            raise ValueError(f"minutes is {self.minutes}; it must be > 0.")


@dataclass(frozen=True, eq=False)
class KnownSample:
    """A sample of which some voxels are known.

    Parameters
    ----------
    views : array (N_VIEWS, nx, ny, nz)
        As of :class:`.training_data.TrainingVolume`.
    known : array (nx, ny, nz) of uint8
        Labels; UNKNOWN where nobody labelled.

    Raises
    ------
    ValueError
        If the shapes differ or no voxel is known.
    """

    views: NDArray[np.floating]
    known: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.views.shape[1:] != self.known.shape:
            raise ValueError(
                f"The views have the shape {self.views.shape[1:]} and the labels {self.known.shape}."
            )
        if not np.any(self.known != UNKNOWN):
            raise ValueError(
                "No voxel is labelled by hand, so there is nothing to learn from; correct some slices."
            )


def known_shares(known: NDArray[np.uint8], n_classes: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The shares of the classes in every coarse block, and how well each block is known.

    A block is fully known if as many of its voxels are known as one plane through it has.

    Parameters
    ----------
    known : array (nx, ny, nz) of uint8
        Labels; UNKNOWN where nobody labelled.
    n_classes : int

    Returns
    -------
    shares : array (n_classes, cx, cy, cz)
        Of the known voxels.
    weights : array (cx, cy, cz)
        0 (nothing is known) to 1.
    """
    padding = [(0, -n % BIN) for n in known.shape]
    filled = np.pad(known, padding, constant_values=UNKNOWN)
    cx, cy, cz = (n // BIN for n in filled.shape)
    blocks = filled.reshape(cx, BIN, cy, BIN, cz, BIN)
    counts = np.stack(
        [np.count_nonzero(blocks == label, axis=(1, 3, 5)) for label in range(n_classes)]
    ).astype(np.float32)
    total = counts.sum(axis=0)
    return counts / np.maximum(total, 1), np.minimum(total / BIN**2, 1.0)


# ---- what is drawn -------------------------------------------------------------------------------


class KnownCrops:
    """Crops of the planes of a sample that hold hand-made voxels.

    Every class that was labelled is drawn equally often.

    Parameters
    ----------
    sample : KnownSample
    n_slices : int
        Neighbouring slices that the network sees together, odd.
    contexts : sequence of array (n_classes, cx, cy, cz)
        Probabilities of the coarse pass before and after its adaptation. A crop gets a random
        mixture of the two: the adapted ones are better in these planes than they are elsewhere.
    """

    def __init__(
        self, sample: KnownSample, n_slices: int, contexts: Sequence[NDArray[np.float16]]
    ) -> None:
        self.sample, self.n_slices, self.contexts = sample, n_slices, contexts
        known = sample.known
        self.there = known != UNKNOWN
        self.per_plane = [
            np.count_nonzero(self.there, axis=tuple(a for a in range(3) if a != axis))
            for axis in range(3)
        ]
        self.places = []
        rng = np.random.default_rng(0)
        for label in np.unique(known[self.there]):
            flat = np.flatnonzero(known == label)
            if flat.size > PLACES_KEPT:
                flat = flat[rng.integers(0, flat.size, PLACES_KEPT)]
            self.places.append(np.stack(np.unravel_index(flat, known.shape), axis=1))

    def draw(self, rng: np.random.Generator, crop: int) -> tuple[Any, Any, Any]:
        """One crop: slices, context and labels.

        Parameters
        ----------
        rng : Generator
        crop : int
            Edge in voxels.

        Returns
        -------
        slices : array (N_VIEWS n_slices, crop, crop)
        context : array (n_classes, crop, crop) or None
        labels : array (crop, crop)
        """
        places = self.places[int(rng.integers(len(self.places)))]
        centre = places[int(rng.integers(len(places)))]
        counts = np.array([self.per_plane[axis][centre[axis]] for axis in range(3)], dtype=float)
        axis = int(rng.choice(np.flatnonzero(counts >= PLANE_SHARE * counts.max())))
        order = ORDERS[axis]
        views = self.sample.views.transpose(0, *(1 + k for k in order))
        labels = self.sample.known.transpose(order)
        x, rest = int(centre[axis]), centre[list(order[1:])]
        half, n = self.n_slices // 2, labels.shape[0]
        near = np.clip(np.arange(x - half, x + half + 1), 0, n - 1)
        box = []
        for middle, size in zip(rest, labels.shape[1:], strict=True):
            low = int(middle) - crop // 2 + int(rng.integers(-crop // 4, crop // 4 + 1))
            low = min(max(low, 0), max(size - crop, 0))
            box.append(slice(low, min(low + crop, size)))
        slices = views[:, near][:, :, box[0], box[1]].astype(np.float32)
        slices = slices.reshape(-1, *slices.shape[2:])
        parts = [slices, labels[x][box[0], box[1]][None]]
        if self.contexts:
            share = rng.random()
            planes = [
                at_plane(c.transpose(0, *(1 + k for k in order)), x, labels.shape[1:]).numpy()
                for c in (self.contexts[0], self.contexts[-1])
            ]
            mixed = (1 - share) * planes[0] + share * planes[1]
            parts.append(mixed[:, box[0], box[1]])
        turn, mirror = int(rng.integers(4)), bool(rng.integers(2))
        if rng.integers(2):  # the neighbours the other way round
            k = self.n_slices
            parts[0] = parts[0].reshape(-1, k, *slices.shape[1:])[:, ::-1].reshape(slices.shape)
        ready = []
        for number, part in enumerate(parts):
            padding = [(0, 0), *((0, crop - m) for m in part.shape[1:])]
            if number == 1:  # labels: nobody knows what lies beyond the sample
                part = np.pad(part, padding, constant_values=UNKNOWN)
            else:
                part = np.pad(part, padding, mode="edge")
            part = np.rot90(part, turn, (1, 2))
            ready.append(np.ascontiguousarray(part[:, :, ::-1] if mirror else part))
        gain, offset = rng.uniform(-1, 1, 2) * (GENTLE.gain, GENTLE.offset)
        ready[0] = (ready[0] * (1 + gain) + offset).astype(np.float32)
        context = ready[2].astype(np.float32) if self.contexts else None
        return ready[0], context, ready[1][0]


# ---- what is minimised ---------------------------------------------------------------------------


def known_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy + DICE_WEIGHT (1 - Dice), over the voxels whose labels are known.

    Parameters
    ----------
    logits : tensor (n, n_classes, h, w)
    labels : tensor (n, h, w)
        UNKNOWN where they are not known.
    """
    n = logits.shape[1]
    flat = logits.float().movedim(1, -1).reshape(-1, n)
    target = labels.reshape(-1)
    there = target != UNKNOWN
    return share_loss(
        flat[there], torch.nn.functional.one_hot(target[there].long(), n).float(), None
    )


def share_loss(
    logits: torch.Tensor, shares: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """Cross-entropy + DICE_WEIGHT (1 - Dice) of logits and true shares.

    Parameters
    ----------
    logits, shares : tensor (n, n_classes)
    weights : tensor (n,) or None
        How much each row counts in the cross-entropy; None: all the same.
    """
    logs = torch.log_softmax(logits, dim=1)
    rows = -(shares * logs).sum(dim=1)
    entropy = rows.mean() if weights is None else (weights * rows).sum() / weights.sum()
    dice = soft_dice(logits, shares).mean()
    return entropy + DICE_WEIGHT * (1.0 - dice)


class _Descent:
    """The optimiser (AdamW) of some parameters of a network; some threads share each step."""

    def __init__(
        self, network: nn.Module, parameters: list[Any], rate: float, settings: AdaptationSettings
    ) -> None:
        self.network, self.parameters, self.rate = network, parameters, rate
        self.device = next(network.parameters()).device
        self.mixed = has_fast_bfloat16(self.device)
        self.optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-3)
        self.threads = 1 if self.device.type == "cuda" else settings.threads

    def rates(self, steps: int, seconds: float) -> Iterator[int]:
        """The numbers of the steps for which there is time; sets the learning rate of each.

        The rate rises over the first ten steps, and falls to 2 % as half a cosine.
        """
        start = time.perf_counter()
        for step in range(steps):
            done = max(step / steps, (time.perf_counter() - start) / seconds)
            if done >= 1:
                return
            rise = min(1.0, (step + 1) / 10)
            for group in self.optimiser.param_groups:
                group["lr"] = self.rate * rise * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
            yield step

    def step(self, losses: Sequence[Any], pool: ThreadPoolExecutor) -> float:
        """Does one step that lowers the mean of some losses, and returns this mean.

        losses: functions without arguments, one for each thread.
        """

        def gradients(loss: Any) -> tuple[float, Sequence[Any]]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                value = loss()
            found = torch.autograd.grad(value, self.parameters, allow_unused=True)
            return float(value.detach()), found

        done = list(pool.map(gradients, losses))
        for k, parameter in enumerate(self.parameters):
            parts = [found[k] for _, found in done if found[k] is not None]
            parameter.grad = sum(parts[1:], parts[0]) / len(done) if parts else None
        torch.nn.utils.clip_grad_norm_(self.parameters, 2.0)
        self.optimiser.step()
        return float(np.mean([value for value, _ in done]))


# ---- the two passes ------------------------------------------------------------------------------


def _adapt_coarse(
    network: SliceNetwork,
    sample: KnownSample,
    others: VolumePool | None,
    settings: AdaptationSettings,
    bar: Any,
) -> None:
    """Adapts the coarse pass to the known blocks, together with whole other samples."""
    assert network.context is not None
    n = network.settings.n_classes
    coarse = network.context
    descent = _Descent(network, list(coarse.parameters()), settings.coarse_rate, settings)
    seen = context_input(sample.views)
    shares, weights = known_shares(sample.known, n)
    rng = np.random.default_rng([settings.seed, 1])

    def tensor(array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(descent.device)

    def loss_of(x: NDArray[Any], t: NDArray[Any], w: NDArray[Any]) -> torch.Tensor:
        logits = coarse(tensor(x)[None])[0].float().reshape(n, -1).T
        weight = tensor(w).reshape(-1)
        there = weight > 0
        return share_loss(logits[there], tensor(t).reshape(n, -1).T[there], weight[there])

    with ThreadPoolExecutor(descent.threads) as pool:
        for _ in descent.rates(settings.coarse_steps, 60 * settings.minutes * 0.3):
            losses = []
            for _ in range(1 if others is not None else 2):
                order, mirror = rng.permutation(3).tolist(), (rng.random(3) < 0.5).tolist()
                parts = [turned(part, order, mirror) for part in (seen, shares, weights[None])]
                losses.append(partial(loss_of, *parts))
            if others is not None:
                pooled = others.draw(rng)
                whole = np.ones(pooled.coarse_shares.shape[1:], dtype=np.float32)
                losses.append(partial(loss_of, pooled.coarse_input, pooled.coarse_shares, whole))
            value = descent.step(losses, pool)
            bar.update(note=f"loss {value:.3f}")


def adapted_network(
    network: SliceNetwork,
    sample: KnownSample,
    others: Sequence[TrainingVolume] = (),
    settings: AdaptationSettings | None = None,
    progress: bool = False,
) -> SliceNetwork:
    """A copy of a network that is adapted to a sample of which some voxels are known.

    It is in evaluation mode.

    Parameters
    ----------
    network : SliceNetwork
        It labels samples in general, and is not changed.
    sample : KnownSample
    others : sequence of TrainingVolume
        Samples with true labels, which keep the network from forgetting other samples.
    settings : AdaptationSettings, optional
    progress : bool
        Whether a progress bar is shown.

    Raises
    ------
    ValueError
        If a label is not one of the network's.
    """
    settings = settings or AdaptationSettings()
    labels = sample.known[sample.known != UNKNOWN]
    if int(labels.max()) >= network.settings.n_classes:
        raise ValueError(
            f"The label {int(labels.max())} was drawn and the network knows {network.settings.n_classes} "
            f"labels: {', '.join(network.settings.names)}."
        )
    device = torch.device(chosen_device(settings.device))
    adapted = on_device(copy.deepcopy(network), device).eval()
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)  # threads share a step, not a layer
    pool = VolumePool(others) if others else None
    total = settings.steps + (settings.coarse_steps if adapted.context is not None else 0)
    try:
        with Progress(total, "Learning", "step", progress) as bar:
            _adapt(adapted, sample, pool, settings, bar)
    finally:
        if device.type == "cpu":
            torch.set_num_threads(threads)
    return adapted.eval()


@torch.no_grad()  # type: ignore[misc, unused-ignore]
def nearest_network(networks: Sequence[SliceNetwork], sample: KnownSample, crops: int = 8) -> int:
    """The number of the network whose labels agree best with the known voxels.

    Parameters
    ----------
    networks : sequence of SliceNetwork
    sample : KnownSample
    crops : int
        The loss of each network is the mean over so many random crops.
    """
    if len(networks) == 1:
        return 0
    losses = []
    for network in networks:
        network.eval()
        contexts = []
        if network.context is not None:
            contexts.append(_context(network, sample.views, look=True))
        source = KnownCrops(sample, network.settings.n_slices, contexts)
        rng = np.random.default_rng(0)
        values = []
        for _ in range(crops):
            slices, context, labels = source.draw(rng, 96)
            around = None if context is None else torch.from_numpy(context)[None]
            logits = network(torch.from_numpy(slices)[None], around)
            values.append(float(known_loss(logits, torch.from_numpy(labels)[None])))
        losses.append(float(np.mean(values)))
    logger.info(
        "Where a person labelled, the networks' losses are %s",
        ", ".join(f"{v:.3f}" for v in losses),
    )
    return int(np.argmin(losses))


def _context(
    network: SliceNetwork, views: NDArray[np.float16], look: bool = False
) -> NDArray[np.float16]:
    found = context_of(network, views, look)
    assert found is not None  # the network has a coarse pass
    return found


def _adapt(
    network: SliceNetwork,
    sample: KnownSample,
    others: VolumePool | None,
    settings: AdaptationSettings,
    bar: Any,
) -> None:
    """Adapts both passes in place."""
    start = time.perf_counter()
    contexts: list[NDArray[np.float16]] = []
    if network.context is not None:
        contexts.append(_context(network, sample.views))
        _adapt_coarse(network, sample, others, settings, bar)
        contexts.append(_context(network, sample.views))
        contexts.append(_context(network, sample.views, look=True))
        for pooled in others.pooled() if others is not None else ():
            pooled.context = _context(network, pooled.volume.views)
    own = KnownCrops(sample, network.settings.n_slices, contexts)
    source = None if others is None else CropSource(others, network.settings.n_slices, GENTLE)
    fine = [
        p
        for name, p in network.named_parameters()
        if not name.startswith(("context.", "further_heads."))
    ]
    descent = _Descent(network, fine, settings.learning_rate, settings)
    rng = np.random.default_rng([settings.seed, 2])

    def loss_of(crops: Sequence[tuple[Any, Any, Any]]) -> torch.Tensor:
        slices, contexts_, labels = zip(*crops, strict=True)
        context = None
        if network.context is not None:
            context = torch.from_numpy(np.stack(contexts_)).to(descent.device)
        logits = network(torch.from_numpy(np.stack(slices)).to(descent.device), context)
        return known_loss(logits, torch.from_numpy(np.stack(labels)).to(descent.device))

    seconds = max(60 * settings.minutes - (time.perf_counter() - start), 1.0)
    n_steps, value = 0, math.nan
    with ThreadPoolExecutor(descent.threads) as pool:
        for _ in descent.rates(settings.steps, seconds):
            crops = [own.draw(rng, settings.crop) for _ in range(settings.batch)]
            parts = [crops]
            if source is not None:
                parts.append([source.draw(rng, settings.crop) for _ in range(settings.batch)])
            elif settings.batch > 1:
                parts = [crops[::2], crops[1::2]]
            value = descent.step([partial(loss_of, part) for part in parts], pool)
            bar.update(note=f"loss {value:.3f}")
            n_steps += 1
    logger.info(
        "The network learned the sample in %d steps and %.0f s; the loss was %.3f in the end",
        n_steps,
        time.perf_counter() - start,
        value,
    )
