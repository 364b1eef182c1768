"""The report of any result, to be looked at in a notebook or saved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

from anacor_dials.report.page import Section, html_of, write_html

if TYPE_CHECKING:
    from anacor_dials.jobs.correct import CorrectedReflections

# type of a result -> title, module of report/, and its function that makes the sections
REPORTS = {
    "anacor_dials.sample.volumes.LabelVolume": ("Sample", "sample", "sections"),
    "anacor_dials.jobs.reconstruct.Reconstruction": (
        "Tomogram",
        "reconstruction",
        "tomogram_sections",
    ),
    "anacor_dials.tomography.reconstruction.ReconstructionPlan": (
        "Tomographic reconstruction",
        "reconstruction",
        "sections",
    ),
    "anacor_dials.jobs.segment.SegmentedSample": ("Segmentation", "segmentation", "sections"),
    "anacor_dials.jobs.correct.Correction": ("Absorption correction", "correction", "sections"),
    "anacor_dials.jobs.correct_by_faces.FaceCorrection": (
        "Absorption correction",
        "faces",
        "sections",
    ),
    "anacor_dials.jobs.compare.Comparison": (
        "Comparison of absorption corrections",
        "comparison",
        "sections",
    ),
    "anacor_dials.jobs.likeness.Likeness": ("Simulated and real scan", "likeness", "sections"),
}


@dataclass(frozen=True)
class Page:
    """A report. A notebook shows it where it is the last value of a cell."""

    title: str
    sections: Sequence[Section]

    def _repr_html_(self) -> str:
        html = escape(html_of(self.title, self.sections), quote=True)
        return f'<iframe srcdoc="{html}" width="100%" height="700" frameborder="0"></iframe>'

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one self-contained HTML file."""
        write_html(path, self.title, self.sections)


def page(result: Any) -> Page:
    """The report of a result.

    Parameters
    ----------
    result : LabelVolume, Reconstruction, SegmentedSample, Correction, FaceCorrection, ...
        What a job returned, or labels.

    Raises
    ------
    TypeError
        For anything else.
    """
    kind = f"{type(result).__module__}.{type(result).__qualname__}"
    if kind not in REPORTS:
        known = ", ".join(name.rpartition(".")[2] for name in REPORTS)
        raise TypeError(
            f"There is no report of a {type(result).__name__}; there is one of {known}."
        )
    title, module, function = REPORTS[kind]
    make = getattr(import_module(f"anacor_dials.report.{module}"), function)
    if title == "Absorption correction":
        return Page(title, make(result, _how_to_scale(result)))
    return Page(title, make(result))


def _how_to_scale(correction: CorrectedReflections) -> str:
    """The command line of dials.scale for the files of a correction, by their usual names."""
    from anacor_dials.diffraction.reflections import scale_command

    command: str = scale_command("corrected.expt", "corrected.refl", correction.experiments)
    return command
