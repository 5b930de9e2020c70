"""Which SAE features still fire where they did in the original?"""

from __future__ import annotations


def test_features(measured, gate, layer):
    assert layer in measured.measurement.features
    gate("feature_survival", layer=layer)
