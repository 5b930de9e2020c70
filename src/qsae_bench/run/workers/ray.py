"""Run tasks on a Ray cluster, which places each on a node with the GPUs, threads and memory that it needs.

All GPUs of a run are of one kind, see :mod:`qsae_bench.run.workers.ray_placement`. Every node needs this
package in the same versions, and the paths of local models and quantizations.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qsae_bench import gpus
from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.measure.resources import estimate_need
from qsae_bench.results.cell_facts import SHARED_DEVICE
from qsae_bench.run.workers.dispatch import WorkerLost
from qsae_bench.run.workers.ray_placement import Node, chosen_kind, fits, gpus_by_kind, task_options
from qsae_bench.run.workers.tasks import Task, TaskResult
from qsae_bench.run.workers.worker import run_task

if TYPE_CHECKING:
    from qsae_bench.run.session import SessionOptions

PLACES = 256
"""tasks submitted to Ray at once: it queues what it has no room for"""
CONNECT_ATTEMPTS = 3
SUBMIT_SECONDS = 5.0
"""for a submission to end when the run does: a cluster that is gone may never answer it"""
CHECK_SECONDS = 20.0
"""interval at which a wait for a task checks whether a node is left that could take it"""


class RayEngine:
    """Run tasks on a Ray cluster: see :class:`qsae_bench.run.workers.dispatch.Engine`."""

    def __init__(self, options: SessionOptions, address: str, workers: int, gpu_kind: str = "") -> None:
        """Connect to the cluster at ``address``, else at RAY_ADDRESS, else the one that was started on this
        machine; where there is none, start one for this run.

        Raises:
            QsaeError: Ray is missing, no cluster answers, or it has no GPU of that kind.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise CannotRun("--executor ray: Ray is missing: pip install 'qsae-bench[ray]'") from None
        self._ray = ray
        self.places = workers or PLACES
        self._options = options
        given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
        self._threads = int(given) if given.isdigit() else 1
        self._run = secrets.token_hex(8)
        self._running: set[Any] = set()
        self._closed = False
        self._submitting = threading.Lock()
        try:
            self._mine = not ray.is_initialized()
            if self._mine:
                connect(ray, address)
            resources = ray.cluster_resources()
        except Exception as error:  # Ray raises what its transport raises
            raise QsaeError(
                f"--executor {address or 'ray'}: no cluster answers: {message_of(error)}"
            ) from None
        self._gpus = resources.get("GPU", 0) > 0 and options.device != "cpu"
        nodes = self._nodes()
        if gpu_kind and options.device == "cpu":
            raise QsaeError(f"--gpu-kind {gpu_kind} and --device cpu: leave one of them out")
        self._kind = chosen_kind(nodes, gpu_kind) if self._gpus or gpu_kind else ""
        self._gpu_bytes, self._asking_gpu = 0, threading.Lock()
        kinds = gpus_by_kind(nodes)
        gpus = f"{kinds[self._kind]} of them {self._kind}, " if self._kind else ""
        self.about = (
            f"ray {ray.__version__}, {len(nodes)} node{'s' * (len(nodes) > 1)}, "
            f"{resources.get('GPU', 0):g} GPUs, {gpus}{resources.get('CPU', 0):g} CPUs"
        )
        # a process keeps the GPU that it started with, and Ray gives a task whichever is free
        self._remote = ray.remote(max_retries=0, max_calls=1 if self._gpus else 0)(run_task)
        flags = () if self._gpus else (SHARED_DEVICE,)  # a GPU belongs to one task, a node's CPU is shared
        self._shared_options = ray.put(replace(options, timing_flags=flags))

    @property
    def start_seconds(self) -> float:
        return 0.0  # Ray starts processes by itself

    def run(self, place: int, task: Task, reference: CellResult | QsaeError | None) -> TaskResult:
        needed = self.options_for(task)
        remote = self._remote.options(name=task.name, **needed)
        result: TaskResult = self._submit(remote, needed, self._run, self._shared_options, task, reference)
        return result

    def _submit(self, remote: Any, needed: Mapping[str, Any], *arguments: Any) -> Any:
        """Submit a task to Ray and wait for its result; ``needed`` are the options that Ray got for it.

        Raises:
            WorkerLost: its worker died, or could not start, or no node is left that could take it.
        """
        exceptions = self._ray.exceptions
        with self._submitting:
            self._check_open()
            running = remote.remote(*arguments)
            self._running.add(running)
        missed = False
        try:
            while True:
                self._check_open()
                try:
                    return self._ray.get(running, timeout=CHECK_SECONDS)
                except exceptions.GetTimeoutError:
                    # Ray queues for ever what no node can take. A node may come back: check twice
                    fit = fits(needed, self._nodes())
                    if missed and not fit:
                        self._ray.cancel(running, force=True)
                        raise WorkerLost("the node that could take it is gone") from None
                    missed = not fit
        except (exceptions.RayTaskError, exceptions.RaySystemError) as error:
            # an exception of the worker outside the cell's work: it could not start
            raise WorkerLost(str(error).strip().splitlines()[-1]) from None
        except exceptions.RayError as error:
            raise WorkerLost(message_of(error)) from None
        finally:
            self._running.discard(running)

    def _check_open(self) -> None:
        """Raise once the run has ended: a call of Ray would then connect again, or start a cluster."""
        if self._closed:
            raise WorkerLost("the run has ended")

    def options_for(self, task: Task) -> dict[str, Any]:
        """Return Ray's options for a task: whole GPUs, or threads and memory."""
        model = task.cell.model
        corpus = self._options.registry.corpus_of(model, self._options.selection)
        memory = estimate_need(task.cell, corpus, self._gpus).memory if model.architecture else 0
        gpu_bytes = 0
        if self._gpus:
            task_options(0, self._threads, 1, self._nodes(), self._kind)  # raises where none is left to ask
            gpu_bytes = self._bytes_of_a_gpu()
        return task_options(memory, self._threads, gpu_bytes, self._nodes(), self._kind)

    def _nodes(self) -> list[Node]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _bytes_of_a_gpu(self) -> int:
        """Ask a task with a GPU for its memory, once; where it can't tell, a task gets one GPU."""
        with self._asking_gpu:
            if not self._gpu_bytes:
                options: dict[str, Any] = {"accelerator_type": self._kind} if self._kind else {}
                options |= {"num_cpus": 0, "num_gpus": 1}
                asked = self._ray.remote(max_calls=1, **options)(gpus.gpu_memory)
                found: tuple[int, ...] = self._submit(asked, options | {"memory": 0})
                self._gpu_bytes = max(found, default=1 << 60)
            return self._gpu_bytes

    def close(self) -> None:
        self._closed = True
        # a submission has ended by then, or never will
        if self._submitting.acquire(timeout=SUBMIT_SECONDS):
            self._submitting.release()
        for running in list(self._running):
            with contextlib.suppress(Exception):
                self._ray.cancel(running, force=True)
        if self._mine:
            with contextlib.suppress(Exception):
                self._ray.shutdown()


def connect(ray: Any, address: str) -> None:
    """Connect to a cluster; try again where the head answered, but was too slow.

    The head starts a process for each client. On a busy machine that takes longer than Ray's half minute.
    """
    for attempt in range(CONNECT_ATTEMPTS):
        try:
            ray.init(
                address or os.environ.get("RAY_ADDRESS") or None, logging_level="ERROR",
                log_to_driver=False, **({} if address else {"include_dashboard": False}),
            )  # fmt: skip
            return
        except ConnectionAbortedError:
            if attempt + 1 == CONNECT_ATTEMPTS:
                raise


def message_of(error: BaseException) -> str:
    """Return the first line of a message, with the last where the first only announces a trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
