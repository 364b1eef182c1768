"""Solids of a sample as signed distances, for grids of voxels and for meshes.

A solid is a function of position that is negative inside and positive outside; near the surface it
is the distance from the surface in um. The union of two solids is the minimum of their functions,
the intersection is the maximum, and a solid is cut away by the maximum with its negative. So
rounded and cracked crystals, skins of liquor and meshes of polyimide take a few lines each.

:mod:`.sample_families` draws random samples of solids; :mod:`.sample_surfaces` makes meshes of
them.

Positions are in um in the tomo frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.frames import FloatArray

Array = NDArray[np.float32]
# of coordinates x (nx, 1, 1), y (1, ny, 1), z (1, 1, nz) or any three that broadcast, in um
Distance = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True, eq=False)
class Solid:
    """One solid: its material, its signed distance, and a sphere that holds it.

    Parameters
    ----------
    material : str
        liquor, loop, crystal, salt, ice, dirt, pin or background (a bubble). In a list, a solid
        takes the place of earlier ones where they overlap.
    distance : callable
        The signed distance, um, of (x, y, z).
    centre : array (3,)
    radius : float
        Of the sphere, um; infinite if the solid reaches beyond every volume.
    """

    material: str
    distance: Distance
    centre: FloatArray
    radius: float


# ---- shapes --------------------------------------------------------------------------------------


def polyhedron(normals: ArrayLike, distances: ArrayLike, rounding: float = 0.0) -> Distance:
    """A convex solid n . r <= d.

    Parameters
    ----------
    normals : array (n, 3)
        Unit vectors.
    distances : array (n,)
        From the origin, um.
    rounding : float
        Radius, um, of edges and corners. It is exact where faces meet at right angles, and somewhat
        larger at blunt edges.
    """
    n = np.asarray(normals, dtype=np.float32)
    d = np.asarray(distances, dtype=np.float32) - np.float32(rounding)

    def distance(x: Any, y: Any, z: Any) -> Any:
        farthest: Any = None
        squares: Any = None
        for normal, offset in zip(n, d, strict=True):
            here = (normal[0] * x + (normal[1] * y - offset)) + normal[2] * z
            farthest = here if farthest is None else np.maximum(farthest, here, out=farthest)
            if rounding:
                outside = np.maximum(here, 0)
                outside *= outside
                squares = outside if squares is None else np.add(squares, outside, out=squares)
        if rounding:
            return np.minimum(farthest, 0) + np.sqrt(squares) - np.float32(rounding)
        return farthest

    return distance


def _radius(k0: Any, k1: Any, smallest: float) -> Any:
    """k0 / k1, which makes a distance in um of a relative one; `smallest` at the very middle."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(k1 > 0, k0 / k1, np.float32(smallest))


def ellipsoid(half_axes: ArrayLike) -> Distance:
    """An ellipsoid about the origin; half_axes (3,) in um.

    The distance is exact to first order at the surface.
    """
    a = np.asarray(half_axes, dtype=np.float32)

    def distance(x: Any, y: Any, z: Any) -> Any:
        k0 = np.sqrt((x / a[0]) ** 2 + (y / a[1]) ** 2 + (z / a[2]) ** 2)
        k1 = np.sqrt((x / a[0] ** 2) ** 2 + (y / a[1] ** 2) ** 2 + (z / a[2] ** 2) ** 2)
        return (k0 - 1) * _radius(k0, k1, a.min())

    return distance


