"""The report of a correction by meshes: page, numbers, CIF block, text for the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from anacor_dials import __version__
from anacor_dials.jobs.records import AbsorptionRecord, MaterialRecord, WavelengthFactorsRecord
from anacor_dials.report.cif import absorption_blocks, content_lines, shape_lines
from anacor_dials.report.correction import (
    accuracy_items,
    accuracy_numbers,
    factor_figures,
    transmission_numbers,
)
from anacor_dials.report.page import Figure, Item, Section, Table, Text
from anacor_dials.report.sample import colour
from anacor_dials.report.solid_view import layout_of

if TYPE_CHECKING:
    from anacor_dials.jobs.correct_by_meshes import MeshCorrection

MOST_TRIANGLES = 40_000  # of the picture; more make the page slow
FRAMES = {"tomo": "the tomogram", "datum": "the goniometer at zero"}


def log_text(correction: MeshCorrection) -> str:
    """What the log says: the meshes, mu and the transmissions."""
    a, sample = correction.transmissions, correction.sample
    lines = [
        f"Meshes in the frame of {FRAMES[correction.frame]}; where they overlap the first counts:"
    ]
    lines += [
        f"{name:>12} {len(surface.triangles):8d} triangles, "
        f"{' x '.join(f'{size:.1f}' for size in surface.size_um)} um, {surface.volume_um3:.4g} um3{within}"
        for name, surface, within in zip(
            sample.names[1:], sample.surfaces, ["", *_shares(correction)], strict=True
        )
    ]
    for w in correction.wavelengths:
        lines.append(f"Wavelength {w.wavelength:.5f} A ({w.energy_keV:.4f} keV):")
        lines += [
            f"{m.name:>12} mu {m.mu_per_um:.6f} /um, {1e3 * m.mu_per_um:.4f} /mm ({m.origin})"
            for m in w.materials[1:]
        ]
    lines.append(
        f"Transmission of {len(a)} reflections: {a.min():.4f} to {a.max():.4f}, mean {a.mean():.4f}; "
        f"{correction.n_undefined} rows have no direction (factor 1)"
    )
    return "\n".join(lines)


def _shares(correction: MeshCorrection) -> list[str]:
    return [
        f", around {100 * share:.0f} % of the crystal's corners"
        for share in correction.crystal_share
    ]


def record(correction: MeshCorrection, scale_command: str) -> AbsorptionRecord:
    """The content of anacor_absorption.json."""
    sample, content = correction.sample, correction.content
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
                        label=m.label,
                        name=m.name,
                        mu_per_um=m.mu_per_um,
                        mu_per_mm=1e3 * m.mu_per_um,
                        from_=m.origin,
                        volume_um3=surface.volume_um3,
                        mean_path_um=float(w.factors.mean_path_um[:, m.label].mean()),
                    )
                    for m, surface in zip(w.materials[1:], sample.surfaces, strict=True)
                ],
                **accuracy_numbers(w.factors.accuracy),
            )
            for w in correction.wavelengths
        ],
        warnings=correction.warnings,
        scale_command=scale_command,
        crystal={
            "faces": None,
            "volume_um3": sample.crystal.volume_um3,
            "size_um": sample.crystal.size_um,
            "content": None if content is None else content.numbers,
        },
        meshes={
            "frame": correction.frame,
            "materials": [
                {
                    "name": name,
                    "triangles": len(surface.triangles),
                    "volume_um3": surface.volume_um3,
                    "bounds_um": surface.bounds_um,
                }
                for name, surface in zip(sample.names[1:], sample.surfaces, strict=True)
            ],
        },
        tomo_to_datum=correction.to_datum.tolist() if correction.frame == "tomo" else None,
    )


def cif_block(correction: MeshCorrection) -> str:
    """CIF blocks on the correction."""
    others = ", ".join(correction.sample.names[2:])
    details = [
        [
            f"  anacor_dials {__version__}: numerical integration over the crystal by a mesh of its surface,",
            f"  exact path lengths{f', with meshes of {others}' if others else ''};",
            f"  rms error {100 * w.factors.accuracy.rms_error:.3f} %, {len(w.factors.transmission)} reflections.",
        ]
        for w in correction.wavelengths
    ]
    crystal = shape_lines(correction.sample.crystal.size_um) + content_lines(correction.content)
    return absorption_blocks(correction.wavelengths, crystal, details, [])


def sections(correction: MeshCorrection, scale_command: str) -> list[Section]:
    """The HTML report."""
    a, sample = correction.transmissions, correction.sample
    overview = [
        ("Reflections with a factor", f"{len(a)}"),
        ("Rows without a direction (factor 1)", f"{correction.n_undefined}"),
        ("Transmission, smallest", f"{a.min():.4f}"),
        ("Transmission, mean", f"{a.mean():.4f}"),
        ("Transmission, largest", f"{a.max():.4f}"),
        ("Crystal (um)", " x ".join(f"{size:.1f}" for size in sample.crystal.size_um)),
        *(
            (f"mu of {m.name} at {w.wavelength:.5f} A (1/mm)", f"{1e3 * m.mu_per_um:.4f}")
            for w in correction.wavelengths
            for m in w.materials[1:]
        ),
    ]
    rows = [
        (name, f"{len(surface.triangles)}", f"{surface.volume_um3:.4g}", within)
        for name, surface, within in zip(
            sample.names[1:],
            sample.surfaces,
            ["", *(f"{100 * share:.0f} %" for share in correction.crystal_share)],
            strict=True,
        )
    ]
    meshes: list[Item] = [
        Table(
            rows,
            ("material", "triangles", "volume (um3)", "corners of the crystal inside"),
            "The meshes; where they overlap the first counts.",
        )
    ]
    if sum(len(surface.triangles) for surface in sample.surfaces) <= MOST_TRIANGLES:
        where = f"The meshes, in the frame of {FRAMES[correction.frame]}."
        traces = _views(correction)
        layout = layout_of(traces, ("x", "y", "z"))
        meshes.append(Figure(traces, layout, where, height=460))
    else:
        meshes.append(Text(f"No picture is drawn of more than {MOST_TRIANGLES} triangles."))
    return [
        Section(
            "Summary",
            [
                *(Text(warning, "warning") for warning in correction.warnings),
                Table(overview),
                Text(f"How to go on:\n{scale_command}"),
            ],
        ),
        Section("Sample", meshes),
        Section("Factors", factor_figures(correction)),
        Section("Accuracy", accuracy_items(correction)),
    ]


def _views(correction: MeshCorrection) -> list[dict[str, Any]]:
    traces = []
    colours = (colour(3), colour(1), colour(2), *(colour(k) for k in range(4, 100)))
    for name, surface, its_colour in zip(
        correction.sample.names[1:], correction.sample.surfaces, colours, strict=False
    ):
        x, y, z = np.round(surface.vertices, 2).T
        i, j, k = surface.triangles.T
        traces.append(
            {
                "type": "mesh3d",
                "x": x,
                "y": y,
                "z": z,
                "i": i,
                "j": j,
                "k": k,
                "color": its_colour,
                "opacity": 1.0 if name == "crystal" else 0.25,
                "flatshading": True,
                "name": name,
                "hoverinfo": "name",
            }
        )
    return traces
