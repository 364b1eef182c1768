"""The free set: a function of the indices, kept and completed, whatever is done again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

from cctbx import crystal, miller, sgtbx
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.model import Crystal, Experiment, ExperimentList
from dxtbx.model.experiment_list import BeamFactory
from scipy.stats import binom, chisquare

from anacor_dials.diffraction.free_set import (
    chance,
    complete_free_set,
    draw_free_set,
    read_free_set,
    write_free_set,
)
from anacor_dials.jobs.pipeline.merged_data import make_free_set
from anacor_dials.jobs.pipeline.settings import PipelineSettings
from anacor_dials.jobs.pipeline.steps import WorkingFolder

CELLS = {
    "P 41 21 2": (58.0, 58.0, 151.0, 90, 90, 90),
    "P 4": (58.0, 58.0, 151.0, 90, 90, 90),
    "P 1": (30.0, 41.0, 52.0, 80, 95, 103),
    "C 1 2 1": (90.0, 40.0, 60.0, 90, 110, 90),
    "P 63": (70.0, 70.0, 100.0, 90, 90, 120),
    "R 3 :H": (70.0, 70.0, 100.0, 90, 90, 120),
    "P 21 3": (60.0, 60.0, 60.0, 90, 90, 90),
}


def reflections(group: str = "P 41 21 2", d_min: float = 3.0, scale: float = 1.0) -> miller.set:
    a, b, c, *angles = CELLS[group]
    cell = (a * scale, b * scale, c * scale, *angles)
    symmetry = crystal.symmetry(unit_cell=cell, space_group_symbol=group)
    return miller.build_set(symmetry, anomalous_flag=False, d_min=d_min)


def flags_of(array: miller.array) -> dict[tuple[int, int, int], int]:
    return dict(zip(array.indices(), array.data(), strict=True))


def numbers(array: miller.array) -> np.ndarray:
    return flumpy.to_numpy(array.data())


@pytest.mark.parametrize("group", CELLS)
def test_what_the_symmetry_makes_equivalent_has_one_flag(group: str) -> None:
    """The space group's operators and Friedel's law, by cctbx on the indices themselves."""
    one = reflections(group)
    expected = list(draw_free_set(one).data())
    hkl = np.array(one.indices())
    for operator in one.space_group().build_derived_laue_group():
        turned = hkl @ np.array(operator.r().num()).reshape(3, 3)
        turned = flex.miller_index([tuple(map(int, h)) for h in turned])
        moved = miller.set(one.crystal_symmetry(), turned, anomalous_flag=False)
        assert list(draw_free_set(moved).data()) == expected


@pytest.mark.parametrize(
    ("group", "twin_law"), [("P 4", "k,h,-l"), ("P 63", "k,h,-l"), ("P 21 3", "k,h,-l")]
)
def test_twins_have_one_flag(group: str, twin_law: str) -> None:
    """Merohedral twins, and the two ways in which such a crystal can be indexed."""
    one = reflections(group)
    law = sgtbx.change_of_basis_op(twin_law.replace("h", "x").replace("k", "y").replace("l", "z"))
    turned = miller.set(one.crystal_symmetry(), law.apply(one.indices()), anomalous_flag=False)
    assert list(turned.indices()) != list(one.indices())
    assert np.array_equal(chance(turned), chance(one))


@pytest.mark.parametrize("group", CELLS)
def test_sets_are_of_one_size_and_by_chance(group: str) -> None:
    """The 20 sets are equally large, and the free one is so at every resolution."""
    one = reflections(group, 2.0)
    drawn = draw_free_set(one, at_most=10**9)
    unique = np.unique(chance(one), return_index=True)[1]  # the lattice's own
    values = numbers(drawn)[unique]
    assert set(values) == set(range(20))
    assert chisquare(np.bincount(values)).pvalue > 1e-3
    by_resolution = np.argsort(flumpy.to_numpy(one.d_spacings().data())[unique])
    for shell in np.array_split(values[by_resolution] == 0, 10):
        assert binom.cdf(shell.sum(), len(shell), 0.05) > 1e-4
        assert binom.sf(shell.sum() - 1, len(shell), 0.05) > 1e-4


def test_the_set_depends_on_the_indices_alone() -> None:
    """Not on resolution, order, missing reflections, nor a cell that is a little other."""
    whole = flags_of(draw_free_set(reflections(d_min=3.0)))
    for part in (
        reflections(d_min=4.0),
        reflections(d_min=4.0, scale=1.01),
        reflections().select(flex.random_permutation(reflections().size())[:500]),
    ):
        assert flags_of(draw_free_set(part)).items() <= whole.items()


def test_smaller_sets_are_part_of_larger_ones() -> None:
    one = reflections(d_min=2.0)
    large, small = (draw_free_set(one, f, 10**9).data() == 0 for f in (0.1, 0.05))
    assert (small & ~large).count(True) == 0
    assert large.count(True) / one.size() == pytest.approx(0.1, abs=0.01)
    limited = draw_free_set(one, at_most=200).data() == 0
    assert 150 < limited.count(True) < 250


@pytest.mark.parametrize("values", [20, 10, 2])
def test_a_known_set_is_kept_and_completed(values: int, tmp_path: Path) -> None:
    """By chance, as other programs draw: 20 or 10 sets, or ones and zeros; not one flag changes."""
    rng = np.random.default_rng(3)
    small = reflections(d_min=4.0)
    drawn = rng.integers(values, size=small.size())
    if values == 2:
        drawn = (rng.random(small.size()) < 0.08).astype(int)
    known = small.array(data=flumpy.from_numpy(drawn.astype(np.int32)))
    write_free_set(known, tmp_path / "known.mtz")
    read = read_free_set(tmp_path / "known.mtz")
    assert flags_of(read) == flags_of(known)
    whole = reflections(d_min=2.5, scale=1.01)
    completed, n_new = complete_free_set(read, whole)
    found = flags_of(completed)
    assert flags_of(known).items() <= found.items()
    assert set(found) == {*small.indices(), *whole.indices()}
    assert n_new == len(found) - small.size()
    old = flags_of(known)
    new = [flag for h, flag in found.items() if h not in old]
    free, share = (1, drawn.mean()) if values == 2 else (0, 1 / values)
    assert set(new) <= set(drawn)
    assert new.count(free) / len(new) == pytest.approx(share, abs=0.015)


def test_sets_of_other_crystals_are_refused(tmp_path: Path) -> None:
    known = draw_free_set(reflections("P 4"))
    with pytest.raises(ValueError, match="Laue group P 4/m, the data of P 4/m m m"):
        complete_free_set(known, reflections("P 41 21 2"))
    with pytest.raises(
        ValueError, match="cell 58.0, 58.0, 151.0, 90.0, 90.0, 90.0, the data of 63.8"
    ):
        complete_free_set(known, reflections("P 4", scale=1.1))
    data = reflections().array(data=flex.double(reflections().size(), 1.0))
    data.as_mtz_dataset("F").mtz_object().write(str(tmp_path / "data.mtz"))
    with pytest.raises(ValueError, match="data.mtz holds no free set"):
        read_free_set(tmp_path / "data.mtz")
    (tmp_path / "text.mtz").write_text("x")
    with pytest.raises(ValueError, match="text.mtz cannot be read as an MTZ file"):
        read_free_set(tmp_path / "text.mtz")


# ---- in the pipeline ------------------------------------------------------------------------------

Scaled = Callable[..., list[tuple[Path, Path]]]


@pytest.fixture
def scaled(tmp_path: Path) -> Scaled:
    """Scaled data of P41212 to a resolution, as files of one wavelength."""

    def write(d_min: float, group: str = "P 41 21 2") -> list[tuple[Path, Path]]:
        a, _, c, *_ = CELLS[group]
        model = Crystal((a, 0, 0), (0, a, 0), (0, 0, c), group)
        models = ExperimentList([Experiment(beam=BeamFactory.simple(3.0), crystal=model)])
        table = flex.reflection_table()
        table["miller_index"] = reflections(group, d_min).indices()
        table["flags"] = flex.size_t(len(table), table.flags.scaled)
        files = (tmp_path / "scaled.expt", tmp_path / "scaled.refl")
        models.as_file(str(files[0]))
        table.as_file(str(files[1]))
        return [files]

    return write


class Runs:
    """Runs of the step in one working folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.file = self.folder / "X1/free_set/free_set.mtz"

    def __call__(self, parts: list[tuple[Path, Path]], redo: str = "", **more: object) -> str:
        """Where the set is from; and it is published with the merged data."""
        work = WorkingFolder(self.folder, {"dials": "1"}, redo=[redo])
        settings = PipelineSettings(strategies=("analytical",), **more)
        step = make_free_set("X1", parts, settings, work)
        work.publish(step.path("free_set.mtz"), "X1_scaled.mtz")
        return step.log.read_text()

    @property
    def flags(self) -> dict[tuple[int, int, int], int]:
        return flags_of(read_free_set(self.file))


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_a_step_done_again_keeps_the_set(scaled: Scaled, runs: Runs) -> None:
    said = runs(scaled(4.0))
    assert said.startswith("Free set: a new one, by the indices alone, of ")
    first, content = runs.flags, runs.file.read_bytes()
    assert "kept, that of the earlier run" in runs(scaled(4.0), redo="X1/free_set")
    assert runs.file.read_bytes() == content
    assert "reflections that it lacks were added" in runs(scaled(3.0))
    assert first.items() < runs.flags.items()
    larger = runs.flags
    runs(scaled(5.0))
    assert runs.flags == larger


