"""dials.anacor_reconstruct from its command line."""

from __future__ import annotations

import json
import re

import h5py
import numpy as np
import pytest

from anacor_dials.sample.tomogram_files import read_sample_file

pytest.importorskip("dials.util.options")

from dials.util import Sorry

from anacor_dials.command_line import anacor_reconstruct


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_scan(ellipsoid_scan):
    return ellipsoid_scan.at(shape=(30, 64), axis_pixel=33.0, counts=20000.0)


def test_a_scan_becomes_a_tomogram_and_a_report(folder, small_scan):
    small_scan.write_nxtomo(folder / "scan.nxs")
    anacor_reconstruct.run(["scan.nxs", "beam_centre=15", "crop=off"])
    contents = read_sample_file("tomo.h5")
    assert contents.tomogram.shape == (30, 64, 64)
    np.testing.assert_allclose(contents.tomogram.voxel_size_um, 1.0)
    np.testing.assert_allclose(contents.tomogram.centre, [15.0, 31.5, 31.5])
    assert contents.projections == folder / "scan.nxs"
    assert contents.scan_centre == pytest.approx((33.0, 15.0), abs=0.3)
    ball = small_scan.ellipsoids[2]
    index = np.rint(contents.tomogram.index(ball.centre)).astype(int)
    core = contents.tomogram.values[tuple(slice(i - 2, i + 3) for i in index)]
    assert core.mean() == pytest.approx(ball.mu, rel=0.03)
    with h5py.File("tomo.h5") as file:
        assert "beam_centre = 15" in file["entry/parameters"][()].decode()
    numbers = json.loads((folder / "anacor_reconstruct.json").read_text())
    assert numbers["centre_of_rotation_pixel"] == pytest.approx(33.0, abs=0.3)
    assert numbers["shape"] == [30, 64, 64]
    assert sum(numbers["histogram"]["counts"]) == 30 * 64 * 64
    html = (folder / "anacor_reconstruct.html").read_text()
    for title in (
        "Sinogram before",
        "Sinogram after",
        "rotation axis",
        "mu of all voxels",
        "crystal",
    ):
        assert title in html
    log = (folder / "anacor_reconstruct.log").read_text()
    assert "beam_centre = 15" in log
    assert "Rotation axis at pixel" in log
    assert "DIALS" in log


def test_a_horizontal_axis_and_all_that_the_file_does_not_say(folder, small_scan):
    scan = small_scan.at(fast_axis=(1, 0, 0), slow_axis=(0, 1, 0), shape=(64, 30))
    nothing = {f"instrument/detector/{axis}_pixel_size": None for axis in "xy"}
    scan.write_nxtomo(folder / "scan.nxs", **nothing, **{"instrument/beam/incident_energy": None})
    anacor_reconstruct.run(
        ["scan.nxs", "pixel_size=0.3", "energy=4", "fast_axis=1,0,0", "slow_axis=0,1,0", "centre=33",
         "crop=0,30,5,60,2,62", "rings=off", "zingers=False", "filter=hann", "backend=numba",
         "output.tomogram=other.h5", "output.html=None", "output.json=None"]
    )  # fmt: skip
    tomogram = read_sample_file("other.h5").tomogram
    assert tomogram.shape == (30, 55, 60)
    np.testing.assert_allclose(tomogram.voxel_size_um, 0.3)
    names = {path.name for path in folder.iterdir()}
    assert names == {"scan.nxs", "other.h5", "anacor_reconstruct.log"}
    ball = scan.ellipsoids[2]  # its place in voxels is the same
    index = np.rint(np.array(ball.centre) + tomogram.centre).astype(int)
    core = tomogram.values[tuple(slice(i - 1, i + 2) for i in index)]
    assert core.mean() == pytest.approx(ball.mu / 0.3, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["absent.nxs"], "There is no file absent.nxs"),
        ({}, ["scan.nxs", "scan.nxs"], "One scan at a time"),
        ({}, ["scan.nxs", "crop=1,2,x"], "six whole numbers"),
        ({}, ["scan.nxs", "centre=500"], "outside the detector"),
        ({}, ["scan.nxs", "paganin_delta_beta=60"], "distance"),
        ({}, ["scan.nxs", "fast_axis=1,0,0"], "one each"),
        ({}, ["scan.nxs", "flat=nowhere.tif"], "no TIFF files at nowhere.tif"),
        ({}, ["scan.nxs", "energy=-3"], "-3 keV"),
        ({}, ["scan.nxs", "output.tomogram=nowhere/tomo.h5"], "nowhere does not exist"),
        ({"instrument/detector/x_pixel_size": None, "instrument/detector/y_pixel_size": None},
         ["scan.nxs"], "pixel_size="),
        ({"data/rotation_angle": np.arange(5.0)}, ["scan.nxs"], "5 rotation angles"),
        ({"instrument/detector/image_key": np.full(196, 2)}, ["scan.nxs"], "no projections"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_leaves_nothing(
    folder, small_scan, changes, arguments, message
):
    small_scan.write_nxtomo(folder / "scan.nxs", **changes)
    with pytest.raises(Sorry, match=re.escape(message)) as caught:
        anacor_reconstruct.run(arguments)
    assert "\n" not in str(caught.value)
    assert {path.name for path in folder.iterdir()} <= {"scan.nxs", "anacor_reconstruct.log"}


def test_a_tomogram_is_not_a_scan(folder, small_scan):
    small_scan.write_nxtomo(folder / "scan.nxs")
    anacor_reconstruct.run(["scan.nxs", "centre=33"])
    before = (folder / "tomo.h5").read_bytes()
    with pytest.raises(Sorry, match="holds a tomogram already"):
        anacor_reconstruct.run(["tomo.h5"])
    assert (folder / "tomo.h5").read_bytes() == before


def test_without_a_scan_it_says_how_it_is_used(capsys):
    with pytest.raises(SystemExit):
        anacor_reconstruct.run([])
    assert "dials.anacor_reconstruct" in capsys.readouterr().out
