"""--require turns skips for lack of something into failures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
from __future__ import annotations
import pytest

def test_gpu():
    pytest.skip("CuPy finds no GPU")

def test_dials():
    pytest.importorskip("dials.no_such_module")

def test_other():
    pytest.skip("a rainy day")

@pytest.mark.xfail(reason="sam2")
def test_expected():
    raise AssertionError
"""
WHOLE_MODULE = """
from __future__ import annotations
import pytest
pytest.importorskip("sam2.no_such_module")
def test_any():
    pass
"""


def outcome(folder: Path, *options: str) -> tuple[int, str]:
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_skips.py").write_text(TESTS)
    (folder / "test_module.py").write_text(WHOLE_MODULE)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *options, str(folder)],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("options", "failed"),
    [
        ((), 0),
        (("--require=gpu",), 1),
        (("--require=gpu,dials",), 2),
        (("--require=dials", "--require", "gpu"), 2),
    ],
)
def test_skips_become_failures(tmp_path, options, failed):
    code, text = outcome(tmp_path, *options)
    assert code == (1 if failed else 0)
    assert ("1 failed" in text, "2 failed" in text) == (failed == 1, failed == 2)
    assert "1 xfailed" in text


def test_a_module_skipped_as_a_whole(tmp_path):
    code, text = outcome(tmp_path, "--require=sam2")
    assert code != 0
    assert "--require=sam2: " in text


def test_an_unknown_requirement_is_refused(tmp_path):
    code, text = outcome(tmp_path, "--require=blender")
    assert code != 0
    assert "it is one of gpu, dials, sam2" in text
