"""Training of AnACorNet: from samples with true labels to weights and their model card.

``python -m anacor_dials.segmentation.training --data FOLDER --weights NAME.safetensors`` where DIALS is
not installed; ``dials.anacor_train`` elsewhere.

The loss is class-weighted cross-entropy plus 1 - Dice (Milletari et al., 3DV 2016), the latter averaged
over the classes, with deep supervision at 1/2 and 1/4. AdamW with a warm-up and a cosine; the weights
looked at are the exponential mean of the last few hundred steps, and those are kept whose loss on the samples
left out of training was the lowest. On GPUs, and on CPUs with AMX, in bfloat16, the
deformable convolutions in float32; on other CPUs in float32, where bfloat16 is far slower. The crops of a step
depend on the seed and the step alone, so that a training that is taken up again sees the same ones.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import logging
import math
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from anacor_dials import __version__
from anacor_dials.sample.output_files import whole_file
from anacor_dials.segmentation.network import (
    NetworkSettings,
    SliceNetwork,
    build_network,
    has_fast_bfloat16,
    load_weights,
    memory_layout,
    n_parameters,
    save_weights,
)
from anacor_dials.segmentation.training_data import (
    Augmentation,
    CropSource,
    TrainingVolume,
    class_weights,
    read_training_volumes,
    split_samples,
)

logger = logging.getLogger("dials.anacor_dials.segmentation.training")

FURTHER_HEADS = (0.3, 0.15)  # weights of the heads at 1/2 and 1/4
COLUMNS = (
    "step", "seconds", "learning_rate", "loss", "cross_entropy", "dice_loss",
    "validation_cross_entropy", "validation_dice",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained.

    steps: of the optimiser, in all; batch: crops in a step; crop: their edge in voxels. warm_up: steps.
    mean_steps: over how many steps the weights are averaged. validate_every: steps. minutes: stop (and
    leave a checkpoint to go on from) after this long, None not to; within_minutes: the learning rate falls
    with the time so that all is over after this long, with as many steps as there was time for, `steps` at most.
    begin_with: weights of an earlier training to begin from, "" for random ones. weights_taken_off: how much of
    the logarithms of the classes' weights is taken off the logits in the end, 0 to 1. threads: on a CPU, how many
    share a step, each with some of its crops and its own statistics of them. device: auto, cpu, cuda.
    precision: float32, bfloat16 (mixed), or auto for what is faster on the device.
    """

    network: NetworkSettings = field(default_factory=NetworkSettings)
    steps: int = 1000
    batch: int = 8
    crop: int = 96
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warm_up: int = 50
    mean_steps: int = 100
    validate_every: int = 250
    n_validation: int = 3
    seed: int = 1
    minutes: float | None = None
    within_minutes: float | None = None
    begin_with: str = ""
    weights_taken_off: float = 1.0
    threads: int = 1
    device: str = "auto"
    precision: str = "auto"
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "validate_every", "mean_steps", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"The learning rate is {self.learning_rate}; it must be > 0.")
        if self.threads > self.batch:
            raise ValueError(
                f"{self.threads} threads cannot share {self.batch} crops; ask for fewer threads."
            )
        if self.within_minutes is not None and not self.within_minutes > 0:
            raise ValueError(f"within_minutes is {self.within_minutes}; it must be > 0.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"The device {self.device!r} is unknown; choose auto, cpu or cuda.")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(
                f"The precision {self.precision!r} is unknown; choose auto, float32 or bfloat16."
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device=cuda was asked for and torch sees no GPU; take device=cpu.")

    @property
    def torch_device(self) -> torch.device:
        cuda = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if cuda else "cpu")

    @property
    def mixed_precision(self) -> bool:
        """Whether what stands it is computed in bfloat16."""
        if self.precision == "auto":
            return has_fast_bfloat16(self.torch_device)
        return self.precision == "bfloat16"

    def learning_rate_at(self, step: int, seconds: float = 0.0) -> float:
        """Linear warm-up, then half a cosine down to 2 % over the steps or the time, what is over sooner."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        if self.within_minutes is not None:
            done = max(done, seconds / (60 * self.within_minutes))
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


# ---- the loss -------------------------------------------------------------------------------------


def soft_dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Dice (n_classes,) of probabilities (n, c, h, w) and labels (n, h, w), over the whole batch.

    2 sum(p t) / (sum(p) + sum(t)) for every class; one where a class is neither there nor predicted.
    """
    p = torch.softmax(logits.float(), dim=1)
    t = F.one_hot(target.long(), logits.shape[1]).permute(0, 3, 1, 2).to(p.dtype)
    both = (p * t).sum(dim=(0, 2, 3))
    total = p.sum(dim=(0, 2, 3)) + t.sum(dim=(0, 2, 3))
    return (2 * both + 1.0) / (total + 1.0)


