"""Files with flipped bits give a result or one sentence, never a traceback, never more than the memory."""

from __future__ import annotations

import logging

import h5py
import numpy as np
import pytest

from anacor_dials.jobs.reconstruct import is_sample_path
from anacor_dials.sample.hdf5_files import open_hdf5
from anacor_dials.sample.tomogram_files import read_sample_file, write_sample_file
from anacor_dials.sample.volumes import Tomogram
from anacor_dials.tomography.projections import read_projections

FLIPS = 150  # of each kind of file
HEAD = 6000  # bytes in which most of what describes the data lies


def flipped(content, seed):
    """The content with one to three bits flipped, half of them where the file describes itself."""
    rng = np.random.default_rng(seed)
    spoilt = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place = rng.integers(len(spoilt) if rng.random() < 0.5 else min(HEAD, len(spoilt)))
        spoilt[place] ^= 1 << rng.integers(8)
    return bytes(spoilt)


def outcomes(path, folder, read):
    """How many of the damaged files were read, and how many refused; anything else is raised."""
    content = path.read_bytes()
    read_well, refused = 0, []
    for seed in range(FLIPS):
        damaged = folder / f"damaged{path.suffix}"
        damaged.write_bytes(flipped(content, seed))
        try:
            read(damaged)
            read_well += 1
        except ValueError as error:
            refused.append(str(error))
    assert not [text for text in refused if "\n" in text.strip()]
    return read_well, len(refused)


def test_bits_flipped_in_tomo_h5(tmp_path, sample_labels):
    path = tmp_path / "tomo.h5"
    tomogram = Tomogram(
        0.01 * sample_labels.values.astype(np.float32),
        sample_labels.voxel_size_um,
        sample_labels.centre,
    )
    write_sample_file(
        path, tomogram, sample_labels, [0, 0.01, 0.02, 0.03], 3.5, projections="scan.nxs"
    )

    def read(damaged):
        assert is_sample_path(damaged) in (True, False)
        contents = read_sample_file(damaged, probabilities=True)
        assert contents.labels is None or contents.labels.values.shape

    read_well, refused = outcomes(path, tmp_path, read)
    assert read_well > 20
    assert refused > 20


def test_bits_flipped_in_scan_nxs(tmp_path, ellipsoid_scan, caplog):
    caplog.set_level(logging.CRITICAL)
    scan = ellipsoid_scan.at(shape=(16, 24), angles_deg=tuple(np.arange(24) * 7.5))
    path = scan.write_nxtomo(tmp_path / "scan.nxs")

    def read(damaged):
        is_sample_path(damaged)
        assert read_projections(damaged).n_angles >= 3

    read_well, refused = outcomes(path, tmp_path, read)
    assert read_well > 20
    assert refused > 10


def test_a_header_that_asks_for_more_than_the_memory(tmp_path):
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("exchange/data", (132, 200000, 200000), np.uint16, chunks=(1, 200, 200))
        file["exchange/theta"] = np.arange(132.0)
        file.create_dataset(
            "exchange/data_white", (1, 200000, 200000), np.uint16, chunks=(1, 200, 200)
        )
    with pytest.raises(ValueError, match=r"An image of 200000 x 200000 pixels needs .* GB"):
        read_projections(path)


def test_an_error_of_the_program_itself_is_not_called_a_damaged_file(tmp_path):
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        file["a"] = np.arange(3)
    with pytest.raises(ValueError, match="damaged"), open_hdf5(path) as file:
        file["b"]
    with pytest.raises(KeyError, match="ours"), open_hdf5(path):
        raise KeyError("ours")
