"""Films of slices with objects to follow and prompts with errors, drawn from a pool of samples."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from anacor_dials.segmentation.crops import Augmentation
from anacor_dials.segmentation.fringes import N_VIEWS
from anacor_dials.segmentation.training_data import PooledVolume

# Chosen by hand.
SMALLEST_OBJECT = 12  # pixels of an object in the first slice
NEAR_AN_END = 0.25  # the share of films that begin near an end of the object
EXACT = 0.4  # the share of prompts without errors


@dataclass(frozen=True)
class FilmSettings:
    """What films look like.

    Parameters
    ----------
    edge : int
        Pixels of an edge.
    objects : int
        Objects to follow in each film.
    width : (float, float)
        Limits of what a film shows, voxels along an edge.
    augmentation : Augmentation
    """

    edge: int = 128
    objects: int = 2
    width: tuple[float, float] = (72.0, 170.0)
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True, eq=False)
class Film:
    """Slices, the objects in them, and what a user drew in the first slice.

    Attributes
    ----------
    frames : array (n, N_VIEWS, edge, edge) of float32
        Normalised views.
    objects : array (n_objects, n, edge, edge) of bool
        The true objects.
    prompts : array (n_objects, edge, edge) of bool
        The masks in the first slice, with errors.
    classes : tuple of int
        The label of each object.
    """

    frames: NDArray[np.float32]
    objects: NDArray[np.bool_]
    prompts: NDArray[np.bool_]
    classes: tuple[int, ...]


def mask_with_errors(rng: np.random.Generator, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask as a user or a network would draw it; some are exact.

    Edges are shifted, grown or shrunk by one or two pixels; or a piece is missing or added.

    Parameters
    ----------
    rng : Generator
    mask : array (h, w) of bool
    """
    if rng.random() < EXACT:
        return mask
    out = mask.copy()
    kind = rng.random()
    if kind < 0.4:
        rows, columns = rng.integers(-2, 3, 2)
        out = np.roll(out, (rows, columns), (0, 1))
    elif kind < 0.7:
        turns = int(rng.integers(1, 3))
        change = (
            scipy.ndimage.binary_dilation if rng.random() < 0.5 else scipy.ndimage.binary_erosion
        )
        out = change(out, iterations=turns)
    if kind > 0.5:
        near = scipy.ndimage.binary_dilation(mask, iterations=3)
        places = np.argwhere(near)
        centre = places[rng.integers(len(places))]
        radius = rng.uniform(0.05, 0.3) * np.sqrt(np.count_nonzero(mask)) + 1.0
        r, c = np.ogrid[: mask.shape[0], : mask.shape[1]]
        piece = (r - centre[0]) ** 2 + (c - centre[1]) ** 2 < radius**2
        out = out | (piece & near) if rng.random() < 0.5 else out & ~piece
    return out if np.count_nonzero(out) >= SMALLEST_OBJECT // 2 else mask


