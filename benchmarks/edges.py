"""How far outside of the true surfaces a tomogram shows them, by refraction: a table.

Virtual scans by wave optics, reconstructed as any scan; at every place on the true surface of a material
the steepest rise along its normal, of the mean over all such places. The law in
anacor_dials/segmentation/edges.py was fitted to such a table.

    python benchmarks/edges.py FOLDER            scans that lie there (NAME.tomo.h5, .truth.h5)
    python benchmarks/edges.py FOLDER --make 12  makes some first
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.jobs.training_scans import ScanRanges, write_training_scan
from anacor_dials.sample.tomogram_files import read_sample_file
from anacor_dials.segmentation.edges import refraction_displacement_um, surface_of
from anacor_dials.segmentation.training_data import TOMO, TRUTH, labels_on_grid
from anacor_dials.segmentation.working_grid import intensity_scale

# material and its neighbour
SURFACES = (("liquor", "background"), ("crystal", "background"), ("loop", "background"), ("crystal", "liquor"), ("loop", "liquor"))  # fmt: skip
LEAST_PLACES = 300
REACH = 2.1  # voxels


def make_scans(folder: Path, n: int) -> None:
    """Scans of drops and of solids of all families, 1 to 25 mm, 2.5 to 5.5 keV."""
    folder.mkdir(parents=True, exist_ok=True)
    solids = ScanRanges(solids=True, distance_mm=(1.0, 20.0), energy_keV=(2.5, 5.5))
    for k in range(n):
        ranges = solids if k % 2 else ScanRanges()
        name = f"{'solids' if k % 2 else 'drops'}-{k:03d}"
        if not (folder / (name + TOMO)).is_file():
            write_training_scan(folder, name, (47, k), ranges)


def displacement(
    values: NDArray[np.float32], labels: NDArray[np.uint8], inside: int, outside: int
) -> float:
    """How far outside (voxels) of the surface between two labels the values rise most steeply."""
    sure = np.where(labels == inside, 255, 0).astype(np.uint8)
    surface = surface_of(np.stack([255 - sure, sure]), 1)
    if surface is None:
        return float("nan")
    top = np.array(labels.shape) - 1

    def label_at(depth: float) -> NDArray[np.uint8]:
        at = np.clip(np.rint(surface.points + depth * surface.normals).astype(int), 0, top)
        return labels[tuple(at.T)]

    there = np.all([label_at(d) == inside for d in (1.0, 2.5)], axis=0)
    there &= np.all([label_at(-d) == outside for d in (1.0, 2.5, 4.0)], axis=0)
    if np.count_nonzero(there) < LEAST_PLACES:
        return float("nan")
    points, normals = surface.points[there], surface.normals[there]
    depths = np.arange(-3.5, 3.6, 0.1)
    profile = [
        scipy.ndimage.map_coordinates(values, (points + d * normals).T, order=1).mean()
        for d in depths
    ]
    rise = np.array(profile[10:]) - np.array(profile[:-10])  # over one voxel
    middles = depths[5:-5]
    rise[np.abs(middles) > REACH] = -np.inf
    return -float(middles[rise.argmax()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("folder", type=Path)
    parser.add_argument("--make", type=int, default=0, help="so many scans first")
    given = parser.parse_args()
    make_scans(given.folder, given.make)
    names = ", ".join(f"{a}/{'air' if b == 'background' else b}" for a, b in SURFACES)
    print(f"Displacement in um (and relative to the law) of: {names}\n")
    print("| scan | mm | keV | um by the law | " + " | ".join("/".join(s) for s in SURFACES) + " |")
    print("|---|---|---|---|" + "---|" * len(SURFACES))
    ratios = []
    for path in sorted(p for p in given.folder.glob("*" + TOMO) if not p.name.startswith(".")):
        sample = read_sample_file(path)
        tomogram = sample.tomogram
        truth = read_sample_file(str(path)[: -len(TOMO)] + TRUTH, tomogram=False).labels
        if sample.scan_distance_mm is None or sample.scan_energy_keV is None:
            raise SystemExit(
                f"{path} does not say the distance and energy of its scan; make it again."
            )
        labels = labels_on_grid(truth, tomogram)
        scale = intensity_scale(tomogram.values, tomogram.voxel_size_um)
        values = scale.normalised(tomogram.values)
        size = float(tomogram.voxel_size_um.mean())
        law = refraction_displacement_um(sample.scan_distance_mm, sample.scan_energy_keV)
        found = [
            size * displacement(values, labels, truth.names.index(a), truth.names.index(b))
            for a, b in SURFACES
        ]
        ratios.append(np.array(found) / law)
        cells = " | ".join("-" if np.isnan(f) else f"{f:.2f} ({f / law:.2f})" for f in found)
        print(
            f"| {path.name[: -len(TOMO)]} | {sample.scan_distance_mm:.1f} | {sample.scan_energy_keV:.2f} | "
            f"{law:.2f} | {cells} |"
        )
    middle = np.nanmedian(ratios, axis=0)
    print("| median of the ratio | | | | " + " | ".join(f"{m:.2f}" for m in middle) + " |")


if __name__ == "__main__":
    main()
