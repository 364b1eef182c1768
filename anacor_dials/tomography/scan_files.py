"""What the user says about a tomography scan, and what is found in its files; no image is read.

Images, angles, flats and darks are looked for in this order: where the user says
(:class:`ScanDescription`); in the layouts of :mod:`anacor_dials.tomography.layouts`, for HDF5
files; in TIFF files: a folder, a pattern, or a multi-page file. Angles may also come from a text
file, or from the first angle and the step.
"""

from __future__ import annotations

import logging
import math
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray, ImageAxes
from anacor_dials.sample.hdf5_files import open_hdf5
from anacor_dials.sample.image_keys import DARK, FLAT, INVALID, PROJECTION
from anacor_dials.sample.scan_geometry import ScanGeometry
from anacor_dials.tomography.hdf5_items import as_text, require_dataset
from anacor_dials.tomography.image_stacks import (
    FrameGroup,
    Frames,
    consecutive_groups,
    hdf5_stack,
    size_text,
    tiff_files,
    tiff_numbers,
    tiff_stack,
)
from anacor_dials.tomography.layouts import (
    Layout,
    count_times,
    data_exchange,
    find_layout,
    gda,
    nxtomo,
)
from anacor_dials.tomography.scan_checks import ScanChecks

logger = logging.getLogger("dials.anacor_dials.tomography.scan_files")

MISSING_LIMIT = 0.1  # of a numbered series; if more are missing, the series is refused
FAST_AXIS, SLOW_AXIS = (
    (0.0, 1.0, 0.0),
    (1.0, 0.0, 0.0),
)  # seen from the source, the axis down the rows

UNITS_TO_DEG = {
    "deg": 1.0, "degree": 1.0, "degrees": 1.0, "°": 1.0,
    "rad": math.degrees(1), "radian": math.degrees(1), "radians": math.degrees(1),
    "mdeg": 1e-3, "mrad": math.degrees(1e-3), "urad": math.degrees(1e-6), "gon": 0.9, "grad": 0.9,
    "arcmin": 1 / 60, "arcsec": 1 / 3600, "turn": 360.0, "rev": 360.0,
}  # fmt: skip


