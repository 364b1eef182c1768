"""Checks of a whole scan before it is used: frames, beam, angles, motion and tilt.

Errors are corrected where this is safe. A few bad frames are left out. Otherwise the scan is
refused. :class:`ScanFindings` says what was done.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.tomography.beam_level import BeamLevel
from anacor_dials.tomography.frame_checks import LEAST_PROJECTIONS, BadFrames, find_bad_frames
from anacor_dials.tomography.moments import Moments, find_moments
from anacor_dials.tomography.resampling import Motion
from anacor_dials.tomography.sample_motion import (
    UNITS,
    Course,
    axis_tilt,
    drift_along,
    follow,
    in_bands,
    misfit_of,
    offset_between,
    standing_still,
)
from anacor_dials.tomography.survey import Survey, survey_scan

if TYPE_CHECKING:
    from anacor_dials.tomography.projections import Projections

logger = logging.getLogger("dials.anacor_dials.tomography.scan_checks")

BAD_LIMIT = 0.1  # of the projections; with more bad ones the scan is refused; chosen by hand
# Relative difference between the beam beside the sample and the flats. Chosen by hand: it is an
# error of 0.02 in -ln T.
LEVEL_WARNING = 0.02
# other angles are tried if the misfit, in standard deviations, is larger; it is 0.1 to 1.1 in good
# scans
MISFIT = 1.5
BETTER = 0.7  # other angles are believed if they reduce the misfit to this part; chosen by hand
# a larger misfit is refused if no angle, drift or tilt explains it; strong fringes in small images
# cause up to 4.3
HOPELESS = 8.0
LEAST_OFFSET_DEG = 2.0  # a smaller offset of the angles is not believed; chosen by hand
TILT_EDGE_PIXELS = 0.12  # a tilt that moves the ends of the sample by less does no harm
# a tilt within so many standard deviations of zero is not believed; chosen by hand
TILT_SIGMAS = 5.0
LARGEST_TILT_DEG = 3.0  # for larger ones the expansion to first order is wrong


@dataclass(frozen=True)
class ScanChecks:
    """What is looked for in a scan, and corrected.

    Parameters
    ----------
    frames : bool
        Whether frames that are no projections are left out.
    level : bool
        Whether each projection is normalised by the beam beside the sample.
    angles : bool
        Whether it is checked that the angles fit the images.
    drift : bool
        Whether a motion of the sample is corrected.
    tilt_deg : float or None
        Of the rotation axis in the upright image, from X towards +Y; None to measure it, 0 for
        none.
    """

    frames: bool = True
    level: bool = True
    angles: bool = True
    drift: bool = True
    tilt_deg: float | None = None

    def __post_init__(self) -> None:
        if self.tilt_deg is not None and not abs(self.tilt_deg) <= LARGEST_TILT_DEG:
            raise ValueError(
                f"The rotation axis is said to be tilted by {self.tilt_deg:g} degrees; tilts up to "
                f"{LARGEST_TILT_DEG:g} degrees are corrected."
            )


@dataclass(frozen=True)
class ScanFindings:
    """What was found in a scan, for the log and the report.

    Attributes
    ----------
    left_out : tuple of (str, int)
        The reason, and the number of projections.
    level : (float, float, float) or None
        Median, least and largest of the beam beside the sample, relative to the flats; None if no
        air is seen.
    drift_px : (float, float)
        Along and across the axis, the largest less the least, in pixels.
    tilt_deg : float
        Which was corrected; 0 for none.
    whole : bool
        Whether the sample is in view from side to side, which is needed to check angles, drift and
        tilt.
    warnings : tuple of str
    """

    left_out: tuple[tuple[str, int], ...] = ()
    level: tuple[float, float, float] | None = None
    drift_px: tuple[float, float] = (0.0, 0.0)
    tilt_deg: float = 0.0
    whole: bool = False
    warnings: tuple[str, ...] = ()


def named(indices: Iterable[int], angles_deg: FloatArray) -> str:
    """Projections in words: ``3, 12 to 15 (1.00, 5.50 to 7.00 deg)``, counted from 1.

    At most six runs are named.
    """
    places = sorted(indices)
    runs: list[list[int]] = []
    for k in places:
        if runs and k == runs[-1][-1] + 1:
            runs[-1].append(k)
        else:
            runs.append([k])
    more = ", ..." if len(runs) > 6 else ""

    def span(first: str, last: str) -> str:
        return first if first == last else f"{first} to {last}"

    numbers = ", ".join(span(str(r[0] + 1), str(r[-1] + 1)) for r in runs[:6])
    angles = ", ".join(
        span(f"{angles_deg[r[0]]:.2f}", f"{angles_deg[r[-1]]:.2f}") for r in runs[:6]
    )
    return f"{numbers}{more} ({angles}{more} deg)"


class _Notes:
    """Warnings, collected and logged; and what is left out."""

    def __init__(self, projections: Projections) -> None:
        self.path = projections.path or "The scan"
        self.angles_deg = projections.angles_deg
        self.warnings: list[str] = []
        self.left_out: list[tuple[str, int]] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        logger.warning("%s", text)

    def leave_out(self, bad: Iterable[BadFrames]) -> None:
        """Notes projections that are left out; ValueError if they are more than a tenth of all."""
        n = len(self.angles_deg)
        bad = list(bad)
        total = sum(n for _, n in self.left_out) + sum(len(b.indices) for b in bad)
        texts = [f"{b.reason}: {named(b.indices, self.angles_deg)}" for b in bad]
        if total > BAD_LIMIT * n:
            raise ValueError(
                f"{self.path}: {total} of {n} projections cannot be used ({'; '.join(texts)}); that is no accident: "
                "see how the scan was taken, or set projections.check_frames=False."
            )
        for b, text in zip(bad, texts, strict=True):
            self.left_out.append((text, len(b.indices)))
            self.warn(f"{len(b.indices)} of {n} projections are left out, {text}.")


def _check_level(
    beam: BeamLevel, good: NDArray[np.bool_], checks: ScanChecks, notes: _Notes
) -> None:
    if not beam.seen:
        logger.info(
            "No air is seen beside the sample at all angles: the level of the beam is that of the flats."
        )
        return
    level = beam.level[good]
    middle, low, high = float(np.median(level)), float(level.min()), float(level.max())
    logger.info(
        "The beam beside the sample is %.4f of the flats (%.4f to %.4f)%s",
        middle, low, high, ": each projection is normalised by it" if checks.level else "",
    )  # fmt: skip
    if max(abs(middle - 1), high - low) > LEVEL_WARNING:
        done = (
            "each projection is normalised by it"
            if checks.level
            else "set projections.normalise=True, or mu is wrong"
        )
        notes.warn(
            f"The beam beside the sample is {middle:.3f} of the flats, from {low:.3f} to {high:.3f} within the scan: "
            f"{done}. Were flats exposed as long as projections?"
        )


def _check_angles(moments: Moments, angles: FloatArray, course: Course, notes: _Notes) -> None:
    """ValueError if other angles than the recorded ones explain the images, or if none do."""
    advice = (
        "give the right angles (projections.angles=, .first_angle= and .angle_step=), or set "
        "projections.check_angles=False."
    )
    c, v = in_bands(moments)
    error = moments.error_px
    recorded = misfit_of(c, v, angles, error)
    if recorded > MISFIT:
        misfits = {name: misfit_of(c, v, angles * scale, error) for name, scale in UNITS.items()}
        name = min(misfits, key=lambda name: misfits[name])
        if misfits[name] < 0.5 * recorded:
            unit = " (projections.angle_units=)" if "taken" in name else ""
            raise ValueError(
                f"{notes.path}: the recorded angles contradict the images, in which the sample's centre of mass must "
                f"follow a sine; they fit as {name}{unit}: {advice}"
            )
    if course.misfit < MISFIT:
        return
    c = c - course.drift[:, None]
    few = course.wrong_angle.mean() <= BAD_LIMIT
    jump, offset, misfit = offset_between(c, v, angles, error)
    if (
        misfit < BETTER * course.misfit
        and abs(offset) > LEAST_OFFSET_DEG
        and not (few and misfit > MISFIT)
    ):
        raise ValueError(
            f"{notes.path}: the recorded angles contradict the images, in which the sample's centre of mass must "
            f"follow a sine; they fit if all from {angles[jump]:.2f} deg on are changed by {offset:.1f} deg: {advice}"
        )
    left = course.misfit
    if few and course.wrong_angle.any():
        keep = ~course.wrong_angle
        left = misfit_of(c[keep], v[keep], angles[keep], error)
    if left > HOPELESS:
        raise ValueError(
            f"{notes.path}: the recorded angles contradict the images: the sample's centre of mass, which must follow a "
            f"sine, does not (its departures are {left:.0f} times the noise); {advice}"
        )


def _check_motion(
    survey: Survey,
    good: NDArray[np.bool_],
    beam: BeamLevel,
    projections: Projections,
    checks: ScanChecks,
    notes: _Notes,
) -> tuple[NDArray[np.bool_], Motion | None, bool]:
    """Which projections are still good, the motion of all, and whether it could be measured."""
    angles, numbers = projections.angles_deg, projections.numbers
    n = len(angles)
    tilt = checks.tilt_deg
    motion = None if not tilt else Motion(np.zeros(n), np.zeros(n), tilt)
    moments = find_moments(survey, good, beam) if good.sum() >= LEAST_PROJECTIONS else None
    if moments is None:
        if beam.seen and (checks.angles or checks.drift or tilt is None):
            logger.info(
                "The sample is not in view from side to side, or opaque: angles, drift and tilt are not looked at."
            )
        return good, motion, False
    time = 2.0 * (numbers - numbers[0]) / max(int(numbers[-1] - numbers[0]), 1) - 1.0
    places = np.flatnonzero(good)
    still = np.zeros(len(places))
    along = drift_along(moments, time[places])
    moments = moments.moved_back(still if along is None else along, still)
    c, v = in_bands(moments)
    course = follow(c, v, angles[places], time[places], moments.error_px)
    if checks.angles:
        _check_angles(moments, angles[places], course, notes)
        wrong = standing_still(angles[places], course.wrong_angle)
        if wrong.any():
            reason = "the recorded angle contradicts the image"
            notes.leave_out([BadFrames(reason, tuple(int(k) for k in places[wrong]))])
            good = good.copy()
            good[places[wrong]] = False
            keep = ~wrong
            places, still, along = places[keep], still[keep], None if along is None else along[keep]
            moments = moments.only(keep)
            c, v = in_bands(moments)
            course = follow(c, v, angles[places], time[places], moments.error_px)
    across = course.drift + np.where(course.shifted, course.shift, 0.0)
    moments = moments.moved_back(still, across)
    measured, error = axis_tilt(moments, angles[places])
    error *= max(1.0, course.misfit)  # what no motion explains is not noise alone
    if tilt is None:
        tilt = _believed_tilt(measured, error, moments)
    shift_x = still if along is None else along
    if not checks.drift:
        across = shift_x = still
    if not (np.any(across) or np.any(shift_x) or tilt):
        return good, None, True
    if np.any(across) or np.any(shift_x):
        notes.warn(
            f"The sample moves during the scan, by {np.ptp(shift_x):.1f} pixels along the rotation axis and "
            f"{np.ptp(across):.1f} across it"
            + (
                f" ({course.shifted.sum()} projections are displaced)"
                if course.shifted.any()
                else ""
            )
            + ": the projections are moved back. What goes as a sine of the angle cannot be told from another place of "
            "the sample."
        )
    if tilt and checks.tilt_deg is None:
        notes.warn(
            f"The rotation axis is tilted in the image by {tilt:.2f} degrees: the projections are turned back."
        )
    spread = [np.interp(np.arange(n), places, s) for s in (shift_x, across)]
    return good, Motion(spread[0], spread[1], tilt), True


def _believed_tilt(measured: float, error: float, moments: Moments) -> float:
    """The tilt if it is certain and large enough to matter, else 0."""
    x = moments.x[moments.rows]
    edge = np.deg2rad(abs(measured)) * 0.5 * float(np.ptp(x))
    sure = TILT_SIGMAS * error < abs(measured) <= LARGEST_TILT_DEG
    return measured if sure and edge > TILT_EDGE_PIXELS else 0.0


def checked_scan(
    projections: Projections, checks: ScanChecks, unusable_limit: float
) -> Projections:
    """The scan without bad frames, normalised by its beam, corrected for motion, with its findings.

    Every image is read once.

    Parameters
    ----------
    projections : Projections
    checks : ScanChecks
    unusable_limit : float
        A frame with a larger share of unusable pixels is left out.

    Raises
    ------
    ValueError
        If more than a tenth of the projections is unusable, or angles contradict the images.
    """
    if not (checks.frames or checks.level or checks.angles or checks.drift):
        if checks.tilt_deg is None:
            return projections
    notes = _Notes(projections)
    survey = survey_scan(projections)
    bad, good, beam = find_bad_frames(survey, unusable_limit)
    if checks.frames:
        notes.leave_out(bad)
    else:
        good = np.ones(projections.n_angles, dtype=bool)
    _check_level(beam, good, checks, notes)
    good, motion, whole = _check_motion(survey, good, beam, projections, checks, notes)
    keep = np.flatnonzero(good)
    # beside the sample, the level holds what count times say, too
    level = None if projections.level is None else projections.level[keep]
    if beam.seen and checks.level:
        level = np.maximum(beam.level, 1e-3)[keep]
    seen = beam.level[keep]
    findings = ScanFindings(
        tuple(notes.left_out),
        (float(np.median(seen)), float(seen.min()), float(seen.max())) if beam.seen else None,
        (0.0, 0.0)
        if motion is None
        else (float(np.ptp(motion.along)), float(np.ptp(motion.across))),
        0.0 if motion is None else motion.tilt_deg,
        whole,
        tuple(notes.warnings),
    )
    return replace(
        projections,
        numbers=projections.numbers[keep],
        angles_deg=projections.angles_deg[keep],
        level=level,
        motion=None if motion is None else motion[keep],
        findings=findings,
    )
