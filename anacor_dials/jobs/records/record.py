"""What all records have in common: a version, and how they are read and written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")
R = TypeVar("R", bound="Record")


def key_of(name: str) -> str:
    """The key in the file of a field: its name, without the underscore after a word of Python."""
    return name.removesuffix("_")


def made_of(kind: type[T], content: Mapping[str, Any]) -> T:
    """A dataclass from what was read; keys that are not of this schema are left out."""
    names = {f.name: key_of(f.name) for f in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: content[key] for name, key in names.items() if key in content})


@dataclass(frozen=True)
class Record:
    """The content of a JSON file; VERSION: of its schema."""

    VERSION: ClassVar[int]

    @classmethod
    def of(cls: type[R], content: Mapping[str, Any]) -> R:
        """The record of what was read; keys that are not of this schema are left out."""
        return made_of(cls, content)

    def content(self) -> dict[str, Any]:
        """What is written: the version, and a key for each field."""
        values = {key_of(f.name): getattr(self, f.name) for f in fields(self)}
        return {"version": self.VERSION} | values


def read_record(path: str | os.PathLike[str], kind: type[R]) -> R:
    """The record in a JSON file.

    Parameters
    ----------
    path : path
    kind : type
        The record that the file should hold.

    Raises
    ------
    ValueError
        If the file is no JSON, or of another version of the schema.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found = content.get("version")
        record = kind.of(content) if found == kind.VERSION else None
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}); make it again.") from None
    if record is None:
        raise ValueError(
            f"{path} is of version {found} and this program reads version {kind.VERSION}; "
            "make it again."
        )
    return record
