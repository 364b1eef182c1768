"""Training: learning at all, taking up where it stopped, a stream of samples, and threads that share a step."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import asdict, replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

from anacor_dials.sample.tomogram_files import write_sample_file  # noqa: E402
from anacor_dials.sample.volumes import LabelVolume, Tomogram  # noqa: E402
from anacor_dials.segmentation import training  # noqa: E402
from anacor_dials.segmentation.coarse_grid import N_CHANNELS  # noqa: E402
from anacor_dials.segmentation.fringes import views  # noqa: E402
from anacor_dials.segmentation.network import NetworkSettings, build_network  # noqa: E402
from anacor_dials.segmentation.replicas import Batch, ThreadedReplicas, gradients  # noqa: E402
from anacor_dials.segmentation.training import (  # noqa: E402
    ExponentialMovingAverage,
    crops_of_step,
    main,
    train,
)
from anacor_dials.segmentation.training_data import TrainingVolume  # noqa: E402
from anacor_dials.segmentation.training_settings import TrainingSettings  # noqa: E402
from anacor_dials.segmentation.validation import (  # noqa: E402
    coarse_scores,
    over_samples,
    validation_scores,
)
from anacor_dials.segmentation.weights_files import load_weights, save_weights  # noqa: E402


def ball(seed):
    """A ball of liquor with a crystal in it, plain enough to be learned in a few steps."""
    rng = np.random.default_rng(seed)
    x, y, z = np.indices((32, 40, 40)) - np.array([15, 20, 20])[:, None, None, None]
    labels = np.zeros(x.shape, dtype=np.uint8)
    labels[x**2 + y**2 + z**2 < 14**2] = 1
    labels[abs(y - 9) + abs(z) < 3] = 2
    a, b, c = rng.uniform(4, 8, 3)
    labels[(abs(x) < a) & (abs(y) < b) & (abs(z) < c)] = 3
    values = np.array([0.0, 1.0, 0.5, 1.4])[labels] + 0.03 * rng.standard_normal(labels.shape)
    seen = views(values.astype(np.float32), np.float16)
    return TrainingVolume(f"ball-{seed}", seen, labels, (1.2, 1.2, 1.2))


@pytest.fixture(scope="module")
def volumes():
    return [ball(seed) for seed in range(3)]


@pytest.fixture(params=[True, False], ids=["with_context", "without_context"])
def settings(request):
    return TrainingSettings(
        NetworkSettings("unet", n_slices=1, context=request.param), steps=6, batch=2, crop=32, warm_up=3, mean_steps=4,
        validate_every=3, n_validation=1, seed=3, device="cpu",
    )  # fmt: skip


# ---- settings -------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_falls(settings):
    rates = [settings.learning_rate_at(step) for step in range(settings.steps)]
    assert rates[0] < rates[1] < rates[2] == pytest.approx(settings.learning_rate)
    assert all(a > b for a, b in zip(rates[3:-1], rates[4:], strict=True))
    assert settings.learning_rate_at(settings.steps) == pytest.approx(0.02 * rates[2])
    timed = replace(settings, steps=10**6, within_minutes=2.0)
    assert timed.learning_rate_at(100, 120.0) == pytest.approx(0.02 * rates[2])
    assert timed.learning_rate_at(100, 60.0) == pytest.approx(0.51 * rates[2])


def test_the_mean_of_the_weights():
    layer = torch.nn.Linear(1, 1)
    mean = ExponentialMovingAverage(layer, 3)
    for value in (1.0, 3.0, 8.0, 10.0):
        with torch.no_grad():
            layer.weight.fill_(value)
        mean.add(layer)
    # the plain mean of the first three, 4, then two thirds of it and one third of the next
    assert float(mean.state["weight"]) == pytest.approx(4.0 * 2 / 3 + 10.0 / 3)


@pytest.mark.parametrize(
    ("choices", "what"),
    [
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0.0}, "rate"),
        ({"device": "tpu"}, "device"),
        ({"crop": 40}, "multiple of 16"),
        ({"crop": 16}, "at least 32"),
        ({"large_crop": 200}, "multiple of 16"),
        ({"batch": 1, "threads": 2}, "share"),
        ({"part": "fine"}, "part"),
    ],
)
def test_bad_settings(choices, what):
    with pytest.raises(ValueError, match=what):
        TrainingSettings(**choices)


def test_every_third_step_has_larger_crops_and_fewer():
    """About as many voxels; as many crops as there are threads at least."""
    choices = TrainingSettings(batch=16, crop=96, large_crop=192)
    assert [crops_of_step(choices, step) for step in range(4)] == [
        (16, 96), (16, 96), (4, 192), (16, 96),
    ]  # fmt: skip
    assert crops_of_step(replace(choices, threads=8), 2) == (8, 192)
    assert crops_of_step(replace(choices, large_crop=0), 2) == (16, 96)


# ---- training -------------------------------------------------------------------------------------


def parts_of(network):
    state = network.state_dict()
    coarse = {k: v for k, v in state.items() if k.startswith("context.")}
    return coarse, {k: v for k, v in state.items() if k not in coarse}


def the_same(one, other):
    """To the float16 of the files."""
    return all(torch.allclose(one[k], other[k], rtol=1e-3, atol=1e-6) for k in one)


def test_the_coarse_pass_first_and_the_slices_then(volumes, tmp_path):
    """Each part learns, and the other part keeps its weights."""
    network = NetworkSettings("unet", n_slices=1)
    first, then = tmp_path / "coarse.safetensors", tmp_path / "slices.safetensors"
    settings = TrainingSettings(
        network, part="coarse", steps=80, batch=2, warm_up=3, mean_steps=10, validate_every=30,
        n_validation=1, seed=3, device="cpu", threads=2,
    )  # fmt: skip
    card = train(volumes, settings, first)
    coarse, slices = parts_of(load_weights(first))
    torch.manual_seed(settings.seed)
    coarse_before, slices_before = parts_of(build_network(network))
    assert the_same(slices, slices_before)
    assert not the_same(coarse, coarse_before)
    held = [v for v in volumes if v.name == card["validation"]["samples"][0]["name"]]
    untrained, _ = coarse_scores(build_network(network), held)
    entropy, dice = coarse_scores(load_weights(first), held)
    assert entropy < 0.5 * untrained
    assert dice[0] > 0.75
    assert dice[1] > 0.5
    assert dice[1] == pytest.approx(card["validation"]["dice"]["liquor"], abs=1e-4)

    after = replace(settings, part="slices", begin_with=str(first), crop=32, steps=30)
    train(volumes, after, then)
    coarse_after, slices_after = parts_of(load_weights(then))
    assert the_same(coarse_after, coarse)
    assert not the_same(slices_after, slices)
    held_scores = validation_scores(load_weights(then), held, torch.device("cpu"))
    assert held_scores[1][0] > 0.8


def test_one_hopeless_sample_does_not_decide():
    """The mean over samples, not over voxels; classes that a sample lacks do not count."""
    good, hopeless = (0.02, np.array([1.0, 0.9, np.nan])), (2.0, np.array([0.5, np.nan, np.nan]))
    entropy, dice = over_samples([good, good, hopeless])
    assert entropy == pytest.approx((0.02 * 0.02 * 2.0) ** (1 / 3))
    np.testing.assert_allclose(dice, [2.5 / 3, 0.9, 1.0])


def test_the_slices_see_a_coarse_pass_that_has_learned(volumes, settings, tmp_path):
    """From the first step on, and of the samples of folders, too."""
    network = NetworkSettings("unet", n_slices=1)
    path = tmp_path / "coarse.safetensors"
    save_weights(path, build_network(network), {"network": asdict(network)})
    seen = []

    class Watched(training.ThreadedReplicas):
        def gradients(self, batch, weights):
            seen.append(batch)
            return super().gradients(batch, weights)

    few = replace(
        settings, network=network, part="slices", begin_with=str(path), steps=1, warm_up=3
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "ThreadedReplicas", Watched)
        train(volumes, few, tmp_path / "w.safetensors")
    (batch,) = seen
    assert batch.coarse_input == []
    assert not torch.allclose(batch.context, torch.tensor(0.25))


def test_parts_of_a_network_without_them(volumes, settings, tmp_path):
    with pytest.raises(ValueError, match="part=coarse"):
        replace(settings, network=NetworkSettings("unet", context=False), part="coarse")
    with pytest.raises(ValueError, match="begin_with"):
        replace(settings, network=NetworkSettings("unet", context=True), part="slices")
    path = tmp_path / "plain.safetensors"
    plain = NetworkSettings("unet", n_slices=1, context=False)
    save_weights(path, build_network(plain), {"network": asdict(plain)})
    whole = replace(
        settings, network=replace(plain, context=True), part="slices", begin_with=str(path)
    )
    with pytest.raises(ValueError, match="has no coarse pass"):
        train(volumes, whole, tmp_path / "w.safetensors")


def test_it_learns(volumes, settings, tmp_path):
    path = tmp_path / "w.safetensors"
    few = replace(settings, steps=50, validate_every=50, mean_steps=10, weights_taken_off=0.0)
    card = train(volumes, few, path)
    assert card["validation"]["dice"]["background"] > 0.9
    assert card["validation"]["dice"]["crystal"] > 0.8
    # what is written is what was scored
    held = [v for v in volumes if v.name == card["validation"]["samples"][0]["name"]]
    _, dice = validation_scores(load_weights(path), held, torch.device("cpu"))
    assert dice[3] == pytest.approx(card["validation"]["dice"]["crystal"], abs=1e-4)


@pytest.mark.parametrize(
    ("minutes", "entropies"),
    # when every step is an interruption, what there is after the first is looked at, too
    [(None, (0.5, 0.2, 0.3)), (1e-9, (0.9, 0.5, 0.2, 0.3))],
)
def test_the_best_weights_are_kept(volumes, settings, tmp_path, monkeypatch, minutes, entropies):
    """Those that labelled the samples left out best, not the last ones."""
    looked_at = {}

    def scores(network, *_):
        state = {k: v.clone() for k, v in network.state_dict().items()}
        number, _ = looked_at.setdefault(
            state["head.bias"].numpy().tobytes(), (len(looked_at), state)
        )
        return entropies[number], np.zeros(4)

    monkeypatch.setattr(training, "validation_scores", scores)
    monkeypatch.setattr(training, "ENOUGH_TO_CHOOSE", 1)
    path, calls = tmp_path / "w.safetensors", 1
    checked = replace(settings, validate_every=2, minutes=minutes)
    while not train(volumes, checked, path)["training"]["finished"]:
        calls += 1
    assert calls == (6 if minutes else 1)
    card = json.loads(path.with_suffix(".json").read_text())
    assert (card["training"]["kept_step"], card["training"]["steps_done"]) == (4, 6)
    assert card["validation"]["cross_entropy"] == 0.2
    weights = load_weights(path).state_dict()
    _, best = list(looked_at.values())[-2]
    # of the best weights the statistics of the normalisations are measured anew, and nothing else changes
    measured = {k for k in weights if ".running_" in k or "num_batches" in k}
    assert all(torch.equal(weights[k], best[k]) for k in weights if k not in measured)
    assert not all(torch.equal(weights[k], best[k]) for k in measured)


def test_few_samples_do_not_choose(volumes, settings, tmp_path, monkeypatch):
    """One difficult sample left out may prefer weights in mid-course; then the last are kept."""
    entropies = iter((0.2, 0.5, 0.5))
    monkeypatch.setattr(training, "validation_scores", lambda *_: (next(entropies), np.zeros(4)))
    checked = replace(settings, steps=2, validate_every=1)
    assert checked.n_validation < training.ENOUGH_TO_CHOOSE
    card = train(volumes, checked, tmp_path / "w.safetensors")
    assert card["training"]["kept_step"] == 2


def test_what_is_written(volumes, settings, tmp_path):
    path = tmp_path / "w.safetensors"
    train(volumes, settings, path)
    names = {p.name for p in tmp_path.iterdir()}
    assert {"w.safetensors", "w.json", "w.csv"} <= names
    assert "w.checkpoint.pt" not in names
    card = json.loads((tmp_path / "w.json").read_text())
    assert card["training"]["finished"]
    assert card["training"]["steps_done"] == 6
    used = [s["name"] for s in card["training"]["samples"]]
    held = [s["name"] for s in card["validation"]["samples"]]
    assert sorted(used + held) == ["ball-0", "ball-1", "ball-2"]
    with open(tmp_path / "w.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows] == [3, 6]
    assert 0 <= float(rows[-1]["validation_dice_background"]) <= 1


def test_it_goes_on_where_it_stopped(volumes, settings, tmp_path):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train(volumes, settings, whole)
    card = train(volumes, replace(settings, minutes=1e-9), parts)  # one step
    assert not card["training"]["finished"]
    assert card["training"]["steps_done"] == 1
    assert (tmp_path / "parts.checkpoint.pt").is_file()
    card = train(volumes, replace(settings, minutes=1e-9), parts)
    assert card["training"]["steps_done"] == 2
    card = train(volumes, settings, parts)
    assert card["training"]["finished"]
    first, second = (load_weights(p).state_dict() for p in (whole, parts))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_another_training_is_not_taken_up(volumes, settings, tmp_path):
    path = tmp_path / "w.safetensors"
    train(volumes, replace(settings, minutes=1e-9), path)
    with pytest.raises(ValueError, match="other settings"):
        train(volumes, replace(settings, seed=4), path)
    card = train(volumes, replace(settings, seed=4), path, resume=False)
    assert card["training"]["finished"]


def test_it_is_over_in_time(volumes, settings, tmp_path):
    card = train(
        volumes, replace(settings, steps=10**6, within_minutes=0.01), tmp_path / "w.safetensors"
    )
    assert card["training"]["finished"]
    assert card["training"]["steps_done"] < 10**6
    assert not (tmp_path / "w.checkpoint.pt").exists()


def test_it_begins_with_other_weights(volumes, settings, tmp_path):
    """At a learning rate of nearly nothing the weights stay what they were."""
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    train(volumes, settings, first)
    still = replace(settings, learning_rate=1e-12, begin_with=str(first), seed=9)
    train(volumes, still, second)
    a, b = (load_weights(p).head.weight for p in (first, second))
    torch.testing.assert_close(a, b)
    base = replace(settings.network, n_slices=3 if settings.network.n_slices == 1 else 1)
    with pytest.raises(ValueError, match="not of the network"):
        train(volumes, replace(still, network=base), tmp_path / "third.safetensors")


def test_seeds_matter_and_repeat(volumes, settings, tmp_path):
    states = []
    for name, seed in (("a", 3), ("b", 3), ("c", 5)):
        train(volumes, replace(settings, steps=3, seed=seed), tmp_path / f"{name}.safetensors")
        states.append(load_weights(tmp_path / f"{name}.safetensors").state_dict()["head.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_it_does_not_matter_what_is_faster(volumes, settings, tmp_path, monkeypatch):
    """Crops of the next step are drawn while this one is computed; which is ready first changes nothing."""
    train(volumes, settings, tmp_path / "a.safetensors")
    as_it_is = training._Trainer.draw

    def late(self, step):
        """Draws once the step before is over."""
        give_up = time.monotonic() + 20
        while self.step < step and time.monotonic() < give_up:
            time.sleep(0.01)
        return as_it_is(self, step)

    monkeypatch.setattr(training._Trainer, "draw", late)
    train(volumes, settings, tmp_path / "b.safetensors")
    first, second = (load_weights(tmp_path / f"{k}.safetensors").state_dict() for k in "ab")
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_as_a_program(volumes, tmp_path, capsys):
    for volume in volumes[:2]:
        write_sample_file(
            tmp_path / f"{volume.name}.h5",
            tomogram=Tomogram(0.01 * volume.views[0].astype(np.float32), 1.2),
            labels=LabelVolume(volume.labels, np.full(3, 1.2)),
        )
    path = tmp_path / "w.safetensors"
    arguments = ["--data", str(tmp_path), "--weights", str(path), "--architecture", "unet",
                 "--steps", "2", "--batch", "1", "--crop", "32", "--n-slices", "1",
                 "--n-validation", "1", "--device", "cpu"]  # fmt: skip
    main(arguments)
    assert load_weights(path).settings.architecture == "unet"
    with pytest.raises(SystemExit) as stop:
        main([*arguments[:-4], "--n-validation", "2"])
    assert stop.value.code == 1
    assert "none to train on" in capsys.readouterr().err


@pytest.mark.parametrize("context", [True, False])
def test_threads_share_a_step(context):
    """Two threads with half of the crops each: the mean of their gradients, and of their statistics."""
    torch.manual_seed(3)
    network = build_network(NetworkSettings("unet", "tiny", 1, context=context))
    x, target = torch.randn(4, 3, 32, 32), torch.randint(0, 4, (4, 32, 32))
    around = torch.rand(4, 4, 32, 32).softmax(1) if context else None
    coarse = [torch.randn(N_CHANNELS, 9, 8 + k, 10) for k in range(2)] if context else []
    true = [torch.rand(4, 9, 8 + k, 10).softmax(0) for k in range(2)] if context else []
    weights = torch.ones(4)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    expected, statistics = [], []
    for k, half in enumerate((slice(0, 2), slice(2, 4))):
        network.load_state_dict(before)
        network.train()
        part = Batch(
            x[half],
            around[half] if context else None,
            target[half],
            coarse[k : k + 1],
            true[k : k + 1],
        )
        expected.append(gradients(network, part, weights))
        statistics.append([b.clone() for b in network.buffers() if b.is_floating_point()])
    network.load_state_dict(before)
    replicas = ThreadedReplicas(network, 2)
    replicas.train()
    found = replicas.gradients(Batch(x, around, target, coarse, true), weights)
    a, b = expected
    for k in (0, 1):
        assert found.losses[k] == pytest.approx((a.losses[k] + b.losses[k]) / 2, rel=1e-5)
    for g, first, second in zip(found.gradients, a.gradients, b.gradients, strict=True):
        torch.testing.assert_close(g, (first + second) / 2)
    means = [b for b in network.buffers() if b.is_floating_point()]
    for s, first, second in zip(means, *statistics, strict=True):
        torch.testing.assert_close(s, (first + second) / 2)
    # what the coarse pass found comes back in the order of the samples
    assert [f.shape for f in found.coarse] == [t.shape for t in true]
    for f, one in zip(found.coarse, a.coarse + b.coarse, strict=True):
        torch.testing.assert_close(f, one)
    assert found.coarse_losses == pytest.approx(a.coarse_losses + b.coarse_losses)


@pytest.mark.parametrize(("samples", "threads"), [(2, 2), (3, 2), (1, 2), (2, 3)])
def test_threads_do_not_change_what_the_coarse_pass_learns(samples, threads):
    """It has no statistics of batches: its gradient is that of one thread, however samples are dealt out."""
    torch.manual_seed(3)
    network = build_network(NetworkSettings("unet", "tiny", 1))
    batch = Batch(
        torch.randn(6, 3, 32, 32),
        torch.rand(6, 4, 32, 32).softmax(1),
        torch.randint(0, 4, (6, 32, 32)),
        [torch.randn(N_CHANNELS, 8, 9, 10) for _ in range(samples)],
        [torch.rand(4, 8, 9, 10).softmax(0) for _ in range(samples)],
    )
    found = []
    for n in (1, threads):
        replicas = ThreadedReplicas(network, n)
        replicas.train()
        result = replicas.gradients(batch, torch.ones(4))
        names = [name for name, _ in network.named_parameters()]
        of_context = [
            g for name, g in zip(names, result.gradients, strict=True) if "context." in name
        ]
        found.append(torch.cat([g.ravel() for g in of_context]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-6)
