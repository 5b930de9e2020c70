"""Convert pytest-benchmark's timings to JSON and back, so that its table and its file are complete."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

FIELDS = ("name", "fullname", "group", "param", "extra_info")


def timings_of(config: pytest.Config, tests: Collection[str]) -> list[dict[str, Any]]:
    """Return the timings of the given tests (node ids) so far."""
    return [
        {field: getattr(one, field) for field in FIELDS}
        | {
            "iterations": one.iterations,
            "seconds": list(one.stats.data),
            "options": one.as_dict(stats=False)["options"],
            "has_error": one.has_error,
        }
        for one in _timings(config)
        if one.fullname in tests
    ]


def restore(config: pytest.Config, item: pytest.Item, stored: Mapping[str, Any]) -> None:
    """Add a test's timing to those that pytest-benchmark reports at the end."""
    from pytest_benchmark.stats import Metadata

    callspec = getattr(item, "callspec", None)
    fixture = SimpleNamespace(
        **{field: stored[field] for field in FIELDS},
        params=callspec.params if callspec else None,
        cprofile_stats=None,
        has_error=stored["has_error"],
    )
    metadata = Metadata(fixture, iterations=stored["iterations"], options=stored["options"])
    for seconds in stored["seconds"]:
        metadata.stats.update(seconds)  # of one iteration each, as they were stored
    _timings(config).append(metadata)


def is_timing(config: pytest.Config) -> bool:
    """Return whether pytest-benchmark is installed and not switched off."""
    session = getattr(config, "_benchmarksession", None)
    return session is not None and not session.disabled


def _timings(config: pytest.Config) -> list[Any]:
    """Return pytest-benchmark's result list, or a throw-away list if it is disabled."""
    session = getattr(config, "_benchmarksession", None)
    return session.benchmarks if session is not None else []
