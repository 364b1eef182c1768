"""dials.anacor_absorption as a user runs it: the factors, the files, and bad input."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

from dials.array_family import flex
from dials.util import Sorry
from dxtbx import flumpy
from dxtbx.model import (
    BeamFactory,
    Crystal,
    DetectorFactory,
    Experiment,
    ExperimentList,
    GoniometerFactory,
    ScanFactory,
)
from dxtbx.model.experiment_list import ExperimentListFactory
from scipy.spatial.transform import Rotation
from scipy.stats import qmc

from anacor_dials.command_line.anacor_absorption import run
from anacor_dials.diffraction.merging import compare_merging_statistics
from anacor_dials.diffraction.scaling import scale
from anacor_dials.sample import memory, tomogram_files
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.sample.volumes import LabelVolume

# ---- a sample whose paths have a closed form ------------------------------------------------------
# Two balls that are not concentric with anything: the crystal, and a larger ball of liquor beside it.
CRYSTAL, LIQUOR = 3, 1
BALLS = {CRYSTAL: (np.array([3.0, -2.0, 4.0]), 14.0), LIQUOR: (np.array([-4.0, 31.0, -10.0]), 18.0)}
MU = {CRYSTAL: 0.02, LIQUOR: 0.03}
WAVELENGTH = 3.1


Balls = Mapping[int, tuple[np.ndarray, float]]


def two_balls(voxel_um: float = 1.0, edge_um: float = 110.0, balls: Balls = BALLS) -> LabelVolume:
    n = round(edge_um / voxel_um)
    labels = np.zeros((n, n, n), dtype=np.uint8)
    line = (np.arange(n) - (n - 1) / 2) * voxel_um
    for label, (centre, radius) in balls.items():
        x, y, z = (line - c for c in centre)
        inside = x[:, None, None] ** 2 + y[:, None] ** 2 + z**2 < radius**2
        labels[inside] = label
    return LabelVolume(labels, voxel_um)  # type: ignore[arg-type]


def chord(
    points: np.ndarray, directions: np.ndarray, centre: np.ndarray, radius: float
) -> np.ndarray:
    """Length (n, m) inside a ball of rays from points (m, 3) along directions (n, 3)."""
    offset = points - centre
    along = directions @ offset.T
    inside = along**2 - (np.sum(offset**2, axis=1) - radius**2)
    root = np.sqrt(np.maximum(inside, 0.0))
    return np.where(inside > 0, np.maximum(root - along, 0) - np.maximum(-root - along, 0), 0.0)


def ball_transmission(
    to_source: np.ndarray, exits: np.ndarray, mu: Mapping[int, float], balls: Balls = BALLS
) -> np.ndarray:
    """A (n,) by chords from 4096 points of the crystal; no voxels, no ray tracer."""
    centre, radius = balls[CRYSTAL]
    # a Sobol sequence in radius^3, cos(theta) and phi: good to 0.2 %, where random points give 1.5 %
    r3, u, turn = qmc.Sobol(3, seed=11).random(4096).T
    sine = np.sqrt(1 - (2 * u - 1) ** 2)
    angle = 2 * np.pi * turn
    unit = np.column_stack([sine * np.cos(angle), sine * np.sin(angle), 2 * u - 1])
    points = centre + radius * np.cbrt(r3)[:, None] * unit
    tau = np.zeros((len(to_source), len(points)))
    for label, ball in balls.items():
        for directions in (to_source, exits):
            tau += mu[label] * chord(points, directions, *ball)
    return np.exp(-tau).mean(axis=1)


# ---- diffraction data of it -----------------------------------------------------------------------


def experiment_with(
    fixed_deg: float, identifier: str, wavelength: float = WAVELENGTH
) -> Experiment:
    """A horizontal axis, the beam along -Z; F turns the sample by fixed_deg about lab Y."""
    goniometer = GoniometerFactory.known_axis((1.0, 0.0, 0.0))
    fixed = Rotation.from_euler("y", fixed_deg, degrees=True).as_matrix()
    goniometer.set_fixed_rotation(tuple(fixed.ravel()))
    return Experiment(
        beam=BeamFactory.simple(wavelength),
        detector=DetectorFactory.simple(
            "PAD", 100.0, (150.0, 150.0), "+x", "-y", (1.0, 1.0), (300, 300)
        ),
        goniometer=goniometer,
        scan=ScanFactory.make_scan((1, 90), 0.1, (0.0, 1.0), dict.fromkeys(range(1, 91), 0.0)),
        crystal=Crystal((20, 0, 0), (0, 22, 0), (0, 0, 25), "P 1"),
        identifier=identifier,
    )


def reflections_of(
    experiments: ExperimentList, identifiers: Sequence[str]
) -> flex.reflection_table:
    """Reflections in random directions at random angles, and two rows that have no direction."""
    rng = np.random.default_rng(5)
    table = flex.reflection_table()
    n = 300
    for number, experiment in enumerate(experiments):
        part = flex.reflection_table()
        part["id"] = flex.int(n, number)
        part["miller_index"] = flex.miller_index([(1, 2, i + 1) for i in range(n)])
        s1 = rng.normal(size=(n, 3))
        s1 /= np.linalg.norm(s1, axis=1, keepdims=True) * experiment.beam.get_wavelength()
        part["s1"] = flumpy.vec_from_numpy(s1)
        image = rng.uniform(0, 90, n)
        xyz = np.column_stack([rng.uniform(0, 300, (n, 2)), np.radians(image)])
        part["xyzcal.mm"] = flumpy.vec_from_numpy(xyz)
        xyz[:, 2] = image
        part["xyzcal.px"] = flumpy.vec_from_numpy(xyz)
        # what was observed is absent (0) in rows that were not integrated: never to be relied on
        part["xyzobs.mm.value"] = flex.vec3_double(n)
        table.extend(part)
    for method in ("prf", "sum"):
        table[f"intensity.{method}.value"] = flex.double(rng.uniform(50, 100, len(table)))
        table[f"intensity.{method}.variance"] = flex.double(rng.uniform(5, 10, len(table)))
    table["s1"][3] = (0.0, 0.0, 0.0)
    table["id"][7] = -1
    for number, name in enumerate(identifiers):
        table.experiment_identifiers()[number] = name
    return table


def expected_factors(table: flex.reflection_table, fixed_deg: Sequence[float]) -> np.ndarray:
    """A (n,) from scipy's rotations: sample at phi = 0 of the first experiment is the tomo frame."""
    s1 = flumpy.to_numpy(table["s1"])
    phi = flumpy.to_numpy(table["xyzcal.mm"])[:, 2]
    ids = flumpy.to_numpy(table["id"])
    # lab axes x, y, z; tomo X = lab x, Z = lab z (to the source), Y = Z x X = lab y
    first = Rotation.from_euler("y", fixed_deg[0], degrees=True)
    to_source, exits = np.empty((len(s1), 3)), np.empty((len(s1), 3))
    for i in range(len(s1)):
        turned = Rotation.from_euler("x", phi[i]) * Rotation.from_euler(
            "y", fixed_deg[max(ids[i], 0)], degrees=True
        )
        to_tomo = first * turned.inv()
        to_source[i] = to_tomo.apply([0.0, 0.0, 1.0])
        exits[i] = to_tomo.apply(s1[i] / max(np.linalg.norm(s1[i]), 1e-9))
    return ball_transmission(to_source, exits, MU)


