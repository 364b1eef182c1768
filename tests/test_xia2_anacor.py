"""xia2.anacor as a user runs it: on real sweeps in xia2's layout, and on bad input."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

import iotbx.cif
import iotbx.mtz
from dials.array_family import flex
from dials.util import Sorry
from dxtbx import flumpy
from dxtbx.model.experiment_list import ExperimentListFactory
from scipy.spatial.transform import Rotation
from scipy.stats import qmc

from anacor_dials.command_line.xia2_anacor import run
from anacor_dials.diffraction.merging import compare_merging_statistics
from anacor_dials.diffraction.scaling import STRATEGIES, corrections, scale
from anacor_dials.diffraction.selection import Selection
from anacor_dials.jobs.pipeline import crystals as side_by_side
from anacor_dials.jobs.pipeline.inputs import sweeps_of_xia2
from anacor_dials.jobs.pipeline.results import (
    CorrectedCrystal,
    GroupResult,
    PipelineResult,
    WavelengthResult,
)
from anacor_dials.jobs.pipeline.steps import FinishedStep, Step
from anacor_dials.jobs.records import (
    AbsorptionRecord,
    MaterialRecord,
    WavelengthFactorsRecord,
)
from anacor_dials.report.page import plain
from anacor_dials.sample.materials import energy_from_wavelength
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.simulation.diffraction_data import (
    simulate_diffraction,
    write_diffraction,
)
from anacor_dials.simulation.diffraction_settings import DiffractionSettings, Sweep
from anacor_dials.simulation.meshes import box
from anacor_dials.simulation.samples import sample_from_meshes

# ---- a sample whose paths have a closed form, and real sweeps that it attenuates ------------------

CRYSTAL, LIQUOR = 3, 1
# label -> centre, radius (um) in the tomo frame, mu (1/um)
BALLS = {
    CRYSTAL: (np.array([3.0, -2.0, 4.0]), 14.0, 0.05),
    LIQUOR: (np.array([-4.0, 31.0, -10.0]), 18.0, 0.06),
}


def write_balls(path: Path) -> Path:
    """tomo.h5 with the labels of the two balls, voxels of 0.5 um, and their mu."""
    n, voxel_um = 220, 0.5
    line = (np.arange(n) - (n - 1) / 2) * voxel_um
    labels = np.zeros((n, n, n), dtype=np.uint8)
    for label, (centre, radius, _) in BALLS.items():
        x, y, z = (line - c for c in centre)
        labels[x[:, None, None] ** 2 + y[:, None] ** 2 + z**2 < radius**2] = label
    mu = [0.0, BALLS[LIQUOR][2], 0.01, BALLS[CRYSTAL][2]]
    write_sample_file(path, labels=LabelVolume(labels, voxel_um), mu_per_um=mu)
    return path


def transmission(to_source: np.ndarray, exits: np.ndarray) -> np.ndarray:
    """A (n,) from the chords through the balls, averaged over 2048 points of the crystal."""
    centre, radius, _ = BALLS[CRYSTAL]
    r3, u, turn = qmc.Sobol(3, seed=11).random(2048).T
    sine, angle = np.sqrt(1 - (2 * u - 1) ** 2), 2 * np.pi * turn
    unit = np.column_stack([sine * np.cos(angle), sine * np.sin(angle), 2 * u - 1])
    points = centre + radius * np.cbrt(r3)[:, None] * unit
    depth = np.zeros((len(to_source), len(points)))
    for middle, size, mu in BALLS.values():
        offset = points - middle
        for directions in (to_source, exits):
            along = directions @ offset.T
            inside = along**2 - (np.sum(offset**2, axis=1) - size**2)
            root = np.sqrt(np.maximum(inside, 0.0))
            chord = np.maximum(root - along, 0) - np.maximum(-root - along, 0)
            depth += mu * np.where(inside > 0, chord, 0.0)
    return np.exp(-depth).mean(axis=1)


def matrix(elements: Sequence[float]) -> Rotation:
    return Rotation.from_matrix(np.array(elements).reshape(3, 3))


def attenuate(sources: Sequence[Path], targets: Sequence[Path]) -> None:
    """Copies of integrated sweeps (paths without suffix) whose intensities went through the balls.

    The tomo frame is that of docs/conventions.md at scan angle 0 of the first sweep.
    """
    to_datum = None
    for source, target in zip(sources, targets, strict=True):
        model = ExperimentListFactory.from_json_file(f"{source}.expt", check_format=False)[0]
        table = flex.reflection_table.from_file(f"{source}.refl")
        goniometer = model.goniometer
        setting = matrix(goniometer.get_setting_rotation())
        fixed = matrix(goniometer.get_fixed_rotation())
        if to_datum is None:
            e = np.array(goniometer.get_rotation_axis())
            z = -np.array(model.beam.get_s0())
            z -= e * (z @ e) / (e @ e)
            e, z = e / np.linalg.norm(e), z / np.linalg.norm(z)
            in_lab = Rotation.from_matrix(np.column_stack([e, np.cross(z, e), z]))
            to_datum = (setting * fixed).inv() * in_lab
        phi = flumpy.to_numpy(table["xyzcal.mm"])[:, 2]
        axis = np.array(goniometer.get_rotation_axis_datum())
        to_tomo = (setting * Rotation.from_rotvec(phi[:, None] * axis) * fixed * to_datum).inv()
        s1 = flumpy.to_numpy(table["s1"])
        exits = s1 / np.maximum(np.linalg.norm(s1, axis=1, keepdims=True), 1e-9)
        beam = np.array(model.beam.get_sample_to_source_direction())
        a = np.concatenate(
            [
                transmission(to_tomo[part].apply(beam), to_tomo[part].apply(exits[part]))
                for part in np.array_split(np.arange(len(table)), len(table) // 500 + 1)
            ]
        )
        for method in ("prf", "sum"):
            table[f"intensity.{method}.value"] *= flex.double(a)
            table[f"intensity.{method}.variance"] *= flex.double(a * a)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(f"{source}.expt", f"{target}.expt")
        table.as_file(f"{target}.refl")


def xia2_record(folder: Path, crystals: dict[str, dict[str, list[str]]], project: str) -> None:
    """The parts of xia2.json that say what there is: {crystal: {wavelength: [sweep]}}."""
    content = {
        "__id__": "XProject",
        "_name": project,
        "path": str(folder),
        "_crystals": {
            crystal: {
                "__id__": "XCrystal",
                "_name": crystal,
                "_wavelengths": {
                    wavelength: {
                        "__id__": "XWavelength",
                        "_name": wavelength,
                        "_sweeps": [
                            {"__id__": "XSweep", "_name": sweep, "_integrater": None}
                            for sweep in sweeps
                        ],
                    }
                    for wavelength, sweeps in wavelengths.items()
                },
            }
            for crystal, wavelengths in crystals.items()
        },
    }
    (folder / "xia2.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def real_data(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with xia2/, as xia2 leaves the four l-cysteine sweeps, attenuated, and tomo.h5."""
    folder = tmp_path_factory.mktemp("data")
    sweeps = [f"SWEEP{i + 1}" for i in range(4)]
    attenuate(
        [shared_data / "l_cysteine" / f"sweep_{i}" for i in (20, 25, 30, 35)],
        [folder / "xia2" / "DataFiles" / f"CYS_X1_NATIVE_{sweep}" for sweep in sweeps],
    )
    xia2_record(folder / "xia2", {"X1": {"NATIVE": sweeps}}, "CYS")
    write_balls(folder / "tomo.h5")
    return folder


