"""What traces rays: the CPU or an NVIDIA GPU, with the same functions."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials.absorption import ray_tracing
from anacor_dials.absorption.attenuating_volume import AttenuatingVolume
from anacor_dials.sample.frames import FloatArray

DEVICES = ("auto", "cpu", "cuda")


class Engine(Protocol):
    """Traces rays on one kind of device.

    device: "cpu" or "cuda". xp: the array module (numpy or cupy) of the arrays that
    march_transmission returns.
    """

    @property
    def device(self) -> str: ...

    @property
    def xp(self) -> Any: ...

    def to_numpy(self, array: Any) -> NDArray[Any]:
        """The array in the memory of the host."""
        ...

    def march_transmission(
        self, volume: AttenuatingVolume, points: ArrayLike, directions: ArrayLike
    ) -> Any:
        """exp(-integral of mu) (n_directions, n_points), float32, along marched rays, as array of
        xp.

        See :func:`anacor_dials.absorption.ray_tracing.march_transmission`.
        """
        ...

    def exact_transmission(
        self,
        volume: AttenuatingVolume,
        points: ArrayLike,
        to_source: ArrayLike,
        exit_directions: ArrayLike,
        weights: ArrayLike | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """A (n,) of reflections by exact voxel traversal, and its standard error (n,).

        See :func:`anacor_dials.absorption.ray_tracing.exact_transmission`.
        """
        ...


class CpuEngine:
    """Traces rays on all CPU cores; see :class:`Engine`."""

    device = "cpu"
    xp: Any = np

    def to_numpy(self, array: Any) -> NDArray[Any]:
        return np.asarray(array)

    def march_transmission(
        self, volume: AttenuatingVolume, points: ArrayLike, directions: ArrayLike
    ) -> NDArray[np.float32]:
        return ray_tracing.march_transmission(volume, points, directions)

    def exact_transmission(
        self,
        volume: AttenuatingVolume,
        points: ArrayLike,
        to_source: ArrayLike,
        exit_directions: ArrayLike,
        weights: ArrayLike | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        return ray_tracing.exact_transmission(volume, points, to_source, exit_directions, weights)


def require_device(device: str) -> None:
    """Raises ValueError if the device is not one of auto, cpu and cuda."""
    if device not in DEVICES:
        raise ValueError(f"The device is {device!r}; it is one of {', '.join(DEVICES)}.")


def select_engine(device: str) -> Engine:
    """The engine of a device: "auto" (a GPU if CuPy finds one), "cpu" or "cuda".

    Raises ValueError if cuda is asked for and is not there.
    """
    require_device(device)
    if device == "cpu":
        return CpuEngine()
    from anacor_dials.absorption.ray_tracing_cuda import CudaEngine, why_unavailable

    reason = why_unavailable()
    if reason is None:
        return CudaEngine()
    if device == "cuda":
        raise ValueError(f"device=cuda needs CuPy and an NVIDIA GPU: {reason}. Use device=cpu.")
    return CpuEngine()
