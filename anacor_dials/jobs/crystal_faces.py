"""The faces of the crystals in a labelled volume: planes, Miller indices, and the alignment that
makes them lattice planes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from dxtbx.model import ExperimentList

from anacor_dials.absorption.convex_solid import ConvexSolid
from anacor_dials.diffraction.alignment.from_faces import (
    AGAINST_RIVALS,
    FaceAlignment,
    align_by_faces,
)
from anacor_dials.diffraction.crystal_faces import CrystalFaces
from anacor_dials.diffraction.crystal_surface.indices import (
    FaceIndices,
    LatticePlanes,
    index_faces,
    lattice_planes,
)
from anacor_dials.diffraction.crystal_surface.planes import SurfacePlanes, surface_planes
from anacor_dials.diffraction.crystal_surface.surface_points import (
    CrystalSurface,
    crystal_surfaces,
)
from anacor_dials.diffraction.reflections import Alignment, tomo_to_datum
from anacor_dials.sample.frames import FloatArray, transform
from anacor_dials.sample.volumes import LabelVolume

logger = logging.getLogger("dials.anacor_dials.jobs.crystal_faces")

# A crystal has faces if so much of its surface is flat, in so many planes.
LEAST_FLAT_SHARE = 0.4
FEWEST_FACES = 3
# Orientations that are nearer are of one crystal: refinement and slippage of the goniometer.
SAME_ORIENTATION_DEG = 1.0
MOST_LATTICES = 8  # in one tomogram; stills of many crystals have nothing to do with it
INSIDE = 0.05  # of the crystal's size: a point nearer to a face is not taken as the origin


@dataclass(frozen=True, eq=False)
class FoundFaces:
    """The faces of one crystal.

    Attributes
    ----------
    surface : CrystalSurface
    planes : SurfacePlanes
    reason : str
        Why the crystal has no faces to speak of; empty if it has.
    experiment : int
        The experiment whose lattice the indices are of; the lattice that fits best.
    indices : FaceIndices or None
        None without a lattice.
    origin_um : array (3,)
        The point in the tomo frame from which distances are measured, um.
    distances_um : array (n,)
        Of the faces from there, along the normals of the lattice planes, um.
    lattice_normals : array (n, 3)
        The normals of the lattice planes in the tomo frame.
    absent_normals : array (m, 3)
        Those of the planes of the same forms that are no faces; see FaceIndices.
    solid : ConvexSolid or None
        The polyhedron that the faces enclose, in the tomo frame about the origin of distances; None
        if they do not.
    """

    surface: CrystalSurface
    planes: SurfacePlanes
    reason: str = ""
    experiment: int = 0
    indices: FaceIndices | None = None
    origin_um: FloatArray | None = None
    distances_um: FloatArray | None = None
    lattice_normals: FloatArray | None = None
    absent_normals: FloatArray | None = None
    solid: ConvexSolid | None = None

    @property
    def has_faces(self) -> bool:
        """Whether the crystal has faces."""
        return not self.reason

    @property
    def names(self) -> list[str]:
        """The Miller indices in words; a number for a face that is no lattice plane."""
        if self.indices is None:
            return [f"face {k + 1}" for k in range(len(self.planes))]
        return [
            "(" + " ".join(f"{h:.0f}" for h in hkl) + ")" if is_plane else f"face {k + 1}"
            for k, (hkl, is_plane) in enumerate(
                zip(self.indices.indices, self.indices.is_lattice_plane, strict=True)
            )
        ]

    @property
    def lattice_share(self) -> float:
        """The share of the area of all faces that is of lattice planes."""
        if self.indices is None or not len(self.planes):
            return 0.0
        areas = self.planes.areas_um2
        return float(areas[self.indices.is_lattice_plane].sum() / areas.sum())

    @property
    def faces(self) -> CrystalFaces | None:
        """The faces as a list; None if they enclose no volume or have no indices."""
        if self.solid is None or self.indices is None or self.distances_um is None:
            return None
        return CrystalFaces(self.indices.indices, self.distances_um)


@dataclass(frozen=True, eq=False)
class SampleFaces:
    """The faces of all crystals of a sample.

    Attributes
    ----------
    crystals : tuple of FoundFaces
        The largest crystal first.
    alignment_fit : FaceAlignment or None
        The alignment from the faces of the crystal with the clearest ones; None without faces or
        without a lattice.
    used : Alignment
        The alignment that the indices hold for.
    """

    crystals: tuple[FoundFaces, ...]
    alignment_fit: FaceAlignment | None
    used: Alignment

    @property
    def list_of_largest(self) -> CrystalFaces | None:
        """The faces of the largest crystal; None if they enclose no volume or have no indices."""
        return self.crystals[0].faces if self.crystals else None

    @property
    def warnings(self) -> list[str]:
        """Sentences for the user on an alignment that is not that of the faces."""
        fit = self.alignment_fit
        if fit is None or not fit.determined:
            return []
        used, warnings = self.used, list(fit.warnings)
        if fit.contradicts(used.angle_offset_deg, used.rotation_sense):
            warnings.append(
                f"The crystal's faces are lattice planes at the angle offset {fit.offset_deg:.1f} "
                f"({fit.offset_error_deg:.1f}) deg with sense {fit.sense:+d}, and not at the alignment used, "
                f"{used.angle_offset_deg:.1f} deg with sense {used.rotation_sense:+d}: give "
                "alignment.refine=faces, or see whether the labels are mirrored."
            )
        return warnings


def find_faces(labels: LabelVolume, seed: int = 0) -> list[FoundFaces]:
    """The planes in the surfaces of all crystals of a volume, without indices.

    Parameters
    ----------
    labels : LabelVolume
    seed : int
        Of random choices.
    """
    found = []
    for surface in crystal_surfaces(labels):
        planes = surface_planes(surface, seed)
        logger.info("%r: %d planes hold %.0f %%", surface, len(planes), 100 * planes.flat_share)
        reason = ""
        if len(planes) < FEWEST_FACES or planes.flat_share < LEAST_FLAT_SHARE:
            reason = (
                f"{100 * planes.flat_share:.0f} % of its surface lies in {len(planes)} planes "
                f"({100 * LEAST_FLAT_SHARE:.0f} % in {FEWEST_FACES} are needed): it is rounded, broken or "
                "thawed, or the labels are too coarse"
            )
        found.append(FoundFaces(surface, planes, reason))
    return found


def faces_alignment(
    found: Sequence[FoundFaces], experiments: ExperimentList, alignment: Alignment
) -> FaceAlignment | None:
    """The alignment at which the faces are lattice planes of the reference experiment's crystal.

    Of several crystals that one decides whose faces fit the lattice most clearly. None without
    faces or without a crystal model.

    Parameters
    ----------
    found : sequence of FoundFaces
    experiments : ExperimentList
    alignment : Alignment
        As given; its reference experiment is that of all trials.
    """
    tomo_to_datum(experiments, alignment)  # refuses a reference experiment that is none
    lattices = _lattices(experiments, alignment.reference_experiment)
    fits = [
        align_by_faces(
            one.planes.normals,
            one.planes.normal_errors_deg,
            planes,
            lambda offset, sense: tomo_to_datum(
                experiments, replace(alignment, angle_offset_deg=offset, rotation_sense=sense)
            ),
            alignment,
        )
        for one in found
        if one.has_faces
        for _, planes in lattices
    ]
    if not fits:
        return None
    return max(fits, key=lambda fit: (fit.determined, fit.log_likelihood))


def _lattices(experiments: ExperimentList, reference: int) -> list[tuple[int, LatticePlanes]]:
    """The different lattices of the experiments, that of the reference one first."""
    numbers = [reference, *(i for i in range(len(experiments)) if i != reference)]
    found: list[tuple[int, LatticePlanes]] = []
    orientations: list[FloatArray] = []
    for number in numbers:
        crystal = experiments[number].crystal
        if crystal is None or len(found) == MOST_LATTICES:
            continue
        u = np.array(crystal.get_U(), dtype=np.float64).reshape(3, 3)
        cosine = np.cos(np.radians(SAME_ORIENTATION_DEG))
        if any((np.trace(u @ other.T) - 1) / 2 > cosine for other in orientations):
            continue
        orientations.append(u)
        found.append((number, lattice_planes(crystal)))
    return found


def with_indices(
    found: Sequence[FoundFaces], experiments: ExperimentList, alignment: Alignment
) -> tuple[FoundFaces, ...]:
    """The faces with their indices, distances and polyhedra, at an alignment.

    Parameters
    ----------
    found : sequence of FoundFaces
        Of :func:`find_faces`.
    experiments : ExperimentList
    alignment : Alignment
    """
    lattices = _lattices(experiments, alignment.reference_experiment)
    to_datum = tomo_to_datum(experiments, alignment)
    indexed = []
    for one in found:
        if one.has_faces and lattices:
            choices = [
                (number, index_faces(
                    transform(to_datum, one.planes.normals), one.planes.normal_errors_deg, planes
                ))
                for number, planes in lattices
            ]  # fmt: skip
            number, indices = min(
                choices, key=lambda choice: float(np.log(choice[1].by_chance).sum())
            )
            one = _measured(replace(one, experiment=number, indices=indices), to_datum)
        indexed.append(one)
    return tuple(indexed)


def _measured(one: FoundFaces, to_datum: FloatArray) -> FoundFaces:
    """The faces with distances along the lattice planes' normals, and the polyhedron."""
    assert one.indices is not None
    normals = transform(to_datum.T, one.indices.normals)
    distances = np.einsum("ij,ij->i", normals, one.planes.middles)
    inside = bool(np.all(distances > INSIDE * one.surface.size_um))
    origin = np.zeros(3) if inside else one.surface.centre
    distances = distances - normals @ origin
    solid = None
    if len(distances) > 3 and np.all(distances > 0):
        try:
            solid = ConvexSolid(normals, distances)
        except ValueError:  # the faces found leave the crystal open on one side
            solid = None
    return replace(
        one,
        origin_um=origin,
        distances_um=distances,
        lattice_normals=normals,
        absent_normals=transform(to_datum.T, one.indices.absent),
        solid=solid,
    )


def clearly_better(fit: FaceAlignment) -> bool:
    """Whether the faces fit the lattice far better at their own alignment than at the given one."""
    return fit.log_likelihood - fit.log_likelihood_before > AGAINST_RIVALS