def test_a_set_that_was_drawn_by_chance_is_kept_too(scaled: Scaled, runs: Runs) -> None:
    """Of merged data that an earlier version left, which a user has begun to refine with."""
    rng = np.random.default_rng(4)
    one = reflections(d_min=4.0)
    known = one.array(data=flumpy.from_numpy(rng.integers(20, size=one.size(), dtype=np.int32)))
    write_free_set(known, runs.folder.parent / "merged.mtz")
    work = WorkingFolder(runs.folder, {"dials": "1"})
    work.publish(runs.folder.parent / "merged.mtz", "X1_scaled.mtz")
    assert "DataFiles/X1_scaled.mtz; it has all reflections." in runs(scaled(4.0))
    assert runs.flags == flags_of(known)


def test_a_set_that_is_named_is_taken_and_stays(scaled: Scaled, runs: Runs, tmp_path: Path) -> None:
    runs(scaled(4.0))
    drawn = runs.flags
    one = reflections(d_min=4.0)
    data = (chance(one) * 10).astype(np.int32)[::-1]
    known = one.array(data=flumpy.from_numpy(data.copy()))
    write_free_set(known, tmp_path / "free.mtz")
    assert f"that of {tmp_path}/free.mtz" in runs(scaled(4.0), free_set=tmp_path / "free.mtz")
    assert runs.flags == flags_of(known) != drawn
    runs(scaled(4.0))
    assert runs.flags == flags_of(known)


def test_a_set_of_another_symmetry_is_said_or_refused(
    scaled: Scaled, runs: Runs, tmp_path: Path
) -> None:
    runs(scaled(4.0))
    said = runs(scaled(4.0, "P 4"))
    assert "a new one" in said
    assert "the free set is of the Laue group P 4/m m m, the data of P 4/m" in said
    write_free_set(draw_free_set(reflections()), tmp_path / "free.mtz")
    with pytest.raises(ValueError, match="free.mtz is not of these data: the free set is of the L"):
        runs(scaled(3.9, "P 4"), free_set=tmp_path / "free.mtz")
    with pytest.raises(ValueError, match="There is no file absent.mtz with a free set"):
        PipelineSettings(free_set=Path("absent.mtz"))
    with pytest.raises(ValueError, match=r"a part of 0.7 of the reflections"):
        PipelineSettings(free_fraction=0.7)


def test_it_can_be_left_to_dials_merge(scaled: Scaled, tmp_path: Path) -> None:
    settings = PipelineSettings(merging_options=("r_free_flags.generate=False",))
    work = WorkingFolder(tmp_path / "work", {"dials": "1"})
    assert make_free_set("X1", scaled(4.0), settings, work) is None
