"""Tomograms that other programs reconstructed: their unit, axes and voxels put into our own.

The values of a file mean what ``tomogram.unit`` says. Where nobody has said it the values show the
materials, but are no absorption coefficients: :attr:`Tomogram.quantitative` is False.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.sample.foreign_volumes import (
    ForeignVolume,
    is_foreign_volume,
    read_foreign_volume,
    split_hdf5_name,
)
from anacor_dials.sample.frames import (
    parse_axis_map,
    require_right_handed,
    sizes_along_axes,
    to_tomo_axes,
)
from anacor_dials.sample.known_reconstructions import KnownReconstruction, find_reconstruction
from anacor_dials.sample.memory import require_memory
from anacor_dials.sample.tomogram_files import ARBITRARY, MU_TO_PER_UM, is_sample_file
from anacor_dials.sample.volumes import Tomogram

PER_VOXEL = "1/voxel"
CONTRADICTION = 0.01  # relative: sizes of voxels that differ by more contradict each other
# of the half edge: programs blank the outside of a larger circle; chosen by hand
INNER_CIRCLE = 0.6


@dataclass(frozen=True)
class TomogramDescription:
    """What the user says about a tomogram of another program. None where the file is to say it.

    Parameters
    ----------
    voxel_size_um : sequence of 1 or 3 floats, optional
        Edge lengths along X, Y, Z of the tomo frame, um.
    axes : str, optional
        What the first, second and third index run along, such as "z,-y,x".
    unit : str, optional
        Of the values: 1/um, 1/mm, 1/cm, 1/m, 1/voxel, or arbitrary. None: what the file says, else
        arbitrary.
    scale, offset : float
        ``value * scale + offset`` is in that unit: for whole numbers that stand for mu.
    centre : sequence of 3 floats, optional
        Voxel index of the origin along X, Y, Z; the middle of the volume if not given.
    left_handed : bool
        That axes is left-handed on purpose.
    projections : path, optional
        The scan that it was reconstructed from.
    """

    voxel_size_um: Sequence[float] | None = None
    axes: str | None = None
    unit: str | None = None
    scale: float = 1.0
    offset: float = 0.0
    centre: Sequence[float] | None = None
    left_handed: bool = False
    projections: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.unit is not None and self.unit not in (*MU_TO_PER_UM, PER_VOXEL, ARBITRARY):
            raise ValueError(
                f"tomogram.unit is {self.unit!r}; it is 1/um, 1/mm, 1/cm, 1/m, {PER_VOXEL} or {ARBITRARY}."
            )
        if self.axes is not None:
            parse_axis_map(self.axes)
        if not (np.isfinite([self.scale, self.offset]).all() and self.scale != 0):
            raise ValueError(
                f"tomogram.scale is {self.scale} and tomogram.offset {self.offset}; value * scale + "
                "offset must be a number that grows with mu."
            )

    @property
    def is_given(self) -> bool:
        """Whether the user said anything."""
        return self != TomogramDescription()


@dataclass(frozen=True, eq=False)
class ForeignTomogram:
    """A tomogram of another program.

    Attributes
    ----------
    tomogram : Tomogram
        In our frame; in 1/um, or as it is where its unit is not known.
    notes, warnings : tuple of str
        Sentences: what was taken for granted, and what may be wrong.
    """

    tomogram: Tomogram
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def is_foreign_tomogram(
    name: str | os.PathLike[str], description: TomogramDescription | None = None
) -> bool:
    """Whether a path names a tomogram of another program, and neither a tomo.h5 nor a scan.

    TIFF files and folders are scans, and HDF5 files of unknown layout too, unless the user said how
    the tomogram lies in them. Raises ValueError as :func:`find_reconstruction` does.
    """
    text = os.fspath(name)
    if split_hdf5_name(text) is not None or is_foreign_volume(text) or text.endswith(".npy"):
        return True
    path = Path(text)
    said = description is not None and description.is_given
    if path.is_file() and h5py.is_hdf5(path):
        if is_sample_file(path):
            return False
        return said or find_reconstruction(path) is not None
    is_image = path.is_dir() or path.suffix.lower() in (".tif", ".tiff")
    return said and is_image


def read_foreign_tomogram(
    name: str | os.PathLike[str],
    description: TomogramDescription,
    pixel_xy_um: tuple[float, float] | None = None,
    camera: tuple[Sequence[float], Sequence[float]] = ((0, 1, 0), (1, 0, 0)),
) -> ForeignTomogram:
    """A tomogram of another program, in the tomo frame.

    Parameters
    ----------
    name : path
        As of :func:`read_foreign_volume`, or a file of HTTomo or Savu.
    description : TomogramDescription
        What the user says of it.
    pixel_xy_um : (float, float), optional
        The pixels of its scan along and across the rotation axis: the voxels where nothing else is
        known.
    camera : (fast axis, slow axis)
        Of the scan's images, see :class:`anacor_dials.tomography.scan_files.ScanDescription`.

    Raises
    ------
    ValueError
        If the file cannot be read, or the size of the voxels or the axes are not known.
    """
    text = os.fspath(name)
    known = _known(text)
    inside = split_hdf5_name(text)
    place = text if known is None or inside is not None else f"{text}:{known.dataset}"
    volume = read_foreign_volume(place)
    if volume.values.dtype.kind not in "uif":
        raise ValueError(f"{text} holds {volume.values.dtype} values; a tomogram holds numbers.")
    notes: list[str] = []
    axes = _axes(text, description, known, camera, notes)
    size, warnings = _voxel_size(text, description, volume, axes, pixel_xy_um)
    unit = _unit(description, volume)
    require_memory(4.0 * volume.values.size, f"The tomogram {text}")
    values = np.array(to_tomo_axes(volume.values, axes), dtype=np.float32, order="C")
    scale, offset = description.scale, description.offset
    if unit == PER_VOXEL:
        across = float(np.sqrt(size[1] * size[2]))
        scale, offset = scale / across, offset / across
    elif unit != ARBITRARY:
        scale, offset = scale * MU_TO_PER_UM[unit], offset * MU_TO_PER_UM[unit]
    if scale != 1.0:
        values *= np.float32(scale)
    if offset != 0.0:
        values += np.float32(offset)
    blank = fill_blank(values, text)
    if blank:
        notes.append(f"{100 * blank:.0f} % of the voxels, outside of a circle, are blank: air")
    notes.append(f"axes {axes}, voxels of {' x '.join(f'{v:g}' for v in size)} um, unit {unit}")
    try:
        tomogram = Tomogram(values, np.asarray(size), description.centre, unit != ARBITRARY)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None
    return ForeignTomogram(tomogram, tuple(notes), tuple(warnings))


def _known(text: str) -> KnownReconstruction | None:
    """What HTTomo or Savu wrote, where the path names its data set or no data set at all."""
    inside = split_hdf5_name(text)
    if inside is None:
        is_hdf5 = Path(text).is_file() and h5py.is_hdf5(text)
        return find_reconstruction(text) if is_hdf5 else None
    with suppress(ValueError):  # another data set of that file is to be read
        known = find_reconstruction(inside[0])
        if known is not None and known.dataset.strip("/") == inside[1].strip("/"):
            return known
    return None


def _axes(
    text: str,
    description: TomogramDescription,
    known: KnownReconstruction | None,
    camera: tuple[Sequence[float], Sequence[float]],
    notes: list[str],
) -> str:
    if description.axes is not None:
        require_right_handed(description.axes, "tomogram", description.left_handed)
        return description.axes
    if known is None:
        raise ValueError(
            f"{text} does not say what its axes run along; give tomogram.axes=, such as x,y,z or "
            "z,x,y (X is the rotation axis, Z points to the source at angle 0)."
        )
    notes.append(f"{known.dataset} was written by {known.program}")
    return known.axes(*camera)


def _voxel_size(
    text: str,
    description: TomogramDescription,
    volume: ForeignVolume,
    axes: str,
    pixel_xy_um: tuple[float, float] | None,
) -> tuple[tuple[float, float, float], list[str]]:
    """Edge lengths along X, Y, Z, and what contradicts them: as given, of the file, of the scan."""
    sources: list[tuple[str, tuple[float, float, float]]] = []
    if description.voxel_size_um:
        given = [float(v) for v in description.voxel_size_um]
        if len(given) not in (1, 3) or not all(np.isfinite(v) and v > 0 for v in given):
            raise ValueError(
                f"tomogram.voxel_size_um is {given}; it is one or three lengths > 0, in um."
            )
        x, y, z = given * 3 if len(given) == 1 else given
        sources.append(("tomogram.voxel_size_um", (x, y, z)))
    if volume.voxel_size_um is not None:
        sources.append((text, sizes_along_axes(volume.voxel_size_um, axes)))
    if pixel_xy_um is not None:
        along, across = pixel_xy_um
        sources.append((f"the scan {description.projections}", (along, across, across)))
    if not sources:
        raise ValueError(
            f"{text} does not say how large its voxels are; give tomogram.voxel_size_um=, or "
            "tomogram.projections= if they are as large as the pixels of that scan."
        )
    warnings = [
        f"The voxels are {_lengths(sources[0][1])} um by {sources[0][0]} and {_lengths(other)} um by "
        f"{where}: the former is used."
        for where, other in sources[1:]
        if not np.allclose(other, sources[0][1], rtol=CONTRADICTION, atol=0)
    ]
    return sources[0][1], warnings


def _lengths(size: Sequence[float]) -> str:
    return " x ".join(f"{v:.4g}" for v in size)


def _unit(description: TomogramDescription, volume: ForeignVolume) -> str:
    if description.unit is not None:
        return description.unit
    said = (volume.unit or "").strip()
    return said if said in MU_TO_PER_UM else ARBITRARY


def fill_blank(values: NDArray[np.float32], name: str) -> float:
    """The share of voxels that a program left blank outside of a circle about X; they become air.

    Blank is NaN, or one value that all corners of all slices have. Air is the median of what lies
    just inside of the circle, in some slices.

    Raises
    ------
    ValueError
        If there are values within the circle that are no numbers.
    """
    corners = values[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    blank: NDArray[np.bool_] = ~np.isfinite(values)
    n_missing = int(np.count_nonzero(blank))
    if np.isfinite(corners[0, 0]) and np.all(corners == corners[0, 0]):
        blank |= values == corners[0, 0]
    elif not n_missing:
        return 0.0
    ny, nz = values.shape[1:]
    y, z = np.ogrid[:ny, :nz]
    r = np.hypot((y - (ny - 1) / 2) / (ny / 2), (z - (nz - 1) / 2) / (nz / 2))
    if n_missing and not np.all(np.isfinite(values[:, r < INNER_CIRCLE])):
        raise ValueError(f"{name} holds values within the sample's circle that are not numbers.")
    blank &= r >= INNER_CIRCLE
    some = np.linspace(0, len(values) - 1, min(len(values), 9)).astype(int)
    rim = np.stack([scipy.ndimage.binary_dilation(blank[k], iterations=3) for k in some])
    rim &= ~blank[some]
    if np.any(rim):
        values[blank] = np.median(values[some][rim])
    elif n_missing:
        values[~np.isfinite(values)] = 0.0
    return float(np.count_nonzero(blank)) / values.size
