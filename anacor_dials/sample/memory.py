"""Memory: how much is free, and a sentence where it is not enough."""

from __future__ import annotations


def available_memory_bytes() -> int | None:
    """The memory that is free without swapping, in bytes; None if the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def require_memory(needed_bytes: float, what: str) -> None:
    """Raises ValueError, with both figures, if the memory for something is not free."""
    available = available_memory_bytes()
    if available is not None and needed_bytes > available:
        raise ValueError(
            f"{what} needs {needed_bytes / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are "
            "free; crop or bin the volume, or use a machine with more memory."
        )
