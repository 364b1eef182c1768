"""The JSON files: what is written can be read, and what is of another version is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from anacor_dials.jobs import records
from anacor_dials.jobs.records import (
    ComparisonRecord,
    LikenessRecord,
    Record,
    SameObservationsRecord,
    StrategyRecord,
    TableRowRecord,
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
    ],
)


def test_a_comparison_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path / "a.json", COMPARISON)
    assert read_record(tmp_path / "a.json", ComparisonRecord) == COMPARISON
    assert COMPARISON.strategy_of == {"none": "none", "SH low": "sh_low"}
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["version"] == ComparisonRecord.VERSION
    assert content["same_observations"]["values"]["none"]["cc_half"] is None


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
    means = dict.fromkeys((f.name for f in records.fields(LikenessRecord)), 0.5)
    write_json(tmp_path / "a.json", LikenessRecord(**means | {"psnr_db": numbers}))
    assert read_record(tmp_path / "a.json", LikenessRecord).psnr_db == [0.9, None]


@pytest.mark.parametrize("kind", Record.__subclasses__())
def test_every_field_of_a_file_is_described(kind):
    for field in records.fields(kind):
        assert field.name in kind.__doc__.partition("Attributes")[2]
    assert kind.VERSION >= 1
