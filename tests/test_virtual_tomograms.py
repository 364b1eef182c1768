"""Virtual tomograms: contrast transfer and edges against wave optics, noise, projections, artefacts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import scipy.special

from anacor_dials.sample.materials import NYLON, POLYIMIDE, Composition, protein_crystal
from anacor_dials.sample.volumes import DEFAULT_NAMES
from anacor_dials.simulation.sample_families import BOX
from anacor_dials.simulation.samples import default_materials
from anacor_dials.simulation.solids import ellipsoid, moved, polyhedron
from anacor_dials.simulation.virtual_tomograms import (
    LABEL_OF,
    Artefacts,
    Optics,
    Solid,
    add_artefacts,
    projection_density,
    propagated,
    random_artefacts,
    random_levels,
    random_optics,
    random_tomogram,
    sample_on_grid,
)

ENERGY = 3.5  # keV
WAVELENGTH = 12.398419843 / ENERGY * 1e-4  # um
MANY = 2000  # projections


def optics(**choices):
    return Optics(**{"energy_keV": ENERGY, "distance_um": 0.0, "blur_um": 0.0, "n_projections": MANY, **choices})  # fmt: skip


def seen(mu, delta, voxel, choices, seed=0):
    rng = np.random.default_rng(seed)
    mu, delta = (np.asarray(v, dtype=np.float32) for v in (mu, delta))
    return propagated(mu, delta, voxel, choices, rng).astype(np.float64)


# ---- contrast transfer ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "waves", [(0, 0, 3), (0, 5, 0), (4, 0, 0), (3, 4, 5), (6, -7, 9), (1, 2, -11)]
)
@pytest.mark.parametrize("distance", [0.0, 500.0, 8000.0, 25000.0])
def test_the_transfer_of_one_wave(waves, distance):
    """mu is transferred by cos(chi), delta by 4 pi / lambda sin(chi), both times the point spread."""
    shape, voxel, blur = (24, 36, 36), 1.1, 0.6
    f = np.array(waves) / (np.array(shape) * voxel)
    phase = (
        2 * np.pi * sum(w * i / n for w, i, n in zip(waves, np.indices(shape), shape, strict=True))
    )
    chi = np.pi * WAVELENGTH * distance * (f @ f)
    spread = np.exp(-2 * (np.pi * blur) ** 2 * (f @ f)) * np.prod(np.sinc(f * voxel))
    choices = optics(distance_um=distance, blur_um=blur, bin_um=voxel)
    wave, nothing = 0.01 * np.cos(phase), np.zeros(shape)
    found = seen(wave, nothing, voxel, choices)
    np.testing.assert_allclose(found, np.cos(chi) * spread * wave, atol=2e-5)
    delta = 1e-5 * np.cos(phase)
    found = seen(nothing, delta, voxel, choices)
    expected = 4 * np.pi / WAVELENGTH * np.sin(chi) * spread * delta
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max() + 1e-7)
    both = seen(wave, delta, voxel, choices)
    expected = expected + np.cos(chi) * spread * wave
    np.testing.assert_allclose(both, expected, atol=2e-3 * np.abs(expected).max() + 1e-7)


def fresnel_edge(x, distance, mu, delta, blur):
    """-d ln I / dT of a half space x > 0 of thickness T that begins to be thick, blurred; x in um.

    The wave behind a thin semi-infinite step, by Fresnel integrals: U = 1 + (a - 1) E(x), where
    E = 1/2 + (1 - i)/2 (C(w) + i S(w)), w = x sqrt(2 / (lambda z)).
    """
    step = 0.003  # fringes far out are as narrow as lambda z / x
    fine = np.arange(x.min() - 10, x.max() + 10, step)
    if distance:
        s, c = scipy.special.fresnel(fine * np.sqrt(2 / (WAVELENGTH * distance)))
        edge = 0.5 + 0.5 * (1 - 1j) * (c + 1j * s)
    else:
        edge = (fine > 0) + 0j
    # n = 1 - delta + i beta: the wave is retarded by k delta T and weakened by mu T / 2
    thickness = 1e-4
    change = np.expm1(-(0.5 * mu + 2j * np.pi / WAVELENGTH * delta) * thickness)
    intensity = np.abs(1 + change * edge) ** 2
    plain = -np.log(intensity) / thickness
    return np.interp(x, fine, scipy.ndimage.gaussian_filter1d(plain, blur / step, truncate=8))


@pytest.mark.parametrize("distance", [0.0, 1000.0, 6000.0, 20000.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("material", [(0.013, 0.0), (0.0, 2e-5), (0.013, 2e-5)])
def test_an_edge_is_that_of_fresnel(distance, axis, material):
    """Across X and across the slices: a half space of mu and delta, to first order in both."""
    n, voxel, blur = 160, 0.8, 1.2
    shape = [4, 160, 160] if axis else [160, 4, 4]
    there = np.zeros(n)
    there[n // 2 :] = 1
    there = np.broadcast_to(there.reshape([-1 if k == axis else 1 for k in range(3)]), shape)
    mu, delta = material
    choices = optics(distance_um=distance, blur_um=blur, bin_um=voxel)
    found = seen(mu * there, delta * there, voxel, choices)
    line = np.moveaxis(found, axis, 0)[:, 1, 1]
    x = (np.arange(n) - n // 2 + 0.5) * voxel
    near = np.abs(x) < 22  # the volume is periodic: there is another edge at its end
    expected = fresnel_edge(x[near], distance, mu, delta, blur)
    if np.any(expected):
        # far fringes of the other edge reach here; a hundredth of the range is below any fringe of interest
        tolerance = 0.012 * (expected.max() - expected.min())
        np.testing.assert_allclose(line[near], expected, atol=tolerance)
    else:
        np.testing.assert_allclose(line[near], 0, atol=1e-7)  # delta is not seen in contact


def test_short_distances_show_the_laplacian():
    """A smooth ball: mu - z laplacian(delta)."""
    x = (np.indices((64, 64, 64)) - 31.5) * 1.0
    r = np.sqrt((x**2).sum(axis=0))
    width = 4.0
    delta = 2e-5 * np.exp(-0.5 * (r / width) ** 2)
    laplacian = delta * (r**2 / width**4 - 3 / width**2)
    mu = 600 * delta
    distance = 300.0
    found = seen(mu, delta, 1.0, optics(distance_um=distance))
    expected = mu - distance * laplacian
    assert np.abs(distance * laplacian).max() > 0.05 * mu.max()
    np.testing.assert_allclose(found, expected, atol=0.01 * (expected.max() - expected.min()))


@pytest.mark.parametrize(("blur", "bin_um"), [(1.0, 0.0), (1.6, 0.0), (0.8, 2.4)])
def test_the_width_of_the_point_spread(blur, bin_um):
    """Its variance along each axis is that of the Gaussian plus that of a box, and its integral is one."""
    n, voxel = 48, 0.8
    point = np.zeros((n, n, n))
    point[24, 24, 24] = 1
    found = seen(point, 0 * point, voxel, optics(blur_um=blur, bin_um=bin_um))
    assert found.sum() == pytest.approx(1, rel=1e-3)
    place = (np.arange(n) - 24) * voxel
    line = found.sum(axis=(1, 2))
    assert line @ place == pytest.approx(0, abs=0.01)
    assert line @ place**2 == pytest.approx(blur**2 + bin_um**2 / 12, rel=0.01)
    # across X uneven lines of projections move single frequencies by some 0.3 %, which the second moment
    # of the whole volume would feel
    x = place[:, None] - np.linspace(-0.5, 0.5, 201) * bin_um
    expected = np.exp(-0.5 * (x / blur) ** 2).mean(axis=1) * voxel / np.sqrt(2 * np.pi) / blur
    for axis in range(3):
        line = found.sum(axis=tuple(k for k in range(3) if k != axis))
        np.testing.assert_allclose(line, expected, atol=0.004)


# ---- noise ----------------------------------------------------------------------------------------


def noise(choices, shape=(40, 72, 72), voxel=1.3, seed=1):
    nothing = np.zeros(shape)
    return seen(nothing, nothing, voxel, choices, seed)


@pytest.mark.parametrize(
    "choices", [{}, {"noise_cut": 1.0}, {"missing_wedge_deg": 40.0}, {"n_projections": 60}]
)
def test_the_noise_is_as_strong_as_asked(choices):
    """Whatever its spectrum; and the same for a seed."""
    found = noise(optics(noise=0.004, **choices))
    assert found.std() == pytest.approx(0.004, rel=0.03)
    assert found.mean() == pytest.approx(0, abs=2e-4)
    np.testing.assert_array_equal(found, noise(optics(noise=0.004, **choices)))
    assert np.any(found != noise(optics(noise=0.004, **choices), seed=2))
    kurtosis = np.mean(found**4) / np.mean(found**2) ** 2
    assert kurtosis == pytest.approx(3, abs=0.15)  # it is normal


def test_the_spectrum_of_the_noise():
    """Across X its amplitude grows as the square root of |f|; along X it is white."""
    found = noise(optics(noise=1.0), (48, 72, 72))
    power = np.abs(np.fft.fftn(found)) ** 2
    fy, fz = (np.fft.fftfreq(72)[:, None], np.fft.fftfreq(72)[None, :])
    f = np.hypot(fy, fz)
    inside = (np.abs(fy) < 0.48) & (np.abs(fz) < 0.48)
    across = power.mean(axis=0)
    means, places = [], []
    for low in np.arange(0.05, 0.45, 0.05):
        ring = (f >= low) & (f < low + 0.05) & inside
        means.append(across[ring].mean()), places.append(f[ring].mean())
    slope, _ = np.polyfit(np.log(places), np.log(means), 1)
    assert slope == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(
        np.array(means) / places, np.mean(means) / np.mean(places), rtol=0.05
    )
    along = power[:, (f > 0.05) & inside].mean(axis=1)
    np.testing.assert_allclose(along / along.mean(), 1, atol=0.06)
    # neighbours along X have nothing in common
    assert np.corrcoef(found[1:].ravel(), found[:-1].ravel())[0, 1] == pytest.approx(0, abs=0.01)


def test_a_window_takes_high_frequencies_from_the_noise():
    fy, fz = np.fft.fftfreq(72)[:, None], np.fft.fftfreq(72)[None, :]
    f = np.hypot(fy, fz)
    shares = []
    for cut in (0.0, 0.5, 1.0):
        power = np.abs(np.fft.fftn(noise(optics(noise=1.0, noise_cut=cut)))) ** 2
        shares.append(
            power[:, (f > 0.35) & (f < 0.48)].mean() / power[:, (f > 0.05) & (f < 0.2)].mean()
        )
    assert shares[0] > 2.5 * shares[1] > 2.5 * 2.5 * shares[2]
    assert shares[0] == pytest.approx(
        0.415 / 0.137, rel=0.05
    )  # the ramp's mean |f| in the two rings


def test_noise_comes_on_top():
    """It changes nothing of the sample."""
    x = np.indices((32, 36, 36)) - 17.5
    ball = 0.01 * ((x**2).sum(axis=0) < 100)
    choices = optics(noise=0.002, blur_um=1.0, distance_um=2000)
    noisy = seen(ball, 1e-3 * ball, 1.1, choices)
    clean = seen(ball, 1e-3 * ball, 1.1, replace(choices, noise=0.0))
    only = seen(0 * ball, 0 * ball, 1.1, choices)
    np.testing.assert_allclose(noisy - clean, only, atol=1e-6)


# ---- projections ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (65, 65), (63, 63), (48, 80), (80, 48), (50, 51)])
def test_enough_projections_sample_every_frequency_once(shape):
    density = projection_density(shape, MANY)
    assert density.shape == (shape[0], shape[1] // 2 + 1)
    assert density[0, 0] == 1
    np.testing.assert_allclose(density.ravel(), 1, atol=0.06)
    assert density.mean() == pytest.approx(1, abs=0.005)


def test_few_projections_leave_gaps_where_lines_are_far_apart():
    """90 projections: lines lie closer than the spectrum's grid out to the frequency 90 / pi."""
    n, many = 192, 90
    density = projection_density((n, n), many)
    v, w = np.meshgrid(np.fft.fftfreq(n, 1 / n), np.arange(n // 2 + 1), indexing="ij")
    r = np.hypot(v, w)
    assert density[(r > 1) & (r < 0.8 * many / np.pi)].std() < 0.1
    outer = density[(r > 70) & (r < 90)]
    assert outer.min() == 0
    assert outer.std() > 0.5
    for low in (5, 40, 70):  # what is in the gaps less is in the lines more
        assert density[(r > low) & (r < low + 20)].mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("wedge", "at"), [(40.0, 0.0), (40.0, 100.0), (15.0, 170.0), (90.0, 30.0)])
def test_a_missing_wedge_is_empty(wedge, at):
    n = 96
    density = projection_density((n, n), 900, wedge, at)
    v, w = np.meshgrid(np.fft.fftfreq(n, 1 / n), np.arange(n // 2 + 1), indexing="ij")
    r = np.hypot(v, w)
    angle = np.rad2deg(np.arctan2(v, w))
    into = np.mod(angle - at, 180)  # 0 ... wedge: missing
    margin = np.rad2deg(1.6 / np.maximum(r, 1))
    ring = (r > 12) & (r < 46)
    empty = ring & (into > margin) & (into < wedge - margin)
    full = ring & (into > wedge + margin) & (into < 180 - margin)
    assert empty.sum() > 40
    assert density[empty].max() == 0
    np.testing.assert_allclose(density[full], 1, atol=0.08)
    # with its mirror image the half plane is the whole
    assert density[ring].mean() == pytest.approx(1 - wedge / 180, abs=0.02)


def test_a_missing_wedge_hides_waves_in_it():
    """Waves whose normals lie in it vanish, others stay as they are."""
    shape = (4, 96, 96)
    _, y, z = np.indices(shape)
    for number, at in ((0, 70.0), (25, 95.0), (45, 120.0), (90, 160.0)):
        # the frequency's angle, from Z towards Y; whole numbers of waves fit the volume
        waves = np.rint(20 * np.array([np.sin(np.deg2rad(number)), np.cos(np.deg2rad(number))]))
        wave = np.cos(2 * np.pi * (waves[0] * y + waves[1] * z) / 96)
        choices = optics(missing_wedge_deg=40.0, n_projections=900)
        kept = seen(wave, 0 * wave, 1.0, replace(choices, wedge_at_deg=at))
        np.testing.assert_allclose(kept, wave, atol=0.05)
        gone = seen(wave, 0 * wave, 1.0, replace(choices, wedge_at_deg=(number - 20.0) % 180))
        assert np.abs(gone).max() < 1e-4


@pytest.mark.parametrize(
    ("choices", "what"),
    [({"n_projections": 1}, "no tomogram"), ({"missing_wedge_deg": 180.0}, "no tomogram"),
     ({"blur_um": -1.0}, "blur_um"), ({"noise": np.nan}, "noise")],
)  # fmt: skip
def test_optics_that_cannot_be(choices, what):
    with pytest.raises(ValueError, match=what):
        optics(**choices)


def test_the_wavelength():
    """12.398 keV Angstrom."""
    assert optics().wavelength_um == pytest.approx(WAVELENGTH, rel=1e-6)


# ---- artefacts ------------------------------------------------------------------------------------


def added(artefacts, base=0.0, shape=(12, 96, 96), level=0.01, seed=3):
    values = np.full(shape, base, dtype=np.float32)
    add_artefacts(values, level, artefacts, np.random.default_rng(seed))
    return values.astype(np.float64)


def explained(image, middle):
    """The share of an image's variance that lies in its means over rings one voxel wide."""
    y, z = np.indices(image.shape)
    number = np.rint(np.hypot(y - middle[0], z - middle[1])).astype(int).ravel()
    counts = np.bincount(number)
    means = np.bincount(number, image.ravel()) / np.maximum(counts, 1)
    return 1 - np.mean((image.ravel() - means[number]) ** 2) / image.var()


@pytest.mark.parametrize("seed", range(4))
def test_rings_are_rings_about_one_axis(seed):
    """About the point that the image is symmetric about, the same in all slices, near the middle."""
    found = added(Artefacts(rings=0.05), seed=seed)
    assert found.std() > 0
    # the convolution of an image with itself is largest at twice the point that it is symmetric about
    spectra = np.fft.fft2(found - found.mean(axis=(1, 2), keepdims=True), (192, 192))
    twice = np.fft.ifft2((spectra**2).sum(axis=0)).real
    start = np.array(np.unravel_index(twice.argmax(), twice.shape)) / 2
    assert np.all(np.abs(start - 47.5) < 12)
    steps = np.arange(-0.5, 0.55, 0.1)
    slice_ = found[np.argmax(found.std(axis=(1, 2)))]
    best = max((explained(slice_, start + (a, b)), a, b) for a in steps for b in steps)
    middle = start + best[1:]
    assert best[0] > 0.9
    for image in found:
        if image.std() > 0.3 * found.std():
            assert explained(image, middle) > 0.85
            assert explained(image, middle + (5, 3)) < 0.5
    # about as strong as asked, near the axis
    y, z = np.indices((96, 96))
    inner = np.hypot(y - middle[0], z - middle[1]) < 20
    assert 0.2 < found[:, inner].std() / (0.05 * 0.01) < 2.0


def test_streaks_are_straight_and_end_along_the_axis():
    found = added(Artefacts(n_streaks=1, streak=0.5), shape=(60, 96, 96), seed=5)
    strength = np.abs(found).max(axis=(1, 2))
    assert strength.max() > 0
    assert np.mean(strength == 0) > 0.2  # of the planes
    image = np.abs(found[strength.argmax()])
    where = np.argwhere(image > 0.5 * image.max()).astype(float)
    spread = np.sqrt(np.linalg.eigvalsh(np.cov(where.T)))
    assert spread[1] > 12 * spread[0]
    assert np.abs(found).max() <= 0.5 * 0.01


def test_slow_changes_by_hand():
    """Offset, ramp and truncation are added, in units of the liquor's mu; cupping multiplies."""
    np.testing.assert_allclose(added(Artefacts(offset=-0.05)), -0.05 * 0.01, rtol=1e-5)
    ramp = added(Artefacts(ramp=0.1))
    second = [np.diff(ramp, 2, axis=k) for k in range(3)]
    assert max(np.abs(d).max() for d in second) < 1e-7
    assert 0 < ramp.max() <= 1.5 * 0.1 * 0.01
    assert ramp.mean() == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(added(Artefacts(cupping=0.2)), 0)
    cup = added(Artefacts(cupping=0.2), base=0.01) / 0.01
    middle, rim = cup[:, 40:56, 40:56].mean(), cup[:, [0, -1]][..., 40:56].mean()
    assert rim - middle == pytest.approx(0.2, abs=0.06)
    np.testing.assert_allclose(cup, np.broadcast_to(cup[:1], cup.shape), rtol=1e-5)
    bright = added(Artefacts(truncation=0.3)) / 0.01
    assert abs(bright[:, 44:52, 44:52].mean()) < 0.01
    assert bright[:, [0, -1]][..., 40:56].mean() == pytest.approx(0.3, abs=0.08)
    np.testing.assert_array_equal(added(Artefacts()), 0)


# ---- random tomograms -----------------------------------------------------------------------------


def test_levels_are_those_of_materials():
    """Liquor is that of the materials; the crystal's mu has the contrast that is returned."""
    liquor = default_materials()["liquor"]
    contrasts = []
    for seed in range(300):
        levels, contrast = random_levels(np.random.default_rng(seed), ENERGY, "nylon")
        assert set(levels) == set(LABEL_OF)
        assert levels["background"] == (0.0, 0.0)
        assert levels["liquor"][0] == pytest.approx(liquor.mu_per_um(ENERGY))
        assert levels["liquor"][1] == pytest.approx(liquor.refractive_index(ENERGY)[0])
        assert levels["crystal"][0] / levels["liquor"][0] - 1 == pytest.approx(contrast)
        assert 0.95 < levels["crystal"][1] / levels["liquor"][1] < 1.22
        assert levels["salt"][0] > 2.9 * levels["liquor"][0]
        contrasts.append(contrast)
    contrasts = np.array(contrasts)
    assert -0.3 < contrasts.min() < -0.25
    assert 0.3 < contrasts.max() < 0.6
    assert np.mean(np.abs(contrasts) < 0.02) == pytest.approx(0.25 + 0.47 * 2 / 15, abs=0.08)
    unseen = [
        random_levels(np.random.default_rng(s), ENERGY, "nylon", False)[1] for s in range(100)
    ]
    assert min(abs(contrast) for contrast in unseen) >= 0.05


@pytest.mark.parametrize(
    ("formula", "density"),
    [
        ("H2O", 1.0),
        ("0.75 H2O + 0.25 C3H8O3", 1.06),
        ("0.77 H2O + 0.23 N2H8SO4", 1.13),  # 2 M ammonium sulfate
        ("0.89 H2O + 0.11 NaCl", 1.08),  # 2 M
        ("0.7 H2O + 0.3 C2H4O", 1.05),  # PEG
        ("0.5 H2O + 0.5 C6H14O2", 0.97),  # MPD
    ],
)
def test_levels_reach_those_of_usual_liquors(formula, density):
    """Crystals and loops beside these liquors, by their compositions, lie within what is drawn."""
    liquor = Composition.parse(formula, density)
    drawn = {"nylon": [], "polyimide": []}
    for material, of in drawn.items():
        for seed in range(200):
            levels, _ = random_levels(np.random.default_rng(seed), ENERGY, material)
            of.append(np.divide([levels["loop"], levels["crystal"]], levels["liquor"]))

    def relative(composition):
        at_energy = composition.mu_per_um(ENERGY), composition.refractive_index(ENERGY)[0]
        return np.divide(at_energy, (liquor.mu_per_um(ENERGY), liquor.refractive_index(ENERGY)[0]))

    for material, loop in (("nylon", NYLON), ("polyimide", POLYIMIDE)):
        low, high = np.min(drawn[material], axis=0), np.max(drawn[material], axis=0)
        for solvent_content in (0.35, 0.5, 0.7):
            crystal = protein_crystal(solvent_content, liquor)
            there = np.stack([relative(Composition.parse(*loop)), relative(crystal)])
            assert np.all((low - 0.01 < there) & (there < high + 0.01))


def test_ranges_of_optics_and_artefacts():
    """Of many draws all lie within what is promised, and the extremes are reached."""
    drawn = [random_optics(np.random.default_rng(s), ENERGY, 1.2, 0.01) for s in range(300)]
    noises = np.array([o.noise for o in drawn]) / 0.01
    assert 0.01 <= noises.min() < 0.013
    assert 0.38 < noises.max() <= 0.45
    distances = np.array([o.distance_um for o in drawn])
    assert np.mean(distances == 0) == pytest.approx(0.15, abs=0.06)
    assert 250 <= distances[distances > 0].min() < distances.max() <= 30000
    assert {60 <= o.n_projections < 900 for o in drawn} == {True}
    assert np.mean([o.missing_wedge_deg > 0 for o in drawn]) == pytest.approx(0.15, abs=0.06)
    usual = [random_optics(np.random.default_rng(s), ENERGY, 1.2, 0.01, False) for s in range(300)]
    assert max(o.noise for o in usual) <= 0.12 * 0.01
    assert {1500 <= o.distance_um <= 25000 for o in usual} == {True}
    assert {140 <= o.n_projections < 900 and not o.missing_wedge_deg for o in usual} == {True}
    local = [random_artefacts(np.random.default_rng(s), True) for s in range(100)]
    plain = [random_artefacts(np.random.default_rng(s), False) for s in range(100)]
    assert any(a.truncation for a in local)
    assert not any(a.truncation for a in plain)
    assert max(abs(a.offset) for a in plain) <= 0.06
    usual = [random_artefacts(np.random.default_rng(s), False, False) for s in range(100)]
    for name, most in (("rings", 0.045), ("cupping", 0.125), ("streak", 0.25)):
        assert max(abs(getattr(a, name)) for a in usual) <= most
        assert np.mean([a.rings > 0 for a in usual]) < np.mean([a.rings > 0 for a in plain])


def test_every_material_has_its_label():
    """Salt, ice and dirt count as liquor, a pin as loop; their mu is their own."""
    levels, _ = random_levels(np.random.default_rng(0), ENERGY, "polyimide")
    names = [name for name in levels if name != "background"]
    solids = [
        Solid(name, moved(ellipsoid((3, 3, 3)), np.eye(3), (10 * k - 30 + 0.5, 0.5, 0.5)), np.zeros(3), np.inf)
        for k, name in enumerate(names)
    ]  # fmt: skip
    (mu, delta), labels = sample_on_grid(
        solids, levels, (72, 10, 10), 1.0, np.array([35.0, 4.0, 4.0])
    )
    for k, name in enumerate(names):
        x = 35 + 10 * k - 30 + 1
        assert DEFAULT_NAMES[labels[x, 5, 4]] == LABEL_OF[name]
        assert (mu[x, 5, 4], delta[x, 5, 4]) == pytest.approx(levels[name], rel=1e-5)


def test_random_tomograms_come_again():
    """The same for a generator, another for another; tomogram and labels have one grid."""
    made = [random_tomogram(np.random.default_rng(seed), voxels=(48, 64)) for seed in (4, 4, 5)]
    np.testing.assert_array_equal(made[0].tomogram.values, made[1].tomogram.values)
    np.testing.assert_array_equal(made[0].labels.values, made[1].labels.values)
    assert made[0].record == made[1].record
    assert made[0].record != made[2].record
    for one in made:
        assert one.tomogram.shape == one.labels.shape
        assert one.tomogram.shape[1] == one.tomogram.shape[2]
        np.testing.assert_array_equal(one.tomogram.centre, one.labels.centre)
        np.testing.assert_array_equal(one.tomogram.voxel_size_um, one.labels.voxel_size_um)
        assert one.tomogram.values.dtype == np.float32
        assert np.all(np.isfinite(one.tomogram.values))


def test_random_tomograms_show_their_labels():
    """Medians of liquor and crystal are their mu, where neither artefacts nor strong noise are in the way."""
    checked = 0
    for seed in range(120):
        made = random_tomogram(np.random.default_rng(seed), voxels=(56, 64))
        record = made.record
        a, o = record["artefacts"], record["optics"]
        if record["local"] or a["cupping"] or a["ramp"] or a["offset"] or a["saturation"]:
            continue
        if o["missing_wedge_deg"]:
            continue
        if o["distance_um"] > 5000:  # fringes reach far
            continue
        level = default_materials()["liquor"].mu_per_um(o["energy_keV"])
        air = made.labels.values == 0
        noise = o["noise"] / np.sqrt(air.sum() / 30)
        assert abs(np.median(made.tomogram.values[air])) < 0.05 * level + 5 * noise
        for name, expected in (("liquor", level), ("crystal", level * (1 + record["contrast"]))):
            there = scipy.ndimage.binary_erosion(
                made.labels.values == made.labels.label(name), iterations=3
            )
            if there.sum() > 600 and "salt" not in record["traits"]:
                found = float(np.median(made.tomogram.values[there]))
                assert found == pytest.approx(expected, rel=0.1, abs=4 * noise)
                checked += 1
    assert checked >= 3


# ---- against full scans ---------------------------------------------------------------------------

SHIFT, SIDES = np.array([3.0, -4.0, 5.0]), np.array([20.0, 16.0, 24.0])
RADIUS, PIXEL = 26.0, 1.0


def scanned(tmp_path, detector, distance_um, n_projections, seed=1):
    """(tomogram, mu and delta by material) of a full scan: a box of crystal in a sphere of liquor."""
    pytest.importorskip("torch", reason="virtual scans need torch")
    from anacor_dials.sample.frames import rotation_about
    from anacor_dials.simulation.meshes import box, sphere
    from anacor_dials.simulation.samples import sample_from_meshes
    from anacor_dials.simulation.scan import ScanSettings, write_scan
    from anacor_dials.tomography.projections import read_projections
    from anacor_dials.tomography.reconstruction import reconstruct
    from anacor_dials.tomography.reconstruction_plan import plan_reconstruction
    from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings

    turn = rotation_about((1.0, 1.0, 0.3), 25.0)
    sample = sample_from_meshes(
        {
            "liquor": sphere(RADIUS, 5),
            "crystal": box(SIDES).moved(turn, SHIFT),
        }
    )
    settings = ScanSettings(
        energy_keV=ENERGY,
        distance_mm=1e-3 * distance_um,
        pixel_size_um=PIXEL,
        image_shape=(72, 80),
        n_projections=n_projections,
        n_flats=40,
        n_darks=4,
        detector=detector,
    )
    files = tmp_path / "s.nxs", tmp_path / "t.h5"
    write_scan(*files, sample, settings, np.random.default_rng(seed))
    choices = ReconstructionSettings(
        centre=39.5, rings="off", zinger_threshold=None, filter_name="ramp", crop="off"
    )
    made = reconstruct(plan_reconstruction(read_projections(files[0]), choices, pictures=False))
    mu, delta = sample.mu_per_um(ENERGY), sample.delta(ENERGY)
    levels = {n: (mu[k], delta[k]) for k, n in enumerate(sample.names)}
    return np.asarray(made.values, dtype=np.float64), levels, turn, settings


def twin(levels, turn, shape, choices, seed=1):
    """The same sample as solids, seen by the model in the volume."""
    solids = [
        Solid("liquor", ellipsoid((RADIUS,) * 3), np.zeros(3), np.inf),
        Solid("crystal", moved(polyhedron(BOX, np.tile(SIDES / 2, 2)), turn, SHIFT), np.zeros(3), np.inf),
    ]  # fmt: skip
    centre = (np.array(shape) - 1) / 2
    (mu, delta), labels = sample_on_grid(solids, levels, shape, PIXEL, centre)
    return seen(mu, delta, PIXEL, choices, seed), labels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("distance", "fringes", "alike"),
    [(400.0, (0.9, 1.1), 0.999), (2500.0, (1.0, 1.8), 0.99), (8000.0, (1.0, 3.0), 0.95)],
)
def test_the_sample_looks_as_in_a_full_scan(tmp_path, distance, fringes, alike, perfect_detector):
    """Of -ln T of wave optics, back-projected, and of the model: the same levels, the same edges.

    fringes: how many times as strong those of the model may be in single voxels; -ln T saturates, and the
    model does not. alike: the least correlation; far from the sample refraction also shows its surface further
    out (by 0.8 um at 8 mm), and the model does not.
    """
    detector = perfect_detector(50000.0, gain=0.8, psf_um=1.5)
    scan, levels, turn, settings = scanned(tmp_path, detector, distance, 180)
    blur = np.hypot(settings.detector.blur_sigma_um, 0.3 * PIXEL)  # 0.3: of interpolation
    choices = optics(distance_um=distance, blur_um=blur, bin_um=PIXEL, n_projections=180)
    model, labels = twin(levels, turn, scan.shape, choices)
    assert scan.shape == model.shape
    soft = [scipy.ndimage.gaussian_filter(v, 2.0 / PIXEL) for v in (scan, model)]
    there = scipy.ndimage.binary_dilation(labels > 0, iterations=3)
    assert np.corrcoef(soft[0][there], soft[1][there])[0, 1] > alike
    # along lines from air through liquor and crystal, and within the sample alone
    at = np.rint(SHIFT / PIXEL + (np.array(scan.shape) - 1) / 2).astype(int)
    for axis in range(3):
        through = tuple(slice(None) if k == axis else at[k] for k in range(3))
        a, b = (v[through] for v in soft)
        assert np.corrcoef(a, b)[0, 1] > alike
        inside = scipy.ndimage.binary_erosion(labels[through] > 0, iterations=4)
        if distance < 5000:
            assert np.corrcoef(a[inside], b[inside])[0, 1] > 0.97
    for label in (1, 3):
        deep = scipy.ndimage.binary_erosion(labels == label, iterations=3)
        a, b = (float(np.median(v[deep])) for v in (scan, model))
        assert a == pytest.approx(b, rel=0.03)
    edge = there & ~scipy.ndimage.binary_erosion(labels > 0, iterations=3)
    a, b = (np.diff(v, axis=1)[edge[:, 1:]].std() for v in (scan, model))
    assert fringes[0] < b / a < fringes[1]


@pytest.mark.slow
def test_the_noise_looks_as_in_a_full_scan(tmp_path, perfect_detector):
    """The same shape of spectrum, across X and along it, of scans that differ in their noise alone.

    The reconstruction interpolates linearly, which takes as much of the high frequencies as a noise_cut of 0.45.
    """
    both = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        detector = perfect_detector(500.0, gain=4.0, psf_um=1.5)
        both.append(scanned(folder, detector, 400.0, 240, seed)[0])
    scan = (both[0] - both[1]) / np.sqrt(2)
    # no further than the field of view's circle
    y, z = np.indices(scan.shape[1:]) - (np.array(scan.shape[1:]) - 1)[:, None, None] / 2
    window = np.clip((38 - np.hypot(y, z)) / 8, 0, 1)
    choices = optics(n_projections=240, noise=float(scan.std()), noise_cut=0.45)
    nothing = np.zeros(scan.shape)
    model = seen(nothing, nothing, PIXEL, choices)
    f = np.hypot(np.fft.fftfreq(80)[:, None], np.fft.fftfreq(80)[None, :])
    shapes = []
    for values in (scan, model):
        power = np.abs(np.fft.fft2(values * window)) ** 2
        shapes.append(
            [power[:, (f > low) & (f <= low + 0.05)].mean() for low in np.arange(0.08, 0.46, 0.05)]
        )
        along = np.abs(np.fft.fft(values * window, axis=0)).mean(axis=(1, 2))[1:]
        assert along.std() / along.mean() < 0.05
    shapes = np.array(shapes) / np.mean(shapes, axis=1, keepdims=True)
    np.testing.assert_allclose(shapes[0], shapes[1], rtol=0.2)
