"""Training data: the scale that a tomogram gives itself, labels on its grid, crops, splits."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage

from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.sample.volumes import LabelVolume, Tomogram, Volume
from anacor_dials.segmentation.fringes import LENGTHS, N_VIEWS, smoothed, views
from anacor_dials.segmentation.training_data import (
    Augmentation,
    CropSource,
    TrainingVolume,
    class_weights,
    find_training_files,
    labels_on_grid,
    read_training_volume,
    read_training_volumes,
    split_samples,
)
from anacor_dials.segmentation.working_grid import (
    IntensityScale,
    bin_factors,
    binned_labels,
    binned_values,
    intensity_scale,
    working_volume,
)

MU = np.array([0.0, 0.0130, 0.0106, 0.0119])


def sample_values(labels, mu=MU, noise=0.0005, seed=0):
    rng = np.random.default_rng(seed)
    return (mu[labels] + noise * rng.standard_normal(labels.shape)).astype(np.float32)


def drop_with_crystal(n=48):
    """Labels: a ball of liquor, a rod of loop through its edge, a box of crystal."""
    x, y, z = np.indices((n, n, n)) - (n - 1) / 2
    labels = np.zeros((n, n, n), dtype=np.uint8)
    labels[x**2 + y**2 + z**2 < (0.36 * n) ** 2] = 1
    labels[(abs(y - 0.3 * n) < 2) & (abs(z) < 2)] = 2
    labels[(abs(x) < 0.12 * n) & (abs(y + 2) < 0.1 * n) & (abs(z - 1) < 0.15 * n)] = 3
    return labels


@pytest.fixture
def volume():
    labels = drop_with_crystal()
    values = intensity_scale(sample_values(labels)).normalised(sample_values(labels))
    return TrainingVolume("a", views(values, np.float16), labels, (1.0, 1.0, 1.0))


def with_levels(volume, *levels):
    """The volume with every view of one level."""
    seen = np.empty(volume.views.shape, np.float16)
    seen[...] = np.array(levels)[:, None, None, None]
    return replace(volume, views=seen)


# ---- the scale ------------------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", [-0.1, 0.1])
def test_the_scale_does_not_ask_which_is_brighter(contrast):
    labels = drop_with_crystal()
    mu = np.array([0.0, 0.0130, 0.0106, 0.0130 * (1 + contrast)])
    scale = intensity_scale(sample_values(labels, mu))
    assert scale.air == pytest.approx(0, abs=3e-5)
    assert scale.sample == pytest.approx(0.0130, rel=0.01)
    assert scale.noise == pytest.approx(0.0005, rel=0.1)
    crystal = scale.normalised(sample_values(labels, mu))[labels == 3].mean()
    assert crystal == pytest.approx(1 + contrast, abs=0.01)


def test_the_scale_follows_offset_and_unit():
    values = sample_values(drop_with_crystal())
    first, second = intensity_scale(values), intensity_scale(1e3 * values - 2.0)
    np.testing.assert_allclose(
        first.normalised(values), second.normalised(1e3 * values - 2.0), atol=1e-3
    )


def test_the_scale_withstands_fringes_stronger_than_the_sample():
    """A ball in voxels of 0.4 um whose edge is ten times its own level, as in fine tomograms with fringes."""
    x, y, z = np.indices((90, 90, 90)) - 44.5
    ball = scipy.ndimage.gaussian_filter((x**2 + y**2 + z**2 < 32**2).astype(float), 1.0)
    values = 0.01 * (ball - 36.0 * scipy.ndimage.laplace(ball))
    assert values.max() > 5 * 0.01
    scale = intensity_scale(values, 0.4)
    assert scale.sample == pytest.approx(0.01, rel=0.03)
    assert scale.air == pytest.approx(0.0, abs=1e-4)
    assert (
        intensity_scale(values, 6.0).sample > 2 * 0.01
    )  # not smoothed: edges are taken for the sample


def test_a_volume_of_air_is_refused():
    rng = np.random.default_rng(1)
    with pytest.raises(ValueError, match="no sample"):
        intensity_scale(1e-4 * rng.standard_normal((30, 30, 30)))
    with pytest.raises(ValueError, match="throughout"):
        intensity_scale(np.zeros((9, 9, 9)))
    values = sample_values(drop_with_crystal(24))
    values[3, 3, 3] = np.nan
    with pytest.raises(ValueError, match="not numbers"):
        intensity_scale(values)
    with pytest.raises(ValueError, match="not above that of air"):
        IntensityScale(0.1, 0.1, 0.0)


@pytest.mark.parametrize(
    ("voxel", "factors"),
    [(0.3, (4, 4, 4)), (1.2, (1, 1, 1)), (2.5, (1, 1, 1)), ((0.6, 0.3, 1.0), (2, 4, 1))],
)
def test_fine_voxels_are_binned(voxel, factors):
    assert bin_factors(np.broadcast_to(voxel, 3)) == factors


@pytest.mark.parametrize("voxel", [300.0, 3e-4])
def test_absurd_voxels_are_refused(voxel):
    with pytest.raises(ValueError, match="Is the unit right"):
        bin_factors([voxel] * 3)


def test_binning_keeps_means_and_places():
    rng = np.random.default_rng(2)
    values = rng.random((6, 8, 9)).astype(np.float32)
    unit = IntensityScale(0.0, 1.0, 0.0)
    small = binned_values(values, (2, 4, 3), unit)
    assert small.shape == (3, 2, 3)
    assert small[1, 1, 2] == pytest.approx(values[2:4, 4:8, 6:9].mean(), rel=1e-5)
    grid = working_volume(Volume(values, np.array([1.0, 2.0, 3.0])), small, (2, 4, 3))
    # the middle of the first block is the mean of its voxels' places
    fine = Volume(values, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(grid.position_um((0, 0, 0)), fine.position_um((0.5, 1.5, 1.0)))
    # what does not fill a block is filled up with the last voxel
    assert binned_values(values[:, :, :7], (1, 1, 3), unit)[0, 0, 2] == pytest.approx(
        values[0, 0, 6]
    )


def test_binned_labels_are_the_most_frequent():
    labels = np.zeros((2, 2, 4), dtype=np.uint8)
    labels[:, :, :2] = [[[1, 3], [3, 3]], [[1, 3], [1, 3]]]
    assert binned_labels(labels, (2, 2, 2), 4).ravel().tolist() == [3, 0]
    assert binned_labels(labels, (1, 1, 1), 4) is labels


# ---- files ----------------------------------------------------------------------------------------


def test_labels_go_where_they_belong():
    labels = np.zeros((10, 12, 14), dtype=np.uint8)
    labels[4, 5, 6] = 3
    truth = LabelVolume(labels, np.full(3, 1.5), np.array([4.0, 5.0, 6.0]))
    cropped = Volume(np.zeros((5, 6, 20)), np.full(3, 1.5), np.array([1.0, 2.0, 12.0]))
    assert np.argwhere(labels_on_grid(truth, cropped)).tolist() == [[1, 2, 12]]
    with pytest.raises(ValueError, match="must be the same"):
        labels_on_grid(truth, Volume(labels, np.full(3, 1.0)))
    with pytest.raises(ValueError, match="outside"):
        labels_on_grid(truth, Volume(labels, np.full(3, 1.5), np.array([99.0, 0.0, 0.0])))


def write_pair(folder, name="one", shape="needle"):
    labels = drop_with_crystal(24)
    truth = LabelVolume(labels, np.full(3, 1.2))
    write_sample_file(folder / f"{name}.tomo.h5", tomogram=Tomogram(sample_values(labels), 1.2))
    write_sample_file(folder / f"{name}.truth.h5", labels=truth)
    (folder / f"{name}.json").write_text(json.dumps({"shape": shape, "seed": [1, 2]}))
    return labels


def test_pairs_are_read(tmp_path):
    labels = write_pair(tmp_path)
    (volume,) = read_training_volumes([tmp_path])
    assert volume.name == "one"
    assert volume.family == "needle"
    assert volume.record["seed"] == [1, 2]
    np.testing.assert_array_equal(volume.labels, labels)
    assert float(volume.views[0][labels == 1].mean(dtype=float)) == pytest.approx(1.0, abs=0.02)
    assert float(volume.views[0][labels == 0].mean(dtype=float)) == pytest.approx(0.0, abs=0.02)


def test_air_far_from_the_sample_is_left_out(tmp_path):
    labels = np.pad(drop_with_crystal(24), ((60, 5), (0, 50), (0, 0)))
    truth = LabelVolume(labels, np.full(3, 1.2))
    write_sample_file(tmp_path / "a.tomo.h5", tomogram=Tomogram(sample_values(labels), 1.2))
    write_sample_file(tmp_path / "a.truth.h5", labels=truth)
    volume = read_training_volume(tmp_path / "a.tomo.h5", tmp_path / "a.truth.h5")
    low = np.argwhere(labels).min(axis=0)
    assert np.all(np.array(volume.labels.shape) < labels.shape - np.array([20, 20, -1]))
    first = np.argwhere(volume.labels).min(axis=0)
    size = np.argwhere(labels).max(axis=0) + 1 - low
    part = tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))
    there = tuple(slice(a, a + n) for a, n in zip(first, size, strict=True))
    np.testing.assert_array_equal(volume.labels[there], labels[part])
    assert np.count_nonzero(volume.labels) == np.count_nonzero(labels)
    assert float(volume.views[0][volume.labels == 1].mean(dtype=float)) == pytest.approx(
        1, abs=0.02
    )


def test_a_labelled_tomogram_is_read_as_a_real_sample(tmp_path):
    labels = drop_with_crystal(24)
    other = ("background", "crystal", "liquor", "loop")  # another order than the network's
    renumbered = np.array([0, 2, 3, 1], dtype=np.uint8)[labels]
    write_sample_file(
        tmp_path / "real.h5",
        tomogram=Tomogram(sample_values(labels), 1.2),
        labels=LabelVolume(renumbered, np.full(3, 1.2), None, other),
    )
    (volume,) = read_training_volumes([tmp_path])
    assert volume.family == "real"
    np.testing.assert_array_equal(volume.labels, labels)


def test_folders_without_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no training data"):
        find_training_files([tmp_path])
    with pytest.raises(ValueError, match="no folder"):
        find_training_files([tmp_path / "none"])
    write_sample_file(tmp_path / "t.h5", tomogram=Tomogram(sample_values(drop_with_crystal(24)), 1))
    with pytest.raises(ValueError, match="no labels"):
        read_training_volumes([tmp_path])
    write_pair(tmp_path)
    with pytest.raises(ValueError, match="'loop'"):
        read_training_volume(
            tmp_path / "one.tomo.h5",
            tmp_path / "one.truth.h5",
            ("background", "liquor", "crystal"),
        )


def test_samples_are_split_as_wholes(volume):
    volumes = [replace(volume, name=str(i)) for i in range(10)]
    training, validation = split_samples(volumes, 3, seed=7)
    names = {v.name for v in training}, {v.name for v in validation}
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 10
    assert len(validation) == 3
    again = split_samples(volumes, 3, seed=7)[1]
    assert [v.name for v in again] == [v.name for v in validation]
    assert [v.name for v in split_samples(volumes, 3, seed=8)[1]] != [v.name for v in validation]
    with pytest.raises(ValueError, match="none to train on"):
        split_samples(volumes, 10, seed=7)


def test_rare_classes_weigh_more(volume):
    weights = class_weights([volume], 4)
    assert weights[2] > weights[3] > weights[1] > weights[0] > 0
    assert weights.max() <= 3


# ---- crops ----------------------------------------------------------------------------------------

PLAIN = Augmentation(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, turn=False)


def test_crops_depend_on_the_generator_alone(volume):
    source = CropSource([volume], 32, 3)
    a, b = (source.batch(np.random.default_rng([1, 5]), 4) for _ in range(2))
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])
    c = source.batch(np.random.default_rng([1, 6]), 4)
    assert np.any(a[0] != c[0])
    assert a[0].shape == (4, 3 * N_VIEWS, 32, 32)
    assert a[0].dtype == np.float32
    assert a[1].shape == (4, 32, 32)


def test_labels_are_never_interpolated(volume):
    only = replace(volume, labels=np.where(volume.labels == 3, 3, 0).astype(np.uint8))
    source = CropSource([only], 48, 1)
    labels = source.batch(np.random.default_rng(0), 16)[1]
    assert set(np.unique(labels)) == {0, 3}


def test_values_and_labels_stay_together(volume):
    """With each label's number as the value, and no change of values, crops are their own labels."""
    named = replace(volume, views=np.repeat(volume.labels[None].astype(np.float16), N_VIEWS, 0))
    source = CropSource([named], 32, 3, PLAIN)
    slices, labels = source.batch(np.random.default_rng(3), 12)
    # half a voxel may lie between the nearest and the interpolated one
    assert np.mean(abs(slices[:, 1] - labels) < 0.51) > 0.97
    turned = CropSource([named], 32, 3, replace(PLAIN, turn=True, zoom=1.3))
    slices, labels = turned.batch(np.random.default_rng(3), 12)
    inside = np.mean(np.round(slices[:, 1]) == labels)
    assert inside > 0.95


