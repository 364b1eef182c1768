"""Labels alone in the files of other programs."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.foreign_volumes import read_foreign_volume
from anacor_dials.sample.frames import require_right_handed, sizes_along_axes, to_tomo_axes
from anacor_dials.sample.memory import require_memory
from anacor_dials.sample.volumes import DEFAULT_NAMES, LabelVolume


def write_tiff(path: str | os.PathLike[str], labels: LabelVolume) -> None:
    """Writes labels as a TIFF stack with pages along X (axes "x,y,z")."""
    import tifffile

    tifffile.imwrite(path, labels.values, compression="zlib")


def write_npy(path: str | os.PathLike[str], labels: LabelVolume) -> None:
    """Writes labels as a NumPy array (nx, ny, nz)."""
    with open(path, "wb") as file:
        np.save(file, labels.values)


def write_nrrd(path: str | os.PathLike[str], labels: LabelVolume) -> None:
    """Writes labels as NRRD 4, gzip, um; the first axis (X) runs fastest, the origin is that of the
    tomo frame.
    """
    size = labels.voxel_size_um
    origin = labels.position_um((0, 0, 0))
    directions = " ".join(
        "(" + ",".join(f"{size[i]:.9g}" if i == j else "0" for j in range(3)) + ")"
        for i in range(3)
    )
    header = (
        "NRRD0004\ntype: uint8\ndimension: 3\nspace dimension: 3\n"
        f"sizes: {' '.join(str(n) for n in labels.shape)}\n"
        f"space directions: {directions}\n"
        f"space origin: ({','.join(f'{v:.9g}' for v in origin)})\n"
        'space units: "um" "um" "um"\nencoding: gzip\n\n'
    )
    with open(path, "wb") as file:
        file.write(header.encode("ascii"))
        file.write(gzip.compress(labels.values.tobytes(order="F"), 4))


def write_nifti(path: str | os.PathLike[str], labels: LabelVolume) -> None:
    """Writes labels as NIfTI-1, um; the axes are X, Y, Z and the origin is that of the tomo frame.

    Raises ValueError where nibabel is not installed, or the name does not end in .nii or .nii.gz.
    """
    if not os.fspath(path).endswith((".nii", ".nii.gz")):
        suffix = os.path.splitext(path)[1]
        raise ValueError(
            f"The name of a NIfTI file ends in .nii or .nii.gz, and not in {suffix!r}."
        )
    try:
        import nibabel
    except ImportError:
        raise ValueError(
            f"{path} needs nibabel, which is not installed: pip install nibabel."
        ) from None
    affine = np.diag([*labels.voxel_size_um, 1.0])
    affine[:3, 3] = labels.position_um((0, 0, 0))
    image = nibabel.Nifti1Image(labels.values, affine)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, path)


def _relabelled(stack: NDArray[Any], path: object, n_names: int) -> NDArray[np.uint8]:
    """Whole, non-negative numbers below n_names as uint8."""
    if not (np.issubdtype(stack.dtype, np.integer) or stack.dtype == bool):
        raise ValueError(
            f"{path} holds {stack.dtype} values; a label stack holds whole numbers (0, 1, 2 ...)."
        )
    if stack.size == 0:
        raise ValueError(f"{path} has the shape {stack.shape}: there is nothing in it.")
    require_memory(stack.size, f"The label stack {path}")
    low, high = int(stack.min()), int(stack.max())
    if low < 0 or high >= n_names:
        raise ValueError(
            f"{path} holds labels from {low} to {high} and {n_names} names were given; name each "
            "label from 0 on (labels.names=background,liquor,loop,crystal), or if this is a tomogram "
            "say what it is in (tomogram.unit=arbitrary, 1/mm ...)."
        )
    return np.ascontiguousarray(stack, dtype=np.uint8)


def read_label_stack(
    path: str | os.PathLike[str],
    voxel_size_um: ArrayLike | None,
    axes: str = "x,y,z",
    names: Iterable[str] = DEFAULT_NAMES,
    centre: Sequence[float] | None = None,
    left_handed: bool = False,
) -> LabelVolume:
    """A label volume from the file of another program.

    Parameters
    ----------
    path : path
        A multi-page TIFF, a folder of TIFF slices (sorted by name), a NumPy array, an HDF5 data set
        ``file.h5:/path/of/dataset``, or an MRC, NRRD, NIfTI or Amira file.
    voxel_size_um : one or three floats, or None
        Edge lengths along X, Y, Z of the tomo frame; None to take those that the file says.
    axes : str
        What the array's first, second and third index run along, such as ``"z,-y,x"``
        (:func:`anacor_dials.sample.frames.parse_axis_map`).
    names : strings
        Names of the labels 0, 1, 2 ...
    centre : three floats, optional
        Voxel index of the origin along X, Y, Z after the axes have been mapped.
    left_handed : bool
        That axes is left-handed on purpose.

    Raises
    ------
    ValueError
        If the axes would mirror the sample, the file cannot be read, or no size of the voxels is
        known.
    """
    require_right_handed(axes, "labels", left_handed)
    text = os.fspath(path)
    volume = read_foreign_volume(text)
    if voxel_size_um is None:
        if volume.voxel_size_um is None:
            raise ValueError(
                f"{text} does not say how large its voxels are; give labels.voxel_size_um=."
            )
        voxel_size_um = sizes_along_axes(volume.voxel_size_um, axes)
    names = tuple(names)
    labels = _relabelled(to_tomo_axes(volume.values, axes), text, len(names))
    try:
        return LabelVolume(labels, np.asarray(voxel_size_um, np.float64), centre, names)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None
