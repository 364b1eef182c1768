"""Absorption factors (transmissions) of reflections, with their errors.

    A_h = (1/V) int_V exp(-int mu ds along the incident path - int mu ds along the exit path) dV

(International Tables for Crystallography C, 6.3.3.1), V the illuminated part of the crystal. The
integral over V is a mean over stratified points of the crystal. As A depends on two directions only,
the rays of every point are traced for the nodes of a direction table, T_in (incident nodes x points)
and T_out (exit nodes x points), and A at the nodes is the matrix product T_in T_out^T / n; log A is
interpolated to each reflection. For few reflections their own rays are traced instead.

Two levels save most of the rays: log A varies quickly with direction but alike for every fair choice
of points, so a fine grid is traced from some points only, and on a coarse grid all points correct it:
log A = log A_some (fine grid) + log (A_all / A_some) (coarse grid).

The error is measured in every run. (1) For random reflections A is computed by exact voxel traversal
from the same points (from a part of them where they are very many). The mean of the differences, a
common scale that marching leaves, is taken out; their spread is the error of marching and
interpolation. (2) The spread of the pairs of points gives the error of taking points instead of the
whole crystal, without bias. Their sum in quadrature is compared with the tolerance, and the grid or the
points are refined until it holds.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from anacor_dials.absorption import ray_tracing
from anacor_dials.absorption.crystal_points import CrystalPoints, SampledPoints
from anacor_dials.absorption.direction_table import DirectionTable, ExitGrid, IncidentArc, TableSum
from anacor_dials.absorption.ray_tracing import AttenuatingVolume
from anacor_dials.sample.frames import FloatArray, unit
from anacor_dials.sample.volumes import LabelVolume

logger = logging.getLogger("dials.anacor.absorption")

SMALLEST_TRANSMISSION = 1e-30  # so that a logarithm exists; no such reflection is ever measured
PILOT_POINTS = 2048
PILOT_REFLECTIONS = 32
# Where points matter is looked at with so many points and reflections; no place counts for less than
# the floor, relative to the mean.
IMPORTANCE_POINTS = 8192
IMPORTANCE_REFLECTIONS = 96
LEAST_IMPORTANCE = 0.1
PATH_POINTS = 512
PATH_STEP_DEG = 10.0
# Shares of the tolerance, in quadrature; what is left is for chance.
POINT_SHARE = 0.6
GRID_SHARE = 0.75
POINT_POWER = 1.3  # points ~ error^-1.3, measured on crystals of 10^6 voxels
STEP_AT_TOLERANCE_1E3 = 5.5  # deg between exit nodes of the fine grid at a tolerance of 0.1 %
ARC_TO_EXIT_STEP = 1.25
# The fine grid takes one point in FINE_SHARE, from so many points on and never more than
# MOST_FINE_POINTS; the coarse grid's step is COARSE_RATIO times as wide.
FINE_SHARE = 3
TWO_LEVELS_FROM = 6144
MOST_FINE_POINTS = 100_000
COARSE_RATIO = 2.0
LARGEST_CHUNK = 8192
MOST_EXACT_POINTS = 15_000
MOST_POINTS = 2_000_000
# Points that no beam reaches are left out: looked at from so many directions of each sweep, through a
# beam wider by the margin, as the directions between them are not looked at.
LIT_DIRECTIONS = 72
LIT_MARGIN = 1.1
LEAST_LIGHT = 1e-4
MOST_ROUNDS = 5
FEWEST_FOR_SCALE = 8  # reflections traced exactly, to take the common scale of marching out

Grid = tuple[tuple[IncidentArc, ...], ExitGrid]

METHODS = ("auto", "table", "direct", "exact")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class BeamProfile:
    """The beam's cross-section at the sample, for partly illuminated crystals.

    shape: "tophat" (a rectangle) or "gaussian". size_um: full width of the rectangle, or full width
    at half maximum, (along the rotation axis, across it). offset_um: where its middle is, from the
    volume's origin, along the axis and along to_source x axis.
    """

    shape: str
    size_um: tuple[float, float]
    offset_um: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.shape not in ("tophat", "gaussian"):
            raise ValueError(f"The beam profile is {self.shape!r}; it is tophat or gaussian.")
        if not all(math.isfinite(s) and s > 0 for s in self.size_um):
            raise ValueError(f"The beam size is {self.size_um} um; give two lengths > 0.")
        if not all(math.isfinite(s) for s in self.offset_um):
            raise ValueError(f"The beam offset is {self.offset_um} um; give two lengths.")

    def enlarged(self, factor: float) -> BeamProfile:
        """The same beam, wider by a factor."""
        size = (self.size_um[0] * factor, self.size_um[1] * factor)
        return BeamProfile(self.shape, size, self.offset_um)

    def weights(
        self, positions_um: FloatArray, to_source: FloatArray, rotation_axis: ArrayLike
    ) -> NDArray[np.float32]:
        """Relative intensity (n, m), 0 to 1, at positions (m, 3) for directions to the source (n, 3)."""
        axis = unit(rotation_axis)
        along = axis - to_source * (to_source @ axis)[:, None]
        along /= np.linalg.norm(along, axis=1, keepdims=True)
        across = np.cross(to_source, along)
        u = (along @ positions_um.T - self.offset_um[0]) / self.size_um[0]
        v = (across @ positions_um.T - self.offset_um[1]) / self.size_um[1]
        if self.shape == "tophat":
            return ((np.abs(u) <= 0.5) & (np.abs(v) <= 0.5)).astype(np.float32)
        return np.exp(-4 * math.log(2) * (u**2 + v**2)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Directions:
    """Where the beam comes from and where each reflection leaves, in the tomo frame.

    to_source, exit: (n, 3) unit vectors; sweep: (n,) index of each reflection's sweep;
    rotation_axes: (n_sweeps, 3) the sweeps' rotation axes.
    """

    to_source: FloatArray
    exit: FloatArray
    sweep: NDArray[np.int64]
    rotation_axes: FloatArray

    def __post_init__(self) -> None:
        n = len(self.to_source)
        axes = np.asarray(self.rotation_axes, dtype=np.float64).reshape(-1, 3)
        object.__setattr__(self, "rotation_axes", axes)
        object.__setattr__(self, "sweep", np.asarray(self.sweep, dtype=np.int64))
        if self.to_source.shape != (n, 3) or self.exit.shape != (n, 3) or self.sweep.shape != (n,):
            raise ValueError(
                f"Directions of shapes {self.to_source.shape}, {self.exit.shape} and sweeps "
                f"{self.sweep.shape} do not belong together; (n, 3), (n, 3) and (n,) are needed."
            )
        for vectors, what in ((self.to_source, "to the source"), (self.exit, "of exit")):
            if n and not np.all(np.abs(np.linalg.norm(vectors, axis=1) - 1.0) < 1e-6):
                raise ValueError(f"The directions {what} are not all unit vectors.")
        if n and (self.sweep.min() < 0 or self.sweep.max() >= len(axes)):
            raise ValueError(
                f"A reflection belongs to sweep {self.sweep.max()} of {len(axes)} sweeps."
            )

    @classmethod
    def of_one_sweep(
        cls, to_source: ArrayLike, exits: ArrayLike, rotation_axis: ArrayLike = (1.0, 0.0, 0.0)
    ) -> Directions:
        """All reflections in one sweep; the vectors (n, 3) are normalised."""
        s = unit(np.asarray(to_source, dtype=np.float64).reshape(-1, 3))
        e = unit(np.asarray(exits, dtype=np.float64).reshape(-1, 3))
        return cls(s, e, np.zeros(len(s), dtype=np.int64), np.array([rotation_axis]))

    def __len__(self) -> int:
        return len(self.to_source)

    def __getitem__(self, index: Any) -> Directions:
        return Directions(
            self.to_source[index], self.exit[index], self.sweep[index], self.rotation_axes
        )


@dataclass(frozen=True)
class Accuracy:
    """How the factors were computed and how far they are from exact tracing.

    Errors are relative (rms). traced_error: against exact tracing from the same points, on n_checked
    reflections; point_error: of taking n_points points; rms_error: both in quadrature.
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

    @property
    def rms_error(self) -> float:
        return math.hypot(self.traced_error, self.point_error)

    @property
    def reached(self) -> bool:
        return self.rms_error <= self.tolerance

    def __str__(self) -> str:
        grid = (
            f" on a grid of {self.incident_step_deg:.1f} / {self.exit_step_deg:.1f} deg"
            if self.exit_step_deg is not None
            else ""
        )
        return (
            f"{self.method}: {self.n_points} points, {self.n_directions} directions{grid}; rms error "
            f"{100 * self.rms_error:.3f} % (rays and grid {100 * self.traced_error:.3f} % on "
            f"{self.n_checked} reflections traced exactly, worst "
            f"{100 * self.largest_traced_error:.3f} %; points {100 * self.point_error:.3f} %), "
            f"tolerance {100 * self.tolerance:.3f} %, {self.seconds:.1f} s on {self.device}"
        )


