"""What each crystal contributes to data that are merged of several: merged with it, and without.

The observations keep the scales that they got with all crystals; nothing is scaled again. What is
compared is what is merged: observations that scaling rejected count for no crystal.

CC1/2 is that of Assmann, Brehm & Diederichs (J. Appl. Cryst. 49 (2016) 1021), which needs no random
halves: with the variance s_y^2 of the merged intensities of a shell and their mean error variance
s_e^2, CC1/2 = (s_y^2 - s_e^2) / (s_y^2 + s_e^2), the mean of the shells weighted by their numbers
of reflections. As dials.merge weights observations by 1/sigma^2, so does this; otherwise a small
crystal, whose few counts are worth what their sigmas say, would seem to spoil the data. With equal
sigmas it is the value of dials.compute_delta_cchalf.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from dials.array_family import flex
from numpy.typing import NDArray

from anacor_dials.diffraction.merging import RESOLUTION_TOLERANCE, ScaledIntensities
from anacor_dials.sample.frames import FloatArray

IntArray = NDArray[np.int64]

N_SHELLS = 10  # as dials.compute_delta_cchalf
N_BLOCKS = 20  # of the jackknife
FEWEST_PAIRS = 100  # of Friedel mates; a correlation of fewer is not given
# Standard errors. Of fifty good crystals none should be said to make the data worse.
SURE = 3.5


@dataclass(frozen=True)
class MergedQuality:
    """How good merged data are, overall.

    Attributes
    ----------
    observations, unique : int
        Friedel mates count as one reflection.
    completeness : float
        0 to 1.
    multiplicity : float
    r_meas, r_pim : float
        NaN where no reflection was measured twice.
    cc_half : float
        See the head of this module; NaN where it is not defined.
    cc_anomalous : float
        The same of the differences of Friedel mates that were both measured twice; NaN where they
        are fewer than FEWEST_PAIRS.
    """

    observations: int
    unique: int
    completeness: float
    multiplicity: float
    r_meas: float
    r_pim: float
    cc_half: float
    cc_anomalous: float


@dataclass(frozen=True)
class Contribution:
    """What a crystal contributes.

    Attributes
    ----------
    crystal : str
    observations : int
        Of this crystal, among those that are merged.
    rejected : float
        The share of its observations that scaling rejected, 0 to 1.
    without : MergedQuality
        Of the data without it.
    cc_half_with, cc_anomalous_with : float
        Of the data with it, of the reflections that CC1/2 without it is of.
    delta_cc_half, delta_cc_anomalous : float
        With it minus without it, of these reflections: negative where it makes the data worse.
    delta_cc_half_error, delta_cc_anomalous_error : float
        Standard errors, by a jackknife over unique reflections.
    """

    crystal: str
    observations: int
    rejected: float
    without: MergedQuality
    cc_half_with: float
    delta_cc_half: float
    delta_cc_half_error: float
    cc_anomalous_with: float
    delta_cc_anomalous: float
    delta_cc_anomalous_error: float

    @property
    def makes_worse(self) -> tuple[str, ...]:
        """Which of "cc_half" and "cc_anomalous" is surely higher without the crystal."""
        differences = {
            "cc_half": (self.delta_cc_half, self.delta_cc_half_error),
            "cc_anomalous": (self.delta_cc_anomalous, self.delta_cc_anomalous_error),
        }
        return tuple(name for name, (d, error) in differences.items() if d + SURE * error < 0)


def contributions(
    scaled: ScaledIntensities,
    crystal_of: Mapping[str, str],
    d_max: float,
    d_min: float,
    rejected: Mapping[str, float] | None = None,
) -> tuple[MergedQuality, tuple[Contribution, ...]]:
    """(the data of all crystals, what each contributes), the worst crystal first.

    Parameters
    ----------
    scaled : ScaledIntensities
        Of all sweeps, without what was rejected.
    crystal_of : mapping
        {identifier of a sweep: name of its crystal}. A crystal without observations is left out.
    d_max, d_min : float
        The resolution limits, Angstrom.
    rejected : mapping, optional
        {crystal: share}, of :func:`rejected_shares`.

    Raises
    ------
    ValueError
        If a sweep is of no crystal, there are no observations, or they are all of one crystal.
    """
    unknown = [name for name in scaled.identifiers if name not in crystal_of]
    if unknown:
        raise ValueError(f"it is not known which crystal the sweep {unknown[0]} is of")
    names = sorted(set(crystal_of.values()))
    number = np.array([names.index(crystal_of[name]) for name in scaled.identifiers])
    observations, within = _observations(scaled, d_max, d_min)
    of_crystal = number[scaled.sweeps[within]]
    present = np.unique(of_crystal)
    if len(present) < 2:
        raise ValueError("fewer than two crystals have observations that are merged")
    whole = _merged_twice(observations)
    result = []
    for i in present:
        rest = observations.select(of_crystal != i)
        without = _merged_twice(rest)
        half, anomalous = (
            (_correlations(all_, left.used, rest), _correlations(left, left.used, rest))
            for all_, left in zip(whole, without, strict=True)
        )
        result.append(
            Contribution(
                names[i],
                int((of_crystal == i).sum()),
                (rejected or {}).get(names[i], math.nan),
                _quality(rest, *without),
                float(half[0][0]),
                *_jackknife(half[0] - half[1]),
                float(anomalous[0][0]),
                *_jackknife(anomalous[0] - anomalous[1]),
            )
        )
    # what surely makes the data worse first, then by the difference; unknown ones last
    result.sort(key=lambda one: (not one.makes_worse, np.nan_to_num(one.delta_cc_half, nan=9.0)))
    return _quality(observations, *whole), tuple(result)


def rejected_shares(
    reflections: str | os.PathLike[str],
    crystal_of: Mapping[str, str],
    d_max: float,
    d_min: float,
) -> dict[str, float]:
    """{crystal: the share of its scaled observations that were rejected as outliers}.

    Parameters
    ----------
    reflections : path
        scaled.refl.
    crystal_of : mapping
        {identifier of a sweep: name of its crystal}.
    d_max, d_min : float
        The resolution limits, Angstrom.
    """
    table = flex.reflection_table.from_file(os.fspath(reflections))
    excluded = table.get_flags(table.flags.excluded_for_scaling) | table.get_flags(
        table.flags.user_excluded_in_scaling
    )
    table = table.select(~excluded & (table["inverse_scale_factor"] > 0) & (table["id"] >= 0))
    d = table["d"].as_numpy_array()
    within = (d <= d_max * (1 + RESOLUTION_TOLERANCE)) & (d >= d_min * (1 - RESOLUTION_TOLERANCE))
    outlier = table.get_flags(table.flags.outlier_in_scaling).as_numpy_array()
    sweep = table["id"].as_numpy_array()
    counts: dict[str, list[int]] = {}
    for i, name in dict(table.experiment_identifiers()).items():
        here = within & (sweep == i)
        n = counts.setdefault(crystal_of.get(name, name), [0, 0])
        n[0] += int((here & outlier).sum())
        n[1] += int(here.sum())
    return {crystal: bad / n for crystal, (bad, n) in counts.items() if n}


# ---- merging -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Observations:
    """n observations of m unique reflections.

    values, weights, reflections, minus: (n,); the number of the unique reflection, and whether the
    observation is of the Friedel mate. shells, blocks, acentric: (m,).
    """

    values: FloatArray
    weights: FloatArray
    reflections: IntArray
    minus: IntArray
    shells: IntArray
    blocks: IntArray
    acentric: NDArray[np.bool_]
    n_possible: int

    def select(self, kept: NDArray[np.bool_]) -> _Observations:
        names = ("values", "weights", "reflections", "minus")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})


def _observations(
    scaled: ScaledIntensities, d_max: float, d_min: float
) -> tuple[_Observations, NDArray[np.bool_]]:
    """The observations within the limits, and which of the scaled ones they are."""
    selected = scaled.intensities.resolution_filter_selection(
        d_max=d_max * (1 + RESOLUTION_TOLERANCE), d_min=d_min * (1 - RESOLUTION_TOLERANCE)
    ) & (scaled.intensities.sigmas() > 0)
    intensities = scaled.intensities.select(selected).customized_copy(anomalous_flag=False)
    if not intensities.size():
        raise ValueError("there are no observations within the resolution limits")
    in_asu = intensities.map_to_asu()
    with_mates = intensities.customized_copy(anomalous_flag=True).map_to_asu()
    indices = in_asu.indices().as_vec3_double().as_numpy_array()
    of_mates = with_mates.indices().as_vec3_double().as_numpy_array()
    _, first, reflections = np.unique(indices, axis=0, return_index=True, return_inverse=True)
    unique = in_asu.select(flex.size_t(first.astype(np.uint64)))
    possible = unique.complete_set().resolution_filter(*unique.d_max_min())
    inverse_d2 = unique.d_star_sq().data().as_numpy_array()
    low, high = inverse_d2.min(), inverse_d2.max()
    shells = (inverse_d2 - low) / max(high - low, 1e-12) * N_SHELLS
    rng = np.random.default_rng(0)
    observations = _Observations(
        values=in_asu.data().as_numpy_array(),
        weights=in_asu.sigmas().as_numpy_array() ** -2.0,
        reflections=reflections.ravel(),
        minus=(indices != of_mates).any(axis=1).astype(np.int64),
        shells=np.minimum(shells.astype(np.int64), N_SHELLS - 1),
        blocks=rng.permutation(len(first)) % N_BLOCKS,
        acentric=~unique.centric_flags().data().as_numpy_array(),
        n_possible=possible.size(),
    )
    return observations, selected.as_numpy_array()


@dataclass(frozen=True)
class _Merged:
    """m merged values: their numbers of observations, variances, and which have a variance."""

    n: IntArray
    means: FloatArray
    variances: FloatArray
    used: NDArray[np.bool_]


def _merged_twice(of: _Observations) -> tuple[_Merged, _Merged]:
    """The unique reflections, and the differences of their Friedel mates."""
    m = len(of.shells)
    n, means, variances = _means(of, of.reflections, m)
    n_mates, mates, errors = _means(of, 2 * of.reflections + of.minus, 2 * m)
    pairs = (n_mates.reshape(m, 2) > 1).all(axis=1) & of.acentric
    if pairs.sum() < FEWEST_PAIRS:
        pairs[:] = False
    return (
        _Merged(n, means, variances, n > 1),
        _Merged(n, mates[::2] - mates[1::2], errors[::2] + errors[1::2], pairs),
    )


def _means(of: _Observations, groups: IntArray, m: int) -> tuple[IntArray, FloatArray, FloatArray]:
    """(numbers, weighted means, their variances by the spread of the observations), each (m,)."""
    n = np.bincount(groups, minlength=m)
    sums = np.bincount(groups, of.weights, m)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.bincount(groups, of.weights * of.values, m) / sums
        squares = np.bincount(groups, of.weights * (of.values - means[groups]) ** 2, m)
        return n, means, squares / (sums * (n - 1))


def _quality(of: _Observations, merged: _Merged, differences: _Merged) -> MergedQuality:
    """The statistics; R values as in Weiss, J. Appl. Cryst. 34 (2001) 130."""
    m, several = len(of.shells), merged.n > 1
    deviations = np.abs(of.values - merged.means[of.reflections])
    spread = np.bincount(of.reflections, deviations, m)[several]
    total = np.bincount(of.reflections, of.values, m)[several].sum() or math.nan
    n = merged.n[several]
    unique = int((merged.n > 0).sum())
    return MergedQuality(
        observations=len(of.values),
        unique=unique,
        completeness=min(unique / of.n_possible, 1.0),
        multiplicity=len(of.values) / unique,
        r_meas=float((np.sqrt(n / (n - 1)) * spread).sum() / total),
        r_pim=float((np.sqrt(1 / (n - 1)) * spread).sum() / total),
        cc_half=float(_correlations(merged, merged.used, of)[0]),
        cc_anomalous=float(_correlations(differences, differences.used, of)[0]),
    )


def _correlations(merged: _Merged, used: NDArray[np.bool_], of: _Observations) -> FloatArray:
    """CC1/2 (1 + N_BLOCKS,) of the values that are used: of all, and without each block."""
    cells = (of.blocks * N_SHELLS + of.shells)[used]
    means, variances = merged.means[used], merged.variances[used]
    sums = np.stack(
        [
            np.bincount(cells, weights, N_BLOCKS * N_SHELLS)
            for weights in (np.ones_like(means), means, means**2, variances)
        ]
    ).reshape(4, N_BLOCKS, N_SHELLS)
    whole = sums.sum(axis=1, keepdims=True)
    count, first, second, errors = np.concatenate([whole, whole - sums], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (second - first**2 / count) / (count - 1)
        cc = (variance - errors / count) / (variance + errors / count)
        weights = np.where((count > 1) & np.isfinite(cc), count, 0)
        return (weights * np.nan_to_num(cc)).sum(axis=1) / weights.sum(axis=1)


def _jackknife(values: FloatArray) -> tuple[float, float]:
    """(value, standard error) of the value of all and those without each of N_BLOCKS blocks."""
    rest = values[1:]
    error = math.sqrt((N_BLOCKS - 1) / N_BLOCKS * ((rest - rest.mean()) ** 2).sum())
    return float(values[0]), error
