"""From experiments, reflections and the faces of the crystal to absorption factors: no tomogram."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from dials.array_family import flex
from dxtbx.model import ExperimentList

from anacor_dials.absorption.convex_solid import ConvexSolid
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.factors import AbsorptionFactors, absorption_factors_of_solid
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.diffraction.crystal_faces import (
    CrystalFaces,
    crystal_to_datum,
    orientation_warnings,
)
from anacor_dials.diffraction.reflections import (
    Alignment,
    axis_of_beam,
    combined,
    require_columns,
    require_reference_experiment,
    warnings_for_scaling,
)
from anacor_dials.diffraction.wavelengths import wavelength_groups
from anacor_dials.jobs.correct import (
    CorrectedReflections,
    factors_of_rows,
    materials_at_wavelengths,
)
from anacor_dials.sample.materials import Material, MaterialInput, formula_unit

logger = logging.getLogger("dials.anacor_dials.jobs.correct_by_faces")

NAMES = ("background", "crystal")  # of the materials
AVOGADRO = 0.602214076  # 1e24 / mol: from g/cm3 and A^3 to g/mol
# Of the number of formula units in the cell from a whole number. Cells at another temperature than
# the density differ by less; a forgotten molecule of solvent is more.
LARGEST_MISFIT_OF_Z = 0.03


@dataclass(frozen=True)
class FaceSettings:
    """How the factors of a crystal with known faces are computed.

    Parameters
    ----------
    materials : sequence of mappings of name to MaterialInput
        What is known of the crystal: one mapping, or one for each wavelength.
    reference_experiment : int
        The experiment whose cell gives the normals of the faces.
    rotation_axis : (float, float, float), optional
        The rotation axis in the laboratory, for a small beam and experiments without a goniometer.
    tracing : Tracing
        Tolerance, method, beam and memory.
    progress : bool
        Whether progress bars are shown.
    """

    materials: Sequence[Mapping[str, MaterialInput]] = ({},)
    reference_experiment: int = 0
    rotation_axis: tuple[float, float, float] | None = None
    tracing: Tracing = field(default_factory=Tracing)
    progress: bool = False


@dataclass(frozen=True)
class CellContent:
    """What the unit cell holds, from the formula, the density and the cell.

    Attributes
    ----------
    formula : str
    density_g_cm3 : float
    z : float
        The number of formula units in the cell, density * volume * N_A / molar mass.
    f000 : float or None
        The number of electrons in the cell; None if z is not near a whole number.
    """

    formula: str
    density_g_cm3: float
    z: float
    f000: float | None

    @property
    def numbers(self) -> dict[str, str | float | None]:
        """Everything by name, for JSON."""
        return {
            "formula": self.formula,
            "density_g_cm3": self.density_g_cm3,
            "z": self.z,
            "f000": self.f000,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class FaceCorrection(CorrectedReflections):
    """Factors of all reflections of a crystal with known faces.

    Attributes
    ----------
    faces : CrystalFaces
    solid : ConvexSolid
        The crystal, in its own Cartesian frame.
    content : CellContent or None
        If the formula and the density were given.
    """

    faces: CrystalFaces
    solid: ConvexSolid
    content: CellContent | None = None


def correct_by_faces(
    experiments: ExperimentList,
    reflections: Sequence[flex.reflection_table],
    faces: CrystalFaces,
    settings: FaceSettings | None = None,
) -> FaceCorrection:
    """The absorption factors of all reflections of a crystal with known faces.

    Parameters
    ----------
    experiments : ExperimentList
        As read from .expt files; each needs its crystal model.
    reflections : sequence of reflection_table
        As read from .refl files. They are combined into one table.
    faces : CrystalFaces
        Of :func:`anacor_dials.diffraction.crystal_faces.read_faces`.
    settings : FaceSettings, optional
        mu of the crystal, and how rays are traced.

    Raises
    ------
    ValueError
        If the input does not fit together, the faces enclose no crystal, or mu is not known.
    """
    settings = settings or FaceSettings()
    reference = settings.reference_experiment
    require_reference_experiment(experiments, reference)
    require_columns(reflections, experiments)
    to_datum = np.array([crystal_to_datum(e, i) for i, e in enumerate(experiments)])
    lattice = experiments[reference].crystal
    solid = faces.solid(lattice)
    groups = wavelength_groups(experiments)
    materials = materials_at_wavelengths(
        [w for w, _ in groups], NAMES, settings.materials, np.array([np.nan, np.nan])
    )
    content, warnings = cell_content(settings.materials[0].get("crystal"), lattice)
    warnings = warnings_for_scaling(experiments) + warnings
    warnings += orientation_warnings(experiments, reference) + _warnings_of_faces(faces, solid)
    logger.info("%r", solid)
    table, experiment_of_row = combined(reflections, experiments)
    alignment = Alignment(reference_experiment=reference, rotation_axis=settings.rotation_axis)
    found = factors_of_rows(
        experiments,
        table,
        experiment_of_row,
        to_datum,
        axis_of_beam(experiments, alignment, settings.tracing.beam),
        materials,
        lambda wavelength, of_group, directions: _factors(
            wavelength, of_group, directions, solid, settings
        ),
    )
    return FaceCorrection(
        experiments=experiments,
        table=table,
        transmission=found.transmission,
        standard_error=found.standard_error,
        directions=found.directions,
        wavelengths=found.wavelengths,
        warnings=warnings + found.warnings,
        faces=faces,
        solid=solid,
        content=content,
    )


def _factors(
    wavelength: float,
    materials: Sequence[Material],
    directions: Directions,
    solid: ConvexSolid,
    settings: FaceSettings,
) -> AbsorptionFactors:
    mu = materials[1].mu_per_um
    logger.info("Wavelength %.5f A: mu of the crystal %.6f /um", wavelength, mu)
    return absorption_factors_of_solid(
        solid, mu, directions, settings.tracing, progress=settings.progress
    )


def _warnings_of_faces(faces: CrystalFaces, solid: ConvexSolid) -> list[str]:
    cut_off = [name for name, area in zip(faces.names, solid.areas_um2, strict=True) if not area]
    if not cut_off:
        return []
    return [
        f"The faces {', '.join(cut_off)} are cut off by the others and do not touch the crystal; see "
        "whether their distances are right."
    ]


def cell_content(
    crystal: MaterialInput | None, lattice: object
) -> tuple[CellContent | None, list[str]]:
    """What the cell holds, and sentences if this is no whole number of formula units.

    Parameters
    ----------
    crystal : MaterialInput or None
        What is known of the crystal; None is returned unless it has a formula and a density.
    lattice : dxtbx.model.Crystal
    """
    if crystal is None or crystal.formula is None or crystal.density_g_cm3 is None:
        return None, []
    try:
        mass, electrons = formula_unit(crystal.formula)
    except ValueError:  # a mixture, which has no formula unit
        return None, []
    volume = float(lattice.get_unit_cell().volume())  # type: ignore[attr-defined]
    z = crystal.density_g_cm3 * volume * AVOGADRO / mass
    whole = round(z)
    if whole < 1 or abs(z / whole - 1) > LARGEST_MISFIT_OF_Z:
        return CellContent(crystal.formula, crystal.density_g_cm3, z, None), [
            f"A density of {crystal.density_g_cm3:g} g/cm3 means {z:.2f} formula units {crystal.formula} in the "
            f"cell of {volume:.1f} A3, which is no whole number; see whether formula, density and cell are "
            "right, since mu depends on them."
        ]
    content = CellContent(crystal.formula, crystal.density_g_cm3, z, whole * electrons)
    return content, []
