"""Data held against a known structure: closed forms for noise, direct summation for the map."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cctbx", reason="needs cctbx")
pytest.importorskip("dials", reason="needs DIALS")

from cctbx import crystal, miller, xray
from cctbx.array_family import flex

from anacor_dials.diffraction.known_structure import (
    agreement,
    amplitudes,
    anomalous_peak_heights,
    calculated_structure_factors,
    merged_friedel_apart,
    read_structure,
    sites_of,
)

WAVELENGTH, D_MIN = 4.0, 2.6


@pytest.fixture(scope="module")
def structure() -> xray.structure:
    """60 carbons and 4 sulfurs in a chiral cell without an inversion that maps it onto itself."""
    rng = np.random.default_rng(3)
    symmetry = crystal.symmetry((22.0, 25.0, 31.0, 90, 90, 90), "P 21 21 21")
    atoms = xray.structure(crystal_symmetry=symmetry)
    for i, site in enumerate(rng.random((64, 3))):
        element = "S" if i < 4 else "C"
        atoms.add_scatterer(
            xray.scatterer(element, site=tuple(site), b=15.0, scattering_type=element)
        )
    return atoms


@pytest.fixture(scope="module")
def true(structure) -> miller.array:
    return abs(calculated_structure_factors(structure, WAVELENGTH, D_MIN))


@pytest.fixture(scope="module")
def phased(structure) -> miller.array:
    return calculated_structure_factors(structure, WAVELENGTH, D_MIN, anomalous=False)


def measured(true: miller.array, error: np.ndarray, sigma: np.ndarray) -> miller.array:
    """Intensities with an error and its standard deviation, as merged data are."""
    intensities = true.as_intensity_array()
    return intensities.customized_copy(
        data=intensities.data() + flex.double(np.ascontiguousarray(error)),
        sigmas=flex.double(np.ascontiguousarray(sigma)),
    ).set_observation_type_xray_intensity()


def direct_sum(structure, indices: np.ndarray, with_fdp: bool) -> np.ndarray:
    """F of Miller indices (n, 3): sum f exp(-B s^2) exp(2 pi i h x) over all atoms of the cell, by numpy."""
    cell, group = structure.unit_cell(), structure.space_group()
    stol_sq = np.array([cell.stol_sq(tuple(int(i) for i in h)) for h in indices])
    registry = structure.scattering_type_registry()
    f0 = {
        name: np.array([registry.gaussian_not_optional(name).at_stol_sq(q) for q in stol_sq])
        for name in ("C", "S")
    }
    total = np.zeros(len(indices), dtype=complex)
    for s in structure.scatterers():
        f = f0[s.scattering_type] + s.fp + (1j * s.fdp if with_fdp else 0)
        f = f * np.exp(-8 * np.pi**2 * s.u_iso * stol_sq)
        for op in group:
            site = np.array(op * s.site)
            total += f * np.exp(2j * np.pi * indices @ site)
    return total


def test_amplitudes_are_those_of_direct_summation(structure, true) -> None:
    atoms = structure.deep_copy_scatterers()
    atoms.set_inelastic_form_factors(WAVELENGTH, "henke")
    some = true.select(flex.size_t(range(0, true.size(), 59)))
    expected = np.abs(direct_sum(atoms, np.array(some.indices()), with_fdp=True))
    np.testing.assert_allclose(np.array(some.data()), expected, rtol=1e-4)


def test_perfect_data_agree_perfectly(true) -> None:
    """Whatever their scale, and whatever their temperature factor does between shells."""
    scale = 7.0 * np.exp(-0.5 * 3.0 * true.d_star_sq().data().as_numpy_array())
    intensities = np.array(true.data()) ** 2
    data = measured(true, (scale - 1) * intensities, 0.001 * scale * intensities)
    result = agreement(data, true, n_bins=20)
    assert result.cc_intensities > 0.999
    assert result.cc_anomalous > 0.99
    assert result.r_intensities < 0.02  # the temperature factor within a shell
    assert result.n_reflections == true.size()
    assert result.n_pairs == true.anomalous_differences().size()
    d_min = result.by_resolution["d_min"]
    assert len(d_min) == 20
    assert np.all(np.diff(d_min) < 0)


def test_noise_of_known_size(true) -> None:
    """CC = 1 / sqrt(1 + s^2) and R = s sqrt(2 / pi) <.> for noise s times the intensities' spread."""
    rng = np.random.default_rng(8)
    intensities = np.array(true.data()) ** 2
    s = 0.3
    spread = intensities.std()
    noise = s * spread * rng.standard_normal(len(intensities))
    data = measured(true, noise, np.full(len(noise), s * spread))
    result = agreement(data, true, n_bins=1)
    assert result.cc_intensities == pytest.approx(1 / np.sqrt(1 + s**2), abs=0.01)
    expected = s * spread * np.sqrt(2 / np.pi) / intensities.mean()
    assert result.r_intensities == pytest.approx(expected, rel=0.05)


