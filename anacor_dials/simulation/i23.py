"""Models of beamline I23 of Diamond Light Source, and of a crystal of thaumatin in its beam.

A Pilatus 12M of 24 x 5 modules on a half-cylinder around the sample, a horizontal axis, a kappa
goniometer (Wagner et al., Acta Cryst. D72 (2016) 430). Numbers of the detector are those of the
header of a real image.

Needs DIALS.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cctbx.eltbx import attenuation_coefficient
from dials.algorithms.profile_model.gaussian_rs import Model as GaussianRSProfileModel
from dials.array_family import flex
from dxtbx.imageset import ImageSetFactory
from dxtbx.model import (
    Beam,
    Crystal,
    Detector,
    Experiment,
    ExperimentList,
    MultiAxisGoniometer,
    ParallaxCorrectedPxMmStrategy,
    Scan,
)

from anacor_dials.sample.frames import rotation_about, unit
from anacor_dials.sample.materials import energy_from_wavelength
from anacor_dials.simulation.crystal_habits import HABITS
from anacor_dials.simulation.diffraction_settings import Sweep
from anacor_dials.simulation.nxmx_files import ImageDetector, ImagePanel

# Pilatus 12M: 24 rows of 5 modules of 487 x 195 pixels, 7 pixels between modules; the places of the
# rows and of the beam are those of the header of a real image
ROWS = 24
MODULES_PER_ROW = 5
MODULE_WIDTH = 487
MODULE_GAP = 7
ROW_PIXELS = (MODULES_PER_ROW * (MODULE_WIDTH + MODULE_GAP) - MODULE_GAP, 195)
PIXEL_MM = 0.172
SENSOR_MM = 0.32
CYLINDER_RADIUS_MM = 250.0
FIRST_ROW_ANGLE = -98.2485  # of the row's slow axis from +Y towards +Z, degrees
ROW_STEP = 8.344  # degrees from row to row
ROW_START_MM = -16.8  # the row's first pixel from the foot of the cylinder's normal on it
ROW_GAP = 17  # rows of pixels between two rows of modules in an image
BEAM_COLUMN = 1080
CYLINDER_Y_MM = -0.172  # the cylinder's axis in the lab; along -Z it is the detector's distance
FLAT_PIXELS = 1024  # of the flat detector, each way
KAPPA_AXIS = (0.6427876096865393, -0.766044443118978, 0.0)

THAUMATIN_CELL = HABITS["thaumatin"].cell
THAUMATIN_SPACE_GROUP = HABITS["thaumatin"].space_group
THAUMATIN_ATOMS = HABITS["thaumatin"].atoms


def i23_beam(wavelength: float) -> Beam:
    """I23's beam along -Z of the lab, of a wavelength in Angstrom, polarised horizontally."""
    energy_from_wavelength(wavelength)  # refuses what is no wavelength
    beam = Beam((0.0, 0.0, 1.0), wavelength)
    beam.set_polarization_normal((0.0, 1.0, 0.0))
    beam.set_polarization_fraction(0.999)
    return beam


def i23_detector(wavelength: float, distance_mm: float = 10.0) -> Detector:
    """I23's Pilatus 12M: one panel per row of five modules, rows on a half-cylinder about X.

    distance_mm: how far the axis of the cylinder lies behind the sample (Detector_distance of the
    image header). Positions are corrected for the depth in the sensor at which the wavelength is
    absorbed.
    """
    mu_per_mm = attenuation_coefficient.get_table("Si").mu_at_angstrom(wavelength) / 10.0
    axis = np.array([0.0, CYLINDER_Y_MM, -distance_mm])
    fast = np.array([-1.0, 0.0, 0.0])
    detector = Detector()
    for row in range(ROWS):
        angle = np.deg2rad(FIRST_ROW_ANGLE + row * ROW_STEP)
        slow = np.array([0.0, np.cos(angle), np.sin(angle)])
        normal = np.cross(fast, slow)
        origin = axis + CYLINDER_RADIUS_MM * normal + ROW_START_MM * slow
        origin = origin - BEAM_COLUMN * PIXEL_MM * fast
        panel = detector.add_panel()
        panel.set_type("SENSOR_PAD")
        panel.set_name(f"row-{row:02d}")
        panel.set_local_frame(tuple(fast), tuple(slow), tuple(origin))
        panel.set_pixel_size((PIXEL_MM, PIXEL_MM))
        panel.set_image_size(ROW_PIXELS)
        panel.set_trusted_range((0.0, 1e6))
        panel.set_thickness(SENSOR_MM)
        panel.set_material("Si")
        panel.set_mu(mu_per_mm)
        panel.set_px_mm_strategy(ParallaxCorrectedPxMmStrategy(mu_per_mm, SENSOR_MM))
    return detector


