"""What cells cost: as a run measured it, or by counting products. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from qsae_bench.measure import resources as plan
from qsae_bench.registry.entries import Registry
from qsae_bench.registry.specs import REFERENCE, Cell, CorpusSpec
from qsae_bench.results.document import CellRecord, CorpusRecord, RunDocument, TimingRecord
from qsae_bench.run.scale.schedule import CellCost
from qsae_bench.run.timed_works import warm_ups
from qsae_bench.run.timings import RATES

LOADED = "load_seconds"
SPEED = "evaluation_tokens_per_second"
SHARDED = "shards a cell"
"""of what executed a run: each shard has loaded its cell, and how often is not known"""


@dataclass(frozen=True)
class Costs:
    """Cells in the order in which they are asked for, and what is assumed of them."""

    cells: tuple[CellCost, ...]
    assumed: tuple[str, ...]
    lacking: tuple[str, ...] = ()
    """cells that were left out, with what would measure them"""
    start_seconds: float = 0.0
    """until a worker is there"""
    driver_seconds: float = 0.0
    """that a run takes beside what its workers do, however many they are"""


# -- as a run measured it ---------------------------------------------------------------------------


def of_run(
    document: RunDocument,
    registry: Registry,
    tokens: int = 0,
    bandwidth: float = 0.0,
    setup_seconds: float | None = None,
) -> Costs:
    """The measured cells of a run.

    Args:
        tokens: predicted tokens a cell; 0: as many as were measured.
        bandwidth: bytes/s to and from the reference store; 0: what the run's own store gave.
        setup_seconds: a worker's, whenever it turns to a model; None: as the run's took.
    """
    found, lacking = _measured(document, tokens)
    start, driver, assumed = _beside(document)
    if setup_seconds is None:
        own = dict.fromkeys((cell.model, round(cell.setup_seconds, 1)) for cell in found)
        told = ", ".join(f"{model} {seconds:,.1f} s" for model, seconds in own)
        assumed.append(
            f"a worker that turns to a model takes for its tokens and SAEs, as the run did: {told}"
        )
    else:
        assumed.append(f"a worker takes {setup_seconds:g} s to turn to a model (--setup)")
        found = [replace(cell, setup_seconds=setup_seconds) for cell in found]
    found, unknown = _stored(document, registry, found, bandwidth)
    if bandwidth:
        assumed.append(f"each worker writes and reads the store at {bandwidth:g} bytes/s (--bandwidth)")
    else:
        assumed.append("the store is as fast as the run's own was, however many read it (--bandwidth)")
    if unknown:
        assumed.append(f"no store traffic of {', '.join(unknown)}: the registry has no architecture")
    flagged = [c for c in document.cells if any(timing.flags for timing in c.timings.values())]
    if flagged:
        assumed.append(
            f"{len(flagged)} of the run's cells were timed on a device that something else disturbed: "
            "a run with --workers 1 on a quiet machine tells more"
        )
    assumed.append("a worker is as fast as the run's was: workers that share a processor are not")
    return Costs(tuple(found), tuple(assumed), tuple(lacking), start, driver)


def _measured(document: RunDocument, tokens: int) -> tuple[list[CellCost], list[str]]:
    """Cells with all that a prediction needs, and a line for each of the others that were measured."""
    found: list[CellCost] = []
    lacking: list[str] = []
    models = dict.fromkeys(cell.model for cell in document.cells)
    executor = str(document.environment.get("executor", ""))
    for model in models:
        cells = [c for c in document.cells if c.model == model and c.status in ("measured", "timed")]
        corpus = document.corpus.get(model)
        reference = next((cell for cell in cells if cell.quantization == REFERENCE), None)
        if not cells or corpus is None or not _sound(corpus):
            continue
        if reference is None or not _reference_seconds(reference.timings) or not _cost(reference, LOADED):
            command = f"pytest benchmarks --models {model}"
            lacking.append(f"{model}: no test_load and test_overhead of its reference: run {command}")
            continue
        for cell in sorted(cells, key=lambda cell: cell is not reference):
            if cell is reference:
                seconds = _reference_seconds(cell.timings)
                most = max((other.tokens for other in cells), default=0)
            else:
                rate = _cost(cell, SPEED)
                seconds, most = (1 / rate if rate else 0.0), cell.tokens
            if not seconds or not _cost(cell, LOADED):
                command = f"pytest benchmarks --models {model} --quantizations {cell.quantization}"
                lacking.append(f"{model}-{cell.quantization}: its pass or load was not timed: {command}")
                continue
            timed = _timed_seconds(cell.timings, document.environment)
            passed = _sequences(corpus, most) * corpus.sequence_length * seconds
            rest = cell.busy_seconds - cell.setup_seconds - _cost(cell, LOADED) - timed - passed
            found.append(
                CellCost(
                    model, cell.quantization, cell is reference, _sequences(corpus, tokens or most),
                    corpus.sequence_length, corpus.batch_size, seconds, _cost(cell, LOADED), timed,
                    max(0.0, rest) * (SHARDED not in executor), max(one.setup_seconds for one in cells),
                )
            )  # fmt: skip
    return found, lacking


def _sound(corpus: CorpusRecord) -> bool:
    """The document lets its numbers be anything."""
    return min(corpus.tokens, corpus.sequences, corpus.sequence_length, corpus.batch_size) > 0


def _cost(cell: CellRecord, key: str) -> float:
    value = cell.metrics[key].value if key in cell.metrics else None
    return value if value is not None and value > 0 else 0.0


def _sequences(corpus: CorpusRecord, tokens: int) -> int:
    """That have so many predicted tokens, as those of the run have."""
    return max(1, math.ceil((tokens or corpus.tokens) * corpus.sequences / corpus.tokens))


def _reference_seconds(timings: Mapping[str, TimingRecord]) -> float:
    """A position's: a bare forward, and half of what an evaluation adds to it, which does both sides.

    0 where ``test_overhead``, which times both in turns, was not run.
    """
    forward, evaluation = timings.get("forward"), timings.get("evaluation")
    if forward is None or evaluation is None or min(forward.tokens, evaluation.tokens) < 1:
        return 0.0
    bare, full = (timing.median_seconds / timing.tokens for timing in (forward, evaluation))
    return bare + max(0.0, full - bare) / 2


def _timed_seconds(timings: Mapping[str, TimingRecord], environment: Mapping[str, Any]) -> float:
    """All rounds, with those before that are not counted."""
    before = warm_ups(str(environment.get("device")))
    return sum(
        sum(timing.seconds) + timing.median_seconds * (before if work in RATES else 1)
        for work, timing in timings.items()
    )


def workers_of(document: RunDocument) -> int:
    """How many had measured it; 0 where that is not known, as of a cluster."""
    about = str(document.environment.get("executor", ""))
    told = re.match(r"local, (\d+) worker", about)
    return int(told[1]) if told else 0 if about else 1


def wall_seconds(document: RunDocument) -> float:
    """From beginning to end, to a second; 0 where the document does not say it."""
    try:
        began, ended = (datetime.fromisoformat(text) for text in (document.started, document.finished))
        return max(0.0, (ended - began).total_seconds())
    except (ValueError, TypeError):  # the document leaves the two open
        return 0.0


def _beside(document: RunDocument) -> tuple[float, float, list[str]]:
    """Seconds until a worker is there, and with none at work; and what is assumed of the two."""
    known = document.environment.get("worker_start_seconds")
    start = float(known) if isinstance(known, int | float) and 0 <= known < math.inf else 0.0
    if workers_of(document) != 1:
        return start, 0.0, [
            "a run takes nothing beside what its workers do: one of a single worker tells that"
        ]  # fmt: skip
    counted = {(cell.model, cell.quantization): cell.seconds for cell in _measured(document, 0)[0]}
    # a run of an older version does not say what its cells took
    busy = sum(
        cell.busy_seconds or counted.get((cell.model, cell.quantization), 0.0) for cell in document.cells
    )
    driver = max(0.0, wall_seconds(document) - start - busy)
    return start, driver, [
        f"a run takes {driver:,.1f} s beside its workers, as this one did: before the first task and after "
        "the last"
    ]  # fmt: skip


def _stored(
    document: RunDocument, registry: Registry, cells: Iterable[CellCost], bandwidth: float
) -> tuple[list[CellCost], list[str]]:
    """With the store's traffic, for models whose shape the registry knows; the names of the others."""
    on_gpu = document.environment.get("device") != "cpu"
    found: list[CellCost] = []
    unknown: dict[str, None] = {}
    for cell in cells:
        model = registry.models.get(cell.model)
        if model is None or not model.architecture:
            unknown[cell.model] = None
            found.append(cell)
            continue
        tapped = {layer for c in document.cells if c.model == cell.model for layer in c.layers}
        layers = tuple(range(len(tapped))) if tapped else model.layers  # their number is what counts
        rows, head = plan.store_bytes(replace(model, layers=layers), cell.positions, on_gpu)
        seconds = 1 / bandwidth if bandwidth else 0.0
        found.append(replace(cell, rows_bytes=rows, head_bytes=head, byte_seconds=seconds))
    return found, list(unknown)


