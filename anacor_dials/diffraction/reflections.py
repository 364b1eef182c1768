"""Experiments and reflection tables of DIALS: directions in the frame of the sample, and columns.

The equations are in :mod:`anacor_dials.sample.frames`. When a reflection is measured at the scan
angle phi, the sample is turned by ``R = S R'(axis_datum, phi) F``. In the frame of the sample the
beam comes from ``R^T to_source``, and the diffracted ray leaves along ``R^T s1``. phi is taken from
``xyzcal.mm``. The observed angle is 0 in rows that were not integrated, and wrong by up to degrees
in others.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.model import Experiment, ExperimentList
from numpy.typing import ArrayLike, NDArray

from anacor_dials.absorption.beam import BeamProfile
from anacor_dials.absorption.directions import Directions
from anacor_dials.sample.frames import (
    FloatArray,
    datum_from_tomo,
    rotation_about,
    tomo_axes_in_lab,
    unit,
)

logger = logging.getLogger("dials.anacor_dials.diffraction.reflections")

FACTOR_COLUMN = "analytical_correction"
ERROR_COLUMN = "analytical_correction_error"
# the factor by which intensities were divided; its presence forbids to do it again
DIVIDED_COLUMN = "analytical_correction_applied"

DIALS_EXCLUDES_BELOW = 1e-3  # dials.scale drops reflections with a smaller inverse scale
LEAST_SINE_TO_BEAM = 0.01  # of the angle between the beam and the axis of its cross-section
KB_MODEL_BELOW_DEG = 1.0  # dials.scale model=auto: scans narrower than this


@dataclass(frozen=True)
class Alignment:
    """How the tomogram sits on the goniometer of the diffraction experiments.

    Parameters
    ----------
    angle_offset_deg : float
        The scan angle of the reference experiment at which the rotation angle of the tomography is
        zero, deg.
    rotation_sense : int
        1, or -1 if the rotation angle of the tomography runs against the goniometer.
    reference_experiment : int
        The number of the experiment with whose goniometer setting the tomogram was taken.
    rotation_axis : (float, float, float), optional
        The rotation axis in the laboratory, for experiments without a goniometer.

    Raises
    ------
    ValueError
        If the sense is not 1 or -1, or the offset is not a number.
    """

    angle_offset_deg: float = 0.0
    rotation_sense: int = 1
    reference_experiment: int = 0
    rotation_axis: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.rotation_sense not in (1, -1):
            raise ValueError(f"alignment.rotation_sense is {self.rotation_sense}; it is 1 or -1.")
        if not math.isfinite(self.angle_offset_deg):
            raise ValueError(f"alignment.angle_offset is {self.angle_offset_deg}; give degrees.")


def _matrix(elements: Sequence[float]) -> FloatArray:
    return np.array(elements, dtype=np.float64).reshape(3, 3)


def sample_rotations(experiment: Experiment, phi_deg: ArrayLike) -> FloatArray:
    """S R'(axis_datum, phi) F (n, 3, 3) for scan angles (n,) in degrees: lab = rotation @ datum."""
    goniometer = experiment.goniometer
    angles = np.asarray(phi_deg, dtype=np.float64)
    if goniometer is None:
        return np.broadcast_to(np.eye(3), (*angles.shape, 3, 3))
    setting = _matrix(goniometer.get_setting_rotation())
    fixed = _matrix(goniometer.get_fixed_rotation())
    turned = rotation_about(goniometer.get_rotation_axis_datum(), angles)
    return setting @ turned @ fixed


def rotation_axis_in_lab(experiment: Experiment, alignment: Alignment) -> FloatArray:
    """S axis_datum, the scan's rotation axis in the lab."""
    if experiment.goniometer is not None:
        return unit(experiment.goniometer.get_rotation_axis())
    if alignment.rotation_axis is None:
        raise ValueError(
            "The experiments have no goniometer, so the tomography's rotation axis is unknown; "
            "give it in the laboratory frame as alignment.rotation_axis=1,0,0."
        )
    return unit(alignment.rotation_axis)


