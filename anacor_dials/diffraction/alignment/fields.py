"""Errors of real intensities that vary smoothly with direction: random fields on the sphere.

Intensities have errors that neither counting statistics nor a scale of each image explains: the
path through what the labels do not show, the efficiency of the detector and of the integration
from place to place, the size of the crystal in the beam. They vary by some per cent over tens of
degrees of the diffracted beam. As independent errors they would be averaged away, and the quoted
errors would be far too small; as free parameters they would take the absorption with them. Here
they are random: sums of real spherical harmonics to the order 4 (as the absorption surfaces of
scaling programs; Blessing, Acta Cryst. A51 (1995) 33), whose coefficients are normal with variances

    sigma_c^2 / (l (l + 1) / 2)

for three kinds c of fields: fixed to the crystal and the same in all sweeps; fixed to the crystal,
of each sweep; fixed to the laboratory, of each sweep. The three sigma_c are those of the largest
evidence (MacKay, Neural Computation 4 (1992) 415, eq. 4.9), and a kind that is not there
gets 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import sph_harm_y

from anacor_dials.diffraction.alignment.equivalents import Equivalents
from anacor_dials.sample.frames import FloatArray

HIGHEST_ORDER = 4
MOST_SWEEPS = 8  # with fields of their own; of more, neighbours share them, which bounds the time
START = 0.03  # sigma_c, relative; what scaling programs find for absorption that is not known
STEPS = 30  # of the iteration; sigma_c then change by less than a tenth of their uncertainty
NOTHING = 1e-4  # a relative error that nothing depends on


def error_fields(data: Equivalents) -> tuple[FloatArray, NDArray[np.int64]]:
    """The columns (n, q) of all fields with their relative sizes, and the kind (q,) of each.

    Parameters
    ----------
    data : Equivalents
    """
    crystal, lab = _harmonics(data.exit), _harmonics(data.exit_in_lab)
    sweeps = np.unique(data.experiment, return_inverse=True)[1].ravel()
    n_sweeps = int(sweeps.max()) + 1
    groups = sweeps * min(n_sweeps, MOST_SWEEPS) // n_sweeps
    blocks = [] if n_sweeps == 1 else [crystal]
    kinds = [0] * len(blocks)
    for group in range(int(groups.max()) + 1):
        mine = (groups == group)[:, None]
        blocks += [np.where(mine, crystal, 0.0), np.where(mine, lab, 0.0)]
        kinds += [1, 2]
    return np.hstack(blocks), np.repeat(kinds, crystal.shape[1])


def _harmonics(directions: FloatArray) -> FloatArray:
    """Real spherical harmonics (n, 24) of unit vectors (n, 3), of mean square 2 / (l (l + 1))."""
    polar = np.arccos(np.clip(directions[:, 2], -1.0, 1.0))
    azimuth = np.arctan2(directions[:, 1], directions[:, 0])
    columns = []
    for order in range(1, HIGHEST_ORDER + 1):
        size = math.sqrt(8 * math.pi / (order * (order + 1)))
        for m in range(order + 1):
            value = size * sph_harm_y(order, m, polar, azimuth)
            columns += (
                [value.real] if m == 0 else [math.sqrt(2) * value.real, math.sqrt(2) * value.imag]
            )
    return np.stack(columns, axis=1)


def sizes_of_fields(
    columns: FloatArray, kinds: NDArray[np.int64], residual: FloatArray
) -> FloatArray:
    """sigma (q,) of the coefficients of each column, the same for all of a kind.

    Parameters
    ----------
    columns : array (n, q)
        Weighted so that errors without fields have the variance 1.
    kinds : array (q,) of int
        From 0; some may not be there.
    residual : array (n,)
        Weighted in the same way.
    """
    gram, products = columns.T @ columns, columns.T @ residual
    members = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    sigma = np.full(len(kinds), START)
    for _ in range(STEPS):
        root = np.linalg.inv(np.eye(len(sigma)) + sigma[:, None] * gram * sigma)
        coefficients = sigma * (root @ (sigma * products))
        determined = 1 - np.diag(root)  # of each coefficient, from 0 to 1
        for those in members:
            known = float(determined[those].sum())
            square = float(coefficients[those] @ coefficients[those])
            sigma[those] = math.sqrt(square / known) if known > 1e-9 else 0.0
        sigma[sigma < NOTHING] = 0.0
    return sigma
