"""Attenuation against a table worked out before the program, xraylib's own functions, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anacor_dials.sample import materials
from anacor_dials.sample.materials import (
    Composition,
    Material,
    MaterialInput,
    materials_at,
    mu_by_label,
    protein_crystal,
)

xraylib = pytest.importorskip("xraylib")

WATER = Composition.parse("H2O", 1.0)
KAPTON = Composition.parse("C22H10N2O5", 1.42)

# 1/um, from xraylib 4.3: rounded to 1e-5, except for the liquor's density (1.068 g/cm3), which the
# table does not say and which is known to half a percent
ENERGIES_KEV = (3.0, 3.5, 4.0, 6.0)
TABLE = {
    "water": (0.01928, 0.01228, 0.00828, 0.00246),
    "crystal": (0.01869, 0.01191, 0.00802, 0.00239),
    "liquor": (0.02027, 0.01296, 0.00874, 0.00262),
    "kapton": (0.01683, 0.01063, 0.00712, 0.00209),
}
MATERIALS = {
    "water": (WATER, 0.0),
    "crystal": (protein_crystal(0.45), 0.0),
    "liquor": (Composition.parse("0.699 H2O + 0.29 C3H8O3 + 0.011 NaCl", 1.068), 0.005),
    "kapton": (KAPTON, 0.0),
}


@pytest.mark.parametrize("name", TABLE)
def test_long_wavelength_table(name):
    composition, relative = MATERIALS[name]
    for energy, mu in zip(ENERGIES_KEV, TABLE[name], strict=True):
        assert composition.mu_per_um(energy) == pytest.approx(mu, rel=relative, abs=0.51e-5)


@pytest.mark.parametrize("energy_keV", [0.5, 2.0, 2.85, 12.4, 60.0, 300.0])
@pytest.mark.parametrize("formula", ["H2O", "NaCl", "C22H10N2O5", "(NH4)2SO4"])
def test_compounds_against_xraylibs_own_function(formula, energy_keV):
    density = 1.7
    expected = xraylib.CS_Total_CP(formula, energy_keV) * density / 1e4
    assert Composition.parse(formula, density).mu_per_um(energy_keV) == pytest.approx(expected)


def test_attenuation_is_proportional_to_density():
    assert Composition.parse("H2O", 0.5).mu_per_um(4) == pytest.approx(WATER.mu_per_um(4) / 2)


def test_a_chlorine_edge_is_seen():
    salt = Composition.parse("NaCl", 2.17)
    assert salt.mu_per_um(2.83) > 2 * salt.mu_per_um(2.81)


def test_a_mixture_by_mass_adds_mass_attenuation():
    mixture = Composition.parse("70 H2O + 30 C3H8O3", 1.08)
    by_hand = 0.7 * xraylib.CS_Total_CP("H2O", 3.5) + 0.3 * xraylib.CS_Total_CP("C3H8O3", 3.5)
    assert mixture.mu_per_um(3.5) == pytest.approx(by_hand * 1.08 / 1e4)
    # fractions are relative
    again = Composition.parse("0.07 H2O + .03 C3H8O3", 1.08)
    assert again.mass_fractions == pytest.approx(mixture.mass_fractions)


def test_parts_without_a_fraction_are_equal():
    mixture = Composition.parse("H2O + NaCl", 1.0)
    assert mixture.mass_fractions[17] == pytest.approx(0.5 * 35.45 / 58.44, rel=1e-3)


def test_a_mixture_by_volume_adds_linear_attenuation():
    mixture = WATER.mixed_by_volume(KAPTON, 0.25)
    expected = 0.75 * WATER.mu_per_um(4) + 0.25 * KAPTON.mu_per_um(4)
    assert mixture.mu_per_um(4) == pytest.approx(expected)
    assert mixture.density_g_cm3 == pytest.approx(0.75 * 1 + 0.25 * 1.42)


def test_a_crystal_without_protein_is_its_solvent():
    assert protein_crystal(1.0).mu_per_um(4) == pytest.approx(WATER.mu_per_um(4))
    brine = Composition.parse("0.9 H2O + 0.1 NaCl", 1.07)
    assert protein_crystal(1.0, brine).mu_per_um(4) == pytest.approx(brine.mu_per_um(4))
    assert protein_crystal(0.0).density_g_cm3 == pytest.approx(1.35)


def test_a_compound_of_the_nist_table():
    kapton = Composition.parse("Kapton Polyimide Film", 1.42)
    assert kapton.mu_per_um(4) == pytest.approx(KAPTON.mu_per_um(4), rel=1e-3)


@pytest.mark.parametrize("energy_keV", [3.0, 4.0, 12.0])
def test_beta_is_mu_wavelength_over_four_pi(energy_keV):
    _, beta = WATER.refractive_index(energy_keV)
    wavelength_um = 12.398419843 / energy_keV * 1e-4
    assert beta == pytest.approx(WATER.mu_per_um(energy_keV) * wavelength_um / (4 * math.pi))
    assert beta == pytest.approx(xraylib.Refractive_Index_Im("H2O", energy_keV, 1.0), rel=1e-4)


def test_delta_far_from_edges_is_that_of_free_electrons():
    # delta = r_e wavelength^2 n_e / 2 pi, ten electrons in a molecule of water
    electrons_per_m3 = 10 * 6.02214076e23 / 18.015 * 1e6
    wavelength = 12.398419843e-10 / 20.0
    expected = 2.8179403e-15 * wavelength**2 * electrons_per_m3 / (2 * math.pi)
    assert WATER.refractive_index(20.0)[0] == pytest.approx(expected, rel=2e-3)


def test_wavelength_and_energy():
    assert materials.energy_from_wavelength(1.0) == pytest.approx(12.39841984)
    assert materials.wavelength_from_energy(3.0) == pytest.approx(4.13280661)
    assert materials.wavelength_from_energy(materials.energy_from_wavelength(2.7)) == 2.7


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_wavelengths_and_energies_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match="wavelength is .* A; it must be a length > 0"):
        materials.energy_from_wavelength(value)
    with pytest.raises(ValueError, match="photon energy is .* keV; it must be > 0"):
        materials.wavelength_from_energy(value)


@pytest.mark.parametrize("energy_keV", [0.05, 900, math.nan])
def test_energies_beyond_the_tables_are_refused(energy_keV):
    for function in (WATER.mu_per_um, WATER.refractive_index):
        with pytest.raises(ValueError, match=r"keV; attenuation is tabulated from 0\.1 to 800"):
            function(energy_keV)


@pytest.mark.parametrize("formula", ["Xx2", "water", "h2o", "(H2O", "-0.5 NaCl", "H2O, NaCl"])
def test_what_is_no_formula_is_refused(formula):
    with pytest.raises(ValueError, match="neither a chemical formula"):
        Composition.parse(formula, 1.0)


@pytest.mark.parametrize("text", ["", " ", "H2O +", "+ H2O"])
def test_an_empty_part_is_refused(text):
    with pytest.raises(ValueError, match="has an empty part"):
        Composition.parse(text, 1.0)


def test_fractions_that_are_all_zero_are_refused():
    with pytest.raises(ValueError, match="not all zero"):
        Composition.parse("0 H2O", 1.0)
    with pytest.raises(ValueError, match="must be >= 0"):
        Composition({1: 1.0, 8: -0.1}, 1.0)


@pytest.mark.parametrize("density", [0, -1.0, 40, math.nan])
def test_densities_of_no_solid_or_liquid_are_refused(density):
    with pytest.raises(ValueError, match="density is .* g/cm3; solids and liquids"):
        Composition.parse("H2O", density)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_volume_fractions_beyond_one_are_refused(fraction):
    with pytest.raises(ValueError, match="volume fraction is"):
        protein_crystal(fraction)


# ---- one material ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [math.nan, math.inf, -0.01])
def test_an_unknown_mu_is_refused_with_the_way_out(mu):
    with pytest.raises(ValueError, match=r"of liquor is .* /um; give it as materials\.liquor\.mu="):
        Material(1, "liquor", mu)


def test_a_mu_in_the_wrong_unit_is_refused():
    with pytest.raises(ValueError, match=r"of crystal is 19\.26 /um \(19260 /mm\)"):
        Material(3, "crystal", 19.26)


def test_mu_by_label():
    found = mu_by_label([Material(2, "crystal", 0.3), Material(0, "air", 0.0), Material(1, "b", 2)])
    np.testing.assert_array_equal(found, [0.0, 2.0, 0.3])


@pytest.mark.parametrize("labels", [(0, 2), (0, 1, 1), (1, 2)])
def test_labels_with_a_gap_or_twice_are_refused(labels):
    with pytest.raises(ValueError, match="every label from 0 on needs one material"):
        mu_by_label([Material(label, f"m{label}", 0.1) for label in labels])


# ---- where each mu comes from ---------------------------------------------------------------------

NAMES = ("background", "liquor", "loop", "crystal")
IN_FILE = [math.nan, 0.0201, 0.0168, 0.0192]


def found(given, names=NAMES, in_file=IN_FILE, file_energy=3.0, energy=3.0):
    return materials_at(energy, names, given, in_file, file_energy)


def test_what_is_said_goes_before_what_is_in_the_file():
    given = {
        "liquor": MaterialInput(mu_per_um=0.5),
        "loop": MaterialInput(formula="C22H10N2O5", density_g_cm3=1.42),
        "crystal": MaterialInput(mu_per_um=0.03, solvent_content=0.5),
    }
    background, liquor, loop, crystal = found(given)
    assert (background.mu_per_um, background.origin) == (0.0, "air or vacuum")
    assert (liquor.mu_per_um, liquor.origin) == (0.5, "given")
    assert loop.mu_per_um == pytest.approx(KAPTON.mu_per_um(3.0))
    assert loop.origin == "composition at 3 keV"
    assert crystal.mu_per_um == 0.03
    assert [m.label for m in (background, liquor, loop, crystal)] == [0, 1, 2, 3]


def test_what_is_not_said_is_in_the_file():
    assert [m.mu_per_um for m in found({})] == [0.0, 0.0201, 0.0168, 0.0192]
    assert {m.origin for m in found({})[1:]} == {"file"}
    # without an energy the file's values are taken as they are
    assert [m.mu_per_um for m in found({}, file_energy=None, energy=12.0)][1:] == IN_FILE[1:]


def test_a_protein_crystal_by_its_solvent_content():
    crystal = found({"crystal": MaterialInput(solvent_content=0.45)})[3]
    assert crystal.mu_per_um == pytest.approx(0.01869, abs=0.51e-5)


def test_mu_of_another_energy_is_rescaled():
    background, liquor, loop, crystal = found({}, energy=4.0)
    assert background.mu_per_um == 0
    assert liquor.mu_per_um == pytest.approx(0.0201 * WATER.mu_per_um(4) / WATER.mu_per_um(3))
    assert loop.mu_per_um == pytest.approx(0.0168 * KAPTON.mu_per_um(4) / KAPTON.mu_per_um(3))
    half = protein_crystal(0.5)
    assert crystal.mu_per_um == pytest.approx(0.0192 * half.mu_per_um(4) / half.mu_per_um(3))
    assert crystal.origin.startswith("file, 3 keV, rescaled to 4 keV")
    # a difference within the bandwidth of a monochromator is none
    assert found({}, energy=3.003)[1].mu_per_um == 0.0201


def test_a_material_of_unknown_kind_is_not_rescaled():
    names = ("background", "oil", "loop", "crystal")
    with pytest.raises(
        ValueError, match=r"mu of oil belongs to 3 keV and the beam has 4 keV; give"
    ):
        found({}, names, energy=4.0)
    assert found({"oil": MaterialInput(mu_per_um=0.01)}, names, energy=4.0)[1].mu_per_um == 0.01


@pytest.mark.parametrize("in_file", [None, [0, 0.02, math.nan, 0.02]])
def test_a_material_without_mu_is_refused(in_file):
    given = {"liquor": MaterialInput(mu_per_um=0.02)}
    with pytest.raises(ValueError, match=r"of loop is nan /um; give it as materials\.loop\.mu="):
        found(given, in_file=in_file)


def test_half_a_composition_is_refused():
    with pytest.raises(ValueError, match=r"loop\.formula=H2O needs materials\.loop\.density="):
        found({"loop": MaterialInput(formula="H2O")})
    with pytest.raises(ValueError, match=r"loop\.density needs materials\.loop\.formula="):
        found({"loop": MaterialInput(density_g_cm3=1.4)})


def test_a_material_that_is_not_in_the_volume_is_refused():
    with pytest.raises(ValueError, match="materials.oil was given, but the labels are background"):
        found({"oil": MaterialInput(mu_per_um=0.01)})