def segmentation_loss(
    logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cross-entropy, Dice loss) of logits (n, c, h, w) and labels (n, H, W); H, W may be multiples.

    For smaller logits the labels are thinned out. weights: (c,) of the cross-entropy.
    """
    step = target.shape[-1] // logits.shape[-1]
    if step > 1:
        target = target[:, step // 2 :: step, step // 2 :: step]
    cross_entropy = F.cross_entropy(logits.float(), target.long(), weight=weights)
    return cross_entropy, 1.0 - soft_dice(logits, target).mean()


@torch.no_grad()  # type: ignore[misc, unused-ignore]
def without_class_weights(network: SliceNetwork, weights: torch.Tensor) -> None:
    """Takes the logarithms of the classes' weights (c,) off the logits, for the time after training.

    Weighted cross-entropy is least where the probabilities are those of the classes times their weights, and
    rare classes are then found too large (Menon et al., ICLR 2021, on logit adjustment).
    """
    assert network.head.bias is not None
    network.head.bias -= torch.log(weights).to(network.head.bias)


# ---- the mean of the weights ----------------------------------------------------------------------


class MeanWeights:
    """The exponential mean of a network's weights; of what is no float (counters), the last value."""

    def __init__(self, network: SliceNetwork, n_steps: int) -> None:
        self.n_steps, self.n = n_steps, 0
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()  # type: ignore[misc, unused-ignore]
    def add(self, network: SliceNetwork) -> None:
        self.n += 1
        keep = 1.0 - 1.0 / min(self.n, self.n_steps)  # the plain mean at first
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.state[name].mul_(keep).add_(value, alpha=1.0 - keep)
            else:
                self.state[name].copy_(value)


# ---- a step ---------------------------------------------------------------------------------------


def gradients(
    network: SliceNetwork,
    slices: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor,
    mixed: bool = False,
) -> tuple[list[torch.Tensor], tuple[float, float]]:
    """(gradients of the loss by the parameters, (cross-entropy, Dice loss)) of a batch.

    slices (n, n_planes, h, w), target (n, h, w), weights (c,) of the classes; mixed: in bfloat16 where that will
    do. The network is in training mode.
    """
    with torch.autocast(slices.device.type, dtype=torch.bfloat16, enabled=mixed):
        outputs = network(slices)
    cross_entropy, dice_loss = segmentation_loss(outputs[0], target, weights)
    loss = cross_entropy + dice_loss
    for share, output in zip(FURTHER_HEADS, outputs[1:], strict=True):
        loss = loss + share * sum(segmentation_loss(output, target, weights))
    found = torch.autograd.grad(loss, list(network.parameters()))
    return list(found), (float(cross_entropy.detach()), float(dice_loss.detach()))


