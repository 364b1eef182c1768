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
from anacor_dials.jobs.label_uncertainty import (
    TOLERANCE,
    Drawing,
    LabelUncertainty,
    label_uncertainty,
)
from anacor_dials.jobs.learn import (
    LearningSettings,
    hand_made_of_file,
    joined,
    known_on_tomogram,
    learned_network,
)
from anacor_dials.jobs.reconstruct import Reconstruction, is_sample_path, reconstruct
from anacor_dials.sample.foreign_tomograms import TomogramDescription, is_foreign_tomogram
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.hand_made import (
    EditingSession,
    HandMadeLabels,
    nothing_by_hand,
    read_hand_made,
)
from anacor_dials.sample.label_files import read_label_stack
from anacor_dials.sample.tomogram_files import (
    SampleFile,
    read_sample_file,
    write_sample,
)
from anacor_dials.sample.volumes import DEFAULT_NAMES, LabelVolume, Tomogram
from anacor_dials.segmentation.edges import EdgeSettings, edge_step
from anacor_dials.segmentation.evaluation import Evaluation, evaluate
from anacor_dials.segmentation.expected_overlap import OverlapForecast
from anacor_dials.segmentation.fine_voxels import mean_mu
from anacor_dials.segmentation.inference import (
    LabellingSettings,
    Refiner,
    Segmentation,
    load_networks,
    segment,
)
from anacor_dials.segmentation.sam2_refinement import Sam2Settings, sam2_refiner
from anacor_dials.segmentation.training_data import labels_on_grid
from anacor_dials.segmentation.working_grid import (
    UNKNOWN,
    binned_known,
    label_factors,
    working_volume,
)
from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings
from anacor_dials.tomography.scan_files import ScanDescription, find_scan

logger = logging.getLogger("dials.anacor_dials.jobs.segment")

LARGEST_PROBABILITIES = 4e9  # bytes; larger ones are not written


@dataclass(frozen=True)
class SegmentationSettings(LabellingSettings):
    """How a tomogram is segmented: by the network, and by what comes before and after it.

    The other settings are those of :class:`anacor_dials.segmentation.inference.LabellingSettings`.

    Parameters
    ----------
    weights : path, optional
        A .safetensors file; the weights that ship with the package if not given.
    edges : bool or None
        Whether surfaces are moved to the edges in the tomogram; None: if it is known by how much
        refraction shows them outside.
    uncertainty : bool
        Whether plausible labels are drawn to find how uncertain the factors are.
    sam2 : Sam2Settings
        The refinement by SAM-2; it is left out if no checkpoint is named.
    learning : LearningSettings
        How the network learns the sample, if that is asked for.
    """

    weights: str | Path | None = None
    edges: bool | None = None
    uncertainty: bool = True
    sam2: Sam2Settings = field(default_factory=Sam2Settings)
    learning: LearningSettings = field(default_factory=LearningSettings)


@dataclass(frozen=True)
class CorrectedLabels:
    """Labels that were corrected by hand.

    Parameters
    ----------
    file : path or None
        A TIFF stack, .npy, or file.h5:/dataset, on the grid of the tomogram. In the mode "learn"
        also a tomo.h5 with labels that were made by hand; None: the tomogram's own file.
    axes : str
        What its first, second and third index run along.
    names : sequence of str
        Of its labels 0, 1, 2 ...
    mode : str
        "replace": the stack is the result; "merge": only where it is not 0; "learn": the network
        learns from it and labels the rest.
    left_handed : bool
        That axes is left-handed on purpose.
    """

    file: str | Path | None
    axes: str = "x,y,z"
    names: Sequence[str] = DEFAULT_NAMES
    mode: str = "replace"
    left_handed: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("replace", "merge", "learn"):
            raise ValueError(f"The mode is {self.mode!r}; it is replace, merge or learn.")
        if self.file is None and self.mode != "learn":
            raise ValueError(f"labels.mode={self.mode} needs labels.file=, the corrected stack.")


