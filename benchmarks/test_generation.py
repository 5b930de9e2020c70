"""Does it write one token at a time as it reads a whole text, and go on as the original does?"""

from __future__ import annotations

import pytest


@pytest.mark.gates("decode_kl_divergence", also=("generation",))
def test_generation(measured, gate):
    gate()
    assert measured.estimates.cell["decode_kl_divergence"].value >= 0
