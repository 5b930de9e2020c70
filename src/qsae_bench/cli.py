"""``qsae-bench``: look at what is known and at what was measured. No torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qsae_bench.errors import QsaeError

USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status."""
    parser = argparse.ArgumentParser(prog="qsae-bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="models, SAEs, quantizations and corpora by name")
    listing.add_argument("--registry", action="append", default=[], metavar="FILE", type=Path)
    show = commands.add_parser("show", help="the tables of a run, and every metric of chosen cells")
    show.add_argument("run", nargs="?", type=Path, default=Path(".qsae/latest"))
    show.add_argument("-k", dest="keyword", default="", metavar="TEXT", help="cells whose id has TEXT")
    chosen = parser.parse_args(arguments)
    try:
        lines = _list(chosen.registry) if chosen.command == "list" else _show(chosen.run, chosen.keyword)
        print("\n".join(lines))
    except QsaeError as error:
        print(f"qsae-bench: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def _list(files: list[Path]) -> list[str]:
    from tabulate import tabulate

    from qsae_bench.registry import load_registry

    registry = load_registry(files)
    models = [
        {
            "model": m.name, "source": m.source, "layers": ", ".join(map(str, m.layers)),
            "SAEs": m.sae.release or m.sae.folder, "corpus": m.corpus,
            "needs": f"GPU, {m.min_gpu_gib:g} GiB" if m.needs_gpu else "CPU",
            "default": "yes" if m.default else "",
        }
        for m in registry.models.values()
    ]  # fmt: skip
    recipes = [
        {
            "quantization": q.name, "backend": q.backend,
            "options": ", ".join(f"{k}={v}" for k, v in q.options.items()),
            "default": "yes" if q.default else "",
        }
        for q in registry.quantizations.values()
    ]  # fmt: skip
    corpora = [
        {"corpus": c.name, "kind": c.kind, "sequence": c.sequence_length, "tokens": f"{c.tokens:,}"}
        for c in registry.corpora.values()
    ]
    return [tabulate(table, headers="keys") + "\n" for table in (models, recipes, corpora)]


def _show(run: Path, keyword: str) -> list[str]:
    from qsae_bench.report.details import cell_lines
    from qsae_bench.report.terminal import summary_lines
    from qsae_bench.results import read_run

    document = read_run(run)
    if not keyword:
        return list(summary_lines(document))
    cells = [cell for cell in document.cells if keyword in f"{cell.model}-{cell.quantization}"]
    if not cells:
        known = ", ".join(f"{cell.model}-{cell.quantization}" for cell in document.cells)
        raise QsaeError(f"{run}: no cell has {keyword!r} in its id; cells: {known}")
    return [line for cell in cells for line in cell_lines(cell)]


if __name__ == "__main__":
    sys.exit(main())
