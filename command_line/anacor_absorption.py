# LIBTBX_SET_DISPATCHER_NAME dials.anacor_absorption
"""
Compute the absorption factor of every reflection from an X-ray tomogram of the sample.

Rays are traced through crystal, mother liquor and loop, along the incident and the diffracted beam
of every reflection. The tomogram is aligned with the diffraction experiment through the goniometer
axis that both share. The transmission goes into the column analytical_correction of the reflection
table, from where dials.scale takes it (physical.analytical_correction=True).

A tomogram without labels is segmented first, as by dials.anacor_segment, and a raw scan is
reconstructed before that; labels and their report (segmented.h5, anacor_segment.html) are then
written too. The tomogram may be that of another program (tomogram.axes= and so on).

The absorption coefficient of each material is given in 1/um, or computed from its composition at
the beam's energy, or taken from the file. Where none of these is there, it is found from the
projections that the labels belong to, by least squares. With several wavelengths give one mu for
each.

A crystal with plane faces needs no tomogram: faces= names a list of its faces, with lines h k l
distance (um), FACE h k l distance (mm; SHELX-76, PLATON), or a CIF. The faces turn with the
orientation matrix, and there is nothing to align.

A sample of any shape may be given by meshes (STL, PLY, OBJ): mesh= or mesh.crystal= for the
crystal, mesh.liquor=, mesh.loop=, mesh.capillary= and so on for what is around it, in the frame of
a tomogram or of the goniometer (mesh.frame=), in the unit mesh.unit=.

The angle between the zeros of the two experiments and the sense of rotation can be taken from the
faces of the crystal, which are lattice planes (alignment.refine=faces). These two, and a common
factor on mu, can be taken from the agreement of symmetry equivalents (offset, sense, mu_scale).
Where the data do not determine them, nothing is moved and a warning says why. In every run the
faces are found in the labels, listed with their Miller indices, and compared with the alignment.

Examples::

  dials.anacor_absorption models.expt observations.refl tomo.h5

  dials.anacor_absorption models.expt observations.refl scan.nxs

  dials.anacor_absorption integrated.expt integrated.refl tomo.h5 materials.crystal.mu=0.0193 \\
    materials.liquor.formula="0.70 H2O + 0.29 C3H8O3 + 0.01 NaCl" materials.liquor.density=1.08

  dials.anacor_absorption symmetrized.expt symmetrized.refl tomo.h5 alignment.refine=offset,sense

  dials.anacor_absorption integrated.expt integrated.refl tomo.h5 alignment.refine=faces \\
    output.faces=faces.txt

  dials.anacor_absorption integrated.expt integrated.refl labels.npy labels.voxel_size_um=0.3 \\
    labels.axes=z,-y,x materials.crystal.mu=0.0193 materials.liquor.mu=0.0202 \\
    materials.loop.mu=0.0186

  dials.anacor_absorption integrated.expt integrated.refl faces=faces.txt \\
    materials.crystal.formula=CsPbBr3 materials.crystal.density=4.83

  dials.anacor_absorption integrated.expt integrated.refl mesh=crystal.stl mesh.unit=mm \\
    mesh.capillary=glass.stl materials.crystal.mu=0.0148 materials.capillary.formula=SiO2 \\
    materials.capillary.density=2.2
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

import libtbx
from dials.util import Sorry, show_mail_handle_errors
from dials.util.options import ArgumentParser, reflections_and_experiments_from_files

from anacor_dials.absorption.closed_surface import read_surfaces
from anacor_dials.command_line import begin_log
from anacor_dials.diffraction.alignment import choices_from
from anacor_dials.diffraction.crystal_faces import (
    CrystalFaces,
    cap_lines,
    faces_text,
    read_faces,
    shelx_lines,
)
from anacor_dials.diffraction.reflections import Alignment, scale_command
from anacor_dials.jobs.coefficients import CoefficientSettings
from anacor_dials.jobs.correct import Correction, CorrectionSettings, correct
from anacor_dials.jobs.correct_by_faces import FaceCorrection, FaceSettings, correct_by_faces
from anacor_dials.jobs.correct_by_meshes import (
    MeshCorrection,
    MeshSettings,
    correct_by_meshes,
)
from anacor_dials.jobs.load_sample import (
    LoadedSample,
    SampleSettings,
    StackSettings,
    has_labels,
    load_sample,
)
from anacor_dials.jobs.segment import write_segmented
from anacor_dials.phil import choice, parse_phil
from anacor_dials.phil.arguments import parse_arguments
from anacor_dials.phil.settings import (
    names_of_labels,
    reconstruction_settings,
    recorded_scan_description,
    scan_description,
    segmentation_settings,
    tomogram_description,
    tracing_settings,
)
from anacor_dials.report import correction as correction_report
from anacor_dials.report import faces as faces_report
from anacor_dials.report import meshes as meshes_report
from anacor_dials.report import segmentation as segmentation_report
from anacor_dials.report.cif import cif_of_faces
from anacor_dials.report.page import write_html, write_json
from anacor_dials.sample.materials import MaterialInput
from anacor_dials.sample.output_files import OutputFiles
from anacor_dials.sample.volumes import DEFAULT_NAMES

logger = logging.getLogger("dials.anacor_absorption")

MATERIAL_PHIL = """
  {name} {{
    mu = None
      .type = floats(value_min=0)
      .help = "Linear absorption coefficient in 1/um; one value, or one for each wavelength."
    formula = None
      .type = str
      .help = "What it is made of: C22H10N2O5, or mass fractions: 0.7 H2O + 0.3 C3H8O3."
    density = None
      .type = float(value_min=0)
      .help = "Density in g/cm3, with the formula."
    solvent_content = None
      .type = float(value_min=0, value_max=1)
      .help = "Of a protein crystal: the volume fraction of solvent, instead of a formula."
  }}
