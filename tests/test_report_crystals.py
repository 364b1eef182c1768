"""The table of all crystals: what stands in it, and in which order; its CSV, pictures and schema."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

from PIL import Image

from anacor_dials.diffraction.scaling import STRATEGIES
from anacor_dials.diffraction.selection import Selection
from anacor_dials.jobs.pipeline.inputs import Crystal, SweepFiles
from anacor_dials.jobs.pipeline.results import FailedCrystal, PipelineResult
from anacor_dials.jobs.records import (
    AbsorptionRecord,
    AlignmentRecord,
    ComparisonRecord,
    CrystalRow,
    MaterialRecord,
    PipelineRecord,
    ResidualPatternRecord,
    SameObservationsRecord,
    StrategyRecord,
    WavelengthFactorsRecord,
    pipeline_schema,
)
from anacor_dials.report.crystals import alignment_in_words, rows_of, section, write_csv
from anacor_dials.report.page import html_of, plain, write_json
from anacor_dials.report.pipeline import record
from anacor_dials.report.thumbnails import outlined, thumbnails
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.sample.volumes import LabelVolume, Tomogram

SHA = "0" * 64


def absorption(uncertainty: float | None = None, warnings: tuple[str, ...] = ()) -> Any:
    materials = [
        MaterialRecord(1, "liquor", 0.03, 30.0, "given", 2e5, 10.0),
        MaterialRecord(3, "crystal", 0.02, 20.0, "given", 1e5, 30.0),
    ]
    absent: dict[str, Any] = dict.fromkeys(f.name for f in fields(WavelengthFactorsRecord))
    of_wavelength = WavelengthFactorsRecord(
        **absent | {"wavelength_angstrom": 3.0, "energy_keV": 4.13, "materials": materials}
    )
    nothing: dict[str, Any] = dict.fromkeys(f.name for f in fields(AbsorptionRecord))
    return AbsorptionRecord(
        **nothing
        | {
            "transmission": {"min": 0.1, "max": 0.6, "mean": 0.3},
            "wavelengths": [of_wavelength],
            "warnings": warnings,
            "factors_uncertainty_from_labels": uncertainty,
        }
    )


def step(name: str, folder: Path) -> Any:
    versions = {"dials": "3", "xia2": "3.9"}
    return SimpleNamespace(
        name=name,
        folder=folder / name,
        path=lambda file: folder / name / file,
        command_line=f"run {name}",
        outputs={"out": SHA},
        inputs={"/in": SHA},
        seconds=1.0,
        finished="2026-01-01T00:00:00+00:00",
        versions=versions,
        why=None,
        as_dict=lambda: {
            "command": ["run", name],
            "free": [],
            "versions": versions,
            "inputs": {"/in": SHA},
            "outputs": {"out": SHA},
            "seconds": 1.0,
            "finished": "2026-01-01T00:00:00+00:00",
        },
    )


def crystal(name: str, folder: Path, summary: Any) -> Any:
    sweep = SweepFiles(name, "NATIVE", "SWEEP1", folder / "a.expt", folder / "a.refl")
    return SimpleNamespace(
        crystal=Crystal(name, (sweep,), folder / "tomo.h5"),
        segmentation=None,
        labels=folder / "tomo.h5",
        absorption=step(f"{name}/absorption", folder),
        summary=summary,
    )


def group(
    name: str,
    folder: Path,
    r_meas: dict[str, float],
    taken: str = "analytical",
    pattern: ResidualPatternRecord | None = None,
    **more: Any,
) -> Any:
    labels = {one: STRATEGIES[one].label for one in r_meas}
    comparison = ComparisonRecord(
        50.0,
        2.0,
        20,
        list(labels.values()),
        [],
        SameObservationsRecord(9, {labels[one]: {"r_meas": r_meas[one]} for one in r_meas}),
        [
            StrategyRecord(
                labels[one], one, "", "", None, True,
                table_1={"R": [0.1, 0.1, None]},
                residual_pattern=pattern if one == "analytical" else None,
            )
            for one in r_meas
        ],
    )  # fmt: skip
    of_wavelength = SimpleNamespace(
        name="NATIVE",
        wavelength=3.0,
        record=comparison,
        comparison=step(f"{name}/compare", folder),
        files={"merged MTZ": folder / "merged.mtz"},
    )
    made = {
        "name": name,
        "crystals": (name,),
        "symmetry": None,
        "absences": None,
        "scaled": {},
        "warning": None,
        "failed": {},
        "space_group": "P 41 21 2",
        "unit_cell": (58.0, 58.0, 150.0, 90.0, 90.0, 90.0),
        "selection": Selection(STRATEGIES[taken], "r_meas", r_meas, "best Rmeas(I)"),
        "experiments": folder / "scaled.expt",
        "reflections": folder / "scaled.refl",
        "wavelengths": (of_wavelength,),
        "free_set": "Free set: that of /data/free.mtz.",
    }
    return SimpleNamespace(**made | more)


GOOD = {"none": 0.11, "analytical": 0.04}


@pytest.fixture
def result(tmp_path: Path) -> PipelineResult:
    """Six crystals, from good to failed, in no order."""
    failed = crystal("F", tmp_path, None).crystal
    (tmp_path / "F.failed.log").touch()
    return PipelineResult(
        corrections=(
            crystal("good", tmp_path, absorption(0.012)),
            crystal("one", tmp_path, absorption(0.01, ("the beam is small",))),
            crystal("two", tmp_path, absorption(0.05, ("the beam is small",))),
            crystal("worse", tmp_path, absorption(0.02)),
            crystal("sh", tmp_path, absorption()),
        ),
        groups=(
            group("good", tmp_path, GOOD),
            group("one", tmp_path, GOOD),
            group("two", tmp_path, GOOD),
            group("worse", tmp_path, {"none": 0.04, "analytical": 0.05}, "none", warning="No help"),
            group("sh", tmp_path, GOOD | {"sh_high": 0.03}, "sh_high"),
        ),
        failed=(FailedCrystal(failed, "no memory", tmp_path / "F.failed.log"),),
    )


def test_what_needs_a_look_comes_first(result: PipelineResult):
    rows = rows_of(result)
    assert [row.crystal for row in rows] == ["F", "two", "worse", "one", "sh", "good"]
    assert [row.state for row in rows] == ["failed", *["look"] * 4, "good"]
    row = {one.crystal: one for one in rows}
    assert row["F"].warnings == ("no memory",)
    assert row["two"].warnings[0].startswith("The labels leave an uncertainty of 5.0 %")
    assert row["worse"].warnings == ("No help",)
    assert row["sh"].warnings == ("SH high is better than the factors alone, and was taken",)
    good = row["good"]
    assert (good.r_meas_without, good.r_meas_with_factors, good.r_meas_taken) == (0.11, 0.04, 0.04)
    assert row["sh"].r_meas_taken == 0.03
    assert good.mu_per_mm == {"liquor": 30.0, "crystal": 20.0}
    assert (good.crystal_volume_um3, good.factors_uncertainty) == (1e5, 0.012)


def test_a_pattern_of_polarisation_needs_a_look(result: PipelineResult, tmp_path: Path):
    """Of a wavelength whose factors leave one; patterns of absorption are not spoken of."""
    wrong = ResidualPatternRecord(9000, 0.2, 0.6, 0.7, 0.1, "polarisation", 0.99, 90.0, 0.999)
    none = replace(wrong, polarisation=0.1, cause="")
    groups = (group("good", tmp_path, GOOD, pattern=wrong), *result.groups[1:])
    row = {r.crystal: r for r in rows_of(replace(result, groups=groups))}["good"]
    assert row.state == "look"
    assert "turned by 90 degrees" in row.warnings[0]
    assert "geometry.beam.polarization_normal" in row.warnings[0]
    quiet = (group("good", tmp_path, GOOD, pattern=none), *result.groups[1:])
    row = {r.crystal: r for r in rows_of(replace(result, groups=quiet))}["good"]
    assert row.state == "good"


def test_the_same_numbers_stand_in_the_csv(result: PipelineResult, tmp_path: Path):
    rows = rows_of(result)
    write_csv(tmp_path / "a.csv", rows)
    with open(tmp_path / "a.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [one["crystal"] for one in read] == [row.crystal for row in rows]
    assert set(read[0]) == {f.name for f in fields(CrystalRow)}
    assert float(read[-1]["r_meas_without"]) == 0.11
    assert read[-1]["mu_per_mm"] == "liquor 30; crystal 20"
    assert read[0]["r_meas_without"] == ""


def test_the_page_has_links_and_pictures(result: PipelineResult, tmp_path: Path):
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[10:30, 10:30, 10:30] = 3
    tomogram = Tomogram(np.where(labels == 3, 0.02, 0.0).astype(np.float32), 1.0)
    write_sample_file(tmp_path / "tomo.h5", tomogram, LabelVolume(labels, 1.0))
    (tmp_path / "good/absorption").mkdir(parents=True)
    (tmp_path / "good/absorption/anacor_absorption.html").touch()
    html = html_of("All", [section(result, rows_of(result), tmp_path)])
    assert "6 rows: 1 failed, 4 to look at, 1 good." in html
    linked = re.findall(r'href="([^#"][^"]*)"', html)
    assert linked == ["F.failed.log", "good/absorption/anacor_absorption.html"]
    assert html.count('<img src="data:image/png;base64,') == 10  # two of each that did not fail


def alignment(moved: bool, reason: str | None) -> AlignmentRecord:
    absent: dict[str, Any] = dict.fromkeys(f.name for f in fields(AlignmentRecord))
    return AlignmentRecord(
        **absent
        | {
            "moved": moved,
            "reason_not_moved": reason,
            "to": {"angle_offset_deg": 31.04},
            "best": {"angle_offset_error_deg": 0.21},
        }
    )


def test_alignment_in_words():
    assert alignment_in_words(None) == "as given"
    assert alignment_in_words(alignment(True, None)) == "moved to 31.0 ± 0.2 deg"
    assert alignment_in_words(alignment(False, "no better")) == "left at 31.0 deg (no better)"


# ---- pictures -------------------------------------------------------------------------------------


def test_an_outline_is_where_labels_meet():
    """A square of crystal: its border has the crystal's colour, its inside the tomogram's grey."""
    labels = np.zeros((30, 20), np.uint8)
    labels[5:15, 5:15] = 3
    grey = np.where(labels == 3, 1.0, 0.0).astype(np.float32)
    picture = outlined(labels, grey)
    assert picture.shape == (30, 20, 3)
    coloured = picture.min(axis=2) != picture.max(axis=2)
    border = np.zeros_like(coloured)
    border[5:15, 5:15] = True
    border[6:14, 6:14] = False
    assert np.array_equal(coloured, border)
    assert (picture[8, 8] == 255).all()
    assert (picture[0, 0] == 0).all()
    # without a tomogram areas are coloured
    assert (outlined(labels, None)[8, 8] == picture[5, 5]).all()


def test_thumbnails_show_the_middle_of_the_crystal(tmp_path: Path):
    """The crystal lies off the middle of the volume; a large volume gives a small picture."""
    labels = np.zeros((300, 40, 40), np.uint8)
    labels[200:250, 5:12, 20:30] = 3
    write_sample_file(tmp_path / "tomo.h5", labels=LabelVolume(labels, 1.0))
    html = str(thumbnails(tmp_path / "tomo.h5"))
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r"base64,([^\"]+)", html)
    ]
    assert [picture.shape for picture in pictures] == [(40, 40, 3), (100, 14, 3)]
    crystal_colour = (0xC0, 0x50, 0x4D)
    assert (pictures[0] == crystal_colour).all(axis=2).sum() == 7 * 10
    assert str(thumbnails(tmp_path / "absent.h5")) == ""
    (tmp_path / "faces.txt").write_text("1 0 0 10")
    assert str(thumbnails(tmp_path / "faces.txt")) == ""


# ---- the schema -----------------------------------------------------------------------------------


@pytest.fixture
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = pipeline_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def content(result: PipelineResult, tmp_path: Path) -> dict[str, Any]:
    """anacor.json of the six crystals."""
    work = SimpleNamespace(
        path=tmp_path,
        versions={"anacor_dials": "1", "dials": "3"},
        finished=[step("good/absorption", tmp_path)],
    )
    made = record(result, work, SimpleNamespace(margin=0.02), ["a=1"], "a = 1")
    write_json(tmp_path / "anacor.json", made)
    return json.loads((tmp_path / "anacor.json").read_text())


def test_the_record_is_what_the_schema_says(validator: Any, content: dict[str, Any]):
    validator.validate(content)
    assert content["version"] == PipelineRecord.VERSION


def test_the_schema_knows_every_key(content: dict[str, Any]):
    """A key that is added to the record is added to the schema."""
    schema = pipeline_schema()
    assert set(schema["properties"]) == set(content)
    assert set(schema["properties"]["program"]["properties"]) == set(content["program"])
    assert set(schema["$defs"]["row"]["properties"]) == {f.name for f in fields(CrystalRow)}
    for name, key in (("crystal", "crystals"), ("group", "groups")):
        assert set(schema["$defs"][name]["properties"]) == set(content[key][0])


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.pop("overview"),
        lambda c: c.update(version=2),
        lambda c: c["overview"][0].update(state="perhaps"),
        lambda c: c["groups"][0].pop("space_group"),
        lambda c: c["groups"][0]["unit_cell"].pop(),
        lambda c: c["steps"][0]["outputs"].update(out="no hash"),
        lambda c: c["groups"][0]["wavelengths"][0].update(wavelength_angstrom="3 A"),
    ],
)
def test_the_schema_refuses_another_record(validator: Any, content: dict[str, Any], damage: Any):
    damage(content)
    assert not validator.is_valid(content)


def test_numbers_without_a_value_are_null(result: PipelineResult, validator: Any):
    row = replace(rows_of(result)[-1], factors_uncertainty=float("nan"))
    assert plain(row)["factors_uncertainty"] is None
