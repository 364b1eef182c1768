"""A scan, a tomo.h5 or a reconstruction becomes a labelled sample."""

from __future__ import annotations

import os

from anacor_dials.jobs.reconstruct import Reconstruction
from anacor_dials.jobs.segment import (
    CorrectedLabels,
    SegmentationSettings,
    SegmentedSample,
    load_source,
    segment_sample,
)


def segment(
    given: Reconstruction | str | os.PathLike[str],
    settings: SegmentationSettings | None = None,
    corrected: CorrectedLabels | None = None,
    truth: str | os.PathLike[str] | None = None,
) -> SegmentedSample:
    """The labelled sample of a reconstruction, of a tomo.h5, or of a scan.

    Parameters
    ----------
    given : Reconstruction or path
        A scan is reconstructed with the default settings; :func:`anacor_dials.reconstruct` takes
        others.
    settings : SegmentationSettings, optional
        Of the network and what follows it.
    corrected : CorrectedLabels, optional
        Labels that replace those of the network or are merged with them.
    truth : path, optional
        A truth.h5 of dials.anacor_simulate that the labels are scored against.

    Raises
    ------
    ValueError
        If the file cannot be read, there is no sample or no crystal, or a stack does not fit.
    """
    source = given if isinstance(given, Reconstruction) else load_source(given)
    return segment_sample(source, settings, corrected, truth)