def clicks_in(
    rng: np.random.Generator, mask: NDArray[np.bool_], n: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Clicks (n, 2) as column and row, and their kinds (n,): 1 on the object, 0 beside it.

    About half of the films get a stroke, clicks on a line of pixels of the object; the others get
    clicks anywhere on it, and some beside it.

    Parameters
    ----------
    rng : Generator
    mask : array (h, w) of bool
        Not empty.
    n : int
    """
    inside = np.argwhere(mask)
    core = np.argwhere(scipy.ndimage.binary_erosion(mask, iterations=2))
    inside = core if len(core) else inside
    kinds = np.ones(n, dtype=np.int32)
    if rng.random() < 0.5:
        first = inside[rng.integers(len(inside))]
        order = np.argsort(((inside - first) ** 2).sum(axis=1))
        chosen = inside[order[np.linspace(0, min(len(order) - 1, 60), n).astype(int)]]
    else:
        chosen = inside[rng.integers(len(inside), size=n)]
        n_beside = int(rng.integers(0, n // 2 + 1))
        beside = np.argwhere(scipy.ndimage.binary_dilation(mask, iterations=8) & ~mask)
        if n_beside and len(beside):
            chosen[-n_beside:] = beside[rng.integers(len(beside), size=n_beside)]
            kinds[-n_beside:] = 0
    return chosen[:, ::-1].astype(np.float32), kinds


def _first_slice(
    rng: np.random.Generator, labels: NDArray[np.uint8], x: int, label: int, forward: bool
) -> int:
    """The first slice of a film: x, or a slice near the end of the object in its direction."""
    if rng.random() > NEAR_AN_END:
        return x
    there = np.flatnonzero((labels == label).any(axis=(1, 2)))
    back = int(rng.integers(1, 5))
    return int(there[max(len(there) - back, 0)] if forward else there[min(back, len(there)) - 1])


def draw_film(
    rng: np.random.Generator, pooled: PooledVolume, n_frames: int, settings: FilmSettings
) -> Film:
    """A film of a sample, across one of its axes, forward or backward, turned by any angle.

    The first slice holds at least one of the objects. Two slices are one or two voxels apart.

    Parameters
    ----------
    rng : Generator
    pooled : PooledVolume
    n_frames : int
    settings : FilmSettings
    """
    volume, edge = pooled.volume, settings.edge
    present = [k for k in range(1, len(volume.names)) if pooled.centres[k].size]
    label = int(present[rng.integers(len(present))])
    place = int(rng.choice(pooled.centres[label]))
    axis = int(rng.integers(3))
    order = [axis, *(k for k in range(3) if k != axis)]
    labels = volume.labels.transpose(order)
    centre = np.array(np.unravel_index(place, volume.labels.shape), dtype=float)[order]
    forward = bool(rng.random() < 0.5)
    x = _first_slice(rng, labels, int(centre[0]), label, forward)
    if not labels[x, int(centre[1]), int(centre[2])] == label:
        centre[1:] = np.argwhere(labels[x] == label).mean(axis=0)
    step = int(rng.integers(1, 3)) * (1 if forward else -1)
    planes = np.clip(x + step * np.arange(n_frames), 0, labels.shape[0] - 1)
    width = float(np.exp(rng.uniform(*np.log(settings.width))))
    centre[1:] += rng.uniform(-0.2, 0.2, 2) * width
    seen = volume.views.transpose(0, *(1 + k for k in order))[:, planes].swapaxes(0, 1)
    frames, cut = _turned(rng, seen, labels[planes], centre[1:], width, edge)
    _change_values(rng, frames, cut == volume.names.index("crystal"), settings.augmentation)
    counts = np.bincount(cut[0].ravel(), minlength=len(volume.names))
    candidates = [k for k in present if counts[k] >= SMALLEST_OBJECT] or [label]
    classes = tuple(
        int(candidates[k]) for k in rng.integers(len(candidates), size=settings.objects)
    )
    objects = cut == np.array(classes)[:, None, None, None]
    prompts = np.stack([mask_with_errors(rng, o[0]) for o in objects])
    return Film(frames, objects, prompts, classes)


def _turned(
    rng: np.random.Generator,
    views: NDArray[np.floating],
    labels: NDArray[np.uint8],
    centre: NDArray[np.float64],
    width: float,
    edge: int,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Frames (n, N_VIEWS, edge, edge) and labels (n, edge, edge) around a centre, turned."""
    angle, mirror = rng.uniform(0, 2 * np.pi), (1.0 if rng.random() < 0.5 else -1.0)
    along = (np.arange(edge) - (edge - 1) / 2) * width / edge
    u, v = np.meshgrid(along, along * mirror, indexing="ij")
    cos, sin = np.cos(angle), np.sin(angle)
    rows, columns = centre[0] + cos * u - sin * v, centre[1] + sin * u + cos * v
    h, w = labels.shape[1:]
    grid = np.stack([2 * columns / max(w - 1, 1) - 1, 2 * rows / max(h - 1, 1) - 1], axis=-1)
    place = torch.from_numpy(grid.astype(np.float32)).expand(len(labels), -1, -1, -1)
    planes = torch.from_numpy(np.ascontiguousarray(views, dtype=np.float32))
    frames = F.grid_sample(planes, place, padding_mode="border", align_corners=True)
    r = np.clip(np.rint(rows).astype(int), 0, h - 1)
    c = np.clip(np.rint(columns).astype(int), 0, w - 1)
    return frames.numpy(), labels[:, r, c]


def _change_values(
    rng: np.random.Generator,
    frames: NDArray[np.float32],
    crystal: NDArray[np.bool_],
    a: Augmentation,
) -> None:
    """Changes contrast, fringes, level and noise of the frames (n, N_VIEWS, h, w)."""
    if rng.random() < a.fringes:
        frames[:, 0] += rng.uniform(0, 0.8) * (frames[:, 1] - frames[:, 0])
    if rng.random() < 0.5:
        soft = scipy.ndimage.gaussian_filter(crystal.astype(np.float32), (0, 2, 2))
        frames += np.float32(rng.uniform(-1, 1) * a.contrast) * soft[:, None]
    ramp = np.linspace(-1, 1, frames.shape[-1], dtype=np.float32)
    slow = rng.uniform(-1, 1, 2).astype(np.float32) * np.float32(a.cupping)
    frames *= 1 + slow[0] * ramp[:, None] + slow[1] * ramp + np.float32(rng.uniform(-1, 1) * a.gain)
    frames += np.float32(rng.uniform(-1, 1) * a.offset)
    noise = rng.standard_normal(frames[:, 0].shape, dtype=np.float32)
    frames[:, 0] += np.float32(rng.uniform(0, a.noise)) * noise
    assert frames.shape[1] == N_VIEWS
