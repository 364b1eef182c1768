"""Ellipsoids are found where they are, with their mu; every backend agrees; corrections do what they say."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from anacor_dials.sample.tomogram_files import (
    SampleFile,
    new_tomogram_file,
    read_sample_file,
)
from anacor_dials.tomography import reconstruction, sinograms
from anacor_dials.tomography.backprojection import (
    BACKENDS,
    available_backends,
    choose_backend,
    reconstruct_slices,
)
from anacor_dials.tomography.corrections import (
    bridge_unusable,
    minus_log,
    paganin_length_um,
    remove_rings,
    remove_zingers,
    retrieve_phase,
    zinger_threshold,
)
from anacor_dials.tomography.library_backends import centred
from anacor_dials.tomography.projections import read_projections
from anacor_dials.tomography.ramp_filter import ramp_filter
from anacor_dials.tomography.reconstruction import reconstruct, reconstruct_scan
from anacor_dials.tomography.reconstruction_plan import plan_reconstruction
from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings
from anacor_dials.tomography.rotation_centre import (
    centre_of_mass_axis,
    find_rotation_centre,
    opposite_views_axis,
    vo_axis,
)
from anacor_dials.tomography.scan_angles import (
    angular_weights,
    gaps_of,
    is_full_turn,
    largest_gap,
    offset_weights,
)
from anacor_dials.tomography.scan_files import ScanDescription
from anacor_dials.tomography.slice_grid import SliceGrid

EXACT = ReconstructionSettings(rings="off", zinger_threshold=None, filter_name="ramp", crop="off")

# ---- slices: disks have closed-form sinograms -----------------------------------------------------

DISKS = ((20.0, -35.0, 25.3, 0.010), (-50.0, 10.0, 14.2, 0.020), (60.5, 40.25, 9.7, 0.015))


def disk_sinogram(angles_deg, n_u, axis, disks=DISKS, oversample=8):
    """-ln T (n_angles, n_u) of disks (y, z, radius, mu), lengths in pixels from the axis."""
    u = np.arange(n_u) - axis
    theta = np.deg2rad(np.asarray(angles_deg))[:, None]
    p = np.zeros((len(theta), n_u))
    for y, z, radius, mu in disks:
        centre = y * np.cos(theta) - z * np.sin(theta)
        for s in (np.arange(oversample) - (oversample - 1) / 2) / oversample:
            p += 2 * mu * np.sqrt(np.maximum(radius**2 - (u + s - centre) ** 2, 0)) / oversample
    return p.astype(np.float32)


def check_disks(image, grid, disks=DISKS, value=0.01, place=0.2):
    y = (np.arange(grid.n) - (grid.n - 1) / 2)[slice(*grid.windows[0])][:, None]
    z = (np.arange(grid.n) - (grid.n - 1) / 2)[slice(*grid.windows[1])][None, :]
    for y0, z0, radius, mu in disks:
        r = np.hypot(y - y0, z - z0)
        assert image[r < radius - 3].mean() == pytest.approx(mu, rel=value)
        weight = np.where(r < radius + 4, image, 0)
        assert (weight * y).sum() / weight.sum() == pytest.approx(y0, abs=place)
        assert (weight * z).sum() / weight.sum() == pytest.approx(z0, abs=place)


SCANS = {
    "half turn": (np.arange(360) * 0.5, 256, 120.3),
    "backwards, axis in the middle": (200 - np.arange(360) * 0.5, 255, 127.0),
    "whole turn": (np.arange(720) * 0.5, 256, 131.0),
    "whole turn, axis aside": (np.arange(720) * 0.5, 180, 60.4),
    "whole turn, axis at the other side": (np.arange(720) * 0.5, 180, 118.7),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scan", SCANS)
def test_every_backend_gives_the_same_place_and_value(backend, scan):
    if backend not in available_backends():
        pytest.skip(f"{backend} is not installed")
    angles, n_u, axis = SCANS[scan]
    grid = SliceGrid(256)
    sinogram = disk_sinogram(angles, n_u, axis)
    image = reconstruct_slices(sinogram[None], angles, axis, 1.0, grid, "ramp", backend)[0]
    assert image.shape == (256, 256)
    check_disks(image, grid)


@pytest.mark.parametrize("backend", available_backends())
def test_a_window_is_a_part_of_the_whole_and_slices_stay_apart(backend):
    angles, n_u, axis = np.arange(90) * 2.0, 96, 44.2
    disks = ((10.0, -15.0, 12.0, 0.01),)
    one = disk_sinogram(angles, n_u, axis, disks)
    # more slices than are taken at once, each with another strength
    strength = 1.0 + np.arange(19, dtype=np.float32)
    stack = one[None] * strength[:, None, None]
    whole = reconstruct_slices(stack, angles, axis, 1.0, SliceGrid(96), "ramp", backend)
    window = reconstruct_slices(
        stack, angles, axis, 1.0, SliceGrid(96, (30, 81), (10, 63)), "ramp", backend
    )
    assert window.shape == (19, 51, 53)
    np.testing.assert_allclose(window, whole[:, 30:81, 10:63], atol=2e-3 * 0.19)
    np.testing.assert_allclose(
        whole / strength[:, None, None], np.broadcast_to(whole[0], whole.shape), atol=2e-5
    )


def test_torch_and_numba_are_the_same_numbers():
    pytest.importorskip("torch")
    angles, n_u, axis = SCANS["half turn"]
    sinogram = disk_sinogram(angles, n_u, axis)[None]
    ours, theirs = (
        reconstruct_slices(sinogram, angles, axis, 1.0, None, "hann", backend)
        for backend in ("numba", "torch")
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_uniform_disk_is_uniform_and_scales_with_the_pixel():
    angles = np.arange(400) * 0.45
    disk = ((0.0, 0.0, 40.0, 0.01),)
    sinogram = disk_sinogram(angles, 128, 63.5, disk)[None]
    image = reconstruct_slices(sinogram, angles, 63.5, 1.0)[0]
    r = np.hypot(*(np.mgrid[:128, :128] - 63.5))
    profile = [image[(r >= a) & (r < a + 8)].mean() for a in (0, 8, 16, 24, 30)]
    np.testing.assert_allclose(profile, 0.01, rtol=2e-3)
    assert abs(image[(r > 44) & (r < 63)].mean()) < 2e-5
    # beyond the detector too: the ramp's tails reach there
    assert abs(image[r > 70].mean()) < 2e-5
    np.testing.assert_allclose(
        reconstruct_slices(sinogram, angles, 63.5, 0.25)[0], image / 0.25, rtol=1e-5
    )


def test_angles_not_evenly_spaced():
    rng = np.random.default_rng(3)
    # three stretches, of different density, in random order, and some angles twice
    angles = np.concatenate(
        [np.arange(0, 60, 0.3), np.arange(60, 120, 0.8), np.arange(120, 180, 0.5)]
    )
    angles = rng.permutation(np.append(angles, angles[:40]))
    sinogram = disk_sinogram(angles, 256, 127.5)
    check_disks(reconstruct_slices(sinogram[None], angles, 127.5, 1.0)[0], SliceGrid(256))
    # weighting all alike would not do
    even = np.full(len(angles), np.pi / len(angles))
    assert np.abs(angular_weights(angles) / even - 1).max() > 0.5


@pytest.mark.parametrize("n", [1, 7, 180])
def test_weights_add_up_to_half_a_turn(n):
    angles = np.random.default_rng(n).permutation(np.arange(n) * 180.0 / n)
    np.testing.assert_allclose(angular_weights(angles), np.pi / n)
    np.testing.assert_allclose(angular_weights(2 * angles, 360.0), np.pi / n)


def test_the_neighbours_of_a_gap_stand_for_it():
    angles = np.arange(0, 150, 1.0)
    weights = np.rad2deg(angular_weights(angles))
    np.testing.assert_allclose(weights[1:-1], 1.0)
    np.testing.assert_allclose(weights[[0, -1]], 16.0)
    assert largest_gap(angles) == pytest.approx(31.0)
    assert gaps_of(angles, 5.0) == [(149.0, 180.0)]


@pytest.mark.parametrize(("step", "first", "width"), [(1.5, 46.5, 9.0), (1.25, 100.0, 15.0)])
def test_a_gap_leaves_mu_as_it_is(step, first, width):
    angles = np.arange(0, 180, step)
    angles = angles[(angles <= first) | (angles >= first + width)]
    disk = ((8.0, 5.0, 50.0, 0.01),)
    image = reconstruct_slices(disk_sinogram(angles, 192, 95.5, disk)[None], angles, 95.5, 1.0)[0]
    r = np.hypot(np.arange(192)[:, None] - 95.5 - 8, np.arange(192)[None] - 95.5 - 5)
    assert image[r < 45].mean() == pytest.approx(0.01, rel=0.01)


def test_scans_of_half_and_whole_turns_are_told_apart():
    assert not is_full_turn(np.arange(0, 180, 1.0))
    assert is_full_turn(np.arange(0, 360, 1.0))
    assert not is_full_turn(np.arange(0, 300, 1.0))


@pytest.mark.parametrize("axis", [10.0, 40.5, 80.0])
def test_offset_weights_of_opposite_views_add_up_to_two(axis):
    n_u = 100
    weights = offset_weights(n_u, axis)
    u = np.arange(n_u)
    opposite = np.interp(2 * axis - u, u, weights, left=0, right=0)
    np.testing.assert_allclose(weights + opposite, 2.0, atol=2e-3)


def test_the_ramp_at_zero_frequency_and_its_windows():
    ramp = ramp_filter(512)
    f = np.fft.rfftfreq(512)
    np.testing.assert_allclose(ramp[1:], f[1:], atol=2e-3)
    assert 0 < ramp[0] < 1 / 512
    for name in ("shepp-logan", "cosine", "hamming", "hann"):
        windowed = ramp_filter(512, name)
        assert windowed[1] == pytest.approx(ramp[1], rel=1e-3)
        assert windowed[-1] < 0.7 * ramp[-1]
    with pytest.raises(ValueError, match="filter 'sharp' is unknown"):
        ramp_filter(64, "sharp")


def test_centred_moves_by_fractions_of_a_pixel():
    angles = np.arange(30) * 6.0
    wanted = disk_sinogram(angles, 151, 75.0, DISKS[:1])
    given = disk_sinogram(angles, 120, 50.37, DISKS[:1])
    error = centred(given, 50.37, 151) - wanted
    assert np.abs(error).max() < 0.03 * wanted.max()  # at the edges, where the slope is infinite
    assert error.std() < 0.004 * wanted.max()


def test_backends_that_are_unknown_or_not_installed_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="'magic' is unknown"):
        choose_backend("magic")
    monkeypatch.setattr(
        "anacor_dials.tomography.backprojection.available_backends", lambda: ("numba",)
    )
    with pytest.raises(ValueError, match="tomopy is not installed"):
        choose_backend("tomopy")
    assert choose_backend("numba") == "numba"


@pytest.mark.parametrize(
    ("axis", "angles", "grid", "message"),
    [
        (70.0, 8, None, "outside the detector"),
        (30.0, 7, None, "8 rows and there are 7 angles"),
    ],
)
def test_impossible_slices_are_refused(axis, angles, grid, message):
    with pytest.raises(ValueError, match=message):
        reconstruct_slices(np.zeros((1, 8, 64)), np.arange(angles) * 20.0, axis, 1.0, grid)
    with pytest.raises(ValueError, match="crop y = 3 to 90"):
        SliceGrid(64, (3, 90))


# ---- whole scans: ellipsoids ----------------------------------------------------------------------


def check_ellipsoids(tomogram, scan, value=0.02, place=0.5):
    """Each ellipsoid is where it is, in um from the origin, and has its mu inside."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in tomogram.shape), indexing="ij"), axis=-1)
    position = tomogram.position_um(index)
    for e in scan.ellipsoids:
        axes = np.array(e.semi_axes)
        inner = np.linalg.norm((position - e.centre) / (axes - 2.0 * scan.pixel_um), axis=-1) < 1
        assert inner.sum() > 100
        assert tomogram.values[inner].mean() == pytest.approx(e.mu, rel=value)
        near = np.linalg.norm((position - e.centre) / (axes + 2.0 * scan.pixel_um), axis=-1) < 1
        weight = tomogram.values[near].astype(np.float64)
        middle = (weight[:, None] * position[near]).sum(axis=0) / weight.sum()
        assert np.abs(middle - e.centre).max() < place * scan.pixel_um


