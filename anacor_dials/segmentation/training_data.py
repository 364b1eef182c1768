"""Training data: tomograms with their true labels, from which augmented crops are drawn.

A folder of training data holds pairs ``NAME.tomo.h5`` (a reconstruction) and ``NAME.truth.h5`` (labels),
with ``NAME.json`` (seed, shape family; optional) beside them, as ``dials.anacor_train`` makes them; or
``tomo.h5`` files of real samples that hold labels themselves. Volumes are split as whole samples.

Randomness is drawn first and from a generator of its own for every crop, so that training can be
taken up anywhere and gives the same crops.
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
import scipy.ndimage
from numpy.typing import NDArray
from tqdm import tqdm

from anacor_dials.sample.tomogram_files import read_sample_file
from anacor_dials.sample.volumes import DEFAULT_NAMES, LabelVolume, Volume
from anacor_dials.segmentation.coarse_grid import BIN, class_shares, context_input
from anacor_dials.segmentation.fringes import LENGTHS, N_VIEWS, views
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
CENTRES_KEPT = 4000  # voxels of each class about which crops are drawn
CENTRED = 0.75  # the share of crops that are centred on a voxel of a class drawn at random
AIR_KEPT = 24  # voxels of air around the sample


@dataclass(frozen=True, eq=False)
class TrainingVolume:
    """One sample: normalised values and true labels on the working grid, as far as the sample reaches.

    views: float16 (N_VIEWS, nx, ny, nz), air 0 and sample 1: the tomogram, then without its fringes
    (:mod:`.fringes`); labels: uint8 (nx, ny, nz); voxel_size_um: (3,).
    record: how the sample was made (seed, shape, contrast ...), where that is known.
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
        """The shape family of the crystal; "real" where the sample is not a virtual one."""
        return str(self.record.get("shape", "real"))


def labels_on_grid(labels: LabelVolume, grid: Volume) -> NDArray[np.uint8]:
    """The labels uint8 (nx, ny, nz) at the voxels of another volume; background outside of their own.

    Both must have the same size of voxel (to 1 %); their origins may lie anywhere and the nearest voxel
    is taken. Raises ValueError for other voxels.
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
    """The labels renumbered as the names are ordered; salt, ice and dirt count as liquor, a pin as loop."""
    counted = [COUNTED_AS.get(name, name) for name in labels.names]
    missing = [name for name in counted if name not in names]
    if missing:
        raise ValueError(
            f"{path} has the label {missing[0]!r}, which is not among the classes {', '.join(names)}."
        )
    table = np.array([list(names).index(name) for name in counted], dtype=np.uint8)
    return table[labels.values]


def read_record(tomogram: Path) -> dict[str, Any]:
    """How a sample was made, from NAME.json beside NAME.tomo.h5; empty where that is not known."""
    described = tomogram.with_name(f"{tomogram.name.removesuffix(TOMO)}.json")
    return dict(json.loads(described.read_text(encoding="utf-8"))) if described.is_file() else {}


def read_training_volume(
    tomogram: Path, truth: Path | None = None, names: Sequence[str] = DEFAULT_NAMES
) -> TrainingVolume:
    """One sample from its files, without the air that is more than AIR_KEPT voxels away from it.

    truth: None where the tomogram's file holds the labels itself.
    Raises ValueError where one of the two is missing or they do not belong together.
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
    """A sample of a tomogram in 1/um and its labels, without the air that is more than AIR_KEPT voxels away.

    Raises ValueError where the tomogram has no scale (nothing stands out of the noise) or the grids do not fit.
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

    Raises ValueError where a folder is absent or holds no training data.
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
    """All samples of some folders, sorted as they lie there. About a second each; several at a time."""
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
    """(training, validation): whole samples, drawn at random but always the same for a seed.

    Raises ValueError unless at least one sample is left for training.
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
    """Weights (n_classes,) of the cross-entropy: 1 / sqrt(frequency), mean 1 over the classes, <= 3."""
    counts = np.zeros(n_classes)
    for volume in volumes:
        counts += np.bincount(volume.labels.ravel(), minlength=n_classes)
    frequency = np.maximum(counts / counts.sum(), 1e-4)
    weights = frequency**-0.5
    return np.minimum(weights / weights.mean(), 3.0)


def turned(volume: NDArray[Any], order: Sequence[int], mirrored: Sequence[bool]) -> NDArray[Any]:
    """A volume (n, cx, cy, cz) with its axes in another order, some of the new ones mirrored."""
    out = volume.transpose(0, *(1 + k for k in order))
    steps = tuple(slice(None, None, -1) if m else slice(None) for m in mirrored)
    return np.ascontiguousarray(out[(slice(None), *steps)])


