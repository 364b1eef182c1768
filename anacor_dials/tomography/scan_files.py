"""The files of a tomography scan: where images, angles, flats and darks lie in them, read lazily.

Layouts, found in this order:

* what the user names (:class:`ScanDescription`);
* **NXtomo** (NeXus application definition), found by NX_class and ``definition``: Diamond, I23
  included, ``entry1/tomo_entry``; ESRF and others; image_key 0 projection, 1 flat, 2 dark,
  3 invalid (https://manual.nexusformat.org/classes/applications/NXtomo.html);
* **GDA** scanning files (Diamond K11): an NXdata group with an external link to the images and an
  ``image_key`` in the detector of the same name; links that are not needed may dangle;
* **Data Exchange** (De Carlo et al., J. Synchrotron Rad. 21 (2014) 1224): ``/exchange/data``,
  ``data_white``, ``data_dark``, ``theta``;
* **TIFF**: a folder, a pattern, or a multi-page file; flats and darks likewise, angles in a text file
  or as first angle and step.
"""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.tomogram_files import UNITS_TO_UM, open_hdf5

PROJECTION, FLAT, DARK, INVALID = 0, 1, 2, 3
FAST_AXIS, SLOW_AXIS = (
    (0.0, 1.0, 0.0),
    (1.0, 0.0, 0.0),
)  # seen from the source, the axis down the rows

UNITS_TO_DEG = {
    "deg": 1.0, "degree": 1.0, "degrees": 1.0, "°": 1.0,
    "rad": math.degrees(1), "radian": math.degrees(1), "radians": math.degrees(1),
    "mrad": math.degrees(1e-3), "urad": math.degrees(1e-6), "gon": 0.9, "grad": 0.9,
    "arcmin": 1 / 60, "arcsec": 1 / 3600, "turn": 360.0, "rev": 360.0,
}  # fmt: skip
UNITS_TO_KEV = {"kev": 1.0, "ev": 1e-3, "mev": 1e3, "j": 1 / 1.602176634e-16}
ANGLE_NAMES = ("theta", "rotation", "angle", "omega", "phi", "rot")


class Frames(Protocol):
    """All images of a file or folder, read only where asked for."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, rows, columns)"""

    def read(
        self, numbers: NDArray[np.intp], rows: slice = ..., columns: slice = ...
    ) -> NDArray[Any]:
        """Images (k, r, c), in the file's own type, of the frames with these numbers (k,)."""


FrameGroup = tuple[Frames, NDArray[np.intp], float]  # where, which, when (in frame numbers)