def reconstructed(tmp_path, scan, settings=EXACT, **description):
    path = scan.write_nxtomo(tmp_path / "scan.nxs")
    return reconstruct_scan(
        path,
        ScanDescription(fast_axis=scan.fast_axis, slow_axis=scan.slow_axis, **description),
        settings,
    )


@pytest.mark.parametrize(
    ("fast", "slow", "axis_pixel"),
    [
        ((0, 1, 0), (1, 0, 0), None),
        ((0, 1, 0), (1, 0, 0), 29.4),
        ((0, -1, 0), (1, 0, 0), 29.4),
        ((0, 1, 0), (-1, 0, 0), 34.0),
        ((1, 0, 0), (0, 1, 0), 33.7),
        ((-1, 0, 0), (0, 1, 0), None),
        ((1, 0, 0), (0, -1, 0), 29.4),
        ((-1, 0, 0), (0, -1, 0), 33.7),
    ],
)
def test_ellipsoids_are_found_in_place_with_their_mu(
    tmp_path, ellipsoid_scan, fast, slow, axis_pixel
):
    scan = ellipsoid_scan.at(
        fast_axis=fast,
        slow_axis=slow,
        shape=(64, 44) if fast[0] else (44, 64),
        axis_pixel=axis_pixel,
        beam_pixel=23.0,
        drift=0.1,
    )
    settings = ReconstructionSettings(
        rings="off", zinger_threshold=None, filter_name="ramp", beam_centre=23.0, crop="off"
    )
    tomogram, plan = reconstructed(tmp_path, scan, settings)
    assert tomogram.shape == (44, 64, 64)
    assert plan.scan_centre[0] == pytest.approx(31.5 if axis_pixel is None else axis_pixel, abs=0.3)
    assert plan.scan_centre[1] == 23.0
    check_ellipsoids(tomogram, scan)


