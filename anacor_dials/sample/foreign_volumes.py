"""Volumes in the files of other programs: HDF5, TIFF, NumPy, MRC, NRRD, NIfTI and Amira.

Arrays come as these formats index them: NRRD, NIfTI and Amira x, y, z; MRC z, y, x; TIFF page, row,
column; HDF5 and NumPy as they are.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.hdf5_files import dataset_at, open_hdf5, whole_array
from anacor_dials.sample.memory import require_memory
from anacor_dials.sample.tomogram_files import UNITS_TO_UM

SUFFIXES = (".mrc", ".rec", ".map", ".nrrd", ".nhdr", ".nii", ".nii.gz", ".am")
AMIRA_TYPES = {
    "byte": "u1", "short": "i2", "ushort": "u2", "int": "i4", "float": "f4", "double": "f8",
}  # fmt: skip

LEAST_UM = 1.5e-4  # 1 angstrom (1e-4 um) stands for unknown in MRC files
LONGEST_HEADER = 2**20  # bytes, of Amira files, whose data follow


@dataclass(frozen=True, eq=False)
class ForeignVolume:
    """A volume as another program wrote it.

    Attributes
    ----------
    values : array of three axes
    voxel_size_um : three floats along the array's axes, or None
        Edge lengths, where the file says them.
    unit : str or None
        Of the values, where the file says it.
    """

    values: NDArray[Any]
    voxel_size_um: tuple[float, float, float] | None = None
    unit: str | None = None


def is_foreign_volume(path: str | os.PathLike[str]) -> bool:
    """True for the names of MRC, NRRD, NIfTI and Amira files."""
    return os.fspath(path).lower().endswith(SUFFIXES)


def split_hdf5_name(name: str | os.PathLike[str]) -> tuple[str, str] | None:
    """(file, path within it) of ``file.h5:/path/of/dataset``; None for other names."""
    text = os.fspath(name)
    file, colon, dataset = text.partition(":")
    return (file, dataset) if colon and dataset and not Path(text).exists() else None


def read_foreign_volume(path: str | os.PathLike[str]) -> ForeignVolume:
    """The volume of a file of another program.

    Parameters
    ----------
    path : path
        An HDF5 data set ``file.h5:/path/of/dataset``; a multi-page TIFF, or a folder of TIFF
        slices sorted by name; a NumPy array; or an MRC, NRRD, NIfTI or Amira file, named by its
        suffix.

    Raises
    ------
    ValueError
        If the file is absent, damaged, larger than the memory, has not three axes, or needs a
        package that is missing.
    """
    text = os.fspath(path)
    inside = split_hdf5_name(text)
    if inside is not None:
        volume = _hdf5(*inside)
    elif not Path(text).exists():
        raise ValueError(f"There is no file {text}.")
    elif is_foreign_volume(text):
        volume = _by_suffix(Path(text))
    elif Path(text).is_file() and h5py.is_hdf5(text):
        raise ValueError(
            f"{text} is an HDF5 file; name the data set too, as in {text}:/path/of/dataset."
        )
    elif text.endswith(".npy"):
        volume = ForeignVolume(_npy(text))
    else:
        volume = _tiff(Path(text))
    if volume.values.ndim != 3:
        raise ValueError(f"{text} has the shape {volume.values.shape}; a volume has three axes.")
    return volume


def _hdf5(file_name: str, name: str) -> ForeignVolume:
    with open_hdf5(file_name) as file:
        dataset = dataset_at(file, name)
        if dataset is None:
            raise ValueError(f"{file_name} has no data set {name!r}.")
        unit = dataset.attrs.get("units")
        unit = unit.decode(errors="replace") if isinstance(unit, bytes) else unit
        size = dataset.attrs.get("element_size_um")  # of ImageJ and ilastik
        return ForeignVolume(
            whole_array(dataset, dataset.dtype, "The volume"),
            None if size is None or len(size) != 3 else _sizes(size),
            str(unit) if unit is not None else None,
        )


def _npy(path: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a NumPy array of numbers ({error}).") from None
    return array


def holds_whole_numbers(path: str | os.PathLike[str]) -> bool:
    """Whether the values of a volume are whole numbers, as labels are.

    The header says it; values are read only where floats in a NIfTI file may stand for labels.

    Parameters
    ----------
    path : path
        As of :func:`read_foreign_volume`.

    Raises
    ------
    ValueError
        As :func:`read_foreign_volume` does.
    """
    text = os.fspath(path)
    inside = split_hdf5_name(text)
    if inside is not None:
        with open_hdf5(inside[0]) as file:
            dataset = dataset_at(file, inside[1])
            return dataset is None or dataset.dtype.kind in "uib"
    if not Path(text).exists():
        raise ValueError(f"There is no file {text}.")
    if is_foreign_volume(text):
        return bool(_by_suffix(Path(text), header_only=True))
    if text.endswith(".npy"):
        return _npy(text).dtype.kind in "uib"
    return read_foreign_volume(text).values.dtype.kind in "uib"


def _by_suffix(file: Path, header_only: bool = False) -> Any:
    """The volume of an MRC, NRRD, NIfTI or Amira file.

    header_only: whether its values are whole numbers, instead.
    """
    text = str(file).lower()
    if text.endswith((".mrc", ".rec", ".map")):
        read, says, package = _mrc, _mrc_is_whole, "mrcfile"
    elif text.endswith((".nrrd", ".nhdr")):
        read, says, package = _nrrd, _nrrd_is_whole, "pynrrd"
    elif text.endswith((".nii", ".nii.gz")):
        read, says, package = _nifti, _nifti_is_whole, "nibabel"
    else:
        read, says, package = _amira, _amira_is_whole, ""
    try:
        return says(file) if header_only else read(file)
    except ImportError:
        raise ValueError(
            f"{file} needs {package}, which is not installed: pip install {package}."
        ) from None
    except MemoryError:
        raise ValueError(
            f"{file} asks for more memory than there is; its sizes may be damaged."
        ) from None
    except Exception as error:  # the readers raise all kinds on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} cannot be read ({reason}).") from None


def _tiff(path: Path) -> ForeignVolume:
    """A multi-page TIFF, or the slices of a folder sorted by name."""
    import tifffile

    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in (".tif", ".tiff"))
        if not files:
            raise ValueError(f"The folder {path} has no .tif or .tiff files.")
    unreadable = (tifffile.TiffFileError, OSError, ValueError, zlib.error)
    try:
        with tifffile.TiffFile(files[0]) as first:
            n_bytes = sum(series.nbytes for series in first.series)
            size = None if path.is_dir() else _tiff_size(first)
    except unreadable as error:
        raise ValueError(f"{path} cannot be read as TIFF ({error}).") from None
    # a folder's slices are read one by one and then stacked
    require_memory(n_bytes * len(files) * (2 if path.is_dir() else 1), f"The volume {path}")
    try:
        slices = [tifffile.imread(file) for file in files]
    except unreadable as error:
        raise ValueError(f"{path} cannot be read as TIFF ({error}).") from None
    if len({s.shape for s in slices}) != 1:
        raise ValueError(f"The slices in {path} do not all have the same size.")
    return ForeignVolume(slices[0] if path.is_file() else np.stack(slices), size)


def _tiff_size(file: Any) -> tuple[float, float, float] | None:
    """Edge lengths along page, row and column, as ImageJ or OME-TIFF record them."""
    if file.ome_metadata:
        found = []
        for axis in "ZYX":
            size = re.search(rf'PhysicalSize{axis}="([-+.\deE]+)"', file.ome_metadata)
            unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', file.ome_metadata)
            factor = UNITS_TO_UM.get(unit.group(1)) if unit else 1.0
            if size is None or factor is None:
                return None
            found.append(float(size.group(1)) * factor)
        return _sizes(found)
    metadata = file.imagej_metadata or {}
    name = str(metadata.get("unit", "")).replace("\\u00B5", "µ")
    tags = file.pages[0].tags
    if name not in UNITS_TO_UM or not {"XResolution", "YResolution"} <= {t.name for t in tags}:
        return None
    per_unit = [tags[tag].value for tag in ("YResolution", "XResolution")]
    if any(not count for count, _ in per_unit):
        return None
    across = [below / count for count, below in per_unit]
    factor = UNITS_TO_UM[name]
    return _sizes([s * factor for s in (float(metadata.get("spacing", across[0])), *across)])


def _mrc(path: Path) -> ForeignVolume:
    import mrcfile

    with mrcfile.mmap(path, mode="r") as file:
        require_memory(file.data.nbytes, f"The volume {path}")
        size = file.voxel_size
        along = tuple(float(s) * 1e-4 for s in (size.z, size.y, size.x))  # angstrom
        return ForeignVolume(np.array(file.data), _sizes(along))


def _mrc_is_whole(path: Path) -> bool:
    import mrcfile

    with mrcfile.mmap(path, mode="r") as file:
        return file.data.dtype.kind in "uib"


def _nrrd_is_whole(path: Path) -> bool:
    import nrrd

    return nrrd.read_header(str(path))["type"] not in ("float", "double")


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


def _nifti_is_whole(path: Path) -> bool:
    import nibabel

    image: Any = nibabel.load(path)
    plain = image.dataobj.slope == 1 and image.dataobj.inter == 0
    if plain and image.get_data_dtype().kind in "uib":
        return True
    middle = np.asarray(image.dataobj[..., image.shape[-1] // 2])
    if not np.array_equal(middle, np.rint(middle)):
        return False
    return _nifti(path).values.dtype.kind in "uib"


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


def _sizes(values: Sequence[float] | NDArray[Any]) -> tuple[float, float, float] | None:
    """Three lengths in um; None where they are none: 1 angstrom stands for unknown in MRC files."""
    x, y, z = (float(v) for v in values)
    good = all(np.isfinite(v) and v > LEAST_UM for v in (x, y, z))
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


def _amira_header(content: bytes) -> tuple[str, re.Match[str], bytes]:
    """Of an Amira or Avizo file: its header, the kind and packing of its values, and its data."""
    head, found, data = content.partition(b"# Data section follows")
    text = head.decode("latin-1")
    if not found or not re.match(r"# (AmiraMesh|Avizo)", text):
        raise ValueError("it does not begin as an Amira or Avizo file")
    field = re.search(r"Lattice\s*\{\s*(\w+)\s+\w+\s*\}\s*=?\s*@1\s*(?:\((\w+),(\d+)\))?", text)
    if field is None or field.group(1) not in AMIRA_TYPES:
        raise ValueError("it has no lattice of numbers")
    return text, field, data


def _amira_is_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        _, field, _ = _amira_header(file.read(LONGEST_HEADER))
    return not AMIRA_TYPES[field.group(1)].startswith("f")


def _amira(path: Path) -> ForeignVolume:
    text, field, data = _amira_header(path.read_bytes())
    lattice = re.search(r"define\s+Lattice\s+(\d+)\s+(\d+)\s+(\d+)", text)
    if lattice is None:
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
