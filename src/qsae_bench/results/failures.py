"""Collect what failed in a run from pytest's reports: those of this process, and stored ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from qsae_bench.gate.exit_status import STATUS, Kind, kinds_of
from qsae_bench.gate.verdict import GateFailure

METRIC = "qsae_metric"
"""user property of a failing gate's test: the metric, beside STATUS"""


def properties_of(failure: GateFailure) -> list[tuple[str, str]]:
    """Return the user properties of a test that fails on a gate; JUnit shows them."""
    return [(METRIC, failure.metric), (STATUS, failure.status)]


def statuses(properties: Iterable[tuple[str, Any]]) -> tuple[str, ...]:
    """Return the status of each failing gate, from a report's user properties."""
    found = list(properties)
    if not any(key == METRIC for key, _ in found):
        return ()
    return tuple(str(value) for key, value in found if key == STATUS)


@dataclass(frozen=True)
class Failure:
    """Hold a failing report."""

    test: str
    """its node id"""
    kinds: frozenset[Kind]
    gates: tuple[str, ...]
    """status of each failing gate in it; the run document has more about them"""
    reason: str
    """the first line of why"""


@dataclass(eq=False)
class Failures:
    """Collect failing reports as a pytest plugin; compared by identity, as pluggy keeps plugins in sets."""

    found: list[Failure] = field(default_factory=list)

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset(kind for one in self.found for kind in one.kinds)

    @property
    def gates(self) -> int:
        return sum(len(one.gates) for one in self.found)

    @property
    def others(self) -> list[Failure]:
        """Those that no gate decided."""
        return [one for one in self.found if not one.gates]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            properties = report.user_properties
            gates = statuses(properties) if report.when == "call" else ()
            kinds = kinds_of(properties if report.when != "teardown" else ())
            self.found.append(Failure(report.nodeid, kinds, gates, _why(report)))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.found.append(Failure(report.nodeid, frozenset({"other"}), (), _why(report)))


def _why(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
