"""Print what each cell would take, and whether it fits here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qsae_bench.machine import Machine
from qsae_bench.measure import resources
from qsae_bench.registry.specs import Cell, CorpusSpec
from qsae_bench.report.tables import table, wrapped


def planning(corpora: Mapping[Cell, CorpusSpec], machine: Machine, device: str = "") -> Iterator[str]:
    """Yield a row for each cell, and what those need that don't fit.

    Args:
        device: ``cpu`` or ``cuda``; '' for what the machine has, or for the GPU that the model needs.
    """
    yield from wrapped(_machine(machine))
    rows, missing = [], []
    lacking: dict[str, list[str]] = {}
    for cell, corpus in corpora.items():
        if not cell.model.architecture:
            missing.append(cell.id)
            continue
        on_gpu = device != "cpu" and (bool(machine.gpu_bytes) or cell.model.needs_gpu or device == "cuda")
        need = resources.estimate_need(cell, corpus, on_gpu)
        if advice := resources.advice(cell, need, corpus, machine, on_gpu):
            lacking.setdefault(advice, []).append(cell.id)
        rows.append(
            {
                "cell": cell.id, "on": "GPU" if on_gpu else "CPU",
                "memory": gib(need.memory), "weights": gib(need.weights), "SAEs": gib(need.saes),
                "activations": gib(need.activations), "head": gib(need.head_chunk),
                "download": gib(need.download), "store": gib(need.store),
                "fits": "no" if advice else "yes",
            }
        )  # fmt: skip
    yield from table(rows)
    yield ""
    for advice, names in lacking.items():
        yield from wrapped(f"{', '.join(names)}: {advice}")
    if lacking:
        yield ""
    yield "GiB. memory: the pass's peak: weights + SAEs + the larger of activations and head, + libraries"
    yield "on a CPU. download: model and SAEs if nothing is cached. store: the reference, on disk."
    for cell_id in missing:
        yield from wrapped(f"{cell_id}: no estimate: its registry entry has no architecture")


def _machine(machine: Machine) -> str:
    gpus = ", ".join(gib(size) for size in machine.gpu_bytes)
    here = f"GPUs of {gpus} GiB" if gpus else "no GPU"
    memory, cache = gib(machine.memory_bytes), gib(machine.cache_free_bytes)
    return (
        f"this machine: {here}, {memory} GiB memory, {cache} GiB free for downloads, "
        f"{gib(machine.runs_free_bytes)} GiB for the store"
    )


def gib(size: int) -> str:
    """Write a number of bytes in GiB, 0 as a dash."""
    return f"{size / resources.GIB:.1f}" if size else "–"
