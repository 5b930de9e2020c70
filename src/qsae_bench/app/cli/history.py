"""Run ``qsae-bench history``: import folders of runs, and show a metric run by run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError, plain

IMPORT = "import"

HISTORY_USAGE = """qsae-bench history [options] import FOLDER...
       qsae-bench history [options] --model NAME --metric KEY [--quantization NAME]
                          [--layer L] [--last N]"""


def add_parser(commands: Any) -> None:
    history = commands.add_parser(
        "history",
        usage=HISTORY_USAGE,
        help="a metric run by run, its changes marked; import folders of runs",
    )
    history.add_argument(
        "what", nargs="*", metavar="import FOLDER", help="runs, or folders of them, such as .qsae/runs"
    )
    history.add_argument("--model", default="", metavar="NAME")
    history.add_argument("--metric", default="", metavar="KEY", help="as in the run document")
    history.add_argument("--quantization", default="", metavar="NAME", help="(default: every one)")
    history.add_argument("--layer", type=int, default=None, metavar="L", help="(default: every one)")
    history.add_argument("--last", type=int, default=0, metavar="N", help="show only the newest N runs")
    history.add_argument(
        "--history", default="", metavar="URL",
        help="sqlite:///FILE or postgresql://… (default: QSAE_HISTORY, or history.sqlite in --qsae-dir)",
    )  # fmt: skip
    history.add_argument("--qsae-dir", default=".qsae", metavar="DIR", help="(default: %(default)s)")


def lines(chosen: argparse.Namespace) -> Iterable[str]:
    from qsae_bench.results.history.url import history_url

    url = history_url(chosen.history, Path(chosen.qsae_dir))
    if not url:
        raise QsaeError("history: it is switched off (none): name one with --history URL")
    if chosen.what:
        if chosen.what[0] != IMPORT:
            raise QsaeError(f"history: unknown word {chosen.what[0]!r}: did you mean {IMPORT!r}?")
        return _import(url, [Path(folder) for folder in chosen.what[1:]])
    if not chosen.model or not chosen.metric:
        raise QsaeError("history: --model and --metric are needed, or `import FOLDER`")
    return _series(url, chosen)


def _import(url: str, folders: list[Path]) -> Iterable[str]:
    from qsae_bench.results.history.importing import import_runs
    from qsae_bench.results.history.store import History

    def report(line: str) -> None:
        print(f"qsae-bench: {plain(line)}", file=sys.stderr, flush=True)

    if not folders:
        raise QsaeError("history import: name a run's folder, or a folder of runs such as .qsae/runs")
    with History.open(url, create=True) as history:
        done = import_runs(history, folders, report)
        outcome = f"{history.shown}: " + ", ".join(f"{count} {what}" for what, count in done.items())
    if done["failed"]:
        raise QsaeError(outcome)
    return [outcome]


def _series(url: str, chosen: argparse.Namespace) -> Iterable[str]:
    from qsae_bench.report.history import history_lines
    from qsae_bench.results.history.queries import series
    from qsae_bench.results.history.store import History

    if chosen.last < 0:
        raise QsaeError(f"history: --last {chosen.last}: a number of runs is needed")
    with History.open(url) as history:
        found = series(history, chosen.model, chosen.metric, chosen.quantization, chosen.layer)
    return history_lines(found, chosen.last)