@pytest.fixture(scope="module")
def mu_by_label() -> list[float]:
    return [0.0, MU[LIQUOR], 0.01, MU[CRYSTAL]]


@pytest.fixture
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mu_by_label: list[float]
) -> Iterator[Path]:
    """A folder with models.expt (two settings), observations.refl and tomo.h5; work goes on there."""
    experiments = ExperimentList([experiment_with(0.0, "one"), experiment_with(35.0, "two")])
    experiments.as_file(tmp_path / "models.expt")
    reflections_of(experiments, ["one", "two"]).as_file(tmp_path / "observations.refl")
    energy = 12.398419843320026 / WAVELENGTH
    write_sample_file(
        tmp_path / "tomo.h5", labels=two_balls(), mu_per_um=mu_by_label, energy_keV=energy
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for handler in list(logging.getLogger("dials").handlers):  # of the log in the folder
        logging.getLogger("dials").removeHandler(handler)


INPUT = ["models.expt", "observations.refl", "tomo.h5"]
OUTPUT = {
    "corrected.expt",
    "corrected.refl",
    "anacor_absorption.html",
    "anacor_absorption.json",
    "anacor_absorption.cif",
}


def refused(arguments: Sequence[str], message: str) -> None:
    """The command fails with the sentence, and leaves nothing but its log."""
    before = set(os.listdir())
    # at the command line a Sorry is printed as one line, and the exit status is 1
    with pytest.raises(Sorry) as caught:
        run(list(arguments))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    left = set(os.listdir()) - before - {"anacor_absorption.log"}
    assert not left, f"left behind: {left}"


# ---- what it computes and writes ------------------------------------------------------------------


def test_factors_of_two_settings_agree_with_chords(folder: Path) -> None:
    run(INPUT)
    assert set(os.listdir()) >= OUTPUT
    before = flex.reflection_table.from_file("observations.refl")
    after = flex.reflection_table.from_file("corrected.refl")
    factors = flumpy.to_numpy(after["analytical_correction"])
    error = flumpy.to_numpy(after["analytical_correction_error"])
    known = np.ones(len(before), dtype=bool)
    known[[3, 7]] = False
    assert known.sum() > 400
    expected = expected_factors(before, (0.0, 35.0))
    assert expected[known].min() < 0.5 * expected[known].max()  # so that directions matter
    # balls of 14 voxels are good to 0.3 %, the chords' points to 0.2 %
    assert np.sqrt(np.mean((factors / expected - 1)[known] ** 2)) < 0.005
    assert np.all(factors[~known] == 1.0)
    assert np.all(error[~known] == 0.0)
    assert np.all((error[known] > 0) & (error[known] < 0.01 * factors[known]))
    # everything else is as it was
    assert set(after.keys()) - set(before.keys()) == {
        "analytical_correction",
        "analytical_correction_error",
    }
    for column in before:
        assert list(before[column]) == list(after[column]), column
    assert dict(after.experiment_identifiers()) == dict(before.experiment_identifiers())


def test_auto_may_be_typed(folder: Path) -> None:
    run([*INPUT, "device=auto", "nproc=auto", "absorption.method=auto", "output.html=None"])
    assert Path("corrected.refl").exists()


def test_a_wrong_sense_or_offset_gives_other_factors(folder: Path) -> None:
    """The alignment parameters reach the directions: a wrong one is far off."""
    expected = expected_factors(flex.reflection_table.from_file("observations.refl"), (0.0, 35.0))
    for wrong in ("alignment.rotation_sense=-1", "alignment.angle_offset=40"):
        run([*INPUT, wrong, "output.html=None"])
        factors = flumpy.to_numpy(
            flex.reflection_table.from_file("corrected.refl")["analytical_correction"]
        )
        assert np.sqrt(np.mean((factors / expected - 1) ** 2)) > 0.05


def test_json_cif_and_report(folder: Path) -> None:
    run(INPUT)
    content = json.loads(Path("anacor_absorption.json").read_text())
    table = flex.reflection_table.from_file("corrected.refl")
    factors = flumpy.to_numpy(table["analytical_correction"])
    assert content["transmission"]["min"] == pytest.approx(factors.min())
    assert content["reflections"]["without_direction"] == 2
    (wavelength,) = content["wavelengths"]
    assert wavelength["expected_error"] <= wavelength["tolerance"] == pytest.approx(1e-3)
    assert wavelength["expected_error"] <= wavelength["rms_error"] < 2e-3
    assert [m["mu_per_um"] for m in wavelength["materials"]] == [0.0, 0.03, 0.01, 0.02]
    assert content["scale_command"].startswith(
        "dials.scale corrected.expt corrected.refl physical."
    )
    cif = Path("anacor_absorption.cif").read_text()
    assert "_exptl_absorpt_coefficient_mu          20.0000" in cif
    assert f"_exptl_absorpt_correction_T_min        {factors.min():.4f}" in cif
    from iotbx import cif as iotbx_cif

    assert "data" not in iotbx_cif.reader(input_string=cif).model()  # it parses
    html = Path("anacor_absorption.html").read_text()
    for title in ("Summary", "Materials", "Sample", "Factors", "Accuracy"):
        assert f"<h2>{title}</h2>" in html
    assert content["scale_command"] in html


def test_earlier_outputs_are_replaced_when_the_new_are_complete(folder: Path) -> None:
    run([*INPUT, "materials.crystal.mu=0.01"])
    first = Path("corrected.refl").read_bytes()
    refused([*INPUT, "materials.crystal.mu=900"], "it is given in 1/um")
    assert Path("corrected.refl").read_bytes() == first
    run(INPUT)
    assert Path("corrected.refl").read_bytes() != first


def test_tables_in_files_of_their_own(folder: Path) -> None:
    """Two experiments and tables in four files, given in the wrong order."""
    run([*INPUT, "output.html=None", "output.reflections=together.refl"])
    together = flex.reflection_table.from_file("together.refl")
    experiments = ExperimentListFactory.from_json_file("models.expt", check_format=False)
    table = flex.reflection_table.from_file("observations.refl")
    for number, name in enumerate(("one", "two")):
        experiments[number : number + 1].as_file(f"{name}.expt")
        part = table.select(table["id"] == number)
        for key in list(part.experiment_identifiers().keys()):
            del part.experiment_identifiers()[key]
        part["id"] = flex.int(len(part), 0)
        part.experiment_identifiers()[0] = name
        part.as_file(f"{name}.refl")
    run(["two.refl", "one.refl", "one.expt", "two.expt", "tomo.h5", "output.html=None"])
    apart = flex.reflection_table.from_file("corrected.refl")
    assert dict(apart.experiment_identifiers()) == {0: "one", 1: "two"}
    assert len(ExperimentListFactory.from_json_file("corrected.expt", check_format=False)) == 2
    for number in (0, 1):
        a = flumpy.to_numpy(apart.select(apart["id"] == number)["analytical_correction"])
        b = flumpy.to_numpy(together.select(together["id"] == number)["analytical_correction"])
        np.testing.assert_allclose(a, b, rtol=5e-3)


def test_intensities_are_corrected_once(folder: Path) -> None:
    run([*INPUT, "output.mode=intensities", "output.html=None"])
    before = flex.reflection_table.from_file("observations.refl")
    after = flex.reflection_table.from_file("corrected.refl")
    assert "analytical_correction" not in after
    a = flumpy.to_numpy(after["analytical_correction_applied"])
    for method in ("prf", "sum"):
        for quantity, power in (("value", 1), ("variance", 2)):
            name = f"intensity.{method}.{quantity}"
            np.testing.assert_allclose(
                flumpy.to_numpy(after[name]) * a**power, flumpy.to_numpy(before[name]), rtol=1e-12
            )
    os.rename("corrected.refl", "once.refl")
    os.remove("corrected.expt")
    refused(["models.expt", "once.refl", "tomo.h5"], "second correction is refused")


def test_foreign_label_stacks_give_the_same_factors(folder: Path) -> None:
    """The same labels as .npy with other axes, and in an HDF5 file of another program."""
    run([*INPUT, "output.html=None"])
    expected = list(flex.reflection_table.from_file("corrected.refl")["analytical_correction"])
    labels = two_balls().values
    np.save("labels.npy", labels.transpose(2, 1, 0)[:, ::-1])  # first index Z, second -Y, third X
    with h5py.File("avizo.h5", "w") as file:
        file["volume/labels"] = labels
    mu = [
        f"materials.{n}.mu={m}"
        for n, m in zip(("liquor", "loop", "crystal"), (0.03, 0.01, 0.02), strict=True)
    ]
    for arguments in (
        ["labels.npy", "labels.axes=z,-y,x"],
        ["avizo.h5:/volume/labels"],
        ["labels.file=avizo.h5:/volume/labels"],
    ):
        run([*INPUT[:2], *arguments, "labels.voxel_size_um=1.0", *mu, "output.html=None"])
        found = list(flex.reflection_table.from_file("corrected.refl")["analytical_correction"])
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_materials_of_any_name_and_by_composition(folder: Path) -> None:
    labels = two_balls()
    names = ("background", "oil", "ice", "crystal")
    write_sample_file("named.h5", labels=LabelVolume(labels.values, 1.0, None, names))  # type: ignore[arg-type]
    Path("ice.phil").write_text("materials { ice { formula = H2O\n density = 0.92 } }\n")
    run(
        [
            *INPUT[:2],
            "named.h5",
            "ice.phil",
            "materials.oil.formula=C2F4O",
            "materials.oil.density=1.9",
            "materials.crystal.solvent_content=0.45",
            "output.html=None",
        ]
    )
    content = json.loads(Path("anacor_absorption.json").read_text())
    mu = {m["name"]: m["mu_per_um"] for m in content["wavelengths"][0]["materials"]}
    import xraylib

    energy = 12.398419843320026 / WAVELENGTH
    assert mu["ice"] == pytest.approx(0.92e-4 * xraylib.CS_Total_CP("H2O", energy))
    assert mu["oil"] == pytest.approx(1.9e-4 * xraylib.CS_Total_CP("C2F4O", energy))
    assert 0.9 < mu["crystal"] / (1e-4 * xraylib.CS_Total_CP("H2O", energy)) < 1.0
    assert mu["background"] == 0.0


def test_several_wavelengths_have_their_own_mu(folder: Path) -> None:
    experiments = ExperimentList(
        [experiment_with(0.0, "one"), experiment_with(0.0, "two", wavelength=2.4)]
    )
    experiments.as_file("models.expt")
    reflections_of(experiments, ["one", "two"]).as_file("observations.refl")
    refused([*INPUT, "materials.crystal.mu=0.02"], "2 wavelengths (3.1 A, 2.4 A)")
    mu = [
        "materials.crystal.mu=0.02,0.01",
        "materials.liquor.mu=0.03,0.015",
        "materials.loop.mu=0,0",
    ]
    run([*INPUT, *mu, "output.html=None"])
    content = json.loads(Path("anacor_absorption.json").read_text())
    assert [w["wavelength_angstrom"] for w in content["wavelengths"]] == pytest.approx([3.1, 2.4])
    assert [w["materials"][CRYSTAL]["mu_per_um"] for w in content["wavelengths"]] == [0.02, 0.01]
    # from the file, which says at which energy its mu holds: rescaled for the other one
    run([*INPUT, "output.html=None"])
    content = json.loads(Path("anacor_absorption.json").read_text())
    first, second = (w["materials"][LIQUOR] for w in content["wavelengths"])
    assert first["mu_per_um"] == 0.03
    assert second["mu_per_um"] == pytest.approx(0.03 * (2.4 / 3.1) ** 2.9, rel=0.05)
    assert "rescaled" in second["from"]


def test_a_small_beam_lights_part_of_the_crystal(folder: Path) -> None:
    run([*INPUT, "beam.profile=tophat", "beam.size=8,8", "beam.offset=3,-2", "output.html=None"])
    small = flumpy.to_numpy(
        flex.reflection_table.from_file("corrected.refl")["analytical_correction"]
    )
    run([*INPUT, "beam.profile=gaussian", "beam.size=9000,9000", "output.html=None"])
    wide = flumpy.to_numpy(
        flex.reflection_table.from_file("corrected.refl")["analytical_correction"]
    )
    run([*INPUT, "output.html=None"])
    whole = flumpy.to_numpy(
        flex.reflection_table.from_file("corrected.refl")["analytical_correction"]
    )
    np.testing.assert_allclose(wide, whole, rtol=0.005)
    assert np.median(np.abs(small / whole - 1)) > 0.01
    refused(
        [*INPUT, "beam.profile=tophat", "beam.size=8,8", "beam.offset=60,0"], "misses the crystal"
    )


@pytest.mark.parametrize("axis", [None, (0.2, 1.0, 0.3)])
def test_a_slit_stays_where_it_is_when_another_axis_turns(
    folder: Path, axis: tuple[float, float, float] | None
) -> None:
    """A sweep about X, one about a tilted axis and stills, against a sum over points in the laboratory."""
    sweep, tilted, still = (experiment_with(0.0, name) for name in ("one", "two", "three"))
    tilted.goniometer = GoniometerFactory.known_axis((0.5779, 0.8161, 0.0))
    still.goniometer, still.scan = None, None
    experiments = ExperimentList([sweep, tilted, still])
    experiments.as_file("models.expt")
    reflections_of(experiments, ["one", "two", "three"]).as_file("observations.refl")
    slit = ["beam.profile=gaussian", "beam.size=30,8", "beam.offset=3,-2", "output.html=None"]
    if axis is not None:
        slit.append(f"beam.axis={','.join(map(str, axis))}")
    run([*INPUT, *slit, "absorption.tolerance=0.5"])
    table = flex.reflection_table.from_file("corrected.refl")

    rng = np.random.default_rng(4)
    centre, radius = BALLS[CRYSTAL]
    points = rng.uniform(-1, 1, (40_000, 3))
    points = centre + radius * points[np.sum(points**2, axis=1) < 1]
    along = np.array((1.0, 0.0, 0.0) if axis is None else axis)[:2]
    along /= np.linalg.norm(along)
    chosen = np.arange(10, 900, 25)
    expected = []
    for row in chosen:
        number, phi = table["id"][int(row)], table["xyzcal.mm"][int(row)][2]
        about = ((1.0, 0.0, 0.0), (0.5779, 0.8161, 0.0), (0.0, 0.0, 0.0))[number]
        turn = Rotation.from_rotvec(phi * np.array(about) / max(np.linalg.norm(about), 1e-9))
        x, y, _ = turn.apply(points).T
        u, v = along[0] * x + along[1] * y, -along[1] * x + along[0] * y
        light = 2.0 ** (-4 * (((u - 3) / 30) ** 2 + ((v + 2) / 8) ** 2))
        s1 = np.array(table["s1"][int(row)])
        depth = np.zeros(len(points))
        for label, ball in BALLS.items():
            for direction in ((0.0, 0.0, 1.0), s1 / np.linalg.norm(s1)):
                inwards = turn.inv().apply(direction)[None]
                depth += MU[label] * chord(points, inwards, *ball)[0]
        expected.append(np.sum(light * np.exp(-depth)) / light.sum())
    found = flumpy.to_numpy(table["analytical_correction"])[chosen]
    assert np.sqrt(np.mean((found / np.array(expected) - 1) ** 2)) < 0.015


def test_a_slit_along_the_beam_is_refused(folder: Path) -> None:
    slit = ["beam.profile=gaussian", "beam.size=30,8"]
    refused([*INPUT, *slit, "beam.axis=0,0,1"], "runs along the axis of its cross-section")
    refused([*INPUT, "beam.axis=0,1,0"], "beam.axis was given without beam.profile")


def test_stills_and_scaled_models_are_warned_of(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiments = ExperimentListFactory.from_json_file("models.expt", check_format=False)
    for experiment in experiments:
        experiment.scan = None
    experiments.as_file("models.expt")
    run([*INPUT, "output.html=None"])
    assert "KB.analytical_correction=True" in capsys.readouterr().out


# ---- bad input ------------------------------------------------------------------------------------


# ---- samples without labels -----------------------------------------------------------------------


GIVEN_MU = [
    f"materials.{name}.mu=0.0{i}" for i, name in enumerate(("liquor", "loop", "crystal"), 1)
]


def factors_in(path: str) -> np.ndarray:
    return flex.reflection_table.from_file(path)["analytical_correction"].as_numpy_array()


def test_a_raw_scan_becomes_factors(folder: Path, network_by_value: None, ellipsoid_scan) -> None:
    """In one command as by dials.anacor_segment and the labels that it writes."""
    from anacor_dials.command_line import anacor_segment

    ellipsoid_scan.write_nxtomo(folder / "scan.nxs")
    how = ["reconstruction.centre=31.5", "clean_up=False"]
    run([*INPUT[:2], "scan.nxs", *how, *GIVEN_MU])
    found = factors_in("corrected.refl")
    assert {"segmented.h5", "anacor_segment.html", *OUTPUT} <= set(os.listdir())
    anacor_segment.run(["scan.nxs", *how])
    one = tomogram_files.read_sample_file("segmented.h5")
    two = tomogram_files.read_sample_file("tomo.h5")
    np.testing.assert_array_equal(one.labels.values, two.labels.values)
    assert one.projections == two.projections
    assert one.scan_centre == two.scan_centre == (31.5, 21.5)
    run([*INPUT, *GIVEN_MU])
    np.testing.assert_array_equal(found, factors_in("corrected.refl"))
    assert 0.3 < found.min() < np.median(found) < 0.9


def test_a_tomogram_is_segmented_first(
    folder: Path, network_by_value: None, mu_by_label: list[float]
) -> None:
    balls = two_balls()
    run(INPUT)
    expected = factors_in("corrected.refl")
    level = np.array([0.0, 0.02, 0.012, 0.03])  # as seen at the scan's energy
    tomogram = tomogram_files.Tomogram(
        np.float32(level[balls.values]), balls.voxel_size_um, balls.centre
    )
    write_sample_file("seen.h5", tomogram=tomogram)
    mu = [
        f"materials.{name}.mu={mu_by_label[i]}"
        for i, name in ((LIQUOR, "liquor"), (CRYSTAL, "crystal"))
    ]
    run([*INPUT[:2], "seen.h5", "clean_up=False", "output.tomogram=None", *mu])
    assert "segmented.h5" not in os.listdir()
    assert Path("anacor_segment.html").exists()
    np.testing.assert_allclose(factors_in("corrected.refl"), expected, rtol=0.01)


def test_what_cannot_be_segmented(folder: Path, network_by_value: None) -> None:
    with h5py.File("other.h5", "w") as file:
        file["numbers"] = np.arange(5)
    refused([*INPUT[:2], "other.h5"], "other.h5 is no tomo.h5, and as a tomography scan:")
    air = tomogram_files.Tomogram(np.zeros((9, 9, 9), np.float32), 1.0)
    write_sample_file("air.h5", tomogram=air)
    refused([*INPUT[:2], "air.h5"], "there is no sample in it")
    refused([*INPUT[:2], "air.h5", "output.tomogram=air.h5"], "is the file that was given")


def edited(change: str) -> list[str]:
    """The input with one thing changed in tomo.h5."""
    with h5py.File("tomo.h5", "r+") as file:
        group = file["entry/segmentation"]
        if change == "no crystal":
            del group["names"]
            group["names"] = np.array(
                ["background", "liquor", "loop", "ice"], dtype=h5py.string_dtype()
            )
        elif change == "no voxel size":
            del file["entry/frame/voxel_size"]
        elif change == "NaN mu":
            group["mu"][1] = np.nan
        elif change == "unnamed label":
            group["labels"][0, 0, 0] = 9
        elif change == "no labels":
            del file["entry/segmentation"]
    return INPUT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no crystal", "No label is named 'crystal'"),
        ("no voxel size", "has no /entry/frame/voxel_size"),
        ("NaN mu", "The absorption coefficient of liquor is nan /um"),
        ("unnamed label", "the label 9, which has no name"),
        ("no labels", "there is nothing to segment"),
    ],
)
def test_bad_tomo_files(folder: Path, change: str, message: str) -> None:
    refused(edited(change), message)


