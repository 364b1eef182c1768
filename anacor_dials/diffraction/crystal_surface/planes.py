"""Planes in the surface of a crystal: its faces, without their Miller indices.

Planes through the neighbourhoods of some points are candidates. The one that holds the largest part
of the surface is taken first, and its points are set aside, until no plane is left that holds
enough (sequential RANSAC; Fischler & Bolles, Comm. ACM 24 (1981) 381). Then all planes are fitted
together: each point belongs to the plane that it is nearest to, and a plane is the one with the
least squares of distances (total least squares), with Tukey's weights against outliers. Points near
an edge, where the smoothed surface is round, are left out of the fits.

A plane is a face only if the surface is flat there. A paraboloid is fitted to the distances of its
points from it. Where it rises by more than the roughness of the surface allows, the plane is a
tangent of a round surface; where it falls by as much, the surface is hollow, as where a piece of
the crystal is broken off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anacor_dials.diffraction.crystal_surface.surface_points import CrystalSurface
from anacor_dials.sample.frames import FloatArray, unit

N_CANDIDATES = 400
SAME_SIDE = np.cos(
    np.radians(30.0)
)  # between the normals of a plane and of the surface at its points
LEAST_TOLERANCE_VOXELS = 0.7
TOLERANCE_ROUGHNESS = 2.5  # a point belongs to a plane within so many times the roughness
TOLERANCE_STEPS = (1.0, 1.7, 2.8)  # that are tried until
FLAT_ENOUGH = 0.85  # of the surface is in planes
NEARLY_AS_FLAT = 0.08  # of the surface
LARGEST_TOLERANCE = 0.06  # of the size of the crystal
# Nearer to a second plane, the smoothed surface is round: by 0.03 voxels at the far end, by 0.3 at
# the near end, which counts where the surface is rougher than that.
EDGE_VOXELS = (2.5, 1.0)
ROUGH_VOXELS = (0.12, 0.5)  # roughness of a smooth surface, and of labels that are wrong by a voxel
SMALLEST_FACE = 0.015  # of the surface
MOST_FACES = 40
SAME_PLANE_DEG = 12.0  # planes whose normals are nearer may be one face
ROUNDS = 8
TUKEY = 3.0  # times the tolerance / TOLERANCE_ROUGHNESS
# Patches across a face; errors within one are taken as one error. That division counts which gives
# the largest standard error.
PATCHES_ACROSS = (6, 4, 3)
# The normal of this part of a face, around its middle, tells how far round edges turn that of the
# whole.
INNER_PART = 0.5
LARGEST_RISE = 0.6  # of the tolerance: of a paraboloid between the middle and the rim of a face


@dataclass(frozen=True, eq=False)
class SurfacePlanes:
    """n planes in the surface of a crystal.

    Attributes
    ----------
    normals : array (n, 3)
        Outward unit normals in the tomo frame.
    distances_um : array (n,)
        Of the planes from the origin of the tomo frame along the normals, um; < 0 if the origin
        lies outside.
    areas_um2 : array (n,)
        Of the surface that is in the plane, um^2.
    normal_errors_deg : array (n,)
        Standard error of each normal in any direction across it, deg: of the roughness of the
        surface, and of round edges, by how far the inner part of the face is turned.
    middles : array (n, 3)
        The middle of each face, um.
    face_of_point : array (m,) of int
        The plane of each point of the surface; -1 for none.
    flat_share : float
        The share of the surface that is in the planes.
    rms_um : float
        Rms distance of these points from their planes, um.
    """

    normals: FloatArray
    distances_um: FloatArray
    areas_um2: FloatArray
    normal_errors_deg: FloatArray
    middles: FloatArray
    face_of_point: NDArray[np.int64]
    flat_share: float
    rms_um: float

    def __len__(self) -> int:
        return len(self.normals)


def surface_planes(surface: CrystalSurface, seed: int = 0) -> SurfacePlanes:
    """The planes in the surface of a crystal, the largest first.

    How far points may lie from their plane follows the surface: the smallest tolerance is taken
    with which nearly as much of the surface is flat as with any.

    Parameters
    ----------
    surface : CrystalSurface
    seed : int
        Of the choice of candidates.
    """
    least = max(
        LEAST_TOLERANCE_VOXELS * surface.voxel_um, TOLERANCE_ROUGHNESS * surface.roughness_um
    )
    found: list[SurfacePlanes] = []
    for factor in TOLERANCE_STEPS:
        tolerance = factor * least
        if found and tolerance > LARGEST_TOLERANCE * surface.size_um:
            break
        found.append(_planes_within(surface, tolerance, np.random.default_rng(seed)))
        if found[-1].flat_share > FLAT_ENOUGH:
            break
    most = max(planes.flat_share for planes in found)
    return next(planes for planes in found if planes.flat_share > most - NEARLY_AS_FLAT)


def _planes_within(
    surface: CrystalSurface, tolerance: float, rng: np.random.Generator
) -> SurfacePlanes:
    """The planes that the surface follows within a tolerance, um."""
    planes = _merged(surface, _sequential(surface, tolerance, rng), tolerance)
    for _ in range(3):  # planes that are none leave their points to others
        planes = _fitted_together(surface, planes, tolerance)
        sound = _sound(surface, planes, tolerance)
        if sound.all():
            break
        planes = planes[sound]
    return _described(surface, planes, tolerance)


# ---- planes (n, 4): unit normal and distance ----------------------------------------------------


def _distances(points: FloatArray, planes: FloatArray) -> FloatArray:
    """Signed distances (m, n) of points (m, 3) from planes (n, 4)."""
    return points @ planes[:, :3].T - planes[:, 3]


def _plane_through(points: FloatArray, weights: FloatArray, outward: FloatArray) -> FloatArray:
    """The plane (4,) with the least weighted squares of distances; its normal is along outward."""
    w = weights / weights.sum()
    mean = w @ points
    from_mean = points - mean
    normal = np.linalg.eigh((w[:, None] * from_mean).T @ from_mean)[1][:, 0]
    normal = normal if normal @ outward > 0 else -normal
    return np.append(normal, normal @ mean)


def _robust_plane(
    points: FloatArray, weights: FloatArray, plane: FloatArray, tolerance: float
) -> FloatArray:
    """A plane fitted to the points near it, with Tukey's weights, from a plane to begin with."""
    scale = TUKEY * tolerance / TOLERANCE_ROUGHNESS
    for _ in range(4):
        z = _distances(points, plane[None])[:, 0] / max(scale, 0.5 * tolerance)
        w = weights * np.clip(1 - z * z, 0.0, None) ** 2
        if np.count_nonzero(w) < 8:
            break
        plane = _plane_through(points, w, plane[:3])
    return plane


