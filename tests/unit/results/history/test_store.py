"""The history on SQLite: beside what any database does, files that are lost, locked or no history."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import one_line
from history_suite import StoreSuite, content
from nights import night, put, run_ids, tree
from qsae_bench.app.cli import main as cli
from qsae_bench.errors import QsaeError
from qsae_bench.redaction import mask_passwords
from qsae_bench.report.history import history_lines
from qsae_bench.results.document import RunDocument
from qsae_bench.results.history.flatten import digest, versions
from qsae_bench.results.history.importing import import_runs, runs_in
from qsae_bench.results.history.queries import series
from qsae_bench.results.history.store import History, record_run
from qsae_bench.results.history.url import default_url, history_url
from qsae_bench.stats.changepoints import FEWEST_POINTS, Point, find_level_changes

SECRET = "s3cr3t!"
RUN = Path("runs/one")


class TestSqlite(StoreSuite):
    @pytest.fixture
    def url(self, tmp_path):
        return f"sqlite:///{tmp_path / 'not there yet' / 'history.sqlite'}"


@pytest.fixture
def url(tmp_path):
    return default_url(tmp_path)


def file_of(url):
    return url.removeprefix("sqlite:///")


# -- a database that can't be used ----------------------------------------------------------------


def lost(url, **changes):
    """The line of a run that can't be added."""
    line = record_run(url, night(1, **changes), RUN)
    assert line
    assert len(line.splitlines()) == 1, line
    assert "the run is kept: `qsae-bench history import runs/one`" in line
    return line


def test_a_file_that_is_no_database(url):
    Path(file_of(url)).write_bytes(b"\x89PNG" + bytes(range(256)) * 40)
    assert "file is not a database" in lost(url)


def test_a_truncated_database(url):
    with History.open(url, create=True) as history:
        for number in range(2, 12):
            history.add(night(number))
    path = Path(file_of(url))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "malformed" in lost(url)


def test_somebody_elses_database(url):
    with sqlite3.connect(file_of(url)) as connection:
        connection.execute("create table runs (a)")
    assert record_run(url, night(1), RUN) == ""  # tables of others are left alone
    with sqlite3.connect(file_of(url)) as connection:
        assert connection.execute("select count(*) from runs").fetchone() == (0,)


def test_a_folder_in_its_place(url):
    Path(file_of(url)).mkdir()
    assert "unable to open database file" in lost(url)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    assert "the history can't be used" in lost(default_url(tmp_path / "inside"))


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert "the history can't be used" in lost(f"sqlite:///{tmp_path / 'file' / 'history.sqlite'}")


def test_a_lock_is_waited_for_then_named(url):
    with History.open(url, create=True) as history:
        history.add(night(1))
    holder = sqlite3.connect(file_of(url), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with History.open(url, create=True, wait_seconds=0.2) as history:
        with pytest.raises(QsaeError) as caught:
            history.add(night(2))
        assert "database is locked" in one_line(caught.value)
        assert run_ids(history) == [night(1).run_id]  # who reads waits for nobody
    timer = threading.Timer(0.5, holder.close)
    with History.open(url, create=True, wait_seconds=30) as history:
        holder.execute("COMMIT")
        assert history.add(night(2))
    timer.cancel()
    holder.close()


def test_a_full_disk_keeps_what_was_there(url):
    """SQLite's own limit of pages stands for the disk."""
    with History.open(url, create=True) as history:
        history.add(night(1))
        before = content(history)

        @sa.event.listens_for(history._engine, "connect")
        def full(connection, _):
            connection.execute("PRAGMA max_page_count = 1")

        with pytest.raises(QsaeError) as caught:
            history.add(night(2, command="x" * 10_000_000))
        assert "full" in one_line(caught.value)
    with History.open(url) as history:
        assert content(history) == before


def test_a_damaged_json_column_is_one_line(url):
    with History.open(url, create=True) as history:
        history.add(night(1))
    with sqlite3.connect(file_of(url)) as connection:
        connection.execute("update qsae_runs set versions = '{'")
    with History.open(url) as history, pytest.raises(QsaeError) as caught:
        series(history, "tiny", "kl_divergence")
    one_line(caught.value)


# -- URLs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"postgresql://me:{SECRET}@host/db", "postgresql://me:***@host/db"),
        (f"a 'postgresql+psycopg://me:{SECRET}@h:5432/db?x=1' b", "a 'postgresql+psycopg://me:***@h:5432/db?x=1' b"),
        (f"postgresql://me:{SECRET}@x@host/db", "postgresql://me:***@host/db"),
        (f"postgresql://host/db?user=me&password={SECRET}", "postgresql://host/db?user=me&password=***"),
        (f"--history=postgresql://me:{SECRET}/y@host/db", "--history=postgresql://me:***@host/db"),
        ("sqlite:////tmp/a.sqlite", "sqlite:////tmp/a.sqlite"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
    ],
)  # fmt: skip
def test_a_password_is_never_shown(text, shown):
    assert mask_passwords(text) == shown


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