def test_ellipsoids_with_noise_rings_and_drift_and_every_correction_on(tmp_path, ellipsoid_scan):
    scan = ellipsoid_scan.at(
        axis_pixel=33.2, counts=4000.0, ring_gain=0.004, drift=0.15, pixel_um=0.5,
        ellipsoids=tuple(
            type(e)(tuple(0.5 * v for v in e.centre), tuple(0.5 * v for v in e.semi_axes), 2 * e.mu)
            for e in ellipsoid_scan.ellipsoids
        ),
    )  # fmt: skip
    tomogram, plan = reconstructed(tmp_path, scan, ReconstructionSettings())
    assert plan.diagnostics.centre == pytest.approx(33.2, abs=0.3)
    np.testing.assert_allclose(tomogram.voxel_size_um, 0.5)
    check_ellipsoids(tomogram, scan)
    assert plan.diagnostics.zinger_percent < 0.01


def test_a_whole_turn_with_the_axis_aside(tmp_path, ellipsoid_scan):
    scan = ellipsoid_scan.at(
        shape=(44, 42), axis_pixel=11.3, angles_deg=tuple(np.arange(361) * 1.0)
    )
    tomogram, plan = reconstructed(tmp_path, scan)
    assert plan.diagnostics.n_projections == 360
    assert plan.diagnostics.centre_method == "opposite"
    assert tomogram.shape[1] > 42  # as far as the long side reaches, on both sides
    check_ellipsoids(tomogram, scan)