# ---- the real sweeps ------------------------------------------------------------------------------

# what makes dials.scale quick; the same in every strategy
FAST = (
    "d_min=0.8",
    "scaling.full_matrix=False",
    "scaling.options=error_model=None intensity_choice=profile outlier_rejection=simple "
    "physical.decay_correction=False",
    "nproc=2",
)


@pytest.fixture(scope="module")
def finished_run(real_data: Path) -> Path:
    """The folder in which xia2.anacor was run on the real sweeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(real_data)
        run(["xia2", "tomography.X1=tomo.h5", "scaling.strategies=none+analytical", *FAST])
    return real_data


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.mark.slow
def test_real_sweeps_from_xia2_to_mtz(finished_run: Path, shared_data: Path) -> None:
    """What the balls took is given back; the data that were never attenuated say how much that is."""
    result = json.loads((finished_run / "anacor/anacor.json").read_text())
    (group,) = result["groups"]
    (of,) = group["wavelengths"]
    assert group["space_group"] == "P 21 21 21"
    assert group["selection"]["strategy"] == "analytical"
    assert of["wavelength_angstrom"] == pytest.approx(0.6889, abs=1e-4)
    assert of["name"] == "NATIVE"

    names = [shared_data / "l_cysteine" / f"sweep_{i}" for i in (20, 25, 30, 35)]
    untouched = scale(
        [f"{name}.expt" for name in names],
        [f"{name}.refl" for name in names],
        "none",
        finished_run / "untouched",
        options=["d_min=0.8", "full_matrix=False", *FAST[2].partition("=")[2].split()],
    )
    (truth,) = compare_merging_statistics(
        {"untouched": (untouched.experiments, untouched.reflections)}
    )
    for row in ("Rmeas(I)", "CC half"):
        there = of["table_1"]["analytical"][row][0]
        assert there == pytest.approx(truth.table_1[row][0], rel=0.03), row
    # without a correction so much is rejected that Rmeas of the rest looks as good
    same = {name: one["r_meas"] for name, one in of["same_observations"]["values"].items()}
    assert same["none"] > 1.5 * same["analytical"]
    assert (
        of["table_1"]["none"]["Total observations"][0]
        < 0.9 * (of["table_1"]["analytical"]["Total observations"][0])
    )

    merged = iotbx.mtz.object(of["files"]["merged MTZ"])
    assert {"IMEAN", "I(+)", "F"} <= set(merged.column_labels())
    assert str(merged.space_group_info()) == "P 21 21 21"
    crystals = {crystal.name(): crystal for crystal in merged.crystals()}
    assert "X1" in crystals
    assert crystals["X1"].datasets()[0].wavelength() == pytest.approx(0.6889, abs=1e-4)
    assert merged.max_min_resolution()[1] == pytest.approx(0.8, abs=0.01)
    unmerged = iotbx.mtz.object(of["files"]["unmerged MTZ"])
    n = of["table_1"]["analytical"]["Total observations"][0]
    assert unmerged.n_reflections() == pytest.approx(n, rel=0.05)
    (block,) = iotbx.cif.reader(of["files"]["unmerged mmCIF"]).model().values()
    assert len(block["_diffrn_refln.index_h"]) == pytest.approx(n, rel=0.05)


@pytest.mark.slow
def test_the_record_of_a_real_run_is_true(finished_run: Path) -> None:
    """Hashes of inputs and outputs, links of the report, and a command line repeated by hand."""
    result = json.loads((finished_run / "anacor/anacor.json").read_text())
    steps = {step["name"]: step for step in result["steps"]}
    assert list(steps) == [
        f"X1/{name}"
        for name in (
            "absorption", "symmetry", "scale_none", "scale_analytical", "compare", "absences",
            "free_set", "merge", "export", "export_mmcif",
        )
    ]  # fmt: skip
    for step in steps.values():
        for path, digest in step["inputs"].items():
            assert sha256(path) == digest
        for name, digest in step["outputs"].items():
            assert sha256(Path(step["folder"]) / name) == digest
    assert (
        set(result["inputs"])
        == set(steps["X1/absorption"]["inputs"])
        == {
            str(finished_run / "tomo.h5"),
            *(str(path) for path in (finished_run / "xia2/DataFiles").iterdir()),
        }
    )
    html = (finished_run / "anacor/anacor.html").read_text()
    linked = re.findall(r'href="([^#"][^"]*)"', html)
    for report in (
        "X1/absorption/anacor_absorption.html",
        "X1/compare/anacor_compare.html",
        "X1/scale_analytical/dials.scale.html",
        "X1/merge/dials.merge.html",
        "DataFiles/X1_scaled.mtz",
    ):
        assert report in linked
    assert [name for name in linked if not (finished_run / "anacor" / name).is_file()] == []

    elsewhere = finished_run / "by_hand"
    elsewhere.mkdir()
    command = shlex.split(steps["X1/export"]["command_line"])
    subprocess.run(command, cwd=elsewhere, check=True, capture_output=True)
    one, other = (
        iotbx.mtz.object(str(folder / "scaled_unmerged.mtz"))
        for folder in (elsewhere, finished_run / "anacor/X1/export")
    )
    assert list(one.get_column("I").extract_values()) == list(
        other.get_column("I").extract_values()
    )


@pytest.mark.slow
def test_a_real_run_is_gone_on_with(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is done again, and the results stay."""
    monkeypatch.chdir(finished_run)
    command = ["xia2", "tomography=tomo.h5", "scaling.strategies=none+analytical", *FAST]
    scaled = Path("anacor/DataFiles/X1_scaled.refl").read_bytes()
    run([*command, "nproc=1"])
    steps = json.loads(Path("anacor/anacor.json").read_text())["steps"]
    assert [step["name"] for step in steps if step["done_in_this_run"]] == []
    assert Path("anacor/DataFiles/X1_scaled.refl").read_bytes() == scaled


