"""Reconstruction: from the projections of a scan to a tomogram of mu in 1/um.

Slices across the rotation axis are independent: they are reconstructed in slabs along X that fit
the memory, each from its own rows of the detector.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray, FloatImages
from anacor_dials.sample.large_arrays import new_array, release
from anacor_dials.sample.memory import available_memory_bytes
from anacor_dials.sample.progress import Progress
from anacor_dials.sample.volumes import Tomogram
from anacor_dials.tomography.backprojection import LANES, reconstruct_slices
from anacor_dials.tomography.iterative import (
    TotalVariation,
    bytes_of_a_batch,
    noise_of,
    require_whole_sample,
)
from anacor_dials.tomography.projections import read_projections
from anacor_dials.tomography.ramp_filter import Sinograms
from anacor_dials.tomography.reconstruction_plan import (
    ReconstructionPlan,
    plan_reconstruction,
    thumbnail,
)
from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings
from anacor_dials.tomography.scan_files import ScanDescription
from anacor_dials.tomography.sinograms import (
    BATCH_BYTES,
    Counts,
    row_sinograms,
    slab_sinograms,
)
from anacor_dials.tomography.slice_grid import SliceGrid

logger = logging.getLogger("dials.anacor_dials.tomography.reconstruction")

SLAB = 64  # rows; slabs are multiples of it: whole chunks of tomo.h5
MOST_MEMORY = 6.0e9  # bytes that are used if more than twice as many are free
HISTOGRAM_BINS = 400  # of mu in the report
HISTOGRAM_VOXELS = 4_000_000  # so many, evenly spread, show it as all do
NOISE_ROWS = 5  # rows in which the noise is measured


Advance = Callable[[int], object]  # is told how many more slices are ready


class Sink(Protocol):
    """Where slabs go: an array, or a data set in a file."""

    def __setitem__(self, key: Any, value: Any) -> None: ...


def _slab_rows(plan: ReconstructionPlan) -> int:
    """How many slices fit into the memory at once.

    A multiple of SLAB, or of LANES if memory is short.
    """
    free = available_memory_bytes()
    memory_gb = plan.settings.memory_gb
    most = min(MOST_MEMORY, 0.5 * free) if free else MOST_MEMORY
    budget = memory_gb * 1e9 if memory_gb is not None else most
    ny, nz = plan.grid.shape
    p = plan.projections
    # beside the sinograms: first the images being corrected, then filtered sinograms, their
    # transforms, and slices
    width = 2 * p.ny + 3 * plan.grid.radius
    slices = LANES * (4.0 * p.n_angles * width + 8.0 * ny * nz)
    if plan.settings.method == "iterative":
        slices += bytes_of_a_batch(p.n_angles, p.ny, (plan.grid.n, plan.grid.n))
    sinogram, of_slice = 4.0 * p.n_angles * p.ny, 4.0 * ny * nz
    slices_at_a_time = _slices_at_a_time(plan.shape[0])
    beside = max(4 * BATCH_BYTES, slices + slices_at_a_time * of_slice)
    rows = int((budget - beside) / sinogram)
    if rows < slices_at_a_time:
        beside = max(4 * BATCH_BYTES, slices)
        rows = min(int((budget - beside) / (sinogram + of_slice)), slices_at_a_time)
    if rows >= SLAB:
        return min(rows - rows % SLAB, -(-plan.shape[0] // SLAB) * SLAB)
    return max(LANES, rows - rows % LANES)


def _slices_at_a_time(nx: int) -> int:
    """Slices that are made at once: SLAB, or about a tenth of nx if that is more."""
    return max(SLAB, -(-nx // (10 * SLAB)) * SLAB)


def _method(plan: ReconstructionPlan) -> Callable[[Sinograms, Advance], FloatImages]:
    """What makes slices of sinograms, and says of how many more they are ready."""
    projections, settings = plan.projections, plan.settings

    def back_projected(sinograms: Sinograms, advance: Advance) -> FloatImages:
        slices = reconstruct_slices(
            sinograms,
            projections.angles_deg,
            plan.axis,
            projections.pixel_xy_um[1],
            plan.grid,
            settings.filter_name,
            plan.backend,
        )
        advance(len(slices))
        return slices

    if settings.method == "fbp":
        return back_projected
    nx = plan.shape[0]
    logger.info("Iterative reconstruction: total variation, positivity; slower than fbp")
    rows = np.unique(np.linspace(nx // 4, max(nx - 1 - nx // 4, nx // 4), NOISE_ROWS).astype(int))
    _, sinograms = row_sinograms(projections, settings, plan.x[0] + rows)
    require_whole_sample(sinograms)
    # a crop given by hand may cut the sample, whose other parts are in the images, too
    by_hand = not isinstance(settings.crop, str)
    solver = TotalVariation.of_scan(
        projections.angles_deg,
        plan.axis,
        projections.ny,
        projections.pixel_xy_um,
        SliceGrid(plan.grid.n) if by_hand else plan.grid,
        noise_of(sinograms),
        settings.regularisation,
    )
    if not by_hand:
        return solver.slices
    window = (slice(None), *(slice(*ends) for ends in plan.grid.windows))
    return lambda sinograms, advance: solver.slices(sinograms, advance)[window]


def _slabs(
    plan: ReconstructionPlan, rows: int, counts: Counts
) -> Iterator[tuple[int, FloatImages]]:
    """(first slice, slices (m, ny, nz)) one after the other.

    m is SLAB, or a tenth of all slices if that is more. rows: how many sinograms are held at once.
    """
    projections, settings = plan.projections, plan.settings
    nx = plan.shape[0]
    slices_of = _method(plan)
    some = _slices_at_a_time(nx)
    # corrections of the rows take about as long as their slices, and are counted alike
    n = projections.n_angles
    with Progress(2 * nx * n, "Reconstructing") as progress:
        for begin in range(0, nx, rows):
            end = min(begin + rows, nx)
            sinograms = slab_sinograms(
                projections,
                settings,
                (plan.x[0] + begin, plan.x[0] + end),
                counts,
                progress.update,
            )
            for first in range(begin, end, some):
                last = min(first + some, end)
                slab = slices_of(
                    sinograms[first - begin : last - begin],
                    lambda slices: progress.update(slices * n),
                )
                if not np.all(np.isfinite(slab)):
                    raise ValueError(
                        f"Slices {first} to {last - 1} are not numbers: the projections hold values "
                        "that cannot be used."
                    )
                yield first, slab


def _histogram(values: NDArray[np.float32]) -> tuple[FloatArray, NDArray[np.int64]]:
    """Edges and counts of values; those beyond the edges count in the outermost bins."""
    low, high = np.percentile(values, (0.01, 99.99))
    room = 0.25 * max(high - low, 1e-9)
    edges = np.linspace(low - room, high + room, HISTOGRAM_BINS + 1)
    return edges, np.histogram(values.clip(edges[0], edges[-1]), edges)[0]


def reconstruct(plan: ReconstructionPlan, out: Sink | None = None) -> Tomogram | None:
    """The tomogram, slab by slab; or None if it is written into `out`.

    The values of a large one lie on the disk (:mod:`anacor_dials.sample.large_arrays`).

    The diagnostics of the plan are filled in: clipped pixels, slices, the histogram of mu, seconds.

    out: an array or data set (nx, ny, nz), see :attr:`ReconstructionPlan.shape`.
    """
    projections, settings, diagnostics = plan.projections, plan.settings, plan.diagnostics
    nx, ny, nz = plan.shape
    values = None
    if out is None:
        out = values = new_array(plan.shape, np.float32, f"A tomogram of {nx} x {ny} x {nz} voxels")
    rows = _slab_rows(plan)
    logger.info(
        "Reconstructing %d slices of %d x %d voxels from %d projections by %s, %d slices at a time",
        nx, ny, nz, projections.n_angles, plan.backend, min(rows, nx),
    )  # fmt: skip
    counts = Counts()
    start = time.perf_counter()
    pieces: dict[str, list[FloatImages]] = {"y": [], "z": []}
    apart = max(1, math.ceil(math.sqrt(nx * ny * nz / HISTOGRAM_VOXELS)))
    thin: list[FloatImages] = []
    for first, slab in _slabs(plan, rows, counts):
        last = first + len(slab)
        out[first:last] = slab
        release(out)
        thin.append(slab[:, ::apart, ::apart].ravel())
        if first <= nx // 2 < last:
            diagnostics.slices["x"] = thumbnail(slab[nx // 2 - first])
        pieces["y"].append(slab[:, ny // 2].copy())
        pieces["z"].append(slab[:, :, nz // 2].copy())
    for name, parts in pieces.items():
        diagnostics.slices[name] = thumbnail(np.concatenate(parts))
    diagnostics.histogram = _histogram(np.concatenate(thin))
    diagnostics.seconds = time.perf_counter() - start
    diagnostics.seconds_per_slice = diagnostics.seconds / nx
    diagnostics.clipped_percent = 100 * counts.clipped / counts.pixels
    diagnostics.unusable_percent = 100 * counts.unusable / counts.pixels
    diagnostics.zinger_percent = 100 * counts.zingers / counts.pixels
    logger.info(
        "%.1f s, %.3f s per slice; %.3f %% of the transmissions were below %g and clipped, %.3f %% of the "
        "pixels unusable, %.3f %% zingers",
        diagnostics.seconds,
        diagnostics.seconds_per_slice,
        diagnostics.clipped_percent,
        settings.least_transmission,
        diagnostics.unusable_percent,
        diagnostics.zinger_percent,
    )
    if diagnostics.clipped_percent > 1.0:
        diagnostics.warnings.append(
            f"{diagnostics.clipped_percent:.1f} % of the transmissions were clipped: mu comes out too low; "
            "lower least_transmission, or take the scan at a higher energy."
        )
        logger.warning(diagnostics.warnings[-1])
    if values is None:
        return None
    return Tomogram(values, plan.voxel_size_um, plan.centre)


def reconstruct_scan(
    path: str | os.PathLike[str],
    description: ScanDescription | None = None,
    settings: ReconstructionSettings | None = None,
) -> tuple[Tomogram, ReconstructionPlan]:
    """The tomogram of a scan, in memory, and the plan with its diagnostics.

    Parameters
    ----------
    path : path
    description : ScanDescription, optional
        What the file does not say.
    settings : ReconstructionSettings, optional

    Raises
    ------
    ValueError
        As :func:`read_projections` and :func:`plan_reconstruction` do.
    """
    plan = plan_reconstruction(read_projections(path, description), settings)
    tomogram = reconstruct(plan)
    assert tomogram is not None
    return tomogram, plan
