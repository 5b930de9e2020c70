"""Worker processes on this machine: one a GPU, or a share of the CPU.

Each place has a pool of one process, so that a process that dies takes one task with it, and it is known
which. A new one starts with the next task.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qsae_bench.engines import Lost, Overdue
from qsae_bench.errors import QsaeError
from qsae_bench.isolation import die_with, fate_of
from qsae_bench.measured import Measured
from qsae_bench.tasks import Outcome, Task
from qsae_bench.timing import BESIDE
from qsae_bench.worker import do

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from qsae_bench.books import Options

RUN = "this one"
"""a worker process serves one run"""
DYING_SECONDS = 10.0
LAST = 300
"""characters of a dead worker's last line that are told"""


@dataclass(frozen=True)
class Share:
    """What of the machine is one worker's."""

    gpus: tuple[str, ...]
    """as ``CUDA_VISIBLE_DEVICES`` names them; none for a CPU worker"""
    threads: int
    alone: bool
    """no other worker has the same GPU; never on a CPU that is shared"""


def shares(workers: int, gpus: tuple[str, ...], cores: int) -> list[Share]:
    """The machine split between workers: GPUs dealt out evenly, cores divided, OMP_NUM_THREADS at most."""
    threads = max(1, cores // workers)
    if (told := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        threads = min(threads, max(1, int(told)))
    if not gpus:
        return [Share((), threads, alone=workers == 1)] * workers
    if workers <= len(gpus):
        each = len(gpus) // workers
        return [Share(gpus[k * each : (k + 1) * each], threads, alone=True) for k in range(workers)]
    dealt = [gpus[k % len(gpus)] for k in range(workers)]
    return [Share((one,), threads, alone=dealt.count(one) == 1) for one in dealt]


class LocalEngine:
    """See :class:`qsae_bench.engines.Engine`."""

    def __init__(self, options: Options, split: list[Share], timeout_seconds: float | None = None) -> None:
        """``timeout_seconds``: what takes a worker longer ends as its cell's failure."""
        self.places = len(split)
        what, each = ("GPUs", len(split[0].gpus)) if split[0].gpus else ("threads", split[0].threads)
        self.about = f"local, {len(split)} worker{'s' * (len(split) > 1)}, {what} each: {each}"
        self.beside: tuple[str, ...] = () if all(one.alone for one in split) else (BESIDE,)
        self._logs = tempfile.TemporaryDirectory(prefix="qsae-workers-")
        if options.reference_store is None:  # for this run only, and for all its workers
            options = replace(options, reference_store=str(Path(self._logs.name, "references")))
        self._places = [
            _Place(replace(options, beside=beside), one, Path(self._logs.name, str(k)), timeout_seconds)
            for k, one in enumerate(split)
            for beside in [() if one.alone else (BESIDE,)]
        ]

    def run(self, place: int, task: Task, reference: Measured | QsaeError | None) -> Outcome:
        return self._places[place].run(task, reference)

    def close(self) -> None:
        for place in self._places:
            place.close()
        for process in multiprocessing.active_children():  # one that has not begun is no place's yet
            process.kill()
        self._logs.cleanup()


class _Place:
    """One worker process after another."""

    def __init__(self, options: Options, share: Share, log: Path, timeout_seconds: float | None) -> None:
        self._options, self._share, self._log = options, share, log
        self._timeout_seconds = timeout_seconds
        self._pool: ProcessPoolExecutor | None = None
        self._process: BaseProcess | None = None
        self._closed = False

    def run(self, task: Task, reference: Measured | QsaeError | None) -> Outcome:
        try:
            if self._pool is None:
                self._start()
            assert self._pool is not None
            return self._pool.submit(do, RUN, self._options, task, reference).result(self._timeout_seconds)
        except BrokenProcessPool:
            raise Lost(self._fate()) from None
        except TimeoutError:
            assert self._process is not None
            self._process.kill()
            self._fate()
            raise Overdue(f"took longer than {self._timeout_seconds:g} s") from None

    def close(self) -> None:
        with _ENVIRONMENT:
            self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        self._log.unlink(missing_ok=True)
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, spawn, _be_worker, (str(self._log), os.getpid()))
        with _ENVIRONMENT:  # libraries read these as they are imported: before a line of ours runs there
            if self._closed:
                raise Lost("the run has ended")
            self._pool = pool
            with _environment(self._share):
                started = pool.submit(os.getpid)
        pid = started.result()
        self._process = next(p for p in multiprocessing.active_children() if p.pid == pid)

    def _fate(self) -> str:
        """How the process ended, and the last that it wrote."""
        pool, process, self._pool, self._process = self._pool, self._process, None, None
        fate = "its process could not be started"
        if process is not None:
            process.join(DYING_SECONDS)
            fate = (
                fate_of(process.exitcode) if process.exitcode is not None else "its process does not answer"
            )
        if pool is not None:
            pool.shutdown(wait=False)
        with contextlib.suppress(OSError):
            written = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(written) if line.strip()), "")
            fate += f"; the last that it wrote: {last[:LAST]}" if last else ""
        return fate


_ENVIRONMENT = threading.Lock()


@contextlib.contextmanager
def _environment(share: Share) -> Iterator[None]:
    """What a process that starts now inherits."""
    fresh = {"OMP_NUM_THREADS": str(share.threads)}
    if share.gpus:
        fresh["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    before = {name: os.environ.get(name) for name in fresh}
    os.environ.update(fresh)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _be_worker(log: str, parent: int) -> None:
    """First in a new process."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's: it ends its workers
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(written, stream)
