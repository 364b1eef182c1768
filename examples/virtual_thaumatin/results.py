"""The tables, pictures and the report of virtual_thaumatin.py: scaled data against the structure that diffracted.

A run's folder holds the virtual data (virtual_0001.*), anacor_compare.json, and a folder for each set of labels
with its corrected.refl and, for labels that were found, tomo.h5 and anacor_segment.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dials.array_family import flex
from scipy.spatial import cKDTree

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
from anacor_dials.report.page import Figure, Section, Table, Text, write_html, write_json
from anacor_dials.report.sample import COLOURS, slice_figures
from anacor_dials.sample.output_files import OutputFiles
from anacor_dials.sample.tomogram_files import read_sample_file

TRUTH = "truth"  # the label of the true labels
STRONG_PEAK = 4.0  # sigma
BEGIN, END = "<!-- begin: figures of the run -->", "<!-- end: figures of the run -->"


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


def judge(
    folder: Path, compared: Path | None = None, finest: float = 0.0
) -> tuple[list[Judged], dict[str, Any]]:
    """Every strategy that was scaled, against the structure; and the content of anacor_compare.json.

    compared: that file, where it is not the run's own. finest: the spacing to which there is diffraction (A).
    """
    compared = compared or folder / "anacor_compare.json"
    comparison = json.loads(compared.read_text(encoding="utf-8"))
    structure = read_structure(folder / "virtual_0001.pdb")
    sites = sites_of(structure, "S")
    d_min = max(finest, comparison["d_min"]) * (1 - RESOLUTION_TOLERANCE)
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
        # until absences were looked for, the screw axes are not known
        scaled = scaled.customized_copy(space_group_info=structure.space_group_info())
        scaled = scaled.remove_systematic_absences()
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


def sample_files(folder: Path, found: Sequence[str]) -> dict[str, Path]:
    """{label: file} of the true labels and of those found."""
    return {
        TRUTH: folder / "virtual_0001_truth.h5",
        **{label: folder / folder_name(label) / "tomo.h5" for label in found},
    }


def factors_and_truth(table: flex.reflection_table, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(factors, true transmissions) of the reflections of a corrected table whose truth is known.

    Those that were integrated from images have the truth of the simulated reflection that lies within
    1.5 pixels and images of them: the indices may be in another setting.
    """
    factors = np.array(table["analytical_correction"])
    if "true.transmission" in table:
        return factors, np.array(table["true.transmission"])
    truth = flex.reflection_table.from_file(str(folder / "virtual_0001.refl"))
    integrated = np.array(table.get_flags(table.flags.integrated_prf))
    place, true_place = (np.array(one["xyzcal.px"].parts()).T for one in (table, truth))
    distance, nearest = cKDTree(true_place).query(place)
    known = integrated & (distance < 1.5)
    return factors[known], np.array(truth["true.transmission"])[nearest[known]]


def faces_found(record: dict[str, Any]) -> str:
    """How many faces were found in labels and which forms they are, in the words of a cell.

    record: anacor_absorption.json. Forms are those of 4/mmm, thaumatin's Laue group.
    """
    (crystal,) = record["faces"]["crystals"]
    if crystal["reason_for_no_faces"]:
        return "none"
    forms = Counter()
    for face in crystal["faces"]:
        h, k, l = (abs(round(i)) for i in face["hkl"])
        name = f"{{{max(h, k)} {min(h, k)} {l}}}" if face["lattice_plane"] else "no lattice plane"
        forms[name] += 1
    said = ", ".join(f"{n} {name}" for name, n in forms.most_common())
    angles = [face["angle_deg"] for face in crystal["faces"] if face["lattice_plane"]]
    return f"{said} (within {max(angles):.1f}°)" if angles else said


