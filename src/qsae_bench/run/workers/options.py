"""Parse the options that choose where cells are measured, and make their engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qsae_bench.errors import QsaeError
from qsae_bench.progress import SILENT

if TYPE_CHECKING:
    from qsae_bench.run.session import SessionOptions
    from qsae_bench.run.workers.dispatch import Engine

RAY_SCHEME = "ray://"


@dataclass(frozen=True)
class WorkerOptions:
    """Hold the parsed options of workers."""

    kind: Literal["local", "ray"] = "local"
    address: str = ""
    """address of a Ray cluster; '' lets Ray find it"""
    workers: int = 0
    """number of workers; 0: this process measures, or as many workers as the cluster has room for"""
    shards: int = 1
    gpu_kind: str = ""
    """kind of GPU to use on a mixed Ray cluster"""
    isolate: bool = False
    """run the tests of each cell in a process of their own"""
    isolate_timeout_seconds: float | None = None

    @classmethod
    def of(cls, option: Callable[[str], Any]) -> WorkerOptions:
        """Parse the command line's options; ``option`` maps ``--name`` to its value.

        Raises:
            QsaeError: an unknown value, or options that contradict each other.
        """
        where, workers, shards = option("--executor"), option("--workers"), option("--shards")
        if workers is not None and workers < 1:
            raise QsaeError(f"--workers {workers}: at least 1 is needed")
        if shards < 1:
            raise QsaeError(f"--shards {shards}: at least 1 is needed")
        at = where if where.startswith(RAY_SCHEME) and where != RAY_SCHEME else ""
        if where not in ("local", "ray") and not at:
            raise QsaeError(f"--executor {where!r}: local, ray, or {RAY_SCHEME}HOST:PORT")
        kind = option("--gpu-kind").strip()
        isolate, timeout = option("--isolate"), option("--isolate-timeout")
        place: Literal["local", "ray"] = "local" if where == "local" else "ray"
        chosen = cls(place, at, workers or 0, shards, kind, isolate, timeout)
        if kind and chosen.kind == "local":
            raise QsaeError(f"--gpu-kind {kind}: without --executor ray, CUDA_VISIBLE_DEVICES chooses GPUs")
        if shards > 1 and chosen.in_process:
            raise QsaeError(f"--shards {shards}: one process can't split a cell: add --workers {shards}")
        if not chosen.in_process and option("--reference-store").lower().startswith("memory:"):
            raise QsaeError("--reference-store memory://: workers don't share memory: name a folder")
        if shards > 1 and option("--splice"):
            raise QsaeError(
                "--splice with --shards: an ablation needs the mean over all of a cell's sequences, which "
                "no shard has: leave one of the two out"
            )
        if isolate and not chosen.in_process:
            raise QsaeError("--isolate: workers are processes of their own already: leave it out")
        if timeout is not None:
            if chosen.kind == "ray":
                raise QsaeError("--isolate-timeout: not with Ray, where a cell may wait for its turn")
            if not isolate and chosen.in_process:
                why = "so that a cell has a process to end"
                raise QsaeError(f"--isolate-timeout: needs --isolate or --workers, {why}")
            if not timeout > 0:  # NaN is not
                raise QsaeError(f"--isolate-timeout {timeout:g}: must be more than 0 seconds")
        return chosen

    @property
    def in_process(self) -> bool:
        """Whether the process of the tests measures itself"""
        return self.kind == "local" and not self.workers

    def engine(self, options: SessionOptions) -> Engine:
        """Make the engine; its workers start with their first tasks.

        Raises:
            QsaeError: Ray is missing, or no cluster answers.
        """
        store = options.reference_store
        if store and "://" not in store:
            store = str(Path(store).expanduser().absolute())
        # without callbacks of this process; a node has another working directory, and needs no secrets
        bare = replace(
            options, on_warning=print, progress=SILENT, qsae_dir=options.qsae_dir.absolute(),
            reference_store=store, history="", command="",
        )  # fmt: skip
        if self.kind == "ray":
            if store is None:
                raise QsaeError(
                    "--no-reference-store with ray: a cluster has nowhere else to share references: "
                    "leave it out"
                )
            from qsae_bench.run.workers.ray import RayEngine

            return RayEngine(bare, self.address, self.workers, self.gpu_kind)
        from qsae_bench.machine import usable_processors
        from qsae_bench.run.workers.local import LocalEngine, split_machine

        split = split_machine(self.workers, _gpus(options.device), len(usable_processors()))
        return LocalEngine(bare, split, self.isolate_timeout_seconds)


def _gpus(device: str) -> tuple[str, ...]:
    """Return the visible GPUs by the names that ``CUDA_VISIBLE_DEVICES`` takes."""
    from qsae_bench import gpus

    if device == "cpu":
        return ()
    count = len(gpus.gpu_memory())
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not named:
        return tuple(map(str, range(count)))
    names = [part.strip() for part in named.split(",")]
    # a GPU may be visible as several slices, each with a name of its own
    return tuple(names if count and names[0].startswith("MIG-") else names[:count])
