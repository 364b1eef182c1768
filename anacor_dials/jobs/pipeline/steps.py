"""The steps of a pipeline: commands that are run once.

A step is a command that reads files and writes others into a folder of its own. The working folder
holds these folders and ``steps.json``, a record of every finished step: its command, the versions
of the programs, and the SHA-256 of its inputs and outputs. A step is run again only if one of these
has changed. Therefore a run that was stopped continues where it stopped, and after a change only
the steps that depend on it are repeated.

A step runs in a folder of another name, which is renamed when all outputs are there. So the folders
of steps are always complete. If a step fails, only its log is kept, as ``STEP.failed.log``.

Where a step runs is the matter of :mod:`anacor_dials.jobs.pipeline.workers`: on this machine, or on
a worker of a cluster that sees the same folders. Every attempt has a folder of its own, so that
what is left of an attempt whose worker was lost can never be taken for a result.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from anacor_dials.diffraction.commands import end_commands, last_words, run_command
from anacor_dials.sample.output_files import whole_file

logger = logging.getLogger("dials.anacor_dials.jobs.pipeline.steps")

RECORD = "steps.json"
PRINTED = "printed.log"
RESULTS = "DataFiles"
SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system still in use (FAT) ticks in 2 s


class StepError(ValueError):
    """A step that failed: its reason, and the log that was kept."""

    def __init__(self, reason: str, log: Path | None = None) -> None:
        super().__init__(reason)
        self.log = log

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.log)  # the log comes along from another process


@dataclass(frozen=True)
class Step:
    """A command and what it depends on.

    Parameters
    ----------
    name : str
        Of its folder; parts are separated by slashes.
    command : tuple of str
        Program and arguments, with absolute paths. It is run in the folder of the step.
    inputs : tuple of Path
        The files whose content decides the result.
    outputs : tuple of str
        The names of files that a successful run leaves.
    free : tuple of str
        Further arguments that do not change the result, such as the number of processes.
    perform : callable, optional
        A function of the folder that is called instead of the command. It may raise ValueError; if
        the error has an attribute ``log``, that file is kept.
    by_hand : bool
        Whether the command can be repeated by hand. If not, it only says in words what is done.
    versions : mapping
        {program: version} of what this step alone runs, besides the programs of all steps.
    """

    name: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    outputs: tuple[str, ...]
    free: tuple[str, ...] = ()
    perform: Callable[[Path], None] | None = field(default=None, repr=False, compare=False)
    by_hand: bool = True
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.outputs:
            raise ValueError(
                f"The step {self.name} has no outputs; then nothing shows that it ran."
            )


@dataclass(frozen=True)
class FinishedStep:
    """What a step left, and how it was made.

    Attributes
    ----------
    name, folder, command, free
        As of :class:`Step`.
    versions : mapping
        {program: version}.
    inputs, outputs : mapping
        {path or name: SHA-256}.
    seconds : float
    finished : str
        When, in UTC.
    why : str or None
        Why it was run now; None if it was done before.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    free: tuple[str, ...]
    versions: Mapping[str, str]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    seconds: float
    finished: str
    why: str | None = None

    @property
    def command_line(self) -> str:
        """The command as it is typed."""
        return shlex.join((*self.command, *self.free))

    @property
    def log(self) -> Path | None:
        """What the command printed; None for what is no command."""
        path = self.folder / PRINTED
        return path if path.is_file() else None

    def path(self, output: str) -> Path:
        """The path of an output."""
        return self.folder / output

    def as_dict(self) -> dict[str, Any]:
        """The record as it stands in steps.json."""
        return {
            "command": list(self.command),
            "free": list(self.free),
            "versions": dict(self.versions),
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "seconds": self.seconds,
            "finished": self.finished,
        }