def test_the_sense_of_rotation_matters(tmp_path, ellipsoid_scan):
    scan = ellipsoid_scan.at(angles_deg=tuple(-np.arange(180) * 1.0))
    path = scan.write_nxtomo(tmp_path / "scan.nxs")
    tomogram, _ = reconstruct_scan(path, settings=EXACT)
    check_ellipsoids(tomogram, scan)
    right_angles, _ = reconstruct_scan(
        path, ScanDescription(first_angle_deg=0.0, angle_step_deg=1.0), EXACT
    )
    with pytest.raises(AssertionError):
        check_ellipsoids(right_angles, scan)


def test_slabs_and_files_give_the_same_tomogram(tmp_path, ellipsoid_scan, monkeypatch):
    path = ellipsoid_scan.at(counts=5000.0).write_nxtomo(tmp_path / "scan.nxs")
    whole, _ = reconstruct_scan(path)
    monkeypatch.setattr(reconstruction, "_slab_rows", lambda plan: 16)
    monkeypatch.setattr(sinograms, "BATCH_BYTES", 4e5)
    plan = plan_reconstruction(read_projections(path))
    with new_tomogram_file(
        tmp_path / "tomo.h5", plan.shape, plan.voxel_size_um, plan.centre,
        SampleFile(path, projections=path, scan_centre=plan.scan_centre),
    ) as dataset:  # fmt: skip
        assert reconstruct(plan, dataset) is None
    contents = read_sample_file(tmp_path / "tomo.h5")
    assert contents.tomogram is not None
    np.testing.assert_allclose(contents.tomogram.values, whole.values, atol=1e-7)
    np.testing.assert_allclose(contents.tomogram.centre, whole.centre)
    assert contents.projections == path
    assert contents.scan_centre == pytest.approx(plan.scan_centre)
    assert plan.diagnostics.histogram[1].sum() == whole.values.size


