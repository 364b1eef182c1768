"""Samples become the weights of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anacor_dials.jobs.training_scans import ScanRanges, write_training_scans
from anacor_dials.segmentation.evaluation import evaluate_samples, mean_scores
from anacor_dials.segmentation.inference import InferenceSettings, load_network
from anacor_dials.segmentation.training import TrainingSettings, train
from anacor_dials.segmentation.training_data import read_training_volumes


@dataclass(frozen=True)
class SimulatedSamples:
    """Virtual samples that are made for a training, where they are not there yet.

    folder: where they are written; those to evaluate on in its folder "test". n_training, n_test: how
    many. shapes, test_shapes: families of crystals to train on, and to evaluate on. crystal_size_um:
    limits of the mean size. contrast: limits of the crystal's mu relative to the liquor's, less one.
    seed: of the random choices.
    """

    folder: Path = Path("training_samples")
    n_training: int = 0
    n_test: int = 0
    shapes: Sequence[str] = ("polyhedron", "plate", "needle")
    test_shapes: Sequence[str] = ("bipyramid", "cluster")
    crystal_size_um: tuple[float, float] = (26.0, 56.0)
    contrast: tuple[float, float] = (-0.10, 0.10)
    seed: int = 0

    def __post_init__(self) -> None:
        both = sorted(set(self.shapes) & set(self.test_shapes))
        if both and self.n_test:
            raise ValueError(
                f"{', '.join(both)} is both trained on and evaluated on; the two must be apart."
            )


def make_samples(simulated: SimulatedSamples) -> tuple[list[Path], list[Path]]:
    """(folders to train on, tomograms to evaluate on); writes what is not there yet."""
    folders: list[Path] = []
    tests: list[Path] = []

    def ranges(shapes: Sequence[str]) -> ScanRanges:
        return ScanRanges(
            shapes=tuple(shapes),
            crystal_size_um=simulated.crystal_size_um,
            contrast=simulated.contrast,
        )

    if simulated.n_training:
        write_training_scans(
            simulated.folder, simulated.n_training, simulated.seed, ranges(simulated.shapes)
        )
        folders.append(simulated.folder)
    if simulated.n_test:
        tests = write_training_scans(
            simulated.folder / "test",
            simulated.n_test,
            simulated.seed + 1000,
            ranges(simulated.test_shapes),
            prefix="test",
        )
    return folders, tests


def evaluate_weights(weights: Path, tomograms: Sequence[Path], device: str) -> dict[str, Any]:
    """Scores of samples that were never trained on, for the model card. Plain values."""
    rows = evaluate_samples(load_network(weights), tomograms, InferenceSettings(device=device))
    return {
        "samples": rows,
        "mean": mean_scores(rows, cleaned=False),
        "mean_cleaned": mean_scores(rows),
    }


def train_weights(
    folders: Sequence[Path],
    settings: TrainingSettings,
    weights: Path,
    simulated: SimulatedSamples | None = None,
    restart: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Trains a network on samples and returns its model card.

    Parameters
    ----------
    folders: of samples: pairs NAME.tomo.h5 and NAME.truth.h5, or tomo.h5 files with labels.
    settings: of the network and its training.
    weights: the .safetensors file to be written; the model card (.json) is written beside it.
    simulated: virtual samples that are made first and trained on too. Where some of them are kept apart
        to evaluate the weights, the card that is returned has an entry "evaluation"; the one on disk
        has not.
    restart: begin again although there is a checkpoint.
    progress: show progress bars.

    Raises
    ------
    ValueError: the samples cannot be read, or the settings do not fit them.
    """
    made, tests = make_samples(simulated) if simulated is not None else ([], [])
    volumes = read_training_volumes([*folders, *made], settings.network.names, progress)
    card = train(volumes, settings, weights, resume=not restart, progress=progress)
    if tests and card["training"]["finished"]:
        card["evaluation"] = evaluate_weights(weights, tests, settings.device)
    return card
