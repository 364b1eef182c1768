"""The ``tomo.h5`` format: a tomogram, its labels, and their materials.

::

    /entry                               NXentry; definition "NXtomoproc"; program, date, parameters
    /entry/frame/voxel_size              float64 (3,)  um   along X, Y, Z of the tomo frame
    /entry/frame/centre                  float64 (3,)       voxel index of the origin
    /entry/reconstruction/data           float32 (nx, ny, nz)  @units, 1/um              (optional)
                                         "arbitrary": the values are no absorption coefficients
    /entry/reconstruction/@projections   path of the scan that it was made from          (optional)
    /entry/reconstruction/@scan_centre   float64 (2,)  pixel numbers in the images of the scan
                                         of the rotation axis, across it, and of the beam's
                                         centre, along it                                (optional)
    /entry/reconstruction/@paganin_delta_beta  float64  of phase retrieval; then the values show
                                         materials, but are no absorption coefficients   (optional)
    /entry/reconstruction/@energy_keV, @distance_mm  float64  of the scan, the distance from the
                                         sample to the detector                          (optional)
    /entry/segmentation/labels           uint8 (nx, ny, nz)                              (optional)
    /entry/segmentation/names            strings (n,)       names[label]
    /entry/segmentation/mu               float64 (n,)  1/um, NaN where unknown; @energy_keV
    /entry/segmentation/probabilities    uint8 (n, nx, ny, nz), 255 = 1                  (optional)
    /entry/segmentation/@factors_uncertainty  float64  relative rms by which absorption factors are
                                         uncertain because the labels are                (optional)
    /entry/segmentation/unseen_borders   int32 (k, 3)  voxels in the midst of where the border
                                         between crystal and liquor does not show        (optional)
    /entry/segmentation/@projections     path of the scan that the labels belong to      (optional)
    /entry/segmentation/by_hand ...      which voxels people labelled                    (optional)
                                         (:mod:`.hand_made`)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials import __version__
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.hand_made import HandMadeLabels, write_hand_made
from anacor_dials.sample.hdf5_files import dataset_at, open_hdf5, whole_array, write_array
from anacor_dials.sample.large_arrays import release
from anacor_dials.sample.output_files import whole_file
from anacor_dials.sample.previews import stored_preview, write_preview
from anacor_dials.sample.volumes import DEFAULT_NAMES, LabelVolume, Tomogram

UNITS_TO_UM = {"um": 1.0, "µm": 1.0, "micron": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
MU_TO_PER_UM = {
    "1/um": 1.0, "1/µm": 1.0, "um^-1": 1.0, "1/mm": 1e-3, "mm^-1": 1e-3, "1/cm": 1e-4, "cm^-1": 1e-4,
    "1/m": 1e-6, "m^-1": 1e-6,
}  # fmt: skip
ARBITRARY = "arbitrary"
CHUNK = 64


@dataclass(frozen=True, eq=False)
class SampleFile:
    """What a ``tomo.h5`` holds; parts that it lacks are None.

    Parameters
    ----------
    path : Path
    tomogram : Tomogram or None
    labels : LabelVolume or None
    mu_per_um : array (n,) or None
        By label, 1/um, NaN where unknown.
    energy_keV : float or None
        The energy that mu belongs to.
    probabilities : array (n, nx, ny, nz) of uint8, or None
        255 = 1.
    projections : Path or None
        The raw scan.
    scan_centre : (float, float), optional
        Column or row numbers of the raw images: of the rotation axis, across it, and of the beam's
        centre, along it.
    paganin_delta_beta : float, optional
        Of the phase retrieval; None if there was none: then the values of the tomogram are mu.
    factors_uncertainty : float, optional
        The relative rms by which absorption factors are uncertain because the labels are; None if
        it is not known.
    hand_made : HandMadeLabels, optional
        Which of the labels people made. They are written, but only
        :func:`anacor_dials.sample.hand_made.read_hand_made` reads them.
    scan_energy_keV, scan_distance_mm : float, optional
        Of the scan that the tomogram was made from.
    unseen_borders : sequence of (int, int, int)
        Voxels in the midst of where the border between crystal and liquor does not show.
    """

    path: Path
    tomogram: Tomogram | None = None
    labels: LabelVolume | None = None
    mu_per_um: FloatArray | None = None
    energy_keV: float | None = None
    probabilities: NDArray[np.uint8] | None = None
    projections: Path | None = None
    scan_centre: tuple[float, float] | None = None
    paganin_delta_beta: float | None = None
    factors_uncertainty: float | None = None
    hand_made: HandMadeLabels | None = None
    scan_energy_keV: float | None = None
    scan_distance_mm: float | None = None
    unseen_borders: Sequence[tuple[int, ...]] = ()


def is_sample_file(path: str | os.PathLike[str]) -> bool:
    """Whether an HDF5 file has a part of the ``tomo.h5`` format. Raises as open_hdf5 does."""
    with open_hdf5(path) as file:
        return any(
            name in file for name in ("entry/frame", "entry/reconstruction", "entry/segmentation")
        )


def is_readable_sample(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file, and it is a tomo.h5; no error for other files."""
    return Path(path).is_file() and h5py.is_hdf5(path) and is_sample_file(path)


