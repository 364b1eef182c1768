"""The choice among strategies: on the same observations, and free parameters must pay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.model import BeamFactory, Crystal, Experiment, ExperimentList

from anacor_dials.diffraction.selection import (
    choose_strategy,
    factors_that_do_not_help,
    statistics_of_same_observations,
)

# ---- statistics of the same observations ----

I_TRUE = {(1, 2, 3): 100.0, (2, 3, 4): 400.0, (3, 1, 5): 900.0}


def scaled(
    folder: Path, name: str, scales: np.ndarray, rejected: list[int], order: np.ndarray
) -> tuple[Path, Path]:
    """A scaled data set of 3 reflections, 4 times each, in P 1; scales: error (12,) of each observation.

    rejected: numbers of outliers; order: how the rows are shuffled.
    """
    models = ExperimentList(
        [
            Experiment(
                beam=BeamFactory.simple(1.0),
                crystal=Crystal((20, 0, 0), (0, 22, 0), (0, 0, 25), "P 1"),
                identifier="a",
            )
        ]
    )
    indices = np.repeat(np.array(list(I_TRUE), dtype=np.int32), 4, axis=0)
    true = np.repeat(np.array(list(I_TRUE.values())), 4)
    table = flex.reflection_table()
    table["id"] = flex.int(12, 0)
    table["miller_index"] = flex.miller_index([tuple(map(int, hkl)) for hkl in indices[order]])
    table["intensity.scale.value"] = flex.double((2 * true * scales)[order])
    table["intensity.scale.variance"] = flex.double(12, 4.0)
    table["inverse_scale_factor"] = flex.double(12, 2.0)
    xyz = np.column_stack([np.zeros((12, 2)), 10.0 * np.arange(12) + 0.2])
    table["xyzobs.px.value"] = flumpy.vec_from_numpy(np.ascontiguousarray(xyz[order]))
    outliers = flex.bool(np.isin(np.arange(12), rejected)[order])
    table["flags"] = flex.size_t(12, 0)
    table.set_flags(flex.bool(12, True), table.flags.scaled)
    table.set_flags(outliers, table.flags.outlier_in_scaling)
    table.experiment_identifiers()[0] = "a"
    paths = folder / f"{name}.expt", folder / f"{name}.refl"
    models.as_file(str(paths[0]))
    table.as_file(str(paths[1]))
    return paths


def r_meas(scales: np.ndarray, which: list[int]) -> float:
    """Diederichs & Karplus (1997): sum sqrt(n/(n-1)) |I - <I>| / sum I, over the observations named."""
    true = np.repeat(np.array(list(I_TRUE.values())), 4)
    above = below = 0.0
    for reflection in range(3):
        mine = [i for i in which if i // 4 == reflection]
        values = (true * scales)[mine]
        n = len(mine)
        above += np.sqrt(n / (n - 1)) * np.abs(values - values.mean()).sum()
        below += values.sum()
    return above / below


def test_every_strategy_is_judged_on_what_any_of_them_keeps(tmp_path: Path) -> None:
    """The bad strategy rejects what shows that it is bad; number 5 is bad in truth, and all reject it."""
    rng = np.random.default_rng(3)
    good, bad = 1 + 0.02 * rng.normal(size=12), np.where(np.arange(12) % 4 == 0, 0.5, 1.0)
    good[5] = bad[5] = 9.0
    data = {
        "none": scaled(tmp_path, "none", bad, [0, 4, 5, 8], np.arange(12)),
        "analytical": scaled(tmp_path, "analytical", good, [5, 11], rng.permutation(12)),
    }
    values, n = statistics_of_same_observations(data, 50.0, 1.0)
    kept = [i for i in range(12) if i != 5]
    assert n == 11
    assert values["none"]["r_meas"] == pytest.approx(r_meas(bad, kept), rel=1e-6)
    assert values["analytical"]["r_meas"] == pytest.approx(r_meas(good, kept), rel=1e-6)
    # what each keeps by itself says the opposite
    assert r_meas(bad, [1, 2, 3, 6, 7, 9, 10, 11]) == 0.0
    assert choose_strategy([values]).strategy.name == "analytical"


def test_files_may_list_their_sweeps_in_any_order(tmp_path: Path) -> None:
    """Two sweeps, swapped in the second file: an observation is known by its sweep's identifier."""
    scales = 1 + 0.05 * np.random.default_rng(5).normal(size=12)
    data = {}
    for name, order in (("none", "ab"), ("analytical", "ba")):
        expt, refl = scaled(tmp_path, name, scales, [], np.arange(12))
        (model,) = ExperimentList.from_file(str(expt), check_format=False)
        table = flex.reflection_table.from_file(str(refl))
        first = np.arange(12) % 2 == 0  # sweep a
        table["id"] = flex.int(np.where(first, order.index("a"), order.index("b")).tolist())
        both = ExperimentList()
        for number, identifier in enumerate(order):
            table.experiment_identifiers()[number] = identifier
            both.append(Experiment(beam=model.beam, crystal=model.crystal, identifier=identifier))
        both.as_file(str(expt))
        table.as_file(str(refl))
        data[name] = (expt, refl)
    values, n = statistics_of_same_observations(data, 50.0, 1.0)
    assert n == 12
    assert values["none"] == values["analytical"]