def axis_of_beam(
    experiments: ExperimentList, alignment: Alignment, beam: BeamProfile | None
) -> FloatArray | None:
    """The axis of the beam's cross-section in the laboratory, a unit vector; None for a wide beam.

    It is one for all experiments.

    Parameters
    ----------
    experiments : ExperimentList
    alignment : Alignment
        Its reference experiment has the rotation axis that is taken if the beam has no axis.
    beam : BeamProfile or None
        None for a beam that is wider than the crystal.

    Raises
    ------
    ValueError
        If the beam runs along it.
    """
    if beam is None:
        return None
    if beam.axis is None:
        axis = rotation_axis_in_lab(experiments[alignment.reference_experiment], alignment)
    else:
        axis = unit(beam.axis)
    for index, experiment in enumerate(experiments):
        source = unit(experiment.beam.get_sample_to_source_direction())
        if np.linalg.norm(np.cross(axis, source)) < LEAST_SINE_TO_BEAM:
            raise ValueError(
                f"The beam of experiment {index} runs along the axis of its cross-section, "
                f"{np.round(axis, 4).tolist()}; give a direction across the beam as beam.axis=."
            )
    return axis


def require_reference_experiment(experiments: ExperimentList, index: int) -> None:
    """Raises ValueError if there is no experiment of the number that the user named."""
    if not 0 <= index < len(experiments):
        raise ValueError(
            f"alignment.reference_experiment is {index}; there are {len(experiments)} experiments, "
            "counted from 0."
        )


def tomo_to_datum(experiments: ExperimentList, alignment: Alignment) -> FloatArray:
    """The matrix (3, 3) from the tomo frame to the datum frame, by the reference experiment."""
    index = alignment.reference_experiment
    require_reference_experiment(experiments, index)
    reference = experiments[index]
    m = tomo_axes_in_lab(
        rotation_axis_in_lab(reference, alignment),
        reference.beam.get_s0(),
        alignment.rotation_sense,
    )
    return datum_from_tomo(sample_rotations(reference, alignment.angle_offset_deg), m)


def experiment_of_rows(
    tables: Sequence[flex.reflection_table], experiments: ExperimentList
) -> list[NDArray[np.int64]]:
    """For each table the number (n,) of each row's experiment; -1 for rows of none.

    The experiment identifiers of the tables decide, if they are set. Otherwise the column id
    decides for a single table, and the order for as many tables as experiments.

    Raises
    ------
    ValueError
        If tables and experiments do not belong together.
    """
    position = {name: i for i, name in enumerate(experiments.identifiers()) if name}
    indices = []
    for number, table in enumerate(tables):
        if "id" not in table:
            raise ValueError("A reflection table has no column id; it does not come from DIALS.")
        ids = flumpy.to_numpy(table["id"]).astype(np.int64)
        identifiers = dict(table.experiment_identifiers())
        index = np.full(len(ids), -1, dtype=np.int64)
        for id_ in np.unique(ids[ids >= 0]):
            name = identifiers.get(int(id_), "")
            if name:
                if name not in position:
                    raise ValueError(
                        f"The reflections of the experiment {name} have no model: experiments and "
                        "reflections do not belong together. Give the .expt that goes with each .refl."
                    )
                index[ids == id_] = position[name]
            elif len(tables) == 1 and id_ < len(experiments):
                index[ids == id_] = id_
            elif len(tables) == len(experiments) and len(np.unique(ids[ids >= 0])) == 1:
                index[ids == id_] = number
            else:
                raise ValueError(
                    f"A reflection table holds the id {id_}, there are {len(experiments)} experiments, "
                    "and no identifiers say which belongs to which. Give the .expt that goes with "
                    "each .refl (dials.assign_experiment_identifiers)."
                )
        indices.append(index)
    found = np.unique(np.concatenate(indices)) if indices else np.zeros(0)
    if len(found[found >= 0]) == 0:
        raise ValueError("The reflection tables hold no reflection that belongs to an experiment.")
    return indices