# -- by counting ------------------------------------------------------------------------------------


def of_plan(
    corpora: Mapping[Cell, CorpusSpec],
    flops: float,
    bandwidth: float,
    float32_flops: float = 0.0,
    setup_seconds: float = 0.0,
    on_gpu: bool = True,
) -> Costs:
    """Cells that nobody has measured, from their shapes; see :func:`position_flops`.

    Args:
        corpora: each cell's corpus as it would be run.
        flops: that a worker does a second in the model's own products.
        bandwidth: bytes/s that a worker reads weights, SAEs and the store at, and writes the store.
        float32_flops: of the SAEs' products; 0: ``flops``.
        setup_seconds: whenever a worker turns to a model, beside reading the SAEs.
    """
    found: list[CellCost] = []
    lacking: list[str] = []
    for cell, corpus in corpora.items():
        model = cell.model
        if not model.architecture or not model.sae.features:
            lacking.append(f"{cell.id}: its registry entry has no architecture, or no width of its SAEs")
            continue
        if cell.quantization.checkpoints and cell.checkpoint is None:
            lacking.append(f"{cell.id}: no checkpoint of this model in the entry")
            continue
        of_model, of_saes = position_flops(cell)
        sequences = math.ceil(corpus.tokens / (corpus.sequence_length - 1))
        rows, head = plan.store_bytes(model, sequences * corpus.sequence_length, on_gpu)
        saes = len(model.layers) * 2 * model.d_model * model.sae.features * plan.HUB_SAE_BYTES
        found.append(
            CellCost(
                model.name, cell.quantization.name, cell.is_reference, sequences, corpus.sequence_length,
                corpus.batch_size, of_model / flops + of_saes / (float32_flops or flops),
                plan.file_bytes(cell) / bandwidth, 0.0, 0.0, setup_seconds + saes / bandwidth, rows, head,
                1 / bandwidth,
            )
        )  # fmt: skip
    rate = f"{float32_flops:g} FLOP/s (--float32-flops)" if float32_flops else "the same rate"
    assumed = (
        f"a worker does {flops:g} FLOP/s in forward passes and heads (--flops), whatever the recipe, and "
        f"the SAEs' float32 products at {rate}",
        "a position takes 2 FLOP a weight of the blocks, and a side 2 · d_model · vocabulary for its head "
        "and 4 · d_model · d_sae a tapped layer: a reference one side, a quantized cell two; attention's "
        "scores and what is computed of the activations and logits are left out",
        f"weights, SAEs and the reference store are read, and the store is written, at {bandwidth:g} "
        "bytes/s by each worker, one after the other with the passes; files have been downloaded",
        f"turning to a model takes {setup_seconds:g} s (--setup) beside reading its SAEs; nothing is timed "
        "beside the passes",
    )
    return Costs(tuple(found), assumed, tuple(lacking))


