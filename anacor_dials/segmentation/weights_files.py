"""Weights of networks in files, each with a model card beside it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from anacor_dials.sample.output_files import whole_file
from anacor_dials.segmentation.network import NetworkSettings, SliceNetwork, build_network

logger = logging.getLogger("dials.anacor_dials.segmentation.weights_files")

WEIGHTS_FORMAT = "anacor_dials segmentation"
WEIGHTS_VERSION = 5
# version 2 has no context; versions 2 and 3 have no bound on their gates; versions 2 to 4 see no
# faint outlines
READABLE_VERSIONS = ("2", "3", "4", "5")
# settings that older files do not name
BEFORE = {"context": False, "bounded_gates": False, "outlines": False}
LARGEST_WEIGHTS = 16 * 2**20  # bytes


def model_card_path(weights: str | os.PathLike[str]) -> Path:
    """The path of the model card of a weights file: beside it, .json."""
    return Path(weights).with_suffix(".json")


def save_weights(
    path: str | os.PathLike[str],
    network: SliceNetwork,
    card: Mapping[str, Any],
    half: bool | None = None,
) -> None:
    """Writes NAME.safetensors and the model card NAME.json beside it; both or neither.

    Parameters
    ----------
    path : path
        NAME.safetensors.
    network : SliceNetwork
    card : mapping
        What is known of the training, plain values.
    half : bool, optional
        float16 instead of float32. If not given: only if float32 would be more than 16 MiB. What
        float16 cannot hold stays float32: means and variances of the normalisations reach 1e9, and
        the largest float16 is 65504.

    Raises
    ------
    ValueError
        If a weight is not a number.
    """
    metadata = {
        "format": WEIGHTS_FORMAT,
        "version": str(WEIGHTS_VERSION),
        "settings": json.dumps(asdict(network.settings)),
    }
    write_tensors(path, network.state_dict(), metadata, card, half)


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    card: Mapping[str, Any],
    half: bool | None = None,
) -> None:
    """Writes tensors as NAME.safetensors, and NAME.json beside it; both or neither.

    Parameters
    ----------
    path : path
        NAME.safetensors.
    tensors : mapping
        The state of a network.
    metadata : mapping
        What the file says of itself.
    card : mapping
        What NAME.json holds.
    half : bool, optional
        As of :func:`save_weights`.

    Raises
    ------
    ValueError
        If a weight is not a number.
    """
    from safetensors.torch import save_file

    state = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    _check_finite(state, path)
    size = sum(v.numel() * v.element_size() for v in state.values())
    if half is None:
        half = size > 0.99 * LARGEST_WEIGHTS
    if half:
        state = {k: v.half() if _fits_half(k, v) else v for k, v in state.items()}
        size = sum(v.numel() * v.element_size() for v in state.values())
    if size > LARGEST_WEIGHTS:
        logger.warning(
            "The weights take %.1f MiB; what ships with the package is at most 16 MiB.",
            size / 2**20,
        )
    with whole_file(model_card_path(path)) as card_file, whole_file(path) as weights_file:
        save_file(state, str(weights_file), dict(metadata))
        card_file.write_text(json.dumps(dict(card), indent=1) + "\n", encoding="utf-8")
        weights_file.chmod(card_file.stat().st_mode)  # safetensors lets only the owner read


def _fits_half(name: str, tensor: torch.Tensor) -> bool:
    """Whether float16 holds a tensor: not statistics of normalisations, and nothing large."""
    if not tensor.is_floating_point() or ".running_" in name:
        return False
    return bool(tensor.abs().max() < 0.1 * torch.finfo(torch.float16).max)


def _check_finite(state: Mapping[str, torch.Tensor], path: str | os.PathLike[str]) -> None:
    """Raises ValueError if a tensor of the weights holds values that are not numbers."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"The weights {path} hold values that are no numbers, in {name}; train again, or take others."
            )


def read_tensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file.

    Raises
    ------
    ValueError
        If the file is absent or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ValueError(f"There is no weights file {path}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            state = {k: file.get_tensor(k) for k in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file ({error}).") from None
    return state, metadata


def check_tensors(
    path: str | os.PathLike[str],
    state: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    remark: str = "",
) -> dict[str, torch.Tensor]:
    """The tensors that a network expects, in its own precision.

    Parameters
    ----------
    path : path
        Of the file, for the message.
    state : mapping
        What the file holds.
    expected : mapping
        The state of the network.
    remark : str
        What the message says of the network.

    Raises
    ------
    ValueError
        If a tensor is absent or has another shape, or holds values that are not numbers.
    """
    for name, tensor in expected.items():
        if name not in state or state[name].shape != tensor.shape:
            found = tuple(state[name].shape) if name in state else "absent"
            raise ValueError(
                f"{path} does not fit the network that it names: {name} is {found} and should be "
                f"{tuple(tensor.shape)}{remark}."
            )
    _check_finite(state, path)
    return {name: state[name].to(tensor.dtype) for name, tensor in expected.items()}


def load_weights(path: str | os.PathLike[str]) -> SliceNetwork:
    """The network of a weights file, in evaluation mode, on the CPU, float32.

    Raises
    ------
    ValueError
        If the file is absent, no safetensors, of another program or version, holds values that are
        not numbers, or tensors that do not belong to the network that it names (another number of
        channels, say).
    """
    state, metadata = read_tensors(path)
    if metadata.get("format") != WEIGHTS_FORMAT:
        raise ValueError(
            f"{path} does not hold weights of this program; make them by dials.anacor_train."
        )
    if metadata.get("version") not in READABLE_VERSIONS:
        raise ValueError(
            f"{path} holds weights of version {metadata.get('version')} and this program reads versions "
            f"{' and '.join(READABLE_VERSIONS)}; train again, or use the program that made them."
        )
    try:
        network = build_network(NetworkSettings(**(BEFORE | json.loads(metadata["settings"]))))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} does not say what network it belongs to ({error}).") from None
    remark = f" ({network.settings.n_channels} input channels)"
    network.load_state_dict(check_tensors(path, state, network.state_dict(), remark))
    return network.eval()