@dataclass(frozen=True)
class ScanDescription:
    """What the user says about a scan; what is not given is taken from the file.

    Parameters
    ----------
    data, image_key : str, optional
        Paths in the HDF5 file.
    angles : str, optional
        Path in the HDF5 file, or a text file with one angle per projection.
    first_angle_deg, angle_step_deg : float, optional
        Evenly spaced angles instead.
    angle_units : str, optional
        Such as deg or rad, of angles without units or with wrong ones.
    flats, darks : sequence of str
        Files of their own, in the order in which they were taken (for instance one before and one
        after the scan); ``file.h5:/path/of/dataset`` for a data set.
    flat_corrected : bool
        Whether the images are transmissions already.
    pixel_size_um : float or (float, float), optional
        At the sample; one number, or along the fast and the slow axis.
    energy_keV : float, optional
    distance_mm : float, optional
        From the sample to the detector.
    fast_axis, slow_axis : sequence of 3 floats, optional
        Directions in which column and row numbers grow, in the tomo frame at rotation_angle = 0. If
        neither the user nor the file says them: (0, 1, 0) and (1, 0, 0).
    saturation : float, optional
        A pixel of this value (as in the file) or more is unusable; the largest value of an integer
        type if not given.
    checks : ScanChecks
        What is looked for in the images, and corrected.
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
    checks: ScanChecks = ScanChecks()

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
    """What was found in the files of a scan.

    Attributes
    ----------
    path : Path
    layout : str
        What kind of file it is, for the log.
    frames : Frames
        All images.
    projections : array (n,) of int
        Numbers of the frames that are projections, in the order of the file.
    angles_deg : array (n,)
        The angle of each projection.
    flats, darks : tuple of (Frames, array, float)
        Groups of images: frames, their numbers, and the time as a frame number.
    geometry : ScanGeometry
        Pixel size, energy, distance and image axes: what the user says, else what the file says.
    count_times : array (n_frames,) or None
        The count time of every frame, in any unit; None if the file does not say it.
    flat_count_time : float or None
        The same of flats that are in the file, but not among the frames.
    """

    path: Path
    layout: str
    frames: Frames
    projections: NDArray[np.intp]
    angles_deg: FloatArray
    flats: tuple[FrameGroup, ...]
    darks: tuple[FrameGroup, ...]
    geometry: ScanGeometry
    count_times: FloatArray | None = None
    flat_count_time: float | None = None


def _angles_of(dataset: h5py.Dataset, units: str | None) -> FloatArray:
    """Angles in degrees.

    Without units they are taken as radians if they span half a turn or a whole one in radians.
    """
    values = np.asarray(dataset[()], dtype=np.float64).ravel()
    unit = units or as_text(dataset.attrs.get("units", "")).strip()
    return in_degrees(values, unit, f"{dataset.file.filename}: {dataset.name}")


def in_degrees(values: FloatArray, unit: str, where: str) -> FloatArray:
    """Angles in degrees.

    Parameters
    ----------
    values : array (n,)
    unit : str
        If empty, degrees, unless the angles span pi or 2 pi within 2 %: then radians.
    where : str
        Where the angles come from, for messages.
    """
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
    with open_hdf5(path) as file:
        if description.data is not None:
            layout = Layout("as described", description.data)
            for find in (nxtomo, gda, data_exchange):
                with suppress(ValueError):
                    other = find(file)
                    if other is not None:
                        layout = other
                        layout.data = description.data
                        break
        else:
            found = find_layout(file)
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
        frames = hdf5_stack(file, layout.data, "projections")
        n = frames.shape[0]
        keys = np.zeros(n, dtype=np.int64)
        if layout.image_key is not None:
            dataset = require_dataset(file, layout.image_key, "image keys")
            keys = np.asarray(dataset[()]).astype(np.int64).ravel()
            if keys.size != n:
                raise ValueError(
                    f"{path} has {n} images and {keys.size} image keys ({layout.image_key}); the "
                    "scan was cut off, or the keys belong to another one."
                )
        flats: list[FrameGroup] = [(frames, *group) for group in consecutive_groups(keys == FLAT)]
        darks: list[FrameGroup] = [(frames, *group) for group in consecutive_groups(keys == DARK)]
        for name in layout.flats:
            stack = hdf5_stack(file, name, "flats")
            flats.append((stack, np.arange(stack.shape[0]), 0.0))
        for name in layout.darks:
            stack = hdf5_stack(file, name, "darks")
            darks.append((stack, np.arange(stack.shape[0]), 0.0))
        projections = np.flatnonzero(keys == PROJECTION)
        angles = None
        if description.angle_step_deg is None and (in_file or description.angles is None):
            if layout.angles is None:
                raise ValueError(
                    f"{path} has no rotation angles; name them by projections.angles= (a path in "
                    "the file or a text file) or give projections.first_angle= and .angle_step=."
                )
            dataset = require_dataset(file, layout.angles, "angles")
            angles = _angles_of(dataset, description.angle_units)
        times = count_times(file, layout.count_time, n)
        # of flats that the user names from elsewhere nothing is known
        of_flats = None if description.flats else count_times(file, layout.flat_count_time, 1)
    taken = np.flatnonzero((keys == PROJECTION) | (keys == INVALID))
    places = np.searchsorted(taken, projections)
    places = places - places[:1]
    scan = _assembled(path, layout, description, frames, projections, places, angles, flats, darks)
    flat_time = None if of_flats is None else float(of_flats[0])
    return replace(scan, count_times=times, flat_count_time=flat_time)


def _from_tiff(path: Path, description: ScanDescription) -> ScanContents:
    frames = tiff_stack(path, "projections")
    projections = np.arange(frames.shape[0])
    if description.angle_step_deg is None and description.angles is None:
        raise ValueError(
            f"{path} is a TIFF stack, which has no rotation angles; give projections.angles= (a text "
            "file) or projections.first_angle= and .angle_step=."
        )
    places = tiff_numbers(frames.files) if len(frames.files) == frames.shape[0] else None
    if places is None:
        places = projections
    _check_numbers(path, places)
    layout = Layout("TIFF", "")
    return _assembled(path, layout, description, frames, projections, places, None, [], [])


def _check_numbers(path: Path, places: NDArray[np.intp]) -> None:
    """Logs the files that are missing in a numbered series; ValueError if more than a tenth are."""
    missing = np.setdiff1d(np.arange(places[-1] + 1), places)
    if not missing.size:
        return
    named = ", ".join(str(number + 1) for number in missing[:10])
    text = (
        f"{path}: {missing.size} of {places[-1] + 1} files are missing in the numbered series (file "
        f"{named}{', ...' if missing.size > 10 else ''}, counted from 1)"
    )
    if missing.size > MISSING_LIMIT * (places[-1] + 1):
        raise ValueError(f"{text}; copy the scan again, or give the files one after the other.")
    logger.warning("%s: the others keep their places, and so their angles.", text)


def _other_frames(text: str, what: str) -> tuple[Frames, NDArray[np.intp]]:
    """The flats or darks in a file of their own: ``file.h5``, ``file.h5:/data/set``, or TIFF."""
    name, colon, dataset = text.partition(":")
    if not colon and (tiff_files(text) or not Path(text).exists()):
        if Path(text).suffix.lower() in (".tif", ".tiff") or Path(text).is_dir() or "*" in text:
            frames: Frames = tiff_stack(text, what)
            return frames, np.arange(frames.shape[0])
    with open_hdf5(name) as file:
        keys = None
        if not dataset:
            layout = find_layout(file)
            if layout is None:
                raise ValueError(
                    f"{name}: where the {what} are in it is unknown; name them, {name}:/path."
                )
            dataset = next(iter(layout.flats if what == "flats" else layout.darks), layout.data)
            if layout.image_key is not None:
                keys = np.asarray(file[layout.image_key][()]).ravel()
        frames = hdf5_stack(file, dataset, what)
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


def _angles(
    path: Path,
    description: ScanDescription,
    n_frames: int,
    projections: NDArray[np.intp],
    places: NDArray[np.intp],
    angles_in_file: FloatArray | None,
) -> FloatArray:
    """The angle (n,) of each projection, in degrees; places: as in :func:`_assembled`."""
    n = len(projections)
    angles: FloatArray
    if description.angle_step_deg is not None:
        assert description.first_angle_deg is not None
        angles = np.asarray(description.first_angle_deg + description.angle_step_deg * places)
    elif angles_in_file is not None:
        angles = angles_in_file
    else:
        assert description.angles is not None
        angles = _read_text_angles(description.angles, description.angle_units)
    if angles.size == n_frames:
        angles = angles[projections]
    elif angles.size == places[-1] + 1:
        angles = angles[places]
    if angles.size != n:
        raise ValueError(
            f"{path} has {n} projections and {angles.size} rotation angles; the scan was cut off, "
            "or the angles belong to another one (projections.angles=, or .first_angle= and .angle_step=)."
        )
    if not np.all(np.isfinite(angles)):
        raise ValueError(
            f"{path}: {int(np.sum(~np.isfinite(angles)))} rotation angles are not numbers."
        )
    return angles


def _assembled(
    path: Path,
    layout: Layout,
    description: ScanDescription,
    frames: Frames,
    projections: NDArray[np.intp],
    places: NDArray[np.intp],
    angles_in_file: FloatArray | None,
    flats: list[FrameGroup],
    darks: list[FrameGroup],
) -> ScanContents:
    """The contents of a scan.

    places: (n,) the place, from 0, of each projection in the series that was taken; invalid and
    missing frames count. Evenly spaced angles follow from it.
    """
    if not len(projections):
        raise ValueError(f"{path} has no projections: no image has the key 0.")
    angles = _angles(path, description, frames.shape[0], projections, places, angles_in_file)
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
                    f"{path}: the {what} have {size_text(stack.shape[1:])} pixels and the projections "
                    f"{size_text(frames.shape[1:])}; they must be of the same size."
                )
    if not flats and not description.flat_corrected:
        raise ValueError(
            f"{path} has no flats (images without the sample), so transmissions are unknown; name a "
            "file by projections.flat=, or say projections.flat_corrected=True where the images are transmissions."
        )
    return ScanContents(
        path,
        layout.name,
        frames,
        projections,
        angles,
        tuple(flats),
        tuple(darks),
        scan_geometry(description, layout),
    )


def scan_geometry(description: ScanDescription, layout: Layout | None = None) -> ScanGeometry:
    """The geometry of a scan: what the user says comes before what the file says.

    Parameters
    ----------
    description : ScanDescription
    layout : Layout, optional
        What the file says.

    Raises
    ------
    ValueError
        If the image axes are not those of the tomo frame, or a value cannot be that of a scan.
    """
    layout = layout or Layout("", "")
    pixel = description.pixel_size_um
    return ScanGeometry(
        ImageAxes.from_vectors(
            description.fast_axis or layout.fast_axis or FAST_AXIS,
            description.slow_axis or layout.slow_axis or SLOW_AXIS,
        ),
        layout.pixel_size_um if pixel is None else (pixel[0], pixel[-1]),
        layout.energy_keV if description.energy_keV is None else description.energy_keV,
        layout.distance_mm if description.distance_mm is None else description.distance_mm,
    )


def find_scan(
    path: str | os.PathLike[str], description: ScanDescription | None = None
) -> ScanContents:
    """Where everything of a scan is; no image is read.

    path: an HDF5 file, a TIFF file, or a folder or pattern of TIFF files.

    Raises ValueError, with the way out, for scans that are absent, truncated, empty or of no known
    layout, that lack flats or angles or have broken links, or whose numbers of images, keys, angles
    and pixels do not agree.
    """
    description = description or ScanDescription()
    text = os.fspath(path)
    is_tiff = Path(text).is_dir() or Path(text).suffix.lower() in (".tif", ".tiff")
    if is_tiff or any(c in text for c in "*?["):
        return _from_tiff(Path(text), description)
    return _from_hdf5(Path(text), description)
