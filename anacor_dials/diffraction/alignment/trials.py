"""Transmissions of the observations at trial alignments.

ln A comes from direction tables of the sample at 0.6, 1 and 1.4 times mu, and between them (and A =
1 at mu = 0) from the cubic through the four. When the offset changes, all directions of all sweeps
turn together about X of the tomo frame, whatever kappa was. Therefore directions to the source keep
their angle from X, and the tables have rings of constant angle from X.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from dxtbx.model import ExperimentList
from numpy.typing import NDArray

from anacor_dials.absorption.direction_table import TableSum
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.factors import absorption_factors
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.diffraction.alignment.equivalents import Equivalents
from anacor_dials.diffraction.reflections import (
    Alignment,
    axis_of_beam,
    sample_rotations,
    tomo_to_datum,
)
from anacor_dials.sample.frames import FloatArray, rotation_about, transform, unit
from anacor_dials.sample.progress import followed
from anacor_dials.sample.volumes import LabelVolume

# the cubic through these and 0 is good to 0.4 % for a slab of mu t = 3 (its test)
MU_NODES = (0.6, 1.0, 1.4)
TABLE_TOLERANCE = 5e-3  # of A: little beside the disagreement of equivalents, some per cent
# Directions to the source off the axis by another angle are interpolated between rings.
RING_STEP_DEG = 10.0
RING_AZIMUTHS = 72  # directions per ring, which make its arc a closed one


LogTransmission = Callable[[float, int], FloatArray]


class TrialTransmissions:
    """ln A of the observations at MU_NODES times mu, for any offset and sense.

    A call with (angle_offset_deg, rotation_sense) returns an array (3, n).

    Parameters
    ----------
    labels : LabelVolume
    mu_per_um : sequence of array (n_labels,)
        mu at each wavelength, 1/um.
    data : Equivalents
    experiments : ExperimentList
    alignment : Alignment
        Its reference experiment is that of all trials.
    senses : sequence of int
        The rotation senses that will be asked for.
    tracing : Tracing
        Beam, memory, threads, device and seed are used; tolerance and method are not.
    progress : bool
        Whether to show a progress bar.
    """

    def __init__(
        self,
        labels: LabelVolume,
        mu_per_um: Sequence[FloatArray],
        data: Equivalents,
        experiments: ExperimentList,
        alignment: Alignment,
        senses: Sequence[int],
        tracing: Tracing,
        progress: bool = False,
    ) -> None:
        self._experiments = experiments
        self._alignment = alignment
        self._data = data
        self._senses = list(senses)
        self._beam = tracing.beam
        polar = np.degrees(np.arccos(np.clip(self._to_tomo(0.0, 1)[0][:, 0], -1.0, 1.0)))
        self._rings = {
            sense: _ring_angles(polar if sense == 1 else 180.0 - polar) for sense in senses
        }
        directions = self._table_directions(np.random.default_rng(tracing.seed))
        steps = followed(
            [(mu, k) for mu in mu_per_um for k in MU_NODES],
            "Direction tables of the alignment",
            bar=progress,
        )
        self._tables: list[list[TableSum]] = [[] for _ in mu_per_um]
        for number, (mu, k) in enumerate(steps):
            factors = absorption_factors(
                labels,
                k * np.asarray(mu),
                directions,
                replace(tracing, tolerance=TABLE_TOLERANCE, method="table"),
            )
            assert factors.table is not None
            self._tables[number // len(MU_NODES)].append(factors.table)

    def _to_tomo(self, offset_deg: float, sense: int) -> tuple[FloatArray, FloatArray]:
        """Directions to the source and of exit (n, 3) in the tomo frame of a trial."""
        trial = replace(self._alignment, angle_offset_deg=offset_deg, rotation_sense=sense)
        from_datum = tomo_to_datum(self._experiments, trial).T
        return transform(from_datum, self._data.to_source), transform(from_datum, self._data.exit)

    def _table_directions(self, rng: np.random.Generator) -> Directions:
        """Directions to the source on all rings, with exits as the observations have them."""
        azimuth = np.arange(RING_AZIMUTHS) * (360.0 / RING_AZIMUTHS)
        about_x = rotation_about((1.0, 0.0, 0.0), azimuth)
        sources, exits, axes, beam_axes = [], [], [], []
        for sense in self._senses:
            of_sense = self._to_tomo(0.0, sense)[1]
            beam_axis = self._beam_axis(sense)
            for angle in self._rings[sense]:
                start = rotation_about((0.0, 0.0, 1.0), angle) @ np.array([1.0, 0.0, 0.0])
                sources.append(about_x @ start)
                beam_axes.append(about_x @ beam_axis)
                some = of_sense[rng.integers(len(of_sense), size=RING_AZIMUTHS)]
                turned = rotation_about((1.0, 0.0, 0.0), rng.uniform(0, 360, RING_AZIMUTHS))
                exits.append(transform(turned, some))
                axes.append((float(sense), 0.0, 0.0))
        return Directions(
            np.concatenate(sources),
            np.concatenate(exits),
            np.repeat(np.arange(len(axes)), RING_AZIMUTHS),
            np.array(axes),
            None if self._beam is None else np.concatenate(beam_axes),
        )

    def _beam_axis(self, sense: int) -> FloatArray:
        """The axis of the beam's cross-section (3,) at the first direction to the source of a ring.

        The beam turns about X in the tomo frame as the direction to the source does, from where it
        lies in the reference experiment; see equivalents().
        """
        axis = axis_of_beam(self._experiments, self._alignment, self._beam)
        if axis is None:
            return np.array([float(sense), 0.0, 0.0])
        reference = self._experiments[self._alignment.reference_experiment]
        trial = replace(self._alignment, angle_offset_deg=0.0, rotation_sense=sense)
        from_lab = (sample_rotations(reference, 0.0) @ tomo_to_datum(self._experiments, trial)).T
        _, y, z = from_lab @ unit(reference.beam.get_sample_to_source_direction())
        back = rotation_about((1.0, 0.0, 0.0), -math.degrees(math.atan2(z, y)))
        return back @ from_lab @ axis

    def __call__(self, offset_deg: float, sense: int) -> FloatArray:
        return self._of(*self._to_tomo(offset_deg, sense), sense)

    def mirrored(self, offset_deg: float, sense: int) -> FloatArray:
        """The same for the mirror image of the sample: Y of the tomo frame has the other sign.

        Every other mirror image is this one at another offset, or with the other sense. What the
        sample does to a pair of directions, its mirror image does to the mirror images of both.
        """
        flip = np.array([1.0, -1.0, 1.0])
        source, exit_ = self._to_tomo(offset_deg, sense)
        return self._of(source * flip, exit_ * flip, sense)

    def _of(self, source: FloatArray, exit_: FloatArray, sense: int) -> FloatArray:
        """ln A (3, n) of directions to the source and of exit (n, 3) in the tomo frame."""
        first = sum(len(self._rings[s]) for s in self._senses[: self._senses.index(sense)])
        base, weights = _ring_weights(self._rings[sense], source[:, 0])
        result = np.zeros((len(MU_NODES), len(source)))
        for number, tables in enumerate(self._tables):
            mine = self._data.wavelength == number
            for node, table in enumerate(tables):
                for step in range(weights.shape[1]):
                    result[node, mine] += weights[mine, step] * table(
                        source[mine], exit_[mine], first + base[mine] + step
                    )
        return result


def _ring_angles(polar_deg: FloatArray) -> FloatArray:
    """Angles from X of the rings of directions to the source: one, or at least four, deg."""
    low, high = float(polar_deg.min()), float(polar_deg.max())
    if high - low < 0.02:
        return np.array([0.5 * (low + high)])
    low, high = max(low - RING_STEP_DEG, 3.0), min(high + RING_STEP_DEG, 177.0)
    return np.linspace(low, high, max(4, math.ceil((high - low) / RING_STEP_DEG) + 1))


def _ring_weights(
    rings_deg: FloatArray, cosine: FloatArray
) -> tuple[NDArray[np.int64], FloatArray]:
    """The first ring (n,) and the weights (n, 1 or 4) from it on: cubic interpolation."""
    if len(rings_deg) == 1:
        return np.zeros(len(cosine), dtype=np.int64), np.ones((len(cosine), 1))
    place = (np.degrees(np.arccos(np.clip(cosine, -1, 1))) - rings_deg[0]) / (
        rings_deg[1] - rings_deg[0]
    )
    base = np.clip(np.floor(place).astype(np.int64) - 1, 0, len(rings_deg) - 4)
    nodes = np.arange(4)
    return base, _lagrange(nodes, place - base)


def _lagrange(nodes: Sequence[float] | NDArray[Any], x: FloatArray) -> FloatArray:
    """Polynomials (n, n_nodes) at x (n,), each 1 at its node and 0 at the others."""
    columns = []
    for i, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != i]
        columns.append(np.prod([(x - o) / (node - o) for o in others], axis=0))
    return np.stack(columns, axis=-1)


def mu_weights(mu_scale: FloatArray | float) -> FloatArray:
    """The weights (n, 3) of ln A at MU_NODES that give ln A at mu_scale (n,) times mu.

    The cubic through the three nodes and through ln A = 0 at mu_scale = 0.
    """
    return _lagrange((0.0, *MU_NODES), np.atleast_1d(np.asarray(mu_scale, dtype=float)))[:, 1:]
