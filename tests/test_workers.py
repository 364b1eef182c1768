"""Steps carried out side by side, here and by a Dask cluster: the same results, whatever is lost.

All programs are small stand-ins on PATH, so that workers in other processes run them, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

import numpy as np
from dxtbx.model import BeamFactory, Crystal, Experiment, ExperimentList

from anacor_dials.jobs.pipeline import merged_data, stages, workers
from anacor_dials.jobs.pipeline.crystals import process
from anacor_dials.jobs.pipeline.inputs import Crystal as CrystalFiles
from anacor_dials.jobs.pipeline.inputs import SweepFiles
from anacor_dials.jobs.pipeline.settings import PipelineSettings
from anacor_dials.jobs.pipeline.steps import Step, StepError, WorkingFolder, attempt
from anacor_dials.jobs.pipeline.workers import (
    DaskSettings,
    DaskWorkers,
    LocalWorkers,
    dask_workers,
)
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.sample.volumes import LabelVolume

distributed = pytest.importorskip("distributed", reason="distributed is not installed")

VERSIONS = {"anacor_dials": "1"}
N_CRYSTALS = 6

# Writes what the program would: the models as they are, and a table that tells what was read.
# The file "hold" beside it names a crystal whose factors are kept back the first time: the program
# says which process started it, waits, and then writes something wrong.
PROGRAM = """#!/bin/sh
here=$(dirname "$0")
text=$(basename "$0")
hold=nothing
[ -f "$here/hold" ] && hold=$(cat "$here/hold")
for a in "$@"; do
    case $a in
        /*.expt) models=$a ;;
        */"$hold") held=yes ;;
        *hklout=*) table=${a#*hklout=} ;;
    esac
    [ -f "$a" ] && text="$text $(basename "$a") $(cksum < "$a")"
    case $(head -c 3 "$a" 2>/dev/null) in bad) echo "Sorry: the data are bad"; exit 1 ;; esac
done
case $text in
    dials.anacor_absorption*)
        table=corrected.refl
        echo "{}" > anacor_absorption.json
        if [ "$held" ] && [ ! -e "$here/held" ]; then
            echo $PPID > "$here/held.part" && mv "$here/held.part" "$here/held"
            sleep "$(cat "$here/seconds")"
            text=wrong
        fi ;;
    dials.symmetry* | dials.reindex*) table=symmetrized.refl ;;
    dials.merge*) table=merged.mtz ;;
esac
echo "$text" > "$table"
case $table in *.refl) cp "$models" "${table%.refl}.expt" ;; esac
"""
PROGRAMS = ("dials.anacor_absorption", "dials.symmetry", "dials.reindex", "dials.merge", "dials.export")  # fmt: skip


def stand_ins() -> SimpleNamespace:
    """Functions in the place of dials.scale and of the statistics.

    They are made here so that Dask sends them with the step: its workers cannot import this file.
    """

    def scale(job, threads, folder):
        from zlib import crc32

        (models,), (table,) = job.experiments, job.reflections
        (folder / "scaled.expt").write_bytes(models.read_bytes())
        for name in ("scaled.refl", "dials.scale.log"):
            (folder / name).write_text(f"{job.strategy.name} {crc32(table.read_bytes())}")

    def compare(outcomes, settings, write_report, folder):
        from anacor_dials.jobs.records import (
            ComparisonRecord,
            SameObservationsRecord,
            StrategyRecord,
        )
        from anacor_dials.report.page import write_json

        r_meas = {"none": 0.11, "analytical": 0.04}
        values = {one.label: {"r_meas": r_meas[one.strategy.name]} for one in outcomes}
        of_each = [StrategyRecord(o.label, o.strategy.name, "", "", None, True) for o in outcomes]
        same = SameObservationsRecord(9, values)
        content = ComparisonRecord(50.0, 2.0, 20, list(values), [], same, of_each)
        write_json(folder / "anacor_compare.json", content)
        (folder / "anacor_compare.html").touch()

    def free_set(parts, settings, known, source, folder):
        (folder / "free_set.mtz").touch()

    return SimpleNamespace(scale=scale, compare=compare, free_set=free_set)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with programs in bin/, which is on PATH, and the data of six crystals."""
    (tmp_path / "bin").mkdir()
    for name in PROGRAMS:
        program = tmp_path / "bin" / name
        program.write_text(PROGRAM)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    made = stand_ins()
    monkeypatch.setattr(stages, "_scale", made.scale)
    monkeypatch.setattr(stages, "_compare", made.compare)
    monkeypatch.setattr(merged_data, "_write_free_set", made.free_set)
    labels = LabelVolume(np.full((4, 4, 4), 3, np.uint8), 1.0)
    for i in range(N_CRYSTALS):
        crystal = Crystal((60 + i, 0, 0), (0, 60, 0), (0, 0, 150), "P 1")
        models = ExperimentList([Experiment(beam=BeamFactory.simple(3.0), crystal=crystal)])
        models.as_file(str(tmp_path / f"X{i}.expt"))
        (tmp_path / f"X{i}.refl").write_text(f"reflections {i}")
        write_sample_file(tmp_path / f"X{i}.h5", labels=labels)
    return tmp_path


