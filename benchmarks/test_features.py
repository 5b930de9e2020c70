"""Which SAE features still fire where they did in the original?"""

from __future__ import annotations


def test_features(measured, gate, layer):
    gate("feature_survival", layer=layer, also=("features",))
    assert measured.estimates.layers[layer]["features_eligible"].value > 0
