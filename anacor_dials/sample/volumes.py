"""Volumes in the tomo frame: values on a grid, the size of a voxel and the place of the origin.

Arrays have the shape (nx, ny, nz) along X, Y, Z of the tomo frame. Voxel centres sit at integer
indices. ``centre`` is the (fractional) index of the origin, where the beam's centre meets the
rotation axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.frames import FloatArray

DEFAULT_NAMES = ("background", "liquor", "loop", "crystal")


def _three_positive(value: ArrayLike, what: str) -> FloatArray:
    three = np.array(value, dtype=np.float64).reshape(-1)
    if three.size == 1:
        three = np.repeat(three, 3)
    if three.shape != (3,) or not np.all(np.isfinite(three)) or not np.all(three > 0):
        raise ValueError(f"The {what} is {three.tolist()} um; it must be one or three lengths > 0.")
    return three


@dataclass(frozen=True, eq=False)
class Volume:
    """Values (nx, ny, nz) on a grid of the tomo frame.

    Parameters
    ----------
    values : array (nx, ny, nz)
    voxel_size_um : array (3,) or float
        Edge lengths of a voxel along X, Y, Z; one number for cubes.
    centre : array (3,), optional
        Voxel index of the origin; the middle, (n - 1) / 2, if not given.
    """

    values: NDArray[Any]
    voxel_size_um: FloatArray
    centre: Any = None

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or 0 in self.values.shape:
            raise ValueError(
                f"A volume has three axes; this array has the shape {self.values.shape}."
            )
        size = _three_positive(self.voxel_size_um, "voxel size")
        if self.centre is None:
            centre = (np.array(self.values.shape, dtype=np.float64) - 1.0) / 2.0
        else:
            centre = np.array(self.centre, dtype=np.float64)
        if centre.shape != (3,) or not np.all(np.isfinite(centre)):
            raise ValueError(f"The centre is {centre.tolist()}; it must be three voxel indices.")
        object.__setattr__(self, "voxel_size_um", size)
        object.__setattr__(self, "centre", centre)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(nx, ny, nz)."""
        nx, ny, nz = self.values.shape
        return nx, ny, nz

    @property
    def size_um(self) -> FloatArray:
        """Edge lengths (3,) of the whole volume, um."""
        return np.array(self.shape) * self.voxel_size_um

    @property
    def voxel_volume_um3(self) -> float:
        """The volume of a voxel, um^3."""
        return float(np.prod(self.voxel_size_um))

    def position_um(self, index: ArrayLike) -> FloatArray:
        """Positions (..., 3) in the tomo frame, um from the origin, of fractional voxel indices."""
        return (np.asarray(index, dtype=np.float64) - self.centre) * self.voxel_size_um

    def index(self, position_um: ArrayLike) -> FloatArray:
        """Fractional voxel indices (..., 3) of positions (..., 3) in um from the origin."""
        return np.asarray(position_um, dtype=np.float64) / self.voxel_size_um + self.centre

    def _describe(self) -> str:
        shape = " x ".join(str(n) for n in self.shape)
        voxel = " x ".join(f"{v:g}" for v in self.voxel_size_um)
        return f"{shape} voxels of {voxel} um"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()}, {self.values.dtype})"


@dataclass(frozen=True, eq=False, repr=False)
class Tomogram(Volume):
    """A reconstruction: the linear attenuation coefficient, float32, in 1/um.

    quantitative: False where the unit of the values is not known. Then air is 0 and the sample at a
    level of its kind, but the values are no absorption coefficients.
    """

    quantitative: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.values.dtype != np.float32:
            object.__setattr__(self, "values", self.values.astype(np.float32))

    def __repr__(self) -> str:
        return f"Tomogram({self._describe()}, {'1/um' if self.quantitative else 'arbitrary unit'})"


@dataclass(frozen=True, eq=False, repr=False)
class LabelVolume(Volume):
    """What each voxel is made of: uint8 labels, ``names[label]`` being the material.

    names: one per label; label 0 is the background (air or vacuum). Every label that occurs has a
    name, and one of the names is ``crystal``. Raises ValueError otherwise.
    """

    names: tuple[str, ...] = DEFAULT_NAMES

    def __post_init__(self) -> None:
        super().__post_init__()
        names = tuple(str(name) for name in self.names)
        object.__setattr__(self, "names", names)
        if self.values.dtype != np.uint8:
            raise ValueError(f"Labels are uint8; this array is {self.values.dtype}.")
        if len(set(names)) != len(names):
            raise ValueError(f"The label names {', '.join(names)} are not all different.")
        largest = int(self.values.max())
        if largest >= len(names):
            raise ValueError(
                f"The volume holds the label {largest}, which has no name (names: "
                f"{', '.join(f'{i} {name}' for i, name in enumerate(names))}). Name every label."
            )
        if "crystal" not in names:
            raise ValueError(
                f"No label is named 'crystal' (names: {', '.join(names)}). "
                "Name the crystal's label 'crystal'."
            )

    def label(self, name: str) -> int:
        """The label of a material. Raises ValueError where no label has the name."""
        if name not in self.names:
            raise ValueError(f"No label is named {name!r} (names: {', '.join(self.names)}).")
        return self.names.index(name)

    def counts(self) -> NDArray[np.int64]:
        """Number of voxels of each label, in the order of names; counted once."""
        return self._counts.copy()

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        counts = np.zeros(len(self.names), dtype=np.int64)
        for plane in self.values:  # plane by plane, so that nothing large is copied
            for label in range(len(self.names)):
                counts[label] += np.count_nonzero(plane == label)
        return counts

    def edge_fraction(self, name: str = "crystal") -> float:
        """Fraction of a material's voxels that lie in the outermost layer of the volume."""
        label, values = self.label(name), self.values
        total = int(self.counts()[label])
        if total == 0:
            return 0.0
        inner = values[1:-1, 1:-1, 1:-1]
        inside = sum(int(np.count_nonzero(plane == label)) for plane in inner)
        return 1.0 - inside / total

    def __repr__(self) -> str:
        return f"LabelVolume({self._describe()}, {', '.join(self.names)})"
