"""The gap rule, against a brute-force search and against norms as a real Gemma 3 and SmolLM2 have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsae_bench.metrics.sinks import LARGEST_SHARE, LEAST_GAP, Positions, SinkRule, find_sinks, lowest_gap

QUICK = settings(max_examples=100, deadline=None)


def brute_force(norms: list[float]) -> tuple[float, float] | None:
    """Every cut between two neighbours, from below, by the definition alone."""
    known = sorted(norms)
    for above in range(1, len(known)):
        of_sinks = len(known) - above
        if of_sinks <= int(LARGEST_SHARE * len(known)) and known[above] >= LEAST_GAP * known[above - 1]:
            return known[above - 1], known[above]
    return None


@QUICK
@given(st.lists(st.sampled_from([1.0, 1.3, 1.9, 2.6, 4.0, 9.0, 40.0]), min_size=1, max_size=60))
def test_the_lowest_gap_is_that_of_a_brute_force_search(norms):
    found = lowest_gap(np.array(norms))
    expected = brute_force(norms)
    assert (None if found is None else (found.below, found.above)) == expected


def test_nothing_and_zeros_and_broken_norms_have_no_gap():
    for norms in ([], [1.0], [0.0] * 30, [0.0] * 20 + [1.0], [np.nan] * 20, [1.0] * 20 + [np.inf, np.nan]):
        assert find_sinks({0: np.array(norms)}) is None


def test_the_multiple_lies_in_the_middle_of_the_gap():
    norms = np.concatenate([np.linspace(90, 110, 199), [900.0, 1600.0]])
    rule = find_sinks({4: norms})
    assert rule.layer == 4
    assert rule.norm == pytest.approx(np.sqrt(110 * 900))
    assert rule.multiple == pytest.approx(rule.norm / np.median(norms))


def test_long_residuals_of_a_large_group_are_ordinary():
    assert find_sinks({0: np.array([1.0] * 80 + [20.0] * 20)}) is None
    assert find_sinks({0: np.array([1.0] * 95 + [20.0] * 5)}) is not None


# -- norms as facts of two real models have them: multiples of the median and how many lie above each ----

POSITIONS = 8176
"""16 sequences of 512 without BOS"""
GEMMA = {
    # layer: (largest ordinary, smallest and largest sink); 29 of the positions are sinks at each
    9: (1.9, 7.6, 12.7),
    12: (1.8, 5.9, 7.3),
    15: (1.6, 2.2, 3.1),
}


def ordinary_norms(rng, most: float, count: int) -> np.ndarray:
    norms = np.exp(0.15 * rng.normal(size=count))
    return np.clip(norms / np.median(norms), None, most)


def gemma_norms(seed: int = 0) -> tuple[dict[int, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    sinks = rng.choice(POSITIONS, 29, replace=False)
    norms = {}
    for layer, (most, low, high) in GEMMA.items():
        norms[layer] = ordinary_norms(rng, most, POSITIONS)
        norms[layer][sinks] = np.append(rng.uniform(low, high, 28), high)
    # layer 5 has stragglers between the two groups, layer 16 nothing that stands apart
    norms[5] = ordinary_norms(rng, 1.8, POSITIONS)
    norms[5][sinks] = np.concatenate([[2.4, 3.4, 4.8], rng.uniform(6.2, 9.7, 26)])
    norms[16] = ordinary_norms(rng, 1.5, POSITIONS)
    return norms, np.sort(sinks)


@pytest.mark.parametrize("layers", [(5, 9, 12, 15), (5, 12, 15), (9, 16), (12,), (15, 16, 12)])
def test_a_gemmas_sinks_are_the_same_positions_at_whichever_layers_it_has_saes(layers):
    norms, sinks = gemma_norms()
    rule = find_sinks({layer: norms[layer] for layer in layers})
    assert rule.layer == (9 if 9 in layers else 12)
    assert np.flatnonzero(norms[rule.layer] > rule.norm).tolist() == sinks.tolist()


def test_where_nothing_stands_apart_there_are_none():
    norms, _ = gemma_norms()
    assert find_sinks({16: norms[16]}) is None


def test_a_heavy_tail_is_no_gap_and_a_deeper_layer_tells():
    """SmolLM2: 38 of 3,066 above twice the median at layer 2, in a tail; at layer 15 its first tokens."""
    rng = np.random.default_rng(1)
    tail = np.concatenate([[2.4], np.geomspace(3.05, 11.3, 37)])
    second = np.concatenate([ordinary_norms(rng, 1.9, 3028), tail])
    fifteenth = ordinary_norms(rng, 2.0, 3066)
    fifteenth[[0, 511, 1022, 1533, 2044, 2555, 800]] = [132.0] * 6 + [101.0]
    assert find_sinks({2: second}) is None
    rule = find_sinks({2: second, 15: fifteenth, 10: ordinary_norms(rng, 1.5, 3066)})
    assert rule.layer == 15 and (fifteenth > rule.norm).sum() == 7


# -- which position is of which kind ------------------------------------------------------------------


def test_positions_of_each_kind_against_sets():
    rng = np.random.default_rng(5)
    x_r, x_q = (torch.from_numpy(rng.normal(size=(4, 30, 3)) ** 3) for _ in "rq")
    valid = torch.from_numpy(rng.random((4, 30)) < 0.8)
    kinds = Positions.by_norm(valid, x_r, x_q, 3.0)
    long = [
        {(i, j) for i, j in np.ndindex(4, 30) if valid[i, j] and float((x[i, j] ** 2).sum()) > 9}
        for x in (x_r, x_q)
    ]
    expected = {
        "sinks": long[0], "gained": long[1] - long[0], "lost": long[0] - long[1],
        "ordinary": {(i, j) for i, j in np.ndindex(4, 30) if valid[i, j]} - long[0] - long[1],
    }  # fmt: skip
    for name, places in expected.items():
        assert set(zip(*np.nonzero(getattr(kinds, name).numpy()), strict=True)) == places and places, name
    assert kinds.columns()["sinks_gained"].sum() == len(expected["gained"])
    assert kinds.have_sinks and not Positions.without_sinks(valid).have_sinks


def test_the_reference_gains_and_loses_none():
    x = torch.randn(2, 50, 3)
    kinds = Positions.by_norm(torch.ones(2, 50, dtype=torch.bool), x, x, 1.5)
    assert kinds.sinks.any() and not kinds.gained.any() and not kinds.lost.any()


def test_the_rule_is_what_a_manifest_can_hold():
    import json
    from dataclasses import asdict

    rule = find_sinks({9: np.array([1.0] * 99 + [30.0], dtype=np.float32)})
    assert SinkRule(**json.loads(json.dumps(asdict(rule)))) == rule
