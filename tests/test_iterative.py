"""Iterative reconstruction: its projector against closed forms, and what it is worth on hard scans."""

from __future__ import annotations

import numpy as np
import pytest

from anacor_dials.tomography.backprojection import reconstruct_slices
from anacor_dials.tomography.iterative import (
    LANES,
    Geometry,
    TotalVariation,
    noise_of,
    require_whole_sample,
)
from anacor_dials.tomography.reconstruction import reconstruct_scan
from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings
from anacor_dials.tomography.scan_files import ScanDescription
from anacor_dials.tomography.slice_grid import SliceGrid

# centre y, z, semi-axes along y, z (pixels), mu (1/pixel): a drop, a crystal in it, a piece of loop
ELLIPSES = (
    (0.5, -1.0, 20.0, 16.0, 0.03),
    (4.0, 3.0, 8.0, 6.0, -0.003),
    (-9.0, -4.0, 3.0, 5.0, -0.008),
)
N = 56


def sinogram(angles_deg, axis, n_u=N, ellipses=ELLIPSES, oversample=5):
    """-ln of the transmission of ellipses, averaged over pixels; u = y cos - z sin."""
    sub = (np.arange(n_u * oversample) + 0.5) / oversample - 0.5 - axis
    path = np.zeros((len(angles_deg), len(sub)))
    for k, angle in enumerate(np.deg2rad(angles_deg)):
        for y, z, a, b, mu in ellipses:
            reach = np.hypot(a * np.cos(angle), b * np.sin(angle))
            t = (sub - y * np.cos(angle) + z * np.sin(angle)) / reach
            path[k] += mu * 2 * a * b / reach * np.sqrt(np.maximum(1 - t * t, 0))
    return -np.log(np.exp(-path).reshape(len(angles_deg), n_u, oversample).mean(axis=2))


def voxels(grid, ellipses=ELLIPSES, oversample=4):
    """Means of the ellipses over voxels."""
    step = (np.arange(oversample) + 0.5) / oversample - 0.5
    y, z = ((s + np.arange(n))[:, None] + step for s, n in zip(grid.start, grid.shape, strict=True))
    y, z = y.ravel()[:, None], z.ravel()[None, :]
    fine = sum(mu * (((y - a) / c) ** 2 + ((z - b) / d) ** 2 <= 1) for a, b, c, d, mu in ellipses)
    ny, nz = grid.shape
    return fine.reshape(ny, oversample, nz, oversample).mean(axis=(1, 3))


def geometry(angles_deg, axis, n_u, grid):
    theta = np.deg2rad(angles_deg)
    return Geometry(np.cos(theta), np.sin(theta), axis, n_u, grid)


@pytest.mark.parametrize(("axis", "n_u"), [(27.3, 56), (3.2, 40)])
def test_the_pair_is_matched(axis, n_u):
    rng = np.random.default_rng(0)
    grid = SliceGrid(56, (5, 50), (2, 41))
    pair = geometry(np.arange(0, 360, 7.3), axis, n_u, grid)
    x = rng.standard_normal((*grid.shape, LANES)).astype(np.float32)
    p = rng.standard_normal((len(pair.cos), n_u, LANES)).astype(np.float32)
    one = np.sum(pair.project(x).astype(np.float64) * p, axis=(0, 1))
    other = np.sum(x.astype(np.float64) * pair.back_project(p), axis=(0, 1))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-2)


def test_projections_of_ellipses():
    angles = np.arange(0, 180, 11.25)
    grid = SliceGrid(N, (3, N), (0, N - 2))
    x = np.repeat(voxels(grid)[..., None], LANES, axis=2).astype(np.float32)
    seen = geometry(angles, 26.4, N, grid).project(x)[..., 3]
    wanted = sinogram(angles, 26.4)
    assert np.sqrt(np.mean((seen - wanted) ** 2)) < 0.006 * wanted.max()
    np.testing.assert_allclose(seen.sum(axis=1), wanted.sum(axis=1), rtol=0.006)


def test_noise_is_measured():
    rng = np.random.default_rng(1)
    clean = np.repeat(sinogram(np.arange(0, 180, 3.0), 27.5)[None], 3, axis=0)
    noisy = clean + 0.02 * rng.standard_normal(clean.shape)
    assert noise_of(noisy) == pytest.approx(0.02, rel=0.1)
    assert noise_of(clean) < 0.004


HARD = {
    "60 projections": (np.arange(60) * 3.0, 3000),
    "300 photons": (np.arange(120) * 1.5, 300),
    "a wedge of 40 degrees": (np.arange(140) * 1.0, 3000),
}


