"""What does measuring cost beyond the products it can't do without, and beyond a bare forward?

The floor is one bare forward of the decoder, SAE encode and decode of both residuals, and the two
head products, over the same batches. Taken on the reference's own weights: a slower quantized
forward would only flatter the ratios.
"""

from __future__ import annotations

import pytest

from qsae_bench import overhead, speed
from qsae_bench.device_state import watch
from qsae_bench.timing import FEWEST_PAIRS

pytestmark = pytest.mark.benchmark(timer=speed.now)

METRICS = ("evaluation_overhead", "evaluation_forward_ratio")
TARGET = 1.3
NOISE = 0.4
"""two runs of the same work on a shared machine differ by this much"""


def test_overhead(session, cell, timed, speed_gate):
    if not cell.is_reference:
        pytest.skip("measured once a model, on its reference: the fastest forward, the hardest ratio")
    works, tokens = overhead.works(session, cell)
    seconds = {name: [] for name in works}
    for work in works.values():
        work()
    with watch(session.device) as seen:
        for _ in range(FEWEST_PAIRS):  # in turns, so that a busy machine slows all
            for name, work in works.items():
                started = speed.now()
                work()
                seconds[name].append(speed.now() - started)
    session.speeds.record_turns(cell, seconds, tokens, seen.flags)
    timed.pedantic(works["evaluation"], rounds=1)
    ratios = session.speeds.ratios(cell)
    timed.extra_info.update({metric: ratios[metric].value for metric in METRICS})
    speed_gate(*METRICS)
    ratio = ratios["evaluation_overhead"].value  # whatever the thresholds: it is this suite's own cost
    assert ratio < TARGET + NOISE, f"overhead {ratio:.2f}, target {TARGET}"
