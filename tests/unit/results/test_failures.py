"""What failed in a run, read from reports alone."""

from __future__ import annotations

from types import SimpleNamespace

from qsae_bench.gate.exit_status import INVALID_CELL, NOT_MEASURED, STATUS
from qsae_bench.results.failures import Failures


def report(outcome="failed", when="call", properties=(), said="why\nmore"):
    return SimpleNamespace(
        failed=outcome == "failed", when=when, user_properties=list(properties), nodeid="b.py::test[cell]",
        longrepr=None, longreprtext=said,
    )  # fmt: skip


def test_failures_are_read_from_reports_alone():
    """As they come back from a journal: no item, no exception, only what was written down."""
    failures = Failures()
    fail, invalid = [(STATUS, "fail")], [(STATUS, "invalid")]
    failures.pytest_runtest_logreport(report("passed", properties=fail))
    assert failures.kinds == frozenset()
    for gate in (fail, invalid):
        failures.pytest_runtest_logreport(report(properties=gate))
        failures.pytest_runtest_logreport(report("passed", "teardown", gate))
    assert (failures.gates, failures.kinds) == ({"fail": 1, "invalid": 1}, {"regression", "invalid"})
    assert failures.others == []
    failures.pytest_runtest_logreport(report(properties=[(STATUS, INVALID_CELL)], said="NaN"))
    failures.pytest_runtest_logreport(report("failed", "setup", [(STATUS, NOT_MEASURED)], "\n no GPU\n"))
    failures.pytest_collectreport(report("failed", said="SyntaxError"))
    assert [(one.reason, one.kinds) for one in failures.others] == [
        ("NaN", {"invalid"}), ("no GPU", {"not measured"}), ("SyntaxError", {"other"})
    ]  # fmt: skip


def test_a_teardown_that_fails_after_a_gate_is_a_failure_of_its_own():
    failures = Failures()
    failures.pytest_runtest_logreport(report("failed", "teardown", [(STATUS, "invalid")]))
    assert not failures.gates
    assert failures.kinds == {"other"}
