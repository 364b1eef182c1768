"""From a tomogram to labels: tiles through the network, probabilities, clean-up.

The tomogram is averaged to the working grid and scaled (:mod:`.working_grid`), and views without fringes are
made of it (:mod:`.fringes`); slices of all views are taken through the network in tiles that overlap and are
blended, only where there is sample; the probabilities are cleaned of what cannot be, interpolated
back to the tomogram's own voxels, and the most probable label is taken. Memory: the working grid; its views in
half precision and probabilities as bytes, where there is sample; a few slices.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from tqdm import tqdm

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.materials import typical_composition
from anacor_dials.sample.tomogram_files import require_memory
from anacor_dials.sample.volumes import LabelVolume, Tomogram, Volume
from anacor_dials.segmentation.fringes import views
from anacor_dials.segmentation.working_grid import (
    COARSEST_UM,
    IntensityScale,
    bin_factors,
    binned_values,
    intensity_scale,
    working_volume,
)

if TYPE_CHECKING:
    from anacor_dials.segmentation.network import SliceNetwork

logger = logging.getLogger("dials.anacor_dials.segmentation.inference")

SHIPPED_WEIGHTS = "anacornet-tiny.safetensors"
SAMPLE_LEVEL = 0.3  # of the smoothed, normalised values: what counts as sample
AIR_AROUND = 16  # voxels of air around the sample that the network sees
PLAUSIBLE_MU = (0.6, 1.6)  # of what the material typically has


def load_network(weights: str | Path | None = None) -> SliceNetwork:
    """The network of a weights file; the weights that ship with the package where None.

    Raises ValueError where torch is not installed or the file is not what it should be.
    """
    try:
        from anacor_dials.segmentation.network import load_weights
    except ImportError as error:
        raise ValueError(
            f"Segmentation needs torch, torchvision and safetensors ({error}); install them (pip install "
            "torch torchvision safetensors), or give labels made elsewhere (labels=)."
        ) from None
    path = Path(str(files("anacor_dials") / "segmentation" / "weights" / SHIPPED_WEIGHTS))
    return load_weights(path if weights is None else weights)


# ---- probabilities --------------------------------------------------------------------------------


@dataclass(frozen=True)
class InferenceSettings:
    """How slices are taken through the network.

    tile: longest edge of what the network sees at once, voxels; overlap: of neighbouring tiles; batch:
    slices at once, None for 16 on a GPU and one on a CPU, where that is fastest. axes: the slices' normals, "x", or "xyz" to average over the three of them. device:
    auto, cpu, cuda.
    """

    tile: int = 512
    overlap: int = 48
    batch: int | None = None
    axes: str = "x"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.tile < 32 or not 0 <= self.overlap < self.tile // 2:
            raise ValueError(
                f"Tiles of {self.tile} voxels with {self.overlap} in common cannot be; a tile is at least 32 "
                "and the overlap less than half of it."
            )
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"The batch is {self.batch}; it must be at least 1.")
        if (
            not self.axes
            or sorted(set(self.axes)) != sorted(self.axes)
            or set(self.axes) - set("xyz")
        ):
            raise ValueError(f"The axes are {self.axes!r}; name x, y or z, each once, such as xyz.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"The device {self.device!r} is unknown; choose auto, cpu or cuda.")


def sample_box(values: NDArray[np.float32], margin: int = 8) -> tuple[slice, slice, slice]:
    """The part (three slices) of normalised values (nx, ny, nz) in which there is anything but air."""
    seen = [np.zeros(n, dtype=bool) for n in values.shape]
    for first in range(0, values.shape[0], 64):  # slab by slab, with a halo
        low, high = max(0, first - 2), min(values.shape[0], first + 66)
        smooth = scipy.ndimage.uniform_filter(values[low:high], 5, mode="nearest")
        there = smooth[first - low : first - low + 64] > SAMPLE_LEVEL
        seen[0][first : first + 64] = there.any(axis=(1, 2))
        seen[1] |= there.any(axis=(0, 2))
        seen[2] |= there.any(axis=(0, 1))
    box = []
    for line in seen:
        where = np.flatnonzero(line)
        if not where.size:
            return (slice(0, 0),) * 3
        box.append(
            slice(max(0, int(where[0]) - margin), min(len(line), int(where[-1]) + 1 + margin))
        )
    return box[0], box[1], box[2]


def tile_starts(n: int, tile: int, overlap: int) -> list[int]:
    """First voxels of equally spaced tiles that cover n voxels and share at least `overlap`."""
    if n <= tile:
        return [0]
    count = math.ceil((n - overlap) / (tile - overlap))
    return np.rint(np.linspace(0, n - tile, count)).astype(int).tolist()


def _ramp(n: int, overlap: int, first: bool, last: bool) -> NDArray[np.float32]:
    """Weights (n,) of a tile: rising over the overlap, but not at the edge of the slice."""
    ramp = np.ones(n, dtype=np.float32)
    rise = (np.arange(1, overlap + 1, dtype=np.float32)) / (overlap + 1)
    if overlap and not first:
        ramp[:overlap] = rise
    if overlap and not last:
        ramp[-overlap:] *= rise[::-1]
    return ramp


@contextmanager
def _threads_apart(on_gpu: bool) -> Iterator[ThreadPoolExecutor]:
    """On a CPU as many workers as torch has threads, each with one thread of torch's; one on a GPU.

    Threads that share a slice wait for each other in every layer, and two are hardly faster than one.
    """
    import torch

    n = torch.get_num_threads()
    if on_gpu or n == 1:
        with ThreadPoolExecutor(1) as pool:
            yield pool
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n) as pool:
            yield pool
    finally:
        torch.set_num_threads(n)


def _along_first_axis(
    network: SliceNetwork,
    seen: NDArray[np.float16],
    settings: InferenceSettings,
    progress: bool,
    what: str,
) -> NDArray[np.uint8]:
    """Probabilities uint8 (n, nx, ny, nz) from slices across the first axis of all views (v, nx, ny, nz)."""
    import torch

    from anacor_dials.segmentation.network import memory_layout

    device = next(network.parameters()).device
    on_gpu = device.type == "cuda"
    n, half = network.settings.n_classes, network.settings.n_slices // 2
    nx, ny, nz = seen.shape[1:]
    out = np.empty((n, nx, ny, nz), dtype=np.uint8)
    ys, zs = (tile_starts(m, settings.tile, settings.overlap) for m in (ny, nz))
    hy, hz = min(ny, settings.tile), min(nz, settings.tile)
    single = len(ys) == len(zs) == 1
    batch = settings.batch or (16 if on_gpu else 1)

    def label_planes(first: int) -> int:
        planes = np.arange(first, min(first + batch, nx))
        near = np.clip(planes[:, None] + np.arange(-half, half + 1), 0, nx - 1)  # (b, n_slices)
        stack = torch.from_numpy(np.concatenate([view[near] for view in seen], axis=1)).float()
        total = torch.zeros((len(planes), n, ny, nz))
        weight = torch.zeros((ny, nz))
        for i, y in enumerate(ys):
            for j, z in enumerate(zs):
                tile = stack[:, :, y : y + hy, z : z + hz]
                tile = tile.to(device).contiguous(memory_format=memory_layout(device))
                with (
                    torch.inference_mode(),
                    torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu),
                ):
                    logits = network(tile)
                p = torch.softmax(logits.float(), dim=1).cpu()
                if single:
                    total = p
                    continue
                w = torch.from_numpy(
                    _ramp(hy, settings.overlap, i == 0, i == len(ys) - 1)[:, None]
                    * _ramp(hz, settings.overlap, j == 0, j == len(zs) - 1)
                )
                total[:, :, y : y + hy, z : z + hz] += w * p
                weight[y : y + hy, z : z + hz] += w
        if not single:
            total = total / weight
        out[:, planes] = (total * 255.0).round().to(torch.uint8).numpy().swapaxes(0, 1)
        return len(planes)

    with (
        _threads_apart(on_gpu) as pool,
        tqdm(total=nx, unit="slice", desc=what, disable=None if progress else True) as bar,
    ):
        for done in pool.map(label_planes, range(0, nx, batch)):
            bar.update(done)
    return out


def class_probabilities(
    network: SliceNetwork,
    values: NDArray[np.float32],
    settings: InferenceSettings | None = None,
    progress: bool = False,
) -> NDArray[np.uint8]:
    """Probabilities uint8 (n_classes, nx, ny, nz), 255 = 1, of normalised values on the working grid.

    Outside of the box around the sample everything is background. Volumes of one slice will do.
    """
    import torch

    from anacor_dials.segmentation.network import memory_layout

    settings = settings or InferenceSettings()
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda was asked for and torch sees no GPU; take device=cpu.")
    cuda = settings.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    network = network.to(device, memory_format=memory_layout(device)).eval()
    n = network.settings.n_classes
    require_memory(n * values.size * (3 if len(settings.axes) > 1 else 1), "The probabilities")
    out = np.zeros((n, *values.shape), dtype=np.uint8)
    out[0] = 255
    box = sample_box(values, AIR_AROUND)
    inside = np.ascontiguousarray(values[box])
    if not inside.size:
        return out
    seen = views(inside, np.float16)
    total: NDArray[np.uint16] | None = None
    for axis in settings.axes:
        order = {"x": (0, 1, 2), "y": (1, 0, 2), "z": (2, 0, 1)}[axis]
        back = tuple(np.argsort(order))
        p = _along_first_axis(
            network,
            np.ascontiguousarray(seen.transpose(0, *(1 + k for k in order))),
            settings,
            progress,
            f"Segmenting slices across {axis.upper()}",
        ).transpose(0, *(1 + k for k in back))
        if len(settings.axes) == 1:
            out[(slice(None), *box)] = p
            return out
        total = p.astype(np.uint16) if total is None else total + p
    assert total is not None
    out[(slice(None), *box)] = np.rint(total / len(settings.axes)).astype(np.uint8)
    return out


def most_probable(probabilities: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels uint8 (nx, ny, nz) of probabilities (n, nx, ny, nz); plane by plane."""
    _, nx, ny, nz = probabilities.shape
    labels = np.empty((nx, ny, nz), dtype=np.uint8)
    for x in range(nx):
        labels[x] = probabilities[:, x].argmax(axis=0)
    return labels


