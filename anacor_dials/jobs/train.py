"""Samples become the weights of a network."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anacor_dials.jobs.training_scans import ScanRanges, write_training_scans
from anacor_dials.jobs.training_stream import StreamedTomograms
from anacor_dials.sample.devices import is_first_process
from anacor_dials.segmentation.calibration import calibrate, fit_calibration, logits_of_samples
from anacor_dials.segmentation.evaluation import evaluate_samples, mean_scores
from anacor_dials.segmentation.inference import load_network
from anacor_dials.segmentation.processes import (
    TrainingProcesses,
    joined_processes,
)
from anacor_dials.segmentation.tiles import InferenceSettings
from anacor_dials.segmentation.training import train
from anacor_dials.segmentation.training_arguments import argument_parser, settings_of
from anacor_dials.segmentation.training_data import TrainingVolume, read_training_volumes
from anacor_dials.segmentation.training_settings import TrainingSettings
from anacor_dials.segmentation.weights_files import model_card_path, save_weights

logger = logging.getLogger("dials.anacor_dials.jobs.train")

# added to the seed of a stream: samples left out of training, and those to calibrate on, are never
# trained on
VALIDATION_SEED, CALIBRATION_SEED = 900_000, 910_000


@dataclass(frozen=True)
class SimulatedSamples:
    """Virtual samples that are made for a training, unless they exist already.

    Parameters
    ----------
    folder : Path
        Where they are written. Those to evaluate on are in its folder "test".
    n_training, n_test : int
    shapes, test_shapes : sequence of str
        Families of crystals to train on, and to evaluate on.
    crystal_size_um : (float, float)
        Limits of the mean size.
    contrast : (float, float)
        Limits of the crystal's mu relative to that of the liquor, less one.
    seed : int
        Of the random choices.
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
    """Scores on samples that were never trained on, for the model card, as plain values.

    Parameters
    ----------
    weights : path
    tomograms : sequence of Path
    device : str
    """
    rows = evaluate_samples(load_network(weights), tomograms, InferenceSettings(device=device))
    return {
        "samples": rows,
        "mean": mean_scores(rows, cleaned=False),
        "mean_cleaned": mean_scores(rows),
    }


def calibrate_weights(weights: Path, volumes: Sequence[TrainingVolume]) -> dict[str, Any]:
    """Calibrates weights on samples that they were not trained on.

    The weights and their card are written again; the card is returned.
    """
    network = load_network(weights)
    logits, labels = logits_of_samples(network, volumes)
    found = fit_calibration(logits, labels)
    calibrate(network, found)
    card = json.loads(model_card_path(weights).read_text(encoding="utf-8"))
    card["calibration"] = {
        "temperature": found.temperature,
        "offsets": found.offsets.tolist(),
        "cross_entropy_before_and_after": list(found.cross_entropy),
        "samples": len(volumes),
    }
    save_weights(weights, network, card)
    logger.info(
        "Calibrated on %d samples: temperature %.3f, cross-entropy %.4f before and %.4f after",
        len(volumes),
        found.temperature,
        *found.cross_entropy,
    )
    return card


def read_samples(
    folders: Sequence[Path],
    names: Sequence[str],
    stream: StreamedTomograms | None,
    n_validation: int,
    progress: bool = False,
) -> tuple[list[TrainingVolume], list[TrainingVolume] | None]:
    """(samples of some folders, fresh samples to validate on) of a training.

    Parameters
    ----------
    folders : sequence of Path
        There may be none if there is a stream.
    names : sequence of str
        Of the classes.
    stream : StreamedTomograms, optional
        Without it the second is None: samples of the folders are left out.
    n_validation : int
    progress : bool
        Whether a progress bar is shown.
    """
    if stream is None:
        return read_training_volumes(folders, names, progress), None
    volumes = read_training_volumes(folders, names, progress) if folders else []
    aside = replace(stream, seed=stream.seed + VALIDATION_SEED)
    return volumes, [aside(number) for number in range(n_validation)]