def test_the_histogram_shows_the_sample_where_the_first_slab_is_air(
    ellipsoid_scan, tmp_path, monkeypatch
):
    monkeypatch.setattr(reconstruction, "SLAB", 2)
    monkeypatch.setattr(reconstruction, "HISTOGRAM_VOXELS", 20_000)
    path = ellipsoid_scan.write_nxtomo(tmp_path / "scan.nxs")
    whole, plan = reconstruct_scan(path, settings=ReconstructionSettings(centre=31.5, crop="off"))
    assert whole.values[:2].max() < 0.01
    edges, counts = plan.diagnostics.histogram
    middles = 0.5 * (edges[1:] + edges[:-1])
    for mu in (0.005, 0.012, 0.020):
        share = counts[middles > mu].sum() / counts.sum()
        assert share == pytest.approx(np.mean(whole.values > mu), rel=0.1, abs=0.005)


def test_an_interrupted_reconstruction_leaves_nothing(tmp_path, ellipsoid_scan):
    plan = plan_reconstruction(read_projections(ellipsoid_scan.write_nxtomo(tmp_path / "scan.nxs")))

    class Full:
        """A disk that is full after some slices."""

        def __init__(self, dataset):
            self.dataset = dataset

        def __setitem__(self, key, value):
            self.dataset[key] = value
            raise OSError("No space left on device")

    def interrupted():
        with new_tomogram_file(
            tmp_path / "tomo.h5", plan.shape, plan.voxel_size_um, plan.centre
        ) as dataset:
            reconstruct(plan, Full(dataset))

    with pytest.raises(OSError, match="No space left"):
        interrupted()
    assert [f.name for f in tmp_path.iterdir()] == ["scan.nxs"]


def test_cropping_to_the_sample_keeps_all_of_it_in_place(tmp_path, ellipsoid_scan, caplog):
    scan = ellipsoid_scan.at(shape=(80, 128), axis_pixel=60.0, counts=8000.0)
    path = scan.write_nxtomo(tmp_path / "scan.nxs")
    whole, _ = reconstruct_scan(path, settings=ReconstructionSettings(centre=60.0, crop="off"))
    with caplog.at_level("INFO", "dials"):
        cropped, plan = reconstruct_scan(
            path, settings=ReconstructionSettings(centre=60.0, crop="auto")
        )
    percent = 100 * cropped.values.size / whole.values.size
    assert f"box alone is reconstructed, {percent:.0f} % of the field of view" in caplog.text
    assert cropped.values.size < 0.4 * whole.values.size
    check_ellipsoids(cropped, scan)
    for axis in range(3):  # room on every side of all ellipsoids
        low = cropped.position_um((0, 0, 0))[axis]
        high = cropped.position_um(np.array(cropped.shape) - 1)[axis]
        assert low < min(e.centre[axis] - e.semi_axes[axis] for e in scan.ellipsoids) - 3
        assert high > max(e.centre[axis] + e.semi_axes[axis] for e in scan.ellipsoids) + 3
    by_hand, _ = reconstruct_scan(
        path, settings=ReconstructionSettings(centre=60.0, crop=(10, 70, 20, 110, 25, 100))
    )
    np.testing.assert_allclose(by_hand.values, whole.values[10:70, 20:110, 25:100], atol=1e-7)
    check_ellipsoids(by_hand, scan)


def test_the_plan_shows_the_sweep_and_the_sinogram(tmp_path, ellipsoid_scan):
    _, plan = reconstructed(tmp_path, ellipsoid_scan.at(axis_pixel=29.0))
    sweep = plan.diagnostics.sweep
    assert sweep is not None
    best = sweep.centres[np.argmin(sweep.negativity)]
    assert best == pytest.approx(29.0, abs=0.5)
    assert sweep.pictures.shape[0] == len(sweep.centres)
    assert plan.diagnostics.sinogram_before.shape == (180, 64)
    assert set(plan.diagnostics.slices) == {"x", "y", "z"}


