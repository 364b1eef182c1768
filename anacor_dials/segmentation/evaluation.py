"""How good labels are against the truth: recall, Dice, cross-entropy and Hausdorff distance.

``accuracy`` of a class in the published tables is its recall: the share of its true voxels that
were found. HD95 is the larger of the two 95th percentiles of the distances from one surface to the
other, in um (Huttenlocher et al., IEEE Trans. PAMI 15 (1993) 850, with the percentile instead of
the maximum).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.tomogram_files import read_sample_file
from anacor_dials.sample.volumes import LabelVolume, Volume
from anacor_dials.segmentation.edges import EdgeSettings, EdgeStep, edge_step
from anacor_dials.segmentation.fine_voxels import at_full_size
from anacor_dials.segmentation.inference import (
    LabellingSettings,
    Segmentation,
    segment,
)
from anacor_dials.segmentation.tiles import InferenceSettings
from anacor_dials.segmentation.training_data import TOMO, TRUTH, labels_on_grid, read_record

if TYPE_CHECKING:
    from anacor_dials.segmentation.network import SliceNetwork

logger = logging.getLogger("dials.anacor_dials.segmentation.evaluation")

BINS = 15  # of the probability, as in Guo et al., ICML 2017


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class.

    Attributes
    ----------
    name : str
    recall, dice : float
        0 to 1; NaN if the class is in neither of the two.
    hd95_um : float
    true_voxels, found_voxels : int
    """

    name: str
    recall: float
    dice: float
    hd95_um: float
    true_voxels: int
    found_voxels: int

    @property
    def dice_loss(self) -> float:
        """One minus Dice."""
        return 1.0 - self.dice


@dataclass(frozen=True)
class Evaluation:
    """Scores of all classes.

    Attributes
    ----------
    classes : tuple of ClassScores
    cross_entropy : float
        The mean, nats per voxel; NaN without probabilities.
    """

    classes: tuple[ClassScores, ...]
    cross_entropy: float

    def __getitem__(self, name: str) -> ClassScores:
        return next(c for c in self.classes if c.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "cross_entropy": self.cross_entropy,
            "classes": {
                c.name: {
                    "recall": c.recall,
                    "dice": c.dice,
                    "dice_loss": c.dice_loss,
                    "hd95_um": c.hd95_um,
                    "true_voxels": c.true_voxels,
                    "found_voxels": c.found_voxels,
                }
                for c in self.classes
            },
        }


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask & ~scipy.ndimage.binary_erosion(mask)


def _distances_um(
    from_: NDArray[np.bool_], to: NDArray[np.bool_], size: FloatArray
) -> NDArray[np.float64]:
    """Distances (n,) of the n voxels of a mask from the nearest voxel of another one, um.

    A tree of the voxels takes a fraction of the time and memory of a distance transform of the
    volume, and has the same distances.
    """
    apart = np.argwhere(from_ & ~to) * size  # the others are at 0
    out = np.zeros(np.count_nonzero(from_))
    if len(apart):
        out[: len(apart)], _ = cKDTree(np.argwhere(to) * size).query(apart, workers=-1)
    return out


def hd95_um(found: NDArray[np.bool_], true: NDArray[np.bool_], voxel_size_um: ArrayLike) -> float:
    """HD95 of two masks (nx, ny, nz), um; NaN if one of them is empty.

    The surface of a mask are its outermost voxels; what is beyond the volume is outside.

    Parameters
    ----------
    found, true : array (nx, ny, nz) of bool
    voxel_size_um : float or array (3,)
    """
    either = scipy.ndimage.find_objects((found | true).astype(np.uint8))
    if not either or not found.any() or not true.any():
        return math.nan
    box = either[0]
    a, b = np.pad(found[box], 1), np.pad(true[box], 1)
    a, b = _surface(a), _surface(b)
    size = np.broadcast_to(np.asarray(voxel_size_um, dtype=np.float64), (3,))
    return max(
        float(np.percentile(_distances_um(a, b, size), 95)),
        float(np.percentile(_distances_um(b, a, size), 95)),
    )


