"""A run that is killed again and again is the run that nothing happened to; more kills in tests/nightly."""

from __future__ import annotations

import killing


def test_two_kills(tmp_path):
    killing.check_kills(tmp_path, 2)
