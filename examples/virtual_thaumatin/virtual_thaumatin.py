"""The proof on virtual data: absorption ruins them, labels mend them, and the truth is known.

A virtual sample, its tomography scan and its diffraction data at 4 A; then what a user does, with the true
labels, with AnACorNet's and, where a checkpoint is given, with those that SAM-2 refined; and then
what a user cannot do: the merged data held against the structure that diffracted.

    tools/dials-env python examples/virtual_thaumatin/virtual_thaumatin.py [FOLDER]

Every step is one command, shown as it is run; its output is kept in FOLDER/logs. A step is not repeated
while its command is the same and its results are there and newer than what it reads.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from dials.util.version import dials_version

from anacor_dials import __version__
from anacor_dials.diffraction.known_structure import (
    Agreement,
    agreement,
    amplitudes,
    anomalous_peak_heights,
    calculated_structure_factors,
    merged_friedel_apart,
    read_structure,
    sites_of,
)
from anacor_dials.diffraction.merging import RESOLUTION_TOLERANCE, load_scaled
from anacor_dials.report import Figure, Section, Table, Text, write_html, write_json
from anacor_dials.sample.output_files import OutputFiles
from anacor_dials.sample.pictures import COLOURS, slice_figures
from anacor_dials.sample.tomogram_files import read_sample_file
from anacor_dials.segmentation.inference import SHIPPED_WEIGHTS
from anacor_dials.segmentation.network import model_card_path

TRUTH, NETWORK, SAM2 = "truth", "AnACorNet", "AnACorNet + SAM-2"
STRATEGIES = "none+sh_low+sh_high+analytical+analytical_sh"
SIMULATION = (
    "seed=5",
    "sample.shape=polyhedron",
    "sample.film=False",
    "scan.energy=3.1",  # keV; 4.0 A, for both experiments
    "detector.photons=16000",
    "detector.gain=1",
    "diffraction.simulate=True",
    "diffraction.mean_counts=50000",  # before absorption
)
SETTINGS = {
    # minutes on two cores
    "small": (
        "sample.crystal_size=72,80",
        "sample.stem_length=20",
        "scan.pixel_size=1.4",
        "scan.image_size=230,160",
        "scan.n_projections=200",
        "diffraction.d_min=3.5",
    ),
    # I23's own scan, and a second sweep at another kappa; for a cluster or a machine with a GPU
    "large": (
        "sample.crystal_size=80,90",
        "sample.stem_length=60",
        "scan.pixel_size=0.3",
        "scan.image_size=1300,800",
        "scan.n_projections=900",
        "diffraction.d_min=2.7",
        "diffraction.sweep=0,360,0.1,0,0",
        "diffraction.sweep=0,360,0.1,-40,0",
    ),
}
STRONG_PEAK = 4.0  # sigma
BEGIN, END = "<!-- begin: figures of the run -->", "<!-- end: figures of the run -->"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# ---- steps ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A command run in a folder, the files it reads, and the files it makes (all below the run's folder)."""

    name: str
    command: tuple[str, ...]
    folder: Path
    reads: tuple[Path, ...]
    makes: tuple[Path, ...]


def is_done(step: Step, log: Path) -> bool:
    """True where the log is of the same command and all results are there and not older than what it reads."""
    if not all(path.is_file() for path in (log, *step.makes)):
        return False
    with log.open(encoding="utf-8", errors="replace") as file:
        same = file.readline().rstrip("\n") == f"$ {shlex.join(step.command)}"
    newest = max((p.stat().st_mtime for p in step.reads if p.is_file()), default=0.0)
    return same and newest <= min(path.stat().st_mtime for path in step.makes)


