"""Layouts of HDF5 scans: where in a file images, image keys, angles, flats and darks lie.

* **NXtomo** (NeXus application definition), found by NX_class and ``definition``: Diamond, I23
  included, ``entry1/tomo_entry``; ESRF and others; image_key 0 projection, 1 flat, 2 dark,
  3 invalid (https://manual.nexusformat.org/classes/applications/NXtomo.html);
* **GDA** scanning files (Diamond K11): an NXdata group with an external link to the images and an
  ``image_key`` in the detector of the same name; links that are not needed may dangle;
* **Data Exchange** (De Carlo et al., J. Synchrotron Rad. 21 (2014) 1224): ``/exchange/data``,
  ``data_white``, ``data_dark``, ``theta``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import h5py
import numpy as np

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.tomogram_files import UNITS_TO_UM
from anacor_dials.tomography.hdf5_items import (
    as_text,
    children,
    find_dataset,
    is_class,
    link_target,
    quantity,
)

UNITS_TO_KEV = {"kev": 1.0, "ev": 1e-3, "mev": 1e3, "j": 1 / 1.602176634e-16}
ANGLE_NAMES = ("theta", "rotation", "angle", "omega", "phi", "rot")


@dataclass
class Layout:
    """Where the parts of a scan are in an HDF5 file; its metadata in our units.

    Attributes
    ----------
    name : str
        Of the layout, for the log.
    data, image_key, angles, flats, darks : str or None
        Paths in the file; None if there is no such part.
    pixel_size_um : (float, float) or None
        Along the fast and the slow axis of the image, um.
    energy_keV, distance_mm : float or None
    fast_axis, slow_axis : tuple of 3 floats, or None
        Directions in which column and row numbers grow, in the tomo frame.
    count_time : str or None
        Path of the count times.
    flat_count_time : str or None
        Path of the count time of flats that are not among the images.
    """

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
    count_time: str | None = None
    flat_count_time: str | None = None


def _first(file: h5py.Group, names: Sequence[str]) -> str | None:
    return next((name for name in names if find_dataset(file, name) is not None), None)


def _present(file: h5py.File, names: Sequence[str]) -> str | None:
    """The first name that exists; a link to something absent counts, so that it can be reported."""
    return _first(file, names) or next((n for n in names if link_target(file, n)), None)


def _pair(x: float | None, y: float | None) -> tuple[float, float] | None:
    if x is None and y is None:
        return None
    return (x or y or 0.0, y or x or 0.0)


def _instrument(file: h5py.File, layout: Layout, entry: str, detector: str) -> None:
    """Sets pixel size, distance, energy and image axes from a NeXus entry, where it has them."""
    layout.count_time = _first(file, [f"{detector}/count_time"])
    layout.fast_axis, layout.slow_axis = (
        tuple(float(v) for v in axis[()]) if axis is not None and axis.shape == (3,) else None
        for axis in (
            find_dataset(file, f"{detector}/{name}") for name in ("fast_axis", "slow_axis")
        )
    )
    pixels = [
        quantity(file, [f"{detector}/{axis}_pixel_size"], UNITS_TO_UM, "m", f"{axis} pixel size")
        for axis in "xy"
    ]
    layout.pixel_size_um = _pair(*pixels)
    distance_um = quantity(file, [f"{detector}/distance"], UNITS_TO_UM, "m", "distance")
    layout.distance_mm = None if distance_um is None else distance_um * 1e-3
    layout.energy_keV = quantity(
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


def nxtomo(file: h5py.File) -> Layout | None:
    """The NXtomo layout; None if the file has another one.

    Raises ValueError if an NXtomo entry lacks its images.
    """
    entries = []
    for name, entry in children(file):
        entries.append(name)
        entries += [n for n, g in children(entry) if is_class(g, "NXsubentry", "NXentry")]
        entries.append(f"{name}/tomo_entry")
    for entry in entries:
        definition = find_dataset(file, f"{entry}/definition")
        named = definition is not None and as_text(definition[()]).strip().lower() == "nxtomo"
        if not named and not entry.endswith("tomo_entry"):
            continue
        if not isinstance(file.get(entry), h5py.Group):
            continue
        detectors = [f"{entry}/instrument/detector"]
        instrument = file.get(f"{entry}/instrument")
        if isinstance(instrument, h5py.Group):
            detectors += [n for n, g in children(instrument) if is_class(g, "NXdetector")]
        data = _present(file, [f"{entry}/data/data", *(f"{d}/data" for d in detectors)])
        if data is None:
            raise ValueError(
                f"{file.filename}: the NXtomo entry {entry} has no images (data/data or "
                "instrument/detector/data); the scan is incomplete, or name them by data=."
            )
        detector = next((d for d in detectors if _first(file, [f"{d}/image_key"])), detectors[0])
        # image_key_control marks the ESRF's alignment images (-1), which image_key calls
        # projections
        layout = Layout(
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


def gda(file: h5py.File) -> Layout | None:
    """The layout of GDA's scanning files; None if the file has another one."""
    found = []
    for entry, group in children(file):
        for name, data in children(group):
            key = f"{entry}/instrument/{name.rsplit('/', 1)[1]}/image_key"
            if is_class(data, "NXdata") and find_dataset(file, key) is not None:
                if _present(file, [f"{name}/data"]):
                    found.append((entry, name, key))
    # the first group whose images exist; if there is none, the first, for the error message
    found.sort(key=lambda item: find_dataset(file, f"{item[1]}/data") is None)
    for entry, name, key in found[:1]:
        keys = file[key].size
        group = file[name]
        angles = [
            f"{name}/{child}"
            for child in group
            if child != "data"
            and any(part in child.lower() for part in ANGLE_NAMES)
            and (dataset := find_dataset(group, child)) is not None
            and dataset.shape == (keys,)
        ]
        angles.sort(key=lambda n: n.endswith("_set"))  # where the motor was, not where it was sent
        layout = Layout(f"GDA ({name})", f"{name}/data", key, angles[0] if angles else None)
        _instrument(file, layout, entry, key.rsplit("/", 1)[0])
        return layout
    return None


