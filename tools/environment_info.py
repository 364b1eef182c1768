"""Prints which DIALS, Python, torch and BLAS this environment has."""

from __future__ import annotations

import importlib
import os
import platform
import sys


def version_of(module: str) -> str:
    try:
        return str(getattr(importlib.import_module(module), "__version__", "present"))
    except ImportError:
        return "absent"


def blas_libraries() -> str:
    import numpy as np
    from threadpoolctl import threadpool_info

    np.ones((2, 2)) @ np.ones((2, 2))
    found = {
        f"{info['internal_api']} {info['version']} ({info['num_threads']} threads)"
        for info in threadpool_info()
        if info["user_api"] == "blas"
    }
    return ", ".join(sorted(found)) or "unknown"


def main() -> None:
    from dials.util.version import dials_version

    print(f"{'DIALS':12}{dials_version()}")
    print(f"{'Python':12}{platform.python_version()} ({sys.executable})")
    print(f"{'BLAS':12}{blas_libraries()}")
    for module in ("numpy", "numba", "torch", "cupy", "algotom", "tomopy", "sam2", "xia2"):
        print(f"{module:12}{version_of(module)}")
    print(f"{'cores':12}{len(os.sched_getaffinity(0))}")


if __name__ == "__main__":
    main()
