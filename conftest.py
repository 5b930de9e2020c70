"""Fixtures of the benchmarks, and their parametrization over cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from qsae_bench.app.invocation import SETTINGS, fail_gates, gates_of, open_session, work_of
from qsae_bench.measure import clock

if TYPE_CHECKING:
    from qsae_bench.gate.cell_result import CellResult
    from qsae_bench.registry.specs import Cell
    from qsae_bench.run.session import Session

pytest_plugins = ["qsae_bench.app.plugin"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cells = metafunc.config.stash[SETTINGS].cells
    if {"cell", "layer"} <= set(metafunc.fixturenames):
        pairs = [(cell, layer) for cell in cells for layer in cell.model.layers]
        metafunc.parametrize(
            ("cell", "layer"), pairs, ids=[f"{cell.id}-layer{layer}" for cell, layer in pairs]
        )
    elif "cell" in metafunc.fixturenames:
        metafunc.parametrize("cell", cells, ids=[cell.id for cell in cells])


@pytest.fixture
def session(request: pytest.FixtureRequest, cell: Cell) -> Session:
    """The invocation's session; a cell that can't run here skips the test with what it needs."""
    opened = open_session(request.config)
    opened.require(cell)
    return opened


@pytest.fixture
def measured(session: Session, cell: Cell) -> CellResult:
    """The cell's measurement: one pass, shared by every test of the cell."""
    return session.measure(cell)


@pytest.fixture
def gate(
    session: Session, measured: CellResult, cell: Cell, request: pytest.FixtureRequest
) -> Callable[[], None]:
    """``gate()`` fails the test unless what its marker ``gates`` names is within its thresholds."""
    asked = gates_of(request.node)
    if asked is None:
        pytest.fail("the fixture gate wants the marker @pytest.mark.gates(metric, …)", pytrace=False)

    def check() -> None:
        __tracebackhide__ = True
        if cell.model.synthetic:
            pytest.skip("not applicable: --synthetic has random weights, only timings and memory are real")
        if failures := session.failing(cell, asked):
            fail_gates(request.node, failures)

    return check


@pytest.fixture
def timed(
    benchmark: Any, session: Session, cell: Cell, request: pytest.FixtureRequest
) -> Callable[[], None]:
    """``timed()`` does what the marker ``times`` names, where the model is, and tells pytest-benchmark."""
    work = work_of(request.node)
    if work is None:
        pytest.fail("the fixture timed wants the marker @pytest.mark.times(work)", pytrace=False)
    benchmark.group = cell.model.name

    def take() -> None:
        taken = session.take(cell, work)
        clock.report_rounds(benchmark, taken.seconds)
        benchmark.extra_info.update(taken.info)

    return take


@pytest.fixture
def speed_gate(session: Session, cell: Cell, request: pytest.FixtureRequest) -> Callable[..., None]:
    """``speed_gate(*metrics)`` fails the test where a threshold bounds one of them and it is beyond it."""

    def check(*metrics: str) -> None:
        __tracebackhide__ = True
        if failures := session.speeds.failing(cell, metrics):
            fail_gates(request.node, failures)

    return check
