"""From a tomogram to labels: scale, network, clean-up, and what is doubtful about the result.

The tomogram is averaged to the working grid and scaled (:mod:`.working_grid`), and views without
fringes are made of it (:mod:`.fringes`). The coarse pass (:mod:`.context`) and the network for
slices (:mod:`.tiles`) give probabilities; where the tomogram's own voxels are fine enough, slices
are labelled once more on a grid of half the voxels, beside what was found. Labels that cannot be
right are corrected (:mod:`.clean_up`). Labels on the voxels of the tomogram are interpolated
(:mod:`.fine_voxels`). How far the crystal's labels probably are right is foretold
(:mod:`.expected_overlap`), how much of its border shows in the tomogram is looked at
(:mod:`.unseen_borders`), and what speaks against the result is said in words (:mod:`.doubts`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.volumes import LabelVolume, Tomogram, Volume
from anacor_dials.segmentation.clean_up import CleaningSettings, CleaningStep, clean
from anacor_dials.segmentation.doubts import Evidence, find_doubts
from anacor_dials.segmentation.expected_overlap import OverlapForecast, mean_probability
from anacor_dials.segmentation.fine_voxels import at_full_size, mean_mu
from anacor_dials.segmentation.tiles import InferenceSettings, find_classes
from anacor_dials.segmentation.unseen_borders import border_seen
from anacor_dials.segmentation.working_grid import (
    IntensityScale,
    bin_factors,
    binned_values,
    intensity_scale,
    label_factors,
    working_volume,
)

if TYPE_CHECKING:
    from anacor_dials.segmentation.network import SliceNetwork

logger = logging.getLogger("dials.anacor_dials.segmentation.inference")

Refiner = Callable[[NDArray[np.float32], NDArray[np.uint8]], NDArray[np.uint8]]

# The first was trained on all families of samples, the second on full scans of crystals in large
# drops.
SHIPPED_WEIGHTS = "anacornet-tiny.safetensors"
SHIPPED_FOR_DROPS = "anacornet-tiny-drops.safetensors"


def load_network(weights: str | Path | None = None) -> SliceNetwork:
    """The network of a weights file.

    Parameters
    ----------
    weights : path, optional
        The weights that ship with the package if not given.

    Raises
    ------
    ValueError
        If torch is not installed or the file does not hold the weights of a network.
    """
    try:
        from anacor_dials.segmentation.weights_files import load_weights
    except ImportError as error:
        raise ValueError(
            f"Segmentation needs torch, torchvision and safetensors ({error}); install them (pip install "
            "torch torchvision safetensors), or give labels made elsewhere (labels=)."
        ) from None
    path = Path(str(files("anacor_dials") / "segmentation" / "weights" / SHIPPED_WEIGHTS))
    return load_weights(path if weights is None else weights)


def load_networks(weights: str | Path | None = None) -> list[SliceNetwork]:
    """The network of a weights file; all networks that ship with the package if none is given."""
    if weights is not None:
        return [load_network(weights)]
    folder = files("anacor_dials") / "segmentation" / "weights"
    return [load_network(), load_network(str(folder / SHIPPED_FOR_DROPS))]


@dataclass(frozen=True)
class LabellingSettings:
    """How the network labels a tomogram.

    Parameters
    ----------
    inference : InferenceSettings
        How slices are taken through the network.
    clean_up : bool
        Whether the steps of `cleaning` follow.
    cleaning : CleaningSettings
    keep_probabilities : bool
        Whether the result holds the probabilities.
    progress : bool
        Whether progress bars are shown.
    """

    inference: InferenceSettings = field(default_factory=InferenceSettings)
    clean_up: bool = True
    cleaning: CleaningSettings = field(default_factory=CleaningSettings)
    keep_probabilities: bool = False
    progress: bool = False


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A labelled tomogram and how it was made.

    Attributes
    ----------
    labels : LabelVolume
        On the voxels of the tomogram.
    probabilities : array (n, nx, ny, nz) of uint8, or None
        255 = 1, on the same voxels; None if they were not asked for.
    working : array (n, mx, my, mz) of uint8
        Probabilities after the clean-up, on the working grid or that of the second pass.
    factors : (int, int, int)
        How many voxels of the tomogram one voxel of `working` is long.
    scale : IntensityScale
    mu_per_um : array (n,)
        The median of the tomogram within each material, 1/um; NaN if there is too little of it.
    steps : sequence of CleaningStep
    warnings : sequence of str
    seconds : mapping of str to float
        How long each part took.
    overlap : OverlapForecast or None
        Of the labels of the crystal with the true crystal; None if no crystal was found.
    unseen_borders : tuple of (int, int, int)
        Voxels of the tomogram in the midst of where the border between crystal and liquor does not
        show (:mod:`.unseen_borders`).
    """

    labels: LabelVolume
    probabilities: NDArray[np.uint8] | None
    working: NDArray[np.uint8]
    factors: tuple[int, int, int]
    scale: IntensityScale
    mu_per_um: FloatArray
    steps: Sequence[CleaningStep] = ()
    warnings: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    overlap: OverlapForecast | None = None
    unseen_borders: tuple[tuple[int, ...], ...] = ()


