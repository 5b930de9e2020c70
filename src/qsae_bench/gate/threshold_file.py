"""Read and check thresholds.toml, and write an entry's keys back.

Reading is strict: an unknown key is an error, never ignored, and so is a bound or a table that could not
decide anything.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.gate.binding import why_not_binding
from qsae_bench.gate.known_names import KnownNames
from qsae_bench.gate.thresholds import (
    DEFAULTS_TABLE,
    HARDWARE_TABLE,
    LAYER_TABLE,
    Provenance,
    TablePath,
    Threshold,
    Thresholds,
    table_name,
)
from qsae_bench.metrics import METRICS
from qsae_bench.metrics.cost import TURNS
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.registry.toml import quoted_key, read_toml, what_is_wrong

THRESHOLDS_SCHEMA = 1

Text = Annotated[str, Field(pattern=r"\S")]
"""text that is not blank"""


class _Entry(BaseModel):
    """Hold the keys of a metric's entry."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max: FiniteFloat | None = None
    min: FiniteFloat | None = None
    source: str = ""
    provisional: bool = False
    measured: FiniteFloat | None = None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    tokens: Annotated[int, Field(ge=1, le=sys.maxsize)] | None = None
    hardware: Text = ""
    versions: Text = ""
    date: datetime.date | None = None
    run: Text = ""
    reason: Text = ""
    corpus: Text = ""
    fingerprint: Text = ""
    sequence_length: Annotated[int, Field(ge=1, le=sys.maxsize)] | None = None


ENTRY_KEYS = tuple(_Entry.model_fields)


def load_thresholds(path: Path, known: KnownNames | None = None) -> Thresholds:
    """Read and check a thresholds file.

    Args:
        path: the file.
        known: the names that tables may have; None accepts any.

    Raises:
        QsaeError: the file can't be read, has an unknown name, metric or key, a value of a wrong type, or a
            bound that binds nothing. One line that names the file, the table and the key.
    """
    return parse_thresholds(read_toml(path), str(path), known)


def parse_thresholds(
    document: Mapping[str, Any], where: str, known: KnownNames | None = None
) -> Thresholds:
    """Check a parsed file as :func:`load_thresholds` does; ``where`` names it in messages."""
    schema = document.get("schema")
    if type(schema) is not int or schema != THRESHOLDS_SCHEMA:
        # a hexadecimal integer may have more digits than Python prints
        plain = schema is None or isinstance(schema, str) or (isinstance(schema, int) and schema < 10**9)
        found = repr(schema) if plain else type(schema).__name__
        raise QsaeError(f"{where}: schema = {THRESHOLDS_SCHEMA} is needed at the top, found {found}")
    tables: dict[TablePath, dict[str, Threshold]] = {}
    for model, by_quantization in document.items():
        if model == "schema":
            continue
        if known is not None and (why := known.why_no_model(model, (DEFAULTS_TABLE,))):
            raise QsaeError(f"{where}: [{quoted_key(model)}]: {why}")
        for quantization, entries in _table(by_quantization, where, model).items():
            path = (model, quantization)
            if known is not None and (why := known.why_no_quantization(quantization)):
                raise QsaeError(f"{where}: [{table_name(path)}]: {why}")
            _read_entries(_table(entries, where, *path), path, where, tables, known)
    return Thresholds(tables)


def _read_entries(
    entries: Mapping[str, Any],
    path: TablePath,
    where: str,
    tables: dict[TablePath, dict[str, Threshold]],
    known: KnownNames | None,
) -> None:
    for key, value in entries.items():
        if (found := LAYER_TABLE.fullmatch(key)) and len(path) in (2, 4):
            table = _table(value, where, *path, key)
            if known is not None and (why := known.why_no_layer(path[0], int(found[1]))):
                raise QsaeError(f"{where}: [{table_name((*path, key))}]: {why}")
            _read_entries(table, (*path, key), where, tables, known)
        elif key == HARDWARE_TABLE and len(path) == 2:
            for name, own in _table(value, where, *path, key).items():
                if not name.strip():
                    raise QsaeError(
                        f"{where}: [{table_name((*path, key))}]: a hardware's name can't be empty"
                    )
                table = _table(own, where, *path, key, name)
                if known is not None and (why := known.why_no_hardware(name)):
                    raise QsaeError(f"{where}: [{table_name((*path, key, name))}]: {why}")
                _read_entries(table, (*path, key, name), where, tables, known)
        else:
            tables.setdefault(path, {})[key] = _read_entry(key, value, path, where)


def _table(value: Any, where: str, *path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise QsaeError(f"{where}: [{table_name(path)}] must be a table")
    return value


def _read_entry(key: str, value: Any, path: TablePath, where: str) -> Threshold:
    """Return one metric's entry as a threshold; ``path`` is its table's, ``where`` names the file."""
    table = table_name(path)
    at = f"{where}: [{table}] {quoted_key(key)}"
    if key not in METRICS:
        raise QsaeError(f"{at}: unknown metric{did_you_mean(key, METRICS)}")
    if not METRICS[key].gateable:
        raise QsaeError(f"{at}: never gated: it describes, or depends on the machine (see docs/metrics.md)")
    if len(path) in (3, 5) and METRICS[key].scope != "layer":
        raise QsaeError(f"{at}: one value a cell, so it can't stand in a layer's table")
    if path[1] == REFERENCE and key not in TURNS:
        raise QsaeError(
            f"{at}: a reference is held against the reference_bounds of its model's entry; here only "
            f"{' and '.join(TURNS)} of it are bounded"
        )
    if not isinstance(value, dict):
        raise QsaeError(f'{at}: expected {{ max = …, source = "…" }} or {{ min = …, source = "…" }}')
    try:
        entry = _Entry.model_validate(value)
    except ValidationError as error:
        raise QsaeError(what_is_wrong(error, at, ENTRY_KEYS)) from None
    if why := why_not_binding(key, entry.min, entry.max):
        raise QsaeError(f"{at}: {why}")
    if not entry.source.strip():
        raise QsaeError(f"{at}: source is needed: what the number rests on")
    provenance = Provenance(**{field.name: getattr(entry, field.name) for field in fields(Provenance)})
    found = Threshold.between(key, entry.min, entry.max, entry.source)
    return replace(found, provisional=entry.provisional, table=table, provenance=provenance)


def toml_entry(threshold: Threshold) -> dict[str, Any]:
    """Return the keys and values of a threshold's entry, without those that are not known."""
    lower, upper = threshold.ends
    entry: dict[str, Any] = {"min": lower, "max": upper, "source": threshold.source}
    entry = {key: value for key, value in entry.items() if value is not None}
    if threshold.provisional:
        entry["provisional"] = True
    return entry | threshold.provenance.known_values()
