"""Folders of runs are found and imported, in any order and any number of times."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import one_line
from history_suite import content
from nights import night, put
from qsae_bench.errors import QsaeError
from qsae_bench.results.history.importing import import_runs, runs_in
from qsae_bench.results.history.store import History
from qsae_bench.results.history.url import default_url


def test_where_runs_are_looked_for(tmp_path):
    one = put(tmp_path / ".qsae" / "runs", night(1))
    two = put(tmp_path / ".qsae" / "runs", night(2))
    (tmp_path / ".qsae" / "runs" / "going on").mkdir()
    for place, found in (
        (one, [one]), (one / "run.json", [one]), (tmp_path / ".qsae" / "runs", [one, two]),
        (tmp_path / ".qsae", [one, two]),
    ):  # fmt: skip
        assert runs_in(place) == found
    for place in (tmp_path, tmp_path / "nowhere", Path("a\0b")):
        with pytest.raises(QsaeError) as caught:
            runs_in(place)
        one_line(caught.value)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_importing_is_idempotent(tmp_path_factory, order):
    """Any order, any repetition: the content is that of the set."""
    place = tmp_path_factory.mktemp("imports")
    folders = {number: put(place / "runs", night(number)) for number in set(order)}
    with History.open(default_url(place / "a"), create=True) as history:
        for number in order:
            import_runs(history, [folders[number]], pytest.fail)
        jumbled = content(history)
    with History.open(default_url(place / "b"), create=True) as history:
        done = import_runs(history, sorted(folders.values()), pytest.fail)
        assert content(history) == jumbled
    assert done == {"imported": len(folders), "already there": 0}
