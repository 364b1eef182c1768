from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dials")

from cctbx import crystal, miller
from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentListFactory

from anacor_dials.diffraction.merging import (
    ScaledIntensities,
    block_width,
    common_resolution,
    compare_merging_statistics,
    in_one_cell,
    load_scaled,
    merging_statistics,
)


@pytest.fixture(scope="module")
def l_cysteine(shared_data):
    return shared_data / "l_cysteine"


@pytest.fixture(scope="module")
def loaded(two_sweeps):
    return load_scaled("two", two_sweeps.experiments, two_sweeps.reflections)


# ---- against dials.scale and against the formulae ----


def test_statistics_are_those_that_dials_scale_prints(two_sweeps):
    """All that the summary in dials.scale.log prints, to its last digit."""
    (statistics,) = compare_merging_statistics(
        {"two": (two_sweeps.experiments, two_sweeps.reflections)}
    )
    summary = two_sweeps.log.read_text().rpartition("Summary of merging statistics")[2]
    printed = {
        match[1].strip(): match[2].split()
        for match in re.finditer(r"^(\S.*?)\s{2,}((?:-?[\d.]+\s*)+)$", summary, re.MULTILINE)
    }
    compared = 0
    for key, texts in printed.items():
        for ours, theirs in zip(statistics.table_1.get(key, ()), texts, strict=False):
            last_digit = 10.0 ** -len(theirs.partition(".")[2])
            assert ours == pytest.approx(float(theirs), abs=0.501 * last_digit), key
            compared += 1
    assert compared > 40


def test_r_factors_by_their_definitions(loaded):
    """R = sum_h w_n sum_i |I_i - <I>| / sum I, w = 1, sqrt(n/(n-1)), sqrt(1/(n-1)) (Weiss, 2001)."""
    d_max, d_min = loaded.intensities.d_max_min()
    table = merging_statistics(loaded, d_max, d_min).table_1
    array = loaded.intensities.map_to_asu()
    groups: dict[tuple[int, int, int], list[tuple[float, float]]] = {}
    for h, value, sigma in zip(array.indices(), array.data(), array.sigmas(), strict=True):
        groups.setdefault(h, []).append((value, 1 / sigma**2))
    total = r_merge = r_meas = r_pim = 0.0
    for members in groups.values():
        values, weights = np.array(members).T
        n = len(values)
        if n > 1:
            spread = np.abs(values - np.average(values, weights=weights)).sum()
            total += values.sum()
            r_merge += spread
            r_meas += spread * math.sqrt(n / (n - 1))
            r_pim += spread * math.sqrt(1 / (n - 1))
    assert table["Rmerge(I)"][0] == pytest.approx(r_merge / total, rel=1e-3)
    assert table["Rmeas(I)"][0] == pytest.approx(r_meas / total, rel=1e-3)
    assert table["Rpim(I)"][0] == pytest.approx(r_pim / total, rel=1e-3)
    assert table["Total unique"][0] == len(groups)
    assert table["Total observations"][0] == len(loaded.scales)


def test_series_against_image_number(two_sweeps, loaded):
    """Block means of the scaled.refl itself, sweep by sweep."""
    d_max, d_min = loaded.intensities.d_max_min()
    width = 50
    series = merging_statistics(loaded, d_max, d_min, images_per_block=width).by_image
    table = flex.reflection_table.from_file(str(two_sweeps.reflections))
    table = table.select(~table.get_flags(table.flags.bad_for_scaling, all=False))
    expts = ExperimentListFactory.from_json_file(str(two_sweeps.experiments), check_format=False)
    assert [one.identifier for one in series] == ["lcys25", "lcys30"]
    for i, one in enumerate(series):
        sweep = table.select(table["id"] == i)
        image = np.floor(sweep["xyzobs.px.value"].parts()[2].as_numpy_array()) + 1
        scales = sweep["inverse_scale_factor"].as_numpy_array()
        low, high = expts[i].scan.get_image_range()
        blocks = [(image >= a) & (image < a + width) for a in range(low, high + 1, width)]
        expected = [(image[b].mean(), scales[b].mean()) for b in blocks if b.any()]
        np.testing.assert_allclose(one.images, [image for image, _ in expected])
        np.testing.assert_allclose(one.scale, [scale for _, scale in expected])
        assert np.all((one.r_merge > 0) & (one.r_merge < 0.5))
        assert len(one.r_merge) == len(one.i_over_sigma) == len(expected)


def test_shells_run_from_low_to_high_resolution(loaded):
    d_max, d_min = loaded.intensities.d_max_min()
    statistics = merging_statistics(loaded, d_max, d_min, n_bins=8)
    shells = statistics.by_resolution
    assert {len(values) for values in shells.values()} == {8}
    assert np.all(shells["d_max"] > shells["d_min"])
    np.testing.assert_allclose(shells["d_max"][1:], shells["d_min"][:-1])
    assert shells["d_min"][-1] == pytest.approx(d_min, rel=1e-4)
    assert shells["observations"].sum() == len(loaded.scales)
    assert shells["r_meas"][-1] == statistics.table_1["Rmeas(I)"][2]


