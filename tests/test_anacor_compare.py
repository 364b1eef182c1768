from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("dials")

from dials.array_family import flex
from dials.util import Sorry

from anacor_dials.command_line import anacor_compare
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
from anacor_dials.report import comparison
from anacor_dials.report.comparison import figures, record
from anacor_dials.report.page import plain

FAST = (
    "d_min=0.8",
    "scaling.full_matrix=False",
    "scaling.options=error_model=None intensity_choice=profile outlier_rejection=simple "
    "physical.decay_correction=False output.html=None",
    "nproc=2",
)


def write_attenuated(
    l_cysteine: Path, sweep: int, folder: Path, name: str, power: float = 1.0
) -> tuple[Path, Path]:
    """A real sweep of which made-up factors have been taken; the column holds them to a power."""
    table = flex.reflection_table.from_file(str(l_cysteine / f"sweep_{sweep}.refl"))
    s1 = table["s1"].as_numpy_array().reshape(-1, 3)
    x, y, _ = (s1 / np.maximum(np.linalg.norm(s1, axis=1), 1e-9)[:, None]).T
    phi = table["xyzcal.mm"].parts()[2].as_numpy_array()
    depth = 1.2 * (1 + 0.6 * np.cos(phi - 0.3)) * (1 + 0.5 * x + 0.4 * y * np.sin(phi))
    transmission = flex.double(np.exp(-depth))
    table["analytical_correction"] = flex.double(np.exp(-power * depth))
    for kind in ("prf", "sum"):
        table[f"intensity.{kind}.value"] *= transmission
        table[f"intensity.{kind}.variance"] *= transmission * transmission
    path = folder / f"{name}.refl"
    table.as_file(str(path))
    experiments = folder / f"{name}.expt"
    experiments.write_bytes((l_cysteine / f"sweep_{sweep}.expt").read_bytes())
    return experiments, path


@pytest.fixture(scope="module")
def l_cysteine(shared_data):
    return shared_data / "l_cysteine"


@pytest.fixture(scope="module")
def corrected(l_cysteine, tmp_path_factory):
    return write_attenuated(l_cysteine, 25, tmp_path_factory.mktemp("data"), "corrected")


# ---- the command ----


