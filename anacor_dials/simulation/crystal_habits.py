"""Habits: the shapes of crystals whose faces are lattice planes of their cell.

A form {h k l} is all faces that the symmetry of the lattice makes of one. A face is perpendicular
to the reciprocal vector of its indices. The habit has relative distances of its forms; the faces of
a real crystal differ from them by some per cent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from anacor_dials.sample.frames import FloatArray, unit
from anacor_dials.simulation.meshes import convex_polyhedron

FACE_SPREAD = 0.08  # relative, of the distances of the faces of one form


@dataclass(frozen=True, eq=False)
class Lattice:
    """The lattice of a crystal in the tomo frame.

    Parameters
    ----------
    axes : array (3, 3)
        Columns are the axes a, b, c of the cell in the tomo frame, Angstrom.
    space_group : str
        Hermann-Mauguin symbol.
    atoms : mapping of str to int
        The atoms of one asymmetric unit by element, without hydrogen.
    """

    axes: FloatArray
    space_group: str
    atoms: dict[str, int]

    @property
    def cell(self) -> tuple[float, float, float, float, float, float]:
        """Edges in Angstrom, angles in degrees."""
        lengths = np.linalg.norm(self.axes, axis=0)
        cosines = (self.axes.T @ self.axes) / np.outer(lengths, lengths)
        alpha, beta, gamma = np.degrees(np.arccos(cosines[[1, 0, 0], [2, 2, 1]]))
        a, b, c = lengths
        a, b, c, alpha, beta, gamma = np.round([a, b, c, alpha, beta, gamma], 6).tolist()
        return a, b, c, alpha, beta, gamma

    def turned(self, rotation: ArrayLike) -> Lattice:
        """The lattice after a rotation (3, 3)."""
        return Lattice(np.asarray(rotation) @ self.axes, self.space_group, self.atoms)

    def normals(self, indices: ArrayLike) -> FloatArray:
        """Unit normals (n, 3) of the lattice planes of Miller indices (n, 3)."""
        return unit(np.asarray(indices, dtype=float) @ np.linalg.inv(self.axes))


@dataclass(frozen=True, eq=False)
class Habit:
    """A tetragonal lattice and the forms of its crystals.

    Parameters
    ----------
    a, c : float
        Edges of the tetragonal cell, Angstrom.
    space_group : str
    atoms : dict of str to int
        Of one asymmetric unit, without hydrogen.
    forms : tuple of ((int, int, int), float)
        Miller indices of one face of each form, and the relative distance of its faces from the
        middle of the crystal.
    """

    a: float
    c: float
    space_group: str
    atoms: dict[str, int]
    forms: tuple[tuple[tuple[int, int, int], float], ...]

    @property
    def cell(self) -> tuple[float, float, float, float, float, float]:
        """Edges in Angstrom, angles in degrees."""
        return self.a, self.a, self.c, 90.0, 90.0, 90.0

    @property
    def lattice(self) -> Lattice:
        """The lattice with its axes along X, Y, Z."""
        return Lattice(np.diag([self.a, self.a, self.c]), self.space_group, self.atoms)

    def faces(self) -> tuple[FloatArray, FloatArray]:
        """Miller indices (n, 3) and relative distances (n,) of all faces."""
        indices, distances = [], []
        for hkl, distance in self.forms:
            members = tetragonal_form(hkl)
            indices += members
            distances += [distance] * len(members)
        return np.array(indices, dtype=float), np.array(distances)


def tetragonal_form(hkl: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """The faces that 4/mmm makes of one: all signs, and h and k exchanged."""
    h, k, l = hkl
    return sorted(
        {
            (i * x, j * y, m * l)
            for x, y in ((h, k), (k, h))
            for i in (1, -1)
            for j in (1, -1)
            for m in (1, -1)
        }
    )


# Crystals of thaumatin (1 asymmetric unit: 207 residues, 16 Cys, 1 Met) are bipyramids; those of
# hen egg-white lysozyme are prisms {1 1 0} with ends {1 0 1}.
HABITS = {
    "thaumatin": Habit(
        57.8, 150.2, "P 41 21 2", {"C": 981, "N": 273, "O": 298, "S": 17}, (((1, 0, 1), 1.0),)
    ),
    "lysozyme": Habit(
        79.1,
        37.9,
        "P 43 21 2",
        {"C": 613, "N": 193, "O": 185, "S": 10},
        (((1, 1, 0), 1.0), ((1, 0, 1), 1.1)),
    ),
}


def random_faces(
    habit: Habit, rng: np.random.Generator, crystal_size_um: float
) -> tuple[FloatArray, FloatArray]:
    """Normals (n, 3), with the axes of the cell along X, Y, Z, and distances (n,), um, of faces.

    The forms of the habit have random distances, and so have the faces of a form, within some per
    cent. Every face is there.

    Parameters
    ----------
    habit : Habit
    rng : numpy.random.Generator
    crystal_size_um : float
        The edge of the cube that is as large as the crystal.
    """
    indices, relative = habit.faces()
    normals = habit.lattice.normals(indices)
    of_form = {distance: rng.uniform(0.9, 1.1) for distance in np.unique(relative)}
    distances = relative * np.array([of_form[d] for d in relative])
    distances = distances * rng.uniform(1 - FACE_SPREAD, 1 + FACE_SPREAD, len(distances))
    volume = convex_polyhedron(normals, distances).volume_um3
    return normals, distances * crystal_size_um / np.cbrt(volume)
