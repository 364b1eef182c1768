"""The report of an absorption correction: page, numbers, CIF block, tables for the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anacor_dials import __version__
from anacor_dials.jobs.records import AbsorptionRecord, MaterialRecord, WavelengthFactorsRecord
from anacor_dials.report.alignment import alignment_items, alignment_record, alignment_text
from anacor_dials.report.cif import absorption_blocks, face_lines, shape_lines
from anacor_dials.report.coefficients import (
    coefficient_items,
    coefficients_record,
    coefficients_text,
)
from anacor_dials.report.crystal_surface import faces_items, faces_record, faces_text
from anacor_dials.report.page import Figure, Item, Section, Table, Text
from anacor_dials.report.sample import slice_figures, view_3d
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.materials import Material
from anacor_dials.sample.volumes import LabelVolume

if TYPE_CHECKING:
    from anacor_dials.absorption.factors import Accuracy
    from anacor_dials.jobs.correct import CorrectedReflections, Correction, WavelengthFactors

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)  # of the transmissions


def materials_text(materials: Sequence[Material], labels: LabelVolume) -> str:
    """The table of materials for the log."""
    counts = labels.counts()
    lines = [f"{'label':>5} {'material':12} {'mu /um':>10} {'mu /mm':>9} {'volume um3':>13}  from"]
    for m in materials:
        volume = counts[m.label] * labels.voxel_volume_um3
        lines.append(
            f"{m.label:5d} {m.name:12} {m.mu_per_um:10.6f} {1e3 * m.mu_per_um:9.4f} "
            f"{volume:13.4g}  {m.origin}"
        )
    return "\n".join(lines)


def log_text(correction: Correction, file_mu_per_um: FloatArray | None = None) -> str:
    """What the log says of a correction.

    file_mu_per_um: (n_labels,) what the file of the sample says, to stand beside mu from
    projections.
    """
    parts = []
    if correction.coefficients is not None:
        table = coefficients_text(correction.coefficients, file_mu_per_um)
        parts.append(f"mu from the projections:\n{table}")
    if correction.alignment_fit is not None:
        parts.append(f"Alignment:\n{alignment_text(correction.alignment_fit)}")
    if correction.faces is not None:
        parts.append(f"Faces of the crystal:\n{faces_text(correction.faces)}")
    if correction.polyhedra is not None:
        parts += [one.sentence for one in correction.polyhedra.crystals]
    for w in correction.wavelengths:
        table = materials_text(w.materials, correction.labels)
        parts.append(f"Wavelength {w.wavelength:.5f} A ({w.energy_keV:.4f} keV):\n{table}")
    a = correction.transmissions
    parts.append(
        f"Transmission of {len(a)} reflections: {a.min():.4f} to {a.max():.4f}, mean {a.mean():.4f}; "
        f"{correction.n_undefined} rows have no direction (factor 1)"
    )
    return "\n".join(parts)


def record(correction: Correction, scale_command: str) -> AbsorptionRecord:
    """The content of anacor_absorption.json."""
    a, labels = correction.transmissions, correction.labels
    fit, alignment = correction.coefficients, correction.alignment_fit
    return AbsorptionRecord(
        program={"name": "anacor_dials", "version": __version__},
        reflections={
            "rows": len(correction.transmission),
            "with_factor": len(a),
            "without_direction": correction.n_undefined,
        },
        transmission=transmission_numbers(a),
        volume={
            "shape": labels.shape,
            "voxel_size_um": labels.voxel_size_um,
            "centre": labels.centre,
        },
        wavelengths=[_wavelength_record(w, labels) for w in correction.wavelengths],
        coefficients_from_projections=None if fit is None else coefficients_record(fit),
        alignment=None if alignment is None else alignment_record(alignment),
        faces=None if correction.faces is None else faces_record(correction.faces),
        labels_by_faces=None if correction.polyhedra is None else correction.polyhedra.numbers,
        tomo_to_datum=correction.tomo_to_datum.tolist(),
        factors_uncertainty_from_labels=correction.label_uncertainty,
        warnings=correction.warnings,
        scale_command=scale_command,
    )


def _wavelength_record(one: WavelengthFactors, labels: LabelVolume) -> WavelengthFactorsRecord:
    accuracy, counts = one.factors.accuracy, labels.counts()
    return WavelengthFactorsRecord(
        wavelength_angstrom=one.wavelength,
        energy_keV=one.energy_keV,
        materials=[
            MaterialRecord(
                label=m.label,
                name=m.name,
                mu_per_um=m.mu_per_um,
                mu_per_mm=1e3 * m.mu_per_um,
                from_=m.origin,
                volume_um3=counts[m.label] * labels.voxel_volume_um3,
                mean_path_um=float(one.factors.mean_path_um[:, m.label].mean()),
            )
            for m in one.materials
        ],
        **accuracy_numbers(accuracy),
    )


def transmission_numbers(transmissions: FloatArray) -> dict[str, Any]:
    """Smallest, largest, mean and percentiles of transmissions (n,)."""
    return {
        "min": transmissions.min(),
        "max": transmissions.max(),
        "mean": transmissions.mean(),
        "percentiles": dict(
            zip(map(str, PERCENTILES), np.percentile(transmissions, PERCENTILES), strict=True)
        ),
    }


def accuracy_numbers(accuracy: Accuracy) -> dict[str, Any]:
    """How factors were computed and how far they are from exact tracing."""
    return {
        "method": accuracy.method,
        "device": accuracy.device,
        "points": accuracy.n_points,
        "directions": accuracy.n_directions,
        "rms_error": accuracy.rms_error,
        "expected_error": accuracy.expected_error,
        "traced_error": accuracy.traced_error,
        "point_error": accuracy.point_error,
        "tolerance": accuracy.tolerance,
        "seconds": accuracy.seconds,
    }


def cif_block(correction: Correction) -> str:
    """CIF blocks of what an absorption correction is asked for."""
    a = correction.transmissions
    crystal: list[str] = []
    listed: list[str] = []
    largest = correction.faces.crystals[0] if correction.faces is not None else None
    if largest is not None and largest.solid is not None and largest.indices is not None:
        crystal = shape_lines(largest.solid.size_um)
        faces = largest.faces
        if faces is not None and largest.indices.is_lattice_plane.all():
            listed = face_lines(faces)
    details = [
        [
            f"  anacor_dials {__version__}: path lengths through crystal, mother liquor and loop, traced",
            "  through an X-ray tomogram of the sample taken on the same goniometer.",
            f"  mu (1/mm): {', '.join(f'{m.name} {1e3 * m.mu_per_um:.4f}' for m in w.materials)};",
            f"  {len(w.factors.transmission)} reflections, transmission {a.min():.4f} to {a.max():.4f}.",
        ]
        for w in correction.wavelengths
    ]
    return absorption_blocks(correction.wavelengths, crystal, details, listed)


def sections(correction: Correction, scale_command: str) -> list[Section]:
    """The HTML report."""
    labels = correction.labels
    parts = [
        Section("Summary", _summary_items(correction, scale_command)),
        Section("Materials", _material_items(correction)),
    ]
    if correction.alignment_fit is not None:
        parts.append(Section("Alignment", alignment_items(correction.alignment_fit)))
    if correction.faces is not None:
        taken = () if correction.polyhedra is None else correction.polyhedra.crystals
        items = [*(Text(one.sentence) for one in taken), *faces_items(correction.faces)]
        parts.append(Section("Faces of the crystal", items))
    pictures: list[Item] = [
        Figure(traces, layout, caption, height=460)
        for traces, layout, caption in slice_figures(labels)
    ]
    traces, layout = view_3d(labels)
    pictures.append(
        Figure(traces, layout, "Crystal, liquor and loop in the frame of the tomogram.", height=460)
    )
    parts.append(Section("Sample", pictures))
    parts.append(Section("Factors", factor_figures(correction)))
    parts.append(Section("Accuracy", accuracy_items(correction)))
    return parts


def _summary_items(correction: Correction, scale_command: str) -> list[Item]:
    a = correction.transmissions
    overview = [
        ("Reflections with a factor", f"{len(a)}"),
        ("Rows without a direction (factor 1)", f"{correction.n_undefined}"),
        ("Transmission, smallest", f"{a.min():.4f}"),
        ("Transmission, mean", f"{a.mean():.4f}"),
        ("Transmission, largest", f"{a.max():.4f}"),
        ("Label volume", repr(correction.labels)),
    ]
    return [
        *(Text(warning, "warning") for warning in correction.warnings),
        Table(overview),
        Text(f"How to go on:\n{scale_command}"),
    ]


def _material_items(correction: Correction) -> list[Item]:
    labels = correction.labels
    counts = labels.counts()
    materials: list[Item] = []
    for w in correction.wavelengths:
        rows = [
            (
                m.label,
                m.name,
                f"{m.mu_per_um:.6f}",
                f"{1e3 * m.mu_per_um:.4f}",
                f"{counts[m.label] * labels.voxel_volume_um3:.4g}",
                f"{w.factors.mean_path_um[:, m.label].mean():.1f}" if m.label else "",
                m.origin,
            )
            for m in w.materials
        ]
        materials.append(
            Table(
                rows,
                (
                    "label",
                    "material",
                    "mu (1/um)",
                    "mu (1/mm)",
                    "volume (um3)",
                    "mean path (um)",
                    "from",
                ),
                f"{w.wavelength:.5f} A, {w.energy_keV:.4f} keV. Mean path: incident and exit together, "
                "weighted with transmission (-d ln A / d mu).",
            )
        )
    if correction.coefficients is not None:
        materials += coefficient_items(correction.coefficients)
    return materials


def _band(x: FloatArray, values: FloatArray, n_bins: int, name: str) -> list[dict[str, Any]]:
    """Median and the 5 to 95 % band of values against x, in bins of equal width."""
    edges = np.linspace(x.min(), x.max() + 1e-9, n_bins + 1)
    bins = np.digitize(x, edges) - 1
    order = np.argsort(bins, kind="stable")
    starts = np.searchsorted(bins[order], np.arange(n_bins + 1))
    centres, low, middle, high = [], [], [], []
    for i in range(n_bins):
        members = values[order[starts[i] : starts[i + 1]]]
        if len(members):
            centres.append(0.5 * (edges[i] + edges[i + 1]))
            quantiles = np.percentile(members, (5, 50, 95))
            low.append(quantiles[0])
            middle.append(quantiles[1])
            high.append(quantiles[2])
    band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    return [
        {"x": centres, "y": high, **band},
        {"x": centres, "y": low, "fill": "tonexty", "fillcolor": "rgba(31,95,139,0.18)", **band},
        {"x": centres, "y": middle, "mode": "lines", "name": name},
    ]


def factor_figures(correction: CorrectedReflections) -> list[Item]:
    """Transmissions against image number, scattering angle and exit direction, and how many there
    are.
    """
    a, directions = correction.transmissions, correction.directions
    to_source, exits, experiment = directions.to_source, directions.exit, directions.experiment
    figures: list[Item] = []
    images = correction.images
    if images is not None and np.ptp(images) > 0:
        traces = []
        for index in np.unique(experiment):
            chosen = experiment == index
            traces += _band(images[chosen], a[chosen], 120, f"experiment {index}")
        figures.append(
            Figure(
                traces,
                {"xaxis": {"title": {"text": "image number"}}, "yaxis": {"title": {"text": "A"}}},
                "Transmission against image number: median, and the band from 5 to 95 %.",
            )
        )
    two_theta = np.degrees(np.arccos(np.clip(-np.einsum("ij,ij->i", to_source, exits), -1.0, 1.0)))
    figures.append(
        Figure(
            _band(two_theta, a, 80, "median"),
            {"xaxis": {"title": {"text": "2\u03b8 (deg)"}}, "yaxis": {"title": {"text": "A"}}},
            "Transmission against scattering angle: median, and the band from 5 to 95 %.",
        )
    )
    heights, edges = np.histogram(a, bins=100)
    figures.append(
        Figure(
            [{"type": "bar", "x": 0.5 * (edges[1:] + edges[:-1]), "y": heights}],
            {
                "xaxis": {"title": {"text": "A"}},
                "yaxis": {"title": {"text": "reflections"}},
                "bargap": 0,
            },
            "Distribution of the transmissions.",
        )
    )
    theta = np.degrees(np.arccos(np.clip(exits[:, 0], -1.0, 1.0)))
    psi = np.degrees(np.arctan2(exits[:, 2], exits[:, 1]))
    bins = (np.arange(0, 181, 4), np.arange(-180, 181, 4))
    sums, _, _ = np.histogram2d(theta, psi, bins=bins, weights=a)
    numbers, _, _ = np.histogram2d(theta, psi, bins=bins)
    with np.errstate(invalid="ignore"):
        mean = sums / numbers
    figures.append(
        Figure(
            [
                {
                    "type": "heatmap",
                    "z": mean,
                    "x": bins[1][:-1] + 2,
                    "y": bins[0][:-1] + 2,
                    "colorscale": "Viridis",
                    "colorbar": {"title": {"text": "A"}},
                }
            ],
            {
                "xaxis": {"title": {"text": "azimuth about X, from Y towards Z (deg)"}},
                "yaxis": {"title": {"text": "angle from X (deg)"}},
            },
            "Mean transmission over the sphere of exit directions, in the frame of the sample.",
        )
    )
    return figures


def accuracy_items(correction: CorrectedReflections) -> list[Item]:
    """How far the factors are from exact tracing."""
    items: list[Item] = []
    rows = []
    for w in correction.wavelengths:
        accuracy = w.factors.accuracy
        rows.append(
            (
                f"{w.wavelength:.5f}",
                accuracy.method,
                accuracy.n_points,
                accuracy.n_directions,
                f"{100 * accuracy.traced_error:.3f} % ({accuracy.n_checked} reflections)",
                f"{100 * accuracy.largest_traced_error:.3f} %",
                f"{100 * accuracy.point_error:.3f} %",
                f"{100 * accuracy.expected_error:.3f} %",
                f"{100 * accuracy.rms_error:.3f} %",
                f"{100 * accuracy.tolerance:.3f} %",
                f"{accuracy.seconds:.1f} s ({accuracy.device})",
            )
        )
    items.append(
        Table(
            rows,
            (
                "wavelength (A)",
                "method",
                "points",
                "directions",
                "rays and grid, rms",
                "worst",
                "points, rms",
                "together",
                "at most (95 %)",
                "tolerance",
                "time",
            ),
            "Rays and grid: against exact voxel traversal of random reflections, from the same points. "
            "Points: standard error of a mean over points instead of the whole crystal. At most: what 95 % of "
            "runs stay below, as the errors of reflections hang together.",
        )
    )
    if correction.label_uncertainty is not None:
        items.append(
            Text(
                "Besides, the factors are uncertain by "
                f"{100 * correction.label_uncertainty:.2f} % (rms) because the labels are, as the segmentation found "
                "from its own doubts. The standard errors in the table of reflections hold both."
            )
        )
    for w in correction.wavelengths:
        if not np.any(w.factors.deviation):
            continue
        items.append(
            Figure(
                [
                    {
                        "x": w.factors.transmission[w.factors.checked],
                        "y": 100 * w.factors.deviation,
                        "mode": "markers",
                    }
                ],
                {
                    "xaxis": {"title": {"text": "A"}},
                    "yaxis": {"title": {"text": "deviation (%)"}, "zeroline": True},
                },
                "Deviation from exact tracing of the reflections that were checked.",
            )
        )
    return items
