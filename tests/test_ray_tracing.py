"""Rays against a second, independent tracer, closed forms and symmetries, on the CPU and on a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

from anacor_dials.absorption import attenuating_volume, ray_tracing, ray_tracing_cuda
from anacor_dials.absorption.attenuating_volume import prepare_volume
from anacor_dials.absorption.crystal_points import CrystalPoints
from anacor_dials.absorption.engines import CpuEngine, select_engine
from anacor_dials.absorption.ray_tracing import (
    exact_path_lengths,
    march_transmission,
)
from anacor_dials.sample.frames import unit
from anacor_dials.sample.volumes import LabelVolume

MU = np.array([0.0, 0.020, 0.035, 0.027])
AXIS_PARALLEL = np.concatenate([np.eye(3), -np.eye(3)])


@pytest.fixture
def engine(device):
    return select_engine(device)


@pytest.fixture
def directions():
    rng = np.random.default_rng(1)
    diagonal = unit([[1, 1, 0], [0, -1, 1], [1, 1, 1], [-1, 1, -1]])
    return np.concatenate([unit(rng.standard_normal((12, 3))), AXIS_PARALLEL, diagonal])


def exact_optical_depth(volume, points, directions):
    return exact_path_lengths(volume, points, directions, n_labels=0)[0]


def crystal_points(labels, n=200, seed=0):
    return CrystalPoints(labels).draw(n, np.random.default_rng(seed)).voxels


def lengths_by_crossings(labels, point, direction):
    """um in each label along a ray: all crossings of voxel faces, sorted; what lies between two of
    them has the label of the voxel at its middle."""
    place = np.asarray(point) + 0.5  # voxel i from i to i + 1
    per_um = direction / labels.voxel_size_um
    crossings = [np.zeros(1)]
    for axis in range(3):
        if per_um[axis] != 0:
            faces = np.arange(labels.shape[axis] + 1)
            crossings.append((faces - place[axis]) / per_um[axis])
    t = np.unique(np.concatenate(crossings))
    t = t[t >= 0]
    middle = np.floor(place + np.outer((t[1:] + t[:-1]) / 2, per_um)).astype(int)
    inside = np.all((middle >= 0) & (middle < labels.shape), axis=1)
    found = labels.values[tuple(middle[inside].T)]
    return np.bincount(found, weights=np.diff(t)[inside], minlength=len(labels.names))


# ---- exact traversal --------------------------------------------------------------------------------


def test_exact_depths_are_those_of_a_second_tracer(sample_labels, directions):
    points = crystal_points(sample_labels, 60)
    volume = prepare_volume(sample_labels, MU)
    expected = [
        [lengths_by_crossings(sample_labels, p, d) @ MU for p in points] for d in directions
    ]
    np.testing.assert_allclose(exact_optical_depth(volume, points, directions), expected, rtol=1e-9)


def test_exact_lengths_in_each_material(sample_labels, directions):
    points = crystal_points(sample_labels, 60)
    volume = prepare_volume(sample_labels, MU)
    depths, lengths = exact_path_lengths(volume, points, directions, 4)
    expected = [[lengths_by_crossings(sample_labels, p, d) for p in points] for d in directions]
    np.testing.assert_allclose(lengths[..., 1:], np.array(expected)[..., 1:], atol=1e-9)
    np.testing.assert_allclose(depths, lengths @ MU, atol=1e-12)


def test_rays_from_edges_and_corners_of_voxels(sample_labels, directions):
    rng = np.random.default_rng(2)
    inside = np.argwhere(sample_labels.values == 3)[::97]
    points = inside + rng.choice([-0.5, 0.0, 0.5], size=inside.shape)
    volume = prepare_volume(sample_labels, MU)
    expected = [
        [lengths_by_crossings(sample_labels, p, d) @ MU for p in points] for d in directions
    ]
    found = exact_optical_depth(volume, points, directions)
    # a ray within a face may be given to the voxels on either side of it
    ambiguous = np.any(
        (directions[:, None] == 0) & (np.abs(points - np.rint(points)) == 0.5), axis=2
    )
    np.testing.assert_allclose(found[~ambiguous], np.array(expected)[~ambiguous], rtol=1e-9)


def test_a_chord_of_a_sphere():
    x, y, z = np.indices((61, 61, 61)) - 30
    ball = LabelVolume((x**2 + y**2 + z**2 <= 28**2).astype(np.uint8) * 3, 0.5)
    volume = prepare_volume(ball, [0, 0, 0, 1.0])
    rng = np.random.default_rng(3)
    points = unit(rng.standard_normal((50, 3))) * 20 * rng.random((50, 1))
    directions = unit(rng.standard_normal((20, 3)))
    along = directions @ points.T
    chord = 0.5 * (-along + np.sqrt(along**2 + 28**2 - np.sum(points**2, axis=1)))
    depth = exact_optical_depth(volume, points + 30, directions)
    assert np.max(np.abs(depth - chord)) < 1.0  # two voxels of 0.5 um where it leaves at a slant
    assert abs(np.mean(depth - chord)) < 0.03


def test_mean_transmissions_of_reflections(engine, sample_labels, directions):
    points = crystal_points(sample_labels, 1200)
    volume = prepare_volume(sample_labels, MU)
    to_source, exits = directions[:10], directions[10:20]
    depths = exact_optical_depth(volume, points, directions)
    f = np.exp(-depths[:10] - depths[10:20])
    mean, error = engine.exact_transmission(volume, points, to_source, exits)
    np.testing.assert_allclose(mean, f.mean(axis=1), rtol=1e-12)
    pairs = f[:, ::2] - f[:, 1::2]
    np.testing.assert_allclose(error, np.sqrt(np.sum(pairs**2, axis=1)) / 1200, rtol=1e-9)


def test_weighted_transmissions_of_reflections(engine, sample_labels, directions):
    points = crystal_points(sample_labels, 1200)
    volume = prepare_volume(sample_labels, MU)
    weights = np.random.default_rng(4).random((10, 1200)) * (np.arange(1200) % 5 > 0)
    depths = exact_optical_depth(volume, points, directions)
    f = weights * np.exp(-depths[:10] - depths[10:20])
    mean, error = engine.exact_transmission(
        volume, points, directions[:10], directions[10:20], weights
    )
    expected = f.sum(axis=1) / weights.sum(axis=1)
    np.testing.assert_allclose(mean, expected, rtol=1e-12)
    # the mean is a ratio, whose error is that of the residuals f - A w
    residual = f - expected[:, None] * weights
    pairs = np.sqrt(np.sum((residual[:, ::2] - residual[:, 1::2]) ** 2, axis=1))
    np.testing.assert_allclose(error, pairs / weights.sum(axis=1), rtol=1e-9)


# ---- symmetries -------------------------------------------------------------------------------------


def test_reciprocity(engine, sample_labels, directions):
    points = crystal_points(sample_labels)
    volume = prepare_volume(sample_labels, MU)
    there = engine.exact_transmission(volume, points, directions[:10], directions[10:20])
    back = engine.exact_transmission(volume, points, directions[10:20], directions[:10])
    np.testing.assert_allclose(there, back, rtol=1e-13)


QUARTER_TURNS = {
    "x": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "y": np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]]),
    "z": np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
}


def turned_sample(labels, turn):
    """The sample turned by a matrix that exchanges axes, voxel by voxel."""
    places = np.argwhere(np.ones(labels.shape, dtype=bool)) @ turn.T
    places -= places.min(axis=0)
    values = np.empty(places.max(axis=0) + 1, dtype=np.uint8)
    values[tuple(places.T)] = labels.values.ravel()
    return LabelVolume(values, np.abs(turn) @ labels.voxel_size_um, names=labels.names)


@pytest.mark.parametrize("axis", QUARTER_TURNS)
def test_sample_and_rays_turned_together(engine, sample_labels, directions, axis):
    turn = QUARTER_TURNS[axis]
    other = turned_sample(sample_labels, turn)
    points = crystal_points(sample_labels)
    middle = (np.array(sample_labels.shape) - 1) / 2
    points_turned = (points - middle) @ turn.T + (np.array(other.shape) - 1) / 2
    one, two = prepare_volume(sample_labels, MU), prepare_volume(other, MU)
    np.testing.assert_allclose(
        exact_optical_depth(two, points_turned, directions @ turn.T),
        exact_optical_depth(one, points, directions),
        rtol=1e-9,
    )
    marched = engine.to_numpy(engine.march_transmission(one, points, directions))
    again = engine.to_numpy(engine.march_transmission(two, points_turned, directions @ turn.T))
    # the same steps, counted from the other side
    assert np.sqrt(np.mean((again / marched - 1) ** 2)) < 0.01


def test_without_absorption_nothing_is_lost(engine, sample_labels, directions):
    points = crystal_points(sample_labels)
    volume = prepare_volume(sample_labels, np.zeros(4))
    mean, error = engine.exact_transmission(volume, points, directions[:5], directions[5:10])
    assert np.all(mean == 1.0)
    assert np.all(error == 0.0)
    assert np.all(engine.to_numpy(engine.march_transmission(volume, points, directions)) == 1.0)


def test_labels_of_equal_mu_are_one(engine, sample_labels, directions):
    points = crystal_points(sample_labels)
    three = prepare_volume(sample_labels, [0, 0.03, 0.03, 0.03])
    merged = LabelVolume(
        np.where(sample_labels.values > 0, 3, 0).astype(np.uint8), sample_labels.voxel_size_um
    )
    one = prepare_volume(merged, [0, 0.5, 0.7, 0.03])
    np.testing.assert_allclose(
        exact_optical_depth(three, points, directions),
        exact_optical_depth(one, points, directions),
        rtol=1e-12,
    )
    for a, b in zip(
        engine.exact_transmission(three, points, directions[:5], directions[5:10]),
        engine.exact_transmission(one, points, directions[:5], directions[5:10]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12)


# ---- marched rays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 3.0, 10.0])
def test_marched_rays_are_exact_on_average(engine, sample_labels, directions, scale):
    # optical depths across the crystal from 0.03 to 6; of one voxel up to 0.7
    points = crystal_points(sample_labels, 8000)
    volume = prepare_volume(sample_labels, scale * MU)
    exact = np.exp(-exact_optical_depth(volume, points, directions)).mean(axis=1)
    marched = engine.to_numpy(engine.march_transmission(volume, points, directions))
    assert marched.shape == (len(directions), 8000)
    assert marched.dtype == np.float32
    deviation = marched.mean(axis=1, dtype=float) / exact - 1
    assert np.sqrt(np.mean(deviation**2)) < 5e-4
    assert np.max(np.abs(deviation)) < 2e-3


def test_each_marched_ray_is_off_by_little(engine, sample_labels, directions):
    points = crystal_points(sample_labels)
    volume = prepare_volume(sample_labels, MU)
    depth = -np.log(engine.to_numpy(engine.march_transmission(volume, points, directions)))
    off = np.abs(depth - exact_optical_depth(volume, points, directions))
    # half a step and half the diagonal of a cell at each boundary; there are at most six
    diagonal = np.linalg.norm(volume.cell_um)
    assert off.max() < 6 * 0.5 * (volume.step_um + diagonal) * MU.max()
    assert np.sqrt(np.mean(off**2)) < (volume.step_um + diagonal) * MU.max() / 4


def one_step_after_the_other(volume, point, direction):
    """The optical depth of a marched ray, each sample looked up by itself."""
    g = direction / volume.cell_um
    place = volume.grid_coordinates(point[None])[0]
    upper = np.array(volume.grid.shape) - 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        to_edge = np.where(g > 0, (upper - place) / g, np.where(g < 0, (1 - place) / g, np.inf))
    count = int(to_edge.min() / volume.step_um + 0.5)
    steps = np.rint(g * volume.step_um * 2**16).astype(np.int64)
    start = (place * 2**16).astype(np.int64) + (steps >> 1)
    cells = (start + np.outer(np.arange(count), steps)) >> 16
    counts = volume.grid_counts[volume.grid[tuple(cells.T)] & 255]
    return counts.sum() * volume.grid_unit_per_um * volume.step_um


def test_a_march_leaves_out_no_sample(engine, sample_labels, directions):
    # whatever it takes together
    x, y, z = np.indices((50, 60, 70)) - 30
    values = np.where(x**2 + y**2 + z**2 <= 28**2, 1, 0).astype(np.uint8)
    values[10:38, 20:44, 12:30] = 3
    large = LabelVolume(values, (0.5, 0.8, 0.7))
    # a diagonal plate, which fills its box badly; and a crystal beside it that does not absorb
    plate = np.where(np.abs(x - y + z) < 8, 1, 0).astype(np.uint8)
    plate[2:9, 50:57, 40:60] = 3
    oblique = LabelVolume(plate, (0.5, 0.8, 0.7))
    for labels, mu in (
        (sample_labels, MU),
        (large, MU),
        (large, 0.02 * MU),
        (oblique, MU),
        (oblique, np.array([0.0, 0.02, 0.0, 0.0])),
    ):
        volume = prepare_volume(labels, mu)
        points = crystal_points(labels, 40)
        marched = engine.to_numpy(engine.march_transmission(volume, points, directions))
        expected = [[one_step_after_the_other(volume, p, d) for p in points] for d in directions]
        np.testing.assert_allclose(marched, np.exp(-np.array(expected)), rtol=1e-6)


def test_the_grid_keeps_the_sum_of_mu(sample_labels):
    for scale in (0.01, 1.0):
        volume = prepare_volume(sample_labels, scale * MU)
        cells = volume.grid_counts[volume.grid] * volume.grid_unit_per_um
        in_cells = cells.sum() * np.prod(volume.cell_um)
        in_voxels = (scale * MU) @ sample_labels.counts() * sample_labels.voxel_volume_um3
        assert in_cells == pytest.approx(in_voxels, rel=2e-3)
        border = cells.copy()
        border[1:-1, 1:-1, 1:-1] = 0
        assert not border.any()


def test_cells_are_as_large_as_the_absorption_allows():
    values = np.full((100, 100, 100), 3, dtype=np.uint8)
    labels = LabelVolume(values, (0.25, 0.5, 1.0))
    weak, strong = prepare_volume(labels, 4 * [1e-4]), prepare_volume(labels, 4 * [0.1])
    np.testing.assert_array_equal(weak.binning, [3, 1, 1])  # 25 um in 32 cells
    np.testing.assert_array_equal(strong.binning, [1, 1, 1])
    assert strong.step_um < weak.step_um


def test_the_box_holds_what_absorbs_and_the_crystal(sample_labels):
    values = np.zeros((30, 30, 30), dtype=np.uint8)
    values[10:12, 5, 7:9] = 3
    values[20, 21, 22] = 2
    labels = LabelVolume(values, 1.0)
    volume = prepare_volume(labels, [0, 0, 0.1, 0.1])
    assert (volume.lower.tolist(), volume.upper.tolist()) == ([10, 5, 7], [21, 22, 23])
    volume = prepare_volume(labels, [0, 0, 0, 0.1])
    assert (volume.lower.tolist(), volume.upper.tolist()) == ([10, 5, 7], [12, 6, 9])
    volume = prepare_volume(labels, [0, 0, 0.1, 0])
    assert (volume.lower.tolist(), volume.upper.tolist()) == ([10, 5, 7], [21, 22, 23])
    whole = prepare_volume(labels, [0.01, 0, 0.1, 0])  # a gas that absorbs
    assert (whole.lower.tolist(), whole.upper.tolist()) == ([0, 0, 0], [30, 30, 30])
    assert "30 x 30 x 30 voxels" in repr(volume)


# ---- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [[0, 1, 2], [0, 0.1, np.nan, 0.1], [0, 0.1, -0.1, 0.1]])
def test_mu_that_does_not_fit_is_refused(sample_labels, mu):
    with pytest.raises(ValueError, match="one finite value >= 0 is needed for each"):
        prepare_volume(sample_labels, mu)


def test_a_volume_without_a_crystal_is_refused():
    labels = LabelVolume(np.ones((3, 3, 3), np.uint8), 1.0)
    with pytest.raises(ValueError, match="No voxel of the volume is labelled 'crystal'"):
        prepare_volume(labels, MU)


def test_too_many_materials_are_refused():
    names = (*(f"m{i}" for i in range(attenuating_volume.MOST_MATERIALS)), "crystal")
    labels = LabelVolume(np.full((2, 2, 2), 128, np.uint8), 1.0, names=names)
    with pytest.raises(ValueError, match="129 materials; at most 128"):
        prepare_volume(labels, np.zeros(129))


def test_a_volume_that_is_too_long_is_refused():
    labels = LabelVolume(np.full((attenuating_volume.LARGEST_AXIS + 1, 1, 1), 3, np.uint8), 1.0)
    with pytest.raises(ValueError, match="too long; crop or bin it"):
        prepare_volume(labels, MU)


def test_cells_are_never_more_than_the_march_can_number(sample_labels, directions, monkeypatch):
    fine = prepare_volume(sample_labels, MU)
    monkeypatch.setattr(attenuating_volume, "MOST_CELLS", fine.grid.size // 20)
    coarse = prepare_volume(sample_labels, MU)
    assert coarse.grid[1:-1, 1:-1, 1:-1].size <= fine.grid.size // 20
    assert np.all(coarse.binning > fine.binning)
    points = crystal_points(sample_labels)
    marched = -np.log(ray_tracing.march_transmission(coarse, points, directions))
    off = marched - exact_optical_depth(coarse, points, directions)
    assert (
        np.sqrt(np.mean(off**2)) < (coarse.step_um + np.linalg.norm(coarse.cell_um)) * MU.max() / 4
    )


def test_threads():
    assert ray_tracing.use_threads(1) == 1
    assert ray_tracing.use_threads(None) >= 1
    assert ray_tracing.use_threads(10**6) == ray_tracing.use_threads(None)
    with pytest.raises(ValueError, match="nproc is 0; it must be at least 1"):
        ray_tracing.use_threads(0)


# ---- the GPU's kernels, compiled for the CPU ----------------------------------------------------------

SHIM = """
#include <math.h>
#define __global__
#define __device__
static struct { long long x; } blockIdx, blockDim, threadIdx;
"""
# as a launch of blocks of four threads does, the last block reaching beyond the last value
LAUNCHES = """
#define LAUNCH(n, call) \\
    blockDim.x = 4; \\
    for (blockIdx.x = 0; blockIdx.x < (n + 3) / 4; ++blockIdx.x) \\
        for (threadIdx.x = 0; threadIdx.x < 4; ++threadIdx.x) call
