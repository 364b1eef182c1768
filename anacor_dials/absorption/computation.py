"""One computation of absorption factors: which points, which directions, which rays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anacor_dials.absorption import ray_tracing
from anacor_dials.absorption.attenuating_body import AttenuatingBody
from anacor_dials.absorption.crystal_points import SampledPoints
from anacor_dials.absorption.direction_table import (
    SMALLEST_RADIUS,
    DirectionTable,
    ExitGrid,
    Grid,
    IncidentArc,
    TableSum,
)
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.node_sums import SMALLEST_TRANSMISSION, NodeSums, require_light
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.progress import followed

# A first look says how many points are needed: cheap beside the computation itself.
PILOT_POINTS = 2048
PILOT_REFLECTIONS = 32
# Where points matter is found from so many reflections. No place gets fewer points than
# this fraction of the mean density, since the estimate itself is one of chance.
IMPORTANCE_REFLECTIONS = 96
LEAST_IMPORTANCE = 0.1

# The error of points falls as n^-5/6 in theory; points ~ error^-1.3 was measured on crystals of
# 10^6 voxels.
POINT_POWER = 1.3
# Parts of the tolerance for points and for rays and grid. In quadrature they make 0.96 of it; the
# rest is for chance.
POINT_SHARE = 0.6
GRID_SHARE = 0.75
POINTS_ABOVE_SHARE = 1.2  # points are added only above so many times their share
MOST_POINTS = 2_000_000  # limits time and memory

# Degrees between exit nodes of the fine grid at a tolerance of 0.1 %, its power of the tolerance,
# and its range: by trial on the benchmark (benchmarks/RESULTS.md) and on the bodies of
# tests/test_factors.py. Where they do not suffice, the measured error makes the grid finer.
STEP_AT_TOLERANCE_1E3 = 5.5
STEP_POWER = 0.7
STEP_RANGE = (1.5, 15.0)
# Incident nodes lie on a line, exit nodes on a sphere: coarser arcs save few rays, and cost as
# little.
ARC_TO_EXIT_STEP = 1.25

# Two levels: the fine grid is traced from one point in FINE_SHARE, if there are at least
# TWO_LEVELS_FROM points, and never from more than MOST_FINE_POINTS. The coarse grid, traced from
# all points, has COARSE_RATIO times the step. Fewer points for the fine grid missed the tolerance
# on large, strongly absorbing samples.
FINE_SHARE = 3
TWO_LEVELS_FROM = 6144
MOST_FINE_POINTS = 100_000
COARSE_RATIO = 2.0

# If no table follows the edge of the beam, rays are traced for the reflections themselves, unless
# these are more than so many times the rays of the table. Limits the time.
MOST_OWN_RAYS = 16

# Where a table at the edge of a beam needs more rays than the reflections themselves, it is first
# looked at with so many points.
FIRST_LOOK_POINTS = 12_000

LARGEST_CHUNK = 8192  # points traced together: more bring no speed
# For the reflections that are traced exactly. The ratio of exact and marched A is taken from these
# points: from 4000 of the 16 000 points of a plate (tests/test_factors.py) it was good to 0.03 %
MOST_EXACT_POINTS = 12_000

# Points that no beam reaches are left out. Each sweep is looked at from so many directions. The
# beam is widened by the margin, for the directions between them.
LIT_DIRECTIONS = 72
LIT_MARGIN = 1.1
LEAST_LIGHT = 1e-4  # of the full intensity


@dataclass(frozen=True, eq=False)
class Estimate:
    """Transmissions from one set of points.

    Attributes
    ----------
    transmission : array (n,)
    relative_error : array (n,)
        Of taking points instead of the whole crystal.
    n_directions : int
        The number of directions that were traced.
    grid, table
        The nodes, and log A as a function of directions; None if no table was made.
    """

    transmission: FloatArray
    relative_error: FloatArray
    n_directions: int
    grid: Grid | None = None
    table: TableSum | None = None


class Computation:
    """What all steps of one call of absorption_factors share: sample, directions, settings.

    Parameters
    ----------
    body : AttenuatingBody
    directions : Directions
    tracing : Tracing
    progress : bool
        Whether to show progress bars.
    """

    def __init__(
        self,
        body: AttenuatingBody,
        directions: Directions,
        tracing: Tracing,
        progress: bool = False,
    ) -> None:
        self.body = body
        self.directions = directions
        self.tracing = tracing
        self.progress = progress
        self.engine = body.engine
        self.volume = body.volume
        self.rng = np.random.default_rng(tracing.seed)
        self.memory_bytes = tracing.memory_gb * 1e9
        self.importance: FloatArray | None = None
        self.exact_rays = tracing.method == "exact"  # instead of marched ones
        self.tables_help = True  # False from when a finer table did not bring a smaller error
        self.n_independent = 1.0  # independent errors of points among the reflections
        if len(directions) == 0:
            raise ValueError("There are no reflections with directions to compute factors for.")

    # ---- how many points, which grid -------------------------------------------------------------

    def find_importance(self) -> None:
        """From now on points are drawn more densely where they matter.

        The density, in stretches of equal volume of the crystal, is the rms over reflections of
        f(x) / A, where f is the transmission to and from a point and A its mean: the effect of the
        random position of one point on log A is proportional to it. In a strongly absorbing crystal
        it is large at the surface; without absorption it is constant. It is found for the whole
        crystal in the beam, since few of these points, or none, lie in a thin beam.
        """
        n_points = self.body.importance_points
        points = self.body.draw(n_points, self.rng)
        chosen = self.rng.permutation(len(self.directions))[:IMPORTANCE_REFLECTIONS]
        squares = np.zeros(n_points // 2)
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
        # rounded, so that the last digits of another device lead to the same points
        self.importance = 2.0 ** (np.round(8 * np.log2(floored)) / 8)

    def points_needed(self) -> int:
        """How many points bring their error to its share of the tolerance, by a first look."""
        tolerance = self.tracing.tolerance
        chosen = self.directions[self.rng.permutation(len(self.directions))[:PILOT_REFLECTIONS]]
        points = self.draw(PILOT_POINTS)
        exact, error = self._exact(points, chosen)
        self.n_independent = self._independent_errors(points, chosen)
        pilot_error = float(np.sqrt(np.mean((error / exact) ** 2)))
        wanted = PILOT_POINTS * (pilot_error / (POINT_SHARE * tolerance)) ** POINT_POWER
        return 2 * math.ceil(min(max(wanted, PILOT_POINTS), MOST_POINTS) / 2)

    def _independent_errors(self, points: SampledPoints, directions: Directions) -> float:
        """nu = tr(C)^2 / tr(C^2), C the covariance of the relative errors of reflections.

        The error of a reflection is the sum over pairs of d_f - A d_w with random signs. Therefore
        the covariance of two reflections is the sum over pairs of the products of these.
        """
        weights = self.reflection_weights(points, directions)
        f = self.engine.march_transmission(self.volume, points.voxels, directions.to_source)
        f = f * self.engine.march_transmission(self.volume, points.voxels, directions.exit)
        f = self.engine.to_numpy(f) * weights
        mean = np.maximum(f.sum(axis=1), SMALLEST_TRANSMISSION) / weights.sum(axis=1)
        excess = f / mean[:, None] - weights
        differences = (excess[:, ::2] - excess[:, 1::2]).astype(np.float64)
        differences /= weights.sum(axis=1, dtype=np.float64)[:, None]
        covariance = differences @ differences.T
        squares = float(np.sum(covariance**2))
        return float(np.trace(covariance) ** 2 / squares) if squares > 0 else 1.0

    def first_points(self, step_deg: float) -> int:
        """How many points to begin with; few of them where a table may be in vain."""
        wanted = self.points_needed()
        return min(wanted, FIRST_LOOK_POINTS) if self._table_is_dear(step_deg) else wanted

    def table_in_vain(
        self, step_deg: float, traced_error: float, n_points: int, wanted: int
    ) -> bool:
        """Whether a dear table at the edge of a beam will miss the tolerance with more points, too.

        Points that the edge passes between two nodes are as many in proportion however many there
        are; their noise falls as one over the root of the number of points.

        Parameters
        ----------
        step_deg : float
            The step of the table, deg.
        traced_error : float
            The relative error of the table.
        n_points, wanted : int
            The numbers of points that it was made from, and that the next one would be.
        """
        if not self._table_is_dear(step_deg):
            return False
        return traced_error * math.sqrt(n_points / wanted) > self.tracing.tolerance

    def _table_is_dear(self, step_deg: float) -> bool:
        """Whether a table at the edge of a beam needs more rays than the reflections do."""
        if self.tracing.method != "table" or not self._hard_beam or not self.has_tables:
            return False
        return n_nodes(self.grid(step_deg)) > 2 * len(self.directions)

    def first_step_deg(self) -> float:
        """The step of the fine grid to begin with, deg."""
        step = STEP_AT_TOLERANCE_1E3 * (self.tracing.tolerance / 1e-3) ** STEP_POWER
        return min(max(step, STEP_RANGE[0]), STEP_RANGE[1])

    def more_points(self, n_points: int, point_error: float) -> int:
        """The number of points for the next round; the same where their error is small enough."""
        share = POINT_SHARE * self.tracing.tolerance
        if point_error <= share * POINTS_ABOVE_SHARE:
            return n_points
        factor = max(1.2, (point_error / share) ** POINT_POWER)
        return min(2 * math.ceil(n_points * factor / 2), MOST_POINTS)

    def finer_step_deg(self, step: float, traced_error: float) -> float:
        """The step for the next round; the same where its error, or the memory, is small enough."""
        share = GRID_SHARE * self.tracing.tolerance
        if traced_error <= share:
            return step
        # the spline's error falls faster than this; more than half would waste rays
        finer = step / min(2.0, max(1.2, (traced_error / share) ** 0.8))
        if _table_bytes(self.grid(finer)) >= 0.5 * self.memory_bytes:
            return step
        return finer

    # ---- points ----------------------------------------------------------------------------------

    def draw(self, n: int) -> SampledPoints:
        """About n points of the part of the crystal that the beam reaches at some angle.

        Pairs that it never reaches add nothing to any sum. They are left out, and more are drawn.
        """
        beam = self.tracing.beam
        if beam is None:
            return self.body.draw(n, self.rng, self.importance)
        beam = beam.enlarged(LIT_MARGIN)
        n_drawn = n
        while True:
            points = self.body.draw(n_drawn, self.rng, self.importance)
            lit = np.zeros(len(points), dtype=bool)
            positions = self.body.position_um(points.voxels)
            for sweep in range(len(self.directions.rotation_axes)):
                of_sweep = np.flatnonzero(self.directions.sweep == sweep)
                some = self.directions[of_sweep[:: max(1, len(of_sweep) // LIT_DIRECTIONS)]]
                for source, axis in zip(some.to_source, some.axes_of_beam, strict=True):
                    lit |= beam.weights(positions, source[None], axis)[0] > LEAST_LIGHT
            pair = np.repeat(lit[::2] | lit[1::2], 2)
            share = float(pair.mean())
            if pair.sum() >= 0.8 * n or n_drawn >= MOST_POINTS:
                require_light(np.array([share]))
                return points[pair]
            n_drawn = 2 * math.ceil(min(1.1 * n_drawn / max(share, 1e-3), MOST_POINTS) / 2)

    def beam_weights(
        self, points: SampledPoints, to_source: FloatArray, beam_axis: FloatArray
    ) -> NDArray[np.float32]:
        """Weights of points, times the intensity of the beam.

        Parameters
        ----------
        points : SampledPoints
            m points.
        to_source : array (n, 3)
            Directions to the source.
        beam_axis : array (n, 3)
            The axis of the beam's cross-section at each of them.

        Returns
        -------
        array (n, m)
        """
        assert self.tracing.beam is not None
        positions = self.body.position_um(points.voxels)
        intensity = self.tracing.beam.weights(positions, to_source, beam_axis)
        return intensity * points.weights.astype(np.float32)

    def reflection_weights(
        self, points: SampledPoints, directions: Directions
    ) -> NDArray[np.float32]:
        """Weights of m points for n reflections: (n, m); (1, m) if the beam is wide."""
        if self.tracing.beam is None:
            return points.weights.astype(np.float32)[None]
        weights = self.beam_weights(points, directions.to_source, directions.axes_of_beam)
        require_light(weights.sum(axis=1))
        return weights

    # ---- transmissions ---------------------------------------------------------------------------

    def transmissions(self, points: SampledPoints, step_deg: float) -> Estimate:
        """The transmissions of all reflections, by a table or by the reflections' own rays."""
        if not self._use_table(len(points), step_deg):
            return self._direct(points)
        fine = self.grid(step_deg)
        table, log_variance, n_directions = self._tables(points, fine)
        arguments = (self.directions.to_source, self.directions.exit, self.directions.sweep)
        relative = np.exp(0.5 * log_variance(*arguments))
        return Estimate(np.exp(table(*arguments)), relative, n_directions, fine, table)

    def reference(self, points: SampledPoints, directions: Directions) -> FloatArray:
        """A (n,) of some reflections by exact traversal from all points.

        With very many points, A is marched, and corrected by the ratio of exact and marched A for a
        part of the points: this ratio is nearly the same for every fair choice of points.
        """
        n_parts = max(1, round(len(points) / MOST_EXACT_POINTS))
        indices = _interleaved(len(points), n_parts)
        part = points[indices[0]]
        exact, _ = self._exact(part, directions)
        if n_parts == 1:
            return exact
        rest = points[np.sort(np.concatenate(indices[1:]))]
        ratio = np.empty(len(directions))
        size = max(1, min(16, int(0.2 * self.memory_bytes / (8 * len(points)))))
        for start in range(0, len(directions), size):
            some = directions[start : start + size]
            of_part, of_rest = self._marched(part, some)[0], self._marched(rest, some)[0]
            light = [
                self.reflection_weights(p, some).sum(axis=1, dtype=np.float64) for p in (part, rest)
            ]
            of_all = (of_part * light[0] + of_rest * light[1]) / (light[0] + light[1])
            ratio[start : start + size] = of_all / of_part
        return exact * ratio

    def _exact(
        self, points: SampledPoints, directions: Directions
    ) -> tuple[FloatArray, FloatArray]:
        """A (n,) of reflections and its standard error (n,), by exact traversal."""
        exact, error = np.empty(len(directions)), np.empty(len(directions))
        size = len(directions)
        if (
            self.tracing.beam is not None
        ):  # its weights are (reflections, points) in double precision
            size = max(1, int(0.1 * self.memory_bytes / (8 * len(points))))
        for start in range(0, len(directions), size):
            part = slice(start, start + size)
            some = directions[part]
            weights = self.reflection_weights(points, some)
            exact[part], error[part] = self.engine.exact_transmission(
                self.volume, points.voxels, some.to_source, some.exit, weights
            )
        return np.maximum(exact, SMALLEST_TRANSMISSION), error

    def _direct(self, points: SampledPoints) -> Estimate:
        """A of all reflections by their own rays."""
        n = len(self.directions)
        transmission, relative = np.empty(n), np.empty(n)
        trace = self._exact if self.exact_rays else self._marched
        size = max(1, min(256, int(0.2 * self.memory_bytes / (8 * len(points)))))
        for start in self._steps(range(0, n, size), "reflections"):
            mean, error = trace(points, self.directions[start : start + size])
            transmission[start : start + size] = mean
            relative[start : start + size] = error / mean
        return Estimate(transmission, relative, 2 * n)

    def _marched(self, points: SampledPoints, part: Directions) -> tuple[FloatArray, FloatArray]:
        """A (n,) of reflections and its standard error (n,), by marched rays."""
        weights = self.reflection_weights(points, part)
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
            if self.tracing.beam is not None:  # else the two points of a pair have one weight
                d_w = w[:, ::2] - w[:, 1::2]
                f_weights += (d_f * d_w).sum(axis=1, dtype=np.float64)
                w_squares += (d_w**2).sum(axis=1, dtype=np.float64)
        norm = weights.sum(axis=1, dtype=np.float64)
        mean = np.maximum(self.engine.to_numpy(total) / norm, SMALLEST_TRANSMISSION)
        sums = [self.engine.to_numpy(x) for x in (f_squares, f_weights, w_squares)]
        return mean, ray_tracing.ratio_error(mean, norm, *sums)

    # ---- tables ----------------------------------------------------------------------------------

    def grid(self, step_deg: float) -> Grid:
        """The nodes of a table with step_deg between exit nodes."""
        directions = self.directions
        beam_axes = None if self.tracing.beam is None else directions.axes_of_beam
        arcs = []
        for i, axis in enumerate(directions.rotation_axes):
            of_sweep = directions.sweep == i
            arcs.append(
                IncidentArc(
                    ARC_TO_EXIT_STEP * step_deg,
                    axis,
                    directions.to_source[of_sweep],
                    None if beam_axes is None else beam_axes[of_sweep],
                )
            )
        return tuple(arcs), ExitGrid(step_deg, directions.exit)

    @property
    def has_tables(self) -> bool:
        """Whether A is a function of the directions to the source and of exit alone.

        It is not where the beam runs along the rotation axis: the direction to the source is then
        the same at all angles, and the sample turns within the beam's cross-section.
        """
        if self.tracing.beam is None:
            return True
        turned = self.directions.rotation_axes[self.directions.sweep]
        across = np.linalg.norm(np.cross(turned, self.directions.to_source), axis=1)
        return bool(np.all(across > SMALLEST_RADIUS))

    @property
    def has_edges(self) -> bool:
        """Whether A changes abruptly with direction.

        It jumps where the edge of a beam passes over a point, and has a kink where a plane face is
        seen edge-on.
        """
        return self._hard_beam or self.body.has_plane_faces

    @property
    def _hard_beam(self) -> bool:
        return self.tracing.beam is not None and self.tracing.beam.shape == "tophat"

    def may_leave_tables(self, grid: Grid | None) -> bool:
        """Whether the reflections' own rays may be traced in place of a table with this grid."""
        if grid is None or not self.has_edges or self.tracing.method != "auto":
            return False
        few = 2 * len(self.directions) <= MOST_OWN_RAYS * n_nodes(grid)
        return few or self.body.rays_cost_little

    def may_trace_exactly(self, grid: Grid | None, traced_error: float) -> bool:
        """Whether exact rays may take the place of marched ones, whose steps are too long.

        So it is in a plate of few voxels. An exact ray takes about twice as long as a marched one.
        """
        too_coarse = traced_error > GRID_SHARE * self.tracing.tolerance
        own_rays = grid is None and self.tracing.method == "auto"
        return own_rays and too_coarse and not self.exact_rays

    def _steps(self, steps: range, what: str) -> Iterable[int]:
        return followed(steps, f"Tracing {what}", bar=self.progress)

    def _use_table(self, n_points: int, step_deg: float) -> bool:
        """Whether a table is asked for, or needs fewer rays than the reflections themselves."""
        if self.tracing.method != "auto":
            return self.tracing.method == "table"
        if self.exact_rays or not (self.has_tables and self.tables_help):
            return False
        fine = n_nodes(self.grid(step_deg))
        n_parts = _n_parts(n_points)
        if n_parts == 1:
            return fine < 2 * len(self.directions)
        coarse = n_nodes(self.grid(COARSE_RATIO * step_deg))
        return fine / n_parts + coarse < 2 * len(self.directions)

    def _tables(self, points: SampledPoints, fine: Grid) -> tuple[TableSum, DirectionTable, int]:
        """log A, the log of its relative variance, and how many directions were traced."""
        parts = _interleaved(len(points), _n_parts(len(points)))
        if len(parts) == 1:
            log_a, log_variance, _ = self._node_values(points, parts, fine)
            return (
                TableSum((DirectionTable(*fine, log_a),)),
                DirectionTable(*fine, log_variance),
                n_nodes(fine),
            )
        coarse = self.grid(COARSE_RATIO * fine[1].step_deg)
        log_fine, _, _ = self._node_values(points, parts[:1], fine, with_error=False)
        log_all, log_variance, log_some = self._node_values(points, parts, coarse)
        correction = DirectionTable(*coarse, log_all - log_some)
        return (
            TableSum((DirectionTable(*fine, log_fine), correction)),
            DirectionTable(*coarse, log_variance),
            n_nodes(fine) + n_nodes(coarse),
        )

    def _node_values(
        self,
        points: SampledPoints,
        parts: list[NDArray[np.int64]],
        grid: Grid,
        with_error: bool = True,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """At the nodes: log A, the log of its relative variance, log A of the first part alone.

        with_error: whether the variance is computed; else it is 0.
        """
        exits = grid[1].directions
        sums = NodeSums(self, grid, with_error)
        # rays of both kinds, their squares and pair products, in float32
        bytes_per_point = 4 * 3 * sum(sums.shape)
        chunk = int((self.memory_bytes - _table_bytes(grid)) * 0.5 / bytes_per_point)
        chunk = max(64, min(chunk, LARGEST_CHUNK)) // 2 * 2
        chunks = [part[i : i + chunk] for part in parts for i in range(0, len(part), chunk)]
        chunks_of_first = -(-len(parts[0]) // chunk)
        log_first = np.zeros(sums.shape)
        for index in self._steps(range(len(chunks)), f"{sum(sums.shape)} directions"):
            some = points[chunks[index]]
            t_in = self.engine.march_transmission(self.volume, some.voxels, sums.incident)
            t_out = self.engine.march_transmission(self.volume, some.voxels, exits)
            sums.add(some, t_in, t_out)
            if index == chunks_of_first - 1:
                log_first = sums.log_mean()
        return sums.log_mean(), sums.log_relative_variance(), log_first


def n_nodes(grid: Grid) -> int:
    """The number of directions that are traced for a grid."""
    return sum(arc.n for arc in grid[0]) + len(grid[1].directions)


def _table_bytes(grid: Grid) -> float:
    """The memory of a table: four sums at the nodes, and three arrays of splines on the torus."""
    n_incident = sum(arc.n for arc in grid[0])
    torus = 2 * grid[1].n_rings * grid[1].n_psi
    return 8.0 * n_incident * (4 * len(grid[1].directions) + 3 * torus)


def _interleaved(n: int, n_parts: int) -> list[NDArray[np.int64]]:
    """The indices of n points in n_parts that each cover the crystal; pairs stay together."""
    pair = np.arange(n // 2)
    return [
        np.stack([2 * pair[i::n_parts], 2 * pair[i::n_parts] + 1], axis=1).ravel()
        for i in range(n_parts)
    ]


def _n_parts(n_points: int) -> int:
    """The number of parts of the points; only the first is traced for the fine grid."""
    if n_points < TWO_LEVELS_FROM:
        return 1
    return max(FINE_SHARE, round(n_points / MOST_FINE_POINTS))
