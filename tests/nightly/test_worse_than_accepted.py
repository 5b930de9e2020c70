"""Eight faults that bounds let pass are worse than accepted, and repeats of a good night are not.

``pytest tests/nightly/test_worse_than_accepted.py -s`` prints the table of docs/thresholds.md.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from accepted_nights import Nights
from faults.below_bounds import FAULTS
from qsae_bench.gate.accepted import relative_change
from qsae_bench.models.backends import block_linears
from qsae_bench.report.blocks import Table
from qsae_bench.report.markdown import lines

TOKENS = 8128
REPEATS = 40
BATCH_SIZES = (1, 2, 3, 5, 8, 13, 32, 64)
BFLOAT16 = 2.0**-9
"""relative rounding of a number, which other kernels do elsewhere"""


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """The folder after a good night from which bounds were made."""
    nights = Nights(tmp_path_factory.mktemp("nights"), TOKENS)
    session, _ = nights.measure()
    nights.update(nights.store(session))
    yield nights
    nights.close()


def in_words(change):
    where = "" if change.layer is None else f" of layer {change.layer}"
    return f"{change.metric}{where} {100 * relative_change(change):+.0f}%"


def test_faults_below_the_bounds_are_worse_than_accepted(nights):
    rows, caught = [], 0
    for fault in FAULTS:
        session, cell = nights.measure(fault)
        measured = session.measured[cell]
        found = session.against_accepted(cell)
        assert not found.not_compared
        caught += found.is_worse
        statuses = Counter(verdict.status for verdict in measured.verdicts)
        rows.append(
            {
                "fault": fault, "KLD": f"{measured.estimates.cell['kl_divergence'].value:.2e}",
                "bounds": ", ".join(f"{n} {status}" for status, n in statuses.items()),
                "worse than accepted": f"{len(found.worse)} of {found.tests}", "most": in_words(max(found.worse, key=relative_change)) if found.worse else "–",
            }
        )  # fmt: skip
    print("\n" + "\n".join(lines([Table(rows)])))
    assert caught >= 7


def rounded(generator):
    """A forward hook of other kernels: each number of the output is off by up to half of a bfloat16's rounding."""

    def hook(module, inputs, output):
        return output * (1 + BFLOAT16 * (torch.rand(output.shape, generator=generator) - 0.5))

    return hook


def test_repeats_of_a_good_night_are_not_worse(nights):
    """Nights differ in batch size and threads, and in the rounding of kernels: none of 40 is worse."""
    nights.widen()
    session, cell = nights.measure()
    nights.store(session)
    measured, threads = session.measured[cell], torch.get_num_threads()
    worse = 0

    def compared(measurement):
        measured.measurement = measurement
        session.against_accepted.forget(cell)
        found = session.against_accepted(cell)
        assert not found.not_compared
        return found

    try:
        for batch_size in BATCH_SIZES:
            for number in (1, 2):
                torch.set_num_threads(number)
                worse += compared(session._pass(cell, True, batch_size=batch_size)).is_worse
    finally:
        torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    for linear in block_linears(session.load(cell).model):
        linear.register_forward_hook(rounded(generator))
    assert not compared(session._pass(cell, True)).is_worse
    run = nights.store(session)
    moved = 0
    for _ in range(REPEATS - 2 * len(BATCH_SIZES)):
        found = compared(session._pass(cell, True))
        assert found.run == run.name
        worse += found.is_worse
        moved += found.tests > 0
    print(f"{worse} of {REPEATS} repeats are worse than accepted; {moved} of them had other rows")
    assert moved == REPEATS - 2 * len(BATCH_SIZES)
    assert worse == 0
