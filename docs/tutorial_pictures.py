"""Makes the pictures of tutorial.md from the files that its commands wrote.

python docs/tutorial_pictures.py FOLDER      (the folder in which the tutorial was run)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import matplotlib
import numpy as np
from dials.array_family import flex
from dxtbx import flumpy

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PICTURES = Path(__file__).parent / "pictures"
COLOURS = {1: "tab:blue", 2: "tab:orange", 3: "tab:red"}
NAMES = {1: "liquor", 2: "loop", 3: "crystal"}


def save(figure: Any, name: str) -> None:
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / name, dpi=110, bbox_inches="tight", pil_kwargs={"optimize": True})
    plt.close(figure)


def scan_picture(folder: Path) -> None:
    """An image as recorded, its transmission, and a slice of the tomogram."""
    with h5py.File(folder / "virtual_0001.nxs") as file:
        entry = file["entry1/tomo_entry"]
        images = entry["data/data"]
        keys = entry["instrument/detector/image_key"][()]
        projection = images[int(np.flatnonzero(keys == 0)[0])].astype(float)
        flat = np.mean(images[np.flatnonzero(keys == 1)[:5]].astype(float), axis=0)
        dark = np.mean(images[np.flatnonzero(keys == 2)[:5]].astype(float), axis=0)
    with h5py.File(folder / "tomo.h5") as file:
        tomogram = file["entry/reconstruction/data"][()]
        voxel = file["entry/frame/voxel_size"][()]
        crystal = file["entry/segmentation/labels"][()] == 3
    x = int(np.argmax(crystal.sum(axis=(1, 2))))
    half = 0.5 * voxel * tomogram.shape
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), width_ratios=(1, 1, 1.35))
    view = {"cmap": "gray", "extent": (-half[1], half[1], half[0], -half[0])}
    axes[0].imshow(projection, **view)
    axes[0].set_title("an image as recorded, $\\theta$ = 0")
    axes[1].imshow((projection - dark) / (flat - dark), vmin=0, vmax=1.1, **view)
    axes[1].set_title("transmission")
    for axis in axes[:2]:
        axis.set_xlabel("Y (µm)")
        axis.set_ylabel("X, the rotation axis (µm)")
    shown = axes[2].imshow(
        1e3 * tomogram[x].T, cmap="gray", origin="lower", vmin=0, vmax=30,
        extent=(-half[1], half[1], -half[2], half[2]),
    )  # fmt: skip
    axes[2].set_title(f"a slice, X = {x * voxel[0] - half[0]:.0f} µm")
    axes[2].set_xlabel("Y (µm)")
    axes[2].set_ylabel("Z, to the source (µm)")
    figure.colorbar(shown, ax=axes[2], label="µ (1/mm)", shrink=0.75)
    figure.tight_layout()
    save(figure, "scan.png")


def labels_picture(folder: Path) -> None:
    """Slices through the crystal with the outlines of the labels and of the truth."""
    with h5py.File(folder / "tomo.h5") as file:
        tomogram = 1e3 * file["entry/reconstruction/data"][()]
        labels = file["entry/segmentation/labels"][()]
        voxel = file["entry/frame/voxel_size"][()]
        centre = file["entry/frame/centre"][()]
    with h5py.File(folder / "virtual_0001_truth.h5") as file:
        truth = file["entry/segmentation/labels"][()]
        true_voxel = file["entry/frame/voxel_size"][()]
        true_centre = file["entry/frame/centre"][()]
    middle = [round(float(c)) for c in np.argwhere(labels == 3).mean(axis=0)]
    position = [(np.arange(n) - c) * v for n, c, v in zip(labels.shape, centre, voxel, strict=True)]
    true_position = [
        (np.arange(n) - c) * v for n, c, v in zip(truth.shape, true_centre, true_voxel, strict=True)
    ]
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.2))
    for normal, axis in enumerate(axes):
        down, across = (i for i in range(3) if i != normal)
        at = position[normal][middle[normal]]
        axis.pcolormesh(
            position[across], position[down], tomogram.take(middle[normal], axis=normal),
            cmap="gray", vmin=-2, vmax=26, rasterized=True,
        )  # fmt: skip
        own = labels.take(middle[normal], axis=normal)
        true = truth.take(int(np.argmin(np.abs(true_position[normal] - at))), axis=normal)
        for label, colour in COLOURS.items():
            axis.contour(position[across], position[down], own == label, [0.5],
                         colors=colour, linewidths=1.4)  # fmt: skip
            axis.contour(true_position[across], true_position[down], true == label, [0.5],
                         colors="white", linewidths=0.7, linestyles="dotted")  # fmt: skip
        axis.set_aspect("equal")
        axis.set_xlim(position[across][[0, -1]])
        axis.set_ylim(position[down][[0, -1]])
        axis.set_xlabel(f"{'XYZ'[across]} (µm)")
        axis.set_ylabel(f"{'XYZ'[down]} (µm)")
        axis.set_title(f"{'XYZ'[normal]} = {at:.0f} µm")
    lines = [plt.Line2D([], [], color=colour) for colour in COLOURS.values()]
    lines.append(plt.Line2D([], [], color="grey", linestyle="dotted"))
    figure.legend(lines, [*NAMES.values(), "the truth"], loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    save(figure, "labels.png")


def factors_picture(folder: Path) -> None:
    """The factors against the scan angle, and against the true transmissions."""
    table = flex.reflection_table.from_file(str(folder / "corrected.refl"))
    factor = flumpy.to_numpy(table["analytical_correction"])
    true = flumpy.to_numpy(table["true.transmission"])
    angle = np.degrees(flumpy.to_numpy(table["xyzcal.mm"])[:, 2])
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    axes[0].plot(angle, factor, ".", markersize=1, color="tab:blue", rasterized=True)
    axes[0].set_xlabel("scan angle (deg)")
    axes[0].set_ylabel("transmission A")
    axes[0].set_title(f"{len(factor)} reflections")
    deviation = factor / true
    rms = np.std(deviation / deviation.mean())
    axes[1].plot(true, factor, ".", markersize=1, color="tab:blue", rasterized=True)
    axes[1].plot(*[[true.min(), true.max()]] * 2, color="grey", linewidth=0.8)
    axes[1].set_xlabel("true transmission")
    axes[1].set_ylabel("A, from the network's labels")
    axes[1].set_title(f"rms difference {100 * rms:.1f} % after one scale")
    figure.tight_layout()
    save(figure, "factors.png")


def comparison_picture(folder: Path) -> None:
    """Rmeas against resolution and Rmerge against the image, for the strategies."""
    found = json.loads((folder / "anacor_compare.json").read_text())
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    for one in found["strategies"]:
        shells = one["by_resolution"]
        axes[0].plot(1 / np.array(shells["d_min"]) ** 2, shells["r_meas"], label=one["label"])
        for sweep in one["by_image"]:
            axes[1].plot(sweep["images"], sweep["r_merge"], linewidth=0.7, label=one["label"])
    shown = [10.0, 7.0, 6.0, 5.0, 4.5, 4.2]
    axes[0].set_xticks([1 / d**2 for d in shown], [f"{d:g}" for d in shown])
    axes[0].set_xlabel("resolution (Å)")
    axes[0].set_ylabel("Rmeas")
    axes[1].set_xlabel("image")
    axes[1].set_ylabel("Rmerge")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    figure.tight_layout()
    save(figure, "comparison.png")


def main() -> None:
    folder = Path(sys.argv[1])
    scan_picture(folder)
    labels_picture(folder)
    factors_picture(folder)
    comparison_picture(folder)


if __name__ == "__main__":
    main()
