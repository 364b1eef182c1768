"""The content of anacor_absorption.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anacor_dials.jobs.records.record import Record, made_of


@dataclass(frozen=True)
class MaterialRecord:
    """A material at one wavelength.

    Attributes
    ----------
    label : int
    name : str
    mu_per_um, mu_per_mm : float
        The linear absorption coefficient.
    from_ : str
        Where mu comes from, in words; the key is "from".
    volume_um3 : float
    mean_path_um : float
        Of all reflections, incident and exit path together, weighted with the transmission.
    """

    label: int
    name: str
    mu_per_um: float
    mu_per_mm: float
    from_: str
    volume_um3: float
    mean_path_um: float


@dataclass(frozen=True)
class WavelengthFactorsRecord:
    """The factors of one wavelength.

    Attributes
    ----------
    wavelength_angstrom, energy_keV : float
    materials : [MaterialRecord]
    method : str
        How the factors were computed.
    device : str
        "cpu" or "cuda".
    points : int
        Points of the crystal that the mean is taken over.
    directions : int
        Directions that rays were traced in.
    rms_error : float
        95 % of runs have a smaller relative rms error of the factors.
    expected_error : float
        The expected rms of the relative error, which is compared with the tolerance.
    traced_error : float
        Of rays and grid, against exact tracing of some reflections.
    point_error : float
        Of the mean over points in place of the whole crystal.
    tolerance : float
        What was asked for.
    seconds : float
    """

    wavelength_angstrom: float
    energy_keV: float
    materials: Sequence[MaterialRecord]
    method: str
    device: str
    points: int
    directions: int
    rms_error: float
    expected_error: float
    traced_error: float
    point_error: float
    tolerance: float
    seconds: float

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> WavelengthFactorsRecord:
        """The record of what was read."""
        materials = [made_of(MaterialRecord, m) for m in content["materials"]]
        return made_of(cls, {**content, "materials": materials})


@dataclass(frozen=True)
class CoefficientsRecord:
    """mu of the materials from the projections, by least squares.

    Attributes
    ----------
    energy_keV : float or null
        Of the scan.
    materials : [mapping]
        "label", "name", "mu_per_um", "standard_error_per_um"; "common_error_per_um", the part of it
        that the edges of labels and the axis make in all views; "expected_per_um", of the typical
        composition of the name; "rays", how many determine this mu; "margin_um", how far they stay
        from other materials.
    correlation : [[float]]
        Of the mu of the materials, background left out.
    condition_number : float
        Of the least squares.
    not_told_apart : [[str]]
        Pairs of materials whose difference the data do not determine.
    undetermined : [str]
        Materials without usable rays.
    angles : int
        Number of rotation angles that were used.
    used_share : float
        The share of the rays through the sample that were used, 0 to 1.
    refraction_um : float
        delta z of the crystal: delta of its refractive index, times the distance to the detector.
    rms_residual : float
        Of -ln T of the used rays.
    unexplained : float
        The same, relative to the rms of -ln T through the sample.
    centre_pixel : [float, float]
        Where the rotation axis and the middle of the volume lie, in the images as the camera took
        them.
    shift_um : [float, float]
        How far, along X and Y, the images seem to be from this centre.
    warnings : [str]
    """

    energy_keV: float | None
    materials: Sequence[Mapping[str, Any]]
    correlation: Sequence[Sequence[float]]
    condition_number: float
    not_told_apart: Sequence[Sequence[str]]
    undetermined: Sequence[str]
    angles: int
    used_share: float
    refraction_um: float
    rms_residual: float
    unexplained: float
    centre_pixel: Sequence[float]
    shift_um: Sequence[float]
    warnings: Sequence[str]


@dataclass(frozen=True)
class AlignmentRecord:
    """The alignment of the tomogram from the agreement of symmetry equivalents.

    Attributes
    ----------
    refined : [str]
        What was asked for: "offset", "sense", "mu_scale".
    moved : bool
        Whether the alignment was changed.
    reason_not_moved : str or null
    from_, to : {"angle_offset_deg", "rotation_sense", "mu_scale"}
        As given, and as used; the keys are "from" and "to".
    best : mapping
        Where the equivalents agree best, with "angle_offset_error_deg" (null if it was not asked
        for) and "mu_scale_error" beside the keys of "to", and "factor_error": the relative rms
        error of the factors, after one scale, that the errors of what was refined make.
    observations, unique_reflections, sweeps, scale_parameters : int
        What the fit had.
    friedel_mates_apart : bool
    instrument_error, field_error : float
        Independent errors, and those that vary smoothly with direction, relative to the intensity.
    rms_difference_of_equivalents : {"without_correction", "as_given", "best"}
        Relative.
    standard_deviations_better : mapping
        How much better the best is: "than_no_correction", "than_best_alternative"; the
        "alternative" itself; "than_mirror_image" of the labels, null if not compared; and how much
        is "needed" to change the alignment.
    curve : mapping
        "angle_offset_deg", [float], and "by_sense", [{"rotation_sense", "rms_difference",
        "mu_scale"}].
    mu_scale_curve : {"mu_scale": [float], "rms_difference": [float]} or null
    """

    refined: Sequence[str]
    moved: bool
    reason_not_moved: str | None
    from_: Mapping[str, float]
    to: Mapping[str, float]
    best: Mapping[str, float | None]
    observations: int
    unique_reflections: int
    sweeps: int
    scale_parameters: int
    friedel_mates_apart: bool
    instrument_error: float
    field_error: float
    rms_difference_of_equivalents: Mapping[str, float]
    standard_deviations_better: Mapping[str, Any]
    curve: Mapping[str, Any]
    mu_scale_curve: Mapping[str, Any] | None


@dataclass(frozen=True)
class FacesRecord:
    """The faces of the crystals that were found in the labels.

    Attributes
    ----------
    crystals : [mapping]
        The largest first: "reason_for_no_faces" or null, "volume_um3", "flat_share" of the surface,
        "rms_um" from the planes, the "experiment" whose lattice the indices are of, "origin_um" of
        the distances in the frame of the tomogram, "encloses_the_crystal", and "faces": [{"hkl",
        "lattice_plane", "distance_um", "area_um2", "angle_deg" to the reciprocal vector, "normal"
        in the frame of the tomogram, "normal_error_deg"}].
    alignment : mapping or null
        At which the faces are lattice planes: "determined", "reason", "angle_offset_deg",
        "angle_offset_error_deg", "rotation_sense"; logarithms of the likelihood ratio to faces
        without a lattice, "log_likelihood_ratio" and "log_likelihood_ratio_given"; "rivals",
        [{"angle_offset_deg", "rotation_sense", "less"}]; "rms_angle_deg" of the normals;
        "tilt_deg" of the whole rotation, "tilt_error_deg".
    """

    crystals: Sequence[Mapping[str, Any]]
    alignment: Mapping[str, Any] | None


@dataclass(frozen=True)
class AbsorptionRecord(Record):
    """anacor_absorption.json.

    Attributes
    ----------
    program : {"name", "version"}
    reflections : {"rows", "with_factor", "without_direction"}
        Numbers of rows of the reflection table.
    transmission : {"min", "max", "mean", "percentiles": {"1", "5", "25", "50", "75", "95", "99"}}
        Of the rows with a factor.
    volume : {"shape", "voxel_size_um", "centre"} or null
        Of the labels; null for a crystal that is given by its faces or by a mesh.
    crystal : {"faces", "volume_um3", "size_um", "content"} or null
        Of a crystal that is given by its faces, each {"hkl", "distance_um", "area_um2"}, or by a
        mesh: then "faces" is null.
    meshes : {"frame", "materials"} or null
        Of a sample that is given by meshes: the frame, "tomo" or "datum", and for each material
        {"name", "triangles", "volume_um3", "bounds_um"}. The first counts where they overlap.
    wavelengths : [WavelengthFactorsRecord]
    coefficients_from_projections : CoefficientsRecord or null
    alignment : AlignmentRecord or null
        From symmetry equivalents; null if nothing was refined with them.
    faces : FacesRecord or null
        Null if no faces were looked for in labels.
    labels_by_faces : {"finer", "crystals"} or null
        Where polyhedra took the place of crystals (labels.crystal): by how much voxels were
        divided, and for each crystal {"number", "reason_for_voxels", "faces_by_symmetry", their
        number, "polyhedron_um3", the part of it that was "labelled_um3", "crystal_um3" as labelled,
        "dice"}.
    tomo_to_datum : [[float]] or null
        The rotation (3, 3) from the frame of the tomogram to the datum frame.
    factors_uncertainty_from_labels : float or null
        Relative; null if the segmentation did not say.
    warnings : [str]
    scale_command : str
        How to go on.
    """

    VERSION = 1
    program: Mapping[str, str]
    reflections: Mapping[str, int]
    transmission: Mapping[str, Any]
    wavelengths: Sequence[WavelengthFactorsRecord]
    warnings: Sequence[str]
    scale_command: str
    volume: Mapping[str, Any] | None = None
    crystal: Mapping[str, Any] | None = None
    meshes: Mapping[str, Any] | None = None
    coefficients_from_projections: CoefficientsRecord | None = None
    alignment: AlignmentRecord | None = None
    faces: FacesRecord | None = None
    labels_by_faces: Mapping[str, Any] | None = None
    tomo_to_datum: Sequence[Sequence[float]] | None = None
    factors_uncertainty_from_labels: float | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> AbsorptionRecord:
        """The record of what was read."""
        mu = content.get("coefficients_from_projections")
        alignment = content.get("alignment")
        parts = {
            "wavelengths": [WavelengthFactorsRecord.of(w) for w in content["wavelengths"]],
            "coefficients_from_projections": mu and made_of(CoefficientsRecord, mu),
            "alignment": alignment and made_of(AlignmentRecord, alignment),
            "faces": content.get("faces") and made_of(FacesRecord, content["faces"]),
        }
        return made_of(cls, {**content, **parts})
