"""Iterative reconstruction with total variation and positivity, for scans where FBP is not enough.

Of all slices ``x >= 0`` that one is found which makes

    1/2 |A x - p|^2 + lambda TV(x)

least: A is the parallel projection by Joseph's method (IEEE Trans. Med. Imaging 1 (1982) 192), p is
-ln T, and TV the sum of the lengths of the gradients (Rudin, Osher & Fatemi, Physica D 60 (1992)
259), in three dimensions. The primal-dual method of Chambolle & Pock (J. Math. Imaging Vis. 40
(2011) 120) does it, preconditioned by the ramp filter (as Sidky et al., Phys. Med. Biol. 57 (2012)
3065, suggest): with it a step is about a filtered back-projection of what the slices do not yet
explain, so that some tens of steps are enough.

A and its transpose are written per voxel: a voxel is seen by the two pixels next to its shadow,
with the weights that Joseph's interpolation between voxels gives them, and the back-projection
reads the same pixels with the same weights. So the pair is matched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.tomography.ramp_filter import Sinograms, ramp_filter
from anacor_dials.tomography.slice_grid import SliceGrid

# Slices that are reconstructed together. The loop over them is the innermost one and takes its
# length from an array: with a length known to the compiler it is unrolled, and not vectorised.
LANES = 32
TILE = 16  # voxels: edge of the square that stays in the cache while all angles are added
ANGLES = 16  # angles for which a row of voxels is projected while it stays in the cache
PADDING = 2  # pixels beside the detector, on which falls what is out of view
HALO = 1  # slices on either side of a batch that are reconstructed for the sake of its own
STEPS = 25  # mu and noise change by less than 1 % and a tenth with twice as many
STRENGTH = (
    0.5  # lambda by the noise of p and the root of the number of angles: see RESULTS-iterative.md
)
BALANCE = 0.5  # of the steps of the data, by the number of angles
NORM_STEPS = 8  # of the power method
OUT_OF_VIEW = (
    0.1  # of the strongest absorption, at a side of the detector: the sample reaches beyond
)

Block = NDArray[np.float32]


@dataclass(frozen=True)
class Geometry:
    """Where rays and voxels are, in pixels from the rotation axis.

    Parameters
    ----------
    cos, sin : arrays (n_angles,)
        Of the angles.
    axis : float
        The pixel number of the rotation axis.
    n_u : int
        The number of pixels across it.
    grid : SliceGrid
        The voxels.
    """

    cos: FloatArray
    sin: FloatArray
    axis: float
    n_u: int
    grid: SliceGrid

    def project(self, slices: Block) -> Block:
        """A x: sinograms (n_angles, n_u, LANES) of slices (ny, nz, LANES), in voxels times their
        values.
        """
        out = np.empty((len(self.cos), self.n_u, LANES), dtype=np.float32)
        _project(slices, self.cos, self.sin, self.axis, *self.grid.start, out)
        return out

    def back_project(self, sinograms: Block) -> Block:
        """The transpose of :meth:`project`."""
        out = np.empty((*self.grid.shape, LANES), dtype=np.float32)
        padded = np.zeros((len(self.cos), self.n_u + 2 * PADDING, LANES), dtype=np.float32)
        padded[:, PADDING:-PADDING] = sinograms
        _back_project(padded, self.cos, self.sin, self.axis, *self.grid.start, out)
        return out


@numba.njit(fastmath=True, cache=True, error_model="numpy")
def _shadows(
    u0: float,
    step: float,
    peak: np.float32,
    highest: np.float32,
    pixel: NDArray[np.uint32],
    left: NDArray[np.float32],
    right: NDArray[np.float32],
) -> None:
    """Of voxels in a row: the padded pixel to the left of each one's shadow, and both pixels'
    weights.

    u0: the first one's place; step: from one to the next. A shadow is a hat of half width 1 / peak
    and area 1. Pixels are padded by PADDING on either side; what lies outside falls on the
    outermost ones.
    """
    for k in range(len(pixel)):
        u = np.float32(u0 + k * step)
        u = min(max(u, np.float32(0.0)), highest)
        i = np.uint32(u)
        f = u - np.float32(i)
        pixel[k] = i
        left[k] = max(np.float32(0.0), (np.float32(1.0) - f * peak) * peak)
        right[k] = max(np.float32(0.0), (np.float32(1.0) - (np.float32(1.0) - f) * peak) * peak)


@numba.njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _project(
    slices: Block,
    cos: FloatArray,
    sin: FloatArray,
    axis: float,
    y_start: float,
    z_start: float,
    out: Block,
) -> None:
    ny, nz, lanes = slices.shape
    n_angles, n_u = out.shape[0], out.shape[1]
    highest = np.float32(n_u - 1 + 2 * PADDING - 1)
    for block in numba.prange((n_angles + ANGLES - 1) // ANGLES):
        first = block * ANGLES
        last = min(first + ANGLES, n_angles)
        rows = np.zeros((ANGLES, n_u + 2 * PADDING, lanes), np.float32)
        pixel = np.empty(nz, np.uint32)
        left = np.empty(nz, np.float32)
        right = np.empty(nz, np.float32)
        for j in range(ny):
            for a in range(first, last):
                row = rows[a - first]
                peak = np.float32(1.0 / max(abs(cos[a]), abs(sin[a])))
                u0 = (y_start + j) * cos[a] - z_start * sin[a] + axis + PADDING
                _shadows(u0, -sin[a], peak, highest, pixel, left, right)
                for k in range(nz):
                    i = pixel[k]
                    one, two = left[k], right[k]
                    for m in range(lanes):
                        row[i, m] += one * slices[j, k, m]
                    for m in range(lanes):
                        row[i + np.uint32(1), m] += two * slices[j, k, m]
        for a in range(first, last):
            for i in range(n_u):
                for m in range(lanes):
                    out[a, i, m] = rows[a - first, i + PADDING, m]


@numba.njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _back_project(
    sinograms: Block,
    cos: FloatArray,
    sin: FloatArray,
    axis: float,
    y_start: float,
    z_start: float,
    out: Block,
) -> None:
    """sinograms: padded by PADDING pixels of zeros on either side."""
    n_angles, n_u = sinograms.shape[0], sinograms.shape[1] - 2 * PADDING
    ny, nz, lanes = out.shape
    tiles_z = (nz + TILE - 1) // TILE
    tiles = ((ny + TILE - 1) // TILE) * tiles_z
    highest = np.float32(n_u - 1 + 2 * PADDING - 1)
    for tile in numba.prange(tiles):
        j0 = (tile // tiles_z) * TILE
        k0 = (tile % tiles_z) * TILE
        total = np.zeros((TILE * TILE, lanes), np.float32)
        pixel = np.empty(TILE, np.uint32)
        left = np.empty(TILE, np.float32)
        right = np.empty(TILE, np.float32)
        for a in range(n_angles):
            row = sinograms[a]
            peak = np.float32(1.0 / max(abs(cos[a]), abs(sin[a])))
            for j in range(TILE):
                u0 = (y_start + j0 + j) * cos[a] - (z_start + k0) * sin[a] + axis + PADDING
                _shadows(u0, -sin[a], peak, highest, pixel, left, right)
                for k in range(TILE):
                    i = pixel[k]
                    one, two = left[k], right[k]
                    voxel = np.uint32(j * TILE + k)
                    for m in range(lanes):
                        total[voxel, m] += one * row[i, m] + two * row[i + np.uint32(1), m]
        for j in range(min(TILE, ny - j0)):
            for k in range(min(TILE, nz - k0)):
                for m in range(lanes):
                    out[j0 + j, k0 + k, m] = total[j * TILE + k, m]


@numba.njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _step_slices(x: Block, moved: Block, gradient: Block, dual: Block, step: float) -> None:
    """x = max(0, x - step (gradient - div dual)); moved = 2 x - x before; both in place."""
    ny, nz, lanes = x.shape
    for j in numba.prange(ny):
        for k in range(nz):
            for m in range(lanes):
                down = dual[0, j, k, m] + dual[1, j, k, m] + dual[2, j, k, m]
                if j > 0:
                    down -= dual[0, j - 1, k, m]
                if k > 0:
                    down -= dual[1, j, k - 1, m]
                if m > 0:
                    down -= dual[2, j, k, m - 1]
                before = x[j, k, m]
                after = max(np.float32(0.0), before - np.float32(step) * (gradient[j, k, m] - down))
                x[j, k, m] = after
                moved[j, k, m] = np.float32(2.0) * after - before


@numba.njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _step_dual(
    dual: Block, moved: Block, n_slices: int, along: float, step: float, most: float
) -> None:
    """dual += step * gradient of moved, then shortened to `most`; in place.

    along: the length of a voxel across X by that along X. Beyond the first n_slices is nothing.
    """
    ny, nz, lanes = moved.shape
    for j in numba.prange(ny):
        for k in range(nz):
            for m in range(lanes):
                here = moved[j, k, m]
                y = z = x = np.float32(0.0)
                if m < n_slices:
                    if j + 1 < ny:
                        y = dual[0, j, k, m] + np.float32(step) * (moved[j + 1, k, m] - here)
                    if k + 1 < nz:
                        z = dual[1, j, k, m] + np.float32(step) * (moved[j, k + 1, m] - here)
                    if m + 1 < n_slices:
                        x = dual[2, j, k, m] + np.float32(step * along) * (
                            moved[j, k, m + 1] - here
                        )
                length = math.sqrt(y * y + z * z + x * x)
                if length > most:
                    shorter = np.float32(most / length)
                    y *= shorter
                    z *= shorter
                    x *= shorter
                dual[0, j, k, m] = y
                dual[1, j, k, m] = z
                dual[2, j, k, m] = x


def noise_of(sinograms: Sinograms) -> float:
    """The standard deviation of the noise of -ln T where the sample absorbs, from pixel to pixel.

    Fourth differences across the rotation axis, which round bodies hardly have, by their median,
    which edges hardly touch.
    """
    fourth = np.diff(sinograms, 4, axis=-1)
    inside = sinograms[..., 2:-2] > 0.25 * np.percentile(sinograms, 99.5)
    values = fourth[inside] if np.any(inside) else fourth.ravel()
    return 1.4826 * float(np.median(np.abs(values))) / math.sqrt(70)  # 1, 4, 6, 4, 1 squared


def _largest_response(geometry: Geometry, filter_u: NDArray[np.float32]) -> float:
    """The largest eigenvalue of A^T F A, by the power method."""
    rng = np.random.default_rng(0)
    x = rng.random((*geometry.grid.shape, LANES), dtype=np.float32)
    largest = 1.0
    for _ in range(NORM_STEPS):
        x /= np.linalg.norm(x)
        x = geometry.back_project(_filtered(geometry.project(x), filter_u))
        largest = float(np.linalg.norm(x))
    return 1.05 * largest


def _filtered(sinograms: Block, response: NDArray[np.float32]) -> Block:
    spectrum = scipy.fft.rfft(sinograms, axis=1)
    spectrum *= response[:, None]
    out: Block = scipy.fft.irfft(spectrum, sinograms.shape[1], axis=1)
    return out


def _solve(
    sinograms: Block, geometry: Geometry, n_slices: int, along: float, most: float, response: float
) -> Block:
    """Slices (ny, nz, LANES) of sinograms (n_angles, n_u, LANES), of which n_slices are there."""
    n = len(geometry.cos)
    scale = BALANCE * n
    sigma = scale * (math.pi / n) * ramp_filter(geometry.n_u)
    of_dual = scale / 12.0
    step = 1.0 / (scale * response + of_dual * (8.0 + 4.0 * along * along))
    # a smooth back-projection to begin with
    smooth = (math.pi / n) * ramp_filter(geometry.n_u, "hann")
    x = geometry.back_project(_filtered(sinograms, smooth))
    np.maximum(x, 0.0, out=x)
    moved = x.copy()
    dual = np.zeros((3, *x.shape), dtype=np.float32)
    # the dual of the data stays in its transform, in which (p + sigma (A x - b)) / (1 + sigma) is
    # taken frequency by frequency
    of_data = np.zeros((n, len(sigma), LANES), dtype=np.complex64)
    kept = (1.0 / (1.0 + sigma)).astype(np.float32)[:, None]
    added = sigma.astype(np.float32)[:, None] * kept
    for _ in range(STEPS):
        left = geometry.project(moved)
        left -= sinograms
        transformed = scipy.fft.rfft(left, axis=1, overwrite_x=True)
        transformed *= added
        of_data *= kept
        of_data += transformed
        explained = scipy.fft.irfft(of_data, geometry.n_u, axis=1)
        _step_dual(dual, moved, n_slices, along, of_dual, most)
        _step_slices(x, moved, geometry.back_project(explained), dual, step)
    return x


@dataclass(frozen=True)
class TotalVariation:
    """How the slices of one scan are found.

    Parameters
    ----------
    geometry : Geometry
        Of rays and voxels. All that absorbs must lie within the voxels.
    pixel_xy_um : (float, float)
        Edges of a voxel along and across the rotation axis.
    most : float
        lambda.
    response : float
        The largest eigenvalue of A^T F A with the ramp filter F.
    """

    geometry: Geometry
    pixel_xy_um: tuple[float, float]
    most: float
    response: float

    @classmethod
    def of_scan(
        cls,
        angles_deg: FloatArray,
        axis: float,
        n_u: int,
        pixel_xy_um: tuple[float, float],
        grid: SliceGrid,
        noise: float,
        strength: float = 1.0,
    ) -> TotalVariation:
        """For the geometry of a scan and its noise.

        Parameters
        ----------
        angles_deg : array (n_angles,)
            In any order and spacing.
        axis : float
            The pixel number u, fractional, of the rotation axis.
        n_u : int
            The number of pixels across it.
        pixel_xy_um : (float, float)
            Edges of a pixel, and of a voxel, along and across the rotation axis.
        grid : SliceGrid
            The voxels of a slice.
        noise : float
            The standard deviation of -ln T, see :func:`noise_of`.
        strength : float
            Of the regularisation: 1 fits the noise; more is smoother.
        """
        theta = np.deg2rad(angles_deg)
        geometry = Geometry(np.cos(theta), np.sin(theta), float(axis), n_u, grid)
        n = len(theta)
        response = _largest_response(geometry, (math.pi / n) * ramp_filter(n_u))
        most = STRENGTH * strength * noise * math.sqrt(n)
        return cls(geometry, pixel_xy_um, most, response)

    def slices(
        self, sinograms: Sinograms, advance: Callable[[int], object] = lambda slices: None
    ) -> NDArray[np.float32]:
        """mu (n_slices, ny, nz) in 1/um of sinograms (n_slices, n_angles, n_u) of -ln T.

        advance: is told how many more slices are ready.
        """
        n_slices, n_angles, n_u = sinograms.shape
        along = self.pixel_xy_um[1] / self.pixel_xy_um[0]
        out = np.empty((n_slices, *self.geometry.grid.shape), dtype=np.float32)
        own = LANES - 2 * HALO
        for first in range(0, n_slices, own):
            last = min(first + own, n_slices)
            begin, end = max(first - HALO, 0), min(last + HALO, n_slices)
            block = np.zeros((n_angles, n_u, LANES), dtype=np.float32)
            block[..., : end - begin] = sinograms[begin:end].transpose(1, 2, 0)
            slices = _solve(block, self.geometry, end - begin, along, self.most, self.response)
            out[first:last] = slices[..., first - begin : last - begin].transpose(2, 0, 1)
            advance(last - first)
        out /= np.float32(self.pixel_xy_um[1])
        return out


def bytes_of_a_batch(n_angles: int, n_u: int, shape: tuple[int, int]) -> float:
    """The memory that LANES slices need.

    Parameters
    ----------
    n_angles, n_u : int
        Of their sinograms.
    shape : (int, int)
        Voxels of a slice.
    """
    return 4.0 * LANES * (8.0 * n_angles * n_u + 7.0 * shape[0] * shape[1])


def require_whole_sample(sinograms: Sinograms) -> None:
    """Raises ValueError where the sample reaches beyond a side of the detector."""
    mean = sinograms.mean(axis=0)
    sides = np.median(np.concatenate([mean[:, :3], mean[:, -3:]], axis=1))
    if sides > OUT_OF_VIEW * float(np.percentile(mean, 99.5)):
        raise ValueError(
            "The sample reaches beyond the sides of the images, so that its slices cannot be found by "
            "comparison with them: use reconstruction.method=fbp."
        )
