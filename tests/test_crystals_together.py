"""Three virtual crystals of one structure, alone and together: what each correction is worth against the truth."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

import iotbx.merging_statistics
import iotbx.mtz
from cctbx import miller
from dials.array_family import flex

from anacor_dials.command_line.xia2_anacor import run
from anacor_dials.diffraction.known_structure import (
    Agreement,
    agreement,
    calculated_structure_factors,
    merged_friedel_apart,
)
from anacor_dials.diffraction.merging import load_scaled
from anacor_dials.diffraction.scaling import corrections
from anacor_dials.jobs.records import ContributionsRecord, pipeline_schema
from anacor_dials.sample.materials import energy_from_wavelength
from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.simulation.diffraction_data import (
    simulate_diffraction,
    thaumatin_structure,
    write_diffraction,
)
from anacor_dials.simulation.diffraction_settings import DiffractionSettings, Sweep
from anacor_dials.simulation.meshes import box
from anacor_dials.simulation.samples import sample_from_meshes

WAVELENGTH, D_MIN = 3.5, 5.0
PLATES = {"X1": (160, 40, 100), "X2": (120, 60, 140), "X3": (200, 30, 80)}  # um
STRATEGIES = ("sh_high", "analytical")
COMMAND = (
    *(f"{name}.{kind}" for kind in ("expt", "refl") for name in PLATES),
    *(f"tomography.{name}={name}.h5" for name in PLATES),
    f"scaling.strategies={'+'.join(STRATEGIES)}", "symmetry.space_group=P41212",
    "scaling.full_matrix=False", "nproc=1",
)  # fmt: skip

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Measured:
    """The folder of a run, and how its scaled data stand to the structure: {group: {strategy: ...}}.

    contributions: of the three together; wrong: the same where X2 had the labels of X3.
    """

    folder: Path
    true: miller.array
    of: Mapping[str, Mapping[str, Agreement]]
    contributions: ContributionsRecord
    wrong: ContributionsRecord

    def r(self, group: str, strategy: str) -> float:
        return self.of[group][strategy].r_intensities


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """75 degrees of each plate about one axis; scaled together, then one by one in the same folder."""
    folder = tmp_path_factory.mktemp("crystals")
    structure = thaumatin_structure(np.random.default_rng(11))
    energy = energy_from_wavelength(WAVELENGTH)
    settings = DiffractionSettings(WAVELENGTH, D_MIN, [Sweep(0, 75, 0.2)], n_points=128)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for i, (name, edges) in enumerate(PLATES.items()):
            sample = sample_from_meshes({"crystal": box(edges)})
            rng = np.random.default_rng(i)
            experiments, table = simulate_diffraction(sample, rng, settings, structure)
            experiments[0].identifier = name
            del table.experiment_identifiers()[0]
            table.experiment_identifiers()[0] = name
            write_diffraction(experiments, table, f"{name}.expt", f"{name}.refl")
            write_sample_file(
                f"{name}.h5",
                labels=sample.label_volume(2.0),
                mu_per_um=sample.mu_per_um(energy),
                energy_keV=energy,
            )
        labels = ["tomography.X2=X3.h5" if one == "tomography.X2=X2.h5" else one for one in COMMAND]
        run([*labels, "scaling.crystals=together", "selection.strategy=analytical"])
        wrong = contributions_in(folder)
        run([*COMMAND, "scaling.crystals=together"])
        right = contributions_in(folder)
        run([*COMMAND, "scaling.crystals=separate"])
    true = abs(calculated_structure_factors(structure, WAVELENGTH, D_MIN))
    of = {
        group: {s: against(folder / f"anacor/{group}/scale_{s}", true) for s in STRATEGIES}
        for group in ("all", *PLATES)
    }
    return Measured(folder, true, of, right, wrong)


def contributions_in(folder: Path) -> ContributionsRecord:
    """What anacor.json says of the crystals that were scaled together."""
    content = json.loads((folder / "anacor/anacor.json").read_text())
    (group,) = content["groups"]
    (wavelength,) = group["wavelengths"]
    assert (group["name"], group["selection"]["strategy"]) == ("all", "analytical")
    return ContributionsRecord.of(wavelength["contributions"])


def against(folder: Path, true: miller.array) -> Agreement:
    """How the scaled data of a folder stand to the true intensities, Friedel mates apart."""
    scaled = load_scaled("", folder / "scaled.expt", folder / "scaled.refl").intensities
    return agreement(merged_friedel_apart(scaled), true)


def test_crystals_together_are_nearer_the_truth(measured: Measured) -> None:
    """Than each alone and, with the factors, than by spherical harmonics."""
    together = measured.r("all", "analytical")
    for name in PLATES:
        assert together < measured.r(name, "analytical")
        assert (
            measured.of["all"]["analytical"].n_reflections
            > measured.of[name]["analytical"].n_reflections
        )
    assert together < 0.9 * measured.r("all", "sh_high")
    anomalous = {s: one.cc_anomalous for s, one in measured.of["all"].items()}
    assert anomalous["analytical"] > anomalous["sh_high"]


def test_each_good_crystal_contributes(measured: Measured) -> None:
    """The figures are those of iotbx, of the unmerged MTZ without the images of the crystal."""
    record = measured.contributions
    assert {one.crystal for one in record.crystals} == set(PLATES)
    unmerged = iotbx.mtz.object(str(measured.folder / "anacor/all/export/scaled_unmerged.mtz"))
    arrays = {
        array.info().labels[0]: array
        for array in unmerged.as_miller_arrays(merge_equivalents=False)
    }
    # each sweep of 375 images begins at a batch of its own, in the order of the crystals
    batches = np.array(arrays["BATCH"].data())
    starts = [batches.min(), *(b for a, b in itertools.pairwise(np.unique(batches)) if b - a > 10)]
    number = np.searchsorted(starts, batches, side="right") - 1
    assert len(starts) == 3
    for one in record.crystals:
        assert not one.makes_worse
        assert one.delta_cc_half > 3 * one.delta_cc_half_error
        assert one.delta_cc_anomalous > 3 * one.delta_cc_anomalous_error
        left = arrays["I"].select(flex.bool(number != list(PLATES).index(one.crystal)))
        theirs = iotbx.merging_statistics.dataset_statistics(
            left, n_bins=1, sigma_filtering=None, use_internal_variance=False
        ).overall
        assert one.without.observations == theirs.n_obs
        assert one.without.r_meas == pytest.approx(theirs.r_meas, rel=1e-5)
        assert one.without.r_pim == pytest.approx(theirs.r_pim, rel=1e-5)
        assert one.without.multiplicity == pytest.approx(theirs.mean_redundancy)
        assert one.without.completeness == pytest.approx(theirs.completeness, abs=0.002)


def test_a_crystal_with_labels_of_another_makes_the_data_worse(measured: Measured) -> None:
    """X2 with the labels of X3: Rmeas and the anomalous differences are better without it."""
    first, *others = measured.wrong.crystals
    assert first.crystal == "X2"
    assert "cc_anomalous" in first.makes_worse
    assert first.without.r_meas < measured.wrong.merged.r_meas
    assert not any(one.makes_worse for one in others)


def free_set(folder: Path, name: str) -> dict[tuple[int, int, int], int]:
    """The flag of each reflection in the merged data of a crystal."""
    merged = iotbx.mtz.object(str(folder / f"anacor/DataFiles/{name}_scaled.mtz"))
    (free,) = [a for a in merged.as_miller_arrays() if a.info().labels == ["FreeR_flag"]]
    assert free.size() == merged.n_reflections()  # every reflection has one
    return dict(zip(free.indices(), free.data(), strict=True))


def test_one_free_set_for_all_crystals(measured: Measured) -> None:
    """Made for each by itself: a reflection that is free in one is free in all."""
    sets = [free_set(measured.folder, name) for name in PLATES]
    common = set.intersection(*map(set, sets))
    assert len(common) > 300
    assert all(sets[0][h] == one[h] for one in sets[1:] for h in common)
    assert 0.02 < np.mean([sets[0][h] == 0 for h in common]) < 0.09


def test_a_merge_that_is_done_again_keeps_the_set(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By dials.merge itself, which left alone draws another set in every run."""
    monkeypatch.chdir(measured.folder)
    before = free_set(measured.folder, "X1")
    run([*COMMAND, "redo=X1/merge"])
    steps = json.loads(Path("anacor/anacor.json").read_text())["steps"]
    assert [step["name"] for step in steps if step["done_in_this_run"]] == ["X1/merge"]
    assert free_set(measured.folder, "X1") == before