def test_several_wavelengths_are_warned_of(two_sweeps, tmp_path, caplog):
    expts = ExperimentListFactory.from_json_file(str(two_sweeps.experiments), check_format=False)
    load_scaled("two", two_sweeps.experiments, two_sweeps.reflections)
    assert "wavelengths" not in caplog.text
    expts[1].beam.set_wavelength(0.9)
    expts.as_file(str(tmp_path / "mad.expt"))
    load_scaled("mad", tmp_path / "mad.expt", two_sweeps.reflections)
    assert "mad holds wavelengths from 0.6889 to 0.9000 A" in caplog.text


# ---- the common resolution ----


def without_high_resolution(source, folder: Path, d_min: float):
    table = flex.reflection_table.from_file(str(source.reflections))
    path = folder / f"cut_{d_min}.refl"
    table.select(table["d"] >= d_min).as_file(str(path))
    return source.experiments, path


def test_all_data_sets_are_cut_where_the_poorest_ends(two_sweeps, tmp_path):
    full = (two_sweeps.experiments, two_sweeps.reflections)
    cut = without_high_resolution(two_sweeps, tmp_path, 0.9)
    a, b = compare_merging_statistics({"full": full, "cut": cut}, n_bins=10)
    assert a.d_min == b.d_min == pytest.approx(0.9, abs=0.005)
    assert a.d_min >= 0.9
    for name in a.by_resolution:
        np.testing.assert_array_equal(a.by_resolution[name], b.by_resolution[name])
    assert a.table_1 == b.table_1


def test_a_limit_that_is_asked_for(two_sweeps):
    data = {"two": (two_sweeps.experiments, two_sweeps.reflections)}
    (statistics,) = compare_merging_statistics(data, d_min=0.8)
    assert 0.8 <= statistics.d_min < 0.803
    assert statistics.by_resolution["d_min"][-1] == pytest.approx(statistics.d_min, rel=1e-4)
    with pytest.raises(ValueError, match=r"no reflection in common to 50.00 A"):
        compare_merging_statistics(data, d_min=50)


def intensities(symmetry: str, indices, cell=(10, 11, 12, 90, 90, 90)) -> ScaledIntensities:
    indices = flex.miller_index(indices)
    array = miller.array(
        miller.set(crystal.symmetry(cell, symmetry), indices, anomalous_flag=False),
        data=flex.double(len(indices), 100.0),
        sigmas=flex.double(len(indices), 1.0),
    )
    n = len(indices)
    return ScaledIntensities(
        symmetry, array, np.ones(n, int), np.ones(n), np.zeros(n, int), ("x",), ((1, 10),)
    )


def test_limits_are_reflections_that_all_data_sets_have():
    a = intensities("P212121", [(1, 1, 0), (2, 0, 0), (3, 1, 1), (-5, 1, 2)])
    b = intensities("P212121", [(-2, 0, 0), (5, -1, -2), (8, 1, 1)])
    d_max, d_min = common_resolution([a, b])
    assert d_max == pytest.approx(5.0)
    assert d_min == pytest.approx(1 / math.sqrt(25 / 100 + 1 / 121 + 4 / 144))


def test_different_crystals_are_refused():
    a, b = intensities("P212121", [(2, 0, 0)]), intensities("P21212", [(2, 0, 0)])
    with pytest.raises(ValueError, match=r"P212121 and P21212 differ .*\(P 21 21 21, cell 10.00"):
        in_one_cell([a, b])
    with pytest.raises(ValueError, match="differ in unit cell"):
        in_one_cell([a, intensities("P212121", [(2, 0, 0)], (10.5, 11, 12, 90, 90, 90))])


def test_small_differences_of_the_cell_do_not_move_the_shells():
    a = intensities("P212121", [(2, 0, 0)])
    b = intensities("P212121", [(2, 0, 0)], (10.01, 11, 12, 90, 90, 90))
    same = in_one_cell([a, b])
    assert same[1].intensities.d_spacings().data()[0] == 5.0


def test_data_without_equivalents_are_refused_by_name():
    lone = intensities("P212121", [(1, 1, 1), (2, 1, 3)])
    with pytest.raises(ValueError, match="P212121: .*no equivalent reflections"):
        merging_statistics(lone, 10, 1)


def test_blocks_hold_about_so_many_observations_in_the_sparsest_data():
    dense, sparse = intensities("P1", [(1, 1, 1)] * 50), intensities("P1", [(1, 1, 1)] * 5)
    assert block_width([dense], 10) == 2
    assert block_width([dense, sparse], 10) == 20
    assert block_width([dense], 1) == 1


def test_what_is_not_scaled_is_refused(l_cysteine):
    with pytest.raises(ValueError, match=r"sweep_20.refl is not scaled .*run dials.scale"):
        load_scaled("raw", l_cysteine / "sweep_20.expt", l_cysteine / "sweep_20.refl")