class Crew:
    """Some threads that share the crops of a step: the network's own and copies that share its parameters.

    torch's own threads wait for each other in every layer, which on a busy machine is slower than one
    of them; these meet once in a step. Statistics of batches (buffers) are the mean of the threads'.
    mixed: as of :func:`gradients`.
    """

    def __init__(self, network: SliceNetwork, n: int, mixed: bool = False) -> None:
        self.mixed = mixed
        shared = {id(p): p for p in network.parameters()}
        self.networks = [network, *(copy.deepcopy(network, dict(shared)) for _ in range(n - 1))]
        self.pool = ThreadPoolExecutor(max_workers=n)

    def gradients(
        self, slices: torch.Tensor, target: torch.Tensor, weights: torch.Tensor
    ) -> tuple[list[torch.Tensor], tuple[float, float]]:
        """As :func:`gradients`; the means of the threads', by how many crops each of them had."""
        n = len(self.networks)
        if n == 1:
            return gradients(self.networks[0], slices, target, weights, self.mixed)
        parts = zip(self.networks, slices.tensor_split(n), target.tensor_split(n), strict=True)
        jobs = [self.pool.submit(gradients, net, x, t, weights, self.mixed) for net, x, t in parts]
        done = [job.result() for job in jobs]
        shares = [len(x) / len(slices) for x in slices.tensor_split(n)]
        total = [
            torch.stack([share * g for share, g in zip(shares, parts_, strict=True)]).sum(0)
            for parts_ in zip(*(found for found, _ in done), strict=True)
        ]
        with torch.no_grad():
            for buffers in zip(*(net.buffers() for net in self.networks), strict=True):
                if buffers[0].is_floating_point():
                    mean = torch.stack(buffers).mean(0)
                    for buffer in buffers:
                        buffer.copy_(mean)
        losses = [
            sum(s * loss[k] for s, (_, loss) in zip(shares, done, strict=True)) for k in (0, 1)
        ]
        return total, (float(losses[0]), float(losses[1]))

    def train(self) -> None:
        for network in self.networks:
            network.train()


# ---- training -------------------------------------------------------------------------------------


def _batch_of(source: CropSource, settings: TrainingSettings, step: int) -> tuple[Any, Any]:
    return source.batch(np.random.default_rng([settings.seed, step]), settings.batch)