def ring(along: float, across: float, half_width: float, half_height: float) -> Distance:
    """A closed fibre along an ellipse in the plane z = 0, pointed towards -x as loops are.

    Parameters
    ----------
    along, across : float
        Half axes, um, to the middle of the fibre.
    half_width, half_height : float
        Of the elliptical cross-section of the fibre, in the plane and across it, um.
    """

    def distance(x: Any, y: Any, z: Any) -> Any:
        # the ellipse is narrower where x < 0
        taper = 0.85 + 0.15 * np.clip(x / np.float32(along), -1, 1)
        v = y / taper
        k0 = np.sqrt((x / np.float32(along)) ** 2 + (v / np.float32(across)) ** 2)
        k1 = np.sqrt((x / np.float32(along**2)) ** 2 + (v / np.float32(across**2)) ** 2)
        off_curve = (k0 - 1) * _radius(k0, k1, min(along, across))
        if half_width == half_height:
            return np.sqrt(off_curve**2 + z**2) - np.float32(half_width)
        inside = np.sqrt(
            (off_curve / np.float32(half_width)) ** 2 + (z / np.float32(half_height)) ** 2
        )
        slope = np.sqrt(
            (off_curve / np.float32(half_width**2)) ** 2 + (z / np.float32(half_height**2)) ** 2
        )
        return (inside - 1) * _radius(inside, slope, min(half_width, half_height))

    return distance


def cylinder(radius: float, low: float, high: float, taper: float = 0.0) -> Distance:
    """A cylinder or cone about x.

    Parameters
    ----------
    radius : float
        um.
    low, high : float
        Its ends along x, um.
    taper : float
        The radius grows by this per length towards -x.
    """

    def distance(x: Any, y: Any, z: Any) -> Any:
        around = np.sqrt(y**2 + z**2) - (np.float32(radius) + np.float32(taper) * (high - x))
        return np.maximum(around, np.maximum(np.float32(low) - x, x - np.float32(high)))

    return distance


def sheet(outline: Callable[[Any, Any], Any], thickness: float, bend: float = 0.0) -> Distance:
    """A sheet about z = 0.

    Parameters
    ----------
    outline : callable
        The signed distance, um, of (x, y).
    thickness : float
        um.
    bend : float
        Curvature about x, 1/um; mounts of polyimide are rolled to make them stiff.
    """

    def distance(x: Any, y: Any, z: Any) -> Any:
        height = z - np.float32(0.5 * bend) * y**2 if bend else z
        return np.maximum(np.abs(height) - np.float32(0.5 * thickness), outline(x, y))

    return distance


def moved(distance: Distance, turn: ArrayLike, shift_um: ArrayLike) -> Distance:
    """A solid after a rotation and a shift.

    Parameters
    ----------
    distance : callable
    turn : array (3, 3)
        Rotation matrix.
    shift_um : array (3,)
    """
    r = np.asarray(turn, dtype=np.float32)
    s = np.asarray(shift_um, dtype=np.float32)

    def there(x: Any, y: Any, z: Any) -> Any:
        x, y, z = x - s[0], y - s[1], z - s[2]
        return distance(*((r[0, k] * x + r[1, k] * y) + r[2, k] * z for k in range(3)))

    return there


def union(*distances: Distance) -> Distance:
    """The solid of all points that are in at least one of the solids."""

    def distance(x: Any, y: Any, z: Any) -> Any:
        out = distances[0](x, y, z)
        for other in distances[1:]:
            out = np.minimum(out, other(x, y, z))
        return out

    return distance


def intersection(*distances: Distance) -> Distance:
    """The solid of all points that are in all of the solids."""

    def distance(x: Any, y: Any, z: Any) -> Any:
        out = distances[0](x, y, z)
        for other in distances[1:]:
            out = np.maximum(out, other(x, y, z))
        return out

    return distance


def without(distance: Distance, *cut: Distance) -> Distance:
    """A solid from which others are cut away."""
    return intersection(distance, *(lambda x, y, z, c=c: -c(x, y, z) for c in cut))


def thicker(distance: Distance, by_um: float) -> Distance:
    """A solid with its surface moved outwards by by_um; inwards if it is negative."""
    return lambda x, y, z: distance(x, y, z) - np.float32(by_um)


