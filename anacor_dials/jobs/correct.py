"""From experiments, reflections and a labelled sample to absorption factors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.model import ExperimentList
from numpy.typing import NDArray

from anacor_dials.absorption.coefficients import CoefficientFit, materials_from_fit
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.factors import AbsorptionFactors, absorption_factors
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.diffraction.alignment import AlignmentFit, choices_from
from anacor_dials.diffraction.reflections import (
    DIALS_EXCLUDES_BELOW,
    Alignment,
    ReflectionDirections,
    axis_of_beam,
    combined,
    require_columns,
    row_directions,
    sweep_axes,
    tomo_to_datum,
    warnings_for_scaling,
    write_factors,
)
from anacor_dials.diffraction.wavelengths import wavelength_groups
from anacor_dials.jobs.coefficients import (
    CoefficientSettings,
    ScanCoefficients,
    coefficients_from_projections,
)
from anacor_dials.jobs.correct_alignment import AlignmentSettings, find_alignment
from anacor_dials.jobs.crystal_faces import SampleFaces
from anacor_dials.jobs.label_uncertainty import MOST_UNCERTAIN
from anacor_dials.jobs.labels_by_faces import LabelsByFaces, labels_by_faces
from anacor_dials.jobs.load_sample import LoadedSample
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.materials import (
    Material,
    MaterialInput,
    energy_from_wavelength,
    materials_at,
    mu_by_label,
)
from anacor_dials.sample.volumes import LabelVolume

logger = logging.getLogger("dials.anacor_dials.jobs.correct")

# So many of the crystal's voxels may be at the edge of the volume without a warning; chosen by
# hand.
EDGE_FRACTION = 0.01


@dataclass(frozen=True)
class CorrectionSettings:
    """How factors are computed.

    Parameters
    ----------
    materials : sequence of mappings of name to MaterialInput
        What is known of the materials: one mapping, or one for each wavelength.
    coefficients : CoefficientSettings
        When and how mu is taken from projections.
    alignment : Alignment
        How the tomogram sits on the goniometer.
    refine : sequence of str
        What of the alignment is taken from the data: some of "offset", "sense" and "mu_scale", from
        symmetry equivalents, and "faces": offset and sense from the crystal's faces.
    find_faces : bool
        Whether the crystal's faces are looked for in the labels.
    crystal : str
        What the crystal is: its "voxels", the polyhedron of its "faces", or "auto".
    tracing : Tracing
        Tolerance, method, beam, memory and device of the ray tracing.
    progress : bool
        Whether progress bars are shown.
    """

    materials: Sequence[Mapping[str, MaterialInput]] = ({},)
    coefficients: CoefficientSettings = field(default_factory=CoefficientSettings)
    alignment: Alignment = field(default_factory=Alignment)
    refine: Sequence[str] = ()
    find_faces: bool = True
    crystal: str = "voxels"
    tracing: Tracing = field(default_factory=Tracing)
    progress: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "refine", choices_from(self.refine))


@dataclass(frozen=True, eq=False)
class WavelengthFactors:
    """The factors of all reflections of one wavelength.

    Attributes
    ----------
    wavelength : float
        Angstrom.
    materials : tuple of Material
        Which the factors were computed with.
    factors : AbsorptionFactors
    """

    wavelength: float
    materials: tuple[Material, ...]
    factors: AbsorptionFactors

    @property
    def energy_keV(self) -> float:
        """The energy of the photons, keV."""
        return energy_from_wavelength(self.wavelength)


@dataclass(frozen=True, eq=False, kw_only=True)
class CorrectedReflections:
    """Factors of all reflections, however the sample is known.

    Attributes
    ----------
    experiments : ExperimentList
        As given.
    table : reflection_table
        All reflections in one table, without the factors; see :meth:`corrected_table`.
    transmission, standard_error : array (n_rows,)
        A and its standard error; 1 and 0 for rows without a direction.
    directions : ReflectionDirections
        Of the rows that have any.
    wavelengths : list of WavelengthFactors
        One for each wavelength that has reflections.
    warnings : list of str
        Sentences for the user.
    label_uncertainty : float or None
        The relative rms by which the factors are uncertain because the labels are. It is part of
        standard_error. None if the segmentation did not say.
    """

    experiments: ExperimentList
    table: flex.reflection_table
    transmission: FloatArray
    standard_error: FloatArray
    directions: ReflectionDirections
    wavelengths: list[WavelengthFactors]
    warnings: list[str]
    label_uncertainty: float | None = None

    @property
    def transmissions(self) -> FloatArray:
        """A (n,) of the rows that have directions."""
        return self.transmission[self.directions.rows]

    @property
    def n_undefined(self) -> int:
        """The number of rows without a direction; their factor is 1."""
        return len(self.transmission) - len(self.directions)

    @property
    def images(self) -> FloatArray | None:
        """The calculated image number (n,) of each row with a factor; None if unknown."""
        if "xyzcal.px" not in self.table:
            return None
        return flumpy.to_numpy(self.table["xyzcal.px"])[:, 2][self.directions.rows]

    def corrected_table(self, mode: str = "column") -> flex.reflection_table:
        """The table with the factors; the table itself is changed.

        mode: "column", as analytical_correction for dials.scale; "intensities", with intensities
        divided by A.

        Raises ValueError if the table was corrected before.
        """
        write_factors(self.table, self.transmission, self.standard_error, mode)
        return self.table


@dataclass(frozen=True, eq=False, kw_only=True)
class Correction(CorrectedReflections):
    """Factors of all reflections through a labelled volume, and what a report says about them.

    Attributes
    ----------
    labels : LabelVolume
        The sample, as the factors were computed with it.
    tomo_to_datum : array (3, 3)
        From the frame of the tomogram to the datum frame.
    coefficients : ScanCoefficients or None
        mu from projections, if it was taken from there.
    alignment_fit : AlignmentFit or None
        The alignment from symmetry equivalents, if it was asked for.
    faces : SampleFaces or None
        The crystal's faces, if they were looked for and there is a crystal that is large enough.
    polyhedra : LabelsByFaces or None
        The labels with polyhedra in place of crystals, if there are any.
    """

    labels: LabelVolume
    tomo_to_datum: FloatArray
    coefficients: ScanCoefficients | None = None
    alignment_fit: AlignmentFit | None = None
    faces: SampleFaces | None = None
    polyhedra: LabelsByFaces | None = None


def correct(
    experiments: ExperimentList,
    reflections: Sequence[flex.reflection_table],
    sample: LoadedSample,
    settings: CorrectionSettings | None = None,
) -> Correction:
    """The absorption factors of all reflections.

    Parameters
    ----------
    experiments : ExperimentList
        As read from .expt files.
    reflections : sequence of reflection_table
        As read from .refl files. They are combined into one table.
    sample : LoadedSample
        Of :func:`anacor_dials.jobs.load_sample.load_sample`.
    settings : CorrectionSettings, optional
        Materials, alignment and ray tracing.

    Raises
    ------
    ValueError
        If the input does not fit together, or the mu of a material is not known.
    """
    settings = settings or CorrectionSettings()
    labels = sample.labels
    require_columns(reflections, experiments)
    table, experiment_of_row = combined(reflections, experiments)
    groups = wavelength_groups(experiments)
    coefficients = coefficients_from_projections(
        sample.file, labels, settings.coefficients, settings.materials[0]
    )
    materials = _materials_of_sample(
        [wavelength for wavelength, _ in groups], sample, settings, coefficients
    )
    warnings = warnings_for_scaling(experiments)
    if coefficients is not None:
        warnings += coefficients.fit.warnings
    from_labels = sample.file.factors_uncertainty
    warnings += _warnings_of_labels(labels, from_labels)
    alignment = find_alignment(
        experiments,
        (table, experiment_of_row),
        labels,
        [mu_by_label(of_wavelength) for of_wavelength in materials],
        AlignmentSettings(
            settings.alignment,
            settings.refine,
            settings.find_faces or settings.crystal != "voxels",
            settings.tracing,
            settings.progress,
        ),
    )
    materials = [_scaled(m, alignment.mu_scale) for m in materials]
    warnings += alignment.warnings
    polyhedra = labels_by_faces(labels, alignment.faces, settings.crystal)
    if polyhedra is not None:
        labels, warnings = polyhedra.labels, warnings + polyhedra.warnings
    to_datum = tomo_to_datum(experiments, alignment.used)
    found = factors_of_rows(
        experiments,
        table,
        experiment_of_row,
        to_datum,
        axis_of_beam(experiments, alignment.used, settings.tracing.beam),
        materials,
        lambda wavelength, of_group, directions: _factors(
            wavelength, of_group, directions, labels, settings
        ),
    )
    rows, standard_error = found.directions.rows, found.standard_error
    standard_error[rows] = np.hypot(
        standard_error[rows], (from_labels or 0.0) * found.transmission[rows]
    )
    return Correction(
        experiments=experiments,
        table=table,
        labels=labels,
        transmission=found.transmission,
        standard_error=standard_error,
        directions=found.directions,
        wavelengths=found.wavelengths,
        tomo_to_datum=to_datum,
        warnings=warnings + found.warnings,
        coefficients=coefficients,
        alignment_fit=alignment.intensities,
        faces=alignment.faces,
        polyhedra=polyhedra,
        label_uncertainty=from_labels,
    )


@dataclass(frozen=True, eq=False)
class FactorsOfRows:
    """The factors of all rows of a table, with what was computed for each wavelength.

    Attributes
    ----------
    directions : ReflectionDirections
        Of the rows that have one.
    transmission, standard_error : arrays (n_rows,)
        1 and 0 in rows without a direction.
    wavelengths : list of WavelengthFactors
    warnings : list of str
    """

    directions: ReflectionDirections
    transmission: FloatArray
    standard_error: FloatArray
    wavelengths: list[WavelengthFactors]
    warnings: list[str]


def factors_of_rows(
    experiments: ExperimentList,
    table: flex.reflection_table,
    experiment_of_row: NDArray[np.int64],
    to_datum: FloatArray,
    beam_axis: FloatArray | None,
    materials: Sequence[Sequence[Material]],
    compute: Callable[[float, Sequence[Material], Directions], AbsorptionFactors],
) -> FactorsOfRows:
    """The factors of all rows of a table, wavelength by wavelength.

    Parameters
    ----------
    experiments : ExperimentList
    table : reflection_table
        Of all experiments.
    experiment_of_row : array (n_rows,)
    to_datum : array (3, 3) or (n_experiments, 3, 3)
        From the frame of the sample to the datum frame.
    beam_axis : array (3,) or None
        Of :func:`anacor_dials.diffraction.reflections.axis_of_beam`.
    materials : sequence of sequences of Material
        One for each of :func:`anacor_dials.diffraction.wavelengths.wavelength_groups`.
    compute : function of (wavelength in A, materials, Directions)
        It returns the factors of these directions.

    Raises
    ------
    ValueError
        If no row has a direction.
    """
    directions = row_directions(table, experiment_of_row, experiments, to_datum, beam_axis)
    if not len(directions):
        raise ValueError("No reflection has a direction: every s1 is zero or no row is indexed.")
    axes = sweep_axes(experiments, to_datum)
    transmission, standard_error = np.ones(len(table)), np.zeros(len(table))
    results = []
    groups = wavelength_groups(experiments)
    for (wavelength, members), of_wavelength in zip(groups, materials, strict=True):
        of_group, places = directions.of_experiments(members, axes)
        if len(of_group) == 0:
            continue
        factors = compute(wavelength, of_wavelength, of_group)
        rows = directions.rows[places]
        transmission[rows] = factors.transmission
        standard_error[rows] = factors.standard_error
        results.append(WavelengthFactors(wavelength, tuple(of_wavelength), factors))
    warnings = warnings_of_factors(transmission[directions.rows], results)
    return FactorsOfRows(directions, transmission, standard_error, results, warnings)


def _factors(
    wavelength: float,
    materials: Sequence[Material],
    directions: Directions,
    labels: LabelVolume,
    settings: CorrectionSettings,
) -> AbsorptionFactors:
    logger.info(
        "Wavelength %.5f A: mu (1/um) %s",
        wavelength,
        ", ".join(f"{m.name} {m.mu_per_um:.6f}" for m in materials),
    )
    return absorption_factors(
        labels, mu_by_label(materials), directions, settings.tracing, progress=settings.progress
    )


# ---- materials -----------------------------------------------------------------------------------


def _materials_of_sample(
    wavelengths: Sequence[float],
    sample: LoadedSample,
    settings: CorrectionSettings,
    coefficients: ScanCoefficients | None,
) -> list[tuple[Material, ...]]:
    """The materials at each wavelength: as given, from the projections, from the sample's file."""
    file_mu = sample.file.mu_per_um
    if file_mu is None:
        file_mu = np.full(len(sample.labels.names), np.nan)
    # a label without voxels needs no mu
    absent = np.isnan(file_mu) & (sample.labels.counts() == 0)
    return materials_at_wavelengths(
        wavelengths,
        sample.labels.names,
        settings.materials,
        np.where(absent, 0.0, file_mu),
        sample.file.energy_keV,
        None if coefficients is None else coefficients.fit,
        settings.coefficients.from_projections is True,
    )


