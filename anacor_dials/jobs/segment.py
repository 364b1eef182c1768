"""A scan or a tomogram becomes a labelled sample."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anacor_dials.absorption.tracing import Tracing
from anacor_dials.jobs.foreign_tomogram import load_foreign_tomogram
from anacor_dials.jobs.label_uncertainty import TOLERANCE, LabelUncertainty, label_uncertainty
from anacor_dials.jobs.reconstruct import Reconstruction, is_sample_path, reconstruct
from anacor_dials.sample.foreign_tomograms import TomogramDescription, is_foreign_tomogram
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.label_files import read_label_stack
from anacor_dials.sample.tomogram_files import (
    read_sample_file,
    write_sample_file,
)
from anacor_dials.sample.volumes import DEFAULT_NAMES, LabelVolume, Tomogram
from anacor_dials.segmentation.clean_up import CleaningSettings
from anacor_dials.segmentation.evaluation import Evaluation, evaluate
from anacor_dials.segmentation.inference import (
    Segmentation,
    load_networks,
    mean_mu,
    segment,
)
from anacor_dials.segmentation.sam2_refinement import Sam2Settings, sam2_refiner
from anacor_dials.segmentation.tiles import InferenceSettings
from anacor_dials.segmentation.training_data import labels_on_grid
from anacor_dials.segmentation.working_grid import working_volume
from anacor_dials.tomography.reconstruction import ReconstructionSettings
from anacor_dials.tomography.scan_files import ScanDescription, find_scan

logger = logging.getLogger("dials.anacor_dials.jobs.segment")

LARGEST_PROBABILITIES = 4e9  # bytes: beyond, a file of probabilities is of no more use than trouble


@dataclass(frozen=True)
class SegmentationSettings:
    """How a tomogram is segmented.

    weights: a .safetensors file, or None for the weights that ship with the package. inference: how
    slices are taken through the network. clean_up: whether the steps of `cleaning` follow. uncertainty: whether
    plausible labels are drawn to find what the doubt about them is worth in the factors. sam2: the
    refinement by SAM-2, left out where it names no checkpoint. keep_probabilities: whether the result
    holds them. progress: whether progress bars are shown.
    """

    weights: str | Path | None = None
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    clean_up: bool = True
    uncertainty: bool = True
    cleaning: CleaningSettings = field(default_factory=CleaningSettings)
    sam2: Sam2Settings = field(default_factory=Sam2Settings)
    keep_probabilities: bool = False
    progress: bool = False


@dataclass(frozen=True)
class CorrectedLabels:
    """A stack of labels that was corrected by hand and is to be put back.

    file: a TIFF stack, .npy, or file.h5:/dataset, on the tomogram's grid. axes: what its first, second
    and third index run along. names: of its labels 0, 1, 2 ... mode: "replace", the stack is the
    result; "merge", only where it is not 0.
    """

    file: str | Path
    axes: str = "x,y,z"
    names: Sequence[str] = DEFAULT_NAMES
    mode: str = "replace"

    def __post_init__(self) -> None:
        if self.mode not in ("replace", "merge"):
            raise ValueError(f"The mode is {self.mode!r}; it is replace or merge.")


@dataclass(frozen=True, eq=False)
class SegmentedSample:
    """A tomogram with labels.

    source: the tomogram and its scan. labels: on the tomogram's grid. mu_per_um: (n,) by label, 1/um,
    NaN where unknown. segmentation: how the network labelled it; None where a corrected stack replaced
    everything. evaluation: scores against true labels, where these were given. n_changed: voxels that
    a merged stack changed. probabilities: uint8 (n, nx, ny, nz), 255 = 1, where kept. warnings: sentences.
    uncertainty: of the absorption factors from the network's labels; None for labels that came from elsewhere.
    """

    source: Reconstruction
    labels: LabelVolume
    mu_per_um: FloatArray
    segmentation: Segmentation | None = None
    evaluation: Evaluation | None = None
    n_changed: int | None = None
    probabilities: NDArray[np.uint8] | None = None
    warnings: Sequence[str] = ()
    uncertainty: LabelUncertainty | None = None

    @property
    def factors_uncertainty(self) -> float | None:
        """The relative rms by which factors are uncertain because the labels are; None where it is not known."""
        return None if self.uncertainty is None else self.uncertainty.rms

    @property
    def seconds(self) -> float:
        """How long the network and what follows it took; 0 where it was not asked."""
        return sum(self.segmentation.seconds.values()) if self.segmentation is not None else 0.0


def load_source(
    name: str | os.PathLike[str],
    description: ScanDescription | None = None,
    settings: ReconstructionSettings | None = None,
    energy_keV: float | None = None,
    tomogram: TomogramDescription | None = None,
) -> Reconstruction:
    """The tomogram of a tomo.h5 or of another program, or the reconstruction of a scan.

    Parameters
    ----------
    name : path
        Of the file.
    description : ScanDescription, optional
        Of the scan.
    settings : ReconstructionSettings, optional
        Of its reconstruction.
    energy_keV : float, optional
        Where it is known better than by the scan.
    tomogram : TomogramDescription, optional
        Of a tomogram of another program.
    """
    tomogram = tomogram or TomogramDescription()
    if is_foreign_tomogram(name, tomogram):
        return load_foreign_tomogram(name, tomogram, description, energy_keV)
    if tomogram.is_given:
        raise ValueError(
            f"{name} is a tomo.h5 or a scan, which says itself how it lies; tomogram.* is for the "
            "tomograms of other programs."
        )
    if not is_sample_path(name):
        made = reconstruct(name, description, settings)
        return dataclasses.replace(made, energy_keV=energy_keV or made.energy_keV)
    sample = read_sample_file(name, labels=False)
    if sample.tomogram is None:
        raise ValueError(f"{name} holds no reconstruction, so there is nothing to segment.")
    if energy_keV is None and sample.projections is not None and sample.projections.exists():
        try:
            energy_keV = find_scan(sample.projections, description).energy_keV
        except ValueError as error:
            logger.debug("the scan does not tell the energy: %s", error)
    return Reconstruction(
        sample.tomogram,
        sample.projections,
        sample.scan_centre,
        energy_keV,
        sample.paganin_delta_beta,
    )


def segment_tomogram(source: Reconstruction, settings: SegmentationSettings) -> Segmentation:
    """What the network, SAM-2 (where asked for) and the clean-up make of a tomogram."""
    networks = load_networks(settings.weights)
    network = networks[0]
    refine = sam2_refiner(settings.sam2, network.settings.names, settings.inference.device)
    n_bytes = float(source.tomogram.values.size) * network.settings.n_classes
    keep = settings.keep_probabilities and n_bytes <= LARGEST_PROBABILITIES
    if settings.keep_probabilities and not keep:
        logger.warning("The probabilities would take %.1f GB and are not stored.", n_bytes / 1e9)
    return segment(
        source.tomogram,
        networks,
        settings.inference,
        settings.cleaning,
        source.energy_keV if source.tomogram.quantitative else None,
        keep,
        settings.clean_up,
        refine,
        progress=settings.progress,
    )


def segment_sample(
    source: Reconstruction,
    settings: SegmentationSettings | None = None,
    corrected: CorrectedLabels | None = None,
    truth: str | os.PathLike[str] | None = None,
) -> SegmentedSample:
    """The labelled sample of a tomogram.

    Parameters
    ----------
    source: the tomogram, of :func:`load_source` or :func:`anacor_dials.jobs.reconstruct.reconstruct`.
    settings: of the network and what follows it.
    corrected: labels that replace those of the network or are merged with them.
    truth: a truth.h5 of dials.anacor_simulate that the labels are scored against.

    Raises
    ------
    ValueError: there is no sample or no crystal, or a stack does not fit the tomogram.
    """
    settings = settings or SegmentationSettings()
    tomogram = source.tomogram
    stack = None if corrected is None else _corrected_stack(corrected, tomogram)
    segmentation = None
    if corrected is None or corrected.mode == "merge":
        segmentation = segment_tomogram(source, settings)
    n_changed = probabilities = None
    if stack is not None:
        labels, mu, n_changed = _put_back(segmentation, stack, tomogram)
        if n_changed is not None and corrected is not None:
            logger.info("%d voxels were changed by %s", n_changed, corrected.file)
    else:
        assert segmentation is not None
        labels, mu = segmentation.labels, segmentation.mu_per_um
        probabilities = segmentation.probabilities
    evaluation = None
    if truth is not None:
        evaluation = evaluate(labels, _truth_on_grid(truth, labels, tomogram), probabilities)
    warnings = list(source.warnings)
    if segmentation is not None:
        warnings += segmentation.warnings
    uncertainty = None
    if segmentation is not None and stack is None and settings.uncertainty:
        uncertainty = _uncertainty(source, segmentation, settings)
        if uncertainty is not None:
            warnings += uncertainty.warnings
    mu, more = _mu_of_tomogram(source, mu)
    return SegmentedSample(
        source,
        labels,
        mu,
        segmentation,
        evaluation,
        n_changed,
        probabilities,
        [*warnings, *more],
        uncertainty,
    )


def _uncertainty(
    source: Reconstruction, segmentation: Segmentation, settings: SegmentationSettings
) -> LabelUncertainty | None:
    """What the network's doubt is worth in factors, with the tomogram's own mu.

    Where neither unit nor energy are known, nothing can be said: None.
    """
    if not source.tomogram.quantitative and source.energy_keV is None:
        logger.info("What the doubt about labels is worth in factors is not known without mu.")
        return None
    grid = working_volume(source.tomogram, segmentation.working[0], segmentation.factors)
    return label_uncertainty(
        segmentation.working,
        grid,
        segmentation.labels.names,
        segmentation.mu_per_um,
        tracing=Tracing(TOLERANCE, check_reflections=8, device=settings.inference.device),
        progress=settings.progress,
    )


def _corrected_stack(corrected: CorrectedLabels, tomogram: Tomogram) -> LabelVolume:
    """The corrected stack, on the tomogram's grid."""
    labels = read_label_stack(
        corrected.file, tomogram.voxel_size_um, corrected.axes, corrected.names, tomogram.centre
    )
    if labels.shape != tomogram.shape:
        raise ValueError(
            f"{corrected.file} has {' x '.join(map(str, labels.shape))} voxels along X, Y, Z and the "
            f"tomogram {' x '.join(map(str, tomogram.shape))}; is labels.axes right?"
        )
    return labels


