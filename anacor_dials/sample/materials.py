"""Materials: labels, names, and linear attenuation coefficients from composition and energy.

Attenuation coefficients are total cross-sections (photoelectric, Rayleigh, Compton) of xraylib
(Schoonjans et al., Spectrochim. Acta B 66 (2011) 776): mu = rho * sum_i w_i (mu/rho)_i. Lengths are
in um, mu in 1/um, densities in g/cm3, energies in keV.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from anacor_dials.sample.frames import FloatArray

KEV_ANGSTROM = 12.398419843320026  # h c / e, CODATA 2018 (exact)
UM_PER_CM = 1.0e4
# Relative difference of energies that count as the same: mu ~ E^-3 then changes by less than 1 %.
ENERGY_TOLERANCE = 0.002

# Mean composition of a residue, from the frequencies of amino acids in UniProt; the density of
# protein, 1.35 g/cm3, is that of Matthews (J. Mol. Biol. 33 (1968) 491: 0.74 cm3/g).
PROTEIN = "C4.94H7.76N1.36O1.48S0.04"
PROTEIN_DENSITY = 1.35

# The usual materials of loops, formula and g/cm3: polyimide (Kapton), nylon 6.
POLYIMIDE = ("C22H10N2O5", 1.42)
NYLON = ("C6H11NO", 1.14)


def energy_from_wavelength(wavelength_angstrom: float) -> float:
    """The photon energy of a wavelength in Angstrom, keV. Raises ValueError unless it is > 0.

    >>> round(energy_from_wavelength(4.13), 3)
    3.002
    """
    if not (math.isfinite(wavelength_angstrom) and wavelength_angstrom > 0):
        raise ValueError(f"The wavelength is {wavelength_angstrom} A; it must be a length > 0.")
    return KEV_ANGSTROM / wavelength_angstrom


def wavelength_from_energy(energy_keV: float) -> float:
    """The wavelength of a photon energy in keV, Angstrom. Raises ValueError unless it is > 0.

    >>> round(wavelength_from_energy(12.398), 4)
    1.0
    """
    if not (math.isfinite(energy_keV) and energy_keV > 0):
        raise ValueError(f"The photon energy is {energy_keV} keV; it must be > 0.")
    return KEV_ANGSTROM / energy_keV


@dataclass(frozen=True)
class Composition:
    """The elements of a material and its density.

    Parameters
    ----------
    mass_fractions : mapping of atomic number to float
        Mass fractions, >= 0; they are normalised to a sum of one.
    density_g_cm3 : float
        g/cm3, between 0 and 30.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    mass_fractions: Mapping[int, float]
    density_g_cm3: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.density_g_cm3) and 0 < self.density_g_cm3 < 30):
            raise ValueError(
                f"The density is {self.density_g_cm3} g/cm3; solids and liquids lie between 0 and 30."
            )
        total = sum(self.mass_fractions.values())
        if not total > 0 or min(self.mass_fractions.values()) < 0:
            raise ValueError("The mass fractions of a composition must be >= 0 and not all zero.")
        object.__setattr__(
            self, "mass_fractions", {z: w / total for z, w in sorted(self.mass_fractions.items())}
        )

    @classmethod
    def parse(cls, text: str, density_g_cm3: float) -> Composition:
        """The composition of a formula, or of a mixture.

        Parameters
        ----------
        text : str
            A formula (``"C22H10N2O5"``), the name of a NIST compound (``"Kapton Polyimide Film"``),
            or a mixture with mass fractions (``"0.70 H2O + 0.29 C3H8O3 + 0.01 NaCl"``), which are
            normalised to a sum of one.
        density_g_cm3 : float

        Raises
        ------
        ValueError
            If the text is neither of these.
        """
        fractions: dict[int, float] = {}
        for part in text.split("+"):
            match = re.fullmatch(r"\s*(?:(\d*\.?\d+)\s+)?(\S.*?)\s*", part)
            if match is None:
                raise ValueError(f"The composition {text!r} has an empty part.")
            weight = float(match.group(1) or 1.0)
            for z, w in _compound_mass_fractions(match.group(2)).items():
                fractions[z] = fractions.get(z, 0.0) + weight * w
        return cls(fractions, density_g_cm3)

    def mixed_by_volume(self, other: Composition, volume_fraction: float) -> Composition:
        """The mixture with a volume fraction (0 to 1) of another; volumes are additive."""
        if not 0 <= volume_fraction <= 1:
            raise ValueError(f"The volume fraction is {volume_fraction}; it lies between 0 and 1.")
        mass_self = (1 - volume_fraction) * self.density_g_cm3
        mass_other = volume_fraction * other.density_g_cm3
        elements = {*self.mass_fractions, *other.mass_fractions}
        return Composition(
            {
                z: mass_self * self.mass_fractions.get(z, 0.0)
                + mass_other * other.mass_fractions.get(z, 0.0)
                for z in elements
            },
            mass_self + mass_other,
        )

    @cached_property
    def formula(self) -> str:
        """A formula with atomic fractions that xraylib can read."""
        import xraylib

        moles = {z: w / xraylib.AtomicWeight(z) for z, w in self.mass_fractions.items() if w > 0}
        total = sum(moles.values())
        return "".join(
            f"{xraylib.AtomicNumberToSymbol(z)}{n / total:.10f}" for z, n in moles.items()
        )

    def mu_per_um(self, energy_keV: float) -> float:
        """The linear attenuation coefficient at a photon energy in keV (0.1 to 800), 1/um."""
        import xraylib

        _check_energy(energy_keV)
        cross_section = sum(
            w * xraylib.CS_Total(z, energy_keV) for z, w in self.mass_fractions.items() if w > 0
        )
        return float(cross_section) * self.density_g_cm3 / UM_PER_CM

    def refractive_index(self, energy_keV: float) -> tuple[float, float]:
        """delta and beta of the refractive index 1 - delta + i beta at a photon energy in keV.

        beta = mu * wavelength / (4 pi).
        """
        import xraylib

        _check_energy(energy_keV)
        real = xraylib.Refractive_Index_Re(self.formula, energy_keV, self.density_g_cm3)
        wavelength_um = wavelength_from_energy(energy_keV) * 1e-4
        return 1.0 - real, self.mu_per_um(energy_keV) * wavelength_um / (4 * math.pi)


