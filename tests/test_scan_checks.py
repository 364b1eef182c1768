"""Scans are looked at as a whole: what is no projection is left out, the beam measured, the sample put back."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
import scipy.ndimage

from anacor_dials.tomography.beam_level import BeamLevel, measure_beam
from anacor_dials.tomography.moments import find_moments
from anacor_dials.tomography.projections import read_projections
from anacor_dials.tomography.reconstruction import reconstruct_scan
from anacor_dials.tomography.resampling import Motion, moved_back
from anacor_dials.tomography.sample_motion import drift_across, harmonics
from anacor_dials.tomography.scan_checks import ScanChecks, named
from anacor_dials.tomography.scan_files import ScanDescription
from anacor_dials.tomography.survey import Survey, block_means, survey_scan

DATA = "instrument/detector/data"
ANGLES = "data/rotation_angle"
N = 120


@pytest.fixture
def scan(ellipsoid_scan):
    """Three ellipsoids, 120 projections of 52 x 76 pixels, air all around, some noise."""
    return ellipsoid_scan.at(
        shape=(52, 76), angles_deg=tuple(np.arange(N) * 1.5), counts=8000.0, axis_pixel=38.2
    )


def written(path, scan, spoil=None, angles=None):
    """The scan as an NXtomo file, its projections spoilt: spoil(images (n, rows, columns)) in place."""
    images, keys, recorded = scan.frames()
    where = np.flatnonzero(keys == 0)
    if spoil is not None:
        part = images[where].astype(np.float64)
        spoil(part)
        images[where] = np.rint(part).clip(0, 65535)
    if angles is not None:
        recorded[where] = angles
    return scan.write_nxtomo(path, **{DATA: images, ANGLES: recorded})


def displaced(scan, across=None, along=None, tilt_deg=0.0):
    """The scan of a sample that moves in the image by (n,) pixels, of an axis tilted from X towards +Y."""

    class Moving(type(scan)):
        def transmission(self, oversample=3):
            n = len(self.angles_deg)
            u = np.zeros(n) if across is None else across * self.pixel_um
            x = np.zeros(n) if along is None else along * self.pixel_um
            images = []
            for k, angle in enumerate(self.angles_deg):
                c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
                moved = tuple(
                    replace(
                        e,
                        centre=(
                            e.centre[0] + x[k],
                            e.centre[1] + u[k] * c,
                            e.centre[2] - u[k] * s,
                        ),
                    )
                    for e in self.ellipsoids
                )
                one = scan.at(ellipsoids=moved, angles_deg=(angle,))
                image = one.transmission(oversample)[0]
                if tilt_deg:  # rows grow along X, columns along Y
                    image = scipy.ndimage.rotate(
                        image, tilt_deg, reshape=False, order=3, mode="nearest"
                    )
                images.append(image)
            return np.stack(images)

    return Moving(**{name: getattr(scan, name) for name in scan.__dataclass_fields__})


def check(tomogram, scan, value, place):
    """mu of each ellipsoid, and where its centre of mass is, in pixels."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in tomogram.shape), indexing="ij"), axis=-1)
    position = tomogram.position_um(index)
    for e in scan.ellipsoids:
        axes = np.array(e.semi_axes)
        inner = np.linalg.norm((position - e.centre) / (axes - 2.5 * scan.pixel_um), axis=-1) < 1
        assert tomogram.values[inner].mean() == pytest.approx(e.mu, rel=value)
        near = np.linalg.norm((position - e.centre) / (axes + 3 * scan.pixel_um), axis=-1) < 1
        weight = np.where(near, tomogram.values, 0)
        centre = np.tensordot(weight, position, axes=3) / weight.sum()
        np.testing.assert_allclose(centre, e.centre, atol=place * scan.pixel_um)


# ---- good scans stay as they are ------------------------------------------------------------------


