"""Is the quantized model worse than in the last run that was accepted, on the same tokens?"""

from __future__ import annotations


def test_worse_than_accepted(check_accepted):
    check_accepted()