def _scan_angles_deg(table: flex.reflection_table, experiment: Experiment) -> FloatArray:
    """phi (n,) of each row, degrees."""
    if experiment.scan is None or experiment.is_still():
        start = 0.0
        if experiment.scan is not None and experiment.scan.has_property("oscillation"):
            start = experiment.scan.get_oscillation()[0]
        return np.full(len(table), float(start))
    column = "xyzcal.mm" if "xyzcal.mm" in table else "xyzobs.mm.value"
    return np.degrees(flumpy.to_numpy(table[column])[:, 2])


def require_columns(tables: Sequence[flex.reflection_table], experiments: ExperimentList) -> None:
    """Raises ValueError where a table has no directions, or was corrected before."""
    scans = any(e.scan is not None and not e.is_still() for e in experiments)
    for table in tables:
        if "s1" not in table:
            raise ValueError(
                "A reflection table has no column s1, so the directions of its reflections are "
                "unknown; give the output of dials.integrate."
            )
        if scans and "xyzcal.mm" not in table:
            if "xyzobs.mm.value" not in table:
                raise ValueError(
                    "A reflection table has neither xyzcal.mm nor xyzobs.mm.value, so the scan angles "
                    "of its reflections are unknown; give the output of dials.integrate."
                )
            logger.warning(
                "A reflection table has no xyzcal.mm: scan angles are taken from xyzobs.mm.value."
            )
        if DIVIDED_COLUMN in table:
            raise ValueError(
                "The intensities of a reflection table were divided by their transmission before "
                f"(column {DIVIDED_COLUMN}); a second correction is refused. Start from the table "
                "before it."
            )


@dataclass(frozen=True, eq=False)
class ReflectionDirections:
    """The directions of all reflections of a table that have any, in the tomo frame.

    Attributes
    ----------
    rows : array (n,) of int
        Their rows in the table.
    experiment : array (n,) of int
        The number of the experiment of each.
    to_source, exit : array (n, 3)
        Unit vectors from the sample to the source, and along the diffracted beam.
    beam_axis : array (n, 3) or None
        The axis of the beam's cross-section, if the beam has one.
    """

    rows: NDArray[np.int64]
    experiment: NDArray[np.int64]
    to_source: FloatArray
    exit: FloatArray
    beam_axis: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def of_experiments(
        self, numbers: Sequence[int], rotation_axes: FloatArray
    ) -> tuple[Directions, NDArray[np.int64]]:
        """The directions of the reflections of some experiments.

        The experiments that have reflections are the sweeps of the directions.

        Parameters
        ----------
        numbers : sequence of int
            The experiments.
        rotation_axes : array (n_experiments, 3)
            The rotation axes of all experiments, of :func:`sweep_axes`.

        Returns
        -------
        directions : Directions
        places : array (m,) of int
            The places of these reflections among all.
        """
        places = np.flatnonzero(np.isin(self.experiment, list(numbers)))
        used, sweep = np.unique(self.experiment[places], return_inverse=True)
        directions = Directions(
            self.to_source[places],
            self.exit[places],
            sweep.ravel(),
            rotation_axes[used],
            None if self.beam_axis is None else self.beam_axis[places],
        )
        return directions, places


