"""dials.anacor_absorption with meshes: against the same crystal by its faces, in both frames; bad input."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

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
from scipy.spatial.transform import Rotation

from anacor_dials.command_line.anacor_absorption import run
from anacor_dials.jobs.records import AbsorptionRecord, read_record
from anacor_dials.simulation.meshes import Mesh, box, convex_polyhedron, sphere, write_stl

CELL = (11.0, 13.0, 17.0)
HKL = [
    (1, 0, 0),
    (-1, 0, 0),
    (0, 1, 1),
    (0, -1, 1),
    (0, 1, -1),
    (0, -1, -1),
    (1, 2, 0),
    (-1, -2, 0),
]
DISTANCES = np.array([22.0, 20.0, 14.0, 15.0, 16.0, 13.0, 18.0, 17.0])
FIXED = Rotation.from_euler("y", 20.0, degrees=True)
U = Rotation.from_rotvec([0.3, -0.8, 0.5])  # from the axes along x, y, z to the datum frame
OFFSET, SENSE = 187.3, -1
MU = "materials.crystal.mu=0.02"
N = 40


def datum_normals() -> np.ndarray:
    vectors = np.array(HKL) / np.array(CELL)
    return U.apply(vectors / np.linalg.norm(vectors, axis=1)[:, None])


def tomo_normals() -> np.ndarray:
    """At omega = OFFSET the tomo axes are (s x, s y, z) of the lab; the beam flies along -z."""
    lab = Rotation.from_euler("x", OFFSET, degrees=True).apply(FIXED.apply(datum_normals()))
    return lab * np.array([SENSE, SENSE, 1.0])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """models.expt, observations.refl, faces.txt, and the crystal in the datum and the tomo frame."""
    goniometer = GoniometerFactory.known_axis((1.0, 0.0, 0.0))
    goniometer.set_fixed_rotation(tuple(FIXED.as_matrix().ravel()))
    axes = U.apply(np.diag(CELL))
    experiment = Experiment(
        beam=BeamFactory.simple(0.7107),
        detector=DetectorFactory.simple(
            "PAD", 100.0, (150.0, 150.0), "+x", "-y", (1.0, 1.0), (300, 300)
        ),
        goniometer=goniometer,
        scan=ScanFactory.make_scan((1, 90), 0.1, (0.0, 1.0), dict.fromkeys(range(1, 91), 0.0)),
        crystal=Crystal(*(tuple(v) for v in axes), "P 21 21 21"),
        identifier="a",
    )
    rng, table = np.random.default_rng(3), flex.reflection_table()
    table["id"] = flex.int(N, 0)
    table["miller_index"] = flex.miller_index([(1, 2, i + 1) for i in range(N)])
    s1 = rng.normal(size=(N, 3))
    table["s1"] = flumpy.vec_from_numpy(s1 / np.linalg.norm(s1, axis=1, keepdims=True))
    xyz = np.column_stack([rng.uniform(0, 300, (N, 2)), rng.uniform(0, np.pi / 2, N)])
    table["xyzcal.mm"] = flumpy.vec_from_numpy(xyz)
    table["intensity.sum.value"] = flex.double(N, 100.0)
    table["intensity.sum.variance"] = flex.double(N, 100.0)
    table.experiment_identifiers()[0] = "a"
    ExperimentList([experiment]).as_file(tmp_path / "models.expt")
    table.as_file(tmp_path / "observations.refl")
    lines = [f"{h} {k} {l} {d}" for (h, k, l), d in zip(HKL, DISTANCES, strict=True)]
    (tmp_path / "faces.txt").write_text("\n".join(lines))
    write_stl(tmp_path / "datum.stl", convex_polyhedron(datum_normals(), DISTANCES))
    write_stl(tmp_path / "tomo.stl", convex_polyhedron(tomo_normals(), DISTANCES))
    write_stl(tmp_path / "drop.stl", sphere(45.0, 3))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for handler in list(logging.getLogger("dials").handlers):  # of the log in the folder
        logging.getLogger("dials").removeHandler(handler)


INPUT = ["models.expt", "observations.refl"]
DROP = ["mesh.liquor=drop.stl", "materials.liquor.mu=0.01"]


def factors() -> np.ndarray:
    table = flex.reflection_table.from_file("corrected.refl")
    return np.array(table["analytical_correction"])


def test_a_mesh_is_the_crystal_of_the_same_faces_in_both_frames(folder: Path) -> None:
    run([*INPUT, "faces=faces.txt", MU])
    by_faces = factors()
    assert np.ptp(by_faces) > 0.1
    run([*INPUT, "mesh=datum.stl", "mesh.frame=datum", MU])
    np.testing.assert_allclose(factors(), by_faces, rtol=5e-3)
    assert np.sqrt(np.mean((factors() / by_faces - 1) ** 2)) < 2e-3
    alignment = [f"alignment.angle_offset={OFFSET}", f"alignment.rotation_sense={SENSE}"]
    run([*INPUT, "mesh=tomo.stl", MU, *alignment])
    assert np.sqrt(np.mean((factors() / by_faces - 1) ** 2)) < 2e-3
    run([*INPUT, "mesh=tomo.stl", MU])
    assert np.abs(factors() / by_faces - 1).max() > 0.05


def test_liquor_around_the_crystal_and_what_is_written(folder: Path) -> None:
    run([*INPUT, "mesh.crystal=datum.stl", "mesh.frame=datum", MU])
    alone = factors()
    run([*INPUT, "mesh.crystal=datum.stl", "mesh.frame=datum", *DROP, MU])
    assert np.all(factors() < alone)
    record = read_record(folder / "anacor_absorption.json", AbsorptionRecord)
    assert record.meshes is not None
    assert [m["name"] for m in record.meshes["materials"]] == ["crystal", "liquor"]
    assert record.meshes["materials"][1]["volume_um3"] == pytest.approx(4 / 3 * np.pi * 45**3)
    paths = {m.name: m.mean_path_um for m in record.wavelengths[0].materials}
    assert 60 < paths["liquor"] + paths["crystal"] < 100  # out of a ball of 45 um, twice
    log = (folder / "anacor_absorption.log").read_text()
    assert "around 100 % of the crystal's corners" in log
    html = (folder / "anacor_absorption.html").read_text()
    assert "where they overlap the first counts" in html
    assert "mesh3d" in html
    cif = (folder / "anacor_absorption.cif").read_text()
    assert "_exptl_absorpt_correction_type         numerical" in cif
    assert "with meshes of liquor" in cif
    # the same in mm, the liquor of the name drop
    for name, scale in (("datum", 1e-3), ("drop", 1e-3)):
        mesh = {"datum": convex_polyhedron(datum_normals(), DISTANCES), "drop": sphere(45.0, 3)}[
            name
        ]
        write_stl(folder / f"{name}_mm.stl", Mesh(mesh.vertices * scale, mesh.faces))
    before = factors()
    run(
        [
            *INPUT,
            "mesh=datum_mm.stl",
            "mesh.drop=drop_mm.stl",
            "materials.drop.mu=0.01",
            "mesh.unit=mm",
        ]
        + ["mesh.frame=datum", MU]
    )
    np.testing.assert_allclose(factors(), before, rtol=5e-3)


def test_meshes_that_make_no_sample(folder: Path) -> None:
    drop = sphere(45.0, 3)
    write_stl(folder / "far.stl", Mesh(drop.vertices + [900.0, 0, 0], drop.faces))
    write_stl(folder / "small.stl", Mesh(drop.vertices * 1e-3, drop.faces))
    lines = (folder / "datum.stl").read_bytes()
    n = int(np.frombuffer(lines[80:84], "<u4")[0]) - 1
    (folder / "open.stl").write_bytes(lines[:80] + np.uint32(n).tobytes() + lines[84 : 84 + 50 * n])
    (folder / "tomo.h5").write_bytes(b"")
    for arguments, message in (
        (["mesh=open.stl"], r"open\.stl: the surface of \d+ triangles is open: 3 edges"),
        (["mesh=absent.stl"], r"There is no file absent\.stl"),
        (["mesh=small.stl"], r"the crystal is 0\.09\d* x 0\.09\d* x 0\.09\d* um; give the unit"),
        (["mesh=datum.stl", "mesh.unit=m"], r"give the unit of the meshes \(mesh\.unit=mm"),
        (
            ["mesh=datum.stl", "mesh.liquor=far.stl"],
            r"far\.stl: the mesh of the liquor does not reach the crystal; it is 8\d\d",
        ),
        (["mesh.liquor=drop.stl"], "There is no mesh of the crystal; given are liquor"),
        (["mesh=datum.stl", "mesh.loop=drop.stl", MU], "loop"),
        (["mesh=datum.stl", "tomo.h5"], r"Meshes and the sample tomo\.h5 were both given"),
        (
            ["mesh=datum.stl", "faces=faces.txt"],
            r"Meshes and the sample faces\.txt were both given",
        ),
        (
            ["mesh=datum.stl", "alignment.refine=faces"],
            r"alignment\.refine aligns a labelled volume",
        ),
        (
            ["mesh=datum.stl", "mesh.frame=datum", "alignment.angle_offset=10"],
            r"mesh\.frame=datum: the meshes turn with the goniometer",
        ),
    ):
        with pytest.raises(Sorry, match=message):
            run([*INPUT, *arguments])
        assert not (folder / "corrected.refl").exists()
    assert not (folder / "anacor_absorption.json").exists()


def test_liquor_that_holds_no_corner_of_the_crystal(folder: Path) -> None:
    write_stl(folder / "film.stl", box((0.02, 100.0, 100.0)).moved(shift_um=(3.17, 0.0, 0.0)))
    run(
        [*INPUT, "mesh=datum.stl", "mesh.frame=datum", MU, "mesh.liquor=film.stl"]
        + ["materials.liquor.mu=0.01", "absorption.tolerance=1"]
    )
    (warning,) = json.loads((folder / "anacor_absorption.json").read_text())["warnings"]
    assert warning.startswith("No corner of the crystal lies in the mesh of the liquor")
