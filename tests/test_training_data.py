"""Training data: labels on a tomogram's grid, files, splits, the pool of samples, crops."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.sample.volumes import LabelVolume, Tomogram, Volume
from anacor_dials.segmentation.coarse_grid import class_shares, context_input
from anacor_dials.segmentation.crops import Augmentation, CropSource
from anacor_dials.segmentation.fringes import LENGTHS, N_VIEWS, smoothed, views
from anacor_dials.segmentation.training_data import (
    PooledVolume,
    TrainingVolume,
    VolumePool,
    class_weights,
    find_training_files,
    labels_on_grid,
    read_training_volume,
    read_training_volumes,
    split_samples,
    turned,
    turned_back,
)
from anacor_dials.segmentation.working_grid import intensity_scale

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


def plain(number):
    """A sample of a number; what makes a stream in this process and in others."""
    labels = drop_with_crystal(24)
    values = np.full(labels.shape, 1.0 + number, np.float32)
    return TrainingVolume(f"fresh-{number}", views(values, np.float16), labels, (1.0, 1.0, 1.0))


def names(pool):
    return [volume.name for volume in pool.volumes()]


def test_the_pool_depends_on_the_step_alone():
    """Number k enters at step (k - size) every; who comes later finds the same samples."""
    pool = VolumePool([], plain, size=3, every=2.0, workers=0)
    assert [p.volume.name for p in pool.advance(0)] == ["fresh-0", "fresh-1", "fresh-2"]
    assert pool.advance(1) == []
    at = {0: names(pool)}
    for step in range(1, 12):
        new = pool.advance(step)
        assert len(new) == (step % 2 == 0)
        at[step] = names(pool)
        assert at[step] == [f"fresh-{k}" for k in range(step // 2, step // 2 + 3)]
    assert pool.entered == 8
    for step in (1, 4, 5, 11):
        late = VolumePool([], plain, size=3, every=2.0, workers=0)
        assert len(late.advance(step)) == 3
        assert names(late) == at[step]
        late.advance(step + 2)
        assert names(late)[-1] == f"fresh-{(step + 2) // 2 + 2}"


def test_other_processes_make_the_same_stream():
    """And they make what this one makes: fresh virtual tomograms, the same ones for a seed and a number."""
    pytest.importorskip("torch", reason="torch is not installed")
    from anacor_dials.jobs.training_stream import StreamedTomograms

    stream = StreamedTomograms(5, (40, 48))
    pool = VolumePool([], stream, size=2, every=1.0, workers=1)
    try:
        pool.advance(0)
        pool.advance(2)
        assert names(pool) == ["5-2", "5-3"]
        here = stream(3)
        there = pool.volumes()[1]
        np.testing.assert_array_equal(there.views, here.views)
        np.testing.assert_array_equal(there.labels, here.labels)
        assert there.record == here.record
    finally:
        pool.close()
    assert not np.array_equal(here.labels, pool.volumes()[0].labels)
    assert np.count_nonzero(here.labels == 3) >= 200


def test_fixed_samples_have_their_share(volume):
    pool = VolumePool([volume], plain, size=4, every=1.0, workers=0, share=0.25)
    pool.advance(0)
    rng = np.random.default_rng(0)
    drawn = [pool.draw(rng).volume.name for _ in range(2000)]
    assert drawn.count("a") / 2000 == pytest.approx(0.25, abs=0.04)
    for k in range(4):
        assert drawn.count(f"fresh-{k}") / 2000 == pytest.approx(0.75 / 4, abs=0.04)
    only = VolumePool([volume, replace(volume, name="b")])
    assert only.advance(100) == []
    drawn = [only.draw(rng).volume.name for _ in range(200)]
    assert {"a", "b"} == set(drawn)
    with pytest.raises(ValueError, match="no samples"):
        VolumePool([])


def test_what_the_coarse_pass_knows_of_a_pooled_sample(volume):
    pooled = PooledVolume.of(volume)
    np.testing.assert_array_equal(pooled.coarse_shares, class_shares(volume.labels, 4))
    np.testing.assert_array_equal(pooled.coarse_input, context_input(volume.views))
    # before the coarse pass has seen it nothing is known: the truth would teach to believe it blindly
    np.testing.assert_allclose(pooled.context, 0.25)
    for label, places in enumerate(pooled.centres):
        assert 0 < len(places) <= 4000
        assert np.all(volume.labels.ravel()[places] == label)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_turned_volumes_are_turned_back(order):
    volume = np.random.default_rng(1).random((2, 3, 4, 5))
    for mirrored in itertools.product([False, True], repeat=3):
        there = turned(volume, order, mirrored)
        assert there.shape[1:] == tuple(volume.shape[1 + k] for k in order)
        # a voxel goes where its coordinates say
        place = [1, 2, 4]
        new = [
            there.shape[1 + i] - 1 - place[k] if mirrored[i] else place[k]
            for i, k in enumerate(order)
        ]
        np.testing.assert_array_equal(there[(slice(None), *new)], volume[(slice(None), *place)])
        np.testing.assert_array_equal(turned_back(there, order, mirrored), volume)


# ---- crops ----------------------------------------------------------------------------------------

PLAIN = Augmentation(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, turn=False)


def crops_of(volume, n_slices, augmentation=None):
    return CropSource(VolumePool([volume]), n_slices, augmentation)


def test_crops_depend_on_the_generator_alone(volume):
    source = crops_of(volume, 3)
    a, b = (source.batch(np.random.default_rng([1, 5]), 4, 32) for _ in range(2))
    for first, second in zip(a, b, strict=True):
        np.testing.assert_array_equal(first, second)
    c = source.batch(np.random.default_rng([1, 6]), 4, 32)
    assert np.any(a[0] != c[0])
    assert a[0].shape == (4, 3 * N_VIEWS, 32, 32)
    assert a[0].dtype == a[1].dtype == np.float32
    assert a[1].shape == (4, 4, 32, 32)
    assert a[2].shape == (4, 32, 32)
    assert source.batch(np.random.default_rng(0), 1, 64)[0].shape == (1, 3 * N_VIEWS, 64, 64)


def test_labels_are_never_interpolated(volume):
    only = replace(volume, labels=np.where(volume.labels == 3, 3, 0).astype(np.uint8))
    labels = crops_of(only, 1).batch(np.random.default_rng(0), 16, 48)[2]
    assert set(np.unique(labels)) == {0, 3}


def test_values_and_labels_stay_together(volume):
    """With each label's number as the value, and no change of values, crops are their own labels."""
    named = replace(volume, views=np.repeat(volume.labels[None].astype(np.float16), N_VIEWS, 0))
    source = crops_of(named, 3, PLAIN)
    slices, _, labels = source.batch(np.random.default_rng(3), 12, 32)
    # half a voxel may lie between the nearest and the interpolated one
    assert np.mean(abs(slices[:, 1] - labels) < 0.51) > 0.97
    any_way = crops_of(named, 3, replace(PLAIN, turn=True, zoom=1.3))
    slices, _, labels = any_way.batch(np.random.default_rng(3), 12, 32)
    inside = np.mean(np.round(slices[:, 1]) == labels)
    assert inside > 0.95