@dataclass(frozen=True, eq=False)
class AbsorptionFactors:
    """Transmissions of reflections.

    transmission: (n,), 0 < A <= 1; standard_error: (n,), absolute; mean_path_um: (n, n_labels), the
    absorption-weighted mean path in each material, incident and exit together: -d ln A / d mu; zero
    for the background. checked, deviation: indices (m,) of the reflections that were traced exactly
    and A / A_exact - 1 (m,) of them. table: log A as a function of directions, where one was made.
    """

    transmission: FloatArray
    standard_error: FloatArray
    mean_path_um: FloatArray
    accuracy: Accuracy
    checked: NDArray[np.int64]
    deviation: FloatArray
    table: TableSum | None = None


def select_device(device: str) -> ModuleType:
    """The module that traces rays on a device: auto (a GPU where CuPy finds one), cpu or cuda.

    Raises ValueError where cuda is asked for and not there.
    """
    if device not in DEVICES:
        raise ValueError(f"The device is {device!r}; it is one of {', '.join(DEVICES)}.")
    if device == "cpu":
        return ray_tracing
    from anacor_dials.absorption import ray_tracing_cuda

    reason = ray_tracing_cuda.why_unavailable()
    if reason is None:
        return ray_tracing_cuda
    if device == "cuda":
        raise ValueError(f"device=cuda needs CuPy and an NVIDIA GPU: {reason}. Use device=cpu.")
    return ray_tracing


