"""dials.anacor_train from its command line, and the virtual samples that it trains on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from anacor_dials.sample.tomogram_files import read_sample_file, write_sample_file
from anacor_dials.sample.volumes import LabelVolume, Tomogram

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

from anacor_dials.jobs.training_scans import (
    ScanRanges,
    materials_of_contrast,
    write_training_scans,
)
from anacor_dials.segmentation.evaluation import evaluate_samples, mean_scores
from anacor_dials.segmentation.network import NetworkSettings, build_network
from anacor_dials.segmentation.training_data import find_training_files, labels_on_grid
from anacor_dials.segmentation.weights_files import load_weights


@pytest.mark.parametrize("contrast", [-0.1, 0.0, 0.1])
def test_materials_have_the_contrast_asked_for(contrast):
    for seed in range(4):
        made = materials_of_contrast(np.random.default_rng(seed), contrast, 3.7)
        ratio = made["crystal"].mu_per_um(3.7) / made["liquor"].mu_per_um(3.7)
        assert ratio - 1 == pytest.approx(contrast, abs=1e-4)
        assert 0.9 < made["liquor"].density_g_cm3 < 1.35


def test_a_contrast_that_cannot_be_had():
    with pytest.raises(ValueError, match="nearer to zero"):
        materials_of_contrast(np.random.default_rng(0), -0.9, 3.7)
    with pytest.raises(ValueError, match="lower limit first"):
        ScanRanges(contrast=(0.1, -0.1))
    with pytest.raises(ValueError, match="shape"):
        ScanRanges(shapes=())


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two small virtual samples, of few projections."""
    folder = tmp_path_factory.mktemp("scans")
    ranges = ScanRanges(
        (14.0, 18.0), (0.05, 0.1), (1.4, 1.6), n_projections=(60, 60), shapes=("polyhedron",),
        stem_length_um=20.0,
    )  # fmt: skip
    write_training_scans(folder, 2, 11, ranges)
    return folder, ranges


def test_tomogram_and_truth_belong_together(scans):
    folder, _ = scans
    files = find_training_files([folder])
    assert [f.name for f, _ in files] == ["sample-11-000.tomo.h5", "sample-11-001.tomo.h5"]
    for path, truth_path in files:
        sample = read_sample_file(path)
        tomogram = sample.tomogram
        # which tell by how much refraction displaces surfaces
        assert 3.3 <= sample.scan_energy_keV <= 4.6
        assert sample.scan_distance_mm > 0
        file = read_sample_file(truth_path)
        true = labels_on_grid(file.labels, tomogram)
        # air is zero and liquor has about its mu (fringes and few projections lower it)
        mu = [float(np.median(tomogram.values[true == label])) for label in (0, 1)]
        assert mu[0] == pytest.approx(0, abs=0.05 * file.mu_per_um[1])
        assert mu[1] == pytest.approx(file.mu_per_um[1], rel=0.15)
        # a shift of a voxel would be seen
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            middles = [
                np.average(np.arange(v.shape[axis]), weights=v.sum(axis=others).clip(0))
                for v in (tomogram.values, file.mu_per_um[true])
            ]
            assert middles[0] == pytest.approx(middles[1], abs=0.6)
        record = json.loads(path.with_name(path.name.replace(".tomo.h5", ".json")).read_text())
        assert record["seed"][:1] == [11]
        assert record["contrast"] == pytest.approx(file.mu_per_um[3] / file.mu_per_um[1] - 1)
        assert not list(folder.glob("*.nxs"))


def test_the_same_seed_gives_the_same_sample(scans, tmp_path):
    folder, ranges = scans
    (again,) = write_training_scans(tmp_path, 1, 11, ranges)
    np.testing.assert_allclose(
        read_sample_file(again).tomogram.values,
        read_sample_file(folder / again.name).tomogram.values,
        atol=1e-6,
    )
    before = again.stat().st_mtime_ns
    write_training_scans(tmp_path, 1, 11, ranges)  # is there already
    assert again.stat().st_mtime_ns == before


@pytest.mark.parametrize("context", [True, False])
def test_samples_are_scored(scans, context):
    folder, _ = scans
    paths = [path for path, _ in find_training_files([folder])]
    network = build_network(NetworkSettings("unet", n_slices=1, context=context)).eval()
    rows = evaluate_samples(network, paths[:1], None, lambda *_: {"further": 1.5})
    assert rows[0]["shape"] == "polyhedron"
    assert rows[0]["further"] == 1.5
    assert set(rows[0]["classes"]) == {"background", "liquor", "loop", "crystal"}
    means = mean_scores([rows[0], rows[0]], cleaned=False)
    assert means["liquor"]["dice"] == pytest.approx(rows[0]["classes"]["liquor"]["dice"])


# ---- the command ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for k in range(2):
        labels = np.zeros((34, 36, 38), dtype=np.uint8)
        labels[5:30, 5:30, 5:30] = 1
        labels[7:9, 6:28, 8:10] = 2
        labels[12:22, 11:24, 12 + k : 25] = 3
        values = np.array([0.0, 0.010, 0.006, 0.014])[labels]
        write_sample_file(
            f"data/{k}.h5",
            tomogram=Tomogram(values + 3e-4 * rng.standard_normal(labels.shape), 1.2),
            labels=LabelVolume(labels, np.full(3, 1.2)),
        )
    return tmp_path


ARGUMENTS = ["architecture=unet", "n_slices=1", "steps=3", "batch=1", "crop=32", "device=cpu",
             "validation_samples=1", "output.weights=w.safetensors"]  # fmt: skip


def test_weights_and_card_are_written(folder):
    pytest.importorskip("dials.util.options", reason="DIALS is not installed")
    from anacor_dials.command_line import anacor_train

    anacor_train.run(["data", *ARGUMENTS, "seed=4"])
    network = load_weights("w.safetensors")
    assert network.settings.n_slices == 1
    card = json.loads((folder / "w.json").read_text())
    assert card["training"]["seed"] == 4
    assert card["training"]["families"] == ["real"]
    assert (folder / "anacor_train.log").is_file()


def test_a_small_sam2_is_trained(folder):
    pytest.importorskip("dials.util.options", reason="DIALS is not installed")
    pytest.importorskip("sam2", reason="sam2 is not installed")
    from anacor_dials.command_line import anacor_train
    from anacor_dials.segmentation.small_sam2 import load_small_sam2

    given = ["architecture=sam2", "steps=1", "batch=1", "crop=32", "device=cpu"]
    anacor_train.run(["data", *given, "validation_samples=1"])
    assert load_small_sam2("sam2.safetensors").image_size == 256
    card = json.loads((folder / "sam2.json").read_text())
    assert card["network"]["architecture"] == "sam2"
    assert card["training"]["steps_done"] == 1


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["nowhere"], "nowhere"),
        (["data", "architecture=sam2", "simulate.test_samples=1"], "without prompts"),
        (["data", "output.weights=w.pt"], "safetensors"),
        (["data", "validation_samples=2"], "none to train on"),
        (["data", "crop=40"], "multiple of 16"),
        (["data", "simulate.test_samples=1", "simulate.test_shapes=plate"], "apart"),
    ],
)
def test_bad_input_is_one_sentence(folder, arguments, what):
    pytest.importorskip("dials.util.options", reason="DIALS is not installed")
    from dials.util import Sorry

    from anacor_dials.command_line import anacor_train

    with pytest.raises(Sorry, match=what):
        anacor_train.run([*ARGUMENTS, *arguments])
    assert not (folder / "w.safetensors").exists()
