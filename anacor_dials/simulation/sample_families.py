"""Random samples of many kinds, as solids.

Crystals inside their drop, sticking out of it, with a thin skin of liquor, with a remnant of it,
and dry; polyhedra, plates, needles, bipyramids, prisms, twins, rounded, cracked and hollow ones,
one to three of them; loops of nylon and polyimide, films, mounts with an aperture, meshes,
capillaries; salt, ice, bubbles and dirt.

Frequencies and ranges are choices; where real ones are not known they are wider than is likely.
Lengths are in um in the tomo frame; the stem of the loop points to -X.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anacor_dials.sample.frames import FloatArray, rotation_about, unit
from anacor_dials.simulation.solids import (
    Distance,
    Solid,
    crack,
    cylinder,
    ellipsoid,
    intersection,
    moved,
    polyhedron,
    ring,
    sheet,
    thicker,
    union,
    wavy,
    without,
)

# Families and how often they are drawn. Chosen by hand: every family is seen often, usual ones
# more.
CRYSTAL_FAMILIES = ("polyhedron", "plate", "needle", "bipyramid", "prism", "twin", "blob")
CRYSTAL_FREQUENCIES = (0.38, 0.14, 0.12, 0.12, 0.10, 0.10, 0.04)
LIQUOR_FAMILIES = ("drop", "protruding", "huge", "skin", "remnant", "dry")
LIQUOR_FREQUENCIES = (0.40, 0.24, 0.08, 0.09, 0.10, 0.09)
MOUNT_FAMILIES = ("ring", "film", "aperture", "mesh", "capillary", "none")
MOUNT_FREQUENCIES = (0.62, 0.06, 0.14, 0.06, 0.03, 0.09)
# Inclusions: how often, how many (least, less than), radii in um (least, largest). Chosen by hand.
SPECKS = {
    "salt": (0.15, (1, 7), (1.5, 8.0)),
    "ice": (0.07, (1, 4), (4.0, 18.0)),
    "dirt": (0.10, (1, 5), (1.5, 9.0)),
}


def _random_turn(rng: np.random.Generator) -> FloatArray:
    axis = unit(rng.normal(size=3))
    # the angle of a uniformly random rotation has the density 1 - cos
    while True:
        angle = rng.uniform(0, np.pi)
        if rng.uniform(0, 2) < 1 - np.cos(angle):
            return rotation_about(axis, np.rad2deg(angle))


BOX = np.vstack([np.eye(3), -np.eye(3)])


def _crystal_faces(
    family: str, size: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Normals (n, 3) and distances (n,) in um of a crystal whose mean half size is `size` um."""
    if family in ("polyhedron", "plate", "needle", "twin"):
        aspect = {
            "plate": (1.3, 1.3, rng.uniform(0.12, 0.45)),
            "needle": (rng.uniform(1.6, 2.6), 0.5, 0.5),
        }.get(family, (1.15, 1.0, 0.9))
        half = size * np.array(aspect) * rng.uniform(0.75, 1.25, 3)
        # faces of a parallelepiped, not always at right angles
        skew = np.eye(3)
        if rng.random() < 0.5:
            skew += np.triu(rng.uniform(-0.35, 0.35, (3, 3)), 1)
        box = unit(BOX @ skew)
        distances = np.tile(half, 2) * rng.uniform(0.85, 1.1, 6)
        n_cuts = int(rng.integers(0, 8))
        cuts = unit(rng.normal(size=(n_cuts, 3))) if n_cuts else np.empty((0, 3))
        support = np.linalg.norm(cuts * half, axis=1) * rng.uniform(0.85, 1.3, n_cuts)
        return np.vstack([box, cuts]), np.concatenate([distances, support])
    if family == "bipyramid":
        a, c = size * rng.uniform(0.8, 1.2), size * rng.uniform(0.9, 2.0)
        signs = np.array([(x, y, z) for x in (1, -1) for y in (1, -1) for z in (1, -1)])
        normals = signs / np.array([a, a, c])
        if rng.random() < 0.5:  # the four-sided one
            normals = np.array(
                [(x, y, z) for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)) for z in (1, -1)]
            ) / np.array([a, a, c])
        length = np.linalg.norm(normals, axis=1)
        tips = np.array([[0, 0, 1.0], [0, 0, -1.0]])
        return np.vstack([normals / length[:, None], tips]), np.concatenate(
            [rng.uniform(0.9, 1.1, len(normals)) / length, c * rng.uniform(0.5, 1.1, 2)]
        )
    if family == "prism":
        n = int(rng.choice([3, 4, 6, 8]))
        t = 2 * np.pi * np.arange(n) / n
        sides = np.column_stack([np.cos(t), np.sin(t), np.zeros(n)])
        ends = np.array([[0, 0, 1.0], [0, 0, -1.0]])
        return np.vstack([sides, ends]), np.concatenate(
            [size * rng.uniform(0.6, 1.0) * rng.uniform(0.85, 1.15, n),
             size * rng.uniform(0.5, 1.6) * rng.uniform(0.9, 1.1, 2)]
        )  # fmt: skip
    raise ValueError(f"The crystal family {family!r} is unknown.")


