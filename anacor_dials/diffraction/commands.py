"""Commands of DIALS and xia2, run in a folder."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import RawIOBase
from pathlib import Path
from typing import IO

import psutil

from anacor_dials import __version__

# where the commands of a program on no PATH are found as modules
MODULES = (
    ("dials.anacor_", "anacor_dials.command_line.anacor_"),
    ("dials.", "dials.command_line."),
)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# with what xia2 and xia2.integrate begin the line that says why they stopped
ERRORS_OF_XIA2 = ("Error: ", "Error setting up xia2 environment: ", "Status: error ")
UNKNOWN = "unknown"

_running: set[subprocess.Popen[bytes]] = set()


def run_command(
    command: Sequence[str],
    folder: str | os.PathLike[str],
    threads: int | None = None,
    log: Path | None = None,
) -> tuple[int, str]:
    """The exit status of a command, and what it printed: standard output, then standard error.

    Parameters
    ----------
    command : sequence of str
        Program and arguments. A command of DIALS that is not on PATH is run as a module.
    folder : path
        Where it is run.
    threads : int, optional
        For each numerical library within the run; they are left as they are if not given.
    log : Path, optional
        A file that gets each line as it is printed.

    Raises
    ------
    ValueError
        If there is no such program.
    """
    program = command[0]
    if shutil.which(program) is None:
        for prefix, package in MODULES:
            if program.startswith(prefix):
                module = package + program.removeprefix(prefix)
                command = (sys.executable, "-m", module, *command[1:])
                break
        else:
            raise ValueError(f"There is no program {program} on PATH")
    with (
        open(log or os.devnull, "wb", buffering=0) as file,
        subprocess.Popen(
            list(command),
            cwd=folder,
            env=os.environ | _environment(program, threads),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process,
        ThreadPoolExecutor(2) as readers,
    ):
        _running.add(process)
        try:
            streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
            printed = b"\n".join(readers.map(_copied, streams, [file] * 2))
            status = process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            _running.discard(process)
    return status, printed.decode("utf-8", "replace").strip()


def _copied(stream: IO[bytes], file: RawIOBase) -> bytes:
    """All that comes from a stream; each line goes to the file at once."""
    lines = []
    for line in stream:
        file.write(line)
        lines.append(line)
    return b"".join(lines)


def end_commands() -> None:
    """Ends the commands that run in threads of this process, with all that they have started."""
    for process in list(_running):
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        command = psutil.Process(process.pid)
        # the command first: it is not to go on when a child of it ends
        for one in [command, *command.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()


def _environment(program: str, threads: int | None) -> dict[str, str]:
    """What is added to the environment of a command.

    xia2 and xia2.integrate do not begin where CCP4 is not set (check_environment in
    xia2.Applications.xia2_main), though integration by DIALS runs none of its programs. So a CCP4
    that there is not is given a name.
    """
    added = {} if threads is None else dict.fromkeys(THREADS, str(threads))
    if program in ("xia2", "xia2.integrate") and not os.environ.get("CCP4"):
        added["CCP4"] = "none"
    return added


def program_versions(*on_path: str) -> dict[str, str]:
    """{program: version} of anacor_dials and DIALS in this process, and of programs on PATH.

    The latter (on_path: their names) say ``NAME VERSION`` where they are called with ``-version``,
    as xia2 does. The version is "unknown" where one is absent or says something else.
    """
    from dials.util.version import dials_version

    found = {"anacor_dials": __version__, "dials": dials_version()}
    return found | {program: _said_version(program) for program in on_path}


def _said_version(program: str) -> str:
    try:
        with tempfile.TemporaryDirectory() as folder:
            _, printed = run_command((program, "-version"), folder)
    except ValueError:
        return UNKNOWN
    said = re.search(rf"^{re.escape(program)}\s+(\S+)", printed, re.MULTILINE | re.IGNORECASE)
    return said[1] if said else UNKNOWN


def error_of_xia2(text: str) -> str | None:
    """Why xia2 or xia2.integrate stopped; None if it does not say.

    After that line (ERRORS_OF_XIA2) xia2 says to whom its logs may be sent.

    Parameters
    ----------
    text : str
        What it printed, or its log.
    """
    for line in reversed(text.splitlines()):
        for mark in ERRORS_OF_XIA2:
            if line.strip().startswith(mark):
                return line.strip().removeprefix(mark).strip('"')
    return None


def last_words(printed: str) -> str:
    """The reason among what a command printed: from "Sorry:" on, else its last line.

    After a minimisation that failed dials.scale goes on without a scale and ends with "No data
    found", so the failure itself is added. Of xia2 it is that of :func:`error_of_xia2`.
    """
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    reason = error_of_xia2(printed) or (lines[-1] if lines else "it printed nothing")
    for mark in ("Usage error:", "Sorry:"):
        if mark in printed:
            reason = " ".join(printed.rpartition(mark)[2].split())
    minimiser = "lbfgs error:"
    if minimiser in printed and minimiser not in reason:
        reason += f" (after {minimiser}{printed.rpartition(minimiser)[2].splitlines()[0]})"
    return reason
