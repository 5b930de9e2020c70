"""Define the history's tables. Names begin with ``qsae_``: a server's database may hold other tables too.

Bump ``HISTORY_SCHEMA`` when a table changes; a database of another schema is refused, never guessed at.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)

HISTORY_SCHEMA = 1

metadata = MetaData()

schema = Table("qsae_schema", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

runs = Table(
    "qsae_runs",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("started", Text, nullable=False),
    Column("finished", Text, nullable=False),
    Column("command", Text, nullable=False),
    Column("hardware", Text, nullable=False),
    Column("environment", JSON, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("synthetic", Boolean, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("digest", Text, nullable=False),
)
"""``versions`` is everything of the environment that can change a number, by name, with the version of
the metrics if that is not 1; ``outcome`` is the gravest verdict, or ''; ``digest`` tells the same document
from another one with its id."""


def _cell() -> list[Column[str]]:
    return [
        Column("run_id", Text, primary_key=True),
        Column("model", Text, primary_key=True),
        Column("quantization", Text, primary_key=True),
    ]


CELL = ("run_id", "model", "quantization")

cells = Table(
    "qsae_cells",
    metadata,
    Column("run_id", Text, ForeignKey("qsae_runs.run_id"), primary_key=True),
    *_cell()[1:],
    Column("status", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("sane", Boolean, nullable=False),
    Column("corpus", Text, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("revision", Text, nullable=False),
    Column("protocol", Text, nullable=False),
    Column("batch_size", BigInteger, nullable=False),
    Column("saes", JSON, nullable=False),
    Index("qsae_cells_by_name", "model", "quantization"),
)
"""``corpus`` is a fingerprint, '' if no text was read; ``sane`` means that the cell was measured and is
valid, and its reference too; ``batch_size`` is 0 if no text was read; ``saes`` maps a layer to its SAE."""

values = Table(
    "qsae_values",
    metadata,
    *_cell(),
    Column("layer", Integer, primary_key=True, autoincrement=False),
    Column("metric", Text, primary_key=True),
    Column("value", Double),
    Column("low", Double),
    Column("high", Double),
    ForeignKeyConstraint(CELL, [f"qsae_cells.{name}" for name in CELL]),
    Index("qsae_values_by_series", "model", "metric", "quantization", "layer"),
)

verdicts = Table(
    "qsae_verdicts",
    metadata,
    *_cell(),
    Column("layer", Integer, primary_key=True, autoincrement=False),
    Column("metric", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("side", Text),
    Column("bound", Double),
    ForeignKeyConstraint(CELL, [f"qsae_cells.{name}" for name in CELL]),
)

NO_LAYER = -1
"""The ``layer`` of a value of the whole cell: a primary key can't hold NULL."""
