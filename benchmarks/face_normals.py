"""How far the normals of faces found in labels are from the lattice's, and what is said of it.

    tools/dials-env python benchmarks/face_normals.py [--seeds N]

Virtual crystals of lysozyme and thaumatin of 50 um in voxels of 1 um: whole, broken, and rounded ones (N seeds, 8; edges
of a radius of 0.15 to 0.5 of the distance of the nearest face), with right labels, and ragged by 0.6 to 0.8 voxels rms.
The lattice is that of the simulator, which made the faces. For each kind: the rms and largest angle between the normals
and the reciprocal vectors, the rms of what is quoted for it, and rms and largest ratio of both (the pull).
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from dxtbx.model import Crystal, ExperimentList
from scipy import ndimage

from anacor_dials.diffraction.reflections import Alignment
from anacor_dials.jobs.crystal_faces import find_faces, with_indices
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.simulation.diffraction_data import tomo_to_datum
from anacor_dials.simulation.diffraction_settings import Sweep
from anacor_dials.simulation.i23 import detector_called, i23_beam, thaumatin_experiments
from anacor_dials.simulation.samples import Sample, random_sample

# wear, raggedness in voxels (rms), seeds: first and how many; None: as many as are asked for
KINDS = (
    ("none", 0.0, 0, 2),
    ("broken", 0.0, 0, 3),
    ("rounded", 0.0, 0, None),
    ("none", 0.8, 0, 3),
    ("rounded", 0.6, 3, 2),
)


def ragged(labels: LabelVolume, rng: np.random.Generator, rms_voxels: float) -> LabelVolume:
    """Labels whose crystal's surface is displaced at random, over about two voxels alike."""
    label = labels.label("crystal")
    crystal = labels.values == label
    depth = ndimage.distance_transform_edt(crystal) - ndimage.distance_transform_edt(~crystal)
    noise = ndimage.gaussian_filter(rng.standard_normal(crystal.shape), 2.0)
    inside = depth - 0.5 * np.sign(depth) + rms_voxels * noise / noise.std() > 0
    values = labels.values.copy()
    values[crystal] = 0
    values[inside] = label
    return replace(labels, values=values)


def experiments_of(sample: Sample) -> ExperimentList:
    """A sweep of the crystal, with the lattice that its faces are planes of."""
    experiments = thaumatin_experiments(
        [Sweep()], np.random.default_rng(0), i23_beam(4.0), detector_called("flat_1m", 4.0, 100)
    )
    assert sample.lattice is not None
    lattice = sample.lattice.turned(tomo_to_datum(experiments[0], 0.0, 1))
    experiments[0].crystal = Crystal(*map(tuple, lattice.axes.T), lattice.space_group)
    return experiments


def angles_and_errors(
    shape: str, wear: str, rough: float, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Of the faces that are lattice planes: angles and standard errors of their normals, deg."""
    sample = random_sample(
        np.random.default_rng(seed), 50.0, shape=shape, film=False, wear=wear, stem_length_um=5.0
    )
    labels = sample.label_volume(1.0)
    if rough:
        labels = ragged(labels, np.random.default_rng(seed), rough)
    one = with_indices(find_faces(labels), experiments_of(sample), Alignment())[0]
    if one.indices is None:
        return np.empty(0), np.empty(0)
    named = one.indices.is_lattice_plane
    return one.indices.angles_deg[named], one.planes.normal_errors_deg[named]


def rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    print(
        "| crystals | ragged, voxels | with faces | faces | angle rms, largest | quoted | pull rms, largest |"
    )
    print("|---|---|---|---|---|---|---|")
    for shape in ("lysozyme", "thaumatin"):
        for wear, rough, first, n in KINDS:
            seeds = range(first, first + (n or options.seeds))
            found = [angles_and_errors(shape, wear, rough, seed) for seed in seeds]
            angles = np.concatenate([a for a, _ in found])
            quoted = np.sqrt(2) * np.concatenate(
                [e for _, e in found]
            )  # an angle has two components
            pull = angles / quoted
            print(
                f"| {shape}, {'whole' if wear == 'none' else wear} | {rough} | "
                f"{sum(len(a) > 0 for a, _ in found)} of {len(seeds)} | {len(angles)} | "
                f"{rms(angles):.2f}, {angles.max():.2f} | {rms(quoted):.2f} | {rms(pull):.2f}, {pull.max():.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
