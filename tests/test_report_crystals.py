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
    ContributionRecord,
    ContributionsRecord,
    CrystalRow,
    MaterialRecord,
    MergedQualityRecord,
    PipelineRecord,
    ResidualPatternRecord,
    SameObservationsRecord,
    StrategyRecord,
    WavelengthFactorsRecord,
    pipeline_schema,
    read_record,
)
from anacor_dials.report import contributions as of_contributions
from anacor_dials.report.crystals import alignment_in_words, rows_of, section, write_csv
from anacor_dials.report.page import html_of, plain, write_json
from anacor_dials.report.pipeline import record, sections, table_text
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
    contributions: ContributionsRecord | None = None,
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
        contributions=contributions,
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


# ---- what each contributes ------------------------------------------------------------------------


def quality(cc_half: float, r_meas: float, completeness: float) -> MergedQualityRecord:
    return MergedQualityRecord(9000, 1500, completeness, 6.0, r_meas, r_meas / 3, cc_half, None)


@pytest.fixture
def weighed() -> ContributionsRecord:
    """Of three crystals, the second of which spoils the data."""
    bad = ContributionRecord(
        "two", 3000, 0.25, ["cc_half"], quality(0.9985, 0.051, 0.971), 0.9912, -0.0073, 0.0004, None, None, None
    )  # fmt: skip
    others = (
        ContributionRecord(
            name, 3000, 0.01, [], quality(0.98, 0.097, 0.96), 0.9905, 0.0105, 0.0005, 0.5, 0.1, 0.02
        )
        for name in ("good", "one")
    )  # fmt: skip
    return ContributionsRecord(quality(0.991, 0.094, 0.998), [bad, *others])


@pytest.fixture
def together(
    result: PipelineResult, weighed: ContributionsRecord, tmp_path: Path
) -> PipelineResult:
    names = ("good", "one", "two")
    (of_all,) = (group("all", tmp_path, GOOD, contributions=weighed, crystals=names),)
    return replace(result, corrections=result.corrections[:3], groups=(of_all,))


SAID = (
    "two makes the merged data worse: without it CC1/2 would be 0.99850 in place of 0.99120, Rmeas 0.0510 "
    "in place of 0.0940, completeness 97.1 % in place of 99.8 %. It was not left out"
)


def test_a_crystal_that_makes_the_data_worse_is_said_and_comes_first(together: PipelineResult):
    rows = rows_of(together)
    row = {one.crystal: one for one in rows}
    assert rows[1].crystal == "two"  # after the one that failed
    assert row["two"].warnings[0].startswith(SAID)
    assert (row["two"].delta_cc_half, row["two"].delta_cc_half_error) == (-0.0073, 0.0004)
    assert (row["good"].state, row["good"].delta_cc_half) == ("good", 0.0105)
    (item, table) = of_contributions.section(together).items
    assert item.level == "warning"
    assert item.text.startswith(SAID)
    assert [one[0] for one in table.rows] == ["-", "two", "good", "one"]
    assert table.rows[1][1:6] == ("3000", "25.0 %", "0.99120", "0.99850", "-0.00730 ± 0.00040")
    assert table.rows[1][6:9] == ("-", "-", "-")
    assert table.rows[2][8:] == ("+0.10000 ± 0.02000", "0.0970", "0.0323", "96.0 %", "6.00")
    assert table.marked == {(1, 5)}
    assert "-0.00730 ± 0.00040*" in table_text(table)


def test_a_crystal_may_spoil_the_anomalous_differences_alone(weighed: ContributionsRecord):
    bad = replace(
        weighed.crystals[1],
        makes_worse=["cc_anomalous"],
        without=replace(weighed.crystals[1].without, cc_anomalous=0.96),
    )
    (said,) = of_contributions.sentences(replace(weighed, crystals=[bad]))
    assert "without it CC anomalous would be 0.96000 in place of 0.50000, Rmeas 0.0970" in said
    assert "CC1/2" not in said
    table = of_contributions.table(replace(weighed, crystals=[bad]), "all")
    assert table.marked == {(1, 8)}
    assert table.rows[1][8] == "+0.10000 ± 0.02000"


