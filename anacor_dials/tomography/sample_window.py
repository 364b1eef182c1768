"""Where the sample is in a scan: the rows and the part of a slice that hold it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatImages
from anacor_dials.tomography.projections import Projections
from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings
from anacor_dials.tomography.sinograms import attenuation
from anacor_dials.tomography.slice_grid import SliceGrid

SURVEY_VIEWS = 36  # every 10 degrees of a whole turn
CENTRE_SLICES = 3  # their median is taken; more take longer and agree
SUPPORT_SHARE = 0.02  # of the strongest absorption: more is sample, when cropping; chosen by hand


def survey_of_sample(
    projections: Projections, settings: ReconstructionSettings
) -> tuple[NDArray[np.intp], FloatImages]:
    """Indices (k,) and -ln T (k, nx, ny) of some projections around the turn.

    Those nearest to 0, 90, 180 and 270 degrees are among them.
    """
    n = projections.n_angles
    chosen = set(np.linspace(0, n - 1, min(n, SURVEY_VIEWS)).astype(int).tolist())
    for angle in np.arange(0.0, 360.0, 90.0):
        off = np.abs(np.mod(projections.angles_deg - angle + 180.0, 360.0) - 180.0)
        chosen.add(int(np.argmin(off)))
    which = np.array(sorted(chosen))
    plain = replace(settings, paganin_delta_beta=None)
    images = [
        attenuation(projections, plain, which[k : k + 1], (0, projections.nx))[0]
        for k in range(len(which))
    ]
    return which, np.stack(images)


def sample_rows(survey: FloatImages) -> NDArray[np.intp]:
    """Rows, spread over the sample, in which the axis is looked for.

    The row that absorbs most is one of them.
    """
    profile = scipy.ndimage.uniform_filter1d(survey.clip(0).sum(axis=(0, 2)), 5, mode="nearest")
    if not profile.max() > 0:
        raise ValueError("Nothing absorbs in this scan: there is no sample in the beam.")
    strong = np.flatnonzero(profile >= 0.5 * profile.max())
    picks = strong[np.linspace(0, len(strong) - 1, CENTRE_SLICES + 2)[1:-1].astype(int)]
    return np.unique(np.append(picks, np.argmax(profile)))


def _support(images: FloatImages, axis: int) -> tuple[int, int]:
    """First and last + 1 pixel, along one axis of images (k, nx, ny), that sees sample."""
    smooth = scipy.ndimage.uniform_filter(images, (0, 5, 5), mode="nearest")
    noise = 1.4826 * float(np.median(np.abs(smooth - np.median(smooth))))
    threshold = max(
        SUPPORT_SHARE * float(np.percentile(smooth, 99.9)),
        min(5 * noise, 0.1 * float(smooth.max())),
    )
    # a few pixels above the threshold in a line, not one
    across = np.sum(smooth > threshold, axis=2 if axis == 1 else 1)
    seen = np.flatnonzero(np.any(across >= 3, axis=0))
    if not seen.size:
        return 0, images.shape[axis]
    margin = 8 + int(0.03 * images.shape[axis])
    return max(int(seen[0]) - margin, 0), min(int(seen[-1]) + 1 + margin, images.shape[axis])


def auto_crop(
    projections: Projections,
    which: NDArray[np.intp],
    survey: FloatImages,
    axis: float,
    grid: SliceGrid,
) -> tuple[tuple[int, int], SliceGrid]:
    """The rows and the window of a slice that hold the sample, with a margin.

    Parameters
    ----------
    projections : Projections
    which, survey : array
        Of :func:`survey_of_sample`.
    axis : float
        Pixel number of the rotation axis.
    grid : SliceGrid
        The whole slice.
    """
    x = _support(survey, 1)
    angles = projections.angles_deg[which]
    middle = (grid.n - 1) / 2
    windows = []
    for towards in (0.0, 90.0):  # u = y at 0, u = -z at 90 degrees
        off = np.mod(angles - towards + 90.0, 180.0) - 90.0
        k = int(np.argmin(np.abs(off)))
        if abs(off[k]) > 5.0:
            windows.append((0, grid.n))
            continue
        first, stop = _support(survey[k : k + 1, x[0] : x[1]], 2)
        low, high = first - axis, stop - 1 - axis
        view = np.deg2rad(angles[k])
        if (np.cos(view) if towards == 0.0 else -np.sin(view)) < 0:
            low, high = -high, -low
        # seen from up to five degrees aside, the sample's depth adds to its width
        aside = abs(math.sin(math.radians(float(off[k])))) * max(abs(low), abs(high))
        windows.append(
            (
                max(0, math.floor(middle + low - aside)),
                min(grid.n, math.ceil(middle + high + aside) + 1),
            )
        )
    return x, SliceGrid(grid.n, windows[0], windows[1])
