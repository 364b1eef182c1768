"""dials.anacor_simulate from the command line, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("dials", reason="the command needs DIALS")
pytest.importorskip("torch", reason="virtual scans need torch")

from dials.util import Sorry

from anacor_dials.command_line.anacor_simulate import run
from anacor_dials.sample.tomogram_files import read_sample_file

SMALL = [
    "image_size=64,64", "scan.pixel_size=2", "n_projections=12", "crystal_size=20,35",
    "stem_length=30", "n_flats=4", "n_darks=4", "energy=4", "distance=2",
]  # fmt: skip


def simulate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "anacor_dials.command_line.anacor_simulate", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_scan_its_truth_and_diffraction_data(tmp_path) -> None:
    from dials.array_family import flex

    result = simulate(
        tmp_path,
        *SMALL,
        "diffraction.simulate=True",
        "d_min=6",
        "sweep=0,60,0.2,0,0",
        "n_points=64",
    )
    assert result.returncode == 0, result.stderr
    names = {path.name for path in tmp_path.iterdir()}
    stem = "virtual_0001"
    expected = {f"{stem}.nxs", f"{stem}_truth.h5", f"{stem}.expt", f"{stem}.refl", f"{stem}.pdb"}
    assert names == {*expected, "anacor_simulate.log"}
    truth = read_sample_file(tmp_path / f"{stem}_truth.h5")
    assert truth.projections == (tmp_path / f"{stem}.nxs").resolve()
    table = flex.reflection_table.from_file(str(tmp_path / f"{stem}.refl"))
    assert "true.transmission" in table

    again = simulate(tmp_path, *SMALL, "diffraction.simulate=True", "d_min=6")
    assert "is there already" in again.stdout


@pytest.mark.slow
def test_comparison_with_a_scan_made_otherwise(tmp_path) -> None:
    """A "real" scan of other noise and blur: alike, and not the same; without it nothing is alike."""
    assert (
        simulate(tmp_path, *SMALL, "photons=12000", "gain=1", "output.prefix=real").returncode == 0
    )
    real = ("compare=real_0001.nxs", "compare_labels=real_0001_truth.h5")
    arguments = (*real, "psf=1.5", "seed=5", "gain=1", "photons=12000", "output.prefix=like")
    result = simulate(tmp_path, *arguments, "compare_projections=6")
    assert result.returncode == 0, result.stderr
    numbers = json.loads((tmp_path / "anacor_simulate.json").read_text())
    assert len(numbers["ssim"]) == 6
    assert numbers["ssim_mean"] > 0.7
    assert numbers["psnr_db_mean"] > 20
    html = (tmp_path / "anacor_simulate.html").read_text()
    assert "Projections side by side" in html
    assert "Slices side by side" in html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distance=-3"], "The distance from sample to detector is -3.0 mm"),
        (["distance=90000", "scan.pixel_size=0.5"], "need a grid of"),
        (["energy=0"], "photon energy is 0.0 keV"),
        (["sample.maker=blender", "sample.blender=/nowhere/blender"], "there is no program"),
        (["sample.maker=stl", "stl.crystal=absent.stl"], "There is no file absent.stl"),
        (["crystal_size=300,310"], "could be used; the last:"),
        (["flats=absent.nxs"], "There is no file absent.nxs"),
        (["compare=absent.nxs"], "compare_labels=tomo.h5"),
        (["output.prefix=nowhere/scan"], "does not exist; create it first"),
        (["something.else"], "Parameters are given as name=value"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((Sorry, SystemExit)) as stopped:
        run([*SMALL, *arguments])
    assert message in str(stopped.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"anacor_simulate.log"}
