"""The commands' parameters, one PHIL file each."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def parse_phil(name: str, more: str = "") -> Any:
    """The PHIL scope of a file of this folder; ``include file`` is relative to it.

    more: PHIL text that is merged into the scope.
    """
    from libtbx import phil

    scope = phil.parse(file_name=str(Path(__file__).with_name(name)), process_includes=True)
    if more:
        scope = phil.parse(scope.as_str(attributes_level=3) + "\n" + more)
    return scope


def choice(value: Any) -> Any:
    """The value of a parameter of type choice.

    PHIL turns "auto" into an Auto of its own.
    """
    import libtbx

    return "auto" if value is libtbx.Auto else value
