"""What iterative reconstruction is worth on hard scans, and how long it takes.

    tools/dials-env python benchmarks/iterative.py hard [pixels]
    tools/dials-env python benchmarks/iterative.py labels FOLDER [few] [noisy] [wedge]
    tools/dials-env python benchmarks/iterative.py time [pixels] [projections] [steps]

hard, time: slices of a drop with a crystal and a piece of loop, ellipses whose projections have a closed form.
labels: a scan by wave optics, FOLDER/virtual_0001.nxs with virtual_0001_truth.h5, of dials.anacor_simulate. The times are
of the processor, so that other programs on the machine hardly change them; divide them by the cores in use.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from anacor_dials.sample.tomogram_files import read_sample_file, write_sample_file
from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.segmentation.working_grid import binned_labels, working_volume
from anacor_dials.tomography import iterative
from anacor_dials.tomography.backprojection import reconstruct_slices
from anacor_dials.tomography.iterative import TotalVariation, noise_of
from anacor_dials.tomography.slice_grid import SliceGrid

# centre y, z, semi-axes along y, z, mu times the width of the image, in widths: drop, crystal, loop
ELLIPSES = (
    (0.0, 0.0, 0.375, 0.3125, 1.73), (0.06, -0.04, 0.146, 0.094, -0.115), (-0.19, 0.10, 0.03, 0.094, -0.38),
)  # fmt: skip
SLICES = 8
SCANS = {
    "60 projections of 3000 photons": (np.arange(60) * 3.0, 3000),
    "300 projections of 300 photons": (np.arange(300) * 0.6, 300),
    "200 projections over 140 degrees": (np.arange(200) * 0.7, 3000),
}
BINNED = 4  # pixels of the scan with fringes along the edge of one that is used
# which images, photons per pixel, and up to which angle
HARD: dict[str, tuple[slice, float | None, float]] = {
    "few": (slice(None, None, 7), None, 180.0),
    "noisy": (slice(None, None, 2), 300.0, 180.0),
    "wedge": (slice(None, None, 2), None, 140.0),
}


def transmissions(
    angles_deg: NDArray[np.float64], n: int, oversample: int = 4
) -> NDArray[np.float64]:
    """(n_angles, n), averaged over pixels."""
    u = ((np.arange(n * oversample) + 0.5) / oversample - n / 2) / n
    total = np.zeros((len(angles_deg), len(u)))
    for k, angle in enumerate(np.deg2rad(angles_deg)):
        for y, z, a, b, mu in ELLIPSES:
            reach = np.hypot(a * np.cos(angle), b * np.sin(angle))
            t = (u - y * np.cos(angle) + z * np.sin(angle)) / reach
            total[k] += mu * 2 * a * b / reach * np.sqrt(np.maximum(1 - t * t, 0))
    return np.exp(-total).reshape(len(angles_deg), n, oversample).mean(axis=2)


def edge_width(image: NDArray[np.float32]) -> float:
    """From 10 to 90 % of the drop's outer edge, pixels."""
    n = len(image)
    y, z, a, b = (v * n for v in ELLIPSES[0][:4])
    t = np.linspace(-6, 6, 121)
    profiles = []
    for angle in np.linspace(0, 2 * np.pi, 72, endpoint=False):
        out = np.array([np.cos(angle) / a, np.sin(angle) / b])
        out /= np.hypot(*out)
        middle = ((n - 1) / 2 + y + a * np.cos(angle), (n - 1) / 2 + z + b * np.sin(angle))
        place = [m + t * o for m, o in zip(middle, out, strict=True)]
        profiles.append(map_coordinates(image, place, order=1))
    profile = np.mean(profiles, axis=0)
    high, low = profile[:25].mean(), profile[-25:].mean()
    share = (profile - low) / (high - low)
    return float(np.interp(-0.1, -share, t) - np.interp(-0.9, -share, t))


def hard(n: int) -> None:
    """Noise, mu of the crystal and width of edges, of both methods."""
    grid, axis = SliceGrid(n), (n - 1) / 2
    y, z = np.mgrid[:n, :n] / n - (n - 1) / (2 * n)
    cy, cz, a, b, _ = ELLIPSES[1]
    crystal = ((y - cy) / (a - 2 / n)) ** 2 + ((z - cz) / (b - 2 / n)) ** 2 <= 1
    mu = (ELLIPSES[0][4] + ELLIPSES[1][4]) / n
    print("| scan | method | mu of the crystal | noise in it | edge (pixels) | CPU s per slice |")
    print("|---|---|---|---|---|---|")
    for name, (angles, photons) in SCANS.items():
        rng = np.random.default_rng(0)
        t = transmissions(angles, n)
        counts = [rng.poisson(photons * t) / photons for _ in range(SLICES)]
        sinograms = -np.log(np.maximum(np.stack(counts), 1e-3)).astype(np.float32)
        start = time.process_time()
        fbp = reconstruct_slices(sinograms, angles, axis, 1.0, grid, "shepp-logan")
        middle = time.process_time()
        solver = TotalVariation.of_scan(angles, axis, n, (1.0, 1.0), grid, noise_of(sinograms))
        found = solver.slices(sinograms)
        end = time.process_time()
        for method, values, seconds in (
            ("fbp", fbp, middle - start),
            ("iterative", found, end - middle),
        ):
            inside = values[:, crystal]
            print(
                f"| {name} | {method} | {100 * (inside.mean() / mu - 1):+.2f} % | "
                f"{100 * inside.std(axis=1).mean() / mu:.2f} % | {edge_width(values.mean(axis=0)):.2f} | "
                f"{seconds / SLICES:.2f} |",
                flush=True,
            )


