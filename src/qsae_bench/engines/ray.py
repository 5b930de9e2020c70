"""A Ray cluster: it places each task on a node with the GPUs, threads and memory that ``plan`` expects.

Every node needs this package in the same versions, and the paths of local models and recipes.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qsae_bench import plan
from qsae_bench.engines import Lost
from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.measured import Measured
from qsae_bench.tasks import Outcome, Task
from qsae_bench.timing import BESIDE
from qsae_bench.worker import do

if TYPE_CHECKING:
    from qsae_bench.books import Options

ORDER = ("GPU", "memory", "CPU")
"""resources by how much it matters that a node has what a task needs of them"""
PLACES = 256
"""tasks handed to Ray at once: it queues what it has no room for"""


class RayEngine:
    """See :class:`qsae_bench.engines.Engine`."""

    def __init__(self, options: Options, address: str, workers: int) -> None:
        """Connect to the cluster at ``address``, else at RAY_ADDRESS, else start one on this machine.

        Raises:
            QsaeError: Ray is missing, or no cluster answers.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise CannotRun("--executor ray: Ray is missing: pip install 'qsae-bench[ray]'") from None
        self._ray = ray
        self.places = workers or PLACES
        self._options = options
        told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
        self._threads = int(told) if told.isdigit() else 1
        self._run = secrets.token_hex(8)
        self._running: set[Any] = set()
        try:
            self._mine = not ray.is_initialized()
            if self._mine:
                ray.init(
                    address or os.environ.get("RAY_ADDRESS") or None, logging_level="ERROR",
                    log_to_driver=False, **({} if address else {"include_dashboard": False}),
                )  # fmt: skip
            resources = ray.cluster_resources()
        except Exception as error:  # Ray raises what its transport raises
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise QsaeError(f"--executor {address or 'ray'}: no cluster answers: {first}") from None
        self._gpus = resources.get("GPU", 0) > 0 and options.device != "cpu"
        nodes = sum(1 for node in ray.nodes() if node["Alive"])
        self.about = (
            f"ray {ray.__version__}, {nodes} node{'s' * (nodes > 1)}, {resources.get('GPU', 0):g} GPUs, "
            f"{resources.get('CPU', 0):g} CPUs"
        )
        # a process keeps the GPU that it began with, and Ray gives a task whichever is free
        self._do = ray.remote(max_retries=0, max_calls=1 if self._gpus else 0)(do)
        self.beside: tuple[str, ...] = (
            () if self._gpus else (BESIDE,)
        )  # a node's CPU is shared, a GPU is a task's own
        self._told = ray.put(replace(options, beside=self.beside))

    def run(self, place: int, task: Task, reference: Measured | QsaeError | None) -> Outcome:
        exceptions = self._ray.exceptions
        running = self._do.options(name=task.name, **self.needs(task)).remote(
            self._run, self._told, task, reference
        )
        self._running.add(running)
        try:
            outcome: Outcome = self._ray.get(running)
            return outcome
        except (exceptions.RayTaskError, exceptions.RaySystemError) as error:
            # an exception of the worker's own, outside what it does for a cell: it could not begin
            raise Lost(str(error).strip().splitlines()[-1]) from None
        except exceptions.RayError as error:
            raise Lost(_first_line(error)) from None
        finally:
            self._running.discard(running)

    def needs(self, task: Task) -> dict[str, Any]:
        """What Ray is told that a task takes: whole GPUs, or threads and memory."""
        model = task.cell.model
        corpus = self._options.registry.corpus_of(model, self._options.selection)
        taken = plan.need(task.cell, corpus, self._gpus).memory if model.architecture else 0
        needed = {"CPU": self._threads, "GPU": 0, "memory": taken}
        if self._gpus:
            largest = max(self._gpu_bytes(), default=0)
            needed |= {"GPU": max(1, math.ceil(taken / largest)) if largest else 1, "memory": 0}
        # what no node has would never be placed; on the best of them, what is too little says so itself
        best: dict[str, float] = max(
            (node["Resources"] for node in self._ray.nodes() if node["Alive"]),
            key=lambda has: [min(1.0, has.get(key, 0) / needed[key]) for key in ORDER if needed[key]],
            default={},
        )
        least = {key: min(value, int(best.get(key, 0))) for key, value in needed.items()}
        return {"num_cpus": least["CPU"], "num_gpus": least["GPU"], "memory": least["memory"]}

    def _gpu_bytes(self) -> list[int]:
        """Memory of a GPU of each kind in the cluster, by the names that Ray gives them."""
        names = [key.removeprefix("accelerator_type:") for key in self._ray.cluster_resources()]
        return [size << 30 for name, size in GPU_GIB.items() if name in names]

    def close(self) -> None:
        for running in list(self._running):
            with contextlib.suppress(Exception):
                self._ray.cancel(running, force=True)
        if self._mine:
            with contextlib.suppress(Exception):
                self._ray.shutdown()


GPU_GIB = {
    "A10G": 24, "L4": 24, "L40S": 48, "A100-40G": 40, "A100-80G": 80, "A100": 40, "H100": 80, "H200": 141,
    "B200": 180, "T4": 16, "V100": 16,
}  # fmt: skip
"""memory of the GPUs that Ray names: how many of them a model takes"""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
