"""What is written beside the weights of a training: its course, and what its samples were."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anacor_dials.sample.output_files import whole_file
from anacor_dials.segmentation.training_data import TrainingVolume

COLUMNS = (
    "step", "seconds", "learning_rate", "loss", "cross_entropy", "dice_loss", "coarse_loss",
    "validation_cross_entropy", "validation_dice",
)  # fmt: skip


def commit_of_program() -> str:
    """The commit of the program's files; "" if they are in no repository."""
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def write_log(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Writes the course of a training as CSV.

    Parameters
    ----------
    path : Path
    rows : sequence of mapping
        With the keys COLUMNS, and validation_dice_NAME.
    names : sequence of str
        Of the classes.
    """
    columns = [*COLUMNS[:-1], *(f"validation_dice_{name}" for name in names)]
    with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def plot_log(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bool:
    """Draws the course of a training as a PNG; False if matplotlib is not installed.

    Parameters
    ----------
    path : Path
    rows : sequence of mapping
        As of :func:`write_log`.
    names : sequence of str
        Of the classes.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = np.array([row["step"] for row in rows], dtype=float)
    for column in ("cross_entropy", "dice_loss"):
        left.plot(steps, [row[column] for row in rows], label=column.replace("_", " "))
    checked = [row for row in rows if row.get(f"validation_dice_{names[0]}", "") != ""]
    for name in names:
        dice = [row[f"validation_dice_{name}"] for row in checked]
        right.plot([row["step"] for row in checked], dice, "o-", label=name)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    right.set(xlabel="step", ylabel="Dice, samples left out of training")
    left.legend(), right.legend()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return True


def described(volume: TrainingVolume) -> dict[str, Any]:
    """What the model card says of a sample: its name, and the main parts of its record."""
    kept = (
        "seed",
        "shape",
        "contrast",
        "crystal_size_um",
        "pixel_size_um",
        "photons",
        "n_projections",
    )
    return {"name": volume.name} | {k: volume.record[k] for k in kept if k in volume.record}
