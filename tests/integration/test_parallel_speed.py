"""Two workers are both at work: what a run with two records of its own time. The full comparison is nightly."""

from __future__ import annotations

from datetime import datetime

import pytest

import killing
from qsae_bench.results.document import read_run

pytestmark = pytest.mark.alone

BUSY = 0.55
"""share of the two workers' time; one after the other they would have at most half of it. The reference alone
keeps one of them from more"""


def test_two_workers_are_busy_at_once(tmp_path):
    _, output = killing.run(
        tmp_path / "qsae", "--quantizations", "reference,nf4,fp4,rtn_int4,rtn_int3", "-k", "evaluation",
        "--tokens", "4064", "--max-tokens", "4064", "--workers", "2",
    )  # fmt: skip
    run = read_run(tmp_path / "qsae" / "latest")
    assert [cell.status for cell in run.cells] == ["measured"] * 5, output
    began, ended = (datetime.fromisoformat(text) for text in (run.started, run.finished))
    wall = (ended - began).total_seconds() - run.environment["worker_start_seconds"]
    share = sum(cell.busy_seconds for cell in run.cells) / (2 * wall)
    print(f"\nof the two workers' time the cells took {share:.0%}")
    assert share > BUSY
