"""Output files that are complete, or absent.

Every file of a run is written under a temporary name, in the folder where it will be. All files get
their names at the end of the run. Files of an earlier run are replaced only then.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType


class OutputFiles(AbstractContextManager["OutputFiles"]):
    """The files of one run: ``with OutputFiles() as out: write(out.path("a.refl"))``.

    At the end of the block all files get their names. After an exception all temporary files are
    removed; a disk that is full becomes a ValueError.
    """

    def __init__(self) -> None:
        self._pending: dict[Path, Path] = {}

    def path(self, final: str | os.PathLike[str]) -> Path:
        """A temporary path with the suffixes of `final`, the name that the file will get.

        Raises ValueError if the folder does not exist or cannot be written to, or if the name is
        that of a folder or of another output.
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
        folders = ", ".join(sorted({str(target.parent) for target in self._pending}))
        self._pending.clear()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(
                f"There is no space left in {folders} ({error.strerror}); nothing was written: make room, or "
                "name outputs elsewhere."
            ) from error


@contextmanager
def whole_file(final: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path; the file gets the name `final` if the block ends without an exception."""
    with OutputFiles() as out:
        yield out.path(final)


def file_name(label: str, otherwise: str) -> str:
    """A file name made of a label: other characters than letters, digits, ".", "+" and "-" become
    "_".

    otherwise: the name if nothing of the label remains.
    """
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", label).strip("_.") or otherwise
