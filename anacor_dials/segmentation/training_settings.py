"""How a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from anacor_dials.sample.devices import chosen_device
from anacor_dials.segmentation.network import NetworkSettings, has_fast_bfloat16
from anacor_dials.segmentation.training_data import Augmentation


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained.

    steps: of the optimiser, in all; batch: crops in a step; crop: their edge in voxels;
    large_crop: every third step has crops of this edge instead, fewer of them, 0 for none.
    coarse_samples: whole samples that the coarse pass learns from, every second step. warm_up:
    steps. pool, fresh_every: of a stream of samples, see :class:`.training_data.VolumePool`.
    mean_steps: over how many steps the weights are averaged. validate_every: steps. minutes: stop
    (and leave a checkpoint to go on from) after this long, None not to; within_minutes: the
    learning rate falls with the time so that all is over after this long, with as many steps as
    there was time for, `steps` at most. begin_with: weights of an earlier training to begin from,
    "" for random ones. weights_taken_off: how much of the logarithms of the classes' weights is
    taken off the logits in the end, 0 to 1. threads: on a CPU, how many share a step, each with
    some of its crops and its own statistics of them. device: auto, cpu, cuda. precision: float32,
    bfloat16 (mixed), or auto for what is faster on the device.
    """

    network: NetworkSettings = field(default_factory=NetworkSettings)
    steps: int = 1000
    batch: int = 8
    crop: int = 128
    large_crop: int = 0
    coarse_samples: int = 2
    pool: int = 48
    fresh_every: float = 2.0
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
        for name, crop in (("crop", self.crop), ("large_crop", self.large_crop or self.crop)):
            if crop < 32 or crop % 16:
                raise ValueError(f"{name} is {crop} voxels; it is a multiple of 16, at least 32.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"The learning rate is {self.learning_rate}; it must be > 0.")
        if self.threads > self.batch:
            raise ValueError(
                f"{self.threads} threads cannot share {self.batch} crops; ask for fewer threads."
            )
        if self.within_minutes is not None and not self.within_minutes > 0:
            raise ValueError(f"within_minutes is {self.within_minutes}; it must be > 0.")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(
                f"The precision {self.precision!r} is unknown; choose auto, float32 or bfloat16."
            )
        chosen_device(self.device)

    @property
    def torch_device(self) -> torch.device:
        """The device that the network is trained on."""
        return torch.device(chosen_device(self.device))

    @property
    def mixed_precision(self) -> bool:
        """Whether what stands it is computed in bfloat16."""
        if self.precision == "auto":
            return has_fast_bfloat16(self.torch_device)
        return self.precision == "bfloat16"

    def learning_rate_at(self, step: int, seconds: float = 0.0) -> float:
        """Linear warm-up, then half a cosine down to 2 % over the steps or the time, what is over
        sooner."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        if self.within_minutes is not None:
            done = max(done, seconds / (60 * self.within_minutes))
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
