"""All commands read their arguments the same way: nothing is overwritten, nothing evil is run."""

from __future__ import annotations

import importlib
import os
import pickle
import tracemalloc

import pytest

pytest.importorskip("dials", reason="the commands need dials")

from dials.util import Sorry
from dials.util.options import ArgumentParser
from dials.util.phil import parse

from anacor_dials.phil.arguments import parse_arguments
from anacor_dials.sample.tomogram_files import write_sample_file

COMMANDS = {
    "anacor_absorption": ("tomogram", "log"),
    "anacor_reconstruct": ("tomogram", "json", "html", "log"),
    "anacor_segment": ("json", "html", "log"),
    "anacor_simulate": ("json", "log"),
    "anacor_compare": ("json", "html", "log"),
    "anacor_train": ("log",),
    "xia2_anacor": ("json", "html", "log"),
}


def run(command, *args):
    module = importlib.import_module(f"anacor_dials.command_line.{command}")
    module.run(list(args))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_is_an_input_is_refused(command, tmp_path):
    (tmp_path / "given.nxs").write_bytes(b"given")
    for output in COMMANDS[command]:
        with pytest.raises(Sorry, match=rf"output\.{output}=given.nxs would replace given.nxs"):
            run(command, "given.nxs", f"output.{output}=given.nxs")
        assert (tmp_path / "given.nxs").read_bytes() == b"given"
    assert not list(tmp_path.glob("*.log"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_parameter_with_a_typing_error_is_named_with_the_nearest(command):
    with pytest.raises(
        Sorry, match=r"^output\.lgo is no parameter of this command; did you mean output\.log\?"
    ):
        run(command, "output.lgo=x.log")
    with pytest.raises(Sorry, match=r"^zzqqxx is no parameter of this command\."):
        run(command, "zzqqxx=2")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_knows_nproc_and_needs_the_folder_of_its_log(command):
    with pytest.raises(Sorry, match=r"The folder .*absent of output\.log does not exist"):
        run(command, "nproc=1", "output.log=absent/command.log")


@pytest.mark.parametrize("command", ["anacor_absorption", "anacor_compare"])
def test_a_pickled_table_and_a_damaged_experiment_list_are_refused(command, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    (tmp_path / "evil.refl").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "half.expt").write_text('{"__id__": "ExperimentList", "exper')
    (tmp_path / "empty.expt").write_text('{"__id__": "ExperimentList"}')
    with pytest.raises(Sorry, match=r"evil\.refl is no reflection table"):
        run(command, "evil.refl")
    with pytest.raises(Sorry, match=r"evil\.refl is no reflection table"):
        run(command, "input.reflections=evil.refl")
    with pytest.raises(Sorry, match=r"half\.expt is no experiment list"):
        run(command, "half.expt")
    with pytest.raises(Sorry, match=r"empty\.expt cannot be read by DIALS"):
        run(command, "empty.expt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["scan.nxs", "tomo.h5", "angles.txt", "models.json", "more.phil"])
def test_no_file_is_unpickled_whatever_it_is_called(name, tmp_path):
    """DIALS would unpickle every file that is neither JSON nor a table."""

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    (tmp_path / name).write_bytes(pickle.dumps(Evil(), protocol=0))
    with pytest.raises(Sorry):
        run("anacor_absorption", name)
    with pytest.raises(Sorry, match=f"{name} is no reflection table"):
        run("anacor_absorption", f"reflections={name}")
    assert not (tmp_path / "ran").exists()


def test_a_scan_is_not_read_into_memory_to_find_out_what_it_is(tmp_path):
    """DIALS reads every file as text, and once more as a table."""
    with open(tmp_path / "scan.nxs", "wb") as file:
        file.write(b"\x89HDF\r\n\x1a\n")
        file.truncate(300_000_000)
    tracemalloc.start()
    with pytest.raises(Sorry):
        run("anacor_absorption", "scan.nxs")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000


def test_what_is_left_keeps_its_order(tmp_path):
    for name in ("b.h5", "a.nxs", "c.json"):
        (tmp_path / name).write_bytes(b"{" if name == "c.json" else b"nothing")
    parser = ArgumentParser(phil=parse("x = 1\n.type = int"), read_experiments=True)
    params, _, left = parse_arguments(parser, ["b.h5", "x=3", "c.json", "a.nxs", "no such"])
    assert (params.x, left) == (3, ["b.h5", "c.json", "a.nxs", "no such"])


def test_outputs_need_the_extension_that_dials_knows_them_by():
    with pytest.raises(Sorry, match=r"output\.reflections=corrected\.pickle must end in \.refl"):
        run("anacor_absorption", "output.reflections=corrected.pickle")
    with pytest.raises(Sorry, match=r"output\.experiments=x\.json must end in \.expt"):
        run("anacor_absorption", "output.experiments=x.json")


def test_an_angle_offset_that_is_none_is_refused():
    with pytest.raises(SystemExit):
        run("anacor_absorption", "alignment.angle_offset=1e300")


def test_labels_may_be_written_into_the_tomogram_that_is_segmented(tmp_path, sample_labels):
    """What comes after the arguments fails here, for want of a tomogram: they themselves are accepted."""
    write_sample_file(tmp_path / "tomo.h5", labels=sample_labels)
    before = (tmp_path / "tomo.h5").read_bytes()
    with pytest.raises(Sorry) as error:
        run("anacor_segment", "tomo.h5", "output.tomogram=tomo.h5")
    assert "would replace" not in str(error.value)
    assert (tmp_path / "tomo.h5").read_bytes() == before
