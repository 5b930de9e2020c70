"""What Ray is told that a task needs, from the cluster's nodes and from what ``plan`` expects. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qsae_bench.errors import QsaeError, did_you_mean

Node = Mapping[str, float]
"""a node's resources, as Ray has them"""

KIND = "accelerator_type:"
"""begins the resource that a node has for its kind of GPU"""
ORDER = ("GPU", "memory", "CPU")
"""resources by how much it matters that a node has what a task needs of them"""


def gpus_by_kind(nodes: Iterable[Node]) -> dict[str, int]:
    """'' stands for GPUs whose kind Ray does not know."""
    found: dict[str, int] = {}
    for node in nodes:
        kind = next((key.removeprefix(KIND) for key in node if key.startswith(KIND)), "")
        if count := int(node.get("GPU", 0)):
            found[kind] = found.get(kind, 0) + count
    return found


def chosen_kind(nodes: Sequence[Node], told: str) -> str:
    """The kind that all of a run's cells are measured on; '' where there is but one, or none is known.

    Cells on several kinds could not be compared: their timings, their references, their thresholds differ.
    ``told``: by the user; '' takes the one of which the cluster has most.

    Raises:
        QsaeError: the cluster has no such kind.
    """
    counts = gpus_by_kind(nodes)
    known = sorted((kind for kind in counts if kind), key=lambda kind: (-counts[kind], kind))
    if told and told not in known:
        there = f"the cluster has {', '.join(known)}" if known else "the cluster names no kind of GPU"
        raise QsaeError(f"--gpu-kind {told!r}: {there}{did_you_mean(told, known)}")
    return told or (known[0] if known and len(counts) > 1 else "")


def fits(options: Mapping[str, Any], nodes: Iterable[Node]) -> bool:
    """Whether a node has what a Ray task with these options needs, were it free."""
    needed = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options["memory"]}
    kind = options.get("accelerator_type")
    return any(
        all(node.get(key, 0) >= value for key, value in needed.items())
        and (not kind or KIND + kind in node)
        for node in nodes
    )


def needs(memory: int, threads: int, gpu_bytes: int, nodes: Sequence[Node], kind: str) -> dict[str, Any]:
    """Options of a Ray task: whole GPUs, or threads and memory.

    Args:
        memory: bytes that the task is expected to take, 0 where nothing is known.
        gpu_bytes: of one GPU; 0 where the task is to have none.
        nodes: that are alive.
        kind: of the GPUs, '' for any.

    Raises:
        QsaeError: it is to have a GPU, and no node is left that has one: it does not run on a CPU instead.
    """
    needed: dict[str, float] = {"CPU": threads, "GPU": 0, "memory": memory}
    if gpu_bytes:
        needed |= {"GPU": max(1, math.ceil(memory / gpu_bytes)), "memory": 0}
        nodes = [node for node in nodes if node.get("GPU", 0) >= 1 and (not kind or KIND + kind in node)]
        if not nodes:
            raise QsaeError(f"the cluster has no node with a GPU{kind and f' ({kind})'} any more")
    # what no node has would never be placed; on the best of them, what is too little says so itself
    best: Node = max(
        nodes,
        key=lambda has: [min(1.0, has.get(key, 0) / needed[key]) for key in ORDER if needed[key]],
        default={},
    )
    least = {key: min(value, int(best.get(key, 0))) for key, value in needed.items()}
    options = {"num_cpus": least["CPU"], "num_gpus": least["GPU"], "memory": least["memory"]}
    return options | ({"accelerator_type": kind} if gpu_bytes and kind else {})
