"""Which of several networks suits a sample: the one whose labels explain the tomogram best.

Each network labels some planes. If its labels are right, a view of the tomogram without fringes is
a sum over the materials. Each material contributes its level times its share, smoothed as the view
is (S), and what is left of its fringes: (1 - L0^2 laplacian) mu, smoothed by S = 1 / (1 - L^2
laplacian), is S mu + (L0 / L)^2 (mu - S mu). The two levels of each material are found by linear
least squares over all planes, for each network, and the unexplained parts are compared. The
networks' own probabilities are not used, since a network can be certain and wrong.

Where the materials absorb nearly alike, labels that exchange crystal and liquor explain as much as
the right ones. The coarse pass sees the whole sample at once and does not exchange them as easily
as slices do. So a network whose crystal the coarse pass surely takes for something else is not
chosen if another is there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import scipy.fft
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.segmentation.fringes import LENGTHS, SURFACE

logger = logging.getLogger("dials.anacor_dials.segmentation.experts")

PLANES = 24  # chosen by hand
# The coarse pass is sure of what it finds with a larger probability. Of the crystals of 20 full
# scans and those found in 64 samples of the stream, all left out of training, it is sure that up to
# 0.49 is something else. Of the only one that slices exchanged with the liquor it is sure for 0.95.
SURE = 0.7
CONTRADICTED = 0.7
EDGE = 4  # voxels, about the longer smoothing length: fringes are strongest at the sample's surface


def planes_to_look_at(n: int) -> NDArray[np.intp]:
    """The numbers of at most PLANES planes, evenly spaced over n."""
    return np.unique(np.linspace(0, n - 1, min(n, PLANES) + 2).astype(np.intp)[1:-1])


def smoothed_plane(share: NDArray[np.float32], length: float) -> NDArray[np.float32]:
    """A plane (h, w), smoothed by 1 / (1 + length^2 k^2), as the views of :mod:`.fringes` are.

    Parameters
    ----------
    share : array (h, w)
    length : float
        In voxels.
    """
    k2 = (
        (np.pi * np.arange(share.shape[0]) / share.shape[0])[:, None] ** 2
        + (np.pi * np.arange(share.shape[1]) / share.shape[1]) ** 2
    )  # fmt: skip
    spectrum = scipy.fft.dctn(share) / (1 + length**2 * k2).astype(np.float32)
    out: NDArray[np.float32] = scipy.fft.idctn(spectrum)
    return out


def interior(plane: NDArray[np.floating]) -> NDArray[np.bool_]:
    """The voxels (h, w) of a plane inside the sample, at least EDGE voxels from its surface.

    plane: of the view with the shorter smoothing.
    """
    sample = np.asarray(plane) > SURFACE
    return scipy.ndimage.binary_erosion(sample, iterations=EDGE)


def unexplained(views: NDArray[np.floating], labels: NDArray[np.uint8], n_classes: int) -> float:
    """The part of the variance within a sample that labels do not explain.

    It is the mean over the smoothed views. Only voxels away from the sample's surface count, since
    the fringes that are left in the views are strongest there. Voxels labelled as background are
    expected at the level of air, so that the result can be larger than 1.

    Parameters
    ----------
    views : array (n_views, n_planes, h, w)
        The first one, the plain view, is not used.
    labels : array (n_planes, h, w) of uint8
    n_classes : int
    """
    shares = []
    for view, length in zip(views[1:], LENGTHS, strict=True):
        n = 2 * (n_classes - 1)
        normal, right = np.zeros((n, n)), np.zeros(n)
        squares = total = count = 0.0
        for plane, shorter, found in zip(view, views[1], labels, strict=True):
            here = interior(shorter)
            if not here.any():
                continue
            seen = plane[here].astype(np.float64)
            parts = np.zeros((n, seen.size))
            for k in range(1, n_classes):
                share = (found == k).astype(np.float32)
                smooth = smoothed_plane(share, length)
                parts[2 * k - 2] = smooth[here]
                parts[2 * k - 1] = (share - smooth)[here]
            normal += parts @ parts.T
            right += parts @ seen
            squares += float(seen @ seen)
            total += float(seen.sum())
            count += seen.size
        if not count:
            return 1.0
        levels = np.linalg.lstsq(normal, right, rcond=1e-9)[0]
        left = squares - float(levels @ right)
        shares.append(max(left, 0.0) / max(squares - total**2 / count, 1e-30))
    return float(np.mean(shares))


def contradicted(
    coarse: NDArray[np.floating], shares: NDArray[np.floating] | NDArray[np.bool_], label: int
) -> float:
    """The part of what was found of a label that the coarse pass surely takes for something else.

    NaN if nothing was found of it.

    Parameters
    ----------
    coarse : array (n_classes, ...)
        Probabilities of the coarse pass.
    shares : array (...)
        Of the label in each voxel or block.
    label : int
    """
    found = float(np.sum(shares, dtype=np.float64))
    if not found:
        return float("nan")
    other = np.delete(coarse, label, axis=0).max(axis=0) > SURE
    return float(np.sum(shares[other], dtype=np.float64)) / found


def best_explanation(
    views: NDArray[np.floating],
    candidates: Sequence[NDArray[np.uint8]],
    n_classes: int,
    needed: int | None = None,
    contradictions: Sequence[float] | None = None,
) -> int:
    """The number of the candidate whose labels explain the views best.

    Parameters
    ----------
    views : array (n_views, n_planes, h, w)
    candidates : sequence of array (n_planes, h, w)
        Labels.
    n_classes : int
    needed : int, optional
        A label that every sample has (the crystal). Candidates without it are chosen only if all
        lack it.
    contradictions : sequence of float, optional
        Of :func:`contradicted`, one for each candidate. Candidates above CONTRADICTED are chosen
        only if all others are as well, or lack the label.
    """
    found = [unexplained(views, labels, n_classes) for labels in candidates]
    logger.info(
        "Relative to the variance in %d planes the networks leave unexplained: %s",
        views.shape[1],
        ", ".join(f"{share:.3f}" for share in found),
    )
    whole = [needed is None or bool(np.any(labels == needed)) for labels in candidates]
    parts = contradictions or [float("nan")] * len(candidates)
    agreed = [has and not part > CONTRADICTED for has, part in zip(whole, parts, strict=True)]
    if any(whole) and not all(agreed):
        logger.info(
            "The coarse pass takes these parts of the crystals for something else: %s",
            ", ".join(f"{part:.2f}" for part in parts),
        )
    for allowed in (agreed, whole):
        if any(allowed):
            found = [share if may else np.inf for share, may in zip(found, allowed, strict=True)]
            break
    return int(np.argmin(found))
