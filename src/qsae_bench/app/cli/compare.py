"""Run ``qsae-bench compare``: A against B, paired over the stored rows."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError


def add_parser(commands: Any) -> None:
    compare = commands.add_parser(
        "compare", help="A against B, paired over the stored rows; quality against cost"
    )
    compare.add_argument(
        "operands", nargs="*", metavar="A B",
        help="quantizations of the run, folders of two runs, or RUN:NAME; A alone: against all others",
    )  # fmt: skip
    compare.add_argument("--run", type=Path, default=Path(".qsae/latest"), help="(default: %(default)s)")
    compare.add_argument("--model", default=None, metavar="NAME", help="(default: every model of the run)")
    compare.add_argument("--metrics", default="", metavar="A,B", help="(default: the headline metrics)")
    compare.add_argument("--format", choices=("terminal", "markdown", "json"), default="terminal")


def lines(chosen: argparse.Namespace) -> Iterable[str]:
    from qsae_bench.report.comparison import markdown_lines, terminal_lines
    from qsae_bench.report.comparison_json import json_lines
    from qsae_bench.results.compare import compare

    if len(chosen.operands) > 2:
        raise QsaeError(
            f"compare takes A and B, not {len(chosen.operands)} names; A alone is compared with all others"
        )
    metrics = tuple(filter(None, chosen.metrics.split(",")))
    outcome = compare(chosen.operands, chosen.run, chosen.model, metrics)
    write = {"terminal": terminal_lines, "markdown": markdown_lines, "json": json_lines}
    return write[chosen.format](outcome)
