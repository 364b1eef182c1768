"""Processes that share a training, started by torch's launcher, against one process with all their crops."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")
if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

from anacor_dials.sample.tomogram_files import write_sample_file  # noqa: E402
from anacor_dials.sample.volumes import LabelVolume, Tomogram  # noqa: E402
from anacor_dials.segmentation import training  # noqa: E402
from anacor_dials.segmentation.processes import PartOfStream, rng_of_step  # noqa: E402
from anacor_dials.segmentation.training import train  # noqa: E402
from anacor_dials.segmentation.training_arguments import argument_parser, settings_of  # noqa: E402
from anacor_dials.segmentation.training_data import read_training_volumes  # noqa: E402
from anacor_dials.segmentation.weights_files import load_weights  # noqa: E402
from anacor_dials.segmentation.whole_samples import WholeSample  # noqa: E402

BATCH = 2  # of each process


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two samples: a crystal in a ball of liquor, with noise."""
    folder = tmp_path_factory.mktemp("samples")
    x, y, z = np.indices((32, 40, 40)) - np.array([15, 20, 20])[:, None, None, None]
    for seed in range(2):
        rng = np.random.default_rng(seed)
        labels = np.zeros(x.shape, dtype=np.uint8)
        labels[x**2 + y**2 + z**2 < 14**2] = 1
        labels[abs(y - 9) + abs(z) < 3] = 2
        a, b, c = rng.uniform(4, 8, 3)
        labels[(abs(x) < a) & (abs(y) < b) & (abs(z) < c)] = 3
        values = np.array([0.0, 1.0, 0.5, 1.4])[labels] + 0.03 * rng.standard_normal(labels.shape)
        write_sample_file(
            folder / f"ball-{seed}.h5",
            tomogram=Tomogram(0.01 * values.astype(np.float32), 1.2),
            labels=LabelVolume(labels, np.full(3, 1.2)),
        )
    return folder


def arguments(samples: Path, weights: Path, steps: int, *more: str) -> list[str]:
    return ["--data", str(samples), "--weights", str(weights), "--architecture", "unet",
            "--n-slices", "1", "--steps", str(steps), "--batch", str(BATCH), "--crop", "32",
            "--warm-up", "1", "--mean-steps", "2", "--validate-every", "1", "--n-validation", "1",
            "--device", "cpu", "--seed", "3", *more]  # fmt: skip


def launched(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Two processes of a module, started by torch's launcher on this machine.

    They meet by a file: Debian's torch is built without libuv, and then torchrun has no other way.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
                "--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--rdzv-endpoint",
                str(folder / "rendezvous"), "--local-addr", "127.0.0.1", "-m"]  # fmt: skip
    env = {**os.environ, "USE_LIBUV": "0", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.run(
        [*launcher, *command], capture_output=True, text=True, check=False, env=env
    )


def rows_of(weights: Path) -> list[dict[str, str]]:
    with weights.with_suffix(".csv").open(newline="") as file:
        return list(csv.DictReader(file))


def crops_of_both(self, step):
    """What two processes draw in a step; whole samples are dealt out to threads in turn."""
    drawn = []
    for process in range(2):
        rng = rng_of_step(self.settings.seed, step, process)
        crops = self.source.batch(rng, BATCH, self.settings.crop)
        whole = []
        if self.network.context is not None and step % 2 == 0:
            for _ in range(self.settings.coarse_samples):
                whole.append(WholeSample.drawn(self.pool, rng))
        drawn.append((crops, whole))
    crops = tuple(np.concatenate(parts) for parts in zip(drawn[0][0], drawn[1][0], strict=True))
    return crops, [one for pair in zip(drawn[0][1], drawn[1][1], strict=True) for one in pair]


@pytest.mark.parametrize(
    ("more", "steps"),
    # with the coarse pass the crops of later steps see what each process found by itself
    [(("--no-context",), 4), ((), 1)],
    ids=["without_context", "with_context"],
)
def test_two_processes_do_the_same_as_one_with_twice_the_crops(
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    steps: int,
):
    """Course and weights agree to the precision of float32, with a thread for each process."""
    given = arguments(samples, tmp_path / "two.safetensors", steps, *more)
    result = launched(tmp_path, "anacor_dials.segmentation.training", *given)
    assert result.returncode == 0, result.stderr[-3000:]

    settings = settings_of(argument_parser("", "").parse_args(given))
    monkeypatch.setattr(training._Trainer, "draw", crops_of_both)
    volumes = read_training_volumes([samples], settings.network.names)
    one = replace(settings, batch=2 * BATCH, threads=2)
    train(volumes, one, tmp_path / "one.safetensors")

    found, expected = (rows_of(tmp_path / f"{n}.safetensors") for n in ("two", "one"))
    assert len(found) == len(expected) == steps
    for a, b in zip(found, expected, strict=True):
        for name in (
            "loss",
            "cross_entropy",
            "dice_loss",
            "coarse_loss",
            "validation_cross_entropy",
        ):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=1e-4, nan_ok=True), name
    assert float(found[0]["loss"]) > 0.5
    weights = [load_weights(tmp_path / f"{n}.safetensors").state_dict() for n in ("two", "one")]
    learned = [k for k in weights[0] if "running_" not in k and "num_batches" not in k]
    for name in learned:  # statistics of the normalisations are measured anew, on other crops
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=2e-4)
    card = json.loads((tmp_path / "two.json").read_text())
    assert card["training"]["processes"] == 2


def test_processes_draw_crops_of_their_own():
    """The first one draws what a training in one process draws."""
    alone = np.random.default_rng([3, 7]).random(5)
    first, second = (rng_of_step(3, 7, process).random(5) for process in range(2))
    np.testing.assert_array_equal(first, alone)
    assert not np.any(first == second)


def test_each_process_makes_its_part_of_the_stream():
    parts = [PartOfStream(str, number, 3) for number in range(3)]
    assert [part(k) for k in range(2) for part in parts] == ["0", "1", "2", "3", "4", "5"]
