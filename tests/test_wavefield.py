"""Wave propagation against closed forms: plane wave, knife edge, cylinder, energy, sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="wave optics needs torch")

from anacor_dials.simulation.meshes import thickness_maps, turned_profile  # noqa: E402
from anacor_dials.simulation.wavefield import (  # noqa: E402
    WaveGrid,
    detector_intensity,
    fast_length,
    incident_wave,
    longest_step_um,
    propagated,
    require_sampling,
    sample_factor,
    transfer_function,
    wavelength_um,
)

ENERGY = 3.5
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("propagator", ["fresnel", "angular_spectrum"])
def test_a_plane_wave_stays_flat(device: str, propagator: str) -> None:
    transfer = transfer_function((512, 480), 0.15, 2e4, ENERGY, propagator, device)
    wave = propagated(torch.ones((512, 480), dtype=torch.complex64, device=device), transfer)
    assert float((wave.abs() - 1).abs().max()) <= 1e-6


@pytest.mark.parametrize("device", DEVICES)
def test_energy_is_conserved(device: str) -> None:
    """A transparent sample moves intensity about and neither makes nor takes any."""
    rng = np.random.default_rng(1)
    phase = torch.as_tensor(np.cumsum(rng.normal(0, 0.3, (256, 256)), axis=1), device=device)
    wave = torch.polar(torch.ones_like(phase), phase)
    transfer = transfer_function((256, 256), 0.3, 3e4, ENERGY, device=device, precision="double")
    after = propagated(wave, transfer)
    assert float(after.abs().square().sum()) == pytest.approx(256**2, rel=1e-12)


def test_incident_wave_gives_the_flat_back() -> None:
    """2e-6 in single precision: without a sample the detector sees the flat."""
    rng = np.random.default_rng(2)
    flat = torch.as_tensor(1 + 0.1 * rng.random((300, 320)), dtype=torch.float32)
    transfer = transfer_function((300, 320), 0.3, 2e4, ENERGY)
    nothing = sample_factor(torch.zeros((1, 300, 320)), [0.02], [3e-5], ENERGY)
    seen = detector_intensity(incident_wave(flat, transfer), [nothing], None, transfer)
    assert float((seen / flat - 1).abs().max()) < 4e-6


def test_no_absorption_and_no_refraction_gives_the_flat_back() -> None:
    flat = torch.ones((128, 128), dtype=torch.float64)
    transfer = transfer_function((128, 128), 0.3, 1e4, ENERGY, precision="double")
    thick = torch.full((2, 128, 128), 80.0, dtype=torch.float64)
    layer = sample_factor(thick, [0.0, 0.0], [0.0, 0.0], ENERGY)
    seen = detector_intensity(incident_wave(flat, transfer), [layer], None, transfer)
    np.testing.assert_allclose(seen.numpy(), 1.0, atol=1e-12)


def test_an_even_slab_absorbs_by_beer_and_lambert() -> None:
    transfer = transfer_function((64, 64), 0.3, 1e3, ENERGY, precision="double")
    thick = torch.full((1, 64, 64), 50.0, dtype=torch.float64)
    layer = sample_factor(thick, [0.02], [3e-5], ENERGY)
    wave = torch.ones((64, 64), dtype=torch.complex128)
    seen = detector_intensity(wave, [layer], None, transfer)
    np.testing.assert_allclose(seen.numpy(), math.exp(-1.0), rtol=1e-12)


@pytest.mark.parametrize("propagator", ["fresnel", "angular_spectrum"])
def test_knife_edge(propagator: str) -> None:
    """I(x) = ((C(w) + 1/2)^2 + (S(w) + 1/2)^2) / 2, w = x sqrt(2 / (wavelength z))  (Born and Wolf 8.7)."""
    from scipy.special import fresnel

    n, dx, z = 8192, 0.25, 2e4
    x = (np.arange(n) - n // 4 + 0.5) * dx
    open_side = (x > 0).astype(float)
    far = x > 0.6 * x[-1]  # the other edge of the periodic window is soft and far away
    open_side[far] = 0.5 + 0.5 * np.cos(np.pi * (x[far] - x[far][0]) / (x[-1] - x[far][0]))
    wave = torch.as_tensor(np.broadcast_to(open_side, (1024, n)).copy(), dtype=torch.complex128)
    transfer = transfer_function((1024, n), dx, z, ENERGY, propagator, precision="double")
    seen = propagated(wave, transfer).abs().square().numpy()[5]
    s, c = fresnel(x * math.sqrt(2 / (wavelength_um(ENERGY) * z)))
    expected = 0.5 * ((c + 0.5) ** 2 + (s + 0.5) ** 2)
    # fringes finer than the grid, beyond wavelength z / (2 dx) = 14 um, cannot be there; pixels of 0.5 um
    pixels = np.abs(x).reshape(-1, 2).max(axis=1) < 10.0
    seen, expected = (v.reshape(-1, 2).mean(axis=1)[pixels] for v in (seen, expected))
    assert expected.max() > 1.3
    np.testing.assert_allclose(seen, expected, atol=0.02)
    assert np.sqrt(np.mean((seen - expected) ** 2)) < 8e-3


def test_a_cylinder_by_quadrature() -> None:
    """Against the Fresnel integral over the cylinder's own transmission, by dense quadrature.

    u(y) = 1 + (i wavelength z)^(-1/2) int (t(y') - 1) exp(i pi (y - y')^2 / (wavelength z)) dy',
    t(y') = exp(-(mu / 2 + i k delta) 2 sqrt(R^2 - y'^2)); the mesh is rasterised, the integral is not.
    """
    radius, mu, delta, z, dx = 15.0, 0.02, 2.0e-5, 1e4, 0.125
    wavelength = wavelength_um(ENERGY)
    mesh = turned_profile([-500, 500], [radius, radius], 720)
    n = 1024
    first = -(n - 1) / 2 * dx
    maps = thickness_maps([mesh], [0], 1, np.eye(3), (first, first), (n, n), dx)[:, 0]
    transfer = transfer_function((n, n), dx, z, ENERGY, precision="double")
    layer = sample_factor(torch.as_tensor(maps), [mu], [delta], ENERGY)
    wave = torch.ones((n, n), dtype=torch.complex128)
    seen = detector_intensity(wave, [layer], None, transfer).numpy()[n // 2]

    angle = (np.arange(40000) + 0.5) / 40000 * np.pi - np.pi / 2  # y' = R sin(angle)
    source = radius * np.sin(angle)
    weight = radius * np.cos(angle) * np.pi / 40000
    k = 2 * np.pi / wavelength
    t = np.exp(-(mu / 2 + 1j * k * delta) * 2 * radius * np.cos(angle))
    y = first + dx * np.arange(n)
    near = np.flatnonzero(np.abs(y) < 1.8 * radius)
    chirp = np.exp(1j * np.pi * (y[near, None] - source) ** 2 / (wavelength * z))
    u = 1 + (chirp @ ((t - 1) * weight)) / np.sqrt(1j * wavelength * z)
    expected = np.abs(u) ** 2
    assert expected.max() > 1.3  # there are fringes to compare
    pixels = 4 * (len(near) // 4)  # as pixels of 0.5 um see it
    error = (seen[near] - expected)[:pixels].reshape(-1, 4).mean(axis=1)
    assert np.sqrt(np.mean(error**2)) < 5e-3
    assert np.abs(error).max() < 0.02


def test_slices_far_apart_equal_two_propagations() -> None:
    transfer = transfer_function((64, 64), 0.3, 500.0, ENERGY, precision="double")
    rng = np.random.default_rng(4)
    layers = [
        sample_factor(torch.as_tensor(rng.random((1, 64, 64))), [0.1], [1e-5], ENERGY)
        for _ in range(2)
    ]
    wave = torch.ones((64, 64), dtype=torch.complex128)
    by_hand = propagated(propagated(wave * layers[0], transfer) * layers[1], transfer)
    seen = detector_intensity(wave, layers, transfer, transfer)
    np.testing.assert_allclose(seen.numpy(), by_hand.abs().square().numpy(), rtol=1e-12)


def test_the_grid_holds_the_image_and_its_margins() -> None:
    grid = WaveGrid.around((100, 80), 0.3, 2, ENERGY, 10.0)
    carried = wavelength_um(ENERGY) * 1e4 / (2 * 0.15**2)
    assert all(m >= carried - 1 for m in grid.margin)
    assert all(
        length >= 2 * n + 2 * carried for length, n in zip(grid.shape, (100, 80), strict=True)
    )
    # the mean place of a pixel's points is the pixel's centre
    x = grid.first_point_um((49.5, 39.5))[0] + grid.step_um * np.arange(grid.shape[0])
    assert x[grid.margin[0] : grid.margin[0] + 2].mean() == pytest.approx(-49.5 * 0.3)


def test_refining_keeps_straight_lines_straight() -> None:
    grid = WaveGrid.around((20, 16), 1.0, 3, ENERGY, 1.0)
    ramp = np.arange(20)[:, None] * np.ones(16)
    fine = grid.refined(ramp)
    inside = slice(grid.margin[0] + 3, grid.margin[0] + 57)
    np.testing.assert_allclose(np.diff(fine[inside, 20]), 1 / 3, atol=1e-9)
    assert fine.min() >= 0
    assert fine.max() <= 19


@pytest.mark.parametrize(("n", "expected"), [(7, 8), (13, 16), (101, 108), (1000, 1000)])
def test_fast_lengths(n: int, expected: int) -> None:
    assert fast_length(n) == expected


# ---- bad input -------------------------------------------------------------------------------------


def test_undersampled_distance() -> None:
    limit_um = 256 * 0.15**2 / wavelength_um(ENERGY)
    require_sampling((256, 256), 0.15, limit_um, ENERGY)
    with pytest.raises(ValueError, match="undersampled: 256 points of 0.15 um at 3.5 keV reach"):
        require_sampling((256, 256), 0.15, 1.01 * limit_um, ENERGY)


def test_a_distance_that_needs_too_large_a_grid() -> None:
    with pytest.raises(ValueError, match="need a grid of .* points, and 16384 are the most"):
        WaveGrid.around((512, 512), 0.3, 2, ENERGY, 5000.0)


def test_unknown_propagator() -> None:
    with pytest.raises(ValueError, match="propagator 'rays' is unknown"):
        transfer_function((8, 8), 1.0, 1.0, ENERGY, "rays")


@pytest.mark.parametrize("distance", [-1.0, math.inf, 1e6])
def test_impossible_distance(distance: float) -> None:
    with pytest.raises(ValueError, match="distance from sample to detector is"):
        WaveGrid.around((8, 8), 1.0, 2, ENERGY, distance)


def test_flat_of_another_size() -> None:
    with pytest.raises(ValueError, match="The flat has 5 x 6 pixels and the images 8 x 8"):
        WaveGrid.around((8, 8), 1.0, 2, ENERGY, 1.0).refined(np.ones((5, 6)))


@pytest.mark.parametrize(
    ("pixel_um", "energy_keV", "distance_mm", "expected"),
    [
        # delta of 0.45 electrons per cubic Angstrom at 4 keV, 1.94e-5; slope 32
        (1.5, 4.0, 15.0, 3.0996e-4 / (2 * 1.94e-5 * 32)),
        (0.3, 4.0, 15.0, 0.15),  # half a pixel is shorter
        (1.5, 4.0, 0.0, 0.75),  # the phase does not matter
    ],
)
def test_the_longest_step_of_the_wave(pixel_um, energy_keV, distance_mm, expected) -> None:
    assert longest_step_um(pixel_um, energy_keV, distance_mm) == pytest.approx(expected, rel=5e-3)
