"""Measures a loaded model's weights: what they take, how many are quantized, and how far they moved.

:mod:`~qsae_bench.models.weights.storage` counts stored bits, :mod:`~qsae_bench.models.weights.probe`
applies each layer to fixed vectors, and :mod:`~qsae_bench.models.weights.inspection` decides from both what
was quantized.
"""