def edge_width(image):
    """From 10 to 90 % of the drop's outer edge, by profiles all around, in pixels."""
    from scipy.ndimage import map_coordinates

    y, z, a, b, _ = ELLIPSES[0]
    t = np.linspace(-5, 5, 101)
    profiles = []
    for angle in np.linspace(0, 2 * np.pi, 60, endpoint=False):
        out = np.array([np.cos(angle) / a, np.sin(angle) / b])
        out /= np.hypot(*out)
        place = [(N - 1) / 2 + y + a * np.cos(angle), (N - 1) / 2 + z + b * np.sin(angle)]
        profiles.append(
            map_coordinates(image, [p + t * o for p, o in zip(place, out, strict=True)], order=1)
        )
    profile = np.mean(profiles, axis=0)
    high, low = profile[:20].mean(), profile[-20:].mean()
    share = (profile - low) / (high - low)
    return np.interp(-0.1, -share, t) - np.interp(-0.9, -share, t)


@pytest.mark.slow
@pytest.mark.parametrize("name", HARD)
def test_hard_scans_have_a_third_of_the_noise_and_the_same_edges(name):
    """mu within 2 %; noise from voxel to voxel within the crystal, of slices that are all alike."""
    angles, photons = HARD[name]
    rng = np.random.default_rng(2)
    counts = rng.poisson(photons * np.exp(-sinogram(angles, 27.5))[None].repeat(6, axis=0))
    sinograms = -np.log(np.maximum(counts / photons, 1e-3)).astype(np.float32)
    grid = SliceGrid(N)
    solver = TotalVariation.of_scan(angles, 27.5, N, (1.0, 1.0), grid, noise_of(sinograms))
    found = solver.slices(sinograms)
    fbp = reconstruct_slices(sinograms, angles, 27.5, 1.0, grid, "shepp-logan")
    y, z = (np.arange(N) - (N - 1) / 2 for _ in range(2))
    cy, cz, a, b, _ = ELLIPSES[1]
    crystal = ((y[:, None] - cy) / (a - 2)) ** 2 + ((z[None] - cz) / (b - 2)) ** 2 <= 1
    noise, of_fbp = (np.mean([s[crystal].std() for s in v]) for v in (found, fbp))
    assert noise < of_fbp / 3
    assert found[:, crystal].mean() == pytest.approx(0.027, rel=0.02)
    assert edge_width(found.mean(axis=0)) <= edge_width(fbp.mean(axis=0)) + 0.05
    assert found.min() >= 0


def test_a_sample_larger_than_the_image_is_refused():
    angles = np.arange(0, 180, 6.0)
    require_whole_sample(sinogram(angles, 27.5)[None])
    with pytest.raises(
        ValueError, match=r"reaches beyond the sides .* use reconstruction\.method=fbp"
    ):
        require_whole_sample(sinogram(angles, 12.0, n_u=25)[None])


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="The method is 'sirt'; it is fbp or iterative"):
        ReconstructionSettings(method="sirt")
    with pytest.raises(ValueError, match="The regularisation is 0"):
        ReconstructionSettings(regularisation=0.0)


@pytest.mark.parametrize("crop", ["auto", (4, 40, 8, 30, 5, 60)])
def test_a_scan_of_ellipsoids(tmp_path, ellipsoid_scan, crop):
    """Values and places, with a horizontal axis off the middle, 40 projections; a crop cuts only what is shown."""
    scan = ellipsoid_scan.at(
        shape=(64, 44), fast_axis=(1, 0, 0), slow_axis=(0, 1, 0), axis_pixel=30.2,
        angles_deg=tuple(np.arange(40) * 4.5), counts=5000.0,
    )  # fmt: skip
    path = scan.write_nxtomo(tmp_path / "scan.nxs")
    settings = ReconstructionSettings(centre=30.2, crop=crop, method="iterative")
    said = ScanDescription(fast_axis=(1, 0, 0), slow_axis=(0, 1, 0))
    tomogram, plan = reconstruct_scan(path, said, settings)
    assert tomogram.shape == plan.shape
    index = np.stack(np.meshgrid(*(np.arange(n) for n in tomogram.shape), indexing="ij"), axis=-1)
    position = tomogram.position_um(index)
    seen = 0
    for e in scan.ellipsoids:
        axes = np.array(e.semi_axes)
        inner = np.linalg.norm((position - e.centre) / (axes - 2.5), axis=-1) < 1
        near = np.linalg.norm((position - e.centre) / (axes + 3), axis=-1) < 1
        if np.count_nonzero(near) < 0.98 * 4.19 * np.prod(axes + 3):
            continue  # cut by the crop
        seen += 1
        assert tomogram.values[inner].mean() == pytest.approx(e.mu, rel=0.02)
        weight = np.where(near, tomogram.values, 0)
        centre = np.tensordot(weight, position, axes=3) / weight.sum()
        np.testing.assert_allclose(centre, e.centre, atol=0.3)
    assert seen >= (3 if crop == "auto" else 1)
