"""Rotation images of a virtual sample: spots and background, both absorbed by the sample.

A reflection of expected counts I (:mod:`.diffraction_data`, with its own transmission) is spread
over the images as a Gaussian of the rotation angle, with a standard deviation of sigma_M / |zeta|
(Kabsch, Acta Cryst. D66 (2010) 133), and over the pixels of an image as a Gaussian of the
divergence sigma_D on the plane of the detector, widened by the size of crystal, beam and pixel. The
background is the diffuse scattering of the sample: its level at the beam, times polarisation, solid
angle of the pixel and the mean transmission of the crystal towards the pixel, at the angle of the
image. All counts are of Poisson's distribution.

Left out are: the spread of the wavelength and fluorescence; mosaic blocks, splitting and any shape
of a spot but a Gaussian; the tail of spots that X-rays leave in a thick sensor at an angle (their
mean place is right: it is where DIALS expects it); dead time; scattering of the air and of the
windows, ice and solvent rings; extinction and multiple scattering.

Needs DIALS.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from cctbx import xray
from dials.array_family import flex
from dxtbx.model import Experiment, ExperimentList
from numpy.typing import NDArray
from scipy.special import erf

from anacor_dials.sample.frames import FloatArray, unit
from anacor_dials.sample.materials import energy_from_wavelength
from anacor_dials.simulation.diffraction_data import (
    directions_in_tomo,
    enough_points,
    intensities_of,
    lorentz_polarisation,
    polarisation,
    structure_factor_intensities,
    tomo_to_datum,
    true_transmissions,
)
from anacor_dials.simulation.diffraction_settings import DiffractionSettings
from anacor_dials.simulation.i23 import image_detector
from anacor_dials.simulation.nxmx_files import COUNTS, ImageDetector, ImageScan, new_image_file
from anacor_dials.simulation.samples import Sample

logger = logging.getLogger("dials.anacor_dials.simulation.diffraction_images")

# standard deviation of what crystal, beam and pixel add to a spot, pixels: a box of one pixel has
# 0.29, a crystal of 100 um in pixels of 172 um as much; the rest is the beam
SPOT_PIXELS = 0.8
REACH = 4.0  # standard deviations that are drawn of a spot
LONGEST_SPOT = 12  # pixels to each side; longer spots lie at grazing incidence
SMALLEST_ZETA = 0.02  # nearer to the rotation axis a reflection lasts for tens of degrees
BEYOND_SCAN = 2.0  # degrees: reflections that begin or end outside the scan leave a part in it
BACKGROUND_STEP = 64  # pixels between the places at which the background is computed
BACKGROUND_ANGLE = 10.0  # degrees between the angles
BACKGROUND_POINTS = 64  # points in the crystal; the background is known to 1 % then


@dataclass(frozen=True)
class Spots:
    """The reflections of a sweep as they are drawn.

    Attributes
    ----------
    counts : array (n,)
        Expected, of the whole reflection.
    first, last : array (n,) of int
        The images from and to which it lasts (last excluded).
    centre, spread : array (n,)
        Of the rotation angle, in images from the start of the scan.
    row, column : array (n,) of int
        The pixel of the image in the middle of the footprint.
    footprint : array (n, k, k)
        The share of each pixel; their sum is 1.
    """

    counts: FloatArray
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    centre: FloatArray
    spread: FloatArray
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    footprint: NDArray[np.float32]


def write_diffraction_images(
    sample: Sample,
    data: tuple[ExperimentList, flex.reflection_table],
    structure: xray.structure,
    rng: np.random.Generator,
    settings: DiffractionSettings,
    names: Sequence[str],
    progress: Callable[[int], object] | None = None,
) -> None:
    """Writes the images of each sweep of a simulated data set as an NXmx file.

    Parameters
    ----------
    sample : Sample
    data : (ExperimentList, reflection_table)
        Of :func:`anacor_dials.simulation.diffraction_data.simulate_diffraction`; the scale of the
        counts is that of the column true.counts.
    structure : cctbx.xray.structure
        What is in the crystal.
    rng : numpy.random.Generator
    settings : DiffractionSettings
        The same as for the reflections.
    names : sequence of str
        A file for each sweep.
    progress : callable, optional
        Called with the number of images that were made since the last time.
    """
    experiments, reflections = data
    datum = tomo_to_datum(experiments[0], settings.angle_offset, settings.rotation_sense)
    wavelength = experiments[0].beam.get_wavelength()
    true = structure_factor_intensities(structure, wavelength, settings.d_min)
    n_images = [experiment.scan.get_num_images() for experiment in experiments]
    dose = [(sum(n_images[:i]) / sum(n_images), n / sum(n_images)) for i, n in enumerate(n_images)]
    scale = None
    for number, (experiment, name) in enumerate(zip(experiments, names, strict=True)):
        if scale is None:
            mine = reflections.select(reflections["id"] == number)
            intensity = np.array(mine["true.intensity"])
            known = relative_counts(experiment, mine, intensity, dose[number], settings.decay_b)
            known = known * np.array(mine["true.transmission"])
            scale = float(np.sum(np.array(mine["true.counts"])) / np.sum(known))
        table = reflections_on_images(experiment, settings.d_min)
        intensity = np.nan_to_num(intensities_of(table, true))
        counts = scale * relative_counts(
            experiment, table, intensity, dose[number], settings.decay_b
        )
        counts *= _transmissions(sample, experiment, table, datum, settings, rng)
        error = settings.instrument_error * rng.standard_normal(len(counts))
        detector = image_detector(experiment.detector)
        spots = spots_of(experiment, table, np.clip(counts * (1.0 + error), 0.0, None), detector)
        logger.info("%s: %d spots on %d images", name, len(table), n_images[number])
        background = Background.of(sample, experiment, detector, datum, settings, rng)
        description = (
            f"virtual {settings.detector}, {detector.shape[1]} x {detector.shape[0]} pixels"
        )
        with new_image_file(name, detector, scan_of(experiment), wavelength, description) as file:
            for image in range(n_images[number]):
                file[image] = draw_image(image, spots, background, detector, rng)
                if progress is not None:
                    progress(1)


def reflections_on_images(experiment: Experiment, d_min: float) -> flex.reflection_table:
    """All reflections that leave counts in the images of a sweep, also those that it cuts.

    Parameters
    ----------
    experiment : Experiment
    d_min : float
        Angstrom.
    """
    table = flex.reflection_table.from_predictions(experiment, dmin=d_min, padding=BEYOND_SCAN)
    table["id"] = flex.int(len(table), 0)
    table.compute_zeta(experiment)
    table = table.select(flex.abs(table["zeta"]) >= SMALLEST_ZETA)
    table.compute_d_single(experiment)
    table.compute_corrections(ExperimentList([experiment]))
    return table


def relative_counts(
    experiment: Experiment,
    table: flex.reflection_table,
    intensity: FloatArray,
    dose: tuple[float, float],
    decay_b: float,
) -> FloatArray:
    """Expected counts (n,) before absorption, on an arbitrary scale: |F|^2 L P Q and the decay.

    Parameters
    ----------
    experiment : Experiment
    table : reflection_table
        With s1, qe, d and xyzcal.px.
    intensity : array (n,)
        |F|^2.
    dose : (float, float)
        The share of the dose before the sweep, and of the sweep.
    decay_b : float
        Angstrom^2, by which the temperature factor grows over all sweeps.
    """
    s1 = np.array(list(table["s1"])).reshape(-1, 3)
    lorentz, polarised = lorentz_polarisation(experiment, s1)
    z = np.array(table["xyzcal.px"].parts()[2]) / experiment.scan.get_num_images()
    decay = np.exp(-decay_b * (dose[0] + dose[1] * z) / (2 * np.array(table["d"]) ** 2))
    return intensity * lorentz * polarised * np.array(table["qe"]) * decay


def _transmissions(
    sample: Sample,
    experiment: Experiment,
    table: flex.reflection_table,
    datum: FloatArray,
    settings: DiffractionSettings,
    rng: np.random.Generator,
) -> FloatArray:
    """The transmission (n,) of each reflection, as for the integrated data."""
    s1 = np.array(list(table["s1"])).reshape(-1, 3)
    phi = np.array(table["xyzcal.mm"].parts()[2])
    source, out = directions_in_tomo(experiment, s1, phi, datum)
    energy_keV = energy_from_wavelength(experiment.beam.get_wavelength())
    n_points = settings.n_points or enough_points(sample, energy_keV, source, out)
    return true_transmissions(sample, energy_keV, source, out, n_points, rng)


# ---- spots ---------------------------------------------------------------------------------------


def spots_of(
    experiment: Experiment,
    table: flex.reflection_table,
    counts: FloatArray,
    detector: ImageDetector,
) -> Spots:
    """The reflections of a table as they are drawn.

    Parameters
    ----------
    experiment : Experiment
        With a profile model.
    table : reflection_table
        Of :func:`reflections_on_images`.
    counts : array (n,)
        Expected, of the whole reflection.
    detector : ImageDetector
    """
    x, y, z = (np.array(part) for part in table["xyzcal.px"].parts())
    panel = np.array(table["panel"])
    first_row = np.array([one.first_row for one in detector.panels])[panel]
    width = np.deg2rad(experiment.scan.get_oscillation()[1])
    zeta = np.abs(np.array(table["zeta"]))
    spread = experiment.profile.sigma_m(deg=False) / zeta / width
    covariance = footprint_covariance(experiment, table, detector.pixel_mm)
    widest = np.sqrt(np.maximum(covariance[:, 0, 0], covariance[:, 1, 1]).max(initial=1.0))
    reach = int(min(LONGEST_SPOT, np.ceil(REACH * widest)))
    # pixel i reaches from i to i + 1
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    steps = np.arange(-reach, reach + 1)
    dx = column[:, None] + steps + 0.5 - x[:, None]
    dy = row[:, None] + steps + 0.5 - y[:, None]
    inverse = np.linalg.inv(covariance)
    exponent = (
        inverse[:, 0, 0, None, None] * dx[:, None, :] ** 2
        + 2 * inverse[:, 0, 1, None, None] * dx[:, None, :] * dy[:, :, None]
        + inverse[:, 1, 1, None, None] * dy[:, :, None] ** 2
    )
    footprint = np.exp(-0.5 * exponent).astype(np.float32)
    footprint /= footprint.sum(axis=(1, 2), keepdims=True)
    # rows of another panel get nothing
    rows = row[:, None] + steps
    size = np.array([one.shape[0] for one in detector.panels])[panel]
    footprint *= ((rows >= 0) & (rows < size[:, None]))[:, :, None]
    return Spots(
        counts=counts,
        first=np.floor(z - REACH * spread).astype(np.int64),
        last=np.ceil(z + REACH * spread).astype(np.int64),
        centre=z,
        spread=spread,
        row=row + first_row,
        column=column,
        footprint=footprint,
    )


def footprint_covariance(
    experiment: Experiment, table: flex.reflection_table, pixel_mm: float
) -> FloatArray:
    """Covariance matrices (n, 2, 2) of spots over columns and rows, pixels^2.

    Directions that differ from s1 by an angle along Kabsch's e1 and e2 meet the plane of the panel
    elsewhere; the divergence is Gaussian in both angles.

    Parameters
    ----------
    experiment : Experiment
    table : reflection_table
    pixel_mm : float
    """
    s1 = np.array(list(table["s1"])).reshape(-1, 3)
    s0 = np.array(experiment.beam.get_s0())
    e1 = unit(np.cross(s1, s0))
    e2 = unit(np.cross(s1, e1))
    panel = np.array(table["panel"])
    to_mm = np.array([np.reshape(p.get_D_matrix(), (3, 3)) for p in experiment.detector])[panel]

    def on_plane(direction: FloatArray) -> FloatArray:
        along = np.einsum("nij,nj->ni", to_mm, direction)
        return along[:, :2] / along[:, 2:] / pixel_mm

    small = 1e-4  # rad
    length = np.linalg.norm(s1, axis=1, keepdims=True)
    moved = [
        (on_plane(s1 + small * length * e) - on_plane(s1 - small * length * e)) / (2 * small)
        for e in (e1, e2)
    ]
    jacobian = np.stack(moved, axis=2)  # (n, pixel axis, angle)
    sigma = experiment.profile.sigma_b(deg=False)
    covariance = sigma**2 * jacobian @ jacobian.transpose(0, 2, 1)
    return covariance + SPOT_PIXELS**2 * np.eye(2)


def expected_spots(image: int, spots: Spots, shape: tuple[int, int]) -> FloatArray:
    """Expected counts (rows, columns) of all spots in an image.

    Parameters
    ----------
    image : int
        From 0.
    spots : Spots
    shape : (int, int)
        Rows and columns.
    """
    here = np.flatnonzero((spots.first <= image) & (image < spots.last))
    ends = (np.array([image, image + 1])[:, None] - spots.centre[here]) / spots.spread[here]
    share = np.diff(erf(ends / np.sqrt(2)), axis=0)[0] / 2
    counts = (spots.counts[here] * share)[:, None, None] * spots.footprint[here]
    reach = spots.footprint.shape[1] // 2
    steps = np.arange(-reach, reach + 1)
    rows = np.broadcast_to(spots.row[here, None, None] + steps[:, None], counts.shape)
    columns = np.broadcast_to(spots.column[here, None, None] + steps, counts.shape)
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    place = rows[inside] * shape[1] + columns[inside]
    total = np.bincount(place, counts[inside], minlength=shape[0] * shape[1])
    return np.asarray(total.reshape(shape), dtype=np.float64)


# ---- background ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Background:
    """The background of a sweep on a coarse grid of angles and places.

    Attributes
    ----------
    angles : array (m,)
        In images from the start of the scan.
    rows, columns : list of arrays
        Where it is known, for each panel, in its pixels.
    values : list of arrays (m, rows, columns)
        Counts per pixel, for each panel.
    """

    angles: FloatArray
    rows: list[FloatArray]
    columns: list[FloatArray]
    values: list[FloatArray]

    @classmethod
    def of(
        cls,
        sample: Sample,
        experiment: Experiment,
        detector: ImageDetector,
        datum: FloatArray,
        settings: DiffractionSettings,
        rng: np.random.Generator,
    ) -> Background:
        """Computed for a sweep.

        Parameters
        ----------
        sample : Sample
        experiment : Experiment
        detector : ImageDetector
        datum : array (3, 3)
            From the tomo frame to the datum frame.
        settings : DiffractionSettings
            background: counts per pixel without absorption, where the solid angle is largest.
        rng : numpy.random.Generator
        """
        start, end = experiment.scan.get_oscillation_range(deg=True)
        m = max(2, int(np.ceil((end - start) / BACKGROUND_ANGLE)) + 1)
        phi = np.deg2rad(np.linspace(start, end, m))
        grids = [
            tuple(
                np.linspace(0.0, n, max(2, int(np.ceil(n / BACKGROUND_STEP)) + 1))
                for n in panel.shape
            )
            for panel in detector.panels
        ]
        places = []  # lab coordinates, mm, of all places of all panels
        solid_angle = []
        for panel, (rows, columns) in zip(detector.panels, grids, strict=True):
            points = panel.origin + detector.pixel_mm * (
                rows[:, None, None] * panel.slow + columns[None, :, None] * panel.fast
            )
            points = points.reshape(-1, 3)
            distance = np.linalg.norm(points, axis=1)
            normal = np.cross(panel.fast, panel.slow)
            places.append(points)
            solid_angle.append(np.abs(points @ normal) / distance**3)
        s1 = unit(np.concatenate(places))
        of_pixel = np.concatenate(solid_angle)
        level = settings.background * of_pixel / of_pixel.max()
        level *= polarisation(experiment, s1)
        source, out = directions_in_tomo(
            experiment, np.tile(s1, (m, 1)), np.repeat(phi, len(s1)), datum
        )
        transmission = true_transmissions(
            sample,
            energy_from_wavelength(experiment.beam.get_wavelength()),
            source,
            out,
            BACKGROUND_POINTS,
            rng,
        )
        values = level * transmission.reshape(m, -1)
        ends = np.cumsum([len(points) for points in places])[:-1]
        return cls(
            angles=np.linspace(0.0, experiment.scan.get_num_images(), m),
            rows=[rows for rows, _ in grids],
            columns=[columns for _, columns in grids],
            values=[
                part.reshape(m, len(rows), len(columns))
                for part, (rows, columns) in zip(np.split(values, ends, axis=1), grids, strict=True)
            ],
        )

    def at(self, image: int, detector: ImageDetector) -> FloatArray:
        """Expected counts (rows, columns) of an image, linear between the places of the grid.

        Parameters
        ----------
        image : int
            From 0.
        detector : ImageDetector
        """
        expected = np.zeros(detector.shape)
        of_angle = _hat_functions(self.angles, np.array([image + 0.5]))[0]
        for i, panel in enumerate(detector.panels):
            coarse = np.tensordot(of_angle, self.values[i], axes=1)
            down = _hat_functions(self.rows[i], np.arange(0.5, panel.shape[0]))
            across = _hat_functions(self.columns[i], np.arange(0.5, panel.shape[1]))
            expected[panel.rows, : panel.shape[1]] = down @ coarse @ across.T
        return expected


def _hat_functions(nodes: FloatArray, at: FloatArray) -> FloatArray:
    """Weights (len(at), len(nodes)) of linear interpolation."""
    step = nodes[1] - nodes[0]
    return np.clip(1.0 - np.abs(at[:, None] - nodes) / step, 0.0, None)


def draw_image(
    image: int,
    spots: Spots,
    background: Background,
    detector: ImageDetector,
    rng: np.random.Generator,
) -> NDArray[np.uint32]:
    """The counts (rows, columns) of an image; gaps have none.

    Parameters
    ----------
    image : int
        From 0.
    spots : Spots
    background : Background
    detector : ImageDetector
    rng : numpy.random.Generator
    """
    expected = background.at(image, detector) + expected_spots(image, spots, detector.shape)
    return np.where(detector.mask, rng.poisson(expected), 0).astype(COUNTS)


def scan_of(experiment: Experiment) -> ImageScan:
    """The goniometer and the rotation of a sweep, as they stand in the header."""
    goniometer = experiment.goniometer
    start, width = experiment.scan.get_oscillation(deg=True)
    angles = list(goniometer.get_angles())
    scanned = goniometer.get_scan_axis()
    angles[scanned] = start
    return ImageScan(
        names=[name.lower() for name in goniometer.get_names()],
        axes=np.array(list(goniometer.get_axes())).reshape(-1, 3),
        angles=angles,
        scanned=scanned,
        n_images=experiment.scan.get_num_images(),
        width=width,
    )


def image_files(stem: str | os.PathLike[str], n_sweeps: int) -> list[str]:
    """The names of the files of all sweeps: STEM_sweep1.nxs and so on."""
    return [f"{os.fspath(stem)}_sweep{i + 1}.nxs" for i in range(n_sweeps)]
