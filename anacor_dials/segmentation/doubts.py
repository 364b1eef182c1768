"""What speaks against labels, in words: what a person would look at before trusting them.

Nothing here knows the truth. Each doubt names what was seen, its size, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.materials import typical_composition
from anacor_dials.sample.volumes import LabelVolume, Volume
from anacor_dials.segmentation.clean_up import CROSS
from anacor_dials.segmentation.working_grid import COARSEST_UM, IntensityScale

PLAUSIBLE_MU = (0.6, 1.6)  # of what the material typically has
UNSURE = 204  # of 255: a voxel whose label is less probable than 0.8
# The doubtful zone along the crystal's surface, in voxels of the working grid. Where edges are seen it is one to two
# voxels wide, the width of the point spread.
WIDE_BORDER = 3.0
NOISY = 0.5  # noise of a voxel relative to the sample's level


def doubtful_border(
    probabilities: NDArray[np.uint8], labels: NDArray[np.uint8], crystal: int
) -> float:
    """The mean width in voxels of the zone about the crystal's surface in which the label is
    unsure.

    The volume of voxels that may be crystal or not (the most probable label is less probable than
    0.8, and crystal is one of the two most probable), over the area of the crystal's surface. NaN
    without a crystal.
    """
    area = 0
    there = labels == crystal
    for axis in range(3):
        area += int(np.count_nonzero(np.diff(there, axis=axis)))
    if not area:
        return math.nan
    doubtful = 0
    for x in range(labels.shape[0]):
        p = probabilities[:, x]
        unsure = p.max(axis=0) < UNSURE
        if unsure.any():
            here = p[:, unsure].astype(np.int16)
            others = np.delete(here, crystal, axis=0)
            doubtful += int(np.count_nonzero(here[crystal] >= np.partition(others, -2, axis=0)[-2]))
    # the faces of voxels overstate the area of an oblique surface by one half on average
    return doubtful / (area / 1.5)


def find_doubts(
    probabilities: NDArray[np.uint8],
    grid: Volume,
    labels: LabelVolume,
    mu: FloatArray,
    scale: IntensityScale,
    energy_keV: float | None,
) -> Sequence[str]:
    """Sentences on what is doubtful about labels.

    probabilities: uint8 (n, nx, ny, nz) on the working grid, after the clean-up; grid: its voxels.
    labels: on the tomogram's own voxels. mu: (n,) in 1/um, the tomogram's median within each
    material, NaN where unknown.
    """
    crystal = labels.label("crystal")
    warnings = []
    counts = labels.counts()
    absent = [name for label, name in enumerate(labels.names) if label and not counts[label]]
    for name in absent:
        if name == "crystal":
            warnings.append("No crystal was found.")
    if not scale.air_seen:
        warnings.append(
            f"No air is in the field of view. The level of the sample, {scale.sample:.4g} /um, was taken from the "
            "tomogram's absolute values: are they in 1/um, and does the sample really fill the volume? What lies "
            "outside of the volume absorbs too and is not counted."
        )
    if scale.noise > NOISY * (scale.sample - scale.air):
        warnings.append(
            f"The noise of a voxel is {100 * scale.noise / (scale.sample - scale.air):.0f} % of the sample's "
            "level: edges are guessed where fringes do not mark them. More photons or projections would help."
        )
    if "crystal" not in absent:
        warnings += _crystal_doubts(probabilities, grid, labels, crystal)
    warnings += _mu_doubts(labels, mu, energy_keV)
    if float(grid.voxel_size_um.max()) > COARSEST_UM:
        warnings.append(
            f"The voxels are {float(grid.voxel_size_um.max()):.3g} um and the network was trained on at most "
            f"{COARSEST_UM} um: the loop, above all, will suffer."
        )
    return warnings


def _crystal_doubts(
    probabilities: NDArray[np.uint8], grid: Volume, labels: LabelVolume, crystal: int
) -> list[str]:
    warnings = []
    edge = labels.edge_fraction("crystal")
    if edge > 0:
        warnings.append(
            f"The crystal touches the edge of the volume ({100 * edge:.2g} % of its voxels): part of it "
            "may lie outside."
        )
    found = probabilities.argmax(axis=0).astype(np.uint8)
    bodies, n = scipy.ndimage.label(found == crystal, CROSS)
    if n > 1:
        sizes = np.sort(np.bincount(bodies.ravel())[1:])[::-1] * grid.voxel_volume_um3
        warnings.append(
            f"{n} separate bodies are labelled as crystal ({', '.join(f'{v:.3g}' for v in sizes[:4])} um^3). The "
            "factors are those of all of them together; if only the largest diffracts, give "
            "segmentation.one_crystal=True."
        )
    width = doubtful_border(probabilities, found, crystal)
    if width > WIDE_BORDER:
        warnings.append(
            f"The crystal's border is unsure: the zone in which it may lie is {width:.1f} voxels wide on average "
            f"(1 to 2 where edges are seen). Look at the map of uncertainty; the crystal may be incomplete."
        )
    return warnings


def _mu_doubts(labels: LabelVolume, mu: FloatArray, energy_keV: float | None) -> list[str]:
    warnings = []
    for label, name in enumerate(labels.names):
        composition = typical_composition(name)
        if energy_keV is None or composition is None or not math.isfinite(mu[label]):
            continue
        expected = composition.mu_per_um(energy_keV)
        if not PLAUSIBLE_MU[0] <= mu[label] / expected <= PLAUSIBLE_MU[1]:
            warnings.append(
                f"mu of the {name} is {mu[label]:.4g} /um in the tomogram, and {expected:.4g} /um is "
                f"typical at {energy_keV:.3g} keV: are the labels right, and is the tomogram in 1/um?"
            )
    return warnings
