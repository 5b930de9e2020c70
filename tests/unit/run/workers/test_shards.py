"""What becomes of the values of a cell's shards."""

from __future__ import annotations

from qsae_bench.run.workers.shards import merge_notes
from qsae_bench.run.workers.tasks import Notes, TaskResult


def test_each_cost_is_merged_as_its_metric_declares():
    shards = [
        {"load_seconds": 1.0, "peak_memory_bytes": 10.0, "evaluation_tokens_per_second": 4.0},
        {"load_seconds": 2.0, "peak_memory_bytes": 30.0, "evaluation_tokens_per_second": 8.0},
        {"load_seconds": 3.0, "peak_memory_bytes": 20.0, "prefill_tokens_per_second": 7.0},
    ]
    assert merge_notes([TaskResult(notes=Notes(costs)) for costs in shards]).costs == {
        "load_seconds": 1.0, "peak_memory_bytes": 30.0, "evaluation_tokens_per_second": 6.0,
        "prefill_tokens_per_second": 7.0,
    }  # fmt: skip
