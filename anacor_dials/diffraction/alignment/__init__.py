"""The alignment of the tomogram with the diffraction data, from the agreement of equivalents."""

from __future__ import annotations

from anacor_dials.diffraction.alignment.equivalents import Equivalents, equivalents
from anacor_dials.diffraction.alignment.fit import (
    CHOICES,
    AlignmentFit,
    choices_from,
    fit_alignment,
    refine_alignment,
)
from anacor_dials.diffraction.alignment.trials import MU_NODES, mu_weights

__all__ = [
    "CHOICES",
    "MU_NODES",
    "AlignmentFit",
    "Equivalents",
    "choices_from",
    "equivalents",
    "fit_alignment",
    "mu_weights",
    "refine_alignment",
]
