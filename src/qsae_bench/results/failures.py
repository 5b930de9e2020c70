"""Collect what failed in a run from pytest's reports: those of this process, and stored ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, get_args

from qsae_bench.gate.exit_status import STATUS, Kind, kinds_of
from qsae_bench.gate.verdict import Status


@dataclass(frozen=True)
class Failure:
    """Hold a failing report."""

    test: str
    """its node id"""
    kinds: frozenset[Kind]
    gate: str
    """status of its gate, '' where no gate decided it; the run document has more about it"""
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
    def gates(self) -> Counter[str]:
        """The failing gates' statuses"""
        return Counter(one.gate for one in self.found if one.gate)

    @property
    def others(self) -> list[Failure]:
        """Those that no gate decided."""
        return [one for one in self.found if not one.gate]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            properties = report.user_properties
            status = dict(properties).get(STATUS) if report.when == "call" else None
            gate = str(status) if status in get_args(Status) else ""
            kinds = kinds_of(properties if report.when != "teardown" else ())
            self.found.append(Failure(report.nodeid, kinds, gate, _why(report)))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.found.append(Failure(report.nodeid, frozenset({"other"}), "", _why(report)))


def _why(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
