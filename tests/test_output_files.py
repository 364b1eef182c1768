"""Output files appear whole, all together, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from anacor_dials.sample.output_files import OutputFiles, whole_file


def test_files_get_their_names_at_the_end(tmp_path):
    final = tmp_path / "corrected.refl"
    final.write_text("earlier")
    with OutputFiles() as out:
        temporary = out.path(final)
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".refl"
        assert final.read_text() == "earlier"
    assert final.read_text() == "new"
    assert list(tmp_path.iterdir()) == [final]


def write_and_fail(error, *paths):
    with OutputFiles() as out:
        for path in paths:
            out.path(path).write_text("half")
        raise error


def test_a_failure_leaves_what_was_there(tmp_path):
    final, other = tmp_path / "a.json", tmp_path / "b.tar.gz"
    final.write_text("earlier")
    with pytest.raises(RuntimeError):
        write_and_fail(RuntimeError, final, other)
    assert final.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [final]


def test_an_interrupt_counts_as_a_failure(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(KeyboardInterrupt, tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())


def test_relative_names_belong_to_the_folder_of_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with OutputFiles() as out:
        out.path("a.expt").write_text("x")
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert (tmp_path / "a.expt").read_text() == "x"


def test_all_suffixes_are_kept(tmp_path):
    with OutputFiles() as out:
        assert out.path(tmp_path / "image.cbf.gz").name.endswith(".cbf.gz")


def test_two_outputs_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Two outputs have the same name"):
        write_and_fail(RuntimeError, tmp_path / "a.refl", str(tmp_path / "a.refl"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_absent_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist; create it first"), OutputFiles() as out:
        out.path(tmp_path / "absent" / "a.refl")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder; name a file"), OutputFiles() as out:
        out.path(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):  # as chmod would, which means nothing to root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with (
        pytest.raises(ValueError, match=r"Cannot write to the folder .* \(Permission denied\)"),
        OutputFiles() as out,
    ):
        out.path(tmp_path / "a.refl")


def test_one_whole_file(tmp_path):
    with whole_file(tmp_path / "a.txt") as path:
        path.write_text("x")
    assert (tmp_path / "a.txt").read_text() == "x"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_in_one_sentence(tmp_path, number):
    with pytest.raises(
        ValueError, match=f"There is no space left in {tmp_path}.*nothing was written"
    ):
        write_and_fail(OSError(number, os.strerror(number)), tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())
