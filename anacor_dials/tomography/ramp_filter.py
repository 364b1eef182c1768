"""The ramp filter, and sinograms convolved with it.

The band-limited ramp of Ramachandran & Lakshminarayanan, PNAS 68 (1971) 2236; Kak & Slaney,
Principles of Computerized Tomographic Imaging (1988), eq. 3.61.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray

Sinograms = NDArray[np.float32]

FILTERS = ("ramp", "shepp-logan", "cosine", "hamming", "hann")
EDGE_PIXELS = 4  # whose mean continues a projection beyond the detector


def ramp_filter(length: int, name: str = "ramp") -> NDArray[np.float32]:
    """The ramp filter (length // 2 + 1,), in 1/pixel, for a real Fourier transform of that length.

    The transform of the band-limited kernel h(0) = 1/4, h(odd n) = -1 / (pi n)^2 (Kak & Slaney, eq.
    3.61), multiplied by a window. Its value at zero frequency is not exactly zero.
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
    """Sinograms (..., n_u) continued on each side.

    The mean of the outermost pixels fades to zero as half a cosine. If the sample lies within the
    image, this is zero; if the sample reaches beyond the image, it is a smooth continuation.

    Parameters
    ----------
    sinograms : array (..., n_u)
    before, after : int
        The least number of pixels to add on each side.
    fade : int
        The number of pixels within which the continuation becomes zero.
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
    """q(theta, u): values (n_angles, n, lanes); pixel i lies at u = first + i from the axis."""

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
    """Sinograms convolved with the ramp and weighted; slices are the innermost index.

    Values reach as far as `radius` pixels from the axis, also beyond the detector, where the tails
    of the ramp are. So voxels in the corners of a slice come out right.

    Parameters
    ----------
    sinograms : array (n_slices, n_angles, n_u)
    axis : float
        Pixel number of the rotation axis.
    radius : float
        Pixels.
    weights : array (n_angles,)
    filter_name : str
    lanes : int
        Slices of zeros are added until there are so many.
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
