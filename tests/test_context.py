"""The coarse pass: what it sees and should find, by hand; tiles, interpolation, and that it learns."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

from anacor_dials.segmentation import context as coarse_pass  # noqa: E402
from anacor_dials.segmentation.coarse_grid import (  # noqa: E402
    BIN,
    LEVEL_CHANNEL,
    N_CHANNELS,
    WINDOWS,
    class_shares,
    coarse_shape,
    context_input,
    with_other_levels,
    without_air,
)
from anacor_dials.segmentation.context import (  # noqa: E402
    ContextNetwork,
    at_plane,
    context_probabilities,
)
from anacor_dials.segmentation.fringes import N_VIEWS  # noqa: E402
from anacor_dials.segmentation.losses import segmentation_loss  # noqa: E402
from anacor_dials.segmentation.network import (  # noqa: E402
    NetworkSettings,
    build_network,
    take_over,
)

# ---- what it sees and should find -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "coarse"), [((3, 6, 9), (1, 2, 3)), ((4, 5, 1), (2, 2, 1)), ((160, 96, 98), (54, 32, 33))]
)  # fmt: skip
def test_the_shape_of_the_coarse_grid(shape, coarse):
    """Blocks of three voxels; what is left over makes a block of its own."""
    assert coarse_shape(shape) == coarse
    assert class_shares(np.zeros(shape, np.uint8), 2).shape == (2, *coarse)
    assert context_input(np.zeros((N_VIEWS, *shape))).shape == (N_CHANNELS, *coarse)


def test_shares_of_classes_by_hand():
    labels = np.zeros((3, 3, 6), dtype=np.uint8)
    labels[0, :, :3] = 3  # 9 of 27 voxels
    labels[1, 0, 0] = 2
    labels[:, :, 3:] = 1
    labels[2, 2, 5] = 0
    shares = class_shares(labels, 4)
    assert shares.shape == (4, 1, 1, 2)
    expected = [[17 / 27, 1 / 27], [0, 26 / 27], [1 / 27, 0], [9 / 27, 0]]
    np.testing.assert_allclose(shares[:, 0, 0], expected, atol=5e-4)


def test_left_over_voxels_are_repeated():
    """Of the last block of four voxels in a row, two thirds are the last voxel, repeated, and it is all there is."""
    labels = np.array([0, 0, 0, 1], dtype=np.uint8).reshape(1, 1, 4)
    np.testing.assert_array_equal(class_shares(labels, 2)[1, 0, 0], [0, 1])
    labels = np.array([0, 0, 0, 0, 1], dtype=np.uint8).reshape(1, 1, 5)
    assert class_shares(labels, 2)[1, 0, 0, 1] == pytest.approx(2 / 3, abs=1e-3)


def test_shares_sum_to_one_and_keep_volumes():
    labels = np.random.default_rng(1).integers(0, 4, (12, 15, 9)).astype(np.uint8)
    shares = class_shares(labels, 4).astype(float)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=2e-3)
    np.testing.assert_allclose(
        shares.sum(axis=(1, 2, 3)) * BIN**3, np.bincount(labels.ravel()), rtol=1e-3
    )


def test_the_input_by_hand():
    """Means, means in a narrow window for each view, spread, and the same on logarithmic scales."""
    rng = np.random.default_rng(2)
    seen = rng.uniform(0.9, 1.1, (N_VIEWS, 6, 3, 3))
    seen[:, :3] = np.array([1.02, 1.05, 0.97])[:, None, None, None]  # the first block is even
    seen[0, 0, 0, 0] += 0.27  # but for one voxel: the mean is 0.01 higher
    found = context_input(seen).astype(float)[:, :, 0, 0]
    means = seen.reshape(N_VIEWS, 2, 27).mean(axis=2)
    np.testing.assert_allclose(found[0], means[0], atol=1e-3)
    assert found[0, 0] == pytest.approx(1.03, abs=1e-3)
    for k, window in enumerate(WINDOWS):
        np.testing.assert_allclose(found[1 + k], (means[k] - 1) / window, atol=4e-3)
    spread = seen[0].reshape(2, 27).std(axis=1)
    np.testing.assert_allclose(found[4], 2 * spread, atol=4e-3)
    np.testing.assert_allclose(found[5], (np.log(spread + 0.004) + 3.5) / 1.5, atol=4e-3)
    signs = np.where(means[0] > 1, 0.5, -0.5)
    np.testing.assert_allclose(found[6], signs * np.log(1 + abs(means[0] - 1) / 0.03), atol=4e-3)
    fringes = (seen[0] - seen[1]).reshape(2, 27)
    assert fringes.max() > 0.05
    assert fringes.min() < -0.05
    for channel, most in ((7, fringes.max(axis=1)), (8, fringes.min(axis=1))):
        signs = np.where(most > 0, 0.5, -0.5)
        np.testing.assert_allclose(found[channel], signs * np.log(1 + abs(most) / 0.02), atol=4e-3)


def test_a_faint_outline_counts_beside_the_border_to_air():
    """An outline of 2 % in the liquor, and a border to air with fringes: 1 to 6 at most, not 1 to 50."""
    seen = np.ones((N_VIEWS, 3, 3, 9), dtype=np.float32)
    seen[0, :, :, 1] += 0.02
    seen[:, :, :, 5:] = 0
    seen[0, :, :, 4], seen[0, :, :, 5] = 1.9, -0.9
    found = context_input(seen).astype(float)[:, 0, 0]
    for channel in (7, 8):  # the largest and the least difference
        assert np.abs(found[channel]).max() < 6 * 0.5 * np.log(2)
    assert found[7, 0] == pytest.approx(0.5 * np.log(2), abs=1e-3)
    assert found[5, 0] - found[5, 2] > 0.5  # the spread beside that of a flat block


def test_other_levels_are_those_of_other_values():
    rng = np.random.default_rng(5)
    seen = rng.uniform(0.7, 1.2, (N_VIEWS, 6, 9, 3))
    expected = context_input(1.05 * seen - 0.02).astype(float)
    found = with_other_levels(context_input(seen), 0.05, -0.02)
    assert found.dtype == np.float32
    for channel in (0, 1, 2, 3, LEVEL_CHANNEL):
        np.testing.assert_allclose(found[channel], expected[channel], atol=8e-3)
    assert not np.allclose(found[1], context_input(seen)[1], atol=0.05)


@pytest.mark.parametrize(
    ("first", "last", "kept"),
    # four blocks of air on either side, then up to a multiple of eight, within the grid
    [(10, 20, (3, 27)), (0, 5, (0, 16)), (30, 40, (24, 40)), (12, 28, (8, 32))],
)
def test_air_far_from_the_sample_is_cut_off(first, last, kept):
    shares = np.zeros((4, 40, 6, 8), dtype=np.float16)
    shares[0] = 1
    shares[:, first:last] = np.array([0, 1, 0, 0])[:, None, None, None]
    everywhere, x, y, z = without_air(shares)
    assert everywhere == slice(None)
    assert (x.start, x.stop) == kept
    assert (y.start, y.stop, z.start, z.stop) == (0, 6, 0, 8)


def test_the_input_is_bounded():
    """A pin or a strong fringe fills no more than its window."""
    seen = np.zeros((N_VIEWS, 3, 3, 6), dtype=np.float32)
    seen[..., :3] = -50
    seen[..., 1:2] = 50
    found = context_input(seen)
    assert np.all(np.isfinite(found))
    assert np.all(found[0] >= -1)
    assert np.all(found[0] <= 3)
    assert np.all(np.abs(found[1:4]) <= 2)
    assert 0 <= found[4].min() <= found[4].max() <= 3
    assert np.all(np.abs(found[5:]) < 3.5)
    np.testing.assert_array_equal(found[1:4, 0, 0, 1], -2)  # air


# ---- tiles ----------------------------------------------------------------------------------------


class Local(torch.nn.Module):
    """A coarse pass that looks no further than 24 voxels: means over 49 voxels along each axis."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape[2:]))
        near = x[:, :1]
        for axis in (2, 3, 4):
            kernel = [1, 1, 1, 1, 1]
            kernel[axis] = 49
            padding = [0, 0, 0]
            padding[axis - 2] = 24
            weight = torch.full(kernel, 1 / 49)
            near = torch.nn.functional.conv3d(near, weight, padding=tuple(padding))
        return torch.cat([-near, near, x[:, :1], 0.5 * x[:, -1:]], dim=1)


