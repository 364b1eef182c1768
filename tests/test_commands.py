"""Commands run in a folder, and the reason among what they print."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from anacor_dials.diffraction import commands
from anacor_dials.diffraction.commands import (
    end_commands,
    last_words,
    program_versions,
    run_command,
)


def test_status_and_what_is_printed(tmp_path):
    shell = shutil.which("sh")
    script = "echo out $OMP_NUM_THREADS; echo err >&2; pwd; exit 3"
    status, printed = run_command((shell, "-c", script), tmp_path, 5, tmp_path / "printed.log")
    assert status == 3
    assert printed.split() == ["out", "5", str(tmp_path.resolve()), "err"]
    assert sorted((tmp_path / "printed.log").read_text().split()) == sorted(printed.split())


def test_dials_is_run_as_a_module_where_its_commands_are_not_on_the_path(monkeypatch, tmp_path):
    pytest.importorskip("dials", reason="DIALS is not installed")
    monkeypatch.setattr(commands.shutil, "which", lambda name: None)
    status, printed = run_command(("dials.scale", "--help"), tmp_path, 1)
    assert status == 0
    assert "dials.scale integrated.refl" in printed


def test_a_program_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match="no program no_such_program on PATH"):
        run_command(("no_such_program",), tmp_path)


def runs(number):
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_commands_are_ended_with_what_they_have_started(tmp_path):
    """A shell and its child, of which both would go on for a minute."""
    script = "trap 'echo ended; exit 7' TERM; sleep 60 & echo $!; wait"
    log = tmp_path / "printed.log"
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(
            run_command, (shutil.which("sh"), "-c", script), tmp_path, None, log
        )
        while not (log.is_file() and log.read_text().endswith("\n")):
            time.sleep(0.01)
        child = int(log.read_text())
        end_commands()
        assert running.result(30) == (7, f"{child}\nended")
    for _ in range(500):  # whoever inherits the child has to take note of its end
        if not runs(child):
            break
        time.sleep(0.01)
    assert not runs(child)


def test_last_words():
    assert last_words("a\nSorry: this\n is why\n") == "this is why"
    assert last_words("a\nError: no images\nPlease send it to us\n") == "no images"
    assert last_words("a\nError setting up xia2 environment: no\nSend it\nto us\n") == "no"
    assert last_words('Integrating\nStatus: error "no images"\n') == "no images"
    assert last_words("Traceback\nKeyError: 'x'\n\n") == "KeyError: 'x'"
    assert last_words("") == "it printed nothing"


def test_versions_of_programs_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As xia2 says it, which on a line of its own names DIALS, too; else unknown."""
    pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")
    for name, said in (("xia2", "XIA2 3.9.dev262+g0cc0cb10\nDIALS 3.30"), ("mute", "DIALS 3.30")):
        (tmp_path / name).write_text(f'#!/bin/sh\n[ "$1" = -version ] && printf "{said}"\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    found = program_versions("xia2", "mute", "absent")
    assert found | {"xia2": "3.9.dev262+g0cc0cb10", "mute": "unknown", "absent": "unknown"} == found
    assert set(program_versions()) == {"anacor_dials", "dials"}
