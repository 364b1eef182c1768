"""Reports for people (HTML with interactive figures) and for programs (JSON).

A report is a list of sections, a section a list of items: :class:`Text`, :class:`Table` and
:class:`Figure` (a plotly figure as plain dictionaries). The HTML holds everything that it needs,
plotly included, so that it can be read without a network and sent by mail.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from anacor_dials import __version__
from anacor_dials.jobs.records import Record, key_of


@dataclass(frozen=True)
class Text:
    """A paragraph; level "warning" makes it stand out."""

    text: str
    level: str = "info"

    def __post_init__(self) -> None:
        if self.level not in ("info", "warning"):
            raise ValueError(f"The level of a text is {self.level!r}; it is info or warning.")


@dataclass(frozen=True)
class Table:
    """Rows of cells, which are printed as they are.

    Parameters
    ----------
    rows : sequence of sequences
    header : sequence
    caption : str
    marked : frozenset of (int, int)
        (row, column) of cells that stand out.
    """

    rows: Sequence[Sequence[Any]]
    header: Sequence[Any] = ()
    caption: str = ""
    marked: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Figure:
    """A plotly figure.

    Parameters
    ----------
    data : sequence of mappings
        The traces.
    layout : mapping
    caption : str
    width : str
        "half" or "full".
    height : int
        Pixels.
    """

    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)
    caption: str = ""
    width: str = "half"
    height: int = 420

    def __post_init__(self) -> None:
        if self.width not in ("half", "full"):
            raise ValueError(f"The width of a figure is {self.width!r}; it is half or full.")


Item = Text | Table | Figure


@dataclass(frozen=True)
class Section:
    """A titled part of a report."""

    title: str
    items: Sequence[Item]


def plain(value: Any) -> Any:
    """The value in types that JSON has: arrays as lists, dataclasses as dictionaries, numbers
    without a value (NaN, inf) as None.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {key_of(f.name): plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _script_for_plotly() -> str:
    """plotly.js itself, in a script element."""
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"


def html_of(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """One self-contained HTML page.

    Parameters
    ----------
    title : str
    sections : sequence of Section
    subtitle : str
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.tests["text"] = lambda item: isinstance(item, Text)
    environment.tests["table"] = lambda item: isinstance(item, Table)
    template = environment.from_string(
        files("anacor_dials").joinpath("templates/report.html").read_text(encoding="utf-8")
    )
    figures = {
        f"figure_{i}_{j}": {"data": plain(item.data), "layout": plain(item.layout)}
        for i, section in enumerate(sections)
        for j, item in enumerate(section.items)
        if isinstance(item, Figure)
    }
    # "</" would end the script element that the figures stand in
    as_json = json.dumps(figures, separators=(",", ":")).replace("</", "<\\/")
    html: str = template.render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        version=__version__,
        figures=as_json,
        plotly=_script_for_plotly() if figures else "",
    )
    return html


def write_html(
    path: str | os.PathLike[str], title: str, sections: Sequence[Section], subtitle: str = ""
) -> None:
    """Writes one self-contained HTML file.

    Parameters
    ----------
    path : path
    title : str
    sections : sequence of Section
    subtitle : str
    """
    with open(path, "w", encoding="utf-8") as file:
        file.write(html_of(title, sections, subtitle))


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any] | Record) -> None:
    """Writes a record, or any content, as JSON; see :func:`plain`."""
    if isinstance(content, Record):
        content = content.content()
    with open(path, "w", encoding="utf-8") as file:
        json.dump(plain(content), file, indent=1)
        file.write("\n")
