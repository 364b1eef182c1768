"""Seconds per slice, and how right they are, of every installed back-projection.

  tools/dials-env python benchmarks/reconstruction.py [--sizes 512 1024] [--projections 900]

All backends reconstruct the same closed-form phantom, a large disk and three small ones, one after the
other in one run. `inside` is the largest error of the mean mu within a disk, `place` the largest error of a
disk's centre, `rms` the error over a circle relative to the large disk's mu. Seconds are wall and CPU time
per slice, filtering included, compilation not.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import numpy as np

from anacor_dials.tomography.backprojection import available_backends, reconstruct_slices
from anacor_dials.tomography.slice_grid import SliceGrid

# (y, z, radius, mu) in fractions of the slice's edge, mu in 1/um at 1 um pixels
DISKS = ((0.02, -0.03, 0.35, 0.010), (0.1, 0.12, 0.06, 0.004), (-0.2, 0.05, 0.04, -0.003), (0.05, -0.22, 0.03, 0.006))  # fmt: skip
SLICES = {"numba": 32, "torch": 16, "algotom": 1, "tomopy": 4, "astra": 1}


def phantom(n: int, oversample: int = 4) -> np.ndarray:
    """The slice (n, n) itself; disks add up."""
    fine = n * oversample
    at = ((np.arange(fine) + 0.5) / fine - 0.5) * n
    image = np.zeros((n, n))
    for y, z, radius, mu in DISKS:
        disk = (at[:, None] - y * n) ** 2 + (at[None, :] - z * n) ** 2 < (radius * n) ** 2
        image += mu * disk.reshape(n, oversample, n, oversample).mean(axis=(1, 3))
    return image


def sinogram(n: int, angles_deg: np.ndarray, axis: float, oversample: int = 4) -> np.ndarray:
    """-ln T (n_angles, n), averaged over each pixel."""
    theta = np.deg2rad(angles_deg)[:, None]
    u = np.arange(n) - axis
    p = np.zeros((len(angles_deg), n))
    for y, z, radius, mu in DISKS:
        middle = n * (y * np.cos(theta) - z * np.sin(theta))
        for s in (np.arange(oversample) - (oversample - 1) / 2) / oversample:
            chord = np.sqrt(np.maximum((radius * n) ** 2 - (u + s - middle) ** 2, 0))
            p += 2 * mu * chord / oversample
    return p.astype(np.float32)


def errors(image: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """(inside in %, place in voxels, rms in %)."""
    n = len(image)
    y = (np.arange(n) - (n - 1) / 2)[:, None]
    z = y.T
    inside, place = 0.0, 0.0
    for k, (y0, z0, radius, _) in enumerate(DISKS):
        r = np.hypot(y - y0 * n, z - z0 * n)
        if k == 0:  # where no small disk is
            clean = (r < 0.9 * radius * n) & (np.abs(truth - DISKS[0][3]) < 1e-6)
            for a, b, margin, _ in DISKS[1:]:
                clean &= np.hypot(y - a * n, z - b * n) > margin * n + 4
            level = truth[clean].mean()
            inside = max(inside, abs(image[clean].mean() / level - 1))
        else:
            core, ring = r < radius * n - 3, r < radius * n + 4
            inside = max(inside, abs(image[core].mean() / truth[core].mean() - 1))
            weight = np.where(ring, image - DISKS[0][3], 0)
            found = (weight * y).sum() / weight.sum(), (weight * z).sum() / weight.sum()
            place = max(place, abs(found[0] - y0 * n), abs(found[1] - z0 * n))
    circle = np.hypot(y, z) < 0.48 * n
    rms = np.sqrt(np.mean((image - truth)[circle] ** 2)) / DISKS[0][3]
    return 100 * inside, place, 100 * rms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--projections", type=int, default=900)
    parser.add_argument("--backends", nargs="+", default=list(available_backends()))
    parser.add_argument("--filter", default="ramp")
    options = parser.parse_args()
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        pass
    print(f"{model}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    gpu = ""
    if "torch" in options.backends:
        import torch

        gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
        print(f"GPU: {gpu}")
    angles = np.arange(options.projections) * 180.0 / options.projections
    print(f"{options.projections} projections, filter {options.filter}")
    print(
        f"{'backend':10}{'size':>6}{'s/slice':>10}{'CPU s':>8}{'inside %':>10}{'place vx':>10}{'rms %':>8}"
    )
    for n in options.sizes:
        axis = (n - 1) / 2 + 3.3
        one = sinogram(n, angles, axis)
        truth = phantom(n)
        for backend in options.backends:
            slices = SLICES[backend] * (16 if backend == "torch" and gpu not in ("", "none") else 1)
            stack = np.broadcast_to(one, (slices, *one.shape))
            # the first call compiles, and loads the library
            reconstruct_slices(
                one[None, :8], angles[:8], axis, 1.0, SliceGrid(n), options.filter, backend
            )
            wall, cpu = time.perf_counter(), time.process_time()
            images = reconstruct_slices(
                stack, angles, axis, 1.0, SliceGrid(n), options.filter, backend
            )
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            inside, place, rms = errors(images[0], truth)
            print(
                f"{backend:10}{n:6}{wall / slices:10.3f}{cpu / slices:8.3f}{inside:10.2f}{place:10.3f}{rms:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
