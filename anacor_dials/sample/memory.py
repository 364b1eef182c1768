"""Memory: how much is free, and a sentence where it is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# Of control groups, version 2 and version 1: the limit, what is in use, and of that in memory.stat
# what holds files, which the system can give back.
_FILES_OF_GROUPS = {
    "": ("memory.max", "memory.current", ("active_file", "inactive_file")),
    "memory": (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
}


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """The memory that is free without swapping, in bytes; None if the system does not say.

    It is that of the machine, or of the control group if that allows less: batch systems and
    containers end a program that takes more than its job has asked for.

    Parameters
    ----------
    root : Path
        Of the file system.
    """
    free = list(_free_in_control_groups(root))
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    return max(min(free), 0) if free else None


def _free_in_control_groups(root: Path) -> Iterator[int]:
    """The free memory, in bytes, of each group with a limit that this process is in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if controllers not in _FILES_OF_GROUPS:
            continue
        limit_file, used_file, cached = _FILES_OF_GROUPS[controllers]
        mount = root / "sys/fs/cgroup" / controllers
        here = mount / place.lstrip("/")
        # of the group and all above it; in a container the path may be one of the machine outside
        for group in (here, *here.parents):
            try:
                limit = int((group / limit_file).read_text())  # "max" if there is none
                used = int((group / used_file).read_text())
                stat = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
                yield limit - used + sum(int(stat.get(name, 0)) for name in cached)
            except (OSError, ValueError):
                pass
            if group == mount:
                break


def require_memory(needed_bytes: float, what: str) -> None:
    """Raises ValueError, with both figures, if the memory for something is not free."""
    available = available_memory_bytes()
    if available is not None and needed_bytes > available:
        raise ValueError(
            f"{what} needs {needed_bytes / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are "
            "free; crop or bin the volume, or use a machine with more memory."
        )
