"""Virtual scans: all images of a rotating sample, written as an NXtomo file, and the truth.

Images are made *upright* (first index along X, the rotation axis, second along Y at angle zero) and
written with the rows and columns that the settings ask for.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from anacor_dials import __version__
from anacor_dials.sample.frames import FloatArray, ImageAxes, scan_rotation
from anacor_dials.sample.image_keys import DARK, FLAT, PROJECTION
from anacor_dials.sample.output_files import OutputFiles
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.simulation.detector import (
    DetectorModel,
    Sensor,
    binned,
    flats_for_scan,
    synthetic_flats,
)
from anacor_dials.simulation.meshes import thickness_maps
from anacor_dials.simulation.samples import Sample
from anacor_dials.simulation.wavefield import (
    WaveGrid,
    detector_intensity,
    enough_points,
    incident_wave,
    longest_step_um,
    on_device,
    require_sampling,
    sample_factor,
    transfer_function,
)

logger = logging.getLogger("dials.anacor_dials.simulation.scan")

COARSE = 1.5  # times the longest step of the wave that rims allow: fringes are visibly wrong
N_BEAM_STATES = 4  # patterns of the incident beam that are propagated to the sample and kept


@dataclass(frozen=True)
class ScanSettings:
    """How a scan is taken.

    Parameters
    ----------
    energy_keV, distance_mm, pixel_size_um : float
        Photons; sample to detector; pixels at the sample.
    image_shape : (int, int)
        Rows and columns of the images that are written.
    n_projections : int
    first_angle, angle_range : float
        Degrees; the angles are first_angle + k angle_range / n_projections.
    fast_axis, slow_axis : tuple of 3 floats
        Directions in which column and row numbers grow, in the tomo frame at angle zero.
    axis_shift_px : float
        How far the rotation axis is from the middle of the image, along Y.
    oversampling : int, optional
        Points of the wave per pixel and direction; as many as rims need
        (:func:`.wavefield.enough_points`) if not given.
    n_slices : int
        Layers that the sample is divided into along the beam; 1 is the projection approximation.
    propagator : str
        fresnel or angular_spectrum.
    precision : str
        single or double.
    n_flats, n_darks : int
        Of each, before and again after the projections.
    detector : DetectorModel
    """

    energy_keV: float = 3.5
    distance_mm: float = 10.0
    pixel_size_um: float = 0.3
    image_shape: tuple[int, int] = (1024, 1024)
    n_projections: int = 900
    first_angle: float = 0.0
    angle_range: float = 180.0
    fast_axis: tuple[float, float, float] = (0.0, 1.0, 0.0)
    slow_axis: tuple[float, float, float] = (1.0, 0.0, 0.0)
    axis_shift_px: float = 0.0
    oversampling: int | None = None
    n_slices: int = 1
    propagator: str = "fresnel"
    precision: str = "single"
    n_flats: int = 10
    n_darks: int = 10
    detector: DetectorModel = field(default_factory=DetectorModel)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.energy_keV) and 0.5 <= self.energy_keV <= 150):
            raise ValueError(
                f"The photon energy is {self.energy_keV} keV; scans are simulated between 0.5 and 150 keV."
            )
        if self.n_projections < 1 or not (
            math.isfinite(self.angle_range) and self.angle_range != 0
        ):
            raise ValueError(
                f"A scan of {self.n_projections} projections over {self.angle_range} degrees is none; "
                "ask for at least one projection and a range other than 0."
            )
        if self.n_flats < 1 or self.n_darks < 1 or self.n_slices < 1:
            raise ValueError(
                f"n_flats ({self.n_flats}), n_darks ({self.n_darks}) and n_slices ({self.n_slices}) must "
                "be at least 1."
            )
        if self.precision not in ("single", "double"):
            raise ValueError(f"The precision is {self.precision!r}; choose single or double.")
        if min(self.image_shape) < 8:
            raise ValueError(
                f"Images of {self.image_shape[0]} x {self.image_shape[1]} pixels are too small; 8 x 8 "
                "is the least."
            )
        _ = self.axes, self.grid  # refuse what cannot be

    @property
    def axes(self) -> ImageAxes:
        """How rows and columns lie in the tomo frame."""
        return ImageAxes.from_vectors(self.fast_axis, self.slow_axis)

    @property
    def upright_shape(self) -> tuple[int, int]:
        """Pixels (nx, ny) along X and Y."""
        return self.axes.upright_shape(*self.image_shape)

    @property
    def grid(self) -> WaveGrid:
        """The grid of the wave. Raises ValueError if it is too coarse for the distance."""
        points = self.oversampling
        if points is None:
            points = enough_points(
                self.upright_shape, self.pixel_size_um, self.energy_keV, self.distance_mm
            )
        step = self.pixel_size_um / max(points, 1)
        grid = WaveGrid.around(
            self.upright_shape,
            self.pixel_size_um,
            points,
            self.energy_keV,
            self.distance_mm,
            max(8, self.detector.blur_points(step) + 1),
        )
        require_sampling(grid.shape, grid.step_um, self.distance_mm * 1e3, self.energy_keV)
        return grid

    @property
    def angles(self) -> FloatArray:
        """Rotation angles (n_projections,) in degrees."""
        return (
            self.first_angle + self.angle_range * np.arange(self.n_projections) / self.n_projections
        )

    def raw(self, upright: NDArray[Any]) -> NDArray[Any]:
        """An upright image (nx, ny) as the rows and columns that are written."""
        axes = self.axes
        image = upright[:: axes.x_sign, :: axes.y_sign]
        return np.ascontiguousarray(image.T if axes.transposed else image)


def require_in_view(sample: Sample, settings: ScanSettings) -> None:
    """Raises ValueError if the sample leaves the images as it turns.

    Loop, stem and pin may leave the images along the rotation axis; crystal and liquor may not.
    """
    nx, ny = settings.upright_shape
    half_x = 0.5 * nx * settings.pixel_size_um
    half_y = (0.5 * ny - abs(settings.axis_shift_px)) * settings.pixel_size_um
    reach = 0.0
    for part in sample.parts:
        low, high = part.mesh.bounds_um
        if part.material in ("crystal", "liquor") and (low[0] < -half_x or high[0] > half_x):
            raise ValueError(
                f"The {part.material} reaches from {low[0]:.0f} to {high[0]:.0f} um along the rotation "
                f"axis and the images show {-half_x:.0f} to {half_x:.0f} um; take more or larger pixels."
            )
        if low[0] <= half_x and high[0] >= -half_x:
            reach = max(reach, float(np.hypot(*part.mesh.vertices[:, 1:].T).max()))
    if reach > half_y:
        raise ValueError(
            f"The sample is larger than the field of view: it reaches {reach:.0f} um from the rotation "
            f"axis and the images {half_y:.0f} um; take more or larger pixels, or a smaller sample."
        )


@dataclass(frozen=True, eq=False)
class VirtualScan:
    """A sample at the beamline; makes images one by one.

    Parameters
    ----------
    sample : Sample
    settings : ScanSettings
    beam_flats : array (n, nx, ny)
        Relative intensities on the detector without sample. They light the projections in turn.
    device : str
        "cpu" or "cuda".
    """

    sample: Sample
    settings: ScanSettings
    beam_flats: FloatArray
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_in_view(self.sample, self.settings)
        s, step = self.settings, self.grid.step_um
        longest = longest_step_um(s.pixel_size_um, s.energy_keV, s.distance_mm)
        if step > COARSE * longest:
            logger.warning(
                "The wave has a point every %.3g um, and rims of the sample need one every %.3g um at %g keV: "
                "fringes there will be wrong. Take smaller or fewer pixels, or more points per pixel "
                "(scan.oversampling=).",
                step,
                longest,
                s.energy_keV,
            )

    @cached_property
    def grid(self) -> WaveGrid:
        """The grid of the wave."""
        return self.settings.grid

    @cached_property
    def radius_um(self) -> float:
        """The largest distance of the sample from the rotation axis, um."""
        return max(float(np.hypot(*m.vertices[:, 1:].T).max()) for m in self.sample.meshes)

    @cached_property
    def slab_edges_um(self) -> FloatArray:
        """Edges (n_slices + 1,) of the layers along Z, evenly spaced; the outer ones are open."""
        edges = np.linspace(-self.radius_um, self.radius_um, self.settings.n_slices + 1)
        edges[[0, -1]] = -np.inf, np.inf
        return edges

    @property
    def slab_distance_um(self) -> float:
        """From the middle of one layer to that of the next, um."""
        return 2 * self.radius_um / self.settings.n_slices

    def _transfer(self, distance_um: float) -> torch.Tensor:
        s = self.settings
        return transfer_function(
            self.grid.shape,
            self.grid.step_um,
            distance_um,
            s.energy_keV,
            s.propagator,
            self.device,
            s.precision,
        )

    @cached_property
    def _transfers(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Transfer functions: first layer to detector, layer to layer, last layer to detector."""
        s = self.settings
        depth = 0.5 * (s.n_slices - 1) * self.slab_distance_um
        if s.n_slices > 1 and s.distance_mm * 1e3 < depth:
            raise ValueError(
                f"The detector, at {s.distance_mm} mm, stands in the sample; move it back or take one slice."
            )
        first = self._transfer(s.distance_mm * 1e3 + depth)
        if s.n_slices == 1:
            return first, None, first
        return (
            first,
            self._transfer(self.slab_distance_um),
            self._transfer(s.distance_mm * 1e3 - depth),
        )

    @cached_property
    def _incident(self) -> list[torch.Tensor]:
        """The wave at the first layer for each state of the beam."""
        return [
            incident_wave(
                on_device(self.grid.refined(flat), self.device, self.settings.precision),
                self._transfers[0],
            )
            for flat in self.beam_flats
        ]

    @cached_property
    def _optical(self) -> tuple[FloatArray, FloatArray]:
        s = self.settings
        return self.sample.mu_per_um(s.energy_keV), self.sample.delta(s.energy_keV)

    def thicknesses(self, angle: float) -> FloatArray:
        """Thicknesses (n_labels, n_slices, mx, my) in um of all materials, layers in the order of
        the beam.
        """
        nx, ny = self.settings.upright_shape
        centre = np.array([(nx - 1) / 2, (ny - 1) / 2 + self.settings.axis_shift_px])
        maps = thickness_maps(
            self.sample.meshes,
            self.sample.labels,
            len(self.sample.names),
            scan_rotation(angle).T,
            self.grid.first_point_um(centre),
            self.grid.shape,
            self.grid.step_um,
            self.slab_edges_um,
        )
        return np.flip(maps, axis=1).copy()  # the beam comes from +Z

    def intensity(self, angle: float, state: int = 0) -> torch.Tensor:
        """Intensities (nx, ny) on the pixels, relative to the mean of the beam, with the detector's
        blur.
        """
        s = self.settings
        maps = on_device(self.thicknesses(angle)[1:], self.device, s.precision)
        mu, delta = self._optical
        layers = [
            sample_factor(maps[:, k], mu[1:], delta[1:], s.energy_keV) for k in range(s.n_slices)
        ]
        _, between, to_detector = self._transfers
        fine = detector_intensity(self._incident[state], layers, between, to_detector)
        return self._on_pixels(fine)

    def flat_intensity(self, flat: FloatArray) -> torch.Tensor:
        """Intensities (nx, ny) on the pixels of a flat (nx, ny), without a sample."""
        return self._on_pixels(
            on_device(self.grid.refined(flat), self.device, self.settings.precision)
        )

    def _on_pixels(self, fine: torch.Tensor) -> torch.Tensor:
        grid = self.grid
        sigma = self.settings.detector.blur_sigma_um / grid.step_um
        return binned(fine, grid.image_shape, grid.margin, grid.oversampling, sigma)

    def transmission(self, angle: float) -> NDArray[np.float64]:
        """The noiseless flat-corrected image (nx, ny), upright."""
        ratio = self.intensity(angle) / self.flat_intensity(self.beam_flats[0])
        return ratio.cpu().numpy().astype(np.float64)


