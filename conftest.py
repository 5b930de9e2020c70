"""Fixtures of the benchmarks, and their parametrization over cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from qsae_bench.invocation import SETTINGS, open_session

if TYPE_CHECKING:
    from qsae_bench.session import Measured, Session
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
def gate(session: Session, measured: Measured, cell: Cell) -> Callable[..., None]:
    """``gate(*metrics, layer=None, also=())`` fails the test unless all are within their thresholds.

    ``also`` names groups of metrics that are gated too where the thresholds file bounds them.
    """

    def check(*metrics: str, layer: int | None = None, also: tuple[str, ...] = ()) -> None:
        __tracebackhide__ = True
        if cell.model.synthetic:
            pytest.skip("not applicable: --synthetic has random weights, only timings and memory are real")
        if failures := session.check(cell, metrics, layer, also):
            pytest.fail(failures, pytrace=False)

    return check


@pytest.fixture
def timed(benchmark: Any, cell: Cell) -> Any:
    """pytest-benchmark, grouped by model."""
    benchmark.group = cell.model.name
    return benchmark
