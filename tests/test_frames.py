"""Frames against rotations from scipy, hand-worked examples and dxtbx' own goniometer models."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from anacor_dials.sample import frames
from anacor_dials.sample.frames import ImageAxes

X, Y, Z = np.eye(3)


def turned(axis, angle_deg):
    """scipy's matrix of a right-handed rotation."""
    axis = np.asarray(axis) / np.linalg.norm(axis)
    return Rotation.from_rotvec(np.deg2rad(angle_deg) * axis).as_matrix()


# ---- vectors and rotations ------------------------------------------------------------------------


def test_unit_normalises_each_vector():
    np.testing.assert_allclose(
        frames.unit([[3, 0, 4], [0, -2, 0]]), [[0.6, 0, 0.8], [0, -1, 0]], atol=1e-15
    )


def test_unit_refuses_a_vector_without_direction():
    with pytest.raises(ValueError, match="length zero"):
        frames.unit([[1, 0, 0], [0, 0, 0]])


def test_rotations_are_right_handed():
    np.testing.assert_allclose(frames.rotation_about(Z, 90) @ X, Y, atol=1e-15)
    np.testing.assert_allclose(frames.rotation_about(X, 90) @ Y, Z, atol=1e-15)
    np.testing.assert_allclose(frames.scan_rotation(90) @ Y, Z, atol=1e-15)


def test_rotation_about_any_axis_is_scipys():
    rng = np.random.default_rng(1)
    for axis in rng.standard_normal((5, 3)):
        angles = rng.uniform(-400, 400, size=(2, 3))
        matrices = frames.rotation_about(axis, angles)
        assert matrices.shape == (2, 3, 3, 3)
        for index in np.ndindex(2, 3):
            np.testing.assert_allclose(matrices[index], turned(axis, angles[index]), atol=1e-14)


def test_the_source_seen_from_the_turning_sample():
    # R_x(90) takes +Y to +Z, so at 90 deg the source is seen from the sample's +Y
    np.testing.assert_allclose(frames.source_directions(90), Y, atol=1e-15)
    angles = np.linspace(-200, 400, 13)
    sources = frames.source_directions(angles)
    assert sources.shape == (13, 3)
    for angle, source in zip(angles, sources, strict=True):
        np.testing.assert_allclose(turned(X, angle) @ source, Z, atol=1e-14)


def test_transform_by_one_matrix_and_by_one_each():
    rng = np.random.default_rng(2)
    vectors, matrices = rng.standard_normal((4, 3)), rng.standard_normal((4, 3, 3))
    np.testing.assert_allclose(
        frames.transform(matrices[0], vectors), [matrices[0] @ v for v in vectors]
    )
    np.testing.assert_allclose(
        frames.transform(matrices, vectors),
        [m @ v for m, v in zip(matrices, vectors, strict=True)],
    )


# ---- the tomo frame in the laboratory -------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "s0", "y", "z"),
    [
        # DIALS' default: axis +X, source along +Z; tomo and laboratory coincide
        (X, -Z, Y, Z),
        # a vertical axis in a beam along +Z (Z x X convention worked by hand)
        (Y, Z, X, -Z),
        # an inverted axis in the default beam
        (-X, -Z, -Y, Z),
    ],
)
def test_tomo_axes_worked_by_hand(axis, s0, y, z):
    np.testing.assert_allclose(
        frames.tomo_axes_in_lab(axis, s0), np.column_stack([axis, y, z]), atol=1e-15
    )


def test_tomo_axes_with_a_slanting_beam_of_any_length():
    # 10 deg off perpendicular: only the part of the beam across the axis counts
    s0 = 0.3 * turned(Y, 10) @ -Z
    np.testing.assert_allclose(frames.tomo_axes_in_lab(2 * X, s0), np.eye(3), atol=1e-15)


def test_tomo_axes_are_right_handed_and_orthonormal():
    rng = np.random.default_rng(3)
    for axis, s0 in rng.standard_normal((6, 2, 3)):
        for sense in (1, -1):
            m = frames.tomo_axes_in_lab(axis, s0, sense)
            np.testing.assert_allclose(m.T @ m, np.eye(3), atol=1e-14)
            assert np.linalg.det(m) == pytest.approx(1)
            np.testing.assert_allclose(m[:, 0], sense * axis / np.linalg.norm(axis))
            assert m[:, 2] @ s0 < 0  # Z looks to the source


def test_a_scan_that_runs_backwards_reverses_x_and_y_only():
    forwards = frames.tomo_axes_in_lab(X, (0.1, 0.2, -1), 1)
    backwards = frames.tomo_axes_in_lab(X, (0.1, 0.2, -1), -1)
    np.testing.assert_allclose(backwards, forwards * [-1, -1, 1])


