"""What is done to transmissions and sinograms between the detector and the reconstruction.

In this order: unusable pixels are bridged, zingers removed, (for segmentation only) phases
retrieved, transmissions clipped, logarithms taken, rings removed from sinograms.
"""

from __future__ import annotations

import importlib.util
import math

import numba
import numpy as np
import scipy.fft

from anacor_dials.sample.frames import FloatImages
from anacor_dials.sample.materials import wavelength_from_energy

RING_METHODS = ("off", "light", "strong")
# a parabola through seven pixels, at the middle one (Savitzky & Golay, Anal. Chem. 36 (1964) 1627)
# A zinger is compact: in the square of (2 ZINGER_REACH + 1)^2 pixels around it no more than so many
# are bright as well. A line through the square has at least five
ZINGER_REACH = 2
LARGEST_ZINGER = 4  # pixels
# of its excess; less than half, as the brightness of a thin line varies from pixel to pixel. In the
# scan of a drop (4.5 keV, 6 mm, pixels of 1.3 um) nothing of the fringes is taken for zingers
ALIKE = 0.25
COLUMNS = 32  # of a sinogram that are looked at together
BISECTIONS = 24
PARABOLA = np.array([-2, 3, 6, 7, 6, 3, -2], dtype=np.float32) / np.float32(21)


@numba.njit(parallel=True, cache=True)
def bridge_unusable(images: FloatImages) -> int:
    """Replaces unusable (NaN) pixels of images (n, nx, ny) in place, and returns their number.

    Values are interpolated linearly along Y between the nearest usable pixels. A line without any
    usable pixel becomes 1, the transmission of air.
    """
    n, nx, ny = images.shape
    counts = np.zeros(n, np.int64)
    for k in numba.prange(n):
        for i in range(nx):
            line = images[k, i]
            last = -1
            for j in range(ny):
                if np.isnan(line[j]):
                    counts[k] += 1
                    continue
                if last < j - 1:
                    for m in range(last + 1, j):
                        if last < 0:
                            line[m] = line[j]
                        else:
                            line[m] = line[last] + (line[j] - line[last]) * (m - last) / (j - last)
                last = j
            if last < ny - 1:
                value = line[last] if last >= 0 else np.float32(1.0)
                for m in range(last + 1, ny):
                    line[m] = value
    return int(counts.sum())


@numba.njit(parallel=True, cache=True)
def remove_zingers(images: FloatImages, threshold: FloatImages) -> tuple[FloatImages, int]:
    """Images (n, nx, ny) without zingers, and how many there were.

    A zinger is a direct hit of the camera by an X-ray or a particle. It is brighter than the median
    of its 3 x 3 neighbourhood by more than the threshold (n,), in transmission, and is replaced by
    the median. It is compact: of the 5 x 5 pixels around it, at most LARGEST_ZINGER exceed their
    median by a share (ALIKE) of its own excess. So bright fringes, which are lines, stay.
    """
    n, nx, ny = images.shape
    out = images.copy()
    counts = np.zeros(n, np.int64)
    for k in numba.prange(n):
        near = np.empty(9, np.float32)
        for i in range(nx):
            if not _may_have_zingers(images[k], i, threshold[k]):
                continue
            for j in range(ny):
                limit = images[k, i, j] - threshold[k]
                size = 0
                below = 0
                for a in range(max(i - 1, 0), min(i + 2, nx)):
                    for b in range(max(j - 1, 0), min(j + 2, ny)):
                        near[size] = images[k, a, b]
                        below += near[size] < limit
                        size += 1
                if 2 * below > size:  # so the median is below the limit
                    if _alike_around(images[k], i, j) <= LARGEST_ZINGER:
                        out[k, i, j] = np.median(near[:size])
                        counts[k] += 1
    return out, int(counts.sum())


@numba.njit(cache=True)
def _alike_around(image, i, j):  # type: ignore[no-untyped-def]
    """How many of the 5 x 5 pixels around pixel (i, j), with it, are nearly as bright."""
    rows = slice(max(i - ZINGER_REACH, 0), i + ZINGER_REACH + 1)
    columns = slice(max(j - ZINGER_REACH, 0), j + ZINGER_REACH + 1)
    around = image[rows, columns].copy().ravel()
    median = np.median(around)
    return np.sum(around > median + ALIKE * (image[i, j] - median))


