"""The stability curve: on prefixes of the rows, and what counts as still moving."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from builders import measurement, synthetic
from qsae_bench.metrics.measurement import Rows
from qsae_bench.stats.bootstrap import Estimate, Estimates
from qsae_bench.stats.stability import stability, still_moving


def shifted(amount):
    """Rows whose second half lost ``amount`` nats a token more than the first."""
    one = measurement(synthetic(n=64))
    scalars = dict(one.rows.scalars)
    extra = np.where(np.arange(64) < 32, 0.0, amount) * scalars["tokens"]
    rng = np.random.default_rng(1)
    scalars["nll_q"] = scalars["nll_r"] + extra + rng.normal(scale=0.01, size=64)
    return dataclasses.replace(one, rows=Rows(scalars, one.rows.vectors))


def test_stability_is_the_same_metric_on_the_first_rows():
    one = shifted(0.5)
    history = stability(one, replicates=50)
    tokens = one.rows.scalars["tokens"]
    assert list(history) == [int(tokens[:n].sum()) for n in (8, 16, 32, 64)]
    for n, estimates in zip((8, 16, 32, 64), history.values(), strict=True):
        delta = one.rows.scalars["nll_q"][:n].sum() - one.rows.scalars["nll_r"][:n].sum()
        expected = 100 * math.expm1(delta / tokens[:n].sum())
        assert estimates.cell["perplexity_increase_pct"].value == pytest.approx(expected)


def test_a_headline_that_jumped_is_still_moving():
    half = Estimates(
        {"perplexity_increase_pct": Estimate(0.0, -0.1, 0.1)}, {3: {"fvu": Estimate(0.2, 0.1, 0.3)}}
    )
    jumped = Estimates(
        {"perplexity_increase_pct": Estimate(1.0, 0.9, 1.1)}, {3: {"fvu": Estimate(0.9, 0.8, 1.0)}}
    )
    assert still_moving({100: half, 200: jumped}) == ["perplexity_increase_pct", "fvu (layer 3)"]
    assert still_moving({100: half, 200: half}) == []
    assert still_moving({100: half}) == []


def test_flat_rows_have_settled():
    assert "perplexity_increase_pct" not in still_moving(stability(shifted(0.0), replicates=100))
