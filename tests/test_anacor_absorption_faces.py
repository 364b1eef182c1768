"""dials.anacor_absorption finds the crystal's faces, aligns by them, and lists them for faces=."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

from dials.array_family import flex
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
from anacor_dials.diffraction.alignment import AlignmentFit
from anacor_dials.diffraction.reflections import Alignment
from anacor_dials.jobs import correct_alignment
from anacor_dials.jobs.records import AbsorptionRecord, read_record
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.sample.volumes import LabelVolume

A, C = 79.1, 37.9  # lysozyme, P 43 21 2
HKL = [(h, k, 0) for h in (1, -1) for k in (1, -1)] + [
    (h, k, l) for h, k in ((1, 0), (-1, 0), (0, 1), (0, -1)) for l in (1, -1)
]
OFFSET, SENSE = 187.3, -1
FIXED = Rotation.from_euler("y", 20.0, degrees=True)
U = Rotation.from_rotvec([0.3, -0.8, 0.5])  # from the axes along x, y, z to the datum frame
DISTANCES = np.array([22.0, 20.0, 21.0, 23.0, 24.0, 22.5, 21.5, 23.5, 22.0, 24.5, 23.0, 21.0])


def true_normals(u: Rotation = U) -> np.ndarray:
    """Normals (12, 3) in the tomo frame.

    The axis is +x of the lab and the beam flies along -z (dxtbx: sample to source +z). The datum
    frame is lab = R_x(omega) F datum; at omega = OFFSET the tomo axes are (s x, s y, z) of the lab.
    """
    vectors = np.array(HKL) / np.array([A, A, C])
    datum = u.apply(vectors / np.linalg.norm(vectors, axis=1)[:, None])
    lab = Rotation.from_euler("x", OFFSET, degrees=True).apply(FIXED.apply(datum))
    return lab * np.array([SENSE, SENSE, 1.0])


def labels() -> LabelVolume:
    line = np.arange(-40, 41.0)
    x, y, z = np.meshgrid(line, line, line, indexing="ij", sparse=True)
    inside = np.ones((81, 81, 81), dtype=bool)
    for (u, v, w), d in zip(true_normals(), DISTANCES, strict=True):
        inside &= u * x + v * y + w * z < d
    return LabelVolume((3 * inside).astype(np.uint8), 1.0)  # type: ignore[arg-type]


def experiment(u: Rotation = U, identifier: str = "a") -> Experiment:
    goniometer = GoniometerFactory.known_axis((1.0, 0.0, 0.0))
    goniometer.set_fixed_rotation(tuple(FIXED.as_matrix().ravel()))
    axes = u.apply(np.diag([A, A, C]))
    return Experiment(
        beam=BeamFactory.simple(1.0),
        detector=DetectorFactory.simple(
            "PAD", 100.0, (150.0, 150.0), "+x", "-y", (1.0, 1.0), (300, 300)
        ),
        goniometer=goniometer,
        scan=ScanFactory.make_scan((1, 90), 0.1, (0.0, 1.0), dict.fromkeys(range(1, 91), 0.0)),
        crystal=Crystal(*(tuple(v) for v in axes), "P 43 21 2"),
        identifier=identifier,
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """models.expt, observations.refl with 50 reflections, and tomo.h5 of a crystal with mu = 0."""
    rng = np.random.default_rng(3)
    table, n = flex.reflection_table(), 50
    table["id"] = flex.int(n, 0)
    table["miller_index"] = flex.miller_index([(1, 2, i + 1) for i in range(n)])
    s1 = rng.normal(size=(n, 3))
    table["s1"] = flumpy.vec_from_numpy(s1 / np.linalg.norm(s1, axis=1, keepdims=True))
    xyz = np.column_stack([rng.uniform(0, 300, (n, 2)), rng.uniform(0, np.pi / 2, n)])
    table["xyzcal.mm"] = flumpy.vec_from_numpy(xyz)
    table["intensity.sum.value"] = flex.double(n, 100.0)
    table["intensity.sum.variance"] = flex.double(n, 100.0)
    table.experiment_identifiers()[0] = "a"
    ExperimentList([experiment()]).as_file(tmp_path / "models.expt")
    table.as_file(tmp_path / "observations.refl")
    write_sample_file(
        tmp_path / "tomo.h5", labels=labels(), mu_per_um=np.zeros(4), energy_keV=12.398
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for handler in list(logging.getLogger("dials").handlers):  # of the log in the folder
        logging.getLogger("dials").removeHandler(handler)


INPUT = ["models.expt", "observations.refl", "tomo.h5"]


def test_the_alignment_by_faces_needs_no_absorption(folder: Path) -> None:
    run([*INPUT, "alignment.refine=faces", "output.faces=found.txt"])
    content = json.loads((folder / "anacor_absorption.json").read_text())
    fit = content["faces"]["alignment"]
    assert fit["determined"]
    assert fit["angle_offset_deg"] == pytest.approx(OFFSET, abs=0.2)
    assert fit["rotation_sense"] == SENSE
    assert content["warnings"] == []
    # to_datum of the run is that of the construction
    turned = true_normals() @ np.array(content["tomo_to_datum"]).T
    vectors = np.array(HKL) / np.array([A, A, C])
    datum = U.apply(vectors / np.linalg.norm(vectors, axis=1)[:, None])
    assert np.degrees(np.arccos(np.clip((turned * datum).sum(axis=1), -1, 1))).max() < 0.2
    # the list that faces= reads: indices up to a symmetry operation that maps the lattice on itself
    listed = np.loadtxt(folder / "found.txt")
    found = {tuple(map(int, row[:3])): row[3] for row in listed}
    assert set(found) == set(HKL)
    for hkl, distance in zip(HKL, DISTANCES, strict=True):
        assert found[hkl] == pytest.approx(distance, abs=0.2)
    html = (folder / "anacor_absorption.html").read_text()
    assert "Faces of the crystal" in html
    assert "(1 0 -1)" in html
    log = (folder / "anacor_absorption.log").read_text()
    assert "By the faces: offset 187." in log
    for text in (" ".join(log.split()), " ".join(html.split())):  # 4/mmm makes 4 and 8 of them
        assert "{1 1 0} (4 of 4)" in text
        assert "{1 0 1} (8 of 8)" in text
    cif = (folder / "anacor_absorption.cif").read_text()
    assert "_exptl_crystal_face_perp_dist" in cif
    assert cif.count("\n  1 0 1 ") == 1
    record = read_record(folder / "anacor_absorption.json", AbsorptionRecord)
    assert record.faces is not None
    assert len(record.faces.crystals[0]["faces"]) == 12


def test_the_list_found_is_a_list_of_faces(folder: Path) -> None:
    """Factors by the faces found are those of the labels, within the steps of their voxels."""
    mu = "materials.crystal.mu=0.02"
    run([*INPUT, mu, "alignment.refine=faces", "output.faces=found.txt", "output.mode=column"])
    by_labels = flex.reflection_table.from_file("corrected.refl")["analytical_correction"]
    run(["models.expt", "observations.refl", "faces=found.txt", mu])
    by_faces = flex.reflection_table.from_file("corrected.refl")["analytical_correction"]
    np.testing.assert_allclose(np.array(by_labels), np.array(by_faces), rtol=0.01)
    assert np.ptp(np.array(by_labels)) > 0.05


def test_faces_are_compared_with_the_alignment_given(folder: Path) -> None:
    run([*INPUT, "alignment.angle_offset=150", "alignment.rotation_sense=-1"])
    (warning,) = json.loads((folder / "anacor_absorption.json").read_text())["warnings"]
    assert "The crystal's faces are lattice planes at the angle offset 187." in warning
    assert "not at the alignment used, 150.0 deg with sense -1" in warning
    assert not (folder / "found.txt").exists()
    run([*INPUT, f"alignment.angle_offset={OFFSET}", f"alignment.rotation_sense={SENSE}"])
    assert json.loads((folder / "anacor_absorption.json").read_text())["warnings"] == []
    run([*INPUT, "labels.find_faces=False"])
    assert json.loads((folder / "anacor_absorption.json").read_text())["faces"] is None


def by_intensities(monkeypatch: pytest.MonkeyPatch, offset_deg: float, sense: int) -> None:
    """Makes the intensities say this offset, with a standard error of 1 deg."""

    def refine(data: None, experiments: ExperimentList, *rest: object) -> AlignmentFit:
        after = Alignment(offset_deg, sense)
        return AlignmentFit(
            ("offset", "sense"), Alignment(), after, 1.0, "", offset_deg, 1.0, sense
        )

    monkeypatch.setattr(correct_alignment, "equivalents", lambda *_: None)
    monkeypatch.setattr(correct_alignment, "refine_alignment", refine)


@pytest.mark.parametrize("offset", [OFFSET + 2.0, OFFSET - 180.0])
def test_faces_and_intensities_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch, offset: float
) -> None:
    """The faces are followed; where the intensities contradict them, a warning says so."""
    by_intensities(monkeypatch, offset, SENSE)
    run([*INPUT, "alignment.refine=faces,offset,sense", "output.html=None"])
    content = json.loads((folder / "anacor_absorption.json").read_text())
    turned = true_normals() @ np.array(content["tomo_to_datum"]).T
    vectors = np.array(HKL) / np.array([A, A, C])
    datum = U.apply(vectors / np.linalg.norm(vectors, axis=1)[:, None])
    assert np.degrees(np.arccos(np.clip((turned * datum).sum(axis=1), -1, 1))).max() < 0.2
    if offset > OFFSET:
        assert content["warnings"] == []
    else:
        (warning,) = content["warnings"]
        assert "The faces of the crystal and the intensities contradict each other" in warning
        assert f"{offset:.1f} (1.0) deg with sense -1 by symmetry equivalents" in warning


def test_two_crystals_have_the_indices_of_their_own_lattices(folder: Path) -> None:
    """Two crystals in one drop, each with an orientation matrix and a sweep of its own."""
    second = Rotation.from_rotvec([-0.9, 0.4, 1.1])
    line = np.arange(-32, 33.0)
    x, y, z = np.meshgrid(np.arange(-62, 63.0), line, line, indexing="ij", sparse=True)
    crystal = np.zeros((125, 65, 65), dtype=bool)
    for u, middle in ((U, -30.0), (second, 30.0)):
        inside = np.ones_like(crystal)
        for (a, b, c), d in zip(true_normals(u), DISTANCES, strict=True):
            inside &= a * (x - middle) + b * y + c * z < d
        crystal |= inside
    write_sample_file(
        folder / "two.h5",
        labels=LabelVolume((3 * crystal).astype(np.uint8), 1.0),  # type: ignore[arg-type]
        mu_per_um=np.zeros(4),
        energy_keV=12.398,
    )
    table = flex.reflection_table.from_file("observations.refl")
    other = table.select(flex.bool(len(table), True))
    other["id"] = flex.int(len(other), 1)
    other.experiment_identifiers()[1] = "b"
    del other.experiment_identifiers()[0]
    table.extend(other)
    table.as_file("both.refl")
    ExperimentList([experiment(), experiment(second, "b")]).as_file("both.expt")
    run(["both.expt", "both.refl", "two.h5",
         f"alignment.angle_offset={OFFSET}", f"alignment.rotation_sense={SENSE}"])  # fmt: skip
    found = json.loads((folder / "anacor_absorption.json").read_text())["faces"]["crystals"]
    of_experiment = {one["experiment"]: one for one in found}
    assert set(of_experiment) == {0, 1}
    for one in found:
        indices = {tuple(map(int, f["hkl"])) for f in one["faces"] if f["lattice_plane"]}
        assert indices == set(HKL)
    for number, middle in ((0, -30.0), (1, 30.0)):  # distances are from the middle of the volume
        for face in of_experiment[number]["faces"]:
            k = HKL.index(tuple(map(int, face["hkl"])))
            u = (U, second)[number]
            expected = DISTANCES[k] + middle * true_normals(u)[k, 0]
            shift = np.dot(of_experiment[number]["origin_um"], true_normals(u)[k])
            assert face["distance_um"] + shift == pytest.approx(expected, abs=0.3)
    log = (folder / "anacor_absorption.log").read_text()
    assert "Crystal 1, of" in log
    assert "Crystal 2, of" in log


def test_a_round_crystal_says_that_it_has_no_faces(folder: Path) -> None:
    line = np.arange(-30, 31.0)
    x, y, z = np.meshgrid(line, line, line, indexing="ij", sparse=True)
    ball = (3 * (x * x + y * y + z * z < 22.0**2)).astype(np.uint8)
    write_sample_file(
        folder / "ball.h5",
        labels=LabelVolume(ball, 1.0),  # type: ignore[arg-type]
        mu_per_um=np.zeros(4),
        energy_keV=12.398,
    )
    run([*INPUT[:2], "ball.h5", "alignment.refine=faces", "output.faces=found.txt"])
    content = json.loads((folder / "anacor_absorption.json").read_text())
    assert "the crystal has no faces" in content["warnings"][0]
    assert "nothing is moved" in content["warnings"][0]
    assert content["faces"]["alignment"] is None
    assert not (folder / "found.txt").exists()
    assert "found.txt is not written" in (folder / "anacor_absorption.log").read_text()


def bitten() -> LabelVolume:
    """The crystal without what lies within 20 um of one of its corners, in voxels of 1 um."""
    whole = labels()
    places = np.argwhere(whole.values == 3)
    tip = places[np.argmax(places @ [1.0, 0.4, -0.6])]
    bite = places[np.linalg.norm(places - tip, axis=1) < 20]
    whole.values[tuple(bite.T)] = 0
    return whole


def test_labels_that_lack_a_corner_are_completed_by_the_faces(folder: Path) -> None:
    """Factors are nearly those of the true faces, where the labels as they are are far off.

    One of the twelve faces is lost with the corner, and follows from its form.
    """
    mu = "materials.crystal.mu=0.02"
    lines = [f"{h} {k} {l} {d}" for (h, k, l), d in zip(HKL, DISTANCES, strict=True)]
    Path("true.txt").write_text("\n".join(lines))
    run([*INPUT[:2], "faces=true.txt", mu, "absorption.tolerance=0.3"])
    truth = np.array(flex.reflection_table.from_file("corrected.refl")["analytical_correction"])
    write_sample_file(
        folder / "bitten.h5", labels=bitten(), mu_per_um=np.zeros(4), energy_keV=12.398
    )
    errors = {}
    for choice in ("voxels", "auto"):
        options = [mu, "absorption.tolerance=0.3", f"labels.crystal={choice}"]
        options += [f"alignment.angle_offset={OFFSET}", f"alignment.rotation_sense={SENSE}"]
        run([*INPUT[:2], "bitten.h5", *options])
        found = np.array(flex.reflection_table.from_file("corrected.refl")["analytical_correction"])
        errors[choice] = np.std(found / truth)
    assert errors["voxels"] > 0.01
    assert errors["auto"] < 0.008
    record = read_record(folder / "anacor_absorption.json", AbsorptionRecord)
    assert record.labels_by_faces is not None
    (crystal,) = record.labels_by_faces["crystals"]
    assert crystal["reason_for_voxels"] is None
    assert crystal["dice"] < 0.97
    assert crystal["faces_by_symmetry"] == 1
    assert crystal["polyhedron_um3"] == pytest.approx(labels().counts()[3], rel=0.03)
    assert any("Crystal 1 is the polyhedron of its faces" in w for w in record.warnings)
    assert "Crystal 1 is the polyhedron" in (folder / "anacor_absorption.log").read_text()
