"""pytest-benchmark's timings as JSON and back, for its table and its file to have them all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

FIELDS = ("name", "fullname", "group", "param", "extra_info")


def timings_of(config: pytest.Config, tests: Collection[str]) -> list[dict[str, Any]]:
    """The timings that tests (node ids) took so far."""
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


def restore(config: pytest.Config, item: pytest.Item, kept: Mapping[str, Any]) -> None:
    """Add a test's timing to those that pytest-benchmark reports at the end."""
    from pytest_benchmark.stats import Metadata

    callspec = getattr(item, "callspec", None)
    fixture = SimpleNamespace(
        **{field: kept[field] for field in FIELDS},
        params=callspec.params if callspec else None,
        cprofile_stats=None,
        has_error=kept["has_error"],
    )
    metadata = Metadata(fixture, iterations=kept["iterations"], options=kept["options"])
    for seconds in kept["seconds"]:
        metadata.stats.update(seconds)  # of one iteration each, as they were kept
    _timings(config).append(metadata)


def is_timing(config: pytest.Config) -> bool:
    """Whether pytest-benchmark is there and not switched off."""
    session = getattr(config, "_benchmarksession", None)
    return session is not None and not session.disabled


def _timings(config: pytest.Config) -> list[Any]:
    """pytest-benchmark's own list; one that nobody sees where it is switched off."""
    session = getattr(config, "_benchmarksession", None)
    return session.benchmarks if session is not None else []
