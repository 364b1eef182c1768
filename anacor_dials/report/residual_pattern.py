"""What is said of the pattern that absorption factors leave in scaled data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from anacor_dials.jobs.records import ComparisonRecord, ResidualPatternRecord

if TYPE_CHECKING:
    from anacor_dials.diffraction.residual_pattern import ResidualPattern


def pattern_record(pattern: ResidualPattern | None) -> ResidualPatternRecord | None:
    """A pattern as it stands in anacor_compare.json."""
    if pattern is None:
        return None
    return ResidualPatternRecord(
        observations=pattern.observations,
        absorption=pattern.absorption,
        detector=pattern.detector,
        polarisation=pattern.polarisation,
        polarisation_better=pattern.polarisation_better,
        detector_better=pattern.detector_better,
        detector_over_polarisation=pattern.detector_over_polarisation,
        rms=pattern.rms,
        cause=pattern.cause,
        fitted_fraction=pattern.fitted.fraction,
        fitted_angle_deg=pattern.fitted.angle_deg,
        used_fraction=pattern.used.fraction,
    )


def hint(label: str, pattern: ResidualPatternRecord) -> str | None:
    """A sentence on a pattern that is no absorption, with the way out; None if there is none.

    Parameters
    ----------
    label : str
        Of the strategy that leaves the pattern.
    pattern : ResidualPatternRecord
    """
    if pattern.cause == "polarisation":
        return (
            f"{label}: what the factors leave ({100 * pattern.rms:.1f} % of the intensities) fits a wrong "
            f"polarisation better than absorption: a fraction of {pattern.fitted_fraction:.2f} with the "
            f"normal turned by {abs(pattern.fitted_angle_deg):.0f} degrees about the beam, where the data "
            f"were corrected with {pattern.used_fraction:.2f} and 0 degrees. Compare with the beamline; "
            "geometry.beam.polarization_normal and geometry.beam.polarization_fraction of dials.import put "
            "it right, and the images must be integrated again."
        )
    if pattern.cause == "detector":
        return (
            f"{label}: what the factors leave ({100 * pattern.rms:.1f} % of the intensities) is fixed to the "
            f"detector and not to the crystal (it explains {100 * pattern.detector:.0f} % of the disagreement "
            f"of equivalents, absorption {100 * pattern.absorption:.0f} %). Look for a shadow, a wrong mask or "
            "flat field, and check the sensor's thickness and material in the header of the images."
        )
    return None


def hints_of(patterns: Mapping[str, ResidualPatternRecord | None]) -> list[str]:
    """The sentences of all strategies that leave such a pattern.

    Parameters
    ----------
    patterns : mapping
        {label: pattern or None}.
    """
    said = (hint(label, one) for label, one in patterns.items() if one is not None)
    return [sentence for sentence in said if sentence is not None]


def hints_of_record(record: ComparisonRecord) -> list[str]:
    """The sentences on a comparison that was read."""
    return hints_of({one.label: one.residual_pattern for one in record.strategies})