def test_the_page_says_what_crystals_contribute(
    together: PipelineResult, result: PipelineResult, tmp_path: Path
):
    work = SimpleNamespace(path=tmp_path, finished=[])
    titles = [one.title for one in sections(together, work)]
    assert titles[:2] == ["Crystals", "What each crystal contributes"]
    assert "What each crystal contributes" not in [one.title for one in sections(result, work)]


def test_contributions_that_are_not_known(result: PipelineResult, tmp_path: Path):
    """The reason is said, and the crystals have no difference."""
    none = ContributionsRecord(None, (), "fewer than two crystals have observations")
    one = group("all", tmp_path, GOOD, contributions=none, crystals=("good", "one"))
    unknown = replace(result, corrections=result.corrections[:2], groups=(one,), failed=())
    (said,) = of_contributions.section(unknown).items
    assert said.text == "all: not known, because fewer than two crystals have observations."
    assert of_contributions.columns_of(unknown) == {}
    assert all(row.delta_cc_half is None for row in rows_of(unknown))


def test_contributions_stand_in_the_csv(together: PipelineResult, tmp_path: Path):
    write_csv(tmp_path / "a.csv", rows_of(together), of_contributions.columns_of(together))
    with open(tmp_path / "a.csv", newline="") as file:
        read = {one["crystal"]: one for one in csv.DictReader(file)}
    two = read["two"]
    assert float(two["delta_cc_half"]) == -0.0073
    assert float(two["cc_half_with_crystal"]) == 0.9912
    assert float(two["cc_half_without_crystal"]) == 0.9985
    assert float(two["r_meas_with_crystal"]) == 0.094
    assert float(two["r_meas_without_crystal"]) == 0.051
    assert float(two["completeness_without_crystal"]) == 0.971
    assert float(two["rejected"]) == 0.25
    assert two["cc_anomalous_without_crystal"] == ""
    assert read["F"]["rejected"] == ""  # the crystal that failed has a row, too


def test_contributions_are_read_as_they_were_written(weighed: ContributionsRecord, tmp_path: Path):
    write_json(tmp_path / "a.json", weighed)
    assert read_record(tmp_path / "a.json", ContributionsRecord) == weighed


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


@pytest.fixture
def content_together(together: PipelineResult, tmp_path: Path) -> dict[str, Any]:
    """anacor.json of three crystals that were scaled together, and one that failed."""
    work = SimpleNamespace(
        path=tmp_path, versions={"anacor_dials": "1", "dials": "3"}, finished=[step("a", tmp_path)]
    )
    made = record(together, work, SimpleNamespace(margin=0.02), [], "")
    write_json(tmp_path / "anacor.json", made)
    return json.loads((tmp_path / "anacor.json").read_text())


def test_contributions_are_what_the_schema_says(validator: Any, content_together: dict[str, Any]):
    validator.validate(content_together)
    (of_wavelength,) = content_together["groups"][0]["wavelengths"]
    found = of_wavelength["contributions"]
    assert [one["crystal"] for one in found["crystals"]] == ["two", "good", "one"]
    defs = pipeline_schema()["$defs"]
    assert set(defs["wavelength"]["properties"]) == set(of_wavelength)
    assert set(defs["contribution"]["properties"]) == set(found["crystals"][0])
    assert set(defs["merged_quality"]["properties"]) == set(found["merged"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.pop("why_not"),
        lambda c: c["merged"].update(completeness=97.1),
        lambda c: c["crystals"][0].update(makes_worse=["r_meas"]),
        lambda c: c["crystals"][0].pop("delta_cc_half"),
        lambda c: c["crystals"][0]["without"].pop("r_pim"),
    ],
)
def test_the_schema_refuses_other_contributions(
    validator: Any, content_together: dict[str, Any], damage: Any
):
    damage(content_together["groups"][0]["wavelengths"][0]["contributions"])
    assert not validator.is_valid(content_together)


def test_records_of_earlier_versions_are_still_valid(validator: Any, content: dict[str, Any]):
    """Without the keys that came later, as version 1 promises."""
    del content["groups"][0]["wavelengths"][0]["contributions"]
    for row in content["overview"]:
        del row["delta_cc_half"], row["delta_cc_half_error"]
    validator.validate(content)


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
