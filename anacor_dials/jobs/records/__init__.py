"""What the jobs leave for programs: one schema, a versioned dataclass, for each JSON file.

Every file has the key "version". The version grows when a key goes, or when its name or its meaning
changes; keys may be added without it. Numbers without a value (NaN) are null.
"""

from __future__ import annotations

from anacor_dials.jobs.records.absorption import (
    AbsorptionRecord,
    AlignmentRecord,
    CoefficientsRecord,
    FacesRecord,
    MaterialRecord,
    WavelengthFactorsRecord,
)
from anacor_dials.jobs.records.comparison import (
    ComparisonRecord,
    ResidualPatternRecord,
    SameObservationsRecord,
    StrategyRecord,
    TableRowRecord,
)
from anacor_dials.jobs.records.contributions import (
    ContributionRecord,
    ContributionsRecord,
    MergedQualityRecord,
)
from anacor_dials.jobs.records.likeness import LikenessRecord
from anacor_dials.jobs.records.pipeline import (
    CrystalRecord,
    CrystalRow,
    GroupRecord,
    PipelineRecord,
    SelectionRecord,
    WavelengthRecord,
    pipeline_schema,
)
from anacor_dials.jobs.records.reconstruction import ReconstructionRecord
from anacor_dials.jobs.records.record import Record, key_of, read_record
from anacor_dials.jobs.records.segmentation import SegmentationRecord

__all__ = [
    "AbsorptionRecord",
    "AlignmentRecord",
    "CoefficientsRecord",
    "ComparisonRecord",
    "ContributionRecord",
    "ContributionsRecord",
    "CrystalRecord",
    "CrystalRow",
    "FacesRecord",
    "GroupRecord",
    "LikenessRecord",
    "MaterialRecord",
    "MergedQualityRecord",
    "PipelineRecord",
    "ReconstructionRecord",
    "Record",
    "ResidualPatternRecord",
    "SameObservationsRecord",
    "SegmentationRecord",
    "SelectionRecord",
    "StrategyRecord",
    "TableRowRecord",
    "WavelengthFactorsRecord",
    "WavelengthRecord",
    "key_of",
    "pipeline_schema",
    "read_record",
]
