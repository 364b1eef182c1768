"""The grid and the scale on which the networks see a tomogram.

The networks are trained at one voxel size, about 1 to 1.5 um. A finer tomogram is averaged over
blocks of voxels first, and the probabilities are interpolated back afterwards. The values are
scaled by the tomogram itself: air becomes 0 and the median of the sample becomes 1, whether crystal
or liquor is brighter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.large_arrays import release
from anacor_dials.sample.volumes import Volume

FINEST_UM, COARSEST_UM = 0.9, 2.5  # voxels that the networks are trained on
# A second pass sees finer voxels than those that the networks are trained on. It takes about twice
# the time of slices across three axes.
FINER_UM = 0.55
FINER_UP_TO = 12_000_000
WORKING_UM = 1.2  # blocks of finer voxels are made about as large: the middle of what is trained on
SMOOTH_UM = 4.0  # wider than Fresnel fringes, sqrt(lambda z) = 1 to 3 um
VOXELS_LOOKED_AT = 400_000  # medians of so many are exact to 0.2 % of the noise
LEAST_SIGNIFICANCE = 3.0  # of the sample above air, in standard deviations of smoothed values
# The darker part is sample, not air, if its level is above half of the brighter part's level, and
# so many standard deviations of the smoothed values above zero.
NO_AIR, NO_AIR_NOISE = 0.5, 3.0
UNKNOWN = 255  # in place of a label where nobody labelled
LEAST_MU = 2e-4  # 1/um, of water at 14 keV; a volume with less is air with a small offset


@dataclass(frozen=True)
class IntensityScale:
    """The levels of a tomogram, 1/um.

    Attributes
    ----------
    air : float
        The level of air.
    sample : float
        The median of the sample.
    noise : float
        The standard deviation of a voxel in air.
    air_seen : bool
        Whether there is air in the field of view. If not, the level of air is taken as 0, and the
        noise is the spread of the sample's values.
    """

    air: float
    sample: float
    noise: float
    air_seen: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.air) and math.isfinite(self.sample) and self.sample > self.air):
            raise ValueError(
                f"The sample's level {self.sample} /um is not above that of air, {self.air} /um; is this "
                "a tomogram of mu?"
            )

    def normalised(self, values: ArrayLike) -> NDArray[np.float32]:
        """(values - air) / (sample - air), float32: air is 0 and the sample 1."""
        scale = np.float32(1.0 / (self.sample - self.air))
        return (np.asarray(values, dtype=np.float32) - np.float32(self.air)) * scale


def _otsu(values: NDArray[np.float64]) -> float:
    """Otsu's threshold (IEEE Trans. SMC 9 (1979) 62) of values.

    Only values between the percentiles 0.1 and 99.9 count.
    """
    low, high = np.percentile(values, (0.1, 99.9))
    if not high > low:
        return float(high)
    counts, edges = np.histogram(values, 512, (low, high))
    middles = 0.5 * (edges[:-1] + edges[1:])
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1 + int(np.nanargmax(np.where(above > 0, between, np.nan)))])


def _sample_below(
    smooth: NDArray[np.float32], thin: NDArray[np.float64], threshold: float
) -> float | None:
    """A lower threshold, between air and sample, or None.

    It is needed if the given threshold lies between the sample and a denser material. Two
    conditions must hold: the values below the given threshold fall into air and a part that is less
    than half as dense as what is above; and this part has an inside, which the soft edge of a dense
    body does not have.

    smooth: smoothed planes; thin: some of their values.
    """
    below = thin[thin < threshold]
    if below.size < 1000:
        return None
    middle = float(np.median(below))
    spread = 1.4826 * float(np.median(np.abs(below - middle)))
    second = _otsu(np.maximum(below, middle - 4.0 * spread))  # dark fringes are not a material
    air, part = below[below < second], below[below >= second]
    if not (air.size and part.size) or part.size < 0.3 * (thin.size - below.size):
        return None
    level = float(np.median(air))
    spread = 1.4826 * float(np.median(np.abs(air - level)))
    gap = float(np.median(part)) - level
    dense = float(np.median(thin[thin >= threshold])) - level
    if gap < 6.0 * spread or dense < 2.0 * gap:
        return None
    there = (smooth >= second) & (smooth < threshold)
    inside = scipy.ndimage.binary_erosion(there, np.ones((1, 3, 3), dtype=bool), iterations=2)
    return second if np.count_nonzero(inside) > 0.15 * np.count_nonzero(there) else None


def intensity_scale(values: NDArray[Any], voxel_size_um: ArrayLike = WORKING_UM) -> IntensityScale:
    """The scale of mu values (nx, ny, nz) in 1/um.

    Air and sample are separated by Otsu's threshold of the values after smoothing over SMOOTH_UM
    across X, since in fine voxels Fresnel fringes are several times as strong as the sample. The
    levels are the medians of the plain values on both sides. There are two exceptions. If the
    brighter part is small and the darker part falls into air and sample (with salt or a metal pin
    in the field of view), the threshold between these two is used. If the darker part, too, is far
    above zero, there is no air in the field of view: air is then taken as 0, since the values are
    in 1/um, and the sample's level is the median of all values. Not all planes are looked at.

    Parameters
    ----------
    values : array (nx, ny, nz)
        1/um.
    voxel_size_um : float or array (3,)

    Raises
    ------
    ValueError
        If nothing is above air by three standard deviations of the smoothed values (a volume of
        air), or values are not numbers.
    """
    size = np.broadcast_to(np.asarray(voxel_size_um, dtype=np.float64), (3,))
    step = max(1, round((values.size / VOXELS_LOOKED_AT) ** (1 / 3)))
    planes = np.asarray(values[::step], dtype=np.float32)
    box = (1, *(max(1, round(SMOOTH_UM / v)) for v in size[1:]))
    smooth = scipy.ndimage.uniform_filter(planes, box, mode="nearest")
    plain = planes[:, ::step, ::step].astype(np.float64).ravel()
    thin = smooth[:, ::step, ::step].astype(np.float64).ravel()
    release(values)
    if not np.all(np.isfinite(plain)):
        raise ValueError("The tomogram holds values that are not numbers; reconstruct it again.")
    if not thin.max() > thin.min():
        raise ValueError(
            f"The tomogram has the value {thin[0]:g} /um throughout: there is no sample in it."
        )
    threshold = _otsu(thin)
    for _ in range(2):
        lower = _sample_below(smooth, thin, threshold)
        if lower is None:
            break
        threshold = lower
    dark, bright = plain[thin < threshold], plain[thin >= threshold]
    if not (dark.size and bright.size):
        raise ValueError("The tomogram holds nothing but air: there is no sample to segment.")
    air_level, sample = float(np.median(dark)), float(np.median(bright))
    noise = 1.4826 * float(np.median(np.abs(dark - air_level)))
    blurred = thin[thin < threshold]
    uncertainty = 1.4826 * float(np.median(np.abs(blurred - np.median(blurred))))
    if air_level > NO_AIR * sample and air_level > NO_AIR_NOISE * uncertainty:
        level = float(np.median(plain))
        spread = 1.4826 * float(np.median(np.abs(plain - level)))
        if level > LEAST_MU:
            return IntensityScale(0.0, level, spread, air_seen=False)
    if sample - air_level < LEAST_SIGNIFICANCE * uncertainty:
        raise ValueError(
            f"Nothing stands out of the noise (the brighter part is at {sample:.3g} /um, the darker at "
            f"{air_level:.3g} +- {noise:.3g}): there is no sample in this tomogram, or it is far too noisy."
        )
    return IntensityScale(air_level, sample, noise)


def bin_factors(voxel_size_um: ArrayLike) -> tuple[int, int, int]:
    """How many voxels along X, Y, Z make one voxel of the working grid.

    It is 1 if they are coarse enough.

    Raises
    ------
    ValueError
        If the voxels are so coarse that a sample would be a few voxels, or finer than any
        tomogram's.
    """
    size = np.asarray(voxel_size_um, dtype=np.float64)
    if float(size.max()) > 20.0:
        raise ValueError(
            f"The voxels are {size.tolist()} um; segmentation needs 0.05 to 20 um. Is the unit right?"
        )
    if float(size.min()) < 0.05:
        raise ValueError(
            f"The voxels are {size.tolist()} um; segmentation needs 0.05 to 20 um. Is the unit right?"
        )
    x, y, z = (max(1, round(WORKING_UM / v)) if v < FINEST_UM else 1 for v in size)
    return x, y, z


def label_factors(voxel_size_um: ArrayLike, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """How many voxels along X, Y, Z make one voxel of the grid on which labels are made.

    Where there are blocks (:func:`bin_factors`), a second pass sees blocks of half their length, if
    these are even, at least FINER_UM, and not too many.

    Parameters
    ----------
    voxel_size_um : float or array (3,)
    shape : (int, int, int)
        Of the tomogram.
    """
    factors = np.array(bin_factors(voxel_size_um))
    half = factors // 2
    fine_enough = np.all(half * np.asarray(voxel_size_um, dtype=np.float64) >= FINER_UM)
    few = math.prod(shape) <= FINER_UP_TO * math.prod(half.tolist())
    x, y, z = (half if np.all(factors % 2 == 0) and fine_enough and few else factors).tolist()
    return x, y, z


def voxel_at_full_size(voxel: Sequence[int], factors: Sequence[int]) -> tuple[int, ...]:
    """The middle voxel of a block.

    Parameters
    ----------
    voxel : sequence of int
        The indices of the block.
    factors : sequence of int
        How many voxels it is long.
    """
    return tuple(n * f + f // 2 for n, f in zip(voxel, factors, strict=True))


def binned_values(
    values: NDArray[Any], factors: tuple[int, int, int], scale: IntensityScale
) -> NDArray[np.float32]:
    """Normalised means over blocks of voxels, float32 (ceil(nx/fx), ceil(ny/fy), ceil(nz/fz)).

    Incomplete blocks at the end are filled with the last voxels.

    Parameters
    ----------
    values : array (nx, ny, nz)
        Or a data set in a file: it is read slab by slab.
    factors : (int, int, int)
    scale : IntensityScale
    """
    fx, fy, fz = factors
    nx, ny, nz = values.shape
    shape = (-(-nx // fx), -(-ny // fy), -(-nz // fz))
    out = np.empty(shape, dtype=np.float32)
    for i in range(shape[0]):
        slab = np.asarray(values[i * fx : (i + 1) * fx], dtype=np.float32).mean(axis=0)
        slab = np.pad(slab, ((0, shape[1] * fy - ny), (0, shape[2] * fz - nz)), mode="edge")
        out[i] = slab.reshape(shape[1], fy, shape[2], fz).mean(axis=(1, 3))
        release(values)
    return scale.normalised(out)


def binned_labels(
    labels: NDArray[np.uint8], factors: tuple[int, int, int], n: int
) -> NDArray[np.uint8]:
    """The most frequent label of every block, uint8; of equally frequent ones the lowest.

    Parameters
    ----------
    labels : array (nx, ny, nz) of uint8
    factors : (int, int, int)
    n : int
        The number of labels.
    """
    if factors == (1, 1, 1):
        return labels
    share = np.zeros(0, dtype=np.float32)
    best: NDArray[np.uint8] | None = None
    for label in range(n):
        here = binned_values(labels == label, factors, IntensityScale(0.0, 1.0, 0.0))
        if best is None:
            best, share = np.zeros(here.shape, dtype=np.uint8), here
            continue
        larger = here > share
        best[larger] = label
        share = np.maximum(share, here)
    assert best is not None
    return best


def binned_known(
    known: NDArray[np.uint8], factors: tuple[int, int, int], n: int
) -> NDArray[np.uint8]:
    """The most frequent of the known labels of every block, uint8; UNKNOWN if none is known.

    Parameters
    ----------
    known : array (nx, ny, nz) of uint8
        UNKNOWN where nobody labelled.
    factors : (int, int, int)
    n : int
        The number of labels.
    """
    if factors == (1, 1, 1):
        return known
    fx, fy, fz = factors
    nx, ny, nz = (-(-size // f) for size, f in zip(known.shape, factors, strict=True))
    out = np.empty((nx, ny, nz), dtype=np.uint8)
    for i in range(nx):
        slab = known[i * fx : (i + 1) * fx]
        padding = ((0, 0), (0, ny * fy - known.shape[1]), (0, nz * fz - known.shape[2]))
        blocks = np.pad(slab, padding, constant_values=UNKNOWN).reshape(-1, ny, fy, nz, fz)
        counts = np.stack([np.count_nonzero(blocks == k, axis=(0, 2, 4)) for k in range(n)])
        out[i] = np.where(counts.max(axis=0) > 0, counts.argmax(axis=0), UNKNOWN)
    return out


def working_volume(volume: Volume, values: NDArray[Any], factors: tuple[int, int, int]) -> Volume:
    """Binned values as a volume, with the size of their voxels and the place of the origin.

    Parameters
    ----------
    volume : Volume
        Before binning.
    values : array
        Binned.
    factors : (int, int, int)
    """
    f = np.array(factors, dtype=np.float64)
    return Volume(values, volume.voxel_size_um * f, (volume.centre + 0.5) / f - 0.5)
