"""Rays on an NVIDIA GPU, by CuPy.

The kernels do the arithmetic of :mod:`anacor_dials.absorption.ray_tracing`, one thread per ray, or
per reflection and point; a marched ray sums whole numbers, not its steps in single precision.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anacor_dials.absorption.attenuating_volume import FIXED_POINT_BITS, AttenuatingVolume
from anacor_dials.sample.frames import FloatArray

THREADS = 256  # per block: whole warps of 32, and several blocks fit a multiprocessor
EXACT_BYTES = 5e8  # for the values of one launch of the exact kernel: little beside a GPU's memory

# Plain C except for the thread index: the tests compile it with a C++ compiler and run it without a
# GPU.
KERNELS = r"""
typedef long long i64;

extern "C" __device__ double length_to_edge(
    double x, double y, double z, double gx, double gy, double gz, double ux, double uy, double uz)
{
    double length = 1e30;
    if (gx > 0.0) length = fmin(length, (ux - x) / gx);
    else if (gx < 0.0) length = fmin(length, (1.0 - x) / gx);
    if (gy > 0.0) length = fmin(length, (uy - y) / gy);
    else if (gy < 0.0) length = fmin(length, (1.0 - y) / gy);
    if (gz > 0.0) length = fmin(length, (uz - z) / gz);
    else if (gz < 0.0) length = fmin(length, (1.0 - z) / gz);
    return fmax(length, 0.0);
}

extern "C" __global__ void march(
    const unsigned char *grid, const i64 *counts, const double *points, const double *gradients,
    double step, double tau_per_count, i64 nx, i64 ny, i64 nz, i64 n_points, i64 n_rays,
    float *transmission)
{
    i64 ray = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (ray >= n_rays) return;
    const double *p = points + 3 * (ray % n_points);
    const double *g = gradients + 3 * (ray / n_points);
    const double one = (double)(1 << BITS);
    double length = length_to_edge(p[0], p[1], p[2], g[0], g[1], g[2], nx - 1.0, ny - 1.0, nz - 1.0);
    i64 count = (i64)(length / step + 0.5);
    i64 sx = (i64)rint(g[0] * step * one);
    i64 sy = (i64)rint(g[1] * step * one);
    i64 sz = (i64)rint(g[2] * step * one);
    i64 fx = (i64)(p[0] * one) + (sx >> 1);
    i64 fy = (i64)(p[1] * one) + (sy >> 1);
    i64 fz = (i64)(p[2] * one) + (sz >> 1);
    i64 total = 0;
    for (i64 i = 0; i < count; ++i) {
        total += counts[grid[((fx >> BITS) * ny + (fy >> BITS)) * nz + (fz >> BITS)]];
        fx += sx;
        fy += sy;
        fz += sz;
    }
    transmission[ray] = (float)exp(-tau_per_count * (double)total);
}

extern "C" __device__ double exact_ray(
    const unsigned char *labels, const i64 *shape, const i64 *lower, const i64 *upper,
    const double *p, const double *g, const double *mu)
{
    i64 cell[3], move[3], end[3];
    double next[3], across[3];
    for (int a = 0; a < 3; ++a) {
        cell[a] = (i64)floor(p[a]);
        if (cell[a] < lower[a]) cell[a] = lower[a];
        if (cell[a] > upper[a] - 1) cell[a] = upper[a] - 1;
        move[a] = g[a] > 0.0 ? 1 : -1;
        end[a] = g[a] > 0.0 ? upper[a] : lower[a] - 1;
        across[a] = g[a] != 0.0 ? 1.0 / fabs(g[a]) : 1e30;
        next[a] = g[a] == 0.0 ? 1e30
                : (g[a] > 0.0 ? cell[a] + 1 - p[a] : p[a] - cell[a]) * across[a];
    }
    double tau = 0.0, here = 0.0;
    for (;;) {
        int a = (next[0] <= next[1] && next[0] <= next[2]) ? 0 : (next[1] <= next[2] ? 1 : 2);
        tau += mu[labels[(cell[0] * shape[1] + cell[1]) * shape[2] + cell[2]]] * (next[a] - here);
        here = next[a];
        next[a] += across[a];
        cell[a] += move[a];
        if (cell[a] == end[a]) return tau;
    }
}

extern "C" __global__ void exact(
    const unsigned char *labels, const i64 *shape, const i64 *lower, const i64 *upper,
    const double *points, const double *to_source, const double *exits, const double *mu,
    i64 n_points, i64 n_values, double *values)
{
    i64 index = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= n_values) return;
    const double *p = points + 3 * (index % n_points);
    i64 h = index / n_points;
    double tau = exact_ray(labels, shape, lower, upper, p, to_source + 3 * h, mu)
               + exact_ray(labels, shape, lower, upper, p, exits + 3 * h, mu);
    values[index] = exp(-tau);
}
"""


def source() -> str:
    """The source of the kernels, with the constants that they share with the CPU."""
    return f"#define BITS {FIXED_POINT_BITS}\n" + KERNELS


@cache
def why_unavailable() -> str | None:
    """None if rays can be traced on a GPU, else the reason why not."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed (pip install 'anacor_dials[gpu]')"
    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            return "CuPy finds no GPU"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no GPU ({error})"
    return None


