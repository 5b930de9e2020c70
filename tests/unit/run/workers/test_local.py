"""The machine split between local workers. What needs a process is in tests/integration/test_local_workers.py."""

from __future__ import annotations

import pytest

from qsae_bench.run.workers.local import split_machine


@pytest.mark.parametrize(
    ("workers", "gpus", "cores", "expected"),
    [
        (1, "", 8, [((), 8, True)]),
        (3, "", 8, [((), 2, False)] * 3),
        (4, "", 2, [((), 1, False)] * 4),
        (2, "0123", 16, [(("0", "1"), 8, True), (("2", "3"), 8, True)]),
        (3, "01", 6, [(("0",), 2, False), (("1",), 2, True), (("0",), 2, False)]),
        (3, "01234567", 6, [(("0", "1"), 2, True), (("2", "3"), 2, True), (("4", "5"), 2, True)]),
    ],
)
def test_the_machine_is_split_between_workers(workers, gpus, cores, expected, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [
        (one.gpus, one.threads, one.alone) for one in split_machine(workers, tuple(gpus), cores)
    ] == expected


def test_no_worker_takes_more_threads_than_were_asked_for(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert {one.threads for one in split_machine(2, (), 16)} == {3}
