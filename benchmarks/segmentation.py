"""How well and how fast samples are segmented.

    tools/dials-env python benchmarks/segmentation.py make FOLDER [--samples 6]
    tools/dials-env python benchmarks/segmentation.py evaluate FOLDER [--weights A.safetensors ...] [--card [ENTRY]] [--sam2 CHECKPOINT]
    tools/dials-env python benchmarks/segmentation.py tables FOLDER [--weights A.safetensors ...] [--results FILE]
    tools/dials-env python benchmarks/segmentation.py speed [--slices 8] [--threads 2] [--device D]
    tools/dials-env python benchmarks/segmentation.py sam2 [--slices 8] [--threads 2] [--device D] [--size 1024]

make: full scans of virtual samples (clusters, bipyramids) from seeds of their own, on which no weights are trained: contrast within 10 % of the liquor's mu, noise and fringes.
evaluate: scores of weights on the samples of a folder, and the rms difference of the absorption factors
    of 300 reflections, computed with the labels found and with the true ones and the true mu, after one
    scale. --card puts the scores into an entry of the weights' model card; tables go to benchmarks/RESULTS-segmentation.md
    (--results), pictures of the worst sample beside it.
speed: seconds for 1000 slices of 512 x 512, from a few of them.
sam2: the same for the refinement of three classes by SAM-2 (sam2.where=all), by --sam2 CHECKPOINT, or by a model of
    Meta with random weights, which take as long as any others, and to which slices are scaled to --size.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from anacor_dials.absorption.factors import absorption_factors
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.jobs.label_uncertainty import Drawing, label_uncertainty, random_sweep
from anacor_dials.jobs.training_scans import ScanRanges, write_training_scans
from anacor_dials.report.page import write_json
from anacor_dials.sample.tomogram_files import read_sample_file
from anacor_dials.sample.volumes import LabelVolume, Tomogram
from anacor_dials.segmentation.edges import EdgeSettings
from anacor_dials.segmentation.evaluation import evaluate_samples, mean_scores, recall_of
from anacor_dials.segmentation.inference import (
    SHIPPED_WEIGHTS,
    Segmentation,
    load_network,
    load_networks,
    segment,
)
from anacor_dials.segmentation.sam2_refinement import Sam2Settings, refined, sam2_refiner
from anacor_dials.segmentation.tiles import InferenceSettings, find_classes
from anacor_dials.segmentation.training_data import TOMO, TRUTH, labels_on_grid
from anacor_dials.segmentation.weights_files import model_card_path
from anacor_dials.segmentation.working_grid import working_volume

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parent / "anacor_dials" / "segmentation" / "weights"
NAMES = ("background", "liquor", "loop", "crystal")


def factor_error(found: LabelVolume, true: LabelVolume, mu: Any) -> dict[str, float]:
    """rms difference of the absorption factors after one scale, per cent; NaN without a crystal."""
    if not np.any(found.values == found.label("crystal")):
        return {"factors_rms_percent": math.nan, "factors_spread_percent": math.nan}
    directions = random_sweep(300, np.random.default_rng(0))
    a, b = (
        absorption_factors(
            labels,
            mu,
            directions,
            Tracing(1e-3, check_reflections=16, nproc=1, device="cpu", seed=1),
        ).transmission
        for labels in (found, true)
    )
    ratio = a / b
    return {
        "factors_rms_percent": float(100 * np.std(ratio) / np.mean(ratio)),
        "factors_spread_percent": float(100 * np.std(b) / np.mean(b)),
    }


def measured(
    found: Segmentation, tomogram: Tomogram, true: LabelVolume, mu: Any, edges: EdgeSettings
) -> dict[str, Any]:
    """What the labels are worth in factors, what the program itself says of it, and its warnings."""
    grid = working_volume(tomogram, found.working[0], found.factors)
    said = label_uncertainty(
        found.working,
        grid,
        found.labels.names,
        found.mu_per_um,
        Drawing(surfaces_um=edges.uncertain_um),
        tracing=Tracing(1.5e-3, check_reflections=8, nproc=1, device="cpu"),
    )
    return {
        **factor_error(found.labels, true, mu),
        "uncertainty_percent": math.nan if said is None else 100 * said.rms,
        "mean_probability": math.nan if found.overlap is None else found.overlap.probability,
        "dice_foretold": math.nan if found.overlap is None else found.overlap.quantile(0.5),
        "warnings": [*found.warnings, *([] if said is None else said.warnings)],
    }


def percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.2f} %"


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def mean_table(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [
        "| | background | liquor | loop | crystal | crystal Dice | crystal HD95 (um) | CE | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        for cleaned in (False, True):
            means = mean_scores(rows, cleaned)
            cells = [
                f"{percent(means[n]['recall'])} ({number(1 - means[n]['dice'], 3)})" for n in NAMES
            ]
            seconds = float(np.mean([row["seconds"] for row in rows]))
            lines.append(
                f"| {name}{' + clean-up' if cleaned else ''} | {' | '.join(cells)} | "
                f"{number(means['crystal']['dice'], 3)} | {number(means['crystal']['hd95_um'], 1)} | "
                f"{number(means['cross_entropy'], 3)} | {seconds:.0f} |"
            )
    return lines


def sample_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| sample | liquor recall | loop recall | crystal recall | crystal Dice | Dice foretold | HD95 (um) | "
        "factors rms (of spread) | uncertainty said | warnings |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        c = row["cleaned"]["classes"]
        recalls = " | ".join(percent(recall_of(c[n])) for n in NAMES[1:])
        factors = (
            f"{number(row.get('factors_rms_percent'))} % "
            f"({number(row.get('factors_spread_percent'), 1)} %)"
        )
        lines.append(
            f"| {row['name']} | {recalls} | {number(c['crystal']['dice'], 3)} | "
            f"{number(row.get('dice_foretold'))} | {number(c['crystal']['hd95_um'], 1)} | {factors} | "
            f"{number(row.get('uncertainty_percent'))} % | {len(row.get('warnings', []))} |"
        )
    return lines


def calibration_line(rows: list[dict[str, Any]]) -> str:
    """The expected calibration error of each class, mean over the samples and the largest."""
    errors = np.array([row["calibration"] for row in rows])
    parts = [
        f"{name} {errors[:, k].mean():.4f} (at most {errors[:, k].max():.4f})"
        for k, name in enumerate(NAMES)
    ]
    return f"Expected calibration error: {', '.join(parts)}."


def draw_sample(path: Path, tomogram_file: Path, weights: Path) -> None:
    """The middle slices of the true crystal: tomogram, truth, labels found."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    from anacor_dials.report.sample import COLOURS

    tomogram = read_sample_file(tomogram_file).tomogram
    name = tomogram_file.name.removesuffix(TOMO)
    truth_file = read_sample_file(tomogram_file.with_name(name + TRUTH), tomogram=False)
    truth = labels_on_grid(truth_file.labels, tomogram)
    found = segment(tomogram, load_networks(), need_crystal=False).labels.values
    middle = np.argwhere(truth == 3).mean(axis=0).astype(int)
    figure = Figure(figsize=(10, 10), layout="constrained")
    axes = figure.subplots(3, 3)
    colours = ListedColormap(COLOURS[:4])
    top = np.percentile(tomogram.values[truth == 1], 99)
    for row in range(3):
        planes = [np.take(v, middle[row], axis=row) for v in (tomogram.values, truth, found)]
        axes[row, 0].imshow(planes[0], cmap="gray", vmin=0, vmax=top)
        for k in (1, 2):
            axes[row, k].imshow(planes[k], cmap=colours, vmin=0, vmax=3, interpolation="nearest")
        axes[row, 0].set_ylabel(f"across {'XYZ'[row]}")
    for k, title in enumerate(("tomogram", "truth", "found")):
        axes[0, k].set_title(f"{name}: {title}" if k == 0 else title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=70)