def run_step(step: Step, logs: Path) -> float:
    """Runs a step unless it is done; the seconds it took, 0 where it was done. Exits where it fails."""
    log, failed = logs / f"{step.name}.log", logs / f"{step.name}.failed.log"
    running = logs / f"{step.name}.running.log"
    command = shlex.join(step.command)
    say(f"\n$ cd {shlex.quote(str(step.folder))} && {command}")
    if is_done(step, log):
        say("  done before")
        return 0.0
    step.folder.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    start = time.perf_counter()
    with running.open("w", encoding="utf-8") as file:
        file.write(f"$ {command}\n")
        file.flush()
        status = subprocess.run(
            step.command, cwd=step.folder, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    seconds = time.perf_counter() - start
    missing = [str(path) for path in step.makes if not path.is_file()]
    if status or missing:
        running.replace(failed)
        last = failed.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        reason = f"exit status {status}" if status else f"{', '.join(missing)} not made"
        sys.exit("\n".join([*last, f"{step.command[0]}: {reason}. Its output: {failed}"]))
    running.replace(log)
    failed.unlink(missing_ok=True)
    say(f"  {seconds:.0f} s")
    return seconds


def steps_of(given: argparse.Namespace, folder: Path) -> list[Step]:
    """All steps of a run in a folder, in order."""
    stem = folder / "virtual_0001"
    scan, labels_true = stem.with_suffix(".nxs"), folder / "virtual_0001_truth.h5"
    data = tuple(stem.with_suffix(suffix) for suffix in (".expt", ".refl"))
    weights = given.weights or Path(str(files("anacor_dials") / "segmentation" / "weights"))
    reads = tuple(sorted(weights.glob("*.safetensors"))) if weights.is_dir() else (weights,)
    chosen = (f"segmentation.weights={given.weights}",) if given.weights else ()
    steps = [
        Step(
            "simulate",
            ("dials.anacor_simulate", "output.prefix=virtual", *SIMULATION, *SETTINGS[given.setting]),
            folder,
            (),
            (scan, labels_true, *data, stem.with_suffix(".pdb")),
        )
    ]  # fmt: skip
    labels = {TRUTH: labels_true}
    for label, options in segmentations(given).items():
        place = folder / folder_name(label)
        labels[label] = place / "tomo.h5"
        steps.append(
            Step(
                f"segment_{folder_name(label)}",
                ("dials.anacor_segment", str(scan), f"truth={labels_true}", *chosen, *options),
                place,
                (scan, labels_true, *reads),
                (labels[label], place / "anacor_segment.json"),
            )
        )
    corrected = []
    for label, tomogram in labels.items():
        place = folder / folder_name(label)
        made = (place / "corrected.expt", place / "corrected.refl")
        corrected += made
        steps.append(
            Step(
                f"absorption_{folder_name(label)}",
                ("dials.anacor_absorption", *map(str, data), str(tomogram)),
                place,
                (*data, tomogram),
                (*made, place / "anacor_absorption.json"),
            )
        )
    compare = (
        "dials.anacor_compare",
        *map(str, corrected),
        f"labels={','.join(labels)}",
        f"strategies={STRATEGIES}",
        "scaling.anomalous=True",
        "scaling.full_matrix=False",
        f"nproc={given.nproc}",
    )
    made = (folder / "anacor_compare.json", folder / "anacor_compare.html")
    return [*steps, Step("compare", compare, folder, tuple(corrected), made)]


def segmentations(given: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """{label: further options of dials.anacor_segment}."""
    made: dict[str, tuple[str, ...]] = {NETWORK: ()}
    if given.sam2:
        made[SAM2] = (f"sam2.checkpoint={given.sam2}", f"sam2.model={given.sam2_model}")
    return made


def folder_name(label: str) -> str:
    return label.lower().replace(" + ", "_").replace("-", "")


# ---- against the truth ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """One strategy: its entry in anacor_compare.json, and how it stands to the structure."""

    label: str
    table_1: dict[str, list[Any]]
    agreement: Agreement
    peaks: np.ndarray


def judge(folder: Path) -> tuple[list[Judged], dict[str, Any]]:
    """Every strategy that was scaled, against the structure; and the content of anacor_compare.json."""
    comparison = json.loads((folder / "anacor_compare.json").read_text(encoding="utf-8"))
    structure = read_structure(folder / "virtual_0001.pdb")
    sites = sites_of(structure, "S")
    d_min = comparison["d_min"] * (1 - RESOLUTION_TOLERANCE)
    true = phased = None
    judged = []
    for one in comparison["strategies"]:
        if not one["succeeded"]:
            continue
        scaled = load_scaled(one["label"], one["experiments"], one["reflections"]).intensities
        if true is None:
            wavelength = scaled.info().wavelength
            true = abs(calculated_structure_factors(structure, wavelength, d_min))
            phased = calculated_structure_factors(structure, wavelength, d_min, anomalous=False)
        merged = merged_friedel_apart(scaled.resolution_filter(d_min=d_min))
        heights = anomalous_peak_heights(amplitudes(merged), phased, sites)
        judged.append(Judged(one["label"], one["table_1"], agreement(merged, true), heights))
    return judged, comparison


# name, what it is of, format, what is best
TRUE_ROWS = (
    ("CC with true intensities", lambda j: j.agreement.cc_intensities, "cc_intensities", "{:.4f}", max),
    ("R against true intensities", lambda j: j.agreement.r_intensities, "r_intensities", "{:.4f}", min),
    ("CC with true anomalous differences", lambda j: j.agreement.cc_anomalous, "cc_anomalous", "{:.3f}", max),
    ("Mean anomalous peak at S (sigma)", lambda j: float(j.peaks.mean()), None, "{:.2f}", max),
    (f"S atoms above {STRONG_PEAK:g} sigma", lambda j: int((j.peaks > STRONG_PEAK).sum()), None, "{}", max),
)  # fmt: skip


def table_rows(
    judged: Sequence[Judged], comparison: dict[str, Any]
) -> list[tuple[str, list[str], list[bool]]]:
    """(name, a cell per strategy, which are best) of every row: merging statistics, then the truth's."""
    labels = [one.label for one in judged]
    order = [comparison["columns"].index(label) for label in labels]
    rows = [
        (row["name"], [row["cells"][i] for i in order], [label in row["best"] for label in labels])
        for row in comparison["table"]
    ]
    for name, value, shells, form, best in TRUE_ROWS:
        texts = [form.format(value(one)) for one in judged]
        top = form.format(best(value(one) for one in judged))
        marks = [text == top for text in texts]
        if shells:
            outer = [one.agreement.by_resolution[shells][-1] for one in judged]
            texts = [f"{t} ({form.format(o)})" for t, o in zip(texts, outer, strict=True)]
        rows.append((name, texts, marks if not all(marks) else [False] * len(marks)))
    return rows


def markdown(header: Sequence[str], rows: Sequence[tuple[str, list[str], list[bool]]]) -> str:
    """The rows as a Markdown table, the best in bold."""
    lines = ["| " + " | ".join(["", *header]) + " |", "|---" * (len(header) + 1) + "|"]
    for name, cells, best in rows:
        marked = [f"**{c}**" if b else c for c, b in zip(cells, best, strict=True)]
        lines.append("| " + " | ".join([name, *marked]) + " |")
    return "\n".join(lines)


def label_rows(folder: Path, given: argparse.Namespace) -> list[tuple[str, list[str], list[bool]]]:
    """How good each segmentation's labels are, and its factors against the true transmissions."""
    from dials.array_family import flex

    columns = {}
    for label in (TRUTH, *segmentations(given)):
        place = folder / folder_name(label)
        cells = ["-"] * 8
        if label != TRUTH:
            report = json.loads((place / "anacor_segment.json").read_text(encoding="utf-8"))
            classes = report["evaluation"]["classes"]
            cells[:4] = [f"{100 * c['accuracy']:.2f} %" for c in classes.values()]
            cells[4:6] = [f"{classes[name]['dice']:.4f}" for name in ("loop", "crystal")]
        sample = read_sample_file(place / "tomo.h5" if label != TRUTH else folder / "virtual_0001_truth.h5",
                                  tomogram=False)  # fmt: skip
        cells[6] = " / ".join(f"{1e3 * mu:.2f}" for mu in sample.mu_per_um[1:])
        table = flex.reflection_table.from_file(str(place / "corrected.refl"))
        ratio = np.array(table["analytical_correction"]) / np.array(table["true.transmission"])
        cells[7] = f"{100 * ratio.std() / ratio.mean():.2f} %"
        columns[label] = cells
    names = (
        *(f"Accuracy, {name}" for name in ("background", "liquor", "loop", "crystal")),
        "Dice, loop",
        "Dice, crystal",
        "mu of liquor / loop / crystal (1/mm)",
        "Factors against true transmissions (rms after one scale)",
    )
    return [
        (name, [cells[i] for cells in columns.values()], [False] * len(columns))
        for i, name in enumerate(names)
    ]


def plain_table(
    header: Sequence[str], rows: Sequence[tuple[str, list[str], list[bool]]]
) -> list[str]:
    """The table as lines of text, strategies one below the other so that it fits a screen."""
    width = max(len(label) for label in header)
    return [
        line
        for name, cells, best in rows
        for line in (
            name,
            *(
                f"  {label:<{width}}  {cell}{' *' if b else ''}"
                for label, cell, b in zip(header, cells, best, strict=True)
            ),
        )
    ]


# ---- pictures ------------------------------------------------------------------------------------

BARS = (
    ("Rmeas", lambda j: j.table_1["Rmeas(I)"][0]),
    ("R against true intensities", lambda j: j.agreement.r_intensities),
    ("CC with true anomalous differences", lambda j: j.agreement.cc_anomalous),
    ("Mean anomalous peak at S (sigma)", lambda j: float(j.peaks.mean())),
)


def bar_figures(judged: Sequence[Judged]) -> list[Figure]:
    """The four bar charts for the HTML report."""
    labels = [one.label for one in judged]
    return [
        Figure(
            [{"type": "bar", "orientation": "h", "y": labels, "x": [value(one) for one in judged]}],
            {"title": {"text": name}, "yaxis": {"autorange": "reversed", "automargin": True}},
        )
        for name, value in BARS
    ]


def draw_bars(judged: Sequence[Judged], path: Path) -> None:
    """The four bar charts as a PNG."""
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(10, 6), layout="constrained")
    for axis, (name, value) in zip(drawing.subplots(2, 2).flat, BARS, strict=True):
        colours = ["#56B4E9" if TRUTH in one.label else "#009E73" if NETWORK in one.label else "#999999"
                   for one in judged]  # fmt: skip
        bars = axis.barh(
            [one.label for one in judged], [value(one) for one in judged], color=colours
        )
        axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=7)
        axis.invert_yaxis()
        axis.set_title(name, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.15)
    drawing.savefig(path, dpi=90)