@cache
def _kernel(name: str) -> Any:
    import cupy

    return cupy.RawModule(code=source()).get_function(name)


def _blocks(n: int) -> tuple[int]:
    return (-(-n // THREADS),)


class CudaEngine:
    """Traces rays on an NVIDIA GPU; see :class:`anacor_dials.absorption.engines.Engine`.

    The arrays of the volume that was used last stay on the GPU.
    """

    device = "cuda"

    def __init__(self) -> None:
        import cupy

        self.xp: Any = cupy
        self._volume: AttenuatingVolume | None = None
        self._arrays: tuple[Any, ...] = ()

    def to_numpy(self, array: Any) -> NDArray[Any]:
        """See :meth:`anacor_dials.absorption.engines.Engine.to_numpy`."""
        copy: NDArray[Any] = self.xp.asnumpy(array)
        return copy

    def _on_device(self, volume: AttenuatingVolume) -> tuple[Any, ...]:
        """grid, grid_counts, labels, their shape, lower, upper and mu_per_um on the GPU."""
        if self._volume is not volume:
            self._arrays = ()  # frees those of the last volume first
            self._arrays = tuple(
                self.xp.asarray(array)
                for array in (
                    volume.grid,
                    volume.grid_counts,
                    np.ascontiguousarray(volume.labels),
                    np.array(volume.labels.shape, dtype=np.int64),
                    volume.lower,
                    volume.upper,
                    volume.mu_per_um,
                )
            )
            self._volume = volume
        return self._arrays

    def march_transmission(
        self, volume: AttenuatingVolume, points: ArrayLike, directions: ArrayLike
    ) -> Any:
        """See :meth:`anacor_dials.absorption.engines.Engine.march_transmission`."""
        directions = np.asarray(directions, dtype=np.float64).reshape(-1, 3)
        coordinates = self.xp.asarray(volume.grid_coordinates(points))
        gradients = self.xp.asarray(directions / volume.cell_um)
        grid, counts, *_ = self._on_device(volume)
        transmission = self.xp.empty((len(directions), len(coordinates)), dtype=np.float32)
        _kernel("march")(
            _blocks(transmission.size),
            (THREADS,),
            (
                grid,
                counts,
                coordinates,
                gradients,
                np.float64(volume.step_um),
                np.float64(volume.grid_unit_per_um * volume.step_um),
                *(np.int64(n) for n in volume.grid.shape),
                np.int64(len(coordinates)),
                np.int64(transmission.size),
                transmission,
            ),
        )
        return transmission

    def exact_transmission(
        self,
        volume: AttenuatingVolume,
        points: ArrayLike,
        to_source: ArrayLike,
        exit_directions: ArrayLike,
        weights: ArrayLike | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """See :meth:`anacor_dials.absorption.engines.Engine.exact_transmission`."""
        xp = self.xp
        starts = xp.asarray(np.asarray(points, dtype=np.float64).reshape(-1, 3) + 0.5)
        size = volume.voxel_size_um
        to_source = np.asarray(to_source, dtype=np.float64).reshape(-1, 3) / size
        exits = np.asarray(exit_directions, dtype=np.float64).reshape(-1, 3) / size
        n = len(to_source)
        given = np.ones(len(starts)) if weights is None else np.asarray(weights, float)
        given = np.atleast_2d(given)
        mean, error = np.empty(n), np.empty(n)
        step = max(1, int(EXACT_BYTES / (8 * len(starts))))
        for start in range(0, n, step):
            part = slice(start, start + step)
            values = self._exact_values(volume, starts, to_source[part], exits[part])
            w = xp.asarray(given if len(given) == 1 else given[part])
            values *= w
            d_f = values[:, ::2] - values[:, 1::2]
            d_w = w[:, ::2] - w[:, 1::2]
            norm = w.sum(axis=1)
            of_part = values.sum(axis=1) / xp.maximum(norm, 1e-300)
            squares = ((d_f - of_part[:, None] * d_w) ** 2).sum(axis=1)
            mean[part] = self.to_numpy(of_part)
            error[part] = self.to_numpy(xp.sqrt(squares) / xp.maximum(norm, 1e-300))
        return mean, error

    def _exact_values(
        self, volume: AttenuatingVolume, starts: Any, to_source: FloatArray, exits: FloatArray
    ) -> Any:
        """exp(-tau_in - tau_out) (n, m) on the GPU; directions (n, 3) in voxels per um."""
        _, _, labels, shape, lower, upper, mu = self._on_device(volume)
        values = self.xp.empty((len(to_source), len(starts)))
        _kernel("exact")(
            _blocks(values.size),
            (THREADS,),
            (
                labels,
                shape,
                lower,
                upper,
                starts,
                self.xp.asarray(to_source),
                self.xp.asarray(exits),
                mu,
                np.int64(len(starts)),
                np.int64(values.size),
                values,
            ),
        )
        return values
