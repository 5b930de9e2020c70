"""What does the cell cost: loading, prefill, decode, the SAE, and the whole evaluation?

Speeds are gated as ratios to the reference's of the same run, where thresholds.toml bounds them.
"""

from __future__ import annotations

import pytest


@pytest.mark.loads_cell
@pytest.mark.times("load")
def test_load(session, cell, timed):
    timed()
    assert session.costs(cell)["load_seconds"] > 0


@pytest.mark.measures_cell
@pytest.mark.times("evaluation")
def test_evaluation(session, cell, timed):
    timed()
    measured = session.measure(cell)
    assert measured.tokens > 0
    measured.check_valid()


@pytest.mark.times("prefill")
@pytest.mark.gates("prefill_speed_ratio")
def test_prefill(session, cell, timed, speed_gate):
    timed()
    speed_gate()
    assert session.costs(cell).get("prefill_tokens_per_second", 1) > 0


@pytest.mark.times("decode")
@pytest.mark.gates("decode_speed_ratio")
def test_decode(session, cell, timed, speed_gate):
    timed()
    speed_gate()
    assert session.costs(cell).get("decode_tokens_per_second", 1) > 0


@pytest.mark.times("sae")
def test_sae(session, cell, timed):
    if not cell.is_reference:
        pytest.skip("the SAE is the same for every quantization: timed once, with the reference")
    timed()
    assert session.costs(cell).get("sae_tokens_per_second", 1) > 0
