"""What the composition of materials says beforehand: mu, and refraction relative to the crystal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from anacor_dials.absorption.coefficients.radiographs import Radiographs
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.materials import Composition, protein_crystal, typical_composition

# Relative standard deviation of delta z if energy and distance are known. Chosen by hand: the
# density of crystals varies by some per cent, the distance is known to a millimetre or so.
REFRACTION_SPREAD = 0.1
# The least squares count every ray as independent, but the errors of neighbouring rays are
# correlated. Therefore what is known beforehand has the weight of so many rays. Chosen by hand.
CORRELATED_RAYS = 1000.0


def expected_coefficients(
    names: Sequence[str], made_of: Mapping[str, Composition | None], energy_keV: float | None
) -> FloatArray:
    """mu of materials from their composition.

    Parameters
    ----------
    names : sequence of n_labels str
    made_of : mapping of name to Composition or None
    energy_keV : float or None

    Returns
    -------
    array (n_labels,)
        1/um; NaN if unknown, 0 for the background (label 0).
    """
    expected = np.full(len(names), np.nan)
    expected[0] = 0.0
    for label, name in enumerate(names[1:], 1):
        composition = made_of.get(name)
        if composition is not None and energy_keV is not None:
            expected[label] = composition.mu_per_um(energy_keV)
    return expected


def relative_delta(
    names: Sequence[str], made_of: Mapping[str, Composition | None], energy_keV: float | None
) -> FloatArray:
    """delta of the refractive index 1 - delta + i beta, relative to that of the crystal.

    The ratio depends on the electron densities and hardly on the energy; 10 keV is taken if it is
    unknown. Materials of unknown composition are taken as the crystal.

    Parameters
    ----------
    names : sequence of n_labels str
    made_of : mapping of name to Composition or None
    energy_keV : float or None

    Returns
    -------
    array (n_labels,)
        0 for the background (label 0).
    """
    crystal = made_of.get("crystal") or protein_crystal(0.5)
    energy = 10.0 if energy_keV is None else energy_keV
    delta = [(made_of.get(name) or crystal).refractive_index(energy)[0] for name in names]
    delta[0] = 0.0
    return np.array(delta) / crystal.refractive_index(energy)[0]


def known_refraction(radiographs: Radiographs) -> tuple[float, float]:
    """delta z of a typical crystal, um, and the weight of its square; (0, 0) if it is unknown.

    It is unknown without the energy and the distance. delta is known to REFRACTION_SPREAD.
    """
    crystal = typical_composition("crystal")
    energy_keV, distance_mm = radiographs.geometry.energy_keV, radiographs.geometry.distance_mm
    if energy_keV is None or distance_mm is None or crystal is None:
        return 0.0, 0.0
    delta = crystal.refractive_index(energy_keV)[0]
    known = delta * distance_mm * 1e3
    return known, CORRELATED_RAYS / max(REFRACTION_SPREAD * known, 0.01) ** 2