def draw_slices(folder: Path, given: argparse.Namespace, path: Path) -> None:
    """Slices through the middle of the crystal as a PNG: tomogram, true labels, labels found."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure as Drawing

    truth = read_sample_file(folder / "virtual_0001_truth.h5", tomogram=False).labels
    found = {
        label: read_sample_file(folder / folder_name(label) / "tomo.h5")
        for label in segmentations(given)
    }
    tomogram = found[NETWORK].tomogram
    middle = np.argwhere(truth.values == truth.label("crystal")).mean(axis=0)
    volumes = {"tomogram": tomogram, TRUTH: truth, **{k: v.labels for k, v in found.items()}}
    drawing = Drawing(figsize=(2.6 * len(volumes), 7.5), layout="constrained")
    panels = drawing.subplots(3, len(volumes), squeeze=False)
    top = float(np.percentile(tomogram.values, 99.5))
    for row in range(3):
        for axis, (name, volume) in zip(panels[row], volumes.items(), strict=True):
            at = (middle - truth.centre)[row] * truth.voxel_size_um[row]
            index = round(float(at / volume.voxel_size_um[row] + volume.centre[row]))
            plane = np.take(volume.values, index, axis=row)
            if volume is tomogram:
                axis.imshow(plane, cmap="gray", vmin=0, vmax=top)
            else:
                axis.imshow(
                    plane, cmap=ListedColormap(COLOURS[:4]), vmin=0, vmax=3, interpolation="nearest"
                )
            axis.set(xticks=[], yticks=[], title=name if row == 0 else "")
        panels[row, 0].set_ylabel(f"across {'XYZ'[row]}")
    drawing.savefig(path, dpi=80)


# ---- the document --------------------------------------------------------------------------------


def with_figures(document: str, figures: str) -> str:
    """The document with what stands between its two marks replaced; ValueError where it has no marks."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"The document lacks the marks {BEGIN} and {END} between which figures go."
        )
    return f"{before}{BEGIN}\n{figures.strip()}\n{END}{after}"


