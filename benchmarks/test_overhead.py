"""What does measuring cost beyond the products it can't do without?

The floor is one bare forward of the decoder, SAE encode and decode of both residuals, and the two
head products, over the same batches. Taken on the reference's own weights: a slower quantized
forward would only flatter the ratio.
"""

from __future__ import annotations

import statistics
import time

import pytest

ROUNDS = 5
TARGET = 1.3
NOISE = 0.4
"""two runs of the same work on a shared machine differ by this much"""


def test_overhead(session, cell, timed):
    if not cell.is_reference:
        pytest.skip("measured once a model, on its reference: the fastest forward, the hardest ratio")
    full, floor = session.evaluation_and_floor(cell)
    seconds = {full: [], floor: []}
    full()
    floor()
    for _ in range(ROUNDS):  # in turns, so that a busy machine slows both
        for work in (full, floor):
            started = time.perf_counter()
            work()
            seconds[work].append(time.perf_counter() - started)
    timed.pedantic(full, rounds=1)
    ratio = statistics.median(seconds[full]) / statistics.median(seconds[floor])
    timed.extra_info["evaluation_overhead"] = ratio
    session.record(cell, "evaluation_overhead", ratio)
    assert ratio < TARGET + NOISE, f"overhead {ratio:.2f}, target {TARGET}"