def test_a_beam_along_the_axis_is_refused():
    with pytest.raises(ValueError, match="beam runs along the rotation axis"):
        frames.tomo_axes_in_lab(X, (5, 0, 0))


def test_a_rotation_sense_other_than_one_is_refused():
    with pytest.raises(ValueError, match="rotation sense is 2; it must be 1 or -1"):
        frames.tomo_axes_in_lab(X, Z, 2)


def check_that_both_descriptions_agree(rotation_at, axis_lab, s0):
    """The point r_tomo of the sample must be at the same place in the laboratory by both routes.

    rotation_at(phi): the goniometer's matrix S R'(phi) F. With sense +1 the tomography turns with the
    goniometer, with -1 against it.
    """
    points = np.random.default_rng(4).standard_normal((5, 3))
    for sense, phi0 in itertools.product((1, -1), (0.0, 37.5)):
        m = frames.tomo_axes_in_lab(axis_lab, s0, sense)
        datum = frames.datum_from_tomo(rotation_at(phi0), m)
        for phi in (0.0, 37.5, 110.0, -75.0):
            by_goniometer = rotation_at(phi) @ datum @ points.T
            by_tomography = m @ turned(X, sense * (phi - phi0)) @ points.T
            np.testing.assert_allclose(by_goniometer, by_tomography, atol=1e-12)


def test_goniometer_and_tomography_move_the_sample_alike():
    rng = np.random.default_rng(5)
    setting, fixed = Rotation.random(2, rng=rng).as_matrix()
    axis_datum = frames.unit(rng.standard_normal(3))
    check_that_both_descriptions_agree(
        lambda phi: setting @ turned(axis_datum, phi) @ fixed,
        setting @ axis_datum,
        (0.05, -0.02, -1),
    )


def test_dxtbx_goniometer_with_fixed_and_setting_rotations():
    matrix = pytest.importorskip("scitbx.matrix")
    model = pytest.importorskip("dxtbx.model")
    rng = np.random.default_rng(6)
    setting, fixed = Rotation.random(2, rng=rng).as_matrix()
    axis = frames.unit((1.0, 0.2, -0.1))
    goniometer = model.Goniometer(tuple(axis), tuple(fixed.ravel()), tuple(setting.ravel()))
    lab_axis = np.array(goniometer.get_rotation_axis())
    np.testing.assert_allclose(lab_axis, setting @ axis, atol=1e-12)

    def rotation_at(phi):
        spin = matrix.col(
            goniometer.get_rotation_axis_datum()
        ).axis_and_angle_as_r3_rotation_matrix(phi, deg=True)
        s, f = (
            matrix.sqr(goniometer.get_setting_rotation()),
            matrix.sqr(goniometer.get_fixed_rotation()),
        )
        return np.array(s * spin * f).reshape(3, 3)

    for phi in (0.0, 33.0, -120.0):
        np.testing.assert_allclose(
            setting @ frames.rotation_about(axis, phi) @ fixed, rotation_at(phi), atol=1e-12
        )
    check_that_both_descriptions_agree(rotation_at, lab_axis, (0.0, 0.0, -1.0))


@pytest.mark.parametrize("scan_axis", ["omega", "phi"])
def test_dxtbx_kappa_goniometer(scan_axis):
    # phi sits on kappa, kappa on omega: R_omega R_kappa R_phi, whichever of them is scanned
    factory = pytest.importorskip("dxtbx.model.goniometer").GoniometerFactory
    angles = {"phi": 12.0, "kappa": 40.0, "omega": -25.0}
    goniometer = factory.make_kappa_goniometer(
        50.0, angles["omega"], angles["kappa"], angles["phi"], "-y", scan_axis
    )
    names = [str(name) for name in goniometer.get_names()]
    axes = {
        name.lower().removeprefix("gon_"): np.array(axis)
        for name, axis in zip(names, goniometer.get_axes(), strict=True)
    }
    assert set(axes) == set(angles)

    def by_the_axes(scan_angle):
        total = np.eye(3)
        for name in ("phi", "kappa", "omega"):
            angle = scan_angle if name == scan_axis else angles[name]
            total = turned(axes[name], angle) @ total
        return total

    setting = np.array(goniometer.get_setting_rotation()).reshape(3, 3)
    fixed = np.array(goniometer.get_fixed_rotation()).reshape(3, 3)
    axis_datum = np.array(goniometer.get_rotation_axis_datum())

    def rotation_at(phi):
        return setting @ frames.rotation_about(axis_datum, phi) @ fixed

    for phi in (0.0, 12.0, 200.0):
        np.testing.assert_allclose(rotation_at(phi), by_the_axes(phi), atol=1e-9)
    check_that_both_descriptions_agree(
        by_the_axes, np.array(goniometer.get_rotation_axis()), (0.0, 0.0, -1.0)
    )


