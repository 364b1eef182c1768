"""Errors of mu that all views share: edges of the labels, and the place of the rotation axis.

The scatter of the residuals does not show them. The labels' edges lie anywhere within half a voxel
of the true ones, all of one edge on the same side: a standard deviation of 1 / sqrt(12) voxel. An
edge is that of a material with air, or of one material with another. Besides, all bodies may be
labelled too large or too small at once, as by fringes or by a network, by a standard deviation of
the same size. The axis is known to a quarter of a pixel, or less well if the images are seen to be
shifted. Each edge, all of them together, and the axis are moved by one standard deviation. What
this adds to the calculated -ln T of the used rays is fitted like a measurement; the result is the
error of every mu. Errors of different causes are independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.absorption.coefficients.calculated_views import calculated_views
from anacor_dials.absorption.coefficients.least_squares import NormalSums, Rays
from anacor_dials.absorption.coefficients.ray_grid import RayGrid
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.volumes import LabelVolume

# Standard deviation of the place of an edge by itself, and of all bodies' edges together.
EDGE_VOXELS = 1 / math.sqrt(12)
CENTRE_PIXELS = 0.25  # of the place of the axis, across it and along it
# Views that are calculated again. What a moved edge adds is alike in all of them.
VIEWS = 9
# Two materials share an edge if so large a part of the voxels of the smaller one lies at it.
LEAST_EDGE = 1e-3


@dataclass(frozen=True, eq=False)
class FittedRays:
    """A fit, for the response of mu to a change of what is calculated.

    Attributes
    ----------
    grid : RayGrid
    places : array (k, gx, gy) of bool
        The used rays.
    rays : Rays
        The same, in this order.
    weights : array (n,)
        Of the rays.
    ridge : array (p, p)
        Of the solution.
    mu : array (m,)
        1/um.
    refraction : float
        delta z of the crystal, um.
    delta : array (m,)
        Of the materials, relative to that of the crystal.
    sigma : array (2,)
        Of the smoothing, in blocks.
    seen : array (m,) of int
        The labels of the materials.
    """

    grid: RayGrid
    places: NDArray[np.bool_]
    rays: Rays
    weights: FloatArray
    ridge: FloatArray
    mu: FloatArray
    refraction: float
    delta: FloatArray
    sigma: FloatArray
    seen: NDArray[np.intp]


def common_errors(
    fit: FittedRays, labels: LabelVolume, shift_um: FloatArray, pixel_um: FloatArray
) -> FloatArray:
    """The standard errors (m,) of mu, 1/um, from edges and axis.

    Parameters
    ----------
    fit : FittedRays
    labels : LabelVolume
    shift_um : array (2,)
        How far the images seem to be shifted along X and Y, um.
    pixel_um : array (2,)
        The edges of a pixel along X and Y, um.
    """
    k = len(fit.grid.angles_deg)
    views = np.unique(np.linspace(0, k, min(k, VIEWS), endpoint=False).astype(np.intp))
    grid = RayGrid(
        fit.grid.transmissions[views], fit.grid.angles_deg[views], fit.grid.x_um, fit.grid.u_um
    )
    respond = _response(fit, views)

    def calculated(of_labels: LabelVolume) -> FloatArray:
        lengths = grid.path_lengths(of_labels)[..., fit.seen].astype(np.float64)
        found = calculated_views(lengths, fit.mu, fit.delta, fit.sigma, grid.step_um)
        return found.calculated + fit.refraction * found.refraction

    labels = _around_the_sample(labels)
    now = calculated(labels)
    variance = np.zeros(len(fit.mu))
    all_bodies = np.zeros(len(fit.mu))  # larger by a voxel
    for moved, grows in _moved_edges(labels, fit.seen):
        response = respond(calculated(moved) - now)
        variance += (EDGE_VOXELS * response) ** 2
        all_bodies += grows * response
    variance += (EDGE_VOXELS * all_bodies) ** 2
    for axis in (0, 1):
        size = math.hypot(CENTRE_PIXELS * pixel_um[axis], float(shift_um[axis]))
        blocks = np.zeros(3)
        blocks[axis + 1] = size / grid.step_um[axis]
        ways = [
            respond(scipy.ndimage.shift(now, sign * blocks, order=3, mode="nearest") - now)
            for sign in (1, -1)
        ]
        variance += np.max(np.square(ways), axis=0)
    return np.sqrt(variance)


def _response(fit: FittedRays, views: NDArray[np.intp]) -> Callable[[FloatArray], FloatArray]:
    """The function of a change of -ln T (views, gx, gy) to the change (m,) of mu that it makes."""
    chosen = np.isin(fit.rays.angle, views)
    some = replace(
        fit.rays,
        y=fit.rays.y[chosen],
        design=fit.rays.design[chosen],
        angle=fit.rays.angle[chosen],
        x_um=fit.rays.x_um[chosen],
        in_sample=fit.rays.in_sample[chosen],
    )
    places, weights = fit.places[views], fit.weights[chosen]
    no_bands = np.zeros(len(some.y), dtype=np.int64)

    def respond(change: FloatArray) -> FloatArray:
        sums = NormalSums.of(replace(some, y=change[places]), weights, no_bands, 1)
        return sums.solve(fit.ridge)[: len(fit.mu)]

    return respond


def _around_the_sample(labels: LabelVolume) -> LabelVolume:
    """The part of a volume that holds the sample, with a voxel around it."""
    sample = np.zeros(3, dtype=object)
    for axis in range(3):
        seen = np.flatnonzero(labels.values.any(axis=tuple(a for a in range(3) if a != axis)))
        sample[axis] = slice(max(0, seen[0] - 1), seen[-1] + 2)
    first = np.array([s.start for s in sample])
    return replace(labels, values=labels.values[tuple(sample)], centre=labels.centre - first)


def _moved_edges(labels: LabelVolume, seen: NDArray[np.intp]) -> Iterator[tuple[LabelVolume, int]]:
    """Labels with one edge moved by a voxel: of a material with air, or of two materials.

    With each comes 1 if the body that lies within grows by it, else -1. Of two materials the one
    with the smaller volume lies within the other.
    """
    counts = labels.counts()
    for i in seen:
        outside = scipy.ndimage.binary_dilation(labels.values == i) & (labels.values != i)
        for j in [0, *(k for k in seen if k > i)]:
            layer = outside & (labels.values == j)
            smaller = counts[i] if j == 0 else min(counts[i], counts[j])
            if np.count_nonzero(layer) > LEAST_EDGE * smaller:
                values = np.where(layer, np.uint8(i), labels.values).astype(np.uint8)
                yield replace(labels, values=values), 1 if j == 0 or counts[i] < counts[j] else -1