def uncertainty(probabilities: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One minus the largest probability, uint8 (nx, ny, nz), 255 = 1."""
    return np.uint8(255) - probabilities.max(axis=0)


# ---- clean-up -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CleaningSettings:
    """Which things that cannot be are put right; every step can be switched off.

    one_crystal: only the main body of crystal is crystal, the one with the largest sum of log odds against
    what is next probable (a large body of little conviction gives way to a smaller sure one).
    crystal_in_air: allow bodies of crystal that touch nothing but air. fill_crystal: holes enclosed by
    crystal become crystal. smallest_body_um3: smaller islands of anything in air become air;
    smallest_loop_um3: smaller islands of loop become what is next probable; 0 switches the step off.
    crystal_bridge_um: with one_crystal, the body is cut where it is thinner than twice this, and what lies
    further from its main part than three times this becomes what is next probable (loop and fringes that
    were taken for crystal hang on to it by bridges); 0 switches the step off.
    """

    one_crystal: bool = True
    crystal_in_air: bool = False
    fill_crystal: bool = True
    smallest_body_um3: float = 2000.0
    smallest_loop_um3: float = 400.0
    crystal_bridge_um: float = 2.5

    def __post_init__(self) -> None:
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
        """Gives voxels another label; None: the most probable of those that they do not have now."""
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


def _weightiest(
    bodies: NDArray[np.int32], n: int, probabilities: NDArray[np.uint8], label: int
) -> int:
    """The body (1 ... n) with the largest sum of ln(p / p_next); 0 where there is none."""
    evidence = np.zeros(n + 1)
    for x in range(bodies.shape[0]):  # plane by plane: probabilities of a few classes are large
        here = np.flatnonzero(bodies[x])
        if here.size:
            p = np.maximum(probabilities[:, x].reshape(len(probabilities), -1)[:, here], 1)
            others = np.delete(p, label, axis=0).max(axis=0)
            odds = np.log(p[label] / others)
            evidence += np.bincount(bodies[x].ravel()[here], odds + 1e-6, minlength=n + 1)
    return int(evidence.argmax())


def _beyond_bridges(
    crystal: NDArray[np.bool_],
    probabilities: NDArray[np.uint8],
    label: int,
    bridge: float,
) -> NDArray[np.bool_]:
    """What of a mask (nx, ny, nz) hangs on to its weightiest part by bridges; bridge: voxels.

    The mask is worn off by `bridge` (two fifths of its depth at most: thin plates stay) and falls into parts; of the
    mask, what lies further than three times that from the main part is beyond (the tip of a wedge of 40
    degrees is still within).
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
    main = _weightiest(parts, n, probabilities[(slice(None), *box)], label)
    far = scipy.ndimage.distance_transform_edt(parts != main) > 3.0 * worn
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
    main = _weightiest(bodies, n, probabilities, crystal)
    if not settings.crystal_in_air:
        if n > 1:
            grown = scipy.ndimage.grey_dilation(bodies, footprint=_CROSS)
            solid = (c.labels != 0) & (c.labels != crystal)
            wet = np.zeros(n + 1, dtype=bool)
            wet[np.unique(grown[solid])] = True
            dry = ~wet
            dry[[0, main]] = False
            c.relabel(dry[bodies], 0)
        c.done("crystal in air becomes air")
    if settings.one_crystal:
        if n > 1:
            c.relabel((c.labels == crystal) & (bodies != main), None)
        c.done("crystal apart from the main body becomes what is next probable")
    if settings.fill_crystal:
        here = c.labels == crystal
        c.relabel(scipy.ndimage.binary_fill_holes(here) & ~here, crystal)
        c.done("holes in the crystal become crystal")
    if settings.one_crystal:
        bridge = settings.crystal_bridge_um / voxel_volume_um3 ** (1 / 3)
        if bridge > 0:
            c.relabel(_beyond_bridges(c.labels == crystal, probabilities, crystal, bridge), None)
            bodies, n = scipy.ndimage.label(c.labels == crystal)
            main = _weightiest(bodies, n, probabilities, crystal)
            c.relabel((c.labels == crystal) & (bodies != main), None)
        c.done("crystal that hangs on to the main body by bridges becomes what is next probable")
    return c.labels, c.steps


_CROSS = scipy.ndimage.generate_binary_structure(3, 1)


# ---- the whole ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A labelled tomogram and how it came about.

    labels: on the tomogram's own grid. probabilities: uint8 (n, nx, ny, nz), 255 = 1, on the same
    grid; None where they were not asked for. working: probabilities of the working grid, cleaned, and
    its voxels (bin factors). mu_per_um: (n,) 1/um, the tomogram's median within each material, NaN where
    there is too little of it. steps: of the clean-up.
    """

    labels: LabelVolume
    probabilities: NDArray[np.uint8] | None
    working: NDArray[np.uint8]
    factors: tuple[int, int, int]
    scale: IntensityScale
    mu_per_um: FloatArray
    steps: Sequence[CleaningStep] = ()
    warnings: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


def at_full_size(
    probabilities: NDArray[np.uint8],
    factors: tuple[int, int, int],
    shape: tuple[int, int, int],
    keep: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """(labels, probabilities or None) on the fine grid of a working grid's probabilities.

    Linear interpolation between the middles of the blocks, then the most probable label; plane by plane.
    """
    import torch
    import torch.nn.functional as F

    n, mx, my, mz = probabilities.shape
    fx, fy, fz = factors
    nx, ny, nz = shape
    labels = np.empty(shape, dtype=np.uint8)
    if keep:
        require_memory(float(n) * nx * ny * nz, "The probabilities at full size")
    fine = np.empty((n, *shape), dtype=np.uint8) if keep else None
    if factors == (1, 1, 1):
        return most_probable(probabilities), probabilities if keep else None
    for x in range(nx):
        place = min(max((x + 0.5) / fx - 0.5, 0.0), mx - 1.0)
        first = int(place)
        share = place - first
        plane = (1 - share) * probabilities[:, first].astype(np.float32)
        if share:
            plane += share * probabilities[:, first + 1]
        big = F.interpolate(
            torch.from_numpy(plane)[None], size=(my * fy, mz * fz), mode="bilinear"
        )[0, :, :ny, :nz]
        labels[x] = big.argmax(dim=0).to(torch.uint8).numpy()
        if fine is not None:
            fine[:, x] = big.round().to(torch.uint8).numpy()
    return labels, fine


def mean_mu(values: NDArray[Any], labels: LabelVolume) -> FloatArray:
    """Medians (n,) of mu in 1/um within each material, two voxels off its surface where it is thick enough.

    NaN for materials of fewer than 20 voxels. Fresnel fringes lie at surfaces; the median is of the inside.
    """
    out = np.full(len(labels.names), np.nan)
    objects = scipy.ndimage.find_objects(labels.values + np.uint8(1), len(labels.names))
    for label, box in enumerate(objects):
        if box is None:
            continue
        there = labels.values[box] == label
        if label == 0:
            there = there[::2, ::2, ::2]
            part = np.asarray(values[box])[::2, ::2, ::2]
        else:
            part = np.asarray(values[box])
        for depth in (2, 1, 0):
            inside = scipy.ndimage.binary_erosion(there, _CROSS, depth) if depth else there
            if np.count_nonzero(inside) >= 20:
                out[label] = float(np.median(part[inside]))
                break
    return out


def _warnings(
    labels: LabelVolume, mu: FloatArray, voxel_um: FloatArray, energy_keV: float | None
) -> list[str]:
    warnings = []
    counts = labels.counts()
    for label, name in enumerate(labels.names):
        if label and not counts[label]:
            warnings.append(f"No {name} was found.")
    edge = labels.edge_fraction("crystal")
    if edge > 0:
        warnings.append(
            f"The crystal touches the edge of the volume ({100 * edge:.2g} % of its voxels): part of it "
            "may lie outside."
        )
    for label, name in enumerate(labels.names):
        composition = typical_composition(name)
        if energy_keV is None or composition is None or not math.isfinite(mu[label]):
            continue
        expected = composition.mu_per_um(energy_keV)
        if not PLAUSIBLE_MU[0] <= mu[label] / expected <= PLAUSIBLE_MU[1]:
            warnings.append(
                f"mu of the {name} is {mu[label]:.4g} /um in the tomogram, and {expected:.4g} /um is "
                f"typical at {energy_keV:.3g} keV: are the labels right, and is the tomogram in 1/um?"
            )
    if float(voxel_um.max()) > COARSEST_UM:
        warnings.append(
            f"The voxels are {float(voxel_um.max()):.3g} um and the network was trained on at most "
            f"{COARSEST_UM} um: the loop, above all, will suffer."
        )
    return warnings


def segment(
    tomogram: Tomogram | Volume,
    network: SliceNetwork,
    settings: InferenceSettings | None = None,
    cleaning: CleaningSettings | None = None,
    energy_keV: float | None = None,
    keep_probabilities: bool = False,
    clean_up: bool = True,
    refine: Callable[[NDArray[np.float32], NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
    need_crystal: bool = True,
    progress: bool = False,
) -> Segmentation:
    """Labels of a tomogram of mu in 1/um.

    network: of :func:`load_network`. refine: a function of (normalised values, probabilities) on the
    working grid that returns better probabilities (SAM-2). Raises ValueError for a volume of air, for
    values that are no numbers, absurd voxels, and (need_crystal) where no crystal is found.
    """
    times: dict[str, float] = {}
    start = time.perf_counter()
    factors = bin_factors(tomogram.voxel_size_um)
    scale = intensity_scale(tomogram.values, tomogram.voxel_size_um)
    values = binned_values(tomogram.values, factors, scale)
    grid = working_volume(tomogram, values, factors)
    names = network.settings.names
    logger.info(
        "Air %.3g /um, sample %.4g /um, noise %.2g /um; working grid of %s voxels",
        scale.air,
        scale.sample,
        scale.noise,
        " x ".join(str(n) for n in values.shape),
    )
    times["preparation"] = time.perf_counter() - start
    start = time.perf_counter()
    probabilities = class_probabilities(network, values, settings, progress)
    times["network"] = time.perf_counter() - start
    if refine is not None:
        start = time.perf_counter()
        probabilities = refine(values, probabilities)
        times["refinement"] = time.perf_counter() - start
    start = time.perf_counter()
    steps: list[CleaningStep] = []
    if clean_up:
        _, steps = clean(probabilities, names, grid.voxel_volume_um3, cleaning)
        for step in steps:
            if step.changed_um3:
                logger.info("%s: %.0f um^3", step.name, step.total_um3)
    found, fine = at_full_size(probabilities, factors, tomogram.shape, keep_probabilities)
    labels = LabelVolume(found, tomogram.voxel_size_um, tomogram.centre, names)
    if need_crystal and not np.any(found == labels.label("crystal")):
        raise ValueError(
            "No crystal was found in this tomogram. Look at it; label it by hand and give the labels "
            "(labels=), or train the network on samples like this one (dials.anacor_train)."
        )
    mu = mean_mu(tomogram.values, labels)
    times["clean-up"] = time.perf_counter() - start
    warnings = _warnings(labels, mu, grid.voxel_size_um, energy_keV)
    return Segmentation(
        labels, fine, probabilities, factors, scale, mu, tuple(steps), tuple(warnings), times
    )
