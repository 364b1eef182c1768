"""Merging statistics of the same data scaled in several ways.

Every number comes from DIALS' own functions: `scaled_data_as_miller_array` and
`merging_stats_from_scaled_array` (dials.algorithms.scaling.scaling_library), `table_1_stats` and
`batch_dependent_properties` (dials.report.analysis). This module cuts all data sets at one common
resolution and divides them into the same shells.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from cctbx import miller
from dials.algorithms.scaling.scaling_library import (
    DialsMergingStatisticsError,
    determine_best_unit_cell,
    merging_stats_from_scaled_array,
    scaled_data_as_miller_array,
)
from dials.array_family import flex
from dials.report.analysis import batch_dependent_properties, table_1_stats
from dials.util.batch_handling import (
    assign_batches_to_reflections,
    get_image_ranges,
)
from dials.util.multi_dataset_handling import sort_tables_to_experiments_order
from numpy.typing import NDArray

from anacor_dials.diffraction.models import read_models
from anacor_dials.diffraction.wavelengths import wavelength_groups
from anacor_dials.sample.frames import FloatArray

logger = logging.getLogger("dials.anacor_dials.diffraction.merging")

# two limits count as one when they differ by less than rounding
RESOLUTION_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ScaledIntensities:
    """Unmerged scaled intensities of one or more sweeps.

    Attributes
    ----------
    label : str
    intensities : miller.array of n observations
        I/g and sigma/g; g is the inverse scale factor.
    images : array (n,) of int
        The image of each observation.
    scales : array (n,)
        g.
    sweeps : array (n,) of int
        The position of each observation's sweep in `identifiers`.
    identifiers : tuple of str
        Of the sweeps.
    image_ranges : tuple of (int, int)
        The first and last image of each sweep.
    """

    label: str
    intensities: miller.array
    images: NDArray[np.int64]
    scales: FloatArray
    sweeps: NDArray[np.int64]
    identifiers: tuple[str, ...]
    image_ranges: tuple[tuple[int, int], ...]

    def __repr__(self) -> str:
        d_max, d_min = self.intensities.d_max_min()
        return (
            f"ScaledIntensities({self.label!r}, {len(self.scales)} observations, "
            f"{len(self.identifiers)} sweeps, {d_max:.2f}-{d_min:.2f} A)"
        )


@dataclass(frozen=True)
class ImageSeries:
    """Properties of one sweep against image number. Each of the n values is of a block of images.

    Attributes
    ----------
    identifier : str
        Of the sweep.
    images : array (n,)
        The mean image number.
    scale : array (n,)
        The mean inverse scale factor.
    r_merge : array (n,)
    i_over_sigma : array (n,)
        The mean of the unmerged I/sigma.
    """

    identifier: str
    images: FloatArray
    scale: FloatArray
    r_merge: FloatArray
    i_over_sigma: FloatArray


@dataclass(frozen=True)
class MergingStatistics:
    """Merging statistics of one data set.

    Attributes
    ----------
    label : str
    d_max, d_min : float
        The resolution limits, Angstrom.
    table_1 : mapping
        Table 1 of DIALS: {name: (overall, innermost shell, outermost shell)}, None if undefined.
        The anomalous slope has only one value.
    by_resolution : mapping
        {name: array (n_bins,)} from low to high resolution, for "d_max" and "d_min" (Angstrom) and
        the names of SHELL_PROPERTIES; NaN if undefined.
    by_image : tuple of ImageSeries
        One for each sweep.
    """

    label: str
    d_max: float
    d_min: float
    table_1: Mapping[str, tuple[float | None, ...]]
    by_resolution: Mapping[str, FloatArray]
    by_image: tuple[ImageSeries, ...] = field(repr=False)


# name here -> (attribute of iotbx' merging statistics, of the anomalous ones)
SHELL_PROPERTIES = {
    "completeness": ("completeness", False),
    "multiplicity": ("mean_redundancy", False),
    "i_over_sigma": ("i_over_sigma_mean", False),
    "r_merge": ("r_merge", False),
    "r_meas": ("r_meas", False),
    "r_pim": ("r_pim", False),
    "cc_one_half": ("cc_one_half", False),
    "cc_anomalous": ("anom_half_corr", True),
    "observations": ("n_obs", False),
    "unique": ("n_uniq", False),
}


def compare_merging_statistics(
    data: Mapping[str, tuple[str | os.PathLike[str], str | os.PathLike[str]]],
    d_min: float | None = None,
    n_bins: int = 20,
) -> list[MergingStatistics]:
    """Merging statistics of several data sets at one common resolution.

    Parameters
    ----------
    data : mapping
        {label: (scaled.expt, scaled.refl)}.
    d_min : float, optional
        The limit, Angstrom; the finest that all data sets reach if not given.
    n_bins : int
        The number of resolution shells.

    Raises
    ------
    ValueError
        If the data sets have different symmetry, or no reflections in common.
    """
    loaded = in_one_cell([load_scaled(label, *paths) for label, paths in data.items()])
    limits = common_resolution(loaded, d_min)
    width = block_width(loaded)
    return [merging_statistics(scaled, *limits, n_bins, width) for scaled in loaded]


def load_scaled(
    label: str,
    experiments: str | os.PathLike[str],
    reflections: str | os.PathLike[str],
) -> ScaledIntensities:
    """The observations of a data set that dials.scale itself would merge.

    Parameters
    ----------
    label : str
        What the data set is called.
    experiments, reflections : path
        scaled.expt and scaled.refl.

    Raises
    ------
    ValueError
        If the reflections are not scaled.
    """
    expts = read_models(experiments)
    table = flex.reflection_table.from_file(os.fspath(reflections))
    if "inverse_scale_factor" not in table:
        raise ValueError(f"{reflections} is not scaled (no inverse_scale_factor); run dials.scale.")
    wavelengths = [wavelength for wavelength, _ in wavelength_groups(expts)]
    if len(wavelengths) > 1:
        logger.warning(
            "%s holds wavelengths from %.4f to %.4f A, and their statistics are of all together: the "
            "anomalous ones mean little.",
            label,
            min(wavelengths),
            max(wavelengths),
        )
    tables = table.select(table["id"] >= 0).split_by_experiment_id()
    tables = sort_tables_to_experiments_order(tables, expts)
    tables = assign_batches_to_reflections(tables, [0] * len(tables))  # batch = image number
    images, scales, sweeps = [], [], []
    for i, sweep in enumerate(tables):
        # the selection of scaled_data_as_miller_array
        sweep = sweep.select(
            ~sweep.get_flags(sweep.flags.bad_for_scaling, all=False)
            & (sweep["inverse_scale_factor"] > 0)
        )
        images.append(sweep["batch"].as_numpy_array())
        scales.append(sweep["inverse_scale_factor"].as_numpy_array())
        sweeps.append(np.full(len(sweep), i))
    intensities = scaled_data_as_miller_array(
        tables, expts, best_unit_cell=determine_best_unit_cell(expts)
    )
    return ScaledIntensities(
        label=label,
        intensities=intensities,
        images=np.concatenate(images).astype(np.int64),
        scales=np.concatenate(scales),
        sweeps=np.concatenate(sweeps),
        identifiers=tuple(experiment.identifier for experiment in expts),
        image_ranges=tuple(get_image_ranges(expts)),
    )


def in_one_cell(data: Sequence[ScaledIntensities]) -> list[ScaledIntensities]:
    """The same data, all with the unit cell of the first, so that all d spacings agree.

    Raises ValueError where space groups differ, or cells by more than 1 % or 1 degree.
    """
    first = data[0].intensities
    for other in data[1:]:
        if not first.is_similar_symmetry(other.intensities):
            raise ValueError(
                f"{data[0].label} and {other.label} differ in unit cell or space group "
                f"({_symmetry(first)}; {_symmetry(other.intensities)}); compare one crystal with itself."
            )
    symmetry = first.crystal_symmetry()
    return [
        replace(one, intensities=one.intensities.customized_copy(crystal_symmetry=symmetry))
        for one in data
    ]


def common_resolution(
    data: Sequence[ScaledIntensities], d_min: float | None = None
) -> tuple[float, float]:
    """(d_max, d_min) in Angstrom of the unique reflections that all data sets have.

    A reflection at each limit is then in every data set, so that cctbx divides all of them into the
    same shells. The data sets share one unit cell (:func:`in_one_cell`).

    Parameters
    ----------
    data : sequence of ScaledIntensities
    d_min : float, optional
        A limit that is asked for. The result is the finest common spacing that is not smaller.

    Raises
    ------
    ValueError
        If they have no reflections in common.
    """
    unique = data[0].intensities.map_to_asu().unique_under_symmetry()
    for other in data[1:]:
        unique = unique.common_set(other.intensities.map_to_asu().unique_under_symmetry())
    if d_min is not None:
        unique = unique.resolution_filter(d_min=d_min)
    if unique.size() == 0:
        reach = f" to {d_min:.2f} A" if d_min is not None else ""
        raise ValueError(
            f"{', '.join(one.label for one in data)} have no reflection in common{reach}; "
            "compare data of one crystal, at a resolution that they reach."
        )
    return unique.d_max_min()


def block_width(data: Sequence[ScaledIntensities], observations: int = 100) -> int:
    """Number of images that hold about so many observations, in the sparsest of the data sets."""
    return max(
        1,
        *(
            round(
                observations * sum(b - a + 1 for a, b in one.image_ranges) / max(1, one.scales.size)
            )
            for one in data
        ),
    )


def merging_statistics(
    data: ScaledIntensities,
    d_max: float,
    d_min: float,
    n_bins: int = 20,
    images_per_block: int = 1,
) -> MergingStatistics:
    """Merging statistics of one data set.

    Parameters
    ----------
    data : ScaledIntensities
    d_max, d_min : float
        The resolution limits, Angstrom.
    n_bins : int
        The number of shells, of equal volume in reciprocal space.
    images_per_block : int
        How many images are taken together in the series against image number.

    Raises
    ------
    ValueError
        If the data cannot be merged.
    """
    within = data.intensities.resolution_filter_selection(
        d_max=d_max * (1 + RESOLUTION_TOLERANCE), d_min=d_min * (1 - RESOLUTION_TOLERANCE)
    )
    intensities = data.intensities.select(within)
    try:
        normal, anomalous = merging_stats_from_scaled_array(intensities, n_bins)
    except DialsMergingStatisticsError as error:
        raise ValueError(f"{data.label}: {' '.join(str(error).split())}") from None
    if intensities.space_group().is_centric():
        anomalous = None
    shells = {
        "d_max": np.array([shell.d_max for shell in normal.bins]),
        "d_min": np.array([shell.d_min for shell in normal.bins]),
    }
    for name, (attribute, of_anomalous) in SHELL_PROPERTIES.items():
        source = anomalous if of_anomalous else normal
        values = [getattr(shell, attribute) for shell in source.bins] if source else []
        shells[name] = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    return MergingStatistics(
        label=data.label,
        d_max=normal.overall.d_max,
        d_min=normal.overall.d_min,
        table_1={key: tuple(row) for key, row in table_1_stats(normal, anomalous).items()},
        by_resolution=shells,
        by_image=_by_image(data, intensities, within.as_numpy_array(), images_per_block),
    )


def _by_image(
    data: ScaledIntensities,
    intensities: miller.array,
    within: NDArray[np.bool_],
    images_per_block: int,
) -> tuple[ImageSeries, ...]:
    """One series per sweep. R_merge is against the mean over all sweeps, as in dials.scale."""
    images, sweeps = data.images[within], data.sweeps[within]
    first = np.array([low for low, _ in data.image_ranges])[sweeps]
    blocks = (images - first) // images_per_block
    # one number for each block of each sweep, so that DIALS treats blocks as its batches
    stride = int(blocks.max()) + 1
    keys = sweeps * stride + blocks
    numbers, r_merge, i_over_sigma, scale = batch_dependent_properties(
        miller.array(intensities, data=flex.int(keys.astype(np.int32))),
        intensities,
        miller.array(intensities, data=flex.double(data.scales[within])),
    )
    numbers = np.array(numbers)
    mean_image = np.bincount(keys, weights=images) / np.maximum(1, np.bincount(keys))
    series = []
    for i, identifier in enumerate(data.identifiers):
        here = numbers // stride == i
        series.append(
            ImageSeries(
                identifier=identifier,
                images=mean_image[numbers[here]],
                scale=np.array(scale)[here],
                r_merge=np.array(r_merge)[here],
                i_over_sigma=np.array(i_over_sigma)[here],
            )
        )
    return tuple(series)


def _symmetry(array: miller.array) -> str:
    cell = ", ".join(f"{parameter:.2f}" for parameter in array.unit_cell().parameters())
    return f"{array.space_group_info()}, cell {cell}"