GOOD = {
    "plain": {},
    "no noise": {"counts": 0.0},
    "faint": {"counts": 500.0},
    "rings and a beam that grows": {"ring_gain": 0.004, "drift": 0.15},
    "few projections": {"angles_deg": tuple(np.arange(30) * 6.0)},
    "a whole turn": {"angles_deg": tuple(np.arange(180) * 2.0)},
    "interlaced": {"angles_deg": tuple(np.append(np.arange(0, 180, 4.0), np.arange(2, 180, 4.0)))},
    "backwards": {"angles_deg": tuple(180 - np.arange(N) * 1.5)},
    "larger than the image": {"shape": (20, 30), "axis_pixel": None},
    "axis aside": {
        "shape": (52, 48),
        "axis_pixel": 14.0,
        "angles_deg": tuple(np.arange(180) * 2.0),
    },
}


@pytest.mark.parametrize("name", GOOD)
def test_good_scans_give_no_alarm(tmp_path, scan, name):
    path = written(tmp_path / "scan.nxs", scan.at(**GOOD[name]))
    projections = read_projections(path)
    assert projections.findings.warnings == ()
    assert projections.findings.left_out == ()
    assert projections.motion is None
    assert projections.n_angles == len(scan.at(**GOOD[name]).angles_deg)
    if projections.level is not None:
        np.testing.assert_allclose(projections.level, 1.0, atol=0.005)


def test_a_plate_seen_edge_on_is_no_bad_frame(tmp_path, scan):
    ellipsoid = type(scan.ellipsoids[0])
    plate = (ellipsoid((0, 0, 0), (15, 25, 1.2), 0.03), ellipsoid((3, 10, 5), (10, 9, 7), 0.01))
    for n in (36, 120):
        angles = tuple(np.arange(n) * 180.0 / n)
        path = written(tmp_path / "scan.nxs", scan.at(ellipsoids=plate, angles_deg=angles))
        assert read_projections(path).findings.warnings == ()


def test_real_scans_give_no_alarm(shared_data):
    tooth = read_projections(shared_data / "tooth/tooth.h5")
    assert tooth.findings.left_out == ()
    assert tooth.findings.warnings == ()
    assert tooth.findings.level == pytest.approx((0.994, 0.990, 0.997), abs=0.002)
    k11 = read_projections(shared_data / "k11_diad/k11-18014.nxs")
    assert k11.findings.left_out == ()
    assert k11.n_angles == 3000


# ---- frames that are no projections ---------------------------------------------------------------


def shutter_closed(images):
    images[[0, 40, 41, 42, 90]] = 100


def filled_with_zeros(images):
    images[30:36] = 0


def saturated(images):
    images[[3, 77]] = 65535


def read_out_twice(images):
    images[[31, 32]] = images[30]


def beam_in_half_of_the_image(images):
    images[50:52] = 100 + (images[50:52] - 100) * np.linspace(0.2, 1, images.shape[2])


def without_sample(images):
    images[60], images[61] = 30100, 30000


@pytest.mark.parametrize(
    ("spoil", "numbers", "reason"),
    [
        (shutter_closed, [0, 40, 41, 42, 90], "no beam: 1, 41 to 43, 91 (0.00, 60.00 to 63.00,"),
        (filled_with_zeros, range(30, 36), "no beam: 31 to 36"),
        (saturated, [3, 77], "saturated"),
        (read_out_twice, [31, 32], "the frame before it once more: 32 to 33"),
        (beam_in_half_of_the_image, [50, 51], "unlike the frames before and after it: 51 to 52"),
        (without_sample, [60, 61], "unlike the frames before and after it: 61 to 62"),
    ],
)
def test_frames_that_are_no_projections_are_left_out_and_named(
    tmp_path, scan, spoil, numbers, reason
):
    path = written(tmp_path / "scan.nxs", scan, spoil)
    projections = read_projections(path)
    np.testing.assert_allclose(
        projections.angles_deg, np.delete(np.array(scan.angles_deg), list(numbers))
    )
    ((text, count),) = projections.findings.left_out
    assert count == len(list(numbers))
    assert reason in text
    tomogram, plan = reconstruct_scan(path)
    check(tomogram, scan, value=0.02, place=0.5)
    assert any(reason in warning for warning in plan.diagnostics.warnings)


def test_more_than_a_tenth_of_bad_frames_is_refused(tmp_path, scan):
    def spoil(images):
        images[20:33] = 0

    path = written(tmp_path / "scan.nxs", scan, spoil)
    with pytest.raises(
        ValueError, match=r"13 of 120 projections cannot be used \(no beam: 21 to 33"
    ):
        read_projections(path)