@pytest.mark.slow
def test_multiplex_keeps_the_correction(finished_run: Path, tmp_path: Path) -> None:
    """xia2.multiplex on the scaled files: the models keep the factors, and Rmeas is that of good data."""
    program = shutil.which("xia2.multiplex")
    if program is None:
        pytest.skip("Xia2 is not installed: there is no program multiplex.")
    data = finished_run / "anacor/DataFiles"
    files = [str(data / f"X1_scaled.{kind}") for kind in ("expt", "refl")]
    subprocess.run([program, *files, "nproc=2"], cwd=tmp_path, check=True)
    (experiments,) = tmp_path.rglob("scaled.expt")
    terms = corrections(experiments)
    assert len(terms) == 4
    assert all("analytical" in one for one in terms)
    (statistics,) = compare_merging_statistics(
        {"multiplex": (experiments, experiments.with_suffix(".refl"))}
    )
    # to 0.58 A: 0.040 for the sweeps before they were attenuated, 0.059 where that is left uncorrected
    assert statistics.table_1["Rmeas(I)"][0] < 0.045


def test_the_record_is_xia2s_own(shared_data: Path, tmp_path: Path) -> None:
    """xia2.json as xia2's own classes write it."""
    try:
        from xia2.Schema.XCrystal import XCrystal
        from xia2.Schema.XProject import XProject
        from xia2.Schema.XSample import XSample
        from xia2.Schema.XSweep import XSweep
        from xia2.Schema.XWavelength import XWavelength
    except ImportError:
        pytest.skip("Xia2 is not installed: its xia2_json cannot be written.")
    path = str(shared_data / "l_cysteine" / "sweep_20.expt")
    imageset = ExperimentListFactory.from_json_file(path, check_format=False).imagesets()[0]
    project = XProject(name="thau")
    project.path = tmp_path
    for x in ("X1", "my_X2"):
        crystal = XCrystal(x, project)
        for w, length in (("LREM", 4.1), ("PEAK", 2.7)):
            wavelength = XWavelength(w, crystal, length)
            sweep = XSweep("SWEEP1", wavelength, XSample("S1", crystal))
            sweep._imageset = sweep._input_imageset = imageset
            wavelength._sweeps.append(sweep)
            crystal.add_wavelength(wavelength)
        project._crystals[x] = crystal
    project.as_json(filename=str(tmp_path / "xia2.json"))
    (tmp_path / "DataFiles").mkdir()
    for x in ("X1", "my_X2"):
        for w in ("LREM", "PEAK"):
            for kind in ("expt", "refl"):
                (tmp_path / "DataFiles" / f"thau_{x}_{w}_SWEEP1.{kind}").touch()
    found = [(s.crystal, s.wavelength, s.experiments.name) for s in sweeps_of_xia2(tmp_path)]
    assert found == [
        (x, w, f"thau_{x}_{w}_SWEEP1.expt") for x in ("X1", "my_X2") for w in ("LREM", "PEAK")
    ]


