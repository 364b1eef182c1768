"""Frames: laboratory, datum and tomo; the only place where rotations and axis maps are made.

* **lab**: DIALS' laboratory frame.
* **datum**: the sample with every goniometer angle at zero;
  ``r_lab = S R'(axis_datum, phi) F r_datum`` (dxtbx; S the setting rotation, F the fixed rotation).
* **tomo**: fixed to the sample, the frame of every volume. X is the rotation axis of the tomography
  scan, about which the sample turns right-handedly as ``rotation_angle`` grows; Z points from the
  sample to the source at ``rotation_angle = 0``; Y = Z x X. At angle theta a point of the sample is
  at ``R_x(theta) r_tomo`` in the axes of theta = 0.

All frames are right-handed. Matrices act on column vectors; a stack of vectors is (n, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
FloatImages = NDArray[np.float32]

AXIS_NAMES = ("x", "y", "z")


def unit(vectors: ArrayLike) -> FloatArray:
    """The vectors (..., 3) divided by their lengths. Raises ValueError for a zero vector."""
    vectors = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not np.all(length > 0):
        raise ValueError("A direction has length zero; a unit vector needs a direction.")
    return vectors / length


def rotation_about(axis: ArrayLike, angle_deg: ArrayLike) -> FloatArray:
    """Matrices (..., 3, 3) of right-handed rotations by angles (...) in degrees about an axis (3,).

    Rodrigues: R = cos(a) 1 + sin(a) [n]x + (1 - cos(a)) n n^T.
    """
    x, y, z = unit(axis)
    angle = np.deg2rad(np.asarray(angle_deg, dtype=np.float64))[..., None, None]
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    outer = np.outer((x, y, z), (x, y, z))
    return np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * outer


def scan_rotation(rotation_angle_deg: ArrayLike) -> FloatArray:
    """R_x(theta) (..., 3, 3): the tomography's rotation of the sample, angles in degrees."""
    return rotation_about((1.0, 0.0, 0.0), rotation_angle_deg)


def source_directions(rotation_angle_deg: ArrayLike) -> FloatArray:
    """Unit vectors (..., 3) to the source, in the tomo frame, at angles theta (...) of the scan.

    The source is at +Z when theta is zero; seen from the sample it turns the other way:
    R_x(-theta) z = (0, sin(theta), cos(theta)).
    """
    angle = np.deg2rad(np.asarray(rotation_angle_deg, dtype=np.float64))
    return np.stack([np.zeros_like(angle), np.sin(angle), np.cos(angle)], axis=-1)


def tomo_axes_in_lab(
    rotation_axis: ArrayLike, s0: ArrayLike, rotation_sense: int = 1
) -> FloatArray:
    """M = [e | y | z] (3, 3): columns are the tomo axes in the lab at ``rotation_angle = 0``.

    z is -s0 made orthogonal to the axis.

    Parameters
    ----------
    rotation_axis : array (3,)
        S axis_datum in the lab frame.
    s0 : array (3,)
        The direction in which the beam flies.
    rotation_sense : int
        1, or -1 if the rotation_angle of the scan decreases as the goniometer's angle grows.

    Raises
    ------
    ValueError
        If the beam is parallel to the axis.
    """
    if rotation_sense not in (1, -1):
        raise ValueError(f"The rotation sense is {rotation_sense}; it must be 1 or -1.")
    e = rotation_sense * unit(rotation_axis)
    z = -unit(s0)
    z = z - e * (e @ z)
    if np.linalg.norm(z) < 1e-6:
        raise ValueError(
            "The beam runs along the rotation axis, so no tomography frame can be made of the two."
        )
    z = unit(z)
    return np.column_stack([e, np.cross(z, e), z])


def datum_from_tomo(goniometer_rotation: ArrayLike, tomo_axes: ArrayLike) -> FloatArray:
    """The matrix (3, 3) that takes vectors of the tomo frame to the datum frame.

    ``[S R'(phi0) F]^-1 M``; goniometer_rotation (3, 3) is S R'(phi0) F at the goniometer angle phi0
    at which the tomography's rotation_angle is zero; tomo_axes (3, 3) is M.
    """
    return np.asarray(goniometer_rotation).T @ np.asarray(tomo_axes)


def transform(matrix: ArrayLike, vectors: ArrayLike) -> FloatArray:
    """matrix @ vector for every row of vectors (n, 3); matrix (3, 3) or one per row (n, 3, 3)."""
    return np.einsum("...ij,...j->...i", np.asarray(matrix), np.asarray(vectors, dtype=np.float64))


def parse_axis_map(axis_map: str) -> list[tuple[int, int]]:
    """The (tomo axis, sign) of each index axis of an array, from text such as ``"z,-y,x"``.

    ``"z,-y,x"`` says: the first index runs along +Z of the tomo frame, the second along -Y, the
    third along +X. Raises ValueError where the text names an axis twice or not at all.
    """
    axes = []
    for item in axis_map.replace(" ", "").lower().split(","):
        name = item.lstrip("+-")
        if name not in AXIS_NAMES:
            break
        axes.append((AXIS_NAMES.index(name), -1 if item.startswith("-") else 1))
    if sorted(axis for axis, _ in axes) != [0, 1, 2]:
        raise ValueError(
            f"The axis map {axis_map!r} must name x, y and z once each, such as 'x,y,z' or 'z,-y,x'."
        )
    return axes


def axis_map_determinant(axis_map: str) -> int:
    """+1 where the mapped array axes are right-handed, -1 where they are a mirror image."""
    matrix = np.zeros((3, 3))
    for index, (axis, sign) in enumerate(parse_axis_map(axis_map)):
        matrix[axis, index] = sign
    return round(float(np.linalg.det(matrix)))


