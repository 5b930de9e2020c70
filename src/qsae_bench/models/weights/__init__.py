"""Measure a loaded model's weights: :mod:`.storage` counts their bits, :mod:`.inspection` what changed."""
