"""Cost: how long, how much memory, how many bits."""

from __future__ import annotations

from qsae_bench.metrics.base import Metric

METRICS = (
    Metric("load_seconds", "s", "cell", "lower"),
    Metric("prefill_tokens_per_second", "tokens/s", "cell", "higher"),
    Metric("decode_tokens_per_second", "tokens/s", "cell", "higher"),
    Metric("sae_tokens_per_second", "tokens/s", "cell", "higher"),
    Metric("evaluation_tokens_per_second", "tokens/s", "cell", "higher"),
    Metric("evaluation_overhead", "", "cell", "lower"),
    Metric("peak_memory_bytes", "bytes", "cell", "lower"),
    Metric("weight_bytes", "bytes", "cell", "lower"),
    Metric("bits_per_weight", "bits", "cell", "lower"),
)
