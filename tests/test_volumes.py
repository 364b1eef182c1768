"""Volumes: places of voxels worked by hand, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from anacor_dials.sample.volumes import LabelVolume, Tomogram, Volume


def crystal_block(shape=(4, 5, 6), voxel_size=1.0):
    labels = np.zeros(shape, dtype=np.uint8)
    labels[1:-1, 1:-1, 1:-1] = 3
    return LabelVolume(labels, voxel_size)


def test_places_of_voxels():
    volume = Volume(np.zeros((3, 4, 5)), np.array([2.0, 1.0, 0.5]))
    np.testing.assert_array_equal(volume.centre, [1.0, 1.5, 2.0])  # the middle
    np.testing.assert_allclose(volume.position_um((0, 0, 0)), [-2.0, -1.5, -1.0])
    np.testing.assert_allclose(volume.position_um((2, 3, 4)), [2.0, 1.5, 1.0])
    np.testing.assert_allclose(volume.size_um, [6.0, 4.0, 2.5])
    assert volume.voxel_volume_um3 == 1.0


def test_a_given_centre_is_the_origin():
    volume = Volume(np.zeros((3, 4, 5)), 0.3, (0.25, 7, -1))
    np.testing.assert_allclose(volume.position_um((0.25, 7, -1)), 0)
    np.testing.assert_allclose(volume.position_um((1.25, 7, -1)), [0.3, 0, 0])
    places = np.random.default_rng(0).random((6, 3))
    np.testing.assert_allclose(volume.index(volume.position_um(places)), places)


def test_one_voxel_size_makes_cubes():
    np.testing.assert_array_equal(Volume(np.zeros((1, 1, 1)), 0.3).voxel_size_um, [0.3, 0.3, 0.3])


@pytest.mark.parametrize("size", [0, -1, np.nan, np.inf, (1, 2), (1, 0, 1), (1, 1, 1, 1)])
def test_voxel_sizes_that_are_no_lengths_are_refused(size):
    with pytest.raises(ValueError, match=r"voxel size is .* um; it must be one or three lengths"):
        Volume(np.zeros((2, 2, 2)), size)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 4, 5), (3, 0, 3)])
def test_arrays_without_three_axes_are_refused(shape):
    with pytest.raises(ValueError, match="three axes"):
        Volume(np.zeros(shape), 1.0)


@pytest.mark.parametrize("centre", [(1, 2), (1, 2, np.nan), 3.0])
def test_centres_that_are_no_place_are_refused(centre):
    with pytest.raises(ValueError, match="three voxel indices"):
        Volume(np.zeros((2, 2, 2)), 1.0, centre)


def test_volumes_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        crystal_block().voxel_size_um = 2.0  # type: ignore[misc]


def test_repr_says_shape_size_and_unit():
    assert repr(crystal_block(voxel_size=(0.3, 0.3, 1))) == (
        "LabelVolume(4 x 5 x 6 voxels of 0.3 x 0.3 x 1 um, background, liquor, loop, crystal)"
    )
    assert repr(Tomogram(np.zeros((1, 2, 3)), 2.0)) == (
        "Tomogram(1 x 2 x 3 voxels of 2 x 2 x 2 um, 1/um)"
    )
    assert "float64" in repr(Volume(np.zeros((1, 2, 3)), 2.0))


def test_a_tomogram_is_float32():
    values = np.linspace(0, 1, 8).reshape(2, 2, 2)
    tomogram = Tomogram(values, 1.0)
    assert tomogram.values.dtype == np.float32
    np.testing.assert_allclose(tomogram.values, values, rtol=1e-7)


def test_labels_and_names(sample_labels):
    assert sample_labels.label("crystal") == 3
    with pytest.raises(ValueError, match="No label is named 'oil'"):
        sample_labels.label("oil")
    np.testing.assert_array_equal(sample_labels.counts(), np.bincount(sample_labels.values.ravel()))


def test_counts_name_labels_that_do_not_occur():
    np.testing.assert_array_equal(crystal_block().counts(), [96, 0, 0, 24])


def test_an_unnamed_label_is_refused():
    values = np.full((2, 2, 2), 4, dtype=np.uint8)
    with pytest.raises(ValueError, match=r"the label 4, which has no name .*3 crystal"):
        LabelVolume(values, 1.0)


def test_names_without_a_crystal_are_refused():
    with pytest.raises(ValueError, match="No label is named 'crystal'"):
        LabelVolume(np.zeros((2, 2, 2), np.uint8), 1.0, names=("background", "protein"))


def test_names_given_twice_are_refused():
    with pytest.raises(ValueError, match="not all different"):
        LabelVolume(np.zeros((2, 2, 2), np.uint8), 1.0, names=("background", "crystal", "crystal"))


@pytest.mark.parametrize("dtype", [np.int64, np.float32, bool])
def test_labels_that_are_not_uint8_are_refused(dtype):
    with pytest.raises(ValueError, match="Labels are uint8"):
        LabelVolume(np.zeros((2, 2, 2), dtype), 1.0)


def test_edge_fraction():
    assert crystal_block().edge_fraction() == 0
    values = np.zeros((4, 5, 6), dtype=np.uint8)
    values[1:3, 2, :] = 3  # two columns along Z: 12 voxels, four of them at the ends
    assert LabelVolume(values, 1.0).edge_fraction() == pytest.approx(4 / 12)
    assert LabelVolume(values, 1.0).edge_fraction("loop") == 0  # absent
    assert LabelVolume(np.full((2, 2, 2), 3, np.uint8), 1.0).edge_fraction() == 1
