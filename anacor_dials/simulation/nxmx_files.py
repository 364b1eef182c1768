"""Rotation images in the gold standard of NeXus for macromolecular crystallography, NXmx.

DIALS, XDS (by its durin or neggia plug-ins) and others read such files (Bernstein et al., IUCrJ 7
(2020) 784). Pixels are compressed by bitshuffle and LZ4, geometry is in the header: the lab frame
here is that of imgCIF and DIALS, which is converted to NeXus' own, that of McStas.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from anacor_dials import __version__
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.output_files import whole_file

# imgCIF (Z towards the source) to McStas (Z along the beam): half a turn about Y
MCSTAS_FROM_LAB = np.diag([-1.0, 1.0, -1.0])
MASKED = 1  # bit 0 of the pixel mask: a gap, where no pixel is
COUNTS = np.uint32


@dataclass(frozen=True)
class ImagePanel:
    """A plane part of the detector, and its place in the images.

    Parameters
    ----------
    fast, slow : array (3,)
        Unit vectors along which columns and rows grow, lab frame.
    origin : array (3,)
        The corner of the first pixel, mm, lab frame.
    shape : (int, int)
        Rows and columns.
    first_row : int
        The row of the image in which the panel begins.
    """

    fast: FloatArray
    slow: FloatArray
    origin: FloatArray
    shape: tuple[int, int]
    first_row: int = 0

    @property
    def rows(self) -> slice:
        """The rows of the image that the panel fills."""
        return slice(self.first_row, self.first_row + self.shape[0])


@dataclass(frozen=True)
class ImageDetector:
    """The detector of the images.

    Parameters
    ----------
    panels : sequence of ImagePanel
    shape : (int, int)
        Rows and columns of an image.
    mask : array (rows, columns) of bool
        Where there is a pixel.
    pixel_mm, sensor_mm : float
        Edge length of a pixel, thickness of the silicon.
    saturation : int
        The largest count that is trusted.
    """

    panels: Sequence[ImagePanel]
    shape: tuple[int, int]
    mask: NDArray[np.bool_]
    pixel_mm: float
    sensor_mm: float
    saturation: int = 1_000_000


@dataclass(frozen=True)
class ImageScan:
    """The goniometer, and the rotation during the images.

    Parameters
    ----------
    names : sequence of str
        The axes from the sample outwards.
    axes : array (n, 3)
        Their directions in the lab frame, all angles at zero.
    angles : sequence of float
        Where they stand, degrees; the rotation axis at its start.
    scanned : int
        Which of them rotates.
    n_images : int
    width : float
        Degrees of each image.
    """

    names: Sequence[str]
    axes: FloatArray
    angles: Sequence[float]
    scanned: int
    n_images: int
    width: float


@contextmanager
def new_image_file(
    path: str | os.PathLike[str],
    detector: ImageDetector,
    scan: ImageScan,
    wavelength: float,
    description: str,
) -> Iterator[h5py.Dataset]:
    """The data set (images, rows, columns) of a new file, to be filled image by image.

    If an exception occurs within the block, nothing is left.

    Parameters
    ----------
    path : path
    detector : ImageDetector
    scan : ImageScan
    wavelength : float
        Angstrom.
    description : str
        Of the detector.

    Raises
    ------
    ValueError
        If the package for bitshuffle is not installed.
    """
    try:
        import hdf5plugin
    except ImportError:
        raise ValueError(
            "Diffraction images need the package hdf5plugin: pip install 'anacor_dials[tomo]'."
        ) from None
    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["default"] = "entry"
        entry = _group(file, "entry", "NXentry")
        entry.attrs["default"] = "data"
        entry["definition"] = "NXmx"
        entry["definition"].attrs["version"] = "1.0"
        entry["program_name"] = f"anacor_dials {__version__}"
        _write_sample(entry, scan)
        instrument = _group(entry, "instrument", "NXinstrument")
        instrument["name"] = "virtual beamline"
        beam = _group(instrument, "beam", "NXbeam")
        _number(beam, "incident_wavelength", wavelength, "angstrom")
        source = _group(entry, "source", "NXsource")
        source["name"] = "virtual source"
        _write_detector(instrument, detector, description)
        data = _group(entry, "data", "NXdata")
        data.attrs["signal"] = "data"
        images = data.create_dataset(
            "data",
            (scan.n_images, *detector.shape),
            COUNTS,
            chunks=(1, *detector.shape),
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )
        yield images


def _group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _number(parent: h5py.Group, name: str, value: Any, units: str) -> h5py.Dataset:
    parent[name] = value
    parent[name].attrs["units"] = units
    return parent[name]


def _axis(
    parent: h5py.Group, name: str, value: Any, units: str, kind: str, vector: FloatArray
) -> h5py.Dataset:
    """A transformation along or about a vector of the lab frame; the caller says on what it
    depends.
    """
    dataset = _number(parent, name, value, units)
    dataset.attrs["transformation_type"] = kind
    dataset.attrs["vector"] = MCSTAS_FROM_LAB @ np.asarray(vector, dtype=np.float64)
    dataset.attrs["offset"] = np.zeros(3)
    dataset.attrs["offset_units"] = "mm"
    dataset.attrs["depends_on"] = "."
    return dataset


def _write_sample(entry: h5py.Group, scan: ImageScan) -> None:
    """The goniometer: each axis sits on the next one."""
    sample = _group(entry, "sample", "NXsample")
    sample["name"] = "virtual sample"
    transformations = _group(sample, "transformations", "NXtransformations")
    place = "/entry/sample/transformations/"
    for i, (name, vector, angle) in enumerate(zip(scan.names, scan.axes, scan.angles, strict=True)):
        values = np.array([angle], dtype=np.float64)
        if i == scan.scanned:
            values = values + scan.width * np.arange(scan.n_images)
            _number(transformations, f"{name}_end", values + scan.width, "deg")
            _number(transformations, f"{name}_increment_set", scan.width, "deg")
        axis = _axis(transformations, name, values, "deg", "rotation", vector)
        if i + 1 < len(scan.names):
            axis.attrs["depends_on"] = place + scan.names[i + 1]
    sample["depends_on"] = place + scan.names[0]


def _write_detector(instrument: h5py.Group, detector: ImageDetector, description: str) -> None:
    """Modules, each moved to its place and turned by the directions of its pixels."""
    group = _group(instrument, "detector", "NXdetector")
    group["description"] = description
    group["type"] = "photon counting"
    group["sensor_material"] = "Si"
    _number(group, "sensor_thickness", detector.sensor_mm, "mm")
    _number(group, "x_pixel_size", detector.pixel_mm, "mm")
    _number(group, "y_pixel_size", detector.pixel_mm, "mm")
    group["saturation_value"] = detector.saturation
    group["underload_value"] = 0
    group["bit_depth_readout"] = 32
    group["pixel_mask_applied"] = False
    group.create_dataset(
        "pixel_mask",
        data=np.where(detector.mask, 0, MASKED).astype(np.uint32),
        compression="gzip",
        compression_opts=1,
    )
    transformations = _group(group, "transformations", "NXtransformations")
    # dxtbx takes the first transformation that modules have in common for the whole detector
    place = "/entry/instrument/detector/transformations"
    _axis(transformations, "detector", np.zeros(1), "mm", "translation", np.array([0.0, 0.0, -1.0]))
    for i, panel in enumerate(detector.panels):
        name = f"module_{i:02d}"
        distance = float(np.linalg.norm(panel.origin))
        moved = _axis(
            transformations,
            name,
            np.array([distance]),
            "mm",
            "translation",
            panel.origin / distance,
        )
        moved.attrs["depends_on"] = f"{place}/detector"
        module = _group(group, name, "NXdetector_module")
        module["data_origin"] = np.array([panel.first_row, 0])
        module["data_size"] = np.array(panel.shape)
        for direction, vector in (("fast", panel.fast), ("slow", panel.slow)):
            pixel = _axis(
                module,
                f"{direction}_pixel_direction",
                np.array([detector.pixel_mm]),
                "mm",
                "translation",
                vector,
            )
            pixel.attrs["depends_on"] = f"{place}/{name}"
    group["depends_on"] = f"{place}/detector"
