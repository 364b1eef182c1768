"""Data sets, links and quantities of HDF5 files of scans, of which parts may be missing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np


def find_dataset(file: h5py.Group, name: str | None) -> h5py.Dataset | None:
    """The data set, or None where it is absent or its link dangles."""
    if name is None:
        return None
    try:
        item = file.get(name)
    except (OSError, RuntimeError):  # a link into a damaged file
        return None
    return item if isinstance(item, h5py.Dataset) else None


def link_target(file: h5py.File, name: str) -> str | None:
    """Where a link points to, in words; None where there is no link of that name."""
    try:
        link = file.get(name, getlink=True)
    except (KeyError, OSError, RuntimeError):
        return None
    if isinstance(link, h5py.ExternalLink):
        return f"{link.filename}:{link.path}"
    return str(link.path) if isinstance(link, h5py.SoftLink) else None


def require_dataset(file: h5py.File, name: str, what: str) -> h5py.Dataset:
    """The data set of a scan's file.

    Parameters
    ----------
    file : h5py.File
    name : str
        Its path in the file.
    what : str
        What it holds, for messages.

    Raises
    ------
    ValueError
        If it is absent, or is a link to something absent.
    """
    found = find_dataset(file, name)
    if found is not None:
        return found
    target = link_target(file, name)
    if target is not None:
        raise ValueError(
            f"{file.filename}: the {what} at {name} are a link to {target}, which is missing or "
            "damaged; copy the linked files beside the scan, with the folders between them."
        )
    raise ValueError(f"{file.filename} has no data set {name} for the {what}; name another.")


def as_text(value: Any) -> str:
    """A string of an HDF5 attribute or data set; the first one of an array."""
    value = np.ravel(value)[0] if np.size(value) else ""
    return value.decode() if isinstance(value, bytes) else str(value)


def quantity(
    file: h5py.Group, names: Sequence[str], units: dict[str, float], default_unit: str, what: str
) -> float | None:
    """The first scalar that is present, converted to the unit of the table; None if there is none.

    Zero and values that are no numbers count as absent.

    Parameters
    ----------
    file : h5py.Group
    names : sequence of str
        Paths that are tried in turn.
    units : dict
        {unit: factor}; the values are multiplied by the factor.
    default_unit : str
        For data sets without a unit.
    what : str
        What it is, for messages.
    """
    for name in names:
        dataset = find_dataset(file, name)
        if dataset is None or dataset.size < 1 or not np.issubdtype(dataset.dtype, np.number):
            continue
        unit = as_text(dataset.attrs.get("units", default_unit)).strip()
        factor = units.get(unit) or units.get(unit.lower())
        if factor is None:
            raise ValueError(
                f"{file.file.filename}: the {what} at {name} has the unit {unit!r}, which is not "
                f"one of {', '.join(units)}; give the {what} as a parameter."
            )
        value = float(np.ravel(dataset[()])[0]) * factor
        if math.isfinite(value) and value != 0:
            return value
    return None


def is_class(group: Any, *names: str) -> bool:
    """Whether an item of a file is a group of one of the NeXus classes."""
    return isinstance(group, h5py.Group) and as_text(group.attrs.get("NX_class", "")) in names


def children(group: h5py.Group) -> Iterator[tuple[str, h5py.Group]]:
    """Sub-groups that are part of the file itself: external links are left alone."""
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            item = group[name]
            if isinstance(item, h5py.Group):
                yield f"{group.name.rstrip('/')}/{name}", item
