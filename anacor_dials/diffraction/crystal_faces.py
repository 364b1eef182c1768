"""The faces of a crystal: face lists of other programs, and the solid in the crystal's own frame.

A face (h k l) is perpendicular to the reciprocal vector B h in the Cartesian frame of the crystal.
The orientation matrix U turns this frame into the datum frame. Here the crystal's frame takes the
place of the frame of the tomogram. A reflection that is measured at the scan angle phi, with
R = S R'(phi) F, has its source at (R U)^T (-s0) and leaves along (R U)^T s1. Neither a tomogram nor
its alignment is needed.

Four kinds of lists are read:

* ``h k l distance`` on each line, the distance in um;
* lines ``FACE h k l distance`` (SHELX-76, PLATON), the distance in mm; other lines are skipped, so
  that a whole .ins file can be given;
* files ``.cap``: lines of ``h k l distance``, in mm, which may begin with a word or a number with a
  colon, and go on; other lines are skipped;
* CIF, as CrysAlisPro writes it: the loop of ``_exptl_crystal_face_index_h`` and
  ``_exptl_crystal_face_perp_dist``, which is in mm from the face to the centre of rotation of the
  crystal (CIF core dictionary).
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dxtbx.model import Crystal, Experiment, ExperimentList
from numpy.typing import NDArray

from anacor_dials.absorption.convex_solid import ConvexSolid
from anacor_dials.sample.frames import FloatArray

logger = logging.getLogger("dials.anacor_dials.diffraction.crystal_faces")

UM_PER_MM = 1000.0
FACE_SUFFIXES = (".txt", ".faces", ".ins", ".res", ".cap", ".cif")  # no scan or volume has these
CIF_FACE = "_exptl_crystal_face"
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
CAP_LINE = re.compile(
    rf"(?im)^[ \t]*(?:[a-z]\S*[ \t]+)?(?:\d+[:)][ \t]*)?((?:{NUMBER}[ \t]+){{3}}{NUMBER})\b.*$"
)
# Crystals for X-rays; what lies outside has its distances in another unit.
SMALLEST_CRYSTAL_UM, LARGEST_CRYSTAL_UM = 0.5, 10_000.0
# Orientations of one mounted crystal differ by less, by refinement and slippage of the goniometer.
SAME_ORIENTATION_DEG = 1.0


@dataclass(frozen=True, eq=False)
class CrystalFaces:
    """Miller indices of the faces of a crystal and their distances from a point inside it.

    Parameters
    ----------
    indices : array (n, 3)
        Miller indices; fractional ones for faces that are no lattice planes.
    distances_um : array (n,)
        um, from the centre of rotation.

    Raises
    ------
    ValueError
        If a face has the indices 0 0 0, a distance is not > 0, or a face is there twice.
    """

    indices: FloatArray
    distances_um: FloatArray

    def __post_init__(self) -> None:
        hkl = np.asarray(self.indices, dtype=np.float64).reshape(-1, 3)
        distances = np.asarray(self.distances_um, dtype=np.float64).reshape(-1)
        object.__setattr__(self, "indices", hkl)
        object.__setattr__(self, "distances_um", distances)
        if len(hkl) != len(distances):
            raise ValueError(f"There are {len(hkl)} faces and {len(distances)} distances.")
        for h, distance in zip(hkl, distances, strict=True):
            if not np.all(np.isfinite(h)) or not h.any():
                raise ValueError(f"A face has the Miller indices {_hkl(h)}; no plane has them.")
            if not (np.isfinite(distance) and distance > 0):
                raise ValueError(
                    f"The face {_hkl(h)} has the distance {distance:g}; distances are measured from a "
                    "point inside the crystal and are > 0."
                )
        if len(np.unique(hkl, axis=0)) < len(hkl):
            names, counts = np.unique(hkl, axis=0, return_counts=True)
            raise ValueError(f"The face {_hkl(names[np.argmax(counts)])} is there more than once.")

    def __len__(self) -> int:
        return len(self.distances_um)

    @property
    def names(self) -> list[str]:
        """The indices of each face in words, such as "(1 0 -1)"."""
        return [_hkl(h) for h in self.indices]

    def solid(self, crystal: Crystal) -> ConvexSolid:
        """The crystal as a solid in the crystal's Cartesian frame, um.

        Raises ValueError if the faces do not enclose a volume, or are of an unlikely size.
        """
        b = np.array(crystal.get_B(), dtype=np.float64).reshape(3, 3)
        solid = ConvexSolid(self.indices @ b.T, self.distances_um)
        largest, _, smallest = solid.size_um
        if largest > LARGEST_CRYSTAL_UM or smallest < SMALLEST_CRYSTAL_UM:
            raise ValueError(
                f"The faces make a crystal of {smallest:.3g} to {largest:.3g} um; distances are in um "
                "(h k l distance), or in mm on FACE lines and in CIF."
            )
        return solid


def _hkl(indices: NDArray[Any]) -> str:
    return "(" + " ".join(f"{h:.4g}" for h in np.asarray(indices, dtype=float) + 0.0) + ")"


def is_face_list(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a list of faces by its name, and no tomography."""
    return Path(path).suffix.lower() in FACE_SUFFIXES and Path(path).is_file()


