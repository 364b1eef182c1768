"""The networks: any size of slice, the hybrid attention, and weights that say what they are."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

from anacor_dials.segmentation import network as networks  # noqa: E402
from anacor_dials.segmentation import weights_files  # noqa: E402
from anacor_dials.segmentation.coarse_grid import N_CHANNELS  # noqa: E402
from anacor_dials.segmentation.context import ContextNetwork  # noqa: E402
from anacor_dials.segmentation.inference import load_networks  # noqa: E402
from anacor_dials.segmentation.network import (  # noqa: E402
    DeformableDepthwise,
    LargeKernelGate,
    NetworkSettings,
    build_network,
    channels,
    deformable_depthwise,
    n_parameters,
)
from anacor_dials.segmentation.weights_files import (  # noqa: E402
    load_weights,
    model_card_path,
    save_weights,
)

ARCHITECTURES = ("anacornet", "unet")


@pytest.fixture(
    params=[(a, c) for a in ARCHITECTURES for c in (True, False)],
    ids=lambda p: f"{p[0]}-{'with' if p[1] else 'without'}_context",
)
def network(request):
    torch.manual_seed(1)
    architecture, context = request.param
    return build_network(NetworkSettings(architecture, n_slices=3, context=context)).eval()


def probabilities(network, n, *shape):
    """Random ones of a coarse pass; None for a network that takes none."""
    settings = network.settings
    return torch.randn(n, settings.n_classes, *shape).softmax(1) if settings.context else None


@pytest.mark.parametrize("shape", [(1, 1), (33, 50), (64, 48)])
def test_any_size_of_slice(network, shape):
    with torch.no_grad():
        logits = network(torch.randn(2, 9, *shape), probabilities(network, 2, *shape))
    assert logits.shape == (2, 4, *shape)
    assert bool(torch.isfinite(logits).all())


def test_training_gives_three_sizes(network):
    seen = torch.randn(2, 9, 32, 48), probabilities(network, 2, 32, 48)
    sizes = [tuple(o.shape[1:]) for o in network.train()(*seen)]
    assert sizes == [(4, 32, 48), (4, 16, 24), (4, 8, 12)]


def test_every_parameter_takes_part(network):
    outputs = network.train()(torch.randn(2, 9, 32, 32), probabilities(network, 2, 32, 32))
    if network.context is not None:
        outputs.append(network.context(torch.randn(1, N_CHANNELS, 9, 8, 10)))
    sum((o**2).mean() for o in outputs).backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    assert not idle


@pytest.mark.parametrize("context", [True, False])
def test_sizes(context):
    tiny, plain = (
        n_parameters(build_network(NetworkSettings(a, context=context))) for a in ARCHITECTURES
    )
    coarse = n_parameters(ContextNetwork(4)) if context else 0
    assert tiny - coarse <= 4e6
    assert coarse < 0.5 * tiny
    assert plain - coarse == pytest.approx(tiny - coarse, rel=0.1)
    base = n_parameters(build_network(NetworkSettings(size="base", context=context)))
    assert 4e6 < base < 16 * 2**20 / 2  # as float16 it fits what may ship
    plain = n_parameters(build_network(NetworkSettings("unet", "base", context=context)))
    assert plain - coarse == pytest.approx(base - coarse, rel=0.25)


def test_the_context_is_seen_and_asked_for(network):
    slices = torch.randn(1, 9, 32, 32)
    if network.settings.context:
        with torch.no_grad():
            a, b = (network(slices, probabilities(network, 1, 32, 32)) for _ in range(2))
        assert float((a - b).abs().max()) > 1e-4
        with pytest.raises(ValueError, match="needs probabilities"):
            network(slices)
    else:
        with pytest.raises(ValueError, match="takes no probabilities"):
            network(slices, torch.full((1, 4, 32, 32), 0.25))


def test_the_number_of_classes_is_a_parameter():
    names = ("background", "crystal", "oil")
    for context in (True, False):
        settings = NetworkSettings(n_slices=1, names=names, context=context)
        network = build_network(settings).eval()
        seen = torch.randn(1, 3, 16, 16), probabilities(network, 1, 16, 16)
        assert network(*seen).shape == (1, 3, 16, 16)


def test_the_same_seed_gives_the_same_network():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(build_network(NetworkSettings()).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_deformable_begins_as_a_rigid_kernel():
    torch.manual_seed(2)
    layer, x = DeformableDepthwise(6), torch.randn(2, 6, 20, 17)
    expected = torch.nn.functional.conv2d(x, layer.weight, padding=3, dilation=3, groups=6)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("shape", [(13, 17), (1, 9)])
def test_deformable_is_that_of_torchvision(shape):
    """Offsets beyond the map's edges and modulations included; its gradients too."""
    from torchvision.ops import deform_conv2d

    torch.manual_seed(4)
    h, w = shape
    parts = [
        torch.randn(2, 6, h, w),
        torch.randn(6, 1, 3, 3),
        4.0 * torch.randn(2, 18, h, w),
        torch.rand(2, 9, h, w),
    ]
    parts = [p.requires_grad_() for p in parts]
    x, weight, offsets, modulation = parts
    found = deformable_depthwise(x, weight, offsets, modulation)
    expected = deform_conv2d(x, offsets, weight, padding=3, dilation=3, mask=modulation)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    toward = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad((found * toward).sum(), parts),
        torch.autograd.grad((expected * toward).sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)


