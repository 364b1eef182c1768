"""The alignment of the tomogram from the diffraction data: angle offset, rotation sense, factor on mu.

Symmetry equivalents have one intensity. With the transmission A of a trial alignment the logarithm of a
measured intensity (corrected for Lorentz, polarisation and the sensor) is

    ln I_j = ln I_h(j) + ln A_j(offset, sense; k mu) + scale_sweep(phi_j) + decay_sweep(phi_j) / (2 d_j^2) + e_j

with one unknown for every unique reflection h, and a scale and a decay that are smooth in the scan angle
(cubic B-splines, as in scaling programs). What is left over, weighted with sigma(I)/I and an instrument
error and with Huber's weights against outliers, is the disagreement chi^2. All unknowns but the alignment
enter linearly, so they are projected out once and a trial is one look-up of ln A and one projection. ln A
comes from direction tables of the sample at k = 0.6, 1 and 1.4 times mu, and between them (and A = 1 at
k = 0) from the cubic through the four. The factor k is fitted at every trial, also where mu is not to be
moved: a wrong mu must not decide about the angle, and k = 0 is the case without absorption.

All directions of all sweeps turn rigidly about the tomo frame's X when the offset changes, whatever kappa
was, so directions to the source keep their angle from X: the tables hold rings of that angle.

What is not in the data. The part of A that depends on the angle of the incident beam alone is a smooth
scale, so only differences between exit directions count. A sphere's A depends on the scattering angle
alone, which equivalents share: nothing can be learned from it. A sample that is round about the axis knows
no offset. Therefore the alignment is moved only where every alternative is refuted: no absorption at all,
and every trial farther than BASIN_DEG from the best or of the other sense. Two alignments are compared as
by Vuong (Econometrica 57 (1989) 307): the sum of the differences of squared residuals over its standard
deviation, which is taken from sums over clusters (all observations of a unique reflection, or a cell of
scan angle and detector quadrant, whichever gives more), as neighbours have errors in common. Friedel
mates count as equivalents, or do not, whichever gives the smaller standard error. Standard
errors are those of the curvature or of the same clusters (the sandwich formula; White, Econometrica 48
(1980) 817), whichever is largest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cctbx import miller
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.model import ExperimentList
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.optimize import brentq, minimize_scalar
from tqdm import tqdm

from anacor_dials.absorption.beam import BeamProfile
from anacor_dials.absorption.direction_table import TableSum
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.factors import absorption_factors
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.diffraction.reflections import (
    Alignment,
    RowDirections,
    row_directions,
    sweep_axes,
    tomo_to_datum,
    wavelength_groups,
)
from anacor_dials.sample.frames import FloatArray, rotation_about, transform
from anacor_dials.sample.volumes import LabelVolume

logger = logging.getLogger("dials.anacor_dials.diffraction.alignment")

CHOICES = ("offset", "sense", "mu_scale")

LEAST_I_OVER_SIGMA = 5.0  # the median of a unique reflection's observations
LEAST_I_OVER_SIGMA_OF_ONE = 2.0  # below, a logarithm says little
MOST_OBSERVATIONS = 12_000
FEWEST_UNIQUE = 50
FEWEST_DEGREES_OF_FREEDOM = 200
SCALE_INTERVAL_DEG = 10.0
DECAY_INTERVAL_DEG = 45.0
LARGEST_CELL_DEG = 10.0
CELLS_OF_A_SWEEP = 18  # at least, in scan angle
HUBER = 2.5
ROUNDS = 3  # weights, then the alignment, in turn

MU_NODES = (0.6, 1.0, 1.4)
SMALLEST_MU_SCALE, LARGEST_MU_SCALE = 0.6, 1.6
MU_GRID = np.linspace(0.0, 1.8, 181)
TABLE_TOLERANCE = 5e-3
RING_STEP_DEG = 10.0
RING_AZIMUTHS = 72

OFFSET_STEP_DEG = 5.0
BASIN_DEG = 20.0
REFUTED_AT = 3.0  # standard deviations
LARGEST_OFFSET_ERROR_DEG = 5.0
LEAST_WRONG_OFFSET_DEG = 1.0
LARGEST_MU_SCALE_ERROR = 0.1


def choices_from(words: Sequence[str] | None) -> tuple[str, ...]:
    """What is to be refined, from words such as ["offset,sense"]; "none" is nothing.

    Raises ValueError for what cannot be refined.
    """
    chosen = [part for word in words or () for part in word.replace(",", " ").split()]
    for name in chosen:
        if name not in (*CHOICES, "none"):
            raise ValueError(
                f"alignment.refine is {','.join(chosen)}; it is none, or some of {', '.join(CHOICES)} "
                "with commas between them."
            )
    return tuple(name for name in CHOICES if name in chosen)


# ---- the observations ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Equivalents:
    """Observations (n,) of unique reflections that were measured more than once.

    log_intensity: ln I; relative_variance: (sigma/I)^2; unique: number of the unique reflection, from 0,
    Friedel mates together; unique_apart: the same, Friedel mates apart where the crystal keeps them so; cell: number of the cell of scan angle and detector quadrant; experiment; wavelength: number of the
    wavelength; scan_angle_deg; inverse_d_squared: 1/d^2, 1/A^2; to_source, exit: (n, 3) in the datum
    frame.
    """

    log_intensity: FloatArray
    relative_variance: FloatArray
    unique: NDArray[np.int64]
    unique_apart: NDArray[np.int64]
    cell: NDArray[np.int64]
    experiment: NDArray[np.int64]
    wavelength: NDArray[np.int64]
    scan_angle_deg: FloatArray
    inverse_d_squared: FloatArray
    to_source: FloatArray
    exit: FloatArray

    def __len__(self) -> int:
        return len(self.log_intensity)

    @property
    def n_unique(self) -> int:
        return int(self.unique.max()) + 1 if len(self) else 0

    def __getitem__(self, index: Any) -> Equivalents:
        """Some of the observations; what is numbered is numbered anew."""
        parts = {name: values[index] for name, values in vars(self).items()}
        for name in ("unique", "unique_apart", "cell"):
            parts[name] = np.unique(parts[name], return_inverse=True)[1].ravel()
        return Equivalents(**parts)


def _require_what_is_refined(
    experiments: ExperimentList, tables: Sequence[flex.reflection_table]
) -> list[int]:
    """The experiments (indices) that can be used: rotation scans of crystals of one space group."""
    scans = [
        index
        for index, experiment in enumerate(experiments)
        if experiment.scan is not None
        and not experiment.is_still()
        and experiment.goniometer is not None
    ]
    if not scans:
        raise ValueError(
            "alignment.refine needs rotation scans, and the experiments are stills; give the alignment "
            "and alignment.refine=none."
        )
    groups = set()
    for index in scans:
        lattice = experiments[index].crystal
        if lattice is None:
            raise ValueError(
                f"Experiment {index} has no crystal model, so its symmetry equivalents are unknown; "
                "alignment.refine needs indexed and integrated data."
            )
        groups.add(lattice.get_space_group().build_derived_reflection_intensity_group(False).info())
    if len({str(group) for group in groups}) > 1:
        raise ValueError(
            f"The experiments have different symmetries ({', '.join(sorted(map(str, groups)))}); "
            "alignment.refine compares equivalents of one: run dials.symmetry or dials.cosym on all."
        )
    for table in tables:
        if "miller_index" not in table:
            raise ValueError(
                "A reflection table has no Miller indices, so its symmetry equivalents are unknown; "
                "alignment.refine needs the output of dials.integrate."
            )
        if "intensity.prf.value" not in table and "intensity.sum.value" not in table:
            raise ValueError(
                "A reflection table has no integrated intensities, which alignment.refine compares; "
                "give the output of dials.integrate."
            )
    if all(table["miller_index"].all_eq((0, 0, 0)) for table in tables):
        raise ValueError(
            "No reflection is indexed, so symmetry equivalents are unknown; alignment.refine needs the "
            "output of dials.integrate."
        )
    return scans


def _usable_intensities(
    table: flex.reflection_table,
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """I and its variance (n,), corrected for Lorentz, polarisation and the sensor; which are sound."""
    flags = table.flags
    method = "prf" if "intensity.prf.value" in table else "sum"
    sound = np.ones(len(table), dtype=bool)
    if "flags" in table:
        integrated = table.get_flags(flags.integrated_prf)
        if method == "prf" and integrated.count(True) == 0 and "intensity.sum.value" in table:
            method = "sum"
        if method == "sum":
            integrated = table.get_flags(flags.integrated_sum)
        bad = table.get_flags(flags.bad_for_scaling, all=False)
        bad |= table.get_flags(flags.overloaded)
        sound = flumpy.to_numpy(integrated & ~bad)
    intensity = flumpy.to_numpy(table[f"intensity.{method}.value"]).copy()
    variance = flumpy.to_numpy(table[f"intensity.{method}.variance"]).copy()
    factor = np.ones(len(table))
    if "lp" in table:
        factor *= flumpy.to_numpy(table["lp"])
    for name in ("qe", "dqe"):
        if name in table:
            efficiency = flumpy.to_numpy(table[name])
            sound = sound & (efficiency > 0)
            factor /= np.where(efficiency > 0, efficiency, 1.0)
            break
    if "partiality" in table:
        sound = sound & (flumpy.to_numpy(table["partiality"]) > 0.99)
    sound = sound & np.isfinite(intensity) & np.isfinite(variance) & (variance > 0) & (factor > 0)
    return intensity * factor, variance * factor**2, sound


def equivalents(
    experiments: ExperimentList,
    tables: Sequence[flex.reflection_table],
    experiment_of_row: Sequence[NDArray[np.int64]],
    used: Sequence[int],
    rng: np.random.Generator,
    most: int = MOST_OBSERVATIONS,
) -> Equivalents:
    """Observations of the unique reflections that were measured more than once and well.

    used: the experiments to take them from. Where there are more than most, the strongest up to
    I/sigma = 20 and a random choice among those. A reflection is chosen by the median of its observations, not by each alone, which would leave out the
    strongly absorbed ones.
    """
    identity = np.eye(3)
    columns: dict[str, list[NDArray[Any]]] = {}
    wavelength_of = np.zeros(len(experiments), dtype=np.int64)
    for number, (_, members) in enumerate(wavelength_groups(experiments)):
        wavelength_of[members] = number
    for table, index in zip(tables, experiment_of_row, strict=True):
        intensity, variance, sound = _usable_intensities(table)
        directions: RowDirections = row_directions(table, index, experiments, identity)
        rows, experiment = directions.rows, directions.experiment
        chosen = sound[rows] & np.isin(experiment, list(used))
        chosen &= intensity[rows] > LEAST_I_OVER_SIGMA_OF_ONE * np.sqrt(
            np.where(variance > 0, variance, 1.0)[rows]
        )
        rows, experiment = rows[chosen], experiment[chosen]
        hkl = np.zeros((len(rows), 6), dtype=np.int64)  # Friedel mates together, and apart
        inverse_d_squared = np.zeros(len(rows))
        quadrant = np.zeros(len(rows), dtype=np.int64)
        every_hkl = np.array(list(table["miller_index"]), dtype=np.int64).reshape(-1, 3)
        s1 = flumpy.to_numpy(table["s1"])[rows]
        for e in np.unique(experiment):
            mine = experiment == e
            lattice = experiments[int(e)].crystal
            indices = flex.miller_index([tuple(map(int, h)) for h in every_hkl[rows[mine]]])
            inverse_d_squared[mine] = flumpy.to_numpy(lattice.get_unit_cell().d_star_sq(indices))
            for anomalous in (False, True):
                mapped = indices.deep_copy()
                miller.map_to_asu(lattice.get_space_group().type(), anomalous, mapped)
                columns_of = slice(3, 6) if anomalous else slice(0, 3)
                hkl[mine, columns_of] = np.array(list(mapped), dtype=np.int64).reshape(-1, 3)
            axis = np.array(experiments[int(e)].goniometer.get_rotation_axis())
            beam = np.array(experiments[int(e)].beam.get_s0())
            along, across = s1[mine] @ axis > 0, s1[mine] @ np.cross(axis, beam) > 0
            quadrant[mine] = 2 * along + across
        column = "xyzcal.mm" if "xyzcal.mm" in table else "xyzobs.mm.value"
        parts = {
            "intensity": intensity[rows],
            "variance": variance[rows],
            "hkl": hkl,
            "experiment": experiment,
            "quadrant": quadrant,
            "scan_angle_deg": np.degrees(flumpy.to_numpy(table[column])[rows, 2]),
            "inverse_d_squared": inverse_d_squared,
            "to_source": directions.to_source[chosen],
            "exit": directions.exit[chosen],
        }
        for name, values in parts.items():
            columns.setdefault(name, []).append(values)
    data = {name: np.concatenate(values) for name, values in columns.items()}
    wavelength = wavelength_of[data["experiment"]]
    unique, unique_apart = (
        np.unique(np.column_stack([hkl, wavelength]), axis=0, return_inverse=True)[1].ravel()
        for hkl in (data["hkl"][:, :3], data["hkl"][:, 3:])
    )
    angle_cell = np.zeros(len(wavelength), dtype=np.int64)
    for e in np.unique(data["experiment"]):
        mine = data["experiment"] == e
        angle = data["scan_angle_deg"][mine]
        width = min(LARGEST_CELL_DEG, max(float(np.ptp(angle)) / CELLS_OF_A_SWEEP, 1e-6))
        angle_cell[mine] = np.floor((angle - angle.min()) / width)
    _, cell = np.unique(
        np.column_stack([data["experiment"], angle_cell, data["quadrant"]]),
        axis=0,
        return_inverse=True,
    )
    relative_variance = data["variance"] / data["intensity"] ** 2
    found = Equivalents(
        # the mean of ln I lies (sigma/I)^2 / 2 below the logarithm of the mean
        np.log(data["intensity"]) + 0.5 * relative_variance,
        relative_variance,
        unique,
        unique_apart,
        cell.ravel(),
        data["experiment"],
        wavelength,
        data["scan_angle_deg"],
        data["inverse_d_squared"],
        data["to_source"],
        data["exit"],
    )
    return found[_well_measured(found, rng, most)] if len(found) else found


def _well_measured(data: Equivalents, rng: np.random.Generator, most: int) -> NDArray[np.int64]:
    """Which observations are kept, see :func:`equivalents`."""
    order = np.lexsort((data.relative_variance, data.unique))
    counts = np.bincount(data.unique)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    median = data.relative_variance[order][starts + counts // 2]
    strength = 1 / np.sqrt(median)
    good = np.flatnonzero((counts > 1) & (strength >= LEAST_I_OVER_SIGMA))
    best_first = good[np.lexsort((rng.random(len(good)), -np.minimum(strength[good], 20.0)))]
    taken = best_first[np.cumsum(counts[best_first]) <= most]
    keep = np.zeros(len(counts), dtype=bool)
    keep[taken] = True
    return np.flatnonzero(keep[data.unique])


def smooth_scales(data: Equivalents) -> FloatArray:
    """The columns (n, p) of the smooth scales and decays of all sweeps: B-splines in the scan angle."""
    blocks = []
    strongest = max(float(data.inverse_d_squared.max()), 1e-12)
    for e in np.unique(data.experiment):
        mine = data.experiment == e
        for interval, power in ((SCALE_INTERVAL_DEG, 0), (DECAY_INTERVAL_DEG, 1)):
            block = np.zeros((len(data), 0))
            columns = _splines(data.scan_angle_deg[mine], interval)
            block = np.zeros((len(data), columns.shape[1]))
            block[mine] = columns * ((data.inverse_d_squared[mine] / strongest) ** power)[:, None]
            blocks.append(block)
    return np.concatenate(blocks, axis=1)


def _splines(x: FloatArray, interval: float) -> FloatArray:
    """Cubic B-splines (n, p) over the range of x, their knots about interval apart."""
    low, high = float(x.min()), float(x.max())
    if high - low < 1e-9:
        return np.ones((len(x), 1))
    n = max(1, round((high - low) / interval))
    knots = np.concatenate([[low] * 3, np.linspace(low, high, n + 1), [high] * 3])
    return BSpline.design_matrix(np.clip(x, low, high), knots, 3).toarray()


# ---- transmissions of trial alignments -------------------------------------------------------------

LogTransmission = Callable[[float, int], FloatArray]


class TrialTransmissions:
    """ln A of the observations at MU_NODES times mu, for any offset and sense.

    Calling it with (angle_offset_deg, rotation_sense) gives (3, n). mu_per_um: per wavelength, (n_labels,).
    """

    def __init__(
        self,
        labels: LabelVolume,
        mu_per_um: Sequence[FloatArray],
        data: Equivalents,
        experiments: ExperimentList,
        alignment: Alignment,
        senses: Sequence[int],
        beam: BeamProfile | None,
        seed: int = 0,
        progress: bool = False,
        **options: Any,
    ) -> None:
        self._experiments = experiments
        self._alignment = alignment
        self._data = data
        self._senses = list(senses)
        polar = np.degrees(np.arccos(np.clip(self._to_tomo(0.0, 1)[0][:, 0], -1.0, 1.0)))
        self._rings = {
            sense: _ring_angles(polar if sense == 1 else 180.0 - polar) for sense in senses
        }
        directions = self._table_directions(np.random.default_rng(seed))
        steps = tqdm(
            [(mu, k) for mu in mu_per_um for k in MU_NODES],
            desc="Direction tables of the alignment",
            leave=False,
            disable=not progress,
        )
        self._tables: list[list[TableSum]] = [[] for _ in mu_per_um]
        for number, (mu, k) in enumerate(steps):
            factors = absorption_factors(
                labels,
                k * np.asarray(mu),
                directions,
                Tracing(tolerance=TABLE_TOLERANCE, method="table", beam=beam, seed=seed, **options),
            )
            assert factors.table is not None
            self._tables[number // len(MU_NODES)].append(factors.table)

    def _to_tomo(self, offset_deg: float, sense: int) -> tuple[FloatArray, FloatArray]:
        """Directions to the source and of exit (n, 3) in the tomo frame of a trial."""
        trial = replace(self._alignment, angle_offset_deg=offset_deg, rotation_sense=sense)
        from_datum = tomo_to_datum(self._experiments, trial).T
        return transform(from_datum, self._data.to_source), transform(from_datum, self._data.exit)

    def _table_directions(self, rng: np.random.Generator) -> Directions:
        """Every ring all the way round, with exits as the observations have them at any offset."""
        azimuth = np.arange(RING_AZIMUTHS) * (360.0 / RING_AZIMUTHS)
        about_x = rotation_about((1.0, 0.0, 0.0), azimuth)
        sources, exits, axes = [], [], []
        for sense in self._senses:
            of_sense = self._to_tomo(0.0, sense)[1]
            for angle in self._rings[sense]:
                start = rotation_about((0.0, 0.0, 1.0), angle) @ np.array([1.0, 0.0, 0.0])
                sources.append(about_x @ start)
                some = of_sense[rng.integers(len(of_sense), size=RING_AZIMUTHS)]
                turned = rotation_about((1.0, 0.0, 0.0), rng.uniform(0, 360, RING_AZIMUTHS))
                exits.append(transform(turned, some))
                axes.append((float(sense), 0.0, 0.0))
        return Directions(
            np.concatenate(sources),
            np.concatenate(exits),
            np.repeat(np.arange(len(axes)), RING_AZIMUTHS),
            np.array(axes),
        )

    def __call__(self, offset_deg: float, sense: int) -> FloatArray:
        source, exit_ = self._to_tomo(offset_deg, sense)
        first = sum(len(self._rings[s]) for s in self._senses[: self._senses.index(sense)])
        base, weights = _ring_weights(self._rings[sense], source[:, 0])
        result = np.zeros((len(MU_NODES), len(source)))
        for number, tables in enumerate(self._tables):
            mine = self._data.wavelength == number
            for node, table in enumerate(tables):
                for step in range(weights.shape[1]):
                    result[node, mine] += weights[mine, step] * table(
                        source[mine], exit_[mine], first + base[mine] + step
                    )
        return result


def _ring_angles(polar_deg: FloatArray) -> FloatArray:
    """Angles from X of the rings on which directions to the source are tabulated: one, or four or more."""
    low, high = float(polar_deg.min()), float(polar_deg.max())
    if high - low < 0.02:
        return np.array([0.5 * (low + high)])
    low, high = max(low - RING_STEP_DEG, 3.0), min(high + RING_STEP_DEG, 177.0)
    return np.linspace(low, high, max(4, math.ceil((high - low) / RING_STEP_DEG) + 1))


def _ring_weights(
    rings_deg: FloatArray, cosine: FloatArray
) -> tuple[NDArray[np.int64], FloatArray]:
    """The first ring (n,) and the weights (n, 1 or 4) of cubic interpolation between rings."""
    if len(rings_deg) == 1:
        return np.zeros(len(cosine), dtype=np.int64), np.ones((len(cosine), 1))
    place = (np.degrees(np.arccos(np.clip(cosine, -1, 1))) - rings_deg[0]) / (
        rings_deg[1] - rings_deg[0]
    )
    base = np.clip(np.floor(place).astype(np.int64) - 1, 0, len(rings_deg) - 4)
    nodes = np.arange(4)
    return base, _lagrange(nodes, place - base)


def _lagrange(nodes: Sequence[float] | NDArray[Any], x: FloatArray) -> FloatArray:
    """The values (n, n_nodes) at x (n,) of the polynomials that are 1 at one node and 0 at the others."""
    columns = []
    for i, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != i]
        columns.append(np.prod([(x - o) / (node - o) for o in others], axis=0))
    return np.stack(columns, axis=-1)


def mu_weights(mu_scale: FloatArray | float) -> FloatArray:
    """The weights (n, 3) of ln A at MU_NODES for ln A at mu_scale (n,) times mu; ln A = 0 at 0."""
    return _lagrange((0.0, *MU_NODES), np.atleast_1d(np.asarray(mu_scale, dtype=float)))[:, 1:]


# ---- the disagreement ------------------------------------------------------------------------------


class Disagreement:
    """What is left of quantities when the means of equivalents and smooth scales are taken out.

    unique: (n,) which mean each belongs to; smooth: (n, p); weight: (n,) of weighted least squares.
    """

    def __init__(self, unique: NDArray[np.int64], smooth: FloatArray, weight: FloatArray) -> None:
        self._unique = unique
        self._root = np.sqrt(weight)
        self._weight = weight
        self._total = np.bincount(unique, weight)
        centred = np.stack([self._centred(column) for column in smooth.T], axis=1)
        centred /= np.maximum(np.linalg.norm(centred, axis=0), 1e-12)
        values, vectors = np.linalg.eigh(centred.T @ centred)
        kept = values > 1e-9 * values[-1]
        self._basis = centred @ (vectors[:, kept] / np.sqrt(values[kept]))
        self.n_scales = self._basis.shape[1]
        self.degrees_of_freedom = len(unique) - len(self._total) - self.n_scales

    def _centred(self, values: FloatArray) -> FloatArray:
        mean = np.bincount(self._unique, self._weight * values) / self._total
        return self._root * (values - mean[self._unique])

    def residual(self, values: FloatArray) -> FloatArray:
        """The weighted residuals (n,) of values (n,)."""
        centred = self._centred(values)
        return centred - self._basis @ (self._basis.T @ centred)

    def unweighted(self, residual: FloatArray) -> FloatArray:
        """Weighted residuals (n,) in the unit of the values."""
        return residual / self._root


@dataclass(frozen=True, eq=False)
class Trial:
    """One alignment: its offset and sense, the factor on mu that fits best with it, and chi^2."""

    offset_deg: float
    sense: int
    mu_scale: float
    chi2: float
    gram: FloatArray

    def chi2_at(self, mu_scale: FloatArray) -> FloatArray:
        """chi^2 (m,) at factors on mu (m,)."""
        c = np.column_stack([np.ones(len(mu_scale)), -mu_weights(mu_scale)])
        return np.einsum("mi,ij,mj->m", c, self.gram, c)


class Search:
    """Trials on one set of observations and weights; ln A is kept from one set of weights to the next."""

    def __init__(self, data: Equivalents, transmissions: LogTransmission) -> None:
        self.data = data
        self.unique = data.unique
        self._transmissions = transmissions
        self._known: dict[tuple[float, int], NDArray[np.float32]] = {}
        self._smooth = smooth_scales(data)
        self.set_weights(0.1, np.ones(len(data)))

    def set_weights(self, instrument_error: float, robust: FloatArray) -> None:
        self.instrument_error = instrument_error
        weight = robust / (self.data.relative_variance + instrument_error**2)
        self.disagreement = Disagreement(self.unique, self._smooth, weight)
        self._measured = self.disagreement.residual(self.data.log_intensity)

    def log_transmissions(self, offset_deg: float, sense: int) -> FloatArray:
        """ln A (3, n) at MU_NODES; kept."""
        key = (round(offset_deg % 360.0, 6), sense)
        if key not in self._known:
            self._known[key] = self._transmissions(*key).astype(np.float32)
        return self._known[key].astype(np.float64)

    def trial(self, offset_deg: float, sense: int) -> Trial:
        """The best factor on mu, and chi^2, at an alignment."""
        residuals = np.stack(
            [
                self._measured,
                *(self.disagreement.residual(a) for a in self.log_transmissions(offset_deg, sense)),
            ]
        )
        found = Trial(offset_deg % 360.0, sense, 1.0, math.inf, residuals @ residuals.T)
        chi2 = found.chi2_at(MU_GRID)
        best = int(np.argmin(chi2))
        k = float(MU_GRID[best])
        if 0 < best < len(MU_GRID) - 1:
            left, middle, right = chi2[best - 1 : best + 2]
            bend = left - 2 * middle + right
            if bend > 0:
                k += 0.5 * (left - right) / bend * (MU_GRID[1] - MU_GRID[0])
        return replace(found, mu_scale=k, chi2=float(found.chi2_at(np.array([k]))[0]))

    def residual(self, trial: Trial, mu_scale: float | None = None) -> FloatArray:
        """Weighted residuals (n,) of a trial, at its own factor on mu or at another."""
        k = trial.mu_scale if mu_scale is None else mu_scale
        if k == 0:
            return self._measured
        log_a = mu_weights(k)[0] @ self.log_transmissions(trial.offset_deg, trial.sense)
        return self._measured - self.disagreement.residual(log_a)

    def refine_offset(self, start: Trial) -> Trial:
        """The minimum of chi^2 next to a trial of the grid."""
        result = minimize_scalar(
            lambda x: self.trial(start.offset_deg + x, start.sense).chi2,
            bounds=(-OFFSET_STEP_DEG, OFFSET_STEP_DEG),
            method="bounded",
            options={"xatol": 0.01},
        )
        return self.trial(start.offset_deg + float(result.x), start.sense)

    def weights_from(self, residual: FloatArray) -> tuple[float, FloatArray]:
        """Instrument error and Huber's weights (n,) with which these residuals are as expected.

        The instrument error is that with which the squares, cut off at HUBER, sum up to the degrees of
        freedom.
        """
        squares = self.disagreement.unweighted(residual) ** 2
        wanted = self.disagreement.degrees_of_freedom

        def excess(error: float) -> float:
            variance = self.data.relative_variance + error**2
            return float(np.minimum(squares / variance, HUBER**2).sum()) - wanted

        low, high = 1e-3, 3.0
        if excess(low) <= 0:
            error = low
        elif excess(high) >= 0:
            error = high
        else:
            error = float(brentq(excess, low, high))
        z = np.sqrt(squares / (self.data.relative_variance + error**2))
        return error, np.minimum(1.0, HUBER / np.maximum(z, 1e-9))

    def clusters(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.unique, self.data.cell

    def superiority(self, best: FloatArray, other: FloatArray) -> float:
        """By how many standard deviations residuals (n,) of the best are smaller than others."""
        difference = other**2 - best**2
        sums = [np.bincount(cluster, difference) for cluster in self.clusters()]
        spread = max(float(np.sqrt(len(s)) * np.std(s, ddof=1)) for s in sums)
        return float(difference.sum()) / spread if spread > 0 else 0.0

    def linearised(self, best: Trial, with_offset: bool) -> tuple[FloatArray, FloatArray]:
        """Step to the minimum and standard error, (mu_scale, offset in degrees) or (mu_scale,).

        By the first derivatives at a trial; the errors are infinite where nothing depends on one of them.
        """
        step = 0.5
        centre = mu_weights(best.mu_scale)[0]
        slope = (mu_weights(best.mu_scale + 0.01)[0] - mu_weights(best.mu_scale - 0.01)[0]) / 0.02
        at = self.log_transmissions(best.offset_deg, best.sense)
        columns = [slope @ at]
        if with_offset:
            ahead = self.log_transmissions(best.offset_deg + step, best.sense)
            behind = self.log_transmissions(best.offset_deg - step, best.sense)
            columns.append(centre @ (ahead - behind) / (2 * step))
        gradient = np.stack([self.disagreement.residual(column) for column in columns], axis=1)
        information = gradient.T @ gradient
        if not np.all(np.diag(information) > 0) or np.linalg.cond(information) > 1e14:
            return np.zeros(len(columns)), np.full(len(columns), math.inf)
        residual = self.residual(best)
        inverse = np.linalg.inv(information)
        variances = [
            np.diag(inverse) * (residual @ residual) / self.disagreement.degrees_of_freedom
        ]
        for cluster in self.clusters():
            scores = np.stack(
                [np.bincount(cluster, column * residual) for column in gradient.T], axis=1
            )
            variances.append(np.diag(inverse @ (scores.T @ scores) @ inverse))
        return inverse @ (gradient.T @ residual), np.sqrt(np.max(variances, axis=0))


# ---- the whole -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AlignmentFit:
    """What the data say of the alignment, and what was made of it.

    asked: of CHOICES; before, after: the alignment, and mu_scale the factor on every mu that is to be used
    from now on (both as they were where reason says why nothing was moved). offset_deg, sense,
    fitted_mu_scale: where equivalents agree best, with standard errors; the factor on mu is fitted also
    where it is not to be moved. offsets_deg (m,), senses (s,), disagreement (s, m): rms relative
    difference of equivalents at every trial, each with its own factor on mu (mu_scales, (s, m)).
    mu_scale_curve: the same at the best offset against mu_grid. disagreement_none, _before, _best:
    without correction, at the alignment given with mu as given, and at the best. refuted_none,
    refuted_others: by how many standard deviations the best is better than no correction, and than
    the best alternative away from it (infinite where there is none), at (offset, sense) other.
    mu_grid: the factors on mu of mu_scale_curve. refuted_at: the standard deviations that are needed.
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

    @property
    def moved(self) -> bool:
        return not self.reason

    @property
    def warnings(self) -> list[str]:
        """What the user must know: why nothing was moved."""
        if self.moved:
            return []
        return [
            f"alignment.refine={','.join(self.asked)}: the data do not determine it, nothing is moved: "
            f"{self.reason}."
        ]


