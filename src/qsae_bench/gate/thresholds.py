"""Read thresholds.toml as typed thresholds, find the one that applies, and write them back.

Reading is strict: an unknown key is an error, never ignored. Tables run from general to special, and the
most special entry for a metric decides::

    [defaults.nf4]                    # any model at this quantization
    [gemma3_12b.nf4]                  # this model
    [gemma3_12b.nf4.layer24]          # this layer of it

Each of them may have tables for one GPU (or CPU), which decide on that hardware before the general ones::

    [gemma3_12b.nf4.hardware."NVIDIA H200"]
    [gemma3_12b.nf4.hardware."NVIDIA H200".layer24]
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.metrics import METRICS
from qsae_bench.registry.toml import quoted_key, read_toml, what_is_wrong

THRESHOLDS_SCHEMA = 1
DEFAULTS_TABLE = "defaults"
HARDWARE_TABLE = "hardware"
LAYER_TABLE = re.compile(r"layer(0|[1-9][0-9]*)")

Side = Literal["max", "min"]
"""the end of a metric's range that the bound cuts off"""

TablePath = tuple[str, ...]
"""path of a table: ``("tiny_gemma3", "nf4", "layer3")``"""

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


ENTRY_KEYS = tuple(_Entry.model_fields)


@dataclass(frozen=True)
class Provenance:
    """Hold the measurement behind a bound, as ``qsae-bench thresholds update`` writes it into the entry."""

    measured: float | None = None
    low: float | None = None
    high: float | None = None
    """upper end of its 95% interval; ``low`` is the lower one"""
    tokens: int | None = None
    hardware: str = ""
    versions: str = ""
    date: datetime.date | None = None
    run: str = ""
    """run id"""
    reason: str = ""
    """why the bound was loosened, if it was"""

    def __str__(self) -> str:
        """Return ``measured 0.144 [0.0834, 0.211] on 32512 tokens, AMD EPYC, 2026-11-24``, if known."""
        parts = []
        if self.measured is not None:
            interval = "" if None in (self.low, self.high) else f" [{self.low:.3g}, {self.high:.3g}]"
            tokens = "" if self.tokens is None else f" on {self.tokens} tokens"
            parts.append(f"measured {self.measured:.4g}{interval}{tokens}")
            parts += filter(None, (self.hardware, str(self.date or "")))
        if self.reason:
            parts.append(f"loosened: {self.reason}")
        return ", ".join(parts)

    def known_values(self) -> dict[str, Any]:
        """Return the keys that have a value, with their values."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: value for key, value in found.items() if value not in (None, "")}


@dataclass(frozen=True)
class Threshold:
    """Hold a one-sided bound on a metric, and where it came from."""

    metric: str
    side: Side
    bound: float
    source: str
    """what the number rests on: a measurement with its margin, or a publication"""
    provisional: bool = False
    table: str = ""
    """name of its table, for messages"""
    provenance: Provenance = Provenance()
    fallback: str = ""
    """why a general entry applies although other hardware has an entry of its own; '' otherwise"""

    @property
    def origin(self) -> str:
        """Return what the number rests on, with the measurement where that is known."""
        return " ".join("; ".join(filter(None, (self.source, str(self.provenance)))).split())

    @property
    def limit(self) -> str:
        """Return the bound as a reader writes it: ``≤ 0.43``."""
        return f"{'≤' if self.side == 'max' else '≥'} {self.bound:g}"

    def __str__(self) -> str:
        mark = "provisional; " if self.provisional else ""
        general = f", general: {self.fallback};" if self.fallback else ":"
        return f"{self.limit} ([{self.table}]{general} {mark}{self.origin})"


@dataclass(frozen=True)
class Thresholds:
    """Hold all thresholds of a file, by table and metric."""

    tables: Mapping[TablePath, Mapping[str, Threshold]]
    """table path -> metric -> threshold"""

    def find(
        self, model: str, quantization: str, metric: str, layer: int | None = None, hardware: str = ""
    ) -> Threshold | None:
        """Return the most special threshold for this metric of this cell, or None.

        The model's tables come before the defaults; within each, the tables for this hardware come before
        the general ones, and within these the layer's table comes first. A general entry that applies
        although other hardware has an entry of its own states that in its ``fallback``.

        Args:
            hardware: name of the GPU or CPU, '' where it is not known.
        """
        elsewhere = False
        for owner in ((model, quantization), (DEFAULTS_TABLE, quantization)):
            special = _layered((*owner, HARDWARE_TABLE, hardware), layer) if hardware else []
            if found := self._first(special, metric):
                return found
            elsewhere = elsewhere or any(
                metric in self.tables[path] for path in self._of_any_hardware(owner, layer)
            )
            if found := self._first(_layered(owner, layer), metric):
                lacking = f"no entry for {hardware}" if hardware and elsewhere else ""
                return replace(found, fallback=lacking) if lacking else found
        return None

    def _first(self, paths: list[TablePath], metric: str) -> Threshold | None:
        return next(
            (self.tables[path][metric] for path in paths if metric in self.tables.get(path, {})), None
        )

    def _of_any_hardware(self, owner: TablePath, layer: int | None) -> Iterator[TablePath]:
        for path in self.tables:
            if path[:3] == (*owner, HARDWARE_TABLE) and path in _layered(path[:4], layer):
                yield path

    def metrics_for(
        self, model: str, quantization: str, layer: int | None, hardware: str = ""
    ) -> frozenset[str]:
        """Return the metrics of the right scope that have a threshold for this cell."""
        scope = "cell" if layer is None else "layer"
        return frozenset(
            key for key, metric in METRICS.items()
            if metric.scope == scope and self.find(model, quantization, key, layer, hardware)
        )  # fmt: skip

    def metrics_on_any_hardware(self, model: str, quantization: str, layer: int | None) -> frozenset[str]:
        """Return the metrics of the right scope that have a threshold for this cell on some hardware."""
        scope = "cell" if layer is None else "layer"
        paths = [
            path
            for owner in ((model, quantization), (DEFAULTS_TABLE, quantization))
            for path in (*_layered(owner, layer), *self._of_any_hardware(owner, layer))
        ]
        found = {metric for path in paths for metric in self.tables.get(path, ())}
        return frozenset(metric for metric in found if METRICS[metric].scope == scope)


def _layered(path: TablePath, layer: int | None) -> list[TablePath]:
    """Return a table and, before it, the layer's table within it."""
    return [path] if layer is None else [(*path, f"layer{layer}"), path]


