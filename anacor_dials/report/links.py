"""Links of a report to the files beside it."""

from __future__ import annotations

import os
from pathlib import Path

from markupsafe import Markup


def link(path: Path, root: Path, text: str = "") -> Markup:
    """A link to a file, by its path from the folder of the report.

    Parameters
    ----------
    path : Path
    root : Path
        The folder of the report.
    text : str
        What is shown; the name of the file if not given.
    """
    relative = Path(os.path.relpath(path, root))
    return Markup('<a href="{}">{}</a>').format(relative.as_posix(), text or relative.name)


def links(folder: Path, root: Path) -> Markup:
    """Links to the reports and logs in a step's folder."""
    files = sorted(
        (*folder.glob("*.html"), *folder.glob("*.log")), key=lambda p: (p.suffix, p.name)
    )
    return Markup(", ").join(link(path, root) for path in files)
