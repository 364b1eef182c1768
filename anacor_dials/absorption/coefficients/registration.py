"""Where radiographs show the origin of a label volume, by registration of its thickness."""

from __future__ import annotations

import math

import numpy as np
import scipy.signal
from numpy.typing import NDArray

from anacor_dials.absorption.coefficients.radiographs import Radiographs
from anacor_dials.absorption.coefficients.ray_grid import RayGrid, ray_grid
from anacor_dials.sample.volumes import LabelVolume

REGISTRATION_PIXELS = 96  # blocks along the longer side of the image, in the first search
REGISTRATION_VIEWS = 12  # from all around, for two unknowns
# The part of the sum of squares of -ln T that labels must explain. Labels of another sample explain
# less. Chosen by hand.
LEAST_AGREEMENT = 0.5


def _register(
    radiographs: Radiographs,
    labels: LabelVolume,
    which: NDArray[np.intp],
    start: tuple[float, float],
    search: tuple[int, int],
    block: int,
) -> tuple[tuple[float, float], float]:
    """Where the thickness of the labels agrees best with -ln T, and how well (0 to 1).

    The measure is the part of the sum of squares of -ln T that c * (thickness of all materials)
    explains. It is searched over shifts within +- search (pixels along X and Y) in steps of a block
    of pixels; a parabola through the best and its neighbours gives the place between the steps.

    Returns
    -------
    origin : (float, float)
        Index of the upright images, along X and Y, of the labels' origin.
    agreement : float
    """
    _, nx, ny = radiographs.upright.shape
    grid = ray_grid(radiographs, start, (0, nx), (0, ny), block, which)
    wide = [max(1, math.ceil(s / block)) for s in search]
    seen = grid.transmissions > 0
    measured = -np.log(np.where(seen, grid.transmissions, 1.0))
    # thickness is calculated for a larger area than the images, so that every shift has its values
    x_um, u_um = (
        c[0] + np.arange(-w, len(c) + w) * step
        for c, w, step in zip((grid.x_um, grid.u_um), wide, grid.step_um, strict=True)
    )
    larger = RayGrid(grid.transmissions, grid.angles_deg, x_um, u_um)
    thickness = larger.path_lengths(labels).sum(axis=-1, dtype=np.float64)
    cross = np.zeros([2 * w + 1 for w in wide])
    norm = np.zeros_like(cross)
    for t, m, s in zip(thickness, measured, seen, strict=True):
        cross += scipy.signal.correlate(t, m, "valid", "fft")
        norm += scipy.signal.correlate(t * t, s.astype(float), "valid", "fft")
    total = float(np.sum(measured**2))
    floor = 1e-6 * float(norm.max())
    if not total > 0 or not floor > 0:
        raise ValueError("Nothing absorbs in these projections: there is no sample in the beam.")
    score = (
        np.where(norm > floor, np.clip(cross, 0, None) ** 2 / np.maximum(norm, floor), 0) / total
    )
    best = np.unravel_index(int(np.argmax(score)), score.shape)
    moved = []
    for axis, w in enumerate(wide):
        i = int(best[axis])
        line = np.moveaxis(score, axis, -1)[best[1 - axis]]
        fine = 0.0
        if 0 < i < len(line) - 1:
            curvature = line[i - 1] - 2 * line[i] + line[i + 1]
            fine = 0.5 * (line[i - 1] - line[i + 1]) / curvature if curvature < 0 else 0.0
        moved.append((i + fine - w) * block)
    # if thickness from farther right agrees, the origin lies farther left
    return (start[0] - moved[0], start[1] - moved[1]), float(score[best])


def find_origin(radiographs: Radiographs, labels: LabelVolume) -> tuple[float, float]:
    """The index of the upright images, along X and Y, at which the labels' origin is seen.

    The thickness of the labels is registered with -ln T, in smaller and smaller blocks of pixels.
    The search covers a quarter of the image to each side of its middle.

    Parameters
    ----------
    radiographs : Radiographs
    labels : LabelVolume

    Raises
    ------
    ValueError
        If the labels explain less than LEAST_AGREEMENT of the projections anywhere.
    """
    n, nx, ny = radiographs.upright.shape
    which = np.unique(np.linspace(0, n - 1, min(n, REGISTRATION_VIEWS)).astype(np.intp))
    place = ((nx - 1) / 2, (ny - 1) / 2)
    search = (nx // 4, ny // 4)
    block = max(1, math.ceil(max(nx, ny) / REGISTRATION_PIXELS))
    while True:
        place, agreement = _register(radiographs, labels, which, place, search, block)
        finest = max(1, math.ceil(max(nx, ny) / (6 * REGISTRATION_PIXELS)))
        if block <= finest:
            break
        search = (2 * block, 2 * block)
        block = max(finest, block // 3)
    if agreement < LEAST_AGREEMENT:
        raise ValueError(
            f"The labels explain {100 * agreement:.0f} % of the projections at the best place of the "
            "rotation axis: they are not of this sample, or image axes, pixel size or angles are wrong."
        )
    return place
