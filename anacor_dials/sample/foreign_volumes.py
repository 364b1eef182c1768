"""Volumes in the files of other programs: MRC, NRRD, NIfTI and Amira.

Arrays come as these formats index them: NRRD, NIfTI and Amira x, y, z; MRC z, y, x.
"""

from __future__ import annotations

import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.tomogram_files import UNITS_TO_UM, require_memory

SUFFIXES = (".mrc", ".rec", ".map", ".nrrd", ".nhdr", ".nii", ".nii.gz", ".am")
AMIRA_TYPES = {
    "byte": "u1", "short": "i2", "ushort": "u2", "int": "i4", "float": "f4", "double": "f8",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class ForeignVolume:
    """A volume as another program wrote it.

    Attributes
    ----------
    values : array of three axes
    voxel_size_um : three floats along the array's axes, or None
        Edge lengths, where the file says them.
    """

    values: NDArray[Any]
    voxel_size_um: tuple[float, float, float] | None = None


def is_foreign_volume(path: str | os.PathLike[str]) -> bool:
    """True for the names of MRC, NRRD, NIfTI and Amira files."""
    return os.fspath(path).lower().endswith(SUFFIXES)


def read_foreign_volume(path: str | os.PathLike[str]) -> ForeignVolume:
    """The volume of an MRC, NRRD, NIfTI or Amira file, named by its suffix.

    Raises
    ------
    ValueError
        If the file is absent, damaged, larger than the memory, or needs a package that is missing.
    """
    text = os.fspath(path).lower()
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    if text.endswith((".mrc", ".rec", ".map")):
        read, package = _mrc, "mrcfile"
    elif text.endswith((".nrrd", ".nhdr")):
        read, package = _nrrd, "pynrrd"
    elif text.endswith((".nii", ".nii.gz")):
        read, package = _nifti, "nibabel"
    elif text.endswith(".am"):
        read, package = _amira, ""
    else:
        raise ValueError(f"{path} has none of the suffixes {', '.join(SUFFIXES)}.")
    try:
        volume = read(Path(path))
    except ImportError:
        raise ValueError(
            f"{path} needs {package}, which is not installed: pip install {package}."
        ) from None
    except MemoryError:
        raise ValueError(
            f"{path} asks for more memory than there is; its sizes may be damaged."
        ) from None
    except Exception as error:  # the readers raise all kinds on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}).") from None
    if volume.values.ndim != 3:
        raise ValueError(f"{path} has the shape {volume.values.shape}; a volume has three axes.")
    return volume


def _mrc(path: Path) -> ForeignVolume:
    import mrcfile

    with mrcfile.mmap(path, mode="r") as file:
        require_memory(file.data.nbytes, f"The volume {path}")
        size = file.voxel_size
        along = tuple(float(s) * 1e-4 for s in (size.z, size.y, size.x))  # angstrom
        return ForeignVolume(np.array(file.data), _sizes(along))


def _nrrd(path: Path) -> ForeignVolume:
    import nrrd

    header = nrrd.read_header(str(path))
    n_bytes = float(np.prod([float(n) for n in header["sizes"]])) * 8
    require_memory(n_bytes, f"The volume {path}")
    values, header = nrrd.read(str(path), index_order="F")
    directions = header.get("space directions")
    spacings = header.get("spacings")
    if directions is not None:
        spacings = np.linalg.norm(np.asarray(directions, dtype=np.float64), axis=1)
    if spacings is None:
        return ForeignVolume(values)
    units = header.get("space units") or header.get("units") or ["mm"]
    factor = UNITS_TO_UM.get(str(units[0]).strip('"'))
    return ForeignVolume(values, None if factor is None else _sizes(np.asarray(spacings) * factor))


def _nifti(path: Path) -> ForeignVolume:
    import nibabel

    image: Any = nibabel.load(path)
    require_memory(float(np.prod(image.shape)) * 8, f"The volume {path}")
    unit = {"micron": 1.0, "mm": 1e3, "meter": 1e6}.get(image.header.get_xyzt_units()[0])
    size = None if unit is None else _sizes(np.asarray(image.header.get_zooms()[:3]) * unit)
    values = np.asarray(image.dataobj)
    if np.issubdtype(values.dtype, np.floating) and np.all(values == np.rint(values)):
        values = values.astype(np.int32)  # labels that were written as numbers of another kind
    return ForeignVolume(values, size)


def _sizes(values: Any) -> tuple[float, float, float] | None:
    x, y, z = (float(v) for v in values)
    good = all(np.isfinite(v) and v > 0 for v in (x, y, z))
    return (x, y, z) if good else None


def decode_rle(content: bytes, size: int) -> bytes:
    """The bytes that Amira's HxByteRLE stands for.

    A byte n below 128: the next byte, n times; else the next n - 128 bytes as they are.
    """
    out = bytearray()
    place = 0
    while place < len(content) and len(out) < size:
        n = content[place]
        if n < 128:
            out += content[place + 1 : place + 2] * n
            place += 2
        else:
            out += content[place + 1 : place + 1 + n - 128]
            place += 1 + n - 128
    if len(out) != size:
        raise ValueError(f"its runs give {len(out)} bytes and the lattice has {size}")
    return bytes(out)


def _amira(path: Path) -> ForeignVolume:
    content = path.read_bytes()
    head, found, data = content.partition(b"# Data section follows")
    text = head.decode("latin-1")
    if not found or not re.match(r"# (AmiraMesh|Avizo)", text):
        raise ValueError("it does not begin as an Amira or Avizo file")
    lattice = re.search(r"define\s+Lattice\s+(\d+)\s+(\d+)\s+(\d+)", text)
    field = re.search(r"Lattice\s*\{\s*(\w+)\s+\w+\s*\}\s*=?\s*@1\s*(?:\((\w+),(\d+)\))?", text)
    if lattice is None or field is None or field.group(1) not in AMIRA_TYPES:
        raise ValueError("it has no lattice of numbers")
    nx, ny, nz = (int(n) for n in lattice.groups())
    order = (
        ">" if "BIG-ENDIAN" in text.splitlines()[0] or "BINARY 2" in text.splitlines()[0] else "<"
    )
    dtype = np.dtype(order + AMIRA_TYPES[field.group(1)])
    size = nx * ny * nz * dtype.itemsize
    require_memory(2.0 * size, f"The volume {path}")
    _, marker, data = data.partition(b"@1\n")
    if not marker:
        raise ValueError("its data are missing")
    method = field.group(2)
    if "ASCII" in text.splitlines()[0]:
        values = np.array(data.split(b"@")[0].split(), dtype=np.float64).astype(dtype)
    elif method == "HxByteRLE":
        values = np.frombuffer(decode_rle(data[: int(field.group(3))], size), dtype)
    elif method == "HxZip":
        values = np.frombuffer(zlib.decompress(data[: int(field.group(3))]), dtype)
    elif method is None:
        values = np.frombuffer(data[:size], dtype)
    else:
        raise ValueError(f"its data are packed by {method}, which is not known here")
    if values.size != nx * ny * nz:
        raise ValueError(f"it holds {values.size} values and its lattice {nx * ny * nz}")
    return ForeignVolume(
        values.reshape(nz, ny, nx).transpose(2, 1, 0).astype(dtype.newbyteorder("=")),
        _amira_size(text, (nx, ny, nz)),
    )


def _amira_size(text: str, shape: tuple[int, int, int]) -> tuple[float, float, float] | None:
    """Edge lengths from the bounding box, from the first voxel's centre to the last one's."""
    box = re.search(r"BoundingBox\s+" + r"\s+".join([r"([-+.\deE]+)"] * 6), text)
    unit = re.search(r'Coordinates\s+"([^"]+)"', text)
    factor = UNITS_TO_UM.get(unit.group(1)) if unit else None
    if box is None or factor is None:
        return None
    ends = [float(v) for v in box.groups()]
    return _sizes(
        [factor * (ends[2 * k + 1] - ends[2 * k]) / max(n - 1, 1) for k, n in enumerate(shape)]
    )