def _check_energy(energy_keV: float) -> None:
    if not (math.isfinite(energy_keV) and 0.1 <= energy_keV <= 800):
        raise ValueError(
            f"The photon energy is {energy_keV} keV; attenuation is tabulated from 0.1 to 800 keV."
        )


def _compound_mass_fractions(formula: str) -> dict[int, float]:
    import xraylib

    try:
        parsed = xraylib.CompoundParser(formula)
    except ValueError:
        try:
            parsed = xraylib.GetCompoundDataNISTByName(formula)
        except ValueError:
            raise ValueError(
                f"{formula!r} is neither a chemical formula (such as C22H10N2O5) nor a compound "
                "of the NIST table (such as Kapton Polyimide Film)."
            ) from None
    return dict(zip(parsed["Elements"], parsed["massFractions"], strict=True))


def formula_unit(formula: str) -> tuple[float, float]:
    """The molar mass, g/mol, and the number of electrons of one formula unit, such as NaCl.

    Raises ValueError for a text that is no chemical formula.

    >>> mass, electrons = formula_unit("NaCl")
    >>> round(mass), electrons
    (58, 28.0)
    """
    import xraylib

    try:
        parsed = xraylib.CompoundParser(formula.strip())
    except ValueError:
        raise ValueError(f"{formula!r} is no chemical formula, such as C22H10N2O5.") from None
    electrons = sum(z * n for z, n in zip(parsed["Elements"], parsed["nAtoms"], strict=True))
    return float(parsed["molarMass"]), float(electrons)


def protein_crystal(solvent_content: float, solvent: Composition | None = None) -> Composition:
    """The composition of a protein crystal: mean protein and solvent.

    Parameters
    ----------
    solvent_content : float
        The volume fraction of the solvent, 0 to 1.
    solvent : Composition, optional
        Water by default.
    """
    protein = Composition.parse(PROTEIN, PROTEIN_DENSITY)
    return protein.mixed_by_volume(solvent or Composition.parse("H2O", 1.0), solvent_content)


@dataclass(frozen=True)
class Material:
    """One material of a labelled volume, at one photon energy.

    Parameters
    ----------
    label : int
        Its value in the volume.
    name : str
    mu_per_um : float
        1/um, 0 to 10.
    origin : str
        Where mu comes from, for the log.

    Raises
    ------
    ValueError
        If mu is out of range.
    """

    label: int
    name: str
    mu_per_um: float
    origin: str = "given"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mu_per_um) and self.mu_per_um >= 0):
            raise ValueError(
                f"The absorption coefficient of {self.name} is {self.mu_per_um} /um; give it as "
                f"materials.{self.name}.mu= (1/um, >= 0), as materials.{self.name}.formula= and density=, or "
                "in the file (/entry/segmentation/mu)."
            )
        if self.mu_per_um > 10:
            raise ValueError(
                f"The absorption coefficient of {self.name} is {self.mu_per_um:g} /um "
                f"({1e3 * self.mu_per_um:g} /mm); it is given in 1/um, where protein at 3 keV has 0.02."
            )


