"""Create, lock, resume, finish and clean up the folders of runs.

``<qsae dir>/runs/<run id>/`` appears in one rename, with a ``lock`` that its process holds until it ends,
however it ends. ``started.json`` marks a run as unfinished. It is removed once ``run.json`` is in place,
``latest`` points at the folder, and pytest has written its own files. So a run that is killed anywhere
before that loses nothing and can be resumed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout
from pydantic import ValidationError

from qsae_bench.errors import QsaeError
from qsae_bench.files import put
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.results import journal
from qsae_bench.results.document import RunDocument, new_run_id, now, text_of
from qsae_bench.results.journal import StoredCell
from qsae_bench.results.run_files import DOCUMENT, ROWS_DIR, cannot_write, point_latest
from qsae_bench.results.strict_model import StrictModel

LOCK = "lock"
STARTED = "started.json"

HALF_WRITTEN_SECONDS = 86_400.0
"""A half-written folder or link that is older belongs to a process that was killed."""
ABANDONED_RUN_SECONDS = 14 * 86_400.0
"""An unfinished run that was not resumed for this long is removed."""


class RunStart(StrictModel):
    """Hold what a run was started with: the content of ``started.json``."""

    run_id: str
    started: str
    command: str
    conditions: dict[str, str]
    """everything that changes a number or a verdict, by name: a resumed run must agree in each"""

    def difference(self, conditions: Mapping[str, str]) -> str:
        """Describe the first condition in which the two disagree; '' if there is none."""
        for name in {**self.conditions, **conditions}:
            then, here = self.conditions.get(name, "absent"), conditions.get(name, "absent")
            if then != here:
                return f"{name}: {then} then, {here} now"
        return ""


@dataclass
class RunFolder:
    """Hold an unfinished run, locked by this process."""

    path: Path
    start: RunStart
    _lock: FileLock
    finished: bool = False
    """whether ``run.json`` is in place"""

    @classmethod
    def create(cls, qsae_dir: Path, command: str, conditions: Mapping[str, str]) -> Self:
        """Create the folder of a new run, locked.

        Raises:
            OSError: The folder can't be written, or its file system has no locks.
        """
        runs = qsae_dir / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        start = RunStart(run_id=new_run_id(), started=now(), command=command, conditions=dict(conditions))
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=runs))
        lock = None
        try:
            put(part / STARTED, start.model_dump_json(indent=1).encode())
            lock = _locked(part)
            assert lock is not None
            part.chmod(0o755)
            os.replace(part, runs / start.run_id)
        except OSError:
            if lock is not None:
                lock.release()
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return cls(runs / start.run_id, start, lock)

    @classmethod
    def acquire(cls, path: Path) -> Self | None:
        """Lock a run's folder; return None if another process holds it, or it is no unfinished run.

        Raises:
            QsaeError: The folder can't be read or written.
        """
        try:
            lock = _locked(path)
            if lock is None:
                return None
            start = _read_start(path)
            if start is None:
                lock.release()
                return None
            for part in (*path.glob(".*"), *path.glob("*/.*")):  # half-written by the process that died
                shutil.rmtree(part) if part.is_dir() else part.unlink()
        except OSError as error:
            raise QsaeError(f"{path}: can't be resumed: {error.strerror or error}") from None
        return cls(path, start, lock)

    def finish(
        self, document: RunDocument, stored: Mapping[str, StoredCell], rows: Mapping[str, Measurement]
    ) -> Path:
        """Put ``run.json`` in place and point ``latest`` at the folder, which is returned.

        :meth:`finalize` comes last.

        Args:
            stored: The cells that are in the journal, by id. Their rows are in place already, unless they
                had to be written to another folder.
            rows: The measurements of the other cells, by id.

        Raises:
            QsaeError: The folder can't be written. The run stays unfinished and can be resumed.
        """
        try:
            (self.path / ROWS_DIR).mkdir(exist_ok=True)
            names: set[str] = set()
            for cell, one in stored.items():
                elsewhere = one.measurement() if one.folder != self.path else None
                if elsewhere is None:
                    names |= one.entry.files.keys()
                else:
                    names |= journal.put_rows(self.path, cell, elsewhere).keys()
            for cell, measurement in rows.items():
                names |= journal.put_rows(self.path, cell, measurement).keys()
            for path in (self.path / ROWS_DIR).iterdir():
                if path.name not in names:  # of a cell that was measured before a kill and skipped after it
                    path.unlink()
            put(self.path / DOCUMENT, text_of(document).encode("utf-8"))
        except OSError as error:
            raise cannot_write(self.path.parents[1], error) from None
        self.finished = True
        point_latest(self.path)
        return self.path

    def finalize(self) -> None:
        """Remove the journal and unlock the folder: nothing is left to resume."""
        with contextlib.suppress(OSError):
            _remove_journal(self.path)
        self.close()

    def discard(self) -> None:
        """Remove the folder of a run that measured nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Unlock the folder, so that another process can resume the run."""
        self._lock.release()


def unfinished_runs(qsae_dir: Path) -> Iterator[tuple[Path, RunStart]]:
    """Yield the unfinished runs of a directory, also those that still go on, the newest first.

    Raises:
        QsaeError: The directory can't be read.
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
            start = None if path.name.startswith(".") else _read_start(path)
            if start is not None:
                yield path, start


