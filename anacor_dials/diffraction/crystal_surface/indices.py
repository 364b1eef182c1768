"""Miller indices of planes that were found in the surface of a crystal.

The face (h k l) is perpendicular to the reciprocal vector A h, with A = U B of DIALS in the datum
frame. Faces of large interplanar distance are frequent; by a screw axis or a glide plane the
distance becomes a fraction (Donnay & Harker, Am. Mineral. 22 (1937) 446). Lattice planes therefore
have a rank: how many of them have as large a distance, or a larger one. Near every direction there
is some plane of high rank. The indices of a face are those which are least likely to be as near by
chance: the rank, times the part of the sphere that is within the angle found. Where even this is
likely, the face is no lattice plane that one could name, and has fractional indices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cctbx.array_family import flex
from cctbx.miller import map_to_asu
from dxtbx.model import Crystal
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray, unit

LARGEST_INDEX = 9
MOST_PLANES = 160  # by rank; faces of higher rank are rare and could not be told from others
SAME_DISTANCE = 1e-3  # relative: planes of a form, in a cell that was refined without its symmetry
HIGHEST_ORDER = 6  # of a reflection from a screw axis: 6_1
LEAST_ANGLE_ERROR_DEG = 0.5  # of a normal: planes of labels are hardly better
LARGEST_ANGLE_DEG = 5.0  # between the normal of a face and the reciprocal vector
LIKELY_BY_CHANCE = 0.05  # the expected number of planes as near as the one found


@dataclass(frozen=True, eq=False)
class LatticePlanes:
    """m lattice planes of a crystal, by rank; (h k l) and (-h -k -l) are two.

    Attributes
    ----------
    indices : array (m, 3) of int
        Miller indices without a common divisor.
    rank : array (m,)
        How many planes have this interplanar distance or a larger one.
    form : array (m,) of int
        The number of the form, the planes that the Laue group makes of one, from 0.
    normals : array (m, 3)
        Unit vectors in the datum frame.
    to_reciprocal : array (3, 3)
        A of the crystal: from Miller indices to the datum frame, 1/Angstrom.
    """

    indices: NDArray[np.int64]
    rank: FloatArray
    form: NDArray[np.int64]
    normals: FloatArray
    to_reciprocal: FloatArray

    def __len__(self) -> int:
        return len(self.rank)


def lattice_planes(crystal: Crystal) -> LatticePlanes:
    """The lattice planes of a crystal with the largest interplanar distances.

    Parameters
    ----------
    crystal : dxtbx.model.Crystal
    """
    axis = np.arange(-LARGEST_INDEX, LARGEST_INDEX + 1)
    hkl = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    hkl = hkl[np.gcd.reduce(hkl, axis=1) == 1]
    a_matrix = np.array(crystal.get_A(), dtype=np.float64).reshape(3, 3)
    vectors = hkl @ a_matrix.T
    distance = 1 / np.linalg.norm(vectors, axis=1)
    # the order of the first reflection is 6 at most: planes far down the list need no closer look
    kept = np.argsort(-distance, kind="stable")[: 12 * MOST_PLANES]
    hkl, vectors, distance = hkl[kept], vectors[kept], distance[kept]
    distance = distance / _first_orders(crystal, hkl)
    order = np.argsort(-distance, kind="stable")
    hkl, vectors, distance = hkl[order], vectors[order], distance[order]
    rank = np.array(
        [np.count_nonzero(distance > d * (1 - SAME_DISTANCE)) for d in distance[:MOST_PLANES]],
        dtype=np.float64,
    )
    n = int(np.count_nonzero(rank <= MOST_PLANES))  # whole forms
    return LatticePlanes(hkl[:n], rank[:n], _forms(crystal, hkl[:n]), unit(vectors[:n]), a_matrix)


def _forms(crystal: Crystal, hkl: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number (m,) of the form of each plane (m, 3)."""
    indices = flex.miller_index([tuple(map(int, h)) for h in hkl])
    map_to_asu(crystal.get_space_group().type(), False, indices)
    unique = np.array(list(indices), dtype=np.int64).reshape(-1, 3)
    return np.unique(unique, axis=0, return_inverse=True)[1].ravel()


