"""Arrays on the disk: the same values as in memory, little of them in memory, no file left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from anacor_dials.jobs.reconstruct import reconstruct
from anacor_dials.jobs.segment import (
    SegmentationSettings,
    load_source,
    segment_sample,
    write_segmented,
)
from anacor_dials.sample import large_arrays
from anacor_dials.sample.large_arrays import new_array, release
from anacor_dials.sample.tomogram_files import read_sample_file
from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings


@pytest.fixture
def on_disk(monkeypatch, tmp_path):
    """The folder in which all arrays lie."""
    monkeypatch.setattr(large_arrays, "LARGEST_IN_MEMORY", 0)
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def resident_bytes() -> int:
    """The memory of this process, files that are mapped included (proc(5))."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_small_array_is_in_memory_and_a_large_one_on_the_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(large_arrays, "LARGEST_IN_MEMORY", 1000)
    assert new_array((250,), np.float32, "a").base is None
    array = new_array((3, 4, 50), np.float64, "a")
    assert array.base is not None
    values = np.random.default_rng(0).random((3, 4, 50))
    array[...] = values
    release(array[1:])
    release(values)
    np.testing.assert_array_equal(array, values)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="The system is not Linux.")
def test_slabs_that_are_given_back_are_not_in_memory(on_disk):
    slab = np.random.default_rng(0).random((16, 1000, 250), dtype=np.float32)  # 16 MB
    before = resident_bytes()
    array = new_array((10 * len(slab), *slab.shape[1:]), np.float32, "a")
    for first in range(0, len(array), len(slab)):
        array[first : first + len(slab)] = slab
        release(array)
    assert resident_bytes() - before < 2 * slab.nbytes
    total = float(array.sum(dtype=np.float64))
    assert resident_bytes() - before > 9 * slab.nbytes  # read all, and not given back
    release(array)
    assert resident_bytes() - before < 2 * slab.nbytes
    assert total == pytest.approx(10 * slab.sum(dtype=np.float64))
    assert list(on_disk.iterdir()) == []


def test_the_folder_is_one_with_room(on_disk, monkeypatch, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    room = {on_disk: 100, Path("."): 10_000}

    class Usage:
        def __init__(self, path):
            self.free = room[path]

    monkeypatch.setattr(large_arrays.shutil, "disk_usage", Usage)
    assert large_arrays._folder_with_room(50, "a") == on_disk
    assert large_arrays._folder_with_room(5000, "a") == Path(".")
    with pytest.raises(
        ValueError, match=r"A tomogram needs 0\.0 GB on the disk; free are .*TMPDIR"
    ):
        new_array((200, 100), np.float32, "A tomogram")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="The system reserves no room.")
def test_a_disk_that_is_full_is_one_sentence(on_disk, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(large_arrays.os, "posix_fallocate", full)
    with pytest.raises(ValueError, match="A tomogram needs 0.0 GB on the disk.*No space left"):
        new_array((100, 100), np.float32, "A tomogram")


def test_from_scan_to_file_on_the_disk_as_in_memory(
    ellipsoid_scan, network_by_value, on_disk, monkeypatch, tmp_path
):
    scan = ellipsoid_scan.write_nxtomo(tmp_path / "scan.nxs")
    settings = SegmentationSettings(clean_up=False, uncertainty=False)
    found = []
    for limit, name in ((1e9, "memory.h5"), (0, "disk.h5")):
        monkeypatch.setattr(large_arrays, "LARGEST_IN_MEMORY", limit)
        made = reconstruct(scan, settings=ReconstructionSettings(centre=31.5, crop="off"))
        assert (made.tomogram.values.base is None) == (limit > 0)
        sample = segment_sample(made, settings)
        write_segmented(tmp_path / name, sample)
        found.append(read_sample_file(tmp_path / name))
        again = segment_sample(load_source(tmp_path / name), settings)
        np.testing.assert_array_equal(again.labels.values, sample.labels.values)
    memory, disk = found
    assert memory.tomogram is not None
    np.testing.assert_array_equal(memory.tomogram.values, disk.tomogram.values)
    np.testing.assert_array_equal(memory.labels.values, disk.labels.values)
    np.testing.assert_array_equal(memory.mu_per_um, disk.mu_per_um)
    assert list(on_disk.iterdir()) == []
