"""The report of ten models by twelve quantizations by four layers ends in reasonable time."""

from __future__ import annotations

import time

import pytest

from documents import GONE, VERDICTS, run_document
from qsae_bench.results.run_files import write_run
from running import typed

LIMIT_BYTES = 8_000_000
LIMIT_SECONDS = 40
"""on a quiet machine; eighty figures are drawn one after another, in 15 s on the machine this was written on"""
NOMINAL_SECONDS = 0.4
"""that the work of ``slowness`` takes on that machine when it is quiet"""


def slowness():
    """How many times slower this machine is now, at least 1: shared ones lose a factor of three."""

    def work():
        started = time.perf_counter()
        sum(i * i % 7 for i in range(5_000_000))
        return time.perf_counter() - started

    return max(1.0, min(work() for _ in range(3)) / NOMINAL_SECONDS)


@pytest.mark.alone
def test_ten_models_by_twelve_quantizations_by_four_layers(tmp_path):
    every = [*VERDICTS, *GONE]
    models, quantizations = [f"model_{i}" for i in range(10)], [f"quant_{i}" for i in range(12)]
    statuses = {
        (f"model_{i}", f"quant_{j}"): every[(i + j) % len(every)]
        for i in range(10)
        for j in range(0, 12, 5)
    }
    folder = write_run(tmp_path / "q", run_document(models, quantizations, (9, 17, 22, 29), statuses), {})
    limit = LIMIT_SECONDS * slowness()
    started = time.perf_counter()
    status, out, err = typed(
        "report", folder, "-o", tmp_path / "r.html", "--qsae-dir", tmp_path / "q", "--history", "none"
    )
    taken = time.perf_counter() - started
    print(f"{taken:.1f} s of {limit:.1f}: {out}")
    assert (status, err) == (0, "")
    assert taken < limit
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert len(text.encode()) < LIMIT_BYTES
    assert text.count("<figure") == text.count("<svg ") == 80