# ---- two wavelengths ------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_wavelengths_of_a_virtual_crystal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled together, merged apart, each with factors of its own mu."""
    monkeypatch.chdir(tmp_path)
    sample = sample_from_meshes({"crystal": box((150, 60, 100))})
    energy = energy_from_wavelength(3.5)
    write_sample_file(
        "tomo.h5",
        labels=sample.label_volume(2.0),
        mu_per_um=sample.mu_per_um(energy),
        energy_keV=energy,
    )
    for wavelength, name in ((3.5, "LREM"), (2.755, "PEAK")):
        experiments, table = simulate_diffraction(
            sample,
            np.random.default_rng(4),
            DiffractionSettings(wavelength, d_min=5.0, sweeps=[Sweep(0, 90, 0.1)], n_points=128),
        )
        experiments[0].identifier = name
        del table.experiment_identifiers()[0]
        table.experiment_identifiers()[0] = name
        write_diffraction(experiments, table, f"{name}.expt", f"{name}.refl")
    files = [f"{name}.{kind}" for kind in ("expt", "refl") for name in ("LREM", "PEAK")]
    run([
        *files, "tomography=tomo.h5", "scaling.strategies=none+analytical", "anomalous=True",
        "symmetry.space_group=P41212", "scaling.full_matrix=False",
        "scaling.options=error_model=None physical.decay_correction=False", "nproc=2",
    ])  # fmt: skip
    result = json.loads(Path("anacor/anacor.json").read_text())
    (group,) = result["groups"]
    assert group["space_group"] == "P 41 21 2"
    assert [w["name"] for w in group["wavelengths"]] == ["WAVE1", "WAVE2"]
    mu = [
        {m["name"]: m["mu_per_um"] for m in w["materials"]}["crystal"]
        for w in result["crystals"][0]["factors"]["wavelengths"]
    ]
    assert mu[0] > 1.7 * mu[1]  # (3.5 / 2.755)^3 = 2.05, less what scatters
    for one, length in zip(group["wavelengths"], (2.755, 3.5), strict=True):
        values = one["same_observations"]["values"]
        assert values["analytical"]["r_meas"] < 0.8 * values["none"]["r_meas"]
        merged = iotbx.mtz.object(one["files"]["merged MTZ"])
        lengths = {round(d.wavelength(), 3) for c in merged.crystals() for d in c.datasets()}
        assert lengths - {0.0} == {length}


