"""The working grid and the scale that a tomogram gives itself: air, sample, dense bodies, no air, noise."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from anacor_dials.sample.volumes import Volume
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
    # with a little noise (a fifth of mu), the smoothing is all that keeps edges from being the sample
    noisy = values + 0.002 * np.random.default_rng(0).standard_normal(values.shape)
    scale = intensity_scale(noisy, 0.4)
    assert scale.sample == pytest.approx(0.01, rel=0.12)
    assert scale.air == pytest.approx(0.0, abs=3e-4)
    assert intensity_scale(noisy, 6.0).sample > 2 * 0.01  # in voxels so large nothing is smoothed


@pytest.mark.parametrize("times", [6.0, 10.0, 20.0])
@pytest.mark.parametrize("what", ["salt", "pin"])
def test_dense_bodies_do_not_set_the_scale(what, times):
    """Salt in the liquor, or a metal pin beside it, of 6 to 20 times its mu: the level is the sample's."""
    labels = drop_with_crystal(64)
    x, y, z = np.indices(labels.shape) - 31.5
    mu = np.append(MU, times * 0.0130)
    if what == "salt":
        for middle in ((-10, 8, 6), (6, -12, -9), (2, 4, 17)):
            labels[sum((v - m) ** 2 for v, m in zip((x, y, z), middle, strict=True)) < 16] = 4
    else:
        labels[(y**2 + z**2 < 36) & (x < -22)] = 4
    dense = np.mean(labels == 4)
    assert 0.002 < dense < 0.05
    values = scipy.ndimage.gaussian_filter(mu[labels], 0.8) + 0.0006 * np.random.default_rng(
        0
    ).standard_normal(labels.shape)
    scale = intensity_scale(values, 1.2)
    assert scale.air_seen
    assert scale.air == pytest.approx(0.0, abs=2e-4)
    assert scale.sample == pytest.approx(0.0130, rel=0.03)


def test_a_dense_crystal_in_thin_liquor_is_the_sample():
    """Nothing of the kind is assumed of a part that is less than twice as dense as the rest."""
    labels = drop_with_crystal(48)
    mu = np.array([0.0, 0.010, 0.009, 0.016])
    assert intensity_scale(sample_values(labels, mu)).sample == pytest.approx(0.010, rel=0.05)


@pytest.mark.parametrize(("half", "blur"), [((16, 13, 10), 2.5), ((22, 18, 16), 1.5)])
def test_the_soft_edge_of_a_lone_body_is_no_sample(half, blur):
    """Around one dense crystal in air, blurred, there is a rim of lower values; it is not taken for liquor."""
    x = np.indices((64, 64, 64)) - 31.5
    body = (np.abs(x) < np.array(half)[:, None, None, None]).all(axis=0)
    blurred = scipy.ndimage.gaussian_filter(0.02 * body, blur)
    values = blurred + 0.0006 * np.random.default_rng(1).standard_normal(body.shape)
    expected = float(np.median(blurred[blurred > 0.01]))
    assert intensity_scale(values, 1.2).sample == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("offset", [0.0, 3e-4])
def test_a_sample_that_fills_the_field_of_view(offset):
    """No air is seen: it is 0, as values are in 1/um, and the sample's level is the median of all."""
    labels = np.ones((40, 44, 48), dtype=np.uint8)
    labels[8:30, 10:31, 12:33] = 3
    values = sample_values(labels, np.array([0, 0.0130, 0, 0.0105])) + np.float32(offset)
    scale = intensity_scale(values)
    assert not scale.air_seen
    assert scale.air == 0.0
    assert scale.sample == pytest.approx(0.0130 + offset, rel=0.02)
    normalised = scale.normalised(values)
    assert normalised[labels == 3].mean() == pytest.approx(0.0105 / 0.0130, abs=0.01)


def test_with_a_little_air_in_view_it_is_seen():
    labels = np.ones((40, 60, 60), dtype=np.uint8)
    y, z = np.indices((60, 60)) - 29.5
    labels[:, y**2 + z**2 > 36**2] = 0  # the corners, 6 per cent
    labels[10:30, 20:40, 20:40] = 3
    assert 0.02 < np.mean(labels == 0) < 0.15
    scale = intensity_scale(sample_values(labels))
    assert scale.air_seen
    assert scale.air == pytest.approx(0.0, abs=1e-4)
    assert scale.sample == pytest.approx(0.0130, rel=0.02)


@pytest.mark.parametrize("offset", [1e-4, -2e-4, 1.5e-4])
def test_air_with_an_offset_is_refused(offset):
    """A level below that of water at 14 keV is no sample that fills the field of view."""
    rng = np.random.default_rng(1)
    air = offset + 1e-5 * rng.standard_normal((40, 40, 40))
    with pytest.raises(ValueError, match="no sample"):
        intensity_scale(air)


@pytest.mark.parametrize("noise", [0.30, 0.45])
@pytest.mark.parametrize("contrast", [-0.1, 0.1])
def test_noise_of_nearly_half_of_mu_is_accepted(noise, contrast):
    labels = drop_with_crystal(56)
    mu = 0.0130 * np.array([0.0, 1.0, 0.8, 1 + contrast])
    for seed in range(3):
        scale = intensity_scale(sample_values(labels, mu, noise * 0.0130, seed))
        assert scale.air_seen
        assert scale.air == pytest.approx(0.0, abs=0.03 * 0.0130)
        assert scale.sample == pytest.approx(0.0130, rel=0.04)
        assert scale.noise == pytest.approx(noise * 0.0130, rel=0.1)


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
