"""Labels in which crystals are the polyhedra of their faces, where these explain them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anacor_dials.absorption.convex_solid import ConvexSolid
from anacor_dials.diffraction.crystal_surface.polyhedra import (
    PlacedPolyhedron,
    PolyhedronFit,
    finer_by,
    labels_of_polyhedra,
    polyhedron_fit,
)
from anacor_dials.jobs.crystal_faces import FoundFaces, SampleFaces
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.volumes import LabelVolume

logger = logging.getLogger("dials.anacor_dials.jobs.labels_by_faces")

CHOICES = ("voxels", "faces", "auto")
# The part of the polyhedron that must be labelled as crystal, and the part of the labelled crystal
# that must lie in the polyhedron. A crystal from which more is missing may be broken, and a
# polyhedron that leaves more out lacks a face.
LEAST_LABELLED, LEAST_WITHIN = 0.65, 0.9
# The same for "auto", where nobody looks: the Dice coefficient of polyhedron and labels, and the
# share of the surface that is flat.
LEAST_DICE, LEAST_FLAT_SHARE = 0.8, 0.6
# Crystal on the outer side of a face: farther from it than so many voxels, or this fraction of the
# crystal's size, and the share of the surface that may lie there. Of faces in labels with 1 voxel
# rms it was 0.001 at most, of places where a corner was missing 0.015 and more.
BEYOND_VOXELS, BEYOND, MOST_BEYOND = 2.0, 0.03, 0.01
OUTERMOST = 0.999  # of the surface points: a face that was not found does not cut the crystal
COMPLETED = 0.05  # of a crystal: more that is added or taken away is a warning


@dataclass(frozen=True)
class CrystalByFaces:
    """One crystal and the polyhedron of its faces.

    Attributes
    ----------
    number : int
        Of the crystal, the largest is 1.
    fit : PolyhedronFit or None
        None if the faces do not enclose it.
    reason : str
        Why its voxels stay as they are; empty if the polyhedron takes their place.
    polyhedron : PlacedPolyhedron or None
    by_symmetry : int
        The number of its faces that were not found, but belong to a form most of whose faces were.
    """

    number: int
    fit: PolyhedronFit | None
    reason: str
    polyhedron: PlacedPolyhedron | None = None
    by_symmetry: int = 0

    @property
    def sentence(self) -> str:
        """What was done with it."""
        if self.reason or self.fit is None:
            return f"Crystal {self.number} stays as it was labelled: {self.reason}."
        added = (self.fit.volume_um3 - self.fit.labelled_um3) / self.fit.volume_um3
        taken = (self.fit.crystal_um3 - self.fit.labelled_um3) / self.fit.volume_um3
        return (
            f"Crystal {self.number} is the polyhedron of its faces: {100 * added:.1f} % of it were not labelled as "
            f"crystal, and {100 * taken:.1f} % beside it were (Dice {self.fit.dice:.3f})."
            + (
                f" {self.by_symmetry} of its faces were not found and follow from symmetry."
                if self.by_symmetry
                else ""
            )
        )


@dataclass(frozen=True, eq=False)
class LabelsByFaces:
    """Labels in which some crystals are polyhedra.

    Attributes
    ----------
    labels : LabelVolume
    finer : int
        The number of voxels along each edge of one of the given voxels.
    crystals : tuple of CrystalByFaces
    polyhedra : tuple of PlacedPolyhedron
        Those that took the place of crystals.
    """

    labels: LabelVolume
    finer: int
    crystals: tuple[CrystalByFaces, ...]
    polyhedra: tuple[PlacedPolyhedron, ...] = ()

    @property
    def numbers(self) -> dict[str, Any]:
        """Everything but the labels, for JSON."""
        return {
            "finer": self.finer,
            "crystals": [
                {
                    "number": one.number,
                    "reason_for_voxels": one.reason or None,
                    "faces_by_symmetry": one.by_symmetry,
                    "polyhedron_um3": one.fit and one.fit.volume_um3,
                    "labelled_um3": one.fit and one.fit.labelled_um3,
                    "crystal_um3": one.fit and one.fit.crystal_um3,
                    "dice": one.fit and one.fit.dice,
                }
                for one in self.crystals
            ],
        }

    @property
    def warnings(self) -> list[str]:
        """Sentences on crystals that were completed, or that stay although faces were asked for."""
        return [
            f"labels.crystal: {one.sentence}"
            for one in self.crystals
            if one.reason or one.fit is None or one.fit.dice < 1 - COMPLETED
        ]


def labels_by_faces(
    labels: LabelVolume, faces: SampleFaces | None, choice: str
) -> LabelsByFaces | None:
    """The labels with polyhedra of faces in place of crystals.

    Parameters
    ----------
    labels : LabelVolume
    faces : SampleFaces or None
        As found in the labels, with Miller indices.
    choice : str
        "voxels": the labels as they are. "faces": a polyhedron wherever the faces enclose the
        crystal and fit to it. "auto": only where they fit well.

    Returns
    -------
    LabelsByFaces or None
        None if nothing was asked for, or with "auto" no crystal has faces that fit.

    Raises
    ------
    ValueError
        If the choice is none of these.
    """
    if choice not in CHOICES:
        raise ValueError(f"labels.crystal is {choice!r}; it is one of {', '.join(CHOICES)}.")
    if choice == "voxels":
        return None
    found = () if faces is None else faces.crystals
    crystals = tuple(_judged(labels, one, k, choice) for k, one in enumerate(found, 1))
    polyhedra = tuple(one.polyhedron for one in crystals if one.polyhedron and not one.reason)
    for one in crystals:
        logger.info("%s", one.sentence)
    if not polyhedra:
        if choice == "auto":
            return None
        none = (CrystalByFaces(1, None, "the volume has no crystal that is large enough"),)
        return LabelsByFaces(labels, 1, crystals or none)
    finer = finer_by(labels)
    made = labels_of_polyhedra(labels, polyhedra, finer)
    return LabelsByFaces(made, finer, crystals, polyhedra)


def _placed(one: FoundFaces) -> tuple[PlacedPolyhedron | None, int]:
    """The polyhedron of the lattice planes that bound the crystal, and how many symmetry gave.

    A plane in a broken or ragged part of the surface has crystal on both sides, and is no face.
    Where a face of a form is absent, and most of its form are there, it is taken to be there, in
    the place that the others of its form say, but not within the crystal. None if the planes
    enclose nothing.
    """
    normals, distances, origin = one.lattice_normals, one.distances_um, one.origin_um
    if one.indices is None or normals is None or distances is None or origin is None:
        return None, 0
    points = one.surface.points - origin
    allowed = max(BEYOND_VOXELS * one.surface.voxel_um, BEYOND * one.surface.size_um)
    beyond = one.surface.areas @ (points @ normals.T - distances > allowed)
    is_face = one.indices.is_lattice_plane & (beyond < MOST_BEYOND * one.surface.areas.sum())
    is_face &= distances > 0
    normals, distances = normals[is_face], distances[is_face]
    further, far = _absent_faces(one, normals, distances, one.indices.forms[is_face], points)
    try:
        solid = ConvexSolid(np.concatenate([normals, further]), np.concatenate([distances, far]))
    except ValueError:  # they leave the crystal open on one side
        return None, 0
    by_symmetry = int(np.count_nonzero(solid.areas_um2[len(normals) :]))
    return PlacedPolyhedron(solid, origin), by_symmetry


def _absent_faces(
    one: FoundFaces,
    normals: FloatArray,
    distances: FloatArray,
    forms: NDArray[np.int64],
    points: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Normals (m, 3) and distances (m,), um, of the faces that are absent from forms.

    The faces of a form have one distance from a centre, which is that of all forms, by least
    squares: d = n . c + D_form. points: of the surface, from the origin of distances.
    """
    assert one.indices is not None
    assert one.absent_normals is not None
    numbers = np.array([f for f in np.unique(forms) if _is_mostly_there(one, forms, f)], dtype=int)
    known = np.isin(forms, numbers)
    if not len(numbers) or known.sum() < len(numbers) + 3:
        return np.zeros((0, 3)), np.zeros(0)
    of_form = (forms[known, None] == numbers).astype(float)
    unknowns, *_ = np.linalg.lstsq(
        np.column_stack([normals[known], of_form]), distances[known], rcond=None
    )
    absent = np.isin(one.indices.absent_forms, numbers)
    further = one.absent_normals[absent]
    place = np.searchsorted(numbers, one.indices.absent_forms[absent])
    expected = further @ unknowns[:3] + unknowns[3:][place]
    outermost = np.quantile(points @ further.T, OUTERMOST, axis=0) if len(further) else expected
    far = np.maximum(expected, outermost)
    return further[far > 0], far[far > 0]


