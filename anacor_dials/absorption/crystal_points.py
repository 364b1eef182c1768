"""Points of the crystal at which its transmission is sampled.

The crystal is divided into n/2 parts, and two points are taken at random from each. The parts are
stretches of a Hilbert curve through the voxels: they are compact, whatever the shape of the
crystal. The error of a mean over such points falls as n^-5/6; that of independent random points
falls as n^-1/2 (stratified sampling; Cochran, Sampling Techniques, 1977, ch. 5). The parts have
equal volumes, or are smaller where the result depends strongly on the point (Neyman's allocation,
ibid. 5.5). The weight of a point is the volume of its part. The two points of a part give an
unbiased estimate of the error: var(sum w f) = sum over parts of w^2 (f_a - f_b)^2. Since the points
are in the order of the curve, the rays of neighbours read the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.volumes import LabelVolume

# Crystal voxels are counted in blocks of 8 x 8 x 8: the curve is followed through single voxels
# only in blocks that a point falls into.
BLOCK_BITS = 3
BLOCK = 1 << BLOCK_BITS
IN_BLOCK = BLOCK**3


@njit(cache=True)
def hilbert_code(x, y, z, bits):  # type: ignore[no-untyped-def]
    """The position along the Hilbert curve of a cell of a cube with 2^bits cells on edge.

    Skilling, AIP Conf. Proc. 707 (2004) 381: the coordinates become the transposed code, whose bits
    are then interleaved.
    """
    q = 1 << (bits - 1)
    while q > 1:
        p = q - 1
        if x & q:
            x ^= p
        if y & q:
            x ^= p
        else:
            t = (x ^ y) & p
            x ^= t
            y ^= t
        if z & q:
            x ^= p
        else:
            t = (x ^ z) & p
            x ^= t
            z ^= t
        q >>= 1
    y ^= x
    z ^= y
    t = 0
    q = 1 << (bits - 1)
    while q > 1:
        if z & q:
            t ^= q - 1
        q >>= 1
    x ^= t
    y ^= t
    z ^= t
    code = 0
    for bit in range(bits - 1, -1, -1):
        code = (code << 3) | (((x >> bit) & 1) << 2) | (((y >> bit) & 1) << 1) | ((z >> bit) & 1)
    return code


@njit(cache=True)
def hilbert_cell(code, bits):  # type: ignore[no-untyped-def]
    """The cell (x, y, z) at a position along the Hilbert curve: the inverse of hilbert_code."""
    x = 0
    y = 0
    z = 0
    for bit in range(bits):
        z |= ((code >> (3 * bit)) & 1) << bit
        y |= ((code >> (3 * bit + 1)) & 1) << bit
        x |= ((code >> (3 * bit + 2)) & 1) << bit
    t = z >> 1
    z ^= y
    y ^= x
    x ^= t
    q = 2
    while q != 1 << bits:
        p = q - 1
        if z & q:
            x ^= p
        else:
            t = (x ^ z) & p
            x ^= t
            z ^= t
        if y & q:
            x ^= p
        else:
            t = (x ^ y) & p
            x ^= t
            y ^= t
        if x & q:
            x ^= p
        q <<= 1
    return x, y, z


@njit(parallel=True, cache=True)
def _count_in_blocks(labels, label, counts):  # type: ignore[no-untyped-def]
    nx, ny, nz = labels.shape
    for a in prange(counts.shape[0]):
        for x in range(a * BLOCK, min(nx, (a + 1) * BLOCK)):
            for y in range(ny):
                row = labels[x, y]
                for z in range(nz):
                    if row[z] == label:
                        counts[a, y // BLOCK, z // BLOCK] += 1


@njit(parallel=True, cache=True)
def hilbert_codes(cells, bits):  # type: ignore[no-untyped-def]
    """The positions (n,) of cells (n, 3) along the Hilbert curve of a cube of 2^bits cells."""
    codes = np.empty(cells.shape[0], dtype=np.int64)
    for i in prange(cells.shape[0]):
        codes[i] = hilbert_code(cells[i, 0], cells[i, 1], cells[i, 2], bits)
    return codes


@njit(parallel=True, cache=True)
def hilbert_cells(codes, bits):  # type: ignore[no-untyped-def]
    """The cells (n, 3) at positions (n,) along the curve: the inverse of hilbert_codes."""
    cells = np.empty((codes.shape[0], 3), dtype=np.int64)
    for i in prange(codes.shape[0]):
        cells[i] = hilbert_cell(codes[i], bits)
    return cells


@njit(parallel=True, cache=True)
def _voxels_of_ranks(labels, label, codes, bits, starts, ranks, voxels):  # type: ignore[no-untyped-def]
    """Writes the voxels with given ranks along the curve within their blocks to voxels (n, 3).

    Block i has the ranks[starts[i]:starts[i + 1]], in ascending order.
    """
    nx, ny, nz = labels.shape
    for i in prange(codes.shape[0]):
        seen = 0
        wanted = starts[i]
        for j in range(IN_BLOCK):
            x, y, z = hilbert_cell(codes[i] * IN_BLOCK + j, bits + BLOCK_BITS)
            if x < nx and y < ny and z < nz and labels[x, y, z] == label:
                while wanted < starts[i + 1] and ranks[wanted] == seen:
                    voxels[wanted, 0] = x
                    voxels[wanted, 1] = y
                    voxels[wanted, 2] = z
                    wanted += 1
                if wanted == starts[i + 1]:
                    break
                seen += 1


@dataclass(frozen=True, eq=False)
class SampledPoints:
    """n points of the crystal.

    Attributes
    ----------
    voxels : array (n, 3)
        Fractional voxel indices, or positions in um in a solid with plane faces. Points 2k and
        2k + 1 come from one part of the crystal.
    weights : array (n,)
        The volume of the part, relative to the mean volume of the parts.
    """

    voxels: FloatArray
    weights: FloatArray

    def __len__(self) -> int:
        return len(self.voxels)

    def __getitem__(self, index: Any) -> SampledPoints:
        return SampledPoints(self.voxels[index], self.weights[index])


def stratified_places(
    length: float, n: int, rng: np.random.Generator, importance: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Random places on a line, two in each of n/2 parts of it, and their weights.

    Parameters
    ----------
    length : float
        The length of the line, which begins at 0.
    n : int
        An even number.
    rng : numpy.random.Generator
    importance : array (k,), optional
        The relative density of places in k equal stretches of the line, all > 0. By default it is
        constant.

    Returns
    -------
    places : array (n,)
        Places 2k and 2k + 1 lie in one part; the parts follow each other.
    weights : array (n,)
        The length of the part, relative to the mean length.

    Raises
    ------
    ValueError
        If n is odd or less than 2.
    """
    if n < 2 or n % 2:
        raise ValueError(f"{n} points were asked for; their number must be even and >= 2.")
    density = np.ones(1) if importance is None else importance
    ends = np.linspace(0.0, length, len(density) + 1)
    until = np.concatenate([[0.0], np.cumsum(density)])
    edges = np.interp(np.linspace(0.0, until[-1], n // 2 + 1), until, ends)
    part = np.arange(n) // 2
    extent = np.diff(edges)[part]
    return edges[part] + rng.random(n) * extent, extent * (n // 2 / length)


class CrystalPoints:
    """Draws stratified points from the voxels of one label.

    Parameters
    ----------
    labels : LabelVolume
    name : str
        The name of the label.

    Attributes
    ----------
    n_voxels : int
        The number of voxels with this label.

    Raises
    ------
    ValueError
        If no voxel has this label.
    """

    def __init__(self, labels: LabelVolume, name: str = "crystal") -> None:
        self._labels = labels.values
        self._label = labels.label(name)
        shape = [-(-n // BLOCK) for n in labels.shape]
        counts = np.zeros(shape, dtype=np.int32)
        _count_in_blocks(self._labels, self._label, counts)
        blocks = np.argwhere(counts)
        if len(blocks) == 0:
            raise ValueError(f"No voxel of the volume is labelled {name!r}.")
        self._bits = max(1, (max(shape) - 1).bit_length())
        codes: NDArray[np.int64] = hilbert_codes(blocks, self._bits)
        order = np.argsort(codes)
        self._codes = codes[order]
        self._until = np.cumsum(counts[tuple(blocks[order].T)], dtype=np.int64)
        self.n_voxels = int(self._until[-1])

    def draw(
        self, n: int, rng: np.random.Generator, importance: FloatArray | None = None
    ) -> SampledPoints:
        """n points, two from each of n/2 parts.

        Parameters
        ----------
        n : int
            An even number.
        rng : numpy.random.Generator
        importance : array (k,), optional
            The relative density of points in k stretches of equal volume along the curve, all > 0.
            By default it is constant.
        """
        place, weights = stratified_places(self.n_voxels, n, rng, importance)
        along_curve = np.minimum(place.astype(np.int64), self.n_voxels - 1)
        order = np.argsort(along_curve, kind="stable")
        block = np.searchsorted(self._until, along_curve[order], side="right")
        rank = along_curve[order] - np.where(block > 0, self._until[block - 1], 0)
        hit, starts = np.unique(block, return_index=True)
        found = np.empty((n, 3), dtype=np.int64)
        _voxels_of_ranks(
            self._labels,
            self._label,
            self._codes[hit],
            self._bits,
            np.append(starts, n),
            rank,
            found,
        )
        voxels = np.empty_like(found)
        voxels[order] = found
        points = voxels + rng.random((n, 3)) - 0.5
        return SampledPoints(points, weights)
