"""Files that a command is given: they are looked at before they are read, and never replaced."""

from __future__ import annotations

import json
import os
import pickletools
from collections.abc import Iterable
from pathlib import Path

# how reflection tables begin: MessagePack's array of three and DIALS' name for it, or HDF5
TABLE_NAME = b"dials::af::reflection_table"
# instructions of a pickle that fetch or call something, and its end
PICKLED = ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "NEWOBJ", "BUILD", "STOP")
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def file_of(name: str | os.PathLike[str]) -> Path:
    """The file that ``file.h5:/path/in/it`` or a plain path names."""
    text = os.fspath(name)
    before, colon, after = text.partition(":")
    return Path(before if colon and after and not Path(text).exists() else text)


def is_same_file(one: Path, other: Path) -> bool:
    """True where two paths are one file: links, relative paths and other spellings are followed."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def refuse_outputs_that_are_inputs(
    outputs: Iterable[tuple[str, str | os.PathLike[str]]],
    inputs: Iterable[str | os.PathLike[str]],
) -> None:
    """Raises ValueError where an output is an input, or lies in the place of one by a link.

    outputs: (parameter, path) of each; inputs: files, folders or patterns of names that are read.
    """
    read = [path for path in map(file_of, inputs) if path.exists()]
    for parameter, output in outputs:
        for path in read:
            if path.is_file() and Path(output).exists() and is_same_file(Path(output), path):
                raise ValueError(
                    f"{parameter}={output} would replace {path}, which is read; name another file."
                )


def _beginning(path: str | os.PathLike[str]) -> bytes:
    """The first bytes of a file. Raises ValueError with the reason where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(64)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from None


def _is_message_pack(begin: bytes) -> bool:
    return begin[:1] == b"\x93" and TABLE_NAME in begin


def _is_table(begin: bytes) -> bool:
    return begin.startswith(HDF5_SIGNATURE) or _is_message_pack(begin)


def may_be_read_by_dials(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as JSON or as a reflection table of DIALS (MessagePack).

    DIALS takes any file for an experiment list, then for a reflection table: it reads the whole
    into the memory, as text and as a table, and unpickles what is neither. A tomogram or a scan
    must not come to that.
    """
    begin = _beginning(path)
    return begin.lstrip()[:1] == b"{" or _is_message_pack(begin)


def refuse_pickled_table(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a .refl that DIALS would unpickle: a pickle can run any program."""
    if _is_table(_beginning(path)):
        return
    raise ValueError(
        f"{path} is no reflection table as DIALS writes them since 2018 (MessagePack). It is damaged, or a Python "
        "pickle, which can run any program when it is read; integrate again, or convert it where you trust it."
    )


def is_pickle(path: str | os.PathLike[str]) -> bool:
    """True for a Python pickle; its instructions are listed, none is carried out."""
    with open(path, "rb") as file:
        if _is_table(file.read(64)):
            return False
        file.seek(0)
        try:
            return any(step[0].name in PICKLED for step in pickletools.genops(file))
        except (ValueError, UnicodeError, IndexError):
            return False


def require_experiment_list(path: str | os.PathLike[str]) -> None:
    """Raises ValueError, with the reason, for an .expt that is no experiment list in JSON."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no experiment list: it is not JSON ({error}).") from None
    if not isinstance(content, dict) or content.get("__id__") != "ExperimentList":
        raise ValueError(f"{path} is no experiment list: its __id__ is not ExperimentList.")
