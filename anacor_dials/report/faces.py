"""The report of a correction by the crystal's faces: page, numbers, CIF block, text for the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anacor_dials import __version__
from anacor_dials.jobs.records import AbsorptionRecord, MaterialRecord, WavelengthFactorsRecord
from anacor_dials.report.cif import absorption_blocks, content_lines, face_lines, shape_lines
from anacor_dials.report.correction import (
    accuracy_items,
    accuracy_numbers,
    factor_figures,
    transmission_numbers,
)
from anacor_dials.report.page import Figure, Item, Section, Table, Text
from anacor_dials.report.solid_view import view_of_solid

if TYPE_CHECKING:
    from anacor_dials.jobs.correct_by_faces import FaceCorrection


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
            "content": None if content is None else content.numbers,
        },
    )


def cif_block(correction: FaceCorrection) -> str:
    """CIF blocks of what checkCIF asks of a face-indexed correction."""
    crystal = shape_lines(correction.solid.size_um) + content_lines(correction.content)
    details = [
        [
            f"  anacor_dials {__version__}: numerical integration over the crystal with its indexed faces,",
            f"  exact path lengths; rms error {100 * w.factors.accuracy.rms_error:.3f} %, "
            f"{len(w.factors.transmission)} reflections.",
        ]
        for w in correction.wavelengths
    ]
    return absorption_blocks(correction.wavelengths, crystal, details, face_lines(correction.faces))


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
    traces, layout = view_of_solid(solid, correction.faces.names)
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