def absorption_factors(
    labels: LabelVolume,
    mu_per_um: ArrayLike,
    directions: Directions,
    *,
    tolerance: float = 1e-3,
    method: str = "auto",
    beam: BeamProfile | None = None,
    check_reflections: int = 64,
    memory_gb: float = 2.0,
    nproc: int | None = None,
    device: str = "auto",
    rng: np.random.Generator | None = None,
    progress: bool = False,
) -> AbsorptionFactors:
    """Transmissions of reflections through a labelled sample.

    labels: the sample; mu_per_um: (n_labels,) 1/um; directions: of n reflections; tolerance: wanted
    relative rms error; method: "auto", "table", "direct" (the reflections' own rays, marched) or
    "exact" (the same, by voxel traversal); beam: None where the beam bathes the crystal;
    memory_gb: for tables and rays, above what the volume itself takes; rng: chooses the points
    (default seed 0).

    Raises ValueError for mu that does not fit the labels, a volume without crystal, a beam that
    misses the crystal, or a tolerance that is no small positive number.
    """
    if not 1e-5 <= tolerance <= 0.1:
        raise ValueError(
            f"The tolerance is {tolerance:g}; relative errors from 1e-5 to 0.1 can be asked for."
        )
    if method not in METHODS:
        raise ValueError(f"The method is {method!r}; it is one of {', '.join(METHODS)}.")
    if not memory_gb >= 0.1:
        raise ValueError(f"The memory is {memory_gb} GB; at least 0.1 GB is needed.")
    rng = rng or np.random.default_rng(0)
    engine = select_device(device)
    threads = ray_tracing.use_threads(nproc)
    with threadpool_limits(limits=threads, user_api="blas"):
        mu = np.asarray(mu_per_um, dtype=np.float64)
        if mu.shape == labels.counts().shape:  # what is not there shall not decide about steps
            mu = np.where(labels.counts() > 0, mu, 0.0)
        volume = ray_tracing.prepare_volume(
            labels,
            mu,
            step_optical_depth=ray_tracing.STEP_OPTICAL_DEPTH * math.sqrt(tolerance / 1e-3),
        )
        points = CrystalPoints(labels)
        run = _Computation(
            labels, volume, points, directions, beam, engine, memory_gb * 1e9, rng, progress
        )
        return run.factors(tolerance, method, check_reflections)


