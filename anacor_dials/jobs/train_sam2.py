"""Samples become the weights of a small SAM-2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anacor_dials.jobs.train import SimulatedSamples, make_samples, read_samples
from anacor_dials.jobs.training_stream import StreamedTomograms
from anacor_dials.sample.volumes import DEFAULT_NAMES
from anacor_dials.segmentation.sam2_training_settings import Sam2TrainingSettings


def train_sam2_weights(
    folders: Sequence[Path],
    settings: Sam2TrainingSettings,
    weights: Path,
    simulated: SimulatedSamples | None = None,
    stream: StreamedTomograms | None = None,
    restart: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Trains a small SAM-2 on films of slices of samples and returns its model card.

    Parameters
    ----------
    folders : sequence of Path
        Of samples: pairs NAME.tomo.h5 and NAME.truth.h5, or tomo.h5 files with labels.
    settings : Sam2TrainingSettings
    weights : Path
        The .safetensors file that is written; the model card (.json) is written beside it.
    simulated : SimulatedSamples, optional
        Virtual samples that are made first and trained on, too.
    stream : StreamedTomograms, optional
        Fresh virtual tomograms to train on, mixed with the samples of the folders. The validation
        samples are fresh ones, too.
    restart : bool
        Whether to begin again although there is a checkpoint.
    progress : bool
        Whether to show progress bars.

    Raises
    ------
    ValueError
        If sam2 is not installed, the samples cannot be read, or the settings do not fit them.
    """
    try:
        from anacor_dials.segmentation.sam2_training import train_sam2
    except ImportError as error:
        raise ValueError(
            f"The training of SAM-2 needs the package sam2 ({error}): pip install sam2."
        ) from None
    if simulated is not None and simulated.n_test:
        raise ValueError(
            "simulate.test_samples are labelled by AnACorNet; a small SAM-2 cannot label without "
            "prompts. Leave them out."
        )
    made = make_samples(simulated)[0] if simulated is not None else []
    volumes, left_out = read_samples(
        [*folders, *made], DEFAULT_NAMES, stream, settings.course.n_validation, progress
    )
    return train_sam2(
        volumes,
        settings,
        weights,
        resume=not restart,
        progress=progress,
        stream=stream,
        workers=stream.workers if stream is not None else 0,
        validation=left_out,
    )
