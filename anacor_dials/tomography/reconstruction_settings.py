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

    Parameters
    ----------
    centre : float, optional
        Pixel number of the rotation axis in the raw images: a column if the axis runs along a
        column, else a row. If not given, it is found.
    centre_method : str
        How it is found: auto, opposite, vo or mass, see
        :func:`anacor_dials.tomography.rotation_centre.find_rotation_centre`.
    beam_centre : float, optional
        Pixel number of the beam's centre along the rotation axis; the middle if not given.
    zinger_threshold : float or None
        In transmission; None: zingers are not looked for.
    least_transmission : float
        Smaller transmissions are taken as this.
    rings : str
        How rings are removed: off, light or strong.
    paganin_delta_beta : float, optional
        delta / beta for phase retrieval; none if not given. For segmentation only: mu is wrong near
        edges.
    crop : str or tuple of 6 int
        "off", "auto", or the first and last + 1 voxel along X, Y and Z of the whole.
    filter_name : str
        The window on the ramp filter.
    backend : str
        auto, numba, torch, algotom, tomopy or astra.
    memory_gb : float, optional
        What slabs may take; half of what is free, at most 4, if not given.
    method : str
        fbp, or iterative (:mod:`anacor_dials.tomography.iterative`).
    regularisation : float
        The strength of the regularisation in the iterative method.
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