def origin(given: argparse.Namespace) -> str:
    """One sentence: when and by what the figures were made."""
    weights = given.weights or Path(
        str(files("anacor_dials") / "segmentation" / "weights" / SHIPPED_WEIGHTS)
    )
    card = model_card_path(weights)
    trained = ""
    if card.is_file():
        content = json.loads(card.read_text(encoding="utf-8"))
        trained = f" ({content['training']['steps_done']} steps of training)"
    options = ", ".join(f"`{option}`" for option in (*SIMULATION, *SETTINGS[given.setting]))
    return (
        f"Made on {date.today()} by anacor_dials {__version__} and {dials_version()}, weights "
        f"`{weights.name}`{trained}, setting `{given.setting}`: {options}."
    )


def nearness(judged: Sequence[Judged], sources: Sequence[str]) -> str:
    """A sentence per set of labels that was found: its Rmeas against that of the true labels."""
    r_meas = {one.label: one.table_1["Rmeas(I)"][0] for one in judged}
    sentences = []
    for source in sources:
        found = [
            f"{100 * (r_meas[f'{way}: {source}'] / r_meas[f'{way}: {TRUTH}'] - 1):+.1f} % ({way})"
            for way in ("analytical", "analytical + SH")
            if f"{way}: {source}" in r_meas and f"{way}: {TRUTH}" in r_meas
        ]
        if found:
            sentences.append(f"Rmeas of {source} against that of the truth: {', '.join(found)}.")
    return " ".join(sentences)


