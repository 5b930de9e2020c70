"""Convert pytest's reports of a test to JSON and back; make those of a test whose process died."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

from qsae_bench.gate.exit_status import NOT_MEASURED, STATUS


def serialized(config: pytest.Config, reports: Iterable[pytest.TestReport]) -> list[dict[str, Any]]:
    """Return the reports as pytest serializes them, ready for JSON."""
    hook = config.hook.pytest_report_to_serializable
    return [hook(config=config, report=report) for report in reports]


def replay(item: pytest.Item, reports: Iterable[Mapping[str, Any]]) -> None:
    """Send the stored reports of a test through pytest's logging hooks, to every plugin."""
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for data in reports:
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
