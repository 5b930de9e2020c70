"""Run ``qsae-bench scale``: estimate how long a run, or a matrix of its cells, takes on so many workers."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.app.cli.keyword import cells_left
from qsae_bench.app.options import add_selection, given_options, values_of
from qsae_bench.errors import QsaeError
from qsae_bench.registry.selection import names, registry_of, selected, selection_of

if TYPE_CHECKING:
    from qsae_bench.results.document import RunDocument
    from qsae_bench.run.scale import CellCost

FOR_RUNS = ("--models", "--quantizations", "--tokens", "--qsae-dir")
"""options of the selection that choose among what a run has measured; the others are for --flops"""

BOUNDS = (
    "at least: the larger of the next two. work / workers: all busy seconds shared evenly. longest "
    "chain: a reference, then the longest task that waits for it. at most: work / workers + "
    "(1 - 1 / workers) · chain (Graham 1969), where every task sets its model up and every shard loads "
    "its cell."
)
ASSUMED_OF_RUN = (
    "assumed: a worker is as fast as the run's was (workers that share a processor are not); each cell "
    "takes as many looks as in the run; a reference that was already stored took less than one that is "
    "measured; nothing fails."
)
ASSUMED_OF_PLAN = (
    "assumed: per position 2 FLOP per weight of the blocks, and per side 2 · d_model · vocabulary for the "
    "head and 4 · d_model · d_sae per tapped layer: a reference one side, a quantized cell two. Left out: "
    "attention's scores, a quantization's own kernels, what is computed of activations and logits, "
    "downloads, and what is timed. One look per cell; nothing fails."
)
WARM = "A worker is one process, as with --workers. On Ray with GPUs each task has its own: --fresh."

SCALE_USAGE = """qsae-bench scale [RUN] [--models A,B] [--quantizations A,B] [--tokens N] [more]
       qsae-bench scale --flops F --bandwidth B [--float32-flops F] [--setup S] [options of plan] [more]