class Carrier(torch.nn.Module):
    """What context_probabilities asks of a network: its coarse pass, its classes, where it lies."""

    def __init__(self, context):
        super().__init__()
        self.context, self.settings = context, SimpleNamespace(n_classes=4)
        self.anywhere = torch.nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize("shape", [(300, 8, 170), (5, 400, 9), (291, 3, 3)])
def test_tiles_equal_the_whole(shape, monkeypatch):
    """For a coarse pass that does not look further than the halo."""
    seen = np.random.default_rng(0).uniform(0, 1.5, (N_VIEWS, *shape)).astype(np.float16)
    local = Local()
    tiled = context_probabilities(Carrier(local), seen)
    assert tiled.shape == (4, *coarse_shape(shape))
    assert len(local.sizes) > 1
    assert max(max(size) for size in local.sizes) <= coarse_pass.TILE
    monkeypatch.setattr(coarse_pass, "TILE", 1000)
    local.sizes.clear()
    whole = context_probabilities(Carrier(local), seen)
    assert local.sizes == [coarse_shape(shape)]
    np.testing.assert_allclose(tiled, whole, atol=2e-3)


def test_tiles_of_the_network_itself_differ_little(monkeypatch):
    """Its normalisation looks at all of a tile, so that nothing but near agreement can be asked for."""
    torch.manual_seed(1)
    network = build_network(NetworkSettings("unet", n_slices=1)).eval()
    x = np.indices((360, 30, 30))
    seen = (1 + 0.3 * np.sin(x[0] / 9) * np.cos(x[1] / 7)).astype(np.float16)[None].repeat(3, 0)
    tiled = context_probabilities(network, seen)
    monkeypatch.setattr(coarse_pass, "TILE", 1000)
    whole = context_probabilities(network, seen)
    np.testing.assert_allclose(tiled.astype(float).sum(axis=0), 1, atol=3e-3)
    assert np.abs(tiled.astype(float) - whole).mean() < 0.02
    assert whole.astype(float).std(axis=(1, 2, 3)).max() > 0.02


