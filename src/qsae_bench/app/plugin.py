"""pytest's side: options, the order of tests, skips and failures, exit codes, the summary.

Only wiring: what is measured and decided lives in :mod:`qsae_bench.run` and below. No import of torch,
so that ``--collect-only`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from qsae_bench.app.invocation import (
    GATES,
    GATES_MARKER,
    NO_SESSION,
    SESSION,
    SETTINGS,
    TIMES_MARKER,
    Settings,
    cell_of,
    gates_of,
    outcomes,
)
from qsae_bench.app.options import OPTIONS as SURVIVING_OPTIONS
from qsae_bench.app.replay import Keeper
from qsae_bench.errors import QsaeError, plain
from qsae_bench.gate.exit_status import NOTHING_MEASURED, USAGE, exit_status
from qsae_bench.measure import clock
from qsae_bench.models.log_filters import DEPRECATED, hush
from qsae_bench.models.memory import is_out_of_memory
from qsae_bench.registry.selection import OPTIONS
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.results.failures import Failures
from qsae_bench.results.junit import rewrite
from qsae_bench.run.workers.options import OPTIONS as EXECUTOR_OPTIONS

FIRST = ("loads_cell", "measures_cell")
"""markers of the tests that time what later tests of a cell only reuse, in the order they run"""

WRITTEN = pytest.StashKey[tuple[Any, Any]]()
"""the run document, and its folder, why it could not be written, or how an interrupted one goes on"""

ENDED = pytest.StashKey[int]()
"""the exit status"""

KEEPER = pytest.StashKey[Keeper]()

LOST = pytest.StashKey[list[str]]()
"""what of the run could not be kept, and why"""

FAILURES = pytest.StashKey[Failures]()

WARNINGS = pytest.StashKey[list[str]]()
"""about the page for the morning after"""

COLLECTED = pytest.StashKey[int]()
"""tests about cells before -k deselected any"""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("qsae-bench", "quantized models and their SAEs")
    add = group.addoption
    for name, keywords in (*OPTIONS, *SURVIVING_OPTIONS, *EXECUTOR_OPTIONS):
        add(name, **keywords)
    add("--thresholds", default="", metavar="FILE", help="thresholds (default: thresholds.toml)")
    add(
        "--history",
        default="",
        metavar="URL",
        help="sqlite:///FILE, postgresql://… or none (default: QSAE_HISTORY, or a file in --qsae-dir)",
    )
    add("--splice", action="store_true", help="also put the SAE into the model: two more passes a layer")
    add("--no-report", action="store_true", help="write no report.html beside the run")
    add("--noise-floor", action="store_true", help="also measure what another batch size alone moves")
    add(
        "--reference-store",
        default="",
        metavar="WHERE",
        help="a folder, or a URL such as s3://BUCKET/FOLDER (default: references in --qsae-dir)",
    )
    add("--no-reference-store", action="store_true", help="keep no references after this run")
    add(
        "--reference-store-gib",
        type=float,
        default=50.0,
        metavar="GIB",
        help="size limit of a folder of references, or of the local copies of a URL's",
    )


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """What can't be run as it was asked for ends with one line, and a status that is no failing gate's."""
    try:
        return (yield)
    except pytest.UsageError as error:
        sys.stderr.write("".join(f"ERROR: {plain(str(line))}\n" for line in error.args))
        return USAGE


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LOST] = []
    config.stash[FAILURES] = Failures()
    config.pluginmanager.register(config.stash[FAILURES], "qsae-failures")
    for marker, what in zip(FIRST, ("loading", "evaluation"), strict=True):
        config.addinivalue_line("markers", f"{marker}: times the {what}, so it runs first in its cell")
    config.addinivalue_line("markers", GATES_MARKER)
    config.addinivalue_line("markers", TIMES_MARKER)
    config.addinivalue_line("filterwarnings", DEPRECATED)
    hush()
    if getattr(config.option, "numprocesses", None) and _names_benchmarks(config):
        raise pytest.UsageError(
            "-n: each process of pytest-xdist would load every model, and time it beside the others; "
            "--workers N measures cells in N processes, under one pytest"
        )
    try:
        config.stash[SETTINGS] = Settings.from_pytest_config(config)
    except QsaeError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[KEEPER] = Keeper(config, config.stash[FAILURES])
    config.pluginmanager.register(config.stash[KEEPER], "qsae-keeper")


def _names_benchmarks(config: pytest.Config) -> bool:
    """Whether the command line asks for this suite; its own tests are under the same root."""
    home = config.rootpath / "benchmarks"
    paths = [(config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args]
    return any(path.is_relative_to(home) or home.is_relative_to(path) for path in paths)


def pytest_itemcollected(item: pytest.Item) -> None:
    """pytest-benchmark is told by a timer of ours what was timed where the model is."""
    if item.get_closest_marker("times") is not None:
        own = item.get_closest_marker("benchmark")
        keywords = {**(own.kwargs if own else {}), "timer": clock.now}
        item.add_marker(pytest.mark.benchmark(**keywords), append=False)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Group by cell, a model's reference first; in a cell, first what later tests reuse."""
    config = session.config
    order = {cell: index for index, cell in enumerate(config.stash[SETTINGS].cells)}
    cells = [item for item in items if cell_of(item) is not None]
    config.stash[COLLECTED] = len(cells)

    def rank(item: pytest.Item) -> tuple[int, int]:
        first = [index for index, marker in enumerate(FIRST) if item.get_closest_marker(marker)]
        cell = cell_of(item)
        assert cell is not None
        return order[cell], first[0] if first else len(FIRST)

    ranked = sorted(cells, key=rank)
    places = [index for index, item in enumerate(items) if cell_of(item) is not None]
    for place, item in zip(places, ranked, strict=True):
        items[place] = item


