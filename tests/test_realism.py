"""Likeness of projections, and samples made of labelled volumes."""

from __future__ import annotations

import numpy as np
import pytest

from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.simulation.realism import compare_projections
from anacor_dials.simulation.sample_surfaces import sample_from_labels
from anacor_dials.simulation.samples import cut_box_sample


def test_equal_images_are_alike() -> None:
    image = np.random.default_rng(1).random((30, 40))
    likeness = compare_projections([(image, image)], [0.0])
    assert likeness.ssim[0] == pytest.approx(1.0)
    assert likeness.mse[0] == 0
    assert likeness.psnr_db[0] == np.inf


def test_psnr_and_mse_by_their_definitions() -> None:
    a = np.full((30, 40), 0.5)
    likeness = compare_projections([(a, a + 0.1), (a, a + 0.01)], [0.0, 90.0])
    np.testing.assert_allclose(likeness.mse, [1e-2, 1e-4])
    np.testing.assert_allclose(likeness.psnr_db, [20.0, 40.0])
    assert likeness.summary()["mse_mean"] == pytest.approx(5.05e-3)
    assert likeness.ssim[0] < likeness.ssim[1] < 1


def test_unusable_pixels_do_not_count() -> None:
    a = np.full((30, 40), 0.5)
    real = a.copy()
    real[3, 4] = np.nan
    assert compare_projections([(real, a)], [0.0]).mse[0] == 0


def test_images_of_two_sizes() -> None:
    with pytest.raises(ValueError, match="30 x 40 pixels and the simulated ones 30 x 41"):
        compare_projections([(np.ones((30, 40)), np.ones((30, 41)))], [0.0])


def test_labels_become_meshes_and_labels_again() -> None:
    truth = cut_box_sample().label_volume(2.0)
    back = sample_from_labels(truth).label_volume(truth.voxel_size_um, truth.shape, truth.centre)
    for name in ("liquor", "loop", "crystal"):
        a, b = (v.values == v.label(name) for v in (truth, back))
        dice = 2 * np.sum(a & b) / (a.sum() + b.sum())
        assert dice > (0.9 if name == "loop" else 0.99)


def test_a_material_without_a_composition() -> None:
    values = np.zeros((12, 12, 12), np.uint8)
    values[4:8, 4:8, 4:8] = 2
    volume = LabelVolume(values, 1.0, names=("background", "glue", "crystal"))
    with pytest.raises(ValueError, match="glue has no composition"):
        sample_from_labels(volume)
