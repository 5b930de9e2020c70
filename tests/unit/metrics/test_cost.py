"""Which timed works give which cost."""

from __future__ import annotations

from qsae_bench.metrics import METRICS
from qsae_bench.metrics.cost import RATES, RATIOS, TURNS


def test_every_gate_of_timings_has_its_works():
    judged = {key for key, metric in METRICS.items() if metric.interval == "rounds"}
    assert set(RATIOS) | set(TURNS) == judged and not set(RATIOS) & set(TURNS)
    assert set(RATIOS.values()) <= set(RATES)


def test_a_rate_is_never_gated():
    """Absolute times belong to one machine and one run."""
    assert not any(METRICS[key].gateable for key in RATES.values())
    assert {METRICS[key].unit for key in RATES.values()} == {"tokens/s"}


def test_a_ratio_of_the_cell_describes_the_pair_and_one_of_the_reference_a_model():
    assert {METRICS[key].sides for key in RATIOS} == {"pair"}
    assert {METRICS[key].sides for key in TURNS} == {"model"}