def label_rows(folder: Path, found: Sequence[str]) -> list[tuple[str, list[str], list[bool]]]:
    """How good each segmentation's labels are, and its factors against the true transmissions."""
    columns = {}
    for label, path in sample_files(folder, found).items():
        place = folder / folder_name(label)
        cells = ["-"] * 9
        if label != TRUTH:
            report = json.loads((place / "anacor_segment.json").read_text(encoding="utf-8"))
            classes = report["evaluation"]["classes"]
            cells[:4] = [f"{100 * c['recall']:.2f} %" for c in classes.values()]
            cells[4:6] = [f"{classes[name]['dice']:.4f}" for name in ("loop", "crystal")]
        sample = read_sample_file(path, tomogram=False)
        cells[6] = " / ".join(f"{1e3 * mu:.2f}" for mu in sample.mu_per_um[1:])
        table = flex.reflection_table.from_file(str(place / "corrected.refl"))
        factors, true = factors_and_truth(table, folder)
        ratio = factors / true
        cells[7] = f"{100 * ratio.std() / ratio.mean():.2f} %"
        cells[8] = faces_found(json.loads((place / "anacor_absorption.json").read_text("utf-8")))
        columns[label] = cells
    names = (
        *(f"Accuracy, {name}" for name in ("background", "liquor", "loop", "crystal")),
        "Dice, loop",
        "Dice, crystal",
        "mu of liquor / loop / crystal (1/mm)",
        "Factors against true transmissions (rms after one scale)",
        "Faces found in the labels",
    )
    rows = [
        (name, [cells[i] for cells in columns.values()], [False] * len(columns))
        for i, name in enumerate(names)
    ]
    return [row for row in rows if set(row[1]) != {"-"}]  # nothing was segmented


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
        colours = ["#56B4E9" if TRUTH in one.label else "#009E73" if ":" in one.label else "#999999"
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


def draw_slices(files: Mapping[str, Path], path: Path) -> None:
    """Slices through the middle of the crystal as a PNG: tomogram if there is one, labels."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure as Drawing

    samples = {label: read_sample_file(file) for label, file in files.items()}
    truth = samples[TRUTH].labels
    tomogram = next((s.tomogram for label, s in samples.items() if label != TRUTH), None)
    middle = np.argwhere(truth.values == truth.label("crystal")).mean(axis=0)
    volumes = {k: v.labels for k, v in samples.items()}
    if tomogram is not None:
        volumes = {"tomogram": tomogram, **volumes}
    drawing = Drawing(figsize=(2.6 * len(volumes), 7.5), layout="constrained")
    panels = drawing.subplots(3, len(volumes), squeeze=False)
    top = 1.0 if tomogram is None else float(np.percentile(tomogram.values, 99.5))
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


def results_of_pipeline(folder: Path, origin: str, finest: float) -> tuple[list[Judged], str]:
    """Every strategy of xia2.anacor judged, and the table as text; writes from_xia2.md.

    origin: a sentence on how the figures were made; finest: see judge.
    """
    compared = folder / "anacor/DEFAULT/compare/anacor_compare.json"
    judged, comparison = judge(folder, compared, finest)
    header, rows = [one.label for one in judged], table_rows(judged, comparison)
    table = flex.reflection_table.from_file(
        str(folder / "anacor/DEFAULT/absorption/corrected.refl")
    )
    factors, true = factors_and_truth(table, folder)
    ratio = factors / true
    error = f"Factors against true transmissions: {100 * ratio.std() / ratio.mean():.2f} % (rms after one scale)."
    (folder / "from_xia2.md").write_text(
        "\n\n".join([origin, markdown(header, rows), error, ""]), encoding="utf-8"
    )
    return judged, "\n".join([*plain_table(header, rows), "", error])


def write_results(
    folder: Path,
    found: Sequence[str],
    origin: str,
    commands: Sequence[str],
    document: Path | None = None,
) -> tuple[list[Judged], str]:
    """Every strategy judged, and the tables as text; writes virtual_thaumatin.{json,html,md} and two pictures.

    found: labels of the segmentations; origin: a sentence on how the figures were made; commands: the
    run's; document: Markdown whose figures are replaced, the pictures beside it.
    """
    judged, comparison = judge(folder)
    header, rows = [one.label for one in judged], table_rows(judged, comparison)
    of_labels = label_rows(folder, found)
    files = sample_files(folder, found)
    sources = list(files)
    failed = [
        f"{s['label']} failed: {s['reason']}"
        for s in comparison["strategies"]
        if not s["succeeded"]
    ]
    stem = document.stem if document else "virtual_thaumatin"  # of the pictures
    text = "\n\n".join(
        [
            origin,
            markdown(header, rows),
            *filter(None, [nearness(judged, found)]),
            *failed,
            f"![statistics]({stem}-statistics.png)",
            markdown(sources, of_labels),
            f"![slices]({stem}-slices.png)",
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
    for label, path in files.items():
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
        Section("Commands", [Text(command) for command in commands]),
    ]  # fmt: skip
    with OutputFiles() as out:
        write_json(
            out.path(folder / "virtual_thaumatin.json"),
            {
                "origin": origin,
                "strategies": structure_rows,
                "labels": {name: dict(zip(sources, cells, strict=True)) for name, cells, _ in of_labels},
                "commands": list(commands),
            },
        )  # fmt: skip
        html = out.path(folder / "virtual_thaumatin.html")
        write_html(html, "Virtual thaumatin", sections)
        out.path(folder / "virtual_thaumatin.md").write_text(text + "\n", encoding="utf-8")
        targets = [folder]
        if document:
            old = document.read_text(encoding="utf-8")
            out.path(document).write_text(with_figures(old, text), encoding="utf-8")
            targets.append(document.parent)
        for target in targets:
            draw_bars(judged, out.path(target / f"{stem}-statistics.png"))
            draw_slices(files, out.path(target / f"{stem}-slices.png"))
    lines = [*plain_table(header, rows), "", *plain_table(sources, of_labels), ""]
    return judged, "\n".join([*lines, nearness(judged, found), *failed])