def _runs(numbers: NDArray[np.intp]) -> Iterator[tuple[int, int, int]]:
    """(first, last + 1, place in numbers) of every run of consecutive numbers."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    for start, stop in zip([0, *breaks], [*breaks, len(numbers)], strict=True):
        if stop > start:
            yield int(numbers[start]), int(numbers[stop - 1]) + 1, int(start)


def _length(window: slice, n: int) -> int:
    return len(range(*window.indices(n)))


@dataclass(frozen=True, eq=False)
class ArrayFrames:
    """Images (n, rows, columns) in memory."""

    values: NDArray[Any]

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or 0 in self.values.shape:
            raise ValueError(
                f"The scan has the shape {self.values.shape}; it must be (images, rows, columns)."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        n, rows, columns = self.values.shape
        return n, rows, columns

    def read(
        self,
        numbers: NDArray[np.intp],
        rows: slice = slice(None),
        columns: slice = slice(None),
    ) -> NDArray[Any]:
        return self.values[numbers, rows, columns]


@dataclass(frozen=True)
class HDF5Frames:
    """Images (n, rows, columns) of a data set in an HDF5 file; external links are followed."""

    path: Path
    dataset: str
    shape: tuple[int, int, int]

    def read(
        self,
        numbers: NDArray[np.intp],
        rows: slice = slice(None),
        columns: slice = slice(None),
    ) -> NDArray[Any]:
        _, n_rows, n_columns = self.shape
        with open_scan(self.path) as file:
            dataset = file[self.dataset]
            size = (len(numbers), _length(rows, n_rows), _length(columns, n_columns))
            out = np.empty(size, dtype=dataset.dtype)
            for first, stop, place in _runs(numbers):
                out[place : place + stop - first] = dataset[first:stop, rows, columns]
        return out


@dataclass(frozen=True)
class TiffFrames:
    """Images of TIFF files, one after the other; each page is an image.

    first_page: (number of files,) the number of the first image of each file.
    """

    files: tuple[Path, ...]
    first_page: tuple[int, ...]
    shape: tuple[int, int, int]

    def read(
        self,
        numbers: NDArray[np.intp],
        rows: slice = slice(None),
        columns: slice = slice(None),
    ) -> NDArray[Any]:
        import tifffile

        images = []
        for number in numbers:
            which = int(np.searchsorted(self.first_page, number, side="right")) - 1
            page = int(number) - self.first_page[which]
            try:
                image = tifffile.imread(self.files[which], key=page)
            except (tifffile.TiffFileError, ValueError, OSError) as error:
                raise ValueError(f"{self.files[which]} cannot be read ({error}).") from None
            if image.shape != self.shape[1:]:
                raise ValueError(
                    f"{self.files[which]} has {_size(image.shape)} pixels and the scan's first "
                    f"image {_size(self.shape[1:])}; leave other images out of the folder."
                )
            images.append(image[rows, columns])
        return np.stack(images)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)


@dataclass(frozen=True)
class ScanDescription:
    """What the user says about a scan. None, or nothing, where the file is to say it.

    data, image_key, angles: paths in the HDF5 file; angles may also be a text file with one angle per
    projection. first_angle_deg and angle_step_deg: evenly spaced angles instead. angle_units: such as
    deg or rad, of angles without (or with wrong) units. flats, darks: files of their own, in the order in which they were
    taken (one before and one after the scan, say), ``file.h5:/path/of/dataset`` where needed.
    flat_corrected: the images are transmissions already. pixel_size_um: at the sample; one number or
    (along fast, along slow). energy_keV; distance_mm: sample to detector. fast_axis, slow_axis: directions
    in which column and row numbers grow, in the tomo frame at rotation_angle = 0; where neither the user nor
    the file (``fast_axis`` and ``slow_axis`` beside the images) says: 0, 1, 0 and 1, 0, 0. saturation: pixel
    value (as in the file) from which on a pixel is unusable; None: the largest of an integer type.
    """

    data: str | None = None
    image_key: str | None = None
    angles: str | None = None
    first_angle_deg: float | None = None
    angle_step_deg: float | None = None
    angle_units: str | None = None
    flats: tuple[str, ...] = ()
    darks: tuple[str, ...] = ()
    flat_corrected: bool = False
    pixel_size_um: tuple[float, ...] | None = None
    energy_keV: float | None = None
    distance_mm: float | None = None
    fast_axis: tuple[float, float, float] | None = None
    slow_axis: tuple[float, float, float] | None = None
    saturation: float | None = None

    def __post_init__(self) -> None:
        if (self.first_angle_deg is None) != (self.angle_step_deg is None):
            raise ValueError("first_angle and angle_step are given together or not at all.")
        if self.angle_step_deg == 0:
            raise ValueError("The angle step is zero; the sample must turn between projections.")
        if self.angles is not None and self.angle_step_deg is not None:
            raise ValueError("Give either angles or first_angle and angle_step, not both.")
        if self.angle_units is not None and self.angle_units.lower() not in UNITS_TO_DEG:
            raise ValueError(
                f"The angle unit {self.angle_units!r} is unknown; known are {', '.join(UNITS_TO_DEG)}."
            )


@dataclass(frozen=True, eq=False)
class ScanContents:
    """What was found in a scan's files.

    frames: all images; projections: (n,) numbers of the frames that are projections, in the order of
    the file; angles_deg: (n,) theirs. flats: groups of flat images as (frames, numbers, time), time
    counted in frame numbers, or the empty tuple; darks likewise. pixel_size_um: (along fast, along slow)
    or None; energy_keV, distance_mm: None where unknown. fast_axis, slow_axis: (3,), see
    :class:`ScanDescription`. layout: its name, for the log.
    """

    path: Path
    layout: str
    frames: Frames
    projections: NDArray[np.intp]
    angles_deg: FloatArray
    flats: tuple[FrameGroup, ...]
    darks: tuple[FrameGroup, ...]
    pixel_size_um: tuple[float, float] | None
    energy_keV: float | None
    distance_mm: float | None
    fast_axis: tuple[float, ...] = FAST_AXIS
    slow_axis: tuple[float, ...] = SLOW_AXIS


# ---- HDF5 -----------------------------------------------------------------------------------------


def open_scan(path: str | os.PathLike[str]) -> Any:
    """An HDF5 file opened for reading, with the compression plug-ins of hdf5plugin where installed."""
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401
    return open_hdf5(path)


def _get(file: h5py.Group, name: str | None) -> h5py.Dataset | None:
    """The data set, or None where it is absent or its link dangles."""
    if name is None:
        return None
    try:
        item = file.get(name)
    except (OSError, RuntimeError):  # a link into a damaged file
        return None
    return item if isinstance(item, h5py.Dataset) else None


def _link_target(file: h5py.File, name: str) -> str | None:
    """Where a link points to, in words; None where there is no link of that name."""
    try:
        link = file.get(name, getlink=True)
    except (KeyError, OSError, RuntimeError):
        return None
    if isinstance(link, h5py.ExternalLink):
        return f"{link.filename}:{link.path}"
    return str(link.path) if isinstance(link, h5py.SoftLink) else None


def _require(file: h5py.File, name: str, what: str) -> h5py.Dataset:
    """The data set; ValueError where it is absent or its link dangles."""
    found = _get(file, name)
    if found is not None:
        return found
    target = _link_target(file, name)
    if target is not None:
        raise ValueError(
            f"{file.filename}: the {what} at {name} are a link to {target}, which is missing or "
            "damaged; copy the linked files beside the scan, with the folders between them."
        )
    raise ValueError(f"{file.filename} has no data set {name} for the {what}; name another.")


def _text(value: Any) -> str:
    value = np.ravel(value)[0] if np.size(value) else ""
    return value.decode() if isinstance(value, bytes) else str(value)


def _quantity(
    file: h5py.Group, names: Sequence[str], units: dict[str, float], default_unit: str, what: str
) -> float | None:
    """The first of some scalars that is there, in the unit of the table; None where there is none."""
    for name in names:
        dataset = _get(file, name)
        if dataset is None or dataset.size < 1 or not np.issubdtype(dataset.dtype, np.number):
            continue
        unit = _text(dataset.attrs.get("units", default_unit)).strip()
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


def _is_class(group: Any, *names: str) -> bool:
    return isinstance(group, h5py.Group) and _text(group.attrs.get("NX_class", "")) in names


def _children(group: h5py.Group) -> Iterator[tuple[str, h5py.Group]]:
    """Sub-groups that are part of the file itself: external links are left alone."""
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            item = group[name]
            if isinstance(item, h5py.Group):
                yield f"{group.name.rstrip('/')}/{name}", item


@dataclass
class _Layout:
    """Paths in an HDF5 file; metadata already in our units."""

    name: str
    data: str
    image_key: str | None = None
    angles: str | None = None
    flats: list[str] = field(default_factory=list)
    darks: list[str] = field(default_factory=list)
    pixel_size_um: tuple[float, float] | None = None
    energy_keV: float | None = None
    distance_mm: float | None = None
    fast_axis: tuple[float, ...] | None = None
    slow_axis: tuple[float, ...] | None = None


def _first(file: h5py.Group, names: Sequence[str]) -> str | None:
    return next((name for name in names if _get(file, name) is not None), None)


def _present(file: h5py.File, names: Sequence[str]) -> str | None:
    """The first name that is there, a dangling link included (to be complained about)."""
    return _first(file, names) or next((n for n in names if _link_target(file, n)), None)


def _pair(x: float | None, y: float | None) -> tuple[float, float] | None:
    if x is None and y is None:
        return None
    return (x or y or 0.0, y or x or 0.0)


def _instrument(file: h5py.File, layout: _Layout, entry: str, detector: str) -> None:
    """Pixel size, distance, energy, and image axes where they are said, of a NeXus entry."""
    layout.fast_axis, layout.slow_axis = (
        tuple(float(v) for v in axis[()]) if axis is not None and axis.shape == (3,) else None
        for axis in (_get(file, f"{detector}/{name}") for name in ("fast_axis", "slow_axis"))
    )
    pixels = [
        _quantity(file, [f"{detector}/{axis}_pixel_size"], UNITS_TO_UM, "m", f"{axis} pixel size")
        for axis in "xy"
    ]
    layout.pixel_size_um = _pair(*pixels)
    distance_um = _quantity(file, [f"{detector}/distance"], UNITS_TO_UM, "m", "distance")
    layout.distance_mm = None if distance_um is None else distance_um * 1e-3
    layout.energy_keV = _quantity(
        file,
        [
            f"{entry}/{name}"
            for name in (
                "instrument/beam/incident_energy",
                "beam/incident_energy",
                "sample/beam/incident_energy",
                "instrument/monochromator/energy",
            )
        ],
        UNITS_TO_KEV,
        "kev",
        "energy",
    )


def _nxtomo(file: h5py.File) -> _Layout | None:
    entries = []
    for name, entry in _children(file):
        entries.append(name)
        entries += [n for n, g in _children(entry) if _is_class(g, "NXsubentry", "NXentry")]
        entries.append(f"{name}/tomo_entry")
    for entry in entries:
        definition = _get(file, f"{entry}/definition")
        named = definition is not None and _text(definition[()]).strip().lower() == "nxtomo"
        if not named and not entry.endswith("tomo_entry"):
            continue
        if not isinstance(file.get(entry), h5py.Group):
            continue
        detectors = [f"{entry}/instrument/detector"]
        instrument = file.get(f"{entry}/instrument")
        if isinstance(instrument, h5py.Group):
            detectors += [n for n, g in _children(instrument) if _is_class(g, "NXdetector")]
        data = _present(file, [f"{entry}/data/data", *(f"{d}/data" for d in detectors)])
        if data is None:
            raise ValueError(
                f"{file.filename}: the NXtomo entry {entry} has no images (data/data or "
                "instrument/detector/data); the scan is incomplete, or name them by data=."
            )
        detector = next((d for d in detectors if _first(file, [f"{d}/image_key"])), detectors[0])
        # image_key_control marks the ESRF's alignment images (-1), which image_key calls projections
        layout = _Layout(
            f"NXtomo ({entry})",
            data,
            _first(
                file,
                [
                    f"{detector}/image_key_control",
                    f"{detector}/image_key",
                    f"{entry}/data/image_key",
                ],
            ),
            _first(
                file,
                [
                    f"{entry}/{name}"
                    for name in ("data/rotation_angle", "sample/rotation_angle", "rotation_angle")
                ],
            ),
        )
        _instrument(file, layout, entry, detector)
        return layout
    return None


def _gda(file: h5py.File) -> _Layout | None:
    found = []
    for entry, group in _children(file):
        for name, data in _children(group):
            key = f"{entry}/instrument/{name.rsplit('/', 1)[1]}/image_key"
            if _is_class(data, "NXdata") and _get(file, key) is not None:
                if _present(file, [f"{name}/data"]):
                    found.append((entry, name, key))
    # the group whose images are really there, else the first, to be complained about
    found.sort(key=lambda item: _get(file, f"{item[1]}/data") is None)
    for entry, name, key in found[:1]:
        keys = file[key].size
        group = file[name]
        angles = [
            f"{name}/{child}"
            for child in group
            if child != "data"
            and any(part in child.lower() for part in ANGLE_NAMES)
            and (dataset := _get(group, child)) is not None
            and dataset.shape == (keys,)
        ]
        angles.sort(key=lambda n: n.endswith("_set"))  # where the motor was, not where it was sent
        layout = _Layout(f"GDA ({name})", f"{name}/data", key, angles[0] if angles else None)
        _instrument(file, layout, entry, key.rsplit("/", 1)[0])
        return layout
    return None


def _data_exchange(file: h5py.File) -> _Layout | None:
    if not isinstance(file.get("exchange"), h5py.Group):
        return None
    data = _present(file, ["exchange/data"])
    if data is None:
        raise ValueError(f"{file.filename}: the group exchange has no data; the scan is empty.")
    detector = "measurement/instrument/detector"
    pixels = [
        _quantity(
            file,
            [f"{detector}/{name}" for name in names],
            UNITS_TO_UM,
            "um",
            "pixel size",
        )
        for names in (
            ("actual_pixel_size_x", "x_actual_pixel_size", "pixel_size_x", "x_pixel_size"),
            ("actual_pixel_size_y", "y_actual_pixel_size", "pixel_size_y", "y_pixel_size"),
        )
    ]
    return _Layout(
        "Data Exchange",
        data,
        angles=_present(file, ["exchange/theta"]),
        flats=[n for n in [_present(file, ["exchange/data_white"])] if n],
        darks=[n for n in [_present(file, ["exchange/data_dark"])] if n],
        pixel_size_um=_pair(*pixels),
        energy_keV=_quantity(
            file, ["measurement/instrument/monochromator/energy"], UNITS_TO_KEV, "kev", "energy"
        ),
    )


def _frames_of(file: h5py.File, name: str, what: str) -> HDF5Frames:
    dataset = _require(file, name, what)
    shape: tuple[int, ...] = dataset.shape
    if len(shape) == 2 and what != "projections":
        raise ValueError(
            f"{file.filename}: {name} has the shape {shape}; the {what} must be a stack of images."
        )
    if len(shape) != 3 or not np.issubdtype(dataset.dtype, np.number):
        raise ValueError(
            f"{file.filename}: {name} has the shape {shape} and the type {dataset.dtype}; a scan "
            "is numbers of the shape (images, rows, columns)."
        )
    if 0 in shape:
        raise ValueError(
            f"{file.filename}: {name} is empty (shape {shape}); the scan was never written."
        )
    return HDF5Frames(Path(file.filename), name, (shape[0], shape[1], shape[2]))


def _angles_of(dataset: h5py.Dataset, units: str | None) -> FloatArray:
    """Angles in degrees; without units, radians where they span half or one turn in radians."""
    values = np.asarray(dataset[()], dtype=np.float64).ravel()
    unit = units or _text(dataset.attrs.get("units", "")).strip()
    return in_degrees(values, unit, f"{dataset.file.filename}: {dataset.name}")


def in_degrees(values: FloatArray, unit: str, where: str) -> FloatArray:
    """Angles in degrees; an empty unit means degrees, unless they span pi or 2 pi within 2 %."""
    if not unit and values.size > 2:
        span = float(np.ptp(values)) * values.size / (values.size - 1)
        radians = min(abs(span / math.pi - 1), abs(span / math.tau - 1)) < 0.02
        unit = "rad" if radians else "deg"
    factor = UNITS_TO_DEG.get((unit or "deg").lower())
    if factor is None:
        raise ValueError(
            f"{where} has the unit {unit!r}, which is not one of {', '.join(UNITS_TO_DEG)}; give "
            "angle_units=."
        )
    return values * factor


def _from_hdf5(path: Path, description: ScanDescription) -> ScanContents:
    with open_scan(path) as file:
        if description.data is not None:
            layout = _Layout("as described", description.data)
            for find in (_nxtomo, _gda, _data_exchange):
                with suppress(ValueError):
                    other = find(file)
                    if other is not None:
                        layout = other
                        layout.data = description.data
                        break
        else:
            found = _nxtomo(file) or _gda(file) or _data_exchange(file)
            if found is None:
                raise ValueError(
                    f"{path} is none of the known layouts (NXtomo, GDA, Data Exchange); name the "
                    "images by projections.data=/path/in/file, and the angles by projections.angles=."
                )
            layout = found
        layout.image_key = description.image_key or layout.image_key
        in_file = description.angles is not None and not Path(description.angles).is_file()
        if in_file:
            layout.angles = description.angles
        frames = _frames_of(file, layout.data, "projections")
        n = frames.shape[0]
        keys = np.zeros(n, dtype=np.int64)
        if layout.image_key is not None:
            dataset = _require(file, layout.image_key, "image keys")
            keys = np.asarray(dataset[()]).astype(np.int64).ravel()
            if keys.size != n:
                raise ValueError(
                    f"{path} has {n} images and {keys.size} image keys ({layout.image_key}); the "
                    "scan was cut off, or the keys belong to another one."
                )
        flats: list[FrameGroup] = [(frames, *group) for group in _groups(keys == FLAT)]
        darks: list[FrameGroup] = [(frames, *group) for group in _groups(keys == DARK)]
        for name in layout.flats:
            stack = _frames_of(file, name, "flats")
            flats.append((stack, np.arange(stack.shape[0]), 0.0))
        for name in layout.darks:
            stack = _frames_of(file, name, "darks")
            darks.append((stack, np.arange(stack.shape[0]), 0.0))
        projections = np.flatnonzero(keys == PROJECTION)
        angles = None
        if description.angle_step_deg is None and (in_file or description.angles is None):
            if layout.angles is None:
                raise ValueError(
                    f"{path} has no rotation angles; name them by projections.angles= (a path in "
                    "the file or a text file) or give projections.first_angle= and .angle_step=."
                )
            dataset = _require(file, layout.angles, "angles")
            angles = _angles_of(dataset, description.angle_units)
    return _assembled(path, layout, description, frames, projections, angles, flats, darks)


def _groups(chosen: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], float]]:
    """(numbers, middle) of every run of chosen frames."""
    numbers = np.flatnonzero(chosen)
    for first, stop, _ in _runs(numbers):
        yield np.arange(first, stop), 0.5 * (first + stop - 1)


# ---- TIFF -----------------------------------------------------------------------------------------


def tiff_files(path: str | os.PathLike[str]) -> list[Path]:
    """The TIFF files that a folder, a pattern (``scan/p_*.tif``) or a name stands for, sorted by name."""
    text = os.fspath(path)
    if Path(text).is_dir():
        files = [f for f in Path(text).iterdir() if f.suffix.lower() in (".tif", ".tiff")]
    elif any(c in text for c in "*?["):
        files = [Path(f) for f in glob.glob(text)]
    else:
        files = [Path(text)] if Path(text).is_file() else []
    return sorted(files)


def _tiff_frames(path: str | os.PathLike[str], what: str) -> TiffFrames:
    import tifffile

    files = tiff_files(path)
    if not files:
        raise ValueError(f"There are no TIFF files at {path} for the {what}.")
    starts, total = [], 0
    try:
        with tifffile.TiffFile(files[0]) as first:
            shape = first.pages[0].shape
            pages = len(first.pages)
        # files of one image each are the rule: only where the first has more are all of them opened
        for file in files:
            starts.append(total)
            if pages > 1 and file != files[0]:
                with tifffile.TiffFile(file) as opened:
                    total += len(opened.pages)
            else:
                total += pages
    except (tifffile.TiffFileError, ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as TIFF ({error}).") from None
    if len(shape) != 2:
        raise ValueError(f"{files[0]} has the shape {shape}; {what} are images of one colour.")
    return TiffFrames(tuple(files), tuple(starts), (total, shape[0], shape[1]))


def _from_tiff(path: Path, description: ScanDescription) -> ScanContents:
    frames = _tiff_frames(path, "projections")
    projections = np.arange(frames.shape[0])
    if description.angle_step_deg is None and description.angles is None:
        raise ValueError(
            f"{path} is a TIFF stack, which has no rotation angles; give projections.angles= (a text "
            "file) or projections.first_angle= and .angle_step=."
        )
    return _assembled(path, _Layout("TIFF", ""), description, frames, projections, None, [], [])


# ---- both -----------------------------------------------------------------------------------------


def _other_frames(text: str, what: str) -> tuple[Frames, NDArray[np.intp]]:
    """The flats or darks in a file of their own: ``file.h5``, ``file.h5:/data/set``, or TIFF."""
    name, colon, dataset = text.partition(":")
    if not colon and (tiff_files(text) or not Path(text).exists()):
        if Path(text).suffix.lower() in (".tif", ".tiff") or Path(text).is_dir() or "*" in text:
            frames: Frames = _tiff_frames(text, what)
            return frames, np.arange(frames.shape[0])
    with open_scan(name) as file:
        keys = None
        if not dataset:
            layout = _nxtomo(file) or _gda(file) or _data_exchange(file)
            if layout is None:
                raise ValueError(
                    f"{name}: where the {what} are in it is unknown; name them, {name}:/path."
                )
            dataset = next(iter(layout.flats if what == "flats" else layout.darks), layout.data)
            if layout.image_key is not None:
                keys = np.asarray(file[layout.image_key][()]).ravel()
        frames = _frames_of(file, dataset, what)
    numbers = np.arange(frames.shape[0])
    wanted = FLAT if what == "flats" else DARK
    if keys is not None and keys.size == numbers.size and np.any(keys == wanted):
        numbers = numbers[keys == wanted]
    return frames, numbers


def _read_text_angles(path: str, units: str | None) -> FloatArray:
    try:
        values = np.loadtxt(path, dtype=np.float64, ndmin=1)
    except ValueError as error:
        raise ValueError(f"{path} is not a list of angles ({error}).") from None
    return in_degrees(values.ravel(), units or "", path)


def _assembled(
    path: Path,
    layout: _Layout,
    description: ScanDescription,
    frames: Frames,
    projections: NDArray[np.intp],
    angles_in_file: FloatArray | None,
    flats: list[FrameGroup],
    darks: list[FrameGroup],
) -> ScanContents:
    n = len(projections)
    if n == 0:
        raise ValueError(f"{path} has no projections: no image has the key 0.")
    angles: FloatArray
    if description.angle_step_deg is not None:
        assert description.first_angle_deg is not None
        angles = np.asarray(description.first_angle_deg + description.angle_step_deg * np.arange(n))
    elif angles_in_file is not None:
        angles = angles_in_file
    else:
        assert description.angles is not None
        angles = _read_text_angles(description.angles, description.angle_units)
    if angles.size == frames.shape[0]:
        angles = angles[projections]
    if angles.size != n:
        raise ValueError(
            f"{path} has {n} projections and {angles.size} rotation angles; the scan was cut off, "
            "or the angles belong to another one (projections.angles=, or .first_angle= and .angle_step=)."
        )
    if not np.all(np.isfinite(angles)):
        raise ValueError(
            f"{path}: {int(np.sum(~np.isfinite(angles)))} rotation angles are not numbers."
        )
    for what, texts, groups in (
        ("flats", description.flats, flats),
        ("darks", description.darks, darks),
    ):
        if texts:
            groups.clear()
            # one file: for the whole scan; several: evenly from its beginning to its end
            times = np.linspace(0, frames.shape[0] - 1, len(texts)) if len(texts) > 1 else [0.0]
            for text, time in zip(texts, times, strict=True):
                groups.append((*_other_frames(text, what), float(time)))
        for stack, _, _ in groups:
            if stack.shape[1:] != frames.shape[1:]:
                raise ValueError(
                    f"{path}: the {what} have {_size(stack.shape[1:])} pixels and the projections "
                    f"{_size(frames.shape[1:])}; they must be of the same size."
                )
    if not flats and not description.flat_corrected:
        raise ValueError(
            f"{path} has no flats (images without the sample), so transmissions are unknown; name a "
            "file by projections.flat=, or say projections.flat_corrected=True where the images are transmissions."
        )
    pixel = description.pixel_size_um
    size = layout.pixel_size_um if pixel is None else (pixel[0], pixel[-1])
    return ScanContents(
        path,
        layout.name,
        frames,
        projections,
        angles,
        tuple(flats),
        tuple(darks),
        size,
        layout.energy_keV if description.energy_keV is None else description.energy_keV,
        layout.distance_mm if description.distance_mm is None else description.distance_mm,
        description.fast_axis or layout.fast_axis or FAST_AXIS,
        description.slow_axis or layout.slow_axis or SLOW_AXIS,
    )


def find_scan(
    path: str | os.PathLike[str], description: ScanDescription | None = None
) -> ScanContents:
    """Where everything of a scan is; reads no image.

    path: an HDF5 file, a TIFF file, or a folder or pattern of TIFF files. Raises ValueError with the
    way out for scans that are absent, truncated, empty, of no known layout, without flats or angles,
    with dangling links, or whose numbers of images, keys, angles and pixels do not agree.
    """
    description = description or ScanDescription()
    text = os.fspath(path)
    is_tiff = Path(text).is_dir() or Path(text).suffix.lower() in (".tif", ".tiff")
    if is_tiff or any(c in text for c in "*?["):
        return _from_tiff(Path(text), description)
    return _from_hdf5(Path(text), description)
