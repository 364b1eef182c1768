"""What iterative reconstruction is worth on hard scans, and how long it takes.

    tools/dials-env python benchmarks/iterative.py hard [pixels]
    tools/dials-env python benchmarks/iterative.py labels
    tools/dials-env python benchmarks/iterative.py time [pixels] [projections] [steps]

Slices of a drop with a crystal and a piece of loop, ellipses whose projections have a closed form. The times are
of the processor, so that other programs on the machine hardly change them; divide them by the cores in use.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from anacor_dials.tomography import iterative
from anacor_dials.tomography.backprojection import reconstruct_slices
from anacor_dials.tomography.iterative import TotalVariation, noise_of
from anacor_dials.tomography.slice_grid import SliceGrid

# centre y, z, semi-axes along y, z, mu times the width of the image, in widths: drop, crystal, loop
ELLIPSES = (
    (0.0, 0.0, 0.375, 0.3125, 1.73), (0.06, -0.04, 0.146, 0.094, -0.115), (-0.19, 0.10, 0.03, 0.094, -0.38),
)  # fmt: skip
SLICES = 8
SCANS = {
    "60 projections of 3000 photons": (np.arange(60) * 3.0, 3000),
    "300 projections of 300 photons": (np.arange(300) * 0.6, 300),
    "200 projections over 140 degrees": (np.arange(200) * 0.7, 3000),
}


def transmissions(
    angles_deg: NDArray[np.float64], n: int, oversample: int = 4
) -> NDArray[np.float64]:
    """(n_angles, n), averaged over pixels."""
    u = ((np.arange(n * oversample) + 0.5) / oversample - n / 2) / n
    total = np.zeros((len(angles_deg), len(u)))
    for k, angle in enumerate(np.deg2rad(angles_deg)):
        for y, z, a, b, mu in ELLIPSES:
            reach = np.hypot(a * np.cos(angle), b * np.sin(angle))
            t = (u - y * np.cos(angle) + z * np.sin(angle)) / reach
            total[k] += mu * 2 * a * b / reach * np.sqrt(np.maximum(1 - t * t, 0))
    return np.exp(-total).reshape(len(angles_deg), n, oversample).mean(axis=2)


def edge_width(image: NDArray[np.float32]) -> float:
    """From 10 to 90 % of the drop's outer edge, pixels."""
    n = len(image)
    y, z, a, b = (v * n for v in ELLIPSES[0][:4])
    t = np.linspace(-6, 6, 121)
    profiles = []
    for angle in np.linspace(0, 2 * np.pi, 72, endpoint=False):
        out = np.array([np.cos(angle) / a, np.sin(angle) / b])
        out /= np.hypot(*out)
        middle = ((n - 1) / 2 + y + a * np.cos(angle), (n - 1) / 2 + z + b * np.sin(angle))
        place = [m + t * o for m, o in zip(middle, out, strict=True)]
        profiles.append(map_coordinates(image, place, order=1))
    profile = np.mean(profiles, axis=0)
    high, low = profile[:25].mean(), profile[-25:].mean()
    share = (profile - low) / (high - low)
    return float(np.interp(-0.1, -share, t) - np.interp(-0.9, -share, t))


def hard(n: int) -> None:
    """Noise, mu of the crystal and width of edges, of both methods."""
    grid, axis = SliceGrid(n), (n - 1) / 2
    y, z = np.mgrid[:n, :n] / n - (n - 1) / (2 * n)
    cy, cz, a, b, _ = ELLIPSES[1]
    crystal = ((y - cy) / (a - 2 / n)) ** 2 + ((z - cz) / (b - 2 / n)) ** 2 <= 1
    mu = (ELLIPSES[0][4] + ELLIPSES[1][4]) / n
    print("| scan | method | mu of the crystal | noise in it | edge (pixels) | CPU s per slice |")
    print("|---|---|---|---|---|---|")
    for name, (angles, photons) in SCANS.items():
        rng = np.random.default_rng(0)
        t = transmissions(angles, n)
        counts = [rng.poisson(photons * t) / photons for _ in range(SLICES)]
        sinograms = -np.log(np.maximum(np.stack(counts), 1e-3)).astype(np.float32)
        start = time.process_time()
        fbp = reconstruct_slices(sinograms, angles, axis, 1.0, grid, "shepp-logan")
        middle = time.process_time()
        solver = TotalVariation.of_scan(angles, axis, n, (1.0, 1.0), grid, noise_of(sinograms))
        found = solver.slices(sinograms)
        end = time.process_time()
        for method, values, seconds in (
            ("fbp", fbp, middle - start),
            ("iterative", found, end - middle),
        ):
            inside = values[:, crystal]
            print(
                f"| {name} | {method} | {100 * (inside.mean() / mu - 1):+.2f} % | "
                f"{100 * inside.std(axis=1).mean() / mu:.2f} % | {edge_width(values.mean(axis=0)):.2f} | "
                f"{seconds / SLICES:.2f} |",
                flush=True,
            )


