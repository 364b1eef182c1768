"""Hidden alignments found by the crystal's faces, from labels that are wrong in a known way, or the network's.

    tools/dials-env python benchmarks/alignment_by_faces.py [--trials N] [--network]

Virtual crystals of thaumatin and lysozyme (`sample.shape`), about 70 um, in their drop and loop, as labels with
voxels of 1.2 um. The surface of the crystal is displaced at random (rms and reach in voxels). With --network it is
that which the shipped weights find in a virtual tomogram of a smaller sample instead (crystals of up to 45 um in a
tight drop; 3.5 keV, 10 mm, 600 projections, noise of 6 % of the liquor); also where nothing absorbs (mu = 0), and
the tomogram, which has fringes alone, is made by phase retrieval. Offsets are 7.3 and 181 deg, with both senses; the alignment uses no intensities.
Crystals of random shapes have nothing to find.

Each line: how many of the trials determine the alignment, and how many of these are wrong by more than 2 deg or in
the sense; rms error of the offset and rms of error over quoted error of the others; processor seconds of one trial.
With --network there are four alignments for each tomogram, and before the table the Dice coefficients of the crystals.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from dxtbx.model import Crystal
from scipy.ndimage import gaussian_filter

from anacor_dials.diffraction.alignment.from_faces import FaceAlignment, angle_between
from anacor_dials.diffraction.reflections import Alignment
from anacor_dials.jobs.crystal_faces import FoundFaces, faces_alignment, find_faces
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.volumes import LabelVolume, Tomogram
from anacor_dials.simulation.crystal_habits import HABITS
from anacor_dials.simulation.diffraction_data import tomo_to_datum
from anacor_dials.simulation.diffraction_settings import Sweep
from anacor_dials.simulation.i23 import i23_beam, i23_detector, thaumatin_experiments
from anacor_dials.simulation.sample_parameters import random_parameters
from anacor_dials.simulation.samples import Sample, build_sample, random_sample
from anacor_dials.simulation.virtual_tomograms import Optics, propagated

logger = logging.getLogger("benchmark")

VOXEL = 1.2  # um
SIZE = 70.0  # um
SMALL, TIGHT = 45.0, 0.7  # um, and the factor on drop and loop: for the network's tomograms
HIDDEN = [(7.3, 1), (181.0, -1), (7.3, -1), (181.0, 1)]
ENERGY = 3.5  # keV
DISTANCE_MM = 10.0
DELTA_BETA = 35_000.0  # of phase retrieval where nothing absorbs: a filter of 100 um
WRONG_DEG = 2.0
LABELS = [(0.0, 1.5), (0.5, 1.5), (1.0, 1.5)]  # rms and reach, voxels


@dataclass(frozen=True)
class Trial:
    """What was found, and what was hidden."""

    fit: FaceAlignment | None
    offset: float
    sense: int

    @property
    def found(self) -> bool:
        return self.fit is not None and self.fit.determined

    @property
    def error(self) -> float:
        assert self.fit is not None
        return (self.fit.offset_deg - self.offset + 180) % 360 - 180

    @property
    def wrong(self) -> bool:
        assert self.fit is not None
        return self.fit.sense != self.sense or abs(self.error) > WRONG_DEG


def displaced(sample: Sample, rms: float, reach: float, rng: np.random.Generator) -> LabelVolume:
    """The labels, with the surface of the crystal displaced by a smooth random field, in voxels."""
    truth = sample.label_volume(VOXEL, margin_um=8.0)
    if not rms:
        return truth
    crystal = truth.values == truth.label("crystal")
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(crystal) - distance_transform_edt(~crystal)
    noise = gaussian_filter(rng.standard_normal(depth.shape), reach)
    inside = depth + rms * noise / noise.std() > 0
    values = np.where(crystal & ~inside, truth.label("liquor"), truth.values)
    values[inside] = truth.label("crystal")
    return LabelVolume(values.astype(np.uint8), truth.voxel_size_um, truth.centre, truth.names)


def by_network(sample: Sample, rng: np.random.Generator, absorption: float) -> LabelVolume:
    """The labels that the network gives to a virtual tomogram of the sample; absorption is a factor on mu."""
    from anacor_dials.jobs.reconstruct import Reconstruction
    from anacor_dials.jobs.segment import SegmentationSettings, segment_tomogram
    from anacor_dials.segmentation.fringes import smoothed
    from anacor_dials.tomography.corrections import paganin_length_um

    fine = sample.label_volume(VOXEL / 2, margin_um=12.0)
    shape = tuple(n - n % 2 for n in fine.shape)
    labels = fine.values[: shape[0], : shape[1], : shape[2]]

    def coarse(by_label: FloatArray) -> np.ndarray:
        cells = by_label.astype(np.float32)[labels]
        for axis in range(3):
            even = [slice(None)] * 3
            odd = [slice(None)] * 3
            even[axis], odd[axis] = slice(0, None, 2), slice(1, None, 2)
            cells = 0.5 * (cells[tuple(even)] + cells[tuple(odd)])
        return cells

    mu, delta = sample.mu_per_um(ENERGY), sample.delta(ENERGY)
    optics = Optics(ENERGY, 1e3 * DISTANCE_MM, 0.5, 0.0, 600, noise=0.06 * mu[1])
    values = propagated(coarse(absorption * mu), coarse(delta), VOXEL, optics, rng)
    delta_beta = None if absorption else DELTA_BETA
    if delta_beta:
        values = smoothed(values, paganin_length_um(ENERGY, DISTANCE_MM, delta_beta) / VOXEL)
    centre = (fine.centre - 0.5) / 2
    tomogram = Tomogram(values, np.full(3, VOXEL), centre)
    source = Reconstruction(
        tomogram, energy_keV=ENERGY, distance_mm=DISTANCE_MM, paganin_delta_beta=delta_beta
    )
    found = segment_tomogram(source, SegmentationSettings(uncertainty=False)).labels
    logger.info(
        "The crystal's Dice coefficient is %.3f", dice(found, labels == fine.label("crystal"))
    )
    return found


def dice(labels: LabelVolume, fine_crystal: np.ndarray) -> float:
    """Of the crystal, and its true voxels of half the edge."""
    found = labels.values == labels.label("crystal")
    for axis in range(3):
        found = np.repeat(found, 2, axis=axis)
    both = np.count_nonzero(found & fine_crystal)
    return 2 * both / (np.count_nonzero(found) + np.count_nonzero(fine_crystal))


def small_sample(shape: str, rng: np.random.Generator) -> Sample:
    """A crystal in a tight drop, so that a tomogram is labelled within half a minute."""
    drawn = random_parameters(rng, SMALL, shape=shape, film=False, stem_length_um=5.0)
    tight = {
        name: tuple(TIGHT * x for x in getattr(drawn, name))
        for name in ("drop", "ring_radii", "crystal_shift")
    }
    return build_sample(replace(drawn, tail=0.0, **tight))


def one_trial(
    sample: Sample, found: list[FoundFaces], rng: np.random.Generator, hidden: tuple[float, int]
) -> Trial:
    """The alignment by the faces that were found in the labels."""
    offset, sense = hidden
    experiments = thaumatin_experiments([Sweep()], rng, i23_beam(3.5), i23_detector(3.5))
    lattice = (sample.lattice or HABITS["lysozyme"].lattice).turned(
        tomo_to_datum(experiments[0], offset, sense)
    )
    experiments[0].crystal = Crystal(*map(tuple, lattice.axes.T), lattice.space_group)
    return Trial(faces_alignment(found, experiments, Alignment(90.0, 1)), offset, sense)


def trials(shape: str, n: int, rms: float, reach: float) -> Iterator[tuple[Trial, float]]:
    """The trials of one line, with their processor seconds."""
    for number in range(n):
        rng = np.random.default_rng(1000 + number)
        sample = random_sample(rng, SIZE, shape=shape, film=False, stem_length_um=20.0)
        labels = displaced(sample, rms, reach, rng)
        start = time.process_time()
        trial = one_trial(sample, find_faces(labels), rng, HIDDEN[number % len(HIDDEN)])
        yield trial, time.process_time() - start


def network_trials(shape: str, n: int, absorption: float) -> Iterator[tuple[Trial, float]]:
    """The same by labels of the network for n tomograms, four for each; absorption is a factor on mu."""
    for number in range(n):
        rng = np.random.default_rng(1000 + number)
        sample = small_sample(shape, rng)
        labels = by_network(sample, rng, absorption)
        start = time.process_time()
        found = find_faces(labels)
        of_faces = time.process_time() - start
        for hidden in HIDDEN:
            start = time.process_time()
            trial = one_trial(sample, found, rng, hidden)
            logger.info("%s", described(trial))
            yield trial, of_faces + time.process_time() - start


def described(trial: Trial) -> str:
    """What was found, in words."""
    fit = trial.fit
    if fit is None:
        return "no faces"
    return (
        f"{fit.n_faces} faces: {trial.error:+.2f} +- {fit.offset_error_deg:.2f} deg, sense "
        f"{fit.sense * trial.sense:+d}; {fit.reason or 'determined'}"
    )


def line(name: str, found: list[tuple[Trial, float]]) -> str:
    """A row of the table."""
    determined = [t for t, _ in found if t.found]
    right = [t for t in determined if not t.wrong]
    wrong = len(determined) - len(right)
    error = np.sqrt(np.mean([t.error**2 for t in right])) if right else np.nan
    pull = (
        np.sqrt(np.mean([(t.error / t.fit.offset_error_deg) ** 2 for t in right if t.fit]))
        if right
        else np.nan
    )
    largest = max((abs(angle_between(t.error, 0.0)) for t in right), default=np.nan)
    seconds = float(np.median([s for _, s in found]))
    return (
        f"| {name} | {len(determined)} of {len(found)} | {wrong} | {error:.2f} | {largest:.2f} | {pull:.2f} | "
        f"{seconds:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=8, help="with --network: tomograms")
    parser.add_argument("--network", action="store_true", help="labels of the network instead")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    print("| crystal, labels | determined | wrong | rms error (deg) | largest | rms pull | CPU s |")
    print("|---|---|---|---|---|---|---|")
    if options.network:
        for absorption in (1.0, 0.0):
            for shape in HABITS:
                name = f"{shape}, the network's labels" + (", mu = 0" if not absorption else "")
                found = list(network_trials(shape, options.trials, absorption))
                print(line(name, found), flush=True)
        return
    for shape in HABITS:
        for rms, reach in LABELS:
            name = (
                f"{shape}, {rms:g} voxels rms, reach {reach:g}" if rms else f"{shape}, true labels"
            )
            print(line(name, list(trials(shape, options.trials, rms, reach))), flush=True)
    for shape in ("polyhedron", "bipyramid"):
        print(line(f"random {shape}", list(trials(shape, options.trials, 0.0, 1.0))), flush=True)


if __name__ == "__main__":
    main()
