"""What is scaled to be compared, and what becomes of data that cannot be merged."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("dials")

from dials.array_family import flex

from anacor_dials.diffraction import scaling
from anacor_dials.diffraction.merging import ImageSeries, MergingStatistics
from anacor_dials.diffraction.scaling import STRATEGIES
from anacor_dials.jobs import compare
from anacor_dials.jobs.compare import (
    DataSource,
    data_sources,
    scale_and_compare,
    scaling_jobs,
)
from anacor_dials.report.comparison import RESOLUTION_FIGURES, record
from anacor_dials.report.page import plain

# ---- what is to be run ----


def experiment_file(folder: Path, name: str, *identifiers: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"experiment": [{"identifier": i} for i in identifiers]}))
    return path


def test_files_without_labels_are_one_data_source(tmp_path):
    expts = [experiment_file(tmp_path, f"{n}.expt", n) for n in "ab"]
    assert data_sources(expts, ["a.refl", "b.refl"]) == [
        DataSource("", tuple(expts), (Path("a.refl"), Path("b.refl")))
    ]
    blank = [experiment_file(tmp_path, f"{n}.expt", "") for n in "ab"]
    assert len(data_sources(blank, ["a.refl", "b.refl"])) == 1


def test_experiments_that_occur_again_are_another_source(tmp_path):
    expts = [experiment_file(tmp_path, f"{n}.expt", *ids) for n, ids in (("a", "12"), ("b", "12"))]
    sources = data_sources(expts, ["manual.refl", "network.refl"])
    assert [source.label for source in sources] == ["manual", "network"]
    sources = data_sources(expts, [tmp_path / "u/c.refl", tmp_path / "v/c.refl"])
    assert [source.label for source in sources] == ["u", "v"]


def test_labels_divide_the_files_in_their_order(tmp_path):
    names = ["a1", "a2", "b1", "b2"]
    expts = [experiment_file(tmp_path, f"{name}.expt", name[1]) for name in names]
    first, second = data_sources(expts, [f"{name}.refl" for name in names], ["x", "y"])
    assert first == DataSource("x", tuple(expts[:2]), (Path("a1.refl"), Path("a2.refl")))
    assert second.label == "y"
    # one table for all sweeps of a source will do
    assert data_sources(expts, ["a.refl", "b.refl"], ["x", "y"])[1].reflections == (Path("b.refl"),)


def test_sources_of_different_experiments_are_refused(tmp_path):
    expts = [experiment_file(tmp_path, f"{name}.expt", name) for name in "ab"]
    with pytest.raises(ValueError, match=r"a.expt and .*b.expt hold different experiments"):
        data_sources(expts, ["a.refl", "b.refl"], ["x", "y"])
    with pytest.raises(ValueError, match="labels x, x are not all different"):
        data_sources(expts, ["a.refl", "b.refl"], ["x", "x"])
    (tmp_path / "c.expt").write_text("no JSON")
    with pytest.raises(ValueError, match="c.expt is no experiment list"):
        data_sources([tmp_path / "c.expt"], ["c.refl"])


def table_file(folder: Path, name: str, intensity: float) -> Path:
    table = flex.reflection_table()
    table["intensity.sum.value"] = flex.double(3, intensity)
    table.as_file(str(folder / name))
    return folder / name


def test_strategies_without_factors_run_once(tmp_path):
    tables = [table_file(tmp_path, f"{i}.refl", 7.0) for i in range(2)]
    sources = [DataSource(n, (Path("a.expt"),), (t,)) for n, t in zip("xy", tables, strict=True)]
    jobs = scaling_jobs(sources, [STRATEGIES["none"], STRATEGIES["analytical"]], tmp_path / "out")
    assert [job.label for job in jobs] == ["none", "analytical: x", "analytical: y"]
    assert [job.folder.name for job in jobs] == ["none", "analytical_x", "analytical_y"]
    assert [job.reflections[0] for job in jobs] == [tables[0], *tables]


def test_sources_with_different_intensities_run_each(tmp_path):
    tables = [table_file(tmp_path, f"{i}.refl", 7.0 + i) for i in range(2)]
    sources = [DataSource(n, (Path("a.expt"),), (t,)) for n, t in zip("xy", tables, strict=True)]
    jobs = scaling_jobs(sources, [STRATEGIES["none"]], tmp_path / "out")
    assert [job.label for job in jobs] == ["none: x", "none: y"]
    with pytest.raises(ValueError, match="No strategy was asked for"):
        scaling_jobs(sources, [], tmp_path)


# ---- its result ----


def statistics_of(label: str, scale: float) -> MergingStatistics:
    shells = {name: np.array([1.0, 2.0]) for name in RESOLUTION_FIGURES}
    shells |= {"d_max": np.array([50.0, 2.5]), "d_min": np.array([2.5, 2.0])}
    shells["cc_anomalous"] = np.array([0.1, np.nan])
    series = tuple(
        ImageSeries(
            name, np.array([5.0, 15.0]), np.array([scale, 1.0]), *[np.array([0.1, 0.2])] * 2
        )
        for name in ("sweep1", "sweep2")
    )
    return MergingStatistics(label, 50.0, 2.0, {"Rmeas(I)": (0.1, 0.1, None)}, shells, series)


def test_a_data_set_that_cannot_be_merged_is_a_failure(monkeypatch, tmp_path):
    def outcome(name):
        path = tmp_path / name
        return scaling.ScaledData(
            name, STRATEGIES["none"], ("dials.scale",), path, path, path, None, 1
        )

    def merge(one, *limits):
        if one.label == "bad":
            raise ValueError("no equivalents")
        return statistics_of(one.label, 1.0)

    monkeypatch.setattr(compare, "scale_all", lambda *_: [outcome("good"), outcome("bad")])
    monkeypatch.setattr(compare, "load_scaled", lambda label, *_: SimpleNamespace(label=label))
    monkeypatch.setattr(compare, "in_one_cell", lambda data: data)
    monkeypatch.setattr(compare, "block_width", lambda data: 1)
    monkeypatch.setattr(compare, "common_resolution", lambda data, d_min: (50.0, 2.0))
    monkeypatch.setattr(compare, "merging_statistics", merge)
    steps = []
    monkeypatch.setattr(
        compare,
        "statistics_of_same_observations",
        lambda files, *limits: ({label: {"r_meas": 0.1} for label in files}, 7),
    )
    result = scale_and_compare([], progress=steps.append)
    assert result.failed == {"bad": "scaled, not merged: no equivalents"}
    assert [one.label for one in result.statistics] == ["good"]
    good, bad = json.loads(json.dumps(plain(record(result)), allow_nan=False))["strategies"]
    assert good["table_1"]["Rmeas(I)"] == [0.1, 0.1, None]
    assert good["by_resolution"]["cc_anomalous"] == [0.1, None]
    assert good["by_image"][1]["identifier"] == "sweep2"
    assert bad["reason"] == "scaled, not merged: no equivalents"
