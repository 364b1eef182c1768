"""Where the beam comes from and where each reflection leaves the sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.frames import FloatArray, unit


@dataclass(frozen=True, eq=False)
class Directions:
    """The two directions of each of n reflections, in the tomo frame.

    Parameters
    ----------
    to_source : array (n, 3)
        Unit vectors from the sample to the source.
    exit : array (n, 3)
        Unit vectors along the diffracted beams.
    sweep : array (n,) of int
        The number of each reflection's sweep.
    rotation_axes : array (n_sweeps, 3)
        The rotation axes of the sweeps.
    beam_axis : array (n, 3), optional
        For a beam that is smaller than the crystal, the axis of its cross-section at each
        reflection; see :class:`~anacor_dials.absorption.beam.BeamProfile`. By default it is the
        rotation axis of the sweep.

    Raises
    ------
    ValueError
        If the shapes do not fit together, a direction is not a unit vector, or the number of a
        sweep is out of range.
    """

    to_source: FloatArray
    exit: FloatArray
    sweep: NDArray[np.int64]
    rotation_axes: FloatArray
    beam_axis: FloatArray | None = None

    def __post_init__(self) -> None:
        n = len(self.to_source)
        axes = np.asarray(self.rotation_axes, dtype=np.float64).reshape(-1, 3)
        object.__setattr__(self, "rotation_axes", axes)
        object.__setattr__(self, "sweep", np.asarray(self.sweep, dtype=np.int64))
        if self.to_source.shape != (n, 3) or self.exit.shape != (n, 3) or self.sweep.shape != (n,):
            raise ValueError(
                f"Directions of shapes {self.to_source.shape}, {self.exit.shape} and sweeps "
                f"{self.sweep.shape} do not belong together; (n, 3), (n, 3) and (n,) are needed."
            )
        for vectors, what in ((self.to_source, "to the source"), (self.exit, "of exit")):
            if n and not np.all(np.abs(np.linalg.norm(vectors, axis=1) - 1.0) < 1e-6):
                raise ValueError(f"The directions {what} are not all unit vectors.")
        if self.beam_axis is not None and self.beam_axis.shape != (n, 3):
            raise ValueError(
                f"There are {n} reflections and axes of the beam of shape {self.beam_axis.shape}; "
                "(n, 3) is needed."
            )
        if n and (self.sweep.min() < 0 or self.sweep.max() >= len(axes)):
            raise ValueError(
                f"A reflection belongs to sweep {self.sweep.max()} of {len(axes)} sweeps."
            )

    @classmethod
    def of_one_sweep(
        cls, to_source: ArrayLike, exits: ArrayLike, rotation_axis: ArrayLike = (1.0, 0.0, 0.0)
    ) -> Directions:
        """The directions of reflections of one sweep.

        Parameters
        ----------
        to_source, exits : array (n, 3)
            Vectors of any length.
        rotation_axis : array (3,)
            X by default.

        Examples
        --------
        >>> Directions.of_one_sweep([[0, 0, 2]], [[0, 3, 4]]).exit
        array([[0. , 0.6, 0.8]])
        """
        s = unit(np.asarray(to_source, dtype=np.float64).reshape(-1, 3))
        e = unit(np.asarray(exits, dtype=np.float64).reshape(-1, 3))
        return cls(s, e, np.zeros(len(s), dtype=np.int64), np.array([rotation_axis]))

    def __len__(self) -> int:
        return len(self.to_source)

    def __getitem__(self, index: Any) -> Directions:
        return Directions(
            self.to_source[index],
            self.exit[index],
            self.sweep[index],
            self.rotation_axes,
            None if self.beam_axis is None else self.beam_axis[index],
        )

    @property
    def axes_of_beam(self) -> FloatArray:
        """The axis of the beam's cross-section (n, 3) at each reflection."""
        if self.beam_axis is not None:
            return self.beam_axis
        return self.rotation_axes[self.sweep]