def test_offsets_move_the_kernel():
    """With the constant offset (0, 1) every tap reads one column further: the result is shifted."""
    torch.manual_seed(2)
    layer, x = DeformableDepthwise(4), torch.randn(1, 4, 20, 20)
    rigid = layer(x)
    with torch.no_grad():
        layer.shifts.bias[1:18:2] = 1.0
    moved = layer(x)
    torch.testing.assert_close(moved[..., 4:-5], rigid[..., 5:-4])


def test_the_hybrid_gate_multiplies_its_input():
    torch.manual_seed(2)
    gate = LargeKernelGate(8, hybrid=True)
    assert gate.deformable is not None
    assert gate.n_rigid == 4
    assert LargeKernelGate(8, hybrid=False).deformable is None
    x = torch.randn(1, 8, 24, 24)
    x[:, 3] = 0
    assert bool((gate(x)[:, 3] == 0).all())
    assert not bool((gate(x)[:, 2] == 0).all())


def test_the_gate_is_bounded():
    """Ten times the input is at most ten times the output, and never above GATE_LIMIT times the input."""
    torch.manual_seed(2)
    gate = LargeKernelGate(8, hybrid=True)
    x = torch.randn(1, 8, 24, 24)
    assert bool((gate(1e4 * x).abs() <= networks.GATE_LIMIT * 1e4 * x.abs() * (1 + 1e-6)).all())
    small = 1e-3 * x
    free = LargeKernelGate(8, hybrid=True, bounded=False)
    free.load_state_dict(gate.state_dict())
    torch.testing.assert_close(gate(small), free(small), rtol=5e-3, atol=1e-9)
    assert float(free(1e4 * x).detach().abs().max()) > 1e6


def test_the_reach_of_the_attention():
    """near 5x5 (+-2) then 7x7 with dilation 3 (+-9): a voxel is felt 11 voxels away and no further."""
    torch.manual_seed(3)
    gate = LargeKernelGate(4, hybrid=False)
    x = torch.ones(1, 4, 41, 41)
    y = x.clone()
    y[:, :, 20, 20] += 1
    changed = (gate(y) - gate(x)).abs().sum(dim=1)[0] > 0
    where = torch.nonzero(changed)
    assert int(where.min()) == 20 - 11
    assert int(where.max()) == 20 + 11


