"""Functions of two directions, tabulated and interpolated: incident arcs and the sphere of exits.

The transmission of a sample depends on two directions only: to the source, and along the diffracted
beam (exit). In one sweep the first lies on a circle (a cone about the rotation axis); the second
can be anywhere on the sphere. Both are sampled at nodes. Between the nodes cubic B-splines
interpolate (Unser, IEEE Sig. Proc. Mag. 16 (1999) 22).

Exit directions: the nodes lie on rings of constant angle theta from X of the tomo frame, at (i +
1/2) step; their number is proportional to sin(theta). Each ring is periodic, so trigonometric
interpolation brings all rings to one length without loss. With the continuation over the poles
(theta -> -theta, psi -> psi + 180 deg) the sphere becomes a torus (the double Fourier sphere;
Merilees, Atmosphere 11 (1973) 13), and splines on it have neither an edge nor a pole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from anacor_dials.sample.frames import FloatArray, unit

# Nodes beyond the directions in use. The influence of a node falls by 0.27 from one to the next
# (the pole of the cubic spline's filter, sqrt(3) - 2): to 0.5 % after four.
RING_MARGIN = 4
ARC_MARGIN = 3
# rad; largest deviation of directions to the source from their cone: a hundredth of a degree, far
# below any change of the transmission
CONE_TOLERANCE = 2e-4
SMALLEST_RADIUS = 1e-6  # of the circle of directions to the source; below it they are one direction


class ExitGrid:
    """Nodes on the part of the sphere that the exit directions occupy.

    Parameters
    ----------
    step_deg : float
        The distance between rings, and between nodes along the longest ring, deg.
    exits : array (n, 3)
        The exit directions, unit vectors.

    Attributes
    ----------
    directions : array (n_nodes, 3)
        Unit vectors of the nodes.
    """

    def __init__(self, step_deg: float, exits: ArrayLike) -> None:
        exits = np.asarray(exits, dtype=np.float64).reshape(-1, 3)
        self.n_rings = max(6, round(180 / step_deg))
        self.step_deg = 180 / self.n_rings
        self.n_psi = 2 * max(6, round(180 / step_deg))
        theta = (np.arange(self.n_rings) + 0.5) * math.pi / self.n_rings
        used = np.arccos(np.clip(exits[:, 0], -1.0, 1.0)) / math.pi * self.n_rings - 0.5
        self.first = max(0, math.floor(used.min()) - RING_MARGIN)
        self.last = min(self.n_rings - 1, math.ceil(used.max()) + RING_MARGIN)
        self.sizes = [
            min(self.n_psi, max(8, 2 * math.ceil(self.n_psi * math.sin(t) / 2)))
            for t in theta[self.first : self.last + 1]
        ]
        rings = []
        for t, size in zip(theta[self.first : self.last + 1], self.sizes, strict=True):
            psi = np.arange(size) * (2 * math.pi / size)
            rings.append(
                np.column_stack(
                    [
                        np.full(size, math.cos(t)),
                        math.sin(t) * np.cos(psi),
                        math.sin(t) * np.sin(psi),
                    ]
                )
            )
        self.directions = np.concatenate(rings)

    def torus(self, values: NDArray[np.floating[Any]]) -> FloatArray:
        """Values at the nodes (k, n_nodes), continued to the torus (k, 2 n_rings, n_psi).

        Rings that were left out take the values of the nearest one. They are too far from the
        directions in use to influence them.
        """
        k = values.shape[0]
        sphere = np.empty((k, self.n_rings, self.n_psi))
        start = 0
        for ring, size in enumerate(self.sizes, self.first):
            spectrum = np.fft.rfft(values[:, start : start + size].astype(np.float64), axis=1)
            start += size
            if size < self.n_psi:
                spectrum[:, -1] *= 0.5  # the highest frequency stands for +size/2 and -size/2
            longer = np.zeros((k, self.n_psi // 2 + 1), dtype=np.complex128)
            longer[:, : spectrum.shape[1]] = spectrum
            sphere[:, ring] = np.fft.irfft(longer, self.n_psi, axis=1) * (self.n_psi / size)
        sphere[:, : self.first] = sphere[:, self.first, None]
        sphere[:, self.last + 1 :] = sphere[:, self.last, None]
        over_the_pole = np.roll(sphere[:, ::-1], self.n_psi // 2, axis=2)
        return np.concatenate([sphere, over_the_pole], axis=1)

    def coordinates(self, exits: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Fractional indices (n,) of directions (n, 3) along the two axes of the torus."""
        theta = np.arccos(np.clip(exits[:, 0], -1.0, 1.0))
        psi = np.arctan2(exits[:, 2], exits[:, 1])
        return theta * (self.n_rings / math.pi) - 0.5, psi * (self.n_psi / (2 * math.pi))


