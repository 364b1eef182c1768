from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dials")

from dials.array_family import flex
from dials.util import Sorry

from anacor_dials.command_line import anacor_compare
from anacor_dials.diffraction.scaling import STRATEGIES

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
