"""Filtered back-projection by the libraries algotom, tomopy and astra, with our own results.

Each library has conventions and errors of its own. The functions below compensate for them, and a
test compares the results:

========  ====================================================================================
algotom   pads by 15 % only and divides by n - 1 angles; its CPU back-projection adds from several
          threads without a lock, so it is run on one (Vo et al., J. Synchrotron Rad. 28 (2021)
          1583)
tomopy    gridrec: turns the other way, numbers z downwards, wraps around where not padded (Gursoy
          et al., J. Synchrotron Rad. 21 (2014) 1188); its ``fbp`` does not filter
astra     numbers rows downwards; CPU or CUDA (van Aarle et al., Opt. Express 24 (2016) 25129)
========  ====================================================================================
"""

from __future__ import annotations

import math
from functools import lru_cache

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.tomography.ramp_filter import Sinograms, extended
from anacor_dials.tomography.slice_grid import SliceGrid


def centred(sinograms: Sinograms, axis: float | FloatArray, n: int) -> Sinograms:
    """Sinograms (..., n_angles, n) with the rotation axis in the middle, at (n - 1) / 2.

    For libraries that only know this place of the axis. The shift is a phase in Fourier space,
    which does not change the size of any frequency. Beyond the edges, projections go on as in
    :func:`anacor_dials.tomography.ramp_filter.extended`.

    Parameters
    ----------
    sinograms : array (..., n_angles, n_u)
    axis : float or array (n_angles,)
        Pixel number of the axis; one, or one for each angle.
    n : int
        The new number of pixels.
    """
    n_u = sinograms.shape[-1]
    shift = (n - 1) / 2 - np.atleast_1d(np.asarray(axis, dtype=np.float64))
    whole = math.floor(float(shift.min()))
    fade = max(n_u // 2, 1)
    left = max(whole, fade) + 2
    right = max(n - n_u - whole, fade) + 2
    moved = extended(sinograms, left, right, fade)
    if np.any(shift != whole):
        length = scipy.fft.next_fast_len(moved.shape[-1], real=True)
        phase = np.exp(-2j * np.pi * np.fft.rfftfreq(length) * (shift - whole)[:, None])
        spectrum = scipy.fft.rfft(moved, length, axis=-1) * phase.astype(np.complex64)
        moved = scipy.fft.irfft(spectrum, length, axis=-1)
    return np.ascontiguousarray(moved[..., left - whole : left - whole + n])


def _library_square(grid: SliceGrid, n_u: int, axis: float) -> int:
    """Edge of the square that a library reconstructs; grid and projection fit into it."""
    need = max(grid.n, math.ceil(2 * max(axis, n_u - 1 - axis)) + 3)
    return need + (need - grid.n) % 2  # of the same parity, so that voxels coincide


def _cropped(square: NDArray[np.float32], grid: SliceGrid) -> NDArray[np.float32]:
    margin = (square.shape[-1] - grid.n) // 2
    (y0, y1), (z0, z1) = grid.windows
    return square[..., margin + y0 : margin + y1, margin + z0 : margin + z1]


def _relative(weights: FloatArray) -> FloatArray:
    """Weights relative to pi / n, the weight that libraries use for each of n angles."""
    return weights * (len(weights) / np.pi)


def algotom_slices(
    sinograms: Sinograms,
    angles_rad: FloatArray,
    axis: float,
    weights: FloatArray,
    grid: SliceGrid,
    filter_name: str,
) -> NDArray[np.float32]:
    """mu per pixel (n_slices, ny, nz) by algotom.

    Parameters
    ----------
    sinograms : array (n_slices, n_angles, n_u)
    angles_rad : array (n_angles,)
    axis : float
        Pixel number of the rotation axis.
    weights : array (n_angles,)
        Of the projections; their sum is pi.
    grid : SliceGrid
    filter_name : str
    """
    from algotom.rec.reconstruction import fbp_reconstruction

    names = {"ramp": None, "hann": "hann", "hamming": "hamming"}
    if filter_name not in names:
        raise ValueError(
            f"algotom has no {filter_name} filter; choose ramp, hann or hamming, or another backend."
        )
    n_angles, n_u = sinograms.shape[1:]
    n = _library_square(grid, n_u, axis)
    out = np.empty((len(sinograms), *grid.shape), dtype=np.float32)
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)  # its threads add to the same voxels without a lock
        for k, sinogram in enumerate(sinograms):
            moved = centred(sinogram, axis, n) * _relative(weights)[:, None].astype(np.float32)
            square = fbp_reconstruction(
                moved,
                (n - 1) / 2,
                angles=angles_rad,
                ratio=None,
                filter_name=names[filter_name],
                pad=n,
                apply_log=False,
                gpu=False,
                ncore=1,
            )
            # with the sign of the angle reversed, rows of its images are our Z and columns our Y
            out[k] = _cropped(square.T, grid) * ((n_angles - 1) / n_angles)
    finally:
        numba.set_num_threads(threads)
    return out


_TOMOPY_FILTERS = {
    "ramp": "ramlak",
    "shepp-logan": "shepp",
    "cosine": "cosine",
    "hamming": "hamming",
    "hann": "hann",
}