def test_what_is_wrong_with_a_scan_is_said(tmp_path, ellipsoid_scan):
    wedge = ellipsoid_scan.at(angles_deg=tuple(np.arange(150) * 1.0), shape=(20, 64))
    plan = plan_reconstruction(
        read_projections(wedge.write_nxtomo(tmp_path / "wedge.nxs")), pictures=False
    )
    assert any("degrees of the half turn were not measured" in w for w in plan.diagnostics.warnings)
    few = ellipsoid_scan.at(angles_deg=tuple(np.arange(12) * 15.0), shape=(20, 64))
    plan = plan_reconstruction(
        read_projections(few.write_nxtomo(tmp_path / "few.nxs")), pictures=False
    )
    assert any("12 projections are few for 64 pixels" in w for w in plan.diagnostics.warnings)
    dense = ellipsoid_scan.at(
        shape=(20, 64),
        ellipsoids=tuple(
            type(e)(e.centre, e.semi_axes, 40 * e.mu) for e in ellipsoid_scan.ellipsoids
        ),
    )
    _, plan = reconstruct_scan(dense.write_nxtomo(tmp_path / "dense.nxs"), settings=EXACT)
    assert plan.diagnostics.clipped_percent > 1
    assert any("were clipped" in w for w in plan.diagnostics.warnings)


# ---- the centre of rotation -----------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("axis", [120.3, 131.13, 140.77])
def test_every_way_finds_the_axis(axis, noise):
    rng = np.random.default_rng(5)
    half, whole = np.arange(361) * 180.0 / 361, np.arange(720) * 0.5
    p = disk_sinogram(half, 256, axis) + noise * rng.standard_normal((361, 256))
    q = disk_sinogram(whole, 256, axis - 80) + noise * rng.standard_normal((720, 256))
    assert centre_of_mass_axis(p.astype(np.float32), half) == pytest.approx(axis, abs=0.3)
    assert opposite_views_axis(q.astype(np.float32), whole) == pytest.approx(axis - 80, abs=0.1)
    pytest.importorskip("algotom")
    assert vo_axis(p.astype(np.float32), half) == pytest.approx(axis, abs=0.3)


def test_centres_that_cannot_be_found_are_refused():
    angles = np.arange(180) * 1.0
    empty = np.zeros((2, 180, 64), np.float32)
    with pytest.raises(ValueError, match="cannot be found"):
        find_rotation_centre(empty, angles, "mass")
    with pytest.raises(ValueError, match="360 degrees"):
        find_rotation_centre(empty, angles, "opposite")
    with pytest.raises(ValueError, match="'guess' to find the centre is unknown"):
        find_rotation_centre(empty, angles, "guess")


def test_tooth_has_its_centre_at_295(shared_data):
    pytest.importorskip("algotom")
    tomogram, plan = reconstruct_scan(
        shared_data / "tooth/tooth.h5",
        ScanDescription(pixel_size_um=(1.0,)),
        ReconstructionSettings(crop="off"),
    )
    assert plan.diagnostics.centre == pytest.approx(295.0, abs=0.5)
    assert tomogram.shape == (2, 640, 640)
    slice_ = tomogram.values[0]
    r = np.hypot(*(np.mgrid[:640, :640] - 319.5))
    # clean: dentine and enamel stand out of a flat background that rings are gone from
    background = slice_[(r > 200) & (r < 290)]
    assert abs(background.mean()) < 0.02 * np.percentile(slice_, 99)
    assert background.std() < 0.1 * np.percentile(slice_, 99)
    rings, _ = reconstruct_scan(
        shared_data / "tooth/tooth.h5",
        ScanDescription(pixel_size_um=(1.0,)),
        ReconstructionSettings(rings="off", centre=295.0, crop="off"),
    )

    def ring_strength(image):  # scatter of the mean over circles
        means = np.array([image[np.abs(r - radius) < 0.5].mean() for radius in range(190, 290)])
        return np.diff(means).std()

    assert ring_strength(slice_) < 0.6 * ring_strength(rings.values[0])


# ---- corrections ----------------------------------------------------------------------------------


def test_zingers_are_replaced_by_their_neighbourhood():
    rng = np.random.default_rng(0)
    clean = (0.8 + 0.01 * rng.standard_normal((3, 30, 40))).astype(np.float32)
    spoilt = clean.copy()
    spoilt[0, 5, 6] = 5.0
    spoilt[1, 0, 0] = 3.0  # a corner
    spoilt[2, 10, 10:12] = 2.0  # two side by side
    result, count = remove_zingers(spoilt, zinger_threshold(spoilt, 0.2))
    assert count == 4
    np.testing.assert_allclose(result, clean, atol=0.08)
    untouched = np.ones_like(clean, dtype=bool)
    untouched[spoilt != clean] = False
    np.testing.assert_array_equal(result[untouched], spoilt[untouched])
    # strong noise raises the threshold
    noisy = (0.5 + 0.2 * rng.standard_normal((1, 100, 100))).astype(np.float32)
    assert zinger_threshold(noisy, 0.2)[0] == pytest.approx(1.6, rel=0.1)


