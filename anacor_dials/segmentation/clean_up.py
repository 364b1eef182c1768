"""What cannot be is put right: islands in air, specks of loop, crystal that hangs on by a bridge.

Each step says what it changed, and can be switched off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.segmentation.tiles import most_probable

CROSS = scipy.ndimage.generate_binary_structure(3, 1)
# mean of p / (p + p_next) of a body beside the main one that counts as a crystal too
FURTHER_CRYSTAL = 0.8


@dataclass(frozen=True)
class CleaningSettings:
    """Which things that cannot be are put right; every step can be switched off.

    one_crystal: only the main body of crystal is crystal: the one with the largest sum of log odds
    against what is next probable, so that a small body that is sure wins over a large one that is
    not. Otherwise further bodies stay that are sure (FURTHER_CRYSTAL of their voxels are, on
    average) and have at least the share smallest_crystal of the main one's volume: two crystals in
    one loop. crystal_in_air: allow bodies of crystal that touch nothing but air. fill_crystal:
    holes enclosed by crystal become crystal. smallest_body_um3: smaller islands of anything in air
    become air; smallest_loop_um3: smaller islands of loop become what is next probable; 0 switches
    the step off. crystal_bridge_um: the crystal is cut where it is thinner than twice this, and
    what lies further from the parts that count as crystals than three times this becomes what is
    next probable: loop and fringes that were taken for crystal hang on to it by bridges; 0
    switches the step off.
    """

    one_crystal: bool = False
    smallest_crystal: float = 0.08
    crystal_in_air: bool = False
    fill_crystal: bool = True
    smallest_body_um3: float = 2000.0
    smallest_loop_um3: float = 400.0
    crystal_bridge_um: float = 2.5

    def __post_init__(self) -> None:
        if not 0 <= self.smallest_crystal <= 1:
            raise ValueError(
                f"smallest_crystal is {self.smallest_crystal}; it is a share of the main crystal, 0 to 1."
            )
        for name in ("smallest_body_um3", "smallest_loop_um3", "crystal_bridge_um"):
            value = getattr(self, name)
            unit = "length in um" if name.endswith("_um") else "volume in um^3"
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; it is a {unit}, 0 for none.")


@dataclass(frozen=True)
class CleaningStep:
    """What one step of the clean-up changed: its name, and volumes in um^3 by (from, to)."""

    name: str
    changed_um3: Mapping[tuple[str, str], float]

    @property
    def total_um3(self) -> float:
        return float(sum(self.changed_um3.values()))


class _Cleaner:
    """Labels and probabilities that are changed together, and the record of it."""

    def __init__(
        self, probabilities: NDArray[np.uint8], names: Sequence[str], voxel_volume_um3: float
    ) -> None:
        self.p, self.names, self.volume = probabilities, tuple(names), voxel_volume_um3
        self.labels = most_probable(probabilities)
        self.steps: list[CleaningStep] = []
        self._changes: dict[tuple[str, str], float] = {}

    def relabel(self, where: NDArray[np.bool_], to: int | None) -> None:
        """Gives voxels another label; None: the most probable of those that they do not have
        now."""
        index = np.flatnonzero(where)
        if not index.size:
            return
        old = self.labels.reshape(-1)[index]
        flat = self.p.reshape(len(self.names), -1)
        chances = flat[:, index].astype(np.int16)
        chances[old, np.arange(index.size)] = -1
        new = chances.argmax(axis=0) if to is None else np.full(index.size, to)
        held = flat[old, index]
        flat[old, index] = 0
        flat[new, index] = np.maximum(flat[new, index], np.maximum(held, 1))
        # the new label must win
        flat[new, index] = np.maximum(flat[new, index], flat[:, index].max(axis=0))
        for other in range(len(self.names)):
            tie = (flat[other, index] == flat[new, index]) & (new != other)
            flat[other, index[tie]] -= 1
        self.labels.reshape(-1)[index] = new
        for a in np.unique(old):
            for b in np.unique(new[old == a]):
                key = (self.names[a], self.names[int(b)])
                volume = float(np.count_nonzero((old == a) & (new == b))) * self.volume
                self._changes[key] = self._changes.get(key, 0.0) + volume

    def done(self, name: str) -> None:
        self.steps.append(CleaningStep(name, self._changes))
        self._changes = {}


def _crystals(
    bodies: NDArray[np.int32],
    n: int,
    probabilities: NDArray[np.uint8],
    label: int,
    settings: CleaningSettings,
) -> NDArray[np.bool_]:
    """Which of the bodies 0 ... n (0 is none of them) are crystals: the main one and further ones,
    (n + 1,).

    The main one has the largest sum of ln(p / p_next).
    """
    evidence, sureness, sizes = np.zeros(n + 1), np.zeros(n + 1), np.zeros(n + 1)
    for x in range(bodies.shape[0]):  # plane by plane: probabilities of a few classes are large
        here = np.flatnonzero(bodies[x])
        if here.size:
            body = bodies[x].ravel()[here]
            p = np.maximum(probabilities[:, x].reshape(len(probabilities), -1)[:, here], 1)
            others = np.delete(p, label, axis=0).max(axis=0)
            odds = np.log(p[label] / others)
            evidence += np.bincount(body, odds + 1e-6, minlength=n + 1)
            sureness += np.bincount(body, p[label] / (p[label] + others * 1.0), minlength=n + 1)
            sizes += np.bincount(body, minlength=n + 1)
    main = int(evidence.argmax())
    crystals = np.zeros(n + 1, dtype=bool)
    if not settings.one_crystal:
        large = sizes >= settings.smallest_crystal * sizes[main]
        crystals = large & (sureness >= FURTHER_CRYSTAL * np.maximum(sizes, 1))
    crystals[main] = n > 0
    crystals[0] = False
    return crystals


def _beyond_bridges(
    crystal: NDArray[np.bool_],
    probabilities: NDArray[np.uint8],
    label: int,
    bridge: float,
    settings: CleaningSettings,
) -> NDArray[np.bool_]:
    """What of a mask (nx, ny, nz) hangs on to the crystals in it by bridges; bridge: voxels.

    The mask is worn off by `bridge` (two fifths of its depth at most: thin plates stay) and falls
    into parts; of the mask, what lies further than three times that from the parts that are
    crystals is beyond (the tip of a wedge of 40 degrees is still within).
    """
    beyond = np.zeros_like(crystal)
    boxes = scipy.ndimage.find_objects(crystal.astype(np.uint8))
    if not boxes:
        return beyond
    box = boxes[0]
    there = np.pad(crystal[box], 1)
    depth = scipy.ndimage.distance_transform_edt(there)
    worn = min(bridge, 0.4 * float(depth.max()))
    parts, n = scipy.ndimage.label((depth > worn)[1:-1, 1:-1, 1:-1])
    kept = _crystals(parts, n, probabilities[(slice(None), *box)], label, settings)
    far = scipy.ndimage.distance_transform_edt(~kept[parts]) > 3.0 * worn
    beyond[box] = crystal[box] & far
    return beyond


def clean(
    probabilities: NDArray[np.uint8],
    names: Sequence[str],
    voxel_volume_um3: float,
    settings: CleaningSettings | None = None,
) -> tuple[NDArray[np.uint8], list[CleaningStep]]:
    """(labels uint8 (nx, ny, nz), what each step changed); the probabilities are changed in place.

    probabilities: uint8 (n, nx, ny, nz). Bodies are connected through faces.
    """
    settings = settings or CleaningSettings()
    c = _Cleaner(probabilities, names, voxel_volume_um3)
    crystal = c.names.index("crystal")
    if settings.smallest_body_um3 > 0:
        bodies, n = scipy.ndimage.label(c.labels != 0)
        if n:
            sizes = np.bincount(bodies.ravel())
            sizes[0] = 0
            small = sizes * voxel_volume_um3 < settings.smallest_body_um3
            small[[0, int(sizes.argmax())]] = False
            c.relabel(small[bodies], 0)
        c.done("islands in air become air")
    if settings.smallest_loop_um3 > 0 and "loop" in c.names:
        loop = c.names.index("loop")
        bodies, n = scipy.ndimage.label(c.labels == loop)
        if n:
            small = np.bincount(bodies.ravel()) * voxel_volume_um3 < settings.smallest_loop_um3
            small[0] = False
            c.relabel(small[bodies], None)
        c.done("specks of loop become what is next probable")
    bodies, n = scipy.ndimage.label(c.labels == crystal)
    kept = _crystals(bodies, n, probabilities, crystal, settings)
    if not settings.crystal_in_air:
        if n > 1:
            grown = scipy.ndimage.grey_dilation(bodies, footprint=CROSS)
            solid = (c.labels != 0) & (c.labels != crystal)
            wet = np.zeros(n + 1, dtype=bool)
            wet[np.unique(grown[solid])] = True
            dry = ~wet & ~kept
            dry[0] = False
            c.relabel(dry[bodies], 0)
        c.done("crystal in air becomes air")
    if n > 1:
        c.relabel((c.labels == crystal) & ~kept[bodies], None)
    c.done("crystal apart from the main bodies becomes what is next probable")
    if settings.fill_crystal:
        here = c.labels == crystal
        c.relabel(scipy.ndimage.binary_fill_holes(here) & ~here, crystal)
        c.done("holes in the crystal become crystal")
    bridge = settings.crystal_bridge_um / voxel_volume_um3 ** (1 / 3)
    if bridge > 0:
        hanging = _beyond_bridges(c.labels == crystal, probabilities, crystal, bridge, settings)
        c.relabel(hanging, None)
        bodies, n = scipy.ndimage.label(c.labels == crystal)
        kept = _crystals(bodies, n, probabilities, crystal, settings)
        c.relabel((c.labels == crystal) & ~kept[bodies], None)
    c.done("crystal that hangs on to the main bodies by bridges becomes what is next probable")
    return c.labels, c.steps