more:  [--gpus 1,8,64] [--shards K] [--matrix MxQ] [--start S] [--fresh] [--format json]"""


def add_parser(commands: Any) -> None:
    scale = commands.add_parser(
        "scale", usage=SCALE_USAGE, help="how long a run would take on many workers"
    )
    add = scale.add_argument
    add("run", nargs="?", type=Path, help="whose costs are taken (default: .qsae/latest)")
    add("--gpus", default="1,2,4,8", metavar="1,8,64", help="workers, a GPU each (default: %(default)s)")
    add("--shards", type=int, default=1, metavar="K", help="split a cell's sequences over K workers")
    add("--matrix", default="", metavar="MxQ", help="M models of Q quantized cells: these, in turn")
    add("--flops", type=float, metavar="F", help="no run: FLOP/s of a worker, such as 400e12")
    add("--float32-flops", type=float, metavar="F", help="in the SAEs' products (default: --flops)")
    add("--bandwidth", type=float, metavar="B", help="bytes/s of a worker's reading and writing")
    add("--setup", type=float, metavar="S", help="seconds per model and process, beside reading SAEs")
    add("--start", type=float, metavar="S", help="seconds until a worker is there (default: the run's)")
    add("--fresh", action="store_true", help="a process for each task, as on a Ray cluster with GPUs")
    add("--format", choices=("terminal", "json"), default="terminal")
    add_selection(scale)


def lines(chosen: argparse.Namespace) -> Iterable[str]:
    from qsae_bench.report.tables import table
    from qsae_bench.results.document import read_run
    from qsae_bench.run.scale import costs_of_matrix, run_time

    workers = [_at_least_1("--gpus", part) for part in chosen.gpus.split(",")]
    _check(chosen)
    document = None
    if chosen.flops is None:
        document = read_run(chosen.run or Path(chosen.qsae_dir or ".qsae", "latest"))
    costs = _of_plan(chosen) if document is None else _of_run(chosen, document)
    start = _start_seconds(document) if chosen.start is None else chosen.start
    cells = costs
    if chosen.matrix:
        models, quantizations = map(int, re.findall(r"\d+", chosen.matrix))
        cells = costs_of_matrix(costs, models, quantizations)
    found = [run_time(cells, count, chosen.shards, start, chosen.fresh) for count in workers]
    if chosen.format == "json":
        record = {
            "run": document.run_id if document else None, "shards": chosen.shards, "fresh": chosen.fresh,
            "start_seconds": start, "costs": [asdict(cell) for cell in costs], "cells": len(cells),
            "run_times": [asdict(one) | {"at_least_seconds": one.at_least_seconds} for one in found],
        }  # fmt: skip
        return [json.dumps(record, indent=1, allow_nan=False)]
    references = sum(cell.is_reference for cell in cells)
    shards = f", each in {chosen.shards} shards" if chosen.shards > 1 else ""
    costs_table = table(
        {
            "model": cell.model, "quantization": cell.quantization, "setup": duration(cell.setup_seconds),
            "load": duration(cell.load_seconds), "timed": duration(cell.timed_seconds),
            "pass": duration(cell.pass_seconds),
        }
        for cell in costs
    )  # fmt: skip
    bounds_table = table(
        {
            "workers": one.workers, "at least": duration(one.at_least_seconds),
            "work / workers": duration(one.work_seconds), "longest chain": duration(one.chain_seconds),
            "at most": duration(one.at_most_seconds),
        }
        for one in found
    )  # fmt: skip
    heading = f"references: {references}, quantized cells: {len(cells) - references}{shards}"
    return [*_source(document), *costs_table, "", heading, *bounds_table, "", *_notes(chosen)]


def _source(document: RunDocument | None) -> Iterator[str]:
    from qsae_bench.machine import hardware_of
    from qsae_bench.report.tables import wrapped

    if document is not None:
        where = document.environment.get("executor") or "one process"
        yield from wrapped(f"run {document.run_id}: {where}, {hardware_of(document.environment)}")


def _notes(chosen: argparse.Namespace) -> Iterator[str]:
    from qsae_bench.report.tables import wrapped

    yield from wrapped(BOUNDS)
    yield from wrapped(ASSUMED_OF_RUN if chosen.flops is None else ASSUMED_OF_PLAN)
    if not chosen.fresh:
        yield from wrapped(WARM)


def _at_least_1(name: str, text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise QsaeError(f"{name} {text!r}: a number of at least 1 is needed")
    return int(text)


def _check(chosen: argparse.Namespace) -> None:
    option = values_of(chosen)
    _at_least_1("--shards", str(chosen.shards))
    if chosen.matrix and not re.fullmatch(r"[1-9]\d*[x×][1-9]\d*", chosen.matrix):
        raise QsaeError(f"--matrix {chosen.matrix!r}: models x quantizations, such as 10x12")
    for name in ("--flops", "--float32-flops", "--bandwidth"):
        if option(name) is not None and not 0 < option(name) < math.inf:
            raise QsaeError(f"{name} {option(name):g}: more than 0 is needed")
    for name in ("--setup", "--start"):
        if option(name) is not None and not 0 <= option(name) < math.inf:
            raise QsaeError(f"{name} {option(name):g}: seconds, at least 0, are needed")
    if chosen.flops is not None:
        if chosen.run is not None:
            raise QsaeError(f"scale: {chosen.run} or --flops: a run's costs are measured, not counted")
        if chosen.bandwidth is None:
            raise QsaeError(
                "scale: --flops needs --bandwidth: bytes/s that weights and references are read at"
            )
        return
    given = [name for name in given_options(chosen) if name not in FOR_RUNS]
    given += [name for name in ("--float32-flops", "--bandwidth", "--setup") if option(name) is not None]
    given += ["-k"] * bool(chosen.keyword)
    if given:
        raise QsaeError(f"scale: {given[0]}: a run has its own; with --flops F no run is read")


def _of_run(chosen: argparse.Namespace, document: RunDocument) -> list[CellCost]:
    from qsae_bench.run.scale import costs_of_run

    costs = costs_of_run(document, selection_of(values_of(chosen), "").tokens)
    models, quantizations = names(chosen.models), names(chosen.quantizations)
    for option, asked, known in (
        ("models", models, {cell.model for cell in costs}),
        ("quantizations", quantizations, {cell.quantization for cell in costs}),
    ):
        for name in asked:
            if name not in known:
                there = ", ".join(sorted(known))
                raise QsaeError(f"--{option} {name}: the run has no such costs; of: {there}")
    return [
        cell
        for cell in costs
        if (not models or cell.model in models)
        and (not quantizations or cell.is_reference or cell.quantization in quantizations)
    ]


def _of_plan(chosen: argparse.Namespace) -> list[CellCost]:
    from qsae_bench.run.scale import costs_of_plan

    registry = registry_of(values_of(chosen))
    selection = selection_of(values_of(chosen), chosen.keyword)
    cells = cells_left(selected(registry, selection), chosen, registry)
    every = dict.fromkeys(one for cell in cells for one in (registry.reference_of(cell), cell))
    return costs_of_plan(
        {cell: registry.corpus_of(cell.model, selection) for cell in every}, chosen.flops,
        chosen.bandwidth, chosen.float32_flops or 0.0, chosen.setup or 0.0, chosen.device != "cpu",
    )  # fmt: skip


def _start_seconds(document: RunDocument | None) -> float:
    """Return the run's own; 0 where its cells were measured in the process of the tests."""
    known = document.environment.get("worker_start_seconds") if document is not None else None
    return float(known) if isinstance(known, int | float) and 0 <= known < math.inf else 0.0


def duration(seconds: float) -> str:
    """Format seconds with the unit that a person would use."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"