def write_results(folder: Path, given: argparse.Namespace, steps: Sequence[Step]) -> list[Judged]:
    """Writes virtual_thaumatin.json, .html and .md with two pictures, and prints the table."""
    judged, comparison = judge(folder)
    header, rows = [one.label for one in judged], table_rows(judged, comparison)
    of_labels = label_rows(folder, given)
    sources = [TRUTH, *segmentations(given)]
    failed = [
        f"{s['label']} failed: {s['reason']}"
        for s in comparison["strategies"]
        if not s["succeeded"]
    ]
    text = "\n\n".join(
        [
            origin(given),
            markdown(header, rows),
            nearness(judged, sources[1:]),
            *failed,
            "![statistics](virtual_thaumatin-statistics.png)",
            markdown(sources, of_labels),
            "![slices](virtual_thaumatin-slices.png)",
        ]
    )
    structure_rows = {
        one.label: {
            "cc_intensities": one.agreement.cc_intensities,
            "r_intensities": one.agreement.r_intensities,
            "cc_anomalous": one.agreement.cc_anomalous,
            "n_reflections": one.agreement.n_reflections,
            "n_pairs": one.agreement.n_pairs,
            "by_resolution": dict(one.agreement.by_resolution),
            "peak_heights_sigma": one.peaks,
            "table_1": one.table_1,
        }
        for one in judged
    }
    pictures = []
    for label in sources:
        path = (
            folder / "virtual_0001_truth.h5"
            if label == TRUTH
            else folder / folder_name(label) / "tomo.h5"
        )
        for traces, layout, caption in slice_figures(read_sample_file(path, tomogram=False).labels):
            pictures.append(Figure(traces, layout, f"{label}. {caption}"))
    marked = frozenset(
        (i, j + 1) for i, row in enumerate(rows) for j, best in enumerate(row[2]) if best
    )
    sections = [
        Section(
            "Strategies",
            [
                Table([[name, *cells] for name, cells, _ in rows], ["", *header], "Overall (outer shell)", marked),
                *(Text(line, "warning") for line in failed),
                *bar_figures(judged),
            ],
        ),
        Section("Labels", [Table([[n, *c] for n, c, _ in of_labels], ["", *sources]), *pictures]),
        Section("Commands", [Text(shlex.join(step.command)) for step in steps]),
    ]  # fmt: skip
    with OutputFiles() as out:
        write_json(
            out.path(folder / "virtual_thaumatin.json"),
            {
                "setting": given.setting,
                "strategies": structure_rows,
                "labels": {name: dict(zip(sources, cells, strict=True)) for name, cells, _ in of_labels},
                "commands": [shlex.join(step.command) for step in steps],
            },
        )  # fmt: skip
        html = out.path(folder / "virtual_thaumatin.html")
        write_html(html, "Virtual thaumatin", sections)
        out.path(folder / "virtual_thaumatin.md").write_text(text + "\n", encoding="utf-8")
        targets = [folder]
        if given.docs:
            old = given.docs.read_text(encoding="utf-8")
            out.path(given.docs).write_text(with_figures(old, text), encoding="utf-8")
            targets.append(given.docs.parent)
        for target in targets:
            draw_bars(judged, out.path(target / "virtual_thaumatin-statistics.png"))
            draw_slices(folder, given, out.path(target / "virtual_thaumatin-slices.png"))
    lines = [*plain_table(header, rows), "", *plain_table(sources, of_labels), ""]
    say("\n" + "\n".join([*lines, nearness(judged, sources[1:]), *failed]))
    return judged


