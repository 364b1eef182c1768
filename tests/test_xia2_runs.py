"""What logs and files tell of a run of xia2: it still runs, has failed, was killed, or ended well."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from anacor_dials.jobs.pipeline.xia2_runs import LONGEST_SILENCE, why_not_ended_well

LOG = {"xia2": "xia2.txt", "xia2.integrate": "xia2.integrate.txt"}
WELL = "Processing took 00h 01m 00s\nStatus: normal termination\n"


def written(path: Path, text: str = "", seconds_ago: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    when = time.time() - seconds_ago
    os.utime(path, (when, when))
    return path


@pytest.mark.parametrize("log", LOG.values())
@pytest.mark.parametrize(
    ("text", "seconds_ago", "said"),
    [
        (WELL, 1e5, None),
        ("Integrating\n", 10.0, "xia2 still runs in"),
        ("Integrating\n", 2 * LONGEST_SILENCE, "was ended in .* or hangs; its last file .* 7200 s ago"),
        ("Integrating\nError: no images found.\nPlease send xia2.txt to:\n", 1.0, r"failed .*\(no images found\);"),
        ('Integrating\nStatus: error "no images"\n', 1.0, r"failed in .* \(no images\); it is taken when"),
    ],
)  # fmt: skip
def test_what_the_log_says(
    tmp_path: Path, log: str, text: str, seconds_ago: float, said: str | None
):
    """Of xia2 and of xia2.integrate; what it said of an earlier run is of no matter."""
    written(tmp_path / "xia2-error.txt", "Traceback of an earlier run", 1e6)
    written(tmp_path / "xia2.json", "{}", 1e6)
    written(tmp_path / log, text, seconds_ago)
    found = why_not_ended_well(tmp_path)
    if said is None:
        assert found is None
    else:
        assert re.search(said, found or "")


def test_a_program_below_it_is_at_work(tmp_path: Path):
    """xia2.txt rests while dials.integrate goes on in a folder of its own."""
    written(tmp_path / "xia2.txt", "Integrating\n", 5 * LONGEST_SILENCE)
    written(tmp_path / "DEFAULT/NATIVE/SWEEP1/integrate/12_dials.integrate.log", "", 20.0)
    assert "still runs" in (why_not_ended_well(tmp_path) or "")


def test_the_last_run_counts(tmp_path: Path):
    """xia2 begins after xia2.integrate has ended well in the same folder."""
    written(tmp_path / "xia2.integrate.txt", WELL, 100.0)
    assert why_not_ended_well(tmp_path) is None
    written(tmp_path / "xia2.txt", "Environment configuration\n", 10.0)
    assert "still runs" in (why_not_ended_well(tmp_path) or "")


def test_without_a_log_nothing_is_known(tmp_path: Path):
    written(tmp_path / "DataFiles/A_B_C_D.refl")
    assert why_not_ended_well(tmp_path) is None


# ---- the real programs -----------------------------------------------------------------------------


@pytest.fixture(params=LOG)
def program(request: pytest.FixtureRequest) -> str:
    """xia2 and xia2.integrate."""
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.skip(f"Xia2 is not installed: there is no program {name} on PATH.")
    return name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ccp4", "said"), [("", "CCP4 not defined"), ("none", r"failed in .* \(.*absent_0001.cbf")]
)
def test_the_real_xia2_fails(program: str, ccp4: str, said: str, tmp_path: Path):
    """Without an environment, and without images: its own words are the reason."""
    command = [program, "pipeline=dials", f"image={tmp_path}/absent_0001.cbf"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"CCP4": ccp4}, capture_output=True, check=False
    )
    assert done.returncode != 0
    found = why_not_ended_well(tmp_path)
    assert found
    assert re.search(said, found)
    assert "xia2 failed in" in found


@pytest.mark.slow
def test_the_real_xia2_runs_and_is_killed(program: str, tmp_path: Path):
    """It is halted as soon as there is a log, and then killed."""
    command = [program, "pipeline=dials", f"image={tmp_path}/absent_0001.cbf"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"CCP4": "none"}, stdout=subprocess.DEVNULL
    )
    try:
        while not (tmp_path / LOG[program]).is_file():
            assert process.poll() is None, "it ended before"
            time.sleep(0.005)
        process.send_signal(signal.SIGSTOP)
        found = why_not_ended_well(tmp_path)
    finally:
        process.kill()
        process.wait()
    assert "xia2 still runs in" in (found or "")
    for file in tmp_path.iterdir():
        written(file, file.read_text(), 2 * LONGEST_SILENCE)
    assert "was ended in" in (why_not_ended_well(tmp_path) or "")
