"""Surfaces are moved to the edges in a tomogram: closed forms, geometrical and wave optics of a cylinder."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

pytest.importorskip("torch", reason="torch is not installed")

from anacor_dials.sample.materials import wavelength_from_energy
from anacor_dials.segmentation.edges import (
    DEEPEST_FRINGE,
    EdgeSettings,
    deepest_fringe,
    moved_to_edges,
    refraction_displacement_um,
    surface_of,
)
from anacor_dials.simulation.samples import default_materials

NAMES = ("background", "liquor", "loop", "crystal")
SHAPE = (64, 64, 64)
DROP, CRYSTAL = 24.3, 14.6  # radii in voxels
MIDDLE = np.array([31.0, 32.2, 31.6])
ALWAYS = EdgeSettings(True)


def depth(radius, shape=SHAPE):
    """How deep (nx, ny, nz) every voxel lies within a sphere, in voxels; negative outside."""
    grid = np.indices(shape).reshape(3, -1).T - MIDDLE
    return (radius - np.linalg.norm(grid, axis=1)).reshape(shape)


def step(d, height, fringe=0.0, blur=0.8):
    """A material's edge at d = 0, seen through a Gaussian, with a fringe that is odd about it."""
    from scipy.special import erf

    return height * 0.5 * (1 + erf(d / blur / 2**0.5)) + fringe * d / blur * np.exp(
        0.5 - d**2 / (2 * blur**2)
    )


def values_of(drop=DROP, crystal=CRYSTAL, fringe=0.4, noise=0.0, seed=0):
    values = step(depth(drop), 1.0, fringe) + step(depth(crystal), 0.05, 0.2 * fringe)
    rng = np.random.default_rng(seed)
    return (values + noise * rng.standard_normal(SHAPE)).astype(np.float32)


def probabilities_of(drop, crystal, width=0.7):
    """uint8, as a network might say it of two spheres."""
    inside = [1 / (1 + np.exp(-depth(r) / width)) for r in (drop, crystal)]
    p = np.stack([1 - inside[0], inside[0] * (1 - inside[1]), 0 * inside[0], inside[1]])
    return np.rint(255 * p / p.sum(axis=0)).astype(np.uint8)


def radius_of(p, name):
    """(mean, rms departure) of the distance of a class's surface from the middle, in voxels."""
    surface = surface_of(p, NAMES.index(name))
    found = np.linalg.norm(surface.points - MIDDLE, axis=1)
    return float(found.mean()), float(found.std())


def test_a_film_of_one_voxel_has_no_normal():
    """Its two surfaces pass through the same voxels; 0 / 0 must not spread from there."""
    p = probabilities_of(DROP, CRYSTAL)
    p[:, 20, 12:50, 12:50] = np.array([0, 110, 145, 0])[:, None, None]
    surface = surface_of(p, 2)
    assert np.count_nonzero(np.linalg.norm(surface.normals, axis=1) < 1e-6) > 100
    with np.errstate(invalid="raise", divide="raise"):
        moved_to_edges(values_of(), p, NAMES, 1.0, ALWAYS)
    assert p.astype(int).sum(axis=0)[15:25, 20:44, 20:44].min() > 240


@pytest.mark.parametrize("wrong", [-1.2, -0.4, 0.7, 1.2])
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_surfaces_come_to_where_the_values_rise(wrong, noise):
    p = probabilities_of(DROP + wrong, CRYSTAL - wrong)
    moved_to_edges(values_of(noise=noise), p, NAMES, 1.0, ALWAYS)
    for name, true in (("background", DROP), ("crystal", CRYSTAL)):
        mean, spread = radius_of(p, name)
        assert mean == pytest.approx(true, abs=0.2)
        assert spread < 0.25


def test_a_crystal_of_the_lower_density_counts_too():
    """Its values fall where it begins."""
    values = step(depth(DROP), 1.0, 0.4) - step(depth(CRYSTAL), 0.08, 0.1)
    p = probabilities_of(DROP, CRYSTAL + 1.0)
    moved_to_edges(values.astype(np.float32), p, NAMES, 1.0, ALWAYS)
    assert radius_of(p, "crystal")[0] == pytest.approx(CRYSTAL, abs=0.15)


