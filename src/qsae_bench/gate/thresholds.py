"""thresholds.toml <-> typed thresholds. Strict: an unknown key is an error, never ignored.

Tables run from general to special, and the most special entry for a metric decides::

    [defaults.nf4]                    # any model at this quantization
    [gemma3_12b.nf4]                  # this model
    [gemma3_12b.nf4.layer24]          # this layer of it

Each of them may have tables of its own for one GPU (or CPU), which decide there before it::

    [gemma3_12b.nf4.hardware."NVIDIA H200"]
    [gemma3_12b.nf4.hardware."NVIDIA H200".layer24]
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.gate.provenance import PROVENANCE_KEYS, UNKNOWN, Provenance, finite, known, provenance_of
from qsae_bench.metrics import METRICS
from qsae_bench.registry.toml import read_toml, shown

THRESHOLDS_SCHEMA = 1
DEFAULTS_TABLE = "defaults"
LAYER_TABLE = re.compile(r"layer(0|[1-9][0-9]*)")
HARDWARE_TABLE = "hardware"

TablePath = tuple[str, ...]
"""of a table: ``("tiny_gemma3", "nf4", "layer3")``"""

ENTRY_KEYS = ("max", "min", "source", "provisional", *PROVENANCE_KEYS)


@dataclass(frozen=True)
class Threshold:
    """A one-sided bound on a metric and where it came from."""

    metric: str
    side: Literal["max", "min"]
    bound: float
    source: str
    """what the number rests on: a measurement with its margin, or a publication"""
    provisional: bool = False
    table: str = ""
    """the table it stands in, for messages"""
    provenance: Provenance = UNKNOWN
    fallback: str = ""
    """why a general entry decides, where other hardware has entries of its own"""

    @property
    def origin(self) -> str:
        """What the number rests on, with the measurement where that is known."""
        return " ".join("; ".join(filter(None, (self.source, str(self.provenance)))).split())

    @property
    def limit(self) -> str:
        """``≤ 0.43``."""
        return f"{'≤' if self.side == 'max' else '≥'} {self.bound:g}"

    def __str__(self) -> str:
        mark = "provisional; " if self.provisional else ""
        general = f", general: {self.fallback};" if self.fallback else ":"
        return f"{self.limit} ([{self.table}]{general} {mark}{self.origin})"


@dataclass(frozen=True)
class Thresholds:
    """table path -> metric -> threshold, e.g. ``("tiny_gemma3", "nf4", "layer3")``."""

    tables: Mapping[TablePath, Mapping[str, Threshold]]

    def find(
        self, model: str, quantization: str, metric: str, layer: int | None = None, hardware: str = ""
    ) -> Threshold | None:
        """The most special threshold for this metric of this cell, or None.

        The model's own tables come before the defaults, in each of them those for this hardware before the
        general ones, and in each of these the layer's first. ``hardware`` is the GPU's or CPU's name, ''
        where it is not known. A general entry that decides although other hardware has one of its own says
        so in its ``fallback``.
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
        entries = (self.tables.get(path, {}).get(metric) for path in paths)
        return next((found for found in entries if found is not None), None)

    def _of_any_hardware(self, owner: TablePath, layer: int | None) -> Iterator[TablePath]:
        for path in self.tables:
            if path[:3] == (*owner, HARDWARE_TABLE) and path in _layered(path[:4], layer):
                yield path

    def metrics_for(
        self, model: str, quantization: str, layer: int | None, hardware: str = ""
    ) -> frozenset[str]:
        """Metrics of the right scope that have a threshold for this cell."""
        scope = "cell" if layer is None else "layer"
        return frozenset(
            key for key, metric in METRICS.items()
            if metric.scope == scope and self.find(model, quantization, key, layer, hardware)
        )  # fmt: skip


def _layered(path: TablePath, layer: int | None) -> list[TablePath]:
    """A table and, before it, the layer's in it."""
    return [path] if layer is None else [(*path, f"layer{layer}"), path]


