"""Training of the small SAM-2 on films of slices of virtual tomograms.

In every step some films are drawn. In each of them, objects (crystal, loop, liquor, at random) are
followed from the first slice to the last one. Most first slices hold a mask, with errors; the
others clicks. In some films one later slice is corrected by a click. Films get longer during the
training. The loss is the cross-entropy of the masks plus 1 - Dice, mean over objects and slices.
The optimiser is AdamW with a warm-up and a cosine schedule; the weights that are written are an
exponential moving average. Samples that were left out of the training are watched: from one true
slice the objects are followed through seven further ones.

bfloat16 is used on GPUs and on CPUs with AMX; losses and attention are computed in float32.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from anacor_dials import __version__
from anacor_dials.sample.output_files import whole_file
from anacor_dials.segmentation.film_tracking import (
    FilmBatch,
    attention_in_float32,
    dice_of_slices,
    film_loss,
    track,
)
from anacor_dials.segmentation.films import Film, FilmSettings, draw_film
from anacor_dials.segmentation.sam2_training_settings import Sam2TrainingSettings
from anacor_dials.segmentation.small_sam2 import (
    SmallSam2,
    build_small_sam2,
    load_small_sam2,
    save_small_sam2,
)
from anacor_dials.segmentation.training import ExponentialMovingAverage
from anacor_dials.segmentation.training_data import (
    PooledVolume,
    TrainingVolume,
    VolumePool,
    split_samples,
)
from anacor_dials.segmentation.training_record import (
    commit_of_program,
    described,
    plot_log,
    write_log,
)

logger = logging.getLogger("dials.anacor_dials.segmentation.sam2_training")

# Chosen by hand.
CROSS_ENTROPY_WEIGHT = 5.0  # the cross-entropy is a mean over all pixels, most of which are easy
CLICKS = 0.25  # the share of steps whose films begin with clicks
CORRECTED = 0.12  # the share of steps in which a later slice is corrected
LARGEST_GRADIENT = 1.0
WATCHED_FRAMES = 8
NAMES = ("liquor", "loop", "crystal")


def _fingerprint(settings: Sam2TrainingSettings, names: Sequence[str]) -> str:
    """What must be the same for a training to be continued."""
    kept = asdict(settings)
    for name in ("steps", "minutes", "within_minutes", "device", "precision", "validate_every", "threads"):  # fmt: skip
        kept["course"].pop(name)
    return json.dumps({"settings": kept, "samples": list(names)}, sort_keys=True)


def watched_films(volumes: Sequence[TrainingVolume], settings: FilmSettings) -> list[Film]:
    """One film of each sample, always the same, with the true masks as prompts."""
    films = []
    for number, volume in enumerate(volumes):
        rng = np.random.default_rng([number, 77])
        film = draw_film(rng, PooledVolume.of(volume), WATCHED_FRAMES, settings)
        films.append(Film(film.frames, film.objects, film.objects[:, 0], film.classes))
    return films


class _Trainer:
    """A training: network, optimiser, average and course, and the methods that do a step."""

    def __init__(
        self,
        settings: Sam2TrainingSettings,
        pool: VolumePool,
        validation: Sequence[TrainingVolume],
        weights: Path,
    ) -> None:
        self.settings, self.pool, self.weights = settings, pool, weights
        self.course, self.validation = settings.course, validation
        self.device = self.course.torch_device
        torch.manual_seed(self.course.seed)
        network = build_small_sam2(settings.network)
        if self.course.begin_with:
            network.load_state_dict(load_small_sam2(self.course.begin_with).state_dict())
        self.network: SmallSam2 = network.to(self.device).train()
        decayed = [p for p in network.parameters() if p.ndim > 1]
        others = [p for p in network.parameters() if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": self.course.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=self.course.learning_rate,
            betas=(0.9, 0.98),
        )
        self.average = ExponentialMovingAverage(self.network, self.course.mean_steps)
        self.films = watched_films(validation, settings.films)
        self.rows: list[dict[str, Any]] = []
        self.window: list[tuple[float, float]] = []
        self.step, self.seconds_before, self.start = 0, 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time of training so far, of earlier runs, too."""
        return self.seconds_before + time.perf_counter() - self.start

    @property
    def checkpoint(self) -> Path:
        """The path of the checkpoint."""
        return self.weights.with_suffix(".checkpoint.pt")

    @property
    def fingerprint(self) -> str:
        """What must be the same for this training to be continued."""
        fixed = [pooled.volume.name for pooled in self.pool.fixed]
        return _fingerprint(self.settings, [*fixed, *(v.name for v in self.validation)])

    def take_up(self) -> None:
        """Continues from the checkpoint. Raises ValueError if it belongs to another training."""
        kept = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if kept["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"{self.checkpoint} belongs to a training with other settings or samples; remove it, or "
                "name other weights."
            )
        self.network.load_state_dict(kept["network"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.average.state, self.average.n = kept["mean"], int(kept["mean_n"])
        self.step, self.seconds_before = int(kept["step"]), float(kept["seconds"])
        self.rows = json.loads(kept["rows"])
        logger.info("Training goes on from step %d", self.step)

    def save(self) -> None:
        """Writes the checkpoint."""
        with whole_file(self.checkpoint) as temporary:
            torch.save(
                {
                    "fingerprint": self.fingerprint,
                    "network": self.network.state_dict(),
                    "optimiser": self.optimiser.state_dict(),
                    "mean": self.average.state,
                    "mean_n": self.average.n,
                    "step": self.step,
                    "seconds": self.seconds,
                    "rows": json.dumps(self.rows),
                },
                temporary,
            )

    def draw(self) -> tuple[FilmBatch, int | None]:
        """The films of the present step, and the slice that is corrected in them."""
        n = self.settings.length_at(self.step, self.seconds)
        rng = np.random.default_rng([self.course.seed, self.step])
        films = [
            draw_film(rng, self.pool.draw(rng), n, self.settings.films)
            for _ in range(self.course.batch)
        ]
        late = self.step >= 2 * self.course.warm_up
        n_clicks = int(rng.integers(1, 9)) if late and rng.random() < CLICKS else 0
        corrected = int(rng.integers(1, n)) if late and rng.random() < CORRECTED else None
        return FilmBatch.of(films, rng, n_clicks).to(self.device), corrected

    def update(self) -> float:
        """One step of the optimiser; returns the learning rate."""
        rate = self.course.learning_rate_at(self.step, self.seconds)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        batch, corrected = self.draw()
        with self.mixed_precision():
            logits = track(self.network, batch, corrected)
        first = 0 if batch.masks is None else 1  # a mask that was given is no result
        entropy, dice = film_loss(logits[:, first:], batch.objects[:, first:])
        loss = CROSS_ENTROPY_WEIGHT * entropy + dice
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"The loss is no number after {self.step} steps; lower the learning rate "
                f"({self.course.learning_rate:g})."
            )
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT)
        self.optimiser.step()
        self.average.add(self.network)
        self.window.append((float(entropy.detach()), float(dice.detach())))
        self.step += 1
        return rate

    def mixed_precision(self) -> Any:
        """The context of a forward pass."""
        if not self.course.mixed_precision:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def averaged_network(self) -> SmallSam2:
        """The network with the averaged weights, in evaluation mode."""
        network = build_small_sam2(self.settings.network)
        network.load_state_dict(self.average.state)
        return network.to(self.device).eval()

    def scores(self) -> dict[str, float]:
        """Mean Dice of every class over the slices that follow the true one."""
        with self.mixed_precision():
            dice = dice_of_slices(self.averaged_network(), self.films, self.device)[..., 1:]
        classes = np.array([film.classes for film in self.films])
        return {name: _mean(dice[classes == label]) for label, name in enumerate(NAMES, start=1)}

    def look(self, rate: float, validate: bool) -> None:
        """Adds a row to the course, with scores of the watched films if wanted; saves all."""
        entropy, dice = np.mean(self.window, axis=0)
        self.window = []
        row: dict[str, Any] = {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "learning_rate": rate,
            "loss": round(float(CROSS_ENTROPY_WEIGHT * entropy + dice), 5),
            "cross_entropy": round(float(entropy), 5),
            "dice_loss": round(float(dice), 5),
        }
        if validate and self.films:
            scores = self.scores()
            row |= {f"validation_dice_{name}": round(d, 5) for name, d in scores.items()}
            logger.info(
                "step %d, %.0f s: loss %.4f; left-out samples, %d slices followed: Dice %s",
                self.step, self.seconds, row["loss"], WATCHED_FRAMES - 1,
                ", ".join(f"{name} {d:.3f}" for name, d in scores.items()),
            )  # fmt: skip
        self.rows.append(row)
        write_log(self.weights.with_suffix(".csv"), self.rows, NAMES)
        self.save()

    def run(self, progress: bool) -> bool:
        """Does steps until the end or until the time is over; returns whether it is the end."""
        course = self.course
        limit_s = math.inf if course.within_minutes is None else 60 * course.within_minutes
        if self.device.type == "cpu":
            torch.set_num_threads(course.threads)
        begun = time.perf_counter()
        finished = self.step >= course.steps
        bar = tqdm(
            initial=self.step, total=course.steps, unit="step", desc="Training",
            disable=not progress,
        )  # fmt: skip
        with bar, attention_in_float32():
            while not finished:
                rate = self.update()
                self.pool.advance(self.step)
                bar.update()
                finished = self.step >= course.steps or self.seconds >= limit_s
                due = self.step % course.validate_every == 0 or finished
                if due or len(self.window) == 50:
                    self.look(rate, validate=due)
                over = time.perf_counter() - begun > 60 * (course.minutes or math.inf)
                if over and not finished:
                    self.save()
                    logger.info("%.1f minutes are over after step %d", course.minutes, self.step)
                    break
        return finished

    def card(self, finished: bool) -> dict[str, Any]:
        """The model card: what was trained on what, and how well objects of the left-out samples
        are followed.
        """
        volumes = [*self.validation, *self.pool.volumes()]
        n = sum(p.numel() for p in self.network.parameters())
        course = {k: v for k, v in asdict(self.course).items() if k != "network"}
        return {
            "program": f"anacor_dials {__version__}",
            "commit": commit_of_program(),
            "network": {"architecture": "sam2"} | asdict(self.settings.network) | {"parameters": n},
            "voxel_size_um": [
                float(min(min(v.voxel_size_um) for v in volumes)),
                float(max(max(v.voxel_size_um) for v in volumes)),
            ],
            "training": {
                **course,
                "films": asdict(self.settings.films),
                "lengths": self.settings.lengths,
                "steps_done": self.step,
                "finished": finished,
                "seconds": round(self.seconds, 1),
                "device": str(self.device),
                "mixed_precision": self.course.mixed_precision,
                "torch": torch.__version__,
                "samples": [described(pooled.volume) for pooled in self.pool.fixed],
                "fresh_samples": self.pool.entered,
                "families": sorted({v.family for v in volumes}),
            },
            "validation": {
                "samples": [described(v) for v in self.validation],
                "slices_followed": WATCHED_FRAMES - 1,
                "dice": self.scores() if self.films else {},
            },
        }


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of what is a number; NaN if there is none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def train_sam2(
    volumes: Sequence[TrainingVolume],
    settings: Sam2TrainingSettings,
    weights: Path,
    resume: bool = True,
    progress: bool = False,
    stream: Callable[[int], TrainingVolume] | None = None,
    workers: int = 1,
    validation: Sequence[TrainingVolume] | None = None,
) -> dict[str, Any]:
    """Trains a small SAM-2 and writes its weights; returns the model card.

    Beside NAME.safetensors it writes NAME.json (the card), NAME.csv and NAME.png (the course) and,
    until the last step is done, NAME.checkpoint.pt. From this checkpoint the training continues if
    the function is called again with the same settings and samples.

    Parameters
    ----------
    volumes : sequence of TrainingVolume
        Samples that stay; course.n_validation of them are left out of training.
    settings : Sam2TrainingSettings
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
    course = settings.course
    if validation is None:
        training, validation = split_samples(volumes, course.n_validation, course.seed)
    else:
        training = list(volumes)
    pool = VolumePool(training, stream, course.pool, course.fresh_every, workers)
    try:
        trainer = _Trainer(settings, pool, validation, weights)
        if resume and trainer.checkpoint.is_file():
            trainer.take_up()
        pool.advance(trainer.step, progress)
        finished = trainer.run(progress)
        card = trainer.card(finished)
    finally:
        pool.close()
    save_small_sam2(weights, trainer.averaged_network(), card)
    plot_log(weights.with_suffix(".png"), trainer.rows, NAMES)
    if finished:
        trainer.checkpoint.unlink(missing_ok=True)
    return card