def test_files_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = Path("tomo.h5").read_bytes()
    Path("short.h5").write_bytes(content[: len(content) // 2])
    refused([*INPUT[:2], "short.h5"], "truncated")
    Path("text.h5").write_text("labels")
    refused([*INPUT[:2], "text.h5"], "is not an HDF5 file")
    refused([*INPUT[:2], "absent.h5"], "absent.h5 is neither a parameter nor a file")
    refused(INPUT[:2], "Give one sample: a labelled volume")
    refused(INPUT[2:], "Give the experiments (.expt)")
    refused([*INPUT, "labels.voxel_size_um=0.3"], "or its own voxel size")
    np.save("labels.npy", two_balls().values)
    refused([*INPUT[:2], "labels.npy"], "give labels.voxel_size_um")
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 1000)
    refused(INPUT, "GB of memory")


def test_tables_that_do_not_fit(folder: Path) -> None:
    table = flex.reflection_table.from_file("observations.refl")
    del table["xyzobs.mm.value"]
    for column, message in (("s1", "no column s1"), ("xyzcal.mm", "scan angles")):
        kept = table[column]
        del table[column]
        table.as_file("lacking.refl")
        refused(["models.expt", "lacking.refl", "tomo.h5"], message)
        table[column] = kept
    table.experiment_identifiers()[1] = "another"
    table.as_file("other.refl")
    refused(["models.expt", "other.refl", "tomo.h5"], "do not belong together")


def test_a_folder_that_cannot_be_written_to(folder: Path) -> None:
    refused([*INPUT, "output.reflections=absent/corrected.refl"], "does not exist")
    if os.geteuid() == 0:
        # root may write anywhere, but not into /proc
        refused([*INPUT, "output.reflections=/proc/corrected.refl"], "Cannot write to the folder")
    else:
        (folder / "locked").mkdir(mode=0o500)
        refused([*INPUT, "output.reflections=locked/corrected.refl"], "Cannot write to the folder")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("materials.oil.mu=0.01", "materials.oil was given, but the labels are"),
        ("materials.loop.density=1.0", "needs materials.loop.formula"),
        ("materials.loop.formula=H2O", "needs materials.loop.density"),
        ("materials.crystal.mu=19", "it is given in 1/um"),
        ("absorption.tolerance=50", "The tolerance is 0.5"),
        ("alignment.rotation_sense=0", "rotation_sense is 0"),
        ("alignment.reference_experiment=5", "reference_experiment is 5"),
        ("beam.profile=tophat", "needs beam.size"),
        ("device=cuda", "needs CuPy and an NVIDIA GPU"),
        ("output.html=corrected.refl", "Two outputs have the same name"),
    ],
)
def test_bad_parameters(folder: Path, argument: str, message: str) -> None:
    if argument == "device=cuda":
        from anacor_dials.absorption import ray_tracing_cuda

        if ray_tracing_cuda.why_unavailable() is None:
            pytest.skip("a GPU is there, so asking for it is no mistake")
    refused([*INPUT, argument], message)