@torch.no_grad()  # type: ignore[misc, unused-ignore]
def validation_scores(
    network: SliceNetwork, volumes: Sequence[TrainingVolume], device: torch.device, every: int = 6
) -> tuple[float, NDArray[np.float64]]:
    """(cross-entropy, Dice (n_classes,)) of labels on every sixth slice along X, over all samples."""
    n, half = network.settings.n_classes, network.settings.n_slices // 2
    both, total, loss, seen = np.zeros(n), np.zeros(n), 0.0, 0
    network.eval()
    for volume in volumes:
        views = np.pad(volume.views, ((0, 0), (half, half), (0, 0), (0, 0)), mode="edge")
        for x in range(every // 2, volume.labels.shape[0], every):
            near = views[:, x : x + 2 * half + 1].reshape(-1, *views.shape[2:])
            slices = torch.from_numpy(near.astype(np.float32))[None]
            logits = network(slices.to(device)).float()
            target = torch.from_numpy(volume.labels[x].astype(np.int64))[None].to(device)
            loss += float(F.cross_entropy(logits, target, reduction="sum"))
            seen += target.numel()
            found = logits.argmax(dim=1)
            for label in range(n):
                f, t = found == label, target == label
                both[label] += float((f & t).sum())
                total[label] += float(f.sum() + t.sum())
    return loss / max(seen, 1), (2 * both + 1e-9) / (total + 1e-9)


def commit_of_program() -> str:
    """The commit that the program's files are from, "" where they are in no repository."""
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _write_log(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    columns = [*COLUMNS[:-1], *(f"validation_dice_{name}" for name in names)]
    with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def plot_log(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bool:
    """Draws the training's course as a PNG; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = np.array([row["step"] for row in rows], dtype=float)
    for column in ("cross_entropy", "dice_loss"):
        left.plot(steps, [row[column] for row in rows], label=column.replace("_", " "))
    checked = [row for row in rows if row.get("validation_cross_entropy", "") != ""]
    for name in names:
        dice = [row[f"validation_dice_{name}"] for row in checked]
        right.plot([row["step"] for row in checked], dice, "o-", label=name)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    right.set(xlabel="step", ylabel="Dice, samples left out of training")
    left.legend(), right.legend()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return True


def _fingerprint(settings: TrainingSettings, volumes: Sequence[TrainingVolume]) -> dict[str, Any]:
    """What must be the same for a training to be taken up; more steps stretch what is left of it."""
    kept = asdict(settings)
    for name in (
        "steps",
        "minutes",
        "within_minutes",
        "device",
        "precision",
        "validate_every",
        "threads",
    ):
        kept.pop(name)
    return json.loads(json.dumps({"settings": kept, "samples": [v.name for v in volumes]}))


def train(
    volumes: Sequence[TrainingVolume],
    settings: TrainingSettings,
    weights: Path,
    resume: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Trains a network and writes its weights; returns the model card.

    The weights are those of the step (kept_step in the card) whose loss on the samples left out (cross-entropy
    without weights, plus 1 - Dice) was the lowest of all that were looked at; those of the last step where
    none are left out.

    Beside NAME.safetensors come NAME.json (the card), NAME.csv and NAME.png (the course) and, until the
    last step is done, NAME.checkpoint.pt, from which training goes on when it is called again with
    the same settings and samples. Raises ValueError where a checkpoint belongs to another training.
    """
    torch.manual_seed(settings.seed)
    training, validation = split_samples(volumes, settings.n_validation, settings.seed)
    device = settings.torch_device
    on_gpu = device.type == "cuda"
    layout = memory_layout(device)
    network = build_network(settings.network)
    if settings.begin_with:
        earlier = load_weights(settings.begin_with)
        if earlier.settings != settings.network:
            raise ValueError(
                f"{settings.begin_with} holds {earlier.settings.architecture} {earlier.settings.size}, not "
                "the network that is to be trained; name other weights, or that network."
            )
        network.load_state_dict(earlier.state_dict())
    network = network.to(device, memory_format=layout)
    source = CropSource(training, settings.crop, settings.network.n_slices, settings.augmentation)
    weights_of_classes = class_weights(training, settings.network.n_classes)
    per_class = torch.tensor(weights_of_classes, dtype=torch.float32, device=device)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    mean = MeanWeights(network, settings.mean_steps)
    rows: list[dict[str, Any]] = []
    best: dict[str, Any] = {"step": 0, "loss": math.inf, "state": {}}
    first, seconds_before = 0, 0.0
    checkpoint = weights.with_suffix(".checkpoint.pt")
    fingerprint = _fingerprint(settings, volumes)
    if resume and checkpoint.is_file():
        kept = torch.load(checkpoint, map_location=device, weights_only=True)
        if json.loads(kept["fingerprint"]) != fingerprint:
            raise ValueError(
                f"{checkpoint} belongs to a training with other settings or samples; remove it, or name "
                "other weights."
            )
        network.load_state_dict(kept["network"])
        optimiser.load_state_dict(kept["optimiser"])
        mean.state, mean.n = kept["mean"], int(kept["mean_n"])
        first, seconds_before = int(kept["step"]), float(kept["seconds"])
        rows, best = json.loads(kept["rows"]), kept["best"]
        logger.info("Training goes on from step %d", first)

    logger.info(
        "%s %s: %.2f M parameters, %d samples to train on, %d to validate, %d steps of %d crops of "
        "%d voxels on %s",
        settings.network.architecture, settings.network.size, n_parameters(network) / 1e6,
        len(training), len(validation), settings.steps, settings.batch, settings.crop, device,
    )  # fmt: skip

    start = time.perf_counter()

    def save_checkpoint(step: int) -> None:
        with whole_file(checkpoint) as temporary:
            torch.save(
                {
                    "fingerprint": json.dumps(fingerprint),
                    "network": network.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "mean": mean.state,
                    "mean_n": mean.n,
                    "best": best,
                    "step": step,
                    "seconds": seconds_before + time.perf_counter() - start,
                    "rows": json.dumps(rows),
                },
                temporary,
            )

    crew = Crew(network, 1 if on_gpu else settings.threads, settings.mixed_precision)
    crew.train()
    averaged = build_network(settings.network).to(device, memory_format=layout)
    window: list[tuple[float, float]] = []
    finished = first >= settings.steps
    limit_s = math.inf if settings.within_minutes is None else 60 * settings.within_minutes
    ahead = 16 if on_gpu else 1
    step = first
    with ThreadPoolExecutor(max_workers=8 if on_gpu else 1) as pool:
        waiting: list[Future[tuple[Any, Any]]] = [
            pool.submit(_batch_of, source, settings, s)
            for s in range(first, min(first + ahead, settings.steps))
        ]
        bar = tqdm(
            range(first, settings.steps), initial=first, total=settings.steps, unit="step",
            desc="Training", disable=not progress,
        )  # fmt: skip
        for step in bar:
            slices, labels = waiting.pop(0).result()
            if step + ahead < settings.steps:
                waiting.append(pool.submit(_batch_of, source, settings, step + ahead))
            rate = settings.learning_rate_at(step, seconds_before + time.perf_counter() - start)
            for group in optimiser.param_groups:
                group["lr"] = rate
            x = torch.from_numpy(slices).to(device, non_blocking=True)
            x = x.contiguous(memory_format=layout)
            target = torch.from_numpy(labels).to(device, non_blocking=True)
            found, losses = crew.gradients(x, target, per_class)
            for parameter, gradient in zip(network.parameters(), found, strict=True):
                parameter.grad = gradient
            torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimiser.step()
            mean.add(network)
            window.append(losses)
            if not math.isfinite(window[-1][0]):
                raise ValueError(
                    f"The loss is no number after {step} steps; lower the learning rate "
                    f"({settings.learning_rate:g})."
                )
            done = step + 1
            finished = (
                done == settings.steps or seconds_before + time.perf_counter() - start >= limit_s
            )
            if done % settings.validate_every == 0 or finished or len(window) == 50:
                elapsed = seconds_before + time.perf_counter() - start
                entropy, dice = np.mean(window, axis=0)
                window = []
                row: dict[str, Any] = {
                    "step": done,
                    "seconds": round(elapsed, 1),
                    "learning_rate": rate,
                    "loss": round(float(entropy + dice), 5),
                    "cross_entropy": round(float(entropy), 5),
                    "dice_loss": round(float(dice), 5),
                }
                if validation and (done % settings.validate_every == 0 or finished):
                    averaged.load_state_dict(mean.state)
                    without_class_weights(averaged, per_class**settings.weights_taken_off)
                    entropy_v, dice_v = validation_scores(averaged, validation, device)
                    loss_v = entropy_v + 1.0 - float(np.mean(dice_v))
                    if loss_v < best["loss"]:
                        state = {k: v.clone() for k, v in mean.state.items()}
                        best = {"step": done, "loss": loss_v, "state": state}
                    row["validation_cross_entropy"] = round(entropy_v, 5)
                    for name, value in zip(settings.network.names, dice_v, strict=True):
                        row[f"validation_dice_{name}"] = round(float(value), 5)
                    logger.info(
                        "step %d, %.0f s: loss %.4f; left-out samples: Dice %s",
                        done, elapsed, entropy + dice,
                        ", ".join(f"{n} {v:.3f}" for n, v in zip(settings.network.names, dice_v, strict=True)),
                    )  # fmt: skip
                rows.append(row)
                _write_log(weights.with_suffix(".csv"), rows, settings.network.names)
                save_checkpoint(done)
            if finished:
                break
            if settings.minutes is not None and time.perf_counter() - start > 60 * settings.minutes:
                save_checkpoint(done)
                logger.info("%.1f minutes are over after step %d", settings.minutes, done)
                break

    kept_step = best["step"] or step + 1
    averaged.load_state_dict(best["state"] or mean.state)
    without_class_weights(averaged, per_class**settings.weights_taken_off)
    scores = {}
    if validation:
        entropy_v, dice_v = validation_scores(averaged, validation, device)
        scores = {
            "cross_entropy": entropy_v,
            "dice": dict(zip(settings.network.names, dice_v.tolist(), strict=True)),
        }
    card = {
        "program": f"anacor_dials {__version__}",
        "commit": commit_of_program(),
        "network": asdict(settings.network) | {"parameters": n_parameters(network)},
        "voxel_size_um": [
            float(min(min(v.voxel_size_um) for v in volumes)),
            float(max(max(v.voxel_size_um) for v in volumes)),
        ],
        "training": {
            **{k: v for k, v in asdict(settings).items() if k != "network"},
            "steps_done": step + 1,
            "kept_step": kept_step,
            "finished": finished,
            "seconds": round(seconds_before + time.perf_counter() - start, 1),
            "device": str(device),
            "mixed_precision": settings.mixed_precision,
            "torch": torch.__version__,
            "class_weights": [round(float(w), 4) for w in weights_of_classes],
            "samples": [_described(v) for v in training],
            "families": sorted({v.family for v in training}),
        },
        "validation": {"samples": [_described(v) for v in validation], **scores},
    }
    save_weights(weights, averaged, card)
    plot_log(weights.with_suffix(".png"), rows, settings.network.names)
    if finished:
        checkpoint.unlink(missing_ok=True)
    return card


def _described(volume: TrainingVolume) -> dict[str, Any]:
    kept = (
        "seed",
        "shape",
        "contrast",
        "crystal_size_um",
        "pixel_size_um",
        "photons",
        "n_projections",
    )
    return {"name": volume.name} | {k: volume.record[k] for k in kept if k in volume.record}


# ---- as a program of its own ----------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m anacor_dials.segmentation.training``"""
    parser = argparse.ArgumentParser(
        prog="python -m anacor_dials.segmentation.training",
        description="Train the segmentation network on samples with true labels.",
    )
    defaults = TrainingSettings()
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of samples")
    parser.add_argument(
        "--weights", type=Path, required=True, help="NAME.safetensors to be written"
    )
    parser.add_argument("--architecture", default="anacornet", choices=("anacornet", "unet"))
    parser.add_argument("--size", default="tiny", choices=("tiny", "base"))
    parser.add_argument("--n-slices", type=int, default=defaults.network.n_slices)
    for name in ("steps", "batch", "crop", "warm_up", "mean_steps", "validate_every", "n_validation", "threads", "seed"):  # fmt: skip
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name)
        )
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--minutes", type=float, default=None, help="stop then; go on another time")
    parser.add_argument("--within-minutes", type=float, default=None, help="be ready by then")
    parser.add_argument("--begin-with", default="", help="weights of an earlier training")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--restart", action="store_true", help="ignore a checkpoint")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        network = NetworkSettings(given.architecture, given.size, given.n_slices)
        settings = TrainingSettings(
            network=network,
            **{
                name: getattr(given, name)
                for name in (
                    "steps", "batch", "crop", "warm_up", "mean_steps", "validate_every",
                    "n_validation", "threads", "seed", "learning_rate", "minutes",
                    "within_minutes", "begin_with", "device", "precision",
                )
            },
        )  # fmt: skip
        volumes = read_training_volumes(given.data, network.names, progress=True)
        train(volumes, settings, given.weights, resume=not given.restart, progress=True)
    except ValueError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