class _Computation:
    """One call of absorption_factors: what all its steps share."""

    def __init__(
        self,
        labels: LabelVolume,
        volume: AttenuatingVolume,
        crystal: CrystalPoints,
        directions: Directions,
        beam: BeamProfile | None,
        engine: ModuleType,
        memory_bytes: float,
        rng: np.random.Generator,
        progress: bool,
    ) -> None:
        self.labels = labels
        self.volume = volume
        self.crystal = crystal
        self.directions = directions
        self.beam = beam
        self.engine = engine
        self.memory_bytes = memory_bytes
        self.rng = rng
        self.progress = progress
        self.importance: FloatArray | None = None

    # ---- the whole -------------------------------------------------------------------------------

    def factors(self, tolerance: float, method: str, check_reflections: int) -> AbsorptionFactors:
        start = time.perf_counter()
        n = len(self.directions)
        if n == 0:
            raise ValueError("There are no reflections with directions to compute factors for.")
        checked = np.sort(self.rng.permutation(n)[:check_reflections])
        self.importance = self._importance()
        n_points = self._points_for(tolerance)
        step = min(max(STEP_AT_TOLERANCE_1E3 * (tolerance / 1e-3) ** 0.7, 1.5), 15.0)
        table: TableSum | None = None
        for round_ in range(MOST_ROUNDS):
            points = self._draw(n_points)
            n_points = len(points)
            parts = _interleaved(n_points, _n_parts(n_points))
            grid = self._grid(step) if self._use_table(method, n_points, step) else None
            if grid is None:
                transmission, relative = self._direct(points, exact=method == "exact")
                n_directions = 2 * n
            else:
                table, relative_table, n_directions = self._tables(points, parts, grid)
                transmission = np.exp(table(*_arguments(self.directions)))
                relative = np.exp(0.5 * relative_table(*_arguments(self.directions)))
            deviation = np.zeros(len(checked))
            if method != "exact":
                exact = self._reference(points, self.directions[checked])
                deviation = transmission[checked] / exact - 1.0
            if len(checked) >= FEWEST_FOR_SCALE:
                scale = 1.0 + float(np.mean(deviation))
                transmission = transmission / scale
                deviation = (1.0 + deviation) / scale - 1.0
                if table is not None:
                    table = table.scaled(-math.log(scale))
            accuracy = Accuracy(
                method="exact" if method == "exact" else "direct" if grid is None else "table",
                device=self.engine.DEVICE,
                n_points=n_points,
                n_directions=n_directions,
                exit_step_deg=None if grid is None else grid[1].step_deg,
                incident_step_deg=None if grid is None else ARC_TO_EXIT_STEP * step,
                n_checked=len(checked),
                traced_error=float(np.sqrt(np.sum(deviation**2) / max(1, len(checked) - 1))),
                largest_traced_error=float(np.max(np.abs(deviation))),
                point_error=float(np.sqrt(np.mean(relative**2))),
                tolerance=tolerance,
                seconds=time.perf_counter() - start,
            )
            logger.info("%s", accuracy)
            if accuracy.reached or round_ == MOST_ROUNDS - 1:
                break
            next_points, next_step = self._refined(accuracy, step, tolerance)
            if (next_points, next_step) == (n_points, step):
                break
            n_points, step = next_points, next_step
        if not accuracy.reached:
            logger.warning(
                "The tolerance of %.3f %% was not reached: the rms error is %.3f %%. "
                "Allow more memory (absorption.memory) or a larger absorption.tolerance.",
                100 * tolerance,
                100 * accuracy.rms_error,
            )
        transmission = np.clip(transmission, SMALLEST_TRANSMISSION, 1.0)
        total_error = transmission * np.hypot(relative, accuracy.traced_error)
        paths = self._mean_paths()
        return AbsorptionFactors(
            transmission, total_error, paths, accuracy, checked, deviation, table
        )

    def _points_for(self, tolerance: float) -> int:
        """How many points bring the points' error to its share of the tolerance, from a pilot."""
        n = len(self.directions)
        chosen = self.directions[self.rng.permutation(n)[:PILOT_REFLECTIONS]]
        points = self._draw(PILOT_POINTS)
        exact, error = self._exact(points, chosen)
        pilot_error = float(np.sqrt(np.mean((error / exact) ** 2)))
        wanted = PILOT_POINTS * (pilot_error / (POINT_SHARE * tolerance)) ** POINT_POWER
        return 2 * math.ceil(min(max(wanted, PILOT_POINTS), MOST_POINTS) / 2)

    def _refined(self, accuracy: Accuracy, step: float, tolerance: float) -> tuple[int, float]:
        """More points, a finer grid or both, for the part of the error that is too large."""
        n_points = accuracy.n_points
        if accuracy.point_error > POINT_SHARE * tolerance * 1.2:
            factor = (accuracy.point_error / (POINT_SHARE * tolerance)) ** POINT_POWER
            n_points = min(2 * math.ceil(n_points * max(1.2, factor) / 2), MOST_POINTS)
        if accuracy.traced_error > GRID_SHARE * tolerance and accuracy.method == "table":
            factor = accuracy.traced_error / (GRID_SHARE * tolerance)
            finer = step / min(2.0, max(1.2, factor**0.8))
            if self._table_bytes(self._grid(finer)) < 0.5 * self.memory_bytes:
                step = finer
        return n_points, step

    # ---- points and rays -------------------------------------------------------------------------

    def _importance(self) -> FloatArray:
        """How densely points should lie in stretches of equal volume of the crystal (k,).

        As the rms over reflections of f(x) / A, f the transmission to and from a point, A its mean: what
        one point's chance place does to log A is in proportion to it. In a strongly absorbing crystal
        that is its skin; without absorption it is the same everywhere. Taken for the whole crystal in the
        beam: few of these points, or none, lie in a thin one.
        """
        points = self.crystal.draw(IMPORTANCE_POINTS, self.rng)
        chosen = self.rng.permutation(len(self.directions))[:IMPORTANCE_REFLECTIONS]
        squares = np.zeros(IMPORTANCE_POINTS // 2)
        for start in range(0, len(chosen), 16):
            some = self.directions[chosen[start : start + 16]]
            f = self.engine.march_transmission(self.volume, points.voxels, some.to_source)
            f = f * self.engine.march_transmission(self.volume, points.voxels, some.exit)
            f = self.engine.to_numpy(f).astype(np.float64)
            f /= np.maximum(f.mean(axis=1, keepdims=True), SMALLEST_TRANSMISSION)
            squares += (f**2).sum(axis=0).reshape(-1, 2).mean(axis=1)
        importance = np.sqrt(squares)
        smooth = np.convolve(np.pad(importance, 1, mode="edge"), np.ones(3) / 3, "valid")
        floored = np.maximum(smooth, LEAST_IMPORTANCE * smooth.mean() + SMALLEST_TRANSMISSION)
        # in steps of a tenth, so that the last digits of another device lead to the same points
        return 2.0 ** (np.round(8 * np.log2(floored)) / 8)

    def _draw(self, n: int) -> SampledPoints:
        """About n points of the part of the crystal that the beam lights at some angle.

        Pairs that it never lights add nothing to any sum and are left out; so more are drawn.
        """
        if self.beam is None:
            return self.crystal.draw(n, self.rng, self.importance)
        beam = self.beam.enlarged(LIT_MARGIN)
        n_drawn = n
        while True:
            points = self.crystal.draw(n_drawn, self.rng, self.importance)
            lit = np.zeros(len(points), dtype=bool)
            positions = self.labels.position_um(points.voxels)
            for sweep, axis in enumerate(self.directions.rotation_axes):
                sources = self.directions.to_source[self.directions.sweep == sweep]
                step = max(1, len(sources) // LIT_DIRECTIONS)
                for source in sources[::step]:
                    lit |= beam.weights(positions, source[None], axis)[0] > LEAST_LIGHT
            pair = np.repeat(lit[::2] | lit[1::2], 2)
            share = float(pair.mean())
            if pair.sum() >= 0.8 * n or n_drawn >= MOST_POINTS:
                _require_light(np.array([share]))
                return points[pair]
            n_drawn = 2 * math.ceil(min(1.1 * n_drawn / max(share, 1e-3), MOST_POINTS) / 2)

    def _weights(
        self, points: SampledPoints, directions: FloatArray, sweep: int
    ) -> NDArray[np.float32]:
        """What points count, times the beam's intensity there, for directions to the source: (n, m)."""
        assert self.beam is not None
        positions = self.labels.position_um(points.voxels)
        axis = self.directions.rotation_axes[sweep]
        return self.beam.weights(positions, directions, axis) * points.weights.astype(np.float32)

    def _reflection_weights(
        self, points: SampledPoints, directions: Directions
    ) -> NDArray[np.float32]:
        """What m points count for n reflections: (n, m), or (1, m) for a bathing beam."""
        if self.beam is None:
            return points.weights.astype(np.float32)[None]
        weights = np.empty((len(directions), len(points)), dtype=np.float32)
        for sweep in np.unique(directions.sweep):
            chosen = directions.sweep == sweep
            weights[chosen] = self._weights(points, directions.to_source[chosen], int(sweep))
        _require_light(weights.sum(axis=1))
        return weights

    def _exact(
        self, points: SampledPoints, directions: Directions
    ) -> tuple[FloatArray, FloatArray]:
        exact, error = np.empty(len(directions)), np.empty(len(directions))
        size = len(directions)
        if self.beam is not None:  # its weights are (reflections, points) in double precision
            size = max(1, int(0.1 * self.memory_bytes / (8 * len(points))))
        for start in range(0, len(directions), size):
            part = slice(start, start + size)
            some = directions[part]
            weights = self._reflection_weights(points, some)
            exact[part], error[part] = self.engine.exact_transmission(
                self.volume, points.voxels, some.to_source, some.exit, weights
            )
        return np.maximum(exact, SMALLEST_TRANSMISSION), error

    def _reference(self, points: SampledPoints, directions: Directions) -> FloatArray:
        """A (n,) of some reflections by exact traversal from all points.

        From very many points A is marched, and what exact traversal of a part of them differs by is
        put right: the two differ alike for every fair choice of points.
        """
        n_parts = max(1, round(len(points) / MOST_EXACT_POINTS))
        part = points[_interleaved(len(points), n_parts)[0]]
        exact, _ = self._exact(part, directions)
        if n_parts == 1:
            return exact
        ratio = np.empty(len(directions))
        size = max(1, min(16, int(0.2 * self.memory_bytes / (8 * len(points)))))
        for start in range(0, len(directions), size):
            some = directions[start : start + size]
            ratio[start : start + size] = (
                self._marched(points, some)[0] / self._marched(part, some)[0]
            )
        return exact * ratio

    def _direct(self, points: SampledPoints, exact: bool) -> tuple[FloatArray, FloatArray]:
        """A (n,) by every reflection's own rays, and its relative standard error (n,)."""
        n = len(self.directions)
        transmission, relative = np.empty(n), np.empty(n)
        size = max(1, min(256, int(0.2 * self.memory_bytes / (8 * len(points)))))
        for start in self._steps(range(0, n, size), "reflections"):
            part = self.directions[start : start + size]
            if exact:
                mean, error = self._exact(points, part)
            else:
                mean, error = self._marched(points, part)
            transmission[start : start + size] = mean
            relative[start : start + size] = error / mean
        return transmission, relative

    def _marched(self, points: SampledPoints, part: Directions) -> tuple[FloatArray, FloatArray]:
        weights = self._reflection_weights(points, part)
        xp = self.engine.xp
        total, f_squares, f_weights, w_squares = (xp.zeros(len(part)) for _ in range(4))
        for begin in range(0, len(points), LARGEST_CHUNK):
            chunk = slice(begin, begin + LARGEST_CHUNK)
            some = points.voxels[chunk]
            w = xp.asarray(weights[:, chunk])
            f = self.engine.march_transmission(self.volume, some, part.to_source)
            f = f * self.engine.march_transmission(self.volume, some, part.exit) * w
            d_f = f[:, ::2] - f[:, 1::2]
            total += f.sum(axis=1, dtype=np.float64)
            f_squares += (d_f**2).sum(axis=1, dtype=np.float64)
            if self.beam is not None:  # else the two of a pair count the same
                d_w = w[:, ::2] - w[:, 1::2]
                f_weights += (d_f * d_w).sum(axis=1, dtype=np.float64)
                w_squares += (d_w**2).sum(axis=1, dtype=np.float64)
        norm = weights.sum(axis=1, dtype=np.float64)
        mean = np.maximum(self.engine.to_numpy(total) / norm, SMALLEST_TRANSMISSION)
        sums = [self.engine.to_numpy(x) for x in (f_squares, f_weights, w_squares)]
        return mean, ray_tracing.ratio_error(mean, norm, *sums)

    # ---- the table -------------------------------------------------------------------------------

    def _grid(self, step: float) -> Grid:
        arcs = tuple(
            IncidentArc(
                ARC_TO_EXIT_STEP * step, axis, self.directions.to_source[self.directions.sweep == i]
            )
            for i, axis in enumerate(self.directions.rotation_axes)
        )
        return arcs, ExitGrid(step, self.directions.exit)

    @staticmethod
    def _n_nodes(grid: Grid) -> int:
        return sum(arc.n for arc in grid[0]) + len(grid[1].directions)

    @staticmethod
    def _table_bytes(grid: Grid) -> float:
        """Four tables at the nodes, and three of splines on the whole torus."""
        n_incident = sum(arc.n for arc in grid[0])
        torus = 2 * grid[1].n_rings * grid[1].n_psi
        return 8.0 * n_incident * (4 * len(grid[1].directions) + 3 * torus)

    def _steps(self, steps: range, what: str) -> Iterable[int]:
        return tqdm(steps, desc=f"Tracing {what}", leave=False, disable=not self.progress)

    def _use_table(self, method: str, n_points: int, step: float) -> bool:
        """Whether a table needs fewer rays than the reflections themselves."""
        if method != "auto":
            return method == "table"
        fine = self._n_nodes(self._grid(step))
        n_parts = _n_parts(n_points)
        if n_parts == 1:
            return fine < 2 * len(self.directions)
        coarse = self._n_nodes(self._grid(COARSE_RATIO * step))
        return fine / n_parts + coarse < 2 * len(self.directions)

    def _tables(
        self, points: SampledPoints, parts: list[NDArray[np.int64]], fine: Grid
    ) -> tuple[TableSum, DirectionTable, int]:
        """log A and the log of its relative variance by direction, and how many were traced."""
        if len(parts) == 1:
            log_a, log_variance, _ = self._table(points, parts, fine)
            return (
                TableSum((DirectionTable(*fine, log_a),)),
                DirectionTable(*fine, log_variance),
                self._n_nodes(fine),
            )
        coarse = self._grid(COARSE_RATIO * fine[1].step_deg)
        log_fine, _, _ = self._table(points, parts[:1], fine)
        log_all, log_variance, log_some = self._table(points, parts, coarse)
        return (
            TableSum(
                (
                    DirectionTable(*fine, log_fine),
                    DirectionTable(*coarse, log_all - log_some),
                )
            ),
            DirectionTable(*coarse, log_variance),
            self._n_nodes(fine) + self._n_nodes(coarse),
        )

    def _table(
        self, points: SampledPoints, parts: list[NDArray[np.int64]], grid: Grid
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """At the nodes: log A, the log of its relative variance, log A of the first part alone."""
        arcs, exit_grid = grid
        xp = self.engine.xp
        incident = np.concatenate([arc.directions for arc in arcs])
        arc_of = np.concatenate([np.full(arc.n, i) for i, arc in enumerate(arcs)])
        exits = exit_grid.directions
        shape = (len(incident), len(exits))
        # rays of both kinds, their squares and pair products, in float32
        bytes_per_point = 4 * 3 * (shape[0] + shape[1])
        chunk = int((self.memory_bytes - self._table_bytes(grid)) * 0.5 / bytes_per_point)
        chunk = max(64, min(chunk, LARGEST_CHUNK)) // 2 * 2
        chunks = [part[i : i + chunk] for part in parts for i in range(0, len(part), chunk)]
        chunks_of_first = -(-len(parts[0]) // chunk)
        sums, squares, pairs, f_weights = (xp.zeros(shape) for _ in range(4))
        lit, w_squares = (xp.zeros((shape[0], 1)) for _ in range(2))
        log_first = np.zeros(shape)
        for index in self._steps(range(len(chunks)), f"{sum(shape)} directions"):
            some = points[chunks[index]]
            t_in = self.engine.march_transmission(self.volume, some.voxels, incident)
            t_out = self.engine.march_transmission(self.volume, some.voxels, exits)
            if self.beam is None:
                t_in = t_in * xp.asarray(some.weights.astype(np.float32))
                lit += float(some.weights.sum())
            else:
                weights = np.empty(t_in.shape, dtype=np.float32)
                for i in range(len(arcs)):
                    weights[arc_of == i] = self._weights(some, incident[arc_of == i], i)
                w = xp.asarray(weights)
                d_w = w[:, ::2] - w[:, 1::2]
                lit += w.sum(axis=1, dtype=np.float64)[:, None]
                w_squares += (d_w**2).sum(axis=1, dtype=np.float64)[:, None]
                t_in = t_in * w
                f_weights += (d_w * t_in[:, ::2]) @ t_out[:, ::2].T
                f_weights -= (d_w * t_in[:, 1::2]) @ t_out[:, 1::2].T
            sums += t_in @ t_out.T
            pairs += (t_in[:, ::2] * t_in[:, 1::2]) @ (t_out[:, ::2] * t_out[:, 1::2]).T
            squares += (t_in**2) @ (t_out**2).T
            if index == chunks_of_first - 1:
                log_first = self._log_ratio(sums, lit)
        log_all = self._log_ratio(sums, lit)
        mean, norm = np.exp(log_all), self.engine.to_numpy(lit)
        f_squares = self.engine.to_numpy(squares) - 2 * self.engine.to_numpy(pairs)
        error = ray_tracing.ratio_error(
            mean, norm, f_squares, self.engine.to_numpy(f_weights), self.engine.to_numpy(w_squares)
        )
        return log_all, np.log((error / mean) ** 2 + 1e-14), log_first

    def _log_ratio(self, sums: Any, lit: Any) -> FloatArray:
        light = self.engine.to_numpy(lit)
        _require_light(light)
        return np.log(np.maximum(self.engine.to_numpy(sums), SMALLEST_TRANSMISSION) / light)

    # ---- paths -----------------------------------------------------------------------------------

    def _mean_paths(self) -> FloatArray:
        """-d ln A / d mu (n, n_labels), um, from fewer points and a coarser grid: good to 1-2 %."""
        n_labels = len(self.labels.names)
        points = self._draw(PATH_POINTS)
        arcs, exit_grid = self._grid(PATH_STEP_DEG)
        n = len(self.directions)
        if 2 * n < self._n_nodes((arcs, exit_grid)):
            return self._own_mean_paths(points)
        incident = np.concatenate([arc.directions for arc in arcs])
        arc_of = np.concatenate([np.full(arc.n, i) for i, arc in enumerate(arcs)])
        exits = exit_grid.directions
        weighted = np.zeros((n_labels, len(incident), len(exits)))
        total = np.zeros((len(incident), len(exits)))
        for start in range(0, len(points), 128):
            some = points[start : start + 128]
            t_in, l_in = self._path_lengths(some.voxels, incident)
            t_out, l_out = self._path_lengths(some.voxels, exits)
            if self.beam is None:
                t_in *= some.weights
            else:
                for i in range(len(arcs)):
                    t_in[arc_of == i] *= self._weights(some, incident[arc_of == i], i)
            total += t_in @ t_out.T
            for label in range(1, n_labels):
                weighted[label] += (t_in * l_in[..., label]) @ t_out.T
                weighted[label] += t_in @ (t_out * l_out[..., label]).T
        total = np.maximum(total, SMALLEST_TRANSMISSION)
        paths = np.zeros((n, n_labels))
        for label in range(1, n_labels):
            table = DirectionTable(arcs, exit_grid, weighted[label] / total)
            paths[:, label] = np.maximum(table(*_arguments(self.directions)), 0.0)
        return paths

    def _own_mean_paths(self, points: SampledPoints) -> FloatArray:
        paths = np.zeros((len(self.directions), len(self.labels.names)))
        weights = self._reflection_weights(points, self.directions)
        for i, (s, e) in enumerate(
            zip(self.directions.to_source, self.directions.exit, strict=True)
        ):
            t, lengths = self._path_lengths(points.voxels, np.stack([s, e]))
            f = t[0] * t[1] * weights[i % len(weights)]
            total = max(float(f.sum()), SMALLEST_TRANSMISSION)
            paths[i] = f @ (lengths[0] + lengths[1]) / total
        paths[:, 0] = 0.0
        return paths

    def _path_lengths(
        self, points: FloatArray, directions: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        depths, lengths = ray_tracing.exact_path_lengths(
            self.volume, points, directions, len(self.labels.names)
        )
        return np.exp(-depths), lengths


def _arguments(directions: Directions) -> tuple[FloatArray, FloatArray, NDArray[np.int64]]:
    return directions.to_source, directions.exit, directions.sweep


def _interleaved(n: int, n_parts: int) -> list[NDArray[np.int64]]:
    """The indices of n points in n_parts, each spread over all of the crystal, pairs kept together."""
    pair = np.arange(n // 2)
    return [
        np.stack([2 * pair[i::n_parts], 2 * pair[i::n_parts] + 1], axis=1).ravel()
        for i in range(n_parts)
    ]


def _n_parts(n_points: int) -> int:
    """In how many parts points are taken, the first of which is traced for the fine grid."""
    if n_points < TWO_LEVELS_FROM:
        return 1
    return max(FINE_SHARE, round(n_points / MOST_FINE_POINTS))


def _require_light(light: NDArray[np.floating[Any]]) -> None:
    if np.any(light <= 0):
        raise ValueError(
            "The beam misses the crystal at some angles of the scan; check beam.size and beam.offset "
            "(um, from the volume's centre) and the file's /entry/frame/centre."
        )
