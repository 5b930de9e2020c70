"""The database: open it, add a run to it, ask it. Every failure is one line, without the password.

A run is one transaction. Adding the same document again changes nothing, so any folder of runs can be
imported at any time; another document of the same id is refused.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url

from qsae_bench.errors import QsaeError, plain
from qsae_bench.redaction import mask_passwords
from qsae_bench.registry.toml import shown as shown_key
from qsae_bench.results.document import RunDocument
from qsae_bench.results.history import schema
from qsae_bench.results.history.flatten import Flat, flatten
from qsae_bench.results.history.url import SQLITE, sqlite_path

WRITER_SECONDS = 30
"""for which a run waits for another that writes: long against a run's one transaction"""
READER_SECONDS = 5
"""a gate's message is not worth more"""

NOTHING = "no history yet: run the benchmarks, or `qsae-bench history import FOLDER` with folders of runs"

CREATION_LOCK = 0x71736165
"""PostgreSQL's advisory lock: two runs that start a history at once don't create its tables twice"""


class NoHistory(QsaeError):
    """The place is fine, and nothing was kept there yet."""


class History:
    """An open history; close it, or use it as a context."""

    def __init__(self, engine: Engine, shown: str) -> None:
        self._engine = engine
        self.shown = shown
        """the URL as a message may show it"""

    @classmethod
    def open(cls, url: str, create: bool = False, wait_seconds: float = WRITER_SECONDS) -> History:
        """Connect and check the schema; with ``create``, make file and tables where there are none.

        Raises:
            QsaeError: it can't be reached or read, it is none, or of a schema that is not known here.
        """
        path = sqlite_path(url)
        shown = f"{SQLITE}{path}" if path is not None else _shown(url)
        engine = None
        try:
            with _in_one_line(shown):
                engine = _sqlite(path, create, wait_seconds) if path else _server(url, wait_seconds)
                opened = cls(engine, shown)
                opened._check_schema(create)
        except QsaeError:
            if engine is not None:
                engine.dispose()
            raise
        return opened

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to ask with; what goes wrong in the block is one line."""
        with _in_one_line(self.shown), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            connection = connection.execution_options(qsae_writes=True)
            with connection.begin():
                yield connection

    # -- adding

    def add(self, document: RunDocument) -> bool:
        """Keep a run; False where it was there already.

        Raises:
            QsaeError: it can't be kept, or another document of this id is there.
        """
        flat = flatten(document)
        with _in_one_line(self.shown):
            try:
                with self._writing() as connection:
                    if self._is_there(connection, flat):
                        return False
                    _insert(connection, flat)
            except sa.exc.IntegrityError:  # another run wrote it between our look and our insert
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
                f"{self.shown}: another document of run {shown_key(flat.run['run_id'])} is there: one of "
                "the two was edited"
            )
        return digest is not None

    # -- the schema

    def _check_schema(self, create: bool) -> None:
        found = self._schema()
        if found is None and create:
            with self._writing() as connection:
                if connection.dialect.name == "postgresql":
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(CREATION_LOCK)))
                schema.metadata.create_all(connection)
                if connection.execute(sa.select(schema.schema.c.version)).first() is None:
                    connection.execute(sa.insert(schema.schema).values(version=schema.SCHEMA))
            found = self._schema()
        if found is None:
            raise NoHistory(f"{self.shown}: {NOTHING}")
        if found != [schema.SCHEMA]:
            known = ", ".join(map(str, found)) or "unknown"
            raise QsaeError(
                f"{self.shown}: a history of schema {known}; this qsae-bench knows {schema.SCHEMA}: use "
                "the version that wrote it, or name another with --history"
            )

    def _schema(self) -> list[int] | None:
        """The schemas that the database says it has; None where it has no table of ours."""
        with self._engine.connect() as connection:
            there = set(sa.inspect(connection).get_table_names())
            if there.isdisjoint(schema.metadata.tables):
                return None
            if schema.schema.name not in there:
                return []
            return list(connection.execute(sa.select(schema.schema.c.version)).scalars())


def _insert(connection: Connection, flat: Flat) -> None:
    connection.execute(sa.insert(schema.runs), flat.run)
    for table, rows in (
        (schema.cells, flat.cells), (schema.values, flat.values), (schema.verdicts, flat.verdicts),
    ):  # fmt: skip
        if rows:
            connection.execute(sa.insert(table), rows)


def fetch_all(connection: Connection, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
    return connection.execute(query).all()


def record_run(url: str, document: RunDocument, folder: Path) -> str:
    """Add the run that just ended to the history, and create the history if there is none.

    The run's own files are written already, so nothing is lost if this fails.

    Args:
        url: The database.
        document: The run document.
        folder: The run's folder, for the message.

    Returns:
        '' if the run was added, else one line that says why not and how to add it later.
    """
    try:
        with History.open(url, create=True) as history:
            history.add(document)
    except QsaeError as error:
        place = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        return (
            f"{error}; the run is kept: `qsae-bench history import {place}` adds it later, with the same "
            "--history"
        )
    return ""


# -- connecting -----------------------------------------------------------------------------------


def _sqlite(path: Path, create: bool, wait_seconds: float) -> Engine:
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.exists():
        raise NoHistory(f"{SQLITE}{path}: {NOTHING}")
    engine = sa.create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": wait_seconds},
        poolclass=sa.pool.NullPool,
    )

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # pysqlite would begin late, and not what we ask for
        connection.execute("PRAGMA foreign_keys = ON")
        if create:  # write-ahead: who reads never waits for who writes. It stays with the file
            connection.execute("PRAGMA journal_mode = WAL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # IMMEDIATE waits for the other writer here; a plain transaction that turns to writing fails at once
        writes = connection.get_execution_options().get("qsae_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _server(url: str, wait_seconds: float) -> Engine:
    parsed = make_url(url).set(drivername="postgresql+psycopg")
    return sa.create_engine(
        parsed,
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


# -- what goes wrong ------------------------------------------------------------------------------

PSYCOPG = "PostgreSQL needs psycopg: pip install 'qsae-bench[postgres]'"


@contextlib.contextmanager
def _in_one_line(shown: str) -> Iterator[None]:
    """The database's errors as a :class:`QsaeError` of one line."""
    try:
        yield
        return
    except sa.exc.DBAPIError as error:
        said = str(error.orig)
    except sqlite3.Error as error:  # on connecting, before SQLAlchemy looks
        said = str(error)
    except sa.exc.ArgumentError:
        said = "not a URL that names a host and a database"
    except sa.exc.SQLAlchemyError as error:
        said = str(error)
    except ImportError:
        said = PSYCOPG
    except OSError as error:
        said = error.strerror or str(error)
    except (ValueError, OverflowError, RecursionError) as error:
        # a damaged JSON column, a port that is no number
        said = str(error)
    # outside the handlers: the driver's own exception, with what it was given, is not part of ours
    first = next((plain(line) for line in said.splitlines() if line.strip()), "unknown error")
    raise QsaeError(f"{shown}: the history can't be used: {mask_passwords(first)}")