class Workers(Protocol):
    """Who carries out the steps: see :mod:`anacor_dials.jobs.pipeline.workers`."""

    def share(self, n: int, cores: int, memory_bytes: float = 0.0) -> tuple[int, int]:
        """(how many of n things run side by side, cores of each).

        Parameters
        ----------
        n : int
        cores : int
            Of this machine, or of each worker of a cluster.
        memory_bytes : float
            That each needs.
        """
        ...

    def carry_out(self, step: Step, folder: Path) -> Path:
        """The folder in `folder` that holds what the step wrote. Raises StepError."""
        ...

    def stop(self) -> None:
        """No further step begins, and nobody waits for those that run."""
        ...


class CallingThread:
    """Steps are carried out by the thread that runs them."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._at_work: list[Step] = []

    def share(self, n: int, cores: int, memory_bytes: float = 0.0) -> tuple[int, int]:
        """See :class:`Workers`."""
        at_a_time = max(1, min(n, cores))
        return at_a_time, max(1, cores // at_a_time)

    def carry_out(self, step: Step, folder: Path) -> Path:
        """See :class:`Workers`."""
        if self._stopped.is_set():
            raise CancelledError
        self._at_work.append(step)
        try:
            return attempt(step, folder)
        except StepError:
            if self._stopped.is_set():  # it did not fail by itself
                raise CancelledError from None
            raise
        finally:
            self._at_work.pop()

    def stop(self) -> None:
        """No further step begins, and the commands of those that run are ended.

        A step may be about to begin its command, so commands are ended until no step is at work.
        """
        self._stopped.set()
        end_commands()
        while self._at_work:
            time.sleep(0.1)
            end_commands()


def attempt(step: Step, folder: Path) -> Path:
    """The folder, new and in `folder`, in which the step was carried out.

    Raises StepError with the reason; its log, if there is one, lies in that folder.
    """
    place = folder / secrets.token_hex(4)
    place.mkdir()
    try:
        if step.perform is None:
            run_step_command((*step.command, *step.free), place)
        else:
            step.perform(place)
    except ValueError as error:
        log = getattr(error, "log", None)
        raise StepError(str(error), None if log is None else Path(log)) from None
    return place


class WorkingFolder:
    """The folder of a pipeline. It runs the steps, and knows which of them are done.

    Steps may be run from several threads at once.

    Parameters
    ----------
    path : path
    versions : mapping
        {program: version} of all steps. A step that was made with other versions is made again.
    redo : sequence of str
        Names of steps that are made again in any case.
    tell : callable
        Called with each line for the user.
    workers : Workers, optional
        Who carries out the steps; the calling thread if not given.

    Raises
    ------
    ValueError
        If the folder holds files that are not of a pipeline, or cannot be written to.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        versions: Mapping[str, str],
        redo: Sequence[str] = (),
        tell: Callable[[str], None] = logger.info,
        workers: Workers | None = None,
    ) -> None:
        self.path = Path(path).absolute()
        self.versions = dict(versions)
        self.redo = set(redo)
        self.tell = tell
        self.workers = workers or CallingThread()
        self._finished: dict[str, FinishedStep] = {}
        self._lock = threading.RLock()
        self._records: dict[str, dict[str, Any]] = {}
        self._hashes: dict[str, list[Any]] = {}
        self._published: dict[str, str] = {}  # of earlier runs and of this one: SHA-256 by name
        self._results: set[str] = set()  # of this one
        self._open()

    def _open(self) -> None:
        record = self.path / RECORD
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; name a folder as output.directory.")
        if record.is_file():
            try:
                content = json.loads(record.read_text(encoding="utf-8"))
                self._records, self._hashes = content["steps"], content["hashes"]
                self._published = content["results"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{record} is not readable as the record of a run; delete {self.path} to begin "
                    "anew, or name another output.directory."
                ) from None
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(
                f"{self.path} holds files of something else (it has no {RECORD}); name another "
                "output.directory."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise ValueError(
                f"Cannot write to the folder {self.path} ({error.strerror}); name another "
                "output.directory."
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else works in the folder meanwhile. Raises ValueError where somebody does."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ValueError(
                f"Another run works in {self.path}; wait for it, or name another output.directory."
            ) from None
        except OSError as error:  # file systems without locks
            logger.debug("%s cannot be locked: %s", self.path, error)
        try:
            yield
        finally:
            os.close(handle)

    # ---- running ---------------------------------------------------------------------------------

    def run(self, step: Step) -> FinishedStep:
        """The step's outputs, made now or before. Raises StepError with the reason and the log."""
        done = self._run(step)
        with self._lock:
            self._finished.pop(step.name, None)
            self._finished[step.name] = done
        return done

    @property
    def finished(self) -> list[FinishedStep]:
        """The steps that were run, or found done, in this order."""
        with self._lock:
            return list(self._finished.values())

    def put_in_order(self, folders: Sequence[str]) -> None:
        """Sorts the finished steps: those in these folders one folder after the other.

        Steps in no folder come first, those in other folders last.
        """
        place = {name: i for i, name in enumerate(folders)}

        def key(step: FinishedStep) -> int:
            folder, slash, _ = step.name.partition("/")
            return place.get(folder, len(place)) if slash else -1

        with self._lock:
            in_order = sorted(self._finished.values(), key=key)
            self._finished = {step.name: step for step in in_order}

    def _run(self, step: Step) -> FinishedStep:
        inputs = {str(path): self._hash(path) for path in step.inputs}
        folder = self.path / step.name
        why = self._why_to_run(step, inputs)
        if why is None:
            done = self._from_record(step, folder)
            self.tell(f"\n{step.name}: done before ({done.finished})")
        else:
            said = (
                shlex.join((*step.command, *step.free)) if step.by_hand else " ".join(step.command)
            )
            self.tell(f"\n{step.name} ({why})\n  {said}")
            done = replace(self._make(step, inputs, folder), why=why)
            self.tell(f"  {step.name}: {done.seconds:.0f} s")
        return done

    def run_all(self, steps: Sequence[Step], at_a_time: int = 1) -> list[FinishedStep | StepError]:
        """The outcomes of steps that do not depend on each other, in their order."""

        def outcome(step: Step) -> FinishedStep | StepError:
            try:
                return self._run(step)
            except StepError as error:
                self.tell(f"  {step.name} failed: {error}")
                return error

        with ThreadPoolExecutor(max(1, min(at_a_time, len(steps)))) as executor:
            try:
                outcomes = list(executor.map(outcome, steps))
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise
        with self._lock:
            self._finished |= {o.name: o for o in outcomes if isinstance(o, FinishedStep)}
        return outcomes

    def _why_to_run(self, step: Step, inputs: Mapping[str, str]) -> str | None:
        """The reason for which a step has to be run; None where its record is good.

        Raises ValueError where one of its outputs was changed by somebody else: that is not
        overwritten.
        """
        record = self._records.get(step.name)
        if record is None:
            return "not done yet"
        folder = self.path / step.name
        changed = [
            folder / name
            for name, digest in record["outputs"].items()
            if (folder / name).is_file() and self._hash(folder / name) != digest
        ]
        if changed:
            raise ValueError(
                f"{changed[0]} was changed after it was made, and is not overwritten: copy it elsewhere "
                "and give it as input, or delete it to have it made again."
            )
        if step.name in self.redo:
            return "asked for"
        if record["command"] != list(step.command):
            return "other parameters"
        if record["versions"] != self.versions | dict(step.versions):
            return "other program versions"
        if missing := [name for name in record["outputs"] if not (folder / name).is_file()]:
            return f"{missing[0]} is gone"
        if set(record["inputs"]) != set(inputs):
            return "other inputs"
        if other := [path for path, digest in inputs.items() if record["inputs"][path] != digest]:
            return f"{other[0]} has changed"
        return None

    def _from_record(self, step: Step, folder: Path) -> FinishedStep:
        record = self._records[step.name]
        return FinishedStep(
            name=step.name,
            folder=folder,
            command=tuple(record["command"]),
            free=tuple(record["free"]),
            versions=record["versions"],
            inputs=record["inputs"],
            outputs=record["outputs"],
            seconds=record["seconds"],
            finished=record["finished"],
        )

    def _make(self, step: Step, inputs: Mapping[str, str], folder: Path) -> FinishedStep:
        attempts = folder.with_name(f".{folder.name}.running")
        failed = folder.with_name(f"{folder.name}.failed.log")
        with self._lock:
            self._records.pop(step.name, None)
            self._write()
        for old in (folder, attempts):  # outdated, or left by a run that was killed
            shutil.rmtree(old, ignore_errors=True)
        failed.unlink(missing_ok=True)
        attempts.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        try:
            try:
                made = self.workers.carry_out(step, attempts)
                missing = [name for name in step.outputs if not (made / name).is_file()]
                if missing:
                    raise StepError(
                        f"{step.command[0]} ended without an error but wrote no {missing[0]}",
                        made / PRINTED,
                    )
            except StepError as error:
                if error.log is not None and error.log.is_file():
                    os.replace(error.log, failed)
                    raise StepError(f"{str(error).rstrip('.')}; log: {failed}", failed) from None
                raise StepError(str(error)) from None
            os.replace(made, folder)
        finally:
            shutil.rmtree(attempts, ignore_errors=True)
        done = FinishedStep(
            name=step.name,
            folder=folder,
            command=step.command,
            free=step.free,
            versions=self.versions | dict(step.versions),
            inputs=dict(inputs),
            outputs={name: self._hash(folder / name) for name in step.outputs},
            seconds=round(time.monotonic() - start, 1),
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        with self._lock:
            self._records[step.name] = done.as_dict()
            self._write()
        return done

    # ---- results ---------------------------------------------------------------------------------

    def publish(self, file: Path, name: str) -> Path:
        """A copy of a step's output in the folder DataFiles, under its final name.

        Raises ValueError where what stands there was changed by somebody else.
        """
        final = self.path / RESULTS / name
        digest = self._hash(file)
        if final.is_file() and self._hash(final) not in (digest, self._published.get(name)):
            raise ValueError(
                f"{final} was changed after it was made, and is not overwritten; move it elsewhere."
            )
        final.parent.mkdir(exist_ok=True)
        with whole_file(final) as path:
            shutil.copyfile(file, path)
        with self._lock:
            self._results.add(name)
            self._published[name] = digest
            self._write()
        return final

    def remove_old_results(self) -> None:
        """Removes what only earlier runs published, so that results of two runs are never mixed.

        What was changed since stays.
        """
        for name in set(self._published) - self._results:
            path = self.path / RESULTS / name
            if path.is_file() and self._hash(path) == self._published[name]:
                self.tell(f"{path} is of an earlier run with other parameters, and is removed")
                path.unlink()
            del self._published[name]
        self._write()

    # ---- the record ------------------------------------------------------------------------------

    def _hash(self, path: Path) -> str:
        """SHA-256 of a file; read again only where its size or time have changed.

        Clocks of file systems tick in steps, so that a file that was written a moment ago may be
        written once more without a change of its time: its hash is not kept.
        """
        now = time.time_ns()
        try:
            status = path.stat()
        except OSError:
            raise ValueError(f"There is no file {path}.") from None
        known = self._hashes.get(str(path))
        if known is not None and known[:2] == [status.st_size, status.st_mtime_ns]:
            return str(known[2])
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        with self._lock:
            if abs(now - status.st_mtime_ns) < SETTLED_NS:
                self._hashes.pop(str(path), None)
            else:
                self._hashes[str(path)] = [status.st_size, status.st_mtime_ns, digest.hexdigest()]
        return digest.hexdigest()

    def _write(self) -> None:
        with self._lock, whole_file(self.path / RECORD) as path:
            content = {
                "steps": self._records,
                "hashes": self._hashes,
                "results": self._published,
            }
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def run_step_command(command: Sequence[str], folder: Path) -> None:
    """Runs a command in a folder; what it prints goes to printed.log there, line by line.

    Raises StepError with the command's own last words where it fails.
    """
    log = folder / PRINTED
    status, printed = run_command(command, folder, log=log)
    if status:
        raise StepError(f"{command[0]} ended with status {status}: {last_words(printed)}", log)
