"""``qsae-bench scale``: how long a run, or a matrix of its cells, would take on so many workers."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError
from qsae_bench.registry.selection import OPTIONS, names, registry_of, selected, selection_of

if TYPE_CHECKING:
    from qsae_bench.results.document import RunDocument
    from qsae_bench.run.scale.costs import Costs
    from qsae_bench.run.scale.schedule import CellCost, Schedule

HOME, LATEST = ".qsae", "latest"
OF_A_RUN = ("--models", "--quantizations", "--tokens", "--registry", "--qsae-dir")
"""options of the selection that choose among what a run has measured; the others are for --flops"""

USAGE = """qsae-bench scale [RUN] [--models A,B] [--quantizations A,B] [--tokens N]
                        [--bandwidth B] [more]
       qsae-bench scale --flops F --bandwidth B [options of plan] [more]
more:  [--gpus 1,8,64] [--shards K] [--matrix MxQ] [--setup S] [--start S] [--fresh] [--format json]"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to argparse's subparsers."""
    scale = commands.add_parser("scale", usage=USAGE, help="how long a run would take on many workers")
    add = scale.add_argument
    add("run", nargs="?", type=Path, help=f"whose costs are taken (default: {HOME}/{LATEST})")
    add("--gpus", default="1,2,4,8", metavar="1,8,64", help="workers, a GPU each (default: %(default)s)")
    add("--shards", type=int, default=1, metavar="K", help="split a cell's sequences over K workers")
    add("--matrix", default="", metavar="MxQ", help="M models of Q quantized cells: these, in turn")
    add("--flops", type=float, metavar="F", help="no run: FLOP/s that a worker does, such as 400e12")
    add("--float32-flops", type=float, metavar="F", help="of the SAEs (default: --flops)")
    add("--bandwidth", type=float, metavar="B", help="bytes/s of a worker's reading and writing")
    add("--setup", type=float, metavar="S", help="seconds whenever a worker turns to a model")
    add("--start", type=float, metavar="S", help="seconds until a worker is there (default: the run's)")
    add("--fresh", action="store_true", help="a process for each task, as on a Ray cluster with GPUs")
    add("--format", choices=("terminal", "json"), default="terminal")
    add("-k", dest="keyword", default="", metavar="EXPR", help="as pytest's -k; with --flops")
    for option, keywords in OPTIONS:
        add(option, **keywords)


def lines(chosen: argparse.Namespace) -> Iterable[str]:
    """What the subcommand prints.

    Raises:
        QsaeError: wrong options, no such run, or one that has not what a prediction needs.
    """
    from qsae_bench.results.document import read_run
    from qsae_bench.run.scale.costs import repeated
    from qsae_bench.run.scale.schedule import schedule

    counts = [_positive("--gpus", part) for part in chosen.gpus.split(",")]
    _bounded(chosen)
    document = None
    if chosen.flops is None:
        _refuse(chosen)
        document = read_run(chosen.run or Path(chosen.qsae_dir or HOME, LATEST))
        costs = _of_run(chosen, document)
    else:
        costs = _of_plan(chosen)
    if not costs.cells:
        raise QsaeError("scale: nothing to predict from: " + "; ".join(costs.lacking or ("no cell",)))
    cells: Sequence[CellCost] = costs.cells
    if chosen.matrix:
        models, quantizations = _matrix(chosen.matrix)
        cells = repeated(cells, models, quantizations)
        if not cells:
            raise QsaeError(f"--matrix {chosen.matrix}: no quantized cell is there to repeat")
    start = costs.start_seconds if chosen.start is None else chosen.start
    found = [
        schedule(cells, count, chosen.shards, start, costs.driver_seconds, keeps=not chosen.fresh)
        for count in counts
    ]
    processes = (
        "each task has a process of its own, and pays for its start, tokens and SAEs (--fresh)"
        if chosen.fresh
        else "a worker is one process, as with --workers; on a Ray cluster with GPUs each task has its own "
        "(--fresh)"
    )
    assumed = (
        *costs.assumed,
        f"a worker takes {start:g} s to be there (--start){_unknown(document, chosen)}; one is enough for "
        "any of the models",
        processes,
        "each cell ends after its first look, nothing fails, and no worker is lost",
    )
    costs = replace(costs, assumed=assumed)
    if chosen.format == "json":
        return [json.dumps(_record(chosen, document, costs, cells, found), indent=1, allow_nan=False)]
    return _told(chosen, document, costs, cells, found)