class IncidentArc:
    """Nodes on the part of a circle from which the beam of one sweep comes.

    Parameters
    ----------
    step_deg : float
        The distance between nodes, deg.
    rotation_axis : array (3,)
    to_source : array (n, 3)
        The directions to the source, unit vectors. A sweep without reflections has one node, which
        is never used.
    beam_axis : array (n, 3), optional
        The axis of the beam's cross-section for each of them.

    Attributes
    ----------
    directions : array (n_nodes, 3)
        Unit vectors of the nodes.
    beam_axis : array (n_nodes, 3)
        The axis of the beam's cross-section at the nodes. Seen from the sample, it turns about the
        rotation axis together with the direction to the source.
    closed : bool
        Whether the arc is the whole circle.

    Raises
    ------
    ValueError
        If the directions to the source do not lie on one cone about the axis, or the axes of the
        beam do not turn with them.
    """

    def __init__(
        self,
        step_deg: float,
        rotation_axis: ArrayLike,
        to_source: ArrayLike,
        beam_axis: FloatArray | None = None,
    ) -> None:
        axis = unit(rotation_axis)
        s = np.asarray(to_source, dtype=np.float64).reshape(-1, 3)
        if len(s) == 0:
            s = axis[None]
        along = s @ axis
        if np.ptp(along) > 2 * CONE_TOLERANCE:
            raise ValueError(
                "The directions to the source of a sweep lie up to "
                f"{np.degrees(np.ptp(along)):.3f} deg off a cone about its rotation axis."
            )
        self._along = float(np.mean(along))
        radius = math.sqrt(max(0.0, 1.0 - self._along**2))
        across = s - np.outer(along, axis)
        self._axis = axis
        if radius > SMALLEST_RADIUS:
            self._u = unit(across[0])
        else:  # the beam is parallel to the axis: one direction at all angles
            self._u = unit(np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))]))
        self._v = np.cross(axis, self._u)
        angle = np.mod(self._angle(s), 2 * math.pi) if radius > SMALLEST_RADIUS else np.zeros(1)
        ordered = np.sort(angle)
        gaps = np.diff(np.append(ordered, ordered[0] + 2 * math.pi))
        widest = int(np.argmax(gaps))
        step = math.radians(step_deg)
        span = 2 * math.pi - float(gaps[widest])
        self.closed = span + 2 * ARC_MARGIN * step > 2 * math.pi
        if self.closed:
            self.n = max(8, round(2 * math.pi / step))
            self._start, self._step = 0.0, 2 * math.pi / self.n
        else:
            begin = float(ordered[(widest + 1) % len(ordered)])
            if span < 1e-6:
                self.n, self._start, self._step = 1, begin, 1.0
            else:
                intervals = max(3, math.ceil(span / step))
                self._step = span / intervals
                self._start = begin - ARC_MARGIN * self._step
                self.n = intervals + 1 + 2 * ARC_MARGIN
        psi = self._start + self._step * np.arange(self.n)
        outwards = np.outer(np.cos(psi), self._u) + np.outer(np.sin(psi), self._v)
        self.directions = self._along * axis + radius * outwards
        self.beam_axis = np.broadcast_to(axis, self.directions.shape)
        if beam_axis is not None and len(beam_axis):
            self.beam_axis = self._turned(beam_axis, angle, outwards)

    def _turned(self, beam_axis: FloatArray, angle: FloatArray, outwards: FloatArray) -> FloatArray:
        """The axis of the beam at the nodes (n_nodes, 3), fixed in axes that turn with it."""
        out = np.outer(np.cos(angle), self._u) + np.outer(np.sin(angle), self._v)
        parts = np.stack(
            [
                beam_axis @ self._axis,
                np.sum(beam_axis * out, axis=1),
                np.sum(beam_axis * np.cross(self._axis, out), axis=1),
            ]
        )
        if np.ptp(parts, axis=1).max() > 2 * CONE_TOLERANCE:
            raise ValueError(
                "The cross-section of the beam does not turn with the direction to the source, as the "
                "beam runs along the rotation axis; a table cannot be made: use absorption.method=direct."
            )
        mean = parts.mean(axis=1)
        return mean[0] * self._axis + mean[1] * outwards + mean[2] * np.cross(self._axis, outwards)

    def _angle(self, to_source: FloatArray) -> FloatArray:
        return np.arctan2(to_source @ self._v, to_source @ self._u)

    def coordinates(self, to_source: FloatArray) -> FloatArray:
        """Fractional node indices (n,) of directions (n, 3)."""
        if self.n == 1:
            return np.zeros(len(to_source))
        ahead = np.mod(self._angle(to_source) - self._start, 2 * math.pi)
        return ahead / self._step


Grid = tuple[tuple[IncidentArc, ...], ExitGrid]  # of all sweeps


