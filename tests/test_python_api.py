"""The package as a library: what it exports, the examples of the manual, the notebooks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

import anacor_dials

CHECKOUT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((CHECKOUT / "examples" / "notebooks").glob("*.ipynb"))
WITH_DIALS = ("diffraction.", "jobs.correct", "jobs.compare")


def in_a_new_process(code: str) -> str:
    """What a program prints that runs in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT
    )
    return done.stdout


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys, anacor_dials; print([m for m in sys.modules if m.startswith('anacor_dials.')])"
    )
    assert in_a_new_process(code).strip() == "[]"
    heavy = "import sys, anacor_dials; print({'numpy', 'torch', 'dials', 'numba', 'h5py'} & {*sys.modules})"
    assert in_a_new_process(heavy).strip() == "set()"


def test_factors_need_neither_torch_nor_dials():
    code = (
        "import sys, anacor_dials as ad; ad.absorption_factors, ad.Directions, ad.reconstruct, ad.segment;"
        "print({'torch', 'dials', 'dxtbx'} & {*sys.modules})"
    )
    assert in_a_new_process(code).strip() == "set()"


@pytest.mark.parametrize("name", [n for n in anacor_dials.__all__ if n != "__version__"])
def test_every_name_is_there_and_says_what_it_is(name: str):
    if anacor_dials._MODULE_OF[name].startswith(WITH_DIALS):
        pytest.importorskip("dials", reason="dials is not installed")
    exported = getattr(anacor_dials, name)
    assert exported.__name__ == name
    assert exported.__doc__
    assert name in dir(anacor_dials)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'absorb'"):
        _ = anacor_dials.absorb


# ---- the page of the manual -----------------------------------------------------------------------


def python_examples() -> dict[str, str]:
    """The Python listings of the page, by their heading."""
    text = (CHECKOUT / "docs" / "python-api.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)$", text, flags=re.M)
    headings = ["", *parts[1::2]]
    bodies = parts[::2]
    found = {
        heading: "\n".join(re.findall(r"^```python\n(.*?)^```", body, re.M | re.S))
        for heading, body in zip(headings, bodies, strict=True)
    }
    return {heading: code for heading, code in found.items() if code}


def run_example(heading: str) -> dict[str, Any]:
    """The names that an example leaves."""
    names: dict[str, Any] = {}
    exec(python_examples()[""] + python_examples()[heading], names)
    return names


def test_the_page_has_these_examples():
    assert list(python_examples()) == [
        "", "Factors for directions", "Factors for reflection tables", "From a scan to labels",
    ]  # fmt: skip


def test_factors_for_directions():
    """Straight through the ball the path is its chord, whatever the place of the diffraction."""
    names = run_example("Factors for directions")
    a = names["factors"].transmission
    assert a.shape == (500,)
    ad, to_source = anacor_dials, names["to_source"]
    straight = ad.Directions.of_one_sweep(to_source, -to_source)
    factors = ad.absorption_factors(names["labels"], [0, 0, 0, 0.02], straight)
    radius = (np.count_nonzero(names["ball"]) * 3 / (4 * np.pi)) ** (1 / 3)
    expected = (
        quad(
            lambda r: 3 * r * np.sqrt(radius**2 - r**2) * np.exp(-0.04 * np.sqrt(radius**2 - r**2)),
            0,
            radius,
        )[0]
        / radius**3
    )
    np.testing.assert_allclose(factors.transmission, expected, rtol=0.005)
    assert names["mu"][3] == pytest.approx(0.02, rel=0.5)


def test_factors_for_reflection_tables(tmp_path, monkeypatch, sample_labels):
    """The column is there, and every reflection has a factor that a ray could have."""
    flex = pytest.importorskip("dials.array_family.flex", reason="dials is not installed")
    from dxtbx import flumpy
    from dxtbx.model import BeamFactory, Experiment, ExperimentList, GoniometerFactory, ScanFactory

    monkeypatch.chdir(tmp_path)
    labels = anacor_dials.LabelVolume(
        np.where(sample_labels.values == 2, 1, sample_labels.values),
        sample_labels.voxel_size_um,
        sample_labels.centre,
    )
    anacor_dials.write_sample_file("tomo.h5", labels=labels)
    experiments = ExperimentList(
        [
            Experiment(
                beam=BeamFactory.simple(3.5),
                goniometer=GoniometerFactory.known_axis((1.0, 0.0, 0.0)),
                scan=ScanFactory.make_scan((1, 90), 0.1, (0, 1.0), dict.fromkeys(range(1, 91), 0)),
                identifier="one",
            )
        ]
    )
    experiments.as_file("models.expt")
    rng, n = np.random.default_rng(5), 50
    table = flex.reflection_table()
    table["id"] = flex.int(n, 0)
    table["miller_index"] = flex.miller_index([(1, 2, i + 1) for i in range(n)])
    s1 = rng.normal(size=(n, 3))
    table["s1"] = flumpy.vec_from_numpy(s1 / np.linalg.norm(s1, axis=1, keepdims=True) / 3.5)
    xyz = np.column_stack([np.zeros((n, 2)), np.radians(rng.uniform(0, 90, n))])
    table["xyzcal.mm"] = flumpy.vec_from_numpy(xyz)
    table.experiment_identifiers()[0] = "one"
    table.as_file("observations.refl")
    names = run_example("Factors for reflection tables")
    written = flex.reflection_table.from_file("corrected.refl")
    a = written["analytical_correction"].as_numpy_array()
    np.testing.assert_array_equal(a, names["correction"].transmissions)
    # no path is longer than twice the diagonal of the volume
    assert np.exp(-0.02 * 2 * np.linalg.norm(labels.size_um)) < a.min() <= a.max() < 1
    assert "Deviation from exact tracing" in Path("correction.html").read_text()