def test_volumes_of_one_slice():
    network = build_network(NetworkSettings("unet", n_slices=1)).eval()
    p = context_probabilities(network, np.ones((N_VIEWS, 1, 40, 31), np.float16))
    assert p.shape == (4, 1, 14, 11)
    assert np.all(np.isfinite(p))


# ---- between the coarse and the fine grid ---------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_linear_fields_are_exact(axis):
    """Probabilities that grow linearly with position are, on the fine grid, the same function of position."""
    shape = (31, 29, 34)
    n = coarse_shape(shape)
    middles = BIN * np.arange(n[axis]) + (BIN - 1) / 2  # fine voxels, of the blocks' middles
    field = (0.01 * middles + 0.2).reshape([-1 if k == axis else 1 for k in range(3)])
    coarse = np.stack([np.broadcast_to(field, n), np.broadcast_to(1 - field, n)])
    coarse = coarse.astype(np.float32)  # half precision would round
    planes = np.stack([at_plane(coarse, x, shape[1:]).numpy() for x in range(shape[0])], axis=1)
    assert planes.shape == (2, *shape)
    found = planes[0].transpose(axis, *[k for k in range(3) if k != axis])
    expected = 0.01 * np.arange(shape[axis]) + 0.2
    # beyond the outermost middles nothing is known, and the last value goes on
    inside = slice(1, int(middles[-1]) + 1)
    np.testing.assert_allclose(
        found[inside], np.broadcast_to(expected[inside, None, None], found[inside].shape), atol=1e-5
    )
    np.testing.assert_allclose(found[0], expected[1], atol=1e-5)
    np.testing.assert_allclose(planes.sum(axis=0), 1, atol=1e-5)


def test_planes_of_a_volume_of_one_block():
    coarse = np.array([0.25, 0.75], dtype=np.float16).reshape(2, 1, 1, 1)
    for plane in (0, 2, 7):
        found = at_plane(coarse, plane, (2, 3))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.tensor([0.25, 0.75])[:, None, None].expand(2, 2, 3))


# ---- weights without context, and learning --------------------------------------------------------


@pytest.mark.parametrize("architecture", ["anacornet", "unet"])
def test_weights_without_context_are_taken_over(architecture):
    """The same logits as before, whatever the coarse pass says; and then the context can be learned."""
    torch.manual_seed(4)
    settings = NetworkSettings(architecture, n_slices=3, context=False)
    earlier = build_network(settings).eval()
    for module in earlier.modules():  # as after a training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    network = build_network(NetworkSettings(architecture, n_slices=3)).eval()
    take_over(network, earlier)
    slices = torch.randn(2, 9, 40, 33)
    expected = earlier(slices)
    for _ in range(2):
        context = torch.randn(2, 4, 40, 33).softmax(1)
        torch.testing.assert_close(network(slices, context), expected)
    network.train()
    first = network.steps[0][0][0] if architecture == "unet" else network.level1[0][0]
    network(slices, context)[0].square().mean().backward()
    slope = first.weight.grad.abs().sum(dim=(0, 2, 3))
    assert len(slope) == network.settings.n_channels
    for part in ("context", "outlines"):
        assert bool((slope[network.settings.channel_parts[part]] > 0).all())


