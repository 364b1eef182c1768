"""The proof in examples/virtual_thaumatin: its steps, its commands, its tables, and (slow) its pattern."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("dials", reason="the example needs DIALS")

import iotbx.mtz
from dials.array_family import flex
from dxtbx.model import ExperimentList

from anacor_dials.command_line import anacor_absorption, anacor_compare, xia2_anacor
from anacor_dials.jobs.records import ComparisonRecord, pipeline_schema, read_record

MODULES = {"import": "dials_import"}  # where a module is not called as its command
LONGEST_WAIT = 1800.0  # seconds; a busy machine is slow
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "virtual_thaumatin"


def loaded(name: str) -> ModuleType:
    """A module of the example, as it is when the script is run."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results():
    yield loaded("results")
    del sys.modules["results"]


@pytest.fixture(scope="module")
def example(results):
    yield loaded("virtual_thaumatin")
    del sys.modules["virtual_thaumatin"]


# ---- steps ---------------------------------------------------------------------------------------


@pytest.fixture
def copying(example, tmp_path):
    """A step that appends a line to a file it makes, from one that it reads."""
    (tmp_path / "given").write_text("something")
    code = "open('made', 'a').write('x')"
    return example.Step(
        "copy",
        (sys.executable, "-c", code),
        tmp_path,
        (tmp_path / "given",),
        (tmp_path / "made",),
    )


def test_a_step_is_run_once(example, copying, tmp_path):
    for _ in range(3):
        example.run_step(copying, tmp_path)
    assert (tmp_path / "made").read_text() == "x"
    log = (tmp_path / "copy.log").read_text()
    assert log.startswith(f"$ {shlex.join(copying.command)}\n")


def test_a_step_is_run_again_where_it_reads_something_newer(example, copying, tmp_path):
    example.run_step(copying, tmp_path)
    later = (tmp_path / "made").stat().st_mtime + 10
    os.utime(tmp_path / "given", (later, later))
    example.run_step(copying, tmp_path)
    assert (tmp_path / "made").read_text() == "xx"


def test_a_step_is_run_again_where_its_command_differs(example, copying, tmp_path):
    example.run_step(copying, tmp_path)
    other = example.Step(
        copying.name, (*copying.command, "more"), tmp_path, copying.reads, copying.makes
    )
    example.run_step(other, tmp_path)
    example.run_step(other, tmp_path)
    assert (tmp_path / "made").read_text() == "xx"


@pytest.mark.parametrize(
    ("code", "reason"),
    [("print('no'); raise SystemExit(3)", "exit status 3"), ("print('no')", "made not made")],
)
def test_a_step_that_fails_ends_the_run_and_is_not_done(example, copying, tmp_path, code, reason):
    step = example.Step("bad", (sys.executable, "-c", code), tmp_path, copying.reads, copying.makes)
    with pytest.raises(SystemExit, match=rf"no\n.*{reason}.*bad.failed.log"):
        example.run_step(step, tmp_path)
    assert not (tmp_path / "bad.log").exists()
    assert "no" in (tmp_path / "bad.failed.log").read_text()


@pytest.mark.parametrize("setting", ["small", "images"])
def test_what_a_step_reads_is_given_or_made_by_an_earlier_one(example, tmp_path, setting):
    given = example.arguments([str(tmp_path), "--setting", setting, "--sam2", "hub/name"])
    made = set()
    steps = example.steps_of(given, tmp_path)
    for step in steps:
        for path in step.reads:
            assert path in made or path.suffix == ".safetensors"
        made |= set(step.makes)
    assert len({step.name for step in steps}) == len(steps)
    assert any("sam2.checkpoint=hub/name" in step.command for step in steps)
    assert f"labels={example.TRUTH},{example.NETWORK},{example.SAM2}" in steps[-1].command


def test_the_weights_that_ship_are_read(example, tmp_path):
    step = next(
        s for s in example.steps_of(example.arguments([str(tmp_path)]), tmp_path)
        if s.name == "segment_anacornet"
    )  # fmt: skip
    weights = [path for path in step.reads if path.suffix == ".safetensors"]
    assert weights
    assert all(path.is_file() for path in weights)