# ---- axis maps --------------------------------------------------------------------------------------

ALL_MAPS = [
    ",".join(sign + name for sign, name in zip(signs, names, strict=True))
    for names in itertools.permutations("xyz")
    for signs in itertools.product(("", "-"), repeat=3)
]


def test_parse_axis_map():
    assert frames.parse_axis_map("z,-y,x") == [(2, 1), (1, -1), (0, 1)]
    assert frames.parse_axis_map(" +X, Y ,-Z ") == [(0, 1), (1, 1), (2, -1)]


@pytest.mark.parametrize("text", ["", "x,y", "x,y,y", "x,y,w", "x,y,z,x", "xyz", "x,,z", "1,2,3"])
def test_an_axis_map_that_does_not_name_each_axis_once_is_refused(text):
    with pytest.raises(ValueError, match="must name x, y and z once each"):
        frames.parse_axis_map(text)


@pytest.mark.parametrize("text", ALL_MAPS)
def test_axis_maps_bring_each_voxel_to_its_place(text):
    # fill the foreign array voxel by voxel, from what the map says of its index axes
    shape = {"x": 2, "y": 3, "z": 4}
    wanted = np.arange(24).reshape(2, 3, 4)
    items = text.split(",")
    foreign = np.empty([shape[item[-1]] for item in items], dtype=int)
    for place in np.ndindex(2, 3, 4):
        by_name = dict(zip("xyz", place, strict=True))
        index = []
        for item in items:
            i = by_name[item[-1]]
            index.append(shape[item[-1]] - 1 - i if item.startswith("-") else i)
        foreign[tuple(index)] = wanted[place]
    np.testing.assert_array_equal(frames.to_tomo_axes(foreign, text), wanted)


def test_half_of_all_axis_maps_are_mirror_images():
    determinants = {text: frames.axis_map_determinant(text) for text in ALL_MAPS}
    assert sorted(determinants.values()) == [-1] * 24 + [1] * 24
    assert determinants["x,y,z"] == 1
    assert determinants["y,z,x"] == 1
    assert determinants["z,-y,x"] == 1
    assert determinants["z,y,x"] == -1
    assert determinants["-x,y,z"] == -1


# ---- image axes -------------------------------------------------------------------------------------

CAMERAS = [
    (fast, slow)
    for fast, slow in itertools.permutations([X, -X, Y, -Y], 2)
    if abs(fast @ slow) < 0.5
]


@pytest.mark.parametrize(("fast", "slow"), CAMERAS)
def test_upright_images_grow_along_x_and_y(fast, slow):
    axes = ImageAxes.from_vectors(1.5 * fast, slow)
    rows, columns = np.indices((4, 6))
    place = rows[..., None] * slow + columns[..., None] * fast  # of each pixel, from vectors alone
    images = np.moveaxis(place, -1, 0)
    upright = axes.upright(images)
    assert upright.shape[1:] == axes.upright_shape(4, 6)
    np.testing.assert_array_equal(np.diff(upright[0], axis=0), 1)  # x with the first index
    np.testing.assert_array_equal(np.diff(upright[0], axis=1), 0)
    np.testing.assert_array_equal(np.diff(upright[1], axis=1), 1)  # y with the second
    assert np.shares_memory(upright, images)


@pytest.mark.parametrize(("fast", "slow"), CAMERAS)
def test_raw_windows_and_pixel_numbers_are_those_of_the_upright_image(fast, slow):
    axes = ImageAxes.from_vectors(fast, slow)
    image = np.arange(24).reshape(4, 6)
    upright = axes.upright(image)
    nx, ny = upright.shape
    window = slice(1, 3)
    rows, columns = axes.raw_window(window, nx)
    np.testing.assert_array_equal(axes.upright(image[rows, columns]), upright[window])
    row, column = 1, 4
    x, y = (column, row) if axes.transposed else (row, column)
    ix, iy = axes.upright_index(x, nx, "x"), axes.upright_index(y, ny, "y")
    assert upright[int(ix), int(iy)] == image[row, column]
    assert (axes.upright_index(ix, nx, "x"), axes.upright_index(iy, ny, "y")) == (x, y)


@pytest.mark.parametrize(
    ("fast", "slow"), [(X, X), (X, -X), (X, Z), (Z, Y), (Y + X, X - Y), (Y + 0.1 * Z, X)]
)
def test_image_axes_that_are_not_x_and_y_are_refused(fast, slow):
    with pytest.raises(ValueError, match=r"must be \+-X \(the rotation axis\) and \+-Y"):
        ImageAxes.from_vectors(fast, slow)
