"""Hold the bounds of thresholds.toml, and find the one that applies.

Tables run from general to special, and the most special entry for a metric decides::

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
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from qsae_bench.metrics import METRICS
from qsae_bench.registry.toml import quoted_key

DEFAULTS_TABLE = "defaults"
HARDWARE_TABLE = "hardware"
LAYER_TABLE = re.compile(r"layer(0|[1-9][0-9]*)")

Side = Literal["max", "min"]
"""the end of a metric's range that the bound cuts off"""

TablePath = tuple[str, ...]
"""path of a table: ``("tiny_gemma3", "nf4", "layer3")``"""


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
    corpus: str = ""
    """name of the text; '' where it is not known, or the metric does not depend on it"""
    fingerprint: str = ""
    """of the token sequences of the first look"""
    sequence_length: int | None = None

    @property
    def text(self) -> str:
        """Return ``tiny in sequences of 128``, as far as it is known."""
        length = f" in sequences of {self.sequence_length}" if self.sequence_length else ""
        return f"{self.corpus}{length}" if self.corpus else ""

    def __str__(self) -> str:
        """Return ``measured 0.144 [0.0834, 0.211] on 32512 tokens of tiny …, AMD EPYC, …``, if known."""
        parts = []
        if self.measured is not None:
            interval = "" if None in (self.low, self.high) else f" [{self.low:.3g}, {self.high:.3g}]"
            tokens = "" if self.tokens is None else f" on {self.tokens} tokens"
            tokens += f" of {self.text}" if tokens and self.text else ""
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
    """Hold a bound on a metric, one-sided or two-sided, and where it came from."""

    metric: str
    side: Side
    """of a two-sided bound: ``max``"""
    bound: float
    source: str
    """what the number rests on: a measurement with its margin, or a publication"""
    provisional: bool = False
    """whether its entry says that it is a guess, see :attr:`is_provisional`"""
    table: str = ""
    """name of its table, for messages"""
    provenance: Provenance = Provenance()
    fallback: str = ""
    """why a general entry applies although other hardware has an entry of its own; '' otherwise"""
    lower: float | None = None
    """of a two-sided bound: its lower end, while ``bound`` is the upper one"""

    @classmethod
    def between(cls, metric: str, lower: float | None, upper: float | None, source: str) -> Threshold:
        """Return the bound with these ends, of which one may be None."""
        if upper is None:
            assert lower is not None
            return cls(metric, "min", lower, source)
        return cls(metric, "max", upper, source, lower=lower)

    @property
    def is_provisional(self) -> bool:
        """Return whether it was not measured for the cell: its entry says so, or stands under defaults."""
        return self.provisional or self.table.partition(".")[0] == DEFAULTS_TABLE

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """Return the lower and the upper end; None where it has none."""
        return (self.bound, None) if self.side == "min" else (self.lower, self.bound)

    @property
    def allowed(self) -> tuple[float, float]:
        """Return the range of values that pass; an end without a bound is infinite."""
        lower, upper = self.ends
        return (-math.inf if lower is None else lower, math.inf if upper is None else upper)

    def nearest(self, value: float) -> float:
        """Return the end that lies nearest to a value."""
        found = [end for end in self.ends if end is not None]
        return min(found, key=lambda end: abs(end - value))

    @property
    def origin(self) -> str:
        """Return what the number rests on, with the measurement where that is known."""
        return " ".join("; ".join(filter(None, (self.source, str(self.provenance)))).split())

    @property
    def limit(self) -> str:
        """Return the bound as a reader writes it: ``≤ 0.43``, ``≥ 0.9``, ``0.9 to 1.1``."""
        if self.lower is not None:
            return f"{self.lower:g} to {self.bound:g}"
        return f"{'≤' if self.side == 'max' else '≥'} {self.bound:g}"

    def __str__(self) -> str:
        mark = "provisional; " if self.is_provisional else ""
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

    def runs_behind(self, model: str, quantization: str) -> frozenset[str]:
        """Return the ids of the runs whose measurements of this cell became bounds of its own tables."""
        return frozenset(
            entry.provenance.run
            for path, entries in self.tables.items()
            if path[:2] == (model, quantization)
            for entry in entries.values()
            if entry.provenance.run
        )

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


def table_name(path: TablePath) -> str:
    """Return the table's name as it is written in the file."""
    return ".".join(_key(name) for name in path)


def _key(name: str) -> str:
    if quoted_key(name) == name or not name.isprintable():
        return quoted_key(name)
    return json.dumps(name, ensure_ascii=False)