def _gridrec(sinograms: Sinograms, angles_rad: FloatArray, filter_name: str) -> NDArray[np.float32]:
    """tomopy's gridrec (n_slices, n, n) in our axes; the axis is at index (n - 1) / 2 of both."""
    import tomopy

    n = sinograms.shape[-1]
    # its images have the axis at n / 2 and n / 2 - 1: half a voxel off, to either side
    off = 0.5 * np.cos(angles_rad) + 0.5 * np.sin(angles_rad)
    square = tomopy.recon(
        centred(sinograms, (n - 1) / 2 + off, n),
        angles_rad,
        center=(n - 1) / 2,
        sinogram_order=True,
        algorithm="gridrec",
        filter_name=_TOMOPY_FILTERS[filter_name],
    )
    return square.swapaxes(-1, -2)


@lru_cache(maxsize=8)
def _gridrec_habits(n: int, filter_name: str) -> tuple[float, float]:
    """(scale, offset) of gridrec: it gives scale * mu - offset * (integral of mu over the slice).

    It is 12 % too high (the norm of its gridding kernel) and leaves out the zero frequency. Both
    are measured on a disk, whose sinogram has a closed form.
    """
    angles = np.arange(180) * np.pi / 180
    radius = 0.15 * n
    u = np.arange(n) - (n - 1) / 2
    chord = 2 * np.sqrt(np.maximum(radius**2 - u**2, 0))
    disk = np.broadcast_to(chord, (180, n)).astype(np.float32)
    square = _gridrec(disk[None], angles, filter_name)[0]
    r = np.hypot(u[:, None], u[None, :])
    outside = float(square[(r > 1.2 * radius) & (r < 1.6 * radius)].mean())
    inside = float(square[r < 0.8 * radius].mean())
    return inside - outside, -outside / float(chord.sum())


def tomopy_slices(
    sinograms: Sinograms,
    angles_rad: FloatArray,
    axis: float,
    weights: FloatArray,
    grid: SliceGrid,
    filter_name: str,
) -> NDArray[np.float32]:
    """mu per pixel (n_slices, ny, nz) by tomopy's gridrec.

    Parameters
    ----------
    sinograms : array (n_slices, n_angles, n_u)
    angles_rad : array (n_angles,)
    axis : float
        Pixel number of the rotation axis.
    weights : array (n_angles,)
        Of the projections; their sum is pi.
    grid : SliceGrid
    filter_name : str
    """
    square_n = _library_square(grid, sinograms.shape[-1], axis)
    n = 3 * square_n  # its Fourier grid wraps around: less would leave a cup
    scale, offset = _gridrec_habits(n, filter_name)
    moved = centred(sinograms, axis, n) * _relative(weights)[:, None].astype(np.float32)
    mass = moved.sum(axis=-1).mean(axis=-1)[:, None, None]
    square = _cropped(_gridrec(moved, angles_rad, filter_name), grid)
    return np.asarray((square + np.float32(offset) * mass) / np.float32(scale), dtype=np.float32)


def astra_slices(
    sinograms: Sinograms,
    angles_rad: FloatArray,
    axis: float,
    weights: FloatArray,
    grid: SliceGrid,
    filter_name: str,
) -> NDArray[np.float32]:
    """mu per pixel (n_slices, ny, nz) by astra, on a GPU if there is one.

    Parameters
    ----------
    sinograms : array (n_slices, n_angles, n_u)
    angles_rad : array (n_angles,)
    axis : float
        Pixel number of the rotation axis.
    weights : array (n_angles,)
        Of the projections; their sum is pi.
    grid : SliceGrid
    filter_name : str
    """
    import astra

    names = {
        "ramp": "ram-lak",
        "shepp-logan": "shepp-logan",
        "cosine": "cosine",
        "hamming": "hamming",
        "hann": "hann",
    }
    n = _library_square(grid, sinograms.shape[-1], axis)
    cuda = astra.use_cuda()
    projections = astra.create_proj_geom("parallel", 1.0, n, angles_rad)
    volume = astra.create_vol_geom(n, n)
    projector = None if cuda else astra.create_projector("linear", projections, volume)
    out = np.empty((len(sinograms), *grid.shape), dtype=np.float32)
    for k, sinogram in enumerate(sinograms):
        moved = centred(sinogram, axis, n) * _relative(weights)[:, None].astype(np.float32)
        sinogram_id = astra.data2d.create("-sino", projections, moved)
        volume_id = astra.data2d.create("-vol", volume)
        config = astra.astra_dict("FBP_CUDA" if cuda else "FBP")
        config["ProjectionDataId"], config["ReconstructionDataId"] = sinogram_id, volume_id
        config["option"] = {"FilterType": names[filter_name]}
        if projector is not None:
            config["ProjectorId"] = projector
        algorithm = astra.algorithm.create(config)
        astra.algorithm.run(algorithm)
        out[k] = _cropped(astra.data2d.get(volume_id).T, grid)
        astra.algorithm.delete(algorithm)
        astra.data2d.delete([sinogram_id, volume_id])
    if projector is not None:
        astra.projector.delete(projector)
    return out
