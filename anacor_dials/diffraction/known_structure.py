"""Scaled data compared with a known structure: intensities, anomalous differences, map peaks.

Merging statistics say how well equivalent reflections agree with each other. They do not say
whether the intensities are right: an error that equivalents share changes none of them. If the
structure is known, as it is for virtual data, the merged data can be compared with it.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import iotbx.pdb
import numpy as np
from cctbx import miller, xray
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray

logger = logging.getLogger("dials.anacor_dials.diffraction.known_structure")

FEWEST = 10  # reflections in a shell that has a correlation coefficient


@dataclass(frozen=True)
class Agreement:
    """Merged data, Friedel mates apart, compared with those of the known structure.

    Correlations, R and k are taken in shells of equal volume. The overall value is the mean over
    the shells, weighted by their numbers of reflections or pairs. Therefore neither the decrease of
    intensities with resolution nor an overall temperature factor matters.

    Attributes
    ----------
    cc_intensities : float
        Correlation of the intensities.
    r_intensities : float
        sum |I - k T| / sum I; T is the true intensity.
    cc_anomalous : float
        Correlation of |F+| - |F-|.
    n_reflections, n_pairs : int
        How many were compared.
    by_resolution : mapping
        {"d_max", "d_min" (Angstrom) and the three: array}, from low to high resolution; NaN in
        shells of too few reflections.
    """

    cc_intensities: float
    r_intensities: float
    cc_anomalous: float
    n_reflections: int
    n_pairs: int
    by_resolution: Mapping[str, FloatArray] = field(repr=False)


def read_structure(path: str | os.PathLike[str]) -> xray.structure:
    """The atoms of a PDB or mmCIF file. Raises ValueError where the file holds none or no cell."""
    try:
        structure = iotbx.pdb.input(file_name=os.fspath(path)).xray_structure_simple()
    except Exception as error:  # iotbx raises Sorry, OSError, RuntimeError, AssertionError
        raise ValueError(f"{path} cannot be read as a structure: {error}") from None
    if structure.unit_cell() is None or structure.scatterers().size() == 0:
        raise ValueError(f"{path} holds no unit cell or no atoms; name a PDB or mmCIF file.")
    return structure


def calculated_structure_factors(
    structure: xray.structure, wavelength: float, d_min: float, anomalous: bool = True
) -> miller.array:
    """Complex structure factors, Friedel mates apart.

    f' and f'' are those of Henke, Gullikson and Davis (1993). The sum is direct: at usual settings
    the Fourier transform of a model density is wrong by 1 % of |F|^2, which is as much as the error
    of good data.

    Parameters
    ----------
    structure : xray.structure
    wavelength, d_min : float
        Angstrom.
    anomalous : bool
        If False, f'' is left out and Friedel mates are one reflection.
    """
    atoms = structure.deep_copy_scatterers()
    atoms.set_inelastic_form_factors(wavelength, "henke")
    if not anomalous:
        for scatterer in atoms.scatterers():
            scatterer.fdp = 0.0
    return atoms.structure_factors(
        d_min=d_min, anomalous_flag=anomalous, algorithm="direct"
    ).f_calc()


def sites_of(structure: xray.structure, element: str = "S") -> FloatArray:
    """Fractional coordinates (n, 3) of the atoms of an element.

    Raises ValueError if there are none.
    """
    sites = [s.site for s in structure.scatterers() if s.element_symbol() == element]
    if not sites:
        raise ValueError(f"The structure has no atoms of {element}.")
    return np.array(sites)


def merged_friedel_apart(scaled: miller.array) -> miller.array:
    """Merged intensities of scaled ones, Friedel mates apart; sigmas are those of the weighted
    means.
    """
    apart = scaled.customized_copy(anomalous_flag=True)
    merged = apart.merge_equivalents(use_internal_variance=False).array()
    return merged.set_observation_type_xray_intensity()


def amplitudes(merged: miller.array) -> miller.array:
    """|F| of merged intensities after French and Wilson, Acta Cryst. A34 (1978) 517."""
    log = io.StringIO()
    result = merged.french_wilson(log=log)
    logger.debug(log.getvalue())
    return result.set_observation_type_xray_amplitude()


def agreement(merged: miller.array, true: miller.array, n_bins: int = 10) -> Agreement:
    """Merged intensities compared with the true ones.

    Parameters
    ----------
    merged : miller.array
        Intensities, Friedel mates apart.
    true : miller.array
        Amplitudes of the known structure, Friedel mates apart.
    n_bins : int
        The number of resolution shells.

    Raises
    ------
    ValueError
        If they have no reflection in common.
    """
    observed, known = merged.map_to_asu().common_sets(
        true.customized_copy(crystal_symmetry=merged.crystal_symmetry()).map_to_asu()
    )
    if observed.size() == 0:
        raise ValueError(
            "The data and the known structure have no reflection in common; do they have the same "
            "setting of the space group?"
        )
    observed.setup_binner(n_bins=n_bins)
    binner = observed.binner()
    limits = np.array([binner.bin_d_range(i) for i in binner.range_used()], dtype=np.float64)

    def in_shells(array: miller.array) -> NDArray[np.int64]:
        d = array.d_spacings().data().as_numpy_array()
        # limits fall, so their negatives rise; the last shell holds whatever lies beyond
        return np.minimum(np.searchsorted(-limits[:, 1], -d), len(limits) - 1)

    shells = in_shells(observed)
    i_observed = observed.data().as_numpy_array()
    i_true = known.data().as_numpy_array() ** 2
    cc, counts = _shell_correlations(i_observed, i_true, shells, len(limits))
    r = np.full(len(limits), np.nan)
    for shell in np.flatnonzero(counts):
        o, t = i_observed[shells == shell], i_true[shells == shell]
        r[shell] = np.abs(o - t * (o @ t) / (t @ t)).sum() / o.sum()

    differences, true_differences = (
        amplitudes(observed).anomalous_differences().common_sets(known.anomalous_differences())
    )
    cc_anomalous, n_pairs = _shell_correlations(
        differences.data().as_numpy_array(),
        true_differences.data().as_numpy_array(),
        in_shells(differences),
        len(limits),
    )
    return Agreement(
        cc_intensities=_weighted_mean(cc, counts),
        r_intensities=_weighted_mean(r, counts),
        cc_anomalous=_weighted_mean(cc_anomalous, n_pairs),
        n_reflections=int(counts.sum()),
        n_pairs=int(n_pairs.sum()),
        by_resolution={
            "d_max": limits[:, 0],
            "d_min": limits[:, 1],
            "cc_intensities": cc,
            "r_intensities": r,
            "cc_anomalous": cc_anomalous,
        },
    )


def _shell_correlations(
    a: FloatArray, b: FloatArray, shells: NDArray[np.int64], n: int
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Pearson's correlation (n,) of a and b in each shell, NaN below FEWEST; numbers of values
    (n,).
    """
    cc = np.full(n, np.nan)
    counts = np.bincount(shells, minlength=n)
    for shell in np.flatnonzero(counts >= FEWEST):
        here = shells == shell
        cc[shell] = np.corrcoef(a[here], b[here])[0, 1]
    return cc, counts