def crystals_in(folder: Path) -> list[CrystalFiles]:
    return [
        CrystalFiles(
            f"X{i}",
            (SweepFiles(f"X{i}", "", "SWEEP1", folder / f"X{i}.expt", folder / f"X{i}.refl"),),
            folder / f"X{i}.h5",
        )
        for i in range(N_CRYSTALS)
    ]


SETTINGS = PipelineSettings(
    strategies=("none", "analytical"), space_group="P1", nproc=2, crystals_at_a_time=2
)


def run_all(folder: Path, workers: object, settings: PipelineSettings = SETTINGS) -> WorkingFolder:
    """The six crystals in folder/work."""
    work = WorkingFolder(folder / "work", VERSIONS, workers=workers)
    result = process(crystals_in(folder), settings, work, print)
    assert not result.failed, result.failed
    assert [one.crystal.name for one in result.corrections] == [f"X{i}" for i in range(N_CRYSTALS)]
    return work


def content(work: Path) -> dict[str, str]:
    """{path: SHA-256} of all files but the record, which holds times."""
    return {
        str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(work.rglob("*"))
        if path.is_file() and path.name != "steps.json"
    }


def put_aside(folder: Path) -> dict[str, str]:
    """The content of folder/work, which is moved away, so that the next run has the same paths."""
    found = content(folder / "work")
    (folder / "work").rename(folder / f"work{len(list(folder.glob('work*')))}")
    return found


