"""Cost: how long, how much memory, how many bits.

What one machine takes is kept and shown, not gated: a time is a machine's own, and a night's. What is gated
is a ratio of two times of one run, see docs/timings.md.
"""

from __future__ import annotations

from qsae_bench.metrics.base import Metric

METRICS = (
    Metric("load_seconds", "s", "cell", "lower", gateable=False),
    Metric("prefill_tokens_per_second", "tokens/s", "cell", "higher", gateable=False),
    Metric("decode_tokens_per_second", "tokens/s", "cell", "higher", gateable=False),
    Metric("sae_tokens_per_second", "tokens/s", "cell", "higher", gateable=False),
    Metric("evaluation_tokens_per_second", "tokens/s", "cell", "higher", gateable=False),
    Metric("peak_memory_bytes", "bytes", "cell", "lower", gateable=False),
    Metric("weight_bytes", "bytes", "cell", "lower", gateable=False),
    Metric("bits_per_weight", "bits", "cell", "lower", gateable=False),
    # a quantized cell's tokens a second over its reference's
    Metric("prefill_speed_ratio", "", "cell", "higher"),
    Metric("decode_speed_ratio", "", "cell", "higher"),
    # of a reference: a full evaluation's seconds over those of the products that it can't do without,
    # and its tokens a second over a bare forward's
    Metric("evaluation_overhead", "", "cell", "lower"),
    Metric("evaluation_forward_ratio", "", "cell", "higher"),
)

TIMING_GATES = frozenset(metric.key for metric in METRICS if metric.gateable)
"""judged from rounds, not from rows: more tokens don't decide them, and no pass is needed"""
