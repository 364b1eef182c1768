"""What each crystal contributes: the figures of iotbx and DIALS; who is said to make the data worse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

import iotbx.merging_statistics
from cctbx import crystal, miller
from dials.algorithms.scaling.scaling_library import scaled_data_as_miller_array
from dials.algorithms.statistics.delta_cchalf import PerGroupCChalfStatistics
from dials.array_family import flex

from anacor_dials.diffraction.contributions import contributions, rejected_shares
from anacor_dials.diffraction.merging import ScaledIntensities
from anacor_dials.diffraction.models import read_models
from anacor_dials.jobs.pipeline.contributions import contributions_record

Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def true_intensities(seed: int, group: str = "P41212", mates_differ: float = 0.05) -> miller.array:
    """Of all reflections and mates to 4 A, without errors."""
    rng = np.random.default_rng(seed)
    symmetry = crystal.symmetry((58, 58, 150, 90, 90, 90), group)
    mates = miller.build_set(symmetry, anomalous_flag=True, d_min=4.0)
    one = np.array(mates.customized_copy(anomalous_flag=False).map_to_asu().indices())
    _, number = np.unique(one, axis=0, return_inverse=True)
    true = rng.exponential(1000, number.max() + 1)[number.ravel()]
    differences = mates_differ * rng.normal(size=len(true))
    return mates.array(
        flex.double(true * (1 + np.where(mates.centric_flags().data(), 0, differences)))
    )


def crystals(
    seed: int,
    n: int,
    changes: dict[int, Change] | None = None,
    weak: tuple[int, ...] = (),
    equal: bool = False,
    share: float = 0.7,
    group: str = "P41212",
    mates_differ: float = 0.05,
) -> ScaledIntensities:
    """Observations by n crystals, twice each, of a random `share` of the true intensities.

    Errors are those of counting and 2 %; 5 times as large for `weak` crystals, which their sigmas say.
    `changes` are made to the observed intensities (n,) of a crystal at indices (n, 3); sigmas stay.
    equal: all sigmas are the same.
    """
    without_errors = true_intensities(seed, group, mates_differ)
    true = without_errors.data().as_numpy_array()
    indices = np.array(without_errors.indices())
    rng = np.random.default_rng([seed, 1])
    parts = []
    for k in range(n):
        for _ in range(2):
            seen = np.flatnonzero(rng.random(len(true)) < share)
            larger = 5.0 if k in weak else 1.0
            sigma = np.sqrt(20 * true[seen] + 100 + (0.02 * true[seen]) ** 2) * larger
            if equal:
                sigma = np.full(len(seen), 100.0 * larger)
            observed = true[seen] + rng.normal(0, sigma)
            if k in (changes or {}):
                observed = changes[k](observed, indices[seen], rng)
            parts.append((indices[seen], observed, sigma, np.full(len(seen), k)))
    hkl, observed, sigma, sweeps = (np.concatenate(column) for column in zip(*parts, strict=True))
    array = miller.array(
        miller.set(without_errors, flex.miller_index(list(map(tuple, hkl.tolist()))), False),
        flex.double(observed),
        flex.double(sigma),
    ).set_observation_type_xray_intensity()
    nothing = np.ones(len(sweeps))
    return ScaledIntensities(
        "all",
        array,
        nothing.astype(np.int64),
        nothing,
        sweeps.astype(np.int64),
        tuple(f"sweep {k}" for k in range(n)),
        ((1, 1),) * n,
    )


def names(scaled: ScaledIntensities) -> dict[str, str]:
    return {sweep: sweep.replace("sweep ", "X") for sweep in scaled.identifiers}


def found(scaled: ScaledIntensities, **more: object):
    return contributions(scaled, names(scaled), *scaled.intensities.d_max_min(), **more)


def left(scaled: ScaledIntensities, name: str | None) -> miller.array:
    """The observations without a crystal."""
    kept = [name != names(scaled)[scaled.identifiers[k]] for k in scaled.sweeps]
    return scaled.intensities.select(flex.bool(kept))


# ---- the figures ----------------------------------------------------------------------------------


def test_statistics_are_those_of_iotbx():
    """Of all crystals, and of the rest without each, whose sigmas and numbers differ."""
    scaled = crystals(1, 3, weak=(1,), share=0.45)
    whole, each = found(scaled)
    limits = scaled.intensities.d_max_min()
    assert len(each) == 3
    for name, ours in ((None, whole), *((one.crystal, one.without) for one in each)):
        theirs = iotbx.merging_statistics.dataset_statistics(
            left(scaled, name),
            d_max=limits[0] + 1e-6, d_min=limits[1] - 1e-6, n_bins=1,
            sigma_filtering=None, use_internal_variance=False, eliminate_sys_absent=False,
        ).overall  # fmt: skip
        assert (ours.observations, ours.unique) == (theirs.n_obs, theirs.n_uniq)
        assert ours.r_meas == pytest.approx(theirs.r_meas, rel=1e-9)
        assert ours.r_pim == pytest.approx(theirs.r_pim, rel=1e-9)
        assert ours.multiplicity == pytest.approx(theirs.mean_redundancy, rel=1e-9)
        assert ours.completeness == pytest.approx(theirs.completeness, abs=2e-4)
    assert whole.completeness > max(one.without.completeness for one in each)


def test_differences_are_those_of_dials():
    """dials.compute_delta_cchalf, for equal sigmas and reflections that all are measured often."""
    scaled = crystals(
        2, 5, equal=True, share=0.9, changes={3: lambda i, h, rng: i + rng.normal(0, 300, len(i))}
    )
    array = scaled.intensities
    table = flex.reflection_table()
    table["miller_index"], table["intensity"] = array.indices(), array.data()
    table["variance"] = flex.pow2(array.sigmas())
    table["dataset"] = table["group"] = flex.int(scaled.sweeps.astype(np.int32))
    theirs = PerGroupCChalfStatistics(table, array.unit_cell(), array.space_group())
    theirs.run()
    whole, each = found(scaled)
    assert whole.cc_half == pytest.approx(theirs.mean_cchalf(), abs=1e-9)
    for one in each:
        number = int(one.crystal[1:])
        assert one.without.cc_half == pytest.approx(theirs.cchalf_i()[number], abs=1e-6)
        assert one.delta_cc_half == pytest.approx(theirs.delta_cchalf_i()[number], abs=1e-6)
    assert each[0].crystal == "X3"
    assert each[0].delta_cc_half < 0 < each[1].delta_cc_half


def shells(array: miller.array) -> list[miller.array]:
    """The shells of this module, ten of equal width in 1/d^2."""
    x = array.d_star_sq().data().as_numpy_array()
    number = np.minimum(((x - x.min()) / (x.max() - x.min()) * 10).astype(int), 9)
    return [array.select(flex.bool(number == i)) for i in range(10)]


@pytest.mark.parametrize("weak", [(), (0,), (0, 1)])
def test_weighted_cc_half_foretells_the_correlation_with_the_truth(weak: tuple[int, ...]):
    """CC of merged and true intensities is sqrt(2 CC1/2 / (1 + CC1/2)) (Karplus & Diederichs, 2012)."""
    ours, foretold = [], []
    for seed in range(4):
        scaled = crystals(seed, 4, weak=weak, mates_differ=0.0, share=1.0)
        true = true_intensities(seed, mates_differ=0.0).customized_copy(anomalous_flag=False)
        true = true.map_to_asu().merge_equivalents().array()
        merged = scaled.intensities.merge_equivalents(use_internal_variance=False).array()
        pairs = [shell.common_sets(true) for shell in shells(merged)]
        cc = np.array([np.corrcoef(a.data(), b.data())[0, 1] for a, b in pairs])
        numbers = [a.size() for a, _ in pairs]
        foretold.append(np.average(cc**2 / (2 - cc**2), weights=numbers))
        ours.append(found(scaled)[0].cc_half)
    assert 1 - np.mean(ours) == pytest.approx(1 - np.mean(foretold), rel=0.08)


def test_anomalous_correlation_is_that_of_random_halves():
    """By iotbx, which does not weight; so the sigmas are equal here."""
    scaled = crystals(4, 3, equal=True, share=0.9, mates_differ=0.2)
    whole, each = found(scaled)
    halves = [scaled.intensities.half_dataset_anomalous_correlation() for _ in range(20)]
    assert whole.cc_anomalous == pytest.approx(np.mean(halves), abs=0.02)
    assert 0.3 < whole.cc_anomalous < 0.98
    assert all(one.delta_cc_anomalous > 3 * one.delta_cc_anomalous_error for one in each)


def test_no_anomalous_correlation_without_pairs():
    centric = crystals(5, 2, group="P-1", share=0.3, mates_differ=0.0)
    whole, each = found(centric)
    assert math.isnan(whole.cc_anomalous)
    assert all(math.isnan(one.delta_cc_anomalous) for one in each)
    few = crystals(5, 2, share=0.1)
    assert math.isnan(found(few)[0].cc_anomalous)


def test_standard_errors_are_the_scatter_of_the_differences():
    made = [found(crystals(seed, 3, changes={0: shuffled_a_little}))[1] for seed in range(16)]
    differences = [
        [next(one for one in each if one.crystal == name).delta_cc_half for each in made]
        for name in ("X0", "X1")
    ]
    errors = [
        [next(one for one in each if one.crystal == name).delta_cc_half_error for each in made]
        for name in ("X0", "X1")
    ]
    for scatter, said in zip(np.std(differences, axis=1), np.mean(errors, axis=1), strict=True):
        assert said == pytest.approx(scatter, rel=0.45)


# ---- who makes the data worse ---------------------------------------------------------------------


def shuffled(observed: np.ndarray, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(observed)


def shuffled_a_little(
    observed: np.ndarray, indices: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A tenth of them."""
    changed = observed.copy()
    some = rng.random(len(observed)) < 0.1
    changed[some] = rng.permutation(observed[some])
    return changed


