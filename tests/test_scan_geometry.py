"""The geometry of a scan: pixels, image axes and the limits of what can be one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anacor_dials.sample.frames import ImageAxes
from anacor_dials.sample.scan_geometry import UPRIGHT, ScanGeometry


def test_upright_images_have_the_same_pixels():
    """A camera whose columns run along -X: fast pixels of 2 um are pixels along X."""
    camera = ScanGeometry(ImageAxes.from_vectors((-1, 0, 0), (0, 1, 0)), (2.0, 3.0), 3.5, 20.0)
    assert camera.pixel_xy_um == (2.0, 3.0)
    upright = camera.upright()
    assert upright == ScanGeometry(UPRIGHT, (3.0, 2.0), 3.5, 20.0)
    assert upright.pixel_xy_um == camera.pixel_xy_um
    assert upright.upright() == upright
    assert ScanGeometry().upright() == ScanGeometry()


@pytest.mark.parametrize("fast", [(0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_places_follow_their_pixels(fast, sign):
    """A bright pixel of the raw image is the bright pixel of its upright view."""
    slow = (sign, 0, 0) if fast[0] == 0 else (0, sign, 0)
    axes = ImageAxes.from_vectors(fast, slow)
    raw = np.zeros((5, 8))
    row, column = 1, 6
    raw[row, column] = 1
    upright = axes.upright(raw)
    ((x, y),) = np.argwhere(upright)
    across_along = (row, column) if axes.transposed else (column, row)
    assert axes.upright_centre(across_along, upright.shape) == (y, x)
    assert axes.upright_centre((y, x), upright.shape) == across_along


def test_the_width_of_the_first_fringe():
    """sqrt(lambda z): at 12.398 keV (1 A) and 10 mm it is 1 um."""
    assert ScanGeometry(energy_keV=12.398419843, distance_mm=10.0).fresnel_zone_um == pytest.approx(
        1.0
    )
    assert ScanGeometry(energy_keV=3.5).fresnel_zone_um is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_size_um": (0.0, 1.0)}, "The pixel size is 0 x 1 um"),
        ({"pixel_size_um": (1.0, math.nan)}, "The pixel size is 1 x nan um"),
        ({"energy_keV": 3500.0}, "The photon energy is 3500 keV"),
        ({"distance_mm": -1.0}, "The distance from sample to detector is -1 mm"),
    ],
)
def test_what_is_no_scan(change, message):
    with pytest.raises(ValueError, match=message):
        ScanGeometry(**change)
