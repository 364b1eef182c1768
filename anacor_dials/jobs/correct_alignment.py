"""The alignment that factors are computed with: as given, from faces, from symmetry equivalents.

Faces need no absorption and are not misled by what else changes intensities; where they determine
the alignment they decide, and the intensities are compared with them. Where symmetry leaves several
alignments to the faces, the intensities may decide between them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from dials.array_family import flex
from dxtbx.model import ExperimentList
from numpy.typing import NDArray

from anacor_dials.absorption.tracing import Tracing
from anacor_dials.diffraction.alignment import AlignmentFit, equivalents, refine_alignment
from anacor_dials.diffraction.alignment.from_faces import FaceAlignment, resolved
from anacor_dials.diffraction.reflections import Alignment
from anacor_dials.jobs.crystal_faces import (
    FoundFaces,
    SampleFaces,
    clearly_better,
    faces_alignment,
    find_faces,
    with_indices,
)
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.volumes import LabelVolume

logger = logging.getLogger("dials.anacor_dials.jobs.correct_alignment")


@dataclass(frozen=True)
class AlignmentSettings:
    """How the alignment is found.

    Parameters
    ----------
    given : Alignment
    refine : sequence of str
        What is to be found: some of "offset", "sense", "mu_scale" and "faces".
    find_faces : bool
        Whether faces are looked for, and compared with the alignment, if they are not asked for.
    tracing : Tracing
        For the trials of the intensities.
    progress : bool
        Whether to show progress bars.
    """

    given: Alignment
    refine: Sequence[str]
    find_faces: bool
    tracing: Tracing
    progress: bool = False


@dataclass(frozen=True, eq=False)
class FoundAlignment:
    """The alignment to use, and how it was found.

    Attributes
    ----------
    used : Alignment
    mu_scale : float
        The factor on every mu to use.
    intensities : AlignmentFit or None
        The fit to symmetry equivalents, if it was asked for.
    faces : SampleFaces or None
        The faces of the crystals, if they were looked for.
    warnings : list of str
        Sentences for the user.
    """

    used: Alignment
    mu_scale: float
    intensities: AlignmentFit | None
    faces: SampleFaces | None
    warnings: list[str]


def find_alignment(
    experiments: ExperimentList,
    reflections: tuple[flex.reflection_table, NDArray[np.int64]],
    labels: LabelVolume,
    mu_per_um: Sequence[FloatArray],
    settings: AlignmentSettings,
) -> FoundAlignment:
    """The alignment of a labelled volume with the experiments.

    Parameters
    ----------
    experiments : ExperimentList
    reflections : (reflection_table, array (n_rows,))
        All reflections, and the number of each one's experiment.
    labels : LabelVolume
    mu_per_um : sequence of array (n_labels,)
        At each wavelength, 1/um.
    settings : AlignmentSettings

    Raises
    ------
    ValueError
        If the data cannot be used for what is asked for.
    """
    given, tracing = settings.given, settings.tracing
    found: list[FoundFaces] = []
    by_faces: FaceAlignment | None = None
    asked_faces = "faces" in settings.refine
    if asked_faces or settings.find_faces:
        found = find_faces(labels, tracing.seed)
        by_faces = faces_alignment(found, experiments, given)
    used, mu_scale, warnings = given, 1.0, []
    if asked_faces and by_faces is not None and by_faces.determined:
        used = by_faces.after
    intensities = None
    asked = tuple(choice for choice in settings.refine if choice != "faces")
    if asked:
        table, experiment_of_row = reflections
        intensities = refine_alignment(
            equivalents(experiments, [table], [experiment_of_row], used, tracing),
            experiments,
            labels,
            mu_per_um,
            asked,
            used,
            tracing,
            settings.progress,
        )
        mu_scale = intensities.mu_scale
        warnings += intensities.warnings
        if not asked_faces or by_faces is None:
            used = intensities.after
        else:
            by_faces, said = _joined(by_faces, intensities)
            used = by_faces.after if by_faces.determined else intensities.after
            warnings += said
    if asked_faces:
        warnings += _not_from_faces(found, by_faces)
    faces = None
    if found:
        faces = SampleFaces(with_indices(found, experiments, used), by_faces, used)
        if by_faces is not None and (asked_faces or clearly_better(by_faces)):
            warnings += faces.warnings
    return FoundAlignment(used, mu_scale, intensities, faces, warnings)


def _joined(by_faces: FaceAlignment, intensities: AlignmentFit) -> tuple[FaceAlignment, list[str]]:
    """The alignment of the faces with what the intensities say of it, and warnings."""
    after = intensities.after
    if not intensities.moved or "offset" not in intensities.asked:
        return by_faces, []
    if not by_faces.determined:
        return (
            resolved(
                by_faces,
                after.angle_offset_deg,
                after.rotation_sense,
                intensities.offset_error_deg,
            ),
            [],
        )
    if not by_faces.contradicts(
        after.angle_offset_deg, after.rotation_sense, intensities.offset_error_deg
    ):
        return by_faces, []
    return by_faces, [
        f"The faces of the crystal and the intensities contradict each other: offset {by_faces.offset_deg:.1f} "
        f"({by_faces.offset_error_deg:.1f}) deg with sense {by_faces.sense:+d} by the faces, which is used, "
        f"{after.angle_offset_deg % 360:.1f} ({intensities.offset_error_deg:.1f}) deg with sense "
        f"{after.rotation_sense:+d} by symmetry equivalents. If they differ by 180 deg or in the sense, see "
        "whether the labels are mirrored."
    ]


def _not_from_faces(found: Sequence[FoundFaces], by_faces: FaceAlignment | None) -> list[str]:
    """Why nothing was taken from the faces, as a list of one sentence; empty if it was."""
    if by_faces is not None and by_faces.determined:
        return []
    if by_faces is not None:
        reason = by_faces.reason
    elif not found:
        reason = "the volume has no crystal that is large enough"
    elif not any(one.has_faces for one in found):
        reason = f"the crystal has no faces: {found[0].reason}"
    else:
        reason = "the experiments have no crystal model"
    return [
        f"alignment.refine=faces: the faces do not determine the alignment, nothing is moved: {reason}."
    ]
