"""A run's folder while the run goes on: who holds it, what a resumed run must share, and how it ends.

``<qsae dir>/runs/<run id>/`` appears in one rename, with a ``lock`` that its process holds until it ends,
however it ends. ``started.json`` marks it unfinished: it goes when ``run.json`` is there, ``latest`` points
at it, and pytest has written its own files. So a run that was killed anywhere before that can be resumed,
and loses nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from qsae_bench.errors import QsaeError
from qsae_bench.files import put
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.results import document as results
from qsae_bench.results import journal
from qsae_bench.results.journal import Kept

LOCK = "lock"
STARTED = "started.json"
DOCUMENT = "run.json"

PART_SECONDS = 86_400.0
"""what is half-written and older is of a process that was killed"""
ABANDONED_SECONDS = 14 * 86_400.0
"""an unfinished run that nobody resumed for so long is removed"""


class Started(BaseModel):
    """What a run was started with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    started: str
    command: str
    conditions: dict[str, str]
    """what changes a number or a verdict, by name: a resumed run must agree in each"""

    def difference(self, conditions: Mapping[str, str]) -> str:
        """The first in which the two disagree, in words; '' where there is none."""
        for name in {**self.conditions, **conditions}:
            then, now = self.conditions.get(name, "absent"), conditions.get(name, "absent")
            if then != now:
                return f"{name}: {then} then, {now} now"
        return ""


