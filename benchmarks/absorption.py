"""Speed and accuracy of the absorption factors.

    tools/dials-env python benchmarks/absorption.py [volume] [curve] [large] [--nproc N] [--device D]

volume: the shared benchmark (../shared/data/absorption/benchmark.npz beside the checkout; 1.63 million
    crystal voxels, 200 reflections with exact reference transmissions) with its 2000 reflections and
    with 300 000 spread over 360 degrees; exact tracing for comparison.
curve: error against time for tolerances from 2 % to 0.05 %.
large: 1000 x 1000 x 1500 voxels of 0.3 um, from the file to the column, with dials.anacor_absorption
    (needs DIALS; writes a temporary folder of 2 GB).
Without names: all three. Times are wall clock; every line has the processor time beside it, since other
work on the machine spoils the first and not the second.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from anacor_dials.absorption.attenuating_volume import prepare_volume
from anacor_dials.absorption.crystal_points import CrystalPoints
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.engines import select_engine
from anacor_dials.absorption.factors import AbsorptionFactors, absorption_factors
from anacor_dials.absorption.ray_tracing import use_threads
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.sample.frames import rotation_about
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.sample.volumes import LabelVolume

SHARED = Path(__file__).resolve().parents[2] / "shared/data/absorption/benchmark.npz"
N_LARGE = 300_000


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    except OSError:
        pass
    return platform.processor()


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, wall seconds, processor seconds)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def errors(transmission: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """rms error in percent: raw, and after one global scale."""
    ratio = transmission / reference
    scaled = ratio / ratio.mean()
    return tuple(100 * float(np.sqrt(np.mean((r - 1) ** 2))) for r in (ratio, scaled))


class Benchmark:
    """The shared volume, its reflections and 300 000 like them."""

    def __init__(self) -> None:
        if not SHARED.exists():
            sys.exit(f"There is no {SHARED}.")
        data = np.load(SHARED)
        self.labels = LabelVolume(
            data["labels"], data["voxel_size_um"], None, tuple(data["label_names"])
        )
        self.mu = data["mu_per_um"]
        self.to_source, self.exit = data["to_source"], data["exit"]
        self.index, self.reference = data["reference_index"], data["reference_transmission"]
        self.own = Directions.of_one_sweep(self.to_source, self.exit)
        # the same scattering geometry at random angles of a 360 degree scan; the 200 reflections
        # with a reference come last
        rng = np.random.default_rng(7)
        n = N_LARGE - len(self.index)
        chosen = rng.integers(0, len(self.exit), n)
        turned = rotation_about((1, 0, 0), rng.uniform(0, 360, n))
        self.many = Directions.of_one_sweep(
            np.concatenate(
                [
                    np.einsum("nij,nj->ni", turned, self.to_source[chosen]),
                    self.to_source[self.index],
                ]
            ),
            np.concatenate(
                [np.einsum("nij,nj->ni", turned, self.exit[chosen]), self.exit[self.index]]
            ),
        )

    def compute(
        self, directions: Directions, **settings: Any
    ) -> tuple[AbsorptionFactors, float, float]:
        tracing = Tracing(**settings)
        return timed(lambda: absorption_factors(self.labels, self.mu, directions, tracing))


def row(
    name: str, factors: AbsorptionFactors, reference: tuple[float, float], wall: float, cpu: float
) -> None:
    accuracy = factors.accuracy
    print(
        f"{name:34} {accuracy.method:7} {accuracy.n_points:8d} {accuracy.n_directions:7d} "
        f"{reference[0]:7.3f} {reference[1]:7.3f} {100 * accuracy.rms_error:7.3f} {wall:7.1f} {cpu:7.1f}",
        flush=True,
    )


def heading(text: str) -> None:
    print(f"\n{text}")
    print(
        f"{'':34} {'method':7} {'points':>8} {'rays':>7} {'raw %':>7} {'scaled':>7} {'own %':>7} "
        f"{'wall s':>7} {'cpu s':>7}"
    )


def run_volume(benchmark: Benchmark, settings: dict[str, Any]) -> None:
    heading(
        "Shared volume; errors against its exact reference (raw; after one scale) and as measured"
    )
    for name, directions, last in (
        ("2000 reflections, 0.1 %", benchmark.own, benchmark.index),
        ("300 000 reflections, 0.1 %", benchmark.many, slice(-len(benchmark.index), None)),
        ("300 000 reflections, 0.1 % again", benchmark.many, slice(-len(benchmark.index), None)),
    ):
        factors, wall, cpu = benchmark.compute(directions, **settings)
        row(name, factors, errors(factors.transmission[last], benchmark.reference), wall, cpu)
    print(f"peak memory of this process {peak_gb():.2f} GB")
    engine = select_engine(settings["device"])
    use_threads(settings["nproc"])
    volume = prepare_volume(benchmark.labels, benchmark.mu)
    points = CrystalPoints(benchmark.labels).draw(20_000, np.random.default_rng(0)).voxels
    some = benchmark.index[:40]
    (exact, _), wall, cpu = timed(
        lambda: engine.exact_transmission(
            volume, points, benchmark.to_source[some], benchmark.exit[some]
        )
    )
    raw, scaled = errors(exact, benchmark.reference[:40])
    per_reflection = wall / len(some)
    print(
        f"exact tracing, 20 000 points: raw {raw:.3f} %, scaled {scaled:.3f} %, "
        f"{1e3 * per_reflection:.1f} ms per reflection (cpu {1e3 * cpu / len(some):.1f}), "
        f"{N_LARGE * per_reflection / 3600:.1f} h for 300 000"
    )


def run_curve(benchmark: Benchmark, settings: dict[str, Any]) -> None:
    heading("Error against time, 300 000 reflections")
    for tolerance in (2e-2, 1e-2, 5e-3, 2e-3, 1e-3, 5e-4):
        factors, wall, cpu = benchmark.compute(benchmark.many, tolerance=tolerance, **settings)
        reference = errors(factors.transmission[-len(benchmark.index) :], benchmark.reference)
        row(f"tolerance {100 * tolerance:g} %", factors, reference, wall, cpu)


def large_volume() -> LabelVolume:
    """1000 x 1000 x 1500 voxels of 0.3 um: crystal in a drop on a loop, written down as ellipsoids."""
    shape = (1000, 1000, 1500)
    labels = np.zeros(shape, dtype=np.uint8)
    y, z = np.meshgrid(np.arange(shape[1]) - 499.5, np.arange(shape[2]) - 749.5, indexing="ij")
    for i in range(shape[0]):
        x = i - 499.5
        plane = labels[i]
        plane[(x / 470) ** 2 + (y / 400) ** 2 + (z / 600) ** 2 < 1] = 1
        ring = (np.hypot(x, y) - 400) ** 2 + (z / 4) ** 2
        plane[ring < 30**2] = 2
        cut = (np.abs(x + 0.3 * z) < 260) & (np.abs(y) < 230) & (np.abs(z - 0.2 * x) < 380)
        plane[cut & (np.abs(x + y + 0.5 * z) < 420)] = 3
    return LabelVolume(labels, 0.3)  # type: ignore[arg-type]


def run_large(benchmark: Benchmark, settings: dict[str, Any]) -> None:
    from dials.array_family import flex
    from dxtbx import flumpy
    from dxtbx.model import BeamFactory, Experiment, ExperimentList, GoniometerFactory, Scan

    print("\n1000 x 1000 x 1500 voxels of 0.3 um, 300 000 reflections, from file to column")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labels = large_volume()
        print(f"{labels!r}, {labels.counts().tolist()} voxels by label")
        write_sample_file(folder / "tomo.h5", labels=labels, mu_per_um=benchmark.mu)
        del labels
        print(f"file: {(folder / 'tomo.h5').stat().st_size / 1e6:.0f} MB")
        experiments = ExperimentList(
            [
                Experiment(
                    beam=BeamFactory.simple(4.13),
                    goniometer=GoniometerFactory.known_axis((1, 0, 0)),
                    scan=Scan((1, 3600), (0.0, 0.1)),
                    identifier="benchmark",
                )
            ]
        )
        experiments.as_file(folder / "models.expt")
        rng = np.random.default_rng(1)
        table = flex.reflection_table()
        table["id"] = flex.int(N_LARGE, 0)
        table["miller_index"] = flex.miller_index(N_LARGE, (1, 2, 3))
        s1 = np.column_stack([rng.uniform(-0.6, 0.6, N_LARGE), rng.normal(size=(N_LARGE, 2))])
        s1[:, 1:] *= (np.sqrt(1 - s1[:, 0] ** 2) / np.linalg.norm(s1[:, 1:], axis=1))[:, None]
        table["s1"] = flumpy.vec_from_numpy(s1 / 4.13)
        xyz = np.zeros((N_LARGE, 3))
        xyz[:, 2] = rng.uniform(0, 2 * np.pi, N_LARGE)
        table["xyzcal.mm"] = flumpy.vec_from_numpy(xyz)
        table.experiment_identifiers()[0] = "benchmark"
        table.as_file(folder / "observations.refl")
        command = ["dials.anacor_absorption", "models.expt", "observations.refl", "tomo.h5"]
        if settings["nproc"]:
            command.append(f"nproc={settings['nproc']}")
        command.append(f"device={settings['device']}")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True)
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"wall {wall:.1f} s, cpu {cpu:.1f} s, peak memory {after.ru_maxrss / 1e6:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=["volume", "curve", "large", []])
    parser.add_argument("--nproc", type=int, default=None)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    arguments = parser.parse_args()
    parts = arguments.parts or ["volume", "curve", "large"]
    logging.getLogger("dials").setLevel(logging.ERROR)
    settings = {"nproc": arguments.nproc, "device": arguments.device}
    threads = use_threads(arguments.nproc)
    print(
        f"{processor()}, {os.cpu_count()} cores, {threads} threads, load {os.getloadavg()[0]:.1f}"
    )
    benchmark = Benchmark()
    absorption_factors(  # compile, or load what was compiled
        benchmark.labels, benchmark.mu, benchmark.own, Tracing(tolerance=0.05, **settings)
    )
    if "volume" in parts:
        run_volume(benchmark, settings)
    if "curve" in parts:
        run_curve(benchmark, settings)
    if "large" in parts:
        run_large(benchmark, settings)


if __name__ == "__main__":
    main()