def pytest_collection_finish(session: pytest.Session) -> None:
    """What the tests that are left will gate: a cell runs on until that is decided, and no further."""
    found: dict[Any, list[Any]] = {}
    for item in session.items:
        cell, gates = cell_of(item), gates_of(item)
        if cell is not None and gates is not None:
            found.setdefault(cell, []).append(gates)
    session.config.stash[GATES] = {cell: tuple(gates) for cell, gates in found.items()}


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> Generator[None, object, object]:
    with outcomes(request.node):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    config, cell = pyfuncitem.config, cell_of(pyfuncitem)
    with outcomes(pyfuncitem):
        try:
            return (yield)
        except (RuntimeError, MemoryError) as error:
            if cell is None or SESSION not in config.stash or not is_out_of_memory(error):
                raise
            error.__traceback__ = None  # its frames hold the tensors
        raise config.stash[SESSION].ran_out(cell)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Generator[None, object, object]:
    """Write the run and decide the exit status; then the page, and JUnit once pytest has written it."""
    config = session.config
    concluded = config.stash[KEEPER].conclude(int(exitstatus))
    if concluded is not None:
        config.stash[WRITTEN] = concluded
        if isinstance(concluded[1], QsaeError):
            config.stash[LOST].append(str(concluded[1]))
        _add_to_history(config, *concluded)
    opened = config.stash.get(SESSION, None)
    looked = not config.getoption("collectonly") and config.stash.get(COLLECTED, 0) > 0
    measured = opened is not None and (opened.measured or any(map(opened.costs, opened.requested)))
    # only the reference of what is gated: that is nothing of what was asked for
    gated = any(not cell.is_reference for cell in config.stash.get(GATES, {}))
    measured = measured and (not gated or _judged(concluded[0] if concluded else None))
    failures = config.stash[FAILURES]
    config.stash[ENDED] = session.exitstatus = exit_status(
        int(exitstatus), failures.kinds, looked=looked, measured=bool(measured), kept=not config.stash[LOST]
    )
    if WRITTEN in config.stash or config.stash[ENDED] == NOTHING_MEASURED:
        _keep_page(config, config.stash[ENDED])
    result = yield
    junit = Path(os.path.expanduser(os.path.expandvars(config.getoption("xmlpath", None) or "")))
    if failures.gates and junit.is_file():
        try:
            rewrite(junit)
        except QsaeError as error:
            sys.stderr.write(f"qsae-bench: {plain(str(error))}\n")
    return result


