"""Seconds of every step of a virtual scan, and of virtual diffraction data.

  tools/dials-env python benchmarks/simulation.py [--size 1024] [--oversampling 2] [--projections 5]
                                                  [--slices 1] [--devices cpu cuda] [--diffraction]

One projection of a crystal in its drop and loop that fill most of the image, 0.3 um pixels, 3.5 keV, 10 mm.
Wall seconds are those of this run (other work on the machine lengthens them); CPU seconds are summed over
threads. The first projection, which compiles and plans, is left out. Published for comparison: 0.7 s per
projection of a GPU simulator.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from anacor_dials.simulation.detector import Sensor
from anacor_dials.simulation.samples import random_sample
from anacor_dials.simulation.scan import ScanSettings, VirtualScan
from anacor_dials.simulation.wavefield import detector_intensity, on_device, sample_factor


def timed(function: Callable[[int], Any], n: int, device: str) -> tuple[float, float]:
    """Mean wall and CPU seconds of n calls, after one that is not counted."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    function(0)
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(1, n + 1):
        function(number)
    wait()
    return (time.perf_counter() - wall) / n, (time.process_time() - cpu) / n


def scan_table(size: int, oversampling: int, slices: int, n: int, device: str) -> None:
    """Prints the steps of one projection."""
    settings = ScanSettings(
        image_shape=(size, size),
        oversampling=oversampling,
        n_slices=slices,
        n_projections=max(n, 2),
    )
    width = 0.3 * size
    sample = random_sample(
        np.random.default_rng(2024),
        0.2 * width,
        shape="polyhedron",
        film=False,
        stem_length_um=30.0,
    )
    scan = VirtualScan(sample, settings, np.ones((1, size, size)), device)
    mu, delta = sample.mu_per_um(settings.energy_keV), sample.delta(settings.energy_keV)
    maps = on_device(scan.thicknesses(0.0)[1:], device, settings.precision)
    layers = [sample_factor(maps[:, k], mu[1:], delta[1:], 3.5) for k in range(slices)]
    _, between, to_detector = scan._transfers
    incident = scan._incident[0]
    sensor = Sensor.drawn(settings.detector, (size, size), np.random.default_rng(1))
    generator = torch.Generator(device=device).manual_seed(1)
    image = scan.intensity(0.0)

    def factors(_: int) -> None:
        for k in range(slices):
            sample_factor(maps[:, k], mu[1:], delta[1:], 3.5)

    steps: dict[str, Callable[[int], Any]] = {
        "thickness maps (CPU)": lambda k: scan.thicknesses(7.0 * k),
        "thicknesses to the device": lambda k: on_device(
            np.zeros(tuple(maps.shape)), device, settings.precision
        ),
        "refraction and absorption": factors,
        "propagation": lambda k: detector_intensity(incident, layers, between, to_detector),
        "blur and pixels": lambda k: scan.flat_intensity(scan.beam_flats[0]),
        "noise": lambda k: sensor.counts(image, generator),
        "whole projection": lambda k: sensor.counts(scan.intensity(7.0 * k), generator),
    }
    faces = sum(len(m.faces) for m in sample.meshes)
    grid = " x ".join(str(m) for m in scan.grid.shape)
    print(
        f"\n{size} x {size} pixels, {oversampling}x, grid {grid}, {slices} slice(s), {faces} faces, {device}"
    )
    print(f"{'step':28s} {'wall s':>8s} {'CPU s':>8s}")
    for name, step in steps.items():
        wall, cpu = timed(step, n, device)
        print(f"{name:28s} {wall:8.3f} {cpu:8.3f}")


def diffraction_table() -> None:
    """Prints the time of a data set as the demo makes it."""
    from anacor_dials.simulation.diffraction_data import simulate_diffraction
    from anacor_dials.simulation.diffraction_settings import DiffractionSettings
    from anacor_dials.simulation.samples import cut_box_sample

    sample = cut_box_sample()
    simulate_diffraction(sample, np.random.default_rng(3), DiffractionSettings(d_min=8.0))
    wall, cpu = time.perf_counter(), time.process_time()
    _, table = simulate_diffraction(sample, np.random.default_rng(3))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"\ndiffraction data: {len(table)} reflections in {wall:.1f} s ({cpu:.1f} s CPU)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--oversampling", type=int, default=2)
    parser.add_argument("--projections", type=int, default=5)
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--devices", nargs="*", default=None)
    parser.add_argument("--diffraction", action="store_true")
    args = parser.parse_args()
    devices = args.devices or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    load = os.getloadavg()[0]
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, torch {torch.__version__}"
    )
    for device in devices:
        scan_table(args.size, args.oversampling, args.slices, args.projections, device)
    if args.diffraction:
        diffraction_table()


if __name__ == "__main__":
    main()
