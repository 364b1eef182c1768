"""From the working grid back to the voxels of the tomogram: labels, and mu of each material.

Probabilities are interpolated linearly between the centres of the blocks, and each voxel gets the
most probable label. A label that is the most probable one at all eight centres around a voxel is
the most probable one at the voxel, too, so that only voxels near surfaces need the interpolation.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.large_arrays import release
from anacor_dials.sample.memory import require_memory
from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.segmentation.tiles import most_probable

LEAST_INSIDE = 20  # voxels that a median is taken from
VOXELS_LOOKED_AT = 2_000_000  # a median of so many is exact to 0.1 % of the noise


def at_full_size(
    probabilities: NDArray[np.uint8],
    factors: tuple[int, int, int],
    shape: tuple[int, int, int],
    keep: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Labels, and probabilities if wanted, on the fine grid, from probabilities on a working grid.

    Parameters
    ----------
    probabilities : array (n, mx, my, mz) of uint8
    factors : (int, int, int)
        How many voxels one voxel of the working grid is long.
    shape : (int, int, int)
        Of the fine grid.
    keep : bool
        Whether probabilities are returned, too.
    """
    n = probabilities.shape[0]
    coarse = most_probable(probabilities)
    if keep:
        require_memory(
            float(n) * np.prod(shape, dtype=np.float64), "The probabilities at full size"
        )
    if factors == (1, 1, 1):
        return coarse, probabilities if keep else None
    places = [_places(fine, f, m) for fine, f, m in zip(shape, factors, coarse.shape, strict=True)]
    labels = np.empty(shape, dtype=np.uint8)
    fine = np.empty((n, *shape) if keep else (n, 0, 0, 0), dtype=np.uint8)
    _interpolate(np.ascontiguousarray(probabilities), coarse, *places, labels, fine, keep)
    return labels, fine if keep else None


def _places(n: int, factor: int, n_coarse: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """For each of n voxels the block (n,) before it and how far (n,) it is from its centre."""
    place = np.clip((np.arange(n) + 0.5) / factor - 0.5, 0.0, n_coarse - 1.0)
    before = place.astype(np.intp)
    return before, (place - before).astype(np.float32)


@numba.njit(parallel=True, cache=True)
def _interpolate(p, coarse, along_x, along_y, along_z, labels, fine, keep):  # type: ignore[no-untyped-def]
    """Writes labels (nx, ny, nz) and, if they are to be kept, probabilities (n, nx, ny, nz)."""
    n, mx, my, mz = p.shape
    nx, ny, nz = labels.shape
    (xs, x_shares), (ys, y_shares), (zs, z_shares) = along_x, along_y, along_z
    for x in numba.prange(nx):
        x0, fx = xs[x], x_shares[x]
        x1 = min(x0 + 1, mx - 1)
        here = np.empty((n, mz), np.float32)  # interpolated along X and Y
        alike = np.empty(mz, np.uint8)
        for y in range(ny):
            y0, fy = ys[y], y_shares[y]
            y1 = min(y0 + 1, my - 1)
            for z in range(mz):
                one = coarse[x0, y0, z]
                same = (
                    one == coarse[x0, y1, z]
                    and one == coarse[x1, y0, z]
                    and one == coarse[x1, y1, z]
                )
                alike[z] = one if same else n
            for k in range(n):
                for z in range(mz):
                    near = (1 - fy) * p[k, x0, y0, z] + fy * p[k, x0, y1, z]
                    far = (1 - fy) * p[k, x1, y0, z] + fy * p[k, x1, y1, z]
                    here[k, z] = (1 - fx) * near + fx * far
            for z in range(nz):
                z0, fz = zs[z], z_shares[z]
                z1 = min(z0 + 1, mz - 1)
                if not keep and alike[z0] < n and alike[z0] == alike[z1]:
                    labels[x, y, z] = alike[z0]
                    continue
                best, highest = 0, np.float32(-1.0)
                for k in range(n):
                    value = (1 - fz) * here[k, z0] + fz * here[k, z1]
                    if value > highest:
                        best, highest = k, value
                    if keep:
                        fine[k, x, y, z] = np.uint8(np.rint(value))
                labels[x, y, z] = best


def mean_mu(values: NDArray[Any], labels: LabelVolume) -> FloatArray:
    """The median (n,) of mu within each material, 1/um.

    Voxels within two voxels of its surface are left out if the material is thick enough, since
    fringes lie there. NaN for materials of fewer than 20 voxels. Of large materials, evenly spaced
    planes with VOXELS_LOOKED_AT voxels are looked at.

    Parameters
    ----------
    values : array (nx, ny, nz)
        mu, 1/um; or a data set in a file, of which single planes are read.
    labels : LabelVolume
    """
    n = len(labels.names)
    out = np.full(n, np.nan)
    counts = np.stack([np.bincount(plane.ravel(), minlength=n)[:n] for plane in labels.values])
    for label in range(n):
        planes = np.flatnonzero(counts[:, label])
        planes = planes[:: max(1, int(counts[:, label].sum() // VOXELS_LOOKED_AT))]
        found, depths = [np.empty(0, np.float32)], [np.empty(0, np.uint8)]
        for x in planes:
            depth = _depths_in_plane(labels.values, int(x), label)
            found.append(np.asarray(values[int(x)])[depth > 0])
            depths.append(depth[depth > 0])
            release(values)
        part, inside = np.concatenate(found), np.concatenate(depths)
        for least in (3, 2, 1):
            if np.count_nonzero(inside >= least) >= LEAST_INSIDE:
                median = float(np.median(part[inside >= least]))
                if label == 0 or median > 0:
                    out[label] = median
                break
    return out


@numba.njit(parallel=True, cache=True)
def _depths_in_plane(labels, x, label):  # type: ignore[no-untyped-def]
    """How deep (ny, nz) the voxels of a plane lie in a material: 1 at its surface, at most 3.

    The depth is that of repeated erosion by a voxel's six neighbours; 0 is outside.
    """
    nx, ny, nz = labels.shape
    out = np.zeros((ny, nz), np.uint8)
    for y in numba.prange(ny):
        for z in range(nz):
            if labels[x, y, z] != label:
                continue
            depth = 3
            for a in range(-2, 3):
                for b in range(abs(a) - 2, 3 - abs(a)):
                    rest = 2 - abs(a) - abs(b)
                    for c in range(-rest, rest + 1):
                        i, j, k = x + a, y + b, z + c
                        within = 0 <= i < nx and 0 <= j < ny and 0 <= k < nz
                        if not within or labels[i, j, k] != label:
                            depth = min(depth, abs(a) + abs(b) + abs(c))
            out[y, z] = depth
    return out
