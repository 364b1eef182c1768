"""Volumes of other programs come as they were written; damaged files give one sentence."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest

from anacor_dials.sample import foreign_volumes
from anacor_dials.sample.foreign_volumes import (
    decode_rle,
    is_foreign_volume,
    read_foreign_volume,
)
from anacor_dials.sample.label_files import read_label_stack, write_nrrd


def amira(labels, method="", little=True, unit="µm", size=(2.0, 1.5, 1.0)):
    """An Amira file as its manual describes it: x runs fastest, the box from centre to centre."""
    nx, ny, nz = labels.shape
    content = labels.transpose(2, 1, 0).astype(np.uint8).tobytes()
    packed = {"HxByteRLE": runs, "HxZip": zlib.compress, "": bytes}[method](content)
    name = f"({method},{len(packed)})" if method else ""
    box = " ".join(f"0 {s * (n - 1)}" for s, n in zip(size, labels.shape, strict=True))
    head = (
        f"# AmiraMesh BINARY-{'LITTLE' if little else 'BIG'}-ENDIAN 2.1\n\n"
        f"define Lattice {nx} {ny} {nz}\n\n"
        f'Parameters {{\n  BoundingBox {box},\n  Units {{ Coordinates "{unit}" }}\n}}\n\n'
        f"Lattice {{ byte Labels }} @1{name}\n\n# Data section follows\n@1\n"
    )
    return head.encode("latin-1") + packed


def runs(content):
    """HxByteRLE by hand: runs of up to 127, and single bytes as literals."""
    out = bytearray()
    k = 0
    while k < len(content):
        n = 1
        while n < 127 and k + n < len(content) and content[k + n] == content[k]:
            n += 1
        out += bytes([n, content[k]]) if n > 1 else bytes([129, content[k]])
        k += n
    return bytes(out)


def test_run_lengths_after_the_manual():
    assert decode_rle(bytes([3, 7, 0x82, 1, 2, 1, 9]), 6) == bytes([7, 7, 7, 1, 2, 9])
    with pytest.raises(ValueError, match="give 3 bytes and the lattice has 4"):
        decode_rle(bytes([3, 7]), 4)


@pytest.mark.parametrize("method", ["", "HxByteRLE", "HxZip"])
def test_amira_labels(tmp_path, sample_labels, method):
    path = tmp_path / "labels.am"
    path.write_bytes(amira(sample_labels.values, method))
    volume = read_foreign_volume(path)
    np.testing.assert_array_equal(volume.values, sample_labels.values)
    assert volume.voxel_size_um == pytest.approx((2.0, 1.5, 1.0))
    labels = read_label_stack(path, None)
    np.testing.assert_allclose(labels.voxel_size_um, (2.0, 1.5, 1.0))
    np.testing.assert_array_equal(labels.values, sample_labels.values)


def test_mrc_labels_and_their_size(tmp_path, sample_labels):
    """The header is written by hand after the MRC2014 format: nx ny nz mode ... cell lengths in angstrom."""
    pytest.importorskip("mrcfile", reason="mrcfile is not installed")
    values = sample_labels.values.astype(np.int8)  # z, y, x in the file
    nz, ny, nx = values.shape
    header = bytearray(1024)
    struct.pack_into("<10i", header, 0, nx, ny, nz, 0, 0, 0, 0, nx, ny, nz)
    struct.pack_into("<6f", header, 40, nx * 1e4, ny * 1.5e4, nz * 2e4, 90, 90, 90)
    struct.pack_into("<3i", header, 64, 1, 2, 3)
    header[208:212] = b"MAP "
    struct.pack_into("<4B", header, 212, 0x44, 0x44, 0, 0)
    (tmp_path / "labels.mrc").write_bytes(bytes(header) + values.tobytes())
    volume = read_foreign_volume(tmp_path / "labels.mrc")
    np.testing.assert_array_equal(volume.values, values)
    assert volume.voxel_size_um == pytest.approx((2.0, 1.5, 1.0))
    # whatever the axes are called, sizes go with them
    labels = read_label_stack(tmp_path / "labels.mrc", None, axes="z,-y,x")
    np.testing.assert_allclose(labels.voxel_size_um, (1.0, 1.5, 2.0))
    assert labels.shape == values.shape[::-1]


def test_nrrd_labels_and_their_size(tmp_path, sample_labels):
    pytest.importorskip("nrrd", reason="pynrrd is not installed")
    write_nrrd(tmp_path / "labels.nrrd", sample_labels)
    volume = read_foreign_volume(tmp_path / "labels.nrrd")
    np.testing.assert_array_equal(volume.values, sample_labels.values)
    assert volume.voxel_size_um == pytest.approx((2.0, 1.5, 1.0))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_labels_and_their_size(tmp_path, sample_labels, suffix):
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    image = nibabel.Nifti1Image(sample_labels.values, np.diag([0.002, 0.0015, 0.001, 1]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / f"labels{suffix}")
    volume = read_foreign_volume(tmp_path / f"labels{suffix}")
    np.testing.assert_array_equal(volume.values, sample_labels.values)
    assert volume.voxel_size_um == pytest.approx((2.0, 1.5, 1.0))
    labels = read_label_stack(
        tmp_path / f"labels{suffix}", (2.0, 1.5, 1.0), names=("a", "b", "loop", "crystal")
    )
    np.testing.assert_array_equal(labels.values, sample_labels.values)


def write_mrc(path, values):
    mrcfile = pytest.importorskip("mrcfile", reason="mrcfile is not installed")
    with mrcfile.new(path) as file:
        file.set_data(values)


def write_nrrd_of_numbers(path, values):
    pytest.importorskip("nrrd", reason="pynrrd is not installed").write(str(path), values)


def write_nifti_of_numbers(path, values):
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


def write_amira(path, values):
    text = amira(values.astype(np.uint8), "HxByteRLE")
    if values.dtype.kind == "f":
        text = text.replace(b"byte", b"float")
    path.write_bytes(text)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.npy", np.save),
        ("x.mrc", write_mrc),
        ("x.nrrd", write_nrrd_of_numbers),
        ("x.nii.gz", write_nifti_of_numbers),
        ("x.am", write_amira),
    ],
)
@pytest.mark.parametrize("labels", [True, False])
def test_labels_are_told_from_tomograms_by_the_header(tmp_path, monkeypatch, name, write, labels):
    values = np.arange(120).reshape(4, 5, 6) % 4
    write(tmp_path / name, values.astype(np.uint8) if labels else values.astype(np.float32) + 0.5)

    def must_not(*_args):
        raise AssertionError("the volume was read")

    for reader in ("_mrc", "_nrrd", "_nifti", "_amira", "read_foreign_volume"):
        monkeypatch.setattr(foreign_volumes, reader, must_not)
    assert foreign_volumes.holds_whole_numbers(tmp_path / name) is labels


def test_labels_that_nifti_holds_as_floats(tmp_path):
    values = (np.arange(120).reshape(4, 5, 6) % 4).astype(np.float32)
    write_nifti_of_numbers(tmp_path / "x.nii", values)
    assert foreign_volumes.holds_whole_numbers(tmp_path / "x.nii")
    values[0, 0, 0] = 0.5
    write_nifti_of_numbers(tmp_path / "x.nii", values)
    assert not foreign_volumes.holds_whole_numbers(tmp_path / "x.nii")


@pytest.mark.parametrize("name", ["x.mrc", "x.nrrd", "x.nii", "x.nii.gz", "x.am"])
def test_damaged_and_absent_files_give_one_sentence(tmp_path, sample_labels, name):
    path = tmp_path / name
    assert is_foreign_volume(path)
    with pytest.raises(ValueError, match=r"There is no file .*x\."):
        read_foreign_volume(path)
    whole = amira(sample_labels.values, "HxByteRLE")
    for content in (b"", b"no volume at all", whole[: len(whole) // 2], bytes(2000)):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"x\.\S+ (cannot be read|needs|has the shape)"
        ) as error:
            read_foreign_volume(path)
        assert "\n" not in str(error.value)
        with suppress(ValueError):  # a header may be whole where the data are not
            foreign_volumes.holds_whole_numbers(path)
