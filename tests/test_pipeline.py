"""The pipeline's mechanics: steps that are run once, the files of xia2, and what is run on what."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

import h5py
import numpy as np
from dxtbx.model import BeamFactory, Crystal, Experiment, ExperimentList

from anacor_dials.jobs.load_sample import StackSettings, has_labels
from anacor_dials.jobs.pipeline import contributions, inputs, merged_data, stages, steps
from anacor_dials.jobs.pipeline import crystals as side_by_side
from anacor_dials.jobs.pipeline.crystals import process
from anacor_dials.jobs.pipeline.inputs import (
    Crystal as CrystalFiles,
)
from anacor_dials.jobs.pipeline.inputs import (
    SweepFiles,
    assign_tomography,
    sweeps_of_directories,
    sweeps_of_files,
    sweeps_of_xia2,
)
from anacor_dials.jobs.pipeline.settings import PipelineSettings
from anacor_dials.jobs.pipeline.stages import integration
from anacor_dials.jobs.pipeline.steps import FinishedStep, Step, StepError, WorkingFolder
from anacor_dials.jobs.pipeline.wavelengths import wavelength_names
from anacor_dials.jobs.records import ComparisonRecord, SameObservationsRecord, StrategyRecord
from anacor_dials.report.page import write_json
from anacor_dials.sample.output_files import file_name
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.sample.volumes import LabelVolume, Tomogram

VERSIONS = {"anacor_dials": "1", "dials": "2"}


def work_in(folder: Path, redo: Sequence[str] = (), **versions: str) -> WorkingFolder:
    return WorkingFolder(folder / "work", VERSIONS | versions, redo)


# ---- steps ----------------------------------------------------------------------------------------


def copying(name: str, source: Path, *words: str) -> Step:
    """A real command: its output is its input and the words; each run adds a line to runs.txt."""
    code = (
        "import sys, pathlib; source, runs, *words = sys.argv[1:]\n"
        "print('copying')\n"
        "open(runs, 'a').write(words[0] + '\\n')\n"
        "text = pathlib.Path(source).read_text()\n"
        "pathlib.Path('half.txt').write_text('half')\n"
        "sys.exit('Sorry: it is\\nimpossible') if 'bad' in text else None\n"
        "pathlib.Path('out.txt').write_text(' '.join([text, *words]))\n"
    )
    runs = source.parent / "runs.txt" if source.name == "input.txt" else None
    runs = runs or source.parents[2] / "runs.txt"
    command = (sys.executable, "-c", code, str(source), str(runs), name, *words)
    return Step(name, command, (source,), ("out.txt",))


def chain(folder: Path, words: str = "", redo: Sequence[str] = (), **versions: str) -> list[str]:
    """first and other read input.txt, second reads what first wrote; returns what was run this time."""
    runs = folder / "runs.txt"
    runs.write_text("")
    work = work_in(folder, redo, **versions)
    done = work.run(copying("first", folder / "input.txt", *([words] if words else [])))
    work.run(copying("other", folder / "input.txt"))
    work.run(copying("second", done.path("out.txt")))
    return runs.read_text().split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "input.txt").write_text("text")
    return tmp_path


def test_a_step_is_run_once(folder: Path):
    assert chain(folder) == ["first", "other", "second"]
    assert (folder / "work/second/out.txt").read_text() == "text first second"
    assert (folder / "work/second/printed.log").read_text() == "copying\n"
    assert chain(folder) == []


def test_a_changed_parameter_redoes_what_depends_on_it(folder: Path):
    chain(folder)
    assert chain(folder, "more") == ["first", "second"]
    assert (folder / "work/second/out.txt").read_text() == "text first more second"
    assert chain(folder, "more") == []


def test_a_changed_input_redoes_its_steps_and_a_new_time_alone_none(folder: Path):
    chain(folder)
    (folder / "input.txt").write_text("text")
    assert chain(folder) == []
    (folder / "input.txt").write_text("TEXT")  # as long as before
    assert chain(folder) == ["first", "other", "second"]


def test_a_file_written_again_within_a_tick_of_the_clock_is_another(folder: Path):
    """As long as before, at the same time: the file system's clock has not ticked between."""
    chain(folder)
    before = (folder / "input.txt").stat().st_mtime_ns
    (folder / "input.txt").write_text("TEXT")
    os.utime(folder / "input.txt", ns=(before, before))
    assert chain(folder) == ["first", "other", "second"]


def test_a_file_that_stays_as_it_is_is_read_once(folder: Path):
    long_ago = time.time_ns() - 10**12
    os.utime(folder / "input.txt", ns=(long_ago, long_ago))
    chain(folder)
    known = json.loads((folder / "work/steps.json").read_text())["hashes"]
    assert str(folder / "input.txt") in known


def test_a_step_whose_result_stays_the_same_redoes_nothing_else(folder: Path):
    chain(folder)
    assert chain(folder, redo=["first"]) == ["first"]


def test_other_versions_redo_everything(folder: Path):
    chain(folder)
    assert chain(folder, dials="3") == ["first", "other", "second"]


def test_an_output_that_was_deleted_is_made_again(folder: Path):
    chain(folder)
    (folder / "work/first/out.txt").unlink()
    assert chain(folder) == ["first"]


def test_an_output_that_was_edited_is_not_overwritten(folder: Path):
    chain(folder)
    (folder / "work/first/out.txt").write_text("by hand")
    with pytest.raises(ValueError, match=r"first/out.txt was changed .* copy it elsewhere"):
        chain(folder, "more")
    assert (folder / "work/first/out.txt").read_text() == "by hand"


def test_a_run_goes_on_where_it_failed(folder: Path):
    """The first step's result is kept, the failed one leaves its log alone, the next run finishes."""
    work = work_in(folder)
    (folder / "bad.txt").write_text("bad")
    runs = folder / "runs.txt"
    work.run(copying("first", folder / "input.txt"))
    broken = Step(
        "second",
        tuple(
            word.replace("input.txt", "bad.txt")
            for word in copying("second", folder / "input.txt").command
        ),
        (folder / "bad.txt",),
        ("out.txt",),
    )
    with pytest.raises(StepError, match="status 1: it is impossible; log: .*second.failed.log"):
        work.run(broken)
    left = {path.name for path in (folder / "work").iterdir()}
    assert left == {"steps.json", "first", "second.failed.log"}
    assert "copying" in (folder / "work/second.failed.log").read_text()
    (folder / "bad.txt").write_text("good")
    runs.write_text("")
    work = work_in(folder)
    assert work.run(copying("first", folder / "input.txt")).why is None
    assert work.run(broken).why == "not done yet"
    assert runs.read_text().split() == ["second"]
    assert {path.name for path in (folder / "work").iterdir()} == {"steps.json", "first", "second"}


