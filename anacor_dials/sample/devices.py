"""Where a computation runs: the one place in which auto, cpu and cuda are decided."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

DEVICES = ("auto", "cpu", "cuda")


def require_device(device: str) -> None:
    """Raises ValueError if the device is not one of auto, cpu and cuda."""
    if device not in DEVICES:
        raise ValueError(f"The device {device!r} is unknown; choose auto, cpu or cuda.")


def why_torch_has_no_gpu() -> str | None:
    """The reason why torch cannot use a GPU; None if it can."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return None if torch.cuda.is_available() else "torch finds no NVIDIA GPU"


def chosen_device(
    device: str,
    library: str = "torch",
    why_not: Callable[[], str | None] = why_torch_has_no_gpu,
) -> str:
    """The device on which a library computes: "cpu" or "cuda".

    Parameters
    ----------
    device : str
        What was asked for: "cpu", "cuda", or "auto" for a GPU if there is one.
    library : str
        Its name, for messages.
    why_not : callable
        Returns the reason why the library cannot use a GPU, or None if it can.

    Raises
    ------
    ValueError
        If the device is unknown, or is cuda and the library cannot use a GPU.
    """
    require_device(device)
    if device == "cpu":
        return "cpu"
    reason = why_not()
    if reason is None:
        return "cuda"
    if device == "cuda":
        raise ValueError(
            f"device=cuda needs {library} and an NVIDIA GPU: {reason}. Use device=cpu or auto."
        )
    return "cpu"


def n_processes() -> int:
    """How many processes torch's launcher started together; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_first_process() -> bool:
    """Whether this process is the first of them."""
    return n_processes() == 1 or os.environ["RANK"] == "0"
