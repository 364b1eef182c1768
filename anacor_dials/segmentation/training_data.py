"""Training data: tomograms with their true labels, from which augmented crops are drawn.

A folder of training data holds pairs ``NAME.tomo.h5`` (a reconstruction) and ``NAME.truth.h5``
(labels), with ``NAME.json`` (seed, shape family; optional) beside them, as ``dials.anacor_train``
makes them; or ``tomo.h5`` files of real samples that hold labels themselves. For training and
validation whole samples are separated, not parts of them.

Every crop has a random generator of its own, so that a training can be continued at any step and
gives the same crops.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from anacor_dials.sample.tomogram_files import read_sample_file
from anacor_dials.sample.volumes import DEFAULT_NAMES, LabelVolume, Volume
from anacor_dials.segmentation.coarse_grid import class_shares, context_input
from anacor_dials.segmentation.fringes import N_VIEWS, views
from anacor_dials.segmentation.tiles import sample_box
from anacor_dials.segmentation.working_grid import (
    bin_factors,
    binned_labels,
    binned_values,
    intensity_scale,
)

logger = logging.getLogger("dials.anacor_dials.segmentation.training_data")

TOMO, TRUTH = ".tomo.h5", ".truth.h5"
COUNTED_AS = {"salt": "liquor", "ice": "liquor", "dirt": "liquor", "pin": "loop"}
CENTRES_KEPT = 4000  # voxels of each class at which crops are drawn; limits the memory
AIR_KEPT = 24  # voxels of air around the sample: more than the network is given (AIR_AROUND)


@dataclass(frozen=True, eq=False)
class TrainingVolume:
    """A sample: normalised values and true labels on the working grid, without air far from it.

    Attributes
    ----------
    name : str
    views : array (N_VIEWS, nx, ny, nz) of float16
        The tomogram and its views without fringes (:mod:`.fringes`); air is 0 and the sample 1.
    labels : array (nx, ny, nz) of uint8
    voxel_size_um : (float, float, float)
    names : tuple of str
        Of the labels.
    record : mapping
        How the sample was made (seed, shape, contrast ...), if that is known.
    """

    name: str
    views: NDArray[np.floating]
    labels: NDArray[np.uint8]
    voxel_size_um: tuple[float, float, float]
    names: tuple[str, ...] = DEFAULT_NAMES
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.views.shape != (N_VIEWS, *self.labels.shape) or self.labels.ndim != 3:
            raise ValueError(
                f"{self.name}: {N_VIEWS} views of shape {self.views.shape} and labels {self.labels.shape} differ."
            )

    @property
    def family(self) -> str:
        """The shape family of the crystal; "real" if the sample is not a virtual one."""
        return str(self.record.get("shape", "real"))


def labels_on_grid(labels: LabelVolume, grid: Volume) -> NDArray[np.uint8]:
    """Labels uint8 (nx, ny, nz) at the voxels of another volume.

    Outside of their own volume they are background.

    Both must have the same size of voxels (to 1 %). The origins may differ; the nearest voxel is
    taken.

    Parameters
    ----------
    labels : LabelVolume
    grid : Volume

    Raises
    ------
    ValueError
        If the voxels differ, or the volumes do not overlap.
    """
    if not np.allclose(labels.voxel_size_um, grid.voxel_size_um, rtol=0.01):
        raise ValueError(
            f"The labels have voxels of {labels.voxel_size_um.tolist()} um and the tomogram of "
            f"{grid.voxel_size_um.tolist()} um; they must be the same."
        )
    shift = np.rint(labels.centre - grid.centre).astype(int)  # label index = grid index + shift
    out = np.zeros(grid.shape, dtype=np.uint8)
    theirs, ours = [], []
    for s, n, m in zip(shift, grid.shape, labels.shape, strict=True):
        first, last = max(0, -s), min(n, m - s)
        if first >= last:
            raise ValueError("The labels lie outside of the tomogram; are their origins right?")
        ours.append(slice(first, last))
        theirs.append(slice(first + s, last + s))
    out[tuple(ours)] = labels.values[tuple(theirs)]
    return out


def _in_order(labels: LabelVolume, names: Sequence[str], path: Path) -> NDArray[np.uint8]:
    """The labels renumbered in the order of the names.

    Salt, ice and dirt count as liquor, a pin counts as loop.
    """
    counted = [COUNTED_AS.get(name, name) for name in labels.names]
    missing = [name for name in counted if name not in names]
    if missing:
        raise ValueError(
            f"{path} has the label {missing[0]!r}, which is not among the classes {', '.join(names)}."
        )
    table = np.array([list(names).index(name) for name in counted], dtype=np.uint8)
    return table[labels.values]


def read_record(tomogram: Path) -> dict[str, Any]:
    """How a sample was made, from NAME.json beside NAME.tomo.h5; empty if that is not known."""
    described = tomogram.with_name(f"{tomogram.name.removesuffix(TOMO)}.json")
    return dict(json.loads(described.read_text(encoding="utf-8"))) if described.is_file() else {}


def read_training_volume(
    tomogram: Path, truth: Path | None = None, names: Sequence[str] = DEFAULT_NAMES
) -> TrainingVolume:
    """One sample from its files, without the air that is more than AIR_KEPT voxels away from it.

    Parameters
    ----------
    tomogram : Path
    truth : Path, optional
        The file of the labels, if the file of the tomogram does not hold them.
    names : sequence of str
        Of the classes.

    Raises
    ------
    ValueError
        If one of the two is missing or they do not belong together.
    """
    sample = read_sample_file(tomogram, labels=truth is None)
    if sample.tomogram is None:
        raise ValueError(f"{tomogram} holds no reconstruction to train on.")
    labels = sample.labels if truth is None else read_sample_file(truth, tomogram=False).labels
    if labels is None:
        raise ValueError(f"{truth or tomogram} holds no labels to train on.")
    ordered = LabelVolume(
        _in_order(labels, names, truth or tomogram),
        labels.voxel_size_um,
        labels.centre,
        tuple(names),
    )
    name = tomogram.name.removesuffix(TOMO)
    return training_volume(name, sample.tomogram, ordered, read_record(tomogram))


def training_volume(
    name: str, tomogram: Volume, labels: LabelVolume, record: Mapping[str, Any] | None = None
) -> TrainingVolume:
    """A sample of a tomogram and its labels, without air more than AIR_KEPT voxels away from it.

    Parameters
    ----------
    name : str
    tomogram : Volume
        1/um.
    labels : LabelVolume
    record : mapping, optional

    Raises
    ------
    ValueError
        If nothing in the tomogram stands out of the noise, or the grids do not fit.
    """
    factors = bin_factors(tomogram.voxel_size_um)
    scale = intensity_scale(tomogram.values, tomogram.voxel_size_um)
    values = binned_values(tomogram.values, factors, scale)
    true = binned_labels(labels_on_grid(labels, tomogram), factors, len(labels.names))
    box = sample_box(values, AIR_KEPT)
    values, true = np.ascontiguousarray(values[box]), np.ascontiguousarray(true[box])
    if not values.size:
        raise ValueError(f"{name}: there is nothing but air in it.")
    x, y, z = (tomogram.voxel_size_um * np.array(factors)).tolist()
    return TrainingVolume(
        name, views(values, np.float16), true, (x, y, z), labels.names, dict(record or {})
    )


def find_training_files(folders: Sequence[Path]) -> list[tuple[Path, Path | None]]:
    """(tomogram, truth or None) of every sample in some folders, by name.

    Raises
    ------
    ValueError
        If a folder is absent or holds no training data.
    """
    found: list[tuple[Path, Path | None]] = []
    if not folders:
        raise ValueError("There is no folder of samples to train on; name one.")
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}.")
        here: list[tuple[Path, Path | None]] = []
        for path in sorted(folder.glob("*.h5")):
            if path.name.endswith(TRUTH) or path.name.startswith("."):
                continue
            truth = path.with_name(path.name.removesuffix(TOMO) + TRUTH)
            here.append((path, truth if truth.is_file() else None))
        if not here:
            raise ValueError(
                f"{folder} holds no training data (pairs of NAME{TOMO} and NAME{TRUTH}, or tomo.h5 files "
                "with labels); make some by dials.anacor_train simulate.samples=40."
            )
        found += here
    return found


def read_training_volumes(
    folders: Sequence[Path], names: Sequence[str] = DEFAULT_NAMES, progress: bool = False
) -> list[TrainingVolume]:
    """All samples of some folders, in the order of their files; several are read at a time.

    Parameters
    ----------
    folders : sequence of Path
    names : sequence of str
        Of the classes.
    progress : bool
        Whether a progress bar is shown.
    """
    found = find_training_files(folders)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        volumes = pool.map(lambda files: read_training_volume(files[0], files[1], names), found)
        bar = tqdm(
            volumes,
            "Reading samples",
            len(found),
            unit="sample",
            disable=None if progress else True,
        )
        return list(bar)


def split_samples(
    volumes: Sequence[TrainingVolume], n_validation: int, seed: int
) -> tuple[list[TrainingVolume], list[TrainingVolume]]:
    """(training, validation): whole samples, drawn at random, always the same for a seed.

    Parameters
    ----------
    volumes : sequence of TrainingVolume
    n_validation : int
    seed : int

    Raises
    ------
    ValueError
        If no sample is left for training.
    """
    if not 0 <= n_validation < len(volumes):
        raise ValueError(
            f"{n_validation} of {len(volumes)} samples for validation leave none to train on; make more "
            "samples."
        )
    order = np.random.default_rng([seed, len(volumes)]).permutation(len(volumes))
    held = set(order[:n_validation].tolist())
    return (
        [v for i, v in enumerate(volumes) if i not in held],
        [v for i, v in enumerate(volumes) if i in held],
    )


def class_weights(volumes: Sequence[TrainingVolume], n_classes: int) -> NDArray[np.float64]:
    """Weights (n_classes,) of the cross-entropy: 1 / sqrt(frequency), of mean 1, at most 3."""
    counts = np.zeros(n_classes)
    for volume in volumes:
        counts += np.bincount(volume.labels.ravel(), minlength=n_classes)
    frequency = np.maximum(counts / counts.sum(), 1e-4)
    weights = frequency**-0.5
    return np.minimum(weights / weights.mean(), 3.0)


def turned(volume: NDArray[Any], order: Sequence[int], mirrored: Sequence[bool]) -> NDArray[Any]:
    """A volume (n, cx, cy, cz) with its axes in another order, some of them mirrored.

    Parameters
    ----------
    volume : array (n, cx, cy, cz)
    order : sequence of 3 int
        Of the axes.
    mirrored : sequence of 3 bool
        For the axes in their new order.
    """
    out = volume.transpose(0, *(1 + k for k in order))
    steps = tuple(slice(None, None, -1) if m else slice(None) for m in mirrored)
    return np.ascontiguousarray(out[(slice(None), *steps)])


def turned_back(
    volume: NDArray[Any], order: Sequence[int], mirrored: Sequence[bool]
) -> NDArray[Any]:
    """The inverse of :func:`turned`.

    Parameters
    ----------
    volume : array (n, cx, cy, cz)
    order : sequence of 3 int
    mirrored : sequence of 3 bool
    """
    steps = tuple(slice(None, None, -1) if m else slice(None) for m in mirrored)
    back = np.argsort(order)
    return np.ascontiguousarray(volume[(slice(None), *steps)].transpose(0, *(1 + k for k in back)))


# ---- the pool ------------------------------------------------------------------------------------


@dataclass(eq=False)
class PooledVolume:
    """A sample in the pool, with the input of the coarse pass, its truth and its latest result.

    Attributes
    ----------
    volume : TrainingVolume
    centres : list of array
        For every class some of its voxels (flat indices), at which crops are drawn.
    coarse_input, coarse_shares : array
        As of :mod:`.coarse_grid`.
    context : array (n_classes, cx, cy, cz)
        The latest probabilities of the coarse pass. All classes are equally probable until it has
        seen the sample.
    """

    volume: TrainingVolume
    centres: list[NDArray[np.intp]]
    coarse_input: NDArray[np.float16]
    coarse_shares: NDArray[np.float16]
    context: NDArray[np.float16]

    @classmethod
    def of(cls, volume: TrainingVolume) -> PooledVolume:
        """A sample for the pool."""
        rng = np.random.default_rng(0)
        flat = volume.labels.ravel()
        centres = []
        for label in range(len(volume.names)):
            where = np.flatnonzero(flat == label)
            if where.size > CENTRES_KEPT:
                where = where[rng.integers(0, where.size, CENTRES_KEPT)]
            centres.append(where)
        shares = class_shares(volume.labels, len(volume.names))
        nothing_known = np.full_like(shares, 1 / len(volume.names))
        return cls(volume, centres, context_input(volume.views), shares, nothing_known)


class VolumePool:
    """The samples that a step of the training draws from: fixed ones, and the latest of a stream.

    Sample number k of the stream enters at step (k - size) * every, when the oldest one leaves. So
    the pool depends on the step alone, and a training that is continued sees the same samples.

    Parameters
    ----------
    fixed : sequence of TrainingVolume
        They stay in the pool.
    make : callable, optional
        Returns a fresh sample for a number. It must be picklable. No stream if it is not given.
    size : int
        Samples of the stream in the pool.
    every : float
        Steps from one fresh sample to the next.
    workers : int
        Processes that make fresh samples; 0: this process makes them.
    share : float
        The share of crops from the fixed samples, if there are both.
    """

    def __init__(
        self,
        fixed: Sequence[TrainingVolume],
        make: Callable[[int], TrainingVolume] | None = None,
        size: int = 48,
        every: float = 2.0,
        workers: int = 1,
        share: float = 0.25,
    ) -> None:
        if not fixed and make is None:
            raise ValueError("There are no samples to draw crops from.")
        self.fixed = [PooledVolume.of(volume) for volume in fixed]
        self.make, self.size, self.every, self.share = make, size, every, share
        self.streamed: deque[PooledVolume] = deque(maxlen=size)
        self._executor = (
            ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
            if make is not None and workers
            else None
        )
        self._waiting: deque[Future[TrainingVolume]] = deque()
        self._next = 0  # the number of the sample to be asked for next
        self._entered = 0  # the number of the sample to enter next

    def _ask(self, up_to: int) -> None:
        assert self.make is not None
        while self._executor is not None and self._next < up_to:
            self._waiting.append(self._executor.submit(self.make, self._next))
            self._next += 1

    def advance(self, step: int, progress: bool = False) -> list[PooledVolume]:
        """Brings the pool to a step, and returns the samples that are new in it; waits for them.

        Parameters
        ----------
        step : int
        progress : bool
            Whether a progress bar is shown.
        """
        if self.make is None:
            return []
        last = self.size + int(step / self.every)  # numbers below this have entered
        if not self._waiting and self._entered < last - self.size:
            self._entered = self._next = last - self.size  # taken up again: the oldest are gone
        self._ask(last + 4)
        new = []
        missing = range(self._entered, last)
        for number in tqdm(missing, "Making samples", disable=not progress or len(missing) < 4):
            volume = (
                self._waiting.popleft().result()
                if self._executor is not None
                else self.make(number)
            )
            new.append(PooledVolume.of(volume))
            self.streamed.append(new[-1])
        self._entered = last
        return new

    def draw(self, rng: np.random.Generator) -> PooledVolume:
        """A sample at random."""
        if self.fixed and (not self.streamed or rng.random() < self.share):
            return self.fixed[int(rng.integers(len(self.fixed)))]
        return self.streamed[int(rng.integers(len(self.streamed)))]

    @property
    def entered(self) -> int:
        """How many fresh samples have entered so far."""
        return self._entered

    def pooled(self) -> list[PooledVolume]:
        """The samples that are in the pool now."""
        return [*self.fixed, *self.streamed]

    def volumes(self) -> list[TrainingVolume]:
        """The samples that are in the pool now, without what belongs to the coarse pass."""
        return [pooled.volume for pooled in self.pooled()]

    def close(self) -> None:
        """Ends the processes that make samples."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
