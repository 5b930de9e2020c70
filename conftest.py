"""Fixtures of the benchmarks, and their parametrization over cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from qsae_bench import speed
from qsae_bench.invocation import SETTINGS, fail_gates, gates_of, open_session

if TYPE_CHECKING:
    from qsae_bench.measured import Measured
    from qsae_bench.session import Session
    from qsae_bench.specs import Cell

pytest_plugins = ["qsae_bench.plugin"]


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
def measured(session: Session, cell: Cell) -> Measured:
    """The cell's measurement: one pass, shared by every test of the cell."""
    return session.measure(cell)


@pytest.fixture
def gate(
    session: Session, measured: Measured, cell: Cell, request: pytest.FixtureRequest
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
def timed(benchmark: Any, session: Session, cell: Cell) -> Any:
    """pytest-benchmark, grouped by model; its timer ``speed.now`` is the clock of the session's device."""
    speed.use(session.device)
    benchmark.group = cell.model.name
    return benchmark


@pytest.fixture
def speed_gate(session: Session, cell: Cell, request: pytest.FixtureRequest) -> Callable[..., None]:
    """``speed_gate(*metrics)`` fails the test where a threshold bounds one of them and it is beyond it."""

    def check(*metrics: str) -> None:
        __tracebackhide__ = True
        if failures := session.speeds.failing(cell, metrics):
            fail_gates(request.node, failures)

    return check
