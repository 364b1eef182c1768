"""Refinement by SAM-2 (Ravi et al., 2024), slice by slice.

The slices along X are treated as a film. In key frames the masks of AnACorNet are the prompts, one
object for each class. From every key frame SAM-2 follows the objects forward and backward, up to
the next key frame. Where two key frames reach a slice, their results are averaged with weights that
fall with the distance. A softmax over the logits of the objects, and zero for the background, makes
probabilities, which are averaged with those of AnACorNet. By default only stretches of slices in
which AnACorNet is uncertain are looked at, and only uncertain voxels are changed.

The film shows only the part with the sample. The refinement needs a :class:`SlicePredictor`;
:class:`.sam2_predictor.Sam2Predictor` is that of the sam2 package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.progress import Progress
from anacor_dials.segmentation.tiles import sample_box

logger = logging.getLogger("dials.anacor_dials.segmentation.sam2_refinement")

MODELS = {
    "tiny": "configs/sam2.1/sam2.1_hiera_t.yaml",
    "small": "configs/sam2.1/sam2.1_hiera_s.yaml",
    "base_plus": "configs/sam2.1/sam2.1_hiera_b+.yaml",
    "large": "configs/sam2.1/sam2.1_hiera_l.yaml",
}
HOW_TO_GET = (
    "pip install sam2, and give sam2.checkpoint= shipped, a file from "
    "https://github.com/facebookresearch/sam2#download-checkpoints or a hub name such as "
    "facebook/sam2.1-hiera-tiny"
)
SHIPPED = "shipped"  # the checkpoint that is in the package
# Chosen by hand.
UNSURE = 0.7  # a voxel is uncertain if its largest probability is less
UNSURE_SHARE = 0.02  # a slice is uncertain if more of its voxels are, not counting certain air
SURE_AIR = 250  # of 255: air is certain


class Frames(Protocol):
    """A film: normalised slices (h, w), one at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, x: int, /) -> NDArray[np.float32]: ...