def _put_back(
    segmentation: Segmentation | None, stack: LabelVolume, tomogram: Tomogram
) -> tuple[LabelVolume, FloatArray, int | None]:
    """(labels, mu (n,), voxels changed) with the corrected stack: where it is not 0, or everywhere."""
    if segmentation is None:
        return stack, mean_mu(tomogram.values, stack), None
    if stack.names != segmentation.labels.names:
        raise ValueError(
            f"The stack has the labels {', '.join(stack.names)} and the network's are "
            f"{', '.join(segmentation.labels.names)}; to merge them they must be the same."
        )
    values = np.where(stack.values > 0, stack.values, segmentation.labels.values)
    changed = int(np.count_nonzero(values != segmentation.labels.values))
    labels = LabelVolume(values, stack.voxel_size_um, stack.centre, stack.names)
    return labels, mean_mu(tomogram.values, labels), changed


def _truth_on_grid(
    path: str | os.PathLike[str], labels: LabelVolume, tomogram: Tomogram
) -> NDArray[np.uint8]:
    """The labels of a truth.h5 on the tomogram's grid."""
    truth = read_sample_file(path, tomogram=False).labels
    if truth is None:
        raise ValueError(f"{path} holds no labels to compare with.")
    if truth.names != labels.names:
        raise ValueError(
            f"The truth has the labels {', '.join(truth.names)} and the result "
            f"{', '.join(labels.names)}; they must be the same."
        )
    return labels_on_grid(truth, tomogram)


