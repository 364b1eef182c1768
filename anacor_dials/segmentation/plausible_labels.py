"""Label volumes drawn from the probabilities: each is as plausible as the one that was taken.

Labels are drawn by the Gumbel trick: the class k with the largest ln p_k + g_k has the probability
p_k if the g_k are independent Gumbel variables (Gumbel, 1954; Maddison et al., NeurIPS 2014). A
segmentation is not wrong in single voxels: a whole face lies too far out, or a whole film is
missed. Therefore the g_k are fields that vary smoothly. A field of standard normal variables z_k,
the sum of a constant and of fields with a long and a short correlation length, becomes g_k =
-ln(-ln Phi(z_k)). Every voxel keeps its probabilities exactly.

What the network cannot know is where refraction shows a surface
(:mod:`anacor_dials.segmentation.edges`). For that, surfaces are moved by a smooth field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.special
from numpy.typing import NDArray

from anacor_dials.segmentation.tiles import most_probable

# Shares of the variance of z: of a constant, of a field with the size of faces, of one with the
# width of films; and the correlation lengths of the two fields. Chosen by hand; the temperature
# that goes with them was measured on samples left out (jobs/label_uncertainty.py).
SHARES = (0.3, 0.5, 0.2)
SCALES_UM = (25.0, 5.0)
FACES_UM = SCALES_UM[0]
WIDEST_MOVE = 4.0  # voxels
SURE = 252  # of 255: labels with this probability, 0.99, are not drawn again


def smooth_field(
    shape: tuple[int, int, int], voxel_size_um: float, scale_um: float, rng: np.random.Generator
) -> Callable[[NDArray[np.intp]], NDArray[np.float32]]:
    """A random field that varies smoothly, as a function of voxel indices.

    The function returns standard normal variables (n,) at indices (3, n). The field is white noise
    smoothed by a Gaussian of standard deviation s = scale_um, so that two voxels at a distance r
    are correlated by exp(-r^2 / 4 s^2). It is drawn on a grid of half that scale (of the voxels if
    they are coarser) and interpolated linearly.

    Parameters
    ----------
    shape : (int, int, int)
    voxel_size_um, scale_um : float
    rng : Generator
    """
    step = max(1, int(0.5 * scale_um / voxel_size_um))
    sigma = scale_um / (voxel_size_um * step)
    # periodic: two standard deviations more than is asked for
    wide = tuple(
        scipy.fft.next_fast_len(-(-n // step) + 1 + int(np.ceil(2 * sigma)), real=True)
        for n in shape
    )
    squares = np.zeros((), dtype=np.float32)
    for k, n in enumerate(wide):
        f = (scipy.fft.rfftfreq(n) if k == 2 else scipy.fft.fftfreq(n)).astype(np.float32)
        squares = squares + (f**2).reshape([-1 if i == k else 1 for i in range(3)])
    response = np.exp(-2 * np.pi**2 * sigma**2 * squares)
    noise = rng.standard_normal(wide, dtype=np.float32)
    field = scipy.fft.irfftn(scipy.fft.rfftn(noise) * response, wide)
    # Its variance is the mean of the squared response over all frequencies; rfftn holds half of
    # them.
    power = (response.astype(np.float64) ** 2).sum(axis=(0, 1))
    power[1 : (wide[2] + 1) // 2] *= 2
    field /= np.sqrt(power.sum() / np.prod(wide))

    def at(index: NDArray[np.intp]) -> NDArray[np.float32]:
        if step == 1:
            return field[tuple(index)].astype(np.float32)
        out: NDArray[np.float32] = scipy.ndimage.map_coordinates(
            field, index.astype(np.float32) / step, order=1, output=np.float32
        )
        return out

    return at


def plausible_labels(
    probabilities: NDArray[np.uint8],
    voxel_size_um: float,
    n: int,
    rng: np.random.Generator,
    temperature: float = 1.0,
) -> Iterator[NDArray[np.uint8]]:
    """Label volumes uint8 (nx, ny, nz), one after the other.

    Parameters
    ----------
    probabilities : array (n_classes, nx, ny, nz) of uint8
        255 = 1. Voxels whose label is sure (SURE) keep it.
    voxel_size_um : float
        The edge of a voxel.
    n : int
        How many volumes.
    rng : Generator
        Of what is drawn.
    temperature : float
        Labels are drawn from the probabilities to the power of 1 / temperature: 1 for these
        themselves, less for labels closer to the most probable ones.
    """
    classes, *rest = probabilities.shape
    shape = (rest[0], rest[1], rest[2])
    taken = most_probable(probabilities)
    doubtful = np.concatenate(
        [
            np.flatnonzero(probabilities[:, x].max(axis=0) < SURE) + x * shape[1] * shape[2]
            for x in range(shape[0])
        ]
    )
    index = np.array(np.unravel_index(doubtful, shape))
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities.reshape(classes, -1)[:, doubtful].astype(np.float32) / 255)
        logs /= np.float32(temperature)
    for _ in range(n):
        scores = np.empty_like(logs)
        for label in range(classes):
            z = np.full(doubtful.size, np.sqrt(SHARES[0]) * rng.standard_normal(), np.float32)
            for share, scale in zip(SHARES[1:], SCALES_UM, strict=True):
                field = smooth_field(shape, voxel_size_um, scale, rng)
                z += np.float32(np.sqrt(share)) * field(index)
            scores[label] = logs[label] - np.log(-scipy.special.log_ndtr(np.clip(z, -5, 5)))
        drawn = taken.copy()
        drawn.reshape(-1)[doubtful] = scores.argmax(axis=0)
        yield drawn


def moved_surfaces(
    labels: NDArray[np.uint8],
    inside: NDArray[np.bool_],
    voxel_size_um: float,
    n: int,
    rng: np.random.Generator,
) -> Iterator[NDArray[np.uint8]]:
    """Label volumes uint8 (nx, ny, nz) in which the surface of a body has moved by about a voxel,
    here out and there in.

    How far is a field of standard deviation one voxel that varies over FACES_UM. What the body wins
    gets the label of its nearest voxel, and what it loses that of the nearest voxel outside.

    Parameters
    ----------
    labels : array (nx, ny, nz) of uint8
    inside : array (nx, ny, nz) of bool
        The body.
    voxel_size_um : float
        The edge of a voxel.
    n : int
        How many volumes.
    rng : Generator
    """
    nx, ny, nz = labels.shape
    places, depths, others = [], [], []
    for part, sign in ((inside, 1.0), (~inside, -1.0)):
        distance, nearest = scipy.ndimage.distance_transform_edt(part, return_indices=True)
        near = np.array(np.nonzero(part & (distance < WIDEST_MOVE)))
        places.append(near)
        depths.append(sign * (distance[tuple(near)] - 0.5))
        others.append(labels[tuple(nearest[(slice(None), *near)])])
    at, depth, other = np.hstack(places), np.concatenate(depths), np.concatenate(others)
    for _ in range(n):
        field = smooth_field((nx, ny, nz), voxel_size_um, FACES_UM, rng)
        changed = (field(at) < depth) != (depth > 0)
        result = labels.copy()
        result[tuple(at[:, changed])] = other[changed]
        yield result
