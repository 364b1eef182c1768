"""The options of a training where DIALS is not installed."""

from __future__ import annotations

import argparse
from pathlib import Path

from anacor_dials.segmentation.network import NetworkSettings
from anacor_dials.segmentation.training_settings import PARTS, TrainingSettings


def argument_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The options of a training without DIALS; :func:`settings_of` makes settings of them."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    defaults = TrainingSettings()
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders of samples")
    parser.add_argument(
        "--weights", type=Path, required=True, help="NAME.safetensors to be written"
    )
    parser.add_argument("--architecture", default="anacornet", choices=("anacornet", "unet"))
    parser.add_argument("--size", default="tiny", choices=("tiny", "base"))
    parser.add_argument("--n-slices", type=int, default=defaults.network.n_slices)
    parser.add_argument(
        "--part", default="both", choices=PARTS, help="of the network: see the manual"
    )
    parser.add_argument("--no-context", action="store_true", help="without the coarse pass")
    for name in ("steps", "batch", "crop", "large_crop", "warm_up", "mean_steps", "validate_every", "n_validation", "pool", "threads", "seed"):  # fmt: skip
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name)
        )
    for name in ("learning_rate", "fresh_every"):
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=getattr(defaults, name)
        )
    parser.add_argument("--minutes", type=float, default=None, help="stop then; go on another time")
    parser.add_argument("--within-minutes", type=float, default=None, help="be ready by then")
    parser.add_argument("--begin-with", default="", help="weights of an earlier training")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--restart", action="store_true", help="ignore a checkpoint")
    return parser


def settings_of(given: argparse.Namespace) -> TrainingSettings:
    """The settings that were given to :func:`argument_parser`."""
    return TrainingSettings(
        network=NetworkSettings(
            given.architecture, given.size, given.n_slices, context=not given.no_context
        ),
        **{
            name: getattr(given, name)
            for name in (
                "part", "steps", "batch", "crop", "large_crop", "warm_up", "mean_steps", "validate_every",
                "n_validation", "pool", "fresh_every", "threads", "seed", "learning_rate",
                "minutes", "within_minutes", "begin_with", "device", "precision",
            )
        },
    )  # fmt: skip
