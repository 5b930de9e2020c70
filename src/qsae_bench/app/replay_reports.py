"""Convert pytest's reports and pytest-benchmark's timings of a test to JSON and back."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from qsae_bench.gate.exit_status import NOT_MEASURED, STATUS
from qsae_bench.results.journal import JournalEntry

TIMING_FIELDS = ("name", "fullname", "group", "param", "extra_info")


def serialized(config: pytest.Config, reports: Iterable[pytest.TestReport]) -> list[dict[str, Any]]:
    """Return the reports as pytest serializes them, ready for JSON."""
    hook = config.hook.pytest_report_to_serializable
    return [hook(config=config, report=report) for report in reports]


def replay(item: pytest.Item, entry: JournalEntry) -> None:
    """Send a test's stored reports through pytest's logging hooks, and restore what it timed."""
    for timing in entry.timings:
        if timing["fullname"] == item.nodeid:
            _restore_timing(item, timing)
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for data in entry.tests.get(item.nodeid, ()):
        report = hook.pytest_report_from_serializable(config=item.config, data=_with_tuples(data))
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _with_tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """Restore the tuples of which JSON made lists: pytest asks for them by type."""
    report = copy.deepcopy(dict(data))
    for field in ("location", "longrepr"):
        if isinstance(report.get(field), list):
            report[field] = tuple(report[field])
    for field in ("sections", "user_properties"):
        report[field] = [tuple(pair) for pair in report.get(field, ())]
    return report


def crash_reports(
    item: pytest.Item, reason: str, output: Sequence[tuple[str, str]] = ()
) -> list[pytest.TestReport]:
    """Return the reports of a test that failed because the process of its cell died.

    Args:
        output: title and text of what the process wrote.
    """

    def report(when: Any, failed: bool) -> pytest.TestReport:
        return pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome="failed" if failed else "passed",
            longrepr=reason if failed else None,
            when=when,
            sections=output if failed else (),
            user_properties=[(STATUS, NOT_MEASURED)],
        )

    return [report("setup", False), report("call", True), report("teardown", False)]


def timings_of(config: pytest.Config, tests: Collection[str]) -> list[dict[str, Any]]:
    """Return the timings of the given tests (node ids) so far."""
    return [
        {field: getattr(one, field) for field in TIMING_FIELDS}
        | {
            "iterations": one.iterations,
            "seconds": list(one.stats.data),
            "options": one.as_dict(stats=False)["options"],
            "has_error": one.has_error,
        }
        for one in _timings(config)
        if one.fullname in tests
    ]


def _restore_timing(item: pytest.Item, stored: Mapping[str, Any]) -> None:
    """Add a test's timing to those that pytest-benchmark reports at the end."""
    from pytest_benchmark.stats import Metadata

    callspec = getattr(item, "callspec", None)
    fixture = SimpleNamespace(
        **{field: stored[field] for field in TIMING_FIELDS},
        params=callspec.params if callspec else None,
        cprofile_stats=None,
        has_error=stored["has_error"],
    )
    metadata = Metadata(fixture, iterations=stored["iterations"], options=stored["options"])
    for seconds in stored["seconds"]:
        metadata.stats.update(seconds)  # of one iteration each, as they were stored
    _timings(item.config).append(metadata)


def is_timing(config: pytest.Config) -> bool:
    """Return whether pytest-benchmark is installed and not switched off."""
    session = getattr(config, "_benchmarksession", None)
    return session is not None and not session.disabled


def _timings(config: pytest.Config) -> list[Any]:
    """Return pytest-benchmark's result list, or a throw-away list if it is disabled."""
    session = getattr(config, "_benchmarksession", None)
    return session.benchmarks if session is not None else []