def test_outdated_results_do_not_outlive_a_failure(folder: Path):
    chain(folder)
    (folder / "input.txt").write_text("bad")
    with pytest.raises(StepError, match="impossible"):
        chain(folder)
    assert not (folder / "work/first").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no good.")])
def test_whatever_stops_a_step_leaves_nothing_half_done(folder: Path, error: BaseException):
    def perform(where: Path) -> None:
        (where / "out.txt").write_text("half")
        raise error

    work = work_in(folder)
    step = Step("first", ("doing",), (), ("out.txt",), perform=perform)
    with pytest.raises(StepError if isinstance(error, ValueError) else KeyboardInterrupt):
        work.run(step)
    assert [path.name for path in (folder / "work").iterdir()] == ["steps.json"]
    # and of a run that was killed
    (folder / "work/.first.running").mkdir()
    (folder / "work/.first.running/out.txt").write_text("half")
    whole = Step("first", ("doing",), (), ("out.txt",), perform=lambda w: (w / "out.txt").touch())
    work.run(whole)
    assert {p.name for p in (folder / "work").iterdir()} == {"steps.json", "first"}
    assert (folder / "work/first/out.txt").read_text() == ""


def test_a_step_without_its_outputs_has_failed(folder: Path):
    step = Step("first", (sys.executable, "-c", "print('fine')"), (), ("out.txt",))
    with pytest.raises(StepError, match=r"ended without an error but wrote no out.txt; log:"):
        work_in(folder).run(step)
    with pytest.raises(StepError, match="There is no program no.such_program"):
        work_in(folder).run(Step("first", ("no.such_program",), (), ("out.txt",)))
    with pytest.raises(ValueError, match="There is no file .*absent"):
        work_in(folder).run(Step("first", ("true",), (folder / "absent",), ("out.txt",)))


def test_the_number_of_processes_changes_nothing(folder: Path):
    def step(nproc: int) -> Step:
        code = "import sys; open('out.txt', 'w').write(sys.argv[1])"
        return Step("a", (sys.executable, "-c", code), (), ("out.txt",), (f"nproc={nproc}",))

    assert work_in(folder).run(step(1)).command_line.endswith("nproc=1")
    assert (folder / "work/a/out.txt").read_text() == "nproc=1"
    assert work_in(folder).run(step(8)).why is None


def test_steps_side_by_side(folder: Path):
    (folder / "bad.txt").write_text("bad")
    good = [copying(f"step{i}", folder / "input.txt") for i in range(3)]
    bad = Step(
        "bad",
        tuple(a.replace("input.txt", "bad.txt") for a in good[0].command),
        (folder / "bad.txt",),
        ("out.txt",),
    )
    work = work_in(folder)
    outcomes = work.run_all([good[0], bad, *good[1:]], 2)
    assert [step.name for step in work.finished] == ["step0", "step1", "step2"]
    assert [getattr(o, "name", "failed") for o in outcomes] == ["step0", "failed", "step1", "step2"]
    assert outcomes[1].log == folder / "work/bad.failed.log"
    assert set(json.loads((folder / "work/steps.json").read_text())["steps"]) == {
        "step0", "step1", "step2",
    }  # fmt: skip


def test_foreign_folders_are_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"holds files of something else .* another output"):
        work_in(tmp_path)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"thesis.tex is a file; name a folder"):
        WorkingFolder(tmp_path / "work/thesis.tex", VERSIONS)
    (tmp_path / "work/steps.json").write_text("{}")
    with pytest.raises(ValueError, match="steps.json is not readable as the record of a run"):
        work_in(tmp_path)
    with pytest.raises(ValueError, match="Cannot write to the folder"):
        WorkingFolder("/proc/anacor", VERSIONS)


def test_two_runs_do_not_share_a_folder(tmp_path: Path):
    first, second = work_in(tmp_path), work_in(tmp_path)
    with first.locked():
        with pytest.raises(ValueError, match="Another run works in"):
            with second.locked():
                pass
    with second.locked():
        pass


# ---- what goes in ---------------------------------------------------------------------------------


