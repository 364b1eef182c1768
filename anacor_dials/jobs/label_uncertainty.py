"""How uncertain the absorption factors are because the labels are.

Label volumes that are as plausible as the one taken are drawn from the probabilities
(:mod:`anacor_dials.segmentation.plausible_labels`). With each of them the factors of some hundred
reflections are computed, and compared with those of the labels taken after one common scale, which
dials.scale would find anyway. Where refraction has displaced surfaces, it is not known exactly by
how much: factors with surfaces moved by a smooth field are compared as well.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.factors import absorption_factors
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.sample.frames import FloatArray, scan_rotation, unit
from anacor_dials.sample.progress import Progress
from anacor_dials.sample.volumes import LabelVolume, Volume
from anacor_dials.segmentation.clean_up import bodies_with
from anacor_dials.segmentation.plausible_labels import moved_surfaces, plausible_labels
from anacor_dials.segmentation.tiles import most_probable

logger = logging.getLogger("dials.anacor_dials.jobs.label_uncertainty")

MOVES = 3  # of each surface; their rms has an error of about 40 %
DRAWS = 10  # their rms has an error of about 1 / sqrt(2 DRAWS), 22 %
REFLECTIONS = 200  # their rms has an error of about 5 %, little beside that of the draws
# Of the drawn labels, whose surfaces were moved to the edges: they are better than the
# probabilities say. On eleven samples left out of training (five scans, six of the stream) the
# uncertainty was 1.2 times the true error in the geometric mean with 0.35, within a factor of two
# on five and of three on eight. It is too small by two to five where labels are poor (1.2 would be
# right there, and too large by three to ten on scans); these have a warning of their own
# (segmentation/doubts.py).
TEMPERATURE = 0.35
TOLERANCE = 1.5e-3  # of the factors; less than the uncertainty from the labels usually is
# A larger relative rms of the factors causes a warning. Chosen by hand: about half of Rmeas of good
# data.
MOST_UNCERTAIN = 0.015
MARGIN = 2  # voxels around the sample
LEAST_CRYSTAL = 8  # voxels


@dataclass(frozen=True, eq=False)
class LabelUncertainty:
    """How uncertain the absorption factors are because the labels are.

    Attributes
    ----------
    rms : float
        Relative, over all reflections and draws, after one scale for each draw.
    draws : array (n,)
        The same of each draw.
    spread : float
        Relative standard deviation of the factors themselves.
    crystal_volumes_um3 : array (n,)
        Of the draws.
    """

    rms: float
    draws: FloatArray
    spread: float
    crystal_volumes_um3: FloatArray

    @property
    def warnings(self) -> list[str]:
        """A sentence where the factors are more uncertain than MOST_UNCERTAIN."""
        if self.rms <= MOST_UNCERTAIN:
            return []
        return [
            f"The labels are doubtful: the absorption factors are uncertain by {100 * self.rms:.1f} % because of "
            f"them (more than {100 * MOST_UNCERTAIN:g} %). Look at the slices and at the map of uncertainty; "
            "correct the labels (labels.file=), or take a tomogram with more projections or photons."
        ]

    def __str__(self) -> str:
        low, high = self.crystal_volumes_um3.min(), self.crystal_volumes_um3.max()
        return (
            f"{100 * self.rms:.2f} % rms in {len(self.draws)} plausible label volumes (the factors vary by "
            f"{100 * self.spread:.1f} %); crystal {low:.4g} to {high:.4g} um^3"
        )


def random_sweep(n: int, rng: np.random.Generator) -> Directions:
    """n reflections of one sweep of 360 degrees about X, at scattering angles up to 80 degrees."""
    angle = rng.uniform(0, 360, n)
    two_theta, psi = np.deg2rad(rng.uniform(5, 80, n)), rng.uniform(0, 2 * np.pi, n)
    # in the laboratory the beam travels along -Z
    exits = np.stack(
        [np.sin(two_theta) * np.cos(psi), np.sin(two_theta) * np.sin(psi), -np.cos(two_theta)], 1
    )
    turn = scan_rotation(angle).transpose(0, 2, 1)  # laboratory to sample
    to_source = turn @ np.array([0.0, 0.0, 1.0])
    return Directions.of_one_sweep(to_source, np.einsum("nij,nj->ni", turn, unit(exits)))


def without_further_bodies(
    drawn: NDArray[np.uint8], taken: NDArray[np.uint8], crystal: int
) -> NDArray[np.uint8]:
    """Drawn labels (nx, ny, nz) without crystals that have nothing of the crystal that was taken.

    The clean-up has done away with such bodies in the labels taken, which are put in their place.

    Parameters
    ----------
    drawn, taken : array (nx, ny, nz) of uint8
    crystal : int
        The label of the crystal.
    """
    there = drawn == crystal
    further = there & ~bodies_with(there, there & (taken == crystal))
    return np.where(further, taken, drawn)


@contextmanager
def _accuracy_untold() -> Iterator[None]:
    """Keeps the accuracy of the factors of each drawn label volume out of the log."""
    about = logging.getLogger("dials.anacor_dials.absorption")
    level = about.level
    about.setLevel(logging.WARNING)
    try:
        yield
    finally:
        about.setLevel(level)


@dataclass(frozen=True)
class Drawing:
    """Which labels are looked at.

    Parameters
    ----------
    draws : int
        How many plausible label volumes are drawn.
    surfaces_um : float
        How far the surfaces of sample and crystal may lie elsewhere than the probabilities say, as
        a standard deviation: see :attr:`anacor_dials.segmentation.edges.EdgeSettings.uncertain_um`.
    progress : bool
        Whether to show a progress bar.
    """

    draws: int = DRAWS
    surfaces_um: float = 0.0
    progress: bool = False


def _usable(mu_per_um: ArrayLike) -> FloatArray | None:
    """mu by label, without gaps; None if no material's is known."""
    mu = np.array(mu_per_um, dtype=np.float64)
    mu[0] = 0.0 if not np.isfinite(mu[0]) else max(mu[0], 0.0)
    mu[1:][mu[1:] < 0] = np.nan  # a median within a dark fringe
    known = mu[1:][np.isfinite(mu[1:])]
    if not known.size:
        return None
    mu[~np.isfinite(mu)] = known.mean()
    return mu


