"""A night with a fault that its bounds let pass is worse than the accepted night; the same night again is not."""

from __future__ import annotations

import pytest

from accepted_nights import Nights
from qsae_bench.results.document import read_run

TOKENS = 4064


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """The folder after a good night."""
    nights = Nights(tmp_path_factory.mktemp("nights"), TOKENS)
    nights.widen()
    session, cell = nights.measure()
    assert session.against_accepted(cell).not_compared.startswith("no accepted run of tiny_gemma3-nf4 on ")
    assert {verdict.status for verdict in session.measured[cell].verdicts} == {"pass"}
    nights.good = nights.store(session)
    yield nights
    nights.close()


def test_the_same_night_again_is_not_tested(nights):
    session, cell = nights.measure()
    found = session.against_accepted(cell)
    assert (found.run, found.tests, found.is_worse) == (nights.good.name, 0, False)
    assert found.tokens == TOKENS and not nights.said


def test_a_fault_below_the_bounds_is_worse(nights):
    session, cell = nights.measure("BOS embedding with noise of 100%")
    assert {verdict.status for verdict in session.measured[cell].verdicts} == {"pass"}
    found = session.against_accepted(cell)
    assert found.run == nights.good.name and found.tokens == TOKENS
    assert {"kl_divergence", "perturbation_nsr"} <= {change.metric for change in found.worse}
    assert found.moved.startswith("the setup: the quantization's entry or code ")
    assert "the reference (cross_entropy" in found.moved and "did not" in found.moved
    (said,) = nights.said
    assert said.startswith("tiny_gemma3-nf4: worse than accepted: ")
    stored = read_run(nights.store(session))
    (record,) = (one.accepted for one in stored.cells if one.quantization == "nf4")
    assert [one.metric for one in record.worse] == [change.metric for change in found.worse]
    assert record.said in said and record.moved == found.moved and not record.fails