@pytest.mark.parametrize(
    "server",
    ["127.0.0.1:1/db", "127.0.0.1:port/db", "127.0.0.1:99999999/db", "[/db", "127.0.0.1:1/db?bad=1"],
)
def test_an_unreachable_server_is_one_line_without_the_password(server):
    line = record_run(f"postgresql://me:{SECRET}@{server}", night(1), RUN)
    assert line
    assert len(line.splitlines()) == 1, line
    assert SECRET not in line


# -- documents and folders ------------------------------------------------------------------------


def test_a_field_added_later_changes_no_digest():
    """An old document read by newer software is the same document."""
    document = tree(night(1))
    for cell in document["cells"]:
        for field in ("warnings", "stability", "beside"):
            cell.pop(field, None)
    assert digest(RunDocument.model_validate(document)) == digest(night(1))
    assert digest(night(1, 0.02)) != digest(night(1))


def test_versions_that_move_no_number_are_left_out():
    assert versions({"versions": {"torch": "2", "pytest": "9"}, "threads": 2, "driver": None}) == {
        "torch": "2", "threads": "2",
    }  # fmt: skip
    assert versions({"versions": "not a table"}) == {}


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
    assert done.added == len(folders)


# -- changes of level -----------------------------------------------------------------------------


def points(values, half_width=0.0, tokens=2032):
    return [Point(float(value), half_width, tokens) for value in values]


@pytest.mark.parametrize("n", [8, 12, 30, 90])
def test_false_alarms_on_white_noise(n):
    """Of 1 000 series of pure noise at most 2.5% have a change, and as many a newest point that stands out."""
    rng = np.random.default_rng(n)
    found = [find_level_changes(points(rng.normal(5, 0.3, size=n))) for _ in range(1000)]
    assert sum(bool(one.found) for one in found) <= 25
    assert sum(one.stands_out for one in found) <= 25


@pytest.mark.parametrize(
    ("n", "sigmas", "least"), [(12, 8, 0.95), (30, 6, 0.95), (60, 6, 0.95), (60, 4, 0.9)]
)
def test_a_planted_shift_is_found_where_it_is(n, sigmas, least):
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(200):
        values = rng.normal(1, 0.01, size=n)
        values[n // 2 :] += 0.01 * sigmas
        found = find_level_changes(points(values)).found
        hits += len(found) == 1 and abs(found[0].index - n // 2) <= 1
    assert hits >= least * 200


def test_two_shifts_and_the_levels_between():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(level, 0.01, size=15) for level in (1, 1.2, 0.9)])
    found = find_level_changes(points(values)).found
    assert [change.index for change in found] == [15, 30]
    levels = [(round(c.before, 2), round(c.after, 2)) for c in found]
    assert levels == [(1.0, 1.2), (1.2, 0.9)]


def test_bit_identical_nights_have_no_noise():
    """Any step that lasts is a change, however small beside the interval."""
    assert find_level_changes(points([4.3] * 20, 0.1)).found == ()
    assert not find_level_changes(points([4.3] * 20, 0.1)).stands_out
    (found,) = find_level_changes(points([4.3] * 10 + [4.301] * 2, 0.1)).found
    assert (found.index, found.before, found.after) == (10, 4.3, 4.301)
    assert find_level_changes(points([0.0] * 9)).found == ()
    assert [change.index for change in find_level_changes(points([0.0] * 9 + [1e-9] * 3)).found] == [9]