def wrong_factors(
    observed: np.ndarray, indices: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """As of an absorption correction whose labels are turned: up to 30 % by direction."""
    directions = indices / np.linalg.norm(indices, axis=1, keepdims=True)
    return observed * np.exp(0.3 * directions @ np.array([0.6, 0.0, 0.8]))


@pytest.mark.parametrize("change", [shuffled, shuffled_a_little, wrong_factors])
@pytest.mark.parametrize("n", [3, 10])
def test_a_spoilt_crystal_comes_first(change: Change, n: int):
    spoilt = n // 2
    whole, each = found(crystals(6, n, changes={spoilt: change}))
    assert [one.crystal for one in each if one.makes_worse] == [f"X{spoilt}"]
    assert each[0].crystal == f"X{spoilt}"
    assert each[0].without.r_meas < whole.r_meas
    assert each[0].without.cc_half > each[0].cc_half_with
    assert each[0].delta_cc_half == pytest.approx(each[0].cc_half_with - each[0].without.cc_half)


def test_wrong_anomalous_differences_are_found_where_means_stay():
    """Of one crystal whose mates are exchanged, as by an inverted index: CC1/2 hardly sees it."""

    def exchanged(
        observed: np.ndarray, indices: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        return observed * np.exp(-2 * 0.05 * sign[tuple(indices.T)])

    true = true_intensities(9)
    sign = np.zeros((101, 101, 101))
    pairs = true.customized_copy(sigmas=flex.double(true.size(), 1.0)).anomalous_differences()
    sums = true.customized_copy(sigmas=flex.double(true.size(), 1.0)).average_bijvoet_mates()
    ratios = pairs.customized_copy(data=pairs.data() / sums.common_set(pairs).data() / 0.05)
    for (h, k, l), ratio in zip(ratios.indices(), ratios.data(), strict=True):
        sign[h, k, l], sign[-h, -k, -l] = ratio, -ratio
    _, each = found(crystals(9, 4, changes={1: exchanged}))
    assert each[0].crystal == "X1"
    assert "cc_anomalous" in each[0].makes_worse
    assert not any(one.makes_worse for one in each[1:])


@pytest.mark.parametrize("n", [2, 3, 20])
def test_of_good_crystals_none_makes_the_data_worse(n: int):
    for seed in range(3):
        _, each = found(crystals(seed, n))
        assert not any(one.makes_worse for one in each)
        assert all(one.delta_cc_half > 0 for one in each)
        assert [one.delta_cc_half for one in each] == sorted(one.delta_cc_half for one in each)


@pytest.mark.parametrize("n", [3, 10])
def test_a_small_crystal_is_not_accused(n: int):
    """Its errors are five times as large, as its sigmas say; it raises Rmeas, and helps."""
    scaled = crystals(7, n, weak=(0,))
    whole, each = found(scaled)
    (small,) = (one for one in each if one.crystal == "X0")
    assert small.without.r_meas < whole.r_meas
    assert not small.makes_worse
    # taken as good as the others it does harm
    alike = scaled.intensities.customized_copy(sigmas=flex.double(len(scaled.sweeps), 100.0))
    _, each = found(replace(scaled, intensities=alike))
    assert [one.crystal for one in each if one.makes_worse] == ["X0"]


def test_what_cannot_be_said():
    scaled = crystals(8, 2, share=0.2)
    limits = scaled.intensities.d_max_min()
    with pytest.raises(ValueError, match="not known which crystal the sweep sweep 1 is of"):
        contributions(scaled, {"sweep 0": "X0"}, *limits)
    with pytest.raises(ValueError, match="fewer than two crystals have observations"):
        contributions(scaled, {"sweep 0": "X0", "sweep 1": "X0"}, *limits)
    with pytest.raises(ValueError, match="no observations within the resolution limits"):
        contributions(scaled, names(scaled), 1.5, 1.0)


# ---- real data, from files ------------------------------------------------------------------------


@pytest.fixture
def models(shared_data: Path) -> dict[str, Path]:
    """The sweeps count as two crystals here."""
    return {name: shared_data / f"l_cysteine/sweep_{n}.expt" for name, n in (("A", 25), ("B", 30))}


def test_of_scaled_files(two_sweeps, models):
    """Sweeps are told apart by identifier; each alone is what iotbx makes of its own table."""
    scaled = two_sweeps
    record = contributions_record((scaled.experiments, scaled.reflections), models, (5.0, 0.9))
    experiments = read_models(scaled.experiments)
    table = flex.reflection_table.from_file(str(scaled.reflections))
    tables = table.select(table["id"] >= 0).split_by_experiment_id()
    by_identifier = {table.experiment_identifiers().values()[0]: table for table in tables}
    identifiers = {name: read_models(path)[0].identifier for name, path in models.items()}
    assert {one.crystal for one in record.crystals} == {"A", "B"}
    for one in record.crystals:
        other = by_identifier[identifiers["B" if one.crystal == "A" else "A"]]
        mine = by_identifier[identifiers[one.crystal]]
        array = scaled_data_as_miller_array([other], experiments).resolution_filter(5.0, 0.9)
        theirs = iotbx.merging_statistics.dataset_statistics(
            array, n_bins=1, sigma_filtering=None, use_internal_variance=False
        ).overall
        assert one.without.observations == theirs.n_obs
        assert one.without.r_meas == pytest.approx(theirs.r_meas, rel=1e-6)
        within = mine.select((mine["d"] <= 5.0) & (mine["d"] >= 0.9))
        kept = ~within.get_flags(within.flags.bad_for_scaling, all=False)
        assert one.observations == kept.count(True)
        outliers = within.get_flags(within.flags.outlier_in_scaling).count(True)
        assert one.rejected == pytest.approx(outliers / (outliers + one.observations))
    assert sum(one.observations for one in record.crystals) == record.merged.observations


def test_rejected_observations_are_counted(two_sweeps, models):
    identifiers = {read_models(path)[0].identifier: name for name, path in models.items()}
    shares = rejected_shares(two_sweeps.reflections, identifiers, 5.0, 0.9)
    assert set(shares) == {"A", "B"}
    assert all(0 < share < 0.5 for share in shares.values())
