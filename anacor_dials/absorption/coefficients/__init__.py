"""Absorption coefficients of labelled materials from the projections of a tomography scan."""

from __future__ import annotations

from anacor_dials.absorption.coefficients.fit import (
    CoefficientFit,
    ResidualView,
    absorption_coefficients,
)
from anacor_dials.absorption.coefficients.materials import materials_from_fit
from anacor_dials.absorption.coefficients.radiographs import Radiographs, spread_angles

__all__ = [
    "CoefficientFit",
    "Radiographs",
    "ResidualView",
    "absorption_coefficients",
    "materials_from_fit",
    "spread_angles",
]