def test_anomalous_differences_of_noise_are_noise(true) -> None:
    """Mean intensities without an anomalous signal agree as intensities, and not as differences."""
    mean = true.as_intensity_array().average_bijvoet_mates().generate_bijvoet_mates()
    rng = np.random.default_rng(4)
    flat, _ = mean.common_sets(true)
    noise = 0.02 * rng.standard_normal(flat.size()) * np.array(flat.data())
    data = flat.customized_copy(
        data=flat.data() + flex.double(noise), sigmas=0.02 * flat.data()
    ).set_observation_type_xray_intensity()
    result = agreement(data, true)
    assert result.cc_intensities > 0.99
    assert abs(result.cc_anomalous) < 4 / np.sqrt(result.n_pairs)


def test_merging_keeps_friedel_mates_apart(true) -> None:
    """Two observations of every reflection, in equivalent settings, with weights 1 : 3."""
    first = true.as_intensity_array()
    op = true.space_group()[1]
    turned = flex.miller_index(
        [
            tuple(int(i) for i in np.array(h) @ np.reshape(op.r().as_double(), (3, 3)))
            for h in first.indices()
        ]
    )
    both = miller.array(
        miller.set(true.crystal_symmetry(), first.indices().concatenate(turned), False),
        data=(first.data() * 1.1).concatenate(first.data() * 0.9),
        sigmas=flex.double(first.size(), np.sqrt(3)).concatenate(flex.double(first.size(), 1.0)),
    ).set_observation_type_xray_intensity()
    merged = merged_friedel_apart(both)
    a, b = merged.common_sets(first.map_to_asu())
    assert a.size() == first.size()
    np.testing.assert_allclose(np.array(a.data()), 0.95 * np.array(b.data()), rtol=1e-6)
    np.testing.assert_allclose(np.array(a.sigmas()), np.sqrt(3) / 2, rtol=1e-6)


def test_heights_are_those_of_direct_summation(structure, true, phased) -> None:
    """rho(x) = sum over all h of dF exp(i (phi - 90 deg)) exp(-2 pi i h x), in its own sigma, by numpy."""
    heights = anomalous_peak_heights(true, phased, sites_of(structure))
    assert heights.shape == (4,)
    atoms = structure.deep_copy_scatterers()
    atoms.set_inelastic_form_factors(WAVELENGTH, "henke")
    differences = true.anomalous_differences()
    whole = differences.expand_to_p1()  # half of reciprocal space: the other half is its conjugate
    h = np.array(whole.indices())
    f = direct_sum(atoms, h, with_fdp=False)
    plus = np.abs(direct_sum(atoms, h, with_fdp=True))
    minus = np.abs(direct_sum(atoms, -h, with_fdp=True))
    terms = (plus - minus) * np.exp(1j * (np.angle(f) - np.pi / 2))
    sigma = np.sqrt(2 * np.sum(np.abs(terms) ** 2))  # Parseval
    sites = np.array([s.site for s in structure.scatterers()][:4])
    density = 2 * np.real(np.exp(-2j * np.pi * sites @ h.T) @ terms)
    np.testing.assert_allclose(heights, density / sigma, rtol=0.01)


def test_sulfurs_stand_out_and_the_other_hand_does_not(structure, true, phased) -> None:
    heights = anomalous_peak_heights(true, phased, sites_of(structure))
    assert heights.min() > 5
    carbons = anomalous_peak_heights(true, phased, sites_of(structure, "C"))
    assert carbons.mean() < 0.3 * heights.mean()
    swapped = true.customized_copy(indices=-true.indices())
    np.testing.assert_allclose(
        anomalous_peak_heights(swapped, phased, sites_of(structure)), -heights, rtol=1e-6
    )


def test_amplitudes_of_weak_intensities_are_positive(true) -> None:
    rng = np.random.default_rng(2)
    sigma = np.full(true.size(), 0.5 * np.mean(np.array(true.data()) ** 2))
    data = measured(true, sigma * rng.standard_normal(true.size()), sigma)
    assert (np.array(data.data()) < 0).any()
    f = np.array(amplitudes(data).data())
    assert f.min() > 0


# ---- bad input -------------------------------------------------------------------------------------


def test_a_structure_that_is_none(tmp_path) -> None:
    (tmp_path / "empty.pdb").write_text("REMARK\n")
    with pytest.raises(ValueError, match="empty.pdb"):
        read_structure(tmp_path / "empty.pdb")
    with pytest.raises(ValueError, match="missing.pdb"):
        read_structure(tmp_path / "missing.pdb")


def test_what_cannot_be_compared(structure, true, phased) -> None:
    far = true.customized_copy(
        indices=flex.miller_index([(40, 0, i) for i in range(1, 20)]), data=flex.double(19, 1.0)
    )
    with pytest.raises(ValueError, match="no reflection in common"):
        agreement(measured(far, np.zeros(19), np.ones(19)), true)
    with pytest.raises(ValueError, match="no atoms of Se"):
        sites_of(structure, "Se")
    alone = true.select_acentric().hemisphere_acentrics("+").customized_copy(anomalous_flag=True)
    with pytest.raises(ValueError, match="no pair"):
        anomalous_peak_heights(alone, phased, sites_of(structure))
