"""Tomograms of samples of other kinds, made by code that shares nothing with the simulator.

    tools/dials-env python benchmarks/other_samples.py FOLDER [--kinds plate needle]
    tools/dials-env python benchmarks/segmentation.py evaluate FOLDER --shipped

Each has one trait that varies from a common sample: a bevelled box of crystal in an ellipsoid of liquor with a ring of
fibre around it, 144^3 voxels of 1.2 um at 3.5 keV. Solids are signed distances on the grid, with edges of one voxel.
What is seen is the contrast transfer of free propagation in the volume, blurred, with the noise of a ramp filter in
slices across X. They are to measure on: nothing is trained on them, and nothing is chosen by them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.sample.volumes import LabelVolume, Tomogram

Field = NDArray[np.float64]

N, VOXEL = 144, 1.2  # um
WAVELENGTH = 3.5424e-4  # um, 3.5 keV
MU = 0.013  # 1/um, of liquor
DELTA = 1.88e-5  # of water; the others relative to it
DELTAS = 1.02, 1.10, 1.12  # of liquor, loop and crystal
DROP = np.array([58.0, 52.0, 50.0])  # um, half axes
RING = 62.0, 48.0  # um, half axes of the fibre's middle


@dataclass(frozen=True)
class Kind:
    """A sample, how it is seen, and what is wrong with the tomogram.

    Lengths are in um, noise, rings, streaks and offset relative to the mu of liquor; contrasts are
    mu relative to it, less one, and deltas are relative to water's.
    """

    half: tuple[float, float, float] = (26.0, 20.0, 34.0)  # of the crystal's edges
    bevel: float = 0.85  # where corners are cut; 2 does not cut them
    rounding: float = 0.0  # radius
    contrast: float = 0.04  # of the crystal
    loop_contrast: float = -0.16
    deltas: tuple[float, float, float] = DELTAS
    scale: float = 1.0  # of drop and fibre
    liquor: str = "drop"  # or skin, none
    protruding: float = 0.0  # how far the crystal is off the middle, half axes of the drop
    second_crystal: bool = False
    crack: bool = False
    bubble: bool = False
    grains: int = 0  # of salt
    film: bool = False  # in place of the fibre
    distance_mm: float = 9.0
    blur: float = 1.0
    noise: float = 0.1
    rings: float = 0.0
    streaks: float = 0.0
    cupping: float = 0.0
    offset: float = 0.0


KINDS = {
    "plain": Kind(),
    "cupping": Kind(cupping=0.2),
    "rings": Kind(rings=0.05),
    "streaks": Kind(streaks=0.15),
    "offset": Kind(offset=0.15),
    "noise-0.3": Kind(noise=0.3),
    "strong-fringes": Kind(distance_mm=25.0, blur=0.9),
    "weak-fringes": Kind(distance_mm=1.0, noise=0.05),
    "no-fringes-noisy": Kind(distance_mm=0.1, noise=0.2, contrast=0.1),
    "equal-mu": Kind(contrast=0.0),
    "lighter": Kind(contrast=-0.12),
    "heavy": Kind(contrast=0.4),
    "heavy-noisy": Kind(contrast=0.6, noise=0.3),
    "rounded": Kind(bevel=2.0, rounding=16.0),
    "protruding-equal": Kind(contrast=0.0, protruding=0.7),
    "dry": Kind(liquor="none"),
    "skin": Kind(liquor="skin"),
    "plate": Kind(half=(40.0, 32.0, 5.0), bevel=2.0),
    "needle": Kind(half=(7.0, 7.0, 45.0), bevel=2.0),
    "small": Kind(half=(9.0, 8.0, 11.0)),
    "two-crystals": Kind(half=(20.0, 16.0, 24.0), second_crystal=True),
    "bubble-crack": Kind(bubble=True, crack=True),
    "salt": Kind(grains=12),
    "film": Kind(film=True),
    "fills-the-view": Kind(half=(44.0, 37.0, 52.0), scale=2.2),
    # near the compositions of crystals with half of protein: with nylon in 2 M ammonium sulfate, with
    # polyimide in 2 M sodium chloride (where it has -0.49 by its own) and in 50 % MPD
    "ammonium-sulfate": Kind(contrast=-0.20, loop_contrast=-0.59, deltas=(1.12, 1.12, 1.21)),
    "sodium-chloride": Kind(contrast=-0.24, loop_contrast=-0.43, deltas=(1.05, 1.31, 1.17)),
    "mpd": Kind(contrast=0.11, loop_contrast=0.13, deltas=(0.97, 1.31, 1.13)),
}


# ---- solids: signed distances, um, negative inside ------------------------------------------------


def places() -> list[Field]:
    """x, y, z of the voxels, um, as arrays that broadcast."""
    line = (np.arange(N) - (N - 1) / 2) * VOXEL
    return list(np.meshgrid(line, line, line, indexing="ij", sparse=True))


def turned(x: list[Field], turn: NDArray[np.float64], centre: NDArray[np.float64]) -> list[Field]:
    """Coordinates in the frame of a body."""
    return [sum(row[j] * (x[j] - centre[j]) for j in range(3)) for row in turn]


def box(x: list[Field], half: NDArray[np.float64], kind: Kind) -> Field:
    """A box with rounded edges and cut corners."""
    beyond = [np.abs(x[k]) - (half[k] - kind.rounding) for k in range(3)]
    outside = np.sqrt(sum(np.maximum(b, 0.0) ** 2 for b in beyond))
    inside = np.minimum(np.maximum(np.maximum(beyond[0], beyond[1]), beyond[2]), 0.0)
    distance = outside + inside - kind.rounding
    for normal in np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]]) / np.sqrt(2):
        at = sum(normal[k] * np.abs(x[k]) for k in range(3))
        distance = np.maximum(distance, at - kind.bevel * float(normal @ half))
    return distance


def ellipsoid(x: list[Field], half: NDArray[np.float64]) -> Field:
    """An ellipsoid; the distance is right on its surface."""
    return (np.sqrt(sum((x[k] / half[k]) ** 2 for k in range(3))) - 1) * float(min(half))


def fibre(x: list[Field], scale: float) -> Field:
    """A ring of fibre in the plane z = 0, and its stem along +X."""
    a, b = scale * RING[0], scale * RING[1]
    off = (np.sqrt((x[0] / a) ** 2 + (x[1] / b) ** 2) - 1) * min(a, b)
    ring = np.sqrt(off**2 + x[2] ** 2) - 5.0
    along = np.maximum(a - x[0], 0.0)
    return np.minimum(ring, np.sqrt(along**2 + x[1] ** 2 + x[2] ** 2) - 6.0)


def film(x: list[Field]) -> Field:
    """A round film, 8 um thick."""
    return np.maximum(np.abs(x[2] + 8.0) - 4.0, np.sqrt(x[0] ** 2 + x[1] ** 2) - 60.0)


def share(distance: Field) -> Field:
    """The share of a body in each voxel."""
    return np.clip(0.5 - distance / VOXEL, 0.0, 1.0)


def shares(kind: Kind, rng: np.random.Generator) -> dict[str, Field]:
    """The shares of crystal, loop, liquor and salt in each voxel."""
    x = places()
    turn = Rotation.random(random_state=rng).as_matrix()
    half, drop = np.array(kind.half), kind.scale * DROP
    centre = rng.uniform(-6.0, 6.0, 3) + kind.protruding * drop.min() * np.array([0.0, 0.6, 0.8])
    crystal = box(turned(x, turn, centre), half, kind)
    if kind.second_crystal:
        further = Rotation.random(random_state=rng).as_matrix()
        beside = centre + further[0] * 1.9 * half.min()
        crystal = np.minimum(crystal, box(turned(x, further, beside), 0.7 * half, kind))
    if kind.crack:
        crystal = np.maximum(crystal, 1.3 - np.abs(turned(x, turn, centre)[0] - 4.0))
    loop = film(x) if kind.film else fibre(x, kind.scale)
    liquor = {
        "drop": ellipsoid(x, drop),
        "skin": np.minimum(crystal, loop) - 3.0,
        "none": np.full((N, N, N), np.inf),
    }[kind.liquor]
    if kind.bubble:
        bubble = np.sqrt(sum((x[k] - at) ** 2 for k, at in enumerate((12.0, -22.0, 14.0)))) - 9.0
        liquor = np.maximum(liquor, -bubble)
    found = {"crystal": share(crystal)}
    found["loop"] = share(loop) * (1 - found["crystal"])
    found["liquor"] = share(liquor) * (1 - found["crystal"]) * (1 - found["loop"])
    salt = np.zeros((N, N, N))
    for _ in range(kind.grains):
        at, radius = rng.uniform(-30.0, 30.0, 3), rng.uniform(2.0, 4.0)
        salt = np.maximum(salt, share(np.sqrt(sum((x[k] - at[k]) ** 2 for k in range(3))) - radius))
    found["salt"] = salt * found["liquor"]
    return found


# ---- what is seen ---------------------------------------------------------------------------------


def transferred(mu: Field, delta: Field, kind: Kind) -> Field:
    """cos(chi) mu + (4 pi / lambda) sin(chi) delta in the spectrum, chi = pi lambda z f^2, blurred."""
    f = np.fft.fftfreq(N, VOXEL)
    squares = f[:, None, None] ** 2 + f[:, None] ** 2 + np.fft.rfftfreq(N, VOXEL) ** 2
    chi = np.pi * WAVELENGTH * 1e3 * kind.distance_mm * squares
    spectrum = np.cos(chi) * scipy.fft.rfftn(mu)
    spectrum += 4 * np.pi / WAVELENGTH * np.sin(chi) * scipy.fft.rfftn(delta)
    spectrum *= np.exp(-2 * np.pi**2 * kind.blur**2 * squares)
    seen: Field = scipy.fft.irfftn(spectrum, (N, N, N))
    return seen


def noise(rng: np.random.Generator) -> Field:
    """White in projections: in slices across X its power grows with the frequency."""
    f = np.hypot(np.fft.fftfreq(N)[:, None], np.fft.rfftfreq(N))
    white = scipy.fft.rfft2(rng.standard_normal((N, N, N)))
    grains = scipy.fft.irfft2(white * np.sqrt(f) * np.exp(-0.5 * (f / 0.35) ** 2), (N, N))
    return grains / float(grains.std())


def artefacts(kind: Kind, rng: np.random.Generator) -> Field:
    """Rings about the axis, in each slice somewhat others, and straight streaks, relative to mu."""
    _, y, z = (c[0] if c.shape[0] == 1 else c for c in places())
    radius = np.hypot(y, z)
    wrong = np.zeros((N, N, N))
    common = rng.standard_normal(200)
    for plane in wrong if kind.rings else ():
        line = common + 0.3 * rng.standard_normal(200)
        plane += kind.rings * np.interp(radius, 0.8 * np.arange(200), line / line.std())
    for _ in range(8 if kind.streaks else 0):
        angle, off, first = rng.uniform(0, np.pi), rng.uniform(-40, 40), rng.integers(20, 100)
        line = np.cos(angle) * y + np.sin(angle) * z - off
        sign = rng.choice([-1, 1])
        wrong[first : first + 24] += sign * kind.streaks * np.exp(-0.5 * (line / 1.5) ** 2)
    return wrong


def sample(kind: Kind, seed: int) -> tuple[Tomogram, LabelVolume, NDArray[np.float64]]:
    """(tomogram in 1/um, true labels, mu of background, liquor, loop and crystal)."""
    rng = np.random.default_rng(seed)
    found = shares(kind, rng)
    levels = MU * np.array([0.0, 1.0, 1 + kind.loop_contrast, 1 + kind.contrast])
    names = ("liquor", "loop", "crystal")
    mu = sum(level * found[name] for level, name in zip(levels[1:], names, strict=True))
    mu = mu + 5 * MU * found["salt"]
    delta = sum(level * found[name] for level, name in zip(kind.deltas, names, strict=True))
    delta = DELTA * (delta + 0.8 * found["salt"])
    values = transferred(mu, delta, kind)
    values += MU * (kind.noise * noise(rng) + artefacts(kind, rng) + kind.offset)
    _, y, z = places()
    values *= 1 - kind.cupping * np.clip(1 - (y**2 + z**2) / 60.0**2, 0, 1)
    air = 1 - sum(found[name] for name in names)
    labels = np.argmax([air, *(found[name] for name in names)], axis=0).astype(np.uint8)
    return Tomogram(values.astype(np.float32), VOXEL), LabelVolume(labels, VOXEL), levels


def write(folder: Path, names: list[str], tell: Callable[[str], None] = print) -> None:
    """Writes NAME.tomo.h5 and NAME.truth.h5 of some kinds; what is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(KINDS):
        files = folder / f"{name}.tomo.h5", folder / f"{name}.truth.h5"
        if name not in names or files[0].exists():
            continue
        tomogram, labels, mu = sample(KINDS[name], 1000 + number)
        write_sample_file(files[1], tomogram, labels, mu, 3.5)
        write_sample_file(files[0], tomogram)
        tell(
            f"{name}: {', '.join(f'{n} {m}' for n, m in zip(labels.names, labels.counts(), strict=True))}"
        )


def main() -> None:
    """Writes what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    given = parser.parse_args()
    write(given.folder, given.kinds)


if __name__ == "__main__":
    main()