def test_projections_are_named_by_number_and_angle():
    angles = np.arange(20) * 0.5
    assert named([2], angles) == "3 (1.00 deg)"
    assert named([2, 3, 4, 9], angles) == "3 to 5, 10 (1.00 to 2.00, 4.50 deg)"
    assert named(range(0, 20, 2), angles).startswith("1, 3, 5, 7, 9, 11, ... (0.00,")


# ---- the beam's level -----------------------------------------------------------------------------


def test_flats_of_twice_the_exposure(tmp_path, scan):
    def spoil(images):
        images[:] = 100 + (images - 100) / 2

    path = written(tmp_path / "scan.nxs", scan, spoil)
    tomogram, plan = reconstruct_scan(path)
    check(tomogram, scan, value=0.02, place=0.5)
    assert plan.projections.findings.level == pytest.approx((0.5, 0.5, 0.5), abs=0.003)
    assert "is 0.500 of the flats" in plan.diagnostics.warnings[0]
    off = ScanDescription(checks=ScanChecks(level=False))
    wrong = read_projections(path, off)
    assert wrong.level is None
    assert wrong.transmission([0])[0, :4].mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("normalise", [True, False])
def test_count_times_are_taken_off_where_the_file_has_them(tmp_path, scan, normalise):
    """Flats of twice the exposure and every third projection of half of it, with and without air."""
    images, keys, angles = scan.frames()
    times = np.where(keys == 1, 2.0, 1.0)
    times[np.flatnonzero(keys == 0)[::3]] = 0.5
    counts = (images - 100.0) * (0.5 * times)[:, None, None] + 100.0
    path = scan.write_nxtomo(
        tmp_path / "scan.nxs",
        **{DATA: np.rint(counts).astype(np.uint16), "instrument/detector/count_time": times},
    )
    said = ScanDescription(checks=ScanChecks(level=normalise))
    tomogram, _ = reconstruct_scan(path, said)
    check(tomogram, scan, value=0.02, place=0.5)


@pytest.mark.parametrize(
    ("named", "says", "relative"),
    [("Different", True, 0.25), ("Same", True, 1.0), ("Different", False, 1.0)],
)
def test_exposure_times_of_data_exchange(tmp_path, scan, named, says, relative):
    """As the APS writes them: those of the flats count only where they are said to differ."""
    images, keys, angles = scan.frames()
    projections = (images[keys == 0] - 100.0) * relative + 100.0
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["exchange/data"] = np.rint(projections).astype(np.uint16)
        file["exchange/data_white"] = images[keys == 1]
        file["exchange/data_dark"] = images[keys == 2]
        file["exchange/theta"] = angles[keys == 0]
        file["measurement/instrument/detector/exposure_time"] = np.array([0.1])
        acquisition = file.create_group("process/acquisition/flat_fields")
        acquisition["different_flat_exposure"] = np.array([named.encode()])
        if says:
            acquisition["flat_exposure_time"] = np.array([0.4])
    said = ScanDescription(pixel_size_um=(scan.pixel_um,), checks=ScanChecks(level=False))
    read = read_projections(path, said)
    if relative == 1.0:
        assert read.level is None
    else:
        np.testing.assert_allclose(read.level, relative)
    np.testing.assert_allclose(read.transmission([0])[0, :4].mean(), 1.0, atol=0.01)
    with h5py.File(tmp_path / "flats.h5", "w") as file:
        file["flats"] = images[keys == 1]
    elsewhere = replace(said, flats=(f"{tmp_path / 'flats.h5'}:/flats",))
    assert read_projections(path, elsewhere).level is None  # how long these took, nobody said


def test_a_beam_that_decays_and_tops_up(tmp_path, scan):
    factor = np.linspace(1.0, 0.7, N)
    factor[64:] *= 1.4

    def spoil(images):
        images[:] = 100 + (images - 100) * factor[:, None, None]

    path = written(tmp_path / "scan.nxs", scan, spoil)
    tomogram, plan = reconstruct_scan(path)
    np.testing.assert_allclose(plan.projections.level, factor, rtol=0.004)
    check(tomogram, scan, value=0.02, place=0.5)


