"""Samples of closed meshes, made of labelled volumes or of solids given as signed distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anacor_dials.sample.materials import Composition
from anacor_dials.sample.volumes import LabelVolume
from anacor_dials.simulation.meshes import Mesh
from anacor_dials.simulation.samples import BACKGROUND, Part, Sample, default_materials
from anacor_dials.simulation.solids import Solid, coordinates

# what solids that are none of liquor, loop and crystal are made of
OTHER_MATERIALS = {
    "salt": Composition.parse("NaCl", 2.16),
    "ice": Composition.parse("H2O", 0.92),
    "dirt": Composition.parse("C6H10O5", 1.5),
    "pin": Composition.parse("SiO2", 2.2),
}


def sample_from_labels(
    volume: LabelVolume,
    materials: Mapping[str, Composition] | None = None,
    smoothing_voxels: float = 0.7,
) -> Sample:
    """A sample with the surfaces of a labelled volume (a segmented real scan).

    Surfaces are found by marching cubes where the smoothed label is one half. The liquor fills all
    that is not background; other materials displace it, and the crystal displaces all.

    Parameters
    ----------
    volume : LabelVolume
    materials : mapping, optional
        Compositions; the usual ones if not given.
    smoothing_voxels : float
        Standard deviation of a Gaussian.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.measure import marching_cubes

    def surface(mask: Any) -> Mesh | None:
        if not mask.any():
            return None
        padded = gaussian_filter(np.pad(mask, 3).astype(np.float32), smoothing_voxels)
        vertices, faces, _, _ = marching_cubes(padded, 0.5)
        position = volume.position_um(vertices - 3.0)
        a, b, c = (position[faces[:, k]] for k in range(3))
        outward = np.einsum("ij,ij->", a, np.cross(b, c)) > 0
        return Mesh(position, np.ascontiguousarray(faces if outward else faces[:, ::-1]))

    compositions = {**default_materials(), **(materials or {})}
    unknown = [n for n in volume.names[1:] if n not in compositions]
    if unknown:
        raise ValueError(
            f"The volume's {', '.join(unknown)} has no composition; name its formula and density."
        )
    values = volume.values
    parts: list[Part] = []
    filled = surface(values != 0)
    if filled is not None and "liquor" in volume.names:
        parts.append(Part("liquor", filled))
    others = [n for n in volume.names[1:] if n not in ("liquor", "crystal")]
    before: list[str] = ["liquor"]
    for name in [*others, "crystal"]:
        mesh = surface(values == volume.label(name))
        if mesh is not None:
            parts.append(Part(name, mesh, tuple(before)))
        before.append(name)
    return Sample(tuple(parts), compositions, {"maker": "labels"})


def sample_of_solids(
    solids: Sequence[Solid],
    extent_um: ArrayLike,
    materials: Mapping[str, Composition] | None = None,
    step_um: float = 1.5,
    parameters: Mapping[str, Any] | None = None,
) -> Sample:
    """A sample of closed meshes of solids that are given as signed distances (:mod:`.solids`).

    Surfaces are found by marching cubes on a grid; thinner parts are lost. Solids of one material
    become one mesh. Later materials displace earlier ones.

    Parameters
    ----------
    solids : sequence of Solid
    extent_um : array (3,)
        Half sizes of the box about the origin at which everything ends.
    materials : mapping, optional
        Compositions; the usual ones if not given.
    step_um : float
        Of the grid.
    parameters : mapping, optional
        For the record.

    Raises
    ------
    ValueError
        If no crystal is left.
    """
    from skimage.measure import marching_cubes

    half = np.broadcast_to(np.asarray(extent_um, dtype=np.float64), (3,))
    n = [int(2 * np.ceil(h / step_um)) + 7 for h in half]
    centre = (np.array(n) - 1) / 2
    x, y, z = coordinates(n, step_um, centre)
    ends = np.maximum(np.maximum(abs(x) - half[0], abs(y) - half[1]), abs(z) - half[2])
    compositions = {**default_materials(), **(materials or {})}
    parts: list[Part] = []
    before: list[str] = []
    for material in dict.fromkeys(solid.material for solid in solids):
        shape = np.full(n, np.inf, dtype=np.float32)
        for solid in solids:
            if solid.material == material:
                np.minimum(shape, solid.distance(x, y, z), out=shape)
        np.maximum(shape, ends, out=shape)
        if material != BACKGROUND and material not in compositions:
            compositions[material] = OTHER_MATERIALS[material]
        if shape.min() < 0:
            vertices, faces, _, _ = marching_cubes(shape, 0.0)
            position = (vertices - centre) * step_um
            a, b, c = (position[faces[:, k]] for k in range(3))
            outward = np.einsum("ij,ij->", a, np.cross(b, c)) > 0
            mesh = Mesh(position, np.ascontiguousarray(faces if outward else faces[:, ::-1]))
            parts.append(Part(material, mesh, tuple(before)))
        before.append(material)
    return Sample(tuple(parts), compositions, {"maker": "solids", **(parameters or {})})