def load_thresholds(
    path: Path, models: Collection[str] | None = None, quantizations: Collection[str] | None = None
) -> Thresholds:
    """Read and check a thresholds file; with the known names given, those are checked too.

    Raises:
        QsaeError: unreadable, or an unknown model, quantization, metric or key, with the table.
    """
    return parse_thresholds(read_toml(path), str(path), models, quantizations)


def parse_thresholds(
    document: Mapping[str, Any],
    where: str,
    models: Collection[str] | None = None,
    quantizations: Collection[str] | None = None,
) -> Thresholds:
    """The checked form of a parsed file; ``where`` names it in messages."""
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
            raise QsaeError(
                f"{where}: [{shown(model)}]: unknown model{did_you_mean(model, [*models, DEFAULTS_TABLE])}"
            )
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
            tables.setdefault(path, {})[key] = _threshold(key, value, path, where)


def table_name(path: TablePath) -> str:
    """The table's name as it stands in the file."""
    return ".".join(_key(name) for name in path)


def _key(name: str) -> str:
    if shown(name) == name or not name.isprintable():
        return shown(name)
    return json.dumps(name, ensure_ascii=False)


def _table(value: Any, where: str, *path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise QsaeError(f"{where}: [{table_name(path)}] must be a table")
    return value


def _threshold(key: str, value: Any, path: TablePath, where: str) -> Threshold:
    table = table_name(path)
    at = f"{where}: [{table}] {shown(key)}"
    if key not in METRICS:
        raise QsaeError(f"{at}: unknown metric{did_you_mean(key, METRICS)}")
    if not METRICS[key].gateable:
        raise QsaeError(f"{at}: never gated: it describes, or depends on the machine (see metrics.md)")
    if len(path) in (3, 5) and METRICS[key].scope != "layer":
        raise QsaeError(f"{at}: one value a cell, so it can't stand in a layer's table")
    if not isinstance(value, dict):
        raise QsaeError(f'{at}: expected {{ max = …, source = "…" }} or {{ min = …, source = "…" }}')
    for name in value:
        if name not in ENTRY_KEYS:
            raise QsaeError(f"{at}: unknown key {name!r}{did_you_mean(name, ENTRY_KEYS)}")
    sides = [side for side in ("max", "min") if side in value]
    if len(sides) != 1:
        raise QsaeError(f"{at}: exactly one of max and min is needed")
    bound = finite(value[sides[0]], sides[0], at)
    if not isinstance(value.get("source"), str) or not value["source"].strip():
        raise QsaeError(f"{at}: source is needed: what the number rests on")
    if type(value.get("provisional", False)) is not bool:
        raise QsaeError(f"{at}: provisional must be true or false")
    side: Literal["max", "min"] = "max" if sides[0] == "max" else "min"
    provisional = value.get("provisional", False)
    return Threshold(key, side, bound, value["source"], provisional, table, provenance_of(value, at))


def dump_thresholds(thresholds: Thresholds) -> str:
    """TOML text that :func:`parse_thresholds` reads back as the same thresholds."""
    import tomlkit

    document = tomlkit.document()
    document["schema"] = THRESHOLDS_SCHEMA
    for path, entries in thresholds.tables.items():
        table: Any = document
        for name in path:
            table = table.setdefault(name, tomlkit.table())
        for metric, threshold in entries.items():
            table[metric] = tomlkit.inline_table()
            table[metric].update(toml_entry(threshold))
    return tomlkit.dumps(document)


def toml_entry(threshold: Threshold) -> dict[str, Any]:
    """A threshold as the keys and values of its entry; what is not known is left out."""
    entry: dict[str, Any] = {threshold.side: threshold.bound, "source": threshold.source}
    if threshold.provisional:
        entry["provisional"] = True
    return entry | known(threshold.provenance)