def test_air_is_not_seen_in_a_sample_that_fills_the_image():
    """Chords of cylinders: their edges, and never their inside, are told from air."""
    u = np.arange(256) - 127.5
    rng = np.random.default_rng(4)
    for radius, air in ((80, True), (115, True), (127, False), (140, False), (300, False)):
        chord = 2 * np.sqrt(np.maximum(radius**2 - u**2, 0))
        images = np.broadcast_to(0.6 * np.exp(-0.01 * chord), (40, 32, 256))
        images = (images + 0.002 * rng.standard_normal(images.shape)).astype(np.float32)
        beam = measure_beam(images, np.ones(40, dtype=bool))
        assert beam.seen == air
        if air:
            np.testing.assert_allclose(beam.level, 0.6, rtol=0.002)
            assert not beam.air[:, chord > 1].any()


# ---- angles ---------------------------------------------------------------------------------------


def test_an_angle_that_stands_still_is_found(tmp_path, scan):
    right = np.array(scan.angles_deg)
    angles = right.copy()
    angles[52:62] = angles[51]
    path = written(tmp_path / "scan.nxs", scan, angles=angles)
    projections = read_projections(path)
    wrong = np.setdiff1d(np.arange(10, 130), projections.numbers) - 10
    assert set(range(54, 62)) <= set(wrong) <= set(range(51, 62))
    assert "the recorded angle contradicts the image" in projections.findings.left_out[0][0]
    tomogram, _ = reconstruct_scan(path)
    check(tomogram, scan, value=0.02, place=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a + 8 * (a >= 90), r"if all from 9\d\.\d\d deg on are changed by -8"),
        (lambda a: a / 0.9, "fit as gon that were taken for degrees"),
        (np.deg2rad, "fit as radians that were taken for degrees .projections.angle_units="),
        (lambda a: 2 * a, "fit as twice the angle"),
        (np.random.default_rng(1).permutation, "the sample's centre of mass, which must follow a sine, does not"),
    ],
)  # fmt: skip
def test_angles_that_contradict_the_images_are_refused(tmp_path, scan, change, message):
    path = written(tmp_path / "scan.nxs", scan, angles=change(np.array(scan.angles_deg)))
    with pytest.raises(ValueError, match=message):
        read_projections(path)
    off = ScanDescription(checks=ScanChecks(angles=False))
    assert read_projections(path, off).n_angles >= 108


# ---- motion of the sample, tilt of the axis ---------------------------------------------------------

TIME = np.linspace(-0.5, 0.5, N)
MOTIONS = {
    "across": {"across": 3.0 * TIME},
    "along": {"along": 3.0 * TIME},
    "both": {"across": 3.0 * TIME, "along": -3.0 * TIME},
    "tilt": {"tilt_deg": 0.5},
    "tilt the other way": {"tilt_deg": -1.0},
    "all": {"across": -3.0 * TIME, "along": 3.0 * TIME, "tilt_deg": 0.5},
}


@pytest.mark.parametrize("name", MOTIONS)
def test_drift_and_tilt_are_put_back(tmp_path, scan, name):
    scan = scan.at(axis_pixel=None)
    path = written(tmp_path / "scan.nxs", displaced(scan, **MOTIONS[name]))
    tomogram, plan = reconstruct_scan(path)
    check(tomogram, scan, value=0.02, place=0.5)
    findings = plan.projections.findings
    assert findings.tilt_deg == pytest.approx(MOTIONS[name].get("tilt_deg", 0.0), abs=0.1)
    wanted = [float(np.ptp(MOTIONS[name].get(way, [0.0]))) for way in ("along", "across")]
    np.testing.assert_allclose(findings.drift_px, wanted, atol=0.6)
    assert findings.warnings


