"""dials.anacor_segment from its command line, with a stand-in for the network."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from anacor_dials.sample.hand_made import EditingSession, HandMadeLabels, read_hand_made
from anacor_dials.sample.label_files import read_label_stack
from anacor_dials.sample.tomogram_files import (
    SampleFile,
    read_sample_file,
    write_sample,
    write_sample_file,
)
from anacor_dials.sample.volumes import DEFAULT_NAMES, LabelVolume, Tomogram

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("dials.util.options", reason="DIALS is not installed")

from dials.util import Sorry

from anacor_dials.command_line import anacor_segment
from anacor_dials.jobs import segment

LEVELS = (0.0, 1.0, 0.6, 1.5)
CENTRE = np.array([10.0, 19.0, 22.5])


@pytest.fixture
def labels():
    x, y, z = np.indices((36, 40, 44)) - np.array([17, 19, 21])[:, None, None, None]
    labels = np.zeros(x.shape, dtype=np.uint8)
    labels[x**2 + y**2 + z**2 < 15**2] = 1
    labels[(abs(y - 9) < 2) & (abs(z) < 3) & (abs(x) < 9)] = 2
    labels[(abs(x) < 5) & (abs(y + 2) < 4) & (abs(z - 1) < 6)] = 3
    return labels


@pytest.fixture
def folder(tmp_path, monkeypatch, network_by_value, labels):
    """tomo.h5 and truth.h5; the truth on a larger grid, as a scan's is after a crop."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    values = 0.012 * (np.array(LEVELS)[labels] + 0.01 * rng.standard_normal(labels.shape))
    write_sample_file("given.h5", tomogram=Tomogram(values, 1.2, CENTRE), projections="scan.nxs")
    with h5py.File("given.h5", "r+") as file:
        file["entry/reconstruction"].attrs["scan_centre"] = np.array([31.5, 17.25])
    truth = LabelVolume(np.pad(labels, 3), np.full(3, 1.2), CENTRE + 3)
    write_sample_file("truth.h5", labels=truth, mu_per_um=[0, 1, 2, 3], energy_keV=3.5)
    return tmp_path


def test_a_tomogram_gets_labels(folder, labels):
    anacor_segment.run(["given.h5", "truth=truth.h5"])
    contents = read_sample_file("tomo.h5", probabilities=True)
    np.testing.assert_array_equal(contents.labels.values, labels)
    np.testing.assert_array_equal(contents.labels.centre, CENTRE)
    np.testing.assert_allclose(contents.labels.voxel_size_um, 1.2)
    given = read_sample_file("given.h5")
    np.testing.assert_array_equal(contents.tomogram.values, given.tomogram.values)
    assert contents.scan_centre == given.scan_centre == (31.5, 17.25)
    assert contents.projections == given.projections
    np.testing.assert_allclose(contents.mu_per_um[1:], 0.012 * np.array(LEVELS[1:]), rtol=0.02)
    assert contents.mu_per_um[0] == pytest.approx(0, abs=1e-4)
    np.testing.assert_array_equal(contents.probabilities.argmax(axis=0), labels)
    numbers = json.loads((folder / "anacor_segment.json").read_text())
    scores = numbers["evaluation"]["classes"]
    assert scores["crystal"]["dice"] == scores["loop"]["recall"] == 1.0
    assert scores["crystal"]["hd95_um"] == 0.0
    volume = np.count_nonzero(labels == 3) * 1.2**3
    assert numbers["materials"]["crystal"]["volume_um3"] == pytest.approx(volume)
    html = (folder / "anacor_segment.html").read_text()
    for text in (
        "across X",
        "across Y",
        "across Z",
        "seen along X",
        "Against the truth",
        "sliders",
    ):
        assert text in html
    assert "sam2.checkpoint=" in (folder / "anacor_segment.log").read_text()


def test_the_file_may_be_written_over(folder, labels):
    anacor_segment.run(["given.h5", "output.tomogram=given.h5", "probabilities=False", "html=None"])
    contents = read_sample_file("given.h5", probabilities=True)
    np.testing.assert_array_equal(contents.labels.values, labels)
    assert contents.tomogram is not None
    assert contents.probabilities is None
    assert not (folder / "anacor_segment.html").exists()


def test_exports_hold_the_same_labels(folder, labels):
    anacor_segment.run(
        ["given.h5", "output.tiff=l.tif", "output.npy=l.npy", "output.nrrd=l.nrrd", "html=None"]
    )
    for name in ("l.tif", "l.npy"):
        np.testing.assert_array_equal(read_label_stack(name, 1.2).values, labels)
    import gzip

    header, _, data = (folder / "l.nrrd").read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in header.decode().splitlines()[1:])
    assert fields["sizes"] == "36 40 44"
    assert fields["space directions"] == "(1.2,0,0) (0,1.2,0) (0,0,1.2)"
    assert fields["space origin"] == "(-12,-22.8,-27)"
    values = np.frombuffer(gzip.decompress(data), np.uint8).reshape((36, 40, 44), order="F")
    np.testing.assert_array_equal(values, labels)


