"""What corrections of labels are worth: volumes, mu, absorption factors, and their doubt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anacor_dials.absorption.factors import absorption_factors
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.jobs.label_uncertainty import Drawing, label_uncertainty, random_sweep
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.segmentation.working_grid import bin_factors, binned_labels, working_volume

# It is shown after every step: few reflections, and coarse, so that it takes little time.
DIRECTIONS = 200
TRACED_VOXELS = 160  # along an edge: finer volumes are binned before factors are computed
TOLERANCE = 2e-3  # of the factors


@dataclass(frozen=True, eq=False)
class Effect:
    """What the corrections change. "before" is when the file was opened.

    Attributes
    ----------
    names : tuple of n str
    volumes_before, volumes_now : array (n,)
        Of the materials, um^3.
    mu_before, mu_now : array (n,)
        1/um.
    factors_before, factors_now : array (m,)
        Absorption factors of some directions; empty without a crystal.
    uncertainty_before, uncertainty_now : float or None
        The relative rms by which factors are uncertain because the labels are; None if that is not
        known, since the file holds no probabilities.
    """

    names: tuple[str, ...]
    volumes_before: FloatArray
    volumes_now: FloatArray
    mu_before: FloatArray
    mu_now: FloatArray
    factors_before: FloatArray
    factors_now: FloatArray
    uncertainty_before: float | None = None
    uncertainty_now: float | None = None

    @property
    def rms(self) -> float:
        """Relative rms change of the factors after one common scale; NaN without a crystal."""
        if not (self.factors_before.size and self.factors_now.size):
            return float("nan")
        ratio = self.factors_now / self.factors_before
        return float(np.std(ratio) / np.mean(ratio))


def _tracing() -> Tracing:
    return Tracing(TOLERANCE, check_reflections=8, device="cpu", nproc=1)


def factors_of_labels(labels: LabelVolume, mu_per_um: FloatArray) -> FloatArray:
    """Absorption factors (DIRECTIONS,) of labels; empty without a crystal or without a known mu.

    Volumes that are too fine are binned first.

    Parameters
    ----------
    labels : LabelVolume
    mu_per_um : array (n,)
        Of the materials, 1/um; the mean of the others where it is not a number.
    """
    step = max(1, -(-max(labels.shape) // TRACED_VOXELS))
    factors = (step, step, step) if step > 1 else bin_factors(labels.voxel_size_um)
    values = binned_labels(labels.values, factors, len(labels.names))
    mu = np.array(mu_per_um, dtype=np.float64)
    known = mu[1:][np.isfinite(mu[1:])]
    if np.count_nonzero(values == labels.label("crystal")) < 8 or not known.size:
        return np.empty(0)
    mu[~np.isfinite(mu)] = known.mean()
    grid = working_volume(labels, values, factors)
    volume = LabelVolume(values, grid.voxel_size_um, grid.centre, labels.names)
    directions = random_sweep(DIRECTIONS, np.random.default_rng(0))
    found = absorption_factors(volume, mu, directions, _tracing())
    return np.asarray(found.transmission)


def doubts_left(
    probabilities: NDArray[np.uint8], labels: NDArray[np.uint8], by_hand: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Probabilities (n_classes, nx, ny, nz), 255 = 1, that go with labels that were corrected.

    What is by hand is sure. Where a program continued a person's strokes, the doubt is as large as
    before, and the label is the more probable one now.

    Parameters
    ----------
    probabilities : array (n_classes, nx, ny, nz) of uint8
        Of the network.
    labels : array (nx, ny, nz) of uint8
        As they are now.
    by_hand : array (nx, ny, nz) of bool
    """
    out = probabilities.copy()
    flat, taken = out.reshape(len(out), -1), labels.reshape(-1)
    best = probabilities.reshape(len(out), -1).argmax(axis=0)
    where = np.flatnonzero((best != taken) & ~by_hand.reshape(-1))
    there, before = taken[where], best[where]
    flat[there, where], flat[before, where] = flat[before, where], flat[there, where]
    where = np.flatnonzero(by_hand)
    flat[:, where] = 0
    flat[taken[where], where] = 255
    return out


def uncertainty_of_labels(
    probabilities: NDArray[np.uint8],
    labels: LabelVolume,
    mu_per_um: FloatArray,
    surfaces_um: float = 0.0,
) -> float | None:
    """The relative rms by which factors are uncertain because the labels are.

    In volumes that are too fine only every second, third ... voxel along each axis is looked at.
    None without a crystal.

    Parameters
    ----------
    probabilities : array (n_classes, nx, ny, nz) of uint8
        255 = 1.
    labels : LabelVolume
        The voxels that they belong to.
    mu_per_um : array (n_classes,)
        1/um.
    surfaces_um : float
        How far refraction may have displaced surfaces, as a standard deviation.
    """
    step = max(1, -(-max(labels.shape) // TRACED_VOXELS))
    thin = (slice(None), *(slice(step // 2, None, step),) * 3)
    inside = np.ascontiguousarray(probabilities[thin])
    grid = working_volume(labels, inside[0], (step, step, step))
    drawing = Drawing(surfaces_um=surfaces_um)
    found = label_uncertainty(inside, grid, labels.names, mu_per_um, drawing, tracing=_tracing())
    return None if found is None else found.rms
