"""How far labels of the crystal probably overlap with the true crystal, which nobody knows.

The mean probability of the voxels that are labelled as crystal is the share of them that should be
crystal. How much that tells was measured on virtual samples left out of the training: the overlap
with the true crystal, a Dice coefficient, is foretold by a straight line between the logits of
both, with a scatter (logistic calibration: Platt, in Advances in Large Margin Classifiers, 1999).
What the labels lack is not asked for: with the probabilities of crystal elsewhere, of which a large
drop holds many that the clean-up has done away with, the Dice was foretold less well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.special
from numpy.typing import NDArray

from anacor_dials.segmentation.tiles import most_probable

# Of the line logit(true Dice) = OFFSET + SLOPE logit(mean probability), and the scatter about it
# (standard deviation); of SAMPLES virtual samples left out of training, of which the shipped
# weights labelled 26 and those before them 39.
OFFSET, SLOPE, SCATTER, SAMPLES = -1.33, 1.69, 1.14, 65
POOR = 0.9  # a Dice below is a poor label: factors are then off by some per cent
CLIP = 0.005  # Dice coefficients are kept this far from 0 and 1, where the logit is infinite


def mean_probability(probabilities: NDArray[np.uint8], label: int) -> float:
    """The mean probability of a label in the voxels that have it; NaN if there are none.

    Parameters
    ----------
    probabilities : array (n, nx, ny, nz) of uint8
        255 = 1. A voxel has the most probable label.
    label : int
    """
    there = most_probable(probabilities) == label
    return float(probabilities[label][there].mean()) / 255 if there.any() else math.nan


@dataclass(frozen=True)
class OverlapForecast:
    """The Dice coefficient of crystal labels with the true crystal, as far as it can be foretold.

    Parameters
    ----------
    probability : float
        The mean probability of the voxels labelled as crystal, 0 to 1.
    """

    probability: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"The mean probability is {self.probability}; it is between 0 and 1.")

    def quantile(self, share: float) -> float:
        """The Dice that is undercut with a probability `share`; of 0.5 the one foretold."""
        return float(scipy.special.expit(self._middle + SCATTER * scipy.special.ndtri(share)))

    @property
    def chance_of_poor(self) -> float:
        """The probability that the Dice is below POOR."""
        return float(scipy.special.ndtr((scipy.special.logit(POOR) - self._middle) / SCATTER))

    @property
    def _middle(self) -> float:
        clipped = min(max(self.probability, CLIP), 1 - CLIP)
        return OFFSET + SLOPE * float(scipy.special.logit(clipped))

    def as_dict(self) -> dict[str, float]:
        """The median, what one and nine of ten cases undercut, and the chance of less than POOR."""
        return {
            "median": self.quantile(0.5),
            "low": self.quantile(0.1),
            "high": self.quantile(0.9),
            "chance_of_poor": self.chance_of_poor,
        }

    def __str__(self) -> str:
        return (
            f"{self.quantile(0.5):.2f} ({self.quantile(0.1):.2f} to {self.quantile(0.9):.2f} in eight of ten "
            "such cases)"
        )
