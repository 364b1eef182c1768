"""The intensity of the beam over its cross-section, for crystals that are partly illuminated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.frames import FloatArray, unit


@dataclass(frozen=True)
class BeamProfile:
    """The cross-section of the beam at the sample.

    Parameters
    ----------
    shape : str
        "tophat" (a rectangle of constant intensity) or "gaussian".
    size_um : (float, float)
        Full width of the rectangle, or full width at half maximum of the Gaussian, along the
        rotation axis and across it, um.
    offset_um : (float, float)
        The position of its middle, from the origin of the volume, along the rotation axis and along
        to_source x axis, um.

    Raises
    ------
    ValueError
        If the shape is another one, a size is not > 0, or a length is not finite.
    """

    shape: str
    size_um: tuple[float, float]
    offset_um: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.shape not in ("tophat", "gaussian"):
            raise ValueError(f"The beam profile is {self.shape!r}; it is tophat or gaussian.")
        if not all(math.isfinite(s) and s > 0 for s in self.size_um):
            raise ValueError(f"The beam size is {self.size_um} um; give two lengths > 0.")
        if not all(math.isfinite(s) for s in self.offset_um):
            raise ValueError(f"The beam offset is {self.offset_um} um; give two lengths.")

    def enlarged(self, factor: float) -> BeamProfile:
        """The same beam with both sizes multiplied by a factor."""
        size = (self.size_um[0] * factor, self.size_um[1] * factor)
        return BeamProfile(self.shape, size, self.offset_um)

    def weights(
        self, positions_um: FloatArray, to_source: FloatArray, rotation_axis: ArrayLike
    ) -> NDArray[np.float32]:
        """The relative intensity, 0 to 1, at positions in the sample.

        Parameters
        ----------
        positions_um : array (m, 3)
            Positions in the tomo frame, um.
        to_source : array (n, 3)
            Unit vectors to the source.
        rotation_axis : array (3,)
            The rotation axis of the sweep.

        Returns
        -------
        array (n, m)
        """
        axis = unit(rotation_axis)
        along = axis - to_source * (to_source @ axis)[:, None]
        along /= np.linalg.norm(along, axis=1, keepdims=True)
        across = np.cross(to_source, along)
        u = (along @ positions_um.T - self.offset_um[0]) / self.size_um[0]
        v = (across @ positions_um.T - self.offset_um[1]) / self.size_um[1]
        if self.shape == "tophat":
            return ((np.abs(u) <= 0.5) & (np.abs(v) <= 0.5)).astype(np.float32)
        return np.exp(-4 * math.log(2) * (u**2 + v**2)).astype(np.float32)