def require_right_handed(axis_map: str, scope: str, left_handed: bool) -> None:
    """Raises ValueError for a left-handed axis map, unless that is what the user says of it.

    Parameters
    ----------
    axis_map : str
        As of :func:`parse_axis_map`.
    scope : str
        Of the user's parameters, such as "labels", for the message.
    left_handed : bool
        What the user says.
    """
    if axis_map_determinant(axis_map) < 0 and not left_handed:
        raise ValueError(
            f"{scope}.axes={axis_map} is left-handed: if one of its signs is wrong, the sample is "
            "mirrored. Correct it; or where the file's indices truly run so, say "
            f"{scope}.left_handed=True."
        )


def to_tomo_axes(array: NDArray[np.generic], axis_map: str) -> NDArray[np.generic]:
    """A view of a foreign array (3 axes) with its axes along X, Y, Z of the tomo frame.

    axis_map: what each index axis of the array runs along, see :func:`parse_axis_map`.
    """
    axes = parse_axis_map(axis_map)
    order = [0, 0, 0]
    for index, (axis, _) in enumerate(axes):
        order[axis] = index
    flips = tuple(slice(None, None, axes[index][1]) for index in order)
    return array.transpose(order)[flips]


def sizes_along_axes(sizes: Sequence[float], axis_map: str) -> tuple[float, float, float]:
    """Lengths along X, Y, Z of the tomo frame, from those along the axes of a foreign array."""
    along = dict(zip((axis for axis, _ in parse_axis_map(axis_map)), sizes, strict=True))
    return along[0], along[1], along[2]


@dataclass(frozen=True)
class ImageAxes:
    """How the rows and columns of a scan's images lie in the tomo frame at ``rotation_angle = 0``.

    The *upright* view of an image has the shape (nx, ny): first index along +X, second along +Y.

    Parameters
    ----------
    transposed : bool
        False if rows are numbered along the rotation axis X, True if columns are.
    x_sign, y_sign : int
        1 if the index that runs along X (Y) grows with X (Y), else -1.
    """

    transposed: bool
    x_sign: int
    y_sign: int

    @classmethod
    def from_vectors(cls, fast_axis: ArrayLike, slow_axis: ArrayLike) -> ImageAxes:
        """From the directions (3,) in which column (fast) and row (slow) numbers grow.

        Raises ValueError unless one of them is +-X and the other +-Y.
        """
        fast, slow = unit(fast_axis), unit(slow_axis)
        rounded = [tuple(int(v) for v in np.rint(axis)) for axis in (fast, slow)]
        straight = np.allclose(rounded, [fast, slow], atol=1e-3)
        if not straight or any(v[2] for v in rounded) or abs(rounded[0][0]) == abs(rounded[1][0]):
            raise ValueError(
                f"The image axes fast = {np.round(fast, 4).tolist()}, slow = "
                f"{np.round(slow, 4).tolist()} must be +-X (the rotation axis) and +-Y of the "
                "tomography frame, one each, such as fast_axis=0,1,0 slow_axis=1,0,0."
            )
        transposed = rounded[0][0] != 0
        x, y = rounded if transposed else rounded[::-1]
        return cls(transposed, x[0], y[1])

    @property
    def fast_axis(self) -> tuple[float, float, float]:
        """The direction in which column numbers grow."""
        return (float(self.x_sign), 0.0, 0.0) if self.transposed else (0.0, float(self.y_sign), 0.0)

    @property
    def slow_axis(self) -> tuple[float, float, float]:
        """The direction in which row numbers grow."""
        return (0.0, float(self.y_sign), 0.0) if self.transposed else (float(self.x_sign), 0.0, 0.0)

    def upright_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """(nx, ny) of images of so many rows and columns."""
        return (columns, rows) if self.transposed else (rows, columns)

    def upright(self, images: NDArray[Any]) -> NDArray[Any]:
        """A view (..., nx, ny) of images (..., rows, columns)."""
        view = images.swapaxes(-1, -2) if self.transposed else images
        return view[..., :: self.x_sign, :: self.y_sign]

    def raw_window(self, x: slice, nx: int) -> tuple[slice, slice]:
        """The (rows, columns) of an image whose upright view is [start:stop, :] of the whole.

        x: start:stop; nx: pixels along X of the whole.
        """
        start, stop, _ = x.indices(nx)
        along = slice(start, stop) if self.x_sign > 0 else slice(nx - stop, nx - start)
        return (slice(None), along) if self.transposed else (along, slice(None))

    def upright_index(self, raw: float, n: int, axis: str) -> float:
        """The index along X or Y of a raw column or row number.

        The same formula gives the raw number of an upright index.

        Parameters
        ----------
        raw : float
        n : int
            The number of pixels along this axis.
        axis : str
            "x" or "y".
        """
        sign = self.x_sign if axis == "x" else self.y_sign
        return raw if sign > 0 else n - 1 - raw

    def upright_centre(
        self, raw: tuple[float, float], shape: tuple[int, int]
    ) -> tuple[float, float]:
        """The place of the origin in the upright images, from its place in the raw images.

        Both are (across the rotation axis, along it). The same formula gives the raw numbers of
        upright ones.

        Parameters
        ----------
        raw : (float, float)
        shape : (int, int)
            (nx, ny) of the upright images.
        """
        across, along = raw
        return self.upright_index(across, shape[1], "y"), self.upright_index(along, shape[0], "x")
