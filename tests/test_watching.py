"""A folder that is watched: which crystals are complete, and what is done with them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

from dials.util import Sorry

from anacor_dials.command_line import xia2_anacor
from anacor_dials.jobs.pipeline import watching
from anacor_dials.jobs.pipeline.inputs import Crystal
from anacor_dials.jobs.pipeline.results import FailedCrystal, PipelineResult
from anacor_dials.jobs.pipeline.settings import PipelineSettings
from anacor_dials.jobs.pipeline.steps import Step, WorkingFolder
from anacor_dials.jobs.pipeline.watching import NamingRule, Patience, ready_crystals, watch

LONG_AGO = time.time() - 1e4


def write(path: Path, text: str = "", when: float = LONG_AGO) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (when, when))
    return path


def write_xia2(folder: Path, *crystals: str, log: str | None = None) -> None:
    """A xia2 directory as it is read where xia2.json is absent."""
    for crystal in crystals or ("DEFAULT",):
        for kind in ("expt", "refl"):
            write(folder / f"DataFiles/AUTOMATIC_{crystal}_NATIVE_SWEEP1.{kind}", kind)
    if log is not None:
        write(folder / "xia2.txt", log)


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "files", "expected"),
    [
        ("CRYSTAL/scan.nxs", ["A/scan.nxs", "B/scan.nxs", "B/flat.nxs"], {"A": 1, "B": 1}),
        ("CRYSTAL/*.nxs", ["A/1.nxs", "A/2.nxs", "B/x.h5"], {"A": 2}),
        (
            "tomo/scan_CRYSTAL_?.h5",
            ["tomo/scan_A_1.h5", "tomo/scan_A_12.h5", "tomo/A.h5"],
            {"A": 1},
        ),
        ("CRYSTAL/CRYSTAL.nxs", ["A/A.nxs", "A/B.nxs"], {"A": 1}),
        ("v1.0+x/CRYSTAL.nxs", ["v1.0+x/my crystal.nxs", "v110xx/B.nxs"], {"my crystal": 1}),
    ],
)
def test_names_are_found_by_the_rule(tmp_path: Path, rule: str, files: list, expected: dict):
    for file in files:
        write(tmp_path / file)
    found = NamingRule(tmp_path).found(rule)
    assert {name: len(paths) for name, paths in found.items()} == expected


@pytest.mark.parametrize("rule", ["scan.nxs", "/data/CRYSTAL.nxs", "../CRYSTAL.nxs"])
def test_rules_that_name_no_crystal(tmp_path: Path, rule: str):
    with pytest.raises(ValueError, match=r"watch.tomography=.* is no rule: .* holds CRYSTAL"):
        NamingRule(tmp_path, tomography=rule)


# ---- what is complete ------------------------------------------------------------------------------


def test_a_crystal_is_ready_when_both_are_complete(tmp_path: Path):
    rule = NamingRule(tmp_path)
    good = "Processing\nStatus: normal termination\n"
    now = time.time()
    write_xia2(tmp_path / "done/xia2", log=good)
    write(tmp_path / "done/scan.nxs")
    write_xia2(tmp_path / "old/xia2")
    write(tmp_path / "old/scan.nxs")
    write_xia2(tmp_path / "runs/xia2", log="Processing\n")
    write(tmp_path / "runs/xia2/DEFAULT/dials.integrate.log", when=now)
    write(tmp_path / "runs/scan.nxs")
    write_xia2(tmp_path / "killed/xia2", log="Processing\n")
    write(tmp_path / "killed/scan.nxs")
    write_xia2(tmp_path / "failed/xia2", log="Processing\nError: no spots\nSend it to us\n")
    write(tmp_path / "failed/scan.nxs")
    write_xia2(tmp_path / "written/xia2", log=good)
    write(tmp_path / "written/scan.nxs", when=now)
    write_xia2(tmp_path / "two/xia2", log=good)
    write(tmp_path / "two/a.nxs")
    write(tmp_path / "two/b.nxs")
    write_xia2(tmp_path / "many/xia2", "X1", "X2", log=good)
    write(tmp_path / "many/scan.nxs")
    write(tmp_path / "alone/scan.nxs")
    write(tmp_path / "empty/scan.nxs")
    (tmp_path / "empty/xia2").mkdir()
    ready, waiting = ready_crystals(rule, 60.0)
    assert [crystal.name for crystal in ready] == ["done", "old"]
    assert ready[0].tomography == tmp_path / "done/scan.nxs"
    # the crystal has the name of the rule, not xia2's DEFAULT
    assert [sweep.crystal for sweep in ready[0].sweeps] == ["done"]
    for name, reason in (
        ("runs", "xia2 still runs in"),
        ("killed", "before it was done, or hangs"),
        ("failed", "(no spots); it is taken when xia2 has ended well there"),
        ("written", "written to 0 s ago"),
        ("two", "a.nxs and b.nxs fit the rule for its scan"),
        ("many", "holds several crystals and there is one scan"),
        ("alone", "it has no xia2 directory yet"),
        ("empty", "is no directory of xia2"),
    ):
        assert reason in waiting.pop(name)
    assert not waiting
    # integrated files that somebody still writes, where no xia2.txt tells the end
    write(tmp_path / "old/xia2/DataFiles/AUTOMATIC_DEFAULT_NATIVE_SWEEP1.refl", "x", now)
    assert [crystal.name for crystal in ready_crystals(rule, 60.0)[0]] == ["done"]


# ---- the watch --------------------------------------------------------------------------------------


@pytest.fixture
def crystals_that_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of crystals whose one step ran; a scan that holds "bad" fails."""
    ran: list[str] = []

    def outcome(crystal: Crystal, settings: object, work: WorkingFolder, write_report: object):
        def perform(folder: Path) -> None:
            ran.append(crystal.name)
            (folder / "out.txt").touch()

        if crystal.tomography.read_text() == "bad":
            return FailedCrystal(crystal, "it is bad")
        command = ("correct", str(crystal.tomography))
        step = Step(f"{crystal.name}/a", command, (crystal.tomography,), ("out.txt",), (), perform)
        return SimpleNamespace(crystal=crystal, step=work.run(step)), None

    monkeypatch.setattr(watching, "outcome_of", outcome)
    return ran