def position_flops(cell: Cell) -> tuple[int, int]:
    """FLOP a position: of forward and heads, and of the SAEs.

    A product with a [d, k] matrix takes 2 · d · k. A quantized cell's pass has the heads and SAEs of both
    sides in it; a reference's reads its own side from what its forward left.
    """
    model, sides = cell.model, 1 if cell.is_reference else 2
    head = 2 * int(model.architecture["vocab_size"]) * model.d_model
    sae = 2 * (2 * model.d_model * model.sae.features)
    return 2 * plan.Parameters.of(model).blocks + sides * head, sides * len(model.layers) * sae


# -- a matrix of them --------------------------------------------------------------------------------


def repeated(cells: Iterable[CellCost], models: int, quantizations: int) -> list[CellCost]:
    """A matrix of so many models, each with its reference and so many quantized cells.

    The models that have a quantized cell are taken in turn, and so are the recipes of each.
    """
    known: dict[str, list[CellCost]] = {}
    for cell in cells:
        known.setdefault(cell.model, []).append(cell)
    base = [found for found in known.values() if any(not cell.is_reference for cell in found)]
    made: list[CellCost] = []
    for index in range(models if base else 0):
        found = base[index % len(base)]
        name = _numbered(found[0].model, index // len(base))
        recipes = [cell for cell in found if not cell.is_reference]
        made += [replace(cell, model=name) for cell in found if cell.is_reference]
        for k in range(quantizations):
            recipe = recipes[k % len(recipes)]
            made.append(
                replace(recipe, model=name, quantization=_numbered(recipe.quantization, k // len(recipes)))
            )
    return made


def _numbered(name: str, again: int) -> str:
    return f"{name}#{again + 1}" if again else name