def turned_back(
    volume: NDArray[Any], order: Sequence[int], mirrored: Sequence[bool]
) -> NDArray[Any]:
    """The volume that :func:`turned` was given, of what it returned."""
    steps = tuple(slice(None, None, -1) if m else slice(None) for m in mirrored)
    back = np.argsort(order)
    return np.ascontiguousarray(volume[(slice(None), *steps)].transpose(0, *(1 + k for k in back)))


# ---- crops ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """How far crops are changed; every limit is that of a uniform distribution unless it is said.

    zoom: factor on lengths, both ways; gain, offset: of the values, on top of the normalisation;
    contrast: change of the crystal's value; fringes: the share of crops whose fringes are partly undone,
    as those of a scintillator nearer to the sample; cupping: a slow change of values across the crop; noise:
    standard deviation added, from 0 to this, and little of it to the views without fringes; turn: whether
    crops are turned by any angle.
    """

    zoom: float = 1.35
    gain: float = 0.06
    offset: float = 0.03
    contrast: float = 0.05
    fringes: float = 0.3
    cupping: float = 0.04
    noise: float = 0.06
    turn: bool = True


@dataclass(eq=False)
class PooledVolume:
    """A sample in the pool that crops are drawn from, with what the coarse pass sees, should find, and found.

    centres: for every class some of its voxels (flat indices), about which crops are drawn. coarse_input and
    coarse_shares: of :mod:`.context`. context: the coarse pass's latest probabilities, (n_classes, cx, cy, cz); all
    classes are equally probable until it has seen the sample.
    """

    volume: TrainingVolume
    centres: list[NDArray[np.intp]]
    coarse_input: NDArray[np.float16]
    coarse_shares: NDArray[np.float16]
    context: NDArray[np.float16]

    @classmethod
    def of(cls, volume: TrainingVolume) -> PooledVolume:
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
    """The samples that a step of training draws from: fixed ones, and the latest of a stream of fresh ones.

    Sample number k of the stream enters at step (k - size) * every, when the oldest leaves; so the pool at a step
    depends on the step alone, and a training that is taken up again sees the same samples.

    fixed: samples that stay. make: a function of a number that returns a fresh sample (it must be
    picklable), None for no stream. size: of the stream's part. every: steps from one fresh sample to the next.
    workers: processes that make them, 0 to make them in this one. share: of the crops that are drawn from the
    fixed ones where there are both.
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
        """Brings the pool to a step and returns the samples that are new in it; waits for them."""
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
        return [pooled.volume for pooled in self.pooled()]

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)


