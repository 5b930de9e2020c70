"""Open the history's database and add runs to it. Every failure is one line, without the password.

A run is one transaction. Adding the same document again changes nothing, so any folder of runs can be
imported at any time; another document of the same id is refused.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url

from qsae_bench.errors import QsaeError, plain
from qsae_bench.redaction import mask_passwords
from qsae_bench.registry.toml import quoted_key
from qsae_bench.results.document import RunDocument
from qsae_bench.results.history import schema
from qsae_bench.results.history.flatten import Flat, flatten
from qsae_bench.results.history.url import SQLITE, sqlite_path

WRITER_SECONDS = 30
"""How long a run waits for another that writes: long compared with a run's one transaction."""
READER_SECONDS = 5
"""How long a reader waits; the message of a failing gate is not worth more."""

NOTHING_YET = (
    "no history yet: run the benchmarks, or `qsae-bench history import FOLDER` with folders of runs"
)

CREATION_LOCK = 0x71736165
"""PostgreSQL's advisory lock: two runs that start a history at once don't create its tables twice."""


class NoHistory(QsaeError):
    """Report that the database can be reached, but no run was recorded in it yet."""


class History(contextlib.AbstractContextManager["History"]):
    """Hold an open history; close it, or use it in a ``with`` statement."""

    def __init__(self, engine: Engine, shown: str) -> None:
        self._engine = engine
        self.shown = shown
        """the URL without its password, for messages"""

    @classmethod
    def open(cls, url: str, create: bool = False, wait_seconds: float = WRITER_SECONDS) -> History:
        """Connect and check the schema.

        Args:
            create: Whether to create the file and the tables if they are missing.
            wait_seconds: How long to wait for another process's lock.

        Raises:
            NoHistory: There is no history, and ``create`` is false.
            QsaeError: The database can't be reached or read, or has an unknown schema.
        """
        path = sqlite_path(url)
        shown = f"{SQLITE}{path}" if path is not None else _shown(url)
        with _in_one_line(shown), contextlib.ExitStack() as undo:
            engine = _sqlite(path, create, wait_seconds) if path else _server(url, wait_seconds)
            undo.callback(engine.dispose)
            opened = cls(engine, shown)
            opened._check_schema(create)
            undo.pop_all()
        return opened

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a connection for queries; an error in the block becomes a QsaeError of one line."""
        with _in_one_line(self.shown), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            connection = connection.execution_options(qsae_writes=True)
            with connection.begin():
                yield connection

    def add(self, document: RunDocument) -> bool:
        """Add a run; return False if it was there already.

        Raises:
            QsaeError: The run can't be added, or another document of this id is there.
        """
        flat = flatten(document)
        with _in_one_line(self.shown):
            try:
                with self._writing() as connection:
                    if self._is_there(connection, flat):
                        return False
                    for table, rows in flat.rows:
                        connection.execute(sa.insert(table), rows)
            except sa.exc.IntegrityError:  # another process wrote it between the query and the insert
                with self._engine.connect() as connection:
                    if self._is_there(connection, flat):
                        return False
                raise
        return True

    def _is_there(self, connection: Connection, flat: Flat) -> bool:
        query = sa.select(schema.runs.c.digest).where(schema.runs.c.run_id == flat.run["run_id"])
        digest = connection.execute(query).scalar()
        if digest is not None and digest != flat.run["digest"]:
            raise QsaeError(
                f"{self.shown}: another document of run {quoted_key(flat.run['run_id'])} is there: one of "
                "the two was edited"
            )
        return digest is not None

    def _check_schema(self, create: bool) -> None:
        found = self._schema()
        if found is None and create:
            with self._writing() as connection:
                if connection.dialect.name == "postgresql":
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(CREATION_LOCK)))
                schema.metadata.create_all(connection)
                if connection.execute(sa.select(schema.schema.c.version)).first() is None:
                    connection.execute(sa.insert(schema.schema).values(version=schema.HISTORY_SCHEMA))
            found = self._schema()
        if found is None:
            raise NoHistory(f"{self.shown}: {NOTHING_YET}")
        if found != [schema.HISTORY_SCHEMA]:
            known = ", ".join(map(str, found)) or "unknown"
            raise QsaeError(
                f"{self.shown}: a history of schema {known}; this version knows {schema.HISTORY_SCHEMA}: "
                "use the version that wrote it, or name another with --history"
            )

    def _schema(self) -> list[int] | None:
        """Return the recorded schema versions; None if the database has no table of the history."""
        with self._engine.connect() as connection:
            there = set(sa.inspect(connection).get_table_names())
            if there.isdisjoint(schema.metadata.tables):
                return None
            if schema.schema.name not in there:
                return []
            return list(connection.execute(sa.select(schema.schema.c.version)).scalars())


def record_run(url: str, document: RunDocument, folder: Path) -> str:
    """Add the run that just ended to the history, and create the history if there is none.

    The run's own files are in ``folder`` already, so nothing is lost if this fails.

    Returns:
        '' if the run was added, else one line with the reason and how to add it later.
    """
    try:
        with History.open(url, create=True) as history:
            history.add(document)
    except QsaeError as error:
        place = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        return (
            f"{error}; the run is stored: `qsae-bench history import {place}` adds it later, with the same "
            "--history"
        )
    return ""


def _sqlite(path: Path, create: bool, wait_seconds: float) -> Engine:
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.exists():
        raise NoHistory(f"{SQLITE}{path}: {NOTHING_YET}")
    engine = sa.create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": wait_seconds},
        poolclass=sa.pool.NullPool,
    )

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # else pysqlite begins transactions itself, late
        connection.execute("PRAGMA foreign_keys = ON")
        if create:  # write-ahead log: readers never wait for a writer. The mode stays with the file
            connection.execute("PRAGMA journal_mode = WAL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # IMMEDIATE waits here for the other writer; a transaction that begins reading and then writes fails
        writes = connection.get_execution_options().get("qsae_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _server(url: str, wait_seconds: float) -> Engine:
    return sa.create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        connect_args={
            "connect_timeout": 10,
            "options": f"-c lock_timeout={int(1000 * wait_seconds)} -c client_min_messages=error",
        },
        poolclass=sa.pool.NullPool,
    )


def _shown(url: str) -> str:
    try:
        return mask_passwords(make_url(url).render_as_string(hide_password=True))
    except (sa.exc.ArgumentError, ValueError):
        return "the history's URL"


@contextlib.contextmanager
def _in_one_line(shown: str) -> Iterator[None]:
    """Convert the database's errors to a :class:`QsaeError` of one line."""
    try:
        yield
        return
    except sa.exc.DBAPIError as error:
        message = str(error.orig)
    except sqlite3.Error as error:  # on connecting, before SQLAlchemy looks
        message = str(error)
    except sa.exc.ArgumentError:
        message = "not a URL that names a host and a database"
    except sa.exc.SQLAlchemyError as error:
        message = str(error)
    except ImportError:
        message = "PostgreSQL needs psycopg: pip install 'qsae-bench[postgres]'"
    except OSError as error:
        message = error.strerror or str(error)
    except (ValueError, OverflowError, RecursionError) as error:
        # a damaged JSON column, a port that is no number
        message = str(error)
    # outside the handlers: the driver's exception holds what it was given, and must not be chained
    first = next((plain(line) for line in message.splitlines() if line.strip()), "unknown error")
    raise QsaeError(f"{shown}: the history can't be used: {mask_passwords(first)}")
