"""The arguments of a command, read in the same way by all commands.

Files are looked at before DIALS reads them.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dials.util import Sorry

from anacor_dials.sample.input_files import (
    file_of,
    is_pickle,
    is_same_file,
    may_be_read_by_dials,
    refuse_outputs_that_are_inputs,
    refuse_pickled_table,
    require_experiment_list,
)
from anacor_dials.sample.tomogram_files import is_sample_file

TABLE_SUFFIXES = (".refl", ".pickle", ".mpack")
PHIL_SUFFIXES = (".phil", ".param", ".params", ".eff", ".def")
OUTPUT_SUFFIXES = {"output.experiments": ".expt", "output.reflections": ".refl"}


def parse_arguments(
    parser: Any,
    args: Sequence[str] | None,
    may_write_into: Sequence[str] = (),
    reads_files: bool = True,
) -> tuple[Any, Any, list[str]]:
    """(parameters, options, what is left) of a command.

    A parameter with a typing error is reported with the nearest name. A reflection table that is a
    pickle is not read. An .expt or .refl file that DIALS cannot read is reported with the reason.
    An output must not be an input, except that parameters in may_write_into may name the tomo.h5
    that is read.

    Parameters
    ----------
    parser : dials.util.options.ArgumentParser
    args : sequence of str, optional
        Of the command line; sys.argv if not given.
    may_write_into : sequence of str
        Names of parameters.
    reads_files : bool
        Whether the parser reads experiments and reflections. If not, the command looks at them
        itself.

    Raises
    ------
    Sorry
        For what is wrong with the arguments.
    """
    args = list(sys.argv[1:] if args is None else args)
    try:
        for_dials = [a for a in args if _for_dials(a)] if reads_files else args
        params, options, left = parser.parse_args(
            args=for_dials, show_diff_phil=False, return_unhandled=True
        )
        left = [a for a in args if a in left or a not in for_dials]
        if reads_files:
            _refuse_unread(params, left)
        definitions = list(parser.phil.all_definitions())
        _refuse_unknown(left, [d.path for d in definitions])
        _check_outputs(parser, params, left, may_write_into)
    except ValueError as error:
        raise Sorry(error) from None
    return params, options, left


def _for_dials(argument: str) -> bool:
    """Whether DIALS' parser may have an argument: it reads every file that is no parameter.

    Raises ValueError for a file that should be read by DIALS and must not be.
    """
    name, equals, value = argument.partition("=")
    is_parameter = bool(equals) and not Path(argument).is_file()
    path = Path(value if is_parameter else argument)
    if not path.is_file() or (is_parameter and name.startswith("output")):
        return True
    kind = name.rpartition(".")[2] if is_parameter else ""
    if kind == "reflections" or path.suffix in TABLE_SUFFIXES:
        refuse_pickled_table(path)
        return True
    if kind == "experiments" or path.suffix == ".expt":
        require_experiment_list(path)
        return True
    if path.suffix in PHIL_SUFFIXES and not is_parameter and is_pickle(path):
        raise ValueError(f"{path} is no file of parameters but a Python pickle; it is not read.")
    return is_parameter or path.suffix in PHIL_SUFFIXES or may_be_read_by_dials(path)


def _refuse_unread(params: Any, left: Sequence[str]) -> None:
    """Names an .expt that is one by its looks and that DIALS could not read."""
    for name in left:
        if Path(name).suffix not in (".expt", ".refl") or not Path(name).is_file():
            continue
        reason = "its content is damaged"
        try:
            if name.endswith(".expt"):
                from dxtbx.model import ExperimentList

                ExperimentList.from_file(name, check_format=False)
            else:
                from dials.array_family import flex

                flex.reflection_table.from_file(name)
        except Exception as error:  # whatever DIALS raises is the reason
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{name} cannot be read by DIALS: {reason}.")


def _refuse_unknown(left: Sequence[str], known: Sequence[str]) -> None:
    """Names an argument that looks like a parameter and is none, with the nearest name."""
    for argument in left:
        name, equals, _ = argument.partition("=")
        if not equals or Path(argument).exists() or "/" in name or not name:
            continue
        last = {path.rpartition(".")[2]: path for path in known}
        near = difflib.get_close_matches(name, known, 1, 0.7)
        near = near or [
            last[n] for n in difflib.get_close_matches(name.rpartition(".")[2], list(last), 1, 0.6)
        ]
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"{name} is no parameter of this command{hint}")


def _paths(parser: Any, params: Any) -> Iterator[tuple[str, str]]:
    """(parameter, value) of every parameter that names a file."""
    working = parser.phil.format(python_object=params)
    for definition in working.all_definitions():
        kind = getattr(definition.object.type, "phil_type", "")
        if kind not in ("path", "str"):
            continue
        value = definition.object.extract()
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and one and one.lower() not in ("none", "auto"):
                yield definition.path, one


def _check_outputs(
    parser: Any, params: Any, left: Sequence[str], may_write_into: Sequence[str]
) -> None:
    outputs: list[tuple[str, str]] = []
    inputs = list(left)
    for scope in ("experiments", "reflections"):
        given = getattr(getattr(params, "input", None), scope, None) or []
        inputs += [item.filename for item in given if getattr(item, "filename", None)]
    for parameter, value in _paths(parser, params):
        if parameter.startswith("output."):
            outputs.append((parameter, value))
        else:
            inputs.append(value)
    for parameter, value in outputs:
        suffix = OUTPUT_SUFFIXES.get(parameter)
        folder = Path(value).absolute().parent
        if suffix and not value.endswith(suffix):
            raise ValueError(
                f"{parameter}={value} must end in {suffix}, by which DIALS knows what it is."
            )
        if parameter == "output.log" and not folder.is_dir():
            raise ValueError(f"The folder {folder} of output.log does not exist; create it first.")
        for name in inputs:
            if parameter in may_write_into and _is_sample_file_at(name, value):
                continue
            refuse_outputs_that_are_inputs([(parameter, value)], [name])


def _is_sample_file_at(name: str, output: str) -> bool:
    """True where an input and an output are one file, a tomo.h5, into which more may be written."""
    path = file_of(name)
    if path.is_file() and is_same_file(path, Path(output)):
        with suppress(ValueError):  # no HDF5 file at all
            return is_sample_file(path)
    return False
