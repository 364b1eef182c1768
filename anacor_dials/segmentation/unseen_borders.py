"""Whether the border between crystal and liquor shows in the tomogram, place by place.

Where a network loses a crystal half-way, its border runs through one material, and there is nothing
to be seen there. Elsewhere the border shows a step, or fringes. So the mean profile of the values
across the border is found, and how far the profile at each place, with its neighbours, agrees with
it: the coefficient is one where the border shows as it does on average, and zero where nothing is.
The same at places deep inside the crystal, where there is nothing, says how much noise does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage
import scipy.sparse.csgraph
from numpy.typing import NDArray

from anacor_dials.segmentation.edges import LEAST_SURFACE, Surface, box_around, surface_of
from anacor_dials.segmentation.working_grid import voxel_at_full_size

Array = NDArray[np.float32]

PLACES = np.arange(-4.0, 4.25, 0.5, dtype=np.float32)  # along the normal, voxels
DEEP = 9.0  # voxels: profiles in the crystal, which show no border, are taken there
TO_AIR = 7.0  # voxels: fringes of the sample's surface do not reach so far
# how often coefficients are averaged over neighbours, to about three voxels around
AVERAGES = 4
UNSEEN = 0.35  # smaller coefficients are no border
AROUND = 5.0  # voxels: what does not show together
LEAST_PART = 0.02  # of the border: smaller parts that do not show are not listed
NOISIEST = 0.15  # coefficients are not believed if noise alone makes larger ones (rms)


@dataclass(frozen=True)
class BorderSeen:
    """How much of the border between crystal and liquor shows.

    Attributes
    ----------
    unseen : float
        The part of it that does not.
    noise : float
        The rms of the coefficients where there is no border.
    voxels : tuple of (int, int, int)
        One in the midst of each part that does not show, the largest part first. Parts of less than
        LEAST_PART of the border have none.
    """

    unseen: float
    noise: float
    voxels: tuple[tuple[int, ...], ...]

    def at_full_size(self, factors: Sequence[int]) -> BorderSeen:
        """The same in a volume with so many voxels along X, Y and Z in place of each one here."""
        voxels = tuple(voxel_at_full_size(voxel, factors) for voxel in self.voxels)
        return replace(self, voxels=voxels)


def border_seen(
    values: Array, probabilities: NDArray[np.uint8], names: Sequence[str]
) -> BorderSeen | None:
    """How much of the border shows; None where there is too little border, or too much noise.

    Parameters
    ----------
    values : array (nx, ny, nz)
        Normalised: air is 0 and the sample 1.
    probabilities : array (n, nx, ny, nz) of uint8
        255 = 1.
    names : sequence of str
        Of the classes.
    """
    if "liquor" not in names:
        return None
    crystal, liquor = (list(names).index(name) for name in ("crystal", "liquor"))
    around = box_around(probabilities, crystal)
    near, seen = probabilities[(slice(None), *around)], np.clip(values[around], -1.0, 3.0)
    surface = surface_of(near, crystal)
    if surface is None:
        return None

    def likely(label: int, place: float) -> NDArray[np.bool_]:
        at = np.rint(surface.points + place * surface.normals).astype(np.intp)
        at = np.clip(at, 0, np.array(seen.shape) - 1)
        found: NDArray[np.bool_] = near[(label, *at.T)] >= 128
        return found

    border = np.linalg.norm(surface.normals, axis=1) > 0
    for place in np.arange(2.0, TO_AIR + 0.5):
        border &= likely(liquor, -place)
    inside = np.logical_and.reduce([likely(crystal, p) for p in np.arange(2.0, DEEP + 4.5)])
    if min(np.count_nonzero(border), np.count_nonzero(inside)) < LEAST_SURFACE:
        return None
    across, within = (surface.profiles(seen, PLACES + np.float32(at)) for at in (0.0, DEEP))
    across -= across.mean(axis=1, keepdims=True)
    within -= within.mean(axis=1, keepdims=True)
    averaging = surface.averaging()
    shown = border
    for _ in range(3):
        mean = across[shown].mean(axis=0)
        power = float(mean @ mean)
        if power <= 0:
            return None
        found = _averaged(averaging, across @ mean / power, border)
        shown = border & (found > 0.5)
        if np.count_nonzero(shown) < LEAST_SURFACE:
            return None
    nothing = _averaged(averaging, within @ mean / power, inside)
    noise = math.sqrt(float(np.mean(nothing[inside] ** 2)))
    if noise > NOISIEST:
        return None
    unseen = border & (found < UNSEEN)
    low = np.array([part.start for part in around])
    n_border = np.count_nonzero(border)
    voxels = [
        tuple(int(v) for v in low + surface.cells[_midst(surface, part, seen.shape)])
        for part in _parts(averaging, unseen, LEAST_PART * n_border)
    ]
    return BorderSeen(float(np.count_nonzero(unseen) / n_border), noise, tuple(voxels))


def _parts(
    averaging: scipy.sparse.csr_matrix, where: NDArray[np.bool_], least: float
) -> list[NDArray[np.bool_]]:
    """The connected parts of some places with more than so many, the largest first."""
    chosen = np.flatnonzero(where)
    near_by = averaging[chosen][:, chosen]
    _, part = scipy.sparse.csgraph.connected_components(near_by, directed=False)
    sizes = np.bincount(part)
    found = []
    for k in np.argsort(-sizes, kind="stable"):
        if sizes[k] > least:
            found.append(np.zeros_like(where))
            found[-1][chosen[part == k]] = True
    return found


def _midst(surface: Surface, where: NDArray[np.bool_], shape: tuple[int, ...]) -> int:
    """The number of the place with the most of some places around it."""
    density = np.zeros(shape, dtype=np.float32)
    density[tuple(surface.cells[where].T)] = 1.0
    density = scipy.ndimage.gaussian_filter(density, AROUND)
    return int(np.argmax(np.where(where, density[tuple(surface.cells.T)], -1.0)))


def _averaged(averaging: scipy.sparse.csr_matrix, of: Array, where: NDArray[np.bool_]) -> Array:
    """Means (k,) over neighbours, of places that count."""
    weights = where.astype(np.float32)
    norm = np.maximum(averaging @ weights, 1e-6)
    mean: Array = of.astype(np.float32)
    for _ in range(AVERAGES):
        mean = (averaging @ (weights * mean)) / norm
    return mean