def _weighted_mean(values: FloatArray, weights: NDArray[np.int64]) -> float:
    good = np.isfinite(values)
    return float(np.average(values[good], weights=weights[good])) if good.any() else float("nan")


def anomalous_peak_heights(
    observed: miller.array, phased: miller.array, sites: FloatArray
) -> FloatArray:
    """Density (n,) at sites in the anomalous difference map, in sigma of the map.

    The coefficients of the map are (|F+| - |F-|) exp(i (phi - 90 degrees)). Anomalous scatterers
    are positive in it (Kraut, J. Mol. Biol. 35 (1968) 511).

    Parameters
    ----------
    observed : miller.array
        Amplitudes, Friedel mates apart.
    phased : miller.array
        Complex structure factors without f''. Their phases are phi.
    sites : array (n, 3)
        Fractional coordinates.

    Raises
    ------
    ValueError
        If there are no pairs with a phase.
    """
    differences = observed.map_to_asu().anomalous_differences()
    differences, phased = differences.common_sets(
        phased.customized_copy(crystal_symmetry=observed.crystal_symmetry()).map_to_asu()
    )
    if differences.size() == 0:
        raise ValueError("The data have no pair of Friedel mates with a phase: there is no map.")
    coefficients = differences.phase_transfer(phase_source=phased)
    coefficients = coefficients.customized_copy(data=coefficients.data() * -1j)
    fft_map = coefficients.fft_map(resolution_factor=0.2).apply_sigma_scaling()
    density = fft_map.real_map_unpadded()
    return np.array([density.tricubic_interpolation(tuple(site)) for site in sites])
