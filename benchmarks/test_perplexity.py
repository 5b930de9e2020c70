"""Does the quantized model still predict text as the original does?"""

from __future__ import annotations

import pytest


@pytest.mark.gates("perplexity_increase_pct", also=("loss", "weights"))
def test_perplexity(measured, gate):
    gate()
    assert measured.estimates.cell["nonfinite_share"].value == 0
