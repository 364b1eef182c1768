"""Absorption factors (transmissions) of reflections, with their errors.

    A_h = (1/V) int_V exp(-int mu ds along the incident path - int mu ds along the exit path) dV

(International Tables for Crystallography C, 6.3.3.1); V is the illuminated part of the crystal. The
integral over V is a mean over stratified points of the crystal. A depends on two directions only.
Therefore the rays of every point are traced for the nodes of a direction table: T_in (incident
nodes x points) and T_out (exit nodes x points). A at the nodes is the matrix product T_in T_out^T /
n, and log A is interpolated for each reflection. If there are few reflections, their own rays are
traced instead.

Two levels save most of the rays. log A varies quickly with direction, but this variation is nearly
the same for every fair choice of points. Therefore a fine grid is traced from some of the points
only, and a coarse grid from all points gives the correction: log A = log A_some (fine grid) + log
(A_all / A_some) (coarse grid).

The error is measured in every run. (1) For random reflections A is computed by exact voxel
traversal from the same points (from a part of them if there are very many). The mean of the
relative differences is a common scale factor, caused by marching, and A is divided by it; the
spread of the differences is the error of marching and interpolation. (2) The differences within
pairs of points give an unbiased estimate of the error of taking points instead of the whole
crystal. The sum of both in quadrature is compared with the tolerance, and the grid or the points
are refined until it is small enough. Where rays are traced for the reflections themselves and the
steps of marching are too long, as in a plate of few voxels, exact rays take their place.

The estimate (2) is a mean over all choices of points, but one choice is made, and all reflections
share it: their errors are correlated. So the rms error over the reflections of a run is distributed
about as the root of chi^2 / nu. Here nu = tr(C)^2 / tr(C^2) is the number of independent errors
among the reflections, and C their covariance, which the same pairs give (Satterthwaite, Biometrics
Bull. 2 (1946) 110). The error that is quoted is one that 95 % of the choices of points stay below.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2
from threadpoolctl import threadpool_limits

from anacor_dials.absorption.attenuating_body import AttenuatingBody, VoxelBody
from anacor_dials.absorption.closed_surface import SurfaceSample
from anacor_dials.absorption.computation import (
    ARC_TO_EXIT_STEP,
    Computation,
    Estimate,
)
from anacor_dials.absorption.convex_solid import ConvexSolid
from anacor_dials.absorption.direction_table import TableSum
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.mean_paths import mean_paths
from anacor_dials.absorption.node_sums import SMALLEST_TRANSMISSION
from anacor_dials.absorption.ray_tracing import use_threads
from anacor_dials.absorption.solid_tracing import SolidBody
from anacor_dials.absorption.surface_tracing import SurfaceBody
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.volumes import LabelVolume

logger = logging.getLogger("dials.anacor_dials.absorption.factors")

MOST_ROUNDS = 5  # of refinement; two are usual
# with fewer reflections traced exactly, their mean says little about the scale
FEWEST_FOR_SCALE = 8
CONFIDENCE = 0.95  # of the quoted error
# The error of splines falls as the third or fourth power of the step. At kinks it falls as the step
# itself, at jumps not at all. If it falls more slowly than this power, a finer grid is useless.
LEAST_POWER_OF_STEP = 1.5


@dataclass(frozen=True)
class Accuracy:
    """How the factors were computed and how far they are from exact tracing.

    All errors are relative.

    Attributes
    ----------
    method : str
        "table", "direct" or "exact".
    device : str
        "cpu" or "cuda".
    n_points : int
        The number of points of the crystal.
    n_directions : int
        The number of directions that were traced from them.
    exit_step_deg, incident_step_deg : float or None
        The steps of the fine grid, deg; None without a table.
    n_checked : int
        The number of reflections that were traced exactly.
    traced_error, largest_traced_error : float
        The rms and the largest difference from exact tracing from the same points.
    point_error : float
        The expected rms error of taking points instead of the whole crystal.
    n_independent : float
        How many independent errors of points the reflections have among them.
    tolerance : float
        What was asked for.
    seconds : float
        How long it took.
    """

    method: str
    device: str
    n_points: int
    n_directions: int
    exit_step_deg: float | None
    incident_step_deg: float | None
    n_checked: int
    traced_error: float
    largest_traced_error: float
    point_error: float
    tolerance: float
    seconds: float
    n_independent: float = math.inf

    @property
    def point_error_limit(self) -> float:
        """The rms error of points that 95 % of the choices of points stay below."""
        if not math.isfinite(self.n_independent):
            return self.point_error
        nu = max(self.n_independent, 1.0)
        return self.point_error * math.sqrt(float(chi2.ppf(CONFIDENCE, nu)) / nu)

    @property
    def expected_error(self) -> float:
        """traced_error and point_error in quadrature."""
        return math.hypot(self.traced_error, self.point_error)

    @property
    def rms_error(self) -> float:
        """The rms error that is not exceeded in 95 % of runs."""
        return math.hypot(self.traced_error, self.point_error_limit)

    @property
    def reached(self) -> bool:
        """Whether the expected rms error is within the tolerance."""
        return self.expected_error <= self.tolerance

    def __str__(self) -> str:
        grid = (
            f" on a grid of {self.incident_step_deg:.1f} / {self.exit_step_deg:.1f} deg"
            if self.exit_step_deg is not None
            else ""
        )
        return (
            f"{self.method}: {self.n_points} points, {self.n_directions} directions{grid}; rms error "
            f"{100 * self.expected_error:.3f} % expected, {100 * self.rms_error:.3f} % at most (with 95 %; "
            f"rays and grid {100 * self.traced_error:.3f} % on "
            f"{self.n_checked} reflections traced exactly, worst "
            f"{100 * self.largest_traced_error:.3f} %; points {100 * self.point_error:.3f} %), "
            f"tolerance {100 * self.tolerance:.3f} %, {self.seconds:.1f} s on {self.device}"
        )


@dataclass(frozen=True, eq=False)
class AbsorptionFactors:
    """Transmissions of n reflections.

    Attributes
    ----------
    transmission : array (n,)
        A, 0 < A <= 1.
    standard_error : array (n,)
        The standard error of A, absolute.
    mean_path_um : array (n, n_labels)
        The mean path in each material, incident and exit together, weighted with the transmission,
        um: -d ln A / d mu. Zero for the background.
    accuracy : Accuracy
    checked : array (m,) of int
        Indices of the reflections that were traced exactly.
    deviation : array (m,)
        A / A_exact - 1 of these reflections.
    table : TableSum or None
        log A as a function of directions, if a table was made.
    """

    transmission: FloatArray
    standard_error: FloatArray
    mean_path_um: FloatArray
    accuracy: Accuracy
    checked: NDArray[np.int64]
    deviation: FloatArray
    table: TableSum | None = None


def absorption_factors(
    labels: LabelVolume,
    mu_per_um: ArrayLike,
    directions: Directions,
    tracing: Tracing | None = None,
    *,
    progress: bool = False,
) -> AbsorptionFactors:
    """Transmissions of reflections through a labelled sample.

    Parameters
    ----------
    labels : LabelVolume
        The sample.
    mu_per_um : array (n_labels,)
        mu of each material, 1/um.
    directions : Directions
        The directions of n reflections.
    tracing : Tracing, optional
        Tolerance, method, beam, memory and device; the defaults of the class if not given.
    progress : bool
        Whether to show progress bars.

    Raises
    ------
    ValueError
        If mu does not fit the labels, the volume has no crystal, the beam misses the crystal, or
        there are no reflections.

    Examples
    --------
    A reflection straight through a cube of crystal, 30 um on edge: exp(-30 mu).

    >>> from anacor_dials.sample.volumes import LabelVolume
    >>> cube = LabelVolume(np.full((30, 30, 30), 3, dtype=np.uint8), voxel_size_um=1.0)
    >>> through = Directions.of_one_sweep([[0, 0, 1]], [[0, 0, -1]])
    >>> factors = absorption_factors(cube, [0, 0, 0, 0.02], through)
    >>> print(f"{factors.transmission[0]:.3f}, {np.exp(-30 * 0.02):.3f}")
    0.549, 0.549
    """
    tracing = tracing or Tracing()
    return _of_body(VoxelBody(labels, mu_per_um, tracing), directions, tracing, progress)


def absorption_factors_of_solid(
    solid: ConvexSolid,
    mu_per_um: float,
    directions: Directions,
    tracing: Tracing | None = None,
    *,
    progress: bool = False,
) -> AbsorptionFactors:
    """Transmissions of reflections of a crystal with plane faces, without voxels.

    Paths are exact; the errors are those of points and, with a table, of interpolation. They are
    computed on the CPU.

    Parameters
    ----------
    solid : ConvexSolid
        The crystal, in the frame of the directions.
    mu_per_um : float
        1/um.
    directions : Directions
        The directions of n reflections.
    tracing : Tracing, optional
        Tolerance, method, beam and memory; the defaults of the class if not given.
    progress : bool
        Whether to show progress bars.

    Raises
    ------
    ValueError
        If mu is not a number >= 0, the beam misses the crystal, or there are no reflections.

    Examples
    --------
    A reflection straight through a cube, 30 um on edge: exp(-30 mu).

    >>> cube = ConvexSolid(np.concatenate([np.eye(3), -np.eye(3)]), 6 * [15.0])
    >>> through = Directions.of_one_sweep([[0, 0, 1]], [[0, 0, -1]])
    >>> print(f"{absorption_factors_of_solid(cube, 0.02, through).transmission[0]:.3f}")
    0.549
    """
    tracing = tracing or Tracing()
    if not (math.isfinite(mu_per_um) and mu_per_um >= 0):
        raise ValueError(f"mu of the crystal is {mu_per_um} /um; it must be a number >= 0.")
    return _of_body(SolidBody(solid, mu_per_um), directions, tracing, progress)


def absorption_factors_of_surfaces(
    sample: SurfaceSample,
    mu_per_um: ArrayLike,
    directions: Directions,
    tracing: Tracing | None = None,
    *,
    progress: bool = False,
) -> AbsorptionFactors:
    """Transmissions of reflections through a sample of solids of any shape, without voxels.

    Paths are exact for the triangles of the surfaces; the errors are those of points and, with a
    table, of interpolation. They are computed on the CPU.

    Parameters
    ----------
    sample : SurfaceSample
        The surfaces of the materials, in the frame of the directions.
    mu_per_um : array (n_labels,)
        mu of each label, the background first, 1/um.
    directions : Directions
        The directions of n reflections.
    tracing : Tracing, optional
        Tolerance, method, beam and memory; the defaults of the class if not given.
    progress : bool
        Whether to show progress bars.

    Raises
    ------
    ValueError
        If mu does not fit the sample or is not >= 0, solids of the crystal overlap each other, the
        beam misses the crystal, or there are no reflections.
    """
    tracing = tracing or Tracing()
    mu = np.asarray(mu_per_um, dtype=np.float64)
    if mu.shape != (len(sample.names),) or not np.all(np.isfinite(mu) & (mu >= 0)):
        raise ValueError(
            f"mu is {mu}; {len(sample.names)} numbers >= 0 are needed, for {', '.join(sample.names)}."
        )
    return _of_body(SurfaceBody(sample, mu), directions, tracing, progress)


def _of_body(
    body: AttenuatingBody, directions: Directions, tracing: Tracing, progress: bool
) -> AbsorptionFactors:
    use_threads(tracing.nproc)
    # sums that BLAS divides among its threads differ in their last digits with their number
    with threadpool_limits(limits=1, user_api="blas"):
        return _refined(Computation(body, directions, tracing, progress))


def _refined(run: Computation) -> AbsorptionFactors:
    """The factors, with points and grid refined until the tolerance is reached."""
    start = time.perf_counter()
    tracing = run.tracing
    checked = np.sort(run.rng.permutation(len(run.directions))[: tracing.check_reflections])
    run.find_importance()
    step = run.first_step_deg()
    n_points = run.first_points(step)
    wanted_error = math.inf  # of a grid that was refined, if refinement helps
    for round_ in range(MOST_ROUNDS):
        points = run.draw(n_points)
        n_points = len(points)
        found = run.transmissions(points, step)
        deviation = np.zeros(len(checked))
        if not run.exact_rays:
            exact = run.reference(points, run.directions[checked])
            deviation = found.transmission[checked] / exact - 1.0
        found, deviation = _without_common_scale(found, deviation)
        accuracy = _accuracy(run, found, n_points, step, deviation, time.perf_counter() - start)
        logger.info("%s", accuracy)
        if accuracy.reached or round_ == MOST_ROUNDS - 1:
            break
        more_points = run.more_points(n_points, accuracy.point_error)
        if run.table_in_vain(step, accuracy.traced_error, n_points, more_points):
            break
        finer = step if found.grid is None else run.finer_step_deg(step, accuracy.traced_error)
        stays = (more_points, finer) == (n_points, step)
        useless = run.has_edges and accuracy.traced_error > wanted_error
        last_but_one = round_ == MOST_ROUNDS - 2
        if run.may_trace_exactly(found.grid, accuracy.traced_error):
            run.exact_rays = True
        elif (stays or useless or last_but_one) and run.may_leave_tables(found.grid):
            run.tables_help = False
        elif stays or useless:
            break
        wanted_error = math.inf
        if finer < step:
            wanted_error = accuracy.traced_error * (finer / step) ** LEAST_POWER_OF_STEP
        n_points, step = more_points, finer
    if not accuracy.reached:
        logger.warning("%s", _not_reached(accuracy, tracing))
    transmission = np.clip(found.transmission, SMALLEST_TRANSMISSION, 1.0)
    return AbsorptionFactors(
        transmission,
        transmission * np.hypot(found.relative_error, accuracy.traced_error),
        mean_paths(run),
        accuracy,
        checked,
        deviation,
        found.table,
    )


def _not_reached(accuracy: Accuracy, tracing: Tracing) -> str:
    """The sentence on a tolerance that was not reached, with the way out."""
    what = (
        f"The tolerance of {100 * tracing.tolerance:.3f} % was not reached: the rms error is "
        f"{100 * accuracy.expected_error:.3f} %. "
    )
    if accuracy.method == "table" and accuracy.traced_error > accuracy.point_error:
        return what + (
            "A table of directions does not follow the transmission where it changes abruptly: at the edge of "
            "a small beam, or where a flat crystal is seen edge-on. Use absorption.method=direct, or a larger "
            "absorption.tolerance."
        )
    return what + "Allow more memory (absorption.memory) or a larger absorption.tolerance."


def _without_common_scale(found: Estimate, deviation: FloatArray) -> tuple[Estimate, FloatArray]:
    """The transmissions divided by 1 + the mean deviation, and the deviations that remain."""
    if len(deviation) < FEWEST_FOR_SCALE:
        return found, deviation
    scale = 1.0 + float(np.mean(deviation))
    table = None if found.table is None else found.table.scaled(-math.log(scale))
    scaled = replace(found, transmission=found.transmission / scale, table=table)
    return scaled, (1.0 + deviation) / scale - 1.0


def _accuracy(
    run: Computation,
    found: Estimate,
    n_points: int,
    step_deg: float,
    deviation: FloatArray,
    seconds: float,
) -> Accuracy:
    method = "table" if found.grid is not None else "direct"
    return Accuracy(
        method="exact" if run.exact_rays else method,
        device=run.engine.device,
        n_points=n_points,
        n_directions=found.n_directions,
        exit_step_deg=None if found.grid is None else found.grid[1].step_deg,
        incident_step_deg=None if found.grid is None else ARC_TO_EXIT_STEP * step_deg,
        n_checked=len(deviation),
        traced_error=float(np.sqrt(np.sum(deviation**2) / max(1, len(deviation) - 1))),
        largest_traced_error=float(np.max(np.abs(deviation))),
        point_error=float(np.sqrt(np.mean(found.relative_error**2))),
        tolerance=run.tracing.tolerance,
        seconds=seconds,
        n_independent=run.n_independent,
    )