@dataclass(frozen=True, eq=False)
class DirectionTable:
    """A function of the directions to the source and of exit, from its values at nodes.

    Parameters
    ----------
    arcs : tuple of IncidentArc
        One for each sweep.
    exit_grid : ExitGrid
    values : array (n_incident_nodes, n_exit_nodes)
        The incident nodes are those of all arcs, one arc after the other.
    """

    arcs: tuple[IncidentArc, ...]
    exit_grid: ExitGrid
    values: NDArray[np.floating[Any]]

    def __post_init__(self) -> None:
        torus = self.exit_grid.torus(self.values)
        for axis in (1, 2):
            ndimage.spline_filter1d(torus, 3, axis=axis, output=torus, mode="grid-wrap")
        offsets = np.concatenate([[0], np.cumsum([arc.n for arc in self.arcs])])
        for arc, start, end in zip(self.arcs, offsets[:-1], offsets[1:], strict=True):
            if arc.n > 1:
                mode = "grid-wrap" if arc.closed else "mirror"
                torus[start:end] = ndimage.spline_filter1d(torus[start:end], 3, axis=0, mode=mode)
        object.__setattr__(self, "_coefficients", torus)
        object.__setattr__(self, "_offsets", offsets.astype(np.int64))

    def __call__(self, to_source: ArrayLike, exits: ArrayLike, sweep: ArrayLike) -> FloatArray:
        """The interpolated values (n,).

        Parameters
        ----------
        to_source, exits : array (n, 3)
            Unit vectors.
        sweep : array (n,) of int
            The sweep, and so the arc, of each.
        """
        to_source = np.asarray(to_source, dtype=np.float64).reshape(-1, 3)
        sweep = np.asarray(sweep, dtype=np.int64)
        along_arc = np.empty(len(to_source))
        for index, arc in enumerate(self.arcs):
            chosen = sweep == index
            along_arc[chosen] = arc.coordinates(to_source[chosen])
        theta, psi = self.exit_grid.coordinates(np.asarray(exits, dtype=np.float64).reshape(-1, 3))
        result = np.empty(len(to_source))
        _interpolate(
            self._coefficients,  # type: ignore[attr-defined]
            self._offsets,  # type: ignore[attr-defined]
            np.array([arc.n for arc in self.arcs]),
            np.array([arc.closed for arc in self.arcs]),
            sweep,
            along_arc,
            theta,
            psi,
            result,
        )
        return result


@dataclass(frozen=True)
class TableSum:
    """The sum of functions that are tabulated on different grids, and of a constant."""

    tables: tuple[DirectionTable, ...]
    constant: float = 0.0

    def scaled(self, constant: float) -> TableSum:
        """The same with a further constant added; of logarithms, a factor."""
        return TableSum(self.tables, self.constant + constant)

    def __call__(self, to_source: ArrayLike, exits: ArrayLike, sweep: ArrayLike) -> FloatArray:
        """The sum of the interpolated values (n,), see :meth:`DirectionTable.__call__`."""
        total = np.sum([table(to_source, exits, sweep) for table in self.tables], axis=0)
        return np.asarray(total + self.constant)


@njit(inline="always")
def _cubic_weights(t):  # type: ignore[no-untyped-def]
    s = 1.0 - t
    return (
        s * s * s / 6.0,
        (4.0 - 6.0 * t * t + 3.0 * t * t * t) / 6.0,
        (4.0 - 6.0 * s * s + 3.0 * s * s * s) / 6.0,
        t * t * t / 6.0,
    )


@njit(inline="always")
def _four_nodes(first, n, closed):  # type: ignore[no-untyped-def]
    """Four successive nodes of n, from first on: round and round, or not beyond the ends."""
    if closed:
        return first % n, (first + 1) % n, (first + 2) % n, (first + 3) % n
    last = n - 1
    return (
        min(max(first, 0), last),
        min(max(first + 1, 0), last),
        min(max(first + 2, 0), last),
        min(max(first + 3, 0), last),
    )


@njit(parallel=True, cache=True)
def _interpolate(coefficients, offsets, sizes, closed, sweep, along_arc, theta, psi, result):  # type: ignore[no-untyped-def]
    n_theta = coefficients.shape[1]
    n_psi = coefficients.shape[2]
    for i in prange(result.shape[0]):
        n = sizes[sweep[i]]
        start = offsets[sweep[i]]
        base_a = int(math.floor(along_arc[i]))
        base_t = int(math.floor(theta[i]))
        base_p = int(math.floor(psi[i]))
        wa = _cubic_weights(along_arc[i] - base_a)
        wt = _cubic_weights(theta[i] - base_t)
        wp = _cubic_weights(psi[i] - base_p)
        ia = _four_nodes(base_a - 1, n, closed[sweep[i]])
        it = _four_nodes(base_t - 1, n_theta, True)
        ip = _four_nodes(base_p - 1, n_psi, True)
        total = 0.0
        for a in range(4 if n > 1 else 1):  # a single node is all that there is
            plane = coefficients[start + ia[a]]
            here = 0.0
            for b in range(4):
                line = plane[it[b]]
                here += wt[b] * (
                    wp[0] * line[ip[0]]
                    + wp[1] * line[ip[1]]
                    + wp[2] * line[ip[2]]
                    + wp[3] * line[ip[3]]
                )
            total += here * (wa[a] if n > 1 else 1.0)
        result[i] = total
