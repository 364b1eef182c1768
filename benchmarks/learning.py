"""How much a network learns from a few slices that a person put right, with the truth as the person.

    tools/dials-env python benchmarks/learning.py FOLDER [NAME ...] [--slices 1 3 5] [--minutes 3] [--all]
    tools/dials-env python benchmarks/learning.py FOLDER [NAME ...] --follow [--sam2 CHECKPOINT]
    tools/dials-env python benchmarks/learning.py --stream SEED [--samples 20] [--sam2 CHECKPOINT]
    tools/dials-env python benchmarks/learning.py --one-slice SEED [--samples 20] [--sam2 CHECKPOINT]

FOLDER: of pairs NAME.tomo.h5 and NAME.truth.h5. Put right are whole slices through the middle of the true
crystal: one across X; three across X, Y and Z; five with two more across X, half way to its ends. Dice of the
crystal and the rms difference of 300 absorption factors after one scale, before and after, both with what is by
hand in its place. Without --all samples are left out that are good enough before (Dice 0.97, factors 1 %).
--follow: instead a fifth of the crystal is taken away at one side, drawn again in one slice, and carried into its
neighbours; per cent of wrong voxels around it, before and after, by the distance from that slice; by the random
walker, and with --sam2 CHECKPOINT also by SAM-2 and by both. --stream SEED: the same on samples of the stream.
--one-slice SEED: instead one true slice of samples of the stream is given and nothing else, and followed through 8
slices on both sides.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from segmentation import factor_error

from anacor_dials.jobs.learn import LearningSettings
from anacor_dials.jobs.segment import Reconstruction, SegmentationSettings, segment_tomogram
from anacor_dials.jobs.training_stream import StreamedTomograms
from anacor_dials.sample.hand_made import EditingSession, HandMadeLabels
from anacor_dials.sample.tomogram_files import read_sample_file
from anacor_dials.sample.volumes import LabelVolume, Tomogram
from anacor_dials.segmentation.propagation import (
    Propagation,
    PropagationSettings,
    followed,
    random_walk,
    region_of,
    sam2_propagation,
)
from anacor_dials.segmentation.sam2_predictor import Sam2Predictor
from anacor_dials.segmentation.sam2_refinement import Sam2Settings
from anacor_dials.segmentation.tiles import InferenceSettings
from anacor_dials.segmentation.training_data import TOMO, TRUTH, labels_on_grid
from anacor_dials.segmentation.working_grid import intensity_scale

GOOD_DICE, GOOD_FACTORS_PERCENT = 0.97, 1.0


def put_right(true: LabelVolume, n: int) -> HandMadeLabels:
    """The truth in n slices."""
    where = np.argwhere(true.values == true.label("crystal"))
    low, middle, high = where.min(axis=0), where.mean(axis=0).astype(int), where.max(axis=0)
    planes = [(axis, int(middle[axis])) for axis in range(3)]
    planes += [(0, int(low[0] + middle[0]) // 2), (0, int(high[0] + middle[0]) // 2)]
    session = np.zeros(true.shape, dtype=np.uint8)
    for axis, x in planes[:n]:
        np.moveaxis(session, axis, 0)[x] = 1
    who = EditingSession("the truth", "")
    return HandMadeLabels(true.values, session, true.names, (who,))


def scores(labels: LabelVolume, made: HandMadeLabels | None, true: LabelVolume, mu: Any) -> Any:
    """(Dice of the crystal, rms error of the factors in per cent)."""
    values = labels.values if made is None else made.put_into(labels.values, labels.names)
    found = LabelVolume(values, labels.voxel_size_um, labels.centre, labels.names)
    crystal = true.label("crystal")
    a, b = values == crystal, true.values == crystal
    dice = 2 * np.count_nonzero(a & b) / max(np.count_nonzero(a) + np.count_nonzero(b), 1)
    return dice, factor_error(found, true, mu)["factors_rms_percent"]


def learn(
    given: argparse.Namespace, name: str, tomogram: Tomogram, true: LabelVolume, mu: Any
) -> None:
    settings = SegmentationSettings(
        inference=InferenceSettings(device=given.device),
        learning=LearningSettings(minutes=given.minutes),
    )
    try:
        before = segment_tomogram(Reconstruction(tomogram), settings).labels
        dice, factors = scores(before, None, true, mu)
    except ValueError:
        dice, factors = 0.0, np.nan
    if dice >= GOOD_DICE and factors <= GOOD_FACTORS_PERCENT and not given.all:
        print(f"| {name} | good enough: {dice:.3f}, {factors:.2f} % |", flush=True)
        return
    for n in given.slices:
        made = put_right(true, n)
        start, cpu = time.perf_counter(), time.process_time()
        source = replace(Reconstruction(tomogram), hand_made=made)
        after = segment_tomogram(source, settings, learn=True).labels
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        new_dice, new_factors = scores(after, made, true, mu)
        print(
            f"| {name} | {n} | {dice:.3f} | {new_dice:.3f} | {factors:.2f} % | {new_factors:.2f} % | {seconds:.0f} s "
            f"({cpu:.0f} processor-s) |",
            flush=True,
        )


Ways = dict[str, Propagation | None]  # how labels are continued, by name; None: by the walker


def ways_to_follow(checkpoint: str | None, axis: int = 0) -> Ways:
    """The random walker, and the walker and SAM-2 together if there is a checkpoint."""
    ways: Ways = {"walker": None}
    if checkpoint is not None:
        predictor = Sam2Predictor.from_settings(Sam2Settings(checkpoint))
        ways["walker and SAM-2"] = sam2_propagation(predictor, axis)
        ways["SAM-2"] = sam2_propagation(predictor, axis, share=1.0)
    return ways


def follow(
    name: str, values: NDArray[np.float32], true: LabelVolume, ways: Ways
) -> dict[str, list[float]]:
    """Per cent of wrong voxels at 1, 2 ... voxels from the slice, before and by each way."""
    wrong: dict[str, list[float]] = {"before": []}
    crystal = true.label("crystal")
    z = np.argwhere(true.values == crystal)[:, 2]
    missed = (true.values == crystal) & (np.arange(true.shape[2]) >= np.percentile(z, 80))
    x = int(np.argwhere(missed)[:, 0].mean())
    spoilt = np.where(missed, true.label("liquor"), true.values).astype(np.uint8)
    drawn, by_hand = spoilt.copy(), np.zeros(true.shape, dtype=bool)
    drawn[x], by_hand[x] = true.values[x], True
    settings = PropagationSettings()
    region = region_of(drawn != spoilt, settings.reach)
    assert region is not None
    around = np.zeros(true.shape, dtype=bool)
    around[region[0]] = region[1]
    for way, propagation in ways.items():
        start = time.process_time()
        found = followed(values, drawn, by_hand, drawn != spoilt, settings, propagation)
        seconds = time.process_time() - start
        cells = []
        for step in range(1, settings.reach):
            here = around.copy()
            here[[k for k in range(len(here)) if abs(k - x) != step]] = False
            before, after = (100 * np.mean(v[here] != true.values[here]) for v in (drawn, found))
            cells.append(f"{before:.0f} to {after:.0f}")
            wrong.setdefault(way, []).append(float(after))
            if way == "walker":
                wrong["before"].append(float(before))
        print(f"| {name} | {way} | {' | '.join(cells)} | {seconds:.1f} |", flush=True)
    return wrong


def follow_in_stream(given: argparse.Namespace) -> None:
    """The same on samples of the stream that have a crystal large enough, and their mean."""
    make, ways = StreamedTomograms(given.stream, tuple(given.voxels)), ways_to_follow(given.sam2)
    rows: dict[str, list[list[float]]] = {}
    for number in range(given.samples):
        volume = make(number)
        if np.count_nonzero(volume.labels == 3) < 1500:
            continue
        true = LabelVolume(volume.labels, np.array(volume.voxel_size_um), names=volume.names)
        found = follow(str(number), np.asarray(volume.views[0], dtype=np.float32), true, ways)
        for way, values in found.items():
            rows.setdefault(way, []).append(values)
    for way, values_ in rows.items():
        mean = np.mean(values_, axis=0)
        print(f"| mean | {way} | {' | '.join(f'{v:.1f}' for v in mean)} | {mean.mean():.1f} |")


def follow_one_slice(given: argparse.Namespace) -> None:
    """Dice of every material in the slices within the reach of one true slice, for each way."""
    make = StreamedTomograms(given.one_slice, tuple(given.voxels))
    rows: dict[str, list[list[float]]] = {}
    for number in range(given.samples):
        volume = make(number)
        where = np.argwhere(volume.labels == 3)
        x, reach = int(np.median(where[:, 0])), PropagationSettings.reach
        first = max(0, x - reach)
        low, high = np.maximum(where.min(axis=0) - 20, 0), where.max(axis=0) + 21
        box = (slice(first, x + reach + 1), slice(low[1], high[1]), slice(low[2], high[2]))
        values = np.ascontiguousarray(volume.views[0][box], dtype=np.float32)
        true, x = volume.labels[box], x - first
        by_hand = np.zeros(true.shape, dtype=bool)
        by_hand[x] = True
        drawn = np.where(by_hand, true, 0).astype(np.uint8)
        found = {"the slice itself": np.broadcast_to(true[x], true.shape)}
        seconds = {}
        for way, propagation in ways_to_follow(given.sam2).items():
            start = time.process_time()
            found[way] = (propagation or random_walk)(values, drawn, by_hand, ~by_hand)
            seconds[way] = time.process_time() - start
        others = np.arange(len(true)) != x
        for way, labels in found.items():
            row = [dice_of_slices(labels[others] == k, true[others] == k) for k in (1, 2, 3)]
            wrong = 100 * np.mean(labels[others] != true[others])
            rows.setdefault(way, []).append([*row, wrong, seconds.get(way, 0.0)])
    print(
        "| way | Dice of liquor | loop | crystal | wrong voxels | processor-s |\n|---|---|---|---|---|---|"
    )
    for way, values_ in rows.items():
        mean = np.nanmean(values_, axis=0)
        cells = " | ".join(f"{v:.3f}" for v in mean[:3])
        print(f"| {way} | {cells} | {mean[3]:.2f} % | {mean[4]:.1f} |")


def dice_of_slices(found: Any, true: Any) -> float:
    """Mean over slices; NaN if the material is in none of them."""
    if not true.any():
        return float("nan")
    both = (found & true).sum(axis=(1, 2))
    total = found.sum(axis=(1, 2)) + true.sum(axis=(1, 2))
    return float(np.mean(2 * both[total > 0] / total[total > 0]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("."))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--slices", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--minutes", type=float, default=LearningSettings.minutes)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--one-slice", type=int, default=None, metavar="SEED")
    parser.add_argument("--stream", type=int, default=None, metavar="SEED")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--voxels", type=int, nargs=2, default=StreamedTomograms.voxels)
    parser.add_argument("--sam2", default=None, metavar="CHECKPOINT", help="as sam2.checkpoint=")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if given.one_slice is not None:
        follow_one_slice(given)
        return
    if given.stream is not None:
        follow_in_stream(given)
        return
    if given.follow:
        print(f"| sample | way | {' | '.join(str(k) for k in range(1, 8))} | processor-s |")
    else:
        print(
            "| sample | slices | Dice | after | factors | after | time |\n|---|---|---|---|---|---|---|"
        )
    for path in sorted(given.folder.glob(f"*{TOMO}")):
        name = path.name.removesuffix(TOMO)
        if given.names and name not in given.names:
            continue
        tomogram = read_sample_file(path).tomogram
        file = read_sample_file(path.with_name(name + TRUTH), tomogram=False)
        assert tomogram is not None
        assert file.labels is not None
        values = labels_on_grid(file.labels, tomogram)
        true = LabelVolume(values, tomogram.voxel_size_um, tomogram.centre, file.labels.names)
        if given.follow:
            scale = intensity_scale(tomogram.values, tomogram.voxel_size_um)
            follow(name, scale.normalised(tomogram.values), true, ways_to_follow(given.sam2))
        else:
            learn(given, name, tomogram, true, file.mu_per_um)


if __name__ == "__main__":
    main()