def test_nothing_moves_where_nothing_rises():
    """The crystal is not seen at all: noise moves its surface by less than a tenth of a voxel."""
    values = values_of(crystal=0.0, noise=0.05)
    values[depth(CRYSTAL + 5) > 0] = 1.0
    values += (0.05 * np.random.default_rng(3).standard_normal(SHAPE)).astype(np.float32)
    p = probabilities_of(DROP, CRYSTAL)
    moved_to_edges(values, p, NAMES, 1.0, ALWAYS)
    mean, spread = radius_of(p, "crystal")
    assert mean == pytest.approx(CRYSTAL, abs=0.1)
    assert spread < 0.2


def test_a_film_of_liquor_stays():
    """The rise at the film's own surface is twenty times that at the crystal's; it is not taken for it."""
    drop, crystal = 20.0, 17.0
    p = probabilities_of(drop + 0.5, crystal + 0.5, width=0.3)
    moved_to_edges(values_of(drop, crystal), p, NAMES, 1.0, ALWAYS)
    assert radius_of(p, "crystal")[0] == pytest.approx(crystal, abs=0.4)
    assert radius_of(p, "background")[0] == pytest.approx(drop, abs=0.3)


def test_refraction_is_taken_off():
    """Voxels of 1.25 um; a quarter of it between crystal and liquor."""
    seen = refraction_displacement_um(10.0, 3.5) / 1.25
    assert seen == pytest.approx(1.1 * (10 / 3.5**2) ** 0.6 / 1.25)
    settings = EdgeSettings(None, 3.5, 10.0)
    p = probabilities_of(DROP, CRYSTAL)
    moved_to_edges(values_of(), p, NAMES, 1.25, settings)
    assert radius_of(p, "background")[0] == pytest.approx(DROP - seen, abs=0.15)
    assert radius_of(p, "crystal")[0] == pytest.approx(CRYSTAL - 0.25 * seen, abs=0.15)


def test_where_surfaces_are_moved(caplog):
    known = EdgeSettings(None, 4.0, 8.0)
    assert known.displacement_um(False) == refraction_displacement_um(8.0, 4.0)
    assert known.displacement_um(True) == refraction_displacement_um(8.0, 4.0)  # it is a scan
    assert known.uncertain_um == pytest.approx(0.2 * refraction_displacement_um(8.0, 4.0))
    assert EdgeSettings().displacement_um(True) == 0.0
    assert EdgeSettings().uncertain_um == 0.0
    assert EdgeSettings(None, 4.0).displacement_um(False) is None
    assert EdgeSettings(True, 4.0).displacement_um(False) == 0.0
    assert EdgeSettings(False, 4.0, 8.0).displacement_um(False) is None
    assert EdgeSettings(None, 4.0, 8.0, phase_retrieved=True).displacement_um(False) is None
    # energy and distance are not known: nothing is touched
    p = probabilities_of(DROP + 1, CRYSTAL)
    before = p.copy()
    with caplog.at_level("INFO"):
        moved_to_edges(values_of(), p, NAMES, 1.0, EdgeSettings())
    np.testing.assert_array_equal(p, before)
    assert "give projections.energy= (keV) and projections.distance= (mm)" in caplog.text
    # but for fringes that no transmission gives
    strong = values_of(fringe=4.0)
    assert deepest_fringe(strong, before) > DEEPEST_FRINGE
    moved_to_edges(strong, p, NAMES, 1.0, EdgeSettings())
    assert radius_of(p, "background")[0] == pytest.approx(DROP, abs=0.15)