"""


MESH_PHIL = """
  {name} = None
    .type = path
    .multiple = True
    .help = "A file with the surface of the {name}."
"""
UM_PER_UNIT = {"nm": 1e-3, "um": 1.0, "mm": 1e3, "m": 1e6}


def phil_scope_for(args: list[str]) -> Any:
    """The parameters, with materials.NAME and mesh.NAME for every NAME in the arguments and their
    PHIL files.
    """
    names = dict.fromkeys(DEFAULT_NAMES)
    for argument in args:
        names.update(dict.fromkeys(re.findall(r"^materials\.([A-Za-z]\w*)\.\w+\s*=", argument)))
        names.update(dict.fromkeys(re.findall(r"^mesh\.([A-Za-z]\w*)\s*=", argument)))
        if argument.endswith((".phil", ".eff", ".def")) and Path(argument).is_file():
            text = Path(argument).read_text(encoding="utf-8", errors="replace")
            names.update(dict.fromkeys(re.findall(r"(?:materials|mesh)\.([A-Za-z]\w*)", text)))
            for block in re.findall(r"materials\s*\{((?:[^{}]|\{[^{}]*\})*)\}", text):
                names.update(dict.fromkeys(re.findall(r"([A-Za-z]\w*)\s*\{", block)))
            for block in re.findall(r"mesh\s*\{([^{}]*)\}", text):
                names.update(dict.fromkeys(re.findall(r"([A-Za-z]\w*)\s*=", block)))
    names = dict.fromkeys(name for name in names if name not in ("unit", "frame"))
    materials = "".join(MATERIAL_PHIL.format(name=name) for name in names)
    further = "".join(MESH_PHIL.format(name=name) for name in names if name not in DEFAULT_NAMES)
    meshes = f"mesh {{{further}}}" if further else ""
    return parse_phil("anacor_absorption.phil", f"materials {{{materials}}}\n{meshes}")


phil_scope = phil_scope_for([])


def the_sample(params: Any, files: list[str]) -> str:
    """The one sample that was given. Raises ValueError unless it is one."""
    given = files + ([params.labels.file] if params.labels.file else [])
    if len(given) != 1:
        raise ValueError(
            "Give one sample: a labelled volume (tomo.h5, TIFF stack, .npy or file.h5:/dataset), a "
            "tomogram or a tomography scan; "
            + (f"given were {', '.join(given)}." if given else "none was given.")
        )
    return str(given[0])


def sample_settings(params: Any) -> SampleSettings:
    """How the sample is read, and if need be reconstructed and segmented."""
    labels = params.labels
    return SampleSettings(
        StackSettings(
            labels.voxel_size_um,
            labels.axes,
            names_of_labels(labels.names),
            labels.centre,
            labels.left_handed,
        ),
        tomogram_description(params.tomogram),
        scan_description(params.projections),
        reconstruction_settings(params.reconstruction),
        segmentation_settings(params, keep_probabilities=False),
    )


def refuse_to_write_over(sample: str, reading: SampleSettings, output: str | None) -> None:
    """Raises ValueError if new labels would be written over the file that was given."""
    same = output is not None and Path(output).resolve() == Path(sample).resolve()
    if same and not has_labels(sample, reading.stack, reading.tomogram):
        raise ValueError(
            f"output.tomogram={output} is the file that was given; choose another name."
        )


def given_materials(params: Any) -> list[dict[str, MaterialInput]]:
    """What the user says of materials: one dictionary, or as many as mu has values."""
    scopes = {
        name: scope
        for name, scope in vars(params.materials).items()
        if not name.startswith("_")
        and any(
            v is not None for v in (scope.mu, scope.formula, scope.density, scope.solvent_content)
        )
    }
    counts = {len(scope.mu) for scope in scopes.values() if scope.mu}
    if len(counts) > 1:
        raise ValueError(
            "Different materials have different numbers of mu; give one for each wavelength."
        )
    return [
        {
            name: MaterialInput(
                scope.mu[i] if scope.mu else None,
                scope.formula,
                scope.density,
                scope.solvent_content,
            )
            for name, scope in scopes.items()
        }
        for i in range(max(counts, default=1))
    ]


def correction_settings(params: Any, sample: LoadedSample, changed: Any) -> CorrectionSettings:
    """How the factors are computed; changed: the PHIL scope of what the user gave."""
    coefficients, alignment = params.coefficients, params.alignment
    auto = coefficients.from_projections is libtbx.Auto
    return CorrectionSettings(
        materials=given_materials(params),
        coefficients=CoefficientSettings(
            from_projections=None if auto else coefficients.from_projections,
            projections=coefficients.projections,
            description=recorded_scan_description(sample.file.path, changed),
            centre=coefficients.centre,
            n_angles=coefficients.n_angles,
            margin_um=coefficients.margin,
        ),
        alignment=Alignment(
            alignment.angle_offset,
            alignment.rotation_sense,
            alignment.reference_experiment,
            alignment.rotation_axis and tuple(alignment.rotation_axis),
        ),
        refine=alignment.refine or (),
        find_faces=params.labels.find_faces,
        crystal=choice(params.labels.crystal),
        tracing=tracing_settings(params),
        progress=sys.stderr.isatty(),
    )


def face_settings(params: Any, files: list[str]) -> FaceSettings:
    """How factors are computed from faces. Raises ValueError for what does not go with them."""
    sample = files + ([params.labels.file] if params.labels.file else [])
    if sample:
        raise ValueError(
            f"faces={params.faces} and the sample {sample[0]} were both given; give one of them."
        )
    if choices_from(params.alignment.refine):
        raise ValueError(
            "alignment.refine aligns a tomogram; faces turn with the orientation matrix and need no "
            "alignment."
        )
    return FaceSettings(
        materials=given_materials(params),
        reference_experiment=params.alignment.reference_experiment,
        rotation_axis=params.alignment.rotation_axis and tuple(params.alignment.rotation_axis),
        tracing=tracing_settings(params),
        progress=sys.stderr.isatty(),
    )


def mesh_files(params: Any) -> dict[str, list[str]]:
    """The files of each material that is given by meshes."""
    given = {
        name: [path for path in paths if path]
        for name, paths in vars(params.mesh).items()
        if isinstance(paths, list)
    }
    return {name: paths for name, paths in given.items() if paths}


def mesh_settings(params: Any, files: list[str]) -> MeshSettings:
    """How factors are computed from meshes. Raises ValueError for what does not go with them."""
    others = files + [name for name in (params.labels.file, params.faces) if name]
    if others:
        raise ValueError(
            f"Meshes and the sample {others[0]} were both given; give one of them, or all of the sample "
            "as meshes."
        )
    if choices_from(params.alignment.refine):
        raise ValueError(
            "alignment.refine aligns a labelled volume, and meshes were given; give the alignment "
            "(alignment.angle_offset, alignment.rotation_sense) with them."
        )
    alignment = params.alignment
    return MeshSettings(
        materials=given_materials(params),
        frame=choice(params.mesh.frame),
        alignment=Alignment(
            alignment.angle_offset,
            alignment.rotation_sense,
            alignment.reference_experiment,
            alignment.rotation_axis and tuple(alignment.rotation_axis),
        ),
        tracing=tracing_settings(params),
        progress=sys.stderr.isatty(),
    )


def list_of(faces: CrystalFaces, name: str) -> str:
    """The faces as the text of a file, of the kind that the end of its name says."""
    kinds = {".cif": cif_of_faces, ".ins": shelx_lines, ".cap": cap_lines}
    return kinds.get(Path(name).suffix.lower(), faces_text)(faces)


def save_without_tomogram(
    correction: FaceCorrection | MeshCorrection, command: str, params: Any
) -> list[str]:
    """Writes all files of a correction by faces or meshes, and returns their names.

    command: how to scale.
    """
    output, by_faces = params.output, isinstance(correction, FaceCorrection)
    report: Any = faces_report if by_faces else meshes_report
    subtitle = params.faces if by_faces else ", ".join(sum(mesh_files(params).values(), []))
    written = []
    with OutputFiles() as outputs:

        def path(name: str) -> Path:
            written.append(name)
            return outputs.path(name)

        if output.html:
            sections = report.sections(correction, command)
            write_html(path(output.html), "Absorption correction", sections, subtitle)
        if output.json:
            write_json(path(output.json), report.record(correction, command))
        if output.cif:
            path(output.cif).write_text(report.cif_block(correction), encoding="ascii")
        if output.faces and isinstance(correction, FaceCorrection):
            path(output.faces).write_text(list_of(correction.faces, output.faces), encoding="ascii")
        elif output.faces:
            logger.warning("%s is not written: meshes have no list of faces.", output.faces)
        correction.experiments.as_file(path(output.experiments))
        correction.corrected_table(output.mode).as_file(path(output.reflections))
    return written


def save(
    correction: Correction, sample: LoadedSample, command: str, params: Any, parameters: str
) -> list[str]:
    """Writes all files, and returns their names.

    command: how to scale. parameters: as PHIL text.
    """
    output, segmented = params.output, sample.segmented
    written = []
    with OutputFiles() as outputs:

        def path(name: str) -> Path:
            written.append(name)
            return outputs.path(name)

        if segmented is not None and output.tomogram:
            write_segmented(path(output.tomogram), segmented, parameters)
        if segmented is not None and output.segmentation_html:
            write_html(
                path(output.segmentation_html),
                "Segmentation",
                segmentation_report.sections(segmented),
                subtitle=sample.name,
            )
        if output.html:
            n = len(correction.experiments)
            write_html(
                path(output.html),
                "Absorption correction",
                correction_report.sections(correction, command),
                f"{sample.file.path.name}, {n} experiments",
            )
        if output.json:
            write_json(path(output.json), correction_report.record(correction, command))
        if output.cif:
            path(output.cif).write_text(correction_report.cif_block(correction), encoding="ascii")
        faces = None if correction.faces is None else correction.faces.list_of_largest
        if output.faces and faces is not None:
            path(output.faces).write_text(list_of(faces, output.faces), encoding="ascii")
        elif output.faces:
            logger.warning(
                "%s is not written: no faces that enclose the crystal were found.", output.faces
            )
        correction.experiments.as_file(path(output.experiments))
        correction.corrected_table(output.mode).as_file(path(output.reflections))
    return written


def _correct_by_sample(
    experiments: Any, tables: Any, params: Any, files: list[str], command: str, changed: Any
) -> tuple[str, list[str], list[str]]:
    """Corrects by a labelled sample and saves: what the log says, the warnings, the files."""
    name, reading = the_sample(params, files), sample_settings(params)
    refuse_to_write_over(name, reading, params.output.tomogram)
    sample = load_sample(name, reading)
    logger.info("%s: %r", sample.file.path, sample.labels)
    settings = correction_settings(params, sample, changed)
    correction = correct(experiments, tables, sample, settings)
    parameters = phil_scope.format(python_object=params).as_str()
    written = save(correction, sample, command, params, parameters)
    text = correction_report.log_text(correction, sample.file.mu_per_um)
    return text, correction.warnings, written


@show_mail_handle_errors()
def run(args: list[str] | None = None, phil: Any = None) -> None:
    """Run dials.anacor_absorption as from the command line."""
    args = sys.argv[1:] if args is None else args
    args = [re.sub(r"^mesh\s*=", "mesh.crystal=", argument) for argument in args]
    parser = ArgumentParser(
        usage="dials.anacor_absorption [options] models.expt observations.refl "
        "tomo.h5 | scan.nxs | faces=faces.txt | mesh=crystal.stl",
        phil=phil or phil_scope_for(args),
        read_experiments=True,
        read_reflections=True,
        check_format=False,
        epilog=__doc__,
    )
    params, options, files = parse_arguments(parser, args, may_write_into=("output.tomogram",))
    unknown = [name for name in files if not Path(name.partition(":")[0]).exists()]
    if unknown:
        raise Sorry(f"{unknown[0]} is neither a parameter nor a file that exists.")
    if not params.input.experiments or not params.input.reflections:
        parser.print_help()
        raise Sorry(
            "Give the experiments (.expt), their reflections (.refl) and the labelled volume or scan, or "
            "the crystal's faces (faces=) or mesh (mesh=)."
        )

    begin_log(logger, parser, options, params.output.log)

    try:
        tables, experiments = reflections_and_experiments_from_files(
            params.input.reflections, params.input.experiments
        )
        command = scale_command(params.output.experiments, params.output.reflections, experiments)
        if params.output.mode == "intensities":
            command = f"dials.scale {params.output.experiments} {params.output.reflections}"
        if params.faces and not mesh_files(params):
            settings = face_settings(params, files)
            by_faces = correct_by_faces(experiments, tables, read_faces(params.faces), settings)
            text, warnings = faces_report.log_text(by_faces), by_faces.warnings
            written = save_without_tomogram(by_faces, command, params)
        elif mesh_files(params):
            mesh_setup = mesh_settings(params, files)
            surfaces = read_surfaces(mesh_files(params), UM_PER_UNIT[choice(params.mesh.unit)])
            by_meshes = correct_by_meshes(experiments, tables, surfaces, mesh_setup)
            text, warnings = meshes_report.log_text(by_meshes), by_meshes.warnings
            written = save_without_tomogram(by_meshes, command, params)
        else:
            text, warnings, written = _correct_by_sample(
                experiments, tables, params, files, command, parser.diff_phil
            )
    except ValueError as error:
        raise Sorry(error) from None

    logger.info("%s", text)
    for warning in warnings:
        logger.warning("%s", warning)
    for name in written:
        logger.info("Written: %s", name)
    logger.info("\nTo scale the data with the factors:\n  %s", command)


if __name__ == "__main__":
    run()