class SlicePredictor(Protocol):
    """Follows objects through a film of slices."""

    def follow(
        self, frames: Frames, key: int, masks: NDArray[np.bool_], n_frames: int, reverse: bool
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields (frame, logits (n_objects, h, w)), beginning with a key frame.

        Parameters
        ----------
        frames : Frames
            Normalised slices (h, w).
        key : int
            The number of the key frame.
        masks : array (n_objects, h, w) of bool
            The objects in the key frame.
        n_frames : int
            How many frames after the key frame are wanted.
        reverse : bool
            Whether the film runs backward.
        """
        ...


@dataclass(frozen=True)
class Sam2Settings:
    """How SAM-2 is used.

    Parameters
    ----------
    checkpoint : str, optional
        "shipped", a file of Meta or of :mod:`.sam2_training` (.safetensors), or a hub name; SAM-2
        is not used if it is not given.
    model : str
        tiny, small, base_plus or large: which model of Meta the checkpoint belongs to.
    where : str
        "uncertain": only uncertain voxels are changed; "all".
    image_size : int
        Models of Meta see slices scaled to so many pixels; a small SAM-2 has a size of its own.
    key_frames : int
        The number of slices from one prompt to the next.
    weight : float
        The weight of SAM-2 in the average with AnACorNet, 0 to 1.
    """

    checkpoint: str | None = None
    model: str = "tiny"
    where: str = "uncertain"
    image_size: int = 1024
    key_frames: int = 24
    weight: float = 0.5

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"sam2.model is {self.model!r}; it is one of {', '.join(MODELS)}.")
        if self.where not in ("uncertain", "all"):
            raise ValueError(f"sam2.where is {self.where!r}; it is uncertain or all.")
        if self.image_size < 256 or self.image_size % 64:
            raise ValueError(
                f"sam2.image_size is {self.image_size}; it is a multiple of 64, at least 256."
            )
        if self.key_frames < 1:
            raise ValueError(f"sam2.key_frames is {self.key_frames}; it must be at least 1.")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"sam2.weight is {self.weight}; it lies between 0 and 1.")


# ---- which slices, from which prompts ------------------------------------------------------------


def unsure_slices(probabilities: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which slices (nx,) along X are uncertain.

    Those are the slices in which more than UNSURE_SHARE of the voxels, not counting certain air,
    are uncertain.
    """
    out = np.zeros(probabilities.shape[1], dtype=bool)
    for x in range(out.size):
        plane = probabilities[:, x]
        there = plane[0] < SURE_AIR
        unsure = plane.max(axis=0) < 255 * UNSURE
        out[x] = np.count_nonzero(unsure & there) > UNSURE_SHARE * max(
            int(np.count_nonzero(there)), 1
        )
    return out


def runs(wanted: NDArray[np.bool_], margin: int) -> list[tuple[int, int]]:
    """(first, last + 1) of the runs of wanted slices, with a margin at both ends.

    Overlapping runs are joined.

    Parameters
    ----------
    wanted : array (nx,) of bool
    margin : int
    """
    grown: list[tuple[int, int]] = []
    for x in np.flatnonzero(wanted):
        first, last = max(0, int(x) - margin), min(len(wanted), int(x) + margin + 1)
        if grown and first <= grown[-1][1]:
            grown[-1] = (grown[-1][0], last)
        else:
            grown.append((first, last))
    return grown


def key_slices(probabilities: NDArray[np.uint8], first: int, last: int, every: int) -> list[int]:
    """In each stretch of a run, the slice in which the network is most certain.

    Slices of air alone are no key frames.

    Parameters
    ----------
    probabilities : array (n, nx, ny, nz) of uint8
    first, last : int
        The first slice of the run, and the last + 1.
    every : int
        The length of a stretch.
    """
    keys = []
    for start in range(first, last, every):
        best, sure = -1, -1.0
        for x in range(start, min(start + every, last)):
            plane = probabilities[:, x]
            there = plane[0] < SURE_AIR
            if np.any(plane.argmax(axis=0)):
                value = float(plane.max(axis=0)[there].mean())
                if value > sure:
                    best, sure = x, value
        if best >= 0:
            keys.append(best)
    return keys


def exclusive(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities (n_objects + 1, h, w) that add up to one, from logits (n_objects, h, w).

    The background has the logit zero.
    """
    all_ = np.concatenate([np.zeros_like(logits[:1]), logits]).astype(np.float32)
    all_ = np.exp(all_ - all_.max(axis=0))
    return all_ / all_.sum(axis=0)


class _Film:
    """Slices (h, w) of a part of a volume, made when they are asked for."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def __getitem__(self, x: int, /) -> NDArray[np.float32]:
        return self.values[x]


def refined(
    values: NDArray[np.float32],
    probabilities: NDArray[np.uint8],
    predictor: SlicePredictor,
    settings: Sam2Settings,
) -> NDArray[np.uint8]:
    """Probabilities uint8 (n, nx, ny, nz), 255 = 1, after SAM-2; the given ones do not change.

    Parameters
    ----------
    values : array (nx, ny, nz)
        Normalised, on the working grid.
    probabilities : array (n, nx, ny, nz) of uint8
    predictor : SlicePredictor
    settings : Sam2Settings
    """
    out = probabilities.copy()
    box = sample_box(values)
    inside = np.ascontiguousarray(values[box])
    if not inside.size:
        return out
    p = out[(slice(None), *box)]  # a view
    n = p.shape[0]
    wanted = unsure_slices(p) if settings.where == "uncertain" else np.ones(p.shape[1], dtype=bool)
    film = _Film(inside)
    n_changed = 0
    stretches = runs(wanted, settings.key_frames // 2)
    bar = Progress(sum(last - first for first, last in stretches), "SAM-2", "slice")
    for first, last in stretches:
        keys = key_slices(p, first, last, settings.key_frames)
        answers: dict[int, tuple[NDArray[np.float32], float]] = {}
        for number, key in enumerate(keys):
            masks = p[:, key].argmax(axis=0) == np.arange(1, n)[:, None, None]
            before = keys[number - 1] if number else first - 1
            after = keys[number + 1] if number + 1 < len(keys) else last
            # backward first: the slices since the last key frame have just been encoded
            for end, reverse in ((before, True), (after, False)):
                length = abs(end - key)
                if length < 1:
                    continue
                for x, logits in predictor.follow(film, key, masks, length - 1, reverse):
                    near = 1.0 - abs(x - key) / (length + 1)
                    chances = exclusive(logits)
                    if x == key and x in answers:
                        continue  # both directions begin with the key frame
                    bar.update(x not in answers)
                    held, weight = answers.get(x, (np.zeros_like(chances), 0.0))
                    answers[x] = (held + near * chances, weight + near)
        for x, (total, weight) in answers.items():
            if not wanted[x]:
                continue
            old = p[:, x].astype(np.float32) / 255.0
            new = (1 - settings.weight) * old + settings.weight * total / weight
            if settings.where == "uncertain":
                new = np.where(old.max(axis=0) < UNSURE, new, old)
            before_labels = p[:, x].argmax(axis=0)
            p[:, x] = np.rint(255.0 * new).astype(np.uint8)
            n_changed += int(np.count_nonzero(p[:, x].argmax(axis=0) != before_labels))
    bar.close()
    logger.info(
        "SAM-2 looked at %d of %d slices and changed %d voxels",
        int(wanted.sum()),
        len(wanted),
        n_changed,
    )
    return out


def sam2_refiner(
    settings: Sam2Settings, names: Sequence[str], device: str = "auto"
) -> Callable[[NDArray[np.float32], NDArray[np.uint8]], NDArray[np.uint8]] | None:
    """The `refine` of :func:`.inference.segment`; None if there is no checkpoint.

    Parameters
    ----------
    settings : Sam2Settings
    names : sequence of str
        Of the classes.
    device : str

    Raises
    ------
    ValueError
        If a checkpoint was named and cannot be used.
    """
    if settings.checkpoint is None:
        logger.info(
            "Not refined by SAM-2, since no checkpoint was given. To have it: %s.", HOW_TO_GET
        )
        return None
    from anacor_dials.segmentation.sam2_predictor import Sam2Predictor

    name = settings.checkpoint
    if name != SHIPPED and not Path(name).is_file() and name.count("/") != 1:
        raise ValueError(f"There is no SAM-2 checkpoint {name}: {HOW_TO_GET}.")
    predictor = Sam2Predictor.from_settings(settings, device)
    logger.info("Refinement by SAM-2 (%s) of %s", name, ", ".join(names[1:]))
    return lambda values, probabilities: refined(values, probabilities, predictor, settings)