# ---- real data ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_sweeps_are_restored(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four real sweeps, attenuated by the two balls (chords, in double precision), are restored."""
    monkeypatch.chdir(tmp_path)
    mu = {CRYSTAL: 0.05, LIQUOR: 0.06}
    names = [shared_data / "l_cysteine" / f"sweep_{i}" for i in (20, 25, 30, 35)]
    experiments = ExperimentList()
    tables = []
    for name in names:
        experiments.extend(ExperimentListFactory.from_json_file(f"{name}.expt", check_format=False))
        tables.append(flex.reflection_table.from_file(f"{name}.refl"))

    def matrix(elements: Sequence[float]) -> Rotation:
        return Rotation.from_matrix(np.array(elements).reshape(3, 3))

    # the tomo frame of the first sweep at scan angle 0, from the definition in docs/conventions.md
    first = experiments[0]
    e = np.array(first.goniometer.get_rotation_axis())
    z = -np.array(first.beam.get_s0())
    z -= e * (z @ e) / (e @ e)
    e, z = e / np.linalg.norm(e), z / np.linalg.norm(z)
    lab_of_tomo = Rotation.from_matrix(np.column_stack([e, np.cross(z, e), z]))
    at_zero = matrix(first.goniometer.get_setting_rotation()) * matrix(
        first.goniometer.get_fixed_rotation()
    )
    untouched, attenuated, smallest, largest = [], [], 1.0, 0.0
    for number, (experiment, table) in enumerate(zip(experiments, tables, strict=True)):
        goniometer = experiment.goniometer
        phi = flumpy.to_numpy(table["xyzcal.mm"])[:, 2]
        axis = np.array(goniometer.get_rotation_axis_datum())
        turned = (
            matrix(goniometer.get_setting_rotation())
            * Rotation.from_rotvec(phi[:, None] * axis)
            * matrix(goniometer.get_fixed_rotation())
        )
        to_tomo = (at_zero.inv() * lab_of_tomo).inv() * turned.inv()
        s1 = flumpy.to_numpy(table["s1"])
        length = np.maximum(np.linalg.norm(s1, axis=1, keepdims=True), 1e-9)
        source = np.array(experiment.beam.get_sample_to_source_direction())
        a = np.ones(len(table))
        for start in range(0, len(table), 500):
            part = slice(start, start + 500)
            a[part] = ball_transmission(
                to_tomo[part].apply(source), to_tomo[part].apply(s1[part] / length[part]), mu
            )
        smallest, largest = min(smallest, a.min()), max(largest, a.max())
        untouched.append(f"untouched_{number}.refl")
        table.as_file(untouched[-1])
        for method in ("prf", "sum"):
            table[f"intensity.{method}.value"] *= flex.double(a)
            table[f"intensity.{method}.variance"] *= flex.double(a * a)
        attenuated.append(f"attenuated_{number}.refl")
        table.as_file(attenuated[-1])
    assert smallest < 0.1
    assert largest > 0.4

    mu_file = [0.0, mu[LIQUOR], 0.01, mu[CRYSTAL]]
    write_sample_file("tomo.h5", labels=two_balls(0.5), mu_per_um=mu_file)
    models = [f"{name}.expt" for name in names]
    run([*models, *attenuated, "tomo.h5", "output.html=None"])

    options = (
        "error_model=None",
        "intensity_choice=profile",
        "outlier_rejection=simple",
        "full_matrix=False",
        "output.html=None",
    )
    jobs = {
        "untouched": (models, untouched, "none"),
        "uncorrected": (models, attenuated, "none"),
        "corrected": (["corrected.expt"], ["corrected.refl"], "analytical"),
    }
    scaled = {
        label: scale(e_files, r_files, strategy, tmp_path / label, options=options)
        for label, (e_files, r_files, strategy) in jobs.items()
    }
    statistics = {
        s.label: s
        for s in compare_merging_statistics(
            {label: (s.experiments, s.reflections) for label, s in scaled.items()}
        )
    }

    def overall(label: str, row: str) -> float:
        return float(statistics[label].table_1[row][0])

    for row in ("Rmeas(I)", "CC half", "I/sigma"):
        reference, corrected = overall("untouched", row), overall("corrected", row)
        assert corrected == pytest.approx(reference, rel=0.02), row
    assert overall("uncorrected", "Rmeas(I)") > 1.1 * overall("untouched", "Rmeas(I)")

    intensities = []
    for label in ("untouched", "corrected"):
        table = flex.reflection_table.from_file(str(scaled[label].reflections))
        i = flumpy.to_numpy(table["intensity.scale.value"])
        i = i / flumpy.to_numpy(table["inverse_scale_factor"]).clip(1e-9)
        keys = zip(table["id"], table["miller_index"], table["xyzobs.px.value"], strict=True)
        good = ~flumpy.to_numpy(table.get_flags(table.flags.bad_for_scaling, all=False))
        intensities.append(
            {
                (n, h, round(xyz[2], 1), round(xyz[0], 1)): value
                for (n, h, xyz), value, g in zip(keys, i, good, strict=True)
                if g
            }
        )
    common = sorted(set(intensities[0]) & set(intensities[1]))
    assert len(common) > 0.95 * len(intensities[0])
    pairs = np.array([[part[key] for key in common] for part in intensities])
    assert np.corrcoef(pairs)[0, 1] >= 0.9999