@pytest.mark.parametrize("setting", ["small", "large", "images"])
def test_every_parameter_is_one_of_its_command(example, tmp_path, setting):
    given = example.arguments([str(tmp_path), "--setting", setting, "--sam2", "hub/name"])
    for step in example.steps_of(given, tmp_path):
        name = step.command[0].removeprefix("dials.")
        package = "anacor_dials" if name.startswith("anacor") else "dials"
        module = importlib.import_module(f"{package}.command_line.{MODULES.get(name, name)}")
        interpreter = module.phil_scope.command_line_argument_interpreter()
        for argument in step.command[1:]:
            if "=" in argument:
                module.phil_scope.fetch(interpreter.process(argument)).extract()


def test_the_samples_fit_their_images(example, tmp_path):
    """The sample of each setting is drawn, as the command draws it, and lies within the images.

    A crystal with thaumatin's habit is a bipyramid: the normals of all its planes are reciprocal
    vectors {1 0 1}.
    """
    from anacor_dials.command_line import anacor_simulate
    from anacor_dials.simulation.batch import scan_jobs

    for setting in example.SETTINGS:
        given = example.arguments([str(tmp_path), "--setting", setting])
        command = example.steps_of(given, tmp_path)[0].command[1:]
        scope = anacor_simulate.phil_scope
        interpreter = scope.command_line_argument_interpreter()
        params = scope.fetch(sources=[interpreter.process(a) for a in command]).extract()
        recipe = anacor_simulate.sample_recipe(params)
        settings = anacor_simulate.scan_settings(params)
        [job] = scan_jobs(recipe, settings, params.seed, 1, "virtual")
        sample = job.sample()
        size = np.ptp(sample.bounds_um("crystal"), axis=0)
        assert 25 < np.cbrt(size.prod()) < 150
        assert (sample.lattice is None) == (setting == "images")
        if sample.lattice is None:
            continue
        (mesh,) = sample.of("crystal")
        p, q, r = mesh.corners
        indices = np.cross(q - p, r - p) @ sample.lattice.axes  # n . a, n . b, n . c up to a factor
        indices /= np.abs(indices).max(axis=1)[:, None]
        np.testing.assert_allclose(np.abs(indices[:, 2]), 1, atol=1e-6)
        np.testing.assert_allclose(
            np.sort(np.abs(indices[:, :2])), np.tile([0, 1], (len(indices), 1)), atol=1e-6
        )
        assert len(np.unique(np.round(indices), axis=0)) == 8


def test_images_are_integrated_before_they_are_corrected(example, tmp_path):
    """Each step of DIALS reads what the one before wrote; the factors are of integrated data."""
    given = example.arguments([str(tmp_path), "--setting", "images", "--only-truth"])
    steps = example.steps_of(given, tmp_path)
    names = [step.name for step in steps]
    assert names == [
        "simulate", "import", "find_spots", "index", "refine", "integrate", "symmetry", "reindex",
        "absorption_truth", "compare",
    ]  # fmt: skip
    by_name = dict(zip(names, steps, strict=True))
    assert by_name["import"].reads[0] in by_name["simulate"].makes
    for before, after in zip(names[1:8], names[2:9], strict=True):
        assert set(by_name[before].makes) <= set(by_name[after].reads), after


# ---- tables ----------------------------------------------------------------------------------------


def judged(results, label: str, cc: float, peak: float):
    shells = {
        name: np.array([cc, cc - 0.1]) for name in ("cc_intensities", "r_intensities", "cc_anomalous")
    }  # fmt: skip
    one = results.Agreement(cc, 1 - cc, cc, 100, 40, shells)
    return results.Judged(label, {"Rmeas(I)": [0.1, 0.1, 0.2]}, one, np.array([peak, 3.0]))


