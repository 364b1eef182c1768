"""Rotation images: the geometry in their header, the shape of spots, the background, and DIALS."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")
pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")

from cctbx import sgtbx
from dials.array_family import flex
from dxtbx.model import Experiment, ExperimentList
from dxtbx.model.experiment_list import ExperimentListFactory
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from anacor_dials.command_line.anacor_simulate import run
from anacor_dials.simulation.diffraction_data import tomo_to_datum
from anacor_dials.simulation.diffraction_images import (
    Background,
    draw_image,
    expected_spots,
    footprint_covariance,
    image_files,
    reflections_on_images,
    scan_of,
    spots_of,
)
from anacor_dials.simulation.diffraction_settings import DiffractionSettings, Sweep
from anacor_dials.simulation.i23 import (
    PIXEL_MM,
    detector_called,
    i23_beam,
    image_detector,
    thaumatin_experiments,
)
from anacor_dials.simulation.meshes import box
from anacor_dials.simulation.nxmx_files import new_image_file
from anacor_dials.simulation.samples import sample_from_meshes

WAVELENGTH = 2.75


def experiment_at(detector: str, sweep: Sweep | None = None, seed: int = 1) -> Experiment:
    sweep = sweep or Sweep(10.0, 6.0, 0.5, kappa=20.0, phi=-35.0)
    return thaumatin_experiments(
        [sweep],
        np.random.default_rng(seed),
        i23_beam(WAVELENGTH),
        detector_called(detector, WAVELENGTH),
    )[0]


# ---- the header -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flat_1m", "p12m"])
def test_dxtbx_reads_the_geometry_that_was_written(tmp_path: Path, name: str):
    """Panels, beam, goniometer, scan, mask and pixels, by the reader of DIALS."""
    experiment = experiment_at(name)
    detector = image_detector(experiment.detector)
    numbers = np.arange(detector.shape[0] * detector.shape[1]).reshape(detector.shape) % 1009
    file = tmp_path / "images.nxs"
    with new_image_file(file, detector, scan_of(experiment), WAVELENGTH, name) as images:
        images[3] = numbers
    (read,) = ExperimentListFactory.from_filenames([str(file)])

    assert len(read.detector) == len(experiment.detector)
    for ours, theirs in zip(experiment.detector, read.detector, strict=True):
        for what in ("get_fast_axis", "get_slow_axis"):
            assert getattr(theirs, what)() == pytest.approx(getattr(ours, what)(), abs=1e-9)
        assert theirs.get_origin() == pytest.approx(ours.get_origin(), abs=1e-6)
        assert theirs.get_image_size() == ours.get_image_size()
        assert theirs.get_mu() == pytest.approx(ours.get_mu(), rel=1e-9)
        # with the correction for the depth in the sensor
        assert theirs.pixel_to_millimeter((100.0, 50.0)) == pytest.approx(
            ours.pixel_to_millimeter((100.0, 50.0)), abs=1e-6
        )
    assert read.beam.get_wavelength() == pytest.approx(WAVELENGTH)
    assert read.beam.get_s0() == pytest.approx(experiment.beam.get_s0())
    assert read.beam.get_polarization_normal() == pytest.approx((0, 1, 0))
    assert read.beam.get_polarization_fraction() == pytest.approx(0.999)
    assert read.scan.get_oscillation() == pytest.approx((10.0, 0.5))
    assert read.scan.get_image_range() == (1, 12)
    for what in ("get_fixed_rotation", "get_setting_rotation", "get_rotation_axis"):
        assert getattr(read.goniometer, what)() == pytest.approx(
            getattr(experiment.goniometer, what)(), abs=1e-9
        )
    pixels = read.imageset.get_raw_data(3)
    masks = read.imageset.get_mask(3)
    for panel, values, mask in zip(detector.panels, pixels, masks, strict=True):
        assert np.array_equal(values.as_numpy_array(), numbers[panel.rows])
        assert np.array_equal(mask.as_numpy_array(), detector.mask[panel.rows])


def test_an_image_of_the_12m_has_the_size_of_a_real_one():
    """Pilatus 12M: 2463 x 5071 pixels, of which 24 x 5 modules of 487 x 195 are there."""
    detector = image_detector(detector_called("p12m", WAVELENGTH))
    assert detector.shape == (5071, 2463)
    assert detector.mask.sum() == 24 * 5 * 487 * 195


def test_nothing_is_left_of_images_that_failed(tmp_path: Path):
    experiment = experiment_at("flat_1m")
    detector = image_detector(experiment.detector)
    with pytest.raises(KeyboardInterrupt):
        with new_image_file(tmp_path / "a.nxs", detector, scan_of(experiment), 1.0, ""):
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_pixels_are_compressed_by_bitshuffle(tmp_path: Path):
    experiment = experiment_at("flat_1m")
    detector = image_detector(experiment.detector)
    with new_image_file(tmp_path / "a.nxs", detector, scan_of(experiment), 1.0, "") as images:
        images[0] = np.random.default_rng(1).poisson(0.2, detector.shape)
    with h5py.File(tmp_path / "a.nxs") as file:
        images = file["entry/data/data"]
        assert "32008" in images._filters  # the number of bitshuffle in the registry of HDF5
        assert images.id.get_storage_size() < 0.4 * images[0].size  # bytes per pixel


# ---- spots ----------------------------------------------------------------------------------------


def test_the_divergence_is_stretched_along_2theta():
    """On a flat detector at distance D: D / cos(2 theta) across, D / cos^2(2 theta) along 2 theta."""
    experiment = experiment_at("flat_1m")
    table = reflections_on_images(experiment, 4.0)
    covariance = footprint_covariance(experiment, table, PIXEL_MM) - 0.8**2 * np.eye(2)
    s1 = np.array(list(table["s1"])).reshape(-1, 3)
    cosine = -s1[:, 2] / np.linalg.norm(s1, axis=1)
    sigma = np.sqrt(np.linalg.eigvalsh(covariance)) * PIXEL_MM
    per_angle = 100.0 * experiment.profile.sigma_b(deg=False)
    np.testing.assert_allclose(sigma[:, 0], per_angle / cosine, rtol=1e-5)
    np.testing.assert_allclose(sigma[:, 1], per_angle / cosine**2, rtol=1e-5)
    assert cosine.min() < 0.8


@pytest.mark.parametrize("name", ["flat_1m", "p12m"])
def test_spots_lie_where_dials_predicts_them_and_hold_all_counts(name: str):
    """Sum and centre of mass over all images, of single reflections far from the edges."""
    n_images, width = 60, 0.02  # fine slices, so that a spot is on many images
    experiment = experiment_at(name, Sweep(10.0, n_images * width, width, kappa=20.0, phi=-35.0))
    detector = image_detector(experiment.detector)
    table = reflections_on_images(experiment, 6.0)
    x, y, z = (np.array(part) for part in table["xyzcal.px"].parts())
    panel = np.array(table["panel"])
    zeta = np.abs(np.array(table["zeta"]))
    columns, rows = experiment.detector[0].get_image_size()
    inside = (x > 30) & (x < columns - 30) & (y > 30) & (y < rows - 30) & (zeta > 0.3)
    sigma = np.degrees(experiment.profile.sigma_m(deg=False)) / zeta / width
    inside &= (z > 5 * sigma) & (z < n_images - 5 * sigma)
    chosen = np.flatnonzero(inside)[:: max(1, inside.sum() // 3)][:3]
    assert len(chosen) == 3
    for i in chosen:
        one = table.select(flex.size_t([int(i)]))
        spots = spots_of(experiment, one, np.array([1000.0]), detector)
        in_image, rows_of_image, columns_of_image = np.zeros(n_images), 0.0, 0.0
        for number in range(int(spots.first[0]), int(spots.last[0])):
            drawn = expected_spots(number, spots, detector.shape)
            in_image[number] = drawn.sum()
            rows_of_image += drawn.sum(axis=1)
            columns_of_image += drawn.sum(axis=0)
        assert in_image.sum() == pytest.approx(1000.0, rel=1e-3)
        image, row, column = (
            np.sum(np.arange(len(counts)) * counts) / counts.sum()
            for counts in (in_image, rows_of_image, columns_of_image)
        )
        assert image + 0.5 == pytest.approx(z[i], abs=0.01)
        assert row + 0.5 - detector.panels[panel[i]].first_row == pytest.approx(y[i], abs=0.01)
        assert column + 0.5 == pytest.approx(x[i], abs=0.01)
        # the width over the angle: sigma_M / |zeta|
        variance = np.sum(in_image * (np.arange(n_images) - image) ** 2) / in_image.sum()
        assert variance - 1 / 12 == pytest.approx(sigma[i] ** 2, rel=0.01)


def test_reflections_cut_by_the_scan_leave_their_part():
    """A reflection in the middle of the border between two scans: half of it in each."""
    whole = experiment_at("flat_1m", Sweep(0.0, 4.0, 0.5))
    detector = image_detector(whole.detector)
    table = reflections_on_images(whole, 6.0)
    z = np.array(table["xyzcal.px"].parts()[2])
    assert (z < 0).any()
    assert (z > 8).any()
    spots = spots_of(whole, table, np.ones(len(table)), detector)
    ends = SimpleNamespace(**vars(spots))
    ends.centre = np.zeros_like(spots.centre)  # all at the beginning of the scan
    ends.first, ends.last = np.full(len(z), -20), np.full(len(z), 20)
    total = sum(expected_spots(image, ends, detector.shape).sum() for image in range(8))
    in_view = sum(expected_spots(image, ends, detector.shape).sum() for image in range(-20, 20))
    assert total == pytest.approx(in_view / 2, rel=0.02)


# ---- background -----------------------------------------------------------------------------------


def background_of(sample: object, settings: DiffractionSettings) -> tuple[Background, Experiment]:
    experiment = experiment_at("flat_1m", Sweep(0.0, 90.0, 0.5))
    detector = image_detector(experiment.detector)
    datum = tomo_to_datum(experiment, 0.0, 1)
    rng = np.random.default_rng(1)
    return Background.of(sample, experiment, detector, datum, settings, rng), experiment


def test_the_background_is_absorbed_as_the_sample_absorbs():
    """A plate: through it at omega 0, along it at 90 degrees, by exp(-mu t) of the plate."""
    settings = DiffractionSettings(WAVELENGTH, background=2.0, detector="flat_1m")
    clear = sample_from_meshes({"crystal": box((4.0, 4.0, 0.2))})  # um: it absorbs nothing
    plate = sample_from_meshes({"crystal": box((400.0, 400.0, 20.0))})
    without, experiment = background_of(clear, settings)
    absorbed, _ = background_of(plate, settings)
    detector = image_detector(experiment.detector)
    free = without.at(0, detector)
    # the middle of the detector has the largest solid angle; polarisation and cos^3 lower the rest
    assert free[512, 512] == pytest.approx(2.0, rel=0.01)
    x = (np.arange(1024) - 511.5) * PIXEL_MM
    cosine = 100.0 / np.hypot(100.0, x)
    # along a column the beam's field, which is horizontal, stays at right angles to s1
    np.testing.assert_allclose(free[:, 512], 2.0 * cosine**3, rtol=0.02)
    np.testing.assert_allclose(free[512], 2.0 * cosine**5, rtol=0.03)
    middle = absorbed.at(0, detector)[512, 512] / free[512, 512]
    mu = plate.mu_per_um(12.39842 / WAVELENGTH)[plate.labels[0]]
    # into the plate to a depth and on through it: the whole thickness wherever the point is
    assert middle == pytest.approx(np.exp(-mu * 20.0), rel=0.02)
    assert absorbed.at(179, detector)[512, 512] < 0.5 * absorbed.at(0, detector)[512, 512]


def test_counts_are_poisson_distributed():
    settings = DiffractionSettings(WAVELENGTH, background=3.0, detector="flat_1m")
    background, experiment = background_of(
        sample_from_meshes({"crystal": box((4, 4, 4))}), settings
    )
    detector = image_detector(experiment.detector)
    nothing = spots_of(
        experiment,
        reflections_on_images(experiment, 20.0),
        np.zeros(len(reflections_on_images(experiment, 20.0))),
        detector,
    )
    image = draw_image(5, nothing, background, detector, np.random.default_rng(2))
    part = image[480:540, 480:540].astype(float)
    expected = background.at(5, detector)[480:540, 480:540].mean()
    assert part.mean() == pytest.approx(expected, rel=0.05)
    assert part.var() == pytest.approx(expected, rel=0.1)


def test_180_degrees_on_the_flat_detector_stay_below_500_mb(tmp_path: Path):
    """360 times one of 8 images with spots and background: all have as many of them."""
    settings = DiffractionSettings(WAVELENGTH, background=1.0, detector="flat_1m")
    background, experiment = background_of(
        sample_from_meshes({"crystal": box((9, 9, 9))}), settings
    )
    detector = image_detector(experiment.detector)
    table = reflections_on_images(experiment, 4.0)
    spots = spots_of(experiment, table, np.full(len(table), 20_000.0), detector)
    rng = np.random.default_rng(4)
    with new_image_file(tmp_path / "a.nxs", detector, scan_of(experiment), 1.0, "") as images:
        for i in range(8):
            images[i] = draw_image(i, spots, background, detector, rng)
        assert images[7].max() > 1000
        assert 0.5 < images[7][detector.mask].mean() < 20
    with h5py.File(tmp_path / "a.nxs") as file:
        written = file["entry/data/data"].id.get_storage_size()
    assert written / 8 * 360 < 500e6


# ---- DIALS ----------------------------------------------------------------------------------------


def test_one_file_for_each_sweep():
    assert image_files("a/b_0001", 2) == ["a/b_0001_sweep1.nxs", "a/b_0001_sweep2.nxs"]


def dials(folder: Path, *command: str) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


def misorientation(one: Experiment, other: Experiment) -> float:
    """The smallest angle between two crystals, over the rotations of the lattice, degrees."""
    a, b = (np.reshape(e.crystal.get_A(), (3, 3)) for e in (one, other))
    group = sgtbx.space_group_info("P 4 2 2").group()
    angles = []
    for operation in group:
        r = np.reshape(operation.r().as_double(), (3, 3))
        turn = b @ np.linalg.inv(a @ np.linalg.inv(r))
        angles.append(np.degrees(Rotation.from_matrix(turn).magnitude()))
    return min(angles)


# For each detector: wavelength, resolution, sweep, mean counts before absorption. To 3.5 A at 4.13 A
# spots lie up to 2 theta = 72 degrees, on 19 of the 24 rows of the 12M. In a sweep of 4 degrees beam,
# crystal and detector may turn together about an axis across the spindle, by 0.2 degrees
SIMULATED = {
    "flat_1m": ("2.75", "4.5", "0,40,0.5,0,0", "20000"),
    "p12m": ("4.13", "3.5", "0,12,0.5,0,0", "500000"),
}


@pytest.fixture(scope="module", params=SIMULATED)
def processed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of a virtual crystal, and what DIALS makes of them, from import to integration."""
    folder = tmp_path_factory.mktemp(f"images_{request.param}")
    wavelength, d_min, sweep, counts = SIMULATED[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run([
            "seed=3", "diffraction.images=True", "diffraction.scans=False",
            f"diffraction.detector={request.param}", f"diffraction.wavelength={wavelength}",
            f"diffraction.d_min={d_min}", f"diffraction.sweep={sweep}", "diffraction.background=1",
            "diffraction.decay_b=0", f"diffraction.mean_counts={counts}", "output.prefix=v",
        ])  # fmt: skip
    dials(folder, "dials.import", "v_0001_sweep1.nxs")
    dials(folder, "dials.find_spots", "imported.expt", "nproc=1")
    dials(folder, "dials.index", "imported.expt", "strong.refl")
    dials(folder, "dials.refine", "indexed.expt", "indexed.refl")
    dials(
        folder,
        "dials.integrate", "refined.expt", "refined.refl", "nproc=1", f"prediction.d_min={d_min}",
    )  # fmt: skip
    return folder


def places(table: flex.reflection_table, column: str) -> np.ndarray:
    """Where reflections are (n, 4): pixels, quarters of an image, and panels so far apart that none meet."""
    panel = 1e5 * np.array(table["panel"])
    x, y, z = (np.array(part) for part in table[column].parts())
    return np.column_stack([x, y, 4.0 * z, panel])


@pytest.mark.slow
def test_spots_are_found_where_the_true_model_predicts_them(processed: Path):
    """On every panel that has twenty spots: their median deviation is below 0.1 pixels."""
    truth = ExperimentList.from_file(str(processed / "v_0001.expt"), check_format=False)[0]
    strong = flex.reflection_table.from_file(str(processed / "strong.refl"))
    observed = places(strong, "xyzobs.px.value")
    predicted = places(reflections_on_images(truth, 3.4), "xyzcal.px")
    distance, nearest = cKDTree(predicted).query(observed)
    near = distance < 5
    assert near.mean() > 0.98
    deviation = (observed - predicted[nearest])[near, :3]
    panel = np.array(strong["panel"])[near]
    filled = [i for i in np.unique(panel) if np.sum(panel == i) >= 20]
    assert len(filled) >= (1 if len(truth.detector) == 1 else 15)
    for i in filled:
        assert np.abs(np.median(deviation[panel == i, :2], axis=0)).max() < 0.1, i
    assert abs(np.median(deviation[:, 2])) < 4.0 * 0.03


@pytest.mark.slow
def test_dials_finds_the_true_cell_and_orientation(processed: Path):
    truth = ExperimentList.from_file(str(processed / "v_0001.expt"), check_format=False)[0]
    found = ExperimentList.from_file(str(processed / "refined.expt"), check_format=False)[0]
    cell = found.crystal.get_unit_cell().parameters()
    np.testing.assert_allclose(
        cell, truth.crystal.get_unit_cell().parameters(), rtol=1e-3, atol=0.05
    )
    assert misorientation(truth, found) < 0.1


@pytest.mark.slow
def test_dials_integrates_the_true_intensities(processed: Path):
    """I / (L P Q A) of strong spots against |F|^2: R <= 3 %, and twice as much without A."""
    truth = flex.reflection_table.from_file(str(processed / "v_0001.refl"))
    table = flex.reflection_table.from_file(str(processed / "integrated.refl"))
    table = table.select(table.get_flags(table.flags.integrated_prf))
    value = np.array(table["intensity.prf.value"])
    strong = value > 30 * np.sqrt(np.array(table["intensity.prf.variance"]))
    corrected = value * np.array(table["lp"]) / np.array(table["qe"])
    # the same reflection is where it is predicted: DIALS may have indexed in another setting
    place, true_place = (places(one, "xyzcal.px") for one in (table, truth))
    distance, nearest = cKDTree(true_place).query(place)
    used = strong & (distance < 1.5)
    assert used.sum() > 300
    transmission = np.array(truth["true.transmission"])[nearest[used]]
    f_squared = np.array(truth["true.intensity"])[nearest[used]]

    def r_factor(observed: np.ndarray) -> float:
        scale = np.sum(observed) / np.sum(f_squared)
        return float(np.sum(np.abs(observed - scale * f_squared)) / np.sum(scale * f_squared))

    assert r_factor(corrected[used] / transmission) < 0.03
    assert r_factor(corrected[used]) > 0.05