def load_thresholds(
    path: Path, models: Collection[str] | None = None, quantizations: Collection[str] | None = None
) -> Thresholds:
    """Read and check a thresholds file.

    Args:
        path: the file.
        models: names of known models; tables of others are refused. None accepts any.
        quantizations: names of known quantizations, likewise.

    Raises:
        QsaeError: the file can't be read, or has an unknown model, quantization, metric or key, or a value
            of a wrong type. One line that names the file, the table and the key.
    """
    return parse_thresholds(read_toml(path), str(path), models, quantizations)


def parse_thresholds(
    document: Mapping[str, Any],
    where: str,
    models: Collection[str] | None = None,
    quantizations: Collection[str] | None = None,
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
        if models is not None and model != DEFAULTS_TABLE and model not in models:
            hint = did_you_mean(model, [*models, DEFAULTS_TABLE])
            raise QsaeError(f"{where}: [{quoted_key(model)}]: unknown model{hint}")
        for quantization, entries in _table(by_quantization, where, model).items():
            path = (model, quantization)
            if quantizations is not None and quantization not in quantizations:
                raise QsaeError(
                    f"{where}: [{table_name(path)}]: unknown quantization"
                    f"{did_you_mean(quantization, quantizations)}"
                )
            _read_entries(_table(entries, where, *path), path, where, tables)
    return Thresholds(tables)


def _read_entries(
    entries: Mapping[str, Any], path: TablePath, where: str, tables: dict[TablePath, dict[str, Threshold]]
) -> None:
    for key, value in entries.items():
        if LAYER_TABLE.fullmatch(key) and len(path) in (2, 4):
            _read_entries(_table(value, where, *path, key), (*path, key), where, tables)
        elif key == HARDWARE_TABLE and len(path) == 2:
            for name, own in _table(value, where, *path, key).items():
                if not name.strip():
                    raise QsaeError(
                        f"{where}: [{table_name((*path, key))}]: a hardware's name can't be empty"
                    )
                _read_entries(_table(own, where, *path, key, name), (*path, key, name), where, tables)
        else:
            tables.setdefault(path, {})[key] = _read_entry(key, value, path, where)


def table_name(path: TablePath) -> str:
    """Return the table's name as it is written in the file."""
    return ".".join(_key(name) for name in path)


def _key(name: str) -> str:
    if quoted_key(name) == name or not name.isprintable():
        return quoted_key(name)
    return json.dumps(name, ensure_ascii=False)


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
    if not isinstance(value, dict):
        raise QsaeError(f'{at}: expected {{ max = …, source = "…" }} or {{ min = …, source = "…" }}')
    try:
        entry = _Entry.model_validate(value)
    except ValidationError as error:
        raise QsaeError(what_is_wrong(error, at, ENTRY_KEYS)) from None
    if (entry.max is None) == (entry.min is None):
        raise QsaeError(f"{at}: exactly one of max and min is needed")
    if not entry.source.strip():
        raise QsaeError(f"{at}: source is needed: what the number rests on")
    provenance = Provenance(**{field.name: getattr(entry, field.name) for field in fields(Provenance)})
    side: Side = "min" if entry.max is None else "max"
    bound = entry.min if entry.max is None else entry.max
    assert bound is not None
    return Threshold(key, side, bound, entry.source, entry.provisional, table, provenance)


def toml_entry(threshold: Threshold) -> dict[str, Any]:
    """Return the keys and values of a threshold's entry, without those that are not known."""
    entry: dict[str, Any] = {threshold.side: threshold.bound, "source": threshold.source}
    if threshold.provisional:
        entry["provisional"] = True
    return entry | threshold.provenance.known_values()
