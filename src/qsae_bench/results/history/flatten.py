"""Turn a run document into rows of the history's tables. Pure."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qsae_bench.errors import QsaeError
from qsae_bench.gate.verdict import FAILING, worst_status
from qsae_bench.machine import hardware_of
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.results.document import CellRecord, RunDocument, Value
from qsae_bench.results.history.schema import NO_LAYER

Row = dict[str, Any]

IRRELEVANT_PACKAGES = frozenset({"pytest", "pytest-benchmark", "pyarrow", "datasets"})
"""Packages whose version can't change a measured number: what they read is in the corpus fingerprint."""

RELEVANT_ENVIRONMENT = ("python", "driver", "cuda", "threads", "cpu")
"""Keys of the environment, beside the versions, that can change a number in its last digits."""

UNKNOWN_HARDWARE = "unknown hardware"

TOO_DEEP = "it is nested too deep"
MOST_NESTED = 50
"""Levels in a field of free content: enough for any environment, and no problem for a driver's stack."""

LAYER = re.compile(r"0|[1-9][0-9]{0,8}")
INT64 = 2**63


@dataclass(frozen=True)
class Flat:
    """Hold the rows of one run, by table."""

    run: Row
    cells: list[Row]
    values: list[Row]
    verdicts: list[Row]


def flatten(document: RunDocument) -> Flat:
    """Return the rows of a document.

    Raises:
        QsaeError: The document holds something that no database can store, or a cell twice; the message
            says what.
    """
    try:
        _check(document.model_dump())
        document_digest = digest(document)
    except (ValueError, RecursionError):  # pydantic's and json's words for it
        raise QsaeError(TOO_DEEP) from None
    sane_references = {c.model: _is_sane(c) for c in document.cells if c.quantization == REFERENCE}
    cells: dict[tuple[str, str], Row] = {}
    values: list[Row] = []
    verdicts: dict[tuple[str, str, int, str], Row] = {}
    for cell in document.cells:
        name = (cell.model, cell.quantization)
        if name in cells:
            raise QsaeError(f"cell {_short('-'.join(name))} is in it twice")
        key = {"run_id": document.run_id, "model": cell.model, "quantization": cell.quantization}
        corpus = document.corpus.get(cell.model)
        cells[name] = key | {
            "status": cell.status,
            "reason": cell.reason,
            "sane": _is_sane(cell) and sane_references.get(cell.model, False),
            "corpus": corpus.fingerprint if corpus else "",
            "tokens": _tokens(cell) or (corpus.tokens if corpus else 0),
            "revision": cell.revision,
            "protocol": document.protocol,
            "batch_size": corpus.batch_size if corpus else 0,
            "saes": document.saes.get(cell.model, {}),
        }
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
        "run_id": document.run_id,
        "started": document.started,
        "finished": document.finished,
        "command": document.command,
        "hardware": hardware_of(document.environment) or UNKNOWN_HARDWARE,
        "environment": document.environment,
        "versions": versions(document.environment) | metrics_entry(document.metrics_version),
        "synthetic": document.synthetic,
        "outcome": outcome or "",
        "digest": document_digest,
    }
    return Flat(run, list(cells.values()), values, list(verdicts.values()))


def digest(document: RunDocument) -> str:
    """Return a digest of a document. Defaults are left out, so that a field added later changes no
    digest."""
    found = document.model_dump(exclude_defaults=True)
    text = json.dumps(found, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def versions(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return everything that can change a number between two runs on the same hardware, by name."""
    packages = environment.get("versions")
    packages = packages if isinstance(packages, dict) else {}
    found = {key: str(value) for key, value in packages.items() if key not in IRRELEVANT_PACKAGES}
    for key in RELEVANT_ENVIRONMENT:
        if environment.get(key) is not None:
            found[key] = str(environment[key])
    return found


METRICS_ENTRY = "qsae-bench metrics"
"""key in a run's ``versions`` of the version of the metrics, where that is not 1. It has no column of its
own, so that a history from before the field can be read and added to. No package has a space in its name"""


def metrics_entry(version: int) -> dict[str, str]:
    """Return the entry of ``versions`` that holds a version of the metrics."""
    return {METRICS_ENTRY: str(version)} if version != 1 else {}


def metrics_version(versions: Mapping[str, str]) -> int:
    """Return the version of the metrics that a run's ``versions`` hold."""
    found = versions.get(METRICS_ENTRY, "1")
    return int(found) if re.fullmatch("[1-9][0-9]{0,6}", found) else 1


def _is_sane(cell: CellRecord) -> bool:
    """Return whether a cell was measured and is valid; the verdicts of a reference are its sanity
    bounds."""
    judged = [v.status for v in cell.verdicts]
    wrong = FAILING if cell.quantization == REFERENCE else {"invalid"}
    return cell.status == "measured" and not cell.reason and wrong.isdisjoint(judged)


def _tokens(cell: CellRecord) -> int:
    return cell.tokens or max((verdict.tokens for verdict in cell.verdicts), default=0)


def _values(cell: CellRecord) -> Iterator[tuple[int, str, Value]]:
    for metric, value in cell.metrics.items():
        yield NO_LAYER, metric, value
    for name, record in cell.layers.items():
        if not LAYER.fullmatch(name):
            raise QsaeError(f"layer {_short(name)} is no layer's number")
        for metric, value in record.metrics.items():
            yield int(name), metric, value


def _check(found: Any) -> None:
    """Raise for a NUL or half a surrogate pair in a text, or a number beyond 64 bits: no database stores
    them.

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
