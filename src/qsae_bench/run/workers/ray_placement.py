"""Choose Ray's options for a task from the cluster's nodes and the memory that the task needs. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qsae_bench.errors import QsaeError, did_you_mean

Node = Mapping[str, float]
"""resources of a node, as Ray has them"""

KIND_PREFIX = "accelerator_type:"
"""of the resource that a node has for its kind of GPU"""
PRIORITY = ("GPU", "memory", "CPU")
"""resources by how much it matters that a node has what a task needs of them"""


def gpus_by_kind(nodes: Iterable[Node]) -> dict[str, int]:
    """Return the number of GPUs by kind; '' is for those whose kind Ray does not know."""
    found: dict[str, int] = {}
    for node in nodes:
        kind = next((key.removeprefix(KIND_PREFIX) for key in node if key.startswith(KIND_PREFIX)), "")
        if count := int(node.get("GPU", 0)):
            found[kind] = found.get(kind, 0) + count
    return found


def chosen_kind(nodes: Sequence[Node], wanted: str) -> str:
    """Choose the kind of GPU for all cells of a run; '' where there is only one, or none is known.

    Cells on several kinds could not be compared: timings, references and thresholds differ. Without the
    user's choice, ``wanted``, it is the kind of which the cluster has most.

    Raises:
        QsaeError: the cluster has no such kind.
    """
    counts = gpus_by_kind(nodes)
    known = sorted((kind for kind in counts if kind), key=lambda kind: (-counts[kind], kind))
    if wanted and wanted not in known:
        there = f"the cluster has {', '.join(known)}" if known else "the cluster names no kind of GPU"
        raise QsaeError(f"--gpu-kind {wanted!r}: {there}{did_you_mean(wanted, known)}")
    return wanted or (known[0] if known and len(counts) > 1 else "")


def fits(options: Mapping[str, Any], nodes: Iterable[Node]) -> bool:
    """Return whether a node, if it were free, has what a Ray task with these options needs."""
    needed = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options["memory"]}
    kind = options.get("accelerator_type")
    return any(
        all(node.get(key, 0) >= value for key, value in needed.items())
        and (not kind or KIND_PREFIX + kind in node)
        for node in nodes
    )


def task_options(
    memory: int, threads: int, gpu_bytes: int, nodes: Sequence[Node], kind: str
) -> dict[str, Any]:
    """Return the options of a Ray task: whole GPUs, or threads and memory.

    Args:
        memory: bytes that the task is expected to need, 0 where nothing is known.
        threads: that it uses.
        gpu_bytes: of one GPU; 0 where the task is to have none.
        nodes: those that are alive.
        kind: of the GPUs, '' for any.

    Raises:
        QsaeError: no node is left that has a GPU, though the task needs one: it must not run on a CPU.
    """
    needed: dict[str, float] = {"CPU": threads, "GPU": 0, "memory": memory}
    if gpu_bytes:
        needed |= {"GPU": max(1, math.ceil(memory / gpu_bytes)), "memory": 0}
        nodes = [
            node for node in nodes if node.get("GPU", 0) >= 1 and (not kind or KIND_PREFIX + kind in node)
        ]
        if not nodes:
            raise QsaeError(f"the cluster has no node with a GPU{kind and f' ({kind})'} any more")
    # a task that needs more than any node has would never be placed: ask for what the best node has, and
    # let the task report that it is too little
    best: Node = max(
        nodes,
        key=lambda has: [min(1.0, has.get(key, 0) / needed[key]) for key in PRIORITY if needed[key]],
        default={},
    )
    least = {key: min(value, int(best.get(key, 0))) for key, value in needed.items()}
    options = {"num_cpus": least["CPU"], "num_gpus": least["GPU"], "memory": least["memory"]}
    return options | ({"accelerator_type": kind} if gpu_bytes and kind else {})
