"""Where computations run: what is asked for, what there is, and what is refused."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from anacor_dials.sample.devices import DEVICES, chosen_device, require_device

PACKAGE = Path(__file__).resolve().parents[1] / "anacor_dials"


@pytest.mark.parametrize(
    ("asked", "reason", "used"),
    [
        ("cpu", None, "cpu"),
        ("cpu", "no GPU", "cpu"),
        ("auto", None, "cuda"),
        ("auto", "no GPU", "cpu"),
        ("cuda", None, "cuda"),
    ],
)
def test_a_gpu_is_used_if_there_is_one_and_it_may_be(asked, reason, used):
    assert chosen_device(asked, "torch", lambda: reason) == used


def test_a_gpu_that_is_asked_for_and_absent_is_refused():
    message = "device=cuda needs CuPy and an NVIDIA GPU: it is not installed. Use device=cpu"
    with pytest.raises(ValueError, match=message):
        chosen_device("cuda", "CuPy", lambda: "it is not installed")


def test_torch_is_asked_for_a_gpu():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert chosen_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def test_unknown_devices_are_refused():
    for device in DEVICES:
        require_device(device)
    for check in (require_device, chosen_device):
        with pytest.raises(ValueError, match="device 'tpu' is unknown; choose auto, cpu or cuda"):
            check("tpu")


def test_nothing_else_asks_for_a_gpu():
    """torch.cuda.is_available is called in one module."""
    asking = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.cuda.is_available"
    }
    assert asking == {"devices.py"}
