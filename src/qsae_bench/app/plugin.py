"""Wire the benchmarks into pytest: options, order of tests, outcomes, exit status, summary.

What is measured and decided lies in :mod:`qsae_bench.run` and below. Nothing here imports torch, so that
``--collect-only`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from qsae_bench.app.invocation import INVOCATION_KEY, Invocation
from qsae_bench.app.markers import MARKERS, cell_of, gate_of, order_in_cell
from qsae_bench.app.options import EVERY, Settings
from qsae_bench.app.outcomes import outcomes
from qsae_bench.app.replay import CellReplay
from qsae_bench.errors import QsaeError, plain
from qsae_bench.gate.exit_status import NOTHING_MEASURED, USAGE_ERROR, exit_status
from qsae_bench.measure import clock
from qsae_bench.models.log_filters import TORCH_DEPRECATION, install_log_filters
from qsae_bench.models.memory import is_out_of_memory
from qsae_bench.registry.specs import REFERENCE

pytest_plugins = ["qsae_bench.app.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("qsae-bench", "quantized models and their SAEs")
    for name, keywords in EVERY.items():
        group.addoption(name, **keywords)


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """Report a usage error in one line and exit with status 2, which no failing gate uses."""
    try:
        return (yield)
    except pytest.UsageError as error:
        sys.stderr.write("".join(f"ERROR: {plain(str(line))}\n" for line in error.args))
        return USAGE_ERROR


def pytest_configure(config: pytest.Config) -> None:
    for line in MARKERS:
        config.addinivalue_line("markers", line)
    config.addinivalue_line("filterwarnings", TORCH_DEPRECATION)
    install_log_filters()
    if getattr(config.option, "numprocesses", None) and _names_benchmarks(config):
        raise pytest.UsageError(
            "-n: each process of pytest-xdist would load every model, and time it while the others run; "
            "use --workers N: N processes measure cells, under one pytest"
        )
    try:
        settings = Settings.from_pytest_config(config)
    except QsaeError as error:
        raise pytest.UsageError(str(error)) from None
    invocation = config.stash[INVOCATION_KEY] = Invocation(config, settings)
    replay = CellReplay(invocation)
    config.pluginmanager.register(invocation.failures, "qsae-failures")
    config.pluginmanager.register(BenchmarkPlugin(invocation, replay), "qsae-benchmarks")
    config.pluginmanager.register(replay, "qsae-replay")  # the later one hears first of the end


def _names_benchmarks(config: pytest.Config) -> bool:
    """Return whether the command line asks for the benchmarks, not the suite's tests below the root."""
    home = config.rootpath / "benchmarks"
    paths = [(config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args]
    return any(path.is_relative_to(home) or home.is_relative_to(path) for path in paths)


class BenchmarkPlugin:
    """Implement the hooks of one invocation."""

    def __init__(self, invocation: Invocation, replay: CellReplay) -> None:
        self.invocation, self.replay = invocation, replay
        self.settings = invocation.settings

    # -- collection

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Give pytest-benchmark a timer that reads out what was timed where the model is."""
        if item.get_closest_marker("times") is not None:
            own = item.get_closest_marker("benchmark")
            keywords = {**(own.kwargs if own else {}), "timer": clock.now}
            item.add_marker(pytest.mark.benchmark(**keywords), append=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Group tests by cell, a model's reference first; in a cell, first what later tests reuse."""
        order = {cell: index for index, cell in enumerate(self.settings.cells)}
        ranks = {
            place: (order[cell], order_in_cell(item))
            for place, item in enumerate(items)
            if (cell := cell_of(item)) is not None
        }
        self.invocation.collected = len(ranks)
        ranked = [items[place] for place in sorted(ranks, key=ranks.__getitem__)]
        for place, item in zip(ranks, ranked, strict=True):
            items[place] = item

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note what the selected tests gate: a cell is measured until that is decided, and no further."""
        for item in session.items:
            cell, gate = cell_of(item), gate_of(item)
            # more tokens decide no gate of a test that times
            if cell is not None and gate is not None and item.get_closest_marker("times") is None:
                gates = self.invocation.gates.setdefault(cell, ())
                self.invocation.gates[cell] = (*gates, gate) if gate.metric else gates

    # -- each test

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, request: pytest.FixtureRequest) -> Generator[None, object, object]:
        with outcomes(request.node, self.settings.session.strict):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        cell = cell_of(pyfuncitem)
        with outcomes(pyfuncitem, self.settings.session.strict):
            try:
                return (yield)
            except (RuntimeError, MemoryError) as error:
                session = self.invocation.session
                if cell is None or session is None or not is_out_of_memory(error):
                    raise
                error.__traceback__ = None  # its frames hold the tensors
            raise session.refuse_out_of_memory(cell)

    # -- the end

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(
        self, session: pytest.Session, exitstatus: int
    ) -> Generator[None, object, object]:
        """Write the run, decide the exit status, then write the summary and the report."""
        state = self.invocation
        concluded = self.replay.conclude(int(exitstatus))
        if concluded is not None:
            state.document, state.outcome = concluded
            if isinstance(state.outcome, QsaeError):
                state.not_written.append(str(state.outcome))
            self._add_to_history()
        state.status = session.exitstatus = exit_status(
            int(exitstatus), state.failures.kinds,
            selected=state.collected > 0 and not session.config.getoption("collectonly"),
            measured=self._measured(), stored=not state.not_written,
        )  # fmt: skip
        if state.concluded or state.status == NOTHING_MEASURED:
            self._write_summary(state.status)
        return (yield)

    def _measured(self) -> bool:
        """Return whether anything asked for was measured, other than the reference of what is gated."""
        session, document = self.invocation.session, self.invocation.document
        if session is None or not (session.measured or any(map(session.costs, session.requested))):
            return False
        if all(cell.is_reference for cell in self.invocation.gates):
            return True
        if document is None:
            return False
        return document.synthetic or any(
            cell.verdicts for cell in document.cells if cell.quantization != REFERENCE
        )

    def _add_to_history(self) -> None:
        from qsae_bench.results.history.store import record_run

        state, url = self.invocation, self.settings.session.history
        if not url or state.document is None or not isinstance(state.outcome, Path):
            return
        if problem := record_run(url, state.document, state.outcome):
            state.not_written.append(problem)

    def _write_summary(self, status: int) -> None:
        from qsae_bench.report.job_summary import page, write_page
        from qsae_bench.run.session import relative_to_here

        state = self.invocation
        folder = state.outcome if isinstance(state.outcome, Path) else None
        shown = str(relative_to_here(folder)) if folder else ""
        lines = page(state.document, status, state.failures, state.not_written, shown)
        state.warnings += write_page("\n".join(lines) + "\n", folder, os.environ)
        if state.document is None or folder is None or state.config.getoption("no_report"):
            return
        from qsae_bench.report.writing import write_run_report

        options = self.settings.session
        if warning := write_run_report(folder, state.document, options.history, options.qsae_dir):
            state.warnings.append(warning)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        from qsae_bench.report.job_summary import chance_line, outcome_line
        from qsae_bench.report.tables import pieces, wrapped
        from qsae_bench.report.terminal import summary_lines
        from qsae_bench.run.session import relative_to_here

        def write(line: str, **markup: bool) -> None:
            terminalreporter.ensure_newline()
            for text, colour in pieces(line):
                terminalreporter.write(text, **(markup | ({colour: True} if colour else {})))
            terminalreporter.write("\n")

        def write_wrapped(text: str, **markup: bool) -> None:
            for line in wrapped(text):
                write(line, **markup)

        state = self.invocation
        if state.concluded:
            terminalreporter.section("qsae-bench")
            for line in summary_lines(state.document) if state.document is not None else ():
                write(line)
            for line in state.not_written:
                write(f"ERROR: {line}", red=True)  # in one piece: it names paths and commands
            for line in state.warnings:
                write(f"warning: {line}", yellow=True)
            if isinstance(state.outcome, Path):
                write(f"run: {relative_to_here(state.outcome)}")
            elif isinstance(state.outcome, str):
                write(state.outcome, yellow=True)
            if chance := chance_line(state.document):
                write_wrapped(chance)
            status = state.status or 0
            line = outcome_line(state.document, status, state.failures, state.not_written)
            write_wrapped(line, red=status != 0, green=status == 0)
        elif state.no_session is not None:
            write_wrapped(f"qsae-bench: nothing was measured: {state.no_session}", red=True)
        elif state.status == NOTHING_MEASURED and state.collected:
            keyword = state.config.getoption("keyword")
            chosen = f"-k {keyword!r}" if keyword else "this selection"
            models = ", ".join(self.settings.registry.models)
            write_wrapped(f"qsae-bench: {chosen} leaves nothing to measure; models: {models}", red=True)

    def pytest_unconfigure(self) -> None:
        if self.invocation.session is not None:
            self.invocation.session.close()

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        """Put hardware and versions where pytest-benchmark's users look for them."""
        if self.invocation.session is not None:
            machine_info["qsae_bench"] = dict(self.invocation.session.environment)