def test_rare_classes_are_seen(volume):
    share = np.mean(volume.labels == 2)
    labels = CropSource([volume], 32, 1).batch(np.random.default_rng(1), 60)[1]
    assert np.mean(labels == 2) > 2 * share
    assert np.mean([np.any(crop == 3) for crop in labels]) > 0.25


def test_the_crystals_contrast_is_varied(volume):
    source = CropSource([with_levels(volume, 1, 1, 1)], 32, 1, replace(PLAIN, contrast=0.05))
    differences = []
    rng = np.random.default_rng(4)
    for _ in range(80):
        slices, labels = source.draw(rng)
        if np.count_nonzero(labels == 3) > 30 and np.count_nonzero(labels == 1) > 30:
            differences.append(slices[0][labels == 3].mean() - slices[0][labels == 1].mean())
    assert min(differences) < -0.01
    assert max(differences) > 0.01
    assert max(np.abs(differences)) < 0.055
    # the same change in all views, softer in those that are smoothed
    plain, short, long = np.abs(slices - 1).max(axis=(1, 2))
    assert plain >= short >= long


def test_fringes_are_partly_undone_in_some_crops(volume):
    """Of one level in each view: what lies between the first two is in the crops of the plain view alone."""
    source = CropSource([with_levels(volume, 1, 0, 3)], 32, 1, replace(PLAIN, fringes=0.5))
    rng = np.random.default_rng(5)
    plain, short, long = np.array([source.draw(rng)[0].mean(axis=(1, 2)) for _ in range(60)]).T
    assert np.all(short == 0)
    assert np.all(long == 3)
    assert 15 < np.count_nonzero(plain < 1) < 45
    assert 0.2 <= plain.min() < 0.5


