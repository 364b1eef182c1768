"""Tiles, clean-up, the way back to fine voxels, the measures, and the weights that ship."""

from __future__ import annotations

import json
import math
import threading
import time
from importlib.resources import files

import numpy as np
import pytest
import scipy.ndimage
import threadpoolctl

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

from anacor_dials.sample.volumes import LabelVolume, Tomogram  # noqa: E402
from anacor_dials.segmentation.clean_up import CleaningSettings, clean  # noqa: E402
from anacor_dials.segmentation.evaluation import (  # noqa: E402
    cross_entropy,
    evaluate,
    hd95_um,
    recall_of,
)
from anacor_dials.segmentation.fine_voxels import at_full_size, mean_mu  # noqa: E402
from anacor_dials.segmentation.fringes import N_VIEWS  # noqa: E402
from anacor_dials.segmentation.inference import (  # noqa: E402
    SHIPPED_WEIGHTS,
    LabellingSettings,
    load_network,
    segment,
)
from anacor_dials.segmentation.network import NetworkSettings, SliceNetwork  # noqa: E402
from anacor_dials.segmentation.tiles import (  # noqa: E402
    AIR_AROUND,
    InferenceSettings,
    _threads_apart,
    context_of,
    find_classes,
    most_probable,
    sample_box,
    tile_starts,
    uncertainty,
)
from anacor_dials.segmentation.working_grid import label_factors  # noqa: E402

NAMES = ("background", "liquor", "loop", "crystal")
LEVELS = (0.0, 1.0, 0.7, 1.4)


