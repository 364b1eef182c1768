"""The preview of a large volume: means and middles of blocks, and what a change makes of it."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from anacor_dials.sample import previews


@pytest.mark.parametrize(("shape", "block"), [((13, 20, 11), 3), ((16, 12, 10), 2)])
def test_changes_bring_it_where_it_would_be_if_it_were_written_anew(
    tmp_path, monkeypatch, shape, block
):
    """Boxes anywhere, of any size, also where no block's middle lies, or beyond the last whole block."""
    monkeypatch.setattr(previews, "block_of", lambda shape: block)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, shape).astype(np.uint8)
    with h5py.File(tmp_path / "tomo.h5", "w") as file:
        previews.write_preview(file, rng.random(shape), labels)
        for _ in range(60):
            ends = np.sort([rng.choice(n + 1, 2, replace=False) for n in shape], axis=1)
            box = tuple(slice(int(first), int(last)) for first, last in ends)
            labels[box] = rng.integers(0, 4, labels[box].shape)
            previews.renew_labels(file, labels, box)
            whole = tuple(n // block for n in shape)
            expected = [block // 2 + block * np.arange(n) for n in whole]
            np.testing.assert_array_equal(file["preview/labels"][()], labels[np.ix_(*expected)])


def test_values_are_means_of_whole_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(previews, "block_of", lambda shape: 2)
    values = np.random.default_rng(1).random((5, 6, 7))
    with h5py.File(tmp_path / "tomo.h5", "w") as file:
        previews.write_preview(file, values, np.zeros(values.shape, np.uint8))
        found = file["preview/values"][()]
    assert found.shape == (2, 3, 3)
    assert found[1, 2, 0] == pytest.approx(values[2:4, 4:6, :2].mean())
