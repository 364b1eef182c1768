"""CIF blocks on an absorption correction; lengths in mm, mu in 1/mm.

The core dictionary calls a correction by numerical integration over the crystal's shape
"numerical"; "analytical" would be a sum of closed forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anacor_dials.diffraction.crystal_faces import CrystalFaces
    from anacor_dials.jobs.correct import WavelengthFactors
    from anacor_dials.jobs.correct_by_faces import CellContent

UM_PER_MM = 1000.0
# A crystal whose smallest size is below this fraction of the middle one is called a plate; whose
# middle size is below it of the largest one, a needle.
THIN = 0.4


def habit(size_um: tuple[float, float, float]) -> str:
    """The habit as CIF names it: plate, needle or block, from the three sizes."""
    largest, middle, smallest = size_um
    if middle < THIN * largest:
        return "needle"
    return "plate" if smallest < THIN * middle else "block"


def shape_lines(size_um: tuple[float, float, float]) -> list[str]:
    """The habit and the three sizes of a crystal, from its largest, middle and smallest size."""
    largest, middle, smallest = (size / UM_PER_MM for size in size_um)
    return [
        f"_exptl_crystal_description             {habit(size_um)}",
        f"_exptl_crystal_size_max                {largest:.4f}",
        f"_exptl_crystal_size_mid                {middle:.4f}",
        f"_exptl_crystal_size_min                {smallest:.4f}",
    ]


def content_lines(content: CellContent | None) -> list[str]:
    """The density and F(000), as far as they are known."""
    if content is None:
        return []
    lines = [f"_exptl_crystal_density_diffrn          {content.density_g_cm3:.3f}"]
    if content.f000 is not None:
        lines.append(f"_exptl_crystal_F_000                   {content.f000:.0f}")
    return lines


def face_lines(faces: CrystalFaces) -> list[str]:
    """The loop of the faces with their distances."""
    lines = ["loop_", *(f"  _exptl_crystal_face_index_{axis}" for axis in "hkl")]
    lines.append("  _exptl_crystal_face_perp_dist")
    for h, distance in zip(faces.indices, faces.distances_um, strict=True):
        lines.append("  " + " ".join(f"{i:g}" for i in h) + f" {distance / UM_PER_MM:.5f}")
    return lines


def cif_of_faces(faces: CrystalFaces) -> str:
    """A CIF that holds the faces alone."""
    return "\n".join(["data_faces", *face_lines(faces), ""])


def absorption_blocks(
    wavelengths: Sequence[WavelengthFactors],
    crystal: Sequence[str],
    details: Sequence[Sequence[str]],
    faces: Sequence[str],
) -> str:
    """The blocks of all wavelengths.

    Parameters
    ----------
    wavelengths : sequence of WavelengthFactors
    crystal : sequence of str
        Lines on the shape and the content of the crystal.
    details : sequence of sequences of str
        The lines of _exptl_absorpt_process_details, for each wavelength.
    faces : sequence of str
        Lines of :func:`face_lines`, or none.
    """
    lines = []
    for number, (w, said) in enumerate(zip(wavelengths, details, strict=True), 1):
        a = w.factors.transmission
        suffix = "" if len(wavelengths) == 1 else f"_{number}"
        mu = next(m.mu_per_um for m in w.materials if m.name == "crystal")
        lines += [
            f"data_anacor{suffix}",
            f"_diffrn_radiation_wavelength           {w.wavelength:.5f}",
            *crystal,
            f"_exptl_absorpt_coefficient_mu          {1e3 * mu:.4f}",
            f"_exptl_absorpt_correction_T_min        {a.min():.4f}",
            f"_exptl_absorpt_correction_T_max        {a.max():.4f}",
            "_exptl_absorpt_correction_type         numerical",
            "_exptl_absorpt_process_details",
            ";",
            *said,
            ";",
            *faces,
            "",
        ]
    return "\n".join(lines)
