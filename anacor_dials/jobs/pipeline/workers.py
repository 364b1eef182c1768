"""Who carries out the steps of a pipeline: this machine, or the workers of a Dask cluster.

The run itself (the driver) stays where it was started. It knows what is done, gives steps away and
keeps the record. A worker only runs a command in a folder, which both must see under the same path.
It may be killed: Dask then gives the step to another worker, and what the first had written is
removed. The driver may be killed, too: what it had recorded stays, and the next run goes on there.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anacor_dials.jobs.pipeline.steps import CallingThread, Step, StepError, attempt
from anacor_dials.sample.memory import available_memory_bytes

logger = logging.getLogger("dials.anacor_dials.jobs.pipeline.workers")

# attributes of a folder are cached by clients of NFS for up to a minute (man 5 nfs, acdirmax)
LONGEST_DELAY_OF_FILES = 90.0  # seconds
SCHEDULER_TIMEOUT = 20.0  # seconds
MOST_CRYSTALS_OF_A_CLUSTER = 200  # each has a thread in the driver, which only waits

Versions = Callable[..., Mapping[str, str]]


class LocalWorkers(CallingThread):
    """The cores of this machine; as many steps at a time as its memory allows."""

    def share(self, n: int, cores: int, memory_bytes: float = 0.0) -> tuple[int, int]:
        """See :class:`~anacor_dials.jobs.pipeline.steps.Workers`."""
        free = available_memory_bytes() if memory_bytes else None
        return super().share(n if free is None else min(n, int(free / memory_bytes)), cores)


class DaskWorkers:
    """The workers of a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
    versions : mapping
        {program: version} of the driver.
    versions_of_worker : callable, optional
        Returns the same of the process in which it is called, and of the programs that it is called
        with. A worker with other versions is refused. If not given, versions are not compared.
    """

    def __init__(
        self, client: Any, versions: Mapping[str, str], versions_of_worker: Versions | None = None
    ) -> None:
        self.client = client
        self.versions = dict(versions)
        self.versions_of_worker = versions_of_worker
        self._lock = threading.Lock()
        self._futures: set[Any] = set()
        self._stopped = threading.Event()

    def share(self, n: int, cores: int, memory_bytes: float = 0.0) -> tuple[int, int]:
        """See :class:`~anacor_dials.jobs.pipeline.steps.Workers`.

        Whatever can be done is given to the cluster. The memory is that of the workers, and not
        looked at here.
        """
        return max(1, min(n, MOST_CRYSTALS_OF_A_CLUSTER)), max(1, cores)

    def carry_out(self, step: Step, folder: Path) -> Path:
        """The folder in `folder` that holds what the step wrote. Raises StepError."""
        if self._stopped.is_set():
            raise CancelledError
        future = self.client.submit(
            _on_worker,
            step,
            folder,
            self.versions,
            self.versions_of_worker,
            key=f"{step.name}-{os.urandom(8).hex()}",
            pure=False,
        )
        with self._lock:
            self._futures.add(future)
        try:
            place = Path(future.result())
        except (StepError, CancelledError):
            raise
        except Exception as error:
            if self._stopped.is_set():
                raise CancelledError from None
            raise StepError(_reason(error)) from error
        finally:
            with self._lock:
                self._futures.discard(future)
        _wait_for(place)
        return place

    def stop(self) -> None:
        """Cancels what waits, and nobody waits for what runs."""
        self._stopped.set()
        with self._lock:
            futures = list(self._futures)
        if futures:
            self.client.cancel(futures, force=True)


def _on_worker(
    step: Step,
    folder: Path,
    versions: Mapping[str, str],
    versions_of_worker: Versions | None,
) -> str:
    """The folder of the attempt. Runs in the worker."""
    here = f"the Dask worker on {socket.gethostname()}"
    if not folder.is_dir():
        raise StepError(
            f"{here} does not see the folder {folder}; the working folder and all data must have the same "
            "paths on all machines"
        )
    if versions_of_worker is not None:
        found = dict(versions_of_worker(*step.versions))
        for program, version in (dict(versions) | dict(step.versions)).items():
            if found.get(program) != version:
                raise StepError(
                    f"{here} has {program} {found.get(program)} and the driver has {version}; start the "
                    "workers in the same environment"
                )
    return os.fspath(attempt(step, folder))


def _reason(error: Exception) -> str:
    if type(error).__name__ == "KilledWorker":
        return (
            f"its workers were lost one after the other ({error}); does a worker's job have the memory "
            "and the time for this step?"
        )
    return f"{type(error).__name__} on a Dask worker: {error}"


def _wait_for(place: Path) -> None:
    """Waits until a folder that another machine wrote is seen on this one."""
    end = time.monotonic() + LONGEST_DELAY_OF_FILES
    while place.name not in os.listdir(place.parent) and time.monotonic() < end:
        time.sleep(0.5)


@dataclass(frozen=True)
class DaskSettings:
    """Which cluster carries out the steps.

    Parameters
    ----------
    scheduler : str, optional
        The address of a scheduler that runs already, tcp://host:port.
    cluster : str, optional
        "slurm": jobs are submitted, each of which is a worker.
    workers : int
        Number of jobs.
    cores : int
        Of each job. A worker carries out one step at a time and gives it all its cores.
    memory : str
        Of each job, such as "16GB".
    walltime : str
        Of each job, HH:MM:SS.
    queue, account : str, optional
        Partition and account of the jobs.
    directives : tuple of str
        Further lines of the job's script after #SBATCH.

    Raises
    ------
    ValueError
        If they do not go together.
    """

    scheduler: str | None = None
    cluster: str | None = None
    workers: int = 4
    cores: int = 4
    memory: str = "16GB"
    walltime: str = "04:00:00"
    queue: str | None = None
    account: str | None = None
    directives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scheduler and self.cluster:
            raise ValueError(
                f"The scheduler {self.scheduler} and a cluster ({self.cluster}) were given; give "
                "dask.scheduler= for workers that run already, or dask.cluster= to have them started."
            )
        if self.cluster not in (None, "slurm"):
            raise ValueError(f"The cluster {self.cluster} is unknown; there is slurm.")
        if self.workers < 1 or self.cores < 1:
            raise ValueError(
                f"{self.workers} workers of {self.cores} cores were asked for; both must be 1 or more."
            )

    @property
    def is_used(self) -> bool:
        """Whether there is a cluster at all."""
        return bool(self.scheduler or self.cluster)


@contextmanager
def dask_workers(
    settings: DaskSettings,
    versions: Mapping[str, str],
    versions_of_worker: Versions | None = None,
) -> Iterator[DaskWorkers]:
    """The workers of a cluster, as long as the block runs. Jobs that were submitted end with it.

    Parameters
    ----------
    settings : DaskSettings
    versions, versions_of_worker
        See :class:`DaskWorkers`.

    Raises
    ------
    ValueError
        If a package is not installed, the scheduler cannot be reached, or there is no sbatch.
    """
    distributed = _package("distributed", "dask.scheduler= and dask.cluster= need")
    if settings.cluster is not None:
        with _slurm_cluster(settings) as cluster, distributed.Client(cluster) as client:
            workers = DaskWorkers(client, versions, versions_of_worker)
            yield workers
        return
    try:
        client = distributed.Client(
            settings.scheduler, timeout=SCHEDULER_TIMEOUT, set_as_default=False
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The Dask scheduler {settings.scheduler} cannot be reached ({error}); start one, or use "
            "nproc=."
        ) from None
    with client:
        n = len(client.scheduler_info()["workers"])
        waiting = "" if n else "; the steps wait until one is started"
        logger.info("Dask scheduler %s: %d workers now%s", settings.scheduler, n, waiting)
        yield DaskWorkers(client, versions, versions_of_worker)


def _package(name: str, needs: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.replace("_", "-")
        raise ValueError(
            f"{needs} the package {package}: pip install 'anacor_dials[dask]'."
        ) from None


def _slurm_cluster(settings: DaskSettings) -> Any:
    """A cluster of Slurm jobs, each a worker that carries out one step at a time."""
    jobqueue = _package("dask_jobqueue", "dask.cluster=slurm needs")
    try:
        cluster = jobqueue.SLURMCluster(
            queue=settings.queue,
            account=settings.account,
            cores=1,  # threads of a worker: one step at a time
            processes=1,
            job_cpu=settings.cores,
            memory=settings.memory,
            walltime=settings.walltime,
            job_extra_directives=list(settings.directives),
            scheduler_options={"dashboard_address": None},
        )
        cluster.scale(jobs=settings.workers)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"The jobs for dask.cluster=slurm cannot be submitted ({error}); is sbatch on PATH, and are "
            "queue, memory and walltime those of your cluster?"
        ) from None
    logger.info("Slurm: %d jobs; the script of each:\n%s", settings.workers, cluster.job_script())
    return cluster