def _judged(document: Any) -> bool:
    """Whether there is a verdict on a quantized cell, or nothing to judge."""
    if document is None:
        return False
    cells = [cell for cell in document.cells if cell.quantization != REFERENCE]
    return document.synthetic or any(cell.verdicts for cell in cells)


def _add_to_history(config: pytest.Config, document: Any, outcome: object) -> None:
    from qsae_bench.results.history.store import record_run

    url = config.stash[SETTINGS].history
    if url and isinstance(outcome, Path) and (lost := record_run(url, document, outcome)):
        config.stash[LOST].append(lost)


def _keep_page(config: pytest.Config, status: int) -> None:
    from qsae_bench.report.job_summary import page
    from qsae_bench.report.job_summary_file import keep_page
    from qsae_bench.run.session import from_here

    document, folder = config.stash.get(WRITTEN, (None, None))
    folder = folder if isinstance(folder, Path) else None
    home = str(from_here(folder)) if folder else ""
    lost = config.stash[LOST]
    lines = page(document, status, config.stash[FAILURES], lost, home)
    config.stash[WARNINGS] = keep_page("\n".join(lines) + "\n", folder, os.environ)
    if document is not None and folder is not None and not config.getoption("no_report"):
        from qsae_bench.report.writing import write_run_report

        settings = config.stash[SETTINGS]
        if warning := write_run_report(folder, document, settings.history, settings.qsae_dir):
            config.stash[WARNINGS].append(warning)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    from qsae_bench.report.job_summary import banner
    from qsae_bench.report.tables import pieces, wrapped
    from qsae_bench.report.terminal import summary_lines
    from qsae_bench.run.session import from_here

    def write(line: str, **markup: bool) -> None:
        terminalreporter.ensure_newline()
        for text, colour in pieces(line):
            terminalreporter.write(text, **(markup | ({colour: True} if colour else {})))
        terminalreporter.write("\n")

    def say(text: str, **markup: bool) -> None:
        for line in wrapped(text):
            write(line, **markup)

    written = config.stash.get(WRITTEN, None)
    if written is not None:
        terminalreporter.section("qsae-bench")
        document, outcome = written
        for line in summary_lines(document) if document is not None else ():
            write(line)
        for line in config.stash[LOST]:
            write(f"ERROR: {line}", red=True)  # in one piece: it names paths and commands
        for line in config.stash.get(WARNINGS, []):
            write(f"warning: {line}", yellow=True)
        if isinstance(outcome, Path):
            write(f"run: {from_here(outcome)}")
        elif isinstance(outcome, str):
            write(outcome, yellow=True)
        status, lost = config.stash[ENDED], config.stash[LOST]
        line = banner(document, status, config.stash[FAILURES], lost)
        say(line, red=status != 0, green=status == 0)
    elif NO_SESSION in config.stash:
        say(f"qsae-bench: nothing was measured: {config.stash[NO_SESSION]}", red=True)
    elif config.stash.get(ENDED, 0) == NOTHING_MEASURED and config.stash.get(COLLECTED, 0):
        keyword = config.getoption("keyword")
        chosen = f"-k {keyword!r}" if keyword else "this selection"
        models = ", ".join(config.stash[SETTINGS].registry.models)
        say(f"qsae-bench: {chosen} leaves nothing to measure; models: {models}", red=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    opened = config.stash.get(SESSION, None)
    if opened is not None:
        opened.close()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Hardware and versions go where pytest-benchmark's users look for them."""
    if SESSION in config.stash:
        machine_info["qsae_bench"] = dict(config.stash[SESSION].environment)
