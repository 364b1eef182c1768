"""What is said of the faces that were found in the labels: table, numbers, picture, alignment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from anacor_dials.jobs.records import FacesRecord
from anacor_dials.report.page import Figure, Item, Table, Text
from anacor_dials.report.solid_view import TEXT_AWAY, view_of_points, view_of_solid

if TYPE_CHECKING:
    from anacor_dials.diffraction.alignment.from_faces import FaceAlignment
    from anacor_dials.diffraction.crystal_surface.indices import FaceIndices
    from anacor_dials.jobs.crystal_faces import FoundFaces, SampleFaces

HEADER = (
    "face",
    "indices",
    "distance (um)",
    "area (um2)",
    "of the surface",
    "angle to the lattice (deg)",
    "error of the normal (deg)",
    "likely by chance",
)
MOST_POINTS = 4000  # of a picture of the surface
MOST_RIVALS = 4  # that are named


def _rows(one: FoundFaces) -> list[tuple[str, ...]]:
    """The cells of HEADER for each face."""
    planes, indices = one.planes, one.indices
    whole = one.surface.areas.sum()
    rows: list[tuple[str, ...]] = []
    for k in range(len(planes)):
        hkl, distance, angle, chance = "", planes.distances_um[k], "", ""
        if indices is not None and one.distances_um is not None:
            is_plane, distance = indices.is_lattice_plane[k], one.distances_um[k]
            h = indices.indices[k]
            hkl = " ".join(f"{i:.0f}" if is_plane else f"{i:.3f}" for i in h)
            angle = f"{indices.angles_deg[k]:.2f}" if is_plane else "no lattice plane"
            chance = f"{indices.by_chance[k]:.1e}" if is_plane else ""
        rows.append(
            (
                f"{k + 1}",
                hkl,
                f"{distance:.2f}",
                f"{planes.areas_um2[k]:.0f}",
                f"{100 * planes.areas_um2[k] / whole:.1f} %",
                angle,
                f"{planes.normal_errors_deg[k]:.2f}",
                chance,
            )
        )
    return rows


def _forms(indices: FaceIndices) -> str:
    """The forms of the faces, and how many of the faces of each are there."""
    found = []
    for form in dict.fromkeys(indices.forms[indices.forms >= 0].tolist()):
        members = indices.indices[indices.forms == form]
        name = max(members.tolist(), key=lambda hkl: (sum(i >= 0 for i in hkl), hkl))
        whole = len(members) + np.count_nonzero(indices.absent_forms == form)
        found.append(f"{{{' '.join(f'{i:.0f}' for i in name)}}} ({len(members)} of {whole})")
    return f"They are of the form{'s' if len(found) > 1 else ''} {', '.join(found)}"


def _summary(one: FoundFaces, number: int, several: bool) -> str:
    """What is said of the faces of one crystal as a whole."""
    name = f"Crystal {number}" if several else "The crystal"
    planes = one.planes
    if not one.has_faces:
        return f"{name} has no faces: {one.reason}."
    text = (
        f"{name}, of {one.surface.volume_um3:.4g} um3, has {len(planes)} faces, in which "
        f"{100 * planes.flat_share:.0f} % of its surface lies, within {planes.rms_um:.2f} um rms."
    )
    if one.indices is not None:
        text += (
            f" {np.count_nonzero(one.indices.is_lattice_plane)} of them, with "
            f"{100 * one.lattice_share:.0f} % of their area, are lattice planes of experiment {one.experiment} at "
            "the alignment used."
        )
        if one.indices.is_lattice_plane.any():
            text += f" {_forms(one.indices)}."
    else:
        text += " The experiments have no crystal model, so they have no indices."
    if one.solid is not None and one.origin_um is not None:
        x, y, z = one.origin_um
        text += f" Distances are from X {x:.1f}, Y {y:.1f}, Z {z:.1f} um of the tomogram."
    else:
        text += " The faces found do not enclose the crystal."
    return text


def alignment_sentences(fit: FaceAlignment) -> list[str]:
    """What the faces say of the alignment."""
    if not np.isfinite(fit.offset_deg):
        return [f"The faces do not determine the alignment: {fit.reason}."]
    best = (
        f"offset {fit.offset_deg:.2f} ({fit.offset_error_deg:.2f}) deg with sense {fit.sense:+d}, log of the "
        f"likelihood ratio to faces without a lattice {fit.log_likelihood:.1f}; {fit.log_likelihood_before:.1f} "
        f"at the alignment given ({fit.before.angle_offset_deg:.2f} deg, {fit.before.rotation_sense:+d})"
    )
    if not fit.determined:
        return [f"The faces do not determine the alignment: {fit.reason}.", f"The best: {best}."]
    said = [
        f"By the faces: {best}. Normals are {fit.rms_angle_deg:.2f} deg (rms) from the reciprocal vectors; the "
        f"whole rotation is {fit.tilt_deg:.2f} ({fit.tilt_error_deg:.2f}) deg from one about the axis."
    ]
    if fit.rivals:
        listed = ", ".join(
            f"{x:.1f} deg {sense:+d} ({less:.1f} less)"
            for x, sense, less in fit.rivals[:MOST_RIVALS]
        )
        said.append(f"The next best alignments: {listed}.")
    return said


def faces_text(faces: SampleFaces) -> str:
    """The faces for the log."""
    lines = []
    several = len(faces.crystals) > 1
    for number, one in enumerate(faces.crystals, 1):
        lines.append(_summary(one, number, several))
        if one.has_faces:
            lines.append(
                f"{'face':>4} {'h k l':>16} {'distance um':>12} {'area um2':>10} {'surface':>8} {'angle deg':>17} "
                f"{'error':>6}"
            )
            lines += [
                f"{r[0]:>4} {r[1]:>16} {r[2]:>12} {r[3]:>10} {r[4]:>8} {r[5]:>17} {r[6]:>6}"
                for r in _rows(one)
            ]
    if faces.alignment_fit is not None:
        lines += alignment_sentences(faces.alignment_fit)
    return "\n".join(lines)


def faces_record(faces: SampleFaces) -> FacesRecord:
    """The faces in anacor_absorption.json."""
    fit = faces.alignment_fit
    return FacesRecord(
        crystals=[_crystal_content(one) for one in faces.crystals],
        alignment=None
        if fit is None
        else {
            "determined": fit.determined,
            "reason": fit.reason or None,
            "angle_offset_deg": fit.offset_deg,
            "angle_offset_error_deg": fit.offset_error_deg,
            "rotation_sense": fit.sense,
            "log_likelihood_ratio": fit.log_likelihood,
            "log_likelihood_ratio_given": fit.log_likelihood_before,
            "rivals": [
                {"angle_offset_deg": x, "rotation_sense": sense, "less": less}
                for x, sense, less in fit.rivals
            ],
            "rms_angle_deg": fit.rms_angle_deg,
            "tilt_deg": fit.tilt_deg,
            "tilt_error_deg": fit.tilt_error_deg,
        },
    )


def _crystal_content(one: FoundFaces) -> dict[str, Any]:
    planes, indices = one.planes, one.indices
    return {
        "reason_for_no_faces": one.reason or None,
        "volume_um3": one.surface.volume_um3,
        "flat_share": planes.flat_share,
        "rms_um": planes.rms_um,
        "experiment": None if indices is None else one.experiment,
        "origin_um": one.origin_um,
        "encloses_the_crystal": one.solid is not None,
        "faces": [
            {
                "hkl": None if indices is None else indices.indices[k],
                "lattice_plane": None if indices is None else bool(indices.is_lattice_plane[k]),
                "distance_um": planes.distances_um[k]
                if one.distances_um is None
                else one.distances_um[k],
                "area_um2": planes.areas_um2[k],
                "angle_deg": None if indices is None else indices.angles_deg[k],
                "normal": planes.normals[k],
                "normal_error_deg": planes.normal_errors_deg[k],
            }
            for k in range(len(planes))
        ],
    }


def faces_items(faces: SampleFaces) -> list[Item]:
    """The faces for the HTML report: tables, pictures, and what they say of the alignment."""
    items: list[Item] = []
    several = len(faces.crystals) > 1
    for number, one in enumerate(faces.crystals, 1):
        items.append(Text(_summary(one, number, several)))
        if not one.has_faces:
            continue
        items.append(
            Table(
                _rows(one),
                HEADER,
                "The faces. Angle: between the normal of the face and the reciprocal vector. Likely by "
                "chance: the expected number of lattice planes as frequent, or more so, that are as near.",
            )
        )
        items.append(_picture(one))
    fit = faces.alignment_fit
    if fit is None:
        return items
    items.append(Text("\n".join(alignment_sentences(fit))))
    if len(fit.offsets_deg):
        items.append(
            Figure(
                [
                    {"x": fit.offsets_deg, "y": curve, "mode": "lines", "name": f"sense {sense:+d}"}
                    for sense, curve in zip((1, -1), fit.curves, strict=True)
                ],
                {
                    "xaxis": {"title": {"text": "angle offset (deg)"}},
                    "yaxis": {"title": {"text": "log of the likelihood ratio"}},
                },
                "How well the faces fit the lattice, against the angle offset.",
            )
        )
    return items


def _picture(one: FoundFaces) -> Figure:
    axes = ("X", "Y", "Z")
    if one.solid is not None:
        traces, layout = view_of_solid(one.solid, one.names, axes)
        caption = (
            "The polyhedron of the faces in the frame of the tomogram; X is the rotation axis."
        )
        return Figure(traces, layout, caption, height=460)
    every = max(1, len(one.surface.points) // MOST_POINTS)
    traces, layout = view_of_points(
        one.surface.points[::every],
        one.planes.face_of_point[::every].tolist(),
        one.planes.middles + 2 * TEXT_AWAY * one.surface.size_um * one.planes.normals,
        one.names,
        axes,
    )
    caption = (
        "Points of the crystal's surface by faces, in the frame of the tomogram; grey: of no face."
    )
    return Figure(traces, layout, caption, height=460)
