"""How far a long step is: a bar on a terminal, else a line in the log at every tenth.

All long steps tell it through this module, so that a log of a batch job shows each of them alike.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

logger = logging.getLogger("dials.anacor_dials.sample.progress")

# seconds: shorter steps are not spoken of in the log, by what they have taken so far
LEAST_SECONDS = 20.0

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class _SizedIterable(Sized, Iterable[T_co], Protocol[T_co]):
    """What has a length and can be gone through."""


class Progress(AbstractContextManager["Progress"]):
    """The progress of one step: ``with Progress(n, "Reconstructing") as p: ... p.update(k)``.

    Parameters
    ----------
    total : int
        How much there is to do, in any unit.
    what : str
        What is done.
    unit : str
        What the bar counts; percent alone if it is empty.
    bar : bool
        Whether a bar is shown if there is a terminal.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        total: int,
        what: str,
        unit: str = "",
        bar: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.what = total, what
        self._clock, self._start = clock, clock()
        self._done = self._tenths = 0
        form = None if unit else "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        self._bar: Any = None
        if bar and sys.stderr.isatty():
            self._bar = tqdm(
                total=total, desc=what, unit=unit or "it", bar_format=form, leave=False
            )

    def update(self, done: int = 1, note: str = "") -> None:
        """So much more is done; note: is shown beside the bar, or in the line."""
        self._done += done
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note)
            self._bar.update(done)
            return
        tenths = 10 * self._done // self.total if self.total else 0
        if tenths <= self._tenths:
            return
        self._tenths = tenths
        seconds = self._clock() - self._start
        if seconds * self.total >= LEAST_SECONDS * self._done:
            said = f", {note}" if note else ""
            logger.info("  %s: %d %% after %.0f s%s", self.what, 10 * tenths, seconds, said)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def followed(steps: _SizedIterable[T], what: str, unit: str = "", bar: bool = True) -> Iterator[T]:
    """The steps one after the other, with their progress.

    Parameters
    ----------
    steps : sequence
    what : str
        What is done.
    unit : str
        What the bar counts.
    bar : bool
        Whether a bar is shown if there is a terminal.
    """
    with Progress(len(steps), what, unit, bar) as progress:
        for step in steps:
            yield step
            progress.update()
