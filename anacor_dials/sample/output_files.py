"""Files that are written whole or not at all.

Every file of a run is written under a temporary name in its own folder; all are given their names at
the end. What an earlier run left is replaced only then.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType


class OutputFiles(AbstractContextManager["OutputFiles"]):
    """Collects the files of one run: ``with OutputFiles() as out: write(out.path("a.refl"))``.

    On a normal exit all files get their names; on an exception all temporary files are removed.
    """

    def __init__(self) -> None:
        self._pending: dict[Path, Path] = {}

    def path(self, final: str | os.PathLike[str]) -> Path:
        """A temporary path for a file that will be called `final`; the suffixes stay the same.

        Raises ValueError where the folder does not exist or cannot be written to.
        """
        target = Path(final).absolute()
        if target in self._pending:
            raise ValueError(f"Two outputs have the same name {target}; give one another name.")
        if target.is_dir():
            raise ValueError(f"{target} is a folder; name a file.")
        if not target.parent.is_dir():
            raise ValueError(f"The folder {target.parent} does not exist; create it first.")
        suffixes = "".join(target.suffixes)
        stem = target.name[: len(target.name) - len(suffixes)] if suffixes else target.name
        temporary = target.with_name(f".{stem}-{secrets.token_hex(4)}{suffixes}")
        try:
            temporary.touch()
        except OSError as error:
            raise ValueError(
                f"Cannot write to the folder {target.parent} ({error.strerror}); "
                "run in another folder or name another output."
            ) from None
        self._pending[target] = temporary
        return temporary

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            for target, temporary in self._pending.items():
                os.replace(temporary, target)
        else:
            for temporary in self._pending.values():
                temporary.unlink(missing_ok=True)
        self._pending.clear()


@contextmanager
def whole_file(final: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path that becomes `final` when the block ends without an exception."""
    with OutputFiles() as out:
        yield out.path(final)


def file_name(label: str, otherwise: str) -> str:
    """A label with everything replaced that does not belong in a file's name.

    otherwise: the name where nothing is left of the label.
    """
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", label).strip("_.") or otherwise