def test_rows_are_those_of_the_comparison_and_of_the_truth(results):
    comparison = {
        "columns": ["none", "failed to judge", "analytical: truth"],
        "table": [{"name": "Rmeas", "cells": ["0.3", "x", "0.1"], "best": ["analytical: truth"]}],
    }
    both = [judged(results, "none", 0.8, 3.0), judged(results, "analytical: truth", 0.9, 9.0)]
    rows = results.table_rows(both, comparison)
    assert rows[0] == ("Rmeas", ["0.3", "0.1"], [False, True])
    by_name = {name: (cells, best) for name, cells, best in rows[1:]}
    assert by_name["CC with true intensities"] == (
        ["0.8000 (0.7000)", "0.9000 (0.8000)"],
        [False, True],
    )
    assert by_name["R against true intensities"][1] == [False, True]  # the smaller one
    assert by_name["Mean anomalous peak at S (sigma)"][0] == ["3.00", "6.00"]
    assert by_name["S atoms above 4 sigma"][0] == ["0", "1"]
    table = results.markdown(["none", "truth"], rows).splitlines()
    assert table[0] == "|  | none | truth |"
    assert table[2] == "| Rmeas | 0.3 | **0.1** |"
    assert {line.count("|") for line in table} == {4}


def test_nearness_is_relative_to_the_truth(results):
    def one(label, r_meas):
        return results.Judged(label, {"Rmeas(I)": [r_meas, 0.1, 0.1]}, None, None)

    both = [one("none", 0.5), one("analytical: truth", 0.040), one("analytical: AnACorNet", 0.042)]
    assert results.nearness(both, ["AnACorNet"]) == (
        "Rmeas of AnACorNet against that of the truth: +5.0 % (analytical)."
    )
    assert results.nearness(both[:2], ["AnACorNet"]) == ""


def test_faces_are_named_by_their_forms(results):
    def face(hkl, angle, lattice_plane=True):
        return {"hkl": hkl, "angle_deg": angle, "lattice_plane": lattice_plane}

    faces = [face([1, 0, 1], 0.1), face([0, -1, 1], 0.31), face([0.3, 0.2, 1], 0.0, False)]
    crystal = {"reason_for_no_faces": None, "faces": faces}
    assert results.faces_found({"faces": {"crystals": [crystal]}}) == (
        "2 {1 0 1}, 1 no lattice plane (within 0.3°)"
    )
    others = {"reason_for_no_faces": None, "faces": faces[2:]}
    assert results.faces_found({"faces": {"crystals": [others]}}) == "1 no lattice plane"
    thawed = {"reason_for_no_faces": "it is rounded", "faces": faces}
    assert results.faces_found({"faces": {"crystals": [thawed]}}) == "none"


def test_figures_of_a_document_are_replaced(results):
    document = f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n"
    new = results.with_figures(document, "new")
    assert new == f"before\n{results.BEGIN}\nnew\n{results.END}\nafter\n"
    assert results.with_figures(new, "new") == new
    with pytest.raises(ValueError, match="lacks the marks"):
        results.with_figures("nothing", "new")


def test_the_document_has_a_place_for_the_figures(example, capsys):
    docs = EXAMPLE.parents[1] / "docs" / "virtual_thaumatin.md"
    assert example.arguments(["--docs", str(docs)]).docs == docs
    with pytest.raises(SystemExit):
        example.arguments(["--docs", str(EXAMPLE / "README.md")])
    assert "lacks the marks" in capsys.readouterr().err


