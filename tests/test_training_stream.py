"""The stream: the same sample for a number, wherever it is made; what the network sees of it belongs to its labels."""

from __future__ import annotations

import pickle

import numpy as np

from anacor_dials.jobs.training_stream import StreamedTomograms
from anacor_dials.segmentation.fringes import N_VIEWS
from anacor_dials.segmentation.training_data import VolumePool

STREAM = StreamedTomograms(5, (48, 64))


def test_a_number_gives_a_sample():
    first, again = STREAM(3), pickle.loads(pickle.dumps(STREAM))(3)
    np.testing.assert_array_equal(first.views, again.views)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.record["seed"][:2] == [5, 3]
    assert np.any(STREAM(4).labels.shape != first.labels.shape) or np.any(
        STREAM(4).labels != first.labels
    )


def test_the_network_sees_samples_with_their_labels():
    for number in range(6):
        sample = STREAM(number)
        assert sample.views.shape == (N_VIEWS, *sample.labels.shape)
        assert np.all(np.isfinite(sample.views))
        assert np.count_nonzero(sample.labels == 3) >= 100
        # where there is air, it is darker than the sample, in the smoothest view
        air = sample.labels == 0
        if np.count_nonzero(air) > 5000:
            inside, outside = (float(np.median(sample.views[2][m])) for m in (~air, air))
            assert outside < 0.5 * inside


def test_a_pool_of_it_goes_on_where_it_was():
    """Numbers enter in their order, one every two steps, whether the pool is brought there in one go or in steps."""
    pools = [VolumePool([], STREAM, size=2, every=2.0, workers=0) for _ in range(2)]
    for step in range(5):
        pools[0].advance(step)
    pools[1].advance(4)
    names = [[p.volume.name for p in pool.pooled()] for pool in pools]
    assert names == [["5-2", "5-3"], ["5-2", "5-3"]]
