"""Two virtual crystals from their images: each by xia2.anacor, both by xia2.multiplex, against the truth; a table.

Two plates of one structure, of each a short sweep of rotation images and the true labels. xia2 must be on PATH.

    python benchmarks/crystals_from_images.py FOLDER
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from cctbx import miller

from anacor_dials.diffraction.known_structure import (
    Agreement,
    agreement,
    calculated_structure_factors,
    merged_friedel_apart,
)
from anacor_dials.diffraction.merging import load_scaled
from anacor_dials.sample.materials import energy_from_wavelength
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.simulation.diffraction_data import simulate_diffraction, thaumatin_structure
from anacor_dials.simulation.diffraction_images import write_diffraction_images
from anacor_dials.simulation.diffraction_settings import DiffractionSettings, Sweep
from anacor_dials.simulation.meshes import box
from anacor_dials.simulation.samples import sample_from_meshes

WAVELENGTH, D_MIN = 4.0, 4.5
PLATES = {"X1": (110, 40, 80), "X2": (90, 50, 70)}  # um
STRATEGIES = ("none", "sh_high", "analytical")
TAKEN = "analytical"  # by xia2.anacor, as the better one
SPACE_GROUP = "P41212"  # images cannot tell it from its enantiomorph
TOGETHER = "both, by xia2.multiplex"
SETTINGS = DiffractionSettings(
    WAVELENGTH, D_MIN, [Sweep(0, 60, 0.5)], n_points=512, mean_counts=50000, background=1.0,
    detector="flat_1m", distance_mm=80,
)  # fmt: skip


def simulate(folder: Path) -> None:
    """Images (X1_sweep1.nxs) and true labels (X1.h5) of each plate, unless they are there."""
    structure = thaumatin_structure(np.random.default_rng(11))
    energy = energy_from_wavelength(WAVELENGTH)
    for number, (name, edges) in enumerate(PLATES.items()):
        if (folder / f"{name}.h5").is_file():
            continue
        sample = sample_from_meshes({"crystal": box(edges)})
        rng = np.random.default_rng(number)
        data = simulate_diffraction(sample, rng, SETTINGS, structure)
        images = [str(folder / f"{name}_sweep1.nxs")]
        write_diffraction_images(sample, data, structure, rng, SETTINGS, images)
        write_sample_file(
            folder / f"{name}.h5",
            labels=sample.label_volume(2.0),
            mu_per_um=sample.mu_per_um(energy),
            energy_keV=energy,
        )


def command(name: str) -> list[str]:
    """xia2.anacor on the images of a plate, run beside them."""
    return [
        "xia2.anacor", f"image={name}_sweep1.nxs", f"tomography={name}.h5",
        f"xia2.options=crystal={name}", f"scaling.strategies={'+'.join(STRATEGIES)}",
        "scaling.anomalous=True", "scaling.full_matrix=False", f"output.directory={name}",
        f"output.log={name}.log", "nproc=1",
    ]  # fmt: skip


def scaled(folder: Path, name: str, strategy: str) -> list[Path]:
    """The data of a plate after it was scaled by a strategy: the results, or those of the step."""
    stem = folder / name / name / f"scale_{strategy}" / "scaled"
    if strategy == TAKEN:
        stem = folder / name / "DataFiles" / f"{name}_scaled"
    return [stem.with_suffix(".expt"), stem.with_suffix(".refl")]


def multiplex(folder: Path, strategy: str) -> list[Path]:
    """The data of both plates after xia2.multiplex has scaled them together."""
    place = folder / f"multiplex_{strategy}"
    if not list(place.rglob("scaled.refl")):
        place.mkdir(exist_ok=True)
        files = [str(path) for name in PLATES for path in scaled(folder, name, strategy)]
        options = [f"symmetry.space_group={SPACE_GROUP}", f"resolution.d_min={D_MIN}"]
        options += ["scaling.anomalous=True", "nproc=1"]
        with (place / "printed.log").open("w") as log:
            subprocess.run(
                ["xia2.multiplex", *files, *options],
                cwd=place, check=True, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
    (models,) = place.rglob("scaled.expt")
    return [models, models.with_suffix(".refl")]


def against(files: list[Path], true: miller.array) -> Agreement:
    """How scaled data stand to the true amplitudes, Friedel mates apart."""
    data = load_scaled("", *files).intensities
    # until absences were looked for, the screw axes are not known
    data = data.customized_copy(space_group_info=true.space_group_info())
    return agreement(merged_friedel_apart(data.remove_systematic_absences()), true)


def measured(folder: Path) -> Mapping[str, Mapping[str, Agreement]]:
    """{plate, or TOGETHER: {strategy: how its data stand to the structure}}; makes what is not there."""
    simulate(folder)
    for name in PLATES:
        subprocess.run(command(name), cwd=folder, check=True, stdout=subprocess.DEVNULL)
    structure = thaumatin_structure(np.random.default_rng(11))
    true = abs(calculated_structure_factors(structure, WAVELENGTH, D_MIN))
    found = {n: {s: against(scaled(folder, n, s), true) for s in STRATEGIES} for n in PLATES}
    return found | {TOGETHER: {s: against(multiplex(folder, s), true) for s in STRATEGIES}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print("| | strategy | R against truth | correlation of anomalous differences | reflections; pairs |")  # fmt: skip
    print("|---|---|---|---|---|")
    for what, of in measured(folder).items():
        for strategy, one in of.items():
            print(f"| {what} | {strategy} | {one.r_intensities:.4f} | {one.cc_anomalous:.4f} | {one.n_reflections}; {one.n_pairs} |")  # fmt: skip


if __name__ == "__main__":
    main()
