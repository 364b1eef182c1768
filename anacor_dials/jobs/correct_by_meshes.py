"""From experiments, reflections and meshes of crystal, liquor and mount to absorption factors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from dials.array_family import flex
from dxtbx.model import ExperimentList

from anacor_dials.absorption.closed_surface import CRYSTAL, LIQUOR, SurfaceSample
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.factors import AbsorptionFactors, absorption_factors_of_surfaces
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.diffraction.reflections import (
    Alignment,
    axis_of_beam,
    combined,
    require_columns,
    require_reference_experiment,
    tomo_to_datum,
    warnings_for_scaling,
)
from anacor_dials.diffraction.wavelengths import wavelength_groups
from anacor_dials.jobs.correct import (
    CorrectedReflections,
    factors_of_rows,
    materials_at_wavelengths,
)
from anacor_dials.jobs.correct_by_faces import CellContent, cell_content
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.materials import Material, MaterialInput, mu_by_label

logger = logging.getLogger("dials.anacor_dials.jobs.correct_by_meshes")

FRAMES = ("tomo", "datum")


@dataclass(frozen=True)
class MeshSettings:
    """How the factors of a sample of meshes are computed.

    Parameters
    ----------
    materials : sequence of mappings of name to MaterialInput
        What is known of the materials: one mapping, or one for each wavelength.
    frame : str
        What the meshes are given in: "tomo", the frame of a tomogram, or "datum", the sample with
        every goniometer angle at zero.
    alignment : Alignment
        How the frame of the tomogram sits on the goniometer.
    tracing : Tracing
        Tolerance, method, beam and memory.
    progress : bool
        Whether progress bars are shown.

    Raises
    ------
    ValueError
        If the frame is neither, or an alignment is given with the datum frame.
    """

    materials: Sequence[Mapping[str, MaterialInput]] = ({},)
    frame: str = "tomo"
    alignment: Alignment = field(default_factory=Alignment)
    tracing: Tracing = field(default_factory=Tracing)
    progress: bool = False

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise ValueError(f"The frame of meshes is {self.frame!r}; it is tomo or datum.")
        moved = self.alignment.angle_offset_deg != 0 or self.alignment.rotation_sense != 1
        if self.frame == "datum" and moved:
            raise ValueError(
                "mesh.frame=datum: the meshes turn with the goniometer, and alignment.angle_offset and "
                "alignment.rotation_sense say nothing of them. Leave these out, or give mesh.frame=tomo."
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class MeshCorrection(CorrectedReflections):
    """Factors of all reflections of a sample of meshes.

    Attributes
    ----------
    sample : SurfaceSample
    frame : str
        What the meshes are given in.
    to_datum : array (3, 3)
        From there to the datum frame.
    crystal_share : tuple of float
        For each other material, the share of the corners of the crystal that lie in its mesh.
    content : CellContent or None
        If the formula and the density of the crystal were given.
    """

    sample: SurfaceSample
    frame: str
    to_datum: FloatArray
    crystal_share: tuple[float, ...]
    content: CellContent | None = None


def correct_by_meshes(
    experiments: ExperimentList,
    reflections: Sequence[flex.reflection_table],
    sample: SurfaceSample,
    settings: MeshSettings | None = None,
) -> MeshCorrection:
    """The absorption factors of all reflections of a sample of meshes.

    Parameters
    ----------
    experiments : ExperimentList
        As read from .expt files.
    reflections : sequence of reflection_table
        As read from .refl files. They are combined into one table.
    sample : SurfaceSample
        Of :func:`anacor_dials.absorption.closed_surface.read_surfaces`.
    settings : MeshSettings, optional
        mu of the materials, the frame, and how rays are traced.

    Raises
    ------
    ValueError
        If the input does not fit together, or the mu of a material is not known.
    """
    settings = settings or MeshSettings()
    reference = settings.alignment.reference_experiment
    require_reference_experiment(experiments, reference)
    require_columns(reflections, experiments)
    to_datum = np.eye(3)
    if settings.frame == "tomo":
        to_datum = tomo_to_datum(experiments, settings.alignment)
    groups = wavelength_groups(experiments)
    materials = materials_at_wavelengths(
        [w for w, _ in groups],
        sample.names,
        settings.materials,
        np.full(len(sample.names), np.nan),
    )
    content, warnings = None, warnings_for_scaling(experiments)
    if experiments[reference].crystal is not None:
        content, said = cell_content(
            settings.materials[0].get(CRYSTAL), experiments[reference].crystal
        )
        warnings += said
    shares = tuple(
        float(surface.contains(sample.crystal.vertices).mean()) for surface in sample.surfaces[1:]
    )
    warnings += _warnings_of_meshes(sample, shares)
    logger.info("%r", sample)
    table, experiment_of_row = combined(reflections, experiments)
    found = factors_of_rows(
        experiments,
        table,
        experiment_of_row,
        to_datum,
        axis_of_beam(experiments, settings.alignment, settings.tracing.beam),
        materials,
        lambda wavelength, of_group, directions: _factors(
            wavelength, of_group, directions, sample, settings
        ),
    )
    return MeshCorrection(
        experiments=experiments,
        table=table,
        transmission=found.transmission,
        standard_error=found.standard_error,
        directions=found.directions,
        wavelengths=found.wavelengths,
        warnings=warnings + found.warnings,
        sample=sample,
        frame=settings.frame,
        to_datum=to_datum,
        crystal_share=shares,
        content=content,
    )


def _factors(
    wavelength: float,
    materials: Sequence[Material],
    directions: Directions,
    sample: SurfaceSample,
    settings: MeshSettings,
) -> AbsorptionFactors:
    logger.info(
        "Wavelength %.5f A: mu (1/um) %s",
        wavelength,
        ", ".join(f"{m.name} {m.mu_per_um:.6f}" for m in materials),
    )
    return absorption_factors_of_surfaces(
        sample, mu_by_label(materials), directions, settings.tracing, progress=settings.progress
    )


def _warnings_of_meshes(sample: SurfaceSample, shares: Sequence[float]) -> list[str]:
    return [
        "No corner of the crystal lies in the mesh of the liquor; see whether both are in one frame."
        for name, share in zip(sample.names[2:], shares, strict=True)
        if name == LIQUOR and share == 0
    ]