def mu_by_label(materials: Sequence[Material]) -> FloatArray:
    """mu (n,) of materials by label, 1/um.

    Raises ValueError unless every label from 0 to n - 1 has exactly one material.
    """
    if sorted(m.label for m in materials) != list(range(len(materials))):
        raise ValueError(
            "The materials' labels are "
            + ", ".join(str(m.label) for m in materials)
            + "; every label from 0 on needs one material."
        )
    mu = np.empty(len(materials))
    for material in materials:
        mu[material.label] = material.mu_per_um
    return mu


@dataclass(frozen=True)
class MaterialInput:
    """What a user gives for one material; None for what is not given.

    Parameters
    ----------
    mu_per_um : float, optional
        mu at the energy of the beam, 1/um.
    formula : str, optional
        See :meth:`Composition.parse`.
    density_g_cm3 : float, optional
    solvent_content : float, optional
        The volume fraction of the solvent of a protein crystal.
    """

    mu_per_um: float | None = None
    formula: str | None = None
    density_g_cm3: float | None = None
    solvent_content: float | None = None

    def composition(self, name: str) -> Composition | None:
        """The composition that was given, or None.

        Raises ValueError if there is a formula without a density, or the other way round.
        """
        if self.formula is not None:
            if self.density_g_cm3 is None:
                raise ValueError(
                    f"materials.{name}.formula={self.formula} needs materials.{name}.density= (g/cm3)."
                )
            return Composition.parse(self.formula, self.density_g_cm3)
        if self.density_g_cm3 is not None:
            raise ValueError(f"materials.{name}.density needs materials.{name}.formula= as well.")
        if self.solvent_content is not None:
            return protein_crystal(self.solvent_content)
        return None


def typical_composition(name: str) -> Composition | None:
    """The usual composition of a material of this name, or None: for mu against energy.

    crystal: protein with 50 % solvent, near the mean of 47 % (Matthews, J. Mol. Biol. 33 (1968)
    491). liquor: water. loop: Kapton.
    """
    if name == "crystal":
        return protein_crystal(0.5)
    if name == "liquor":
        return Composition.parse("H2O", 1.0)
    if name == "loop":
        return Composition.parse(*POLYIMIDE)
    return None


def materials_at(
    energy_keV: float,
    names: Sequence[str],
    given: Mapping[str, MaterialInput],
    file_mu_per_um: Sequence[float] | FloatArray | None = None,
    file_energy_keV: float | None = None,
) -> list[Material]:
    """The materials of a labelled volume at the energy of the beam, and where each mu comes from.

    mu is taken as given; else from the given composition; else from the file. A mu of the file that
    holds at another energy is multiplied by the ratio of mu(E) of the typical composition of its
    name. The background has mu = 0 unless another value is given.

    Parameters
    ----------
    energy_keV : float
        The energy of the beam.
    names : sequence of n_labels str
    given : mapping of name to MaterialInput
    file_mu_per_um : array (n_labels,), optional
        mu in the file, 1/um; NaN where it has none.
    file_energy_keV : float, optional
        The energy at which the mu of the file hold.

    Raises
    ------
    ValueError
        For names that the volume does not have, and for materials without any mu.
    """
    for name in given:
        if name not in names:
            raise ValueError(
                f"materials.{name} was given, but the labels are {', '.join(names)}; "
                "name one of these."
            )
    materials = []
    for label, name in enumerate(names):
        said = given.get(name, MaterialInput())
        composition = said.composition(name)
        in_file = math.nan if file_mu_per_um is None else float(file_mu_per_um[label])
        if said.mu_per_um is not None:
            materials.append(Material(label, name, said.mu_per_um, "given"))
            continue
        if composition is not None:
            mu = composition.mu_per_um(energy_keV)
            origin = f"composition at {energy_keV:.4g} keV"
            materials.append(Material(label, name, mu, origin))
            continue
        if math.isnan(in_file) and label == 0:
            materials.append(Material(label, name, 0.0, "air or vacuum"))
            continue
        origin = "file"
        if (
            in_file > 0
            and file_energy_keV is not None
            and abs(file_energy_keV / energy_keV - 1) > ENERGY_TOLERANCE
        ):
            composition = typical_composition(name)
            if composition is None:
                raise ValueError(
                    f"The file's mu of {name} belongs to {file_energy_keV:.4g} keV and the beam has "
                    f"{energy_keV:.4g} keV; give materials.{name}.mu= or its formula and density."
                )
            in_file *= composition.mu_per_um(energy_keV) / composition.mu_per_um(file_energy_keV)
            origin = (
                f"file, {file_energy_keV:.4g} keV, rescaled to {energy_keV:.4g} keV "
                "as the typical composition of its name"
            )
        materials.append(Material(label, name, in_file, origin))
    return materials
