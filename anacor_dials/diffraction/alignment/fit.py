"""The alignment from the diffraction data: angle offset, rotation sense, factor on mu.

Symmetry equivalents have one intensity. With the transmission A of a trial alignment the logarithm
of a measured intensity (corrected for Lorentz factor, polarisation and the sensor) is

    ln I_j = ln I_h(j) + ln A_j(offset, sense; k mu) + scale_sweep(phi_j) + decay_sweep(phi_j) / (2
    d_j^2) + e_j

with one unknown for every unique reflection h, and a scale and a decay that vary smoothly with the
scan angle (cubic B-splines, as in scaling programs). The errors e are those of sigma(I)/I and an
instrument error, and random fields on the sphere of the diffracted directions (:mod:`.fields`):
real data have smooth errors, which would move the minimum by many of its standard errors. The
residuals, made independent, and with Huber's weights against outliers, give the disagreement
chi^2. The factor k on mu is fitted at every trial, also if mu itself is to stay as it is: a wrong
mu must not decide the angle, and k = 0 is the case without absorption.

What the data cannot tell. The part of A that depends only on the angle of the incident beam is a
smooth scale, so only differences between exit directions count. A of a sphere depends on the
scattering angle alone, which equivalents share: nothing can be learned from it. A sample that is
symmetric about the axis has no offset. Therefore the alignment is moved only if every alternative
is refuted: no absorption at all, and every trial that is farther than BASIN_DEG from the best one
or has the other sense. Two alignments are compared as by Vuong (Econometrica 57 (1989) 307): the
sum of the differences of squared residuals is divided by its standard deviation. This is taken from
sums over clusters (all observations of a unique reflection, or a cell of scan angle and detector
quadrant, whichever gives more), since the errors of neighbours are correlated. Friedel mates count
as equivalents, or do not, whichever gives the smaller standard error. Standard errors are those of
the curvature or of the same clusters (the sandwich formula; White, Econometrica 48 (1980) 817),
whichever is largest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from dxtbx.model import ExperimentList

from anacor_dials.absorption.tracing import Tracing
from anacor_dials.diffraction.alignment.equivalents import (
    LEAST_I_OVER_SIGMA,
    Equivalents,
)
from anacor_dials.diffraction.alignment.search import (
    MU_GRID,
    OFFSET_STEP_DEG,
    Search,
    Trial,
    smooth_scales,
)
from anacor_dials.diffraction.alignment.trials import LogTransmission, TrialTransmissions
from anacor_dials.diffraction.reflections import Alignment
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.progress import followed
from anacor_dials.sample.volumes import LabelVolume

logger = logging.getLogger("dials.anacor_dials.diffraction.alignment")

# the last is for the crystal's faces, anacor_dials.diffraction.alignment.from_faces
CHOICES = ("offset", "sense", "mu_scale", "faces")

# With fewer, errors from clusters of observations are too uncertain to refute anything.
FEWEST_UNIQUE = 50
FEWEST_DEGREES_OF_FREEDOM = 200
ROUNDS = 3  # of weights and alignment in turn

# An alignment is moved only if all of these hold. They were chosen by hand, so that nothing is
# moved that the data do not determine.
REFUTED_AT = 3.0  # standard deviations between the best trial and every alternative
BASIN_DEG = 20.0  # trials nearer than this to the best one are no alternatives to it
SMALLEST_MU_SCALE, LARGEST_MU_SCALE = 0.6, 1.6  # mu from composition is better known than this
LARGEST_OFFSET_ERROR_DEG = 5.0
LARGEST_MU_SCALE_ERROR = 0.1
# an offset that is not refined may be wrong by this; factors hardly change
LEAST_WRONG_OFFSET_DEG = 1.0


def choices_from(words: Sequence[str] | None) -> tuple[str, ...]:
    """What is to be refined, of CHOICES, from words such as ["offset,sense"] or ["none"].

    Raises ValueError for a word that is none of these.
    """
    chosen = [part for word in words or () for part in word.replace(",", " ").split()]
    for name in chosen:
        if name not in (*CHOICES, "none"):
            raise ValueError(
                f"alignment.refine is {','.join(chosen)}; it is none, or some of {', '.join(CHOICES)} "
                "with commas between them."
            )
    return tuple(name for name in CHOICES if name in chosen)


@dataclass(frozen=True, eq=False)
class AlignmentFit:
    """The alignment at which equivalents agree best, and what was made of it.

    Attributes
    ----------
    asked : tuple of str
        What was to be refined, of CHOICES.
    before, after : Alignment
        The given alignment, and the one to use from now on.
    mu_scale : float
        The factor on every mu to use from now on.
    reason : str
        Why nothing was moved; empty if the alignment was moved.
    offset_deg, offset_error_deg : float
        The best offset and its standard error, deg.
    sense : int
        The best rotation sense.
    fitted_mu_scale, mu_scale_error : float
        The best factor on mu and its standard error; it is fitted also if mu is to stay as it is.
    n_observations, n_unique, n_scales, n_sweeps : int
        Numbers of observations, of unique reflections, of parameters of the scales, of sweeps.
    friedel_apart : bool
        Whether Friedel mates did not count as equivalents.
    instrument_error : float
        Relative.
    field_error : float
        rms of the smooth errors of real data that :mod:`.fields` models, relative.
    offsets_deg : array (m,)
        The offsets of the trials, deg.
    senses : tuple of s int
        The senses of the trials.
    disagreement, mu_scales : array (s, m)
        The rms relative difference of equivalents at every trial, and its best factor on mu.
    mu_scale_curve : array
        The same difference at the best offset, for the factors mu_grid.
    disagreement_none, disagreement_before, disagreement_best : float
        The same without correction, at the given alignment with mu as given, and at the best one.
    refuted_none, refuted_others : float
        By how many standard deviations the best trial is better than no correction, and than the
        best alternative; infinite if there is none.
    other : (float, int) or None
        Offset, deg, and sense of the best alternative.
    mu_grid : array
        Factors on mu.
    refuted_at : float
        The standard deviations that are needed.
    refuted_mirror : float
        By how many standard deviations the best trial is better than the best one of the mirror
        image of the labels; NaN if they were not compared.
    factor_error : float
        The rms relative error of the factors, after one scale, that the standard errors of what was
        refined make.
    """

    asked: tuple[str, ...]
    before: Alignment
    after: Alignment
    mu_scale: float
    reason: str
    offset_deg: float = math.nan
    offset_error_deg: float = math.nan
    sense: int = 1
    fitted_mu_scale: float = math.nan
    mu_scale_error: float = math.nan
    n_observations: int = 0
    n_unique: int = 0
    n_scales: int = 0
    n_sweeps: int = 0
    friedel_apart: bool = False
    instrument_error: float = math.nan
    field_error: float = 0.0
    offsets_deg: FloatArray = field(default_factory=lambda: np.zeros(0))
    senses: tuple[int, ...] = ()
    disagreement: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    mu_scales: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    mu_scale_curve: FloatArray = field(default_factory=lambda: np.zeros(0))
    disagreement_none: float = math.nan
    disagreement_before: float = math.nan
    disagreement_best: float = math.nan
    refuted_none: float = math.nan
    refuted_others: float = math.inf
    other: tuple[float, int] | None = None
    mu_grid: FloatArray = field(default_factory=MU_GRID.copy)
    refuted_at: float = REFUTED_AT
    refuted_mirror: float = math.nan
    factor_error: float = math.nan

    @property
    def moved(self) -> bool:
        """Whether the alignment, or mu, was changed by the fit."""
        return not self.reason

    @property
    def warnings(self) -> list[str]:
        """Sentences for the user: why nothing was moved."""
        if self.moved:
            return []
        return [
            f"alignment.refine={','.join(self.asked)}: the data do not determine it, nothing is moved: "
            f"{self.reason}."
        ]


def refine_alignment(
    data: Equivalents,
    experiments: ExperimentList,
    labels: LabelVolume,
    mu_per_um: Sequence[FloatArray],
    asked: Sequence[str],
    alignment: Alignment,
    tracing: Tracing | None = None,
    progress: bool = False,
) -> AlignmentFit:
    """The alignment at which symmetry equivalents agree best, if the data determine it.

    Parameters
    ----------
    data : Equivalents
        From :func:`anacor_dials.diffraction.alignment.equivalents.equivalents`.
    experiments : ExperimentList
    labels : LabelVolume
    mu_per_um : sequence of array (n_labels,)
        mu at each wavelength, 1/um, in the order of
        :func:`anacor_dials.diffraction.wavelengths.wavelength_groups`.
    asked : sequence of str
        What to refine, of CHOICES.
    alignment : Alignment
        The given alignment.
    tracing : Tracing, optional
        Beam, memory, threads, device and seed are used; tolerance and method are not.
    progress : bool
        Whether to show progress bars.

    Raises
    ------
    ValueError
        If there are too few equivalents because the data are in P 1.
    """
    asked = choices_from(asked)
    reason = _too_few(data)
    if reason:
        groups = (e.crystal.get_space_group() for e in experiments if e.crystal is not None)
        if next(groups).order_p() == 1:
            raise ValueError(
                f"alignment.refine: {reason}, as the experiments are P 1; where the crystal has more "
                "symmetry, run dials.symmetry first."
            )
        return AlignmentFit(tuple(asked), alignment, alignment, 1.0, reason)
    senses = (1, -1) if "sense" in asked else (alignment.rotation_sense,)
    logger.info(
        "Alignment from %d observations of %d unique reflections in %d sweeps",
        len(data),
        data.n_unique,
        len(np.unique(data.experiment)),
    )
    transmissions = TrialTransmissions(
        labels, mu_per_um, data, experiments, alignment, senses, tracing or Tracing(), progress
    )
    # the mirror image of a slit is another slit
    mirrored = None if tracing is not None and tracing.beam is not None else transmissions.mirrored
    return fit_alignment(data, transmissions, asked, alignment, progress, mirrored)


def _too_few(data: Equivalents) -> str:
    """Why there are too few equivalents; empty if there are enough."""
    if len(data) == 0 or data.n_unique < FEWEST_UNIQUE:
        return (
            f"there are {data.n_unique} unique reflections that were measured more than once with "
            f"I/sigma > {LEAST_I_OVER_SIGMA:g}, and {FEWEST_UNIQUE} are needed"
        )
    scales = smooth_scales(data)
    left = len(data) - data.n_unique - scales.shape[1]
    if left < FEWEST_DEGREES_OF_FREEDOM:
        return (
            f"{len(data)} observations of {data.n_unique} unique reflections leave {left} degrees of "
            f"freedom, and {FEWEST_DEGREES_OF_FREEDOM} are needed"
        )
    return ""


def fit_alignment(
    data: Equivalents,
    transmissions: LogTransmission,
    asked: Sequence[str],
    alignment: Alignment,
    progress: bool = False,
    mirrored: LogTransmission | None = None,
) -> AlignmentFit:
    """The fit to given observations.

    Parameters
    ----------
    data : Equivalents
    transmissions : callable
        ln A (3, n) at MU_NODES as a function of offset, deg, and sense.
    asked : sequence of str
        What to refine, of CHOICES.
    alignment : Alignment
        The given alignment.
    progress : bool
        Whether to show progress bars.
    mirrored : callable, optional
        The same as transmissions, of the mirror image of the labels. If it fits better, the labels
        are mirrored, and nothing is moved.
    """
    asked = choices_from(asked)
    senses = (1, -1) if "sense" in asked else (alignment.rotation_sense,)
    given = alignment.angle_offset_deg % 360.0
    offsets = np.array([given])
    if "offset" in asked:
        offsets = np.mod(given + np.arange(0.0, 360.0, OFFSET_STEP_DEG), 360.0)
        offsets.sort()
    search = Search(data, transmissions)
    best = Trial(given, senses[0], 0.0, math.inf, np.eye(4))
    residual = search.residual(best)
    fits: list[AlignmentFit] = []
    for apart in (False, True):
        if apart:
            few = len(data) - int(data.unique_apart.max()) - search.disagreement.n_scales
            if np.array_equal(data.unique, data.unique_apart) or few < FEWEST_DEGREES_OF_FREEDOM:
                continue
            search.unique = data.unique_apart
        for number in range(ROUNDS):
            # fields would take up the absorption as long as the alignment is not known at all
            search.set_weights(*search.weights_from(residual), best if number or fits else None)
            grid = [
                search.trial(offset, sense)
                for sense in senses
                for offset in followed(offsets, "Trial alignments", bar=progress and not fits)
            ]
            best = min(grid, key=lambda trial: trial.chi2)
            if "offset" in asked:
                best = search.refine_offset(best)
            residual = search.residual(best)
        fit = _judged(search, grid, best, asked, alignment, offsets, senses)
        if mirrored is not None and "offset" in asked and fit.refuted_none > REFUTED_AT:
            fit = _unless_mirrored(fit, search, best, mirrored)
        fits.append(replace(fit, friedel_apart=apart))
    # mates together are more comparisons; apart, their anomalous differences are no disagreement
    return min(
        fits, key=lambda fit: fit.offset_error_deg if "offset" in asked else fit.mu_scale_error
    )


def _angle_between(a_deg: float, b_deg: float) -> float:
    return abs((a_deg - b_deg + 180.0) % 360.0 - 180.0)


@dataclass(frozen=True)
class _Evidence:
    """What decides whether the alignment is moved; see :class:`AlignmentFit`."""

    refuted_none: float
    refuted_others: float
    other: tuple[float, int] | None
    mu_error: float
    offset_error: float
    missing_step: float  # the step of an offset that is not refined, and its error, deg
    missing_step_error: float


def _evidence(
    search: Search, grid: Sequence[Trial], best: Trial, asked: Sequence[str]
) -> _Evidence:
    at_best = search.residual(best)
    errors = search.linearised(best, "offset" in asked)[1]
    step, step_error = 0.0, math.inf
    if "offset" not in asked:
        (_, step), (_, step_error) = search.linearised(best, True)
    refuted_others, other = math.inf, None
    for trial in grid:
        near = _angle_between(trial.offset_deg, best.offset_deg) < BASIN_DEG
        if trial.sense == best.sense and near:
            continue
        superiority = search.superiority(at_best, search.residual(trial))
        if superiority < refuted_others:
            refuted_others, other = superiority, (trial.offset_deg, trial.sense)
    return _Evidence(
        refuted_none=search.superiority(at_best, search.residual(best, 0.0)),
        refuted_others=refuted_others,
        other=other,
        mu_error=float(errors[0]),
        offset_error=float(errors[1]) if "offset" in asked else 0.0,
        missing_step=step,
        missing_step_error=step_error,
    )


def _why_not(best: Trial, asked: Sequence[str], evidence: _Evidence) -> str:
    """Why the alignment must not be moved; empty if it may."""
    k, other = float(best.mu_scale), evidence.other
    step, step_error = evidence.missing_step, evidence.missing_step_error
    if not evidence.refuted_none >= REFUTED_AT:
        return (
            f"the sample's absorption makes equivalents agree better than no correction by only "
            f"{evidence.refuted_none:.1f} standard deviations at the best alignment ({REFUTED_AT:g} are "
            "needed)"
        )
    if other is not None and not evidence.refuted_others >= REFUTED_AT:
        return (
            f"offset {best.offset_deg:.1f} deg with sense {best.sense:+d} fits better than "
            f"{other[0]:.1f} deg with sense {other[1]:+d} by only {evidence.refuted_others:.1f} standard "
            f"deviations ({REFUTED_AT:g} are needed)"
        )
    if not SMALLEST_MU_SCALE <= k <= LARGEST_MU_SCALE:
        return (
            f"the best alignment asks for {k:.2f} times the absorption coefficients given (from "
            f"{SMALLEST_MU_SCALE:g} to {LARGEST_MU_SCALE:g} is believed); see whether mu, the labels and "
            "the voxel size are right"
        )
    if abs(step) > max(REFUTED_AT * step_error, LEAST_WRONG_OFFSET_DEG):
        return (
            f"equivalents ask for another angle offset, by about {step:+.1f} ({step_error:.1f}) deg, and "
            "with a wrong one the rest would be wrong too; name offset in alignment.refine as well"
        )
    if "offset" in asked and not evidence.offset_error <= LARGEST_OFFSET_ERROR_DEG:
        return (
            f"the standard error of the offset is {evidence.offset_error:.1f} deg (at most "
            f"{LARGEST_OFFSET_ERROR_DEG:g} is accepted)"
        )
    if "mu_scale" in asked and not evidence.mu_error <= LARGEST_MU_SCALE_ERROR:
        return (
            f"the standard error of the factor on mu is {evidence.mu_error:.2f} (at most "
            f"{LARGEST_MU_SCALE_ERROR:g} is accepted)"
        )
    return ""


def _unless_mirrored(
    fit: AlignmentFit, search: Search, best: Trial, mirrored: LogTransmission
) -> AlignmentFit:
    """The fit; with a reason not to move anything if the mirror image of the labels fits better."""
    other = search.with_transmissions(mirrored)
    trials = [other.trial(offset, sense) for sense in fit.senses for offset in fit.offsets_deg]
    image = other.refine_offset(min(trials, key=lambda trial: trial.chi2))
    better = search.superiority(search.residual(best), other.residual(image))
    if better < 0:
        # weights and fields at the labels' own best trial take up what the labels cannot explain
        other.set_weights(*other.weights_from(other.residual(image)), image)
        mine = other.with_transmissions(search.log_transmissions)
        again = [mine.trial(offset, sense) for sense in fit.senses for offset in fit.offsets_deg]
        best = mine.refine_offset(min(again, key=lambda trial: trial.chi2))
        image = other.refine_offset(image)
        better = min(better, mine.superiority(mine.residual(best), other.residual(image)))
    if better > -REFUTED_AT:
        return replace(fit, refuted_mirror=better)
    return replace(
        fit,
        refuted_mirror=better,
        after=fit.before,
        mu_scale=1.0,
        reason=f"the mirror image of the labels fits better, by {-better:.1f} standard deviations (offset "
        f"{image.offset_deg:.1f} deg, sense {image.sense:+d}): the labels are mirrored; see "
        "projections.fast_axis and slow_axis, or labels.axes",
    )


def _moved(alignment: Alignment, best: Trial, asked: Sequence[str]) -> Alignment:
    """The alignment with the sense, and the offset if it was asked for, of a trial."""
    offset = best.offset_deg if "offset" in asked else alignment.angle_offset_deg
    # of all angles that differ by full turns, the nearest to the given one
    offset = alignment.angle_offset_deg + (
        (offset - alignment.angle_offset_deg + 180.0) % 360.0 - 180.0
    )
    return replace(alignment, angle_offset_deg=float(offset), rotation_sense=best.sense)


def _judged(
    search: Search,
    grid: Sequence[Trial],
    best: Trial,
    asked: tuple[str, ...],
    alignment: Alignment,
    offsets: FloatArray,
    senses: tuple[int, ...],
) -> AlignmentFit:
    """The fit, with what was moved or the reason why not."""
    data, disagreement = search.data, search.disagreement
    evidence = _evidence(search, grid, best, asked)
    reason = _why_not(best, asked, evidence)
    before = search.trial(alignment.angle_offset_deg, alignment.rotation_sense)
    # rms difference from the mean of equivalents: chi^2 per degree of freedom over the mean weight
    weight = 1 / (data.relative_variance + search.instrument_error**2)
    unit = 1 / math.sqrt(disagreement.degrees_of_freedom * float(weight.mean()))
    k = float(best.mu_scale)
    curve = unit * np.sqrt([trial.chi2 for trial in grid]).reshape(len(senses), -1)
    return AlignmentFit(
        asked,
        alignment,
        alignment if reason else _moved(alignment, best, asked),
        k if "mu_scale" in asked and not reason else 1.0,
        reason,
        offset_deg=best.offset_deg,
        offset_error_deg=evidence.offset_error,
        sense=best.sense,
        fitted_mu_scale=k,
        mu_scale_error=evidence.mu_error,
        n_observations=len(data),
        n_unique=data.n_unique,
        n_scales=disagreement.n_scales,
        n_sweeps=len(np.unique(data.experiment)),
        instrument_error=search.instrument_error,
        field_error=search.field_error,
        offsets_deg=offsets,
        senses=senses,
        disagreement=curve,
        mu_scales=np.array([trial.mu_scale for trial in grid]).reshape(len(senses), -1),
        mu_scale_curve=unit * np.sqrt(np.maximum(best.chi2_at(MU_GRID), 0.0)),
        disagreement_none=unit * float(np.linalg.norm(search.residual(best, 0.0))),
        disagreement_before=unit * math.sqrt(max(0.0, float(before.chi2_at(np.ones(1))[0]))),
        disagreement_best=unit * float(np.linalg.norm(search.residual(best))),
        refuted_none=evidence.refuted_none,
        refuted_others=evidence.refuted_others,
        other=evidence.other,
        factor_error=search.factor_error(
            best, evidence.mu_error if "mu_scale" in asked else 0.0, evidence.offset_error
        ),
    )
