"""A network learns a sample from the voxels that a person labelled in it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.hand_made import EditingSession, HandMadeLabels, read_hand_made
from anacor_dials.sample.label_files import read_label_stack
from anacor_dials.sample.tomogram_files import is_readable_sample, read_sample_file
from anacor_dials.sample.volumes import LabelVolume, Tomogram
from anacor_dials.segmentation.fringes import views
from anacor_dials.segmentation.tiles import AIR_AROUND, sample_box
from anacor_dials.segmentation.working_grid import (
    UNKNOWN,
    bin_factors,
    binned_known,
    binned_values,
    intensity_scale,
)

if TYPE_CHECKING:
    from anacor_dials.segmentation.network import SliceNetwork

logger = logging.getLogger("dials.anacor_dials.jobs.learn")


@dataclass(frozen=True)
class LearningSettings:
    """How a network learns a sample.

    Parameters
    ----------
    minutes : float
        The longest time that it may take.
    others : int
        How many virtual samples it sees besides this one, so that it does not forget what samples
        look like.
    voxels : (int, int)
        Their least and largest number of voxels along an edge.
    seed : int
        Of all that is drawn.
    device : str
        auto, cpu or cuda.
    progress : bool
        Whether a progress bar is shown.
    """

    minutes: float = 3.0
    others: int = 4
    voxels: tuple[int, int] = (72, 104)
    seed: int = 1
    device: str = "auto"
    progress: bool = False

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"labels.minutes is {self.minutes}; it must be > 0.")
        if self.others < 0:
            raise ValueError(f"{self.others} other samples cannot be; give 0 or more.")


def hand_made_of_file(
    path: str | os.PathLike[str],
    tomogram: Tomogram,
    axes: str,
    names: Sequence[str],
    left_handed: bool = False,
) -> HandMadeLabels:
    """Labels of a tomogram that a person made: of a tomo.h5, or of a stack of labels.

    In a stack whole planes count: those across the axis along which the fewest planes hold any
    label. A tomo.h5 without a record of what is by hand is read in the same way.

    Parameters
    ----------
    path : path
    tomogram : Tomogram
    axes : str
        What the first, second and third index of a stack run along.
    names : sequence of str
        Of its labels 0, 1, 2 ...
    left_handed : bool
        Whether such axes are left-handed on purpose.

    Raises
    ------
    ValueError
        If the file cannot be read, is on another grid, or holds no label.
    """
    if is_readable_sample(path):
        sample = read_sample_file(path, tomogram=False)
        if sample.labels is None:
            raise ValueError(f"{path} holds no labels to learn from.")
        made = read_hand_made(path)
        if made is None:
            made = _whole_planes(path, sample.labels)
    else:
        stack = read_label_stack(
            path, tomogram.voxel_size_um, axes, names, tomogram.centre, left_handed
        )
        made = _whole_planes(path, stack)
    if made.labels.shape != tomogram.shape:
        raise ValueError(
            f"{path} has {' x '.join(map(str, made.labels.shape))} voxels along X, Y, Z and the tomogram "
            f"{' x '.join(map(str, tomogram.shape))}; is labels.axes right?"
        )
    return made


def _whole_planes(path: str | os.PathLike[str], stack: LabelVolume) -> HandMadeLabels:
    """Every voxel of the planes that hold labels, across the axis with the fewest such planes."""
    there = stack.values > 0
    lines = [there.any(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    shares = [line.mean() for line in lines]
    axis = int(np.argmin(shares))
    if not lines[axis].any():
        raise ValueError(f"{path} holds no label but 0, so there is nothing to learn from.")
    session = np.zeros(stack.shape, dtype=np.uint8)
    np.moveaxis(session, axis, 0)[lines[axis]] = 1
    logger.info(
        "%s: %d planes across %s hold labels and count as put right",
        path,
        int(np.count_nonzero(lines[axis])),
        "XYZ"[axis],
    )
    return HandMadeLabels(stack.values, session, stack.names, (EditingSession.now(),))


def joined(first: HandMadeLabels | None, second: HandMadeLabels | None) -> HandMadeLabels | None:
    """The labels that either holds; where both do, those of the second."""
    if first is None or second is None:
        return first if second is None else second
    second = second.translated(first.names)
    out = first
    for number, session in enumerate(second.sessions, start=1):
        where = second.session == number
        if where.any():
            out = out.with_more(second.labels, where, session)
    return out


def known_on_tomogram(hand_made: HandMadeLabels, names: Sequence[str]) -> NDArray[np.uint8]:
    """Labels uint8 (nx, ny, nz), numbered as names are; UNKNOWN where no person labelled."""
    mine = hand_made.translated(names)
    return np.where(mine.by_hand, mine.labels, np.uint8(UNKNOWN)).astype(np.uint8)


def learned_network(
    tomogram: Tomogram,
    hand_made: HandMadeLabels,
    networks: Sequence[SliceNetwork],
    settings: LearningSettings | None = None,
) -> SliceNetwork:
    """A network that has learned a sample.

    It is made from the one of several networks that agrees best with what is known of the sample.

    Parameters
    ----------
    tomogram : Tomogram
    hand_made : HandMadeLabels
        What a person labelled in it.
    networks : sequence of SliceNetwork
        Of :func:`anacor_dials.segmentation.inference.load_networks`.
    settings : LearningSettings, optional

    Raises
    ------
    ValueError
        If no voxel is labelled by hand, or with labels that the network does not know.
    """
    from anacor_dials.jobs.training_stream import StreamedTomograms
    from anacor_dials.segmentation.adaptation import (
        AdaptationSettings,
        KnownSample,
        adapted_network,
        nearest_network,
    )

    settings = settings or LearningSettings()
    names = networks[0].settings.names
    factors = bin_factors(tomogram.voxel_size_um)
    scale = intensity_scale(tomogram.values, tomogram.voxel_size_um)
    values = binned_values(tomogram.values, factors, scale)
    known = binned_known(known_on_tomogram(hand_made, names), factors, len(names))
    box = sample_box(values, AIR_AROUND)
    if 0 in values[box].shape:
        raise ValueError("The tomogram holds nothing but air: there is nothing to learn.")
    sample = KnownSample(
        views(np.ascontiguousarray(values[box]), np.float16), np.ascontiguousarray(known[box])
    )
    nearest = networks[nearest_network(networks, sample)]
    stream = StreamedTomograms(settings.seed, settings.voxels)
    others = [stream(number) for number in range(settings.others)]
    logger.info(
        "The network learns from %d voxels labelled by hand, with %d other samples beside",
        hand_made.n_voxels,
        len(others),
    )
    adaptation = AdaptationSettings(
        minutes=settings.minutes, device=settings.device, seed=settings.seed
    )
    return adapted_network(nearest, sample, others, adaptation, settings.progress)