def test_probabilities_near_a_surface_that_is_seen_are_sharper():
    """Half a voxel inside of the surface the class is twice as sure in odds' logarithm; deep inside, as before."""
    seen, unseen = probabilities_of(DROP, CRYSTAL), probabilities_of(DROP, CRYSTAL)
    moved_to_edges(values_of(), seen, NAMES, 1.0, ALWAYS)
    faint = values_of(crystal=0.0, noise=0.05)
    moved_to_edges(faint, unseen, NAMES, 1.0, ALWAYS)
    layer = (depth(CRYSTAL) > 0.4) & (depth(CRYSTAL) < 0.6)

    def odds(p):
        return np.log(p[3][layer] / np.maximum(p[1][layer], 1)).mean()

    assert odds(seen) == pytest.approx(2 * 0.5 / 0.7, abs=0.35)
    assert odds(unseen) == pytest.approx(0.5 / 0.7, abs=0.25)
    np.testing.assert_allclose(seen.astype(int).sum(axis=0), 255, atol=3)


def test_small_classes_and_air_are_left_alone():
    p = probabilities_of(DROP, 0.5)
    before = p[3].copy()
    moved_to_edges(values_of(crystal=0.0), p, NAMES, 1.0, ALWAYS)
    assert abs(int(p[3].max()) - int(before.max())) < 30
    nothing = np.zeros(SHAPE, dtype=np.float32)
    empty = np.zeros((4, *SHAPE), dtype=np.uint8)
    empty[0] = 255
    np.testing.assert_array_equal(moved_to_edges(nothing, empty, NAMES, 1.0, ALWAYS)[0], 255)


@pytest.mark.parametrize(("distance_mm", "energy_keV", "radius_um"), [(3.0, 3.5, 30.0), (5.0, 3.5, 30.0), (10.0, 3.5, 40.0), (10.0, 4.5, 40.0)])  # fmt: skip
def test_the_displacement_is_that_of_wave_optics(distance_mm, energy_keV, radius_um):
    """A cylinder of liquor: Fresnel's integral, -ln, blur, filtered back-projection, all on lines of their own.

    Whatever the projections' angle, they are alike. The tomogram is that of ramp-filtered and back-projected
    lines; its steepest rise lies outside of the true radius by the displacement, to within 0.4 um. (Further away a
    single cylinder has several rises alike, and the steepest is one or another of them.)
    """
    material = default_materials()["liquor"]
    delta, mu = material.refractive_index(energy_keV)[0], material.mu_per_um(energy_keV)
    wavelength = wavelength_from_energy(energy_keV) * 1e-4  # um
    pixel, fine = 0.5, 0.01
    n = 2 ** int(np.ceil(np.log2(6 * radius_um / fine)))
    x = (np.arange(n) - n / 2) * fine
    chord = 2 * np.sqrt(np.clip(radius_um**2 - x**2, 0, None))
    wave = np.exp(-0.5 * mu * chord - 2j * np.pi / wavelength * delta * chord)
    f = np.fft.fftfreq(n, fine)
    wave = np.fft.ifft(
        np.fft.fft(wave) * np.exp(-1j * np.pi * wavelength * 1e3 * distance_mm * f**2)
    )
    intensity = scipy.ndimage.gaussian_filter1d(np.abs(wave) ** 2, 0.8 / fine, mode="wrap")
    binned = intensity[: n // 50 * 50].reshape(-1, 50).mean(axis=1)
    line = -np.log(binned)
    at = x[: n // 50 * 50].reshape(-1, 50).mean(axis=1)
    ramp = np.fft.ifft(np.fft.fft(line) * np.abs(np.fft.fftfreq(len(line), pixel))).real
    angles = np.linspace(0, np.pi, 721)[:-1]
    r = np.arange(radius_um - 6, radius_um + 6, 0.05)
    profile = np.mean([np.interp(r * np.cos(a), at, ramp) for a in angles], axis=0) * np.pi
    profile = scipy.ndimage.gaussian_filter1d(profile, 10)
    edge = r[np.argmin(np.gradient(profile))]
    expected = refraction_displacement_um(distance_mm, energy_keV)
    assert edge - radius_um == pytest.approx(expected, abs=0.4)
    assert profile[0] == pytest.approx(mu, rel=0.5)