def test_unusable_pixels_are_bridged():
    nan = np.nan
    image = np.array(
        [[[1, nan, 3, nan, nan, 6], [nan, nan, 2, 2, 2, nan], [nan] * 6]], dtype=np.float32
    )
    assert bridge_unusable(image) == 12
    np.testing.assert_allclose(image[0, 0], [1, 2, 3, 4, 5, 6])
    np.testing.assert_allclose(image[0, 1], 2)
    np.testing.assert_allclose(image[0, 2], 1)


def test_logarithms_of_clipped_transmissions():
    images = np.array([[[1.0, 0.5, 1e-4, -0.2, 1.1]]], dtype=np.float32)
    assert minus_log(images, 1e-3) == 2
    np.testing.assert_allclose(
        images[0, 0], -np.log([1.0, 0.5, 1e-3, 1e-3, 1.1]), rtol=1e-5, atol=1e-7
    )


def test_light_ring_removal_takes_the_rings_and_leaves_mu():
    angles = np.arange(360) * 0.5
    clean = disk_sinogram(angles, 256, 127.5)
    rng = np.random.default_rng(2)
    stripes = np.zeros(256, np.float32)
    stripes[rng.permutation(256)[:60]] = 0.02 * rng.standard_normal(60)
    result = remove_rings((clean + stripes)[None], "light")[0]
    left = np.median(result - clean, axis=0)
    assert left.std() < 0.6 * stripes.std()
    check_disks(
        reconstruct_slices(result[None], angles, 127.5, 1.0)[0], SliceGrid(256), value=0.005
    )
    untouched = remove_rings(clean[None].copy(), "light")[0]
    image = reconstruct_slices(untouched[None], angles, 127.5, 1.0)[0]
    check_disks(image, SliceGrid(256), value=0.002)


@pytest.mark.parametrize("n_angles", [60, 61])
def test_stripes_are_medians_of_what_a_parabola_leaves_twice(n_angles):
    """Against numpy: sort, subtract, and look again at what is left."""
    rng = np.random.default_rng(4)
    sinograms = rng.normal(0, 0.1, (2, n_angles, 75)) + rng.normal(0, 0.2, (2, 1, 75))
    expected = sinograms.copy()
    for _ in range(2):
        smooth = scipy.ndimage.correlate1d(
            expected, np.array([-2, 3, 6, 7, 6, 3, -2]) / 21, axis=2, mode="nearest"
        )
        expected -= np.median(expected - smooth, axis=1, keepdims=True)
    result = remove_rings(sinograms.astype(np.float32), "light")
    np.testing.assert_allclose(result, expected, atol=3e-6)