class ByValue(SliceNetwork):
    """A stand-in: the class whose level is nearest to a voxel's own value (the mean of its slices).

    It does not look at the view without fringes.
    """

    def __init__(self, n_slices=1, of="middle"):
        super().__init__(NetworkSettings("unet", n_slices=n_slices, context=False))
        self.of = of
        self.seen = []

    def forward(self, slices, context=None):
        self.seen.append(tuple(slices.shape))
        plain = slices[:, : self.settings.n_slices]
        x = plain.mean(dim=1) if self.of == "mean" else plain[:, self.settings.n_slices // 2]
        levels = torch.tensor(LEVELS)[:, None, None]
        return -200.0 * (x[:, None] - levels) ** 2


def phantom(n=40, seed=0):
    x, y, z = np.indices((n, n + 6, n - 4)) - n // 2
    labels = np.zeros(x.shape, dtype=np.uint8)
    labels[x**2 + y**2 + z**2 < (0.4 * n) ** 2] = 1
    labels[(abs(y - 8) < 2) & (abs(z) < 3) & (abs(x) < 12)] = 2
    labels[(abs(x) < 6) & (abs(y + 3) < 5) & (abs(z) < 7)] = 3
    rng = np.random.default_rng(seed)
    values = np.array(LEVELS)[labels] + 0.01 * rng.standard_normal(labels.shape)
    return labels, values.astype(np.float32)


# ---- tiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "tile", "overlap"), [(10, 32, 8), (100, 32, 8), (33, 32, 0), (64, 32, 15)])  # fmt: skip
def test_tiles_cover_everything(n, tile, overlap):
    starts = tile_starts(n, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] + tile >= n
    if n > tile:
        assert starts[-1] + tile == n
    assert all(b - a <= tile - overlap for a, b in zip(starts[:-1], starts[1:], strict=True))


def test_tiles_are_blended_without_a_trace():
    _, values = phantom(90)
    whole = find_classes(ByValue(), values, InferenceSettings(device="cpu")).probabilities
    network = ByValue()
    tiled = find_classes(
        network, values, InferenceSettings(tile=32, overlap=8, device="cpu")
    ).probabilities
    assert max(max(shape[2:]) for shape in network.seen) == 32
    assert np.max(np.abs(whole.astype(int) - tiled.astype(int))) <= 1


def test_labels_come_out_in_place():
    labels, values = phantom()
    p = find_classes(ByValue(), values, InferenceSettings(device="cpu")).probabilities
    assert p.dtype == np.uint8
    np.testing.assert_array_equal(most_probable(p), labels)
    assert int(uncertainty(p)[0, 0, 0]) == 0


class ByCoarsePass(SliceNetwork):
    """A stand-in that says what the coarse pass tells it, and a coarse pass that labels by level."""

    def __init__(self):
        super().__init__(NetworkSettings("unet", n_slices=1))
        self.context = CoarseByValue()

    def forward(self, slices, context):
        assert context.shape == (len(slices), 4, *slices.shape[2:])
        return torch.log(context.clamp(min=1e-6))


class CoarseByValue(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, x):
        self.n += 1
        levels = torch.tensor(LEVELS)[:, None, None, None]
        return -200.0 * (x[:, :1] - levels) ** 2


@pytest.mark.parametrize("axes", ["x", "y", "z", "xyz"])
@pytest.mark.parametrize("tile", [32, 512])
def test_slices_see_the_coarse_pass_in_its_place(axes, tile):
    """Whatever the slices' normal and the tiles: labels that the coarse pass alone knows come out in place."""
    labels = np.zeros((60, 66, 72), dtype=np.uint8)
    labels[4:54, 8:60, 6:66] = 1
    labels[9:27, 12:51, 15:30] = 3  # whole blocks of three voxels; nothing about it is symmetric
    values = np.array(LEVELS, dtype=np.float32)[labels]
    network = ByCoarsePass()
    settings = InferenceSettings(axes=axes, tile=tile, overlap=8, look=False, device="cpu")
    found = most_probable(find_classes(network, values, settings).probabilities)
    assert network.context.n == 1  # the whole sample, once
    # interpolation rounds the edges off, and the faces are where they were
    crystal, true = found == 3, labels == 3
    assert not np.any(crystal & ~true)
    missing = np.argwhere(true & ~crystal)
    low, high = np.argwhere(true).min(axis=0), np.argwhere(true).max(axis=0)
    assert len(missing)
    assert np.all(np.count_nonzero((missing == low) | (missing == high), axis=1) >= 2)


class Exchanging(ByCoarsePass):
    """A stand-in whose slices take crystal for liquor and liquor for crystal, and whose coarse pass is right."""

    def forward(self, slices, context):
        levels = torch.tensor(LEVELS)[:, None, None]
        return (-200.0 * (slices[:, :1] - levels) ** 2)[:, [0, 3, 2, 1]]


class Beside(ByValue):
    """The same, one voxel beside the place."""

    def forward(self, slices, context=None):
        return torch.roll(super().forward(slices), 1, dims=3)


def test_slices_that_exchange_crystal_and_liquor_are_contradicted():
    """By the coarse pass: another network is taken, and where there is none it is said."""
    labels, values = phantom(60)
    settings = InferenceSettings(look=False, device="cpu")
    exchanged = find_classes(Exchanging(), values, settings)
    assert exchanged.contradicted > 0.9
    assert np.mean((exchanged.probabilities.argmax(axis=0) == 1)[labels == 3]) > 0.99
    found = find_classes([Exchanging(), Beside()], values, settings)
    assert np.mean((most_probable(found.probabilities) == 3)[labels == 3]) > 0.7
    assert found.contradicted < 0.5  # blocks at the surface of a small crystal look like the loop
    before = np.stack([255 * (labels == k) for k in range(4)]).astype(np.uint8)
    found = find_classes([Exchanging(), Beside()], values, settings, before=before)
    assert np.mean((most_probable(found.probabilities) == 3)[labels == 3]) > 0.7
    assert np.isnan(find_classes(ByValue(), values, settings).contradicted)
    tomogram = Tomogram((0.01 * values).astype(np.float32), 1.2)
    said = [
        any("may be exchanged" in text for text in segment(tomogram, network, LabellingSettings(settings)).warnings)
        for network in (Exchanging(), [Exchanging(), Beside()])
    ]  # fmt: skip
    assert said == [True, False]


class Ignorant(torch.nn.Module):
    def forward(self, x):
        return 9.0 * torch.eye(4)[0].reshape(1, 4, 1, 1, 1) + 0.0 * x[:, :1]


class SlicesBesideAnIgnorantPass(ByCoarsePass):
    """A stand-in: slices by their own values, or the class after the one that the context has."""

    def __init__(self, by_value):
        super().__init__()
        self.by_value = by_value
        self.context = Ignorant()

    def forward(self, slices, context):
        if self.by_value:
            levels = torch.tensor(LEVELS)[:, None, None]
            return -2000.0 * (slices[:, :1] - levels) ** 2
        return 20.0 * torch.roll((context > 0.5).float(), 1, dims=1)


def test_a_look_finds_the_shares_of_blocks_in_slices_through_their_middle():
    rng = np.random.default_rng(4)
    labels = rng.integers(1, 4, (14, 13, 16)).astype(np.uint8)  # the last blocks are incomplete
    seen = np.stack([np.array(LEVELS)[labels]] * N_VIEWS).astype(np.float16)
    network = SlicesBesideAnIgnorantPass(True)
    assert np.all(context_of(network, seen, look=False)[0] > 0.99)
    # the mean of what the coarse pass says, background, and of what slices see
    mean = context_of(network, seen).astype(float)
    found = 2 * mean - np.array([1, 0, 0, 0]).reshape(4, 1, 1, 1)
    assert found.shape == (4, 5, 5, 6)
    one_hot = np.stack([labels == k for k in range(4)]).astype(float)
    for block in [(0, 0, 0), (2, 1, 4), (1, 3, 0)]:
        x, y, z = (slice(3 * b, 3 * b + 3) for b in block)
        expected = (
            one_hot[:, x.start + 1, y, z].mean(axis=(1, 2))
            + one_hot[:, x, y.start + 1, z].mean(axis=(1, 2))
            + one_hot[:, x, y, z.start + 1].mean(axis=(1, 2))
        ) / 3
        np.testing.assert_allclose(found[(slice(None), *block)], expected, atol=2e-3)
    last = (one_hot[:, 13, 6:9, 6:9].mean(axis=(1, 2))  # continued: the plane 13 is also that of 14
            + one_hot[:, 12:, 7, 6:9].repeat([1, 2], axis=1).mean(axis=(1, 2))
            + one_hot[:, 12:, 6:9, 7].repeat([1, 2], axis=1).mean(axis=(1, 2))) / 3  # fmt: skip
    np.testing.assert_allclose(found[:, 4, 2, 2], last, atol=2e-3)


@pytest.mark.parametrize("axes", ["x", "xyz"])
def test_labels_are_made_after_the_look(axes):
    """The coarse pass says class 0, and slices the class after the one that they see."""
    network, values = SlicesBesideAnIgnorantPass(False), np.ones((40, 17, 18), np.float32)
    for look, expected in ((False, 1), (True, 0)):  # a mean of two classes is sure of none
        settings = InferenceSettings(axes=axes, look=look, device="cpu")
        p = find_classes(network, values, settings).probabilities
        assert np.all(p.argmax(axis=0) == expected)
    assert context_of(ByValue(), np.ones((N_VIEWS, 12, 15, 9), np.float16)) is None


def test_probabilities_from_elsewhere_take_the_place_of_the_coarse_pass():
    """Of the box around the sample, and without a look, which would blur them further."""
    before = np.zeros((4, 70, 72, 75), dtype=np.uint8)
    values = np.zeros(before.shape[1:], dtype=np.float32)
    values[20:50, 24:54, 21:57] = 1.0
    before[0], before[3, 25:40, 30:45, 33:48] = 255, 255
    before[0, 25:40, 30:45, 33:48] = 0
    network = ByCoarsePass()
    p = find_classes(
        network, values, InferenceSettings(axes="xyz", device="cpu"), before=before
    ).probabilities
    assert network.context.n == 0
    crystal, true = p.argmax(axis=0) == 3, before[3] > 0
    assert np.count_nonzero(crystal & true) > 0.85 * np.count_nonzero(true)
    assert np.count_nonzero(crystal & ~true) < 0.15 * np.count_nonzero(true)
    shift = np.argwhere(crystal).mean(axis=0) - np.argwhere(true).mean(axis=0)
    assert np.abs(shift).max() < 0.6  # half of the rounding to blocks


def test_where_labels_are_made():
    small = (200, 200, 200)
    for voxel, shape, factors in [
        (1.2, small, 1), (0.7, small, 1), (0.3, small, 2),
        (0.7, (300, 300, 300), 2), (0.3, (600, 600, 600), 4),  # too many for a second pass
        (0.5, small, 2), (0.26, small, 5),  # blocks of half their length are too fine, or not whole
    ]:  # fmt: skip
        assert label_factors(voxel * np.ones(3), shape) == (factors,) * 3


def test_a_second_pass_sees_voxels_that_blocks_hide():
    labels, _ = phantom(60)
    labels[25:35, 20:30:2, 25:35] = 1  # a crystal in layers of one voxel
    rng = np.random.default_rng(1)
    values = 0.01 * np.array(LEVELS)[labels] + 1e-4 * rng.standard_normal(labels.shape)
    tomogram = Tomogram(values.astype(np.float32), 0.7)
    seen = []

    def watch(values, probabilities):
        seen.append((values.shape, probabilities.shape[1:]))
        return probabilities

    settings = LabellingSettings(InferenceSettings(device="cpu"), clean_up=False)
    found = segment(tomogram, ByValue(), settings, refine=watch)
    assert found.factors == (1, 1, 1)
    assert seen == [(tomogram.shape, tomogram.shape)]
    assert np.mean(found.labels.values == labels) > 0.999
    coarse = segment(Tomogram(tomogram.values, 0.5), ByValue(), settings)
    assert coarse.factors == (2, 2, 2)
    layers = (slice(26, 34), slice(20, 30), slice(26, 34))
    assert np.mean(coarse.labels.values[layers] == labels[layers]) < 0.8


@pytest.mark.parametrize("axes", ["x", "y", "z", "xyz"])
def test_neighbours_run_along_the_slices_normal(axes):
    """The mean of three neighbours blurs along the normal alone."""
    values = np.zeros((20, 22, 24), dtype=np.float32)
    values[6:15, 6:15, 6:15] = 1.0
    settings = InferenceSettings(axes=axes, device="cpu")
    p = find_classes(ByValue(3, "mean"), values, settings).probabilities
    liquor = p[1].astype(int)
    inside = {"x": liquor[6, 10, 10], "y": liquor[10, 6, 10], "z": liquor[10, 10, 6]}
    for axis, value in inside.items():
        # the outermost plane sees two thirds, which is the level of the loop
        expected = 0 if axis == axes else 170 if len(axes) > 1 else 255
        assert value == pytest.approx(expected, abs=2)


def test_all_axes_where_they_take_little_time():
    """Up to 24 million voxels across all three, beyond across X; what is asked for is done."""
    auto = InferenceSettings(device="cpu")
    assert auto.normals((280, 290, 290)) == "xyz"
    assert auto.normals((300, 290, 290)) == "x"
    assert auto.normals((1, 290, 290)) == "x"  # one slice has no slices across Y
    assert InferenceSettings(axes="y", device="cpu").normals((300, 400, 500)) == "y"
    with pytest.raises(ValueError, match="such as xyz, or auto"):
        InferenceSettings(axes="xx", device="cpu")
    _, values = phantom()
    network = ByValue()
    find_classes(network, values, auto)
    assert len({shape[2:] for shape in network.seen}) >= 2


def test_nothing_but_the_sample_is_looked_at():
    _, values = phantom()
    far = np.zeros((80, 90, 100), dtype=np.float32)
    far[30:70, 20:66, 50:86] = values
    network = ByValue()
    p = find_classes(network, far, InferenceSettings(axes="x", device="cpu")).probabilities
    # 28 voxels of sample each way, and the air around it that the edge of the volume leaves
    around = AIR_AROUND
    assert sum(shape[0] for shape in network.seen) == pytest.approx(28 + 2 * around, abs=6)
    assert max(shape[3] for shape in network.seen) == pytest.approx(28 + 2 * around, abs=6)
    assert bool(np.all(p[0, :10] == 255))
    box = sample_box(far)
    assert all(b.start <= s for b, s in zip(box, (36, 27, 54), strict=True))
    assert find_classes(network, np.zeros((5, 6, 7), np.float32)).probabilities[0].min() == 255


def test_threads_share_the_slices_and_are_given_back(monkeypatch):
    _, values = phantom()
    whole = find_classes(
        ByValue(3, "mean"), values, InferenceSettings(axes="x", device="cpu")
    ).probabilities
    changes, at_work = [], set()

    class Watched(ByValue):
        def forward(self, slices, context=None):
            at_work.add(threading.current_thread())
            assert changes == [1]
            time.sleep(0.002)
            return super().forward(slices, context)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", changes.append)
    shared = find_classes(
        Watched(3, "mean"), values, InferenceSettings(axes="x", device="cpu")
    ).probabilities
    np.testing.assert_array_equal(shared, whole)
    assert len(at_work) == 3
    assert changes == [1, 3]


def test_one_slice_will_do():
    labels, values = phantom()
    p = find_classes(ByValue(3), values[20:21], InferenceSettings(device="cpu")).probabilities
    np.testing.assert_array_equal(most_probable(p)[0], labels[20])


@pytest.mark.parametrize(
    ("choices", "what"),
    [({"tile": 64, "overlap": 40}, "overlap"), ({"axes": "xx"}, "axes"), ({"batch": 0}, "batch"),
     ({"axes": "w"}, "axes"), ({"device": "tpu"}, "device")],
)  # fmt: skip
def test_bad_settings(choices, what):
    with pytest.raises(ValueError, match=what):
        InferenceSettings(**choices)


# ---- back to fine voxels --------------------------------------------------------------------------


def test_fine_labels_lie_where_coarse_ones_do():
    """A ball, labelled on voxels four times as large, comes back with its volume and its middle."""
    n, f = 64, 4
    centre = np.array([31.5, 27.0, 35.0])
    x = np.indices((n, n, n)) - centre[:, None, None, None]
    fine = np.sqrt((x**2).sum(axis=0)) < 20
    share = fine.reshape(n // f, f, n // f, f, n // f, f).mean(axis=(1, 3, 5))
    p = np.rint(255 * np.stack([1 - share, share])).astype(np.uint8)
    labels, chances = at_full_size(p, (f, f, f), (n, n, n), keep=True)
    assert labels.sum() == pytest.approx(fine.sum(), rel=0.04)  # a small ball shrinks a little
    middle = np.argwhere(labels).mean(axis=0)
    np.testing.assert_allclose(middle, centre, atol=0.15)
    assert np.mean(labels != fine) < 0.02
    assert chances is not None
    np.testing.assert_array_equal(most_probable(chances)[5], labels[5])


def test_fine_shapes_need_not_be_multiples():
    p = np.zeros((2, 3, 4, 5), dtype=np.uint8)
    p[1] = 255
    labels, chances = at_full_size(p, (4, 1, 2), (11, 4, 9))
    assert labels.shape == (11, 4, 9)
    assert bool(labels.all())
    assert chances is None


# ---- clean-up -------------------------------------------------------------------------------------


def sure(labels, second=None):
    """Probabilities: 200 for the labels, 40 for a second choice, 5 for the rest."""
    p = np.full((4, *labels.shape), 5, dtype=np.uint8)
    if second is not None:
        np.put_along_axis(p, np.asarray(second, np.intp)[None], 40, axis=0)
    np.put_along_axis(p, labels[None].astype(np.intp), 200, axis=0)
    return p


def drop():
    labels = np.zeros((30, 30, 30), dtype=np.uint8)
    labels[4:24, 4:24, 4:24] = 1
    labels[8:16, 8:16, 8:16] = 3
    return labels


def changed(steps):
    return {k: v for s in steps for k, v in s.changed_um3.items()}


def test_what_is_right_is_left():
    labels = drop()
    p = sure(labels)
    cleaned, steps = clean(p, NAMES, 1.0)
    np.testing.assert_array_equal(cleaned, labels)
    assert not changed(steps)
    np.testing.assert_array_equal(p, sure(labels))


def test_a_second_crystal_becomes_what_is_next_probable():
    labels = drop()
    second = np.ones(labels.shape)
    labels[19:22, 19:22, 19:22] = 3
    second[20, 20, 20] = 2
    p = sure(labels, second)
    cleaned, steps = clean(p, NAMES, 2.0, CleaningSettings(smallest_loop_um3=0))
    assert np.count_nonzero(cleaned == 3) == 512
    assert cleaned[19, 19, 19] == 1
    assert cleaned[20, 20, 20] == 2
    assert changed(steps) == {("crystal", "liquor"): 52.0, ("crystal", "loop"): 2.0}
    np.testing.assert_array_equal(most_probable(p), cleaned)
    # 27 of 512 voxels: a crystal of its own only where such small ones are asked for
    all_of_them = CleaningSettings(smallest_crystal=0.05, smallest_loop_um3=0, crystal_bridge_um=0)
    kept, steps = clean(sure(labels), NAMES, 1.0, all_of_them)
    np.testing.assert_array_equal(kept, labels)


def test_two_crystals_stay_where_both_are_large_and_sure():
    labels = drop()
    labels[19:24, 10:16, 10:16] = 3  # 180 of 512 voxels
    kept, _ = clean(sure(labels), NAMES, 1.0)
    np.testing.assert_array_equal(kept, labels)
    only = clean(sure(labels), NAMES, 1.0, CleaningSettings(one_crystal=True))[0]
    assert np.count_nonzero(only == 3) == 512
    p = sure(labels)
    p[3, 19:24, 10:16, 10:16], p[1, 19:24, 10:16, 10:16] = 140, 115  # hardly more probable
    doubtful = clean(p, NAMES, 1.0)[0]
    assert np.count_nonzero(doubtful == 3) == 512
    with pytest.raises(ValueError, match="smallest_crystal"):
        CleaningSettings(smallest_crystal=2.0)


def test_the_main_body_is_the_surest_one_not_the_largest():
    labels = drop()
    labels[17:23, 5:23, 5:23] = 3  # larger, and hardly more probable than liquor
    p = sure(labels)
    p[1, 17:23, 5:23, 5:23] = 190
    cleaned, _ = clean(p, NAMES, 1.0)
    np.testing.assert_array_equal(cleaned, drop())


def test_what_hangs_on_by_a_bridge_is_no_crystal():
    """A thin sheet from a block to a lump: both go, but for what is near, and the block stays whole."""
    labels = np.ones((40, 40, 40), dtype=np.uint8)
    labels[6:18, 6:18, 6:18] = 3
    block = labels.copy()
    labels[10:12, 8:16, 18:32] = 3  # the sheet, two voxels
    labels[8:13, 8:16, 32:37] = 3  # what it leads to
    p = sure(labels, np.ones(labels.shape))
    cleaned, steps = clean(p, NAMES, 1.0)
    assert np.all(cleaned[6:18, 6:18, 6:18] == 3)
    assert np.all(cleaned[:, :, 26:] == 1)
    assert set(changed(steps)) == {("crystal", "liquor")}
    np.testing.assert_array_equal(most_probable(p), cleaned)
    off = CleaningSettings(crystal_bridge_um=0.0)
    np.testing.assert_array_equal(clean(sure(labels), NAMES, 1.0, off)[0], labels)
    # lengths are in um: with voxels of 1/3 um the sheet is as thin, with those of 3 um it is thick
    thick, _ = clean(sure(labels), NAMES, 27.0)
    np.testing.assert_array_equal(thick, labels)
    np.testing.assert_array_equal(clean(sure(block), NAMES, 1.0)[0], block)


@pytest.mark.parametrize("half", [(2, 12, 12), (20, 3, 3)])
def test_plates_and_needles_are_left_whole(half):
    labels = np.ones((50, 40, 40), dtype=np.uint8)
    x, y, z = (abs(i - n // 2) for i, n in zip(np.indices(labels.shape), labels.shape, strict=True))
    labels[(x <= half[0]) & (y <= half[1]) & (z <= half[2])] = 3
    np.testing.assert_array_equal(clean(sure(labels), NAMES, 1.0)[0], labels)


def test_crystal_in_air_is_air():
    labels = drop()
    labels[26:29, 26:29, 26:29] = 3
    only = CleaningSettings(smallest_body_um3=0)
    cleaned, steps = clean(sure(labels), NAMES, 1.0, only)
    assert cleaned[27, 27, 27] == 0
    assert np.count_nonzero(cleaned == 3) == 512
    assert changed(steps) == {("crystal", "background"): 27.0}
    allowed = CleaningSettings(smallest_crystal=0, smallest_body_um3=0, crystal_in_air=True)
    assert clean(sure(labels), NAMES, 1.0, allowed)[0][27, 27, 27] == 3


def test_a_naked_crystal_is_not_thrown_away():
    labels = np.zeros((20, 20, 20), dtype=np.uint8)
    labels[5:15, 5:15, 5:15] = 3
    np.testing.assert_array_equal(clean(sure(labels), NAMES, 1.0)[0], labels)


def test_islands_holes_and_specks():
    labels = drop()
    labels[27, 27, 27] = 1  # an island
    labels[11, 11, 11] = 1  # a hole in the crystal
    labels[20:22, 20, 20] = 2  # a speck of loop
    p = sure(labels, np.ones(labels.shape))
    cleaned, steps = clean(p, NAMES, 1.0)
    np.testing.assert_array_equal(cleaned, drop())
    assert changed(steps) == {
        ("liquor", "background"): 1.0, ("liquor", "crystal"): 1.0, ("loop", "liquor"): 2.0,
    }  # fmt: skip
    off = CleaningSettings(
        crystal_in_air=True, fill_crystal=False, smallest_body_um3=0.0, smallest_loop_um3=0.0
    )
    np.testing.assert_array_equal(clean(sure(labels), NAMES, 1.0, off)[0], labels)
    with pytest.raises(ValueError, match="smallest_loop_um3"):
        CleaningSettings(smallest_loop_um3=-1.0)


# ---- measures -------------------------------------------------------------------------------------


def ball(radius, n=50, shift=(0, 0, 0), size=(1.0, 1.0, 1.0)):
    x = (np.indices((n, n, n)) - n // 2) * np.array(size)[:, None, None, None]
    x = x - np.array(shift)[:, None, None, None]
    return np.sqrt((x**2).sum(axis=0)) <= radius


def test_hausdorff_of_concentric_balls():
    assert hd95_um(ball(20), ball(16), 1.0) == pytest.approx(4.0, abs=0.7)
    size = (0.5, 0.8, 1.0)
    assert hd95_um(ball(10, size=size), ball(7, size=size), size) == pytest.approx(3.0, abs=0.6)


def test_hausdorff_of_a_shift_is_in_um():
    a = np.zeros((20, 20, 20), dtype=bool)
    a[5:10, 5:15, 5:15] = True
    assert hd95_um(a, np.roll(a, 3, axis=0), (2.0, 1.0, 1.0)) == pytest.approx(6.0)
    assert hd95_um(a, a, 1.0) == 0.0
    assert math.isnan(hd95_um(a, np.zeros_like(a), 1.0))


def test_the_95th_percentile_forgives_a_speck():
    a, b = ball(15), ball(15)
    a[2, 2, 2] = True
    assert hd95_um(a, b, 1.0) < 1.0


def test_scores_by_hand():
    truth = np.zeros((2, 2, 4), dtype=np.uint8)
    truth[0] = 1
    truth[1, 0] = 3
    found = truth.copy()
    found[1, 0, 0] = 0  # one of four crystal voxels is missed
    found[1, 1, 0] = 3  # and one of four air voxels is called crystal
    scores = evaluate(LabelVolume(found, np.ones(3)), truth)
    assert scores["crystal"].recall == pytest.approx(3 / 4)
    assert scores["crystal"].dice == pytest.approx(2 * 3 / 8)
    assert scores["crystal"].dice_loss == pytest.approx(1 / 4)
    assert scores["liquor"].dice == 1.0
    assert scores["background"].recall == pytest.approx(3 / 4)
    assert math.isnan(scores["loop"].recall)
    assert math.isnan(scores.cross_entropy)
    written = json.loads(json.dumps(scores.as_dict()))["classes"]["crystal"]
    assert written["recall"] == recall_of(written) == pytest.approx(3 / 4)
    assert recall_of({"accuracy": 0.5}) == 0.5  # a record of an earlier version
    assert np.isnan(recall_of({"recall": None}))  # as JSON has it where a sample lacks the class
    with pytest.raises(ValueError, match="same grid"):
        evaluate(LabelVolume(found, np.ones(3)), truth[:, :, :2])


def test_cross_entropy_by_hand():
    truth = np.array([[[0, 1]]], dtype=np.uint8)
    p = np.zeros((2, 1, 1, 2), dtype=np.uint8)
    p[0, 0, 0, 0], p[1, 0, 0, 1] = 255, 51
    assert cross_entropy(p, truth) == pytest.approx(math.log(5) / 2, rel=1e-6)
    p[1, 0, 0, 1] = 0
    assert cross_entropy(p, truth) == pytest.approx(math.log(510) / 2, rel=1e-6)


# ---- the whole ------------------------------------------------------------------------------------


def on_cpu(**changes):
    return LabellingSettings(InferenceSettings(device="cpu"), **changes)


@pytest.mark.parametrize(("voxel", "scale"), [(1.2, 0.013), (0.54, 0.002)])
def test_a_tomogram_is_labelled(voxel, scale):
    labels, values = phantom(48)
    factor = round(1.2 / voxel)
    fine = np.repeat(np.repeat(np.repeat(values, factor, 0), factor, 1), factor, 2)
    truth = np.repeat(np.repeat(np.repeat(labels, factor, 0), factor, 1), factor, 2)
    tomogram = Tomogram(scale * fine, voxel, np.array([3.0, 4.0, 5.0]))
    result = segment(tomogram, ByValue(), on_cpu(keep_probabilities=True))
    assert result.factors == (factor,) * 3
    np.testing.assert_array_equal(result.labels.centre, tomogram.centre)
    scores = evaluate(result.labels, truth, result.probabilities)
    assert scores["crystal"].dice > (0.999 if factor == 1 else 0.9)
    # values are scaled to the sample's own median, so levels move by a per cent or two
    np.testing.assert_allclose(result.mu_per_um[1:], scale * np.array([1.0, 0.7, 1.4]), rtol=0.02)
    assert not result.warnings
    assert set(result.seconds) == {"preparation", "network", "clean-up"}


def test_warnings():
    labels, values = phantom(48)
    cut = Tomogram(0.013 * values[24:], 1.2)
    result = segment(cut, ByValue(), on_cpu(), energy_keV=12.0)
    text = " ".join(result.warnings)
    assert "touches the edge" in text
    assert "mu of the crystal" in text
    coarse = segment(Tomogram(0.013 * values, 4.0), ByValue(), on_cpu())
    assert "trained on at most" in " ".join(coarse.warnings)


def test_no_crystal_is_refused():
    _, values = phantom(48)
    with pytest.raises(ValueError, match="No crystal"):
        segment(Tomogram(0.013 * values.clip(0, 1), 1.2), ByValue())


def test_air_and_absurd_voxels_are_refused():
    rng = np.random.default_rng(0)
    air = 1e-4 * rng.standard_normal((20, 20, 20))
    with pytest.raises(ValueError, match="no sample"):
        segment(Tomogram(air, 1.2), ByValue())
    with pytest.raises(ValueError, match="unit"):
        segment(Tomogram(air, 1200.0), ByValue())


def test_refinement_comes_before_the_clean_up():
    labels, values = phantom(48)

    def refine(normalised, p):
        assert normalised.shape == p.shape[1:]
        better = p.copy()
        better[:, 30, 30, 30] = (0, 100, 155, 0)
        return better

    tomogram = Tomogram(0.013 * values, 1.2)
    result = segment(tomogram, ByValue(), on_cpu(clean_up=False), refine=refine)
    assert result.labels.values[30, 30, 30] == 2
    cleaned = segment(tomogram, ByValue(), on_cpu(), refine=refine)
    assert cleaned.labels.values[30, 30, 30] == 1


def test_mu_is_taken_from_the_inside():
    """A bright fringe at the surface of the crystal does not move its mu."""
    labels = drop()
    values = np.array([0.0, 0.013, 0.0, 0.012])[labels]
    shell = labels == 3
    shell[9:15, 9:15, 9:15] = False
    values[shell] = 0.03
    mu = mean_mu(values, LabelVolume(labels, np.ones(3)))
    assert mu[3] == pytest.approx(0.012)
    assert mu[1] == pytest.approx(0.013)
    assert math.isnan(mu[2])


def test_missing_torch_is_one_sentence(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "torch" or name.endswith("segmentation.weights_files"):
            raise ImportError("No module named 'torch'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="needs torch"):
        load_network()


# ---- the weights that ship ------------------------------------------------------------------------


def test_shipped_weights():
    folder = files("anacor_dials") / "segmentation" / "weights"
    weights = folder / SHIPPED_WEIGHTS
    assert len(weights.read_bytes()) <= 16 * 2**20
    network = load_network()
    assert network.settings.names == NAMES
    card = json.loads((folder / SHIPPED_WEIGHTS.replace(".safetensors", ".json")).read_text())
    assert card["training"]["families"]
    training = card["training"]
    samples = [*training["samples"], *training.get("earlier", {}).get("samples", ())]
    trained = {tuple(s["seed"]) for s in samples if "seed" in s} | {(s["name"],) for s in samples}
    entries = [entry for name, entry in card.items() if name.startswith("evaluation")]
    for entry in entries:
        for row in entry["samples"]:
            assert tuple(row.get("seed", (row["name"],))) not in trained
    assert SHIPPED_WEIGHTS.startswith(card["network"]["architecture"])


def test_fine_labels_are_those_of_the_interpolated_probabilities():
    """The short cut away from surfaces changes nothing: against scipy's linear interpolation."""
    rng = np.random.default_rng(5)
    smooth = scipy.ndimage.gaussian_filter(rng.standard_normal((4, 9, 7, 8)), (0, 1.5, 1.5, 1.5))
    p = np.exp(20 * smooth)
    p = np.rint(255 * p / p.sum(axis=0)).astype(np.uint8)
    factors, shape = (4, 3, 2), (35, 21, 15)
    places = [
        np.clip((np.arange(n) + 0.5) / f - 0.5, 0, None)
        for n, f in zip(shape, factors, strict=True)
    ]
    at = np.stack(np.meshgrid(*places, indexing="ij"))
    expected = np.stack(
        [scipy.ndimage.map_coordinates(q.astype(float), at, order=1, mode="nearest") for q in p]
    )
    labels, none = at_full_size(p, factors, shape)
    _, chances = at_full_size(p, factors, shape, keep=True)
    assert none is None
    first, second = np.sort(expected, axis=0)[:-3:-1]
    clear = first - second > 1e-3
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], expected.argmax(axis=0)[clear])
    np.testing.assert_allclose(chances, expected, atol=0.51)


def test_workers_of_the_network_do_not_wait_for_threads_of_blas():
    blas = [a for a in threadpoolctl.threadpool_info() if a["user_api"] == "blas"]
    if not blas or min(a["num_threads"] for a in blas) < 2:
        pytest.skip("BLAS has one thread only")
    with _threads_apart(on_gpu=False) as pool:
        during = pool.submit(threadpoolctl.threadpool_info).result()
    assert {a["num_threads"] for a in during if a["user_api"] == "blas"} == {1}
    after = [a for a in threadpoolctl.threadpool_info() if a["user_api"] == "blas"]
    assert [a["num_threads"] for a in after] == [a["num_threads"] for a in blas]
