"""Run ``qsae-bench thresholds``: check what the file can decide, update it from a run. No torch."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError, plain

if TYPE_CHECKING:
    from qsae_bench.results.threshold_update import UpdateOptions

LATEST = Path(".qsae/latest")
MOST_MARGIN = 100.0
"""more is a slip of the keyboard: such a bound holds for a broken model"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("thresholds", help="what thresholds.toml can decide; set it from a run")
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="read the file strictly; the tokens that each bound takes")
    check.add_argument("--run", type=Path, default=None, metavar="RUN", help=f"(default: {LATEST})")
    update = actions.add_parser("update", help="write a run's measurements into the file, as bounds")
    update.add_argument(
        "--from", dest="run", type=Path, required=True, metavar="RUN", help="a run's folder"
    )
    update.add_argument("--margin", type=float, default=None, metavar="M", help="(default: 2)")
    update.add_argument(
        "--reason", default=None, metavar="TEXT", help="why bounds may be loosened; is stored"
    )
    update.add_argument(
        "--hardware-specific", action="store_true",
        help="for the run's GPU (or CPU) only, in tables of its own",
    )  # fmt: skip
    update.add_argument("--dry-run", action="store_true", help="say what would change, write nothing")
    for command in (check, update):
        command.add_argument("--thresholds", type=Path, default=Path("thresholds.toml"), metavar="FILE")
        command.add_argument(
            "--registry", action="append", default=[], type=Path, metavar="FILE",
            help="TOML file layered over the registry",
        )  # fmt: skip
        command.add_argument(
            "-k", dest="keyword", default="", metavar="TEXT", help="cells whose id has TEXT"
        )


def lines(chosen: argparse.Namespace) -> Iterable[str]:
    return {"check": _check, "update": _update}[chosen.action](chosen)


def _check(chosen: argparse.Namespace) -> Iterator[str]:
    from qsae_bench.gate.known_names import KnownNames
    from qsae_bench.gate.threshold_file import load_thresholds
    from qsae_bench.registry.entries import load_registry
    from qsae_bench.report.tables import wrapped
    from qsae_bench.report.threshold_tables import check_lines, file_line
    from qsae_bench.results.document import read_run

    registry = load_registry(chosen.registry)
    thresholds = load_thresholds(chosen.thresholds, KnownNames.of(registry))
    yield from wrapped(file_line(thresholds, str(chosen.thresholds)))
    if chosen.run is None and not LATEST.exists():
        yield f"no run in {LATEST}: name one with --run to see what each bound takes"
        return
    yield from check_lines(read_run(chosen.run or LATEST), thresholds, registry, chosen.keyword)


def _update(chosen: argparse.Namespace) -> Iterator[str]:
    from qsae_bench.gate.known_names import KnownNames
    from qsae_bench.gate.threshold_file import load_thresholds
    from qsae_bench.registry.entries import load_registry
    from qsae_bench.report.threshold_tables import change_lines, one_line
    from qsae_bench.results.document import read_run
    from qsae_bench.results.threshold_edit import edited_text, replace_file
    from qsae_bench.results.threshold_update import update_from

    registry = load_registry(chosen.registry)
    path: Path = chosen.thresholds
    options = _options(chosen)
    thresholds = load_thresholds(path, KnownNames.of(registry))
    before = path.read_bytes()
    run = read_run(chosen.run)
    update = update_from(run, thresholds, options)
    for model, quantization in sorted({change.path[:2] for change in update.changes}):
        registry.model(model)  # raises where the run measured what the registry has no name for
        registry.quantization(quantization)
    if not update.needed:
        yield f"{path}: holds what run {plain(run.run_id)} measured already: nothing to write"
        return
    loosened = [change for change in update.needed if change.kind == "looser"]
    if loosened and not options.reason and not chosen.dry_run:
        raise QsaeError(
            f'{path}: nothing is written: say why with --reason "…", which is stored, or measure better: '
            f"run {plain(run.run_id)} loosens {one_line(loosened)}"
        )
    text = edited_text(before.decode(), update.needed, str(path))
    if not chosen.dry_run:
        replace_file(path, text, before)
    yield from change_lines(update)
    kinds = Counter(change.kind for change in update.needed)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    yield f"{path}: {counted}, from run {plain(run.run_id)}"
    if chosen.dry_run:
        needs = f'; --reason "…" is needed to loosen {len(loosened)}'
        yield f"--dry-run: nothing is written{needs if loosened and not options.reason else ''}"


def _options(chosen: argparse.Namespace) -> UpdateOptions:
    from qsae_bench.gate.threshold_rule import MARGIN
    from qsae_bench.results.threshold_update import UpdateOptions

    margin = MARGIN if chosen.margin is None else chosen.margin
    if not math.isfinite(margin) or not 1 <= margin <= MOST_MARGIN:
        raise QsaeError(f"--margin {margin:g}: a number from 1 to {MOST_MARGIN:g} is needed")
    reason = " ".join((chosen.reason or "").split())
    if chosen.reason is not None and not reason:
        raise QsaeError("--reason is empty: say why the bounds may be looser")
    return UpdateOptions(margin, reason, chosen.hardware_specific, chosen.keyword)