def test_zingers_are_found_at_borders_and_beside_each_other():
    """Against the neighbourhood of every pixel: more than half of it is darker, and no more than
    four pixels in a wider one are bright.
    """
    rng = np.random.default_rng(6)
    images = rng.normal(1, 0.01, (3, 24, 28)).astype(np.float32)
    images[rng.random(images.shape) < 0.1] += 1
    expected, count = images.copy(), 0
    for k, i, j in np.ndindex(images.shape):
        near = images[k, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        wide = images[k, max(i - 2, 0) : i + 3, max(j - 2, 0) : j + 3]
        bright = np.sum(wide > 0.75 * np.median(wide) + 0.25 * images[k, i, j])
        if np.mean(near < images[k, i, j] - 0.5) > 0.5 and bright <= 4:
            expected[k, i, j] = np.median(near)
            count += 1
    result, found = remove_zingers(images, np.full(3, 0.5, np.float32))
    assert found == count > 50
    np.testing.assert_array_equal(result, expected)


def test_fringes_are_no_zingers():
    """The rim of a disk, brighter than air by a line one pixel wide, stays, and a zinger on it
    goes."""
    x, y = np.mgrid[:60, :64] - np.array([30.2, 31.4])[:, None, None]
    radius = np.hypot(x, y)
    image = np.where(radius < 20, 0.4, 1.0) + 1.5 * np.exp(-0.5 * ((radius - 20) / 0.5) ** 2)
    images = image[None].astype(np.float32)
    result, count = remove_zingers(images, np.array([0.2], np.float32))
    assert count == 0
    np.testing.assert_array_equal(result, images)
    spoilt = images.copy()
    on_rim, outside = (30, 51), (5, 5)
    for place in (on_rim, outside):
        spoilt[0][place] += 8.0
    result, count = remove_zingers(spoilt, np.array([0.2], np.float32))
    assert count == 2
    assert result[0][outside] == pytest.approx(1.0, abs=1e-3)


def test_strong_ring_removal_takes_wide_rings():
    pytest.importorskip("algotom")
    angles = np.arange(360) * 0.5
    clean = disk_sinogram(angles, 256, 127.5)
    clean += 0.002 * np.random.default_rng(2).standard_normal(clean.shape).astype(np.float32)
    stripes = np.zeros(256, np.float32)
    stripes[40:52] = 0.05
    result = remove_rings((clean + stripes)[None], "strong")[0]
    left = np.median(result - clean, axis=0)
    assert abs(left[42:50].mean()) < 0.025
    assert np.array_equal(remove_rings(clean[None], "off")[0], clean)


def test_phase_retrieval_inverts_the_transport_of_intensity():
    # one material: the fringed image is T - L^2 laplacian(T), to first order in the distance
    x, y = np.mgrid[:64, :96]
    contact = np.exp(-0.5 * np.exp(-((x - 30) ** 2 + (y - 50) ** 2) / (2 * 6.0**2)))
    pixel, length = 0.5, 1.5
    k2 = (2 * np.pi) ** 2 * (
        np.fft.fftfreq(64, pixel)[:, None] ** 2 + np.fft.fftfreq(96, pixel)[None, :] ** 2
    )
    fringed = np.real(np.fft.ifft2(np.fft.fft2(contact) * (1 + length**2 * k2)))
    assert np.abs(fringed - contact).max() > 0.05
    result = retrieve_phase(fringed[None].astype(np.float32), length, (pixel, pixel))
    np.testing.assert_allclose(result[0], contact, atol=2e-3)
    # delta/beta 60, 3.5 keV, 10 mm: sqrt(60 * 3.5424e-4 um * 1e4 um / 4 pi)
    assert paganin_length_um(3.5, 10.0, 60.0) == pytest.approx(4.113, rel=1e-3)


def test_phase_retrieval_needs_energy_and_distance_and_says_what_it_is_for(
    tmp_path, ellipsoid_scan
):
    path = ellipsoid_scan.at(shape=(20, 64)).write_nxtomo(tmp_path / "scan.nxs")
    settings = ReconstructionSettings(paganin_delta_beta=60.0)
    with pytest.raises(ValueError, match="distance"):
        reconstruct_scan(path, settings=settings)
    _, plan = reconstruct_scan(path, ScanDescription(distance_mm=5.0), settings)
    assert plan.diagnostics.phase_retrieved
    assert any("mu is not to be taken" in w for w in plan.diagnostics.warnings)


# ---- bad settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"least_transmission": 0.0}, "least transmission is 0"),
        ({"zinger_threshold": -1.0}, "zinger threshold"),
        ({"rings": "all"}, "Ring removal 'all'"),
        ({"crop": "tight"}, "crop is 'tight'"),
        ({"crop": (1, 2, 3)}, "3 numbers"),
        ({"filter_name": "sharp"}, "filter 'sharp'"),
        ({"paganin_delta_beta": 0.0}, "delta / beta"),
        ({"memory_gb": 0.0}, "memory"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ReconstructionSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"centre": 99.0}, "centre 99.0 is outside the detector"),
        ({"crop": (0, 99, 0, 10, 0, 10)}, "crop x = 0 to 99"),
        ({"crop": (0, 9, 0, 10, 5, 99)}, "crop z = 5 to 99"),
    ],
)
def test_settings_that_do_not_fit_the_scan_are_refused(tmp_path, ellipsoid_scan, settings, message):
    path = ellipsoid_scan.at(shape=(20, 64)).write_nxtomo(tmp_path / "scan.nxs")
    with pytest.raises(ValueError, match=message):
        reconstruct_scan(path, settings=ReconstructionSettings(**settings))


def test_an_empty_scan_is_refused(tmp_path, ellipsoid_scan):
    path = ellipsoid_scan.at(shape=(20, 64), ellipsoids=()).write_nxtomo(tmp_path / "scan.nxs")
    with pytest.raises(ValueError, match="Nothing absorbs"):
        reconstruct_scan(path, settings=EXACT)
