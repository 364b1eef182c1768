"""napari: the manifest names functions that there are, and layers go there and back."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import anacor_dials
from anacor_dials.sample.hand_made import read_hand_made
from anacor_dials.sample.napari_layers import read_layers, reader_of, write_layers
from anacor_dials.sample.tomogram_files import read_sample_file, write_sample_file
from anacor_dials.sample.volumes import Tomogram

MANIFEST = Path(anacor_dials.__file__).parent / "napari.yaml"


@pytest.fixture
def path(tmp_path, sample_labels):
    size, centre = sample_labels.voxel_size_um, sample_labels.centre
    values = np.random.default_rng(0).standard_normal(sample_labels.shape)
    path = tmp_path / "tomo.h5"
    write_sample_file(path, Tomogram(values, size, centre), sample_labels, [0, 1, 2, 3], 3.5)
    return path


def test_layers_lie_in_the_tomo_frame(path, sample_labels):
    (image, about, kind), (labels, also, labels_kind) = reader_of(str(path))(str(path))
    assert (kind, labels_kind) == ("image", "labels")
    assert about["scale"] == also["scale"] == [2.0, 1.5, 1.0]
    # where napari shows a voxel is where the program says that it is
    voxel = np.array([3, 4, 5])
    shown = voxel * np.array(also["scale"]) + np.array(also["translate"])
    np.testing.assert_allclose(shown, sample_labels.position_um(voxel))
    np.testing.assert_array_equal(labels, sample_labels.values)
    assert image.dtype == np.float32


def test_layers_come_back(path, tmp_path, sample_labels):
    layers = read_layers([str(path)])
    new = tmp_path / "new.h5"
    layers[1][0][3, 4, 5:7] = 2
    assert write_layers(str(new), layers) == [str(new)]
    before, after = read_sample_file(path), read_sample_file(new)
    np.testing.assert_array_equal(after.tomogram.values, before.tomogram.values)
    np.testing.assert_allclose(after.labels.centre, before.labels.centre)
    np.testing.assert_allclose(after.labels.voxel_size_um, [2.0, 1.5, 1.0])
    np.testing.assert_array_equal(after.mu_per_um, before.mu_per_um)
    assert after.energy_keV == 3.5
    # what was changed is by hand
    made = np.argwhere(read_hand_made(new).by_hand)
    changed = np.argwhere(before.labels.values != after.labels.values)
    np.testing.assert_array_equal(made, changed)
    assert len(changed)


def test_layers_that_cannot_be_written(path, tmp_path):
    image, labels = read_layers(str(path))
    with pytest.raises(ValueError, match="exists"):
        write_layers(str(path), [image, labels])
    new = str(tmp_path / "new.h5")
    with pytest.raises(ValueError, match="no layer of labels"):
        write_layers(new, [image])
    labels[0][0, 0, 0] = 9
    with pytest.raises(ValueError, match="labels from 0 to 9"):
        write_layers(new, [labels])
    with pytest.raises(ValueError, match="three"):
        write_layers(new, [(labels[0][0], labels[1], "labels")])
    assert not Path(new).exists()


def test_other_files_are_left_to_others(tmp_path):
    (tmp_path / "a.h5").write_text("no HDF5")
    assert reader_of(str(tmp_path / "a.h5")) is None
    assert reader_of([str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]) is None


def test_the_manifest():
    """By npe2 itself: the manifest is valid, the reader is found by its pattern, and its functions exist."""
    npe2 = pytest.importorskip("npe2", reason="npe2 is not installed")
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    for command in manifest.contributions.commands:
        module, _, function = command.python_name.partition(":")
        assert callable(getattr(import_module(module), function))


def test_npe2_reads_and_writes(path, tmp_path):
    npe2 = pytest.importorskip("npe2", reason="npe2 is not installed")
    manager = npe2.PluginManager.instance()
    if "anacor_dials" not in manager:
        manager.register(npe2.PluginManifest.from_file(MANIFEST))
    layers = npe2.read([str(path)], stack=False, plugin_name="anacor_dials")
    assert [kind for _, _, kind in layers] == ["image", "labels"]
    new = str(tmp_path / "new.h5")
    assert npe2.write(new, layers, plugin_name="anacor_dials") == [new]
    assert read_sample_file(new).labels is not None
