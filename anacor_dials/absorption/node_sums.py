"""Sums over the points of a crystal at the nodes of a table of directions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numpy.typing import NDArray

from anacor_dials.absorption import ray_tracing
from anacor_dials.absorption.crystal_points import SampledPoints
from anacor_dials.absorption.direction_table import Grid
from anacor_dials.sample.frames import FloatArray

if TYPE_CHECKING:
    from anacor_dials.absorption.computation import Computation

SMALLEST_TRANSMISSION = 1e-30  # keeps logarithms finite; no such reflection can be measured
ROWS_OF_A_TILE = 256  # of a product, made by one thread: fast, and enough tiles for many threads


def sums_of_products(a: Any, b: Any) -> Any:
    """The sums over m points of products, a b^T (n, k), with the threads that trace rays.

    Every sum is made by one thread, in tiles of one size, so that its last digits do not depend on
    how many threads there are; the caller limits BLAS to one thread.

    Parameters
    ----------
    a : array (n, m)
        Of numpy or cupy.
    b : array (k, m)
    """
    if not isinstance(a, np.ndarray):
        return a @ b.T
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)  # other strides are far slower
    out = np.empty((len(a), len(b)), dtype=np.result_type(a, b))

    def tile(start: int) -> None:
        rows = slice(start, start + ROWS_OF_A_TILE)
        np.matmul(a, b[rows].T, out=out[:, rows])

    with ThreadPoolExecutor(numba.get_num_threads()) as pool:
        list(pool.map(tile, range(0, len(b), ROWS_OF_A_TILE)))
    return out


class NodeSums:
    """Sums over points at the nodes of a grid, on the engine's device.

    With f = w T_in T_out: sum f, sum w; and with_error sum f^2, the products of f and of w within
    pairs.

    Parameters
    ----------
    computation : Computation
        Its sample, beam and engine are used.
    grid : Grid
    with_error : bool
        Whether the sums for the variance are made.
    """

    def __init__(self, computation: Computation, grid: Grid, with_error: bool = True) -> None:
        arcs, exit_grid = grid
        self._with_error = with_error
        self._computation = computation
        self._xp = computation.engine.xp
        self.incident = np.concatenate([arc.directions for arc in arcs])
        self._beam_axis = np.concatenate([arc.beam_axis for arc in arcs])
        self.shape = (len(self.incident), len(exit_grid.directions))
        self._sums, self._squares, self._pairs, self._f_weights = (
            self._xp.zeros(self.shape) for _ in range(4)
        )
        self._light, self._w_squares = (self._xp.zeros((self.shape[0], 1)) for _ in range(2))

    def add(self, points: SampledPoints, t_in: Any, t_out: Any) -> None:
        """Adds m points.

        Parameters
        ----------
        points : SampledPoints
        t_in : array (n_incident, m)
            Transmissions of the incident rays.
        t_out : array (n_exit, m)
            Transmissions of the exit rays.
        """
        xp = self._xp
        if self._computation.tracing.beam is None:
            t_in = t_in * xp.asarray(points.weights.astype(np.float32))
            self._light += float(points.weights.sum())
        else:
            weights = self._computation.beam_weights(points, self.incident, self._beam_axis)
            w = xp.asarray(weights)
            d_w = w[:, ::2] - w[:, 1::2]
            self._light += w.sum(axis=1, dtype=np.float64)[:, None]
            self._w_squares += (d_w**2).sum(axis=1, dtype=np.float64)[:, None]
            t_in = t_in * w
            if self._with_error:
                self._f_weights += sums_of_products(d_w * t_in[:, ::2], t_out[:, ::2])
                self._f_weights -= sums_of_products(d_w * t_in[:, 1::2], t_out[:, 1::2])
        self._sums += sums_of_products(t_in, t_out)
        if not self._with_error:
            return
        self._pairs += sums_of_products(
            t_in[:, ::2] * t_in[:, 1::2], t_out[:, ::2] * t_out[:, 1::2]
        )
        self._squares += sums_of_products(t_in**2, t_out**2)

    def log_mean(self) -> FloatArray:
        """log A of the points so far. Raises ValueError where no light falls on the crystal."""
        light = self._numpy(self._light)
        require_light(light)
        return np.log(np.maximum(self._numpy(self._sums), SMALLEST_TRANSMISSION) / light)

    def log_relative_variance(self) -> FloatArray:
        """The log of the relative variance of A, of taking points instead of the whole crystal."""
        if not self._with_error:
            return np.zeros(self.shape)
        mean, norm = np.exp(self.log_mean()), self._numpy(self._light)
        f_squares = self._numpy(self._squares) - 2 * self._numpy(self._pairs)
        error = ray_tracing.ratio_error(
            mean, norm, f_squares, self._numpy(self._f_weights), self._numpy(self._w_squares)
        )
        return np.log((error / mean) ** 2 + 1e-14)

    def _numpy(self, array: Any) -> NDArray[Any]:
        return self._computation.engine.to_numpy(array)


def require_light(light: NDArray[np.floating[Any]]) -> None:
    """Raises ValueError unless some light falls on the crystal everywhere."""
    if np.any(light <= 0):
        raise ValueError(
            "The beam misses the crystal at some angles of the scan; check beam.size and beam.offset "
            "(um, from the volume's centre) and the file's /entry/frame/centre."
        )
