"""How a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from anacor_dials.sample.devices import chosen_device
from anacor_dials.segmentation.crops import Augmentation
from anacor_dials.segmentation.network import NetworkSettings, has_fast_bfloat16

PARTS = ("both", "coarse", "slices")


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained.

    Parameters
    ----------
    network : NetworkSettings
    part : str
        What is trained: "both" passes together; "coarse", the coarse pass alone, on whole samples;
        or "slices" alone, which see what the coarse pass of `begin_with` finds. The coarse pass
        learns slowly beside the slices.
    steps : int
        Of the optimiser, in all.
    batch : int
        Crops in a step; whole samples if the coarse pass is trained alone.
    crop : int
        Their edge in voxels, a multiple of 16.
    large_crop : int
        Every third step has fewer crops of this edge; 0: no such steps.
    coarse_samples : int
        Whole samples that the coarse pass learns from in every second step.
    pool, fresh_every : int, float
        Of a stream of samples: see :class:`.training_data.VolumePool` (size, every).
    learning_rate : float
        The largest.
    weight_decay : float
    warm_up : int
        Steps over which the learning rate rises.
    mean_steps : int
        The number of steps of the exponential moving average of the weights.
    validate_every : int
        Steps between two validations.
    n_validation : int
        Samples that are left out of the training.
    seed : int
    minutes : float, optional
        After this time the training stops, and leaves a checkpoint from which it can go on.
    within_minutes : float, optional
        The training is finished after this time, with at most `steps` steps: the learning rate
        falls with the time.
    begin_with : str
        Weights of an earlier training to begin with; "": random weights.
    weights_taken_off : float
        The strength of the logit adjustment after the training, 0 to 1: this part of the logarithms
        of the class weights is subtracted from the logits.
    threads : int
        On a CPU, how many threads share a step. Each has some of the crops, and statistics of its
        own.
    device : str
        auto, cpu or cuda.
    precision : str
        float32, bfloat16 (mixed), or auto: what is faster on the device.
    augmentation : Augmentation
    """

    network: NetworkSettings = field(default_factory=NetworkSettings)
    part: str = "both"
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
        if self.part not in PARTS:
            raise ValueError(f"The part {self.part!r} is unknown; choose {', '.join(PARTS)}.")
        if self.part != "both" and not self.network.context:
            raise ValueError(
                f"There is no coarse pass (context=False), so that both passes cannot be told apart; "
                f"train without part={self.part}."
            )
        if self.part == "slices" and not self.begin_with:
            raise ValueError(
                "The slices alone are to be trained, with a coarse pass that has learned; name its "
                "weights (begin_with)."
            )
        if self.threads > self.batch:
            raise ValueError(
                f"{self.threads} threads cannot share {self.batch} crops or samples; ask for fewer "
                "threads."
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
        """Whether bfloat16 is used where its precision is sufficient."""
        if self.precision == "auto":
            return has_fast_bfloat16(self.torch_device)
        return self.precision == "bfloat16"

    def learning_rate_at(self, step: int, seconds: float = 0.0) -> float:
        """The learning rate of a step.

        It rises linearly over the warm-up. Then it falls as half a period of a cosine, to 2 % at
        the end of the steps or of the time, whichever comes first.

        Parameters
        ----------
        step : int
        seconds : float
            Since the beginning of the training.
        """
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        if self.within_minutes is not None:
            done = max(done, seconds / (60 * self.within_minutes))
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
