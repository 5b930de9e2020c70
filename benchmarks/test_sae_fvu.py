"""Do the SAEs trained on the original still reconstruct the quantized model's residual stream?"""

from __future__ import annotations


def test_fvu(measured, gate, layer):
    assert layer in measured.estimates.layers
    gate("fvu_drift", layer=layer)