def materials_at_wavelengths(
    wavelengths: Sequence[float],
    names: Sequence[str],
    given: Sequence[Mapping[str, MaterialInput]],
    file_mu: FloatArray,
    file_energy_keV: float | None = None,
    fit: CoefficientFit | None = None,
    fit_before_file: bool = False,
) -> list[tuple[Material, ...]]:
    """The materials at each wavelength.

    Parameters
    ----------
    wavelengths : sequence of float
        Angstrom.
    names : sequence of n_labels str
    given : sequence of mappings of name to MaterialInput
        One for all wavelengths, or one for each.
    file_mu : array (n_labels,)
        mu in the file of the sample, 1/um; NaN where it has none.
    file_energy_keV : float, optional
        The energy at which the mu of the file hold.
    fit : CoefficientFit, optional
        mu from projections.
    fit_before_file : bool
        Whether mu from projections comes before that of the file.

    Raises
    ------
    ValueError
        If what is given does not fit the wavelengths, or the mu of a material is not known.
    """
    n = len(wavelengths)
    listed = ", ".join(f"{w:.5g} A" for w in wavelengths)
    if len(given) not in (1, n):
        raise ValueError(
            f"mu was given for {len(given)} wavelengths and the experiments have {n} ({listed})."
        )
    if n > 1 and len(given) == 1:
        for name, said in given[0].items():
            if said.mu_per_um is not None:
                raise ValueError(
                    f"The experiments have {n} wavelengths ({listed}) and materials.{name}.mu one "
                    f"value; give {n} values, or the composition."
                )
        if file_energy_keV is None:
            unsaid = [m for i, m in enumerate(names) if i and m not in given[0] and file_mu[i] > 0]
            if unsaid:
                raise ValueError(
                    f"The experiments have {n} wavelengths ({listed}), and the file does not say at "
                    f"which energy its mu holds; give mu or the composition of {', '.join(unsaid)}."
                )
    if n > 1 and fit is not None and fit.energy_keV is None:
        raise ValueError(
            f"The experiments have {n} wavelengths ({listed}), and the projections do not say their "
            "energy; give projections.energy= (keV)."
        )
    materials = []
    for i, wavelength in enumerate(wavelengths):
        energy, known = energy_from_wavelength(wavelength), given[i if len(given) > 1 else 0]
        if fit is None:
            of_one = materials_at(energy, names, known, file_mu, file_energy_keV)
        else:
            of_one = materials_from_fit(
                fit, energy, known, file_mu, file_energy_keV, fit_before_file
            )
        materials.append(tuple(of_one))
    return materials


