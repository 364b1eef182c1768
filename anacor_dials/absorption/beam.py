"""The intensity of the beam over its cross-section, for crystals that are partly illuminated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.frames import FloatArray, unit


@dataclass(frozen=True)
class BeamProfile:
    """The cross-section of the beam at the sample.

    It is fixed in the laboratory: the sample turns in it, the beam does not turn with the sample.

    Parameters
    ----------
    shape : str
        "tophat" (a rectangle of constant intensity) or "gaussian".
    size_um : (float, float)
        Full width of the rectangle, or full width at half maximum of the Gaussian, along the beam's
        axis and across it, um.
    offset_um : (float, float)
        The position of its middle, from the origin of the volume, along the beam's axis and along
        to_source x axis, um.
    axis : (float, float, float), optional
        The beam's axis: a direction in the laboratory. It need not be perpendicular to the beam;
        the part of it that is counts. None: the rotation axis of the reference experiment.

    Raises
    ------
    ValueError
        If the shape is another one, a size is not > 0, a length is not finite, or the axis is no
        direction.
    """

    shape: str
    size_um: tuple[float, float]
    offset_um: tuple[float, float] = (0.0, 0.0)
    axis: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.shape not in ("tophat", "gaussian"):
            raise ValueError(f"The beam profile is {self.shape!r}; it is tophat or gaussian.")
        if not all(math.isfinite(s) and s > 0 for s in self.size_um):
            raise ValueError(f"The beam size is {self.size_um} um; give two lengths > 0.")
        if not all(math.isfinite(s) for s in self.offset_um):
            raise ValueError(f"The beam offset is {self.offset_um} um; give two lengths.")
        if self.axis is not None and not (np.all(np.isfinite(self.axis)) and any(self.axis)):
            raise ValueError(
                f"The axis of the beam is {self.axis}; give a direction in the laboratory, such as 1,0,0."
            )

    def enlarged(self, factor: float) -> BeamProfile:
        """The same beam with both sizes multiplied by a factor."""
        size = (self.size_um[0] * factor, self.size_um[1] * factor)
        return replace(self, size_um=size)

    def weights(
        self, positions_um: FloatArray, to_source: FloatArray, axis: ArrayLike
    ) -> NDArray[np.float32]:
        """The relative intensity, 0 to 1, at positions in the sample.

        Parameters
        ----------
        positions_um : array (m, 3)
            Positions in the tomo frame, um.
        to_source : array (n, 3)
            Unit vectors to the source.
        axis : array (3,) or (n, 3)
            The beam's axis in the tomo frame, for all directions or for each. It is made
            perpendicular to the direction to the source.

        Returns
        -------
        array (n, m)
        """
        axis = np.broadcast_to(np.asarray(axis, dtype=np.float64), to_source.shape)
        along = unit(axis - to_source * np.sum(to_source * axis, axis=1, keepdims=True))
        across = np.cross(to_source, along)
        u = (along @ positions_um.T - self.offset_um[0]) / self.size_um[0]
        v = (across @ positions_um.T - self.offset_um[1]) / self.size_um[1]
        if self.shape == "tophat":
            return ((np.abs(u) <= 0.5) & (np.abs(v) <= 0.5)).astype(np.float32)
        return np.exp(-4 * math.log(2) * (u**2 + v**2)).astype(np.float32)
