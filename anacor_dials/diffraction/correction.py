"""The absorption correction of DIALS' data: from experiments, tables and labels to factors.

What ``dials.anacor_absorption`` does between loading and saving.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.model import ExperimentList
from numpy.typing import NDArray

from anacor_dials import __version__
from anacor_dials.absorption.beam import BeamProfile
from anacor_dials.absorption.coefficients import (
    CoefficientFit,
    materials_from_fit,
)
from anacor_dials.absorption.factors import AbsorptionFactors, absorption_factors
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.diffraction.alignment import (
    AlignmentFit,
    refine_alignment,
)
from anacor_dials.diffraction.reflections import (
    DIALS_EXCLUDES_BELOW,
    Alignment,
    RowDirections,
    TableFactors,
    directions_of_group,
    experiment_of_rows,
    require_columns,
    row_directions,
    spread_over_rows,
    sweep_axes,
    tomo_to_datum,
    warnings_for_scaling,
    wavelength_groups,
)
from anacor_dials.report.alignment import alignment_items, alignment_summary, alignment_text
from anacor_dials.report.coefficients import coefficient_items, coefficients_summary
from anacor_dials.report.page import Figure, Section, Table, Text
from anacor_dials.report.sample import slice_figures, view_3d
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.materials import (
    Material,
    MaterialInput,
    energy_from_wavelength,
    materials_at,
    mu_by_label,
)
from anacor_dials.sample.volumes import LabelVolume

logger = logging.getLogger("dials.anacor_dials.diffraction.correction")

EDGE_FRACTION = 0.01  # of the crystal's voxels at the volume's edge


@dataclass(frozen=True, eq=False)
class WavelengthFactors:
    """The factors of all reflections of one wavelength (Angstrom), and what they were made with."""

    wavelength: float
    materials: tuple[Material, ...]
    factors: AbsorptionFactors

    @property
    def energy_keV(self) -> float:
        return energy_from_wavelength(self.wavelength)


@dataclass(frozen=True, eq=False)
class Correction:
    """Factors of all rows of all tables, and what a report says about them.

    tables: per reflection table, in order; directions: of their rows; experiment_of_row: per table;
    wavelengths: per wavelength; warnings: sentences for the user; coefficients: mu from the projections,
    None where they were not asked; alignment_fit: the alignment from the data, where it was asked.
    """

    tables: list[TableFactors]
    directions: list[RowDirections]
    experiment_of_row: list[NDArray[np.int64]]
    wavelengths: list[WavelengthFactors]
    tomo_to_datum: FloatArray
    warnings: list[str]
    coefficients: CoefficientFit | None = None
    alignment_fit: AlignmentFit | None = None

    @property
    def transmissions(self) -> FloatArray:
        """A of all rows that have directions, table after table."""
        return np.concatenate([t.transmission[t.known] for t in self.tables])

    @property
    def n_undefined(self) -> int:
        """Rows without a direction; their factor is 1."""
        return sum(len(t.transmission) - len(t.known) for t in self.tables)


def _materials(
    wavelengths: Sequence[float],
    names: Sequence[str],
    given: Sequence[Mapping[str, MaterialInput]],
    file_mu: FloatArray,
    file_energy_keV: float | None,
    fit: CoefficientFit | None = None,
    fit_before_file: bool = False,
) -> list[tuple[Material, ...]]:
    """The materials at each wavelength."""
    n = len(wavelengths)
    listed = ", ".join(f"{w:.5g} A" for w in wavelengths)
    if len(given) not in (1, n):
        raise ValueError(
            f"mu was given for {len(given)} wavelengths and the experiments have {n} ({listed})."
        )
    if n > 1 and len(given) == 1:
        for name, said in given[0].items():
            if said.mu_per_um is not None:
                raise ValueError(
                    f"The experiments have {n} wavelengths ({listed}) and materials.{name}.mu one "
                    f"value; give {n} values, or the composition."
                )
        if file_energy_keV is None:
            unsaid = [m for i, m in enumerate(names) if i and m not in given[0] and file_mu[i] > 0]
            if unsaid:
                raise ValueError(
                    f"The experiments have {n} wavelengths ({listed}), and the file does not say at "
                    f"which energy its mu holds; give mu or the composition of {', '.join(unsaid)}."
                )
    if n > 1 and fit is not None and fit.energy_keV is None:
        raise ValueError(
            f"The experiments have {n} wavelengths ({listed}), and the projections do not say their "
            "energy; give projections.energy= (keV)."
        )
    materials = []
    for i, wavelength in enumerate(wavelengths):
        energy, said = energy_from_wavelength(wavelength), given[i if len(given) > 1 else 0]
        materials.append(
            tuple(
                materials_at(energy, names, said, file_mu, file_energy_keV)
                if fit is None
                else materials_from_fit(
                    fit, energy, said, file_mu, file_energy_keV, fit_before_file
                )
            )
        )
    return materials


def _scaled(materials: tuple[Material, ...], mu_scale: float) -> tuple[Material, ...]:
    """The materials with every mu multiplied by a factor that the diffraction data gave."""
    if mu_scale == 1.0:
        return materials
    origin = f", times {mu_scale:.3f} (alignment.refine)"
    return tuple(
        replace(m, mu_per_um=m.mu_per_um * mu_scale, origin=m.origin + origin)
        if m.mu_per_um > 0
        else m
        for m in materials
    )


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


def absorption_correction(
    experiments: ExperimentList,
    tables: Sequence[flex.reflection_table],
    labels: LabelVolume,
    *,
    given: Sequence[Mapping[str, MaterialInput]] = ({},),
    file_mu_per_um: FloatArray | None = None,
    file_energy_keV: float | None = None,
    coefficients: CoefficientFit | None = None,
    coefficients_before_file: bool = False,
    alignment: Alignment | None = None,
    refine: Sequence[str] = (),
    beam: BeamProfile | None = None,
    tolerance: float = 1e-3,
    method: str = "auto",
    check_reflections: int = 64,
    memory_gb: float = 2.0,
    nproc: int | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool = False,
) -> Correction:
    """The absorption factors of all rows of all tables.

    experiments, tables: as read from .expt and .refl; labels: the sample in the tomo frame; given:
    what the user says of materials, once or per wavelength; file_mu_per_um (n_labels,), 1/um, at
    file_energy_keV: what the labels' file says; coefficients: mu from the projections, used where the file
    has none, or before it; refine: what of the alignment to take from the data (alignment.CHOICES). The
    rest as in :class:`anacor_dials.absorption.tracing.Tracing` and :class:`Alignment`.
    Raises ValueError for input that does not fit together.
    """
    alignment = alignment or Alignment()
    require_columns(tables, experiments)
    experiment_of_row = experiment_of_rows(tables, experiments)
    groups = wavelength_groups(experiments)
    # a label without voxels needs no mu
    unknown = np.full(len(labels.names), np.nan)
    file_mu_per_um = unknown if file_mu_per_um is None else np.asarray(file_mu_per_um, float)
    absent = np.isnan(file_mu_per_um) & (labels.counts() == 0)
    file_mu_per_um = np.where(absent, 0.0, file_mu_per_um)
    materials = _materials(
        [wavelength for wavelength, _ in groups],
        labels.names,
        given,
        file_mu_per_um,
        file_energy_keV,
        coefficients,
        coefficients_before_file,
    )
    warnings = warnings_for_scaling(experiments)
    if coefficients is not None:
        warnings.extend(coefficients.warnings)
    edge = labels.edge_fraction()
    if edge > EDGE_FRACTION:
        warnings.append(
            f"{100 * edge:.1f} % of the crystal lies at the edge of the volume: what lies outside it "
            "is missing. Reconstruct a larger volume."
        )
    alignment_fit = None
    if refine:
        alignment_fit = refine_alignment(
            experiments,
            tables,
            experiment_of_row,
            labels,
            [mu_by_label(of_wavelength) for of_wavelength in materials],
            refine,
            alignment,
            beam=beam,
            seed=seed,
            progress=progress,
            memory_gb=memory_gb,
            nproc=nproc,
            device=device,
        )
        logger.info("%s", alignment_text(alignment_fit))
        alignment = alignment_fit.after
        materials = [_scaled(m, alignment_fit.mu_scale) for m in materials]
        warnings.extend(alignment_fit.warnings)
    to_datum = tomo_to_datum(experiments, alignment)
    axes = sweep_axes(experiments, to_datum)
    directions = [
        row_directions(table, index, experiments, to_datum)
        for table, index in zip(tables, experiment_of_row, strict=True)
    ]
    if not any(len(d.rows) for d in directions):
        raise ValueError("No reflection has a direction: every s1 is zero or no row is indexed.")
    results = []
    for (wavelength, members), of_wavelength in zip(groups, materials, strict=True):
        logger.info(
            "Wavelength %.5f A (%.4f keV):\n%s",
            wavelength,
            energy_from_wavelength(wavelength),
            materials_text(of_wavelength, labels),
        )
        of_group, chosen = directions_of_group(directions, members, axes)
        if len(of_group) == 0:
            continue
        factors = absorption_factors(
            labels,
            mu_by_label(of_wavelength),
            of_group,
            Tracing(
                tolerance=tolerance,
                method=method,
                beam=beam,
                check_reflections=check_reflections,
                memory_gb=memory_gb,
                nproc=nproc,
                device=device,
                seed=seed,
            ),
            progress=progress,
        )
        results.append((WavelengthFactors(wavelength, of_wavelength, factors), chosen))
    spread = spread_over_rows(tables, directions, [(w.factors, chosen) for w, chosen in results])
    correction = Correction(
        spread,
        directions,
        experiment_of_row,
        [w for w, _ in results],
        to_datum,
        warnings,
        coefficients,
        alignment_fit,
    )
    small = int(np.count_nonzero(correction.transmissions < DIALS_EXCLUDES_BELOW))
    if small:
        warnings.append(
            f"{small} reflections have A < {DIALS_EXCLUDES_BELOW:g}: dials.scale leaves them out in "
            "silence. Such data hold nothing; see whether mu and the voxel size are right."
        )
    for wavelength in correction.wavelengths:
        if not wavelength.factors.accuracy.reached:
            warnings.append(
                f"At {wavelength.wavelength:.5g} A the error of the factors is "
                f"{100 * wavelength.factors.accuracy.rms_error:.3f} %, above the tolerance of "
                f"{100 * tolerance:.3f} %."
            )
    return correction


# ---- what is said about it -----------------------------------------------------------------------


def summary(correction: Correction, labels: LabelVolume) -> dict[str, Any]:
    """Everything in numbers, for JSON."""
    a = correction.transmissions
    counts = labels.counts()
    return {
        "program": {"name": "anacor_dials", "version": __version__},
        "reflections": {
            "rows": sum(len(t.transmission) for t in correction.tables),
            "with_factor": len(a),
            "without_direction": correction.n_undefined,
        },
        "transmission": {
            "min": a.min(),
            "max": a.max(),
            "mean": a.mean(),
            "percentiles": dict(
                zip(("1", "5", "25", "50", "75", "95", "99"), _percentiles(a), strict=True)
            ),
        },
        "volume": {
            "shape": labels.shape,
            "voxel_size_um": labels.voxel_size_um,
            "centre": labels.centre,
        },
        "wavelengths": [
            {
                "wavelength_angstrom": w.wavelength,
                "energy_keV": w.energy_keV,
                "materials": [
                    {
                        "label": m.label,
                        "name": m.name,
                        "mu_per_um": m.mu_per_um,
                        "mu_per_mm": 1e3 * m.mu_per_um,
                        "from": m.origin,
                        "volume_um3": counts[m.label] * labels.voxel_volume_um3,
                        "mean_path_um": w.factors.mean_path_um[:, m.label].mean(),
                    }
                    for m in w.materials
                ],
                "method": w.factors.accuracy.method,
                "device": w.factors.accuracy.device,
                "points": w.factors.accuracy.n_points,
                "directions": w.factors.accuracy.n_directions,
                "rms_error": w.factors.accuracy.rms_error,
                "traced_error": w.factors.accuracy.traced_error,
                "point_error": w.factors.accuracy.point_error,
                "tolerance": w.factors.accuracy.tolerance,
                "seconds": w.factors.accuracy.seconds,
            }
            for w in correction.wavelengths
        ],
        "coefficients_from_projections": None
        if correction.coefficients is None
        else coefficients_summary(correction.coefficients),
        "alignment": None
        if correction.alignment_fit is None
        else alignment_summary(correction.alignment_fit),
        "tomo_to_datum": correction.tomo_to_datum,
        "warnings": correction.warnings,
    }


def _percentiles(values: FloatArray) -> FloatArray:
    return np.percentile(values, (1, 5, 25, 50, 75, 95, 99))


def cif_block(correction: Correction) -> str:
    """A CIF block of what an absorption correction is asked for; mu of the crystal in 1/mm.

    The core dictionary calls a correction by numerical integration over the crystal's measured
    shape "numerical".
    """
    a = correction.transmissions
    lines = []
    for number, w in enumerate(correction.wavelengths, 1):
        crystal = next(m for m in w.materials if m.name == "crystal")
        suffix = "" if len(correction.wavelengths) == 1 else f"_{number}"
        lines += [
            f"data_anacor{suffix}",
            f"_diffrn_radiation_wavelength           {w.wavelength:.5f}",
            f"_exptl_absorpt_coefficient_mu          {1e3 * crystal.mu_per_um:.4f}",
            f"_exptl_absorpt_correction_T_min        {w.factors.transmission.min():.4f}",
            f"_exptl_absorpt_correction_T_max        {w.factors.transmission.max():.4f}",
            "_exptl_absorpt_correction_type         numerical",
            "_exptl_absorpt_process_details",
            ";",
            f"  anacor_dials {__version__}: path lengths through crystal, mother liquor and loop, traced",
            "  through an X-ray tomogram of the sample taken on the same goniometer.",
            f"  mu (1/mm): {', '.join(f'{m.name} {1e3 * m.mu_per_um:.4f}' for m in w.materials)};",
            f"  {len(w.factors.transmission)} reflections, transmission {a.min():.4f} to {a.max():.4f}.",
            ";",
            "",
        ]
    return "\n".join(lines)


def report_sections(
    correction: Correction,
    labels: LabelVolume,
    experiments: ExperimentList,
    tables: Sequence[flex.reflection_table],
    scale_command: str,
) -> list[Section]:
    """The HTML report."""
    a = correction.transmissions
    counts = labels.counts()
    overview = [
        ("Reflections with a factor", f"{len(a)}"),
        ("Rows without a direction (factor 1)", f"{correction.n_undefined}"),
        ("Transmission, smallest", f"{a.min():.4f}"),
        ("Transmission, mean", f"{a.mean():.4f}"),
        ("Transmission, largest", f"{a.max():.4f}"),
        ("Label volume", repr(labels)),
    ]
    items: list[Any] = [Text(warning, "warning") for warning in correction.warnings]
    items.append(Table(overview))
    items.append(Text(f"How to go on:\n{scale_command}"))
    sections = [Section("Summary", items)]

    materials: list[Any] = []
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
    sections.append(Section("Materials", materials))

    if correction.alignment_fit is not None:
        sections.append(Section("Alignment", alignment_items(correction.alignment_fit)))

    pictures: list[Any] = [
        Figure(traces, layout, caption, height=460)
        for traces, layout, caption in slice_figures(labels)
    ]
    traces, layout = view_3d(labels)
    pictures.append(
        Figure(traces, layout, "Crystal, liquor and loop in the frame of the tomogram.", height=460)
    )
    sections.append(Section("Sample", pictures))
    sections.append(Section("Factors", _factor_figures(correction, experiments, tables)))
    sections.append(Section("Accuracy", _accuracy_items(correction)))
    return sections


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


def _factor_figures(
    correction: Correction, experiments: ExperimentList, tables: Sequence[flex.reflection_table]
) -> list[Any]:
    a = correction.transmissions
    to_source = np.concatenate([d.to_source for d in correction.directions])
    exits = np.concatenate([d.exit for d in correction.directions])
    experiment = np.concatenate([d.experiment for d in correction.directions])
    figures: list[Any] = []
    images = _image_numbers(correction, tables)
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


def _image_numbers(
    correction: Correction, tables: Sequence[flex.reflection_table]
) -> FloatArray | None:
    """The image (n,) on which each row with a factor is centred, from the calculated position."""
    numbers = []
    for table, known in zip(tables, correction.tables, strict=True):
        if "xyzcal.px" not in table:
            return None
        numbers.append(flumpy.to_numpy(table["xyzcal.px"])[:, 2][known.known])
    return np.concatenate(numbers)


def _accuracy_items(correction: Correction) -> list[Any]:
    items: list[Any] = []
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
                "tolerance",
                "time",
            ),
            "Rays and grid: against exact voxel traversal of random reflections, from the same points. "
            "Points: standard error of a mean over points instead of the whole crystal.",
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