# ---- the proof ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_absorption_ruins_the_data_and_labels_mend_them(example, tmp_path, capsys):
    judged = {one.label: one for one in example.main([str(tmp_path / "run")])}
    none, harmonics = judged["none"], judged["SH high"]
    truth, network = (judged[f"analytical: {label}"] for label in (example.TRUTH, example.NETWORK))

    def r_meas(one) -> float:
        return one.table_1["Rmeas(I)"][0]

    assert r_meas(none) > 1.5 * r_meas(truth)
    assert r_meas(harmonics) > r_meas(truth)
    assert r_meas(network) < 1.03 * r_meas(truth)
    with_both = [judged[f"analytical + SH: {label}"] for label in (example.NETWORK, example.TRUTH)]
    assert r_meas(with_both[0]) < 1.02 * r_meas(with_both[1])
    for one in (none, harmonics):
        assert one.agreement.r_intensities > truth.agreement.r_intensities
        assert one.agreement.cc_anomalous < truth.agreement.cc_anomalous
        assert one.peaks.mean() < truth.peaks.mean()
    assert none.agreement.cc_intensities < truth.agreement.cc_intensities
    assert truth.agreement.cc_intensities > 0.995
    assert network.peaks.mean() > 0.9 * truth.peaks.mean()
    assert truth.peaks.mean() > 4

    for label in ("truth", "anacornet"):
        assert_faces_are_101(tmp_path / "run" / label)
    for name in ("html", "json", "md"):
        assert (tmp_path / "run" / f"virtual_thaumatin.{name}").stat().st_size > 1000
    capsys.readouterr()
    example.main([str(tmp_path / "run")])  # nothing is done twice
    assert capsys.readouterr().out.count("done before") == 5


def assert_faces_are_101(folder: Path) -> None:
    """All faces found in the labels are planes {1 0 1} or {0 1 1} of the data's orientation matrix."""
    (crystal,) = json.loads((folder / "anacor_absorption.json").read_text())["faces"]["crystals"]
    assert crystal["reason_for_no_faces"] is None
    indices = np.abs([face["hkl"] for face in crystal["faces"]])
    assert all(face["lattice_plane"] for face in crystal["faces"])
    assert max(face["angle_deg"] for face in crystal["faces"]) < 2.0
    assert len(indices) == 8
    np.testing.assert_array_equal(np.sort(indices[:, :2]), np.tile([0, 1], (8, 1)))
    np.testing.assert_array_equal(indices[:, 2], 1)


@pytest.fixture(scope="module")
def images(example, tmp_path_factory):
    """The folder of a run that has simulated images and scan, and done nothing with them."""
    run = tmp_path_factory.mktemp("from_images") / "run"
    (run / "logs").mkdir(parents=True)
    given = example.arguments([str(run), "--setting", "images"])
    example.run_step(example.steps_of(given, run)[0], run / "logs")
    return run


@pytest.fixture(scope="module")
def from_images(example, images):
    """A run from simulated images through DIALS to merged data, and {strategy: how it is judged}."""
    found = example.main([str(images), "--setting", "images", "--only-truth"])
    return images, {one.label: one for one in found}


@pytest.fixture(scope="module")
def by_xia2(example, request):
    """The same run by xia2.anacor, from half of the images and the scan, and {strategy: ...}."""
    if shutil.which("xia2") is None:
        pytest.skip("Xia2 is not installed: there is no program xia2 on PATH.")
    run = request.getfixturevalue("images")
    found = example.main([str(run), "--setting", "images", "--xia2"])
    return run, {one.label: one for one in found}


@pytest.mark.slow
def test_from_images_to_merged_data(from_images, results):
    """The true labels restore what absorption ruined."""
    run, judged = from_images
    none, harmonics, truth = judged["none"], judged["SH high"], judged["analytical"]
    assert truth.table_1["Rmeas(I)"][0] < 0.6 * none.table_1["Rmeas(I)"][0]
    assert truth.table_1["CC half"][0] > 0.998
    for one in (none, harmonics):
        assert one.agreement.r_intensities > truth.agreement.r_intensities
        assert one.agreement.cc_anomalous < truth.agreement.cc_anomalous
    assert truth.agreement.r_intensities < 0.03
    assert truth.agreement.cc_intensities > 0.995
    table = flex.reflection_table.from_file(str(run / "truth" / "corrected.refl"))
    factors, true = results.factors_and_truth(table, run)
    assert len(factors) > 5000
    ratio = factors / true
    assert ratio.std() / ratio.mean() < 0.01


