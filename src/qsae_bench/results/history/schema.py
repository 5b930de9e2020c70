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
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.schema import SchemaItem

HISTORY_SCHEMA = 1

metadata = MetaData()

schema = Table("qsae_schema", metadata, Column("version", Integer, primary_key=True, autoincrement=False))


def _texts(*names: str) -> list[Column[str]]:
    return [Column(name, Text, nullable=False) for name in names]


runs = Table(
    "qsae_runs",
    metadata,
    Column("run_id", Text, primary_key=True),
    *_texts("started", "finished", "command", "hardware"),
    Column("environment", JSON, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("synthetic", Boolean, nullable=False),
    *_texts("outcome", "digest"),
)
"""``versions`` is everything of the environment that can change a number, by name, with the version of
the metrics if that is not 1; ``outcome`` is the gravest verdict, or ''; ``digest`` tells the same document
from another one with its id."""

CELL_KEY = ("run_id", "model", "quantization")

cells = Table(
    "qsae_cells",
    metadata,
    *(Column(name, Text, primary_key=True) for name in CELL_KEY),
    *_texts("status", "reason"),
    Column("sane", Boolean, nullable=False),
    *_texts("corpus"),
    Column("tokens", BigInteger, nullable=False),
    *_texts("revision", "protocol"),
    Column("batch_size", BigInteger, nullable=False),
    Column("saes", JSON, nullable=False),
    ForeignKeyConstraint(["run_id"], ["qsae_runs.run_id"]),
    Index("qsae_cells_by_name", "model", "quantization"),
)
"""``corpus`` is a fingerprint, '' if no text was read; ``sane`` means that the cell was measured and is
valid, and its reference too; ``batch_size`` is 0 if no text was read; ``saes`` maps a layer to its SAE."""


def _metric_table(name: str, *others: SchemaItem) -> Table:
    """Define a table of one row per metric of a cell."""
    return Table(
        name,
        metadata,
        *(Column(key, Text, primary_key=True) for key in CELL_KEY),
        Column("layer", Integer, primary_key=True, autoincrement=False),
        Column("metric", Text, primary_key=True),
        *others,
        ForeignKeyConstraint(CELL_KEY, [f"qsae_cells.{key}" for key in CELL_KEY]),
    )


values = _metric_table(
    "qsae_values",
    *(Column(name, Double) for name in ("value", "low", "high")),
    Index("qsae_values_by_series", "model", "metric", "quantization", "layer"),
)
verdicts = _metric_table("qsae_verdicts", *_texts("status"), Column("side", Text), Column("bound", Double))

NO_LAYER = -1
"""The ``layer`` of a value of the whole cell: a primary key can't hold NULL."""
