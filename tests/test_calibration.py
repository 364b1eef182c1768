"""Calibration: a known distortion of logits is found and undone; what the error of calibration means."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

from anacor_dials.segmentation.calibration import (  # noqa: E402
    Calibration,
    calibrate,
    fit_calibration,
    logits_of_samples,
)
from anacor_dials.segmentation.evaluation import expected_calibration_error  # noqa: E402
from anacor_dials.segmentation.fringes import N_VIEWS  # noqa: E402
from anacor_dials.segmentation.network import NetworkSettings, build_network  # noqa: E402
from anacor_dials.segmentation.training_data import TrainingVolume  # noqa: E402


def drawn(rng, n=40000):
    """Logits, and labels that are drawn from their probabilities."""
    z = rng.normal(0, 2, (n, 4))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return z, labels.astype(np.int64)


def test_a_known_distortion_is_found():
    """Three times as sure as it may be, and one class preferred."""
    z, labels = drawn(np.random.default_rng(1))
    shift = np.array([0.0, 0.9, 0.0, -0.6])
    found = fit_calibration((3.0 * (z - shift)).astype(np.float32), labels)
    assert found.temperature == pytest.approx(3.0, rel=0.03)
    np.testing.assert_allclose(found.offsets - found.offsets[0], shift, atol=0.06)
    assert found.cross_entropy[1] < found.cross_entropy[0]


def test_what_is_right_is_left():
    z, labels = drawn(np.random.default_rng(2))
    found = fit_calibration(z.astype(np.float32), labels)
    assert found.temperature == pytest.approx(1.0, rel=0.03)
    np.testing.assert_allclose(found.offsets - found.offsets.mean(), 0, atol=0.05)


@pytest.mark.parametrize("context", [False, True])
def test_it_goes_into_the_weights(context):
    torch.manual_seed(1)
    network = build_network(NetworkSettings("unet", n_slices=1, context=context)).eval()
    x = torch.randn(1, N_VIEWS, 24, 24)
    around = torch.rand(1, 4, 24, 24) if context else None
    offsets = np.array([0.1, -0.2, 0.3, 0.0])
    with torch.no_grad():
        before = network(x, around)
        calibrate(network, Calibration(2.5, offsets, (0.0, 0.0)))
        after = network(x, around)
    expected = before / 2.5 + torch.tensor(offsets, dtype=torch.float32)[:, None, None]
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)


def test_logits_belong_to_their_voxels():
    """A network whose logits are the values themselves: each logit is found beside its own label."""
    torch.manual_seed(1)
    labels = np.random.default_rng(4).integers(0, 4, (16, 20, 22)).astype(np.uint8)
    views = np.repeat(labels[None].astype(np.float16), N_VIEWS, 0)
    volume = TrainingVolume("a", views, labels, (1.0, 1.0, 1.0))
    network = build_network(NetworkSettings("unet", n_slices=1, context=False))
    network.forward = lambda slices, context=None: slices[:, :1].repeat(1, 4, 1, 1)
    logits, found = logits_of_samples(network, [volume])
    assert len(found) > 500
    np.testing.assert_array_equal(logits[:, 2], found)


def test_the_error_of_calibration_by_hand():
    """Two classes: 0.8 is said in all voxels and is right in 60 % of them, so it is off by 0.2."""
    p = np.zeros((2, 10, 10, 1), dtype=np.uint8)
    p[0], p[1] = 204, 51
    truth = np.zeros((10, 10, 1), dtype=np.uint8)
    truth[6:] = 1
    np.testing.assert_allclose(expected_calibration_error(p, truth), 0.2, atol=1e-6)
    truth[:] = 0
    truth[8:] = 1
    np.testing.assert_allclose(expected_calibration_error(p, truth), 0.0, atol=1e-6)
