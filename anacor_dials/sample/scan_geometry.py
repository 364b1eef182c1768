"""The geometry of a tomography scan: what the images of all its angles have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from anacor_dials.sample.frames import ImageAxes
from anacor_dials.sample.materials import wavelength_from_energy

UPRIGHT = ImageAxes(False, 1, 1)


@dataclass(frozen=True)
class ScanGeometry:
    """How the images of a scan were taken.

    Parameters
    ----------
    axes : ImageAxes
        How rows and columns lie in the tomo frame at rotation_angle = 0. Default: upright (rows
        along X, columns along Y).
    pixel_size_um : (float, float), optional
        The size of a pixel at the sample, along the fast and the slow axis of the image, um; None
        if unknown.
    energy_keV : float, optional
        None if unknown.
    distance_mm : float, optional
        The distance from the sample to the detector, mm; None if unknown.

    Raises
    ------
    ValueError
        If a value cannot be that of a scan.
    """

    axes: ImageAxes = UPRIGHT
    pixel_size_um: tuple[float, float] | None = None
    energy_keV: float | None = None
    distance_mm: float | None = None

    def __post_init__(self) -> None:
        if self.pixel_size_um is not None and not all(
            math.isfinite(p) and 0 < p < 1e4 for p in self.pixel_size_um
        ):
            raise ValueError(
                f"The pixel size is {self.pixel_size_um[0]:g} x {self.pixel_size_um[1]:g} um; it must "
                "be between 0 and 10 mm (give pixel_size= in um, at the sample)."
            )
        if self.energy_keV is not None and not 0.1 <= self.energy_keV <= 800:
            raise ValueError(
                f"The photon energy is {self.energy_keV:g} keV; X-ray tomography is done between 0.1 "
                "and 800 keV (give energy= in keV)."
            )
        if self.distance_mm is not None and not 0 <= self.distance_mm < 1e6:
            raise ValueError(
                f"The distance from sample to detector is {self.distance_mm:g} mm; give distance= in mm."
            )

    @property
    def pixel_xy_um(self) -> tuple[float, float] | None:
        """The size of a pixel along X and along Y, um; None if it is unknown."""
        if self.pixel_size_um is None:
            return None
        fast, slow = self.pixel_size_um
        return (fast, slow) if self.axes.transposed else (slow, fast)

    @property
    def fresnel_zone_um(self) -> float | None:
        """sqrt(lambda z), the width of the first fringe, um; None if it is unknown."""
        if self.energy_keV is None or self.distance_mm is None:
            return None
        return math.sqrt(wavelength_from_energy(self.energy_keV) * 1e-4 * self.distance_mm * 1e3)

    def upright(self) -> ScanGeometry:
        """The geometry of the same images after they were made upright."""
        size = self.pixel_xy_um
        return replace(self, axes=UPRIGHT, pixel_size_um=None if size is None else size[::-1])
