"""Declare the metrics of writing: text that is made token by token, each from those before it.

They are no sums over the corpus: :mod:`qsae_bench.measure.generation` takes them from a few prompts.
"""

from __future__ import annotations

from functools import partial

from qsae_bench.metrics.base import Least, Limits, Metric

GREEDY_TOKENS = 64
"""tokens that the reference continues each prompt by, half of a sequence if that is less"""

_of_prompts = partial(
    Metric, scope="cell", limits=Limits.NOT_NEGATIVE, suspicious=None, headline_in=(), interval="none",
    not_own_when=(), over_shards="first", formula=None,
)  # fmt: skip

METRICS = (
    _of_prompts(
        key="decode_kl_divergence", unit="nats", sides="model", better="lower", harmless=None,
        least_harm=Least.NATS,
    ),
    _of_prompts(
        key="greedy_agreement_tokens", unit="tokens", sides="pair", better="higher",
        harmless=float(GREEDY_TOKENS), least_harm=Least.COUNT,
    ),
)  # fmt: skip
