"""``--executor``, ``--workers`` and ``--shards``: where cells are measured."""

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
    from qsae_bench.run.workers.engine import Engine

RAY_SCHEME = "ray://"


@dataclass(frozen=True)
class WorkerOptions:
    """What the three options say."""

    kind: Literal["local", "ray"] = "local"
    address: str = ""
    """of a Ray cluster; '' lets Ray find it"""
    workers: int = 0
    """0: this process measures, or as many as the cluster has room for"""
    shards: int = 1
    gpu_kind: str = ""
    """of a Ray cluster that has several"""

    @classmethod
    def of(cls, option: Callable[[str], Any]) -> WorkerOptions:
        """From the command line.

        Raises:
            QsaeError: they don't go together, or one of them is nothing known.
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
        chosen = cls("local" if where == "local" else "ray", at, workers or 0, shards, kind)
        if kind and chosen.kind == "local":
            raise QsaeError(f"--gpu-kind {kind}: without --executor ray, CUDA_VISIBLE_DEVICES chooses GPUs")
        if shards > 1 and chosen.is_here:
            raise QsaeError(f"--shards {shards}: one process can't share: add --workers {shards}")
        if not chosen.is_here and option("--reference-store").lower().startswith("memory:"):
            raise QsaeError(
                "--reference-store memory://: each worker has a memory of its own: name a folder"
            )
        if shards > 1 and option("--splice"):
            raise QsaeError(
                "--splice with --shards: an ablation puts in a mean over all of a cell's sequences, "
                "which no shard knows: leave one of the two out"
            )
        return chosen

    @property
    def is_here(self) -> bool:
        """The process of the tests measures itself."""
        return self.kind == "local" and not self.workers

    def engine(self, options: SessionOptions, timeout_seconds: float | None) -> Engine:
        """Made when the first cell is asked for; its workers start with their first tasks.

        Raises:
            QsaeError: Ray is missing, or no cluster answers.
        """
        bare = replace(options, say=print, progress=SILENT)  # what is said here stays here
        # a node works in another folder, and needs no secrets
        store = options.reference_store
        if store and "://" not in store:
            store = str(Path(store).expanduser().absolute())
        bare = replace(
            bare, qsae_dir=options.qsae_dir.absolute(), reference_store=store, history="", command=""
        )
        if self.kind == "ray":
            if store is None:
                raise QsaeError(
                    "--no-reference-store with ray: a cluster has nowhere else to share references: "
                    "leave it out"
                )
            from qsae_bench.run.workers.ray import RayEngine

            return RayEngine(bare, self.address, self.workers, self.gpu_kind)
        from qsae_bench.machine import usable_processors
        from qsae_bench.run.workers.local import LocalEngine, shares

        split = shares(self.workers, _gpus(options.device), len(usable_processors()))
        return LocalEngine(bare, split, timeout_seconds)


def _gpus(device: str) -> tuple[str, ...]:
    """The visible GPUs, by the names that ``CUDA_VISIBLE_DEVICES`` knows."""
    from qsae_bench import machine

    if device == "cpu":
        return ()
    count = len(machine.gpu_memory())
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not named:
        return tuple(map(str, range(count)))
    names = [part.strip() for part in named.split(",")]
    # a GPU may be visible as several slices, each with a name of its own
    return tuple(names if count and names[0].startswith("MIG-") else names[:count])