def _seen_finely(
    network: SliceNetwork | Sequence[SliceNetwork],
    values: NDArray[np.float32],
    before: NDArray[np.uint8],
    settings: LabellingSettings,
) -> NDArray[np.uint8]:
    """Probabilities on a grid of half the voxels, by slices that see those of the first pass."""
    _, coarse = at_full_size(before, (2, 2, 2), values.shape, keep=True)
    return find_classes(
        network, values, settings.inference, settings.progress, coarse
    ).probabilities


def segment(
    tomogram: Tomogram | Volume,
    network: SliceNetwork | Sequence[SliceNetwork],
    settings: LabellingSettings | None = None,
    energy_keV: float | None = None,
    refine: Refiner | None = None,
    need_crystal: bool = True,
) -> Segmentation:
    """Labels of a tomogram of mu in 1/um.

    Parameters
    ----------
    tomogram : Tomogram or Volume
    network : SliceNetwork or sequence of them
        Of :func:`load_network`. If there are several, the one is taken whose labels explain the
        tomogram best.
    settings : LabellingSettings, optional
    energy_keV : float, optional
        The energy of the scan. If it is known, the mu of the materials are compared with those of
        typical compositions.
    refine : callable, optional
        Makes better probabilities of (normalised values, probabilities) before the clean-up, on the
        grid of :func:`.working_grid.label_factors`: SAM-2, or labels that are certain.
    need_crystal : bool
        Whether a tomogram without a crystal is refused.

    Raises
    ------
    ValueError
        If the tomogram holds no sample or values that are no numbers, its voxels cannot be those of
        a sample, or no crystal is found.
    """
    settings = settings or LabellingSettings()
    times: dict[str, float] = {}
    start = time.perf_counter()
    factors = bin_factors(tomogram.voxel_size_um)
    scale = intensity_scale(tomogram.values, tomogram.voxel_size_um)
    values = binned_values(tomogram.values, factors, scale)
    grid = working_volume(tomogram, values, factors)
    first = network[0] if isinstance(network, Sequence) else network
    names = first.settings.names
    logger.info(
        "Air %.3g /um, sample %.4g /um, noise %.2g /um; working grid of %s voxels",
        scale.air,
        scale.sample,
        scale.noise,
        " x ".join(str(n) for n in values.shape),
    )
    times["preparation"] = time.perf_counter() - start
    start = time.perf_counter()
    seen = find_classes(network, values, settings.inference, settings.progress)
    probabilities = seen.probabilities
    finer = label_factors(tomogram.voxel_size_um, tomogram.shape)
    if finer != factors:
        values = binned_values(tomogram.values, finer, scale)
        probabilities = _seen_finely(network, values, probabilities, settings)
        factors, grid = finer, working_volume(tomogram, values, finer)
    times["network"] = time.perf_counter() - start
    if refine is not None:
        start = time.perf_counter()
        probabilities = refine(values, probabilities)
        times["refinement"] = time.perf_counter() - start
    start = time.perf_counter()
    steps: list[CleaningStep] = []
    if settings.clean_up:
        _, steps = clean(probabilities, names, grid.voxel_volume_um3, settings.cleaning)
        for step in steps:
            if step.changed_um3:
                logger.info("%s: %.0f um^3", step.name, step.total_um3)
    found, fine = at_full_size(probabilities, factors, tomogram.shape, settings.keep_probabilities)
    labels = LabelVolume(found, tomogram.voxel_size_um, tomogram.centre, names)
    if need_crystal and not labels.counts()[labels.label("crystal")]:
        raise ValueError(
            "No crystal was found in this tomogram. Look at it; label it by hand and give the labels "
            "(labels=), or train the network on samples like this one (dials.anacor_train)."
        )
    mu = mean_mu(tomogram.values, labels)
    times["clean-up"] = time.perf_counter() - start
    sureness = mean_probability(probabilities, labels.label("crystal"))
    overlap = None if math.isnan(sureness) else OverlapForecast(sureness)
    border = border_seen(values, probabilities, names)
    if border is not None:
        border = border.at_full_size(factors)
    evidence = Evidence(overlap, seen.contradicted, border)
    warnings = find_doubts(probabilities, grid, labels, mu, scale, energy_keV, evidence)
    return Segmentation(
        labels,
        fine,
        probabilities,
        factors,
        scale,
        mu,
        tuple(steps),
        tuple(warnings),
        times,
        overlap,
        () if border is None else border.voxels,
    )