@pytest.fixture
def cluster(folder: Path) -> Iterator[object]:
    """Two workers in processes of their own; they find the programs of `folder`."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as made:
        yield made


@pytest.fixture
def one_by_one(folder: Path) -> dict[str, str]:
    """What the six crystals give when one step runs after the other."""
    run_all(folder, None, replace(SETTINGS, nproc=1))
    return put_aside(folder)


# ---- on this machine -----------------------------------------------------------------------------


def test_side_by_side_gives_the_same_bytes(folder: Path, one_by_one: dict[str, str]):
    work = run_all(folder, LocalWorkers())
    assert content(folder / "work") == one_by_one
    # the record is in the order of the crystals, whoever was first
    names = [step.name.split("/")[0] for step in work.finished]
    assert names == sorted(names)
    assert len(names) == len(json.loads((folder / "work/steps.json").read_text())["steps"])
    again = run_all(folder, LocalWorkers())
    assert [step.name for step in again.finished if step.why is not None] == []


def test_crystals_run_at_the_same_time_and_not_more_than_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    running: set[str] = set()
    most = []
    meet = threading.Barrier(2, timeout=60)

    class Counting(LocalWorkers):
        def carry_out(self, step: Step, place: Path) -> Path:
            running.add(step.name)
            most.append(len(running))
            if step.name in ("X0/absorption", "X1/absorption"):
                meet.wait()  # passes only if both run at the same time
            try:
                return attempt(step, place)
            finally:
                running.discard(step.name)

    run_all(folder, Counting())
    assert max(most) == 2
    put_aside(folder)
    most.clear()
    meet.abort()
    monkeypatch.setattr(meet, "wait", lambda: None)
    run_all(folder, Counting(), replace(SETTINGS, strategies=("none",), crystals_at_a_time=1))
    assert max(most) == 1


def test_a_crystal_that_fails_leaves_the_others(folder: Path):
    (folder / "X2.refl").write_text("bad")
    work = WorkingFolder(folder / "work", VERSIONS, workers=LocalWorkers())
    result = process(crystals_in(folder), SETTINGS, work, print)
    (failed,) = result.failed
    assert failed.crystal.name == "X2"
    assert "ended with status 1: the data are bad; log: " in failed.reason
    assert failed.log == folder / "work/X2/absorption.failed.log"
    assert len(result.groups) == N_CRYSTALS - 1
    (folder / "X2.refl").write_text("good")
    work = WorkingFolder(folder / "work", VERSIONS, workers=LocalWorkers())
    assert not process(crystals_in(folder), SETTINGS, work, print).failed
    made = {step.name.split("/")[0] for step in work.finished if step.why is not None}
    assert made == {"X2"}


@pytest.mark.parametrize(
    ("n", "cores", "memory", "expected"),
    [
        (6, 4, 0.0, (4, 1)),
        (3, 8, 0.0, (3, 2)),
        (1, 8, 8e9, (1, 8)),
        (6, 8, 8e9, (2, 4)),
        (6, 8, 64e9, (1, 8)),
    ],
)
def test_cores_and_memory_are_shared(
    n: int, cores: int, memory: float, expected: tuple, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workers, "available_memory_bytes", lambda: int(20e9))
    assert LocalWorkers().share(n, cores, memory) == expected


def test_what_was_stopped_begins_nothing(tmp_path: Path):
    local = LocalWorkers()
    local.stop()
    with pytest.raises(CancelledError):
        local.carry_out(Step("a", ("true",), (), ("b",)), tmp_path)


# ---- on a cluster ---------------------------------------------------------------------------------


def test_dask_gives_the_same_bytes(folder: Path, one_by_one: dict[str, str], cluster):
    settings = DaskSettings(scheduler=cluster.scheduler_address)
    with dask_workers(settings, VERSIONS) as dask:
        run_all(folder, dask)
    assert content(folder / "work") == one_by_one
    # what the cluster did is done for a run without it, too
    again = run_all(folder, None)
    assert [step.name for step in again.finished if step.why is not None] == []


def wait_for(path: Path) -> str:
    end = time.monotonic() + 900  # a busy machine is slow
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.05)
    return path.read_text()


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_nothing(folder: Path, one_by_one: dict[str, str], cluster):
    """Its program lives on for a while and writes something wrong, which nobody takes."""
    (folder / "bin/hold").write_text("X3.refl")
    (folder / "bin/seconds").write_text("2")
    killed = []

    def kill() -> None:
        killed.append(int(wait_for(folder / "bin/held")))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with distributed.Client(cluster) as client:
        pids = {info["id"]: info for info in client.scheduler_info()["workers"].values()}
        run_all(folder, DaskWorkers(client, VERSIONS))
        killer.join()
        assert len(pids) == 2
    assert killed
    time.sleep(2)  # what the orphan writes
    assert content(folder / "work") == one_by_one


def driver(folder: Path, scheduler: str) -> subprocess.Popen:
    """A process that runs the six crystals by the cluster."""
    code = (
        "import importlib.util, sys; from pathlib import Path\n"
        "spec = importlib.util.spec_from_file_location('stand_ins', sys.argv[1])\n"
        "tests = importlib.util.module_from_spec(spec); spec.loader.exec_module(tests)\n"
        "made = tests.stand_ins()\n"
        "tests.stages._scale, tests.stages._compare = made.scale, made.compare\n"
        "tests.merged_data._write_free_set = made.free_set\n"
        "with tests.dask_workers(tests.DaskSettings(sys.argv[3]), tests.VERSIONS) as dask:\n"
        "    tests.run_all(Path(sys.argv[2]), dask)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, __file__, str(folder), scheduler])


@pytest.mark.slow
def test_the_driver_may_die(folder: Path, one_by_one: dict[str, str], cluster):
    """It is killed in mid-step and started again; what was done is not done again."""
    (folder / "bin/hold").write_text("X4.refl")
    (folder / "bin/seconds").write_text("3")
    first = driver(folder, cluster.scheduler_address)
    wait_for(folder / "bin/held")
    first.kill()
    first.wait()
    done = set(json.loads((folder / "work/steps.json").read_text())["steps"])
    assert done
    with distributed.Client(cluster) as client:
        work = run_all(folder, DaskWorkers(client, VERSIONS))
    assert {step.name for step in work.finished if step.why is None} == done
    time.sleep(3)
    assert content(folder / "work") == one_by_one


def versions_of_another_program(*on_path: str) -> dict[str, str]:
    return dict.fromkeys(on_path, "3.8") or {"anacor_dials": "0.9"}


def test_workers_that_do_not_fit_are_refused(tmp_path: Path):
    """Other versions, or other folders: one sentence says which and where."""
    step = Step("a", ("true",), (), ("b",))
    with pytest.raises(StepError, match=r"worker on .* has anacor_dials 0.9 and the driver has 1;"):
        workers._on_worker(step, tmp_path, VERSIONS, versions_of_another_program)
    of_xia2 = replace(step, versions={"xia2": "3.9"})
    with pytest.raises(StepError, match=r"worker on .* has xia2 3.8 and the driver has 3.9;"):
        workers._on_worker(of_xia2, tmp_path, {}, versions_of_another_program)
    with pytest.raises(StepError, match=r"does not see the folder .*absent; .* same\s+paths"):
        workers._on_worker(step, tmp_path / "absent", VERSIONS, None)


def test_a_failure_comes_from_the_worker_with_its_log(tmp_path: Path):
    error = pickle.loads(pickle.dumps(StepError("because", tmp_path / "log")))
    assert (str(error), error.log) == ("because", tmp_path / "log")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"scheduler": "tcp://a:1", "cluster": "slurm"}, "give dask.scheduler= for workers that"),
        ({"cluster": "pbs"}, "The cluster pbs is unknown; there is slurm"),
        ({"cluster": "slurm", "cores": 0}, "0 cores were asked for"),
    ],
)
def test_clusters_that_cannot_be(choice: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DaskSettings(**choice)


def test_packages_that_are_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(ValueError, match=r"dask-jobqueue: pip install 'anacor_dials\[dask\]'"):
        with dask_workers(DaskSettings(cluster="slurm"), VERSIONS):
            pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"distributed: pip install 'anacor_dials\[dask\]'"):
        with dask_workers(DaskSettings(scheduler="tcp://127.0.0.1:1"), VERSIONS):
            pass


def test_a_scheduler_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "SCHEDULER_TIMEOUT", 1.0)
    with pytest.raises(ValueError, match="scheduler tcp://127.0.0.1:1 cannot be reached"):
        with dask_workers(DaskSettings(scheduler="tcp://127.0.0.1:1"), VERSIONS):
            pass


@pytest.fixture
def slurm(folder: Path) -> Callable[[], list[str]]:
    """sbatch and scancel that run the job's script on this machine; returns the scripts so far."""
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    (folder / "jobs").mkdir()
    (folder / "bin/sbatch").write_text(
        f'#!/bin/sh\njob=$(mktemp -d {folder}/jobs/XXXXXX)\ncp "$1" $job/script\n'
        "setsid sh $job/script > $job/log 2>&1 < /dev/null &\n"
        'echo $! > $job/pid\necho "Submitted batch job $!"\n'
    )
    (folder / "bin/scancel").write_text('#!/bin/sh\nkill -- -"$1"\n')
    for name in ("sbatch", "scancel"):
        (folder / "bin" / name).chmod(0o755)
    return lambda: [path.read_text() for path in folder.glob("jobs/*/script")]


@pytest.mark.slow
def test_jobs_of_slurm(folder: Path, one_by_one: dict[str, str], slurm):
    """What is asked for stands in the jobs' scripts; the jobs carry out the steps, and end."""
    settings = DaskSettings(
        cluster="slurm",
        workers=1,
        cores=3,
        memory="2GB",
        walltime="00:10:00",
        queue="long",
        account="mx",
        directives=("--gres=gpu:1",),
    )
    with dask_workers(settings, VERSIONS) as dask:
        run_all(folder, dask)
    (script,) = slurm()
    for line in ("-p long", "-A mx", "--cpus-per-task=3", "--mem=2G", "-t 00:10:00", "--gres=gpu:1"):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert "--nthreads 1" in script  # one step at a time
    assert content(folder / "work") == one_by_one
