"""thresholds.toml <-> typed thresholds. Strict: an unknown key is an error, never ignored.

Tables run from general to special, and the most special entry for a metric decides::

    [defaults.nf4]                    # any model at this quantization
    [gemma3_12b.nf4]                  # this model
    [gemma3_12b.nf4.layer24]          # this layer of it
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.metrics import METRICS
from qsae_bench.registry.reading import read_toml, shown

SCHEMA = 1
DEFAULTS = "defaults"
LAYER = re.compile(r"layer(0|[1-9][0-9]*)")
ENTRY_KEYS = ("max", "min", "source", "provisional")


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

    def __str__(self) -> str:
        sign = "≤" if self.side == "max" else "≥"
        mark = "provisional; " if self.provisional else ""
        return f"{sign} {self.bound:g} ([{self.table}]: {mark}{self.source})"


@dataclass(frozen=True)
class Thresholds:
    """table path -> metric -> threshold, e.g. ``("tiny_gemma3", "nf4", "layer3")``."""

    tables: Mapping[tuple[str, ...], Mapping[str, Threshold]]

    def find(
        self, model: str, quantization: str, metric: str, layer: int | None = None
    ) -> Threshold | None:
        """The most special threshold for this metric of this cell, or None."""
        paths: list[tuple[str, ...]] = [(model, quantization), (DEFAULTS, quantization)]
        if layer is not None:
            paths = [path for p in paths for path in ((*p, f"layer{layer}"), p)]
        for path in paths:
            found = self.tables.get(path, {}).get(metric)
            if found is not None:
                return found
        return None

    def metrics_for(self, model: str, quantization: str, layer: int | None) -> frozenset[str]:
        """Metrics of the right scope that have a threshold for this cell."""
        scope = "cell" if layer is None else "layer"
        return frozenset(
            key for key, metric in METRICS.items()
            if metric.scope == scope and self.find(model, quantization, key, layer)
        )  # fmt: skip


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
    if type(document.get("schema")) is not int or document["schema"] != SCHEMA:
        raise QsaeError(
            f"{where}: schema = {SCHEMA} is needed at the top, found {document.get('schema')!r}"
        )
    tables: dict[tuple[str, ...], dict[str, Threshold]] = {}
    for model, by_quantization in document.items():
        if model == "schema":
            continue
        if models is not None and model != DEFAULTS and model not in models:
            raise QsaeError(
                f"{where}: [{shown(model)}]: unknown model{did_you_mean(model, [*models, DEFAULTS])}"
            )
        for quantization, entries in _table(by_quantization, where, model).items():
            path = (model, quantization)
            if quantizations is not None and quantization not in quantizations:
                raise QsaeError(
                    f"{where}: [{_dotted(path)}]: unknown quantization"
                    f"{did_you_mean(quantization, quantizations)}"
                )
            _read_entries(_table(entries, where, *path), path, where, tables)
    return Thresholds(tables)


def _read_entries(
    entries: Mapping[str, Any],
    path: tuple[str, ...],
    where: str,
    tables: dict[tuple[str, ...], dict[str, Threshold]],
) -> None:
    for key, value in entries.items():
        if LAYER.fullmatch(key) and len(path) == 2:
            _read_entries(_table(value, where, *path, key), (*path, key), where, tables)
        else:
            tables.setdefault(path, {})[key] = _threshold(key, value, path, where)


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(shown(name) for name in path)


def _table(value: Any, where: str, *path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise QsaeError(f"{where}: [{_dotted(path)}] must be a table")
    return value


def _threshold(key: str, value: Any, path: tuple[str, ...], where: str) -> Threshold:
    table = _dotted(path)
    at = f"{where}: [{table}] {shown(key)}"
    if key not in METRICS:
        raise QsaeError(f"{at}: unknown metric{did_you_mean(key, METRICS)}")
    if not METRICS[key].gateable:
        raise QsaeError(f"{at}: never gated: it describes, or depends on the machine (see metrics.md)")
    if len(path) == 3 and METRICS[key].scope != "layer":
        raise QsaeError(f"{at}: one value a cell, so it can't stand in a layer's table")
    if not isinstance(value, dict):
        raise QsaeError(f'{at}: expected {{ max = …, source = "…" }} or {{ min = …, source = "…" }}')
    for name in value:
        if name not in ENTRY_KEYS:
            raise QsaeError(f"{at}: unknown key {name!r}{did_you_mean(name, ENTRY_KEYS)}")
    sides = [side for side in ("max", "min") if side in value]
    if len(sides) != 1:
        raise QsaeError(f"{at}: exactly one of max and min is needed")
    bound = value[sides[0]]
    if type(bound) not in (int, float) or not abs(bound) <= sys.float_info.max:  # NaN fails this too
        raise QsaeError(f"{at}: {sides[0]} must be a finite number")
    if not isinstance(value.get("source"), str) or not value["source"].strip():
        raise QsaeError(f"{at}: source is needed: what the number rests on")
    if type(value.get("provisional", False)) is not bool:
        raise QsaeError(f"{at}: provisional must be true or false")
    side: Literal["max", "min"] = "max" if sides[0] == "max" else "min"
    return Threshold(key, side, float(bound), value["source"], value.get("provisional", False), table)


def dump_thresholds(thresholds: Thresholds) -> str:
    """TOML text that :func:`parse_thresholds` reads back as the same thresholds."""
    import tomlkit

    document = tomlkit.document()
    document["schema"] = SCHEMA
    for path, entries in thresholds.tables.items():
        table: Any = document
        for name in path:
            table = table.setdefault(name, tomlkit.table())
        for metric, threshold in entries.items():
            entry = tomlkit.inline_table()
            entry[threshold.side] = threshold.bound
            entry["source"] = threshold.source
            if threshold.provisional:
                entry["provisional"] = True
            table[metric] = entry
    return tomlkit.dumps(document)
