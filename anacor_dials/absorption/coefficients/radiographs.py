"""Views of a tomography scan with their geometry, for the fit of absorption coefficients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.scan_geometry import ScanGeometry


@dataclass(frozen=True, eq=False)
class Radiographs:
    """Transmissions of the sample at some angles of a tomography scan, and their geometry.

    Parameters
    ----------
    transmissions : array (n_angles, rows, columns)
        Corrected for flat and dark images; NaN where unusable.
    angles_deg : array (n_angles,)
        The rotation angles.
    geometry : ScanGeometry
        Of these images. The size of the pixels must be known; without energy and distance nothing
        is known of fringes.
    centre : (float, float), optional
        Row or column number of the rotation axis, across it, and of the centre of the beam, along
        it; None if unknown.

    Raises
    ------
    ValueError
        If the parts do not fit together, or the values are not transmissions.
    """

    transmissions: NDArray[Any]
    angles_deg: FloatArray
    geometry: ScanGeometry
    centre: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        t = np.asarray(self.transmissions)
        angles = np.asarray(self.angles_deg, dtype=np.float64)
        object.__setattr__(self, "transmissions", t)
        object.__setattr__(self, "angles_deg", angles)
        if t.ndim != 3 or 0 in t.shape or angles.shape != t.shape[:1]:
            raise ValueError(
                f"Transmissions of shape {t.shape} and angles of shape {angles.shape} do not belong "
                "together; (n_angles, rows, columns) and (n_angles,) are needed."
            )
        if not np.all(np.isfinite(angles)):
            raise ValueError("An angle of the scan is not a number; leave that projection out.")
        if len(np.unique(np.round(np.mod(angles, 180.0), 3))) < 3:
            raise ValueError(
                f"The transmissions are of {len(angles)} views along fewer than three directions; "
                "absorption coefficients need views from all around."
            )
        if self.geometry.pixel_size_um is None:
            raise ValueError(
                "The scan does not say how large a pixel is; give projections.pixel_size= in um, at "
                "the sample."
            )
        usable = np.isfinite(t)
        if usable.mean() < 0.5:
            raise ValueError(
                f"{100 * (1 - usable.mean()):.0f} % of the transmissions are not numbers; see whether "
                "flats and darks belong to the scan."
            )
        typical = float(np.median(t[usable]))
        if not 0 < typical < 1.5:
            raise ValueError(
                f"The median transmission is {typical:.4g}; transmissions lie between 0 and 1 (images "
                "divided by their flat, not counts and not -ln T)."
            )
        if self.centre is not None and not all(math.isfinite(c) for c in self.centre):
            raise ValueError(f"The centre is {self.centre}; it must be two pixel numbers.")

    @property
    def upright(self) -> NDArray[Any]:
        """The images with upright axes (n_angles, nx, ny): X, then Y at rotation_angle = 0."""
        return self.geometry.axes.upright(self.transmissions)

    @property
    def pixel_xy_um(self) -> tuple[float, float]:
        """The size of a pixel along X and along Y, um."""
        size = self.geometry.pixel_xy_um
        assert size is not None
        return size

    @property
    def upright_centre(self) -> tuple[float, float] | None:
        """The index of the upright images, along X and Y, of the origin; None if unknown."""
        if self.centre is None:
            return None
        _, nx, ny = self.upright.shape
        across, along = self.geometry.axes.upright_centre(self.centre, (nx, ny))
        return along, across

    def raw_centre(self, x: float, y: float) -> tuple[float, float]:
        """An index of the upright images as a raw one: across the rotation axis, along it."""
        _, nx, ny = self.upright.shape
        return self.geometry.axes.upright_centre((y, x), (nx, ny))

    def __repr__(self) -> str:
        n, rows, columns = self.transmissions.shape
        x, y = self.pixel_xy_um
        return (
            f"Radiographs({n} of {rows} x {columns} pixels, {x:g} um along X and {y:g} um along Y, "
            f"{self.angles_deg.min():g} to {self.angles_deg.max():g} deg)"
        )


def spread_angles(angles_deg: FloatArray, n: int) -> NDArray[np.intp]:
    """Indices of at most n angles that are spread evenly over the scan, in the order of the scan.

    Parameters
    ----------
    angles_deg : array (n_angles,)
    n : int
        At least 3.
    """
    if n < 3:
        raise ValueError(f"{n} angles were asked for; at least 3 are needed.")
    order = np.argsort(angles_deg, kind="stable")
    # without the end, which repeats the beginning if the scan is half a turn or a whole one
    picks = np.linspace(0, len(order), min(n, len(order)), endpoint=False).astype(np.intp)
    chosen: NDArray[np.intp] = np.sort(order[picks])
    return chosen
