"""Bound how long the cells of a run, or of a plan, take on G workers.

A quantized cell waits for its model's reference and for nothing else. So no schedule is faster than all
busy seconds shared evenly (work / G), nor than the longest chain of a reference and one of its cells. None
that leaves no worker idle while a task is ready is slower than work / G + (1 - 1 / G) · chain, in whatever
order (Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl. Math. 17, 1969). No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    setup: float
    """for the model's tokens and SAEs, once a process"""
    rest: float
    """for everything else"""
    timed: float = 0.0
    """of the rest, for what is timed beside the pass: of a reference nobody waits for it"""


@dataclass(frozen=True)
class RunTime:
    """Hold bounds, in seconds, of how long the cells take on some number of workers."""

    workers: int
    at_least: float
    """the larger of the next two"""
    work_per_worker: float
    longest_chain: float
    at_most: float
    """Graham's, where each task has a process of its own and sets its model up"""


def run_time(costs: Sequence[CellCost], workers: int, start: float = 0.0) -> RunTime:
    """Bound the time that ``workers`` take for all cells; a process is there after ``start`` seconds."""
    least = most = chain = longest = 0.0
    for model in {cost.model for cost in costs}:
        cells = [cost for cost in costs if cost.model == model]
        references = [cost for cost in cells if cost.quantization == REFERENCE]
        waiting = [cost.rest for cost in cells if cost.quantization != REFERENCE]
        setup = max(cost.setup for cost in cells)
        stored = sum(cost.rest - cost.timed for cost in references)
        least += setup + sum(cost.rest for cost in cells)
        chain = max(chain, setup + stored + max(waiting, default=0.0))
        # several workers time a reference in a task of its own, which loads again: at most all it took
        waiting += [cost.rest for cost in references if cost.timed]
        most += (len(waiting) + bool(references)) * (start + setup) + stored + sum(waiting)
        longest = max(longest, 2 * (start + setup) + stored + max(waiting, default=0.0))
    work, chain = start + least / workers, start + chain
    at_most = most / workers + (1 - 1 / workers) * longest if workers > 1 else work
    return RunTime(workers, max(work, chain), work, chain, at_most)


def costs_of_run(document: RunDocument) -> list[CellCost]:
    """Return the costs of a run's cells, from the seconds that workers were busy with each."""
    found, before = [], warm_ups(str(document.environment.get("device")))
    for cell in document.cells:
        if cell.has_values and cell.busy_seconds > 0:
            rest = max(0.0, cell.busy_seconds - cell.setup_seconds)
            timed = sum(sum(one.seconds) + before * one.median_seconds for one in cell.timings.values())
            found.append(
                CellCost(cell.model, cell.quantization, cell.setup_seconds, rest, min(timed, rest))
            )
    if not found:
        raise QsaeError(f"run {document.run_id}: it does not record what its cells took: measure it again")
    return found


def costs_of_plan(corpora: Mapping[Cell, CorpusSpec], flops: float, bandwidth: float) -> list[CellCost]:
    """Return the costs of cells by their shapes, on a GPU with these FLOP/s and bytes/s.

    Per position 2 FLOP for each weight of the blocks, and per side (one of a reference, else two) for each
    of the head and of both matrices of the SAEs; bytes of weights, SAEs and the stored reference.
    """
    found = []
    for cell, corpus in corpora.items():
        model, sides = cell.model, 1 if cell.is_reference else 2
        if not model.architecture or not model.sae.features:
            raise QsaeError(f"{cell.id}: its registry entry has no architecture, or no width of its SAEs")
        positions = math.ceil(corpus.tokens / (corpus.sequence_length - 1)) * corpus.sequence_length
        saes = len(model.layers) * 2 * model.d_model * model.sae.features
        heads_and_saes = sides * (int(model.architecture["vocab_size"]) * model.d_model + saes)
        products = 2 * positions * (resources.Parameters.of(model).blocks + heads_and_saes)
        read = resources.weight_file_bytes(cell) + sum(resources.store_bytes(model, positions, on_gpu=True))
        setup, rest = saes * resources.HUB_SAE_BYTES / bandwidth, products / flops + read / bandwidth
        found.append(CellCost(model.name, cell.quantization.name, setup, rest))
    return found