def data_exchange(file: h5py.File) -> Layout | None:
    """The Data Exchange layout; None if the file has another one.

    Raises ValueError if such a file has no images.
    """
    if not isinstance(file.get("exchange"), h5py.Group):
        return None
    data = _present(file, ["exchange/data"])
    if data is None:
        raise ValueError(f"{file.filename}: the group exchange has no data; the scan is empty.")
    detector = "measurement/instrument/detector"
    pixels = [
        quantity(
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
    return Layout(
        "Data Exchange",
        data,
        angles=_present(file, ["exchange/theta"]),
        flats=[n for n in [_present(file, ["exchange/data_white"])] if n],
        darks=[n for n in [_present(file, ["exchange/data_dark"])] if n],
        pixel_size_um=_pair(*pixels),
        energy_keV=quantity(
            file, ["measurement/instrument/monochromator/energy"], UNITS_TO_KEV, "kev", "energy"
        ),
        count_time=_first(file, [f"{detector}/exposure_time"]),
        flat_count_time=_flat_exposure(file),
    )


def _flat_exposure(file: h5py.File) -> str | None:
    """The path of the flats' exposure time in a Data Exchange file; None if it was not used.

    The APS records it in any case, and whether it differs from that of the projections.
    """
    flats = "process/acquisition/flat_fields"
    differs = find_dataset(file, f"{flats}/different_flat_exposure")
    if differs is not None and as_text(differs[()]).strip().lower() in ("same", "no", "0"):
        return _first(file, ["measurement/instrument/detector/exposure_time"])
    return _first(file, [f"{flats}/flat_exposure_time"])


def count_times(file: h5py.File, name: str | None, n_frames: int) -> FloatArray | None:
    """The count time (n_frames,) of each frame, in any unit; None if the file does not say it.

    Parameters
    ----------
    file : h5py.File
    name : str or None
        Path of the data set: one number for each frame, or one for all.
    n_frames : int
    """
    dataset = None if name is None else find_dataset(file, name)
    if dataset is None or not np.issubdtype(dataset.dtype, np.number):
        return None
    if dataset.size not in (1, n_frames):
        return None
    times = np.asarray(dataset[()], dtype=np.float64).ravel()
    return np.broadcast_to(times, (n_frames,)).copy()


def find_layout(file: h5py.File) -> Layout | None:
    """The layout of an HDF5 scan; None if it is not known.

    Raises ValueError if a file of a known layout has no images.
    """
    return nxtomo(file) or gda(file) or data_exchange(file)