# ---- what the command makes of a result -----------------------------------------------------------


def absorption_record(
    transmission: dict[str, Any], wavelength: float, warnings: list[str]
) -> AbsorptionRecord:
    """What dials.anacor_absorption writes, of a crystal without liquor and loop."""
    crystal = MaterialRecord(3, "crystal", 0.02, 20.0, "given", 1e5, 30.0)
    numbers = dict.fromkeys((f.name for f in fields(WavelengthFactorsRecord)), 0)
    of_wavelength = {"wavelength_angstrom": wavelength, "materials": [crystal]}
    absent = dict.fromkeys(f.name for f in fields(AbsorptionRecord))
    return AbsorptionRecord(
        **absent
        | {
            "transmission": transmission,
            "wavelengths": [WavelengthFactorsRecord(**numbers | of_wavelength)],
            "warnings": warnings,
        }
    )


def made_up_result(crystals, settings, work, write_report) -> PipelineResult:
    """A result as `process` returns it, its steps performed in place."""

    def step(name: str, **files: str) -> FinishedStep:
        def perform(folder: Path) -> None:
            for file, text in files.items():
                (folder / file).write_text(text)

        return work.run(
            Step(f"X1/{name}", ("program", name, "a b"), (), tuple(files), perform=perform)
        )

    factors = absorption_record(
        {"min": 0.1, "max": 0.6, "mean": 0.3}, 4.13, ["the beam is <small>"]
    )
    absorption = step(
        "absorption",
        **{
            "anacor_absorption.json": json.dumps(plain(factors.content())),
            "anacor_absorption.html": "report",
        },
    )
    unsaid = {"description": "", "command": "", "log": None}
    comparison = {
        "version": 2,
        "n_bins": 20,
        "columns": ["none", "analytical"],
        "d_max": 50.0,
        "d_min": 2.5,
        "same_observations": {
            "observations": 7,
            "values": {"none": {"r_meas": 0.15}, "analytical": {"r_meas": 0.0412}},
        },
        "table": [
            {"name": "Rmeas", "cells": ["0.110 (0.2)", "0.040 (0.1)"], "best": ["analytical"]}
        ],
        "strategies": [
            {
                "label": "none",
                "strategy": "none",
                "succeeded": True,
                "table_1": {"R": [0.11]},
                **unsaid,
            },
            {
                "label": "analytical",
                "strategy": "analytical",
                "succeeded": True,
                "table_1": {"R": [0.04]},
                **unsaid,
            },
            {"label": "SH high", "strategy": "sh_high", "succeeded": False, **unsaid},
        ],
    }
    compare = step(
        "compare",
        **{"anacor_compare.json": json.dumps(comparison), "anacor_compare.html": "plots"},
    )
    merging = step("merge", **{"merged.mtz": "merged"})
    files = {name: merging.path("merged.mtz") for name in ("merged MTZ", "unmerged MTZ")}
    group = GroupResult(
        name="X1",
        crystals=("X1",),
        symmetry=None,
        scaled={},
        failed={"sh_high": "line search failed"},
        selection=Selection(STRATEGIES["analytical"], "r_meas", {"none": 0.11}, "best Rmeas(I)"),
        warning="The factors do not improve the data",
        absences=None,
        space_group="P 41 21 2",
        unit_cell=(58.0, 58.0, 150.0, 90.0, 90.0, 90.0),
        experiments=merging.path("merged.mtz"),
        reflections=merging.path("merged.mtz"),
        wavelengths=(WavelengthResult("NATIVE", 4.13, compare, merging, files),),
        free_set="Free set: that of /data/free.mtz.",
    )
    correction = CorrectedCrystal(crystals[0], None, crystals[0].tomography, absorption)
    return PipelineResult((correction,), (group,))


