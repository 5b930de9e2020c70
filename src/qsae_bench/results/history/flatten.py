"""Turn a run document into rows of the history's tables. Pure."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table

from qsae_bench.errors import QsaeError
from qsae_bench.gate.verdict import worst_status
from qsae_bench.machine import hardware_of
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.results.document import CellRecord, RunDocument, Value
from qsae_bench.results.history import schema
from qsae_bench.results.history.schema import NO_LAYER
from qsae_bench.results.setup import UNKNOWN_HARDWARE, is_sane, relevant_versions

StoredRow = dict[str, Any]

TOO_DEEP = "it is nested too deep"
MOST_NESTED = 50
"""Levels in a field of free content: enough for any environment, and no problem for a driver's stack."""

LAYER_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
INT64 = 2**63


@dataclass(frozen=True)
class Flat:
    """Hold the rows of one run, by table."""

    run: StoredRow
    cells: list[StoredRow]
    values: list[StoredRow]
    verdicts: list[StoredRow]

    @property
    def rows(self) -> list[tuple[Table, list[StoredRow]]]:
        """Return the tables that get rows, with these, in an order that their foreign keys allow."""
        tables = [
            (schema.runs, [self.run]), (schema.cells, self.cells), (schema.values, self.values),
            (schema.verdicts, self.verdicts),
        ]  # fmt: skip
        return [(table, rows) for table, rows in tables if rows]


def flatten(document: RunDocument) -> Flat:
    """Return the rows of a document.

    Raises:
        QsaeError: The document holds something that no database can store, or a cell twice; the message
            says what.
    """
    try:
        _check(document.model_dump())
        document_digest = digest(document)
    except (ValueError, RecursionError):  # raised by pydantic and json
        raise QsaeError(TOO_DEEP) from None
    sane_references = {c.model: is_sane(c) for c in document.cells if c.quantization == REFERENCE}
    cells: dict[tuple[str, str], StoredRow] = {}
    values: list[StoredRow] = []
    verdicts: dict[tuple[str, str, int, str], StoredRow] = {}
    for cell in document.cells:
        name = (cell.model, cell.quantization)
        if name in cells:
            raise QsaeError(f"cell {_short('-'.join(name))} is in it twice")
        key = {"run_id": document.run_id, "model": cell.model, "quantization": cell.quantization}
        corpus = document.corpus.get(cell.model)
        cells[name] = key | {
            "status": cell.status,
            "reason": cell.reason,
            "sane": is_sane(cell) and sane_references.get(cell.model, False),
            "corpus": corpus.fingerprint if corpus else "",
            "tokens": (
                cell.tokens or max((verdict.tokens for verdict in cell.verdicts), default=0)
                or (corpus.tokens if corpus else 0)
            ),
            "revision": cell.revision,
            "protocol": document.protocol,
            "batch_size": corpus.batch_size if corpus else 0,
            "saes": document.saes.get(cell.model, {}),
        }  # fmt: skip
        for layer, metric, value in _values(cell):
            numbers = {"value": value.value, "low": value.low, "high": value.high}
            values.append(key | {"layer": layer, "metric": metric, **numbers})
        for verdict in cell.verdicts:  # if a gate was judged twice, the last verdict counts
            layer = NO_LAYER if verdict.layer is None else verdict.layer
            verdicts[(*name, layer, verdict.metric)] = key | {
                "layer": layer, "metric": verdict.metric, "status": verdict.status,
                "side": verdict.side, "bound": verdict.bound,
            }  # fmt: skip
    outcome = worst_status(verdict.status for cell in document.cells for verdict in cell.verdicts)
    run = {
        **{key: getattr(document, key) for key in ("run_id", "started", "finished", "command")},
        "hardware": hardware_of(document.environment) or UNKNOWN_HARDWARE,
        "environment": document.environment,
        "versions": relevant_versions(document.environment, document.metrics_version),
        "synthetic": document.synthetic,
        "outcome": outcome or "",
        "digest": document_digest,
    }
    return Flat(run, list(cells.values()), values, list(verdicts.values()))


def digest(document: RunDocument) -> str:
    """Return a digest of a document without its defaults, so that a field added later changes none."""
    text = json.dumps(
        document.model_dump(exclude_defaults=True), sort_keys=True, ensure_ascii=True, separators=(",", ":")
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _values(cell: CellRecord) -> Iterator[tuple[int, str, Value]]:
    for metric, value in cell.metrics.items():
        yield NO_LAYER, metric, value
    for name, record in cell.layers.items():
        if not LAYER_NUMBER.fullmatch(name):
            raise QsaeError(f"layer {_short(name)} is no layer's number")
        for metric, value in record.metrics.items():
            yield int(name), metric, value


def _check(found: Any) -> None:
    """Raise for what no database stores: NUL or half a surrogate pair in a text, a number out of range.

    It works through a list instead of recursion, because a document may be nested deeper than the stack.
    """
    left = [(found, 0)]
    while left:
        one, depth = left.pop()
        if isinstance(one, dict | list | tuple):
            if depth > MOST_NESTED:
                raise QsaeError(TOO_DEEP)
            inside = [*one.keys(), *one.values()] if isinstance(one, dict) else one
            left += [(part, depth + 1) for part in inside]
        elif isinstance(one, str) and ("\0" in one or any("\ud800" <= c <= "\udfff" for c in one)):
            raise QsaeError(f"{_short(one)} holds a character that no database can store")
        elif isinstance(one, int) and not -INT64 <= one < INT64:
            raise QsaeError("an integer in it is beyond 64 bits")
        elif isinstance(one, float) and not math.isfinite(one):  # JSON has 1e999
            raise QsaeError("a number in it is beyond any float")


def _short(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 60 else f"{shown[:56]}…'"
