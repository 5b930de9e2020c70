"""Run ``qsae-bench scale``: estimate how long a run, or a plan, takes on so many workers."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qsae_bench.app.cli.keyword import cells_left
from qsae_bench.app.options import add_selection, given_options, values_of
from qsae_bench.errors import QsaeError
from qsae_bench.registry.selection import registry_of, selected, selection_of

NOTE = (
    "at least: the larger of the next two. work per worker: all busy seconds shared evenly. longest chain: "
    "a reference, then the longest task that waits for it. at most: work / workers + (1 - 1 / workers) · "
    "chain (Graham 1969), where each task has a process of its own and sets its model up. Assumed: nothing "
    "fails; "
)
OF_RUN = (
    "a worker is as fast as the run's was (workers that share a processor are not), and a reference that "
    "was already stored took less than one that is measured."
)
OF_PLAN = (
    "one look per cell. Left out: attention's scores, a quantization's own kernels, what is computed of "
    "activations and logits, downloads, and what is timed."
)


def add_parser(commands: Any) -> None:
    usage = "qsae-bench scale [RUN | --flops F --bandwidth B [options of plan]] [--gpus 1,8,64]"
    parser = commands.add_parser("scale", usage=usage, help="how long a run would take on many workers")
    add = parser.add_argument
    add("run", nargs="?", type=Path, help="whose costs are taken (default: .qsae/latest)")
    add("--gpus", default="1,2,4,8", metavar="1,8,64", help="workers, a GPU each (default: %(default)s)")
    add("--flops", type=float, metavar="F", help="no run: FLOP/s of a GPU, such as 400e12")
    add("--bandwidth", type=float, metavar="B", help="no run: bytes/s that a GPU's worker reads")
    add("--format", choices=("terminal", "json"), default="terminal")
    add_selection(parser)


def lines(chosen: argparse.Namespace) -> Iterable[str]:
    from qsae_bench.report.tables import table, wrapped
    from qsae_bench.results.document import read_run
    from qsae_bench.run.scale import costs_of_plan, costs_of_run, run_time

    _check(chosen)
    start, option = 0.0, values_of(chosen)
    if chosen.flops is None:
        document = read_run(chosen.run or Path(chosen.qsae_dir or ".qsae", "latest"))
        costs, start = costs_of_run(document), document.environment.get("worker_start_seconds", 0.0)
    else:
        registry, selection = registry_of(option), selection_of(option, chosen.keyword)
        cells = cells_left(selected(registry, selection), chosen, registry)
        every = dict.fromkeys(one for cell in cells for one in (registry.reference_of(cell), cell))
        corpora = {cell: registry.corpus_of(cell.model, selection) for cell in every}
        costs = costs_of_plan(corpora, chosen.flops, chosen.bandwidth)
    found = [asdict(run_time(costs, int(count), start)) for count in chosen.gpus.split(",")]
    if chosen.format == "json":
        return [json.dumps(found, indent=1)]
    rows = (
        {
            key.replace("_", " "): value if key == "workers" else duration(value)
            for key, value in one.items()
        }
        for one in found
    )
    names = ", ".join(f"{cost.model}-{cost.quantization}" for cost in costs)
    note = NOTE + (OF_RUN if chosen.flops is None else OF_PLAN)
    return [*wrapped(f"cells: {names}"), *table(rows), "", *wrapped(note)]


def _check(chosen: argparse.Namespace) -> None:
    for count in chosen.gpus.split(","):
        if not count.strip().isdecimal() or int(count) < 1:
            raise QsaeError(f"--gpus {count!r}: a number of at least 1 is needed")
    rates = {"--flops": chosen.flops, "--bandwidth": chosen.bandwidth}
    of_plan = [*(name for name, rate in rates.items() if rate is not None), *given_options(chosen)]
    of_plan = [name for name in of_plan if name != "--qsae-dir"] + ["-k"] * bool(chosen.keyword)
    if of_plan and (chosen.run is not None or None in rates.values()):
        raise QsaeError(f"scale: {of_plan[0]}: goes with --flops F --bandwidth B, and without a run")
    for name, rate in rates.items():
        if rate is not None and not 0 < rate < math.inf:
            raise QsaeError(f"{name} {rate:g}: more than 0 is needed")


def duration(seconds: float) -> str:
    """Format seconds with the unit that a person would use."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"
