"""Face lists, and dials.anacor_absorption and xia2.anacor with faces in place of a tomogram."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

from cctbx import uctbx
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
from iotbx import cif
from scipy.spatial.transform import Rotation

from anacor_dials.command_line.anacor_absorption import run
from anacor_dials.diffraction.crystal_faces import (
    CrystalFaces,
    cap_lines,
    faces_text,
    is_face_list,
    read_faces,
    shelx_lines,
)
from anacor_dials.report.cif import cif_of_faces, habit

CELL = (9.0, 12.0, 15.0, 90.0, 90.0, 90.0)
BOX = "1 0 0 40\n-1 0 0 40\n0 1 0 25\n0 -1 0 25 # the large one\n\n0 0 1 10\n0,0,-1,10\n"
HALF = np.array([40.0, 25.0, 10.0])
CSPBBR3 = ["materials.crystal.formula=CsPbBr3", "materials.crystal.density=4.753"]


# ---- lists of faces ------------------------------------------------------------------------------


def written(tmp_path: Path, text: str, name: str = "faces.txt") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_all_kinds_of_lists_say_the_same(tmp_path: Path) -> None:
    plain = read_faces(written(tmp_path, BOX))
    assert plain.names[3] == "(0 -1 0)"
    np.testing.assert_allclose(plain.distances_um, [40, 40, 25, 25, 10, 10])
    shelx = (
        "TITL x\nCELL 0.71 9 12 15 90 90 90\nface 1 0 0 .04\nFACE -1 0 0 0.04\nFACE 0 1 0 0.025\n"
    )
    shelx += "FACE 0 -1 0 0.025\nFACE 0 0 1 0.01\nFACE 0 0 -1 0.01\nEND\n"
    loop = "data_x\n_cell_length_a 9\nloop_\n_exptl_crystal_face_index_h\n_exptl_crystal_face_index_k\n"
    loop += "_exptl_crystal_face_index_l\n_exptl_crystal_face_perp_dist\n"
    loop += "1 0 0 0.0400(5)\n-1 0 0 0.04\n0 1 0 0.025\n0 -1 0 0.025\n0 0 1 0.01\n0 0 -1 0.01\n"
    cap = (
        "CRYSTAL 0.08 0.05 0.02\nFaces: 6  h k l d[mm]\n1: 1 0 0 0.04 90.0 12.5\nFACE -1 0 0 .04\n"
    )
    cap += (
        "0.0000 1.0000 0.0000 0.0250\n  0 -1 0 0.025\nface 5: 0 0 1 0.010\n6) 0 0 -1 0.01 yellow\n"
    )
    texts = {
        "a.txt": faces_text(plain),
        "b.ins": shelx_lines(plain),
        "c.ins": shelx,
        "d.cif": loop,
        "e.cif": cif_of_faces(plain),
        "f.cap": cap,
        "g.cap": cap_lines(plain),
    }
    for name, text in texts.items():
        other = read_faces(written(tmp_path, text, name))
        np.testing.assert_allclose(other.indices, plain.indices)
        np.testing.assert_allclose(other.distances_um, plain.distances_um)
        assert is_face_list(tmp_path / name)
    assert not is_face_list(tmp_path / "scan.nxs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0 0\n", "'1 0 0' is no face; four numbers"),
        ("1 0 0 ten\n", "is no face; four numbers"),
        ("# nothing\n", "holds no faces"),
        ("0 0 0 10\n", r"Miller indices \(0 0 0\)"),
        ("1 0 0 -3\n", r"face \(1 0 0\) has the distance -3"),
        ("1 0 0 3\n1 0 0 4\n", r"face \(1 0 0\) is there more than once"),
        (
            "data_x\nloop_\n_exptl_crystal_face_index_h\n1\n2\n",
            "without _exptl_crystal_face_index_k",
        ),
    ],
)
def test_lists_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_faces(written(tmp_path, text))


def test_faces_are_lattice_planes() -> None:
    """A solid of {1 0 0} of a triclinic cell is a parallelepiped along its axes, of known volume."""
    cell = uctbx.unit_cell((7.0, 9.0, 11.0, 70.0, 80.0, 100.0))
    crystal = crystal_of(cell, Rotation.from_rotvec([0.3, -1.0, 0.7]))
    hkl = np.concatenate([np.eye(3), -np.eye(3)])
    solid = CrystalFaces(hkl, np.full(6, 20.0)).solid(crystal)
    reciprocal = np.array(cell.reciprocal().parameters()[:3])
    # distances of 20 um to each side are 40 / d(100) ... cells along each axis
    cells = np.prod(40.0 * reciprocal)
    assert solid.volume_um3 == pytest.approx(cells * cell.volume())
    with pytest.raises(ValueError, match=r"crystal of 0\.\d+ to .* um; distances are in um"):
        CrystalFaces(hkl, np.full(6, 0.02)).solid(crystal)


def crystal_of(cell: uctbx.unit_cell, u: Rotation) -> Crystal:
    """A crystal with the orientation matrix u."""
    b = np.array(cell.fractionalization_matrix()).reshape(3, 3).T
    axes = u.as_matrix() @ np.linalg.inv(b).T
    return Crystal(*(tuple(axis) for axis in axes.T), "P 1")


def test_habits() -> None:
    assert habit((200.0, 190.0, 5.0)) == "plate"
    assert habit((60.0, 8.0, 7.0)) == "needle"
    assert habit((80.0, 50.0, 25.0)) == "block"


# ---- the command ---------------------------------------------------------------------------------


def sweep(name: str, fixed: Rotation, u: Rotation, wavelength: float) -> Experiment:
    goniometer = GoniometerFactory.known_axis((0.6, 0.8, 0.0))
    goniometer.set_fixed_rotation(tuple(fixed.as_matrix().ravel()))
    return Experiment(
        beam=BeamFactory.simple(wavelength),
        detector=DetectorFactory.simple(
            "PAD", 100.0, (150.0, 150.0), "+x", "-y", (1.0, 1.0), (300, 300)
        ),
        goniometer=goniometer,
        scan=ScanFactory.make_scan((1, 90), 0.1, (0.0, 1.0), dict.fromkeys(range(1, 91), 0.0)),
        crystal=crystal_of(uctbx.unit_cell(CELL), u),
        identifier=name,
    )


FIXED = (Rotation.identity(), Rotation.from_euler("y", 35.0, degrees=True))
U = Rotation.from_rotvec([0.4, -0.2, 1.1])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """models.expt, observations.refl (two settings of one crystal, 60 reflections each), faces.txt."""
    rng = np.random.default_rng(3)
    experiments = ExperimentList([sweep(n, f, U, 0.7107) for n, f in zip("ab", FIXED, strict=True)])
    table = flex.reflection_table()
    for number in range(2):
        part = flex.reflection_table()
        n = 60
        part["id"] = flex.int(n, number)
        part["miller_index"] = flex.miller_index([(1, 2, i + 1) for i in range(n)])
        s1 = rng.normal(size=(n, 3))
        part["s1"] = flumpy.vec_from_numpy(s1 / np.linalg.norm(s1, axis=1, keepdims=True) / 0.7107)
        xyz = np.column_stack([rng.uniform(0, 300, (n, 2)), rng.uniform(0, np.pi / 2, n)])
        part["xyzcal.mm"] = flumpy.vec_from_numpy(xyz)
        part["intensity.sum.value"] = flex.double(n, 100.0)
        part["intensity.sum.variance"] = flex.double(n, 100.0)
        table.extend(part)
    for number, name in enumerate("ab"):
        table.experiment_identifiers()[number] = name
    experiments.as_file(tmp_path / "models.expt")
    table.as_file(tmp_path / "observations.refl")
    written(tmp_path, BOX)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for handler in list(logging.getLogger("dials").handlers):  # of the log in the folder
        logging.getLogger("dials").removeHandler(handler)


INPUT = ["models.expt", "observations.refl", "faces=faces.txt"]


def expected_factors(
    table: flex.reflection_table,
    mu: Sequence[float],
    turns: Sequence[Rotation] = tuple(fixed * U for fixed in FIXED),
    slit_um: tuple[float, float] | None = None,
) -> np.ndarray:
    """A (n,) of the box by points of its own, with rotations of scipy: lab = S R F U x crystal.

    Of each experiment mu, and the rotation F U from the crystal to the axis; stills have no angle. A slit is a
    Gaussian of these widths at half maximum along the axis and across it.
    """
    axis = np.array([0.6, 0.8, 0.0])
    points = np.random.default_rng(9).uniform(-1, 1, (20_000, 3)) * HALF
    result = []
    for i in range(len(table)):
        number = table["id"][i]
        about = Rotation.from_rotvec(table["xyzcal.mm"][i][2] * axis * (number < 2))
        to_lab = about * turns[number]
        depth = np.zeros(len(points))
        for lab in ((0.0, 0.0, 1.0), table["s1"][i]):
            d = to_lab.inv().apply(np.array(lab) / np.linalg.norm(lab))
            depth += ((np.where(d > 0, HALF, -HALF) - points) / d).min(axis=1)
        light = np.ones(len(points))
        if slit_um is not None:
            there = to_lab.apply(points) @ np.column_stack([axis, [-0.8, 0.6, 0.0]])
            light = 2.0 ** -np.sum((2 * there / slit_um) ** 2, axis=1)
        result.append(np.average(np.exp(-mu[number] * depth), weights=light))
    return np.array(result)


def test_factors_of_two_settings(folder: Path) -> None:
    """Against a sum over points of the box; then the files that are written."""
    run([*INPUT, "materials.crystal.mu=0.02", "output.faces=again.ins"])
    table = flex.reflection_table.from_file("corrected.refl")
    found = flumpy.to_numpy(table["analytical_correction"])
    expected = expected_factors(table, [0.02, 0.02])
    assert np.sqrt(np.mean((found / expected - 1) ** 2)) < 0.006  # of the points here
    assert np.ptp(found) > 0.2
    numbers = json.loads(Path("anacor_absorption.json").read_text())
    assert numbers["crystal"]["volume_um3"] == pytest.approx(8 * np.prod(HALF))
    (one,) = numbers["wavelengths"]
    assert one["expected_error"] < 1e-3
    assert one["materials"][0]["mu_per_mm"] == pytest.approx(20.0)
    page = Path("anacor_absorption.html").read_text()
    assert "(0 -1 0)" in page
    assert len(read_faces("again.ins")) == 6
    ((name, block),) = (
        cif.reader(input_string=Path("anacor_absorption.cif").read_text()).model().items()
    )
    assert name == "anacor"
    assert block["_exptl_absorpt_correction_type"] == "numerical"
    assert block["_exptl_crystal_description"] == "block"
    assert list(block["_exptl_crystal_face_index_k"]) == ["0", "0", "1", "-1", "0", "0"]
    assert float(block["_exptl_crystal_face_perp_dist"][2]) == pytest.approx(0.025)
    sizes = [float(block[f"_exptl_crystal_size_{which}"]) for which in ("max", "mid", "min")]
    np.testing.assert_allclose(sizes, 2e-3 * HALF, atol=1e-6)
    assert float(block["_exptl_absorpt_correction_T_min"]) == pytest.approx(found.min(), abs=1e-4)


@pytest.mark.parametrize("slit_um", [None, (60.0, 12.0)])
def test_each_experiment_has_its_own_orientation_and_mu(
    folder: Path, slit_um: tuple[float, float] | None
) -> None:
    """Two sweeps of two wavelengths, the crystal mounted anew for the second one, and a still."""
    other, third = Rotation.from_rotvec([1.2, 0.3, -0.5]), Rotation.from_rotvec([-0.7, 0.9, 0.2])
    still = sweep("c", FIXED[0], third, 1.0)
    still.goniometer, still.scan = None, None
    experiments = [sweep("a", FIXED[0], U, 0.7107), sweep("b", FIXED[1], other, 1.0), still]
    ExperimentList(experiments).as_file("models.expt")
    table = flex.reflection_table.from_file("observations.refl")
    more = table.select(table["id"] == 0)
    more["id"] = flex.int(len(more), 2)
    del more.experiment_identifiers()[0]
    more.experiment_identifiers()[2] = "c"
    table.extend(more)
    table.as_file("observations.refl")
    slit = []
    if slit_um is not None:
        slit = ["beam.profile=gaussian", f"beam.size={slit_um[0]},{slit_um[1]}"]
    run([*INPUT, *CSPBBR3, *slit, "output.html=None", "absorption.tolerance=0.3"])
    found = flumpy.to_numpy(
        flex.reflection_table.from_file("corrected.refl")["analytical_correction"]
    )
    record = json.loads(Path("anacor_absorption.json").read_text())
    mu = {
        round(w["wavelength_angstrom"], 4): w["materials"][0]["mu_per_um"]
        for w in record["wavelengths"]
    }
    assert mu[1.0] < 0.8 * mu[0.7107]  # the K edge of Br lies between them
    turns = [FIXED[0] * U, FIXED[1] * other, third]
    expected = expected_factors(table, [mu[0.7107], mu[1.0], mu[1.0]], turns, slit_um)
    assert np.sqrt(np.mean((found / expected - 1) ** 2)) < 0.02  # of the points here
    for number in (1, 2):
        said = f"experiment {number} is turned by"
        assert any(said in warning for warning in record["warnings"])


def test_what_the_cell_holds(folder: Path) -> None:
    """CsPbBr3: 579.8 g/mol, 242 electrons; 8 of them in 1620 A3 weigh 4.755 g/cm3."""
    run([*INPUT, *CSPBBR3, "output.html=None"])
    content = json.loads(Path("anacor_absorption.json").read_text())["crystal"]["content"]
    assert content["z"] == pytest.approx(8.0, abs=0.02)
    assert content["f000"] == 8 * (55 + 82 + 3 * 35)
    block = cif.reader(input_string=Path("anacor_absorption.cif").read_text()).model()["anacor"]
    assert block["_exptl_crystal_F_000"] == "1936"
    run([*INPUT, *CSPBBR3[:1], "materials.crystal.density=4.4", "output.html=None"])
    numbers = json.loads(Path("anacor_absorption.json").read_text())
    assert numbers["crystal"]["content"]["f000"] is None
    assert any("7.40 formula units" in warning for warning in numbers["warnings"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "absorption coefficient of crystal"),
        (["materials.crystal.mu=0.02", "tomo.h5"], "were both given"),
        (["materials.crystal.mu=0.02", "alignment.refine=offset"], "need no alignment"),
        (["materials.liquor.mu=0.02"], "materials.liquor was given"),
        (
            ["materials.crystal.mu=0.02", "alignment.reference_experiment=2"],
            "there are 2 experiments",
        ),
        (["materials.crystal.mu=0.02", "faces=open.txt"], "faces are missing on one side"),
        (["materials.crystal.mu=0.02", "output.faces=faces.txt"], "faces.txt"),
    ],
)
def test_what_is_refused(folder: Path, arguments: list[str], message: str) -> None:
    written(folder, BOX.replace("0,0,-1,10\n", ""), "open.txt")
    (folder / "tomo.h5").write_bytes(b"")
    before = set(os.listdir())
    with pytest.raises(Sorry) as caught:
        run([*INPUT, *arguments])
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert set(os.listdir()) - before <= {"anacor_absorption.log"}


def test_a_crystal_that_is_indexed_in_two_ways_is_warned_of(folder: Path) -> None:
    other = U * Rotation.from_euler("x", 180, degrees=True)
    experiments = [sweep("a", FIXED[0], U, 0.7107), sweep("b", FIXED[1], other, 0.7107)]
    ExperimentList(experiments).as_file("models.expt")
    run([*INPUT, "materials.crystal.mu=0.02", "output.html=None"])
    warnings = json.loads(Path("anacor_absorption.json").read_text())["warnings"]
    assert any("experiment 1 is turned by 180.0 deg" in warning for warning in warnings)
