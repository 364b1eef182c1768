"""Surfaces of materials, moved to where the tomogram shows them.

A network places a surface to within a voxel or so. The tomogram often shows it far better: where
two materials meet, Fresnel fringes are dark on the side of the lower electron density and bright on
the other side, and the values rise most steeply at the surface itself. This module looks along the
normals of each surface for the steepest rise, for neighbouring places together, and moves the
probabilities of all classes along the normal to that place. If nothing rises clearly above the
noise, the surface stays where the network put it.

**Refraction.** The sample is a lens. At long wavelengths it bends X-rays outwards at its rim, and
the tomogram shows surfaces further out than they are. For a sphere of the radius R the rays through
its rim arrive outside of it by about (z delta)^(2/3) (2 R)^(1/3), where z is the distance to the
detector and 1 - delta the refractive index, with delta ~ 1 / E^2: a micrometre and more. In virtual
scans by wave optics the steepest rise was outside of the true surface by 1.1 um
(z/mm (E/keV)^-2)^0.6 for surfaces in air. Twenty later scans, whose waves have points enough at
rims (5 to 24 mm, 3.3 to 4.6 keV), agree to within 0.26 um (rms); over the surface of a sample it
varies by some tenths of a micrometre. It was outside by about a quarter of that between crystal and
liquor, and not displaced at loops in liquor (``benchmarks/edges.py``). If energy and distance are
known, surfaces are moved back by this displacement. Tomograms made by contrast transfer alone
(:mod:`anacor_dials.simulation.virtual_tomograms`) do not show it. If energy and distance are not
known, they are recognised by dark fringes deeper than -ln of a transmission ever gives.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import scipy.sparse
from numpy.typing import NDArray

from anacor_dials.sample.volumes import Volume
from anacor_dials.segmentation.tiles import most_probable, sample_box
from anacor_dials.segmentation.working_grid import label_factors

logger = logging.getLogger("dials.anacor_dials.segmentation.edges")

Array = NDArray[np.float32]
# better probabilities of (normalised values, probabilities)
EdgeStep = Callable[[Array, NDArray[np.uint8]], NDArray[np.uint8]]

STEP = 0.25  # voxels between the places that are looked at along a normal
REACH = 2.0  # voxels that a surface may move in one pass
# voxels: how far the network's surface is expected to be wrong (standard deviation). Small enough
# that the side lobes of fringes, some 2 voxels away, do not win; of 1.0 and 1.5 the better one on
# 14 samples left out of training
PRIOR = 1.0
NEAR = 1.5  # voxels: places on a surface that are looked at together lie so close
NORMAL = 2.0  # voxels: standard deviation of the smoothing that normals are taken from
FLAT = 1e-3  # per voxel: a slope of the smoothed class, 0.3 at a surface, that has no direction
BAND = 4.0  # voxels: probabilities further from the surface stay
# in units of the noise: smaller rises do not count, twice as large ones count fully. Chosen by
# hand
LEAST_RISE = 3.0
SLOW = 0.3  # weight of "it stays" against the weights of the places around. Chosen by hand
FAR_INSIDE = 4.0  # voxels: no surface is expected so deep inside, and rises there are noise
PASSES = 3  # in a sphere wrong by 1.2 voxels, 0.27 voxels are left after two
# The probabilities near a surface that was seen clearly are taken to this power: now it is known
# better where the surface is than the network knew. The cross-entropy near surfaces was least for
# 1.5 to 2 in virtual scans, and for 2 to 4 in tomograms by contrast transfer
SHARPER = 2.0
MARGIN = 12  # voxels around a class that are looked at
LARGEST = 80_000_000  # voxels of the sample's box; larger ones are left as they are
LEAST_SURFACE = 100  # voxels of a class
# voxels: a thinner film between a class and air is not believed. The surface under a thicker film
# is not looked for within the margin of the film's own surface, where the values rise far more
# steeply. Both chosen by hand
THINNEST_FILM = 1.5
FILM_MARGIN = 2.0
# a class is taken for less dense than its neighbours if the values fall by so many times what they
# rise. Chosen by hand
CLEARLY = 1.3

# share of the displacement at surfaces in air, by class and neighbour; 1 if one of them is air. The
# median of 19 scans is 0.24
DISPLACEMENT_BETWEEN = {("crystal", "liquor"): 0.25, ("crystal", "loop"): 0.25}
# of the displacement: how much it varies over a surface. In eight scans that were left out (seven
# within a factor of two) the uncertainty of the factors was 1.2 times their error with it, and 0.8
# without (four of eight)
UNCERTAIN_SHARE = 0.2
# the order in which the classes' surfaces are moved: the outer one first
ORDER = ("background", "crystal", "loop")
# dark fringes deeper below air than this many times the sample's level do not come from -ln of a
# transmission: the deepest in 24 virtual scans was 1.8
DEEPEST_FRINGE = 2.0


def refraction_displacement_um(distance_mm: float, energy_keV: float) -> float:
    """How far outside of the true surface a tomogram shows the surface of a sample in air, um.

    Parameters
    ----------
    distance_mm : float
        From the sample to the detector.
    energy_keV : float
        Of the photons. See the module for the source.
    """
    return 1.1 * (distance_mm / energy_keV**2) ** 0.6


@dataclass(frozen=True)
class EdgeSettings:
    """Whether surfaces are moved to the edges in the tomogram.

    Parameters
    ----------
    refine : bool or None
        None: where energy and distance of the scan are known, or the tomogram is known not to show
        refraction. True: always; where they are not known, no displacement is taken off.
    energy_keV, distance_mm : float, optional
        Of the scan.
    phase_retrieved : bool
        Whether fringes were taken off by phase retrieval; then nothing is moved unless asked for.
    """

    refine: bool | None = None
    energy_keV: float | None = None
    distance_mm: float | None = None
    phase_retrieved: bool = False

    @property
    def uncertain_um(self) -> float:
        """By how much surfaces may lie elsewhere because refraction has displaced them, um (one
        standard deviation)."""
        return UNCERTAIN_SHARE * (self.displacement_um(False) or 0.0)

    def displacement_um(self, linear: bool) -> float | None:
        """The displacement by refraction, um; None if nothing is to be moved.

        linear: whether the tomogram shows fringes that no -ln of a transmission gives.
        """
        if self.refine is False or (self.refine is None and self.phase_retrieved):
            return None
        if self.energy_keV is not None and self.distance_mm is not None:
            return refraction_displacement_um(self.distance_mm, self.energy_keV)
        return 0.0 if self.refine or linear else None


def edge_step(tomogram: Volume, names: Sequence[str], settings: EdgeSettings) -> EdgeStep:
    """A step after the network: :func:`moved_to_edges` on the grid where labels are made.

    Parameters
    ----------
    tomogram : Volume
    names : sequence of str
        Of the classes.
    settings : EdgeSettings
    """
    size = tomogram.voxel_size_um * label_factors(tomogram.voxel_size_um, tomogram.shape)
    edge = float(size.mean())

    def step(values: Array, probabilities: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return moved_to_edges(values, probabilities, names, edge, settings)

    return step


def moved_to_edges(
    values: Array,
    probabilities: NDArray[np.uint8],
    names: Sequence[str],
    voxel_size_um: float,
    settings: EdgeSettings,
) -> NDArray[np.uint8]:
    """The probabilities, with the surfaces of the classes moved to the edges in the values.

    Parameters
    ----------
    values : array (nx, ny, nz)
        Normalised: air is 0 and the sample 1.
    probabilities : array (n, nx, ny, nz) of uint8
        255 = 1; changed in place.
    names : sequence of str
        Of the classes.
    voxel_size_um : float
        The edge of a voxel.
    settings : EdgeSettings
    """
    box = sample_box(values)
    seen = np.clip(values[box], -3.0, 4.0)
    if seen.size > LARGEST:
        logger.info(
            "The sample fills %d million voxels: surfaces stay where the network put them.",
            seen.size / 1e6,
        )
    if not seen.size or seen.size > LARGEST:
        return probabilities
    part = probabilities[(slice(None), *box)]
    linear = deepest_fringe(seen, part) > DEEPEST_FRINGE
    displacement = settings.displacement_um(linear)
    if displacement is None:
        if settings.refine is None and not settings.phase_retrieved:
            logger.info(
                "Energy or distance of the scan are not known, so that the surfaces of materials stay where the "
                "network put them; give projections.energy= (keV) and projections.distance= (mm)."
            )
        return probabilities
    seen = np.clip(seen, -1.0, 3.0)
    moved = []
    known = np.zeros(part.shape[1:], dtype=np.float32)  # how sure a surface is that passes nearby
    for name in (n for n in ORDER if n in names):
        label = list(names).index(name)
        around = box_around(part, label)
        near = part[(slice(None), *around)]
        shift = 0.0
        for number in range(PASSES):
            surface = surface_of(near, label)
            if surface is None:
                break
            steps, sure = _steps(
                seen[around], near, names, label, surface, displacement / voxel_size_um
            )
            shift = max(shift, float(np.sqrt(np.mean(steps**2))))
            _move(near, surface, steps)
            if number == PASSES - 1:
                np.maximum(known[around], _spread(surface, sure), out=known[around])
        moved.append(f"{name} {shift * voxel_size_um:.2f}")
    _sharpen(part, known)
    logger.info(
        "Surfaces were moved to the edges in the tomogram by (um, rms): %s; refraction shows them %.2f um "
        "outside",
        ", ".join(moved),
        displacement,
    )
    return probabilities


def box_around(probabilities: NDArray[np.uint8], label: int) -> tuple[slice, slice, slice]:
    """The box (three slices) of a class, with room for its surface to move."""
    there = probabilities[label] >= 64
    box = []
    for axis, n in enumerate(there.shape):
        where = np.flatnonzero(there.any(axis=tuple(k for k in range(3) if k != axis)))
        low, high = (int(where[0]), int(where[-1]) + 1) if where.size else (0, n)
        box.append(slice(max(0, low - MARGIN), min(n, high + MARGIN)))
    return box[0], box[1], box[2]


def deepest_fringe(values: Array, probabilities: NDArray[np.uint8]) -> float:
    """How far below air the values lie just outside of the sample, in units of its level.

    The deepest of the means over the three layers of voxels outside.

    Parameters
    ----------
    values : array (nx, ny, nz)
        Normalised: air is 0 and the sample 1.
    probabilities : array (n, nx, ny, nz) of uint8
        Of the classes, background first.
    """
    air = most_probable(probabilities) == 0
    depth = scipy.ndimage.distance_transform_edt(air)
    means = []
    for layer in range(3):
        here = (depth > layer) & (depth <= layer + 1)
        if np.count_nonzero(here) >= LEAST_SURFACE:
            means.append(-float(values[here].mean()))
    return max(means, default=0.0)


@dataclass(frozen=True, eq=False)
class Surface:
    """Places on the surface of a class: one for each voxel that the surface passes.

    Parameters
    ----------
    cells : array (k, 3) of int
        The voxels.
    points : array (k, 3)
        The places, in voxels.
    normals : array (k, 3)
        Unit vectors into the class; zero in the middle of a film of one voxel.
    index : array (nx, ny, nz) of int
        The number of the place in each voxel, -1 if there is none.
    """

    cells: NDArray[np.intp]
    points: Array
    normals: Array
    index: NDArray[np.int32]

    def profiles(self, values: Array, places: Array) -> Array:
        """Values (k, m) along the normals, at places (m,) in voxels from the surface, positive
        inside.

        values: (nx, ny, nz), interpolated linearly; beyond their edge those at the edge.
        """
        seen = np.empty((len(self.points), len(places)), dtype=np.float32)
        for column, place in enumerate(places):
            at = self.points + place * self.normals
            seen[:, column] = scipy.ndimage.map_coordinates(values, at.T, order=1, mode="nearest")
        return seen

    def neighbours(self) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], Array]]:
        """(place, neighbour, weight) of all pairs of places within about NEAR, each place with
        itself."""
        reach = math.ceil(NEAR)
        shape = self.index.shape
        for offset in itertools.product(range(-reach, reach + 1), repeat=3):
            there = self.cells + np.array(offset)
            inside = np.all((there >= 0) & (there < np.array(shape)), axis=1)
            first = np.flatnonzero(inside)
            second = self.index[tuple(there[inside].T)]
            first, second = first[second >= 0], second[second >= 0]
            squares = ((self.points[first] - self.points[second]) ** 2).sum(axis=1)
            alike = np.clip((self.normals[first] * self.normals[second]).sum(axis=1), 0.0, None)
            # in the middle of a film of one voxel there is no normal
            alike[first == second] = 1.0
            weight = np.exp(-2.0 * squares / NEAR**2) * alike**4
            yield first, second.astype(np.intp), weight.astype(np.float32)

    def averaging(self) -> scipy.sparse.csr_matrix:
        """The weights (k, k) of the neighbours, for many averages; some 25 in each row."""
        pairs = list(self.neighbours())
        first, second, weight = (np.concatenate(part) for part in zip(*pairs, strict=True))
        n = len(self.points)
        return scipy.sparse.csr_matrix((weight, (first, second)), shape=(n, n), dtype=np.float32)

    def mean(self, of: Array, weights: Array | None = None) -> tuple[Array, Array]:
        """(weighted sums of rows (k, m) over the neighbours, sums of the weights (k,))."""
        total = np.zeros_like(of)
        norm = np.zeros(len(of), dtype=np.float32)
        for first, second, weight in self.neighbours():
            w = weight if weights is None else weight * weights[second]
            total[first] += w[:, None] * of[second]  # each place is at most once in first
            norm[first] += w
        return total, norm


def surface_of(probabilities: NDArray[np.uint8], label: int) -> Surface | None:
    """Where the class is as probable as the most probable other one; None for too small a class.

    Parameters
    ----------
    probabilities : array (n, nx, ny, nz) of uint8
        255 = 1.
    label : int
        Of the class.
    """
    others = np.zeros(probabilities.shape[1:], dtype=np.int16)
    for other, p in enumerate(probabilities):
        if other != label:
            np.maximum(others, p, out=others)
    margin = probabilities[label].astype(np.float32) - others
    inside = margin > 0
    if np.count_nonzero(inside) < LEAST_SURFACE:
        return None
    points = []
    for axis in range(3):
        near, far = np.moveaxis(margin, axis, 0)[:-1], np.moveaxis(margin, axis, 0)[1:]
        crossed = (near > 0) != (far > 0)
        place = np.argwhere(crossed).astype(np.float32)
        a, b = near[crossed], far[crossed]
        place[:, 0] += a / (a - b)
        points.append(place[:, {0: [0, 1, 2], 1: [1, 0, 2], 2: [1, 2, 0]}[axis]])
    every = np.concatenate(points)
    if len(every) < LEAST_SURFACE:
        return None
    shape = inside.shape
    cells = np.rint(every).astype(np.intp)
    flat = np.ravel_multi_index(tuple(cells.T), shape)
    unique, back, counts = np.unique(flat, return_inverse=True, return_counts=True)
    sums = [np.bincount(back, every[:, k]) / counts for k in range(3)]
    mean: Array = np.stack(sums, axis=1).astype(np.float32)
    soft = scipy.ndimage.gaussian_filter(inside.astype(np.float32), NORMAL)
    slopes = [
        scipy.ndimage.map_coordinates(np.gradient(soft, axis=k), mean.T, order=1, output=np.float32)
        for k in range(3)
    ]
    normals: Array = np.stack(slopes, axis=1)
    steepness = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(steepness > FLAT, normals / np.maximum(steepness, FLAT), 0.0)
    index = np.full(shape, -1, dtype=np.int32)
    index.reshape(-1)[unique] = np.arange(len(unique))
    return Surface(np.stack(np.unravel_index(unique, shape), axis=1), mean, normals, index)


def _steps(
    values: Array,
    probabilities: NDArray[np.uint8],
    names: Sequence[str],
    label: int,
    surface: Surface,
    displacement: float,
) -> tuple[Array, Array]:
    """(how far each place on a surface is to move along its normal, in voxels; how sure that is,
    0 to 1), each (k,)."""
    places = np.arange(-REACH - 1, FAR_INSIDE + 1.5, STEP, dtype=np.float32)
    seen = surface.profiles(values, places)
    half = round(0.5 / STEP)
    rises = seen[:, 2 * half :] - seen[:, : -2 * half]  # over one voxel
    middles = places[half:-half]
    total, norm = surface.mean(rises)
    rises = total / norm[:, None]
    noise = 1.4826 * float(np.median(np.abs(rises[:, middles >= FAR_INSIDE]))) + 1e-6
    looked = np.abs(middles) <= REACH + 1e-6
    middles, rises = middles[looked], rises[:, looked]
    # refraction shows the surface outside of the sample; for air itself that is inwards
    outside = _displacements(probabilities, names, label, surface, displacement)
    prior = np.exp(-0.5 * ((middles[None] + outside[:, None]) / PRIOR) ** 2)
    rises = rises * prior
    if names[label] == "background":
        rises = -rises
    else:
        air = _distance_to_air(probabilities[list(names).index("background")], surface)
        buried = air >= 2 * REACH
        if np.count_nonzero(buried) >= LEAST_SURFACE:
            up, down = (float((sign * rises[buried]).max(axis=1).mean()) for sign in (1, -1))
            if down > CLEARLY * up:
                rises[buried] *= -1.0  # the class is the one of the lower electron density
        # a film lies between the class and air: the rise at the film's own surface does not count
        film = (air >= THINNEST_FILM)[:, None]
        rises[film & (middles[None] < FILM_MARGIN - air[:, None])] = 0.0
    best = np.clip(rises.argmax(axis=1), 1, len(middles) - 2)
    every = np.arange(len(best))
    before, top, after = (rises[every, best + k] for k in (-1, 0, 1))
    bend = before - 2 * top + after
    between = np.where(bend < 0, 0.5 * (before - after) / np.minimum(bend, -1e-9), 0.0)
    steps = middles[best] + STEP * np.clip(between, -0.5, 0.5) + outside
    sure = np.clip((top / noise - LEAST_RISE) / LEAST_RISE, 0.0, 1.0).astype(np.float32)
    total, weights = surface.mean(steps.astype(np.float32)[:, None], sure)
    found: Array = (total[:, 0] / (weights + SLOW * norm)).astype(np.float32)
    return found, (weights / norm).astype(np.float32)


def _displacements(
    probabilities: NDArray[np.uint8],
    names: Sequence[str],
    label: int,
    surface: Surface,
    displacement: float,
) -> Array:
    """How far (k,) outside of the sample's true surface each place is seen, in voxels, along its
    normal."""
    if names[label] == "background":
        return np.full(len(surface.points), -displacement, dtype=np.float32)
    air = _distance_to_air(probabilities[list(names).index("background")], surface)
    shape = np.array(surface.index.shape) - 1
    out = np.minimum(2.0, 0.5 * air)[:, None]
    beyond = np.clip(np.rint(surface.points - out * surface.normals), 0, shape).astype(np.intp)
    neighbour = probabilities[(slice(None), *beyond.T)].argmax(axis=0)
    neighbour[air < THINNEST_FILM] = list(names).index("background")
    share = [
        1.0 if name == "background" else DISPLACEMENT_BETWEEN.get((names[label], name), 0.0)
        for name in names
    ]
    found: Array = np.array(share, dtype=np.float32)[neighbour] * np.float32(displacement)
    return found


def _distance_to_air(background: NDArray[np.uint8], surface: Surface) -> Array:
    """How far (k,) out along the normal air begins, in voxels; 2 REACH where it does not before."""
    found = np.full(len(surface.points), 2 * REACH, dtype=np.float32)
    for place in np.arange(2 * REACH, -STEP / 2, -STEP):
        at = surface.points - place * surface.normals
        p = scipy.ndimage.map_coordinates(
            background, at.T, order=1, mode="nearest", output=np.float32
        )
        found[p >= 128] = place
    return found


def _spread(surface: Surface, values: Array) -> Array:
    """Values (k,) of places on a surface, carried to the voxels (nx, ny, nz) within BAND of it; 0
    elsewhere."""
    on = surface.index >= 0
    distance, nearest = scipy.ndimage.distance_transform_edt(~on, return_indices=True)
    band = distance < BAND
    out = np.zeros(on.shape, dtype=np.float32)
    out[band] = values[surface.index[tuple(n[band] for n in nearest)]]
    return out


def _sharpen(probabilities: NDArray[np.uint8], sure: Array) -> None:
    """Takes the probabilities to a power, SHARPER where sure (nx, ny, nz) is 1, in place."""
    there = np.nonzero(sure > 0)
    power = 1.0 + (SHARPER - 1.0) * sure[there]
    sharp = np.stack([(p[there] / np.float32(255)) ** power for p in probabilities])
    sharp *= 255 / np.maximum(sharp.sum(axis=0), 1e-12)
    for p, q in zip(probabilities, sharp, strict=True):
        p[there] = np.rint(q).astype(np.uint8)


def _move(probabilities: NDArray[np.uint8], surface: Surface, steps: Array) -> None:
    """Moves the probabilities near a surface along its normals by steps (k,) voxels, in place."""
    on = surface.index >= 0
    distance = scipy.ndimage.distance_transform_edt(~on)
    band = np.nonzero(distance < BAND)
    weight = scipy.ndimage.gaussian_filter(on.astype(np.float32), NEAR, truncate=BAND / NEAR)
    fade = np.clip(BAND - distance[band], 0.0, 1.0) / np.maximum(weight[band], 1e-12)
    at = np.array(band, dtype=np.float32)
    vectors = steps[:, None] * surface.normals
    field = np.zeros(on.shape, dtype=np.float32)
    for k in range(3):
        field[on] = vectors[:, k]  # in the order of the cells, which is that of the voxels
        near = scipy.ndimage.gaussian_filter(field, NEAR, truncate=BAND / NEAR)[band]
        at[k] -= (near * fade).astype(np.float32)
    for p in probabilities:
        p[band] = np.rint(
            scipy.ndimage.map_coordinates(p.astype(np.float32), at, order=1, mode="nearest")
        ).astype(np.uint8)