def sweep_files(stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("expt", "refl"):
        stem.with_name(f"{stem.name}.{kind}").touch()


def write_xia2(
    folder: Path, crystals: dict[str, dict[str, list[str]]], project: str = "AUTOMATIC"
) -> None:
    """A directory as xia2 leaves it, files empty: {crystal: {wavelength: [sweep]}}."""
    record = {
        "_name": project,
        "path": str(folder),
        "_crystals": {
            crystal: {
                "_name": crystal,
                "_wavelengths": {
                    wavelength: {
                        "_name": wavelength,
                        "_sweeps": [{"_name": sweep, "_integrater": None} for sweep in sweeps],
                    }
                    for wavelength, sweeps in wavelengths.items()
                },
            }
            for crystal, wavelengths in crystals.items()
        },
    }
    for crystal, wavelengths in crystals.items():
        sweep_files(folder / "DataFiles" / f"{project}_{crystal}_scaled")
        for wavelength, sweeps in wavelengths.items():
            for sweep in sweeps:
                sweep_files(folder / "DataFiles" / f"{project}_{crystal}_{wavelength}_{sweep}")
    (folder / "xia2.json").write_text(json.dumps(record))


LAYOUT = {"X1": {"LREM": ["SWEEP1", "SWEEP2"], "PEAK": ["SWEEP3"]}, "X2": {"LREM": ["SWEEP1"]}}
FOUND = [
    ("X1", "LREM", "SWEEP1"),
    ("X1", "LREM", "SWEEP2"),
    ("X1", "PEAK", "SWEEP3"),
    ("X2", "LREM", "SWEEP1"),
]


def names_of(sweeps: Sequence[SweepFiles]) -> list[tuple[str, str, str]]:
    return [(sweep.crystal, sweep.wavelength, sweep.name) for sweep in sweeps]


@pytest.mark.parametrize("record", ["whole", "absent", "damaged"])
def test_sweeps_of_a_xia2_directory(tmp_path: Path, record: str):
    """By xia2.json, and without it by the names of the files; scaled files are not taken."""
    write_xia2(tmp_path, LAYOUT)
    if record == "absent":
        (tmp_path / "xia2.json").unlink()
    elif record == "damaged":
        (tmp_path / "xia2.json").write_text('{"_name": "AUTOMATIC"')
    sweeps = sweeps_of_xia2(tmp_path)
    assert names_of(sweeps) == FOUND
    assert sweeps[2].experiments == tmp_path / "DataFiles/AUTOMATIC_X1_PEAK_SWEEP3.expt"
    assert sweeps[2].reflections == tmp_path / "DataFiles/AUTOMATIC_X1_PEAK_SWEEP3.refl"


def test_names_with_underscores_are_understood_by_the_record(tmp_path: Path):
    write_xia2(tmp_path, {"my_xtal": {"NATIVE": ["SWEEP1"]}}, project="a_b")
    assert names_of(sweeps_of_xia2(tmp_path)) == [("my_xtal", "NATIVE", "SWEEP1")]


def test_files_that_xia2_left_where_it_integrated(tmp_path: Path):
    """Not in DataFiles; and the whole directory was moved since."""
    write_xia2(tmp_path, {"X1": {"NATIVE": ["SWEEP1"]}})
    for path in (tmp_path / "DataFiles").glob("*SWEEP1*"):
        path.unlink()
    sweep_files(tmp_path / "DEFAULT/NATIVE/SWEEP1/integrate/13_integrated")
    content = json.loads((tmp_path / "xia2.json").read_text())
    sweep = content["_crystals"]["X1"]["_wavelengths"]["NATIVE"]["_sweeps"][0]
    where = "/beamline/x/DEFAULT/NATIVE/SWEEP1/integrate/13_integrated"
    sweep["_integrater"] = {
        "_intgr_experiments_filename": f"{where}.expt",
        "_intgr_integrated_reflections": f"{where}.refl",
    }
    content["path"] = "/beamline/x"
    (tmp_path / "xia2.json").write_text(json.dumps(content))
    (found,) = sweeps_of_xia2(tmp_path)
    assert found.reflections == tmp_path / "DEFAULT/NATIVE/SWEEP1/integrate/13_integrated.refl"


def test_what_is_no_finished_xia2_directory(tmp_path: Path):
    with pytest.raises(ValueError, match="There is no folder .*absent"):
        sweeps_of_xia2(tmp_path / "absent")
    with pytest.raises(ValueError, match="no directory of xia2 .*neither xia2.json nor DataFiles"):
        sweeps_of_xia2(tmp_path)
    (tmp_path / "DataFiles").mkdir()
    with pytest.raises(ValueError, match=r"holds no integrated .* run xia2 pipeline=dials"):
        sweeps_of_xia2(tmp_path)
    write_xia2(tmp_path, {"X1": {"NATIVE": ["SWEEP1"]}})
    (tmp_path / "DataFiles/AUTOMATIC_X1_NATIVE_SWEEP1.refl").unlink()
    with pytest.raises(ValueError, match="lacks the integrated files of the sweep SWEEP1 of X1"):
        sweeps_of_xia2(tmp_path)


def test_several_directories_are_several_crystals(tmp_path: Path):
    for name in ("a", "b"):
        write_xia2(tmp_path / name, {"DEFAULT": {"NATIVE": ["SWEEP1"]}})
    write_xia2(tmp_path / "c", {"X3": {"NATIVE": ["SWEEP1"]}})
    sweeps = sweeps_of_directories([tmp_path / name for name in "abc"])
    assert [sweep.crystal for sweep in sweeps] == ["a_DEFAULT", "b_DEFAULT", "X3"]
    with pytest.raises(ValueError, match="have the same name"):
        sweeps_of_directories([tmp_path / "a", tmp_path / "a"])


def test_single_files_are_divided_among_crystals(tmp_path: Path):
    for i in range(4):
        sweep_files(tmp_path / f"{i}")
    expts, refls = ([tmp_path / f"{i}.{kind}" for i in range(4)] for kind in ("expt", "refl"))
    assert [s.crystal for s in sweeps_of_files(expts, refls)] == ["DEFAULT"] * 4
    assert [s.crystal for s in sweeps_of_files(expts, refls, "AB")] == ["A", "A", "B", "B"]
    with pytest.raises(ValueError, match="4 sweeps cannot be divided among 3 crystals"):
        sweeps_of_files(expts, refls, "ABC")
    with pytest.raises(ValueError, match="4 experiment files and 3 reflection files"):
        sweeps_of_files(expts, refls[:3])
    with pytest.raises(ValueError, match=r"There is no file .*5.expt"):
        sweeps_of_files([tmp_path / "5.expt"], refls[:1])
    with pytest.raises(ValueError, match="give an .expt and a .refl for each sweep"):
        sweeps_of_files([], [])


def test_tomography_is_assigned_by_order_or_name(tmp_path: Path):
    write_xia2(tmp_path, LAYOUT)
    sweeps = sweeps_of_xia2(tmp_path)
    scans = [str(tmp_path / f"{name}.nxs") for name in "ab"]
    for scan in scans:
        Path(scan).touch()
    first, second = assign_tomography(sweeps, scans, {})
    assert (first.name, len(first.sweeps), first.tomography) == ("X1", 3, Path(scans[0]))
    assert (second.name, len(second.sweeps), second.tomography) == ("X2", 1, Path(scans[1]))
    first, second = assign_tomography(sweeps, [], {"X2": scans[0], "X1": scans[1]})
    assert (first.tomography, second.tomography) == (Path(scans[1]), Path(scans[0]))


@pytest.mark.parametrize(
    ("in_order", "by_name", "message"),
    [
        ([], {}, "No tomography was given"),
        (["a.nxs"], {}, r"1 tomograms were given for 2 crystals \(X1, X2\)"),
        (["a.nxs"] * 3, {}, "3 tomograms were given for 2 crystals"),
        ([], {"X1": "a.nxs"}, r"The crystal X2 has no tomography; give tomography.X2="),
        ([], {"X1": "a.nxs", "Y": "a.nxs"}, "tomography.Y was given, but the crystals .* X1, X2"),
        (["a.nxs"], {"X1": "a.nxs"}, "by crystal and without"),
        (["a.nxs", "absent.nxs"], {}, "The tomography absent.nxs of the crystal X2 does not exist"),
    ],
)
def test_tomography_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_order, by_name, message
):
    monkeypatch.chdir(tmp_path)
    Path("a.nxs").touch()
    write_xia2(tmp_path, LAYOUT)
    with pytest.raises(ValueError, match=message):
        assign_tomography(sweeps_of_xia2(tmp_path), in_order, by_name)


