"""What is said of an alignment from the diffraction data: table, numbers, figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from anacor_dials.jobs.records import AlignmentRecord
from anacor_dials.report.page import Figure, Item, Table, Text
from anacor_dials.sample.frames import FloatArray

if TYPE_CHECKING:
    from anacor_dials.diffraction.alignment import AlignmentFit


def _parameter_rows(fit: AlignmentFit) -> list[tuple[str, str, str, str, str]]:
    """(name, given, where equivalents agree best, standard error, used) of the three parameters."""
    if not fit.n_observations:
        return []
    return [
        (
            "angle offset (deg)",
            f"{fit.before.angle_offset_deg:.2f}",
            f"{fit.offset_deg:.2f}",
            f"{fit.offset_error_deg:.2f}" if "offset" in fit.asked else "not refined",
            f"{fit.after.angle_offset_deg:.2f}",
        ),
        (
            "rotation sense",
            f"{fit.before.rotation_sense:+d}",
            f"{fit.sense:+d}",
            "" if "sense" in fit.asked else "not refined",
            f"{fit.after.rotation_sense:+d}",
        ),
        (
            "factor on mu",
            "1",
            f"{fit.fitted_mu_scale:.3f}",
            f"{fit.mu_scale_error:.3f}",
            f"{fit.mu_scale:.3f}",
        ),
    ]


def _notes(fit: AlignmentFit) -> list[str]:
    """What the numbers mean, sentence by sentence."""
    if not fit.n_observations:
        return []
    notes = [
        f"{fit.n_observations} observations of {fit.n_unique} unique reflections in {fit.n_sweeps} sweeps, "
        f"Friedel mates {'apart' if fit.friedel_apart else 'together'}; {fit.n_scales} parameters of "
        f"smooth scales, instrument error {100 * fit.instrument_error:.1f} %, errors that vary smoothly with "
        f"direction {100 * fit.field_error:.1f} %.",
        f"Equivalents differ by {100 * fit.disagreement_none:.2f} % rms without correction, "
        f"{100 * fit.disagreement_before:.2f} % with the alignment and mu given, "
        f"{100 * fit.disagreement_best:.2f} % at the best.",
    ]
    better = f"The best is better than no correction by {fit.refuted_none:.1f} standard deviations"
    if fit.other is not None:
        better += (
            f", and than the best alternative ({fit.other[0]:.1f} deg, sense {fit.other[1]:+d}) by "
            f"{fit.refuted_others:.1f}"
        )
    notes.append(f"{better}; {fit.refuted_at:g} are needed.")
    if math.isfinite(fit.refuted_mirror) and fit.moved:
        notes.append(
            f"The best is better than that of the mirror image of the labels by {fit.refuted_mirror:.1f} standard "
            "deviations"
            + (
                "."
                if fit.refuted_mirror >= fit.refuted_at
                else ": the data do not tell whether the labels are mirrored."
            )
        )
    notes.append(
        "Standard errors are of the intensities; errors of labels and voxels are not in them."
    )
    if fit.moved and math.isfinite(fit.factor_error):
        notes.append(
            f"If what was refined is wrong by its standard errors, the factors are wrong by "
            f"{100 * fit.factor_error:.1f} % rms, after one scale: what hardly changes the factors is found badly, "
            "and matters little."
        )
    if fit.moved and "mu_scale" not in fit.asked and abs(fit.fitted_mu_scale - 1) > 0.03:
        notes.append(
            f"Equivalents would agree best with {fit.fitted_mu_scale:.3f} times mu; mu stays, as "
            "alignment.refine does not name mu_scale."
        )
    return notes


def alignment_text(fit: AlignmentFit) -> str:
    """The fit for the log."""
    lines = [f"{'':20}{'given':>10}{'best':>10}{'error':>13}{'used':>10}"]
    lines += [
        f"{name:20}{given:>10}{best:>10}{error:>13}{used:>10}"
        for name, given, best, error, used in _parameter_rows(fit)
    ]
    return "\n".join([*lines, *_notes(fit)])


def alignment_record(fit: AlignmentFit) -> AlignmentRecord:
    """The fit in anacor_absorption.json."""
    return AlignmentRecord(
        refined=fit.asked,
        moved=fit.moved,
        reason_not_moved=fit.reason or None,
        from_={
            "angle_offset_deg": fit.before.angle_offset_deg,
            "rotation_sense": fit.before.rotation_sense,
            "mu_scale": 1.0,
        },
        to={
            "angle_offset_deg": fit.after.angle_offset_deg,
            "rotation_sense": fit.after.rotation_sense,
            "mu_scale": fit.mu_scale,
        },
        best={
            "angle_offset_deg": fit.offset_deg,
            "angle_offset_error_deg": fit.offset_error_deg if "offset" in fit.asked else None,
            "rotation_sense": fit.sense,
            "mu_scale": fit.fitted_mu_scale,
            "mu_scale_error": fit.mu_scale_error,
            "factor_error": fit.factor_error,
        },
        observations=fit.n_observations,
        unique_reflections=fit.n_unique,
        sweeps=fit.n_sweeps,
        scale_parameters=fit.n_scales,
        friedel_mates_apart=fit.friedel_apart,
        instrument_error=fit.instrument_error,
        field_error=fit.field_error,
        rms_difference_of_equivalents={
            "without_correction": fit.disagreement_none,
            "as_given": fit.disagreement_before,
            "best": fit.disagreement_best,
        },
        standard_deviations_better={
            "than_no_correction": fit.refuted_none,
            "than_best_alternative": fit.refuted_others,
            "alternative": None
            if fit.other is None
            else {"angle_offset_deg": fit.other[0], "rotation_sense": fit.other[1]},
            "than_mirror_image": fit.refuted_mirror,
            "needed": fit.refuted_at,
        },
        curve={
            "angle_offset_deg": fit.offsets_deg,
            "by_sense": [
                {"rotation_sense": sense, "rms_difference": rms, "mu_scale": k}
                for sense, rms, k in zip(fit.senses, fit.disagreement, fit.mu_scales, strict=True)
            ],
        },
        mu_scale_curve={"mu_scale": fit.mu_grid, "rms_difference": fit.mu_scale_curve}
        if fit.n_observations
        else None,
    )


def alignment_items(fit: AlignmentFit) -> list[Item]:
    """The fit for the HTML report: what was moved, and the curves."""
    items: list[Item] = [Text(warning, "warning") for warning in fit.warnings]
    if not fit.n_observations:
        return items
    items.append(
        Table(
            _parameter_rows(fit),
            ("", "given", "equivalents agree best", "standard error", "used"),
            "Alignment of the tomogram from the agreement of symmetry equivalents.",
        )
    )
    items.append(Text("\n".join(_notes(fit))))
    y_axis = {"title": {"text": "difference of equivalents, rms (%)"}}

    def level(x: FloatArray, value: float, name: str) -> dict[str, Any]:
        return {
            "x": [float(x[0]), float(x[-1])],
            "y": [100 * value] * 2,
            "mode": "lines",
            "name": name,
            "line": {"dash": "dot"},
        }

    if len(fit.offsets_deg) > 1:
        traces: list[dict[str, Any]] = [
            {"x": fit.offsets_deg, "y": 100 * rms, "mode": "lines", "name": f"sense {sense:+d}"}
            for sense, rms in zip(fit.senses, fit.disagreement, strict=True)
        ]
        traces.append(level(fit.offsets_deg, fit.disagreement_none, "no correction"))
        traces.append(
            {
                "x": [fit.offset_deg],
                "y": [100 * fit.disagreement_best],
                "mode": "markers",
                "name": "best",
            }
        )
        items.append(
            Figure(
                traces,
                {"xaxis": {"title": {"text": "angle offset (deg)"}}, "yaxis": y_axis},
                "Disagreement of equivalents against the angle offset; the factor on mu that fits best "
                "at each.",
            )
        )
    items.append(
        Figure(
            [
                {
                    "x": fit.mu_grid,
                    "y": 100 * fit.mu_scale_curve,
                    "mode": "lines",
                    "name": "best offset",
                },
                level(fit.mu_grid, fit.disagreement_none, "no correction"),
            ],
            {"xaxis": {"title": {"text": "factor on mu"}}, "yaxis": y_axis},
            "Disagreement of equivalents against the factor on mu, at the best offset and sense.",
        )
    )
    return items
