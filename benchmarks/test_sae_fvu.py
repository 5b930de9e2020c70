"""Do the SAEs trained on the original still reconstruct the quantized model's residual stream?"""

from __future__ import annotations


def test_fvu(measured, gate, layer):
    gate("fvu_drift", layer=layer, also=("reconstruction", "residual", "splice"))
    assert measured.estimates.layers[layer]["fvu"].value >= 0
