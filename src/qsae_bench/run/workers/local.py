"""Run tasks in worker processes of this machine: one per GPU, or each with a part of the CPU's cores.

Each place has a pool of one process: if the process dies, exactly one task is affected, and it is known
which. The next task starts a new process.
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
from qsae_bench.results.cell_facts import SHARED_DEVICE
from qsae_bench.run.child_process import describe_exit, die_with_parent
from qsae_bench.run.workers.dispatch import TaskTimedOut, WorkerLost
from qsae_bench.run.workers.tasks import Task, TaskResult
from qsae_bench.run.workers.worker import run_task, worker_of

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from qsae_bench.run.session import SessionOptions

EXIT_SECONDS = 10.0
"""for a dead or killed worker's process to end"""
LAST_LINE_CHARACTERS = 300
"""of a dead worker's last line that are shown"""


@dataclass(frozen=True)
class WorkerResources:
    """Hold the part of the machine that belongs to one worker."""

    gpus: tuple[str, ...]
    """as ``CUDA_VISIBLE_DEVICES`` names them; none for a CPU worker"""
    threads: int
    alone: bool
    """no other worker uses the same GPU, or the CPU"""


def split_machine(workers: int, gpus: tuple[str, ...], cores: int) -> list[WorkerResources]:
    """Split the machine between workers: GPUs evenly, cores evenly but at most OMP_NUM_THREADS each."""
    threads = max(1, cores // workers)
    if (given := os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]).isdigit():
        threads = min(threads, max(1, int(given)))
    if not gpus:
        return [WorkerResources((), threads, alone=workers == 1)] * workers
    if workers <= len(gpus):
        each = len(gpus) // workers
        parts = [gpus[k * each : (k + 1) * each] for k in range(workers)]
        return [WorkerResources(part, threads, alone=True) for part in parts]
    dealt = [gpus[k % len(gpus)] for k in range(workers)]
    return [WorkerResources((one,), threads, alone=dealt.count(one) == 1) for one in dealt]


class LocalEngine:
    """Run tasks in processes on this machine: see :class:`qsae_bench.run.workers.dispatch.Engine`."""

    def __init__(
        self, options: SessionOptions, split: list[WorkerResources], timeout_seconds: float | None = None
    ) -> None:
        """Take the machine's parts, one per worker; a task that takes longer than the limit fails."""
        self.places = len(split)
        what, each = ("GPUs", len(split[0].gpus)) if split[0].gpus else ("threads", split[0].threads)
        self.about = f"local, {len(split)} worker{'s' * (len(split) > 1)}, {what} each: {each}"
        self._logs = tempfile.TemporaryDirectory(prefix="qsae-workers-", ignore_cleanup_errors=True)
        if options.reference_store is None:  # for this run only, and for all its workers
            options = replace(options, reference_store=str(Path(self._logs.name, "references")))
        self._places = [
            _WorkerPlace(
                replace(options, timing_flags=flags), one, Path(self._logs.name, str(k)), timeout_seconds
            )
            for k, one in enumerate(split)
            for flags in [() if one.alone else (SHARED_DEVICE,)]
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


class _WorkerPlace:
    """Has one worker process at a time; a new one replaces a dead one."""

    def __init__(
        self, options: SessionOptions, resources: WorkerResources, log: Path, timeout_seconds: float | None
    ) -> None:
        self._options, self._resources, self._log = options, resources, log
        self._timeout_seconds = timeout_seconds
        self._run = secrets.token_hex(8)
        self._pool: ProcessPoolExecutor | None = None
        self._process: BaseProcess | None = None
        self._closed = False
        self.start_seconds = 0.0

    def run(self, task: Task, reference: CellResult | QsaeError | None) -> TaskResult:
        try:
            pool = self._pool or self._start()
            submitted = pool.submit(run_task, self._run, self._options, task, reference)
            result = submitted.result(self._timeout_seconds)
        except BrokenProcessPool:
            raise WorkerLost(self._describe_end()) from None
        except TimeoutError:
            self._kill()
            raise TaskTimedOut(f"took longer than {self._timeout_seconds:g} s") from None
        if result.unusable:
            self._kill()
        return result

    def close(self) -> None:
        with _ENVIRONMENT:
            self._closed = True
        self._kill()

    def _kill(self) -> None:
        """Kill the process, if there is one, and wait for its end; the next task starts another."""
        pool, process, self._pool, self._process = self._pool, self._process, None, None
        if process is not None:
            process.kill()
            process.join(EXIT_SECONDS)
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        began = time.monotonic()
        self._log.unlink(missing_ok=True)
        arguments = (str(self._log), os.getpid(), self._run, self._options)
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _initialize, arguments)
        with _ENVIRONMENT:  # libraries read it while they are imported, before any of our code runs there
            if self._closed:
                raise WorkerLost("the run has ended")
            others = set(multiprocessing.active_children())
            with _environment(self._resources):
                started = pool.submit(os.getpid)
            self._process = next(iter(set(multiprocessing.active_children()) - others), None)
        self._pool = pool
        started.result()
        self.start_seconds = time.monotonic() - began
        return pool

    def _describe_end(self) -> str:
        """Describe how the process ended, and the last line that it wrote."""
        process = self._process
        end = "its process could not be started"
        if process is not None:
            until = time.monotonic() + EXIT_SECONDS
            # not join(): it returns at once where the pool's own thread has just waited for the process
            while (code := process.exitcode) is None and time.monotonic() < until:
                time.sleep(0.05)
            end = describe_exit(code) if code is not None else "its process does not answer"
        self._kill()
        with contextlib.suppress(OSError), self._log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 10 * LAST_LINE_CHARACTERS))
            lines = log.read().decode(errors="replace").splitlines()
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            if last:
                end += f"; the last that it wrote: {mask_passwords(plain(last[:LAST_LINE_CHARACTERS]))}"
        return end


_ENVIRONMENT = threading.Lock()


@contextlib.contextmanager
def _environment(resources: WorkerResources) -> Iterator[None]:
    """Set the variables that a process inherits which starts now."""
    fresh = {"OMP_NUM_THREADS": str(resources.threads)}
    if resources.gpus:
        fresh["CUDA_VISIBLE_DEVICES"] = ",".join(resources.gpus)
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


def _initialize(log: str, parent: int, run: str, options: SessionOptions) -> None:
    """Prepare a new worker process."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the driver, which kills its workers
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(written, stream)
    with contextlib.suppress(QsaeError):  # the first task reports it
        worker_of(run, options)
