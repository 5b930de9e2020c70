"""Run ``qsae-bench list``: show models, SAEs, quantizations and corpora by name."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from qsae_bench.app.cli.keyword import cells_left
from qsae_bench.app.options import add_selection, values_of
from qsae_bench.registry.selection import registry_of, selection_of


def add_parser(commands: Any) -> None:
    add_selection(commands.add_parser("list", help="models, SAEs, quantizations and corpora by name"))


def lines(chosen: argparse.Namespace) -> Iterable[str]:
    from qsae_bench.report.registry_tables import listing

    registry = registry_of(values_of(chosen))
    selection = selection_of(values_of(chosen), chosen.keyword)
    if not any((chosen.keyword, selection.models, selection.quantizations)):
        # nothing is singled out: all that is known, not only what runs by default
        selection = replace(selection, keyword=" ".join([*registry.models, *registry.quantizations]))
    return listing(registry, cells_left(registry.select(selection), chosen, registry))
