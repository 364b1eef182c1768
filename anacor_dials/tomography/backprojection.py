"""Filtered back-projection of parallel-beam sinograms, by several backends that agree.

A sinogram is ``p(theta, u) = integral of mu ds`` with ``u = y cos(theta) - z sin(theta)`` from the axis
(frames of :mod:`anacor_dials.sample.frames`: the sample turns right-handedly about X). Then

    mu(y, z) = sum over theta of w(theta) q(theta, y cos(theta) - z sin(theta)),   q = p * h

with the band-limited ramp h (Ramachandran & Lakshminarayanan, PNAS 68 (1971) 2236; Kak & Slaney,
Principles of Computerized Tomographic Imaging (1988), eq. 3.61), and weights w that add up to pi: half
the angle to either neighbour (modulo half a turn, or a whole one, where the scan covers it).

Each library has habits of its own; the adapters below undo them, and a test holds them to that:

========  ====================================================================================
numba     our own: several slices at once share the geometry; linear interpolation; the default
torch     the same in torch, on a GPU where there is one
algotom   pads by 15 % only and divides by n - 1 angles; its CPU back-projection adds from several
          threads without a lock, so it is run on one (Vo et al., J. Synchrotron Rad. 28 (2021) 1583)
tomopy    gridrec: turns the other way, numbers z downwards, wraps around where not padded (Gursoy
          et al., J. Synchrotron Rad. 21 (2014) 1188); its ``fbp`` does not filter
astra     numbers rows downwards; CPU or CUDA (van Aarle et al., Opt. Express 24 (2016) 25129)
========  ====================================================================================
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray

Sinograms = NDArray[np.float32]

logger = logging.getLogger("dials.anacor_dials.tomography.backprojection")

FILTERS = ("ramp", "shepp-logan", "cosine", "hamming", "hann")
BACKENDS = ("numba", "torch", "algotom", "tomopy", "astra")

LANES = 16  # slices that are back-projected together
TILE = 16  # voxels: edge of the square that stays in the cache while all angles are added
EDGE_PIXELS = 4  # whose mean continues a projection beyond the detector


@dataclass(frozen=True)
class SliceGrid:
    """The voxels of a slice: a window of a square of n x n pixels with the rotation axis in its middle.

    The axis is at index (n - 1) / 2 of the square along both Y and Z. y, z: first and last + 1 index of
    the window (None: the whole square).
    """

    n: int
    y: tuple[int, int] | None = None
    z: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("y", "z"):
            first, stop = getattr(self, name) or (0, self.n)
            if not 0 <= first < stop <= self.n:
                raise ValueError(
                    f"The crop {name} = {first} to {stop} is not within the {self.n} voxels of a slice."
                )
            object.__setattr__(self, name, (int(first), int(stop)))

    @property
    def shape(self) -> tuple[int, int]:
        (y0, y1), (z0, z1) = self.windows
        return y1 - y0, z1 - z0

    @property
    def windows(self) -> tuple[tuple[int, int], tuple[int, int]]:
        assert self.y is not None
        assert self.z is not None
        return self.y, self.z

    @property
    def start(self) -> tuple[float, float]:
        """(y, z) of the first voxel, in pixels from the axis."""
        middle = (self.n - 1) / 2
        return self.windows[0][0] - middle, self.windows[1][0] - middle

    @property
    def radius(self) -> float:
        """Largest distance of a voxel from the axis, in pixels."""
        corners = [
            (start, start + size - 1) for start, size in zip(self.start, self.shape, strict=True)
        ]
        return math.hypot(*(max(abs(a), abs(b)) for a, b in corners))


def angular_weights(angles_deg: FloatArray, period_deg: float = 180.0) -> FloatArray:
    """The weight (n,) in radians of each projection: half the way to its neighbours, pi in all.

    Angles count modulo the period: 180, or 360 where opposite views both count, half each. A gap of more
    than five steps and five degrees is the part of the turn that was not measured; it is left out.
    """
    n = len(angles_deg)
    order = np.argsort(np.mod(angles_deg, period_deg), kind="stable")
    ordered = np.mod(angles_deg, period_deg)[order]
    gaps = np.diff(np.append(ordered, ordered[0] + period_deg))
    positive = gaps[gaps > 1e-6]
    step = float(np.median(positive)) if positive.size else period_deg
    gaps = np.where(gaps > max(5 * step, 5.0), step, gaps)
    weights = np.empty(n)
    weights[order] = 0.5 * (gaps + np.roll(gaps, 1))
    return np.deg2rad(weights) * (180.0 / period_deg)


def largest_gap(angles_deg: FloatArray) -> float:
    """The largest angle (degrees) without a projection, angles taken modulo half a turn."""
    ordered = np.sort(np.mod(angles_deg, 180.0))
    return float(np.max(np.diff(np.append(ordered, ordered[0] + 180.0))))


def is_full_turn(angles_deg: FloatArray) -> bool:
    """True where a scan covers 360 degrees, but for a step or two."""
    span = float(np.ptp(angles_deg))
    step = span / max(len(angles_deg) - 1, 1)
    return span + 2.5 * step >= 360.0 and span > 270.0


def offset_weights(n_u: int, axis: float) -> FloatArray:
    """Weights (n_u,), 0 to 2, of detector pixels in a full scan whose axis is off the middle.

    What only one of two opposite views sees counts twice, what both see is blended: w(u) + w(-u) = 2,
    w = 1 + sin(pi u / 2 a) within the overlap |u| < a (Wang, Med. Phys. 29 (2002) 1634, parallel beam).
    """
    u = np.arange(n_u) - axis
    overlap = min(axis, n_u - 1 - axis)
    sign = 1.0 if n_u - 1 - axis > axis else -1.0
    if overlap < 1:
        return np.full(n_u, 2.0)
    # the outermost pixels of the short side get weight zero, with a soft step before them
    return 1.0 + np.sin(0.5 * np.pi * np.clip(sign * u / overlap, -1.0, 1.0))


def ramp_filter(length: int, name: str = "ramp") -> NDArray[np.float32]:
    """The ramp filter (length // 2 + 1,) in 1/pixel, for the real Fourier transform of that length.

    The transform of the band-limited kernel h(0) = 1/4, h(odd n) = -1 / (pi n)^2, whose value at zero
    frequency is not quite zero (Kak & Slaney, eq. 3.61), times a window.
    """
    if name not in FILTERS:
        raise ValueError(f"The filter {name!r} is unknown; choose one of {', '.join(FILTERS)}.")
    n = np.arange(length)
    n = np.minimum(n, length - n)
    kernel = np.zeros(length)
    kernel[0] = 0.25
    kernel[n % 2 == 1] = -1.0 / (np.pi * n[n % 2 == 1]) ** 2
    response = np.real(np.fft.rfft(kernel))
    f = np.fft.rfftfreq(length)  # cycles per pixel, 0 to 1/2
    window = {
        "ramp": np.ones_like(f),
        "shepp-logan": np.sinc(f),
        "cosine": np.cos(np.pi * f),
        "hamming": 0.54 + 0.46 * np.cos(2 * np.pi * f),
        "hann": 0.5 + 0.5 * np.cos(2 * np.pi * f),
    }[name]
    return (response * window).astype(np.float32)


def extended(sinograms: Sinograms, before: int, after: int, fade: int) -> Sinograms:
    """Sinograms (..., n_u) continued by so many pixels on each side, at least.

    The mean of the outermost pixels fades to zero (half a cosine over `fade` pixels): nothing where the
    sample lies within the image, and a smooth continuation where it reaches beyond.
    """
    edge = max(1, min(EDGE_PIXELS, sinograms.shape[-1]))
    out = np.zeros((*sinograms.shape[:-1], before + sinograms.shape[-1] + after), np.float32)
    out[..., before : before + sinograms.shape[-1]] = sinograms
    for count, window, mean in (
        (before, slice(before - min(before, fade), before), sinograms[..., :edge].mean(-1)),
        (after, slice(out.shape[-1] - after, out.shape[-1] - after + min(after, fade)),
         sinograms[..., -edge:].mean(-1)),
    ):  # fmt: skip
        n = min(count, fade)
        if n:
            taper = 0.5 * (1 + np.cos(np.pi * (np.arange(n) + 1) / (fade + 1)))
            taper = taper[::-1] if window.stop == before else taper
            out[..., window] = mean[..., None] * taper.astype(np.float32)
    return out


@dataclass(frozen=True, eq=False)
class FilteredSinograms:
    """q(theta, u): values (n_angles, n, lanes) float32; pixel i lies at u = first + i from the axis."""

    values: NDArray[np.float32]
    first: float


def filtered(
    sinograms: Sinograms,
    axis: float,
    radius: float,
    weights: FloatArray,
    filter_name: str = "ramp",
    lanes: int | None = None,
) -> FilteredSinograms:
    """Sinograms (n_slices, n_angles, n_u) convolved with the ramp and weighted, slices innermost.

    Values reach as far as `radius` pixels from the axis, also beyond the detector, where the ramp's
    tails are: so voxels in the corners of a slice come out right. lanes: slices are filled up with
    zeros to so many.
    """
    n_slices, n_angles, n_u = sinograms.shape
    lanes = n_slices if lanes is None else lanes
    before = max(0, math.ceil(radius - axis) + 2)
    after = max(0, math.ceil(radius - (n_u - 1 - axis)) + 2)
    width = before + n_u + after
    fade = max(n_u // 2, 1)
    # long enough that what is filtered never meets its own periodic image
    length = scipy.fft.next_fast_len(2 * max(width, n_u + fade), real=True)
    response = ramp_filter(length, filter_name)
    out = np.zeros((n_angles, width, lanes), dtype=np.float32)
    workers = os.cpu_count() or 1
    step = max(1, 2**22 // (n_slices * length))  # some 16 MB at a time stay near the processor
    # the fading edges are filtered in full, also where they reach beyond what is kept
    left, right = max(before, fade), max(after, fade)
    for a in range(0, n_angles, step):
        part = extended(sinograms[:, a : a + step], left, right, fade)
        if part.shape[-1] > length:
            length = scipy.fft.next_fast_len(part.shape[-1] + n_u, real=True)
            response = ramp_filter(length, filter_name)
        spectrum = scipy.fft.rfft(part, length, axis=-1, workers=workers)
        spectrum *= response
        part = scipy.fft.irfft(spectrum, length, axis=-1, workers=workers)
        part = part[..., left - before : left - before + width]
        part *= weights[a : a + step, None].astype(np.float32)
        out[a : a + step, :, :n_slices] = part.transpose(1, 2, 0)
    return FilteredSinograms(out, -axis - before)


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
    """Slices (LANES, ny, nz) from filtered sinograms (n_angles, n, LANES).

    Tiles of voxels are spread over the threads; within a tile all angles are added, and for each
    voxel and angle the place between two pixels is found once for all slices.
    """
    n_angles, n = q.shape[0], q.shape[1]
    out = np.empty((LANES, ny, nz), np.float32)
    tiles_z = (nz + TILE - 1) // TILE
    tiles = ((ny + TILE - 1) // TILE) * tiles_z
    highest = np.float32(n - 2)
    for tile in numba.prange(tiles):
        j0 = (tile // tiles_z) * TILE
        k0 = (tile % tiles_z) * TILE
        total = np.zeros((TILE * TILE, LANES), np.float32)
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
                for m in range(LANES):
                    value = row[i, m]
                    total[voxel, m] += value + f * (row[i + np.uint32(1), m] - value)
        for j in range(min(TILE, ny - j0)):
            for k in range(min(TILE, nz - k0)):
                for m in range(LANES):
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
    device: str | None = None,
) -> NDArray[np.float32]:
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
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


def centred(sinograms: Sinograms, axis: float | FloatArray, n: int) -> Sinograms:
    """Sinograms (..., n_angles, n_u) moved into n pixels with the axis in the middle, at (n - 1) / 2.

    For libraries that know but one place of the axis; axis: one pixel number, or one per angle. By a
    phase in Fourier space, which leaves every frequency as it is; continued beyond the edges as
    :func:`extended` does.
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
    """Edge of the square that a library reconstructs: the grid's, and the whole projection in it."""
    need = max(grid.n, math.ceil(2 * max(axis, n_u - 1 - axis)) + 3)
    return need + (need - grid.n) % 2  # of the same parity, so that voxels coincide


def _cropped(square: NDArray[np.float32], grid: SliceGrid) -> NDArray[np.float32]:
    margin = (square.shape[-1] - grid.n) // 2
    (y0, y1), (z0, z1) = grid.windows
    return square[..., margin + y0 : margin + y1, margin + z0 : margin + z1]


def _relative(weights: FloatArray) -> FloatArray:
    """Weights relative to pi / n, which libraries take for granted."""
    return weights * (len(weights) / np.pi)


def _algotom_slices(
    sinograms: Sinograms,
    angles_rad: FloatArray,
    axis: float,
    weights: FloatArray,
    grid: SliceGrid,
    filter_name: str,
) -> NDArray[np.float32]:
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
            # rows of its images are our Z, columns our Y, once its angle runs the way ours does
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
    # its images have the axis at n / 2 and n / 2 - 1: half a voxel off, one way and the other
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
    """(scale, offset) of tomopy's gridrec: it gives scale * mu - offset * (integral of mu over the slice).

    It is 12 % too high (the norm of its gridding kernel) and leaves out the zero frequency. Measured on
    a disk whose sinogram has a closed form.
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


def _tomopy_slices(
    sinograms: Sinograms,
    angles_rad: FloatArray,
    axis: float,
    weights: FloatArray,
    grid: SliceGrid,
    filter_name: str,
) -> NDArray[np.float32]:
    square_n = _library_square(grid, sinograms.shape[-1], axis)
    n = 3 * square_n  # its Fourier grid wraps around: less would leave a cup
    scale, offset = _gridrec_habits(n, filter_name)
    moved = centred(sinograms, axis, n) * _relative(weights)[:, None].astype(np.float32)
    mass = moved.sum(axis=-1).mean(axis=-1)[:, None, None]
    square = _cropped(_gridrec(moved, angles_rad, filter_name), grid)
    return np.asarray((square + np.float32(offset) * mass) / np.float32(scale), dtype=np.float32)


def _astra_slices(
    sinograms: Sinograms,
    angles_rad: FloatArray,
    axis: float,
    weights: FloatArray,
    grid: SliceGrid,
    filter_name: str,
) -> NDArray[np.float32]:
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


_Slices = Callable[[Sinograms, FloatArray, float, FloatArray, SliceGrid, str], NDArray[np.float32]]
_FUNCTIONS: dict[str, _Slices] = {
    "numba": _numba_slices,
    "torch": _torch_slices,
    "algotom": _algotom_slices,
    "tomopy": _tomopy_slices,
    "astra": _astra_slices,
}


def available_backends() -> tuple[str, ...]:
    """The backends whose libraries are installed; numba, our own, always is."""
    return tuple(name for name in BACKENDS if importlib.util.find_spec(name) is not None)


def choose_backend(name: str = "auto") -> str:
    """The backend to use: torch where it finds a GPU, else numba; or the one asked for by name.

    Raises ValueError where that one is unknown or not installed.
    """
    if name == "auto":
        if importlib.util.find_spec("torch") is not None:
            import torch

            if torch.cuda.is_available():
                return "torch"
        return "numba"
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
    """mu (n_slices, ny, nz) in 1/um of slices across the rotation axis, from their sinograms.

    sinograms: (n_slices, n_angles, n_u), -ln T, u along +Y at angle zero. angles_deg: (n_angles,), any
    order and spacing; half a turn, or a whole one. axis: the pixel number u, fractional, of the
    rotation axis; in a scan of a whole turn it may lie near one side of the detector. pixel_um: edge of
    a pixel, and of a voxel. grid: the voxels; a square as wide as the detector, about the axis, where None.
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
        # the long side holds what the other view of the pair completes; beyond the short one is nothing
        sinograms = sinograms * offset_weights(n_u, axis).astype(np.float32)
    slices = _FUNCTIONS[choose_backend(backend)](
        sinograms, np.deg2rad(angles_deg), float(axis), weights, grid, filter_name
    )
    slices /= np.float32(pixel_um)
    return slices
