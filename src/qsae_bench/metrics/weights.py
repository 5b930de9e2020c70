"""The decoder's weights themselves: were they quantized, how far did they move, are their scales right?

Not sums over positions: taken once from the loaded model, see :mod:`qsae_bench.models.weights`.
"""

from __future__ import annotations

from qsae_bench.metrics.base import Metric

METRICS = (
    Metric("quantized_share", "fraction", "cell", "higher"),
    Metric("weight_nsr", "fraction", "cell", "lower"),
    Metric("weight_gain_error", "fraction", "cell", "lower"),
)
