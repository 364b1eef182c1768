"""What a command is given is looked at before it is read, and is never written over."""

from __future__ import annotations

import os
import pickle

import pytest

from anacor_dials.sample.input_files import (
    file_of,
    is_pickle,
    refuse_outputs_that_are_inputs,
    refuse_pickled_table,
    require_experiment_list,
)


def spellings(folder):
    """The same file under other names."""
    scan = folder / "scan.nxs"
    scan.write_text("raw")
    (folder / "link.nxs").symlink_to(scan)
    os.link(scan, folder / "hard.nxs")
    (folder / "deeper").mkdir()
    (folder / "here").symlink_to(folder, target_is_directory=True)
    return [
        scan,
        folder / "link.nxs",
        folder / "hard.nxs",
        folder / "deeper" / ".." / "scan.nxs",
        folder / "here" / "scan.nxs",
        os.path.relpath(scan),
    ]


def test_an_output_that_is_an_input_is_refused_however_it_is_spelt(tmp_path):
    for output in spellings(tmp_path):
        for given in (tmp_path / "scan.nxs", f"{tmp_path / 'scan.nxs'}:/entry/data"):
            with pytest.raises(ValueError, match=r"output\.tomogram=.* would replace .*scan\.nxs"):
                refuse_outputs_that_are_inputs([("output.tomogram", output)], [given])


def test_other_outputs_are_none_of_its_business(tmp_path):
    spellings(tmp_path)
    (tmp_path / "old.h5").write_text("an earlier result")
    outputs = [("output.tomogram", tmp_path / "old.h5"), ("output.json", tmp_path / "new.json")]
    refuse_outputs_that_are_inputs(outputs, [tmp_path / "scan.nxs", tmp_path, "scan/p_*.tif"])


def test_the_file_of_a_data_set(tmp_path):
    assert str(file_of("a/b.h5:/x/y")) == "a/b.h5"
    assert str(file_of("a/b.h5")) == "a/b.h5"
    odd = tmp_path / "a:b.h5"
    odd.write_text("x")
    assert file_of(odd) == odd


def test_a_pickle_is_not_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "evil.refl").write_bytes(pickle.dumps(Evil(), protocol=protocol))
        assert is_pickle(tmp_path / "evil.refl")
        with pytest.raises(ValueError, match=r"evil\.refl is no reflection table.*pickle"):
            refuse_pickled_table(tmp_path / "evil.refl")
    assert not (tmp_path / "ran").exists()
    # what DIALS itself writes, and its HDF5 format
    for begin in (b"\x93\xbbdials::af::reflection_table\x02\x83", b"\x89HDF\r\n\x1a\n"):
        (tmp_path / "good.refl").write_bytes(begin + bytes(100))
        refuse_pickled_table(tmp_path / "good.refl")
        assert not is_pickle(tmp_path / "good.refl")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"__id__": "ExperimentList", "experiment": [', "is not JSON"),
        ("", "is not JSON"),
        ("[1, 2]", "its __id__ is not ExperimentList"),
        ('{"__id__": "Crystal"}', "its __id__ is not ExperimentList"),
    ],
)
def test_an_unreadable_experiment_list_is_named_with_the_reason(tmp_path, text, reason):
    path = tmp_path / "models.expt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"models\.expt is no experiment list.*{reason}"):
        require_experiment_list(path)
    path.write_text('{"__id__": "ExperimentList"}')
    require_experiment_list(path)