def labels() -> None:
    """Dice of the crystal and recall of the loop, of labels from tomograms by both methods.

    The ellipsoids of i23_size.py in 256 x 256 pixels of 1.2 um.
    """
    from i23_size import BODIES, FIELD_UM, projection, true_labels

    from anacor_dials.jobs.reconstruct import Reconstruction
    from anacor_dials.jobs.segment import SegmentationSettings, segment_sample
    from anacor_dials.sample.volumes import Tomogram

    n, half = 256, 64
    pixel, axis = FIELD_UM / n, (n - 1) / 2
    rows = slice(n // 2 - half, n // 2 + half)
    grid = SliceGrid(n, (n // 2 - half, n // 2 + half), (n // 2 - half, n // 2 + half))
    shape, centre = (2 * half,) * 3, np.full(3, half - 0.5)
    truth = true_labels(shape, pixel, centre)
    print("| scan | labels from | Dice of the crystal | recall of the loop |\n|---|---|---|---|")
    for name, (angles, photons) in SCANS.items():
        rng = np.random.default_rng(0)
        images = np.stack([projection(a, n, pixel, BODIES)[rows] for a in np.deg2rad(angles)])
        counts = rng.poisson(photons * np.exp(-images)) / photons
        sinograms = -np.log(np.maximum(counts, 1e-3)).astype(np.float32).transpose(1, 0, 2).copy()
        solver = TotalVariation.of_scan(angles, axis, n, (pixel, pixel), grid, noise_of(sinograms))
        made = {
            "fbp": lambda s=sinograms, a=angles: reconstruct_slices(s, a, axis, pixel, grid),
            "iterative": lambda s=sinograms, solver=solver: solver.slices(s),
        }
        for method, reconstruct in made.items():
            volume = reconstruct()
            tomogram = Tomogram(np.ascontiguousarray(volume), np.full(3, pixel), centre)
            try:
                found = segment_sample(
                    Reconstruction(tomogram, energy_keV=3.5),
                    SegmentationSettings(uncertainty=False),
                ).labels.values
            except ValueError as error:
                print(f"| {name} | {method} | {error} | |", flush=True)
                continue
            crystal, there = found == 3, truth == 3
            dice = 2 * np.count_nonzero(crystal & there) / (crystal.sum() + there.sum())
            recall = np.mean(found[truth == 2] == 2)
            print(f"| {name} | {method} | {dice:.3f} | {recall:.3f} |", flush=True)


def measure(n: int, n_angles: int, steps: int) -> None:
    """CPU seconds of a slice, by some of the steps."""
    angles = np.arange(n_angles) * 180.0 / n_angles
    sinograms = np.repeat(-np.log(transmissions(angles, n))[None], iterative.LANES - 2, axis=0)
    sinograms = sinograms.astype(np.float32)
    grid = SliceGrid(n)
    small = TotalVariation.of_scan(angles[:3], (n - 1) / 2, n, (1.0, 1.0), grid, 0.01)
    small.slices(sinograms[:, :3])  # compiled
    start = time.process_time()
    solver = TotalVariation.of_scan(angles, (n - 1) / 2, n, (1.0, 1.0), grid, 0.01)
    once = time.process_time() - start
    usual, iterative.STEPS = iterative.STEPS, steps
    start = time.process_time()
    solver.slices(sinograms)
    per_slice = (time.process_time() - start) * usual / steps / len(sinograms)
    print(
        f"{n} x {n} voxels, {n_angles} projections, {usual} steps: {per_slice:.2f} s per slice "
        f"(from {steps} steps), {once:.1f} s once; {n} slices {(n * per_slice + once) / 60:.1f} min of one core"
    )


def main() -> None:
    what, *numbers = sys.argv[1:] or ["hard"]
    values = [int(v) for v in numbers]
    if what == "hard":
        hard(*(values or [96]))
    elif what == "labels":
        labels()
    else:
        measure(*(values + [256, 900, 4][len(values) :]))


if __name__ == "__main__":
    main()
