"""Feature sums against numpy on whole activations, and what follows from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builders import features_of_two
from qsae_bench.metrics.features import (
    BLOCKS,
    CURVE,
    DAMAGED,
    ELIGIBLE_POSITIONS,
    SURVIVES,
    FeatureAccumulator,
    FeatureSums,
    feature_table,
    feature_values,
    survival_curve,
    worst_features,
)

SEQUENCES, LENGTH, D_SAE, D_MODEL = 20, 16, 30, 5


@pytest.fixture(scope="module")
def activations():
    """Features of every degree of damage; the last is silent in the cell."""
    rng = np.random.default_rng(0)
    r = np.maximum(rng.normal(size=(SEQUENCES, LENGTH, D_SAE)) - rng.uniform(0, 2.5, D_SAE), 0)
    q = np.maximum(1.5 * r + np.linspace(0, 1, D_SAE) * rng.normal(size=r.shape) * (r > 0), 0)
    q[..., -1] = 0
    return r, q, rng.random((SEQUENCES, LENGTH)) < 0.9


def accumulated(r, q, valid, batch=7, documents=None):
    decoder = torch.from_numpy(np.random.default_rng(1).normal(size=(D_SAE, D_MODEL)))
    documents = np.arange(SEQUENCES) if documents is None else documents
    accumulator = FeatureAccumulator(decoder, torch.from_numpy(documents))
    for start in range(0, SEQUENCES, batch):
        part = slice(start, start + batch)
        accumulator.add(*(torch.from_numpy(one[part]) for one in (r, q, valid)), start)
    return accumulator.sums()


def test_values_against_corrcoef(activations):
    r, q, valid = activations
    sums = accumulated(*activations)
    table = feature_table(sums)
    pairs = [(r[valid][:, j], q[valid][:, j]) for j in range(D_SAE)]
    eligible = np.array([(one > 0).sum() >= ELIGIBLE_POSITIONS for one, _ in pairs])
    np.testing.assert_array_equal(table.eligible, eligible)
    assert 5 < eligible.sum() < D_SAE
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num([np.corrcoef(*pair)[0, 1] for pair in pairs])
    np.testing.assert_allclose(table.correlation, expected, atol=1e-9)
    found, chosen = feature_values(sums), expected[eligible]
    assert found["feature_survival"] == pytest.approx((chosen >= SURVIVES).mean())
    assert found["feature_damaged"] == pytest.approx((chosen < DAMAGED).mean())
    shares = ("feature_survival", "feature_blurred", "feature_damaged")
    assert sum(found[key] for key in shares) == pytest.approx(1)
    assert found["features_newly_dead"] >= 1 and found["features_newly_alive"] == 0


@pytest.mark.parametrize("batch", [1, 8, 20])
def test_batches_do_not_matter_and_blocks_add_up(activations, batch):
    one, other = accumulated(*activations), accumulated(*activations, batch)
    for name, vector in one.vectors.items():
        assert vector.shape == (BLOCKS, D_SAE)
        np.testing.assert_allclose(other.vectors[name], vector, atol=1e-9, err_msg=name)
    np.testing.assert_array_equal(one.plus(other).positions, 2 * one.positions)


def test_the_sequences_of_a_document_are_in_one_block(activations):
    r, q, valid = activations
    documents = np.sort(np.random.default_rng(2).integers(0, 11, SEQUENCES))
    sums = accumulated(r, q, valid, documents=documents)
    for block in range(BLOCKS):
        of_block = documents % BLOCKS == block
        np.testing.assert_allclose(
            sums.vectors["sum_r"][block], r[of_block][valid[of_block]].sum(0), atol=1e-9
        )
        assert sums.positions[block] == valid[of_block].sum()


def test_the_curve_falls_and_meets_survival(activations):
    sums = accumulated(*activations)
    curve = survival_curve(sums)
    assert curve["share"] == sorted(curve["share"], reverse=True)
    assert curve["share"][CURVE.index(SURVIVES)] == feature_values(sums)["feature_survival"]
    weighted = feature_values(sums)["feature_survival_weighted"]
    assert curve["weighted"][CURVE.index(SURVIVES)] == pytest.approx(weighted)


def test_where_no_feature_is_eligible_shares_are_no_numbers(activations):
    r, q, valid = activations
    sums = accumulated(0 * r, 0 * q, valid)
    values = feature_values(sums)
    assert values["features_eligible"] == 0 and np.isnan(values["feature_survival"])
    assert survival_curve(sums) is None and worst_features(sums) == []


@pytest.mark.parametrize(("active", "said"), [(19, False), (20, True)])
def test_of_fewer_than_20_eligible_features_nothing_is_said(active, said):
    """That all of 4 features survive is no survival of 1."""
    rng = np.random.default_rng(3)
    r = np.maximum(rng.normal(size=(SEQUENCES, LENGTH, D_SAE)), 0)
    r[..., active:] = 0
    sums = accumulated(r, r, np.ones((SEQUENCES, LENGTH), dtype=bool))
    values = feature_values(sums)
    assert values["features_eligible"] == active
    names = ("feature_survival", "feature_survival_weighted", "feature_damaged", "feature_slope_p50")
    assert [np.isfinite(values[name]) for name in names] == [said] * len(names)
    assert not said or values["feature_survival"] == 1
    assert (survival_curve(sums) is not None) is said
    assert values["features_newly_dead"] == 0


def test_the_worst_lost_most_weight(activations):
    sums = accumulated(*activations)
    table = feature_table(sums)
    lost = np.where(table.eligible, table.weight * (1 - table.correlation), -1)
    worst = worst_features(sums, 5)
    assert [one["index"] for one in worst] == np.argsort(-lost, kind="stable")[:5].tolist()


def test_leaving_a_block_out_is_having_never_had_it():
    sums, _ = features_of_two(np.random.default_rng(0))
    for gone in range(BLOCKS):
        keep = [b for b in range(BLOCKS) if b != gone]
        rest = FeatureSums(
            {name: vector[keep] for name, vector in sums.vectors.items()},
            sums.positions[keep], sums.decoder_square,
        )  # fmt: skip
        assert feature_values(sums, gone) == pytest.approx(feature_values(rest), nan_ok=True)
