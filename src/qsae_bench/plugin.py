"""pytest's side: options, the order of tests, skips and failures, exit codes, the summary.

Only wiring. What is measured and decided lives in :mod:`qsae_bench.session` and below; nothing here
imports torch, so that ``--collect-only`` answers at once.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from qsae_bench.errors import QsaeError
from qsae_bench.invocation import SESSION, SETTINGS, Settings, outcomes
from qsae_bench.memory import is_out_of_memory
from qsae_bench.selecting import OPTIONS

NOTHING_MEASURED = 3
"""exit status when the selection left nothing that could be measured: green must mean measured"""

FIRST = ("loads_cell", "measures_cell")
"""markers of the tests that time what later tests of a cell only reuse, in the order they run"""

WRITTEN = pytest.StashKey[tuple[Any, Any]]()
"""the run document, and its folder or why it could not be written"""

COLLECTED = pytest.StashKey[int]()
"""tests about cells before -k deselected any"""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("qsae-bench", "quantized models and their SAEs")
    add = group.addoption
    for name, keywords in OPTIONS:
        add(name, **keywords)
    add("--thresholds", default="", metavar="FILE", help="thresholds (default: thresholds.toml)")
    add("--splice", action="store_true", help="also put the SAE into the model: two more passes a layer")
    add("--noise-floor", action="store_true", help="also measure what another batch size alone moves")
    add("--no-reference-store", action="store_true", help="keep no references after this run")
    add(
        "--reference-store-gib",
        type=float,
        default=50.0,
        metavar="GIB",
        help="evict references beyond this",
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker, what in zip(FIRST, ("loading", "evaluation"), strict=True):
        config.addinivalue_line("markers", f"{marker}: times the {what}, so it runs first in its cell")
    try:
        config.stash[SETTINGS] = Settings.from_pytest_config(config)
    except QsaeError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Group by cell, a model's reference first; in a cell, first what later tests reuse."""
    config = session.config
    order = {cell: index for index, cell in enumerate(config.stash[SETTINGS].cells)}
    cells = [item for item in items if cell_of(item) is not None]
    config.stash[COLLECTED] = len(cells)

    def rank(item: pytest.Item) -> tuple[int, int]:
        first = [index for index, marker in enumerate(FIRST) if item.get_closest_marker(marker)]
        return order[cell_of(item)], first[0] if first else len(FIRST)

    ranked = sorted(cells, key=rank)
    places = [index for index, item in enumerate(items) if cell_of(item) is not None]
    for place, item in zip(places, ranked, strict=True):
        items[place] = item


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> Generator[None, object, object]:
    with outcomes(request.config):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    config, cell = pyfuncitem.config, cell_of(pyfuncitem)
    with outcomes(config):
        try:
            return (yield)
        except (RuntimeError, MemoryError) as error:
            if cell is None or SESSION not in config.stash or not is_out_of_memory(error):
                raise
            error.__traceback__ = None  # its frames hold the tensors
        raise config.stash[SESSION].ran_out(cell)


def cell_of(item: pytest.Item) -> Any:
    """The cell a test is about, or None."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("cell") if callspec else None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the run. Green because nothing ran is not green, nor is a run that could not be kept."""
    config = session.config
    opened = config.stash.get(SESSION, None)
    if opened is not None and opened.requested:
        from qsae_bench.document import run_document, write

        try:
            config.stash[WRITTEN] = write(opened)
        except QsaeError as error:
            config.stash[WRITTEN] = (run_document(opened), error)
            if exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
    looked = not config.getoption("collectonly") and config.stash.get(COLLECTED, 0) > 0
    measured = opened is not None and (opened.measured or any(map(opened.costs, opened.requested)))
    fine = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if looked and fine and not measured:
        session.exitstatus = NOTHING_MEASURED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    from qsae_bench.report.terminal import summary_lines
    from qsae_bench.session import from_here

    write = terminalreporter.write_line
    written = config.stash.get(WRITTEN, None)
    if written is not None:
        terminalreporter.section("qsae-bench")
        document, outcome = written
        for line in summary_lines(document):
            write(line)
        if isinstance(outcome, QsaeError):
            write(f"ERROR: {outcome}", red=True)
        else:
            write(f"run: {from_here(outcome)}")
    elif config.stash.get(COLLECTED, 0) and not config.getoption("collectonly"):
        keyword = config.getoption("keyword")
        chosen = f"-k {keyword!r}" if keyword else "this selection"
        models = ", ".join(config.stash[SETTINGS].registry.models)
        write(f"qsae-bench: {chosen} leaves nothing to measure; models: {models}", red=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    opened = config.stash.get(SESSION, None)
    if opened is not None:
        opened.close()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Hardware and versions go where pytest-benchmark's users look for them."""
    if SESSION in config.stash:
        from qsae_bench.environment import environment

        machine_info["qsae_bench"] = environment()
