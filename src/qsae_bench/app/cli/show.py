"""Run ``qsae-bench show``: print the tables of a run, or every metric of chosen cells."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError


def add_parser(commands: Any) -> None:
    show = commands.add_parser("show", help="the tables of a run, and every metric of chosen cells")
    show.add_argument(
        "run", nargs="?", type=Path, default=Path(".qsae/latest"), help="folder (default: %(default)s)"
    )
    show.add_argument("-k", dest="keyword", default="", metavar="TEXT", help="cells whose id contains TEXT")


def lines(chosen: argparse.Namespace) -> Iterable[str]:
    from qsae_bench.report.terminal import cell_lines, summary_lines
    from qsae_bench.results.document import read_run

    document = read_run(chosen.run)
    if not chosen.keyword:
        return summary_lines(document)
    cells = [cell for cell in document.cells if chosen.keyword in cell.label]
    if not cells:
        known = ", ".join(cell.label for cell in document.cells)
        raise QsaeError(f"{chosen.run}: no cell has {chosen.keyword!r} in its id; cells: {known}")
    return [line for cell in cells for line in cell_lines(cell)]
