"""The main job from end to end on a small virtual sample; ``make demo`` runs it.

A crystal of thaumatin in its drop and loop, a bipyramid whose faces are the lattice planes {1 0 1} of the
orientation that diffracts; a rotation data set of it on I23's detector at 4.13 A with known absorption; then
what a user does: ``dials.anacor_absorption``, and ``dials.scale`` without and with its factors. Prints the
faces that were found in the labels, and the merging statistics side by side.

    tools/dials-env python examples/demo.py [FOLDER]      (FOLDER: demo)
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from dials.array_family import flex
from dxtbx import flumpy

from anacor_dials.diffraction.merging import compare_merging_statistics
from anacor_dials.diffraction.scaling import STRATEGIES, ScaledData, ScalingJob, scale_all
from anacor_dials.report.comparison import format_table
from anacor_dials.sample.materials import energy_from_wavelength
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.simulation.diffraction_data import (
    simulate_diffraction,
    write_diffraction,
)
from anacor_dials.simulation.diffraction_settings import DiffractionSettings, Sweep
from anacor_dials.simulation.samples import demo_sample

WAVELENGTH = 4.13  # Angstrom; 3.0 keV
D_MIN = 3.5
VOXEL_UM = 1.0


def say(text: str) -> None:
    print(text, flush=True)


def run(command: list[str], folder: Path) -> None:
    """Runs a command as a user would, its output shown."""
    say(f"\n$ cd {folder} && {' '.join(command)}")
    result = subprocess.run(command, cwd=folder)
    if result.returncode:
        sys.exit(f"{command[0]} failed with exit status {result.returncode}.")


def simulate(folder: Path) -> None:
    """Writes tomo.h5, models.expt and observations.refl of a virtual sample."""
    sample = demo_sample()
    energy = energy_from_wavelength(WAVELENGTH)
    labels = sample.label_volume(VOXEL_UM)
    write_sample_file(
        folder / "tomo.h5", labels=labels, mu_per_um=sample.mu_per_um(energy), energy_keV=energy
    )
    settings = DiffractionSettings(
        wavelength=WAVELENGTH,
        d_min=D_MIN,
        sweeps=[Sweep(omega_start=0, omega_range=180, image_width=0.1)],
    )
    experiments, reflections = simulate_diffraction(sample, np.random.default_rng(3), settings)
    write_diffraction(
        experiments, reflections, folder / "models.expt", folder / "observations.refl"
    )
    say(f"{labels!r}\n{len(reflections)} reflections at {WAVELENGTH} A on I23's detector")


def say_faces(folder: Path) -> None:
    """Names the faces that dials.anacor_absorption found in the labels, and those that are there."""
    record = json.loads((folder / "anacor_absorption.json").read_text(encoding="utf-8"))
    (crystal,) = record["faces"]["crystals"]
    planes = [face for face in crystal["faces"] if face["lattice_plane"]]
    names = ", ".join("(" + " ".join(f"{h:.0f}" for h in face["hkl"]) + ")" for face in planes)
    furthest = max((face["angle_deg"] for face in planes), default=0.0)
    say(
        f"\nFaces of the crystal that are lattice planes of the data's orientation matrix, within {furthest:.2f} deg: "
        f"{names}; {len(planes)} of {len(crystal['faces'])} found. It was made with the 8 faces of "
        "{1 0 1}."
    )


def main() -> None:
    start = time.perf_counter()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    say("A virtual sample, its labels and its diffraction data")
    simulate(folder)
    run(["dials.anacor_absorption", "models.expt", "observations.refl", "tomo.h5"], folder)

    say_faces(folder)
    corrected = flex.reflection_table.from_file(folder / "corrected.refl")
    ratio = flumpy.to_numpy(corrected["analytical_correction"]) / flumpy.to_numpy(
        corrected["true.transmission"]
    )
    deviation = np.sqrt(np.mean((ratio / ratio.mean() - 1) ** 2))
    say(f"\nFactors against the simulation's own: {100 * deviation:.2f} % rms after one scale")

    say("\ndials.scale without correction, with spherical harmonics, and with the factors ...")
    chosen = [STRATEGIES[name] for name in ("none", "sh_high", "analytical")]
    jobs = [
        ScalingJob(
            strategy.label,
            strategy,
            (folder / "corrected.expt",),
            (folder / "corrected.refl",),
            folder / strategy.name,
            options=("full_matrix=False", "anomalous=True"),
        )
        for strategy in chosen
    ]
    outcomes = scale_all(jobs, nproc=2, finished=lambda outcome: say(f"  {outcome.label}: done"))
    done = {o.label: (o.experiments, o.reflections) for o in outcomes if isinstance(o, ScaledData)}
    failed = {o.label: o.reason for o in outcomes if not isinstance(o, ScaledData)}
    say("\n" + format_table(compare_merging_statistics(done), failed))
    say(f"\nReport: {folder / 'anacor_absorption.html'}")
    say(f"Took {time.perf_counter() - start:.0f} s")
    if failed:
        sys.exit("A run of dials.scale failed (above).")


if __name__ == "__main__":
    main()
