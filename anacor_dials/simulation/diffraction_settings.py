"""What virtual diffraction data are measured with: sweeps, wavelength, counts and errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# the wavelength of the sulfur phasing experiments that the program was made for, Angstrom
USUAL_WAVELENGTH = 4.13
DETECTORS = ("p12m", "flat_1m")


@dataclass(frozen=True)
class Sweep:
    """One rotation scan about omega.

    Parameters
    ----------
    omega_start, omega_range, image_width : float
        The first angle, the range and the width of an image, degrees.
    kappa, phi : float
        The other angles of the goniometer, degrees.
    """

    omega_start: float = 0.0
    omega_range: float = 180.0
    image_width: float = 0.1
    kappa: float = 0.0
    phi: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.image_width <= self.omega_range:
            raise ValueError(
                f"The images are {self.image_width} degrees wide in a sweep of {self.omega_range} "
                "degrees; the width lies between 0 and the range."
            )

    @property
    def n_images(self) -> int:
        """The number of images."""
        return round(self.omega_range / self.image_width)


@dataclass(frozen=True)
class DiffractionSettings:
    """How the diffraction data of a virtual sample are measured.

    Parameters
    ----------
    wavelength : float, optional
        Angstrom. If not given: that of the scan that is simulated with the data, else 4.13.
    d_min : float
        Resolution, Angstrom.
    sweeps : sequence of Sweep
        One sweep of the class's defaults if empty.
    angle_offset : float
        Scan angle (omega), degrees, at which the rotation angle of the tomography is zero.
    rotation_sense : int
        1, or -1 if the rotation angle of the tomography decreases as omega grows.
    n_points : int, optional
        The true transmission is a mean over so many points in the crystal. If not given: as
        many as it takes, from 256, until four times as many change it by less than 0.3 % (rms).
    mean_counts : float
        Expected counts of a mean reflection before absorption.
    background : float
        Counts per pixel.
    instrument_error : float
        Relative error of strong reflections.
    decay_b : float
        By how much the temperature factor B grows over all sweeps, Angstrom^2.
    detector : str
        "p12m", the Pilatus 12M of I23, or "flat_1m", a flat detector of 1024 x 1024 pixels.
    distance_mm : float, optional
        How far the axis of the cylindrical detector lies behind the sample, mm (10 if not given);
        of the flat detector its distance (100 if not given).
    """

    wavelength: float | None = None
    d_min: float = 3.5
    sweeps: Sequence[Sweep] = ()
    angle_offset: float = 0.0
    rotation_sense: int = 1
    n_points: int | None = None
    mean_counts: float = 20000.0
    background: float = 0.2
    instrument_error: float = 0.01
    decay_b: float = 2.0
    detector: str = "p12m"
    distance_mm: float | None = None

    def __post_init__(self) -> None:
        if self.detector not in DETECTORS:
            raise ValueError(
                f"The detector {self.detector} is unknown; there are {' and '.join(DETECTORS)}."
            )
        if self.distance_mm is not None and self.detector == "flat_1m" and self.distance_mm <= 0:
            raise ValueError(
                f"The distance of the flat detector is {self.distance_mm} mm; it must be > 0."
            )
        counts_are_possible = (
            self.mean_counts > 0 and self.background >= 0 and self.instrument_error >= 0
        )
        if not counts_are_possible or (self.n_points is not None and self.n_points < 1):
            raise ValueError(
                f"mean_counts ({self.mean_counts}) and n_points ({self.n_points}) must be > 0, "
                f"background ({self.background}) and instrument_error ({self.instrument_error}) >= 0."
            )