@numba.njit(cache=True)
def _may_have_zingers(image, i, threshold):  # type: ignore[no-untyped-def]
    """Whether a pixel of row i is brighter than the one above, below or beside it by the threshold.

    A zinger is: more than half of its neighbourhood, and so one of these four, is darker by that.
    """
    nx, ny = image.shape
    here, above, below = image[i], image[max(i - 1, 0)], image[min(i + 1, nx - 1)]
    if ny < 3:
        return True
    found = 0
    for j in range(1, ny - 1):
        least = min(min(above[j], below[j]), min(here[j - 1], here[j + 1]))
        found += here[j] - threshold > least
    for j in (0, ny - 1):  # at the ends of a row three of six, or two of four, are beside it
        aside = here[1] if j == 0 else here[ny - 2]
        found += here[j] - threshold > min(min(above[j], below[j]), aside)
    return found > 0


def zinger_threshold(images: FloatImages, least: float) -> FloatImages:
    """The threshold (n,) for zingers in images (n, nx, ny): `least`, or 8 sigma of the noise.

    The larger of the two is taken. The noise is estimated from differences of neighbours (median
    absolute deviation).
    """
    n, nx, ny = images.shape
    if ny < 2:
        return np.full(n, least, dtype=np.float32)
    some = images[:, :: max(1, nx * ny // 20000)]  # rows enough
    difference = np.abs(np.diff(some, axis=2)).reshape(n, -1)
    noise = (1.4826 / math.sqrt(2)) * np.median(difference, axis=1)
    return np.maximum(least, 8 * noise).astype(np.float32)


def paganin_length_um(energy_keV: float, distance_mm: float, delta_beta: float) -> float:
    """The length L, in um, of Paganin's filter 1 / (1 + L^2 k^2).

    L^2 = (delta/beta) lambda z / (4 pi), with the wavelength lambda and the distance z from the
    sample to the detector.

    Parameters
    ----------
    energy_keV : float
    distance_mm : float
    delta_beta : float
        delta / beta of the refractive index 1 - delta + i beta.
    """
    wavelength_um = wavelength_from_energy(energy_keV) * 1e-4
    return math.sqrt(delta_beta * wavelength_um * distance_mm * 1e3 / (4 * math.pi))


def retrieve_phase(
    images: FloatImages, length_um: float, pixel_xy_um: tuple[float, float]
) -> FloatImages:
    """Transmissions (n, nx, ny) behind the sample, without the interference fringes of images T.

    ``F^-1 { F(T) / (1 + L^2 |k|^2) }`` (Paganin et al., J. Microsc. 206 (2002) 33, eq. 10) with the
    angular frequency k in 1/um. This holds for a sample of one material. Where materials differ in
    delta / beta, edges come out too soft or too hard, and mu near them is wrong; use it for
    segmentation only.

    Parameters
    ----------
    images : array (n, nx, ny)
        Transmissions.
    length_um : float
        L, see :func:`paganin_length_um`.
    pixel_xy_um : (float, float)
        Pixel size along X and Y, um.
    """
    n, nx, ny = images.shape
    pad = [
        min(math.ceil(6 * length_um / p), m - 1) for p, m in zip(pixel_xy_um, (nx, ny), strict=True)
    ]
    shape = [
        scipy.fft.next_fast_len(m + 2 * p, real=True) for m, p in zip((nx, ny), pad, strict=True)
    ]
    kx = 2 * np.pi * np.fft.fftfreq(shape[0], pixel_xy_um[0])
    ky = 2 * np.pi * np.fft.rfftfreq(shape[1], pixel_xy_um[1])
    response = (1 / (1 + length_um**2 * (kx[:, None] ** 2 + ky[None, :] ** 2))).astype(np.float32)
    out = np.empty_like(images)
    margins = [(p, s - m - p) for p, s, m in zip(pad, shape, (nx, ny), strict=True)]
    for k in range(n):
        wide = np.pad(images[k], margins, mode="symmetric" if min(nx, ny) > 1 else "edge")
        spectrum = scipy.fft.rfft2(wide) * response
        smooth = scipy.fft.irfft2(spectrum, shape)
        out[k] = smooth[pad[0] : pad[0] + nx, pad[1] : pad[1] + ny]
    return out


@numba.njit(parallel=True, cache=True)
def minus_log(images: FloatImages, least: float) -> int:
    """Replaces transmissions (n, nx, ny) by -ln T, and returns the number of clipped pixels.

    Transmissions below `least` are taken as `least`.
    """
    n, nx, ny = images.shape
    counts = np.zeros(n, np.int64)
    low = np.float32(least)
    for k in numba.prange(n):
        for i in range(nx):
            for j in range(ny):
                value = images[k, i, j]
                if value < low:
                    value = low
                    counts[k] += 1
                images[k, i, j] = -np.log(value)
    return int(counts.sum())


def check_ring_method(method: str) -> None:
    """Raises ValueError where rings cannot be removed that way here."""
    if method not in RING_METHODS:
        raise ValueError(
            f"Ring removal {method!r} is unknown; choose one of {', '.join(RING_METHODS)}."
        )
    if method == "strong" and importlib.util.find_spec("algotom") is None:
        raise ValueError(
            "Strong ring removal needs algotom, which is not installed; pip install algotom, or set "
            "rings=light."
        )


@numba.njit(parallel=True, cache=True, fastmath=True)
def _subtract_stripes(sinograms: FloatImages, smooth: FloatImages) -> None:
    """Subtracts the stripes of sinograms (n, n_angles, n_u) in place, and what they left behind.

    The stripe s of a pixel is the median over the angles of p - S p, with S the smoothing. After s
    is subtracted, this median is that of p - S p less s - S s, which does not depend on the angle:
    S s. So the second pass subtracts S s, and s + S s is subtracted at once.
    """
    n, n_angles, n_u = sinograms.shape
    half = len(smooth) // 2
    for k in numba.prange(n):
        p = sinograms[k]
        stripe = np.empty(n_u, np.float32)
        wide = np.empty(COLUMNS + 2 * half, np.float32)
        fine = np.empty((n_angles, COLUMNS), np.float32)
        for u0 in range(0, n_u, COLUMNS):
            for a in range(n_angles):
                for j in range(COLUMNS + 2 * half):
                    wide[j] = p[a, min(max(u0 - half + j, 0), n_u - 1)]
                row = fine[a]
                row[:] = wide[half : half + COLUMNS]
                for j in range(2 * half + 1):
                    weight = smooth[j]
                    for m in range(row.shape[0]):
                        row[m] -= weight * wide[j + m]
            stripe[u0 : u0 + COLUMNS] = _column_medians(fine)[: n_u - u0]
        total = stripe.copy()
        for u in range(n_u):
            for j in range(-half, half + 1):
                total[u] += smooth[half + j] * stripe[min(max(u + j, 0), n_u - 1)]
        for a in range(n_angles):
            p[a] -= total


@numba.njit(cache=True)
def _column_medians(values):  # type: ignore[no-untyped-def]
    """The medians (m,) of the columns of values (n, m), to 1e-7 of the range of the values.

    The values below a limit are counted, and the limit that parts them in halves is found by
    bisection. For all columns at once this takes a tenth of the time of sorting.
    """
    n, m = values.shape
    low, high = values[0].copy(), values[0].copy()
    for a in range(n):
        for j in range(m):
            low[j] = min(low[j], values[a, j])
            high[j] = max(high[j], values[a, j])
    below = np.empty(m, np.int32)
    middle = np.empty(m, np.float32)
    for _ in range(BISECTIONS):
        below[:] = 0
        for j in range(m):
            middle[j] = np.float32(0.5) * (low[j] + high[j])
        for a in range(n):
            row = values[a]
            for j in range(m):
                below[j] += row[j] < middle[j]
        for j in range(m):
            if 2 * below[j] > n:
                high[j] = middle[j]
            else:
                low[j] = middle[j]
    # between low and high lies the upper one of two middle values: the lower one is next to it
    below[:] = 0
    next_lower = np.full(m, np.float32(-np.inf))
    for a in range(n):
        for j in range(m):
            if values[a, j] < low[j]:
                below[j] += 1
                next_lower[j] = max(next_lower[j], values[a, j])
    for j in range(m):
        middle[j] = np.float32(0.5) * (low[j] + high[j])
        if 2 * below[j] == n:
            middle[j] = np.float32(0.5) * (middle[j] + next_lower[j])
    return middle


def remove_rings(sinograms: FloatImages, method: str) -> FloatImages:
    """Sinograms (n_slices, n_angles, n_u) without the stripes that make rings.

    It may work in place. method:

    * light: the difference between a pixel and a parabola through its neighbours, as the median
      over all angles, is taken as the error of the pixel and subtracted. This is done twice, since
      a stripe also changes the parabolas of its neighbours. The sample moves across the pixels as
      it turns, so it hardly changes the median: mu stays within 0.1 %, or within 1 % if the whole
      sample is ten pixels wide. Rings of a few pixels' width become about half as strong; wider
      ones stay.
    * strong: all kinds of stripes (Vo et al., Opt. Express 26 (2018) 28396, algorithms 6, 5, 4 and
      3, by algotom). It also smooths small samples and lowers their mu by some per cent; use it for
      segmentation.
    * off: nothing is done.
    """
    check_ring_method(method)
    if method == "light":
        clean = np.ascontiguousarray(sinograms, dtype=np.float32)
        _subtract_stripes(clean, PARABOLA)
        return clean
    if method == "strong":
        from algotom.prep.removal import remove_all_stripe

        return np.stack(
            [remove_all_stripe(s, snr=3.0, la_size=51, sm_size=21) for s in sinograms]
        ).astype(np.float32)
    return sinograms