def _sequential(surface: CrystalSurface, tolerance: float, rng: np.random.Generator) -> FloatArray:
    """Planes (n, 4), each the one that holds the largest part of what is left of the surface."""
    points, normals = surface.points, surface.normals
    left = np.ones(len(points), dtype=bool)
    least = SMALLEST_FACE * surface.areas.sum()
    found: list[FloatArray] = []
    while len(found) < MOST_FACES and surface.areas[left].sum() > least:
        p, n, a = points[left], normals[left], surface.areas[left]
        seeds = rng.choice(len(p), min(N_CANDIDATES, len(p)), replace=False, p=a / a.sum())
        candidates = np.column_stack([n[seeds], np.einsum("ij,ij->i", n[seeds], p[seeds])])
        best, best_area = None, 0.0
        in_plane = _members(p, n, candidates, tolerance)
        order = np.argsort(-(a @ in_plane))[:12]
        for k in order:
            mine = in_plane[:, k]
            if np.count_nonzero(mine) < 8:
                continue
            plane = _robust_plane(p[mine], a[mine], candidates[k], tolerance)
            area = float(a @ _members(p, n, plane[None], tolerance)[:, 0])
            if area > best_area:
                best, best_area = plane, area
        if best is None or best_area < least:
            break
        found.append(best)
        # the rounding near edges goes with its plane, so that it is not taken for one
        left[np.flatnonzero(left)[_members(p, n, best[None], 1.5 * tolerance)[:, 0]]] = False
    return np.array(found).reshape(-1, 4)


