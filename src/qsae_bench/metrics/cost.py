"""Cost: how long, how much memory, how many bits. Kept and shown, not gated: a time is a machine's own."""

from __future__ import annotations

from qsae_bench.metrics.base import Metric

METRICS = (
    Metric("load_seconds", "s", "cell", "lower", gateable=False),
    Metric("prefill_tokens_per_second", "tokens/s", "cell", "higher", gateable=False),
    Metric("decode_tokens_per_second", "tokens/s", "cell", "higher", gateable=False),
    Metric("sae_tokens_per_second", "tokens/s", "cell", "higher", gateable=False),
    Metric("evaluation_tokens_per_second", "tokens/s", "cell", "higher", gateable=False),
    Metric("evaluation_overhead", "", "cell", "lower", gateable=False),
    Metric("peak_memory_bytes", "bytes", "cell", "lower", gateable=False),
    Metric("weight_bytes", "bytes", "cell", "lower", gateable=False),
    Metric("bits_per_weight", "bits", "cell", "lower", gateable=False),
)
