"""How much of the border between crystal and liquor shows: of a box whose border is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from anacor_dials.sample.volumes import DEFAULT_NAMES
from anacor_dials.segmentation.edges import surface_of
from anacor_dials.segmentation.unseen_borders import border_seen

N, HALF = 80, np.array([16, 13, 18])


def drop(contrast, fringes, noise, crystal=True):
    """(normalised values, labels) of a box of crystal in a ball of liquor."""
    x = np.indices((N, N, N)) - (N - 1) / 2
    labels = np.zeros((N, N, N), dtype=np.uint8)
    labels[(x**2).sum(axis=0) < 36**2] = 1
    labels[np.all(np.abs(x) < HALF[:, None, None, None], axis=0)] = 3
    seen = labels if crystal else np.minimum(labels, 1)
    values = scipy.ndimage.gaussian_filter(np.array([0, 1, 1, 1 + contrast])[seen], 0.8)
    density = scipy.ndimage.gaussian_filter(np.array([0, 1, 1, 1.1])[seen], 0.8)
    values = values - fringes * scipy.ndimage.laplace(density)
    values += noise * np.random.default_rng(1).standard_normal(values.shape)
    return values.astype(np.float32), labels


def certain(labels):
    return np.stack([255 * (labels == k) for k in range(4)]).astype(np.uint8)


@pytest.mark.parametrize(("contrast", "fringes"), [(0.3, 0.0), (-0.3, 0.0), (0.0, 4.0), (0.1, 4.0)])
def test_the_border_of_right_labels_shows(contrast, fringes):
    values, labels = drop(contrast, fringes, 0.1)
    found = border_seen(values, certain(labels), DEFAULT_NAMES)
    assert found.unseen == pytest.approx(0, abs=0.01)
    assert 0 < found.noise < 0.15


@pytest.mark.parametrize("fringes", [0.0, 4.0])
def test_where_a_crystal_is_cut_off_nothing_shows(fringes):
    """Its last third is labelled as liquor: the new face does not show, as large as it is in the border."""
    values, labels = drop(0.3, fringes, 0.1)
    short = labels.copy()
    end = (N - 1) // 2 + 8
    short[end:][short[end:] == 3] = 1
    found = border_seen(values, certain(short), DEFAULT_NAMES)
    width = [np.count_nonzero((short == 3).any(axis=tuple(k for k in range(3) if k != a))) for a in range(3)]  # fmt: skip
    face = width[1] * width[2]
    whole = 2 * (face + width[0] * (width[1] + width[2]))
    # its rim is near to edges that do show
    assert 0.5 * face / whole < found.unseen < 1.1 * face / whole
    middle = np.array([end - 0.5, (N - 1) / 2, (N - 1) / 2])
    assert abs(found.voxels[0][0] - middle[0]) <= 1
    assert np.abs(found.voxels[0] - middle).max() <= 8


def test_each_part_that_does_not_show_has_a_voxel():
    """Both ends are labelled as liquor, one of them with a third of the section."""
    values, labels = drop(0.3, 4.0, 0.1)
    short, half = labels.copy(), (N - 1) // 2
    short[half + 9 :][short[half + 9 :] == 3] = 1
    short[: half - 8, :, : half - 4][short[: half - 8, :, : half - 4] == 3] = 1
    found = border_seen(values, certain(short), DEFAULT_NAMES)
    whole, part = found.voxels[:2]
    assert abs(whole[0] - (half + 8.5)) <= 1
    assert part[0] <= half
    assert part[2] <= half
    finer = found.at_full_size((2, 2, 3))
    assert finer.voxels[0] == (2 * whole[0] + 1, 2 * whole[1] + 1, 3 * whole[2] + 1)
    assert finer.unseen == found.unseen


def test_the_averages_are_those_of_the_surface():
    _, labels = drop(0.3, 0.0, 0.1)
    surface = surface_of(certain(labels), 3)
    rng = np.random.default_rng(4)
    of = rng.normal(size=(len(surface.points), 1)).astype(np.float32)
    weights = rng.random(len(of)).astype(np.float32)
    total, norm = surface.mean(of, weights)
    averaging = surface.averaging()
    np.testing.assert_allclose(averaging @ weights, norm, rtol=1e-5)
    np.testing.assert_allclose(averaging @ (weights * of[:, 0]), total[:, 0], rtol=1e-4, atol=1e-5)


def test_nothing_is_said_without_a_border_or_with_much_noise():
    values, labels = drop(0.3, 0.0, 0.1)
    dry = np.where(labels == 1, 0, labels)
    assert border_seen(np.where(labels == 1, 0, values), certain(dry), DEFAULT_NAMES) is None
    assert border_seen(values, certain(np.minimum(labels, 1)), DEFAULT_NAMES) is None
    assert border_seen(*[f(drop(0.02, 0.0, 0.3)[k]) for k, f in ((0, np.asarray), (1, certain))], DEFAULT_NAMES) is None  # fmt: skip
    other = ("background", "oil", "loop", "crystal")
    assert border_seen(values, certain(labels), other) is None


def test_the_warning_names_a_voxel_of_the_tomogram():
    """Whose voxels are half as long as those that are labelled."""
    pytest.importorskip("torch", reason="torch is not installed")
    from anacor_dials.sample.volumes import Tomogram
    from anacor_dials.segmentation.inference import segment
    from anacor_dials.segmentation.network import NetworkSettings, SliceNetwork

    class Nothing(SliceNetwork):
        """A stand-in whose labels are replaced."""

        def forward(self, slices, context=None):
            return slices[:, :1].repeat(1, 4, 1, 1)

    values, labels = drop(0.3, 0.0, 0.1)
    end = (N - 1) // 2 + 8
    labels[end:][labels[end:] == 3] = 1
    tomogram = Tomogram(0.012 * np.kron(values, np.ones((2, 2, 2), dtype=np.float32)), 0.5)
    network = Nothing(NetworkSettings("unet", n_slices=1, context=False))
    found = segment(tomogram, network, refine=lambda seen, before: certain(labels))
    assert found.factors == (2, 2, 2)
    (said,) = [text for text in found.warnings if "do not show" in text]
    voxel = [int(n) for n in said.split("around voxel ")[1].split(" (")[0].split(", ")]
    middle = 2 * np.array([end - 0.5, (N - 1) / 2, (N - 1) / 2]) + 0.5
    assert abs(voxel[0] - middle[0]) <= 2
    assert np.abs(voxel - middle).max() <= 16


def test_noise_alone_is_no_border():
    """Labels of a crystal where there is none."""
    values, labels = drop(0.3, 4.0, 0.1, crystal=False)
    found = border_seen(values, certain(labels), DEFAULT_NAMES)
    assert found is None or found.unseen > 0.5
