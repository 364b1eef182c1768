"""A line at every tenth where there is no terminal, a bar where there is one."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

import anacor_dials
from anacor_dials.sample import progress as module
from anacor_dials.sample.progress import Progress, followed

# the training shows its own record of steps
OWN_BARS = {"progress.py", "sam2_predictor.py", "sam2_training.py", "training.py",
            "training_data.py"}  # fmt: skip


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def lines(caplog, monkeypatch, total, parts, seconds, terminal=False, note=""):
    """What the log says of a step that does parts, each in so many seconds."""
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: terminal, raising=False)
    clock = Clock()
    caplog.clear()
    with (
        caplog.at_level(logging.INFO, "dials"),
        Progress(total, "Working", clock=clock) as progress,
    ):
        for part in parts:
            clock.seconds += seconds
            progress.update(part, note)
    return [record.getMessage().strip() for record in caplog.records]


def test_a_line_at_every_tenth(caplog, monkeypatch):
    found = lines(caplog, monkeypatch, 1000, [7] * 142 + [6], 0.7)
    assert [int(re.search(r"(\d+) %", line).group(1)) for line in found] == list(range(10, 101, 10))
    assert found[0] == "Working: 10 % after 10 s"  # 15 parts of 7 are more than 100: 10.5 s
    assert found[-1] == "Working: 100 % after 100 s"


def test_what_is_passed_at_once_is_one_line(caplog, monkeypatch):
    found = lines(caplog, monkeypatch, 100, [35, 4, 1, 60], 30.0, note="a.refl")
    assert found == [
        "Working: 30 % after 30 s, a.refl",
        "Working: 40 % after 90 s, a.refl",
        "Working: 100 % after 120 s, a.refl",
    ]


def test_short_steps_are_not_spoken_of(caplog, monkeypatch):
    assert lines(caplog, monkeypatch, 100, [1] * 100, 0.19) == []
    assert len(lines(caplog, monkeypatch, 100, [1] * 100, 0.21)) == 10
    assert lines(caplog, monkeypatch, 0, [0], 100.0) == []


def test_a_terminal_shows_a_bar(caplog, monkeypatch, capsys):
    assert lines(caplog, monkeypatch, 100, [50, 50], 100.0, terminal=True) == []
    assert "Working" in capsys.readouterr().err


def test_steps_are_followed(caplog, monkeypatch):
    monkeypatch.setattr(module, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: False, raising=False)
    with caplog.at_level(logging.INFO, "dials"):
        assert list(followed(range(20), "Working")) == list(range(20))
    assert len(caplog.records) == 10


def test_no_module_has_progress_of_its_own():
    root = Path(anacor_dials.__file__).parent
    sources = [*root.rglob("*.py"), *(root.parent / "command_line").glob("*.py")]
    assert len(sources) > 100
    with_bars = {path.name for path in sources if "import tqdm" in path.read_text(encoding="utf-8")}
    assert with_bars <= OWN_BARS


@pytest.mark.parametrize("method", ["fbp", "iterative"])
def test_every_tenth_of_a_reconstruction(method, ellipsoid_scan, tmp_path, caplog, monkeypatch):
    from anacor_dials.tomography.reconstruction import reconstruct_scan
    from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings

    monkeypatch.setattr(module, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: False, raising=False)
    scan = ellipsoid_scan.write_nxtomo(tmp_path / "scan.nxs")
    with caplog.at_level(logging.INFO, "dials"):
        reconstruct_scan(scan, settings=ReconstructionSettings(centre=31.5, method=method))
    said = [record.getMessage() for record in caplog.records]
    found = [line for line in said if line.strip().startswith("Reconstructing: ")]
    assert "Reconstructing: 100 %" in found[-1]
    assert any("Reconstructing: 50 %" in line for line in found)