@pytest.fixture
def virtual_xia2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with xia2/ (its files empty) and tomo.h5 (empty, too), the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "xia2/DataFiles").mkdir(parents=True)
    for kind in ("expt", "refl"):
        (tmp_path / "xia2/DataFiles" / f"P_X1_NATIVE_SWEEP1.{kind}").write_text(kind)
        (tmp_path / f"integrated.{kind}").write_text(kind)
    xia2_record(tmp_path / "xia2", {"X1": {"NATIVE": ["SWEEP1"]}}, "P")
    (tmp_path / "tomo.h5").write_text("labels")
    return tmp_path


def test_report_and_record(virtual_xia2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "process", made_up_result)
    run(["xia2", "tomography=tomo.h5", "d_min=2.5"])
    html = Path("anacor/anacor.html").read_text()
    assert '<td class="marked">0.040 (0.1)</td>' in html
    assert "Rmeas(I), same 7 observations" in html
    assert '<td class="marked">0.041</td>' in html
    assert "analytical (taken)" in html
    assert "line search failed" in html
    assert '<p class="warning">The factors do not improve the data</p>' in html
    assert "X1. Free set: that of /data/free.mtz.</p>" in html
    assert "the beam is &lt;small&gt;" in html  # what files say is no HTML
    linked = re.findall(r'href="([^#"][^"]*)"', html)
    assert {
        "X1/absorption/anacor_absorption.html",
        "X1/compare/anacor_compare.html",
        "X1/merge/merged.mtz",
    } == set(linked)
    content = json.loads(Path("anacor/anacor.json").read_text())
    assert set(content["program"]) == {"name", "anacor_dials", "dials"}
    assert "d_min = 2.5" in content["parameters"]
    assert content["arguments"][-1] == "d_min=2.5"
    (crystal,) = content["crystals"]
    assert crystal["sweeps"][0]["reflections"].endswith("xia2/DataFiles/P_X1_NATIVE_SWEEP1.refl")
    assert crystal["factors"]["transmission"]["mean"] == 0.3
    (group,) = content["groups"]
    assert group["selection"]["strategy"] == "analytical"
    assert group["free_set"] == "Free set: that of /data/free.mtz."
    assert group["wavelengths"][0]["table_1"] == {
        "none": {"R": [0.11]},
        "analytical": {"R": [0.04]},
    }
    assert [step["command_line"] for step in content["steps"]][0] == "program absorption 'a b'"
    log = Path("xia2.anacor.log").read_text()
    assert re.search(r"^Rmeas +0.110 \(0.2\) +0.040 \(0.1\)\*", log, re.MULTILINE)
    assert "X1: P 41 21 2; taken: analytical (best Rmeas(I))" in log
    assert "X1. Free set: that of /data/free.mtz." in log
    run(["xia2", "tomography=tomo.h5"])
    assert "X1/merge: done before" in Path("xia2.anacor.log").read_text()


