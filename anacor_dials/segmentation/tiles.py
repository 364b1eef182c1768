"""Slices go through the network in overlapping tiles that are blended, only where there is sample.

The memory holds the views of the tomogram in half precision and the probabilities as bytes, for the
part with the sample, and a few slices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from anacor_dials.sample.devices import chosen_device, require_device
from anacor_dials.sample.memory import require_memory
from anacor_dials.sample.progress import Progress
from anacor_dials.segmentation.coarse_grid import BIN, block_means, coarse_shape
from anacor_dials.segmentation.experts import best_explanation, contradicted, planes_to_look_at
from anacor_dials.segmentation.fringes import views

if TYPE_CHECKING:
    from anacor_dials.segmentation.network import SliceNetwork

# Smoothed, normalised values above this count as sample. Below one half, so that thin films, which
# the smoothing weakens, count, too. Chosen by hand.
SAMPLE_LEVEL = 0.3
AIR_AROUND = 16  # voxels of air around the sample that the network sees: one pixel at 1/16 size
# Slices across all three axes are labelled if the box around the sample has no more voxels. On six
# samples left out of training this raised the Dice of liquor and loop wherever there were any, and
# that of the crystal on four; on two it fell by 0.002 and 0.003.
ALL_AXES_UP_TO = 24_000_000
ORDERS = {"x": (0, 1, 2), "y": (1, 0, 2), "z": (2, 0, 1)}  # of the axes, the normal of slices first


@dataclass(frozen=True)
class InferenceSettings:
    """How slices are taken through the network.

    Parameters
    ----------
    tile : int
        The longest edge of what the network sees at once, voxels.
    overlap : int
        Of neighbouring tiles, voxels.
    batch : int, optional
        Slices at once; 16 on a GPU and one on a CPU, where that is fastest, if not given.
    axes : str
        The normals of the slices, such as "x"; "xyz" for the mean over the three; "auto": all three
        if that takes little time (:meth:`normals`).
    look : bool
        Whether slices through the middle of the coarse blocks are looked at before the labels are
        made (:func:`context_of`). It takes a third of the time of the labels.
    device : str
        auto, cpu or cuda.
    """

    tile: int = 512
    overlap: int = 48
    batch: int | None = None
    axes: str = "auto"
    look: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.tile < 32 or not 0 <= self.overlap < self.tile // 2:
            raise ValueError(
                f"Tiles of {self.tile} voxels with {self.overlap} in common cannot be; a tile is at least 32 "
                "and the overlap less than half of it."
            )
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"The batch is {self.batch}; it must be at least 1.")
        if self.axes != "auto" and (
            not self.axes
            or sorted(set(self.axes)) != sorted(self.axes)
            or set(self.axes) - set("xyz")
        ):
            raise ValueError(
                f"The axes are {self.axes!r}; name x, y or z, each once, such as xyz, or auto."
            )
        require_device(self.device)

    def normals(self, shape: tuple[int, ...]) -> str:
        """The normals of the slices of a box (nx, ny, nz) of voxels.

        "auto" means all three up to ALL_AXES_UP_TO voxels, else X.
        """
        if self.axes != "auto":
            return self.axes
        return "xyz" if math.prod(shape) <= ALL_AXES_UP_TO and min(shape) >= 16 else "x"


def sample_box(values: NDArray[np.float32], margin: int = 8) -> tuple[slice, slice, slice]:
    """The part (three slices) of normalised values (nx, ny, nz) that holds more than air.

    Parameters
    ----------
    values : array (nx, ny, nz)
    margin : int
        Voxels of air around it.
    """
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
    """The first voxels of equally spaced tiles that cover n voxels.

    Parameters
    ----------
    n : int
    tile : int
        The length of a tile.
    overlap : int
        Neighbouring tiles share at least so many voxels.
    """
    if n <= tile:
        return [0]
    count = math.ceil((n - overlap) / (tile - overlap))
    return np.rint(np.linspace(0, n - tile, count)).astype(int).tolist()


def _ramp(n: int, overlap: int, first: bool, last: bool) -> NDArray[np.float32]:
    """Weights (n,) of a tile, which rise over the overlap, but not at the edge of the slice."""
    ramp = np.ones(n, dtype=np.float32)
    rise = (np.arange(1, overlap + 1, dtype=np.float32)) / (overlap + 1)
    if overlap and not first:
        ramp[:overlap] = rise
    if overlap and not last:
        ramp[-overlap:] *= rise[::-1]
    return ramp


@contextmanager
def _threads_apart(on_gpu: bool) -> Iterator[ThreadPoolExecutor]:
    """Workers: on a GPU one; on a CPU as many as torch has threads, each with one thread.

    Threads that share a slice wait for each other in every layer: two are hardly faster than one.
    BLAS, which torch leaves convolutions of 1 x 1 to, has threads of its own, and workers would
    wait for these, too: on a busy machine that took ten times the time.
    """
    import torch

    n = torch.get_num_threads()
    if on_gpu:
        with ThreadPoolExecutor(1) as pool:
            yield pool
        return
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(n) as pool:
            yield pool
    finally:
        torch.set_num_threads(n)


class _SliceLabeller:
    """Takes slices across the first axis of all views (v, nx, ny, nz) through the network.

    coarse: the probabilities (n_classes, cx, cy, cz) of the coarse pass; None for a network without
    one.
    """

    def __init__(
        self,
        network: SliceNetwork,
        seen: NDArray[np.float16],
        coarse: NDArray[np.float16] | None,
        settings: InferenceSettings,
    ) -> None:
        self.network, self.seen, self.coarse, self.settings = network, seen, coarse, settings
        self.n = network.settings.n_classes
        self.half = network.settings.n_slices // 2
        self.device = next(network.parameters()).device
        self.on_gpu = self.device.type == "cuda"

    @classmethod
    def of(
        cls, network: SliceNetwork, seen: NDArray[np.float16], settings: InferenceSettings
    ) -> _SliceLabeller:
        """A labeller for which the coarse pass is done, if the network has one."""
        from anacor_dials.segmentation.context import context_probabilities

        coarse = context_probabilities(network, seen) if network.context is not None else None
        return cls(network, seen, coarse, settings)

    def turned(self, order: tuple[int, int, int]) -> _SliceLabeller:
        """The same for slices across another axis."""
        if order == (0, 1, 2):
            return self
        axes = (0, *(1 + k for k in order))
        seen = np.ascontiguousarray(self.seen.transpose(axes))
        coarse = None if self.coarse is None else self.coarse.transpose(axes)
        return _SliceLabeller(self.network, seen, coarse, self.settings)

    def part_with_sample(self, planes: NDArray[np.intp]) -> tuple[slice, slice] | None:
        """The part of some planes that holds more than air, and AIR_AROUND it.

        None if there is only air.

        It is found in the view with the shorter smoothing, in the planes and AIR_AROUND neighbours
        on both sides.
        """
        first, last = max(0, int(planes[0]) - AIR_AROUND), int(planes[-1]) + AIR_AROUND + 1
        there = np.any(self.seen[1, first:last:4] > SAMPLE_LEVEL, axis=0)
        part = []
        for line in (np.any(there, axis=1), np.any(there, axis=0)):
            where = np.flatnonzero(line)
            if not where.size:
                return None
            low = max(0, int(where[0]) - AIR_AROUND)
            part.append(slice(low, min(len(line), int(where[-1]) + 1 + AIR_AROUND)))
        return part[0], part[1]

    def probabilities(self, planes: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Probabilities uint8 (n_classes, n_planes, ny, nz); background where there is only air."""
        ny, nz = self.seen.shape[2:]
        out = np.zeros((self.n, len(planes), ny, nz), dtype=np.uint8)
        out[0] = 255
        part = self.part_with_sample(planes)
        if part is None:
            return out
        rows, columns = part
        last = self.seen.shape[1] - 1
        near = np.clip(planes[:, None] + np.arange(-self.half, self.half + 1), 0, last)
        stack = np.concatenate([view[:, rows, columns][near] for view in self.seen], axis=1)
        found = self._blended(stack, self._context(planes, part))
        out[:, :, rows, columns] = (found * 255.0).round().astype(np.uint8).swapaxes(0, 1)
        return out

    def _context(self, planes: NDArray[np.intp], part: tuple[slice, slice]) -> Any:
        import torch

        from anacor_dials.segmentation.context import at_plane

        if self.coarse is None:
            return None
        shape = (self.seen.shape[2], self.seen.shape[3])
        whole = [at_plane(self.coarse, int(x), shape) for x in planes]
        return torch.stack(whole)[:, :, part[0], part[1]]

    def _blended(self, stack: NDArray[np.float16], context: Any) -> NDArray[np.float32]:
        """Probabilities (b, n_classes, h, w) of slices (b, n_planes, h, w), tile by tile."""
        tile, overlap = self.settings.tile, self.settings.overlap
        h, w = stack.shape[2:]
        ys, zs = tile_starts(h, tile, overlap), tile_starts(w, tile, overlap)
        hy, hz = min(h, tile), min(w, tile)
        if len(ys) == len(zs) == 1:
            return self._tile(stack, context)
        total = np.zeros((len(stack), self.n, h, w), dtype=np.float32)
        weight = np.zeros((h, w), dtype=np.float32)
        for i, y in enumerate(ys):
            for j, z in enumerate(zs):
                place = (..., slice(y, y + hy), slice(z, z + hz))
                ramp = (
                    _ramp(hy, overlap, i == 0, i == len(ys) - 1)[:, None]
                    * _ramp(hz, overlap, j == 0, j == len(zs) - 1)
                )  # fmt: skip
                around = None if context is None else context[place]
                total[place] += ramp * self._tile(stack[place], around)
                weight[place] += ramp
        return total / weight

    def _tile(self, stack: NDArray[np.float16], context: Any) -> NDArray[np.float32]:
        import torch

        from anacor_dials.segmentation.network import memory_layout

        slices = torch.from_numpy(np.ascontiguousarray(stack)).float().to(self.device)
        slices = slices.contiguous(memory_format=memory_layout(self.device))
        around = None if context is None else context.to(self.device)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.on_gpu),
        ):
            logits = self.network(slices, around)
        found: NDArray[np.float32] = torch.softmax(logits.float(), dim=1).cpu().numpy()
        return found

    def look(self, normals: str, progress: bool = False) -> None:
        """Averages what the coarse pass found with what slices find that see it.

        A network without a coarse pass does not look.
        """
        if self.coarse is not None:
            found = self._found_in_slices(normals, progress)
            self.coarse = ((self.coarse.astype(np.float32) + found) / 2).astype(np.float16)

    def _found_in_slices(self, normals: str, progress: bool) -> NDArray[np.float32]:
        """Context (n_classes, cx, cy, cz) from slices through the middle of the coarse blocks.

        The slices are across all normals; their probabilities are averaged over the blocks.
        """
        total: NDArray[np.float32] | None = None
        for axis in normals:
            back = (0, *(1 + k for k in np.argsort(ORDERS[axis])))
            found = self.turned(ORDERS[axis])._block_means(progress, axis.upper()).transpose(back)
            total = found if total is None else total + found
        assert total is not None
        return total / np.float32(len(normals))

    def _block_means(self, progress: bool, axis: str) -> NDArray[np.float32]:
        """Means (n_classes, cx, cy, cz) of probabilities, each plane of blocks by one slice."""
        nx, ny, nz = self.seen.shape[1:]
        cx, cy, cz = coarse_shape((nx, ny, nz))
        out = np.empty((self.n, cx, cy, cz), dtype=np.float32)

        def look(i: int) -> None:
            found = self.probabilities(np.array([min(BIN * i + BIN // 2, nx - 1)]))[:, 0]
            filled = np.pad(found, ((0, 0), (0, -ny % BIN), (0, -nz % BIN)), mode="edge")
            blocks = filled.reshape(self.n, cy, BIN, cz, BIN)
            out[:, i] = blocks.mean(axis=(2, 4), dtype=np.float32) / 255.0

        with (
            _threads_apart(self.on_gpu) as pool,
            Progress(cx, f"Looking at slices across {axis}", "slice", progress) as bar,
        ):
            for _ in pool.map(look, range(cx)):
                bar.update(1)
        return out


def context_of(
    network: SliceNetwork, seen: NDArray[np.float16], look: bool = True
) -> NDArray[np.float16] | None:
    """What slices see beside the tomogram (n_classes, cx, cy, cz); None without a coarse pass.

    First the coarse pass finds it. Then the network for slices itself looks at slices across three
    axes, and the mean of both is taken: slices are sharper, and the coarse pass holds them back
    where they would believe their own mistakes.

    Parameters
    ----------
    network : SliceNetwork
        In evaluation mode, on the device where it works.
    seen : array (n_views, nx, ny, nz)
        The views of the tomogram.
    look : bool
        Whether slices are looked at.
    """
    labeller = _SliceLabeller.of(network, seen, InferenceSettings())
    if look:
        labeller.look("xyz")
    return labeller.coarse


def _along_first_axis(labeller: _SliceLabeller, progress: bool, what: str) -> NDArray[np.uint8]:
    """Probabilities uint8 (n_classes, nx, ny, nz) from all slices across the first axis."""
    nx, ny, nz = labeller.seen.shape[1:]
    out = np.empty((labeller.n, nx, ny, nz), dtype=np.uint8)
    batch = labeller.settings.batch or (16 if labeller.on_gpu else 1)

    def label_planes(first: int) -> int:
        planes = np.arange(first, min(first + batch, nx))
        out[:, planes] = labeller.probabilities(planes)
        return len(planes)

    with (
        _threads_apart(labeller.on_gpu) as pool,
        Progress(nx, what, "slice", progress) as bar,
    ):
        for done in pool.map(label_planes, range(0, nx, batch)):
            bar.update(done)
    return out


@dataclass(frozen=True, eq=False)
class FoundClasses:
    """What networks find in a tomogram.

    Attributes
    ----------
    probabilities : array (n_classes, nx, ny, nz) of uint8
        255 = 1.
    contradicted : float
        The part of the crystal that the coarse pass, or the coarser grid, surely takes for
        something else (:func:`.experts.contradicted`). NaN if there is no crystal, or neither.
    """

    probabilities: NDArray[np.uint8]
    contradicted: float = math.nan


def find_classes(
    network: SliceNetwork | Sequence[SliceNetwork],
    values: NDArray[np.float32],
    settings: InferenceSettings | None = None,
    progress: bool = False,
    before: NDArray[np.uint8] | None = None,
) -> FoundClasses:
    """Probabilities of the classes on the working grid.

    Outside of the box around the sample everything is background. Volumes of one slice are allowed.

    Parameters
    ----------
    network : SliceNetwork or sequence of them
        If there are several, the one is taken whose labels of some planes explain the tomogram best
        (:mod:`.experts`).
    values : array (nx, ny, nz)
        Normalised.
    settings : InferenceSettings, optional
    progress : bool
        Whether progress bars are shown.
    before : array (n_classes, nx, ny, nz) of uint8, optional
        Probabilities from a coarser grid, which the slices see in place of what the coarse pass and
        a look find.
    """
    import torch

    from anacor_dials.segmentation.network import on_device

    settings = settings or InferenceSettings()
    device = torch.device(chosen_device(settings.device))
    networks = [network] if not isinstance(network, Sequence) else list(network)
    networks = [on_device(one, device).eval() for one in networks]
    n = networks[0].settings.n_classes
    box = sample_box(values, AIR_AROUND)
    inside = np.ascontiguousarray(values[box])
    normals = settings.normals(inside.shape)
    require_memory(n * values.size * (3 if len(normals) > 1 else 1), "The probabilities")
    out = np.zeros((n, *values.shape), dtype=np.uint8)
    out[0] = 255
    if not inside.size:
        return FoundClasses(out)
    seen = views(inside, np.float16)
    coarse_pass: NDArray[np.float16] | None = None
    if before is None:
        labellers = [_SliceLabeller.of(one, seen, settings) for one in networks]
        coarse_pass = next((one.coarse for one in labellers if one.coarse is not None), None)
        if settings.look:
            for one in labellers:
                one.look(normals, progress)
    else:
        means = np.stack([block_means(of_class[box]) for of_class in before])
        context = coarse_pass = (means / 255.0).astype(np.float16)
        labellers = [
            _SliceLabeller(one, seen, None if one.context is None else context, settings)
            for one in networks
        ]
    labeller = labellers[0] if len(labellers) == 1 else _best_of(labellers, coarse_pass)
    total: NDArray[np.uint16] | None = None
    for axis in normals:
        order = ORDERS[axis]
        back = tuple(np.argsort(order))
        p = _along_first_axis(
            labeller.turned(order), progress, f"Segmenting slices across {axis.upper()}"
        ).transpose(0, *(1 + k for k in back))
        if len(normals) == 1:
            out[(slice(None), *box)] = p
            break
        total = p.astype(np.uint16) if total is None else total + p
    if len(normals) > 1:
        assert total is not None
        out[(slice(None), *box)] = np.rint(total / len(normals)).astype(np.uint8)
    if coarse_pass is None:
        return FoundClasses(out)
    crystal = networks[0].settings.names.index("crystal")
    shares = block_means(out[crystal][box]) / 255.0
    return FoundClasses(out, contradicted(coarse_pass, shares, crystal))


def _best_of(
    labellers: Sequence[_SliceLabeller], coarse_pass: NDArray[np.float16] | None
) -> _SliceLabeller:
    """The labeller whose labels of some planes explain the views best.

    coarse_pass: the probabilities that the coarse pass found, which slices should not contradict.
    """
    from anacor_dials.segmentation.context import at_plane

    seen = labellers[0].seen
    planes = planes_to_look_at(seen.shape[1])
    candidates = []
    for labeller in labellers:

        def most_probable_in(plane: int, labeller: _SliceLabeller = labeller) -> NDArray[np.uint8]:
            found = labeller.probabilities(planes[plane : plane + 1])[:, 0]
            return found.argmax(axis=0).astype(np.uint8)

        with _threads_apart(labeller.on_gpu) as pool:
            candidates.append(np.stack(list(pool.map(most_probable_in, range(len(planes))))))
    crystal = labellers[0].network.settings.names.index("crystal")
    contradictions = None
    if coarse_pass is not None:
        shape = (seen.shape[2], seen.shape[3])
        coarse = np.stack([at_plane(coarse_pass, int(x), shape).numpy() for x in planes], axis=1)
        contradictions = [contradicted(coarse, found == crystal, crystal) for found in candidates]
    best = best_explanation(seen[:, planes], candidates, labellers[0].n, crystal, contradictions)
    return labellers[best]


def most_probable(probabilities: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The most probable labels uint8 (nx, ny, nz) of probabilities (n, nx, ny, nz)."""
    _, nx, ny, nz = probabilities.shape
    labels = np.empty((nx, ny, nz), dtype=np.uint8)
    for x in range(nx):
        labels[x] = probabilities[:, x].argmax(axis=0)
    return labels


def uncertainty(probabilities: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One minus the largest probability, uint8 (nx, ny, nz), 255 = 1."""
    return np.uint8(255) - probabilities.max(axis=0)
