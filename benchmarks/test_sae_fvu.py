"""Do the SAEs trained on the original still reconstruct the quantized model's residual stream?"""

from __future__ import annotations

import pytest


@pytest.mark.gates("fvu_drift", also=("reconstruction", "residual", "splice"))
def test_fvu(measured, gate, layer):
    gate()
    assert measured.estimates.layers[layer]["fvu"].value >= 0
