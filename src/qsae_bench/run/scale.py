"""Estimate how long the cells of a run, or of a plan, take on G workers: two bounds and what they rest on.

A quantized cell waits for its model's reference and for nothing else. So no schedule is faster than all
busy seconds shared evenly (work / G), nor than the longest chain of a reference and one of its cells. None
that leaves no worker idle while a task is ready is slower than work / G + (1 - 1 / G) · chain, in whatever
order (Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl. Math. 17, 1969). No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import cycle, islice

from qsae_bench.errors import QsaeError
from qsae_bench.measure import resources
from qsae_bench.registry.specs import REFERENCE, Cell, CorpusSpec
from qsae_bench.results.document import RunDocument
from qsae_bench.run.timed_workloads import warm_ups


@dataclass(frozen=True)
class CellCost:
    """Hold the seconds that one worker takes for a cell."""

    model: str
    quantization: str
    load_seconds: float
    """for loading the model: each shard does"""
    timed_seconds: float
    """for what is timed beside the pass: one shard does; of a reference, nobody waits for it"""
    pass_seconds: float
    """for the pass over the tokens: a shard does its part of it"""
    setup_seconds: float
    """for the model's tokens and SAEs, once a process"""

    @property
    def is_reference(self) -> bool:
        return self.quantization == REFERENCE

    @property
    def seconds(self) -> float:
        """Everything but the setup."""
        return self.load_seconds + self.timed_seconds + self.pass_seconds


@dataclass(frozen=True)
class RunTime:
    """Hold the bounds of how long the cells take on some number of workers, in seconds."""

    workers: int
    work_seconds: float
    """everything shared evenly: busy seconds / workers, no cell loaded twice"""
    chain_seconds: float
    """the longest chain: a reference, then the longest task that waits for it"""
    at_most_seconds: float
    """Graham's bound, where every shard loads its cell and every task sets its model up"""

    @property
    def at_least_seconds(self) -> float:
        return max(self.work_seconds, self.chain_seconds)


def run_time(
    costs: Iterable[CellCost],
    workers: int,
    shards: int = 1,
    start_seconds: float = 0.0,
    fresh: bool = False,
) -> RunTime:
    """Bound the time that ``workers`` take for all cells of a run.

    Args:
        shards: workers that share a quantized cell's sequences.
        start_seconds: until a worker's process is there.
        fresh: each task has a process of its own, as on a Ray cluster with GPUs, and pays for its start,
            tokens and SAEs.
    """
    least_work = most_work = chain = longest_chain = 0.0
    for cells in by_model(costs).values():
        setup = max(cell.setup_seconds for cell in cells) + fresh * start_seconds
        references = [cell for cell in cells if cell.is_reference]
        quantized = [cell for cell in cells if not cell.is_reference]
        # what is timed of a reference is a task of its own on several workers: it loads again
        apart = [cell for cell in references if cell.timed_seconds and workers > 1]
        tasks = len(references) + len(apart) + shards * len(quantized)
        work = sum(cell.seconds for cell in cells)
        loads = sum(cell.load_seconds for cell in [*apart, *quantized * (shards - 1)])
        least_work += work + setup * (tasks if fresh else 1)
        most_work += work + loads + setup * (tasks if fresh or workers > 1 else 1)
        stored = sum(cell.load_seconds + cell.pass_seconds for cell in references)
        waiting = max(
            (c.load_seconds + c.timed_seconds + c.pass_seconds / shards for c in quantized), default=0
        )
        twice = setup if stored and waiting else 0.0  # where another process does the second of the two
        chain = max(chain, setup + stored + waiting + twice * fresh)
        longest_chain = max(longest_chain, setup + stored + waiting + twice)
    once = 0.0 if fresh else start_seconds
    at_most = most_work / workers + (1 - 1 / workers) * longest_chain
    return RunTime(workers, once + least_work / workers, once + chain, once + at_most)


def by_model(costs: Iterable[CellCost]) -> dict[str, list[CellCost]]:
    """Return the costs of each model's cells, its reference first."""
    found: dict[str, list[CellCost]] = {}
    for cost in sorted(costs, key=lambda cost: not cost.is_reference):
        found.setdefault(cost.model, []).append(cost)
    return found


