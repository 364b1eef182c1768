"""What is said of absorption coefficients from projections: table, numbers, figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from anacor_dials.jobs.records import CoefficientsRecord
from anacor_dials.report.page import Figure, Item, Table
from anacor_dials.sample.frames import FloatArray

if TYPE_CHECKING:
    from anacor_dials.absorption.coefficients import CoefficientFit
    from anacor_dials.jobs.coefficients import ScanCoefficients


def coefficients_text(found: ScanCoefficients, file_mu_per_um: FloatArray | None = None) -> str:
    """The table of the fit for the log; file_mu_per_um: (n_labels,) what the sample's file says."""
    fit = found.fit
    lines = [
        f"{'material':12} {'mu /um':>10} {'+-':>9} {'expected':>9} {'file':>9} {'rays':>8} {'margin um':>9}"
    ]
    for label, name in enumerate(fit.names):
        if label == 0:
            continue
        in_file = math.nan if file_mu_per_um is None else float(file_mu_per_um[label])
        lines.append(
            f"{name:12} {fit.mu_per_um[label]:10.6f} {fit.standard_error_per_um[label]:9.6f} "
            f"{fit.expected_per_um[label]:9.6f} {in_file:9.6f} {fit.n_rays[label]:8d} "
            f"{fit.margin_um[label]:9.1f}"
        )
    lines.append(
        f"{len(fit.angles_deg)} angles, {100 * fit.used_share:.0f} % of the rays through the sample; -ln T "
        f"differs by {fit.rms_residual:.4f} rms ({100 * fit.unexplained:.1f} %); condition number "
        f"{fit.condition_number:.1f}; rotation axis at pixel {found.centre_px[0]:.2f}"
    )
    return "\n".join(lines)


def coefficients_record(found: ScanCoefficients) -> CoefficientsRecord:
    """The fit in anacor_absorption.json."""
    fit = found.fit
    return CoefficientsRecord(
        energy_keV=fit.energy_keV,
        materials=[
            {
                "label": label,
                "name": name,
                "mu_per_um": fit.mu_per_um[label],
                "standard_error_per_um": fit.standard_error_per_um[label],
                "common_error_per_um": fit.common_error_per_um[label],
                "expected_per_um": fit.expected_per_um[label],
                "rays": fit.n_rays[label],
                "margin_um": fit.margin_um[label],
            }
            for label, name in enumerate(fit.names)
            if label
        ],
        correlation=fit.correlation[1:, 1:].tolist(),
        condition_number=fit.condition_number,
        not_told_apart=fit.not_told_apart,
        undetermined=fit.undetermined,
        angles=len(fit.angles_deg),
        used_share=fit.used_share,
        refraction_um=fit.refraction_um,
        rms_residual=fit.rms_residual,
        unexplained=fit.unexplained,
        centre_pixel=found.centre_px,
        shift_um=fit.shift_um.tolist(),
        warnings=fit.warnings,
    )


def residual_figures(
    fit: CoefficientFit,
) -> list[tuple[list[dict[str, Any]], dict[str, Any], str]]:
    """Pictures of what the fit leaves: (traces, layout, caption) of each, for plotly."""
    figures: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = []
    left = [view.measured - view.calculated for view in fit.views]
    limit = 4 * max(fit.rms_residual, 1e-4)
    for view, residual in zip(fit.views, left, strict=True):
        figures.append(
            (
                [
                    {
                        "type": "heatmap",
                        "z": np.round(residual, 4),
                        "x": np.round(view.u_um, 2),
                        "y": np.round(view.x_um, 2),
                        "zmin": -limit,
                        "zmax": limit,
                        "colorscale": "RdBu",
                        "colorbar": {"title": {"text": "-ln T"}},
                    },
                    {
                        "type": "contour",
                        "z": view.used.astype(int),
                        "x": np.round(view.u_um, 2),
                        "y": np.round(view.x_um, 2),
                        "contours": {"start": 0.5, "end": 0.5, "size": 1, "coloring": "lines"},
                        "line": {"width": 1},
                        "colorscale": [[0, "#555555"], [1, "#555555"]],
                        "showscale": False,
                        "hoverinfo": "skip",
                    },
                ],
                {
                    "xaxis": {"title": {"text": "across the rotation axis (um)"}},
                    "yaxis": {"title": {"text": "X, along it (um)"}, "scaleanchor": "x"},
                },
                f"Measured less calculated -ln T at {view.angle_deg:.1f} deg; rays inside the lines "
                "were used.",
            )
        )
    figures.append(_agreement_figure(fit))
    order = np.argsort(fit.angles_deg)
    figures.append(
        (
            [
                {
                    "x": fit.angles_deg[order],
                    "y": np.round(values[order], 6),
                    "mode": "lines+markers",
                    "name": name,
                }
                for name, values in (("rms residual", fit.angle_rms), ("offset", fit.offsets))
            ],
            {
                "xaxis": {"title": {"text": "rotation angle (deg)"}},
                "yaxis": {"title": {"text": "-ln T"}},
            },
            "Residual and offset of the beam at each angle.",
        )
    )
    return figures


def _agreement_figure(
    fit: CoefficientFit,
) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    calculated = np.concatenate([v.calculated[v.used] for v in fit.views])
    measured = np.concatenate([v.measured[v.used] for v in fit.views])
    every = max(1, len(calculated) // 4000)
    ends = [float(calculated.min(initial=0.0)), float(calculated.max(initial=1.0))]
    return (
        [
            {
                "x": np.round(calculated[::every], 4),
                "y": np.round(measured[::every], 4),
                "mode": "markers",
                "marker": {"size": 3},
                "name": "rays",
            },
            {"x": ends, "y": ends, "mode": "lines", "name": "equal"},
        ],
        {
            "xaxis": {"title": {"text": "calculated -ln T"}},
            "yaxis": {"title": {"text": "measured -ln T"}},
        },
        "Measured against calculated -ln T of the rays used, in the views above.",
    )


def coefficient_items(found: ScanCoefficients) -> list[Item]:
    """What the projections say of mu: a table, and pictures of what is left unexplained."""
    fit = found.fit
    rows = [
        (
            name,
            f"{fit.mu_per_um[label]:.6f}",
            f"{fit.standard_error_per_um[label]:.6f}",
            f"{fit.common_error_per_um[label]:.6f}",
            f"{fit.expected_per_um[label]:.6f}",
            int(fit.n_rays[label]),
            f"{fit.margin_um[label]:.1f}",
        )
        for label, name in enumerate(fit.names)
        if label
    ]
    energy = "" if fit.energy_keV is None else f" at {fit.energy_keV:.4f} keV"
    table = Table(
        rows,
        (
            "material",
            "mu (1/um)",
            "standard error",
            "of edges and axis",
            "from composition",
            "rays",
            "margin (um)",
        ),
        f"mu from the projections{energy}: least squares over {len(fit.angles_deg)} angles; -ln T of the "
        f"rays used differs by {100 * fit.unexplained:.1f} % rms; condition number "
        f"{fit.condition_number:.1f}. Of edges and axis: the part of the standard error that labels wrong by "
        "a part of a voxel, and an axis wrong by a part of a pixel, make in all views alike.",
    )
    figures = [
        Figure(traces, layout, caption, height=460)
        for traces, layout, caption in residual_figures(fit)
    ]
    return [table, *figures]
