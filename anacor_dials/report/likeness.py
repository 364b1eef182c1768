"""The report of a simulated scan beside the real one: page and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anacor_dials.jobs.records import LikenessRecord
from anacor_dials.report.page import Figure, Item, Section, Table

if TYPE_CHECKING:
    from anacor_dials.jobs.likeness import Likeness


def sections(likeness: Likeness) -> list[Section]:
    """The figures against the projection's number, projections and slices side by side."""
    realism, stride = likeness.realism, likeness.stride
    numbers = np.arange(len(realism.ssim)) * stride
    curves = [
        Figure(
            [{"type": "scatter", "mode": "lines+markers", "x": numbers, "y": np.round(values, 6)}],
            {"xaxis": {"title": {"text": "projection"}}, "yaxis": {"title": {"text": name}}},
            caption,
        )
        for name, values, caption in (
            ("SSIM", realism.ssim, "Structural similarity; 1 for equal images."),
            (
                "PSNR (dB)",
                realism.psnr_db,
                "Peak signal-to-noise ratio of the transmission, range 1.",
            ),
            ("MSE", realism.mse, "Mean squared difference of the transmission."),
        )
    ]
    rows = [(name, f"{value:.4g}") for name, value in realism.summary().items()]
    pictures: list[Item] = []
    n = len(realism.ssim)
    for k in (0, n // 3, 2 * n // 3):
        angle = realism.angles_deg[k]
        for scan, which, name in (
            (likeness.real, k * stride, "real"),
            (likeness.simulated, k, "simulated"),
        ):
            image = scan.transmission(slice(which, which + 1))[0]
            pictures.append(_picture(image, f"{name}, {angle:.1f} deg", 1.2))
    slices = [
        _picture(
            1e3 * values,
            f"{name}: mu (1/mm), X = 0",
            1e3 * float(np.percentile(values, 99.5)),
        )
        for name, values in zip(("real", "simulated"), likeness.slices, strict=True)
    ]
    return [
        Section("Likeness", [Table(rows), *curves]),
        Section("Projections side by side", pictures),
        Section("Slices side by side", slices),
    ]


def record(likeness: Likeness) -> LikenessRecord:
    """The content of the JSON file."""
    realism = likeness.realism
    return LikenessRecord(
        angles_deg=realism.angles_deg.tolist(),
        ssim=realism.ssim.tolist(),
        psnr_db=realism.psnr_db.tolist(),
        mse=realism.mse.tolist(),
        **realism.summary(),
    )


def log_line(likeness: Likeness) -> str:
    """The means over all projections."""
    summary = likeness.realism.summary()
    return (
        f"SSIM {summary['ssim_mean']:.3f}, PSNR {summary['psnr_db_mean']:.1f} dB, "
        f"MSE {summary['mse_mean']:.2e} (means over {len(likeness.realism.ssim)} projections)"
    )


def _picture(image: NDArray[Any], title: str, high: float) -> Figure:
    """A grey picture of an image."""
    step = max(1, max(image.shape) // 400)
    trace = {
        "type": "heatmap",
        "z": np.round(np.nan_to_num(image[::step, ::step]).astype(float), 5),
        "zmin": 0.0,
        "zmax": high,
        "colorscale": "Greys",
        "reversescale": True,
    }
    layout = {
        "title": {"text": title},
        "yaxis": {"scaleanchor": "x", "autorange": "reversed"},
        "xaxis": {"constrain": "domain"},
    }
    return Figure([trace], layout)