def random_crystal(
    family: str, size: float, rng: np.random.Generator
) -> tuple[Distance, list[str]]:
    """The signed distance of a crystal about the origin, and its traits.

    The traits are those of rounded, cracked and hollow that it has.

    Parameters
    ----------
    family : str
        One of CRYSTAL_FAMILIES.
    size : float
        Mean half size, um.
    rng : numpy.random.Generator
    """
    traits = []
    if family == "blob":
        solid = ellipsoid(size * rng.uniform(0.6, 1.3, 3))
        solid = wavy(solid, 0.06 * size, size, rng)
    else:
        normals, distances = _crystal_faces(family, size, rng)
        rounding = 0.0
        if rng.random() < 0.22:
            rounding = float(rng.uniform(0.1, 0.7) * distances.min())
            traits.append("rounded")
        turn = _random_turn(rng)
        solid = polyhedron(normals @ turn.T, distances, rounding)
        if family == "twin":
            axis, angle = unit(rng.normal(size=3)), rng.uniform(20, 160)
            second = polyhedron(
                normals @ rotation_about(axis, angle).T, distances * rng.uniform(0.6, 1.0), rounding
            )
            solid = union(
                solid,
                moved(second, np.eye(3), unit(rng.normal(size=3)) * size * rng.uniform(0.2, 0.8)),
            )
        if rng.random() < 0.3:
            solid = wavy(solid, float(rng.uniform(0.1, 0.8)), size, rng)
    if rng.random() < 0.15 and size > 8:
        gaps = [
            crack(unit(rng.normal(size=3)), rng.uniform(-0.5, 0.5) * size, rng.uniform(0.5, 2.5))
            for _ in range(int(rng.integers(1, 4)))
        ]
        if rng.random() < 0.5:  # a crack that ends inside
            gaps[0] = intersection(gaps[0], crack(unit(rng.normal(size=3)), size, size))
        solid = without(solid, *gaps)
        traits.append("cracked")
    if rng.random() < 0.05:
        void = ellipsoid(size * rng.uniform(0.08, 0.3, 3))
        solid = without(solid, moved(void, np.eye(3), rng.uniform(-0.4, 0.4, 3) * size))
        traits.append("hollow")
    return solid, traits


def _loop_frame(rng: np.random.Generator) -> FloatArray:
    """Columns: x of the loop (to its tip, near X), y (in its plane) and z (its normal)."""
    turn = rotation_about((1.0, 0.0, 0.0), rng.uniform(0, 360))
    tilt = rotation_about(unit(rng.normal(size=3)), rng.normal(0, 9))
    return tilt @ turn