extern "C" void launch_march(
    const unsigned char *grid, const i64 *counts, const double *points, const double *gradients,
    double step, double tau_per_count, i64 nx, i64 ny, i64 nz, i64 n_points, i64 n_rays,
    float *transmission)
{
    LAUNCH(n_rays, march(grid, counts, points, gradients, step, tau_per_count, nx, ny, nz, n_points,
                         n_rays, transmission));
}
extern "C" void launch_exact(
    const unsigned char *labels, const i64 *shape, const i64 *lower, const i64 *upper,
    const double *points, const double *to_source, const double *exits, const double *mu,
    i64 n_points, i64 n_values, double *values)
{
    LAUNCH(n_values, exact(labels, shape, lower, upper, points, to_source, exits, mu, n_points,
                           n_values, values));
}
"""


def kernel_source():
    """The GPU's kernels as a C++ translation unit."""
    return SHIM + ray_tracing_cuda.source() + LAUNCHES


def arguments(*values):
    """Arrays by address, whole numbers as long long, others as double."""
    return [
        v.ctypes.data_as(ctypes.c_void_p) if isinstance(v, np.ndarray)
        else ctypes.c_longlong(v) if isinstance(v, (int, np.integer))
        else ctypes.c_double(v)
        for v in values
    ]  # fmt: skip