# ---- face lists ----------------------------------------------------------------------------------


def read_faces(path: str | os.PathLike[str]) -> CrystalFaces:
    """The faces in a file; see the head of this module for the formats.

    Raises
    ------
    ValueError
        If the file is not text, a line cannot be read, or there are no faces in it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, IsADirectoryError):
        raise ValueError(f"{path} is no text file; give a list of faces, h k l distance.") from None
    if re.search(rf"(?im)^\s*{CIF_FACE}_index_h\b", text):
        faces = _faces_of_cif(text, path)
    elif Path(path).suffix.lower() == ".cap":
        faces = _faces_of_lines(CAP_LINE.findall(text), UM_PER_MM, path)
    elif re.search(r"(?im)^\s*FACE\s", text):
        lines = re.findall(r"(?im)^\s*FACE\s+(.*)$", text)
        faces = _faces_of_lines(lines, UM_PER_MM, path)
    else:
        lines = [line.split("#")[0].strip() for line in text.splitlines()]
        faces = _faces_of_lines([line for line in lines if line], 1.0, path)
    logger.info("%s: %d faces", path, len(faces))
    return faces


def _faces_of_lines(lines: list[str], um_per_unit: float, path: Any) -> CrystalFaces:
    rows = []
    for line in lines:
        try:
            rows.append([float(word) for word in line.replace(",", " ").split()])
        except ValueError:
            rows.append([])
        if len(rows[-1]) != 4:
            raise ValueError(
                f"{path}: the line {line!r} is no face; four numbers are needed: h k l distance."
            )
    if not rows:
        raise ValueError(f"{path} holds no faces; give a line h k l distance_um for each.")
    values = np.array(rows)
    return CrystalFaces(values[:, :3], values[:, 3] * um_per_unit)


def _faces_of_cif(text: str, path: Any) -> CrystalFaces:
    from iotbx import cif

    try:
        model = cif.reader(input_string=text).model()
    except Exception as error:  # of the parser, of several classes
        raise ValueError(f"{path} cannot be read as CIF: {str(error).splitlines()[0]}") from None
    names = [f"{CIF_FACE}_index_{axis}" for axis in "hkl"] + [f"{CIF_FACE}_perp_dist"]
    found = []
    for block in model.values():
        if names[0] not in block:
            continue
        missing = [name for name in names if name not in block]
        if missing:
            raise ValueError(f"{path} lists faces without {missing[0]}.")
        columns = [block[name] for name in names]
        found += list(zip(*([c] if isinstance(c, str) else c for c in columns), strict=True))
    # a standard uncertainty in brackets is no part of the number
    lines = [" ".join(re.sub(r"\(\d+\)", "", word) for word in row) for row in found]
    return _faces_of_lines(list(dict.fromkeys(lines)), UM_PER_MM, path)


def faces_text(faces: CrystalFaces) -> str:
    """The faces as text that :func:`read_faces` reads: h k l distance_um."""
    lines = ["# h k l distance_um"]
    for h, distance in zip(faces.indices, faces.distances_um, strict=True):
        lines.append(" ".join(f"{i:g}" for i in h) + f" {distance:.3f}")
    return "\n".join(lines) + "\n"


def cap_lines(faces: CrystalFaces) -> str:
    """The faces as lines h k l distance, mm."""
    return "".join(
        f"{' '.join(f'{i:g}' for i in h)} {distance / UM_PER_MM:.5f}\n"
        for h, distance in zip(faces.indices, faces.distances_um, strict=True)
    )


def shelx_lines(faces: CrystalFaces) -> str:
    """The faces as lines FACE h k l distance, mm."""
    return "".join(f"FACE {line}\n" for line in cap_lines(faces).splitlines())


# ---- the crystal frame ---------------------------------------------------------------------------


def crystal_to_datum(experiment: Experiment, number: int) -> FloatArray:
    """U (3, 3), from the crystal's Cartesian frame to the datum frame.

    Raises ValueError if the experiment, whose number is given for the message, has no crystal.
    """
    if experiment.crystal is None:
        raise ValueError(
            f"Experiment {number} has no crystal model, so the orientation of the faces is unknown; give "
            "indexed and integrated data."
        )
    return np.array(experiment.crystal.get_U(), dtype=np.float64).reshape(3, 3)


def orientation_warnings(experiments: ExperimentList, reference: int) -> list[str]:
    """Sentences on experiments whose crystal is not oriented as that of the reference one."""
    first = crystal_to_datum(experiments[reference], reference)
    warnings = []
    for number, experiment in enumerate(experiments):
        turn = crystal_to_datum(experiment, number) @ first.T
        angle = float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1.0, 1.0))))
        if angle > SAME_ORIENTATION_DEG:
            warnings.append(
                f"The crystal of experiment {number} is turned by {angle:.1f} deg against that of "
                f"experiment {reference}, with all goniometer angles at zero. If it was not mounted anew, the "
                "sweeps are indexed differently, and its faces are wrong: index and integrate them together."
            )
    return warnings