def _scaled(materials: tuple[Material, ...], mu_scale: float) -> tuple[Material, ...]:
    """The materials with every mu multiplied by a factor that the diffraction data gave."""
    if mu_scale == 1.0:
        return materials
    origin = f", times {mu_scale:.3f} (alignment.refine)"
    return tuple(
        replace(m, mu_per_um=m.mu_per_um * mu_scale, origin=m.origin + origin)
        if m.mu_per_um > 0
        else m
        for m in materials
    )


# ---- warnings ------------------------------------------------------------------------------------


def _warnings_of_labels(labels: LabelVolume, uncertainty: float | None) -> list[str]:
    warnings = []
    if uncertainty is not None and uncertainty > MOST_UNCERTAIN:
        warnings.append(
            f"The labels are doubtful: the factors are uncertain by {100 * uncertainty:.1f} % because of them, "
            "as the segmentation found. Look at its report."
        )
    edge = labels.edge_fraction()
    if edge > EDGE_FRACTION:
        warnings.append(
            f"{100 * edge:.1f} % of the crystal lies at the edge of the volume: what lies outside it "
            "is missing. Reconstruct a larger volume."
        )
    return warnings


def warnings_of_factors(
    transmissions: FloatArray, results: Sequence[WavelengthFactors]
) -> list[str]:
    """Sentences on reflections that DIALS would leave out, and on errors above the tolerance."""
    warnings = []
    small = int(np.count_nonzero(transmissions < DIALS_EXCLUDES_BELOW))
    if small:
        warnings.append(
            f"{small} reflections have A < {DIALS_EXCLUDES_BELOW:g}: dials.scale leaves them out in "
            "silence. Such data hold nothing; see whether mu and the voxel size are right."
        )
    for result in results:
        accuracy = result.factors.accuracy
        if not accuracy.reached:
            warnings.append(
                f"At {result.wavelength:.5g} A the error of the factors is "
                f"{100 * accuracy.expected_error:.3f} %, above the tolerance of "
                f"{100 * accuracy.tolerance:.3f} %."
            )
    return warnings