def refine_alignment(
    experiments: ExperimentList,
    tables: Sequence[flex.reflection_table],
    experiment_of_row: Sequence[NDArray[np.int64]],
    labels: LabelVolume,
    mu_per_um: Sequence[FloatArray],
    asked: Sequence[str],
    alignment: Alignment,
    *,
    beam: BeamProfile | None = None,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> AlignmentFit:
    """The alignment at which symmetry equivalents agree best, if the data determine it.

    mu_per_um: per wavelength (in the order of :func:`wavelength_groups`), (n_labels,), 1/um; asked: some
    of CHOICES; beam: None where the beam bathes the crystal, else only sweeps about the tomogram's own
    axis are used; options: of :class:`Tracing` (memory_gb, nproc, device).
    Raises ValueError for stills, and for data without crystals, symmetry, indices or intensities.
    """
    asked = choices_from(asked)
    used = _require_what_is_refined(experiments, tables)
    if beam is not None:
        axes = sweep_axes(experiments, tomo_to_datum(experiments, alignment))
        used = [index for index in used if abs(axes[index, 0]) > 1 - 1e-6]
        if not used:
            raise ValueError(
                "alignment.refine with a small beam uses sweeps about the tomogram's own rotation axis, "
                "and there are none; give alignment.refine=none or beam.profile=none."
            )
    rng = np.random.default_rng(seed)
    data = equivalents(experiments, tables, experiment_of_row, used, rng)
    reason = _too_few(data)
    if reason:
        if experiments[used[0]].crystal.get_space_group().order_p() == 1:
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

    def transmissions(of: Equivalents) -> TrialTransmissions:
        return TrialTransmissions(
            labels, mu_per_um, of, experiments, alignment, senses, beam, seed, progress, **options
        )

    fit = fit_alignment(data, transmissions(data), asked, alignment, progress)
    return fit


def _too_few(data: Equivalents) -> str:
    """Why there are too few equivalents, or nothing."""
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
) -> AlignmentFit:
    """The fit to given observations; transmissions: ln A (3, n) at MU_NODES of (offset, sense)."""
    asked = choices_from(asked)
    senses = (1, -1) if "sense" in asked else (alignment.rotation_sense,)
    given = alignment.angle_offset_deg % 360.0
    offsets = np.array([given])
    if "offset" in asked:
        offsets = np.mod(given + np.arange(0.0, 360.0, OFFSET_STEP_DEG), 360.0)
        offsets.sort()
    search = Search(data, transmissions)
    residual = search.residual(Trial(given, senses[0], 0.0, math.inf, np.eye(4)))
    fits: list[AlignmentFit] = []
    for apart in (False, True):
        if apart:
            few = len(data) - int(data.unique_apart.max()) - search.disagreement.n_scales
            if np.array_equal(data.unique, data.unique_apart) or few < FEWEST_DEGREES_OF_FREEDOM:
                continue
            search.unique = data.unique_apart
        for _ in range(ROUNDS):
            search.set_weights(*search.weights_from(residual))
            grid = [
                search.trial(offset, sense)
                for sense in senses
                for offset in tqdm(
                    offsets,
                    desc="Trial alignments",
                    leave=False,
                    disable=not progress or bool(fits),
                )
            ]
            best = min(grid, key=lambda trial: trial.chi2)
            if "offset" in asked:
                best = search.refine_offset(best)
            residual = search.residual(best)
        fit = _judged(search, grid, best, asked, alignment, offsets, senses)
        fits.append(replace(fit, friedel_apart=apart))
    # whichever determines more: mates together are more comparisons, apart they are like with like
    return min(
        fits, key=lambda fit: fit.offset_error_deg if "offset" in asked else fit.mu_scale_error
    )