def test_data_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    ones, order = np.ones(12), np.arange(12)
    data = {name: scaled(tmp_path, name, ones, [], order) for name in ("none", "analytical")}
    table = flex.reflection_table.from_file(str(data["none"][1]))
    table["xyzobs.px.value"] = table["xyzobs.px.value"] + flex.vec3_double(12, (0, 0, 500))
    table.as_file(str(data["none"][1]))
    with pytest.raises(ValueError, match="none, analytical have no observations in common"):
        statistics_of_same_observations(data, 50.0, 1.0)


def test_what_is_excluded_or_out_of_range_does_not_count(tmp_path: Path) -> None:
    ones = np.ones(12)
    data = {name: scaled(tmp_path, name, ones, [], np.arange(12)) for name in ("none", "sh_low")}
    table = flex.reflection_table.from_file(str(data["none"][1]))
    table.set_flags(flex.bool(np.arange(12) == 1), table.flags.user_excluded_in_scaling)
    table["inverse_scale_factor"][2] = -1.0
    table["id"][3] = -1
    table.as_file(str(data["none"][1]))
    assert statistics_of_same_observations(data, 50.0, 1.0)[1] == 9
    d = 1 / np.sqrt(
        (1 / 20) ** 2 + (2 / 22) ** 2 + (3 / 25) ** 2
    )  # of which one observation is left
    with pytest.raises(ValueError, match="none: Dataset contains no equivalent"):
        statistics_of_same_observations(data, 50.0, float(d))


# ---- the choice ----


def of(**r_values: float | None) -> dict[str, dict[str, float | None]]:
    return {name: {"r_meas": value, "i_over_sigma": 1.0} for name, value in r_values.items()}


def test_the_best_is_taken_and_free_parameters_must_pay() -> None:
    def taken(*tables: dict, **settings: object) -> str:
        return choose_strategy(tables, **settings).strategy.name

    clear = of(none=0.11, sh_high=0.08, analytical=0.04, analytical_sh=0.03)
    assert taken(clear) == "analytical_sh"
    # 1.3 % better with 24 more parameters: the same
    close = of(none=0.11, analytical=0.0400, analytical_sh=0.0395)
    assert taken(close) == "analytical"
    assert taken(close, margin=0) == "analytical_sh"
    assert taken(of(sh_high=0.0400, sh_medium=0.0402)) == "sh_medium"
    # of strategies without free parameters the better one
    assert taken(of(none=0.0401, analytical=0.0400)) == "analytical"
    assert taken(clear, strategy="none") == "none"
    assert taken(of(none=None, analytical=0.9)) == "analytical"
    with pytest.raises(ValueError, match=r"No strategy has a value of Rmeas\(I\)"):
        taken(of(none=None))


def test_wavelengths_are_averaged() -> None:
    first, second = of(none=0.10, analytical=0.06), of(none=0.02, analytical=0.05)
    selection = choose_strategy([first, second])
    assert selection.strategy.name == "analytical"
    assert selection.values == {"none": pytest.approx(0.06), "analytical": pytest.approx(0.055)}


def test_statistics_that_are_better_when_higher() -> None:
    values = {"none": {"i_over_sigma": 18.8}, "analytical": {"i_over_sigma": 42.7}}
    selection = choose_strategy([values], "i_over_sigma")
    assert selection.strategy.name == "analytical"
    assert selection.values == {"none": 18.8, "analytical": 42.7}


def test_factors_that_do_not_help_are_said_so() -> None:
    said = factors_that_do_not_help({"none": 0.059, "analytical": 0.063}, "r_meas")
    assert said is not None
    assert "is 0.063 with them and 0.059 without" in said
    assert factors_that_do_not_help({"none": 0.092, "analytical": 0.043}, "r_meas") is None
    assert factors_that_do_not_help({"none": 18.8, "analytical": 42.7}, "i_over_sigma") is None
    assert factors_that_do_not_help({"none": 42.7, "analytical": 18.8}, "i_over_sigma") is not None
    assert factors_that_do_not_help({"analytical": 0.043}, "r_meas") is None
    assert factors_that_do_not_help({"none": 0.1, "analytical": float("nan")}, "r_meas") is None
