"""What a Vega-Lite specification draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def rows_in(spec: Any) -> Iterator[dict[str, Any]]:
    """Yield every row of inline data in a specification."""
    if isinstance(spec, dict):
        if isinstance(spec.get("values"), list):
            yield from (row for row in spec["values"] if isinstance(row, dict))
        for value in spec.values():
            yield from rows_in(value)
    elif isinstance(spec, list):
        for one in spec:
            yield from rows_in(one)
