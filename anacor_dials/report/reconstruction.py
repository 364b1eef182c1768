"""The report of a reconstruction: its page, its figures (plotly dictionaries), its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anacor_dials.jobs.records import ReconstructionRecord
from anacor_dials.report.page import Figure, Section, Table, Text
from anacor_dials.sample.materials import typical_composition

if TYPE_CHECKING:
    from anacor_dials.jobs.reconstruct import Reconstruction
    from anacor_dials.sample.frames import FloatImages
    from anacor_dials.tomography.reconstruction_plan import Diagnostics, ReconstructionPlan
    from anacor_dials.tomography.scan_checks import ScanFindings

PlotlyFigure = dict[str, Any]


def expected_mu(energy_keV: float | None) -> dict[str, float]:
    """mu in 1/um of what samples are usually made of; nothing where the energy is unknown."""
    if energy_keV is None:
        return {}
    compositions = {name: typical_composition(name) for name in ("crystal", "liquor", "loop")}
    return {
        name: composition.mu_per_um(energy_keV)
        for name, composition in compositions.items()
        if composition is not None
    }


def level_text(findings: ScanFindings) -> str:
    """The beam's level beside the sample, in words."""
    if findings.level is None:
        return "no air is seen at all angles: as in the flats"
    return "{:.4f} of the flats, {:.4f} to {:.4f}".format(*findings.level)


def sections(plan: ReconstructionPlan) -> list[Section]:
    """The sections of the HTML report."""
    d, p = plan.diagnostics, plan.projections
    drawn = {
        name: Figure(figure["data"], figure["layout"])
        for name, figure in figures(plan, expected_mu(p.geometry.energy_keV)).items()
    }
    rows = [
        ("scan", p.path),
        ("layout", p.layout),
        ("projections", f"{d.n_projections}, {d.angles_deg[0]:.2f} to {d.angles_deg[1]:.2f} deg"),
        ("left out", "; ".join(text for text, _ in p.findings.left_out) or "none"),
        ("beam beside the sample", level_text(p.findings)),
        (
            "drift along, across the axis",
            " and ".join(f"{d:.1f}" for d in p.findings.drift_px) + " pixels, put back",
        ),
        ("tilt of the axis", f"{p.findings.tilt_deg:.2f} deg, put back"),
        (
            "energy",
            "unknown" if p.geometry.energy_keV is None else f"{p.geometry.energy_keV:g} keV",
        ),
        ("voxels", " x ".join(str(n) for n in plan.shape) + " along X, Y, Z"),
        ("voxel size", " x ".join(f"{v:g}" for v in plan.voxel_size_um) + " um"),
        ("origin at voxel", ", ".join(f"{v:.2f}" for v in plan.centre)),
        ("rotation axis", f"pixel {d.centre:.2f} ({d.centre_method})"),
        ("clipped transmissions", f"{d.clipped_percent:.3f} %"),
        ("unusable pixels", f"{d.unusable_percent:.3f} %"),
        ("zingers", f"{d.zinger_percent:.3f} %"),
        ("back-projection", f"{d.backend}, {d.seconds_per_slice:.3f} s per slice"),
    ]
    return [
        Section("Summary", [Table(rows), *(Text(w, "warning") for w in d.warnings)]),
        Section("Slices", [f for n, f in drawn.items() if n.startswith("slice_")]),
        Section("Absorption coefficient", [f for n, f in drawn.items() if n == "histogram"]),
        Section("Centre of rotation", [f for n, f in drawn.items() if n.startswith("centre_")]),
        Section("Sinograms", [f for n, f in drawn.items() if n.startswith("sinogram_")]),
    ]


