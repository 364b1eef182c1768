"""Filtered back-projection of parallel-beam sinograms, by several backends that agree.

A sinogram is ``p(theta, u) = integral of mu ds`` with ``u = y cos(theta) - z sin(theta)`` from the
axis (frames of :mod:`anacor_dials.sample.frames`: the sample turns right-handedly about X). Then

    mu(y, z) = sum over theta of w(theta) q(theta, y cos(theta) - z sin(theta)),   q = p * h

with the band-limited ramp h (Ramachandran & Lakshminarayanan, PNAS 68 (1971) 2236; Kak & Slaney,
Principles of Computerized Tomographic Imaging (1988), eq. 3.61), and weights w that add up to pi:
half the angle to either neighbour (modulo half a turn, or a whole one, where the scan covers it).

Our own backends are numba, the default, in which several slices at once share the geometry, with
linear interpolation; and torch, the same on a GPU where there is one. Those of libraries are in
:mod:`anacor_dials.tomography.library_backends`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from anacor_dials.sample.devices import chosen_device
from anacor_dials.sample.frames import FloatArray
from anacor_dials.tomography.library_backends import algotom_slices, astra_slices, tomopy_slices
from anacor_dials.tomography.ramp_filter import Sinograms, extended, filtered, ramp_filter
from anacor_dials.tomography.scan_angles import angular_weights, is_full_turn, offset_weights
from anacor_dials.tomography.slice_grid import SliceGrid

BACKENDS = ("numba", "torch", "algotom", "tomopy", "astra")

# Slices that are back-projected together. The loop over them is the innermost one and takes its
# length from an array: with a length known to the compiler it is unrolled, and not vectorised.
LANES = 64
TILE = 16  # voxels: edge of the square that stays in the cache while all angles are added


@numba.njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _backproject(
    q: NDArray[np.float32],
    first: float,
    cos: FloatArray,
    sin: FloatArray,
    y_start: float,
    z_start: float,
    ny: int,
    nz: int,
) -> NDArray[np.float32]:
    """Slices (lanes, ny, nz) from filtered sinograms (n_angles, n, lanes).

    Tiles of voxels are spread over the threads; within a tile all angles are added, and for each
    voxel and angle the place between two pixels is found once for all slices.
    """
    n_angles, n, lanes = q.shape
    out = np.empty((lanes, ny, nz), np.float32)
    tiles_z = (nz + TILE - 1) // TILE
    tiles = ((ny + TILE - 1) // TILE) * tiles_z
    highest = np.float32(n - 2)
    for tile in numba.prange(tiles):
        j0 = (tile // tiles_z) * TILE
        k0 = (tile % tiles_z) * TILE
        total = np.zeros((TILE * TILE, lanes), np.float32)
        left = np.empty(TILE * TILE, np.uint32)
        part = np.empty(TILE * TILE, np.float32)
        for a in range(n_angles):
            row = q[a]
            voxel = 0
            for j in range(TILE):
                u0 = (y_start + j0 + j) * cos[a] - (z_start + k0) * sin[a] - first
                for k in range(TILE):
                    u = np.float32(u0 - k * sin[a])
                    u = min(max(u, np.float32(0.0)), highest)
                    i = np.uint32(u)
                    left[voxel] = i
                    part[voxel] = u - np.float32(i)
                    voxel += 1
            for voxel in range(TILE * TILE):
                i = left[voxel]
                f = part[voxel]
                for m in range(lanes):
                    value = row[i, m]
                    total[voxel, m] += value + f * (row[i + np.uint32(1), m] - value)
        for j in range(min(TILE, ny - j0)):
            for k in range(min(TILE, nz - k0)):
                for m in range(lanes):
                    out[m, j0 + j, k0 + k] = total[j * TILE + k, m]
    return out


def _numba_slices(
    sinograms: Sinograms,
    angles_rad: FloatArray,
    axis: float,
    weights: FloatArray,
    grid: SliceGrid,
    filter_name: str,
) -> NDArray[np.float32]:
    """mu per pixel (n_slices, ny, nz) by our own code for CPUs."""
    out = np.empty((len(sinograms), *grid.shape), dtype=np.float32)
    cos, sin = np.cos(angles_rad), np.sin(angles_rad)
    for first in range(0, len(sinograms), LANES):
        block = sinograms[first : first + LANES]
        q = filtered(block, axis, grid.radius, weights, filter_name, LANES)
        slices = _backproject(q.values, q.first, cos, sin, *grid.start, *grid.shape)
        out[first : first + LANES] = slices[: len(block)]
    return out


def _torch_slices(
    sinograms: Sinograms,
    angles_rad: FloatArray,
    axis: float,
    weights: FloatArray,
    grid: SliceGrid,
    filter_name: str,
    device: str = "auto",
) -> NDArray[np.float32]:
    """mu per pixel (n_slices, ny, nz) by our own code for GPUs."""
    import torch

    device = chosen_device(device)
    n_slices, n_angles, n_u = sinograms.shape
    out = np.empty((n_slices, *grid.shape), dtype=np.float32)
    (y_start, z_start), (ny, nz) = grid.start, grid.shape
    before = max(0, math.ceil(grid.radius - axis) + 2)
    after = max(0, math.ceil(grid.radius - (n_u - 1 - axis)) + 2)
    fade = max(n_u // 2, 1)
    left, right = max(before, fade), max(after, fade)
    width = before + n_u + after
    length = scipy.fft.next_fast_len(left + right + 2 * n_u, real=True)
    with torch.inference_mode():
        response = torch.from_numpy(ramp_filter(length, filter_name)).to(device)
        weight = torch.from_numpy(weights.astype(np.float32)).to(device)
        y = torch.arange(ny, device=device, dtype=torch.float64) + y_start
        z = torch.arange(nz, device=device, dtype=torch.float64) + z_start
        lanes = 64 if device != "cpu" else LANES
        for first in range(0, n_slices, lanes):
            block = sinograms[first : first + lanes]
            q = torch.empty((n_angles, len(block), 1, width), device=device)
            for a in range(0, n_angles, 64):
                part = torch.from_numpy(extended(block[:, a : a + 64], left, right, fade)).to(
                    device
                )
                part = torch.fft.irfft(torch.fft.rfft(part, length) * response, length)
                part = part[..., left - before : left - before + width]
                q[a : a + 64, :, 0] = (part * weight[a : a + 64, None]).transpose(0, 1)
            total = torch.zeros((1, len(block), ny, nz), device=device)
            place = torch.zeros((1, ny, nz, 2), device=device)
            for a in range(n_angles):
                cos, sin = math.cos(angles_rad[a]), math.sin(angles_rad[a])
                u = y[:, None] * cos - z[None, :] * sin + (axis + before)
                place[0, :, :, 0] = 2.0 * u / (width - 1) - 1.0  # grid_sample: -1 to 1 end to end
                total += torch.nn.functional.grid_sample(
                    q[a : a + 1], place, mode="bilinear", padding_mode="border", align_corners=True
                )
            out[first : first + lanes] = total[0].cpu().numpy()
    return out


_Slices = Callable[[Sinograms, FloatArray, float, FloatArray, SliceGrid, str], NDArray[np.float32]]
_FUNCTIONS: dict[str, _Slices] = {
    "numba": _numba_slices,
    "torch": _torch_slices,
    "algotom": algotom_slices,
    "tomopy": tomopy_slices,
    "astra": astra_slices,
}


def available_backends() -> tuple[str, ...]:
    """The backends whose libraries are installed; numba, our own, always is."""
    return tuple(name for name in BACKENDS if importlib.util.find_spec(name) is not None)


def choose_backend(name: str = "auto") -> str:
    """The backend to use: the one asked for, or for "auto" torch if it finds a GPU, else numba.

    Raises ValueError if the backend that was asked for is unknown or not installed.
    """
    if name == "auto":
        return "torch" if chosen_device("auto") == "cuda" else "numba"
    if name not in BACKENDS:
        raise ValueError(f"The backend {name!r} is unknown; choose auto or {', '.join(BACKENDS)}.")
    if name not in available_backends():
        raise ValueError(
            f"The backend {name} is not installed; install it, or choose one of "
            f"{', '.join(available_backends())}."
        )
    return name


def reconstruct_slices(
    sinograms: NDArray[Any],
    angles_deg: FloatArray,
    axis: float,
    pixel_um: float,
    grid: SliceGrid | None = None,
    filter_name: str = "ramp",
    backend: str = "numba",
) -> NDArray[np.float32]:
    """mu (n_slices, ny, nz), in 1/um, of slices across the rotation axis, from their sinograms.

    Parameters
    ----------
    sinograms : array (n_slices, n_angles, n_u)
        -ln T; u runs along +Y at angle zero.
    angles_deg : array (n_angles,)
        In any order and with any spacing, over half a turn or a whole one.
    axis : float
        The pixel number u of the rotation axis. In a scan of a whole turn the axis may lie near one
        side of the detector.
    pixel_um : float
        Edge of a pixel, and of a voxel, um.
    grid : SliceGrid, optional
        The voxels. If not given: a square about the axis, as wide as the detector.
    filter_name : str
        The window on the ramp filter.
    backend : str
        Of :func:`choose_backend`.
    """
    n_slices, n_angles, n_u = sinograms.shape
    if n_angles != len(angles_deg):
        raise ValueError(
            f"The sinograms have {n_angles} rows and there are {len(angles_deg)} angles."
        )
    if not 0 <= axis <= n_u - 1:
        raise ValueError(
            f"The rotation axis at pixel {axis:g} is outside the detector (0 to {n_u - 1})."
        )
    grid = grid or SliceGrid(n_u)
    full = is_full_turn(angles_deg)
    weights = angular_weights(angles_deg, 360.0 if full else 180.0)
    sinograms = np.asarray(sinograms, dtype=np.float32)
    if full and abs(axis - (n_u - 1) / 2) > 0.05 * n_u:
        # the long side holds what the other view of the pair completes; beyond the short one is
        # nothing
        sinograms = sinograms * offset_weights(n_u, axis).astype(np.float32)
    slices = _FUNCTIONS[choose_backend(backend)](
        sinograms, np.deg2rad(angles_deg), float(axis), weights, grid, filter_name
    )
    slices /= np.float32(pixel_um)
    return slices
