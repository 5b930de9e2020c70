"""``qsae-bench``: look at what is known and at what was measured. No torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qsae_bench.app.cli import history as cli_history
from qsae_bench.app.cli import report as cli_report
from qsae_bench.app.cli import scale as cli_scale
from qsae_bench.app.cli import thresholds as cli_thresholds
from qsae_bench.errors import QsaeError, plain
from qsae_bench.registry.entries import Registry
from qsae_bench.registry.selection import OPTIONS, matching, registry_of, selected, selection_of
from qsae_bench.registry.specs import Cell
from qsae_bench.report.tables import painted

USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status."""
    parser = argparse.ArgumentParser(
        prog="qsae-bench", description="Look at what is known and at what was measured."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("list", "models, SAEs, quantizations and corpora by name"),
        ("plan", "what each selected cell would take, and whether it fits here"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("-k", dest="keyword", default="", metavar="EXPR", help="as pytest's -k")
        for option, keywords in OPTIONS:
            command.add_argument(option, **keywords)
    show = commands.add_parser(
        "show", help="the tables of a run (default: .qsae/latest), and every metric of chosen cells"
    )
    show.add_argument("run", nargs="?", type=Path, default=Path(".qsae/latest"))
    show.add_argument("-k", dest="keyword", default="", metavar="TEXT", help="cells whose id has TEXT")
    compare = commands.add_parser(
        "compare", help="A against B, paired over the stored rows; quality against cost"
    )
    compare.add_argument(
        "operands", nargs="*", metavar="A B",
        help="quantizations of the run, two runs' folders, or RUN:NAME; one alone: against all others",
    )  # fmt: skip
    compare.add_argument("--run", type=Path, default=Path(".qsae/latest"), help="(default: %(default)s)")
    compare.add_argument("--model", default=None, metavar="NAME", help="(default: every model of the run)")
    compare.add_argument("--metrics", default="", metavar="A,B", help="(default: the headline ones)")
    compare.add_argument("--format", choices=("terminal", "markdown", "json"), default="terminal")
    cli_report.add_parser(commands)
    cli_history.add_parser(commands)
    cli_scale.add_parser(commands)
    cli_thresholds.add_parser(commands)
    chosen = parser.parse_args(arguments)
    try:
        commanded = {
            "list": _list, "plan": _plan, "show": _show, "compare": _compare,
            "thresholds": cli_thresholds.lines, "history": cli_history.lines,
            "report": cli_report.lines, "scale": cli_scale.lines,
        }  # fmt: skip
        lines = commanded[chosen.command](chosen)
        print("\n".join(painted(lines, sys.stdout, os.environ)), flush=True)
    except QsaeError as error:
        print(f"qsae-bench: {plain(str(error))}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:  # the reader has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _option(chosen: argparse.Namespace) -> Callable[[str], Any]:
    return lambda name: getattr(chosen, name.lstrip("-").replace("-", "_"))


def _list(chosen: argparse.Namespace) -> Iterable[str]:
    from qsae_bench.report.registry_tables import listing

    registry = registry_of(_option(chosen))
    selection = selection_of(_option(chosen), chosen.keyword)
    if not any((chosen.keyword, selection.models, selection.quantizations)):
        # nothing is singled out: all that is known, not only what runs by default
        selection = replace(selection, keyword=" ".join([*registry.models, *registry.quantizations]))
    return listing(registry, _left(registry.select(selection), chosen.keyword, registry))


def _left(cells: Iterable[Cell], keyword: str, registry: Registry) -> tuple[Cell, ...]:
    """The cells that ``-k`` leaves; none is a mistake."""
    left = matching(cells, keyword)
    if not left:
        raise QsaeError(f"-k {keyword!r} leaves no cell; models: {', '.join(registry.models)}")
    return left


def _plan(chosen: argparse.Namespace) -> Iterable[str]:
    from qsae_bench.machine import Machine
    from qsae_bench.report.resource_table import planning

    registry = registry_of(_option(chosen))
    selection = selection_of(_option(chosen), chosen.keyword)
    cells = _left(selected(registry, selection), chosen.keyword, registry)
    corpora = {cell: registry.corpus_of(cell.model, selection) for cell in cells}
    machine = Machine.here(Path(chosen.qsae_dir or ".qsae"))
    return planning(corpora, machine, chosen.device)


def _show(chosen: argparse.Namespace) -> Iterable[str]:
    from qsae_bench.report.cell_details import cell_lines
    from qsae_bench.report.terminal import summary_lines
    from qsae_bench.results.document import read_run

    document = read_run(chosen.run)
    if not chosen.keyword:
        return summary_lines(document)
    cells = [cell for cell in document.cells if chosen.keyword in f"{cell.model}-{cell.quantization}"]
    if not cells:
        known = ", ".join(f"{cell.model}-{cell.quantization}" for cell in document.cells)
        raise QsaeError(f"{chosen.run}: no cell has {chosen.keyword!r} in its id; cells: {known}")
    return [line for cell in cells for line in cell_lines(cell)]


def _compare(chosen: argparse.Namespace) -> Iterable[str]:
    from qsae_bench.report.comparison_blocks import markdown_lines, terminal_lines
    from qsae_bench.report.comparison_json import json_lines
    from qsae_bench.results.compare import compare

    if len(chosen.operands) > 2:
        raise QsaeError(
            f"compare takes A and B, not {len(chosen.operands)} names; A alone goes against all"
        )
    metrics = tuple(filter(None, chosen.metrics.split(",")))
    outcome = compare(chosen.operands, chosen.run, chosen.model, metrics)
    written = {"terminal": terminal_lines, "markdown": markdown_lines, "json": json_lines}
    return written[chosen.format](outcome)


if __name__ == "__main__":
    sys.exit(main())
