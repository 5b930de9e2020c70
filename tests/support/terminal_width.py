"""Columns that text takes on a terminal."""

from __future__ import annotations

import unicodedata


def shown(text: str) -> int:
    """Columns that a terminal takes for it."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