class _Factors:
    """Factors of the same reflections with different labels; a crystal of a few voxels has none."""

    def __init__(
        self, grid: Volume, names: tuple[str, ...], mu: FloatArray, of: Directions, by: Tracing
    ) -> None:
        self.grid, self.names, self.mu, self.of, self.by = grid, names, mu, of, by
        self.crystal = names.index("crystal")

    def __call__(self, labels: NDArray[np.uint8]) -> FloatArray | None:
        if np.count_nonzero(labels == self.crystal) < LEAST_CRYSTAL:
            return None
        volume = LabelVolume(labels, self.grid.voxel_size_um, self.grid.centre, self.names)
        with _accuracy_untold():
            found: FloatArray = absorption_factors(volume, self.mu, self.of, self.by).transmission
        return found

    def error(self, labels: NDArray[np.uint8], reference: FloatArray) -> float:
        """The relative rms difference from the reference after one scale; NaN without a crystal."""
        found = self(labels)
        if found is None:
            return math.nan
        ratio = found / reference
        return float(np.std(ratio) / np.mean(ratio))


def label_uncertainty(
    probabilities: NDArray[np.uint8],
    grid: Volume,
    names: tuple[str, ...],
    mu_per_um: ArrayLike,
    drawing: Drawing | None = None,
    *,
    directions: Directions | None = None,
    tracing: Tracing | None = None,
) -> LabelUncertainty | None:
    """The uncertainty of the factors from the labels; None where no draw, or not the labels taken,
    hold a crystal.

    Parameters
    ----------
    probabilities : array (n_classes, nx, ny, nz) of uint8
        Of the classes, 255 = 1, after the clean-up.
    grid : Volume
        The voxels that they belong to.
    names : tuple of str
        Of the classes.
    mu_per_um : array (n_classes,)
        mu of each material, 1/um; where it is not a number, that of the liquor or the mean of the
        others is taken.
    drawing : Drawing, optional
    directions : Directions, optional
        Of the reflections; some hundred random ones of a sweep about X if not given.
    tracing : Tracing, optional
        How factors are computed, and the seed of what is drawn; to 0.15 % if not given.
    """
    drawing = drawing or Drawing()
    tracing = tracing or Tracing(TOLERANCE, check_reflections=8)
    mu = _usable(mu_per_um)
    where = np.argwhere(probabilities[0] < 250)
    if mu is None or not where.size:
        return None
    rng = np.random.default_rng(tracing.seed)
    directions = directions or random_sweep(REFLECTIONS, rng)
    low = np.maximum(where.min(axis=0) - MARGIN, 0)
    high = np.minimum(where.max(axis=0) + 1 + MARGIN, grid.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    inside = np.ascontiguousarray(probabilities[(slice(None), *box)])
    found = most_probable(inside)
    factors = _Factors(
        Volume(found, grid.voxel_size_um, grid.centre - low), names, mu, directions, tracing
    )
    reference = factors(found)
    if reference is None:
        return None
    size = float(np.cbrt(grid.voxel_volume_um3))
    bodies = (found != 0, found == factors.crystal) if drawing.surfaces_um > 0 else ()
    errors, moved, volumes = [], [], []
    todo = drawing.draws + MOVES * len(bodies)
    with Progress(todo, "Drawing labels", bar=drawing.progress) as bar:
        for drawn in plausible_labels(inside, size, drawing.draws, rng, TEMPERATURE):
            labels = without_further_bodies(drawn, found, factors.crystal)
            errors.append(factors.error(labels, reference))
            volumes.append(np.count_nonzero(labels == factors.crystal) * grid.voxel_volume_um3)
            bar.update()
        for body in bodies:
            for labels in moved_surfaces(found, body, size, MOVES, rng):
                moved.append(factors.error(labels, reference))
                bar.update()
    there = np.isfinite(errors)
    if not there.any():
        return None
    by_draws = float(np.nanmean(np.square(errors)))
    by_moves = float(np.nanmean(np.square(moved))) if np.isfinite(moved).any() else 0.0
    # surfaces moved by about a voxel here, and factors change in proportion
    by_moves *= len(bodies) * (drawing.surfaces_um / size) ** 2
    return LabelUncertainty(
        float(np.sqrt(by_draws + by_moves)),
        np.array(errors)[there],
        float(np.std(reference) / np.mean(reference)),
        np.array(volumes)[there],
    )
