"""Where the signal of scaled data ends."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

from cctbx import crystal, miller
from cctbx.array_family import flex

from anacor_dials.diffraction.resolution_limit import limit_of_signal


def observed(d_min: float, signal_to: float) -> miller.array:
    """Four observations of each reflection to d_min, with an error of 10 where the mean is 100.

    Intensities are those of Wilson's statistics to signal_to, and nothing beyond.
    """
    rng = np.random.default_rng(3)
    symmetry = crystal.symmetry((57.8, 57.8, 150.2, 90, 90, 90), "P41212")
    unique = symmetry.build_miller_set(anomalous_flag=False, d_min=d_min)
    true = rng.exponential(100.0, unique.size())
    true[unique.d_spacings().data().as_numpy_array() < signal_to] = 0.0
    indices = unique.indices().concatenate(unique.indices())
    indices = indices.concatenate(indices)
    data = np.tile(true, 4) + 10.0 * rng.standard_normal(4 * true.size)
    array = miller.array(
        miller.set(symmetry, indices, anomalous_flag=False),
        data=flex.double(data),
        sigmas=flex.double(data.size, 10.0),
    )
    return array.set_observation_type_xray_intensity().set_info(miller.array_info(source="test"))


@pytest.mark.parametrize("signal_to", [3.6, 4.2])
def test_the_limit_is_where_the_signal_ends(signal_to: float):
    assert limit_of_signal(observed(3.0, signal_to)) == pytest.approx(signal_to, rel=0.02)


def test_data_that_are_good_to_their_end_have_no_limit():
    assert limit_of_signal(observed(3.6, 0.0)) is None


def test_data_too_few_for_a_limit():
    few = observed(3.6, 4.2)
    assert limit_of_signal(few.select(few.d_spacings().data() > 20).set_info(few.info())) is None
