"""The report of a correction by the crystal's faces: page, numbers, CIF block, text for the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from anacor_dials import __version__
from anacor_dials.jobs.records import AbsorptionRecord, MaterialRecord, WavelengthFactorsRecord
from anacor_dials.report.correction import (
    accuracy_items,
    accuracy_numbers,
    factor_figures,
    transmission_numbers,
)
from anacor_dials.report.page import Figure, Item, Section, Table, Text

if TYPE_CHECKING:
    from anacor_dials.jobs.correct_by_faces import FaceCorrection

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


def log_text(correction: FaceCorrection) -> str:
    """What the log says: the faces, mu and the transmissions."""
    a = correction.transmissions
    sizes = " x ".join(f"{size:.1f}" for size in correction.solid.size_um)
    share = correction.solid.areas_um2 / correction.solid.areas_um2.sum()
    lines = [
        f"Crystal of {len(correction.faces)} faces: {sizes} um, {correction.solid.volume_um3:.4g} um3",
        f"{'face':>16} {'distance um':>12} {'area um2':>12} {'of surface':>11}",
    ]
    for name, distance, area, part in zip(
        correction.faces.names,
        correction.faces.distances_um,
        correction.solid.areas_um2,
        share,
        strict=True,
    ):
        lines.append(f"{name:>16} {distance:12.2f} {area:12.1f} {100 * part:9.1f} %")
    for w in correction.wavelengths:
        crystal = w.materials[1]
        lines.append(
            f"Wavelength {w.wavelength:.5f} A ({w.energy_keV:.4f} keV): mu {crystal.mu_per_um:.6f} /um, "
            f"{1e3 * crystal.mu_per_um:.4f} /mm ({crystal.origin})"
        )
    if correction.content is not None:
        c = correction.content
        lines.append(
            f"{c.z:.2f} formula units {c.formula} in the cell at {c.density_g_cm3:g} g/cm3"
        )
    lines.append(
        f"Transmission of {len(a)} reflections: {a.min():.4f} to {a.max():.4f}, mean {a.mean():.4f}; "
        f"{correction.n_undefined} rows have no direction (factor 1)"
    )
    return "\n".join(lines)


def record(correction: FaceCorrection, scale_command: str) -> AbsorptionRecord:
    """The content of anacor_absorption.json."""
    content, faces, solid = correction.content, correction.faces, correction.solid
    listed = zip(faces.indices, faces.distances_um, solid.areas_um2, strict=True)
    return AbsorptionRecord(
        program={"name": "anacor_dials", "version": __version__},
        reflections={
            "rows": len(correction.transmission),
            "with_factor": len(correction.transmissions),
            "without_direction": correction.n_undefined,
        },
        transmission=transmission_numbers(correction.transmissions),
        wavelengths=[
            WavelengthFactorsRecord(
                wavelength_angstrom=w.wavelength,
                energy_keV=w.energy_keV,
                materials=[
                    MaterialRecord(
                        label=1,
                        name=w.materials[1].name,
                        mu_per_um=w.materials[1].mu_per_um,
                        mu_per_mm=1e3 * w.materials[1].mu_per_um,
                        from_=w.materials[1].origin,
                        volume_um3=solid.volume_um3,
                        mean_path_um=float(w.factors.mean_path_um[:, 1].mean()),
                    )
                ],
                **accuracy_numbers(w.factors.accuracy),
            )
            for w in correction.wavelengths
        ],
        warnings=correction.warnings,
        scale_command=scale_command,
        crystal={
            "faces": [
                {"hkl": hkl, "distance_um": distance, "area_um2": area}
                for hkl, distance, area in listed
            ],
            "volume_um3": solid.volume_um3,
            "size_um": solid.size_um,
            "content": None
            if content is None
            else {
                "formula": content.formula,
                "density_g_cm3": content.density_g_cm3,
                "z": content.z,
                "f000": content.f000,
            },
        },
    )


def cif_block(correction: FaceCorrection) -> str:
    """A CIF block of what checkCIF asks of a face-indexed correction; lengths in mm, mu in 1/mm.

    The core dictionary calls a correction by numerical integration over the crystal's shape
    "numerical"; "analytical" would be a sum of closed forms.
    """
    largest, middle, smallest = (size / UM_PER_MM for size in correction.solid.size_um)
    shape = [
        f"_exptl_crystal_description             {habit(correction.solid.size_um)}",
        f"_exptl_crystal_size_max                {largest:.4f}",
        f"_exptl_crystal_size_mid                {middle:.4f}",
        f"_exptl_crystal_size_min                {smallest:.4f}",
    ]
    if correction.content is not None:
        shape.append(
            f"_exptl_crystal_density_diffrn          {correction.content.density_g_cm3:.3f}"
        )
        if correction.content.f000 is not None:
            shape.append(f"_exptl_crystal_F_000                   {correction.content.f000:.0f}")
    faces = ["loop_", *(f"  _exptl_crystal_face_index_{axis}" for axis in "hkl")]
    faces.append("  _exptl_crystal_face_perp_dist")
    for h, distance in zip(correction.faces.indices, correction.faces.distances_um, strict=True):
        faces.append("  " + " ".join(f"{i:g}" for i in h) + f" {distance / UM_PER_MM:.5f}")
    lines = []
    for number, w in enumerate(correction.wavelengths, 1):
        a = w.factors.transmission
        suffix = "" if len(correction.wavelengths) == 1 else f"_{number}"
        lines += [
            f"data_anacor{suffix}",
            f"_diffrn_radiation_wavelength           {w.wavelength:.5f}",
            *shape,
            f"_exptl_absorpt_coefficient_mu          {1e3 * w.materials[1].mu_per_um:.4f}",
            f"_exptl_absorpt_correction_T_min        {a.min():.4f}",
            f"_exptl_absorpt_correction_T_max        {a.max():.4f}",
            "_exptl_absorpt_correction_type         numerical",
            "_exptl_absorpt_process_details",
            ";",
            f"  anacor_dials {__version__}: numerical integration over the crystal with its indexed faces,",
            f"  exact path lengths; rms error {100 * w.factors.accuracy.rms_error:.3f} %, {len(a)} reflections.",
            ";",
            *faces,
            "",
        ]
    return "\n".join(lines)


def sections(correction: FaceCorrection, scale_command: str) -> list[Section]:
    """The HTML report."""
    a, solid = correction.transmissions, correction.solid
    overview = [
        ("Reflections with a factor", f"{len(a)}"),
        ("Rows without a direction (factor 1)", f"{correction.n_undefined}"),
        ("Transmission, smallest", f"{a.min():.4f}"),
        ("Transmission, mean", f"{a.mean():.4f}"),
        ("Transmission, largest", f"{a.max():.4f}"),
        ("Crystal (um)", " x ".join(f"{size:.1f}" for size in solid.size_um)),
        ("Volume (um3)", f"{solid.volume_um3:.4g}"),
        *(
            (f"mu at {w.wavelength:.5f} A (1/mm)", f"{1e3 * w.materials[1].mu_per_um:.4f}")
            for w in correction.wavelengths
        ),
    ]
    traces, layout = view_of_faces(correction)
    rows = [
        (name, f"{distance:.2f}", f"{area:.1f}", f"{100 * area / solid.areas_um2.sum():.1f} %")
        for name, distance, area in zip(
            correction.faces.names, correction.faces.distances_um, solid.areas_um2, strict=True
        )
    ]
    crystal: list[Item] = [
        Table(rows, ("face", "distance (um)", "area (um2)", "of the surface"), "The faces."),
        Figure(traces, layout, "The crystal in its Cartesian frame, with its faces.", height=460),
    ]
    return [
        Section(
            "Summary",
            [
                *(Text(warning, "warning") for warning in correction.warnings),
                Table(overview),
                Text(f"How to go on:\n{scale_command}"),
            ],
        ),
        Section("Crystal", crystal),
        Section("Factors", factor_figures(correction)),
        Section("Accuracy", accuracy_items(correction)),
    ]


def view_of_faces(correction: FaceCorrection) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(traces, layout) of the crystal in three dimensions, with the indices on its faces."""
    solid = correction.solid
    x, y, z = np.round(solid.corners, 3).T
    traces: list[dict[str, Any]] = [
        {
            "type": "mesh3d",
            "x": x,
            "y": y,
            "z": z,
            "i": solid.triangles[:, 0],
            "j": solid.triangles[:, 1],
            "k": solid.triangles[:, 2],
            "facecolor": [FACE_COLOURS[f % len(FACE_COLOURS)] for f in solid.face_of_triangle],
            "opacity": 0.75,
            "flatshading": True,
            "hoverinfo": "skip",
        }
    ]
    places, names = [], []
    for face in np.flatnonzero(solid.areas_um2 > 0):
        corners = np.unique(solid.triangles[solid.face_of_triangle == face])
        places.append(
            solid.corners[corners].mean(axis=0) + 0.04 * solid.size_um[0] * solid.normals[face]
        )
        names.append(correction.faces.names[face])
    x, y, z = np.round(np.array(places), 3).T
    traces.append({"type": "scatter3d", "x": x, "y": y, "z": z, "mode": "text", "text": names})
    axes = {f"{name}axis": {"title": {"text": f"{name} (um)"}} for name in ("x", "y", "z")}
    return traces, {
        "scene": {"aspectmode": "data", **axes},
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "showlegend": False,
    }


FACE_COLOURS = ("#7fa8c9", "#c9a97f", "#8fbf8f", "#c98f9f", "#a89fc9", "#bfbf7f")
