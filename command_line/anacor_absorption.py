# LIBTBX_SET_DISPATCHER_NAME dials.anacor_absorption
"""
Compute the absorption factor of every reflection from an X-ray tomogram of the sample.

Rays are traced through crystal, mother liquor and loop, along the incident and the diffracted beam of
every reflection. The tomogram is aligned with the diffraction experiment through the goniometer axis
that both share. The transmission goes into the column analytical_correction of the reflection table,
from where dials.scale takes it (physical.analytical_correction=True).

A tomogram without labels is segmented first, as by dials.anacor_segment, and a raw scan is reconstructed
before that; labels and their report (segmented.h5, anacor_segment.html) are then written too.

The absorption coefficient of each material is given in 1/um, or computed from its composition at the
beam's energy, or taken from the file. Where none of these is there, it is found from the projections
that the labels belong to, by least squares. With several wavelengths give one mu for each.

The angle between the zeros of the two experiments, the sense of rotation and a common factor on mu can
be taken from the agreement of symmetry equivalents (alignment.refine); where the data do not determine
them, nothing is moved and a warning says why.

Examples::

  dials.anacor_absorption models.expt observations.refl tomo.h5

  dials.anacor_absorption models.expt observations.refl scan.nxs

  dials.anacor_absorption integrated.expt integrated.refl tomo.h5 materials.crystal.mu=0.0193 \\
    materials.liquor.formula="0.70 H2O + 0.29 C3H8O3 + 0.01 NaCl" materials.liquor.density=1.08

  dials.anacor_absorption symmetrized.expt symmetrized.refl tomo.h5 alignment.refine=offset,sense

  dials.anacor_absorption integrated.expt integrated.refl labels.npy labels.voxel_size_um=0.3 \\
    labels.axes=z,-y,x materials.crystal.mu=0.0193 materials.liquor.mu=0.0202 materials.loop.mu=0.0186
"""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import libtbx.phil
from dials.util import Sorry, show_mail_handle_errors
from dials.util.options import ArgumentParser, reflections_and_experiments_from_files

from anacor_dials.absorption.beam import BeamProfile
from anacor_dials.absorption.coefficients import (
    UPRIGHT,
    CoefficientFit,
    Radiographs,
    absorption_coefficients,
    spread_angles,
)
from anacor_dials.command_line import begin_log
from anacor_dials.diffraction.alignment import choices_from
from anacor_dials.diffraction.correction import (
    absorption_correction,
    cif_block,
    report_sections,
    summary,
)
from anacor_dials.diffraction.reflections import (
    Alignment,
    combined,
    scale_command,
    write_factors,
)
from anacor_dials.phil import choice, parse_phil
from anacor_dials.phil.settings import (
    names_of_labels,
    reconstruction_settings,
    scan_description,
    segmentation_settings,
)
from anacor_dials.report.coefficients import coefficients_text
from anacor_dials.report.page import write_html, write_json
from anacor_dials.sample.materials import MaterialInput
from anacor_dials.sample.output_files import OutputFiles
from anacor_dials.sample.tomogram_files import (
    SampleFile,
    is_sample_file,
    open_hdf5,
    read_label_stack,
    read_sample_file,
)
from anacor_dials.sample.volumes import DEFAULT_NAMES
from anacor_dials.tomography.projections import read_projections
from anacor_dials.tomography.scan_files import ScanDescription

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


def phil_scope_for(args: list[str]) -> Any:
    """The parameters, with materials.NAME for every NAME in the arguments and their PHIL files."""
    names = dict.fromkeys(DEFAULT_NAMES)
    for argument in args:
        names.update(dict.fromkeys(re.findall(r"^materials\.([A-Za-z]\w*)\.\w+\s*=", argument)))
        if argument.endswith((".phil", ".eff", ".def")) and Path(argument).is_file():
            text = Path(argument).read_text(encoding="utf-8", errors="replace")
            names.update(dict.fromkeys(re.findall(r"materials\.([A-Za-z]\w*)", text)))
            for block in re.findall(r"materials\s*\{((?:[^{}]|\{[^{}]*\})*)\}", text):
                names.update(dict.fromkeys(re.findall(r"([A-Za-z]\w*)\s*\{", block)))
    materials = "".join(MATERIAL_PHIL.format(name=name) for name in names)
    return parse_phil("anacor_absorption.phil", f"materials {{{materials}}}")