def _unknown(document: RunDocument | None, chosen: argparse.Namespace) -> str:
    """A cluster's processes start when it likes, and with GPUs there is one for each task."""
    if document is None or chosen.start is not None or "worker_start_seconds" in document.environment:
        return ""
    return ": the run does not tell"


# -- options ----------------------------------------------------------------------------------------


def _positive(name: str, text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise QsaeError(f"{name} {text!r}: a number of at least 1 is needed")
    return int(text)


def _matrix(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if not found or not int(found[1]) or not int(found[2]):
        raise QsaeError(f"--matrix {text!r}: models x quantizations, such as 10x12")
    return int(found[1]), int(found[2])


def _bounded(chosen: argparse.Namespace) -> None:
    _positive("--shards", str(chosen.shards))
    for name in ("flops", "float32_flops", "bandwidth"):
        value = getattr(chosen, name)
        if value is not None and not 0 < value < math.inf:
            raise QsaeError(f"--{name.replace('_', '-')} {value:g}: more than 0 is needed")
    for name in ("setup", "start"):
        value = getattr(chosen, name)
        if value is not None and not 0 <= value < math.inf:
            raise QsaeError(f"--{name} {value:g}: seconds, at least 0, are needed")


def _option(chosen: argparse.Namespace) -> Callable[[str], Any]:
    return lambda name: getattr(chosen, name.lstrip("-").replace("-", "_"))


def _refuse(chosen: argparse.Namespace) -> None:
    """What only makes sense without a run."""
    option = _option(chosen)
    others = [(name, keywords) for name, keywords in OPTIONS if name not in OF_A_RUN]
    given = [name for name, keywords in others if option(name) != keywords.get("default", False)]
    given += ["--float32-flops"] * (chosen.float32_flops is not None) + ["-k"] * bool(chosen.keyword)
    if given:
        raise QsaeError(f"scale: {given[0]}: a run has its own; with --flops F no run is read")


def _of_run(chosen: argparse.Namespace, document: RunDocument) -> Costs:
    from qsae_bench.run.scale.costs import of_run

    option = _option(chosen)
    tokens = selection_of(option, "").tokens
    costs = of_run(
        document, registry_of(option), tokens, chosen.bandwidth or 0.0, chosen.setup,
    )  # fmt: skip
    models, recipes = names(chosen.models), names(chosen.quantizations)
    known = {cell.model for cell in costs.cells}, {cell.quantization for cell in costs.cells}
    for option_name, asked, there in (("models", models, known[0]), ("quantizations", recipes, known[1])):
        if unknown := [name for name in asked if name not in there]:
            raise QsaeError(
                f"--{option_name} {unknown[0]}: the run has no such costs; of: {', '.join(sorted(there))}"
                + "".join(f"; {line}" for line in costs.lacking if unknown[0] in line)
            )
    left = tuple(
        cell
        for cell in costs.cells
        if (not models or cell.model in models)
        and (not recipes or cell.quantization in recipes or cell.is_reference)
    )
    return replace(costs, cells=left)


def _of_plan(chosen: argparse.Namespace) -> Costs:
    from qsae_bench.registry.selection import matching
    from qsae_bench.run.scale.costs import of_plan

    if chosen.run is not None:
        raise QsaeError(f"scale: {chosen.run} or --flops: a run's costs are measured, not counted")
    if chosen.bandwidth is None:
        raise QsaeError("scale: --flops needs --bandwidth: bytes/s that weights and references are read at")
    registry = registry_of(_option(chosen))
    selection = selection_of(_option(chosen), chosen.keyword)
    cells = matching(selected(registry, selection), chosen.keyword)
    every = dict.fromkeys(one for cell in cells for one in (registry.reference_of(cell), cell))
    return of_plan(
        {cell: registry.corpus_of(cell.model, selection) for cell in every}, chosen.flops,
        chosen.bandwidth, chosen.float32_flops or 0.0, chosen.setup or 0.0, chosen.device != "cpu",
    )  # fmt: skip


# -- what is printed --------------------------------------------------------------------------------


def _told(
    chosen: argparse.Namespace,
    document: RunDocument | None,
    costs: Costs,
    cells: Sequence[CellCost],
    found: Sequence[Schedule],
) -> Iterator[str]:
    from qsae_bench.report.tables import table, wrapped

    if document is not None:
        yield from wrapped(_about(document))
    alike: dict[CellCost, list[str]] = {}
    for cell in costs.cells:
        alike.setdefault(replace(cell, quantization=""), []).append(cell.quantization)
    beside = any(cell.timed_seconds or cell.other_seconds for cell in costs.cells)
    yield from table(_cell_row(cell, recipes, beside) for cell, recipes in alike.items())
    yield ""
    references = sum(cell.is_reference for cell in cells)
    shards = f", each in {chosen.shards} shards" if chosen.shards > 1 else ""
    models = len({cell.model for cell in cells})
    yield from wrapped(
        f"{models} model{'s' * (models > 1)}: references {references}, "
        f"quantized cells {len(cells) - references}{shards}"
    )
    yield from table(_schedule_row(one, found[0]) for one in found)
    yield ""
    yield from wrapped(
        "timed: what is timed beside the pass. other: inspecting weights, warming up. GB: that a reference "
        "writes, and each of its cells reads. at least: the longest path (a reference and the longest task "
        "after it), and all work shared evenly. at most: Graham's bound. store/s: between all workers and "
        "the store, on average. speed-up: over the first line."
    )
    yield ""
    yield "assumed:"
    for line in costs.assumed:
        yield from wrapped(f"- {line}")
    for line in costs.lacking:
        yield from wrapped(f"left out: {line}")


def _about(document: RunDocument) -> str:
    from qsae_bench.environment import hardware_of
    from qsae_bench.run.scale.costs import wall_seconds

    where = document.environment.get("executor") or "one process"
    took = duration(wall_seconds(document))
    return f"run {document.run_id}: {where}, {hardware_of(document.environment)}; it took {took}"


def _cell_row(cell: CellCost, recipes: Sequence[str], beside: bool) -> dict[str, object]:
    """``beside``: whether a cell of the table has anything beside its load and pass."""
    own = {"timed s": f"{cell.timed_seconds:,.2f}", "other s": f"{cell.other_seconds:,.2f}"}
    return {
        "model": cell.model,
        "quantization": " ".join(recipes),
        "load s": f"{cell.load_seconds:,.2f}",
        **(own if beside else {}),
        "positions": f"{cell.positions:,}",
        "positions/s": f"{1 / cell.position_seconds:,.0f}",
        "pass s": f"{cell.pass_seconds:,.2f}",
        "store s": f"{cell.store_seconds:,.2f}",
        "GB": f"{(cell.rows_bytes + cell.head_bytes) / 1e9:,.2f}",
        "total": duration(cell.seconds),
    }


def _schedule_row(one: Schedule, first: Schedule) -> dict[str, object]:
    makespan = one.makespan_seconds
    return {
        "workers": one.workers, "makespan": duration(makespan),
        "speed-up": f"{first.makespan_seconds / makespan:.2f}" if makespan else "–",
        "busy": f"{one.busy_share:.0%}", "at least: path": duration(one.path_bound_seconds),
        "at least: work": duration(one.work_bound_seconds), "at most": duration(one.list_bound_seconds),
        "store/s": f"{one.store_bytes / makespan / 1e9:,.3f} GB" if makespan else "–",
    }  # fmt: skip


def duration(seconds: float) -> str:
    """With the unit that a person would use."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def _record(
    chosen: argparse.Namespace,
    document: RunDocument | None,
    costs: Costs,
    cells: Sequence[CellCost],
    found: Sequence[Schedule],
) -> dict[str, Any]:
    """Seconds and bytes, unrounded."""
    return {
        "run": document.run_id if document else None,
        "shards": chosen.shards,
        "cells": len(cells),
        "start_seconds": found[0].start_seconds,
        "fresh": chosen.fresh,
        "driver_seconds": found[0].driver_seconds,
        "costs": [
            {
                "model": cell.model, "quantization": cell.quantization, "positions": cell.positions,
                "load_seconds": cell.load_seconds, "timed_seconds": cell.timed_seconds,
                "other_seconds": cell.other_seconds, "setup_seconds": cell.setup_seconds,
                "position_seconds": cell.position_seconds,
                "pass_seconds": cell.pass_seconds, "store_seconds": cell.store_seconds,
                "store_bytes": cell.rows_bytes + cell.head_bytes, "seconds": cell.seconds,
            }
            for cell in costs.cells
        ],
        "schedules": [
            {
                "workers": one.workers, "makespan_seconds": one.makespan_seconds,
                "busy_share": one.busy_share, "path_bound_seconds": one.path_bound_seconds,
                "work_bound_seconds": one.work_bound_seconds, "list_bound_seconds": one.list_bound_seconds,
                "store_bytes": one.store_bytes,
            }
            for one in found
        ],
        "assumed": costs.assumed,
        "lacking": costs.lacking,
    }  # fmt: skip