def evaluate_weights(given: argparse.Namespace) -> None:
    tomograms = sorted(p for p in given.folder.glob(f"*{TOMO}") if not p.name.startswith("."))
    tomograms = tomograms[: given.limit]
    results = {}
    settings = InferenceSettings(axes=given.axes, device=given.device)
    sam2 = Sam2Settings(given.sam2, given.model, image_size=given.size)
    for weights in given.weights:
        networks = load_networks() if given.shipped else load_network(weights)
        rows = evaluate_samples(
            networks, tomograms, settings, measured, sam2_refiner(sam2, NAMES, given.device)
        )
        name = weights.stem + ("" if given.axes == "auto" else f" ({given.axes})")
        results[name + ("" if given.sam2 is None else f" + SAM-2 {given.sam2}")] = rows
        if given.card:
            card_file = model_card_path(weights)
            card = json.loads(card_file.read_text(encoding="utf-8"))
            card[given.card] = {
                "samples": rows,
                "mean": mean_scores(rows, cleaned=False),
                "mean_cleaned": mean_scores(rows),
            }
            write_json(card_file, card)
    print("\n".join(all_tables(results)))


def all_tables(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    first = next(iter(results.values()))
    lines = [
        f"{len(first)} samples that were never trained on. In brackets the Dice loss. Means over the samples.",
        "",
        *mean_table(results),
    ]
    for name, rows in results.items():
        lines += [
            "", f"{name} + clean-up, every sample, the worst crystal first:", "", *sample_table(rows),
            "", calibration_line(rows),
        ]  # fmt: skip
    return lines


def write_tables(given: argparse.Namespace) -> None:
    results = {}
    for weights in given.weights:
        card = json.loads(model_card_path(weights).read_text(encoding="utf-8"))
        results[weights.stem] = card[given.card or "evaluation"]["samples"]
    text = "\n".join(all_tables(results)) + "\n"
    print(text)
    if given.results:
        given.results.write_text(text, encoding="utf-8")
        worst = next(iter(results.values()))[0]["name"]
        draw_sample(
            given.results.with_name("segmentation-worst.png"),
            given.folder / f"{worst}{TOMO}",
            given.weights[0],
        )


def measure_speed(given: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(given.threads)
    values = np.ones((3 * given.slices, 512, 512), dtype=np.float32)
    values += 0.1 * np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
    settings = InferenceSettings(axes="x", device=given.device)  # as for volumes of that size
    for weights in given.weights:
        network = load_network(weights)
        find_classes(network, values[:2], settings)
        taken = []
        for part in (values[: given.slices], values):
            start, cpu = time.perf_counter(), time.process_time()
            find_classes(network, part, settings)
            taken.append((time.perf_counter() - start, time.process_time() - cpu))
        # what does not depend on the number of slices counts once
        wall, cpu = np.subtract(taken[1], taken[0]) / (2 * given.slices)
        whole = taken[1][0] + (1000 - 3 * given.slices) * wall
        print(
            f"{weights.stem}, {given.threads} threads: {wall:.3f} s more with each slice of 512 x 512 "
            f"({cpu:.3f} processor-s), 1000 slices {whole:.0f} s"
        )


def measure_sam2(given: argparse.Namespace) -> None:
    import torch

    from anacor_dials.segmentation.sam2_predictor import Sam2Predictor

    torch.set_num_threads(given.threads)
    settings = Sam2Settings(given.sam2, given.model, where="all", image_size=given.size)
    predictor = Sam2Predictor.from_settings(settings, given.device)
    # three boxes in one another, of every class some
    labels = np.zeros((given.slices, 256, 256), dtype=np.uint8)
    for label, edge in ((1, 40), (2, 70), (3, 100)):
        labels[:, edge:-edge, edge:-edge] = label
    values = np.array([0.0, 1.0, 0.8, 1.1], dtype=np.float32)[labels]
    values += 0.1 * np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
    chances = np.uint8(255) * (labels == np.arange(4)[:, None, None, None]).astype(np.uint8)
    encoded: list[int] = []
    plain = predictor.model.forward_image
    predictor.model.forward_image = lambda image: encoded.append(1) or plain(image)
    start, cpu = time.perf_counter(), time.process_time()
    refined(values, chances, predictor, settings)
    wall = (time.perf_counter() - start) / given.slices
    cpu = (time.process_time() - cpu) / given.slices
    print(
        f"SAM-2 {given.sam2 or given.model}, {given.slices} slices at {predictor.model.image_size}, 3 classes, "
        f"{given.threads} threads: "
        f"{wall:.2f} s per slice ({cpu:.2f} processor-s), {len(encoded) / given.slices:.2f} encodings per slice, "
        f"1000 slices {1000 * wall / 60:.1f} min"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("make", "evaluate", "tables", "speed", "sam2"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("segmentation_test"))
    parser.add_argument("--samples", type=int, default=6, help="of each shape family")
    parser.add_argument("--weights", type=Path, nargs="+", default=[SHIPPED / SHIPPED_WEIGHTS])
    parser.add_argument("--shipped", action="store_true", help="all shipped weights together")
    parser.add_argument("--axes", default="auto")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--card", nargs="?", const="evaluation", default=None, metavar="ENTRY")
    parser.add_argument("--results", type=Path, default=None)
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sam2", default=None, metavar="CHECKPOINT", help="as sam2.checkpoint=")
    parser.add_argument("--model", default="tiny", help="of SAM-2")
    parser.add_argument("--size", type=int, default=1024, help="SAM-2 sees slices at this size")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if given.what == "make":
        for seed, shape in ((2002, "cluster"), (2003, "bipyramid")):
            ranges = ScanRanges(shapes=(shape,))
            write_training_scans(given.folder, given.samples, seed, ranges, prefix=shape)
    elif given.what == "evaluate":
        evaluate_weights(given)
    elif given.what == "tables":
        write_tables(given)
    elif given.what == "sam2":
        measure_sam2(given)
    else:
        measure_speed(given)


if __name__ == "__main__":
    main()
