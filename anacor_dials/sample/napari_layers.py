"""tomo.h5 in napari: its tomogram and labels as layers, and layers back into a file.

napari finds these functions by the manifest napari.yaml (npe2); nothing of napari is imported.
Layers lie in the tomo frame, in um: axis 0 is X, the rotation axis.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anacor_dials.sample.hand_made import EditingSession, nothing_by_hand, read_hand_made
from anacor_dials.sample.tomogram_files import (
    SampleFile,
    is_sample_file,
    read_sample_file,
    write_sample,
)
from anacor_dials.sample.volumes import DEFAULT_NAMES, LabelVolume, Tomogram, Volume

Layer = tuple[Any, dict[str, Any], str]  # data, attributes, type


def reader_of(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[Layer]] | None:
    """The function that reads a tomo.h5; None for other files."""
    paths = [path] if isinstance(path, str) else list(path)
    try:
        return read_layers if len(paths) == 1 and is_sample_file(paths[0]) else None
    except ValueError:
        return None


def read_layers(path: str | Sequence[str]) -> list[Layer]:
    """The tomogram as an image in 1/um, and the labels."""
    name = path if isinstance(path, str) else path[0]
    sample = read_sample_file(name)
    layers: list[Layer] = []
    if sample.tomogram is not None:
        layers.append((sample.tomogram.values, _placed(sample.tomogram, "tomogram"), "image"))
    if sample.labels is not None:
        labels = sample.labels
        about = _placed(labels, "labels")
        about["metadata"] = {
            "names": labels.names,
            "mu_per_um": sample.mu_per_um,
            "energy_keV": sample.energy_keV,
            "as_read": labels.values.copy(),
            "hand_made": read_hand_made(name),
        }
        layers.append((labels.values, about, "labels"))
    return layers


def _placed(volume: Volume, name: str) -> dict[str, Any]:
    size = volume.voxel_size_um
    return {"name": name, "scale": size.tolist(), "translate": (-volume.centre * size).tolist()}


def write_layers(path: str, layers: Sequence[Layer]) -> list[str]:
    """Writes labels, and an image as the tomogram, to a new tomo.h5; returns its path.

    What was changed in napari since the labels were read counts as made by hand. Raises ValueError
    where the file exists, or the layers are no labels of a volume.
    """
    if Path(path).exists():
        raise ValueError(f"{path} exists; save under another name.")
    labels = tomogram = hand_made = None
    mu = energy = None
    for data, about, kind in layers:
        scale = np.asarray(about.get("scale", (1.0, 1.0, 1.0)), dtype=np.float64)
        if np.ndim(data) != 3 or scale.size != 3:
            raise ValueError(
                f"The layer {about.get('name')} has {np.ndim(data)} axes; a volume has three."
            )
        centre = -np.asarray(about.get("translate", (0.0, 0.0, 0.0)), dtype=np.float64) / scale
        known = about.get("metadata", {})
        if kind == "image":
            tomogram = Tomogram(np.asarray(data, dtype=np.float32), scale, centre)
            continue
        names = tuple(known.get("names", DEFAULT_NAMES))
        values = np.asarray(data)
        if values.min() < 0 or values.max() >= len(names):
            raise ValueError(
                f"The layer {about.get('name')} holds labels from {values.min()} to {values.max()}; they are 0 to "
                f"{len(names) - 1}: {', '.join(names)}."
            )
        labels = LabelVolume(values.astype(np.uint8), scale, centre, names)
        mu, energy = known.get("mu_per_um"), known.get("energy_keV")
        hand_made = known.get("hand_made") or nothing_by_hand(labels.shape, names)
        if "as_read" in known and known["as_read"].shape == labels.shape:
            changed = known["as_read"] != labels.values
            if changed.any():
                hand_made = hand_made.with_more(labels.values, changed, EditingSession.now())
    if labels is None:
        raise ValueError("There is no layer of labels to write.")
    sample = SampleFile(Path(path), tomogram, labels, mu, energy, hand_made=hand_made)
    write_sample(path, sample, "from napari")
    return [os.fspath(path)]
