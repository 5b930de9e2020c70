"""Declares the costs of a cell: how long it takes, how much memory, how many bits.

What one machine takes is recorded and shown, not gated: a time belongs to one machine and one run. What is
gated is a ratio of two times of the same run, see docs/timings.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from qsae_bench.metrics.base import LEAST_RELATIVE, LEAST_SHARE, NOT_NEGATIVE, Metric

_cost = partial(
    Metric, scope="cell", sides="model", limits=NOT_NEGATIVE, harmless=None, least_harm=None,
    suspicious=None, headline_in=(), interval="none", formula=None,
)  # fmt: skip
_speed = partial(_cost, unit="tokens/s", better="higher")
_speed_ratio = partial(
    Metric, unit="", scope="cell", limits=NOT_NEGATIVE, suspicious=None, headline_in=(), interval="rounds",
    formula=None,
)  # fmt: skip

METRICS = (
    _cost(key="load_seconds", unit="s", better="lower", not_own_when=("simulated", "shared")),
    _speed(key="prefill_tokens_per_second", not_own_when=("simulated", "shared")),
    _speed(key="decode_tokens_per_second", not_own_when=("simulated", "shared")),
    # no quantization touches the SAE
    _speed(key="sae_tokens_per_second", not_own_when=("shared",)),
    _speed(key="evaluation_tokens_per_second", not_own_when=("simulated", "shared")),
    _cost(key="peak_memory_bytes", unit="bytes", better="lower", not_own_when=("simulated",)),
    _cost(key="weight_bytes", unit="bytes", better="lower", not_own_when=("simulated",)),
    # a simulated quantization declares what a packed form would store
    _cost(key="bits_per_weight", unit="bits", better="lower", not_own_when=()),
    _speed_ratio(
        key="prefill_speed_ratio", sides="pair", better="higher", harmless=1.0, least_harm=LEAST_SHARE,
        not_own_when=("simulated", "shared"),
    ),
    _speed_ratio(
        key="decode_speed_ratio", sides="pair", better="higher", harmless=1.0, least_harm=LEAST_SHARE,
        not_own_when=("simulated", "shared"),
    ),
    _speed_ratio(
        key="evaluation_overhead", sides="model", better="lower", harmless=None, least_harm=LEAST_RELATIVE,
        not_own_when=("shared",),
    ),
    _speed_ratio(
        key="evaluation_forward_ratio", sides="model", better="higher", harmless=None,
        least_harm=LEAST_SHARE, not_own_when=("shared",),
    ),
)  # fmt: skip

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
