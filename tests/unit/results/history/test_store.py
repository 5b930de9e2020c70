"""The history on SQLite: beside what any database does, files that are lost, locked or no history."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from builders import one_line
from history_suite import StoreSuite, content
from nights import night, run_ids
from qsae_bench.errors import QsaeError
from qsae_bench.results.history.queries import series
from qsae_bench.results.history.store import History, record_run
from qsae_bench.results.history.url import default_url

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
    assert "the run is stored: `qsae-bench history import runs/one`" in line
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


@pytest.mark.parametrize(
    "server",
    ["127.0.0.1:1/db", "127.0.0.1:port/db", "127.0.0.1:99999999/db", "[/db", "127.0.0.1:1/db?bad=1"],
)
def test_an_unreachable_server_is_one_line_without_the_password(server):
    line = record_run(f"postgresql://me:{SECRET}@{server}", night(1), RUN)
    assert line
    assert len(line.splitlines()) == 1, line
    assert SECRET not in line
