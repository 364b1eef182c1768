"""Training of AnACorNet: from samples with true labels to weights and their model card.

``python -m anacor_dials.segmentation.training --data FOLDER --weights NAME.safetensors`` where
DIALS is not installed; ``dials.anacor_train`` elsewhere.

The loss is class-weighted cross-entropy plus 1 - Dice (Milletari et al., 3DV 2016), averaged over
the classes; auxiliary heads at 1/2 and 1/4 of the size contribute, too (deep supervision). The
optimiser is AdamW with a warm-up and a cosine schedule. Validation uses an exponential moving
average of the weights; where enough samples are left out of training, the weights with the lowest
loss on them are kept. On GPUs, and on CPUs with AMX, bfloat16 is used, but float32 for the
deformable convolutions; on other CPUs float32, since bfloat16 is far slower there. The crops of a
step depend on the seed and the step alone, so that a training that is continued sees the same
crops.
"""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from anacor_dials import __version__
from anacor_dials.sample.devices import is_first_process
from anacor_dials.sample.output_files import whole_file
from anacor_dials.segmentation.batch_statistics import measure_statistics
from anacor_dials.segmentation.context import context_probabilities
from anacor_dials.segmentation.crops import CropSource
from anacor_dials.segmentation.losses import adjust_logits
from anacor_dials.segmentation.network import (
    SliceNetwork,
    build_network,
    memory_layout,
    n_parameters,
    on_device,
    take_over,
)
from anacor_dials.segmentation.processes import (
    TrainingProcesses,
    joined_processes,
    mean_weights,
    rng_of_step,
)
from anacor_dials.segmentation.replicas import Batch, ThreadedReplicas
from anacor_dials.segmentation.training_arguments import argument_parser, settings_of
from anacor_dials.segmentation.training_data import (
    PooledVolume,
    TrainingVolume,
    VolumePool,
    class_weights,
    read_training_volumes,
    split_samples,
)
from anacor_dials.segmentation.training_record import (
    commit_of_program,
    described,
    plot_log,
    write_log,
)
from anacor_dials.segmentation.training_settings import TrainingSettings
from anacor_dials.segmentation.validation import coarse_scores, validation_scores
from anacor_dials.segmentation.weights_files import load_weights, save_weights
from anacor_dials.segmentation.whole_samples import WholeSample, without_their_air

logger = logging.getLogger("dials.anacor_dials.segmentation.training")

# of fewer samples, one difficult sample alone may prefer weights of a step in mid-course
ENOUGH_TO_CHOOSE = 6

STATISTICS_BATCHES = 40  # for the statistics of the final weights: some hundred crops

# ---- the mean of the weights ---------------------------------------------------------------------


class ExponentialMovingAverage:
    """The exponential moving average of a network's weights over about n_steps steps.

    Of integers (counters) it is the last value.
    """

    def __init__(self, network: SliceNetwork, n_steps: int) -> None:
        self.n_steps, self.n = n_steps, 0
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()  # type: ignore[misc, unused-ignore]
    def add(self, network: SliceNetwork) -> None:
        """Adds the present weights of a network to the average."""
        self.n += 1
        keep = 1.0 - 1.0 / min(self.n, self.n_steps)  # the plain mean at first
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.state[name].mul_(keep).add_(value, alpha=1.0 - keep)
            else:
                self.state[name].copy_(value)


# ---- training ------------------------------------------------------------------------------------


def trained_parameters(network: SliceNetwork, part: str) -> list[torch.nn.Parameter]:
    """The parameters that a training changes.

    Parameters
    ----------
    network : SliceNetwork
    part : str
        "both", "coarse" (the coarse pass alone) or "slices" (all others).
    """
    return [
        parameter
        for name, parameter in network.named_parameters()
        if part == "both" or name.startswith("context.") == (part == "coarse")
    ]


def crops_of_step(settings: TrainingSettings, step: int) -> tuple[int, int]:
    """(number of crops, their edge in voxels) of a step; every third step may have larger ones."""
    if settings.large_crop and step % 3 == 2:
        n = round(settings.batch * (settings.crop / settings.large_crop) ** 2)
        return max(n, settings.threads), settings.large_crop
    return settings.batch, settings.crop


def _fingerprint(settings: TrainingSettings, samples: Sequence[TrainingVolume]) -> dict[str, Any]:
    """What must be the same for a training to be continued; the number of steps may change."""
    kept = asdict(settings)
    for name in (
        "steps", "minutes", "within_minutes", "device", "precision", "validate_every", "threads",
    ):  # fmt: skip
        kept.pop(name)
    return json.loads(json.dumps({"settings": kept, "samples": [v.name for v in samples]}))