def tomogram_sections(reconstruction: Reconstruction) -> list[Section]:
    """The three middle slices of a tomogram."""
    values = reconstruction.tomogram.values
    items = []
    for axis, (down, across) in enumerate((("Y", "Z"), ("X", "Z"), ("X", "Y"))):
        image = np.take(values, values.shape[axis] // 2, axis=axis)
        title = f"Middle slice across {'XYZ'[axis]}"
        figure = _picture(image, title, across, down, "mu (1/um)")
        items.append(Figure(figure["data"], figure["layout"]))
    return [Section("Slices", items)]


def _rounded(image: NDArray[Any]) -> list[list[float]]:
    """The values with three significant digits: what a picture shows, in a small file."""
    scale = float(np.abs(image).max()) or 1.0
    digits = 2 - int(np.floor(np.log10(scale)))
    rounded = np.round(image.astype(np.float64), digits)
    values: list[list[float]] = (rounded.astype(int) if digits <= 0 else rounded).tolist()
    return values


def _grey(image: FloatImages, window: tuple[float, float], **trace: Any) -> dict[str, Any]:
    return {
        "type": "heatmap",
        "z": _rounded(image),
        "zmin": window[0],
        "zmax": window[1],
        "colorscale": "Greys",
        "reversescale": True,
        **trace,
    }


def _bytes(image: FloatImages, window: tuple[float, float]) -> FloatImages:
    """Whole numbers from 0 to 255 between the ends of a window."""
    scaled = (image - window[0]) / (window[1] - window[0])
    return np.rint(255 * scaled.clip(0, 1)).astype(np.float32)


def _window(image: FloatImages) -> tuple[float, float]:
    low, high = np.percentile(image, (0.5, 99.8))
    return float(low), float(high) if high > low else float(low) + 1.0


def _picture(image: FloatImages, title: str, x: str, y: str, unit: str) -> PlotlyFigure:
    return {
        "data": [_grey(image, _window(image), colorbar={"title": {"text": unit}})],
        "layout": {
            "title": {"text": title},
            "xaxis": {"title": {"text": x}, "constrain": "domain"},
            "yaxis": {"title": {"text": y}, "scaleanchor": "x", "autorange": "reversed"},
        },
    }


def figures(
    plan: ReconstructionPlan, expected_mu_per_um: Mapping[str, float] | None = None
) -> dict[str, PlotlyFigure]:
    """Name -> figure: sinograms before and after, sweep of the centre, slices, histogram of mu.

    expected_mu_per_um: material -> mu in 1/um, drawn into the histogram.
    """
    d = plan.diagnostics
    drawn = _sinograms(d) | _centre_figures(d)
    axes = {"x": ("Z", "Y"), "y": ("Z", "X"), "z": ("Y", "X")}
    for name, image in d.slices.items():
        across, down = axes[name]
        drawn[f"slice_{name}"] = _picture(
            image, f"Middle slice across {name.upper()}", across, down, "mu (1/um)"
        )
    if d.histogram is not None:
        drawn["histogram"] = _histogram(*d.histogram, expected_mu_per_um or {})
    return drawn


def _sinograms(d: Diagnostics) -> dict[str, PlotlyFigure]:
    """A sinogram before and after the corrections."""
    drawn = {}
    for name, image in (("before", d.sinogram_before), ("after", d.sinogram_after)):
        if image is not None:
            title = f"Sinogram {name} corrections, slice {d.sinogram_x}"
            figure = _picture(image, title, "pixel across the axis", "projection", "-ln T")
            figure["layout"]["yaxis"].pop("scaleanchor")
            drawn[f"sinogram_{name}"] = figure
    return drawn


def _centre_figures(d: Diagnostics) -> dict[str, PlotlyFigure]:
    """A slice with the rotation axis at several places, and the negative values at each."""
    if d.sweep is None:
        return {}
    sweep = d.sweep
    here = int(np.argmin(np.abs(sweep.centres - d.centre)))
    window = _window(sweep.pictures[here])
    k = np.arange(len(sweep.centres))
    steps = [
        {
            "label": f"{centre:.2f}",
            "method": "restyle",
            "args": [{"visible": (k == i).tolist()}],
        }
        for i, centre in enumerate(sweep.centres)
    ]
    slices = {
        "data": [
            _grey(_bytes(picture, window), (0, 255), visible=i == here, showscale=False)
            for i, picture in enumerate(sweep.pictures)
        ],
        "layout": {
            "title": {"text": f"Slice {sweep.x} with the rotation axis elsewhere"},
            "xaxis": {"constrain": "domain", "title": {"text": "Z"}},
            "yaxis": {"scaleanchor": "x", "autorange": "reversed", "title": {"text": "Y"}},
            "sliders": [
                {"active": here, "currentvalue": {"prefix": "axis at pixel "}, "steps": steps}
            ],
        },
    }
    negativity = {
        "data": [
            {
                "type": "scatter",
                "x": sweep.centres.tolist(),
                "y": (100 * sweep.negativity).tolist(),
                "mode": "lines+markers",
            }
        ],
        "layout": {
            "title": {"text": "Negative values: least at the right axis"},
            "xaxis": {"title": {"text": "rotation axis (pixel)"}},
            "yaxis": {"title": {"text": "share of negative values (%)"}},
            "shapes": [_vertical_line(d.centre)],
        },
    }
    return {"centre_sweep": slices, "centre_negativity": negativity}


def _histogram(
    edges: NDArray[Any], counts: NDArray[Any], expected_mu_per_um: Mapping[str, float]
) -> PlotlyFigure:
    """The histogram of mu, with lines at the values that are expected."""
    return {
        "data": [
            {
                "type": "scatter",
                "x": (0.5 * (edges[1:] + edges[:-1])).tolist(),
                "y": np.maximum(counts, 0.5).tolist(),
                "mode": "lines",
                "line": {"shape": "hvh"},
            }
        ],
        "layout": {
            "title": {"text": "mu of all voxels"},
            "xaxis": {"title": {"text": "mu (1/um)"}},
            "yaxis": {"title": {"text": "voxels"}, "type": "log"},
            "shapes": [_vertical_line(mu) for mu in expected_mu_per_um.values()],
            "annotations": [
                {
                    "x": mu,
                    "y": 1.0 - 0.07 * i,
                    "yref": "paper",
                    "text": f"{name} {mu:.4g}",
                    "showarrow": False,
                    "xanchor": "left",
                }
                for i, (name, mu) in enumerate(expected_mu_per_um.items())
            ],
        },
    }


def _vertical_line(x: float) -> dict[str, Any]:
    return {
        "type": "line",
        "x0": x,
        "x1": x,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"dash": "dot"},
    }