@pytest.mark.parametrize("hybrid", [False, True])
def test_gradients_in_bfloat16_are_those_in_float32(hybrid):
    """Nearly: oneDNN's own by the weights of a dilated depthwise kernel are far off, which is worked around."""
    torch.manual_seed(2)
    gate = LargeKernelGate(64, hybrid).to(memory_format=torch.channels_last)
    x = torch.randn(4, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    found = []
    for mixed in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            loss = (gate(x).float() ** 2).mean()
        found.append(torch.autograd.grad(loss, list(gate.parameters())))
    for a, b in zip(*found, strict=True):
        assert float((a - b).norm()) < 0.05 * float(a.norm())


def test_channels_show_the_small_contrast_twice():
    slices = torch.tensor([0.0, 1.0, 1.05, 9.0, 0.0, 1.0, 1.06, -9.0, 0.0, 1.0, 1.06, 1.4])
    wide, narrow, short, long = (c.flatten() for c in channels(slices.reshape(1, 3, 2, 2))[0])
    torch.testing.assert_close(wide, torch.tensor([0.0, 1.0, 1.05, 3.0]))
    torch.testing.assert_close(narrow, torch.tensor([-2.0, 0.0, 0.2, 2.0]))
    torch.testing.assert_close(short, torch.tensor([-2.0, 0.0, 0.3, -2.0]))
    torch.testing.assert_close(long, torch.tensor([-2.0, 0.0, 0.4, 2.0]))


@pytest.mark.parametrize(
    ("choices", "what"),
    [
        ({"architecture": "resnet"}, "architecture"),
        ({"size": "huge"}, "size"),
        ({"n_slices": 4}, "odd"),
        ({"names": ("background", "liquor")}, "crystal"),
    ],
)
def test_bad_settings(choices, what):
    with pytest.raises(ValueError, match=what):
        NetworkSettings(**choices)


def test_wrong_number_of_slices(network):
    with pytest.raises(ValueError, match="3 slices"):
        network(torch.randn(1, 5, 32, 32), probabilities(network, 1, 32, 32))


# ---- weights --------------------------------------------------------------------------------------


def test_weights_come_back(network, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, network, {"note": "a card"})
    again = load_weights(path)
    assert again.settings == network.settings
    assert not again.training
    x = torch.randn(1, 9, 40, 40), probabilities(network, 1, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(again(*x), network(*x))
        if network.context is not None:
            coarse = torch.randn(1, N_CHANNELS, 8, 9, 7)
            torch.testing.assert_close(again.context(coarse), network.context(coarse))
    assert json.loads(model_card_path(path).read_text())["note"] == "a card"
    assert path.stat().st_size < 16 * 2**20


def test_large_weights_are_halved(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, build_network(NetworkSettings(size="base", context=False)), {})
    assert path.stat().st_size < 16 * 2**20
    assert next(load_weights(path).parameters()).dtype == torch.float32


def test_what_float16_cannot_hold_stays_float32(tmp_path):
    """The variance within a normalisation may be 1e9: a network that was halved gives the same logits."""
    torch.manual_seed(1)
    network = build_network(NetworkSettings(n_slices=3, context=False)).eval()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        norms[-1].running_var.fill_(1e9)
        norms[-1].running_mean.fill_(3e5)
        norms[-1].weight.fill_(3e4)
    path = tmp_path / "w.safetensors"
    save_weights(path, network, {}, half=True)
    assert path.stat().st_size < 2.2 * n_parameters(network)
    x = torch.randn(1, 9, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(load_weights(path)(x), network(x), rtol=0.02, atol=0.02)


def test_weights_that_are_no_numbers_are_refused(tmp_path, monkeypatch):
    network = build_network(NetworkSettings(n_slices=3, context=False)).eval()
    name = next(iter(network.state_dict()))
    with torch.no_grad():
        network.state_dict()[name].view(-1)[0] = float("inf")
    path = tmp_path / "w.safetensors"
    with pytest.raises(ValueError, match=f"no numbers, in {name}"):
        save_weights(path, network, {})
    assert not path.exists()
    with monkeypatch.context() as unchecked:
        unchecked.setattr(weights_files, "_check_finite", lambda *_: None)
        save_weights(path, network, {})
    with pytest.raises(ValueError, match=f"no numbers, in {name}"):
        load_weights(path)


def test_shipped_weights_are_numbers_and_alive():
    """No normalisation of the shipped networks turns its input into nothing."""
    for network in load_networks():
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert torch.isfinite(module.running_var).all(), name
                assert (module.running_var > 0).all(), name


def test_weights_too_large_to_ship_are_told(tmp_path, caplog, monkeypatch):
    """More than what may ship, though halved."""
    monkeypatch.setattr(weights_files, "LARGEST_WEIGHTS", 2 * 2**20)
    network = build_network(NetworkSettings())
    path = tmp_path / "w.safetensors"
    told = []
    monkeypatch.setattr(weights_files.logger, "warning", lambda text, *_: told.append(text))
    save_weights(path, network, {})
    assert len(told) == 1
    assert "at most 16 MiB" in told[0]
    assert path.stat().st_size < 2.1 * n_parameters(network)


def test_absent_and_foreign_files(tmp_path):
    with pytest.raises(ValueError, match="no weights file"):
        load_weights(tmp_path / "none.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("this is not it")
    with pytest.raises(ValueError, match="no safetensors"):
        load_weights(text)
    foreign = tmp_path / "foreign.safetensors"
    safetensors_torch.save_file({"a": torch.zeros(2)}, str(foreign))
    with pytest.raises(ValueError, match="not hold weights of this program"):
        load_weights(foreign)


def test_another_version(network, tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    monkeypatch.setattr(weights_files, "WEIGHTS_VERSION", 99)
    save_weights(path, network, {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version 99"):
        load_weights(path)


def save_as_then(path, network, version, unknown, monkeypatch):
    """Saves weights as an earlier version did, whose settings do not speak of one of them."""
    as_written = weights_files.asdict

    def as_then(settings):
        return {k: v for k, v in as_written(settings).items() if k != unknown}

    monkeypatch.setattr(weights_files, "asdict", as_then)
    monkeypatch.setattr(weights_files, "WEIGHTS_VERSION", version)
    save_weights(path, network, {})
    monkeypatch.undo()


def test_weights_of_version_2_have_no_context(tmp_path, monkeypatch):
    """Their settings do not speak of it."""
    torch.manual_seed(2)
    network = build_network(NetworkSettings("unet", n_slices=1, context=False)).eval()
    path = tmp_path / "w.safetensors"
    save_as_then(path, network, 2, "context", monkeypatch)
    again = load_weights(path)
    assert again.context is None
    x = torch.randn(1, 3, 20, 20)
    with torch.no_grad():
        torch.testing.assert_close(again(x), network(x))


def test_weights_of_version_3_have_no_bound_to_their_gates(tmp_path, monkeypatch):
    """Their settings do not speak of it; what they compute stays."""
    torch.manual_seed(2)
    network = build_network(NetworkSettings(n_slices=1, context=False, bounded_gates=False)).eval()
    for module in network.modules():
        if isinstance(module, LargeKernelGate):
            module.mix.weight.data *= 50  # so that a bound would be felt
    path = tmp_path / "w.safetensors"
    save_as_then(path, network, 3, "bounded_gates", monkeypatch)
    again = load_weights(path)
    x = torch.randn(1, 3, 32, 32)
    bounded = build_network(NetworkSettings(n_slices=1, context=False)).eval()
    bounded.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(x), network(x))
        assert not torch.allclose(bounded(x), network(x), rtol=1e-3)


def test_weights_of_version_4_see_no_faint_outlines(tmp_path, monkeypatch):
    """Their settings do not speak of them; what they compute stays, of the coarse pass, too."""
    torch.manual_seed(2)
    network = build_network(NetworkSettings("unet", n_slices=1, outlines=False)).eval()
    path = tmp_path / "w.safetensors"
    save_as_then(path, network, 4, "outlines", monkeypatch)
    again = load_weights(path)
    seen = torch.randn(1, 3, 20, 20), probabilities(network, 1, 20, 20)
    with torch.no_grad():
        torch.testing.assert_close(again(*seen), network(*seen))


def test_faint_outlines_by_hand():
    """Of the middle slice: the plain level and its difference to the second view, both signs."""
    slices = torch.zeros(1, 9, 1, 3)
    slices[0, 0] = slices[0, 2] = 77.0  # neighbours
    slices[0, 1, 0] = torch.tensor([1.03, 0.94, 9.0])
    slices[0, 4, 0] = torch.tensor([1.01, 1.00, 1.0])
    found = networks.faint_outlines(slices)
    assert tuple(found.shape) == (1, 2, 1, 3)
    expected = [[math.log(2), -math.log(3), math.log(1 + 2 / 0.03)], [math.log(2), -math.log(4), math.log(201)]]  # fmt: skip
    torch.testing.assert_close(found[0, :, 0], 0.5 * torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_deep_levels_that_grew_without_bound_are_not_taken_over():
    torch.manual_seed(3)
    earlier = build_network(NetworkSettings(bounded_gates=False))
    network = build_network(NetworkSettings())
    before = {k: v.clone() for k, v in network.state_dict().items()}
    networks.take_over(network, earlier)
    after, old = network.state_dict(), earlier.state_dict()
    for name in ("level16.0.0.weight", "level8.1.gate.mix.weight", "join8.join.0.weight"):
        assert torch.equal(after[name], before[name])
    for name in ("level4.1.gate.mix.weight", "level1.0.0.weight", "context.head.weight"):
        assert torch.equal(after[name], old[name])
    networks.take_over(network, build_network(NetworkSettings()))
    assert not torch.equal(network.state_dict()["level16.0.0.weight"], before["level16.0.0.weight"])


def test_wrong_channel_count(network, tmp_path, monkeypatch):
    """Weights that say five slices and hold the tensors of three."""
    path = tmp_path / "w.safetensors"
    context = network.settings.context
    said = NetworkSettings(network.settings.architecture, n_slices=5, context=context)
    monkeypatch.setattr(network, "settings", said)
    save_weights(path, network, {})
    with pytest.raises(ValueError, match=f"{26 if context else 22} input channels"):
        load_weights(path)


def test_transformer_knows_places():
    """Without positions, a shuffled map gives shuffled tokens; the depthwise convolution prevents it."""
    torch.manual_seed(4)
    layer = networks.TransformerLayer(32)
    x = torch.randn(1, 32, 4, 4)
    order = torch.from_numpy(np.random.default_rng(0).permutation(16))
    shuffled = x.flatten(2)[..., order].reshape(1, 32, 4, 4)
    with torch.no_grad():
        a, b = layer(x).flatten(2)[..., order], layer(shuffled).flatten(2)
    assert float((a - b).abs().max()) > 1e-3