def _is_mostly_there(one: FoundFaces, forms: NDArray[np.int64], form: int) -> bool:
    assert one.indices is not None
    there, absent = np.count_nonzero(forms == form), np.sum(one.indices.absent_forms == form)
    return bool(there > absent)


def _judged(labels: LabelVolume, one: FoundFaces, number: int, choice: str) -> CrystalByFaces:
    """Whether the polyhedron of a crystal may take its place."""
    if not one.has_faces:
        return CrystalByFaces(number, None, one.reason)
    if one.indices is None:
        return CrystalByFaces(number, None, "the experiments have no crystal model")
    placed, by_symmetry = _placed(one)
    if placed is None:
        return CrystalByFaces(number, None, "the faces found do not enclose it")
    fit = polyhedron_fit(labels, placed)
    labelled = fit.labelled_um3 / fit.volume_um3
    within = fit.labelled_um3 / max(one.surface.volume_um3, 1e-12)
    reason = ""
    if fit.leaves_volume:
        reason = "its faces reach out of the volume"
    elif labelled < LEAST_LABELLED:
        reason = f"{100 * labelled:.0f} % of the polyhedron of its faces are labelled as crystal, and {100 * LEAST_LABELLED:.0f} % are needed"
    elif within < LEAST_WITHIN:
        reason = f"{100 * within:.0f} % of it lie in the polyhedron of its faces, and {100 * LEAST_WITHIN:.0f} % are needed"
    elif choice == "auto" and (fit.dice < LEAST_DICE or one.planes.flat_share < LEAST_FLAT_SHARE):
        reason = (
            f"its faces fit too badly for labels.crystal=auto (Dice {fit.dice:.2f}, "
            f"{100 * one.planes.flat_share:.0f} % of its surface flat)"
        )
    return CrystalByFaces(number, fit, reason, placed, by_symmetry)