def train_weights(
    folders: Sequence[Path],
    settings: TrainingSettings,
    weights: Path,
    simulated: SimulatedSamples | None = None,
    stream: StreamedTomograms | None = None,
    restart: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Trains a network on samples and returns its model card.

    Started by torch's launcher, the processes share the training (see
    :mod:`anacor_dials.segmentation.processes`).

    Parameters
    ----------
    folders : sequence of Path
        Of samples: pairs NAME.tomo.h5 and NAME.truth.h5, or tomo.h5 files with labels.
    settings : TrainingSettings
        Of the network and its training.
    weights : Path
        The .safetensors file that is written; the model card (.json) is written beside it.
    simulated : SimulatedSamples, optional
        Virtual samples that are made first and trained on, too. If some of them are kept to
        evaluate the weights, the card that is returned has an entry "evaluation"; the one on disk
        has not.
    stream : StreamedTomograms, optional
        Fresh virtual tomograms to train on, mixed with the samples of the folders. The validation
        samples are fresh ones, too, and in the end the weights are calibrated on others.
    restart : bool
        Whether to begin again although there is a checkpoint.
    progress : bool
        Whether to show progress bars.

    Raises
    ------
    ValueError
        If the samples cannot be read, or the settings do not fit them.
    """
    with joined_processes(settings.torch_device) as processes:
        made, tests = _made_once(simulated, processes)
        return _train_on(
            [*folders, *made], tests, settings, weights, stream, processes, restart, progress
        )


def _made_once(
    simulated: SimulatedSamples | None, processes: TrainingProcesses
) -> tuple[list[Path], list[Path]]:
    """As :func:`make_samples`; the first process makes them, and the others find them."""
    if simulated is None:
        return [], []
    if processes.first:
        make_samples(simulated)
    processes.wait()
    return make_samples(simulated)


def _train_on(
    all_folders: Sequence[Path],
    tests: Sequence[Path],
    settings: TrainingSettings,
    weights: Path,
    stream: StreamedTomograms | None,
    processes: TrainingProcesses,
    restart: bool,
    progress: bool,
) -> dict[str, Any]:
    """As :func:`train_weights`, of samples that are there."""
    volumes, left_out = read_samples(
        all_folders, settings.network.names, stream, settings.n_validation, progress
    )
    card = train(
        volumes,
        settings,
        weights,
        resume=not restart,
        progress=progress,
        stream=stream,
        workers=stream.workers if stream is not None else 0,
        validation=left_out,
    )
    if not processes.first:
        return card
    if stream is not None and card["training"]["finished"]:
        aside = replace(stream, seed=stream.seed + CALIBRATION_SEED)
        card = calibrate_weights(weights, [aside(k) for k in range(stream.calibration_samples)])
    if tests and card["training"]["finished"]:
        card["evaluation"] = evaluate_weights(weights, tests, settings.device)
    return card


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m anacor_dials.jobs.train``: dials.anacor_train where DIALS is not installed."""
    parser = argument_parser(
        "python -m anacor_dials.jobs.train",
        "Train the segmentation network on a stream of fresh virtual tomograms, and on samples in folders.",
    )
    parser.add_argument("--no-stream", action="store_true", help="on the folders alone")
    parser.add_argument("--workers", type=int, default=1, help="processes that make samples")
    given = parser.parse_args(arguments)
    first = is_first_process()
    logging.basicConfig(
        level=logging.INFO if first else logging.WARNING, format="%(asctime)s %(message)s"
    )
    try:
        settings = settings_of(given)
        stream = (
            None if given.no_stream else StreamedTomograms(settings.seed, workers=given.workers)
        )
        train_weights(
            given.data,
            settings,
            given.weights,
            stream=stream,
            restart=given.restart,
            progress=first and sys.stderr.isatty(),
        )
    except ValueError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