def test_a_scan_may_be_a_folder_a_pattern_or_a_data_set(tmp_path: Path):
    (tmp_path / "scan").mkdir()
    for name in ("b.tif", "a.tif"):
        (tmp_path / "scan" / name).touch()
    (tmp_path / "labels.h5").touch()
    sweeps = [SweepFiles("X", "", "S", tmp_path, tmp_path)]
    for text, files in (
        ("scan", ["a.tif", "b.tif"]),
        ("scan/*.tif", ["a.tif", "b.tif"]),
        ("labels.h5:/data/labels", ["labels.h5"]),
    ):
        (crystal,) = assign_tomography(sweeps, [tmp_path / text], {})
        assert crystal.tomography == tmp_path / text
        assert [path.name for path in inputs.files_of(crystal.tomography)] == files


def test_what_needs_no_segmentation(tmp_path: Path, sample_labels: LabelVolume):
    scan, tomogram, labelled = (tmp_path / name for name in ("scan.nxs", "tomo.h5", "labels.h5"))
    with h5py.File(scan, "w") as file:
        file["entry1/tomo_entry/instrument/detector/data"] = np.zeros((2, 2, 2))
    write_sample_file(tomogram, tomogram=Tomogram(np.zeros((4, 4, 4), np.float32), 1.0))
    write_sample_file(labelled, labels=sample_labels)
    assert [has_labels(path) for path in (scan, tomogram, labelled)] == [False, False, True]
    np.save(tmp_path / "labels.npy", sample_labels.values)
    assert has_labels(tmp_path / "labels.npy")
    assert not has_labels(tmp_path)
    assert has_labels(tmp_path, StackSettings([0.3]))


