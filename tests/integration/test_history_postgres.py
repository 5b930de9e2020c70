"""The history on a real PostgreSQL, started here: what SQLite does, and what only a server can do wrong."""

from __future__ import annotations

import itertools
import urllib.parse
from pathlib import Path

import pytest

import postgres_server
from builders import one_line
from history_suite import StoreSuite
from nights import night, run_ids
from qsae_bench.errors import QsaeError
from qsae_bench.results.history.store import History, record_run

pytestmark = [
    pytest.mark.skipif(bool(postgres_server.missing()), reason=postgres_server.missing()),
    pytest.mark.slow,
]

RUN = Path("runs/one")


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("psycopg", reason="pip install 'qsae-bench[postgres]'")
    with postgres_server.running() as running:
        yield running


numbers = itertools.count(1)


@pytest.fixture
def database(server):
    name = f"history{next(numbers)}"
    server.run(f'create database "{name}"')
    yield name
    server.run(f'drop database "{name}" with (force)')


@pytest.fixture
def url(server, database):
    return server.url(database)


class TestPostgres(StoreSuite):
    pass


def quoted():
    return urllib.parse.quote(postgres_server.PASSWORD, safe="")


def test_a_password_opens_it(server, database):
    url = server.with_password(database, quoted())
    with History.open(url, create=True) as history:
        assert history.add(night(1))
        assert history.shown == f"postgresql://tester:***@127.0.0.1:{server.port}/{database}"


def test_a_wrong_password_is_one_line_and_not_shown(server, database):
    line = record_run(server.with_password(database, "tr0ub4dor"), night(1), RUN)
    assert len(line.splitlines()) == 1
    assert "password authentication failed" in line
    assert "tr0ub4dor" not in line
    assert "`qsae-bench history import runs/one` adds it later" in line


def test_a_database_that_is_not_there(server):
    assert 'database "nowhere" does not exist' in record_run(server.url("nowhere"), night(1), RUN)


def test_a_lock_is_waited_for_then_named(server, url):
    import psycopg

    with History.open(url, create=True) as history:
        history.add(night(1))
    with psycopg.connect(url) as holder:
        holder.execute("lock table qsae_runs in access exclusive mode")
        with pytest.raises(QsaeError) as caught:
            History.open(url, create=True, wait_seconds=0.2).add(night(2))
        assert "lock timeout" in one_line(caught.value)
    with History.open(url) as history:
        assert run_ids(history) == [night(1).run_id]


def test_a_user_who_may_only_read(server, database, url):
    with History.open(url, create=True) as history:
        history.add(night(1))
    with History.open(url) as history, history._engine.begin() as connection:
        connection.exec_driver_sql(f"create role reader_{database} login")
        connection.exec_driver_sql(f"grant select on all tables in schema public to reader_{database}")
    reader = url.replace("tester@", f"reader_{database}@")
    with History.open(reader) as history:
        assert run_ids(history) == [night(1).run_id]
        with pytest.raises(QsaeError) as caught:
            history.add(night(2))
        assert "permission denied" in one_line(caught.value)
    with History.open(url) as history, history._engine.begin() as connection:
        connection.exec_driver_sql(f"drop owned by reader_{database}")
        connection.exec_driver_sql(f"drop role reader_{database}")


def test_a_server_that_goes_away_between_two_runs(url):
    with History.open(url, create=True) as history:
        history.add(night(1))
        other = History.open(url)
        with other._engine.connect() as connection:
            # what a restart does: every other connection is gone
            connection.exec_driver_sql(
                "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
            )
        other.close()
        assert history.add(night(2))
        assert len(run_ids(history)) == 2