class _Trainer:
    """A training: network, optimiser, average and course, and the methods that do a step."""

    def __init__(
        self,
        settings: TrainingSettings,
        pool: VolumePool,
        training: Sequence[TrainingVolume],
        validation: Sequence[TrainingVolume],
        weights: Path,
        processes: TrainingProcesses,
    ) -> None:
        self.settings, self.pool, self.weights = settings, pool, weights
        self.processes = processes
        self.training, self.validation = training, validation
        self.device = settings.torch_device
        self.layout = memory_layout(self.device)
        torch.manual_seed(settings.seed)
        network = build_network(settings.network)
        self.coarse_knows = settings.part == "coarse"  # whether the coarse pass has learned before
        if settings.begin_with:
            earlier = load_weights(settings.begin_with)
            take_over(network, earlier)
            self.coarse_knows = earlier.context is not None
        if settings.part == "slices" and not self.coarse_knows:
            raise ValueError(
                f"{settings.begin_with} has no coarse pass for the slices to see; train one first "
                "(part=coarse)."
            )
        self.network = on_device(network, self.device)
        self.source = CropSource(pool, settings.network.n_slices, settings.augmentation)
        trained = trained_parameters(network, settings.part)
        decayed = [p for p in trained if p.ndim > 1]
        others = [p for p in trained if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
        )
        self.average = ExponentialMovingAverage(network, settings.mean_steps)
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"step": 0, "loss": math.inf, "state": {}}
        self.step, self.seconds_before, self.start = 0, 0.0, time.perf_counter()
        self.window: list[tuple[float, ...]] = []
        self.class_weights: NDArray[np.float64] = np.ones(settings.network.n_classes)
        self.per_class = torch.ones(settings.network.n_classes)

    @property
    def seconds(self) -> float:
        """Time of training so far, of earlier runs, too."""
        return self.seconds_before + time.perf_counter() - self.start

    @property
    def checkpoint(self) -> Path:
        """The path of the checkpoint."""
        return self.weights.with_suffix(".checkpoint.pt")

    def take_up(self) -> None:
        """Continues from the checkpoint. Raises ValueError if it belongs to another training."""
        kept = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if json.loads(kept["fingerprint"]) != _fingerprint(
            self.settings, [*self.training, *self.validation]
        ):
            raise ValueError(
                f"{self.checkpoint} belongs to a training with other settings or samples; remove it, or "
                "name other weights."
            )
        self.network.load_state_dict(kept["network"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.average.state, self.average.n = kept["mean"], int(kept["mean_n"])
        self.step, self.seconds_before = int(kept["step"]), float(kept["seconds"])
        self.rows, self.best = json.loads(kept["rows"]), kept["best"]
        self.class_weights = kept["class_weights"].cpu().numpy()
        self.pool.advance(self.step)
        if self.processes.first:
            for pooled, context in zip(self.pool.pooled(), kept["contexts"], strict=True):
                pooled.context = context.cpu().numpy()
        else:  # the file holds what the first process found in its samples
            self.enter(self.pool.pooled())
        logger.info("Training goes on from step %d", self.step)

    def save(self) -> None:
        """Writes the checkpoint."""
        samples = [*self.training, *self.validation]
        with whole_file(self.checkpoint) as temporary:
            torch.save(
                {
                    "fingerprint": json.dumps(_fingerprint(self.settings, samples)),
                    "network": self.network.state_dict(),
                    "optimiser": self.optimiser.state_dict(),
                    "mean": self.average.state,
                    "mean_n": self.average.n,
                    "best": self.best,
                    "step": self.step,
                    "seconds": self.seconds,
                    "rows": json.dumps(self.rows),
                    "class_weights": torch.from_numpy(self.class_weights),
                    "contexts": [torch.from_numpy(p.context) for p in self.pool.pooled()],
                },
                temporary,
            )

    def fill_pool(self, progress: bool) -> None:
        """Brings the pool to the present step; at the first one also finds the class weights."""
        new = self.pool.advance(self.step, progress)
        self.enter(new if self.step else self.pool.pooled())
        if not self.step:
            found = class_weights(self.pool.volumes(), self.settings.network.n_classes)
            self.class_weights = mean_weights(self.processes, found)
        self.per_class = torch.tensor(self.class_weights, dtype=torch.float32, device=self.device)

    def enter(self, new: Sequence[PooledVolume]) -> None:
        """The coarse pass labels samples that are new in the pool, once it knows something."""
        if self.network.context is None or self.settings.part == "coarse":
            return
        if self.coarse_knows or self.step >= self.settings.warm_up:
            for pooled in new:
                pooled.context = context_probabilities(self.network, pooled.volume.views)

    def draw(self, step: int) -> tuple[Any, list[WholeSample]]:
        """((slices, context, labels) or None, whole samples) of a step."""
        rng = rng_of_step(self.settings.seed, step, self.processes.number)
        if self.settings.part == "coarse":
            drawn = [WholeSample.drawn(self.pool, rng) for _ in range(self.settings.batch)]
            return None, without_their_air(drawn)
        crops = self.source.batch(rng, *crops_of_step(self.settings, step))
        together = self.network.context is not None and self.settings.part == "both"
        n_whole = self.settings.coarse_samples if together and step % 2 == 0 else 0
        return crops, [WholeSample.drawn(self.pool, rng) for _ in range(n_whole)]

    def batch(self, drawn: tuple[Any, list[WholeSample]]) -> Batch:
        """What was drawn, as tensors on the device."""
        crops, whole = drawn

        def tensor(array: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array).to(self.device, non_blocking=True)

        change = self.settings.augmentation  # the levels are not exactly one and zero
        inputs = [tensor(sample.seen(change.gain, change.offset)) for sample in whole]
        shares = [tensor(sample.shares).float() for sample in whole]
        if crops is None:
            return Batch(None, None, None, inputs, shares)
        slices, context, labels = crops
        return Batch(
            tensor(slices).contiguous(memory_format=self.layout),
            tensor(context) if self.network.context is not None else None,
            tensor(labels),
            inputs,
            shares,
        )

    def update(self, replicas: ThreadedReplicas, drawn: Any, seconds: float) -> float:
        """One step of the optimiser, after so many seconds; returns the learning rate."""
        rate = self.settings.learning_rate_at(self.step, seconds)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        result = replicas.gradients(self.batch(drawn), self.per_class)
        result = self.processes.mean(result, replicas.networks)
        for parameter, gradient in zip(self.network.parameters(), result.gradients, strict=True):
            parameter.grad = gradient
        trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, 2.0)
        self.optimiser.step()
        self.average.add(self.network)
        if self.settings.part == "both":
            for sample, found in zip(drawn[1], result.coarse, strict=True):
                sample.keep(found.cpu().numpy())
        coarse = np.mean(result.coarse_losses, axis=0) if result.coarse_losses else (np.nan,) * 2
        self.window.append((*result.losses, *coarse))
        if not math.isfinite(result.losses[0]):
            raise ValueError(
                f"The loss is no number after {self.step} steps; lower the learning rate "
                f"({self.settings.learning_rate:g})."
            )
        self.step += 1
        return rate

    def averaged_network(self, state: dict[str, torch.Tensor] | None = None) -> SliceNetwork:
        """The averaged network (or that of a state) after the logit adjustment."""
        network = build_network(self.settings.network)
        network.load_state_dict(state or self.average.state)
        network = on_device(network, self.device)
        if self.settings.part != "coarse":
            adjust_logits(network, self.per_class**self.settings.weights_taken_off)
        return network.eval()

    def scores(self, network: SliceNetwork) -> tuple[float, NDArray[np.float64]]:
        """(cross-entropy, Dice (n_classes,)) on the samples left out, of what is trained."""
        if self.settings.part == "coarse":
            return coarse_scores(network, self.validation)
        return validation_scores(network, self.validation, self.device)

    def batches_for_statistics(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Crops of the present pool that no step has used."""
        for number in range(STATISTICS_BATCHES):
            rng = np.random.default_rng([self.settings.seed, 1 << 30, number])
            slices, context, _ = self.source.batch(rng, *crops_of_step(self.settings, number))
            yield (
                torch.from_numpy(slices).to(self.device).contiguous(memory_format=self.layout),
                torch.from_numpy(context).to(self.device)
                if self.network.context is not None
                else None,
            )

    def look(self, rate: float, validate: bool) -> None:
        """Adds a row to the course, with validation scores if wanted; saves all."""
        if not self.processes.first:
            self.window = []
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # steps without the coarse pass
            entropy, dice, coarse_entropy, coarse_dice = np.nanmean(self.window, axis=0)
        self.window = []
        row: dict[str, Any] = {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "learning_rate": rate,
            "loss": round(float(entropy + dice), 5),
            "cross_entropy": round(float(entropy), 5),
            "dice_loss": round(float(dice), 5),
            "coarse_loss": round(float(coarse_entropy + coarse_dice), 5),
        }
        if validate and self.validation:
            names = self.settings.network.names
            entropy_v, dice_v = self.scores(self.averaged_network())
            loss_v = entropy_v + 1.0 - float(np.mean(dice_v))
            if loss_v < self.best["loss"] or len(self.validation) < ENOUGH_TO_CHOOSE:
                state = {k: v.clone() for k, v in self.average.state.items()}
                self.best = {"step": self.step, "loss": loss_v, "state": state}
            row["validation_cross_entropy"] = round(entropy_v, 5)
            for name, value in zip(names, dice_v, strict=True):
                row[f"validation_dice_{name}"] = round(float(value), 5)
            logger.info(
                "step %d, %.0f s: loss %.4f, coarse %.4f; left-out samples: cross-entropy %.4f, Dice %s",
                self.step, self.seconds, row["loss"], row["coarse_loss"], entropy_v,
                ", ".join(f"{n} {v:.3f}" for n, v in zip(names, dice_v, strict=True)),
            )  # fmt: skip
        self.rows.append(row)
        write_log(self.weights.with_suffix(".csv"), self.rows, self.settings.network.names)
        self.save()

    def run(self, progress: bool) -> bool:
        """Does steps until the end or until the time is over; returns whether it is the end."""
        settings = self.settings
        limit_s = math.inf if settings.within_minutes is None else 60 * settings.within_minutes
        threads = 1 if self.device.type == "cuda" else settings.threads
        replicas = ThreadedReplicas(self.network, threads, settings.mixed_precision)
        replicas.train()
        begun = seconds = self.processes.of_first(self.seconds)
        finished = self.step >= settings.steps
        bar = tqdm(
            initial=self.step, total=settings.steps, unit="step", desc="Training",
            disable=not progress,
        )  # fmt: skip
        # ahead of the step on a GPU, where drawing takes longer than the step; which of the coarse
        # pass's probabilities a crop then sees is a matter of time
        ahead = 16 if self.device.type == "cuda" else 0
        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(max_workers=8) as drawing, bar:
            while not finished:
                while len(waiting) <= ahead:
                    waiting.append(drawing.submit(self.draw, self.step + len(waiting)))
                rate = self.update(replicas, waiting.popleft().result(), seconds)
                self.enter(self.pool.advance(self.step))
                bar.update()
                seconds = self.processes.of_first(self.seconds)  # one clock decides for all
                finished = self.step >= settings.steps or seconds >= limit_s
                due = self.step % settings.validate_every == 0 or finished
                if due or len(self.window) == 50:
                    self.look(rate, validate=due)
                    replicas.train()
                over = seconds - begun > 60 * (settings.minutes or math.inf)
                if over and not finished:
                    if self.processes.first:
                        self.save()
                    logger.info("%.1f minutes are over after step %d", settings.minutes, self.step)
                    break
        return finished

    def card(self, finished: bool, scores: Mapping[str, Any]) -> dict[str, Any]:
        """The model card: what was trained on what, and how good it is on the samples left out."""
        settings = self.settings
        volumes = [*self.training, *self.validation, *self.pool.volumes()]
        return {
            "program": f"anacor_dials {__version__}",
            "commit": commit_of_program(),
            "network": asdict(settings.network) | {"parameters": n_parameters(self.network)},
            "voxel_size_um": [
                float(min(min(v.voxel_size_um) for v in volumes)),
                float(max(max(v.voxel_size_um) for v in volumes)),
            ],
            "training": {
                **{k: v for k, v in asdict(settings).items() if k != "network"},
                "steps_done": self.step,
                "kept_step": self.best["step"] or self.step,
                "finished": finished,
                "seconds": round(self.seconds, 1),
                "device": str(self.device),
                "mixed_precision": settings.mixed_precision,
                "torch": torch.__version__,
                "class_weights": [round(float(w), 4) for w in self.class_weights],
                "samples": [described(v) for v in self.training],
                "fresh_samples": self.pool.entered * self.processes.n,
                "processes": self.processes.n,
                "families": sorted({v.family for v in volumes}),
            },
            "validation": {"samples": [described(v) for v in self.validation], **scores},
        }


def train(
    volumes: Sequence[TrainingVolume],
    settings: TrainingSettings,
    weights: Path,
    resume: bool = True,
    progress: bool = False,
    stream: Callable[[int], TrainingVolume] | None = None,
    workers: int = 1,
    validation: Sequence[TrainingVolume] | None = None,
) -> dict[str, Any]:
    """Trains a network and writes its weights; returns the model card.

    The weights are those of the validated step (kept_step in the card) with the lowest loss on the
    samples left out (cross-entropy without class weights, plus 1 - Dice); those of the last step if
    fewer than ENOUGH_TO_CHOOSE samples are left out.

    Started by torch's launcher, the processes share the training (see :mod:`.processes`):
    settings.batch is the number of crops of each.

    Beside NAME.safetensors it writes NAME.json (the card), NAME.csv and NAME.png (the course) and,
    until the last step is done, NAME.checkpoint.pt. From this checkpoint the training continues if
    the function is called again with the same settings and samples.

    Parameters
    ----------
    volumes : sequence of TrainingVolume
        Samples that stay; settings.n_validation of them are left out of training.
    settings : TrainingSettings
    weights : Path
        NAME.safetensors.
    resume : bool
        Whether the training continues from a checkpoint.
    progress : bool
        Whether progress bars are shown.
    stream : callable, optional
        Returns a fresh sample for a number, always the same one. It must be picklable.
    workers : int
        Processes that call it; 0: this process does.
    validation : sequence of TrainingVolume, optional
        The samples left out, instead of some of `volumes`.

    Raises
    ------
    ValueError
        If a checkpoint belongs to another training, or the settings do not fit the samples.
    """
    if validation is None:
        training, validation = split_samples(volumes, settings.n_validation, settings.seed)
    else:
        training = list(volumes)
    with joined_processes(settings.torch_device) as processes:
        part = None if stream is None else processes.part_of(stream)
        pool = VolumePool(training, part, settings.pool, settings.fresh_every, workers)
        try:
            trainer = _Trainer(settings, pool, training, validation, weights, processes)
            if resume and processes.of_first(trainer.checkpoint.is_file()):
                trainer.take_up()
            trainer.fill_pool(progress)
            logger.info(
                "%s %s: %.2f M parameters, %d samples to train on%s, %d to validate, %d steps of %d crops "
                "of %d voxels on %s, %d processes",
                settings.network.architecture, settings.network.size,
                n_parameters(trainer.network) / 1e6, len(training),
                " and a stream of fresh ones" if stream else "", len(validation), settings.steps,
                settings.batch * processes.n, settings.crop, trainer.device, processes.n,
            )  # fmt: skip
            finished = trainer.run(progress)
        finally:
            pool.close()
        card = _finished_weights(trainer, finished) if processes.first else None
        made: dict[str, Any] = processes.of_first(card)
    return made


def _finished_weights(trainer: _Trainer, finished: bool) -> dict[str, Any]:
    """Writes the weights and what comes beside them; returns the model card."""
    settings, weights, validation = trainer.settings, trainer.weights, trainer.validation
    network = trainer.averaged_network(trainer.best["state"] or None)
    if settings.part != "coarse":
        measure_statistics(network, trainer.batches_for_statistics())
    scores: dict[str, Any] = {}
    if validation:
        entropy, dice = trainer.scores(network)
        scores = {
            "cross_entropy": entropy,
            "dice": dict(zip(settings.network.names, dice.tolist(), strict=True)),
        }
    card = trainer.card(finished, scores)
    save_weights(weights, network, card)
    plot_log(weights.with_suffix(".png"), trainer.rows, settings.network.names)
    if finished:
        trainer.checkpoint.unlink(missing_ok=True)
    return card


# ---- as a program of its own ---------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m anacor_dials.segmentation.training``: training on samples in folders."""
    parser = argument_parser(
        "python -m anacor_dials.segmentation.training",
        "Train the segmentation network on samples with true labels; on a stream of fresh ones: "
        "python -m anacor_dials.jobs.train",
    )
    given = parser.parse_args(arguments)
    first = is_first_process()
    logging.basicConfig(
        level=logging.INFO if first else logging.WARNING, format="%(asctime)s %(message)s"
    )
    try:
        settings = settings_of(given)
        volumes = read_training_volumes(given.data, settings.network.names, progress=first)
        train(volumes, settings, given.weights, resume=not given.restart, progress=first)
    except ValueError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
