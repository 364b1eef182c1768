"""What is shown of a large ``tomo.h5`` while it is read: tomogram and labels at reduced size.

It answers what the page asks of a :class:`anacor_dials.jobs.editing.LabelEditor`; nothing can be
changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anacor_dials.jobs.editing import place_of_slice
from anacor_dials.sample.hand_made import EditingSession
from anacor_dials.sample.tomogram_files import SampleFile
from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.segmentation.working_grid import intensity_scale

READING = "The volume is being read; until then it is shown at reduced size"


class LabelPreview:
    """The preview of a ``tomo.h5`` (:mod:`anacor_dials.sample.previews`).

    Its attributes and methods are those of :class:`anacor_dials.jobs.editing.LabelEditor`, for the
    smaller volume.

    Parameters
    ----------
    sample : SampleFile
        Of :func:`anacor_dials.sample.tomogram_files.read_preview`.
    user : str, optional
        Who looks at it; the name of the user if not given.
    """

    probabilities = None
    n_by_hand = 0

    def __init__(self, sample: SampleFile, user: str | None = None) -> None:
        assert sample.tomogram is not None
        assert sample.labels is not None
        self.path, self.tomogram, self.labels = sample.path, sample.tomogram, sample.labels
        self.names, self.shape = self.labels.names, self.labels.shape
        self.scale = intensity_scale(self.tomogram.values, self.tomogram.voxel_size_um)
        who = EditingSession.now()
        self.sessions = (EditingSession(user or who.user, who.time),)
        self.done: list[Any] = []
        self.undone: list[Any] = []

    def plane(self, kind: str, axis: int, index: int) -> NDArray[Any]:
        """A slice across an axis; nothing is known to be by hand or doubtful.

        Parameters
        ----------
        kind : str
            values (float32, normalised), labels, by_hand or doubt (uint8).
        axis : int
        index : int
        """
        place = place_of_slice(self.shape, axis, index)
        if kind == "values":
            return self.scale.normalised(self.tomogram.values[place])
        if kind == "labels":
            return self.labels.values[place]
        return np.zeros_like(self.labels.values[place])

    def places(self) -> list[Any]:
        """None are known yet."""
        return []

    def label_volume(self) -> LabelVolume:
        """The labels."""
        return self.labels
