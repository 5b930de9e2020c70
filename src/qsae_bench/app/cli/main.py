"""Run ``qsae-bench``: what the registry has, what was measured, and what follows from it. No torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from qsae_bench.app.cli import compare, history, listing, plan, report, scale, show, thresholds
from qsae_bench.errors import QsaeError, plain
from qsae_bench.gate.exit_status import USAGE_ERROR
from qsae_bench.report.tables import painted

COMMANDS = {
    "list": listing,
    "plan": plan,
    "show": show,
    "compare": compare,
    "report": report,
    "history": history,
    "scale": scale,
    "thresholds": thresholds,
}
"""name -> module with ``add_parser(commands)``, which adds the subcommand to argparse's subparsers, and
``lines(chosen)``, which returns what it prints, or raises a QsaeError where it can't"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="qsae-bench", description="Show what the registry has and what was measured."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for module in COMMANDS.values():
        module.add_parser(commands)
    chosen = parser.parse_args(arguments)
    try:
        lines = COMMANDS[chosen.command].lines(chosen)
        print("\n".join(painted(lines, sys.stdout, os.environ)), flush=True)
    except QsaeError as error:
        print(f"qsae-bench: {plain(str(error))}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:  # the reader has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
