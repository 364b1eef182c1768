"""Commands of DIALS and xia2, run in a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import procrunner

from anacor_dials import __version__

# where the commands of a program on no PATH are found as modules
MODULES = (
    ("dials.anacor_", "anacor_dials.command_line.anacor_"),
    ("dials.", "dials.command_line."),
)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# with what xia2 and xia2.integrate begin the line that says why they stopped
ERRORS_OF_XIA2 = ("Error: ", "Error setting up xia2 environment: ", "Status: error ")


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
    with open(log or os.devnull, "w", encoding="utf-8", errors="replace") as file:

        def keep(line: str) -> None:
            file.write(line + "\n")
            file.flush()

        result = procrunner.run(
            list(command),
            print_stdout=False,
            print_stderr=False,
            callback_stdout=keep,
            callback_stderr=keep,
            working_directory=folder,
            environment_override=_environment(program, threads),
            stdin=subprocess.DEVNULL,
        )
    printed: bytes = result.stdout + b"\n" + result.stderr
    return result.returncode, printed.decode("utf-8", "replace").strip()


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


def program_versions() -> dict[str, str]:
    """{program: version} of anacor_dials and DIALS in this process."""
    from dials.util.version import dials_version

    return {"anacor_dials": __version__, "dials": dials_version()}


def last_words(printed: str) -> str:
    """The reason among what a command printed: from "Sorry:" on, else its last line.

    After a minimisation that failed dials.scale goes on without a scale and ends with "No data
    found", so the failure itself is added. After the line that says why (ERRORS_OF_XIA2) xia2 goes on
    to say to whom its logs may be sent.
    """
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(ERRORS_OF_XIA2)]
    reason = lines[-1] if lines else "it printed nothing"
    if errors:
        mark = next(mark for mark in ERRORS_OF_XIA2 if errors[-1].startswith(mark))
        reason = errors[-1].removeprefix(mark).strip('"')
    for mark in ("Usage error:", "Sorry:"):
        if mark in printed:
            reason = " ".join(printed.rpartition(mark)[2].split())
    minimiser = "lbfgs error:"
    if minimiser in printed and minimiser not in reason:
        reason += f" (after {minimiser}{printed.rpartition(minimiser)[2].splitlines()[0]})"
    return reason
