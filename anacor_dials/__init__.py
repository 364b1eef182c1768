"""Analytical absorption correction by X-ray tomography, inside DIALS.

The jobs of the commands and their types are names of this package::

    import anacor_dials as ad

    reconstruction = ad.reconstruct("scan.nxs")
    sample = ad.segment(reconstruction)
    factors = ad.absorption_factors(sample.labels, sample.mu_per_um, directions)

They are imported when they are first used, so that DIALS and torch need be installed only where
they are needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0.dev0"  # the only place where it is written

# module -> what this package exports of it
_EXPORTS = {
    "sample.volumes": ("LabelVolume", "Tomogram"),
    "sample.materials": (
        "Composition",
        "Material",
        "MaterialInput",
        "materials_at",
        "mu_by_label",
        "protein_crystal",
        "typical_composition",
    ),
    "sample.tomogram_files": ("SampleFile", "read_sample_file", "write_sample_file"),
    "tomography.reconstruction_settings": ("ReconstructionSettings",),
    "tomography.scan_files": ("ScanDescription",),
    "absorption.beam": ("BeamProfile",),
    "absorption.directions": ("Directions",),
    "absorption.convex_solid": ("ConvexSolid",),
    "absorption.closed_surface": ("ClosedSurface", "SurfaceSample", "read_surfaces"),
    "absorption.factors": (
        "AbsorptionFactors",
        "absorption_factors",
        "absorption_factors_of_solid",
        "absorption_factors_of_surfaces",
    ),
    "absorption.tracing": ("Tracing",),
    "jobs.reconstruct": ("Reconstruction", "reconstruct"),
    "jobs.scan_to_labels": ("segment",),
    "segmentation.clean_up": ("CleaningSettings",),
    "segmentation.tiles": ("InferenceSettings",),
    "segmentation.sam2_refinement": ("Sam2Settings",),
    "jobs.segment": (
        "CorrectedLabels",
        "SegmentationSettings",
        "SegmentedSample",
        "write_segmented",
    ),
    "jobs.load_sample": ("LoadedSample", "SampleSettings", "StackSettings", "load_sample"),
    "jobs.coefficients": ("CoefficientSettings",),
    "jobs.correct": ("Correction", "CorrectionSettings", "correct"),
    "jobs.compare": (
        "Comparison",
        "ComparisonSettings",
        "compare",
        "data_sources",
        "scale_and_compare",
        "scaling_jobs",
    ),
    "jobs.correct_by_faces": ("FaceCorrection", "FaceSettings", "correct_by_faces"),
    "jobs.correct_by_meshes": ("MeshCorrection", "MeshSettings", "correct_by_meshes"),
    "diffraction.crystal_faces": ("CrystalFaces", "read_faces"),
    "diffraction.reflections": ("Alignment",),
    "report.display": ("Page", "page"),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # so that it is looked up once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