def _bilinear(
    rows: NDArray[np.float64], columns: NDArray[np.float64], shape: tuple[int, ...]
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """A function that interpolates planes of a shape linearly at some places; the edge goes on beyond it."""
    r = np.clip(rows, 0, shape[0] - 1)
    c = np.clip(columns, 0, shape[1] - 1)
    r0, c0 = (
        np.minimum(r.astype(np.intp), max(shape[0] - 2, 0)),
        np.minimum(c.astype(np.intp), max(shape[1] - 2, 0)),
    )
    fr, fc = (r - r0).astype(np.float32), (c - c0).astype(np.float32)
    down, right = (shape[1] if shape[0] > 1 else 0), (1 if shape[1] > 1 else 0)
    index = r0 * shape[1] + c0
    w00, w01, w10, w11 = (1 - fr) * (1 - fc), (1 - fr) * fc, fr * (1 - fc), fr * fc

    def at(plane: NDArray[Any]) -> NDArray[np.float32]:
        flat = np.ascontiguousarray(plane, dtype=np.float32).ravel()
        out: NDArray[np.float32] = w00 * flat[index]
        out += w01 * flat[index + right]
        out += w10 * flat[index + down]
        out += w11 * flat[index + down + right]
        return out

    return at


class CropSource:
    """Draws crops of slices, with neighbours and the coarse pass's probabilities, from a pool of samples.

    n_slices: neighbours together, odd. Three of four crops are centred on a voxel of a class drawn at random, so
    that rare classes are seen; the others anywhere in the volume.
    """

    def __init__(
        self, pool: VolumePool, n_slices: int, augmentation: Augmentation | None = None
    ) -> None:
        self.pool, self.n_slices = pool, n_slices
        self.augmentation = augmentation or Augmentation()

    def draw(
        self, rng: np.random.Generator, crop: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
        """(slices (N_VIEWS n_slices, crop, crop), context (n_classes, crop, crop), labels (crop, crop)).

        As the network takes them; context and labels are those of the middle slice. crop: edge in voxels.
        """
        a = self.augmentation
        pooled = self.pool.draw(rng)
        volume = pooled.volume
        label = int(rng.integers(len(volume.names))) if rng.random() < CENTRED else -1
        places = pooled.centres[label] if label >= 0 else np.empty(0, dtype=np.intp)
        if places.size:
            centre = np.array(
                np.unravel_index(int(places[rng.integers(places.size)]), volume.labels.shape),
                dtype=np.float64,
            )
        else:
            centre = rng.uniform(0.1, 0.9, 3) * (np.array(volume.labels.shape) - 1)
        order = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]])[int(rng.integers(3))]
        centre = centre[order]
        centre[1:] += rng.uniform(-0.25, 0.25, 2) * crop
        seen = volume.views.transpose(0, *(1 + order))
        labels = volume.labels.transpose(order)
        coarse = pooled.context.transpose(0, *(1 + order))
        zoom = float(np.exp(rng.uniform(-1, 1) * np.log(a.zoom)))
        angle = rng.uniform(0, 2 * np.pi) if a.turn else 0.5 * np.pi * int(rng.integers(4))
        mirror = 1.0 if rng.random() < 0.5 else -1.0
        upside = 1.0 if rng.random() < 0.5 else -1.0
        grid = (np.arange(crop) - (crop - 1) / 2) / zoom
        u, v = np.meshgrid(grid, grid * mirror, indexing="ij")
        cos, sin = np.cos(angle), np.sin(angle)
        y, z = centre[1] + cos * u - sin * v, centre[2] + sin * u + cos * v
        interpolated = _bilinear(y, z, labels.shape[1:])
        half = self.n_slices // 2
        slices = np.empty((N_VIEWS, self.n_slices, crop, crop), dtype=np.float32)
        # neighbours stay one voxel apart, at the nearest plane where the zoom moves them
        for k in range(self.n_slices):
            x = int(round(centre[0])) + round(upside * (k - half) / zoom)
            for view, values in enumerate(seen):
                slices[view, k] = interpolated(values[min(max(x, 0), values.shape[0] - 1)])
        x = min(max(int(round(centre[0])), 0), labels.shape[0] - 1)
        rows = np.clip(np.rint(y).astype(np.intp), 0, labels.shape[1] - 1)
        columns = np.clip(np.rint(z).astype(np.intp), 0, labels.shape[2] - 1)
        target = labels[x][rows, columns]
        place = min(max((x + 0.5) / BIN - 0.5, 0.0), coarse.shape[1] - 1.0)
        near = int(place)
        share = np.float32(place - near)
        planes = coarse[:, near].astype(np.float32)
        if share:
            planes += share * (coarse[:, near + 1].astype(np.float32) - planes)
        at = _bilinear((y + 0.5) / BIN - 0.5, (z + 0.5) / BIN - 0.5, planes.shape[1:])
        context = np.stack([at(plane) for plane in planes])
        self._change_values(slices, target, volume, rng)
        return slices.reshape(-1, crop, crop), context, target

    def _change_values(
        self,
        slices: NDArray[np.float32],
        target: NDArray[np.uint8],
        volume: TrainingVolume,
        rng: np.random.Generator,
    ) -> None:
        a = self.augmentation
        softness = (0.0, *LENGTHS)  # of what is added to each view
        plain = slices[0]
        if rng.random() < a.fringes:
            plain += rng.uniform(0, 0.8) * (slices[1] - plain)
        if rng.random() < 0.5:
            crystal = (target == volume.names.index("crystal")).astype(np.float32)
            change = rng.uniform(-1, 1) * a.contrast
            for view, length in zip(slices, softness, strict=True):
                view += change * scipy.ndimage.gaussian_filter(crystal, max(0.8, length))
        ramp = np.linspace(-1, 1, target.shape[0], dtype=np.float32)
        field_ = rng.uniform(-1, 1, 3) * a.cupping
        slow = field_[0] * ramp[:, None] + field_[1] * ramp[None, :]
        slow = slow + field_[2] * (ramp[:, None] ** 2 + ramp[None, :] ** 2)
        slices *= 1.0 + slow + rng.uniform(-1, 1) * a.gain
        slices += rng.uniform(-1, 1) * a.offset
        noise = rng.standard_normal(plain.shape).astype(np.float32)
        if rng.random() < 0.5:  # of a smoothing reconstruction
            noise = 2.0 * scipy.ndimage.gaussian_filter(noise, (0, 0.7, 0.7))
        amount = rng.uniform(0, a.noise)
        plain += amount * noise
        for view, length in zip(slices[1:], LENGTHS, strict=True):
            soft = scipy.ndimage.gaussian_filter(rng.standard_normal(noise.shape[1:]), length)
            left = amount / np.sqrt(8 * np.pi * length**3)  # of white noise, by the views' filter
            view += (left * soft / soft.std()).astype(np.float32)

    def batch(
        self, rng: np.random.Generator, size: int, crop: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
        """(slices (size, N_VIEWS n_slices, crop, crop), context (size, n_classes, ...), labels (size, ...))."""
        slices, context, labels = zip(*(self.draw(rng, crop) for _ in range(size)), strict=True)
        return np.stack(slices), np.stack(context), np.stack(labels)
