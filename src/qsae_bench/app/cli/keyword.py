"""Find the cells that ``-k`` leaves, by letting pytest collect the benchmarks with it."""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path

import pytest

from qsae_bench.app.markers import cell_of
from qsae_bench.app.options import given_options
from qsae_bench.errors import QsaeError
from qsae_bench.registry.entries import Registry
from qsae_bench.registry.specs import Cell

CHECKOUT = Path(__file__).parents[4]
"""where the benchmarks lie beside the package, if it is installed from a clone"""


class _Collector:
    """Notes the cells of the collected tests."""

    def __init__(self) -> None:
        self.cells: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.cells = {cell.id for item in session.items if (cell := cell_of(item)) is not None}


def cells_left(cells: tuple[Cell, ...], chosen: argparse.Namespace, registry: Registry) -> tuple[Cell, ...]:
    """Return those of the cells of which ``pytest benchmarks -k KEYWORD`` would run a test.

    Only pytest knows its expressions, and only the benchmarks know their tests: both are asked, without
    running anything.

    Raises:
        QsaeError: not an expression, no cell is left, or there are no benchmarks to ask.
    """
    keyword, left = chosen.keyword, cells
    if keyword.strip():
        arguments = [
            name if one is True else f"{name}={one}"
            for name, value in given_options(chosen).items()
            for one in (value if isinstance(value, list) else [value])
        ]
        found = _collected(keyword, arguments)
        left = tuple(cell for cell in cells if cell.id in found)
    if not left:
        raise QsaeError(f"-k {keyword!r} leaves no cell; models: {', '.join(registry.models)}")
    return left


def _collected(keyword: str, arguments: list[str]) -> set[str]:
    places = (Path.cwd(), CHECKOUT)
    home = next((place for place in places if (place / "benchmarks/test_speed.py").is_file()), None)
    if home is None:
        raise QsaeError(
            f"-k {keyword!r}: needs the benchmarks, which a clone of the repository has: run it there, or "
            "name cells with --models and --quantizations"
        )
    collector, output = _Collector(), io.StringIO()
    command = [str(home / "benchmarks"), "--collect-only", "-q", "-s", "-p", "no:cacheprovider"]
    # neither matters here, and both take seconds
    command += ["-p", "no:hypothesispytest", "--assert=plain"]
    command += [f"--rootdir={home}", "-c", str(home / "pyproject.toml"), "-k", keyword, *arguments]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = pytest.main(command, plugins=[collector])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        lines = output.getvalue().splitlines()
        error = next((line for line in lines if line.startswith("ERROR")), "no test could be collected")
        raise QsaeError(f"-k {keyword!r}: {error.removeprefix('ERROR').lstrip(': ')}")
    return collector.cells