def _angle_between(a_deg: float, b_deg: float) -> float:
    return abs((a_deg - b_deg + 180.0) % 360.0 - 180.0)


def _judged(
    search: Search,
    grid: list[Trial],
    best: Trial,
    asked: tuple[str, ...],
    alignment: Alignment,
    offsets: FloatArray,
    senses: tuple[int, ...],
) -> AlignmentFit:
    """The fit with what was moved, or why not."""
    data, disagreement = search.data, search.disagreement
    at_best = search.residual(best)
    none = search.residual(best, 0.0)
    before = search.trial(alignment.angle_offset_deg, alignment.rotation_sense)
    errors = search.linearised(best, "offset" in asked)[1]
    mu_error, offset_error = float(errors[0]), float(errors[1]) if "offset" in asked else 0.0
    step, step_error = 0.0, math.inf
    if "offset" not in asked:
        (_, step), (_, step_error) = search.linearised(best, True)
    refuted_none = search.superiority(at_best, none)
    refuted_others, other = math.inf, None
    for trial in grid:
        near = _angle_between(trial.offset_deg, best.offset_deg) < BASIN_DEG
        if trial.sense == best.sense and near:
            continue
        superiority = search.superiority(at_best, search.residual(trial))
        if superiority < refuted_others:
            refuted_others, other = superiority, (trial.offset_deg, trial.sense)
    # rms difference from the mean of equivalents: chi^2 per degree of freedom over the mean weight
    weight = 1 / (data.relative_variance + search.instrument_error**2)
    unit = 1 / math.sqrt(disagreement.degrees_of_freedom * float(weight.mean()))
    k = float(best.mu_scale)

    reason = ""
    if not refuted_none >= REFUTED_AT:
        reason = (
            f"the sample's absorption makes equivalents agree better than no correction by only "
            f"{refuted_none:.1f} standard deviations at the best alignment ({REFUTED_AT:g} are needed)"
        )
    elif other is not None and not refuted_others >= REFUTED_AT:
        reason = (
            f"offset {best.offset_deg:.1f} deg with sense {best.sense:+d} fits better than "
            f"{other[0]:.1f} deg with sense {other[1]:+d} by only {refuted_others:.1f} standard "
            f"deviations ({REFUTED_AT:g} are needed)"
        )
    elif not SMALLEST_MU_SCALE <= k <= LARGEST_MU_SCALE:
        reason = (
            f"the best alignment asks for {k:.2f} times the absorption coefficients given (from "
            f"{SMALLEST_MU_SCALE:g} to {LARGEST_MU_SCALE:g} is believed); see whether mu, the labels and "
            "the voxel size are right"
        )
    elif abs(step) > max(REFUTED_AT * step_error, LEAST_WRONG_OFFSET_DEG):
        reason = (
            f"equivalents ask for another angle offset, by about {step:+.1f} ({step_error:.1f}) deg, and "
            "with a wrong one the rest would be wrong too; name offset in alignment.refine as well"
        )
    elif "offset" in asked and not offset_error <= LARGEST_OFFSET_ERROR_DEG:
        reason = (
            f"the standard error of the offset is {offset_error:.1f} deg (at most "
            f"{LARGEST_OFFSET_ERROR_DEG:g} is accepted)"
        )
    elif "mu_scale" in asked and not mu_error <= LARGEST_MU_SCALE_ERROR:
        reason = (
            f"the standard error of the factor on mu is {mu_error:.2f} (at most "
            f"{LARGEST_MU_SCALE_ERROR:g} is accepted)"
        )
    after, mu_scale = alignment, 1.0
    if not reason:
        offset = best.offset_deg if "offset" in asked else alignment.angle_offset_deg
        # of the angles that are the same, the one nearest to what was given
        offset = alignment.angle_offset_deg + (
            (offset - alignment.angle_offset_deg + 180.0) % 360.0 - 180.0
        )
        after = replace(alignment, angle_offset_deg=float(offset), rotation_sense=best.sense)
        mu_scale = k if "mu_scale" in asked else 1.0
    curve = unit * np.sqrt([trial.chi2 for trial in grid]).reshape(len(senses), -1)
    return AlignmentFit(
        asked,
        alignment,
        after,
        mu_scale,
        reason,
        offset_deg=best.offset_deg,
        offset_error_deg=offset_error,
        sense=best.sense,
        fitted_mu_scale=k,
        mu_scale_error=mu_error,
        n_observations=len(data),
        n_unique=data.n_unique,
        n_scales=disagreement.n_scales,
        n_sweeps=len(np.unique(data.experiment)),
        instrument_error=search.instrument_error,
        offsets_deg=offsets,
        senses=senses,
        disagreement=curve,
        mu_scales=np.array([trial.mu_scale for trial in grid]).reshape(len(senses), -1),
        mu_scale_curve=unit * np.sqrt(np.maximum(best.chi2_at(MU_GRID), 0.0)),
        disagreement_none=unit * float(np.linalg.norm(none)),
        disagreement_before=unit * math.sqrt(max(0.0, float(before.chi2_at(np.ones(1))[0]))),
        disagreement_best=unit * float(np.linalg.norm(at_best)),
        refuted_none=refuted_none,
        refuted_others=refuted_others,
        other=other,
    )
