"""A Ray cluster: it places each task on a node with the GPUs, threads and memory that ``plan`` expects.

All GPUs of a run are of one kind, see :mod:`qsae_bench.run.workers.ray_placement`. Every node needs this
package in the same versions, and the paths of local models and recipes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qsae_bench import machine
from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.measure.resources import estimate_need
from qsae_bench.results.document import SHARED_DEVICE
from qsae_bench.run.workers.engine import Lost
from qsae_bench.run.workers.ray_placement import Node, chosen_kind, fits, gpus_by_kind, needs
from qsae_bench.run.workers.tasks import Task, TaskResult
from qsae_bench.run.workers.worker import do

if TYPE_CHECKING:
    from qsae_bench.run.session import SessionOptions

PLACES = 256
"""tasks handed to Ray at once: it queues what it has no room for"""
CONNECTS = 3
CLOSE_SECONDS = 5.0
"""for a place that is handing a task in: a cluster that is gone may not answer it"""
LOOK_SECONDS = 20.0
"""how often one who waits for a task looks whether a node is left that could take it"""


class RayEngine:
    """See :class:`qsae_bench.run.workers.engine.Engine`."""

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
        self.places, self.keeps = workers or PLACES, False
        self._options = options
        told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
        self._threads = int(told) if told.isdigit() else 1
        self._run = secrets.token_hex(8)
        self._running: set[Any] = set()
        self._closed = False
        self._handing = threading.Lock()
        try:
            self._mine = not ray.is_initialized()
            if self._mine:
                connect(ray, address)
            resources = ray.cluster_resources()
        except Exception as error:  # Ray raises what its transport raises
            raise QsaeError(f"--executor {address or 'ray'}: no cluster answers: {said(error)}") from None
        self._gpus = resources.get("GPU", 0) > 0 and options.device != "cpu"
        nodes = self._nodes()
        if gpu_kind and options.device == "cpu":
            raise QsaeError(f"--gpu-kind {gpu_kind} and --device cpu: leave one of them out")
        self._kind = chosen_kind(nodes, gpu_kind) if self._gpus or gpu_kind else ""
        self._gpu_bytes, self._asking = 0, threading.Lock()
        kinds = gpus_by_kind(nodes)
        gpus = f"{kinds[self._kind]} of them {self._kind}, " if self._kind else ""
        self.about = (
            f"ray {ray.__version__}, {len(nodes)} node{'s' * (len(nodes) > 1)}, "
            f"{resources.get('GPU', 0):g} GPUs, {gpus}{resources.get('CPU', 0):g} CPUs"
        )
        # a process keeps the GPU that it began with, and Ray gives a task whichever is free
        self._do = ray.remote(max_retries=0, max_calls=1 if self._gpus else 0)(do)
        beside = () if self._gpus else (SHARED_DEVICE,)  # a node's CPU is shared, a GPU is a task's own
        self._told = ray.put(replace(options, beside=beside))

    @property
    def start_seconds(self) -> float:
        return 0.0  # Ray starts processes when it likes

    def run(self, place: int, task: Task, reference: CellResult | QsaeError | None) -> TaskResult:
        needed = self.needs(task)
        asked = self._do.options(name=task.name, **needed)
        outcome: TaskResult = self._done(asked, needed, self._run, self._told, task, reference)
        return outcome

    def _done(self, asked: Any, needed: Mapping[str, Any], *arguments: Any) -> Any:
        """What comes of a task of Ray's that was told it needs ``needed``.

        Raises:
            Lost: its worker died, or could not begin, or no node is left that could take it.
        """
        exceptions = self._ray.exceptions
        with self._handing:
            self._refuse_after_the_end()
            running = asked.remote(*arguments)
            self._running.add(running)
        missed = False
        try:
            while True:
                self._refuse_after_the_end()
                try:
                    return self._ray.get(running, timeout=LOOK_SECONDS)
                except exceptions.GetTimeoutError:
                    # Ray keeps what no node can take for ever, and a node may be about to come back
                    fit = fits(needed, self._nodes())
                    if missed and not fit:
                        self._ray.cancel(running, force=True)
                        raise Lost("the node that could take it is gone") from None
                    missed = not fit
        except (exceptions.RayTaskError, exceptions.RaySystemError) as error:
            # an exception of the worker's own, outside what it does for a cell: it could not begin
            raise Lost(str(error).strip().splitlines()[-1]) from None
        except exceptions.RayError as error:
            raise Lost(said(error)) from None
        finally:
            self._running.discard(running)

    def _refuse_after_the_end(self) -> None:
        """Asked for anything then, Ray would connect anew, or start a cluster."""
        if self._closed:
            raise Lost("the run has ended")

    def needs(self, task: Task) -> dict[str, Any]:
        """What Ray is told that a task takes: whole GPUs, or threads and memory."""
        model = task.cell.model
        corpus = self._options.registry.corpus_of(model, self._options.selection)
        taken = estimate_need(task.cell, corpus, self._gpus).memory if model.architecture else 0
        one = 0
        if self._gpus:
            needs(0, self._threads, 1, self._nodes(), self._kind)  # raises where no GPU is left to ask
            one = self._bytes_of_a_gpu()
        return needs(taken, self._threads, one, self._nodes(), self._kind)

    def _nodes(self) -> list[Node]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _bytes_of_a_gpu(self) -> int:
        """Asked once, of a task that has one; so much that a task gets one GPU where it can't tell."""
        with self._asking:
            if not self._gpu_bytes:
                options: dict[str, Any] = {"accelerator_type": self._kind} if self._kind else {}
                options |= {"num_cpus": 0, "num_gpus": 1}
                asked = self._ray.remote(max_calls=1, **options)(machine.gpu_memory)
                found: tuple[int, ...] = self._done(asked, options | {"memory": 0})
                self._gpu_bytes = max(found, default=1 << 60)
            return self._gpu_bytes

    def close(self) -> None:
        self._closed = True
        if self._handing.acquire(timeout=CLOSE_SECONDS):  # who is handing in has done so, or never will
            self._handing.release()
        for running in list(self._running):
            with contextlib.suppress(Exception):
                self._ray.cancel(running, force=True)
        if self._mine:
            with contextlib.suppress(Exception):
                self._ray.shutdown()


def connect(ray: Any, address: str) -> None:
    """Again where the head answered, but its process for this client was not there in Ray's half minute.

    On a busy machine it takes longer.
    """
    for attempt in range(CONNECTS):
        try:
            ray.init(
                address or os.environ.get("RAY_ADDRESS") or None, logging_level="ERROR",
                log_to_driver=False, **({} if address else {"include_dashboard": False}),
            )  # fmt: skip
            return
        except ConnectionAbortedError:
            if attempt + 1 == CONNECTS:
                raise


def said(error: BaseException) -> str:
    """The first line, with the last where the first only announces a trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
