"""The alignment from the data: hidden offsets are found, and nothing is moved where nothing is known."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

from cctbx import miller
from dials.array_family import flex
from dials.util import Sorry
from dxtbx import flumpy
from dxtbx.model import ExperimentList
from dxtbx.model.experiment_list import ExperimentListFactory
from scipy.spatial.transform import Rotation
from scipy.stats import qmc

from anacor_dials.absorption.beam import BeamProfile
from anacor_dials.absorption.directions import Directions
from anacor_dials.absorption.factors import absorption_factors
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.command_line.anacor_absorption import run
from anacor_dials.diffraction.alignment import (
    CHOICES,
    MU_NODES,
    AlignmentFit,
    Equivalents,
    choices_from,
    equivalents,
    fit_alignment,
    mu_weights,
    refine_alignment,
)
from anacor_dials.diffraction.alignment.fields import error_fields
from anacor_dials.diffraction.alignment.trials import TrialTransmissions
from anacor_dials.diffraction.reflections import Alignment, experiment_of_rows, tomo_to_datum
from anacor_dials.report.alignment import alignment_record, alignment_text
from anacor_dials.sample.materials import energy_from_wavelength
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.simulation.diffraction_data import (
    predict_reflections,
    simulate_diffraction,
    write_diffraction,
)
from anacor_dials.simulation.diffraction_settings import DiffractionSettings, Sweep
from anacor_dials.simulation.i23 import i23_beam, i23_detector, thaumatin_experiments
from anacor_dials.simulation.samples import cut_box_sample

# ---- the statistics, on transmissions in closed form ----------------------------------------------
# ln A = -k (3 + f(beam to source) + f(exit)), f smooth and without symmetry; the tomo frame is that of the
# datum turned about X by the offset.


def depth(directions: np.ndarray) -> np.ndarray:
    x, y, z = directions.T
    return 0.25 * x + 0.3 * y + 0.2 * y * z + 0.15 * x * z + 0.1 * (3 * y**2 - 1)


def round_depth(directions: np.ndarray) -> np.ndarray:
    """The same for a sample that is round about X."""
    x = directions[:, 0]
    return 0.3 * x + 0.4 * x**2


def closed_form(
    data: Equivalents, f: Callable[[np.ndarray], np.ndarray] = depth
) -> Callable[[float, int], np.ndarray]:
    def log_transmissions(offset_deg: float, sense: int) -> np.ndarray:
        # M of sense -1 has X and Y the other way; then the sample turns by -offset about the axis
        turn = (
            np.diag([sense, sense, 1.0])
            @ Rotation.from_euler("x", offset_deg, degrees=True).as_matrix()
        )
        tau = 3 + f(data.to_source @ turn.T) + f(data.exit @ turn.T)
        return np.stack([-k * tau for k in MU_NODES])

    return log_transmissions


def random_equivalents(
    rng: np.random.Generator, n_unique: int = 300, noise: float = 0.03
) -> Equivalents:
    """Six observations of each unique reflection in a sweep of 180 deg about X, all of one intensity."""
    unique = np.repeat(np.arange(n_unique), 6)
    n = len(unique)
    angle = rng.uniform(0, 180, n)
    exits = rng.normal(size=(n, 3))
    exits /= np.linalg.norm(exits, axis=1, keepdims=True)
    radians = np.radians(angle)
    log_i = rng.normal(5, 1, n_unique)[unique] + noise * rng.standard_normal(n)
    log_i += 0.3 * np.sin(radians * 2)  # a smooth scale
    return Equivalents(
        log_intensity=log_i,
        relative_variance=np.full(n, 0.01**2),
        unique=unique,
        unique_apart=unique,
        cell=np.floor(angle / 10).astype(np.int64),
        experiment=np.zeros(n, dtype=np.int64),
        wavelength=np.zeros(n, dtype=np.int64),
        scan_angle_deg=angle,
        inverse_d_squared=rng.uniform(0, 0.1, n),
        to_source=np.column_stack([np.zeros(n), np.sin(radians), np.cos(radians)]),
        exit=exits,
        # the laboratory's axes are those of the datum frame at the scan angle zero
        exit_in_lab=Rotation.from_euler("x", angle[:, None], degrees=True).apply(exits),
    )


def attenuated(
    data: Equivalents,
    offset_deg: float,
    sense: int,
    mu_scale: float,
    f: Callable[[np.ndarray], np.ndarray] = depth,
) -> Equivalents:
    log_a = closed_form(data, f)(offset_deg, sense)[1] * mu_scale
    return replace(data, log_intensity=data.log_intensity + log_a)


def test_hidden_alignment_is_found_with_an_honest_error() -> None:
    """Over 8 data sets the offset and the factor on mu differ from the truth as their errors say."""
    pulls = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        offset, sense = rng.uniform(-180, 180), int(rng.choice([-1, 1]))
        data = attenuated(random_equivalents(rng, 100), offset, sense, 1.1)
        fit = fit_alignment(data, closed_form(data), ("offset", "mu_scale"), Alignment(0.0, sense))
        assert fit.moved, fit.reason
        difference = (fit.after.angle_offset_deg - offset + 180) % 360 - 180
        assert abs(difference) < 3.0
        pulls.append((difference / fit.offset_error_deg, (fit.mu_scale - 1.1) / fit.mu_scale_error))
    # the standard deviation of 8 numbers of standard deviation 1 lies there in all but 1 % of cases
    assert np.all((np.std(pulls, axis=0) > 0.35) & (np.std(pulls, axis=0) < 1.7))


def test_offsets_that_hardly_change_the_factors_are_found_badly_and_say_so() -> None:
    """Over 6 data sets factors at what was found are wrong by what is quoted for them.

    A sample that is nearly round about the axis has an offset that is far worse known than its factors.
    """

    def nearly_round(directions: np.ndarray) -> np.ndarray:
        return round_depth(directions) + 0.1 * depth(directions)

    for f, asked in ((depth, ("offset", "mu_scale")), (nearly_round, ("offset",))):
        ratios, errors = [], []
        for seed in range(6):
            data = random_equivalents(np.random.default_rng(seed), 200)
            true = closed_form(data, f)(40.0, 1)
            data = replace(data, log_intensity=data.log_intensity + true[1])
            fit = fit_alignment(data, closed_form(data, f), asked, Alignment())
            assert fit.moved, fit.reason
            found = closed_form(data, f)(fit.offset_deg, 1)
            wrong = float(np.std(mu_weights(fit.mu_scale)[0] @ found - true[1]))
            ratios.append(wrong / fit.factor_error)
            errors.append((fit.offset_error_deg, fit.factor_error))
        # the rms of 6 numbers of standard deviation 1 lies there in all but 1 % of cases
        assert 0.3 < np.sqrt(np.mean(np.square(ratios))) < 1.8
    offset_error, factor_error = np.mean(errors, axis=0)
    assert offset_error > 1.5
    assert factor_error < 0.003
    (note,) = [line for line in alignment_text(fit).splitlines() if "the factors are wrong" in line]
    assert f"by {100 * fit.factor_error:.1f} % rms" in note
    assert alignment_record(fit).best["factor_error"] == fit.factor_error


def mirror_image(directions: np.ndarray) -> np.ndarray:
    """What the mirror image of the sample in X does; X, where the program mirrors Y."""
    return depth(directions * np.array([-1.0, 1.0, 1.0]))


def mirrored_form(
    data: Equivalents, f: Callable[[np.ndarray], np.ndarray]
) -> Callable[[float, int], np.ndarray]:
    """The transmissions of the mirror image in Y of a sample."""
    return closed_form(data, lambda directions: f(directions * np.array([1.0, -1.0, 1.0])))


def test_mirrored_labels_are_told() -> None:
    """The sample is the mirror image of the labels: nothing is moved, and it says why."""
    data = attenuated(random_equivalents(np.random.default_rng(12)), 40.0, 1, 1.0, mirror_image)
    asked = ("offset", "sense")
    fit = fit_alignment(
        data, closed_form(data), asked, Alignment(), mirrored=mirrored_form(data, depth)
    )
    assert not fit.moved
    assert fit.after == Alignment()
    assert fit.refuted_mirror < -3
    assert "the labels are mirrored" in fit.warnings[0]
    right = fit_alignment(
        data,
        closed_form(data, mirror_image),
        asked,
        Alignment(),
        mirrored=mirrored_form(data, mirror_image),
    )
    assert right.moved
    assert right.after.angle_offset_deg == pytest.approx(40.0, abs=1.5)
    assert right.refuted_mirror > 3
    assert any("mirror image" in note for note in alignment_text(right).splitlines())


def with_field(data: Equivalents, rng: np.random.Generator, size: float) -> Equivalents:
    """An error that is a random polynomial of the exit direction in the laboratory; no harmonics here."""
    x, y, z = data.exit_in_lab.T
    a, b, c, d, e = size * rng.standard_normal(5)
    field = a * x + b * y + 2 * c * x * y + d * (x**2 - y**2) + 2 * e * y * z
    return replace(data, log_intensity=data.log_intensity + field)


def test_harmonics_are_orthogonal_and_fall_with_their_order() -> None:
    rng = np.random.default_rng(1)
    data = random_equivalents(rng, 3000)
    columns, kinds = error_fields(data)
    assert columns.shape == (len(data), 48)  # one sweep: no field is shared
    assert set(kinds) == {1, 2}
    gram = columns[:, :24].T @ columns[:, :24] / len(data)
    order = np.repeat([1, 2, 3, 4], [3, 5, 7, 9])
    np.testing.assert_allclose(gram, np.diag(2 / (order * (order + 1))), atol=0.05)


def test_fields_are_in_the_quoted_error() -> None:
    """Over 10 data sets with smooth errors of some per cent, offsets are wrong as their errors say."""
    pulls = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        offset = rng.uniform(-180, 180)
        data = attenuated(random_equivalents(rng, 200), offset, 1, 1.0)
        data = with_field(data, rng, 0.15)
        fit = fit_alignment(data, closed_form(data), ("offset",), Alignment())
        difference = (fit.offset_deg - offset + 180) % 360 - 180
        pulls.append(difference / fit.offset_error_deg)
    # the rms of 10 numbers of standard deviation 1 lies there in all but 1 % of cases
    assert np.sqrt(np.mean(np.square(pulls))) < 1.6


def test_outliers_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    data = attenuated(random_equivalents(rng), 40.0, 1, 1.0)
    wrong = rng.random(len(data)) < 0.03
    data = replace(data, log_intensity=data.log_intensity + np.where(wrong, 3.0, 0.0))
    fit = fit_alignment(data, closed_form(data), ("offset",), Alignment(10.0, 1))
    assert fit.moved
    assert fit.after.angle_offset_deg == pytest.approx(40.0, abs=1.5)
    assert fit.offset_error_deg < 1.0  # 2.8 with least squares
    assert fit.mu_scale == 1.0  # was not to be moved


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_moved_without_absorption(seed: int) -> None:
    data = random_equivalents(np.random.default_rng(seed))
    for asked in (CHOICES, ("mu_scale",)):
        fit = fit_alignment(data, closed_form(data), asked, Alignment(5.0, -1))
        assert not fit.moved
        assert fit.after == fit.before == Alignment(5.0, -1)
        assert fit.mu_scale == 1.0
        assert len(fit.warnings) == 1
        assert "no correction" in fit.warnings[0]
        assert fit.fitted_mu_scale < 0.2


def test_a_wrong_space_group_moves_nothing() -> None:
    """Reflections of three intensities are taken for equivalents: their differences are no absorption."""
    rng = np.random.default_rng(4)
    data = attenuated(random_equivalents(rng), 40.0, 1, 1.0)
    data = replace(data, unique=data.unique // 3, unique_apart=data.unique // 3)
    fit = fit_alignment(data, closed_form(data), ("offset", "sense"), Alignment(5.0, -1))
    assert not fit.moved
    assert fit.after == Alignment(5.0, -1)


@pytest.mark.parametrize("seed", range(2))
def test_radiation_damage_is_not_taken_for_absorption(seed: int) -> None:
    """Intensities rise or fall by 30 % (rms) over the sweep, each by its own; nothing absorbs."""
    rng = np.random.default_rng(seed)
    data = random_equivalents(rng)
    change = 0.3 * rng.standard_normal(300)[data.unique] * data.scan_angle_deg / 180
    data = replace(data, log_intensity=data.log_intensity + change)
    fit = fit_alignment(data, closed_form(data), ("offset", "sense"), Alignment(5.0, -1))
    assert not fit.moved
    assert fit.after == Alignment(5.0, -1)
    # with absorption the alignment is right, or not moved
    data = attenuated(data, 40.0, 1, 1.0)
    fit = fit_alignment(data, closed_form(data), ("offset", "sense"), Alignment(5.0, -1))
    if fit.moved:
        assert fit.sense == 1
        assert abs(fit.offset_deg - 40.0) < 3 * fit.offset_error_deg


def test_a_round_sample_has_no_offset_but_a_mu() -> None:
    data = random_equivalents(np.random.default_rng(8))
    data = attenuated(data, 0.0, 1, 1.2, round_depth)
    fit = fit_alignment(data, closed_form(data, round_depth), ("offset",), Alignment())
    assert not fit.moved
    assert "fits better than" in fit.reason
    fit = fit_alignment(data, closed_form(data, round_depth), ("mu_scale",), Alignment())
    assert fit.moved
    assert fit.mu_scale == pytest.approx(1.2, abs=0.05)


def test_two_offsets_that_fit_alike_are_not_chosen_between() -> None:
    """A sample of two-fold symmetry about the axis has two offsets."""

    def twofold(directions: np.ndarray) -> np.ndarray:
        x, y, z = directions.T
        return 0.3 * x + 0.5 * y * z + 0.4 * (y**2 - z**2)

    data = attenuated(random_equivalents(np.random.default_rng(9)), 20.0, 1, 1.0, twofold)
    fit = fit_alignment(data, closed_form(data, twofold), ("offset",), Alignment())
    assert not fit.moved
    assert fit.other is not None
    assert abs(abs(fit.other[0] - fit.offset_deg) - 180.0) < 6.0


def test_a_wrong_offset_that_is_not_to_be_refined_is_told() -> None:
    """The factor on mu would take over what the offset lacks."""
    data = attenuated(random_equivalents(np.random.default_rng(11)), 6.0, 1, 1.0)
    fit = fit_alignment(data, closed_form(data), ("mu_scale",), Alignment())
    assert not fit.moved
    assert "another angle offset, by about +" in fit.reason
    fit = fit_alignment(data, closed_form(data), ("mu_scale",), Alignment(6.0))
    assert fit.moved
    assert fit.mu_scale == pytest.approx(1.0, abs=0.05)


def test_a_mu_that_cannot_be_is_refused() -> None:
    data = attenuated(random_equivalents(np.random.default_rng(10)), 20.0, 1, 0.3)
    fit = fit_alignment(data, closed_form(data), CHOICES, Alignment())
    assert not fit.moved
    assert "times the absorption coefficients" in fit.reason


def test_transmissions_between_the_tabulated_mu() -> None:
    """Of a slab: ln((1 - exp(-k t)) / (k t)), t = 3, against the cubic through three mu and zero."""

    def log_a(k: np.ndarray) -> np.ndarray:
        return np.log(-np.expm1(-3 * k) / (3 * k))

    k = np.linspace(0.55, 1.65, 23)
    np.testing.assert_allclose(mu_weights(k) @ log_a(np.array(MU_NODES)), log_a(k), atol=4e-3)
    np.testing.assert_allclose(mu_weights(0.0), 0.0, atol=1e-12)


@pytest.mark.parametrize("sense", [1, -1])
def test_trials_with_a_slit_across_the_axis(sense: int) -> None:
    """ln A of a trial is that of the rays of each reflection, where the slit lies along Y of the lab."""
    rng = np.random.default_rng(3)
    experiments = thaumatin_experiments(
        [Sweep(0.0, 180.0, 0.1)], rng, i23_beam(4.13), i23_detector(4.13)
    )
    data = random_equivalents(rng, 6)
    beam = BeamProfile("gaussian", (40.0, 12.0), (2.0, 5.0), axis=(0.0, 1.0, 0.0))
    tracing = Tracing(beam=beam, device="cpu", tolerance=5e-3)
    trial = TrialTransmissions(
        ball_labels(), [MU_BY_LABEL], data, experiments, Alignment(), [sense], tracing
    )(40.0, sense)[1]
    to_tomo = tomo_to_datum(experiments, Alignment(40.0, sense)).T
    source = data.to_source
    slit = np.column_stack([0 * source[:, 0], source[:, 2], -source[:, 1]])  # R^T y of R^T z
    directions = Directions(
        source @ to_tomo.T,
        data.exit @ to_tomo.T,
        np.zeros(len(data), dtype=np.int64),
        np.array([[float(sense), 0.0, 0.0]]),
        slit @ to_tomo.T,
    )
    rays = absorption_factors(
        ball_labels(), MU_BY_LABEL, directions, replace(tracing, method="direct")
    )
    assert np.sqrt(np.mean((trial - np.log(rays.transmission)) ** 2)) < 0.02


def test_words_that_name_what_is_refined() -> None:
    assert choices_from(None) == choices_from(["none"]) == ()
    assert choices_from(["sense,offset"]) == ("offset", "sense")
    assert choices_from(["offset,", "mu_scale"]) == ("offset", "mu_scale")
    with pytest.raises(
        ValueError, match=r"alignment\.refine is kappa; it is none, or some of offset"
    ):
        choices_from(["kappa"])


# ---- with rays, on a sample whose paths have a closed form -----------------------------------------

CRYSTAL, LIQUOR = 3, 1
BALLS = {CRYSTAL: (np.array([2.0, -3.0, 5.0]), 14.0), LIQUOR: (np.array([-4.0, 24.0, -8.0]), 17.0)}
MU = {CRYSTAL: 0.03, LIQUOR: 0.03}
MU_BY_LABEL = np.array([0.0, MU[LIQUOR], 0.0, MU[CRYSTAL]])
OFFSET, SENSE = 7.3, -1


def ball_labels(balls: dict[int, tuple[np.ndarray, float]] = BALLS, n: int = 88) -> LabelVolume:
    """Voxels of 1 um."""
    line = np.arange(n) - (n - 1) / 2
    labels = np.zeros((n, n, n), dtype=np.uint8)
    for label, (centre, radius) in balls.items():
        x, y, z = (line - c for c in centre)
        labels[x[:, None, None] ** 2 + y[:, None] ** 2 + z**2 < radius**2] = label
    return LabelVolume(labels, 1.0)  # type: ignore[arg-type]


def chord_transmission(to_source: np.ndarray, exits: np.ndarray) -> np.ndarray:
    """A (n,) of the two balls by chords from 512 points of the crystal; no voxels, no ray tracer."""
    centre, radius = BALLS[CRYSTAL]
    r3, u, turn = qmc.Sobol(3, seed=1).random(512).T
    sine, angle = np.sqrt(1 - (2 * u - 1) ** 2), 2 * np.pi * turn
    points = centre + radius * np.cbrt(r3)[:, None] * np.column_stack(
        [sine * np.cos(angle), sine * np.sin(angle), 2 * u - 1]
    )
    tau = np.zeros((len(to_source), len(points)))
    for label, (c, r) in BALLS.items():
        o = points - c
        for directions in (to_source, exits):
            along = directions @ o.T
            inside = along**2 - (np.sum(o**2, axis=1) - r**2)
            root = np.sqrt(np.maximum(inside, 0.0))
            chord = np.maximum(root - along, 0) - np.maximum(-root - along, 0)
            tau += MU[label] * np.where(inside > 0, chord, 0.0)
    return np.exp(-tau).mean(axis=1)


Data = tuple[ExperimentList, flex.reflection_table]


@pytest.fixture(scope="module")
def perfect_data() -> Data:
    """A sweep of 90 deg at I23, true intensities with 3 % noise, and true.transmission of the balls."""
    rng = np.random.default_rng(1)
    experiments = thaumatin_experiments(
        [Sweep(0.0, 90.0, 0.1)], rng, i23_beam(4.13), i23_detector(4.13)
    )
    table = predict_reflections(experiments[0], 6.0)
    symmetry = experiments[0].crystal.get_crystal_symmetry()
    mapped = miller.set(symmetry, table["miller_index"], anomalous_flag=False).map_to_asu()
    _, unique = np.unique(np.array(list(mapped.indices())), axis=0, return_inverse=True)
    unique = unique.ravel()
    intensity = (0.2 + rng.exponential(1.0, unique.max() + 1))[unique]
    intensity *= 1 + 0.03 * rng.standard_normal(len(table))
    # the lab's axes are those of the tomo frame at omega = OFFSET, but for sense -1 X and Y reversed
    omega = np.degrees(flumpy.to_numpy(table["xyzcal.mm"])[:, 2])
    back = Rotation.from_euler("x", (OFFSET - omega)[:, None], degrees=True)
    flip = np.array([SENSE, SENSE, 1.0])
    s1 = flumpy.to_numpy(table["s1"])
    exits = back.apply(s1 / np.linalg.norm(s1, axis=1, keepdims=True)) * flip
    source = back.apply([0.0, 0.0, 1.0]) * flip
    table["true.transmission"] = flex.double(chord_transmission(source, exits))
    table["lp"] = flex.double(rng.uniform(0.5, 1.5, len(table)))
    table["qe"] = flex.double(rng.uniform(0.6, 1.0, len(table)))
    intensity *= flumpy.to_numpy(table["qe"] / table["lp"])
    table["intensity.prf.value"] = flex.double(intensity)
    table["intensity.prf.variance"] = flex.double((0.02 * intensity) ** 2 + 1e-6)
    table.set_flags(flex.bool(len(table), True), table.flags.integrated_prf)
    table.experiment_identifiers()[0] = experiments[0].identifier
    return experiments, table


def with_transmission(table: flex.reflection_table, power: float = 1.0) -> flex.reflection_table:
    table = table.copy()
    a = table["true.transmission"] if power == 1.0 else table["true.transmission"] ** power
    table["intensity.prf.value"] *= a
    table["intensity.prf.variance"] *= a * a
    return table


def refined(
    experiments: ExperimentList,
    table: flex.reflection_table,
    labels: LabelVolume,
    asked: Sequence[str] = CHOICES,
    mu: np.ndarray = MU_BY_LABEL,
    alignment: Alignment | None = None,
) -> AlignmentFit:
    index = experiment_of_rows([table], experiments)
    alignment, tracing = alignment or Alignment(), Tracing(device="cpu")
    data = equivalents(experiments, [table], index, alignment, tracing)
    return refine_alignment(data, experiments, labels, [mu], asked, alignment, tracing)


def test_offset_sense_and_mu_of_two_balls(perfect_data: Data) -> None:
    experiments, table = perfect_data
    fit = refined(experiments, with_transmission(table), ball_labels(), mu=MU_BY_LABEL / 1.1)
    assert fit.moved, fit.reason
    assert fit.after.angle_offset_deg == pytest.approx(OFFSET, abs=0.5)
    assert fit.after.rotation_sense == SENSE
    assert fit.mu_scale == pytest.approx(1.1, abs=0.03)
    assert fit.offset_error_deg < 0.3
    assert fit.mu_scale_error < 0.03
    assert fit.instrument_error == pytest.approx(0.0224, abs=0.004)  # (3 %)^2 - (2 %)^2
    assert fit.disagreement_best < 0.6 * fit.disagreement_before
    assert fit.disagreement_best <= fit.disagreement.min()
    lowest = np.unravel_index(np.argmin(fit.disagreement), fit.disagreement.shape)
    assert fit.senses[lowest[0]] == SENSE
    assert abs(fit.offsets_deg[lowest[1]] - OFFSET) < 5.0
    said = alignment_record(fit)
    assert said.to["angle_offset_deg"] == fit.after.angle_offset_deg
    assert len(said.curve["by_sense"]) == 2


def test_data_without_absorption_move_nothing(perfect_data: Data) -> None:
    experiments, table = perfect_data
    given = Alignment(33.0, -1)
    fit = refined(experiments, table, ball_labels(), ("offset",), alignment=given)
    assert not fit.moved
    assert fit.after == given
    assert len(fit.warnings) == 1


def test_a_ball_on_the_axis_moves_nothing(perfect_data: Data) -> None:
    """The data have absorption, of the two balls, but the labels are a ball: nothing can be learned."""
    experiments, table = perfect_data
    ball = ball_labels({CRYSTAL: (np.zeros(3), 16.0)}, 48)
    fit = refined(experiments, with_transmission(table), ball, ("offset", "mu_scale"))
    assert not fit.moved


def test_too_few_equivalents(perfect_data: Data) -> None:
    experiments, table = perfect_data
    few = with_transmission(table).select(flex.bool(np.arange(len(table)) % 25 == 0))
    fit = refined(experiments, few, ball_labels())
    assert not fit.moved
    assert "are needed" in fit.warnings[0]
    assert alignment_record(fit).moved is False


def test_bad_input_is_one_sentence(perfect_data: Data) -> None:
    experiments, table = perfect_data

    def refused(
        change: Callable[[ExperimentList, flex.reflection_table], None], message: str
    ) -> None:
        copy = ExperimentListFactory.from_dict(experiments.to_dict(), check_format=False)
        rows = table.copy()
        change(copy, rows)
        with pytest.raises(ValueError, match=message) as caught:
            refined(copy, rows, ball_labels())
        assert len(str(caught.value).splitlines()) == 1

    def stills(e: ExperimentList, _: flex.reflection_table) -> None:
        e[0].scan = None

    def no_crystal(e: ExperimentList, _: flex.reflection_table) -> None:
        e[0].crystal = None

    def no_symmetry(e: ExperimentList, t: flex.reflection_table) -> None:
        from cctbx.sgtbx import space_group

        e[0].crystal.set_space_group(space_group("P 1"))
        t.del_selected(flex.bool(np.arange(len(t)) > 100))

    def not_indexed(_: ExperimentList, t: flex.reflection_table) -> None:
        t["miller_index"] = flex.miller_index(len(t), (0, 0, 0))

    def no_indices(_: ExperimentList, t: flex.reflection_table) -> None:
        del t["miller_index"]

    def not_integrated(_: ExperimentList, t: flex.reflection_table) -> None:
        del t["intensity.prf.value"]

    refused(stills, "needs rotation scans")
    refused(no_crystal, "no crystal model")
    refused(no_symmetry, r"dials\.symmetry")
    refused(not_indexed, "No reflection is indexed")
    refused(no_indices, "no Miller indices")
    refused(not_integrated, "no integrated intensities")


# ---- from end to end -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for handler in list(logging.getLogger("dials").handlers):  # of the log in the folder
        logging.getLogger("dials").removeHandler(handler)


def factors_against(table: flex.reflection_table, true: np.ndarray) -> float:
    """rms relative difference of the factors of a table, after one scale."""
    ratio = flumpy.to_numpy(table["analytical_correction"]) / true
    return float(np.sqrt(np.mean((ratio / ratio.mean() - 1) ** 2)))


@pytest.mark.slow
def test_virtual_data_through_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two sweeps, one with kappa; factors by the simulation's own mesh tracer."""
    sample = cut_box_sample()
    energy = energy_from_wavelength(4.13)
    experiments, table = simulate_diffraction(
        sample,
        np.random.default_rng(3),
        DiffractionSettings(
            d_min=5.0,
            sweeps=[Sweep(0.0, 60.0, 0.1), Sweep(20.0, 60.0, 0.1, kappa=40.0, phi=30.0)],
            angle_offset=OFFSET,
            rotation_sense=SENSE,
            n_points=256,
        ),
    )
    write_diffraction(experiments, table, "models.expt", "observations.refl")
    write_sample_file(
        "tomo.h5",
        labels=sample.label_volume(1.0),
        mu_per_um=np.asarray(sample.mu_per_um(energy)) / 1.1,
        energy_keV=energy,
    )
    command = ["models.expt", "observations.refl", "tomo.h5", "absorption.tolerance=0.3"]
    run([*command, "alignment.refine=offset,sense,mu_scale", "alignment.angle_offset=-40"])
    content = json.loads(Path("anacor_absorption.json").read_text())
    fit = content["alignment"]
    assert fit["moved"]
    assert fit["from"]["angle_offset_deg"] == -40.0
    assert fit["to"]["angle_offset_deg"] == pytest.approx(OFFSET, abs=0.5)
    assert fit["to"]["rotation_sense"] == SENSE
    assert fit["to"]["mu_scale"] == pytest.approx(1.1, abs=0.03)
    assert 0 < fit["best"]["angle_offset_error_deg"] < 0.5
    mu = [m["mu_per_um"] for m in content["wavelengths"][0]["materials"]]
    scaled = np.asarray(sample.mu_per_um(energy)) / 1.1 * fit["to"]["mu_scale"]
    np.testing.assert_allclose(mu, scaled, rtol=1e-9)
    true = flumpy.to_numpy(table["true.transmission"])
    corrected = flex.reflection_table.from_file("corrected.refl")
    assert factors_against(corrected, true) < 0.03
    html = Path("anacor_absorption.html").read_text()
    assert "<h2>Alignment</h2>" in html
    assert "times" in html
    assert "angle offset (deg)" in Path("anacor_absorption.log").read_text()

    # without refine the alignment given is used, and it is far off
    run([*command, "alignment.angle_offset=-40"])
    assert json.loads(Path("anacor_absorption.json").read_text())["alignment"] is None
    assert factors_against(flex.reflection_table.from_file("corrected.refl"), true) > 0.06

    # the same intensities without absorption
    for method in ("prf", "sum"):
        table[f"intensity.{method}.value"] /= table["true.transmission"]
        table[f"intensity.{method}.variance"] /= table["true.transmission"] ** 2
    table.as_file("observations.refl")
    run([*command, "alignment.refine=offset,sense,mu_scale", "output.html=None"])
    content = json.loads(Path("anacor_absorption.json").read_text())
    assert not content["alignment"]["moved"]
    assert content["alignment"]["to"] == content["alignment"]["from"]
    assert [w for w in content["warnings"] if "alignment.refine" in w] == content["warnings"]
    assert len(content["warnings"]) == 1

    with pytest.raises(Sorry, match=r"alignment\.refine is angle"):
        run([*command, "alignment.refine=angle"])


