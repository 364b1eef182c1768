"""Which rays tell mu: away from the edges of materials, bright enough, and not too many."""

from __future__ import annotations

import math

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.volumes import LabelVolume

LEAST_TRANSMISSION = 0.02  # of a usable ray: below, scattered light and the dark current matter
LEAST_BRIGHT = 0.02  # of the rays through the sample: with fewer, it is too opaque; chosen by hand
LEAST_RAYS = 30  # through a material whose mu is looked for; chosen by hand
MOST_RAYS = 80_000  # in the sample, and beside it: neighbours add little; limits the time
# A ray is left out if the slope of a material's thickness changes by more than this over the
# margin. Chosen by hand: a surface that turns by 45 degrees.
LARGEST_BEND = 1.0
VOXEL_NOISE = 1.5  # voxels by which the thickness of voxelised labels may seem to bend
# If fewer of the rays through a material remain, its margin is halved; chosen by hand.
KEPT_SHARE = 0.25


def away_from_edges(
    lengths: NDArray[np.float32], step_um: FloatArray, labels: LabelVolume, margin_um: float
) -> tuple[NDArray[np.bool_], FloatArray]:
    """Rays away from the edges of all materials.

    A material's thickness bends strongly at its edges. Rays within the margin of such a place are
    left out. The margin is halved for materials that would keep less than KEPT_SHARE of their rays.

    Parameters
    ----------
    lengths : array (k, gx, gy, n_labels)
        Path lengths of the rays, um.
    step_um : array (2,)
        The distance between rays along X and Y, um.
    labels : LabelVolume
    margin_um : float
        The margin to begin with, um.

    Returns
    -------
    rays : array (k, gx, gy) of bool
    margins : array (n_labels,)
        The margin that was kept from the edges of each material, um.
    """
    n = lengths.shape[-1]
    voxel = float(labels.voxel_size_um.max())
    margins = np.full(n, margin_um)
    away = np.ones((n, *lengths.shape[:-1]), dtype=bool)

    def away_from(label: int) -> NDArray[np.bool_]:
        thickness = lengths[..., label].astype(np.float64)
        straight = np.ones(thickness.shape, dtype=bool)
        for axis, step in zip((1, 2), step_um, strict=True):
            reach = max(1, round(margins[label] / step))
            index = np.arange(thickness.shape[axis])
            before = thickness.take((index - reach).clip(0), axis=axis)
            after = thickness.take((index + reach).clip(None, index[-1]), axis=axis)
            bend = np.abs(before + after - 2 * thickness)
            straight &= bend <= LARGEST_BEND * reach * step + VOXEL_NOISE * voxel
        near = [1, *(2 * round(margins[label] / step) + 1 for step in step_um)]
        return np.asarray(scipy.ndimage.minimum_filter(straight, near, mode="nearest"))

    for label in range(1, n):
        away[label] = away_from(label)
    least = float(min(step_um))
    for _ in range(4):
        together = np.all(away, axis=0)
        again = []
        for label in range(1, n):
            through = lengths[..., label] > voxel
            count = np.count_nonzero(through)
            few = np.count_nonzero(through & together) < KEPT_SHARE * count
            if few and margins[label] > 1.01 * least:
                again.append(label)
        for label in again:
            margins[label] = max(0.5 * margins[label], least)
            away[label] = away_from(label)
    return np.asarray(np.all(away, axis=0)), margins


def far_from(in_sample: NDArray[np.bool_], blocks: FloatArray) -> NDArray[np.bool_]:
    """Rays (k, gx, gy) that are at least so many blocks (2,) away from the sample.

    Light that the sample refracts does not reach them.
    """
    size = [1, *(2 * math.ceil(b) + 1 for b in blocks)]
    return ~np.asarray(scipy.ndimage.maximum_filter(in_sample, size, mode="nearest"))


def thin_out(places: NDArray[np.bool_], in_sample: NDArray[np.bool_]) -> None:
    """Leaves out rays evenly, in place: MOST_RAYS at most remain in the sample, and beside it."""
    for group in (in_sample, ~in_sample):
        chosen = np.flatnonzero(places & group)
        every = math.ceil(len(chosen) / MOST_RAYS)
        if every > 1:
            keep = np.zeros(len(chosen), dtype=bool)
            keep[::every] = True
            places.ravel()[chosen[~keep]] = False


def require_bright(bright: NDArray[np.bool_], all_rays: NDArray[np.bool_]) -> None:
    """Raises ValueError if the sample is too opaque for nearly all rays."""
    n = int(np.count_nonzero(all_rays))
    share = int(np.count_nonzero(bright)) / max(1, n)
    if n and share < LEAST_BRIGHT:
        raise ValueError(
            f"{100 * share:.1f} % of the rays through the sample have a transmission above "
            f"{LEAST_TRANSMISSION}: it is too opaque at this energy; give mu."
        )


def materials_seen(
    rays: NDArray[np.bool_], lengths: NDArray[np.float32], voxel_um: float
) -> NDArray[np.intp]:
    """The labels (m,), without the background, that at least LEAST_RAYS of the rays cross.

    Parameters
    ----------
    rays : array (k, gx, gy) of bool
        The usable rays.
    lengths : array (k, gx, gy, n_labels)
        Path lengths of all rays, um.
    voxel_um : float
        A ray crosses a material if its path in it is longer than this, um.
    """
    counts = [
        np.count_nonzero(rays & (lengths[..., i] > voxel_um)) for i in range(lengths.shape[-1])
    ]
    return 1 + np.flatnonzero(np.array(counts[1:]) >= LEAST_RAYS)
