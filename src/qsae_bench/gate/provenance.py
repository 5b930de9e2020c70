"""The measurement behind a threshold: what thresholds.toml keeps of it, and its strict reading."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from qsae_bench.errors import QsaeError


@dataclass(frozen=True)
class Provenance:
    """The measurement that a bound rests on, as ``qsae-bench thresholds update`` writes it."""

    measured: float | None = None
    low: float | None = None
    high: float | None = None
    """of its 95% interval"""
    tokens: int | None = None
    hardware: str = ""
    versions: str = ""
    date: datetime.date | None = None
    run: str = ""
    """run id"""
    reason: str = ""
    """why the bound was loosened, if it was"""

    def __str__(self) -> str:
        """``measured 0.144 [0.0834, 0.211] on 32512 tokens, AMD EPYC, 2026-11-24``, as far as known."""
        parts = []
        if self.measured is not None:
            interval = "" if None in (self.low, self.high) else f" [{self.low:.3g}, {self.high:.3g}]"
            tokens = "" if self.tokens is None else f" on {self.tokens} tokens"
            parts.append(f"measured {self.measured:.4g}{interval}{tokens}")
            parts += filter(None, (self.hardware, str(self.date or "")))
        if self.reason:
            parts.append(f"loosened: {self.reason}")
        return ", ".join(parts)


UNKNOWN = Provenance()
NUMBERS = ("measured", "low", "high")
TEXTS = ("hardware", "versions", "run", "reason")
PROVENANCE_KEYS = tuple(field.name for field in fields(Provenance))


def known(provenance: Provenance) -> dict[str, Any]:
    """The keys that have a value."""
    found = {key: getattr(provenance, key) for key in PROVENANCE_KEYS}
    return {key: value for key, value in found.items() if value not in (None, "")}


def finite(value: Any, key: str, at: str) -> float:
    """The number, or one line that names the entry (``at``) and the key."""
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:  # NaN fails this too
        raise QsaeError(f"{at}: {key} must be a finite number")
    return float(value)


def provenance_of(value: Mapping[str, Any], at: str) -> Provenance:
    """The provenance in an entry's table.

    Raises:
        QsaeError: a key of it has the wrong type.
    """
    found: dict[str, Any] = {key: finite(value[key], key, at) for key in NUMBERS if key in value}
    for key in TEXTS:
        if key in value:
            if not isinstance(value[key], str) or not value[key].strip():
                raise QsaeError(f"{at}: {key} must be text")
            found[key] = value[key]
    if "tokens" in value:
        if type(value["tokens"]) is not int or not 1 <= value["tokens"] <= sys.maxsize:
            raise QsaeError(f"{at}: tokens must be a whole number, at least 1")
        found["tokens"] = value["tokens"]
    if "date" in value:
        if type(value["date"]) is not datetime.date:  # a datetime is one too, and more than a day
            raise QsaeError(f"{at}: date must be a TOML date, without quotes: date = 2026-11-24")
        found["date"] = value["date"]
    return Provenance(**found) if found else UNKNOWN