def random_mount(
    family: str, reach: float, rng: np.random.Generator
) -> tuple[list[tuple[str, Distance]], str]:
    """The parts of a mount, [(material, signed distance), ...], and the material of the loop.

    They are in the frame of the mount, about the origin. Materials are loop and, for a stem of
    metal or glass, pin.

    Parameters
    ----------
    family : str
        One of MOUNT_FAMILIES.
    reach : float
        Half size of what the mount holds, um.
    rng : numpy.random.Generator
    """
    kind = str(rng.choice(["nylon", "polyimide"]))
    solids: list[tuple[str, Distance]] = []
    if family in ("ring", "film"):
        along = reach * rng.uniform(0.75, 1.35)
        across = along * rng.uniform(0.6, 1.0)
        width = float(np.exp(rng.uniform(np.log(2.0), np.log(8.0))))  # half, um
        height = width if rng.random() < 0.6 else width * rng.uniform(0.4, 1.3)
        parts = [ring(along, across, width, height)]
        if rng.random() < 0.7:
            stem = cylinder(width * rng.uniform(1.0, 2.2), -1e4, -along + 0.5 * width, 0.0)
            parts.append(stem)
        if rng.random() < 0.15:  # a second turn of the fibre about the stem
            parts.append(
                moved(ring(0.5 * along, width * 1.5, width, width), np.eye(3), (-1.5 * along, 0, 0))
            )
        if family == "film":
            inner = ellipsoid((along, across * 0.95, 1.0))
            parts.append(
                sheet(lambda x, y: inner(x, y, np.float32(0)), float(rng.uniform(2.0, 7.0)))
            )
        loop = union(*parts)
        if rng.random() < 0.4:  # fibres are not quite straight
            loop = wavy(loop, float(rng.uniform(0.2, 1.0)), reach, rng)
        solids.append(("loop", loop))
    elif family in ("aperture", "mesh"):
        kind = "polyimide"
        thickness = float(rng.uniform(5.0, 14.0))
        half_width = reach * rng.uniform(0.9, 1.6)
        tip = reach * rng.uniform(0.9, 1.5)
        taper = float(rng.uniform(0.0, 0.4))

        def outline(x: Any, y: Any) -> Any:
            sides = (
                np.abs(y)
                - np.float32(half_width)
                - np.float32(taper) * np.minimum(tip - x, 2 * tip)
            )
            return np.maximum(sides, x - np.float32(tip))

        if family == "aperture":
            radius = reach * rng.uniform(0.4, 0.95)
            squareness = float(rng.choice([2.0, 4.0]))

            def hole(x: Any, y: Any) -> Any:
                p = np.float32(squareness)
                return (np.abs(x) ** p + np.abs(y) ** p) ** (1 / p) - np.float32(radius)
        else:
            pitch = float(rng.uniform(14.0, 45.0))
            radius = 0.5 * pitch * rng.uniform(0.5, 0.8)
            round_holes = rng.random() < 0.5

            def hole(x: Any, y: Any) -> Any:
                u, v = (np.abs((c / pitch) % 1 - 0.5) * np.float32(pitch) for c in (x, y))
                far = np.sqrt(u**2 + v**2) if round_holes else np.maximum(u, v)
                return far - np.float32(radius)

        bend = float(rng.uniform(0, 0.4) / reach) if rng.random() < 0.5 else 0.0
        solids.append(
            ("loop", sheet(lambda x, y: np.maximum(outline(x, y), -hole(x, y)), thickness, bend))
        )
    elif family == "capillary":
        radius, wall = reach * rng.uniform(0.9, 1.2), float(rng.uniform(4.0, 12.0))
        tube = without(cylinder(radius + wall, -1e4, 1e4), cylinder(radius, -2e4, 2e4))
        solids.append(("loop", tube))
    if family in ("ring", "film", "aperture", "mesh") and rng.random() < 0.12:
        end = -reach * rng.uniform(1.0, 1.8)
        solids.append(("pin", cylinder(rng.uniform(8.0, 30.0), -1e4, end, rng.uniform(0, 0.3))))
    return solids, kind


# ---- random samples ------------------------------------------------------------------------------


def _choice(
    rng: np.random.Generator, names: Sequence[str], p: Sequence[float], given: str | None
) -> str:
    drawn = str(rng.choice(names, p=np.array(p) / sum(p)))
    return drawn if given is None else given


# ---- random samples ------------------------------------------------------------------------------


