"""The table and the figures of a comparison of scaling strategies."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("dials")

from anacor_dials.diffraction.merging import ImageSeries, MergingStatistics
from anacor_dials.report.comparison import (
    RESOLUTION_FIGURES,
    ROWS,
    comparison_table,
    figures,
    format_table,
)
from anacor_dials.report.page import plain

# ---- the table ----


def statistics_of(label: str, **table_1) -> MergingStatistics:
    values = {
        "Completeness": (96.5, 99.0, 90.2),
        "Multiplicity": (21.3, 20.0, 9.4),
        "I/sigma": (26.6, 50.0, 7.9),
        "Rmerge(I)": (0.134, 0.1, 0.345),
        "Rmeas(I)": (0.137, 0.1, 0.364),
        "Rpim(I)": (0.027, 0.02, 0.113),
        "CC half": (0.996, 0.999, 0.943),
        "Anomalous correlation": (-0.159, 0.1, -0.521),
        "Anomalous slope": (1.096,),
        "Total observations": (308760, 10000, 6189),
        "Total unique": (14513, 1000, 656),
    }
    shells = {"d_max": np.array([129.26, 2.35]), "d_min": np.array([5.0, 2.31])}
    return MergingStatistics(label, 129.26, 2.31, {**values, **table_1}, shells, ())


def test_the_table_of_a_publication():
    """The thermolysin columns of the table that the program is to make, cell by cell."""
    text = format_table([statistics_of("Manual")])
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in text.splitlines()}
    assert lines["Resolution limit"] == "Resolution limit 129.26 - 2.31 (2.35 - 2.31)"
    assert lines["Completeness (%)"] == "Completeness (%) 96.5 (90.2)"
    assert lines["Multiplicity"] == "Multiplicity 21.3 (9.4)"
    assert lines["I/sigma"] == "I/sigma 26.6 (7.9)"
    assert lines["Rmeas"] == "Rmeas 0.137 (0.364)"
    assert lines["CC half"] == "CC half 0.996 (0.943)"
    assert lines["Anomalous correlation"] == "Anomalous correlation -0.159 (-0.521)"
    assert lines["Anomalous slope"] == "Anomalous slope 1.096"
    assert lines["Total reflections"] == "Total reflections 308760 (6189)"
    assert lines["Unique reflections"] == "Unique reflections 14513 (656)"
    assert len(comparison_table([statistics_of("Manual")])) == 12


def best_of(name: str, *statistics: MergingStatistics) -> tuple[bool, ...]:
    return {row.name: row.best for row in comparison_table(statistics)}[name]


def test_the_best_value_is_the_lowest_r_and_the_highest_of_all_else():
    low = {row.key: (0.1, 0.1, 0.1) for row in ROWS}
    high = {row.key: (0.2, 0.1, 0.1) for row in ROWS}
    low["Total observations"] = low["Total unique"] = (1, 1, 1)
    high["Total observations"] = high["Total unique"] = (2, 1, 1)
    a, b = statistics_of("low", **low), statistics_of("high", **high)
    for row in comparison_table([a, b])[1:]:
        assert row.best == ((True, False) if row.name.startswith("R") else (False, True)), row.name


def test_values_that_print_alike_are_equally_good():
    a, b, c = (
        statistics_of(str(value), **{"Rmeas(I)": (value, 0, 0)})
        for value in (0.13661, 0.1367, 0.14)
    )
    assert best_of("Rmeas", a, b, c) == (True, True, False)
    assert best_of("Rmeas", a, b) == (False, False)
    assert best_of("Resolution limit", a, b, c) == (False, False, False)


def test_undefined_values_are_never_best():
    undefined = statistics_of("a", **{"Anomalous slope": (None,), "CC half": (float("nan"),) * 3})
    negative = statistics_of("b", **{"Anomalous slope": (-0.2,), "CC half": (-0.1, 0, 0)})
    for name in ("Anomalous slope", "CC half"):
        assert best_of(name, undefined, negative) == (False, True)
    assert "nan" not in format_table([undefined, negative])


def test_a_failed_strategy_is_a_column_with_its_reason_below():
    text = format_table([statistics_of("none")], {"analytical": "no column"})
    lines = text.splitlines()
    assert lines[0].split() == ["none", "analytical"]
    assert all(line.split()[-1] == "failed" for line in lines[2:14])
    assert lines[-1] == "analytical failed: no column"


# ---- the figures ----


def series_of(label: str, scale: float) -> MergingStatistics:
    shells = {name: np.array([1.0, 2.0]) for name in RESOLUTION_FIGURES}
    shells |= {"d_max": np.array([50.0, 2.5]), "d_min": np.array([2.5, 2.0])}
    shells["cc_anomalous"] = np.array([0.1, np.nan])
    series = tuple(
        ImageSeries(
            name, np.array([5.0, 15.0]), np.array([scale, 1.0]), *[np.array([0.1, 0.2])] * 2
        )
        for name in ("sweep1", "sweep2")
    )
    return MergingStatistics(label, 50.0, 2.0, {"Rmeas(I)": (0.1, 0.1, None)}, shells, series)


def test_figures_have_one_line_per_data_set():
    made = plain(figures([series_of("none", 0.5), series_of("analytical", 0.8)]))
    for figure in made.values():
        assert [line["name"] for line in figure["data"]] == ["none", "analytical"]
        assert all(len(line["x"]) == len(line["y"]) for line in figure["data"])
    resolution = made["r_meas_against_resolution"]
    assert resolution["data"][0]["x"] == pytest.approx([(1 / 2500 + 0.16) / 2, (0.16 + 0.25) / 2])
    assert resolution["layout"]["xaxis"]["ticktext"][0] == "50.00"
    assert resolution["layout"]["xaxis"]["ticktext"][-1] == "2.00"
    assert made["cc_anomalous_against_resolution"]["data"][0]["y"] == [0.1, None]
    image = made["scale_against_image"]["data"][1]
    assert image["x"] == [5, 15, 20, 30]  # the second sweep begins where the first ends
    assert image["y"] == pytest.approx([0.8 / 0.9, 1 / 0.9, 0.8 / 0.9, 1 / 0.9])
    assert image["text"][2] == "sweep2: 5"