# ---- how it is done ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategies": ("magic",)}, "No scaling strategy is called magic; there are none, sh_low"),
        ({"strategy": "magic"}, "No scaling strategy is called magic"),
        ({"strategies": ()}, "No strategy was asked for"),
        ({"strategies": ("sh_low",), "model": "KB"}, "model KB has none"),
        ({"statistic": "beauty"}, "The statistic beauty is not known; there are r_meas"),
        ({"cc_half": 1.0}, "cc_half is 1.0; it must be above 0 and below 1"),
        ({"symmetry": "pointless"}, "No program for symmetry is called pointless"),
        ({"symmetry": "none", "space_group": "P1"}, "leave one of them out"),
        ({"absorption_options": {"X1": ("output.html=a", "output.log=b")}}, "option output.log=b"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        PipelineSettings(**settings)


# ---- the whole, with stand-ins for all programs ---------------------------------------------------


def write_models(path: Path, *sweeps: tuple[str, float], space_group: str = "P 1") -> None:
    """An experiment list: (identifier, wavelength in A) of each sweep."""
    models = ExperimentList()
    for identifier, wavelength in sweeps:
        models.append(
            Experiment(
                beam=BeamFactory.simple(wavelength),
                crystal=Crystal((60, 0, 0), (0, 60, 0), (0, 0, 150), space_group),
                identifier=identifier,
            )
        )
    models.as_file(str(path))


class Programs:
    """Stands in for every program: writes what it would, and remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.failing: str | None = None
        self.signal_limit: float | None = None  # of the comparison

    def models(self, command: Sequence[str]) -> list[tuple[str, float]]:
        return [
            (e["identifier"], content["beam"][e["beam"]]["wavelength"])
            for path in command
            if path.endswith(".expt") and "=" not in path
            for content in [json.loads(Path(path).read_text())]
            for e in content["experiment"]
        ]

    def content(self, command: Sequence[str]) -> str:
        """Another text wherever a file in the command has another content; the paths, too."""
        files = [Path(word) for word in command if word.startswith("/") and Path(word).is_file()]
        return f"{[str(f) for f in files]} {[crc32(f.read_bytes()) for f in files]}"

    def __call__(self, command: Sequence[str], folder: Path) -> None:
        self.calls.append(tuple(command))
        program = command[0]
        (folder / "printed.log").write_text(f"{program} says")
        if program == self.failing:
            (folder / "half.expt").touch()
            raise StepError(f"{program} ended with status 1: so", folder / "printed.log")
        if program == "dials.anacor_segment":
            (folder / "tomo.h5").write_text(self.content(command))
            (folder / "anacor_segment.json").touch()
        elif program == "dials.anacor_absorption":
            write_models(folder / "corrected.expt", *self.models(command))
            turned = [word for word in command if word.startswith("alignment.")]
            (folder / "corrected.refl").write_text(f"{turned} {self.content(command)}")
            (folder / "anacor_absorption.json").write_text("{}")
        elif program in ("dials.cosym", "dials.symmetry", "dials.reindex"):
            group = "P 41 21 2" if "laue_group=None" in command else "P 4 2 2"
            write_models(folder / "symmetrized.expt", *self.models(command), space_group=group)
            (folder / "symmetrized.refl").write_text(group + self.content(command))
        elif program == "dials.split_experiments":
            models = sorted(self.models(command), key=lambda m: m[1])
            for i, length in enumerate(sorted({w for _, w in models})):
                write_models(folder / f"split_{i}.expt", *[m for m in models if m[1] == length])
                (folder / f"split_{i}.refl").write_text(f"{length} {self.content(command)}")
        elif program == "dials.merge":
            (folder / "merged.mtz").write_text(self.content(command))
        elif program == "dials.export":
            name = next(c.partition("hklout=")[2] for c in command if "hklout=" in c)
            (folder / name).write_text(self.content(command))
        else:
            raise AssertionError(program)

    def scale(self, job: SimpleNamespace, threads: int) -> None:
        self.calls.append(("dials.scale", job.strategy.name, *map(str, job.experiments)))
        if self.failing == f"scale {job.strategy.name}":
            log = job.folder / "dials.scale.failed.log"
            log.write_text("line search failed")
            error = ValueError("dials.scale ended with status 1: no.")
            error.log = log
            raise error
        models = [model for path in job.experiments for model in self.models([str(path)])]
        write_models(job.folder / "scaled.expt", *models)
        for name in ("scaled.refl", "dials.scale.log"):
            (job.folder / name).write_text(
                f"{name} {job.strategy.name} {self.content(list(map(str, job.reflections)))}"
            )

    def weigh(self, part: object, models: dict, limits: tuple, folder: Path) -> None:
        self.calls.append(("contributions", *models))
        content = {
            "version": 1,
            "merged": None,
            "crystals": [],
            "why_not": f"{part[1].name} {limits}",
        }
        (folder / "contributions.json").write_text(json.dumps(content))

    def ran(self) -> list[str]:
        """The programs that ran since the last time, in order."""
        names = [" ".join(c[:2]) if c[0] == "dials.scale" else c[0] for c in self.calls]
        self.calls.clear()
        return [name.removeprefix("dials.") for name in names]

    def command(self, program: str, n: int = 0) -> tuple[str, ...]:
        return [call for call in self.calls if call[0] == program][n]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs()
    r_meas = {"none": 0.11, "analytical": 0.04, "sh_high": 0.09, "analytical_sh": 0.0399}

    def compare(outcomes, settings, write_report, folder):
        scaled = [one for one in outcomes if hasattr(one, "seconds")]
        values = {one.label: {"r_meas": r_meas[one.strategy.name]} for one in scaled}
        strategies = [
            StrategyRecord(
                label=one.label,
                strategy=one.strategy.name,
                description="",
                command="",
                log=None,
                succeeded=one in scaled,
                table_1={"Rmeas(I)": (r_meas[one.strategy.name], 0, 0)},
            )
            for one in outcomes
        ]
        same = SameObservationsRecord(9, values)
        columns = [one.label for one in scaled]
        content = ComparisonRecord(50.0, 2.0, 20, columns, [], same, strategies, made.signal_limit)
        write_json(folder / "anacor_compare.json", content)
        write_report(None, folder)

    monkeypatch.setattr(steps, "run_step_command", made)
    monkeypatch.setattr(stages, "run_job", made.scale)
    monkeypatch.setattr(stages, "_compare", compare)
    monkeypatch.setattr(contributions, "_weigh", made.weigh)
    monkeypatch.setattr(
        merged_data,
        "_write_free_set",
        lambda parts, settings, known, source, folder: (folder / "free_set.mtz").touch(),
    )
    return made


def write_report(comparison: object, folder: Path) -> None:
    (folder / "anacor_compare.html").touch()


@pytest.fixture
def mad(tmp_path: Path) -> Callable[..., list[CrystalFiles]]:
    """Two crystals: X1 of three sweeps at two wavelengths, X2 of one; X2's labels are there already."""
    write_xia2(tmp_path / "xia2", LAYOUT)
    length = {"LREM": 4.1, "PEAK": 2.75}
    sweeps = sweeps_of_xia2(tmp_path / "xia2")
    for i, sweep in enumerate(sweeps):
        write_models(sweep.experiments, (f"id{i}", length[sweep.wavelength]))
        sweep.reflections.write_text(f"{i}")
    (tmp_path / "scan.nxs").write_text("projections")
    labels = LabelVolume(np.full((4, 4, 4), 3, np.uint8), 1.0)
    write_sample_file(tmp_path / "tomo.h5", labels=labels)
    return assign_tomography(sweeps, [], {"X1": tmp_path / "scan.nxs", "X2": tmp_path / "tomo.h5"})


SETTINGS = PipelineSettings(strategies=("none", "analytical", "analytical_sh"), nproc=1)
SCALED = ["scale none", "scale analytical", "scale analytical_sh"]
X1_STEPS = [
    "cosym", *SCALED, *["split_experiments"] * 3, "symmetry", "split_experiments",
    *["merge", "export", "export"] * 2,
]  # fmt: skip
X2_STEPS = ["symmetry", *SCALED, "symmetry", "merge", "export", "export"]


def test_what_is_run_on_what(tmp_path: Path, mad: list, programs: Programs):
    work = work_in(tmp_path)
    settings = PipelineSettings(
        strategies=SETTINGS.strategies,
        absorption_options={"": ("device=cpu",), "X2": ("alignment.angle_offset=30",)},
        segmentation_options={"X1": ("pixel_size=0.3",)},
        d_min=2.5,
        scaling_options=("anomalous=True",),
    )
    result = process(mad, settings, work, write_report)
    data = tmp_path / "xia2/DataFiles/AUTOMATIC"
    segment, absorption = (programs.command(f"dials.anacor_{n}") for n in ("segment", "absorption"))
    assert segment == (
        "dials.anacor_segment", str(tmp_path / "scan.nxs"), "pixel_size=0.3", "nproc=1",
    )  # fmt: skip
    assert absorption == (
        "dials.anacor_absorption",
        *(f"{data}_X1_{s}.{k}" for k in ("expt", "refl") for s in ("LREM_SWEEP1", "LREM_SWEEP2", "PEAK_SWEEP3")),
        str(tmp_path / "work/X1/segment/tomo.h5"), "device=cpu", "nproc=1",
    )  # fmt: skip
    second = programs.command("dials.anacor_absorption", 1)
    assert str(tmp_path / "tomo.h5") in second
    assert second[-3:] == ("device=cpu", "alignment.angle_offset=30", "nproc=1")
    # symmetry and scaling take the two wavelengths of X1 together, merging one by one
    assert programs.command("dials.cosym")[1].endswith("work/X1/absorption/corrected.expt")
    assert programs.command("dials.symmetry", 1)[1].endswith("work/X2/absorption/corrected.expt")
    merges = [programs.command("dials.merge", n)[1:3] for n in range(3)]
    assert [str(Path(path).relative_to(tmp_path / "work")) for pair in merges for path in pair] == [
        "X1/split/split_0.expt", "X1/split/split_0.refl",
        "X1/split/split_1.expt", "X1/split/split_1.refl",
        "X2/absences/symmetrized.expt", "X2/absences/symmetrized.refl",
    ]  # fmt: skip
    assert programs.ran() == [
        "anacor_segment", "anacor_absorption", *X1_STEPS, "anacor_absorption", *X2_STEPS,
    ]  # fmt: skip

    x1, x2 = result.groups
    assert [(w.name, w.wavelength) for w in x1.wavelengths] == [("PEAK", 2.75), ("LREM", 4.1)]
    assert [w.name for w in x2.wavelengths] == ["LREM"]
    assert x1.space_group == "P 41 21 2"
    # within 2 % of analytical_sh, without its parameters
    assert x1.selection.strategy.name == "analytical"
    assert {path.name for path in (tmp_path / "work/DataFiles").iterdir()} == {
        *(f"X1_scaled{u}_{w}.mtz" for u in ("", "_unmerged") for w in ("PEAK", "LREM")),
        *(f"X1_scaled_unmerged_{w}.mmcif" for w in ("PEAK", "LREM")),
        "X2_scaled.mtz", "X2_scaled_unmerged.mtz", "X2_scaled_unmerged.mmcif",
        *(f"{x}_scaled.{kind}" for x in ("X1", "X2") for kind in ("expt", "refl")),
    }  # fmt: skip
    # each statistic is of one wavelength and of all strategies
    for one, split in ((x1.wavelengths[0], "split_0.refl"), (x1.wavelengths[1], "split_1.refl")):
        inputs = [Path(path).name for path in one.comparison.inputs]
        assert [name for name in inputs if name.endswith(".refl")] == [split] * 3
    # the merged file is of the chosen strategy, from the data that were scaled by it
    assert "X1/split/split_0.refl" in (tmp_path / "work/DataFiles/X1_scaled_PEAK.mtz").read_text()
    split = (tmp_path / "work/X1/split/split_0.refl").read_text()
    assert split.startswith("2.75 ")
    assert "X1/absences/symmetrized.refl" in split
    assert (
        "scale_analytical/scaled.refl"
        in (tmp_path / "work/X1/absences/symmetrized.refl").read_text()
    )


def test_a_tomogram_of_another_program_is_segmented(
    tmp_path: Path, mad: list, programs: Programs, monkeypatch: pytest.MonkeyPatch
):
    """It may hold whole numbers, as labels do; the scan beside it is named from here."""
    monkeypatch.chdir(tmp_path)
    with h5py.File("savu.h5", "w") as file:
        file["recon"] = np.zeros((4, 4, 4), np.uint16)
    sweeps = [sweep for crystal in mad for sweep in crystal.sweeps]
    crystals = assign_tomography(sweeps, [], {"X1": "savu.h5:/recon", "X2": "tomo.h5"})
    settings = PipelineSettings(
        strategies=SETTINGS.strategies,
        segmentation_options={
            "X1": ("tomogram.axes=z,x,y", "tomogram.projections=scan.nxs", "tomogram.scale=2")
        },
    )
    process(crystals, settings, work_in(tmp_path), write_report)
    assert programs.command("dials.anacor_segment") == (
        "dials.anacor_segment", f"{tmp_path}/savu.h5:/recon", "tomogram.axes=z,x,y",
        f"tomogram.projections={tmp_path}/scan.nxs", "tomogram.scale=2", "nproc=1",
    )  # fmt: skip
    programs.ran()
    process(crystals, settings, work_in(tmp_path), write_report)
    assert programs.ran() == []
    (tmp_path / "scan.nxs").write_text("other projections")
    process(crystals, settings, work_in(tmp_path), write_report)
    assert programs.ran()[0] == "anacor_segment"


def test_a_finished_pipeline_is_not_run_again_and_changes_run_what_they_must(
    tmp_path: Path, mad: list, programs: Programs
):
    def again(settings: PipelineSettings = SETTINGS) -> list[str]:
        process(mad, settings, work_in(tmp_path), write_report)
        return programs.ran()

    assert len(again()) == 3 + len(X1_STEPS) + len(X2_STEPS)
    assert again() == []
    # one more strategy: that is scaled, and as it is not taken nothing else is done
    more = PipelineSettings(strategies=(*SETTINGS.strategies, "sh_high"))
    assert again(more) == ["scale sh_high", "split_experiments", "scale sh_high"]
    # another strategy is taken
    assert again(PipelineSettings(strategies=SETTINGS.strategies, strategy="none")) == [
        *X1_STEPS[X1_STEPS.index("symmetry") :], *X2_STEPS[-4:],
    ]  # fmt: skip
    again()
    # another alignment of X2: everything of X2, nothing of X1
    turned = PipelineSettings(
        strategies=SETTINGS.strategies, absorption_options={"X2": ("alignment.angle_offset=1",)}
    )
    assert again(turned) == ["anacor_absorption", *X2_STEPS]
    again()
    # another scan of X1: all of X1
    (tmp_path / "scan.nxs").write_text("other projections")
    assert again() == ["anacor_segment", "anacor_absorption", *X1_STEPS]


def test_faces_take_the_place_of_a_tomogram(tmp_path: Path, mad: list, programs: Programs):
    """Nothing is segmented, and other faces run what depends on them."""
    faces = tmp_path / "faces.txt"
    faces.write_text("1 0 0 10")
    crystals = [replace(mad[0], tomography=faces), mad[1]]
    process(crystals, SETTINGS, work_in(tmp_path), write_report)
    assert f"faces={faces}" in programs.command("dials.anacor_absorption")
    assert programs.ran()[:2] == ["anacor_absorption", X1_STEPS[0]]
    process(crystals, SETTINGS, work_in(tmp_path), write_report)
    assert programs.ran() == []
    faces.write_text("1 0 0 11")
    process(crystals, SETTINGS, work_in(tmp_path), write_report)
    assert programs.ran()[0] == "anacor_absorption"


def test_a_mesh_takes_the_place_of_a_tomogram(tmp_path: Path, mad: list, programs: Programs):
    """Further meshes are options; a drop that was drawn anew runs what depends on it."""
    surface, drop = tmp_path / "crystal.STL", tmp_path / "drop.stl"
    surface.write_text("solid")
    drop.write_text("solid")
    crystals = [replace(mad[0], tomography=surface), mad[1]]
    settings = replace(SETTINGS, absorption_options={"X1": (f"mesh.liquor={drop}",)})
    process(crystals, settings, work_in(tmp_path), write_report)
    command = programs.command("dials.anacor_absorption")
    assert f"mesh={surface}" in command
    assert f"mesh.liquor={drop}" in command
    assert "anacor_segment" not in programs.ran()[:1]
    drop.write_text("solid drop")
    process(crystals, settings, work_in(tmp_path), write_report)
    assert programs.ran()[0] == "anacor_absorption"


def test_a_failure_is_gone_on_from(tmp_path: Path, mad: list, programs: Programs):
    """It leaves the other crystal, and the next run does what is lacking."""
    programs.failing = "dials.cosym"
    result = process(mad, SETTINGS, work_in(tmp_path), write_report)
    (failed,) = result.failed
    assert failed.crystal.name == "X1"
    assert re.match(
        r"dials.cosym ended with status 1: so; log: .*symmetry.failed.log$", failed.reason
    )
    assert [group.name for group in result.groups] == ["X2"]
    assert (tmp_path / "work/DataFiles/X2_scaled.mtz").is_file()
    assert (tmp_path / "work/X1/symmetry.failed.log").read_text() == "dials.cosym says"
    assert not list((tmp_path / "work").rglob("half.expt"))
    programs.ran()
    programs.failing = None
    process(mad, SETTINGS, work_in(tmp_path), write_report)
    assert programs.ran() == X1_STEPS


def test_an_error_of_the_program_leaves_the_other_crystals(
    tmp_path: Path,
    mad: list,
    programs: Programs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """Its traceback stands in the log."""

    def correct(crystal: CrystalFiles, *more: object) -> object:
        if crystal.name == "X1":
            raise RuntimeError("no such cell")
        return stages.correct(crystal, *more)

    monkeypatch.setattr(side_by_side, "correct", correct)
    with caplog.at_level("ERROR"):
        result = process(mad, SETTINGS, work_in(tmp_path), write_report)
    assert [one.crystal.name for one in result.failed] == ["X1"]
    assert result.failed[0].reason == "RuntimeError: no such cell"
    assert [group.name for group in result.groups] == ["X2"]
    assert "Traceback" in caplog.text


def test_nothing_is_left_where_every_crystal_fails(tmp_path: Path, mad: list, programs: Programs):
    programs.failing = "dials.anacor_absorption"
    with pytest.raises(ValueError, match=r"Every crystal failed. X1: .* status 1: so; .*; X2: .*"):
        process(mad, SETTINGS, work_in(tmp_path), write_report)
    with pytest.raises(ValueError, match=r"^dials.anacor_absorption ended with status 1: so; log"):
        process(mad[:1], SETTINGS, work_in(tmp_path), write_report)


def test_crystals_that_fail_are_left_out_of_those_together(
    tmp_path: Path, mad: list, programs: Programs, monkeypatch: pytest.MonkeyPatch
):
    """And the report says so."""
    settings = PipelineSettings(strategies=("analytical",), together=True, space_group="P41212")

    def fails_for_x2(command: Sequence[str], folder: Path) -> None:
        if command[0] == "dials.anacor_absorption" and str(tmp_path / "tomo.h5") in command:
            raise StepError("no memory")
        programs(command, folder)

    monkeypatch.setattr(steps, "run_step_command", fails_for_x2)
    (group,) = process(mad, settings, work_in(tmp_path), write_report).groups
    assert group.crystals == ("X1",)
    assert group.warning == "Scaled without what failed. X2: no memory."


def test_a_strategy_that_fails_is_left_out(tmp_path: Path, mad: list, programs: Programs):
    programs.failing = "scale analytical"
    result = process(mad, SETTINGS, work_in(tmp_path), write_report)
    assert result.groups[0].selection.strategy.name == "analytical_sh"
    assert set(result.groups[0].scaled) == {"none", "analytical_sh"}
    assert "dials.scale ended with status 1: no; log: " in result.groups[0].failed["analytical"]
    with pytest.raises(
        ValueError, match="strategy analytical could not be scaled. analytical: dials.scale"
    ):
        process(
            mad, PipelineSettings(strategies=("none",), strategy="analytical"), work_in(tmp_path), write_report
        )  # fmt: skip


def test_crystals_together(tmp_path: Path, mad: list, programs: Programs):
    settings = PipelineSettings(strategies=("analytical",), together=True, space_group="P41212")
    result = process(mad, settings, work_in(tmp_path), write_report)
    (group,) = result.groups
    assert (group.name, group.crystals) == ("all", ("X1", "X2"))
    cosym = programs.command("dials.cosym")
    assert [Path(path).parts[-3:-1] for path in cosym[1:5]] == [
        ("X1", "absorption"), ("X2", "absorption"), ("X1", "absorption"), ("X2", "absorption"),
    ]  # fmt: skip
    assert "space_group=P41212" in cosym
    # what each contributes is found at each wavelength, of the data that are merged there
    assert programs.command("contributions") == ("contributions", "X1", "X2")
    assert "symmetry" not in programs.ran()  # no absences: the space group was given
    assert (tmp_path / "work/DataFiles/all_scaled_PEAK.mtz").is_file()
    assert [one.contributions.why_not for one in group.wavelengths] == [
        "split_0.refl (50.0, 2.0)", "split_1.refl (50.0, 2.0)",
    ]  # fmt: skip
    process(mad, settings, work_in(tmp_path), write_report)
    assert programs.ran() == []


def test_results_of_two_runs_are_not_mixed(tmp_path: Path, mad: list, programs: Programs):
    """Names that the new run does not have are removed, but not what somebody has changed or added."""
    process(mad, SETTINGS, work_in(tmp_path), write_report)
    data = tmp_path / "work/DataFiles"
    (data / "X2_scaled.mtz").write_text("edited")
    (data / "notes.txt").write_text("mine")
    together = PipelineSettings(strategies=("analytical",), together=True)
    process(mad, together, work_in(tmp_path), write_report)
    assert {path.name for path in data.iterdir()} == {
        "notes.txt", "X2_scaled.mtz", "all_scaled.expt", "all_scaled.refl",
        *(
            f"all_scaled{kind}"
            for w in ("LREM", "PEAK")
            for kind in (f"_{w}.mtz", f"_unmerged_{w}.mtz", f"_unmerged_{w}.mmcif")
        ),
    }  # fmt: skip
    (failed,) = process(mad, SETTINGS, work_in(tmp_path), write_report).failed
    assert re.search(r"X2_scaled.mtz was changed .*; move it elsewhere", failed.reason)
    assert (data / "X2_scaled.mtz").read_text() == "edited"


def test_symmetry_left_alone_or_given_for_one_sweep(tmp_path: Path, mad: list, programs: Programs):
    process(
        mad[1:],
        PipelineSettings(strategies=("none",), symmetry="none"),
        work_in(tmp_path),
        write_report,
    )
    assert programs.ran() == ["anacor_absorption", "scale none", "merge", "export", "export"]
    given = PipelineSettings(strategies=("none",), space_group="P43212")
    process(mad[1:], given, work_in(tmp_path), write_report)
    assert "space_group=P43212" in programs.command("dials.reindex")


@pytest.mark.parametrize(
    ("d_min", "found", "merged_to"),
    [(None, None, []), (None, 3.25, ["d_min=3.25"]), (2.5, None, ["d_min=2.5"])],
)
def test_merged_data_end_with_the_signal(
    tmp_path: Path, mad: list, programs: Programs, d_min: float, found: float, merged_to: list
):
    programs.signal_limit = found
    process(mad[1:], replace(SETTINGS, d_min=d_min), work_in(tmp_path), write_report)
    command = programs.command("dials.merge")
    assert [word for word in command if word.startswith("d_min=")] == merged_to


def test_names_of_wavelengths(tmp_path: Path, mad: list):
    def named(*wavelengths: float) -> list[str]:
        correction = SimpleNamespace(crystal=mad[0])
        return wavelength_names(wavelengths, [correction])

    assert named(2.75, 4.1) == ["PEAK", "LREM"]
    unnamed = replace(mad[0], sweeps=tuple(replace(s, wavelength="") for s in mad[0].sweeps))
    numbered = [SimpleNamespace(crystal=unnamed)]
    assert wavelength_names([2.75, 4.1], numbered) == ["WAVE1", "WAVE2"]
    assert wavelength_names([3.0], numbered) == ["NATIVE"]


def test_crystals_of_one_name_are_refused(tmp_path: Path, mad: list, programs: Programs):
    twins = [mad[0], replace(mad[1], name="X1")]
    with pytest.raises(ValueError, match="X1, X1 have no names of their own"):
        process(twins, SETTINGS, work_in(tmp_path), write_report)
    assert file_name("my crystal/1", "crystal") == "my_crystal_1"


@pytest.mark.parametrize("ccp4", [True, False])
def test_images_need_xia2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ccp4: bool):
    """Without CCP4, with whose program xia2 ends and whose name it asks for, xia2.integrate is run."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CCP4", raising=False)
    if ccp4:
        monkeypatch.setenv("CCP4", "there")
        (tmp_path / "freerflag").touch()
        (tmp_path / "freerflag").chmod(0o755)
    with pytest.raises(ValueError, match="there is no xia2 on PATH"):
        integration(["a_0001.cbf"], ())
    write_virtual_xia2(tmp_path, "3.9")
    with pytest.raises(ValueError, match=r"There is no image .*a_0001.cbf"):
        integration([str(tmp_path / "a_0001.cbf")], ())
    (tmp_path / "a_0001.cbf").touch()
    step = integration([f"{tmp_path}/a_0001.cbf:1:900"], ("project=thau",), nproc=2)
    where = work_in(tmp_path).run(step).folder
    assert (where / "xia2.json").read_text() == (
        f"xia2{'' if ccp4 else '.integrate'} {'there' if ccp4 else 'none'} pipeline=dials "
        f"image={tmp_path}/a_0001.cbf:1:900 project=thau nproc=2"
    )


def write_virtual_xia2(folder: Path, version: str) -> None:
    """xia2 and xia2.integrate, which tell in xia2.json how they were called."""
    for name in ("xia2", "xia2.integrate"):
        (folder / name).write_text(
            f"#!{sys.executable}\nimport os, sys\nfrom pathlib import Path\n"
            "if '-version' in sys.argv:\n"
            f"    sys.exit('XIA2 {version}\\nDIALS 3.30')\n"
            "called = [Path(sys.argv[0]).name, os.environ['CCP4'], *sys.argv[1:]]\n"
            "Path('xia2.json').write_text(' '.join(called))\n"
        )
        (folder / name).chmod(0o755)


def test_another_version_of_xia2_redoes_its_step_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The step has the version of xia2 in its record, other steps do not."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "a_0001.cbf").touch()
    (tmp_path / "input.txt").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin")

    def run(version: str) -> list[FinishedStep]:
        write_virtual_xia2(tmp_path / "bin", version)
        work = work_in(tmp_path)
        work.run(integration([f"{tmp_path}/a_0001.cbf"], ()))
        work.run(copying("other", tmp_path / "input.txt"))
        return work.finished

    assert [step.why for step in run("3.8.6")] == ["not done yet"] * 2
    of_xia2, other = run("3.8.6")
    assert (of_xia2.why, other.why) == (None, None)
    assert (of_xia2.versions, other.versions) == (VERSIONS | {"xia2": "3.8.6"}, VERSIONS)
    of_xia2, other = run("3.9.dev262+g0cc0cb10")
    assert (of_xia2.why, other.why) == ("other program versions", None)
    assert of_xia2.versions["xia2"] == "3.9.dev262+g0cc0cb10"