@pytest.mark.slow
def test_real_sweeps_with_a_hidden_alignment(shared_data: Path) -> None:
    """Two real sweeps with different axes, attenuated by chords through two balls."""
    experiments, tables = ExperimentList(), []
    for number in (20, 25):
        name = f"{shared_data / 'l_cysteine'}/sweep_{number}"
        experiments.extend(ExperimentListFactory.from_json_file(f"{name}.expt", check_format=False))
        tables.append(flex.reflection_table.from_file(f"{name}.refl"))

    def rotation(elements: Sequence[float]) -> Rotation:
        return Rotation.from_matrix(np.array(elements).reshape(3, 3))

    def turned(number: int, phi: np.ndarray) -> Rotation:
        goniometer = experiments[number].goniometer
        axis = np.array(goniometer.get_rotation_axis_datum())
        about = Rotation.from_rotvec(np.asarray(phi)[..., None] * axis)
        fixed = rotation(goniometer.get_fixed_rotation())
        return rotation(goniometer.get_setting_rotation()) * about * fixed

    # the tomo frame at the hidden offset and sense, from the definition in docs/conventions.md
    e = SENSE * np.array(experiments[0].goniometer.get_rotation_axis())
    z = -np.array(experiments[0].beam.get_s0())
    z -= e * (z @ e) / (e @ e)
    e, z = e / np.linalg.norm(e), z / np.linalg.norm(z)
    lab_of_tomo = Rotation.from_matrix(np.column_stack([e, np.cross(z, e), z]))
    datum_of_tomo = turned(0, np.radians(OFFSET)).inv() * lab_of_tomo
    attenuated_tables = []
    for number, table in enumerate(tables):
        to_tomo = (
            datum_of_tomo.inv() * turned(number, flumpy.to_numpy(table["xyzcal.mm"])[:, 2]).inv()
        )
        s1 = flumpy.to_numpy(table["s1"])
        exits = to_tomo.apply(s1 / np.maximum(np.linalg.norm(s1, axis=1, keepdims=True), 1e-9))
        source = to_tomo.apply(experiments[number].beam.get_sample_to_source_direction())
        copy = table.copy()
        copy["true.transmission"] = flex.double(chord_transmission(source, exits))
        attenuated_tables.append(with_transmission(copy))

    def found(of: list[flex.reflection_table]) -> AlignmentFit:
        index = experiment_of_rows(of, experiments)
        labels = ball_labels()
        tracing = Tracing(device="cpu")
        data = equivalents(experiments, of, index, Alignment(), tracing)
        return refine_alignment(
            data, experiments, labels, [MU_BY_LABEL / 1.1], CHOICES, Alignment(), tracing
        )

    fit = found(attenuated_tables)
    assert fit.moved, fit.reason
    assert fit.after.angle_offset_deg == pytest.approx(OFFSET, abs=1.0)
    assert fit.after.rotation_sense == SENSE
    assert abs(fit.mu_scale - 1.1) < 3 * fit.mu_scale_error < 0.3
    assert not found(tables).moved
