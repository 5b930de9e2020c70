"""pytest's reports of a test as JSON and back, and those of a test whose process died."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

from qsae_bench.gate.exit_status import NOT_MEASURED, STATUS


def serialized(config: pytest.Config, reports: Iterable[pytest.TestReport]) -> list[dict[str, Any]]:
    hook = config.hook.pytest_report_to_serializable
    return [hook(config=config, report=report) for report in reports]


def tell(item: pytest.Item, reports: Iterable[Mapping[str, Any]]) -> None:
    """Let every plugin hear of a test what was told when it ran."""
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for data in reports:
        report = hook.pytest_report_from_serializable(config=item.config, data=_as_told(data))
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _as_told(data: Mapping[str, Any]) -> dict[str, Any]:
    """With the tuples that JSON made lists of: pytest asks for them by type."""
    told = copy.deepcopy(dict(data))
    for field in ("location", "longrepr"):
        if isinstance(told.get(field), list):
            told[field] = tuple(told[field])
    for field in ("sections", "user_properties"):
        told[field] = [tuple(pair) for pair in told.get(field, ())]
    return told


def crash_reports(
    item: pytest.Item, reason: str, output: Sequence[tuple[str, str]] = ()
) -> list[pytest.TestReport]:
    """A test that failed because its cell's process died. ``output``: title and text of what it wrote."""

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
