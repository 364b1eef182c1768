"""The content of contributions.json: what each crystal contributes to data merged of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anacor_dials.jobs.records.record import Record, made_of


@dataclass(frozen=True)
class MergedQualityRecord:
    """How good merged data are, overall.

    Attributes
    ----------
    observations, unique : int
        Friedel mates count as one reflection.
    completeness : float
        0 to 1.
    multiplicity : float
    r_meas, r_pim, cc_half : float or null
        cc_half: by variances, as in Assmann, Brehm & Diederichs (2016), weighted by sigma.
    cc_anomalous : float or null
        The same of the differences of Friedel mates; null where there are too few.
    """

    observations: int
    unique: int
    completeness: float
    multiplicity: float
    r_meas: float | None
    r_pim: float | None
    cc_half: float | None
    cc_anomalous: float | None


@dataclass(frozen=True)
class ContributionRecord:
    """What a crystal contributes to the merged data.

    Attributes
    ----------
    crystal : str
    observations : int
        Of this crystal, among those that are merged.
    rejected : float or null
        The share of its observations that scaling rejected, 0 to 1.
    makes_worse : [str]
        Which of "cc_half" and "cc_anomalous" are surely higher without it.
    without : MergedQualityRecord
        Of the data without it; the others keep their scales.
    cc_half_with, cc_anomalous_with : float or null
        Of the data with it, of the reflections that those without it are of.
    delta_cc_half, delta_cc_anomalous : float or null
        With it minus without it, of these reflections: negative where it makes the data worse.
    delta_cc_half_error, delta_cc_anomalous_error : float or null
        Standard errors.
    """

    crystal: str
    observations: int
    rejected: float | None
    makes_worse: Sequence[str]
    without: MergedQualityRecord
    cc_half_with: float | None
    delta_cc_half: float | None
    delta_cc_half_error: float | None
    cc_anomalous_with: float | None
    delta_cc_anomalous: float | None
    delta_cc_anomalous_error: float | None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> ContributionRecord:
        """The record of what was read."""
        without = made_of(MergedQualityRecord, content["without"])
        return made_of(cls, {**content, "without": without})


@dataclass(frozen=True)
class ContributionsRecord(Record):
    """contributions.json.

    Attributes
    ----------
    merged : MergedQualityRecord or null
        Of the data of all crystals.
    crystals : [ContributionRecord]
        Those that make the data worse come first.
    why_not : str or null
        Why there are none.
    """

    VERSION = 1
    merged: MergedQualityRecord | None
    crystals: Sequence[ContributionRecord] = ()
    why_not: str | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> ContributionsRecord:
        """The record of what was read."""
        merged = content["merged"]
        return cls(
            merged=None if merged is None else made_of(MergedQualityRecord, merged),
            crystals=[ContributionRecord.of(one) for one in content["crystals"]],
            why_not=content["why_not"],
        )
