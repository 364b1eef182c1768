"""Labels that people made: the record in tomo.h5, and how it is joined with other labels."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from anacor_dials.sample.hand_made import (
    MOST_SESSIONS,
    EditingSession,
    HandMadeLabels,
    nothing_by_hand,
    numbered,
    read_hand_made,
)
from anacor_dials.sample.tomogram_files import (
    SampleFile,
    read_sample_file,
    write_sample,
    write_sample_file,
)

ANNA = EditingSession("anna", "2026-01-01T10:00:00+00:00")
BEN = EditingSession("Bénédicte", "2026-01-02T10:00:00+00:00")
NAMES = ("background", "liquor", "loop", "crystal")


@pytest.fixture
def hand_made(sample_labels):
    session = np.zeros(sample_labels.shape, dtype=np.uint8)
    session[8, :, :], session[:, 12, 3:9] = 1, 2
    return HandMadeLabels(sample_labels.values, session, NAMES, (ANNA, BEN))


def test_the_record_comes_back(tmp_path, sample_labels, hand_made):
    write_sample(
        tmp_path / "a.h5",
        SampleFile(tmp_path / "a.h5", labels=sample_labels, hand_made=hand_made),
    )
    back = read_hand_made(tmp_path / "a.h5")
    np.testing.assert_array_equal(back.session, hand_made.session)
    np.testing.assert_array_equal(back.labels, sample_labels.values)
    assert (back.names, back.sessions) == (NAMES, (ANNA, BEN))
    assert back.n_voxels == 24 * 28 + 19 * 6
    # the rest of the file is as without
    np.testing.assert_array_equal(
        read_sample_file(tmp_path / "a.h5").labels.values, sample_labels.values
    )


def test_a_file_without_record(tmp_path, sample_labels):
    write_sample_file(tmp_path / "a.h5", labels=sample_labels)
    assert read_hand_made(tmp_path / "a.h5") is None
    empty = nothing_by_hand(sample_labels.shape, NAMES)
    write_sample(
        tmp_path / "b.h5",
        SampleFile(tmp_path / "b.h5", labels=sample_labels, hand_made=empty),
    )
    assert read_hand_made(tmp_path / "b.h5") is None


def test_a_damaged_record_is_named(tmp_path, sample_labels, hand_made):
    write_sample(
        tmp_path / "a.h5",
        SampleFile(tmp_path / "a.h5", labels=sample_labels, hand_made=hand_made),
    )
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["entry/segmentation/by_hand_users"], file["entry/segmentation/by_hand_times"]
    with pytest.raises(ValueError, match=r"a\.h5: Voxels were made by hand in session 2 and 0"):
        read_hand_made(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["entry/segmentation/by_hand"]
        file["entry/segmentation/by_hand"] = hand_made.session[1:]
    with pytest.raises(ValueError, match="shape"):
        read_hand_made(tmp_path / "a.h5")


def test_labels_are_renumbered_by_their_names(sample_labels, hand_made):
    others = ("background", "crystal", "loop", "liquor")
    machine = np.zeros(sample_labels.shape, dtype=np.uint8)
    mixed = hand_made.put_into(machine, others)
    by_hand = hand_made.by_hand
    assert not mixed[~by_hand].any()
    for label, name in enumerate(others):
        np.testing.assert_array_equal(
            mixed[by_hand] == label, sample_labels.values[by_hand] == NAMES.index(name)
        )
    assert not machine.any()
    with pytest.raises(ValueError, match="labelled by hand as loop"):
        hand_made.translated(("background", "liquor", "crystal"))
    with pytest.raises(ValueError, match="voxels"):
        hand_made.put_into(machine[1:], NAMES)


def test_more_by_hand(sample_labels, hand_made):
    where = np.zeros(sample_labels.shape, dtype=bool)
    where[8:10, 5, 5] = True
    labels = np.full(sample_labels.shape, 2, dtype=np.uint8)
    more = hand_made.with_more(labels, where, EditingSession("carla", "later"))
    assert [s.user for s in more.sessions] == ["anna", "Bénédicte", "carla"]
    np.testing.assert_array_equal(more.session == 3, where)
    assert np.all(more.labels[where] == 2)
    np.testing.assert_array_equal(more.labels[~where], hand_made.labels[~where])
    np.testing.assert_array_equal(hand_made.session[8:10, 5, 5], [1, 0])


def test_sessions_beyond_the_last_number_join_it():
    sessions, number = numbered([ANNA] * MOST_SESSIONS, BEN)
    assert (len(sessions), number, sessions[-1]) == (MOST_SESSIONS, MOST_SESSIONS, BEN)
    session = EditingSession.now()
    assert session.user
    assert session.time.endswith("+00:00")
