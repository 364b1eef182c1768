"""Reconstructions in the HDF5 files of Diamond's pipelines, Savu and HTTomo.

Both take projections (angle, detector row, detector column) with the rotation axis along the
detector's rows' numbers, and give slices (slice row, detector row, slice column):

=======  =====================================================================================
HTTomo   ``/data``, beside ``/angles`` (radians) and ``/data_dims/detector_x_y``; likewise its
         intermediate results. Its slices have zeros outside of a circle.
         (DiamondLightSource/httomo, methods.py; httomolibgpu, recon/algorithm.py)
Savu     ``/entry/final_result_NAME/data`` in SCAN_processed.nxs, a link to
         ``/N-PLUGIN-NAME/data`` of another file; @axes names the voxel_x, voxel_y (along the
         rotation axis) and voxel_z of its indices. Outside of a circle there may be NaN.
         (DiamondLightSource/Savu, savu/core/transports, savu/plugins/reconstructions)
=======  =====================================================================================

Within a slice columns grow as the detector's columns do at angle 0, and rows so that
``u = column cos(theta) - row sin(theta)``: that is astra's square, whose rows run downwards.
Values are -ln T per pixel, as long as the pipeline gave no unit, did not retrieve phases and did
not rescale them; the files do not say it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import h5py
import numpy as np

from anacor_dials.sample.frames import AXIS_NAMES, unit
from anacor_dials.sample.hdf5_files import dataset_at, open_hdf5

ROW, ALONG, COLUMN = "row", "along", "column"  # what an index of the array numbers
SAVU_AXES = {"voxel_x": ROW, "voxel_y": ALONG, "voxel_z": COLUMN}


@dataclass(frozen=True)
class KnownReconstruction:
    """A reconstruction that a known program wrote.

    Attributes
    ----------
    program : str
        Its name.
    dataset : str
        Where the data set is in the file.
    indices : tuple of str
        What each index numbers: rows of a slice, slices along the rotation axis, columns.
    """

    program: str
    dataset: str
    indices: tuple[str, ...] = (ROW, ALONG, COLUMN)

    def axes(self, fast_axis: Sequence[float], slow_axis: Sequence[float]) -> str:
        """The axis map for images whose columns and rows grow along these directions (tomo frame).

        Raises
        ------
        ValueError
            If the rotation axis does not run along the numbers of rows, which both programs expect.
        """
        fast, slow = np.rint(unit(fast_axis)).astype(int), np.rint(unit(slow_axis)).astype(int)
        if not (abs(slow[0]) == 1 and abs(fast[1]) == 1):
            raise ValueError(
                f"{self.program} expects the rotation axis along the rows' numbers, and fast_axis and "
                "slow_axis say that it runs along the columns'; say by tomogram.axes= what the indices "
                "of the volume run along."
            )
        row = (0, 0, int(fast[1]))  # u = y cos(theta) - z sin(theta): Z goes with Y
        along = {ROW: row, ALONG: tuple(slow), COLUMN: tuple(fast)}
        return ",".join(_axis_name(along[index]) for index in self.indices)


def _axis_name(direction: Sequence[int]) -> str:
    axis = next(k for k in range(3) if direction[k])
    return ("-" if direction[axis] < 0 else "") + AXIS_NAMES[axis]


def find_reconstruction(path: str | os.PathLike[str]) -> KnownReconstruction | None:
    """The reconstruction in a file of HTTomo or Savu; None for other files.

    Raises
    ------
    ValueError
        If the file holds projections, or several results, or the file that it links to is absent.
    """
    with open_hdf5(path) as file:
        return _httomo(file) or _savu(file)


def _httomo(file: h5py.File) -> KnownReconstruction | None:
    data, angles = dataset_at(file, "data"), dataset_at(file, "angles")
    if data is None or angles is None or dataset_at(file, "data_dims/detector_x_y") is None:
        return None
    if data.ndim != 3 or data.shape[0] != data.shape[2]:
        raise ValueError(
            f"{file.filename} holds projections of HTTomo and not slices (its shape is {data.shape}); "
            "give the file of its reconstruction, or the scan itself."
        )
    return KnownReconstruction("HTTomo", "/data")


def _savu(file: h5py.File) -> KnownReconstruction | None:
    entry = file.get("entry")
    found = []
    if isinstance(entry, h5py.Group):
        for name in entry:
            if name.startswith("final_result_"):
                known = _savu_result(file, f"/entry/{name}")
                found += [known] if known is not None else []
    if not found:
        for name in file:
            if re.fullmatch(r"\d+-\w+-\w+", name):
                known = _savu_result(file, f"/{name}")
                found += [known] if known is not None else []
    if len(found) > 1:
        raise ValueError(
            f"{file.filename} holds several results of Savu; name one, as in "
            f"{file.filename}:{found[0].dataset}."
        )
    return found[0] if found else None


def _savu_result(file: h5py.File, name: str) -> KnownReconstruction | None:
    group = file.get(name)
    if not isinstance(group, h5py.Group):
        return None
    link = group.get("data", getlink=True)
    if isinstance(link, h5py.ExternalLink) and group.get("data") is None:
        raise ValueError(
            f"{file.filename} links to {link.filename}, which is not there or lacks {link.path}; copy "
            "that file beside it."
        )
    data = dataset_at(group, "data")
    if data is None:
        return None
    axes = [a.decode() if isinstance(a, bytes) else str(a) for a in group.attrs.get("axes", ())]
    if data.ndim != 3:
        if {"voxel_x", "voxel_y", "voxel_z"} <= set(axes):
            raise ValueError(
                f"{file.filename}: {name} has the shape {data.shape}: Savu varied a parameter. Give one "
                "volume."
            )
        return None
    if sorted(axes) == sorted(SAVU_AXES):
        return KnownReconstruction("Savu", f"{name}/data", tuple(SAVU_AXES[a] for a in axes))
    # the file behind the link has no @axes
    square = data.shape[0] == data.shape[2] and not axes
    return KnownReconstruction("Savu", f"{name}/data") if square else None