def flat_detector(wavelength: float, distance_mm: float = 100.0) -> Detector:
    """A flat detector of 1024 x 1024 pixels across the beam, at I23's place, for small data sets.

    Pixels and sensor are those of the Pilatus; there are no gaps. The beam meets its middle.

    Parameters
    ----------
    wavelength : float
        Angstrom, for the depth in the sensor at which X-rays are absorbed.
    distance_mm : float
        From the sample.
    """
    mu_per_mm = attenuation_coefficient.get_table("Si").mu_at_angstrom(wavelength) / 10.0
    half = FLAT_PIXELS * PIXEL_MM / 2
    detector = Detector()
    panel = detector.add_panel()
    panel.set_type("SENSOR_PAD")
    panel.set_name("flat")
    panel.set_local_frame((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (-half, half, -distance_mm))
    panel.set_pixel_size((PIXEL_MM, PIXEL_MM))
    panel.set_image_size((FLAT_PIXELS, FLAT_PIXELS))
    panel.set_trusted_range((0.0, 1e6))
    panel.set_thickness(SENSOR_MM)
    panel.set_material("Si")
    panel.set_mu(mu_per_mm)
    panel.set_px_mm_strategy(ParallaxCorrectedPxMmStrategy(mu_per_mm, SENSOR_MM))
    return detector


def detector_called(name: str, wavelength: float, distance_mm: float | None = None) -> Detector:
    """One of DETECTORS.

    Parameters
    ----------
    name : str
    wavelength : float
        Angstrom.
    distance_mm : float, optional
        See :func:`i23_detector` and :func:`flat_detector`; 10 and 100 mm if not given.
    """
    make = {"p12m": i23_detector, "flat_1m": flat_detector}[name]
    return make(wavelength) if distance_mm is None else make(wavelength, distance_mm)


def image_detector(detector: Detector) -> ImageDetector:
    """A detector as its images show it: rows of modules below each other, gaps between them.

    Parameters
    ----------
    detector : Detector
        Of :func:`detector_called`.
    """
    panels, row = [], 0
    for panel in detector:
        columns, rows = panel.get_image_size()
        fast, slow, origin = (
            np.array(vector)
            for vector in (panel.get_fast_axis(), panel.get_slow_axis(), panel.get_origin())
        )
        panels.append(ImagePanel(fast, slow, origin, (rows, columns), row))
        row += rows + ROW_GAP
    shape = (row - ROW_GAP, columns)
    mask = np.zeros(shape, dtype=bool)
    for one in panels:
        mask[one.rows] = True
    if columns == ROW_PIXELS[0]:
        mask[:, np.mod(np.arange(columns), MODULE_WIDTH + MODULE_GAP) >= MODULE_WIDTH] = False
    return ImageDetector(panels, shape, mask, PIXEL_MM, SENSOR_MM)


def i23_goniometer(sweep: Sweep) -> MultiAxisGoniometer:
    """I23's goniometer: phi on kappa on omega, all but kappa along X; omega is scanned."""
    return MultiAxisGoniometer(
        flex.vec3_double([(1.0, 0.0, 0.0), KAPPA_AXIS, (1.0, 0.0, 0.0)]),
        flex.double([sweep.phi, sweep.kappa, sweep.omega_start]),
        flex.std_string(["PHI", "KAPPA", "OMEGA"]),
        2,
    )


def thaumatin_crystal(rng: np.random.Generator) -> Crystal:
    """A crystal of thaumatin's cell and space group, turned at random."""
    quaternion = unit(rng.normal(size=4))
    angle = 2 * np.degrees(np.arccos(quaternion[0]))
    rotation = rotation_about(quaternion[1:], angle)
    a, _, c = THAUMATIN_CELL[:3]
    axes = (rotation * np.array([a, a, c])).T
    return Crystal(*(tuple(axis) for axis in axes), THAUMATIN_SPACE_GROUP)


def thaumatin_experiments(
    sweeps: Sequence[Sweep], rng: np.random.Generator, beam: Beam, detector: Detector
) -> ExperimentList:
    """Experiments at I23 on one crystal, one per sweep, with identifiers and a profile model.

    Parameters
    ----------
    sweeps : sequence of Sweep
    rng : numpy.random.Generator
    beam : Beam
        Of :func:`i23_beam`.
    detector : Detector
        Of :func:`detector_called`.
    """
    lattice = thaumatin_crystal(rng)
    experiments = ExperimentList()
    for number, sweep in enumerate(sweeps):
        scan = Scan((1, sweep.n_images), (sweep.omega_start, sweep.image_width))
        goniometer = i23_goniometer(sweep)
        imageset = ImageSetFactory.make_sequence(
            f"virtual_sweep{number}_#####.cbf",
            list(range(1, sweep.n_images + 1)),
            None,
            beam=beam,
            detector=detector,
            goniometer=goniometer,
            scan=scan,
            check_format=False,
        )
        profile = GaussianRSProfileModel(
            params=None, n_sigma=3, sigma_b=np.deg2rad(0.03), sigma_m=np.deg2rad(0.06), deg=False
        )
        experiments.append(
            Experiment(
                beam=beam,
                detector=detector,
                goniometer=goniometer,
                scan=scan,
                crystal=lattice,
                profile=profile,
                imageset=imageset,
                identifier=rng.bytes(16).hex(),
            )
        )
    return experiments
