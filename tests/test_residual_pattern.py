"""What absorption factors leave: patterns of known origin are told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("dials", reason="residuals are those of DIALS' scaling")

from scipy.spatial.transform import Rotation

from anacor_dials.diffraction.residual_pattern import (
    Residuals,
    fit_patterns,
    harmonics,
    log_polarisation,
)
from anacor_dials.jobs.records import ComparisonRecord, read_record
from anacor_dials.simulation.diffraction_data import simulate_diffraction
from anacor_dials.simulation.diffraction_settings import DiffractionSettings, Sweep
from anacor_dials.simulation.samples import cut_box_sample

FRACTION = 0.999


def observations(seed: int = 1, n_unique: int = 700, each: int = 8) -> Residuals:
    """Observations without any error: a beam along -Z, polarised along X, a scan about X."""
    rng = np.random.default_rng(seed)
    n = n_unique * each
    phi = rng.uniform(0, 180, n)
    two_theta, azimuth = np.arccos(rng.uniform(np.cos(1.0), 1, n)), rng.uniform(0, 2 * np.pi, n)
    s1 = np.stack(
        [np.sin(two_theta) * np.cos(azimuth), np.sin(two_theta) * np.sin(azimuth), -np.cos(two_theta)],
        axis=1,
    )  # fmt: skip
    to_crystal = Rotation.from_euler("x", -phi[:, None], degrees=True)
    return Residuals(
        log_intensity=rng.normal(7.0, 1.0, n_unique)[np.arange(n) % n_unique],
        variance=np.full(n, 0.02**2),
        unique=np.arange(n) % n_unique,
        block=np.floor(phi / 10).astype(np.int64),
        crystal=np.zeros(n, dtype=np.int64),
        to_source=to_crystal.apply([0.0, 0.0, 1.0]),
        exit=to_crystal.apply(s1),
        exit_in_lab=s1,
        across=s1[:, :2] * [-1, 1],  # the field along -X, the normal along Y
        fraction=FRACTION,
    )


def with_pattern(data: Residuals, pattern: np.ndarray, noise: float = 0.02) -> Residuals:
    error = noise * np.random.default_rng(5).standard_normal(len(pattern))
    return replace(data, log_intensity=data.log_intensity + pattern + error)


def kahn(s1: np.ndarray, normal: np.ndarray, fraction: float) -> np.ndarray:
    """P = (1 - 2 f)(1 - (n . s)^2) + f (1 + cos^2 2 theta), Kahn et al. (1982)."""
    return (1 - 2 * fraction) * (1 - (s1 @ normal) ** 2) + fraction * (1 + s1[:, 2] ** 2)


def turned(angle: float) -> np.ndarray:
    """The normal (0, 1, 0), turned right-handedly about the beam, which runs along -Z."""
    return Rotation.from_rotvec([0, 0, -angle], degrees=True).apply([0.0, 1.0, 0.0])


@pytest.mark.parametrize(("angle", "fraction"), [(0, 0.999), (90, 0.999), (30, 0.8), (-20, 0.9)])
def test_the_polarisation_factor_is_that_of_kahn(angle, fraction):
    data = observations(n_unique=50)
    size, psi = 2 * fraction - 1, np.deg2rad(2 * angle)
    found = log_polarisation(data.across, size * np.cos(psi), size * np.sin(psi))
    np.testing.assert_allclose(
        np.exp(found), kahn(data.exit_in_lab, turned(angle), fraction), rtol=1e-9
    )


@pytest.mark.parametrize(
    ("angle", "fraction"), [(90, 0.999), (90, 0.9), (45, 0.999), (-30, 0.95), (0, 0.6)]
)
def test_a_wrong_polarisation_is_found(angle, fraction):
    data = observations()
    s1 = data.exit_in_lab
    pattern = np.log(kahn(s1, turned(angle), fraction) / kahn(s1, turned(0), FRACTION))
    found = fit_patterns(with_pattern(data, pattern))
    assert found.cause == "polarisation"
    assert found.fitted.fraction == pytest.approx(fraction, abs=0.01)
    off = (found.fitted.angle_deg - angle + 90) % 180 - 90  # a normal has no sense
    assert abs(off) < 2
    assert found.polarisation > 0.9


def test_nothing_is_said_of_good_data():
    data = observations()
    found = fit_patterns(with_pattern(data, np.zeros(len(data.unique))))
    assert found.cause == ""
    assert found.rms < 0.003
    assert found.polarisation < 0.01


@pytest.mark.parametrize("size", [0.05, 0.5])
def test_absorption_is_taken_for_absorption(size):
    """Factors of a plate that are missing: paths in and out, no function of low order."""
    data = observations()
    shape = np.diag([1.0, 0.2, 4.0])

    def path(directions):
        return 1 / np.sqrt(np.einsum("ni,ij,nj->n", directions, shape, directions))

    found = fit_patterns(with_pattern(data, -size * (path(data.exit) + path(data.to_source))))
    assert found.cause == ""
    assert found.absorption > 2 * found.polarisation


def test_a_pattern_of_the_detector_is_no_absorption():
    """A corner of the detector counts too little."""
    data = observations()
    corner = np.exp(-0.5 * np.sum((data.exit_in_lab[:, :2] - 0.5) ** 2, axis=1) / 0.25**2)
    found = fit_patterns(with_pattern(data, -0.3 * corner))
    assert found.cause == "detector"
    assert found.detector > found.absorption + 0.1


def test_wrong_scales_of_images_are_no_pattern():
    data = observations()
    scales = np.random.default_rng(2).normal(0, 0.2, data.block.max() + 1)
    found = fit_patterns(with_pattern(data, scales[data.block]))
    assert found.cause == ""


def test_outliers_do_not_matter():
    data = observations()
    s1 = data.exit_in_lab
    pattern = np.log(kahn(s1, turned(90), FRACTION) / kahn(s1, turned(0), FRACTION))
    pattern[::50] += 5.0
    found = fit_patterns(with_pattern(data, pattern))
    assert found.cause == "polarisation"
    assert found.fitted.fraction == pytest.approx(FRACTION, abs=0.01)


def test_too_few_observations_are_refused():
    with pytest.raises(ValueError, match="too few"):
        fit_patterns(observations(n_unique=20))


def test_the_harmonics_are_all_up_to_order_four():
    """25 functions, independent on the sphere, the constant among what they span."""
    directions = Rotation.random(500, random_state=1).apply([0.0, 0.0, 1.0])
    functions = harmonics(directions)
    assert functions.shape == (500, 25)
    assert np.linalg.matrix_rank(functions) == 25
    one, *_ = np.linalg.lstsq(functions, np.ones(500), rcond=None)
    np.testing.assert_allclose(functions @ one, 1.0, atol=1e-9)


def test_a_shape_that_is_hardly_better_decides_nothing():
    """The margin is counted in standard errors, not in shares."""
    data = observations()
    s1 = data.exit_in_lab
    pattern = np.log(kahn(s1, turned(90), FRACTION) / kahn(s1, turned(0), FRACTION))
    found = fit_patterns(with_pattern(data, pattern))
    hardly = replace(found, absorption=found.polarisation - 0.2, polarisation_better=2.0)
    surely = replace(found, absorption=found.polarisation - 0.001, polarisation_better=10.0)
    assert (hardly.cause, surely.cause) == ("", "polarisation")


def test_polarisation_is_told_from_absorption_where_both_fit_well():
    """Small angles and one axis: the harmonics imitate it to a per mille, and reflections tell."""
    data = observations()
    near = data[data.exit_in_lab[:, 2] < -np.cos(0.6)]
    s1 = near.exit_in_lab
    pattern = np.log(kahn(s1, turned(90), FRACTION) / kahn(s1, turned(0), FRACTION))
    found = fit_patterns(with_pattern(near, pattern, noise=0.005))
    assert found.cause == "polarisation"
    assert found.polarisation_better > 10


@pytest.mark.parametrize("seed", range(3))
def test_errors_without_a_pattern_prefer_no_shape(seed):
    """Reflections that were left out are foretold no better than by nothing at all."""
    data = observations(seed, n_unique=100)
    found = fit_patterns(with_pattern(data, np.zeros(len(data.unique)), noise=0.3))
    assert found.cause == ""
    assert max(found.absorption, found.detector, found.polarisation) < 0.02
    # in the fit itself, 24 parameters explain what they explain of chance
    assert found.absorption < 0
    assert found.detector < 0


# ---- from the command -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def virtual_data(tmp_path_factory):
    """A folder with virtual data of a beam polarised along X, and with the true factors.

    turned.expt and turned.refl: the same data, corrected as if the beam were polarised along Y.
    """
    folder = tmp_path_factory.mktemp("polarisation")
    settings = DiffractionSettings(
        wavelength=4.0, d_min=5.0, sweeps=[Sweep(0.0, 120.0, 0.5)], detector="flat_1m",
        distance_mm=60.0, n_points=64, decay_b=0.0,
    )  # fmt: skip
    experiments, table = simulate_diffraction(cut_box_sample(), np.random.default_rng(3), settings)
    table["analytical_correction"] = table["true.transmission"]
    for name, normal in (("right", (0.0, 1.0, 0.0)), ("turned", (1.0, 0.0, 0.0))):
        experiments[0].beam.set_polarization_normal(normal)
        table.compute_corrections(experiments)  # the column lp
        experiments.as_file(str(folder / f"{name}.expt"))
        table.as_file(str(folder / f"{name}.refl"))
    return folder


def compared(folder, name):
    """(the pattern of analytical factors, log and page) of dials.anacor_compare."""
    from anacor_dials.command_line import anacor_compare

    place = folder / name
    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        anacor_compare.run([
            f"../{name}.expt", f"../{name}.refl", "strategies=analytical",
            "scaling.full_matrix=False", "nproc=1",
        ])  # fmt: skip
    (strategy,) = read_record(place / "anacor_compare.json", ComparisonRecord).strategies
    said = [(place / f"anacor_compare.{kind}").read_text() for kind in ("log", "html")]
    return strategy.residual_pattern, said


HINT = "fits a wrong polarisation better than absorption"


@pytest.mark.slow
def test_nothing_is_said_of_virtual_data_with_true_factors(virtual_data):
    """Scaled by dials.scale: no hint in log, page and numbers."""
    pattern, said = compared(virtual_data, "right")
    assert pattern.cause == ""
    assert not any(HINT in " ".join(text.split()) for text in said)
    assert pattern.polarisation < 0.05


@pytest.mark.slow
def test_a_polarisation_turned_by_a_right_angle_is_said(virtual_data):
    """The same data with a header that is wrong: log and page name it and the way out."""
    pattern, said = compared(virtual_data, "turned")
    assert pattern.cause == "polarisation"
    assert pattern.polarisation_better > 6
    assert pattern.fitted_fraction == pytest.approx(FRACTION, abs=0.02)
    assert abs(pattern.fitted_angle_deg) == pytest.approx(90, abs=2)
    for text in said:
        text = " ".join(text.split())
        assert HINT in text
        assert "geometry.beam.polarization_normal" in text