def _texts(dataset: h5py.Dataset) -> tuple[str, ...]:
    return tuple(v.decode() if isinstance(v, bytes) else str(v) for v in np.ravel(dataset[()]))


def _read_voxel_size(file: h5py.File, path: object) -> FloatArray:
    dataset = dataset_at(file, "entry/frame/voxel_size")
    if dataset is None:
        raise ValueError(
            f"{path} has no /entry/frame/voxel_size, so lengths in it are unknown; write it there "
            "(three lengths along X, Y, Z with the attribute units = um)."
        )
    units = dataset.attrs.get("units", "um")
    units = units.decode() if isinstance(units, bytes) else str(units)
    if units not in UNITS_TO_UM:
        raise ValueError(
            f"{path}: /entry/frame/voxel_size has the units {units!r}; known are "
            f"{', '.join(UNITS_TO_UM)}."
        )
    return np.asarray(dataset[()], dtype=np.float64) * UNITS_TO_UM[units]


def _read_centre(file: h5py.File) -> FloatArray | None:
    """The voxel index of the origin, or None."""
    dataset = dataset_at(file, "entry/frame/centre")
    return None if dataset is None else np.asarray(dataset[()], dtype=np.float64)


def _read_names(file: h5py.File) -> tuple[str, ...]:
    """The names of the labels; the usual ones if the file has none."""
    dataset = dataset_at(file, "entry/segmentation/names")
    return DEFAULT_NAMES if dataset is None else _texts(dataset)


def _read_tomogram(
    dataset: h5py.Dataset, voxel_size: FloatArray, centre: FloatArray | None
) -> Tomogram:
    """The tomogram in 1/um, or as it is where its unit is called arbitrary."""
    units = dataset.attrs.get("units", "1/um")
    units = units.decode() if isinstance(units, bytes) else str(units)
    if units not in MU_TO_PER_UM and units != ARBITRARY:
        raise ValueError(
            f"{dataset.name} has the units {units!r}; known are {', '.join(MU_TO_PER_UM)} and "
            f"{ARBITRARY}."
        )
    values = whole_array(dataset, np.float32, "The tomogram", on_disk=True)
    if MU_TO_PER_UM.get(units, 1.0) != 1.0:
        for plane in values:
            plane *= np.float32(MU_TO_PER_UM[units])
            release(values)
    return Tomogram(values, voxel_size, centre, units != ARBITRARY)