def wavy(
    distance: Distance, amplitude_um: float, length_um: float, rng: np.random.Generator
) -> Distance:
    """A solid with a smoothly irregular surface.

    Each wave is a product of sines of x, y and z, which is fast to compute on a grid.

    Parameters
    ----------
    distance : callable
    amplitude_um : float
        rms height of the waves.
    length_um : float
        About the length of a wave.
    rng : numpy.random.Generator
    """
    n = 4
    k = rng.uniform(0.5, 1.5, (n, 3)) * np.pi / length_um
    phase = rng.uniform(0, 2 * np.pi, (n, 3))
    height = amplitude_um * np.sqrt(8 / n) * rng.uniform(0.6, 1.4, n)

    def there(x: Any, y: Any, z: Any) -> Any:
        out = distance(x, y, z)
        for i in range(n):
            a, b, c = (
                np.sin(np.float32(k[i, j]) * v + np.float32(phase[i, j]))
                for j, v in enumerate((x, y, z))
            )
            out = out + (np.float32(height[i]) * a * b) * c
        return out

    return there


def crack(normal: ArrayLike, offset: float, half_width: float) -> Distance:
    """A gap between two parallel planes.

    Parameters
    ----------
    normal : array (3,)
        Unit vector.
    offset, half_width : float
        Distance of the middle of the gap from the origin, and half its width, um.
    """
    n = np.asarray(normal, dtype=np.float32)

    def distance(x: Any, y: Any, z: Any) -> Any:
        return np.abs((n[0] * x + (n[1] * y - np.float32(offset))) + n[2] * z) - np.float32(
            half_width
        )

    return distance


# ---- on a grid -----------------------------------------------------------------------------------


def coordinates(
    shape: Sequence[int], voxel_size_um: float, centre: ArrayLike
) -> tuple[Array, Array, Array]:
    """x (nx, 1, 1), y (1, ny, 1) and z (1, 1, nz), in um, of the voxels of a volume.

    Parameters
    ----------
    shape : (int, int, int)
    voxel_size_um : float
    centre : (float, float, float)
        Voxel index of the origin.
    """
    c = np.asarray(centre, dtype=np.float64)
    x, y, z = (
        ((np.arange(n) - c[k]) * voxel_size_um).astype(np.float32) for k, n in enumerate(shape)
    )
    return x[:, None, None], y[None, :, None], z[None, None, :]


def on_grid(
    solids: Sequence[Solid],
    values: Mapping[str, Sequence[float]],
    labels: Mapping[str, int],
    shape: tuple[int, int, int],
    voxel_size_um: float,
    centre: ArrayLike,
) -> tuple[list[Array], NDArray[np.uint8]]:
    """Properties [(nx, ny, nz) float32, ...] and labels (nx, ny, nz) uint8 of solids on voxels.

    A property is averaged over the parts of a voxel that lie in different solids. The label is that
    of the centre of the voxel.

    Parameters
    ----------
    solids : sequence of Solid
    values : mapping
        {material: numbers}, one for each property (for instance mu in 1/um, and delta). Outside of
        all solids they are 0.
    labels : mapping
        {material: label}.
    shape : (int, int, int)
    voxel_size_um : float
    centre : (float, float, float)
        Voxel index of the origin.
    """
    x, y, z = coordinates(shape, voxel_size_um, centre)
    n = len(next(iter(values.values())))
    properties = [np.zeros(shape, dtype=np.float32) for _ in range(n)]
    found = np.zeros(shape, dtype=np.uint8)
    for solid in solids:
        box = []
        for line, middle in zip((x, y, z), solid.centre, strict=True):
            near = np.flatnonzero(np.abs(line.ravel() - middle) <= solid.radius + voxel_size_um)
            box.append(slice(int(near[0]), int(near[-1]) + 1) if near.size else slice(0, 0))
        if any(b.stop <= b.start for b in box):
            continue
        d = solid.distance(x[box[0]], y[:, box[1]], z[:, :, box[2]])
        share = np.clip(np.float32(0.5) - d / np.float32(voxel_size_um), 0, 1)
        here = (box[0], box[1], box[2])
        for volume, value in zip(properties, values[solid.material], strict=True):
            volume[here] += share * (np.float32(value) - volume[here])
        found[here][np.broadcast_to(d < 0, share.shape)] = labels[solid.material]
    return properties, found