def test_fringes_are_no_motion():
    """Two rods with fringes, strongest where they see the beam edge-on, keep their mass and place.

    Fringes are the second derivative of a profile: they keep the sum of T, and not that of -ln T.
    """
    nx, ny, n = 40, 96, 90
    angles_deg = np.arange(n) * 2.0
    u = np.arange(ny) - (ny - 1) / 2
    images = np.ones((n, nx, ny))
    for image, angle in zip(images, np.deg2rad(angles_deg), strict=True):
        for place, half in ((15.0, 5.0), (-20.0, 3.0)):
            far = np.abs(u - place * np.cos(angle))
            rod = scipy.ndimage.gaussian_filter1d((far < half).astype(float), 0.8)
            edge_on = np.abs(np.sin(angle + place))
            image[8:32] += -0.15 * rod - 4.0 * edge_on * np.gradient(np.gradient(0.5 * rod))
    assert 0.2 < images.min() < images.max() < 3.0
    air = np.zeros((nx, ny), dtype=bool)
    air[:, :12] = air[:, -12:] = True
    survey = Survey(images.astype(np.float32), (1, 1), np.zeros(n), np.arange(n))
    moments = find_moments(survey, np.ones(n, dtype=bool), BeamLevel(np.ones(n), np.ones(n), air))
    mass = moments.m0[:, moments.rows].sum(axis=1)
    design, _ = harmonics(angles_deg, 1)
    sine = design @ np.linalg.lstsq(design, moments.centre, rcond=None)[0]
    assert mass.std() < 0.02 * mass.mean()  # without the blur 0.07
    assert (moments.centre - sine).std() < 0.3  # pixels; without the blur 0.4


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 9])
def test_small_samples_with_strong_fringes_are_not_refused(tmp_path, number):
    """Scans by wave optics whose centres of mass depart from sines by half a pixel, as fringes do."""
    pytest.importorskip("torch", reason="virtual scans need torch")
    from anacor_dials.jobs.training_scans import ScanRanges, write_training_scan

    ranges = ScanRanges(solids=True, distance_mm=(1.0, 20.0), energy_keV=(2.5, 5.5))
    write_training_scan(tmp_path, "small", (43, number), ranges)
    assert (tmp_path / "small.tomo.h5").is_file()


@pytest.mark.parametrize("n", [120, 900])
def test_a_motion_there_and_back_is_not_taken_for_a_steady_one(n):
    """Centres of mass of half a turn: a drift that goes as a sine of the angle is the place of the sample."""
    rng = np.random.default_rng(3)
    time, angles = np.linspace(-1, 1, n), np.arange(n) * 180 / n
    theta = np.deg2rad(angles)
    place = 2 * np.cos(theta) - 5 * np.sin(theta)
    sines = np.stack([np.ones(n), np.cos(theta), np.sin(theta)], axis=1)
    for drift, most in ((1.5 * time, 3.6), (1.5 * np.sin(np.pi * time), 4.0), (5.0 * time, 11.0)):
        shift = drift + place + 0.03 * rng.standard_normal(n)
        found = drift_across(shift, angles, time)
        left = found - drift
        left -= sines @ np.linalg.lstsq(sines, left, rcond=None)[0]
        assert np.std(left) < 0.1
        assert np.ptp(drift) * 0.75 < np.ptp(found) < most


def test_pixels_beside_unusable_ones_do_not_count_where_images_are_moved_back(tmp_path, scan):
    """3 % of the pixels are saturated; moved back by parts of a pixel, more than 5 % are not known."""
    there = np.random.default_rng(3).random(scan.shape) < 0.03

    def spoil(images):
        images[:, there] = 65535

    moved = displaced(scan.at(axis_pixel=None), across=3.0 * TIME, along=3.0 * TIME)
    projections = read_projections(written(tmp_path / "scan.nxs", moved, spoil))
    assert projections.motion is not None
    unknown = np.isnan(projections.transmission([20])).mean()
    assert unknown > 0.05 > np.mean(there)


def test_what_is_asked_for_by_hand_is_done(tmp_path, scan):
    path = written(tmp_path / "scan.nxs", displaced(scan.at(axis_pixel=None), tilt_deg=0.5))
    by_hand = read_projections(path, ScanDescription(checks=ScanChecks(tilt_deg=0.5)))
    assert by_hand.motion.tilt_deg == 0.5
    off = read_projections(path, ScanDescription(checks=ScanChecks(drift=False, tilt_deg=0.0)))
    assert off.motion is None
    with pytest.raises(ValueError, match="tilted by 40 degrees"):
        ScanChecks(tilt_deg=40.0)