def _mu_of_tomogram(source: Reconstruction, mu: FloatArray) -> tuple[FloatArray, list[str]]:
    """(mu (n,) in 1/um as it is stored, warnings).

    mu of air is not below 0. After phase retrieval, which changes the values, and
    where the unit of the values is not known, mu of the other materials is unknown.
    """
    mu = np.array(mu, dtype=np.float64)
    mu[0] = max(float(mu[0]), 0.0) if np.isfinite(mu[0]) else 0.0
    if source.paganin_delta_beta is None and source.tomogram.quantitative:
        return mu, []
    mu[1:] = np.nan
    if source.paganin_delta_beta is None:
        return mu, []
    return mu, [
        "The tomogram was phase retrieved (paganin_delta_beta), so that its values are no absorption "
        "coefficients and mu is left unknown; dials.anacor_absorption finds it from the projections."
    ]


def write_segmented(
    path: str | os.PathLike[str], sample: SegmentedSample, parameters: str = ""
) -> None:
    """Writes tomogram, labels, mu and probabilities (where kept) to a tomo.h5."""
    source = sample.source
    write_sample_file(
        path,
        tomogram=source.tomogram,
        labels=sample.labels,
        mu_per_um=sample.mu_per_um,
        energy_keV=source.energy_keV,
        probabilities=sample.probabilities,
        projections=source.projections,
        parameters=parameters,
        scan_centre=source.scan_centre,
        paganin_delta_beta=source.paganin_delta_beta,
        factors_uncertainty=sample.factors_uncertainty,
    )
