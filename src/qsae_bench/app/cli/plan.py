"""Run ``qsae-bench plan``: show what each selected cell would take, and whether it fits on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qsae_bench.app.cli.keyword import cells_left
from qsae_bench.app.options import add_selection, values_of
from qsae_bench.registry.selection import registry_of, selected, selection_of


def add_parser(commands: Any) -> None:
    add_selection(commands.add_parser("plan", help="what each selected cell needs, and if it fits here"))


def lines(chosen: argparse.Namespace) -> Iterable[str]:
    from qsae_bench.machine import Machine
    from qsae_bench.report.resource_table import planning

    registry = registry_of(values_of(chosen))
    selection = selection_of(values_of(chosen), chosen.keyword)
    cells = cells_left(selected(registry, selection), chosen, registry)
    corpora = {cell: registry.corpus_of(cell.model, selection) for cell in cells}
    return planning(corpora, Machine.here(Path(chosen.qsae_dir or ".qsae")), chosen.device)
