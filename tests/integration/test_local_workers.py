"""Cells measured by worker processes: the same numbers as in one. Kills and interrupts are nightly."""

from __future__ import annotations

import killing
from qsae_bench.registry.specs import Shard
from worker_runs import BENCHMARKS, SEQUENCES, TOKENS, check_run


def test_shards_on_two_workers_measure_what_one_process_measures(tmp_path):
    few = ("--quantizations", "reference,nf4", *TOKENS, *BENCHMARKS)
    expected = tmp_path / "one", killing.run(tmp_path / "one", *few)[0]
    status, output = killing.run(tmp_path / "qsae", *few, "--workers", "2", "--shards", "3")
    check_run(expected, tmp_path / "qsae", status, output, "local, 2 workers, threads each: 1")
    corpus = killing.latest(tmp_path / "qsae")["corpus"]["tiny_gemma3"]
    assert corpus["sequences"] == SEQUENCES
    shards = [len(Shard(k, 3).of_batches(SEQUENCES, corpus["batch_size"])) for k in range(3)]
    assert shards == [16, 16, 16], "each of three has something to do"
