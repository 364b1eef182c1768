"""The sizes of random fields of errors; what they do to an alignment is in test_alignment.py."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

from anacor_dials.diffraction.alignment.fields import sizes_of_fields


def test_sizes_are_those_of_the_coefficients() -> None:
    """Two kinds of fields with sizes 0.5 and 2, one that is not there, and errors of variance one."""
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((3000, 90))
    kinds = np.repeat([0, 1, 2], 30)
    true = np.array([0.5, 2.0, 0.0])
    values = columns @ (true[kinds] * rng.standard_normal(90)) + rng.standard_normal(3000)
    sizes = sizes_of_fields(columns, kinds, values)
    found = np.array([sizes[kinds == kind][0] for kind in range(3)])
    # of 30 coefficients the standard deviation is known to 13 %
    np.testing.assert_allclose(found[:2], true[:2], rtol=0.3)
    assert found[2] < 0.03