@pytest.mark.slow
def test_images_of_another_polarisation_than_is_said(from_images, example, tmp_path, monkeypatch):
    """Integrated with the normal turned by a right angle, log and page hint at it; else they do not.

    NXmx says nothing of polarisation: DIALS takes a normal along Y unless dials.import is given another one
    (geometry.beam.polarization_normal). Nothing before dials.integrate looks at it.
    """
    run, _ = from_images
    pattern, said = residual_pattern(run)
    assert pattern.cause == ""
    assert not any(HINT in text for text in said)
    for folder in ("images", "logs"):
        shutil.copytree(run / folder, tmp_path / folder)
    turn_polarisation(tmp_path / "images" / "refined.expt")
    done = []
    for step in example.integration_steps(run / "virtual_0001_sweep1.nxs", tmp_path, 2):
        if example.run_step(step, tmp_path / "logs"):
            done.append(step.name)
    assert done == ["integrate", "symmetry", "reindex"]
    monkeypatch.chdir(tmp_path)
    anacor_absorption.run([
        "images/reindexed.expt", "images/reindexed.refl", str(run / "virtual_0001_truth.h5"),
    ])  # fmt: skip
    anacor_compare.run([
        "corrected.expt", "corrected.refl", "strategies=analytical", "scaling.anomalous=True",
        "scaling.full_matrix=False", "nproc=1",
    ])  # fmt: skip
    pattern, said = residual_pattern(tmp_path)
    assert pattern.cause == "polarisation"
    assert abs(pattern.fitted_angle_deg) == pytest.approx(90, abs=3)
    assert all(HINT in text for text in said)


def turn_polarisation(path):
    """Turns the normal in a file of models by 90 degrees about the beam."""
    experiments = ExperimentList.from_file(str(path), check_format=False)
    (beam,) = experiments.beams()
    normal = np.cross(beam.get_polarization_normal(), beam.get_s0())
    beam.set_polarization_normal(tuple(normal / np.linalg.norm(normal)))
    experiments.as_file(str(path))


HINT = "fits a wrong polarisation better than absorption"


def residual_pattern(folder):
    """(the pattern that analytical factors leave, log and page) of dials.anacor_compare in a folder."""
    record = read_record(folder / "anacor_compare.json", ComparisonRecord)
    (pattern,) = [s.residual_pattern for s in record.strategies if s.strategy == "analytical"]
    texts = [(folder / f"anacor_compare.{kind}").read_text() for kind in ("log", "html")]
    return pattern, [" ".join(text.split()) for text in texts]


# ---- by one command, with the real xia2 ------------------------------------------------------------


@pytest.mark.slow
def test_one_command_from_images_and_scan_to_merged_data(by_xia2, results, monkeypatch):
    """xia2.anacor image=... tomography=...: xia2, segmentation and all that follows."""
    run, judged = by_xia2
    none, harmonics, analytical = (judged[name] for name in ("none", "SH high", "analytical"))
    for one in (none, harmonics):
        assert one.table_1["Rmeas(I)"][0] > analytical.table_1["Rmeas(I)"][0]
        assert one.agreement.r_intensities > 2 * analytical.agreement.r_intensities
        assert one.agreement.cc_anomalous < analytical.agreement.cc_anomalous
    assert analytical.agreement.r_intensities < 0.02
    assert (analytical.peaks > results.STRONG_PEAK).sum() > 12 > (none.peaks > 4).sum()
    table = flex.reflection_table.from_file(str(run / "anacor/DEFAULT/absorption/corrected.refl"))
    factors, true = results.factors_and_truth(table, run)
    assert len(factors) > 5000
    ratio = factors / true
    assert ratio.std() / ratio.mean() < 0.015

    content = validated(run / "anacor/anacor.json")
    (row,), (group,) = content["overview"], content["groups"]
    assert (row["crystal"], row["taken"]) == ("DEFAULT", "analytical")
    assert row["space_group"] in ("P 41 21 2", "P 43 21 2")
    # spots were simulated to 4.5 A, and integrated to the corners of the detector at 4.2 A
    assert group["wavelengths"][0]["d_min"] == pytest.approx(4.5, abs=0.07)
    merged = iotbx.mtz.object(group["wavelengths"][0]["files"]["merged MTZ"])
    assert merged.max_min_resolution()[1] == pytest.approx(group["wavelengths"][0]["d_min"], 1e-3)
    assert content["steps"][0]["name"] == "xia2"
    assert re.match(r"\d+\.\d+", content["program"]["xia2"])
    assert content["steps"][0]["versions"]["xia2"] == content["program"]["xia2"]

    monkeypatch.chdir(run)
    xia2_anacor.run([*content["arguments"], "nproc=1"])  # nothing is done twice
    assert not any(step["done_in_this_run"] for step in validated("anacor/anacor.json")["steps"])


