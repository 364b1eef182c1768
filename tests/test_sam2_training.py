"""Films of slices, their prompts, and the training of the small SAM-2 on them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sam2", reason="sam2 is not installed")

import torch

import anacor_dials
from anacor_dials.segmentation.crops import Augmentation
from anacor_dials.segmentation.film_tracking import (
    FilmBatch,
    correction_clicks,
    dice_of_slices,
    film_loss,
    track,
)
from anacor_dials.segmentation.films import FilmSettings, clicks_in, draw_film, mask_with_errors
from anacor_dials.segmentation.fringes import views
from anacor_dials.segmentation.sam2_training import train_sam2, watched_films
from anacor_dials.segmentation.sam2_training_settings import Sam2TrainingSettings, SmallSam2Settings
from anacor_dials.segmentation.small_sam2 import (
    build_small_sam2,
    load_small_sam2,
    save_small_sam2,
)
from anacor_dials.segmentation.training_data import PooledVolume, TrainingVolume
from anacor_dials.segmentation.training_settings import TrainingSettings

WEIGHTS = Path(anacor_dials.__file__).parent / "segmentation" / "weights"
UNCHANGED = Augmentation(
    gain=0.0, offset=0.0, contrast=0.0, fringes=0.0, cupping=0.0, noise=0.0, turn=False
)
TINY = SmallSam2Settings(image_size=64, width=16, blocks=(1, 1, 2, 2), d_model=32, memory=16)


def sample(seed=0, n=40):
    """A crystal in a drop with a bar of loop, all three of which move from slice to slice."""
    x, y, z = np.indices((n, n, n)) - np.array([n / 2, n / 2, n / 2])[:, None, None, None]
    y, z = y - 0.2 * x, z + 0.1 * x
    labels = np.zeros((n, n, n), dtype=np.uint8)
    labels[x**2 + y**2 + z**2 < (0.45 * n) ** 2] = 1
    labels[(abs(y + 0.25 * n) < 2) & (labels == 1)] = 2
    labels[(abs(x) < 0.25 * n) & (abs(y) < 0.15 * n) & (abs(z) < 0.2 * n)] = 3
    values = np.array([0.0, 1.0, 0.7, 1.3], dtype=np.float32)[labels]
    values += 0.02 * np.random.default_rng(seed).standard_normal(labels.shape).astype(np.float32)
    return TrainingVolume(f"ball-{seed}", views(values, np.float16), labels, (1.2, 1.2, 1.2))


@pytest.fixture(scope="module")
def pooled():
    return PooledVolume.of(sample())


def settings(**choices):
    course = TrainingSettings(
        **{
            "steps": 4, "batch": 1, "crop": 64, "warm_up": 1, "validate_every": 2, "mean_steps": 2,
            "n_validation": 1, "pool": 2, "device": "cpu", "learning_rate": 1e-3,
        } | choices
    )  # fmt: skip
    films = FilmSettings(edge=64, width=(40.0, 50.0), augmentation=UNCHANGED)
    return Sam2TrainingSettings(TINY, course, films, (3,))


def test_frames_show_the_objects(pooled):
    """The level of every material tells where it is, in every slice of every film."""
    for seed in range(12):
        film = draw_film(
            np.random.default_rng(seed), pooled, 5, replace(settings().films, objects=3)
        )
        assert film.frames.shape == (5, 3, 64, 64)
        assert film.objects.shape == (3, 5, 64, 64)
        assert film.objects[:, 0].any(axis=(1, 2)).any()
        for label, masks in zip(film.classes, film.objects, strict=True):
            level = (1.0, 0.7, 1.3)[label - 1]
            inside = film.frames[:, 0][masks]
            if inside.size > 100:
                assert np.median(inside) == pytest.approx(level, abs=0.03)


def test_films_reach_the_ends_of_objects(pooled):
    """It is learned where an object ends: in some films it is gone before the last slice."""
    gone = [
        not draw_film(np.random.default_rng(seed), pooled, 8, settings().films).objects[0, -1].any()
        for seed in range(40)
    ]
    assert 0.1 < np.mean(gone) < 0.9


def test_prompts_have_errors_and_some_have_none():
    mask = np.zeros((64, 64), dtype=bool)
    mask[20:44, 16:50] = True
    rng = np.random.default_rng(1)
    drawn = [mask_with_errors(rng, mask) for _ in range(200)]
    dice = np.array([2 * (d & mask).sum() / (d.sum() + mask.sum()) for d in drawn])
    assert 0.25 < np.mean(dice == 1) < 0.6
    assert dice.min() > 0.6
    sizes = np.array([d.sum() for d in drawn]) / mask.sum()
    assert sizes.min() < 0.95
    assert sizes.max() > 1.05


def test_clicks_lie_where_they_say():
    mask = np.zeros((64, 64), dtype=bool)
    mask[20:44, 16:50] = True
    for seed in range(30):
        points, kinds = clicks_in(np.random.default_rng(seed), mask, 6)
        columns, rows = points.astype(int).T
        np.testing.assert_array_equal(mask[rows, columns], kinds == 1)
        assert kinds[0] == 1


def test_a_correction_is_where_the_mask_is_wrong():
    target = torch.zeros(2, 64, 64)
    target[:, 10:40, 10:40] = 1
    logits = torch.where(target[:, None] > 0, 8.0, -8.0)
    logits[0, 0, 20:32, 24:36] = -8.0  # a hole
    logits[1, 0, 46:58, 48:60] = 8.0  # a piece too much
    clicks = correction_clicks(logits, target, 128)
    column, row = clicks["point_coords"][0, 0] / 2
    assert 20 <= row < 32
    assert 24 <= column < 36
    column, row = clicks["point_coords"][1, 0] / 2
    assert 46 <= row < 58
    assert 48 <= column < 60
    assert clicks["point_labels"][:, 0].tolist() == [1, 0]


def test_the_loss_of_known_masks():
    objects = torch.zeros(1, 2, 32, 32)
    objects[:, :, 8:16, 8:24] = 1
    entropy, dice = film_loss(torch.where(objects > 0, 30.0, -30.0), objects)
    assert float(entropy) == pytest.approx(0, abs=1e-6)
    assert float(dice) == pytest.approx(0, abs=1e-3)
    entropy, dice = film_loss(torch.zeros(1, 2, 32, 32), objects)
    assert float(entropy) == pytest.approx(math.log(2), rel=1e-5)
    # p = 1/2 everywhere: 1 - (2 * 128 / 2 + 1) / (1024 / 2 + 128 + 1)
    assert float(dice) == pytest.approx(1 - 129 / 641, rel=1e-5)


def test_every_slice_is_answered_from_masks_and_from_clicks(pooled):
    torch.manual_seed(0)
    network = build_small_sam2(TINY).eval()
    rng = np.random.default_rng(0)
    films = [draw_film(rng, pooled, 3, settings().films) for _ in range(2)]
    with torch.no_grad():
        masked = track(network, FilmBatch.of(films, rng))
        clicked = track(network, FilmBatch.of(films, rng, 4), corrected=2)
    assert masked.shape == clicked.shape == (4, 3, 16, 16)
    assert bool(torch.isfinite(masked).all() and torch.isfinite(clicked).all())
    # the first slice is the mask that was given
    dice = dice_of_slices(
        network, watched_films([pooled.volume], settings().films), torch.device("cpu")
    )
    assert np.all(dice[..., 0] > 0.75)  # at a quarter of 64 pixels a loop is two pixels thin


def loss_of(network, film):
    with torch.no_grad():
        batch = FilmBatch.of([film], None)
        entropy, dice = film_loss(track(network, batch)[:, 1:], batch.objects[:, 1:])
    return float(entropy + dice)


def test_the_loss_of_a_sample_falls(tmp_path, pooled):
    given = settings(steps=30, learning_rate=4e-3, mean_steps=5, n_validation=0)
    card = train_sam2([pooled.volume], given, tmp_path / "w.safetensors")
    assert card["training"]["steps_done"] == 30
    film = watched_films([pooled.volume], given.films)[0]
    torch.manual_seed(given.course.seed)
    before = loss_of(build_small_sam2(TINY).eval(), film)
    assert loss_of(load_small_sam2(tmp_path / "w.safetensors"), film) < 0.8 * before


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    volumes = [sample(0), sample(1)]
    whole = tmp_path / "whole.safetensors"
    card = train_sam2(volumes, settings(), whole)
    assert card["training"]["finished"]
    assert set(card["validation"]["dice"]) == {"liquor", "loop", "crystal"}
    assert json.loads(whole.with_suffix(".json").read_text())["network"]["architecture"] == "sam2"
    assert not whole.with_suffix(".checkpoint.pt").exists()
    assert len((tmp_path / "whole.csv").read_text().splitlines()) == 3  # with that of the columns

    parts = tmp_path / "parts.safetensors"
    for step in (1, 2):
        card = train_sam2(volumes, settings(minutes=1e-9), parts)
        assert card["training"]["steps_done"] == step
        assert not card["training"]["finished"]
    train_sam2(volumes, settings(), parts)
    expected = load_small_sam2(whole).state_dict()
    for name, value in load_small_sam2(parts).state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    weights = tmp_path / "w.safetensors"
    train_sam2([sample(0), sample(1)], settings(minutes=1e-9), weights)
    with pytest.raises(ValueError, match="other settings or samples"):
        train_sam2([sample(0), sample(1)], settings(learning_rate=0.1), weights)


def test_weights_come_back_and_strange_ones_are_refused(tmp_path):
    torch.manual_seed(3)
    network = build_small_sam2(TINY)
    save_small_sam2(tmp_path / "a.safetensors", network, {"note": 1})
    again = load_small_sam2(tmp_path / "a.safetensors")
    assert again.settings == TINY
    for name, value in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="There is no weights file"):
        load_small_sam2(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="no weights of a small SAM-2"):
        load_small_sam2(WEIGHTS / "anacornet-tiny.safetensors")


@pytest.mark.parametrize(
    "choices", [{"image_size": 100}, {"blocks": (1, 2)}, {"d_model": 33}, {"memory": 6}]
)
def test_bad_sizes(choices):
    with pytest.raises(ValueError, match=r"multiple|four numbers"):
        SmallSam2Settings(**choices)


def test_bad_settings():
    with pytest.raises(ValueError, match="at least 2"):
        Sam2TrainingSettings(lengths=(1,))
    with pytest.raises(ValueError, match="differ"):
        Sam2TrainingSettings(course=TrainingSettings(crop=64))