def test_noise_is_what_the_views_filter_leaves_of_it(volume):
    """Against white noise that goes through the filter itself."""
    source = CropSource([with_levels(volume, 1, 1, 1)], 64, 1, replace(PLAIN, noise=0.1))
    rng = np.random.default_rng(6)
    crops = np.array([source.draw(rng)[0] for _ in range(20)])
    shares = crops.std(axis=(2, 3)) / crops.std(axis=(2, 3))[:, :1]
    noise = rng.standard_normal((80, 80, 80)).astype(np.float32)
    expected = [smoothed(noise, length).std() for length in LENGTHS]
    # half of the plain crops' noise is that of a smoothing reconstruction, and about as strong
    np.testing.assert_allclose(shares[:, 1:].mean(axis=0), expected, rtol=0.25)
    steps = np.diff(crops[:, 1:], axis=3).std(axis=(2, 3))
    assert np.all(steps < 0.6 * crops[:, 1:].std(axis=(2, 3)))


def test_bad_crops(volume):
    with pytest.raises(ValueError, match="multiple of 16"):
        CropSource([volume], 40, 3)
    with pytest.raises(ValueError, match="no samples"):
        CropSource([], 32, 3)
    with pytest.raises(ValueError, match="differ"):
        replace(volume, labels=volume.labels[:-1])
