"""Run ``qsae-bench report``: show a run, several, or two against each other, as a page to look at."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError


def add_parser(commands: Any) -> None:
    report = commands.add_parser("report", help="a page to look at: one file, no network")
    report.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="(default: latest in --qsae-dir)")
    report.add_argument(
        "--compare", nargs=2, default=None, metavar=("A", "B"),
        help="two runs, two quantizations of RUN, or RUN:NAME each: A against B first",
    )  # fmt: skip
    report.add_argument("--format", choices=("html", "markdown", "json"), default="html")
    report.add_argument(
        "-o", "--output", type=Path, default=None, metavar="FILE",
        help="(default: report.html; markdown and json are printed)",
    )  # fmt: skip
    report.add_argument(
        "--figures", type=Path, default=None, metavar="DIR", help="every figure as SVG and PNG, too"
    )
    report.add_argument(
        "--history", default="", metavar="URL",
        help="URL of the history, or none (default: QSAE_HISTORY, or history.sqlite in --qsae-dir)",
    )  # fmt: skip
    report.add_argument("--qsae-dir", default=".qsae", metavar="DIR", help="(default: %(default)s)")


def lines(chosen: argparse.Namespace) -> Iterable[str]:
    from qsae_bench.report import writing
    from qsae_bench.results.cell_pairs import StoredRun
    from qsae_bench.results.document import resolve_run
    from qsae_bench.results.history.url import history_url

    home = Path(chosen.qsae_dir)
    history = history_url(chosen.history, home)
    named = [resolve_run(run, home) for run in chosen.runs] or ([] if chosen.compare else [home / "latest"])
    runs = {run.folder: run for run in map(StoredRun.read, named)}  # one that is named twice is one
    documents = [(run.folder, run.document) for run in runs.values()]
    of_runs = writing.run_parts(documents, history, required=bool(chosen.history))
    parts, done = [*_compared(chosen, named), *of_runs], []
    if chosen.figures is not None:
        count = writing.write_figures(chosen.figures, parts)
        done.append(f"{chosen.figures}: {count} figures, each as SVG and PNG")
    if chosen.format == "html":
        path = chosen.output or Path(writing.REPORT)
        text = writing.html_report(parts, home)
        writing.write_text(path, text)
        return [*done, f"{path}: {len(text.encode()) / 1e6:.1f} MB; open it in a browser"]
    found = list(_plain(chosen, parts))
    if chosen.output is None:
        return found
    writing.write_text(chosen.output, "\n".join(found) + "\n")
    return [*done, f"{chosen.output}: written"]


def _compared(chosen: argparse.Namespace, runs: list[Path]) -> Iterable[Any]:
    from qsae_bench.report.comparison import comparison_part
    from qsae_bench.results.compare import compare

    if chosen.compare is None:
        return []
    if len(runs) > 1:
        raise QsaeError("report --compare A B takes one RUN, whose quantizations A and B are, or none")
    home = Path(chosen.qsae_dir)
    outcome = compare(chosen.compare, runs[0] if runs else home / "latest")
    return [comparison_part(outcome, [text.rstrip("/").rpartition("/")[2] for text in chosen.compare])]


def _plain(chosen: argparse.Namespace, parts: Any) -> Iterable[str]:
    from qsae_bench.report.blocks import json_lines
    from qsae_bench.report.markdown import report_lines

    if chosen.format == "json":
        return json_lines(parts)
    folder = ""
    if chosen.figures is not None:
        home = chosen.output.parent if chosen.output else Path()
        folder = os.path.relpath(chosen.figures, home)
    return report_lines(parts, folder)