@pytest.fixture(scope="module")
def finished_run(corrected, tmp_path_factory):
    """Folder and printed text of a run with two strategies."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        anacor_compare.run(
            [str(path) for path in corrected] + ["strategies=none+analytical", *FAST]
        )
    return folder, (folder / "anacor_compare.log").read_text()


def test_the_command_writes_what_it_says(finished_run):
    folder, _ = finished_run
    made = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert made == {
        "anacor_compare.log",
        "anacor_compare.html",
        "anacor_compare.json",
        *(
            f"anacor_compare/{strategy}/{name}"
            for strategy in ("none", "analytical")
            for name in ("scaled.expt", "scaled.refl", "dials.scale.log")
        ),
    }


def test_json_and_printed_table_say_that_the_correction_helped(finished_run):
    folder, printed = finished_run
    result = json.loads((folder / "anacor_compare.json").read_text())
    assert result["columns"] == ["none", "analytical"]
    none, analytical = result["strategies"]
    assert none["table_1"]["Rmeas(I)"][0] > 1.5 * analytical["table_1"]["Rmeas(I)"][0]
    assert {row["name"]: row["best"] for row in result["table"]}["Rmeas"] == ["analytical"]
    cells = {row["name"]: row["cells"] for row in result["table"]}["Rmeas"]
    assert f"{none['table_1']['Rmeas(I)'][0]:.3f} (" in cells[0]
    line = next(line for line in printed.splitlines() if line.startswith("Rmeas"))
    assert line.split()[1] == cells[0].split()[0]
    assert line.endswith(f"{cells[1]}*")
    assert result["d_min"] >= 0.8
    assert len(none["by_resolution"]["r_meas"]) == result["n_bins"] == 20
    assert {len(v) for v in none["by_image"][0].values() if isinstance(v, list)} == {
        len(none["by_image"][0]["images"])
    }


def test_statistics_of_the_same_observations_stand_below(finished_run):
    folder, printed = finished_run
    result = json.loads((folder / "anacor_compare.json").read_text())
    same = result["same_observations"]
    none, analytical = result["strategies"]
    # all that both have, less what both reject: more than either keeps
    assert same["observations"] >= max(
        s["table_1"]["Total observations"][0] for s in (none, analytical)
    )
    r_meas = [same["values"][label]["r_meas"] for label in result["columns"]]
    assert r_meas[0] >= none["table_1"]["Rmeas(I)"][0]
    assert r_meas[0] > 1.5 * r_meas[1]
    (line,) = (line for line in printed.splitlines() if line.startswith("Rmeas, same observations"))
    assert line.split()[-2:] == [f"{r_meas[0]:.3f}", f"{r_meas[1]:.3f}*"]
    assert f"the {same['observations']} that at least one of them keeps" in printed
    assert "Rmeas, same observations" in (folder / "anacor_compare.html").read_text()


def test_log_has_the_changed_parameters_and_the_command_lines(finished_run):
    _, printed = finished_run
    assert "strategies = *none sh_low" in printed
    commands = re.findall(r"^ *(dials\.scale .*)$", printed, re.MULTILINE)
    assert len(commands) == 2
    assert all("cut_data.d_min=0.8" in c and "full_matrix=False" in c for c in commands)
    assert sum("physical.analytical_correction=True" in c for c in commands) == 1


def test_html_has_the_table_with_its_marks_and_all_plots(finished_run):
    folder, _ = finished_run
    html = (folder / "anacor_compare.html").read_text()
    for name in ("Rmeas", "Completeness", "Anomalous slope", "Unique reflections"):
        assert name in html
    for text in ("Against resolution", "Against image number", "Inverse scale factor"):
        assert text in html
    assert "dials.scale" in html


def test_a_strategy_that_fails_is_shown_and_the_others_stand(l_cysteine, tmp_path, monkeypatch):
    """Data that were never corrected: the analytical strategy has no column to work with."""
    monkeypatch.chdir(tmp_path)
    data = [str(l_cysteine / f"sweep_25.{kind}") for kind in ("expt", "refl")]
    anacor_compare.run([*data, "strategies=none+analytical", *FAST])
    result = json.loads(Path("anacor_compare.json").read_text())
    none, analytical = result["strategies"]
    assert none["succeeded"]
    assert not analytical["succeeded"]
    assert "no column analytical_correction" in analytical["reason"]
    assert result["columns"] == ["none"]
    assert "no column analytical_correction" in Path("anacor_compare.html").read_text()
    assert re.search(r"analytical failed: .*sweep_25.refl", Path("anacor_compare.log").read_text())


def test_nothing_is_written_when_all_fail(l_cysteine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("anacor_compare.json").write_text("of an earlier run")
    data = [str(l_cysteine / f"sweep_25.{kind}") for kind in ("expt", "refl")]
    with pytest.raises(Sorry, match="No strategy succeeded. analytical: .*no column"):
        anacor_compare.run([*data, "strategies=analytical"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "anacor_compare.json",
        "anacor_compare.log",
    }
    assert Path("anacor_compare.json").read_text() == "of an earlier run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["labels=a,b"],
            "1 experiment files and 1 reflection files cannot be divided among 2 labels",
        ),
        (["output.html=nowhere/a.html"], "folder .*nowhere does not exist"),
        (["strategies=sh_low", "scaling.model=KB"], "model KB has none"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    corrected, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Sorry, match=message):
        anacor_compare.run([str(path) for path in corrected] + arguments)
    assert {path.name for path in tmp_path.iterdir()} <= {"anacor_compare.log"}


def test_no_input_prints_the_help(capsys):
    with pytest.raises(SystemExit) as stop:
        anacor_compare.run([])
    assert stop.value.code == 1
    assert "dials.anacor_compare corrected.expt corrected.refl" in capsys.readouterr().out


@pytest.mark.slow
def test_label_sources_side_by_side(l_cysteine, tmp_path, monkeypatch):
    """Right factors beside factors of half the depth; what needs no factors is scaled once."""
    right = write_attenuated(l_cysteine, 25, tmp_path, "right")
    half = write_attenuated(l_cysteine, 25, tmp_path, "half", 0.5)
    monkeypatch.chdir(tmp_path)
    files = [str(path) for path in (*right, *half)]
    anacor_compare.run([*files, "labels=by hand,network", "strategies=none+analytical", *FAST])
    result = json.loads(Path("anacor_compare.json").read_text())
    assert result["columns"] == ["none", "analytical: by hand", "analytical: network"]
    none, by_hand, network = (entry["table_1"]["Rmeas(I)"][0] for entry in result["strategies"])
    assert by_hand < 0.9 * network < 0.9 * none


@pytest.mark.slow
def test_four_sweeps_by_all_strategies(l_cysteine, tmp_path, monkeypatch):
    """The whole job on the four l-cysteine sweeps: only the factors bring back what was there."""
    files = [
        str(path)
        for sweep in (20, 25, 30, 35)
        for path in write_attenuated(l_cysteine, sweep, tmp_path, f"sweep_{sweep}")
    ]
    monkeypatch.chdir(tmp_path)
    every = "+".join(STRATEGIES)
    anacor_compare.run([*files, f"strategies={every}", "scaling.full_matrix=False", "nproc=2"])
    result = json.loads(Path("anacor_compare.json").read_text())
    r_meas = {e["strategy"]: e["table_1"]["Rmeas(I)"][0] for e in result["strategies"]}
    i_over_sigma = {e["strategy"]: e["table_1"]["I/sigma"][0] for e in result["strategies"]}
    assert set(r_meas) == set(STRATEGIES)
    assert r_meas["analytical"] < 0.045
    assert r_meas["none"] > 2 * r_meas["analytical"]
    assert r_meas["sh_high"] < r_meas["sh_medium"] < r_meas["sh_low"] <= 1.02 * r_meas["none"]
    assert r_meas["analytical"] < r_meas["sh_high"]
    assert i_over_sigma["analytical"] > 2 * i_over_sigma["none"]
    assert [len(entry["by_image"]) for entry in result["strategies"]] == [4] * 6


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
    shells = {name: np.array([1.0, 2.0]) for name in comparison.RESOLUTION_FIGURES}
    shells |= {"d_max": np.array([50.0, 2.5]), "d_min": np.array([2.5, 2.0])}
    shells["cc_anomalous"] = np.array([0.1, np.nan])
    series = tuple(
        ImageSeries(
            name, np.array([5.0, 15.0]), np.array([scale, 1.0]), *[np.array([0.1, 0.2])] * 2
        )
        for name in ("sweep1", "sweep2")
    )
    return MergingStatistics(label, 50.0, 2.0, {"Rmeas(I)": (0.1, 0.1, None)}, shells, series)


def test_figures_have_one_line_per_data_set():
    made = plain(figures([statistics_of("none", 0.5), statistics_of("analytical", 0.8)]))
    for figure in made.values():
        assert [line["name"] for line in figure["data"]] == ["none", "analytical"]
        assert all(len(line["x"]) == len(line["y"]) for line in figure["data"])
    resolution = made["r_meas_against_resolution"]
    assert resolution["data"][0]["x"] == pytest.approx([(1 / 2500 + 0.16) / 2, (0.16 + 0.25) / 2])
    assert resolution["layout"]["xaxis"]["ticktext"][0] == "50.00"
    assert resolution["layout"]["xaxis"]["ticktext"][-1] == "2.00"
    assert made["cc_anomalous_against_resolution"]["data"][0]["y"] == [0.1, None]
    image = made["scale_against_image"]["data"][1]
    assert image["x"] == [5, 15, 20, 30]  # the second sweep begins where the first ends
    assert image["y"] == pytest.approx([0.8 / 0.9, 1 / 0.9, 0.8 / 0.9, 1 / 0.9])
    assert image["text"][2] == "sweep2: 5"


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
