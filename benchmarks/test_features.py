"""Which SAE features still fire where they did in the original?"""

from __future__ import annotations

import pytest


@pytest.mark.gates("feature_survival", also=("features",))
def test_features(measured, gate, layer):
    gate()
    assert measured.estimates.layers[layer]["features_eligible"].value > 0
