"""What speaks against the labels, in words: what a person should look at before trusting them.

The true labels are not known here. Each sentence names what was seen, how large it is, and what to
do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.materials import typical_composition
from anacor_dials.sample.volumes import LabelVolume, Volume
from anacor_dials.segmentation.clean_up import CROSS, bodies_with
from anacor_dials.segmentation.expected_overlap import SAMPLES, OverlapForecast
from anacor_dials.segmentation.experts import CONTRADICTED
from anacor_dials.segmentation.tiles import most_probable
from anacor_dials.segmentation.unseen_borders import BorderSeen
from anacor_dials.segmentation.working_grid import COARSEST_UM, IntensityScale

# mu of a material relative to that of its typical composition; a wrong unit or wrong labels change
# it by more. From compositions, 2.6 to 7 keV: 70 % MPD has 0.67 times the mu of the liquor, 2 M
# ammonium sulfate 1.4 to 1.6, 4 M sodium chloride or 1.4 M potassium phosphate up to 2.7; crystals
# in them 0.77 to 2.3. What loops are made of is known better.
PLAUSIBLE_MU = {"liquor": (0.6, 2.8), "crystal": (0.6, 2.8), "loop": (0.6, 1.6)}
UNSURE = 204  # of 255: the label of a voxel is uncertain if its probability is less than 0.8
# Width of the uncertain zone at the crystal's surface, in voxels of the working grid. If edges are
# seen, it is one to two voxels wide, as the point spread is. Chosen by hand; of 31 virtual samples
# that were left out of training it finds 8 of the 18 with a Dice below 0.9, and none of the others.
WIDE_BORDER = 3.0
# Labels of the crystal are doubtful if they are poor with a larger probability: if the mean
# probability of their voxels is below 0.905. Chosen on the 65 virtual samples left out of the
# training, of which it finds 33 of the 38 poor ones and 8 of the 27 others.
LIKELY_POOR = 0.4
# Of the border between crystal and liquor. Of 12 full scans that were left out it was 0.002 at most
# where labels were right, and 0.32 where crystal and liquor were exchanged. Of the samples of the
# stream it was 0.10 at most on five of six with a Dice above 0.95, and 0.14 and more on four of the
# eight others.
MOST_UNSEEN = 0.12
NOISY = 0.5  # noise of a voxel relative to the sample's level; training samples have up to 0.45


@dataclass(frozen=True)
class Evidence:
    """What is known of the crystal's labels beside their probabilities.

    Attributes
    ----------
    overlap : OverlapForecast or None
        With the true crystal.
    contradicted : float
        The part of the crystal that the coarse pass surely takes for something else
        (:func:`.experts.contradicted`); NaN if unknown.
    border : BorderSeen or None
        How much of the border between crystal and liquor shows in the tomogram, in its voxels.
    """

    overlap: OverlapForecast | None = None
    contradicted: float = math.nan
    border: BorderSeen | None = None

    def doubts(self) -> list[str]:
        """Sentences on what speaks against the labels."""
        found = []
        if self.contradicted > CONTRADICTED:
            found.append(
                f"Slices and the whole sample tell of different crystals: {100 * self.contradicted:.0f} % of what is "
                "labelled as crystal looks like something else where the sample is seen as a whole. Crystal and "
                "liquor may be exchanged. Look at the slices, and put the labels right (dials.anacor_edit)."
            )
        if self.border is not None and self.border.unseen > MOST_UNSEEN:
            around = ""
            if self.border.voxels:
                voxel = ", ".join(map(str, self.border.voxels[0]))
                around = f" around voxel {voxel} (of X, Y, Z, from 0)"
            found.append(
                f"{100 * self.border.unseen:.0f} % of the border between crystal and liquor do not show in the tomogram, "
                f"and the rest does: the crystal may end elsewhere, or be incomplete. Look at the slices{around}; "
                "put the labels right (dials.anacor_edit), and let the network learn it (labels.mode=learn)."
            )
        if self.overlap is not None and self.overlap.chance_of_poor > LIKELY_POOR:
            found.append(
                f"The labels of the crystal may be poor: their overlap (Dice) with the true crystal is foretold to be "
                f"{self.overlap}, by {SAMPLES} virtual samples with known truth. Look at the slices; put "
                "right what is wrong (dials.anacor_edit), and let the network learn it (labels.mode=learn)."
            )
        return found


def doubtful_border(
    probabilities: NDArray[np.uint8], labels: NDArray[np.uint8], crystal: int
) -> float:
    """The mean width (voxels) of the zone at the crystal's surface in which labels are uncertain.

    It is the volume of the zone over the area of the crystal's surface. The zone is made of
    uncertain voxels that are connected with the crystal: the most probable label is less probable
    than 0.8, and crystal is one of the two most probable labels. What looks like crystal elsewhere
    in the drop does not count. NaN if there is no crystal.

    Parameters
    ----------
    probabilities : array (n, nx, ny, nz) of uint8
    labels : array (nx, ny, nz) of uint8
    crystal : int
        The label of the crystal.
    """
    area = 0
    there = labels == crystal
    for axis in range(3):
        area += int(np.count_nonzero(np.diff(there, axis=axis)))
    if not area:
        return math.nan
    zone = np.zeros(labels.shape, dtype=bool)
    for x in range(labels.shape[0]):
        p = probabilities[:, x]
        unsure = p.max(axis=0) < UNSURE
        if unsure.any():
            here = p[:, unsure].astype(np.int16)
            others = np.delete(here, crystal, axis=0)
            zone[x][unsure] = here[crystal] >= np.partition(others, -2, axis=0)[-2]
    doubtful = int(np.count_nonzero(bodies_with(zone | there, there) & zone))
    # the faces of voxels overstate the area of an oblique surface by one half on average
    return doubtful / (area / 1.5)


def find_doubts(
    probabilities: NDArray[np.uint8],
    grid: Volume,
    labels: LabelVolume,
    mu: FloatArray,
    scale: IntensityScale,
    energy_keV: float | None,
    evidence: Evidence | None = None,
) -> Sequence[str]:
    """Sentences on what is doubtful about labels.

    Parameters
    ----------
    probabilities : array (n, nx, ny, nz) of uint8
        On the working grid, after the clean-up.
    grid : Volume
        The working grid.
    labels : LabelVolume
        On the voxels of the tomogram.
    mu : array (n,)
        The median of the tomogram within each material, 1/um; NaN if unknown.
    scale : IntensityScale
        Of the tomogram.
    energy_keV : float or None
        Of the scan; None if unknown.
    evidence : Evidence, optional
    """
    evidence = evidence or Evidence()
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
    warnings += evidence.doubts()
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
    found = most_probable(probabilities)
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
        least, largest = PLAUSIBLE_MU[name]
        if not least <= mu[label] / expected <= largest:
            warnings.append(
                f"mu of the {name} is {mu[label]:.4g} /um in the tomogram, and {expected:.4g} /um is "
                f"typical at {energy_keV:.3g} keV: are the labels right, and is the tomogram in 1/um?"
            )
    return warnings
