"""The overlap with the true crystal that is foretold from probabilities."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from anacor_dials.segmentation.expected_overlap import (
    OFFSET,
    POOR,
    SCATTER,
    SLOPE,
    OverlapForecast,
    mean_probability,
)


def soft_ball(width, n=40, radius=12.0):
    """Probabilities of a background and a ball whose border is `width` voxels soft."""
    r = np.sqrt(((np.indices((n, n, n)) - (n - 1) / 2) ** 2).sum(axis=0))
    p = np.rint(255 / (1 + np.exp((r - radius) / width))).astype(np.uint8)
    return np.stack([np.uint8(255) - p, p])


@pytest.mark.parametrize("width", [0.3, 1.0, 3.0])
def test_the_share_of_labels_that_is_right_in_truths_drawn_from_the_probabilities(width):
    """Every voxel is drawn by itself, with its probability."""
    p = soft_ball(width)
    labels = p.argmax(axis=0) == 1
    rng = np.random.default_rng(1)
    right = np.mean([(rng.uniform(size=labels.shape) < p[1] / 255)[labels] for _ in range(20)])
    assert mean_probability(p, 1) == pytest.approx(right, abs=0.003)


def test_what_lies_elsewhere_does_not_count():
    p = soft_ball(0.3, n=80, radius=5.0)
    before = mean_probability(p, 1)
    p[:, p[1] < 2] = np.array([[152], [103]])
    assert mean_probability(p, 1) == before


def test_certain_labels_and_none():
    p = np.zeros((2, 8, 9, 10), dtype=np.uint8)
    p[0] = 255
    assert math.isnan(mean_probability(p, 1))
    p[:, 2:5, 3:6, 1:8] = np.array([0, 255])[:, None, None, None]
    assert mean_probability(p, 1) == 1.0


def test_the_forecast_is_a_line_between_logits_with_a_normal_scatter():
    normal = statistics.NormalDist(
        OFFSET + SLOPE * math.log(0.85 / 0.15), SCATTER
    )  # of the logit of the true Dice
    forecast = OverlapForecast(0.85)
    for share in (0.1, 0.5, 0.9):
        expected = 1 / (1 + math.exp(-normal.inv_cdf(share)))
        assert forecast.quantile(share) == pytest.approx(expected, abs=1e-6)
    assert forecast.chance_of_poor == pytest.approx(normal.cdf(math.log(POOR / (1 - POOR))))
    said = forecast.as_dict()
    assert said["low"] < said["median"] < said["high"]
    assert f"{said['median']:.2f} ({said['low']:.2f} to {said['high']:.2f}" in str(forecast)


def test_the_ends_of_the_scale():
    assert 0 < OverlapForecast(0.0).quantile(0.5) < OverlapForecast(1.0).quantile(0.5) < 1
    assert OverlapForecast(0.0).chance_of_poor > 0.95
    assert OverlapForecast(1.0).chance_of_poor < 0.05
    with pytest.raises(ValueError, match=r"1\.2"):
        OverlapForecast(1.2)
