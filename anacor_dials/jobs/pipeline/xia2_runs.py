"""Whether xia2 has ended in a folder, and how: what its logs and files tell of a run.

xia2 has no lock and writes no file at its very end. What it leaves was read in the source of xia2
3.9 (``cli/xia2_main.py``, ``cli/integrate.py``, ``Handlers/Streams.py`` and
``Driver/DefaultDriver.py``):

* ``xia2.txt``, or ``xia2.integrate.txt`` of xia2.integrate, is begun anew by each run. Its last
  line is "Status: normal termination" where the run ended well. Where it did not, one of the last
  lines begins as :data:`anacor_dials.diffraction.commands.ERRORS_OF_XIA2` say. A run that was
  killed leaves neither.
* ``xia2-error.txt`` is not written for every error, and stays there when xia2 is run again.
  ``xia2.json`` is there after integration, before scaling. So neither tells the end.
* The logs of the programs that it runs, in folders below, get each line when it is printed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from anacor_dials.diffraction.commands import error_of_xia2

LOGS = ("xia2.txt", "xia2.integrate.txt")
ENDED_WELL = "Status: normal termination"
# DIALS prints nothing while it refines or integrates a block of images: 97 s at most in a run of
# 180 small images on a quarter of a core; large ones may take longer
LONGEST_SILENCE = 3600.0  # seconds


def log_of_xia2(folder: Path) -> Path | None:
    """The log of the run that was last in a folder; None if there is none."""
    logs = [folder / name for name in LOGS if (folder / name).is_file()]
    return max(logs, key=lambda log: log.stat().st_mtime, default=None)


def why_not_ended_well(folder: Path) -> str | None:
    """Why the data of xia2 in a folder cannot be taken yet, in words; None where it ended well.

    Where there is no log, nothing is known of a run, and None is returned, too.

    Parameters
    ----------
    folder : Path
    """
    log = log_of_xia2(folder)
    if log is None:
        return None
    text = log.read_text(encoding="utf-8", errors="replace")
    if ENDED_WELL in text:
        return None
    reason = error_of_xia2(text)
    if reason is not None:
        return f"xia2 failed in {folder} ({reason.rstrip('.')}); it is taken when xia2 has ended well there"
    age = time.time() - _last_written(folder)
    said = f"its last file there was written {max(age, 0):.0f} s ago"
    if age < LONGEST_SILENCE:
        return f"xia2 still runs in {folder}; {said}"
    return f"xia2 was ended in {folder} before it was done, or hangs; {said}"


def _last_written(folder: Path) -> float:
    """When the newest file below a folder was written, seconds since 1970."""
    newest = 0.0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                newest = max(newest, os.lstat(os.path.join(place, name)).st_mtime)
            except OSError:  # xia2 has removed it meanwhile
                continue
    return newest
