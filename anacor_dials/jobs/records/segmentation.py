"""The content of anacor_segment.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anacor_dials.jobs.records.record import Record


@dataclass(frozen=True)
class SegmentationRecord(Record):
    """anacor_segment.json.

    Attributes
    ----------
    materials : {name: {"label", "voxels", "volume_um3", "mu_per_um"}}
        Each material, background included; mu is the median within it, null where it is unknown.
    seconds : {stage: float} or null
        How long the stages of the network took; null if the labels were given.
    bin_factors : [int, int, int] or null
        How many voxels along X, Y, Z make one voxel of the network's grid.
    clean_up : [{"step": str, "changed_um3": {"A to B": float}}] or null
        What the clean-up changed: the volume that went from material A to material B.
    factors_uncertainty : mapping or null
        The uncertainty of the absorption factors from the labels: "rms", relative, of all drawn
        labels; "draws", the same of each; "spread_of_factors", the relative standard deviation of
        the factors themselves; "crystal_volumes_um3", of each draw.
    crystal_dice_foretold : mapping or null
        How far the labels of the crystal probably overlap with the true crystal, as Dice
        coefficients: "median", "low" and "high" (undercut by one and by nine of ten such cases),
        and "chance_of_poor", the probability of less than 0.9. Null if the network made no labels.
    evaluation : mapping or null
        Against the true labels, if they were given: "cross_entropy" (nats per voxel), and
        "classes", {name: {"recall", "dice", "dice_loss", "hd95_um", "true_voxels",
        "found_voxels"}}. The recall of a class is what the published tables call accuracy.
    warnings : [str]
    """

    VERSION = 1
    materials: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float] | None = None
    bin_factors: Sequence[int] | None = None
    clean_up: Sequence[Mapping[str, Any]] | None = None
    factors_uncertainty: Mapping[str, Any] | None = None
    crystal_dice_foretold: Mapping[str, float] | None = None
    evaluation: Mapping[str, Any] | None = None
    warnings: Sequence[str] = ()