def test_a_corrected_stack_replaces(folder, labels, monkeypatch):
    monkeypatch.setattr(segment, "load_networks", None)  # is not asked
    corrected = np.where(labels == 2, 1, labels).astype(np.uint8)
    np.save("corrected.npy", corrected.transpose(2, 0, 1))
    anacor_segment.run(["given.h5", "labels.file=corrected.npy", "labels.axes=z,x,y", "html=None"])
    contents = read_sample_file("tomo.h5", probabilities=True)
    np.testing.assert_array_equal(contents.labels.values, corrected)
    np.testing.assert_array_equal(contents.labels.centre, CENTRE)
    assert contents.mu_per_um[3] == pytest.approx(0.018, rel=0.02)
    assert contents.probabilities is None


def test_a_corrected_stack_is_merged(folder, labels):
    corrected = np.zeros_like(labels)
    corrected[18:20, 18:20, 30:32] = 3
    np.save("corrected.npy", corrected)
    anacor_segment.run(
        ["given.h5", "labels.file=corrected.npy", "labels.mode=merge", "html=merged.html"]
    )
    expected = np.where(corrected > 0, corrected, labels)
    np.testing.assert_array_equal(read_sample_file("tomo.h5").labels.values, expected)


def test_a_scan_is_reconstructed_first(folder, ellipsoid_scan):
    """Three ellipsoids of 0.020, 0.012 and 0.030 /um: air, and what is nearest to each level."""
    ellipsoid_scan.write_nxtomo(folder / "scan.nxs")
    anacor_segment.run(["scan.nxs", "centre=31.5", "clean_up=False", "crop=off"])
    contents = read_sample_file("tomo.h5")
    assert contents.tomogram.shape == (44, 64, 64)
    assert contents.energy_keV == pytest.approx(3.5)
    assert contents.scan_centre == pytest.approx((31.5, 21.5))
    for ellipsoid, name in zip(
        ellipsoid_scan.ellipsoids, ("liquor", "loop", "crystal"), strict=True
    ):
        index = np.rint(contents.labels.index(ellipsoid.centre)).astype(int)
        assert contents.labels.names[contents.labels.values[tuple(index)]] == name
        label = contents.labels.label(name)
        assert contents.mu_per_um[label] == pytest.approx(ellipsoid.mu, rel=0.08)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["given.h5", "truth.h5"], "One scan or tomogram"),
        (["truth.h5"], "no reconstruction"),
        (["absent.nxs"], "absent.nxs"),
        (["given.h5", "sam2.checkpoint=absent.pt"], "no SAM-2 checkpoint"),
        (["given.h5", "labels.file=wrong.npy"], "labels.axes"),
        (["given.h5", "overlap=400"], "overlap"),
        (["given.h5", "segmentation.axes=xw"], "axes"),
        (["air.h5"], "no sample"),
        (["metres.h5"], "unit"),
        (["given.h5", "output.tomogram=nowhere/tomo.h5"], "does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(folder, labels, arguments, what):
    np.save("wrong.npy", labels.transpose(2, 0, 1))
    rng = np.random.default_rng(0)
    air = 1e-4 * rng.standard_normal((20, 20, 20))
    write_sample_file("air.h5", tomogram=Tomogram(air, 1.2))
    write_sample_file("metres.h5", tomogram=Tomogram(air, 1.2e6))
    before = {p.name for p in folder.iterdir()}
    with pytest.raises(Sorry, match=what):
        anacor_segment.run(arguments)
    assert {p.name for p in folder.iterdir()} - before <= {"anacor_segment.log"}


def test_the_crystal_must_be_there(folder, labels):
    values = np.array([0.0, 0.012, 0.0072, 0.012])[labels]
    write_sample_file("none.h5", tomogram=Tomogram(values, 1.2))
    with pytest.raises(Sorry, match="No crystal was found"):
        anacor_segment.run(["none.h5"])


def test_what_is_written_goes_into_the_absorption(folder):
    """The labels, names and mu are those that dials.anacor_absorption takes."""
    from anacor_dials.jobs.load_sample import load_sample
    from anacor_dials.sample.materials import materials_at

    anacor_segment.run(["given.h5", "energy=3.5", "html=None"])
    loaded = load_sample("tomo.h5")
    assert loaded.segmented is None  # the labels are there
    sample = loaded.file
    materials = materials_at(3.5, sample.labels.names, {}, sample.mu_per_um, sample.energy_keV)
    assert [m.name for m in materials] == ["background", "liquor", "loop", "crystal"]
    assert materials[3].mu_per_um == pytest.approx(0.018, rel=0.02)
    assert materials[3].origin == "file"


def test_a_tomogram_of_another_program(folder, labels):
    """The labels of given.h5 come from HTTomo's file, too, and from whole numbers without a unit."""
    values = read_sample_file("given.h5").tomogram.values
    square = np.pad(values, ((0, 0), (2, 2), (0, 0))).transpose(2, 0, 1)  # row z, along x, column y
    with h5py.File("recon.h5", "w") as file:
        file["angles"] = np.arange(180.0)
        file["data_dims/detector_x_y"] = [44, 36]
        file["data"] = np.rint(5000 + 1e6 * square).astype(np.uint16)
    before = (folder / "recon.h5").read_bytes()
    anacor_segment.run(["recon.h5", "tomogram.voxel_size_um=1.2", "html=None"])
    contents = read_sample_file("tomo.h5")
    found = contents.labels.values[:, 2:-2]
    assert np.mean(found == labels) > 0.999
    assert not contents.tomogram.quantitative
    assert np.isnan(contents.mu_per_um[1:]).all()
    assert "mu is left unknown" in (folder / "anacor_segment.log").read_text()
    said = ["tomogram.voxel_size_um=1.2", "tomogram.scale=1e-6", "tomogram.offset=-0.005"]
    anacor_segment.run(["recon.h5:/data", *said, "tomogram.unit=1/um", "html=None"])
    contents = read_sample_file("tomo.h5")
    np.testing.assert_allclose(contents.mu_per_um[1:], 0.012 * np.array(LEVELS[1:]), rtol=0.02)
    assert (folder / "recon.h5").read_bytes() == before
    with pytest.raises(Sorry, match="would replace recon.h5, which is read"):
        anacor_segment.run(["recon.h5", *said, "output.tomogram=recon.h5"])
    with pytest.raises(Sorry, match="tomogram.\\* is for the tomograms of other programs"):
        anacor_segment.run(["given.h5", "tomogram.unit=1/um"])


# ---- labels made by hand ---------------------------------------------------------------------------


@pytest.fixture
def edited(folder, labels):
    """given.h5 with labels, of which a block of liquor was called loop by hand."""
    made = labels.copy()
    made[14:18, 26:29, 18:24] = 2
    session = np.zeros(labels.shape, dtype=np.uint8)
    session[14:18, 26:29, 18:24] = 1
    session[16, :, :] = 2
    who = (EditingSession("anna", "2026-01-01T10:00:00+00:00"), EditingSession("ben", "2026-01-02"))
    given = read_sample_file("given.h5")
    sample = SampleFile(
        Path("edited.h5"),
        tomogram=given.tomogram,
        labels=LabelVolume(made, 1.2, CENTRE),
        hand_made=HandMadeLabels(made, session, DEFAULT_NAMES, who),
    )
    write_sample("edited.h5", sample)
    return made, session, who


def test_what_people_labelled_is_kept(edited, labels):
    made, session, who = edited
    anacor_segment.run(["edited.h5", "html=None"])
    contents = read_sample_file("tomo.h5", probabilities=True)
    np.testing.assert_array_equal(contents.labels.values[session > 0], made[session > 0])
    np.testing.assert_array_equal(contents.labels.values[session == 0], labels[session == 0])
    found = contents.probabilities.argmax(axis=0)
    np.testing.assert_array_equal(found[session > 0], made[session > 0])
    record = read_hand_made("tomo.h5")
    np.testing.assert_array_equal(record.session, session)
    assert record.sessions == who


def test_a_merged_stack_is_by_hand(edited, labels):
    made, session, _ = edited
    stack = np.zeros_like(labels)
    stack[20:22, 10:14, 10:14] = 3
    np.save("more.npy", stack)
    anacor_segment.run(["edited.h5", "labels.file=more.npy", "labels.mode=merge", "html=None"])
    record = read_hand_made("tomo.h5")
    assert [s.user for s in record.sessions[:2]] == ["anna", "ben"]
    np.testing.assert_array_equal(record.session == 3, stack > 0)
    contents = read_sample_file("tomo.h5")
    assert np.all(contents.labels.values[stack > 0] == 3)
    both = (stack == 0) & (session > 0)
    np.testing.assert_array_equal(contents.labels.values[both], made[both])


def test_the_network_learns_from_what_is_by_hand(edited, labels, monkeypatch):
    """What is handed to the learning network, and that its labels are taken; learning itself is tested with
    the network."""
    made, session, _ = edited
    asked = {}

    def learned(tomogram, hand_made, networks, settings):
        asked["by hand"], asked["minutes"] = hand_made, settings.minutes
        return networks[0]

    monkeypatch.setattr(segment, "learned_network", learned)
    anacor_segment.run(["edited.h5", "labels.mode=learn", "minutes=0.5", "html=None"])
    np.testing.assert_array_equal(asked["by hand"].session, session)
    assert asked["minutes"] == 0.5
    record = read_hand_made("tomo.h5")
    np.testing.assert_array_equal(record.session, session)
    # planes of a stack that hold labels count as a whole, with those of the file
    stack = np.zeros_like(labels)
    stack[20] = labels[20]
    np.save("planes.npy", stack)
    anacor_segment.run(["edited.h5", "labels.file=planes.npy", "labels.mode=learn", "html=None"])
    expected = session > 0
    expected[20] = True
    np.testing.assert_array_equal(asked["by hand"].by_hand, expected)
    np.testing.assert_array_equal(asked["by hand"].labels[20], labels[20])


def test_nothing_to_learn_from_is_one_sentence(folder):
    with pytest.raises(Sorry, match="nothing to learn from"):
        anacor_segment.run(["given.h5", "labels.mode=learn"])
    assert not (folder / "tomo.h5").exists()
