"""Corrects wrong labels: islands in air, specks of loop, crystal that hangs on by thin bridges.

Each step reports what it changed, and can be switched off.
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
# A body beside the main one is a crystal, too, if the mean of p / (p + p_next) over its voxels is
# at least this. Chosen by hand.
FURTHER_CRYSTAL = 0.8


def bodies_with(there: NDArray[np.bool_], part: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected bodies (nx, ny, nz) of `there` that have at least one voxel of `part`."""
    bodies, n = scipy.ndimage.label(there, CROSS)
    known = np.zeros(n + 1, dtype=bool)
    known[bodies[part]] = True
    known[0] = False  # what lies outside of all bodies
    return known[bodies]


@dataclass(frozen=True)
class CleaningSettings:
    """Which errors of the labels are corrected; every step can be switched off.

    Parameters
    ----------
    one_crystal : bool
        True: only the main body of crystal is a crystal. The main body has the largest sum of log
        odds against the next probable label, so that a small body with certain labels comes before
        a large body with uncertain ones. False: further bodies are kept, too (two crystals in one
        loop), if their labels are certain (the mean of FURTHER_CRYSTAL) and they are large enough.
    smallest_crystal : float
        The least volume of a further crystal, relative to the main one.
    crystal_in_air : bool
        Whether bodies of crystal that touch nothing but air are kept.
    fill_crystal : bool
        Whether holes that are enclosed by crystal become crystal.
    smallest_body_um3 : float
        Smaller islands of any material in air become air, um^3; 0 switches the step off.
    smallest_loop_um3 : float
        Smaller islands of loop get the next probable label, um^3; 0 switches the step off.
    crystal_bridge_um : float
        The crystal is cut where it is thinner than twice this length. What is then farther than
        three times this length from all parts that count as crystals gets the next probable label.
        This removes pieces of loop and fringes that were labelled as crystal and touch the crystal.
        0 switches the step off.
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
    """What one step of the clean-up changed.

    Attributes
    ----------
    name : str
    changed_um3 : mapping of (str, str) to float
        Volumes in um^3 by (old, new) label.
    """

    name: str
    changed_um3: Mapping[tuple[str, str], float]

    @property
    def total_um3(self) -> float:
        """The volume of all that was changed, um^3."""
        return float(sum(self.changed_um3.values()))


class _Cleaner:
    """Labels and probabilities, which are changed together, and the record of the changes."""

    def __init__(
        self, probabilities: NDArray[np.uint8], names: Sequence[str], voxel_volume_um3: float
    ) -> None:
        self.p, self.names, self.volume = probabilities, tuple(names), voxel_volume_um3
        self.labels = most_probable(probabilities)
        self.steps: list[CleaningStep] = []
        self._changes: dict[tuple[str, str], float] = {}

    def relabel(self, where: NDArray[np.bool_], to: int | None) -> None:
        """Gives voxels another label.

        Parameters
        ----------
        where : array (nx, ny, nz) of bool
        to : int or None
            None: the most probable label other than the one that the voxel has.
        """
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
        """Records the changes since the last step under the name of this step."""
        self.steps.append(CleaningStep(name, self._changes))
        self._changes = {}


def _crystals(
    bodies: NDArray[np.int32],
    n: int,
    probabilities: NDArray[np.uint8],
    label: int,
    settings: CleaningSettings,
) -> NDArray[np.bool_]:
    """Which (n + 1,) of the bodies 0 ... n are crystals: the main body and further ones.

    Body 0 is no body. The main body has the largest sum of ln(p / p_next), with the probability p
    of crystal and the largest probability p_next of another label.
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
    """The voxels of a mask (nx, ny, nz) that hang on to the crystals in it by thin bridges.

    A layer of the thickness `bridge` (in voxels) is removed from the surface of the mask, but at
    most two fifths of its largest depth, so that thin plates remain. The mask then falls into
    parts. Voxels of the mask are returned if they are farther than three times that thickness from
    the parts that are crystals. The tip of a wedge of 40 degrees is nearer than that.
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
    """Labels uint8 (nx, ny, nz) after the clean-up, and what each step changed.

    Bodies are connected through the faces of voxels.

    Parameters
    ----------
    probabilities : array (n, nx, ny, nz) of uint8
        255 = 1. They are changed in place.
    names : sequence of n str
    voxel_volume_um3 : float
    settings : CleaningSettings, optional
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
        c.done("specks of loop get the next probable label")
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
    c.done("crystal apart from the main bodies gets the next probable label")
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
    c.done("crystal beyond thin bridges gets the next probable label")
    return c.labels, c.steps
