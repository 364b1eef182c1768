"""What attenuates: what a computation needs to know of voxels, convex solids and meshes."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from anacor_dials.absorption import ray_tracing
from anacor_dials.absorption.attenuating_volume import STEP_OPTICAL_DEPTH, prepare_volume
from anacor_dials.absorption.crystal_points import CrystalPoints, SampledPoints
from anacor_dials.absorption.engines import Engine, select_engine
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.volumes import LabelVolume


class AttenuatingBody(Protocol):
    """A sample through which rays are traced from points of its crystal.

    Attributes
    ----------
    engine : Engine
        What traces the rays.
    volume : object
        What the engine traces them through.
    n_labels : int
        The number of materials, with the background.
    importance_points : int
        The number of points from which it is found where points matter.
    has_plane_faces : bool
        Whether the transmission has kinks, where a plane face is seen edge-on.
    rays_cost_little : bool
        Whether the rays of all reflections may be traced where a table does not follow the kinks.
    """

    engine: Engine
    volume: Any
    n_labels: int
    importance_points: int
    has_plane_faces: bool
    rays_cost_little: bool

    def draw(
        self, n: int, rng: np.random.Generator, importance: FloatArray | None = None
    ) -> SampledPoints:
        """See :meth:`CrystalPoints.draw`."""
        ...

    def position_um(self, points: FloatArray) -> FloatArray:
        """Positions (m, 3) of points in the frame of the sample, um."""
        ...

    def path_lengths(
        self, points: FloatArray, directions: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Optical depths (n, m) and lengths (n, m, n_labels), um, of the rays from points."""
        ...


class VoxelBody:
    """A labelled volume; see :class:`AttenuatingBody`.

    Parameters
    ----------
    labels : LabelVolume
    mu_per_um : array (n_labels,)
        1/um.
    tracing : Tracing
        The device, and the tolerance, which decides about the step of marching.
    """

    importance_points = 8192
    has_plane_faces = False
    rays_cost_little = False

    def __init__(self, labels: LabelVolume, mu_per_um: ArrayLike, tracing: Tracing) -> None:
        mu = np.asarray(mu_per_um, dtype=np.float64)
        if (
            mu.shape == labels.counts().shape
        ):  # the mu of an absent material must not decide the step
            mu = np.where(labels.counts() > 0, mu, 0.0)
        self._labels = labels
        self._crystal = CrystalPoints(labels)
        self.n_labels = len(labels.names)
        self.engine = select_engine(tracing.device)
        self.volume: Any = prepare_volume(
            labels, mu, step_optical_depth=STEP_OPTICAL_DEPTH * math.sqrt(tracing.tolerance / 1e-3)
        )

    def draw(
        self, n: int, rng: np.random.Generator, importance: FloatArray | None = None
    ) -> SampledPoints:
        """See :meth:`AttenuatingBody.draw`."""
        return self._crystal.draw(n, rng, importance)

    def position_um(self, points: FloatArray) -> FloatArray:
        """See :meth:`AttenuatingBody.position_um`."""
        return self._labels.position_um(points)

    def path_lengths(
        self, points: FloatArray, directions: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """See :meth:`AttenuatingBody.path_lengths`."""
        return ray_tracing.exact_path_lengths(self.volume, points, directions, self.n_labels)
