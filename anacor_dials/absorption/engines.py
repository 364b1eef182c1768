"""What traces rays: the CPU or an NVIDIA GPU, with the same functions."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials.absorption import ray_tracing
from anacor_dials.absorption.attenuating_volume import AttenuatingVolume
from anacor_dials.sample.devices import chosen_device
from anacor_dials.sample.frames import FloatArray


class Engine(Protocol):
    """Traces rays on one kind of device, through voxels, a solid with plane faces or meshes."""

    @property
    def device(self) -> str:
        """The name of the device: cpu or cuda."""
        ...

    @property
    def xp(self) -> Any:
        """The array module of what march_transmission returns: numpy or cupy."""
        ...

    def to_numpy(self, array: Any) -> NDArray[Any]:
        """The array in the memory of the host."""
        ...

    def march_transmission(self, volume: Any, points: ArrayLike, directions: ArrayLike) -> Any:
        """exp(-integral of mu) along marched rays, an array of xp.

        Parameters
        ----------
        volume : AttenuatingVolume, AttenuatingSolid or AttenuatingSurfaces
        points : array (n_points, 3)
            Where the rays start, voxel indices.
        directions : array (n_directions, 3)
            Unit vectors of the tomo frame, away from the point.

        Returns
        -------
        array (n_directions, n_points) of float32
        """
        ...

    def exact_transmission(
        self,
        volume: Any,
        points: ArrayLike,
        to_source: ArrayLike,
        exit_directions: ArrayLike,
        weights: ArrayLike | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """A of reflections by exact voxel traversal, and its standard error, in the host's memory.

        Parameters
        ----------
        volume : AttenuatingVolume, AttenuatingSolid or AttenuatingSurfaces
        points : array (m, 3)
            Voxel indices; points 2k and 2k + 1 come from the same part of the crystal.
        to_source, exit_directions : array (n, 3)
            Unit vectors of the tomo frame.
        weights : array (n, m) or (m,), optional
            Weights of the points; 1 by default.

        Returns
        -------
        transmission, standard_error : array (n,)
        """
        ...


class CpuEngine:
    """Traces rays on all CPU cores; see :class:`Engine`."""

    device = "cpu"
    xp: Any = np

    def to_numpy(self, array: Any) -> NDArray[Any]:
        """See :meth:`Engine.to_numpy`."""
        return np.asarray(array)

    def march_transmission(
        self, volume: AttenuatingVolume, points: ArrayLike, directions: ArrayLike
    ) -> NDArray[np.float32]:
        """See :meth:`Engine.march_transmission`."""
        return ray_tracing.march_transmission(volume, points, directions)

    def exact_transmission(
        self,
        volume: AttenuatingVolume,
        points: ArrayLike,
        to_source: ArrayLike,
        exit_directions: ArrayLike,
        weights: ArrayLike | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """See :meth:`Engine.exact_transmission`."""
        return ray_tracing.exact_transmission(volume, points, to_source, exit_directions, weights)


def select_engine(device: str) -> Engine:
    """The engine of a device: "auto" (a GPU if CuPy finds one), "cpu" or "cuda".

    Raises ValueError if cuda is asked for and is not there.
    """
    from anacor_dials.absorption.ray_tracing_cuda import CudaEngine, why_unavailable

    on_gpu = chosen_device(device, "CuPy", why_unavailable) == "cuda"
    return CudaEngine() if on_gpu else CpuEngine()