@dataclass(frozen=True, eq=False)
class SegmentedSample:
    """A tomogram with labels.

    Attributes
    ----------
    source : Reconstruction
        The tomogram and its scan.
    labels : LabelVolume
        On the grid of the tomogram.
    mu_per_um : array (n,)
        By label, 1/um, NaN where unknown.
    segmentation : Segmentation or None
        How the network labelled it; None if a corrected stack replaced everything.
    evaluation : Evaluation or None
        Scores against true labels, if they were given.
    n_changed : int or None
        Voxels that a merged stack changed.
    probabilities : array (n, nx, ny, nz) of uint8, or None
        255 = 1, if they were kept.
    warnings : sequence of str
    uncertainty : LabelUncertainty or None
        Of the absorption factors from the network's labels; None for other labels.
    hand_made : HandMadeLabels or None
        Which of the labels people made; None if there are none.
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
    hand_made: HandMadeLabels | None = None

    @property
    def factors_uncertainty(self) -> float | None:
        """The relative rms by which factors are uncertain because labels are; None if unknown."""
        return None if self.uncertainty is None else self.uncertainty.rms

    @property
    def overlap(self) -> OverlapForecast | None:
        """Of the network's labels of the crystal with the true crystal; None if unknown."""
        return None if self.segmentation is None else self.segmentation.overlap

    @property
    def seconds(self) -> float:
        """How long the network and what follows it took; 0 if it was not used."""
        return sum(self.segmentation.seconds.values()) if self.segmentation is not None else 0.0


