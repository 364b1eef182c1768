"""From a raw scan of I23's size to the column of factors: time and memory of each step.

    tools/dials-env python benchmarks/i23_size.py [FOLDER] [--pixels 1024] [--projections 900] [--one-command | --labels]

A sample of ellipsoids (a drop with a crystal, a loop and a hole), some 150 um across, in a field of view of
307 um, whose projections have a closed form; 16-bit counts with noise, as NXtomo; and a diffraction data set of
180 degrees. Then each command runs in a process of its own: seconds of wall and processor, and the largest
memory that it held. What was made is kept in FOLDER (i23_size) for the next run. With --pixels 2048 the scan takes 8 GB
on the disk, and its tomogram another 7 GB while a command runs. --labels compares the labels in
FOLDER's tomo.h5 with the ellipsoids: Dice and recall, and the factors that follow from either.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numba
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from anacor_dials.sample.frames import FloatArray

FIELD_UM = 307.2
ENERGY_KEV = 3.5
COUNTS = 8000.0
DARK = 100.0
# centre and semi-axes along X, Y, Z in um, mu in 1/um; what lies within another adds to it
BODIES = np.array(
    [
        (0.0, 4.0, -3.0, 75.0, 68.0, 60.0, 0.0129),  # drop
        (-6.0, -2.0, 5.0, 34.0, 22.0, 28.0, -0.0018),  # crystal
        (10.0, 50.0, -2.0, 45.0, 5.0, 12.0, -0.0023),  # loop
        (-95.0, 5.0, 0.0, 60.0, 7.0, 7.0, 0.0106),  # its stem
    ]
)


@numba.njit(parallel=True, fastmath=True, cache=True)
def projection(
    angle: float, n: int, pixel: float, bodies: NDArray[np.float64]
) -> NDArray[np.float64]:
    """-ln T (n, n): rows along X, columns along u = y cos - z sin, by the chords of ellipsoids."""
    out = np.zeros((n, n))
    cos, sin = np.cos(angle), np.sin(angle)
    for i in numba.prange(n):
        x = (i - (n - 1) / 2) * pixel
        for e in range(len(bodies)):
            cx, cy, cz, a, b, c, mu = bodies[e]
            rest = 1.0 - ((x - cx) / a) ** 2
            if rest <= 0:
                continue
            reach2 = (b * cos) ** 2 + (c * sin) ** 2
            middle = cy * cos - cz * sin
            for j in range(n):
                t = (j - (n - 1) / 2) * pixel - middle
                under = rest - t * t / reach2
                if under > 0:
                    out[i, j] += mu * 2 * b * c / np.sqrt(reach2) * np.sqrt(under)
    return out


def write_scan(path: Path, n: int, n_projections: int) -> None:
    """An NXtomo file: 20 flats, 10 darks, the projections of half a turn, 20 flats."""
    rng = np.random.default_rng(0)
    keys = np.array([1] * 20 + [2] * 10 + [0] * n_projections + [1] * 20)
    angles = np.zeros(len(keys))
    angles[keys == 0] = np.arange(n_projections) * 180.0 / n_projections
    column = 1 + 0.1 * np.sin(np.arange(n) / 90.0)
    beam = (COUNTS * column[:, None] * column[None, :]).astype(np.float32)
    pixel = FIELD_UM / n
    noise = [rng.standard_normal((n, n)).astype(np.float32) for _ in range(7)]
    with h5py.File(path.with_suffix(".part"), "w") as file:
        entry = file.create_group("entry1/tomo_entry")
        entry.attrs["NX_class"] = "NXsubentry"
        file["entry1"].attrs["NX_class"] = "NXentry"
        entry["definition"] = "NXtomo"
        images = entry.create_dataset(
            "instrument/detector/data", (len(keys), n, n), dtype=np.uint16, chunks=(1, n, n)
        )
        entry["instrument/detector/image_key"] = keys
        for name in ("x_pixel_size", "y_pixel_size"):
            entry[f"instrument/detector/{name}"] = pixel * 1e-6
            entry[f"instrument/detector/{name}"].attrs["units"] = "m"
        entry["instrument/beam/incident_energy"] = ENERGY_KEV
        entry["instrument/beam/incident_energy"].attrs["units"] = "keV"
        entry["data/rotation_angle"] = angles
        entry["data/rotation_angle"].attrs["units"] = "deg"
        for k in tqdm(range(len(keys)), "Writing the scan", disable=None):
            mean = np.zeros_like(beam)
            if keys[k] != 2:
                mean = beam
            if keys[k] == 0:
                absorbed = projection(np.deg2rad(angles[k]), n, pixel, BODIES)
                mean = beam * np.exp(-absorbed).astype(np.float32)
            # Gaussian noise of the counts' size, its pattern moved about: fast, and never twice the same
            shift = rng.integers(0, n, 2)
            pattern = np.roll(noise[k % len(noise)], shift, axis=(0, 1))
            images[k] = np.rint(mean + np.sqrt(mean) * pattern + DARK).clip(0, 65535)
    path.with_suffix(".part").rename(path)


def write_reflections(folder: Path) -> int:
    """models.expt and observations.refl of a sweep of 180 degrees; how many reflections."""
    from anacor_dials.sample.materials import wavelength_from_energy
    from anacor_dials.simulation.diffraction_data import simulate_diffraction, write_diffraction
    from anacor_dials.simulation.diffraction_settings import DiffractionSettings, Sweep
    from anacor_dials.simulation.samples import cut_box_sample

    settings = DiffractionSettings(
        wavelength=wavelength_from_energy(ENERGY_KEV),
        d_min=3.0,
        sweeps=[Sweep(omega_start=0, omega_range=180, image_width=0.1)],
        n_points=32,
    )
    experiments, reflections = simulate_diffraction(
        cut_box_sample(), np.random.default_rng(3), settings
    )
    write_diffraction(
        experiments, reflections, folder / "models.expt", folder / "observations.refl"
    )
    return len(reflections)


def run(name: str, command: list[str], folder: Path) -> bool:
    """Runs a command and prints its row; False where it failed."""
    start = time.perf_counter()
    with open(folder / f"{name}.printed.log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    failed = os.waitstatus_to_exitcode(status) != 0
    print(
        f"| {name} | {wall:.0f} | {usage.ru_utime + usage.ru_stime:.0f} | {usage.ru_maxrss / 1e6:.1f} |"
        + (f" failed: see {name}.printed.log" if failed else ""),
        flush=True,
    )
    return not failed


def true_labels(shape: tuple[int, ...], size: float, centre: FloatArray) -> NDArray[np.uint8]:
    """The labels of the voxels' centres: drop and stem first, the others over them."""
    labels = np.zeros(shape, dtype=np.uint8)
    x, y, z = ((np.arange(n) - c) * size for n, c in zip(shape, centre, strict=True))
    for body, label in ((3, 2), (0, 1), (2, 2), (1, 3)):
        cx, cy, cz, a, b, c, _ = BODIES[body]
        across = ((y - cy) / b)[:, None] ** 2 + ((z - cz) / c)[None] ** 2
        for i, along in enumerate(((x - cx) / a) ** 2):
            if along < 1:
                labels[i][across < 1 - along] = label
    return labels


