"""How absorption factors are computed: the settings of ray tracing."""

from __future__ import annotations

from dataclasses import dataclass

from anacor_dials.absorption.beam import BeamProfile
from anacor_dials.sample.devices import require_device

METHODS = ("auto", "table", "direct", "exact")


@dataclass(frozen=True)
class Tracing:
    """The settings of :func:`anacor_dials.absorption.factors.absorption_factors`.

    Parameters
    ----------
    tolerance : float
        The relative rms error to reach, 1e-5 to 0.1.
    method : str
        "table": log A is interpolated in a table of directions. "direct": the rays of each
        reflection are traced by equal steps. "exact": the same by voxel traversal. "auto": table or
        direct, whichever needs fewer rays; exact where the steps of direct are too long for the
        tolerance, as in a plate of few voxels.
    beam : BeamProfile, optional
        The cross-section of the beam; None if the beam is wider than the crystal.
    check_reflections : int
        How many random reflections are traced exactly, to measure the error of the others.
    memory_gb : float
        Memory for tables and rays, besides the volume itself, GB.
    nproc : int, optional
        The number of threads; None for one per core. The factors do not depend on it.
    device : str
        "auto" (a GPU if CuPy finds one), "cpu" or "cuda".
    seed : int
        Decides which points of the crystal and which reflections are chosen.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    tolerance: float = 1e-3
    method: str = "auto"
    beam: BeamProfile | None = None
    check_reflections: int = 64
    memory_gb: float = 2.0
    nproc: int | None = None
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1e-5 <= self.tolerance <= 0.1:
            raise ValueError(
                f"The tolerance is {self.tolerance:g}; relative errors from 1e-5 to 0.1 can be "
                "asked for."
            )
        if self.method not in METHODS:
            raise ValueError(f"The method is {self.method!r}; it is one of {', '.join(METHODS)}.")
        if not self.memory_gb >= 0.1:
            raise ValueError(f"The memory is {self.memory_gb} GB; at least 0.1 GB is needed.")
        if self.nproc is not None and self.nproc < 1:
            raise ValueError(f"nproc is {self.nproc}; it must be at least 1.")
        if self.check_reflections < 1:
            raise ValueError(
                f"{self.check_reflections} reflections are to be traced exactly; it must be at least 1."
            )
        require_device(self.device)