phil_scope = phil_scope_for([])


def is_label_stack(name: str, voxel_size_um: Any) -> bool:
    """True for a foreign stack of labels, False for tomo.h5 and for scans.

    Folders and TIFF files are scans where no size of the voxels is given.
    """
    if name.endswith(".npy") or (":" in name and not Path(name).exists()):
        return True
    return bool(voxel_size_um) and (name.endswith((".tif", ".tiff")) or Path(name).is_dir())


def load_sample(
    params: Any, files: list[str], make_labels: Callable[[str], SampleFile]
) -> SampleFile:
    """The labelled volume that was given. Raises ValueError unless exactly one was.

    make_labels: gives the labels of a raw scan or of a tomogram without labels.
    """
    given = files + ([params.labels.file] if params.labels.file else [])
    if len(given) != 1:
        raise ValueError(
            "Give one sample: a labelled volume (tomo.h5, TIFF stack, .npy or file.h5:/dataset), a "
            "tomogram or a tomography scan; "
            + (f"given were {', '.join(given)}." if given else "none was given.")
        )
    name = given[0]
    if is_label_stack(name, params.labels.voxel_size_um):
        if not params.labels.voxel_size_um:
            raise ValueError(
                f"{name} does not say how large its voxels are; give labels.voxel_size_um=."
            )
        labels = read_label_stack(
            name,
            params.labels.voxel_size_um,
            params.labels.axes,
            names_of_labels(params.labels.names),
            params.labels.centre,
        )
        return SampleFile(Path(name), None, labels, None, None, None, None)
    if params.labels.voxel_size_um:
        raise ValueError(f"labels.voxel_size_um was given, but {name} holds its own voxel size.")
    is_image = name.endswith((".tif", ".tiff")) or Path(name).is_dir()
    if is_image or not is_sample_file(name):
        try:
            return make_labels(name)
        except ValueError as error:
            raise ValueError(
                f"{name} is no tomo.h5, and as a tomography scan: {error} (The labels of a foreign "
                f"file: labels.voxel_size_um=, and for HDF5 {name}:/path/of/labels.)"
            ) from None
    sample = read_sample_file(name, tomogram=False)
    return sample if sample.labels is not None else make_labels(name)


