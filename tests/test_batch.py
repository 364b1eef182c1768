"""Batches of scans: reproducible, resumable, parallel; materials and samples that vary; bad recipes."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("torch", reason="virtual scans need torch")

from anacor_dials.sample.tomogram_files import read_sample_file
from anacor_dials.simulation.batch import (
    SampleRecipe,
    make_scan,
    run_jobs,
    scan_jobs,
)
from anacor_dials.simulation.meshes import box, sphere, write_stl
from anacor_dials.simulation.scan import ScanSettings

SETTINGS = ScanSettings(
    energy_keV=4.0, image_shape=(64, 64), pixel_size_um=2.0, n_projections=4, n_flats=2, n_darks=2
)
RECIPE = SampleRecipe(crystal_size_um=(20.0, 35.0), stem_length_um=30.0, vary_materials=True)


def images(path: str | Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["entry1/tomo_entry/data/data"][()]


def jobs(folder: Path, n: int = 3, seed: int = 7):
    return scan_jobs(RECIPE, SETTINGS, seed, n, str(folder / "scan"))


def test_scans_differ_and_follow_from_seed_and_number(tmp_path) -> None:
    first, second, _ = jobs(tmp_path)
    list(run_jobs([first, second]))
    assert Path(first.scan_file).name == "scan_0001.nxs"
    assert not np.array_equal(images(first.scan_file), images(second.scan_file))
    (tmp_path / "again").mkdir()
    (again,) = jobs(tmp_path / "again", 1)
    make_scan(again)
    np.testing.assert_array_equal(images(again.scan_file), images(first.scan_file))
    truth = [read_sample_file(job.truth_file) for job in (first, second)]
    assert not np.allclose(truth[0].mu_per_um, truth[1].mu_per_um)  # other materials


def test_an_interrupted_batch_goes_on(tmp_path) -> None:
    batch = jobs(tmp_path)
    made = run_jobs(batch)
    next(made)
    made.close()
    before = os.stat(batch[0].scan_file).st_mtime_ns
    assert list(run_jobs(batch)) == [batch[1].scan_file, batch[2].scan_file]
    assert os.stat(batch[0].scan_file).st_mtime_ns == before
    assert list(run_jobs(batch)) == []


@pytest.mark.slow
def test_processes_make_the_same_scans(tmp_path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = jobs(tmp_path / "one", 2), jobs(tmp_path / "two", 2)
    list(run_jobs(one))
    assert set(run_jobs(two, nproc=2)) == {job.scan_file for job in two}
    for a, b in zip(one, two, strict=True):
        # threads add in another order: a count may round the other way
        difference = images(a.scan_file).astype(int) - images(b.scan_file)
        assert np.mean(difference != 0) < 0.01


def test_dask_makes_the_same_scans(tmp_path) -> None:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    batch = jobs(tmp_path, 2)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        made = list(run_jobs(batch, scheduler=cluster.scheduler_address))
    assert set(made) == {job.scan_file for job in batch}
    assert all(job.is_done() for job in batch)


def test_a_sample_of_stl_files(tmp_path) -> None:
    write_stl(tmp_path / "crystal.stl", box((20, 24, 30)))
    write_stl(tmp_path / "drop.stl", sphere(30.0, 2))
    recipe = SampleRecipe(
        maker="stl",
        stl={
            "crystal": (str(tmp_path / "crystal.stl"),),
            "liquor": (str(tmp_path / "drop.stl"),),
        },
        compositions={"crystal": ("H2O", 1.1)},
    )
    sample = recipe.sample(np.random.default_rng(1), SETTINGS)
    assert sample.of("crystal")[0].volume_um3 == pytest.approx(20 * 24 * 30, rel=1e-6)
    assert sample.parameters["materials"]["crystal"] == "H2O; 1.1 g/cm3"


def test_samples_fit_the_images() -> None:
    large = SampleRecipe(crystal_size_um=(15.0, 90.0), stem_length_um=30.0)
    sample = large.sample(np.random.default_rng(3), SETTINGS)
    assert np.hypot(*sample.of("liquor")[0].vertices[:, 1:].T).max() < 64


# ---- bad input -------------------------------------------------------------------------------------


def test_files_of_another_recipe_are_not_touched(tmp_path) -> None:
    (job,) = jobs(tmp_path, 1)
    make_scan(job)
    assert job.is_done()
    (other_seed,) = jobs(tmp_path, 1, seed=8)
    other_recipe = replace(job, recipe=replace(RECIPE, pin=True))
    other_settings = replace(job, settings=replace(SETTINGS, n_projections=5))
    for other in (other_seed, other_recipe, other_settings):
        with pytest.raises(ValueError, match="made with another seed, recipe or settings"):
            list(run_jobs([other]))


def test_samples_that_never_fit() -> None:
    with pytest.raises(
        ValueError, match="None of 30 samples .* larger than the field of view|reaches from"
    ):
        SampleRecipe(crystal_size_um=(200.0, 210.0)).sample(np.random.default_rng(1), SETTINGS)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"maker": "potter"}, "maker 'potter' is unknown"),
        ({"crystal_size_um": (50.0, 20.0)}, "no range"),
        ({"shape": "ball"}, "shape 'ball' is unknown"),
        ({"maker": "stl"}, "at least one of the crystal"),
        ({"wear": "thawed"}, "wear 'thawed' is unknown"),
        ({"maker": "stl", "wear": "broken"}, "leave out sample.wear"),
        ({"maker": "blender", "blender": "/nowhere/blender"}, "there is no program"),
    ],
)
def test_impossible_recipes(choice, message) -> None:
    with pytest.raises(ValueError, match=message):
        SampleRecipe(**choice)


def test_no_scans(tmp_path) -> None:
    with pytest.raises(ValueError, match="0 scans"):
        jobs(tmp_path, 0)


def test_dask_that_is_not_installed(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"pip install 'anacor_dials\[dask\]'"):
        list(run_jobs(jobs(tmp_path, 1), scheduler="tcp://127.0.0.1:1"))


@pytest.mark.slow
def test_a_scheduler_that_is_not_there(tmp_path) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed")
    with pytest.raises(ValueError, match="tcp://127.0.0.1:1 cannot be reached"):
        list(run_jobs(jobs(tmp_path, 1), scheduler="tcp://127.0.0.1:1"))
