"""Labels are put right: steps, undo, the file after every step, and what the change is worth."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from anacor_dials.jobs import editing, editing_effect
from anacor_dials.jobs.editing import EditingSettings, LabelEditor
from anacor_dials.jobs.editing_effect import doubts_left
from anacor_dials.sample.hand_made import read_hand_made
from anacor_dials.sample.tomogram_files import (
    read_sample_file,
    write_sample_file,
    write_unseen_borders,
)
from anacor_dials.sample.volumes import LabelVolume, Tomogram

LEVELS = 0.012 * np.array([0.0, 1.0, 0.6, 1.5])
SHAPE = (30, 34, 38)


@pytest.fixture
def truth():
    x, y, z = np.indices(SHAPE) - np.array([15, 17, 19])[:, None, None, None]
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[x**2 + y**2 + z**2 < 14**2] = 1
    labels[(abs(y - 9) < 2) & (abs(z) < 3) & (abs(x) < 9)] = 2
    labels[(abs(x) < 5) & (abs(y + 2) < 4) & (abs(z - 1) < 6)] = 3
    return labels


@pytest.fixture
def path(tmp_path, truth):
    """A tomo.h5 whose labels miss a part of the crystal, with probabilities that doubt it."""
    labels = truth.copy()
    labels[:, :, 22:][labels[:, :, 22:] == 3] = 1
    p = np.zeros((4, *SHAPE), dtype=np.uint8)
    for label in range(4):
        p[label][labels == label] = 255
    missed = labels != truth
    p[1][missed], p[3][missed] = 150, 105
    rng = np.random.default_rng(0)
    values = LEVELS[truth] + 2e-4 * rng.standard_normal(SHAPE)
    mu = [0.0, *LEVELS[1:]]
    write_sample_file(
        tmp_path / "tomo.h5", Tomogram(values, 1.2), LabelVolume(labels, 1.2), mu, 3.5, p
    )
    return tmp_path / "tomo.h5"


@pytest.fixture
def editor(path):
    return LabelEditor(path, EditingSettings(user="anna"))


def stored(path):
    return read_sample_file(path).labels.values


def test_every_step_is_in_the_file_at_once(path, editor):
    before = stored(path)
    voxels = np.array([5 * 38 + 7, 5 * 38 + 8, 5 * 38 + 8])
    assert editor.paint(0, 12, voxels, 2) == 2
    after = stored(path)
    changed = np.argwhere(after != before)
    np.testing.assert_array_equal(changed, [[12, 5, 7], [12, 5, 8]])
    assert after[12, 5, 7] == 2
    record = read_hand_made(path)
    np.testing.assert_array_equal(np.argwhere(record.by_hand), changed)
    assert record.sessions[0].user == "anna"
    # nothing else of the file has changed
    contents = read_sample_file(path, probabilities=True)
    assert contents.tomogram is not None
    assert contents.probabilities is not None
    assert contents.energy_keV == 3.5
    assert [p.name for p in path.parent.iterdir()] == ["tomo.h5"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_across_every_axis(path, editor, axis):
    rows, columns = (n for a, n in enumerate(SHAPE) if a != axis)
    editor.paint(axis, 4, np.array([3 * columns + 6]), 3)
    (place,) = np.argwhere(read_hand_made(path).by_hand)
    expected = [3, 6]
    expected.insert(axis, 4)
    np.testing.assert_array_equal(place, expected)
    for kind in ("labels", "by_hand", "doubt", "values"):
        assert editor.plane(kind, axis, 4).shape == (rows, columns)
    assert editor.plane("labels", axis, 4)[3, 6] == 3
    assert editor.plane("by_hand", axis, 4).sum() == 1


def test_undo_and_redo_without_limit(path, editor):
    first = stored(path)
    states = [first]
    rng = np.random.default_rng(1)
    for k in range(30):
        editor.paint(k % 3, 10, rng.integers(0, 800, 20), int(rng.integers(4)))
        states.append(stored(path))
    assert editor.n_by_hand == read_hand_made(path).n_voxels
    for state in states[-2::-1]:
        editor.undo()
        np.testing.assert_array_equal(stored(path), state)
    assert editor.n_by_hand == 0
    assert read_hand_made(path) is None
    with pytest.raises(ValueError, match="nothing to undo"):
        editor.undo()
    for state in states[1:]:
        editor.redo()
        np.testing.assert_array_equal(stored(path), state)
    with pytest.raises(ValueError, match="nothing to redo"):
        editor.redo()
    editor.undo()
    editor.paint(0, 3, np.array([5]), 1)  # a new step ends what could be done again
    with pytest.raises(ValueError, match="nothing to redo"):
        editor.redo()


def test_the_eraser_gives_back_what_programs_said(path, editor):
    before = stored(path)
    voxels = np.arange(10 * 38, 20 * 38)
    editor.paint(0, 15, voxels, 2)
    assert editor.erase(0, 15, voxels[:200]) == 200
    now, record = stored(path), read_hand_made(path)
    np.testing.assert_array_equal(now[15].ravel()[voxels[:200]], before[15].ravel()[voxels[:200]])
    assert record.n_voxels == len(voxels) - 200
    assert editor.erase(0, 15, voxels[:200]) == 0
    # in a later session, too, as far as the probabilities tell
    later = LabelEditor(path)
    later.erase(0, 15, voxels)
    np.testing.assert_array_equal(stored(path), before)


def test_a_whole_body_gets_another_label(path, editor, truth):
    editor.paint(0, 2, np.array([17 * 38 + 19]), 3)  # apart from the crystal
    n = editor.relabel_body((15, 15, 18), 1)
    now = stored(path)
    assert n == np.count_nonzero((truth == 3)[:, :, :22])
    assert np.argwhere(now == 3).tolist() == [[2, 17, 19]]
    with pytest.raises(ValueError, match="choose a body of another material"):
        editor.relabel_body((0, 0, 0), 1)


def test_strokes_go_on_and_spare_what_is_by_hand(path, editor, truth):
    plane = np.flatnonzero(truth[15] == 3)
    editor.paint(0, 15, plane, 3)
    by_hand = read_hand_made(path).by_hand
    missed = (truth == 3) & ~by_hand & (stored(path) != 3)
    assert editor.follow() > 0
    now = stored(path)
    assert np.mean(now[missed] == 3) > 0.8
    assert np.all(now[by_hand] == 3)
    np.testing.assert_array_equal(read_hand_made(path).by_hand, by_hand)  # no more is by hand
    assert editor.undo() == "strokes go on"
    assert np.all(stored(path)[missed] != 3)


def test_follow_needs_strokes(editor):
    with pytest.raises(ValueError, match="draw first"):
        editor.follow()


def test_what_the_network_learns_spares_what_is_by_hand(path, editor, truth, monkeypatch):
    voxels = np.flatnonzero(truth[15] == 3)[:10]
    editor.paint(0, 15, voxels, 2)

    def learned(source, settings, learn):
        assert learn
        assert source.hand_made.n_voxels == 10
        p = np.zeros((4, *SHAPE), dtype=np.uint8)
        for label in range(4):
            p[label][truth == label] = 255

        class Found:
            labels = LabelVolume(truth, 1.2)
            probabilities = p
            unseen_borders = ((3, 30, 10),)

        return Found()

    monkeypatch.setattr(editing, "segment_tomogram", learned)
    editor.learn()
    expected = truth.copy()
    expected[15].reshape(-1)[voxels] = 2
    np.testing.assert_array_equal(stored(path), expected)
    chances = read_sample_file(path, probabilities=True).probabilities
    np.testing.assert_array_equal(chances.argmax(axis=0), truth)
    (place,) = editor.places()
    assert place.unseen_border
    assert LabelEditor(path).places() == [place]


def test_borders_are_kept_without_probabilities(path, truth, monkeypatch):
    with h5py.File(path, "r+") as file:
        del file["entry/segmentation/probabilities"]
    editor = LabelEditor(path)
    editor.paint(0, 15, np.flatnonzero(truth[15] == 3)[:10], 2)
    found = SimpleNamespace(
        labels=editor.label_volume(), probabilities=None, unseen_borders=((3, 30, 10),)
    )
    monkeypatch.setattr(editing, "segment_tomogram", lambda *_: found)
    assert editor.learn() == 0
    assert [place.voxel for place in editor.places()] == [(3, 30, 10)]
    assert LabelEditor(path).places() == editor.places()


def test_borders_that_do_not_show_come_first(path):
    """Until someone has drawn there."""
    with h5py.File(path, "r+") as file:
        write_unseen_borders(file["entry/segmentation"], ((15, 15, 22), (3, 30, 30)))
    editor = LabelEditor(path)
    first, second, *others = editor.places()
    assert (first.voxel, second.voxel) == ((15, 15, 22), (3, 30, 30))
    assert first.unseen_border
    assert [editor.names[label] for label in first.materials] == ["crystal", "liquor"]
    assert others
    assert not any(place.unseen_border for place in others)
    editor.paint(0, 13, np.array([14 * SHAPE[2] + 25]), 3)
    assert [p.voxel for p in editor.places() if p.unseen_border] == [(3, 30, 30)]
    editor.undo()
    assert [p.voxel for p in editor.places() if p.unseen_border] == [(15, 15, 22), (3, 30, 30)]


def test_doubtful_places_are_where_the_crystal_was_missed(editor):
    place = editor.places()[0]
    assert place.materials == (1, 3)
    assert place.voxel[2] >= 22


def test_doubtful_places_of_large_volumes(editor, monkeypatch):
    """Fewer voxels are looked at; the places are the same within them."""
    (x, y, z) = editor.places()[0].voxel
    monkeypatch.setattr(editing, "VOXELS_LOOKED_AT", editor.labels.size // 8)
    thin = editor.places()[0]
    assert thin.materials == (1, 3)
    assert np.all(np.abs(np.array(thin.voxel) - (x, y, z)) <= 6)


def test_what_the_change_is_worth(path, editor, truth):
    """Volumes are those of the labels, and mu is; nothing drawn changes nothing, not even the file."""
    before = path.read_bytes()
    same = editor.effect()
    assert same.rms == 0
    np.testing.assert_array_equal(same.volumes_now, same.volumes_before)
    np.testing.assert_array_equal(same.mu_now, same.mu_before)
    assert path.read_bytes() == before
    missed = (truth == 3) & (editor.labels != 3)
    for x in range(SHAPE[0]):
        editor.paint(0, x, np.flatnonzero(missed[x]), 3)
    effect = editor.effect()
    np.testing.assert_allclose(effect.volumes_now, np.bincount(truth.ravel(), minlength=4) * 1.2**3)
    np.testing.assert_allclose(effect.mu_now[1:], LEVELS[1:], rtol=0.05)
    assert effect.factors_now.shape == (editing_effect.DIRECTIONS,)
    assert 0 < effect.factors_now.min() < effect.factors_now.max() < 1
    assert effect.rms > 1e-3
    np.testing.assert_allclose(read_sample_file(path).mu_per_um, effect.mu_now)


def test_what_is_left_of_the_doubt(path, editor, truth):
    """The file says how uncertain the factors are with the labels as they are now."""
    with h5py.File(path, "r+") as file:
        file["entry/segmentation"].attrs["factors_uncertainty"] = 0.02
    editor = LabelEditor(path)
    assert editor.effect().uncertainty_now == 0.02  # nothing was drawn
    missed = (truth == 3) & (editor.labels != 3)
    editor.paint(0, 15, np.flatnonzero(missed[15]), 3)
    one = editor.effect()
    assert one.uncertainty_before == 0.02
    assert one.uncertainty_now > 1e-3  # the other slices are as doubtful as before
    assert read_sample_file(path).factors_uncertainty == one.uncertainty_now
    for x in range(SHAPE[0]):
        editor.paint(0, x, np.flatnonzero(missed[x]), 3)
    assert editor.effect().uncertainty_now == 0  # no voxel is doubtful any more
    assert read_sample_file(path).factors_uncertainty == 0
    while editor.done:
        editor.undo()
    assert editor.effect().uncertainty_now == 0.02
    assert read_sample_file(path).factors_uncertainty == 0.02


def test_what_refraction_leaves_uncertain_is_left_where_all_is_by_hand(path, truth):
    """Twice the distance to the power of 0.6 is how much more: surfaces lie elsewhere in proportion."""
    uncertain = []
    for distance in (5.0, 10.0):
        with h5py.File(path, "r+") as file:
            file["entry/reconstruction"].attrs["energy_keV"] = 3.5
            file["entry/reconstruction"].attrs["distance_mm"] = distance
        editor = LabelEditor(path)
        for x in range(SHAPE[0]):
            editor.paint(0, x, np.flatnonzero((truth[x] == 3) & (editor.labels[x] != 3)), 3)
        editor.paint(0, 15, np.array([17 * 38 + 19]), 1)
        editor.paint(0, 15, np.array([17 * 38 + 19]), 3)
        uncertain.append(editor.effect().uncertainty_now)
    assert uncertain[0] > 3e-4  # nothing else is doubtful
    assert uncertain[1] / uncertain[0] == pytest.approx(2**0.6, rel=1e-3)


def test_doubts_go_with_the_labels():
    p = np.array([[200, 55, 0], [150, 105, 0], [150, 100, 5]], dtype=np.uint8).T[:, :, None, None]
    labels = np.array([0, 1, 2], dtype=np.uint8)[:, None, None]
    left = doubts_left(p, labels, np.array([False, False, True])[:, None, None])
    assert left[:, :, 0, 0].T.tolist() == [[200, 55, 0], [105, 150, 0], [0, 0, 255]]


def test_mu_from_elsewhere_keeps_its_scale(path, truth):
    """Twice the tomogram's mu in the file: it is twice the tomogram's afterwards, too."""
    with h5py.File(path, "r+") as file:
        file["entry/segmentation/mu"][...] = 2 * LEVELS
    editor = LabelEditor(path)
    for x in range(9, 22):  # liquor that is called crystal
        editor.paint(0, x, np.flatnonzero(truth[x] == 1), 3)
    effect = editor.effect()
    # most of what is now crystal has the level of liquor
    assert effect.mu_now[3] == pytest.approx(2 * LEVELS[1], rel=0.05)
    assert effect.mu_now[1] == pytest.approx(2 * LEVELS[1], rel=0.05)
    np.testing.assert_allclose(read_sample_file(path).mu_per_um, effect.mu_now)


def test_another_program_changed_the_file(path, editor):
    with h5py.File(path, "r+") as file:
        file["entry/segmentation/labels"][0, 0, 0] = 1
    before = path.read_bytes()
    with pytest.raises(ValueError, match="changed by another program"):
        editor.paint(0, 15, np.array([4]), 2)
    assert path.read_bytes() == before
    assert editor.done == []
    assert editor.labels.reshape(-1)[15 * 34 * 38 + 4] != 2


def test_a_crash_while_writing_loses_nothing(path, editor, monkeypatch):
    editor.paint(0, 15, np.array([4]), 2)
    before = path.read_bytes()

    def crash(*_):
        raise OSError("no space left")

    monkeypatch.setattr(editing.LabelEditor, "_write", crash)
    with pytest.raises(ValueError, match="cannot be written"):
        editor.paint(0, 15, np.array([5]), 2)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["tomo.h5"]


def test_files_that_cannot_be_edited(path, tmp_path):
    with h5py.File(path, "r+") as file:
        del file["entry/segmentation"]
    with pytest.raises(ValueError, match="dials.anacor_segment"):
        LabelEditor(path)
    with pytest.raises(ValueError, match="There is no file"):
        LabelEditor(tmp_path / "absent.h5")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written(path, tmp_path):
    shutil.copy(path, tmp_path / "other.h5")
    (tmp_path / "other.h5").chmod(0o444)
    with pytest.raises(ValueError, match="copy it to a folder of yours"):
        LabelEditor(tmp_path / "other.h5")


def test_steps_that_cannot_be(editor):
    for step in (
        lambda: editor.paint(0, 99, np.array([1]), 2),
        lambda: editor.paint(0, 3, np.array([34 * 38]), 2),
        lambda: editor.paint(0, 3, np.array([1]), 9),
        lambda: editor.plane("labels", 3, 0),
        lambda: editor.plane("photons", 0, 0),
        lambda: editor.relabel_body((1, 2, 99), 1),
    ):
        with pytest.raises(ValueError):
            step()
    assert editor.done == []