def row_directions(
    table: flex.reflection_table,
    experiment_of_row: NDArray[np.int64],
    experiments: ExperimentList,
    tomo_to_datum_matrix: FloatArray,
    beam_axis: FloatArray | None = None,
) -> ReflectionDirections:
    """The directions of all reflections of a table that have any.

    A row has none if s1 is zero or not finite, if it belongs to no experiment, or if it was never
    indexed (an observed s1 and Miller indices 0 0 0, but no calculated angle).

    Parameters
    ----------
    table : reflection_table
    experiment_of_row : array (n,) of int
        -1 for rows of no experiment.
    experiments : ExperimentList
    tomo_to_datum_matrix : array (3, 3) or (n_experiments, 3, 3)
        Of :func:`tomo_to_datum`; or from another frame of the sample, for each experiment its own.
    beam_axis : array (3,), optional
        The axis of the beam's cross-section in the laboratory, of :func:`axis_of_beam`.
    """
    s1 = flumpy.to_numpy(table["s1"]).astype(np.float64)
    with np.errstate(invalid="ignore"):
        length = np.linalg.norm(s1, axis=1)
    known = (experiment_of_row >= 0) & np.isfinite(length) & (length > 0)
    if "miller_index" in table:
        known &= np.any(
            flumpy.to_numpy(flex.vec3_double(table["miller_index"].as_vec3_double())) != 0, axis=1
        )
    rows = np.flatnonzero(known)
    to_source = np.empty((len(rows), 3))
    exits = np.empty((len(rows), 3))
    axes = np.empty((len(rows), 3))
    finite = np.ones(len(rows), dtype=bool)
    for index in np.unique(experiment_of_row[rows]):
        chosen = experiment_of_row[rows] == index
        experiment = experiments[int(index)]
        phi = _scan_angles_deg(table, experiment)[rows[chosen]]
        finite[chosen] = np.isfinite(phi)
        to_datum = np.swapaxes(sample_rotations(experiment, np.nan_to_num(phi)), -1, -2)
        to_tomo = _of_experiment(tomo_to_datum_matrix, int(index)).T @ to_datum
        source = unit(experiment.beam.get_sample_to_source_direction())
        to_source[chosen] = to_tomo @ source
        exits[chosen] = np.einsum("nij,nj->ni", to_tomo, unit(s1[rows[chosen]]))
        if beam_axis is not None:
            axes[chosen] = to_tomo @ beam_axis
    rows = rows[finite]
    return ReflectionDirections(
        rows,
        experiment_of_row[rows],
        to_source[finite],
        exits[finite],
        None if beam_axis is None else axes[finite],
    )


def sweep_axes(experiments: ExperimentList, tomo_to_datum_matrix: FloatArray) -> FloatArray:
    """The rotation axes (n_experiments, 3) of the sweeps in the frame of the tomogram.

    The matrix is (3, 3), or (n_experiments, 3, 3) from another frame of the sample. S R' F turns
    the sample about F^-1 axis_datum, which is fixed to the sample. Without a goniometer the sample
    does not move, and any axis will do.
    """
    axes = []
    for number, experiment in enumerate(experiments):
        axis = np.array([1.0, 0.0, 0.0])
        if experiment.goniometer is not None:
            fixed = _matrix(experiment.goniometer.get_fixed_rotation())
            axis = fixed.T @ np.array(experiment.goniometer.get_rotation_axis_datum())
        axes.append(_of_experiment(tomo_to_datum_matrix, number).T @ axis)
    return unit(np.array(axes))


def _of_experiment(matrix: FloatArray, number: int) -> FloatArray:
    """The matrix (3, 3) of an experiment, of one (3, 3) for all or of one for each."""
    return matrix if matrix.ndim == 2 else matrix[number]


def write_factors(
    table: flex.reflection_table,
    transmission: FloatArray,
    standard_error: FloatArray,
    mode: str = "column",
) -> None:
    """Puts transmissions and their errors into a table.

    Parameters
    ----------
    table : reflection_table
        It is changed.
    transmission, standard_error : array (n_rows,)
        A, 0 < A <= 1, and its standard error.
    mode : str
        "column": A is written as analytical_correction, which dials.scale applies as an inverse
        scale, and its standard error beside it. "intensities": intensities are divided by A and
        variances by A^2, and A is kept in another column, which shows that this was done.

    Raises
    ------
    ValueError
        If an A is out of range, or the table was corrected before.
    """
    n = len(table)
    if transmission.shape != (n,) or standard_error.shape != (n,):
        raise ValueError(f"There are {len(transmission)} factors for a table of {n} rows.")
    if not np.all(np.isfinite(transmission) & (transmission > 0) & (transmission <= 1)):
        raise ValueError("A transmission is not between 0 and 1; nothing is written.")
    if mode == "column":
        table[FACTOR_COLUMN] = flex.double(transmission)
        table[ERROR_COLUMN] = flex.double(standard_error)
    elif mode == "intensities":
        if FACTOR_COLUMN in table:
            raise ValueError(
                f"The table holds the column {FACTOR_COLUMN} already, by which dials.scale would "
                "correct a second time; start from the table before it, or use output.mode=column."
            )
        divisor = flex.double(transmission)
        for method in ("prf", "sum"):
            for quantity, power in (("value", divisor), ("variance", divisor * divisor)):
                name = f"intensity.{method}.{quantity}"
                if name in table:
                    table[name] = table[name] / power
        table[DIVIDED_COLUMN] = divisor
    else:
        raise ValueError(f"output.mode is {mode!r}; it is column or intensities.")