def test_one_night_is_an_outlier_and_the_newest_stands_out():
    quiet = [4.3] * 10
    assert find_level_changes(points([*quiet, 5.0, *quiet], 0.1)).found == ()
    newest = find_level_changes(points([*quiet, 5.0], 0.1))
    assert newest.found == ()
    assert newest.stands_out


def test_more_tokens_are_no_change():
    """The same text read further moves a value within its interval; beyond it, something else did."""
    first, then = points([4.70] * 8, 0.6, 2032), points([4.33] * 8, 0.2, 16256)
    assert find_level_changes(first + then).found == ()
    assert len(find_level_changes(first + points([9.0] * 8, 0.2, 16256)).found) == 1
    assert len(find_level_changes(first + points([4.33] * 8, 0.6, 2032)).found) == 1


def test_few_nights_say_nothing():
    assert find_level_changes(points([1, 9] * 3)).too_few
    assert find_level_changes([]).too_few
    assert not find_level_changes(points(range(FEWEST_POINTS))).too_few


@given(st.lists(st.integers(-1000, 1000), min_size=FEWEST_POINTS, max_size=40), st.integers(-20, 20))
def test_the_unit_changes_nothing(values, power):
    """In another unit, a power of two so that nothing is rounded, the same nights changed."""
    ours, scaled = (
        find_level_changes(points([factor * v for v in values])) for factor in (1.0, 2.0**power)
    )
    assert all(0 < change.index < len(values) for change in ours.found)
    assert [c.index for c in scaled.found] == [c.index for c in ours.found]
    assert scaled.stands_out == ours.stands_out


# -- what is printed ------------------------------------------------------------------------------


def shown(tmp_path, documents, *options, metric="kl_divergence"):
    with History.open(default_url(tmp_path), create=True) as history:
        for document in documents:
            history.add(document)
        return "\n".join(history_lines(series(history, "tiny", metric, "nf4"), *options))


def test_versions_are_named_at_the_change(tmp_path):
    text = shown(
        tmp_path,
        [
            night(
                number, 0.01 if number < 9 else 0.02, versions={"torch": "2.12" if number < 9 else "2.13"}
            )
            for number in range(1, 15)
        ],
    )
    assert (
        "changed on 2026-01-09 (run 20260109T030000Z-0009): 0.01 → 0.02 (+100%); torch 2.12 → 2.13 on the "
        "same night" in " ".join(text.split())
    )
    marked = next(line for line in text.splitlines() if "20260109T" in line)
    assert "torch 2.12 → 2.13" in marked
    assert marked.endswith("◀ changed")


def test_a_machine_switch_is_no_change(tmp_path):
    text = shown(
        tmp_path,
        [
            night(n, 0.01 if n % 2 else 0.05, gpu="NVIDIA H200" if n % 2 else "NVIDIA H100")
            for n in range(1, 25)
        ],
    )
    assert "changed" not in text
    assert text.count("no change of level in 12 nights") == 2


def test_a_value_that_is_not_finite_is_shown_and_left_out_of_the_levels(tmp_path):
    text = shown(tmp_path, [night(n, None if n == 5 else 0.01) for n in range(1, 11)])
    assert "not finite" in text
    assert "no change of level in 9 nights" in text


def test_few_nights_say_so(tmp_path):
    assert "3 nights are too few to tell a change" in shown(tmp_path, [night(n) for n in range(1, 4)])


def test_absolute_times_are_kept(tmp_path):
    """A time of another night decides nothing, and is there to look at."""
    assert "load_seconds (s)" in shown(tmp_path, [night(1)], metric="load_seconds")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--metric", "fvu"], "--model and --metric are needed"),
        (["export"], "did you mean 'import'?"),
        (["import"], "name a run's folder"),
        (["import", "nowhere"], "nowhere: no such folder"),
        (["--model", "tiny", "--metric", "fvu"], "no history yet"),
        (["--model", "tiny", "--metric", "fvu", "--last", "-1"], "a number of nights is needed"),
        (["--history", "none", "import", "x"], "switched off"),
        (["--history", f"mysql://me:{SECRET}@h/d", "import", "x"], "not the URL of a history"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QSAE_HISTORY", raising=False)
    assert cli.main(["history", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert SECRET not in err
