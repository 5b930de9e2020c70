"""Does the quantized model still predict text as the original does?"""

from __future__ import annotations


def test_perplexity(measured, gate):
    gate("perplexity_increase_pct", also=("loss", "weights"))
    assert measured.estimates.cell["nonfinite_share"].value == 0
