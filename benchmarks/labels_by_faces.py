"""Factors from the voxels of a crystal and from the polyhedron of its faces (labels.crystal).

    tools/dials-env python benchmarks/labels_by_faces.py [--trials N]

Virtual crystals of thaumatin and lysozyme (`sample.shape`), about 70 um, in their drop and loop, as labels with
voxels of 1.2 um: true ones; with a surface that is displaced at random (rms and reach in voxels); and with a bite out
of the crystal, which is labelled as liquor. The truth are the factors of the sample's meshes at 3.5 keV, 60
reflections, after one common scale.

Each line: how many crystals were taken as polyhedra, the mean Dice coefficient of the crystal's label before and
after and the least after, and the rms error of the factors (percent, mean over the trials) from voxels, from polyhedra in the same
voxels, and in finer ones.
"""

from __future__ import annotations

import argparse

import numpy as np
from alignment_by_faces import SIZE, VOXEL, displaced
from dxtbx.model import Crystal

from anacor_dials.absorption.closed_surface import ClosedSurface, SurfaceSample, joined
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.factors import absorption_factors, absorption_factors_of_surfaces
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.diffraction.crystal_surface.polyhedra import labels_of_polyhedra
from anacor_dials.diffraction.reflections import Alignment
from anacor_dials.jobs.crystal_faces import SampleFaces, find_faces, with_indices
from anacor_dials.jobs.labels_by_faces import labels_by_faces
from anacor_dials.sample.frames import FloatArray, source_directions, unit
from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.simulation.crystal_habits import HABITS
from anacor_dials.simulation.diffraction_data import tomo_to_datum
from anacor_dials.simulation.diffraction_settings import Sweep
from anacor_dials.simulation.i23 import i23_beam, i23_detector, thaumatin_experiments
from anacor_dials.simulation.samples import Sample, random_sample

ENERGY = 3.5  # keV
TRACING = Tracing(1e-3, method="direct", device="cpu", nproc=1)
# name: rms and reach of the displacement, voxels; the shares of the crystal that are bitten off.
# A share of 0.26 leaves a Dice coefficient of 0.85.
LABELS = {
    "true": (0.0, 1.5, ()),
    "0.5 voxels rms, reach 1.5": (0.5, 1.5, ()),
    "1 voxel rms, reach 3": (1.0, 3.0, ()),
    "a bite of 10 %": (0.0, 1.5, (0.1,)),
    "a bite of 26 %": (0.0, 1.5, (0.26,)),
    "bites of 14 and 14 %": (0.0, 1.5, (0.14, 0.14)),
    "a bite of 26 %, 1 voxel rms, reach 1.5": (1.0, 1.5, (0.26,)),
    "a bite of 26 %, 1 voxel rms, reach 3": (1.0, 3.0, (0.26,)),
}
How = tuple[float, float, tuple[float, ...]]


def bitten(labels: LabelVolume, share: float, rng: np.random.Generator) -> LabelVolume:
    """The labels without a share of the crystal, which lies in a ball about a random outer place."""
    crystal = labels.label("crystal")
    places = np.argwhere(labels.values == crystal)
    towards = unit(rng.standard_normal(3))
    tip = places[np.argmax(places @ towards)]
    far = np.linalg.norm(places - tip, axis=1)
    near = far < np.quantile(far, share)
    values = labels.values.copy()
    values[tuple(places[near].T)] = labels.label("liquor")
    return LabelVolume(values, labels.voxel_size_um, labels.centre, labels.names)


def dice(labels: LabelVolume, truth: LabelVolume) -> float:
    a = labels.values == labels.label("crystal")
    b = truth.values == truth.label("crystal")
    return float(2 * np.count_nonzero(a & b) / (a.sum() + b.sum()))


def true_factors(sample: Sample, mu: FloatArray, directions: Directions) -> FloatArray:
    """From the meshes of the sample; what displaces what is the order of the absorption's meshes."""
    by_material: dict[str, list[ClosedSurface]] = {}
    for part in sample.parts:
        surface = ClosedSurface(part.mesh.vertices, part.mesh.faces)
        by_material.setdefault(part.material, []).append(surface)
    order = [sample.parts[k].material for k in reversed(range(len(sample.parts)))]
    names = tuple(dict.fromkeys(order))
    assert names[0] == "crystal", names
    surfaces = SurfaceSample(
        ("background", *names), tuple(joined(by_material[name]) for name in names)
    )
    of_labels = [0.0, *(mu[sample.names.index(name)] for name in names)]
    return absorption_factors_of_surfaces(surfaces, of_labels, directions, TRACING).transmission


def rms_error(
    labels: LabelVolume, mu: FloatArray, directions: Directions, truth: FloatArray
) -> float:
    found = absorption_factors(labels, mu, directions, TRACING).transmission
    ratio = found / truth
    return float(np.std(ratio / ratio.mean()))


def trial(shape: str, number: int, how: How) -> list[float]:
    """(taken, Dice before, Dice after, error from voxels, from polyhedra, from finer voxels)."""
    rng = np.random.default_rng(1000 + number)
    sample = random_sample(rng, SIZE, shape=shape, film=False, stem_length_um=20.0)
    rms, reach, bites = how
    truth = sample.label_volume(VOXEL, margin_um=8.0)
    labels = displaced(sample, rms, reach, rng)
    for share in bites:
        labels = bitten(labels, share, rng)
    experiments = thaumatin_experiments([Sweep()], rng, i23_beam(3.5), i23_detector(3.5))
    lattice = (sample.lattice or HABITS[shape].lattice).turned(
        tomo_to_datum(experiments[0], 0.0, 1)
    )
    experiments[0].crystal = Crystal(*map(tuple, lattice.axes.T), lattice.space_group)
    alignment = Alignment(0.0, 1)
    found = SampleFaces(with_indices(find_faces(labels), experiments, alignment), None, alignment)
    made = labels_by_faces(labels, found, "faces")
    mu = sample.mu_per_um(ENERGY)
    n = 60
    directions = Directions.of_one_sweep(
        source_directions(rng.uniform(0, 360, n)), unit(rng.standard_normal((n, 3)))
    )
    expected = true_factors(sample, mu, directions)
    before = dice(labels, truth)
    error = rms_error(labels, mu, directions, expected)
    if made is None or not made.polyhedra:
        return [0.0, before, before, error, error, error]
    coarse = labels_of_polyhedra(labels, made.polyhedra)
    return [
        1.0,
        before,
        dice(coarse, truth),
        error,
        rms_error(coarse, mu, directions, expected),
        rms_error(made.labels, mu, directions, expected),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--labels", default="", help="only those whose name holds this")
    options = parser.parse_args()
    print(
        "| crystal, labels | polyhedra | Dice before | after | least | voxels % | polyhedra % | finer % |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for shape in HABITS:
        for name, how in LABELS.items():
            if options.labels not in name:
                continue
            values = np.array([trial(shape, k, how) for k in range(options.trials)])
            mean = values.mean(axis=0)
            print(
                f"| {shape}, {name} | {values[:, 0].sum():.0f} of {len(values)} | {mean[1]:.3f} | {mean[2]:.3f} | "
                f"{values[:, 2].min():.3f} | {100 * mean[3]:.2f} | {100 * mean[4]:.2f} | {100 * mean[5]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
