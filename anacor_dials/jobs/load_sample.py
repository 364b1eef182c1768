"""The labelled sample of a file: read, or made where the file has no labels yet."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anacor_dials.jobs.segment import (
    SegmentationSettings,
    SegmentedSample,
    load_source,
    segment_sample,
)
from anacor_dials.sample.foreign_tomograms import (
    TomogramDescription,
    is_foreign_tomogram,
)
from anacor_dials.sample.foreign_volumes import (
    holds_whole_numbers,
    is_foreign_volume,
    split_hdf5_name,
)
from anacor_dials.sample.hdf5_files import open_hdf5
from anacor_dials.sample.label_files import read_label_stack
from anacor_dials.sample.tomogram_files import (
    SampleFile,
    is_readable_sample,
    is_sample_file,
    read_sample_file,
)
from anacor_dials.sample.volumes import DEFAULT_NAMES, LabelVolume
from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings
from anacor_dials.tomography.scan_files import ScanDescription

logger = logging.getLogger("dials.anacor_dials.jobs.load_sample")


@dataclass(frozen=True)
class StackSettings:
    """How a stack of labels from another program lies in the frame of the tomogram.

    Parameters
    ----------
    voxel_size_um : sequence of 1 or 3 floats, optional
        Edge lengths along X, Y, Z, um. Stacks need it; a tomo.h5 holds its own.
    axes : str
        What the first, second and third index run along, such as "z,-y,x".
    names : sequence of str
        Names of the labels 0, 1, 2 ...
    centre : sequence of 3 floats, optional
        Voxel index of the origin; the middle of the volume if not given.
    left_handed : bool
        That axes is left-handed on purpose.
    """

    voxel_size_um: Sequence[float] | None = None
    axes: str = "x,y,z"
    names: Sequence[str] = DEFAULT_NAMES
    centre: Sequence[float] | None = None
    left_handed: bool = False


@dataclass(frozen=True)
class SampleSettings:
    """How the file of a sample is read; and if it has no labels, how they are made.

    Parameters
    ----------
    stack : StackSettings
        For a stack of labels from another program.
    tomogram : TomogramDescription
        For a tomogram of another program.
    description : ScanDescription
        What the files of a scan do not say.
    reconstruction : ReconstructionSettings
        From the scan to the tomogram.
    segmentation : SegmentationSettings
        From the tomogram to the labels.
    """

    stack: StackSettings = field(default_factory=StackSettings)
    tomogram: TomogramDescription = field(default_factory=TomogramDescription)
    description: ScanDescription = field(default_factory=ScanDescription)
    reconstruction: ReconstructionSettings = field(default_factory=ReconstructionSettings)
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)


@dataclass(frozen=True, eq=False)
class LoadedSample:
    """A labelled sample.

    Attributes
    ----------
    name : str
        The path that was given.
    file : SampleFile
        Labels, mu and the scan that they belong to.
    labels : LabelVolume
        The labels.
    segmented : SegmentedSample or None
        How the labels were made; None if the file had them.
    """

    name: str
    file: SampleFile
    labels: LabelVolume
    segmented: SegmentedSample | None = None


def is_label_stack(
    name: str | os.PathLike[str],
    stack: StackSettings | None = None,
    tomogram: TomogramDescription | None = None,
) -> bool:
    """True for a stack of labels from another program, False for tomograms and scans.

    A folder or a TIFF file is a scan unless the size of the voxels is given. In the other formats
    whole numbers are labels, unless a tomogram is described.

    Parameters
    ----------
    name : path
    stack : StackSettings, optional
        What the user says of labels.
    tomogram : TomogramDescription, optional
        What the user says of a tomogram.
    """
    text = os.fspath(name)
    if tomogram is not None and tomogram.is_given:
        return False
    has_size = stack is not None and bool(stack.voxel_size_um)
    if is_foreign_volume(text) or text.endswith(".npy") or split_hdf5_name(text) is not None:
        return has_size or holds_whole_numbers(text)
    return has_size and (text.endswith((".tif", ".tiff")) or Path(text).is_dir())


def has_labels(
    name: str | os.PathLike[str],
    stack: StackSettings | None = None,
    tomogram: TomogramDescription | None = None,
) -> bool:
    """Whether a file has labels already: a stack of labels, or a tomo.h5 with labels.

    Parameters
    ----------
    name : path
    stack : StackSettings, optional
        What the user says of labels.
    tomogram : TomogramDescription, optional
        What the user says of a tomogram.
    """
    if is_label_stack(name, stack, tomogram):
        return True
    if not is_readable_sample(name):
        return False
    with open_hdf5(name) as file:
        return "entry/segmentation/labels" in file


def load_sample(
    name: str | os.PathLike[str], settings: SampleSettings | None = None
) -> LoadedSample:
    """The labelled sample of a file.

    Parameters
    ----------
    name : path
        A tomo.h5; a stack of labels or a tomogram of another program (TIFF, .npy, file.h5:/dataset
        and so on); or a tomography scan. A scan is reconstructed and segmented; a tomogram without
        labels is segmented.
    settings : SampleSettings, optional
        How it is read, reconstructed and segmented.

    Raises
    ------
    ValueError
        If the file is none of these, or the size of the voxels is missing or not wanted.
    """
    settings = settings or SampleSettings()
    text, stack = os.fspath(name), settings.stack
    if is_label_stack(text, stack, settings.tomogram):
        labels = _labels_of_stack(text, stack)
        return LoadedSample(
            text, SampleFile(Path(text), None, labels, None, None, None, None), labels
        )
    if stack.voxel_size_um:
        raise ValueError(
            f"labels.voxel_size_um was given, but {text} holds no labels, or its own voxel size."
        )
    if is_foreign_tomogram(text, settings.tomogram):
        return _with_new_labels(text, settings)
    is_image = text.endswith((".tif", ".tiff")) or Path(text).is_dir()
    if is_image or not is_sample_file(text):
        try:
            return _with_new_labels(text, settings)
        except ValueError as error:
            raise ValueError(
                f"{text} is no tomo.h5, and as a tomography scan: {error} (The labels of a foreign "
                f"file: labels.voxel_size_um=, and for HDF5 {text}:/path/of/labels; a foreign "
                "tomogram: tomogram.voxel_size_um=, and the data set likewise.)"
            ) from None
    file = read_sample_file(text, tomogram=False)
    if file.labels is None:
        return _with_new_labels(text, settings)
    return LoadedSample(text, file, file.labels)


def _labels_of_stack(name: str, stack: StackSettings) -> LabelVolume:
    if not stack.voxel_size_um and not is_foreign_volume(name):
        raise ValueError(
            f"{name} does not say how large its voxels are; give labels.voxel_size_um=."
        )
    return read_label_stack(
        name,
        stack.voxel_size_um or None,
        stack.axes,
        stack.names,
        stack.centre,
        stack.left_handed,
    )


def _with_new_labels(name: str, settings: SampleSettings) -> LoadedSample:
    """The sample of a scan or of a tomogram without labels."""
    logger.info("%s has no labels yet: it is segmented first", name)
    source = load_source(
        name, settings.description, settings.reconstruction, tomogram=settings.tomogram
    )
    logger.info("%r", source.tomogram)
    segmented = segment_sample(source, settings.segmentation)
    for warning in segmented.warnings:
        logger.warning("Segmentation: %s", warning)
    file = SampleFile(
        path=Path(name),
        tomogram=None,
        labels=segmented.labels,
        mu_per_um=segmented.mu_per_um,
        energy_keV=source.energy_keV,
        probabilities=None,
        projections=source.projections,
        scan_centre=source.scan_centre,
        factors_uncertainty=segmented.factors_uncertainty,
    )
    return LoadedSample(name, file, segmented.labels, segmented)