@pytest.mark.parametrize("context", [False, True])
def test_weights_that_saw_no_outlines_are_taken_over(context):
    """The same logits as before; of the coarse pass, too."""
    torch.manual_seed(5)
    then = NetworkSettings("unet", n_slices=1, context=context, outlines=False)
    earlier = build_network(then).eval()
    network = build_network(NetworkSettings("unet", n_slices=1)).eval()
    take_over(network, earlier)
    x, seen = torch.randn(1, 3, 20, 20), torch.randn(1, 4, 20, 20).softmax(1)
    expected = earlier(x, seen) if context else earlier(x)
    torch.testing.assert_close(network(x, seen), expected)
    if context:
        coarse = torch.randn(1, N_CHANNELS, 7, 8, 9)
        torch.testing.assert_close(network.context(coarse), earlier.context(coarse[:, :5]))
        torch.testing.assert_close(earlier.context(coarse), earlier.context(coarse[:, :5]))


def test_outlines_are_taken_over_into_a_network_with_context():
    """The channels lie elsewhere there."""
    torch.manual_seed(7)
    earlier = build_network(NetworkSettings("unet", n_slices=1, context=False)).eval()
    network = build_network(NetworkSettings("unet", n_slices=1)).eval()
    take_over(network, earlier)
    x, seen = torch.randn(1, 3, 20, 20), torch.randn(1, 4, 20, 20).softmax(1)
    torch.testing.assert_close(network(x, seen), earlier(x))


@pytest.mark.parametrize(
    "other",
    [{"architecture": "anacornet"}, {"n_slices": 5}, {"size": "base"}, {"names": ("air", "crystal")}],
)  # fmt: skip
def test_weights_of_another_network_are_not(other):
    plain = {"architecture": "unet", "n_slices": 3}
    network = build_network(NetworkSettings(**plain))
    with pytest.raises(ValueError, match="earlier weights"):
        take_over(network, build_network(NetworkSettings(**plain | other, context=False)))


def test_weights_with_context_are_taken_over_whole():
    torch.manual_seed(6)
    first, second = (build_network(NetworkSettings("unet", n_slices=1)).eval() for _ in range(2))
    take_over(second, first)
    x, context = torch.randn(1, 3, 20, 20), torch.randn(1, 4, 20, 20).softmax(1)
    coarse = torch.randn(1, N_CHANNELS, 7, 8, 9)
    torch.testing.assert_close(second(x, context), first(x, context))
    torch.testing.assert_close(second.context(coarse), first.context(coarse))


def test_it_learns_what_a_slice_cannot_tell():
    """A ball with a bright kernel is crystal throughout, one without it liquor: the rim says nothing of it."""
    rng = np.random.default_rng(3)

    def samples():
        middle = rng.uniform(4.5, 6.5, 3)
        x = np.indices((12, 12, 12)) - middle[:, None, None, None]
        r = np.sqrt((x**2).sum(axis=0))
        labels = np.stack([np.where(r < 4, label, 0) for label in (1, 3)])
        level = (labels > 0) + 0.6 * ((labels == 3) & (r < 1.8))
        seen = np.zeros((2, N_CHANNELS, *r.shape), dtype=np.float32)
        seen[:, 0] = level
        seen[:, 1:-1] = np.clip((level - 1) / 0.25, -2, 2)[:, None]
        shares = np.eye(4, dtype=np.float32)[labels].transpose(0, 4, 1, 2, 3)
        return torch.from_numpy(seen), torch.from_numpy(shares), labels

    torch.manual_seed(3)
    network = ContextNetwork(4)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(110):
        seen, shares, _ = samples()
        loss = sum(segmentation_loss(network(seen), shares, torch.ones(4)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for _ in range(3):
        seen, _, labels = samples()
        with torch.no_grad():
            found = network(seen).argmax(dim=1).numpy()
        for k, label in enumerate((1, 3)):
            there = labels[k] == label
            both = np.count_nonzero((found[k] == label) & there)
            assert 2 * both / (np.count_nonzero(found[k] == label) + there.sum()) > 0.85
