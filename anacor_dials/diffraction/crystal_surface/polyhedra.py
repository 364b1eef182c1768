"""Labels in which crystals are the polyhedra of their faces, in voxels that may be finer.

What lies in the polyhedron becomes crystal. What was labelled as this crystal near its surface, and
lies outside, becomes what is nearest to it and no crystal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anacor_dials.absorption.convex_solid import ConvexSolid
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.volumes import LabelVolume

# What is labelled as crystal farther outside than this fraction of its size, and than so many
# voxels, is another body, and stays.
REACH, REACH_VOXELS = 0.1, 3
FINEST_VOXEL_UM = 0.25  # finer edges than this change no factor
MOST_FINER, MOST_VOXELS = 3, 250_000_000  # limit memory and time


@dataclass(frozen=True, eq=False)
class PlacedPolyhedron:
    """A polyhedron in the frame of the tomogram.

    Attributes
    ----------
    solid : ConvexSolid
    origin_um : array (3,)
        Where the origin of the solid is, um.
    """

    solid: ConvexSolid
    origin_um: FloatArray

    def heights(self, x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
        """How far the points of a grid (nx, ny, nz) are outside, um; < 0 inside.

        Parameters
        ----------
        x, y, z : arrays (nx,), (ny,) and (nz,)
            Their coordinates in the frame of the tomogram, um.
        """
        x, y, z = (a - o for a, o in zip((x, y, z), self.origin_um, strict=True))
        highest = np.full((len(x), len(y), len(z)), -np.inf)
        used = self.solid.areas_um2 > 0
        for n, d in zip(self.solid.normals[used], self.solid.distances_um[used], strict=True):
            np.maximum(
                highest,
                n[0] * x[:, None, None] + n[1] * y[None, :, None] + (n[2] * z - d)[None, None, :],
                out=highest,
            )
        return highest


@dataclass(frozen=True)
class PolyhedronFit:
    """How a polyhedron and the label of a crystal fit together; all in um^3.

    Attributes
    ----------
    volume_um3 : float
        Of the polyhedron.
    labelled_um3 : float
        The part of it that is labelled as crystal.
    crystal_um3 : float
        What is labelled as this crystal, inside or near the polyhedron.
    leaves_volume : bool
        Whether the polyhedron reaches out of the volume.
    """

    volume_um3: float
    labelled_um3: float
    crystal_um3: float
    leaves_volume: bool

    @property
    def dice(self) -> float:
        """2 |both| / (|polyhedron| + |crystal|)."""
        return 2 * self.labelled_um3 / max(self.volume_um3 + self.crystal_um3, 1e-12)


@dataclass(frozen=True, eq=False)
class _Box:
    """The voxels around a polyhedron, and what they are in it."""

    part: tuple[slice, slice, slice]
    heights: FloatArray
    own: NDArray[np.bool_]  # voxels that are labelled as this crystal


def polyhedron_fit(labels: LabelVolume, polyhedron: PlacedPolyhedron) -> PolyhedronFit:
    """How a polyhedron fits to the labels.

    Parameters
    ----------
    labels : LabelVolume
    polyhedron : PlacedPolyhedron
    """
    corners = polyhedron.solid.corners + polyhedron.origin_um
    index = corners / labels.voxel_size_um + labels.centre
    leaves = bool(np.any(index < -1) or np.any(index > np.array(labels.shape)))
    box = _box(labels, polyhedron)
    voxel = float(np.prod(labels.voxel_size_um))
    inside = box.heights <= 0
    crystal = labels.values[box.part] == labels.label("crystal")
    return PolyhedronFit(
        polyhedron.solid.volume_um3,
        voxel * np.count_nonzero(inside & crystal),
        voxel * np.count_nonzero(box.own),
        leaves,
    )


def _box(labels: LabelVolume, polyhedron: PlacedPolyhedron) -> _Box:
    size, voxel = np.cbrt(polyhedron.solid.volume_um3), labels.voxel_size_um
    reach = max(REACH * size, REACH_VOXELS * float(voxel.max()))
    corners = polyhedron.solid.corners + polyhedron.origin_um
    low = np.floor((corners.min(axis=0) - reach) / voxel + labels.centre).astype(int)
    high = np.ceil((corners.max(axis=0) + reach) / voxel + labels.centre).astype(int) + 1
    low, high = np.maximum(low, 0), np.minimum(high, labels.shape)
    part = tuple(slice(int(a), int(max(a, b))) for a, b in zip(low, high, strict=True))
    axes = [
        (np.arange(s.start, s.stop) - c) * v
        for s, c, v in zip(part, labels.centre, voxel, strict=True)
    ]
    heights = polyhedron.heights(axes[0], axes[1], axes[2])
    crystal = labels.values[part] == labels.label("crystal")
    bodies, n = ndimage.label(crystal)
    counts = np.bincount(bodies.ravel(), minlength=n + 1)
    within = np.bincount(bodies[heights <= 0], minlength=n + 1)
    mine = within > 0.5 * counts
    mine[0] = False
    return _Box(part, heights, mine[bodies] & (heights <= reach))  # type: ignore[arg-type]


def finer_by(labels: LabelVolume) -> int:
    """By how much voxels are divided along each axis, so that edges are finer than the voxels."""
    finer = 1
    while (
        finer < MOST_FINER
        and labels.voxel_size_um.min() / (finer + 1) >= FINEST_VOXEL_UM
        and labels.values.size * (finer + 1) ** 3 <= MOST_VOXELS
    ):
        finer += 1
    return finer


def labels_of_polyhedra(
    labels: LabelVolume, polyhedra: Sequence[PlacedPolyhedron], finer: int = 1
) -> LabelVolume:
    """The labels with polyhedra in place of crystals.

    Parameters
    ----------
    labels : LabelVolume
    polyhedra : sequence of PlacedPolyhedron
    finer : int
        The number of voxels along each edge of one of the given voxels.
    """
    crystal = labels.label("crystal")
    values = labels.values.copy()
    for polyhedron in polyhedra:
        box = _box(labels, polyhedron)
        here = labels.values[box.part]
        if np.all(here == crystal):  # there is nothing else near it
            continue
        _, nearest = ndimage.distance_transform_edt(
            here == crystal, labels.voxel_size_um, return_indices=True
        )
        values[box.part][box.own] = here[tuple(nearest)][box.own]
    for axis in range(3):
        values = np.repeat(values, finer, axis=axis)
    voxel = labels.voxel_size_um / finer
    centre = finer * labels.centre + (finer - 1) / 2
    for polyhedron in polyhedra:
        corners = (polyhedron.solid.corners + polyhedron.origin_um) / voxel + centre
        low = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
        high = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, values.shape)
        x, y, z = (
            (np.arange(a, b) - c) * v for a, b, c, v in zip(low, high, centre, voxel, strict=True)
        )
        for i, at in enumerate(x):  # plane by plane, so that nothing large is made
            plane = values[low[0] + i, low[1] : high[1], low[2] : high[2]]
            plane[polyhedron.heights(np.array([at]), y, z)[0] <= 0] = crystal
    return LabelVolume(values, voxel, centre, labels.names)