def combined(
    tables: Sequence[flex.reflection_table], experiments: ExperimentList
) -> tuple[flex.reflection_table, NDArray[np.int64]]:
    """One table of all rows, in their order, and the number (n,) of each row's experiment.

    The number is -1 for rows of no experiment. A single table stays as it is. Several tables are
    changed: their ids count the experiments, and they get the experiments' identifiers.

    Raises
    ------
    ValueError
        If tables and experiments do not belong together, or the tables have different columns.
    """
    per_table = experiment_of_rows(tables, experiments)
    if len(tables) == 1:
        return tables[0], per_table[0]
    columns = [set(table.keys()) for table in tables]
    if any(keys != columns[0] for keys in columns):
        missing = sorted(set.union(*columns) - set.intersection(*columns))
        raise ValueError(
            f"The reflection tables do not all have the columns {', '.join(missing)}; correct them "
            "one by one."
        )
    for table, index in zip(tables, per_table, strict=True):
        for id_ in list(table.experiment_identifiers().keys()):
            del table.experiment_identifiers()[id_]
        table["id"] = flumpy.from_numpy(index.astype(np.int32))
        for i in np.unique(index[index >= 0]):
            table.experiment_identifiers()[int(i)] = experiments[int(i)].identifier
    # not reflection_table.concat, which counts the ids anew in the order of the tables
    result = tables[0]
    for table in tables[1:]:
        result.extend(table)
    return result, np.concatenate(per_table)


def warnings_for_scaling(experiments: ExperimentList) -> list[str]:
    """What in the experiments would keep dials.scale from using the column."""
    warnings = []
    if any(e.scaling_model is not None for e in experiments):
        warnings.append(
            "The experiments hold a scaling model already: dials.scale would ignore the factors in "
            "silence. Give it overwrite_existing_models=True."
        )
    if any(uses_kb_model(e) for e in experiments):
        warnings.append(
            f"Some experiments are stills or scans narrower than {KB_MODEL_BELOW_DEG:g} deg: for them "
            "dials.scale chooses the KB model. Give it KB.analytical_correction=True as well."
        )
    return warnings


def uses_kb_model(experiment: Experiment) -> bool:
    """Whether dials.scale model=auto would take the KB model (stills and very narrow scans)."""
    if experiment.scan is None or experiment.is_still():
        return True
    begin, end = experiment.scan.get_oscillation_range()
    return bool(end - begin < KB_MODEL_BELOW_DEG)


def scale_command(experiments_file: str, reflections_file: str, experiments: ExperimentList) -> str:
    """The command line that scales with the factors and without spherical harmonics.

    Parameters
    ----------
    experiments_file, reflections_file : str
        The files that the command names.
    experiments : ExperimentList
        Their content; it decides which options are needed.
    """
    words = ["dials.scale", experiments_file, reflections_file]
    words.append("physical.analytical_correction=True")
    words.append("physical.absorption_correction=False")
    if any(uses_kb_model(e) for e in experiments):
        words.append("KB.analytical_correction=True")
    if any(e.scaling_model is not None for e in experiments):
        words.append("overwrite_existing_models=True")
    return " ".join(words)