def cross_entropy(probabilities: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """The mean of -ln p(true label), nats; a probability of zero counts as half of a 255th.

    Parameters
    ----------
    probabilities : array (n, nx, ny, nz) of uint8
        255 = 1.
    truth : array (nx, ny, nz) of uint8
    """
    table = -np.log(np.maximum(np.arange(256), 0.5) / 255.0)
    total = 0.0
    for x in range(truth.shape[0]):
        chosen = np.take_along_axis(probabilities[:, x], truth[x][None].astype(np.intp), 0)
        total += float(table[chosen].sum())
    return total / truth.size


def expected_calibration_error(
    probabilities: NDArray[np.uint8], truth: NDArray[np.uint8], bins: int = BINS
) -> FloatArray:
    """By class (n,) the mean difference between predicted probability and observed frequency.

    sum over bins of (share of voxels) |mean probability - frequency| (Naeini et al., AAAI 2015; for
    each class: Kull et al., NeurIPS 2019).

    Parameters
    ----------
    probabilities : array (n, nx, ny, nz) of uint8
        255 = 1.
    truth : array (nx, ny, nz) of uint8
    bins : int
        Of the probability.
    """
    n = len(probabilities)
    out = np.zeros(n)
    edges = np.minimum((np.arange(256) * bins) // 256, bins - 1)
    for label in range(n):
        here = edges[probabilities[label].ravel()]
        count = np.bincount(here, minlength=bins)
        said = np.bincount(here, probabilities[label].ravel() / 255.0, minlength=bins)
        found = np.bincount(here, (truth == label).ravel().astype(float), minlength=bins)
        out[label] = float(np.abs(said - found).sum() / max(count.sum(), 1))
    return out


def evaluate(
    found: LabelVolume,
    truth: NDArray[np.uint8],
    probabilities: NDArray[np.uint8] | None = None,
    names: Sequence[str] | None = None,
) -> Evaluation:
    """Scores of labels against true labels with the same numbers, on the same grid.

    The background has no HD95.

    Parameters
    ----------
    found : LabelVolume
    truth : array (nx, ny, nz) of uint8
    probabilities : array (n, nx, ny, nz) of uint8, optional
    names : sequence of str, optional
        The classes to be scored; all if not given.
    """
    if truth.shape != found.shape:
        raise ValueError(
            f"The truth has {truth.shape} voxels and the labels {found.shape}; they must be on the same grid."
        )
    scores = []
    for label, name in enumerate(found.names):
        if names is not None and name not in names:
            continue
        f, t = found.values == label, truth == label
        n_found, n_true, both = (int(np.count_nonzero(m)) for m in (f, t, f & t))
        scores.append(
            ClassScores(
                name,
                both / n_true if n_true else math.nan,
                2 * both / (n_found + n_true) if n_found + n_true else math.nan,
                math.nan if label == 0 else hd95_um(f, t, found.voxel_size_um),
                n_true,
                n_found,
            )
        )
    entropy = math.nan if probabilities is None else cross_entropy(probabilities, truth)
    return Evaluation(tuple(scores), entropy)


def evaluate_samples(
    network: SliceNetwork | Sequence[SliceNetwork],
    tomograms: Sequence[Path],
    settings: InferenceSettings | None = None,
    measure: Callable[[Segmentation, Volume, LabelVolume, Any, EdgeSettings], dict[str, Any]]
    | None = None,
    refine: Callable[[NDArray[np.float32], NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
) -> list[dict[str, Any]]:
    """Scores of samples NAME.tomo.h5 with NAME.truth.h5 beside them; the worst crystal comes first.

    Each record holds plain values. "classes" are the scores of the network alone, "cleaned" those
    after surfaces were moved to the edges (:mod:`.edges`) and after the clean-up, and "calibration"
    is the expected calibration error of each class. In a sample in which no crystal is found, the
    crystal has recall and Dice zero.

    Parameters
    ----------
    network : SliceNetwork or sequence of them
    tomograms : sequence of Path
    settings : InferenceSettings, optional
    measure : callable, optional
        Returns further entries of the record, from (segmentation, tomogram, true labels, mu by
        label, how surfaces were moved to edges).
    refine : callable, optional
        A step after the network, as of :func:`.sam2_refinement.sam2_refiner`; then "classes" are
        the scores after it.
    """
    labelling = LabellingSettings(settings or InferenceSettings(), keep_probabilities=True)
    rows = []
    names = (network[0] if isinstance(network, Sequence) else network).settings.names
    for path in tomograms:
        name = path.name.removesuffix(TOMO)
        sample = read_sample_file(path)
        tomogram = sample.tomogram
        file = read_sample_file(path.with_name(name + TRUTH), tomogram=False)
        if tomogram is None or file.labels is None:
            raise ValueError(f"{path} has no reconstruction, or no labels in {name + TRUTH}.")
        truth = labels_on_grid(file.labels, tomogram)
        raw: list[NDArray[np.uint8]] = []
        edges = EdgeSettings(
            None,
            sample.scan_energy_keV,
            sample.scan_distance_mm,
            sample.paganin_delta_beta is not None,
        )
        step = edge_step(tomogram, names, edges)

        def kept(
            values: NDArray[np.float32],
            p: NDArray[np.uint8],
            raw: list[NDArray[np.uint8]] = raw,
            step: EdgeStep = step,
        ) -> NDArray[np.uint8]:
            p = p if refine is None else refine(values, p)
            raw.append(p.copy())
            return step(values, p)

        found = segment(tomogram, network, labelling, refine=kept, need_crystal=False)
        labels, chances = at_full_size(raw[0], found.factors, tomogram.shape, keep=True)
        assert chances is not None
        plain = LabelVolume(labels, tomogram.voxel_size_um, tomogram.centre, found.labels.names)
        record = read_record(path)
        row: dict[str, Any] = {
            "name": name,
            **{
                k: record[k]
                for k in ("seed", "shape", "contrast", "crystal_size_um")
                if k in record
            },
            "seconds": sum(found.seconds.values()),
            **evaluate(plain, truth, chances).as_dict(),
            "cleaned": evaluate(found.labels, truth, found.probabilities).as_dict(),
            "calibration": expected_calibration_error(chances, truth).tolist(),
            "warnings": list(found.warnings),
        }
        if measure is not None:
            true = LabelVolume(truth, tomogram.voxel_size_um, tomogram.centre, file.labels.names)
            row |= measure(found, tomogram, true, file.mu_per_um, edges)
        logger.info("%s: crystal Dice %.3f", name, row["cleaned"]["classes"]["crystal"]["dice"])
        rows.append(row)
    return sorted(rows, key=lambda row: row["cleaned"]["classes"]["crystal"]["dice"])


def recall_of(scores: Mapping[str, Any]) -> float:
    """The recall in the scores of a class; NaN if the sample has none of it.

    Records of earlier versions call it accuracy. In JSON files NaN is null.
    """
    recall = scores["recall"] if "recall" in scores else scores["accuracy"]
    return math.nan if recall is None else float(recall)


def mean_scores(rows: Sequence[dict[str, Any]], cleaned: bool = True) -> dict[str, Any]:
    """Means over samples of recall, Dice, HD95 and cross-entropy.

    HD95 is averaged over the samples that have one.

    Parameters
    ----------
    rows : sequence of dict
        Of :func:`evaluate_samples`.
    cleaned : bool
        Whether the scores are those after the clean-up.
    """
    parts = [row["cleaned"] if cleaned else row for row in rows]
    names = parts[0]["classes"]
    out: dict[str, Any] = {"cross_entropy": float(np.mean([p["cross_entropy"] for p in parts]))}
    for name in names:
        scores = [p["classes"][name] for p in parts]
        columns = {
            "recall": [recall_of(one) for one in scores],
            "dice": [one["dice"] for one in scores],
            "hd95_um": [one["hd95_um"] for one in scores],
        }
        out[name] = {}
        for key, column in columns.items():
            values = np.array(column, dtype=float)
            values = values[np.isfinite(values)]
            out[name][key] = float(values.mean()) if values.size else math.nan
    return out
