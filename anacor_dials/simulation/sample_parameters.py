"""The numbers of a built-in sample, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anacor_dials.sample.frames import FloatArray, unit
from anacor_dials.simulation.crystal_habits import HABITS, random_faces
from anacor_dials.simulation.meshes import convex_polyhedron

# crystals whose faces are lattice planes come last; they are made if they are asked for
CRYSTAL_SHAPES = ("polyhedron", "needle", "plate", "cluster", "bipyramid", *HABITS)
# Chosen by hand.
SHAPE_FREQUENCIES = (0.45, 0.2, 0.15, 0.1, 0.1) + (0.0,) * len(HABITS)
# What has happened to the crystal: edges and corners that are rounded, or a piece broken off.
WEAR = ("none", "rounded", "broken")
# Of edges relative to the nearest face; of a break relative to the corner beyond. Chosen by hand.
ROUNDING, BREAK = (0.15, 0.5), (0.2, 0.7)
BEYOND_ALL_FACES = 1.5  # relative distance of the faces of the box of a crystal that has a habit
# Edge lengths relative to the size that was asked for; other shapes are nearly as long as wide.
# Chosen by hand.
CRYSTAL_ASPECTS = {
    "needle": (3.0, 0.7, 0.7),
    "plate": (1.5, 1.5, 0.35),
    "bipyramid": (1.1, 1.1, 1.7),
}


@dataclass(frozen=True)
class SampleParameters:
    """All numbers of a built-in sample; lengths in um, angles in degrees.

    Attributes
    ----------
    shape : str
        One of CRYSTAL_SHAPES.
    crystal_size : tuple of 3 floats
        Edge lengths of the crystal's box.
    crystal_distances : tuple of n floats
        Relative distances of the six faces of the box and of further faces from the middle. The
        tips of a bipyramid lie in the middles of the faces of the box, so that nearer faces cut
        them off.
    cut_normals : tuple of n - 6 vectors
        Normals of the further faces. If the shape is one of HABITS, these are all faces, and the
        axes of the cell lie along those of the box.
    crystal_turn_axis, crystal_turn : tuple of 3 floats, float
        The orientation of the crystal.
    crystal_shift : tuple of 3 floats
        From the origin.
    cluster : tuple
        Further crystals, each a shift along the axes of the box, in units of its size, an axis and
        an angle.
    loop_turn : float
        Angle of the plane of the loop about X.
    ring_radii : (float, float)
        Half axes of the ring along and across the rotation axis, to the middle of the fibre.
    fibre : (float, float)
        Half width and half height of the fibre.
    stem_length : float
    pin : bool
        Whether the stem ends in a pin.
    film : float
        Thickness, 0 for none.
    drop : tuple of 3 floats
        Half axes of the drop along, across, and perpendicular to the loop.
    meniscus : float
        From 0 (convex) to 0.8 (concave towards the ring).
    tail : float
        How far the liquor extends along the stem, relative to the drop.
    bumps : tuple of 4 floats each
        Unit vectors and heights of irregularities of the drop.
    bubbles : tuple of 4 floats each
        Centres and radii.
    rounding : float
        Radius of the edges and corners of the crystal, relative to the distance of its nearest
        face; 0 for sharp ones.
    broken : tuple of 4 floats, or ()
        The normal of a plane beyond which the crystal has broken off, in the axes of the box, and
        its distance relative to that of the farthest corner in this direction.
    """

    shape: str
    crystal_size: tuple[float, float, float]
    crystal_distances: tuple[float, ...]
    cut_normals: tuple[tuple[float, float, float], ...]
    crystal_turn_axis: tuple[float, float, float]
    crystal_turn: float
    crystal_shift: tuple[float, float, float]
    cluster: tuple[tuple[float, ...], ...]
    loop_turn: float
    ring_radii: tuple[float, float]
    fibre: tuple[float, float]
    stem_length: float
    pin: bool
    film: float
    drop: tuple[float, float, float]
    meniscus: float
    tail: float
    bumps: tuple[tuple[float, float, float, float], ...]
    bubbles: tuple[tuple[float, float, float, float], ...]
    rounding: float = 0.0
    broken: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.shape not in CRYSTAL_SHAPES:
            raise ValueError(
                f"The crystal shape {self.shape!r} is unknown; known are {', '.join(CRYSTAL_SHAPES)}."
            )
        if min(self.crystal_size) <= 0 or min(self.drop) <= 0 or min(self.fibre) <= 0:
            raise ValueError("Crystal, drop and fibre must have sizes > 0 um.")
        if not 0 <= self.meniscus <= 0.8:
            raise ValueError(f"The meniscus is {self.meniscus}; it lies between 0 and 0.8.")
        if not 0 <= self.rounding < 1:
            raise ValueError(f"The rounding is {self.rounding}; it lies between 0 and 1.")


def _random_crystal(
    rng: np.random.Generator, shape: str, crystal_size_um: float
) -> tuple[FloatArray, FloatArray, FloatArray, list[tuple[float, ...]]]:
    """Size (3,) in um, distances (6 + n,) and normals (n, 3) of faces, and a cluster's other
    crystals.

    As crystal_size, crystal_distances, cut_normals and cluster of :class:`SampleParameters`.
    """
    if shape in HABITS:
        normals, distances = random_faces(HABITS[shape], rng, crystal_size_um)
        size = 2 * np.abs(convex_polyhedron(normals, distances).vertices).max(axis=0)
        relative = np.concatenate([np.full(6, BEYOND_ALL_FACES), distances / (size.max() / 2)])
        return size, relative, normals, []
    aspect = np.array(CRYSTAL_ASPECTS.get(shape, (1.15, 1.0, 0.9)))
    size = crystal_size_um * aspect * rng.uniform(0.8, 1.2, 3)
    n_cuts = int(rng.integers(2, 9))
    if shape == "bipyramid":
        # tetragonal: the first two axes are equal, and there are no other faces
        size[1], n_cuts = size[0], 0
    half = size / 2
    normals = unit(rng.normal(size=(n_cuts, 3)))
    support = np.linalg.norm(normals * half, axis=1)  # of the ellipsoid in the box
    distances = np.concatenate(
        [rng.uniform(0.85, 1.1, 6), rng.uniform(1.0, 1.25, n_cuts) * support / half.max()]
    )
    cluster = []
    for _ in range(int(rng.integers(1, 4)) if shape == "cluster" else 0):
        place, axis = rng.uniform(-0.5, 0.5, 3), unit(rng.normal(size=3))
        cluster.append(_floats([*place, *axis, rng.uniform(10, 170)]))
    return size, distances, normals, cluster


def random_parameters(
    rng: np.random.Generator,
    crystal_size_um: float = 80.0,
    shape: str | None = None,
    stem_length_um: float = 150.0,
    film: bool | None = None,
    pin: bool = False,
    max_bubbles: int = 2,
    wear: str = "none",
) -> SampleParameters:
    """Random numbers for :func:`anacor_dials.simulation.samples.build_sample`, of samples as they
    occur at a beamline.

    Parameters
    ----------
    rng : numpy.random.Generator
    crystal_size_um : float
        The mean size of the crystal; the rest of the sample is made to fit it.
    shape : str, optional
        One of CRYSTAL_SHAPES; random if not given.
    stem_length_um : float
    film : bool, optional
        Whether the loop has a film; random if not given.
    pin : bool
        Whether there is a pin.
    max_bubbles : int
    wear : str
        One of WEAR: the crystal is as it grew, its edges are rounded, or a piece is broken off.

    Raises
    ------
    ValueError
        If shape or wear are unknown.
    """
    if wear not in WEAR:
        raise ValueError(f"The wear {wear!r} is unknown; known are {', '.join(WEAR)}.")
    shape = str(rng.choice(CRYSTAL_SHAPES, p=SHAPE_FREQUENCIES)) if shape is None else shape
    size, distances, normals, cluster = _random_crystal(rng, shape, crystal_size_um)
    longest = float(np.linalg.norm(size)) * (1.4 if cluster else 1.0)
    ring_along = longest * rng.uniform(0.75, 1.1) + 15.0
    ring_across = max(ring_along * rng.uniform(0.7, 1.0), 0.5 * longest + 15.0)
    fibre = rng.uniform(4.0, 9.0)
    with_film = bool(rng.random() < 0.25) if film is None else film
    film_thickness = float(rng.uniform(2.0, 6.0)) if with_film else 0.0
    n_bumps = int(rng.integers(2, 7))
    bumps = np.column_stack(
        [unit(rng.normal(size=(n_bumps, 3))), rng.uniform(-0.06, 0.10, n_bumps)]
    )
    drop = (
        ring_along * rng.uniform(0.85, 1.12),
        ring_across * rng.uniform(0.85, 1.12),
        max(0.5 * longest * rng.uniform(0.75, 1.2), 0.7 * float(size.min())) + 6.0,
    )
    bubbles = []
    for _ in range(int(rng.integers(0, max_bubbles + 1))):
        place = unit(rng.normal(size=3)) * rng.uniform(0.4, 0.8) * np.array(drop)
        bubbles.append((*place.tolist(), float(rng.uniform(2.0, 10.0))))
    return SampleParameters(
        shape=shape,
        crystal_size=_floats(size),
        crystal_distances=_floats(distances),
        cut_normals=tuple(_floats(n) for n in normals),
        crystal_turn_axis=_floats(unit(rng.normal(size=3))),
        crystal_turn=float(rng.uniform(0, 180)),
        crystal_shift=_floats(rng.uniform(-0.12, 0.12, 3) * np.array(drop)),
        cluster=tuple(cluster),
        loop_turn=float(rng.uniform(0, 180)),
        ring_radii=(float(ring_along), float(ring_across)),
        fibre=(float(fibre), float(fibre * rng.uniform(0.6, 1.2))),
        stem_length=float(stem_length_um),
        pin=pin,
        film=film_thickness,
        drop=_floats(drop),
        meniscus=float(rng.uniform(0.0, 0.6)),
        tail=float(rng.uniform(0.0, 0.25)),
        bumps=tuple(_floats(b) for b in bumps),
        bubbles=tuple(_floats(b) for b in bubbles),
        rounding=float(rng.uniform(*ROUNDING)) if wear == "rounded" else 0.0,
        broken=(*_floats(unit(rng.normal(size=3))), float(rng.uniform(*BREAK)))
        if wear == "broken"
        else (),
    )


def _floats(values: ArrayLike) -> Any:
    """The values as a tuple of plain numbers."""
    return tuple(float(v) for v in np.asarray(values).ravel())
