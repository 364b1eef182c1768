"""Labels that people made: which voxels, by whom and when. No program changes them.

In a ``tomo.h5``::

    /entry/segmentation/by_hand        uint8 (nx, ny, nz)  0: by a program; k: by hand, in session k
    /entry/segmentation/by_hand_users  strings (n,)        user name of session 1 ... n
    /entry/segmentation/by_hand_times  strings (n,)        when it was, ISO 8601, UTC

The labels themselves are those of /entry/segmentation/labels.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.hdf5_files import open_hdf5
from anacor_dials.sample.volumes import DEFAULT_NAMES

MOST_SESSIONS = 255  # numbers in a byte
CHUNK = 64  # voxels on edge, as of the labels


@dataclass(frozen=True)
class EditingSession:
    """Who made labels by hand, and when (ISO 8601, UTC)."""

    user: str
    time: str

    @classmethod
    def now(cls) -> EditingSession:
        """That of the user who runs this program, at this moment."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a number without a name
            user = str(os.getuid())
        return cls(user, datetime.now(timezone.utc).isoformat(timespec="seconds"))


@dataclass(frozen=True, eq=False)
class HandMadeLabels:
    """Labels, some of which people made.

    Attributes
    ----------
    labels : array (nx, ny, nz) of uint8
        Only those made by hand count.
    session : array (nx, ny, nz) of uint8
        The number, from 1 on, of the session in which a person labelled the voxel; 0 if nobody did.
    names : tuple of str
        Of the labels.
    sessions : tuple of EditingSession
        Who and when, in the order of their numbers.
    """

    labels: NDArray[np.uint8]
    session: NDArray[np.uint8]
    names: tuple[str, ...]
    sessions: tuple[EditingSession, ...]

    def __post_init__(self) -> None:
        if self.labels.shape != self.session.shape:
            raise ValueError(
                f"The record of what is by hand has the shape {self.session.shape} and the labels have "
                f"{self.labels.shape}."
            )
        largest = int(self.session.max(initial=0))
        if largest > len(self.sessions):
            raise ValueError(
                f"Voxels were made by hand in session {largest} and {len(self.sessions)} sessions are named."
            )

    @property
    def by_hand(self) -> NDArray[np.bool_]:
        """Which voxels (nx, ny, nz) a person labelled."""
        return self.session > 0

    @property
    def n_voxels(self) -> int:
        """How many voxels people labelled."""
        return int(np.count_nonzero(self.session))

    def translated(self, names: Sequence[str]) -> HandMadeLabels:
        """The same with labels numbered as other names are.

        Raises ValueError where a label that was used is not among them.
        """
        if tuple(names) == self.names:
            return self
        used = {int(label) for label in np.unique(self.labels[self.by_hand])}
        table = np.zeros(256, dtype=np.uint8)
        for label in used:
            if self.names[label] not in names:
                raise ValueError(
                    f"Voxels were labelled by hand as {self.names[label]}, which is not among the labels "
                    f"{', '.join(names)}."
                )
            table[label] = list(names).index(self.names[label])
        return HandMadeLabels(table[self.labels], self.session, tuple(names), self.sessions)

    def put_into(self, labels: NDArray[np.uint8], names: Sequence[str]) -> NDArray[np.uint8]:
        """Labels (nx, ny, nz), numbered as names are, with those made by hand in their places."""
        if labels.shape != self.labels.shape:
            raise ValueError(
                f"Labels were made by hand on {' x '.join(map(str, self.labels.shape))} voxels, and these are "
                f"{' x '.join(map(str, labels.shape))}."
            )
        mine = self.translated(names)
        out: NDArray[np.uint8] = np.where(mine.by_hand, mine.labels, labels)
        return out

    def with_more(
        self, labels: NDArray[np.uint8], where: NDArray[np.bool_], session: EditingSession
    ) -> HandMadeLabels:
        """These labels and those that were made in a further session.

        Parameters
        ----------
        labels : array (nx, ny, nz) of uint8
            With the same numbers as here.
        where : array (nx, ny, nz) of bool
            Which of them were made by hand.
        session : EditingSession
        """
        sessions, number = numbered(self.sessions, session)
        return HandMadeLabels(
            np.where(where, labels, self.labels).astype(np.uint8),
            np.where(where, np.uint8(number), self.session),
            self.names,
            sessions,
        )

    def __repr__(self) -> str:
        users = ", ".join(sorted({s.user for s in self.sessions}))
        return f"HandMadeLabels({self.n_voxels} voxels by {users})"


def numbered(
    sessions: Sequence[EditingSession], session: EditingSession
) -> tuple[tuple[EditingSession, ...], int]:
    """The sessions with one more, and its number.

    If there are MOST_SESSIONS already, it takes the place of the last one.
    """
    if len(sessions) < MOST_SESSIONS:
        return (*sessions, session), len(sessions) + 1
    return (*sessions[:-1], session), MOST_SESSIONS


def nothing_by_hand(shape: Sequence[int], names: Sequence[str]) -> HandMadeLabels:
    """No voxel made by hand."""
    zeros = np.zeros(tuple(shape), dtype=np.uint8)
    return HandMadeLabels(zeros, zeros, tuple(names), ())


def _texts(item: Any) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in np.ravel(item[()])]


def read_hand_made(path: str | os.PathLike[str]) -> HandMadeLabels | None:
    """The labels of a ``tomo.h5`` that people made; None if there are none.

    Raises
    ------
    ValueError
        If the record is damaged.
    """
    with open_hdf5(path) as file:
        record, labels = (
            file.get("entry/segmentation/by_hand"),
            file.get("entry/segmentation/labels"),
        )
        if record is None or labels is None:
            return None
        users, times = (
            _texts(file[f"entry/segmentation/by_hand_{what}"])
            if f"entry/segmentation/by_hand_{what}" in file
            else []
            for what in ("users", "times")
        )
        names = (
            _texts(file["entry/segmentation/names"])
            if "entry/segmentation/names" in file
            else DEFAULT_NAMES
        )
        session = np.asarray(record[()], dtype=np.uint8)
        if not session.any():
            return None
        try:
            sessions = tuple(EditingSession(*s) for s in zip(users, times, strict=True))
            return HandMadeLabels(
                np.asarray(labels[()], dtype=np.uint8), session, tuple(names), sessions
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def write_hand_made(group: h5py.Group, hand_made: HandMadeLabels) -> None:
    """Writes the record into the group segmentation of an open ``tomo.h5``.

    An earlier record is replaced.
    """
    names = ("by_hand", "by_hand_users", "by_hand_times")
    for name in names:
        if name in group:
            del group[name]
    group.create_dataset(
        "by_hand",
        data=hand_made.session,
        chunks=tuple(min(CHUNK, n) for n in hand_made.session.shape),
        compression="gzip",
        compression_opts=1,
        shuffle=True,
    )
    write_sessions(group, hand_made.sessions)


def write_sessions(group: h5py.Group, sessions: Sequence[EditingSession]) -> None:
    """Writes who labelled voxels and when, beside the record of which ones."""
    for name, values in (
        ("by_hand_users", [s.user for s in sessions]),
        ("by_hand_times", [s.time for s in sessions]),
    ):
        if name in group:
            del group[name]
        group[name] = np.array(values, dtype=h5py.string_dtype())
