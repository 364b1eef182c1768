"""Materials whose mu was fitted to the projections."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anacor_dials.absorption.coefficients.fit import CoefficientFit
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.materials import Material, MaterialInput, materials_at


def materials_from_fit(
    fit: CoefficientFit,
    energy_keV: float,
    given: Mapping[str, MaterialInput],
    file_mu_per_um: FloatArray | None = None,
    file_energy_keV: float | None = None,
    before_file: bool = False,
) -> list[Material]:
    """The materials at an energy: as given, from the projections, or from the labels' file.

    A material in `given` is always as given. Else mu is that of the file, and that of the fit where
    the file has none; with before_file the fit comes first. A mu that holds at another energy is
    rescaled by composition, see :func:`anacor_dials.sample.materials.materials_at`.

    Parameters
    ----------
    fit : CoefficientFit
    energy_keV : float
    given : mapping of name to MaterialInput
    file_mu_per_um : array (n_labels,), optional
        mu in the labels' file, 1/um; NaN where it has none.
    file_energy_keV : float, optional
        The energy at which the file's mu holds.
    before_file : bool
        Whether the fit comes before the file.

    Raises
    ------
    ValueError
        If a material has no mu at all, or it cannot be rescaled.
    """
    n = len(fit.names)
    in_file = np.full(n, np.nan) if file_mu_per_um is None else np.array(file_mu_per_um, float)
    wanted = fit.usable & (np.isnan(in_file) | before_file)
    wanted[0] = False
    for label, name in enumerate(fit.names):
        wanted[label] &= name not in given
    # materials whose mu comes from the other list are set to 0 here, which is never refused
    scan_energy = fit.energy_keV
    from_fit = materials_at(
        energy_keV, fit.names, {}, np.where(wanted, fit.mu_per_um, 0), scan_energy
    )
    others = materials_at(
        energy_keV, fit.names, given, np.where(wanted, 0, in_file), file_energy_keV
    )
    materials = []
    for label, (fitted, other) in enumerate(zip(from_fit, others, strict=True)):
        if not wanted[label]:
            materials.append(other)
            continue
        ratio = fitted.mu_per_um / fit.mu_per_um[label] if fit.mu_per_um[label] > 0 else 1.0
        error = ratio * fit.standard_error_per_um[label]
        # the origin reads "file, 4 keV, rescaled to ..." if mu was rescaled
        rescaled = fitted.origin.partition(", rescaled")
        at = "" if scan_energy is None else f" at {scan_energy:.4g} keV"
        origin = f"projections{at}, +- {error:.6f} /um{''.join(rescaled[1:])}"
        if any(fit.names[label] in pair for pair in fit.not_told_apart):
            pair = next(p for p in fit.not_told_apart if fit.names[label] in p)
            origin += f"; not told apart from {pair[1 - pair.index(fit.names[label])]}"
        materials.append(Material(label, fitted.name, fitted.mu_per_um, origin))
    return materials