def arguments(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("virtual_thaumatin"))
    parser.add_argument("--setting", choices=SETTINGS, default="small",
                        help="small: minutes on two cores; large: I23's own scan, for clusters")  # fmt: skip
    parser.add_argument("--weights", type=lambda name: Path(name).resolve(),
                        help="weights of AnACorNet other than those that ship")  # fmt: skip
    parser.add_argument("--sam2", metavar="CHECKPOINT", help="refine by SAM-2, too")
    parser.add_argument("--sam2-model", default="tiny", help="the checkpoint's model (tiny)")
    parser.add_argument("--nproc", type=int, default=2, help="runs of dials.scale at a time (2)")
    parser.add_argument("--docs", type=Path, help="a Markdown document whose figures are replaced")
    given = parser.parse_args(args)
    if given.docs and END not in given.docs.read_text(encoding="utf-8"):
        parser.error(f"{given.docs} lacks the marks {BEGIN} and {END} between which figures go")
    if given.sam2 and Path(given.sam2).exists():
        given.sam2 = str(Path(given.sam2).resolve())
    return given


def main(args: Sequence[str] | None = None) -> list[Judged]:
    given = arguments(args)
    start = time.perf_counter()
    folder = given.folder.resolve()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    steps = steps_of(given, folder)
    for step in steps:
        run_step(step, folder / "logs")
    judged = write_results(folder, given, steps)
    say(f"\nReport: {folder / 'virtual_thaumatin.html'}\nTook {time.perf_counter() - start:.0f} s")
    return judged


if __name__ == "__main__":
    main()