@pytest.mark.parametrize("changed", [{}, {"turn": True, "zoom": 1.35}])
def test_the_context_stays_with_the_labels(changed):
    """The coarse pass's output, where it is position itself, is that of the middle slice's voxels."""
    n = 60
    places = np.indices((n, n, n)).astype(np.float32)
    number = np.zeros((n, n, n), np.uint8)
    number[:, : n // 2], number[:, :, : n // 2] = 1, 3  # which only fills the centres
    sample = TrainingVolume("a", np.zeros((N_VIEWS, n, n, n), np.float16), number, (1.0, 1.0, 1.0))
    pool = VolumePool([sample])
    middles = places.reshape(3, n // 3, 3, n // 3, 3, n // 3, 3).mean(axis=(2, 4, 6))
    pool.fixed[0].context = np.concatenate([middles, middles[:1]]) / n
    # the views hold the same position, each of them one coordinate
    pool.fixed[0].volume = replace(sample, views=(places / n).astype(np.float32))
    source = CropSource(pool, 3, replace(PLAIN, **changed))
    rng = np.random.default_rng(8)
    seen = 0
    for _ in range(30):
        slices, context, labels = source.draw(rng, 32)
        middle = slices.reshape(N_VIEWS, 3, 32, 32)[:, 1] * n
        # beyond the middles of the outermost blocks the last value goes on
        inside = np.all((middle > 1) & (middle < n - 2), axis=0)
        seen += np.count_nonzero(inside)
        np.testing.assert_allclose(context[:3, inside] * n, middle[:, inside], atol=0.02)
        x, y, z = np.rint(middle).astype(int)
        same = number[x, y, z] == labels  # half a voxel may lie between the two roundings
        assert same.mean() > 0.95
    assert seen > 10000


def test_rare_classes_are_seen(volume):
    share = np.mean(volume.labels == 2)
    labels = crops_of(volume, 1).batch(np.random.default_rng(1), 60, 32)[2]
    assert np.mean(labels == 2) > 2 * share
    assert np.mean([np.any(crop == 3) for crop in labels]) > 0.25


def test_the_crystals_contrast_is_varied(volume):
    source = crops_of(with_levels(volume, 1, 1, 1), 1, replace(PLAIN, contrast=0.05))
    differences = []
    rng = np.random.default_rng(4)
    for _ in range(80):
        slices, _, labels = source.draw(rng, 32)
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
    source = crops_of(with_levels(volume, 1, 0, 3), 1, replace(PLAIN, fringes=0.5))
    rng = np.random.default_rng(5)
    plain, short, long = np.array([source.draw(rng, 32)[0].mean(axis=(1, 2)) for _ in range(60)]).T
    assert np.all(short == 0)
    np.testing.assert_allclose(long, 3, rtol=1e-6)
    assert 15 < np.count_nonzero(plain < 1) < 45
    assert 0.2 <= plain.min() < 0.5


def test_noise_is_what_the_views_filter_leaves_of_it(volume):
    """Against white noise that goes through the filter itself."""
    source = crops_of(with_levels(volume, 1, 1, 1), 1, replace(PLAIN, noise=0.1))
    rng = np.random.default_rng(6)
    crops = np.array([source.draw(rng, 64)[0] for _ in range(20)])
    shares = crops.std(axis=(2, 3)) / crops.std(axis=(2, 3))[:, :1]
    noise = rng.standard_normal((80, 80, 80)).astype(np.float32)
    expected = [smoothed(noise, length).std() for length in LENGTHS]
    # half of the plain crops' noise is that of a smoothing reconstruction, and about as strong
    np.testing.assert_allclose(shares[:, 1:].mean(axis=0), expected, rtol=0.25)
    steps = np.diff(crops[:, 1:], axis=3).std(axis=(2, 3))
    assert np.all(steps < 0.6 * crops[:, 1:].std(axis=(2, 3)))


def test_views_and_labels_of_other_shapes(volume):
    with pytest.raises(ValueError, match="differ"):
        replace(volume, labels=volume.labels[:-1])
