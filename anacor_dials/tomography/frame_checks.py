"""Frames of a scan that are no projections: dark, filled with zeros, saturated, or repeated.

A frame is left out in four cases: the level beside the sample is not that of the beam; most of its
pixels are unusable; it is identical to the frame before it; or it differs from the frames before
and after it far more than these differ from each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray, FloatImages
from anacor_dials.tomography.beam_level import BeamLevel, measure_beam
from anacor_dials.tomography.survey import Survey

LEAST_PROJECTIONS = 20  # in a shorter scan neighbours differ too much to be compared
LONGEST_RUN = 5  # bad frames in a row that are found by comparison with their neighbours
# A level outside these, relative to its neighbours, is not that of the beam. Chosen by hand: a beam
# drifts by per cent, and a lost or double exposure changes the level by a factor of two or more.
LEVELS = (0.5, 2.0)
# A run of frames is bad if it differs from the frames around it by more than OUTLYING times the
# difference between these frames (0.5 to 1 times if the sample only turns), and by more than
# STANDING_OUT times the usual difference of successive frames. Both were chosen by hand.
OUTLYING = 2.5
STANDING_OUT = 4.0


@dataclass(frozen=True)
class BadFrames:
    """Projections that are left out for one reason: their indices, and the reason in words."""

    reason: str
    indices: tuple[int, ...]


def _local_median(values: FloatArray, good: NDArray[np.bool_], width: int = 31) -> FloatArray:
    """The running median (n,) of the good values (n,)."""
    places = np.flatnonzero(good)
    width = min(width, 2 * ((len(places) - 1) // 2) + 1)
    running = scipy.ndimage.median_filter(values[places], size=width, mode="nearest")
    return np.asarray(np.interp(np.arange(len(values)), places, running))


def _difference(images: FloatImages, step: int) -> FloatArray:
    """The rms difference (n - step,) of each image (n, kx, ky) from the one `step` further on."""
    return np.array(
        [np.sqrt(np.mean((a - b) ** 2)) for a, b in zip(images[:-step], images[step:], strict=True)]
    )


def _odd_runs(images: FloatImages) -> NDArray[np.bool_]:
    """Which (n,) images, alone or in short runs, differ from the images around them.

    The images before and after such a run are alike.
    """
    n = len(images)
    odd = np.zeros(n, dtype=bool)
    smooth = scipy.ndimage.uniform_filter(images, (0, 3, 3), mode="nearest")
    following = _difference(smooth, 1)
    usual = _local_median(following, np.ones(n - 1, dtype=bool))
    for length in range(1, min(LONGEST_RUN, n - 3) + 1):
        around = _difference(smooth, length + 1)  # of k - 1 and k + length, at k - 1
        for k in range(1, n - length):
            enter, leave = following[k - 1], following[k + length - 1]
            least = min(enter, leave)
            if least > OUTLYING * around[k - 1] and least > STANDING_OUT * usual[k]:
                odd[k : k + length] = True
    return odd


def _repeated(checksum: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which (n,) images are identical to the one before.

    None if most images are: a simulation without noise.
    """
    same = np.append(False, checksum[1:] == checksum[:-1])
    return same if same.mean() < 0.5 else np.zeros(len(same), dtype=bool)


def find_bad_frames(
    survey: Survey, unusable_limit: float
) -> tuple[list[BadFrames], NDArray[np.bool_], BeamLevel]:
    """Bad frames by reason, which (n,) projections are good, and the beam's level in all of them.

    unusable_limit: a frame with a larger share of unusable pixels is left out.
    """
    images = survey.images
    n = len(images)
    found: list[BadFrames] = []
    good = np.ones(n, dtype=bool)

    def leave_out(reason: str, bad: NDArray[np.bool_]) -> None:
        bad = bad & good
        if bad.any():
            found.append(BadFrames(reason, tuple(int(k) for k in np.flatnonzero(bad))))
            good[bad] = False

    beam = measure_beam(images, np.zeros(n, dtype=bool))
    if n < LEAST_PROJECTIONS:
        return found, good, measure_beam(images, good)
    leave_out("most of it cannot be used (saturated, or no numbers)", survey.unusable > 0.5)
    leave_out("too many pixels cannot be used", survey.unusable > unusable_limit)
    if good.sum() >= 3:
        usual = float(np.median(beam.rough[good]))
        leave_out("no beam", beam.rough < 0.1 * usual)
    if good.sum() >= 3:
        usual_level = _local_median(beam.rough, good)
        low, high = LEVELS
        leave_out(
            "another level of the beam than before and after",
            (beam.rough < low * usual_level) | (beam.rough > high * usual_level),
        )
    leave_out("the frame before it once more", _repeated(survey.checksum))
    beam = measure_beam(images, good)
    if good.sum() >= LEAST_PROJECTIONS:
        places = np.flatnonzero(good)
        usual = float(np.median(beam.rough[good]))
        level = np.maximum(beam.level[places], 1e-3) if beam.seen else np.full(len(places), usual)
        scaled = np.nan_to_num(images[places] / level[:, None, None], nan=1.0)
        odd = np.zeros(n, dtype=bool)
        odd[places[_odd_runs(np.clip(scaled, 0.0, 2.0).astype(np.float32))]] = True
        leave_out("unlike the frames before and after it", odd)
    return found, good, beam
