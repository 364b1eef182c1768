"""Hidden alignments found by the intensities of real data that a known sample attenuates.

    tools/dials-env python benchmarks/alignment.py [--trials N] [--data FOLDER]

Four sweeps of an L-cysteine crystal (Diamond I19-1; DIALS 2018, Zenodo), which absorbs little itself, are attenuated by
three virtual samples with mean transmissions near 0.2 (lines through the meshes of the sample). The
labels are voxels of 1 um of the same samples. Hidden are the offset (33.3, 181 and -92.5 deg) and the sense; mu is
0.85, 1 and 1.2 times what the labels' mu is; six of the 24 trials are in P 21 or P 1.

A pull is the error over the quoted standard error. The last column is the rms difference of the factors at what was
found from those at the truth, after one scale, in percent; in brackets with the labels at offset 0. The controls below
must move nothing: no absorption, weak absorption (mean A 0.97), and labels that are mirrored.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from cctbx.sgtbx import space_group_info
from dials.array_family import flex
from dxtbx.model import ExperimentList
from dxtbx.model.experiment_list import ExperimentListFactory

from anacor_dials.absorption.tracing import Tracing
from anacor_dials.diffraction.alignment import (
    AlignmentFit,
    Equivalents,
    equivalents,
    fit_alignment,
    mu_weights,
)
from anacor_dials.diffraction.alignment.trials import TrialTransmissions
from anacor_dials.diffraction.reflections import Alignment, experiment_of_rows
from anacor_dials.sample.frames import FloatArray, transform, unit
from anacor_dials.simulation.diffraction_data import tomo_to_datum, true_transmissions
from anacor_dials.simulation.samples import Sample, random_sample

SWEEPS = (20, 25, 30, 35)
DATA = Path(__file__).parents[1] / "../shared/data/l_cysteine"
ENERGY = 3.5  # keV, of the sample's mu
OFFSETS = (33.3, 181.0, -92.5)
MU_SCALES = (0.85, 1.0, 1.2)
VOXEL = 1.0  # um
SIZE = 60.0  # um, of the crystal
MEAN_A = 0.2
TRACING = Tracing(device="cpu", nproc=1)
N_POINTS = 256  # of the true transmissions


@dataclass(frozen=True)
class Hidden:
    """What one trial hides."""

    offset: float
    sense: int
    mu_scale: float
    group: str
    sample: int

    def error(self, fit: AlignmentFit) -> float:
        """Of the offset, deg."""
        return (fit.offset_deg - self.offset + 180) % 360 - 180

    @property
    def name(self) -> str:
        return f"{self.group}, sample {self.sample}, {self.offset:g} {self.sense:+d}, mu {self.mu_scale:g}"


def trials() -> list[Hidden]:
    """The 24 trials; the samples change from one to the next."""
    found = [
        (offset, sense, mu, "P212121")
        for mu in MU_SCALES
        for sense in (1, -1)
        for offset in OFFSETS
    ]
    found += [(offset, (-1) ** k, 1.0, "P21") for k, offset in enumerate(OFFSETS)]
    found += [(offset, -((-1) ** k), 1.0, "P1") for k, offset in enumerate(OFFSETS)]
    return [Hidden(*values, sample=k % 3) for k, values in enumerate(found)]


def real_data(folder: Path) -> tuple[ExperimentList, list[flex.reflection_table]]:
    """The four sweeps, integrated reflections only."""
    experiments, tables = ExperimentList(), []
    for number in SWEEPS:
        name = f"{folder}/sweep_{number}"
        experiments.extend(ExperimentListFactory.from_json_file(f"{name}.expt", check_format=False))
        table = flex.reflection_table.from_file(f"{name}.refl")
        tables.append(table.select(table.get_flags(table.flags.integrated_prf)))
    return experiments, tables


def observations(folder: Path, group: str) -> tuple[ExperimentList, Equivalents]:
    """What the program makes of them in a space group."""
    experiments, tables = real_data(folder)
    for experiment in experiments:
        experiment.crystal.set_space_group(space_group_info(group).group())
    index = experiment_of_rows(tables, experiments)
    return experiments, equivalents(experiments, tables, index, Alignment(), TRACING)


class KnownSample:
    """A virtual sample: its true transmissions, and those that the program has of its labels.

    Attenuation leaves I / sigma as it is, so that the same observations are chosen in all trials, and one set of
    tables serves all of a sample.
    """

    def __init__(self, number: int, experiments: ExperimentList, data: Equivalents) -> None:
        rng = np.random.default_rng(500 + number)
        self.sample = random_sample(rng, SIZE, film=False, stem_length_um=20.0)
        self.experiments = experiments
        some = unit(rng.standard_normal((2, 200, 3)))
        log_a = np.log(true_transmissions(self.sample, ENERGY, *some, N_POINTS, rng))
        self.power = float(np.log(MEAN_A) / log_a.mean())
        mu = self.power * self.sample.mu_per_um(ENERGY)
        labels = self.sample.label_volume(VOXEL, margin_um=4.0)
        self._table = Remembered(labels, [mu], data, experiments, Alignment(), (1, -1), TRACING)
        self._of: dict[str, Remembered] = {}

    def of(self, group: str, data: Equivalents) -> Remembered:
        """The tables, for the observations in one space group."""
        if group not in self._of:
            self._of[group] = copy(self._table)
            self._of[group]._data, self._of[group].known = data, {}
        return self._of[group]

    def true_log_a(
        self, data: Equivalents, offset: float, sense: int, mu_scale: float
    ) -> FloatArray:
        """ln A (n,) by lines through the meshes."""
        to_tomo = tomo_to_datum(self.experiments[0], offset, sense).T
        source, exits = transform(to_tomo, data.to_source), transform(to_tomo, data.exit)
        sample = WithMu(self.sample, self.power * mu_scale)
        rng = np.random.default_rng(1)
        return np.log(true_transmissions(sample, ENERGY, source, exits, N_POINTS, rng, 0.5))


class Remembered(TrialTransmissions):
    """Keeps what it looked up at whole degrees: the grid of trials is the same in all of them."""

    known: dict[tuple[float, int, bool], FloatArray]

    def _kept(self, offset_deg: float, sense: int, mirrored: bool) -> FloatArray:
        look_up = super().mirrored if mirrored else super().__call__
        if offset_deg % 1:
            return look_up(offset_deg, sense)
        key = (offset_deg, sense, mirrored)
        if key not in self.known:
            self.known[key] = look_up(offset_deg, sense).astype(np.float32)
        return self.known[key]

    def __call__(self, offset_deg: float, sense: int) -> FloatArray:
        return self._kept(offset_deg, sense, False)

    def mirrored(self, offset_deg: float, sense: int) -> FloatArray:
        return self._kept(offset_deg, sense, True)


class WithMu(Sample):
    """A sample whose mu are so many times what its materials have."""

    def __init__(self, sample: Sample, power: float) -> None:
        self.__dict__.update(vars(sample))
        object.__setattr__(self, "_power", power)

    def mu_per_um(self, energy_keV: float) -> FloatArray:
        return self._power * super().mu_per_um(energy_keV)


def spread(log_ratio: FloatArray) -> float:
    """rms (%) of a ratio after one scale."""
    ratio = np.exp(log_ratio)
    return 100 * float(np.std(ratio / ratio.mean()))


def line(hidden: Hidden, fit: AlignmentFit, table: TrialTransmissions, log_a: FloatArray) -> str:
    """A row of the table."""
    found = mu_weights(fit.fitted_mu_scale)[0] @ table(fit.offset_deg, fit.sense)
    given = mu_weights(1.0)[0] @ table(0.0, 1)
    low, high = np.percentile(np.exp(log_a), [5, 95])
    sense = "" if fit.sense == hidden.sense else ", wrong sense"
    return (
        f"| {hidden.name} | {low:.2f}-{high:.2f} | {fit.offset_deg:.1f}{sense} | {hidden.error(fit):+.1f} | "
        f"{fit.offset_error_deg:.1f} | {hidden.error(fit) / fit.offset_error_deg:+.1f} | {fit.fitted_mu_scale:.3f} | "
        f"{fit.mu_scale_error:.3f} | {spread(found - log_a):.1f} ({spread(given - log_a):.1f}) | "
        f"{fit.reason or 'moved'} |"
    )


def rms(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    sets = {group: observations(options.data, group) for group in ("P212121", "P21", "P1")}
    experiments, data = sets["P212121"]
    samples: dict[int, KnownSample] = {}
    print("| trial | A (5-95 %) | found | error | quoted | pull | mu | quoted | factors % | said |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    pulls: list[tuple[float, float]] = []
    for hidden in trials()[: options.trials]:
        if hidden.sample not in samples:
            samples[hidden.sample] = KnownSample(hidden.sample, experiments, data)
        known, mine = samples[hidden.sample], sets[hidden.group][1]
        log_a = known.true_log_a(mine, hidden.offset, hidden.sense, hidden.mu_scale)
        table = known.of(hidden.group, mine)
        fit = fit_alignment(
            replace(mine, log_intensity=mine.log_intensity + log_a),
            table,
            ("offset", "sense"),
            Alignment(),
            mirrored=table.mirrored,
        )
        if fit.moved:
            wrong_mu = fit.fitted_mu_scale - hidden.mu_scale
            pulls.append((hidden.error(fit) / fit.offset_error_deg, wrong_mu / fit.mu_scale_error))
        print(line(hidden, fit, table, log_a), flush=True)
    for name, values in zip(("offset", "mu"), zip(*pulls, strict=True), strict=False):
        print(
            f"{len(values)} moved; pulls of {name}: rms {rms(values):.2f}, largest {np.abs(values).max():.1f}"
        )
    for name, fit in controls(samples[0], data):
        print(f"{name}: {fit.reason or 'moved'}")


def controls(known: KnownSample, data: Equivalents) -> Iterator[tuple[str, AlignmentFit]]:
    """What must move nothing."""
    table = known.of("P212121", data)
    log_a = known.true_log_a(data, 33.3, 1, 1.0)
    cases = {
        "no absorption": (np.zeros(len(data)), table, table.mirrored),
        "mean A 0.97": (0.02 * log_a, table, table.mirrored),
        "mirrored labels": (log_a, table.mirrored, table),
    }
    for name, (added, transmissions, mirrored) in cases.items():
        attenuated = replace(data, log_intensity=data.log_intensity + added)
        yield (
            name,
            fit_alignment(
                attenuated, transmissions, ("offset", "sense"), Alignment(), mirrored=mirrored
            ),
        )


if __name__ == "__main__":
    main()