def check_kernels(library, labels, directions):
    """The compiled kernels give what the CPU's functions give."""
    points = np.ascontiguousarray(crystal_points(labels, 202))
    for mu in (0.05 * MU, MU):
        volume = prepare_volume(labels, mu)
        marched = np.full((len(directions), len(points)), -1, dtype=np.float32)
        library.launch_march(
            *arguments(
                volume.grid, volume.grid_counts, volume.grid_coordinates(points),
                directions / volume.cell_um, volume.step_um,
                volume.grid_unit_per_um * volume.step_um, *volume.grid.shape, len(points),
                marched.size, marched,
            )
        )  # fmt: skip
        np.testing.assert_allclose(
            marched, march_transmission(volume, points, directions), rtol=2e-6
        )
        values = np.full((7, len(points)), -1.0)
        library.launch_exact(
            *arguments(
                volume.labels, np.array(labels.shape), volume.lower, volume.upper, points + 0.5,
                directions[:7] / labels.voxel_size_um, directions[7:14] / labels.voxel_size_um,
                volume.mu_per_um, len(points), values.size, values,
            )
        )  # fmt: skip
        depths = exact_optical_depth(volume, points, directions)
        np.testing.assert_allclose(values, np.exp(-depths[:7] - depths[7:14]), rtol=1e-12)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The GPU's kernels, compiled for the CPU."""
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("There is no C++ compiler (g++) to check the GPU's kernels with.")
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cpp").write_text(kernel_source())
    command = [compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]
    subprocess.run([*command, folder / "kernels.so", folder / "kernels.cpp"], check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


def test_the_kernels_compiled_for_the_cpu(kernels, sample_labels, directions):
    check_kernels(kernels, sample_labels, directions)


@pytest.fixture
def cupy_stand_in(kernels, monkeypatch):
    """numpy in CuPy's place, and the kernels compiled for the CPU in place of the GPU's."""

    class RawModule:
        def __init__(self, code):
            assert code == ray_tracing_cuda.source()

        def get_function(self, name):
            def launch(blocks, threads, values):
                assert blocks[0] * threads[0] >= values[-1].size  # every value has its thread
                getattr(kernels, f"launch_{name}")(*arguments(*values))

            return launch

    cupy = types.ModuleType("cupy")
    for name in ("asarray", "empty", "zeros", "maximum", "sqrt"):
        setattr(cupy, name, getattr(np, name))
    cupy.asnumpy = np.array
    cupy.RawModule = RawModule
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    ray_tracing_cuda._kernel.cache_clear()
    yield
    ray_tracing_cuda._kernel.cache_clear()


def test_the_gpu_engine_on_its_stand_in(cupy_stand_in, sample_labels, directions, monkeypatch):
    """What the engine hands to the kernels, and what it makes of their values."""
    cpu, gpu = CpuEngine(), ray_tracing_cuda.CudaEngine()
    points = crystal_points(sample_labels, 202)
    weights = np.random.default_rng(4).random((7, 202))
    monkeypatch.setattr(ray_tracing_cuda, "EXACT_BYTES", 3 * 8 * 202)  # three reflections at a time
    for mu in (0.05 * MU, MU):
        volume = prepare_volume(sample_labels, mu)
        np.testing.assert_allclose(
            gpu.to_numpy(gpu.march_transmission(volume, points, directions)),
            cpu.march_transmission(volume, points, directions),
            rtol=2e-6,
        )
        for w in (None, weights[0], weights):
            sides = (directions[:7], directions[7:14])
            mean, error = gpu.exact_transmission(volume, points, *sides, w)
            expected, expected_error = cpu.exact_transmission(volume, points, *sides, w)
            np.testing.assert_allclose(mean, expected, rtol=1e-12)
            np.testing.assert_allclose(error, expected_error, rtol=1e-9)


def test_without_cupy_the_reason_is_one_sentence():
    reason = ray_tracing_cuda.why_unavailable()
    if reason is None:
        pytest.skip("There is a GPU: nothing to explain.")
    assert "\n" not in reason
    with pytest.raises(ValueError, match=r"device=cuda needs CuPy .* Use device=cpu"):
        select_engine("cuda")
    assert isinstance(select_engine("auto"), CpuEngine)
