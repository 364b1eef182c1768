"""SAM-2: which slices it sees, from which prompts, and what its answer does; sam2 itself where it is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from anacor_dials.segmentation import sam2_predictor
from anacor_dials.segmentation.sam2_predictor import Sam2Predictor
from anacor_dials.segmentation.sam2_refinement import (
    Sam2Settings,
    exclusive,
    key_slices,
    refined,
    runs,
    sam2_refiner,
    unsure_slices,
)

NAMES = ("background", "liquor", "loop", "crystal")


def truth(n=30):
    labels = np.zeros((n, 40, 44), dtype=np.uint8)
    labels[3:-3, 8:32, 8:36] = 1
    labels[5:-5, 10:13, 10:34] = 2
    labels[8:-8, 16:26, 14:28] = 3
    return labels


def chances(labels, right=0.9, wrong_label=1):
    """Probabilities of `right` for the labels, the rest for another one."""
    p = np.zeros((4, *labels.shape), dtype=np.uint8)
    other = np.where(labels == wrong_label, 0, wrong_label)
    np.put_along_axis(p, other[None].astype(np.intp), round(255 * (1 - right)), axis=0)
    np.put_along_axis(p, labels[None].astype(np.intp), round(255 * right), axis=0)
    return p


class Oracle:
    """A stand-in for SAM-2 that knows the truth; it notes what it was asked."""

    def __init__(self, labels, margin=8):
        self.labels, self.asked = labels, []

    def follow(self, frames, key, masks, n_frames, reverse):
        self.asked.append((key, n_frames, reverse, masks.copy()))
        step = -1 if reverse else 1
        for x in range(key, key + step * (n_frames + 1), step):
            assert 0 <= x < len(frames)
            assert frames[x].shape == self.labels.shape[1:]
            here = self.labels[x] == np.arange(1, 4)[:, None, None]
            yield x, np.where(here, 12.0, -12.0).astype(np.float32)


@pytest.fixture
def labels():
    return truth()


@pytest.fixture
def values(labels):
    # reaches every edge, so that the box around the sample is the whole volume
    return np.where(labels > 0, 1.0, 0.9).astype(np.float32)


def test_an_oracle_puts_right_what_was_unsure(labels, values):
    p = chances(labels)
    wrong = np.zeros(labels.shape, dtype=bool)
    wrong[10:20, 16:26, 14:20] = True  # crystal, called liquor with little conviction
    p[:, wrong] = np.array([0, 135, 0, 120], dtype=np.uint8)[:, None]
    before = p.copy()
    result = refined(values, p, Oracle(labels), Sam2Settings(checkpoint="x"))
    np.testing.assert_array_equal(result.argmax(axis=0), labels)
    np.testing.assert_array_equal(p, before)  # the argument is left alone
    # what was sure is as it was
    np.testing.assert_array_equal(result[:, ~wrong], p[:, ~wrong])
    assert result[3, 15, 20, 16] == pytest.approx((120 + 255) / 2, abs=1)


def test_nothing_unsure_nothing_asked(labels, values):
    oracle = Oracle(labels)
    p = chances(labels)
    np.testing.assert_array_equal(refined(values, p, oracle, Sam2Settings(checkpoint="x")), p)
    assert not oracle.asked


def test_all_slices_between_key_frames_are_covered(labels, values):
    oracle = Oracle(labels)
    p = chances(labels, right=0.55)
    settings = Sam2Settings(checkpoint="x", where="all", key_frames=10, weight=1.0)
    result = refined(values, p, oracle, settings)
    np.testing.assert_array_equal(result.argmax(axis=0), labels)
    asked = {k for k, *_ in oracle.asked}
    assert len(asked) == 3
    # from a key frame no further than the next one
    ordered = sorted(asked)
    forward = {k: n for k, n, reverse, _ in oracle.asked if not reverse}
    assert forward[ordered[0]] == ordered[1] - ordered[0] - 1
    assert forward[ordered[-1]] == labels.shape[0] - ordered[-1] - 1
    backward = {k: n for k, n, reverse, _ in oracle.asked if reverse}
    assert backward[ordered[0]] == ordered[0]


def test_prompts_are_the_networks_masks(labels, values):
    oracle = Oracle(labels)
    p = chances(labels, right=0.6)
    refined(values, p, oracle, Sam2Settings(checkpoint="x", where="all", key_frames=30))
    key, _, _, masks = oracle.asked[0]
    assert masks.dtype == bool
    assert masks.shape == (3, *labels.shape[1:])
    for k in range(3):
        np.testing.assert_array_equal(masks[k], labels[key] == k + 1)


def test_the_film_is_cropped_to_the_sample(labels):
    class Small(Oracle):
        def follow(self, frames, key, masks, n_frames, reverse):
            shapes.append(masks.shape)
            yield from ()

    shapes = []
    big = np.zeros((60, 120, 130), dtype=np.uint8)
    big[15:45, 50:90, 40:84] = labels
    values = (big > 0).astype(np.float32)
    refined(values, chances(big, 0.6), Small(big), Sam2Settings(checkpoint="x", where="all"))
    assert shapes
    assert all(s[1] < 50 and s[2] < 55 for s in shapes)


def test_objects_become_exclusive():
    logits = np.array([[[5.0, -9.0]], [[3.0, -9.0]]], dtype=np.float32)
    p = exclusive(logits)
    np.testing.assert_allclose(p.sum(axis=0), 1, rtol=1e-6)
    assert p[1, 0, 0] == pytest.approx(np.exp(5) / (1 + np.exp(5) + np.exp(3)), rel=1e-5)
    assert p[:, 0, 1].argmax() == 0


def test_unsure_slices_runs_and_keys(labels):
    p = chances(labels)
    p[:, 12, 16:26, 14:28] = np.array([0, 128, 0, 127], dtype=np.uint8)[:, None, None]
    unsure = unsure_slices(p)
    assert np.flatnonzero(unsure).tolist() == [12]
    assert runs(unsure, 3) == [(9, 16)]
    wanted = np.zeros(20, dtype=bool)
    wanted[[0, 4, 19]] = True
    assert runs(wanted, 2) == [(0, 7), (17, 20)]
    keys = key_slices(p, 10, 15, 5)
    assert len(keys) == 1
    assert keys[0] != 12  # not the unsure one
    assert key_slices(p, 0, 3, 3) == []  # air


@pytest.mark.parametrize(
    "choices",
    [{"model": "giant"}, {"where": "some"}, {"image_size": 1000}, {"key_frames": 0}, {"weight": 2}],
)
def test_bad_settings(choices):
    with pytest.raises(ValueError, match="sam2."):
        Sam2Settings(**choices)


def test_without_a_checkpoint_one_line_says_how(caplog):
    with caplog.at_level("INFO", logger="dials"):
        assert sam2_refiner(Sam2Settings(), NAMES) is None
    assert "sam2.checkpoint=" in caplog.text
    assert len(caplog.records) == 1


def test_asked_for_by_name_it_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="no SAM-2 checkpoint"):
        sam2_refiner(Sam2Settings(checkpoint="absent.pt"), NAMES)
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "sam2":
            raise ImportError("No module named 'sam2'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    checkpoint = tmp_path / "sam2.pt"
    checkpoint.write_bytes(b"")
    with pytest.raises(ValueError, match="pip install sam2"):
        sam2_refiner(Sam2Settings(checkpoint=str(checkpoint)), NAMES)


def test_images_as_sam2_wants_them():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    frames = np.full((3, 10, 12), 0.75, dtype=np.float32)
    frames[1] = 99.0
    images = sam2_predictor._Images(frames, 64)
    assert len(images) == 3
    assert images[0].shape == (3, 64, 64)
    # 0.75 is half of the grey window -0.1 to 1.6
    grey = (torch.tensor([0.5, 0.5, 0.5]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(images[0][:, 5, 7], grey)
    assert float(images[1].max()) == pytest.approx((1 - 0.406) / 0.225, rel=1e-5)


@pytest.mark.slow
def test_sam2_itself_with_random_weights(labels, values):
    """Mechanics only: the film is taken from memory, every frame is answered, classes stay exclusive."""
    pytest.importorskip("sam2", reason="sam2 is not installed")
    predictor = Sam2Predictor.from_settings(Sam2Settings(image_size=256), "cpu")
    masks = labels[15] == np.arange(1, 4)[:, None, None]
    found = dict(predictor.follow(values, 15, masks, 2, reverse=False))
    assert sorted(found) == [15, 16, 17]
    assert all(f.shape == masks.shape and np.isfinite(f).all() for f in found.values())
    found = dict(predictor.follow(values, 15, masks, 1, reverse=True))
    assert sorted(found) == [14, 15]
    encoded = []
    plain = predictor.model.forward_image
    predictor.model.forward_image = lambda image: encoded.append(1) or plain(image)
    p = chances(labels, right=0.6)
    settings = Sam2Settings(checkpoint="x", where="all", key_frames=5, image_size=256)
    result = refined(values[:12], p[:, :12], predictor, settings)
    assert result.shape == p[:, :12].shape
    assert len(encoded) == 12  # though most slices are followed from two key frames


def test_the_shipped_sam2_follows_crystals():
    """From one true slice through eight others: better than the slice itself, which random weights are not."""
    pytest.importorskip("sam2", reason="sam2 is not installed")
    import torch

    from anacor_dials.jobs.training_stream import StreamedTomograms
    from anacor_dials.segmentation.small_sam2 import build_small_sam2

    torch.manual_seed(0)
    ways = {
        "shipped": Sam2Predictor.from_settings(Sam2Settings(checkpoint="shipped"), "cpu"),
        "random": Sam2Predictor(build_small_sam2().eval()),
    }
    scores = {way: [] for way in (*ways, "slice")}
    make = StreamedTomograms(8800, (56, 64))
    for number in (0, 1, 2):
        sample = make(number)
        crystal = sample.labels == 3
        key = int(np.median(np.argwhere(crystal)[:, 0]))
        masks = sample.labels[key] == np.arange(1, 4)[:, None, None]
        values = sample.views[0].astype(np.float32)
        found = {"slice": dict.fromkeys(range(key + 1, key + 9), crystal[key])}
        for way, predictor in ways.items():
            film = predictor.follow(values, key, masks, 8, reverse=False)
            found[way] = {
                x: exclusive(logits).argmax(axis=0) == 3 for x, logits in film if x != key
            }
        for way, planes in found.items():
            assert sorted(planes) == list(range(key + 1, key + 9))
            scores[way] += [
                2 * (p & crystal[x]).sum() / (p.sum() + crystal[x].sum()) for x, p in planes.items()
            ]
    mean = {way: np.mean(values) for way, values in scores.items()}
    assert mean["shipped"] > mean["slice"]
    assert mean["shipped"] > mean["random"] + 0.05


def test_the_shipped_sam2_is_small_and_says_where_it_comes_from():
    pytest.importorskip("sam2", reason="sam2 is not installed")
    from anacor_dials.segmentation.small_sam2 import SHIPPED_SAM2
    from anacor_dials.segmentation.weights_files import model_card_path

    assert SHIPPED_SAM2.stat().st_size < 9 * 2**20
    card = json.loads(model_card_path(SHIPPED_SAM2).read_text(encoding="utf-8"))
    assert card["network"]["architecture"] == "sam2"
    assert card["training"]["steps_done"] > 0
    assert card["validation"]
