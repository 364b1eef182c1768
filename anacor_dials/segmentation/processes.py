"""Processes that share a training, on several GPUs or machines.

torch's own launcher starts them::

    torchrun --nproc-per-node 4 -m anacor_dials.jobs.train --weights anacornet.safetensors

Each process draws crops of its own, and makes its own part of a stream of samples. After each step
the gradients of all are averaged, and the statistics of the normalisations, too, as those of
threads are (:class:`.replicas.ThreadedReplicas`). Therefore n processes with b crops each do the
same as one process with n b crops that n threads share. The first process validates and writes.

What the coarse pass found in a sample stays in the process that drew the sample. Samples of a
stream belong to one process. Samples of folders belong to all, and then the crops of a process see
what this process found in them last.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from anacor_dials.sample.devices import n_processes
from anacor_dials.segmentation.network import SliceNetwork
from anacor_dials.segmentation.replicas import StepResult
from anacor_dials.segmentation.training_data import TrainingVolume

# The others wait while the first process makes samples or validates. If a process ends, the
# launcher ends the others, so that none waits for nothing.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class TrainingProcesses:
    """The processes that share a training; by default this one alone.

    Parameters
    ----------
    number : int
        Of this process, from 0.
    n : int
        How many there are.
    """

    number: int = 0
    n: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that validates and writes."""
        return self.number == 0

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self.n > 1:
            dist.barrier()

    def of_first(self, value: Any) -> Any:
        """A value of the first process, in all of them.

        Parameters
        ----------
        value
            Anything that can be pickled; of the other processes it is ignored.
        """
        if self.n == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def mean(self, result: StepResult, networks: Sequence[SliceNetwork]) -> StepResult:
        """Gradients and losses of a step, averaged over the processes.

        Parameters
        ----------
        result : StepResult
            Of this process. All processes have as many crops and whole samples.
        networks : sequence of SliceNetwork
            The replicas in this process. They get the mean statistics of the batches.
        """
        if self.n == 1:
            return result
        buffers = [b for b in networks[0].buffers() if b.is_floating_point()]
        losses = torch.tensor([result.losses, *result.coarse_losses], dtype=torch.float32)
        parts = [*result.gradients, *buffers, losses.to(result.gradients[0].device)]
        # in one go: many small messages take longer
        flat = torch.cat([part.detach().reshape(-1).float() for part in parts])
        dist.all_reduce(flat)
        flat /= self.n
        means = [
            mean.reshape(part.shape)
            for mean, part in zip(flat.split([p.numel() for p in parts]), parts, strict=True)
        ]
        n = len(result.gradients)
        with torch.no_grad():
            for network in networks:
                mine = [b for b in network.buffers() if b.is_floating_point()]
                for buffer, mean in zip(mine, means[n:-1], strict=True):
                    buffer.copy_(mean)
        first, *coarse = [(float(a), float(b)) for a, b in means[-1]]
        return replace(result, gradients=means[:n], losses=first, coarse_losses=coarse)

    def part_of(self, stream: Callable[[int], TrainingVolume]) -> Callable[[int], TrainingVolume]:
        """The part of a stream that this process makes.

        Parameters
        ----------
        stream : callable
            Returns a sample for a number; picklable.
        """
        return stream if self.n == 1 else PartOfStream(stream, self.number, self.n)


@dataclass(frozen=True)
class PartOfStream:
    """Every n-th sample of a stream.

    Parameters
    ----------
    stream : callable
        Returns a sample for a number.
    first, n : int
        The numbers are first, first + n, first + 2 n, ...
    """

    stream: Callable[[int], TrainingVolume]
    first: int
    n: int

    def __call__(self, number: int) -> TrainingVolume:
        return self.stream(self.first + number * self.n)


def rng_of_step(seed: int, step: int, process: int) -> np.random.Generator:
    """The random numbers of a step of a process.

    Those of the first process are those of a training in one process: numpy fills the seeds up with
    zeros.

    Parameters
    ----------
    seed, step, process : int
    """
    return np.random.default_rng([seed, step, process])


def mean_weights(processes: TrainingProcesses, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Class weights (n_classes,) averaged over the processes."""
    if processes.n == 1:
        return weights
    total = torch.from_numpy(np.array(weights))
    dist.all_reduce(total)
    return np.asarray(total.numpy() / processes.n)


@contextmanager
def joined_processes(device: torch.device) -> Iterator[TrainingProcesses]:
    """The processes that torch's launcher started with this one; this one alone without it.

    Parameters
    ----------
    device : torch.device
        On GPUs each process of a machine takes its own.

    Raises
    ------
    ValueError
        If a machine has fewer GPUs than processes.
    """
    if n_processes() == 1:
        yield TrainingProcesses()
        return
    mine = not dist.is_initialized()
    if mine:
        backend = "gloo"
        if device.type == "cuda":
            local, n = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local >= n:
                raise ValueError(
                    f"This machine has {n} GPUs, and process {local + 1} finds none for itself; start "
                    f"torchrun with --nproc-per-node {n}, or train with device=cpu."
                )
            torch.cuda.set_device(local)
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield TrainingProcesses(dist.get_rank(), dist.get_world_size())
    finally:
        if mine:
            dist.destroy_process_group()