def hard_copy(scan: Path, out: Path, angles: slice, photons: float | None, upto: float) -> None:
    """A scan of `scan`'s images in pixels of four by four, or fewer of them, or with more noise.

    angles: which of the images up to `upto` degrees; photons: per pixel of the beam, None for those
    that there are.
    """
    rng = np.random.default_rng(0)
    shutil.copyfile(scan, out)
    with h5py.File(out, "r+") as file:
        entry = file["entry1/tomo_entry"]
        keys, theta = entry["data/image_key"][()], entry["data/rotation_angle"][()]
        chosen = np.flatnonzero((keys == 0) & (theta < upto))[angles]
        others = np.flatnonzero(keys != 0)
        numbers = np.sort(np.concatenate([chosen, others]))
        images = entry["data/data"]
        n = images.shape[1] // BINNED
        binned = np.empty((len(numbers), n, n), np.float32)
        for k, number in enumerate(numbers):
            binned[k] = images[number].reshape(n, BINNED, n, BINNED).mean(axis=(1, 3))
        if photons is not None:
            dark = binned[keys[numbers] == 2].mean()
            level = binned[keys[numbers] == 1].mean() - dark
            for k in np.flatnonzero(keys[numbers] == 0):
                counts = rng.poisson(np.maximum(binned[k] - dark, 0) * (photons / level))
                binned[k] = counts * (level / photons) + dark
        for name, values in (
            ("data/data", binned), ("data/image_key", keys[numbers]), ("data/rotation_angle", theta[numbers]),
        ):  # fmt: skip
            attributes = dict(entry[name].attrs)
            del entry[name]
            entry[name] = values
            entry[name].attrs.update(attributes)
        detector = entry["instrument/detector"]
        for name in ("x_pixel_size", "y_pixel_size"):
            detector[name][()] *= BINNED
        for name in ("data", "image_key"):
            if name in detector:
                del detector[name]
                detector[name] = entry[f"data/{name}"]


def binned_truth(truth: Path, out: Path) -> None:
    """The most frequent label of every BINNED^3 voxels of a truth.h5."""
    found = read_sample_file(truth, tomogram=False)
    assert found.labels is not None
    blocks = (BINNED, BINNED, BINNED)
    values = binned_labels(found.labels.values, blocks, len(found.labels.names))
    grid = working_volume(found.labels, values, blocks)
    write_sample_file(
        out,
        labels=LabelVolume(values, grid.voxel_size_um, grid.centre, found.labels.names),
        mu_per_um=found.mu_per_um,
    )


def labels(folder: str, *names: str) -> None:
    """Scores of labels from tomograms by both methods, of a scan with fringes made hard.

    folder: with virtual_0001.nxs and virtual_0001_truth.h5 of dials.anacor_simulate, images of 1024
    x 1024 pixels of 0.3 um over 180 degrees. names: of HARD; all if there are none.
    """
    from anacor_dials.jobs.reconstruct import reconstruct
    from anacor_dials.jobs.segment import SegmentationSettings, segment_sample
    from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings

    print("| scan | labels from | recall of the loop (Dice) | Dice of the crystal | HD95 (um) |")
    print("|---|---|---|---|---|", flush=True)
    for name in names or HARD:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            truth, scan = Path(temporary) / "truth.h5", Path(temporary) / "scan.nxs"
            binned_truth(Path(folder) / "virtual_0001_truth.h5", truth)
            hard_copy(Path(folder) / "virtual_0001.nxs", scan, *HARD[name])
            for method in ("fbp", "iterative"):
                try:
                    found = segment_sample(
                        reconstruct(scan, settings=ReconstructionSettings(method=method)),
                        SegmentationSettings(uncertainty=False),
                        truth=truth,
                    ).evaluation
                except ValueError as error:
                    print(f"| {name} | {method} | {error} | | |", flush=True)
                    continue
                assert found is not None
                loop, crystal = (
                    next(c for c in found.classes if c.name == n) for n in ("loop", "crystal")
                )
                print(
                    f"| {name} | {method} | {100 * loop.recall:.1f} % ({loop.dice:.3f}) | "
                    f"{crystal.dice:.3f} | {crystal.hd95_um:.2f} |",
                    flush=True,
                )


def measure(n: int, n_angles: int, steps: int) -> None:
    """CPU seconds of a slice, by some of the steps."""
    angles = np.arange(n_angles) * 180.0 / n_angles
    sinograms = np.repeat(-np.log(transmissions(angles, n))[None], iterative.LANES - 2, axis=0)
    sinograms = sinograms.astype(np.float32)
    grid = SliceGrid(n)
    small = TotalVariation.of_scan(angles[:3], (n - 1) / 2, n, (1.0, 1.0), grid, 0.01)
    small.slices(sinograms[:, :3])  # compiled
    start = time.process_time()
    solver = TotalVariation.of_scan(angles, (n - 1) / 2, n, (1.0, 1.0), grid, 0.01)
    once = time.process_time() - start
    usual, iterative.STEPS = iterative.STEPS, steps
    start = time.process_time()
    solver.slices(sinograms)
    per_slice = (time.process_time() - start) * usual / steps / len(sinograms)
    print(
        f"{n} x {n} voxels, {n_angles} projections, {usual} steps: {per_slice:.2f} s per slice "
        f"(from {steps} steps), {once:.1f} s once; {n} slices {(n * per_slice + once) / 60:.1f} min of one core"
    )


def main() -> None:
    what, *given = sys.argv[1:] or ["hard"]
    if what == "labels":
        labels(*given)
        return
    values = [int(v) for v in given]
    if what == "hard":
        hard(*(values or [96]))
    else:
        measure(*(values + [256, 900, 4][len(values) :]))


if __name__ == "__main__":
    main()
