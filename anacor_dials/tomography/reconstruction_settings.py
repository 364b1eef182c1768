"""The steps from transmissions to mu, and what may be chosen in them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from anacor_dials.tomography.corrections import check_ring_method
from anacor_dials.tomography.ramp_filter import FILTERS

METHODS = ("fbp", "iterative")


@dataclass(frozen=True)
class ReconstructionSettings:
    """The steps from transmissions to mu.

    centre: pixel number of the rotation axis in the raw images (a column where the axis runs along the
    rows' numbers, else a row), None to find it by centre_method (auto, opposite, vo, mass).
    beam_centre: pixel number of the beam's centre along the axis, None for the middle. zinger_threshold: in
    transmission, None not to look for zingers. least_transmission: smaller ones are taken as this. rings:
    off, light or strong. paganin_delta_beta: delta / beta for phase retrieval, None for none; for
    segmentation only, mu is wrong near edges. crop: "off", "auto", or the first and last + 1 voxel along
    X, Y, Z (six numbers) of the whole. filter_name: the window on the ramp. backend: auto, numba, torch,
    algotom, tomopy, astra. memory_gb: what slabs may take, None for half of what is free, at most 4.
    method: fbp, or iterative (:mod:`anacor_dials.tomography.iterative`), with regularisation as its strength.
    """

    centre: float | None = None
    centre_method: str = "auto"
    beam_centre: float | None = None
    zinger_threshold: float | None = 0.2
    least_transmission: float = 1e-3
    rings: str = "light"
    paganin_delta_beta: float | None = None
    crop: str | tuple[int, ...] = "auto"
    filter_name: str = "shepp-logan"
    backend: str = "auto"
    memory_gb: float | None = None
    method: str = "fbp"
    regularisation: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.least_transmission < 0.5:
            raise ValueError(
                f"The least transmission is {self.least_transmission}; it lies between 0 and 0.5 "
                "(0.001, say)."
            )
        if self.zinger_threshold is not None and not self.zinger_threshold > 0:
            raise ValueError(f"The zinger threshold is {self.zinger_threshold}; it must be > 0.")
        if self.paganin_delta_beta is not None and not self.paganin_delta_beta > 0:
            raise ValueError(f"delta / beta is {self.paganin_delta_beta}; it must be > 0.")
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise ValueError(f"The memory for slabs is {self.memory_gb} GB; it must be > 0.")
        if self.method not in METHODS:
            raise ValueError(f"The method is {self.method!r}; it is {' or '.join(METHODS)}.")
        if not (math.isfinite(self.regularisation) and self.regularisation > 0):
            raise ValueError(
                f"The regularisation is {self.regularisation}; it must be > 0 (1, say)."
            )
        if self.filter_name not in FILTERS:
            raise ValueError(
                f"The filter {self.filter_name!r} is unknown; choose one of {', '.join(FILTERS)}."
            )
        if isinstance(self.crop, str) and self.crop not in ("off", "auto"):
            raise ValueError(f"crop is {self.crop!r}; it is off, auto, or six voxel numbers.")
        if not isinstance(self.crop, str) and len(self.crop) != 6:
            raise ValueError(
                f"crop has {len(self.crop)} numbers; it is the first and last + 1 voxel along X, Y and Z."
            )
        check_ring_method(self.rings)