def _members(
    points: FloatArray, normals: FloatArray, planes: FloatArray, tolerance: float
) -> NDArray[np.bool_]:
    """Which points (m,) lie in which planes (n,): an array (m, n)."""
    near = np.abs(_distances(points, planes)) < tolerance
    return near & (normals @ planes[:, :3].T > SAME_SIDE)


def _merged(surface: CrystalSurface, planes: FloatArray, tolerance: float) -> FloatArray:
    """The planes, with pairs made one of which one plane holds nearly all points."""
    planes = planes.copy()
    while len(planes) > 1:
        cosines = planes[:, :3] @ planes[:, :3].T
        close = np.argwhere(np.triu(cosines > np.cos(np.radians(SAME_PLANE_DEG)), 1))
        for i, j in close:
            pair = planes[[i, j]]
            either = _members(surface.points, surface.normals, pair, tolerance).any(axis=1)
            p, a = surface.points[either], surface.areas[either]
            plane = _robust_plane(p, a, pair[0], 2 * tolerance)
            held = a @ (np.abs(_distances(p, plane[None])[:, 0]) < tolerance)
            if held > 0.9 * a.sum():
                planes = np.vstack([np.delete(planes, [i, j], axis=0), plane])
                break
        else:
            break
    return planes


def _belonging(
    surface: CrystalSurface, planes: FloatArray, tolerance: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The plane (m,) of each point, -1 for none, and which points (m,) lie away from edges."""
    if len(planes) == 0:
        return np.full(len(surface.points), -1), np.zeros(len(surface.points), dtype=bool)
    distances = np.abs(_distances(surface.points, planes))
    allowed = np.where(surface.normals @ planes[:, :3].T > SAME_SIDE, distances, np.inf)
    nearest = np.argmin(allowed, axis=1)
    rows = np.arange(len(nearest))
    inside = allowed[rows, nearest] < tolerance
    distances[rows, nearest] = np.inf
    edge = surface.voxel_um * np.interp(
        surface.roughness_um / surface.voxel_um, ROUGH_VOXELS, EDGE_VOXELS
    )
    return np.where(inside, nearest, -1), inside & (distances.min(axis=1) > edge)


def _fitted_together(surface: CrystalSurface, planes: FloatArray, tolerance: float) -> FloatArray:
    """The planes after several rounds of assigning points and fitting."""
    planes = planes.copy()
    for _ in range(ROUNDS):
        face, inner = _belonging(surface, planes, tolerance)
        for k in range(len(planes)):
            mine = (face == k) & inner
            if np.count_nonzero(mine) >= 8:
                planes[k] = _robust_plane(
                    surface.points[mine], surface.areas[mine], planes[k], tolerance
                )
    return planes


def _sound(surface: CrystalSurface, planes: FloatArray, tolerance: float) -> NDArray[np.bool_]:
    """Which planes (n,) are large enough and flat."""
    face, inner = _belonging(surface, planes, tolerance)
    least = SMALLEST_FACE * surface.areas.sum()
    sound = np.zeros(len(planes), dtype=bool)
    for k, plane in enumerate(planes):
        mine = (face == k) & inner
        if surface.areas[face == k].sum() < least or np.count_nonzero(mine) < 20:
            continue
        rise = _rise(surface.points[mine], surface.areas[mine], plane)
        sound[k] = abs(rise) < LARGEST_RISE * tolerance
    return sound


def _in_plane(points: FloatArray, plane: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coordinates (m, 2) of points in a plane about their mean, and distances (m,) from it, um."""
    normal = plane[:3]
    u = unit(np.cross(normal, np.eye(3)[np.argmin(np.abs(normal))]))
    from_mean = points - points.mean(axis=0)
    return from_mean @ np.column_stack([u, np.cross(normal, u)]), points @ normal - plane[3]


def _rise(points: FloatArray, weights: FloatArray, plane: FloatArray) -> float:
    """How far a paraboloid through the points falls from the middle to the rim of the face, um.

    It is the fall along the mean of the two main directions: a sphere has it, a saddle has none. It
    is < 0 where the surface is hollow.
    """
    xy, z = _in_plane(points, plane)
    radius = np.sqrt(2 * np.average((xy**2).sum(axis=1), weights=weights))
    x, y = (xy / radius).T
    columns = np.column_stack([np.ones(len(x)), x, y, x * x + y * y, x * x - y * y, x * y])
    root = np.sqrt(weights)
    solution = np.linalg.lstsq(columns * root[:, None], z * root, rcond=None)[0]
    return float(-solution[3])


def _normal_error_deg(points: FloatArray, weights: FloatArray, plane: FloatArray) -> float:
    """Standard error of the normal of a plane, deg, from the mean residuals of patches of a face.

    Errors of labels are alike among neighbours, so the patches, not the points, are taken as
    independent (sandwich formula).
    """
    xy, z = _in_plane(points, plane)
    columns = np.column_stack([np.ones(len(z)), xy])
    inverse = np.linalg.inv((columns * weights[:, None]).T @ columns)
    variances = [0.0]
    for across in PATCHES_ACROSS:
        edge = float(np.sqrt(np.ptp(xy, axis=0).prod())) / across
        _, patch = np.unique(np.floor(xy / edge), axis=0, return_inverse=True)
        patch = patch.ravel()
        n = int(patch.max()) + 1
        if n > 5:
            scores = np.column_stack([np.bincount(patch, c * weights * z) for c in columns.T])
            covariance = n / (n - 4) * inverse @ (scores.T @ scores) @ inverse
            variances.append(0.5 * (covariance[1, 1] + covariance[2, 2]))
    return float(np.degrees(np.sqrt(max(variances))))


def _turn_of_inner_part_deg(
    points: FloatArray, weights: FloatArray, plane: FloatArray, tolerance: float
) -> float:
    """The angle between a plane and that of the inner part of its face, deg.

    Where a crystal is rounded, its faces end in round edges. If these are unlike on both sides,
    they turn the plane, and the inner part less. Mean residuals of patches do not show this as
    large as it is: all of the face is bent in one way.
    """
    xy, _ = _in_plane(points, plane)
    covariance = np.cov(xy.T, aweights=weights)
    from_middle = np.einsum("ij,ij->i", xy @ np.linalg.inv(covariance), xy)
    inner = from_middle <= np.quantile(from_middle, INNER_PART)
    other = _robust_plane(points[inner], weights[inner], plane, tolerance)
    sine = float(np.linalg.norm(np.cross(other[:3], plane[:3])))
    return math.degrees(math.asin(min(sine, 1.0)))


def _described(surface: CrystalSurface, planes: FloatArray, tolerance: float) -> SurfacePlanes:
    """The planes with areas, errors and middles, the largest first."""
    face, inner = _belonging(surface, planes, tolerance)
    areas = np.array([surface.areas[face == k].sum() for k in range(len(planes))])
    order = np.argsort(-areas)
    place = np.empty(len(order) + 1, dtype=np.int64)
    place[order], place[-1] = np.arange(len(order)), -1
    planes, areas, face = planes[order], areas[order], place[face]
    errors, middles = np.zeros(len(planes)), np.zeros((len(planes), 3))
    for k, plane in enumerate(planes):
        mine = (face == k) & inner
        points, weights = surface.points[mine], surface.areas[mine]
        middles[k] = np.average(points, axis=0, weights=weights)
        turn = _turn_of_inner_part_deg(points, weights, plane, tolerance)
        errors[k] = np.hypot(_normal_error_deg(points, weights, plane), turn / np.sqrt(2))
    # errors of like patches make an error of the normal that falls with the area of the face; an
    # error from a few patches may be small by chance
    if len(planes):
        errors = np.maximum(errors, np.median(errors * areas) / areas)
    on_planes = face >= 0
    residual = (
        np.einsum("ij,ij->i", surface.points[on_planes], planes[face[on_planes], :3])
        - planes[face[on_planes], 3]
    )
    return SurfacePlanes(
        normals=planes[:, :3],
        distances_um=planes[:, 3],
        areas_um2=areas,
        normal_errors_deg=errors,
        middles=middles,
        face_of_point=face,
        flat_share=float(areas.sum() / surface.areas.sum()),
        rms_um=float(np.sqrt(np.mean(residual**2))) if on_planes.any() else 0.0,
    )
