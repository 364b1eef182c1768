"""Virtual samples: a crystal in a drop of liquor in a loop, as closed meshes with their materials.

A sample is made in two steps: :func:`.sample_parameters.random_parameters` draws numbers, which are
recorded; :func:`build_sample` makes the meshes, always the same for the same numbers. The loop lies
in the XY plane of the tomo frame, turned about X (the rotation axis). Its stem points to -X. The
middle of the drop is near the origin.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anacor_dials.sample.frames import FloatArray, rotation_about, unit
from anacor_dials.sample.materials import NYLON, POLYIMIDE, Composition, protein_crystal
from anacor_dials.sample.volumes import DEFAULT_NAMES, LabelVolume
from anacor_dials.simulation.crystal_habits import HABITS, Lattice
from anacor_dials.simulation.meshes import (
    Mesh,
    contains,
    convex_polyhedron,
    label_array,
    overlap,
    prism,
    rounded_polyhedron,
    sphere,
    surfaces_meet,
    tube,
    turned_profile,
)
from anacor_dials.simulation.sample_parameters import SampleParameters, random_parameters

logger = logging.getLogger("dials.anacor_dials.simulation.samples")

BACKGROUND = DEFAULT_NAMES[0]

# Materials on a cryo-loop: the liquor is 29 % glycerol and 1 % NaCl by mass, chosen as a usual
# cryoprotectant; loops are polyimide (1.42 g/cm3). Crystals have 55 % solvent; 43 % is the most
# frequent value, 27 to 65 % occur (Matthews, J. Mol. Biol. 33 (1968) 491).
LIQUOR = Composition.parse("0.70 H2O + 0.29 C3H8O3 + 0.01 NaCl", 1.08)
LOOP = Composition.parse(*POLYIMIDE)
SOLVENT_CONTENT = 0.55


def default_materials() -> dict[str, Composition]:
    """Compositions by name: a protein crystal of 55 % solvent, its liquor, a polyimide loop."""
    return {
        "liquor": LIQUOR,
        "loop": LOOP,
        "crystal": protein_crystal(SOLVENT_CONTENT, LIQUOR),
    }


@dataclass(frozen=True, eq=False)
class Part:
    """One solid of a sample.

    Parameters
    ----------
    material : str
        A name of the sample's materials, or "background" for a bubble.
    mesh : Mesh
    displaces : tuple of str
        Where this part overlaps with parts of these materials, it takes their place. (A crystal
        displaces the liquor around it.)
    """

    material: str
    mesh: Mesh
    displaces: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Sample:
    """Solids in the tomo frame, and what they are made of.

    Parameters
    ----------
    parts : tuple of Part
        Later ones take the place of earlier ones.
    materials : mapping
        {name: composition} in the order of labels 1, 2, ...; label 0 is the background.
    parameters : mapping
        How the sample was made, for the record.
    lattice : Lattice, optional
        That of the crystal, if its faces are planes of it.

    Raises
    ------
    ValueError
        If parts of different materials overlap and neither displaces the other.
    """

    parts: tuple[Part, ...]
    materials: Mapping[str, Composition]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    lattice: Lattice | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if "crystal" not in self.materials or not any(p.material == "crystal" for p in self.parts):
            raise ValueError("A sample needs a part of the material 'crystal'.")
        for part in self.parts:
            for name in (part.material, *part.displaces):
                if name != BACKGROUND and name not in self.materials:
                    raise ValueError(
                        f"A part is made of, or displaces, {name!r}, which is not among the materials "
                        f"({', '.join(self.materials)})."
                    )
        _require_separate(self.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """Names by label: background, then the materials."""
        return (BACKGROUND, *self.materials)

    @property
    def meshes(self) -> list[Mesh]:
        """The meshes of all parts."""
        return [part.mesh for part in self.parts]

    @property
    def labels(self) -> list[int]:
        """The label of every part."""
        return [self.names.index(part.material) for part in self.parts]

    def of(self, material: str) -> list[Mesh]:
        """The meshes made of a material."""
        return [part.mesh for part in self.parts if part.material == material]

    def bounds_um(self, *materials: str) -> FloatArray:
        """Lowest and highest corner (2, 3), um, of the box around some materials (default: all)."""
        boxes = [p.mesh.bounds_um for p in self.parts if not materials or p.material in materials]
        return np.stack([np.min([b[0] for b in boxes], 0), np.max([b[1] for b in boxes], 0)])

    def mu_per_um(self, energy_keV: float) -> FloatArray:
        """mu (n,) in 1/um by label at a photon energy in keV; 0 for the background."""
        return np.array([0.0, *(c.mu_per_um(energy_keV) for c in self.materials.values())])

    def delta(self, energy_keV: float) -> FloatArray:
        """delta (n,) of n = 1 - delta + i beta by label at a photon energy in keV."""
        return np.array(
            [0.0, *(c.refractive_index(energy_keV)[0] for c in self.materials.values())]
        )

    def label_volume(
        self,
        voxel_size_um: ArrayLike,
        shape: tuple[int, int, int] | None = None,
        centre: ArrayLike | None = None,
        margin_um: float = 5.0,
    ) -> LabelVolume:
        """The true labels: each voxel has the label of the part that holds its centre.

        Parameters
        ----------
        voxel_size_um : float or (float, float, float)
        shape : (int, int, int), optional
            If not given, the volume holds the whole sample with a margin.
        centre : (float, float, float), optional
            Voxel index of the origin; the middle of the shape if not given. Without a shape, the
            origin lies on the centre of a voxel.
        margin_um : float
            Around the sample, if no shape is given.
        """
        size = np.broadcast_to(np.asarray(voxel_size_um, dtype=np.float64), (3,)).copy()
        if shape is None:
            low, high = self.bounds_um()
            below = np.ceil((margin_um - low) / size).astype(int)
            above = np.ceil((high + margin_um) / size).astype(int)
            nx, ny, nz = (int(n) for n in below + above + 1)
            shape = (nx, ny, nz)
            centre = below.astype(np.float64)
        elif centre is None:
            centre = (np.array(shape) - 1) / 2
        values = label_array(self.meshes, self.labels, shape, size, np.asarray(centre))
        return LabelVolume(values, size, centre, self.names)

    def __repr__(self) -> str:
        low, high = self.bounds_um()
        size = " x ".join(f"{v:.0f}" for v in high - low)
        return f"Sample({', '.join(p.material for p in self.parts)}; {size} um)"


def _require_separate(parts: Sequence[Part]) -> None:
    """Raises ValueError if two parts overlap and neither displaces the other."""
    for i, first in enumerate(parts):
        for second in parts[i + 1 :]:
            if first.material == second.material or first.material in second.displaces:
                continue
            if second.material in first.displaces:
                raise ValueError(
                    f"The {first.material} displaces the {second.material} but comes before it; "
                    "what displaces must come later in the list of parts."
                )
            if overlap(first.mesh, second.mesh):
                raise ValueError(
                    f"The {first.material} and the {second.material} overlap; move them apart (only "
                    "liquor may lie around other parts)."
                )


def random_materials(rng: np.random.Generator) -> tuple[dict[str, Composition], dict[str, str]]:
    """Random compositions of liquor, loop and crystal, and a line of text on each, for the record.

    Liquors contain up to 35 % glycerol, up to 25 % polyethylene glycol, and one or two salts (NaCl
    up to 12 %, ammonium sulfate up to 25 %, by mass). Crystals contain 35 to 75 % of their liquor
    by volume. Loops are polyimide or nylon. So some crystals absorb more than their liquor, others
    less.
    """
    parts = {"C3H8O3": rng.uniform(0.0, 0.35), "C2H4O": rng.uniform(0.0, 0.25) * rng.integers(0, 2)}
    salts = {"NaCl": rng.uniform(0.0, 0.12), "N2H8SO4": rng.uniform(0.0, 0.25)}
    chosen = list(salts)[: int(rng.integers(0, 3))] if rng.random() < 0.5 else ["NaCl"]
    parts.update({name: salts[name] for name in chosen})
    water = 1.0 - sum(parts.values())
    mixture = {"H2O": water, **{name: f for name, f in parts.items() if f > 0}}
    text = " + ".join(f"{fraction:.4f} {formula}" for formula, fraction in mixture.items())
    density = 1.0 + 0.26 * parts["C3H8O3"] + 0.12 * parts["C2H4O"]
    density += 0.7 * parts.get("NaCl", 0.0) + 0.55 * parts.get("N2H8SO4", 0.0)
    liquor = Composition.parse(text, density)
    solvent = float(rng.uniform(0.35, 0.75))
    loop_text, loop_density = (POLYIMIDE, NYLON)[int(rng.integers(0, 2))]
    compositions = {
        "liquor": liquor,
        "loop": Composition.parse(loop_text, loop_density),
        "crystal": protein_crystal(solvent, liquor),
    }
    record = {
        "liquor": f"{text}; {density:.3f} g/cm3",
        "loop": f"{loop_text}; {loop_density} g/cm3",
        "crystal": f"protein and {solvent:.3f} of the liquor by volume",
    }
    return compositions, record


def sample_from_meshes(
    meshes: Mapping[str, Mesh | Sequence[Mesh]],
    materials: Mapping[str, Composition] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Sample:
    """A sample of closed meshes by the name of their material (STL files, Blender's output).

    What lies in the liquor displaces it; "bubble" means background in the liquor.

    Parameters
    ----------
    meshes : mapping
        {material: mesh or meshes}.
    materials : mapping, optional
        Compositions; the usual ones of liquor, loop and crystal if not given.
    parameters : mapping, optional
        For the record.

    Raises
    ------
    ValueError
        If meshes overlap in another way.
    """
    compositions = {**default_materials(), **(materials or {})}
    order = ["liquor", "bubble", *(n for n in meshes if n not in ("liquor", "bubble", "crystal"))]
    parts = []
    for name in [*order, "crystal"]:
        group = meshes.get(name, ())
        for mesh in [group] if isinstance(group, Mesh) else group:
            parts.append(
                Part(
                    BACKGROUND if name == "bubble" else name,
                    mesh,
                    () if name == "liquor" else ("liquor",),
                )
            )
    return Sample(tuple(parts), compositions, parameters or {})


# ---- the built-in maker ------------------------------------------------------------------------


def _crystals(p: SampleParameters) -> list[Mesh]:
    """The crystals about the origin, turned: cut boxes, bipyramids, and those with a habit; worn
    ones have edges that are rounded, or a corner that is broken off.
    """
    half = np.array(p.crystal_size) / 2
    normals = np.vstack([np.eye(3), -np.eye(3), np.reshape(p.cut_normals, (-1, 3))])
    distances = np.array(p.crystal_distances)
    distances[:6] *= np.tile(half, 2)
    distances[6:] *= half.max()
    if p.shape == "bipyramid":  # |x| / a + |y| / b + |z| / c <= 1
        signs = np.array([(x, y, z) for x in (1, -1) for y in (1, -1) for z in (1, -1)])
        pyramid = signs / half
        length = np.linalg.norm(pyramid, axis=1)
        normals = np.vstack([normals, pyramid / length[:, None]])
        distances = np.concatenate([distances, 1.0 / length])
    first = convex_polyhedron(normals, distances)
    if p.broken:
        normal, share = np.array(p.broken[:3]), p.broken[3]
        normals = np.vstack([normals, normal])
        distances = np.append(distances, share * (first.vertices @ normal).max())
        first = convex_polyhedron(normals, distances)
    if p.rounding > 0:
        first = rounded_polyhedron(normals, distances, p.rounding * distances.min())
    turn = rotation_about(p.crystal_turn_axis, p.crystal_turn)
    crystals = [first.moved(turn)]
    for other in p.cluster:
        shift, axis, angle = np.array(other[:3]), other[3:6], other[6]
        crystals.append(
            first.moved(rotation_about(axis, angle) * 0.8, shift * 2 * half).moved(turn)
        )
    return crystals


def _lattice(p: SampleParameters) -> Lattice | None:
    """The lattice of the crystal in the tomo frame; None for a shape without one."""
    if p.shape not in HABITS:
        return None
    loop = rotation_about((1.0, 0.0, 0.0), p.loop_turn)
    crystal = rotation_about(p.crystal_turn_axis, p.crystal_turn)
    return HABITS[p.shape].lattice.turned(loop @ crystal)


def _drop(p: SampleParameters, subdivisions: int) -> Mesh:
    """The liquor: a sphere with bumps and a tail along the stem, flattened between menisci.

    A point (x, y, z) of the sphere goes to (a x, b y, c z (1 - m (1 - z^2))). This is one to one
    for m < 1, so that the surface cannot intersect itself.
    """
    ball = sphere(1.0, subdivisions)
    direction = unit(ball.vertices)
    radius = np.ones(len(direction))
    for bump in p.bumps:
        radius += bump[3] * np.exp(3.0 * (direction @ np.array(bump[:3]) - 1.0))
    radius += p.tail * np.exp(12.0 * (-direction[:, 0] - 1.0))
    x, y, z = (direction * radius[:, None]).T
    z = z * (1.0 - p.meniscus * np.clip(1.0 - z * z, 0.0, 1.0))
    return Mesh(np.column_stack([x, y, z]) * np.array(p.drop), ball.faces)


def _loop(p: SampleParameters, n_curve: int) -> list[Mesh]:
    """Ring, stem, film and pin in the plane Z = 0; parts of one material overlap."""
    along, across = p.ring_radii
    width, height = p.fibre
    t = 2 * np.pi * np.arange(n_curve) / n_curve
    # a drop-shaped ring: pointed towards the stem
    ring = np.column_stack(
        [along * np.cos(t), across * np.sin(t) * (0.85 + 0.15 * np.cos(t)), np.zeros(n_curve)]
    )
    parts = [tube(ring, (0, 0, 1), width, height)]
    start = -along - p.stem_length
    stem = turned_profile([start, -along + 0.5 * width], [1.4 * width, 1.1 * width], 24)
    parts.append(stem)
    if p.film > 0:
        inner = ring[:, :2] * (1 - 0.3 * width / min(along, across))
        parts.append(prism(inner, -p.film / 2, p.film / 2))
    if p.pin:
        parts.append(
            turned_profile(
                [start - 300.0, start - 60.0, start + 0.1 * p.stem_length],
                [150.0, 150.0, 40.0],
                48,
            )
        )
    return parts


def build_sample(
    p: SampleParameters,
    materials: Mapping[str, Composition] | None = None,
    subdivisions: int = 4,
) -> Sample:
    """The sample that the parameters describe: liquor, bubbles, loop and crystal.

    All meshes are closed. The crystal is made smaller, by tenths, until it lies inside the liquor
    and does not touch the loop; the factor is recorded. Bubbles that would touch anything but
    liquor are left out.

    Parameters
    ----------
    p : SampleParameters
    materials : mapping, optional
        Compositions; the usual ones if not given.
    subdivisions : int
        How fine the surface of the drop is (4: 5120 faces).

    Raises
    ------
    ValueError
        If the crystal would have to become too small.
    """
    turn = rotation_about((1.0, 0.0, 0.0), p.loop_turn)
    drop = _drop(p, subdivisions).moved(turn)
    loop = [mesh.moved(turn) for mesh in _loop(p, 24 * 2 ** max(0, subdivisions - 2))]
    crystals = [mesh.moved(turn) for mesh in _crystals(p)]
    shift = turn @ np.array(p.crystal_shift)
    lift = turn @ np.array([0.0, 0.0, 1.0])
    for step in range(16):
        factor = 0.9**step
        scaled = [mesh.moved(factor * np.eye(3)) for mesh in crystals]
        here = shift * factor
        if p.film > 0:  # the crystal lies on the film
            lowest = min(float((m.vertices @ lift).min()) for m in scaled)
            here = here + lift * (0.5 * p.film + 1.0 - lowest - float(here @ lift))
        placed = [mesh.moved(shift_um=here) for mesh in scaled]
        if all(_well_inside(drop, m) for m in placed) and not any(
            overlap(m, part) for m in placed for part in loop
        ):
            break
    else:
        raise ValueError(
            "The crystal does not fit between loop and liquor: make the drop larger or the film thinner."
        )
    bubbles: list[Mesh] = []
    for bubble in p.bubbles:
        mesh = sphere(bubble[3], 3).moved(shift_um=turn @ np.array(bubble[:3]))
        if _well_inside(drop, mesh) and not any(overlap(mesh, m) for m in (*placed, *loop)):
            bubbles.append(mesh)
    parts = [Part("liquor", drop)]
    parts += [Part(BACKGROUND, m, ("liquor",)) for m in bubbles]
    parts += [Part("loop", m, ("liquor",)) for m in loop]
    parts += [Part("crystal", m, ("liquor",)) for m in placed]
    record = {"maker": "built in", **asdict(p), "crystal_scale": factor, "n_bubbles": len(bubbles)}
    compositions = {**default_materials(), **(materials or {})}
    sample = Sample(tuple(parts), compositions, record, _lattice(p))
    logger.debug("built %r", sample)
    return sample


def _well_inside(outer: Mesh, inner: Mesh) -> bool:
    """Whether the inner solid lies inside the outer one, with 2 % of its own size to spare."""
    middle = inner.vertices.mean(axis=0)
    grown = Mesh(middle + 1.02 * (inner.vertices - middle), inner.faces)
    return bool(np.all(contains(outer, grown.vertices))) and not surfaces_meet(outer, grown)


def random_sample(
    rng: np.random.Generator,
    crystal_size_um: float = 80.0,
    materials: Mapping[str, Composition] | None = None,
    **choices: Any,
) -> Sample:
    """A random sample: :func:`build_sample` of :func:`random_parameters`.

    Parameters
    ----------
    rng : numpy.random.Generator
    crystal_size_um : float
    materials : mapping, optional
        Compositions; the usual ones if not given.
    choices
        Further arguments of :func:`random_parameters`.
    """
    return build_sample(random_parameters(rng, crystal_size_um, **choices), materials)


def demo_sample() -> Sample:
    """A fixed sample of about 0.25 mm: a crystal of thaumatin, a bipyramid of its lattice planes
    {1 0 1}, in a drop, held by a loop.
    """
    return random_sample(
        np.random.default_rng(2024), 42.0, shape="thaumatin", stem_length_um=60.0, film=False
    )


def cut_box_sample() -> Sample:
    """A fixed sample of about 0.3 mm: a cut box of 90 um in a drop, held by a loop."""
    return random_sample(
        np.random.default_rng(2024), 60.0, shape="polyhedron", stem_length_um=60.0, film=False
    )