def load_source(
    name: str | os.PathLike[str],
    description: ScanDescription | None = None,
    settings: ReconstructionSettings | None = None,
    energy_keV: float | None = None,
    tomogram: TomogramDescription | None = None,
) -> Reconstruction:
    """The tomogram of a tomo.h5, with what people labelled in it, or of another program, or the
    reconstruction of a scan.

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
    said = description or ScanDescription()  # what the user says counts more than the file
    energy_keV = energy_keV or said.energy_keV or sample.scan_energy_keV
    distance_mm = said.distance_mm or sample.scan_distance_mm
    known = energy_keV is not None and distance_mm is not None
    if not known and sample.projections is not None and sample.projections.exists():
        try:
            geometry = find_scan(sample.projections, description).geometry
            energy_keV = energy_keV or geometry.energy_keV
            distance_mm = distance_mm or geometry.distance_mm
        except ValueError as error:
            logger.debug("the scan does not tell the energy: %s", error)
    hand_made = read_hand_made(name)
    if hand_made is not None:
        logger.info("%s: %r are kept", name, hand_made)
    return Reconstruction(
        sample.tomogram,
        sample.projections,
        sample.scan_centre,
        energy_keV,
        sample.paganin_delta_beta,
        hand_made=hand_made,
        distance_mm=distance_mm,
    )


def segment_tomogram(
    source: Reconstruction, settings: SegmentationSettings, learn: bool = False
) -> Segmentation:
    """The labels of a tomogram by the network, SAM-2 (if wanted) and the clean-up.

    Parameters
    ----------
    source : Reconstruction
        The tomogram. Labels that people made in it have the probability 1 in the result.
    settings : SegmentationSettings
    learn : bool
        Whether the network first learns from those labels.
    """
    networks = load_networks(settings.weights)
    names = networks[0].settings.names
    if learn:
        if source.hand_made is None:
            raise ValueError(
                "No voxel of this tomogram is labelled by hand, so there is nothing to learn from; correct some "
                "slices by dials.anacor_edit, or give them (labels.file=)."
            )
        learning = dataclasses.replace(
            settings.learning, device=settings.inference.device, progress=settings.progress
        )
        networks = [learned_network(source.tomogram, source.hand_made, networks, learning)]
    refine = _at_edges(
        source, names, settings.edges, sam2_refiner(settings.sam2, names, settings.inference.device)
    )
    if source.hand_made is not None:
        refine = _certain_by_hand(source, source.hand_made, names, refine)
    n_bytes = float(source.tomogram.values.size) * len(names)
    keep = settings.keep_probabilities and n_bytes <= LARGEST_PROBABILITIES
    if settings.keep_probabilities and not keep:
        logger.warning("The probabilities would take %.1f GB and are not stored.", n_bytes / 1e9)
    return segment(
        source.tomogram,
        networks,
        dataclasses.replace(settings, keep_probabilities=keep),
        source.energy_keV if source.tomogram.quantitative else None,
        refine,
    )


def edge_settings(source: Reconstruction, edges: bool | None = None) -> EdgeSettings:
    """How surfaces are moved to the edges in a tomogram; edges: whether, None where it helps."""
    return EdgeSettings(
        edges, source.energy_keV, source.distance_mm, source.paganin_delta_beta is not None
    )


def _at_edges(
    source: Reconstruction, names: Sequence[str], edges: bool | None, refine: Refiner | None
) -> Refiner:
    """A step after the network (and SAM-2) that moves surfaces to the edges in the tomogram."""
    step = edge_step(source.tomogram, names, edge_settings(source, edges))

    def at_edges(
        values: NDArray[np.float32], probabilities: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        if refine is not None:
            probabilities = refine(values, probabilities)
        return step(values, probabilities)

    return at_edges


def _certain_by_hand(
    source: Reconstruction, hand_made: HandMadeLabels, names: Sequence[str], refine: Refiner | None
) -> Refiner:
    """A step after the network (and SAM-2) that makes what people labelled certain."""
    factors = label_factors(source.tomogram.voxel_size_um, source.tomogram.shape)
    known = binned_known(known_on_tomogram(hand_made, names), factors, len(names))

    def certain(values: NDArray[np.float32], probabilities: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if refine is not None:
            probabilities = refine(values, probabilities)
        there = known != UNKNOWN
        for label in range(len(names)):
            probabilities[label][there] = np.where(known[there] == label, 255, 0)
        return probabilities

    return certain


def segment_sample(
    source: Reconstruction,
    settings: SegmentationSettings | None = None,
    corrected: CorrectedLabels | None = None,
    truth: str | os.PathLike[str] | None = None,
) -> SegmentedSample:
    """The labelled sample of a tomogram.

    Parameters
    ----------
    source : Reconstruction
        Of :func:`load_source` or :func:`anacor_dials.jobs.reconstruct.reconstruct`. Labels that
        people made in it are kept, unless a corrected stack replaces everything.
    settings : SegmentationSettings, optional
        Of the network and what follows it.
    corrected : CorrectedLabels, optional
        Labels that replace those of the network, are merged with them, or are learned from.
    truth : path, optional
        A truth.h5 of dials.anacor_simulate; the labels are scored against it.

    Raises
    ------
    ValueError
        If there is no sample or no crystal, or a stack does not fit the tomogram.
    """
    settings = settings or SegmentationSettings()
    tomogram = source.tomogram
    stack = None
    if corrected is not None and corrected.mode == "learn":
        source = _with_corrections(source, corrected)
    elif corrected is not None:
        stack = _corrected_stack(corrected, tomogram)
    if stack is not None and corrected is not None and corrected.mode == "replace":
        mu, more = _mu_of_tomogram(source, mean_mu(tomogram.values, stack))
        scores = None if truth is None else evaluate(stack, _truth_on_grid(truth, stack, tomogram))
        return SegmentedSample(
            source, stack, mu, evaluation=scores, warnings=[*source.warnings, *more]
        )
    learn = corrected is not None and corrected.mode == "learn"
    segmentation = segment_tomogram(source, settings, learn)
    labels, mu = segmentation.labels, segmentation.mu_per_um
    warnings = [*source.warnings, *segmentation.warnings]
    probabilities, n_changed, hand_made = segmentation.probabilities, None, source.hand_made
    if hand_made is not None:
        labels = _with_hand_made(labels, hand_made)
        mu = mean_mu(tomogram.values, labels)
    if stack is not None and corrected is not None:
        labels, mu, n_changed = _put_back(labels, stack, tomogram)
        logger.info("%d voxels were changed by %s", n_changed, corrected.file)
        made = hand_made or nothing_by_hand(labels.shape, labels.names)
        hand_made = made.translated(labels.names).with_more(
            stack.values, stack.values > 0, EditingSession.now()
        )
        probabilities = None
    evaluation = None
    if truth is not None:
        evaluation = evaluate(labels, _truth_on_grid(truth, labels, tomogram), probabilities)
    uncertainty = None
    if stack is None and settings.uncertainty:
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
        hand_made,
    )


def _with_corrections(source: Reconstruction, corrected: CorrectedLabels) -> Reconstruction:
    """The tomogram with the labels that people made in a file beside those of its own."""
    if corrected.file is None:
        return source
    made = hand_made_of_file(
        corrected.file, source.tomogram, corrected.axes, corrected.names, corrected.left_handed
    )
    return dataclasses.replace(source, hand_made=joined(source.hand_made, made))


def _with_hand_made(labels: LabelVolume, hand_made: HandMadeLabels) -> LabelVolume:
    """Labels with those that people made in their places."""
    values = hand_made.put_into(labels.values, labels.names)
    return LabelVolume(values, labels.voxel_size_um, labels.centre, labels.names)


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
        Drawing(
            surfaces_um=edge_settings(source, settings.edges).uncertain_um,
            progress=settings.progress,
        ),
        tracing=Tracing(TOLERANCE, check_reflections=8, device=settings.inference.device),
    )


def _corrected_stack(corrected: CorrectedLabels, tomogram: Tomogram) -> LabelVolume:
    """The corrected stack, on the tomogram's grid."""
    assert corrected.file is not None  # as of CorrectedLabels
    labels = read_label_stack(
        corrected.file,
        tomogram.voxel_size_um,
        corrected.axes,
        corrected.names,
        tomogram.centre,
        corrected.left_handed,
    )
    if labels.shape != tomogram.shape:
        raise ValueError(
            f"{corrected.file} has {' x '.join(map(str, labels.shape))} voxels along X, Y, Z and the "
            f"tomogram {' x '.join(map(str, tomogram.shape))}; is labels.axes right?"
        )
    return labels


