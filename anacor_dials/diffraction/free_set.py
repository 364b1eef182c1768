"""The free set: reflections that are left out of refinement, to test it.

Which reflections are free must never change while a structure is refined. So a set is taken from a
file where there is one, and completed; a new one is a function of the Miller indices alone. Whether
a reflection is free then depends neither on the run, nor on resolution, wavelength or crystal.
Reflections that the lattice makes equivalent, as twinning does, fall into the same set
(Brunger, Methods Enzymol. 277 (1997) 366; cctbx does the same).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import iotbx.mtz
import numpy as np
from cctbx import crystal, miller, sgtbx
from cctbx.sgtbx import lattice_symmetry
from dials.algorithms.scaling.scaling_library import determine_best_unit_cell
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.model import ExperimentList
from iotbx.reflection_file_editor import is_rfree_array

from anacor_dials.diffraction.models import read_models
from anacor_dials.sample.frames import FloatArray

LABEL = "FreeR_flag"
FRACTION = 0.05  # as dials.merge and CCP4 have it
AT_MOST = 2000  # as dials.merge and phenix have it: more improve no statistic
LATTICE_TOLERANCE_DEG = 5.0  # cctbx' own in generate_r_free_flags
DATE = re.compile(rb"CREATED_\d\d/\d\d/\d{4}_\d\d:\d\d:\d\d")  # of a column, in the head of MTZ
SAME_CELL = (0.05, 3.0)  # relative, degrees: isomorphous crystals are within


def chance(reflections: miller.set) -> FloatArray:
    """A number in [0, 1) for each reflection, (n,): a hash of its indices.

    The hash is the mixing function of splitmix64 (Steele, Lea & Flood, OOPSLA 2014) of the packed
    indices in the asymmetric unit of the reduced cell's lattice, whose symmetry may be higher.

    Parameters
    ----------
    reflections : miller.set
    """
    reduced = reflections.change_basis(reflections.change_of_basis_op_to_niggli_cell())
    lattice = crystal.symmetry(
        unit_cell=reduced.unit_cell(),
        space_group=lattice_symmetry.group(reduced.unit_cell(), max_delta=LATTICE_TOLERANCE_DEG),
        assert_is_compatible_unit_cell=False,
    )
    unique = reduced.customized_copy(crystal_symmetry=lattice, anomalous_flag=False).map_to_asu()
    hkl = flumpy.to_numpy(unique.indices()).reshape(-1, 3).astype(np.int64) + (1 << 20)
    x = (hkl[:, 0] << 42 | hkl[:, 1] << 21 | hkl[:, 2]).astype(np.uint64)
    x += np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    result: FloatArray = (x >> np.uint64(11)).astype(np.float64) / (1 << 53)
    return result


def draw_free_set(
    reflections: miller.set, fraction: float = FRACTION, at_most: int = AT_MOST
) -> miller.array:
    """Flags 0 to n - 1, of which 0 is the free set, as CCP4 has them.

    The smaller of two free sets is part of the larger.

    Parameters
    ----------
    reflections : miller.set
        Unique, Friedel mates as one.
    fraction : float
        Of the free set, below 0.5.
    at_most : int
        Roughly so many free reflections.
    """
    share = min(fraction, at_most / max(1, reflections.size()))
    return _flags(reflections, np.floor(chance(reflections) * round(1 / share)))


def complete_free_set(
    known: miller.array | None, reflections: miller.set, fraction: float = FRACTION
) -> tuple[miller.array, int]:
    """(flags of all known and all given reflections, how many of them are new).

    Parameters
    ----------
    known : miller.array, optional
        Flags of :func:`read_free_set`, which are kept; the new ones have their numbers and shares.
        All are new without it.
    reflections : miller.set
        Unique, Friedel mates as one.
    fraction : float
        Of a set that is new.

    Raises
    ------
    ValueError
        If the known ones are of another Laue group, or of another cell.
    """
    if known is None:
        return draw_free_set(reflections, fraction), reflections.size()
    _require_same_crystal(known, reflections)
    # in one cell and setting of the symmetry elements, or the indices would not be compared
    symmetry = reflections.crystal_symmetry()
    kept = known.customized_copy(crystal_symmetry=symmetry).map_to_asu()
    kept = kept.select(kept.unique_under_symmetry_selection())
    new = reflections.map_to_asu().lone_set(kept)
    values, counts = np.unique(flumpy.to_numpy(kept.data()), return_counts=True)
    if len(values) > 2:
        low, high = int(values[0]), int(values[-1])
        flags = low + np.floor(chance(new) * (high - low + 1))
    else:  # free or not, the free set is the smaller
        free = counts.argmin()
        is_free = chance(new) < counts[free] / counts.sum()
        flags = np.where(is_free, values[free], values[1 - free])
    return kept.concatenate(_flags(new, flags)), new.size()


def read_free_set(path: str | os.PathLike[str]) -> miller.array:
    """The flags of the first free set in an MTZ file, Friedel mates as one.

    Parameters
    ----------
    path : path

    Raises
    ------
    ValueError
        If the file has none.
    """
    try:
        arrays = iotbx.mtz.object(os.fspath(path)).as_miller_arrays()
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read as an MTZ file ({error}).") from None
    for array in arrays:
        if array.is_integer_array() and is_rfree_array(array, array.info()):
            if len(set(array.data())) > 1:
                return array.as_non_anomalous_array().merge_equivalents().array()
    raise ValueError(
        f"{path} holds no free set (an integer column like {LABEL} with two values or more); name "
        "another file."
    )


def write_free_set(free: miller.array, path: str | os.PathLike[str]) -> None:
    """Writes flags as an MTZ file, the same bytes for the same flags: without its date."""
    data = free.sort("packed_indices").as_mtz_dataset(LABEL, column_types="I").mtz_object()
    data.write(os.fspath(path))
    file = Path(path)
    file.write_bytes(DATE.sub(lambda date: b"-" * len(date[0]), file.read_bytes()))


def observed_indices(files: Sequence[tuple[Path, Path]], d_min: float | None = None) -> miller.set:
    """The unique reflections of scaled data, Friedel mates as one.

    Parameters
    ----------
    files : sequence of (Path, Path)
        Experiments and reflections; of one crystal form.
    d_min : float, optional
        Angstrom.
    """
    experiments = ExperimentList()
    indices = flex.miller_index()
    for expt, refl in files:
        experiments.extend(read_models(expt))
        table = flex.reflection_table.from_file(os.fspath(refl))
        bad = table.get_flags(table.flags.bad_for_scaling, all=False)
        indices.extend(table["miller_index"].select(~bad))
    symmetry = crystal.symmetry(
        unit_cell=determine_best_unit_cell(experiments),
        space_group=experiments[0].crystal.get_space_group(),
    )
    found = miller.set(symmetry, indices, anomalous_flag=False).map_to_asu().unique_under_symmetry()
    return found.resolution_filter(d_min=d_min or 0)


def _flags(reflections: miller.set, values: FloatArray) -> miller.array:
    return reflections.array(data=flumpy.from_numpy(values.astype(np.int32)))


def _require_same_crystal(known: miller.array, reflections: miller.set) -> None:
    groups = [_laue_group(one) for one in (known, reflections)]
    cells = [one.unit_cell() for one in (known, reflections)]
    if groups[0] != groups[1]:
        raise ValueError(f"the free set is of the Laue group {groups[0]}, the data of {groups[1]}")
    if not cells[0].is_similar_to(cells[1], *SAME_CELL):
        shown = [", ".join(f"{x:.1f}" for x in cell.parameters()) for cell in cells]
        raise ValueError(f"the free set is of the cell {shown[0]}, the data of {shown[1]}")


def _laue_group(reflections: miller.set) -> str:
    group = reflections.space_group().build_derived_reflection_intensity_group(anomalous_flag=False)
    return str(sgtbx.space_group_info(group=group))