def test_from_a_scan_to_labels(tmp_path, monkeypatch, ellipsoid_scan, network_by_value):
    """As by dials.anacor_segment, with a stand-in for the network."""
    monkeypatch.chdir(tmp_path)
    ellipsoid = type(ellipsoid_scan.ellipsoids[0])
    drop = ellipsoid((0.0, 1.0, -2.0), (18.0, 21.0, 20.0), 0.014)
    crystal = ellipsoid((1.0, 2.0, 0.0), (9.0, 11.0, 10.0), 0.007)  # more than the drop
    ellipsoid_scan.at(
        ellipsoids=(drop, crystal), angles_deg=tuple(np.arange(90) * 2.0)
    ).write_nxtomo(tmp_path / "scan.nxs")
    names = run_example("From a scan to labels")
    found = anacor_dials.read_sample_file("tomo.h5")
    np.testing.assert_array_equal(found.labels.values, names["segmented"].labels.values)
    volume = found.labels.counts()[3] * found.labels.voxel_volume_um3
    assert volume == pytest.approx(4 / 3 * np.pi * 9 * 11 * 10, rel=0.1)
    assert found.mu_per_um[1] == pytest.approx(0.014, rel=0.05)
    assert found.mu_per_um[3] == pytest.approx(0.021, rel=0.05)
    assert found.projections == tmp_path / "scan.nxs"
    assert "seen along X" in Path("segmentation.html").read_text()


# ---- reports ----------------------------------------------------------------------------------------


def test_a_page_is_shown_in_a_notebook(sample_labels):
    page = anacor_dials.page(sample_labels)
    shown = page._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert "Slice at right angles to X" in shown
    assert '"' not in shown.partition('srcdoc="')[2].partition('"')[0]


def test_what_there_is_no_report_of():
    with pytest.raises(TypeError, match=r"no report of a dict; there is one of LabelVolume, "):
        anacor_dials.page({})


# ---- notebooks --------------------------------------------------------------------------------------


def run_notebook(path: Path) -> dict[str, Any]:
    """The names that the cells leave, run one after another; the last value of a cell is shown."""
    names: dict[str, Any] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"])
            exec(code, names)
            last = code.splitlines()[-1]
            if last.startswith("ad.page("):
                assert "</iframe>" in eval(last, names)._repr_html_()
    return names


def test_there_are_two_notebooks():
    assert [path.name for path in NOTEBOOKS] == ["factors.ipynb", "scan_to_labels.ipynb"]


@pytest.mark.slow
def test_notebook_of_factors():
    """The plate lies across Z: along it, at 90 and 270 degrees, the beam is absorbed most."""
    names = run_notebook(CHECKOUT / "examples" / "notebooks" / "factors.ipynb")
    angle, a = names["angle"] % 180, names["factors"].transmission
    assert names["factors"].accuracy.reached
    along, across = a[abs(angle - 90) < 15].mean(), a[abs(angle - 90) > 75].mean()
    assert along < 0.95 * across


@pytest.mark.slow
def test_notebook_from_a_scan_to_labels():
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    names = run_notebook(CHECKOUT / "examples" / "notebooks" / "scan_to_labels.ipynb")
    scores = {score.name: score.dice for score in names["segmented"].evaluation.classes}
    assert scores["crystal"] > 0.8
    assert (names["folder"] / "tomo.h5").is_file()


# ---- the listing on virtual samples ---------------------------------------------------------------


@pytest.mark.slow
def test_listing_of_virtual_samples(tmp_path, monkeypatch):
    """docs/simulation.md with a few small projections: labels, scan and data belong together."""
    flex = pytest.importorskip("dials.array_family.flex", reason="dials is not installed")
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.chdir(tmp_path)
    text = (CHECKOUT / "docs" / "simulation.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    usual = "pixel_size_um=0.8)"
    small = "pixel_size_um=6.0, image_shape=(112, 112), n_projections=4)"
    assert code.count(usual) == 1
    names: dict[str, Any] = {}
    exec(code.replace(usual, small), names)
    labels = anacor_dials.read_sample_file("tomo.h5").labels
    truth = anacor_dials.read_sample_file("truth.h5").labels
    volumes = [v.counts()[3] * v.voxel_volume_um3 for v in (labels, truth)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.05)
    table = flex.reflection_table.from_file("observations.refl")
    assert len(table) == len(names["reflections"]) > 1000
