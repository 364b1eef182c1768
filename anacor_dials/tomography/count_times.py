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
        With the count times of its frames, and of flats that are not among them.
    flats : list of arrays
        The numbers of the frames in each group of flats; None for a group that is not among the
        frames.

    Returns
    -------
    tuple or None
        None where a count time is not known, or all are the same.
    """
    times, apart = scan.count_times, scan.flat_count_time
    if times is None or not flats:
        return None
    groups = np.array(
        [
            np.mean(times[numbers]) if numbers is not None else np.nan if apart is None else apart
            for numbers in flats
        ]
    )
    projections = times[scan.projections]
    every = np.concatenate([groups, projections])
    if not np.all(np.isfinite(every)) or not np.all(every > 0):
        return None
    if np.ptp(every) <= SAME * every[0]:
        return None
    return groups / groups[0], projections / groups[0]