def test_images_are_moved_back_as_scipy_would():
    rng = np.random.default_rng(2)
    image = scipy.ndimage.gaussian_filter(rng.random((1, 60, 70)), (0, 3, 3)).astype(np.float32)
    motion = Motion(np.array([1.3]), np.array([-2.6]), 0.8)
    rows = np.arange(60)
    ours = moved_back(image, 0, rows, 60, motion.along, motion.across, np.deg2rad(motion.tilt_deg))[
        0
    ]
    angle = np.deg2rad(0.8)
    x, u = np.meshgrid(rows - 29.5, np.arange(70) - 34.5, indexing="ij")
    place = [
        29.5 + x * np.cos(angle) - u * np.sin(angle) + 1.3,
        34.5 + u * np.cos(angle) + x * np.sin(angle) - 2.6,
    ]
    theirs = scipy.ndimage.map_coordinates(image[0], place, order=3, mode="nearest")
    np.testing.assert_allclose(ours[5:-5, 5:-5], theirs[5:-5, 5:-5], atol=2e-4)
    part = moved_back(
        image[:, 16:40], 16, np.arange(24, 30), 60, motion.along, motion.across, angle
    )[0]
    np.testing.assert_allclose(part, ours[24:30], atol=1e-6)
    assert motion.halo(70) >= 4


def test_windows_of_moved_scans_are_parts_of_the_whole(tmp_path, scan):
    path = written(tmp_path / "scan.nxs", displaced(scan, across=3 * TIME, tilt_deg=0.5))
    projections = read_projections(path)
    whole = projections.transmission()
    np.testing.assert_allclose(
        projections.transmission(slice(4, 9), slice(20, 30)), whole[4:9, 20:30], atol=1e-6
    )
    rows = np.array([40, 3, 17])
    np.testing.assert_allclose(
        projections.transmission([100, 2], rows), whole[[100, 2]][:, rows], atol=1e-6
    )


# ---- the survey -----------------------------------------------------------------------------------


def test_small_images_are_means_of_usable_pixels(tmp_path, scan):
    image = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    np.testing.assert_allclose(block_means(image, (2, 3)), [[4, 7], [16, 19]])
    image[0, :3] = np.nan
    image[2:, 3:] = np.nan
    np.testing.assert_allclose(block_means(image, (2, 3)), [[7, 7], [16, np.nan]])
    survey = survey_scan(read_projections(written(tmp_path / "scan.nxs", scan)))
    assert survey.block == (1, 1)
    assert survey.images.shape == (N, 52, 76)
    assert len(set(survey.checksum)) == N


# ---- the small scans of the shared data -------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["plain", "flats_double", "invalid_frames", "beam_dump_frames", "stuck_motor_angles", "blosc", "zstd",
     "single_flat"],
)  # fmt: skip
def test_two_cylinders_come_out_right(shared_data, name):
    if not (shared_data / "scans").is_dir():
        pytest.skip("There is no folder of small scans.")
    (path,) = (shared_data / "scans").glob(f"{name}.*")
    try:
        with h5py.File(path):
            tomogram, plan = reconstruct_scan(path, ScanDescription(pixel_size_um=(2.0,)))
    except ValueError as error:
        if "pip install hdf5plugin" in str(error):
            pytest.skip("hdf5plugin is not installed")
        raise
    values = tomogram.values[4:-4].mean(axis=0)
    y, z = (
        (np.arange(n) - c) * 2.0 for n, c in zip(values.shape, tomogram.centre[1:], strict=True)
    )
    large = np.hypot(y[:, None] - 10, z[None] - 5)
    small = np.hypot(y[:, None] + 20, z[None] - 15)
    assert values[(large < 34) & (small > 15)].mean() == pytest.approx(0.0100, rel=0.02)
    assert values[(small < 6) & (large < 36)].mean() == pytest.approx(0.0200, rel=0.02)
    alone = np.where((large < 46) & (small > 15), values, 0)
    assert alone[large < 46].mean() > 0
    assert plan.diagnostics.centre == pytest.approx(49.0, abs=0.5)
