"""Define the fixtures of the benchmarks, and parametrize them over cells, layers and gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from qsae_bench.app.invocation import INVOCATION_KEY
from qsae_bench.app.markers import GatesMarker, work_of
from qsae_bench.app.outcomes import fail
from qsae_bench.gate.accepted import WORSE
from qsae_bench.gate.exit_status import STATUS
from qsae_bench.gate.verdict import GatedMetric, GateFailure
from qsae_bench.measure import clock
from qsae_bench.registry.specs import Cell

if TYPE_CHECKING:
    from qsae_bench.gate.cell_result import CellResult
    from qsae_bench.run.session import Session


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test for each selected cell, and for each of its layers and gates that the test asks for."""
    if "cell" not in metafunc.fixturenames:
        return
    names = [name for name in ("cell", "layer", "gated") if name in metafunc.fixturenames]
    parameters = []
    for cell in metafunc.config.stash[INVOCATION_KEY].settings.cells:
        for layer in cell.model.layers if "layer" in names else [None]:
            for gated in _gates(metafunc, cell, layer) if "gated" in names else [None]:
                values = {"cell": cell, "layer": layer, "gated": gated}
                parts = [cell.id, *([f"layer{layer}"] if "layer" in names else ())]
                parts += [gated.metric] if gated is not None and gated.metric else []
                parameters.append(pytest.param(*[values[name] for name in names], id="-".join(parts)))
    metafunc.parametrize(names, parameters)


def _gates(metafunc: pytest.Metafunc, cell: Cell, layer: int | None) -> list[GatedMetric]:
    marker = metafunc.definition.get_closest_marker("gates")
    if marker is None:
        return [GatedMetric("", layer)]
    invocation = metafunc.config.stash[INVOCATION_KEY]
    known = invocation.gated_at_collection.setdefault((cell, layer), {})
    test = metafunc.definition.nodeid
    elsewhere = {metric for metric, other in known.items() if other != test}
    found = GatesMarker.of(marker, test).gates(cell, layer, invocation.settings.thresholds, elsewhere)
    for gate in found:
        known.setdefault(gate.metric, test)
    named = tuple(gate for gate in found if gate.metric)
    invocation.collected_gates[cell] = invocation.collected_gates.get(cell, ()) + named
    return found


@pytest.fixture
def session(request: pytest.FixtureRequest, cell: Cell) -> Session:
    """Return the invocation's session; skip the test if the cell can't run here, with what it needs."""
    opened = request.config.stash[INVOCATION_KEY].open_session()
    opened.require(cell)
    return opened


@pytest.fixture
def measured(session: Session, cell: Cell) -> CellResult:
    """Return the cell's measurement: one pass, shared by every test of the cell."""
    return session.measure(cell)


@pytest.fixture
def gate(
    session: Session, measured: CellResult, cell: Cell, gated: GatedMetric, request: pytest.FixtureRequest
) -> Callable[[], None]:
    """Return ``gate()``, which fails the test unless the metric it is about is within its threshold."""
    if request.node.get_closest_marker("gates") is None:
        pytest.fail("the fixture gate needs the marker @pytest.mark.gates(metric, …)", pytrace=False)

    def check() -> None:
        __tracebackhide__ = True
        if cell.model.synthetic:
            pytest.skip("not applicable: --synthetic has random weights, only timings and memory are real")
        if failure := session.judge_gate(cell, gated):
            fail(request.node, failure)
        if not session.judge.is_judged(cell, gated):
            pytest.skip(f"{gated.metric}: no threshold for {session.hardware}")

    return check


@pytest.fixture
def check_accepted(
    session: Session, measured: CellResult, cell: Cell, request: pytest.FixtureRequest
) -> Callable[[], None]:
    """Return ``check_accepted()``, which fails or marks the test of a cell that is worse than accepted."""

    def check() -> None:
        __tracebackhide__ = True
        if cell.is_reference or cell.model.synthetic:
            pytest.skip("a quantized cell is compared, where its weights are real")
        measured.check_valid()
        found = session.against_accepted(cell)
        if found is None or found.not_compared:
            pytest.skip(found.not_compared if found is not None else "nothing to compare")
        if not found.is_worse:
            return
        if session.against_accepted.fails:
            fail(request.node, GateFailure("", WORSE, session.against_accepted.message(cell, found)))
        request.node.user_properties.append((STATUS, WORSE))

    return check


@pytest.fixture
def timed(
    benchmark: Any, session: Session, cell: Cell, request: pytest.FixtureRequest
) -> Callable[[], None]:
    """Return ``timed()``, which does what the marker ``times`` names and reports it to pytest-benchmark."""
    work = work_of(request.node)
    if work is None:
        pytest.fail("the fixture timed needs the marker @pytest.mark.times(work)", pytrace=False)
    benchmark.group = cell.model.name

    def take() -> None:
        known = request.config.stash[INVOCATION_KEY].timed
        if (cell, work) not in known:  # a work with several gates has a test for each
            known[cell, work] = session.time_workload(cell, work)
        taken = known[cell, work]
        clock.report_rounds(benchmark, taken.seconds)
        benchmark.extra_info.update(taken.info)

    return take


@pytest.fixture
def speed_gate(
    session: Session, cell: Cell, gated: GatedMetric, request: pytest.FixtureRequest
) -> Callable[[], None]:
    """Return ``speed_gate()``, which fails the test if the ratio it is about is beyond its threshold."""

    def check() -> None:
        __tracebackhide__ = True
        if gated.metric and (failure := session.timings.failing(cell, gated.metric)):
            fail(request.node, failure)

    return check
