"""Declare the costs of a cell: how long it takes, how much memory, how many bits.

What one machine takes is recorded and shown, not gated: a time belongs to one machine and one run. What is
gated is a ratio of two times of the same run, see docs/timings.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from qsae_bench.metrics.base import Least, Limits, Metric

_cost = partial(
    Metric, scope="cell", sides="model", limits=Limits.NOT_NEGATIVE, harmless=None, least_harm=None,
    suspicious=None, headline_in=("beside",), interval="none", not_own_when=("simulated", "shared"),
    over_shards="first", formula=None,
)  # fmt: skip
_speed = partial(_cost, unit="tokens/s", better="higher")
_size = partial(_cost, better="lower", not_own_when=("simulated",))
_speed_ratio = partial(
    _cost,
    unit="",
    sides="pair",
    better="higher",
    harmless=1.0,
    least_harm=Least.SHARE,
    interval="rounds",
    headline_in=(),
)
_overhead = partial(_speed_ratio, sides="model", harmless=None, not_own_when=("shared",))

METRICS = (
    _cost(key="load_seconds", unit="s", better="lower"),
    _speed(key="prefill_tokens_per_second", headline_in=("beside", "pareto")),
    _speed(key="decode_tokens_per_second"),
    # no quantization touches the SAE
    _speed(key="sae_tokens_per_second", not_own_when=("shared",), headline_in=()),
    _speed(key="evaluation_tokens_per_second", headline_in=("beside", "pareto"), over_shards="mean"),
    _size(key="peak_memory_bytes", unit="bytes", over_shards="highest"),
    _size(key="weight_bytes", unit="bytes"),
    # a simulated quantization declares what a packed form would store
    _size(key="bits_per_weight", unit="bits", not_own_when=(), headline_in=("beside", "pareto")),
    _speed_ratio(key="prefill_speed_ratio"),
    _speed_ratio(key="decode_speed_ratio"),
    _overhead(key="evaluation_overhead", better="lower", least_harm=Least.RELATIVE),
    _overhead(key="evaluation_forward_ratio"),
)

RATES: Mapping[str, str] = {
    "prefill": "prefill_tokens_per_second",
    "decode": "decode_tokens_per_second",
    "sae": "sae_tokens_per_second",
}
"""timed work -> the metric that its median round gives"""
RATIOS: Mapping[str, str] = {"prefill_speed_ratio": "prefill", "decode_speed_ratio": "decode"}
"""metric of a quantized cell -> the work whose tokens a second it divides by the reference's"""
TURNS: Mapping[str, tuple[str, str]] = {
    "evaluation_overhead": ("evaluation", "evaluation_floor"),
    "evaluation_forward_ratio": ("forward", "evaluation"),
}
"""metric of a reference -> the two works, timed in turns, whose seconds it divides: those of a full
evaluation by those of the products that it can't do without; those of a bare forward by those of an
evaluation of the same tokens, which is evaluation tokens a second over forward tokens a second"""
