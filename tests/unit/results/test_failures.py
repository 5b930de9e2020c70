"""What failed in a run, read from reports alone."""

from __future__ import annotations

from types import SimpleNamespace

from qsae_bench.gate.exit_status import NOT_MEASURED, STATUS
from qsae_bench.gate.verdict import GateFailure
from qsae_bench.results.failures import Failures, properties_of


def report(outcome="failed", when="call", properties=(), said="why\nmore"):
    return SimpleNamespace(
        failed=outcome == "failed", when=when, user_properties=list(properties), nodeid="b.py::test[cell]",
        longrepr=None, longreprtext=said,
    )  # fmt: skip


def test_failures_are_read_from_reports_alone():
    """As they come back from a journal: no item, no exception, only what was written down."""
    failures = Failures()
    gates = [
        *properties_of(GateFailure("fvu", "fail", "a")),
        *properties_of(GateFailure("mse", "invalid", "b")),
    ]
    failures.pytest_runtest_logreport(report("passed", properties=gates))
    assert failures.kinds == frozenset()
    failures.pytest_runtest_logreport(report(properties=gates))
    failures.pytest_runtest_logreport(report("passed", "teardown", gates))
    assert (failures.gates, failures.kinds) == (2, {"regression", "invalid"})
    assert failures.others == []
    failures.pytest_runtest_logreport(report("failed", "setup", [(STATUS, NOT_MEASURED)], "\n no GPU\n"))
    failures.pytest_collectreport(report("failed", said="SyntaxError"))
    assert [(one.reason, one.kinds) for one in failures.others] == [
        ("no GPU", {"not measured"}), ("SyntaxError", {"other"})
    ]  # fmt: skip


def test_a_teardown_that_fails_after_a_gate_is_a_failure_of_its_own():
    failures = Failures()
    failures.pytest_runtest_logreport(
        report("failed", "teardown", properties_of(GateFailure("l0", "invalid", "")))
    )
    assert failures.gates == 0
    assert failures.kinds == {"other"}
