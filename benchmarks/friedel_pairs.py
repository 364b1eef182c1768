"""Friedel mates in scaling, apart (scaling.anomalous=True) or as equivalents: what each costs, a table.

Virtual data of a plate of thaumatin, corrected by the true transmissions. A part of the observations is wrong (by a factor
of 1.3 to 3, or its inverse), as in real data.

    python benchmarks/friedel_pairs.py FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from dials.array_family import flex

from anacor_dials.diffraction.known_structure import (
    agreement,
    calculated_structure_factors,
    merged_friedel_apart,
)
from anacor_dials.diffraction.merging import load_scaled
from anacor_dials.diffraction.reflections import FACTOR_COLUMN
from anacor_dials.diffraction.scaling import scale
from anacor_dials.simulation.diffraction_data import (
    simulate_diffraction,
    thaumatin_structure,
    write_diffraction,
)
from anacor_dials.simulation.diffraction_settings import DiffractionSettings, Sweep
from anacor_dials.simulation.meshes import box
from anacor_dials.simulation.samples import sample_from_meshes

D_MIN = 5.0  # Angstrom
# edges of the plate (um) by wavelength (Angstrom); f'' of S is 0.2 and 2.4 electrons
PLATES = {1.0: (300, 80, 200), 3.5: (160, 40, 100)}
CASES = (
    (40, 20000.0, 0.0),
    (40, 20000.0, 0.005),
    (40, 600.0, 0.005),
    (120, 20000.0, 0.005),
)  # degrees, mean counts, wrong part
STRATEGY = "analytical"
MATES = {"equal": False, "apart": True}  # scaling.anomalous


def simulate(folder: Path, wavelength: float, degrees: float, counts: float, part: float) -> None:
    """Writes data.expt and data.refl with wrong observations (column ``wrong``) into a folder."""
    rng = np.random.default_rng(5)
    sweeps = [Sweep(0, degrees, 0.2)]
    settings = DiffractionSettings(wavelength, D_MIN, sweeps, n_points=128, mean_counts=counts)
    sample = sample_from_meshes({"crystal": box(PLATES[wavelength])})
    structure = thaumatin_structure(np.random.default_rng(11))
    experiments, table = simulate_diffraction(sample, rng, settings, structure)
    table[FACTOR_COLUMN] = table["true.transmission"]
    n = len(table)
    wrong = rng.random(n) < part
    size = rng.choice([-1, 1], n) * rng.uniform(np.log(1.3), np.log(3), n)
    factor = flex.double(np.where(wrong, np.exp(size), 1))
    for method in ("prf", "sum"):
        table[f"intensity.{method}.value"] *= factor
        table[f"intensity.{method}.variance"] *= factor
    table["wrong"] = flex.bool(wrong)
    folder.mkdir(parents=True)
    write_diffraction(experiments, table, str(folder / "data.expt"), str(folder / "data.refl"))


def scaled(folder: Path, mates: str) -> Path:
    """The folder of scaled data, which are made where they are not there."""
    place = folder / f"{STRATEGY}_{mates}"
    if not (place / "scaled.refl").is_file():
        options = ("full_matrix=False", f"anomalous={MATES[mates]}")
        scale([folder / "data.expt"], [folder / "data.refl"], STRATEGY, place, options=options)
    return place


def rejected(place: Path) -> str:
    """How many of the wrong and of the good observations scaling rejected."""
    table = flex.reflection_table.from_file(str(place / "scaled.refl"))
    out = table.get_flags(table.flags.outlier_in_scaling).as_numpy_array()
    wrong = table["wrong"].as_numpy_array()
    return f"{(out & wrong).sum()} of {wrong.sum()} | {(out & ~wrong).sum()} of {(~wrong).sum()}"


def rows(folder: Path, wavelength: float) -> Iterator[str]:
    """R and anomalous correlation of all reflections, and of those that both have; what was rejected."""
    structure = thaumatin_structure(np.random.default_rng(11))
    true = abs(calculated_structure_factors(structure, wavelength, D_MIN))
    places = {mates: scaled(folder, mates) for mates in MATES}
    merged = {
        mates: merged_friedel_apart(load_scaled("", place / "scaled.expt", place / "scaled.refl").intensities)
        for mates, place in places.items()
    }  # fmt: skip
    in_both = dict(zip(merged, merged["equal"].common_sets(merged["apart"]), strict=True))
    for mates, place in places.items():
        said = []
        for data in (merged[mates], in_both[mates]):
            found = agreement(data, true)
            said.append(f"{found.r_intensities:.4f}; {found.cc_anomalous:.3f}; {found.n_reflections}; {found.n_pairs}")  # fmt: skip
        yield f"{mates} | {said[0]} | {said[1]} | {rejected(place)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print("| A | degrees | counts | wrong | mates | R; CC; reflections; pairs | the same, of reflections that both have | wrong ones rejected | good ones rejected |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for wavelength in PLATES:
        for degrees, counts, part in CASES:
            folder = given.folder / f"{wavelength}_{degrees}_{counts:.0f}_{part}"
            if not folder.is_dir():
                simulate(folder, wavelength, degrees, counts, part)
            for said in rows(folder, wavelength):
                print(f"| {wavelength} | {degrees} | {counts:.0f} | {100 * part:.1f} % | {said} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
