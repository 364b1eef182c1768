"""Trains the network for a given time, and says how far it came.

    tools/dials-env python benchmarks/training.py FOLDER [--minutes 10] [--samples 24] [--device D]

Virtual samples of three shape families are made first, in FOLDER/samples, and six of two other families,
on which the weights are evaluated. Making them counts within the time; the weights and their model card
are left in FOLDER.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from anacor_dials.jobs.train import SimulatedSamples, make_samples, train_weights
from anacor_dials.segmentation.training_settings import TrainingSettings

EVALUATION_MINUTES = 1.0  # six samples, tiled


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start = time.perf_counter()
    given.folder.mkdir(parents=True, exist_ok=True)
    simulated = SimulatedSamples(given.folder / "samples", given.samples, n_test=6)
    make_samples(simulated)
    made = (time.perf_counter() - start) / 60
    print(f"{given.samples} + 6 samples made in {made:.1f} min")
    left = given.minutes - made - EVALUATION_MINUTES
    if left < 0.5:
        parser.error(f"{given.minutes:g} minutes are too few: the samples alone took {made:.1f}.")
    settings = TrainingSettings(
        steps=1_000_000, batch=given.batch, within_minutes=left, device=given.device
    )
    card = train_weights([], settings, given.folder / "anacornet.safetensors", simulated)
    steps = card["training"]["steps_done"]
    print(
        f"{steps} steps of {given.batch} crops in {left:.1f} min: {steps / left / 60:.2f} per second"
    )
    for name, scores in card.get("evaluation", {}).items():
        print(f"{name}: {scores}")


if __name__ == "__main__":
    main()
