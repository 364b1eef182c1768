"""Virtual diffraction data: I23's geometry, Bragg's law, DIALS' own corrections, and dials.scale."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("dials", reason="virtual diffraction data need DIALS")

from dxtbx.model.experiment_list import ExperimentList

from anacor_dials.sample.frames import rotation_about, unit
from anacor_dials.sample.materials import Composition
from anacor_dials.simulation.diffraction_data import (
    directions_in_tomo,
    enough_points,
    goniometer_rotations,
    lorentz_polarisation,
    simulate_diffraction,
    structure_factor_intensities,
    thaumatin_structure,
    tomo_to_datum,
    true_transmissions,
    write_diffraction,
)
from anacor_dials.simulation.diffraction_settings import DiffractionSettings, Sweep
from anacor_dials.simulation.i23 import i23_beam, i23_detector, i23_goniometer
from anacor_dials.simulation.meshes import box, sphere
from anacor_dials.simulation.samples import cut_box_sample, sample_from_meshes


@pytest.fixture(scope="module")
def cube_data():
    """Two sweeps, one with kappa, of a bare cube of crystal."""
    sample = sample_from_meshes({"crystal": box((40, 40, 40))})
    sweeps = [Sweep(10.0, 40.0, 0.1), Sweep(-30.0, 40.0, 0.1, kappa=30.0, phi=20.0)]
    settings = DiffractionSettings(d_min=4.5, sweeps=sweeps, n_points=128)
    return simulate_diffraction(sample, np.random.default_rng(4), settings)


def columns(table, number):
    mine = table.select(table["id"] == number)
    return (
        mine,
        np.array(list(mine["s1"])).reshape(-1, 3),
        np.array(mine["xyzcal.mm"].parts()[2]),
    )


def test_detector_is_the_one_of_a_real_image(shared_data) -> None:
    import dxtbx

    path = shared_data / "i23_thaumatin" / "DLS_I23_P12M_thau_00001.cbf.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    image = dxtbx.load(str(path))
    real, ours = image.get_detector(), i23_detector(2.7552, 10.0)
    assert len(real) == len(ours)
    for a, b in zip(real, ours, strict=True):
        np.testing.assert_allclose(a.get_origin(), b.get_origin(), atol=1e-6)
        np.testing.assert_allclose(a.get_fast_axis(), b.get_fast_axis(), atol=1e-9)
        np.testing.assert_allclose(a.get_slow_axis(), b.get_slow_axis(), atol=1e-9)
        assert a.get_image_size() == b.get_image_size()
        assert a.get_pixel_size() == b.get_pixel_size()
        assert a.get_mu() == pytest.approx(b.get_mu(), rel=1e-6)
        assert a.get_name() == b.get_name()
    beam = i23_beam(2.7552)
    np.testing.assert_allclose(image.get_beam().get_s0(), beam.get_s0())
    np.testing.assert_allclose(
        image.get_beam().get_polarization_normal(), beam.get_polarization_normal()
    )
    goniometer = i23_goniometer(Sweep())
    np.testing.assert_allclose(
        np.array(list(image.get_goniometer().get_axes())),
        np.array(list(goniometer.get_axes())),
        atol=1e-6,
    )
    assert list(goniometer.get_names()) == list(image.get_goniometer().get_names())
    assert goniometer.get_scan_axis() == image.get_goniometer().get_scan_axis()


def test_directions_obey_bragg(cube_data) -> None:
    """(exit + to_source) / wavelength = U B h, in the frame of the sample."""
    experiments, table = cube_data
    datum = tomo_to_datum(experiments[0], 0.0, 1)
    for number, experiment in enumerate(experiments):
        mine, s1, phi = columns(table, number)
        source, exit = directions_in_tomo(experiment, s1, phi, datum)
        r = (source + exit) @ datum.T / experiment.beam.get_wavelength()
        ub = np.reshape(experiment.crystal.get_A(), (3, 3))
        h = np.array(list(mine["miller_index"])).reshape(-1, 3)
        np.testing.assert_allclose(r, h @ ub.T, atol=1e-6)


def test_the_tomo_frame_is_fixed_to_the_sample(cube_data) -> None:
    """The source turns about X; at the offset angle it is at +Z; in a kappa sweep it leaves the circle."""
    experiments, _ = cube_data
    datum = tomo_to_datum(experiments[0], 25.0, 1)
    phi = np.deg2rad([25.0, 115.0])
    s1 = np.tile(experiments[0].beam.get_s0(), (2, 1))
    source, _ = directions_in_tomo(experiments[0], s1, phi, datum)
    np.testing.assert_allclose(source, [[0, 0, 1], [0, 1, 0]], atol=1e-12)
    backwards = tomo_to_datum(experiments[0], 25.0, -1)
    source, _ = directions_in_tomo(experiments[0], s1, phi, backwards)
    np.testing.assert_allclose(source, [[0, 0, 1], [0, -1, 0]], atol=1e-12)
    source, _ = directions_in_tomo(experiments[1], s1, phi, datum)
    assert np.abs(source[:, 0]).max() > 0.1


def test_lorentz_and_polarisation_are_those_of_dials(cube_data) -> None:
    experiments, table = cube_data
    for number, experiment in enumerate(experiments):
        mine, s1, _ = columns(table, number)
        lorentz, polarisation = lorentz_polarisation(experiment, s1)
        np.testing.assert_allclose(np.array(mine["lp"]) * lorentz * polarisation, 1.0, rtol=1e-6)


def test_sphere_in_closed_form() -> None:
    """Straight through (theta = 0): A = 3 (2 - exp(-x) (x^2 + 2 x + 2)) / x^3, x = 2 mu R."""
    radius = 50.0
    sample = sample_from_meshes({"crystal": sphere(radius, 5)})
    energy = 3.0
    x = 2 * radius * sample.mu_per_um(energy)[3]
    expected = 3 * (2 - np.exp(-x) * (x * x + 2 * x + 2)) / x**3
    directions = unit(np.random.default_rng(2).normal(size=(20, 3)))
    transmission = true_transmissions(
        sample, energy, directions, -directions, 8192, np.random.default_rng(1)
    )
    np.testing.assert_allclose(transmission, expected, rtol=3e-3)


def test_slab_in_closed_form() -> None:
    """Along the normal of a slab: exp(-mu t) straight through, (1 - exp(-2 mu t)) / (2 mu t) straight back."""
    sample = sample_from_meshes({"crystal": box((100, 110, 60))})
    normal = np.array([[0.0, 0.0, 1.0]])
    mu = sample.mu_per_um(3.0)[3]
    through = true_transmissions(sample, 3.0, normal, -normal, 512, np.random.default_rng(1))
    assert through[0] == pytest.approx(np.exp(-60 * mu), rel=1e-9)
    back = true_transmissions(sample, 3.0, normal, normal, 512, np.random.default_rng(1))
    assert back[0] == pytest.approx((1 - np.exp(-120 * mu)) / (120 * mu), rel=1e-3)


def test_truth_converges() -> None:
    sample = cut_box_sample()
    rng = np.random.default_rng(0)
    exit, source = unit(rng.normal(size=(60, 3))), unit(rng.normal(size=(60, 3)))
    few, many = (
        true_transmissions(sample, 3.0, source, exit, n, np.random.default_rng(1))
        for n in (256, 8192)
    )
    assert np.sqrt(np.mean((few / many - 1) ** 2)) < 2e-3


def test_a_thin_plate_gets_more_points() -> None:
    """A protein crystal needs few; with those of a plate of celestine its transmissions are right."""
    rng = np.random.default_rng(0)
    exit, source = unit(rng.normal(size=(200, 3))), unit(rng.normal(size=(200, 3)))
    turn = rotation_about((0.3, -0.8, 0.5), 71.0)
    assert enough_points(cut_box_sample(), 3.0, source, exit) == 256
    heavy = {"crystal": Composition.parse("SrSO4", 3.97)}
    plate = sample_from_meshes({"crystal": box((160, 140, 8)).moved(turn)}, heavy)
    n = enough_points(plate, 17.4, source, exit)
    assert n > 1024
    found, finer = (
        true_transmissions(plate, 17.4, source, exit, many, np.random.default_rng(3))
        for many in (n, 40_000)
    )
    ratio = found / finer
    assert ratio.std() / ratio.mean() < 0.004


def test_intensities_have_symmetry_and_anomalous_signal() -> None:
    structure = thaumatin_structure(np.random.default_rng(1))
    true = structure_factor_intensities(structure, 4.13, 4.5)
    assert true.anomalous_flag()
    assert str(true.space_group_info()) == "P 41 21 2"
    differences = true.as_amplitude_array().anomalous_differences()
    signal = np.abs(np.array(differences.data())).mean()
    assert 0.01 < signal / np.array(true.as_amplitude_array().data()).mean() < 0.10
    # Wilson: <I^2> / <I>^2 is 2 for acentric reflections
    acentric = np.array(true.select_acentric().resolution_filter(d_max=8.0).data())
    assert 1.6 < np.mean(acentric**2) / np.mean(acentric) ** 2 < 2.6


def test_the_structure_is_the_one_that_diffracts(tmp_path) -> None:
    """From the PDB file that is written, by direct summation: the intensities in the table."""
    import iotbx.pdb
    from cctbx import miller

    structure = thaumatin_structure(np.random.default_rng(5))
    experiments, table = simulate_diffraction(
        sample_from_meshes({"crystal": box((40, 40, 40))}),
        np.random.default_rng(6),
        DiffractionSettings(d_min=6.0, sweeps=[Sweep(0.0, 5.0, 0.1)], n_points=16),
        structure,
    )
    names = [tmp_path / name for name in ("models.expt", "observations.refl", "atoms.pdb")]
    write_diffraction(experiments, table, *names[:2], structure, names[2])
    atoms = iotbx.pdb.input(file_name=str(names[2])).xray_structure_simple()
    assert sum(s.element_symbol() == "S" for s in atoms.scatterers()) == 17
    atoms.set_inelastic_form_factors(experiments[0].beam.get_wavelength(), "henke")
    indices = miller.set(atoms.crystal_symmetry(), table["miller_index"], anomalous_flag=True)
    f_calc = indices.structure_factors_from_scatterers(atoms, algorithm="direct").f_calc()
    expected = np.abs(np.array(f_calc.data())) ** 2
    true = np.array(table["true.intensity"])
    assert np.abs(true - expected).sum() / expected.sum() < 0.005  # sites are rounded to 0.001 A


def test_table_is_that_of_an_integration(cube_data, tmp_path) -> None:
    experiments, table = cube_data
    identifiers = table.experiment_identifiers()
    assert [identifiers[i] for i in range(2)] == [e.identifier for e in experiments]
    assert table.get_flags(table.flags.integrated_prf).all_eq(True)
    for name in ("intensity.prf.variance", "intensity.sum.variance", "qe", "lp", "d"):
        assert np.all(np.array(table[name]) > 0)
    a = np.array(table["true.transmission"])
    assert 0 < a.min() <= a.max() < 1
    write_diffraction(experiments, table, tmp_path / "models.expt", tmp_path / "observations.refl")
    back = ExperimentList.from_file(str(tmp_path / "models.expt"), check_format=False)
    assert len(back) == 2
    assert back[1].goniometer == experiments[1].goniometer


def test_counts_scatter_as_their_variances_say(cube_data) -> None:
    """Without instrument error the pulls of the intensities have unit width."""
    sample = sample_from_meshes({"crystal": box((40, 40, 40))})
    experiments, table = simulate_diffraction(
        sample,
        np.random.default_rng(9),
        DiffractionSettings(
            d_min=5.5,
            sweeps=[Sweep(0, 60, 0.1)],
            n_points=128,
            instrument_error=0.0,
            decay_b=0.0,
        ),
    )
    model = np.array(table["true.intensity"]) * np.array(table["true.transmission"])
    model = model * np.array(table["qe"]) / np.array(table["lp"])
    value = np.array(table["intensity.sum.value"])
    variance = np.array(table["intensity.sum.variance"])
    strong = model > np.median(model)
    model = model * (value[strong].sum() / model[strong].sum())
    pulls = ((value - model) / np.sqrt(variance))[strong]
    assert pulls.std() == pytest.approx(1.0, abs=0.1)


def test_goniometer_rotations_are_rotations(cube_data) -> None:
    rotations = goniometer_rotations(cube_data[0][1], np.linspace(0, 3, 5))
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (5, 1, 1)), atol=1e-6
    )


@pytest.mark.slow
def test_true_transmissions_mend_the_data(tmp_path) -> None:
    """dials.scale, without any absorption correction and with the true one."""
    if shutil.which("dials.scale") is None:
        pytest.skip("dials.scale is not on PATH")
    experiments, table = simulate_diffraction(
        cut_box_sample(),
        np.random.default_rng(3),
        DiffractionSettings(d_min=4.5, sweeps=[Sweep(0, 180, 0.2)]),
    )
    table["analytical_correction"] = table["true.transmission"]
    write_diffraction(experiments, table, tmp_path / "models.expt", tmp_path / "observations.refl")

    def r_meas(corrected: bool) -> float:
        result = subprocess.run(
            ["dials.scale", "models.expt", "observations.refl", "model=physical", "anomalous=True",
             "physical.absorption_correction=False", f"physical.analytical_correction={corrected}",
             "full_matrix=False", "output.html=None"],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        match = re.search(r"Rmeas\(I\+/-\)\s+([\d.]+)", result.stdout)
        assert match is not None
        return float(match.group(1))

    with_truth, without = r_meas(True), r_meas(False)
    assert with_truth < 0.04
    assert without > 4 * with_truth


@pytest.mark.slow
def test_two_witnesses_agree(tmp_path, monkeypatch) -> None:
    """dials.anacor_absorption, from voxels, against lines through the meshes: two sweeps, one with kappa,
    a tomogram that begins elsewhere and turns the other way."""
    from anacor_dials.sample.materials import energy_from_wavelength
    from anacor_dials.sample.tomogram_files import write_sample_file

    command = pytest.importorskip("anacor_dials.command_line.anacor_absorption")
    from dials.array_family import flex

    sample, wavelength = cut_box_sample(), 4.13
    energy = energy_from_wavelength(wavelength)
    experiments, table = simulate_diffraction(
        sample,
        np.random.default_rng(3),
        DiffractionSettings(
            wavelength,
            d_min=6.0,
            sweeps=[Sweep(0, 90, 0.2), Sweep(20, 90, 0.2, kappa=40)],
            angle_offset=15.0,
            rotation_sense=-1,
            n_points=1024,
        ),
    )
    monkeypatch.chdir(tmp_path)
    write_diffraction(experiments, table, "models.expt", "observations.refl")
    labels = sample.label_volume(1.0)
    mu = sample.mu_per_um(energy)
    write_sample_file("tomo.h5", labels=labels, mu_per_um=mu, energy_keV=energy)
    command.run(
        ["models.expt", "observations.refl", "tomo.h5",
         "alignment.angle_offset=15", "alignment.rotation_sense=-1"]
    )  # fmt: skip
    corrected = flex.reflection_table.from_file("corrected.refl")
    ratio = np.array(corrected["analytical_correction"]) / np.array(corrected["true.transmission"])
    assert abs(ratio.mean() - 1) < 2e-3
    assert ratio.std() < 2e-3


# ---- bad input -------------------------------------------------------------------------------------


def test_nothing_diffracts_beyond_half_the_wavelength() -> None:
    with pytest.raises(ValueError, match="beyond half the wavelength"):
        structure_factor_intensities(thaumatin_structure(np.random.default_rng(1)), 4.13, 2.0)


def test_impossible_sweeps_and_wavelengths() -> None:
    with pytest.raises(ValueError, match="images are 0 degrees wide"):
        Sweep(0, 10, 0)
    with pytest.raises(ValueError, match="wavelength is -1"):
        simulate_diffraction(
            cut_box_sample(), np.random.default_rng(1), DiffractionSettings(wavelength=-1)
        )
    with pytest.raises(ValueError, match="mean_counts"):
        DiffractionSettings(mean_counts=0)