def compare_labels(path: Path) -> None:
    """Prints Dice and recall of each material, and the rms difference of the factors."""
    from anacor_dials.absorption.factors import absorption_factors
    from anacor_dials.absorption.tracing import Tracing
    from anacor_dials.jobs.label_uncertainty import random_sweep
    from anacor_dials.sample.tomogram_files import read_sample_file
    from anacor_dials.sample.volumes import LabelVolume

    labels = read_sample_file(path, tomogram=False).labels
    if labels is None:
        sys.exit(f"{path} holds no labels; run the steps first.")
    size = float(labels.voxel_size_um[0])
    truth = true_labels(labels.shape, size, labels.centre)
    print("| material | Dice | recall |\n|---|---|---|")
    for label, name in enumerate(labels.names[1:], 1):
        here, there = labels.values == label, truth == label
        both, n = np.count_nonzero(here & there), np.count_nonzero(there)
        print(f"| {name} | {2 * both / (np.count_nonzero(here) + n):.3f} | {both / n:.3f} |")
    drop, crystal, loop, _ = BODIES[:, 6]
    mu = np.array([0.0, drop, drop + loop, drop + crystal])
    directions = random_sweep(300, np.random.default_rng(0))
    found, true = (
        absorption_factors(
            LabelVolume(values, labels.voxel_size_um, labels.centre, labels.names),
            mu, directions, Tracing(1.5e-3),
        ).transmission
        for values in (labels.values, truth)
    )  # fmt: skip
    ratio = found / true
    print(f"\nfactors: {100 * np.std(ratio) / np.mean(ratio):.2f} % rms after one scale")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("i23_size"))
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--projections", type=int, default=900)
    parser.add_argument(
        "--one-command", action="store_true", help="dials.anacor_absorption on the scan"
    )
    parser.add_argument("--labels", action="store_true", help="compares labels with the truth")
    given = parser.parse_args()
    folder = given.folder / f"{given.projections}x{given.pixels}"
    if given.labels:
        compare_labels(folder / "tomo.h5")
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "scan.nxs").exists():
        write_scan(folder / "scan.nxs", given.pixels, given.projections)
    if not (folder / "observations.refl").exists():
        print(f"{write_reflections(folder)} reflections")
    print(
        f"\n{given.projections} projections of {given.pixels} x {given.pixels} pixels, "
        f"{len(os.sched_getaffinity(0))} cores, {platform.processor() or platform.machine()}\n\n"
        "| step | wall s | CPU s | memory GB |\n|---|---|---|---|"
    )
    files = ["models.expt", "observations.refl"]
    if given.one_command:
        sys.exit(not run("all", ["dials.anacor_absorption", *files, "scan.nxs"], folder))
    steps = {
        "reconstruct": ["dials.anacor_reconstruct", "scan.nxs", "output.tomogram=tomo.h5"],
        "segment": ["dials.anacor_segment", "tomo.h5"],
        "absorption": ["dials.anacor_absorption", *files, "tomo.h5"],
    }
    for name, command in steps.items():
        if not run(name, command, folder):
            sys.exit(1)


if __name__ == "__main__":
    main()
