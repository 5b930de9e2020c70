"""Worker processes on this machine: one a GPU, or a share of the CPU.

Each place has a pool of one process, so that a process that dies takes one task with it, and it is known
which. A new one starts with the next task.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qsae_bench.errors import QsaeError, plain
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.redaction import mask_passwords
from qsae_bench.results.document import SHARED_DEVICE
from qsae_bench.run.child_process import die_with, fate_of
from qsae_bench.run.workers.engine import Lost, Overdue
from qsae_bench.run.workers.tasks import Task, TaskResult
from qsae_bench.run.workers.worker import begin, do

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from qsae_bench.run.session import SessionOptions

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
    if (told := os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]).isdigit():
        threads = min(threads, max(1, int(told)))
    if not gpus:
        return [Share((), threads, alone=workers == 1)] * workers
    if workers <= len(gpus):
        each = len(gpus) // workers
        return [Share(gpus[k * each : (k + 1) * each], threads, alone=True) for k in range(workers)]
    dealt = [gpus[k % len(gpus)] for k in range(workers)]
    return [Share((one,), threads, alone=dealt.count(one) == 1) for one in dealt]


class LocalEngine:
    """See :class:`qsae_bench.run.workers.engine.Engine`."""

    def __init__(
        self, options: SessionOptions, split: list[Share], timeout_seconds: float | None = None
    ) -> None:
        """``timeout_seconds``: what takes a worker longer ends as its cell's failure."""
        self.places, self.keeps = len(split), True
        what, each = ("GPUs", len(split[0].gpus)) if split[0].gpus else ("threads", split[0].threads)
        self.about = f"local, {len(split)} worker{'s' * (len(split) > 1)}, {what} each: {each}"
        self._logs = tempfile.TemporaryDirectory(prefix="qsae-workers-", ignore_cleanup_errors=True)
        if options.reference_store is None:  # for this run only, and for all its workers
            options = replace(options, reference_store=str(Path(self._logs.name, "references")))
        self._places = [
            _Place(replace(options, beside=beside), one, Path(self._logs.name, str(k)), timeout_seconds)
            for k, one in enumerate(split)
            for beside in [() if one.alone else (SHARED_DEVICE,)]
        ]

    @property
    def start_seconds(self) -> float:
        return max((place.start_seconds for place in self._places), default=0.0)

    def run(self, place: int, task: Task, reference: CellResult | QsaeError | None) -> TaskResult:
        return self._places[place].run(task, reference)

    def close(self) -> None:
        for place in self._places:
            place.close()
        self._logs.cleanup()


class _Place:
    """One worker process after another."""

    def __init__(
        self, options: SessionOptions, share: Share, log: Path, timeout_seconds: float | None
    ) -> None:
        self._options, self._share, self._log = options, share, log
        self._timeout_seconds = timeout_seconds
        self._run = secrets.token_hex(8)
        self._pool: ProcessPoolExecutor | None = None
        self._process: BaseProcess | None = None
        self._closed = False
        self.start_seconds = 0.0

    def run(self, task: Task, reference: CellResult | QsaeError | None) -> TaskResult:
        try:
            pool = self._pool or self._start()
            asked = pool.submit(do, self._run, self._options, task, reference)
            outcome = asked.result(self._timeout_seconds)
        except BrokenProcessPool:
            raise Lost(self._fate()) from None
        except TimeoutError:
            self._end()
            raise Overdue(f"took longer than {self._timeout_seconds:g} s") from None
        if outcome.unusable:
            self._end()
        return outcome

    def close(self) -> None:
        with _ENVIRONMENT:
            self._closed = True
        self._end()

    def _end(self) -> None:
        """Kill the process, if there is one, and wait for that; the next task starts another."""
        pool, process, self._pool, self._process = self._pool, self._process, None, None
        if process is not None:
            process.kill()
            process.join(DYING_SECONDS)
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        began = time.monotonic()
        self._log.unlink(missing_ok=True)
        arguments = (str(self._log), os.getpid(), self._run, self._options)
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _be_worker, arguments)
        with _ENVIRONMENT:  # libraries read these as they are imported: before a line of ours runs there
            if self._closed:
                raise Lost("the run has ended")
            others = set(multiprocessing.active_children())
            with _environment(self._share):
                started = pool.submit(os.getpid)
            self._process = next(iter(set(multiprocessing.active_children()) - others), None)
        self._pool = pool
        started.result()
        self.start_seconds = time.monotonic() - began
        return pool

    def _fate(self) -> str:
        """How the process ended, and the last that it wrote."""
        process = self._process
        fate = "its process could not be started"
        if process is not None:
            until = time.monotonic() + DYING_SECONDS
            # not join: it gives up where the pool's own thread has just waited for the process
            while (code := process.exitcode) is None and time.monotonic() < until:
                time.sleep(0.05)
            fate = fate_of(code) if code is not None else "its process does not answer"
        self._end()
        with contextlib.suppress(OSError), self._log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 10 * LAST))
            lines = log.read().decode(errors="replace").splitlines()
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            fate += f"; the last that it wrote: {mask_passwords(plain(last[:LAST]))}" if last else ""
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


def _be_worker(log: str, parent: int, run: str, options: SessionOptions) -> None:
    """First in a new process."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's: it ends its workers
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(written, stream)
    with contextlib.suppress(QsaeError):  # the first task says it
        begin(run, options)
