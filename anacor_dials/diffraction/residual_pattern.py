"""What absorption factors leave: a pattern of the crystal, of the detector, or of polarisation.

After scaling, ln I of an observation differs from the mean of its symmetry equivalents by errors.
Where they form a pattern, three shapes are fitted to them, and it is asked which fits best:

* **absorption**: harmonics up to order 4 of the incident and of the diffracted direction in the
  frame of the crystal, whose coefficients are the same for both directions. Wrong labels or a wrong
  mu leave such a pattern.
* **detector**: harmonics up to order 4 of the diffracted direction in the laboratory. A wrong
  flat field, a shadow or a wrong correction of the sensor leave it.
* **polarisation**: the logarithm of a polarisation factor, less that of the one the data were
  corrected with. It has two parameters, the fraction of polarisation and the direction of its
  normal about the beam.

The first two have 24 parameters each (absorption so many for each crystal), polarisation has two.
What decides is therefore how well a shape foretells reflections that it was not fitted to: all
equivalents of a fifth of the unique reflections are left out in turn. The squares of what two
shapes leave of each of these reflections are compared in pairs, which says by how many standard
errors one shape is better (as in Vuong, Econometrica 57 (1989) 307, of models that are not nested,
with reflections left out in the place of a penalty for parameters).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cctbx import miller
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.model import ExperimentList
from numpy.typing import NDArray
from scipy.optimize import least_squares

from anacor_dials.diffraction.models import read_models
from anacor_dials.diffraction.reflections import experiment_of_rows, row_directions
from anacor_dials.sample.frames import FloatArray, unit

ORDER = 4  # of the harmonics; DIALS' level low
LEAST_I_OVER_SIGMA = 3.0  # below, the logarithm of an intensity is too uncertain
# These bound the time
MOST_OBSERVATIONS = 40_000
MOST_BLOCKS = 120
MOST_CRYSTALS = 10
FEWEST_OBSERVATIONS = 500
# Scales of images are smooth over about ten degrees in dials.scale
BLOCK_DEG = 10.0
# Crystals whose orientations in the datum frame differ by less are one (absorption is the same)
SAME_CRYSTAL_DEG = 2.0
FARTHEST = 6.0  # robust standard deviations; what lies beyond is an outlier of its own
# Chosen by hand: what is smaller matters less than other errors of good data
LEAST_RMS = 0.01
LEAST_SHARE = 0.1
# Standard errors by which a shape must foretell better than absorption. Chosen by hand: reflections
# whose beams run alike err alike, so that the standard error is somewhat too small
CLEARLY = 4.0
# By so much of the variance the detector's shape must fit better, too: harmonics of low order are
# a rough form of both
CLEARLY_BETTER = 0.1
FOLDS = 5
SMALLEST_SINGULAR = 1e-10  # of the largest; below, columns are one another's sums
SMALLEST_P = 0.02  # bounds the logarithm of a polarisation factor that is tried


@dataclass(frozen=True)
class Polarisation:
    """The polarisation of a beam.

    Attributes
    ----------
    fraction : float
        The fraction of the intensity whose electric field is at right angles to the normal,
        0.5 to 1.
    angle_deg : float
        By how much the normal is turned about the beam, right-handedly about the direction from
        the source to the sample, against that of the experiments; -90 to 90 degrees.
    """

    fraction: float
    angle_deg: float


@dataclass(frozen=True)
class ResidualPattern:
    """How much of the disagreement of equivalents each shape explains.

    Attributes
    ----------
    observations : int
        How many were used.
    absorption, detector, polarisation : float
        Shares of the weighted sum of squares of reflections that were left out of the fit. They are
        at most 1, and about 0, or a little less, where a shape explains nothing.
    polarisation_better, detector_better, detector_over_polarisation : float
        By how many standard errors polarisation foretells such reflections better than absorption,
        the detector better than absorption, and the detector better than polarisation.
    rms : float
        Of the pattern of polarisation or of the detector, whichever explains more; a relative error
        of the intensities.
    fitted, used : Polarisation
        What fits best, and what the data were corrected with.
    """

    observations: int
    absorption: float
    detector: float
    polarisation: float
    polarisation_better: float
    detector_better: float
    detector_over_polarisation: float
    rms: float
    fitted: Polarisation
    used: Polarisation

    @property
    def cause(self) -> str:
        """What fits better than absorption: "polarisation", "detector", or "" for neither."""
        if self.rms < LEAST_RMS:
            return ""
        polarisation = self.polarisation >= LEAST_SHARE and self.polarisation_better > CLEARLY
        if polarisation and self.detector_over_polarisation < CLEARLY:
            return "polarisation"
        detector = self.detector_better > CLEARLY and self.detector_over_polarisation > CLEARLY
        if detector and self.detector >= max(self.absorption + CLEARLY_BETTER, LEAST_SHARE):
            return "detector"
        return ""


@dataclass(frozen=True, eq=False)
class Residuals:
    """n observations of equivalents, as the shapes are fitted to them.

    Attributes
    ----------
    log_intensity : array (n,)
        ln of the scaled intensity.
    variance : array (n,)
        Its relative variance.
    unique : array (n,) of int
        The number of the unique reflection, Friedel mates apart.
    block : array (n,) of int
        The number of the sweep and of the range of scan angles. Each has a scale of its own.
    crystal : array (n,) of int
        The number of the crystal.
    to_source, exit : array (n, 3)
        Unit vectors in the datum frame.
    exit_in_lab : array (n, 3)
        Unit vectors.
    across : array (n, 2)
        s1 (a unit vector) along the electric field and along the normal of the polarisation that
        the data were corrected with.
    fraction : float
        The fraction of that polarisation.
    """

    log_intensity: FloatArray
    variance: FloatArray
    unique: NDArray[np.int64]
    block: NDArray[np.int64]
    crystal: NDArray[np.int64]
    to_source: FloatArray
    exit: FloatArray
    exit_in_lab: FloatArray
    across: FloatArray
    fraction: float

    def __getitem__(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Residuals:
        """Some of the observations."""
        parts: dict[str, Any] = {
            name: v[index] for name, v in vars(self).items() if isinstance(v, np.ndarray)
        }
        return replace(self, **parts)


# ---- the fit -------------------------------------------------------------------------------------


def harmonics(directions: FloatArray) -> FloatArray:
    """All functions (n, 25) on the sphere up to order 4, of unit vectors (n, 3).

    The monomials of degree 3 and 4: on the sphere they span the harmonics of odd and of even order.
    """
    x, y, z = directions.T
    return np.stack(
        [
            x**i * y**j * z ** (degree - i - j)
            for degree in (ORDER - 1, ORDER)
            for i in range(degree + 1)
            for j in range(degree + 1 - i)
        ],
        axis=1,
    )


def log_polarisation(across: FloatArray, c: float, s: float) -> FloatArray:
    """ln of the polarisation factor (n,) of diffracted beams.

    P = 1 - (a^2 + b^2) / 2 - c (a^2 - b^2) / 2 - s a b. This is the factor of Kahn et al., J. Appl.
    Cryst. 15 (1982) 330, with c = (2 f - 1) cos 2 psi and s = (2 f - 1) sin 2 psi for a fraction f
    and a normal that is turned by psi.

    Parameters
    ----------
    across : array (n, 2)
        a and b, see :class:`Residuals`.
    c, s : float
    """
    a, b = across.T
    p = 1 - (a**2 + b**2) / 2 - c * (a**2 - b**2) / 2 - s * a * b
    return np.asarray(np.log(np.maximum(p, SMALLEST_P)))


def _projection(data: Residuals) -> Callable[[FloatArray], FloatArray]:
    """A function that takes from (n,) or (n, k) what unique reflections and scales explain.

    The result is multiplied by the square roots of the weights.
    """
    weights = 1.0 / (data.variance + LEAST_RMS**2)
    root = np.sqrt(weights)
    total = np.bincount(data.unique, weights)

    def centred(values: FloatArray) -> FloatArray:
        columns = values.reshape(len(values), -1)
        out = np.empty_like(columns)
        for k, column in enumerate(columns.T):
            mean = np.bincount(data.unique, weights * column) / np.maximum(total, 1e-30)
            out[:, k] = root * (column - mean[data.unique])
        return out.reshape(values.shape)

    blocks = centred((data.block[:, None] == np.unique(data.block)).astype(np.float64))
    u, size, _ = np.linalg.svd(blocks, full_matrices=False)
    scales = u[:, size > 1e-8 * size.max(initial=1e-300)]

    def project(values: FloatArray) -> FloatArray:
        left = centred(values)
        return np.asarray(left - scales @ (scales.T @ left))

    return project


def fit_patterns(data: Residuals) -> ResidualPattern:
    """The three shapes fitted to residuals.

    Parameters
    ----------
    data : Residuals

    Raises
    ------
    ValueError
        If there are too few observations of reflections that were measured several times.
    """
    data = _measured_several_times(data)
    n = len(data.log_intensity)
    if n < FEWEST_OBSERVATIONS:
        raise ValueError(
            f"{n} observations of equivalents are too few to look for a pattern in them; "
            f"{FEWEST_OBSERVATIONS} are needed."
        )
    left = _projection(data)(data.log_intensity)
    sound = np.abs(left) < FARTHEST * 1.4826 * np.median(np.abs(left))
    data = _measured_several_times(data[sound])
    shapes = _Shapes.of(data)
    project = _projection(data)
    y = project(data.log_intensity)
    c, s = _fit_polarisation(data, project, y)
    held_out = _squares_left(data, shapes)
    whole, absorption, detector, polarisation = map(float, held_out.sum(axis=1))
    pattern = (
        project(log_polarisation(data.across, c, s) - _used(data))
        if polarisation <= detector
        else _fitted(project(shapes.detector), y)
    )
    weights = 1.0 / (data.variance + LEAST_RMS**2)
    return ResidualPattern(
        observations=len(y),
        absorption=1 - absorption / whole,
        detector=1 - detector / whole,
        polarisation=1 - polarisation / whole,
        polarisation_better=_standard_errors(held_out[1] - held_out[3]),
        detector_better=_standard_errors(held_out[1] - held_out[2]),
        detector_over_polarisation=_standard_errors(held_out[3] - held_out[2]),
        rms=float(np.sqrt(pattern @ pattern / weights.sum())),
        fitted=Polarisation(
            fraction=0.5 + 0.5 * min(float(np.hypot(c, s)), 1.0),
            angle_deg=float(np.degrees(0.5 * np.arctan2(s, c))),
        ),
        used=Polarisation(data.fraction, 0.0),
    )


@dataclass(frozen=True, eq=False)
class _Shapes:
    """The columns (n, k) of the two linear shapes."""

    absorption: FloatArray
    detector: FloatArray

    @classmethod
    def of(cls, data: Residuals) -> _Shapes:
        of_crystal = harmonics(data.exit) + harmonics(data.to_source)
        each = [of_crystal * (data.crystal == k)[:, None] for k in np.unique(data.crystal)]
        return cls(np.concatenate(each, axis=1), harmonics(data.exit_in_lab))


def _squares_left(data: Residuals, shapes: _Shapes) -> FloatArray:
    """Sums of squares (4, n_unique) that are left of each unique reflection.

    Rows: of nothing fitted, of absorption, of the detector, of polarisation; each fitted to the
    other reflections. Means of equivalents and scales of images are those of the reflections that
    were left out, the same in all rows.
    """
    _, unique = np.unique(data.unique, return_inverse=True)
    unique = unique.ravel()
    fold_of = np.random.default_rng(1).permutation(unique.max() + 1) % FOLDS
    squares = np.zeros((4, unique.max() + 1))
    for fold in range(FOLDS):
        test = fold_of[unique] == fold
        one, other = data[~test], data[test]
        project, project_test = _projection(one), _projection(other)
        y, left = project(one.log_intensity), project_test(other.log_intensity)
        foretold = [np.zeros(len(left))]
        for columns in (shapes.absorption, shapes.detector):
            found, *_ = np.linalg.lstsq(project(columns[~test]), y, rcond=SMALLEST_SINGULAR)
            foretold.append(project_test(columns[test] @ found))
        c, s = _fit_polarisation(one, project, y)
        foretold.append(project_test(log_polarisation(other.across, c, s) - _used(other)))
        for row, values in zip(squares, foretold, strict=True):
            row += np.bincount(unique[test], (left - values) ** 2, len(row))
    return squares


def _standard_errors(differences: FloatArray) -> float:
    """The mean of differences (n,) over its standard error."""
    spread = float(differences.std(ddof=1)) * np.sqrt(len(differences))
    return float(differences.sum() / spread) if spread > 0 else 0.0


def _measured_several_times(data: Residuals) -> Residuals:
    """The observations of unique reflections that have several."""
    _, unique, counts = np.unique(data.unique, return_inverse=True, return_counts=True)
    return data[counts[unique.ravel()] > 1]


def _fitted(columns: FloatArray, y: FloatArray) -> FloatArray:
    """What columns (n, k) fit of y (n,)."""
    found, *_ = np.linalg.lstsq(columns, y, rcond=SMALLEST_SINGULAR)
    return np.asarray(columns @ found)


def _used(data: Residuals) -> FloatArray:
    """ln of the polarisation factor (n,) that the data were corrected with."""
    return log_polarisation(data.across, 2 * data.fraction - 1, 0.0)


def _fit_polarisation(
    data: Residuals, project: Callable[[FloatArray], FloatArray], y: FloatArray
) -> tuple[float, float]:
    """c and s of :func:`log_polarisation`."""
    used = _used(data)

    def left(parameters: FloatArray) -> FloatArray:
        return y - project(log_polarisation(data.across, *map(float, parameters)) - used)

    # from what was used, and from the middle, as the fit may have several minima
    starts = (np.clip(2 * data.fraction - 1, -0.99, 0.99), 0.0)
    fits = [least_squares(left, (at, 0.0), bounds=(-1.0, 1.0)) for at in starts]
    best = min(fits, key=lambda fit: float(fit.cost))
    return float(best.x[0]), float(best.x[1])


# ---- from scaled files ---------------------------------------------------------------------------


def residual_pattern(
    experiments_file: str | os.PathLike[str], reflections_file: str | os.PathLike[str]
) -> ResidualPattern:
    """What is left in scaled data, and which shape explains it.

    Parameters
    ----------
    experiments_file, reflections_file : path
        scaled.expt and scaled.refl.

    Raises
    ------
    ValueError
        If the data are no rotation data, or too few, or were not corrected for polarisation.
    """
    experiments = read_models(experiments_file)
    table = flex.reflection_table.from_file(os.fspath(reflections_file))
    return fit_patterns(residuals_of(experiments, table))


def residuals_of(experiments: ExperimentList, table: flex.reflection_table) -> Residuals:
    """The residuals of scaled data.

    Observations that dials.scale rejected as outliers are among them: they may be outliers because
    of the pattern. Of many crystals only the first ten are looked at.

    Parameters
    ----------
    experiments : ExperimentList
    table : reflection_table
        With scales.

    Raises
    ------
    ValueError
        If the data are no rotation data, or were not corrected for polarisation.
    """
    if any(e.scan is None or e.goniometer is None or e.crystal is None for e in experiments):
        raise ValueError("Patterns are looked for in rotation data of indexed crystals only.")
    if "lp" not in table:
        raise ValueError("The reflections have no column lp, the correction for polarisation.")
    flags = table.flags
    left_out = table.get_flags(flags.excluded_for_scaling) | table.get_flags(
        flags.user_excluded_in_scaling
    )
    table = table.select(~left_out & (table["inverse_scale_factor"] > 0))
    (of_row,) = experiment_of_rows([table], experiments)
    directions = row_directions(table, of_row, experiments, np.eye(3))
    scale = flumpy.to_numpy(table["inverse_scale_factor"])
    intensity = flumpy.to_numpy(table["intensity.scale.value"]) / scale
    variance = flumpy.to_numpy(table["intensity.scale.variance"]) / scale**2
    rows, experiment = directions.rows, directions.experiment
    with np.errstate(invalid="ignore"):
        strong = intensity[rows] > LEAST_I_OVER_SIGMA * np.sqrt(variance[rows])
    crystal = _crystals(experiments)[experiment]
    strong &= (variance[rows] > 0) & np.isfinite(intensity[rows]) & (crystal < MOST_CRYSTALS)
    indices = _unique_indices(experiments, table)
    if strong.sum() > MOST_OBSERVATIONS:  # all equivalents of some unique reflections
        _, unique = np.unique(indices[rows], axis=0, return_inverse=True)
        kept = np.random.default_rng(1).random(unique.max() + 1) < MOST_OBSERVATIONS / strong.sum()
        strong &= kept[unique.ravel()]
    rows, experiment, crystal = rows[strong], experiment[strong], crystal[strong]
    s1 = unit(flumpy.to_numpy(table["s1"])[rows])
    angle = np.degrees(flumpy.to_numpy(table["xyzcal.mm"])[rows, 2])
    width = max(
        BLOCK_DEG,
        sum(np.ptp(angle[experiment == number]) for number in np.unique(experiment)) / MOST_BLOCKS,
    )
    relative = variance[rows] / intensity[rows] ** 2
    beam = experiments[0].beam
    return Residuals(
        # the mean of ln I is (sigma / I)^2 / 2 below the logarithm of the mean
        log_intensity=np.log(intensity[rows]) + 0.5 * relative,
        variance=relative,
        unique=np.unique(indices[rows], axis=0, return_inverse=True)[1].ravel(),
        block=np.unique(
            np.column_stack([experiment, np.floor(angle / width).astype(np.int64)]),
            axis=0,
            return_inverse=True,
        )[1].ravel(),
        crystal=crystal,
        to_source=directions.to_source[strong],
        exit=directions.exit[strong],
        exit_in_lab=s1,
        across=_across(experiments, experiment, s1),
        fraction=float(beam.get_polarization_fraction()),
    )


def _unique_indices(experiments: ExperimentList, table: flex.reflection_table) -> NDArray[np.int64]:
    """Miller indices (n, 3) of the unique reflections, Friedel mates apart."""
    indices = table["miller_index"].deep_copy()
    group = experiments[0].crystal.get_space_group()
    miller.map_to_asu(group.type(), True, indices)
    return np.rint(flumpy.to_numpy(indices.as_vec3_double())).astype(np.int64)


def _across(
    experiments: ExperimentList, experiment: NDArray[np.int64], s1: FloatArray
) -> FloatArray:
    """The components (n, 2) of s1 along the electric field and along the normal."""
    across = np.empty((len(s1), 2))
    for number in np.unique(experiment):
        beam = experiments[int(number)].beam
        normal = unit(beam.get_polarization_normal())
        field = unit(np.cross(normal, unit(beam.get_s0())))
        mine = experiment == number
        across[mine] = s1[mine] @ np.stack([field, normal], axis=1)
    return across


def _crystals(experiments: ExperimentList) -> NDArray[np.int64]:
    """The number (n_experiments,) of the crystal of each experiment.

    Experiments whose lattices lie alike in the datum frame belong to one crystal.
    """
    numbers: list[int] = []
    known: list[FloatArray] = []
    for experiment in experiments:
        u = np.reshape(experiment.crystal.get_U(), (3, 3))
        for number, other in enumerate(known):
            cosine = (np.trace(u.T @ other) - 1) / 2
            if cosine > np.cos(np.deg2rad(SAME_CRYSTAL_DEG)):
                numbers.append(number)
                break
        else:
            numbers.append(len(known))
            known.append(u)
    return np.array(numbers, dtype=np.int64)
