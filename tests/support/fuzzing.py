"""What the fuzzers of documents and TOML files share."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

LEAVES = (
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.dates() | st.datetimes() | st.times()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
)  # fmt: skip
"""leaves of a TOML tree"""


def places(found: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a JSON tree."""
    inside = (
        found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    )
    return [path, *(place for key, value in inside for place in places(value, (*path, key)))]
