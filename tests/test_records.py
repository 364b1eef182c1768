"""The JSON files: what is written can be read, and what is of another version is refused."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass

import numpy as np
import pytest

from anacor_dials.jobs import records
from anacor_dials.jobs.records import (
    AbsorptionRecord,
    AlignmentRecord,
    CoefficientsRecord,
    ComparisonRecord,
    LikenessRecord,
    MaterialRecord,
    Record,
    ResidualPatternRecord,
    SameObservationsRecord,
    SegmentationRecord,
    StrategyRecord,
    TableRowRecord,
    WavelengthFactorsRecord,
    read_record,
)
from anacor_dials.report.page import write_json

COMPARISON = ComparisonRecord(
    d_max=50.0,
    d_min=2.0,
    n_bins=20,
    columns=["none", "SH low"],
    table=[TableRowRecord("Rmeas", ["0.1 (0.2)", "0.09 (-)"], ["SH low"])],
    same_observations=SameObservationsRecord(7, {"none": {"r_meas": 0.1, "cc_half": None}}),
    strategies=[
        StrategyRecord("none", "none", "no", "dials.scale", None, True, by_resolution={"r": [0.1]}),
        StrategyRecord("SH low", "sh_low", "stiff", "dials.scale", "a.log", False, "no data"),
        StrategyRecord(
            "analytical",
            "analytical",
            "alone",
            "dials.scale",
            None,
            True,
            residual_pattern=ResidualPatternRecord(
                9000, 0.1, 0.2, 0.3, 0.02, "polarisation", 0.9, 90.0, 0.999
            ),
        ),
    ],  # fmt: skip
)


def test_a_comparison_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path / "a.json", COMPARISON)
    assert read_record(tmp_path / "a.json", ComparisonRecord) == COMPARISON
    assert COMPARISON.strategy_of["SH low"] == "sh_low"
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["version"] == ComparisonRecord.VERSION
    assert content["same_observations"]["values"]["none"]["cc_half"] is None
    # of a program that knew no patterns
    for one in content["strategies"]:
        del one["residual_pattern"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    earlier = read_record(tmp_path / "a.json", ComparisonRecord)
    assert [one.residual_pattern for one in earlier.strategies] == [None] * 3


def of_zeros(kind, **values):
    """A record of a kind with 0 in all its fields but the given ones."""
    return kind(**dict.fromkeys((f.name for f in fields(kind)), 0) | values)


def test_a_correction_is_read_as_it_was_written(tmp_path):
    crystal = MaterialRecord(3, "crystal", 0.02, 20.0, "given", 1e5, 30.0)
    moved = {"angle_offset_deg": 3.0, "rotation_sense": 1, "mu_scale": 1.0}
    correction = of_zeros(
        AbsorptionRecord,
        wavelengths=[of_zeros(WavelengthFactorsRecord, materials=[crystal])],
        coefficients_from_projections=of_zeros(CoefficientsRecord, energy_keV=3.5),
        alignment=of_zeros(AlignmentRecord, from_=moved, to=moved),
    )
    write_json(tmp_path / "a.json", correction)
    assert read_record(tmp_path / "a.json", AbsorptionRecord) == correction
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["version"] == AbsorptionRecord.VERSION
    assert content["wavelengths"][0]["materials"][0]["from"] == "given"
    assert content["alignment"]["from"] == moved
    # without them
    for key in ("coefficients_from_projections", "alignment"):
        content[key] = None
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_record(tmp_path / "a.json", AbsorptionRecord).alignment is None


def test_a_segmentation_is_read_as_it_was_written(tmp_path):
    materials = {"crystal": {"label": 3, "voxels": 7, "volume_um3": 7.0, "mu_per_um": 0.02}}
    segmentation = SegmentationRecord(materials, bin_factors=[1, 1, 2], warnings=["small"])
    write_json(tmp_path / "a.json", segmentation)
    assert read_record(tmp_path / "a.json", SegmentationRecord) == segmentation
    # keys of a later program are no obstacle
    later = json.loads((tmp_path / "a.json").read_text()) | {"later": 1}
    (tmp_path / "a.json").write_text(json.dumps(later))
    assert read_record(tmp_path / "a.json", SegmentationRecord) == segmentation


def test_what_is_of_another_version_or_no_json_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(COMPARISON.content() | {"version": 1}, default=vars))
    with pytest.raises(ValueError, match="is of version 1 and this program reads version 2"):
        read_record(path, ComparisonRecord)
    path.write_text('{"version": 2')
    with pytest.raises(ValueError, match="cannot be read"):
        read_record(path, ComparisonRecord)
    path.write_text('{"version": 2, "d_max": 1}')
    with pytest.raises(ValueError, match="cannot be read"):
        read_record(path, ComparisonRecord)


def test_numbers_without_a_value_are_null(tmp_path):
    numbers = np.array([0.9, np.inf])
    means = dict.fromkeys((f.name for f in fields(LikenessRecord)), 0.5)
    write_json(tmp_path / "a.json", LikenessRecord(**means | {"psnr_db": numbers}))
    assert read_record(tmp_path / "a.json", LikenessRecord).psnr_db == [0.9, None]


@pytest.mark.parametrize("kind", Record.__subclasses__())
def test_every_file_has_a_version(kind):
    assert kind.VERSION >= 1


@pytest.mark.parametrize("name", [n for n in records.__all__ if is_dataclass(getattr(records, n))])
def test_every_field_of_a_file_is_described(name):
    kind = getattr(records, name)
    for field in fields(kind):
        assert field.name in kind.__doc__.partition("Attributes")[2]