def _first_orders(crystal: Crystal, hkl: NDArray[np.int64]) -> FloatArray:
    """The order (m,) of the first reflection that is not absent, for planes (m, 3)."""
    group = crystal.get_space_group()
    orders = np.full(len(hkl), float(HIGHEST_ORDER))
    for n in range(HIGHEST_ORDER, 0, -1):
        indices = flex.miller_index([tuple(int(n * i) for i in h) for h in hkl])
        present = ~np.array(group.is_sys_absent(indices), dtype=bool)
        orders[present] = n
    return orders


@dataclass(frozen=True, eq=False)
class FaceIndices:
    """The indices of n faces.

    Attributes
    ----------
    indices : array (n, 3)
        Miller indices; fractional ones for faces that are no lattice planes, with the largest one
        equal to 1 or -1.
    is_lattice_plane : array (n,) of bool
    angles_deg : array (n,)
        Between the normal of the face and the reciprocal vector; 0 for fractional indices.
    by_chance : array (n,)
        The expected number of lattice planes of this rank or a lower one that are as near.
    normals : array (n, 3)
        Of the lattice planes, or of the faces that are none, unit vectors in the datum frame.
    forms : array (n,) of int
        The number of the form of each; -1 for faces that are no lattice planes.
    absent, absent_forms : arrays (m, 3) and (m,)
        Normals and forms of the planes of these forms that are no faces.
    """

    indices: FloatArray
    is_lattice_plane: NDArray[np.bool_]
    angles_deg: FloatArray
    by_chance: FloatArray
    normals: FloatArray
    forms: NDArray[np.int64]
    absent: FloatArray
    absent_forms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)


def index_faces(
    normals: FloatArray, normal_errors_deg: FloatArray, planes: LatticePlanes
) -> FaceIndices:
    """The Miller indices of faces.

    Parameters
    ----------
    normals : array (n, 3)
        Outward unit normals in the datum frame.
    normal_errors_deg : array (n,)
        Their standard errors, deg.
    planes : LatticePlanes
    """
    angle = np.degrees(np.arccos(np.clip(normals @ planes.normals.T, -1.0, 1.0)))
    error = np.maximum(normal_errors_deg, LEAST_ANGLE_ERROR_DEG)
    cap = (1 - np.cos(np.radians(np.hypot(angle, error[:, None])))) / 2
    rows, rank = np.arange(len(normals)), planes.rank
    allowed = np.clip(3 * error, LARGEST_ANGLE_DEG / 2, LARGEST_ANGLE_DEG)
    for _ in range(2):
        by_chance = np.broadcast_to(rank * cap, cap.shape)
        best = np.argmin(by_chance, axis=1)
        found_angle, chance = angle[rows, best], by_chance[rows, best]
        is_plane = (chance < LIKELY_BY_CHANCE) & (found_angle < allowed)
        # further faces of forms that are there are to be expected, and are known by less
        there = np.isin(planes.form, planes.form[best[is_plane]])
        rank = np.where(there, np.minimum(planes.rank, np.count_nonzero(there)), planes.rank)
        allowed = np.where(there[best], LARGEST_ANGLE_DEG, allowed)
    # two faces with the same indices are one, and the nearer has them
    for k in np.unique(best[is_plane]):
        twins = np.flatnonzero(is_plane & (best == k))
        is_plane[twins[np.argsort(found_angle[twins])[1:]]] = False
    fractional = normals @ np.linalg.inv(planes.to_reciprocal).T
    fractional /= np.abs(fractional).max(axis=1, keepdims=True)
    forms = np.where(is_plane, planes.form[best], -1)
    absent = np.isin(planes.form, forms)
    absent[best[is_plane]] = False
    return FaceIndices(
        indices=np.where(is_plane[:, None], planes.indices[best], np.round(fractional, 4)),
        is_lattice_plane=is_plane,
        angles_deg=np.where(is_plane, found_angle, 0.0),
        by_chance=chance,
        normals=np.where(is_plane[:, None], planes.normals[best], normals),
        forms=forms,
        absent=planes.normals[absent],
        absent_forms=planes.form[absent],
    )
