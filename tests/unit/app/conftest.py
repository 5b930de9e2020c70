"""``suite``: the benchmarks on a session without a model."""

from __future__ import annotations

import pytest

from benchmark_suite import Suite


@pytest.fixture
def suite(pytester, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.delenv("QSAE_HISTORY", raising=False)
    return Suite(pytester)