def random_solids(
    rng: np.random.Generator,
    radius_um: float,
    crystal: str | None = None,
    liquor: str | None = None,
    mount: str | None = None,
) -> tuple[list[Solid], dict[str, Any]]:
    """The solids of a random sample, and a record of plain values.

    All but the stem lies within radius_um of the origin. The record holds families, traits, the
    size of the crystal and the material of the loop.

    Parameters
    ----------
    rng : numpy.random.Generator
    radius_um : float
    crystal, liquor, mount : str, optional
        Families (CRYSTAL_FAMILIES, LIQUOR_FAMILIES, MOUNT_FAMILIES); random if not given.
    """
    maker = _SampleMaker(
        rng,
        radius_um,
        _choice(rng, CRYSTAL_FAMILIES, CRYSTAL_FREQUENCIES, crystal),
        _choice(rng, LIQUOR_FAMILIES, LIQUOR_FREQUENCIES, liquor),
        _choice(rng, MOUNT_FAMILIES, MOUNT_FREQUENCIES, mount),
    )
    return maker.make()


@dataclass
class _SampleMaker:
    """Draws the parts of one sample; each part depends on those drawn before it."""

    rng: np.random.Generator
    radius_um: float
    shape: str
    wetting: str
    holder: str
    traits: list[str] = field(default_factory=list)

    def make(self) -> tuple[list[Solid], dict[str, Any]]:
        rng = self.rng
        huge = self.wetting == "huge"
        self.size = (rng.uniform(0.12, 0.32) if huge else rng.uniform(0.28, 0.62)) * self.radius_um
        self.place = rng.normal(0, 0.08, 3) * self.radius_um
        crystals, spans = self.crystals()
        # the loop's plane goes somewhere through the crystal or lies beside it
        self.frame = _loop_frame(rng)
        self.reach = (
            self.radius_um * rng.uniform(0.6, 0.9) if huge else self.size * rng.uniform(1.0, 1.7)
        )
        self.loop_shift = (
            self.frame[:, 2] * rng.normal(0, 0.35) + self.frame[:, :2] @ rng.normal(0, 0.15, 2)
        ) * self.size
        mount, loop_material = random_mount(self.holder, self.reach, rng)
        mount = [(material, moved(d, self.frame, self.loop_shift)) for material, d in mount]
        liquor, middle, axes = self.liquor(crystals)
        if (
            liquor is not None
            and self.holder in ("ring", "film", "aperture")
            and rng.random() < 0.3
        ):
            liquor = union(
                liquor, thicker(mount[0][1], float(rng.uniform(0.5, 2.5)))
            )  # it wets the fibre
        solids: list[Solid] = []
        if liquor is not None:
            solids.append(_everywhere("liquor", liquor))
            solids += self.bubbles(liquor, middle, float(axes.min()))
        solids += [_everywhere(material, d) for material, d in mount]
        solids += self.specks(0.6 * float(np.linalg.norm(axes)) if liquor is not None else 0.0)
        solids.append(Solid("crystal", crystals, self.place, spans))
        return solids, {
            "shape": self.shape,
            "liquor": self.wetting,
            "mount": self.holder,
            "loop_material": loop_material if mount else "none",
            "traits": self.traits,
            "crystal_size_um": round(2 * self.size, 2),
        }

    def crystals(self) -> tuple[Distance, float]:
        """The crystals, and the radius in um of a sphere about `place` that holds them."""
        rng, size = self.rng, self.size
        first, traits = random_crystal(self.shape, size, rng)
        self.traits += traits
        solids = [moved(first, np.eye(3), self.place)]
        if rng.random() < 0.12:
            for _ in range(int(rng.integers(1, 3))):
                other, _ = random_crystal(self.shape, size * rng.uniform(0.35, 0.9), rng)
                shift = unit(rng.normal(size=3)) * size * rng.uniform(0.9, 2.2)
                solids.append(moved(other, _random_turn(rng), self.place + shift))
            self.traits.append("several")
            return union(*solids), 4.5 * size
        return solids[0], 3.2 * size

    def liquor(self, crystals: Distance) -> tuple[Distance | None, FloatArray, FloatArray]:
        """The liquor or None, its middle, and the half axes (3,) of its drop."""
        rng, size = self.rng, self.size
        axes = np.array(
            [1.0, rng.uniform(0.7, 1.0), rng.uniform(0.5, 1.0)]
        )  # flatter across the loop
        middle = self.place + rng.normal(0, 0.12, 3) * size
        liquor: Distance | None = None
        if self.wetting == "skin":
            liquor = thicker(crystals, float(rng.uniform(1.0, 6.0)))
            liquor = wavy(liquor, float(rng.uniform(0.1, 0.8)), size, rng)
            if rng.random() < 0.5:
                pool = ellipsoid(axes * size * rng.uniform(0.4, 0.9))
                beside = self.frame[:, :2] @ rng.normal(0, 0.7, 2) * size
                liquor = union(liquor, moved(pool, self.frame, self.loop_shift + beside))
        elif self.wetting != "dry":
            away = unit(rng.normal(size=3)) * size
            if self.wetting == "drop":  # two of three enclose their crystal but for a corner
                encloses = rng.random() < 0.67
                axes *= size * (rng.uniform(1.7, 2.6) if encloses else rng.uniform(1.15, 1.7))
            elif self.wetting == "huge":
                axes *= self.radius_um * rng.uniform(0.75, 1.0)
                middle = rng.normal(0, 0.05, 3) * self.radius_um
            elif self.wetting == "protruding":
                axes *= size * rng.uniform(0.7, 1.5)
                middle = self.place + away * rng.uniform(0.4, 1.2)
            else:
                axes *= size * rng.uniform(0.5, 1.0)
                middle = self.place + away * rng.uniform(0.7, 1.3)
            liquor = self.drop(axes, middle, crystals)
        if self.wetting != "dry" and self.holder == "capillary":
            plug = cylinder(self.reach * 0.9, -size * rng.uniform(1, 3), size * rng.uniform(1, 3))
            fill = moved(plug, self.frame, self.loop_shift)
            liquor = fill if liquor is None else union(liquor, fill)
        return liquor, middle, axes

    def drop(self, axes: FloatArray, middle: FloatArray, crystals: Distance) -> Distance:
        """A drop of half axes (3,) about a middle; sometimes flat on one side, or with a layer on
        the crystal.
        """
        rng, least = self.rng, float(axes.min())
        drop = wavy(ellipsoid(axes), 0.05 * least, 1.2 * least, rng)
        if rng.random() < 0.3:
            flat = polyhedron([unit(rng.normal(size=3))], [least * rng.uniform(0.3, 0.9)])
            drop = intersection(drop, flat)
        drop = moved(drop, self.frame, middle)
        if rng.random() < 0.25:
            drop = union(drop, thicker(crystals, float(rng.uniform(0.8, 3.0))))
        return drop

    def bubbles(self, liquor: Distance, middle: FloatArray, least: float) -> list[Solid]:
        rng = self.rng
        if rng.random() >= 0.18:
            return []
        self.traits.append("bubbles")
        found = []
        for _ in range(int(rng.integers(1, 5))):
            r = float(rng.uniform(1.5, 0.25 * self.size + 3.0))
            where = middle + unit(rng.normal(size=3)) * rng.uniform(0, 1.0) * least
            bubble = moved(ellipsoid((r, r, r)), np.eye(3), where)
            found.append(Solid("background", intersection(bubble, liquor), where, r + 2.0))
        return found

    def specks(self, reach: float) -> list[Solid]:
        """Salt, ice and dirt about the crystal, up to reach um from it."""
        rng, found = self.rng, []
        for material, (chance, many, sizes) in SPECKS.items():
            if rng.random() >= chance:
                continue
            self.traits.append(material)
            for _ in range(int(rng.integers(*many))):
                r = float(rng.uniform(*sizes))
                far = rng.uniform(0.8, 1.25) * max(self.size, reach)
                where = self.place + unit(rng.normal(size=3)) * far
                if material == "salt":
                    body = polyhedron(BOX @ _random_turn(rng).T, rng.uniform(0.4, 0.8, 6) * r)
                else:
                    body = wavy(ellipsoid(r * rng.uniform(0.5, 1.0, 3)), 0.1 * r, 2 * r, rng)
                found.append(Solid(material, moved(body, np.eye(3), where), where, 2.0 * r + 2.0))
        return found


def _everywhere(material: str, distance: Distance) -> Solid:
    return Solid(material, distance, np.zeros(3), np.inf)