def watch_for(
    folder: Path, keep: Callable[[PipelineResult], None] = lambda _: None, idle_s: float = 1.0
) -> PipelineResult:
    return watch(
        NamingRule(folder),
        Patience(settled_s=5.0, every_s=0.05, idle_s=idle_s),
        PipelineSettings(),
        WorkingFolder(folder / "work", {"dials": "1"}),
        print,
        keep,
    )


def test_crystals_are_taken_as_they_come(tmp_path: Path, crystals_that_run: list[str]):
    """One is there, one comes later, one is bad and then put right; the table grows with each."""
    for name, scan in (("A", "good"), ("C", "bad")):
        write_xia2(tmp_path / name / "xia2")
        write(tmp_path / name / "scan.nxs", scan)
    seen = []

    def keep(result: PipelineResult) -> None:
        done = [one.crystal.name for one in result.corrections]
        failed = [one.crystal.name for one in result.failed]
        seen.append((done, failed))
        if len(done) + len(failed) == 2 and len(done) == 1:
            write_xia2(tmp_path / "B/xia2")
            write(tmp_path / "B/scan.nxs", "good")
        elif "B" in done and failed:
            write(tmp_path / "C/scan.nxs", "put right")

    result = watch_for(tmp_path, keep)
    assert [one.crystal.name for one in result.corrections] == ["A", "B", "C"]
    assert seen[-1] == (["A", "B", "C"], [])
    assert (["A"], ["C"]) in seen
    assert (["A", "B"], ["C"]) in seen
    assert sorted(crystals_that_run) == ["A", "B", "C"]


def test_a_watch_that_was_stopped_goes_on(tmp_path: Path, crystals_that_run: list[str]):
    """What is done is not done again; what came meanwhile is."""

    def stop(_: PipelineResult) -> None:
        raise KeyboardInterrupt

    write_xia2(tmp_path / "A/xia2")
    write(tmp_path / "A/scan.nxs")
    with pytest.raises(KeyboardInterrupt):
        watch_for(tmp_path, stop)
    write_xia2(tmp_path / "B/xia2")
    write(tmp_path / "B/scan.nxs")
    result = watch_for(tmp_path)
    assert [one.crystal.name for one in result.corrections] == ["A", "B"]
    assert crystals_that_run == ["A", "B"]


def test_crystals_together_cannot_be_watched(tmp_path: Path):
    with pytest.raises(ValueError, match="scaling.crystals=together needs all crystals at once"):
        watch(
            NamingRule(tmp_path),
            Patience(),
            PipelineSettings(together=True),
            WorkingFolder(tmp_path / "work", {}),
            print,
            print,
        )


# ---- the command -----------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "visit").mkdir()
    return tmp_path


def test_the_command_watches_and_keeps_the_table(here: Path, monkeypatch: pytest.MonkeyPatch):
    """A crystal that fails stands in the table while the watch goes on; SIGTERM ends it."""
    failed: list[str] = []

    def outcome(crystal: Crystal, *_: object) -> FailedCrystal:
        failed.append(crystal.name)
        return FailedCrystal(crystal, f"{crystal.name} is bad")

    monkeypatch.setattr(watching, "outcome_of", outcome)
    write_xia2(here / "visit/A/xia2")
    write(here / "visit/tomo/A.nxs")
    tables = []
    before = signal.getsignal(signal.SIGTERM)

    def look_and_stop(*_: object) -> None:
        tables.append(Path("anacor/anacor.csv").read_text())
        assert signal.getsignal(signal.SIGTERM) != before  # it would end the tests
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(watching, "_tell_of_ended", look_and_stop)
    with pytest.raises(Sorry, match="Stopped; the same command goes on from here"):
        xia2_anacor.run(
            ["watch=visit", "watch.tomography=tomo/CRYSTAL.nxs", "watch.every=0.1", "nproc=1"]
        )
    assert signal.getsignal(signal.SIGTERM) == before
    assert tables[0].splitlines()[1].startswith("A,failed,")
    assert "A is bad" in tables[0]
    content = json.loads(Path("anacor/anacor.json").read_text())
    assert content["failed"] == [{"crystal": "A", "reason": "A is bad", "log": None}]
    assert failed == ["A"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["watch=visit", "visit", "tomography=a"], "visit is to be watched and visit was given"),
        (["watch=visit", "tomography.A=scan.nxs"], "is to be watched and .*scan.nxs was given"),
        (["watch=absent"], "There is no folder .*absent to watch"),
        (["watch=visit", "watch.xia2=xia2"], "watch.xia2=xia2 is no rule"),
        (["watch=visit", "scaling.crystals=together"], "together needs all crystals at once"),
    ],
)
def test_bad_watches_are_one_sentence(here: Path, arguments: list[str], message: str):
    with pytest.raises(Sorry, match=message):
        xia2_anacor.run(arguments)