def resume_run(qsae_dir: Path, which: str, conditions: Mapping[str, str]) -> RunFolder:
    """Lock the unfinished run to resume.

    Args:
        which: The run's id or folder; '' for the newest that can be resumed.

    Raises:
        QsaeError: There is no such run, it is still running, or it was started under other conditions; the
            message says which.
    """
    named = Path(which) if "/" in which else qsae_dir / "runs" / which
    candidates = [
        (path, start) for path, start in unfinished_runs(qsae_dir) if not which or path.name == named.name
    ]
    if which and not candidates:
        with contextlib.suppress(OSError):
            start = _read_start(named)
            candidates = [(named, start)] if start is not None else []
    reasons = []
    for path, start in candidates:
        difference = start.difference(conditions)
        if difference:
            reasons.append(f"{path.name} was started otherwise ({difference}) by: {start.command}")
            continue
        folder = RunFolder.acquire(path)
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


def clean_up(qsae_dir: Path, conditions: Mapping[str, str]) -> list[str]:
    """Remove what killed runs left and what is of no use any more.

    That is a run without a finished cell, a run that was not resumed for two weeks, and the journal of a
    run that was killed after it was finished. Returns the ids of the runs that ``--resume`` can go on with
    under these conditions.
    """
    runs, resumable = qsae_dir / "runs", []
    for path in sorted(runs.iterdir()) if runs.is_dir() else ():
        with contextlib.suppress(OSError, QsaeError):  # another process uses it, or it isn't ours to write
            age = time.time() - path.stat().st_mtime
            if path.name.startswith("."):
                if age > HALF_WRITTEN_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
                continue
            start, cells = _read_start(path), journal.cell_ids(path)
            if (path / DOCUMENT).is_file():
                if start is not None or (path / LOCK).exists():
                    _with_lock(path, _remove_journal)
            elif start is not None and (not cells or age > ABANDONED_RUN_SECONDS):
                _with_lock(path, _remove_useless)
            elif start is not None and not start.difference(conditions):
                _with_lock(path, lambda path: resumable.append(path.name))
    for link in qsae_dir.glob(".latest-*"):
        with contextlib.suppress(OSError):
            if time.time() - link.lstat().st_mtime > HALF_WRITTEN_SECONDS:
                link.unlink()
    return resumable


def _locked(folder: Path) -> FileLock | None:
    """Lock a run's folder; None if another process has it, or if the folder is gone."""
    # a soft lock, which file systems without locks would get, outlives a process that is killed
    lock = FileLock(folder / LOCK, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except (Timeout, FileNotFoundError, NotADirectoryError):
        return None
    return lock


def _with_lock(path: Path, work: Callable[[Path], object]) -> None:
    lock = _locked(path)
    if lock is not None:
        try:
            work(path)
        finally:
            lock.release()


def _read_start(path: Path) -> RunStart | None:
    """Read what an unfinished run was started with; None if the folder is not such a run."""
    try:
        return RunStart.model_validate(json.loads((path / STARTED).read_bytes()))
    except (FileNotFoundError, NotADirectoryError, ValidationError, ValueError, RecursionError):
        return None


def _remove_useless(path: Path) -> None:
    """Remove an unfinished run, unless another process finished or resumed it before it was locked."""
    if _read_start(path) is None or (path / DOCUMENT).exists():
        return
    if not journal.cell_ids(path) or time.time() - path.stat().st_mtime > ABANDONED_RUN_SECONDS:
        shutil.rmtree(path)


def _remove_journal(path: Path) -> None:
    (path / STARTED).unlink(missing_ok=True)  # first: without it the rest is only litter
    shutil.rmtree(path / journal.JOURNAL_DIR, ignore_errors=True)
    for part in path.glob(".*"):
        shutil.rmtree(part, ignore_errors=True)
    (path / LOCK).unlink(missing_ok=True)
