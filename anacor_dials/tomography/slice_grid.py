"""The voxels of a slice across the rotation axis."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SliceGrid:
    """The voxels of a slice: a window of a square of n x n pixels about the rotation axis.

    The axis is at index (n - 1) / 2 of the square along both Y and Z.

    Parameters
    ----------
    n : int
        Edge of the square, pixels.
    y, z : (int, int), optional
        First and last + 1 index of the window; the whole square if not given.
    """

    n: int
    y: tuple[int, int] | None = None
    z: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("y", "z"):
            first, stop = getattr(self, name) or (0, self.n)
            if not 0 <= first < stop <= self.n:
                raise ValueError(
                    f"The crop {name} = {first} to {stop} is not within the {self.n} voxels of a slice."
                )
            object.__setattr__(self, name, (int(first), int(stop)))

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nz) of the window."""
        (y0, y1), (z0, z1) = self.windows
        return y1 - y0, z1 - z0

    @property
    def windows(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """First and last + 1 index along Y and along Z."""
        assert self.y is not None
        assert self.z is not None
        return self.y, self.z

    @property
    def start(self) -> tuple[float, float]:
        """(y, z) of the first voxel, in pixels from the axis."""
        middle = (self.n - 1) / 2
        return self.windows[0][0] - middle, self.windows[1][0] - middle

    @property
    def radius(self) -> float:
        """Largest distance of a voxel from the axis, in pixels."""
        corners = [
            (start, start + size - 1) for start, size in zip(self.start, self.shape, strict=True)
        ]
        return math.hypot(*(max(abs(a), abs(b)) for a, b in corners))
