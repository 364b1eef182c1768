"""Statistics of the normalisations, against those of the batches themselves."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the network needs torch")

from anacor_dials.segmentation.batch_statistics import measure_statistics  # noqa: E402
from anacor_dials.segmentation.network import NetworkSettings, build_network  # noqa: E402


def test_what_was_there_before_is_forgotten():
    """An infinite variance, as of overflowed weights, is put right; the input is what it is measured on."""
    torch.manual_seed(1)
    network = build_network(NetworkSettings(n_slices=3, context=False)).eval()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.running_var.fill_(float("inf"))
    batches = [(1 + 0.3 * torch.randn(2, 9, 48, 48), None) for _ in range(3)]
    seen = []
    hook = norms[0].register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
    assert measure_statistics(network, batches) is network
    hook.remove()
    assert not network.training
    assert {norm.momentum for norm in norms} == {0.1}
    mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in seen]).mean(0)
    variance = torch.stack([x.var(dim=(0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(norms[0].running_mean, mean)
    torch.testing.assert_close(norms[0].running_var, variance)
    assert all(torch.isfinite(norm.running_var).all() for norm in norms)


def test_one_batch_gives_the_same_in_both_modes():
    torch.manual_seed(2)
    network = build_network(NetworkSettings("unet", n_slices=3, context=False))
    x = torch.randn(4, 9, 96, 96)
    measure_statistics(network, [(x, None)])
    with torch.no_grad():
        quiet = network(x)
        network.train()
        loud = network(x)
    loud = loud[0] if isinstance(loud, (tuple, list)) else loud
    torch.testing.assert_close(quiet, loud, rtol=0.02, atol=0.03)