def test_parameters_reach_the_pipeline(virtual_xia2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, by PHIL file, and with options for all crystals and for one."""
    seen = []

    def process(crystals, settings, work, write_report) -> PipelineResult:
        seen.append((crystals, settings, work))
        return made_up_result(crystals, settings, work, write_report)

    monkeypatch.setattr(side_by_side, "process", process)
    Path("a.phil").write_text(
        'tomography {\n  X1 = tomo.h5\n}\nabsorption.options = "device=cpu"\n'
        "absorption.X1 = \"alignment.angle_offset=3 materials.liquor.formula='0.7 H2O'\"\n"
    )
    run([
        "xia2", "a.phil", "segmentation.X1=axes=xyz", "scaling.strategies=none+analytical",
        "selection.strategy=sh_high", "selection.margin=5", "anomalous=True", "nproc=3",
        "merging.options=a=1 b='2 3'", "scaling.crystals=together", "symmetry.space_group=P 41 21 2", "redo=X1/merge",
        "merging.free_set=tomo.h5", "free_fraction=0.1",
    ])  # fmt: skip
    ((crystals, settings, work),) = seen
    assert [(c.name, c.tomography.name) for c in crystals] == [("X1", "tomo.h5")]
    assert settings.absorption_options == {
        "": ("device=cpu",),
        "X1": ("alignment.angle_offset=3", "materials.liquor.formula=0.7 H2O"),
    }
    assert settings.segmentation_options == {"": (), "X1": ("axes=xyz",)}
    assert [s.name for s in settings.chosen_strategies()] == ["none", "analytical", "sh_high"]
    assert settings.margin == pytest.approx(0.05)
    assert settings.scaling_options == ("anomalous=True",)
    assert settings.merging_options == ("a=1", "b=2 3")
    assert settings.free_set == virtual_xia2 / "tomo.h5"
    assert settings.free_fraction == 0.1
    assert (settings.nproc, settings.together) == (3, True)
    assert settings.space_group == "P 41 21 2"
    assert work.redo == {"X1/merge"}


@pytest.mark.parametrize(
    ("argument", "file"),
    [("faces=x.txt", "x.txt"), ("faces.X1=x.cif", "x.cif"), ("mesh=x.stl", "x.stl"), ("mesh.X1=x.ply", "x.ply")],
)  # fmt: skip
def test_faces_and_meshes_are_given_as_tomography_is(
    virtual_xia2: Path, monkeypatch: pytest.MonkeyPatch, argument: str, file: str
) -> None:
    seen = []

    def process(crystals, settings, work, write_report) -> PipelineResult:
        seen.append(crystals)
        return made_up_result(crystals, settings, work, write_report)

    monkeypatch.setattr(side_by_side, "process", process)
    Path(file).write_text("1 0 0 10")
    run(["xia2", argument])
    ((crystal,),) = seen
    assert (crystal.name, crystal.tomography) == ("X1", virtual_xia2 / file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent", "tomography=tomo.h5"], "absent is neither a parameter, a xia2 directory"),
        (["empty", "tomography=tomo.h5"], "empty is no directory of xia2"),
        (["xia2"], "No tomography was given; name a scan or a tomo.h5 by tomography="),
        (["xia2", "tomo.h5"], "tomo.h5 is neither .* file; name tomography by tomography="),
        (["xia2", "tomography=absent.nxs"], "The tomography absent.nxs of the crystal X1 does not"),
        (
            ["xia2", "tomography=tomo.h5", "tomography=integrated.refl"],
            "2 tomograms were given for 1 cryst",
        ),
        (
            ["xia2", "tomography=tomo.h5", "absorption.X2=tolerance=1"],
            "absorption.X2 was given, but the crystals .* are X1",
        ),
        (["xia2", "tomography.X2=tomo.h5"], "tomography.X2 was given, but the crystals .* are X1"),
        (["xia2", "integrated.expt", "tomography=tomo.h5"], "give one or the other"),
        (["integrated.expt", "tomography=tomo.h5"], "1 experiment files and 0 reflection files"),
        (
            ["integrated.expt", "integrated.refl", "tomography.A=tomo.h5", "tomography.B=tomo.h5"],
            "1 sweeps cannot be divided among 2 crystals",
        ),
        (["xia2", "image=a.cbf", "tomography=tomo.h5"], "Images and xia2 were given"),
        (["image=a.cbf"], "No tomography was given"),
        (
            ["xia2", "tomography=tomo.h5", "scaling.strategies=magic"],
            r"Not a possible choice for scaling.strategies: magic[^$]*sh_high",
        ),
        (["xia2", "tomography=tomo.h5", "absorption.options=output.log=a"], "option output.log=a"),
        (["xia2", "tomography=tomo.h5", "absorption.X1=formula='H2O"], "A quote is not closed"),
        (["xia2", "tomography=tomo.h5", "output.directory=empty.txt"], "is a file; name a folder"),
        (
            ["xia2", "tomography=tomo.h5", "output.directory=xia2"],
            "xia2 holds files of something else",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    virtual_xia2: Path, arguments: list[str], message: str
) -> None:
    (virtual_xia2 / "empty").mkdir()
    (virtual_xia2 / "empty.txt").touch()
    before = sorted(virtual_xia2.rglob("*"))
    with pytest.raises(Sorry, match=message):
        run(arguments)
    after = [path for path in virtual_xia2.rglob("*") if path.name != "xia2.anacor.log"]
    assert sorted(after) == before


def test_images_without_xia2(virtual_xia2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(virtual_xia2))
    with pytest.raises(Sorry, match="there is no xia2 on PATH to integrate them"):
        run(["image=a_0001.cbf", "tomography=tomo.h5"])
    with pytest.raises(Sorry, match="The tomography absent.nxs does not exist"):
        run(["image=a_0001.cbf", "tomography=absent.nxs"])
    assert not Path("anacor").exists()


def test_images_go_through_xia2(virtual_xia2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that leaves what xia2.integrate would; it is not run a second time."""
    seen = []

    def process(crystals, settings, work, write_report) -> PipelineResult:
        seen.append((crystals, [step.why for step in work.finished]))
        return made_up_result(crystals, settings, work, write_report)

    monkeypatch.setattr(side_by_side, "process", process)
    program = virtual_xia2 / "xia2.sh"
    program.write_text(
        f'#!/bin/sh\n/bin/cp -r {virtual_xia2}/xia2/. . && echo "$@" > arguments.txt\n'
    )
    program.chmod(0o755)
    (virtual_xia2 / "bin").mkdir()
    program.rename(virtual_xia2 / "bin/xia2.integrate")
    (virtual_xia2 / "bin/xia2").write_text("#!/bin/sh\necho XIA2 3.9\n")
    (virtual_xia2 / "bin/xia2").chmod(0o755)
    monkeypatch.setenv("PATH", str(virtual_xia2 / "bin"))
    Path("a_0001.cbf").touch()
    command = ["image=a_0001.cbf:1:90", "tomography=tomo.h5", "xia2.options=project=P", "nproc=2"]
    run(command)
    run(command)
    first, second = seen
    sweep = first[0][0].sweeps[0]
    assert sweep.reflections == virtual_xia2 / "anacor/xia2/DataFiles/P_X1_NATIVE_SWEEP1.refl"
    assert (first[1], second[1]) == (["not done yet"], [None])
    assert Path("anacor/xia2/arguments.txt").read_text() == (
        f"pipeline=dials image={virtual_xia2}/a_0001.cbf:1:90 project=P nproc=2\n"
    )
    content = json.loads(Path("anacor/anacor.json").read_text())
    assert content["program"]["xia2"] == "3.9"
    assert ["xia2" in step["versions"] for step in content["steps"]] == [
        step["name"] == "xia2" for step in content["steps"]
    ]
    assert content["arguments"] == command  # as they were typed


def test_a_step_that_fails_names_its_log(virtual_xia2: Path) -> None:
    """The real dials.anacor_absorption on files that are none."""
    with pytest.raises(
        Sorry, match=r"dials.anacor_absorption ended .*; log: .*absorption.failed.log"
    ):
        run(["xia2", "tomography=tomo.h5", "absorption.options=labels.voxel_size_um=1"])
    left = {str(p.relative_to("anacor")) for p in Path("anacor").rglob("*") if p.is_file()}
    assert left == {"steps.json", "X1/absorption.failed.log"}


def test_no_input_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run([])
    assert stop.value.code == 1
    assert "xia2.anacor /data/xia2 tomography=scan.nxs" in capsys.readouterr().out
