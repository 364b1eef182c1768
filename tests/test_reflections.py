"""Directions of reflections in the sample's frame, and what is written into the tables."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.model import BeamFactory, Experiment, ExperimentList, GoniometerFactory, ScanFactory
from dxtbx.model.experiment_list import ExperimentListFactory
from scipy.spatial.transform import Rotation

from anacor_dials.diffraction.reflections import (
    DIVIDED_COLUMN,
    ERROR_COLUMN,
    FACTOR_COLUMN,
    Alignment,
    combined,
    experiment_of_rows,
    require_columns,
    row_directions,
    sample_rotations,
    scale_command,
    sweep_axes,
    tomo_to_datum,
    warnings_for_scaling,
    write_factors,
)
from anacor_dials.diffraction.wavelengths import wavelength_groups
from anacor_dials.sample.frames import source_directions


def scan_experiment(
    axis: tuple[float, float, float] = (1.0, 0.0, 0.0),
    width: float = 90.0,
    wavelength: float = 3.1,
    identifier: str = "",
) -> Experiment:
    """One axis, the beam along -Z of the lab, images of 0.5 degrees."""
    n = max(1, round(width / 0.5))
    return Experiment(
        beam=BeamFactory.simple(wavelength),
        goniometer=GoniometerFactory.known_axis(axis),
        scan=ScanFactory.make_scan(
            (1, n), 0.1, (0.0, width / n), dict.fromkeys(range(1, n + 1), 0.0)
        ),
        identifier=identifier,
    )


def kappa_experiment(kappa_deg: float, phi_deg: float) -> Experiment:
    """Omega, kappa at 50 degrees to it, phi; the scan about omega."""
    experiment = scan_experiment()
    axes = flex.vec3_double([(1, 0, 0), (0.642788, -0.766044, 0), (1, 0, 0)])
    experiment.goniometer = GoniometerFactory.multi_axis(
        axes, flex.double([phi_deg, kappa_deg, 0.0]), flex.std_string(["phi", "kappa", "omega"]), 2
    )
    return experiment


def table_at(phi_rad: np.ndarray, s1: np.ndarray, id_: int = 0) -> flex.reflection_table:
    """A table with the columns that directions need; every row is indexed."""
    n = len(phi_rad)
    table = flex.reflection_table()
    table["id"] = flex.int(n, id_)
    table["miller_index"] = flex.miller_index([(1, 2, i + 1) for i in range(n)])
    table["s1"] = flumpy.vec_from_numpy(np.ascontiguousarray(s1, dtype=np.float64))
    xyz = np.zeros((n, 3))
    xyz[:, 2] = phi_rad
    table["xyzcal.mm"] = flumpy.vec_from_numpy(xyz)
    return table


@pytest.mark.parametrize("sweep", [20, 25, 30, 35])
def test_directions_are_those_of_the_reciprocal_lattice(shared_data: Path, sweep: int) -> None:
    """(exit + to_source) / wavelength = U B h, on real sweeps about phi and omega, F not 1."""
    folder = shared_data / "l_cysteine"
    experiments = ExperimentListFactory.from_json_file(
        str(folder / f"sweep_{sweep}.expt"), check_format=False
    )
    table = flex.reflection_table.from_file(str(folder / f"sweep_{sweep}.refl"))
    (index,) = experiment_of_rows([table], experiments)
    alignment = Alignment(angle_offset_deg=33.0, rotation_sense=-1)
    matrix = tomo_to_datum(experiments, alignment)
    found = row_directions(table, index, experiments, matrix)

    crystal = experiments[0].crystal
    a_of_image = np.array(
        [crystal.get_A_at_scan_point(i) for i in range(crystal.num_scan_points)]
    ).reshape(-1, 3, 3)
    predicted = np.isin(
        found.rows, flumpy.to_numpy(table.get_flags(table.flags.integrated).iselection())
    )
    rows = found.rows[predicted]
    image = flumpy.to_numpy(table["xyzcal.px"])[rows, 2] - experiments[0].scan.get_array_range()[0]
    h = np.array(list(table["miller_index"]))[rows]
    of_lattice = np.einsum("nij,nj->ni", a_of_image[np.round(image).astype(int)], h) @ matrix
    wavelength = experiments[0].beam.get_wavelength()
    scattering = (found.exit + found.to_source)[predicted] / wavelength
    assert len(rows) > 1000
    assert np.median(np.linalg.norm(scattering - of_lattice, axis=1)) < 5e-5


def test_the_beam_comes_from_where_the_tomography_saw_it() -> None:
    """With the beam at right angles to the axis, the scan angle is rotation_angle up to offset and sense."""
    rng = np.random.default_rng(2)
    phi_deg = rng.uniform(0, 360, 50)
    for axis in ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.6, 0.8, 0.0)):
        experiments = ExperimentList([scan_experiment(axis, 360.0)])
        for sense in (1, -1):
            for offset in (0.0, 47.0):
                matrix = tomo_to_datum(experiments, Alignment(offset, sense))
                table = table_at(np.radians(phi_deg), np.tile([0.1, 0.2, -0.3], (50, 1)))
                found = row_directions(table, np.zeros(50, np.int64), experiments, matrix)
                expected = source_directions(sense * (phi_deg - offset))
                np.testing.assert_allclose(found.to_source, expected, atol=1e-9)
                np.testing.assert_allclose(
                    sweep_axes(experiments, matrix)[0], [sense, 0.0, 0.0], atol=1e-9
                )


def test_exit_directions_turn_with_the_sample() -> None:
    """Against rotations of scipy, written out: tomo = M^T S^-1 ... for one axis along lab Y."""
    phi_deg = np.array([0.0, 30.0, 200.0])
    s1 = np.array([[0.1, 0.25, -0.2], [0.3, -0.1, 0.05], [-0.2, 0.1, 0.22]])
    experiments = ExperimentList([scan_experiment((0.0, 1.0, 0.0), 360.0)])
    matrix = tomo_to_datum(experiments, Alignment(angle_offset_deg=20.0))
    found = row_directions(
        table_at(np.radians(phi_deg), s1), np.zeros(3, np.int64), experiments, matrix
    )
    # lab: axis +y, source at +z. tomo X = lab y, Z = lab z at phi = 20, Y = Z x X = -lab x
    for phi, s, exit_direction in zip(phi_deg, s1, found.exit, strict=True):
        x, y, z = Rotation.from_euler("y", -(phi - 20.0), degrees=True).apply(s / np.linalg.norm(s))
        np.testing.assert_allclose(exit_direction, [y, -x, z], atol=1e-9)


def test_a_kappa_setting_follows_through_the_datum_frame() -> None:
    """The same ray of the sample, seen in two kappa settings, has one direction in the tomo frame."""
    experiments = ExperimentList([kappa_experiment(0.0, 0.0), kappa_experiment(40.0, 25.0)])
    matrix = tomo_to_datum(experiments, Alignment(angle_offset_deg=10.0))
    ray = np.array([0.36, 0.48, 0.8])  # in the sample
    directions = []
    for number, phi_deg in ((0, 15.0), (1, 70.0)):
        goniometer = experiments[number].goniometer
        # dxtbx turns about the axes in their order, the one nearest to the sample first
        axes = np.array(list(goniometer.get_axes()))
        angles = list(goniometer.get_angles())
        angles[2] = phi_deg
        lab = ray
        for axis, angle in zip(axes, angles, strict=True):
            lab = Rotation.from_rotvec(np.radians(angle) * axis).apply(lab)
        table = table_at(np.radians([phi_deg]), lab[None] / 3.1)
        index = np.full(1, number)
        directions.append(row_directions(table, index, experiments, matrix).exit[0])
    np.testing.assert_allclose(directions[0], directions[1], atol=1e-6)
    axes = sweep_axes(experiments, matrix)
    np.testing.assert_allclose(axes[0], [1.0, 0.0, 0.0], atol=1e-9)
    # the sample's own axis of the second sweep does not move when that sweep's omega turns
    second = experiments[1]
    lab_axis = [sample_rotations(second, np.array(phi)) @ (matrix @ axes[1]) for phi in (0.0, 50.0)]
    np.testing.assert_allclose(lab_axis[0], lab_axis[1], atol=1e-9)


def test_rows_without_direction() -> None:
    s1 = np.array(
        [[0.1, 0.2, -0.3], [0.0, 0.0, 0.0], [np.nan, 0.1, 0.2], [0.1, 0.2, -0.3], [0.3, 0, 0]]
    )
    table = table_at(np.zeros(5), s1)
    table["miller_index"][3] = (0, 0, 0)
    table["id"][4] = -1
    experiments = ExperimentList([scan_experiment()])
    (index,) = experiment_of_rows([table], experiments)
    found = row_directions(table, index, experiments, np.eye(3))
    assert found.rows.tolist() == [0]


def test_a_still_takes_phi_zero() -> None:
    still = scan_experiment()
    still.scan = None
    experiments = ExperimentList([still])
    table = table_at(np.array([1.2]), np.array([[0.1, 0.2, -0.25]]))
    found = row_directions(table, np.zeros(1, np.int64), experiments, np.eye(3))
    np.testing.assert_allclose(found.to_source[0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(found.exit[0] * np.linalg.norm([0.1, 0.2, 0.25]), [0.1, 0.2, -0.25])


def test_tables_find_their_experiments_by_identifier() -> None:
    experiments = ExperimentList(
        [scan_experiment(identifier="first"), scan_experiment(identifier="second")]
    )
    table = table_at(np.zeros(3), np.ones((3, 3)))
    table["id"] = flex.int([1, 0, -1])
    table.experiment_identifiers()[0] = "second"
    table.experiment_identifiers()[1] = "first"
    (index,) = experiment_of_rows([table], experiments)
    assert index.tolist() == [0, 1, -1]

    table.experiment_identifiers()[1] = "third"
    with pytest.raises(ValueError, match="third have no model"):
        experiment_of_rows([table], experiments)


def test_tables_without_identifiers_go_by_order() -> None:
    experiments = ExperimentList([scan_experiment(), scan_experiment()])
    tables = [table_at(np.zeros(2), np.ones((2, 3))) for _ in range(2)]
    indices = experiment_of_rows(tables, experiments)
    assert [i.tolist() for i in indices] == [[0, 0], [1, 1]]
    with pytest.raises(ValueError, match="no identifiers say which belongs to which"):
        experiment_of_rows(tables + [tables[0]], experiments)


def test_missing_columns_are_named() -> None:
    experiments = ExperimentList([scan_experiment()])
    table = table_at(np.zeros(2), np.ones((2, 3)))
    without = copy.deepcopy(table)
    del without["s1"]
    with pytest.raises(ValueError, match="no column s1"):
        require_columns([without], experiments)
    without = copy.deepcopy(table)
    del without["xyzcal.mm"]
    with pytest.raises(ValueError, match="neither xyzcal.mm nor xyzobs.mm.value"):
        require_columns([without], experiments)


def test_factors_are_refused_unless_they_are_transmissions() -> None:
    table = table_at(np.zeros(2), np.ones((2, 3)))
    for bad in (0.0, np.nan, np.inf, 1.01, -0.1):
        with pytest.raises(ValueError, match="not between 0 and 1"):
            write_factors(table, np.array([0.5, bad]), np.zeros(2))
    assert FACTOR_COLUMN not in table
    write_factors(table, np.array([0.5, 1.0]), np.array([0.001, 0.0]))
    assert list(table[FACTOR_COLUMN]) == [0.5, 1.0]
    assert list(table[ERROR_COLUMN]) == [0.001, 0.0]


def test_intensities_are_divided_once_only() -> None:
    experiments = ExperimentList([scan_experiment()])
    table = table_at(np.zeros(2), np.ones((2, 3)))
    for method in ("prf", "sum"):
        table[f"intensity.{method}.value"] = flex.double([10.0, 20.0])
        table[f"intensity.{method}.variance"] = flex.double([4.0, 9.0])
    write_factors(table, np.array([0.5, 0.1]), np.zeros(2), mode="intensities")
    assert list(table["intensity.prf.value"]) == pytest.approx([20.0, 200.0])
    assert list(table["intensity.sum.variance"]) == pytest.approx([16.0, 900.0])
    assert list(table[DIVIDED_COLUMN]) == [0.5, 0.1]
    assert FACTOR_COLUMN not in table
    with pytest.raises(ValueError, match="second correction is refused"):
        require_columns([table], experiments)
    column = table_at(np.zeros(2), np.ones((2, 3)))
    write_factors(column, np.array([0.5, 0.1]), np.zeros(2))
    with pytest.raises(ValueError, match="already"):
        write_factors(column, np.array([0.5, 0.1]), np.zeros(2), mode="intensities")


def test_combined_tables_keep_rows_and_identifiers() -> None:
    experiments = ExperimentList([scan_experiment(identifier="a"), scan_experiment(identifier="b")])
    tables = [table_at(np.array([0.1 * i, 0.2]), np.ones((2, 3))) for i in range(2)]
    for table, name in zip(tables, "ba", strict=True):
        table.experiment_identifiers()[0] = name
    one, index = combined(tables, experiments)
    assert list(one["id"]) == index.tolist() == [1, 1, 0, 0]
    assert dict(one.experiment_identifiers()) == {0: "a", 1: "b"}
    assert [z for _, _, z in one["xyzcal.mm"]] == pytest.approx([0.0, 0.2, 0.1, 0.2])


def test_wavelengths_are_grouped() -> None:
    experiments = ExperimentList([scan_experiment(wavelength=w) for w in (3.1, 2.7, 3.1 + 1e-6)])
    assert [(round(w, 3), m) for w, m in wavelength_groups(experiments)] == [
        (3.1, [0, 2]),
        (2.7, [1]),
    ]


def test_narrow_scans_and_scaled_models_are_warned_of() -> None:
    wide = ExperimentList([scan_experiment(width=90.0)])
    narrow = ExperimentList([scan_experiment(width=0.5)])
    assert warnings_for_scaling(wide) == []
    assert "KB" in warnings_for_scaling(narrow)[0]
    assert "KB.analytical_correction=True" in scale_command("a.expt", "a.refl", narrow)
    assert "KB" not in scale_command("a.expt", "a.refl", wide)


def test_alignment_is_checked() -> None:
    experiments = ExperimentList([scan_experiment()])
    with pytest.raises(ValueError, match="rotation_sense is 2"):
        Alignment(rotation_sense=2)
    with pytest.raises(ValueError, match="reference_experiment is 3"):
        tomo_to_datum(experiments, Alignment(reference_experiment=3))
    experiments[0].goniometer = None
    with pytest.raises(ValueError, match="have no goniometer"):
        tomo_to_datum(experiments, Alignment())
