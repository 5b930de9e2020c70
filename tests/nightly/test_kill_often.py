"""A run that is killed at twenty random moments is the run that nothing happened to."""

from __future__ import annotations

import killing


def test_twenty_kills(tmp_path):
    killing.check_kills(tmp_path, 20)
