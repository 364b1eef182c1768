# LIBTBX_SET_DISPATCHER_NAME dials.anacor_train
"""
Train AnACorNet, the network that segments tomograms, on virtual and real samples.

Training data are folders with pairs NAME.tomo.h5 (reconstruction) and NAME.truth.h5 (labels), or tomo.h5
files of real samples that were labelled by hand. simulate.samples=N makes N virtual samples first: random
crystals in liquor in a loop, scanned by the simulator with noise and Fresnel fringes and reconstructed by
our own reconstruction.

The weights (.safetensors) come with a model card (.json): data with their seeds, settings, scores of
samples that were left out; with simulate.test_samples=N also of samples of shapes never trained on.
A training that was interrupted goes on when the same command is given again. Where DIALS is not
installed: python -m anacor_dials.segmentation.training

Examples::

  dials.anacor_train simulate.samples=40 simulate.test_samples=12

  dials.anacor_train simulated/ real/ steps=20000 batch=32 crop=192 device=cuda size=base
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from dials.util import Sorry, show_mail_handle_errors
from dials.util.options import ArgumentParser
from libtbx import phil

from anacor_dials.command_line import begin_log
from anacor_dials.command_line.training_scans import ScanRanges, write_training_scans
from anacor_dials.phil import choice, parse_phil
from anacor_dials.report.page import write_json

logger = logging.getLogger("dials.anacor_train")

phil_scope = parse_phil("anacor_train.phil")


def make_samples(params: Any) -> tuple[list[Path], list[Path]]:
    """(folders to train on, tomograms to evaluate on) that the PHIL scope ``simulate`` asks for."""
    s = params.simulate
    if set(s.shapes) & set(s.test_shapes) and s.test_samples:
        both = ", ".join(sorted(set(s.shapes) & set(s.test_shapes)))
        raise ValueError(f"{both} is both trained on and evaluated on; the two must be apart.")
    ranges = {"crystal_size_um": tuple(s.crystal_size), "contrast": tuple(s.contrast)}
    folder = Path(s.folder)
    folders, tests = [], []
    if s.samples:
        write_training_scans(
            folder, s.samples, params.seed, ScanRanges(shapes=tuple(s.shapes), **ranges)
        )
        folders.append(folder)
    if s.test_samples:
        tests = write_training_scans(
            folder / "test",
            s.test_samples,
            params.seed + 1000,
            ScanRanges(shapes=tuple(s.test_shapes), **ranges),
            prefix="test",
        )
    return folders, tests


def evaluate_weights(weights: Path, tomograms: list[Path], device: str) -> dict[str, Any]:
    """Scores of samples that were never trained on, for the model card."""
    from anacor_dials.segmentation.evaluation import evaluate_samples, mean_scores
    from anacor_dials.segmentation.inference import InferenceSettings, load_network

    rows = evaluate_samples(load_network(weights), tomograms, InferenceSettings(device=device))
    return {
        "samples": rows,
        "mean": mean_scores(rows, cleaned=False),
        "mean_cleaned": mean_scores(rows),
    }


@show_mail_handle_errors()
def run(args: list[str] | None = None, phil: phil.scope = phil_scope) -> None:
    """Run dials.anacor_train as from the command line."""
    parser = ArgumentParser(
        usage="dials.anacor_train [options] [FOLDER ...]",
        phil=phil,
        check_format=False,
        epilog=__doc__,
    )
    params, options, folders = parser.parse_args(
        args=args, show_diff_phil=False, return_unhandled=True
    )
    given = [Path(f) for f in (*folders, *(d for d in params.data if d))]
    if not given and not params.simulate.samples:
        parser.print_help()
        sys.exit(1)

    begin_log(logger, parser, options, params.output.log)

    try:
        try:
            from anacor_dials.segmentation.network import NetworkSettings, model_card_path
            from anacor_dials.segmentation.training import TrainingSettings, train
            from anacor_dials.segmentation.training_data import read_training_volumes
        except ImportError as error:
            raise ValueError(
                f"Training needs torch, torchvision and safetensors ({error}); install them."
            ) from None
        weights = Path(params.output.weights)
        if weights.suffix != ".safetensors":
            raise ValueError(f"output.weights is {weights}; its name must end in .safetensors.")
        network = NetworkSettings(
            params.network.architecture, params.network.size, params.network.n_slices
        )
        t = params.training
        settings = TrainingSettings(
            network=network,
            steps=t.steps,
            batch=t.batch,
            crop=t.crop,
            learning_rate=t.learning_rate,
            warm_up=t.warm_up,
            validate_every=t.validate_every,
            n_validation=t.validation_samples,
            seed=params.seed,
            minutes=t.minutes,
            within_minutes=t.within_minutes,
            begin_with=t.begin_with or "",
            threads=t.threads,
            precision=choice(t.precision),
            device=choice(params.device),
        )
        made, tests = make_samples(params)
        volumes = read_training_volumes([*given, *made], network.names, sys.stderr.isatty())
        card = train(volumes, settings, weights, resume=not t.restart, progress=sys.stderr.isatty())
        if tests and card["training"]["finished"]:
            card["evaluation"] = evaluate_weights(weights, tests, choice(params.device))
            write_json(model_card_path(weights), card)
    except ValueError as error:
        raise Sorry(error) from None
    logger.info("Written: %s, %s", weights, model_card_path(weights))
    if not card["training"]["finished"]:
        logger.info("Not finished: the same command goes on from here.")


if __name__ == "__main__":
    run()
