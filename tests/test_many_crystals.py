"""Six crystals through xia2.anacor and the real programs of DIALS, by a Dask cluster that loses processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

import iotbx.mtz

from anacor_dials.sample.materials import energy_from_wavelength
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.simulation.diffraction_data import simulate_diffraction, write_diffraction
from anacor_dials.simulation.diffraction_settings import DiffractionSettings, Sweep
from anacor_dials.simulation.meshes import box
from anacor_dials.simulation.samples import sample_from_meshes

distributed = pytest.importorskip("distributed", reason="distributed is not installed")
psutil = pytest.importorskip("psutil", reason="psutil, which distributed needs, is not installed")

NAMES = [f"X{i}" for i in range(6)]
WAVELENGTH = 3.5
PROGRAM = "xia2.anacor"
LONGEST_WAIT = 1800.0  # seconds; a busy machine is slow
DATA = {".expt", ".refl", ".mtz", ".cif"}
# Dates in the head of mmCIF
DATES = re.compile(
    rb"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?)?|\d\d/\d\d/\d{4}|\d\d:\d\d:\d\d"
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def crystals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the integrated data and the labels of six plates of different sizes."""
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"There is no {PROGRAM} on PATH: anacor_dials is not installed.")
    folder = tmp_path_factory.mktemp("crystals")
    energy = energy_from_wavelength(WAVELENGTH)
    settings = DiffractionSettings(WAVELENGTH, d_min=8.0, sweeps=[Sweep(0, 70, 0.1)], n_points=64)
    for i, name in enumerate(NAMES):
        sample = sample_from_meshes({"crystal": box((100.0 + 10 * i, 40.0, 80.0))})
        experiments, table = simulate_diffraction(sample, np.random.default_rng(i), settings)
        experiments[0].identifier = name
        del table.experiment_identifiers()[0]
        table.experiment_identifiers()[0] = name
        write_diffraction(
            experiments, table, str(folder / f"{name}.expt"), str(folder / f"{name}.refl")
        )
        write_sample_file(
            folder / f"{name}.h5",
            labels=sample.label_volume(4.0),
            mu_per_um=sample.mu_per_um(energy),
            energy_keV=energy,
        )
    return folder


def command(*more: str) -> list[str]:
    """xia2.anacor on the six crystals, from their folder."""
    return [
        PROGRAM,
        *(f"{name}.{kind}" for kind in ("expt", "refl") for name in NAMES),
        *(f"tomography.{name}={name}.h5" for name in NAMES),
        "scaling.strategies=analytical", "symmetry.space_group=P41212",
        "scaling.full_matrix=False", "scaling.options=error_model=None", *more,
    ]  # fmt: skip


def run(folder: Path, *more: str) -> None:
    done = subprocess.run(command(*more), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def steps_done(folder: Path) -> dict[str, bool]:
    """{step: whether the last run did it}, of the finished work."""
    record = json.loads((folder / "anacor/anacor.json").read_text())
    assert [crystal["name"] for crystal in record["crystals"]] == NAMES
    assert not record["failed"]
    return {step["name"]: step["done_in_this_run"] for step in record["steps"]}


def content(path: Path) -> bytes:
    """The bytes of a file without dates: of MTZ all columns, as its head has the date."""
    if path.suffix != ".mtz":
        return DATES.sub(b"", path.read_bytes())
    found = iotbx.mtz.object(str(path))
    columns = [
        (label, np.array(found.get_column(label).extract_values()).tobytes())
        for label in found.column_labels()
    ]
    cells = [crystal.unit_cell_parameters() for crystal in found.crystals()]
    return repr((columns, cells, str(found.space_group_info()))).encode()


def put_aside(folder: Path, name: str) -> dict[str, str]:
    """{path: SHA-256} of all data, dates left out. The work is moved, so that the next has its paths."""
    work = folder / "anacor"
    found = {
        str(path.relative_to(work)): sha256(content(path)).hexdigest()
        for path in sorted(work.rglob("*"))
        if path.suffix in DATA
    }
    found["anacor.csv"] = (work / "anacor.csv").read_text()
    work.rename(folder / name)
    return found


@pytest.fixture(scope="module")
def without_dask(crystals: Path) -> SimpleNamespace:
    """What the six crystals give on this machine, and the steps."""
    run(crystals, "nproc=2")
    steps = set(steps_done(crystals))
    data = put_aside(crystals, "without_dask")
    for name in NAMES:
        assert f"DataFiles/{name}_scaled.mtz" in data
        merged = iotbx.mtz.object(str(crystals / f"without_dask/DataFiles/{name}_scaled.mtz"))
        assert "FreeR_flag" in merged.column_labels()
    return SimpleNamespace(data=data, steps=steps)


@pytest.fixture
def cluster() -> Iterator[object]:
    """Two workers in processes of their own."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as made:
        yield made


def worker_pids(cluster: object) -> set[int]:
    return {nanny.pid for nanny in cluster.workers.values() if nanny.pid}


def when(condition: Callable[[], int | None], driver: subprocess.Popen) -> int:
    """What the condition returns as soon as that is something, while the driver runs."""
    end = time.monotonic() + LONGEST_WAIT
    while (found := condition()) is None:
        assert driver.poll() is None, "the driver ended before"
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def running_step(cluster: object, crystal: str, program: str) -> int | None:
    """The worker below which a program works on a crystal, or None."""
    for pid in worker_pids(cluster):
        try:
            children = psutil.Process(pid).children(recursive=True)
            texts = [" ".join(child.cmdline()) for child in children]
        except psutil.Error:
            continue
        if any(program in text and f"/{crystal}" in text for text in texts):
            return pid
    return None


def start(folder: Path, cluster: object) -> subprocess.Popen:
    return subprocess.Popen(
        command(f"dask.scheduler={cluster.scheduler_address}"),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_worker_that_is_killed_costs_time_alone(
    crystals: Path, without_dask: SimpleNamespace, cluster: object
) -> None:
    """SIGKILL while dials.scale runs below it; the other worker goes on, and Dask starts a new one."""
    driver = start(crystals, cluster)
    victim = when(lambda: running_step(cluster, "X2", "dials.scale"), driver)
    os.kill(victim, signal.SIGKILL)
    assert driver.wait(LONGEST_WAIT) == 0
    assert victim not in worker_pids(cluster)
    assert set(steps_done(crystals)) == without_dask.steps
    assert put_aside(crystals, "worker_killed") == without_dask.data


def test_a_driver_that_is_killed_is_started_again(
    crystals: Path, without_dask: SimpleNamespace, cluster: object
) -> None:
    """SIGKILL in mid-step; the same command goes on with what is left, on the same cluster."""
    driver = start(crystals, cluster)
    when(lambda: running_step(cluster, "X3", "dials.scale"), driver)
    driver.kill()
    driver.wait()
    run(crystals, f"dask.scheduler={cluster.scheduler_address}")
    steps = steps_done(crystals)
    assert set(steps) == without_dask.steps
    before = {name for name, now in steps.items() if not now}
    assert "X3/absorption" in before
    assert "X3/scale_analytical" not in before
    assert put_aside(crystals, "driver_killed") == without_dask.data
