"""Points on the surface of each crystal of a labelled volume, with their normals.

The surface is where the smoothed label is one half (marching cubes; Lorensen & Cline, Computer
Graphics 21 (1987) 163). The mean of a label over a ball is one half on a plane, wherever the plane
lies between the voxels, so that planes keep their places; edges become round. A normal is that of
the plane through the neighbours of a point: normals of single triangles follow the steps of voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from anacor_dials.sample.frames import FloatArray, unit
from anacor_dials.sample.volumes import LabelVolume

MOST_VOXELS = 8_000_000  # of the box around the crystals; larger ones are averaged over blocks
MOST_POINTS = 12_000  # of the surface of a crystal
SMOOTHING_VOXELS = 1.2  # standard deviation of the Gaussian
# Neighbours lie within this fraction of the crystal's size, the edge of the cube as large as it.
NEIGHBOURHOOD = 0.12
EMPTY_BLOCKS = 5  # around the crystals, in which the smoothed label vanishes
FEWEST_VOXELS = 500  # of a crystal; a smaller one has no faces to speak of
SMALLEST_CRYSTAL = 0.05  # of the volume of all crystals


@dataclass(frozen=True, eq=False)
class CrystalSurface:
    """Points that are evenly spread over the surface of one crystal.

    Attributes
    ----------
    points : array (n, 3)
        In the tomo frame, um.
    normals : array (n, 3)
        Outward unit normals of the surface around each point.
    areas : array (n,)
        The part of the surface that each point stands for, um^2.
    roughness_um : float
        The median rms distance of neighbours from the plane through them, um.
    voxel_um : float
        The edge of the voxels that the surface was found with, um.
    volume_um3 : float
        Of the crystal.
    centre : array (3,)
        The centre of its volume, um.
    """

    points: FloatArray
    normals: FloatArray
    areas: FloatArray
    roughness_um: float
    voxel_um: float
    volume_um3: float
    centre: FloatArray

    @property
    def size_um(self) -> float:
        """The edge of the cube that is as large as the crystal, um."""
        return float(np.cbrt(self.volume_um3))

    def __repr__(self) -> str:
        return f"CrystalSurface({len(self.points)} points, {self.size_um:.3g} um)"


def crystal_surfaces(labels: LabelVolume) -> list[CrystalSurface]:
    """The surfaces of all crystals of a volume, the largest crystal first.

    A crystal is a connected part of the label "crystal". Parts of less than 5 % of the whole, or of
    less than 500 voxels, are left out.

    Parameters
    ----------
    labels : LabelVolume
    """
    box = _occupied(labels.values, labels.label("crystal"))
    if box is None:
        return []
    grid = _Grid.around(box, labels)
    share = grid.share_of(labels)
    parts, n = ndimage.label(share >= 0.5)
    counts = np.bincount(parts.ravel(), minlength=n + 1)[1:]
    surfaces = []
    for number in np.argsort(-counts):
        if counts[number] < max(FEWEST_VOXELS, SMALLEST_CRYSTAL * counts.sum()):
            break
        if np.count_nonzero(counts) == 1:
            mine = share
        else:  # with the voxels at its surface of which a smaller part is crystal
            around = ndimage.binary_dilation(parts == number + 1, iterations=2)
            others = (parts > 0) & (parts != number + 1)
            mine = np.where(around & ~others, share, np.float32(0))
        surfaces.append(_surface(mine, grid, labels))
    return surfaces


def _occupied(values: NDArray[np.uint8], label: int) -> NDArray[np.int64] | None:
    """First and last index (2, 3) of the voxels of a label; None if there are none."""
    along = np.zeros(values.shape[0], dtype=bool)
    across = np.zeros(values.shape[1:], dtype=bool)
    for i, plane in enumerate(values):  # plane by plane, so that nothing large is copied
        mask = plane == label
        along[i] = mask.any()
        across |= mask
    if not along.any():
        return None
    ends = [np.flatnonzero(a)[[0, -1]] for a in (along, across.any(axis=1), across.any(axis=0))]
    return np.array(ends).T


@dataclass(frozen=True, eq=False)
class _Grid:
    """Blocks of voxels around the crystals, which are the voxels of the surface.

    first: index (3,) of the first voxel of the first block; it may lie outside the volume. block:
    voxels (3,) of a block along each axis. shape: number (3,) of blocks.
    """

    first: NDArray[np.int64]
    block: NDArray[np.int64]
    shape: NDArray[np.int64]

    @classmethod
    def around(cls, box: NDArray[np.int64], labels: LabelVolume) -> _Grid:
        """The grid of at most about MOST_VOXELS blocks around voxels from box[0] to box[1]."""
        size, voxel = box[1] - box[0] + 1, labels.voxel_size_um
        edge = float(np.prod(size * voxel) / MOST_VOXELS) ** (1 / 3)
        block = np.maximum(1, np.round(max(edge, float(voxel.max())) / voxel)).astype(np.int64)
        first = box[0] - EMPTY_BLOCKS * block
        return cls(first, block, -(-size // block) + 2 * EMPTY_BLOCKS)

    def share_of(self, labels: LabelVolume) -> NDArray[np.float32]:
        """The share of crystal in each block (nx, ny, nz)."""
        label, values = labels.label("crystal"), labels.values
        share = np.zeros(self.shape, dtype=np.float32)
        end = self.first + self.block * self.shape
        low, high = np.maximum(self.first, 0), np.minimum(end, values.shape)
        _, by, bz = self.block
        _, ny, nz = self.shape
        pad = [(int(low[k] - self.first[k]), int(end[k] - high[k])) for k in (1, 2)]
        for i in range(low[0], high[0]):
            plane = values[i, low[1] : high[1], low[2] : high[2]] == label
            if plane.any():
                blocks = np.pad(plane, pad).reshape(ny, by, nz, bz).sum(axis=(1, 3))
                share[(i - self.first[0]) // self.block[0]] += blocks
        return share / np.float32(self.block.prod())

    def position_um(self, index: FloatArray, labels: LabelVolume) -> FloatArray:
        """Positions (n, 3), um, of fractional numbers (n, 3) of blocks."""
        return labels.position_um(index * self.block + (self.block - 1) / 2 + self.first)


def _surface(share: NDArray[np.float32], grid: _Grid, labels: LabelVolume) -> CrystalSurface:
    """The surface of the crystal whose share in each block is given."""
    edges = labels.voxel_size_um * grid.block
    smooth = ndimage.gaussian_filter(share, SMOOTHING_VOXELS * edges.max() / edges)
    corners, triangles, _, _ = marching_cubes(smooth, 0.5)
    position = grid.position_um(corners, labels)
    p, q, r = (position[triangles[:, k]] for k in range(3))
    across, middle = 0.5 * np.cross(q - p, r - p), (p + q + r) / 3
    volume = float(np.einsum("ij,ij->", middle, across)) / 3
    if volume < 0:  # the triangles run clockwise, seen from outside
        across, volume = -across, -volume
    index = np.nonzero(share)
    weights = share[index].astype(np.float64)
    centre = np.array([np.average(axis, weights=weights) for axis in index])
    points, normals, areas = _spread(middle, across)
    normals, roughness = _smoothed_normals(points, normals, areas, NEIGHBOURHOOD * np.cbrt(volume))
    return CrystalSurface(
        points,
        normals,
        areas,
        roughness,
        float(edges.max()),
        volume,
        grid.position_um(centre, labels),
    )


def _spread(middle: FloatArray, across: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Points, normals and areas of the cells of a grid with at most about MOST_POINTS of them."""
    area = np.linalg.norm(across, axis=1)
    edge = np.sqrt(area.sum() / MOST_POINTS)
    _, cell = np.unique(np.floor(middle / edge).astype(np.int64), axis=0, return_inverse=True)
    cell = cell.ravel()
    total = np.maximum(np.bincount(cell, area), 1e-12)
    points = np.column_stack([np.bincount(cell, area * x) / total for x in middle.T])
    sums = np.column_stack([np.bincount(cell, x) for x in across.T])
    sound = np.linalg.norm(sums, axis=1) > 0.3 * total
    return points[sound], unit(sums[sound]), total[sound]


def _smoothed_normals(
    points: FloatArray, normals: FloatArray, areas: FloatArray, radius: float
) -> tuple[FloatArray, float]:
    """Normals (n, 3) of planes through neighbours, and the median rms distance from the planes.

    The planes go through neighbours whose own normals are within 60 degrees of that of the point.
    """
    tree = cKDTree(points)
    found = np.empty_like(normals)
    rms = np.empty(len(points))
    for i, near in enumerate(tree.query_ball_point(points, radius)):
        members = np.array(near)
        members = members[normals[members] @ normals[i] > 0.5]
        w = areas[members] / areas[members].sum()
        from_mean = points[members] - w @ points[members]
        values, vectors = np.linalg.eigh((w[:, None] * from_mean).T @ from_mean)
        normal = vectors[:, 0]
        found[i] = normal if normal @ normals[i] > 0 else -normal
        rms[i] = np.sqrt(max(values[0], 0.0))
    return found, float(np.median(rms))
