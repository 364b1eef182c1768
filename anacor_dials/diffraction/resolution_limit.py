"""The resolution to which scaled data hold a signal."""

from __future__ import annotations

import logging
import math

from cctbx import miller
from dials.util.resolution_analysis import Resolutionizer, metrics, phil_defaults

logger = logging.getLogger("dials.anacor_dials.diffraction.resolution_limit")

CC_HALF = 0.3  # the lowest in the outer shell, as in xia2 and dials.estimate_resolution
# data that are nearly as fine as the limit are left as they are: the limit has an error, too
TOLERANCE = 0.01


def limit_of_signal(intensities: miller.array, cc_half: float = CC_HALF) -> float | None:
    """The spacing (Angstrom) at which CC1/2 falls to a value; None where it does not.

    It is that of dials.estimate_resolution: tanh is fitted to CC1/2 in shells, as in Aimless (Evans
    and Murshudov, Acta Cryst. D69 (2013) 1204).

    Parameters
    ----------
    intensities : miller.array
        Scaled and not merged.
    cc_half : float
        Above 0 and below 1.
    """
    settings = phil_defaults.extract().resolution
    try:
        found = Resolutionizer(intensities, settings).resolution(metrics.CC_HALF, limit=cc_half)
    except (RuntimeError, ValueError) as error:  # too few reflections, or no fit
        logger.debug("no limit by CC1/2: %s", error)
        return None
    limit = found.d_min
    if not limit or not math.isfinite(limit):
        return None
    return limit if limit > (1 + TOLERANCE) * intensities.d_min() else None