def costs_of_run(document: RunDocument, tokens: int = 0) -> list[CellCost]:
    """Return the costs of a run's cells, from the seconds that workers were busy with each.

    Args:
        tokens: predicted tokens per cell, 0: as the run measured. Passes take proportionally longer.

    Raises:
        QsaeError: the run does not record what its cells took.
    """
    cells = [c for c in document.cells if c.has_values and c.busy_seconds > 0]
    if not cells:
        raise QsaeError(
            f"run {document.run_id}: it records no busy_seconds of a measured cell: measure it again"
        )
    rounds_before = warm_ups(str(document.environment.get("device")))
    found = []
    for cell in cells:
        own = max(0.0, cell.busy_seconds - cell.setup_seconds)
        load = cell.metrics["load_seconds"].value if "load_seconds" in cell.metrics else None
        load = min(max(load or 0.0, 0.0), own)
        timed = sum(sum(one.seconds) + rounds_before * one.median_seconds for one in cell.timings.values())
        timed = min(timed, own - load)
        measured = cell.tokens
        if cell.quantization == REFERENCE:
            measured = max(other.tokens for other in cells if other.model == cell.model)
        factor = tokens / measured if tokens and measured else 1.0
        passed = (own - load - timed) * factor
        found.append(CellCost(cell.model, cell.quantization, load, timed, passed, cell.setup_seconds))
    return found


def costs_of_plan(
    corpora: Mapping[Cell, CorpusSpec],
    flops: float,
    bandwidth: float,
    float32_flops: float = 0.0,
    setup_seconds: float = 0.0,
    on_gpu: bool = True,
) -> list[CellCost]:
    """Return the costs of cells as counted from their shapes, see :func:`position_flops`.

    Args:
        corpora: each cell's corpus as it would be run.
        flops: FLOP/s of a worker in the model's own products.
        bandwidth: bytes/s at which a worker reads weights, SAEs and the store, and writes the store.
        float32_flops: FLOP/s in the SAEs' products; 0: ``flops``.
        setup_seconds: per model and process, beside reading the SAEs.

    Raises:
        QsaeError: the registry does not have a cell's shape.
    """
    found = []
    for cell, corpus in corpora.items():
        model = cell.model
        if not model.architecture or not model.sae.features:
            raise QsaeError(f"{cell.id}: its registry entry has no architecture, or no width of its SAEs")
        if cell.quantization.checkpoints and cell.checkpoint is None:
            raise QsaeError(f"{cell.id}: no checkpoint of this model in the entry")
        positions = math.ceil(corpus.tokens / (corpus.sequence_length - 1)) * corpus.sequence_length
        of_model, of_saes = position_flops(cell)
        seconds = positions * (of_model / flops + of_saes / (float32_flops or flops))
        seconds += sum(resources.store_bytes(model, positions, on_gpu)) / bandwidth
        saes = len(model.layers) * 2 * model.d_model * model.sae.features * resources.HUB_SAE_BYTES
        load, setup = resources.weight_file_bytes(cell) / bandwidth, setup_seconds + saes / bandwidth
        found.append(CellCost(model.name, cell.quantization.name, load, 0.0, seconds, setup))
    return found


def position_flops(cell: Cell) -> tuple[int, int]:
    """Return the FLOP per position of forward and heads, and of the SAEs.

    A product with a [d, k] matrix takes 2 · d · k. A quantized cell's pass computes the heads and SAEs of
    both sides; a reference's computes its own.
    """
    model, sides = cell.model, 1 if cell.is_reference else 2
    head = 2 * int(model.architecture["vocab_size"]) * model.d_model
    sae = 2 * (2 * model.d_model * model.sae.features)
    return 2 * resources.Parameters.of(model).blocks + sides * head, sides * len(model.layers) * sae


def costs_of_matrix(costs: Iterable[CellCost], models: int, quantizations: int) -> list[CellCost]:
    """Return the costs of so many models, each with its reference and so many quantized cells.

    The given models are taken in turn, and so are the quantized cells of each.

    Raises:
        QsaeError: no model has a reference and a quantized cell.
    """
    base = [cells for cells in by_model(costs).values() if cells[0].is_reference and len(cells) > 1]
    if not base:
        raise QsaeError("--matrix needs the costs of a reference and of a quantized cell of its model")
    return [
        replace(cell, model=f"{cell.model}#{number + 1}")
        for number, (reference, *quantized) in enumerate(islice(cycle(base), models))
        for cell in (reference, *islice(cycle(quantized), quantizations))
    ]
