"""Count times: what the file of a scan says about how long each image was exposed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.tomography.scan_files import ScanContents

SAME = 1e-3  # relative: count times that differ by less are one


def relative_exposures(
    scan: ScanContents, flats: list[NDArray[np.intp] | None]
) -> tuple[FloatArray, FloatArray] | None:
    """(groups of flats (g,), projections (n,)): count times relative to the first group of flats.

    Parameters
    ----------
    scan : ScanContents
        With the count times of its frames.
    flats : list of arrays
        The numbers of the frames in each group of flats; None for a group in another file.

    Returns
    -------
    tuple or None
        None where a count time is not known, or all are the same.
    """
    times = scan.count_times
    if times is None or not flats or any(numbers is None for numbers in flats):
        return None
    groups = np.array([np.mean(times[numbers]) for numbers in flats])
    projections = times[scan.projections]
    every = np.concatenate([groups, projections])
    if not np.all(np.isfinite(every)) or not np.all(every > 0):
        return None
    if np.ptp(every) <= SAME * every[0]:
        return None
    return groups / groups[0], projections / groups[0]
