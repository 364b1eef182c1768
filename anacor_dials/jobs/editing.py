"""A person corrects labels: what was drawn, undo, what follows from it, and the file.

This module knows nothing of pages and pictures; :mod:`anacor_dials.report.edit_server` shows it in
a browser.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.jobs.editing_effect import (
    Effect,
    doubts_left,
    factors_of_labels,
    uncertainty_of_labels,
)
from anacor_dials.jobs.segment import (
    SegmentationSettings,
    edge_settings,
    load_source,
    segment_tomogram,
)
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.hand_made import (
    EditingSession,
    HandMadeLabels,
    nothing_by_hand,
    numbered,
    write_hand_made,
)
from anacor_dials.sample.output_files import whole_file
from anacor_dials.sample.previews import renew_labels
from anacor_dials.sample.tomogram_files import read_sample_file, write_unseen_borders
from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.segmentation.clean_up import CROSS
from anacor_dials.segmentation.doubtful_places import (
    DoubtfulPlace,
    around,
    doubt_of,
    doubtful_places,
    unseen_border,
)
from anacor_dials.segmentation.fine_voxels import mean_mu
from anacor_dials.segmentation.propagation import PropagationSettings, followed, sam2_propagation
from anacor_dials.segmentation.sam2_predictor import following_predictor
from anacor_dials.segmentation.working_grid import intensity_scale, voxel_at_full_size

logger = logging.getLogger("dials.anacor_dials.jobs.editing")

VOXELS_LOOKED_AT = 8_000_000  # for doubtful places
PLANES = {0: (1, 2), 1: (0, 2), 2: (0, 1)}  # the two axes of a slice across an axis


@dataclass(frozen=True)
class EditingSettings:
    """How labels are corrected.

    Parameters
    ----------
    segmentation : SegmentationSettings
        How the network labels the sample again after it has learned.
    propagation : PropagationSettings
        How far strokes are continued into neighbouring slices.
    follow_by_sam2 : bool
        Whether SAM-2 takes part in it.
    user : str, optional
        Who draws; the name of the user if not given.
    """

    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)
    propagation: PropagationSettings = field(default_factory=PropagationSettings)
    follow_by_sam2: bool = True
    user: str | None = None


def place_of_slice(shape: tuple[int, int, int], axis: int, index: int) -> tuple[int | slice, ...]:
    """What a volume is indexed by for a slice. Raises ValueError where there is none.

    Parameters
    ----------
    shape : (int, int, int)
        Of the volume.
    axis, index : int
    """
    if axis not in PLANES or not 0 <= index < shape[axis]:
        raise ValueError(f"There is no slice {index} across axis {axis} of {shape}.")
    return tuple(index if a == axis else slice(None) for a in range(3))


@dataclass(frozen=True, eq=False)
class Change:
    """One step: which voxels it changed, and their labels and records before and after it.

    Attributes
    ----------
    what : str
        What was done, for the page.
    voxels : array (n,) of int
        Flat indices.
    labels_before, labels_after : array (n,) of uint8
    session_before, session_after : array (n,) of uint8
        As of :class:`anacor_dials.sample.hand_made.HandMadeLabels`.
    """

    what: str
    voxels: NDArray[np.int64]
    labels_before: NDArray[np.uint8]
    labels_after: NDArray[np.uint8]
    session_before: NDArray[np.uint8]
    session_after: NDArray[np.uint8]


class LabelEditor:
    """The labels of a ``tomo.h5`` while a person corrects them.

    Every step is in the file when its method returns. Only one thread at a time changes the labels.

    Parameters
    ----------
    path : path
    settings : EditingSettings, optional

    Raises
    ------
    ValueError
        If the file has no tomogram or no labels, or cannot be written; in steps, if the step is not
        possible.
    """

    def __init__(
        self, path: str | os.PathLike[str], settings: EditingSettings | None = None
    ) -> None:
        self.path, self.settings = Path(path), settings or EditingSettings()
        self.source = load_source(path)
        sample = read_sample_file(path, tomogram=False, probabilities=True)
        if sample.labels is None:
            raise ValueError(
                f"{path} holds no labels yet; make some by dials.anacor_segment {path} "
                f"output.tomogram={path}."
            )
        _require_writable(self.path)
        self.tomogram, self.first = self.source.tomogram, sample.labels
        self.names, self.shape = sample.labels.names, sample.labels.shape
        self.crystal = sample.labels.label("crystal")
        self.labels = sample.labels.values.copy()
        self.scale = intensity_scale(self.tomogram.values, self.tomogram.voxel_size_um)
        made = self.source.hand_made or nothing_by_hand(self.shape, self.names)
        self.session = made.session.copy()
        self.n_by_hand = made.n_voxels
        who = EditingSession.now()
        if self.settings.user:
            who = dataclasses.replace(who, user=self.settings.user)
        self.sessions, self.number = numbered(made.sessions, who)
        self.probabilities = sample.probabilities
        # what programs said, for the eraser; where people drew in earlier sessions, if it is known
        self.machine = self.labels.copy()
        if self.probabilities is not None and self.session.any():
            before = self.session > 0
            self.machine[before] = self.probabilities[:, before].argmax(axis=0)
        self.mu = np.full(len(self.names), np.nan)
        if sample.mu_per_um is not None:
            self.mu = sample.mu_per_um
        self.mu_first, self.energy_keV = self.mu.copy(), sample.energy_keV
        self._medians_first: FloatArray | None = None
        self.done: list[Change] = []
        self.undone: list[Change] = []
        self.lock = threading.RLock()
        self._stamp = _stamp(self.path)
        self._network_unsaved = self._learned = False
        self.uncertainty_first = self.uncertainty = sample.factors_uncertainty
        self.unseen_borders = tuple(sample.unseen_borders)

    # ---- what can be seen ------------------------------------------------------------------------

    def normalised(self, part: Any = slice(None)) -> NDArray[np.float32]:
        """Values of a part of the tomogram, air 0 and the sample 1."""
        return self.scale.normalised(self.tomogram.values[part])

    def plane(self, kind: str, axis: int, index: int) -> NDArray[Any]:
        """A slice across an axis.

        Parameters
        ----------
        kind : str
            values (float32, normalised), labels, by_hand or doubt (uint8).
        axis : int
        index : int
        """
        place = place_of_slice(self.shape, axis, index)
        if kind == "values":
            return self.normalised(place)
        if kind == "labels":
            return self.labels[place]
        if kind == "by_hand":
            return (self.session[place] > 0).astype(np.uint8)
        if kind == "doubt":
            if self.probabilities is None:
                return np.zeros(self.labels[place].shape, dtype=np.uint8)
            # copied once: across Z its values lie far apart in the memory
            p = np.ascontiguousarray(self.probabilities[(slice(None), *place)])
            doubt = doubt_of(p[:, None], self.crystal)[0]
            return np.where(self.session[place] > 0, 0, doubt).astype(np.uint8)
        raise ValueError(
            f"Slices of {kind!r} are not known; ask for values, labels, by_hand, doubt."
        )

    def places(self) -> list[DoubtfulPlace]:
        """The doubtful places: borders that do not show, and uncertain labels, the worst first.

        Of files without probabilities only borders are known. In large volumes only every second,
        third ... voxel along each axis is looked at.
        """
        borders = [
            unseen_border(voxel, self.names)
            for voxel in self.unseen_borders
            if not self.session[around(voxel)].any()
        ]
        if self.probabilities is None:
            return borders
        step = max(1, round((self.labels.size / VOXELS_LOOKED_AT) ** (1 / 3)))
        thin = (slice(step // 2, None, step),) * 3
        found = doubtful_places(
            np.ascontiguousarray(self.probabilities[(slice(None), *thin)]),
            self.crystal,
            self.session[thin] > 0,
            step=step,
        )
        return borders + [
            dataclasses.replace(place, voxel=voxel_at_full_size(place.voxel, (step, step, step)))
            for place in found
        ]

    def hand_made(self) -> HandMadeLabels:
        """The labels that are by hand now."""
        return HandMadeLabels(self.labels, self.session, self.names, self.sessions)

    def label_volume(self) -> LabelVolume:
        """The labels as they are now."""
        t = self.tomogram
        return LabelVolume(self.labels, t.voxel_size_um, t.centre, self.names)

    # ---- steps -----------------------------------------------------------------------------------

    def paint(self, axis: int, index: int, voxels: NDArray[np.integer], label: int) -> int:
        """Gives voxels of a slice a label, by hand; returns how many were changed.

        Parameters
        ----------
        axis, index : int
            The slice.
        voxels : array of int
            Flat indices within the slice.
        label : int
        """
        self._require_label(label)
        where = self._in_volume(axis, index, voxels)
        n = where.size
        return self._change(
            f"{self.names[label]} by hand",
            where,
            np.full(n, label, dtype=np.uint8),
            np.full(n, self.number, dtype=np.uint8),
        )

    def erase(self, axis: int, index: int, voxels: NDArray[np.integer]) -> int:
        """Gives voxels their labels of the programs back; returns how many were changed.

        Parameters
        ----------
        axis, index : int
            The slice.
        voxels : array of int
            Flat indices within the slice.
        """
        where = self._in_volume(axis, index, voxels)
        where = where[self.session.reshape(-1)[where] > 0]
        labels = self.machine.reshape(-1)[where]
        return self._change("eraser", where, labels, np.zeros(where.size, dtype=np.uint8))

    def relabel_body(self, voxel: Sequence[int], label: int) -> int:
        """Gives a whole body another label, by hand; returns how many voxels changed.

        Parameters
        ----------
        voxel : (int, int, int)
            A voxel of the body.
        label : int
        """
        self._require_label(label)
        x, y, z = (int(v) for v in voxel)
        if not all(0 <= v < n for v, n in zip((x, y, z), self.shape, strict=True)):
            raise ValueError(f"There is no voxel {x}, {y}, {z} in a volume of {self.shape}.")
        old = int(self.labels[x, y, z])
        if old == label or old == 0:
            raise ValueError(
                f"The voxel {x}, {y}, {z} is {self.names[old]}; choose a body of another material."
            )
        bodies, _ = scipy.ndimage.label(self.labels == old, CROSS)
        where = np.flatnonzero(bodies == bodies[x, y, z])
        return self._change(
            f"a body of {self.names[old]} is {self.names[label]}",
            where,
            np.full(where.size, label, dtype=np.uint8),
            np.full(where.size, self.number, dtype=np.uint8),
        )

    def follow(self, axis: int = 0) -> int:
        """Continues what was drawn in this session into its surroundings.

        Returns how many voxels changed. axis: across which SAM-2 follows the materials.
        """
        by_hand = self.session > 0
        contradicted = (self.session == self.number) & (self.labels != self.machine)
        if not contradicted.any():
            raise ValueError("Nothing that was drawn differs from the labels; draw first.")
        propagation = None
        segmentation, stiffness = self.settings.segmentation, self.settings.propagation.stiffness
        if self.settings.follow_by_sam2:
            predictor = following_predictor(segmentation.sam2, segmentation.inference.device)
            if predictor is not None:
                propagation = sam2_propagation(predictor, axis, stiffness)
        box = self._around(contradicted)
        labels = self.labels.copy()
        labels[box] = followed(
            self.normalised(box),
            self.labels[box],
            by_hand[box],
            contradicted[box],
            self.settings.propagation,
            propagation,
        )
        return self._machine_labels("strokes go on", labels)

    def _around(self, where: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
        """The part of the volume that decides how labels are continued from some voxels."""
        margin = 2 * self.settings.propagation.reach + 16
        x, y, z = (
            slice(max(0, part.start - margin), min(n, part.stop + margin))
            for part, n in zip(
                scipy.ndimage.find_objects(where.astype(np.uint8))[0], self.shape, strict=True
            )
        )
        return x, y, z

    def learn(self) -> int:
        """The network learns from the hand-made labels, and labels the rest again.

        Returns how many voxels changed.
        """
        source = dataclasses.replace(self.source, hand_made=self.hand_made())
        found = segment_tomogram(
            source, dataclasses.replace(self.settings.segmentation, keep_probabilities=True), True
        )
        if found.labels.names != self.names:
            raise ValueError(
                f"The network's labels are {', '.join(found.labels.names)} and those of the file "
                f"{', '.join(self.names)}; they must be the same to learn."
            )
        with self.lock:
            if self.probabilities is not None and found.probabilities is not None:
                self.probabilities = found.probabilities
                self._learned = True
            self.machine = found.labels.values.copy()
            self.unseen_borders = found.unseen_borders
            self._network_unsaved = True
            return self._machine_labels("the network has learned", found.labels.values)

    def undo(self) -> str:
        """Takes the last step back, and returns what it was. The number of steps is not limited."""
        return self._go(self.done, self.undone, back=True)

    def redo(self) -> str:
        """Does the step again that was taken back last, and returns what it was."""
        return self._go(self.undone, self.done, back=False)

    def _go(self, taken: list[Change], given: list[Change], back: bool) -> str:
        with self.lock:
            if not taken:
                raise ValueError(f"There is nothing to {'undo' if back else 'redo'}.")
            change = taken[-1]
            labels = change.labels_before if back else change.labels_after
            session = change.session_before if back else change.session_after
            self._set(change.voxels, labels, session)
            given.append(taken.pop())
            return change.what

    def _require_label(self, label: int) -> None:
        if not 0 <= label < len(self.names):
            raise ValueError(f"There is no label {label}; labels are 0 to {len(self.names) - 1}.")

    def _in_volume(self, axis: int, index: int, voxels: NDArray[np.integer]) -> NDArray[np.int64]:
        """Flat indices in the volume, of flat indices in a slice; each once."""
        place_of_slice(self.shape, axis, index)
        a, b = PLANES[axis]
        inside = np.unique(np.asarray(voxels, dtype=np.int64))
        if inside.size and not 0 <= inside[0] <= inside[-1] < self.shape[a] * self.shape[b]:
            raise ValueError("Voxels outside of the slice were drawn.")
        place = [np.full(inside.size, index, dtype=np.int64)] * 3
        place[a], place[b] = np.divmod(inside, self.shape[b])
        where: NDArray[np.int64] = np.ravel_multi_index(tuple(place), self.shape).astype(np.int64)
        return where

    def _machine_labels(self, what: str, labels: NDArray[np.uint8]) -> int:
        """Takes over labels of a program, except where a person made them."""
        new = np.where(self.session > 0, self.labels, labels)
        where = np.flatnonzero(new != self.labels)
        return self._change(what, where, new.reshape(-1)[where], self.session.reshape(-1)[where])

    def _change(
        self,
        what: str,
        where: NDArray[np.int64],
        labels: NDArray[np.uint8],
        session: NDArray[np.uint8],
    ) -> int:
        with self.lock:
            old, before = self.labels.reshape(-1)[where], self.session.reshape(-1)[where]
            differs = (old != labels) | (before != session)
            where, labels, session = where[differs], labels[differs], session[differs]
            if not where.size:
                if self._network_unsaved:
                    self.save()
                return 0
            change = Change(what, where, old[differs], labels, before[differs], session)
            self._set(where, labels, session)
            self.done.append(change)
            self.undone.clear()
            return int(where.size)

    def _set(
        self, where: NDArray[np.int64], labels: NDArray[np.uint8], session: NDArray[np.uint8]
    ) -> None:
        """Changes voxels and saves; if the file cannot be written, nothing is changed."""
        flat, record = self.labels.reshape(-1), self.session.reshape(-1)
        old, before = flat[where], record[where]
        flat[where], record[where] = labels, session
        try:
            self.save(where)
        except ValueError:
            flat[where], record[where] = old, before
            raise
        self.n_by_hand += int(np.count_nonzero(session)) - int(np.count_nonzero(before))

    # ---- the file --------------------------------------------------------------------------------

    def save(self, where: NDArray[np.int64] | None = None) -> None:
        """Writes labels, mu and the record: a whole new file takes the place of the old one.

        where: flat indices of what changed; None: everything is written.

        Raises
        ------
        ValueError
            If another program has changed the file in the meantime, or it cannot be written.
        """
        with self.lock:
            if _stamp(self.path) != self._stamp:
                raise ValueError(
                    f"{self.path} was changed by another program since it was opened here, so that nothing was "
                    "saved; open it anew."
                )
            try:
                with whole_file(self.path) as temporary:
                    shutil.copyfile(self.path, temporary)
                    with h5py.File(temporary, "r+") as file:
                        self._write(file["entry/segmentation"], where)
                    shutil.copymode(self.path, temporary)
                    with open(temporary, "rb") as written:
                        os.fsync(written.fileno())
            except OSError as error:
                raise ValueError(f"{self.path} cannot be written ({error}).") from None
            self._stamp = _stamp(self.path)

    def _write(self, group: h5py.Group, where: NDArray[np.int64] | None) -> None:
        box: Any = tuple(slice(0, n) for n in self.shape)
        if where is not None and where.size:
            places = np.unravel_index(where, self.shape)
            box = tuple(slice(int(p.min()), int(p.max()) + 1) for p in places)
        if where is None or where.size:
            group["labels"][box] = self.labels[box]
            renew_labels(group.parent, self.labels, box)
        if "by_hand" not in group or len(group.get("by_hand_users", ())) != len(self.sessions):
            write_hand_made(group, self.hand_made())
        elif where is None or where.size:
            group["by_hand"][box] = self.session[box]
        if self._network_unsaved:
            if "probabilities" in group:
                group["probabilities"][...] = self.probabilities
            write_unseen_borders(group, self.unseen_borders)
            self._network_unsaved = False
        if "mu" in group:
            group["mu"][...] = self.mu
        if self.uncertainty is not None:
            group.attrs["factors_uncertainty"] = self.uncertainty
        elif "factors_uncertainty" in group.attrs:
            del group.attrs["factors_uncertainty"]

    # ---- what it is worth ------------------------------------------------------------------------

    def effect(self) -> Effect:
        """What the corrections change in volumes, mu, factors and their uncertainty.

        mu and the uncertainty go into the file, too.
        """
        with self.lock:
            now = LabelVolume(
                self.labels.copy(), self.tomogram.voxel_size_um, self.tomogram.centre, self.names
            )
        mu = self._mu_of(now)
        uncertainty = self.uncertainty_first
        if self.probabilities is not None and (self.done or self._learned):
            doubts = doubts_left(self.probabilities, now.values, self.session > 0)
            surfaces_um = edge_settings(self.source).uncertain_um
            uncertainty = uncertainty_of_labels(doubts, now, mu, surfaces_um)
        if not np.array_equal(mu, self.mu, equal_nan=True) or uncertainty != self.uncertainty:
            with self.lock:
                self.mu, self.uncertainty = mu, uncertainty
                self.save(np.empty(0, dtype=np.int64))
        volume = now.voxel_volume_um3
        return Effect(
            self.names,
            np.asarray(volume * self.first.counts(), dtype=np.float64),
            np.asarray(volume * now.counts(), dtype=np.float64),
            self.mu_first,
            mu,
            factors_of_labels(self.first, self.mu_first),
            factors_of_labels(now, mu),
            self.uncertainty_first,
            uncertainty,
        )

    def _mu_of(self, now: LabelVolume) -> FloatArray:
        """mu (n,) in 1/um with the present labels.

        It is the mu of the file, times the change of the tomogram's median in each material. So mu
        from another source keeps its scale, and a material that nobody changed keeps its mu.
        """
        mu = self.mu_first.copy()
        known = self.source.paganin_delta_beta is None and self.tomogram.quantitative
        if not known or np.array_equal(now.values, self.first.values):
            return mu
        if self._medians_first is None:
            self._medians_first = mean_mu(self.tomogram.values, self.first)
        medians = mean_mu(self.tomogram.values, now)
        for label in range(1, len(mu)):
            if not np.isfinite(medians[label]):
                continue
            first = self._medians_first[label]
            if not np.isfinite(mu[label]):
                mu[label] = medians[label]
            elif np.isfinite(first) and first > 0 and medians[label] > 0:
                mu[label] *= medians[label] / first
        return mu


def _stamp(path: Path) -> tuple[int, int, int]:
    """Number, time and size of a file: one of them changes when it is written."""
    state = path.stat()
    return state.st_ino, state.st_mtime_ns, state.st_size


def _require_writable(path: Path) -> None:
    """Raises ValueError if a file cannot be replaced."""
    if not os.access(path, os.W_OK) or not os.access(path.absolute().parent, os.W_OK):
        raise ValueError(
            f"{path} cannot be written here, and every step is saved into it; copy it to a folder of yours."
        )
