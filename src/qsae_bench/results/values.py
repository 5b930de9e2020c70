"""What a run document says of a cell, whatever else is in its file."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

from qsae_bench.errors import plain
from qsae_bench.results.document import CellRecord, RunDocument, ScopedValues, Value
from qsae_bench.stats.bootstrap import Estimate

LAYER_KEY = re.compile(r"0|[1-9][0-9]{0,4}")


def cell_id(cell: CellRecord) -> str:
    return plain(f"{cell.model}-{cell.quantization}")


def layers_of(cell: CellRecord) -> list[int]:
    """The layers it has metrics of."""
    return [int(key) for key in cell.layers if LAYER_KEY.fullmatch(key)]


def tokens_of(run: RunDocument, cell: CellRecord) -> int:
    """On which it was measured, 0 where that is not known."""
    corpus = run.corpus.get(cell.model)
    tokens = cell.tokens or (corpus.tokens if corpus else 0)
    return tokens if 0 < tokens <= sys.maxsize else 0


def metrics_at(record: CellRecord | ScopedValues | None, layer: int | None) -> Mapping[str, Value]:
    """The metrics of a cell or of one of its layers; none where there is no such record."""
    if record is None:
        return {}
    if layer is None:
        return record.metrics
    found = record.layers.get(str(layer))
    return found.metrics if found else {}


def estimate_of(value: Value | None) -> Estimate | None:
    """None where the value is not known or not finite."""
    if value is None or value.value is None:
        return None
    return Estimate(value.value, value.low, value.high)
