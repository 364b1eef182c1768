"""Samples by Blender, where it is installed; and what is said where it is not."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from anacor_dials.simulation.blender import blender_executable, blender_sample
from anacor_dials.simulation.meshes import require_no_self_intersection
from anacor_dials.simulation.sample_parameters import random_parameters
from anacor_dials.simulation.samples import build_sample


def test_no_blender() -> None:
    with pytest.raises(ValueError, match="there is no program '/nowhere/blender'; install it"):
        blender_executable("/nowhere/blender")


def test_a_blender_that_fails(tmp_path) -> None:
    pytest.importorskip("procrunner", reason="procrunner is not installed")
    program = tmp_path / "blender"
    program.write_text("#!/bin/sh\necho out of paint >&2\nexit 3\n")
    program.chmod(0o755)
    parameters = random_parameters(np.random.default_rng(1), 40.0, film=False)
    with pytest.raises(ValueError, match=r"exit status 3\): out of paint"):
        blender_sample(parameters, blender=program)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["polyhedron", "cluster"])
def test_blender_makes_closed_samples(shape: str) -> None:
    if shutil.which("blender") is None:
        pytest.skip("Blender is not installed (Debian: apt-get install blender)")
    pytest.importorskip("procrunner", reason="procrunner is not installed")
    parameters = random_parameters(np.random.default_rng(2), 60.0, shape=shape, film=False)
    sample = blender_sample(parameters)
    plan = build_sample(parameters)
    for mesh in sample.meshes:
        require_no_self_intersection(mesh)
    volume = sample.label_volume(2.0)
    assert np.all(volume.counts() > 0)
    for made, planned in zip(sample.of("crystal"), plan.of("crystal"), strict=True):
        # the same crystals, a little smaller for their bevelled edges, and in the same place
        assert 0.9 < made.volume_um3 / planned.volume_um3 <= 1.001
        np.testing.assert_allclose(made.centroid_um, planned.centroid_um, atol=1.0)
    low, high = sample.bounds_um("liquor")
    assert np.all(high - low > 0.6 * np.ptp(plan.bounds_um("liquor"), axis=0))
