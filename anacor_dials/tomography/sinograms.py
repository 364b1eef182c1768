"""Sinograms of -ln T: from the projections of a scan, cleaned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatImages
from anacor_dials.tomography.corrections import (
    ZINGER_REACH,
    bridge_unusable,
    minus_log,
    paganin_length_um,
    remove_rings,
    remove_zingers,
    retrieve_phase,
    zinger_threshold,
)
from anacor_dials.tomography.projections import Projections
from anacor_dials.tomography.ramp_filter import Sinograms
from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings

BATCH_BYTES = 2.0e8  # of transmissions that are corrected at a time


@dataclass
class Counts:
    """How many pixels were used, and how many of them were not good.

    Attributes
    ----------
    pixels, clipped, unusable, zingers : int
    """

    pixels: int = 0
    clipped: int = 0
    unusable: int = 0
    zingers: int = 0


def _halo(projections: Projections, settings: ReconstructionSettings) -> int:
    """How many rows on either side of a slab its corrections need."""
    halo = 0 if settings.zinger_threshold is None else ZINGER_REACH
    if settings.paganin_delta_beta is not None:
        halo += math.ceil(6 * _paganin_length(projections, settings) / projections.pixel_xy_um[0])
    return halo


def _paganin_length(projections: Projections, settings: ReconstructionSettings) -> float:
    """The length of Paganin's filter, um. Raises ValueError if energy or distance are unknown."""
    assert settings.paganin_delta_beta is not None
    geometry = projections.geometry
    if geometry.energy_keV is None or geometry.distance_mm is None:
        raise ValueError(
            "Phase retrieval needs the photon energy and the distance from sample to detector; give "
            "projections.energy= (keV) and projections.distance= (mm)."
        )
    return paganin_length_um(geometry.energy_keV, geometry.distance_mm, settings.paganin_delta_beta)


def _batches(projections: Projections, nx: int) -> Iterator[slice]:
    step = max(1, int(BATCH_BYTES / (4 * nx * projections.ny)))
    for first in range(0, projections.n_angles, step):
        yield slice(first, min(first + step, projections.n_angles))


def attenuation(
    projections: Projections,
    settings: ReconstructionSettings,
    which: slice | NDArray[np.intp],
    x: tuple[int, int],
    counts: Counts | None = None,
) -> FloatImages:
    """-ln T (k, nx', ny), upright, of some projections; cleaned, but with rings.

    Parameters
    ----------
    projections : Projections
    settings : ReconstructionSettings
    which : slice or array of int
        Which projections.
    x : (int, int)
        First and last + 1 row.
    counts : Counts, optional
        Pixels are added to these counts.
    """
    counts = counts if counts is not None else Counts()
    halo = _halo(projections, settings)
    low, high = max(x[0] - halo, 0), min(x[1] + halo, projections.nx)
    images = projections.transmission(which, slice(low, high))
    counts.unusable += int(bridge_unusable(images))
    if settings.zinger_threshold is not None:
        images, zingers = remove_zingers(
            images, zinger_threshold(images, settings.zinger_threshold)
        )
        counts.zingers += int(zingers)
    if settings.paganin_delta_beta is not None:
        length = _paganin_length(projections, settings)
        images = retrieve_phase(images, length, projections.pixel_xy_um)
    images = np.ascontiguousarray(images[:, x[0] - low : images.shape[1] - (high - x[1])])
    counts.clipped += int(minus_log(images, settings.least_transmission))
    counts.pixels += images.size
    return images


def slab_sinograms(
    projections: Projections,
    settings: ReconstructionSettings,
    x: tuple[int, int],
    counts: Counts | None = None,
    advance: Callable[[int], object] = lambda rows: None,
) -> Sinograms:
    """Sinograms (nx', n_angles, ny) of some rows: -ln T, cleaned and without rings.

    Parameters
    ----------
    projections : Projections
    settings : ReconstructionSettings
    x : (int, int)
        First and last + 1 row.
    counts : Counts, optional
        Pixels are added to these counts.
    advance : callable
        Is told of how many more rows of a projection the corrections are done.
    """
    sinograms = np.empty((x[1] - x[0], projections.n_angles, projections.ny), dtype=np.float32)
    for batch in _batches(projections, x[1] - x[0] + 2 * _halo(projections, settings)):
        images = attenuation(projections, settings, batch, x, counts)
        sinograms[:, batch] = images.transpose(1, 0, 2)
        advance(images.shape[0] * images.shape[1])
    return remove_rings(sinograms, settings.rings)


def row_sinograms(
    projections: Projections, settings: ReconstructionSettings, rows: NDArray[np.intp]
) -> tuple[Sinograms, Sinograms]:
    """Two sinograms (len(rows), n_angles, ny) of single rows: as measured, and without zingers.

    -ln T. The images are read once. Rings stay in both.

    Parameters
    ----------
    projections : Projections
    settings : ReconstructionSettings
    rows : array of int
    """
    shape = (len(rows), projections.n_angles, projections.ny)
    measured, clean = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
    # each row with its neighbours, which are needed to find zingers
    reach = np.arange(-ZINGER_REACH, ZINGER_REACH + 1)
    around = (rows[:, None] + reach).clip(0, projections.nx - 1).ravel()
    for batch in _batches(projections, int(rows.max() - rows.min()) + 3):
        images = projections.transmission(batch, around)
        bridge_unusable(images)
        for sinograms, zingers in ((measured, False), (clean, True)):
            if zingers and settings.zinger_threshold is not None:
                threshold = zinger_threshold(images, settings.zinger_threshold)
                images, _ = remove_zingers(images, threshold)
            single = np.ascontiguousarray(images[:, ZINGER_REACH :: len(reach)])
            minus_log(single, settings.least_transmission)
            sinograms[:, batch] = single.transpose(1, 0, 2)
    return measured, clean
