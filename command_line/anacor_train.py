# LIBTBX_SET_DISPATCHER_NAME dials.anacor_train
"""
Train AnACorNet, the network that segments tomograms, on virtual and real samples.

stream.use=True trains on a stream of fresh virtual tomograms of all kinds of samples, each made in
a second or two while the network learns from those before it, so that nothing can be learned by
heart; samples in folders are mixed in.

Training data are folders with pairs NAME.tomo.h5 (reconstruction) and NAME.truth.h5 (labels), or
tomo.h5 files of real samples that were labelled by hand. simulate.samples=N makes N virtual samples
first: random crystals in liquor in a loop, scanned by the simulator with noise and Fresnel fringes
and reconstructed by our own reconstruction.

The weights (.safetensors) come with a model card (.json): data with their seeds, settings, scores
of samples that were left out; with simulate.test_samples=N also of samples of shapes never trained
on. A training that was interrupted goes on when the same command is given again. Where DIALS is not
installed: python -m anacor_dials.jobs.train

network.architecture=sam2 trains a small SAM-2 instead, which follows an object from slice to slice,
on films of slices of the same samples.

Several GPUs or machines share a training that torch's launcher starts; training.batch is then the
number of crops of each process, and the first process writes: torchrun --nproc-per-node 4 -m
anacor_dials.command_line.anacor_train, with the parameters as usual.

Examples::

  dials.anacor_train stream.use=True training.steps=4000 training.threads=2

  dials.anacor_train network.architecture=sam2 stream.use=True steps=20000 within_minutes=240

  dials.anacor_train simulate.samples=40 simulate.test_samples=12

  dials.anacor_train simulated/ real/ steps=20000 batch=32 crop=192 device=cuda size=base
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libtbx
from dials.util import Sorry, show_mail_handle_errors
from dials.util.options import ArgumentParser
from libtbx import phil

from anacor_dials.command_line import begin_log
from anacor_dials.phil import choice, parse_phil
from anacor_dials.phil.arguments import parse_arguments
from anacor_dials.report.page import write_json
from anacor_dials.sample.devices import is_first_process, n_processes

if TYPE_CHECKING:
    from anacor_dials.segmentation.training_settings import TrainingSettings

logger = logging.getLogger("dials.anacor_train")

phil_scope = parse_phil("anacor_train.phil")


def training_settings(params: Any) -> TrainingSettings:
    """What the PHIL scopes ``network`` and ``training`` ask for."""
    from anacor_dials.segmentation.network import NetworkSettings
    from anacor_dials.segmentation.training_settings import TrainingSettings

    n, t = params.network, params.training
    sam2 = choice(n.architecture) == "sam2"
    network = (
        NetworkSettings()
        if sam2
        else NetworkSettings(choice(n.architecture), n.size, n.n_slices, context=n.context)
    )
    return TrainingSettings(
        network=network,
        part=choice(t.part),
        steps=t.steps,
        batch=(2 if sam2 else 8) if t.batch is libtbx.Auto else t.batch,
        crop=t.crop,
        large_crop=t.large_crop,
        pool=params.stream.pool,
        fresh_every=params.stream.fresh_every,
        learning_rate=(
            (1e-3 if sam2 else 2e-3) if t.learning_rate is libtbx.Auto else t.learning_rate
        ),
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


def weights_path(params: Any) -> Path:
    """Where the weights are written. Raises ValueError if the name ends in something else."""
    given = params.output.weights
    if given is libtbx.Auto or str(given) == "Auto":
        sam2 = choice(params.network.architecture) == "sam2"
        return Path("sam2.safetensors" if sam2 else "anacornet.safetensors")
    if Path(given).suffix != ".safetensors":
        raise ValueError(f"output.weights is {given}; its name must end in .safetensors.")
    return Path(given)


@show_mail_handle_errors()
def run(args: list[str] | None = None, phil: phil.scope = phil_scope) -> None:
    """Run dials.anacor_train as from the command line."""
    parser = ArgumentParser(
        usage="dials.anacor_train [options] [FOLDER ...]",
        phil=phil,
        check_format=False,
        epilog=__doc__,
    )
    params, options, folders = parse_arguments(parser, args)
    given = [Path(f) for f in (*folders, *(d for d in params.data if d))]
    if not given and not params.simulate.samples and not params.stream.use:
        parser.print_help()
        sys.exit(1)

    is_first = is_first_process()
    begin_log(logger, parser, options, params.output.log if is_first else None)

    try:
        try:
            from anacor_dials.jobs.train import SimulatedSamples, train_weights
            from anacor_dials.jobs.train_sam2 import train_sam2_weights
            from anacor_dials.jobs.training_stream import StreamedTomograms
            from anacor_dials.segmentation.films import FilmSettings
            from anacor_dials.segmentation.sam2_training_settings import Sam2TrainingSettings
            from anacor_dials.segmentation.weights_files import model_card_path
        except ImportError as error:
            raise ValueError(
                f"Training needs torch, torchvision and safetensors ({error}); install them."
            ) from None
        weights = weights_path(params)
        s = params.simulate
        simulated = SimulatedSamples(
            folder=Path(s.folder),
            n_training=s.samples,
            n_test=s.test_samples,
            shapes=s.shapes,
            test_shapes=s.test_shapes,
            crystal_size_um=tuple(s.crystal_size),
            contrast=tuple(s.contrast),
            seed=params.seed,
        )
        stream = StreamedTomograms(
            params.seed,
            tuple(params.stream.voxels),
            params.stream.workers,
            params.stream.calibration_samples,
        )
        settings = training_settings(params)
        choices: dict[str, Any] = {
            "simulated": simulated,
            "stream": stream if params.stream.use else None,
            "restart": params.training.restart,
            "progress": is_first and sys.stderr.isatty(),
        }
        if choice(params.network.architecture) == "sam2":
            if n_processes() > 1:
                raise ValueError("SAM-2 is trained in one process; start it without torchrun.")
            films = FilmSettings(edge=settings.crop)
            sam2 = Sam2TrainingSettings(course=settings, films=films)
            card = train_sam2_weights(given, sam2, weights, **choices)
        else:
            card = train_weights(given, settings, weights, **choices)
        if "evaluation" in card and is_first:
            write_json(model_card_path(weights), card)
    except ValueError as error:
        raise Sorry(error) from None
    logger.info("Written: %s, %s", weights, model_card_path(weights))
    if not card["training"]["finished"]:
        logger.info("Not finished: the same command goes on from here.")


if __name__ == "__main__":
    run()