def true_labels(sample: Sample, settings: ScanSettings) -> LabelVolume:
    """The true labels on the grid of the reconstruction: voxels like pixels, the axis in the
    middle.
    """
    nx, ny = settings.upright_shape
    return sample.label_volume(settings.pixel_size_um, (nx, ny, ny))


@dataclass(frozen=True, eq=False)
class ScanOptions:
    """What a scan may be made with besides its settings.

    Parameters
    ----------
    device : str
        "cpu" or "cuda".
    real_flats : array (n, rows, columns), optional
        Flats of a real scan, from which the beam is taken; synthetic ones if not given.
    parameters : str
        PHIL text, for the record.
    recipe : mapping
        What the sample was drawn by, for the record.
    progress : callable
        Is called with 1 after each projection.
    """

    device: str = "cpu"
    real_flats: FloatArray | None = None
    parameters: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    progress: Callable[[int], object] = lambda done: None


class _Camera:
    """The images of a scan, one after the other: darks, flats, projections, flats, darks."""

    def __init__(
        self, sample: Sample, settings: ScanSettings, rng: np.random.Generator, options: ScanOptions
    ) -> None:
        self.settings, detector = settings, settings.detector
        shape = settings.upright_shape
        if options.real_flats is None:
            self.beam = synthetic_flats(shape, N_BEAM_STATES, rng, detector.flat_shift_px)
            self.before, self.after = self.beam[:1], self.beam[-1:]
        else:
            raw = np.asarray(options.real_flats, float)
            upright = np.stack([settings.axes.upright(flat) for flat in raw])
            beam, recorded = flats_for_scan(upright, rng)
            self.beam = beam[:N_BEAM_STATES]
            half = (len(recorded) + 1) // 2
            self.before, self.after = recorded[:half], recorded[len(recorded) // 2 :]
        self.scan = VirtualScan(sample, settings, self.beam, options.device)
        self.sensor = Sensor.drawn(detector, shape, rng)
        self.generator = torch.Generator(device=options.device)
        self.generator.manual_seed(int(rng.integers(2**62)))
        noise = rng.standard_normal(settings.n_projections)
        self.flicker = 1.0 + 0.1 * detector.beam_drift * noise

    def images(self, progress: Callable[[int], object]) -> Iterator[NDArray[np.uint16]]:
        """Raw images (rows, columns); progress is called with 1 after each projection."""
        settings, n = self.settings, self.settings.n_projections
        for _ in range(settings.n_darks):
            yield self._raw(None)
        for number in range(settings.n_flats):
            yield self._flat(self.before[number % len(self.before)], 0.0)
        for number, angle in enumerate(settings.angles):
            time = number / n
            state = min(int(time * len(self.beam)), len(self.beam) - 1)
            strength = self._strength(time) * self.flicker[number]
            yield self._raw(self.scan.intensity(float(angle), state) * strength)
            progress(1)
        for number in range(settings.n_flats):
            yield self._flat(self.after[number % len(self.after)], 1.0)
        for _ in range(settings.n_darks):
            yield self._raw(None)

    def _strength(self, time: float) -> float:
        """The relative intensity of the beam; time: 0 at the first projection, 1 at the last."""
        return 1.0 + self.settings.detector.beam_drift * (time - 0.5)

    def _flat(self, flat: FloatArray, time: float) -> NDArray[np.uint16]:
        return self._raw(self.scan.flat_intensity(flat) * self._strength(time), flat=True)

    def _raw(self, intensity: torch.Tensor | None, flat: bool = False) -> NDArray[np.uint16]:
        return self.settings.raw(self.sensor.counts(intensity, self.generator, flat))


def _image_keys(settings: ScanSettings) -> tuple[NDArray[np.intp], FloatArray]:
    """The image key and the rotation angle (deg) of every image."""
    n_darks, n_flats, n = settings.n_darks, settings.n_flats, settings.n_projections
    keys = np.repeat([DARK, FLAT, PROJECTION, FLAT, DARK], [n_darks, n_flats, n, n_flats, n_darks])
    without_sample = np.ones(n_darks + n_flats)
    first, last = settings.angles[0], settings.angles[-1]
    angles = np.concatenate([first * without_sample, settings.angles, last * without_sample])
    return keys, angles


def write_scan(
    scan_file: str | os.PathLike[str],
    truth_file: str | os.PathLike[str],
    sample: Sample,
    settings: ScanSettings,
    rng: np.random.Generator,
    options: ScanOptions | None = None,
) -> None:
    """Makes a scan and writes the NXtomo file and the truth, both or neither.

    The truth holds labels, materials and mu, and points to the scan.

    Parameters
    ----------
    scan_file, truth_file : path
    sample : Sample
    settings : ScanSettings
    rng : numpy.random.Generator
    options : ScanOptions, optional
        Device, flats of a real scan, notes for the record, and progress.

    Raises
    ------
    ValueError
        If sample, settings and flats do not go together.
    """
    options = options or ScanOptions()
    seed = rng.bit_generator.seed_seq
    record = {
        "seed": str(getattr(seed, "entropy", None)),
        "spawn_key": list(getattr(seed, "spawn_key", ())),
        "settings": asdict(settings),
        "sample": dict(sample.parameters),
        "recipe": dict(options.recipe),
    }
    camera = _Camera(sample, settings, rng, options)
    keys, angles = _image_keys(settings)
    with OutputFiles() as out:
        scan_path, truth_path = out.path(scan_file), out.path(truth_file)
        with h5py.File(scan_path, "w") as file:
            images = _write_metadata(file, settings, record, keys, angles, options.parameters)
            for place, image in enumerate(camera.images(options.progress)):
                images[place] = image
        write_sample_file(
            truth_path,
            labels=true_labels(sample, settings),
            mu_per_um=sample.mu_per_um(settings.energy_keV),
            energy_keV=settings.energy_keV,
            projections=Path(scan_file).absolute(),
            parameters=options.parameters,
        )


def _write_metadata(
    file: h5py.File,
    settings: ScanSettings,
    record: dict[str, Any],
    keys: NDArray[Any],
    angles: FloatArray,
    parameters: str,
) -> h5py.Dataset:
    """Everything of an NXtomo file but the images; returns the data set that they go into."""

    def group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
        made = parent.create_group(name)
        made.attrs["NX_class"] = nx_class
        return made

    def quantity(parent: h5py.Group, name: str, value: Any, units: str) -> None:
        parent[name] = value
        parent[name].attrs["units"] = units

    file.attrs["default"] = "entry1"
    entry1 = group(file, "entry1", "NXentry")
    entry1.attrs["default"] = "tomo_entry"
    entry = group(entry1, "tomo_entry", "NXsubentry")
    entry.attrs["default"] = "data"
    entry["definition"] = "NXtomo"
    entry["title"] = "virtual scan"
    entry["program_name"] = "anacor_dials"
    entry["program_name"].attrs["version"] = __version__
    entry["start_time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    instrument = group(entry, "instrument", "NXinstrument")
    instrument["name"] = "virtual beamline"
    source = group(instrument, "source", "NXsource")
    source["probe"] = "x-ray"
    source["type"] = "Synchrotron X-ray Source"
    beam = group(instrument, "beam", "NXbeam")
    quantity(beam, "incident_energy", settings.energy_keV, "keV")
    detector = group(instrument, "detector", "NXdetector")
    rows, columns = settings.image_shape
    images = detector.create_dataset(
        "data", (len(keys), rows, columns), dtype=np.uint16, chunks=(1, rows, columns)
    )
    images.attrs["units"] = "counts"
    detector["image_key"] = keys.astype(np.int32)
    for axis in "xy":
        quantity(detector, f"{axis}_pixel_size", settings.pixel_size_um * 1e-6, "m")
    quantity(detector, "distance", settings.distance_mm * 1e-3, "m")
    quantity(detector, "fast_axis", np.array(settings.fast_axis), "")
    quantity(detector, "slow_axis", np.array(settings.slow_axis), "")
    sample = group(entry, "sample", "NXsample")
    sample["name"] = "virtual sample"
    quantity(sample, "rotation_angle", angles, "deg")
    data = group(entry, "data", "NXdata")
    data.attrs["signal"] = "data"
    data.attrs["axes"] = ["rotation_angle", ".", "."]
    data["data"] = images
    data["rotation_angle"] = sample["rotation_angle"]
    data["image_key"] = detector["image_key"]
    process = group(entry, "process", "NXprocess")
    process["program"] = "anacor_dials"
    process["version"] = __version__
    process["simulation"] = json.dumps(record)
    process["parameters"] = parameters
    return images