def record(plan: ReconstructionPlan) -> ReconstructionRecord:
    """The content of anacor_reconstruct.json."""
    d, p = plan.diagnostics, plan.projections
    edges, counts = d.histogram if d.histogram is not None else (np.empty(0), np.empty(0))
    return ReconstructionRecord(
        scan=str(p.path),
        layout=p.layout,
        n_projections=d.n_projections,
        angles_deg=d.angles_deg,
        largest_gap_deg=d.largest_gap_deg,
        full_turn=d.full_turn,
        energy_keV=p.geometry.energy_keV,
        left_out=[{"projections": n, "why": text} for text, n in p.findings.left_out],
        beam_level=p.findings.level,
        drift_pixels=p.findings.drift_px,
        tilt_deg=p.findings.tilt_deg,
        backend=d.backend,
        filter=plan.settings.filter_name,
        rings=plan.settings.rings,
        phase_retrieved=d.phase_retrieved,
        centre_of_rotation_pixel=d.centre,
        centre_method=d.centre_method,
        centre_per_slice=d.centre_per_slice,
        shape=plan.shape,
        voxel_size_um=plan.voxel_size_um.tolist(),
        origin_voxel=plan.centre.tolist(),
        clipped_percent=d.clipped_percent,
        unusable_percent=d.unusable_percent,
        zinger_percent=d.zinger_percent,
        seconds=d.seconds,
        seconds_per_slice=d.seconds_per_slice,
        histogram={"edges_per_um": edges.tolist(), "counts": counts.tolist()},
        warnings=d.warnings,
    )