class NewLabels:
    """The labels of a scan or tomogram that has none, made as by dials.anacor_segment."""

    def __init__(self, params: Any) -> None:
        self.params = params
        self.write: Callable[[OutputFiles], None] | None = None  # once there are labels

    def __call__(self, name: str) -> SampleFile:
        """The labels of a file; then ``write`` writes them and their report."""
        tomogram = self.params.output.tomogram
        if tomogram and Path(tomogram).resolve() == Path(name).resolve():
            raise ValueError(
                f"output.tomogram={tomogram} is the file that was given; choose another name."
            )
        from anacor_dials.jobs.segment import load_source, segment_sample, write_segmented
        from anacor_dials.report.segmentation import sections

        logger.info("%s has no labels yet: it is segmented first", name)
        source = load_source(
            name,
            scan_description(self.params.projections),
            reconstruction_settings(self.params.reconstruction),
        )
        logger.info("%r", source.tomogram)
        sample = segment_sample(source, segmentation_settings(self.params, False))
        for warning in sample.warnings:
            logger.warning("Segmentation: %s", warning)
        said = phil_scope.format(python_object=self.params).as_str()

        def write(outputs: OutputFiles) -> None:
            html = self.params.output.segmentation_html
            if tomogram:
                write_segmented(outputs.path(tomogram), sample, said)
            if html:
                write_html(outputs.path(html), "Segmentation", sections(sample), subtitle=name)

        self.write = write
        return SampleFile(
            Path(name),
            None,
            sample.labels,
            sample.mu_per_um,
            source.energy_keV,
            None,
            source.projections,
            source.scan_centre,
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


def description_of_scan(sample: SampleFile, given: Any) -> ScanDescription:
    """What is said of the scan: by tomo.h5's record of its parameters, then by given (a PHIL scope)."""
    recorded = libtbx.phil.parse("")
    if h5py.is_hdf5(sample.path):
        with open_hdf5(sample.path) as file:
            text = file["entry/parameters"][()] if "entry/parameters" in file else b""
        try:
            recorded = libtbx.phil.parse(text.decode() if isinstance(text, bytes) else str(text))
        except RuntimeError as error:  # a record by another program
            logger.debug("The parameters in %s are no PHIL: %s", sample.path, error)
    scope = parse_phil("reconstruction.phil").fetch(sources=[recorded, given])
    return scan_description(scope.extract().projections)


def coefficients_from_projections(
    params: Any, sample: SampleFile, given: list[dict[str, MaterialInput]], diff_phil: Any
) -> CoefficientFit | None:
    """mu from the scan that the labels belong to; None where it is not wanted, or not needed.

    Raises ValueError where it is asked for and the scan is absent or cannot be used; where it is not, that
    is only logged.
    """
    chosen, labels = params.coefficients, sample.labels
    assert labels is not None
    asked = chosen.from_projections is True
    counts = labels.counts()
    known = [True] + [
        name in given[0]
        or not counts[i]
        or (sample.mu_per_um is not None and not math.isnan(sample.mu_per_um[i]))
        for i, name in enumerate(labels.names[1:], 1)
    ]
    if chosen.from_projections is False or (not asked and all(known)):
        return None
    path = Path(chosen.projections) if chosen.projections else sample.projections
    if path is None or not path.exists():
        absent = (
            f"{sample.path} does not point to its projections"
            if path is None
            else f"the projections {path} are not there"
        ) + "; name the scan by coefficients.projections=."
        if asked or chosen.projections:
            raise ValueError(absent)
        logger.info("mu is not taken from projections: %s", absent)
        return None
    try:
        fit = fit_scan(params, sample, path, given[0], description_of_scan(sample, diff_phil))
    except ValueError as error:
        if asked:
            raise
        logger.warning("mu cannot be taken from the projections: %s", error)
        return None
    logger.info("mu from the projections:\n%s", coefficients_text(fit, sample.mu_per_um))
    return fit


def fit_scan(
    params: Any,
    sample: SampleFile,
    path: Path,
    given: dict[str, MaterialInput],
    description: ScanDescription,
) -> CoefficientFit:
    """mu of the sample's labels from the scan in a file."""
    scan = read_projections(path, description)
    logger.info("%s: %r", path, scan)
    energy = scan.energy_keV if scan.energy_keV is not None else sample.energy_keV
    if energy is None:
        logger.warning(
            "The projections do not say their energy: it is taken as that of the diffraction; give "
            "projections.energy= (keV)."
        )
    which = spread_angles(scan.angles_deg, params.coefficients.n_angles)
    centre = sample.scan_centre if params.coefficients.projections is None else None
    if params.coefficients.centre is not None:
        middle = scan.axes.upright_index((scan.nx - 1) / 2, scan.nx, "x")
        centre = (params.coefficients.centre, centre[1] if centre else middle)
    if centre is not None:
        across, along = centre
        centre = (
            scan.axes.upright_index(across, scan.ny, "y"),
            scan.axes.upright_index(along, scan.nx, "x"),
        )
    x, y = scan.pixel_xy_um
    assert sample.labels is not None
    compositions = {name: said.composition(name) for name, said in given.items()}
    return absorption_coefficients(
        Radiographs(
            scan.transmission(which),
            scan.angles_deg[which],
            (y, x),
            UPRIGHT,
            centre,
            energy,
            scan.distance_mm,
        ),
        sample.labels,
        compositions={name: c for name, c in compositions.items() if c is not None},
        margin_um=params.coefficients.margin,
    )


def beam_profile(params: Any) -> BeamProfile | None:
    if params.beam.profile == "none":
        if params.beam.size:
            raise ValueError("beam.size was given without beam.profile=tophat or gaussian.")
        return None
    if not params.beam.size:
        raise ValueError(
            f"beam.profile={params.beam.profile} needs beam.size= (two lengths in um)."
        )
    return BeamProfile(params.beam.profile, tuple(params.beam.size), tuple(params.beam.offset))


@show_mail_handle_errors()
def run(args: list[str] | None = None, phil: Any = None) -> None:
    """Run dials.anacor_absorption as from the command line."""
    args = sys.argv[1:] if args is None else args
    parser = ArgumentParser(
        usage="dials.anacor_absorption [options] models.expt observations.refl tomo.h5 | scan.nxs",
        phil=phil or phil_scope_for(args),
        read_experiments=True,
        read_reflections=True,
        check_format=False,
        epilog=__doc__,
    )
    params, options, files = parser.parse_args(
        args=args, show_diff_phil=False, return_unhandled=True
    )
    unknown = [name for name in files if not Path(name.partition(":")[0]).exists()]
    if unknown:
        raise Sorry(f"{unknown[0]} is neither a parameter nor a file that exists.")
    if not params.input.experiments or not params.input.reflections:
        parser.print_help()
        raise Sorry(
            "Give the experiments (.expt), their reflections (.refl) and the labelled volume or scan."
        )

    begin_log(logger, parser, options, params.output.log)

    try:
        tables, experiments = reflections_and_experiments_from_files(
            params.input.reflections, params.input.experiments
        )
        new_labels = NewLabels(params)
        sample = load_sample(params, files, new_labels)
        logger.info("%s: %r", sample.path, sample.labels)
        given = given_materials(params)
        fit = coefficients_from_projections(params, sample, given, parser.diff_phil)
        correction = absorption_correction(
            experiments,
            tables,
            sample.labels,
            given=given,
            coefficients=fit,
            coefficients_before_file=params.coefficients.from_projections is True,
            file_mu_per_um=sample.mu_per_um,
            file_energy_keV=sample.energy_keV,
            alignment=Alignment(
                params.alignment.angle_offset,
                params.alignment.rotation_sense,
                params.alignment.reference_experiment,
                params.alignment.rotation_axis and tuple(params.alignment.rotation_axis),
            ),
            refine=choices_from(params.alignment.refine),
            beam=beam_profile(params),
            tolerance=params.absorption.tolerance / 100,
            method=choice(params.absorption.method),
            check_reflections=params.absorption.check_reflections,
            memory_gb=params.absorption.memory,
            nproc=None if params.nproc is libtbx.Auto else params.nproc,
            device=choice(params.device),
            seed=params.seed,
            progress=sys.stderr.isatty(),
        )
        command = scale_command(params.output.experiments, params.output.reflections, experiments)
        if params.output.mode == "intensities":
            command = f"dials.scale {params.output.experiments} {params.output.reflections}"
        with OutputFiles() as outputs:
            if new_labels.write is not None:
                new_labels.write(outputs)
            for table, factors in zip(tables, correction.tables, strict=True):
                write_factors(
                    table, factors.transmission, factors.standard_error, params.output.mode
                )
            # the report reads the tables row by row, so it comes before they are combined
            if params.output.html:
                write_html(
                    outputs.path(params.output.html),
                    "Absorption correction",
                    report_sections(correction, sample.labels, experiments, tables, command),
                    f"{sample.path.name}, {len(experiments)} experiments",
                )
            if params.output.json:
                content = summary(correction, sample.labels)
                write_json(outputs.path(params.output.json), content | {"scale_command": command})
            if params.output.cif:
                outputs.path(params.output.cif).write_text(cif_block(correction), encoding="ascii")
            result = combined(tables, correction.experiment_of_row, experiments)
            experiments.as_file(outputs.path(params.output.experiments))
            result.as_file(outputs.path(params.output.reflections))
    except ValueError as error:
        raise Sorry(error) from None

    a = correction.transmissions
    logger.info(
        "Transmission of %d reflections: %.4f to %.4f, mean %.4f; %d rows have no direction (factor 1)",
        len(a),
        a.min(),
        a.max(),
        a.mean(),
        correction.n_undefined,
    )
    for warning in correction.warnings:
        logger.warning("%s", warning)
    for name in (
        new_labels.write and params.output.tomogram,
        new_labels.write and params.output.segmentation_html,
        params.output.experiments,
        params.output.reflections,
        params.output.html,
        params.output.json,
        params.output.cif,
    ):
        if name:
            logger.info("Written: %s", name)
    logger.info("\nTo scale the data with the factors:\n  %s", command)


if __name__ == "__main__":
    run()
