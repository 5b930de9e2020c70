"""The URL of the history: chosen, checked, and refused without being shown."""

from __future__ import annotations

import pytest

from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.results.history.url import history_url

SECRET = "s3cr3t!"


def test_where_the_history_is(tmp_path, monkeypatch):
    monkeypatch.delenv("QSAE_HISTORY", raising=False)
    assert history_url("", tmp_path) == f"sqlite:///{tmp_path}/history.sqlite"
    assert history_url("none", tmp_path) == ""
    monkeypatch.setenv("QSAE_HISTORY", "postgresql://h/db")
    assert history_url("", tmp_path) == "postgresql://h/db"
    assert history_url("sqlite:///x", tmp_path) == "sqlite:///x"


@pytest.mark.parametrize(
    "given",
    [
        f"mysql://me:{SECRET}@h/db",
        f"me:{SECRET}",
        "history.sqlite",
        "sqlite:///",
        "postgresql://",
        "sqlite:///a\0b",
    ],
)
def test_what_is_no_url_is_refused_without_showing_it(tmp_path, given):
    with pytest.raises(QsaeError) as caught:
        history_url(given, tmp_path)
    assert SECRET not in one_line(caught.value)
