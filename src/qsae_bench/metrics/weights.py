"""Declare the metrics of the decoder's weights: are they quantized, how far did they move, are scales
right?

They are no sums over positions: :mod:`qsae_bench.models.weights` takes them once from the loaded model.
"""

from __future__ import annotations

from functools import partial

from qsae_bench.metrics.base import Least, Limits, Metric, Tolerance

_of_weights = partial(
    Metric, unit="fraction", scope="cell", sides="pair", suspicious=None, headline_in=("beside",),
    interval="none", not_own_when=(), over_shards="first", formula=None,
)  # fmt: skip

METRICS = (
    _of_weights(
        key="quantized_share", better="higher", limits=Limits.FRACTION, harmless=1.0, least_harm=Least.SHARE
    ),
    _of_weights(
        key="weight_nsr", better="lower", limits=Limits.NOT_NEGATIVE, harmless=0.0,
        least_harm=Least.RELATIVE,
    ),
    _of_weights(
        key="weight_gain_error", better="lower", limits=Limits.NOT_NEGATIVE, harmless=0.0,
        least_harm=Tolerance(0.005),  # half of what a scale that is 1% off shows
    ),
)  # fmt: skip
