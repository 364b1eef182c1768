"""What the commands ask for where nothing is said is what the settings are by themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("dials", reason="the commands need dials")

from anacor_dials.absorption.tracing import Tracing
from anacor_dials.command_line import (
    anacor_absorption,
    anacor_compare,
    anacor_reconstruct,
    anacor_segment,
    anacor_simulate,
    xia2_anacor,
)
from anacor_dials.diffraction.reflections import Alignment
from anacor_dials.jobs.coefficients import CoefficientSettings
from anacor_dials.jobs.compare import ComparisonSettings
from anacor_dials.jobs.correct import CorrectionSettings
from anacor_dials.jobs.load_sample import LoadedSample, SampleSettings
from anacor_dials.jobs.pipeline.settings import PipelineSettings
from anacor_dials.jobs.segment import CorrectedLabels, SegmentationSettings
from anacor_dials.phil.settings import (
    reconstruction_settings,
    scan_description,
    segmentation_settings,
    tracing_settings,
)
from anacor_dials.sample.tomogram_files import SampleFile
from anacor_dials.simulation.batch import SampleRecipe
from anacor_dials.simulation.diffraction_settings import DiffractionSettings
from anacor_dials.simulation.scan import ScanSettings
from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings
from anacor_dials.tomography.scan_files import ScanDescription


def test_reconstruction():
    params = anacor_reconstruct.phil_scope.extract()
    assert scan_description(params.projections) == ScanDescription()
    assert reconstruction_settings(params.reconstruction) == ReconstructionSettings()


def test_segmentation():
    params = anacor_segment.phil_scope.extract()
    found = segmentation_settings(params, keep_probabilities=False)
    assert replace(found, progress=False) == SegmentationSettings()
    params.labels.file = "a.npy"
    found = anacor_segment.corrected_labels(params.labels)
    assert replace(found, names=tuple(found.names)) == CorrectedLabels("a.npy")


def test_absorption(sample_labels):
    params = anacor_absorption.phil_scope.extract()
    assert tracing_settings(params) == Tracing()
    sample = anacor_absorption.sample_settings(params)
    stack = replace(sample.stack, names=tuple(sample.stack.names))
    segmentation = replace(sample.segmentation, progress=False)
    assert replace(sample, stack=stack, segmentation=segmentation) == SampleSettings()
    file = SampleFile(Path("none.npy"), None, sample_labels, None, None, None, None)
    loaded = LoadedSample("none.npy", file, sample_labels)
    nothing = anacor_absorption.phil_scope.fetch_diff(anacor_absorption.phil_scope)
    found = anacor_absorption.correction_settings(params, loaded, nothing)
    default = CorrectionSettings()
    assert found.coefficients == default.coefficients == CoefficientSettings()
    assert found.alignment == default.alignment == Alignment()
    assert found.refine == default.refine == ()
    assert list(found.materials) == list(default.materials) == [{}]


def test_comparison():
    params = anacor_compare.phil_scope.extract()
    assert ComparisonSettings(params.d_min, params.merging.n_bins) == ComparisonSettings()


def test_pipeline():
    found = xia2_anacor.settings_from(xia2_anacor.phil_scope.extract(), nproc=1)
    nothing = {"": ()}
    assert found.segmentation_options == found.absorption_options == nothing
    assert replace(found, segmentation_options={}, absorption_options={}) == PipelineSettings()


def test_simulation():
    params = anacor_simulate.phil_scope.extract()
    assert anacor_simulate.sample_recipe(params) == SampleRecipe()
    assert anacor_simulate.scan_settings(params) == ScanSettings()
    found = anacor_simulate.diffraction_settings(params)
    assert replace(found, sweeps=()) == DiffractionSettings()