def _put_back(
    labels: LabelVolume, stack: LabelVolume, tomogram: Tomogram
) -> tuple[LabelVolume, FloatArray, int]:
    """(labels, mu (n,), voxels changed) with the corrected stack where it is not 0."""
    if stack.names != labels.names:
        raise ValueError(
            f"The stack has the labels {', '.join(stack.names)} and the network's are "
            f"{', '.join(labels.names)}; to merge them they must be the same."
        )
    values = np.where(stack.values > 0, stack.values, labels.values)
    changed = int(np.count_nonzero(values != labels.values))
    merged = LabelVolume(values, stack.voxel_size_um, stack.centre, stack.names)
    return merged, mean_mu(tomogram.values, merged), changed


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
    """Writes tomogram, labels, mu, probabilities (if kept) and what is made by hand to a tomo.h5.

    Parameters
    ----------
    path : path
    sample : SegmentedSample
    parameters : str
        PHIL text for the record.
    """
    source = sample.source
    contents = SampleFile(
        Path(path),
        source.tomogram,
        sample.labels,
        sample.mu_per_um,
        source.energy_keV,
        sample.probabilities,
        source.projections,
        source.scan_centre,
        source.paganin_delta_beta,
        sample.factors_uncertainty,
        sample.hand_made,
        source.energy_keV,
        source.distance_mm,
        () if sample.segmentation is None else sample.segmentation.unseen_borders,
    )
    write_sample(path, contents, parameters)