def read_sample_file(
    path: str | os.PathLike[str],
    tomogram: bool = True,
    labels: bool = True,
    probabilities: bool = False,
) -> SampleFile:
    """What a ``tomo.h5`` holds; only the parts asked for are read.

    Parameters
    ----------
    path : path
    tomogram, labels, probabilities : bool
        Which parts are read.

    Raises
    ------
    ValueError
        With the way out, for files that are absent, truncated or not HDF5, that lack the voxel
        size, whose labels have no names or no crystal, or that are larger than the memory.
    """
    with open_hdf5(path) as file:
        data = dataset_at(file, "entry/reconstruction/data") if tomogram else None
        values = dataset_at(file, "entry/segmentation/labels") if labels else None
        voxel_size = _read_voxel_size(file, path)
        centre = _read_centre(file)
        scan = scan_centre = paganin = scan_energy = scan_distance = None
        unseen: tuple[tuple[int, ...], ...] = ()
        try:
            volume = None
            whole = file.get("entry/reconstruction")
            if isinstance(whole, h5py.Group) and "paganin_delta_beta" in whole.attrs:
                paganin = float(whole.attrs["paganin_delta_beta"])
            if isinstance(whole, h5py.Group):
                scan_energy = _positive(whole, "energy_keV")
                scan_distance = _positive(whole, "distance_mm")
            if isinstance(whole, h5py.Group) and "projections" in whole.attrs:
                scan = (Path(path).parent / str(whole.attrs["projections"])).resolve()
            if isinstance(whole, h5py.Group) and "scan_centre" in whole.attrs:
                across, along = np.asarray(whole.attrs["scan_centre"], dtype=np.float64)
                scan_centre = (float(across), float(along))
            if data is not None:
                volume = _read_tomogram(data, voxel_size, centre)
            label_volume = mu = energy = chances = uncertainty = None
            if values is not None:
                group = file["entry/segmentation"]
                if not np.issubdtype(values.dtype, np.integer):
                    raise ValueError(f"labels are {values.dtype}; they must be whole numbers")
                if values.dtype != np.uint8 and values.ndim:
                    # read as uint8 they would be clipped without a word
                    for plane in values:
                        if plane.size and (plane.min() < 0 or plane.max() > 255):
                            raise ValueError(
                                f"labels reach from {plane.min()} to {plane.max()}; they are 0 to 255"
                            )
                names = _read_names(file)
                label_volume = LabelVolume(
                    whole_array(values, np.uint8, "The label volume"), voxel_size, centre, names
                )
                mu_dataset = dataset_at(file, "entry/segmentation/mu")
                if mu_dataset is not None:
                    mu = np.asarray(mu_dataset[()], dtype=np.float64)
                    if mu.shape != (len(names),):
                        raise ValueError(f"mu has {mu.size} values for {len(names)} names")
                    if "energy_keV" in mu_dataset.attrs:
                        energy = float(mu_dataset.attrs["energy_keV"])
                if "factors_uncertainty" in group.attrs:
                    uncertainty = float(group.attrs["factors_uncertainty"])
                if "projections" in group.attrs:
                    scan = (Path(path).parent / str(group.attrs["projections"])).resolve()
                unseen = _read_voxels(file, "entry/segmentation/unseen_borders", values.shape)
                chances_dataset = dataset_at(file, "entry/segmentation/probabilities")
                if probabilities and chances_dataset is not None:
                    chances = whole_array(chances_dataset, np.uint8, "The probabilities")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return SampleFile(
        Path(path),
        volume,
        label_volume,
        mu,
        energy,
        chances,
        scan,
        scan_centre,
        paganin,
        uncertainty,
        scan_energy_keV=scan_energy,
        scan_distance_mm=scan_distance,
        unseen_borders=unseen,
    )


def _read_voxels(file: h5py.File, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Voxels of a volume; none if they are not there."""
    dataset = dataset_at(file, name)
    if dataset is None:
        return ()
    voxels = np.asarray(dataset[()])
    if voxels.ndim != 2 or voxels.shape[1] != 3 or ((voxels < 0) | (voxels >= shape)).any():
        raise ValueError(f"/{name} does not hold voxels of a volume of {shape}; delete it")
    return tuple(tuple(int(v) for v in voxel) for voxel in voxels)


def read_preview(path: str | os.PathLike[str]) -> SampleFile | None:
    """A large tomogram and its labels at reduced size; None if the file holds no such preview.

    The values are in the unit of the file. Raises ValueError as :func:`read_sample_file` does.
    """
    with open_hdf5(path) as file:
        stored = stored_preview(file)
        if stored is None:
            return None
        values, labels, block = stored
        size = _read_voxel_size(file, path) * block
        centre, names = _read_centre(file), _read_names(file)
        if centre is not None:
            centre = (centre + 0.5) / block - 0.5
    return SampleFile(
        Path(path),
        Tomogram(values, size, centre, quantitative=False),
        LabelVolume(labels, size, centre, names),
    )


def _positive(group: h5py.Group, name: str) -> float | None:
    """A number above zero among a group's attributes, or None. Raises ValueError for others."""
    if name not in group.attrs:
        return None
    value = float(group.attrs[name])
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} of the reconstruction is {value}; it must be above 0")
    return value


