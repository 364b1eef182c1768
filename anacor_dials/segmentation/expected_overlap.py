"""How far labels of the crystal probably overlap with the true crystal, which nobody knows.

If every voxel is crystal with its probability p, the expected overlap with the true crystal, as a
Dice coefficient, is close to

    2 sum_found p / (n_found + sum p)

with the sums over the n_found voxels that are labelled as crystal, and over all voxels in which
crystal has a probability of at least RIVAL: in a large drop a thousandth of all the liquor's voxels
would outweigh a small crystal. How much that is worth was measured on virtual samples left out of
the training: the true Dice is foretold by a straight line between the logits of both, with a
scatter (logistic calibration: Platt, in Advances in Large Margin Classifiers, 1999).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.special
from numpy.typing import NDArray

# Of the line logit(true Dice) = OFFSET + SLOPE logit(expected Dice), and the scatter about it
# (standard deviation); of SAMPLES virtual samples that the shipped weights had not seen.
OFFSET, SLOPE, SCATTER, SAMPLES = -1.29, 1.48, 1.17, 65
RIVAL = 51  # of 255: 0.2. Of 0, 0.02, 0.05, 0.1, 0.2 and 0.3 it gave the least scatter
POOR = 0.9  # a Dice below is a poor label: factors are then off by some per cent
CLIP = 0.005  # Dice coefficients are kept this far from 0 and 1, where the logit is infinite


def expected_dice(probabilities: NDArray[np.uint8], label: int) -> float:
    """The overlap of a label with the true one that probabilities lead one to expect.

    NaN if no voxel has the label, the most probable one.

    Parameters
    ----------
    probabilities : array (n, nx, ny, nz) of uint8
        255 = 1.
    label : int
    """
    found = inside = rivals = 0
    for x in range(probabilities.shape[1]):  # plane by plane: they are large
        plane = probabilities[:, x]
        p, there = plane[label], plane.argmax(axis=0) == label
        found += int(np.count_nonzero(there))
        inside += int(p[there].sum(dtype=np.int64))
        rivals += int(p[there | (p >= RIVAL)].sum(dtype=np.int64))
    return 2 * inside / (255 * found + rivals) if found else math.nan


@dataclass(frozen=True)
class OverlapForecast:
    """The Dice coefficient of crystal labels with the true crystal, as far as it can be foretold.

    Parameters
    ----------
    expected : float
        Of :func:`expected_dice`, 0 to 1.
    """

    expected: float

    def __post_init__(self) -> None:
        if not 0 <= self.expected <= 1:
            raise ValueError(f"The expected Dice is {self.expected}; it is between 0 and 1.")

    def quantile(self, share: float) -> float:
        """The Dice that is undercut with a probability `share`; of 0.5 the one foretold."""
        return float(scipy.special.expit(self._middle + SCATTER * scipy.special.ndtri(share)))

    @property
    def chance_of_poor(self) -> float:
        """The probability that the Dice is below POOR."""
        return float(scipy.special.ndtr((scipy.special.logit(POOR) - self._middle) / SCATTER))

    @property
    def _middle(self) -> float:
        clipped = min(max(self.expected, CLIP), 1 - CLIP)
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
