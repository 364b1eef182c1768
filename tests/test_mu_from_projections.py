"""dials.anacor_absorption takes mu from the projections that the labels belong to."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

pytest.importorskip("dials", reason="the command needs dials")

from dials.array_family import flex
from dials.util import Sorry
from dxtbx import flumpy
from dxtbx.model import (
    BeamFactory,
    Crystal,
    DetectorFactory,
    Experiment,
    ExperimentList,
    GoniometerFactory,
    ScanFactory,
)

from anacor_dials.command_line.anacor_absorption import run
from anacor_dials.sample.materials import (
    typical_composition,
    wavelength_from_energy,
)
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.sample.volumes import LabelVolume

ENERGY = 3.5  # keV, of the scan
MU = {"liquor": 0.0150, "crystal": 0.0210}  # 1/um
DROP = ((1.0, 2.0, -3.0), (17.0, 16.0, 15.0))
CRYSTAL = ((3.0, -2.0, 2.0), (9.0, 8.0, 7.0))
INPUT = ["models.expt", "observations.refl", "tomo.h5", "absorption.tolerance=1"]


def drop_labels() -> LabelVolume:
    x, y, z = np.indices((44, 44, 44)) - 21.5
    values = np.zeros(x.shape, dtype=np.uint8)
    for label, ((cx, cy, cz), (a, b, c)) in ((1, DROP), (3, CRYSTAL)):
        values[((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 + ((z - cz) / c) ** 2 <= 1] = label
    return LabelVolume(values, np.array([1.0]))


def write_tomo(mu, parameters="", projections="scan.nxs"):
    write_sample_file(
        "tomo.h5", labels=drop_labels(), mu_per_um=mu, energy_keV=ENERGY,
        projections=projections, parameters=parameters,
    )  # fmt: skip


def write_diffraction(energy_keV):
    """One sweep about a horizontal axis with 60 reflections."""
    wavelength = wavelength_from_energy(energy_keV)
    experiments = ExperimentList(
        [
            Experiment(
                beam=BeamFactory.simple(wavelength),
                detector=DetectorFactory.simple(
                    "PAD", 100.0, (150.0, 150.0), "+x", "-y", (1.0, 1.0), (300, 300)
                ),
                goniometer=GoniometerFactory.known_axis((1.0, 0.0, 0.0)),
                scan=ScanFactory.make_scan((1, 90), 0.1, (0, 1.0), dict.fromkeys(range(1, 91), 0)),
                crystal=Crystal((20, 0, 0), (0, 22, 0), (0, 0, 25), "P 1"),
                identifier="one",
            )
        ]
    )
    experiments.as_file("models.expt")
    rng, n = np.random.default_rng(5), 60
    table = flex.reflection_table()
    table["id"] = flex.int(n, 0)
    table["miller_index"] = flex.miller_index([(1, 2, i + 1) for i in range(n)])
    s1 = rng.normal(size=(n, 3))
    table["s1"] = flumpy.vec_from_numpy(s1 / np.linalg.norm(s1, axis=1, keepdims=True) / wavelength)
    image = rng.uniform(0, 90, n)
    mm = np.column_stack([rng.uniform(0, 300, (n, 2)), np.radians(image)])
    table["xyzcal.mm"] = flumpy.vec_from_numpy(mm)
    table["xyzcal.px"] = flumpy.vec_from_numpy(np.column_stack([mm[:, :2], image]))
    table.experiment_identifiers()[0] = "one"
    table.as_file("observations.refl")


def drop_scan(ellipsoid_scan, **changes):
    """The scan of the drop and its crystal; the rotation axis at pixel 26.3 of 56."""
    ellipsoid = type(ellipsoid_scan.ellipsoids[0])
    return ellipsoid_scan.at(
        ellipsoids=(
            ellipsoid(*DROP, MU["liquor"]),
            ellipsoid(*CRYSTAL, MU["crystal"] - MU["liquor"]),
        ),
        shape=(48, 56),
        angles_deg=tuple(np.arange(0.0, 180.0, 12.0)),
        axis_pixel=26.3,
        counts=20000.0,
        **changes,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch, ellipsoid_scan):
    """models.expt, observations.refl, scan.nxs, and tomo.h5 that points to it and knows no mu."""
    drop_scan(ellipsoid_scan).write_nxtomo(tmp_path / "scan.nxs")
    monkeypatch.chdir(tmp_path)
    write_tomo([0.0, np.nan, np.nan, np.nan])
    write_diffraction(ENERGY)
    yield tmp_path
    for handler in list(logging.getLogger("dials").handlers):  # of the log in the folder
        logging.getLogger("dials").removeHandler(handler)


# the labels hold no loop: its mu is nobody's
NO_LOOP = "materials.loop.mu=0.01"


def materials_of(*arguments):
    """name -> the material of the JSON, after a run of the command."""
    run([*INPUT, *arguments])
    with open("anacor_absorption.json") as file:
        content = json.load(file)
    return {m["name"]: m for m in content["wavelengths"][0]["materials"]}, content


def test_mu_that_nobody_knows_comes_from_the_projections(folder):
    materials, content = materials_of(NO_LOOP)
    for name, mu in MU.items():
        assert materials[name]["mu_per_um"] == pytest.approx(mu, rel=0.02)
        assert materials[name]["from"].startswith("projections at 3.5 keV, +- 0.00")
    assert materials["loop"]["from"] == "given"
    fit = content["coefficients_from_projections"]
    assert fit["centre_pixel"][0] == pytest.approx(26.3, abs=0.1)
    crystal = typical_composition("crystal")
    assert crystal is not None
    assert fit["materials"][2]["expected_per_um"] == pytest.approx(crystal.mu_per_um(ENERGY))
    log = (folder / "anacor_absorption.log").read_text()
    assert "mu from the projections:" in log
    html = (folder / "anacor_absorption.html").read_text()
    assert "Measured less calculated -ln T at 0.0 deg" in html
    assert "mu from the projections at 3.5000 keV" in html


def test_a_mirrored_camera_has_its_own_pixel_numbers(folder, ellipsoid_scan):
    """The columns of the images grow along -Y: the axis is found where the camera has it."""
    drop_scan(ellipsoid_scan, fast_axis=(0, -1, 0)).write_nxtomo(folder / "scan.nxs")
    camera = ["projections.fast_axis=0,-1,0", "projections.slow_axis=1,0,0"]
    materials, content = materials_of(NO_LOOP, *camera)
    assert materials["crystal"]["mu_per_um"] == pytest.approx(MU["crystal"], rel=0.02)
    found = content["coefficients_from_projections"]["centre_pixel"]
    assert found == pytest.approx([26.3, 23.5], abs=0.2)
    # what is printed can be given
    materials, content = materials_of(NO_LOOP, *camera, f"coefficients.centre={found[0]}")
    assert content["coefficients_from_projections"]["centre_pixel"] == pytest.approx(
        found, abs=0.01
    )
    assert materials["crystal"]["mu_per_um"] == pytest.approx(MU["crystal"], rel=0.02)
    log = (folder / "anacor_absorption.log").read_text()
    assert f"rotation axis at pixel {found[0]:.2f}" in log


def test_the_file_comes_before_the_projections_unless_they_are_asked_for(folder):
    write_tomo([0.0, 0.011, 0.012, 0.013])
    materials, content = materials_of()
    assert content["coefficients_from_projections"] is None
    assert materials["crystal"]["mu_per_um"] == 0.013
    materials, _ = materials_of("coefficients.from_projections=True", "materials.liquor.mu=0.5")
    assert materials["crystal"]["mu_per_um"] == pytest.approx(MU["crystal"], rel=0.02)
    assert materials["liquor"]["mu_per_um"] == 0.5
    # no voxel of loop, so no ray through it: the file's mu stays
    assert materials["loop"]["mu_per_um"] == 0.012


def test_diffraction_at_another_energy(folder):
    write_diffraction(4.5)
    materials, _ = materials_of(NO_LOOP)
    crystal = typical_composition("crystal")
    assert crystal is not None
    ratio = crystal.mu_per_um(4.5) / crystal.mu_per_um(ENERGY)
    assert materials["crystal"]["mu_per_um"] == pytest.approx(ratio * MU["crystal"], rel=0.02)
    assert "rescaled to 4.5 keV as the typical composition" in materials["crystal"]["from"]


def test_what_the_scan_does_not_say_is_in_the_record_or_given(folder, ellipsoid_scan):
    from anacor_dials.tomography.projections import read_projections

    # a pixel size in the record that is wrong by two, and the right one on the command line
    write_tomo([0.0, np.nan, np.nan, np.nan], "projections { pixel_size = 0.5 }")
    assert read_projections("scan.nxs").geometry.pixel_size_um == (1.0, 1.0)
    with pytest.raises(Sorry, match="The absorption coefficient of liquor is nan"):
        run([*INPUT, NO_LOOP])
    assert (
        "mu cannot be taken from the projections" in (folder / "anacor_absorption.log").read_text()
    )
    materials, _ = materials_of(NO_LOOP, "projections.pixel_size=1")
    assert materials["liquor"]["mu_per_um"] == pytest.approx(MU["liquor"], rel=0.02)


def test_a_scan_that_was_moved(folder):
    (folder / "scan.nxs").rename(folder / "moved.nxs")
    with pytest.raises(Sorry, match=r"scan.nxs are not there; name the scan by coefficients"):
        run([*INPUT, NO_LOOP, "coefficients.from_projections=True"])
    with pytest.raises(Sorry, match="The absorption coefficient of liquor is nan"):
        run([*INPUT, NO_LOOP])
    assert not (folder / "corrected.refl").exists()
    materials, _ = materials_of(NO_LOOP, "coefficients.projections=moved.nxs")
    assert materials["crystal"]["mu_per_um"] == pytest.approx(MU["crystal"], rel=0.02)
    with pytest.raises(Sorry, match="The absorption coefficient of liquor is nan"):
        run([*INPUT, NO_LOOP, "coefficients.from_projections=False"])


def test_labels_that_point_to_no_projections(folder):
    write_tomo([0.0, 0.011, 0.012, 0.013], projections=None)
    with pytest.raises(Sorry, match="tomo.h5 does not point to its projections"):
        run([*INPUT, "coefficients.from_projections=True"])
