"""A stream of fresh virtual tomograms to train on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anacor_dials.segmentation.training_data import TrainingVolume, training_volume
from anacor_dials.simulation.virtual_tomograms import random_tomogram

ATTEMPTS = 20  # to draw a sample that can be used; most are usable at the first


@dataclass(frozen=True)
class StreamedTomograms:
    """A function of a number that returns a fresh training sample, always the same for a number.

    Samples without contrast above the noise, or without a crystal in the field of view, are drawn
    again.

    Parameters
    ----------
    seed : int
        Of the stream.
    voxels : (int, int)
        Least and largest number along an edge.
    workers : int
        Processes that make samples while the network trains.
    calibration_samples : int
        How many further ones the weights are calibrated on in the end.
    """

    seed: int
    voxels: tuple[int, int] = (96, 160)
    workers: int = 1
    calibration_samples: int = 48

    def __call__(self, number: int) -> TrainingVolume:
        for attempt in range(ATTEMPTS):
            made = random_tomogram(
                np.random.default_rng([self.seed, number, attempt]), voxels=self.voxels
            )
            if made.labels.counts()[made.labels.label("crystal")] < 200:
                continue
            record = {**made.record, "seed": [self.seed, number, attempt]}
            try:
                return training_volume(f"{self.seed}-{number}", made.tomogram, made.labels, record)
            except ValueError:
                continue
        raise ValueError(f"No sample could be made from the seed {self.seed}, number {number}.")
