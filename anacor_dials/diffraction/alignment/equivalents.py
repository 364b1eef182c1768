"""Observations of symmetry equivalents, from the integrated intensities of DIALS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cctbx import miller
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.model import ExperimentList
from numpy.typing import NDArray

from anacor_dials.absorption.beam import BeamProfile
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.diffraction.reflections import (
    Alignment,
    axis_of_beam,
    rotation_axis_in_lab,
    row_directions,
    sweep_axes,
    tomo_to_datum,
)
from anacor_dials.diffraction.wavelengths import wavelength_groups
from anacor_dials.sample.frames import FloatArray, unit

# The median over the observations of a unique reflection. Chosen by hand: weaker ones say little of
# a few per cent of absorption.
LEAST_I_OVER_SIGMA = 5.0
LEAST_I_OVER_SIGMA_OF_ONE = 2.0  # below, the logarithm of an intensity is too uncertain
MOST_OBSERVATIONS = 12_000  # bounds the time of a trial
# Observations in one cell of scan angle and detector quadrant share systematic errors. A sweep has
# at least so many cells in scan angle, so that the spread between them is known. Chosen by hand:
# scales of images vary over about ten degrees.
LARGEST_CELL_DEG = 10.0
CELLS_OF_A_SWEEP = 18
TURNED_ALIKE = 1e-6  # 1 - cosine of the largest angle between axes that are one: 0.08 deg


@dataclass(frozen=True, eq=False)
class Equivalents:
    """n observations of unique reflections that were measured more than once.

    Attributes
    ----------
    log_intensity : array (n,)
        ln I.
    relative_variance : array (n,)
        (sigma / I)^2.
    unique : array (n,) of int
        The number of the unique reflection, from 0; Friedel mates have one number.
    unique_apart : array (n,) of int
        The same; Friedel mates have different numbers if the crystal distinguishes them.
    cell : array (n,) of int
        The number of the cell of scan angle and detector quadrant.
    experiment, wavelength : array (n,) of int
        The numbers of the experiment and of the wavelength.
    scan_angle_deg : array (n,)
    inverse_d_squared : array (n,)
        1 / d^2, 1/A^2.
    to_source, exit : array (n, 3)
        Unit vectors in the datum frame.
    exit_in_lab : array (n, 3)
        Unit vectors in the laboratory.
    """

    log_intensity: FloatArray
    relative_variance: FloatArray
    unique: NDArray[np.int64]
    unique_apart: NDArray[np.int64]
    cell: NDArray[np.int64]
    experiment: NDArray[np.int64]
    wavelength: NDArray[np.int64]
    scan_angle_deg: FloatArray
    inverse_d_squared: FloatArray
    to_source: FloatArray
    exit: FloatArray
    exit_in_lab: FloatArray

    def __len__(self) -> int:
        return len(self.log_intensity)

    @property
    def n_unique(self) -> int:
        """The number of unique reflections."""
        return int(self.unique.max()) + 1 if len(self) else 0

    def __getitem__(self, index: Any) -> Equivalents:
        """Some of the observations, with new numbers of unique reflections and cells."""
        parts = {name: values[index] for name, values in vars(self).items()}
        for name in ("unique", "unique_apart", "cell"):
            parts[name] = np.unique(parts[name], return_inverse=True)[1].ravel()
        return Equivalents(**parts)


def usable_experiments(
    experiments: ExperimentList, tables: Sequence[flex.reflection_table]
) -> list[int]:
    """The experiments that can be used: rotation scans of crystals of one space group.

    Raises ValueError if there are none, or if the tables lack what is compared.
    """
    scans = [
        index
        for index, experiment in enumerate(experiments)
        if experiment.scan is not None
        and not experiment.is_still()
        and experiment.goniometer is not None
    ]
    if not scans:
        raise ValueError(
            "alignment.refine needs rotation scans, and the experiments are stills; give the alignment "
            "and alignment.refine=none."
        )
    groups = set()
    for index in scans:
        lattice = experiments[index].crystal
        if lattice is None:
            raise ValueError(
                f"Experiment {index} has no crystal model, so its symmetry equivalents are unknown; "
                "alignment.refine needs indexed and integrated data."
            )
        groups.add(lattice.get_space_group().build_derived_reflection_intensity_group(False).info())
    if len({str(group) for group in groups}) > 1:
        raise ValueError(
            f"The experiments have different symmetries ({', '.join(sorted(map(str, groups)))}); "
            "alignment.refine compares equivalents of one: run dials.symmetry or dials.cosym on all."
        )
    for table in tables:
        if "miller_index" not in table:
            raise ValueError(
                "A reflection table has no Miller indices, so its symmetry equivalents are unknown; "
                "alignment.refine needs the output of dials.integrate."
            )
        if "intensity.prf.value" not in table and "intensity.sum.value" not in table:
            raise ValueError(
                "A reflection table has no integrated intensities, which alignment.refine compares; "
                "give the output of dials.integrate."
            )
    if all(table["miller_index"].all_eq((0, 0, 0)) for table in tables):
        raise ValueError(
            "No reflection is indexed, so symmetry equivalents are unknown; alignment.refine needs the "
            "output of dials.integrate."
        )
    return scans


def _usable_intensities(
    table: flex.reflection_table,
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """I and its variance (n,), and which of them can be used (n,).

    I is corrected for Lorentz factor, polarisation and the quantum efficiency of the sensor.
    """
    flags = table.flags
    method = "prf" if "intensity.prf.value" in table else "sum"
    sound = np.ones(len(table), dtype=bool)
    if "flags" in table:
        integrated = table.get_flags(flags.integrated_prf)
        if method == "prf" and integrated.count(True) == 0 and "intensity.sum.value" in table:
            method = "sum"
        if method == "sum":
            integrated = table.get_flags(flags.integrated_sum)
        bad = table.get_flags(flags.bad_for_scaling, all=False)
        bad |= table.get_flags(flags.overloaded)
        sound = flumpy.to_numpy(integrated & ~bad)
    intensity = flumpy.to_numpy(table[f"intensity.{method}.value"]).copy()
    variance = flumpy.to_numpy(table[f"intensity.{method}.variance"]).copy()
    factor = np.ones(len(table))
    if "lp" in table:
        factor *= flumpy.to_numpy(table["lp"])
    for name in ("qe", "dqe"):
        if name in table:
            efficiency = flumpy.to_numpy(table[name])
            sound = sound & (efficiency > 0)
            factor /= np.where(efficiency > 0, efficiency, 1.0)
            break
    if "partiality" in table:
        sound = sound & (flumpy.to_numpy(table["partiality"]) > 0.99)
    sound = sound & np.isfinite(intensity) & np.isfinite(variance) & (variance > 0) & (factor > 0)
    return intensity * factor, variance * factor**2, sound


def equivalents(
    experiments: ExperimentList,
    tables: Sequence[flex.reflection_table],
    experiment_of_row: Sequence[NDArray[np.int64]],
    alignment: Alignment,
    tracing: Tracing,
    most: int = MOST_OBSERVATIONS,
) -> Equivalents:
    """Well measured observations of the unique reflections that were measured more than once.

    A reflection is chosen by the median I / sigma of its observations. A choice by each observation
    alone would leave out the strongly absorbed ones.

    Parameters
    ----------
    experiments : ExperimentList
    tables : sequence of reflection tables
    experiment_of_row : sequence of array (n_rows,)
        The experiment of each row of each table.
    alignment : Alignment
        The given alignment.
    tracing : Tracing
        The seed is used, and the beam: with a beam that may be smaller than the crystal, only
        sweeps that turn the crystal in the beam as the reference experiment does are taken.
    most : int
        If there are more observations than this, the strongest are taken; reflections above
        I / sigma = 20 are chosen at random.

    Raises
    ------
    ValueError
        For stills, and for data without crystals, symmetry, indices or intensities.
    """
    used = usable_experiments(experiments, tables)
    if tracing.beam is not None:
        used = _turned_alike_in_the_beam(experiments, used, alignment, tracing.beam)
    rng = np.random.default_rng(tracing.seed)
    columns: dict[str, list[NDArray[Any]]] = {}
    for table, index in zip(tables, experiment_of_row, strict=True):
        for name, values in _observations(experiments, table, index, used).items():
            columns.setdefault(name, []).append(values)
    data = {name: np.concatenate(values) for name, values in columns.items()}
    wavelength_of = np.zeros(len(experiments), dtype=np.int64)
    for number, (_, members) in enumerate(wavelength_groups(experiments)):
        wavelength_of[members] = number
    wavelength = wavelength_of[data["experiment"]]
    unique, unique_apart = (
        np.unique(np.column_stack([hkl, wavelength]), axis=0, return_inverse=True)[1].ravel()
        for hkl in (data["hkl"][:, :3], data["hkl"][:, 3:])
    )
    relative_variance = data["variance"] / data["intensity"] ** 2
    found = Equivalents(
        # the mean of ln I is (sigma / I)^2 / 2 below the logarithm of the mean
        np.log(data["intensity"]) + 0.5 * relative_variance,
        relative_variance,
        unique,
        unique_apart,
        _cells(data["experiment"], data["scan_angle_deg"], data["quadrant"]),
        data["experiment"],
        wavelength,
        data["scan_angle_deg"],
        data["inverse_d_squared"],
        data["to_source"],
        data["exit"],
        data["exit_in_lab"],
    )
    return found[_well_measured(found, rng, most)] if len(found) else found


def _turned_alike_in_the_beam(
    experiments: ExperimentList, used: Sequence[int], alignment: Alignment, beam: BeamProfile
) -> list[int]:
    """The experiments that turn the crystal in the beam's cross-section as the reference does.

    They turn it about the rotation axis of the tomogram, and this axis lies in the laboratory where
    that of the reference experiment lies. Then the axis of the beam turns with the direction to the
    source, at every offset. Raises ValueError if there are none.
    """
    reference = experiments[alignment.reference_experiment]
    axes = sweep_axes(experiments, tomo_to_datum(experiments, alignment))
    axis_of_beam(experiments, alignment, beam)
    alike = []
    for index in used:
        if abs(axes[index, 0]) < 1 - TURNED_ALIKE:
            continue
        # the axis of the tomogram in the laboratory, as this experiment and the reference see it
        sense = math.copysign(1.0, axes[index, 0] * axes[alignment.reference_experiment, 0])
        mine, theirs = (
            np.array([rotation_axis_in_lab(e, alignment), unit(e.beam.get_s0())])
            for e in (experiments[index], reference)
        )
        mine[0] *= sense
        if np.all(np.sum(mine * theirs, axis=1) > 1 - TURNED_ALIKE):
            alike.append(index)
    if not alike:
        raise ValueError(
            "alignment.refine with a small beam uses sweeps about the tomogram's own rotation axis, "
            "and there are none; give alignment.refine=none or beam.profile=none."
        )
    return alike


def _observations(
    experiments: ExperimentList,
    table: flex.reflection_table,
    index: NDArray[np.int64],
    used: Sequence[int],
) -> dict[str, NDArray[Any]]:
    """The usable observations of one table; hkl (n, 6): Friedel mates together, and apart."""
    intensity, variance, sound = _usable_intensities(table)
    directions = row_directions(table, index, experiments, np.eye(3))
    rows, experiment = directions.rows, directions.experiment
    chosen = sound[rows] & np.isin(experiment, list(used))
    chosen &= intensity[rows] > LEAST_I_OVER_SIGMA_OF_ONE * np.sqrt(
        np.where(variance > 0, variance, 1.0)[rows]
    )
    rows, experiment = rows[chosen], experiment[chosen]
    hkl = np.zeros((len(rows), 6), dtype=np.int64)
    inverse_d_squared = np.zeros(len(rows))
    quadrant = np.zeros(len(rows), dtype=np.int64)
    every_hkl = np.array(list(table["miller_index"]), dtype=np.int64).reshape(-1, 3)
    s1 = flumpy.to_numpy(table["s1"])[rows]
    for e in np.unique(experiment):
        mine = experiment == e
        lattice = experiments[int(e)].crystal
        indices = flex.miller_index([tuple(map(int, h)) for h in every_hkl[rows[mine]]])
        inverse_d_squared[mine] = flumpy.to_numpy(lattice.get_unit_cell().d_star_sq(indices))
        for anomalous in (False, True):
            mapped = indices.deep_copy()
            miller.map_to_asu(lattice.get_space_group().type(), anomalous, mapped)
            columns = slice(3, 6) if anomalous else slice(0, 3)
            hkl[mine, columns] = np.array(list(mapped), dtype=np.int64).reshape(-1, 3)
        axis = np.array(experiments[int(e)].goniometer.get_rotation_axis())
        beam = np.array(experiments[int(e)].beam.get_s0())
        along, across = s1[mine] @ axis > 0, s1[mine] @ np.cross(axis, beam) > 0
        quadrant[mine] = 2 * along + across
    position = table["xyzcal.mm"] if "xyzcal.mm" in table else table["xyzobs.mm.value"]
    return {
        "intensity": intensity[rows],
        "variance": variance[rows],
        "hkl": hkl,
        "experiment": experiment,
        "quadrant": quadrant,
        "scan_angle_deg": np.degrees(flumpy.to_numpy(position)[rows, 2]),
        "inverse_d_squared": inverse_d_squared,
        "to_source": directions.to_source[chosen],
        "exit": directions.exit[chosen],
        "exit_in_lab": unit(s1),
    }


def _cells(
    experiment: NDArray[np.int64], scan_angle_deg: FloatArray, quadrant: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The number (n,) of the cell of experiment, scan angle and detector quadrant."""
    angle_cell = np.zeros(len(experiment), dtype=np.int64)
    for e in np.unique(experiment):
        mine = experiment == e
        angle = scan_angle_deg[mine]
        width = min(LARGEST_CELL_DEG, max(float(np.ptp(angle)) / CELLS_OF_A_SWEEP, 1e-6))
        angle_cell[mine] = np.floor((angle - angle.min()) / width)
    cells = np.column_stack([experiment, angle_cell, quadrant])
    return np.unique(cells, axis=0, return_inverse=True)[1].ravel()


def _well_measured(data: Equivalents, rng: np.random.Generator, most: int) -> NDArray[np.int64]:
    """The indices of the observations that are kept, see :func:`equivalents`."""
    order = np.lexsort((data.relative_variance, data.unique))
    counts = np.bincount(data.unique)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    median = data.relative_variance[order][starts + counts // 2]
    strength = 1 / np.sqrt(median)
    good = np.flatnonzero((counts > 1) & (strength >= LEAST_I_OVER_SIGMA))
    best_first = good[np.lexsort((rng.random(len(good)), -np.minimum(strength[good], 20.0)))]
    taken = best_first[np.cumsum(counts[best_first]) <= most]
    keep = np.zeros(len(counts), dtype=bool)
    keep[taken] = True
    return np.flatnonzero(keep[data.unique])