@dataclass
class RunFolder:
    """An unfinished run, held by this process and by those that it forks."""

    path: Path
    about: Started
    _lock: int
    finished: bool = False
    """``run.json`` is in place"""

    @classmethod
    def create(cls, qsae_dir: Path, command: str, conditions: Mapping[str, str]) -> Self:
        """A new run's folder.

        Raises:
            OSError: it can't be written, or its file system knows no locks.
        """
        runs = qsae_dir / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        about = Started(
            run_id=results.new_run_id(), started=results.now(), command=command, conditions=dict(conditions)
        )
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=runs))
        lock = None
        try:
            put(part / STARTED, about.model_dump_json(indent=1).encode())
            lock = os.open(part / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.chmod(0o755)
            os.replace(part, runs / about.run_id)
        except OSError:
            if lock is not None:
                os.close(lock)
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return cls(runs / about.run_id, about, lock)

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """An unfinished run's folder, None while another process holds it or where it is none.

        Raises:
            QsaeError: it can't be read or written.
        """
        try:
            lock = _hold(path)
            if lock is None:
                return None
            about = _started(path)
            if about is None:
                os.close(lock)
                return None
            for part in (*path.glob(".*"), *path.glob("*/.*")):  # half-written by the process that died
                shutil.rmtree(part) if part.is_dir() else part.unlink()
        except OSError as error:
            raise QsaeError(f"{path}: can't be resumed: {error.strerror or error}") from None
        return cls(path, about, lock)

    def finish(
        self, document: results.RunDocument, kept: Mapping[str, Kept], rows: Mapping[str, Measurement]
    ) -> Path:
        """Put ``run.json`` in place and point ``latest`` at the folder, which is still to be sealed.

        Args:
            document: of the whole run.
            kept: its cells that are in the journal, by id; their rows are in place unless another folder
                had to take them.
            rows: of its other cells.

        Raises:
            QsaeError: it can't be written; it stays unfinished, and can be resumed.
        """
        try:
            (self.path / journal.ROWS).mkdir(exist_ok=True)
            names = set()
            for cell, one in kept.items():
                elsewhere = one.measurement() if one.folder != self.path else None
                files = one.entry.files
                names |= set(files if elsewhere is None else journal.put_rows(self.path, cell, elsewhere))
            for cell, measurement in rows.items():
                names |= set(journal.put_rows(self.path, cell, measurement))
            for path in (self.path / journal.ROWS).iterdir():
                if path.name not in names:  # of a cell that was measured, and then not, after a kill
                    path.unlink()
            put(self.path / DOCUMENT, results.text_of(document).encode("utf-8"))
        except OSError as error:
            raise results.cannot_write(self.path.parents[1], error) from None
        self.finished = True
        results.point_latest(self.path)
        return self.path

    def seal(self) -> None:
        """Leave nothing of the journal, and let it go: nothing is left to be resumed."""
        with contextlib.suppress(OSError):
            _seal(self.path)
        self.close()

    def discard(self) -> None:
        """Remove it: nothing came of it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let another process have it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def unfinished(qsae_dir: Path) -> Iterator[tuple[Path, Started]]:
    """The unfinished runs of a directory, the newest first; those that go on are among them.

    Raises:
        QsaeError: the directory can't be read.
    """
    runs = qsae_dir / "runs"
    try:
        found = sorted(runs.iterdir(), reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise QsaeError(f"{runs}: can't be read: {error.strerror or error}") from None
    for path in found:
        with contextlib.suppress(OSError):
            about = None if path.name.startswith(".") else _started(path)
            if about is not None:
                yield path, about


def resumed(qsae_dir: Path, which: str, conditions: Mapping[str, str]) -> RunFolder:
    """The run that ``which`` names, by id or folder, or with '' the newest that can be resumed.

    Raises:
        QsaeError: there is none, it still runs, or was started otherwise; says what differs.
    """
    named = Path(which) if "/" in which else qsae_dir / "runs" / which
    every = [(path, about) for path, about in unfinished(qsae_dir) if not which or path.name == named.name]
    if which and not every:
        with contextlib.suppress(OSError):
            about = _started(named)
            every = [(named, about)] if about is not None else []
    reasons = []
    for path, about in every:
        difference = about.difference(conditions)
        if difference:
            reasons.append(f"{path.name} was started otherwise ({difference}) by: {about.command}")
            continue
        folder = RunFolder.take(path)
        if folder is not None:
            return folder
        reasons.append(f"{path.name} still runs")
    if reasons:
        raise QsaeError(f"--resume: {reasons[0]}")
    if which and os.path.isfile(named / DOCUMENT):  # os.path: False also where it can't be looked up
        raise QsaeError(f"--resume: {which} is finished: qsae-bench show {named}")
    if which:
        raise QsaeError(
            f"--resume: no unfinished run {which!r} in {qsae_dir / 'runs'}; --resume alone takes the newest"
        )
    raise QsaeError(f"--resume: no unfinished run in {qsae_dir / 'runs'}; start one without --resume")


def tidy(qsae_dir: Path, conditions: Mapping[str, str]) -> list[str]:
    """Remove what killed runs left that is of no more use; names of those that ``--resume`` would go on.

    Of no use is a run without a finished cell, one that nobody resumed for two weeks, and the journal of
    one that was killed after it was finished.
    """
    runs, found = qsae_dir / "runs", []
    for path in sorted(runs.iterdir()) if runs.is_dir() else ():
        with contextlib.suppress(OSError, QsaeError):  # another process is at it, or it isn't ours to write
            age = time.time() - path.stat().st_mtime
            if path.name.startswith("."):
                if age > PART_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
                continue
            about, kept = _started(path), journal.cells(path)
            if (path / DOCUMENT).is_file():
                if about is not None or (path / LOCK).exists():
                    _with_lock(path, _seal)
            elif about is not None and (not kept or age > ABANDONED_SECONDS):
                _with_lock(path, _remove)
            elif about is not None and not about.difference(conditions):
                _with_lock(path, lambda path: found.append(path.name))
    for link in qsae_dir.glob(".latest-*"):
        with contextlib.suppress(OSError):
            if time.time() - link.lstat().st_mtime > PART_SECONDS:
                link.unlink()
    return found


def _with_lock(path: Path, work: Callable[[Path], object]) -> None:
    lock = _hold(path)
    if lock is not None:
        try:
            work(path)
        finally:
            os.close(lock)


def _hold(path: Path) -> int | None:
    """The lock of a run's folder as a descriptor; None where another process has it, or the run is gone."""
    try:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(path / LOCK)):  # else it was finished meanwhile
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _started(path: Path) -> Started | None:
    """What an unfinished run was started with; None where the folder is no such run."""
    try:
        return Started.model_validate(json.loads((path / STARTED).read_bytes()))
    except (FileNotFoundError, NotADirectoryError, ValidationError, ValueError, RecursionError):
        return None


def _remove(path: Path) -> None:
    """An unfinished run, unless another process finished it or went on with it before the lock was ours."""
    if _started(path) is None or (path / DOCUMENT).exists():
        return
    if not journal.cells(path) or time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
        shutil.rmtree(path)


def _seal(path: Path) -> None:
    (path / STARTED).unlink(missing_ok=True)  # first: without it the rest is only litter
    shutil.rmtree(path / journal.FOLDER, ignore_errors=True)
    for part in path.glob(".*"):
        shutil.rmtree(part, ignore_errors=True)
    (path / LOCK).unlink(missing_ok=True)