def test_the_record_of_a_real_run_is_what_the_schema_says(measured: Measured) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    content = json.loads((measured.folder / "anacor/anacor.json").read_text())
    jsonschema.Draft202012Validator(pipeline_schema()).validate(content)
    assert {row["crystal"] for row in content["overview"]} == set(PLATES)


@pytest.fixture(scope="module")
def multiplex() -> str:
    """The path of the program xia2.multiplex."""
    program = shutil.which("xia2.multiplex")
    if program is None:
        pytest.skip("Xia2 is not installed: there is no program multiplex.")
    return program


@pytest.fixture(scope="module")
def multiplexed(
    multiplex: str, measured: Measured, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """The models that xia2.multiplex makes of the crystals, which were scaled one by one: {strategy: path}."""
    made = {}
    for strategy in STRATEGIES:
        folder = tmp_path_factory.mktemp(f"multiplex_{strategy}")
        scaled = [measured.folder / f"anacor/{name}/scale_{strategy}/scaled" for name in PLATES]
        files = [str(one.with_suffix(kind)) for one in scaled for kind in (".expt", ".refl")]
        options = ("symmetry.space_group=P41212", f"resolution.d_min={D_MIN}")
        command = [multiplex, *files, *options, "nproc=1"]
        subprocess.run(command, cwd=folder, check=True)
        (made[strategy],) = folder.rglob("scaled.expt")
    return made


def test_multiplex_keeps_what_the_factors_gained(
    multiplex: str, measured: Measured, multiplexed: Mapping[str, Path]
) -> None:
    """Three crystals by xia2.multiplex are nearer the truth than each alone, and than by harmonics."""
    terms = corrections(multiplexed["analytical"])
    assert len(terms) == len(PLATES)
    assert all("analytical" in one and "absorption" not in one for one in terms)
    of = {s: against(path.parent, measured.true) for s, path in multiplexed.items()}
    for name in PLATES:
        assert of["analytical"].r_intensities < measured.r(name, "analytical")
        assert of["analytical"].cc_anomalous > measured.of[name]["analytical"].cc_anomalous
        assert of["analytical"].n_reflections > measured.of[name]["analytical"].n_reflections
    assert of["analytical"].r_intensities < 0.9 * of["sh_high"].r_intensities
    # both make an error model; without one, scaling together gives 0.0063 where these have 0.0054
    assert measured.r("all", "analytical") < 1.07 * of["analytical"].r_intensities