def _create(group: h5py.Group, name: str, values: NDArray[Any]) -> h5py.Dataset:
    """A chunked, compressed data set; gzip 1 with shuffle is read by every HDF5 library."""
    chunks = tuple(min(CHUNK, n) for n in values.shape)
    if values.ndim == 4:
        chunks = (1, *chunks[1:])
    dataset = group.create_dataset(
        name,
        values.shape,
        values.dtype,
        chunks=chunks,
        compression="gzip",
        compression_opts=1,
        shuffle=True,
    )
    write_array(dataset, values)
    return dataset


def _write_frame(
    file: h5py.File, voxel_size_um: ArrayLike, centre: ArrayLike, parameters: str
) -> h5py.Group:
    """The entry of a ``tomo.h5``, with all but its volumes."""
    entry = file.create_group("entry")
    entry.attrs["NX_class"] = "NXentry"
    file.attrs["default"] = "entry"
    entry["definition"] = "NXtomoproc"
    entry["program"] = "anacor_dials"
    entry["program"].attrs["version"] = __version__
    entry["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    entry["parameters"] = parameters
    frame = entry.create_group("frame")
    frame["voxel_size"] = np.asarray(voxel_size_um, dtype=np.float64)
    frame["voxel_size"].attrs["units"] = "um"
    frame["centre"] = np.asarray(centre, dtype=np.float64)
    return entry


def _reconstruction_group(entry: h5py.Group, folder: Path, source: SampleFile | None) -> h5py.Group:
    """The group of the tomogram, without its data; folder: where the file will lie."""
    group = entry.create_group("reconstruction")
    group.attrs["NX_class"] = "NXdata"
    group.attrs["signal"] = "data"
    if source is None:
        return group
    if source.projections is not None:
        group.attrs["projections"] = os.path.relpath(source.projections, folder)
    if source.scan_centre is not None:
        group.attrs["scan_centre"] = np.asarray(source.scan_centre, dtype=np.float64)
    for name, value in (
        ("paganin_delta_beta", source.paganin_delta_beta),
        ("energy_keV", source.scan_energy_keV),
        ("distance_mm", source.scan_distance_mm),
    ):
        if value is not None:
            group.attrs[name] = float(value)
    return group


@contextmanager
def new_tomogram_file(
    path: str | os.PathLike[str],
    shape: tuple[int, int, int],
    voxel_size_um: ArrayLike,
    centre: ArrayLike,
    source: SampleFile | None = None,
    parameters: str = "",
) -> Iterator[h5py.Dataset]:
    """The data set float32 (nx, ny, nz), in 1/um, of a new ``tomo.h5``, to be filled slab by slab.

    For tomograms larger than the memory. Slabs along X of whole chunks (CHUNK) are written fastest.
    If an exception occurs within the block, the file that was there before stays as it is.

    Parameters
    ----------
    path : path
    shape : (int, int, int)
    voxel_size_um, centre : array (3,)
        As in :class:`Tomogram`.
    source : SampleFile, optional
        What it says of the scan and of the reconstruction is stored; the path of the scan relative
        to the file.
    parameters : str
        PHIL text for the record.
    """
    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        entry = _write_frame(file, voxel_size_um, centre, parameters)
        folder = Path(path).absolute().parent
        group = _reconstruction_group(entry, folder, source)
        dataset = group.create_dataset(
            "data",
            shape,
            dtype=np.float32,
            chunks=tuple(min(CHUNK, n) for n in shape),
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
        dataset.attrs["units"] = "1/um"
        yield dataset


def write_sample(path: str | os.PathLike[str], sample: SampleFile, parameters: str = "") -> None:
    """Writes a ``tomo.h5``, whole or not at all; an existing file is replaced.

    Parameters
    ----------
    path : path
    sample : SampleFile
        What is written. Its own path is not used; the path of the scan is stored relative to the
        file.
    parameters : str
        PHIL text for the record.

    Raises
    ------
    ValueError
        If the volumes disagree, or there is neither a tomogram nor a label volume.
    """
    tomogram, labels = sample.tomogram, sample.labels
    volume = labels if labels is not None else tomogram
    if volume is None:
        raise ValueError("There is neither a tomogram nor a label volume to write.")
    if tomogram is not None and labels is not None:
        if tomogram.shape != labels.shape or not np.allclose(
            tomogram.voxel_size_um, labels.voxel_size_um
        ):
            raise ValueError(f"{tomogram!r} and {labels!r} are not on the same grid.")
    folder = Path(path).absolute().parent
    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        entry = _write_frame(file, volume.voxel_size_um, volume.centre, parameters)
        if tomogram is not None:
            group = _reconstruction_group(entry, folder, sample)
            units = "1/um" if tomogram.quantitative else ARBITRARY
            _create(group, "data", tomogram.values).attrs["units"] = units
        if labels is not None:
            _write_segmentation(entry, folder, sample, labels)
        if tomogram is not None and labels is not None:
            write_preview(entry, tomogram.values, labels.values)


def _write_segmentation(
    entry: h5py.Group, folder: Path, sample: SampleFile, labels: LabelVolume
) -> None:
    """The group of the labels; folder: where the file will lie."""
    group = entry.create_group("segmentation")
    _create(group, "labels", labels.values)
    group["names"] = np.array(labels.names, dtype=h5py.string_dtype())
    n = len(labels.names)
    mu = np.full(n, np.nan) if sample.mu_per_um is None else sample.mu_per_um
    group["mu"] = np.asarray(mu, dtype=np.float64)
    if group["mu"].shape != (n,):
        raise ValueError(f"mu has {group['mu'].size} values for {n} labels.")
    group["mu"].attrs["units"] = "1/um"
    if sample.energy_keV is not None:
        group["mu"].attrs["energy_keV"] = float(sample.energy_keV)
    if sample.factors_uncertainty is not None:
        group.attrs["factors_uncertainty"] = float(sample.factors_uncertainty)
    write_unseen_borders(group, sample.unseen_borders)
    if sample.probabilities is not None:
        _create(group, "probabilities", sample.probabilities)
    if sample.hand_made is not None and sample.hand_made.n_voxels:
        write_hand_made(group, sample.hand_made)
    if sample.projections is not None:
        group.attrs["projections"] = os.path.relpath(sample.projections, folder)


def write_unseen_borders(group: h5py.Group, voxels: Sequence[tuple[int, ...]]) -> None:
    """Writes where the border between crystal and liquor does not show, in place of what was there.

    Parameters
    ----------
    group : h5py.Group
        /entry/segmentation.
    voxels : sequence of (int, int, int)
    """
    if "unseen_borders" in group:
        del group["unseen_borders"]
    if voxels:
        group["unseen_borders"] = np.array(voxels, dtype=np.int32)


def write_sample_file(
    path: str | os.PathLike[str],
    tomogram: Tomogram | None = None,
    labels: LabelVolume | None = None,
    mu_per_um: ArrayLike | None = None,
    energy_keV: float | None = None,
    probabilities: NDArray[np.uint8] | None = None,
    projections: str | os.PathLike[str] | None = None,
    parameters: str = "",
) -> None:
    """Writes a ``tomo.h5``, whole or not at all, from its main parts.

    Parameters
    ----------
    path : path
        An existing file is replaced.
    tomogram : Tomogram, optional
    labels : LabelVolume, optional
    mu_per_um : array (n,), optional
        By label, 1/um, NaN where it is unknown.
    energy_keV : float, optional
        The energy that mu belongs to.
    probabilities : array (n, nx, ny, nz) of uint8, optional
    projections : path, optional
        The raw scan; its path is stored relative to the file.
    parameters : str
        PHIL text for the record.

    Raises
    ------
    ValueError
        If the volumes disagree, or there is neither a tomogram nor a label volume.
    """
    sample = SampleFile(
        Path(path),
        tomogram,
        labels,
        None if mu_per_um is None else np.asarray(mu_per_um, dtype=np.float64),
        energy_keV,
        probabilities,
        None if projections is None else Path(projections),
    )
    write_sample(path, sample, parameters)