def validated(path):
    """The content of anacor.json, which is as its schema says."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    content = json.loads(Path(path).read_text())
    jsonschema.Draft202012Validator(pipeline_schema()).validate(content)
    return content


@pytest.mark.slow
def test_a_watch_takes_what_xia2_left_and_goes_on_after_it_was_stopped(by_xia2, tmp_path):
    """The real programs: SIGTERM in the middle of a step ends it at once, and nothing is half done."""
    run, _ = by_xia2
    (tmp_path / "visit/tomo").mkdir(parents=True)
    shutil.copytree(run / "anacor/xia2", tmp_path / "visit/A/xia2")
    shutil.copy(run / "virtual_0001_truth.h5", tmp_path / "visit/tomo/A.h5")
    steps = tmp_path / "anacor/A"
    with watching(tmp_path) as process:
        until(lambda: any(steps.glob(".scale_*.running/*/.scaling-*")), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) != 0
    said = (tmp_path / "watch.log").read_text()
    assert "Stopped; the same command goes on from here" in said
    assert "Traceback" not in said
    assert not any(steps.glob("*.failed.log"))
    assert not any(steps.glob(".*"))
    before = json.loads((tmp_path / "anacor/steps.json").read_text())["steps"]
    assert "A/absorption" in before

    with watching(tmp_path) as process:
        until(lambda: (tmp_path / "anacor/anacor.csv").is_file(), process)
        # a second crystal, of which the scan comes later
        (tmp_path / "visit/B").mkdir()
        (tmp_path / "visit/B/xia2").symlink_to(run / "anacor/xia2")
        log = tmp_path / "watch.log"
        until(lambda: "B: waiting; it has no scan yet" in log.read_text(), process)
        shutil.copy(run / "virtual_0001_truth.h5", tmp_path / "visit/tomo/B.h5")
        until(lambda: "Crystals: 2 done, 0 failed" in log.read_text(), process)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    content = validated(tmp_path / "anacor/anacor.json")
    after = {step["name"]: step for step in content["steps"]}
    assert after["A/absorption"]["finished"] == before["A/absorption"]["finished"]
    rows = (tmp_path / "anacor/anacor.csv").read_text().splitlines()[1:]
    assert sorted(row.split(",")[0] for row in rows) == ["A", "B"]
    assert {row["taken"] for row in content["overview"]} == {"analytical"}


@contextmanager
def watching(folder):
    """xia2.anacor as it watches a folder, started in another process and killed at the end."""
    command = [
        "xia2.anacor", "watch=visit", "watch.tomography=tomo/CRYSTAL.h5", "watch.settled=1",
        "watch.every=0.5", "scaling.strategies=analytical", "scaling.full_matrix=False",
        "scaling.anomalous=True", "nproc=1",
    ]  # fmt: skip
    with (folder / "watch.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def until(happened, process):
    """Waits for something while a process runs."""
    end = time.monotonic() + LONGEST_WAIT
    while not happened():
        assert process.poll() is None, "the watch has ended"
        assert time.monotonic() < end
        time.sleep(0.05)
